"""Running an integer program with any kernels: an interval of integers for every value.

Accepts   8-bit programs, and 16-bit ones without logistic, tanh and softmax, whose tables TFLite lets err by more
Gives     for each confidence the least and the greatest integer that kernels may give
Method    each operation's real-valued result over the intervals of its inputs, rounded outward, widened by 3/2 units, cut by
          its activation and its type. A maximum is exact in any kernel
Property  sound for `Kernels.ANY`; not exact, for the values of an operation are bounded one by one
Source    `interval` for the functions; the allowance of 3/2 is the definition of `Kernels.ANY`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qrobust import interval
from qrobust.errors import EnclosureError, ShapeError, UnsupportedError
from qrobust.integer.kernels import FARTHEST, MOST_GATHERED, seen_by_pool, weighted_sums, window_counts
from qrobust.integer.program import (
    Affine,
    Elementwise,
    Encoding,
    Function,
    IntegerProgram,
    Operation,
    Pool,
    Requantize,
    Softmax,
)
from qrobust.interval import Interval
from qrobust.layers import IntArray

ALLOWANCE = 1.5
SLACK = 2.0**-20  # for the rounding of additions to numbers below 2**32
RELATIVE = 2.0**-50  # for the rounding of a factor and of a product with it


@dataclass(frozen=True, eq=False)
class IntegerInterval:
    """An array of intervals of integers. Raises EnclosureError if a lower end is above its upper end."""

    lower: IntArray
    upper: IntArray

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape or not (self.lower <= self.upper).all():
            raise EnclosureError("an interval of integers has its lower end above its upper end: please report this bug")

    @classmethod
    def point(cls, values: IntArray) -> IntegerInterval:
        """Return the intervals that hold one integer each."""
        return cls(values, values)

    def __len__(self) -> int:
        return len(self.lower)

    def __getitem__(self, index: Any) -> IntegerInterval:
        return IntegerInterval(self.lower[index], self.upper[index])

    def real(self, encoding: Encoding) -> Interval:
        """Return what the integers mean: exact ends."""
        return Interval(encoding.real(self.lower), encoding.real(self.upper))


def run(program: IntegerProgram, x: IntegerInterval) -> IntegerInterval:
    """Enclose the integers that any kernels give for any inputs in the intervals. Shapes: x (points, inputs).

    Raises    ShapeError; UnsupportedError (see the module)
    """
    if x.lower.ndim != 2 or x.lower.shape[1] != program.inputs:
        raise ShapeError(f"the program takes points of {program.inputs} integers, got an array of shape {x.lower.shape}")
    for operation in program.operations:
        if operation.input.bits == 16 and isinstance(operation, Elementwise | Softmax):
            raise UnsupportedError(f"any-kernel does not bound the {operation} of 16 bits: take the kernels reference")
        wanted = _in_pieces(RULES[type(operation)], operation, x)
        x = IntegerInterval(*(operation.output.clamp(operation.bounds.cut(end)) for end in (wanted.lower, wanted.upper)))
    return x


def _in_pieces(
    rule: Callable[[Any, IntegerInterval], IntegerInterval], operation: Operation, x: IntegerInterval
) -> IntegerInterval:
    width = operation.windows.table.size if isinstance(operation, Affine | Pool) else operation.inputs**2
    step = max(1, MOST_GATHERED // width)
    pieces = [rule(operation, x[start : start + step]) for start in range(0, len(x), step)]
    return IntegerInterval(np.concatenate([p.lower for p in pieces]), np.concatenate([p.upper for p in pieces]))


def near(values: Interval, zero_point: int = 0) -> IntegerInterval:
    """Return the integers within the allowance of real numbers in units, plus a zero point.

    Numbers beyond FARTHEST, which no type reaches, count as it: a function's result may be far more units than 64 bits hold.
    """
    ends = np.ceil(values.lower - ALLOWANCE - SLACK), np.floor(values.upper + ALLOWANCE + SLACK)
    lower, upper = (np.clip(end, -FARTHEST, FARTHEST).astype(np.int64) for end in ends)
    return IntegerInterval(lower + zero_point, upper + zero_point)


def _times(values: IntegerInterval, factor: Any) -> Interval:
    """Enclose integers below 2**53 times a positive factor, itself rounded."""
    ends = [end * factor for end in (values.lower, values.upper)]
    return Interval(ends[0] - np.abs(ends[0]) * RELATIVE, ends[1] + np.abs(ends[1]) * RELATIVE)


def _affine(operation: Affine, x: IntegerInterval) -> IntegerInterval:
    weight, zero = operation.weight - operation.weight_zero, operation.input.zero_point
    rising, falling = np.maximum(weight, 0), np.minimum(weight, 0)
    low, high = x.lower - zero, x.upper - zero
    bias = operation.bias[:, None]
    sums = IntegerInterval(
        weighted_sums(operation, rising, low) + weighted_sums(operation, falling, high) + bias,
        weighted_sums(operation, rising, high) + weighted_sums(operation, falling, low) + bias,
    )
    found = near(_times(sums, operation.factors[:, None]), operation.output.zero_point)
    return IntegerInterval(found.lower.reshape(len(x), -1), found.upper.reshape(len(x), -1))


def _pool(operation: Pool, x: IntegerInterval) -> IntegerInterval:
    ends = []
    for end in (x.lower, x.upper):
        if operation.average:
            ends.append(seen_by_pool(operation, end, 0).sum(axis=3) / window_counts(operation))
        else:
            ends.append(seen_by_pool(operation, end, operation.input.least).max(axis=3))
        ends[-1] = ends[-1].reshape(len(x), -1)
    if operation.average:
        return near(Interval(ends[0], ends[1]))
    return IntegerInterval(ends[0], ends[1])


def _elementwise(operation: Elementwise, x: IntegerInterval) -> IntegerInterval:
    function = interval.sigmoid if operation.function is Function.LOGISTIC else interval.tanh
    return near(_in_units(function(x.real(operation.input)), operation.output), operation.output.zero_point)


def _softmax(operation: Softmax, x: IntegerInterval) -> IntegerInterval:
    reals = x.real(operation.input)
    beta = Interval.point(np.full((1, 1), operation.beta))
    return near(_in_units(interval.softmax(reals * beta), operation.output), operation.output.zero_point)


def _in_units(values: Interval, encoding: Encoding) -> Interval:
    """Enclose numbers between -1 and 1 divided by a scale: exact where it is a power of two."""
    lower, upper = values.lower / encoding.scale, values.upper / encoding.scale
    return Interval(lower - np.abs(lower) * RELATIVE, upper + np.abs(upper) * RELATIVE)


def _requantize(operation: Requantize, x: IntegerInterval) -> IntegerInterval:
    zero = operation.input.zero_point
    shifted = IntegerInterval(x.lower - zero, x.upper - zero)
    return near(_times(shifted, operation.input.scale / operation.output.scale), operation.output.zero_point)


RULES: dict[type, Callable[[Any, IntegerInterval], IntegerInterval]] = {
    Affine: _affine,
    Pool: _pool,
    Elementwise: _elementwise,
    Softmax: _softmax,
    Requantize: _requantize,
}
