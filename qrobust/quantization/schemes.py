"""Schemes: how the parameters of a network are stored in fewer bits.

Accepts   any Network; layers without parameters (pools) are left alone
Gives     `box` the set of all roundings around the stored network, `copy` the quantized network, `code_points` the legal values
          in the box, `snapped` the legal values nearest to a choice of parameters
Method    each scheme gives every array of parameters its grid (`grids`)
Property  exact: the copy lies in the box as real numbers, for every scheme and network

The box is stated once, for all schemes. Around a stored number p0 it holds every p with

    abs(p - p0) <= step / 2         for rounding to nearest
    p0 - step <= p <= p0            for floor
    abs(p - p0) <= step             for `either`

where `step` is the distance of the format's values around p0: one number an array, channel or block, and for floating point
that of p0's own binade. It asks nothing of where in that distance the legal values lie, so it also covers a grid shifted by
less than a step. Where p0 rounds beyond the format's range, the box reaches on to what becomes of p0, saturated or wrapped.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from qrobust.domains import LayerBox, ParameterBox, Parameters
from qrobust.errors import NumberError, ShapeError, UnsupportedError
from qrobust.interval import FloatArray, up
from qrobust.layers import Layer
from qrobust.network import Network
from qrobust.quantization.grids import Floating, Grid, Kept, Overflow, RoundingMode, Signs, Uniform, allowed, legal, placed

T = TypeVar("T")

LEAST_FLOAT32 = 2.0**-149
LEAST_EXPONENT, GREATEST_EXPONENT = -1022, 1023  # of float64's normal numbers
MOST_BITS = 32


class Bias(Enum):
    """What becomes of biases."""

    FLOAT = "bias-float"  # kept as they are
    SAME = "bias-same"  # the weights' format, with a scale of their own
    INT32 = "bias-int32"  # whole numbers of 32 bits at the step (input's step) * (weights' step), as TFLite stores them


class ScaleType(Enum):
    """What a scale is stored as. float32 is what files hold, and makes step * code exact up to 29 bits of code."""

    FLOAT32 = "float32-scale"  # the nearest one, so the greatest weight may saturate by a rounding of the scale
    FLOAT64 = "float64-scale"  # rounded up, so it never does


@dataclass(frozen=True, eq=False)
class CodePoints:
    """The least and the greatest legal value of every parameter in the box; those between them are all in the box."""

    least: Parameters
    greatest: Parameters


class Scheme(ABC):
    """A number format, or one a layer, and how parameters get into it. `str` gives the text that `parse_scheme` reads."""

    @abstractmethod
    def grids(self, network: Network) -> list[tuple[Grid, Grid]]:
        """Return the grids of every layer's weights and biases. Raises NumberError or ShapeError naming the layer."""

    @property
    def output_step(self) -> float | None:
        """The distance of the confidences just below 1 if outputs are stored in this format, too; None if they are not."""
        return None

    def box(self, network: Network) -> ParameterBox:
        """Return the set of all roundings around the stored network: see the head of this file. Raises NumberError."""
        layers = tuple(LayerBox(*bounds) for bounds in self._each(network, allowed))
        return ParameterBox(layers, rule=f"every rounding to {self}")

    def copy(self, network: Network) -> Network:
        """Return the quantized network, dequantized. Raises NumberError.

        Its numbers are exactly the legal values where float64 holds these, which is so for all formats but those with
        scales of float64, codes of 30 bits and more, or biases of 32 bits; there step * code is rounded to float64, to
        nearest or, where that leaves the box, toward the stored number.
        """
        layers = [layer.with_parameters(*pair) for layer, pair in zip(network.layers, self._each(network, placed), strict=True)]
        return replace(network, layers=tuple(layers), name=f"{network.name or 'network'}, {self}")

    def code_points(self, network: Network) -> CodePoints:
        """Return the legal values that lie in the box. Raises NumberError."""
        ends = self._each(network, legal)
        least, greatest = (tuple((weight[i], bias[i]) for weight, bias in ends) for i in (0, 1))
        return CodePoints(least, greatest)

    def snapped(self, network: Network, parameters: Parameters) -> Parameters:
        """Return the legal values in the box that are nearest to a choice of parameters: what a device can hold."""
        points = self.code_points(network)
        layers = zip(self.grids(network), parameters, points.least, points.greatest, strict=True)
        return tuple(
            (
                np.clip(weight_grid.nearest(_floats(weight)), low[0], high[0]),
                np.clip(bias_grid.nearest(_floats(bias)), low[1], high[1]),
            )
            for (weight_grid, bias_grid), (weight, bias), low, high in layers
        )

    def _each(self, network: Network, rule: Callable[[Grid, FloatArray], T]) -> list[tuple[T, T]]:
        """Apply a rule to every layer's weights and biases."""
        found = []
        layers = zip(network.layers, self.grids(network), strict=True)
        for number, (layer, (weight_grid, bias_grid)) in enumerate(layers, start=1):
            with naming(f"layer {number}"):
                found.append((rule(weight_grid, layer.weight), rule(bias_grid, layer.bias)))
        return found


