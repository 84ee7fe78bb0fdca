"""The greatest change of a confidence over boxes of inputs, from differential zonotopes of the margins between classes.

Accepts   dense networks of linear and ReLU units; any parameter box; batches of boxes of inputs
Gives     an upper end of the change of any confidence over each box, and how much of it comes from each input
Method    The last layer's rows are subtracted first, so that what a hidden value moves in two logits cancels. With margins m_j
          of a class over its rivals, its odds are o = sum exp(-m_j); they grow by the mean of exp(-d_j), d_j the changes of the
          margins, weighed by the rivals' shares exp(-m_j) / o, which the stored margins bound
Property  sound, not complete: every margin's parameters move by themselves
Source    THEORY.md, sections 3 and 4; `zonotopes`
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qrobust import interval
from qrobust.bounds.differential import Pair
from qrobust.bounds.objectives import greatest_rise_of
from qrobust.bounds.softmax_change import confidence
from qrobust.bounds.zonotopes import Form, TwinLayer, TwinZonotopes, affine, ball, changed
from qrobust.domains import ParameterBox
from qrobust.interval import UNDERFLOW, FloatArray, Interval, down, sum_slack, up
from qrobust.network import Network, Output


@dataclass(frozen=True, eq=False)
class _Margins:
    """The last layer with the rows of all pairs of classes subtracted; `lost` is what rounding the stored rows moves them."""

    layer: TwinLayer
    lost: tuple[FloatArray, FloatArray]

    @classmethod
    def of(cls, network: Network, box: ParameterBox) -> _Margins:
        last, bounds = network.layers[-1], box.layers[-1]
        stored = Interval.point(last.weight), Interval.point(last.bias)
        boxes = bounds.weight.interval, bounds.bias.interval
        if network.output is Output.SOFTMAX:
            own, rival = np.array([(c, j) for c in range(network.class_count) for j in range(network.class_count) if j != c]).T
            stored = stored[0][own] - stored[0][rival], stored[1][own] - stored[1][rival]
            boxes = boxes[0][own] - boxes[0][rival], boxes[1][own] - boxes[1][rival]
        (weight, lost), (bias, bias_lost) = ball(stored[0]), ball(stored[1][:, None])
        columns = boxes[0], boxes[1][:, None]
        rows = stored[0], stored[1][:, None]
        perturbed, reach = zip(*(ball(part) for part in columns), strict=True)
        change, change_reach = zip(*(ball(part - row) for part, row in zip(columns, rows, strict=True)), strict=True)
        layer = TwinLayer(last.activation, (weight, bias), perturbed, reach, change, change_reach)
        return cls(layer, (lost, bias_lost))

    def of_hidden(self, stored: Form, perturbed: Form, change: Form, inputs: int) -> tuple[Pair, Form, Form]:
        """Enclose the margins, (rows, boxes); return also the forms of the stored ones and of their change."""
        before = affine(self.layer.stored, self.lost, stored)
        after = affine(self.layer.perturbed, self.layer.perturbed_reach, perturbed)
        moved = changed(self.layer, change, perturbed, inputs)
        more = self.lost[0] @ change.size
        radius = up(moved.radius + more + sum_slack(len(change.centre) + 2, moved.radius + more) + UNDERFLOW)
        moved = Form(moved.centre, moved.generators, radius)
        return Pair(before.range, after.range, moved.range).tightened(), before, moved


class TwinConfidences:
    """A network and a box of its parameters, prepared for bounding batches of input boxes. Raises UnsupportedError."""

    def __init__(self, network: Network, parameters: ParameterBox) -> None:
        self.network, self.zonotopes = network, TwinZonotopes(network, parameters)
        self.margins = _Margins.of(network, parameters)
        self.classes = 1 if network.output is Output.SIGMOID else network.class_count

    def changes(self, boxes: Interval) -> tuple[FloatArray, FloatArray]:
        """Bound the change of any confidence. Shapes: boxes (n, inputs); change (n,); influence (n, inputs), a heuristic."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            parts = [self._changes(boxes[chunk]) for chunk in self.zonotopes.chunks(len(boxes))]
        return np.concatenate([change for change, _ in parts]), np.concatenate([influence for _, influence in parts])

    def _changes(self, boxes: Interval) -> tuple[FloatArray, FloatArray]:
        hidden = self.zonotopes.hidden(boxes)
        pair, stored, _ = self.margins.of_hidden(hidden.stored, hidden.perturbed, hidden.change, self.network.inputs)
        shape = (self.classes, max(1, self.classes - 1), len(boxes))
        before, after, change = (
            Interval(x.lower.reshape(shape), x.upper.reshape(shape)) for x in (pair.stored, pair.perturbed, pair.difference)
        )
        if self.network.output is Output.SIGMOID:
            first, second = interval.sigmoid(before[0, 0]), interval.sigmoid(after[0, 0])
            rise, fall = change.upper[0, 0], -change.lower[0, 0]
            bound = self._bound(first, second, rise, fall)
        else:
            bound = np.max([self._of_class(before[c], after[c], change[c]) for c in range(self.classes)], axis=0)
        moves = np.abs(stored.generators[:, : self.network.inputs]).sum(axis=0).T
        return bound, hidden.influence + bound[:, None] * moves

    def _of_class(self, before: Interval, after: Interval, change: Interval) -> FloatArray:
        """Bound the change of one confidence, given its margins over its rivals. Shapes: (rivals, boxes); (boxes,)."""
        shares = _least_shares(before)
        powers = [interval.exp(Interval.point(-end)) for end in (change.lower, change.upper)]
        most = _mean(powers[0].upper, shares, powers[0].upper.max(axis=0))
        least = _mean(powers[1].lower, shares, powers[1].lower.min(axis=0))
        slack = sum_slack(4 * len(shares), 2 * powers[0].upper.sum(axis=0))
        fall = np.minimum((-change.lower).max(axis=0), _log_above(up(most + slack)))
        slack = sum_slack(4 * len(shares), 2 * powers[1].lower.sum(axis=0))
        rise = np.minimum(change.upper.max(axis=0), -_log_below(down(least - slack)))
        return self._bound(confidence(_turned(-before)), confidence(_turned(-after)), rise, fall)

    def _bound(self, before: Interval, after: Interval, rise: FloatArray, fall: FloatArray) -> FloatArray:
        one = Interval.point(np.ones(before.shape))
        by_shift = np.maximum(greatest_rise_of(before, rise), greatest_rise_of(one - before, fall))
        apart = after - before
        bound: FloatArray = np.minimum(by_shift, np.maximum(apart.upper, -apart.lower))
        return np.where(np.isnan(bound), 1.0, np.clip(bound, 0.0, 1.0))


