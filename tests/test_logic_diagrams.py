"""Is what is read off decision diagrams what trying every input says?"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from qrobust.binarized import Ball, BinarizedNetwork, Block, Grid, Norm, fold
from qrobust.errors import ResourceError, UnsupportedError
from qrobust.layers import IntArray
from qrobust.logic.counting import Counter, Flips, count
from qrobust.logic.diagrams import Diagram, Prime, region_of
from qrobust.logic.sentential import compile_sentential
from tests.binarized import all_levels, network, sparse_dense
from tests.test_logic_counting import parity_like

SEEDS = range(60)


class Compiled:
    """A random network compiled over its whole range or a box, and its labels by trying every input."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.network = network(rng)
        levels = all_levels(self.network)
        centre = self.network.grid.values(levels[rng.integers(len(levels))])
        self.region = region_of(self.network, Ball(centre, self.network.grid.step) if seed % 3 == 0 else None)
        inside = ((levels >= self.region.lower) & (levels <= self.region.upper)).all(axis=1)
        self.levels: IntArray = levels[inside]
        self.labels = fold(self.network).labels(self.levels)
        self.diagram = Diagram(self.network, self.region)


@pytest.mark.parametrize("seed", SEEDS)
def test_counts_and_decisions(seed: int) -> None:
    case = Compiled(seed)
    counts = [int((case.labels == own).sum()) for own in range(case.network.outputs)]
    assert case.diagram.counts() == counts
    assert list(compile_sentential(case.network, case.region).counts) == counts
    for levels, label in list(zip(case.levels, case.labels.tolist(), strict=True))[:50]:
        assert [case.diagram.accepts(node, levels) for node in case.diagram.classes].index(True) == label
    for own, node in enumerate(case.diagram.classes):
        found = case.diagram.one_of(node)
        assert (found is None) == (counts[own] == 0)
        assert found is None or fold(case.network).labels(found[None])[0] == own


