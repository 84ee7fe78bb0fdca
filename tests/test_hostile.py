"""Full disks, Ctrl-C, and arguments that nobody should give: one line, the right exit code, files whole or absent."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qrobust.binarized.formats import save_binarized
from tests.test_binarized_cli import model as majority
from tests.test_cli import CAT, IRIS, refused, run

__all__ = ["majority"]
DELTA = ("--delta", "0.01", "--quiet")
HEAD = "sepal length,sepal width,petal length,petal width\n"
HUGE = "1e308,1e308,-1e308,1e308"
GRID = ("map", IRIS, *DELTA, "--timeout", "2", "--axes", "1,2", "--grid")


def writing(target: Path) -> list[tuple[str, ...]]:
    """Commands that write a file each."""
    grid = ("map", CAT, *DELTA, "--grid", "3x2")
    return [
        (*grid, "--output", f"{target}.csv"),
        (*grid, "--output", f"{target}.npz"),
        (*grid, "--plot", f"{target}.png"),
        ("map", CAT, *DELTA, "--random", "3", "--output", f"{target}.csv"),
        ("quantize", CAT, "--scheme", "int8", "--quiet", "--out", f"{target}.json"),
        ("quantize", CAT, "--scheme", "fp16", "--quiet", "--out", f"{target}.npz"),
        ("export", CAT, "--label", "--delta", "0.01", "--output", f"{target}.smt2"),
        ("bits", IRIS, "--label", "--point", "5.1, 3.5, 1.4, 0.2", "--quiet", "--certificate", f"{target}.cert"),
        ("plot", "saturation", CAT, "--scheme", "q2.5", "--quiet", "--output", str(target)),
    ]


@pytest.mark.parametrize("number", range(9))
def test_a_full_disk(number: int, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in refused(capsys, *writing(tmp_path / "out")[number])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", range(9))
def test_a_folder_that_is_not_there(number: int, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "was not written" in refused(capsys, *writing(tmp_path / "no" / "out")[number])
    assert list(tmp_path.iterdir()) == []


def test_where_a_file_goes_is_looked_at_before_long_work(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    long = ("map", IRIS, *DELTA, "--axes", "1,2", "--grid", "100x100", "--timeout", "100")  # hours, over a box
    for option in ("--output", "--plot"):
        assert "it is a folder" in refused(capsys, *long, option, str(tmp_path / "taken"))
        assert "there is no folder" in refused(capsys, *long, option, str(tmp_path / "no" / "map"))
    bits = ("bits", IRIS, "--sigma", "0.26", "--quiet", "--certificate", str(tmp_path / "no" / "proof"))
    assert "there is no folder" in refused(capsys, *bits)


def test_pictures_and_reports_look_at_the_folder_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, points = str(tmp_path / "no" / "out"), tmp_path / "points.csv"
    points.write_text(HEAD + "5.1,3.5,1.4,0.2\n")
    at, data = ("--point", "5.1,3.5,1.4,0.2", "--scheme", "int8"), ("--points", str(points))
    monkeypatch.setattr("qrobust.cli.plots.read_model", lambda *_: pytest.fail("the model was read first"))
    for command in (
        ("bits", *data),
        ("margins", *data, "--scheme", "int8"),
        ("blame", *at),
        ("saturation", "--scheme", "q2.5"),
    ):
        kind, *rest = command
        assert "there is no folder" in refused(capsys, "plot", kind, IRIS, *rest, "--quiet", "--output", target)
    (tmp_path / "taken").write_text("")
    plan = str(models / "signoff" / "athletes_int8.toml")
    assert "taken" in refused(capsys, "signoff", plan, "--quiet", "--out", str(tmp_path / "taken" / "report"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["points.csv", "taken"]


def test_a_binarized_export_is_whole_or_absent(
    capsys: pytest.CaptureFixture[str], majority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("bnn", "verify", str(majority), "--input", "0, 0, 0", "--eps", "1", "--norm", "l1", "--quiet")
    assert "there is no folder" in refused(capsys, *ask, "--export", str(tmp_path / "no" / "q.cnf"))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert "No space left" in refused(capsys, *ask, "--export", str(tmp_path / "q.cnf"))
    assert sorted(tmp_path.iterdir()) == [majority]
    assert callable(save_binarized)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no rows"),
        (HEAD, ""),
        (HEAD + "nan,1,1,1\n", "finite"),
        (HEAD + "inf,1,1,1\n", "finite"),
        (HEAD + "1e400,1,1,1\n", ""),
        (HEAD + "1,2,3\n", ""),
        (HEAD + "x,y,z,w\n", ""),
        ("a,b\n1,2\n", ""),
        ("sepal length,sepal length,petal length,petal width\n1,2,3,4\n", ""),
        (HEAD + "1,2,3,\x00\n", ""),
    ],
)
def test_tables_that_hold_no_inputs(content: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    points = tmp_path / "points.csv"
    points.write_text(content)
    for command in (("map", IRIS, *DELTA), ("bits", IRIS, "--label", "--quiet")):
        assert message in refused(capsys, *command, "--points", str(points))


def test_folders_in_place_of_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command in (("map", IRIS, *DELTA, "--points"), ("inspect",), ("signoff",), ("map", IRIS, "--quiet", "--copy")):
        refused(capsys, *command, str(tmp_path))


@pytest.mark.parametrize("kind", ["pipe", "device", "link to itself"])
def test_what_is_no_file(kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A pipe that nobody writes would be waited for, a device may never end."""
    commands: list[tuple[str, ...]] = [
        ("inspect", f"m{suffix}") for suffix in (".json", ".keras", ".h5", ".onnx", ".npz", ".nnet", ".tflite", ".skops")
    ]
    commands += [("map", IRIS, *DELTA, "--points", "m.csv"), ("signoff", "m.toml"), ("replay", "m.cert")]
    commands += [("bnn", "verify", "m.json", "--input", "0", "--eps", "1"), ("bnn", "bracket", CAT, "--from", "m.json")]
    for parts in commands:
        target = next(part for part in parts if part.startswith("m."))
        path = tmp_path / target
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero" if kind == "device" else path.name)
        line = refused(capsys, *(str(path) if part == target else part for part in parts))
        assert target in line
        assert kind == "link to itself" or "is a pipe or a device: name a file" in line
        path.unlink()


