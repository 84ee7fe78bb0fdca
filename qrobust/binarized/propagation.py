"""IProp: target propagation through a network of signs by one program a layer.

Accepts   L-infinity balls and boxes
Method    0. signs that are constant over the region are left out, so that none of them is asked for;
          1. at the best input so far, choose at random S of the last layer's signs whose flip raises the rival's lead, rather
             those near their thresholds: targets; signs that raise it already are targets too, the others are not;
          2. from the last layer down to the second, an integer program finds signs of the layer before that meet as many of a
             layer's targets as can be; among those, flips of signs near their thresholds, and at most MOST_FLIPS; it starts
             from flips chosen one by one, and is left out where these meet all targets;
          3. for the pixels, a linear program, kept from round to round with its basis, falls short of the first layer's targets
             as little as can be; its values are rounded in several ways;
          4. run these inputs forward: if a lead is greater, go on from it;
          5. S is 5 % of the last layer's width, halved after 5 rounds without gain
Property  refutes only: each input is replayed
Source    Khalil, Gupta, Dilkina 2019, section 4, arXiv 1810.03538; steps 0 and 3, and nearness to thresholds, are ours
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qrobust.binarized.engines.highs import ElasticRows, Program, maximise
from qrobust.binarized.folding import Folded, ThresholdLayer, over
from qrobust.binarized.goal import Best, Goal
from qrobust.binarized.queries import Region
from qrobust.interval import FloatArray
from qrobust.layers import IntArray

FIRST_SHARE = 0.05
PATIENCE = 5  # rounds without gain before S is halved
LAST_PATIENCE = 100  # rounds without gain at S = 1 before it ends
PROGRAM_SHARE, PIXEL_SHARE = 0.03, 0.2  # of all the time, at most, for one program
MOST_FLIPS = 8  # of a layer's signs in a round
NEAREST = 60  # signs of a layer that a program can flip
KEPT_WEIGHT = 2.0  # of a sign that is to stay, against one that is to flip
SHARPNESS = 4.0  # with which signs near their thresholds are preferred
ROUNDINGS = 8


def propagate(goal: Goal, region: Region, best: Best, rng: np.random.Generator) -> None:
    """Raise the lead until time is up, nothing is left to raise, or steps of one sign have gained nothing for long."""
    if not goal.folded.layers:  # scores of the pixels themselves: the ends that each rival's row asks for are the best
        rows = np.array([_slope(goal.folded, goal.label, rival) for rival in goal.rivals])
        best.offer(np.where(rows > 0, region.upper, np.where(rows < 0, region.lower, region.centre)))
        return
    network = over(goal.folded, region.lower, region.upper)
    if not len(network.layers[-1].threshold):
        return
    first = network.layers[0]
    pixels = ElasticRows(first.matrix, region.lower, region.upper, best.levels)
    count, idle = max(1, int(np.ceil(FIRST_SHARE * len(network.layers[-1].threshold)))), 0
    while not best.is_over and idle < (PATIENCE if count > 1 else LAST_PATIENCE):
        state = _State(network, region, best.levels)
        target = _last_target(state, _slope(network, goal.label, best.rival), count, rng)
        if target is None:
            return
        found = _pulled_back(state, pixels, target, best, rng)
        idle = 0 if found is not None and best.offer(found) else idle + 1
        if idle >= PATIENCE and count > 1:
            count, idle = count // 2, 0


def _slope(folded: Folded, label: int, rival: int) -> FloatArray:
    """Return what each last sign adds to a rival's lead. Shape: (last signs,)."""
    rows = folded.matrix[[rival, label]].toarray() * np.array([[float(folded.scale[number])] for number in (rival, label)])
    return np.asarray(rows[0] - rows[1], dtype=np.float64)


class _State:
    """What an input gives: each layer's signs, how far each sum lies above its threshold, and how near to it.

    Shapes    of each layer (signs,); far: the distance as a share of what the sum can move, or of a random sum's size
    """

    def __init__(self, network: Folded, region: Region, levels: IntArray) -> None:
        self.layers, self.levels = network.layers, levels
        self.signs, self.gaps, self.far = list[IntArray](), list[IntArray](), list[FloatArray]()
        values = levels
        for place, layer in enumerate(network.layers):
            gap = np.asarray(layer.matrix @ values - layer.threshold)
            sizes = abs(layer.matrix)
            reach = np.sqrt(sizes.sum(axis=1)) if place else sizes @ (region.upper - region.lower) / 2
            values = np.where(gap >= 0, 1, -1)
            self.signs.append(values)
            self.gaps.append(gap)
            self.far.append(np.abs(gap + 0.5) / np.maximum(1, reach))


def _last_target(state: _State, slope: FloatArray, count: int, rng: np.random.Generator) -> IntArray | None:
    """Return the signs to have, 0 where either will do: those that raise the lead, and some more. None if all raise it."""
    signs = state.signs[-1]
    useful = np.flatnonzero(slope * signs < 0)
    if not len(useful):
        return None
    odds = np.exp(-SHARPNESS * state.far[-1][useful]) + 1e-9
    target = np.where(slope * signs > 0, signs, 0)
    chosen = rng.choice(useful, size=min(count, len(useful)), replace=False, p=odds / odds.sum())
    target[chosen] = -signs[chosen]
    return target


