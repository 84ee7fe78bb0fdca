"""Mixed-integer programming on HiGHS: one question a rival, the constants of each row from its bounds.

Accepts   every question
Gives     Found (the input rounded, to be replayed) or Nothing, in floating point; Undecided at the time limit
Method    sum >= k <=> t as sum - (k - least) * t >= least and sum - (most - k + 1) * t <= k - 1, with the row's own bounds
Property  refutes; its "nothing" rests on floats with tolerances and is no proof
Source    Khalil et al. 2019, arXiv 1810.03538; Huangfu and Hall 2018 (HiGHS)
"""

from __future__ import annotations

import time

import numpy as np

from qrobust.binarized.constraints import Constraints, row_bounds
from qrobust.binarized.engines.base import LATE, Found, Nothing, Outcome, Undecided
from qrobust.binarized.engines.highs import Program, maximise
from qrobust.binarized.queries import Norm
from qrobust.binarized.unary import unary


def decide(found: Constraints, seconds: float) -> Outcome:
    """Decide by one integer program a rival, those that intervals leave most room first."""
    deadline = time.monotonic() + seconds
    if found.region.norm is not Norm.LINF:
        found = unary(found)
    if not found.matrix.shape[1]:  # no variable is left, and the rivals left win everywhere
        return Found(found.region.centre)
    program = Rows(found)
    slack = row_bounds(found.rivals, found.ranges)[1] - found.rival_threshold
    undecided = ""
    for rival in np.argsort(-slack, kind="stable").tolist():
        left = deadline - time.monotonic()
        if left <= 0:
            return Undecided(LATE)
        outcome = program.ask(rival, left)
        if isinstance(outcome, Found):
            return outcome
        undecided = outcome.reason if isinstance(outcome, Undecided) else undecided
    return Undecided(undecided) if undecided else Nothing(exact=False)


class Rows:
    """The rows that all rivals share, as rows of an integer program."""

    def __init__(self, found: Constraints) -> None:
        from scipy import sparse

        self._found = found
        rows, columns = found.matrix.shape[0], found.columns
        least, most = row_bounds(found.matrix, found.ranges)
        places = np.arange(rows), columns + np.arange(rows)  # of each row's own Boolean
        down = found.matrix - sparse.csr_array((found.threshold - least, places), shape=found.matrix.shape)
        up = found.matrix - sparse.csr_array((most - found.threshold + 1, places), shape=found.matrix.shape)
        self._matrix = sparse.csr_array(sparse.vstack([down, up, found.hard]))
        free = np.full(rows, np.inf)
        self._lower = np.concatenate([least, -free, found.hard_threshold]).astype(np.float64)
        self._upper = np.concatenate([free, found.threshold - 1, np.full(found.hard.shape[0], np.inf)]).astype(np.float64)

    def program(self, rival: int, least: float = -np.inf) -> Program:
        """Return the program that maximises a rival's row, where it is to be `least` or more."""
        from scipy import sparse

        row, ranges = self._found.rivals[[rival]], self._found.ranges
        cost = row.toarray().reshape(-1).astype(np.float64)
        matrix, lower, upper = self._matrix, self._lower, self._upper
        if least > -np.inf:
            matrix = sparse.csr_array(sparse.vstack([matrix, row]))
            lower, upper = np.append(lower, least), np.append(upper, np.inf)
        return Program(matrix, lower, upper, cost, np.zeros_like(ranges), ranges)

    def ask(self, rival: int, seconds: float) -> Outcome:
        """Look for an input where one rival takes the label."""
        found = self._found
        solution = maximise(self.program(rival, float(found.rival_threshold[rival])), seconds, first_only=True)
        if solution.infeasible:
            return Nothing(exact=False)
        if solution.values is None:
            return Undecided(f"HiGHS stopped: {solution.status}")
        return Found(found.input_levels(solution.values[: found.columns]))