class OneFormat(Scheme):
    """One number format for all layers."""

    bias: Bias
    input_steps: tuple[float, ...] = ()

    @abstractmethod
    def grid(self, values: FloatArray) -> Grid:
        """Return the legal values for one array. Raises NumberError where its numbers are too large for the format."""

    def grids(self, network: Network) -> list[tuple[Grid, Grid]]:
        count = sum(layer.weight.size > 0 for layer in network.layers)
        if self.bias is Bias.INT32 and len(self.input_steps) != count:
            raise ShapeError(f"{self} names {len(self.input_steps)} input steps, the network has {count} layers with biases")
        steps, found = iter(self.input_steps), list[tuple[Grid, Grid]]()
        for number, layer in enumerate(network.layers, start=1):
            with naming(f"layer {number}"):
                found.append(self.layer_grids(layer, next(steps, None)) if layer.weight.size else (Kept(), Kept()))
        return found

    def layer_grids(self, layer: Layer, input_step: float | None = None) -> tuple[Grid, Grid]:
        """Return the grids of one layer's weights and biases; `input_step` is that of its input, where biases take 32 bits."""
        weights = self.grid(layer.weight)
        if self.bias is Bias.SAME:
            return weights, self.grid(layer.bias)
        if self.bias is Bias.FLOAT or not isinstance(weights, Uniform) or input_step is None:
            return weights, Kept()
        if weights.step.size not in (1, len(layer.bias)):
            raise UnsupportedError(
                "biases of 32 bits need one scale for the weights or one a channel, not blocks: use bias-float"
            )
        steps = np.ravel(weights.step) * input_step
        if ((steps == 0) & (layer.bias != 0)).any():
            raise NumberError("weights that are all 0 give their bias of 32 bits no step: use bias-float or bias-same")
        return weights, _uniform(steps, 32)


