"""Running an integer program: the arithmetic of kernels, on batches of inputs.

Accepts   any `IntegerProgram`; for XNNPACK 8-bit programs without average pools and changes of scale, for ONNX without
          average pools and softmax
Gives     the integers of every tensor's values and how many were cut off at the ends of the tensor's type
Method    each kernel's formula over int64 arrays; tables for functions of 8 bits
Property  exact: the integers of TFLite's reference kernels bit for bit, and XNNPACK's likewise. Where a kernel calls expf,
          tanhf or exp, theirs rounded right are taken, as glibc's nearly always are; a table's entry would differ only
          where the real value lies within about a float32's step of a rounding boundary
Source    tflite/kernels/internal/reference/integer_ops/*.h, reference/softmax.h, internal/common.h, activations.cc; for
          XNNPACK src/reference and microkernels qs8-*-fp32: float32 requantization, half to even; for softmax, which it does
          not take, optimized_ops.h as built for x86-64 (on 64-bit ARM LiteRT takes another table). LiteRT commit f6745779

The two differ. At some 20,000 random inputs of each 8-bit model in tests/data/tflite: of `pooling` and `grouped`
(convolutions) 196 of 20,203 and 481 of 60,609 confidences, by four and three units of 1/256 at most; of `classes` and `wide`
(dense layers) 4 of 202,030 and 5 of 101,015, by one; of `binary` and `tanh` none.
`python -m pytest tests/test_tflite_runtime.py -k differ -s` counts again.

onnxruntime (`Kernels.ONNX`): dense layers, convolutions, max pools, sigmoids and tanh, bit for bit with version 1.31.1's
default session, which runs QOperator files as they are and puts the same kernels in place of QDQ operations: sums of 32 bits,
one float32 product, a half to the even neighbour. With graph optimizations disabled it multiplies float32 matrices, whose sums
have no fixed order: 1 of 960,000 confidences of random dense models was another, by one unit (`python -m pytest
tests/test_onnx_program.py -k without_fusion -s`). Its softmax is not known bit for bit: the published formula missed 56 of
8,640,000 confidences, by one unit, so it is left to `any_kernel`. Processors with AVX2 or AVX-512 but no VNNI may saturate sums
of two products of uint8 by int8 weights: onnxruntime's documents advise weights of 7 bits there.
Source    onnxruntime's mlas (MlasRequantizeOutput, MlasQuantizeLinear), found by experiment
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qrobust.errors import ShapeError, UnsupportedError
from qrobust.integer import fixed_point as fixed
from qrobust.integer.program import (
    Affine,
    Elementwise,
    Function,
    IntegerProgram,
    Kernels,
    Operation,
    Pool,
    Requantize,
    Softmax,
)
from qrobust.interval import FloatArray
from qrobust.layers import IntArray

MOST_GATHERED = 2**23  # numbers that an operation on a batch gathers at a time
FARTHEST = 2.0**32  # beyond every type's ends: results are cut there before they become integers of 64 bits

Rule = Callable[[Any, IntArray], IntArray]


@dataclass(frozen=True, eq=False)
class Trace:
    """What a run gave: the last tensor's integers, and for each operation how many values its type cut off.

    Shapes    values (points, outputs); saturated (operations,); counts (operations,) of all values
    """

    values: IntArray
    saturated: IntArray
    counts: IntArray


def run(program: IntegerProgram, x: IntArray, kernels: Kernels | None = None) -> Trace:
    """Run a program on integers, with the usual kernels of its runtime unless others are named. Shapes: x (points, inputs).

    Raises    ShapeError; UnsupportedError if these kernels do not take an operation, or are not single ones (ANY)
    """
    kernels = kernels or program.runtime.kernels[0]
    if kernels not in program.runtime.kernels:
        known = ", ".join(k.value for k in program.runtime.kernels)
        raise UnsupportedError(f"{kernels.value} kernels do not run this program: its runtime's are {known}")
    rules = RULES.get(kernels)
    if rules is None:
        raise UnsupportedError(f"{kernels.value} gives intervals, not integers: use any_kernel.run")
    if x.ndim != 2 or x.shape[1] != program.inputs:
        raise ShapeError(f"the program takes points of {program.inputs} integers, got an array of shape {x.shape}")
    saturated, counts = [], []
    for operation in program.operations:
        if kernels in CHECKS:
            CHECKS[kernels](operation)
        wanted = operation.bounds.cut(_in_pieces(rules[type(operation)], operation, x))
        x = operation.output.clamp(wanted)
        saturated.append(int((x != wanted).sum()))
        counts.append(x.size)
    return Trace(x, np.array(saturated, dtype=np.int64), np.array(counts, dtype=np.int64))


def _in_pieces(rule: Rule, operation: Operation, x: IntArray) -> IntArray:
    """Apply a rule to as many points at a time as the memory for its windows allows."""
    width = operation.windows.table.size if isinstance(operation, Affine | Pool) else operation.inputs
    step = max(1, MOST_GATHERED // width)
    if len(x) <= step:
        return rule(operation, x)
    return np.concatenate([rule(operation, x[start : start + step]) for start in range(0, len(x), step)])


def accumulators(operation: Affine, x: IntArray) -> IntArray:
    """Return the sums of products with their biases: exact. Shapes: x (points, inputs); result (points, channels, places)."""
    sums = weighted_sums(operation, operation.weight - operation.weight_zero, x - operation.input.zero_point)
    return sums + operation.bias[:, None]


def weighted_sums(operation: Affine, weight: IntArray, x: IntArray) -> IntArray:
    """Return the sums of weight times x over each window: exact, with 0 for the padding.

    Shapes    weight (channels, taps); x (points, inputs); result (points, channels, places)
    Method    float64 products where every partial sum is a whole number below 2**53, so that none is rounded: Affine sees to it
    """
    windows = operation.windows
    numbers, factors = x.astype(np.float64), weight.astype(np.float64)
    if windows.is_whole:
        return np.asarray(numbers @ factors.T, dtype=np.float64).astype(np.int64)[:, :, None]
    padded = np.concatenate([numbers, np.zeros((len(x), 1))], axis=1)
    seen = padded[:, windows.table].swapaxes(2, 3)  # (points, groups, taps, places)
    sums = factors.reshape(windows.groups, -1, windows.taps) @ seen
    return np.asarray(sums.reshape(len(x), -1, windows.places), dtype=np.float64).astype(np.int64)


def _affine(operation: Affine, x: IntArray) -> IntArray:
    sums = accumulators(operation, x)
    if operation.exactly:
        scaled = fixed.round_half_away(sums * operation.factors[:, None]).astype(np.int64)
    else:
        pairs = [fixed.quantized_multiplier(factor) for factor in operation.factors.tolist()]
        multiplier, shift = np.array(pairs, dtype=np.int64).T[:, :, None]
        scaled = (fixed.scaled_64 if operation.wide else fixed.scaled_32)(sums, multiplier, shift)
    return (scaled + operation.output.zero_point).reshape(len(x), -1)


def _affine_float(operation: Affine, x: IntArray) -> IntArray:
    scales = np.float32(operation.input.scale) * operation.scales.astype(np.float32) / np.float32(operation.output.scale)
    products = accumulators(operation, x).astype(np.float32) * scales[:, None]
    return (np.rint(products).astype(np.int64) + operation.output.zero_point).reshape(len(x), -1)


def seen_by_pool(operation: Pool, x: IntArray, padding: int) -> IntArray:
    """Return the values of each window, `padding` where it leaves the image.

    Shapes    result (points, channels, places, taps)
    """
    padded = np.concatenate([x, np.full((len(x), 1), padding)], axis=1)
    seen: IntArray = padded[:, operation.windows.table]
    return seen


def window_counts(operation: Pool) -> IntArray:
    """Return how many values of the image each window sees. Shapes: (channels, places)."""
    return np.asarray((operation.windows.table < operation.windows.inputs).sum(axis=2), dtype=np.int64)


def _pool(operation: Pool, x: IntArray) -> IntArray:
    if not operation.average:
        seen = seen_by_pool(operation, x, operation.input.least)
        return np.asarray(seen.max(axis=3), dtype=np.int64).reshape(len(x), -1)
    sums, counts = seen_by_pool(operation, x, 0).sum(axis=3), window_counts(operation)
    mean: IntArray = np.sign(sums) * ((np.abs(sums) + counts // 2) // counts)
    return np.asarray(mean, dtype=np.int64).reshape(len(x), -1)


def _elementwise(operation: Elementwise, x: IntArray) -> IntArray:
    if operation.input.bits == 16:
        return _elementwise_16(operation, x)
    return table(operation, fixed.round_half_away)[x - operation.input.least]


def _elementwise_xnnpack(operation: Elementwise, x: IntArray) -> IntArray:
    return table(operation, np.rint)[x - operation.input.least]


def table(operation: Elementwise, rounded: Callable[[FloatArray], FloatArray], *, divided: bool = False) -> IntArray:
    """Return the result of a function of 8 bits for each input, from the least: in float32, before the clamp.

    `divided` by the output's scale, as ONNX quantizes; else multiplied by its inverse, as TFLite does.
    """
    every = np.arange(operation.input.least, operation.input.greatest + 1) - operation.input.zero_point
    reals = np.float32(operation.input.scale) * every.astype(np.float32)
    wide = reals.astype(np.float64)
    if operation.function is Function.LOGISTIC:
        with np.errstate(over="ignore"):
            result = np.float32(1) / (np.float32(1) + np.exp(-wide).astype(np.float32))
    else:
        result = np.tanh(wide).astype(np.float32)
    unit = np.float32(operation.output.scale)
    scaled = result / unit if divided else result * (np.float32(1) / unit)
    whole = np.clip(rounded(scaled.astype(np.float64)), -FARTHEST, FARTHEST)
    return np.asarray(whole.astype(np.int64) + operation.output.zero_point)


def _sigmoid_table() -> IntArray:
    """Return TFLite's 256 entries for sigmoid(i / 24) times 2**16: moved by half of what interpolation errs in the middle."""
    values = 65536 / (1 + np.exp(-np.arange(0, 256.5, 0.5) / 24))
    here, middle, after = values[:-1:2], values[1::2], values[2::2]
    entries = np.rint(here - ((here + after) / 2 - middle) / 2).astype(np.int64)
    entries[-1] = 65535
    return entries


