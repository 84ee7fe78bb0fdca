"""A box split into parts until intervals decide each.

Accepts   boxes
Gives     Found or Nothing; Undecided at the time limit, and where sums or the parts that wait are too large
Method    branch and bound, many parts at once, the deepest first: each goes in halves at the pixel that most of the
          rivals' uncertainty comes through, from a row to what it sums in shares of their ranges; parts where no rival
          reaches its threshold leave, and one where a rival never falls below it is an answer
Property  sound and complete, in integers: `evaluation` says why float32 holds them
Source    Bunel et al. 2018 (branch and bound of networks), arXiv 1711.00455
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qrobust.binarized.constraints import Constraints
from qrobust.binarized.engines.base import LATE, Found, Nothing, Outcome, Undecided
from qrobust.binarized.engines.evaluation import Values, layers_of
from qrobust.binarized.queries import Norm
from qrobust.errors import ResourceError
from qrobust.layers import IntArray

PARTS = 128  # that are split at once
LEAST_PARTS = 16
MOST_BYTES = 2**30  # of the parts that wait
TINY = np.finfo(np.float32).tiny  # a share that every pixel has
MANY_BITS = 150.0  # of a box that is hardly ever split to its end


def bits(found: Constraints) -> float:
    """Return how many halvings tell all inputs of a box apart; infinity of other regions."""
    is_box = found.region.norm is Norm.LINF and not found.is_unary
    return sum(math.log2(len(levels)) for levels in found.levels) if is_box else math.inf


def decide(found: Constraints, seconds: float) -> Outcome:
    """Decide by halves."""
    deadline, depth = time.monotonic() + seconds, bits(found)
    if math.isinf(depth):
        return Undecided("only boxes are split")
    most = int(MOST_BYTES / (8 * (depth + 1) * max(1, found.columns)))
    if most < LEAST_PARTS:
        return Undecided("the box has too many inputs to be split")
    try:
        bounds = _Bounds(found)
    except ResourceError as error:
        return Undecided(str(error))
    upper = found.states.astype(np.float32)[:, None]
    lower, waiting = np.zeros_like(upper), list[_Parts]()
    while True:
        told = bounds.told(lower, upper)
        if not isinstance(told, _Parts):
            return Found(found.input_levels(told.astype(np.int64)))
        if len(told.pixel):
            waiting.append(told)
        if not waiting:
            return Nothing(exact=True)
        if time.monotonic() > deadline:
            return Undecided(LATE)
        parts = waiting.pop()
        count = min(PARTS, most // 2)
        if len(parts.pixel) > count:
            waiting.append(parts.at(slice(count, None)))
        lower, upper = parts.at(slice(count)).halves()


class _Parts(NamedTuple):
    """Parts of a box, and where they are split next. Shapes: lower, upper (pixels, parts); pixel (parts,)."""

    lower: Values
    upper: Values
    pixel: IntArray

    def at(self, some: slice) -> _Parts:
        return _Parts(self.lower[:, some], self.upper[:, some], self.pixel[some])

    def halves(self) -> tuple[Values, Values]:
        """Return the ends of the lower halves, then of the upper ones."""
        count = len(self.pixel)
        every = np.arange(count)
        middle = (self.lower[self.pixel, every] + self.upper[self.pixel, every]) // 2
        lower, upper = np.tile(self.lower, 2), np.tile(self.upper, 2)
        upper[self.pixel, every], lower[self.pixel, count + every] = middle, middle + 1
        return lower, upper


class _Bounds:
    """What rows and rivals can be over parts of the box. Raises ResourceError if sums are too large.

    A variable between a and b has the middle a + b, twice what it is, and the range b - a; so have sums.
    """

    def __init__(self, found: Constraints) -> None:
        self._columns = found.columns
        layers, rivals = layers_of(found, factor=2)
        self._layers = [(matrix, abs(matrix), 2 * threshold) for matrix, threshold in layers]
        self._rivals = rivals.matrix, abs(rivals.matrix), 2 * rivals.threshold

    def told(self, lower: Values, upper: Values) -> Values | _Parts:
        """Return a state at which a rival takes the label, where a part tells one, else the parts that tell nothing.

        Shapes    lower, upper (pixels, parts); the state (pixels,)
        """
        matrix, sizes, limit = self._rivals
        shape = (matrix.shape[1], lower.shape[1])
        middles, ranges = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
        middles[: self._columns], ranges[: self._columns] = lower + upper, upper - lower
        stop, spreads = self._columns, []
        for own, own_sizes, own_limit in self._layers:
            start, stop = stop, stop + len(own_limit)
            middle, spread = own @ middles[:start], own_sizes @ ranges[:start]
            on, maybe = middle - spread >= own_limit, middle + spread >= own_limit
            middles[start:stop], ranges[start:stop] = on.astype(np.float32) + maybe, on != maybe
            spreads.append(spread)
        middle, spread = matrix @ middles - limit, sizes @ ranges
        if len(won := np.flatnonzero((middle >= spread).any(axis=0))):
            return np.asarray(lower[:, won[0]])
        near = middle + spread >= 0
        open_ = np.flatnonzero(near.any(axis=0))
        open_ = open_[np.argsort(-middle[:, open_].max(axis=0, initial=-np.inf), kind="stable")]
        pixel = self._widest(ranges[:, open_], [each[:, open_] for each in spreads], near[:, open_])
        return _Parts(lower[:, open_], upper[:, open_], pixel)

    def _widest(self, ranges: Values, spreads: list[Values], near: npt.NDArray[np.bool_]) -> IntArray:
        """Return the pixel of each part that most of what the rivals near their thresholds may change comes through."""
        if not near.shape[1]:
            return np.zeros(0, dtype=np.int64)
        share = self._rivals[1].T @ near.astype(np.float32)
        stop = len(share)
        for (_, sizes, _), spread in zip(reversed(self._layers), reversed(spreads), strict=True):
            start = stop - len(spread)
            share[:start] += sizes.T @ (share[start:stop] * ranges[start:stop] / np.maximum(spread, 1))
            stop = start
        return np.asarray(((share[:stop] + TINY) * ranges[:stop]).argmax(axis=0), dtype=np.int64)
