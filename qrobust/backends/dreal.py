"""dReal: any query with sigmoids, tanh and exponentials, by its Python module or a `dreal` program on PATH.

Accepts   every query on dense networks over points, boxes and polytopes; estimates by bisection over the decision queries
Gives     Robust, Candidate or Unknown; estimates whose upper end is the least value that dReal refuted
Method    the explicit encoding (or the eliminated one), weakened in two ways so that unsat stays a proof: strict comparisons
          become non-strict, and every constant but 0, 1 and -1 becomes a variable between its two neighbouring floats, for
          dReal folds constants in round-to-nearest and then answers unsat where solutions exist
Property  sound as far as dReal is trusted; not complete: delta-sat is only a candidate, and counts if it replays exactly
Source    Gao, Kong, Clarke 2013 (dReal); Gao, Avigad, Clarke 2012 (delta-decisions)
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np

from qrobust.answers import AnyQuery, Assurance, Candidate, Claim, Counterexample, EstimateClaim, Robust, Unknown
from qrobust.backends.dreal_program import INSTALL, Box, Reply, run_program
from qrobust.backends.worker import Worker, WorkerDiedError, WorkerTimeoutError
from qrobust.bounds.corners import corner
from qrobust.check import violation_fault, witness_bounds
from qrobust.domains import Points
from qrobust.errors import BackendUnavailableError, NumberError, UnsoundAnswerError, UnsupportedError
from qrobust.formula import Encoding, Problem, encode
from qrobust.formula.explicit import Explicit
from qrobust.formula.terms import Folder, Formula, Op, Relation, Term, all_of, any_of, constant, maximum, variable
from qrobust.interval import round_fraction_down, round_fraction_up
from qrobust.leads import Leads
from qrobust.network import Output
from qrobust.queries import (
    ConfidenceQuery,
    EpsilonEstimate,
    GlobalConfidence,
    GreatestDelta,
    LocalConfidence,
    Query,
    SigmaEstimate,
)
from qrobust.search import Budget

PRECISION = 1e-4


class Transport(Enum):
    """How dReal is reached."""

    MODULE = "module"
    PROGRAM = "program"


class DReal:
    """See the module's docstring. Raises NumberError if the precision is not a number above 0."""

    name = "dreal"
    proves = True
    refutes = True

    def __init__(
        self,
        transport: Transport | None = None,
        *,
        precision: float = PRECISION,
        encoding: Encoding = Encoding.EXPLICIT,
    ) -> None:
        if not 0 < precision < 1:
            raise NumberError(f"dReal's precision is {precision}, it must lie between 0 and 1: give for example 1e-4")
        self._transport, self.precision, self.encoding = transport, precision, encoding
        self._worker = Worker()

    @property
    def transport(self) -> Transport | None:
        """The transport asked for, or the first that is there: the module, then the program; None if neither is."""
        there = [
            found
            for found, present in (
                (Transport.MODULE, importlib.util.find_spec("dreal") is not None),
                (Transport.PROGRAM, shutil.which("dreal") is not None),
            )
            if present and self._transport in (None, found)
        ]
        return there[0] if there else None

    def available(self) -> bool:
        return self.transport is not None

    def why_not(self, query: AnyQuery) -> str | None:
        if isinstance(query, GreatestDelta):
            return "the greatest delta is found by bisection over label queries"
        if isinstance(query, EpsilonEstimate) and query.of_logits:
            return "the formulas have no objective for the change of a logit: use branch-and-bound"
        if isinstance(query.domain, Points):
            return "a set of points is answered point by point"
        if not query.network.is_dense:
            return "the formulas have no rule for convolutions and pools"
        if isinstance(query, EpsilonEstimate) and query.network.output is Output.SOFTMAX:
            return "the greatest change of several confidences is left to branch-and-bound"
        return None

    def decide(self, query: Query, budget: Budget) -> Claim:
        try:
            reply = self._ask(query, None, budget.seconds)
        except (WorkerTimeoutError, subprocess.TimeoutExpired):
            return Unknown(f"dreal overran the time limit of {budget.seconds:.3g} s and was stopped")
        except WorkerDiedError as error:
            return Unknown(f"dreal: {error}")
        if reply.box is None:
            return Robust(Assurance.TRUSTED)
        examples = list(_examples(query, reply.box))
        return Candidate(next((e for e in examples if violation_fault(query, e) is None), examples[0]))

    def estimate(self, query: EpsilonEstimate | SigmaEstimate, budget: Budget) -> EstimateClaim:
        """Bisect: what dReal refutes is an upper end, what replays is a witness; in between dReal's word only steers."""
        deadline = time.monotonic() + budget.seconds
        low, upper, reason = 0.0, _most(query), ""
        best: tuple[float, Counterexample | None] = (0.0, None)
        while upper - low > 2 * self.precision:
            left, middle = deadline - time.monotonic(), 0.5 * (low + upper)
            try:
                if left <= 0:
                    raise WorkerTimeoutError
                reply = self._ask(query, middle, left)
            except (WorkerTimeoutError, subprocess.TimeoutExpired):
                reason = f"dreal reached the time limit of {budget.seconds:.3g} s"
                break
            except WorkerDiedError as error:
                reason = f"dreal: {error}"
                break
            if reply.box is None:
                upper = middle
                continue
            low = middle
            for value, example in _valued(query, reply.box):
                if value > best[0]:
                    best = (value, example)
            low = max(low, min(best[0], upper))
        return EstimateClaim(upper, best[1], Assurance.TRUSTED, reason=reason or f"dReal's precision is {self.precision:g}")

    def minimize_as_in_paper(
        self, query: EpsilonEstimate | SigmaEstimate, *, seconds: float, printed_constraint: bool = False
    ) -> float | None:
        """Return what dReal's `Minimize` gives for an estimate; None if it overruns. For comparison only, never a bound.

        Property  neither end: it strengthens the inner problem and fixes the quantified variables to midpoints, so it stops
                  short of the maximum, on the unsafe side
        Method    minimise the negated expression itself, or (printed_constraint) a variable that an equality ties to it;
                  with a precision of at most a fiftieth of the largest radius, above which the result is of no use
        Raises    BackendUnavailableError without the Python module
        """
        if self.transport is not Transport.MODULE:
            raise BackendUnavailableError(INSTALL)
        try:
            precision = min(self.precision, _largest_radius(query) / 50 or self.precision)
            found = self._worker.call(_minimise, query, precision, printed_constraint, seconds=seconds)
        except (WorkerTimeoutError, WorkerDiedError):
            return None
        return None if found is None else float(found)

    def _ask(self, query: Query, value: float | None, seconds: float) -> Reply:
        if self.transport is Transport.MODULE:
            box = self._worker.call(_solve, query, self.encoding, value, self.precision, seconds=seconds)
            return Reply(box)
        if self.transport is Transport.PROGRAM:
            return run_program(_problem(query, self.encoding, value), self.precision, seconds)
        raise BackendUnavailableError(INSTALL)


