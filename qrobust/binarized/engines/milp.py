"""Mixed-integer programming on HiGHS: one question a rival, the constants of each row from its bounds.

Accepts   every question
Gives     Found (the input rounded, to be replayed) or Nothing, in floating point; Undecided at the time limit
Method    sum >= k <=> t as sum - (k - least) * t >= least and sum - (most - k + 1) * t <= k - 1, with the row's own bounds
Property  refutes; its "nothing" rests on floats with tolerances and is no proof
Source    Khalil et al. 2019, arXiv 1810.03538; Huangfu and Hall 2018 (HiGHS)
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from qrobust.binarized.constraints import Constraints, row_bounds
from qrobust.binarized.engines.base import Found, Nothing, Outcome, Undecided
from qrobust.binarized.queries import Norm
from qrobust.binarized.unary import unary
from qrobust.interval import FloatArray
from qrobust.layers import SparseMatrix


def decide(found: Constraints, seconds: float) -> Outcome:
    """Decide by one integer program a rival, those that intervals leave most room first."""
    deadline = time.monotonic() + seconds
    if found.region.norm is not Norm.LINF:
        found = unary(found)
    if not found.matrix.shape[1]:  # no variable is left, and the rivals left win everywhere
        return Found(found.region.centre)
    program = _Program(found)
    slack = row_bounds(found.rivals, found.ranges)[1] - found.rival_threshold
    undecided = ""
    for rival in np.argsort(-slack, kind="stable").tolist():
        left = deadline - time.monotonic()
        if left <= 0:
            return Undecided("the time limit was reached")
        outcome = program.ask(rival, left)
        if isinstance(outcome, Found):
            return outcome
        undecided = outcome.reason if isinstance(outcome, Undecided) else undecided
    return Undecided(undecided) if undecided else Nothing(exact=False)


class _Program:
    """The rows that all rivals share."""

    def __init__(self, found: Constraints) -> None:
        from scipy import sparse

        self._found = found
        rows, columns = found.matrix.shape[0], found.columns
        least, most = row_bounds(found.matrix, found.ranges)
        own = sparse.csr_array(
            (np.arange(rows) * 0 + 1, (np.arange(rows), columns + np.arange(rows))), shape=found.matrix.shape
        )
        down = found.matrix - sparse.dia_array(((found.threshold - least)[None, :], [0]), shape=(rows, rows)) @ own
        up = found.matrix - sparse.dia_array(((most - found.threshold + 1)[None, :], [0]), shape=(rows, rows)) @ own
        self._matrix = sparse.csr_array(sparse.vstack([down, up, found.hard]))
        free = np.full(rows, np.inf)
        self._lower = np.concatenate([least, -free, found.hard_threshold]).astype(np.float64)
        self._upper = np.concatenate([free, found.threshold - 1, np.full(found.hard.shape[0], np.inf)]).astype(np.float64)

    def ask(self, rival: int, seconds: float) -> Outcome:
        """Look for an input where one rival takes the label."""
        import highspy
        from scipy import sparse

        found = self._found
        row, limit = found.rivals[[rival]], float(found.rival_threshold[rival])
        matrix = sparse.csr_array(sparse.vstack([self._matrix, row]))
        model = _model(matrix, np.append(self._lower, limit), np.append(self._upper, np.inf), found.ranges, row)
        solver = highspy.Highs()
        for option, value in (
            ("output_flag", False),
            ("threads", 1),
            ("time_limit", max(seconds, 0.01)),
            ("mip_max_improving_sols", 1),
            ("mip_feasibility_tolerance", 1e-9),
        ):
            solver.setOptionValue(option, value)
        solver.passModel(model)
        solver.run()
        status = solver.getModelStatus()
        if status == highspy.HighsModelStatus.kInfeasible:
            return Nothing(exact=False)
        values = np.asarray(solver.getSolution().col_value, dtype=np.float64)
        if solver.getInfo().primal_solution_status != 2 or not np.isfinite(values).all():
            return Undecided(f"HiGHS stopped: {solver.modelStatusToString(status).lower()}")
        return Found(found.input_levels(np.rint(values[: found.columns]).astype(np.int64)))


def _model(matrix: SparseMatrix, lower: FloatArray, upper: FloatArray, ranges: Any, row: SparseMatrix) -> Any:
    import highspy

    width = matrix.shape[1]
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = width, matrix.shape[0]
    model.col_cost_ = row.toarray().reshape(-1).astype(np.float64)
    model.col_lower_, model.col_upper_ = np.zeros(width), ranges.astype(np.float64)
    model.row_lower_, model.row_upper_ = lower, upper
    model.sense_ = highspy.ObjSense.kMaximize
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = matrix.indptr.astype(np.int32)
    model.a_matrix_.index_ = matrix.indices.astype(np.int32)
    model.a_matrix_.value_ = matrix.data.astype(np.float64)
    model.integrality_ = [highspy.HighsVarType.kInteger] * width
    return model