@dataclass(frozen=True)
class Integer(OneFormat):
    """Whole numbers of `bits` bits times a scale.

    Symmetric: codes from -q to q, q = 2**(bits - 1) - 1, scale max abs(p0) / q. Asymmetric: 2**bits codes from the least
    to the greatest value, 0 among them, scale (max - min) / (2**bits - 1), the zero point the nearest code to -min / scale.
    The extremes are taken over each array, over each output channel (the first axis) of the weights with `per_channel`, or
    over each `block` entries along the input axis (the second). Arrays of fewer than `fewest` elements are kept as floats.
    `input_steps` go with bias-int32: the step of each layer's input, from calibration, one a layer that has parameters.

    Source    Jacob et al. 2018, arXiv 1712.05877; the TFLite 8-bit specification; ONNX QuantizeLinear (blocks)
    Raises    NumberError
    """

    bits: int = 8
    symmetric: bool = True
    per_channel: bool = False
    block: int | None = None
    mode: RoundingMode = RoundingMode.NEAREST_EVEN
    scale: ScaleType = ScaleType.FLOAT32
    bias: Bias = Bias.FLOAT
    input_steps: tuple[float, ...] = ()
    fewest: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= MOST_BITS:
            raise NumberError(f"bits is {self.bits}, it must lie between 2 and {MOST_BITS}, such as 8")
        if self.block is not None and (self.block < 1 or self.per_channel):
            raise NumberError(f"block is {self.block}: give a size of at least 1, and without per-channel")
        if (self.bias is Bias.INT32) != bool(self.input_steps):
            raise NumberError("bias-int32 needs the step of each layer's input, as in int8-bias-int32@0.0039,0.02")
        if not all(0 < step < math.inf for step in self.input_steps):
            raise NumberError(f"the input steps {self.input_steps} must be finite numbers above 0, such as 0.0039")

    @property
    def output_step(self) -> float | None:
        """1/256 for 8 bits and 1/32768 for 16: the output scale of TFLite's softmax and logistic kernels."""
        return {8: 2.0**-8, 16: 2.0**-15}.get(self.bits)

    def grid(self, values: FloatArray) -> Grid:
        if values.size < self.fewest:
            return Kept()
        low, high = _extremes(values, self.per_channel, self.block)
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        if self.symmetric:
            step = _scale(np.maximum(-low, high), 2.0 ** (self.bits - 1) - 1, self.scale)
            return _uniform(_spread(step, values, self.block), self.bits, self.mode)
        count = 2.0**self.bits - 1
        with np.errstate(over="ignore"):
            step = _scale(high - low, count, self.scale)
        zero = np.clip(np.rint(-low / np.where(step > 0, step, 1.0)), 0.0, count)
        step, zero = _spread(step, values, self.block), _spread(zero, values, self.block)
        return Uniform(step, -zero, count - zero, self.mode)

    def __str__(self) -> str:
        return NAMES.get(self) or _text(self, f"int{self.bits}")


class FloatFormat(Enum):
    """Floating-point formats: bits behind the leading one, exponent of the least normal number, greatest number.

    Source    IEEE 754-2019 (binary16); bfloat16; OCP 8-bit floating point specification, revision 1.0 (E4M3 has no
              infinities and one NaN a sign, E5M2 is like IEEE 754)
    """

    FP16 = ("fp16", 10, -14, 65504.0)
    BF16 = ("bf16", 7, -126, (2 - 2.0**-7) * 2.0**127)
    E4M3 = ("fp8-e4m3", 3, -6, 448.0)
    E5M2 = ("fp8-e5m2", 2, -14, 57344.0)


@dataclass(frozen=True)
class FloatingPoint(OneFormat):
    """A floating-point format without a scale, subnormals included, rounded to nearest, ties to even.

    Overflow is `refuse`d (a device would store an infinity, or NaN in e4m3) or, on request, saturates. Biases are in the
    same format unless kept.
    """

    format: FloatFormat
    overflow: Overflow = Overflow.REFUSE
    bias: Bias = Bias.SAME

    def __post_init__(self) -> None:
        _check_bias(self)
        if self.overflow is Overflow.WRAP:
            raise NumberError(f"{self.format.value[0]} does not wrap: its overflow is refuse or saturate")

    @property
    def output_step(self) -> float | None:
        """The step between 1/2 and 1."""
        return float(2.0 ** (-1 - self.format.value[1]))

    def grid(self, values: FloatArray) -> Grid:
        _, fraction, least, greatest = self.format.value
        return Floating(fraction, np.array(least), np.array(greatest), self.overflow)

    def __str__(self) -> str:
        return _text(self, self.format.value[0])


@dataclass(frozen=True)
class FixedPoint(OneFormat):
    """Qm.n: a sign, m bits before the point and n behind it; multiples of 2**-n from -2**m to 2**m - 2**-n.

    hls4ml's ap_fixed<W, I> counts the sign among its I integer bits: ap_fixed<16, 6> is q5.10, and its defaults are floor
    and wrap.

    Raises    NumberError unless m, n >= 0 and the bits with the sign are 2 to 32
    """

    integer_bits: int
    fraction_bits: int
    mode: RoundingMode = RoundingMode.NEAREST_EVEN
    overflow: Overflow = Overflow.SATURATE
    bias: Bias = Bias.SAME

    def __post_init__(self) -> None:
        _check_bias(self)
        bits = 1 + self.integer_bits + self.fraction_bits
        if min(self.integer_bits, self.fraction_bits) < 0 or not 2 <= bits <= MOST_BITS:
            raise NumberError(f"{self} has {bits} bits with the sign, it must have 2 to {MOST_BITS}, as q3.4 has 8")
        if self.overflow is Overflow.REFUSE:
            raise NumberError("fixed point saturates or wraps: say which")

    @property
    def output_step(self) -> float | None:
        return float(2.0**-self.fraction_bits)

    def grid(self, values: FloatArray) -> Grid:
        ends = 2.0 ** (self.integer_bits + self.fraction_bits)
        return Uniform(np.array(self.output_step), np.array(-ends), np.array(ends - 1), self.mode, self.overflow)

    def __str__(self) -> str:
        named = f"q{self.integer_bits}.{self.fraction_bits}-{self.mode.value}-{self.overflow.value}"
        return _text(self, named, without=("mode", "overflow"))


