"""The front door: choose a backend, ask it, check its claim exactly, and return an answer.

Property  Robust is returned only with a proof behind it; Violated only after an exact replay; a claim that the replay
          refutes is an UnsoundAnswerError if the backend computes exactly, else the answer stays Unknown
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from qrobust.answers import (
    VERSION,
    Answer,
    AnyQuery,
    Assurance,
    Candidate,
    Counterexample,
    Estimate,
    EstimateClaim,
    Robust,
    Unknown,
    Verdict,
    Violated,
)
from qrobust.backends.base import Backend
from qrobust.backends.branch_and_bound import BranchAndBound, is_deep
from qrobust.backends.certify import certify_label
from qrobust.backends.closed_form import ClosedForm
from qrobust.backends.deep import screen_labels
from qrobust.backends.dreal import DReal
from qrobust.backends.milp import Milp
from qrobust.backends.z3 import Z3
from qrobust.bounds import local
from qrobust.bounds.corners import rounded_inside
from qrobust.certificates import Certificate
from qrobust.check import Undecided, certificate_fault, delta_fault, membership_fault, violation_fault, witness_bounds
from qrobust.domains import Domain, Point, Points
from qrobust.errors import BackendUnavailableError, DomainError, LawBrokenError, UnsoundAnswerError, UnsupportedError
from qrobust.interval import round_fraction_down
from qrobust.leads import Leads
from qrobust.network import Output
from qrobust.queries import (
    ConfidenceQuery,
    EpsilonEstimate,
    GreatestDelta,
    LabelQuery,
    LocalConfidence,
    LocalEpsilon,
    LocalLabel,
    Query,
    SigmaEstimate,
)
from qrobust.scaled import Rescaled, rescaled
from qrobust.search import Budget

SOLVERS_OF_FORMULAS = ("z3", "dreal")
MOST_FOR_FORMULAS = 5000  # parameters of a network with several hidden layers that these are asked about unless named
MOST_OVER_BOXES = 500  # ... and of one over a box of inputs that solvers of formulas are asked about
FEW_INPUTS = 8
ENOUGH = 1e-6  # an estimate's gap at which no further backend is asked
DELTA_ENOUGH = 1e-6  # the relative gap at which the search for the greatest delta ends


def all_backends() -> tuple[Backend, ...]:
    """Return one of each backend, in the order in which they are asked."""
    return ClosedForm(), Z3(), BranchAndBound(), Milp(), DReal()


class Session:
    """Backends and the results so far: each new estimate is checked against the laws that tie it to the earlier ones."""

    def __init__(self, backends: Sequence[Backend] | None = None) -> None:
        self.backends = tuple(backends) if backends is not None else all_backends()
        self._estimates: list[Estimate] = []

    def check(self, query: Query, *, backend: str = "auto", budget: Budget | None = None) -> Answer:
        """Answer a decision query.

        Raises    UnsupportedError (no backend can express it), BackendUnavailableError, UnsoundAnswerError
        """
        started, budget = time.monotonic(), budget or Budget()
        self._refuse_empty(query.domain)
        if isinstance(query.domain, Points):
            return self._check_points(query, backend, budget)
        unknown: Unknown | None = None
        name = backend
        asked = rescaled(query)
        chosen = self._chosen(asked.core, backend)
        for place, candidate in enumerate(chosen):
            share = _share(budget, started, len(chosen) - place)
            if share is None:
                break
            try:
                claim = self._checked(asked, candidate, share)
            except BackendUnavailableError as error:
                if backend != "auto":
                    raise
                claim = Unknown(str(error))
            if not isinstance(claim, Unknown):
                return Answer(query, claim, candidate.name, time.monotonic() - started, VERSION)
            unknown, name = _better(unknown, claim), candidate.name
        return Answer(query, unknown or _out_of_time(budget), name, time.monotonic() - started, VERSION)

    def certify(self, query: Query, budget: Budget | None = None) -> tuple[Answer, Certificate | None]:
        """Answer a label question at one input with a certificate that the exact checker has followed, if it is ROBUST.

        Accepts   what `certify_label` accepts; else, and where no certificate is found in time, this is `check`
        """
        started, budget = time.monotonic(), budget or Budget()
        if isinstance(query, LabelQuery) and isinstance(query.domain, Point):
            certificate = _certificate(query, replace(budget, seconds=budget.seconds / 2))
            if certificate is not None:
                fault = certificate_fault(certificate)
                if fault:
                    raise UnsoundAnswerError(f"a certificate was refused: {fault}: please report this")
                claim = Robust(Assurance.CHECKED)
                return Answer(query, claim, "branch-and-bound", time.monotonic() - started, VERSION), certificate
        left = max(budget.seconds - (time.monotonic() - started), 0.1)
        return self.check(query, budget=replace(budget, seconds=left)), None

    def estimate(
        self, query: AnyQuery, *, backend: str = "auto", budget: Budget | None = None, remember: bool = True
    ) -> Estimate:
        """Return two ends around a quantity, the lower one witnessed and the upper one certified.

        `remember` keeps the estimate for checking later ones against; a sweep over many points need not.
        Raises    UnsupportedError, BackendUnavailableError, UnsoundAnswerError, LawBrokenError
        """
        budget = budget or Budget()
        self._refuse_empty(query.domain)
        if isinstance(query, GreatestDelta):
            return self._greatest_delta(query, backend, budget)
        if not isinstance(query, EpsilonEstimate | SigmaEstimate):
            raise UnsupportedError(f"{type(query).__name__} asks for a verdict: use check")
        estimate = (
            self._estimate_points(query, backend, budget)
            if isinstance(query.domain, Points)
            else self._estimate(query, backend, budget)
        )
        check_laws(estimate, self._estimates)
        if remember:
            self._estimates.append(estimate)
        return estimate

    def _refuse_empty(self, domain: Domain) -> None:
        """Raise DomainError for a polytope with nothing in it: every statement about its inputs would hold."""
        if any(isinstance(backend, Z3) and backend.is_empty(domain) for backend in self.backends):
            raise DomainError(f"{domain} is empty: no input satisfies its inequalities")

    def _chosen(self, query: AnyQuery, name: str) -> list[Backend]:
        """Return the backends to ask, in order. Raises UnsupportedError or BackendUnavailableError if there are none."""
        if name != "auto":
            named = [b for b in self.backends if b.name == name]
            if not named:
                known = ", ".join(b.name for b in self.backends)
                raise UnsupportedError(f"no backend is called {name!r}: choose auto or one of {known}")
            reason = named[0].why_not(query)
            if reason:
                raise UnsupportedError(f"{name} cannot answer this: {reason}; use --backend auto")
            if not named[0].available():
                raise BackendUnavailableError(f"the {name} backend is not installed: see `qrobust doctor`")
            return named
        able = [b for b in self.backends if b.why_not(query) is None and b.available()]
        if not able:
            reasons = "; ".join(f"{b.name}: {b.why_not(query) or 'not installed'}" for b in self.backends)
            raise UnsupportedError(f"no backend can answer this ({reasons})")
        return _ordered(query, able)

    def _checked(self, asked: Rescaled, backend: Backend, budget: Budget) -> Robust | Violated | Unknown:
        """Ask one backend and replay what it claims to have found."""
        query, claim = asked.query, asked.claim(backend.decide(asked.core, budget))
        if isinstance(claim, Robust | Unknown):
            return claim
        for example in _forms(query, claim.counterexample):
            if violation_fault(query, example) is None:
                return Violated(example)
        fault = violation_fault(query, claim.counterexample)
        if isinstance(claim, Candidate) or isinstance(fault, Undecided):
            return Unknown(f"{backend.name} suspects a violation that does not replay ({fault})")
        raise UnsoundAnswerError(f"{backend.name} claims a violation that does not replay: {fault}")

    def _estimate(self, query: EpsilonEstimate | SigmaEstimate, name: str, budget: Budget) -> Estimate:
        started = time.monotonic()
        best: Estimate | None = None
        asked = rescaled(query)
        chosen = self._chosen(asked.core, name)
        for place, backend in enumerate(chosen):
            share = _share(budget, started, len(chosen) - place)
            if share is None:
                break
            try:
                claim = asked.estimate(backend.estimate(asked.core, share))  # type: ignore[arg-type]
            except BackendUnavailableError:
                if name != "auto" or best is None:
                    raise
                break
            lower, witness = _witnessed(query, claim, backend.name)
            if lower > claim.upper:
                raise UnsoundAnswerError(f"{backend.name} bounds by {claim.upper!r} what a witness raises to {lower!r}")
            here = Estimate(query, lower, claim.upper, witness, claim.assurance, backend.name, 0.0, VERSION, claim.reason)
            best = here if best is None else _tightest(best, here)
            if best.gap <= ENOUGH:
                break
        assert best is not None
        return replace(best, seconds=time.monotonic() - started, reason=best.reason if best.gap > ENOUGH else "")

    def _check_points(self, query: Query, backend: str, budget: Budget) -> Answer:
        """Answer point by point, but only the points that bounds over all of them leave open."""
        started = time.monotonic()
        answers: list[Answer] = []
        name, todo = self.unsettled(query, backend, budget)
        for index in todo:
            left = budget.seconds - (time.monotonic() - started)
            if left <= 0:
                return Answer(query, _out_of_time(budget), name, time.monotonic() - started, VERSION)
            answers.append(self.check(query_at(query, index), backend=backend, budget=replace(budget, seconds=left)))
            if answers[-1].verdict is Verdict.VIOLATED:
                break
        return of_points(query, answers, name, time.monotonic() - started)

    def unsettled(self, query: Query, backend: str, budget: Budget) -> tuple[str, list[int]]:
        """Return the points that quick bounds over all of them leave open, and what these bounds are called."""
        asked = rescaled(query)
        query = asked.core
        assert isinstance(query.domain, Points)
        values = query.domain.values
        if not asked.settles:
            return backend, list(range(len(values)))
        confidences = isinstance(query, ConfidenceQuery)
        closed = backend in ("auto", "closed-form") and local.why_not(query.network, confidences=confidences) is None
        if isinstance(query, ConfidenceQuery) and closed:
            upper = local.greatest_changes(query.network, query.parameters, values, budget.memory).upper
            return "closed-form", [int(i) for i in np.argsort(-upper) if upper[i] > round_fraction_down(query.epsilon)]
        if isinstance(query, LabelQuery) and closed:
            statuses, _ = local.label_changes(Leads(query.network, query.level), query.parameters, values, budget.memory)
            return "closed-form", [int(i) for i in np.flatnonzero(statuses != local.Status.SAFE)]
        if isinstance(query, LabelQuery) and backend in ("auto", "branch-and-bound"):
            safe = screen_labels(Leads(query.network, query.level), query.parameters, values, budget)
            return "branch-and-bound", [int(i) for i in np.flatnonzero(~safe)]
        return backend, list(range(len(values)))

    def _estimate_points(self, query: EpsilonEstimate | SigmaEstimate, backend: str, budget: Budget) -> Estimate:
        """Return the greatest of the points' estimates: the ends are the greatest lower and the greatest upper end."""
        started = time.monotonic()
        assert isinstance(query.domain, Points)
        share = replace(budget, seconds=budget.seconds / len(query.domain.values))
        parts = [self._estimate(query_at(query, i), backend, share) for i in range(len(query.domain.values))]  # type: ignore[arg-type]
        best = max(parts, key=lambda e: e.lower)
        return replace(
            best,
            query=query,
            upper=max(e.upper for e in parts),
            assurance=min(e.assurance for e in parts),
            seconds=time.monotonic() - started,
        )

    def _greatest_delta(self, query: GreatestDelta, backend: str, budget: Budget) -> Estimate:
        """Bisect: label queries are monotone in delta, so a proof holds below its delta and a flip above."""
        started = time.monotonic()
        safe, flip, witness = 0.0, math.inf, None
        largest = max(float(np.abs(layer.weight).max(initial=0.0)) for layer in query.network.layers)
        delta, reason, name, assurance = max(largest, 1e-3) / 64, "", backend, Assurance.CHECKED
        while flip - safe > DELTA_ENOUGH * flip or math.isinf(flip):
            left = budget.seconds - (time.monotonic() - started)
            if left <= 0:
                reason = f"the time limit of {budget.seconds:.3g} s was reached"
                break
            answer = self.check(query.at(delta), backend=backend, budget=replace(budget, seconds=left))
            name = answer.backend
            if answer.verdict is Verdict.ROBUST:
                assert answer.assurance is not None
                safe, assurance = delta, min(assurance, answer.assurance)
            elif answer.verdict is Verdict.VIOLATED:
                flip, witness = delta, answer.counterexample
                fault = delta_fault(query, delta, witness) if witness else "no witness"
                if fault:
                    raise UnsoundAnswerError(f"the flip at delta {delta:g} does not replay: {fault}")
            else:
                assert isinstance(answer.claim, Unknown)
                reason = f"at delta {delta:.9g}: {answer.claim.reason}"
                break
            if math.isinf(flip) and safe > 1e6 * max(largest, 1.0):
                reason = f"no label changes up to delta {safe:g}"
                break
            if safe == 0 and flip < 1e-12 * max(largest, 1.0):
                reason = "labels change at every delta that was tried"
                break
            delta = 4 * safe if math.isinf(flip) else flip / 16 if safe == 0 else 0.5 * (safe + flip)
        return Estimate(query, safe, flip, witness, assurance, name, time.monotonic() - started, VERSION, reason)


