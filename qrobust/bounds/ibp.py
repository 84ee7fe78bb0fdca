"""Interval bound propagation: the network evaluated over intervals of inputs and parameters.

Accepts   scaled inputs, dense layers, convolutions, pools; linear, ReLU, sigmoid, tanh; any parameter box; batches of boxes
Gives     intervals around every logit
Method    `network.perturbed_logits` over interval arithmetic, parameters eliminated row by row (THEORY.md, section 3)
Property  sound; exact (up to rounding) at a point for networks with one hidden layer and one logit; not complete otherwise.
          A convolution treats each use of a kernel weight as a parameter of its own: sound, not exact, for outputs that
          share a weight move together
Source    Gowal et al. 2018, arXiv 1810.12715; for the elimination, Prabhakar and Afzal, NeurIPS 2019
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from qrobust import interval
from qrobust.domains import ParameterBox
from qrobust.interval import FloatArray, Interval, round_fraction_down, round_fraction_up
from qrobust.layers import IntArray, Scaling
from qrobust.network import Network, perturbed_logits, stored_parameters


class IntervalArithmetic:
    """The operations of a network over batches of intervals. Shapes: x (batch, n); weight (out, in)."""

    def constant(self, values: FloatArray) -> Interval:
        return Interval.point(values)

    def affine(self, weight: Interval, x: Interval, bias: Interval) -> Interval:
        return interval.affine(weight, x, bias)

    def convolve(self, weight: Interval, x: Interval, bias: Interval, windows: IntArray) -> Interval:
        """Enclose each output by itself. Property: sound; outputs that share a weight are not bounded together."""
        batch, (positions, size) = x.shape[0], windows.shape
        kernels = Interval(weight.lower.reshape(-1, size), weight.upper.reshape(-1, size))
        zeros = np.zeros((batch, 1))
        ends = [np.concatenate([end, zeros], axis=1)[:, windows].reshape(-1, size) for end in (x.lower, x.upper)]
        values = interval.affine(kernels, Interval(ends[0], ends[1]), bias)
        order = (batch, positions, kernels.shape[0])
        ends = [end.reshape(order).swapaxes(1, 2).reshape(batch, order[1] * order[2]) for end in (values.lower, values.upper)]
        return Interval(ends[0], ends[1])

    def mean(self, x: Interval, windows: IntArray) -> Interval:
        share = Fraction(1, windows.shape[1])
        ends = np.array([round_fraction_down(share)]), np.array([round_fraction_up(share)])
        return interval.total(x[:, windows]) * Interval(*ends)

    def maximum(self, x: Interval, windows: IntArray) -> Interval:
        """Return the exact range."""
        return Interval(x.lower[:, windows].max(axis=2), x.upper[:, windows].max(axis=2))

    def rescale(self, x: Interval, scaling: Scaling) -> Interval:
        return scaling.enclose(x)

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
