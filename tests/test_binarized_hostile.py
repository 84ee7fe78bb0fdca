"""What a hostile or hurried user of `qrobust bnn` meets: counterexamples in their ball, mistakes said, time limits, Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qrobust.answers import Verdict
from qrobust.binarized import (
    Ball,
    BinarizedNetwork,
    BinarizedSession,
    Block,
    Box,
    Grid,
    InputRounding,
    LabelChange,
    LeastChange,
    Norm,
    Robustness,
    solve,
)
from qrobust.binarized.attacks import Method, run_attack
from qrobust.binarized.formats import save_binarized
from qrobust.binarized.maps import Asked, Shown
from qrobust.errors import DomainError, ShapeError, UnsupportedError
from tests.binarized import all_levels, network, sparse_dense
from tests.test_cli import refused, run

MNIST = Path(__file__).parent.parent / "models" / "bnn_ternary_l1_stable.npz"
STUCK_SECONDS = 90  # by then a command that keeps its limit of seconds has long ended, on any machine
PIGEONS = """
import itertools, sys
from qrobust.logic.oracles import Deadline
from qrobust.logic.sat import Assumptions
count = 12
clauses = [[p * count + h + 1 for h in range(count)] for p in range(count + 1)]
clauses += [[-(p * count + h + 1), -(q * count + h + 1)]
            for h in range(count) for p, q in itertools.combinations(range(count + 1), 2)]
solver = Assumptions(clauses, [])
print("solving", flush=True)
try:
    solver.solve([], Deadline.after(600))
except KeyboardInterrupt:
    sys.exit(130)
"""
PARITY = """
import itertools, sys
import numpy as np
from qrobust.binarized import Ball, BinarizedNetwork, BinarizedSession, Block, Grid
from qrobust.binarized.constraints import constraints
from qrobust.binarized.engines.cardinality import decide_here
from qrobust.binarized.folding import TieRule, fold
from qrobust.binarized.queries import Box
from tests.binarized import sparse_dense
rng = np.random.default_rng(0)
hidden = [rng.choice([-1.0, 1.0], size) for size in ((60, 60), (60, 60), (60, 60))]
blocks = [Block(sparse_dense(weight, np.full(60, 0.5))) for weight in hidden]
last = sparse_dense(np.array([np.ones(60), -np.ones(60)]), np.array([0.0, 54.0]))
found = BinarizedNetwork(Grid.of(1, 0, 1), tuple(blocks), last)
region = Box(np.zeros(60), np.ones(60)).region(found)
integers = fold(found)
print("solving", flush=True)
try:
    decide_here(constraints(integers, region, int(integers.labels(region.centre[None])[0]), TieRule.FIRST), 10**9)
except KeyboardInterrupt:
    sys.exit(130)
"""


def two_bits(grid: Grid) -> BinarizedNetwork:
    """Label 1 where both inputs see 1 or more; else label 0."""
    block = Block(sparse_dense(np.ones((1, 2)), np.array([-2.0])))
    return BinarizedNetwork(grid, (block,), sparse_dense(np.array([[-1.0], [1.0]])))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "and.json"
    save_binarized(two_bits(Grid.of(1, 0, 1)), path)
    return path


def test_a_counterexample_lies_in_its_ball(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Levels of step 1 from 0.4 and 0.45 within 0.125: both reach 1/2 and above; on the grid they would be 1, far outside."""
    found = two_bits(Grid.of(1, 0, 1, 0, InputRounding.HALF_UP))
    save_binarized(found, tmp_path / "m.json")
    where = ["--input", "0.4, 0.45", "--eps", "1/8", "--json"]
    for command in ("verify", "attack"):
        code, out, _ = run(capsys, "bnn", command, str(tmp_path / "m.json"), *where)
        document = json.loads(out)
        assert code == 1
        shown = document["input"] if command == "attack" else document["counterexample"]["input"]
        assert shown == [0.5, 0.5]
    code, out, _ = run(capsys, "bnn", "verify", str(tmp_path / "m.json"), "--input", "0.5, 0.5", "--eps", "0", "--json")
    assert json.loads(out)["label"] == 1  # it can be given back


@pytest.mark.parametrize("seed", range(20))
def test_counterexamples_of_random_balls_replay_as_inputs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = network(rng)
    rule = list(InputRounding)[seed % 3]
    grid = Grid(found.grid.step, found.grid.lower, found.grid.upper, found.grid.offset, rule)
    found = BinarizedNetwork(grid, found.blocks, found.output)
    low, high = float(grid.lower), float(grid.upper)
    with BinarizedSession() as session:
        for _ in range(10):
            centre = np.clip(np.round(low + (high - low) * rng.random(found.inputs), int(rng.integers(1, 6))), low, high)
            ball = Ball(centre, Fraction(int(rng.integers(0, 9)), 8) * (grid.upper - grid.lower))
            answer = session.check(Robustness(found, ball))
            shown, taken = answer.inputs, run_attack(Robustness(found, ball), Method.FGSM)
            pairs = [] if shown is None or answer.witness is None else [(shown, answer.witness.levels)]
            for x, levels in [*pairs, (taken.to_json()["input"], taken.levels)]:
                assert (grid.levels(np.array(x)) == levels).all()
                for value, own in zip(x, centre.tolist(), strict=True):
                    near = Fraction(np.nextafter(value, own))  # the ball may end between two floats
                    assert abs(near - Fraction(own)) <= ball.radius


