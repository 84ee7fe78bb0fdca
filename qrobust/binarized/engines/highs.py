"""Programs on HiGHS: maximise cost @ v over whole v from lower to upper, with rows between two ends; and a linear one.

Property  computes in floats: its solutions are rounded and must be replayed, its optimum is no proof
Source    Huangfu and Hall 2018
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qrobust.backends.worker import POLLED
from qrobust.interval import FloatArray
from qrobust.layers import IntArray, SparseMatrix

FEASIBLE = 2  # HiGHS's number for a primal solution that keeps all rows
FEASIBILITY = 1e-9
ROUNDING = 3.0  # by which a row is to be passed, so that values can be rounded
NO_LIMIT = 2**50


@dataclass(frozen=True, eq=False)
class Program:
    """See the module's docstring.

    Shapes    matrix a csr_array (rows, columns); row_lower, row_upper (rows,); cost, lower, upper (columns,)
    """

    matrix: SparseMatrix
    row_lower: FloatArray
    row_upper: FloatArray
    cost: FloatArray
    lower: IntArray
    upper: IntArray


@dataclass(frozen=True, eq=False)
class Solution:
    """The best found, rounded, or None; whether HiGHS says that it is the best, that there is none, and how it ended."""

    values: IntArray | None
    optimal: bool
    infeasible: bool
    status: str


def load_highs() -> None:
    """Import the library, so that a process's first program does not wait for it."""
    import highspy  # noqa: F401


def maximise(program: Program, seconds: float, *, start: IntArray | None = None, first_only: bool = False) -> Solution:
    """Solve a program on one thread, from a feasible point if one is given; with first_only any solution will do."""
    import highspy

    highspy.Highs.resetGlobalScheduler(True)  # else it refuses to run where others ran it on more threads before
    solver = highspy.Highs()
    options = (
        ("output_flag", False),
        ("threads", 1),
        ("time_limit", max(seconds, 0.01)),
        ("mip_feasibility_tolerance", FEASIBILITY),
        *((("mip_max_improving_sols", 1),) if first_only else ()),
    )
    for option, value in options:
        solver.setOptionValue(option, value)
    solver.passModel(_model(program))
    if start is not None:
        given = highspy.HighsSolution()
        given.col_value = start.astype(np.float64).tolist()
        solver.setSolution(given)
    _run(solver)
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Solution(None, False, True, "infeasible")
    said = solver.modelStatusToString(status).lower()
    values = np.asarray(solver.getSolution().col_value, dtype=np.float64)
    if solver.getInfo().primal_solution_status != FEASIBLE or not np.isfinite(values).all():
        return Solution(None, False, False, said)
    whole = np.rint(values).astype(np.int64)
    return Solution(whole, status == highspy.HighsModelStatus.kOptimal, False, said)


def _run(solver: Any) -> None:
    """Run HiGHS in a thread, so that Ctrl-C stops it and not only what comes after it."""
    solver.HandleUserInterrupt = True
    solver.startSolve()
    try:
        _wait(solver)
    except KeyboardInterrupt:
        solver.cancelSolve()
        _wait(solver)
        raise


def _wait(solver: Any) -> None:
    while not solver.wait(POLLED)[0]:
        pass


def _model(program: Program) -> Any:
    import highspy

    matrix = program.matrix
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = matrix.shape[1], matrix.shape[0]
    model.col_cost_ = program.cost
    model.col_lower_, model.col_upper_ = program.lower.astype(np.float64), program.upper.astype(np.float64)
    model.row_lower_, model.row_upper_ = program.row_lower, program.row_upper
    model.sense_ = highspy.ObjSense.kMaximize
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = matrix.indptr.astype(np.int32)
    model.a_matrix_.index_ = matrix.indices.astype(np.int32)
    model.a_matrix_.value_ = matrix.data.astype(np.float64)
    model.integrality_ = [highspy.HighsVarType.kInteger] * matrix.shape[1]
    return model


class ElasticRows:
    """Values from lower to upper, real, that are to give rows of a matrix signs, as near as can be: linear programs in turn.

    The solver is kept: only the ends of rows and the costs of falling short change, so that each program starts from the last
    one's basis.
    """

    def __init__(self, matrix: SparseMatrix, lower: IntArray, upper: IntArray, start: IntArray) -> None:
        """Begin at the ends nearest to `start`. Shapes: matrix (rows, columns); lower, upper, start (columns,)."""
        import highspy
        from scipy import sparse

        highspy.Highs.resetGlobalScheduler(True)
        rows, self._columns = matrix.shape
        self._scale = 2 / np.maximum(1, abs(matrix) @ (upper - lower))
        short = sparse.eye_array(rows)
        costs = -np.concatenate([np.zeros(self._columns), self._scale, self._scale])
        free, most = np.full(rows, np.inf), np.full(2 * rows, NO_LIMIT)
        whole = sparse.csr_array(sparse.hstack([matrix, short, -short]))
        zeros = np.zeros(2 * rows, dtype=np.int64)
        program = Program(whole, -free, free, costs, np.concatenate([lower, zeros]), np.concatenate([upper, most]))
        model = _model(program)
        model.integrality_ = []
        self._solver = highspy.Highs()
        for option, value in (("output_flag", False), ("threads", 1), ("presolve", "off")):
            self._solver.setOptionValue(option, value)
        self._solver.passModel(model)
        status, basis = highspy.HighsBasisStatus, highspy.HighsBasis()
        at_upper = [*(start - lower > upper - start).tolist(), *[False] * (2 * rows)]
        basis.col_status = [status.kUpper if one else status.kLower for one in at_upper]
        basis.row_status = [status.kBasic] * rows
        self._solver.setBasis(basis)

    def nearest(self, target: IntArray, threshold: IntArray, weight: FloatArray, seconds: float) -> FloatArray | None:
        """Return values with row @ v >= threshold where the target is 1, less where it is -1, or as near as weights say.

        Shapes    target, threshold, weight (rows,); result (columns,), or None at the time limit
        """
        import highspy

        count = len(target)
        self._solver.changeRowsBounds(
            count,
            np.arange(count, dtype=np.int32),
            np.where(target > 0, threshold + ROUNDING, -np.inf),
            np.where(target < 0, threshold - 1 - ROUNDING, np.inf),
        )
        places = np.arange(self._columns, self._columns + 2 * count, dtype=np.int32)
        cost = -weight * self._scale
        self._solver.changeColsCost(2 * count, places, np.concatenate([cost, cost]))
        self._solver.setOptionValue("time_limit", self._solver.getRunTime() + max(seconds, 0.01))  # its clock runs on
        self._solver.run()
        if self._solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        return np.asarray(self._solver.getSolution().col_value, dtype=np.float64)[: self._columns]
