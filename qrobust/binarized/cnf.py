"""Constraints as clauses: both halves of every reified sum.

A row becomes "at least k of these literals", a factor repeating its literal, and is encoded on the smaller side: at least k of
n, or not at least n - k + 1 of the opposites.

Method    totalizer: a tree of unary counters cut at k, each output defined in both directions; the others are python-sat's
          encodings of each half, loosened by the literal that stands for the row
Reuse     none between inputs: folding makes a formula of each input's own open neurons, and writing all of it takes less than
          solving it on dense networks, and at most 20 ms of a question on sparse ones
Source    Bailleux and Boufkhad 2003 (totalizer); Sinz 2005 (sequential counter); Morgado et al. 2014 (kmtotalizer)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from qrobust.binarized.constraints import Constraints
from qrobust.binarized.unary import unary
from qrobust.errors import BackendUnavailableError, ResourceError
from qrobust.layers import IntArray, SparseMatrix

MOST_CLAUSES = 30_000_000
INSTALL = "the SAT engine needs `pip install qrobust[bnn]`"


class Encoding(Enum):
    """How sums become clauses."""

    TOTALIZER = "totalizer"
    SEQUENTIAL = "seqcounter"
    KMTOTALIZER = "kmtotalizer"


@dataclass
class Clauses:
    """Clauses over variables 1 to `top`, as they are written."""

    top: int
    encoding: Encoding = Encoding.TOTALIZER
    clauses: list[list[int]] = field(default_factory=list)

    def fresh(self, count: int) -> list[int]:
        self.top += count
        return list(range(self.top - count + 1, self.top + 1))

    def add(self, *literals: int) -> None:
        self.clauses.append(list(literals))

    def define(self, name: int, literals: list[int], least: int) -> None:
        """Say that `name` is true exactly where at least so many literals are. Accepts 1 <= least <= len(literals)."""
        count = len(literals)
        if 2 * least > count + 1:
            name, literals, least = -name, [-literal for literal in literals], count - least + 1
        if least == 1:
            for literal in literals:
                self.add(name, -literal)
            self.add(-name, *literals)
        elif self.encoding is Encoding.TOTALIZER:
            output = self._totalizer(literals, least)[least - 1]
            self.add(-name, output)
            self.add(name, -output)
        else:
            self._halves(name, literals, least)

    def require(self, literals: list[int], least: int) -> None:
        """Say that at least so many literals are true."""
        if least > len(literals):
            self.add()
        elif least == 1:
            self.add(*literals)
        elif least > 1:
            (name,) = self.fresh(1)
            self.add(name)
            self.define(name, literals, least)

    def _totalizer(self, literals: list[int], most: int) -> list[int]:
        """Return outputs o_1 to o_min(n, most), o_i true exactly where at least i literals are."""
        layer = [[literal] for literal in literals]
        while len(layer) > 1:
            pairs = [self._merged(a, b, most) for a, b in zip(layer[::2], layer[1::2], strict=False)]
            layer = pairs + layer[2 * len(pairs) :]
        return layer[0]

    def _merged(self, a: list[int], b: list[int], most: int) -> list[int]:
        outputs = self.fresh(min(len(a) + len(b), most))
        top, clauses = len(outputs), self.clauses
        for i in range(len(a) + 1):
            for j in range(max(0, 1 - i), min(len(b), top - i) + 1):
                clauses.append([outputs[i + j - 1], *([-a[i - 1]] if i else []), *([-b[j - 1]] if j else [])])
            for j in range(min(len(b), top - i - 1) + 1):
                clauses.append([-outputs[i + j], *a[i : i + 1], *b[j : j + 1]])
        return outputs

    def _halves(self, name: int, literals: list[int], least: int) -> None:
        try:
            from pysat.card import CardEnc, EncType
        except ImportError:
            raise BackendUnavailableError(INSTALL) from None
        kind = getattr(EncType, self.encoding.value)
        for loose, encode, bound in ((-name, CardEnc.atleast, least), (name, CardEnc.atmost, least - 1)):
            found = encode(lits=literals, bound=bound, top_id=self.top, encoding=kind)
            self.top = max(self.top, found.nv)
            self.clauses.extend([loose, *clause] for clause in found.clauses)


@dataclass(frozen=True, eq=False)
class Formula:
    """Constraints as clauses; the first variables are the pixels' columns of the unary constraints, from 1."""

    constraints: Constraints
    clauses: list[list[int]]
    variables: int

    def input_levels(self, model: list[int]) -> IntArray:
        """Return the input that a solution stands for. Accepts its literals; a variable in no clause may be missing."""
        values = np.zeros(self.constraints.columns, dtype=np.int64)
        values[[literal - 1 for literal in model if 0 < literal <= len(values)]] = 1
        return self.constraints.input_levels(values)


def formula(found: Constraints, encoding: Encoding = Encoding.TOTALIZER) -> Formula:
    """Return the clauses that an input loses the label. Raises ResourceError if there would be too many."""
    boolean = unary(found)
    columns, rows = boolean.columns, boolean.matrix.shape[0]
    _check_size(boolean)
    written = Clauses(columns + rows, encoding)
    for row, (literals, least) in enumerate(sums(boolean.matrix, boolean.threshold)):
        written.define(columns + row + 1, literals, least)
    for literals, least in sums(boolean.hard, boolean.hard_threshold):
        written.require(literals, least)
    ways = []
    for literals, least in sums(boolean.rivals, boolean.rival_threshold):
        if least <= 0:
            break
        (name,) = written.fresh(1)
        written.define(name, literals, least)
        ways.append(name)
    else:
        written.add(*ways)
    return Formula(boolean, written.clauses, written.top)


def sums(matrix: SparseMatrix, threshold: IntArray) -> list[tuple[list[int], int]]:
    """Return each row as literals, repeated as their factors say, and how many must be true."""
    sizes = np.abs(matrix.data)
    ends = np.concatenate([[0], np.cumsum(sizes)])[matrix.indptr].tolist()
    literals = np.repeat((matrix.indices + 1) * np.sign(matrix.data), sizes).tolist()
    least = (threshold - np.asarray(matrix.minimum(0).sum(axis=1)).reshape(-1)).tolist()
    return [(literals[start:end], limit) for start, end, limit in zip(ends[:-1], ends[1:], least, strict=True)]


def clause_count(found: Constraints) -> float:
    """Return about how many clauses the constraints become, more rather than less."""
    total = 0.0
    for matrix, threshold in (
        (found.matrix, found.threshold),
        (found.hard, found.hard_threshold),
        (found.rivals, found.rival_threshold),
    ):
        weights = np.asarray(abs(matrix).sum(axis=1)).reshape(-1)
        least = threshold - np.asarray(matrix.minimum(0).sum(axis=1)).reshape(-1)
        side = np.maximum(1, np.minimum(least, weights - least + 1))
        total += float((weights.astype(np.float64) * np.minimum(side, weights / 2 + 1)).sum())
    return total


def _check_size(found: Constraints) -> None:
    """Raise ResourceError if the clauses would be more than MOST_CLAUSES."""
    total = clause_count(found)
    if total > MOST_CLAUSES:
        raise ResourceError(f"the clauses would be about {total:,.0f}, at most {MOST_CLAUSES:,} are made: use another engine")
