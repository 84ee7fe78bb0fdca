"""Constraints evaluated at many values of the pixels at once, by dense products of small integers in float32.

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
MOST_ENTRIES = 2**24  # of the dense matrices, in all
Values = npt.NDArray[np.float32]


class Evaluation:
    """The rows as dense matrices; those that need no other of theirs, together. Raises ResourceError if they are too large."""

    def __init__(self, found: Constraints) -> None:
        self.columns, rows, ranges = found.columns, found.matrix.shape[0], found.ranges
        if dense_terms(found) > MOST_ENTRIES:
            raise ResourceError(f"dense rows have {dense_terms(found):,} entries, at most {MOST_ENTRIES:,} are taken")
        sums = (found.matrix, found.threshold), (found.rivals, found.rival_threshold)
        if max(_greatest(*each, ranges) for each in sums) >= MOST_SUM:
            raise ResourceError("a sum could leave the integers that float32 holds")
        self._layers = []
        for start, stop in pairwise([*_starts(found), rows]):
            matrix = found.matrix[start:stop][:, : self.columns + start].toarray().T
            self._layers.append((_dense(matrix), _dense(found.threshold[start:stop])))
        self._rivals, self._limits = _dense(found.rivals.toarray().T), _dense(found.rival_threshold)

    def leads(self, states: Values) -> Values:
        """Return each rival's row less its threshold: the label is lost where one of them is not negative.

        Shapes    states (batch, columns), the values of the pixels' columns; result (batch, rivals)
        """
        values = np.empty((len(states), len(self._rivals)), dtype=np.float32)
        values[:, : self.columns] = states
        stop = self.columns
        for matrix, threshold in self._layers:
            start, stop = stop, stop + len(threshold)
            values[:, start:stop] = values[:, :start] @ matrix >= threshold
        return np.asarray(values @ self._rivals - self._limits)


def dense_terms(found: Constraints) -> int:
    """Return a bound on the products that one evaluation takes."""
    rows, rivals = found.matrix.shape[0], len(found.rival_threshold)
    return int((rows + rivals) * (found.columns + rows))


def _dense(values: IntArray) -> Values:
    return np.ascontiguousarray(values, dtype=np.float32)


def _greatest(matrix: SparseMatrix, threshold: IntArray, ranges: IntArray) -> int:
    """Return a bound on any partial sum of a row, and on its difference from its threshold."""
    return int((abs(matrix) @ ranges + np.abs(threshold)).max(initial=0))


def _starts(found: Constraints) -> list[int]:
    """Return where the rows have to wait for the rows so far."""
    indices, bounds = found.matrix.indices, found.matrix.indptr
    last = np.maximum.reduceat(indices, bounds[:-1]) - found.columns if len(indices) else np.zeros(0, dtype=np.int64)
    starts = [0]
    for row, needed in enumerate(last.tolist()):
        if needed >= starts[-1]:
            starts.append(row)
    return starts