def _pulled_back(state: _State, pixels: ElasticRows, target: IntArray, best: Best, rng: np.random.Generator) -> IntArray | None:
    """Return inputs meant to give the last layer's targets, or None if no flips help or time is up. Shape: (batch, inputs)."""
    for place in range(len(state.layers) - 1, 0, -1):
        step = _LayerStep.of(state, place, target, rng)
        flips = step.solve(min(best.left, PROGRAM_SHARE * best.limit))
        if best.left == 0.0 or not len(flips):
            return None
        target = state.signs[place - 1].copy()
        target[flips] *= -1
    weights = np.where(target == state.signs[0], KEPT_WEIGHT, 1.0)
    found = pixels.nearest(target, state.layers[0].threshold, weights, min(best.left, PIXEL_SHARE * best.limit))
    if found is None:
        return None
    shifts = rng.random((ROUNDINGS, len(found)))
    shifts[0] = 0.5
    return np.floor(found + shifts).astype(np.int64)


@dataclass(frozen=True, eq=False)
class _LayerStep:
    """Signs before a layer, to be flipped so that as many of its rows are met as can be: slack + moves @ flips >= 0.

    Shapes    columns (n,): which signs; moves (rows, n); slack, weight (rows,); cost (n,), of all together less than 1
    """

    columns: IntArray
    moves: FloatArray
    slack: FloatArray
    weight: FloatArray
    cost: FloatArray

    @staticmethod
    def of(state: _State, place: int, target: IntArray, rng: np.random.Generator) -> _LayerStep:
        """Return the step before a layer, to the targets that are not 0."""
        layer: ThresholdLayer = state.layers[place]
        before, far = state.signs[place - 1], state.far[place - 1] * (0.5 + rng.random(len(state.far[place - 1])))
        columns = np.argsort(far)[:NEAREST]
        rows = np.flatnonzero(target)
        side = target[rows]
        gap = state.gaps[place][rows]
        moves = layer.matrix[rows][:, columns].toarray() * side[:, None] * (-2 * before[columns])
        slack = np.where(side > 0, gap, -1 - gap)
        weight = np.where(slack >= 0, KEPT_WEIGHT, 1.0)
        return _LayerStep(
            columns, moves.astype(np.float64), slack.astype(np.float64), weight, far[columns] / (1 + far[columns].sum())
        )

    def solve(self, seconds: float) -> IntArray:
        """Return which signs to flip: none if that is best. Shape: (flips,)."""
        chosen = self._one_by_one()
        if seconds > 0 and not (self.slack + self.moves @ chosen >= 0).all():
            solution = maximise(self._program(), seconds, start=self._with_met(chosen))
            if solution.values is not None:
                chosen = solution.values[: len(self.columns)].astype(np.float64)
        return self.columns[chosen > 0.5]

    def _one_by_one(self) -> FloatArray:
        """Return flips by descent of what is missing, the best number met on the way. Shape: (n,), of 0 and 1."""
        slack, flips = self.slack, np.zeros(len(self.columns))
        best, greatest = flips.copy(), self.weight @ (slack >= 0)
        for _ in range(min(MOST_FLIPS, len(flips))):
            missing = self.weight @ np.minimum(slack[:, None] + self.moves, 0.0)
            place = int(np.argmax(np.where(flips > 0, -np.inf, missing - self.cost)))
            flips[place], slack = 1.0, slack + self.moves[:, place]
            met = self.weight @ (slack >= 0) - self.cost @ flips
            if met > greatest:
                best, greatest = flips.copy(), met
        return best

    def _with_met(self, flips: FloatArray) -> IntArray:
        open_rows = self._open()[1]
        met = (self.slack + self.moves @ flips >= 0)[open_rows]
        return np.concatenate([flips, met]).astype(np.int64)

    def _open(self) -> tuple[FloatArray, IntArray]:
        """Return each row's least value, and the rows that can be met and can be missed."""
        least = self.slack + np.minimum(self.moves, 0.0).sum(axis=1)
        most = self.slack + np.maximum(self.moves, 0.0).sum(axis=1)
        return least, np.flatnonzero((least < 0) & (most >= 0))

    def _program(self) -> Program:
        """Return the program over flips and one Boolean for each row that must be met where it is 1."""
        from scipy import sparse

        least, rows = self._open()
        count, width = len(rows), len(self.columns)
        met = sparse.diags_array(least[rows])
        few = np.concatenate([-np.ones(width), np.zeros(count)])[None]
        top = sparse.hstack([sparse.csr_array(self.moves[rows]), met])
        return Program(
            sparse.csr_array(sparse.vstack([top, sparse.csr_array(few)])),
            np.append(least[rows] - self.slack[rows], -float(MOST_FLIPS)),
            np.full(count + 1, np.inf),
            np.concatenate([-self.cost, self.weight[rows]]),
            np.zeros(width + count, dtype=np.int64),
            np.ones(width + count, dtype=np.int64),
        )
