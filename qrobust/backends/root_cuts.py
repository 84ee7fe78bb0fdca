"""Linear programs with cuts at the root of a local search: what closes rows that splitting neurons closes slowly.

Accepts   dense networks with linear and ReLU hidden layers, at a point, with bounds of all hidden pre-activations
Gives     certified upper bounds of rows over the perturbed logits
Method    the rows of `twins` with cuts of single neurons (`relu_cuts`), round by round; the bound is that of the multipliers
Property  sound, whatever HiGHS answers
Source    as `relu_cuts`; on networks with wide layers these cuts can take the bound below 0 where tens of thousands of splits
          do not (benchmarks, mnist-2x512-int8)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qrobust.backends.mixed_integer import Model, Relaxation
from qrobust.backends.relu_cuts import Neurons, strengthened
from qrobust.backends.twins import twins
from qrobust.bounds.differential import Pair, PairBounds
from qrobust.bounds.lifted import Cuts
from qrobust.bounds.rows import Rows
from qrobust.interval import Interval, up
from qrobust.network import Activation, Network
from qrobust.queries import Query


def covers(network: Network) -> bool:
    """Whether the rows can express the network."""
    return network.is_dense and all(layer.activation in (Activation.LINEAR, Activation.RELU) for layer in network.layers)


def trace_with(query: Query, bounds: Sequence[Interval]) -> list[Pair] | None:
    """Return bounds of all pre-activations at a point: intervals, met with those of the last hidden layers that are given.

    None if one may overflow.
    """
    trace = PairBounds(query.network, query.parameters, free_layers=0).trace(query.domain.box[None])
    if not all(np.isfinite(z.perturbed.width).all() for z in trace):
        return None
    count = min(len(bounds), len(trace) - 1)
    for place in range(1, count + 1):
        pair = trace[-1 - place]
        trace[-1 - place] = Pair(pair.stored, pair.perturbed.meet(bounds[-place]), pair.difference)
    return trace


@dataclass(frozen=True)
class Cut:
    """What cuts do for one row over the logits: a certified upper bound, and the cuts that gave it, by level."""

    upper: float = np.inf
    cuts: dict[int, Cuts] = field(default_factory=dict)


def cut_rows(query: Query, bounds: Sequence[Interval], rows: Rows, seconds: float) -> list[Cut]:
    """Bound rows over the logits from above; cuts come back if all hidden layers are of ReLUs.

    Shapes    bounds (1, n) each, of the last hidden layers
    """
    deadline = time.monotonic() + seconds
    result = [Cut() for _ in rows.offset]
    trace = trace_with(query, bounds)
    if trace is None:
        return result
    both = twins(query, trace)
    # Only then do a level's rows name the values below it, in their order: a linear layer's are split by their signs.
    chain = all(layer.activation is Activation.RELU for layer in query.network.hidden_layers)
    for number, nu in enumerate(rows.nu):
        share = (deadline - time.monotonic()) / (len(rows.nu) - number)
        if share <= 0:
            break
        model = both.builder.copy().model(both.perturbed, nu)
        cut = strengthened(model, both.neurons, share, goal=-float(rows.offset[number]))
        hint = Relaxation(cut).solve(seconds=max(deadline - time.monotonic(), 1.0))
        if hint.multipliers is not None:
            upper = up(np.array(cut.upper_bound(hint.multipliers) + rows.offset[number]))
            cuts = _by_level(cut, len(model.rows), both.neurons, len(bounds)) if chain else {}
            result[number] = Cut(float(upper), cuts)
    return result


def _by_level(model: Model, plain: int, layers: list[Neurons], levels: int) -> dict[int, Cuts]:
    """Return a model's rows from `plain` on as cuts of levels, all of ReLUs; none if levels in front were left out."""
    if len(layers) != levels - 1:
        return {}
    rows, ends = model.matrix[plain:].toarray(), model.rows.upper[plain:]
    found, left = {}, np.ones(len(rows), dtype=bool)
    for level in range(levels - 1, 0, -1):  # the last level that a row names is its own
        layer = layers[level - 1]
        own = left & (rows[:, layer.h] != 0).any(axis=1)
        left &= ~own
        if own.any():
            part = rows[own]
            neurons = (part[:, layer.h] != 0).argmax(axis=1)
            slope = -part[np.arange(len(part)), layer.active[neurons]]
            found[level] = Cuts(neurons, -part[:, layer.inputs], slope, ends[own], len(layer.h))
    return found