def _largest_radius(query: Query) -> float:
    layers = [bounds.interval for layer in query.parameters.layers for bounds in (layer.weight, layer.bias)]
    return max(float(ends.width.max()) / 2 for ends in layers)


def _most(query: EpsilonEstimate | SigmaEstimate) -> float:
    if isinstance(query, EpsilonEstimate):
        return 1.0
    one_sided = query.level if query.label == 0 else 1 - query.level
    return float(one_sided if query.network.output is Output.SIGMOID else Fraction(1, 2))


def _problem(query: Query, encoding: Encoding, value: float | None) -> Problem:
    """Return the formula of a decision query, or of "an estimate is at least value"."""
    if value is None:
        return encode(query, encoding)
    if isinstance(query, EpsilonEstimate):
        kind = LocalConfidence if query.local else GlobalConfidence
        return encode(kind(query.network, query.parameters, query.domain, Fraction(value)), encoding)
    assert isinstance(query, SigmaEstimate)
    problem = encode(query, encoding)
    needed = Leads(query.network, query.level).gap_of_margin(Fraction(value), query.label)
    if needed is None:
        return replace(problem, violation=any_of([]), objectives=())
    least = constant(needed[0])
    cases = [all_of([objective.condition, least <= objective.term]) for objective in problem.objectives]
    return replace(problem, violation=any_of(cases), objectives=())


