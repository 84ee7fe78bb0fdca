"""Layers: immutable stored numbers and geometry, each with its meaning over any `Arithmetic`.

Values between layers are flat vectors; images lie in them channel by channel, row by row (channel, row, column), so that
a flatten is nothing. A layer without parameters carries empty arrays, so that code over `weight` and `bias` needs no cases.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from functools import cached_property
from typing import Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from qrobust.errors import NumberError, ShapeError
from qrobust.exact import ExactArray, each_once, to_fractions
from qrobust.interval import FloatArray, Interval, round_fraction_down, round_fraction_up
from qrobust.windows import IntArray, Shape, SparseMatrix, integers, locked, plane_windows, product, sparse_matrix, steps, times

__all__ = [
    "NONE",
    "Activation",
    "Arithmetic",
    "AveragePool2d",
    "C",
    "ConstantArithmetic",
    "Conv2d",
    "Dense",
    "IntArray",
    "Layer",
    "MaxPool2d",
    "Scaling",
    "Shape",
    "SparseMatrix",
    "V",
    "W",
    "read_only",
    "sparse_matrix",
]

W = TypeVar("W", contravariant=True)
C = TypeVar("C")
V = TypeVar("V")


class Activation(Enum):
    """The function applied to each pre-activation of a layer."""

    LINEAR = "linear"
    RELU = "relu"
    SIGMOID = "sigmoid"
    TANH = "tanh"


class Arithmetic(Protocol[W, V]):
    """The operations that a network is made of, over one kind of number. W: parameters; V: vectors of values.

    `windows` are arrays of integers, one row an output, that say which entries of x the output sees.
    """

    def affine(self, weight: W, x: V, bias: W) -> V:
        """Return weight @ x + bias."""

    def convolve(self, weight: W, x: V, bias: W, windows: IntArray) -> V:
        """Return, for each channel c and then each window, the sum of weight[c] * x[window], plus bias[c].

        Shapes    weight (channels, ...), each channel as many numbers as a window; windows (positions, n), where the
                  number of values in x stands for a zero; result (channels * positions,)
        """

    def mean(self, x: V, windows: IntArray) -> V:
        """Return the sum of each window divided by the number of its entries."""

    def maximum(self, x: V, windows: IntArray) -> V:
        """Return the greatest entry of each window."""

    def rescale(self, x: V, scaling: Scaling) -> V:
        """Return x * scale + offset, entry by entry."""

    def relu(self, x: V) -> V: ...
    def sigmoid(self, x: V) -> V: ...
    def tanh(self, x: V) -> V: ...
    def softmax(self, x: V) -> V: ...


class ConstantArithmetic(Arithmetic[C, V], Protocol[C, V]):
    """An arithmetic that can also take a network's stored numbers."""

    def constant(self, values: FloatArray) -> C: ...


def read_only(values: npt.ArrayLike) -> FloatArray:
    """Return a float64 copy that cannot be written to."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ShapeError(
            "an array of numbers has rows of different lengths, or cells that are not numbers that 64 bits hold"
        ) from None
    array.setflags(write=False)
    return array


NONE = read_only([])  # the weights and the biases of a layer that has no parameters


@dataclass(frozen=True, eq=False)
class Dense:
    """A fully connected layer: activation(weight @ x + bias).

    Shapes    weight (out, in); bias (out,)
    Raises    ShapeError, NumberError (NaN or infinite numbers)
    """

    weight: FloatArray
    bias: FloatArray
    activation: Activation = Activation.LINEAR

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", read_only(self.weight))
        object.__setattr__(self, "bias", read_only(self.bias))
        if self.weight.ndim != 2 or 0 in self.weight.shape:
            raise ShapeError(f"a dense layer needs weights (out, in), not shape {self.weight.shape}")
        if self.bias.shape != self.weight.shape[:1]:
            raise ShapeError(f"weights {self.weight.shape} need {self.weight.shape[0]} biases, not {self.bias.shape}")
        if not (np.all(np.isfinite(self.weight)) and np.all(np.isfinite(self.bias))):
            raise NumberError("a dense layer has NaN or infinite weights: export the model again")

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[1])

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[0])

    @property
    def geometry(self) -> str:
        """All sizes that define the layer, as text."""
        return f"{self.outputs} {self.inputs}"

    @property
    def signature(self) -> str:
        """All that the layer computes but its numbers: what the network's hash takes beside them."""
        return f"{self.activation.value} {self.geometry}"

    def __str__(self) -> str:
        return str(self.outputs)

    def with_parameters(self, weight: npt.ArrayLike, bias: npt.ArrayLike) -> Dense:
        """Return the same layer with other numbers stored."""
        return replace(self, weight=weight, bias=bias)  # type: ignore[arg-type]

    def apply(self, arithmetic: Arithmetic[W, V], weight: W, x: V, bias: W) -> V:
        """Return the pre-activations with these weights and biases in place of the stored ones."""
        return arithmetic.affine(weight, x, bias)

    def matrix(self, values: FloatArray) -> FloatArray:
        """Return the matrix that the layer multiplies its inputs with: the weights themselves. Shapes: both (out, in)."""
        return values

    def bias_vector(self, values: FloatArray) -> FloatArray:
        """Return what is added to each output: the biases themselves. Shapes: both (out,)."""
        return values


