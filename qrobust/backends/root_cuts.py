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

import numpy as np

from qrobust.backends.mixed_integer import Relaxation
from qrobust.backends.relu_cuts import strengthened
from qrobust.backends.twins import twins
from qrobust.bounds.differential import Pair, PairBounds
from qrobust.bounds.neurons import Rows
from qrobust.interval import FloatArray, Interval, up
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


def bounds_with_cuts(query: Query, bounds: Sequence[Interval], rows: Rows, seconds: float) -> FloatArray:
    """Bound rows over the logits from above. Shapes: bounds (1, n) each, of the last hidden layers; result (rows,)."""
    deadline = time.monotonic() + seconds
    result = np.full(len(rows.nu), np.inf)
    trace = trace_with(query, bounds)
    if trace is None:
        return result
    both = twins(query, trace)
    for number, nu in enumerate(rows.nu):
        share = (deadline - time.monotonic()) / (len(rows.nu) - number)
        if share <= 0:
            break
        model = both.builder.copy().model(both.perturbed, nu)
        cut = strengthened(model, both.neurons, share, goal=-float(rows.offset[number]))
        hint = Relaxation(cut).solve(seconds=max(deadline - time.monotonic(), 1.0))
        if hint.multipliers is not None:
            result[number] = up(np.array(cut.upper_bound(hint.multipliers) + rows.offset[number]))
    return result
