"""A question about a binarized network as reified sums over Booleans and small integers, after interval folding.

    variables   pixels v_i in 0..states_i, then one Boolean t_j for each row
    rows        (matrix_j @ variables >= threshold_j) <=> t_j, over pixels and Booleans that stand before t_j
    hard        hard @ variables >= hard_threshold
    rivals      the label is lost where rivals_r @ variables >= rival_threshold_r for some r

Folding leaves out what cannot change: neurons that are constant over the region, duplicates and complements of others, those
that are a pixel's or another neuron's own bit, those that nothing needs, and pixels that do not matter. Rows are divided by
their greatest common divisor.

Property  exact: the region has an input that loses the label if and only if the constraints have a solution, and `levels` gives
          the input of each
Source    Cheng et al. 2018 (inter-neuron factoring), arXiv 1710.03107; Jia and Rinard 2020, arXiv 2005.03597
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from qrobust.binarized.folding import Folded, Rivals, row_sums
from qrobust.binarized.queries import Norm, Region, TieRule
from qrobust.layers import IntArray, SparseMatrix

NO_LIMIT = 2**61  # above what any row of a folded network sums to


@dataclass(frozen=True, eq=False)
class Constraints:
    """See the module's docstring.

    Shapes    pixels (n,): the input that each is; levels: of each pixel, the level that each of its states stands for;
              counts: how many levels each state stands for; region's levels elsewhere are the centre's; matrix, hard, rivals:
              csr_arrays of int64 with a column a variable
    """

    region: Region
    pixels: IntArray
    levels: tuple[IntArray, ...]
    counts: tuple[IntArray, ...]
    matrix: SparseMatrix
    threshold: IntArray
    rivals: SparseMatrix
    rival_threshold: IntArray
    rival_classes: tuple[int, ...]
    hard: SparseMatrix
    hard_threshold: IntArray
    starts: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # first column of each pixel, once unary

    @property
    def columns(self) -> int:
        """How many columns stand for pixels."""
        return int(self.matrix.shape[1] - self.matrix.shape[0])

    @property
    def is_unary(self) -> bool:
        return len(self.starts) > 0

    @property
    def states(self) -> IntArray:
        """The greatest value of each pixel's column. Shape: (columns,)."""
        if self.is_unary:
            return np.ones(self.columns, dtype=np.int64)
        return np.array([len(levels) - 1 for levels in self.levels], dtype=np.int64)

    @property
    def ranges(self) -> IntArray:
        """The greatest value of each variable; the least is 0."""
        return np.concatenate([self.states, np.ones(self.matrix.shape[0], dtype=np.int64)])

    @property
    def density(self) -> float:
        """The mean number of terms of a row."""
        return float(self.matrix.nnz / max(1, self.matrix.shape[0]))

    def columns_of(self, levels: IntArray) -> IntArray:
        """Return the values of all variables that an input of the region stands for. Shapes: (inputs,); (variables,)."""
        free = levels - self.region.lower
        pairs = zip(self.pixels.tolist(), self.counts, strict=True)
        states = [int(np.searchsorted(np.cumsum(counts), free[pixel], side="right")) for pixel, counts in pairs]
        if self.is_unary:
            sizes = np.diff(self.starts)
            place = np.arange(self.columns) - np.repeat(self.starts[:-1], sizes)
            values = (place < np.repeat(states, sizes)).astype(np.int64)
        else:
            values = np.array(states, dtype=np.int64)
        found = np.concatenate([values, np.zeros(self.matrix.shape[0], dtype=np.int64)])
        while True:  # as often as there are layers
            signs = (self.matrix @ found >= self.threshold).astype(np.int64)
            if np.array_equal(signs, found[self.columns :]):
                return found
            found[self.columns :] = signs

    def input_levels(self, columns: IntArray) -> IntArray:
        """Return the input that values of the pixels' columns stand for. Shapes: columns (columns,); result (inputs,)."""
        found = self.region.centre.copy()
        values = np.add.reduceat(columns, self.starts[:-1]) if self.is_unary else columns
        for pixel, levels, value in zip(self.pixels.tolist(), self.levels, values.tolist(), strict=True):
            found[pixel] = levels[value]
        return found