def test_a_map_of_networks_that_cannot_be_compared_is_refused(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    finer, wider = two_bits(Grid.of("1/2", 0, 1)), network(np.random.default_rng(0))
    save_binarized(finer, tmp_path / "finer.json")
    save_binarized(wider, tmp_path / "wider.json")
    command = ["bnn", "map", str(model), "--axes", "1, 2", "--copy"]
    assert "round their inputs differently" in refused(capsys, *command, str(tmp_path / "finer.json"))
    assert "cannot be compared" in refused(capsys, *command, str(tmp_path / "wider.json"))
    with pytest.raises(UnsupportedError, match="round their inputs differently"):
        Asked(two_bits(Grid.of(1, 0, 1)), Shown.CHANGE, finer)
    with pytest.raises(UnsupportedError, match="round their inputs differently"):
        LabelChange(two_bits(Grid.of(1, 0, 1)), finer, Ball(np.zeros(2), Fraction(0)))
    with pytest.raises(ShapeError, match="cannot be compared"):
        Asked(finer, Shown.CHANGE, wider)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["verify", "MODEL", "--input", "0,0", "--eps", "0", "--engine", "abacus"], "no engine 'abacus'"),
        (["verify", "MODEL", "--input", "1,1", "--eps", "1", "--seed", "-1"], "--seed"),
        (["attack", "MODEL", "--input", "1,1", "--eps", "1", "--seed", "-1"], "--seed"),
        (["verify", "MODEL", "--input", "1,1", "--eps", "1", "--step", "1/2", "--range", "0:1"], "says itself"),
        (["count", "MODEL", "--label", "0", "--step", "1/2", "--range", "0:1"], "says itself"),
        (["verify", "MODEL", "--input", "1,1", "--eps", "1", "--rounding", "down"], "'down', give one of"),
        (["verify", "MODEL", "--input", "1,1", "--eps", "1", "--rounding", "half-up"], "a rounding with both"),
        (["verify", "MODEL", "--box", "0:1, 1:0"], "lower end 1 of input 2 is above its upper end 0"),
        (["verify", "models/iris.json", "--input", "5,3,4,1", "--eps", "1"], "by their scheme"),
    ],
)
def test_mistakes_are_said(capsys: pytest.CaptureFixture[str], model: Path, options: list[str], message: str) -> None:
    assert message in refused(capsys, "bnn", *(str(model) if option == "MODEL" else option for option in options))


