"""Sums that a SAT solver counts itself: no clauses for them, one rival after another on one solver.

Accepts   every question whose rows, factors counted as repeated literals, fit in memory
Gives     Found or Nothing, both in exact arithmetic; Undecided at a limit
Method    at least k of n under a literal t is at most n of the n opposites and k times t; each half of a row is one such. A
          rival is asked for under an assumption; what is learned about one counts for the next. Those that are not decided
          within a budget of conflicts come again, with more
Property  sound and complete; the solver itself is trusted. Without variables for partial sums there may be no short proof where
          clauses of a totalizer have one: no engine to have alone
Source    Liffiton and Maglalang 2012 (MiniCard), doi 10.1007/978-3-642-31612-8_43; Jia and Rinard 2020, arXiv 2005.03597
          (reified native sums for networks of signs); Ignatiev et al., python-sat (Gluecard)
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from qrobust.backends.worker import next_answer
from qrobust.binarized.cnf import INSTALL, sums
from qrobust.binarized.constraints import Constraints, row_bounds
from qrobust.binarized.engines.base import LATE, Found, Nothing, Outcome, Undecided
from qrobust.binarized.queries import Norm, level_costs
from qrobust.binarized.unary import unary
from qrobust.errors import BackendUnavailableError

SOLVER = "gluecard4"
MOST_LITERALS = 20_000_000
FIRST_BUDGET = 2000  # conflicts for each rival
SLICE = 2000  # conflicts between looks at the clock
GROWTH = 4  # of the budget, from round to round
NO_LIMIT = 2**62
MOST_SECONDS = 10.0  # in this process


def decide(found: Constraints, seconds: float) -> Outcome:
    """Decide by native sums. The time limit is enforced from outside, too. Raises BackendUnavailableError."""
    return _decided(found, time.monotonic() + seconds, NO_LIMIT)


def decide_here(found: Constraints, conflicts: int, seconds: float = MOST_SECONDS) -> Outcome:
    """Decide in this process within about so many conflicts, or say that the question is greater.

    In a thread: the solver looks at its limits when it restarts, which on some questions takes it minutes. It is then left
    behind, and ends at its next look; the time limit and Ctrl-C do not wait for it. Raises BackendUnavailableError.
    """
    done: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
    deadline = time.monotonic() + seconds

    def work() -> None:
        try:
            done.put(_decided(found, deadline, conflicts))
        except Exception as error:
            done.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        outcome = next_answer(done, deadline)
    except queue.Empty:
        return Undecided(LATE)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def literal_count(found: Constraints) -> int:
    """Return about how many literals the rows become, both halves of each."""
    ranges, region = found.ranges, found.region
    sizes = sum(int((abs(matrix) @ ranges).sum()) for matrix in (found.matrix, found.rivals, found.hard))
    if region.norm is not Norm.LINF and not found.is_unary:  # the row of costs is still to come
        ends = np.stack([region.lower, region.upper])[:, found.pixels] - region.centre[found.pixels]
        sizes += int(level_costs(np.abs(ends), region.norm).sum())
    return 3 * sizes


def _decided(found: Constraints, deadline: float, conflicts: int) -> Outcome:
    try:
        from pysat.solvers import Solver
    except ImportError:
        raise BackendUnavailableError(INSTALL) from None
    boolean = unary(found)
    if literal_count(boolean) > MOST_LITERALS:
        return Undecided(f"the sums have more than {MOST_LITERALS:,} literals: use another engine")
    with Solver(name=SOLVER) as solver:
        rivals = _written(solver, boolean)
        budget, spent = FIRST_BUDGET, 0
        while rivals:
            for rival in tuple(rivals):
                if time.monotonic() > deadline:
                    return Undecided(LATE)
                if spent > conflicts:
                    return Undecided(f"not within {conflicts:,} conflicts")
                answer = _solved(solver, rival, min(budget, conflicts), deadline)
                spent = solver.accum_stats()["conflicts"]
                if answer:
                    return Found(boolean.input_levels(_values(boolean.columns, solver.get_model())))
                if answer is False:
                    solver.add_clause([-rival])
                    rivals.remove(rival)
            budget *= GROWTH
    return Nothing(exact=True)


def _solved(solver: Any, rival: int, budget: int, deadline: float) -> bool | None:
    """Return whether there is a solution with the rival, or None if so many conflicts, or the time, do not tell.

    In slices, each of which leaves Ctrl-C to Python.
    """
    answer: bool | None = None
    while answer is None and budget > 0 and time.monotonic() < deadline:
        solver.conf_budget(min(budget, SLICE))
        answer, budget = solver.solve_limited(assumptions=[rival], expect_interrupt=True), budget - SLICE
    return answer


def _written(solver: Any, boolean: Constraints) -> list[int]:
    """Write all rows; return the rivals' literals, those that intervals leave most room first."""
    columns, rows = boolean.columns, boolean.matrix.shape[0]
    for name, (literals, least) in enumerate(sums(boolean.matrix, boolean.threshold), start=columns + 1):
        _at_least(solver, name, literals, least)
        _at_least(solver, -name, [-literal for literal in literals], len(literals) - least + 1)
    for literals, least in sums(boolean.hard, boolean.hard_threshold):
        _at_least(solver, None, literals, least)
    room = row_bounds(boolean.rivals, boolean.ranges)[1] - boolean.rival_threshold
    names = columns + rows + 1 + np.arange(len(room))
    for name, (literals, least) in zip(names.tolist(), sums(boolean.rivals, boolean.rival_threshold), strict=True):
        _at_least(solver, name, literals, least)
    return list(names[np.argsort(-room, kind="stable")].tolist())


def _at_least(solver: Any, name: int | None, literals: Sequence[int], least: int) -> None:
    """Say that so many literals are true, where `name` is; without a name, everywhere."""
    loose = [] if name is None else [-name]
    if least <= 0:
        return
    if least > len(literals):
        solver.add_clause(loose)
    elif least == 1:
        solver.add_clause([*loose, *literals])
    elif least == len(literals):
        for literal in literals:
            solver.add_clause([*loose, literal])
    else:
        repeated = [] if name is None else [name] * least
        solver.add_atmost([*(-literal for literal in literals), *repeated], len(literals) - least * (name is None))


def _values(columns: int, model: list[int]) -> Any:
    """Return the pixels' columns of a solution; a variable that nothing speaks of may be missing."""
    values = np.zeros(columns, dtype=np.int64)
    values[[literal - 1 for literal in model if 0 < literal <= columns]] = 1
    return values
