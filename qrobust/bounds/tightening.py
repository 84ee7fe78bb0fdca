"""Bounds of pre-activations by branch and bound, for questions that will be searched for long.

Accepts   `substitution.Levels` of dense stages at one input; bounds of all hidden levels
Gives     bounds at least as tight
Method    Level by level, each neuron whose sign is open and each of its ends is a row of one `neurons.NeuronTree` over the
          levels below. A row is closed at a target between what an attack reaches and what is known; when the time is over
          the open nodes of a row say what holds for it
Property  sound, whatever the targets are
Source    Fischetti and Jo 2018, Constraints 23 (bounds of each neuron by its own program); `bounds.neurons`
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from qrobust.bounds.attack import climb
from qrobust.bounds.linear import intersected
from qrobust.bounds.neurons import NeuronTree
from qrobust.bounds.rows import Rows
from qrobust.bounds.substitution import Levels
from qrobust.errors import EnclosureError
from qrobust.interval import FloatArray, Interval, up
from qrobust.network import Activation
from qrobust.search import Budget, explore

STARTS = 16  # random starts of an attack, for each row
NEAR = 0.1  # where the target is between what an attack reaches (0) and the bound (1)
BATCH = 256


def tightened(levels: Levels, bounds: Sequence[Interval], seconds: float, budget: Budget) -> list[Interval]:
    """Tighten the bounds of ReLUs from level 2 on. Shapes: bounds (1, n) each, of levels 0 to the last hidden one."""
    deadline = time.monotonic() + seconds
    result = list(bounds)
    for level in range(2, levels.top):
        if levels.activation(level) is Activation.RELU:
            now = time.monotonic()
            share = (deadline - now) / (levels.top - level)
            found = _of_level(Levels(levels.first, levels.stages[:level]), result[: level + 1], now + share, budget)
            result[level], empty = intersected(result[level], found)
            if empty.any():
                raise EnclosureError("bounds by splitting and linear bounds contradict each other: please report this bug")
    return result


def _of_level(levels: Levels, bounds: list[Interval], deadline: float, budget: Budget) -> Interval:
    """Bound the pre-activations of the level above the last; bounds has those that are known of it, too."""
    known, below = bounds[-1], bounds[:-1]
    open_ = np.flatnonzero((known.lower[0] < 0) & (known.upper[0] > 0))
    count, width = len(open_), known.shape[1]
    if not count:
        return known
    nu = np.zeros((2 * count, width))
    nu[np.arange(2 * count), np.tile(open_, 2)] = np.repeat([1.0, -1.0], count)
    ends = np.concatenate([known.upper[0, open_], -known.lower[0, open_]])
    target = np.minimum(ends, (1 - NEAR) * _reached(levels, below[0], nu) + NEAR * ends)
    tree = NeuronTree(levels, below, Rows(nu, -target, np.zeros(len(nu), dtype=bool)), attacks=False, budget=budget)
    outcome = explore(tree, budget, tolerance=0.0, batch=tree.batch(BATCH), deadline=deadline)
    found = np.full(len(nu), -np.inf)
    if outcome.open is not None:
        np.maximum.at(found, outcome.open.parts[0], outcome.open.upper)
    found = np.where(found > 0, np.minimum(ends, up(target + np.maximum(found, 0.0))), target)
    lower, upper = known.lower.copy(), known.upper.copy()
    upper[0, open_], lower[0, open_] = found[:count], -found[count:]
    return Interval(lower, upper)


def _reached(levels: Levels, start: Interval, nu: FloatArray) -> FloatArray:
    """Return what an attack reaches for each row over the top level, in floats. Shapes: nu (rows, n); result (rows,)."""
    rng, times = np.random.default_rng(0), STARTS * len(nu)
    widths = [stage.weight.shape[1] for stage in levels.stages]
    positions = [np.where(rng.random((times, n)) < 0.5, -1.0, 1.0) for n in widths]
    found = climb(levels, start, np.repeat(nu, STARTS, axis=0), np.zeros(times), positions, rounds=6)
    best: FloatArray = found.value.reshape(-1, STARTS).max(axis=1)
    return best
