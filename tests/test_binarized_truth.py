"""Exhaustive truth: thousands of random networks of up to 16 input bits, every engine and encoding, against every input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from qrobust.backends.worker import Worker
from qrobust.binarized import BatchNorm, BinarizedNetwork, Block, Folded, Grid, Linear, Norm, Region, TieRule, ZeroSign, fold
from qrobust.binarized.cnf import Encoding, Formula, formula
from qrobust.binarized.constraints import Constraints, constraints
from qrobust.binarized.engines import branching, cardinality, cpsat, exact_solver, milp, pseudo_boolean, sat, trial
from qrobust.binarized.engines.base import Engine, Found, Nothing, Outcome, Undecided
from qrobust.binarized.enumeration import first_lost
from qrobust.binarized.lrat import refutation_fault
from qrobust.binarized.plain_clauses import plain_clauses
from qrobust.binarized.queries import Levels, Robustness
from qrobust.binarized.race import available
from qrobust.interval import BoolArray
from qrobust.layers import Activation, Conv2d, Dense, IntArray

BITS = 16  # at most, of all inputs
FAST, SLOW = 300, 30  # questions of each batch: of SAT, enumeration and the count; of the other engines
BATCHES = range(10)
COUNTED = 400  # flips that are counted one by one


@dataclass(frozen=True, eq=False)
class Question:
    """A network, a region, a label and what is true of them."""

    folded: Folded
    region: Region
    label: int
    tie: TieRule
    flips: int
    zero: ZeroSign = ZeroSign.PLUS

    @property
    def constraints(self) -> Constraints:
        return constraints(self.folded, self.region, self.label, self.tie)

    @property
    def query(self) -> Robustness:
        region = self.region
        levels = Levels(region.lower, region.upper, region.centre, region.norm, region.most)
        return Robustness(self.folded.network, levels, self.label, self.tie, self.zero)


def weights(rng: np.random.Generator, outputs: int, inputs: int, zeros: float) -> IntArray:
    """Of -1, 0 and 1; some rows empty, some the same as another, some its opposite."""
    half = (1 - zeros) / 2
    found = rng.choice([-1, 0, 1], size=(outputs, inputs), p=[half, zeros, half])
    for row in range(1, outputs):
        kind = rng.random()
        if kind < 0.3:
            found[row] = [0, 1, -1][int(kind * 10)] * found[row - 1]
    return found


def linear(rng: np.random.Generator, outputs: int, inputs: int, zeros: float) -> Linear:
    """With thresholds between sums, at sums, at the greatest and least ones, and beyond."""
    weight = weights(rng, outputs, inputs, zeros).astype(float)
    most = np.abs(weight).sum(axis=1)
    kinds = rng.integers(5, size=outputs)
    bias = np.choose(
        kinds, [rng.integers(-3, 4, size=outputs), rng.integers(-3, 4, size=outputs) + 0.5, most, -most, -most - 1]
    )
    return Linear(Dense(weight, bias), rng.choice([1.0, 2.0, -1.0], size=outputs))


def norm(rng: np.random.Generator, channels: int) -> BatchNorm | None:
    if rng.random() < 0.5:
        return None
    return BatchNorm(
        rng.choice([-1.0, 1.0, 0.5], size=channels),
        rng.integers(-3, 4, size=channels) / 2,
        rng.integers(-2, 3, size=channels).astype(float),
        rng.choice([1.0, 4.0, 0.25, 2.0], size=channels),  # the root of 2 is no rational
        0.0,
    )


def network(rng: np.random.Generator) -> BinarizedNetwork:
    """Dense, sparse, ternary or convolutional, on a grid of 2, 4 or 16 levels and at most 2**BITS inputs."""
    bits = int(rng.choice([1, 1, 2, 4]))
    side = 3 if bits == 1 else 2
    is_image = rng.random() < 0.3 and bits * side * side <= BITS
    count = side * side if is_image else int(rng.integers(2, BITS // bits + 1))
    zeros = float(rng.choice([0.0, 0.3, 0.6, 0.9]))
    grid = Grid(Fraction(1, 2), Fraction(0), Fraction(2**bits - 1, 2))
    blocks, size = [], count
    if is_image:
        kernel = rng.choice([-1.0, 0.0, 1.0], size=(2, 1, 2, 2))
        shape, stride = (1, side, side), (1, 1)
        layer = Conv2d(kernel, rng.integers(-2, 3, size=2) / 2, Activation.LINEAR, shape, stride, (0, 0, 0, 0))
        blocks.append(Block(Linear(layer, np.ones(2)), norm(rng, 2)))
        size = layer.outputs
    sizes = [size, *rng.integers(1, 7, size=rng.integers(0, 3)).tolist()]
    blocks += [Block(linear(rng, after, before, zeros), norm(rng, after)) for before, after in pairwise(sizes)]
    output = linear(rng, int(rng.integers(2, 5)), sizes[-1], zeros)
    return BinarizedNetwork(
        grid, tuple(blocks), output if rng.random() < 0.3 else Linear(output.layer, np.ones(output.channels))
    )


def all_levels(lower: IntArray, upper: IntArray) -> IntArray:
    """Every input between two ends. Shape: (inputs between, inputs)."""
    axes = [np.arange(low, high + 1, dtype=np.int64) for low, high in zip(lower, upper, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def plain_labels_lost(found: BinarizedNetwork, levels: IntArray, zero: ZeroSign, label: int, tie: TieRule) -> BoolArray:
    """By the definition, in float64: its sums are exact; the root of 2 only meets sums far from it, or 0."""
    values = found.grid.values(levels)
    for block in found.blocks:
        before = block.pre_sign(values)
        exact = np.where(np.abs(before) < 1e-9, 0.0, before)
        values = np.where(exact >= 0 if zero is ZeroSign.PLUS else exact > 0, 1.0, -1.0)
    scores = found.output.apply(values)
    own, rivals = scores[:, [label]], np.arange(scores.shape[1])
    level = (scores == own) & (rivals != label)
    if tie is not TieRule.RIVAL:
        level &= (rivals < label) if tie is TieRule.FIRST else False
    return np.asarray(((scores > own) | level).any(axis=1))


def question(seed: int) -> Question:
    """A random question and its truth, by the definition at every input."""
    rng = np.random.default_rng(seed)
    found = network(rng)
    zero, tie = rng.choice(np.array(list(ZeroSign))), rng.choice(np.array(list(TieRule)))
    folded, top = fold(found, zero), found.grid.highest
    centre = rng.integers(0, top + 1, size=found.inputs)
    kind = Norm.LINF if rng.random() < 0.5 else rng.choice(np.array([Norm.L0, Norm.L1, Norm.L2]))
    reach = int(rng.integers(0, top + 1)) if kind is Norm.LINF else top
    most = 0 if kind is Norm.LINF else int(rng.integers(0, found.inputs * (1 if kind is Norm.L0 else top) + 1))
    region = Region(centre, np.maximum(centre - reach, 0), np.minimum(centre + reach, top), kind, most)
    label = int(folded.labels(centre[None])[0]) if rng.random() < 0.8 else int(rng.integers(found.outputs))
    levels = all_levels(region.lower, region.upper)
    if kind is not Norm.LINF:
        levels = levels[region.cost(levels).sum(axis=1) <= most]
    lost = plain_labels_lost(found, levels, zero, label, tie)
    np.testing.assert_array_equal(folded.is_lost(levels, label, tie), lost, err_msg=f"folding, question {seed}")
    return Question(folded, region, label, tie, int(lost.sum()), zero)


def check(asked: Question, outcome: Outcome, where: str) -> None:
    assert isinstance(outcome, Found if asked.flips else Nothing), f"{where}: {outcome}, {asked.flips} flips"
    if isinstance(outcome, Found):
        assert asked.region.contains(outcome.levels), where
        assert asked.folded.is_lost(outcome.levels[None], asked.label, asked.tie)[0], where


def flips(asked: Question, found: Constraints, written: Formula) -> int:
    """Count the solutions of clauses, each as often as the levels of pixels that it stands for."""
    from pysat.solvers import Solver

    columns, count = written.constraints.columns, 0
    width = asked.region.upper - asked.region.lower + 1
    others = int(np.prod(np.delete(width, found.pixels)))
    with Solver(name="glucose4", bootstrap_with=written.clauses) as solver:
        while solver.solve():
            true = set(solver.get_model())  # a variable in no clause may be missing
            model = [number if number in true else -number for number in range(1, columns + 1)]
            levels = written.input_levels(model)
            states = [int(np.flatnonzero(v == levels[p])[0]) for p, v in zip(found.pixels, found.levels, strict=True)]
            count += others * math.prod(int(c[s]) for c, s in zip(found.counts, states, strict=True))
            if not columns:
                break
            solver.add_clause([-literal for literal in model])
    return count


@pytest.mark.parametrize("batch", BATCHES)
def test_sat_enumeration_and_the_count_of_flips(batch: int) -> None:
    """Thousands of networks: the encodings in turn, every input that constraints tell apart, the count where it is small."""
    encodings, seen, counted = list(Encoding), {True: 0, False: 0}, 0
    for number in range(FAST):
        seed = batch * FAST + number
        asked = question(seed)
        found, where = asked.constraints, f"question {seed}"
        if not found.rival_classes:
            assert asked.flips == 0, where
            continue
        seen[asked.flips > 0] += 1
        levels = first_lost(asked.folded, found, asked.label, asked.tie)
        check(asked, Nothing(exact=True) if levels is None else Found(levels), f"{where}, enumeration")
        check(asked, trial.decide(found, 60.0), f"{where}, trial")
        if asked.region.norm is Norm.LINF:
            check(asked, branching.decide(found, 60.0), f"{where}, branching")
        encoding = encodings[number % len(encodings)]
        check(asked, sat.decide(found, 60.0, encoding), f"{where}, {encoding}")
        check(asked, cardinality.decide(found, 60.0), f"{where}, cardinality")
        if asked.region.norm is Norm.LINF and asked.flips <= COUNTED:
            counted += asked.flips > 0
            assert flips(asked, found, formula(found, Encoding.TOTALIZER)) == asked.flips, where
    assert min(seen.values()) >= 2  # intervals answer most of the rest
    assert counted >= 10


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    found = Worker()
    yield found
    found.close()


@pytest.mark.parametrize("batch", BATCHES)
def test_plain_clauses_have_proofs_where_no_input_loses_the_label(batch: int) -> None:
    """Intervals' answers as well: the checker has no others' word for anything."""
    seen = {True: 0, False: 0}
    for seed in range(batch * FAST, (batch + 1) * FAST):
        asked = question(seed)
        clauses = plain_clauses(asked.query).clauses
        proof = sat.refutation(clauses)
        assert (proof is None) == (asked.flips > 0), f"question {seed}"
        if proof is not None:
            assert refutation_fault(clauses, proof) is None, f"question {seed}"
        seen[asked.flips > 0] += 1
    assert min(seen.values()) >= 50


@pytest.mark.parametrize("batch", BATCHES)
def test_every_other_engine(batch: int, worker: Worker) -> None:
    """CP-SAT in a process of its own: its library and highspy's cannot both be loaded."""
    engines: dict[str, Engine] = {"milp": milp.decide, "z3": pseudo_boolean.decide}
    if available("exact"):
        engines["exact"] = exact_solver.decide
    seen = {True: 0, False: 0}
    for seed in range(10**6 + batch * 1000, 10**6 + (batch + 1) * 1000):
        asked = question(seed)
        found = asked.constraints
        if not found.rival_classes or seen[asked.flips > 0] >= SLOW // 2:
            continue
        seen[asked.flips > 0] += 1
        for name, engine in engines.items():
            check(asked, engine(found, 60.0), f"question {seed}, {name}")
        check(asked, worker.call(cpsat.decide, found, 60.0, seconds=60.0), f"question {seed}, cp-sat")
        if sum(seen.values()) == SLOW:
            break
    assert min(seen.values()) == SLOW // 2


