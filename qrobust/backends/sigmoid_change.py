"""The greatest change of one sigmoid's confidence over a domain, by mixed-integer programs over pieces of the two logits.

Accepts   what `twins` accepts, over boxes and polytopes; one sigmoid at the output
Gives     a certified upper end and a witness
Method    s(z') - s(z), or its opposite, is bounded over a piece [a, b] x [a', b'] of (z, z') in which neither changes its sign:
          where the sigmoid is concave by its tangents, where it is convex by its chord, as rows of the model; so is -s, for
          -s(z) = s(-z) - 1. The piece of the greatest bound is solved, or, if it was, halved in the logit that rises more.
          Where z < 0 < z' both are bounded by tangents, so that large changes need hardly more than one piece
Property  sound, whatever HiGHS answers, for the lines are above the sigmoid with their rounding. Complete but for time
Source    McCormick 1976, Mathematical Programming 10, for concave envelopes; the reduction is ours
"""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass, replace

import numpy as np

from qrobust import interval
from qrobust.answers import Assurance, Counterexample, EstimateClaim
from qrobust.backends.hunt import Hunt
from qrobust.backends.mixed_integer import Model
from qrobust.backends.twins import Twins
from qrobust.check import witness_bounds
from qrobust.errors import UnsoundAnswerError
from qrobust.interval import FloatArray, Interval
from qrobust.queries import EpsilonEstimate

RELATIVE = 0.005  # (upper - lower) / upper at which the search ends
LEAST = 1e-8  # or this difference
TANGENTS = 48
FLAT = 12.0  # from a piece's end nearer to 0; beyond it the sigmoid changes by less than 1e-5, and tangents are not needed

Ends = tuple[float, float]


@dataclass(frozen=True)
class Piece:
    """Ends of the stored and of the perturbed logit, and whether the confidence rises (1) or falls (-1)."""

    sign: float
    stored: Ends
    perturbed: Ends

    def halves(self) -> list[Piece]:
        """Halve the logit whose sigmoid rises more, by what it rises."""
        if _rise(self.perturbed) > _rise(self.stored):
            return [replace(self, perturbed=half) for half in _halved(self.perturbed)]
        return [replace(self, stored=half) for half in _halved(self.stored)]

    @property
    def upper(self) -> float:
        """The greatest change in the piece, if the logits were independent."""
        (least, most), (low, high) = (_sigmoids(ends) for ends in (self.stored, self.perturbed))
        change = high - least if self.sign > 0 else most - low
        return float(change.upper[0])

    def model(self, pair_of_networks: Twins) -> Model:
        """Return the model whose maximum is at least the greatest change in the piece."""
        builder, logits = pair_of_networks.builder.copy(), (pair_of_networks.stored, pair_of_networks.perturbed)
        parts = []
        for numbers, ends, sign in zip(logits, (self.stored, self.perturbed), (-self.sign, self.sign), strict=True):
            builder.require([(numbers, 1.0)], *ends)
            slopes, offsets = lines_above(*ends) if sign > 0 else _mirrored(*ends)
            value = builder.add(Interval(np.array([min(sign, 0.0)]), np.array([max(sign, 0.0)])))
            rows = len(slopes)
            builder.require([(np.repeat(value, rows), 1.0), (np.repeat(numbers, rows), -slopes)], -np.inf, offsets)
            parts.append(value)
        return builder.model(np.concatenate(parts), 1.0)


def _sigmoids(ends: Ends) -> tuple[Interval, Interval]:
    enclosed = interval.sigmoid(Interval.point(np.array(ends)))
    return enclosed[:1], enclosed[1:]


def _rise(ends: Ends) -> float:
    low, high = _sigmoids(ends)
    return float(high.upper[0] - low.lower[0])


def _halved(ends: Ends) -> list[Ends]:
    low, high = (float(end.middle[0]) for end in _sigmoids(ends))
    half = 0.5 * low + 0.5 * high
    middle = math.log(half / (1 - half)) if 0 < half < 1 else ends[0]
    if not ends[0] < middle < ends[1]:
        middle = 0.5 * ends[0] + 0.5 * ends[1]
    return [(ends[0], middle), (middle, ends[1])]


