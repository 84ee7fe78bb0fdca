"""Branch and bound: polytopes, k classes, two hidden layers with tanh, bounds that hold when it stops early, determinism."""

from __future__ import annotations

import time
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from flint import arb, ctx

from qrobust.answers import Assurance, Candidate, Counterexample, EstimateClaim, Robust, Unknown
from qrobust.backends.branch_and_bound import TOLERANCE, BranchAndBound
from qrobust.bounds.corners import corner
from qrobust.bounds.objectives import greatest_rise_of
from qrobust.check import violation_fault, witness_bounds
from qrobust.domains import Point, Points, Polytope
from qrobust.interval import TINY, Interval
from qrobust.network import Activation, Network
from qrobust.queries import (
    EpsilonEstimate,
    GlobalConfidence,
    GlobalEpsilon,
    GlobalLabel,
    GreatestDelta,
    LocalEpsilon,
    LocalLabel,
    MarginLabel,
    SigmaEstimate,
)
from qrobust.search import Budget
from tests.cases import EQUAL, LINE, SQUARE, SUM, UNIT, at, ball, biases_only, by_layer, cut, network, over
from tests.conftest import RandomNetwork

BUDGET = Budget(seconds=20)
TRUE_EPS = 1 / (1 + np.exp(-0.5)) - 0.5
STRAIGHT = Polytope(SQUARE, [[1, 1], [-1, -1]], [1.5, -1.5])
"""The segment x1 + x2 = 3/2, which has no inside."""


def random_witness(query: EpsilonEstimate, rng: np.random.Generator) -> Counterexample:
    """A random input of the domain's box, with neurons at random ends."""
    box, net = query.domain.box, query.network
    x = [Fraction(v) for v in (box.lower + rng.random(box.lower.size) * box.width).tolist()]
    ends = [rng.choice([-1.0, 1.0], layer.outputs) for layer in net.hidden_layers]
    return corner(net, query.parameters, x, rng.choice([-1.0, 1.0], net.layers[-1].outputs), ends)


def attained(query: EpsilonEstimate, count: int, seed: int = 0) -> float:
    """The greatest change at random places, exactly replayed."""
    rng = np.random.default_rng(seed)
    return max(witness_bounds(query, random_witness(query, rng))[0] for _ in range(count))


def ends(query: EpsilonEstimate | SigmaEstimate, claim: EstimateClaim) -> tuple[float, float]:
    assert claim.witness is not None
    return witness_bounds(query, claim.witness)[0], claim.upper


# Polytopes.


@pytest.mark.parametrize(
    ("row", "limit", "truth"),
    [
        ([1.0, 0.0], 0.25, 0.25),  # x1 <= 1/4 and x2 <= 2: z = x1 + x2 - 1 over [-1, 5/4]: the peak tanh(1/8) is inside
        ([-1.0, 0.0], -1.5, None),  # x1 >= 3/2: z >= 1/2
    ],
)
def test_eps_in_a_polytope(row: list[float], limit: float, truth: float | None) -> None:
    query = GlobalEpsilon(SUM, biases_only(SUM, 0.5), cut(SQUARE, row, limit))
    lower, upper = ends(query, BranchAndBound().estimate(query, BUDGET))
    exact = TRUE_EPS if truth is None else np.tanh(0.125)
    assert lower <= exact + 1e-15
    assert exact - 1e-15 <= upper <= lower + 2 * TOLERANCE


def test_an_empty_polytope_is_robust() -> None:
    """Nothing lies in it, so nothing in it is violated."""
    nowhere = cut(UNIT, [1.0], -1.0)
    box = ball(LINE, 0.25)
    assert BranchAndBound().decide(GlobalLabel(LINE, box, nowhere), BUDGET) == Robust(Assurance.ROUNDED)
    assert BranchAndBound().estimate(GlobalEpsilon(LINE, box, nowhere), BUDGET).upper == 0.0
    assert BranchAndBound().decide(GlobalConfidence(LINE, box, nowhere, Fraction(1, 8)), BUDGET) == Robust(Assurance.ROUNDED)