def _elementwise_16(operation: Elementwise, x: IntArray) -> IntArray:
    """Interpolate between the table's entries, as integer_ops/{logistic,tanh}.h do."""
    logistic = operation.function is Function.LOGISTIC
    multiplier, shift = _input_multiplier(operation)
    scaled = (x * multiplier + ((1 << shift) >> 1)) >> shift
    bits = 9 if logistic else 8
    size = np.abs(scaled)
    place = np.minimum(size >> bits, 254)
    entries = _sigmoid_table()
    between = (entries[place] << bits) + (size & (2**bits - 1)) * (entries[place + 1] - entries[place])
    value = np.where(size >> bits >= 255, (0x7FFF << 10) if logistic else (0xFFFF << 8), between)
    if logistic:
        return np.where(scaled >= 0, value + 2**9, 2**25 - value + 2**9 - 1) >> 10
    return np.where(scaled >= 0, value - 2**23 + 2**7, -value + 2**23 + 2**7 - 1) >> 8


def _input_multiplier(operation: Elementwise) -> tuple[int, int]:
    """Return the multiplier and right shift that bring an input to units of 1 / (3 * 4096), as Prepare finds them."""
    scale = np.float32(operation.input.scale)
    power = np.log(scale) * (np.float32(1) / np.log(np.float32(2)))
    nearest = int(fixed.round_half_away(np.array(float(power))))
    allowed = (0,) if operation.function is Function.LOGISTIC else (0, 1)
    if abs(power - np.float32(nearest)) < 1e-3 and 12 + nearest in allowed:
        return 3 << (12 + nearest), 0
    multiplier, shift = float(scale) * 4096.0 * 3.0, 0
    while multiplier <= 32767.0 / 2.0 and shift <= 30:
        multiplier, shift = multiplier * 2.0, shift + 1
    if multiplier >= 2**15:
        raise UnsupportedError(f"a {operation.function.value} of 16 bits takes the scale {operation.input.scale:g}, too large")
    return int(multiplier), shift


