"""Do folding, encodings and engines agree with trying every input?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from qrobust.answers import Assurance, Verdict
from qrobust.backends.worker import Worker
from qrobust.binarized import (
    Ball,
    BatchNorm,
    BinarizedNetwork,
    BinarizedSession,
    Block,
    Folded,
    Grid,
    InputRounding,
    LeastChange,
    Linear,
    Norm,
    Region,
    Robustness,
    TieRule,
    ZeroSign,
    cnf,
    fold,
)
from qrobust.binarized.answers import cost_units
from qrobust.binarized.cnf import Clauses, Encoding, formula
from qrobust.binarized.constraints import Constraints, constraints
from qrobust.binarized.engines import annealing, branching, cardinality, cpsat, exact_solver, milp, pseudo_boolean, sat, trial
from qrobust.binarized.engines.base import Engine, Found, Nothing, Outcome, Undecided
from qrobust.binarized.enumeration import inputs as enumerated
from qrobust.binarized.enumeration import tell_apart
from qrobust.binarized.folding import floor_of_root, over
from qrobust.binarized.race import Finish, Race, available
from qrobust.errors import DomainError, NumberError, QRobustError, ShapeError, UnsoundAnswerError, UnsupportedError
from qrobust.layers import Dense, IntArray
from tests import binarized as random_parts
from tests.binarized import all_levels, ball, network, sparse_dense

ENGINES: dict[str, Engine] = {
    "sat": sat.decide,
    "milp": milp.decide,
    "z3": pseudo_boolean.decide,
    "cardinality": cardinality.decide,
    "here": lambda found, seconds: cardinality.decide_here(found, 1_000_000),
    "sequential": lambda found, seconds: sat.decide(found, seconds, Encoding.SEQUENTIAL),
    "kmtotalizer": lambda found, seconds: sat.decide(found, seconds, Encoding.KMTOTALIZER),
} | ({"exact": exact_solver.decide} if available("exact") else {})
CASES = 40  # networks a test, for each of SEEDS
SEEDS = range(10)


@pytest.fixture(scope="module")
def session() -> Iterator[BinarizedSession]:
    with BinarizedSession() as found:
        yield found


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    found = Worker()
    yield found
    found.close()


class Case:
    """A random question and its truth, by trying every input."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.network = network(rng)
        self.zero, self.tie = list(ZeroSign)[rng.integers(2)], list(TieRule)[rng.integers(3)]
        self.folded: Folded = fold(self.network, self.zero)
        self.levels = all_levels(self.network)
        centre = self.levels[rng.integers(len(self.levels))]
        self.ball = ball(rng, self.network, self.network.grid.values(centre))
        self.region: Region = self.ball.region(self.network)
        self.label = int(self.folded.labels(centre[None])[0])
        self.inside = np.array([self.region.contains(x) for x in self.levels])
        self.lost = self.inside & self.folded.is_lost(self.levels, self.label, self.tie)
        self.violated = bool(self.lost.any())

    @property
    def constraints(self) -> Constraints:
        return constraints(self.folded, self.region, self.label, self.tie)


def plain_scores(found: BinarizedNetwork, levels: IntArray, zero: ZeroSign) -> list[Fraction]:
    """The scores of one input by the definition, in rationals; every root here is rational."""
    values = [found.grid.offset + found.grid.step * int(q) for q in levels]
    linears = [(block.linear, block.norm) for block in found.blocks]
    for linear, norm in [*linears, (found.output, None)]:
        matrix, channel = linear.layer.matrix(linear.layer.weight), linear.channel_of
        rows = np.asarray(matrix if isinstance(matrix, np.ndarray) else matrix.toarray())
        sums = [sum((int(w) * v for w, v in zip(row, values, strict=True)), Fraction(0)) for row in rows]
        values = [Fraction(linear.scale[c]) * s + Fraction(linear.layer.bias[c]) for c, s in zip(channel, sums, strict=True)]
        if linear is found.output:
            return values
        if norm is not None:
            root = [Fraction(math.sqrt(v)) for v in norm.variance]
            values = [
                Fraction(norm.gamma[c]) * (v - Fraction(norm.mean[c])) / root[c] + Fraction(norm.beta[c])
                for c, v in zip(channel, values, strict=True)
            ]
        values = [Fraction(1 if v > 0 or (v == 0 and zero is ZeroSign.PLUS) else -1) for v in values]
    raise AssertionError


