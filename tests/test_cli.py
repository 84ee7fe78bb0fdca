"""Does the command line answer, with the right exit code, and meet bad input with one line?"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import qrobust
from qrobust import cli
from qrobust.errors import UnsoundAnswerError

ROOT = Path(__file__).parents[1]
CAT = str(ROOT / "models" / "cat_paper.json")
IRIS = str(ROOT / "models" / "iris.json")
KERAS = ROOT / "models" / "ath_relu.keras"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the program in this process; return exit code, output and errors."""
    old, sys.argv = sys.argv, ["qrobust", *arguments]
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = old
    captured = capsys.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else int(bool(code))), captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """Run with bad input: one line of error, nothing printed; return the line."""
    found, out, err = run(capsys, *arguments)
    assert found == code
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err


LABEL = ("--label", "--delta", "0.01")


def test_robust_is_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", CAT, *LABEL, "--point", "20, 3.5")
    assert (code, out[:7]) == (0, "ROBUST:")


def test_violated_is_exit_code_1_and_shows_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", CAT, *LABEL, "--point", "15, 2")
    assert (code, out[:9]) == (1, "VIOLATED:")
    assert "heart weight = 15 g" in out
    assert "confidence of male: 0.495966785 -> " in out


def test_unknown_is_exit_code_3_unless_only_violations_fail(capsys: pytest.CaptureFixture[str]) -> None:
    hard = ("check", IRIS, "--sigma", "0.26", "--delta", "0.005", "--timeout", "0.2")
    code, out, _ = run(capsys, *hard)
    assert (code, out[:8]) == (3, "UNKNOWN:")
    assert "time limit of" in out
    assert run(capsys, *hard, "--fail-on", "violated")[0] == 0


def test_json_holds_the_counterexample_and_provenance(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "check", CAT, *LABEL, "--point", "15, 2", "--json")
    document = json.loads(out)
    assert (code, err) == (1, "")
    assert document["verdict"] == "VIOLATED"
    assert document["counterexample"]["input"] == [15.0, 2.0]
    assert document["network"]["sha256"] == qrobust.load(CAT).sha256


def test_estimates_of_two_deltas(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "estimate", CAT, "eps", "--delta", "0.005", "--delta", "0.01", "--json")
    first, second = json.loads(out)
    assert code == 0
    assert first["lower"] <= 0.02853 <= first["upper"] + 5e-6
    assert second["lower"] <= 0.05753 <= second["upper"] + 5e-6


