"""Local questions about several hidden layers and convolutions: linear bounds, attacks, and splits of neurons."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from qrobust.answers import Candidate, Robust, Unknown, Verdict
from qrobust.backends.branch_and_bound import BranchAndBound
from qrobust.backends.deep import (
    Situation,
    decide_label,
    estimate_change,
    estimate_margin,
    screen_labels,
    stored_label,
    stored_labels,
)
from qrobust.bounds.neurons import NeuronTree
from qrobust.bounds.rows import Rows
from qrobust.check import violation_fault, witness_bounds
from qrobust.domains import Point, Points
from qrobust.formats import load
from qrobust.layers import Conv2d, MaxPool2d
from qrobust.leads import Leads
from qrobust.maps import Quantity, robustness_map
from qrobust.network import Activation, Dense, Network, Output
from qrobust.perturbations import Absolute, HalfStep, PerLayer
from qrobust.queries import HALF, GlobalLabel, LocalEpsilon, LocalLabel, SigmaEstimate
from qrobust.search import Budget, explore
from qrobust.solve import Session
from tests.conftest import RandomNetwork


def hard_situation(models: Path) -> tuple[Situation, Rows]:
    """An input and a box whose root bound leaves a row open that no attack reaches."""
    network = load(models / "digits_3x100.keras")
    for x in load_digits().data[:5] / 16:
        leads = Leads(network, HALF)
        label = stored_label(leads, x)
        assert label is not None
        pairs = leads.of_label(label)
        rows = Rows(leads.directions[pairs], np.zeros(len(pairs)), leads.strict[pairs])
        for delta in np.linspace(0.001, 0.02, 40).tolist():
            situation = Situation.at(network, Absolute(delta).around(network), x)
            if (situation.upper(rows) >= 0).any():
                tree = NeuronTree(situation.levels, situation.bounds, rows)
                if explore(tree, Budget(5.0, 2000), tolerance=0.0).boxes > 20:
                    return situation, rows
    pytest.fail("no input needs a search")


def test_a_search_is_resumed_where_it_stopped(models: Path) -> None:
    situation, rows = hard_situation(models)
    whole = explore(NeuronTree(situation.levels, situation.bounds, rows), Budget(120.0), tolerance=0.0)
    again = explore(NeuronTree(situation.levels, situation.bounds, rows), Budget(120.0), tolerance=0.0)
    assert (whole.boxes, whole.upper) == (again.boxes, again.upper)
    tree = NeuronTree(situation.levels, situation.bounds, rows)
    part = explore(tree, Budget(120.0, boxes=5), tolerance=0.0)
    assert "limit of 5 boxes" in part.reason
    assert part.open is not None
    assert len(part.open)
    rest = explore(tree, Budget(120.0), tolerance=0.0, resumed=part)
    assert rest.reason == ""
    assert rest.boxes > part.boxes
    assert (rest.upper < 0) == (whole.upper < 0)


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("sizes", [(2, 3, 3, 2), (3, 4, 3, 1)])
def test_verdicts_stand(activation: Activation, sizes: tuple[int, ...], random_network: RandomNetwork) -> None:
    """Every candidate replays, and what is proved holds at all corners that an attack from many starts finds."""
    rng = np.random.default_rng(sizes[-1])
    verdicts = set()
    for _ in range(12):
        network = random_network(rng, sizes, activation)
        for delta in (0.01, 0.1, 0.5):
            query = LocalLabel(network, Absolute(delta).around(network), Point(rng.normal(size=sizes[0])))
            claim = decide_label(query, Budget(2.0))
            verdicts.add(type(claim))
            if isinstance(claim, Candidate):
                assert violation_fault(query, claim.counterexample) is None
    assert {Robust, Candidate} <= verdicts


def test_margins_and_levels(random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(5)
    network = random_network(rng, (3, 5, 4, 1))
    for _ in range(10):
        x = rng.normal(size=3)
        confidence = float(network.confidences(x[None])[0, 0])
        box, point, level = Absolute(0.2).around(network), Point(x), Fraction(2, 5)
        plain = decide_label(LocalLabel(network, box, point, level), Budget(5.0))
        narrow = Fraction(abs(confidence - 0.4) / 2)
        wide = min(Fraction(abs(confidence - 0.4) * 2 + 1e-3), Fraction(1))
        assert type(decide_label(LocalLabel(network, box, point, level, narrow), Budget(5.0))) is type(plain)
        assert isinstance(decide_label(LocalLabel(network, box, point, level, wide), Budget(5.0)), Robust)
        own = int(confidence > 0.4)
        claim = estimate_margin(SigmaEstimate(network, box, point, own, level), Budget(5.0))
        expected = 0.0 if isinstance(plain, Robust) else abs(confidence - 0.4)
        assert claim.upper == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("sizes", [(3, 5, 4, 1), (3, 5, 4, 3)])
def test_changes_are_enclosed(sizes: tuple[int, ...], random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(7)
    for _ in range(6):
        network = random_network(rng, sizes)
        query = LocalEpsilon(network, Absolute(0.05).around(network), Point(rng.normal(size=3)))
        claim = estimate_change(query, Budget(4.0), 1e-6)
        assert claim.witness is not None
        lower, _ = witness_bounds(query, claim.witness)
        assert lower <= claim.upper
        if sizes[-1] == 1:
            assert claim.upper <= lower + 1e-5
        reference = BranchAndBound().estimate(query, Budget(1.0))
        if reference.witness is not None:
            assert witness_bounds(query, reference.witness)[0] <= claim.upper


def image_network(rng: np.random.Generator) -> Network:
    convolution = Conv2d(rng.normal(size=(3, 1, 3, 3)), rng.normal(size=3), Activation.RELU, (1, 6, 6))
    pool = MaxPool2d(convolution.output_shape, (2, 2), (2, 2))
    return Network((convolution, pool, Dense(rng.normal(size=(3, pool.outputs)), rng.normal(size=3))), Output.SOFTMAX)


def test_convolutions(random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(8)
    found = []
    for _ in range(6):
        network, x = image_network(rng), rng.random(36)
        for rule in (Absolute(0.0), Absolute(1e-3), HalfStep(8, True), Absolute(0.5)):
            query = LocalLabel(network, rule.around(network), Point(x))
            answer = Session().check(query, budget=Budget(3.0))
            found.append(answer.verdict)
            if rule == Absolute(0.0):
                assert answer.verdict is Verdict.ROBUST
            if answer.counterexample is not None:
                assert violation_fault(query, answer.counterexample) is None
    assert Verdict.VIOLATED in found
    box = Absolute(0.1).around(network)
    reason = BranchAndBound().why_not(GlobalLabel(network, box, Points(np.zeros((2, 36)))))
    assert reason is not None


def test_only_some_layers_move(random_network: RandomNetwork) -> None:
    """Fixed layers in front are known; the same answers come from the whole network."""
    rng = np.random.default_rng(9)
    for _ in range(10):
        network = random_network(rng, (3, 5, 5, 4, 3))
        x = rng.random(3)
        for deltas in ((0, 0, 0, 0.3), (0, 0, 0.2, 0), (0, 0.1, 0, 0), (0.1, 0, 0, 0)):
            query = LocalLabel(network, PerLayer(deltas).around(network), Point(x))
            claim = BranchAndBound().decide(query, Budget(30.0))
            assert not isinstance(claim, Unknown)
            if isinstance(claim, Candidate):
                assert violation_fault(query, claim.counterexample) is None


def test_many_points_at_once(random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(10)
    network = random_network(rng, (3, 6, 5, 3))
    points, box, leads = rng.normal(size=(150, 3)), Absolute(0.06).around(network), Leads(network, HALF)
    assert (stored_labels(leads, points) == network.labels(points)).all()
    safe = screen_labels(leads, box, points)
    assert 0 < safe.sum() < len(points)
    shown = robustness_map(network, box, points[:40], quantity=Quantity.LABEL, budget=Budget(5.0))
    for index in range(40):
        answer = Session([BranchAndBound()]).check(LocalLabel(network, box, Point(points[index])), budget=Budget(5.0))
        assert (answer.verdict is Verdict.ROBUST) == (shown.status[index] == 0)
        assert answer.verdict is Verdict.ROBUST or not safe[index]
    kept = Points(points[safe])
    assert Session().check(GlobalLabel(network, box, kept)).verdict is Verdict.ROBUST


def test_time_is_kept(random_network: RandomNetwork) -> None:
    network = random_network(np.random.default_rng(11), (20, 60, 60, 60, 5))
    query = LocalLabel(network, Absolute(0.05).around(network), Point(np.full(20, 0.5)))
    started = time.monotonic()
    decide_label(query, Budget(1.0))
    assert time.monotonic() - started < 6