def check(query: Query, *, backend: str = "auto", budget: Budget | None = None) -> Answer:
    """Answer a decision query; see `Session.check`."""
    return Session().check(query, backend=backend, budget=budget)


def estimate(query: AnyQuery, *, backend: str = "auto", budget: Budget | None = None) -> Estimate:
    """Estimate a quantity; see `Session.estimate`."""
    return Session().estimate(query, backend=backend, budget=budget)


def _certificate(query: LabelQuery, budget: Budget) -> Certificate | None:
    """Return a proof of a label at one input, of a network that scales its inputs by its core."""
    core = rescaled(query).core
    assert isinstance(core, LabelQuery)
    certificate = None if query.sigma else certify_label(core, budget)
    if certificate is None or core is query:
        return certificate
    return replace(certificate, scaled=LocalLabel(query.network, query.parameters, query.domain, query.level))


def _out_of_time(budget: Budget) -> Unknown:
    return Unknown(f"the time limit of {budget.seconds:.3g} s was reached")


def _share(budget: Budget, started: float, backends_left: int) -> Budget | None:
    """Return what one backend may take of the time that is left, half of it if others follow; None if nothing is left."""
    left = budget.seconds - (time.monotonic() - started)
    return None if left <= 0 else replace(budget, seconds=left if backends_left == 1 else left / 2)


