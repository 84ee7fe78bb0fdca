"""Counts within a factor, by random parities: how many solutions does a random cell of them all hold?

Accepts   clauses, the variables that are counted, epsilon and delta
Gives     ends of the count, apart by (1 + epsilon) squared at most, that hold with probability at least 1 - delta; a count of
          few solutions is exact
Method    parities of random halves of the variables, each true or false at random, cut the solutions into cells: as many
          parities as leave a cell with fewer solutions than a limit, counted one by one, times two for each parity. One such
          estimate is off by more than the factor with probability below WRONG, so the median of enough of them with less
          than delta, by the binomial tail
Property  estimates with confidence; the solver (CryptoMiniSat, which knows parities) is trusted
Source    Chakraborty, Meel, Vardi 2016 (ApproxMC2, IJCAI): the limit, WRONG and the search over nested cells
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from qrobust.errors import BackendUnavailableError, NumberError, UnsoundAnswerError
from qrobust.interval import BoolArray
from qrobust.logic.counters import INSTALL, Problem

WRONG = Fraction(36, 100)
MOST_ROUNDS = 999


@dataclass(frozen=True)
class Factor:
    """What a count by parities promises: within a factor 1 + epsilon, with probability 1 - delta. Raises NumberError."""

    epsilon: float = 0.8
    delta: float = 0.05

    def __post_init__(self) -> None:
        if not 0.01 <= self.epsilon <= 100 or not 1e-12 <= self.delta < 1:
            numbers = f"epsilon is {self.epsilon:g} and delta {self.delta:g}"
            raise NumberError(f"{numbers}: by parities epsilon must lie between 0.01 and 100, delta between 1e-12 and 1")

    @property
    def limit(self) -> int:
        """A cell with as many solutions is too large."""
        e = self.epsilon
        return math.ceil(1 + 9.84 * (1 + e / (1 + e)) * (1 + 1 / e) ** 2)

    @property
    def rounds(self) -> int:
        """The least odd number of estimates whose median is wrong with probability below delta."""
        return next(n for n in range(1, MOST_ROUNDS + 1, 2) if _median_is_wrong(n) <= self.delta or n == MOST_ROUNDS)


def _median_is_wrong(rounds: int) -> Fraction:
    some = range(rounds // 2 + 1, rounds + 1)
    return sum((math.comb(rounds, k) * WRONG**k * (1 - WRONG) ** (rounds - k) for k in some), start=Fraction(0))


def by_parities(problem: Problem, factor: Factor, seed: int) -> tuple[int, int, bool]:
    """Return both ends of the count, and whether these are exact. Raises BackendUnavailableError."""
    rng, (_, _, counted) = np.random.default_rng(seed), problem
    few = _Cells(problem, np.zeros((0, len(counted)), dtype=np.bool_), np.zeros(0, dtype=np.bool_)).count(0, factor.limit)
    if few < factor.limit:
        return few, few, True
    estimates, start = list[int](), 1
    for _ in range(factor.rounds):
        parities = rng.random((len(counted), len(counted))) < 0.5
        start, found = _estimate(_Cells(problem, parities, rng.random(len(counted)) < 0.5), start, factor.limit)
        estimates.append(found)
    middle = sorted(estimates)[len(estimates) // 2]
    ratio = 1 + Fraction(factor.epsilon)
    return max(factor.limit, math.ceil(middle / ratio)), max(factor.limit, math.floor(middle * ratio)), False


def _estimate(cells: _Cells, start: int, limit: int) -> tuple[int, int]:
    """Return the least number of parities whose cell is small, looked for from `start`, and the estimate that it gives."""
    low, high = 0, cells.most + 1  # parities whose cell is large, and small
    step, number, sizes = 1, min(start, cells.most), dict[int, int]()
    while high - low > 1:
        sizes[number] = cells.count(number, limit)
        if sizes[number] < limit:
            high = number
            number = max((low + high) // 2, number - step)
        else:
            low = number
            number = min((low + high) // 2 if high <= cells.most else cells.most, number + step)
        step *= 2
    return min(high, cells.most), sizes.get(high, 0) << high


class _Cells:
    """The solutions that meet the first few of some parities. Shapes: parities (most, counted); sides (most,)."""

    def __init__(self, problem: Problem, parities: BoolArray, sides: BoolArray) -> None:
        try:
            from pycryptosat import Solver
        except ImportError:
            raise BackendUnavailableError(INSTALL) from None
        clauses, top, counted = problem
        self.most, self._parities, self._sides = len(parities), parities, sides
        self._counted, self._solver, self._is_empty = counted, Solver(threads=1), any(not clause for clause in clauses)
        self._known = np.zeros((0, len(counted)), dtype=np.bool_)
        self._solver.add_clauses([clause for clause in clauses if clause])
        self._solver.add_clause([top + 1])
        self._solver.add_clauses([[variable, top + 1] for variable in counted])  # so that each has a value, wherever it stands
        self._switches = list(range(top + 2, top + 2 + len(parities)))  # false where a parity counts
        for own, side, switch in zip(parities, sides.tolist(), self._switches, strict=True):
            variables = [counted[place] for place in np.flatnonzero(own).tolist()]
            self._solver.add_xor_clause([*variables, switch], bool(side))

    def count(self, number: int, limit: int) -> int:
        """Count the solutions that meet the first `number` parities; stop at the limit."""
        if self._is_empty:
            return 0
        meets = (self._known.astype(np.int64) @ self._parities[:number].T % 2 == self._sides[:number]).all(axis=1)
        found, assumed = int(meets.sum()), [-switch for switch in self._switches[:number]]
        while found < limit and not self._is_empty:
            is_one, values = self._solver.solve(assumed)
            if not is_one:
                break
            self._remember(values)
            found += 1
        return found

    def _remember(self, values: Any) -> None:
        """Keep a solution, and block it for good: from now on it is counted from memory."""
        own = [values[variable] if variable < len(values) else None for variable in self._counted]
        if None in own:
            raise UnsoundAnswerError("the solver leaves a counted variable open: please report")
        self._known = np.concatenate([self._known, np.array([own], dtype=np.bool_)])
        clause = [-variable if value else variable for variable, value in zip(self._counted, own, strict=True)]
        if clause:
            self._solver.add_clause(clause)
        else:
            self._is_empty = True
