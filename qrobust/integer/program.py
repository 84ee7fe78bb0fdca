"""Integer programs: a chain of operations on integers, immutable, with the scales that give the integers a meaning.

Values between operations are flat vectors of integers; images lie in them channel by channel, row by row, as in `layers`.
What an operation computes bit for bit depends on the kernels that run it, so it is said once for each kind of `Kernels`:
`kernels` gives integers, `any_kernel` an interval of integers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from qrobust.errors import NumberError, ShapeError, UnsupportedError
from qrobust.integer.fixed_point import round_half_away
from qrobust.integer.geometry import Windows
from qrobust.interval import FloatArray
from qrobust.layers import IntArray
from qrobust.network import Output


class Kernels(Enum):
    """Whose arithmetic a program is run with.

    REFERENCE  TFLite's reference kernels, bit for bit (checked against LiteRT 2.3.0 with its BUILTIN_REF resolver)
    XNNPACK    those of XNNPACK for the operations that it takes of integers, which requantize through float32
    ONNX       onnxruntime's integer kernels: those of QOperator files, and those that it puts in place of QDQ ones
    ANY        any kernels whose every result lies within 3/2 of the real-valued one, before the clamp to its range: a right
               rounding that is off by one at most. Gives intervals
    """

    REFERENCE = "reference"
    XNNPACK = "xnnpack"
    ONNX = "onnxruntime"
    ANY = "any-kernel"


class Runtime(Enum):
    """Which runtime a program is for: it fixes how reals become integers, and whose kernels can run it."""

    TFLITE = "tflite"
    ONNX = "onnxruntime"

    @property
    def kernels(self) -> tuple[Kernels, ...]:
        """The kernels that can run its programs, the usual one first."""
        own = (Kernels.REFERENCE, Kernels.XNNPACK) if self is Runtime.TFLITE else (Kernels.ONNX,)
        return (*own, Kernels.ANY)


class Function(Enum):
    """A function applied to each number."""

    LOGISTIC = "logistic"
    TANH = "tanh"


@dataclass(frozen=True)
class Encoding:
    """What an integer q of a tensor means: scale * (q - zero_point), within the range of its type.

    Accepts   scale: a positive float32 number; bits: 8 or 16
    Raises    NumberError
    """

    scale: float
    zero_point: int
    bits: int = 8
    signed: bool = True

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0 and float(np.float32(self.scale)) == self.scale):
            raise NumberError(f"a tensor has the scale {self.scale!r}: it must be a positive float32 number")
        if self.bits not in (8, 16) or not self.least <= self.zero_point <= self.greatest:
            raise NumberError(f"a tensor of {self.bits} bits has the zero point {self.zero_point}, outside its range")

    @property
    def least(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def greatest(self) -> int:
        return self.least + (1 << self.bits) - 1

    def real(self, values: IntArray) -> FloatArray:
        """Return the real numbers that integers mean: exact, for 24 bits times 17 fit a float64."""
        return self.scale * (values - self.zero_point).astype(np.float64)

    def unclamped(self, values: FloatArray, runtime: Runtime = Runtime.TFLITE) -> IntArray:
        """Return the integers nearest to reals in float32, before the clamp, as the runtime divides and rounds.

        TFLite's QUANTIZE rounds a half away from zero, ONNX's QuantizeLinear to the even neighbour.
        Raises    NumberError where a number is no float32 or leaves 32 bits
        """
        with np.errstate(over="ignore"):
            quotient = np.asarray(values, dtype=np.float32) / np.float32(self.scale)
        if not (np.abs(quotient) < 2**30).all():
            raise NumberError(f"an input is too large for the scale {self.scale:g}: TFLite's result is undefined there")
        wide = quotient.astype(np.float64)
        rounded = round_half_away(wide) if runtime is Runtime.TFLITE else np.rint(wide)
        return np.asarray(rounded.astype(np.int64) + self.zero_point)

    def clamp(self, values: IntArray) -> IntArray:
        return np.clip(values, self.least, self.greatest)

    def __str__(self) -> str:
        return f"{'' if self.signed else 'u'}int{self.bits}, scale {self.scale:.6g}, zero point {self.zero_point}"


@dataclass(frozen=True)
class Bounds:
    """The integers between which a fused activation (ReLU, ReLU6) cuts its results; None where it does not."""

    lower: int | None = None
    upper: int | None = None

    def cut(self, values: IntArray) -> IntArray:
        if self.lower is None and self.upper is None:
            return values
        return np.clip(values, self.lower, self.upper)


@dataclass(frozen=True, eq=False)
class Affine:
    """A fully connected layer or convolution of integers: sum (weight - weight_zero) * (x - x_zero) + bias, requantized.

    Shapes    weight (out channels, taps), int8; bias (out channels,); scales (out channels,), float32 numbers;
              `windows` say which inputs each tap sees, for a fully connected layer all
    Accepts   wide: 64-bit accumulators, as with 16-bit activations. `exactly`: requantized through a float64 product
              rounded once, as the reference kernels do for fully connected layers; else by a 31-bit multiplier
    Raises    ShapeError; UnsupportedError where an accumulator can leave its bits, for the result is then undefined
    """

    weight: IntArray
    bias: IntArray
    scales: FloatArray
    windows: Windows
    input: Encoding
    output: Encoding
    weight_zero: int = 0
    bounds: Bounds = Bounds()
    wide: bool = False
    exactly: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("weight", np.int64), ("bias", np.int64), ("scales", np.float64)):
            array = np.array(getattr(self, name), dtype=kind)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        channels = len(self.weight)
        if self.weight.ndim != 2 or channels % self.windows.groups or self.weight.shape[1] != self.windows.taps:
            raise ShapeError(f"weights of shape {self.weight.shape} do not fit windows of {self.windows.taps} inputs")
        if self.bias.shape != (channels,) or self.scales.shape != (channels,):
            raise ShapeError(f"{channels} channels need as many biases and scales, not {self.bias.shape}, {self.scales.shape}")
        if not ((self.scales > 0) & np.isfinite(self.scales)).all():
            raise NumberError("weights have a scale that is not a positive number")
        greatest = self._greatest_accumulator()
        bits = 47 if self.wide and not self.exactly else 53 if self.wide else 31
        factor = float(self.factors.max())
        if greatest >= 2**bits or factor >= 128 or 2 * greatest * max(factor, 2**-30) >= 2**31:
            raise UnsupportedError(
                f"an accumulator can reach {greatest:.3g} and is scaled by {factor:.3g}: it may overflow, which TFLite leaves"
                " undefined"
            )

    def _greatest_accumulator(self) -> float:
        reach = max(self.input.greatest - self.input.zero_point, self.input.zero_point - self.input.least)
        sums = np.abs(self.weight - self.weight_zero).astype(np.float64).sum(axis=1)
        return float((sums * reach + np.abs(self.bias)).max())

    @cached_property
    def factors(self) -> FloatArray:
        """What a unit of each channel's accumulator is in units of the output, in float64. Shape: (out channels,)."""
        return self.input.scale * self.scales / self.output.scale

    @property
    def inputs(self) -> int:
        return self.windows.inputs

    @property
    def outputs(self) -> int:
        return len(self.weight) * self.windows.places

    def __str__(self) -> str:
        return f"{'fully connected' if self.windows.places == 1 else 'convolution'} {self.outputs}"


