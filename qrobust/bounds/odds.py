"""Sums of exponentials over a unit box: the odds of a class's rivals, the least and the greatest, for many boxes at once.

Accepts   S(t) = sum over j of exp(base_j + slope_j . t) for t in [0, 1]**n, the base and the slopes as floats; m of them
Gives     a certified lower bound of the least S, a certified upper bound of the greatest, and a t that comes close to each
Method    S is convex. Least: where the signs of the gradient show no best vertex, coordinate descent; with p = exp(a) for
          floats a near the exponents minus log S at the t that is found, and P the sum of p, Jensen's inequality gives
          S(t) >= P exp(sum p_j (g_j(t) - a_j) / P), whose exponent is linear in t. Greatest: at a vertex; where S surely rises
          (falls) along an edge wherever the other coordinates are, that end is taken; the rest is split end by end, each part
          bounded by chords of the exponentials
Property  sound; the ends meet, up to rounding, as far as SPLITS and SWEEPS go
Source    Boyd and Vandenberghe 2004, section 3.1.8 (Jensen); chords and their ends: convexity of exp
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust import interval
from qrobust.interval import BoolArray, FloatArray, Interval, down, sum_slack, up

STEPS = 40  # of the interior point method
SHRINK = 0.2  # of the mean complementarity, at each
FARTHEST = 4.0  # that an exponent moves in one step
RIDGE, HUGE = 1e-16, 1e200
NEAR, LEAST_T = 1e-9, 1e-14  # of a coordinate to its end: taken as the end; kept at least
SPLITS = 10  # of one box, one after the other
MOST_PARTS = 16  # of all boxes together, for each box that is given
CLOSE = 2.0**-24  # of the confidence 1 / (1 + S): what is as near to the best vertex is not split
LEAST_EXPONENT = -600.0  # of a weight p: it stays a normal float
WEIGHT_TERMS = 64  # what a weight errs by, in terms of a sum


@dataclass(frozen=True, eq=False)
class Odds:
    """Shapes: base (m, rivals); slope (m, rivals, n)."""

    base: FloatArray
    slope: FloatArray

    def __len__(self) -> int:
        return len(self.base)

    def take(self, rows: npt.NDArray[Any]) -> Odds:
        """Return some of them, by number or by mask."""
        return Odds(self.base[rows], self.slope[rows])

    def exponents(self, t: FloatArray) -> FloatArray:
        """Return base + slope . t in floating point. Shapes: t (m, n); result (m, rivals)."""
        result: FloatArray = self.base + np.einsum("mrn,mn->mr", self.slope, t)
        return result

    def weighted(self, weights: FloatArray) -> FloatArray:
        """Return the sum over the rivals of weight times slope, in floating point. Shapes: weights (m, rivals); (m, n)."""
        result: FloatArray = np.einsum("mr,mrn->mn", weights, self.slope)
        return result

    @property
    def sizes(self) -> FloatArray:
        """Bound the absolute value of every partial sum of an exponent. Shape: (m, rivals)."""
        result: FloatArray = np.abs(self.base) + np.abs(self.slope).sum(axis=2)
        return result

    @property
    def terms(self) -> int:
        """How many terms all exponents have together, for the rounding error."""
        return int(self.slope.shape[1] * (self.slope.shape[2] + 3))


def least(odds: Odds) -> tuple[FloatArray, FloatArray]:
    """Return a t near the least sum, and a lower bound of that sum. Shapes: (m, n); (m,)."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        t = _vertex(odds)
        bound = _by_jensen(odds, t)
        apart = 1 / (1 + bound) - 1 / (1 + np.exp(odds.exponents(t)).sum(axis=1))
        rows = np.flatnonzero(~(apart <= CLOSE))
        if len(rows):
            part = odds.take(rows)
            inside = _descended(part)
            again = _by_jensen(part, inside)
            better = again > bound[rows]
            t[rows[better]], bound[rows[better]] = inside[better], again[better]
    return t, bound


def _by_jensen(odds: Odds, t: FloatArray) -> FloatArray:
    """Bound the least sum from below, with the weights that t gives. Shapes: t (m, n); result (m,)."""
    a = _logs(odds.exponents(t))
    weights = interval.exp(Interval.point(a))
    p = weights.lower
    value = (p * (odds.base - a)).sum(axis=1) + np.minimum(odds.weighted(p), 0.0).sum(axis=1)
    value -= sum_slack(odds.terms + WEIGHT_TERMS, (p * (odds.sizes + np.abs(a))).sum(axis=1))
    whole = interval.total(weights)
    exponent = down(np.where(value >= 0, value / whole.upper, value / whole.lower))
    exponent = np.where(np.isnan(exponent), -np.inf, exponent)
    bound = down(whole.lower * interval.exp(Interval.point(exponent)).lower)
    return np.maximum(np.where(np.isfinite(bound), bound, 0.0), 0.0)


