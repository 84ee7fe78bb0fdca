"""IProp: target propagation through a network of signs by one integer program a layer.

Accepts   L-infinity balls and boxes
Method    1. at the best input so far, choose at random S of the last layer's signs whose flip raises the rival's lead: targets;
          2. from the last layer down, find signs of the layer before, and last pixels, that meet as many of a layer's targets
             as can be; among those, signs that differ least from the present ones; the program starts from the present ones;
          3. run the input forward: if its lead is greater, go on from it;
          4. S is 5 % of the last layer's width, halved after 5 rounds without gain
Property  refutes only: each input is replayed
Source    Khalil, Gupta, Dilkina 2019, section 4, arXiv 1810.03538
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qrobust.binarized.constraints import row_bounds
from qrobust.binarized.engines.highs import Program, maximise
from qrobust.binarized.folding import ThresholdLayer
from qrobust.binarized.goal import Best, Goal
from qrobust.binarized.queries import Region
from qrobust.interval import FloatArray
from qrobust.layers import IntArray

FIRST_SHARE = 0.05
PATIENCE = 5  # rounds without gain before S is halved
LAST_PATIENCE = 20  # rounds without gain at S = 1 before it ends
PROGRAM_SHARE = 0.04  # of all the time, at most, for one program


def propagate(goal: Goal, region: Region, best: Best, rng: np.random.Generator) -> None:
    """Raise the lead until time is up, nothing is left to raise, or steps of one sign have gained nothing for long."""
    layers = goal.folded.layers
    if not layers:  # scores of the pixels themselves: the ends that each rival's row asks for are the best
        rows = np.array([_slope(goal, rival) for rival in goal.rivals])
        best.offer(np.where(rows > 0, region.upper, np.where(rows < 0, region.lower, region.centre)))
        return
    count, idle = max(1, int(np.ceil(FIRST_SHARE * len(layers[-1].threshold)))), 0
    while not best.is_over and idle < (PATIENCE if count > 1 else LAST_PATIENCE):
        values = _values(goal, best.levels)
        slope = _slope(goal, best.rival)
        useful = np.flatnonzero(slope * values[-1] < 0)
        if not len(useful):
            return
        target = values[-1].copy()
        target[rng.choice(useful, size=min(count, len(useful)), replace=False)] *= -1
        levels = _pulled_back(layers, region, values, target, best)
        idle = 0 if levels is not None and best.offer(levels[None]) else idle + 1
        if idle >= PATIENCE and count > 1:
            count, idle = count // 2, 0


def _slope(goal: Goal, rival: int) -> FloatArray:
    """Return what each last sign adds to a rival's lead. Shape: (last signs,)."""
    rows = goal.folded.matrix[[rival, goal.label]].toarray() * np.array(
        [[float(goal.folded.scale[number])] for number in (rival, goal.label)]
    )
    return np.asarray(rows[0] - rows[1], dtype=np.float64)


def _values(goal: Goal, levels: IntArray) -> list[IntArray]:
    """Return the levels, then each layer's signs."""
    found = [levels[None]]
    for layer in goal.folded.layers:
        found.append(layer.signs(found[-1]))
    return [values[0] for values in found]


def _pulled_back(
    layers: tuple[ThresholdLayer, ...], region: Region, values: list[IntArray], target: IntArray, best: Best
) -> IntArray | None:
    """Return an input meant to give the last layer's targets, or None if no other signs were found or time is up."""
    for place in range(len(layers) - 1, -1, -1):
        seconds = min(best.left, PROGRAM_SHARE * best.limit)
        if seconds == 0.0 or np.array_equal(target, values[place + 1]):
            return None
        if place:
            target = _signs_before(layers[place], target, values[place], seconds)
        else:
            step = _LayerStep(layers[0], target, region.lower, region.upper, 1)
            target = step.solve(np.zeros(len(region.lower)), values[0], seconds)
    return target


def _signs_before(layer: ThresholdLayer, target: IntArray, present: IntArray, seconds: float) -> IntArray:
    """Return signs that meet most of a layer's targets, as near to the present ones as can be. Shapes: (signs before,)."""
    ones = np.ones_like(present)
    cost = present / (2 * len(present) + 2)  # a change by 2 costs 1 / (n + 1), so all together less than one target
    return _LayerStep(layer, target, -ones, ones, 2).solve(cost, present, seconds)


@dataclass(frozen=True, eq=False)
class _LayerStep:
    """Values from lower to upper, `unit` apart (2 for signs, 1 for levels), that are to give a layer the target's signs."""

    layer: ThresholdLayer
    target: IntArray
    lower: IntArray
    upper: IntArray
    unit: int

    def solve(self, cost: FloatArray, present: IntArray, seconds: float) -> IntArray:
        """Return the values that meet most targets, `cost @ values` beside; the present ones if none are found."""
        from scipy import sparse

        unit, matrix = self.unit, sparse.csr_array(self.layer.matrix * self.unit)
        threshold = self.layer.threshold - self.layer.matrix @ self.lower
        ranges = (self.upper - self.lower) // unit
        least, most = row_bounds(matrix, ranges)
        open_rows = np.flatnonzero((least < threshold) & (most >= threshold))
        side = self.target[open_rows]  # a target of -1 is that -row @ v >= 1 - threshold
        rows = sparse.csr_array(sparse.diags_array(side.astype(np.float64)) @ matrix[open_rows]).astype(np.int64)
        limit = np.where(side > 0, threshold[open_rows], 1 - threshold[open_rows])
        least = np.where(side > 0, least[open_rows], -most[open_rows])
        slack = sparse.diags_array((least - limit).astype(np.float64))
        count, width = len(open_rows), len(ranges)
        start = (present - self.lower) // unit
        program = Program(
            sparse.csr_array(sparse.hstack([rows, slack], format="csr")),
            least.astype(np.float64),
            np.full(count, np.inf),
            np.concatenate([unit * cost, np.ones(count)]),
            np.zeros(width + count, dtype=np.int64),
            np.concatenate([ranges, np.ones(count, dtype=np.int64)]),
        )
        met = (rows @ start >= limit).astype(np.int64)
        found = maximise(program, seconds, start=np.concatenate([start, met])).values
        return present if found is None else np.asarray(self.lower + unit * found[:width], dtype=np.int64)
