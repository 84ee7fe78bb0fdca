"""Grids: the numbers that a format holds for one array, where it puts each number, and how far a rounding may move it.

Accepts   any finite float64 array
Gives     `placed` the quantized values, `allowed` the bounds around the stored ones, `legal` the format's values in the bounds
Method    exact remainders (C's fmod has no rounding error) and scaling by powers of two; no division decides a rounding
Property  exact: `placed` lies in `allowed`, as real numbers
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from qrobust.domains import Bounds
from qrobust.errors import NumberError
from qrobust.interval import BoolArray, Expansion, FloatArray, down, up


class RoundingMode(Enum):
    """Which neighbour a number goes to. `either` is the choice of a rounding that looks at more than the number itself."""

    NEAREST_EVEN = "nearest-even"
    HALF_AWAY = "half-away"  # to nearest, ties away from zero: C's round()
    FLOOR = "floor"  # towards minus infinity: two's complement with the low bits cut off
    EITHER = "either"  # up or down, as in adaptive (AdaRound, GPTQ) or stochastic rounding; a copy takes the nearest


class Overflow(Enum):
    """What becomes of a number beyond the greatest one that the format holds."""

    SATURATE = "saturate"
    WRAP = "wrap"  # modulo the range, as two's complement does
    REFUSE = "refuse"  # an error here, where a device would store an infinity or NaN


class Grid(ABC):
    """The values that a format holds for each entry of one array (the legal values)."""

    @abstractmethod
    def rounded(self, values: FloatArray) -> FloatArray:
        """Return where the format puts each value, overflow included."""

    @abstractmethod
    def nearest(self, values: FloatArray) -> FloatArray:
        """Return a legal value that no other is nearer than; beyond the range, its end."""

    @abstractmethod
    def neighbours(self, legal: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the legal values next below and above legal ones; at an end of the range, that end."""

    @abstractmethod
    def reach(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return how far below and above each value its rounding may lie, overflow apart."""

    @abstractmethod
    def overflowed(self, values: FloatArray) -> BoolArray:
        """Return which values round to a number beyond the range."""

    @abstractmethod
    def steps(self, values: FloatArray) -> FloatArray:
        """Return the distance between neighbouring legal values around each value; 0 where any float is legal."""


@dataclass(frozen=True)
class Kept(Grid):
    """The stored floats themselves: an array that is not quantized."""

    def rounded(self, values: FloatArray) -> FloatArray:
        return values

    def nearest(self, values: FloatArray) -> FloatArray:
        return values

    def neighbours(self, legal: FloatArray) -> tuple[FloatArray, FloatArray]:
        return legal, legal

    def reach(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        return np.zeros_like(values), np.zeros_like(values)

    def overflowed(self, values: FloatArray) -> BoolArray:
        return np.zeros(values.shape, dtype=bool)

    def steps(self, values: FloatArray) -> FloatArray:
        return np.zeros_like(values)


@dataclass(frozen=True, eq=False)
class Uniform(Grid):
    """step * code for whole numbers lowest <= code <= highest, the product rounded to the nearest float64.

    Shapes    step, lowest, highest: broadcast to the array's. A step of 0 goes with values that are all 0.
    """

    step: FloatArray
    lowest: FloatArray
    highest: FloatArray
    mode: RoundingMode = RoundingMode.NEAREST_EVEN
    overflow: Overflow = Overflow.SATURATE

    def rounded(self, values: FloatArray) -> FloatArray:
        if self.overflow is Overflow.SATURATE:
            return self._values(self._codes(values, self.mode))
        count = self.highest - self.lowest + 1
        within = np.fmod(values, self.step * count)  # wrapping forgets whole turns, and this loses nothing else
        codes = self._codes(within, self.mode)
        return self._values(np.mod(codes - self.lowest, count) + self.lowest)

    def nearest(self, values: FloatArray) -> FloatArray:
        return self._values(self._codes(values, RoundingMode.NEAREST_EVEN))

    def neighbours(self, legal: FloatArray) -> tuple[FloatArray, FloatArray]:
        codes = self._codes(legal, RoundingMode.NEAREST_EVEN)
        return self._values(codes - 1), self._values(codes + 1)

    def reach(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        step = np.broadcast_to(self.step, values.shape)
        match self.mode:
            case RoundingMode.FLOOR:
                return step, np.zeros_like(values)
            case RoundingMode.EITHER:
                return step, step
        half = _half(step)
        return half, half

    def overflowed(self, values: FloatArray) -> BoolArray:
        codes = self._codes(values, self.mode)
        return np.asarray((codes < self.lowest) | (codes > self.highest))

    def steps(self, values: FloatArray) -> FloatArray:
        return np.broadcast_to(self.step, values.shape)

    def codes(self, legal: FloatArray) -> npt.NDArray[np.int64]:
        """Return the whole numbers that stand for legal values, the zero point taken off."""
        return np.clip(self._codes(legal, RoundingMode.NEAREST_EVEN), self.lowest, self.highest).astype(np.int64)

    def _values(self, codes: FloatArray) -> FloatArray:
        return np.asarray(np.clip(codes, self.lowest, self.highest) * self.step)

    def _codes(self, values: FloatArray, mode: RoundingMode) -> FloatArray:
        """Return values / step rounded to whole numbers, exact up to 2**51 in size, and beyond it no smaller.

        The quotient that is left when the remainder is gone is a whole number, which two roundings move by less than a half
        up to that size. The remainder is exact, and so is whether it is below, at, or above half a step (Sterbenz: a
        difference of numbers within a factor of two of each other has no rounding error).
        """
        step = np.where(self.step > 0, self.step, 1.0)
        with np.errstate(over="ignore", invalid="ignore"):
            left = np.fmod(np.abs(values), step)
            whole = np.rint((np.abs(values) - left) / step)
            odd = np.fmod(whole, 2.0) == 1.0
        rest = step - left
        match mode:
            case RoundingMode.FLOOR:
                further = (left > 0) & (values < 0)
            case RoundingMode.HALF_AWAY:
                further = left >= rest
            case _:
                further = (left > rest) | ((left == rest) & odd)
        return np.asarray(np.copysign(whole + further, values))


@dataclass(frozen=True, eq=False)
class Floating(Grid):
    """Floating-point numbers of `fraction` bits behind the leading one, subnormals, and rounding to nearest, ties to even.

    Between 2**e and 2**(e + 1) the step is 2**(e - fraction), below 2**least it is 2**(least - fraction). With `fraction`
    0 these are the powers of two from 2**least, and 0.

    Shapes    least (the exponent of the least normal number), greatest (the greatest number): broadcast to the array's
    """

    fraction: int
    least: npt.NDArray[np.int64]
    greatest: FloatArray
    overflow: Overflow

    def rounded(self, values: FloatArray) -> FloatArray:
        beyond = self.overflowed(values)
        if self.overflow is Overflow.REFUSE and beyond.any():
            worst = float(np.abs(values).max())
            raise NumberError(
                f"{worst:g} is beyond the format's greatest number {float(np.max(self.greatest)):g} and would become an"
                " infinity or NaN: name a scheme that ends in -saturate, or scale the network"
            )
        return self.nearest(values)

    def nearest(self, values: FloatArray) -> FloatArray:
        return np.asarray(np.clip(self._unbounded(values), -self.greatest, self.greatest))

    def neighbours(self, legal: FloatArray) -> tuple[FloatArray, FloatArray]:
        size, zero = np.abs(legal), legal == 0
        inner = size - self._step(down(size))
        outer = np.minimum(size + self._step(size), self.greatest)
        below = np.where(zero, -outer, np.where(legal > 0, inner, -outer))
        above = np.where(zero, outer, np.where(legal > 0, outer, -inner))
        return below, above

    def reach(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        half = _half(self.steps(values))
        return half, half

    def overflowed(self, values: FloatArray) -> BoolArray:
        return np.asarray(np.abs(self._unbounded(values)) > self.greatest)

    def steps(self, values: FloatArray) -> FloatArray:
        return np.where(self.greatest > 0, self._step(np.abs(values)), 0.0)

    def _unbounded(self, values: FloatArray) -> FloatArray:
        place = self._place(np.abs(values))
        with np.errstate(over="ignore"):
            return np.asarray(np.ldexp(np.rint(np.ldexp(values, -place)), place))

    def _place(self, sizes: FloatArray) -> npt.NDArray[np.int64]:
        exponents = np.where(sizes > 0, np.frexp(sizes)[1].astype(np.int64) - 1, self.least)
        return np.maximum(exponents, self.least) - self.fraction

    def _step(self, sizes: FloatArray) -> FloatArray:
        return np.asarray(np.ldexp(1.0, self._place(np.maximum(sizes, 0.0))))


@dataclass(frozen=True, eq=False)
class Signs(Grid):
    """Two values, +scale and -scale; 0 goes to +scale. Shapes: scale broadcasts to the array's."""

    scale: FloatArray

    def rounded(self, values: FloatArray) -> FloatArray:
        return np.where(values >= 0, self.scale, -self.scale)

    def nearest(self, values: FloatArray) -> FloatArray:
        return self.rounded(values)

    def neighbours(self, legal: FloatArray) -> tuple[FloatArray, FloatArray]:
        scale = np.broadcast_to(self.scale, legal.shape)
        return -scale, scale

    def reach(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        scale = np.broadcast_to(self.scale, values.shape)
        return scale, scale

    def overflowed(self, values: FloatArray) -> BoolArray:
        return np.asarray(np.abs(values) - self.scale > self.scale)

    def steps(self, values: FloatArray) -> FloatArray:
        return np.broadcast_to(2 * self.scale, values.shape)


def placed(grid: Grid, values: FloatArray) -> FloatArray:
    """Return the quantized values: `grid.rounded`, and where rounding its float64 took one out of reach, the next float back.

    Such a step back crosses the product step * code itself, which is within reach. It happens only where that product
    needs more than 53 bits: with scales of float64, and codes of more than 29 bits.
    """
    raw = grid.rounded(values)
    astray = ~_reached(grid, values).inside(raw) & ~grid.overflowed(values)
    return np.where(astray, np.where(raw > values, down(raw), up(raw)), raw)


def allowed(grid: Grid, values: FloatArray) -> Bounds:
    """Return the numbers within reach of each value and, where the format overflows, those between the value and its copy."""
    reached, copy = _reached(grid, values), placed(grid, values)
    lower, upper = reached.lower, reached.upper
    inside = reached.inside(copy)
    below, above = ~inside & (copy < values), ~inside & (copy > values)
    return Bounds(
        Expansion(np.where(below, copy, lower.head), np.where(below, 0.0, lower.tail)),
        Expansion(np.where(above, copy, upper.head), np.where(above, 0.0, upper.tail)),
    )


def legal(grid: Grid, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the least and the greatest legal value in `allowed`; all legal values between them are in it, too.

    The bounds reach at most one step from a value that is in range, so the neighbours of its nearest legal value are
    enough; where it is not in range, the bounds end there at the range's end, or one beyond a wrapped value.
    """
    bounds, own, near = allowed(grid, values), placed(grid, values), grid.nearest(values)
    candidates = np.stack(
        [np.broadcast_to(c, values.shape) for c in (own, near, *grid.neighbours(own), *grid.neighbours(near))]
    )
    inside = np.stack([bounds.inside(candidate) for candidate in candidates])
    least = np.where(inside, candidates, np.inf).min(axis=0)
    return least, np.where(inside, candidates, -np.inf).max(axis=0)


def _reached(grid: Grid, values: FloatArray) -> Bounds:
    below, above = grid.reach(values)
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.abs(values) + np.maximum(below, above)).all()
    if not finite:
        raise NumberError(f"{float(np.abs(values).max()):g} is too near the end of float64 to be rounded: scale the network")
    return Bounds(Expansion.total(values, -below), Expansion.total(values, above))


def _half(step: FloatArray) -> FloatArray:
    """Return half of each step, rounded up where that is no float (the least subnormals)."""
    half = step / 2
    return np.where(half * 2 == step, half, up(half))
