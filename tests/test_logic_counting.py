"""Do counts agree with trying every input, whoever counts, in balls of every norm?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from qrobust.answers import Assurance
from qrobust.backends.worker import Worker
from qrobust.binarized import Ball, BinarizedNetwork, Block, Grid, Linear, Norm, fold
from qrobust.errors import DomainError, NumberError, ResourceError, ShapeError
from qrobust.logic.counters import Problem
from qrobust.logic.counting import Count, Counter, Disagreement, Flips, Influence, Property, count
from qrobust.logic.hashing import Factor, by_parities
from qrobust.logic.labels import size_of
from qrobust.logic.sampling import Precision, drawn, ends
from tests.binarized import all_levels, ball, network, sparse_dense

SEEDS = range(25)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    found = Worker()
    yield found
    found.close()


def truth(asked: Property) -> tuple[int, int]:
    """How many inputs of the region have the property, and how many there are, written down anew."""
    region, integers = asked.region, fold(asked.network, asked.zero)
    inside = np.array([levels for levels in all_levels(asked.network) if region.contains(levels)])
    own = integers.labels(inside)
    if isinstance(asked, Flips):
        label = integers.labels(region.centre[None])[0] if asked.label is None else asked.label
        return int((own != label).sum()), len(inside)
    if isinstance(asked, Disagreement):
        assert asked.copy is not None
        return int((own != fold(asked.copy, asked.zero).labels(inside)).sum()), len(inside)
    assert isinstance(asked, Influence)
    rest = np.delete(inside, asked.feature, axis=1)
    _, group = np.unique(rest, axis=0, return_inverse=True)
    groups = [own[group == number] for number in range(group.max() + 1)]
    return sum(len(labels) for labels in groups if len(set(labels.tolist())) > 1), len(inside)


def questions(seed: int) -> list[Property]:
    rng = np.random.default_rng(seed)
    one = network(rng)
    levels = all_levels(one)
    centre = one.grid.values(levels[rng.integers(len(levels))])
    where, box = ball(rng, one, centre), Ball(centre, int(rng.integers(1, 3)) * one.grid.step)
    if box.radius > one.grid.upper - one.grid.lower:
        box = Ball(centre, one.grid.upper - one.grid.lower)
    other = BinarizedNetwork(one.grid, one.blocks, sparse_dense(rng.choice([-1.0, 0.0, 1.0], size=one.output.matrix.shape)))
    return [
        Flips(one, where),
        Flips(one, where, label=int(rng.integers(one.outputs))),
        Disagreement(one, where, copy=other),
        Influence(one, box, feature=int(rng.integers(one.inputs))),
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_counts_are_those_of_all_inputs(worker: Worker, seed: int) -> None:
    for asked in questions(seed):
        expected, total = truth(asked)
        assert size_of(asked.region) == total
        for counter in (Counter.ENUMERATION, Counter.EXACT):
            found = count(asked, counter, worker=worker)
            assert (found.lower, found.upper, found.total) == (expected, expected, total)
        for found in (
            count(asked, Counter.APPROXIMATE, precision=Precision(0.1, 1e-6)),
            count(asked, Counter.PARITIES, factor=Factor(0.8, 0.05), worker=worker),
        ):
            assert found.lower <= expected <= found.upper  # repeatable: the seed is fixed


def parity_like(bits: int) -> BinarizedNetwork:
    """Label 1 where at least half of the bits are set."""
    block = Block(sparse_dense(np.ones((1, bits)), np.array([-bits / 2])))
    return BinarizedNetwork(Grid.of(1, 0, 1), (block,), sparse_dense(np.array([[-1.0], [1.0]])))


def test_twenty_bits_by_every_means() -> None:
    """Of 20 bits, those with ten set or more: (2^20 + C(20, 10)) / 2."""
    asked = Flips(parity_like(20), Ball(np.zeros(20), Fraction(1)))
    expected = (2**20 + 184756) // 2
    for counter in (Counter.ENUMERATION, Counter.EXACT, Counter.AUTO):
        found = count(asked, counter)
        assert (found.lower, found.upper, found.total) == (expected, expected, 2**20)
    found = count(asked, Counter.APPROXIMATE, seed=3)
    assert found.lower <= expected <= found.upper
    assert found.lower < found.upper
    assert (found.epsilon, found.delta, found.seed, found.assurance) == (0.01, 0.001, 3, Assurance.STATISTICAL)
    assert "with probability at least 0.999" in str(found)
    assert found.to_json()["share"] == [found.lower / 2**20, found.upper / 2**20]


@pytest.mark.parametrize(("seed", "bits"), [(0, 14), (1, 17), (2, 20)])
def test_counts_of_up_to_twenty_bits_are_those_of_all_inputs(seed: int, bits: int, worker: Worker) -> None:
    """Random networks of two layers of signs: every counter beside all inputs, of flips, changed labels and influence."""
    rng = np.random.default_rng([11, seed])

    def signs(outputs: int, inputs: int) -> Linear:
        return sparse_dense(rng.choice([-1.0, 0.0, 1.0], size=(outputs, inputs)), rng.integers(-3, 4, size=outputs) / 2)

    one, other = (
        BinarizedNetwork(Grid.of(1, 0, 1), (Block(signs(5, bits)), Block(signs(4, 5))), signs(3, 4)) for _ in range(2)
    )
    everywhere = Ball(rng.integers(0, 2, size=bits).astype(float), Fraction(1))
    feature = int(rng.integers(bits))
    levels = (np.arange(2**bits)[:, None] >> np.arange(bits)) & 1
    labels = fold(one).labels(levels)
    changed = labels != labels[np.arange(2**bits) ^ (1 << feature)]
    own = fold(one).labels(everywhere.centre[None].astype(np.int64))
    for asked, expected in (
        (Flips(one, everywhere), int((labels != own).sum())),
        (Disagreement(one, everywhere, copy=other), int((labels != fold(other).labels(levels)).sum())),
        (Influence(one, everywhere, feature=feature), int(changed.sum())),
    ):
        found = count(asked, Counter.EXACT, worker=worker)
        assert (found.lower, found.upper, found.total) == (expected, expected, 2**bits)
        for rough in (
            count(asked, Counter.APPROXIMATE, precision=Precision(0.05, 0.001)),
            count(asked, Counter.PARITIES, factor=Factor(2.0, 0.2), worker=worker),
        ):
            assert rough.lower <= expected <= rough.upper  # repeatable: the seed is fixed


def test_too_little_time_leaves_both_ends_apart() -> None:
    asked = Flips(parity_like(20), Ball(np.zeros(20), Fraction(1)))
    found: Count = count(asked, Counter.ENUMERATION, seconds=1e-6)
    assert (found.lower, found.upper, found.assurance) == (0, 2**20, None)
    assert "time limit" in found.reason


def test_time_for_some_draws_leaves_ends_that_say_so() -> None:
    """Ten million draws of 20 bits take seconds: in a fraction of them some are made, and epsilon is what these promise."""
    asked, expected = Flips(parity_like(20), Ball(np.zeros(20), Fraction(1))), (2**20 + 184756) // 2
    fine = Precision(0.0007, 0.001)
    found = count(asked, Counter.APPROXIMATE, precision=fine, seconds=0.2)
    assert found.lower <= expected <= found.upper
    assert found.epsilon is not None
    assert found.epsilon > fine.epsilon
    assert (found.upper - found.lower) / found.total <= 2 * found.epsilon
    assert re.fullmatch(r"the time limit was reached after [\d,]+ of 7,756,\d+ draws", found.reason)


def test_clauses_are_written_in_the_process_that_is_ended_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Flips) -> Problem:
        raise AssertionError("not in this process")

    monkeypatch.setattr(Flips, "problem", fail)
    asked = Flips(parity_like(20), Ball(np.zeros(20), Fraction(1)))
    for counter in (Counter.EXACT, Counter.PARITIES):
        assert count(asked, counter).assurance is not None


def test_bad_questions_are_refused() -> None:
    one, where = parity_like(4), Ball(np.zeros(4), Fraction(1))
    with pytest.raises(DomainError, match="classes 0 to 1"):
        Flips(one, where, label=2)
    with pytest.raises(ShapeError, match="4 inputs and the copy 5"):
        Disagreement(one, where, copy=parity_like(5))
    with pytest.raises(DomainError, match="feature 4"):
        Influence(one, where, feature=4)
    with pytest.raises(DomainError, match="only in a box"):
        Influence(one, Ball(np.zeros(4), Fraction(1), Norm.L0))
    with pytest.raises(NumberError, match="epsilon"):
        Precision(0.0)
    with pytest.raises(NumberError, match="delta"):
        Precision(0.5, 1.0)
    with pytest.raises(NumberError, match="not below 1e-15"):
        Precision(0.5, 1e-16)
    with pytest.raises(NumberError, match="draws, at most"):
        Precision(1e-5)
    with pytest.raises(ResourceError, match="enumeration tries at most"):
        count(Flips(parity_like(60), Ball(np.zeros(60), Fraction(1))), Counter.ENUMERATION)
    with pytest.raises(ResourceError, match="too long to print"):
        count(Flips(parity_like(15_000), Ball(np.zeros(15_000), Fraction(1))), Counter.APPROXIMATE)
    large = Flips(parity_like(13_000), Ball(np.zeros(13_000), Fraction(1)))
    found = count(large, Counter.APPROXIMATE, precision=Precision(0.4, 0.5))
    assert found.to_json()["inputs"] == 2**13_000
    assert str(found)


@pytest.mark.parametrize("delta", [0.3, 1e-3, 1e-12, 1e-15])
@pytest.mark.parametrize("draws", [1, 5, 30])
def test_ends_of_a_share_keep_their_promise_exactly(draws: int, delta: float) -> None:
    """Were the share an end, so many hits or more (or fewer) would come with probability delta / 2 at most."""

    def chance(share: Fraction, counts: range) -> Fraction:
        return sum((comb(draws, n) * share**n * (1 - share) ** (draws - n) for n in counts), Fraction(0))

    for hits in range(draws + 1):
        lower, upper = map(Fraction, ends(hits, draws, delta))
        assert 0 <= lower < upper <= 1
        assert lower == 0 or chance(lower, range(hits, draws + 1)) <= Fraction(delta) / 2
        assert upper == 1 or chance(upper, range(hits + 1)) <= Fraction(delta) / 2


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L0, Norm.L1, Norm.L2])
def test_draws_are_uniform(norm: Norm) -> None:
    """Every input of the region comes as often as any other: no frequency is six standard deviations off."""
    network = BinarizedNetwork(Grid.of(1, 0, 2), (), sparse_dense(np.ones((2, 4))))
    region = Ball(np.array([1.0, 0.0, 2.0, 0.0]), Fraction(2), norm).region(network)
    levels = np.concatenate(list(drawn(region, 40_000, seed=1)))
    inputs, many = np.unique(levels, axis=0, return_counts=True)
    assert all(region.contains(one) for one in inputs)
    assert len(inputs) == size_of(region)
    expected = 40_000 / len(inputs)
    assert np.abs(many - expected).max() < 6 * np.sqrt(expected)


def test_balls_of_too_many_costs_are_refused_at_once() -> None:
    """An L2 ball of 2 over 100 inputs of 256 levels: 260,100 costs of each."""
    network = BinarizedNetwork(Grid.of("1/255", 0, 1), (), sparse_dense(np.ones((2, 100))))
    asked = Flips(network, Ball(np.zeros(100), Fraction(2), Norm.L2))
    for counter in (Counter.AUTO, Counter.APPROXIMATE, Counter.EXACT):
        with pytest.raises(ResourceError, match="take a smaller ball"):
            count(asked, counter, seconds=1.0)
    region = Ball(np.zeros(100), Fraction(1), Norm.L1).region(network)
    with pytest.raises(ResourceError, match="take a smaller one"):
        next(drawn(replace(region, most=10_000), 1, seed=0))


def satisfying(clauses: list[list[int]], top: int, counted: list[int]) -> int:
    """How many values of the counted variables extend to a solution, by trying all."""
    values = np.array(list(np.ndindex(*(2,) * top)), dtype=np.bool_)
    good = np.ones(len(values), dtype=np.bool_)
    for clause in clauses:
        good &= np.any([values[:, abs(literal) - 1] == (literal > 0) for literal in clause], axis=0)
    return len(np.unique(values[good][:, [variable - 1 for variable in counted]], axis=0))


def random_problem(rng: np.random.Generator) -> tuple[list[list[int]], int, list[int]]:
    """A few clauses over up to 12 variables, some of these free, some forced equal, some not counted."""
    top = int(rng.integers(8, 13))
    clauses = []
    for _ in range(rng.integers(0, 9)):
        own = rng.choice(top, size=rng.integers(1, 4), replace=False) + 1
        clauses.append((own * rng.choice([-1, 1], size=len(own))).tolist())
    if rng.random() < 0.3:
        clauses += [[1, -2], [-1, 2]]
    counted = np.sort(rng.choice(top, size=rng.integers(5, top + 1), replace=False) + 1)
    return clauses, top, counted.tolist()


def test_counts_by_parities_hold_as_often_as_they_say() -> None:
    """Of 200 random formulas at most a share delta is off by more than the factor; what is said to be exact is."""
    rng, factor, wrong, estimated = np.random.default_rng(0), Factor(0.8, 0.2), 0, 0
    for seed in range(200):
        clauses, top, counted = random_problem(rng)
        expected = satisfying(clauses, top, counted)
        low, high, is_exact = by_parities((clauses, top, counted), factor, seed)
        assert high <= max(factor.limit, (1 + factor.epsilon) ** 2 * low * 1.05)
        if is_exact:
            assert low == expected == high
        else:
            estimated += 1
            wrong += not low <= expected <= high
    assert estimated >= 60
    assert wrong <= factor.delta * estimated


def test_an_estimate_is_not_taken_for_a_count_where_its_ends_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,024 solutions an unlucky estimate says 0: at least the limit, and at most."""
    monkeypatch.setattr("qrobust.logic.hashing._estimate", lambda cells, start, limit: (start, 0))
    factor = Factor()
    assert by_parities(([], 10, list(range(1, 11))), factor, 0) == (factor.limit, factor.limit, False)