def _softmax(operation: Softmax, x: IntArray) -> IntArray:
    if operation.input.bits == 16:
        return _softmax_16(operation, x)
    below = x.max(axis=1, keepdims=True) - x
    powers = _powers(operation)[below]  # exp(-scale * beta * below), 0 integer bits
    some = powers >= 0
    sums = np.where(some, fixed.divide_by_power(powers, 12), 0).sum(axis=1, keepdims=True)
    mantissa, bits = fixed.reciprocal(sums, 12)
    shares = fixed.divide_by_power(fixed.high_product(mantissa, np.maximum(powers, 0)), bits + 23)
    return np.where(some, shares - 128, -128)


def _powers(operation: Softmax) -> IntArray:
    """Return exp(-scale * beta * d), 0 integer bits, for d = 0 ... 255; -1 where the kernel leaves a class out."""
    factor = min(operation.beta * operation.input.scale * 2.0**26, 2.0**31 - 1)
    multiplier, shift = fixed.quantized_multiplier(factor)
    least = -int(np.floor(31 * 2.0**26 / 2.0**shift))
    below = -np.arange(256, dtype=np.int64)
    inside = np.where(below >= least, below, 0)
    powers = fixed.exp_of_negative(fixed.high_product(inside << shift, multiplier))
    return np.where(below >= least, powers, -1)