def _ordered(query: AnyQuery, able: list[Backend]) -> list[Backend]:
    """Put branch and bound first where it searches neurons, and leave out solvers of what is too large for them.

    Method    over boxes of many inputs mixed-integer programs are asked alone, for bisection of the inputs takes too long
    """
    network = query.network
    if isinstance(query, GreatestDelta):
        return able
    if is_deep(query):
        formulas = network.parameter_count <= MOST_FOR_FORMULAS
        fit = [b for b in able if formulas or b.name not in (*SOLVERS_OF_FORMULAS, "milp")]
        return sorted(fit, key=lambda b: b.name != "branch-and-bound")
    if isinstance(query.domain, Point | Points) or network.parameter_count <= MOST_OVER_BOXES:
        return able
    fit = [b for b in able if b.name not in SOLVERS_OF_FORMULAS]
    programs = [b for b in fit if b.name == "milp"] if network.inputs > FEW_INPUTS else []
    return programs or fit or able


def _better(first: Unknown | None, second: Unknown) -> Unknown:
    """Return the later reason with the tighter bounds of both."""
    if first is None:
        return second
    lowers = [u.lower for u in (first, second) if u.lower is not None]
    uppers = [u.upper for u in (first, second) if u.upper is not None]
    return Unknown(second.reason, max(lowers, default=None), min(uppers, default=None))


