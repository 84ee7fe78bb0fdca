"""Mixed-integer models as arrays, HiGHS as their solver, and upper bounds that need no trust in it.

Accepts   maximise cost @ v subject to rows.lower <= matrix @ v <= rows.upper, variables.lower <= v <= variables.upper and
          some v binary; every number is the float that is stored, and every variable is bounded
Gives     points (hints) and multipliers (hints) from HiGHS; `upper_bound` from any multipliers
Method    weak duality: for every y, cost @ v = y @ (matrix @ v) + (cost - matrix.T @ y) @ v, and both sums are bounded
          row by row and variable by variable, in interval arithmetic
Property  bounds are sound whatever the solver answers
Source    Neumaier and Shcherbina 2004, Mathematical Programming 99; Huangfu and Hall 2018 (HiGHS)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust import interval
from qrobust.interval import BoolArray, FloatArray, Interval

SEED = 7


@dataclass(frozen=True, eq=False)
class Model:
    """See the module's docstring. Shapes: cost, variables, binary (n,); matrix (m, n), in sparse rows; rows, nudged (m,).

    `nudged` marks the rows that a replay in exact arithmetic may find broken by a rounding: a nudge narrows them.
    """

    cost: FloatArray
    matrix: Any
    rows: Interval
    variables: Interval
    binary: BoolArray
    nudged: BoolArray

    def upper_bound(self, multipliers: FloatArray, variables: Interval | None = None, cost: FloatArray | None = None) -> float:
        """Return at least the greatest cost @ v for v in the bounds, whatever the multipliers.

        Accepts   any floats as multipliers (m,); those that have no finite row end to meet, and NaN, count as 0. Bounds and
                  a cost other than the model's. With a cost of 0 a bound below 0 proves that there is no v at all
        Rounding  outward; matrix.T @ y errs by at most `sum_slack`
        """
        variables = variables or self.variables
        y = np.where(np.isfinite(multipliers), multipliers, 0.0)
        end = np.where(y > 0, self.rows.upper, self.rows.lower)
        y = np.where(np.isfinite(end), y, 0.0)
        end = np.where(y != 0, end, 0.0)
        slack = interval.sum_slack(len(y), abs(self.matrix).T @ np.abs(y))
        carried = Interval.point(self.matrix.T @ y) + Interval(-slack, slack)
        reduced = Interval.point(self.cost if cost is None else cost) - carried
        terms = [Interval.point(y) * Interval.point(end), reduced * variables]
        upper = np.concatenate([term.upper for term in terms])
        return float(interval.total(Interval.point(upper)).upper)


class Builder:
    """Collects variables and rows; `model` closes it."""

    def __init__(self) -> None:
        self._ends: list[tuple[FloatArray, FloatArray, bool]] = []
        self._blocks: list[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]] = []
        self._rows: list[tuple[FloatArray, FloatArray, BoolArray]] = []
        self.variables = 0
        self.rows = 0

    def add(self, ends: Interval, *, binary: bool = False) -> npt.NDArray[np.int64]:
        """Add a variable for each pair of ends and return their numbers."""
        count = len(ends)
        self._ends.append((ends.lower, ends.upper, binary))
        self.variables += count
        return np.arange(self.variables - count, self.variables)

    def copy(self) -> Builder:
        """Return a builder that holds the same and can be added to apart."""
        other = Builder()
        other._ends, other._blocks, other._rows = [*self._ends], [*self._blocks], [*self._rows]
        other.variables, other.rows = self.variables, self.rows
        return other

    def require(
        self,
        parts: Sequence[tuple[npt.NDArray[np.int64], npt.ArrayLike]],
        lower: npt.ArrayLike,
        upper: npt.ArrayLike,
        *,
        nudged: bool = False,
    ) -> None:
        """Add rows lower <= sum of parts <= upper.

        Shapes    a part is (numbers (n,), coefficients (m, n)), the same variables in every row, or (numbers (m,),
                  coefficients (m,) or one for all), one variable a row
        """
        dense = [np.shape(c)[0] for _, c in parts if np.ndim(c) == 2]
        count = dense[0] if dense else max(len(numbers) for numbers, _ in parts)
        place = np.arange(self.rows, self.rows + count)
        for numbers, coefficients in parts:
            if np.ndim(coefficients) == 2:
                rows, columns = np.repeat(place, len(numbers)), np.tile(numbers, count)
            else:
                rows, columns = place, np.broadcast_to(numbers, count)
            values = np.broadcast_to(np.asarray(coefficients, dtype=np.float64).ravel(), rows.shape)
            self._blocks.append((rows, columns, values))
        low, high = (np.broadcast_to(np.asarray(end, dtype=np.float64), count) for end in (lower, upper))
        self._rows.append((low, high, np.full(count, nudged)))
        self.rows += count

    def model(
        self, numbers: npt.NDArray[np.int64], coefficients: npt.ArrayLike, idle: npt.NDArray[np.int64] | None = None
    ) -> Model:
        """Return the model that maximises coefficients @ v[numbers]; idle binaries may take any value between 0 and 1."""
        from scipy.sparse import csr_matrix

        nothing = np.zeros(0, dtype=np.int64)
        rows, columns = (np.concatenate([nothing, *(block[i] for block in self._blocks)]) for i in range(2))
        values = np.concatenate([np.zeros(0), *(block[2] for block in self._blocks)])
        merged = np.unique(rows * self.variables + columns)
        assert len(merged) == len(rows), "two parts of a row name one variable: their sum would be rounded"
        matrix = csr_matrix((values, (rows, columns)), shape=(self.rows, self.variables))
        matrix.eliminate_zeros()
        cost = np.zeros(self.variables)
        cost[numbers] = coefficients
        ends = Interval(*(np.concatenate([part[i] for part in self._ends]) for i in range(2)))
        limits = Interval(*(np.concatenate([np.zeros(0), *(part[i] for part in self._rows)]) for i in range(2)))
        nudged = np.concatenate([np.zeros(0, dtype=bool), *(part[2] for part in self._rows)])
        binary = np.concatenate([np.full(len(low), is_binary) for low, _, is_binary in self._ends])
        if idle is not None:
            binary[idle] = False
        return Model(cost, matrix, limits, ends, binary, nudged)


@dataclass(frozen=True, eq=False)
class Hint:
    """What the solver says, none of it proved: a point, multipliers of the rows, or a ray of multipliers (infeasible)."""

    values: FloatArray | None = None
    multipliers: FloatArray | None = None
    ray: FloatArray | None = None


class Relaxation:
    """A model's linear relaxation, kept inside HiGHS between calls so that each starts from the basis of the last."""

    def __init__(self, model: Model, *, integers: bool = False) -> None:
        import highspy

        self._highspy: Any = highspy
        self.model = model
        highspy.Highs.resetGlobalScheduler(True)  # else it refuses to run where others ran it on more threads before
        self._solver = self._highspy.Highs()
        options: dict[str, Any] = {"output_flag": False, "threads": 1, "parallel": "off", "random_seed": SEED}
        options |= {} if integers else {"presolve": "off", "solver": "simplex"}
        for name, value in options.items():
            self._solver.setOptionValue(name, value)
        self._solver.passModel(self._translated(integers))
        self._numbers = np.arange(len(model.cost), dtype=np.int32)

    def _translated(self, integers: bool) -> Any:
        model, highspy = self.model, self._highspy
        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = len(model.cost), len(model.rows)
        program.sense_ = highspy.ObjSense.kMaximize
        program.col_cost_ = model.cost
        program.col_lower_, program.col_upper_ = model.variables.lower, model.variables.upper
        program.row_lower_, program.row_upper_ = model.rows.lower, model.rows.upper
        program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        program.a_matrix_.start_ = model.matrix.indptr.astype(np.int32)
        program.a_matrix_.index_ = model.matrix.indices.astype(np.int32)
        program.a_matrix_.value_ = model.matrix.data
        if integers:
            kinds = highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger
            program.integrality_ = [kinds[int(b)] for b in model.binary]
        return program

    def aim(self, cost: FloatArray) -> None:
        """Maximise something else from now on."""
        self._solver.changeColsCost(len(self._numbers), self._numbers, cost)

    def nudge(self, amount: float) -> None:
        """Narrow the model's nudged rows by an amount."""
        numbers, rows = np.flatnonzero(self.model.nudged).astype(np.int32), self.model.rows
        self._solver.changeRowsBounds(len(numbers), numbers, rows.lower[numbers] + amount, rows.upper[numbers] - amount)

    def solve(self, variables: Interval | None = None, *, seconds: float, target: float | None = None) -> Hint:
        """Return what HiGHS finds within the time; an empty hint if it fails."""
        solver, statuses = self._solver, self._highspy.HighsModelStatus
        ends = variables or self.model.variables
        solver.changeColsBounds(len(self._numbers), self._numbers, ends.lower, ends.upper)
        solver.setOptionValue("time_limit", solver.getRunTime() + max(seconds, 1e-3))
        if target is not None:
            solver.setOptionValue("objective_target", target)
        solver.run()
        status, solution = solver.getModelStatus(), solver.getSolution()
        if status == statuses.kInfeasible:
            return Hint(ray=self._ray())
        values = np.array(solution.col_value) if solution.value_valid else None
        multipliers = np.array(solution.row_dual) if solution.dual_valid else None
        if values is not None and not np.isfinite(values).all():
            values = None
        return Hint(values, multipliers)

    def _ray(self) -> FloatArray | None:
        if self.model.binary.any() and self._solver.getLp().integrality_:
            return None
        answer = self._solver.getDualRay()
        return np.array(answer[2]) if answer[1] else None


def proved_ends(model: Model, cost: FloatArray, relaxation: Relaxation, ends: Interval, seconds: float) -> Interval | None:
    """Return proved ends of cost @ v over a relaxation, at least as tight as the given ones (1,); None if it is empty."""
    found = []
    for sign, start in ((-1.0, -float(ends.lower[0])), (1.0, float(ends.upper[0]))):
        relaxation.aim(sign * cost)
        hint, upper = relaxation.solve(seconds=seconds / 2), start
        if hint.multipliers is not None:
            upper = min(upper, model.upper_bound(hint.multipliers, cost=sign * cost))
        found.append(sign * upper)
    return Interval(np.array(found[:1]), np.array(found[1:])) if found[0] <= found[1] else None
