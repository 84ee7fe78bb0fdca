"""Attacks by name: every result replayed by the definition, optima against trying every input, time limits kept."""

from __future__ import annotations

import itertools
import json
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qrobust.answers import Verdict
from qrobust.binarized import (
    Ball,
    BinarizedNetwork,
    Block,
    Grid,
    Method,
    Norm,
    Robustness,
    TieRule,
    attacks,
    run_attack,
)
from qrobust.binarized.engines.highs import ElasticRows, Program, maximise
from qrobust.binarized.formats import save_binarized
from qrobust.binarized.goal import Best, Goal
from qrobust.errors import DomainError, NumberError, UnsupportedError
from qrobust.layers import IntArray
from tests.binarized import sleeping, sparse_dense
from tests.test_binarized import Case, plain_scores
from tests.test_cli import refused, run

SEEDS = range(4)
CASES = 15


def query(case: Case) -> Robustness:
    return Robustness(case.network, case.ball, case.label, case.tie, case.zero)


def takes(case: Case, levels: IntArray, rivals: list[int]) -> bool:
    """Whether a rival has the label, by the definition in rationals."""
    scores = plain_scores(case.network, levels, case.zero)
    own = scores[case.label]
    level = {TieRule.RIVAL: rivals, TieRule.LABEL: [], TieRule.FIRST: [r for r in rivals if r < case.label]}[case.tie]
    return any(scores[r] > own for r in rivals) or any(scores[r] == own for r in level)


def leads(case: Case, rivals: list[int]) -> list[Fraction]:
    """The greatest lead of a rival at each input of the region."""
    found = case.folded.scores(case.levels[case.inside])
    unit = case.folded.score_unit
    return [max(Fraction(int(scores[r] - scores[case.label]), unit) for r in rivals) for scores in found]


@pytest.mark.parametrize("method", list(Method))
def test_every_result_replays(method: Method) -> None:
    hits = tried = 0
    for number in range(60):
        case = Case(7000 + number)
        if method is Method.IPROP and case.region.norm is not Norm.LINF:
            continue
        others = [r for r in range(case.network.outputs) if r != case.label]
        for target in ("any", others[0]):
            found = run_attack(query(case), method, target=target, seconds=5.0, seed=number)
            rivals = others if target == "any" else others[:1]
            assert case.region.contains(found.levels)
            assert found.hits == takes(case, found.levels, rivals)
            scores = plain_scores(case.network, found.levels, case.zero)
            assert found.lead == scores[found.rival] - scores[case.label]
            assert found.lead >= found.first_lead or found.hits
            assert (found.verdict is Verdict.VIOLATED) == found.hits
            assert not found.hits or case.violated
            hits, tried = hits + found.hits, tried + case.violated
    assert 0 < hits <= 2 * tried


@pytest.mark.parametrize("seed", SEEDS)
def test_the_program_finds_the_greatest_lead(seed: int) -> None:
    norms = set()
    for number in range(CASES):
        case = Case(8000 + 100 * seed + number)
        others = [r for r in range(case.network.outputs) if r != case.label]
        found = run_attack(query(case), Method.MILP, seconds=20.0, stop_at_hit=False)
        greatest = max(leads(case, others))
        assert found.optimal
        assert found.lead == greatest, f"case {number}: {found}"
        one = run_attack(query(case), Method.MILP, target=others[-1], seconds=20.0, stop_at_hit=False)
        assert one.lead == max(leads(case, others[-1:]))
        norms.add(case.region.norm)
    assert len(norms) > 2


def test_target_propagation_finds_most_of_what_there_is() -> None:
    hit = there = 0
    for number in range(600):
        case = Case(9000 + number)
        if case.region.norm is Norm.LINF and case.network.blocks and case.violated:
            there += 1
            hit += run_attack(query(case), Method.IPROP, seconds=5.0).hits
    assert there > 15
    assert hit >= 0.7 * there  # it is a heuristic: signs that no input gives may be asked for