def row_bounds(matrix: SparseMatrix, ranges: IntArray) -> tuple[IntArray, IntArray]:
    """Return the least and the greatest value of each row over variables from 0 to their ranges."""
    most = matrix.data * ranges[matrix.indices]
    least = np.minimum(most, 0)
    return row_sums(least, matrix.indptr), row_sums(most - least, matrix.indptr)


def _of_few(matrix: SparseMatrix, steps: tuple[IntArray, IntArray], count: int) -> tuple[IntArray, IntArray]:
    """Return how far each row can fall and rise where so many variables change at most. Accepts steps: of each, down and up."""
    rows, (down, up) = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), steps
    found = []
    for sign in (-1, 1):
        factors = sign * matrix.data
        gains = np.where(factors > 0, factors * up[matrix.indices], -factors * down[matrix.indices])
        order = np.lexsort((-gains, rows))
        rank = np.arange(len(rows)) - matrix.indptr[rows]
        total = np.zeros(matrix.shape[0], dtype=np.int64)
        np.add.at(total, rows, np.where(rank < count, gains[order], 0))
        found.append(total)
    return found[0], found[1]


def constraints(folded: Folded, region: Region, label: int, tie: TieRule) -> Constraints:
    """Return the constraints of the question whether an input of the region loses the label."""
    return constraints_of(folded, region, folded.in_reach(folded.rivals(label, tie), region.lower, region.upper))


def constraints_of(folded: Folded, region: Region, rivals: Rivals) -> Constraints:
    """Return the constraints of the question whether one of some rivals takes the label in the region."""
    return pruned(whole_constraints(folded, region, rivals))


def lead_constraints(folded: Folded, region: Region, label: int, target: int) -> Constraints:
    """Return constraints whose one rival, in reach or not, is the lead of a class over the label, up to scale and shift."""
    rival = folded.rivals(label, TieRule.LABEL, [target])
    return pruned(whole_constraints(folded, region, replace(rival, threshold=np.full(1, -NO_LIMIT, dtype=np.int64))))