@dataclass(frozen=True, eq=False)
class Pool:
    """The greatest or the mean of each window of each channel, in the units of the input. `windows` has a group a channel.

    Raises    UnsupportedError where a sum can leave 32 bits
    """

    windows: Windows
    input: Encoding
    average: bool
    bounds: Bounds = Bounds()

    def __post_init__(self) -> None:
        if self.windows.taps << self.input.bits >= 2**31:
            raise UnsupportedError(f"a pool sums {self.windows.taps:,} numbers of {self.input.bits} bits: it may overflow")

    @property
    def output(self) -> Encoding:
        return self.input

    @property
    def inputs(self) -> int:
        return self.windows.inputs

    @property
    def outputs(self) -> int:
        return self.windows.groups * self.windows.places

    def __str__(self) -> str:
        return f"{'average' if self.average else 'max'} pool {self.outputs}"


@dataclass(frozen=True)
class _OfVector:
    """An operation that takes a vector and gives one of the same size, with no clamp of its own."""

    size: int

    @property
    def bounds(self) -> Bounds:
        return Bounds()

    @property
    def inputs(self) -> int:
        return self.size

    @property
    def outputs(self) -> int:
        return self.size


@dataclass(frozen=True)
class Elementwise(_OfVector):
    """A logistic or tanh of each number: a table of 256 entries for 8 bits, an interpolated one for 16.

    `check_tflite` raises UnsupportedError if the output's scale is not the one that TFLite fixes.
    """

    function: Function
    input: Encoding
    output: Encoding

    def check_tflite(self) -> None:
        narrow, logistic = self.input.bits == 8, self.function is Function.LOGISTIC
        fixed = (2**-8, -128) if logistic else (2**-7, 0)
        wanted = fixed if narrow else (2**-15, 0)
        found = (self.output.scale, self.output.zero_point)
        if self.input.bits != self.output.bits or not self.input.signed or not self.output.signed or found != wanted:
            raise UnsupportedError(f"a {self.function.value} gives {self.output}: TFLite fixes scale and zero point {wanted}")
        if not narrow and self.input.zero_point != 0:
            raise UnsupportedError(f"a {self.function.value} of 16 bits takes {self.input}: its zero point must be 0")

    def __str__(self) -> str:
        return f"{self.function.value} {self.size}"