def _turned(x: Interval) -> Interval:
    return Interval(np.ascontiguousarray(x.lower.T), np.ascontiguousarray(x.upper.T))


def _least_shares(margins: Interval) -> FloatArray:
    """Bound each rival's share exp(-m_j) / sum exp(-m_k) from below. Shapes: both (rivals, boxes)."""
    top = -margins.lower.min(axis=0)
    least = interval.exp(Interval.point(down(-margins.upper - top))).lower
    most = interval.exp(Interval.point(up(-margins.lower - top))).upper
    others = np.array([np.delete(most, j, axis=0).sum(axis=0) for j in range(len(most))])
    others = up(others + sum_slack(len(most), others))
    share = down(least / up(least + others))
    return np.where(np.isfinite(share), np.clip(share, 0.0, 1.0), 0.0)


def _mean(values: FloatArray, shares: FloatArray, end: FloatArray) -> FloatArray:
    """The mean of values by shares at least these, all others of the weight at `end`, rounded to nearest."""
    mean: FloatArray = end - (shares * (end - values)).sum(axis=0)
    return mean


def _log_above(value: FloatArray) -> FloatArray:
    """A number at least the logarithm, inf where none is found."""
    log = np.log(value) + 1e-12 * (1 + np.abs(np.log(value)))
    return np.where(interval.exp(Interval.point(np.where(np.isfinite(log), log, 0.0))).lower >= value, log, np.inf)


def _log_below(value: FloatArray) -> FloatArray:
    """A number at most the logarithm, -inf where none is found."""
    log = np.log(value) - 1e-12 * (1 + np.abs(np.log(value)))
    return np.where(interval.exp(Interval.point(np.where(np.isfinite(log), log, 0.0))).upper <= value, log, -np.inf)
