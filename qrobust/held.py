"""Counterexamples that a device can hold: a choice of parameters out of a box, moved to the values of a number format.

Accepts   any query about a scheme's box, and a counterexample to it
Gives     a counterexample at the same input whose parameters are legal values of the scheme, or None
Method    the legal values in the box nearest to the counterexample's, then the quantized copy; each is replayed exactly
Property  refutes only: None means that neither of the two violates the query there, not that no choice of legal values does
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qrobust.answers import Counterexample
from qrobust.check import violation_fault
from qrobust.network import Network
from qrobust.quantization import Scheme
from qrobust.quantization.grids import Uniform
from qrobust.queries import Query


def held(query: Query, example: Counterexample, scheme: Scheme) -> Counterexample | None:
    """Return a counterexample of values that the scheme can hold, replayed exactly, or None. Raises NumberError."""
    copy = tuple((layer.weight, layer.bias) for layer in scheme.copy(query.network).layers)
    for parameters in (scheme.snapped(query.network, example.parameters), copy):
        moved = Counterexample(example.x, parameters)
        if violation_fault(query, moved) is None:
            return moved
    return None


def stored_codes(network: Network, example: Counterexample, scheme: Scheme) -> list[dict[str, Any]]:
    """Return the integers that stand for a held counterexample's parameters, as JSON values: one entry an array with codes.

    A value is its code times the step; zero points are taken off. Formats without integer codes, and arrays that stay in
    float, have no entry.
    """
    found = []
    pairs = zip(scheme.grids(network), example.parameters, strict=True)
    for number, (grids, parameters) in enumerate(pairs, start=1):
        for what, grid, values in zip(("weights", "biases"), grids, parameters, strict=True):
            if isinstance(grid, Uniform) and values.size:
                codes = grid.codes(np.asarray(values, dtype=np.float64))
                steps = np.unique(grid.steps(np.asarray(values, dtype=np.float64)))
                found.append({"layer": number, "what": what, "codes": codes.tolist(), "steps": steps.tolist()})
    return found