def _witnessed(
    query: EpsilonEstimate | SigmaEstimate, claim: EstimateClaim, backend: str
) -> tuple[float, Counterexample | None]:
    """Replay the witness, its parameters as floats inside the box where that is as good; return the value it attains."""
    if claim.witness is None:
        return 0.0, None
    values: list[tuple[float, Counterexample]] = []
    for example in _forms(query, claim.witness):
        try:
            values.append((witness_bounds(query, example)[0], example))
            break
        except UnsoundAnswerError as error:
            fault = error
    if not values:
        if claim.exact:
            raise UnsoundAnswerError(f"{backend}: {fault}")
        return 0.0, None
    return values[0]


def _forms(query: Query, example: Counterexample) -> list[Counterexample]:
    """Return an example as it is, and before it with its parameters as floats, if it lies inside the box at all."""
    rounded = rounded_inside(query.parameters, example) if membership_fault(query, example) is None else None
    return [example] if rounded is None else [rounded, example]


def _tightest(first: Estimate, second: Estimate) -> Estimate:
    """Join two estimates of one quantity. Raises UnsoundAnswerError if they contradict each other."""
    lower, upper = (
        (first if first.lower >= second.lower else second),
        (first if first.upper <= second.upper else second),
    )
    if lower.lower > upper.upper:
        raise UnsoundAnswerError(f"{upper.backend} bounds by {upper.upper!r} what {lower.backend} raises to {lower.lower!r}")
    names = lower.backend if lower.backend == upper.backend else f"{lower.backend} and {upper.backend}"
    return replace(
        upper, lower=lower.lower, witness=lower.witness, backend=names, reason=second.reason, assurance=upper.assurance
    )


