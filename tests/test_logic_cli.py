"""`qrobust bnn explain`, `count` and `compile`: answers, exit codes, files, and one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qrobust.binarized import BinarizedNetwork, Block, Grid
from qrobust.binarized.formats import save_binarized
from tests.binarized import sparse_dense
from tests.test_cli import refused, run

IRIS = str(Path(__file__).parent.parent / "models" / "iris.json")


def saved(path: Path, bias: float) -> Path:
    block = Block(sparse_dense(np.ones((1, 3)), np.array([bias])))
    network = BinarizedNetwork(Grid.of(1, 0, 1), (block,), sparse_dense(np.array([[-1.0], [1.0]])), classes=("few", "many"))
    save_binarized(network, path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Label 1 where two or more of three bits are set."""
    return saved(tmp_path / "majority.json", -1.5)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Label 1 where all three bits are set."""
    return saved(tmp_path / "all.json", -2.5)


def test_explanations(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "bnn", "explain", str(model), "--input", "1, 1, 1", "--names", "a,b,c", "--rather", "a,b")
    assert code == 0
    assert out.startswith("abductive: 2 features (a, b) fix the label many; subset-minimal. [checked, confirmed by ")
    code, out, _ = run(capsys, "bnn", "explain", str(model), "--input", "1, 1, 1", "--names", "a,b,c", "--rather", "2, 3")
    assert out.startswith("abductive: 2 features (b, c) fix the label many")
    code, out, _ = run(capsys, "bnn", "explain", str(model), "--input", "1, 1, 0", "--all", "--order", "size", "--json")
    document = json.loads(out)
    assert (code, document["complete"], document["label"]) == (0, True, "many")
    kinds = [(each["kind"], each["features"]) for each in document["explanations"]]
    assert sorted(kinds) == [("abductive", [0, 1]), ("contrastive", [0]), ("contrastive", [1])]
    code, out, _ = run(capsys, "bnn", "explain", str(model), "--input", "1, 1, 1", "--all", "--most", "1", "--json")
    assert (code, json.loads(out)["complete"]) == (0, False)
    picture = tmp_path / "why"
    options = ("--kind", "contrastive", "--size", "least", "--picture", str(picture))
    code, out, _ = run(capsys, "bnn", "explain", str(model), "--input", "1, 1, 1", *options)
    assert code == 0
    assert "of least size" in out
    assert picture.with_suffix(".csv").read_text().splitlines()[0] == "feature,name,value,unit,said"
    assert len(picture.with_suffix(".csv").read_text().splitlines()) == 3
    assert picture.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_an_explanation_overlies_a_square_image(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    block = Block(sparse_dense(np.eye(25)[12:13], np.array([-0.5])))
    network = BinarizedNetwork(Grid.of(1, 0, 1), (block,), sparse_dense(np.array([[-1.0], [1.0]])))
    save_binarized(network, tmp_path / "centre.npz")
    image = ",".join(["1"] * 25)
    code, out, _ = run(
        capsys, "bnn", "explain", str(tmp_path / "centre.npz"), "--input", image, "--picture", str(tmp_path / "overlay")
    )
    assert code == 0
    assert "1 feature (pixel (2, 2)) fixes the label 1" in out
    assert (tmp_path / "overlay.svg").exists()


def test_ordinary_networks_and_roundings(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--real", "--input", "5.9, 3.0, 4.2, 1.5")
    code, out, _ = run(capsys, "bnn", "explain", IRIS, *options, "--kind", "contrastive", "--json")
    document = json.loads(out)
    assert (code, document["checked"], document["subset_minimal"]) == (0, True, True)
    assert document["names"][0] == "sepal length"
    code, out, _ = run(capsys, "bnn", "explain", IRIS, *options, "--eps", "0.1", "--scheme", "int16")
    assert code == 0
    assert "no feature is needed: whatever all do, the label is versicolor" in out


def test_counts(capsys: pytest.CaptureFixture[str], model: Path, copy: Path) -> None:
    code, out, _ = run(capsys, "bnn", "count", str(model), "--input", "0, 0, 0", "--eps", "2", "--norm", "hamming", "--json")
    document = json.loads(out)
    assert (code, document["lower"], document["upper"], document["inputs"]) == (0, 3, 3, 7)
    assert document["exact_share"] == ["3/7", "3/7"]
    code, out, _ = run(capsys, "bnn", "count", str(model), "--copy", str(copy), "--counter", "exact")
    assert code == 0
    assert out.startswith("3 of 8 (")
    assert "a share in [37.5 %, 37.5 %]" in out
    code, out, _ = run(capsys, "bnn", "count", str(model), "--feature", "1")
    assert out.startswith("4 of 8 (")


def test_compilation(capsys: pytest.CaptureFixture[str], model: Path, copy: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        capsys,
        "bnn",
        "compile",
        str(model),
        "--robustness",
        "--monotone",
        "--sdd",
        "--primes",
        "1",
        "--draw",
        str(tmp_path / "d"),
    )
    assert code == 0
    assert "many: 4 of 8 inputs, 0.5" in out
    assert "6 inputs lose their label by changing 1 feature," in out
    assert "2 inputs lose their label by changing 2 features" in out
    assert "input 1 speaks for many" in out
    assert "input 1 at level 1 and input 2 at level 1" in out
    assert (tmp_path / "d.png").exists()
    code, out, _ = run(capsys, "bnn", "compile", str(model), "--copy", str(model))
    assert code == 0
    assert "equivalent" in out
    code, out, _ = run(capsys, "bnn", "compile", str(model), "--copy", str(copy), "--json")
    document = json.loads(out)
    assert (code, document["differences"], sum(document["witness"])) == (1, 3, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["explain"], "give --input"),
        (["explain", "--input", "1,1"], "takes 3"),
        (["explain", "--input", "1,1,1", "--names", "a,a,b"], "2 different names"),
        (["explain", "--input", "1,1,1", "--rather", "nose"], "no feature 'nose'"),
        (["explain", "--input", "1,1,1", "--label", "0"], "not few"),
        (["explain", "--input", "1,1,1", "--scheme", "int8"], "go with --real"),
        (["explain", "--input", "1,1,1", "--timeout", "0"], "time limit"),
        (["count"], "say what is counted"),
        (["count", "--input", "0,0,0", "--label", "7"], "classes 0 to 1"),
        (["count", "--feature", "9"], "no feature '9'"),
        (["count", "--feature", "0"], "a number from 1 to 3"),
        (["count", "--feature", "9" * 5000], "a number from 1 to 3"),
        (["count", "--feature", "1", "--copy", "x.json"], "two questions"),
        (["count", "--label", "0", "--norm", "l1"], "goes with --eps"),
        (["count", "--label", "0", "--counter", "approximate", "--epsilon", "0"], "epsilon is 0"),
        (["compile", "--eps", "1"], "go together"),
        (["compile", "--primes", "2"], "classes 0 to 1"),
        (["compile", "--nodes", "3"], "its limit is 3"),
    ],
)
def test_bad_usage_is_one_line(capsys: pytest.CaptureFixture[str], model: Path, options: list[str], message: str) -> None:
    command, *rest = options
    assert message in refused(capsys, "bnn", command, str(model), *rest)


def test_real_valued_networks_are_refused_where_bits_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "iris.json" in refused(capsys, "bnn", "count", IRIS, "--label", "0")