def test_the_files_own_grid_may_be_named(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    own = ["--step", "1", "--range", "0:1"]
    assert run(capsys, "bnn", "verify", str(model), "--input", "0, 0", "--eps", "0", *own)[0] == 0


def test_crossed_ends_are_no_box() -> None:
    with pytest.raises(DomainError, match="input 1 is above"):
        Box(np.array([1.0, 0.0]), np.array([0.0, 1.0]))


def test_compilation_keeps_its_time_limit() -> None:
    """One step over 784 inputs of three levels takes minutes, and hears no signal."""
    command = [sys.executable, "-m", "qrobust", "bnn", "compile", str(MNIST), "--timeout", "5"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=STUCK_SECONDS)
    assert done.returncode == 2
    assert "time limit" in done.stderr


@pytest.mark.parametrize("script", [PIGEONS, PARITY])
def test_ctrl_c_of_a_solver_in_this_process_is_ctrl_c(script: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "solving\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=STUCK_SECONDS)
    assert (process.returncode, error) == (130, "")


def test_a_solver_in_this_process_keeps_its_time_limit() -> None:
    """One that looks at no limit for more than a minute."""
    script = (
        PARITY.replace(", 10**9)", ", 10**9, 1.0)").replace("    decide_here(", "    outcome = decide_here(")
        + "print(outcome)\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=STUCK_SECONDS)
    assert done.stdout.splitlines()[1:] == ["Undecided(reason='the time limit was reached')"], done.stderr
    assert time.monotonic() - started < STUCK_SECONDS / 3


def test_a_count_of_many_inputs_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bnn", "count", str(MNIST), "--label", "0", "--counter", "approximate", "--epsilon", "0.2", "--delta", "0.1"]
    code, out, _ = run(capsys, *command)
    assert code == 0
    assert "of about 1.1563e+374 (" in out  # 3 ** 784
    document = json.loads(run(capsys, *command, "--json")[1])
    assert document["inputs"] == 3**784


def test_a_features_bar_goes_from_end_to_end(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    command = ["bnn", "explain", str(model), "--input", "0, 1", "--picture", str(tmp_path / "why")]
    code, _, _ = run(capsys, *command)
    assert code == 0
    drawn = (tmp_path / "why.svg").read_text()
    assert all(f"<!-- {end} -->" in drawn for end in ("0", "1"))


def test_all_levels_are_met() -> None:
    """The floats nearest to an input, level by level, whatever the rounding of ties."""
    for rule in InputRounding:
        grid = Grid.of("0.61", 0, 1, "-0.1", rule)
        found = BinarizedNetwork(grid, (), sparse_dense(np.eye(2)))
        for own in (0.0, 0.2, 0.5, 1.0):
            centre = np.full(2, own)
            for levels in all_levels(found):
                near = grid.nearest(centre, levels)
                assert (grid.levels(near) == levels).all()
                assert (grid.levels(np.nextafter(near, centre)) == levels).tolist() == (near == centre).tolist()


def test_a_label_that_nothing_loses_is_decided(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Class 1 scores 1 and class 0 nothing, whatever the inputs."""
    path, points = tmp_path / "always.json", tmp_path / "points.csv"
    save_binarized(BinarizedNetwork(Grid.of(1, 0, 1), (), sparse_dense(np.zeros((2, 2)), np.array([0.0, 1.0]))), path)
    points.write_text("a,b\n0,0\n0,1\n")
    code, out, _ = run(capsys, "bnn", "verify", str(path), "--input", "0, 1", "--least", "--norm", "l1")
    assert code == 0
    assert "no input loses the label" in out
    code, out, _ = run(capsys, "bnn", "verify", str(path), "--input", str(points), "--rows", ":", "--least")
    assert code == 0
    assert out.splitlines()[1:] == ["  no input loses the label: rows 1, 2"]


@pytest.mark.parametrize("norm", list(Norm))
def test_a_least_change_out_of_time_has_both_ends(monkeypatch: pytest.MonkeyPatch, norm: Norm) -> None:
    """Nothing is decided in time: a witness comes all the same, by an attack."""
    unknown = solve._Decision(Verdict.UNKNOWN, "sat", True, reason="the time limit was reached")
    monkeypatch.setattr(BinarizedSession, "_decide", lambda *_: unknown)
    found = two_bits(Grid.of(1, 0, 1))
    with BinarizedSession() as session:
        answer = session.least_change(LeastChange(found, np.zeros(2), norm))
    assert answer.lower == 0
    assert answer.witness is not None
    assert answer.witness.levels.tolist() == [1, 1]
    assert answer.upper == (1 if norm is Norm.LINF else 2)
    assert not answer.is_never_lost


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ("0,1,1\n1,0,0\n", ["--hidden", "-3, 5"], "whole numbers of neurons"),
        ("0,1,1\n1,0,0\n", ["--hidden", "2.5"], "whole numbers of neurons"),
        ("0,1,1\n1,0,0\n", ["--hidden", "0, 5"], "whole numbers of neurons"),
        ("0,1,1\n1,0,0\n", ["--hidden", "1000000000"], "at most 100,000,000 are trained"),
        ("0,1,1000000000\n1,0,0\n", [], "at most 100,000,000 are trained"),
        ("0,1,1\n1,0,0\n", ["--image", "1, 1, 2"], "add --architecture small-conv"),
    ],
)
def test_what_cannot_be_trained_is_said_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, rows: str, options: list[str], message: str
) -> None:
    (tmp_path / "t.csv").write_text("a,b,class\n" + rows)
    command = ["bnn", "train", str(tmp_path / "t.csv"), "--output", str(tmp_path / "m.npz"), *options]
    assert message in refused(capsys, *command)


def test_explanations_are_told_once_on_a_terminal(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["bnn", "explain", str(model), "--input", "0, 0", "--all"]
    _, out, err = run(capsys, *command)
    found = [line for line in out.splitlines() if line.startswith("abductive")]
    assert len(found) == err.count("abductive") == 2  # either input alone, here on two streams
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    _, out, err = run(capsys, *command)
    assert (out + err).count("abductive") == 2


@pytest.mark.parametrize("stride", [1, 10**6])
def test_a_small_file_of_a_huge_layer_is_refused(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path, stride: int
) -> None:
    document = json.loads(model.read_text())
    shape = {"input_shape": [1, 10**6, 10**6], "stride": [stride, stride]}
    document["layers"] = [{"type": "conv2d", "weight": [[[[1]]], [[[-1]]]]} | shape]
    (tmp_path / "huge.json").write_text(json.dumps(document))
    found = refused(capsys, "bnn", "verify", str(tmp_path / "huge.json"), "--input", "0, 0", "--eps", "0")
    assert "a layer has 1,000,000,000,000 inputs" in found


def test_a_maps_axes_have_units(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    grid = ["--scheme", "ternary", "--step", "1", "--range", "0:8", "--axes", "3, 4", "--input", "6, 3, 4, 1"]
    assert run(capsys, "bnn", "map", "models/iris.json", *grid, "--plot", str(tmp_path / "map"))[0] == 0
    assert "petal width [cm]" in (tmp_path / "map.svg").read_text()
