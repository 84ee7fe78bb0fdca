"""Constraints evaluated at many values of the pixels at once, by products of small integers in float32.

Rows that need no other of theirs are a layer: a dense matrix, or a sparse one where most of it is zero.

Property  exact: rows and their partial sums stay below 2**24 in size, which float32 holds in any order of summation
"""

from __future__ import annotations

from itertools import pairwise

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


class Evaluation:
    """The rows as layers. Raises ResourceError if their sums are too large."""

    def __init__(self, found: Constraints) -> None:
        self.columns, ranges = found.columns, found.ranges
        sums = (found.matrix, found.threshold), (found.rivals, found.rival_threshold)
        if max(_greatest(*each, ranges) for each in sums) >= MOST_SUM:
            raise ResourceError("a sum could leave the integers that float32 holds")
        self._layers = []
        for start, stop in _layers(found):
            matrix = found.matrix[start:stop][:, : self.columns + start].astype(np.float32)
            is_dense = _is_dense(stop - start, self.columns + start, matrix.nnz)
            self._layers.append((matrix.toarray() if is_dense else matrix, _column(found.threshold[start:stop])))
        self._rivals, self._limits = found.rivals.astype(np.float32), _column(found.rival_threshold)

    def leads(self, states: Values) -> Values:
        """Return each rival's row less its threshold: the label is lost where one of them is not negative.

        Shapes    states (batch, columns), the values of the pixels' columns; result (batch, rivals)
        """
        values = np.empty((self._rivals.shape[1], len(states)), dtype=np.float32)
        values[: self.columns] = states.T
        stop = self.columns
        for matrix, threshold in self._layers:
            start, stop = stop, stop + len(threshold)
            values[start:stop] = matrix @ values[:start] >= threshold
        return np.asarray((self._rivals @ values - self._limits).T)


def seconds_each(found: Constraints) -> float:
    """Return about how many seconds the values at one input take, where many are evaluated."""
    starts, seconds = found.matrix.indptr, found.rivals.nnz * SPARSE_SECONDS + found.matrix.shape[1] * VALUE_SECONDS
    for start, stop in _layers(found):
        rows, width, terms = stop - start, found.columns + start, int(starts[stop] - starts[start])
        seconds += rows * width * DENSE_SECONDS if _is_dense(rows, width, terms) else terms * SPARSE_SECONDS
    return float(seconds)


def _is_dense(rows: int, width: int, terms: int) -> bool:
    return rows * width <= min(MOST_ENTRIES, SPARSER * terms)


def _column(values: IntArray) -> Values:
    return values.astype(np.float32)[:, None]


def _greatest(matrix: SparseMatrix, threshold: IntArray, ranges: IntArray) -> int:
    """Return a bound on any partial sum of a row, and on its difference from its threshold."""
    return int((abs(matrix) @ ranges + np.abs(threshold)).max(initial=0))


def _layers(found: Constraints) -> list[tuple[int, int]]:
    """Return the first row of each layer and the one after its last: rows wait for those so far that they need."""
    indices, bounds = found.matrix.indices, found.matrix.indptr
    last = np.maximum.reduceat(indices, bounds[:-1]) - found.columns if len(indices) else np.zeros(0, dtype=np.int64)
    starts = [0]
    for row, needed in enumerate(last.tolist()):
        if needed >= starts[-1]:
            starts.append(row)
    return list(pairwise([*starts, found.matrix.shape[0]]))
