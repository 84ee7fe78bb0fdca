"""Maps of networks of signs: every cell against trying every input; the command, resuming, and what is refused."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qrobust.answers import Verdict
from qrobust.binarized import (
    Ball,
    BinarizedNetwork,
    BinarizedSession,
    Block,
    Grid,
    LeastChange,
    Norm,
    Robustness,
    TieRule,
    fold,
)
from qrobust.binarized.formats import load_binarized, save_binarized
from qrobust.binarized.many import Settings, believed, settle_all
from qrobust.binarized.maps import Asked, Cut, Shown, binarized_map
from qrobust.binarized.queries import Levels
from qrobust.bounds.local import Status
from qrobust.cache import ResultCache
from qrobust.errors import DomainError, ShapeError
from qrobust.layers import IntArray
from tests.binarized import all_levels, linear, network, sparse_dense
from tests.test_cli import refused, run


def sample(seed: int) -> tuple[BinarizedNetwork, BinarizedNetwork]:
    """A random network of three inputs or more, and another with its inputs and classes."""
    rng = np.random.default_rng(seed)
    found = next(each for each in (network(rng) for _ in range(99)) if each.inputs > 2 and len(each.blocks) > 0)
    blocks = tuple(Block(linear(rng, block.linear.layer.outputs, block.linear.layer.inputs, 0.3)) for block in found.blocks)
    last = found.blocks[-1].linear.layer.outputs
    return found, BinarizedNetwork(found.grid, blocks, linear(rng, found.outputs, last, 0.3))


def whole(found: BinarizedNetwork) -> Cut:
    """All levels of the first and the last input, the others anywhere."""
    grid, ones = found.grid, np.ones(found.inputs, dtype=np.int64)
    levels = np.arange(grid.lowest, grid.highest + 1)
    lower, upper = grid.lowest * ones, grid.highest * ones
    return Cut((0, found.inputs - 1), levels, np.append(levels, levels[0]), lower, (lower + upper) // 2, upper)


def truth(asked: Asked, inside: IntArray, centre: IntArray) -> Status:
    """What trying every input of a cell says."""
    own = fold(asked.on_grid, asked.zero)
    if asked.copy is not None:
        assert isinstance(asked.network, BinarizedNetwork)
        return Status.FLIPPABLE if (fold(asked.network).labels(inside) != own.labels(inside)).any() else Status.SAFE
    return Status.FLIPPABLE if own.is_lost(inside, int(own.labels(centre[None])[0]), asked.tie).any() else Status.SAFE


@pytest.mark.parametrize("seed", range(12))
def test_cells_are_what_trying_every_input_says(seed: int) -> None:
    found, other = sample(seed)
    grid, levels = found.grid, all_levels(found)
    cut, rng = whole(found), np.random.default_rng(seed)
    point = grid.values(levels[rng.integers(len(levels))])
    seen = set()
    for asked in (
        Asked(found, tie=TieRule.RIVAL if seed % 2 else TieRule.FIRST),
        Asked(found, Shown.CHANGE, other),
    ):
        for chosen, radius, axes_too in (
            (cut, Fraction(0), False),
            (cut.about(grid, point, Fraction(0), axes_too=False), Fraction(0), False),
            (cut.about(grid, point, grid.step, axes_too=False), grid.step, False),
            (cut.about(grid, point, grid.step, axes_too=True), grid.step, True),
        ):
            shown = binarized_map(asked, chosen)
            assert shown.status.shape == (len(cut.up), len(cut.across)) == shown.labels.shape
            for row, column in np.ndindex(shown.status.shape):
                centre = chosen.centre.copy()
                centre[list(cut.axes)] = cut.across[column], cut.up[row]
                inside = levels[(levels[:, list(cut.axes)] == centre[list(cut.axes)]).all(axis=1)]
                if chosen is not cut:
                    near = np.abs(levels - centre) * grid.step <= radius
                    near[:, list(cut.axes)] |= False if axes_too else levels[:, list(cut.axes)] == centre[list(cut.axes)]
                    keep = near.all(axis=1)
                    inside = levels[keep & ((levels[:, list(cut.axes)] == centre[list(cut.axes)]).all(axis=1) | axes_too)]
                assert shown.status[row, column] == truth(asked, inside, centre)
                seen.add(int(shown.status[row, column]))
            np.testing.assert_array_equal(shown.labels[-1], shown.labels[0])  # the same level once more
    assert seen <= {int(Status.SAFE), int(Status.FLIPPABLE)}


def asked_again(*_: object, **__: object) -> None:
    raise AssertionError("it was asked again")


def test_maps_go_on_from_what_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = sample(5)
    monkeypatch.setattr("qrobust.binarized.maps._screened", lambda asked, labels, *_, **__: np.full(len(labels), 2, np.int8))
    first = binarized_map(Asked(found), whole(found), jobs=2, cache=ResultCache(tmp_path))
    monkeypatch.setattr(BinarizedSession, "check", asked_again)
    again = binarized_map(Asked(found), whole(found), cache=ResultCache(tmp_path))
    np.testing.assert_array_equal(again.status, first.status)
    assert first.undecided == 0
    with pytest.raises(AssertionError, match="asked again"):
        binarized_map(Asked(found), whole(found), Settings(seconds=9.0), cache=ResultCache(tmp_path))


def test_levels_hold_their_centre() -> None:
    """An input outside would be a counterexample to what holds in the box."""
    one = np.ones(2, dtype=np.int64)
    with pytest.raises(DomainError, match="centre of input 1 does not lie"):
        Levels(one, one, np.array([1, 0]))
    with pytest.raises(DomainError, match="input 0 has no level"):
        Levels(one, 0 * one, one)
    with pytest.raises(ShapeError, match="do not fit"):
        Levels(one, one, one[:1])


def test_what_was_kept_of_one_centre_is_not_taken_for_another(tmp_path: Path) -> None:
    """Class 1 scores the first bit, class 0 nothing: where no rival is greater, 1 has the label all over, and 0 has not."""
    network = BinarizedNetwork(Grid.of(1, 0, 1), (), sparse_dense(np.array([[0.0, 0.0], [1.0, 0.0]])))
    cache = ResultCache(tmp_path)
    for first, verdict in ((1, Verdict.ROBUST), (0, Verdict.VIOLATED)):
        box = Levels(np.zeros(2, dtype=np.int64), np.ones(2, dtype=np.int64), np.array([first, 0]))
        (found,) = settle_all([Robustness(network, box, tie=TieRule.LABEL)], Settings(), cache=cache)
        assert found.verdict is verdict


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Label "many" where two or more of three bits are set; and beside it one that wants all three."""
    for name, bias in (("majority", -1.5), ("all", -2.5)):
        block = Block(sparse_dense(np.ones((1, 3)), np.array([bias])))
        out = sparse_dense(np.array([[-1.0], [1.0]]))
        save_binarized(BinarizedNetwork(Grid.of(1, 0, 1), (block,), out, classes=("few", "many")), tmp_path / f"{name}.json")
    return tmp_path / "majority.json"


