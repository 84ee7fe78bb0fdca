"""The race of engines: its time limit, what is left of it when it is stopped, and engines that are not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qrobust.answers import Verdict
from qrobust.binarized import Ball, BinarizedNetwork, BinarizedSession, Block, Grid, Norm, Robustness, TieRule, fold, race
from qrobust.binarized.constraints import constraints
from qrobust.binarized.formats import save_binarized
from qrobust.errors import BackendUnavailableError
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


@pytest.mark.parametrize("engine", ["portfolio", "sat", "milp", "cp-sat", "z3"])
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


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are listed by /proc")
def test_nothing_is_left_of_a_race_that_is_interrupted(tmp_path: Path) -> None:
    network = hard()
    save_binarized(network, tmp_path / "hard.npz")
    centre = np.random.default_rng(0).integers(0, 2, size=INPUTS).tolist()
    (tmp_path / "x.csv").write_text(f"{','.join(f'p{i}' for i in range(INPUTS))}\n{','.join(map(str, centre))}\n")
    mark = f"QROBUST_TEST_MARK={uuid.uuid4().hex}"
    name, _, value = mark.partition("=")
    command = [sys.executable, "-m", "qrobust", "bnn", "verify", str(tmp_path / "hard.npz"), "--input", str(tmp_path / "x.csv")]
    process = subprocess.Popen(
        [*command, "--eps", "6", "--norm", "l0", "--timeout", "60"],
        env=os.environ | {name: value},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 30
        while len(marked(mark)) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(marked(mark)) >= 3, "the engines did not start"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    deadline = time.monotonic() + 3
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert marked(mark) == []


def test_an_engine_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fold(BinarizedNetwork(Grid.of(1, 0, 1), (), sparse_dense(np.eye(2))))
    monkeypatch.setattr(race, "available", lambda name: False)
    for name, wanted in (("exact", "pip install exact.*AGPL-3.0"), ("cp-sat", r"qrobust\[bnn\]")):
        with BinarizedSession() as session, pytest.raises(BackendUnavailableError, match=wanted):
            session.check(Robustness(found.network, Ball(np.array([1.0, 0.0]), Fraction(1))), engine=name)


def test_the_portfolio_is_what_is_installed_and_fits_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    query = question(hard())
    found = constraints(fold(query.network), query.ball.region(query.network), 0, TieRule.FIRST)
    assert found.density > race.DENSE
    for cores, there, lanes in (
        (4, {"sat", "milp", "cp-sat", "z3", "exact"}, ["milp", "cp-sat", "exact", "sat"]),
        (3, {"sat", "milp", "cp-sat", "z3", "exact"}, ["milp", "cp-sat", "sat"]),
        (1, {"sat", "milp", "cp-sat", "z3"}, ["milp", "sat"]),
        (4, {"milp", "z3"}, ["milp", "z3"]),
    ):
        monkeypatch.setattr(race, "_cores", lambda cores=cores: cores)
        monkeypatch.setattr(race, "available", lambda name, there=there: name in there)
        assert race.engine_names("portfolio", found) == lanes


def test_the_doctor_tries_each_engine(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "doctor")
    for name in race.ENGINES:
        state = "works" if race.available(name) else "missing"
        assert any(line.startswith(state) and f"bnn engine {name}:" in line for line in out.splitlines())
