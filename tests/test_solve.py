"""The front door: backends that lie, the laws, the choice of a backend, budgets, sets of points, the greatest delta, texts."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrobust.answers import (
    VERSION,
    Answer,
    AnyQuery,
    Assurance,
    Candidate,
    Claim,
    Counterexample,
    Estimate,
    EstimateClaim,
    Robust,
    Unknown,
    Verdict,
    Violated,
)
from qrobust.backends.branch_and_bound import BranchAndBound
from qrobust.backends.closed_form import ClosedForm
from qrobust.check import delta_fault, violation_fault, witness_bounds
from qrobust.domains import Domain, InputBox, ParameterBox, Point, Points, Polytope
from qrobust.errors import BackendUnavailableError, LawBrokenError, UnsoundAnswerError, UnsupportedError
from qrobust.network import Dense, Network, Output
from qrobust.perturbations import Absolute
from qrobust.queries import (
    EpsilonEstimate,
    GlobalConfidence,
    GlobalEpsilon,
    GlobalLabel,
    GreatestDelta,
    LocalConfidence,
    LocalEpsilon,
    LocalLabel,
    Query,
    SigmaEstimate,
)
from qrobust.search import Budget
from qrobust.solve import DELTA_ENOUGH, ENOUGH, Session, all_backends, check_laws
from tests.cases import LINE, RAMP, SUM, UNIT, at, ball, cut, network, over, weights_only

FLIP = LocalLabel(LINE, ball(LINE, 0.375), at(1))  # z = 1/2 can fall to -1/4
SAFE = LocalLabel(LINE, ball(LINE, 0.125), at(1))
EPS = LocalEpsilon(LINE, ball(LINE, 0.25), at(1))  # s(1/2) - 1/2 = 0.122459...
TRUE_EPS = 1 / (1 + math.exp(-0.5)) - 0.5


def example(x: float, weight: float, bias: float) -> Counterexample:
    """An input and parameters of LINE."""
    weights, biases = np.empty((1, 1), dtype=object), np.empty(1, dtype=object)
    weights[0, 0], biases[0] = Fraction(weight), Fraction(bias)
    return Counterexample((Fraction(x),), ((weights, biases),))


STORED = example(1, 1, -0.5)
LOWEST = example(1, 0.75, -0.75)  # z = 0: attains EPS exactly
FLIPPED = example(1, 0.625, -0.875)  # z = -1/4
OUTSIDE = example(1, 8.0, -8.0)  # a flip, but the box holds no such parameters, and the nearest that it holds are none
BEYOND = example(1, 0.0, -8.0)  # a flip outside the box; the nearest parameters inside are one too


@dataclass
class Fake:
    """A backend that claims what it is told to, and writes down what it was asked."""

    claim: Claim | EstimateClaim | None = None
    name: str = "fake"
    installed: bool = True
    refusal: str | None = None
    seconds: float = 0.0
    proves: bool = True
    refutes: bool = True
    asked: list[AnyQuery] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=list)

    def available(self) -> bool:
        return self.installed

    def why_not(self, query: AnyQuery) -> str | None:
        return self.refusal

    def decide(self, query: Query, budget: Budget) -> Claim:
        self._note(query, budget)
        assert isinstance(self.claim, Robust | Violated | Candidate | Unknown)
        return self.claim

    def estimate(self, query: EpsilonEstimate | SigmaEstimate, budget: Budget) -> EstimateClaim:
        self._note(query, budget)
        assert isinstance(self.claim, EstimateClaim)
        return self.claim

    def _note(self, query: Query, budget: Budget) -> None:
        self.asked.append(query)
        self.budgets.append(budget)
        time.sleep(self.seconds)


def claiming(upper: float, witness: Counterexample | None = None, **others: Any) -> Fake:
    return Fake(EstimateClaim(upper, witness, others.pop("assurance", Assurance.TRUSTED), **others))


# Backends that lie.


@pytest.mark.parametrize("lie", [STORED, example(1, 0.75, -0.5), OUTSIDE, example(2, 0.625, -0.875)])
def test_a_violation_that_does_not_replay_is_an_error(lie: Counterexample) -> None:
    with pytest.raises(UnsoundAnswerError, match="fake claims a violation that does not replay"):
        Session([Fake(Violated(lie))]).check(FLIP)


@pytest.mark.parametrize("lie", [STORED, example(1, 0.75, -0.5), OUTSIDE, example(2, 0.625, -0.875)])
def test_a_suspicion_that_does_not_replay_is_unknown(lie: Counterexample) -> None:
    answer = Session([Fake(Candidate(lie))]).check(FLIP)
    assert answer.verdict is Verdict.UNKNOWN
    assert answer.counterexample is None
    assert "fake suspects a violation that does not replay" in str(answer)


@pytest.mark.parametrize("kind", [Violated, Candidate])
def test_what_replays_is_a_violation(kind: Callable[[Counterexample], Claim]) -> None:
    answer = Session([Fake(kind(FLIPPED))]).check(FLIP)
    assert answer.verdict is Verdict.VIOLATED
    assert answer.assurance is Assurance.CHECKED
    assert answer.counterexample is not None
    assert violation_fault(FLIP, answer.counterexample) is None


def test_a_claimed_proof_keeps_its_assurance() -> None:
    """Nothing can refute a proof that is only claimed; so it is marked as trusted, and no more."""
    answer = Session([Fake(Robust(Assurance.TRUSTED))]).check(FLIP)
    assert (answer.verdict, answer.assurance) == (Verdict.ROBUST, Assurance.TRUSTED)
    assert "trusted" in str(answer)


def test_an_upper_end_below_the_own_witness_is_an_error() -> None:
    with pytest.raises(UnsoundAnswerError, match="fake bounds by"):
        Session([claiming(0.12, LOWEST)]).estimate(EPS)


def test_an_upper_end_below_another_backends_witness_is_an_error() -> None:
    honest, liar = renamed(claiming(0.5, LOWEST), "honest"), renamed(claiming(0.12), "liar")
    for backends in ([honest, liar], [liar, honest]):
        with pytest.raises(UnsoundAnswerError, match=r"liar bounds by 0\.12 what honest raises to 0\.1224"):
            Session(backends).estimate(EPS)


@pytest.mark.parametrize("claim", [Violated(BEYOND), EstimateClaim(0.5, BEYOND, Assurance.TRUSTED, exact=True)])
def test_parameters_outside_the_box_are_an_error_not_moved_inside(claim: Claim | EstimateClaim) -> None:
    session = Session([Fake(claim)])
    with pytest.raises(UnsoundAnswerError, match="its parameters lie outside the box"):
        _ = session.estimate(EPS) if isinstance(claim, EstimateClaim) else session.check(FLIP)


@pytest.mark.parametrize("bad", [example(0.5, 1, -0.5), example(2, 1, -0.5)])
def test_an_exact_backends_bad_witness_is_an_error(bad: Counterexample) -> None:
    with pytest.raises(UnsoundAnswerError, match="fake: the witness does not count"):
        Session([claiming(0.5, bad, exact=True)]).estimate(EPS)


@pytest.mark.parametrize("bad", [example(0.5, 1, -0.5), example(2, 1, -0.5)])
def test_a_guessing_backends_bad_witness_counts_for_nothing(bad: Counterexample) -> None:
    estimate = Session([claiming(0.5, bad)]).estimate(EPS)
    assert (estimate.lower, estimate.upper, estimate.witness) == (0.0, 0.5, None)


def test_a_sigma_witness_must_change_its_label() -> None:
    query = SigmaEstimate(LINE, ball(LINE, 0.375), UNIT, 1)
    with pytest.raises(UnsoundAnswerError, match="its labels are 1 and 1"):
        Session([claiming(0.5, STORED, exact=True)]).estimate(query)
    with pytest.raises(UnsoundAnswerError, match="its labels are 1 and 0"):
        Session([claiming(0.5, FLIPPED, exact=True)]).estimate(replace(query, label=0))


def test_the_lower_end_is_what_the_witness_attains() -> None:
    estimate = Session([claiming(0.5, LOWEST)]).estimate(EPS)
    assert estimate.lower == pytest.approx(TRUE_EPS, abs=1e-15)
    assert estimate.lower <= TRUE_EPS + 1e-16
    assert estimate.witness is not None
    assert witness_bounds(EPS, estimate.witness)[0] == estimate.lower
    assert estimate.upper == 0.5


def test_upper_and_lower_ends_of_two_backends_are_joined() -> None:
    low = renamed(claiming(0.5, LOWEST, assurance=Assurance.CHECKED), "low")
    high = renamed(claiming(0.2, STORED, reason="tired"), "high")
    estimate = Session([low, high]).estimate(EPS)
    assert estimate.backend == "low and high"
    assert (estimate.upper, estimate.assurance) == (0.2, Assurance.TRUSTED)
    assert estimate.lower == pytest.approx(TRUE_EPS, abs=1e-15)
    assert estimate.reason == "tired"


def renamed(fake: Fake, name: str) -> Fake:
    fake.name = name
    return fake


# The laws.


def estimate_of(query: Query, lower: float, upper: float) -> Estimate:
    return Estimate(query, lower, upper, None, Assurance.ROUNDED, "fake", 0.0, VERSION)


SMALL, LARGE = ball(LINE, 0.125), ball(LINE, 0.25)
NARROW, WIDE = over((0.25, 0.75)), UNIT
PAIRS = [
    (LocalEpsilon(LINE, SMALL, at(1)), LocalEpsilon(LINE, LARGE, at(1))),
    (GlobalEpsilon(LINE, SMALL, WIDE), GlobalEpsilon(LINE, LARGE, WIDE)),
    (GlobalEpsilon(LINE, SMALL, NARROW), GlobalEpsilon(LINE, SMALL, WIDE)),
    (GlobalEpsilon(LINE, SMALL, NARROW), GlobalEpsilon(LINE, LARGE, WIDE)),
    (LocalEpsilon(LINE, SMALL, at(0.5)), GlobalEpsilon(LINE, SMALL, WIDE)),
    (GlobalEpsilon(LINE, SMALL, Points([[0], [1]])), GlobalEpsilon(LINE, SMALL, WIDE)),
    (GlobalEpsilon(LINE, SMALL, cut(WIDE, [1], 0.5)), GlobalEpsilon(LINE, SMALL, WIDE)),
    (LocalEpsilon(LINE, SMALL, at(0.5)), GlobalEpsilon(LINE, SMALL, cut(WIDE, [1], 0.5))),
    (SigmaEstimate(LINE, SMALL, WIDE, 1), SigmaEstimate(LINE, LARGE, WIDE, 1)),
    (SigmaEstimate(LINE, SMALL, WIDE, 0), GlobalEpsilon(LINE, SMALL, WIDE)),
    (SigmaEstimate(LINE, SMALL, WIDE, 1, level=Fraction(1, 4)), GlobalEpsilon(LINE, LARGE, WIDE)),
]


@pytest.mark.parametrize(("small", "large"), PAIRS)
def test_a_broken_law_is_an_error(small: Query, large: Query) -> None:
    more, less = estimate_of(small, 0.3, 0.4), estimate_of(large, 0.1, 0.2)
    for new, old in ((more, less), (less, more)):
        with pytest.raises(LawBrokenError, match="please report this"):
            check_laws(new, [old])


@pytest.mark.parametrize(("small", "large"), PAIRS)
def test_a_kept_law_is_none(small: Query, large: Query) -> None:
    check_laws(estimate_of(small, 0.1, 0.2), [estimate_of(large, 0.3, 0.4)])
    check_laws(estimate_of(large, 0.3, 0.4), [estimate_of(small, 0.1, 0.2)])
    check_laws(estimate_of(small, 0.2, 0.4), [estimate_of(large, 0.1, 0.2)])  # the ends may still meet


THREE = network(([[1], [0], [-1]], [0, 0, 0]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LocalEpsilon(LINE, LARGE, at(1)), LocalEpsilon(LINE, LARGE, at(0.5))),
        (LocalEpsilon(LINE, LARGE, at(1)), LocalEpsilon(LINE, SMALL, at(1))),
        (GlobalEpsilon(LINE, SMALL, WIDE), GlobalEpsilon(LINE, LARGE, NARROW)),
        (GlobalEpsilon(LINE, SMALL, WIDE), GlobalEpsilon(LINE, LARGE, cut(WIDE, [1], 0.5))),
        (GlobalEpsilon(LINE, SMALL, WIDE), SigmaEstimate(LINE, LARGE, WIDE, 1)),
        (SigmaEstimate(LINE, SMALL, WIDE, 1), SigmaEstimate(LINE, LARGE, WIDE, 0)),
        (SigmaEstimate(LINE, SMALL, WIDE, 1), SigmaEstimate(LINE, LARGE, WIDE, 1, level=Fraction(1, 4))),
        (SigmaEstimate(THREE, ball(THREE, 0.1), WIDE, 1), GlobalEpsilon(THREE, ball(THREE, 0.1), WIDE)),
        (LocalEpsilon(LINE, weights_only(LINE, 0.5), at(1)), LocalEpsilon(LINE, LARGE, at(1))),
        (LocalEpsilon(LINE, SMALL, at(1)), LocalEpsilon(network(([[2]], [0])), ball(network(([[2]], [0])), 8.0), at(1))),
    ],
)
def test_no_law_ties_these(one: Query, other: Query) -> None:
    """`one` may be the greater: neither its box nor its domain surely lies in the other's, or they are different things."""
    check_laws(estimate_of(one, 0.3, 0.4), [estimate_of(other, 0.1, 0.2)])