class DRealAlgebra:
    """Terms become dReal expressions; constants become bounded variables unless `plain`."""

    def __init__(self, dreal: Any, *, plain: bool = False) -> None:
        self.dreal, self.plain = dreal, plain
        self.variables: dict[str, Any] = {}
        self.bounds: list[Any] = []
        self._constants: dict[Fraction, Any] = {}

    def constant(self, value: Fraction) -> Any:
        if self.plain or value in (0, 1, -1):
            return self.dreal.Expression(float(value))
        if value not in self._constants:
            name = self.dreal.Variable(f"c{len(self._constants) + 1}")
            self.bounds += [name >= round_fraction_down(value), name <= round_fraction_up(value)]
            self._constants[value] = name
        return self._constants[value]

    def variable(self, name: str) -> Any:
        if name not in self.variables:
            self.variables[name] = self.dreal.Variable(name)
        return self.variables[name]

    def apply(self, op: Op, arguments: list[Any]) -> Any:
        first, *rest = arguments
        match op:
            case Op.ADD:
                return first + rest[0]
            case Op.MULTIPLY:
                return first * rest[0]
            case Op.MAXIMUM:
                return self.dreal.Max(first, rest[0])
            case Op.MINIMUM:
                return self.dreal.Min(first, rest[0])
            case Op.SIGMOID:
                return 1 / (1 + self.dreal.exp(-first))
            case Op.TANH:
                return self.dreal.tanh(first)
            case Op.EXP:
                return self.dreal.exp(first)
        raise UnsupportedError(f"dreal has no rule for {op.value}; use --backend branch-and-bound")

    def compare(self, relation: Relation, left: Any, right: Any) -> Any:
        return left <= right

    def join(self, relation: Relation, parts: list[Any]) -> Any:
        if not parts:
            return self.dreal.Formula.TRUE() if relation is Relation.AND else self.dreal.Formula.FALSE()
        return parts[0] if len(parts) == 1 else (self.dreal.And if relation is Relation.AND else self.dreal.Or)(*parts)


def _module() -> Any:
    """Import dReal's module. Raises BackendUnavailableError with the reason, such as a missing system library."""
    try:
        return importlib.import_module("dreal")
    except ImportError as error:
        raise BackendUnavailableError(f"{INSTALL} ({str(error)[:120]})") from None


def _solve(query: Query, encoding: Encoding, value: float | None, precision: float) -> Box | None:
    """Run in the worker: the box of a delta-solution, or None for unsat."""
    dreal = _module()
    algebra = DRealAlgebra(dreal)
    formula = Folder(algebra).formula(_problem(query, encoding, value).formula)
    config = dreal.Config()
    config.precision = precision
    found = dreal.CheckSatisfiability(dreal.And(dreal.Formula.TRUE(), formula, *algebra.bounds), config)
    if found is None:
        return None
    known = {v.get_id() for v in found.keys()}  # noqa: SIM118 (a Box is no dict)
    return {n: (found[v].lb(), found[v].ub()) for n, v in algebra.variables.items() if v.get_id() in known}


