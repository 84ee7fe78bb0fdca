"""What branch and bound maximises over boxes of inputs and neuron positions: the change of a confidence, the gap of a changed
label, each with certified upper bounds and float forecasts.

Accepts   dense layers; linear, ReLU, sigmoid, tanh; points, boxes and polytopes
Gives     `search.Problem`s, and exact counterexamples rebuilt from their points
Method    the tighter of differential intervals (`differential`) and, for one row, centred forms (`centred`)
Property  sound; the bounds converge to the objective as the boxes shrink
Source    THEORY.md, sections 3 and 4
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from qrobust import interval
from qrobust.answers import Counterexample
from qrobust.bounds.centred import CentredRow, greatest_row, stored_row
from qrobust.bounds.corners import corner
from qrobust.bounds.differential import Pair, PairBounds, chord_slopes, row_forecast, row_pair
from qrobust.domains import Domain, ParameterBox
from qrobust.interval import BoolArray, FloatArray, Interval, down, up
from qrobust.leads import Leads
from qrobust.network import Activation, FloatArithmetic, Network, Output, confidence


class Space:
    """The box over (x, t) in which one query is searched, with what its problems share."""

    def __init__(self, network: Network, parameters: ParameterBox, domain: Domain, *, free_layers: int) -> None:
        self.network, self.parameters, self.domain = network, parameters, domain
        self.bounds = PairBounds(network, parameters, free_layers=free_layers)
        free = self.bounds.variables - network.inputs
        x = domain.box
        self.root = Interval(
            np.concatenate([x.lower, -np.ones(free)]),
            np.concatenate([x.upper, np.ones(free)]),
        )

    @cached_property
    def scale(self) -> FloatArray:
        """The mean change of the perturbed logits along each variable, over its range, from random points."""
        rng = np.random.default_rng(0)
        points = self.root.lower + rng.random((64, self.root.shape[0])) * self.root.width
        totals = []
        for axis in range(self.root.shape[0]):
            low, high = points.copy(), points.copy()
            low[:, axis], high[:, axis] = self.root.lower[axis], self.root.upper[axis]
            totals.append(np.abs(self._forecast(high) - self._forecast(low)).max(axis=1).mean())
        width = np.where(self.root.width > 0, self.root.width, 1.0)
        spread = np.array(totals)
        scale: FloatArray = np.maximum(spread, 1e-3 * spread.max(initial=1e-300)) / width
        return scale

    def _forecast(self, points: FloatArray) -> FloatArray:
        """The greatest perturbed logits at points, in floating point. Shape: (batch, logits)."""
        _, low, high = self.bounds.forecast(points)
        return row_forecast(self.bounds.layers[-1].box, low, high)[1]

    def logits(self, boxes: Interval) -> Pair:
        """Enclose all logits."""
        last = self.bounds.layers[-1]
        return row_pair(last.stored, last.box, last.deviation, self.bounds.hidden(boxes))

    def outside(self, boxes: Interval) -> BoolArray:
        """Whether a box lies wholly outside the polytope's inequalities. Shape: (batch,)."""
        matrix, limit = self.domain.inequalities
        if not limit.size:
            return np.zeros(len(boxes), dtype=bool)
        x = boxes[:, : self.network.inputs]
        left = interval.affine(Interval.point(matrix), x, Interval.point(np.zeros(len(limit))))
        return np.asarray((left.lower > limit).any(axis=1))

    def inside(self, points: FloatArray) -> BoolArray:
        """Whether points satisfy the inequalities in floating point. Shape: (batch,)."""
        matrix, limit = self.domain.inequalities
        return np.asarray((points[:, : self.network.inputs] @ matrix.T <= limit).all(axis=1))

    def counterexample(self, point: FloatArray, directions: FloatArray) -> Counterexample:
        """Rebuild exact parameters from a point (x, t)."""
        x = [Fraction(value) for value in point[: self.network.inputs].tolist()]
        positions, place = [], self.network.inputs
        for layer in self.network.layers[: self.bounds.free_layers]:
            positions.append(point[place : place + layer.outputs])
            place += layer.outputs
        return corner(self.network, self.parameters, x, directions, positions)