def test_a_session_remembers_only_what_it_should() -> None:
    small = LocalEpsilon(LINE, SMALL, at(1))
    for remember in (True, False):
        fake = claiming(0.05, STORED)
        session = Session([fake])
        session.estimate(EPS, remember=remember)
        fake.claim = EstimateClaim(0.5, LOWEST_SMALL, Assurance.TRUSTED)
        if remember:
            with pytest.raises(LawBrokenError):
                session.estimate(small)
        else:
            assert session.estimate(small).lower > 0.05


LOWEST_SMALL = example(1, 0.875, -0.625)  # z = 1/4, a change of 0.0602
SOME_DELTAS = st.sampled_from([k / 64 for k in range(65)])
SOME_NUMBERS = st.integers(-16, 16).map(lambda k: k / 8)


@settings(max_examples=60, deadline=None)
@given(a=SOME_DELTAS, b=SOME_DELTAS, x=SOME_NUMBERS, w=st.lists(SOME_NUMBERS, min_size=4, max_size=4))
def test_eps_and_delta_follow_the_laws(a: float, b: float, x: float, w: list[float]) -> None:
    """eps does not fall as delta grows; sigma <= eps; what is robust stays so for smaller deltas."""
    net = network(([[w[0]]], [w[1]]), ([[w[2]]], [w[3]]))
    small, large = (Absolute(d).around(net) for d in sorted((a, b)))
    session = Session([ClosedForm()])
    eps = [session.estimate(LocalEpsilon(net, box, Point([x]))) for box in (small, large)]
    assert eps[0].lower <= eps[1].upper
    assert eps[0].lower <= eps[1].lower + ENOUGH
    for box, found in zip((small, large), eps, strict=True):
        for label in (0, 1):
            assert session.estimate(SigmaEstimate(net, box, Point([x]), label)).lower <= found.upper
    verdicts = [session.check(LocalLabel(net, box, Point([x]))).verdict for box in (small, large)]
    assert verdicts in (
        [Verdict.ROBUST, Verdict.ROBUST],
        [Verdict.ROBUST, Verdict.VIOLATED],
        [Verdict.VIOLATED, Verdict.VIOLATED],
    )


