"""Exact ranges at points, in closed form, for many points at once.

Accepts   networks with at most one hidden layer; any parameter box; batches of points, or of intervals around them where they
          are known but for rounding: what is claimed then holds at every point of each interval
Gives     enclosures of the least and the greatest value of every logit or lead, of the greatest change of the confidence,
          and whether the label can change
Method    the interval formula layer by layer is the exact range of one row (THEORY.md, section 3); it is computed once
          rounded outward and once inward, and the exact end lies between the two
Property  sound and complete up to rounding: what rounding hides is reported as undecided. One logit, or one difference of
          two; the confidences of k classes only without a hidden layer
Source    Murthy, Das, Islam 2019, equations 8 and 11; THEORY.md, section 3
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from qrobust import interval
from qrobust.bounds.ibp import INTERVALS, nominal_logits
from qrobust.domains import Bounds, ParameterBox
from qrobust.interval import Ends, FloatArray, Interval, enclosed
from qrobust.leads import Leads
from qrobust.memory import MEMORY, Part, at_a_time
from qrobust.network import Activation, Network, Output, activate, stored_parameters

IntArray = npt.NDArray[np.int64]
CHUNK = 8192  # points at a time, at most, so that the arrays stay in the cache
POINT_ARRAYS = 24  # float64 arrays over all layers that one point takes


class Status(IntEnum):
    """Whether the label of a point can change."""

    SAFE = 0
    FLIPPABLE = 1
    UNDECIDED = 2


@dataclass(frozen=True)
class Reach:
    """The range that values have over the parameter box: `outer` holds it, `inner` lies within it. Shape: (batch, n)."""

    outer: Interval
    inner: Ends

    @property
    def greatest(self) -> Interval:
        """Enclose the greatest value."""
        return Interval(np.minimum(self.inner.greatest, self.outer.upper), self.outer.upper)

    @property
    def least(self) -> Interval:
        """Enclose the least value."""
        return Interval(self.outer.lower, np.maximum(self.inner.least, self.outer.lower))


def why_not(network: Network, *, confidences: bool) -> str | None:
    """Return None if the closed form holds for the network, else the reason."""
    if not network.is_dense:
        return "the closed form covers dense layers, not convolutions and pools"
    hidden = len(network.hidden_layers)
    if hidden > 1:
        return f"the closed form needs at most one hidden layer, the network has {hidden}"
    if confidences and hidden and network.output is Output.SOFTMAX:
        return "with a hidden layer the logits of several classes depend on each other"
    return None


def _inner(bounds: Bounds) -> Ends:
    return Ends(bounds.lower.round_up(), bounds.upper.round_down())


def hidden_reach(network: Network, parameters: ParameterBox, x: Interval) -> tuple[Interval, Ends]:
    """Return outer and inner ends of the last hidden layer at every point of x. Shapes: x (batch, inputs); (batch, n)."""
    outer, inner = x, Ends(x.upper, x.lower)
    for layer, box in zip(network.hidden_layers, parameters.layers, strict=False):
        outer = interval.affine(box.weight.interval, outer, box.bias.interval)
        inner = interval.affine_inner(_inner(box.weight), inner, _inner(box.bias))
        outer, inner = activate(layer.activation, outer, INTERVALS), _activated_ends(layer.activation, inner)
    return outer, inner


def _logit_reach(network: Network, parameters: ParameterBox, x: Interval) -> Reach:
    """Return the reach of all logits. Shapes: x (batch, inputs); result (batch, logits)."""
    outer, inner = hidden_reach(network, parameters, x)
    last = parameters.layers[-1]
    ends = interval.affine_inner(_inner(last.weight), inner, _inner(last.bias))
    return Reach(interval.affine(last.weight.interval, outer, last.bias.interval), ends)


def _greatest_leads(leads: Leads, parameters: ParameterBox, x: Interval) -> Interval:
    """Enclose the greatest lead of each pair. Shapes: x (batch, inputs); result (batch, pairs)."""
    outer, inner = hidden_reach(leads.network, parameters, x)
    last = parameters.layers[-1]
    weight, bias = leads.rows(last.weight.interval, last.bias.interval)
    weight_inner, bias_inner = _lead_ends(leads, _inner(last.weight), _inner(last.bias))
    return interval.affine_greatest((weight, outer, bias + leads.offset), (weight_inner, inner, bias_inner))


def _activated_ends(activation: Activation, x: Ends) -> Ends:
    """Activations rise: inner ends go through them, rounded inward."""
    if activation is Activation.LINEAR:
        return x
    greatest = activate(activation, Interval.point(x.greatest), INTERVALS).lower
    least = activate(activation, Interval.point(x.least), INTERVALS).upper
    return Ends(least, greatest)


def _lead_ends(leads: Leads, weight: Ends, bias: Ends) -> tuple[Ends, Ends]:
    """Fold the last layer's inner ends into leads, rounded inward."""
    if leads.network.output is Output.SIGMOID:
        join = [Ends(*(np.concatenate(ends) for ends in _both(part))) for part in (weight, bias)]
        offset = leads.offset
        return join[0], Ends(interval.up(join[1].least + offset.upper), interval.down(join[1].greatest + offset.lower))
    label, rival = leads.pairs[:, 0], leads.pairs[:, 1]
    folded = [
        Ends(
            interval.up(part.least[rival] - part.greatest[label]),
            interval.down(part.greatest[rival] - part.least[label]),
        )
        for part in (weight, bias)
    ]
    return folded[0], folded[1]


