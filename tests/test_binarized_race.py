"""The race of engines: its time limit, what is left of it when it is stopped, and engines that are not there."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qrobust.answers import Assurance, Verdict
from qrobust.binarized import (
    Ball,
    BinarizedNetwork,
    BinarizedSession,
    Block,
    Grid,
    LeastChange,
    Norm,
    Region,
    Robustness,
    TieRule,
    fold,
    race,
)
from qrobust.binarized.answers import BRANCHING, TRIAL
from qrobust.binarized.constraints import Constraints, constraints, whole_constraints
from qrobust.binarized.engines import annealing, branching, cardinality, evaluation, trial
from qrobust.binarized.engines.base import LATE, Found, Nothing, Undecided
from qrobust.binarized.enumeration import tell_apart
from qrobust.binarized.formats import save_binarized
from qrobust.errors import BackendUnavailableError, UnsoundAnswerError
from qrobust.logic.oracles import Deadline, UndecidedError
from qrobust.logic.sat import Assumptions, HittingSets
from tests.binarized import sparse_dense
from tests.test_cli import run

INPUTS = 400


def hard() -> BinarizedNetwork:
    """A dense network whose class 0 has a lead that attacks do not make up for and intervals do not prove."""
    rng = np.random.default_rng(3)
    blocks, before = [], INPUTS
    for width in (150, 150, 150):
        blocks.append(Block(sparse_dense(rng.choice([-1.0, 1.0], size=(width, before)), rng.integers(-3, 4, size=width) / 2)))
        before = width
    return BinarizedNetwork(
        Grid.of(1, 0, 1), tuple(blocks), sparse_dense(rng.choice([-1.0, 1.0], size=(3, before)), np.array([80.0, 0, 0]))
    )


def question(network: BinarizedNetwork) -> Robustness:
    """Whether class 0 keeps its lead where six of the bits may change."""
    centre = np.random.default_rng(0).integers(0, 2, size=INPUTS)
    return Robustness(network, Ball(centre.astype(float), Fraction(6), Norm.L0))


@pytest.mark.parametrize("engine", ["portfolio", "cardinality", "sat", "milp", "cp-sat", "z3"])
def test_time_limits_are_kept(engine: str) -> None:
    query = question(hard())
    with BinarizedSession() as session:
        started = time.monotonic()
        answer = session.check(query, engine=engine, seconds=3.0)
        taken = time.monotonic() - started
    assert answer.verdict is Verdict.UNKNOWN
    assert "time limit" in answer.reason
    assert 2.5 < taken < 5.0


def test_an_engine_that_does_not_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    query = question(hard())
    with BinarizedSession() as session:
        with monkeypatch.context() as patched:
            patched.setattr(race, "_kill", lambda worker: None)
            started = time.monotonic()
            answer = session.check(query, engine="sat", seconds=2.0)
            assert time.monotonic() - started < 5.0
        assert answer.verdict is Verdict.UNKNOWN
        bits = BinarizedNetwork(Grid.of(1, 0, 1), (), sparse_dense(np.eye(2)))
        kept = session.check(Robustness(bits, Ball(np.array([1.0, 0.0]), Fraction(0))), engine="sat")
        assert kept.verdict is Verdict.ROBUST


def marked(mark: str) -> list[int]:
    """The processes that have a mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if mark.encode() in environment:
                found.append(int(entry.name))
    return found


