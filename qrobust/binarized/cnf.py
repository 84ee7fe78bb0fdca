"""Constraints as clauses: both halves of every reified sum.

A row becomes "at least k of these literals", a factor repeating its literal, and is encoded on the smaller side: at least k of
n, or not at least n - k + 1 of the opposites.

Method    totalizer: a tree of unary counters cut at k, each output defined in both directions; the others are python-sat's
          encodings of each half, loosened by the literal that stands for the row
Reuse     what a sum becomes depends on how many literals it has and how many must be true: it is written once, kept, and put
          down again with other variables, row after row and, in the later layers above all, input after input
Source    Bailleux and Boufkhad 2003 (totalizer); Sinz 2005 (sequential counter); Morgado et al. 2014 (kmtotalizer)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from qrobust.binarized.constraints import Constraints
from qrobust.binarized.unary import unary
from qrobust.errors import BackendUnavailableError, ResourceError
from qrobust.layers import IntArray, SparseMatrix

MOST_CLAUSES = 30_000_000
MOST_KEPT = 20_000  # literals times how many must be true, of a sum that is kept: about a MiB of clauses
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
            self.clauses += [[name, -literal] for literal in literals]
            self.add(-name, *literals)
        elif count * least <= MOST_KEPT:
            kept = _kept(count, least, self.encoding)
            self.clauses += kept.over([name, *literals], self.top)
            self.top += kept.fresh
        else:
            _sum(self, name, literals, least)

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


@dataclass(frozen=True, eq=False)
class _Kept:
    """The clauses of one sum over variables of its own: 1 for its name, then its literals, then so many fresh ones.

    Shapes    literals (all clauses', one after another), ends (clauses,)
    """

    fresh: int
    literals: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]

    def over(self, names: list[int], top: int) -> list[list[int]]:
        """Return the clauses with these literals in place of the first variables, the fresh ones from above `top`."""
        own = np.concatenate([[0], names, np.arange(top + 1, top + self.fresh + 1)])
        written, start = (np.sign(self.literals) * own[np.abs(self.literals)]).tolist(), 0
        found = []
        for end in self.ends.tolist():
            found.append(written[start:end])
            start = end
        return found


@lru_cache(maxsize=128)
def _kept(count: int, least: int, encoding: Encoding) -> _Kept:
    """Return the clauses that variable 1 is true exactly where at least so many of the `count` variables after it are."""
    written = Clauses(count + 1, encoding)
    _sum(written, 1, list(range(2, count + 2)), least)
    literals = np.array([literal for clause in written.clauses for literal in clause], dtype=np.int32)
    ends = np.cumsum([len(clause) for clause in written.clauses], dtype=np.int64)
    return _Kept(written.top - count - 1, literals, ends)


def _sum(written: Clauses, name: int, literals: list[int], least: int) -> None:
    """Write that `name` is true exactly where at least so many literals are."""
    if written.encoding is Encoding.TOTALIZER:
        output = _totalizer(written, literals, least)[least - 1]
        written.add(-name, output)
        written.add(name, -output)
    else:
        _halves(written, name, literals, least)


def _totalizer(written: Clauses, literals: list[int], most: int) -> list[int]:
    """Return outputs o_1 to o_min(n, most), o_i true exactly where at least i literals are."""
    layer = [[literal] for literal in literals]
    while len(layer) > 1:
        pairs = [_merged(written, a, b, most) for a, b in zip(layer[::2], layer[1::2], strict=False)]
        layer = pairs + layer[2 * len(pairs) :]
    return layer[0]


def _merged(written: Clauses, a: list[int], b: list[int], most: int) -> list[int]:
    outputs = written.fresh(min(len(a) + len(b), most))
    top, clauses = len(outputs), written.clauses
    for i in range(len(a) + 1):
        for j in range(max(0, 1 - i), min(len(b), top - i) + 1):
            clauses.append([outputs[i + j - 1], *([-a[i - 1]] if i else []), *([-b[j - 1]] if j else [])])
        for j in range(min(len(b), top - i - 1) + 1):
            clauses.append([-outputs[i + j], *a[i : i + 1], *b[j : j + 1]])
    return outputs


def _halves(written: Clauses, name: int, literals: list[int], least: int) -> None:
    """Write each half as python-sat does, loosened by the name."""
    try:
        from pysat.card import CardEnc, EncType
    except ImportError:
        raise BackendUnavailableError(INSTALL) from None
    kind = getattr(EncType, written.encoding.value)
    for loose, encode, bound in ((-name, CardEnc.atleast, least), (name, CardEnc.atmost, least - 1)):
        found = encode(lits=literals, bound=bound, top_id=written.top, encoding=kind)
        written.top = max(written.top, found.nv)
        written.clauses.extend([loose, *clause] for clause in found.clauses)


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
