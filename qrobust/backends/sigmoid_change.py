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
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

import numpy as np

from qrobust import interval
from qrobust.answers import Assurance, Counterexample, EstimateClaim
from qrobust.backends.hunt import Hunt
from qrobust.backends.mixed_integer import Model
from qrobust.backends.twins import Numbers, Twins
from qrobust.bounds.objectives import LargestChange, Space
from qrobust.check import witness_bounds
from qrobust.errors import UnsoundAnswerError
from qrobust.interval import FloatArray, Interval
from qrobust.network import FloatArithmetic
from qrobust.queries import EpsilonEstimate

RELATIVE = 0.005  # (upper - lower) / upper at which the search ends
LEAST = 1e-8  # or this difference
TANGENTS = 64
AHEAD = 0.999  # of the next bound: what a piece has to reach before that one has its turn
WORKERS = 2  # HiGHS leaves the interpreter to others while it works
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
        return builder.model(np.concatenate(parts), 1.0, self._idle(pair_of_networks))

    def _idle(self, pair_of_networks: Twins) -> Numbers:
        """Return the binaries that are not needed where one logit is to be great and the other small.

        A neuron without its own may be above max(z, 0) where that makes the change smaller, so that no piece's maximum comes to
        more than the greatest change of all
        """
        stored, box = pair_of_networks.query.network.layers[-1].weight, pair_of_networks.query.parameters.layers[-1]
        reached = box.weight.interval[0]
        return pair_of_networks.idle(Interval.point(self.sign * stored), reached if self.sign > 0 else -reached)

    def excess(self) -> float:
        """By how much the lines may be above the sigmoid where they are a chord, in floating point."""
        rising, falling = (self.perturbed, self.stored) if self.sign > 0 else (self.stored, self.perturbed)
        found = 0.0
        for lower, upper in (rising, (-falling[1], -falling[0])):
            if lower < upper <= 0:
                t = np.linspace(max(lower, upper - 2 * FLAT), upper, TANGENTS)
                slopes, offsets = lines_above(lower, upper)
                found = max(found, float((slopes * t + offsets - FloatArithmetic().sigmoid(t)).max()))
        return found


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


@dataclass(frozen=True, order=True)
class Part:
    """A piece in the heap: minus its bound, a number that no other has, and its hunt once it is begun."""

    key: float
    number: int
    piece: Piece = field(compare=False)
    hunt: Hunt | None = field(default=None, compare=False)


class Search:
    """Pieces by their bounds, best first, and the best witness of all."""

    def __init__(self, query: EpsilonEstimate, pair_of_networks: Twins, deadline: float) -> None:
        self.query, self.twins, self.deadline = query, pair_of_networks, deadline
        free = max(len(query.network.hidden_layers) - 1, 0)
        self.summit = LargestChange(Space(query.network, query.parameters, query.domain, free_layers=free))
        self.best = 0.0
        self.witness: Counterexample | None = None

    def close(self) -> EstimateClaim:
        """Bound the greatest change until the ends are near each other, or time is over.

        Method    WORKERS threads, each on the piece of the greatest bound that is left, until that is below the next one's
        """
        moved = self.twins.logits.difference
        most = 0.25 * max(-float(moved.lower[0, 0]), float(moved.upper[0, 0]), LEAST)  # no slope is above 1/4
        heap = [Part(-min(piece.upper, most), number, piece) for number, piece in enumerate(pieces(self.twins))]
        heapq.heapify(heap)
        count, reason, running = len(heap), "", set[Future[list[Part]]]()
        with ThreadPoolExecutor(WORKERS) as pool:
            while True:
                while heap and len(running) < WORKERS and -heap[0].key > self.enough() and not reason:
                    part = heapq.heappop(heap)
                    running.add(pool.submit(self._advanced, part, -heap[0].key if heap else 0.0))
                if not running:
                    break
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for part in (part for future in done for part in future.result()):
                    heapq.heappush(heap, replace(part, number=(count := count + 1)))
                reason = "the time limit was reached" if time.monotonic() > self.deadline else ""
        upper = max(self.best, -heap[0].key if heap else 0.0)
        return EstimateClaim(min(upper, 1.0), self.witness, Assurance.ROUNDED, reason=reason if upper > self.enough() else "")

    def _advanced(self, part: Part, following: float) -> list[Part]:
        """Begin a part with its relaxation, go on until its bound is at most the following one's, or halve it: where that is
        proved in vain, or its chord is too far above the sigmoid.
        """
        piece, hunt = part.piece, part.hunt
        if hunt is None:
            problem = self.twins, piece.model(self.twins), np.array([piece.sign])
            hunt = Hunt(problem, self._attained, self.deadline, self.summit)
        elif hunt.tree.is_done or piece.excess() > RELATIVE / 2 * self.best:
            return [Part(max(part.key, -half.upper), 0, half) for half in piece.halves()]
        else:
            hunt.prove(lambda: max(AHEAD * following, self.enough()))
        return [Part(max(part.key, -hunt.tree.upper), 0, piece, hunt)]

    def enough(self) -> float:
        """The bound at which a piece may stay."""
        return max(self.best / (1 - RELATIVE), self.best + LEAST)

    def _attained(self, example: Counterexample, _: float) -> float | None:
        try:
            change = witness_bounds(self.query, example)[0]
        except UnsoundAnswerError:  # rounding took it out of a polytope: it is sought again further inside
            return None
        if change > self.best:
            self.best, self.witness = change, example
        return change