def whole_constraints(folded: Folded, region: Region, rivals: Rivals) -> Constraints:
    """Return constraints that keep every pixel and level of the region, one solution of the pixels for each input."""
    folding = _Folding(region)
    for layer in folded.layers:
        folding.add(layer.matrix, layer.threshold)
    return folding.finish(rivals)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows one after another. Shapes: columns, factors (terms,); sizes, limit (rows,): the terms of each, its threshold."""

    columns: IntArray
    factors: IntArray
    sizes: IntArray
    limit: IntArray

    def at(self, places: IntArray) -> _Rows:
        """Return some rows. Shape: places (some,), rising."""
        is_kept = np.zeros(len(self.sizes), dtype=np.bool_)
        is_kept[places] = True
        terms = np.repeat(is_kept, self.sizes)
        return _Rows(self.columns[terms], self.factors[terms], self.sizes[places], self.limit[places])

    @property
    def starts(self) -> IntArray:
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.sizes, dtype=np.int64)])

    def keys(self) -> list[bytes]:
        """Return bytes for each row that are the same for the same row alone."""
        numbers = np.empty(2 * len(self.columns) + len(self.sizes), dtype=np.int64)
        own = np.arange(len(self.columns)) + np.repeat(self.starts[:-1] + np.arange(len(self.sizes)), self.sizes)
        ends = 2 * self.starts + np.arange(len(self.sizes) + 1)
        numbers[own], numbers[own + np.repeat(self.sizes, self.sizes)] = self.columns, self.factors
        numbers[ends[1:] - 1] = self.limit
        whole, places = numbers.tobytes(), (8 * ends).tolist()
        return [whole[start:end] for start, end in itertools.pairwise(places)]


class _Folding:
    """Layer by layer, what the values are as affine functions of the variables so far."""

    def __init__(self, region: Region) -> None:
        from scipy import sparse

        self._sparse = sparse
        self._region = region
        free = np.flatnonzero(region.upper > region.lower)
        self._pixels = free
        self._ranges = (region.upper - region.lower)[free]
        places = (free, np.arange(len(free)))
        ones = np.ones(len(free), dtype=np.int64)
        self._map = sparse.csr_array((ones, places), shape=(len(region.centre), len(free)))
        self._constant = region.lower.astype(np.int64)
        self._rows: list[_Rows] = []
        self._known: dict[bytes, int] = {}

    def add(self, matrix: SparseMatrix, threshold: IntArray) -> None:
        """Go through a layer: its values become signs of rows, each new or known."""
        rows, limit, least, most = self._combined(matrix, threshold)
        on, off = least >= limit, most < limit
        used = np.flatnonzero(~(on | off))
        variable, flipped = self._variables(_Rows(rows.indices, rows.data, np.diff(rows.indptr), limit).at(used))
        slope = np.where(flipped, -2, 2)
        self._map = self._sparse.csr_array((slope, (used, variable)), shape=(len(limit), len(self._ranges)))
        self._constant = np.where(on, 1, -1)
        self._constant[used] = np.where(flipped, 1, -1)

    def _combined(self, matrix: SparseMatrix, threshold: IntArray) -> tuple[SparseMatrix, IntArray, IntArray, IntArray]:
        """Return rows over the variables, divided by their divisors, their thresholds, and their least and greatest values."""
        rows = self._sparse.csr_array(matrix @ self._map)
        rows.eliminate_zeros()
        rows.sort_indices()
        limit = threshold - matrix @ self._constant
        sizes = np.diff(rows.indptr)
        divisor = np.ones(len(sizes), dtype=np.int64)
        if rows.nnz:
            divisor[sizes > 0] = np.gcd.reduceat(np.abs(rows.data), rows.indptr[:-1][sizes > 0])
        rows.data = rows.data // np.repeat(divisor, sizes)
        limit = -(-limit // divisor)
        least, most = row_bounds(rows, self._ranges)
        if self._region.norm is Norm.L0 and len(self._ranges) == len(self._pixels):
            state = (self._region.centre - self._region.lower)[self._pixels]
            fall, rise = _of_few(rows, (state, self._ranges - state), self._region.most)
            own = rows @ state
            least, most = np.maximum(least, own - fall), np.minimum(most, own + rise)
        return rows, limit, least, most

    def _variables(self, rows: _Rows) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """Return the variables that rows are, each new or known, and whether they are the opposites of these."""
        first = rows.starts[:-1]
        flipped = rows.factors[first] < 0
        factors = rows.factors * np.repeat(np.where(flipped, -1, 1), rows.sizes)
        rows = _Rows(rows.columns, factors, rows.sizes, np.where(flipped, 1 - rows.limit, rows.limit))
        variable = rows.columns[first].astype(np.int64)  # of rows that are a Boolean's own bit
        others = np.flatnonzero((rows.sizes > 1) | (self._ranges[variable] > 1))
        rows, known = rows.at(others), self._known
        shift, new = len(self._pixels), list[int]()
        for place, key in enumerate(rows.keys()):
            if key not in known:
                known[key] = shift + len(known)
                new.append(place)
            variable[others[place]] = known[key]
        self._rows.append(rows.at(np.array(new, dtype=np.int64)))
        self._ranges = np.concatenate([self._ranges, np.ones(len(new), dtype=np.int64)])
        return variable, flipped

    def finish(self, rivals: Rivals) -> Constraints:
        """Return the constraints, the rivals that intervals rule out left out."""
        width = len(self._ranges)
        rows, limit, _, most = self._combined(rivals.matrix, rivals.threshold)
        near = np.flatnonzero(most >= limit)
        region, pixels = self._region, self._pixels
        levels = tuple(np.arange(region.lower[p], region.upper[p] + 1) for p in pixels.tolist())
        none = np.zeros(0, dtype=np.int64)
        columns, factors, sizes, threshold = (
            np.concatenate([none, *(getattr(each, name) for each in self._rows)])
            for name in ("columns", "factors", "sizes", "limit")
        )
        every = _Rows(columns, factors, sizes, threshold)
        return Constraints(
            region,
            pixels,
            levels,
            tuple(np.ones(len(values), dtype=np.int64) for values in levels),
            self._sparse.csr_array((factors, columns, every.starts), shape=(len(sizes), width)),
            threshold,
            rows[near],
            limit[near],
            tuple(rivals.numbers[place] for place in near.tolist()),
            self._sparse.csr_array((0, width), dtype=np.int64),
            none,
        )


def pruned(found: Constraints) -> Constraints:
    """Return the constraints without the rows and the pixels that no rival needs; pixels seen only by cuts keep few states."""
    columns, rows = found.columns, found.matrix.shape[0]
    needed = np.zeros(columns + rows, dtype=bool)
    needed[found.rivals.indices] = True
    row_of = columns + np.repeat(np.arange(rows), np.diff(found.matrix.indptr))
    count = -1
    while count < (count := int(needed.sum())):  # as often as there are layers
        needed[found.matrix.indices[needed[row_of]]] = True
    kept_rows, kept_pixels = np.flatnonzero(needed[columns:]), np.flatnonzero(needed[:columns])
    kept = np.flatnonzero(needed)
    if len(kept) == columns + rows:
        return _cut(found)
    small = replace(
        found,
        pixels=found.pixels[kept_pixels],
        levels=tuple(found.levels[p] for p in kept_pixels.tolist()),
        counts=tuple(found.counts[p] for p in kept_pixels.tolist()),
        matrix=found.matrix[kept_rows][:, kept],
        threshold=found.threshold[kept_rows],
        rivals=found.rivals[:, kept],
        hard=found.hard[:, kept],
    )
    return _cut(small)


def _cut(found: Constraints) -> Constraints:
    """Merge the levels of a pixel between which no row tells, where rows see it only alone."""
    from scipy import sparse

    matrix = sparse.csr_array(found.matrix, copy=True)
    matrix.sort_indices()
    sizes = np.diff(matrix.indptr)
    alone, columns = sizes == 1, found.columns
    shared = np.concatenate([matrix.indices[np.repeat(~alone, sizes)], found.rivals.indices, found.hard.indices])
    single = np.ones(columns, dtype=bool)
    single[shared[shared < columns]] = False
    threshold, levels, counts = found.threshold.copy(), list(found.levels), list(found.counts)
    rows_of: dict[int, list[int]] = {}
    for row in np.flatnonzero(alone).tolist():
        rows_of.setdefault(int(matrix.indices[matrix.indptr[row]]), []).append(row)
    for pixel in np.flatnonzero(single).tolist():
        rows = rows_of.get(pixel, [])
        cuts = sorted({int(threshold[row]) for row in rows})  # factors are 1: rows are divided, and their first factor positive
        for row in rows:
            threshold[row] = cuts.index(int(threshold[row])) + 1
        ends = [0, *cuts, len(levels[pixel])]
        centre = int(found.region.centre[found.pixels[pixel]])
        nearest = [int(levels[pixel][a:b][np.abs(levels[pixel][a:b] - centre).argmin()]) for a, b in itertools.pairwise(ends)]
        counts[pixel] = np.array([int(counts[pixel][a:b].sum()) for a, b in itertools.pairwise(ends)])
        levels[pixel] = np.array(nearest)
    return replace(found, matrix=matrix, threshold=threshold, levels=tuple(levels), counts=tuple(counts))
