"""A bracket over codes: the same answers, with each feature one input of as many levels as it has cells.

A feature's bits are one input here, so only bits that some real input has are spoken of, and features are explained, not bits.

Property  exact: at the code of a real input the network's label is the bracket's answer there
"""

from __future__ import annotations

import numpy as np

from qrobust.binarized.bracket import Bracket
from qrobust.binarized.network import BinarizedNetwork, Block, Grid, Linear
from qrobust.binarized.queries import Levels
from qrobust.binarized.thermometer import Thermometer
from qrobust.interval import FloatArray
from qrobust.layers import Dense, IntArray


def over_codes(bracket: Bracket) -> BinarizedNetwork:
    """Return the network whose first signs are the code's bits. Each input's levels are 0 to its number of thresholds."""
    code, own = bracket.code, bracket.network
    sizes = [each.size for each in code.thresholds]
    feature = np.repeat(np.arange(len(sizes)), sizes)
    place = np.concatenate([np.arange(size) for size in sizes])
    first = np.zeros((code.bits, len(sizes)))
    first[np.arange(code.bits), feature] = 1.0
    bits = Block(_linear(first, -(place + 0.5)))
    rows = own.linears[0].layer.weight
    if own.blocks:  # bit = (sign + 1) / 2, so M bit >= k is M sign >= 2 k - M 1
        folded = bracket.folded.layers[0]
        total = np.asarray(folded.matrix.sum(axis=1)).reshape(-1)
        signs = Block(_linear(folded.matrix.toarray(), total - 2.0 * folded.threshold))
        blocks, output = (bits, signs, *own.blocks[1:]), own.output
    else:
        blocks, output = (bits,), _linear(rows, rows.sum(axis=1) + 2 * own.output.layer.bias)
    grid = Grid.of(1, 0, max(sizes))
    return BinarizedNetwork(grid, blocks, output, own.name, own.classes)


def _linear(weight: IntArray | FloatArray, bias: FloatArray) -> Linear:
    return Linear(Dense(np.asarray(weight, dtype=np.float64), bias), np.ones(len(weight)))


def whole(code: Thermometer) -> Levels:
    """Return the codes of all inputs of the code's box."""
    most = np.array([each.size for each in code.thresholds], dtype=np.int64)
    return Levels(np.zeros_like(most), most, np.zeros_like(most))


def range_name(code: Thermometer, feature: int, lower: int, upper: int) -> str:
    """Say which values have the codes from one to another, as in '4.95 <= petal length < 5.1 cm'."""
    own, t = code.features[feature], code.thresholds[feature]
    unit = f" {own.unit}" if own.unit not in ("", "-") else ""
    if lower and upper < t.size:
        return f"{t[lower - 1]:.10g} <= {own.name} < {t[upper]:.10g}{unit}"
    if lower:
        return f"{own.name} >= {t[lower - 1]:.10g}{unit}"
    return f"{own.name} < {t[upper]:.10g}{unit}" if upper < t.size else f"any {own.name}"
