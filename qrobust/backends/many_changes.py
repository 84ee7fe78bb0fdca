"""The greatest change of a confidence at many inputs of networks with several hidden layers, by linear bounds.

Accepts   every network; any parameter box; batches of points, or of intervals around them where these are known but for
          rounding
Gives     enclosures of the greatest change of any confidence (equation 11); the lower end is 0 where there are convolutions
Method    One sigmoid: the ends of its logit. k classes: first the differences of two logits, one by one; then two rows a class
          over all logits, whose weights are those that Jensen's inequality and chords of exp give there (see `bounds.odds`),
          so that the differences are bounded together. The ends that attack these rows are evaluated in intervals
Property  sound, not complete
Source    THEORY.md, sections 3 and 4
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qrobust import interval
from qrobust.backends.deep import inputs_at_a_time, levels_at, stored_logits
from qrobust.bounds.attack import climb
from qrobust.bounds.ibp import INTERVALS
from qrobust.bounds.linear import Tuning, pre_activations, top_bounds
from qrobust.bounds.softmax_change import confidence, ends_at
from qrobust.bounds.stages import stages_of
from qrobust.bounds.substitution import Levels
from qrobust.domains import ParameterBox
from qrobust.errors import UnsupportedError
from qrobust.interval import TINY, FloatArray, Interval, down, enclosed, sum_slack, up
from qrobust.network import Activation, Network, Output, activate
from qrobust.search import Budget

ROWS_TUNING = Tuning(steps=3)  # of the two rows a class
GRID = 2.0**30  # weights are multiples of 1 / GRID: their sums are exact
DEFAULT = Budget()
_Greatest = Callable[[FloatArray, Tuning], FloatArray]


def screen_changes(
    network: Network, parameters: ParameterBox, points: FloatArray | Interval, budget: Budget = DEFAULT
) -> Interval:
    """Enclose the greatest change of any confidence at each point. Shapes: points (n, inputs); result (n,)."""
    step = inputs_at_a_time(network, budget)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        parts = [_screened(network, parameters, enclosed(points[i : i + step]), budget) for i in range(0, len(points), step)]
    return Interval(np.concatenate([p.lower for p in parts]), np.concatenate([p.upper for p in parts]))


def _screened(network: Network, parameters: ParameterBox, points: Interval, budget: Budget) -> Interval:
    levels, start = levels_at(network, parameters, points, budget=budget)
    bounds = pre_activations(levels, start, Tuning(0), budget=budget)

    def greatest(nu: FloatArray, tuning: Tuning) -> FloatArray:
        """Bound nu . logits from above. Shapes: nu (n or 1, rows, logits); result (n, rows)."""
        nu = np.broadcast_to(nu, (len(points), *nu.shape[1:])).reshape(-1, nu.shape[2])
        boxes = np.repeat(np.arange(len(points)), len(nu) // len(points))
        return top_bounds(levels, bounds, nu, np.zeros(len(nu)), boxes, tuning, budget).reshape(len(points), -1)

    logits = stored_logits(network, points, budget.memory)
    if network.output is Output.SIGMOID:
        nu = np.array([[[1.0], [-1.0]]])
        reach = greatest(nu, ROWS_TUNING)
        before = interval.sigmoid(logits)
        after = interval.sigmoid(Interval.point(np.where(np.isnan(reach), np.inf, reach) * [1.0, -1.0]))
        upper = np.maximum(up(after.upper[:, 0] - before.lower[:, 0]), up(before.upper[:, 0] - after.lower[:, 1]))
        rows = np.broadcast_to(nu, (len(points), 2, 1))
    else:
        before = interval.softmax(logits)
        rows, odds = _of_classes(greatest, logits.middle)
        highest, lowest = up(1 / down(1 + odds.lower)), down(1 / up(1 + odds.upper))
        upper = np.maximum(up(highest - before.lower), up(before.upper - lowest)).max(axis=1)
    upper = np.minimum(np.where(np.isnan(upper), 1.0, np.maximum(upper, 0.0)), 1.0)
    lower = _attained(network, parameters, points, rows, before, budget) if network.is_dense else np.zeros(len(points))
    return Interval(lower, upper)


def _of_classes(greatest: _Greatest, middle: FloatArray) -> tuple[FloatArray, Interval]:
    """Return the rows (n, 2 classes, logits), first all that raise a class, and bounds of the rivals' odds (n, classes)."""
    count, classes = middle.shape
    one = np.eye(classes)
    rivals = np.array([[j for j in range(classes) if j != c] for c in range(classes)])
    pairs = one[rivals] - one[:, None, :]  # (class, rival, logit): z_rival - z_class
    above = greatest(pairs.reshape(1, -1, classes), Tuning(0)).reshape(count, classes, -1)
    below = -greatest(-pairs.reshape(1, -1, classes), Tuning(0)).reshape(count, classes, -1)
    above, below = np.where(np.isnan(above), np.inf, above), np.where(np.isnan(below), -np.inf, below)
    alone = interval.total(interval.exp(Interval(np.minimum(below, above), above)))

    near = np.clip(middle[:, rivals] - middle[:, :, None], below, above)
    share = np.exp(near - near.max(axis=2, keepdims=True))
    share = np.where(np.isnan(share), 1.0, share)  # where logits overflow; any weights are sound
    weight = _on_grid(share / share.sum(axis=2, keepdims=True))
    top = np.where(np.isfinite(above), above, 0.0).max(axis=2, keepdims=True)
    powers = [interval.exp(Interval.point(up(end - top))).upper for end in (below, above)]
    steep = np.where(above > below, (powers[1] - powers[0]) / (above - below), powers[1])
    steep = _on_grid(np.clip(np.where(np.isfinite(steep), steep, 0.0), 0.0, 1.0))
    rows = np.concatenate([-(weight[..., None] * pairs).sum(axis=2), (steep[..., None] * pairs).sum(axis=2)], axis=1)
    bound = greatest(rows, ROWS_TUNING)

    log = np.log(np.maximum(weight, 1 / GRID)) + 1e-12
    log = np.where(interval.exp(Interval.point(log)).lower >= weight, log, 0.0)  # at least the logarithm, which is at most 0
    whole, bend = weight.sum(axis=2), (weight * log).sum(axis=2)
    exponent = (
        -bound[:, :classes] - bend - sum_slack(2 * classes, np.abs(bound[:, :classes]) + (weight * np.abs(log)).sum(axis=2))
    )
    exponent = down(exponent / whole)
    exponent = np.where(np.isnan(exponent), -np.inf, exponent)
    least = down(whole * interval.exp(Interval.point(exponent)).lower)

    over = np.maximum(*(up(power - down(steep * end)) for power, end in zip(powers, (below, above), strict=True)))
    value = bound[:, classes:] + over.sum(axis=2)
    value = up(value + sum_slack(2 * classes, np.abs(bound[:, classes:]) + np.abs(over).sum(axis=2)))
    most = up(np.maximum(value, 0.0) * interval.exp(Interval.point(top[:, :, 0])).upper)
    lower = np.fmax(np.where(np.isfinite(least), least, 0.0), alone.lower)
    return rows, Interval(np.maximum(lower, 0.0), np.fmax(np.fmin(most, alone.upper), np.maximum(lower, 0.0)))


