"""Shares of a linear bound: how much of it each parameter, and each layer's activations, take up.

Accepts   one input; every network and parameter box; rows over the logits
Gives     for the row with the greatest certified bound, what each parameter adds to its value at the stored network
Method    The multipliers nu of backward substitution (`linear`) price every pre-activation. At the stored network's own
          activations h0 and pre-activations z0 the parameters p of a layer can move the row by max over p of (p - p0) . s, with
          s = nu h0 (of a kernel, summed over its places): that is their share. What a neuron's relaxation loses, conjugate
          minus its value at z0, and what pulling a kernel out loses, is its layer's `relaxed`. Both are at least 0 where
          the box holds the stored network
Property  the shares add up to (certified upper bound) - (value at the stored network), up to rounding. They belong to one
          choice of multipliers, so they say where a proof spends its margin; that a relief helps is for a new proof to show
Source    weak duality, as in Dvijotham et al. 2018, arXiv 1803.06567; THEORY.md, section 4
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qrobust.bounds.linear import Tuning, pre_activations, tuned
from qrobust.bounds.stages import Stage, ball, stages_by_layer, stages_of, stored_stages
from qrobust.bounds.substitution import Above, Levels, Substitution, backward
from qrobust.domains import Bounds, LayerBox, ParameterBox
from qrobust.interval import FloatArray, Interval
from qrobust.layers import Activation, Conv2d, Layer
from qrobust.network import FloatArithmetic, Network, activate

TUNING = Tuning(steps=30)
LEVEL_TUNING = Tuning(steps=5)


@dataclass(frozen=True, eq=False)
class LayerShares:
    """The shares of one layer. Shapes: weight, bias as the layer's own (empty for a pool)."""

    weight: FloatArray
    bias: FloatArray
    relaxed: float

    @property
    def rows(self) -> FloatArray:
        """The sum over each output channel's weights and bias. Shape: (channels,)."""
        return np.asarray(self.weight.sum(axis=tuple(range(1, self.weight.ndim))) + self.bias)

    @property
    def total(self) -> float:
        """The sum of the parameters' shares."""
        return float(self.weight.sum() + self.bias.sum())


@dataclass(frozen=True, eq=False)
class Shares:
    """The row with the greatest bound: its number, its value at the stored network, the bound, and each layer's shares."""

    row: int
    stored: float
    upper: float
    layers: tuple[LayerShares, ...]

    @property
    def used(self) -> float:
        """How far the bound is above the stored value: what the shares add up to."""
        return self.upper - self.stored


def shares(network: Network, parameters: ParameterBox, x: FloatArray, nu: FloatArray, offset: FloatArray) -> Shares:
    """Return the shares of the row nu . logits + offset with the greatest upper bound at an input.

    Shapes    x (inputs,); nu (rows, logits); offset (rows,)
    """
    levels = Levels(Activation.LINEAR, stages_of(network, parameters))
    bounds = pre_activations(levels, Interval.point(x[None]), LEVEL_TUNING)
    sizes = levels.sizes(bounds)
    above = Above.of_rows(levels.stages[-1], nu, offset, sizes[-1])
    kept = [np.zeros((len(nu), z.shape[1])) for z in bounds]
    tuned(levels, levels.top, above, bounds, sizes, TUNING, kept)
    found = backward(levels, levels.top, above, bounds, sizes, given=kept)
    row = int(found.upper.argmax())
    values = list(_stored_values(network, x))
    last, h = stored_stages(network)[-1], values[-1][1]
    stored = float(nu[row] @ (last.weight @ h + last.bias) + offset[row])
    return Shares(row, stored, float(found.upper[row]), tuple(_layer_shares(network, parameters, found, row, nu[row], values)))


def _stored_values(network: Network, x: FloatArray) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield the stored network's pre-activations and activations at every level, the input first, in floats."""
    h = x
    yield x, x
    for stage in stored_stages(network)[:-1]:
        z = stage.weight @ h + stage.bias
        h = activate(stage.activation, z, FloatArithmetic())
        yield z, h


def _layer_shares(
    network: Network,
    parameters: ParameterBox,
    found: Substitution,
    row: int,
    top: FloatArray,
    values: list[tuple[FloatArray, FloatArray]],
) -> Iterator[LayerShares]:
    level, last = 0, len(found.steps)
    for layer, box, stages in zip(network.layers, parameters.layers, stages_by_layer(network, parameters), strict=True):
        relaxed = 0.0
        for stage in stages:
            h = values[level][1]
            nu = top if level + 1 == last else found.steps[level + 1].nu[row]
            relaxed += _kernel_loss(stage, found.steps[level].above, row, nu, h)
            if level + 1 < last:
                relaxed += _neuron_losses(found, level + 1, row, values[level + 1])
            level += 1
        yield LayerShares(*_parameter_shares(layer, box, nu, h), relaxed)


def _parameter_shares(layer: Layer, box: LayerBox, nu: FloatArray, h: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return what a layer's weights and biases can add at the stored activations. Shapes: nu (out,); h (in,)."""
    if not layer.weight.size:
        return layer.weight, layer.bias
    if isinstance(layer, Conv2d):
        places = nu.reshape(len(layer.bias), -1)
        slopes = (places @ np.append(h, 0.0)[layer.windows]).reshape(layer.weight.shape)
        return _movement(layer.weight, box.weight, slopes), _movement(layer.bias, box.bias, places.sum(axis=1))
    return _movement(layer.weight, box.weight, np.outer(nu, h)), _movement(layer.bias, box.bias, nu)


def _movement(stored: FloatArray, bounds: Bounds, slopes: FloatArray) -> FloatArray:
    """The greatest (p - p0) * slope of each parameter, in floats."""
    centre, radius = ball(stored, bounds)
    return np.asarray((centre - stored) * slopes + radius * np.abs(slopes))


def _kernel_loss(stage: Stage, above: Above, row: int, nu: FloatArray, h: FloatArray) -> float:
    """What eliminating a kernel costs beyond its effect at the stored activations."""
    if stage.kernel is None or above.pulled is None:
        return 0.0
    pulled, kernel = above.pulled, stage.kernel
    places = nu.reshape(len(kernel.radius), -1)
    exact = (kernel.radius * np.abs(places @ kernel.seen(h[None])[0])).sum() + np.abs(places.sum(axis=1)) @ kernel.bias_radius
    return float(pulled.coefficients[row] @ h + pulled.value[row] - exact)


def _neuron_losses(found: Substitution, level: int, row: int, values: tuple[FloatArray, FloatArray]) -> float:
    """What the relaxations of a level's activations cost: conjugate minus its value at the stored pre-activations."""
    step, (z, h) = found.steps[level], values
    wanted = step.above.rise[row] * np.maximum(h, 0.0) + step.above.fall[row] * np.minimum(h, 0.0) - step.nu[row] * z
    return float((step.lost[row] - wanted).sum())