def _softmax_xnnpack(operation: Softmax, x: IntArray) -> IntArray:
    """Sum a table of float32 exponentials in order."""
    scale = -np.float32(operation.input.scale) * np.float32(operation.beta)
    powers = np.exp((scale * np.arange(256, dtype=np.float32)).astype(np.float64)).astype(np.float32)
    terms = powers[x.max(axis=1, keepdims=True) - x]
    sums = np.add.accumulate(terms, axis=1, dtype=np.float32)[:, -1:]
    inverse = np.float32(1) / (sums * np.float32(operation.output.scale))
    return fixed.round_half_away((terms * inverse).astype(np.float64)).astype(np.int64) + operation.output.zero_point


def _curve(function: Callable[[FloatArray], FloatArray], scale: float, zero_point: int) -> IntArray:
    """Return the 513 entries that stand for a function of 16-bit inputs, values in 2**-15, as LUTPopulateInt16 makes them."""
    start, stop, unit = scale * (-32768 - zero_point), scale * (32767 - zero_point), 2.0 / 65535
    step = (stop - start) / 512
    inverse_unit = 65536.0 / (unit * 32767 - unit * -32768)
    places = np.asarray(start + np.arange(513) * step, dtype=np.float64)
    values = function(places) * inverse_unit
    here = fixed.round_half_away(values[:-1])
    middle = fixed.round_half_away(function(places[:-1] + step / 2) * inverse_unit)
    between = fixed.round_half_away((values[1:] + here) / 2)
    last = fixed.round_half_away(function(np.array([stop])) * inverse_unit)
    entries = np.append(here - fixed.round_half_away((between - middle) / 2), last)
    return np.clip(entries, -32768, 32767).astype(np.int64)


