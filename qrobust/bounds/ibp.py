"""Interval bound propagation: the network evaluated over intervals of inputs and parameters.

Accepts   dense layers; linear, ReLU, sigmoid, tanh; any parameter box; batches of input boxes
Gives     intervals around every logit
Method    `network.perturbed_logits` over interval arithmetic, parameters eliminated row by row (THEORY.md, section 3)
Property  sound; exact (up to rounding) at a point for networks with one hidden layer and one logit; not complete otherwise
Source    Gowal et al. 2018, arXiv 1810.12715; for the elimination, Prabhakar and Afzal, NeurIPS 2019
"""

from __future__ import annotations

from qrobust import interval
from qrobust.domains import ParameterBox
from qrobust.interval import FloatArray, Interval
from qrobust.network import Network, perturbed_logits, stored_parameters


class IntervalArithmetic:
    """The operations of a network over batches of intervals. Shapes: x (batch, n); weight (out, in)."""

    def constant(self, values: FloatArray) -> Interval:
        return Interval.point(values)

    def affine(self, weight: Interval, x: Interval, bias: Interval) -> Interval:
        return interval.affine(weight, x, bias)

    def relu(self, x: Interval) -> Interval:
        return interval.relu(x)

    def sigmoid(self, x: Interval) -> Interval:
        return interval.sigmoid(x)

    def tanh(self, x: Interval) -> Interval:
        return interval.tanh(x)

    def softmax(self, x: Interval) -> Interval:
        return interval.softmax(x)


INTERVALS = IntervalArithmetic()


def nominal_logits(network: Network, x: Interval) -> Interval:
    """Enclose the stored network's logits. Shapes: x (batch, inputs); result (batch, logits)."""
    return perturbed_logits(network, stored_parameters(network, INTERVALS), x, INTERVALS)


def box_logits(network: Network, parameters: ParameterBox, x: Interval) -> Interval:
    """Enclose the logits of every network in the box. Shapes: x (batch, inputs); result (batch, logits)."""
    return perturbed_logits(network, parameters.intervals, x, INTERVALS)