@dataclass(frozen=True, eq=False)
class Conv2d:
    """A convolution, as neural networks use the word: activation(bias[c] + sum of weight[c] times the patch), at each place.

    Shapes    weight (out_channels, in_channels, kh, kw); bias (out_channels,); input_shape (in_channels, height, width);
              stride (down, right); padding by zeros (top, left, bottom, right)
    Raises    ShapeError, NumberError (NaN or infinite numbers)
    """

    weight: FloatArray
    bias: FloatArray
    activation: Activation
    input_shape: Shape
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", read_only(self.weight))
        object.__setattr__(self, "bias", read_only(self.bias))
        for name, count, least in (("input_shape", 3, 1), ("stride", 2, 1), ("padding", 4, 0)):
            object.__setattr__(self, name, integers(getattr(self, name), count, least, f"a convolution's {name}"))
        if self.weight.ndim != 4 or 0 in self.weight.shape:
            raise ShapeError(f"a convolution needs weights (out, in, height, width), not shape {self.weight.shape}")
        if self.bias.shape != self.weight.shape[:1]:
            raise ShapeError(f"weights {self.weight.shape} need {self.weight.shape[0]} biases, not {self.bias.shape}")
        if self.weight.shape[1] != self.input_shape[0]:
            raise ShapeError(f"a convolution of {self.weight.shape[1]} channels cannot take {self.input_shape[0]} channels")
        if 0 in self.output_shape:
            raise ShapeError(f"kernels {self.weight.shape[2:]} do not fit an image {self.input_shape[1:]} with its padding")
        if not (np.all(np.isfinite(self.weight)) and np.all(np.isfinite(self.bias))):
            raise NumberError("a convolution has NaN or infinite weights: export the model again")

    @property
    def inputs(self) -> int:
        return product(self.input_shape)

    @property
    def outputs(self) -> int:
        return product(self.output_shape)

    @property
    def output_shape(self) -> Shape:
        """(out_channels, height, width)."""
        top, left, bottom, right = self.padding
        _, height, width = self.input_shape
        down, across = steps((height + top + bottom, width + left + right), self.weight.shape[2:], self.stride)
        return int(self.weight.shape[0]), down, across

    @property
    def geometry(self) -> str:
        """All sizes that define the layer, as text."""
        return " ".join(times(part) for part in (self.weight.shape, self.input_shape, self.stride, self.padding))

    @property
    def signature(self) -> str:
        """All that the layer computes but its numbers: what the network's hash takes beside them."""
        return f"conv2d {self.activation.value} {self.geometry}"

    def __str__(self) -> str:
        return f"conv {times(self.output_shape)}"

    @cached_property
    def windows(self) -> IntArray:
        """Where each place of the kernel looks, place after place; `inputs` stands for a zero of the padding.

        Shapes    (output height * output width, in_channels * kh * kw)
        """
        channels, height, width = self.input_shape
        plane = plane_windows((height, width), self.weight.shape[2:], self.stride, self.padding)
        offsets = np.arange(channels, dtype=np.int64) * (height * width)
        windows = np.where(plane[:, None, :] < 0, self.inputs, plane[:, None, :] + offsets[:, None])
        return locked(windows.reshape(len(plane), -1))

    def with_parameters(self, weight: npt.ArrayLike, bias: npt.ArrayLike) -> Conv2d:
        """Return the same layer with other numbers stored."""
        return replace(self, weight=weight, bias=bias)  # type: ignore[arg-type]

    def apply(self, arithmetic: Arithmetic[W, V], weight: W, x: V, bias: W) -> V:
        """Return the pre-activations with these weights and biases in place of the stored ones."""
        return arithmetic.convolve(weight, x, bias, self.windows)

    def matrix(self, values: FloatArray) -> SparseMatrix:
        """Return the matrix of the layer with these values as its weights, each wherever it is used.

        Shapes    values (out_channels, in_channels, kh, kw); result a csr_array (outputs, inputs), not to be changed
        """
        uses, columns, starts = self._structure
        return sparse_matrix(np.asarray(values, dtype=np.float64).reshape(-1)[uses], columns, starts, self.inputs)

    def bias_vector(self, values: FloatArray) -> FloatArray:
        """Return what is added to each output. Shapes: values (out_channels,); result (outputs,)."""
        return np.repeat(np.asarray(values, dtype=np.float64), len(self.windows))

    @cached_property
    def _structure(self) -> tuple[IntArray, IntArray, IntArray]:
        """Return, of the matrix's entries, the weight each is, the column each is in, and where each row starts."""
        inside = self.windows < self.inputs
        places, taps = np.nonzero(inside)
        channels, size = len(self.weight), self.windows.shape[1]
        uses = (taps[None, :] + size * np.arange(channels, dtype=np.int64)[:, None]).reshape(-1)
        columns = np.tile(self.windows[places, taps], channels)
        counts = np.tile(inside.sum(axis=1), channels)
        return locked(uses), locked(columns), locked(np.concatenate([[0], np.cumsum(counts)]))


