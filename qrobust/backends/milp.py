"""Mixed-integer programming on HiGHS, with every bound that counts proved by qrobust.

Accepts   dense networks with linear and ReLU hidden layers, over points, boxes and polytopes: label and margin queries, sigma,
          and, for one sigmoid, epsilon (`sigmoid_change` over a domain) and, at a point, confidence queries
Gives     Robust, Candidate or Unknown; estimates with a certified upper end and a witness
Method    the rows of `twins`. Label questions: for each pair of a label and a rival, the greatest lead of the rival where the
          label was stored. Sigma: the greatest gap of a changed label. HiGHS' own search finds a point, which is rebuilt
          exactly, and `binaries.Tree` proves (`hunt`)
Property  sound, whatever HiGHS answers: it gives points, which are replayed, and multipliers, from which bounds are computed
          rounded outward. Complete but for ties and time
Source    THEORY.md, sections 3 and 4
"""

from __future__ import annotations

import importlib.util
import time
from fractions import Fraction

import numpy as np

from qrobust import interval
from qrobust.answers import AnyQuery, Assurance, Candidate, Claim, Counterexample, EstimateClaim, Robust, Unknown
from qrobust.backends.deep import Situation, stored_label
from qrobust.backends.hunt import Hunt
from qrobust.backends.mixed_integer import Builder, Model
from qrobust.backends.root_cuts import trace_with
from qrobust.backends.sigmoid_change import Search
from qrobust.backends.twins import Numbers, Twins, twins
from qrobust.backends.worker import Worker, WorkerDiedError, WorkerTimeoutError
from qrobust.bounds.objectives import LargestGap, Space
from qrobust.check import Replay, violation_fault, witness_bounds
from qrobust.domains import Point, Points
from qrobust.errors import UnsoundAnswerError
from qrobust.exact import decide as decide_sign
from qrobust.exact import float_bounds, logit_bounds, sigmoid, to_exact
from qrobust.formula.encoding import has_sigmoids, stored_confidence
from qrobust.interval import Interval, down, round_fraction_down, round_fraction_up
from qrobust.leads import Leads
from qrobust.network import Output
from qrobust.queries import (
    ConfidenceQuery,
    EpsilonEstimate,
    GreatestDelta,
    LabelQuery,
    LocalLabel,
    Query,
    SigmaEstimate,
)
from qrobust.search import Budget

TOLERANCE = 1e-6  # of estimated logits and gaps, relatively
LEAST = 1e-8  # ... and absolutely
TIGHTENING = 5  # one part in so many of the time may go to tightening bounds first
TARGET = 1e-5  # by how much a rival must lead for HiGHS' own search to stop
OVERFLOW = "a value may overflow float64"
TIE = "the worst case is a tie that rounding hides"


class Milp:
    """See the module's docstring."""

    name = "milp"
    proves = True
    refutes = True

    def __init__(self) -> None:
        self._worker = Worker()

    def available(self) -> bool:
        return importlib.util.find_spec("highspy") is not None

    def why_not(self, query: AnyQuery) -> str | None:
        if isinstance(query, GreatestDelta):
            return "the greatest delta is found by bisection over label queries"
        if isinstance(query, EpsilonEstimate) and query.of_logits:
            return "the rows have no objective for the change of a logit: use branch-and-bound"
        if isinstance(query.domain, Points):
            return "a set of points is answered point by point"
        if not query.network.is_dense:
            return "the rows have no rule for convolutions and pools"
        if has_sigmoids(query.network):
            return "a hidden sigmoid or tanh is not piecewise linear"
        if isinstance(query, ConfidenceQuery | EpsilonEstimate):
            if query.network.output is Output.SOFTMAX:
                return "the confidences of several classes are not piecewise linear"
            if isinstance(query, ConfidenceQuery) and not isinstance(query.domain, Point):
                return "a global question about confidences compares two sigmoids, which is not piecewise linear"
        return None

    def decide(self, query: Query, budget: Budget) -> Claim:
        try:
            claim: Claim = self._worker.call(decide, query, budget.seconds, seconds=budget.seconds)
        except (WorkerTimeoutError, WorkerDiedError) as error:
            return Unknown(_why(error, budget))
        return claim

    def estimate(self, query: EpsilonEstimate | SigmaEstimate, budget: Budget) -> EstimateClaim:
        try:
            claim: EstimateClaim = self._worker.call(estimate, query, budget.seconds, seconds=budget.seconds)
        except (WorkerTimeoutError, WorkerDiedError) as error:
            return EstimateClaim(1.0, None, Assurance.ROUNDED, reason=_why(error, budget))
        return claim


