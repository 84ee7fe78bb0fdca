"""The closed form: exact answers at a point for networks with at most one hidden layer.

Accepts   local label and margin queries, sigma at a point, and, for one sigmoid or without a hidden layer, local epsilon
Gives     Robust, Violated, and estimates with both ends
Method    `bounds.local`, rounded outward. Where rounding hides the answer the corner that attains the extreme is built in
          rationals and evaluated exactly, which settles ties
Property  sound and complete (up to ties between transcendental numbers, which come back Unknown)
Source    THEORY.md, section 3
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from qrobust.answers import AnyQuery, Assurance, Claim, Counterexample, EstimateClaim, Robust, Unknown, Violated
from qrobust.bounds import local
from qrobust.bounds.corners import corner
from qrobust.check import Replay, Undecided, violation_fault
from qrobust.domains import Point
from qrobust.exact import float_bounds
from qrobust.interval import FloatArray
from qrobust.leads import Leads
from qrobust.network import Activation
from qrobust.queries import ConfidenceQuery, EpsilonEstimate, GreatestDelta, LabelQuery, Query, SigmaEstimate
from qrobust.search import Budget


class ClosedForm:
    """See the module's docstring."""

    name = "closed-form"
    proves = True
    refutes = True

    def available(self) -> bool:
        return True

    def why_not(self, query: AnyQuery) -> str | None:
        if isinstance(query, GreatestDelta):
            return "the greatest delta is found by bisection over label queries"
        if isinstance(query, EpsilonEstimate) and query.of_logits:
            return "the closed form has no rule for the change of a logit: use branch-and-bound"
        if not isinstance(query.domain, Point):
            return "the closed form answers one point at a time, the domain has more"
        confidences = isinstance(query, ConfidenceQuery | EpsilonEstimate)
        return local.why_not(query.network, confidences=confidences)

    def decide(self, query: Query, budget: Budget) -> Claim:
        if isinstance(query, ConfidenceQuery):
            change = local.greatest_changes(query.network, query.parameters, _points(query))
            proved, examples = Fraction(change.upper[0]) <= query.epsilon, _confidence_corners(query)
        else:
            assert isinstance(query, LabelQuery)
            leads = Leads(query.network, query.level)
            statuses, labels = local.label_changes(leads, query.parameters, _points(query))
            proved = bool(statuses[0] == local.Status.SAFE)
            label = int(labels[0]) if labels[0] >= 0 else _exact_label(query)
            if label is None:
                return Unknown("no precision settles the label at this input")
            examples = _label_corners(query, leads, label)
        if proved:
            return Robust(Assurance.ROUNDED)
        open_questions = []
        for example in examples:
            fault = violation_fault(query, example)
            if fault is None:
                return Violated(example)
            open_questions += [fault] if isinstance(fault, Undecided) else []
        # The corners attain the extremes, so their exact evaluation settles what rounding hides.
        if _corners_attain(query) and not open_questions:
            return Robust(Assurance.ROUNDED)
        return Unknown(next(iter(open_questions), "rounding hides the answer"))

    def estimate(self, query: EpsilonEstimate | SigmaEstimate, budget: Budget) -> EstimateClaim:
        if isinstance(query, EpsilonEstimate):
            change = local.greatest_changes(query.network, query.parameters, _points(query))
            examples = list(_confidence_corners(query))
            sizes = [max(abs(float(c)) for c in Replay(query.network, e).change()) for e in examples]
            return EstimateClaim(float(change.upper[0]), examples[int(np.argmax(sizes))], Assurance.ROUNDED)
        label = LabelQuery(query.network, query.parameters, query.domain, query.level)
        claim = self.decide(label, budget)
        own = _exact_label(label)
        if isinstance(claim, Robust) or (own is not None and own != query.label):
            return EstimateClaim(0.0, None, Assurance.ROUNDED)
        upper = 1.0 if own is None else _margin_upper(query)
        witness = claim.counterexample if isinstance(claim, Violated) and own == query.label else None
        return EstimateClaim(upper, witness, Assurance.ROUNDED, reason=claim.reason if isinstance(claim, Unknown) else "")


def _points(query: Query) -> FloatArray:
    return query.domain.box.lower[None]


def _stored(query: Query) -> Counterexample:
    """The input with the stored parameters: for evaluating the stored network exactly."""
    x = tuple(Fraction(value) for value in query.domain.box.lower.tolist())
    exact = np.frompyfunc(Fraction, 1, 1)
    layers = tuple((exact(layer.weight.astype(object)), exact(layer.bias.astype(object))) for layer in query.network.layers)
    return Counterexample(x, layers)


def _exact_label(query: LabelQuery) -> int | None:
    return Replay(query.network, _stored(query)).label(False, query.level)


def _margin_upper(query: SigmaEstimate) -> float:
    replay = Replay(query.network, _stored(query))
    return max(float_bounds(lambda: replay.margin(query.label, query.level))[1], 0.0)


def _confidence_corners(query: Query) -> Iterator[Counterexample]:
    """Yield the corners at which some confidence is greatest or least."""
    x = _stored(query).x
    classes = query.network.layers[-1].outputs
    for index in range(classes):
        directions = -np.ones(classes)
        directions[index] = 1.0
        for sign in (1.0, -1.0):
            yield corner(query.network, query.parameters, x, sign * directions)


def _label_corners(query: LabelQuery, leads: Leads, label: int) -> Iterator[Counterexample]:
    """Yield, for each rival of the label, the corner at which its lead is greatest."""
    x = _stored(query).x
    for pair in leads.of_label(label):
        yield corner(query.network, query.parameters, x, leads.directions[pair])


def _corners_attain(query: Query) -> bool:
    """Whether the corners attain the extremes: with rational hidden values that is certain."""
    hidden = query.network.hidden_layers
    return not hidden or hidden[-1].activation in (Activation.LINEAR, Activation.RELU)
