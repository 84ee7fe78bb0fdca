"""The commands bits, blame and plot: what they print, their exit codes, and bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qrobust.certificates import load_certificate
from qrobust.check import certificate_fault
from qrobust.formats import load
from qrobust.perturbations import Rounding
from qrobust.quantization import parse_scheme
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


IRIS_BOX = ("--box", "4.3:7.9, 2:4.4, 1:6.9, 0.1:2.5")
AXES = ("--axes", "petal length, petal width", *IRIS_BOX)


def points_file(folder: Path) -> str:
    path = folder / "points.csv"
    path.write_text("sepal length,sepal width,petal length,petal width\n5.1,3.5,1.4,0.2\n5.9,3.0,4.2,1.5\n6.3,2.8,5.1,1.5\n")
    return str(path)


def test_a_map_over_two_of_four_inputs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, csv = tmp_path / "map", tmp_path / "map.csv"
    options = ("--scheme", "int6", "--what", "label", *AXES, "--grid", "8x6", "--point", "5.8, 3, 4, 1")
    code, text, _ = run(capsys, "map", IRIS, *options, "--plot", str(out), "--output", str(csv))
    assert code == 0
    assert "labels at 48 cells over petal length and petal width of iris" in text
    assert len(csv.read_text().splitlines()) == 49
    assert out.with_suffix(".png").exists()
    code, text, _ = run(capsys, "map", IRIS, *options, "--json", "--output", str(tmp_path / "map.npz"))
    document = json.loads(text)
    assert document["fixed"]
    assert sum(document["counts"].values()) == 48
    assert (tmp_path / "map.npz").exists()


def test_a_map_of_the_worst_over_the_other_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    box = ("--box", "5.7:5.9, 3:3.1, 1:6.9, 0.1:2.5")
    options = ("--scheme", "int8", "--what", "label", "--axes", "3,4", *box, "--grid", "3x3", "--timeout", "5")
    code, text, _ = run(capsys, "map", IRIS, *options)
    assert code == 0
    assert "the worst over the other inputs' ranges" in text


def test_data_points_over_two_axes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ("--scheme", "int8", "--what", "label", "--axes", "1,3", "--points", points_file(tmp_path))
    code, _, _ = run(capsys, "map", IRIS, *options, "--plot", str(tmp_path / "points"))
    assert code == 0
    assert "petal length" in (tmp_path / "points.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--grid", "10x10", *IRIS_BOX), "name two of them"),
        (("--axes", "petal length", *IRIS_BOX), "two different inputs"),
        (("--axes", "petal length, colour", *IRIS_BOX), "no input is called 'colour'"),
        (("--axes", "3,3", *IRIS_BOX), "two different inputs"),
        ((*AXES, "--grid", "10"), "columns x rows"),
        ((*AXES, "--grid", "0x5"), "has none"),
        ((*AXES, "--grid", "99999x99999"), "at most"),
        ((*AXES, "--grid", "2000x2000", "--output", "x.csv"), "npz"),
        ((*AXES, "--grid", "9x9", "--random", "5"), "leave out --random"),
        ((*AXES, "--where", "x1 <= 5"), "cuts no grid"),
        (("--point", "5.8, 3, 4, 1", *IRIS_BOX), "--grid or --axes"),
        (("--sigma", "0.1", *IRIS_BOX), "--what label"),
    ],
)
def test_maps_refused(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str) -> None:
    assert says in refused(capsys, "map", IRIS, "--scheme", "int8", *arguments)


def test_plots_lie_beside_their_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    points = points_file(tmp_path)
    wanted = {
        "bits": ("--points", points, "--most", "5"),
        "margins": ("--points", points, "--scheme", "int8"),
        "blame": (*POINT, "--scheme", "int6"),
        "saturation": ("--scheme", "q2.5", "--scheme", "int8"),
    }
    for name, options in wanted.items():
        code, out, _ = run(capsys, "plot", name, IRIS, *options, "--output", str(tmp_path / name))
        assert code == 0
        assert out.startswith("Wrote ")
        assert all((tmp_path / f"{name}.{ending}").stat().st_size > 20 for ending in ("png", "svg", "csv"))


def test_a_plot_of_a_program(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "cats.csv"
    path.write_text("heart weight,body weight\n15,2\n20,3\n")
    program = str(Path(CAT).with_name("cat_int8.tflite"))
    options = ("--program", program, "--points", str(path), "--output", str(tmp_path / "cut"))
    assert run(capsys, "plot", "saturation", CAT, *options)[0] == 0
    assert (tmp_path / "cut.csv").read_text().splitlines()[1].startswith("fully connected 1,reference,")


@pytest.mark.parametrize("arguments", [(), ("--scheme", "int8", "--program", "x.tflite"), ("--program", "x.tflite")])
def test_a_plot_of_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert "say what is cut off" in refused(capsys, "plot", "saturation", IRIS, *arguments, "--output", str(tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_a_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each is about the widths that were found, and its own row."""
    rows = tmp_path / "rows.csv"
    rows.write_text("sepal length,sepal width,petal length,petal width\n5.9,3,4.2,1.5\n5.1,3.5,1.4,0.2\n")
    asked = ("bits", IRIS, "--label", "--points", str(rows), "--per-channel")
    code, out, _ = run(capsys, *asked)
    assert code == 0
    assert "certificate: --certificate FILE writes one a row" in out
    code, out, _ = run(capsys, *asked, "--certificate", str(tmp_path / "proof.cert"))
    assert code == 0
    assert "2 of 2 rows have one, checked in exact arithmetic: proof-1.cert to proof-2.cert" in out
    scheme = out.split("--scheme ")[1].split()[0]
    box = Rounding(parse_scheme(scheme)).around(load(IRIS))
    for row, x in (("1", 5.9), ("2", 5.1)):
        proof = load_certificate(tmp_path / f"proof-{row}.cert")
        assert certificate_fault(proof) is None
        assert proof.query.parameters.sha256 == box.sha256
        assert proof.query.domain.box.lower[0] == x
    box_and_file = ("--box", "5:5.1, 3.5:3.6, 1.4:1.5, 0.2:0.3", "--certificate", str(tmp_path / "no"))
    code, _, err = run(capsys, "bits", IRIS, "--label", *box_and_file)
    assert code == 0
    assert "was not written: certificates are kept for one input, and for the rows of a data set" in err