def interrupt(count: int, seconds: float, *command: str) -> None:
    """Start the program, send it SIGINT once it has so many processes, and see all end in time, with the code of that."""
    mark = f"QROBUST_TEST_MARK={uuid.uuid4().hex}"
    name, _, value = mark.partition("=")
    process = subprocess.Popen(
        [sys.executable, "-m", "qrobust", *command],
        env=os.environ | {name: value},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 30
        while len(marked(mark)) < count and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(marked(mark)) >= count, "the engines did not start"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    deadline = time.monotonic() + 3
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert marked(mark) == []


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are listed by /proc")
def test_nothing_is_left_of_a_race_that_is_interrupted(tmp_path: Path) -> None:
    save_binarized(hard(), tmp_path / "hard.npz")
    centre = np.random.default_rng(0).integers(0, 2, size=INPUTS).tolist()
    (tmp_path / "x.csv").write_text(f"{','.join(f'p{i}' for i in range(INPUTS))}\n{','.join(map(str, centre))}\n")
    files = (str(tmp_path / "hard.npz"), "--input", str(tmp_path / "x.csv"))
    interrupt(3, 10, "bnn", "verify", *files, "--eps", "6", "--norm", "l0", "--timeout", "60")


def pigeons(holes: int) -> list[list[int]]:
    """Clauses that one more pigeon than holes finds a hole of its own: there is no solution, and proofs are long."""
    birds = range(holes + 1)
    each = [[holes * bird + hole + 1 for hole in range(holes)] for bird in birds]
    return each + [[-each[a][hole], -each[b][hole]] for hole in range(holes) for a in birds for b in range(a)]


def count_in_process() -> None:
    query = question(hard())
    cardinality.decide_here(constraints(fold(query.network), query.ball.region(query.network), 0, TieRule.FIRST), 10**9)


def solve_under_assumptions() -> None:
    Assumptions(pigeons(11), []).solve([], Deadline.after(60))


def hit_sets(seconds: float = 60.0) -> None:
    rng = np.random.default_rng(0)
    with HittingSets(by_size=True) as hitting:
        for _ in range(250):
            hitting.add(frozenset(rng.choice(60, size=6, replace=False).tolist()))
        hitting.next(Deadline.after(seconds))


@pytest.mark.parametrize("work", [count_in_process, solve_under_assumptions, hit_sets])
def test_ctrl_c_stops_a_solver_in_this_process_and_so_does_a_second_one(work: Callable[[], None]) -> None:
    for _ in range(2):
        started = time.monotonic()
        with subprocess.Popen(["sh", "-c", f"sleep 1; kill -INT {os.getpid()}"]), pytest.raises(KeyboardInterrupt):
            work()
        assert time.monotonic() - started < 20


def test_hitting_sets_keep_their_deadline() -> None:
    started = time.monotonic()
    with pytest.raises(UndecidedError):
        hit_sets(1.0)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("is_exact", [False, True])
def test_a_least_change_that_floats_ruled_out_is_found_all_the_same(monkeypatch: pytest.MonkeyPatch, is_exact: bool) -> None:
    """Two bits lose the label; an engine says of fewer than four that they do not."""
    levels = np.array([1, 1, 0, 0, 0, 0, 0, 0])

    def lying(_: race.Race, names: list[str], found: Constraints, *__: object) -> tuple[race.Finish, list[race.Finish]]:
        return race.Finish(names[0], Nothing(is_exact) if found.region.most < 4 else Found(levels)), []

    monkeypatch.setattr(race.Race, "run", lying)
    network = BinarizedNetwork(Grid.of(1, 0, 1), (), sparse_dense(np.stack([np.zeros(8), np.ones(8)]), np.array([1.5, 0.0])))
    with BinarizedSession() as session:
        if is_exact:
            with pytest.raises(UnsoundAnswerError, match="which an engine has ruled out"):
                session.least_change(LeastChange(network, np.zeros(8), Norm.L0), engine="milp")
        else:
            answer = session.least_change(LeastChange(network, np.zeros(8), Norm.L0), engine="milp")
            assert (answer.lower, answer.upper) == (2, 2)


def test_an_engine_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fold(BinarizedNetwork(Grid.of(1, 0, 1), (), sparse_dense(np.eye(2))))
    monkeypatch.setattr(race, "available", lambda name: False)
    for name, wanted in (("exact", "pip install exact.*AGPL-3.0"), ("cp-sat", r"qrobust\[bnn\]")):
        with BinarizedSession() as session, pytest.raises(BackendUnavailableError, match=wanted):
            session.check(Robustness(found.network, Ball(np.array([1.0, 0.0]), Fraction(1))), engine=name)


def test_the_portfolio_is_what_is_installed_and_fits_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    query = question(hard())
    found = constraints(fold(query.network), query.ball.region(query.network), 0, TieRule.FIRST)
    sparse = replace(found, matrix=found.matrix * (np.arange(found.matrix.shape[1]) == 0))
    sparse.matrix.eliminate_zeros()
    assert found.density > race.DENSE >= sparse.density
    everything = {"cardinality", "sat", "milp", "cp-sat", "z3", "exact"}
    for asked, cores, there, lanes in (
        (found, 4, everything, ["milp", "cp-sat", "exact", "sat", "cardinality"]),
        (sparse, 4, everything, ["cardinality", "sat", "exact", "cp-sat", "milp"]),
        (found, 3, everything, ["milp", "cp-sat", "sat", "cardinality"]),
        (found, 1, everything - {"exact"}, ["milp", "sat", "cardinality"]),
        (found, 4, {"milp", "z3"}, ["milp", "z3"]),
    ):
        monkeypatch.setattr(race, "_cores", lambda cores=cores: cores)
        monkeypatch.setattr(race, "available", lambda name, there=there: name in there)
        assert race.engine_names("portfolio", asked) == ["annealing", *lanes]


def test_what_is_small_enough_is_tried_in_a_lane_too() -> None:
    network = hard()
    ball = Ball(np.zeros(INPUTS), Fraction(0))
    box = ball.region(network)
    for free, wanted, split in ((12, True, True), (100, False, True), (300, False, False)):
        region = Region(box.centre, box.lower, box.upper + (np.arange(INPUTS) < free))
        found = whole_constraints(fold(network), region, fold(network).rivals(0, TieRule.FIRST))
        names = race.engine_names("portfolio", found, 10.0)
        assert (TRIAL in names, BRANCHING in names) == (wanted, split)
    for changes, wanted in ((2, True), (12, False)):
        asked = Ball(np.zeros(INPUTS), Fraction(changes), Norm.L0)
        found = whole_constraints(fold(network), asked.region(network), fold(network).rivals(0, TieRule.FIRST))
        names = race.engine_names("portfolio", found, 10.0)
        assert (TRIAL in names, BRANCHING in names) == (wanted, False)


def test_more_inputs_than_a_float_counts_are_left_to_others() -> None:
    """52 levels of 400 inputs: 10**686 inputs."""
    network = replace(hard(), grid=Grid.of("1/51", 0, 1))
    region = Ball(np.full(INPUTS, 0.5), Fraction(1, 2)).region(network)
    found = constraints(fold(network), region, 0, TieRule.FIRST)
    assert TRIAL not in race.engine_names("portfolio", found, 10.0)
    assert not isinstance(trial.decide(found, 0.1), Nothing)


def test_annealing_and_trial_find_the_one_input_that_loses_the_label() -> None:
    """Of 14 bits the first seven are to be set and the others not: one input of 16,384, at an L1 distance of seven."""
    bits = 14
    weight = np.where(np.arange(bits) < bits // 2, 1.0, -1.0)
    block = Block(sparse_dense(weight[None], np.array([0.5 - bits // 2])))
    network = BinarizedNetwork(Grid.of(1, 0, 1), (block,), sparse_dense(np.array([[-1.0], [1.0]])))
    with BinarizedSession() as session:
        for engine, ball in (
            ("branching", Ball(np.zeros(bits), Fraction(1))),
            ("trial", Ball(np.zeros(bits), Fraction(1))),
            ("trial", Ball(np.zeros(bits), Fraction(7), Norm.L0)),
            ("annealing", Ball(np.zeros(bits), Fraction(1))),
            ("annealing", Ball(np.zeros(bits), Fraction(7), Norm.L1)),
        ):
            found = session.check(Robustness(network, ball), engine=engine, seconds=20.0)
            assert (found.verdict, found.engine) == (Verdict.VIOLATED, engine)
            assert found.witness is not None
            assert found.witness.levels.tolist() == (weight > 0).astype(int).tolist()
        short = Ball(np.zeros(bits), Fraction(6), Norm.L1)
        answer = session.check(Robustness(network, short), engine="annealing", seconds=0.5)
        assert (answer.verdict, answer.reason) == (Verdict.UNKNOWN, "annealing: no input was found")
        answer = session.check(Robustness(network, short), engine="trial")
        assert answer.verdict is Verdict.ROBUST


def test_rows_are_the_same_dense_and_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    query = question(hard())
    found = constraints(fold(query.network), query.ball.region(query.network), 0, TieRule.FIRST)
    states = np.random.default_rng(0).integers(0, found.states + 1, size=(50, found.columns)).astype(np.float32)
    dense = evaluation.Evaluation(found).leads(states)
    monkeypatch.setattr(evaluation, "MOST_ENTRIES", 0)
    np.testing.assert_array_equal(evaluation.Evaluation(found).leads(states), dense)
    values = np.array([found.columns_of(found.input_levels(state.astype(np.int64))) for state in states])
    np.testing.assert_array_equal((found.rivals @ values.T).T - found.rival_threshold, dense)


def test_inputs_of_a_ball_are_tried_in_time() -> None:
    """Of 400 bits, two changes at most are 80,201 inputs; three are 10 million, which end at the limit."""
    network, seconds = hard(), 0.2
    for changes in (2, 3):
        region = Ball(np.zeros(INPUTS), Fraction(changes), Norm.L0).region(network)
        found = whole_constraints(fold(network), region, fold(network).rivals(0, TieRule.FIRST))
        assert tell_apart(found, trial.MOST_INPUTS) == sum(math.comb(INPUTS, count) for count in range(changes + 1))
    started = time.monotonic()
    outcome = trial.decide(replace(found, rival_threshold=found.rival_threshold + 10**5), seconds)
    assert outcome == Undecided(LATE)
    assert time.monotonic() - started < seconds + 1.0


def test_counting_the_inputs_of_a_ball_on_a_fine_grid_is_given_up_at_once() -> None:
    """20 inputs of 2,001 levels, 4,000,000 squared levels away: adding up the ways of each cost would take long."""
    network = replace(hard(), grid=Grid.of("1/2000", 0, 1))
    ball = Ball(np.full(INPUTS, 0.5), Fraction(1), Norm.L2).region(network)
    is_free = np.arange(INPUTS) < 20
    lower, upper = np.where(is_free, ball.lower, ball.centre), np.where(is_free, ball.upper, ball.centre)
    region = Region(ball.centre, lower, upper, ball.norm, ball.most)
    found = whole_constraints(fold(network), region, fold(network).rivals(0, TieRule.FIRST))
    started = time.monotonic()
    assert tell_apart(found, trial.MOST_INPUTS) is None
    assert time.monotonic() - started < 1.0


def test_a_box_is_split_only_where_twice_its_sums_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """It adds up twice the middles of what sums may be; trying one input at a time does not."""
    network = hard()
    region = Ball(np.zeros(INPUTS), Fraction(1)).region(network)
    region = replace(region, upper=np.where(np.arange(INPUTS) < 8, region.upper, region.lower))
    found = whole_constraints(fold(network), region, fold(network).rivals(0, TieRule.FIRST))
    sizes = [
        abs(matrix) @ found.ranges + np.abs(limit)
        for matrix, limit in ((found.matrix, found.threshold), (found.rivals, found.rival_threshold))
    ]
    greatest = int(max(each.max() for each in sizes))
    for most, exact in ((2 * greatest + 2, True), (2 * greatest, False), (greatest + 1, False)):
        monkeypatch.setattr(evaluation, "MOST_SUM", most)
        assert isinstance(branching.decide(found, 10.0), Undecided) is not exact
        assert not isinstance(trial.decide(found, 10.0), Undecided)


@pytest.mark.parametrize("parts", [1, 5, 128])
def test_a_box_is_split_to_its_end_however_few_parts_at_once(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Of three numbers each is more than the next, in a circle: two of these can hold, not three; intervals allow it."""
    monkeypatch.setattr(branching, "PARTS", parts)
    block = Block(sparse_dense(np.eye(3) - np.roll(np.eye(3), 1, axis=1), np.full(3, -0.5)))
    for lead, kind in ((0.5, Found), (2.5, Nothing)):
        output = sparse_dense(np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), np.array([lead, 0.0]))
        network = BinarizedNetwork(Grid.of(1, 0, 9), (block,), output)
        region = Ball(np.full(3, 4.0), Fraction(5)).region(network)
        found = whole_constraints(fold(network), region, fold(network).rivals(0, TieRule.FIRST))
        assert isinstance(branching.decide(found, 10.0), kind)


def test_a_box_that_cannot_be_split_to_its_end_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    network = hard()
    region = Ball(np.zeros(INPUTS), Fraction(1)).region(network)
    found = constraints(fold(network), region, 0, TieRule.FIRST)
    started = time.monotonic()
    assert branching.decide(replace(found, rival_threshold=found.rival_threshold + 20), 0.5) == Undecided(LATE)
    assert time.monotonic() - started < 2.0
    monkeypatch.setattr(branching, "MOST_BYTES", 2**20)
    for asked, why in ((found, "too many inputs"), (replace(found, region=replace(region, norm=Norm.L0)), "only boxes")):
        outcome = branching.decide(asked, 0.5)
        assert isinstance(outcome, Undecided)
        assert why in outcome.reason


def test_a_proof_by_trial_is_our_own() -> None:
    """Of two bits, not each is more than the other, and intervals do not see it."""
    apart = Block(sparse_dense(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.full(2, -0.5)))
    network = BinarizedNetwork(
        Grid.of(1, 0, 1), (apart,), sparse_dense(np.array([[-1.0, -1.0], [1.0, 1.0]]), np.array([1.0, -1.0]))
    )
    with BinarizedSession() as session:
        answer = session.check(Robustness(network, Ball(np.zeros(2), Fraction(1))), engine="trial")
    assert (answer.verdict, answer.engine, answer.exact) == (Verdict.ROBUST, "trial", True)
    assert answer.assurance is Assurance.ROUNDED


def test_sums_that_float32_cannot_hold_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    query = question(hard())
    found = constraints(fold(query.network), query.ball.region(query.network), 0, TieRule.FIRST)
    monkeypatch.setattr(evaluation, "MOST_SUM", 8)
    box = replace(found, region=replace(found.region, norm=Norm.LINF))
    for outcome in (annealing.decide(found, 1.0), trial.decide(found, 1.0), branching.decide(box, 1.0)):
        assert isinstance(outcome, Undecided)
        assert "float32" in outcome.reason


def test_the_doctor_tries_each_engine(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "doctor")
    for name in (name for name in race.ENGINES if name != race.ANNEALING):
        state = "works" if race.available(name) else "missing"
        assert any(line.startswith(state) and f"bnn engine {name}:" in line for line in out.splitlines())
