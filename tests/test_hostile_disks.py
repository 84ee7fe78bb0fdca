"""Full disks, for every command that writes or prints: one line, exit code 2, what was there before unharmed, no strays."""

from __future__ import annotations

import errno
import io
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qrobust.binarized.formats import load_binarized
from qrobust.errors import OutputError
from qrobust.files import write_together
from tests.test_cli import CAT, IRIS, ROOT, refused, run
from tests.test_logic_cli import saved

POINT = ("--point", "5.9, 3.0, 4.2, 1.5")
PICTURES = ("{}.csv", "{}.png", "{}.svg")
REPORT = ("result.json", "junit.xml", "report.sarif", "report.md", "report.html")
QUICK = ("--class", "male", "--thresholds", "3", "--hidden", "4", "--starts", "1", "--rounds", "1")
BOX = ("--input", "0, 0, 0")

Writing = tuple[tuple[str, ...], tuple[str, ...]]  # a command, and the names that it writes; {} is the stem
WRITING: dict[str, Writing] = {
    "plot bits": (("plot", "bits", IRIS, "--points", "{rows}", "--least", "7", "--most", "8", "--output", "{}"), PICTURES),
    "plot margins": (("plot", "margins", IRIS, "--points", "{rows}", "--scheme", "int8", "--output", "{}"), PICTURES),
    "plot blame": (("plot", "blame", IRIS, *POINT, "--scheme", "int6", "--output", "{}"), PICTURES),
    "plot saturation": (("plot", "saturation", CAT, "--scheme", "q2.5", "--output", "{}"), PICTURES),
    "map --plot": (("map", CAT, "--delta", "0.01", "--random", "3", "--plot", "{}.png"), PICTURES[1:]),
    "quantize json": (("quantize", CAT, "--scheme", "int8", "--out", "{}.json"), ("{}.json",)),
    "quantize npz": (("quantize", CAT, "--scheme", "int8", "--out", "{}.npz"), ("{}.npz",)),
    "quantize onnx": (("quantize", CAT, "--scheme", "fp16", "--out", "{}.onnx"), ("{}.onnx",)),
    "export smtlib": (("export", CAT, "--label", "--delta", "0.01", "--output", "{}.smt2"), ("{}.smt2",)),
    "export vnnlib": (
        ("export", CAT, "--label", "--against", CAT, "--format", "vnnlib", "--output", "{}.vnnlib"),
        ("{}.vnnlib", "{}_f.onnx", "{}_g.onnx"),
    ),
    "check": (
        ("check", IRIS, "--label", *POINT, "--delta", "0.001", "--certificate", "{}.cert"),
        ("{}.cert",),
    ),
    "bits": (("bits", IRIS, "--label", *POINT, "--certificate", "{}.cert"), ("{}.cert",)),
    "bnn verify --export": (
        ("bnn", "verify", "{signs}", *BOX, "--eps", "1", "--norm", "l1", "--export", "{}.opb"),
        ("{}.opb",),
    ),
    "bnn verify --proof": (
        ("bnn", "verify", "{signs}", *BOX, "--eps", "1", "--norm", "l1", "--proof", "{}"),
        ("{}.cnf", "{}.drat", "{}.lrat"),
    ),
    "bnn verify --certificate": (
        ("bnn", "verify", "{signs}", *BOX, "--eps", "1", "--norm", "l1", "--certificate", "{}.cert"),
        ("{}.cert",),
    ),
    "bnn map csv": (("bnn", "map", "{signs}", "--axes", "1, 2", *BOX, "--output", "{}.csv"), ("{}.csv",)),
    "bnn map npz": (("bnn", "map", "{signs}", "--axes", "1, 2", *BOX, "--output", "{}.npz"), ("{}.npz",)),
    "bnn map --plot": (("bnn", "map", "{signs}", "--axes", "1, 2", *BOX, "--plot", "{}"), PICTURES[1:]),
    "bnn explain": (("bnn", "explain", "{signs}", *BOX, "--picture", "{}"), PICTURES),
    "bnn compile": (("bnn", "compile", "{signs}", "--draw", "{}"), PICTURES[1:]),
    "bnn bracket": (("bnn", "bracket", CAT, *QUICK, "--output", "{}.json"), ("{}.json",)),
    "bnn bracket --plot": (("bnn", "bracket", CAT, *QUICK, "--plot", "{}"), PICTURES[1:]),
    "bnn train json": (("bnn", "train", "{table}", "--output", "{}.json"), ("{}.json",)),
    "bnn train npz": (("bnn", "train", "{table}", "--output", "{}.npz"), ("{}.npz",)),
    "bnn report": (("bnn", "report", "{signs}", "{table}", "--eps", "1", "--out", "{folder}"), (REPORT[0], *REPORT[3:])),
    "signoff": (("signoff", "{plan}", "--out", "{folder}"), REPORT),
}
PRINTING: dict[str, tuple[str, ...]] = {
    "check": ("check", CAT, "--label", "--delta", "0.01", "--point", "15, 2"),
    "estimate": ("estimate", CAT, "eps", "--delta", "0.01", "--json"),
    "blame": ("blame", IRIS, *POINT, "--scheme", "int6"),
    "blame --json": ("blame", IRIS, *POINT, "--scheme", "int6", "--json"),
    "export": ("export", CAT, "--label", "--delta", "0.01"),
    "inspect": ("inspect", IRIS),
    "compare": ("compare", CAT, str(ROOT / "models/cat_int8.tflite"), "--point", "15, 2"),
    "bnn verify": ("bnn", "verify", "{signs}", *BOX, "--eps", "1"),
    "bnn attack": ("bnn", "attack", "{signs}", *BOX, "--eps", "1"),
    "bnn count": ("bnn", "count", "{signs}", *BOX),
    "bnn compile": ("bnn", "compile", "{signs}", "--json"),
    "bnn explain": ("bnn", "explain", "{signs}", *BOX),
    "replay": ("replay", str(ROOT / "models/iris_int8.cert")),
    "--help": ("bnn", "--help"),
}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Inputs of the commands in one folder, and another, empty one for what they write."""
    given, room = tmp_path / "given", tmp_path / "room"
    given.mkdir()
    room.mkdir()
    signs = saved(given / "signs.json", -1.5)
    network = load_binarized(signs).network
    monkeypatch.setattr("qrobust.cli.bnn.train_network", lambda *_, **__: network)  # training needs TensorFlow
    (given / "rows.csv").write_text("sepal length,sepal width,petal length,petal width\n5.1,3.5,1.4,0.2\n")
    (given / "table.csv").write_text("a,b,c,class\n0,0,1,0\n1,1,1,1\n")
    (given / "plan.toml").write_text(
        f'[model]\nfile = "{CAT}"\n[shipped]\nint8 = "{ROOT / "models/cat_int8.tflite"}"\n[data.rows]\nfile = "cats.csv"\n'
        '[[obligations]]\nid = "A"\ntext = "t"\nask = "label"\nscheme = "int4"\ndata = "rows"\n'
        '[[obligations]]\nid = "B"\ntext = "t"\nask = "eps"\neps = 0.5\nprogram = "int8"\ndata = "rows"\n'
    )
    (given / "cats.csv").write_text("heart weight,body weight\n15,2\n20,3.5\n")
    names = {"signs": signs, "rows": given / "rows.csv", "table": given / "table.csv", "plan": given / "plan.toml"}
    return names | {"folder": room}


def filled(command: tuple[str, ...], places: dict[str, Path]) -> list[str]:
    return [part.format(places["folder"] / "out", **places) for part in command]


def only_error(text: str) -> str:
    """Return the one line of error; a cache on the same disk says once that it keeps nothing."""
    lines = [line for line in text.splitlines() if not line.startswith("warning: results are not being kept")]
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    return lines[0]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def full(after: int = 0) -> Callable[[int], None]:
    """What takes the place of fsync: the disk is full once it has been asked so many times."""
    asked = 0

    def fsync(_: int) -> None:
        nonlocal asked
        asked += 1
        if asked > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fsync


@pytest.mark.parametrize("name", WRITING)
def test_a_full_disk_leaves_what_was_there(
    name: str, places: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, written = WRITING[name]
    room = places["folder"]
    for each in written:
        (room / each.format("out")).write_bytes(b"before")
    before = content(room)
    for after in range(len(written)):
        monkeypatch.setattr(os, "fsync", full(after))
        code, _, err = run(capsys, *filled(command, places), "--quiet")
        assert code == 2
        assert "was not written: No space left on device" in only_error(err)
        assert content(room) == before
    monkeypatch.undo()
    if not name.startswith("bnn train"):
        assert run(capsys, *filled(command, places), "--quiet")[0] in (0, 1)
        assert content(room).keys() == before.keys()
        assert all(value != b"before" for value in content(room).values())


@pytest.mark.parametrize("name", PRINTING)
def test_an_output_that_takes_no_more(
    name: str, places: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for stream in (
        io.TextIOWrapper(io.BufferedWriter(Full())),
        io.TextIOWrapper(io.BufferedWriter(Full(), 1), write_through=True),
    ):
        monkeypatch.setattr(sys, "stdout", stream)
        line = refused(capsys, *filled(PRINTING[name], places))
        assert line == "error: the answer was not printed: No space left on device\n"
        monkeypatch.undo()


def limited(command: list[str], folder: Path, size: int) -> subprocess.CompletedProcess[str]:
    """Run the program with its output in a file, where no file may grow over a size."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    with (folder / "said").open("wb") as said:
        return subprocess.run(
            [sys.executable, "-m", "qrobust", *command],
            stdout=said,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            preexec_fn=limit,
            timeout=120,
            cwd=ROOT,
        )