def _why(error: Exception, budget: Budget) -> str:
    if isinstance(error, WorkerTimeoutError):
        return f"milp overran the time limit of {budget.seconds:.3g} s and was stopped"
    return f"milp: {error}"


def decide(query: Query, seconds: float) -> Claim:
    """Claim an answer to a decision query, in this process."""
    deadline = time.monotonic() + seconds
    if isinstance(query, ConfidenceQuery):
        return _decide_confidence(query, deadline)
    assert isinstance(query, LabelQuery)
    leads = Leads(query.network, query.level)
    if not isinstance(query.domain, Point):
        return _decide_labels(query, leads, list(range(len(leads.pairs))), deadline)
    label = stored_label(leads, query.domain.values)
    if label is None:
        return Unknown("no precision settles the stored label")
    if _lacks_margin(query, query.domain, label):
        return Robust(Assurance.ROUNDED)
    return _decide_labels(query, leads, leads.of_label(label).tolist(), deadline)


def _twins(query: Query, deadline: float) -> Twins | None:
    """Return the rows, bounds tightened where several hidden layers make intervals loose; None if a bound overflows."""
    found = twins(query)
    if not all(np.isfinite(ends).all() for z in found.trace for i in (z.stored, z.perturbed) for ends in (i.lower, i.upper)):
        return None
    if len(query.network.hidden_layers) < 2:
        return found
    if isinstance(query.domain, Point):  # where linear bounds cost little
        return twins(query, trace_with(query, Situation.at(query.network, query.parameters, query.domain.values).bounds))
    share = time.monotonic() + (deadline - time.monotonic()) / TIGHTENING
    return found.tightened(found.builder.copy().model(found.perturbed, 0.0), share) or found


def _lacks_margin(query: LabelQuery, point: Point, label: int) -> bool:
    replay = Replay(query.network, Counterexample(tuple(Fraction(value) for value in point.values.tolist()), ()))
    sigma = to_exact([query.sigma])[0]
    return bool(query.sigma) and decide_sign(lambda: replay.margin(label, query.level) - sigma) == -1


def _decide_labels(query: LabelQuery, leads: Leads, pairs: list[int], deadline: float) -> Claim:
    pair_of_networks, unknown = _twins(query, deadline), None
    if pair_of_networks is None:
        return Unknown(OVERFLOW)

    def accepts(example: Counterexample, value: float) -> float | None:
        return value if violation_fault(query, example) is None else None

    for place, pair in enumerate(pairs):
        needed = leads.gap_of_margin(query.sigma, int(leads.pairs[pair, 0]))
        if needed is None:
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            return Unknown("the time limit was reached")
        limit, strict = -leads.offset_bounds(pair)[1], bool(leads.strict[pair])
        builder = pair_of_networks.builder.copy()
        _require_label(builder, pair_of_networks, leads, pair, needed[0])
        directions = leads.directions[pair]
        model = builder.model(pair_of_networks.perturbed, directions, _idle(pair_of_networks, leads, pair))
        share = time.monotonic() + left / (len(pairs) - place)
        hunt = Hunt((pair_of_networks, model, directions), accepts, share)
        goal = round_fraction_down(limit)
        goal = goal if strict else float(down(np.array(goal)))
        proof = hunt.prove(lambda h=hunt, g=goal: g if h.witness is None else np.inf, float(limit) + TARGET)  # type: ignore[misc]
        if hunt.witness is not None:
            return Candidate(hunt.witness)
        if proof.upper > goal:
            unknown = Unknown(proof.reason or TIE)
    return unknown or Robust(Assurance.ROUNDED)


def _require_label(builder: Builder, pair_of_networks: Twins, leads: Leads, pair: int, gap: Fraction) -> None:
    """Require that the stored label is the pair's, with a least gap; at a point this is known."""
    if not len(pair_of_networks.stored):
        return
    own = leads.of_label(int(leads.pairs[pair, 0]))
    limits = [round_fraction_up(-leads.offset_bounds(other)[0] - gap) for other in own.tolist()]
    builder.require([(pair_of_networks.stored, leads.directions[own])], -np.inf, limits, nudged=True)