@settings(max_examples=60, deadline=None)
@given(x=SOME_NUMBERS, w=st.lists(SOME_NUMBERS, min_size=2, max_size=2), d=SOME_DELTAS)
def test_eps_is_the_threshold_of_the_decision(x: float, w: list[float], d: float) -> None:
    net = network(([[w[0]]], [w[1]]))
    box, point = Absolute(d).around(net), Point([x])
    estimate = Session([ClosedForm()]).estimate(LocalEpsilon(net, box, point))
    above, below = Fraction(estimate.upper), Fraction(estimate.lower) - Fraction(1, 10**9)
    assert Session([ClosedForm()]).check(LocalConfidence(net, box, point, above)).verdict is Verdict.ROBUST
    if below > 0:
        assert Session([ClosedForm()]).check(LocalConfidence(net, box, point, below)).verdict is Verdict.VIOLATED
    else:
        assert d * (abs(x) + 1) < 1e-7


# The choice of a backend.


def test_backends_are_asked_in_order_until_one_knows() -> None:
    first, second, third = (
        Fake(claim, name) for claim, name in ((Unknown("?"), "a"), (Robust(Assurance.ROUNDED), "b"), (None, "c"))
    )
    answer = Session([first, second, third]).check(SAFE)
    assert (answer.backend, answer.verdict) == ("b", Verdict.ROBUST)
    assert [len(fake.asked) for fake in (first, second, third)] == [1, 1, 0]


