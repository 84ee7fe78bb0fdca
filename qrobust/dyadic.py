"""Exact arrays of dyadic rationals: big integers with one exponent an array; matrix products through float64 without error.

Floats are dyadic, and sums, products and maxima of dyadic numbers are: a ReLU network with float parameters at a float input
is computed here exactly. Matrix products cut both factors into limbs of so few bits that every partial sum of a float64
product of two limbs is an integer below 2**53, hence exact in any order of summation (Ozaki, Ogita, Oishi, Rump 2012,
Numerical Algorithms 59).
"""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.errors import NumberError, ShapeError
from qrobust.interval import FloatArray

IntObjects = npt.NDArray[np.object_]
EXACT_BITS = 53  # integers up to 2**53 are floats
MOST_TERMS = 2**21
MOST_PARTS = 2**10 - 1  # so many numbers below 2**53 add up to less than 2**63
MOST_SPAN = 1000  # multiples of 2**-1000 below 2**26 are far from float64's underflow
CHUNK = 2**15  # floats that stay in the cache between operations
FRACTION_FIELD = np.int64(2**52 - 1)  # the bits of a float64 below its exponent


class Dyadic:
    """An array of numbers integers * 2**exponent. Immutable; elementwise operations broadcast as NumPy's do."""

    def __init__(self, integers: IntObjects, exponent: int) -> None:
        self._integers: IntObjects | None = integers
        self.exponent = exponent
        self._floats: FloatArray | None = None
        self._limbs: dict[int, dict[int, FloatArray]] = {}

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Dyadic:
        """Return floats exactly. Raises NumberError if one is not finite."""
        floats = np.asarray(values, dtype=np.float64)
        if not np.isfinite(floats).all():
            raise NumberError("a NaN or an infinite number is no dyadic number")
        return cls._of_floats(floats.copy(order="K") if floats.flags.writeable else floats, _last_place(floats))

    @classmethod
    def _of_floats(cls, floats: FloatArray, exponent: int) -> Dyadic:
        """Keep finite floats that are multiples of 2**exponent as they are."""
        result = cls.__new__(cls)
        result._integers, result._floats, result._limbs, result.exponent = None, floats, {}, exponent
        return result

    @classmethod
    def of_fractions(cls, values: Any) -> Dyadic:
        """Return Fractions exactly. Raises NumberError if a denominator is no power of two."""
        array = np.asarray(values, dtype=object)
        flat = [Fraction(value) for value in array.ravel().tolist()]
        if any(value.denominator & (value.denominator - 1) for value in flat):
            raise NumberError("a fraction whose denominator is no power of two is no dyadic number")
        bits = max((value.denominator.bit_length() - 1 for value in flat), default=0)
        integers = np.empty(len(flat), dtype=object)
        integers[:] = [value.numerator << (bits - value.denominator.bit_length() + 1) for value in flat]
        return cls(integers.reshape(array.shape), -bits)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._floats.shape if self._floats is not None else self.integers.shape

    @property
    def integers(self) -> IntObjects:
        """The numbers over 2**exponent."""
        if self._integers is None:
            assert self._floats is not None
            odd, place = _odd_parts(self._floats)
            shift = np.where(odd != 0, place - self.exponent, 0)
            self._integers = np.asarray(odd.astype(object) << shift.astype(object), dtype=object).reshape(odd.shape)
        return self._integers

    def __getitem__(self, index: Any) -> Dyadic:
        if self._integers is None and self._floats is not None:
            return Dyadic._of_floats(np.asarray(self._floats[index]), self.exponent)
        return Dyadic(np.asarray(self.integers[index], dtype=object), self.exponent)

    @property
    def T(self) -> Dyadic:  # noqa: N802
        if self._floats is not None:
            return Dyadic._of_floats(self._floats.T, self.exponent)
        return Dyadic(self.integers.T, self.exponent)

    def reshape(self, *shape: int) -> Dyadic:
        if self._floats is not None:
            return Dyadic._of_floats(self._floats.reshape(shape), self.exponent)
        return Dyadic(self.integers.reshape(shape), self.exponent)

    def seen(self, windows: npt.NDArray[np.int64]) -> Dyadic:
        """Gather entries of one vector; its length stands for 0. Shapes: self (1, n); windows and result (m, k)."""
        if self._integers is None and self._floats is not None:
            return Dyadic._of_floats(np.append(self._floats[0], 0.0)[windows], self.exponent)
        return Dyadic(np.append(self.integers[0], 0)[windows], self.exponent)

    def _with(self, other: Dyadic) -> tuple[IntObjects, IntObjects, int]:
        """Bring both to the lesser exponent."""
        exponent = min(self.exponent, other.exponent)
        return self.integers << (self.exponent - exponent), other.integers << (other.exponent - exponent), exponent

    def __add__(self, other: Dyadic) -> Dyadic:
        first, second, exponent = self._with(other)
        return Dyadic(np.asarray(first + second, dtype=object), exponent)

    def __neg__(self) -> Dyadic:
        if self._floats is not None:
            return Dyadic._of_floats(np.asarray(-self._floats), self.exponent)
        return Dyadic(np.asarray(-self.integers, dtype=object), self.exponent)

    def __sub__(self, other: Dyadic) -> Dyadic:
        return self + (-other)

    def __mul__(self, other: Dyadic) -> Dyadic:
        return Dyadic(np.asarray(self.integers * other.integers, dtype=object), self.exponent + other.exponent)

    def maximum(self, other: Dyadic) -> Dyadic:
        """Return the greater of the two, entry by entry."""
        first, second, exponent = self._with(other)
        return Dyadic(np.asarray(np.maximum(first, second), dtype=object), exponent)

    def minimum(self, other: Dyadic) -> Dyadic:
        """Return the lesser of the two, entry by entry."""
        return -((-self).maximum(-other))

    def relu(self) -> Dyadic:
        """Return max(value, 0)."""
        if self._floats is not None:
            return Dyadic._of_floats(np.asarray(np.maximum(self._floats, 0.0)), self.exponent)
        return Dyadic(np.asarray(np.maximum(self.integers, 0), dtype=object), self.exponent)

    def greatest(self, axis: int) -> Dyadic:
        return Dyadic(np.asarray(self.integers.max(axis=axis), dtype=object), self.exponent)

    def sum(self, axis: int) -> Dyadic:
        return Dyadic(np.asarray(self.integers.sum(axis=axis), dtype=object), self.exponent)

    def signs(self) -> npt.NDArray[np.int64]:
        """Return -1, 0 or 1 for each entry."""
        if self._floats is not None:
            return np.sign(self._floats).astype(np.int64)
        values = self.integers
        return np.asarray((values > 0).astype(np.int64) - (values < 0).astype(np.int64))

    def fractions(self) -> IntObjects:
        """Return the numbers as Fractions."""
        scale = Fraction(2) ** self.exponent
        return np.asarray(np.frompyfunc(lambda value: value * scale, 1, 1)(self.integers), dtype=object).reshape(self.shape)

    def limbs(self, bits: int) -> dict[int, FloatArray]:
        """Cut into limbs of so many bits, cut once and kept: values = sum of limb * 2**(exponent + place * bits) over all
        places. Limbs are integers below 2**bits with the signs of the values; places whose limb is all 0 are left out.
        """
        if bits not in self._limbs:
            cut = _float_limbs(self._floats, self.exponent, bits) if self._floats is not None else self._integer_limbs(bits)
            self._limbs[bits] = {place: limb for place, limb in enumerate(cut) if limb.any()}
        return self._limbs[bits]

    def _integer_limbs(self, bits: int) -> list[FloatArray]:
        sizes, signs = np.abs(self.integers), self.signs().astype(np.float64)
        mask = (1 << bits) - 1
        limbs: list[FloatArray] = []
        while not limbs or (sizes != 0).any():
            limbs.append(np.asarray(sizes & mask, dtype=object).astype(np.float64) * signs)
            sizes = sizes >> bits
        return limbs

    @cached_property
    def zero(self) -> bool:
        return not (self.signs() != 0).any()


