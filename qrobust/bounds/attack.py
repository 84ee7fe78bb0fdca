"""Attacks on the parameters, in the space of one position a neuron.

Row i of a stage reaches from least to greatest as its position goes from -1 to 1 (THEORY.md, section 3), so an attack on all
parameters is one on these positions. It starts where a relaxation attains its bound, or at random ends, and moves every
position to the end that the derivative of the objective wants, until nothing changes; a ReLU that is off passes on what it
would if it were on, since it has no derivative of its own.

Accepts   `linear.Levels`; batches of rows over the logits
Gives     positions and forecasts of what they attain; parameters as floats inside the box
Property  refutes only: what it finds is replayed exactly before it counts
Source    Dong et al. 2018, arXiv 1710.06081, for iterated sign steps; the space is ours
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qrobust.bounds.linear import Levels
from qrobust.domains import LayerBox, ParameterBox, Parameters
from qrobust.interval import FloatArray, Interval
from qrobust.network import Activation, FloatArithmetic, Network, activate

ROUNDS = 12


@dataclass(frozen=True)
class Found:
    """The best positions met: forecast values (batch,), and one array (batch, n) of -1 or 1 a hidden level."""

    value: FloatArray
    positions: list[FloatArray]


def forward(levels: Levels, start: Interval, positions: Sequence[FloatArray]) -> list[FloatArray]:
    """Return the pre-activations of the hidden levels at these positions, in floating point. Shapes: (batch, n)."""
    z = np.where(positions[0] > 0, start.upper, start.lower)
    reached = [z]
    for number in range(levels.top - 1):
        h = activate(levels.activation(number), z, FloatArithmetic())
        stage = levels.stages[number]
        z = h @ stage.transposed + stage.bias
        if not stage.fixed:
            z = z + positions[number + 1] * stage.reach(h)
        reached.append(z)
    return reached


def climb(
    levels: Levels, start: Interval, nu: FloatArray, offset: FloatArray, positions: Sequence[FloatArray], rounds: int = ROUNDS
) -> Found:
    """Improve positions for the objectives nu . logits + offset. Shapes: nu (batch, logits); start (batch or 1, n)."""
    positions = [p.copy() for p in positions]
    best, kept = np.full(len(nu), -np.inf), [p.copy() for p in positions]
    last = levels.stages[-1]
    for _ in range(rounds):
        reached = forward(levels, start, positions)
        h = activate(levels.activation(levels.top - 1), reached[-1], FloatArithmetic())
        reach = last.reach(h)
        value = offset + (nu * (h @ last.transposed + last.bias)).sum(axis=1) + (np.abs(nu) * reach).sum(axis=1)
        better = value > best + 1e-12 * np.abs(value)
        best = np.where(better, value, best)
        for old, new in zip(kept, positions, strict=True):
            old[better] = new[better]
        if not better.any():
            break
        _steer(levels, reached, nu, positions)
    return Found(best, kept)


def _steer(levels: Levels, reached: Sequence[FloatArray], nu: FloatArray, positions: list[FloatArray]) -> None:
    """Move every position to the end that the derivative wants, in place."""
    signed = np.sign(nu)
    for number in range(levels.top - 1, -1, -1):
        stage, activation, z = levels.stages[number], levels.activation(number), reached[number]
        h = activate(activation, z, FloatArithmetic())
        wanted = nu @ stage.weight
        if not stage.fixed:
            moved = nu * signed
            spread = (moved @ stage.radius)[:, None] if stage.radius.ndim == 1 else moved @ stage.radius
            wanted = wanted + np.where(h < 0, -1.0, 1.0) * spread
        positions[number] = signed = np.where(wanted > 0, 1.0, np.where(wanted < 0, -1.0, positions[number]))
        nu = wanted * _derivative(activation, z, h)


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