@dataclass(frozen=True)
class PowersOfTwo(OneFormat):
    """0 and both signs of 2**(bits - 1) - 1 powers of two, the greatest one the nearest to max abs(p0), ties up.

    Numbers go to the nearest value, ties between two powers to the greater one, and half the least power to 0.

    Source    Zhou et al. 2017 (incremental network quantization), arXiv 1702.03044, the choice of the greatest power
    """

    bits: int = 4
    per_channel: bool = False
    bias: Bias = Bias.FLOAT

    def __post_init__(self) -> None:
        _check_bias(self)
        if not 2 <= self.bits <= 8:
            raise NumberError(f"powers of two take 2 to 8 bits, not {self.bits}")

    def grid(self, values: FloatArray) -> Grid:
        size = _magnitude(values, self.per_channel)
        fraction, exponent = np.frexp(size)
        top = np.minimum(exponent.astype(np.int64) - (fraction < 0.75), GREATEST_EXPONENT)
        least = np.maximum(top - (2 ** (self.bits - 1) - 2), LEAST_EXPONENT)
        return Floating(0, least, np.where(size > 0, np.ldexp(1.0, top), 0.0), Overflow.SATURATE)

    def __str__(self) -> str:
        return _text(self, "pow2")


@dataclass(frozen=True)
class Ternary(OneFormat):
    """-a, 0 and a: each number goes to the nearest, ties (a / 2) to 0.

    a is the mean size of the numbers above 0.7 times the mean size of all, as float32.

    Source    Li et al. 2016 (ternary weight networks), arXiv 1605.04711, for a; there a number at 0.7 mean sizes goes to a
    """

    per_channel: bool = False
    bias: Bias = Bias.FLOAT

    def __post_init__(self) -> None:
        _check_bias(self)

    def grid(self, values: FloatArray) -> Grid:
        sizes = np.abs(values)
        above = sizes > 0.7 * _mean(sizes, np.ones(sizes.shape, dtype=bool), self.per_channel)
        return Uniform(_scale(_mean(sizes, above, self.per_channel), 1.0), np.array(-1.0), np.array(1.0))

    def __str__(self) -> str:
        return _text(self, "ternary")


@dataclass(frozen=True)
class Binary(OneFormat):
    """-a and a: each number goes to its sign's, 0 to a. a is the mean size of the numbers, as float32.

    Source    Rastegari et al. 2016 (XNOR-Net), arXiv 1603.05279
    """

    per_channel: bool = False
    bias: Bias = Bias.FLOAT

    def __post_init__(self) -> None:
        _check_bias(self)

    def grid(self, values: FloatArray) -> Grid:
        everything = np.ones(values.shape, dtype=bool)
        return Signs(_scale(_mean(np.abs(values), everything, self.per_channel), 1.0))

    def __str__(self) -> str:
        return _text(self, "binary")