def _decide_confidence(query: ConfidenceQuery, deadline: float) -> Claim:
    low, high = stored_confidence(query)
    pair_of_networks, unknown = _twins(query, deadline), None
    if pair_of_networks is None:
        return Unknown(OVERFLOW)

    def accepts(example: Counterexample, value: float) -> float | None:
        return value if violation_fault(query, example) is None else None

    for sign, edge in ((1.0, low + query.epsilon), (-1.0, high - query.epsilon)):
        if edge >= 1 if sign > 0 else edge <= 0:
            continue  # no confidence lies beyond
        goal = -np.inf
        if 0 < edge < 1:
            ends = logit_bounds(edge)
            goal = round_fraction_down(ends[0] if sign > 0 else -ends[1])
        directions = np.array([sign])
        model = pair_of_networks.builder.copy().model(pair_of_networks.perturbed, directions)
        share = (deadline + time.monotonic()) / 2 if sign > 0 else deadline
        hunt = Hunt((pair_of_networks, model, directions), accepts, share)
        proof = hunt.prove(lambda h=hunt, g=goal: g if h.witness is None else np.inf)  # type: ignore[misc]
        if hunt.witness is not None:
            return Candidate(hunt.witness)
        if proof.upper > goal:
            unknown = Unknown(proof.reason or TIE)
    return unknown or Robust(Assurance.ROUNDED)


def estimate(query: EpsilonEstimate | SigmaEstimate, seconds: float) -> EstimateClaim:
    """Claim two ends of an estimate, in this process."""
    deadline = time.monotonic() + seconds
    if isinstance(query, EpsilonEstimate):
        return (_estimate_change if isinstance(query.domain, Point) else _estimate_global_change)(query, deadline)
    if isinstance(query.domain, Point):
        return _margin_at(query, query.domain, seconds)
    return _estimate_gap(query, deadline)


def _enough(best: float) -> float:
    """The bound at which a maximum counts as found."""
    return best + max(TOLERANCE * abs(best), LEAST) if best > -np.inf else best


def _estimate_change(query: EpsilonEstimate, deadline: float) -> EstimateClaim:
    pair_of_networks, (low, high) = _twins(query, deadline), stored_confidence(query)
    if pair_of_networks is None:
        return EstimateClaim(1.0, None, Assurance.ROUNDED, reason=OVERFLOW)
    upper, reason, ends = 0.0, "", []
    for sign, before in ((1.0, low), (-1.0, high)):
        directions = np.array([sign])
        model = pair_of_networks.builder.copy().model(pair_of_networks.perturbed, directions)
        share = (deadline + time.monotonic()) / 2 if sign > 0 else deadline
        hunt = Hunt((pair_of_networks, model, directions), lambda _, value: value, share)
        proof = hunt.prove(lambda h=hunt: _enough(h.best))  # type: ignore[misc]
        upper = max(upper, _change(Fraction(sign * proof.upper), before))
        reason = proof.reason or reason
        if hunt.witness is not None:
            ends.append((witness_bounds(query, hunt.witness)[0], hunt.witness))
    witness = max(ends, key=lambda end: end[0])[1] if ends else None
    return EstimateClaim(min(upper, 1.0), witness, Assurance.ROUNDED, reason=reason)


def _estimate_global_change(query: EpsilonEstimate, deadline: float) -> EstimateClaim:
    pair_of_networks = _twins(query, deadline)
    if pair_of_networks is None:
        return EstimateClaim(1.0, None, Assurance.ROUNDED, reason=OVERFLOW)
    return Search(query, pair_of_networks, deadline).close()


def _change(logit: Fraction, before: Fraction) -> float:
    """Return at least the distance of a logit's confidence from another, which lies on its inner side."""
    value, known = to_exact([logit])[0], to_exact([before])[0]
    return float_bounds(lambda: abs(sigmoid(value) - known))[1]


