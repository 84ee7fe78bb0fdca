"""Does the main job give the table that is known, write every file, and say where the paper is wrong?"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust.errors import ModelFileError, OutputError
from qrobust.report.demo import DELTAS, SUBJECTS, run_demo

KNOWN_CAT = {  # derived on paper: THEORY of the CAT model over [6.3, 20.5] x [2, 3.9]
    (0.005, "eps", None): 0.02853,
    (0.01, "eps", None): 0.05753,
    (0.005, "sigma", 1): 0.0243551,
    (0.005, "sigma", 0): 0.0213440,
    (0.01, "sigma", 1): 0.0522627,
    (0.01, "sigma", 0): 0.0401376,
}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "plots"
    said: list[str] = []
    assert run_demo(folder, say=said.append) == 0
    assert "refuted" in said[0]
    return folder


@pytest.fixture(scope="module")
def table(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((output / "table1.json").read_text())
    return rows


def test_table_has_every_estimate_with_its_keys(table: list[dict[str, Any]]) -> None:
    keys = {"model", "delta", "quantity", "class", "lower", "upper", "printed", "witness", "backend", "seconds"}
    assert all(keys <= set(row) for row in table)
    found = {(row["model"], row["delta"], row["quantity"], row["class"]) for row in table}
    wanted = {
        (s.name, delta, quantity, label)
        for s in SUBJECTS
        for delta in DELTAS
        for quantity, label in (("eps", None), ("sigma", 0), ("sigma", 1))
    }
    assert found == wanted
    assert len(table) == len(wanted)


def test_ends_are_close_and_hold_the_known_values(table: list[dict[str, Any]]) -> None:
    for row in table:
        assert 0 <= row["upper"] - row["lower"] <= 1e-6, row
    for row in (row for row in table if row["model"] == "CAT"):
        known = KNOWN_CAT[row["delta"], row["quantity"], row["class"]]
        assert row["lower"] - 5e-6 <= known <= row["upper"] + 5e-6, row


def test_cat_witnesses_attain_the_lower_end_in_plain_arithmetic(table: list[dict[str, Any]]) -> None:
    stored = np.array([0.07577862, 1.18118408, -3.51518067])
    for row in (row for row in table if row["model"] == "CAT"):
        x = np.array([float(Fraction(v)) for v in row["witness"]["input"]] + [1.0])
        layer = row["witness"]["parameters"][0]
        moved = np.array([float(Fraction(v)) for v in (*layer["weight"][0], *layer["bias"])])
        assert np.abs(moved - stored).max() <= row["delta"] * (1 + 1e-12)
        before, after = (1 / (1 + np.exp(-p @ x)) for p in (stored, moved))
        if row["quantity"] == "eps":
            assert abs(after - before) == pytest.approx(row["lower"], abs=1e-12)
            np.testing.assert_allclose(x[:2], [20.5, 2.0])
        else:
            assert abs(before - 0.5) == pytest.approx(row["lower"], abs=1e-12)
            assert (before > 0.5) == (row["class"] == 1)
            assert (after > 0.5) != (before > 0.5) or abs(after - 0.5) < 1e-12


def test_laws_hold_in_the_table(table: list[dict[str, Any]]) -> None:
    ends = {(r["model"], r["delta"], r["quantity"], r["class"]): r for r in table}
    for (model, delta, quantity, label), row in ends.items():
        if delta == 0.005:
            assert row["lower"] <= ends[model, 0.01, quantity, label]["upper"]
        if quantity == "sigma":
            assert row["lower"] <= ends[model, delta, "eps", None]["upper"]


def test_files_are_all_there_and_whole(output: Path) -> None:
    for subject in SUBJECTS:
        assert (output / f"{subject.figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (output / f"{subject.figure}.svg").read_text().rstrip().endswith("</svg>")
        for delta in DELTAS:
            for quantity in ("eps", "label"):
                rows = (output / f"{subject.figure}_{quantity}_{delta:g}.csv").read_text().splitlines()
                assert len(rows) == 1001
    assert not [p for p in output.iterdir() if p.name.endswith(".part")]


def test_report_names_what_is_wrong_and_where(output: Path) -> None:
    text = (output / "REPORT.md").read_text()
    assert "heart weight 20.5 g, body weight 2 kg" in text
    assert "eps is printed as 0.00691" in text
    assert "eps is printed as 0.05054" in text
    assert "Flippable points outside the sigma lines: 0" in text
    assert "rows seem to be swapped" in text


def test_missing_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"cat_paper\.json"):
        run_demo(tmp_path / "plots", models=tmp_path)
    assert not (tmp_path / "plots").exists()


def test_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("mine")
    with pytest.raises(OutputError, match="plots"):
        run_demo(tmp_path / "plots")
    assert (tmp_path / "plots").read_text() == "mine"
