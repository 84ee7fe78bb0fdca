"""Ctrl-C, as a terminal sends it: one line, exit code 130, no process left, nothing half-written, and what was done is kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust.binarized.formats import save_binarized
from tests.conftest import ROOT
from tests.test_binarized_race import INPUTS, hard, marked
from tests.test_cli import IRIS

WAIT = 120  # seconds for a sign of progress: the machine may be busy
WORKED = 3.0  # seconds of the processor: more than it takes to start
TFLITE = ROOT / "tests/data/tflite"
TICKS = os.sysconf("SC_CLK_TCK")
BOX = ", ".join(["0:0.3"] * 5)  # of some millions of integer inputs

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are listed by /proc")


class Running:
    """The program, in a process group of its own as a terminal has it, and every process that it starts."""

    def __init__(self, *command: str) -> None:
        self.mark = f"QROBUST_TEST_MARK={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qrobust", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {name: value},
            start_new_session=True,
            cwd=ROOT,
        )

    def wait_for(self, sign: Callable[[], bool]) -> None:
        """Wait until there is a sign of progress. Fails if the program ends before."""
        deadline = time.monotonic() + WAIT
        while not sign():
            assert self.process.poll() is None, f"it ended too early: {self.process.communicate()}"
            assert time.monotonic() < deadline, "no sign of progress"
            time.sleep(0.05)

    def worked(self) -> bool:
        """Whether it has used the processor for longer than it takes to start."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS > WORKED

    def children(self, count: int) -> Callable[[], bool]:
        return lambda: len(marked(self.mark)) > count

    def interrupt(self) -> None:
        """Press Ctrl-C; it ends soon, in one line, with its code, and alone."""
        os.killpg(self.process.pid, signal.SIGINT)
        out, err = self.process.communicate(timeout=WAIT)
        assert self.process.returncode == 130, err
        assert out == ""
        assert err.splitlines()[-1:] == ["error: interrupted; nothing was left half-written"]
        assert "Traceback" not in err
        deadline = time.monotonic() + 10
        while marked(self.mark) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert marked(self.mark) == []

    def end(self) -> None:
        for pid in marked(self.mark):
            os.kill(pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """A function that starts the program; whatever is left of it ends with the test."""
    own: list[Running] = []

    def begin(*command: str) -> Running:
        own.append(Running(*command))
        return own[-1]

    yield begin
    for each in own:
        each.end()


@pytest.fixture
def signs(tmp_path: Path) -> tuple[str, str]:
    """A network of signs about which questions take long, and a table with one input."""
    save_binarized(hard(), tmp_path / "hard.npz")
    row = np.random.default_rng(0).integers(0, 2, size=INPUTS).tolist()
    header = ",".join(f"p{i}" for i in range(INPUTS))
    (tmp_path / "x.csv").write_text(f"{header}\n{','.join(map(str, row))}\n")
    (tmp_path / "rows.csv").write_text(f"{header},class\n" + f"{','.join(map(str, row))},0\n" * 6)
    return str(tmp_path / "hard.npz"), str(tmp_path / "x.csv")


BALL = ("--eps", "6", "--norm", "l0", "--timeout", "100")


def test_verify(signs: tuple[str, str], tmp_path: Path, start: Callable[..., Running]) -> None:
    model, point = signs
    running = start("bnn", "verify", model, "--input", point, *BALL, "--export", str(tmp_path / "q.opb"))
    running.wait_for(running.children(2))
    running.interrupt()
    assert not (tmp_path / "q.opb").exists()


def test_verify_of_many_rows_keeps_no_process(signs: tuple[str, str], tmp_path: Path, start: Callable[..., Running]) -> None:
    model, point = signs
    Path(point).write_text("\n".join([*Path(point).read_text().splitlines(), *Path(point).read_text().splitlines()[1:] * 3]))
    rows = ("--rows", ":", "--jobs", "2", "--cache", str(tmp_path / "kept"))
    running = start("bnn", "verify", model, "--input", point, "--eps", "6", "--norm", "l0", "--timeout", "100", *rows)
    running.wait_for(running.children(3))
    running.interrupt()
    assert not list(tmp_path.rglob("*.part"))


def test_report(signs: tuple[str, str], tmp_path: Path, start: Callable[..., Running]) -> None:
    out = tmp_path / "out"
    running = start("bnn", "report", signs[0], str(tmp_path / "rows.csv"), *BALL, "--jobs", "2", "--out", str(out))
    running.wait_for(running.children(3))
    running.interrupt()
    assert [path.name for path in out.iterdir()] in ([], ["cache"])
    assert not list(out.rglob("*.part"))


def test_attack(signs: tuple[str, str], start: Callable[..., Running]) -> None:
    model, point = signs
    running = start("bnn", "attack", model, "--input", point, *BALL, "--method", "milp")
    running.wait_for(lambda: running.worked() or len(marked(running.mark)) > 1)
    running.interrupt()


@pytest.mark.parametrize("counter", ["exact", "approximate"])
def test_count(counter: str, signs: tuple[str, str], start: Callable[..., Running]) -> None:
    model, point = signs
    ball = ("--eps", "6", "--norm", "hamming", "--timeout", "100", "--counter", counter)
    running = start("bnn", "count", model, "--input", point, *ball)
    running.wait_for(lambda: running.worked() or len(marked(running.mark)) > 1)
    running.interrupt()


def test_bits(tmp_path: Path, start: Callable[..., Running]) -> None:
    kept = str(tmp_path / "proof")
    running = start("bits", IRIS, "--eps", "0.3", "--timeout", "100", "--jobs", "2", "--certificate", kept)
    running.wait_for(running.worked)
    running.interrupt()
    assert list(tmp_path.iterdir()) == []


def test_compare(start: Callable[..., Running]) -> None:
    files = (str(TFLITE / "tanh_float.tflite"), str(TFLITE / "tanh_int8.tflite"))
    running = start("compare", *files, "--enumerate", "--box", BOX, "--label")
    running.wait_for(running.worked)
    running.interrupt()


def plan(folder: Path) -> Path:
    """Five obligations over a domain; the first is decided at once, the next three take a second or so each."""
    box = '"sepal length" = [4, 8], "sepal width" = [2, 4], "petal length" = [1, 7], "petal width" = [0.1, 2.5]'
    entries = (
        f'[[obligations]]\nid = "O{n}"\ntext = "t"\nask = "eps"\neps = {eps}\nscheme = "int8"\ndomain = "all"\n'
        for n, eps in enumerate(("0.051", "0.061", "0.071", "0.081", "0.101"))
    )
    path = folder / "plan.toml"
    path.write_text(f'title = "t"\n[model]\nfile = "{IRIS}"\n[domains.all]\nbox = {{ {box} }}\n' + "".join(entries))
    return path


def without_times(document: Any) -> Any:
    """A document without what two runs never share."""
    if isinstance(document, dict):
        hidden = {"seconds", "started", "finished", "date", "command"}
        return {key: without_times(value) for key, value in document.items() if key not in hidden}
    return [without_times(value) for value in document] if isinstance(document, list) else document


def test_an_interrupted_sign_off_goes_on_where_it_stopped(tmp_path: Path, start: Callable[..., Running]) -> None:
    path, out, whole = plan(tmp_path), tmp_path / "out", tmp_path / "whole"
    running = start("signoff", str(path), "--out", str(out))
    running.wait_for(lambda: any(out.rglob("*.json")))
    running.interrupt()
    kept = {each: each.stat() for each in out.rglob("*") if each.is_file()}
    assert 1 <= len(kept) < 5
    assert all(each.suffix == ".json" and each.is_relative_to(out / "cache") for each in kept)
    command = [sys.executable, "-m", "qrobust", "signoff", str(path), "--quiet", "--out"]
    codes = [subprocess.run([*command, str(folder)], check=False, cwd=ROOT, timeout=WAIT).returncode for folder in (out, whole)]
    assert codes == [1, 1]
    for each, before in kept.items():  # an answer that is found anew is written anew, into a new file
        assert (each.stat().st_ino, each.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (out, whole))
    assert [each["id"] for each in first["obligations"]] == [f"O{n}" for n in range(5)]
    assert without_times(first) == without_times(second)