def test_a_polytope_in_which_no_point_is_found() -> None:
    """On the segment z = 1/2 and z' = 1/2 +- d 5/2: with d = 1/4 the greatest change is s(1/2) - s(-1/8) = 0.1537."""
    query = GlobalEpsilon(SUM, ball(SUM, 0.25), STRAIGHT)
    claim = BranchAndBound().estimate(query, Budget(seconds=2, boxes=20_000))
    assert claim.upper >= 1 / (1 + np.exp(-0.5)) - 1 / (1 + np.exp(0.125)) - 1e-15
    assert claim.upper < 0.16
    enough = GlobalConfidence(SUM, ball(SUM, 0.25), STRAIGHT, Fraction(3, 16))
    assert BranchAndBound().decide(enough, Budget(seconds=5)) == Robust(Assurance.ROUNDED)


def test_a_decision_in_which_no_point_is_found_at_first() -> None:
    small = GlobalConfidence(SUM, ball(SUM, 0.25), STRAIGHT, Fraction(1, 8))
    claim = BranchAndBound().decide(small, Budget(seconds=1, boxes=2_000))
    assert isinstance(claim, Unknown | Candidate)


def test_labels_in_a_polytope() -> None:
    """t = x1 + x2 >= 3/2: z' >= 7/8 t - 9/8 > 0; from t = 9/7 down it may be 0 or less."""
    box = ball(SUM, 0.125)
    assert isinstance(BranchAndBound().decide(GlobalLabel(SUM, box, cut(SQUARE, [-1, -1], -1.5)), BUDGET), Robust)
    query = GlobalLabel(SUM, box, cut(SQUARE, [-1, -1], -1.25))
    claim = BranchAndBound().decide(query, BUDGET)
    assert isinstance(claim, Candidate)
    assert violation_fault(query, claim.counterexample) is None


# k classes and deeper networks.


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("sizes", [(2, 2, 3), (1, 2, 2, 1), (2, 3)])
def test_eps_holds_at_random_witnesses(random_network: RandomNetwork, sizes: tuple[int, ...], activation: Activation) -> None:
    rng = np.random.default_rng([len(sizes), sizes[-1], list(Activation).index(activation)])
    net = random_network(rng, sizes, activation)
    query = GlobalEpsilon(net, ball(net, 0.05), over(*[(-1, 1)] * sizes[0]))
    lower, upper = ends(query, BranchAndBound(1e-3).estimate(query, BUDGET))
    assert attained(query, 60) <= upper
    assert lower <= upper <= lower + 2e-3


def test_eps_of_equal_classes() -> None:
    """1 / (1 + 2/e) - 1/3, see the golden cases; here over inputs that do not matter but for their weights."""
    query = GlobalEpsilon(EQUAL, biases_only(EQUAL, 0.5), over((-1, 1)))
    lower, upper = ends(query, BranchAndBound().estimate(query, BUDGET))
    truth = 1 / (1 + 2 / np.e) - 1 / 3
    assert lower - 1e-15 <= truth <= upper + 1e-15
    assert upper - lower <= 2 * TOLERANCE


DEEP_TANH = network(
    ([[1], [-1]], [0.5, 0.25]), ([[1, 0.5], [-0.5, 1]], [0, 0.25]), ([[1, -1]], [0.125]), hidden=Activation.TANH
)


def test_two_tanh_layers_at_a_point() -> None:
    query = LocalEpsilon(DEEP_TANH, ball(DEEP_TANH, 0.0625), at(0.5))
    lower, upper = ends(query, BranchAndBound().estimate(query, BUDGET))
    assert upper - lower <= 2 * TOLERANCE
    best = 0.0
    for signs in product((-1.0, 1.0), repeat=5):
        example = corner(
            DEEP_TANH, query.parameters, [Fraction(1, 2)], np.array(signs[:1]), [np.array(signs[1:3]), np.array(signs[3:])]
        )
        best = max(best, witness_bounds(query, example)[0])
    assert best <= upper
    # Second-layer rows move along with a common first layer, so its ends need not be the best; they come close here.
    assert best >= lower - 0.01


