"""A network's label over a region as reified sums over order literals that several networks can share.

For classes a < b one sum says that b takes the label from a (a has it in ties), so the label is c where c takes it from all
before it and none after takes it from c. Every pixel and level of the region is kept: one choice of the order literals is one
input.

Property  exact
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from qrobust.binarized.cnf import MOST_CLAUSES, Clauses, sums
from qrobust.binarized.constraints import Constraints, whole_constraints
from qrobust.binarized.folding import Folded, Rivals
from qrobust.binarized.queries import Norm, Region, TieRule, level_costs
from qrobust.binarized.unary import unary
from qrobust.errors import ResourceError
from qrobust.layers import IntArray

MOST_WAYS = 2**26  # numbers of choices added up to count a ball's inputs: some seconds
V = TypeVar("V")
Ways = npt.NDArray[Any]  # whole numbers, however great


@dataclass(frozen=True, eq=False)
class LabelRows:
    """Sums over the order literals of a region, and of the rows before them; `takes` says who takes the label from whom.

    Units     takes: by the classes (a, b), a < b, the row of constraints.rivals; None where b never does
    """

    constraints: Constraints
    classes: int
    takes: dict[tuple[int, int], int | None]


def label_rows(folded: Folded, region: Region) -> LabelRows:
    """Return the rows of a network's label. Raises UnsupportedError (no common measure of the scores)."""
    from scipy import sparse

    classes = len(folded.scale)
    after = [folded.rivals(own, TieRule.FIRST, range(own + 1, classes)) for own in range(classes - 1)]
    numbers = tuple(own * classes + number for own, rivals in enumerate(after) for number in rivals.numbers)
    matrix = sparse.csr_array(sparse.vstack([rivals.matrix for rivals in after]))
    rivals = Rivals(numbers, matrix, np.concatenate([rivals.threshold for rivals in after]))
    found = unary(whole_constraints(folded, region, rivals))
    places = {number: row for row, number in enumerate(found.rival_classes)}
    pairs = [(a, b) for a in range(classes) for b in range(a + 1, classes)]
    return LabelRows(found, classes, {(a, b): places.get(a * classes + b) for a, b in pairs})


def class_values(
    rows: LabelRows, columns: list[V], at_least: Callable[[list[V], int], V], algebra: tuple[Callable[[V], V], V, V]
) -> tuple[list[V], dict[tuple[int, int], V]]:
    """Return the rows' values and who takes the label from whom, in any algebra.

    Accepts   columns: the order literals; at_least(values, k): whether k of them hold; algebra: not, true, false
    """
    negate, true, false = algebra
    variables = list(columns)

    def value(literals: list[int], least: int) -> V:
        if least <= 0:
            return true
        if least > len(literals):
            return false
        return at_least([variables[n - 1] if n > 0 else negate(variables[-n - 1]) for n in literals], least)

    found = rows.constraints
    for literals, least in sums(found.matrix, found.threshold):
        variables.append(value(literals, least))
    beats = [value(literals, least) for literals, least in sums(found.rivals, found.rival_threshold)]
    return variables, {pair: false if row is None else beats[row] for pair, row in rows.takes.items()}


class LabelClauses:
    """Clauses in which the order literals of one region are shared by several networks."""

    def __init__(self, region: Region, rows: LabelRows) -> None:
        found = rows.constraints
        self.columns = list(range(1, found.columns + 1))
        self.written = Clauses(found.columns)
        (self.true,) = self.written.fresh(1)
        self.written.add(self.true)
        for literals, least in sums(found.hard, found.hard_threshold):
            self.written.require(literals, least)

    def classes(self, rows: LabelRows, columns: list[int] | None = None) -> list[int]:
        """Return, for each class, a literal that is true where it has the label. Raises ResourceError."""
        algebra = (lambda literal: -literal, self.true, -self.true)
        _, takes = class_values(rows, self.columns if columns is None else columns, self._at_least, algebra)
        found = []
        for own in range(rows.classes):
            parts = [takes[a, own] for a in range(own)] + [-takes[own, b] for b in range(own + 1, rows.classes)]
            (name,) = self.written.fresh(1)
            for part in parts:
                self.written.add(-name, part)
            self.written.add(name, *(-part for part in parts))
            found.append(name)
        return found

    def _at_least(self, literals: list[int], least: int) -> int:
        if len(self.written.clauses) + len(literals) * min(least, len(literals) - least + 1) > MOST_CLAUSES:
            raise ResourceError(f"there would be over {MOST_CLAUSES:,} clauses: take a smaller region or a sparser network")
        (name,) = self.written.fresh(1)
        self.written.define(name, literals, least)
        return name


def size_of(region: Region) -> int:
    """Return how many inputs a region has, exactly. Raises ResourceError (a ball of too many costs)."""
    if region.norm is Norm.LINF:
        return math.prod((region.upper - region.lower + 1).tolist())
    *_, (_, _, ways) = ways_by_cost(region)
    return int(ways[-1])


def ways_by_cost(region: Region) -> Iterator[tuple[IntArray, Ways, Ways]]:
    """Yield of each feature of a ball, the last one first, its levels' costs, and how many choices cost at most 0, 1, 2 ...

    Shapes    costs (levels,); the numbers of choices, of the features after it and from it on: (most + 1,), exact
    Raises    ResourceError
    """
    ends = zip(region.lower.tolist(), region.upper.tolist(), region.centre.tolist(), strict=True)
    costs = [level_costs(np.abs(np.arange(lower, upper + 1) - centre), region.norm) for lower, upper, centre in ends]
    terms = sum(len(np.unique(own[own <= region.most])) for own in costs) * (region.most + 1)
    if terms > MOST_WAYS:
        raise ResourceError(
            f"the inputs of this ball are {terms:,} numbers added up, at most {MOST_WAYS:,} are: take a smaller ball, or l0"
        )
    ways = np.full(region.most + 1, 1, dtype=object)
    for own in reversed(costs):
        after, ways = ways, np.full(region.most + 1, 0, dtype=object)
        for cost, times in zip(*np.unique(own[own <= region.most], return_counts=True), strict=True):
            ways[cost:] += int(times) * after[: len(after) - cost]
        yield own, after, ways