def test_a_real_limit_on_what_is_printed(tmp_path: Path) -> None:
    """Python's own words at its end, and its exit codes 1 and 120, must not stand for a verdict."""
    done = limited(["check", CAT, "--label", "--delta", "0.01", "--point", "15, 2"], tmp_path, 0)
    assert done.returncode == 2
    assert done.stderr == "error: the answer was not printed: File too large\n"


def test_a_real_limit_cuts_a_report_off_in_the_middle(places: dict[str, Path], tmp_path: Path) -> None:
    """The page is larger than the limit, the other documents are not: none of them may appear."""
    room = places["folder"]
    (room / "report.html").write_text("before")
    done = limited(["signoff", str(places["plan"]), "--out", str(room), "--quiet"], tmp_path, 30_000)
    assert done.returncode == 2
    assert "report.html was not written: File too large" in only_error(done.stderr)
    assert content(room) == {"report.html": b"before"}


def test_a_reader_that_has_gone_gets_no_verdict() -> None:
    command = [sys.executable, "-m", "qrobust", "check", CAT, "--label", "--delta", "0.01", "--point", "15, 2"]
    for buffered in ("", "1"):
        read, write = os.pipe()
        os.close(read)
        environment = os.environ | {"PYTHONUNBUFFERED": buffered}
        done = subprocess.run(
            command, stdout=write, stderr=subprocess.PIPE, check=False, timeout=120, env=environment, cwd=ROOT
        )
        os.close(write)
        assert done.returncode == 141
        assert done.stderr == b""


def test_files_that_belong_together_appear_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_together({first: b"1", second: [b"2", b"3"]})
    assert content(tmp_path) == {"first": b"1", "second": b"23"}
    monkeypatch.setattr(os, "fsync", full(1))
    with pytest.raises(OutputError, match="second was not written"):
        write_together({first: b"4", second: b"5"})
    monkeypatch.undo()
    with pytest.raises(OutputError, match="it is a folder"):
        write_together({first: b"4", tmp_path: b"5"})
    assert content(tmp_path) == {"first": b"1", "second": b"23"}
