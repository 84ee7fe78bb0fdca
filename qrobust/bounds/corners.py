"""Parameters that attain what the bounds promise: counterexamples rebuilt, exactly, from an input and one number a neuron.

Method    Row i of a layer reaches from its least to its greatest value as its parameters move together from one corner of
          their box to the opposite one; t in [-1, 1] says how far. Rows share no parameter, so each has its own t. A last
          hidden neuron belongs at an end: the one that the directed sum of output rows wants
Property  exact: the parameters are rationals inside the box. Attains the maximum of a directed sum of logits at a point,
          for networks with one hidden layer, unless a tie between balls cannot be settled
Source    THEORY.md, section 3
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from flint import arb

from qrobust.answers import Counterexample
from qrobust.domains import Bounds, LayerBox, ParameterBox, Parameters
from qrobust.exact import ExactArithmetic, ExactArray, to_exact, to_rational
from qrobust.interval import FloatArray
from qrobust.network import Network, activate

ARITHMETIC = ExactArithmetic()


def corner(
    network: Network,
    parameters: ParameterBox,
    x: Sequence[Fraction],
    directions: FloatArray,
    positions: Sequence[FloatArray | ExactArray] = (),
) -> Counterexample:
    """Return the input with parameters that push directions @ logits up.

    Shapes    directions (logits,) of -1, 0, 1; positions: one array of t in [-1, 1] a hidden layer, from the first on; the
              last may be left out and is then chosen, and layers in between take their middle
    """
    h = to_exact(list(x))
    chosen: list[tuple[ExactArray, ExactArray]] = []
    last = len(network.hidden_layers) - 1
    for number, (layer, box) in enumerate(zip(network.hidden_layers, parameters.layers, strict=False)):
        if number < len(positions):
            t: FloatArray | ExactArray = positions[number]
        elif number == last:
            t = _wanted(network, parameters, h, directions)
        else:
            t = np.zeros(layer.outputs)
        rows = _rows_at(box, h, t)
        chosen.append(rows)
        h = activate(layer.activation, ARITHMETIC.affine(to_exact(rows[0]), h, to_exact(rows[1])), ARITHMETIC)
    chosen.append(_rows_at(parameters.layers[-1], h, directions))
    return Counterexample(tuple(x), tuple(chosen))


def positions_of(
    network: Network, parameters: ParameterBox, x: Sequence[Fraction], pre_activations: Sequence[ExactArray]
) -> list[ExactArray]:
    """Return, for each hidden layer, the t in [-1, 1] of each neuron that gives these pre-activations (Fractions), exactly.

    Accepts   linear and ReLU hidden layers, and pre-activations that the parameter box can reach
    """
    h, positions = to_exact(list(x)), []
    for layer, box, wanted in zip(network.hidden_layers, parameters.layers, pre_activations, strict=False):
        ends = []
        for side in (-1.0, 1.0):
            weight, bias = _rows_at(box, h, np.full(layer.outputs, side))
            ends.append([to_rational(z) for z in ARITHMETIC.affine(to_exact(weight), h, to_exact(bias))])
        t = [
            2 * (z - low) / (high - low) - 1 if high > low else Fraction(0) for z, low, high in zip(wanted, *ends, strict=True)
        ]
        positions.append(np.array(t, dtype=object))
        h = activate(layer.activation, to_exact(wanted), ARITHMETIC)
    return positions


def _rows_at(box: LayerBox, h: ExactArray, t: FloatArray | ExactArray) -> tuple[ExactArray, ExactArray]:
    """Return each row's weights and bias at fraction (1 + t) / 2 of the way from its least to its greatest value."""
    (low, high), (bias_low, bias_high) = box.weight.fractions, box.bias.fractions
    negative = np.array([bool(value < 0) for value in h])
    start, end = np.where(negative, high, low), np.where(negative, low, high)
    way = np.array([(1 + Fraction(value)) / 2 for value in t.tolist()], dtype=object)
    return start + way[:, None] * (end - start), bias_low + way * (bias_high - bias_low)


def _wanted(network: Network, parameters: ParameterBox, h: ExactArray, directions: FloatArray) -> FloatArray:
    """Return the end (+1 or -1) of each last hidden neuron at which the directed output sum is greatest."""
    layer, box = network.layers[-2], parameters.layers[-2]
    ends = []
    for side in (-1.0, 1.0):
        rows = _rows_at(box, h, np.full(layer.outputs, side))
        z = ARITHMETIC.affine(to_exact(rows[0]), h, to_exact(rows[1]))
        ends.append(activate(layer.activation, z, ARITHMETIC))
    low, high = parameters.layers[-1].weight.fractions
    signs = np.array([Fraction(value) for value in directions.tolist()], dtype=object)[:, None]
    least = to_exact(np.where(signs < 0, signs * high, signs * low).sum(axis=0))
    greatest = to_exact(np.where(signs < 0, signs * low, signs * high).sum(axis=0))
    gains = [_largest(least * end, greatest * end) for end in ends]
    return np.where([bool(up >= down) for down, up in zip(*gains, strict=True)], 1.0, -1.0)


def _largest(first: ExactArray, second: ExactArray) -> list[arb]:
    pairs = zip(first, second, strict=True)
    return [arb(a).max(arb(b)) if isinstance(a, arb) or isinstance(b, arb) else max(a, b) for a, b in pairs]


def rounded_inside(parameters: ParameterBox, example: Counterexample) -> Counterexample | None:
    """Return the example with every parameter a float64 inside the box, or None if some bounds hold no float."""
    rounded = []
    for box, (weight, bias) in zip(parameters.layers, example.parameters, strict=True):
        arrays = [_round(bounds, values) for bounds, values in ((box.weight, weight), (box.bias, bias))]
        if arrays[0] is None or arrays[1] is None:
            return None
        rounded.append((arrays[0], arrays[1]))
    result: Parameters = tuple(rounded)
    return Counterexample(example.x, result)


def _round(bounds: Bounds, values: npt.NDArray[Any]) -> FloatArray | None:
    least, greatest = bounds.lower.round_up(), bounds.upper.round_down()
    if np.any(least > greatest):
        return None
    return np.clip(values.astype(np.float64), least, greatest)
