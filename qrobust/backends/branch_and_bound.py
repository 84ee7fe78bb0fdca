"""Branch and bound over the inputs and the neurons' positions, with differential interval bounds.

Accepts   every query on dense networks over points, boxes and polytopes
Gives     Robust, Candidate or Unknown with bounds; estimates with a certified upper end and a witness
Method    `search.maximise` over (x, t) with `bounds.differential`. Label questions: for each pair of a label and a rival,
          the greatest gap of a changed label. Confidence questions: the greatest change of any confidence
Property  sound; complete up to the tolerance as long as the budget lasts (a label question whose worst case is exactly a tie
          never ends, and comes back Unknown)
Source    THEORY.md, sections 3 and 4
"""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction

import numpy as np

from qrobust.answers import AnyQuery, Assurance, Candidate, Claim, Counterexample, EstimateClaim, Robust, Unknown
from qrobust.backends import deep, logit_change
from qrobust.bounds.objectives import LargestChange, LargestGap, Space
from qrobust.check import violation_fault
from qrobust.domains import Point, Points
from qrobust.leads import Leads
from qrobust.network import Output
from qrobust.queries import (
    ConfidenceQuery,
    EpsilonEstimate,
    GreatestDelta,
    LabelQuery,
    Query,
    SigmaEstimate,
)
from qrobust.search import Budget, Outcome, maximise

SMALL = 24  # hidden neurons up to which the search over positions is tried at a point, too
MOST_RATIONALS = 2000  # parameters up to which the corners of one hidden layer are built in rationals
TOLERANCE = 2.5e-7  # of estimated confidences and margins


class BranchAndBound:
    """See the module's docstring."""

    name = "branch-and-bound"
    proves = True
    refutes = True

    def __init__(self, tolerance: float = TOLERANCE) -> None:
        self.tolerance = tolerance

    def available(self) -> bool:
        return True

    def why_not(self, query: AnyQuery) -> str | None:
        if isinstance(query, GreatestDelta):
            return "the greatest delta is found by bisection over label queries"
        if isinstance(query.domain, Points):
            return "a set of points is answered point by point"
        if isinstance(query, EpsilonEstimate) and query.of_logits:
            return logit_change.why_not(query)
        if not query.network.is_dense and not isinstance(query.domain, Point):
            return "the bounds on differences of neurons cover dense layers, not convolutions and pools"
        return None

    def decide(self, query: Query, budget: Budget) -> Claim:
        started = time.monotonic()
        claim: Claim | None = None
        if is_deep(query):
            claim = self._decide_deep(
                query, replace(budget, seconds=budget.seconds / 2 if _is_small(query) else budget.seconds)
            )
            left = budget.seconds - (time.monotonic() - started)
            if not isinstance(claim, Unknown) or not _is_small(query) or left <= 0:
                return claim
            budget = replace(budget, seconds=left)
        if isinstance(query, ConfidenceQuery):
            return self._decide_confidence(query, budget)
        assert isinstance(query, LabelQuery)
        return self._decide_label(query, budget)

    def _decide_deep(self, query: Query, budget: Budget) -> Claim:
        if isinstance(query, LabelQuery):
            return deep.decide_label(query, budget)
        assert isinstance(query, ConfidenceQuery)
        claim = deep.estimate_change(query, budget, self.tolerance)
        if _at_most(claim.upper, query.epsilon):
            return Robust(Assurance.ROUNDED)
        if claim.witness is not None and violation_fault(query, claim.witness) is None:
            return Candidate(claim.witness)
        return Unknown(claim.reason or "rounding hides the answer", None, claim.upper)

    def estimate(self, query: EpsilonEstimate | SigmaEstimate, budget: Budget) -> EstimateClaim:
        if isinstance(query, EpsilonEstimate) and query.of_logits:
            return logit_change.estimate(query, budget)
        if is_deep(query) and not _is_small(query):
            if isinstance(query, EpsilonEstimate):
                return deep.estimate_change(query, budget, self.tolerance)
            return deep.estimate_margin(query, budget)
        if isinstance(query, EpsilonEstimate):
            problem = LargestChange(_confidence_space(query))
            outcome = maximise(problem, budget, tolerance=self.tolerance)
            witness = problem.witness(outcome.point) if outcome.point is not None else None
            return EstimateClaim(_clip(outcome.upper), witness, Assurance.ROUNDED, reason=outcome.reason)
        return self._estimate_sigma(query, budget)

    def _decide_confidence(self, query: ConfidenceQuery, budget: Budget) -> Claim:
        problem = LargestChange(_confidence_space(query))
        epsilon = query.epsilon
        outcome = maximise(
            problem,
            budget,
            tolerance=0.0,
            stop=lambda o: _at_most(o.upper, epsilon) or (not _at_most(o.best, epsilon) and _replays(query, problem, o)),
        )
        if _at_most(outcome.upper, epsilon):
            return Robust(Assurance.ROUNDED)
        if outcome.point is not None and _replays(query, problem, outcome):
            return Candidate(problem.witness(outcome.point))
        return Unknown(outcome.reason or "rounding hides the answer", max(outcome.best, 0.0), outcome.upper)

    def _decide_label(self, query: LabelQuery, budget: Budget) -> Claim:
        leads, space = Leads(query.network, query.level), _label_space(query)
        unknown: Unknown | None = None
        deadline = time.monotonic() + budget.seconds
        for pair, label in enumerate(leads.pairs[:, 0].tolist()):
            needed = leads.gap_of_margin(query.sigma, label)
            if needed is None:
                continue
            left = (deadline - time.monotonic()) / (len(leads.pairs) - pair)
            if left <= 0:
                return Unknown(f"the time limit of {budget.seconds:.3g} s was reached")
            problem = LargestGap(space, leads, pair)
            outcome = maximise(
                problem,
                replace(budget, seconds=left),
                tolerance=0.0,
                stop=lambda o, p=problem, n=needed: _below(o.upper, n[0]) or _replays(query, p, o),  # type: ignore[misc]
            )
            if _below(outcome.upper, needed[0]):
                continue
            if outcome.point is not None and _replays(query, problem, outcome):
                return Candidate(problem.witness(outcome.point))
            unknown = Unknown(outcome.reason or "the worst case is a tie that rounding hides")
        return unknown or Robust(Assurance.ROUNDED)

    def _estimate_sigma(self, query: SigmaEstimate, budget: Budget) -> EstimateClaim:
        leads, space = Leads(query.network, query.level), _label_space(query)
        upper, reason = 0.0, ""
        best: tuple[float, Counterexample | None] = (-np.inf, None)
        pairs = leads.of_label(query.label)
        share = replace(budget, seconds=budget.seconds / len(pairs))
        for pair in pairs.tolist():
            problem = LargestGap(space, leads, pair)
            outcome = maximise(problem, share, tolerance=self.tolerance)
            if outcome.upper == -np.inf:
                continue
            upper = max(upper, leads.margin_of_gap(outcome.upper, query.label)[1])
            reason = outcome.reason or reason
            if outcome.point is not None and outcome.best > best[0]:
                best = (outcome.best, problem.witness(outcome.point))
        return EstimateClaim(_clip(upper), best[1], Assurance.ROUNDED, reason=reason)


