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
import numpy.typing as npt

from qrobust.binarized.folding import Folded, TieRule
from qrobust.binarized.queries import Norm, Region, level_costs
from qrobust.interval import FloatArray
from qrobust.layers import IntArray, SparseMatrix

ROUNDS = 12
BATCH = 16
KEPT = (1.0, 0.5, 0.2)  # the shares of pixels that move at once


def attack(
    folded: Folded, region: Region, label: int, tie: TieRule, *, seconds: float, rng: np.random.Generator
) -> IntArray | None:
    """Return an input of the region that loses the label, or None. Shape: (inputs,)."""
    deadline = time.monotonic() + seconds
    points = np.concatenate([region.centre[None], _random_points(region, BATCH - 1, rng)])
    for _ in range(ROUNDS):
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
    return _projected(region, corners, rng.random(corners.shape))


def _gradient(folded: Folded, points: IntArray, label: int, rng: np.random.Generator) -> FloatArray:
    """Return the surrogate's derivative of a rival's lead. Shapes: points and result (batch, inputs)."""
    x = points
    windows: list[npt.NDArray[np.bool_]] = []
    for layer in folded.layers:
        lead = (layer.matrix @ x.T).T - layer.threshold
        reach = np.sqrt(np.maximum(1.0, abs(layer.matrix).sum(axis=1))) * (
            1 if windows else max(1.0, float(np.ptp(points)) / 4)
        )
        windows.append(np.abs(lead) <= rng.choice([1.0, 3.0]) * reach)
        x = np.where(lead >= 0, 1, -1)
    sums = (folded.matrix @ x.T).T.astype(np.float64) * [float(s) for s in folded.scale] + [float(b) for b in folded.bias]
    sums[:, label] = -np.inf
    rival = sums.argmax(axis=1)
    spread = np.abs(sums.max(axis=1, keepdims=True) - sums)
    second = np.where(spread + 1e9 * (spread == 0) < np.inf, spread, np.inf).argsort(axis=1)[:, min(1, sums.shape[1] - 2)]
    rival = np.where(rng.random(len(rival)) < 0.7, rival, second)
    slope = np.zeros((len(points), len(folded.scale)))
    slope[np.arange(len(points)), rival] = [float(folded.scale[r]) for r in rival]
    slope[:, label] -= float(folded.scale[label])
    back = _times(slope, folded.matrix)
    for layer, window in zip(reversed(folded.layers), reversed(windows), strict=True):
        back = _times(back * window, layer.matrix)
    return back


def _times(rows: FloatArray, matrix: SparseMatrix) -> FloatArray:
    return np.asarray((matrix.T @ rows.T).T, dtype=np.float64)


def _moved(region: Region, points: IntArray, gradient: FloatArray, rng: np.random.Generator) -> IntArray:
    """Return the points with a part of their pixels at the ends that the gradient points to."""
    ends = np.where(gradient > 0, region.upper, np.where(gradient < 0, region.lower, points))
    share = rng.choice(KEPT, size=(len(points), 1))
    moved = np.where(rng.random(points.shape) < share, ends, points)
    gain = np.abs(gradient) * (1 + 0.5 * rng.random(points.shape))
    return _projected(region, moved, gain)


def _projected(region: Region, points: IntArray, gain: FloatArray) -> IntArray:
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
