"""Deciding the obligations of a sign-off plan, each by the machinery that its kind needs.

Property  ROBUST only of what is proved at every input asked about; VIOLATED only with a counterexample that was replayed
          exactly (or, of a copy outside its scheme's box, with the parameter that lies outside); else UNKNOWN, with the reason
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from qrobust.answers import Answer, Assurance, Estimate, Robust, Unknown, Verdict, quantity, statement
from qrobust.bounds import local
from qrobust.bounds.local import Status
from qrobust.cache import Kind, Result, ResultCache, Task
from qrobust.domains import Domain, Points
from qrobust.errors import BackendUnavailableError, EnclosureError, QRobustError, ResourceError, UnsoundAnswerError
from qrobust.held import held, stored_codes
from qrobust.interval import FloatArray, round_fraction_down
from qrobust.parallel import answer_all
from qrobust.quantization import outside
from qrobust.queries import GlobalConfidence, GlobalEpsilon, GlobalLabel, MarginLabel, Query
from qrobust.report import pictures
from qrobust.report.examples import parameters_example
from qrobust.report.findings import MOST_EXAMPLES, Finding, summed
from qrobust.report.plan import Ask, Obligation, Plan
from qrobust.report.programs import compared
from qrobust.search import Budget
from qrobust.solve import Session, query_at

REAL = "real-valued"
OF_STATUS = {Status.FLIPPABLE: Verdict.VIOLATED, Status.UNDECIDED: Verdict.UNKNOWN, Status.SAFE: Verdict.ROBUST}
STATUS_OF = {verdict: status for status, verdict in OF_STATUS.items()}


@dataclass(eq=False)
class Desk:
    """What the obligations of one plan share: processes, finished answers, a session."""

    plan: Plan
    jobs: int = 1
    cache: ResultCache | None = None
    session: Session = field(default_factory=Session)

    def answered(self, tasks: list[Task]) -> list[Result]:
        """Answer tasks, from the cache where it has them."""
        return answer_all(tasks, jobs=self.jobs, cache=self.cache, session=self.session)


def decide(desk: Desk, obligation: Obligation) -> Finding:
    """Decide one obligation. Raises PlanError where it cannot be asked, UnsoundAnswerError for bugs."""
    started = time.monotonic()
    try:
        finding = _found(desk, obligation)
    except (ResourceError, BackendUnavailableError) as error:
        claim = f"{obligation.ask.value} was asked"
        semantics = REAL if obligation.program is None else obligation.kernels.value
        finding = Finding(obligation, Verdict.UNKNOWN, claim, semantics, None, "none", reason=str(error))
    except (UnsoundAnswerError, EnclosureError):
        raise
    except QRobustError as error:
        raise desk.plan.source.fault(obligation.keys, str(error)) from None
    return replace(finding, seconds=time.monotonic() - started)


def _found(desk: Desk, obligation: Obligation) -> Finding:
    """Choose the way to answer."""
    if obligation.ask is Ask.INSIDE:
        return _inside(desk, obligation)
    if obligation.program is not None:
        return compared(desk.plan, obligation, desk.cache)
    greatest = obligation.ask is Ask.GREATEST
    if isinstance(_domain(obligation), Points):
        return _greatest_at_points(desk, obligation) if greatest else _points(desk, obligation)
    return _greatest_over(desk, obligation) if greatest else _over(desk, obligation)


def _domain(obligation: Obligation) -> Domain:
    assert obligation.where is not None
    return obligation.where.domain


def _points_of(obligation: Obligation) -> FloatArray:
    domain = _domain(obligation)
    assert isinstance(domain, Points)
    return domain.values


def _inside(desk: Desk, obligation: Obligation) -> Finding:
    """Decide exactly whether a copy lies in the box of its scheme."""
    assert obligation.parameters is not None
    assert obligation.copy is not None
    strays = outside(obligation.parameters, obligation.copy)
    claim = (
        f"every parameter of {obligation.shipped} lies in the box of {obligation.parameters.rule} around {desk.plan.network}"
    )
    verdict = Verdict.VIOLATED if strays else Verdict.ROBUST
    notes = tuple(str(stray) for stray in strays)
    return Finding(obligation, verdict, claim, "stored parameters", Assurance.CHECKED, "exact", notes=notes)


def _query(desk: Desk, obligation: Obligation) -> Query:
    """Return the question about all inputs of the obligation."""
    network, parameters, domain = desk.plan.network, obligation.parameters, _domain(obligation)
    assert parameters is not None
    match obligation.ask:
        case Ask.LABEL:
            return GlobalLabel(network, parameters, domain, desk.plan.level)
        case Ask.MARGIN:
            return MarginLabel(network, parameters, domain, desk.plan.level, obligation.sigma)
        case Ask.EPS:
            assert obligation.eps is not None
            return GlobalConfidence(network, parameters, domain, obligation.eps)
        case _:
            return GlobalEpsilon(network, parameters, domain)


def _claim(query: Query) -> str:
    """Return the statement that is proved if the query is robust."""
    return statement(query, Robust(Assurance.ROUNDED)).removesuffix(".")


def _over(desk: Desk, obligation: Obligation) -> Finding:
    """Answer a question about all inputs of a domain."""
    query = _query(desk, obligation)
    (answer,) = desk.answered([Task(query, Kind.CHECK, "auto", Budget(obligation.seconds))])
    assert isinstance(answer, Answer)
    reason = statement(query, answer.claim).removesuffix(".") if isinstance(answer.claim, Unknown) else ""
    examples = (_example(desk, obligation, answer, None),) if answer.counterexample else ()
    picture = pictures.of_domain(query, desk.plan.level)
    return Finding(
        obligation,
        answer.verdict,
        _claim(query),
        REAL,
        answer.assurance,
        answer.backend,
        reason=reason,
        examples=examples,
        picture=picture,
    )


def _example(desk: Desk, obligation: Obligation, answer: Answer | Estimate, row: int | None) -> dict[str, Any]:
    """Describe a counterexample and, with a scheme, look for one of values that a device can hold."""
    example = answer.counterexample if isinstance(answer, Answer) else answer.witness
    assert example is not None
    stored = None
    if obligation.scheme is not None:
        stored = held(_violated(desk, obligation, answer), example, obligation.scheme)
    document = parameters_example(desk.plan.network, example, desk.plan.level, row, stored)
    if stored is not None and obligation.scheme is not None:
        document["held"]["codes"] = stored_codes(desk.plan.network, stored, obligation.scheme)
    return document


def _violated(desk: Desk, obligation: Obligation, answer: Answer | Estimate) -> Query:
    """Return the question that a counterexample answers with no: of an estimate, whether eps bounds it."""
    if isinstance(answer, Answer):
        return answer.query
    assert obligation.parameters is not None
    assert obligation.eps is not None
    return GlobalConfidence(desk.plan.network, obligation.parameters, _domain(obligation), obligation.eps)


def _points(desk: Desk, obligation: Obligation) -> Finding:
    """Answer a question at every point, those that quick bounds leave open one by one."""
    query = _query(desk, obligation)
    points = _points_of(obligation)
    budget = Budget(obligation.seconds)
    name, todo = desk.session.unsettled(query, "auto", budget)
    todo = sorted(todo)
    answers = desk.answered([Task(query_at(query, i), Kind.CHECK, "auto", budget) for i in todo])
    statuses = np.full(len(points), Status.SAFE)
    examples: list[dict[str, Any]] = []
    assurances, reasons = [Assurance.ROUNDED] if len(todo) < len(points) else [], []
    for index, answer in zip(todo, answers, strict=True):
        assert isinstance(answer, Answer)
        name = answer.backend
        statuses[index] = STATUS_OF[answer.verdict]
        assurances += [answer.assurance] if answer.assurance is not None else []
        reasons += [f"row {index + 1}: {answer.claim.reason}"] if isinstance(answer.claim, Unknown) else []
        if answer.verdict is Verdict.VIOLATED and len(examples) < MOST_EXAMPLES:
            examples.append(_example(desk, obligation, answer, index + 1))
    verdict, counts, rows = summed(statuses)
    assurance = Assurance.CHECKED if verdict is Verdict.VIOLATED else min(assurances, default=None)
    return Finding(
        obligation,
        verdict,
        _claim(query),
        REAL,
        None if verdict is Verdict.UNKNOWN else assurance,
        name,
        counts=counts,
        reason=reasons[0] if reasons else "",
        rows=rows,
        examples=tuple(examples),
        picture=pictures.of_points(desk.plan.network, points, statuses, desk.plan.level),
    )


def _limit_verdict(lower: float, upper: float, eps: Fraction) -> Verdict:
    """Say whether a number between two ends is at most eps."""
    if Fraction(lower) > eps:
        return Verdict.VIOLATED
    return Verdict.ROBUST if upper <= round_fraction_down(eps) else Verdict.UNKNOWN


def _greatest_claim(query: Query, eps: Fraction) -> str:
    return f"{quantity(query)} is at most {float(eps):g}"


def _apart(eps: Fraction) -> str:
    return f"the ends found lie on both sides of {float(eps):g}"


def _greatest_over(desk: Desk, obligation: Obligation) -> Finding:
    """Estimate the greatest change of a confidence over a domain: both ends."""
    query, eps = _query(desk, obligation), obligation.eps
    assert eps is not None
    (found,) = desk.answered([Task(query, Kind.ESTIMATE, "auto", Budget(obligation.seconds))])
    assert isinstance(found, Estimate)
    verdict = _limit_verdict(found.lower, found.upper, eps)
    violated = verdict is Verdict.VIOLATED
    examples = (_example(desk, obligation, found, None),) if violated else ()
    return Finding(
        obligation,
        verdict,
        _greatest_claim(query, eps),
        REAL,
        Assurance.CHECKED if violated else found.assurance if verdict is Verdict.ROBUST else None,
        found.backend,
        ends=(found.lower, found.upper),
        reason=(found.reason or _apart(eps)) if verdict is Verdict.UNKNOWN else "",
        examples=examples,
        picture=pictures.of_domain(query, desk.plan.level),
    )


def _greatest_at_points(desk: Desk, obligation: Obligation) -> Finding:
    """Bound the change of a confidence at every point; where it exceeds eps, show witnesses that replay."""
    query, eps, network = _query(desk, obligation), obligation.eps, desk.plan.network
    assert eps is not None
    points, budget = _points_of(obligation), Budget(obligation.seconds)
    tasks = [Task(query_at(query, i), Kind.ESTIMATE, "auto", budget) for i in range(len(points))]
    if local.why_not(network, confidences=True) is None:
        bounds = local.greatest_changes(network, query.parameters, points)
        lower, upper, assurance, name = bounds.lower, np.minimum(bounds.upper, 1.0), Assurance.ROUNDED, "closed-form"
    else:
        found = [each for each in desk.answered(tasks) if isinstance(each, Estimate)]
        lower, upper = np.array([each.lower for each in found]), np.array([each.upper for each in found])
        assurance, name = min(each.assurance for each in found), found[-1].backend
    ends = zip(lower.tolist(), upper.tolist(), strict=True)
    statuses = np.array([STATUS_OF[_limit_verdict(low, high, eps)] for low, high in ends])
    beyond = np.flatnonzero(statuses == Status.FLIPPABLE)
    worst = beyond[np.argsort(-lower[beyond], kind="stable")][:MOST_EXAMPLES].tolist()
    examples = []
    for index, each in zip(worst, desk.answered([tasks[i] for i in worst]), strict=True):
        assert isinstance(each, Estimate)
        if each.witness is not None and Fraction(each.lower) > eps:
            examples.append(_example(desk, obligation, each, index + 1))
    if not examples:  # what exceeds eps by bounds alone is not shown to be violated
        statuses = np.where(statuses == Status.FLIPPABLE, Status.UNDECIDED, statuses)
    verdict, counts, rows = summed(statuses)
    return Finding(
        obligation,
        verdict,
        _greatest_claim(query, eps),
        REAL,
        {Verdict.VIOLATED: Assurance.CHECKED, Verdict.ROBUST: assurance}.get(verdict),
        name,
        counts=counts,
        ends=(float(lower.max()), float(upper.max())),
        reason=_apart(eps) if verdict is Verdict.UNKNOWN else "",
        rows=rows,
        examples=tuple(examples),
        picture=pictures.of_changes(network, points, upper, statuses, eps, desk.plan.level),
    )