def wide(*hidden: int) -> tuple[BinarizedNetwork, Ball]:
    """A dense network of random signs, and a ball."""
    rng = np.random.default_rng(0)
    sizes = (64, *hidden, 4)
    layers = [sparse_dense(rng.choice([-1.0, 1.0], size=(b, a)), np.full(b, 0.5)) for a, b in itertools.pairwise(sizes)]
    network = BinarizedNetwork(Grid.of(1, 0, 255), tuple(Block(layer) for layer in layers[:-1]), layers[-1])
    return network, Ball(np.rint(rng.random(64) * 255), Fraction(20))


@pytest.mark.parametrize("method", list(Method))
def test_time_limits_are_kept_and_what_was_found_is_given(method: Method) -> None:
    network, ball = wide(60) if method is Method.IPROP else wide(60, 60)
    started = time.monotonic()
    found = run_attack(Robustness(network, ball), method, seconds=1.0, stop_at_hit=False)
    assert time.monotonic() - started < 3.0
    assert not found.optimal
    assert found.lead > found.first_lead
    assert [lead for _, lead in found.trace] == sorted(lead for _, lead in found.trace)
    assert [seconds for seconds, _ in found.trace] == sorted(seconds for seconds, _ in found.trace)


def test_what_leaves_the_region_or_gains_nothing_is_not_taken() -> None:
    case = next(case for case in map(Case, range(7000, 7100)) if not case.inside.all() and case.inside.sum() > 1)
    rivals = tuple(r for r in range(case.network.outputs) if r != case.label)
    best = Best(Goal(case.folded, case.label, rivals, case.tie), case.region, 1.0, True)
    assert not best.offer(case.levels[~case.inside])
    assert best.offer(case.region.centre[None])
    assert not best.offer(case.region.centre[None])
    assert best.lead == case_lead(case, best)


def case_lead(case: Case, best: Best) -> Fraction:
    scores = plain_scores(case.network, best.levels, case.zero)
    return scores[best.rival] - scores[case.label]


def test_a_program_starts_from_what_it_is_given() -> None:
    from scipy import sparse

    rng = np.random.default_rng(0)
    weights = rng.integers(1, 1000, size=(30, 200))
    whole = sparse.csr_array(weights)
    limits = weights.sum(axis=1) / 2
    ones = np.ones(200, dtype=np.int64)
    program = Program(whole, np.full(30, -np.inf), limits, rng.random(200) + 1, 0 * ones, ones)
    start = (np.arange(200) < 60).astype(np.int64)
    assert (whole @ start <= limits).all()
    found = maximise(program, 0.01, start=start).values
    assert found is not None
    assert program.cost @ found >= program.cost @ start


def test_elastic_rows_are_met_where_they_can_be_one_target_after_another() -> None:
    from scipy import sparse

    rng = np.random.default_rng(0)
    matrix = rng.integers(-3, 4, size=(8, 40))
    lower, upper = np.full(40, -9), np.full(40, 9)
    rows = ElasticRows(sparse.csr_array(matrix), lower, upper, np.zeros(40, dtype=np.int64))
    threshold = np.zeros(8, dtype=np.int64)
    for _ in range(20):
        inside = rng.integers(-9, 10, size=40)
        target = np.where(matrix @ inside >= 20, 1, np.where(matrix @ inside <= -20, -1, 0))  # wide of every threshold
        found = rows.nearest(target, threshold, np.ones(8), 5.0)
        assert found is not None
        assert ((found > lower - 1e-6) & (found < upper + 1e-6)).all()
        sums = matrix @ found
        assert (sums[target > 0] >= 2.99).all()
        assert (sums[target < 0] <= -3.99).all()


def test_elastic_rows_fall_short_where_weights_are_less() -> None:
    from scipy import sparse

    rows = ElasticRows(sparse.csr_array(np.array([[1], [1]])), np.array([-10]), np.array([10]), np.array([0]))
    both = np.array([1, -1]), np.zeros(2, dtype=np.int64)  # no value is above and below 0
    up = rows.nearest(*both, np.array([2.0, 1.0]), 5.0)
    down = rows.nearest(*both, np.array([1.0, 2.0]), 5.0)
    assert up is not None
    assert down is not None
    assert up[0] >= 2.99
    assert down[0] <= -3.99