@pytest.mark.parametrize(("last", "kind"), [(0.0625, Robust), (0.25, Candidate)])
def test_two_tanh_layers_that_share_their_first(last: float, kind: type) -> None:
    """z = tanh(h) - tanh(h) + 1/4 moves only with the last layer: by at most 3 d, and by more than 1/4 at d = 1/4."""
    net = network(([[1]], [1]), ([[1], [1]], [0, 0]), ([[1, -1]], [0.25]), hidden=Activation.TANH)
    claim = BranchAndBound().decide(LocalLabel(net, by_layer(net, 0.25, 0, last), at(1)), BUDGET)
    assert isinstance(claim, kind)


# Budgets.


def hard_query(random_network: RandomNetwork) -> GlobalEpsilon:
    net = random_network(np.random.default_rng(5), (2, 3, 3, 1), Activation.RELU)
    return GlobalEpsilon(net, ball(net, 0.05), over((-1, 1), (-1, 1)))


def test_bounds_hold_whenever_it_stops(random_network: RandomNetwork) -> None:
    query = hard_query(random_network)
    floor = attained(query, 300)
    claims = [BranchAndBound().estimate(query, Budget(seconds=20, boxes=boxes)) for boxes in (1, 100, 1_000, 10_000)]
    uppers = [claim.upper for claim in claims]
    assert uppers == sorted(uppers, reverse=True)
    assert uppers[-1] < uppers[0]
    for boxes, claim in zip((1, 100, 1_000, 10_000), claims, strict=True):
        lower, upper = ends(query, claim)
        assert max(floor, lower) <= upper
        assert claim.reason == f"the limit of {boxes:,} boxes was reached"


def test_unknown_carries_bounds_that_hold(random_network: RandomNetwork) -> None:
    query = hard_query(random_network)
    best = BranchAndBound().estimate(query, Budget(seconds=20, boxes=10_000))
    lower, upper = ends(query, best)
    between = GlobalConfidence(query.network, query.parameters, query.domain, Fraction(lower + upper) / 2)
    claim = BranchAndBound().decide(between, Budget(seconds=20, boxes=200))
    assert isinstance(claim, Unknown)
    assert claim.lower is not None
    assert claim.upper is not None
    assert claim.upper >= lower
    assert claim.lower <= upper + 1e-12


@pytest.mark.parametrize("seconds", [0.2, 0.4])
def test_the_time_limit_is_for_the_whole_question(seconds: float) -> None:
    """Three tied classes: six pairs of a label and a rival, none of which can be settled."""
    net = network(([[1, 0.5], [0.5, -1]], [0, 0.125]), ([[1, 0], [0, 1], [0.5, 0.5]], [0, 0, 0]))
    query = GlobalLabel(net, ball(net, 0.0), over((-1, 1), (-1, 1)))
    started = time.monotonic()
    claim = BranchAndBound().decide(query, Budget(seconds=seconds))
    assert isinstance(claim, Unknown)
    assert time.monotonic() - started < 2.5 * seconds + 0.3


def test_the_time_limit_of_an_estimate(random_network: RandomNetwork) -> None:
    started = time.monotonic()
    claim = BranchAndBound(1e-15).estimate(hard_query(random_network), Budget(seconds=0.3))
    assert time.monotonic() - started < 2
    assert claim.reason == "the time limit of 0.3 s was reached"


# Determinism, ties, refusals.