@dataclass(frozen=True)
class Softmax(_OfVector):
    """The softmax of beta times the numbers of a vector.

    Raises    UnsupportedError, NumberError (beta); `check_tflite` if the output's scale is not the one that TFLite fixes
    """

    beta: float
    input: Encoding
    output: Encoding

    def check_tflite(self) -> None:
        wanted = (2**-8, -128) if self.input.bits == 8 else (2**-15, 0)
        found = (self.output.scale, self.output.zero_point)
        if self.input.bits != self.output.bits or not self.input.signed or not self.output.signed or found != wanted:
            raise UnsupportedError(f"a softmax gives {self.output}: TFLite fixes scale and zero point {wanted}")
        if self.input.bits == 16 and self.input.zero_point != 0:
            raise UnsupportedError(f"a softmax of 16 bits takes {self.input}: its zero point must be 0")

    def __post_init__(self) -> None:
        if not (np.isfinite(self.beta) and self.beta > 0) or not 2**-26 < self.beta * self.input.scale < 2**10:
            raise NumberError(f"a softmax has beta {self.beta!r} and scale {self.input.scale!r}, outside what TFLite can hold")
        if not 2 <= self.size < 4096:
            raise UnsupportedError(f"a softmax of {self.size} classes: 2 to 4095 are read")

    def __str__(self) -> str:
        return f"softmax {self.size}"


@dataclass(frozen=True)
class Requantize(_OfVector):
    """The same real numbers in another encoding (QUANTIZE of integers)."""

    input: Encoding
    output: Encoding

    def __post_init__(self) -> None:
        if not 2**-20 < self.input.scale / self.output.scale < 2**10:
            raise UnsupportedError(f"integers of {self.input} become {self.output}: the scales are too far apart")

    def __str__(self) -> str:
        return f"requantize {self.size}"


Operation = Affine | Pool | Elementwise | Softmax | Requantize