def test_target_propagation_gains_more_than_steps_of_the_derivative() -> None:
    network, ball = wide(60, 60)
    asked = Robustness(network, ball)
    found = run_attack(asked, Method.IPROP, target="second", seconds=5.0, stop_at_hit=False)
    steps = run_attack(asked, Method.IFGSM, target="second", seconds=5.0, stop_at_hit=False)
    assert found.lead > steps.lead


def test_another_use_of_highs_in_the_process_does_not_matter() -> None:
    import highspy
    from scipy import sparse

    other = highspy.Highs()
    other.setOptionValue("output_flag", False)
    other.setOptionValue("threads", 2)
    other.run()
    ones = np.ones(3, dtype=np.int64)
    program = Program(sparse.csr_array(np.ones((1, 3))), np.array([-np.inf]), np.array([2.0]), np.ones(3), 0 * ones, ones)
    found = maximise(program, 5.0)
    assert found.optimal
    assert found.values is not None
    assert found.values.sum() == 2


def test_bad_questions_are_refused() -> None:
    network, ball = wide(60)
    with pytest.raises(NumberError, match="time limit"):
        run_attack(Robustness(network, ball), Method.FGSM, seconds=0.0)
    with pytest.raises(DomainError, match="target is 4"):
        run_attack(Robustness(network, ball, 0), Method.FGSM, target=4)
    with pytest.raises(DomainError, match="not the label 0"):
        run_attack(Robustness(network, ball, 0), Method.FGSM, target=0)
    with pytest.raises(UnsupportedError, match="use milp"):
        run_attack(Robustness(network, Ball(ball.centre, Fraction(2), Norm.L1)), Method.IPROP)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Label 1 where two or more of three bits are set, by one neuron; else label 0."""
    block = Block(sparse_dense(np.ones((1, 3)), np.array([-1.5])))
    network = BinarizedNetwork(Grid.of(1, 0, 1), (block,), sparse_dense(np.array([[-1.0], [1.0]])), classes=("few", "many"))
    path = tmp_path / "majority.json"
    save_binarized(network, path)
    return path


@pytest.mark.parametrize("method", [method.value for method in Method])
def test_the_command(capsys: pytest.CaptureFixture[str], model: Path, method: str) -> None:
    asked = ("bnn", "attack", str(model), "--input", "0, 0, 0", "--method", method)
    code, out, _ = run(capsys, *asked, "--eps", "1", "--target", "second", "--json")
    document = json.loads(out)
    assert (code, document["verdict"], document["new_label"], document["lead"]) == (1, "VIOLATED", 1, 2.0)
    assert sum(document["levels"]) >= 2
    code, out, _ = run(capsys, *asked, "--eps", "0")
    assert code == 3
    assert out.startswith("UNKNOWN: within linf distance 0 of the input, the score of many less that of few goes from -2 to -2")


def test_the_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    asked = ("bnn", "attack", str(model), "--input", "0, 0, 0")
    assert "--target is 'x'" in refused(capsys, *asked, "--eps", "1", "--target", "x")
    assert "target is 9" in refused(capsys, *asked, "--eps", "1", "--target", "9")
    assert "give --eps" in refused(capsys, *asked)
    assert "use milp" in refused(capsys, *asked, "--eps", "1", "--norm", "l1", "--method", "iprop")


def test_an_integer_program_that_overruns_its_limit_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = query(Case(8000))
    assert run_attack(asked, Method.MILP, seconds=20.0, stop_at_hit=False).optimal
    monkeypatch.setattr(attacks, "SMALL_PROGRAM", 0)
    assert run_attack(asked, Method.MILP, seconds=20.0, stop_at_hit=False).optimal  # in another process
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))  # where the process finds what it is to call
    monkeypatch.setattr(attacks, "maximise", sleeping)
    started = time.monotonic()
    found = run_attack(asked, Method.MILP, seconds=2.0, stop_at_hit=False)
    assert time.monotonic() - started < 20  # what sleeps would sleep for a minute
    assert not found.optimal
