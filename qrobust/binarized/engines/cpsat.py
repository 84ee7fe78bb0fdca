"""CP-SAT of OR-Tools: integer pixels and rows that hold if and only if their Boolean is true.

Accepts   every question
Gives     Found or Nothing; Undecided at the time limit
Property  sound and complete: it computes in integers; the solver itself is trusted
Source    Perron and Furnon, OR-Tools
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qrobust.binarized.constraints import Constraints
from qrobust.binarized.engines.base import Found, Nothing, Outcome, Undecided
from qrobust.binarized.queries import Norm
from qrobust.binarized.unary import unary
from qrobust.errors import BackendUnavailableError
from qrobust.layers import SparseMatrix


def decide(found: Constraints, seconds: float) -> Outcome:
    """Decide by one model over all rivals. Raises BackendUnavailableError."""
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise BackendUnavailableError("the cp-sat engine needs `pip install qrobust[bnn]`") from None
    if found.region.norm is not Norm.LINF:
        found = unary(found)
    model = cp_model.CpModel()
    columns = [model.new_bool_var("") if top == 1 else model.new_int_var(0, top, "") for top in found.states.tolist()]
    variables: list[Any] = columns + [model.new_bool_var("") for _ in range(found.matrix.shape[0])]
    for row, limit in enumerate(found.threshold.tolist()):
        total, truth = _sum(found.matrix, row, variables), variables[len(columns) + row]
        model.add(total >= limit).only_enforce_if(truth)
        model.add(total <= limit - 1).only_enforce_if(~truth)
    for row, limit in enumerate(found.hard_threshold.tolist()):
        model.add(_sum(found.hard, row, variables) >= limit)
    ways = []
    for row, limit in enumerate(found.rival_threshold.tolist()):
        ways.append(model.new_bool_var(""))
        model.add(_sum(found.rivals, row, variables) >= limit).only_enforce_if(ways[-1])
    model.add_bool_or(ways)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = max(seconds, 0.01)
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return Nothing(exact=True)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Found(found.input_levels(np.array([solver.value(column) for column in columns], dtype=np.int64)))
    return Undecided(f"CP-SAT stopped: {solver.status_name(status).lower()}")


def _sum(matrix: SparseMatrix, row: int, variables: list[Any]) -> Any:
    from ortools.sat.python import cp_model

    part = slice(matrix.indptr[row], matrix.indptr[row + 1])
    own = [variables[column] for column in matrix.indices[part].tolist()]
    return cp_model.LinearExpr.weighted_sum(own, matrix.data[part].tolist())
