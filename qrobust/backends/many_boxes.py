"""The greatest change of a confidence, or of a raw output, over many boxes of inputs at once, all bisected together.

Accepts   dense networks; any parameter box; batches of boxes of inputs
Gives     enclosures of the greatest change over each box: the lower end at an input in it, the upper end over all of it
Method    The parts of all boxes are bounded in batches by differential zonotopes (`twin_confidences`, `zonotopes`). A part is
          halved until its bound is near what its box is known to reach, or the box has had its share of parts. At the middles
          of the foremost parts the change is bounded from below by parameters that attack it, evaluated in intervals
Property  sound; not complete: a box that needs more than its share keeps a gap
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qrobust.backends.many_changes import attained_changes, logit_changes_at
from qrobust.bounds import local, softmax_change
from qrobust.bounds.twin_confidences import TwinConfidences
from qrobust.bounds.zonotopes import TwinZonotopes
from qrobust.domains import ParameterBox
from qrobust.interval import TINY, Ends, FloatArray, Interval
from qrobust.memory import Part, at_a_time
from qrobust.network import Network
from qrobust.search import Budget, halved_along

NEAR = 0.04  # of the upper end: the gap at which a box is done
LEAST = 5e-7  # and the gap below which no box is split further
SHARE = 2**10  # parts that one box may be split into
TOGETHER = 256  # boxes, at most
TRIED = 8  # parts of a box whose middles are tried at each halving, those of the greatest bounds
MOST_CLIMBED = 32  # inputs whose ends are tried one after the other
WIDTH_COUNTS = 0.05  # of the choice of an input to halve along
ARRAYS = 8  # float64 arrays over inputs that one part takes while others are bounded
DEFAULT = Budget()
IntArray = npt.NDArray[np.intp]


class _Measure(Protocol):
    """What is bounded."""

    def upper(self, parts: Interval) -> tuple[FloatArray, IntArray]:
        """Return certified bounds of parts, and the input to halve each along. Shapes: parts (n, inputs); both (n,)."""

    def reached(self, points: Interval) -> FloatArray:
        """Return a change that surely is made at each point, wherever it lies in its interval. Shapes: (n, inputs), (n,)."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of inputs, whose ends may be known but for rounding: `outer` holds each, `inner` has the ends on its inner side.

    Shapes    outer and inner (n, inputs)
    """

    outer: Interval
    inner: Ends

    @classmethod
    def exact(cls, boxes: Interval) -> Boxes:
        """Return boxes whose ends are the floats that they are."""
        return cls(boxes, Ends(boxes.lower, boxes.upper))

    def __len__(self) -> int:
        return len(self.outer)

    def __getitem__(self, index: slice | IntArray) -> Boxes:
        return Boxes(self.outer[index], Ends(self.inner.least[index], self.inner.greatest[index]))

    def within(self, points: FloatArray) -> Interval:
        """Return a point surely in each box near a given one, or where a side is as narrow as rounding, all of that side."""
        wide = self.inner.least > self.inner.greatest
        near = np.clip(points, self.inner.least, np.maximum(self.inner.least, self.inner.greatest))
        return Interval(np.where(wide, self.outer.lower, near), np.where(wide, self.outer.upper, near))


def changes_over(
    network: Network, parameters: ParameterBox, boxes: Boxes, budget: Budget = DEFAULT, deadline: float = np.inf
) -> Interval:
    """Enclose the greatest change of any confidence over each box. Shapes: boxes (n, inputs); result (n,).

    Where the deadline (of `time.monotonic`) passes, the ends are what is known then
    """
    measure = _Confidences(network, TwinConfidences(network, parameters), parameters, budget)
    found = _together(measure, network, boxes, budget, deadline)
    return Interval(np.minimum(found.lower, 1.0), np.minimum(found.upper, 1.0))


def logit_changes_over(
    network: Network, parameters: ParameterBox, boxes: Boxes, budget: Budget = DEFAULT, deadline: float = np.inf
) -> Interval:
    """Enclose the greatest change of any raw output over each box; see `changes_over`."""
    measure = _Logits(network, TwinZonotopes(network, parameters), parameters, budget)
    return _together(measure, network, boxes, budget, deadline)


def _together(measure: _Measure, network: Network, boxes: Boxes, budget: Budget, deadline: float) -> Interval:
    each = 8 * ARRAYS * network.inputs * SHARE
    step = at_a_time(each, budget.memory, Part.INPUTS, "one box of inputs", TOGETHER)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        parts = [_bisected(measure, boxes[start : start + step], deadline) for start in range(0, len(boxes), step)]
    return Interval(np.concatenate([p.lower for p in parts]), np.concatenate([p.upper for p in parts]))


def _bisected(measure: _Measure, whole: Boxes, deadline: float) -> Interval:
    """Halve the parts of all boxes until each box is done."""
    boxes = whole.outer
    if time.monotonic() > deadline:
        return Interval(np.zeros(len(boxes)), np.full(len(boxes), np.inf))
    count = len(boxes)
    upper, spent = np.zeros(count), np.zeros(count, dtype=np.int64)
    points = boxes.middle.copy()
    best = measure.reached(whole.within(points))
    _climb(measure, whole, best, points)
    parts, own, bound = boxes, np.arange(count), np.full(count, np.inf)
    while len(own):
        found, axis = measure.upper(parts)
        bound = np.minimum(bound, np.where(np.isnan(found), np.inf, found))
        tried = _foremost(bound, own)
        _improve(measure, parts[tried].middle, whole, own[tried], best, points)
        spent += np.bincount(own, minlength=count)
        near = bound <= np.maximum(best / (1 - NEAR), best + LEAST)[own]
        middle, rows = parts.middle, np.arange(len(own))
        splits = ((parts.lower < middle) & (middle < parts.upper))[rows, axis]
        done = near | ~splits | (spent + 2 * np.bincount(own[~near], minlength=count) > SHARE)[own]
        done |= time.monotonic() > deadline
        np.maximum.at(upper, own[done], bound[done])
        left = np.flatnonzero(~done)
        halves = halved_along(parts[left], axis[left])
        assert halves is not None
        parts, own, bound = halves, np.tile(own[left], 2), np.tile(bound[left], 2)
    lower = measure.reached(whole.within(points))
    return Interval(lower, upper)


def _climb(measure: _Measure, whole: Boxes, best: FloatArray, points: FloatArray) -> None:
    """Take better points on the sides of the boxes, input by input, where there are few."""
    free = np.flatnonzero((whole.outer.width > 0).any(axis=0))
    for axis in free if len(free) <= MOST_CLIMBED else ():
        for end in (whole.outer.lower, whole.outer.upper):
            tried = points.copy()
            tried[:, axis] = end[:, axis]
            values = measure.reached(whole.within(tried))
            better = values > best
            best[better], points[better] = values[better], tried[better]


def _foremost(bound: FloatArray, own: IntArray) -> IntArray:
    """Return the TRIED parts of each box that have the greatest bounds."""
    order = np.lexsort((-bound, own))
    starts = np.flatnonzero(np.diff(own[order], prepend=-1))
    places = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return np.asarray(order[places < TRIED], dtype=np.intp)


def _improve(measure: _Measure, tried: FloatArray, whole: Boxes, own: IntArray, best: FloatArray, points: FloatArray) -> None:
    """Take new best points of boxes among some that are tried, each of which belongs to one box."""
    values = measure.reached(whole[own].within(tried))
    order = np.lexsort((values, own))
    last = np.flatnonzero(np.diff(own[order], append=-1))  # of each box the part of greatest value
    chosen = order[last]
    chosen = chosen[values[chosen] > best[own[chosen]]]
    best[own[chosen]], points[own[chosen]] = values[chosen], tried[chosen]


@dataclass(frozen=True, eq=False)
class _Confidences:
    """The greatest change of any confidence."""

    network: Network
    bounds: TwinConfidences
    parameters: ParameterBox
    budget: Budget

    def upper(self, parts: Interval) -> tuple[FloatArray, IntArray]:
        bound, influence = self.bounds.changes(parts)
        return bound, _axes(parts, influence)

    def reached(self, points: Interval) -> FloatArray:
        network, parameters, memory = self.network, self.parameters, self.budget.memory
        if local.why_not(network, confidences=True) is None:
            return local.greatest_changes(network, parameters, points, memory).lower
        if softmax_change.why_not(network) is None:
            return softmax_change.greatest_changes(network, parameters, points, memory).lower
        return attained_changes(network, parameters, points, self.budget)


@dataclass(frozen=True, eq=False)
class _Logits:
    """The greatest change of any raw output."""

    network: Network
    zonotopes: TwinZonotopes
    parameters: ParameterBox
    budget: Budget

    def upper(self, parts: Interval) -> tuple[FloatArray, IntArray]:
        found = self.zonotopes.changes(parts)
        return found.greatest, _axes(parts, found.influence)

    def reached(self, points: Interval) -> FloatArray:
        return logit_changes_at(self.network, self.parameters, points, self.budget).lower


def _axes(parts: Interval, influence: FloatArray) -> IntArray:
    """Choose the input of most influence among those that have a float between their ends; a little counts how wide each is."""
    middle = parts.middle
    splittable = (parts.lower < middle) & (middle < parts.upper)
    shares = [values / np.maximum(values.sum(axis=1, keepdims=True), TINY) for values in (influence, parts.width)]
    score = np.where(np.isfinite(shares[0]), shares[0], 1.0) + WIDTH_COUNTS * shares[1]
    return np.asarray(np.where(splittable, score, -1.0).argmax(axis=1), dtype=np.intp)
