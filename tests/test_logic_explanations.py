"""Are explanations what trying every input says, minimal, least, and all there are?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from qrobust.binarized import Ball, BinarizedNetwork, Block, Box, Grid, Norm
from qrobust.domains import InputBox
from qrobust.errors import DomainError, NumberError, UnsoundAnswerError, UnsupportedError
from qrobust.layers import Activation, Dense
from qrobust.logic import (
    Kind,
    Method,
    Order,
    Promise,
    RealDecision,
    RealOracle,
    SignDecision,
    SignOracle,
    Size,
    explain,
    explanations,
)
from qrobust.logic.oracles import NOTHING, Deadline, Features, Fixed, Lost, UndecidedError
from qrobust.network import Network, Output
from qrobust.perturbations import Absolute
from tests.binarized import all_levels, sparse_dense
from tests.test_binarized import Case

SEEDS = range(60)


class Truth:
    """What explains a decision, by trying every input of its ranges."""

    def __init__(self, decision: SignDecision) -> None:
        region = decision.region
        levels = all_levels(decision.network)
        levels = levels[((levels >= region.lower) & (levels <= region.upper)).all(axis=1)]
        lost = levels[decision.folded.is_lost(levels, decision.own_label, decision.tie)]
        self.changes = [frozenset(np.flatnonzero(row != region.centre).tolist()) for row in lost]
        self.inputs = decision.network.inputs
        self.contrastive = self._minimal(set(self.changes))
        self.abductive = self._minimal(
            {chosen for chosen in self._subsets() if all(chosen & change for change in self.changes)}
        )

    def _subsets(self) -> Iterator[Features]:
        for size in range(self.inputs + 1):
            yield from map(frozenset, itertools.combinations(range(self.inputs), size))

    @staticmethod
    def _minimal(sets: set[Features]) -> set[Features]:
        return {one for one in sets if not any(other < one for other in sets)}

    def of(self, kind: Kind) -> set[Features]:
        return self.abductive if kind is Kind.ABDUCTIVE else self.contrastive


def decision(seed: int) -> SignDecision:
    """A random decision, of all levels or of some."""
    case, rng = Case(seed), np.random.default_rng(seed)
    network = case.network
    levels = case.levels[rng.integers(len(case.levels))]
    inputs = network.grid.values(levels)
    ranges = None
    if seed % 3 == 0:
        ends = network.grid.values(np.sort(case.levels[rng.integers(len(case.levels), size=2)], axis=0))
        ranges = Box(np.minimum(ends[0], inputs), np.maximum(ends[1], inputs))
    label = int(case.folded.labels(levels[None])[0])
    is_lost = bool(case.folded.is_lost(levels[None], label, case.tie)[0])  # to a rival that draws level
    return SignDecision(network, inputs, ranges, tie=SignDecision.tie if is_lost else case.tie, zero=case.zero)


@pytest.mark.parametrize("seed", SEEDS)
def test_explanations_are_true_minimal_and_least(seed: int) -> None:
    asked = decision(seed)
    truth = Truth(asked)
    with SignOracle(asked) as oracle:
        for kind in Kind:
            expected = truth.of(kind)
            for method in Method:
                found = explain(oracle, kind, method=method)
                assert found.is_checked
                assert found.is_minimal
                assert (found.features is None) == (not expected)
                assert found.features is None or frozenset(found.features) in expected
            smallest = explain(oracle, kind, Size.LEAST)
            assert smallest.is_checked
            if expected:
                assert smallest.is_least
                assert smallest.features is not None
                assert len(smallest.features) == smallest.lower == min(map(len, expected))


@pytest.mark.parametrize("seed", SEEDS)
def test_enumeration_finds_all_in_the_order_asked_for(seed: int) -> None:
    asked = decision(seed)
    truth = Truth(asked)
    with SignOracle(asked) as oracle:
        for kind, order in itertools.product(Kind, Order):
            found = explanations(oracle, kind, order)
            assert found.complete
            assert all(each.is_checked for each in found.found)
            for one in Kind:
                listed = [frozenset(each.features) for each in found.of(one) if each.features is not None]
                assert len(set(listed)) == len(listed)
                assert set(listed) == truth.of(one)
            sizes = [len(each.features or ()) for each in found.of(kind)]
            assert order is Order.FOUND or sizes == sorted(sizes)


class Liar:
    """An oracle of two features that says that none is needed; a second solver knows better."""

    features: Features = frozenset({0, 1})
    ranks = (0, 1)

    def ask(self, held: Features, deadline: Deadline, always: Features = NOTHING) -> Fixed | Lost:
        return Fixed(frozenset())

    def others(self, changed: Features, kept: Features, wanted: Features) -> list[Lost]:
        return []

    def few(self, count: int, deadline: Deadline) -> Lost | None:
        raise UndecidedError("it does not count")

    def confirm(self, held: Features, deadline: Deadline) -> str | None:
        raise UnsoundAnswerError("it does not hold")


@pytest.mark.parametrize("kind", Kind)
def test_a_lying_solver_is_found_out(kind: Kind) -> None:
    with pytest.raises(UnsoundAnswerError):
        explain(Liar(), kind)


class Forgetful(SignOracle):
    """Leaves a feature out of each core."""

    def ask(self, held: Features, deadline: Deadline, always: Features = NOTHING) -> Fixed | Lost:
        answer = super().ask(held, deadline, always)
        return Fixed(frozenset(sorted(answer.core)[1:])) if isinstance(answer, Fixed) else answer


def test_wrong_cores_give_an_error_or_an_explanation_that_is_true() -> None:
    caught = 0
    for seed in SEEDS:
        asked = decision(seed)
        with Forgetful(asked) as oracle:
            try:
                found = explain(oracle)
            except UnsoundAnswerError:
                caught += 1
                continue
        held = frozenset(found.features or ())
        assert all(held & change for change in Truth(asked).changes)
    assert caught > 5


class Alone(Liar):
    """Nobody confirms what it says."""

    def confirm(self, held: Features, deadline: Deadline) -> str | None:
        return None


def test_that_there_is_none_counts_as_checked_only_if_confirmed() -> None:
    found = explain(Alone(), Kind.CONTRASTIVE)
    assert found.features is None
    assert not found.is_checked
    assert not found.is_complete


class Slow:
    """An oracle that answers about everything held, and leaves all else undecided."""

    features: Features = frozenset({0, 1, 2})
    ranks = (0, 1, 2)

    def others(self, changed: Features, kept: Features, wanted: Features) -> list[Lost]:
        return []

    def few(self, count: int, deadline: Deadline) -> Lost | None:
        raise UndecidedError("it does not count")

    def ask(self, held: Features, deadline: Deadline, always: Features = NOTHING) -> Fixed | Lost:
        if held != self.features:
            raise UndecidedError("too hard")
        return Fixed(held)

    def confirm(self, held: Features, deadline: Deadline) -> str | None:
        return "by hand"


@pytest.mark.parametrize("size", Size)
def test_what_stays_undecided_leaves_a_larger_explanation(size: Size) -> None:
    found = explain(Slow(), size=size)
    assert found.features == (0, 1, 2)
    assert not found.is_minimal
    assert not found.is_least
    assert "stopped" in found.reason
    assert not explanations(Slow()).complete


def majority() -> BinarizedNetwork:
    """Label 1 where two or more of three bits are set."""
    block = Block(sparse_dense(np.ones((1, 3)), np.array([-1.5])))
    return BinarizedNetwork(Grid.of(1, 0, 1), (block,), sparse_dense(np.array([[-1.0], [1.0]])))


def test_witnesses_show_why_each_feature_is_needed() -> None:
    with SignOracle(SignDecision(majority(), np.array([1.0, 1.0, 1.0]))) as oracle:
        found = explain(oracle, ranks=[2, 1, 0])
        assert found.features == (0, 1)
        assert [(each.free, int(each.inputs.sum())) for each in found.witnesses] == [(0, 1), (1, 1)]
        assert all(each.inputs[1 - (each.free or 0)] == 1 for each in found.witnesses)


def test_an_input_is_moved_back_as_far_as_any_one_feature_allows() -> None:
    """The label is lost where 500 of 800 bits are set: these alone stay changed, wherever they stand."""
    needed = np.random.default_rng(0).permutation(800) < 500
    network = BinarizedNetwork(
        Grid.of(1, 0, 1), (), sparse_dense(np.stack([needed.astype(float), np.zeros(800)]), np.array([-499.5, 0.0]))
    )
    with SignOracle(SignDecision(network, np.zeros(800))) as oracle:
        found = oracle._moved_back(np.ones(800, dtype=np.int64))
    assert np.flatnonzero(found).tolist() == np.flatnonzero(needed).tolist()


def test_bad_decisions_are_refused() -> None:
    network, inputs = majority(), np.array([1.0, 1.0, 0.0])
    with pytest.raises(DomainError, match="outside the ranges"):
        SignDecision(network, inputs, Box(np.zeros(3), np.array([0.0, 1.0, 1.0])))
    with pytest.raises(DomainError, match="has the label 1, not 0"):
        SignDecision(network, inputs, label=0)
    with pytest.raises(UnsupportedError, match="use linf"):
        SignDecision(network, inputs, Ball(inputs, Fraction(1), Norm.L1))
    with SignOracle(SignDecision(network, inputs)) as oracle, pytest.raises(NumberError, match="time limit"):
        explain(oracle, seconds=0)


def small_network() -> Network:
    """relu(x0) - relu(x1) >= 0 gives label 1 (a sigmoid above 1/2), x2 does not matter."""
    first = Dense(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), np.zeros(2), Activation.RELU)
    return Network((first, Dense(np.array([[1.0, -1.0]]), np.zeros(1))), Output.SIGMOID)


@pytest.mark.parametrize("kind", Kind)
def test_real_networks_by_hand(kind: Kind) -> None:
    """At (2, 1, 0) of the cube [0, 3]^3 the label is 1 while x0 > x1: x0 = 2 alone leaves x1 = 3, x1 = 1 alone leaves x0 = 0.

    So both are needed, and freeing either one loses the label.
    """
    box = InputBox(np.zeros(3), np.full(3, 3.0))
    oracle = RealOracle(RealDecision(small_network(), np.array([2.0, 1.0, 0.0]), box))
    found = explanations(oracle, kind)
    assert found.complete
    assert [each.features for each in found.of(Kind.ABDUCTIVE)] == [(0, 1)]
    assert sorted(each.features or () for each in found.of(Kind.CONTRASTIVE)) == [(0,), (1,)]
    assert all(each.is_checked for each in found.found)


def test_every_rounding_takes_more_features() -> None:
    """At (3, 0, 0), x1 within [0, 2]: stored weights need x0 alone (3 > 2), weights off by 0.5 need x1 as well (1.5 < 3)."""
    box, network = InputBox(np.zeros(3), np.array([3.0, 2.0, 3.0])), small_network()
    inputs = np.array([3.0, 0.0, 0.0])
    stored = explain(RealOracle(RealDecision(network, inputs, box)), size=Size.LEAST)
    assert (stored.features, stored.is_least, stored.is_checked) == ((0,), True, True)
    rounded = Absolute(0.25, biases=False).around(network)
    found = explain(RealOracle(RealDecision(network, inputs, box, rounded)), size=Size.LEAST)
    assert (found.is_least, found.is_checked) == (True, True)
    assert found.features is not None
    assert {0, 1} <= set(found.features)


def test_agreement_is_another_promise() -> None:
    """Where x0 = 3 and x1 = 0 every copy says what the stored network says; with x1 free there is a tie to fall either way."""
    box, network = InputBox(np.zeros(3), np.full(3, 3.0)), small_network()
    rounded = Absolute(0.1, biases=False).around(network)
    decision = RealDecision(network, np.array([3.0, 0.0, 0.0]), box, rounded, Promise.AGREEMENT)
    found = explanations(RealOracle(decision), most=1)
    (first,) = found.of(Kind.ABDUCTIVE)
    assert first.is_checked
    assert {0, 1} & set(first.features or ())
    with pytest.raises(DomainError, match="input 1 is 4"):
        RealDecision(network, np.array([4.0, 0.0, 0.0]), box)