class _NoParameters:
    """What layers share that store no numbers."""

    @property
    def weight(self) -> FloatArray:
        """No parameters. Shape: (0,)."""
        return NONE

    @property
    def bias(self) -> FloatArray:
        """No parameters. Shape: (0,)."""
        return NONE

    @property
    def activation(self) -> Activation:
        return Activation.LINEAR

    def with_parameters(self, weight: npt.ArrayLike, bias: npt.ArrayLike) -> Self:
        """Return the same layer: it stores no parameters."""
        return self


@dataclass(frozen=True, eq=False)
class _Pool2d(_NoParameters):
    """What both pools are: windows of one size, within the image, on each channel by itself.

    Shapes    input_shape (channels, height, width); size (height, width); stride (down, right)
    Raises    ShapeError
    """

    input_shape: Shape
    size: tuple[int, int]
    stride: tuple[int, int]

    def __post_init__(self) -> None:
        for name, count in (("input_shape", 3), ("size", 2), ("stride", 2)):
            object.__setattr__(self, name, integers(getattr(self, name), count, 1, f"a pool's {name}"))
        if 0 in self.output_shape:
            raise ShapeError(f"a pool of size {self.size} does not fit an image {self.input_shape[1:]}")

    @property
    def inputs(self) -> int:
        return product(self.input_shape)

    @property
    def outputs(self) -> int:
        return product(self.output_shape)

    @property
    def output_shape(self) -> Shape:
        """(channels, height, width); what a last, cut window would cover is left out."""
        down, across = steps(self.input_shape[1:], self.size, self.stride)
        return self.input_shape[0], down, across

    @property
    def geometry(self) -> str:
        """All sizes that define the pool, as text."""
        return " ".join(times(part) for part in (self.input_shape, self.size, self.stride))

    @cached_property
    def windows(self) -> IntArray:
        """The inputs of each output, in rising order. Shape: (outputs, size[0] * size[1])."""
        channels, height, width = self.input_shape
        plane = plane_windows((height, width), self.size, self.stride, (0, 0, 0, 0))
        offsets = np.arange(channels, dtype=np.int64) * (height * width)
        return locked((plane[None] + offsets[:, None, None]).reshape(-1, plane.shape[1]))


class AveragePool2d(_Pool2d):
    """The mean of each window: the rational number sum / count, whatever a framework's floats make of it."""

    @property
    def signature(self) -> str:
        """All that the layer computes: what the network's hash takes."""
        return f"average_pool2d {self.geometry}"

    def __str__(self) -> str:
        return f"average {times(self.output_shape)}"

    @property
    def count(self) -> int:
        """The number of inputs in a window."""
        return product(self.size)

    @property
    def share(self) -> tuple[float, float]:
        """The two floats around 1 / count; equal where it is a float: where count is a power of two."""
        return round_fraction_down(Fraction(1, self.count)), round_fraction_up(Fraction(1, self.count))

    @property
    def is_exact(self) -> bool:
        """Whether 1 / count is a float, and `matrix` therefore the layer itself."""
        return self.share[0] == self.share[1]

    def apply(self, arithmetic: Arithmetic[W, V], weight: W, x: V, bias: W) -> V:
        """Return the outputs; weight and bias are empty."""
        return arithmetic.mean(x, self.windows)

    def matrix(self, values: FloatArray = NONE) -> SparseMatrix:
        """Return the matrix with 1 / count rounded to nearest: for forecasts; for proofs `matrix_bounds`, unless `is_exact`.

        Shapes    values (0,); result a csr_array (outputs, inputs), not to be changed
        """
        return self._matrix_of(1 / self.count)

    def matrix_bounds(self) -> tuple[SparseMatrix, SparseMatrix]:
        """Enclose the matrix between two. Shapes: each a csr_array (outputs, inputs), not to be changed."""
        low, high = self.share
        return self._matrix_of(low), self._matrix_of(high)

    def bias_vector(self, values: FloatArray = NONE) -> FloatArray:
        """Return what is added to each output: zeros. Shapes: values (0,); result (outputs,)."""
        return np.zeros(self.outputs)

    def _matrix_of(self, value: float) -> SparseMatrix:
        starts = np.arange(self.outputs + 1, dtype=np.int64) * self.count
        return sparse_matrix(np.full(self.windows.size, value), self.windows.reshape(-1), starts, self.inputs)


