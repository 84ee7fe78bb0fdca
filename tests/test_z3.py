"""Does the solver's process keep its limits, and do Z3's optima lie where paper says?"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from operator import add
from pathlib import Path

import numpy as np
import pytest

from qrobust.answers import Robust, Unknown, Violated
from qrobust.backends.worker import Worker, WorkerDiedError, WorkerTimeoutError
from qrobust.backends.z3 import Z3
from qrobust.domains import InputBox, Point, Polytope
from qrobust.errors import DomainError
from qrobust.formats import load
from qrobust.formula import Encoding
from qrobust.network import Activation, Dense, Network, Output
from qrobust.perturbations import Absolute
from qrobust.queries import GlobalConfidence, GlobalLabel, LocalLabel, MarginLabel, SigmaEstimate
from qrobust.search import Budget
from qrobust.solve import Session

ROOT = Path(__file__).parents[1]
LINE = Network((Dense(np.array([[1.0]]), np.array([0.0])),), Output.SIGMOID)
BUDGET = Budget(20.0)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_answers_again_and_again_in_one_process() -> None:
    worker = Worker()
    assert worker.call(add, 2, 3, seconds=5) == 5
    first = worker.pid
    assert worker.call(add, "a", "b", seconds=5) == "ab"
    assert worker.pid == first
    worker.close()


def test_what_is_printed_there_does_not_mix_with_answers() -> None:
    worker = Worker()
    assert worker.call(os.system, "echo noise", seconds=5) == 0
    assert worker.call(print, "more noise", seconds=5) is None
    assert worker.call(add, 1, 1, seconds=5) == 2
    worker.close()


def test_a_call_that_overruns_is_killed_and_the_next_one_answered() -> None:
    worker = Worker()
    worker.call(add, 1, 1, seconds=5)
    pid = worker.pid
    assert pid is not None
    started = time.monotonic()
    with pytest.raises(WorkerTimeoutError):
        worker.call(time.sleep, 60, seconds=0.2)
    assert time.monotonic() - started < 3
    assert not alive(pid)
    assert worker.call(add, 1, 2, seconds=5) == 3
    worker.close()


def test_errors_come_back_and_crashes_are_said() -> None:
    worker = Worker()
    with pytest.raises(ZeroDivisionError):
        worker.call(divmod, 1, 0, seconds=5)
    with pytest.raises(WorkerDiedError, match="code 7"):
        worker.call(os._exit, 7, seconds=5)
    assert worker.call(add, 1, 2, seconds=5) == 3
    worker.close()


def test_a_worker_ends_when_its_parent_is_killed() -> None:
    script = (
        "from qrobust.backends.worker import Worker; from operator import add; import time\n"
        "w = Worker(); w.call(add, 1, 1, seconds=5); print(w.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(pid)


def test_a_hard_query_ends_at_its_limit_and_an_easy_one_is_answered_after() -> None:
    network = load(ROOT / "models" / "iris.json")
    backend = Z3()
    hard = MarginLabel(network, Absolute(0.005).around(network), InputBox.of_features(network), sigma="0.26")  # type: ignore[arg-type]
    started = time.monotonic()
    claim = backend.decide(hard, Budget(0.3))
    assert isinstance(claim, Unknown)
    assert "0.3 s" in claim.reason
    assert time.monotonic() - started < 5
    assert isinstance(backend.decide(LocalLabel(LINE, Absolute(0.25).around(LINE), Point([2.0])), BUDGET), Robust)


def test_optima_of_cat() -> None:
    cat = load(ROOT / "models" / "cat_paper.json")
    session = Session([Z3()])
    for label, known in ((1, 0.0243550970436077), (0, 0.0213439774)):
        estimate = session.estimate(SigmaEstimate(cat, Absolute(0.005).around(cat), InputBox.of_features(cat), label))
        assert estimate.lower == pytest.approx(known, abs=1e-9)
        assert estimate.gap < 1e-9


def test_a_supremum_that_is_not_attained() -> None:
    """Label 0 at x <= 0 becomes 1 iff x + (1 - x)/4 > 0 for x in [-1, 0]: x > -1/3, so sigma -> 1/2 - s(-1/3)."""
    query = SigmaEstimate(LINE, Absolute(0.25).around(LINE), InputBox([-1.0], [1.0]), 0)
    estimate = Session([Z3()]).estimate(query)
    known = 0.5 - 1 / (1 + np.exp(1 / 3))
    assert estimate.lower < known <= estimate.upper + 1e-15
    assert estimate.gap < 1e-9


def test_both_encodings_agree() -> None:
    for x, kind in ((2.0, Robust), (0.25, Violated)):
        query = LocalLabel(LINE, Absolute(0.25).around(LINE), Point([x]))
        for encoding in Encoding:
            assert isinstance(Z3(encoding).decide(query, BUDGET), kind)


def test_what_it_leaves_to_others() -> None:
    bent = Network((Dense(np.ones((1, 1)), np.zeros(1), Activation.TANH), Dense(np.ones((1, 1)), np.zeros(1))), Output.SIGMOID)
    box = InputBox([0.0], [1.0])
    assert "tanh" in str(Z3().why_not(GlobalLabel(bent, Absolute(0.1).around(bent), box)))
    two = GlobalConfidence(LINE, Absolute(0.1).around(LINE), box, "0.1")  # type: ignore[arg-type]
    assert "two sigmoids" in str(Z3().why_not(two))


def test_an_empty_polytope_is_refused() -> None:
    nowhere = Polytope(InputBox([0.0], [1.0]), [[1.0]], [-1.0])
    with pytest.raises(DomainError, match="is empty"):
        Session().check(GlobalLabel(LINE, Absolute(0.25).around(LINE), nowhere))