def test_the_command_by_hand(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    command = ["bnn", "map", str(model), "--axes", "3, 1", "--quiet", "--output", str(tmp_path / "map.csv")]
    wanted = {
        ("--input", "0,0,0"): (["few", "few", "few", "many"], ["safe"] * 4),
        (): (["few", "few", "few", "many"], ["safe", "flippable", "flippable", "safe"]),
        ("--input", "0,0,0", "--eps", "1"): (["few", "few", "few", "many"], ["safe", "flippable", "flippable", "safe"]),
        ("--input", "0,0,0", "--eps", "1", "--axes-too"): (["few", "few", "few", "many"], ["flippable"] * 4),
        ("--input", "0,1,0", "--copy", str(tmp_path / "all.json")): (
            ["few", "many", "many", "many"],
            ["safe", "flippable", "flippable", "safe"],
        ),
    }
    for options, (labels, statuses) in wanted.items():
        code, _, _ = run(capsys, *command, *options, "--plot", str(tmp_path / "map"))
        assert code == 0
        rows = list(csv.DictReader((tmp_path / "map.csv").open()))
        assert [(row["x3"], row["x1"]) for row in rows] == [("0.0", "0.0"), ("1.0", "0.0"), ("0.0", "1.0"), ("1.0", "1.0")]
        assert [row["label"] for row in rows] == labels, options
        assert [row["status"] for row in rows] == statuses, options
        assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "map.svg").read_text().count("<svg") == 1


