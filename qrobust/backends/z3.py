"""Z3: label questions, sigma and local eps of networks with ReLU and linear hidden layers, in exact linear arithmetic.

Accepts   label and margin queries, sigma, and, for one sigmoid at a point, confidence queries and local epsilon
Gives     Robust, Violated (Candidate where a constant had to be rounded), estimates by optimization modulo theories
Method    the eliminated encoding; parameters are rebuilt exactly from the model's neurons. `Z3(Encoding.EXPLICIT)` asks the
          same with every parameter a variable, which is nonlinear: for comparison
Property  sound and complete within the time limit, as far as Z3 is trusted; counterexamples are exact
Source    de Moura and Bjørner 2008 (Z3); Bjørner, Phan, Fleckenstein 2015 (optimization)
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from qrobust.answers import (
    AnyQuery,
    Assurance,
    Candidate,
    Claim,
    Counterexample,
    EstimateClaim,
    Robust,
    Unknown,
    Violated,
)
from qrobust.backends.worker import Worker, WorkerDiedError, WorkerTimeoutError
from qrobust.bounds.corners import corner, positions_of
from qrobust.check import violation_fault
from qrobust.domains import Domain, Point, Points
from qrobust.errors import UnsupportedError
from qrobust.exact import ExactArray, float_bounds, sigmoid, to_exact
from qrobust.formula.eliminated import Eliminated
from qrobust.formula.encoding import Encoding, Problem, has_sigmoids, stored_confidence
from qrobust.formula.explicit import Explicit
from qrobust.formula.terms import Folder, Op, Relation, all_of, constant
from qrobust.leads import Leads
from qrobust.network import Output
from qrobust.queries import ConfidenceQuery, EpsilonEstimate, GreatestDelta, Query, SigmaEstimate
from qrobust.search import Budget

NEAR = Fraction(1, 10**10)  # how near to a supremum that is not attained a witness is sought


class Z3:
    """See the module's docstring."""

    name = "z3"
    proves = True
    refutes = True

    def __init__(self, encoding: Encoding = Encoding.ELIMINATED) -> None:
        self.encoding = encoding
        self._worker = Worker()

    def available(self) -> bool:
        return importlib.util.find_spec("z3") is not None

    def why_not(self, query: AnyQuery) -> str | None:
        if isinstance(query, GreatestDelta):
            return "the greatest delta is found by bisection over label queries"
        if isinstance(query, EpsilonEstimate) and query.of_logits:
            return "the formulas have no objective for the change of a logit: use branch-and-bound"
        if isinstance(query.domain, Points):
            return "a set of points is answered point by point"
        if not query.network.is_dense:
            return "the formulas have no rule for convolutions and pools"
        if has_sigmoids(query.network):
            return "a hidden sigmoid or tanh has no linear arithmetic"
        if isinstance(query, ConfidenceQuery | EpsilonEstimate):
            if query.network.output is Output.SOFTMAX:
                return "the confidences of several classes have no linear arithmetic"
            if not isinstance(query.domain, Point):
                return "a global question about confidences compares two sigmoids, which has no linear arithmetic"
        return None

    def is_empty(self, domain: Domain) -> bool:
        """Whether linear inequalities leave nothing of a box, exactly; False if it cannot be told within 10 s."""
        if not domain.inequalities[1].size:
            return False
        try:
            return bool(self._worker.call(_is_empty, domain, seconds=10.0))
        except (WorkerTimeoutError, WorkerDiedError):
            return False

    def decide(self, query: Query, budget: Budget) -> Claim:
        try:
            found = self._worker.call(_decide, query, self.encoding, budget.seconds, seconds=budget.seconds)
        except (WorkerTimeoutError, WorkerDiedError) as error:
            return Unknown(_why(error, budget))
        if found is None:
            return Unknown(f"z3 reached the time limit of {budget.seconds:.3g} s")
        if found.example is None:
            return Robust(Assurance.TRUSTED)
        return Violated(found.example) if found.exact else Candidate(found.example)

    def estimate(self, query: EpsilonEstimate | SigmaEstimate, budget: Budget) -> EstimateClaim:
        try:
            optima = self._worker.call(_optimise, query, self.encoding, budget.seconds, seconds=budget.seconds)
        except (WorkerTimeoutError, WorkerDiedError) as error:
            return EstimateClaim(1.0, None, Assurance.ROUNDED, reason=_why(error, budget))
        if any(optimum is None for optimum in optima):
            reason = f"z3 reached the time limit of {budget.seconds:.3g} s"
            witness = next((o.example for o in optima if o is not None and o.example is not None), None)
            return EstimateClaim(1.0, witness, Assurance.ROUNDED, reason=reason)
        ends = [(_upper(query, index, o.value), o.example, o.exact) for index, o in enumerate(optima) if o.value is not None]
        if not ends:
            return EstimateClaim(0.0, None, Assurance.TRUSTED)
        upper, witness, exact = max(ends, key=lambda end: end[0])
        return EstimateClaim(min(upper, 1.0), witness, Assurance.TRUSTED, exact=exact)