def zeros(shape: tuple[int, ...]) -> Dyadic:
    """Return an array of zeros."""
    return Dyadic.of(np.zeros(shape))


def _last_place(values: FloatArray) -> int:
    """Return the greatest e such that all floats are multiples of 2**e; 0 if all are 0.

    A float minus itself without the last bit of its fraction is that bit's value, exactly; a power of two has no such bit.
    """
    flat, least = values.ravel(order="K"), np.inf
    for start in range(0, flat.size, CHUNK):
        sizes = np.abs(flat[start : start + CHUNK])
        pattern = sizes.view(np.int64)
        shorter = (pattern & (pattern - 1)).view(np.float64)
        last = np.where(pattern & FRACTION_FIELD, sizes - shorter, sizes)
        least = min(least, float(np.min(last, where=last > 0, initial=np.inf)))
    return int(np.frexp(least)[1]) - 1 if np.isfinite(least) else 0


def _odd_parts(values: FloatArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return odd integers m (0 for 0) and places e with value = m 2**e."""
    mantissa, exponent = np.frexp(values)
    integers = np.ldexp(mantissa, EXACT_BITS).astype(np.int64)
    lowest = integers & -integers
    trailing = np.where(lowest > 0, np.frexp(lowest.astype(np.float64))[1] - 1, 0).astype(np.int64)
    return integers >> trailing, exponent.astype(np.int64) - EXACT_BITS + trailing


def _float_limbs(values: FloatArray, exponent: int, bits: int) -> list[FloatArray]:
    """Cut floats into limbs from the top by exact operations: scaling by powers of two, truncation, and subtraction.

    What is left is kept in units of the limb at hand. It is a multiple of 2**exponent, so scaling all of it loses nothing
    unless the span from the top limb to the last bit exceeds float64's: then it is scaled anew from its own size each time.
    """
    top = int(np.frexp(max(values.max(initial=0.0), -values.min(initial=0.0)))[1])
    count = max(1, -(-(top - exponent) // bits))
    limbs: list[FloatArray] = []
    if (count - 1) * bits > MOST_SPAN:
        left = values
        for place in range(exponent + (count - 1) * bits, exponent - 1, -bits):
            limbs.append(np.trunc(np.ldexp(left, -place)))  # what underflows here is below 1, and is cut to 0 all the same
            left = left - np.ldexp(limbs[-1], place)
        return limbs[::-1]
    left = np.asarray(np.ldexp(values, -exponent - (count - 1) * bits))
    for _ in range(count - 1):
        limbs.append(np.trunc(left))
        left -= limbs[-1]
        left *= 2.0**bits
    return [left, *limbs[::-1]]


def product(first: Dyadic, second: Dyadic) -> Dyadic:
    """Return the exact matrix product. Shapes: (m, k), (k, n); result (m, n).

    Raises    ShapeError if k differs; NumberError if k is over MOST_TERMS
    """
    if len(first.shape) != 2 or len(second.shape) != 2 or first.shape[1] != second.shape[0]:
        raise ShapeError(f"matrices {first.shape} and {second.shape} cannot be multiplied")
    terms = first.shape[1]
    if terms > MOST_TERMS:
        raise NumberError(f"{terms:,} terms are too many for an exact product, at most {MOST_TERMS:,} are summed")
    bits = (EXACT_BITS - max(terms - 1, 0).bit_length()) // 2
    ones, others = first.limbs(bits), second.limbs(bits)
    total = np.zeros((first.shape[0], second.shape[1]), dtype=object)
    if not ones or not others:
        return Dyadic(total, 0)
    stacked = np.concatenate(list(ones.values()))
    whole: type = np.int64 if min(len(ones), len(others)) <= MOST_PARTS else object
    sums: dict[int, npt.NDArray[Any]] = {}
    for shift, other in others.items():
        parts: npt.NDArray[Any] = (stacked @ other).astype(np.int64).astype(whole, copy=False)  # exact, below 2**53
        for place, part in zip(ones, parts.reshape(len(ones), *total.shape), strict=True):
            sums[place + shift] = sums[place + shift] + part if place + shift in sums else part
    for shift, part in sums.items():
        total = total + (part.astype(object) << (shift * bits))
    return Dyadic(total, first.exponent + second.exponent)
