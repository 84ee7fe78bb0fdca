"""The `dreal` program on PATH: SMT-LIB text in, a verdict out. Reading its output is a pure function."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from qrobust.backends.worker import POLLED, WorkerDiedError
from qrobust.errors import BackendUnavailableError
from qrobust.formula import Dialect, Problem, to_smtlib

INSTALL = (
    "dreal is not usable here: it needs the wheel dreal==4.21.6.2 (Python 3.11 at most) with libibex 2.7.4, CLP and nlopt,"
    " or a `dreal` program on PATH; see `qrobust doctor`"
)

Box = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Reply:
    """What dReal said: a box of a delta-solution, or None for unsat."""

    box: Box | None


def run_program(problem: Problem, precision: float, seconds: float) -> Reply:
    """Feed SMT-LIB text to the program; its whole process group ends when it overruns."""
    text = to_smtlib(problem, Dialect.DREAL)
    with tempfile.TemporaryDirectory(prefix="qrobust-dreal-") as folder:
        path = Path(folder) / "query.smt2"
        path.write_text(text)
        command = ["dreal", "--precision", repr(precision), "--model", str(path)]
        try:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True, errors="replace"
            )
        except OSError:
            raise BackendUnavailableError(INSTALL) from None
        try:
            output, errors = _output(process, seconds)
        finally:  # its children too, whether it ended, overran or was interrupted
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return parse_output(output, errors)


def _output(process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """Wait for all that a process prints, and look for Ctrl-C meanwhile. Raises subprocess.TimeoutExpired."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return process.communicate(timeout=POLLED)
        except subprocess.TimeoutExpired:  # nothing is lost by asking again
            if time.monotonic() >= deadline:
                raise


INTERVAL = re.compile(r"^\s*(\S+) : (?:\[\s*([^,\]]+),\s*([^,\]]+)\]|(\S+)|\[ ENTIRE \])\s*$")


def parse_output(output: str, errors: str) -> Reply:
    """Read what the program printed. Raises WorkerDiedError unless it is one clear verdict.

    dReal ends with code 0 even after a syntax error, so only its words count, and any complaint makes them void.
    """
    lines = [line for line in output.splitlines() if line.strip()]
    if errors.strip():
        raise WorkerDiedError(f"the program complained: {errors.strip().splitlines()[0][:120]}")
    verdicts = [line for line in lines if line == "unsat" or line.startswith("delta-sat with delta = ")]
    if len(verdicts) != 1 or lines[0] != verdicts[0]:
        raise WorkerDiedError(f"the program gave no verdict: {output[:120]!r}")
    if verdicts[0] == "unsat":
        if len(lines) > 1:
            raise WorkerDiedError(f"the program said more than unsat: {lines[1][:120]!r}")
        return Reply(None)
    box: Box = {}
    for line in lines[1:]:
        match = INTERVAL.match(line)
        if match is None:
            raise WorkerDiedError(f"the program's model has the line {line[:120]!r}")
        name, low, high, single = match.groups()
        ends = (low, high) if low is not None else (single, single)
        if ends[0] is not None:
            try:
                box[name] = (float(ends[0]), float(ends[1]))
                if not (math.isfinite(box[name][0]) and math.isfinite(box[name][1])):
                    del box[name]  # an unbounded side suggests no value
            except ValueError:
                raise WorkerDiedError(f"the program's model has the line {line[:120]!r}") from None
    return Reply(box)
