"""A solver in a process of its own, with the time limit enforced from outside.

The process runs `serve` in a Python of its own, not forked and not importing the caller's script, so that a user's script
needs no `__main__` guard. Calls and results are pickles with a length before them, on pipes that only the two processes
share; whatever a solver prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

GRACE_SECONDS = 1.0  # what a solver gets beyond its own limit before it is killed
POLLED = 0.1  # seconds waited at once: a Ctrl-C that another thread takes, or that comes as a wait begins, does not end it
STARTUP_SECONDS = 60.0  # for starting Python and importing the solver, which is not the query's time
READY = "ready"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # processes share the cores
START = "from qrobust.backends.worker import serve; serve({parent})"


T = TypeVar("T")


class WorkerTimeoutError(Exception):
    """The call overran its limit and the process was killed."""


class WorkerDiedError(Exception):
    """The process ended without an answer."""


def next_answer(answers: queue.SimpleQueue[T], deadline: float = math.inf) -> T:
    """Wait for what another thread answers, and look for Ctrl-C meanwhile. Raises queue.Empty at a time of `time.monotonic`."""
    while True:
        left = deadline - time.monotonic()
        try:
            return answers.get(timeout=min(max(left, 0.0), POLLED))
        except queue.Empty:
            if left <= POLLED:
                raise


class Worker:
    """One process, started on the first call, used again for the next, restarted after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: Any = None

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        """Run a module-level function there and return its result.

        Raises    WorkerTimeoutError, WorkerDiedError, or what the function raised
        """
        process = self._started()
        try:
            _write(process, pickle.dumps((function, arguments)))
            reply = _read(process, seconds + GRACE_SECONDS)
        except BaseException:  # a time-out, a crash or Ctrl-C: the process's state is unknown, so it goes
            self.close()
            raise
        succeeded, value = pickle.loads(reply)  # from our own child
        if not succeeded:
            raise value
        return value

    def close(self) -> None:
        """Kill the process, if there is one."""
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None

    @property
    def pid(self) -> int | None:
        """The process's number, or None if none runs."""
        return self._process.pid if self._process is not None else None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            command = [sys.executable, "-P", "-c", START.format(parent=os.getpid())]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | ONE_THREAD,
                start_new_session=True,
            )
            self._finalizer = weakref.finalize(self, _kill, self._process)
            try:
                if pickle.loads(_read(self._process, STARTUP_SECONDS)) != READY:
                    raise WorkerDiedError("the solver's process did not start")
            except BaseException:
                self.close()
                raise
        return self._process


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process with all its children, and wait for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()


def _write(process: subprocess.Popen[bytes], content: bytes) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(struct.pack(">Q", len(content)) + content)
        process.stdin.flush()
    except (BrokenPipeError, OSError):
        raise WorkerDiedError("the solver's process ended before it was asked") from None


def _read(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    deadline = time.monotonic() + seconds
    (length,) = struct.unpack(">Q", _read_exactly(process, 8, deadline))
    return _read_exactly(process, length, deadline)


def _read_exactly(process: subprocess.Popen[bytes], count: int, deadline: float) -> bytes:
    assert process.stdout is not None
    parts: list[bytes] = []
    while count > 0:
        left = deadline - time.monotonic()
        if left <= 0:
            raise WorkerTimeoutError
        if not select.select([process.stdout], [], [], min(left, POLLED))[0]:
            continue
        part = os.read(process.stdout.fileno(), min(count, 1 << 20))
        if not part:
            raise WorkerDiedError(f"the solver's process ended with code {process.wait()}")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def serve(parent: int) -> None:
    """Answer calls until standard input ends or the parent is gone."""
    calls = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a solver prints must not mix with the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    _answer(answers, READY)
    while len(header := calls.read(8)) == 8:
        function, arguments = pickle.loads(calls.read(struct.unpack(">Q", header)[0]))
        try:
            _answer(answers, (True, function(*arguments)))
        except Exception as error:
            _answer(answers, (False, error))


def _answer(answers: Any, value: Any) -> None:
    content = pickle.dumps(value)
    answers.write(struct.pack(">Q", len(content)) + content)
    answers.flush()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
