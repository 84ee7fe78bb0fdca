"""Attacks on the parameters, in the space of one position a neuron.

Row i of a stage reaches from least to greatest as its position goes from -1 to 1 (THEORY.md, section 3), so an attack on all
parameters is one on these positions. It starts where a relaxation attains its bound, or at random ends, and moves every
position to the end that the derivative of the objective wants, until nothing changes; a ReLU that is off passes on what it
would if it were on, since it has no derivative of its own.

Accepts   `linear.Levels`; batches of rows over the logits; any library's arrays to search in, as `arrays`
Gives     positions and forecasts of what they attain; parameters as floats inside the box
Property  refutes only: what it finds is replayed exactly before it counts
Source    Dong et al. 2018, arXiv 1710.06081, for iterated sign steps; the space is ours
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qrobust.arrays import Array, Arrays, namespace_of
from qrobust.bounds.spans import FLOATS, Span
from qrobust.bounds.substitution import Levels
from qrobust.domains import LayerBox, ParameterBox, Parameters
from qrobust.interval import FloatArray, Interval
from qrobust.network import Activation, FloatArithmetic, Network, activate

ROUNDS = 12


@dataclass(frozen=True)
class Found:
    """The best positions met: forecast values (batch,), and one array (batch, n) of -1 or 1 a hidden level."""

    value: FloatArray
    positions: list[FloatArray]


def forward(levels: Levels, start: Interval | Span, positions: Sequence[Array]) -> list[Array]:
    """Return the pre-activations of the hidden levels at these positions, in floating point. Shapes: (batch, n)."""
    z = namespace_of(positions[0]).where(positions[0] > 0, start.upper, start.lower)
    reached = [z]
    for number in range(levels.top - 1):
        h = activate(levels.activation(number), z, FLOATS)
        stage = levels.stages[number]
        z = h @ stage.transposed + stage.bias
        if not stage.fixed:
            z = z + positions[number + 1] * stage.reach(h)
        reached.append(z)
    return reached


def climb(
    levels: Levels,
    start: Interval,
    nu: FloatArray,
    offset: FloatArray,
    positions: Sequence[FloatArray],
    rounds: int = ROUNDS,
    arrays: Arrays | None = None,
) -> Found:
    """Improve positions for the objectives nu . logits + offset; with `arrays` the device does, and its best is forecast here.

    Shapes    nu (batch, logits); start (batch or 1, n); positions (batch, n) each
    """
    if arrays is not None:
        with arrays.proposing():
            given = [arrays.to_device(part) for part in (nu, offset, *positions)]
            found = _climbed(levels.on(arrays), Span.on(arrays, start), given[0], given[1], given[2:], rounds)
            ends = [arrays.to_host(new, old.shape, -1.0) for new, old in zip(found.positions, positions, strict=True)]
        positions, rounds = [np.where(p > 0, 1.0, -1.0) for p in ends], 1
    return _climbed(levels, start, nu, offset, list(positions), rounds)


def _climbed(levels: Levels, start: Interval | Span, nu: Array, offset: Array, positions: list[Array], rounds: int) -> Found:
    xp = namespace_of(nu)
    best, kept = xp.full_like(offset, -xp.inf), positions
    last = levels.stages[-1]
    for count in range(rounds):
        reached = forward(levels, start, positions)
        h = activate(levels.activation(levels.top - 1), reached[-1], FLOATS)
        reach = last.reach(h)
        value = offset + xp.sum(nu * (h @ last.transposed + last.bias), axis=1) + xp.sum(xp.abs(nu) * reach, axis=1)
        better = value > best + 1e-12 * xp.abs(value)
        best = xp.where(better, value, best)
        kept = [xp.where(better[:, None], new, old) for new, old in zip(positions, kept, strict=True)]
        if count == rounds - 1 or not xp.any(better):
            break
        positions = _steered(levels, reached, nu, positions)
    return Found(best, kept)


def _steered(levels: Levels, reached: Sequence[Array], nu: Array, positions: Sequence[Array]) -> list[Array]:
    """Move every position to the end that the derivative wants."""
    xp = namespace_of(nu)
    moved, signed = list(positions), xp.sign(nu)
    for number in range(levels.top - 1, -1, -1):
        stage, activation, z = levels.stages[number], levels.activation(number), reached[number]
        h = activate(activation, z, FLOATS)
        wanted = nu @ stage.weight
        if not stage.fixed:
            turned = nu * signed
            spread = (turned @ stage.radius)[:, None] if stage.radius.ndim == 1 else turned @ stage.radius
            wanted = wanted + xp.where(h < 0, -1.0, xp.ones_like(h)) * spread
        moved[number] = signed = xp.where(wanted > 0, 1.0, xp.where(wanted < 0, -1.0, moved[number]))
        nu = wanted * _derivative(activation, z, h)
    return moved


def _derivative(activation: Activation, z: Array, h: Array) -> Array:
    xp = namespace_of(z)
    match activation:
        case Activation.LINEAR:
            return xp.ones_like(z)
        case Activation.RELU:
            return xp.asarray(z > 0, dtype=z.dtype)
        case Activation.SIGMOID:
            return h * (1.0 - h)
        case Activation.TANH:
            return 1.0 - h * h


def parameters_at(
    network: Network, parameters: ParameterBox, x: FloatArray, positions: Sequence[FloatArray], nu: FloatArray
) -> Parameters | None:
    """Return float parameters inside the box with every row at the end that its position names; None if some bounds hold no
    float.

    Shapes    x (inputs,); positions: one array (n,) a hidden layer; nu (logits,) gives the last layer's
    """
    arithmetic, h = FloatArithmetic(), x[None]
    chosen = []
    for number, (layer, box) in enumerate(zip(network.layers, parameters.layers, strict=True)):
        rows = _rows(box, h[0], nu if number == len(positions) else positions[number])
        if rows is None:
            return None
        chosen.append(rows)
        h = activate(layer.activation, arithmetic.affine(rows[0], h, rows[1]), arithmetic)
    return tuple(chosen)


def _rows(box: LayerBox, h: FloatArray, positions: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    ends = [(b.lower.round_up(), b.upper.round_down()) for b in (box.weight, box.bias)]
    if any((low > high).any() for low, high in ends):
        return None
    raised = (positions[:, None] > 0) == (h >= 0)
    return np.where(raised, ends[0][1], ends[0][0]), np.where(positions > 0, ends[1][1], ends[1][0])