def of_points(query: Query, answers: Sequence[Answer], name: str, seconds: float) -> Answer:
    """Join the answers about a query's points; those not among them are proved, by what is called `name`.

    VIOLATED if one is, else UNKNOWN if one is, else ROBUST with the weakest assurance.
    """
    for verdict in (Verdict.VIOLATED, Verdict.UNKNOWN):
        for answer in answers:
            if answer.verdict is verdict:
                return replace(answer, query=query, seconds=seconds)
    assurances = [a.assurance for a in answers if a.assurance is not None]
    claim = Robust(min(assurances, default=Assurance.ROUNDED))
    return Answer(query, claim, answers[-1].backend if answers else name, seconds, VERSION)


def query_at(query: Query, index: int) -> Query:
    """Return the query about one of its points."""
    assert isinstance(query.domain, Points)
    point = Point(query.domain.values[index])
    if isinstance(query, ConfidenceQuery):
        return LocalConfidence(query.network, query.parameters, point, query.epsilon)
    if isinstance(query, LabelQuery):
        return LocalLabel(query.network, query.parameters, point, query.level, query.sigma)
    if isinstance(query, EpsilonEstimate):
        return LocalEpsilon(query.network, query.parameters, point, query.of)
    return replace(query, domain=point)


def check_laws(new: Estimate, earlier: Sequence[Estimate]) -> None:
    """Raise LawBrokenError if an estimate contradicts an earlier one.

    Laws: estimates do not fall as the parameter box grows; global >= local; global sigma <= global eps (for two classes).
    """
    for old in earlier:
        for small, large in ((old, new), (new, old)):
            law = _law(small, large)
            if law and small.lower > large.upper:
                raise LawBrokenError(
                    f"{law}, but {small.lower!r} ({small.backend}) > {large.upper!r} ({large.backend}): please report this"
                )


def _law(small: Estimate, large: Estimate) -> str | None:
    """Return the law by which one quantity cannot exceed another, or None if none applies."""
    a, b = small.query, large.query
    if not isinstance(a, Query) or not isinstance(b, Query) or a.network != b.network:
        return None
    if not _box_within(a, b) or not _domain_within(a.domain, b.domain):
        return None
    both_epsilon = isinstance(a, EpsilonEstimate) and isinstance(b, EpsilonEstimate) and a.of is b.of
    both_sigma = isinstance(a, SigmaEstimate) and isinstance(b, SigmaEstimate) and (a.label, a.level) == (b.label, b.level)
    if both_epsilon or both_sigma:
        return "estimates do not fall as the parameter box or the domain grows"
    two_classes = a.network.output is Output.SIGMOID or a.network.class_count == 2
    if isinstance(a, SigmaEstimate) and isinstance(b, EpsilonEstimate) and not b.of_logits and two_classes:
        return "sigma is at most eps"
    return None


def _box_within(a: Query, b: Query) -> bool:
    """Whether one parameter box surely lies in the other."""
    if a.parameters.sha256 == b.parameters.sha256:
        return True
    pairs = zip(a.parameters.layers, b.parameters.layers, strict=True)
    return all(
        bool(np.all(y.lower.round_up() <= x.lower.round_down()) and np.all(x.upper.round_up() <= y.upper.round_down()))
        for small, large in pairs
        for x, y in ((small.weight, large.weight), (small.bias, large.bias))
    )


def _domain_within(a: Domain, b: Domain) -> bool:
    """Whether one domain surely lies in the other."""
    if a is b:
        return True
    if isinstance(b, Points):
        return False
    if isinstance(a, Point):
        return b.contains([Fraction(value) for value in a.values.tolist()])
    inside = bool(np.all(b.box.lower <= a.box.lower) and np.all(a.box.upper <= b.box.upper))
    return inside and not b.inequalities[1].size
