"""The straight-through surrogate: a network of signs with derivatives.

Accepts   a network in integers, points on its grid
Gives     the derivative of a weighted sum of the classes' sums
Method    each sign's derivative is taken as 1 within a window about its threshold, and as 0 elsewhere
Property  refutes only: what it points to is replayed in integers
Source    Bengio et al. 2013, arXiv 1308.3432
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qrobust.binarized.folding import Folded
from qrobust.interval import FloatArray
from qrobust.layers import IntArray, SparseMatrix

Windows = list[npt.NDArray[np.bool_]]


def forward(folded: Folded, points: IntArray, widths: Sequence[float]) -> tuple[IntArray, Windows]:
    """Return the signs before the scores, and where each layer's signs have a derivative.

    Shapes    points (batch, inputs); widths (layers,), in standard deviations of a sum of random signs
    """
    x, windows = points, Windows()
    spread = max(1.0, float(np.ptp(points)) / 4) if points.size else 1.0
    for layer, width in zip(folded.layers, widths, strict=True):
        lead = (layer.matrix @ x.T).T - layer.threshold
        reach = np.sqrt(np.maximum(1.0, layer.size_sums)) * (1 if windows else spread)
        windows.append(np.abs(lead) <= width * reach)
        x = np.where(lead >= 0, 1, -1)
    return np.asarray(x, dtype=np.int64), windows


def scores(folded: Folded, signs: IntArray) -> FloatArray:
    """Return the scores in float64. Shapes: signs (batch, last signs); result (batch, classes)."""
    sums = np.asarray((folded.matrix @ signs.T).T, dtype=np.float64)
    return np.asarray(sums * [float(s) for s in folded.scale] + [float(b) for b in folded.bias])


def backward(folded: Folded, slope: FloatArray, windows: Windows) -> FloatArray:
    """Return the derivative of (slope * scores).sum(axis=1) by the inputs. Shapes: slope (batch, classes), (batch, inputs)."""
    back = _times(slope * [float(s) for s in folded.scale], folded.matrix)
    for layer, window in zip(reversed(folded.layers), reversed(windows), strict=True):
        back = _times(back * window, layer.matrix)
    return back


def _times(rows: FloatArray, matrix: SparseMatrix) -> FloatArray:
    return np.asarray((matrix.T @ rows.T).T, dtype=np.float64)
