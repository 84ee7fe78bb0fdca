"""The greatest change of a confidence over boxes of inputs, from differential zonotopes of the margins between classes.

Accepts   dense networks of linear and ReLU units; any parameter box; batches of boxes of inputs
Gives     an upper end of the change of any confidence over each box, and how much of it comes from each input
Method    The last layer's rows are subtracted first, so that what a hidden value moves in two logits cancels. With margins m_j
          of a class over its rivals, its odds are o = sum exp(-m_j); they grow by the mean of exp(-d_j), d_j the changes of the
          margins, weighed by the rivals' shares exp(-m_j) / o, which the stored margins bound. The mean of d_j by these shares
          bounds how far the log odds rise (Jensen's inequality) and fall (exp's chord): one row of all rivals, which see the
          same hidden values, with fixed weights near the shares
Property  sound, not complete
Source    THEORY.md, sections 3 and 4; `zonotopes`
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qrobust import interval
from qrobust.bounds.differential import Pair
from qrobust.bounds.objectives import greatest_rise_of
from qrobust.bounds.softmax_change import confidence
from qrobust.bounds.zonotopes import Form, Reached, TwinLayer, TwinZonotopes, affine, ends_of_change
from qrobust.domains import ParameterBox
from qrobust.interval import UNDERFLOW, FloatArray, Interval, down, sum_slack, up
from qrobust.network import Activation, Network, Output

GRID = 2.0**30  # weights are multiples of 1 / GRID: their sums are exact


@dataclass(frozen=True, eq=False)
class _Margins:
    """The last layer with the rows of all pairs of classes subtracted."""

    layer: TwinLayer

    @classmethod
    def of(cls, network: Network, box: ParameterBox) -> _Margins:
        last, bounds = network.layers[-1], box.layers[-1]
        stored = Interval.point(last.weight), Interval.point(last.bias)
        boxes = bounds.weight.interval, bounds.bias.interval
        if network.output is Output.SOFTMAX:
            own, rival = np.array([(c, j) for c in range(network.class_count) for j in range(network.class_count) if j != c]).T
            stored = stored[0][own] - stored[0][rival], stored[1][own] - stored[1][rival]
            boxes = boxes[0][own] - boxes[0][rival], boxes[1][own] - boxes[1][rival]
        return cls(TwinLayer.of(last.activation, stored, boxes))

    def of_hidden(self, hidden: Reached, activation: Activation) -> tuple[Pair, Form, tuple[Form, Form]]:
        """Enclose the margins, (rows, boxes), after hidden values of this activation; return also the forms of the stored ones
        and of their change, from above and from below."""
        before = affine(self.layer.stored, self.layer.lost, hidden.stored)
        after = affine(self.layer.perturbed, self.layer.perturbed_reach, hidden.perturbed)
        more = self.layer.lost[0] @ hidden.change.size
        more = up(more + sum_slack(sum(hidden.change.generators.shape[:2]), more) + UNDERFLOW)  # sizes sum over symbols
        ends = ends_of_change(self.layer, hidden, activation)
        above, below = (Form(form.centre, form.generators, up(form.radius + more)) for form in ends)
        least, most = below.range.lower, above.range.upper
        whole = (least <= most).all()  # else a sum overflowed
        moved = Interval(least, most) if whole else Interval(np.full_like(least, -np.inf), np.full_like(most, np.inf))
        return Pair(before.range, after.range, moved).tightened(), before, (above, below)


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
        activation = self.network.hidden_layers[-1].activation if self.network.hidden_layers else Activation.LINEAR
        pair, stored, (above, below) = self.margins.of_hidden(hidden, activation)
        shape = (self.classes, max(1, self.classes - 1), len(boxes))
        before, after, change = (
            Interval(x.lower.reshape(shape), x.upper.reshape(shape)) for x in (pair.stored, pair.perturbed, pair.difference)
        )
        if self.network.output is Output.SIGMOID:
            first, second = interval.sigmoid(before[0, 0]), interval.sigmoid(after[0, 0])
            rise, fall = change.upper[0, 0], -change.lower[0, 0]
            bound = self._bound(first, second, rise, fall)
        else:
            rise, drop = _by_means(before, change, above), _by_means(before, -change, -below)
            fall = [_chord(c.lower.min(axis=0), c.upper.max(axis=0), mean) for c, mean in zip(change, drop, strict=True)]
            each = zip(before, after, change, rise, fall, strict=True)
            bound = np.max([self._of_class(*of_class) for of_class in each], axis=0)
        moves = np.abs(stored.generators[:, : self.network.inputs]).sum(axis=0).T
        return bound, hidden.influence + bound[:, None] * moves

    def _of_class(self, before: Interval, after: Interval, change: Interval, rise: FloatArray, fall: FloatArray) -> FloatArray:
        """Bound the change of one confidence, given its margins over its rivals, and bounds of what its log odds move by.

        Shapes    margins (rivals, boxes); rise, fall, result (boxes,)
        """
        shares = _least_shares(before)
        powers = [interval.exp(Interval.point(-end)) for end in (change.lower, change.upper)]
        most = _mean(powers[0].upper, shares, powers[0].upper.max(axis=0))
        least = _mean(powers[1].lower, shares, powers[1].lower.min(axis=0))
        slack = sum_slack(4 * len(shares), 2 * powers[0].upper.sum(axis=0))
        fall = np.fmin(fall, np.minimum((-change.lower).max(axis=0), _log_above(up(most + slack))))
        slack = sum_slack(4 * len(shares), 2 * powers[1].lower.sum(axis=0))
        rise = np.fmin(rise, np.minimum(change.upper.max(axis=0), -_log_below(down(least - slack))))
        return self._bound(confidence(_turned(-before)), confidence(_turned(-after)), rise, fall)

    def _bound(self, before: Interval, after: Interval, rise: FloatArray, fall: FloatArray) -> FloatArray:
        one = Interval.point(np.ones(before.shape))
        by_shift = np.maximum(greatest_rise_of(before, rise), greatest_rise_of(one - before, fall))
        apart = after - before
        bound: FloatArray = np.minimum(by_shift, np.maximum(apart.upper, -apart.lower))
        return np.where(np.isnan(bound), 1.0, np.clip(bound, 0.0, 1.0))


def _turned(x: Interval) -> Interval:
    return Interval(np.ascontiguousarray(x.lower.T), np.ascontiguousarray(x.upper.T))


def _by_means(margins: Interval, change: Interval, moved: Form) -> list[FloatArray]:
    """Bound the rise of each class's log odds by the mean of its margins' changes, weighed by shares that margins give.

    Shapes    margins, change (classes, rivals, boxes); moved: the form of change, (classes * rivals) rows; results (boxes,)
    """
    classes, rivals, boxes = margins.shape
    if rivals == 1:
        return list(change.upper[:, 0])
    leads = np.zeros((2, classes, classes, boxes))  # of a class over another, both ends
    leads[:, ~np.eye(classes, dtype=bool)] = margins.lower.reshape(-1, boxes), margins.upper.reshape(-1, boxes)
    powers = interval.exp(Interval(-leads[1], -leads[0]))
    forms = [part.reshape(classes, rivals, *part.shape[1:]) for part in (moved.centre, moved.generators, moved.radius)]
    found = []
    for own in range(classes):
        others = np.delete(np.arange(classes), own)
        weight, off = _weights(powers[others][:, others])
        centre, generators, radius = (form[own] for form in forms)
        mean = Form(
            (weight * centre).sum(axis=0)[None],
            np.einsum("jb,jsb->sb", weight, generators)[None],
            (weight * radius).sum(axis=0)[None],
        )
        lost = sum_slack(2 * rivals, (weight * Form(centre, generators, radius).size).sum(axis=0)) + UNDERFLOW
        aside = up(np.maximum(up(change.upper[own] - mean.centre), up(mean.centre - change.lower[own])))
        more = (off * aside).sum(axis=0)
        more = up(more + sum_slack(rivals + 1, more) + UNDERFLOW)
        found.append(up(up(mean.range.upper[0] + up(lost)) + more))
    return found


def _chord(low: FloatArray, high: FloatArray, drop: FloatArray) -> FloatArray:
    """Bound the log of a mean of exp(-d), all d from low to high and their mean at least -drop, by exp's chord."""
    ends = [interval.exp(Interval.point(-end)).upper for end in (low, high)]
    part = down(down(-drop - low) / up(high - low))
    part = np.where(np.isfinite(part), np.clip(part, 0.0, 1.0), 0.0)
    return _log_above(up(ends[0] - down(part * np.maximum(down(ends[0] - ends[1]), 0.0))))


