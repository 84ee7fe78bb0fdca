"""The closed form: both sides tight at random points, label statuses, ties settled exactly, very large logits."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest

from qrobust.answers import Assurance, Counterexample, Robust, Violated
from qrobust.backends.closed_form import ClosedForm
from qrobust.bounds import local
from qrobust.bounds.local import Status, greatest_changes, label_changes, nominal_labels
from qrobust.check import Replay, violation_fault, witness_bounds
from qrobust.domains import ParameterBox, Point
from qrobust.exact import float_bounds, sigmoid, to_exact
from qrobust.interval import FloatArray
from qrobust.leads import Leads
from qrobust.network import Activation, Dense, Network, Output
from qrobust.perturbations import Absolute
from qrobust.queries import GreatestDelta, LocalConfidence, LocalEpsilon, LocalLabel, SigmaEstimate
from qrobust.search import Budget
from tests.cases import LINE, RAMP, SECOND, TIED, TWINS, UNIT, at, ball, network

HALF = Fraction(1, 2)
BUDGET = Budget(seconds=10)
SHAPES = [((2, 1), Activation.LINEAR), *(((2, 2, 1), activation) for activation in Activation), ((1, 3), Activation.LINEAR)]
TIGHT = 1e-13


def random_network(rng: np.random.Generator, sizes: tuple[int, ...], activation: Activation) -> Network:
    layers = tuple(
        Dense(rng.normal(size=(b, a)), rng.normal(size=b), Activation.LINEAR if k == len(sizes) - 2 else activation)
        for k, (a, b) in enumerate(pairwise(sizes))
    )
    return Network(layers, Output.SIGMOID if sizes[-1] == 1 else Output.SOFTMAX)


def corners(parameters: ParameterBox, x: FloatArray) -> list[Counterexample]:
    """Every corner of a parameter box, exactly."""
    ends = [bounds.fractions for layer in parameters.layers for bounds in (layer.weight, layer.bias)]
    shapes = [low.shape for low, _ in ends]
    low, high = (np.concatenate([pair[side].ravel() for pair in ends]) for side in (0, 1))
    places = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
    found = []
    for pick in product((False, True), repeat=low.size):
        flat = np.where(pick, high, low)
        arrays = [flat[a:b].reshape(shape) for (a, b), shape in zip(pairwise(places.tolist()), shapes, strict=True)]
        layers = tuple(zip(arrays[::2], arrays[1::2], strict=True))
        found.append(Counterexample(tuple(Fraction(v) for v in x.tolist()), layers))
    return found


def exact_change(net: Network, examples: list[Counterexample]) -> tuple[float, float]:
    """Enclose the greatest change of a confidence over examples."""
    query = LocalEpsilon(net, Absolute(64.0).around(net), Point([float(v) for v in examples[0].x]))
    bounds = [witness_bounds(query, example) for example in examples]
    return max(low for low, _ in bounds), max(high for _, high in bounds)


@pytest.mark.parametrize(("sizes", "activation"), SHAPES)
@pytest.mark.parametrize("delta", [0.0, 1e-9, 0.05, 0.5])
def test_changes_are_tight_on_both_sides(sizes: tuple[int, ...], activation: Activation, delta: float) -> None:
    rng = np.random.default_rng(len(sizes) + int(1000 * delta))
    net = random_network(rng, sizes, activation)
    parameters = Absolute(delta).around(net)
    points = np.concatenate([rng.normal(size=(2, sizes[0])), np.zeros((1, sizes[0]))])
    change = greatest_changes(net, parameters, points)
    for index, x in enumerate(points):
        examples = corners(parameters, x)
        examples = examples if delta else examples[:1]
        low, high = exact_change(net, examples)
        assert change.lower[index] <= high, (net.layers, x)
        assert change.upper[index] >= low, (net.layers, x)
        assert change.upper[index] - change.lower[index] <= TIGHT
        assert high - low <= TIGHT


@pytest.mark.parametrize(("sizes", "activation"), SHAPES)
def test_statuses_match_the_corners(sizes: tuple[int, ...], activation: Activation) -> None:
    rng = np.random.default_rng([7, len(sizes), list(Activation).index(activation), sizes[-1]])
    seen = set()
    for _ in range(4):
        net = random_network(rng, sizes, activation)
        parameters = Absolute(0.2).around(net)
        points = rng.normal(size=(3, sizes[0]))
        statuses, labels = label_changes(Leads(net, HALF), parameters, points)
        for x, status, label in zip(points, statuses.tolist(), labels.tolist(), strict=True):
            query = LocalLabel(net, parameters, Point(x))
            flips = any(violation_fault(query, example) is None for example in corners(parameters, x))
            assert status == (Status.FLIPPABLE if flips else Status.SAFE)
            assert label == Replay(net, corners(Absolute(0.0).around(net), x)[0]).label(False, HALF)
            seen.add(status)
    assert seen == {Status.SAFE, Status.FLIPPABLE}


def test_a_batch_is_its_points() -> None:
    """More points than fit in one chunk, in any order, give what each gives alone."""
    net = random_network(np.random.default_rng(0), (2, 2, 1), Activation.RELU)
    parameters = Absolute(0.1).around(net)
    points = np.random.default_rng(1).normal(size=(local.CHUNK + 5, 2))
    many = greatest_changes(net, parameters, points)
    statuses, _ = label_changes(Leads(net, HALF), parameters, points)
    assert many.shape == (local.CHUNK + 5,)
    for index in (0, 1, local.CHUNK - 1, local.CHUNK, local.CHUNK + 4):
        alone = greatest_changes(net, parameters, points[index : index + 1])
        assert many.lower[index] <= alone.upper[0]
        assert alone.lower[0] <= many.upper[index]
        assert label_changes(Leads(net, HALF), parameters, points[index : index + 1])[0][0] == statuses[index]


@pytest.mark.parametrize(
    ("net", "delta", "x", "robust"),
    [
        (LINE, 0.25, 1.0, False),  # 1 to 0 at z = 0
        (LINE, 0.5, 0.0, True),  # 0 stays 0 at z = 0
        (LINE, 0.0, 0.5, True),  # the stored network is at the tie
        (SECOND, 0.25, 0.0, False),  # class 1 to class 0 at equal logits
        (TIED, 0.0, 1.0, True),
    ],
)
def test_ties_are_undecided_in_floats_and_settled_exactly(net: Network, delta: float, x: float, robust: bool) -> None:
    parameters = ball(net, delta)
    statuses, _ = label_changes(Leads(net, HALF), parameters, np.array([[x]]))
    assert statuses.tolist() == [Status.UNDECIDED]
    query = LocalLabel(net, parameters, at(x))
    claim = ClosedForm().decide(query, BUDGET)
    if robust:
        assert claim == Robust(Assurance.ROUNDED)
    else:
        assert isinstance(claim, Violated)
        assert violation_fault(query, claim.counterexample) is None


def test_a_tie_of_the_stored_network_has_no_label_in_floats() -> None:
    assert nominal_labels(Leads(LINE, HALF), np.array([[0.5], [0.75], [0.25]])).tolist() == [-1, 1, 0]
    assert nominal_labels(Leads(TIED, HALF), np.array([[1.0], [-1.0]])).tolist() == [-1, 2]


@pytest.mark.parametrize("step", [-1, 1])
def test_one_unit_in_the_last_place_beside_a_tie(step: int) -> None:
    """z = x - 1/2 falls to x (1 - d) - 1/2 - d, which is 0 at x = 1, d = 1/4: the float next to 1/4 decides."""
    delta = float(np.nextafter(0.25, step))
    claim = ClosedForm().decide(LocalLabel(LINE, ball(LINE, delta), at(1)), BUDGET)
    assert isinstance(claim, Violated if step > 0 else Robust)


def test_a_tie_behind_a_sigmoid() -> None:
    """z = s(b1) - 1/2 + b2 is a tie as stored, class 0; b1 = b2 = 1/4 lifts it."""
    tie = network(([[1]], [0]), ([[1]], [-0.5]), hidden=Activation.SIGMOID)
    query = LocalLabel(tie, Absolute(0.25, weights=False).around(tie), at(0))
    claim = ClosedForm().decide(query, BUDGET)
    assert isinstance(claim, Violated)
    assert violation_fault(query, claim.counterexample) is None


BIG = network(([[1]], [0]))


@pytest.mark.parametrize("x", [100.0, 7000.0])
def test_a_change_too_small_for_every_precision_is_no_proof(x: float) -> None:
    """f falls by about exp(-7/8 x) > 0 as z = x falls to 7/8 x - 1/8: epsilon 0 fails, though at x = 7000 no ball shows it."""
    claim = ClosedForm().decide(LocalConfidence(BIG, ball(BIG, 0.125), at(x), Fraction(0)), BUDGET)
    assert not isinstance(claim, Robust)


def test_labels_too_near_to_settle_are_no_proof() -> None:
    """1 - f is exp(-20000) = 10**-8686 as stored, up to exp(-14999) = 10**-6514: the level 1 - 10**-8000 lies between."""
    level = 1 - Fraction(1, 10**8000)
    claim = ClosedForm().decide(LocalLabel(BIG, ball(BIG, 0.25), at(20000), level=level), BUDGET)
    assert not isinstance(claim, Robust)


def test_eps_next_to_the_truth() -> None:
    """s(1/2) - 1/2 between two neighbouring floats: the lower is violated, the upper holds."""
    low, high = float_bounds(lambda: sigmoid(to_exact([HALF])[0]) - to_exact([HALF])[0])
    assert np.nextafter(low, 1.0) == high
    for end, kind in ((low, Violated), (high, Robust)):
        query = LocalConfidence(LINE, ball(LINE, 0.25), at(1), Fraction(end))
        assert isinstance(ClosedForm().decide(query, BUDGET), kind)


def test_sigma_at_a_point() -> None:
    for label, flips in ((1, True), (0, False)):
        claim = ClosedForm().estimate(SigmaEstimate(RAMP, ball(RAMP, 0.25), at(2), label), BUDGET)
        assert (claim.witness is not None) == flips
        assert claim.upper == pytest.approx(1 / (1 + np.exp(-1)) - 0.5 if flips else 0.0, abs=1e-12)


def test_what_it_refuses() -> None:
    assert ClosedForm().why_not(LocalLabel(TWINS, ball(TWINS, 0.1), at(1))) == (
        "the closed form needs at most one hidden layer, the network has 2"
    )
    assert "one point at a time" in (ClosedForm().why_not(SigmaEstimate(LINE, ball(LINE, 0.1), UNIT, 1)) or "")
    assert "bisection" in (ClosedForm().why_not(GreatestDelta(LINE, at(1))) or "")
    classes = network(([[1]], [0]), ([[1], [0]], [0, 1]))
    assert "depend on each other" in (ClosedForm().why_not(LocalEpsilon(classes, ball(classes, 0.1), at(1))) or "")
    assert ClosedForm().why_not(LocalLabel(classes, ball(classes, 0.1), at(1))) is None
