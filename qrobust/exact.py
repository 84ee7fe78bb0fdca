"""Exact scalars: rationals while they last, Arb balls where a sigmoid, tanh or exponential enters.

Arithmetic on stored floats, sums, products and maxima stays in the rationals. Transcendental values become balls that
enclose them (Johansson 2017, "Arb", IEEE Transactions on Computers 66(8)), and a comparison is accepted only when the
balls settle it; `decide` raises the precision until they do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from flint import arb, ctx, fmpq

from qrobust.errors import EnclosureError, NumberError, ShapeError
from qrobust.interval import TINY, FloatArray, round_fraction_down, round_fraction_up

Exact = Any  # fmpq | arb: python-flint's types, which mix freely
ExactArray = npt.NDArray[np.object_]
FIRST_BITS = 64
MOST_BITS = 8192


MOST_EXPONENT = 5000
MOST_RATIONAL_BITS = 8192  # of a denominator: those of seven of the least floats multiplied
LARGEST = 2**1000  # of what is computed with in floats too


def to_fraction(value: float | int | str | Fraction) -> Fraction:
    """Return a number as an exact rational: a float is the number it stores, a string the decimal or ratio it spells.

    Raises NumberError if it is no finite number, or a text that spells one beyond float64.
    """
    try:
        if isinstance(value, str) and _exponent(value) > MOST_EXPONENT:
            raise OverflowError
        found = Fraction(value)
        if isinstance(value, str):
            float(found)  # OverflowError beyond float64
        return found
    except (ValueError, OverflowError, ZeroDivisionError, TypeError):
        raise NumberError(f"{value!r} is not a finite number: give one such as 0.01 or 1/64") from None


def _exponent(text: str) -> int:
    """Return the size of a decimal's exponent, before any power of ten is taken."""
    digits = text.lower().rpartition("e")[2].strip().lstrip("+-").replace("_", "").lstrip("0")
    return int(digits[:9]) if "e" in text.lower() and digits.isdigit() else 0


def to_fractions(values: npt.ArrayLike, what: str) -> ExactArray:
    """Return one number an input as a read-only array of Fractions; see `to_fraction`. Raises ShapeError, NumberError."""
    found = np.asarray(values, dtype=object)
    if found.ndim != 1 or not found.size:
        raise ShapeError(f"{what} must be one number an input, not an array of shape {found.shape}")
    if any(isinstance(value, list | tuple | dict) for value in found.tolist()):
        raise ShapeError(f"{what} must be one number an input, not a table")
    result = np.asarray(each_once(to_fraction, found), dtype=object)
    for value in set(result.tolist()):
        if value.denominator.bit_length() > MOST_RATIONAL_BITS or abs(value) > LARGEST:
            raise NumberError(
                f"{what} holds a number that is too long or too large to compute with: scale outside of the model"
            )
    result.setflags(write=False)
    return result


def each_once(function: Callable[[Any], Any], values: ExactArray) -> ExactArray:
    """Apply a slow function to each different value once. Shapes: any; result the same."""
    known: dict[Any, Any] = {}
    result = np.empty(values.size, dtype=object)
    for index, value in enumerate(values.ravel().tolist()):
        if value not in known:
            known[value] = function(value)
        result[index] = known[value]
    return result.reshape(values.shape)


def to_exact(values: npt.ArrayLike | Sequence[Fraction]) -> ExactArray:
    """Return an array of floats or Fractions as an array of fmpq."""
    array = np.asarray(values, dtype=None if isinstance(values, np.ndarray) else object)
    flat = [_scalar(value) for value in array.ravel().tolist()]
    result = np.empty(len(flat), dtype=object)
    result[:] = flat
    return result.reshape(array.shape)


def _scalar(value: float | int | Fraction) -> fmpq:
    fraction = value if isinstance(value, Fraction) else Fraction(value)
    return fmpq(fraction.numerator, fraction.denominator)


def to_rational(value: fmpq) -> Fraction:
    """Return an fmpq as a Fraction."""
    return Fraction(int(value.p), int(value.q))


class Rescaling(Protocol):
    """Scale and offset of each input, as Fractions: `layers.Scaling`, which stands below this module."""

    @property
    def scale(self) -> ExactArray: ...
    @property
    def offset(self) -> ExactArray: ...