def test_sigma_of_one_class_by_name_and_index(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("male", "1"):
        _, out, _ = run(capsys, "estimate", CAT, "sigma", "--delta", "0.01", "--class", name, "--json")
        (only,) = json.loads(out)
        assert only["lower"] == pytest.approx(0.0522627, abs=1e-6)


def test_greatest_delta_at_a_point(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "estimate", CAT, "delta", "--point", "15, 2", "--json")
    (only,) = json.loads(out)
    by_hand = abs(-3.51518067 + 0.07577862 * 15 + 1.18118408 * 2) / (15 + 2 + 1)
    assert only["lower"] <= by_hand <= only["upper"]
    assert only["upper"] == pytest.approx(by_hand, rel=1e-5)


def test_map_writes_whole_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table, picture = tmp_path / "map.csv", tmp_path / "map.png"
    arguments = ("--delta", "0.01", "--what", "label", "--random", "50", "--output", str(table), "--plot", str(picture))
    code, out, _ = run(capsys, "map", CAT, *arguments)
    assert code == 0
    assert "50 points" in out
    assert len(table.read_text().splitlines()) == 51
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.csv", "map.png", "map.svg"]


def test_map_of_a_file_of_points_finds_columns_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    points = tmp_path / "points.csv"
    points.write_text("body weight,heart weight\n2,15\n3.5,20\n")
    _, out, _ = run(capsys, "map", CAT, "--delta", "0.01", "--what", "label", "--points", str(points), "--json")
    document = json.loads(out)
    assert document["points"] == [[15.0, 2.0], [20.0, 3.5]]
    assert document["counts"] == {"safe": 1, "flippable": 1, "undecided": 0}


@pytest.mark.parametrize("encoding", ["explicit", "eliminated"])
def test_export_is_read_back_with_the_same_verdict(capsys: pytest.CaptureFixture[str], tmp_path: Path, encoding: str) -> None:
    import z3

    target = tmp_path / "query.smt2"
    for point, verdict in (("15, 2", z3.sat), ("20, 3.5", z3.unsat)):
        arguments = ("--point", point, "--encoding", encoding, "--output", str(target))
        assert run(capsys, "export", CAT, *LABEL, *arguments)[0] == 0
        solver = z3.Solver()
        solver.from_string(target.read_text())
        assert solver.check() == verdict


def test_export_of_two_networks_as_vnnlib(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import vnnlib

    copy = document()
    copy["layers"][0]["weight"][0][0] += 0.01
    (tmp_path / "copy.json").write_text(json.dumps(copy))
    target = tmp_path / "query.vnnlib"
    arguments = ("--eps", "0.01", "--against", str(tmp_path / "copy.json"), "--format", "vnnlib")
    code, out, _ = run(capsys, "export", CAT, *arguments, "--output", str(target))
    assert code == 0
    assert "query_f.onnx" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.json", "query.vnnlib", "query_f.onnx", "query_g.onnx"]
    assert len(vnnlib.parse_query_file(str(target)).networks) == 2
    assert qrobust.load(tmp_path / "query_f.onnx") == qrobust.load(CAT)
    assert qrobust.load(tmp_path / "query_g.onnx") == qrobust.load(tmp_path / "copy.json")
    for wrong in (("export", CAT, *arguments), ("export", CAT, *LABEL, "--format", "vnnlib", "--output", str(target))):
        assert "give --against and --output" in refused(capsys, *wrong)


def test_doctor_tries_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor", "--json")
    found = {finding["name"]: finding for finding in json.loads(out)}
    assert code == 0
    assert found["z3"]["works"]
    assert "libibex" in found["dreal (Python module)"]["detail"] or found["dreal (Python module)"]["works"]


def test_help_teaches_with_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "estimate", "map", "export"):
        code, out, _ = run(capsys, command, "--help")
        assert code == 0
        assert f"qrobust {command} models/cat_paper.json" in out


def test_python_m_qrobust_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "qrobust", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"qrobust {qrobust.__version__}\n"
    assert done.stderr == ""


def test_the_function_check_is_not_hidden_by_the_module() -> None:
    assert callable(qrobust.check)
    from qrobust.check import violation_fault

    assert callable(violation_fault)
    assert callable(qrobust.check)


# Bad input, one test each.


def test_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing.json does not exist" in refused(capsys, "check", "nothing.json", *LABEL)


def test_empty_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty.keras").write_bytes(b"")
    assert "is empty" in refused(capsys, "check", str(tmp_path / "empty.keras"), *LABEL)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_keras(capsys: pytest.CaptureFixture[str], tmp_path: Path, share: float) -> None:
    content = KERAS.read_bytes()
    (tmp_path / "cut.keras").write_bytes(content[: int(len(content) * share)])
    assert "is not a whole .keras file" in refused(capsys, "check", str(tmp_path / "cut.keras"), *LABEL)


@pytest.mark.parametrize("command", [("check", *LABEL), ("export", *LABEL), ("map", "--delta", "0.01")])
@pytest.mark.parametrize("suffix", [".onnx", ".npz", ".h5"])
def test_hostile_files_are_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str, command: tuple[str, ...]
) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(b"\x3a\x02\x0a\xff" * 50)
    refused(capsys, command[0], str(path), *command[1:])
    assert list(tmp_path.iterdir()) == [path]


def document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Path(CAT).read_text())
    return loaded


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(capsys: pytest.CaptureFixture[str], tmp_path: Path, value: float) -> None:
    model = document()
    model["layers"][0]["weight"][0][0] = value
    (tmp_path / "m.json").write_text(json.dumps(model))
    assert "layer 1: a dense layer has NaN or infinite weights" in refused(capsys, "check", str(tmp_path / "m.json"), *LABEL)


def test_mismatched_shapes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = document()
    model["layers"].insert(0, {"type": "dense", "activation": "relu", "weight": [[1.0, 2.0]], "bias": [0.0]})
    (tmp_path / "m.json").write_text(json.dumps(model))
    assert "layer 2 takes 2 inputs but layer 1 gives 1" in refused(capsys, "check", str(tmp_path / "m.json"), *LABEL)