def _on_grid(values: FloatArray) -> FloatArray:
    result: FloatArray = np.rint(values * GRID) / GRID
    return result


def _attained(
    network: Network, parameters: ParameterBox, points: Interval, rows: FloatArray, before: Interval, budget: Budget
) -> FloatArray:
    """Return a change that some parameters surely make, at each point. Shapes: rows (n, rows, logits); result (n,)."""
    least, greatest = _ends(network, parameters, points, rows, budget)
    if network.output is Output.SIGMOID:
        high, low = interval.sigmoid(greatest[:, 0]), interval.sigmoid(least[:, 1])
        changes = np.concatenate([down(high.lower - before.upper), down(before.lower - low.upper)], axis=1)
    else:
        columns = []
        for c in range(network.class_count):
            rivals, falling = [j for j in range(network.class_count) if j != c], network.class_count + c
            raised = confidence(least[:, c, rivals] - greatest[:, c, [c]])
            lowered = confidence(greatest[:, falling, rivals] - least[:, falling, [c]])
            columns += [down(raised.lower - before.upper[:, c]), down(before.lower[:, c] - lowered.upper)]
        changes = np.stack(columns, axis=1)
    attained: FloatArray = np.where(np.isfinite(changes), changes, 0.0).max(axis=1)
    return np.maximum(attained, 0.0)