class ExactArithmetic:
    """The operations of a network on one input, over rationals and balls; see `network.Arithmetic`."""

    def constant(self, values: FloatArray) -> ExactArray:
        """Return stored floats exactly."""
        return to_exact(values)

    def affine(self, weight: ExactArray, x: ExactArray, bias: ExactArray) -> ExactArray:
        """Return weight @ x + bias. Shapes: weight (out, in); x (in,); bias (out,)."""
        return np.asarray(weight @ x + bias, dtype=object)

    def convolve(self, weight: ExactArray, x: ExactArray, bias: ExactArray, windows: npt.NDArray[np.int64]) -> ExactArray:
        """Return the convolution of one image. Shapes: weight (channels, ...); x (in,); windows (positions, n)."""
        padded = np.empty(len(x) + 1, dtype=object)
        padded[:-1], padded[-1] = x, fmpq(0)
        values = weight.reshape(len(weight), -1) @ padded[windows].T + bias[:, None]
        return np.asarray(values, dtype=object).reshape(-1)

    def mean(self, x: ExactArray, windows: npt.NDArray[np.int64]) -> ExactArray:
        """Return the rational sum / count of each window. Shapes: windows (outputs, count)."""
        return np.asarray(x[windows].sum(axis=1) / fmpq(windows.shape[1]), dtype=object)

    def maximum(self, x: ExactArray, windows: npt.NDArray[np.int64]) -> ExactArray:
        """Return the greatest entry of each window. Shapes: windows (outputs, count)."""
        columns = x[windows].T
        greatest = columns[0]
        for column in columns[1:]:
            pairs = zip(greatest, column, strict=True)
            balls = [arb(a).max(arb(b)) if isinstance(a, arb) or isinstance(b, arb) else max(a, b) for a, b in pairs]
            greatest = np.empty(len(balls), dtype=object)
            greatest[:] = balls
        return np.asarray(greatest, dtype=object)

    def rescale(self, x: ExactArray, scaling: Rescaling) -> ExactArray:
        """Return x * scale + offset. Shapes: all (in,)."""
        return np.asarray(x * to_exact(scaling.scale) + to_exact(scaling.offset), dtype=object)

    def relu(self, x: ExactArray) -> ExactArray:
        return _each(lambda value: value.max(arb(0)) if isinstance(value, arb) else max(value, fmpq(0)), x)

    def sigmoid(self, x: ExactArray) -> ExactArray:
        return _each(sigmoid, x)

    def tanh(self, x: ExactArray) -> ExactArray:
        return _each(lambda value: arb(value).tanh(), x)

    def softmax(self, x: ExactArray) -> ExactArray:
        return _each(lambda value: 1 / sum((arb(other - value).exp() for other in x), arb(0)), x)


def _each(function: Callable[[Exact], Exact], values: ExactArray) -> ExactArray:
    result = np.empty(values.shape, dtype=object)
    result[:] = [function(value) for value in values]
    return result


def sigmoid(x: Exact) -> Exact:
    """Enclose 1 / (1 + exp(-x)) in the precision in force; exact at 0."""
    if not isinstance(x, arb) and x == 0:
        return fmpq(1, 2)
    return 1 / (1 + (-arb(x)).exp())


def decide(difference: Callable[[], Exact]) -> int | None:
    """Return the sign (-1, 0, 1) of a number given by a computation, or None if MOST_BITS bits do not settle it.

    The computation is repeated with doubled precision until its ball lies on one side of zero, or is exactly zero.
    """
    bits = FIRST_BITS
    while bits <= MOST_BITS:
        with ctx.workprec(bits):
            value = difference()
            if value > 0:
                return 1
            if value < 0:
                return -1
            if not isinstance(value, arb) or value.is_zero():
                return 0
        bits *= 2
    return None


def float_bounds(computation: Callable[[], Exact], bits: int = 128) -> tuple[float, float]:
    """Enclose the number that a computation gives between two floats."""
    with ctx.workprec(bits):
        value = computation()
        if not isinstance(value, arb):
            fraction = to_rational(value)
            return round_fraction_down(fraction), round_fraction_up(fraction)
        if not value.is_finite():
            raise EnclosureError("a value overflows every precision: the network's numbers are too large")
        return _end_down(value.lower()), -_end_down(-value.upper())


def _end_down(end: arb) -> float:
    """Round an exact ball end down to a float; ends outside float64's range are not written out, they could be huge."""
    if abs(end) < arb(TINY):
        return 0.0 if end >= 0 else -TINY
    if abs(end) > arb(2) ** 1025:
        return sys.float_info.max if end > 0 else float("-inf")
    return round_fraction_down(to_rational(end.fmpq()))


def logit_bounds(level: Fraction, bits: int = 128) -> tuple[Fraction, Fraction]:
    """Enclose log(level / (1 - level)) between two rationals; exact at 1/2.

    Accepts   0 < level < 1
    Raises    NumberError otherwise
    """
    if not 0 < level < 1:
        raise NumberError(f"the logit of {level} does not exist: give a level strictly between 0 and 1")
    if level == Fraction(1, 2):
        return Fraction(0), Fraction(0)
    odds = level / (1 - level)
    with ctx.workprec(bits):
        value = arb(fmpq(odds.numerator, odds.denominator)).log()
        return to_rational(value.lower().fmpq()), to_rational(value.upper().fmpq())
