"""Centred forms: a function over a box from its value at the centre and its slopes over the box.

Accepts   dense layers; linear, ReLU, sigmoid, tanh; batches of boxes over (x, t) as in `differential`
Gives     values and slopes of a stored row, and of the greatest value that a row can take over the parameters that are left
Method    f(y) lies in f(c) + sum_k slope_k (y_k - c_k) for slopes that enclose the generalized gradient over the box,
          carried forward layer by layer. Where no neuron changes its state the slopes are exact, and with them the bound
Property  sound; converges quadratically where plain intervals converge linearly
Source    Moore, Kearfott, Cloud 2009, "Introduction to Interval Analysis", section 6.4 (mean value form)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qrobust import interval
from qrobust.bounds.differential import LayerBounds, PairBounds, chord_slopes
from qrobust.bounds.ibp import INTERVALS
from qrobust.interval import Interval
from qrobust.network import Activation, activate


@dataclass(frozen=True)
class Sloped:
    """Values (batch, n) over boxes, and their slopes (batch, variables, n)."""

    value: Interval
    slope: Interval


@dataclass(frozen=True)
class CentredRow:
    """One output row over boxes: its value at the centres (batch,), its slopes over the boxes (batch, variables)."""

    centre: Interval
    slope: Interval

    def __sub__(self, other: CentredRow) -> CentredRow:
        return CentredRow(self.centre - other.centre, self.slope - other.slope)

    def over(self, boxes: Interval) -> Interval:
        """Enclose the row over the boxes. Shape: (batch,)."""
        middle = Interval.point(boxes.middle)
        return self.centre + interval.total(self.slope * (boxes - middle))


def stored_row(bounds: PairBounds, boxes: Interval, row: tuple[Interval, Interval]) -> CentredRow:
    """Enclose one row of the stored network. Shapes: boxes (batch, variables); row weight (1, in), bias (1,)."""
    centre = _stored_hidden(bounds, Interval.point(boxes.middle), slopes=False)
    over = _stored_hidden(bounds, boxes, slopes=True)
    return CentredRow(interval.affine(row[0], centre.value, row[1])[:, 0], _push(row[0], over.slope)[:, :, 0])


def greatest_row(bounds: PairBounds, boxes: Interval, row: tuple[Interval, Interval]) -> CentredRow | None:
    """Enclose the greatest value that one row takes over the last hidden layer's and its own parameters.

    The row is the box's (weight (1, in), bias (1,)); the other hidden layers' neurons are where the variables t put them.
    None if an output weight may have either sign where the hidden value may too: there is no single best end then.
    """
    weight, bias = row
    if bounds.network.hidden_layers:
        nonnegative = bounds.network.layers[-2].activation in (Activation.RELU, Activation.SIGMOID)
        straddles = (weight.lower < 0) & (weight.upper > 0)
        if straddles.any() and not nonnegative:
            return None
    ends = np.where(weight.upper[0] > 0, 1.0, -1.0)
    centre = _perturbed_hidden(bounds, Interval.point(boxes.middle), ends, slopes=False)
    over = _perturbed_hidden(bounds, boxes, ends, slopes=True)
    middle = (Interval.point(weight.lower) + Interval.point(weight.upper)) * Interval.point(0.5)
    radius = (Interval.point(weight.upper) - Interval.point(weight.lower)) * Interval.point(0.5)
    radius = Interval(np.maximum(radius.lower, 0.0), np.maximum(radius.upper, 0.0))
    top = Interval.point(bias.upper)
    none = Interval.point(np.zeros(1))
    value = interval.affine(middle, centre.value, top) + interval.affine(radius, interval.magnitude(centre.value), none)
    slope = _push(middle, over.slope) + _push(radius, _signs(over.value) * over.slope)
    return CentredRow(value[:, 0], slope[:, :, 0])


def _push(weight: Interval, slope: Interval) -> Interval:
    """Multiply slopes (batch, variables, in) by weights (out, in)."""
    batch, variables, width = slope.shape
    flat = Interval(slope.lower.reshape(-1, width), slope.upper.reshape(-1, width))
    product = interval.affine(weight, flat, Interval.point(np.zeros(weight.shape[0])))
    shape = (batch, variables, weight.shape[0])
    return Interval(product.lower.reshape(shape), product.upper.reshape(shape))


def _signs(x: Interval) -> Interval:
    """Enclose the slope of abs, with an axis for the variables: 1, -1, or [-1, 1] where x may have either sign."""
    lower, upper = np.where(x.lower >= 0, 1.0, -1.0), np.where(x.upper <= 0, -1.0, 1.0)
    return Interval(lower, np.maximum(lower, upper))[:, None, :]


def _inputs(bounds: PairBounds, boxes: Interval, slopes: bool) -> Sloped:
    x = boxes[:, : bounds.network.inputs]
    variables = bounds.variables if slopes else 0
    unit = np.broadcast_to(np.eye(variables, x.shape[1]), (len(boxes), variables, x.shape[1]))
    return Sloped(x, Interval.point(unit))


def _stored_hidden(bounds: PairBounds, boxes: Interval, *, slopes: bool) -> Sloped:
    h = _inputs(bounds, boxes, slopes)
    for layer, numbers in zip(bounds.network.hidden_layers, bounds.layers, strict=False):
        weight, bias = numbers.stored
        h = _activated(layer.activation, interval.affine(weight, h.value, bias), _push(weight, h.slope))
    return h


def _perturbed_hidden(bounds: PairBounds, boxes: Interval, ends: interval.FloatArray, *, slopes: bool) -> Sloped:
    """Propagate the perturbed network, free layers at their variables t, the last one at the given ends."""
    h = _inputs(bounds, boxes, slopes)
    place = bounds.network.inputs
    for number, (layer, numbers) in enumerate(zip(bounds.network.hidden_layers, bounds.layers, strict=False)):
        if number < bounds.free_layers:
            t, own = boxes[:, place : place + layer.outputs], place
            place += layer.outputs
        else:
            t, own = Interval.point(np.broadcast_to(ends, (len(boxes), layer.outputs))), None
        z, slope = _placed(numbers, h, t, own if slopes else None)
        h = _activated(layer.activation, z, slope)
    return h


def _placed(numbers: LayerBounds, h: Sloped, t: Interval, own: int | None) -> tuple[Interval, Interval]:
    """Return pre-activations centre . h + t * radius . abs(h) and their slopes; `own` is where t's variables begin."""
    reach = interval.affine(numbers.radius[0], interval.magnitude(h.value), numbers.radius[1])
    reach = Interval(np.maximum(reach.lower, 0.0), np.maximum(reach.upper, 0.0))
    z = interval.affine(numbers.centre[0], h.value, numbers.centre[1]) + t * reach
    slope = _push(numbers.centre[0], h.slope) + t[:, None, :] * _push(numbers.radius[0], _signs(h.value) * h.slope)
    if own is not None:
        width = t.shape[1]
        lower, upper = slope.lower.copy(), slope.upper.copy()
        units = np.arange(width)
        lower[:, own + units, units], upper[:, own + units, units] = reach.lower, reach.upper
        slope = Interval(lower, upper)
    return z, slope


def _activated(activation: Activation, z: Interval, slope: Interval) -> Sloped:
    return Sloped(activate(activation, z, INTERVALS), chord_slopes(activation, z)[:, None, :] * slope)