def _both(part: Ends) -> tuple[tuple[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]:
    return (part.least, -part.greatest), (part.greatest, -part.least)


def point_bytes(network: Network) -> int:
    """Bound what one point takes, in bytes: arrays over all layers; and for pairs of classes, their products with the layer
    before, four of those, or their confidences."""
    widths = network.inputs + sum(layer.outputs for layer in network.layers)
    return 8 * (POINT_ARRAYS * widths + 4 * network.class_count**2 * (network.layers[-1].inputs + 1))


def _points_at_a_time(network: Network, memory: int) -> int:
    return at_a_time(point_bytes(network), memory, Part.INPUTS, "one point in closed form", CHUNK)


def greatest_changes(
    network: Network, parameters: ParameterBox, points: FloatArray | Interval, memory: int = MEMORY
) -> Interval:
    """Enclose max over p of abs(f_p0(x) - f_p(x)), the greatest over the classes, at each point (equation 11).

    Shapes    points (n, inputs); result (n,)
    """
    step, x = _points_at_a_time(network, memory), enclosed(points)
    parts = [_changes(network, parameters, x[i : i + step]) for i in range(0, len(x), step)]
    return Interval(np.concatenate([p.lower for p in parts]), np.concatenate([p.upper for p in parts]))


def _changes(network: Network, parameters: ParameterBox, x: Interval) -> Interval:
    logits = nominal_logits(network, x)
    reach = _logit_reach(network, parameters, x)
    if network.output is Output.SIGMOID:
        before = interval.sigmoid(logits)
        top, bottom = interval.sigmoid(reach.greatest), interval.sigmoid(reach.least)
    else:
        before = interval.softmax(logits)
        top, bottom = _extreme_softmax(reach.greatest, reach.least), _extreme_softmax(reach.least, reach.greatest)
    rise, fall = top - before, before - bottom
    lower = np.maximum(np.maximum(rise.lower, fall.lower).max(axis=1), 0.0)
    upper = np.maximum(np.maximum(rise.upper, fall.upper).max(axis=1), 0.0)
    return Interval(lower, upper)


def _extreme_softmax(own: Interval, rivals: Interval) -> Interval:
    """Enclose each class's confidence with its own logit at one end and all its rivals' at the other."""
    columns = []
    for index in range(own.shape[1]):
        here = np.arange(own.shape[1]) == index
        mixed = Interval(np.where(here, own.lower, rivals.lower), np.where(here, own.upper, rivals.upper))
        columns.append(interval.softmax(mixed)[:, index])
    return Interval(np.stack([c.lower for c in columns], axis=1), np.stack([c.upper for c in columns], axis=1))


def label_changes(
    leads: Leads, parameters: ParameterBox, points: FloatArray | Interval, memory: int = MEMORY
) -> tuple[IntArray, IntArray]:
    """Return for each point its label's status (Status) and label; a label that rounding hides is -1 and UNDECIDED.

    Shapes    points (n, inputs); result statuses (n,), labels (n,)
    """
    step, x = _points_at_a_time(leads.network, memory), enclosed(points)
    parts = [_label_changes(leads, parameters, x[i : i + step]) for i in range(0, len(x), step)]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _label_changes(leads: Leads, parameters: ParameterBox, x: Interval) -> tuple[IntArray, IntArray]:
    greatest = _greatest_leads(leads, parameters, x)
    overtaken = np.where(leads.strict, greatest.lower > 0, greatest.lower >= 0)
    held = np.where(leads.strict, greatest.upper <= 0, greatest.upper < 0)
    labels = nominal_labels(leads, x)
    own = leads.pairs[:, 0][None] == labels[:, None]
    safe = (held | ~own).all(axis=1) & (labels >= 0)
    flips = (overtaken & own).any(axis=1)
    return np.where(safe, Status.SAFE, np.where(flips, Status.FLIPPABLE, Status.UNDECIDED)), labels


def nominal_labels(leads: Leads, points: FloatArray | Interval) -> IntArray:
    """Return the labels of the stored network where bounds settle them, else -1. Shapes: points (n, inputs); result (n,)."""
    network = leads.network
    *hidden, last = stored_parameters(network, INTERVALS)
    h = enclosed(points)
    for layer, (weight, bias) in zip(network.hidden_layers, hidden, strict=True):
        h = activate(layer.activation, interval.affine(weight, h, bias), INTERVALS)
    rows = leads.rows(*last)
    upper = interval.affine_upper(rows[0], h, rows[1] + leads.offset)
    behind = np.where(leads.strict, upper <= 0, upper < 0)
    labels = np.full(len(points), -1)
    for label in range(network.class_count):
        labels[behind[:, leads.of_label(label)].all(axis=1)] = label
    return labels