def test_those_that_cannot_or_are_not_there_are_passed_over() -> None:
    backends = [
        Fake(name="a", installed=False),
        Fake(name="b", refusal="too hard"),
        Fake(Robust(Assurance.TRUSTED), "c"),
    ]
    assert Session(backends).check(SAFE).backend == "c"
    assert [len(fake.asked) for fake in backends] == [0, 0, 1]


def test_a_candidate_that_fails_is_not_the_end() -> None:
    answer = Session([Fake(Candidate(STORED), "a"), Fake(Violated(FLIPPED), "b")]).check(FLIP)
    assert (answer.backend, answer.verdict) == ("b", Verdict.VIOLATED)


def test_a_named_backend_is_the_only_one_asked() -> None:
    first, second = Fake(Robust(Assurance.TRUSTED), "a"), Fake(Unknown("no idea"), "b")
    answer = Session([first, second]).check(SAFE, backend="b")
    assert (answer.backend, answer.verdict) == ("b", Verdict.UNKNOWN)
    assert not first.asked


def test_unknowns_keep_the_tightest_bounds() -> None:
    fakes = [Fake(Unknown("one", 0.1, 0.9), "a"), Fake(Unknown("two", None, 0.5), "b"), Fake(Unknown("three", 0.2, 0.8), "c")]
    answer = Session(fakes).check(LocalConfidence(LINE, LARGE, at(1), Fraction(1, 4)))
    assert answer.claim == Unknown("three", 0.2, 0.5)
    assert "at least 0.2 and at most 0.5" in str(answer)
    assert answer.to_json()["lower"] == 0.2