def test_a_number_of_more_digits_than_python_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(f"title = {'1' * 5000}\n")
    assert "plan.toml is not TOML: Exceeds the limit" in refused(capsys, "signoff", str(tmp_path / "plan.toml"))


def test_a_table_that_is_too_large(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with (tmp_path / "m.csv").open("wb") as file:
        file.truncate(2**29 + 1)
    assert "at most 536,870,912 are read" in refused(capsys, "map", IRIS, *DELTA, "--points", str(tmp_path / "m.csv"))


def test_names_in_files_command_no_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    document = json.loads(Path(CAT).read_text())
    named, renamed = tmp_path / "named.json", "\x1b]0;owned\x07\x9b31m CAT\r\x08"
    named.write_text(json.dumps(document | {"name": renamed}))
    asked = ("--label", "--point", "15, 2", "--delta", "0.01")
    code, out, _ = run(capsys, "check", str(named), *asked)
    assert code == 1
    assert "?]0;owned??31m CAT" in out
    assert not any(ord(letter) < 32 and letter != "\n" for letter in out)
    assert "x?y" in refused(capsys, "check", str(tmp_path / "x\x1by.json"), *asked)
    code, out, _ = run(capsys, "check", str(named), *asked, "--json")
    assert json.loads(out)["network"]["name"] == renamed


@pytest.mark.parametrize("grid", ["0x0", "0x5", "5", "5x5x5", "", "-1x5", "1e3x1e3", "1000000x1000000", "1000000000000x1"])
def test_grids_of_no_cells_or_too_many(grid: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, *GRID, grid)


@pytest.mark.parametrize("axes", ["", "1", "1,1", "petal length, petal length", "1,9", "0,1", "no, such", "1,2,3", ","])
def test_axes_that_are_no_two_inputs(axes: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "map", IRIS, *DELTA, "--grid", "3x3", "--axes", axes)


@pytest.mark.parametrize(
    "point", ["", "1", "1,2,3,4,5", "nan,1,1,1", "inf,1,1,1", "1e400,1,1,1", "1/0,1,1,1", ",,,", "a,b,c,d"]
)
def test_points_that_are_none(point: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, *GRID, "3x2", "--point", point)
    refused(capsys, "blame", IRIS, *DELTA, "--point", point)


def test_numbers_as_large_as_floats_go(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """An answer, perhaps that nothing is known, and no word from the numerical library."""
    points = tmp_path / "points.csv"
    points.write_text(HEAD + HUGE + "\n")
    for command in (
        (*GRID, "2x1", "--point", HUGE),
        ("map", IRIS, "--delta", "1e308", "--quiet", "--timeout", "1", "--random", "1"),
        ("map", IRIS, *DELTA, "--timeout", "1", "--points", str(points)),
        ("map", CAT, *DELTA, "--timeout", "1", "--grid", "2x1", "--box=-1e308:1e308,-1e308:1e308"),
        ("blame", IRIS, *DELTA, "--point", HUGE),
    ):
        code, _, err = run(capsys, *command)
        assert "Warning" not in err
        assert code in (0, 2, 3)


@pytest.mark.parametrize("total", ["0", "-1", "nan"])
def test_a_total_of_no_time(total: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "time for all inputs" in refused(capsys, "map", CAT, *DELTA, "--random", "3", "--total", total)


def interrupted(process: subprocess.Popen[str]) -> None:
    """Send Ctrl-C; it ends at once, with its code and one line."""
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "error: interrupted; nothing was left half-written"
    assert "Traceback" not in err


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qrobust", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_keeps_what_a_map_has_answered(tmp_path: Path) -> None:
    kept, target = tmp_path / "kept", tmp_path / "map.csv"
    asked = ("--what", "label", "--backend", "z3")
    long = (*GRID, "300x300", *asked, "--box", "5:5.01,3:3.01,4:4.01,1:1.01", "--cache", str(kept), "--output", str(target))
    process = started(*long)
    deadline = time.monotonic() + 120
    while not list(kept.rglob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    interrupted(process)
    assert list(kept.rglob("*.json"))
    assert not list(kept.rglob("*.part"))
    assert not target.exists()


def test_ctrl_c_ends_a_search_for_widths(tmp_path: Path) -> None:
    process = started("bits", IRIS, "--eps", "0.3", "--timeout", "100", "--certificate", str(tmp_path / "proof"))
    assert process.stderr is not None
    assert process.stderr.readline().startswith("bits ")
    interrupted(process)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_a_sign_off(tmp_path: Path, models: Path) -> None:
    entry = '[[obligations]]\nid = "{}"\ntext = "t"\nask = "{}"\nscheme = "int4"\n{}\n'
    plan, out = tmp_path / "plan.toml", tmp_path / "out"
    first = entry.format("A", "label", 'data = "rows"')
    second = entry.format("B", "eps", 'eps = 0.3\ndomain = "all"')
    plan.write_text(
        f'title = "t"\n[model]\nfile = "{models / "iris.json"}"\n[data.rows]\nrandom = 5\ndomain = "all"\nseed = 0\n'
        '[domains.all]\nbox = { "sepal length" = [4, 8], "sepal width" = [2, 4], "petal length" = [1, 7],'
        f' "petal width" = [0.1, 2.5] }}\n{first}{second}'
    )
    process = started("signoff", str(plan), "--out", str(out))
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("A"), line
    interrupted(process)
    assert not list(out.glob("result.json"))
    assert not list(out.rglob("*.part"))
