"""`qrobust bnn bracket`: answers, exit codes, files, one line for bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qrobust.binarized.bracket_files import load_bracket, save_bracket
from qrobust.binarized.formats import load_binarized
from qrobust.formats import save
from qrobust.layers import Dense
from qrobust.network import Network, Output
from tests.test_cli import refused, run

MODELS = Path(__file__).parents[1] / "models"
CAT = str(MODELS / "cat_paper.json")
QUICK = ("--thresholds", "4", "--hidden", "6", "--starts", "1", "--rounds", "2")


def test_a_pair_is_built_written_and_proved_anew(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pair, rows = tmp_path / "male.npz", tmp_path / "rows.csv"
    rows.write_text("body weight,heart weight\n3.9,20\n2.0,6.5\n")
    given = ("--class", "male", *QUICK, "--data", str(rows), "--output", str(pair), "--plot", str(tmp_path / "male"))
    code, out, err = run(capsys, "bnn", "bracket", CAT, *given, "--point", "20, 3.9")
    assert code == 0
    assert out.startswith("PROVED: two networks of signs around CAT (paper), class male")
    assert "of 2 rows: yes 50.00%" in out
    assert "at (20, 3.9): YES, CAT (paper) says male." in out
    assert "round 2" in err
    assert (tmp_path / "male.png").stat().st_size > 10_000
    assert load_binarized(pair).network.outputs == 3
    code, out, _ = run(capsys, "bnn", "bracket", CAT, "--from", str(pair), "--json", "--point", "6.5, 2.0")
    document = json.loads(out)
    assert code == 0
    assert [(half["side"], half["verdict"]) for half in document["halves"]] == [("yes", "PROVED"), ("no", "PROVED")]
    assert document["bits"][0].startswith("heart weight >= ")
    assert document["bits"][0].endswith(" g")
    assert document["point"]["answer"] in ("ASK", "NO")
    assert document["volume"]["exact"]
    code, out, err = run(capsys, "bnn", "bracket", CAT, "--from", str(pair), "--quiet")
    assert (code, out, err) == (0, "", "")


def test_a_pair_that_was_tampered_with_is_violated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "male.json"
    assert run(capsys, "bnn", "bracket", CAT, "--class", "1", *QUICK, "-o", str(path), "--quiet")[0] == 0
    pair = load_bracket(path)
    last = pair.network.output
    bias = last.layer.bias.copy()
    bias[1] = 99.0  # yes speaks everywhere
    assert isinstance(last.layer, Dense)
    output = replace(last, layer=Dense(last.layer.weight, bias))
    save_bracket(replace(pair, network=replace(pair.network, output=output)), path)
    code, out, _ = run(capsys, "bnn", "bracket", CAT, "--from", str(path))
    assert code == 1
    assert out.startswith("VIOLATED")
    assert "heart weight = " in out
    assert " kg" in out
    code, out, _ = run(capsys, "bnn", "bracket", CAT, "--from", str(path), "--json")
    yes, no = json.loads(out)["halves"]
    assert (code, yes["verdict"], yes["assurance"], no["verdict"]) == (1, "VIOLATED", "CHECKED", "PROVED")
    assert len(yes["counterexample"]) == 2


def test_given_thresholds_are_the_bits(capsys: pytest.CaptureFixture[str]) -> None:
    own = ("--threshold", "heart weight: 12, 8.5", "--threshold", "body weight: 2.3", "--threshold", "heart weight: 10")
    code, out, _ = run(capsys, "bnn", "bracket", CAT, "--class", "male", *own, "--hidden", "6", "--starts", "1", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["bits"] == [
        "heart weight >= 8.5 g",
        "heart weight >= 10 g",
        "heart weight >= 12 g",
        "body weight >= 2.3 kg",
    ]
    assert document["volume"]["count"] == 8


def test_a_pair_is_improved_and_never_made_worse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    _, out, _ = run(capsys, "bnn", "bracket", CAT, "--class", "male", *QUICK, "-o", str(first), "--json")
    before = json.loads(out)["volume"]
    going_on = ("--improve", str(first), "--seed", "5", "-o", str(second), "--hidden", "12", "--rounds", "3", "--starts", "1")
    code, out, _ = run(capsys, "bnn", "bracket", CAT, *going_on, "--json")
    after = json.loads(out)["volume"]
    assert code == 0
    assert after["yes"] >= before["yes"]
    assert after["no"] >= before["no"]
    assert run(capsys, "bnn", "bracket", CAT, "--from", str(second), "--quiet")[0] == 0
    assert "leave --class" in refused(capsys, "bnn", "bracket", CAT, "--improve", str(first), "--class", "male")
    other = str(MODELS / "ath_relu.json")
    assert "made for network" in refused(capsys, "bnn", "bracket", other, "--improve", str(first))


def test_a_silent_pair_is_unknown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """f is 0 throughout, so it says no class strictly, and neither of the two may speak."""
    save(Network((Dense(np.zeros((1, 1)), np.zeros(1)),), Output.SIGMOID, "flat"), tmp_path / "flat.json")
    options = ("--class", "1", "--box", "0:1", *QUICK)
    code, out, _ = run(capsys, "bnn", "bracket", str(tmp_path / "flat.json"), *options)
    assert code == 3
    assert out.startswith("UNKNOWN")
    assert "both are silent everywhere" in out


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "bnn", "bracket", "--help")
    assert code == 0
    assert all(
        text in out for text in ("--class", "--threshold", "ask f", "qrobust bnn bracket models/cat_paper.json --class male")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "one of female, male"),
        (["--class", "tiger"], "no class 'tiger'"),
        (["--class", "2"], "no class '2'"),
        (["--class", "male", "--box", "7:6, 2:3"], "swap them"),
        (["--class", "male", "--box", "7:7, 2:2"], "no threshold"),
        (
            ["--class", "male", "--threshold", "heart weight: 99", "--threshold", "body weight: 3"],
            "does not lie inside the box",
        ),
        (["--class", "male", "--threshold", "heart weight: 8, 8"], "given twice"),
        (["--class", "male", "--threshold", "tail: 3"], "known: heart weight, body weight"),
        (["--class", "male", "--threshold", "heart weight: x"], "number 1 is 'x'"),
        (["--class", "male", "--hidden", "0"], "must have 1 to"),
        (["--class", "male", "--hidden", "2.5"], "whole numbers"),
        (["--class", "male", "--punish", "-1"], "above 0"),
        (["--class", "male", "--timeout", "0"], "time limit"),
        (["--class", "male", "--output", "pair.txt"], "ends in .npz or .json"),
        (["--class", "male", "--from", "pair.json"], "leave --class"),
        (["--from", CAT], "qrobust-binarized"),
    ],
)
def test_bad_usage_is_one_line(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert message in refused(capsys, "bnn", "bracket", CAT, *options)


def test_points_outside_the_domain_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("heart weight,body weight\n20,3\n200,3\n")
    assert "point 2 lies outside" in refused(capsys, "bnn", "bracket", CAT, "--class", "male", "--data", str(rows))