def _logs(exponents: FloatArray) -> FloatArray:
    """Return exponents minus the log of the sum of their powers, in floating point, none below LEAST_EXPONENT."""
    top = exponents.max(axis=1, keepdims=True)
    a = exponents - top - np.log(np.exp(exponents - top).sum(axis=1, keepdims=True))
    return np.where(a > LEAST_EXPONENT, a, LEAST_EXPONENT)


def _vertex(odds: Odds) -> FloatArray:
    """Return the vertex that the gradient in the middle points to. Shape: (m, n)."""
    middle = np.full((len(odds), odds.slope.shape[2]), 0.5)
    t = (odds.weighted(_shares(odds.exponents(middle))) < 0).astype(np.float64)
    return (odds.weighted(_shares(odds.exponents(t))) < 0).astype(np.float64)


def _descended(odds: Odds) -> FloatArray:
    """Return a t near the least sum, in floating point, by a primal-dual interior point method. Shape: (m, n).

    The Hessian of the log of the sum has a rank below the number of rivals: Woodbury's identity solves for each step.
    """
    t = np.full((len(odds), odds.slope.shape[2]), 0.5)
    below, above = np.ones(t.shape), np.ones(t.shape)  # multipliers of t >= 0 and t <= 1
    for _ in range(STEPS):
        p = _shares(odds.exponents(t))
        p /= p.sum(axis=1, keepdims=True)
        gap = (below * t + above * (1 - t)).mean(axis=1, keepdims=True)
        aim = SHRINK * 0.5 * gap
        curved = below / t + above / (1 - t)
        wanted = aim / t - aim / (1 - t) - odds.weighted(p)
        step = _newton(odds, p, curved, wanted)
        moved = np.abs(np.einsum("mrn,mn->mr", odds.slope, step)).max(axis=1, keepdims=True)
        below_step = aim / t - below - below / t * step
        above_step = aim / (1 - t) - above + above / (1 - t) * step
        pairs = (t, step), (1 - t, -step), (below, below_step), (above, above_step)
        length = np.minimum(1.0, FARTHEST / np.maximum(moved, FARTHEST))
        for value, change in pairs:
            length = np.minimum(length, (np.where(change < 0, -0.95 * value / change, 1.0)).min(axis=1, keepdims=True))
        length = np.where(np.isfinite(length), length, 0.0)
        t, below, above = (np.maximum(v + length * np.nan_to_num(c), LEAST_T) for v, c in (pairs[0], *pairs[2:]))
        t = np.minimum(t, 1 - LEAST_T)
    return np.where(t < NEAR, 0.0, np.where(t > 1 - NEAR, 1.0, t))


def _newton(odds: Odds, p: FloatArray, curved: FloatArray, wanted: FloatArray) -> FloatArray:
    """Solve (diag(curved) + slope' (diag(p) - p p') slope) step = wanted. Shapes: curved, wanted, step (m, n)."""
    rivals, root = odds.base.shape[1], np.sqrt(p)
    half = root[:, :, None] * (np.eye(rivals) - root[:, :, None] * root[:, None, :])  # half @ half' = diag(p) - p p'
    scaled = odds.slope / curved[:, None, :]
    across = np.einsum("mrs,mrn->msn", half, scaled)
    system = across @ np.einsum("mrs,mrn->msn", half, odds.slope).transpose(0, 2, 1)
    system = np.nan_to_num(system, nan=0.0, posinf=HUGE, neginf=-HUGE)
    ridge = 1 + RIDGE * np.abs(system).sum(axis=(1, 2))  # so that rounding leaves nothing singular
    right = np.nan_to_num(np.einsum("msn,mn->ms", across, wanted))
    solved = np.linalg.solve(system + ridge[:, None, None] * np.eye(rivals), right[:, :, None])
    inner = (half @ solved)[:, :, 0]
    return (wanted - odds.weighted(inner)) / curved


def _shares(exponents: FloatArray) -> FloatArray:
    """Return the powers divided by the greatest, in floating point."""
    shares: FloatArray = np.exp(exponents - exponents.max(axis=1, keepdims=True))
    return np.where(np.isnan(shares), 1.0, shares)


@dataclass(frozen=True, eq=False)
class _Parts:
    """Faces of unit boxes: which box each belongs to, and its ends, 0 or 1. Shapes: owner (p,); low, high (p, n)."""

    owner: npt.NDArray[np.intp]
    low: FloatArray
    high: FloatArray