DYNAMIC_RANGE = Integer(8, per_channel=True, mode=RoundingMode.HALF_AWAY, fewest=1024)
"""TensorFlow Lite's post-training dynamic-range quantization of dense layers, number for number as TensorFlow 2.21 converts."""
NAMES: dict[OneFormat, str] = {DYNAMIC_RANGE: "tflite-dynamic-range"}


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Put the place before the message of an error."""
    try:
        yield
    except NumberError as error:
        raise NumberError(f"{place}: {error}") from None
    except UnsupportedError as error:
        raise UnsupportedError(f"{place}: {error}") from None


def _text(scheme: Scheme, head: str, without: tuple[str, ...] = ()) -> str:
    """Return the head and, for each other field that differs from its default, the word that says so."""
    words, tail = [head], ""
    for field in fields(scheme):  # type: ignore[arg-type]
        value = getattr(scheme, field.name)
        if value == field.default or field.name in without:
            continue
        match field.name:
            case "symmetric":
                words.append("asymmetric")
            case "per_channel":
                words.append("per-channel")
            case "block" | "fewest":
                words.append(f"{field.name}{value}")
            case "bits" if head == "pow2":
                words.append(f"bits{value}")
            case "input_steps":
                tail = "@" + ",".join(repr(step) for step in value)
            case _ if isinstance(value, RoundingMode | Overflow | ScaleType | Bias):
                words.append(value.value)
    return "-".join(words) + tail


def _check_bias(scheme: OneFormat) -> None:
    if scheme.bias is Bias.INT32:
        raise NumberError("biases of 32 bits go with integer weights: use bias-float or bias-same")


def _floats(values: npt.NDArray[Any]) -> FloatArray:
    return np.asarray(values, dtype=np.float64)


def _uniform(step: FloatArray, bits: int, mode: RoundingMode = RoundingMode.NEAREST_EVEN) -> Uniform:
    highest = np.array(2.0 ** (bits - 1) - 1)
    return Uniform(step, -highest, highest, mode)


def _extremes(values: FloatArray, per_channel: bool, block: int | None) -> tuple[FloatArray, FloatArray]:
    """Return the least and the greatest value of each group; biases (one axis) are one group."""
    if block is not None and values.ndim > 1:
        starts = np.arange(0, values.shape[1], block)
        return np.minimum.reduceat(values, starts, axis=1), np.maximum.reduceat(values, starts, axis=1)
    axes = tuple(range(1, values.ndim)) if per_channel and values.ndim > 1 else None
    return values.min(axis=axes, keepdims=True), values.max(axis=axes, keepdims=True)


def _magnitude(values: FloatArray, per_channel: bool) -> FloatArray:
    low, high = _extremes(values, per_channel, None)
    return np.maximum(-low, high)


def _spread(array: FloatArray, values: FloatArray, block: int | None) -> FloatArray:
    """Repeat what each block along the second axis has for each of its entries; other groups broadcast as they are."""
    if block is None or values.ndim == 1:
        return array
    return np.repeat(array, block, axis=1)[:, : values.shape[1]]


def _scale(size: FloatArray, count: float, kind: ScaleType = ScaleType.FLOAT32) -> FloatArray:
    """Return size / count as a scale; 0 where size is 0, and the least positive scale where the quotient is below it."""
    with np.errstate(over="ignore", under="ignore"):
        if kind is ScaleType.FLOAT64:
            step = np.asarray(up(size / count))
        else:
            step = np.maximum((size / count).astype(np.float32).astype(np.float64), LEAST_FLOAT32)
    if not np.isfinite(step).all():
        raise NumberError(f"values up to {float(size.max()):g} need a scale beyond {kind.value.removesuffix('-scale')}")
    return np.where(size > 0, step, 0.0)


def _mean(sizes: FloatArray, counted: npt.NDArray[np.bool_], per_channel: bool) -> FloatArray:
    """Return the mean of the counted entries of each group (0 of none), from sums without rounding error."""
    rows = (len(sizes), -1) if per_channel and sizes.ndim > 1 else (1, -1)
    parts, taken = np.where(counted, sizes, 0.0).reshape(rows), counted.reshape(rows).sum(axis=1)
    with naming("the mean size of the numbers"):
        sums = np.array([_exact_sum(part) for part in parts])
    means = sums / np.maximum(taken, 1)
    return np.asarray(means.reshape((-1,) + (1,) * (sizes.ndim - 1)))


def _exact_sum(part: FloatArray) -> float:
    try:
        return math.fsum(part.tolist())
    except OverflowError:
        raise NumberError("their sum is beyond float64: scale the network") from None