@pytest.mark.parametrize("seed", SEEDS)
def test_the_robustness_of_every_input(seed: int) -> None:
    case = Compiled(seed)
    flips = [(case.levels != levels).sum(axis=1) for levels in case.levels]
    least = [
        min((int(n) for n in away[case.labels != label]), default=0) for away, label in zip(flips, case.labels, strict=True)
    ]
    found = case.diagram.distances()
    assert found == [least.count(n) for n in range(len(found))]
    for place in range(0, len(least), max(1, len(least) // 5)):
        assert (case.diagram.least_flips(case.levels[place]) or 0) == least[place]


@pytest.mark.parametrize("seed", range(30))
def test_prime_implicants_are_all_boxes_that_cannot_be_widened(seed: int) -> None:
    case = Compiled(seed)
    lower, upper = case.region.lower, case.region.upper
    sides = [[(a, b) for a in range(low, high + 1) for b in range(a, high + 1)] for low, high in zip(lower, upper, strict=True)]
    if np.prod([float(len(side)) for side in sides]) > 3000:
        sides = sides[:0]
    for label in range(case.network.outputs) if sides else ():
        good = []
        for box in itertools.product(*sides):
            ends = np.array(box)
            inside = ((case.levels >= ends[:, 0]) & (case.levels <= ends[:, 1])).all(axis=1)
            if (case.labels[inside] == label).all():
                good.append(ends)
        widest = [a for a in good if not any(_inside(a, b) for b in good)]
        expected = {_prime(box, lower, upper) for box in widest}
        assert set(case.diagram.primes(label)) == expected


def _inside(a: IntArray, b: IntArray) -> bool:
    return bool((b[:, 0] <= a[:, 0]).all() and (b[:, 1] >= a[:, 1]).all() and not np.array_equal(a, b))


def _prime(box: IntArray, lower: IntArray, upper: IntArray) -> Prime:
    ends = enumerate(zip(box.tolist(), lower.tolist(), upper.tolist(), strict=True))
    return Prime(tuple((i, a, b) for i, ((a, b), low, high) in ends if (a, b) != (low, high)))


@pytest.mark.parametrize("seed", range(30))
def test_monotonicity_and_equivalence(seed: int) -> None:
    case = Compiled(seed)
    own = {tuple(levels): label for levels, label in zip(case.levels.tolist(), case.labels.tolist(), strict=True)}
    for label, feature in itertools.product(range(case.network.outputs), range(case.network.inputs)):
        rises, falls = True, True
        for levels, here in own.items():
            above = own.get((*levels[:feature], levels[feature] + 1, *levels[feature + 1 :]))
            if above is not None:
                rises &= not (here == label and above != label)
                falls &= not (here != label and above == label)
        assert case.diagram.monotone(label, feature) == (rises, falls)
    rng = np.random.default_rng(seed)
    output = sparse_dense(rng.choice([-1.0, 0.0, 1.0], size=case.network.output.matrix.shape))
    other = BinarizedNetwork(case.network.grid, case.network.blocks, output)
    differ = case.diagram.differences(case.diagram.compiled_too(other))
    assert case.diagram.count(differ) == int((fold(other).labels(case.levels) != case.labels).sum())
    assert case.diagram.count(case.diagram.differences(case.diagram.compiled_too(case.network))) == 0


def test_sixty_bits_are_counted_and_too_many_nodes_refused() -> None:
    """Half of 61 bits or more: exactly half of all inputs, one side each."""
    found = Diagram(parity_like(61), region_of(parity_like(61), None))
    assert found.counts() == [2**60, 2**60]
    rng = np.random.default_rng(0)
    first = sparse_dense(rng.choice([-1.0, 1.0], size=(12, 40)))
    wide = BinarizedNetwork(Grid.of(1, 0, 1), (Block(first),), sparse_dense(rng.choice([-1.0, 1.0], size=(2, 12))))
    with pytest.raises(ResourceError, match=r"stopped at .* nodes, its limit is 20,000"):
        Diagram(wide, region_of(wide, None), most=20_000)
    with pytest.raises(ResourceError, match=r"stopped at size .* limit is 5,000"):
        compile_sentential(wide, region_of(wide, None), most=5_000)
    with pytest.raises(UnsupportedError, match="boxes of levels"):
        Diagram(wide, region_of(wide, Ball(np.zeros(40), Fraction(2), Norm.L1)))
    with pytest.raises(ResourceError, match="the time limit was reached"):
        Diagram(wide, region_of(wide, None), seconds=0.05)
    with pytest.raises(ResourceError, match="over 10 prime"):
        found.primes(1, most=10)


def test_questions_to_a_full_table_or_after_the_time_are_refused_too() -> None:
    network = parity_like(15)
    region = region_of(network, None)
    questions: tuple[Callable[[Diagram], object], ...] = (
        lambda found: found.monotone(0, 3),
        lambda found: found.least_flips(np.zeros(15, dtype=np.int64)),
        lambda found: found.distances(),
    )
    least = next(most for most in range(50, 500) if compiles(network, most))
    late = Diagram(network, region, seconds=0.5)
    time.sleep(0.5)
    for found, why in ((Diagram(network, region, most=least), f"its limit is {least}"), (late, "the time limit was reached")):
        for question in questions:
            with pytest.raises(ResourceError, match=why):
                question(found)
    with pytest.raises(ResourceError, match=r"stopped at size .* the time limit was reached"):
        compile_sentential(network, region, seconds=1e-3)


def compiles(network: BinarizedNetwork, most: int) -> bool:
    """Whether a diagram of at most so many nodes holds a network."""
    try:
        Diagram(network, region_of(network, None), most=most)
    except ResourceError:
        return False
    return True


@pytest.mark.parametrize(("seed", "bits"), [(0, 14), (1, 17), (2, 20), (3, 20)])
def test_diagrams_counters_and_enumeration_agree_up_to_twenty_bits(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    first = sparse_dense(rng.choice([-1.0, 0.0, 1.0], size=(6, bits), p=[0.2, 0.6, 0.2]), rng.integers(-2, 3, size=6) / 2)
    second = sparse_dense(rng.choice([-1.0, 0.0, 1.0], size=(4, 6)), np.full(4, 0.5))
    one = BinarizedNetwork(Grid.of(1, 0, 1), (Block(first), Block(second)), sparse_dense(rng.choice([-1.0, 1.0], size=(3, 4))))
    counts = Diagram(one, region_of(one, None)).counts()
    assert sum(counts) == 2**bits
    assert list(compile_sentential(one, region_of(one, None)).counts) == counts
    asked = Flips(one, Ball(np.zeros(bits), Fraction(1)), label=1)
    for counter in (Counter.ENUMERATION, Counter.EXACT):
        found = count(asked, counter)
        assert (found.lower, found.upper) == (2**bits - counts[1], 2**bits - counts[1])