def test_the_same_question_gets_the_same_answer(random_network: RandomNetwork) -> None:
    query = hard_query(random_network)
    budget = Budget(seconds=60, boxes=3_000)
    first, second = (BranchAndBound().estimate(query, budget) for _ in range(2))
    assert first.upper == second.upper
    assert first.witness is not None
    assert second.witness is not None
    assert first.witness.to_json() == second.witness.to_json()


def test_a_tie_is_never_called_robust() -> None:
    """z = 1/2 falls to exactly 0, class 0: a violation that floats cannot tell from none."""
    claim = BranchAndBound().decide(LocalLabel(LINE, ball(LINE, 0.25), at(1)), Budget(seconds=1, boxes=1_000))
    assert isinstance(claim, Unknown)


def test_sigma_of_either_label() -> None:
    """s(1/2) - 1/2 and s(3/10) - 1/2, see the golden cases; the second is not attained."""
    for label, logit in ((1, 0.5), (0, 0.3)):
        query = SigmaEstimate(LINE, ball(LINE, 0.25), UNIT, label)
        lower, upper = ends(query, BranchAndBound().estimate(query, BUDGET))
        truth = 1 / (1 + np.exp(-logit)) - 0.5
        assert lower <= truth + 1e-15
        assert truth - 1e-15 <= upper <= lower + 2 * TOLERANCE


def test_margins_of_classes(random_network: RandomNetwork) -> None:
    """A margin just above the greatest that changes is safe; one just below is not."""
    net: Network = random_network(np.random.default_rng(11), (2, 2, 3), Activation.RELU)
    box, domain = ball(net, 0.1), over((-1, 1), (-1, 1))
    backend = BranchAndBound(1e-4)
    claims = [backend.estimate(SigmaEstimate(net, box, domain, label), BUDGET) for label in range(3)]
    greatest = max(claim.upper for claim in claims)
    assert greatest > 0.01
    above, below = Fraction(greatest) + Fraction(1, 1000), Fraction(greatest) - Fraction(1, 1000)
    assert isinstance(backend.decide(MarginLabel(net, box, domain, sigma=above), BUDGET), Robust)
    query = MarginLabel(net, box, domain, sigma=below)
    claim = backend.decide(query, BUDGET)
    assert isinstance(claim, Candidate)
    assert violation_fault(query, claim.counterexample) is None


def test_what_it_refuses() -> None:
    backend = BranchAndBound()
    assert backend.why_not(GreatestDelta(LINE, at(1))) == "the greatest delta is found by bisection over label queries"
    assert (
        backend.why_not(GlobalLabel(LINE, ball(LINE, 0.1), Points([[0], [1]]))) == "a set of points is answered point by point"
    )
    assert backend.why_not(GlobalLabel(LINE, ball(LINE, 0.1), Point([0]))) is None


def test_the_greatest_rise_of_a_confidence_holds_for_every_shift() -> None:
    """Exactly, at the ends and where the rise is greatest; a quarter of the least shifts is no float."""
    rng = np.random.default_rng(0)
    least = rng.random(400) * 10.0 ** rng.integers(-300, 1, 400)
    least = np.where(rng.random(400) < 0.5, least, 1 - least)
    confidence = Interval(least, np.minimum(least + rng.choice([0.0, 1e-12, 0.3], 400), 1.0))
    usual = np.abs(rng.normal(size=400)) * 10.0 ** rng.integers(-20, 2, 400)
    shift = np.where(rng.random(400) < 0.5, TINY * rng.integers(1, 5, 400), usual)
    found = greatest_rise_of(confidence, shift)
    with ctx.workprec(1200):
        for low, high, d, bound in zip(confidence.lower, confidence.upper, shift, found, strict=True):
            grown, best = arb(d).exp(), 1 / (1 + (arb(d) / 2).exp())
            inside = [best] if arb(low) <= best <= arb(high) else []
            for f in (arb(low), arb(high), *inside):
                assert not f * (1 - f) * (grown - 1) / (1 + f * (grown - 1)) > arb(bound)
