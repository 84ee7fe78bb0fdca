"""Attacks on parameters that are used more than once: sign steps on the parameters themselves.

Accepts   dense and convolutional layers, pools
Gives     float parameters inside the box that push a row of the logits up
Property  refutes only: what it finds is replayed exactly before it counts
Source    Dong et al. 2018, arXiv 1710.06081, for iterated sign steps
"""

from __future__ import annotations

import numpy as np

from qrobust.domains import Bounds, ParameterBox, Parameters
from qrobust.interval import FloatArray
from qrobust.layers import AveragePool2d, Conv2d, Dense, Layer, MaxPool2d, Scaling
from qrobust.network import Activation, FloatArithmetic, Network, activate

Ends = tuple[FloatArray, FloatArray]
Pairs = list[tuple[FloatArray, FloatArray]]

STARTS = 6  # the stored parameters, then random ends
ROUNDS = 12


def attack_shared(
    network: Network, parameters: ParameterBox, x: FloatArray, nu: FloatArray, enough: float = np.inf
) -> tuple[Parameters | None, float]:
    """Move every parameter to the end of its bounds that the derivative of nu . logits wants, again and again.

    From several starts, until nu . logits is `enough`.
    Shapes    x (inputs,); nu (logits,)
    Returns   the best parameters and what nu . logits is there, in floats; None and -inf if some bounds hold no float
    """
    ends = [(_floats(box.weight), _floats(box.bias)) for box in parameters.layers]
    if any((low > high).any() for pair in ends for low, high in pair):
        return None, -np.inf
    rng = np.random.default_rng(0)
    start = [(np.clip(layer.weight, *w), np.clip(layer.bias, *b)) for layer, (w, b) in zip(network.layers, ends, strict=True)]
    best, kept = -np.inf, start
    for _ in range(STARTS):
        value, chosen = _climbed(network, start, ends, x, nu)
        if value > best:
            best, kept = value, chosen
        if best > enough:
            break
        start = [tuple(np.where(rng.random(low.shape) < 0.5, low, high) for low, high in pair) for pair in ends]  # type: ignore[misc]
    return tuple(kept), best


def _climbed(
    network: Network, chosen: Pairs, ends: list[tuple[Ends, Ends]], x: FloatArray, nu: FloatArray
) -> tuple[float, Pairs]:
    best, kept = -np.inf, chosen
    for _ in range(ROUNDS):
        value, slopes = _slopes(network, chosen, x, nu)
        if value > best:
            best, kept = value, chosen
        chosen = [
            tuple(  # type: ignore[misc]
                np.where(slope > 0, high, np.where(slope < 0, low, now))
                for slope, now, (low, high) in zip(pair, current, limits, strict=True)
            )
            for pair, current, limits in zip(slopes, chosen, ends, strict=True)
        ]
    return best, kept


def _floats(bounds: Bounds) -> Ends:
    return bounds.lower.round_up(), bounds.upper.round_down()


def _slopes(network: Network, chosen: Pairs, x: FloatArray, nu: FloatArray) -> tuple[float, Pairs]:
    """Return nu . logits and its derivatives with respect to all parameters."""
    arithmetic, h = FloatArithmetic(), x[None]
    seen: list[tuple[FloatArray, FloatArray, FloatArray]] = []
    for layer, (weight, bias) in zip(network.layers, chosen, strict=True):
        z = layer.apply(arithmetic, weight, h, bias)
        after = activate(layer.activation, z, arithmetic)
        seen.append((h[0], z[0], after[0]))
        h = after
    slopes: Pairs = []
    wanted = nu
    for layer, (weight, _), (before, z, after) in reversed(list(zip(network.layers, chosen, seen, strict=True))):
        wanted = wanted * _derivative(layer.activation, z, after)
        slopes.append(_parameter_slopes(layer, wanted, before))
        wanted = _passed(layer, weight, wanted, before)
    return float(h[0] @ nu), slopes[::-1]


def _parameter_slopes(layer: Layer, wanted: FloatArray, before: FloatArray) -> tuple[FloatArray, FloatArray]:
    match layer:
        case Dense():
            return np.outer(wanted, before), wanted
        case Conv2d():
            per_channel = wanted.reshape(len(layer.bias), -1)
            return (per_channel @ np.append(before, 0.0)[layer.windows]).reshape(layer.weight.shape), per_channel.sum(axis=1)
    return np.zeros(0), np.zeros(0)


def _passed(layer: Layer, weight: FloatArray, wanted: FloatArray, before: FloatArray) -> FloatArray:
    """What the layer's outputs want of its inputs."""
    match layer:
        case Dense() | Conv2d() | AveragePool2d():
            return np.asarray(wanted @ layer.matrix(weight))
        case Scaling():
            return wanted * layer.nearest[0]
        case MaxPool2d():
            result = np.zeros(layer.inputs)
            winners = layer.windows[np.arange(layer.outputs), before[layer.windows].argmax(axis=1)]
            np.add.at(result, winners, wanted)
            return result


def _derivative(activation: Activation, z: FloatArray, h: FloatArray) -> FloatArray:
    match activation:
        case Activation.LINEAR:
            return np.ones_like(z)
        case Activation.RELU:
            return (z > 0).astype(np.float64)
        case Activation.SIGMOID:
            return h * (1.0 - h)
        case Activation.TANH:
            return 1.0 - h * h
