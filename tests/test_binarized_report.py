"""`qrobust bnn report`: shares against trying every input, documents, pictures, resuming, and being interrupted."""

from __future__ import annotations

import hashlib
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust.answers import Verdict
from qrobust.binarized import BinarizedNetwork, BinarizedSession, Block, Grid, fold
from qrobust.binarized.formats import save_binarized
from qrobust.cache import ResultCache
from qrobust.errors import DomainError, NumberError, ShapeError
from qrobust.report.binarized import Survey, run_survey
from tests.binarized import all_levels, network, sparse_dense
from tests.test_binarized_race import hard, interrupt
from tests.test_cli import refused, run


def small() -> tuple[BinarizedNetwork, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A random network of few inputs, rows of its grid, and classes of which some are wrong."""
    rng = np.random.default_rng(11)
    found = next(each for each in (network(rng) for _ in range(99)) if len(each.blocks) == 2 and len(all_levels(each)) > 200)
    levels = all_levels(found)[rng.permutation(len(all_levels(found)))[:12]]
    labels = fold(found).labels(levels)
    labels[:3] = (labels[:3] + 1) % found.outputs
    return found, found.grid.values(levels), labels


def test_shares_are_those_of_trying_every_input() -> None:
    found, inputs, labels = small()
    step, integers, levels = found.grid.step, fold(found), all_levels(found)
    surveyed = run_survey(Survey(found, inputs, labels, (Fraction(0), step, 2 * step)), jobs=2)
    own = integers.labels(found.grid.levels(inputs))
    assert surveyed.survey.accuracy == float((own == labels).mean()) == 0.75
    for radius in surveyed.radii:
        kept = []
        for x, label in zip(found.grid.levels(inputs), own.tolist(), strict=True):
            near = levels[(np.abs(levels - x) * float(step) <= float(radius.eps) + 1e-9).all(axis=1)]
            kept.append(bool((integers.labels(near) == label).all()))
        assert [one.verdict is Verdict.ROBUST for one in radius.answers] == kept
        share = float((np.array(kept) & (own == labels)).mean())
        assert radius.verified == (share, share)
        assert radius.decided == 1.0
        assert sum(radius.engines.values()) == len(inputs)


def test_kept_answers_are_not_asked_again_and_forged_ones_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, inputs, labels = small()
    survey = Survey(found, inputs, labels, (2 * found.grid.step,))
    first = run_survey(survey, cache=ResultCache(tmp_path))
    asked = []
    plain = BinarizedSession.check

    def check(session: BinarizedSession, query: Any, **settings: Any) -> Any:
        asked.append(query)
        return plain(session, query, **settings)

    monkeypatch.setattr(BinarizedSession, "check", check)
    again = run_survey(survey, cache=ResultCache(tmp_path))
    assert asked == []
    assert [one.verdict for one in again.radii[0].answers] == [one.verdict for one in first.radii[0].answers]
    violated = next(one for one in first.radii[0].answers if one.verdict is Verdict.VIOLATED)
    centre = found.grid.levels(inputs)[violated.row]
    monkeypatch.setattr(
        ResultCache,
        "document",
        lambda cache, key: violated.settled.to_json() | {"levels": centre.tolist()},
    )
    third = run_survey(survey, cache=ResultCache(tmp_path))
    assert len(asked) == len(inputs)
    assert [one.verdict for one in third.radii[0].answers] == [one.verdict for one in first.radii[0].answers]


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """A network of 4x4 images by how many of their bits are set, and a table."""
    block = Block(sparse_dense(np.ones((1, 16)), np.array([-7.5])))
    found = BinarizedNetwork(Grid.of(1, 0, 1), (block,), sparse_dense(np.array([[-1.0], [1.0]])), "bits", ("few", "many"))
    save_binarized(found, tmp_path / "bits.npz")
    rows = [[1] * count + [0] * (16 - count) + [int(count >= 8)] for count in (0, 7, 8, 16)]
    lines = [",".join([f"p{i}" for i in range(16)] + ["class"]), *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "bits.npz", tmp_path / "table.csv"


def test_the_command_writes_three_documents(
    capsys: pytest.CaptureFixture[str], images: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "report"
    arguments = ["bnn", "report", *map(str, images), "--eps", "0, 1, 3", "--norm", "l0", "--out", str(out), "--jobs", "2"]
    code, said, _ = run(capsys, *arguments)
    assert code == 0
    assert "eps 1: verified accuracy 50.00%, 100.00% decided" in said
    found = json.loads((out / "result.json").read_text())
    assert (found["schema"], found["accuracy"], found["rows"]) == ("qrobust-bnn-report-1", 1.0, 4)
    assert [each["verified"] for each in found["eps"]] == [[1.0, 1.0], [0.5, 0.5], [0.5, 0.5]]
    lost = [each for each in found["eps"][1]["answers"] if each["verdict"] == "VIOLATED"]
    assert [(each["row"], sum(each["levels"])) for each in lost] == [(2, 8), (3, 7)]
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert page.count("data:image/png;base64,") == 3  # the curve, and counterexamples at two eps
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert "| 1 | 100.00 % | 50.00 % | 2 | 2 | 0 |" in text
    assert "Violated rows: 2 (few to many), 3 (many to few)" in text
    code, again, _ = run(capsys, *arguments, "--json")
    assert code == 0
    assert json.loads(again)["eps"] == found["eps"]  # seconds and all: nothing was asked again


def test_a_report_names_the_files_that_it_was_made_of(
    capsys: pytest.CaptureFixture[str], images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the questions are answered, one file is written anew and the other is gone."""
    model, table = images
    read = hashlib.sha256(model.read_bytes()).hexdigest(), hashlib.sha256(table.read_bytes()).hexdigest()

    def answered(survey: Survey, **settings: Any) -> Any:
        model.write_bytes(b"another")
        table.unlink()
        return run_survey(survey, **settings)

    monkeypatch.setattr("qrobust.report.binarized.run_survey", answered)
    code, said, _ = run(capsys, "bnn", "report", *map(str, images), "--eps", "0", "--out", str(tmp_path / "out"), "--json")
    assert code == 0
    found = json.loads((tmp_path / "out/result.json").read_text())
    assert (found["model"]["sha256"], found["table"]["sha256"]) == read
    assert json.loads(said)["model"] == found["model"]


def test_what_is_undecided_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = hard()
    save_binarized(found, tmp_path / "hard.npz")
    centre = np.random.default_rng(0).integers(0, 2, size=found.inputs).tolist()
    (tmp_path / "x.csv").write_text(f"{','.join(f'p{i}' for i in range(401))}\n{','.join(map(str, centre))},0\n")
    code, said, _ = run(
        capsys,
        "bnn",
        "report",
        str(tmp_path / "hard.npz"),
        str(tmp_path / "x.csv"),
        "--eps",
        "6",
        "--norm",
        "l0",
        "--timeout",
        "1",
        "--out",
        str(tmp_path / "out"),
    )
    assert code == 3
    assert "verified accuracy in [0.00%, 100.00%], 0.00% decided" in said


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are listed by /proc")
def test_an_interrupted_report_leaves_no_process(tmp_path: Path) -> None:
    found = hard()
    save_binarized(found, tmp_path / "hard.npz")
    rows = np.random.default_rng(0).integers(0, 2, size=(6, found.inputs)).tolist()
    lines = [",".join(f"p{i}" for i in range(401)), *(",".join(map(str, row)) + ",0" for row in rows)]
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    files = (str(tmp_path / "hard.npz"), str(tmp_path / "x.csv"))
    interrupt(4, 20, "bnn", "report", *files, "--eps", "6", "--norm", "l0", "--jobs", "2", "--out", str(tmp_path / "out"))


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], images: tuple[Path, Path], tmp_path: Path) -> None:
    model, table = map(str, images)
    out = ["--out", str(tmp_path / "out")]
    for options, message in (
        (["--eps", " , "], "give a radius"),
        (["--eps", "-1"], "eps is -1"),
        (["--eps", "2"], "reach only 1"),
        (["--eps", "1", "--engine", "abacus"], "no engine 'abacus'"),
        (["--eps", "1", "--timeout", "0"], "time limit"),
        (["--eps", "1", "--jobs", "0"], "jobs"),
    ):
        assert message in refused(capsys, "bnn", "report", model, table, *options, *out)
    Path(table).write_text("a,b\n0,1\n")
    assert "1 inputs and a class" in refused(capsys, "bnn", "report", model, table, "--eps", "1", *out)
    found, inputs, labels = small()
    with pytest.raises(DomainError, match="has the class 99"):
        Survey(found, inputs, labels * 0 + 99, (Fraction(0),))
    with pytest.raises(NumberError, match="a row and an eps"):
        Survey(found, inputs, labels, ())
    with pytest.raises(ShapeError, match="inputs, the network takes"):
        Survey(found, inputs[:, 1:], labels, (Fraction(0),))