class MaxPool2d(_Pool2d):
    """The greatest value of each window."""

    @property
    def signature(self) -> str:
        """All that the layer computes: what the network's hash takes."""
        return f"max_pool2d {self.geometry}"

    def __str__(self) -> str:
        return f"max {times(self.output_shape)}"

    def apply(self, arithmetic: Arithmetic[W, V], weight: W, x: V, bias: W) -> V:
        """Return the outputs; weight and bias are empty."""
        return arithmetic.maximum(x, self.windows)


@dataclass(frozen=True, eq=False)
class Scaling(_NoParameters):
    """The inputs in other units: x * scale + offset, entry by entry, in exact rationals. It has no parameters to quantize.

    Shapes    scale, offset (inputs,): Fractions; floats, whole numbers and texts such as "1/255" become what they say exactly
    Raises    ShapeError, NumberError (no number, a scale of 0, or a rational too long to be computed with)
    """

    scale: ExactArray
    offset: ExactArray

    def __post_init__(self) -> None:
        for name in ("scale", "offset"):
            object.__setattr__(self, name, to_fractions(getattr(self, name), f"the {name} of inputs"))
        if self.scale.shape != self.offset.shape:
            raise ShapeError(f"inputs are scaled by {self.scale.size} numbers and moved by {self.offset.size}")
        if not all(self.scale):
            raise NumberError("an input is scaled by 0, and so means nothing: leave it out of the model")

    @property
    def inputs(self) -> int:
        return int(self.scale.size)

    @property
    def outputs(self) -> int:
        return int(self.scale.size)

    @cached_property
    def geometry(self) -> str:
        """The number of inputs, and the hash of the exact scale and offset, for these are no parameters."""
        numbers = " ".join(map(str, (*self.scale.tolist(), *self.offset.tolist())))
        return f"{self.inputs} {hashlib.sha256(numbers.encode()).hexdigest()}"

    @property
    def signature(self) -> str:
        """All that the layer computes: what the network's hash takes."""
        return f"scaling {self.geometry}"

    @cached_property
    def nearest(self) -> tuple[FloatArray, FloatArray]:
        """Scale and offset rounded to nearest: for forecasts; for proofs `enclosures`. Shapes: both (inputs,)."""
        return read_only(each_once(float, self.scale)), read_only(each_once(float, self.offset))

    @cached_property
    def enclosures(self) -> tuple[Interval, Interval]:
        """Scale and offset between floats. Shapes: both (inputs,)."""
        scale, offset = (
            Interval(*(read_only(each_once(end, values)) for end in (round_fraction_down, round_fraction_up)))
            for values in (self.scale, self.offset)
        )
        return scale, offset

    def enclose(self, x: Interval) -> Interval:
        """Enclose x * scale + offset, rounded outward. Shapes: x (..., inputs)."""
        scale, offset = self.enclosures
        return x * scale + offset

    def spread(self, count: int) -> Scaling:
        """Return the scaling of so many inputs by what is one number for all."""
        return Scaling(np.broadcast_to(self.scale, (count,)), np.broadcast_to(self.offset, (count,)))

    def then(self, scale: ExactArray | Fraction, offset: ExactArray | Fraction) -> Scaling:
        """Return the scaling that multiplies by scale and adds offset after this one."""
        return Scaling(self.scale * scale, self.offset * scale + offset)

    def apply(self, arithmetic: Arithmetic[W, V], weight: W, x: V, bias: W) -> V:
        """Return the inputs in the other units; weight and bias are empty."""
        return arithmetic.rescale(x, self)


Layer = Dense | Conv2d | AveragePool2d | MaxPool2d | Scaling