def _why(error: Exception, budget: Budget) -> str:
    if isinstance(error, WorkerTimeoutError):
        return f"z3 overran the time limit of {budget.seconds:.3g} s and was stopped"
    return f"z3: {error}"


def _upper(query: EpsilonEstimate | SigmaEstimate, index: int, value: Fraction) -> float:
    """Return the certified upper end that belongs to the supremum of one objective."""
    if isinstance(query, SigmaEstimate):
        # The supremum may need rounding up to a float before its margin is enclosed.
        leads = Leads(query.network, query.level)
        return float_bounds(lambda: leads.margin(max(value, Fraction(0)), query.label))[1]
    low, high = stored_confidence(query)
    extreme = value if index == 0 else -value  # the second objective is minus the least logit
    before = to_exact([low if index == 0 else high])[0]
    after = float_bounds(lambda: abs(sigmoid(to_exact([extreme])[0]) - before))[1]
    return max(after, 0.0)


@dataclass(frozen=True)
class Found:
    """What the worker found: a model's example, or none (unsatisfiable); for an objective, its supremum."""

    example: Counterexample | None
    exact: bool
    value: Fraction | None = None


ENCODERS: dict[Encoding, type[Explicit] | type[Eliminated]] = {
    Encoding.EXPLICIT: Explicit,
    Encoding.ELIMINATED: Eliminated,
}


class Z3Algebra:
    """Terms become Z3 expressions over reals."""

    def __init__(self, z3: Any) -> None:
        self.z3 = z3

    def constant(self, value: Fraction) -> Any:
        return self.z3.Q(value.numerator, value.denominator)

    def variable(self, name: str) -> Any:
        return self.z3.Real(name)

    def apply(self, op: Op, arguments: list[Any]) -> Any:
        first, second = arguments if len(arguments) == 2 else (arguments[0], None)
        match op:
            case Op.ADD:
                return first + second
            case Op.MULTIPLY:
                return first * second
            case Op.MAXIMUM:
                return self.z3.If(first >= second, first, second)
            case Op.MINIMUM:
                return self.z3.If(first <= second, first, second)
        raise UnsupportedError(f"z3 has no rule for {op.value}; use --backend branch-and-bound")

    def compare(self, relation: Relation, left: Any, right: Any) -> Any:
        return left <= right if relation is Relation.AT_MOST else left < right

    def join(self, relation: Relation, parts: list[Any]) -> Any:
        return self.z3.And(*parts) if relation is Relation.AND else self.z3.Or(*parts)


def _decide(query: Query, encoding: Encoding, seconds: float) -> Found | None:
    """Run in the worker: None if the time limit ended it. Where a constant was rounded, a model is sought on both sides."""
    found = _solve(query, encoding, seconds, weaker=True)
    if found is None or found.exact or found.example is None:
        return found
    stronger = _solve(query, encoding, seconds, weaker=False)
    return found if stronger is None or stronger.example is None else stronger


def _solve(query: Query, encoding: Encoding, seconds: float, *, weaker: bool) -> Found | None:
    import z3

    encoder = ENCODERS[encoding](query, weaker=weaker)
    problem = encoder.problem()
    solver = z3.Solver()
    solver.set("timeout", _milliseconds(seconds))
    solver.add(Folder(Z3Algebra(z3)).formula(problem.formula))
    verdict = solver.check()
    if verdict == z3.unsat:
        return Found(None, problem.exact or not weaker)
    if verdict == z3.unknown:
        return None
    return Found(_example(encoder, z3, solver.model(), ()), problem.exact or not weaker)