def test_json_and_arrays(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    npz = tmp_path / "map.npz"
    options = ["--axes", "1, 2", "--grid", "4x2", "--output", str(npz), "--json", "--jobs", "2"]
    code, out, _ = run(capsys, "bnn", "map", str(model), *options)
    document = json.loads(out)
    assert (code, document["cells"], document["fixed"], document["shown"]) == (0, [4, 2], False, "label")
    assert document["counts"] == {"safe": 4, "flippable": 4, "undecided": 0}
    assert document["labels"] == {"few": 6, "many": 2}
    with np.load(npz) as arrays:
        assert arrays["across"].tolist() == [0, 0, 1, 1]
        assert arrays["labels"].tolist() == [[0, 0, 0, 0], [0, 0, 1, 1]]
        assert arrays["status"].tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


def test_a_float_network_is_mapped_against_its_copy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    iris = Path(__file__).parents[1] / "models" / "iris.json"
    options = ["--float", "--copy", "ternary", "--step", "1/2", "--range", "0:8", "--axes", "3, 4", "--input", "6, 3, 4, 1"]
    code, out, _ = run(capsys, "bnn", "map", str(iris), *options, "--json", "--plot", str(tmp_path / "iris"))
    document = json.loads(out)
    assert code == 0
    assert sum(document["counts"].values()) == 17 * 17
    assert (tmp_path / "iris.png").exists()


def test_what_is_out_of_time_is_undecided(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qrobust.binarized.maps._screened", lambda asked, labels, *_, **__: np.full(len(labels), 2, np.int8))
    options = ["--axes", "1, 2", "--engine", "annealing", "--timeout", "0.2", "--plot", str(tmp_path / "map"), "--quiet"]
    code, _, _ = run(capsys, "bnn", "map", str(model), *options, "--output", str(tmp_path / "map.csv"))
    statuses = [row["status"] for row in csv.DictReader((tmp_path / "map.csv").open())]
    assert set(statuses) <= {"safe", "flippable", "undecided"}
    assert code == (3 if "undecided" in statuses else 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--axes", "1"], "two inputs by number"),
        (["--axes", "1, girth"], "or of x1, x2, x3"),
        (["--axes", "1, 2", "--norm", "l0"], "goes with --eps"),
        (["--axes", "1, 2", "--input", "0,0,0", "--eps", "0.5", "--norm", "l0"], "whole number"),
        (["--axes", "1, 1"], "two different inputs"),
        (["--axes", "1, 4"], "of 1 to 3"),
        (["--axes", "1, 2", "--eps", "1"], "give --input"),
        (["--axes", "1, 2", "--input", "0,0,0", "--eps", "-1"], "eps is -1"),
        (["--axes", "1, 2", "--input", "0,0,0", "--eps", "2"], "reach only 1"),
        (["--axes", "1, 2", "--input", "0,0,0", "--eps", "nan"], "nan"),
        (["--axes", "1, 2", "--input", "0,0"], "takes 3"),
        (["--axes", "1, 2", "--input", "0,0,7"], "outside the input range"),
        (["--axes", "1, 2", "--box", "0:1"], "3 inputs"),
        (["--axes", "1, 2", "--box", "0:1,0:1,0.2:0.4"], "no level"),
        (["--axes", "1, 2", "--grid", "0x3"], "no cell"),
        (["--axes", "1, 2", "--grid", "99999x99999"], "coarser --grid"),
        (["--axes", "1, 2", "--what", "change"], "change with --copy"),
        (["--axes", "1, 2", "--what", "robust"], "robust goes with --eps"),
        (["--axes", "1, 2", "--axes-too"], "goes with --eps"),
        (["--axes", "1, 2", "--float"], "goes with --copy"),
        (["--axes", "1, 2", "--engine", "abacus"], "no engine 'abacus'"),
        (["--axes", "1, 2", "--timeout", "0"], "time limit"),
    ],
)
def test_bad_usage_is_one_line(capsys: pytest.CaptureFixture[str], model: Path, options: list[str], message: str) -> None:
    assert message in refused(capsys, "bnn", "map", str(model), *options)


def test_many_rows_are_verified_at_once(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    table = tmp_path / "points.csv"
    table.write_text("a,b,c\n0,0,0\n0,1,0\n1,1,1\n0,1,1\n")
    command = ["bnn", "verify", str(model), "--input", str(table), "--eps", "1", "--norm", "l1"]
    code, out, _ = run(capsys, *command, "--rows", ":", "--jobs", "2", "--cache", str(tmp_path / "kept"))
    assert code == 1
    assert out == f"VIOLATED: rows 1 to 4 of {table}: 2 robust, 2 violated, 0 unknown.\n  violated: rows 2, 4\n"
    code, out, _ = run(capsys, *command, "--rows", "3:", "--json", "--cache", str(tmp_path / "kept"))
    document = json.loads(out)
    assert (code, document["counts"]) == (1, {"robust": 1, "violated": 1, "unknown": 0})
    assert [row["row"] for row in document["rows"]] == [3, 4]
    assert run(capsys, *command, "--rows", "1:1")[0] == 0


def test_rows_of_boxes_of_pairs_and_of_least_changes(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, boxes = tmp_path / "points.csv", tmp_path / "boxes.csv"
    points.write_text("a,b,c\n0,0,0\n0,1,0\n1,1,1\n")
    boxes.write_text("a,A,b,B,c,C\n0,0,0,1,0,0\n0,1,0,1,0,0\n1,1,1,1,0,1\n")
    command = ["bnn", "verify", str(model), "--rows", ":"]
    code, out, _ = run(capsys, *command, "--box", str(boxes))  # one bit free; two of three; two set
    assert (code, out.splitlines()[1:]) == (1, ["  violated: rows 2"])
    pair = [*command, "--copy", str(tmp_path / "all.json")]  # they differ where just two bits are set
    code, out, _ = run(capsys, *pair, "--box", str(boxes))
    assert (code, out.splitlines()[1:]) == (1, ["  violated: rows 2, 3"])
    code, out, _ = run(capsys, *pair, "--input", str(points), "--eps", "1", "--norm", "l1", "--json")
    assert [row["verdict"] for row in json.loads(out)["rows"]] == ["ROBUST", "VIOLATED", "VIOLATED"]
    least = [*command, "--input", str(points), "--least", "--norm", "l1", "--cache", str(tmp_path / "kept")]
    code, out, _ = run(capsys, *least)
    assert code == 0
    assert out.splitlines()[0] == f"rows 1 to 3 of {points}: the least l1 change found of 3 of 3."
    assert out.splitlines()[1:] == ["  least: 1, row 2", "  median: 2, row 1", "  greatest: 2, row 3"]
    monkeypatch.setattr(BinarizedSession, "least_change", asked_again)
    code, out, _ = run(capsys, *least, "--json")
    assert [(row["lower"], row["upper"]) for row in json.loads(out)["rows"]] == [(2.0, 2.0), (1.0, 1.0), (2.0, 2.0)]


@pytest.mark.parametrize(("ends", "levels"), [([1, 1], [0, 1, 1]), ([2, 2], [0, 0, 1]), ([3, 2], [0, 1, 1]), (None, [0, 1, 1])])
def test_a_kept_least_change_that_does_not_replay_is_not_believed(
    model: Path, ends: list[int] | None, levels: list[int]
) -> None:
    question = LeastChange(load_binarized(model).network, np.zeros(3), Norm.L1)
    kept = {"verdict": "VIOLATED", "engine": "sat", "exact": True, "seconds": 0.1, "levels": [0, 1, 1], "reason": ""}
    assert believed(question, kept | {"ends": [2, 2]}) is not None
    assert believed(question, kept | {"ends": ends, "levels": levels}) is None


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("axes_too", [False, True])
def test_cells_of_other_norms_are_what_trying_every_input_says(seed: int, axes_too: bool) -> None:
    found, _ = sample(seed + 50)
    grid, levels, cut = found.grid, all_levels(found), whole(found)
    point = grid.values(levels[np.random.default_rng(seed).integers(len(levels))])
    for norm, radius in ((Norm.L0, Fraction(1)), (Norm.L1, 2 * grid.step), (Norm.L2, Fraction(3, 2) * grid.step)):
        shown = binarized_map(Asked(found), cut.around(found, Ball(point, radius, norm), axes_too=axes_too))
        for row, column in np.ndindex(shown.status.shape):
            centre = grid.levels(point)
            centre[list(cut.axes)] = cut.across[column], cut.up[row]
            change = np.abs(levels - centre)
            stays = (change[:, list(cut.axes)] == 0).all(axis=1) | axes_too
            far = {Norm.L0: (change > 0).sum(axis=1), Norm.L1: change.sum(axis=1), Norm.L2: (change**2).sum(axis=1)}[norm]
            most = {Norm.L0: radius, Norm.L1: radius / grid.step, Norm.L2: (radius / grid.step) ** 2}[norm]
            assert shown.status[row, column] == truth(shown.asked, levels[stays & (far <= float(most))], centre)


def test_axes_by_name(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    table, out = tmp_path / "x.csv", tmp_path / "map.csv"
    table.write_text("width,length,depth\n0,0,0\n")
    command = ["bnn", "map", str(model), "--input", str(table), "--output", str(out), "--eps", "1", "--norm", "l0"]
    assert run(capsys, *command, "--axes", "depth, width")[0] == 0
    assert [(row["depth"], row["width"], row["status"]) for row in csv.DictReader(out.open())][:2] == [
        ("0.0", "0.0", "safe"),
        ("1.0", "0.0", "flippable"),
    ]
    iris = Path(__file__).parents[1] / "models" / "iris.json"
    options = ["--scheme", "ternary", "--step", "1", "--range", "0:8", "--axes", "petal length, 4", "--output", str(out)]
    assert run(capsys, "bnn", "map", str(iris), *options, "--input", "6, 3, 4, 1")[0] == 0
    assert next(csv.DictReader(out.open())).keys() >= {"petal length", "petal width"}


def test_rows_that_are_kept_are_not_asked_again(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "points.csv"
    table.write_text("a,b,c\n0,0,0\n0,1,0\n1,1,1\n")
    command = ["bnn", "verify", str(model), "--input", str(table), "--rows", ":", "--eps", "1", "--norm", "l1", "--json"]
    first = run(capsys, *command, "--cache", str(tmp_path / "kept"))
    monkeypatch.setattr(BinarizedSession, "check", asked_again)
    assert run(capsys, *command, "--cache", str(tmp_path / "kept")) == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "0,0,0", "--eps", "1", "--rows", "1:2"], "--input FILE.csv"),
        (["--input", "{table}", "--eps", "1", "--rows", "1"], "first:last"),
        (["--input", "{table}", "--eps", "1", "--rows", "0:1"], "rows 1 to 2"),
        (["--input", "{table}", "--eps", "1", "--rows", "2:9"], "rows 1 to 2"),
        (["--input", "{table}", "--rows", "1:2"], "--eps"),
        (["--input", "{table}", "--eps", "1", "--rows", "1:2", "--least"], "leave --eps"),
        (["--input", "{table}", "--eps", "1", "--rows", "1:2", "--proof", "p"], "--proof out"),
        (["--input", "{table}", "--box", "{table}", "--rows", "1:2"], "leave --input"),
        (["--box", "{table}", "--rows", "1:2"], "the lower and the upper end (6)"),
        (["--box", "0:1, 0:1, 0:1", "--rows", "1:2"], "name a table"),
        (
            ["--input", "{table}", "--eps", "1", "--rows", "1:2", "--copy", "o.npz", "--label", "1"],
            "leave --tie and --label out",
        ),
        (["--input", "{table}", "--eps", "1", "--rows", "1:2", "--label", "7"], "classes 0 to 1"),
        (["--input", "{table}", "--eps", "1", "--jobs", "2"], "go with --rows"),
        (["--input", "{table}", "--eps", "1", "--cache", "kept"], "go with --rows"),
    ],
)
def test_bad_rows_are_one_line(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "t.csv").write_text("a,b,c\n0,0,0\n1,1,1\n")
    given = [option.replace("{table}", str(tmp_path / "t.csv")) for option in options]
    assert message in refused(capsys, "bnn", "verify", str(model), *given)
