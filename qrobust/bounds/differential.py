"""Differential bounds: the stored and the perturbed network side by side, with their difference.

Accepts   dense layers; linear, ReLU, sigmoid, tanh; batches of boxes over (x, t)
Gives     enclosures of the rows of the stored network, of the perturbed one, and of perturbed minus stored
Method    Interval propagation of h, h' and dh = h' - h together. Each neuron of the `free` layers has one variable t in
          [-1, 1]: its pre-activation is centre . h' + t * radius . abs(h'), which reaches exactly what its parameters reach
          (THEORY.md, section 3). Of h, h', dh any two bound the third, and slopes bound dh through an activation
Property  sound; as the box over (x, t) shrinks to a point it becomes exact for each single output row if all hidden layers
          but the last are free, and for all rows together if all are
Source    Paulsen, Wang, Wang, ICSE 2020 (ReluDiff), for the difference; the neuron variables are ours
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qrobust import interval
from qrobust.bounds.ibp import INTERVALS
from qrobust.domains import LayerBox, ParameterBox
from qrobust.interval import FloatArray, Interval
from qrobust.network import Activation, FloatArithmetic, Network, activate

HALF = Interval.point(0.5)


@dataclass(frozen=True)
class Pair:
    """Enclosures of stored, perturbed and perturbed minus stored, each (batch, n)."""

    stored: Interval
    perturbed: Interval
    difference: Interval

    def tightened(self) -> Pair:
        """Let each two of the three bound the third."""
        difference = self.difference.meet(self.perturbed - self.stored)
        perturbed = self.perturbed.meet(self.stored + difference)
        stored = self.stored.meet(self.perturbed - difference)
        return Pair(stored, perturbed, difference)


@dataclass(frozen=True)
class LayerBounds:
    """What propagation needs of one layer: stored numbers, box, box minus stored, and the box's centre and radius."""

    stored: tuple[Interval, Interval]
    box: tuple[Interval, Interval]
    deviation: tuple[Interval, Interval]
    centre: tuple[Interval, Interval]
    radius: tuple[Interval, Interval]

    @classmethod
    def of(cls, weight: FloatArray, bias: FloatArray, box: LayerBox) -> LayerBounds:
        """Prepare one layer."""
        stored = Interval.point(weight), Interval.point(bias)
        ends = [
            (Interval(b.lower.round_down(), b.lower.round_up()), Interval(b.upper.round_down(), b.upper.round_up()))
            for b in (box.weight, box.bias)
        ]
        centre = tuple((low + high) * HALF for low, high in ends)
        radius = tuple(_nonnegative((high - low) * HALF) for low, high in ends)
        intervals = box.weight.interval, box.bias.interval
        deviation = intervals[0] - stored[0], intervals[1] - stored[1]
        return cls(stored, intervals, deviation, (centre[0], centre[1]), (radius[0], radius[1]))


def _nonnegative(x: Interval) -> Interval:
    return Interval(np.maximum(x.lower, 0.0), np.maximum(x.upper, 0.0))