def larger(seed: int) -> Question | None:
    """A question too large to try every input, with its truth unknown; None if intervals settle it."""
    rng = np.random.default_rng(seed)
    zeros, sizes = (0.0, 0.5, 0.8)[seed % 3], [28, 14, 10]
    blocks = tuple(Block(linear(rng, after, before, zeros), norm(rng, after)) for before, after in pairwise(sizes))
    folded = fold(BinarizedNetwork(Grid.of(1, 0, 3), blocks, linear(rng, 3, sizes[-1], zeros)))
    centre = rng.integers(0, 4, size=sizes[0])
    kind, most = ((Norm.LINF, 0), (Norm.L1, 4), (Norm.L0, 2), (Norm.L2, 5))[seed % 4]
    reach = 1 if kind is Norm.LINF else 3
    region = Region(centre, np.maximum(centre - reach, 0), np.minimum(centre + reach, 3), kind, most)
    asked = Question(folded, region, int(folded.labels(centre[None])[0]), TieRule.FIRST, -1)
    return asked if asked.constraints.rival_classes else None


@pytest.mark.parametrize("batch", range(4))
def test_engines_do_not_contradict_each_other_on_larger_questions(batch: int, worker: Worker) -> None:
    verdicts, count, counted = set(), 0, 0
    for seed in range(batch * 10**4, batch * 10**4 + 10**4):
        asked = larger(seed)
        if asked is None:
            continue
        count, found = count + 1, asked.constraints
        outcomes = {str(encoding): sat.decide(found, 60.0, encoding) for encoding in Encoding}
        if not isinstance(sums := cardinality.decide(found, 5.0), Undecided):  # as counting arguments can take it very long
            outcomes["cardinality"], counted = sums, counted + 1
        outcomes["milp"] = milp.decide(found, 60.0)
        outcomes["cp-sat"] = worker.call(cpsat.decide, found, 60.0, seconds=60.0)
        if available("exact"):
            outcomes["exact"] = exact_solver.decide(found, 60.0)
        kinds = {type(outcome) for outcome in outcomes.values()}
        assert len(kinds) == 1, f"question {seed}: {outcomes}"
        assert kinds <= {Found, Nothing}
        verdicts |= kinds
        for name, outcome in outcomes.items():
            if isinstance(outcome, Found):
                assert asked.region.contains(outcome.levels), f"question {seed}, {name}"
                assert asked.folded.is_lost(outcome.levels[None], asked.label, asked.tie)[0], f"question {seed}, {name}"
        if count == 50:
            break
    assert verdicts == {Found, Nothing}
    assert counted > 40
