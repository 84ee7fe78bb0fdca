"""Constraints over Booleans alone: a pixel becomes its order literals, [state >= 1], [state >= 2], ..., each below the last.

A sum of costs (regions of L0, L1, L2) becomes one hard row: each order literal costs what one more step away from the centre
costs, so that with the order kept the sum is the cost of the input, whatever the norm.

Property  exact: inputs and solutions are in one-to-one correspondence
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qrobust.binarized.constraints import Constraints
from qrobust.binarized.queries import Norm, level_costs
from qrobust.layers import IntArray, SparseMatrix


def unary(found: Constraints) -> Constraints:
    """Return the constraints with a Boolean for each order literal of each pixel, and hard rows for order and cost."""
    from scipy import sparse

    if found.is_unary or not len(found.pixels):
        return found
    states, rows = found.states, found.matrix.shape[0]
    if found.region.norm is Norm.LINF and (states == 1).all():
        return replace(found, starts=np.arange(len(states) + 1))
    starts = np.concatenate([[0], np.cumsum(states)]).astype(np.int64)
    width = int(starts[-1])
    pixel_of = np.repeat(np.arange(len(states)), states)
    spread = sparse.block_diag(
        [
            sparse.csr_array((np.ones(width, dtype=np.int64), (pixel_of, np.arange(width))), shape=(len(states), width)),
            sparse.eye_array(rows, dtype=np.int64),
        ],
        format="csr",
    )
    matrix, threshold = _cuts(found, sparse.csr_array(found.matrix @ spread), starts)
    hard, hard_threshold = _hard(found, starts, width + rows)
    return replace(
        found,
        matrix=matrix,
        threshold=threshold,
        rivals=sparse.csr_array(found.rivals @ spread),
        hard=sparse.csr_array(sparse.vstack([sparse.csr_array(found.hard @ spread), hard])).astype(np.int64),
        hard_threshold=np.concatenate([found.hard_threshold, hard_threshold]),
        starts=starts,
    )


def _cuts(found: Constraints, spread: SparseMatrix, starts: IntArray) -> tuple[SparseMatrix, IntArray]:
    """Return rows in which a pixel alone is its one order literal."""
    from scipy import sparse

    sizes = np.diff(found.matrix.indptr)
    first = np.zeros(len(sizes), dtype=np.int64)
    first[sizes == 1] = found.matrix.indices[found.matrix.indptr[:-1][sizes == 1]]
    is_cut = (sizes == 1) & (first < found.columns)
    cut, threshold = np.flatnonzero(is_cut), found.threshold.copy()
    columns = starts[first[cut]] + threshold[cut] - 1
    literals = sparse.csr_array((np.ones(len(cut), dtype=np.int64), (cut, columns)), shape=spread.shape)
    threshold[cut] = 1
    keep = sparse.dia_array(((~is_cut).astype(np.int64)[None, :], [0]), shape=(len(sizes), len(sizes)))
    matrix = sparse.csr_array(keep @ spread + literals).astype(np.int64)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix, threshold


def _hard(found: Constraints, starts: IntArray, width: int) -> tuple[SparseMatrix, IntArray]:
    """Return the rows that keep the order, and the row of costs if the region has one."""
    from scipy import sparse

    total = int(starts[-1])
    after = np.setdiff1d(np.arange(1, total), starts)  # literals that are not the first of their pixel
    places = np.arange(len(after))
    ones = np.ones(len(after), dtype=np.int64)
    entries = (np.concatenate([ones, -ones]), (np.tile(places, 2), np.concatenate([after - 1, after])))
    order = sparse.csr_array(entries, shape=(len(after), width))
    if found.region.norm is Norm.LINF:
        return order, np.zeros(len(after), dtype=np.int64)
    row, limit = np.zeros((1, width), dtype=np.int64), -found.region.most
    for pixel, levels, start in zip(found.pixels.tolist(), found.levels, starts.tolist(), strict=False):
        costs = level_costs(np.abs(levels - found.region.centre[pixel]), found.region.norm)
        steps = np.diff(costs)
        row[0, start : start + len(steps)] = -steps
        limit += int(costs[0])  # the cost is costs[0] + steps @ literals
    return sparse.csr_array(sparse.vstack([order, sparse.csr_array(row)])), np.append(np.zeros_like(after), limit)