def test_unknown_activation(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = document()
    model["layers"][0]["activation"] = "swish"
    (tmp_path / "m.json").write_text(json.dumps(model))
    assert "activation 'swish' is not known" in refused(capsys, "check", str(tmp_path / "m.json"), *LABEL)


def test_negative_delta(capsys: pytest.CaptureFixture[str]) -> None:
    assert "delta is -1.0" in refused(capsys, "check", CAT, "--label", "--delta", "-1")


def test_lower_above_upper(capsys: pytest.CaptureFixture[str]) -> None:
    assert "above its upper end 6.3" in refused(capsys, "check", CAT, *LABEL, "--box", "20.5:6.3, 2:3.9")


def test_point_outside_the_domain(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "check", CAT, *LABEL, "--point", "15, 2", "--box", "6:10, 2:3")
    assert "heart weight is 15, the box allows [6, 10]" in line


def test_wrong_number_of_features(capsys: pytest.CaptureFixture[str]) -> None:
    assert "3 numbers, the model takes 2: heart weight, body weight" in refused(
        capsys, "check", CAT, *LABEL, "--point", "1, 2, 3"
    )


def test_cell_that_is_no_number(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    points = tmp_path / "points.csv"
    points.write_text("heart weight,body weight\n15,2\n16,heavy\n")
    line = refused(capsys, "map", CAT, "--delta", "0.01", "--points", str(points))
    assert "row 2, column 'body weight': 'heavy' is not a number" in line


def test_zero_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the time limit is 0 s" in refused(capsys, "check", CAT, *LABEL, "--timeout", "0")


def test_unknown_backend_and_one_that_cannot_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no backend is called 'cvc9'" in refused(capsys, "check", CAT, *LABEL, "--backend", "cvc9")
    line = refused(capsys, "check", CAT, "--eps", "0.1", "--delta", "0.01", "--backend", "z3")
    assert "z3 cannot answer this" in line


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--label",),
        ("--label", "--eps", "0.1", "--delta", "0.01"),
        ("--label", "--delta", "0.01", "--delta-per-layer", "0.01"),
        ("--label", "--delta", "x"),
        ("--label", "--delta", "0.01", "--point", "a, b"),
        ("--label", "--delta", "0.01", "--box", "1, 2"),
        ("--label", "--delta", "0.01", "--where", "x3 <= 1"),
        ("--label", "--delta", "0.01", "--level", "1"),
        ("--eps", "2", "--delta", "0.01"),
        ("--label", "--delta", "0.01", "--nonsense"),
    ],
)
def test_options_that_do_not_fit(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    refused(capsys, "check", CAT, *arguments)


def test_joblib_needs_trust(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "m.joblib").write_bytes(b"anything")
    assert "--trust-pickle" in refused(capsys, "check", str(tmp_path / "m.joblib"), *LABEL)


def test_missing_output_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "no" / "map.csv"
    arguments = ("--delta", "0.01", "--random", "5", "--quiet", "--output", str(target))
    assert "was not written" in refused(capsys, "map", CAT, *arguments)


def test_full_disk_leaves_what_was_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "map.csv"
    target.write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    arguments = ("--delta", "0.01", "--random", "5", "--quiet", "--output", str(target))
    assert "No space left on device" in refused(capsys, "map", CAT, *arguments)
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_an_unsound_answer_is_exit_code_4(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def lie(*_: object, **__: object) -> None:
        raise UnsoundAnswerError("z3 claims a violation that does not replay")

    monkeypatch.setattr(qrobust.Session, "check", lie)
    refused(capsys, "check", CAT, *LABEL, code=4)


def test_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "map.csv"
    command = [sys.executable, "-m", "qrobust", "map", IRIS, "--axes", "petal length, petal width"]
    arguments = ["--grid", "300x300", "--delta", "0.05", "--what", "label", "--backend", "z3", "--output", str(target)]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(6)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "error: interrupted; nothing was left half-written"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_solver_leaves_no_process() -> None:
    arguments = ["check", IRIS, "--sigma", "0.26", "--delta", "0.005", "--backend", "z3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "qrobust", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("this system does not list a process's children under /proc")
    deadline = time.monotonic() + 20
    while not children.read_text().split() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children.read_text().split()
    assert workers
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    time.sleep(0.2)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_a_map_of_four_inputs_is_not_computed_to_be_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capsys, "map", IRIS, "--delta", "0.01", "--plot", str(tmp_path / "map.png"))
    assert "a map is drawn over 2 inputs" in line


def test_other_columns_of_a_file_of_points_may_hold_anything(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    points = tmp_path / "points.csv"
    points.write_text("name,heart weight,body weight\nTom,20,3.5\n")
    assert run(capsys, "check", CAT, *LABEL, "--points", str(points))[0] == 0