def lines_above(lower: float, upper: float) -> tuple[FloatArray, FloatArray]:
    """Return slopes and offsets of lines that are at least sigmoid(t) for t in [lower, upper], which has not 0 inside.

    Rounding  a line's slope is a float a near the tangent's own; its offset is at least s(p) - a p + (s'(p) - a) (t - p)
    """
    if upper <= 0 and lower < 0:
        ends, values = Interval.point(np.array([lower, upper])), interval.sigmoid(Interval.point(np.array([lower, upper])))
        slope = Interval.point(np.array([np.diff(values.middle)[0] / (upper - lower) if lower < upper else 0.0]))
        return slope.lower, np.array([(values - slope * ends).upper.max()])
    points = np.unique(np.append(np.linspace(lower, min(upper, lower + FLAT), TANGENTS), upper))
    values = interval.sigmoid(Interval.point(points))
    own = values * (Interval.point(np.ones(len(points))) - values)
    slopes = Interval.point(own.middle)
    away = Interval(np.full(len(points), lower), np.full(len(points), upper)) - Interval.point(points)
    return slopes.lower, (values - slopes * Interval.point(points) + (own - slopes) * away).upper


def _mirrored(lower: float, upper: float) -> tuple[FloatArray, FloatArray]:
    """Return lines at least -sigmoid(t)."""
    slopes, offsets = lines_above(-upper, -lower)
    return -slopes, (Interval.point(offsets) - Interval.point(np.ones(len(offsets)))).upper


def pieces(pair_of_networks: Twins) -> list[Piece]:
    """Return pieces that hold all pairs of logits with a change above 0."""
    logits = pair_of_networks.logits
    stored, perturbed = (
        [ends for ends in ((low, min(high, 0.0)), (max(low, 0.0), high)) if ends[0] <= ends[1]]
        for low, high in ((float(z.lower[0, 0]), float(z.upper[0, 0])) for z in (logits.stored, logits.perturbed))
    )
    found = [Piece(sign, a, b) for sign in (1.0, -1.0) for a in stored for b in perturbed]
    return [piece for piece in found if piece.upper > 0]


class Search:
    """Pieces by their bounds, best first, and the best witness of all."""

    def __init__(self, query: EpsilonEstimate, pair_of_networks: Twins, deadline: float) -> None:
        self.query, self.twins, self.deadline = query, pair_of_networks, deadline
        self.best = 0.0
        self.witness: Counterexample | None = None
        self.reason = ""

    def close(self) -> EstimateClaim:
        """Bound the greatest change until the ends are near each other, or time is over."""
        moved = self.twins.logits.difference
        most = 0.25 * max(-float(moved.lower[0, 0]), float(moved.upper[0, 0]), LEAST)  # no slope is above 1/4
        heap = [(-min(piece.upper, most), number, False, piece) for number, piece in enumerate(pieces(self.twins))]
        heapq.heapify(heap)
        count, upper = len(heap), 0.0
        while heap and -heap[0][0] > self.enough():
            if time.monotonic() > self.deadline:
                self.reason = self.reason or "the time limit was reached"
                break
            key, number, solved, piece = heapq.heappop(heap)
            if not solved:
                heapq.heappush(heap, (max(key, -self._solved(piece)), number, True, piece))
                continue
            for half in piece.halves():
                count += 1
                heapq.heappush(heap, (max(key, -half.upper), count, False, half))
        upper = max(self.best, -heap[0][0] if heap else 0.0)
        return EstimateClaim(min(upper, 1.0), self.witness, Assurance.ROUNDED, reason=self.reason)

    def enough(self) -> float:
        """The bound at which a piece may stay."""
        return max(self.best / (1 - RELATIVE), self.best + LEAST)

    def _solved(self, piece: Piece) -> float:
        """Bound one piece, in half of the time that is left."""
        now = time.monotonic()
        directions = np.array([piece.sign])
        hunt = Hunt((self.twins, piece.model(self.twins), directions), self._attained, now + (self.deadline - now) / 2)
        hunt.best = self.best
        return hunt.prove(self.enough).upper

    def _attained(self, example: Counterexample, _: float) -> float | None:
        try:
            change = witness_bounds(self.query, example)[0]
        except UnsoundAnswerError:  # rounding took it out of a polytope: it is sought again further inside
            return None
        if change > self.best:
            self.best, self.witness = change, example
        return change
