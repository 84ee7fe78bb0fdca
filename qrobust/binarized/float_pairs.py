"""A float network beside a network of signs on the same input: an input of the grid that they label differently, or none.

Accepts   float networks that `bounds.ibp` takes, regions of any norm
Gives     Found, Nothing or Undecided
Method    inputs at random; every input, where they are few; else the box is split until intervals show one label of the float
          network over a part, and then whether the other network keeps this label there is one question to its engines
Property  exact: the float network's label is enclosed by outward-rounded intervals, and decided in exact arithmetic where
          these leave a choice. Complete where time allows
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from qrobust.answers import Counterexample
from qrobust.binarized.engines.base import LATE, Found, Nothing, Outcome, Undecided
from qrobust.binarized.enumeration import MOST_CELLS, MOST_INPUTS
from qrobust.binarized.folding import Folded
from qrobust.binarized.network import Grid
from qrobust.binarized.queries import Norm, Region
from qrobust.bounds.ibp import nominal_logits
from qrobust.check import Replay
from qrobust.comparison import UNDECIDED, greatest_label, label_of_one
from qrobust.interval import FloatArray, Interval, round_fraction_down, round_fraction_up
from qrobust.layers import Conv2d, Dense, IntArray
from qrobust.network import Network, Output
from qrobust.queries import HALF

SAMPLES = 512
FEW = 4096  # inputs of a part that are tried one by one
CHUNK = 2048
Ask = Callable[[Region, int], Outcome]  # whether an input of a region loses a label of the network of signs


class FloatLabels:
    """A float network's labels at the levels of a grid."""

    def __init__(self, network: Network, grid: Grid) -> None:
        self._network, self._grid = network, grid
        self._stored = tuple((layer.weight, layer.bias) for layer in network.layers)
        values = [grid.offset + grid.step * level for level in range(grid.lowest, grid.highest + 1)]
        self._below = np.array([round_fraction_down(value) for value in values])
        self._above = np.array([round_fraction_up(value) for value in values])
        first = network.layers[0]
        self.weights: FloatArray = np.ones(network.inputs)
        if isinstance(first, Dense | Conv2d):
            self.weights = np.asarray(abs(first.matrix(first.weight)).sum(axis=0)).reshape(-1)

    def over(self, lower: IntArray, upper: IntArray) -> IntArray:
        """Return the one label over each box, UNDECIDED where intervals show none. Shapes: (boxes, inputs); (boxes,)."""
        lowest = self._grid.lowest
        logits = nominal_logits(self._network, Interval(self._below[lower - lowest], self._above[upper - lowest]))
        if self._network.output is Output.SIGMOID:
            return label_of_one(logits, 0.0, 0.0)
        return greatest_label(logits.lower, logits.upper)

    def at(self, levels: IntArray) -> IntArray:
        """Return the label of each input, UNDECIDED where no precision settles it. Shapes: levels (batch, inputs); (batch,)."""
        labels = self.over(levels, levels)
        for place in np.flatnonzero(labels == UNDECIDED).tolist():
            x = tuple(self._grid.offset + self._grid.step * Fraction(level) for level in levels[place].tolist())
            label = Replay(self._network, Counterexample(x, self._stored)).label(False, HALF)
            labels[place] = UNDECIDED if label is None else label
        return labels


@dataclass(frozen=True, eq=False)
class FloatPair:
    """A float network's labels, and the network of signs in integers."""

    labels: FloatLabels
    copy: Folded

    def compared(self, levels: IntArray) -> Outcome:
        """Say whether both label some inputs alike. Shapes: levels (batch, inputs)."""
        own = self.labels.at(levels)
        other = np.flatnonzero((own != UNDECIDED) & (own != self.copy.labels(levels)))
        if len(other):
            return Found(np.asarray(levels[other[0]]))
        return Undecided("no precision settles the float network's label") if (own == UNDECIDED).any() else Nothing(exact=True)

    def tried(self, region: Region, deadline: float) -> Outcome:
        """Try every input of a region."""
        outcome: Outcome = Nothing(exact=True)
        for levels in _inputs(region):
            if time.monotonic() >= deadline:
                return Undecided(LATE)
            found = self.compared(_inside(region, levels))
            if isinstance(found, Found):
                return found
            outcome = found if isinstance(found, Undecided) else outcome
        return outcome

    def searched(self, region: Region, ask: Ask, deadline: float, rng: np.random.Generator) -> Outcome:
        """Look for an input of the region that the two label differently."""
        outcome = self.compared(_samples(region, rng))
        if isinstance(outcome, Found):
            return outcome
        parts, exact = [(region.lower, region.upper)], True
        while parts:
            if time.monotonic() >= deadline:
                return Undecided(LATE)
            lower, upper = parts.pop()
            part = Region(np.clip(region.centre, lower, upper), lower, upper)
            if not len(_inside(region, part.centre[None])):  # the part's nearest input is too far
                continue
            label = int(self.labels.over(lower[None], upper[None])[0])
            found = ask(part, label) if label != UNDECIDED else None
            if found is None or (isinstance(found, Found) and not region.contains(found.levels)):
                if _count(part) > FEW:
                    parts += self._halves(lower, upper)
                    continue
                found = self.tried(replace(region, lower=lower, upper=upper), deadline)
            if not isinstance(found, Nothing):
                return found
            exact = exact and found.exact
        return Nothing(exact)

    def _halves(self, lower: IntArray, upper: IntArray) -> list[tuple[IntArray, IntArray]]:
        """Split a box where the first layer's weights see most of it."""
        widest = int(((upper - lower) * self.labels.weights).argmax())
        middle = (int(lower[widest]) + int(upper[widest])) // 2
        low, high = lower.copy(), upper.copy()
        high[widest], low[widest] = middle, middle + 1
        return [(low, upper), (lower, high)]


def is_small(region: Region) -> bool:
    """Whether every input can be tried."""
    count = _count(region)
    return count <= MOST_INPUTS and count * len(region.centre) <= MOST_CELLS


def _count(region: Region) -> int:
    return math.prod((region.upper - region.lower + 1).tolist())


def _inputs(region: Region) -> Iterator[IntArray]:
    """Yield all inputs between the two ends, in chunks. Shape of each: (at most CHUNK, inputs)."""
    free = np.flatnonzero(region.upper > region.lower)
    widths = tuple((region.upper - region.lower + 1)[free].tolist())
    for start in range(0, _count(region), CHUNK):
        numbers = np.arange(start, min(start + CHUNK, _count(region)))
        levels = np.repeat(region.lower[None], len(numbers), axis=0)
        if len(free):
            levels[:, free] += np.array(np.unravel_index(numbers, widths)).T
        yield levels


def _inside(region: Region, levels: IntArray) -> IntArray:
    """Return the inputs whose cost is allowed. Shapes: levels and result (batch, inputs)."""
    if region.norm is Norm.LINF:
        return levels
    return np.asarray(levels[region.cost(levels).sum(axis=1) <= region.most])


def _samples(region: Region, rng: np.random.Generator) -> IntArray:
    """Return the centre, and random inputs of the region. Shape: (batch, inputs)."""
    levels = rng.integers(region.lower, region.upper + 1, size=(SAMPLES, len(region.centre)))
    near = np.where(rng.random(levels.shape) < rng.random((SAMPLES, 1)), levels, region.centre)
    return np.concatenate([region.centre[None], _inside(region, near)])