class PairBounds:
    """Propagates boxes over (x, t) through all hidden layers; the caller folds the last layer's rows."""

    def __init__(self, network: Network, parameters: ParameterBox, *, free_layers: int) -> None:
        self.network = network
        self.layers = [
            LayerBounds.of(layer.weight, layer.bias, box) for layer, box in zip(network.layers, parameters.layers, strict=True)
        ]
        self.free_layers = free_layers
        self.variables = network.inputs + sum(layer.outputs for layer in network.layers[:free_layers])

    def forecast(self, points: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the last hidden layer in floating point: stored, and the least and greatest perturbed; no bounds.

        Shapes: points (batch, variables); results (batch, n)
        """
        arithmetic = FloatArithmetic()
        x = points[:, : self.network.inputs]
        stored, low, high, place = x, x, x, self.network.inputs
        for number, (layer, bounds) in enumerate(zip(self.network.hidden_layers, self.layers, strict=False)):
            stored = activate(layer.activation, arithmetic.affine(layer.weight, stored, layer.bias), arithmetic)
            centre = arithmetic.affine(bounds.centre[0].lower, high, bounds.centre[1].lower)
            reach = arithmetic.affine(bounds.radius[0].lower, np.abs(high), bounds.radius[1].lower)
            t: FloatArray | float = 1.0
            if number < self.free_layers:
                t = points[:, place : place + layer.outputs]
                place += layer.outputs
            high = activate(layer.activation, centre + t * reach, arithmetic)
            low = high if number < self.free_layers else activate(layer.activation, centre - reach, arithmetic)
        return stored, low, high

    def hidden(self, box: Interval) -> Pair:
        """Enclose the last hidden layer. Shapes: box (batch, variables): the inputs, then t layer by layer."""
        x = box[:, : self.network.inputs]
        zero = Interval.point(np.zeros(x.shape))
        pair = Pair(x, x, zero)
        place = self.network.inputs
        for number, (layer, bounds) in enumerate(zip(self.network.hidden_layers, self.layers, strict=False)):
            t = None
            if number < self.free_layers:
                t = box[:, place : place + layer.outputs]
                place += layer.outputs
            pair = _activated(layer.activation, _pre_activation(bounds, pair, t))
        return pair

    def trace(self, inputs: Interval) -> list[Pair]:
        """Enclose the pre-activations of every layer, the last included; no neuron is free. Shapes: inputs (batch, inputs)."""
        pair, found = Pair(inputs, inputs, Interval.point(np.zeros(inputs.shape))), []
        for layer, bounds in zip(self.network.layers, self.layers, strict=True):
            found.append(_pre_activation(bounds, pair, None))
            pair = _activated(layer.activation, found[-1])
        return found


def _pre_activation(bounds: LayerBounds, pair: Pair, t: Interval | None) -> Pair:
    weight, bias = bounds.stored
    no_bias = Interval.point(np.zeros(bias.shape))
    stored = interval.affine(weight, pair.stored, bias)
    perturbed = interval.affine(*_between(bounds.box, pair.perturbed))
    carried = interval.affine(weight, pair.difference, no_bias)
    difference = carried + interval.affine(*_between(bounds.deviation, pair.perturbed))
    if t is not None:
        reach = interval.affine(*_between(bounds.radius, interval.magnitude(pair.perturbed)))
        moved = t * _nonnegative(reach)
        shift = bounds.centre[0] - weight, bounds.centre[1] - bias
        perturbed = perturbed.meet(interval.affine(*_between(bounds.centre, pair.perturbed)) + moved)
        difference = difference.meet(carried + interval.affine(*_between(shift, pair.perturbed)) + moved)
    return Pair(stored, perturbed, difference).tightened()


def _between(rows: tuple[Interval, Interval], x: Interval) -> tuple[Interval, Interval, Interval]:
    return rows[0], x, rows[1]


def _activated(activation: Activation, z: Pair) -> Pair:
    stored = activate(activation, z.stored, INTERVALS)
    perturbed = activate(activation, z.perturbed, INTERVALS)
    slope = chord_slopes(activation, z.stored.join(z.perturbed))
    return Pair(stored, perturbed, z.difference * slope).tightened()


def chord_slopes(activation: Activation, z: Interval) -> Interval:
    """Enclose the slopes of chords of an activation between two points of z (mean value theorem)."""
    match activation:
        case Activation.LINEAR:
            return Interval.point(np.ones(z.shape))
        case Activation.RELU:
            on, off = z.upper > 0, z.lower < 0  # neither at the kink alone: there every slope in [0, 1] is one
            return Interval((on & ~off).astype(np.float64), (on | ~off).astype(np.float64))
        case Activation.SIGMOID | Activation.TANH:
            distance = interval.magnitude(z)  # both slopes fall with the distance from 0
            least = np.maximum(_slope_at(activation, distance.upper).lower, 0.0)
            greatest = np.minimum(_slope_at(activation, distance.lower).upper, 1.0)
            return Interval(least, np.maximum(greatest, least))


def _slope_at(activation: Activation, z: FloatArray) -> Interval:
    """Enclose the derivative of sigmoid or tanh: s (1 - s), 1 - s**2."""
    value = activate(activation, Interval.point(z), INTERVALS)
    one = Interval.point(np.ones(z.shape))
    return value * (one - value) if activation is Activation.SIGMOID else one - value * value


def row_forecast(rows: tuple[Interval, Interval], low: FloatArray, high: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the least and greatest value of output rows in floating point; no bounds. Shapes: low, high (batch, in)."""
    weight, bias = rows
    ends = [a[:, None, :] * w for a in (low, high) for w in (weight.lower, weight.upper)]
    least, greatest = np.minimum.reduce(ends).sum(axis=2), np.maximum.reduce(ends).sum(axis=2)
    return least + bias.lower, greatest + bias.upper


def row_pair(
    stored: tuple[Interval, Interval],
    box: tuple[Interval, Interval],
    deviation: tuple[Interval, Interval],
    hidden: Pair,
) -> Pair:
    """Enclose output rows over hidden values: stored, anywhere in the box, and their difference."""
    no_bias = Interval.point(np.zeros(stored[1].shape))
    carried = interval.affine(stored[0], hidden.difference, no_bias)
    return Pair(
        interval.affine(*_between(stored, hidden.stored)),
        interval.affine(*_between(box, hidden.perturbed)),
        carried + interval.affine(*_between(deviation, hidden.perturbed)),
    ).tightened()
