"""Is dReal's output read strictly, its word taken only as far as it goes, and its time limit kept?"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from qrobust.answers import Candidate, Robust, Unknown, Verdict
from qrobust.backends.dreal import DReal, Transport
from qrobust.backends.dreal_program import Reply, parse_output
from qrobust.backends.worker import WorkerDiedError
from qrobust.domains import InputBox, Point, Points
from qrobust.errors import NumberError
from qrobust.formats import load
from qrobust.network import Dense, Network, Output
from qrobust.perturbations import Absolute
from qrobust.queries import GlobalConfidence, GlobalEpsilon, LocalEpsilon, LocalLabel, MarginLabel, SigmaEstimate
from qrobust.search import Budget
from qrobust.solve import Session

ROOT = Path(__file__).parents[1]
CAT = load(ROOT / "models" / "cat_paper.json")
CAT_BOX = InputBox.of_features(CAT)
NARROW, WIDE = (Absolute(delta).around(CAT) for delta in (0.0001, 0.01))
AT_THE_BOUNDARY = LocalLabel(CAT, WIDE, Point([15.0, 2.0]))
BUDGET = Budget(20.0)


def test_output_without_solution() -> None:
    assert parse_output("unsat\n", "") == Reply(None)


def test_output_with_a_solution() -> None:
    text = "delta-sat with delta = 0.0001\nx1 : [ 1.25, 1.5 ]\nw1_1_1 : [-2e-05, 3]\nb : [ ENTIRE ]\nc : 4.5\n"
    assert parse_output(text, "") == Reply({"x1": (1.25, 1.5), "w1_1_1": (-2e-05, 3.0), "c": (4.5, 4.5)})


@pytest.mark.parametrize(
    ("output", "errors"),
    [
        ("", ""),
        ("", "syntax error"),
        ("unsat\n", "warning: something"),
        ("sat\n", ""),
        ("unsat\nunsat\n", ""),
        ("unsat\nx : [1, 2]\n", ""),
        ("x : [1, 2]\ndelta-sat with delta = 0.1\n", ""),
        ("delta-sat with delta = 0.1\nx : [1,\n", ""),
        ("delta-sat with delta = 0.1\nunsat\n", ""),
        ("Segmentation fault\n", ""),
    ],
)
def test_anything_else_is_no_verdict(output: str, errors: str) -> None:
    with pytest.raises(WorkerDiedError):
        parse_output(output, errors)


@pytest.mark.parametrize("precision", [0.0, -1.0, 1.0, float("nan")])
def test_a_precision_that_dreal_would_take_without_a_word_is_refused(precision: float) -> None:
    with pytest.raises(NumberError, match="precision"):
        DReal(precision=precision)


def test_what_it_leaves_to_others() -> None:
    assert "point by point" in str(DReal().why_not(MarginLabel(CAT, WIDE, Points([[15.0, 2.0]]))))
    assert DReal().why_not(AT_THE_BOUNDARY) is None


def fake_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> DReal:
    """Put a program called `dreal` first on PATH."""
    program = tmp_path / "dreal"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return DReal(Transport.PROGRAM)


def test_unsat_of_the_program_is_a_trusted_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = fake_program(tmp_path, monkeypatch, "echo unsat")
    assert isinstance(backend.decide(AT_THE_BOUNDARY, BUDGET), Robust)
    assert "trusted" in str(Session([backend]).check(AT_THE_BOUNDARY))


def test_a_signal_that_another_thread_takes_ends_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, begun = fake_program(tmp_path, monkeypatch, "sleep 15"), time.monotonic()
    threading.Timer(0.5, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        backend.decide(AT_THE_BOUNDARY, BUDGET)
    assert time.monotonic() - begun < 10


def test_delta_sat_that_replays_is_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = fake_program(tmp_path, monkeypatch, "echo 'delta-sat with delta = 0.0001'")
    assert isinstance(backend.decide(AT_THE_BOUNDARY, BUDGET), Candidate)
    assert Session([backend]).check(AT_THE_BOUNDARY).verdict is Verdict.VIOLATED


def test_delta_sat_that_does_not_replay_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = fake_program(tmp_path, monkeypatch, "echo 'delta-sat with delta = 0.0001'")
    answer = Session([backend]).check(LocalLabel(CAT, NARROW, Point([20.0, 3.5])))
    assert answer.verdict is Verdict.UNKNOWN
    assert "does not replay" in str(answer)


@pytest.mark.parametrize("between", ["", "sleep 1;"], ids=["at once", "after a while"])
def test_a_complaint_of_the_program_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: str) -> None:
    backend = fake_program(tmp_path, monkeypatch, f"echo unsat; {between} echo 'line 3: syntax error' >&2")
    claim = backend.decide(AT_THE_BOUNDARY, BUDGET)
    assert isinstance(claim, Unknown)
    assert "syntax error" in claim.reason


def test_a_program_that_overruns_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = fake_program(tmp_path, monkeypatch, "exec sleep 30")
    started = time.monotonic()
    claim = backend.decide(AT_THE_BOUNDARY, Budget(0.3))
    assert isinstance(claim, Unknown)
    assert time.monotonic() - started < 5


@pytest.fixture(params=list(Transport), ids=lambda transport: transport.value)
def real(request: pytest.FixtureRequest) -> DReal:
    backend = DReal(request.param)
    if not backend.available():
        pytest.skip(f"dReal's {request.param.value} is not installed here")
    return backend


def test_the_real_thing_agrees_with_what_is_known_of_cat(real: DReal) -> None:
    session = Session([real])
    assert session.check(AT_THE_BOUNDARY, budget=BUDGET).verdict is Verdict.VIOLATED
    assert session.check(LocalLabel(CAT, NARROW, Point([20.0, 3.5])), budget=BUDGET).verdict is Verdict.ROBUST
    for epsilon, verdict in (("0.06", Verdict.ROBUST), ("0.05", Verdict.VIOLATED)):
        query = GlobalConfidence(CAT, WIDE, CAT_BOX, epsilon)  # type: ignore[arg-type]
        assert session.check(query, budget=BUDGET).verdict is verdict


def test_the_real_thing_brackets_the_known_estimates(real: DReal) -> None:
    session = Session([real])
    box = Absolute(0.005).around(CAT)
    for query, known in (
        (SigmaEstimate(CAT, box, CAT_BOX, 1), 0.0243550970),
        (SigmaEstimate(CAT, box, CAT_BOX, 0), 0.0213439774),
        (GlobalEpsilon(CAT, box, CAT_BOX), 0.0285255048),
    ):
        estimate = session.estimate(query, budget=BUDGET)
        assert estimate.lower - 1e-9 <= known <= estimate.upper + 1e-9
        assert estimate.gap < 1e-3


def test_minimize_is_not_above_the_certified_end(real: DReal) -> None:
    if real.transport is not Transport.MODULE:
        pytest.skip("Minimize is offered through the Python module alone")
    query = LocalEpsilon(CAT, Absolute(0.005).around(CAT), Point([13.4, 2.95]))
    certified = Session().estimate(query)
    found = real.minimize_as_in_paper(query, seconds=20)
    assert found is not None
    assert 0.5 * certified.upper < found <= certified.upper


def test_constants_that_dreal_would_fold_wrongly_prove_nothing(real: DReal) -> None:
    """z = (1e16 x + x) - 1e16 x is x in [1, 2], above the level; folded to nearest the middle x is lost."""
    weight = np.array([[1e16, 1.0, -1e16]])
    network = Network((Dense(weight, np.array([-1.5])),), Output.SIGMOID)
    query = LocalLabel(network, Absolute(0.75).around(network), Point([1.0, 2.0, 1.0]))
    assert Session([real]).check(query, budget=BUDGET).verdict is not Verdict.ROBUST
    assert Session().check(query).verdict is Verdict.VIOLATED