@dataclass(frozen=True, eq=False)
class IntegerProgram:
    """Operations on integers, from encoded inputs to encoded confidences of a classifier.

    `quantizes` says whether the file's own first operation turns real inputs into integers (QUANTIZE); if not, whoever
    calls it does, and by the same formula is assumed.
    Raises    ShapeError if operations do not fit; UnsupportedError if the last is no logistic or softmax, or the runtime has
              no such operation
    """

    operations: tuple[Operation, ...]
    name: str = ""
    quantizes: bool = False
    runtime: Runtime = Runtime.TFLITE

    def __post_init__(self) -> None:
        if not self.operations:
            raise ShapeError("an integer program needs at least one operation")
        for before, after in zip(self.operations, self.operations[1:], strict=False):
            if after.inputs != before.outputs or after.input != before.output:
                raise ShapeError(f"{after} takes {after.inputs} ({after.input}), not {before.outputs} ({before.output})")
        for operation in self.operations:
            if self.runtime is Runtime.TFLITE and isinstance(operation, Elementwise | Softmax):
                operation.check_tflite()
            if self.runtime is Runtime.ONNX and {operation.input.bits, operation.output.bits} != {8}:
                raise UnsupportedError(f"{operation} takes {operation.input}: onnxruntime's kernels are read for 8 bits alone")
        last = self._last
        if not isinstance(last, Softmax) and not (isinstance(last, Elementwise) and last.function is Function.LOGISTIC):
            raise UnsupportedError(f"the program ends in {last}: a classifier ends in a logistic or a softmax")
        if isinstance(last, Elementwise) and last.size != 1:
            raise UnsupportedError(f"the program ends in {last.size} logistics: a binary classifier ends in one")

    @property
    def _last(self) -> Operation:
        """The last operation but those that change the encoding."""
        return next((o for o in reversed(self.operations) if not isinstance(o, Requantize)), self.operations[-1])

    @property
    def input(self) -> Encoding:
        return self.operations[0].input

    @property
    def result(self) -> Encoding:
        """The encoding of the confidences."""
        return self.operations[-1].output

    @property
    def inputs(self) -> int:
        return self.operations[0].inputs

    @property
    def output(self) -> Output:
        return Output.SOFTMAX if isinstance(self._last, Softmax) else Output.SIGMOID

    @property
    def class_count(self) -> int:
        return 2 if self.output is Output.SIGMOID else self._last.outputs

    @cached_property
    def sha256(self) -> str:
        """Hash of all that the program computes; not of its name."""
        digest = hashlib.sha256(b"qrobust-integer-program-1")
        if self.runtime is not Runtime.TFLITE:
            digest.update(f" {self.runtime.value}".encode())
        for operation in self.operations:
            digest.update(f" {operation} {operation.input} {operation.output} {operation.bounds}".encode())
            digest.update(f" {operation.input.scale.hex()} {operation.output.scale.hex()}".encode())
            if isinstance(operation, Affine):
                digest.update(f" {operation.weight_zero} {operation.wide} {operation.exactly}".encode())
                for array in (operation.weight, operation.bias, operation.scales):
                    digest.update(array.astype("<f8").tobytes())
            if isinstance(operation, Softmax):
                digest.update(f" {operation.beta.hex()}".encode())
            if isinstance(operation, Affine | Pool):
                digest.update(operation.windows.table.astype("<i8").tobytes())
        return digest.hexdigest()

    def __str__(self) -> str:
        parts = "-".join(str(operation) for operation in self.operations)
        return f"{self.name or 'integer program'} (int{self.input.bits}: {self.inputs}-{parts})"

    def quantized(self, x: npt.ArrayLike) -> IntArray:
        """Return the integers nearest to real inputs, clamped, as the runtime finds them. Shapes: (points, inputs) both."""
        return self.input.clamp(self.unclamped(np.asarray(x, dtype=np.float64)))

    def unclamped(self, x: FloatArray) -> IntArray:
        """Return the integers nearest to real inputs as the runtime rounds, before the clamp. Raises NumberError."""
        return self.input.unclamped(x, self.runtime)
