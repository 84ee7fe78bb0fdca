"""Inputs that lose the label, looked for through the straight-through surrogate.

Accepts   every region
Gives     levels that lose the label in exact integers, or None
Method    each sign's derivative is taken as 1 near its threshold and 0 elsewhere; from the centre and from random points, all
          pixels (or those that gain most for their cost) go to the end that the derivative of the nearest rival's lead points
          to, a random part of them at a time
Property  refutes only
Source    Bengio et al. 2013 (straight-through), arXiv 1308.3432; Goodfellow et al. 2014 (fast gradient sign)
"""

from __future__ import annotations

import time

import numpy as np

from qrobust.binarized.folding import Folded
from qrobust.binarized.queries import Norm, Region, TieRule, level_costs
from qrobust.binarized.surrogate import backward, forward, scores
from qrobust.interval import FloatArray
from qrobust.layers import IntArray

ROUNDS = 12
BATCH = 16
BEST_SHARE = 0.7  # how often the nearest rival's lead is raised, else the second's
KEPT = (1.0, 0.5, 0.2)  # the shares of pixels that move at once


def attack(
    folded: Folded,
    region: Region,
    label: int,
    tie: TieRule,
    *,
    seconds: float,
    rng: np.random.Generator,
    rounds: int = ROUNDS,
) -> IntArray | None:
    """Return an input of the region that loses the label, or None. Shape: (inputs,)."""
    deadline = time.monotonic() + seconds
    points = np.concatenate([region.centre[None], _random_points(region, BATCH - 1, rng)])
    for _ in range(rounds):
        lost = np.flatnonzero(folded.is_lost(points, label, tie))
        if len(lost):
            return np.asarray(points[lost[0]], dtype=np.int64)
        if time.monotonic() > deadline:
            return None
        gradient = _gradient(folded, points, label, rng)
        points = _moved(region, points, gradient, rng)
    return None


def _random_points(region: Region, count: int, rng: np.random.Generator) -> IntArray:
    corners = np.where(rng.random((count, len(region.centre))) < 0.5, region.lower, region.upper)
    return projected(region, corners, rng.random(corners.shape))


def _gradient(folded: Folded, points: IntArray, label: int, rng: np.random.Generator) -> FloatArray:
    """Return the surrogate's derivative of a rival's lead. Shapes: points and result (batch, inputs)."""
    signs, windows = forward(folded, points, [float(rng.choice([1.0, 3.0])) for _ in folded.layers])
    sums = scores(folded, signs)
    sums[:, label] = -np.inf
    best, second = np.argsort(-sums, axis=1, kind="stable")[:, [0, min(1, sums.shape[1] - 2)]].T
    rival = np.where(rng.random(len(points)) < BEST_SHARE, best, second)
    slope = np.zeros((len(points), len(folded.scale)))
    slope[np.arange(len(points)), rival] = 1.0
    slope[:, label] -= 1.0
    return backward(folded, slope, windows)


def _moved(region: Region, points: IntArray, gradient: FloatArray, rng: np.random.Generator) -> IntArray:
    """Return the points with a part of their pixels at the ends that the gradient points to."""
    ends = np.where(gradient > 0, region.upper, np.where(gradient < 0, region.lower, points))
    share = rng.choice(KEPT, size=(len(points), 1))
    moved = np.where(rng.random(points.shape) < share, ends, points)
    gain = np.abs(gradient) * (1 + 0.5 * rng.random(points.shape))
    return projected(region, moved, gain)


def projected(region: Region, points: IntArray, gain: FloatArray) -> IntArray:
    """Return the points with so many of their changes undone, those that gain least, that the cost is allowed."""
    if region.norm is Norm.LINF:
        return points
    change = points - region.centre
    if region.norm is not Norm.L0:
        change = np.sign(change) * np.minimum(np.abs(change), max(1, int(np.sqrt(region.most))))
    costs = level_costs(np.abs(change), region.norm)
    order = np.argsort(-np.where(costs > 0, gain / np.maximum(costs, 1), -1.0), axis=1)
    spent = np.cumsum(np.take_along_axis(costs, order, axis=1), axis=1)
    kept = np.zeros(points.shape, dtype=bool)
    np.put_along_axis(kept, order, spent <= region.most, axis=1)
    return np.asarray(region.centre + np.where(kept, change, 0), dtype=np.int64)