def _is_empty(domain: Domain) -> bool:
    """Run in the worker."""
    import z3

    algebra, solver = Z3Algebra(z3), z3.Solver()
    solver.set("timeout", _milliseconds(9.0))
    x = [algebra.variable(f"x{i}") for i in range(domain.inputs)]
    exact = [algebra.constant(Fraction(value)) for ends in (domain.box.lower, domain.box.upper) for value in ends.tolist()]
    solver.add(*(low <= v for low, v in zip(exact, x, strict=False)))
    solver.add(*(v <= high for high, v in zip(exact[len(x) :], x, strict=True)))
    for row, limit in zip(*(part.tolist() for part in domain.inequalities), strict=True):
        total = sum((algebra.constant(Fraction(a)) * v for a, v in zip(row, x, strict=True)), algebra.constant(Fraction(0)))
        solver.add(total <= algebra.constant(Fraction(limit)))
    return bool(solver.check() == z3.unsat)


def _optimise(query: Query, encoding: Encoding, seconds: float) -> list[Found | None]:
    """Run in the worker: for each objective its supremum and a witness; None where the time limit ended it."""
    import z3

    encoder = ENCODERS[encoding](query)
    problem = encoder.problem()
    share = seconds / max(len(problem.objectives), 1)
    return [_optimum(encoder, problem, index, z3, share) for index in range(len(problem.objectives))]


def _optimum(encoder: Eliminated | Explicit, problem: Problem, index: int, z3: Any, seconds: float) -> Found | None:
    objective, folder = problem.objectives[index], Folder(Z3Algebra(z3))
    optimizer = z3.Optimize()
    optimizer.set("timeout", _milliseconds(seconds))
    optimizer.add(folder.formula(all_of([problem.constraints, objective.condition])))
    handle = optimizer.maximize(folder.term(objective.term))
    verdict = optimizer.check()
    if verdict == z3.unsat:
        return Found(None, problem.exact)
    if verdict == z3.unknown:
        return None
    infinite, supremum, infinitesimal = (_rational(part) for part in optimizer.upper_values(handle))
    if infinite:
        return None
    example = None
    if infinitesimal == 0:
        example = _example(encoder, z3, optimizer.model(), objective.directions)
    else:  # not attained: look for a model just below
        solver = z3.Solver()
        solver.set("timeout", _milliseconds(seconds))
        near = objective.term >= constant(supremum - NEAR * max(abs(supremum), Fraction(1)))
        solver.add(folder.formula(all_of([problem.constraints, objective.condition, near])))
        if solver.check() == z3.sat:
            example = _example(encoder, z3, solver.model(), objective.directions)
    return Found(example, problem.exact, supremum)


def _milliseconds(seconds: float) -> int:
    return max(1, int(min(1000 * seconds, 2.0**31 - 1)))


def _rational(value: Any) -> Fraction:
    if value.is_real() and hasattr(value, "as_fraction"):
        return Fraction(value.as_fraction())
    return Fraction(value.as_long())


def _example(encoder: Eliminated | Explicit, z3: Any, model: Any, directions: tuple[float, ...]) -> Counterexample | None:
    """Rebuild the input and all parameters from a model, exactly; None if a value is no rational."""

    def value(term: Any) -> Fraction:
        if term.op is Op.CONSTANT:
            return Fraction(term.value)
        number = model.eval(z3.Real(term.name), model_completion=True)
        return Fraction(number.as_fraction())

    try:
        x = tuple(value(term) for term in encoder.x)
        if isinstance(encoder, Explicit):
            arrays = [(_values(weight, value), _values(bias, value)) for weight, bias in encoder.names]
            return Counterexample(x, tuple(arrays))
        query = encoder.query
        positions = positions_of(query.network, query.parameters, x, [_values(names, value) for names in encoder.names])
        pushed = np.array(directions) if directions else _violating(query, x, positions)
        return corner(query.network, query.parameters, x, pushed, positions)
    except AttributeError:  # an algebraic number, which only the nonlinear encoding can give
        return None


def _values(names: ExactArray, value: Any) -> ExactArray:
    return np.asarray(np.frompyfunc(value, 1, 1)(names), dtype=object).reshape(names.shape)


def _violating(query: Query, x: tuple[Fraction, ...], positions: list[ExactArray]) -> Any:
    """Return the directions of the output rows with which the model's hidden values violate the query."""
    if query.network.output is Output.SIGMOID:
        choices = np.array([[1.0], [-1.0]])
    else:
        choices = Leads(query.network, Fraction(1, 2)).directions
    for directions in choices:
        if violation_fault(query, corner(query.network, query.parameters, x, directions, positions)) is None:
            return directions
    return choices[0]
