"""An integer program on HiGHS: maximise cost @ v over whole v from lower to upper, with rows between two ends.

Property  computes in floats: its solutions are rounded and must be replayed, its optimum is no proof
Source    Huangfu and Hall 2018
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qrobust.interval import FloatArray
from qrobust.layers import IntArray, SparseMatrix

FEASIBLE = 2  # HiGHS's number for a primal solution that keeps all rows
FEASIBILITY = 1e-9


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
    solver.run()
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Solution(None, False, True, "infeasible")
    said = solver.modelStatusToString(status).lower()
    values = np.asarray(solver.getSolution().col_value, dtype=np.float64)
    if solver.getInfo().primal_solution_status != FEASIBLE or not np.isfinite(values).all():
        return Solution(None, False, False, said)
    whole = np.rint(values).astype(np.int64)
    return Solution(whole, status == highspy.HighsModelStatus.kOptimal, False, said)


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