def _ends(
    network: Network, parameters: ParameterBox, points: Interval, rows: FloatArray, budget: Budget
) -> tuple[Interval, Interval]:
    """Enclose the least and the greatest logits at hidden values that parameters reach which push a row up.

    Shapes    rows (n, rows, logits); results (n, rows, logits)
    """
    count, number = rows.shape[:2]
    levels = Levels(Activation.LINEAR, stages_of(network, parameters, budget.memory))
    nu, x = rows.reshape(count * number, -1), points[np.repeat(np.arange(count), number)]
    ends = [np.ones((len(nu), layer.inputs)) for layer in network.layers]
    found = climb(levels, x, nu, np.zeros(len(nu)), ends, arrays=budget.arrays)
    h = x
    for layer, box, t in zip(network.hidden_layers, parameters.layers, found.positions[1:], strict=False):
        least, greatest = ends_at(box, h)
        z = Interval(np.where(t > 0, greatest.lower, least.lower), np.where(t > 0, greatest.upper, least.upper))
        h = activate(layer.activation, z, INTERVALS)
    least, greatest = (
        Interval(z.lower.reshape(count, number, -1), z.upper.reshape(count, number, -1))
        for z in ends_at(parameters.layers[-1], h)
    )
    return least, greatest


def attained_changes(
    network: Network, parameters: ParameterBox, points: FloatArray | Interval, budget: Budget = DEFAULT
) -> FloatArray:
    """Return a change of a confidence that some parameters surely make, at each point. Shapes: points (n, inputs); result (n,).

    Raises    UnsupportedError if the network is not dense
    """
    if not network.is_dense:
        raise UnsupportedError("parameters are attacked in dense networks")
    step = inputs_at_a_time(network, budget)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        parts = [_attacked(network, parameters, enclosed(points[i : i + step]), budget) for i in range(0, len(points), step)]
    return np.concatenate(parts)


def _attacked(network: Network, parameters: ParameterBox, points: Interval, budget: Budget) -> FloatArray:
    logits = stored_logits(network, points, budget.memory)
    if network.output is Output.SIGMOID:
        rows = np.broadcast_to(np.array([[[1.0], [-1.0]]]), (len(points), 2, 1))
        return _attained(network, parameters, points, rows, interval.sigmoid(logits), budget)
    share = np.exp(logits.middle - logits.middle.max(axis=1, keepdims=True))
    share = np.where(np.isnan(share), 1.0, share)
    one = np.eye(network.class_count)
    others = share[:, None, :] * (1 - one)  # the rivals' shares among themselves, class by class
    raised = one - others / np.maximum(others.sum(axis=2, keepdims=True), TINY)
    rows = np.concatenate([raised, -raised], axis=1)
    return _attained(network, parameters, points, rows, interval.softmax(logits), budget)


def logit_changes_at(
    network: Network, parameters: ParameterBox, points: FloatArray | Interval, budget: Budget = DEFAULT
) -> Interval:
    """Enclose the greatest change of any raw output of a dense network. Shapes: points (n, inputs); result (n,)."""
    step = inputs_at_a_time(network, budget)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        parts = [
            _logit_changes(network, parameters, enclosed(points[i : i + step]), budget) for i in range(0, len(points), step)
        ]
    return Interval(np.concatenate([p.lower for p in parts]), np.concatenate([p.upper for p in parts]))


def _logit_changes(network: Network, parameters: ParameterBox, points: Interval, budget: Budget) -> Interval:
    count, width = len(points), network.layers[-1].outputs
    nu = np.concatenate([np.eye(width), -np.eye(width)])
    levels, start = levels_at(network, parameters, points, budget=budget)
    bounds = pre_activations(levels, start, Tuning(0), budget=budget)
    boxes = np.repeat(np.arange(count), 2 * width)
    reach = top_bounds(levels, bounds, np.tile(nu, (count, 1)), np.zeros(len(boxes)), boxes, ROWS_TUNING, budget)
    before = stored_logits(network, points, budget.memory)
    stored = np.concatenate([before.lower, -before.upper], axis=1)
    upper = up(reach.reshape(count, -1) - stored).max(axis=1)
    least, greatest = _ends(network, parameters, points, np.broadcast_to(nu, (count, *nu.shape)), budget)
    each = np.arange(width)
    rise = down(greatest.lower[:, each, each] - before.upper)
    fall = down(before.lower - least.upper[:, width + each, each])
    lower = np.maximum(rise, fall).max(axis=1)
    lower = np.where(np.isfinite(lower), np.maximum(lower, 0.0), 0.0)
    return Interval(lower, np.maximum(np.where(np.isnan(upper), np.inf, upper), lower))
