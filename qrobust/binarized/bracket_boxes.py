"""A half of a bracket without training: boxes of cells on which its claim is proved, one for each sign.

A sign is 1 exactly on its box: its row asks for the box's first bit of each feature and against the first one beyond. The half
speaks where one of them is 1.

Method    from cells of which an answer is wanted and that no box holds yet, chosen at random by weight, boxes grow side by side
          in a random order, first to a random part of the way, then as far as bounds prove the claim; the one that gains the
          most weight is kept, and so on
Property  each box is proved, so no output threshold needs to be raised; how much is covered is up to the search
Source    Chvatal 1979 (greedy covering); Izza et al. 2023, arXiv 2306.15272, for boxes grown about decisions
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from qrobust.binarized.bracket import Half
from qrobust.binarized.bracket_proof import Claim
from qrobust.binarized.thermometer import Thermometer
from qrobust.interval import BoolArray, FloatArray, Interval
from qrobust.layers import IntArray

SEEDS = 192  # sides that grow at a time: of so many boxes the best is kept
LEAST_SEEDS = 8


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells to cover: those of which an answer is wanted, and what each weighs. Shapes: codes (n, features); weights (n,)."""

    codes: IntArray
    weights: FloatArray

    def inside(self, low: IntArray, high: IntArray) -> BoolArray:
        """Which cells lie in boxes of codes. Shapes: low, high (boxes, features); result (boxes, n)."""
        found = np.ones((len(low), len(self.codes)), dtype=np.bool_)
        for i in range(self.codes.shape[1]):
            found &= (self.codes[:, i] >= low[:, i, None]) & (self.codes[:, i] <= high[:, i, None])
        return found


def boxes_half(
    claim: Claim, code: Thermometer, cells: Cells, most: int, deadline: float, rng: np.random.Generator
) -> Half | None:
    """Return a half of at most so many boxes; None if there is nothing to cover. Accepts cells on which the claim is proved."""
    lows, highs, left = list[IntArray](), list[IntArray](), cells.weights.copy()
    size = max(LEAST_SEEDS, SEEDS // cells.codes.shape[1])
    while len(lows) < most and left.sum() > 0 and (not lows or time.monotonic() < deadline):
        some = rng.choice(len(left), size=size, p=left / left.sum())
        low, high = _grown(claim, code, cells.codes[some], rng)
        inside = cells.inside(low, high)
        best = int((inside @ left).argmax())
        left[inside[best]] = 0.0
        lows.append(low[best])
        highs.append(high[best])
    return _half(code, np.array(lows), np.array(highs)) if lows else None


def _half(code: Thermometer, low: IntArray, high: IntArray) -> Half:
    """Return the half that speaks on boxes of codes. Shapes: low, high (boxes, features)."""
    weight, asked, start = np.zeros((len(low), code.bits), dtype=np.int64), np.zeros(len(low)), 0
    for i, t in enumerate(code.thresholds):
        for rows, bit, sign in ((low[:, i] > 0, low[:, i] - 1, 1), (high[:, i] < t.size, high[:, i], -1)):
            chosen = np.flatnonzero(rows)
            weight[chosen, start + bit[chosen]] = sign
            asked[chosen] += sign > 0
        start += t.size
    return Half(((weight, 0.5 - asked),), np.ones(len(low), dtype=np.int64), -len(low))


def _grown(claim: Claim, code: Thermometer, seeds: IntArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Grow boxes about cells. Shapes: seeds (batch, features), and the results."""
    ends, rows = [seeds.copy(), seeds.copy()], np.arange(len(seeds))
    limits = [np.zeros_like(seeds), np.broadcast_to([t.size for t in code.thresholds], seeds.shape)]
    sides = 2 * seeds.shape[1]
    order = rng.permuted(np.tile(np.arange(sides), (len(seeds), 1)), axis=1)
    for is_last in (False, True):
        part = np.ones(order.shape) if is_last else rng.random(order.shape)
        for turn in range(sides):
            feature, side = order[:, turn] // 2, order[:, turn] % 2
            own = np.where(side == 0, ends[0][rows, feature], ends[1][rows, feature])
            far = np.where(side == 0, limits[0][rows, feature], limits[1][rows, feature])
            target = own + np.round((far - own) * part[:, turn]).astype(np.int64)
            moved = _moved(claim, code, ends, (feature, side, own, target))
            for number in (0, 1):
                chosen = rows[side == number]
                ends[number][chosen, feature[chosen]] = moved[chosen]
    return ends[0], ends[1]


Step = tuple[IntArray, IntArray, IntArray, IntArray]  # of each box: the feature, the side, where it is, where it is to go


def _moved(claim: Claim, code: Thermometer, ends: list[IntArray], step: Step) -> IntArray:
    """Return how far one side of each box can go towards a target, by halving. Shape: (boxes,)."""
    feature, side, known, trial = step
    known, refused = known.copy(), trial + np.sign(trial - known)
    while len(open_ := np.flatnonzero((known != trial) & (np.abs(refused - known) > 1))):
        low, high = ends[0][open_].copy(), ends[1][open_].copy()
        for number, own in ((0, low), (1, high)):
            chosen = np.flatnonzero(side[open_] == number)
            own[chosen, feature[open_][chosen]] = trial[open_][chosen]
        holds = claim.holds_on(Interval(code.ends(low).lower, code.ends(high).upper))
        known[open_[holds]] = trial[open_[holds]]
        refused[open_[~holds]] = trial[open_[~holds]]
        trial = trial.copy()
        trial[open_] = known[open_] + (refused[open_] - known[open_]) // 2
    return known
