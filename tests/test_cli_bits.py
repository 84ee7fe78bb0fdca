"""The commands bits, blame and plot: what they print, their exit codes, and bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_cli import CAT, IRIS, refused, run

POINT = ("--point", "5.9, 3.0, 4.2, 1.5")


def test_bits_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "bits", IRIS, "--label", *POINT)
    assert code == 0
    assert "uniform: 7 bits, ROBUST" in out
    assert "6 bits: VIOLATED" in out
    assert "--scheme int7/int6" in out
    assert "checked in exact arithmetic" in out
    assert "bits 7/6: ROBUST" in err


def test_bits_found_hold_in_check_and_can_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    copy = str(tmp_path / "copy.json")
    assert run(capsys, "check", IRIS, "--label", *POINT, "--scheme", "int7/int6")[0] == 0
    assert run(capsys, "check", IRIS, "--label", *POINT, "--scheme", "int6")[0] == 1
    assert run(capsys, "quantize", IRIS, "--scheme", "int7/int6", "--out", copy)[0] == 0
    assert run(capsys, "inspect", copy, "--of", IRIS, "--scheme", "int7/int6")[0] == 0


def test_bits_as_json_and_a_certificate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    proof = tmp_path / "proof.cert"
    code, out, err = run(capsys, "bits", IRIS, "--label", *POINT, "--json", "--certificate", str(proof))
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["uniform"]["widths"] == [7, 7]
    assert document["layers"]["verdict"] == "ROBUST"
    assert document["below"]["verdict"] == "VIOLATED"
    assert document["counterexample"]["input"] == [5.9, 3.0, 4.2, 1.5]
    assert document["layers"]["bits"] < document["float32_bits"]
    assert run(capsys, "replay", str(proof), "--model", IRIS)[0] == 0


def test_bits_that_no_width_keeps(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    proof = tmp_path / "proof.cert"
    code, out, err = run(capsys, "bits", CAT, "--label", "--certificate", str(proof), "--most", "4")
    assert code == 1
    assert out.startswith("no width of int was proved; 4 bits: VIOLATED")
    assert "heart weight" in out
    assert f"warning: {proof} was not written" in err
    assert not proof.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--label", "--scheme", "int8"), "without a width"),
        (("--label", "--scheme", "int", "--per-channel"), "give one of them"),
        (("--label", "--least", "9", "--most", "8"), "the least first"),
        (("--label", "--jobs", "2", "--scheduler", "tcp://x:1"), "do not go together"),
        ((), "say what is asked"),
    ],
)
def test_bits_refused(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str) -> None:
    assert says in refused(capsys, "bits", IRIS, *POINT, *arguments)


def test_blame_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "blame", IRIS, *POINT, "--scheme", "int6", "--top", "2")
    assert code == 0
    assert out.startswith("VIOLATED")
    assert "versicolor is 6.15259 ahead of virginica" in out
    assert "inputs, through layer 1: sepal length" in out
    assert "layer 1 alone in float: ROBUST" in out
    assert "the 2 channels with the greatest share in float: ROBUST" in out


def test_blame_names_what_helps_even_in_another_format(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "blame", IRIS, *POINT, "--scheme", "int6", "--keep", "int12", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["keep"] == "int12"
    assert [relief["verdict"] for relief in document["layer_reliefs"]] == ["ROBUST", "VIOLATED"]
    assert document["verdict"] == "VIOLATED"


def test_blame_of_what_is_robust_asks_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "blame", CAT, "--point", "20, 3.5", "--delta", "0.001")
    assert code == 0
    assert out.startswith("ROBUST")
    assert "alone in" not in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--scheme", "int8", "--keep", "int8/int8"), "one format"),
        ((), "say which parameters"),
        (("--scheme", "x"), "not known"),
    ],
)
def test_blame_refused(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str) -> None:
    assert says in refused(capsys, "blame", IRIS, *POINT, *arguments)