def _interpolated(entries: IntArray, x: IntArray) -> IntArray:
    """Look up 16 bits in 513 entries, with 7 bits of interpolation."""
    place = 256 + (x >> 7)
    rise = entries[place + 1] - entries[place]
    return np.asarray(entries[place] + ((rise * (x & 0x7F) + 64) >> 7), dtype=np.int64)


def _softmax_16(operation: Softmax, x: IntArray) -> IntArray:
    """Follow reference/softmax.h, SoftmaxInt16: exp and 1 / (1 + x) from tables of 513 entries."""
    exponentials = _curve(np.exp, 10.0 / 65535, 32767)
    inverses = _curve(lambda v: 1.0 / (1.0 + v), 1.0 / 65535, -32768)
    multiplier, shift = fixed.quantized_multiplier(operation.input.scale * operation.beta / (10.0 / 65535.0))
    below = x - x.max(axis=1, keepdims=True)
    scaled = fixed.scaled_32(below, multiplier, shift)
    powers = _interpolated(exponentials, np.clip(scaled + 32767, -32768, 32767))
    sums = powers.sum(axis=1, keepdims=True)
    headroom = 32 - np.frexp(sums.astype(np.float64))[1].astype(np.int64)
    shifted = ((sums << (headroom - 1)) + 2**13) >> 14
    inverse = _interpolated(inverses, np.clip(shifted - 2**15 - 2**16, -32768, 32767))
    right = 31 - headroom
    rounded = (powers * inverse + (np.int64(1) << (right - 1))) >> right
    return np.asarray(np.clip(rounded, 0, 32767), dtype=np.int64)


def _requantize(operation: Requantize, x: IntArray) -> IntArray:
    multiplier, shift = fixed.quantized_multiplier(operation.input.scale / operation.output.scale)
    scaled = fixed.scaled_32(x - operation.input.zero_point, multiplier, shift)
    return scaled + operation.output.zero_point


def _elementwise_onnx(operation: Elementwise, x: IntArray) -> IntArray:
    """Look up what onnxruntime's float32 function gives, divided by the scale and rounded to even."""
    return table(operation, np.rint, divided=True)[x - operation.input.least]


def _check_onnx(operation: Operation) -> None:
    averages = isinstance(operation, Pool) and operation.average
    if averages or isinstance(operation, Softmax | Requantize):
        raise UnsupportedError(f"onnxruntime's {operation} is not known bit for bit: only the kernels any-kernel bound it")


def _check_xnnpack(operation: Operation) -> None:
    if operation.input.bits != 8:
        raise UnsupportedError(f"xnnpack does not take {operation} of {operation.input.bits} bits: take the kernels reference")
    pools = isinstance(operation, Pool) and operation.average
    scales = isinstance(operation, Requantize) and operation.input.scale != operation.output.scale
    odd = isinstance(operation, Affine) and (operation.weight_zero != 0 or operation.factors.min() < 2.0**-30)
    if pools or scales or odd:
        raise UnsupportedError(f"xnnpack's {operation} is not known bit for bit: take the kernels reference or any-kernel")


RULES: dict[Kernels, dict[type, Rule]] = {
    Kernels.REFERENCE: {
        Affine: _affine,
        Pool: _pool,
        Elementwise: _elementwise,
        Softmax: _softmax,
        Requantize: _requantize,
    },
    Kernels.XNNPACK: {
        Affine: _affine_float,
        Pool: _pool,
        Elementwise: _elementwise_xnnpack,
        Softmax: _softmax_xnnpack,
        Requantize: _requantize,
    },
    Kernels.ONNX: {
        Affine: _affine_float,
        Pool: _pool,
        Elementwise: _elementwise_onnx,
    },
}
CHECKS: dict[Kernels, Callable[[Operation], None]] = {Kernels.XNNPACK: _check_xnnpack, Kernels.ONNX: _check_onnx}