def is_deep(query: Query) -> bool:
    """Whether it is a local question about several hidden layers, convolutions, or more parameters than rationals suit."""
    network = query.network
    several = len(network.hidden_layers) > 1 or not network.is_dense or network.parameter_count > MOST_RATIONALS
    return several and isinstance(query.domain, Point)


def _is_small(query: Query) -> bool:
    """Whether a search over the positions of all neurons may end as well."""
    return query.network.is_dense and sum(layer.outputs for layer in query.network.hidden_layers) <= SMALL


def _at_most(value: float, limit: Fraction) -> bool:
    """Compare exactly; a search's ends may be infinite."""
    return value == -np.inf or (value != np.inf and Fraction(value) <= limit)


def _below(upper: float, needed: Fraction) -> bool:
    """Whether no gap as large as needed is left."""
    return upper == -np.inf or (upper != np.inf and Fraction(upper) < needed)


def _clip(upper: float) -> float:
    return min(max(upper, 0.0), 1.0)


def _replays(query: Query, problem: LargestChange | LargestGap, outcome: Outcome) -> bool:
    """Whether the best point so far is a violation in exact arithmetic."""
    return outcome.point is not None and violation_fault(query, problem.witness(outcome.point)) is None


def _confidence_space(query: Query) -> Space:
    """All rows at once need every hidden layer free; one sigmoid needs all but the last."""
    hidden = len(query.network.hidden_layers)
    free = hidden if query.network.output is Output.SOFTMAX else max(hidden - 1, 0)
    return Space(query.network, query.parameters, query.domain, free_layers=free)


def _label_space(query: Query) -> Space:
    """A pair of classes is one row: all hidden layers but the last are free."""
    free = max(len(query.network.hidden_layers) - 1, 0)
    return Space(query.network, query.parameters, query.domain, free_layers=free)