def _margin_at(query: SigmaEstimate, point: Point, seconds: float) -> EstimateClaim:
    """At a point the margin is known; the question is whether its label can change."""
    leads = Leads(query.network, query.level)
    label = stored_label(leads, point.values)
    if label is not None and label != query.label:
        return EstimateClaim(0.0, None, Assurance.ROUNDED)
    claim = decide(LocalLabel(query.network, query.parameters, point, query.level), seconds)
    if isinstance(claim, Robust):
        return EstimateClaim(0.0, None, Assurance.ROUNDED)
    replay = Replay(query.network, Counterexample(tuple(Fraction(value) for value in point.values.tolist()), ()))
    upper = max(float_bounds(lambda: replay.margin(query.label, query.level))[1], 0.0)
    witness = claim.counterexample if isinstance(claim, Candidate) else None
    return EstimateClaim(min(upper, 1.0), witness, Assurance.ROUNDED, reason="" if witness else getattr(claim, "reason", ""))


def _estimate_gap(query: SigmaEstimate, deadline: float) -> EstimateClaim:
    leads, pair_of_networks = Leads(query.network, query.level), _twins(query, deadline)
    if pair_of_networks is None:
        return EstimateClaim(1.0, None, Assurance.ROUNDED, reason=OVERFLOW)

    def accepts(example: Counterexample, value: float) -> float | None:
        try:
            margin = Fraction(witness_bounds(query, example)[0])
        except UnsoundAnswerError:
            return None
        gap = leads.gap_of_margin(margin, query.label)
        return value if gap is None else min(value, float(gap[0]))

    hunts, free = [], max(len(query.network.hidden_layers) - 1, 0)
    space = Space(query.network, query.parameters, query.domain, free_layers=free)
    for pair in leads.of_label(query.label).tolist():
        model = _gap_model(pair_of_networks, leads, pair)
        problem = pair_of_networks, model, leads.directions[pair]
        hunts.append(Hunt(problem, accepts, deadline, LargestGap(space, leads, pair)))
    hunts.sort(key=lambda hunt: -hunt.tree.upper)
    upper, reason = -np.inf, ""
    for place, hunt in enumerate(hunts):
        hunt.limit(time.monotonic() + (deadline - time.monotonic()) / (len(hunts) - place))
        proof = hunt.prove(lambda: _enough(max(h.best for h in hunts)))
        upper, reason = max(upper, proof.upper), proof.reason or reason
    best = max(hunts, key=lambda hunt: hunt.best)
    sigma = 0.0 if upper < 0 else leads.margin_of_gap(upper, query.label)[1]
    return EstimateClaim(min(sigma, 1.0), best.witness, Assurance.ROUNDED, reason=reason)


def _gap_model(pair_of_networks: Twins, leads: Leads, pair: int) -> Model:
    """Maximise the least gap of the pair's label where its rival overtakes it."""
    builder, own, bounds = pair_of_networks.builder.copy(), leads.of_label(int(leads.pairs[pair, 0])), pair_of_networks.logits
    directions = leads.directions[own]
    lead = interval.affine(Interval.point(directions), bounds.stored, leads.offset[own])
    moved = interval.affine(Interval.point(leads.directions[[pair]]), bounds.difference, Interval.point(np.zeros(1)))
    most = max(float((-lead).upper.min()), 0.0)
    gap = builder.add(Interval(np.zeros(1), np.array([max(min(most, float(moved.upper[0, 0])), 0.0)])))
    least = [round_fraction_up(-leads.offset_bounds(other)[0]) for other in own.tolist()]
    builder.require([(pair_of_networks.stored, directions), (gap, np.ones(len(own)))], -np.inf, least)
    overtaken = round_fraction_down(-leads.offset_bounds(pair)[1])
    builder.require([(pair_of_networks.perturbed, leads.directions[[pair]])], overtaken, np.inf, nudged=True)
    return builder.model(gap, 1.0, _idle(pair_of_networks, leads, pair))


def _idle(pair_of_networks: Twins, leads: Leads, pair: int) -> Numbers:
    """Return the binaries that are not needed where a label is to have a gap, or none, and one rival to overtake it."""
    last, box = leads.network.layers[-1], pair_of_networks.query.parameters.layers[-1]
    stored = leads.rows(Interval.point(last.weight), Interval.point(last.bias))[0]
    reached = leads.rows(box.weight.interval, box.bias.interval)[0]
    return pair_of_networks.idle(stored[leads.of_label(int(leads.pairs[pair, 0]))], reached[pair])