def greatest(odds: Odds) -> tuple[FloatArray, FloatArray]:
    """Return a vertex near the greatest sum, and an upper bound of that sum. Shapes: (m, n); (m,)."""
    shape = (len(odds), odds.slope.shape[2])
    parts = _Parts(np.arange(len(odds)), np.zeros(shape), np.ones(shape))
    upper, best, vertex = np.zeros(len(odds)), np.zeros(len(odds)), np.zeros(shape)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for count in range(SPLITS + 1):
            faces = odds.take(parts.owner)
            parts = _settled(faces, parts)
            bound, row = _under_chords(faces, parts)
            t = np.where(row >= 0, parts.high, parts.low)
            value = np.exp(faces.exponents(t)).sum(axis=1)
            np.maximum.at(best, parts.owner, value)
            new = value >= best[parts.owner]
            vertex[parts.owner[new]] = t[new]
            free = parts.low < parts.high
            open_ = (1 / (1 + best[parts.owner]) - 1 / (1 + bound) > CLOSE) & free.any(axis=1)
            if count == SPLITS or 2 * open_.sum() > MOST_PARTS * len(odds):
                open_[:] = False
            np.maximum.at(upper, parts.owner[~open_], bound[~open_])
            if not open_.any():
                break
            parts = _split(parts, np.abs(row) * free, open_)
    return vertex, upper


def _split(parts: _Parts, weight: FloatArray, open_: BoolArray) -> _Parts:
    """Take both ends of each open part's weightiest coordinate; a free one of weight 0 goes last."""
    owner, low, high = parts.owner[open_], parts.low[open_], parts.high[open_]
    axis = np.where(low < high, weight[open_], -1.0).argmax(axis=1)
    rows = np.arange(len(axis))
    first_high, second_low = high.copy(), low.copy()
    first_high[rows, axis], second_low[rows, axis] = 0.0, 1.0
    return _Parts(np.tile(owner, 2), np.concatenate([low, second_low]), np.concatenate([first_high, high]))


def _ranges(odds: Odds, parts: _Parts) -> Interval:
    """Enclose the exponents over faces. Shape: (p, rivals)."""
    gains, losses = np.maximum(odds.slope, 0.0), np.minimum(odds.slope, 0.0)
    slack = sum_slack(2 * odds.slope.shape[2] + 2, odds.sizes)
    ends = [
        odds.base + np.einsum("mrn,mn->mr", gains, one) + np.einsum("mrn,mn->mr", losses, other)
        for one, other in ((parts.low, parts.high), (parts.high, parts.low))
    ]
    lower, upper = down(ends[0] - slack), up(ends[1] + slack)
    return Interval(np.where(np.isnan(lower), -np.inf, lower), np.where(np.isnan(upper), np.inf, upper))


def _settled(odds: Odds, parts: _Parts) -> _Parts:
    """Take the end of each coordinate along which the sum surely rises or falls: its derivative has one sign."""
    g = _ranges(odds, parts)
    top = np.where(np.isfinite(g.upper), g.upper, 0.0).max(axis=1, keepdims=True)
    least_power = interval.exp(Interval.point(down(g.lower - top))).lower
    greatest_power = interval.exp(Interval.point(up(g.upper - top))).upper
    gains, losses = Odds(odds.base, np.maximum(odds.slope, 0.0)), Odds(odds.base, np.minimum(odds.slope, 0.0))
    above, below = gains.weighted(greatest_power), losses.weighted(greatest_power)
    slack = sum_slack(2 * odds.base.shape[1], above - below)
    rises = gains.weighted(least_power) + below - slack > 0
    falls = above + losses.weighted(least_power) + slack < 0
    free = parts.low < parts.high
    return _Parts(parts.owner, np.where(free & rises, 1.0, parts.low), np.where(free & falls & ~rises, 0.0, parts.high))


def _under_chords(odds: Odds, parts: _Parts) -> tuple[FloatArray, FloatArray]:
    """Bound the sums over faces from above, and return the row that the chords make of the slopes. Shapes: (p,); (p, n)."""
    g = _ranges(odds, parts)
    powers = [interval.exp(Interval.point(end)).upper for end in (g.lower, g.upper)]
    steep = np.where(g.upper > g.lower, (powers[1] - powers[0]) / (g.upper - g.lower), powers[1])
    steep = np.where(np.isfinite(steep), np.maximum(steep, 0.0), 0.0)
    # exp(g) - steep g is convex: over the range it is at most what it is at one of the ends.
    over = np.maximum(*(up(power - down(steep * end)) for power, end in zip(powers, (g.lower, g.upper), strict=True)))
    row = odds.weighted(steep)
    value = (steep * odds.base + over).sum(axis=1) + np.maximum(row * parts.low, row * parts.high).sum(axis=1)
    value += sum_slack(odds.terms, (steep * odds.sizes + np.abs(over)).sum(axis=1))
    plain = interval.total(Interval(np.zeros(g.shape), powers[1])).upper
    bound = np.fmin(up(value), plain)
    return np.where(np.isnan(bound), np.inf, bound), row
