"""Constraints evaluated at many values of the pixels at once, by products of small integers in float32.

Rows that need no other of theirs are a layer: a dense matrix, or a sparse one where most of it is zero.

Property  exact: rows and their partial sums stay below 2**24 in size, which float32 holds in any order of summation
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qrobust.binarized.constraints import Constraints
from qrobust.errors import ResourceError
from qrobust.layers import IntArray, SparseMatrix

MOST_SUM = 2**24
MOST_ENTRIES = 2**24  # of a dense matrix
SPARSER = 12  # entries to a term from which on a sparse product is the faster one
DENSE_SECONDS, SPARSE_SECONDS, VALUE_SECONDS = 2.0**-35, 2.0**-32.5, 2.0**-29.5  # of an entry, a term, a variable; on one core
Values = npt.NDArray[np.float32]


class Layer(NamedTuple):
    """Rows over the pixels' columns and the rows so far.

    Shapes    matrix (rows, variables so far), dense or a csr_array; threshold (rows, 1)
    """

    matrix: Values | SparseMatrix
    threshold: Values


def layers_of(found: Constraints, factor: int = 1) -> tuple[list[Layer], Layer]:
    """Return the rows as layers, and the rivals. Raises ResourceError if sums of factor times the values are too large."""
    sums = (found.matrix, found.threshold), (found.rivals, found.rival_threshold)
    if max(_greatest(*each, found.ranges) for each in sums) >= MOST_SUM // factor:
        raise ResourceError("a sum could leave the integers that float32 holds")
    layers = []
    for start, stop in _places(found):
        matrix = found.matrix[start:stop][:, : found.columns + start]
        layers.append(_layer(matrix, found.threshold[start:stop]))
    return layers, _layer(found.rivals, found.rival_threshold)


class Evaluation:
    """The values of all variables at those of the pixels' columns. Raises as `layers_of`."""

    def __init__(self, found: Constraints) -> None:
        self.columns = found.columns
        self._layers, self._rivals = layers_of(found)

    def leads(self, states: Values) -> Values:
        """Return each rival's row less its threshold: the label is lost where one of them is not negative.

        Shapes    states (batch, columns), the values of the pixels' columns; result (batch, rivals)
        """
        values = np.empty((self._rivals.matrix.shape[1], len(states)), dtype=np.float32)
        values[: self.columns] = states.T
        stop = self.columns
        for matrix, threshold in self._layers:
            start, stop = stop, stop + len(threshold)
            values[start:stop] = matrix @ values[:start] >= threshold
        return np.asarray((self._rivals.matrix @ values - self._rivals.threshold).T)


def seconds_each(found: Constraints) -> float:
    """Return about how many seconds the values at one input take, where many are evaluated."""
    starts, seconds = found.matrix.indptr, found.rivals.nnz * SPARSE_SECONDS + found.matrix.shape[1] * VALUE_SECONDS
    for start, stop in _places(found):
        rows, width, terms = stop - start, found.columns + start, int(starts[stop] - starts[start])
        seconds += rows * width * DENSE_SECONDS if _is_dense(rows, width, terms) else terms * SPARSE_SECONDS
    return float(seconds)


def _layer(matrix: SparseMatrix, threshold: IntArray) -> Layer:
    small = matrix.astype(np.float32)
    is_dense = _is_dense(matrix.shape[0], matrix.shape[1], matrix.nnz)
    return Layer(small.toarray() if is_dense else small, threshold.astype(np.float32)[:, None])


def _is_dense(rows: int, width: int, terms: int) -> bool:
    return rows * width <= min(MOST_ENTRIES, SPARSER * terms)


def _greatest(matrix: SparseMatrix, threshold: IntArray, ranges: IntArray) -> int:
    """Return a bound on any partial sum of a row, and on its difference from its threshold."""
    return int((abs(matrix) @ ranges + np.abs(threshold)).max(initial=0))


def _places(found: Constraints) -> list[tuple[int, int]]:
    """Return the first row of each layer and the one after its last: rows wait for those so far that they need."""
    indices, bounds = found.matrix.indices, found.matrix.indptr
    last = np.maximum.reduceat(indices, bounds[:-1]) - found.columns if len(indices) else np.zeros(0, dtype=np.int64)
    starts = [0]
    for row, needed in enumerate(last.tolist()):
        if needed >= starts[-1]:
            starts.append(row)
    return list(pairwise([*starts, found.matrix.shape[0]]))