def _weights(powers: Interval) -> tuple[FloatArray, FloatArray]:
    """Return weights near the shares 1 / sum_k powers[j, k], whose sum is 1 exactly, and how far the shares may be from them.

    Shapes    powers (rivals, rivals, boxes); results (rivals, boxes)
    """
    rivals = len(powers)
    least, most = powers.lower.sum(axis=1), powers.upper.sum(axis=1)
    low = np.clip(down(1 / up(most + sum_slack(rivals, most))), 0.0, 1.0)
    high = np.clip(up(1 / down(least - sum_slack(rivals, least))), 0.0, 1.0)
    middle = 0.5 * low + 0.5 * np.where(np.isfinite(high), high, 1.0)
    middle = np.where(np.isfinite(middle), middle, 0.0) + 1 / GRID
    weight = np.floor(middle / middle.sum(axis=0) * GRID) / GRID
    weight[0] += 1.0 - weight.sum(axis=0)
    off = np.maximum(up(np.where(np.isfinite(high), high, 1.0) - weight), up(weight - np.where(np.isfinite(low), low, 0.0)))
    return weight, off


def _least_shares(margins: Interval) -> FloatArray:
    """Bound each rival's share exp(-m_j) / sum exp(-m_k) from below. Shapes: both (rivals, boxes)."""
    top = -margins.lower.min(axis=0)
    least, most = down(-margins.upper - top), up(-margins.lower - top)  # NaN where a margin overflowed, of inf - inf
    least = interval.exp(Interval.point(np.where(np.isnan(least), -np.inf, least))).lower
    most = interval.exp(Interval.point(np.where(np.isnan(most), np.inf, most))).upper
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
