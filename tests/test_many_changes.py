"""The change of confidences behind several layers, many inputs at once: against samples, the search, and single questions."""

from __future__ import annotations

import numpy as np
import pytest

from qrobust.backends import many_changes
from qrobust.backends.branch_and_bound import BranchAndBound
from qrobust.backends.many_changes import screen_changes
from qrobust.bounds.linear import top_bounds
from qrobust.bounds.softmax_change import greatest_changes
from qrobust.domains import ParameterBox, Point
from qrobust.errors import EnclosureError
from qrobust.interval import FloatArray
from qrobust.maps import robustness_map
from qrobust.network import Activation, FloatArithmetic, Network, Output, perturbed_logits
from qrobust.perturbations import Absolute
from qrobust.queries import LocalEpsilon
from qrobust.search import Budget
from qrobust.solve import Session
from tests.conftest import RandomNetwork

SIZES = [(3, 4, 4, 3), (3, 5, 4, 3, 1), (2, 4, 3, 5)]


def exceeded(net: Network, delta: float, points: FloatArray, upper: FloatArray, tries: int = 300) -> bool:
    """Whether random corners of the box move some confidence further than the bound."""
    rng, floats = np.random.default_rng(3), FloatArithmetic()
    final = floats.sigmoid if net.output is Output.SIGMOID else floats.softmax
    before = final(perturbed_logits(net, tuple((a.weight, a.bias) for a in net.layers), points, floats))
    worst = np.zeros(len(points))
    for _ in range(tries):
        signs = [(rng.choice([-delta, delta], a.weight.shape), rng.choice([-delta, delta], a.bias.shape)) for a in net.layers]
        moved = tuple((a.weight + w, a.bias + b) for a, (w, b) in zip(net.layers, signs, strict=True))
        worst = np.maximum(worst, np.abs(final(perturbed_logits(net, moved, points, floats)) - before).max(axis=1))
    return bool((worst > upper + 1e-12).any())


@pytest.mark.parametrize("activation", [Activation.RELU, Activation.TANH])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_search_and_samples_agree(sizes: tuple[int, ...], activation: Activation, random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(8)
    net, points = random_network(rng, sizes, activation), rng.normal(size=(6, sizes[0]))
    for delta in (1e-4, 0.02):
        box = Absolute(delta).around(net)
        found = screen_changes(net, box, points)
        assert (found.lower > 0).all()
        assert (found.upper < 1).any()
        assert not exceeded(net, delta, points, found.upper)
        if delta < 0.01:
            assert (found.width < 0.2 * found.upper + 1e-9).all()  # what is nearly linear is nearly met
        for x, low, high in zip(points[:2], found.lower.tolist(), found.upper.tolist(), strict=False):
            claim = Session([BranchAndBound()]).estimate(LocalEpsilon(net, box, Point(x)), budget=Budget(1))
            assert claim.lower <= high
            assert low <= claim.upper


def test_one_hidden_layer_agrees_with_its_own_bounds(random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(9)
    net, points = random_network(rng, (3, 6, 4)), rng.normal(size=(12, 3))
    box = Absolute(0.05).around(net)
    exact, found = greatest_changes(net, box, points), screen_changes(net, box, points)
    assert (found.lower <= exact.upper).all()
    assert (found.upper >= exact.lower).all()
    assert (found.lower >= 0.8 * exact.lower).all()


def test_bounds_that_are_not_greatest_are_seen(random_network: RandomNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    net, points = random_network(rng, (3, 4, 4, 3)), rng.normal(size=(6, 3))
    box: ParameterBox = Absolute(0.02).around(net)
    monkeypatch.setattr(many_changes, "top_bounds", lambda *given: top_bounds(*given) - 0.2)
    with pytest.raises(EnclosureError):  # the attack attains more than the broken bound
        screen_changes(net, box, points)


def test_parts_by_memory_give_the_same(random_network: RandomNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    net, points = random_network(rng, (3, 4, 4, 3)), rng.normal(size=(20, 3))
    box = Absolute(0.01).around(net)
    whole = screen_changes(net, box, points)
    monkeypatch.setattr(many_changes, "inputs_at_a_time", lambda *_: 7)
    parts = screen_changes(net, box, points)
    assert np.abs(whole.upper - parts.upper).max() < 1e-9


def test_a_map_keeps_the_better_of_both_ends(random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(12)
    net, points = random_network(rng, (3, 30, 30, 3)), rng.normal(size=(4, 3))
    box = Absolute(0.001).around(net)
    at_once = screen_changes(net, box, points)
    found = robustness_map(net, box, points, backend="branch-and-bound", budget=Budget(2))
    assert (found.lower >= at_once.lower).all()
    assert (found.upper <= at_once.upper).all()


def test_large_numbers_stay_enclosed(random_network: RandomNetwork) -> None:
    net = random_network(np.random.default_rng(13), (3, 4, 4, 3))
    found = screen_changes(net, Absolute(0.5).around(net), np.array([[1e308, 1e308, -1e308], [1e100, 0, 0], [0, 0, 0]]))
    assert ((found.lower >= 0) & (found.lower <= found.upper) & (found.upper <= 1)).all()