@pytest.mark.parametrize(
    ("backends", "name", "error", "text"),
    [
        ([Fake()], "magic", UnsupportedError, "no backend is called 'magic': choose auto or one of fake"),
        ([Fake(refusal="too hard")], "fake", UnsupportedError, "fake cannot answer this: too hard; use --backend auto"),
        ([Fake(installed=False)], "fake", BackendUnavailableError, "the fake backend is not installed: see `qrobust doctor`"),
        (
            [Fake(refusal="too hard"), Fake(name="b", installed=False)],
            "auto",
            UnsupportedError,
            "fake: too hard; b: not installed",
        ),
        ([], "auto", UnsupportedError, "no backend can answer this"),
    ],
)
def test_refusals_say_why(backends: list[Fake], name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        Session(backends).check(SAFE, backend=name)
    assert text in str(caught.value)
    with pytest.raises(error) as caught:
        Session(backends).estimate(EPS, backend=name)
    assert text in str(caught.value)


def test_a_decision_is_no_estimate() -> None:
    with pytest.raises(UnsupportedError, match="LocalLabel asks for a verdict: use check"):
        Session().estimate(SAFE)


def test_the_default_order() -> None:
    assert [b.name for b in all_backends()] == ["closed-form", "z3", "branch-and-bound", "milp", "dreal"]


def test_an_estimate_stops_at_the_first_tight_one() -> None:
    late = Fake(name="late")
    assert Session([ClosedForm(), late]).estimate(EPS).gap <= ENOUGH
    assert not late.asked


# Budgets.


def test_time_is_shared() -> None:
    fakes = [Fake(Unknown("?"), name) for name in "abc"]
    Session(fakes).check(SAFE, budget=Budget(seconds=8, boxes=7))
    for fake, most in zip(fakes, (4, 4, 8), strict=True):
        assert most - 0.5 < fake.budgets[0].seconds <= most
        assert fake.budgets[0].boxes == 7


def test_nobody_is_asked_when_the_time_is_up() -> None:
    slow, late = Fake(Unknown("slow"), "a", seconds=0.06), Fake(Robust(Assurance.TRUSTED), "b")
    answer = Session([slow, late]).check(SAFE, budget=Budget(seconds=0.05))
    assert not late.asked
    assert answer.verdict is Verdict.UNKNOWN
    assert answer.seconds >= 0.05


def test_the_time_limit_holds_over_many_points() -> None:
    slow = Fake(Unknown("slow"), seconds=0.03)
    query = GlobalLabel(RAMP, ball(RAMP, 8.0), Points(np.linspace(0, 1, 100)[:, None]))
    answer = Session([slow]).check(query, budget=Budget(seconds=0.2))
    assert answer.verdict is Verdict.UNKNOWN
    assert "time limit of 0.2 s" in str(answer)
    assert 1 <= len(slow.asked) < 20


# Sets of points.

LEFT, RIGHT, NEAR = [0.0], [2.0], [0.5625]  # at d = 1/8 only NEAR flips


def test_points_are_robust_if_all_are() -> None:
    answer = Session().check(GlobalLabel(LINE, SMALL, Points([LEFT, RIGHT])))
    assert (answer.verdict, answer.assurance) == (Verdict.ROBUST, Assurance.ROUNDED)


@pytest.mark.parametrize("points", [[NEAR, LEFT, RIGHT], [LEFT, NEAR, RIGHT], [LEFT, RIGHT, NEAR]])
@pytest.mark.parametrize("backend", ["auto", "closed-form", "branch-and-bound", "z3"])
def test_one_bad_point_is_a_violation(points: list[list[float]], backend: str) -> None:
    query = GlobalLabel(LINE, SMALL, Points(points))
    answer = Session().check(query, backend=backend)
    assert answer.verdict is Verdict.VIOLATED
    assert answer.query is query
    assert answer.counterexample is not None
    assert answer.counterexample.x == (Fraction(9, 16),)
    assert violation_fault(query, answer.counterexample) is None


def test_points_take_the_weakest_assurance_and_any_unknown() -> None:
    query = GlobalConfidence(RAMP, ball(RAMP, 0.5), Points([[0.0], [1.0]]), Fraction(1, 1024))
    assert Session([Fake(Robust(Assurance.TRUSTED))]).check(query, backend="fake").assurance is Assurance.TRUSTED
    unknown = Session([Fake(Unknown("why"))]).check(query, backend="fake")
    assert (unknown.verdict, unknown.assurance) == (Verdict.UNKNOWN, None)
    assert "why" in str(unknown)


def test_an_estimate_over_points_is_the_greatest() -> None:
    query = GlobalEpsilon(LINE, LARGE, Points([LEFT, [1.0], [0.5]]))
    estimate = Session().estimate(query)
    parts = [Session().estimate(LocalEpsilon(LINE, LARGE, Point(x))) for x in (LEFT, [1.0], [0.5])]
    assert estimate.lower == max(part.lower for part in parts)
    assert estimate.upper == max(part.upper for part in parts)
    assert estimate.witness is not None
    assert witness_bounds(query, estimate.witness)[0] >= estimate.lower


# The greatest delta.


@pytest.mark.parametrize(
    ("query", "truth"),
    [
        (GreatestDelta(LINE, at(1)), 0.25),
        (GreatestDelta(LINE, at(0)), 0.5),
        (GreatestDelta(LINE, at(1), level=Fraction(3, 10)), (0.5 + math.log(7 / 3)) / 2),
        (GreatestDelta(LINE, at(1), sigma=Fraction(1, 10)), 0.25),
        (GreatestDelta(LINE, Points([[0.0], [1.0]])), 0.25),
        (GreatestDelta(SUM, cut(over((0, 2), (0, 2)), [-1, -1], -1.5)), 0.2),  # t (1 - d) - 1 - d = 0 at t = 3/2
    ],
)
def test_both_ends_of_the_greatest_delta_replay(query: GreatestDelta, truth: float) -> None:
    estimate = Session().estimate(query, budget=Budget(seconds=20))
    assert estimate.lower <= truth + 1e-15
    assert truth - 1e-15 <= estimate.upper <= estimate.lower * (1 + 2 * DELTA_ENOUGH)
    assert estimate.witness is not None
    assert delta_fault(query, estimate.upper, estimate.witness) is None
    assert Session().check(query.at(estimate.lower), budget=Budget(seconds=20)).verdict is Verdict.ROBUST
    assert Session().check(query.at(estimate.upper), budget=Budget(seconds=20)).verdict is Verdict.VIOLATED


def test_a_label_that_never_changes_has_no_greatest_delta() -> None:
    """At x = 0 with w alone free, z stays 1; and no input has margin 1/2."""
    constant = network(([[1]], [1]))
    for query in (GreatestDelta(constant, at(0), biases=False), GreatestDelta(constant, at(1), sigma=Fraction(1, 2))):
        estimate = Session().estimate(query)
        assert math.isinf(estimate.upper)
        assert estimate.lower > 1e6
        assert estimate.witness is None
        assert "no label changes up to delta" in str(estimate)
        assert json.loads(json.dumps(estimate.to_json()))["upper"] is None


def test_a_tie_at_every_delta() -> None:
    """At x = 1/2 z = 0: any delta lifts it."""
    estimate = Session().estimate(GreatestDelta(LINE, at(0.5)))
    assert (estimate.lower, estimate.reason) == (0.0, "labels change at every delta that was tried")
    assert estimate.upper < 1e-11
    assert estimate.witness is not None


def test_an_unknown_ends_the_bisection() -> None:
    estimate = Session([Fake(Unknown("too hard"))]).estimate(GreatestDelta(LINE, at(1)))
    assert (estimate.lower, estimate.upper, estimate.witness) == (0.0, math.inf, None)
    assert "too hard" in estimate.reason


def test_a_lie_in_the_bisection_is_an_error() -> None:
    with pytest.raises(UnsoundAnswerError):
        Session([Fake(Violated(STORED))]).estimate(GreatestDelta(LINE, at(1)))


# Texts.

NAMED = Network((Dense(np.array([[1.0]]), np.array([-0.5])),), Output.SIGMOID, name="<b>line & co</b>", classes=("<no>", "yes"))


def results() -> list[Answer | Estimate]:
    box = Absolute(0.375).around(NAMED)
    session = Session()
    return [
        session.check(LocalLabel(NAMED, box, at(1))),
        session.check(GlobalLabel(NAMED, box, over((4, 5)))),
        session.check(LocalConfidence(NAMED, box, at(1), Fraction(1, 3)), backend="closed-form"),
        Session([Fake(Unknown("<?>", 0.25))]).check(LocalConfidence(NAMED, box, at(1), Fraction(1, 3))),
        session.estimate(LocalEpsilon(NAMED, box, at(1))),
        session.estimate(SigmaEstimate(NAMED, box, Polytope(UNIT, [[1.0]], [0.75]), 0)),
        session.estimate(GreatestDelta(NAMED, Points([[0.0], [1.0]]))),
    ]


def test_results_survive_json() -> None:
    for result in results():
        document = result.to_json()
        assert json.loads(json.dumps(document, allow_nan=False)) == document
        assert document["network"] == {"name": NAMED.name, "sha256": NAMED.sha256}
        assert document["query"]["kind"] == type(result.query).__name__
        assert document["qrobust"] == VERSION


def test_a_counterexample_survives_json_exactly() -> None:
    third = replace_bias(FLIPPED, Fraction(-2, 3))
    for counterexample in (FLIPPED, third, replace_bias(FLIPPED, Fraction(10) ** 400)):
        again = json.loads(json.dumps(counterexample.to_json(), allow_nan=False))
        assert [Fraction(value) for value in again["input"]] == list(counterexample.x)
        bias = [Fraction(value) for value in again["parameters"][0]["bias"]]
        assert bias == counterexample.parameters[0][1].tolist()


def replace_bias(counterexample: Counterexample, value: Fraction) -> Counterexample:
    ((weight, _),) = counterexample.parameters
    return Counterexample(counterexample.x, ((weight, np.array([value], dtype=object)),))


def test_results_read_as_sentences() -> None:
    flip, kept, *_ = results()
    assert str(flip).startswith("VIOLATED: at input (input 1 = 1) a choice of parameters (every parameter within 0.375 of")
    assert str(kept).startswith("ROBUST: anywhere in the box [4, 5], no choice of parameters (every parameter within 0.375")
    for result in results():
        assert result.backend in str(result)
        assert "sat" not in str(result).replace("satisf", "").split()


def test_notebooks_get_escaped_text() -> None:
    for result in results():
        text = result._repr_html_()
        assert "<b>line" not in text
        assert "<no>" not in text
        assert "<?>" not in text
        assert text.startswith("<p>")
    assert "&lt;b&gt;line &amp; co&lt;/b&gt;" in results()[0]._repr_html_()


def test_printed_ends_are_rounded_outward() -> None:
    estimate = estimate_of(EPS, 0.1234567891, 0.1234567892)
    assert "[0.123456789, 0.123456790]" in str(estimate)


@pytest.mark.parametrize("end", [1e20, 1e300])
def test_a_huge_end_prints(end: float) -> None:
    delta = GreatestDelta(LINE, at(1))
    text = str(Estimate(delta, end, math.inf, None, Assurance.ROUNDED, "fake", 0.0, VERSION))
    assert "inf" in text


# A domain that a session meets as a box or cut down must not change the answer.


@pytest.mark.parametrize("domain", [InputBox([0.0], [1.0]), Polytope(UNIT, [[1.0], [-1.0]], [8.0, 8.0])])
def test_slack_inequalities_change_nothing(domain: Domain) -> None:
    box: ParameterBox = LARGE
    estimate = Session([BranchAndBound()]).estimate(GlobalEpsilon(LINE, box, domain), budget=Budget(seconds=10))
    assert estimate.lower == pytest.approx(TRUE_EPS, abs=ENOUGH)
    assert estimate.gap <= ENOUGH
