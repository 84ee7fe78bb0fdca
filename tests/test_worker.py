"""The solver's process: time-outs, exceptions, crashes, stray prints, and that none outlives the one who started it.

Every function called here is one of the standard library, for the process imports it by its name.
"""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrobust.backends.worker import GRACE_SECONDS, Worker, WorkerDiedError, WorkerTimeoutError

LIMIT = 30.0
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see which processes run")


@pytest.fixture
def worker() -> Iterator[Worker]:
    """A worker that is closed at the end."""
    made = Worker()
    yield made
    made.close()


def alive(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def ends(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process ends soon."""
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def started(worker: Worker) -> int:
    """Start the process and return its number."""
    assert worker.call(operator.add, 1, 1, seconds=LIMIT) == 2
    assert worker.pid is not None
    assert alive(worker.pid)
    return worker.pid


def test_it_starts_on_the_first_call_and_stays(worker: Worker) -> None:
    assert worker.pid is None
    pid = worker.call(os.getpid, seconds=LIMIT)
    assert pid == worker.pid != os.getpid()
    assert worker.call(os.getpid, seconds=LIMIT) == pid


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_537, 5_000_000])
def test_arguments_and_results_of_any_size(worker: Worker, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert worker.call(operator.concat, content, b"end", seconds=LIMIT) == content + b"end"


def test_a_signal_that_another_thread_takes_ends_the_call(worker: Worker) -> None:
    """As one does that comes just before a wait begins: nothing wakes the wait, which has to look by itself."""
    pid, begun = started(worker), time.monotonic()
    threading.Timer(0.5, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        worker.call(time.sleep, LIMIT, seconds=2 * LIMIT)
    assert time.monotonic() - begun < LIMIT / 2
    assert not alive(pid)


def test_a_call_that_overruns_is_killed_and_the_next_is_answered(worker: Worker) -> None:
    pid, begun = started(worker), time.monotonic()
    with pytest.raises(WorkerTimeoutError):
        worker.call(time.sleep, 60, seconds=0.2)
    assert 0.2 <= time.monotonic() - begun < 0.2 + GRACE_SECONDS + 2
    assert not alive(pid)
    assert worker.pid is None
    assert started(worker) != pid


def test_a_call_within_its_limit_is_not_killed(worker: Worker) -> None:
    pid = started(worker)
    assert worker.call(time.sleep, 0.3, seconds=5.0) is None
    assert worker.pid == pid


@pytest.mark.parametrize("seconds", [1e12, float("inf")])
def test_a_limit_beyond_what_the_system_counts_is_none(worker: Worker, seconds: float) -> None:
    assert worker.call(operator.add, 1, 2, seconds=seconds) == 3


def test_what_the_solver_started_ends_with_it(worker: Worker, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    started(worker)
    with pytest.raises(WorkerTimeoutError):
        worker.call(os.system, f"sleep 60 & echo $! > {note}; wait", seconds=0.5)
    assert ends(int(note.read_text()))


def test_an_exception_comes_back_and_the_process_stays(worker: Worker) -> None:
    pid = started(worker)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        worker.call(operator.truediv, 1, 0, seconds=LIMIT)
    with pytest.raises(FileNotFoundError):
        worker.call(os.stat, "/no such file", seconds=LIMIT)
    assert worker.pid == pid
    assert worker.call(operator.add, 2, 3, seconds=LIMIT) == 5


def test_a_result_that_cannot_be_sent_is_an_exception(worker: Worker) -> None:
    pid = started(worker)
    with pytest.raises(TypeError, match="pickle"):
        worker.call(threading.Lock, seconds=LIMIT)
    assert started(worker) == pid


@pytest.mark.parametrize("code", [0, 3])
def test_a_crash_is_told_from_an_answer(worker: Worker, code: int) -> None:
    pid = started(worker)
    with pytest.raises(WorkerDiedError, match=f"ended with code {code}"):
        worker.call(os._exit, code, seconds=LIMIT)
    assert not alive(pid)
    assert started(worker) != pid


def test_a_kill_from_outside_between_two_calls_is_mended(worker: Worker) -> None:
    pid = started(worker)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # until all its threads are gone, leaving it to the worker to find out
    assert started(worker) != pid


def test_a_kill_from_outside_during_a_call(worker: Worker) -> None:
    pid = started(worker)
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(WorkerDiedError, match=f"code {-signal.SIGKILL}"):
        worker.call(time.sleep, 30, seconds=LIMIT)
    assert started(worker) != pid


def test_prints_do_not_mix_with_answers(worker: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    pid = started(worker)
    assert worker.call(print, "from Python", seconds=LIMIT) is None
    assert worker.call(os.write, 1, b"from C\n", seconds=LIMIT) == 7
    assert worker.call(os.system, "echo from a child", seconds=LIMIT) == 0
    assert worker.call(operator.add, 20, 22, seconds=LIMIT) == 42
    assert worker.pid == pid
    written = capfd.readouterr()
    assert written.out == ""
    assert "from C" in written.err
    assert "from a child" in written.err


def test_ctrl_c_is_left_to_the_caller(worker: Worker) -> None:
    pid = started(worker)
    os.kill(pid, signal.SIGINT)
    assert worker.call(operator.add, 1, 2, seconds=LIMIT) == 3
    assert worker.pid == pid


def test_an_interrupted_call_ends_the_process(worker: Worker) -> None:
    """Its state is unknown: a late answer must not be taken for that of the next call."""
    pid = started(worker)
    threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,)).start()
    with pytest.raises(KeyboardInterrupt):
        worker.call(time.sleep, 30, seconds=LIMIT)
    assert not alive(pid)
    assert started(worker) != pid


def test_closing_twice_and_losing_the_worker() -> None:
    first = Worker()
    pid = started(first)
    first.close()
    first.close()
    assert not alive(pid)
    second = Worker()
    pid = started(second)
    del second
    assert ends(pid)


def script(body: str) -> subprocess.Popen[str]:
    """Run a script that makes a worker and prints its process's number; no `__main__` guard, as in a user's script."""
    head = "import os, signal, sys, time, operator\nfrom qrobust.backends.worker import Worker\nworker = Worker()\n"
    head += "assert worker.call(operator.add, 1, 1, seconds=30) == 2\nprint(worker.pid, flush=True)\n"
    root = str(Path(__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )


@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_when_its_parent_is_killed(busy: bool) -> None:
    parent = script("worker.call(time.sleep, 60, seconds=60)" if busy else "time.sleep(60)")
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    time.sleep(0.7)  # until it is in the midst of the call, where it does not see its standard input end
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert ends(pid, 3.0)


@pytest.mark.parametrize(("ending", "code"), [("", 0), ("sys.exit(3)", 3), ("raise SystemExit(4)", 4)])
def test_none_is_left_when_the_interpreter_ends(ending: str, code: int) -> None:
    parent = script(ending)
    output, _ = parent.communicate(timeout=60)
    assert parent.returncode == code
    assert not alive(int(output))