def test_rare_inputs_are_bounded_from_below_by_parities_alone(worker: Worker) -> None:
    """At least 18 of 24 bits set, where draws of so many inputs see one in a hundred only."""
    bits = 24
    block = Block(sparse_dense(np.ones((1, bits)), np.array([-17.5])))
    rare = BinarizedNetwork(Grid.of(1, 0, 1), (block,), sparse_dense(np.array([[-1.0], [1.0]])))
    expected = int(sum(comb(bits, k) for k in range(bits + 1) if k >= 18))
    asked = Flips(rare, Ball(np.zeros(bits), Fraction(1)), label=0)
    found = count(asked, Counter.PARITIES, worker=worker, seconds=120)
    assert 0 < found.lower <= expected <= found.upper <= 3.25 * found.lower
    assert found.assurance is Assurance.STATISTICAL
    assert "within a factor" in str(found)


def test_auto_turns_to_draws_where_clauses_would_be_too_many() -> None:
    half = np.tile([0.0, 1.0], 6_000)
    asked = Flips(parity_like(12_000), Ball(half, Fraction(2), Norm.HAMMING))
    found = count(asked, precision=Precision(0.1, 0.01))
    assert found.counter is Counter.APPROXIMATE
    assert "clauses: take a smaller region" in found.reason
    with pytest.raises(ResourceError, match="clauses: take a smaller region"):
        count(asked, Counter.EXACT)


def test_bad_factors_are_refused() -> None:
    for epsilon, delta in ((0.0, 0.1), (1.0, 0.0), (1.0, 1.0), (float("nan"), 0.1)):
        with pytest.raises(NumberError, match="parities"):
            Factor(epsilon, delta)