@pytest.mark.parametrize("seed", SEEDS)
def test_folding_is_the_definition_and_the_float_forward_pass(seed: int) -> None:
    ties = 0
    for number in range(CASES):
        case = Case(1000 * seed + number)
        for levels in case.levels[:: max(1, len(case.levels) // 8)]:
            wanted = plain_scores(case.network, levels, case.zero)
            found = [int(score) for score in case.folded.scores(levels[None])[0]]
            order = [(a > b) - (a < b) for a in wanted for b in wanted]
            assert order == [(a > b) - (a < b) for a in found for b in found]
            ties += order.count(0) > len(wanted)
        if case.zero is ZeroSign.PLUS:  # the numbers are dyadic: float64 is exact
            labels = case.network.scores(case.levels).argmax(axis=1)
            np.testing.assert_array_equal(labels, case.folded.labels(case.levels))
    assert ties > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_every_engine_and_encoding_tells_the_truth(seed: int, worker: Worker) -> None:
    verdicts = set()
    for number in range(CASES):
        case = Case(1000 * seed + number)
        found = case.constraints
        verdicts.add(case.violated)
        if not found.rival_classes:
            assert not case.violated, f"case {1000 * seed + number}"
            continue
        for name, engine in ENGINES.items():
            _check(case, engine(found, 60.0), f"case {1000 * seed + number}, {name}")
        if number % 4 == 0:
            _check(case, worker.call(cpsat.decide, found, 60.0, seconds=60.0), f"case {1000 * seed + number}, cp-sat")
        _check(case, trial.decide(found, 60.0), f"case {1000 * seed + number}, trial")
        if case.ball.norm is Norm.LINF:
            _check(case, branching.decide(found, 60.0), f"case {1000 * seed + number}, branching")
        if case.violated:
            _check(case, annealing.decide(found, 20.0), f"case {1000 * seed + number}, annealing")
        else:
            assert isinstance(annealing.decide(found, 0.005), Undecided), f"case {1000 * seed + number}, annealing"
    assert verdicts == {True, False}


def _check(case: Case, outcome: Outcome, where: str) -> None:
    assert isinstance(outcome, Found | Nothing), f"{where}: {outcome}"
    assert isinstance(outcome, Found) == case.violated, where
    if isinstance(outcome, Found):
        assert case.region.contains(outcome.levels), where
        assert case.folded.is_lost(outcome.levels[None], case.label, case.tie)[0], where


@pytest.mark.parametrize("seed", SEEDS)
def test_clauses_have_as_many_solutions_as_there_are_flips(seed: int) -> None:
    """Each solution is an input; an input's states stand for so many levels of pixels that matter."""
    from pysat.solvers import Solver

    for number in range(12):
        case = Case(1000 * seed + number)
        if case.ball.norm is not Norm.LINF:
            continue
        found = case.constraints
        if not found.rival_classes:
            continue
        written, count = formula(found), 0
        columns = written.constraints.columns
        width = case.region.upper - case.region.lower + 1
        others = int(np.prod(np.delete(width, found.pixels)))
        with Solver(name="cadical153", bootstrap_with=written.clauses) as solver:
            while solver.solve():
                model = solver.get_model()[:columns] if columns else []
                levels = written.input_levels(model)
                states = [int(np.flatnonzero(v == levels[p])[0]) for p, v in zip(found.pixels, found.levels, strict=True)]
                count += others * math.prod(int(c[s]) for c, s in zip(found.counts, states, strict=True))
                solver.add_clause([-literal for literal in model])
                if not columns:
                    break
        assert count == case.lost.sum(), f"case {1000 * seed + number}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_over_a_box_is_the_network_on_every_input_in_it(seed: int) -> None:
    left_out = 0
    for number in range(CASES):
        case = Case(1000 * seed + number)
        lower, upper = case.region.lower, case.region.upper
        small = over(case.folded, lower, upper)
        levels = case.levels[((case.levels >= lower) & (case.levels <= upper)).all(axis=1)]
        for label in range(case.network.outputs):
            wanted = case.folded.is_lost(levels, label, case.tie)
            np.testing.assert_array_equal(small.is_lost(levels, label, case.tie), wanted)
        found, whole = constraints(small, case.region, case.label, case.tie), case.constraints
        assert (found.matrix != whole.matrix).nnz == 0
        assert found.rival_classes == whole.rival_classes
        np.testing.assert_array_equal(found.threshold, whole.threshold)
        np.testing.assert_array_equal(found.rival_threshold, whole.rival_threshold)
        pairs = zip(case.folded.layers, small.layers, strict=True)
        left_out += sum(len(layer.threshold) - len(rest.threshold) for layer, rest in pairs)
    assert left_out > CASES


@pytest.mark.parametrize("seed", SEEDS)
def test_enumeration_gives_every_input_that_matters(seed: int) -> None:
    for number in range(CASES):
        case = Case(1000 * seed + number)
        found = case.constraints
        given = np.concatenate([np.zeros((0, case.network.inputs), dtype=np.int64), *enumerated(found)])
        assert tell_apart(found) == len(given)
        assert all(case.region.contains(levels) for levels in given)
        assert bool(case.folded.is_lost(given, case.label, case.tie).any()) == case.violated


def test_each_input_is_tried_once_however_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(CASES):
        case = Case(seed)
        found = case.constraints
        for grown, table in ((1, 1), (7, 3), (2**16, 4096)):
            monkeypatch.setattr(trial, "GROWN", grown)
            monkeypatch.setattr(trial, "TABLE", table)
            parts = trial.states(found)
            states = np.concatenate([part.copy() for part in parts]).astype(np.int64)
            given = {tuple(found.input_levels(state).tolist()) for state in states}
            assert len(given) == len(states) == tell_apart(found)
            assert all(case.region.contains(np.array(levels)) for levels in given)


def test_the_portfolio_tells_the_truth(session: BinarizedSession) -> None:
    for seed in range(60):
        case = Case(seed)
        query = Robustness(case.network, case.ball, None, case.tie, case.zero)
        for engine in ("portfolio", *(["sat"] if seed % 3 == 0 else [])):
            answer = session.check(query, engine=engine, exact=True)
            assert (answer.verdict is Verdict.VIOLATED) == case.violated, f"case {seed}"
            assert answer.exact
            if answer.witness is not None:
                assert case.lost[(case.levels == answer.witness.levels).all(axis=1)].all()
                assert answer.assurance is Assurance.CHECKED


def test_least_changes_are_the_least(session: BinarizedSession) -> None:
    for seed in range(60):
        case = Case(seed)
        kind = (Norm.LINF, Norm.L0, Norm.L1, Norm.L2)[seed % 4]
        centre = case.region.centre
        lost = case.levels[case.folded.is_lost(case.levels, case.label, case.tie)]
        answer = session.least_change(LeastChange(case.network, case.ball.centre, kind, None, case.tie, case.zero))
        if not len(lost):
            assert answer.upper is None
            assert answer.reason == "no input loses the label"
            continue
        assert answer.lower == answer.upper == min(cost_units(kind, x - centre) for x in lost), f"case {seed}"


def test_engines_do_not_contradict_each_other_on_larger_questions(worker: Worker) -> None:
    verdicts = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        zeros = (0.0, 0.6, 0.85)[seed % 3]
        sizes = [30, 16, 10]
        blocks = tuple(
            Block(random_parts.linear(rng, after, before, zeros), random_parts.norm(rng, after))
            for before, after in pairwise(sizes)
        )
        found = BinarizedNetwork(Grid.of(1, 0, 3), blocks, random_parts.linear(rng, 4, sizes[-1], zeros))
        folded, centre = fold(found), rng.integers(0, 4, size=30)
        kind, radius = ((Norm.LINF, 1), (Norm.L1, 4), (Norm.L0, 2), (Norm.L2, 2))[seed % 4]
        region = Ball(centre.astype(float), Fraction(radius), kind).region(found)
        label = int(folded.labels(centre[None])[0])
        asked = constraints(folded, region, label, TieRule.FIRST)
        if not asked.rival_classes:
            continue
        outcomes = {name: engine(asked, 60.0) for name, engine in ENGINES.items() if name != "z3"}
        outcomes["cp-sat"] = worker.call(cpsat.decide, asked, 60.0, seconds=60.0)
        for name, outcome in outcomes.items():
            assert isinstance(outcome, Found | Nothing), f"{seed}, {name}: {outcome}"
            if isinstance(outcome, Found):
                assert region.contains(outcome.levels)
                assert folded.is_lost(outcome.levels[None], label, TieRule.FIRST)[0]
        verdicts.append({type(outcome) for outcome in outcomes.values()})
        assert len(verdicts[-1]) == 1, f"{seed}: {outcomes}"
    assert {Found} in verdicts
    assert {Nothing} in verdicts


def test_roots_are_rounded_down_exactly() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        a, b = (Fraction(int(rng.integers(-40, 41)), int(rng.integers(1, 9))) for _ in range(2))
        v = Fraction(int(rng.integers(0, 50)), int(rng.integers(1, 9)))
        floor = floor_of_root(a, b, v)
        for end, wanted in ((floor, True), (floor + 1, False)):  # end <= a + b * sqrt(v), by squares
            left, right = end - a, b * b * v
            below = (left <= 0 or left * left <= right) if b >= 0 else (left <= 0 and left * left >= right)
            assert below is wanted


def test_a_threshold_at_a_root_no_float_knows() -> None:
    """n * 10**4 >= 10**9 * sqrt(2): the least such n is 141422, since sqrt(2) * 10**5 is 141421.356..."""
    for gamma, beta, wanted in ((1.0, -1e8, 4 * 60000 + 1), (1e4, -1e9, 141422)):  # the first is beyond all sums
        norm = BatchNorm(np.array([gamma]), np.array([beta]), np.zeros(1), np.array([2.0]), 0.0)
        block = Block(sparse_dense(np.ones((1, 4))), norm)
        found = fold(BinarizedNetwork(Grid.of(1, 0, 60000), (block,), sparse_dense(np.array([[1.0], [-1.0]]))))
        assert found.layers[0].threshold[0] == wanted


@pytest.mark.parametrize("encoding", list(Encoding))
def test_a_name_is_its_sum_in_both_directions(encoding: Encoding) -> None:
    from pysat.solvers import Solver

    for count in range(1, 8):
        for least in range(1, count + 1):
            written = Clauses(count + 1, encoding)
            written.define(count + 1, list(range(1, count + 1)), least)
            with Solver(name="cadical153", bootstrap_with=written.clauses) as solver:
                for bits in range(2**count):
                    given = [i + 1 if bits >> i & 1 else -i - 1 for i in range(count)]
                    true = bin(bits).count("1") >= least
                    assert solver.solve(assumptions=[*given, count + 1]) is true
                    assert solver.solve(assumptions=[*given, -count - 1]) is not true


@pytest.mark.parametrize("encoding", list(Encoding))
def test_a_sum_that_was_kept_is_the_sum_written_anew(encoding: Encoding, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clause by clause, whatever the literals: opposites, repeated ones, and names of either sign."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        literals = (rng.integers(1, 30, size=int(rng.integers(2, 20))) * rng.choice([-1, 1])).tolist()
        name, least = int(rng.choice([-1, 1])) * 31, int(rng.integers(1, len(literals) + 1))
        kept, anew = Clauses(40, encoding), Clauses(40, encoding)
        for _ in range(2):
            kept.define(name, literals, least)
        with monkeypatch.context() as patched:
            patched.setattr(cnf, "MOST_KEPT", 0)
            for _ in range(2):
                anew.define(name, literals, least)
        assert (kept.clauses, kept.top) == (anew.clauses, anew.top)


def test_half_a_reification_is_caught() -> None:
    """Clauses of one direction only, as a careless encoding has, give flips that are none."""
    wrong = 0
    for seed in range(60):
        case = Case(seed)
        found = case.constraints
        if not found.rival_classes or case.violated:
            continue
        written = formula(found)
        first = written.constraints.columns + 1
        names = range(first, first + written.constraints.matrix.shape[0])
        half = [clause for clause in written.clauses if not any(literal in names for literal in clause[:1])]
        from pysat.solvers import Solver

        with Solver(name="cadical153", bootstrap_with=half) as solver:
            wrong += bool(solver.solve())
    assert wrong > 0


def test_half_of_a_native_sum_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Native sums of one direction only give flips that are none, which truth by trying every input shows."""
    whole, wrong = cardinality._at_least, 0

    def half(solver: object, name: int | None, literals: list[int], least: int) -> None:
        if name is None or name > 0:
            whole(solver, name, literals, least)

    monkeypatch.setattr(cardinality, "_at_least", half)
    for seed in range(60):
        case = Case(seed)
        if case.constraints.rival_classes and not case.violated:
            wrong += isinstance(cardinality.decide(case.constraints, 60.0), Found)
    assert wrong > 0


def test_the_row_of_costs_counts_before_it_is_written() -> None:
    block = Block(sparse_dense(np.ones((2, 3)), np.array([-200.5, 0.5])))
    found = fold(BinarizedNetwork(Grid.of(1, 0, 255), (block,), sparse_dense(np.array([[1.0, 0.0], [0.0, 1.0]]))))
    counts = []
    for norm in (Norm.LINF, Norm.L2):
        region = Ball(np.full(3, 100.0), Fraction(50), norm).region(found.network)
        counts.append(cardinality.literal_count(constraints(found, region, 1, TieRule.FIRST)))
    assert counts[1] - counts[0] >= 3 * 3 * 2 * 50**2


def test_native_sums_stop_at_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in map(Case, range(999)) if case.constraints.rival_classes and not case.violated)
    found = case.constraints
    assert isinstance(cardinality.decide(found, 60.0), Nothing)
    assert cardinality.decide(found, -1.0) == Undecided("the time limit was reached")
    assert cardinality.decide_here(found, -1) == Undecided("not within -1 conflicts")
    monkeypatch.setattr(cardinality, "MOST_LITERALS", 0)
    assert cardinality.decide(found, 60.0) == Undecided("the sums have more than 0 literals: use another engine")


def test_inputs_are_rounded_as_named() -> None:
    grids = {rule: Grid.of("0.61", 0, "1.83", rounding=rule) for rule in InputRounding}
    assert [grid.highest for grid in grids.values()] == [3, 3, 3]
    halves = np.array([0.25, 0.75, 1.25])
    for rule, wanted in ((InputRounding.HALF_EVEN, [0, 2, 2]), (InputRounding.HALF_UP, [1, 2, 3])):
        assert Grid.of("0.5", 0, 2, rounding=rule).levels(halves).tolist() == wanted
    grid = Grid.of("0.5", -2, 2, rounding=InputRounding.HALF_AWAY)
    assert grid.levels(np.array([-0.25, -0.75, 0.25])).tolist() == [-1, -2, 1]
    assert Grid.of("0.5", -2, 2, rounding=InputRounding.HALF_UP).levels(np.array([-0.25, -0.75])).tolist() == [0, -1]


def test_an_offset_far_above_the_step_costs_no_level() -> None:
    """The float nearest to the offset is off by a level and more."""
    offset, step = 10**9 + Fraction(1, 3), Fraction(1, 10**7)
    grid = Grid(step, offset, offset + 1000 * step, offset)
    x = np.array([float(offset) + place * 2.0**-23 for place in range(1, 100)])
    assert grid.levels(x).tolist() == [grid.level(Fraction(value)) for value in x.tolist()]


@pytest.mark.parametrize("blocks", [0, 1])
def test_sums_that_64_bits_do_not_hold_are_refused(blocks: int) -> None:
    """8 levels of 2**60, in a block and in the scores."""
    row = Linear(Dense(np.ones((2, 8)), np.zeros(2)), np.ones(2))
    network = BinarizedNetwork(Grid.of(1, 2**60, 2**60 + 2), (Block(row),) * blocks, ONE if blocks else row)
    with pytest.raises(UnsupportedError, match="a sum could leave 64 bits"):
        fold(network)


NIL = np.zeros(1)
ONE = sparse_dense(np.eye(2))
TWO = BinarizedNetwork(Grid.of(1, 0, 1), (), ONE)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Linear(Dense(np.array([[0.5, 1.0]]), np.zeros(1)), np.ones(1)), NumberError, "weight 0.5"),
        (lambda: sparse_dense(np.array([[np.nan]])), NumberError, "NaN"),
        (lambda: Linear(ONE.layer, np.array([1.0, 0.0])), NumberError, "scale"),
        (lambda: BatchNorm(NIL, NIL, NIL, NIL, 1.0), NumberError, "gamma is 0"),
        (lambda: BatchNorm(np.ones(1), NIL, NIL, NIL, 0.0), NumberError, "variance 0"),
        (lambda: BatchNorm(np.ones(1), np.zeros(1), np.zeros(1), -np.ones(1), 2.0), NumberError, "variance -1"),
        (lambda: BatchNorm(np.array([np.nan]), NIL, NIL, np.ones(1), 0.0), NumberError, "gamma holds NaN"),
        (lambda: Ball(np.zeros(2), Fraction(-1)), NumberError, "eps is -1"),
        (lambda: Ball(np.zeros(2), Fraction(2)).region(TWO), NumberError, "reach only 1"),
        (lambda: Ball(np.zeros(2), Fraction(3), Norm.L0).region(TWO), NumberError, "at most 2"),
        (lambda: Ball(np.zeros(3), Fraction(1)).region(TWO), ShapeError, "takes 2"),
        (lambda: Ball(np.array([0.0, 7.0]), Fraction(1)).region(TWO), DomainError, "outside the input range"),
        (lambda: Robustness(TWO, Ball(np.zeros(2), Fraction(1)), 2), DomainError, "classes 0 to 1"),
        (lambda: LeastChange(TWO, np.zeros(2), label=-1), DomainError, "classes 0 to 1"),
        (lambda: Grid.of(0, 0, 1), NumberError, "step is 0"),
        (lambda: Grid.of(1, 1, 0), NumberError, "empty"),
        (lambda: Grid.of(1, 0, 10**9), NumberError, "levels"),
        (lambda: BinarizedNetwork(Grid.of(1, 0, 1), (Block(ONE),), sparse_dense(np.ones((2, 3)))), ShapeError, "takes 3"),
    ],
)
def test_bad_input_is_one_clear_line(make: object, error: type[QRobustError], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        make()  # type: ignore[operator]
    assert "\n" not in str(raised.value)


def test_a_lying_engine_is_found_out(session: BinarizedSession, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in map(Case, range(100)) if not case.violated and case.constraints.rival_classes)
    lie = Finish("sat", Found(case.region.centre))

    def run(race: Race, names: object, found: object, seconds: float, counts: Callable[[Finish], bool]) -> object:
        return (lie if counts(lie) else None), []

    monkeypatch.setattr(Race, "run", run)
    with pytest.raises(UnsoundAnswerError, match="sat engine"):
        session.check(Robustness(case.network, case.ball, None, case.tie, case.zero), engine="sat")


@pytest.mark.parametrize("rounding", list(InputRounding))
def test_levels_of_a_ball_are_those_of_its_ends(rounding: InputRounding) -> None:
    """At inputs whose ends are ties between levels, or a float beside one, for each way of rounding ties."""
    for step, offset, eps in (("0.61", "0", "0.1"), ("1/4", "1/8", "1/8"), ("0.3", "-0.2", "0"), ("1/2", "0", "0.05")):
        grid, radius = Grid.of(step, -1, 2, offset, rounding), Fraction(eps)
        ties = [grid.offset + (level + Fraction(1, 2)) * grid.step + s * radius for level in range(-12, 12) for s in (-1, 1)]
        near = np.array([float(tie) for tie in ties if -1 <= tie <= 2])
        centre = np.clip(np.concatenate([near, np.nextafter(near, -9), np.nextafter(near, 9), [-1.0, 2.0]]), -1, 2)
        scores = Linear(Dense(np.ones((2, len(centre))), np.zeros(2)), np.ones(1))
        asked = BinarizedNetwork(grid, (), scores)
        region = Ball(centre, radius).region(asked)
        ends = [[grid.level(min(max(Fraction(x) + s * radius, grid.lower), grid.upper)) for x in centre] for s in (-1, 1)]
        assert [region.lower.tolist(), region.upper.tolist()] == ends