@dataclass(frozen=True, eq=False)
class LargestChange:
    """Maximise the change of any confidence."""

    space: Space

    @property
    def root(self) -> Interval:
        return self.space.root

    @property
    def scale(self) -> FloatArray:
        return self.space.scale

    def upper(self, boxes: Interval) -> FloatArray:
        rise, fall = self._changes(boxes)
        if self.space.network.output is Output.SIGMOID:
            rise[:, 0] = np.minimum(rise[:, 0], self._centred_rise(boxes, 1.0))
            fall[:, 0] = np.minimum(fall[:, 0], self._centred_rise(boxes, -1.0))
        upper = np.maximum(rise, fall).max(axis=1)
        return np.where(self.space.outside(boxes), -np.inf, upper)

    def _centred_rise(self, boxes: Interval, sign: float) -> FloatArray:
        """Upper bound of how far the confidence of class 1 (sign 1) or 0 (sign -1) rises, by a centred form."""
        bounds, last = self.space.bounds, self.space.bounds.layers[-1]
        stored, box = (rows if sign > 0 else (-rows[0], -rows[1]) for rows in (last.stored, last.box))
        after = greatest_row(bounds, boxes, box)
        if after is None:
            return np.full(len(boxes), np.inf)
        before = stored_row(bounds, boxes, stored)
        steep_after, steep_before = (chord_slopes(Activation.SIGMOID, row.over(boxes))[:, None] for row in (after, before))
        rise = CentredRow(
            interval.sigmoid(after.centre) - interval.sigmoid(before.centre),
            steep_after * after.slope - steep_before * before.slope,
        )
        by_shift = greatest_rise_of(interval.sigmoid(before.over(boxes)), (after - before).over(boxes).upper)
        return np.minimum(rise.over(boxes).upper, by_shift)

    def value(self, points: FloatArray) -> FloatArray:
        rise, fall = self._forecast(points)
        value = np.maximum(rise, fall).max(axis=1)
        return np.where(self.space.inside(points), value, -np.inf)

    def _forecast(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """How far each confidence can rise and fall at points, in floating point. Shapes: (batch, confidences)."""
        network, last = self.space.network, self.space.bounds.layers[-1]
        stored, low, high = self.space.bounds.forecast(points)
        least, greatest = row_forecast(last.box, low, high)
        arithmetic = FloatArithmetic()
        before = confidence(network, stored @ network.layers[-1].weight.T + network.layers[-1].bias, arithmetic)
        if network.output is Output.SIGMOID:
            return arithmetic.sigmoid(greatest) - before, before - arithmetic.sigmoid(least)
        own = np.eye(network.class_count, dtype=bool)
        top, bottom = (
            np.einsum("bcc->bc", arithmetic.softmax(np.where(own, a[:, None, :], b[:, None, :])))
            for a, b in ((greatest, least), (least, greatest))
        )
        return top - before, before - bottom

    def _changes(self, boxes: Interval) -> tuple[FloatArray, FloatArray]:
        """Upper bounds of how far each confidence rises and falls. Shapes: (batch, confidences)."""
        logits = self.space.logits(boxes)
        if self.space.network.output is Output.SIGMOID:
            before, after = interval.sigmoid(logits.stored), interval.sigmoid(logits.perturbed)
            shift = logits.difference
        else:
            before, after = interval.softmax(logits.stored), interval.softmax(logits.perturbed)
            shift = _softmax_shift(logits.difference)
        apart = after - before
        rise = np.minimum(apart.upper, greatest_rise_of(before, shift.upper))
        one = Interval.point(np.ones(before.shape))
        fall = np.minimum(-apart.lower, greatest_rise_of(one - before, -shift.lower))
        return rise, fall

    def witness(self, point: FloatArray) -> Counterexample:
        """Rebuild the parameters that attain the change at a point, in the better direction of the better class."""
        rise, fall = self._forecast(point[None])
        index = int(np.argmax(np.concatenate([rise[0], fall[0]])))
        sign = 1.0 if index < rise.shape[1] else -1.0
        directions = -np.ones(rise.shape[1])
        directions[index % rise.shape[1]] = 1.0
        return self.space.counterexample(point, sign * directions)


def _softmax_shift(difference: Interval) -> Interval:
    """Enclose the change of log(f_c / (1 - f_c)): own difference minus a mean of the rivals' differences."""
    classes = difference.shape[1]
    rivals = np.array([[j for j in range(classes) if j != c] for c in range(classes)])
    least, greatest = difference.lower[:, rivals].min(axis=2), difference.upper[:, rivals].max(axis=2)
    return difference - Interval(least, greatest)


def greatest_rise_of(confidence: Interval, shift: FloatArray) -> FloatArray:
    """Upper bound of f' - f where f lies in `confidence` and its log-odds rise by at most `shift`.

    With e = exp(shift) the rise is f (1 - f) (e - 1) / (1 + f (e - 1)), unimodal in f with its maximum tanh(shift / 4) at
    f = 1 / (1 + sqrt(e)); so the maximum over an interval is there if the interval may contain it, else at an end.
    """
    positive = np.maximum(shift, 0.0)
    half = Interval.point(0.5 * positive)
    peak = interval.sigmoid(-half)
    summit = interval.tanh(Interval.point(up(0.25 * positive))).upper  # a quarter of the least floats is none
    at_ends = np.maximum(_rise_at(confidence.lower, positive), _rise_at(confidence.upper, positive))
    contains_peak = (confidence.lower <= peak.upper) & (confidence.upper >= peak.lower)
    return np.where(shift <= 0, 0.0, np.where(contains_peak, summit, np.minimum(at_ends, summit)))


def _rise_at(f: FloatArray, shift: FloatArray) -> FloatArray:
    """Upper bound of f (1 - f) (e - 1) / (1 + f (e - 1)) with e = exp(shift), for one f each; also at most 1 - f."""
    grown = up(interval.exp(Interval.point(shift)).upper - 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        top = up(up(f * up(1.0 - f)) * grown)
        bottom = down(1.0 + np.maximum(down(f * down(interval.exp(Interval.point(shift)).lower - 1.0)), 0.0))
        rise = up(top / bottom)
    return np.minimum(np.where(np.isfinite(rise), rise, np.inf), up(1.0 - f))


@dataclass(frozen=True, eq=False)
class LargestGap:
    """Maximise the gap (lead of the label over its strongest rival) where one given rival overtakes the label."""

    space: Space
    leads: Leads
    pair: int

    @property
    def root(self) -> Interval:
        return self.space.root

    @property
    def scale(self) -> FloatArray:
        return self.space.scale

    @cached_property
    def _rows(self) -> tuple[tuple[Interval, Interval], ...]:
        """The last layer folded: leads over this label of all rivals, and of this rival in the box and its deviation."""
        last, leads, one = self.space.bounds.layers[-1], self.leads, slice(self.pair, self.pair + 1)
        own = leads.of_label(int(leads.pairs[self.pair, 0]))
        stored, box, deviation = (leads.rows(*rows) for rows in (last.stored, last.box, last.deviation))
        offset = leads.offset
        return (
            (stored[0][own], stored[1][own] + offset[own]),
            (stored[0][one], stored[1][one] + offset[one]),
            (box[0][one], box[1][one] + offset[one]),
            (deviation[0][one], deviation[1][one]),
        )

    def _leads(self, boxes: Interval) -> tuple[Interval, Pair]:
        """Enclose the stored leads of all rivals (batch, rivals), and the pair of this rival's lead (batch, 1)."""
        hidden = self.space.bounds.hidden(boxes)
        everyone, stored, box, deviation = self._rows
        return interval.affine(everyone[0], hidden.stored, everyone[1]), row_pair(stored, box, deviation, hidden)

    def upper(self, boxes: Interval) -> FloatArray:
        rivals, pair = self._leads(boxes)
        gap = np.minimum((-rivals.lower).min(axis=1), -pair.stored.lower[:, 0])
        # The perturbed lead is at least 0, so the stored one is at least minus the greatest difference.
        gap = np.minimum(gap, pair.difference.upper[:, 0])
        lead = pair.perturbed.upper[:, 0]
        _, stored, box, _ = self._rows
        after, before = (f(self.space.bounds, boxes, r) for f, r in ((greatest_row, box), (stored_row, stored)))
        if after is not None and before is not None:
            gap = np.minimum(gap, np.minimum((after - before).over(boxes).upper, -before.over(boxes).lower))
            lead = np.minimum(lead, after.over(boxes).upper)
        overtaken = lead > 0 if self.leads.strict[self.pair] else lead >= 0
        feasible = overtaken & (gap >= 0) & ~self.space.outside(boxes)
        return np.where(feasible, np.maximum(gap, 0.0), -np.inf)

    def value(self, points: FloatArray) -> FloatArray:
        everyone, _, box, _ = self._rows
        stored, low, high = self.space.bounds.forecast(points)
        gap = -row_forecast(everyone, stored, stored)[1].max(axis=1)
        lead = row_forecast(box, low, high)[1][:, 0]
        # Rounding the parameters to floats inside the box costs a little of the lead: ask for more than that.
        clear = lead > 1e-13 * (1 + np.abs(gap))
        feasible = clear & (gap >= 0) & self.space.inside(points)
        return np.where(feasible, gap, -np.inf)

    def witness(self, point: FloatArray) -> Counterexample:
        """Rebuild the parameters with which the rival overtakes the label."""
        return self.space.counterexample(point, self.leads.directions[self.pair])