def _minimise(query: EpsilonEstimate | SigmaEstimate, precision: float, printed: bool) -> float | None:
    """Run in the worker: the value that Minimize's point attains, in floating point."""
    dreal = _module()
    algebra = DRealAlgebra(dreal, plain=True)
    folder = Folder(algebra)
    problem = encode(query, Encoding.EXPLICIT)
    target, condition = _paper_objective(query, problem)
    conditions = [folder.formula(problem.constraints), folder.formula(condition)]
    if printed:
        tied = variable("estimate")
        conditions += [folder.term(tied) == folder.term(target), folder.term(tied) >= 0, folder.term(tied) <= 1]
        goal = -folder.term(tied)
    else:
        goal = -folder.term(target)
    config = dreal.Config()
    config.precision = precision
    found = dreal.Minimize(goal, dreal.And(*conditions), config)
    if found is None:
        return None
    box = {n: (found[v].mid(),) * 2 for n, v in algebra.variables.items() if n != "estimate"}
    values = [value for value, _ in _valued(query, box, corners=False)]
    return max(values, default=0.0)


def _paper_objective(query: EpsilonEstimate | SigmaEstimate, problem: Problem) -> tuple[Term, Formula]:
    """Return the term to maximise and its condition: the change of the confidence, or the gap of a changed label."""
    if isinstance(query, SigmaEstimate):
        return problem.objectives[0].term, problem.objectives[0].condition
    change = problem.objectives[0].term
    if query.local:
        before = Term(Op.SIGMOID, (_stored_logit(query),))
        change = Term(Op.SIGMOID, (change,)) - before
    return maximum(change, -change), all_of([])


def _stored_logit(query: Query) -> Term:
    term: Term = Explicit(query).stored[0]
    return term


def _examples(query: Query, box: Box, *, corners: bool = True) -> Iterator[Counterexample]:
    """Yield inputs and parameters that a box suggests, inside the domain and the parameter box."""
    sides = query.domain.box
    ends = [box.get(f"x{i + 1}", (low, low)) for i, low in enumerate(sides.lower.tolist())]
    middle = np.clip([0.5 * (a + b) for a, b in ends], sides.lower, sides.upper)
    inputs = [middle, *(np.clip(np.array(end), sides.lower, sides.upper) for end in zip(*ends, strict=True))]
    for point in inputs if corners else inputs[:1]:
        x = [Fraction(v) for v in point.tolist()]
        yield _named_parameters(query, tuple(x), box)
        if not corners:
            continue
        for directions in _directions(query):
            yield corner(query.network, query.parameters, x, directions)


def _directions(query: Query) -> Any:
    if query.network.output is Output.SIGMOID:
        return np.array([[1.0], [-1.0]])
    if isinstance(query, ConfidenceQuery):
        return np.concatenate([2 * np.eye(query.network.class_count) - 1, 1 - 2 * np.eye(query.network.class_count)])
    return Leads(query.network, Fraction(1, 2)).directions


def _named_parameters(query: Query, x: tuple[Fraction, ...], box: Box) -> Counterexample:
    """Read the parameters' variables from the box's middle, moved inside the parameter box; stored ones where it has none."""
    layers = []
    for number, (layer, bounds) in enumerate(zip(query.network.layers, query.parameters.layers, strict=True), start=1):
        arrays = []
        for prefix, values, limits in (("w", layer.weight, bounds.weight), ("b", layer.bias, bounds.bias)):
            low, high = limits.fractions
            chosen = np.empty(values.shape, dtype=object)
            for place in np.ndindex(values.shape):
                name = "_".join([f"{prefix}{number}", *(str(i + 1) for i in place)])
                stored = float(values[place])
                a, b = box.get(name, (stored, stored))
                chosen[place] = min(max(Fraction(0.5 * (a + b)), low[place]), high[place])
            arrays.append(chosen)
        layers.append((arrays[0], arrays[1]))
    return Counterexample(x, tuple(layers))


def _valued(
    query: EpsilonEstimate | SigmaEstimate, box: Box, *, corners: bool = True
) -> Iterator[tuple[float, Counterexample]]:
    """Yield suggested witnesses that count, with the value that each attains."""
    for example in _examples(query, box, corners=corners):
        try:
            yield witness_bounds(query, example)[0], example
        except UnsoundAnswerError:
            continue
