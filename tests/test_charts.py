"""Charts: what is drawn is what was counted, unknown is hatched and in its own colour, and the numbers lie beside."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust import charts
from qrobust.bits import Family
from qrobust.blame import blame
from qrobust.bounds.local import Status
from qrobust.comparison import at_points, compare
from qrobust.domains import InputBox, Point
from qrobust.formats import load, load_program
from qrobust.integer.program import Kernels
from qrobust.maps import Quantity, Question, robustness_map
from qrobust.perturbations import Absolute, Rounding
from qrobust.plotting import UNKNOWN_COLOUR, new_figure, save_figure
from qrobust.quantization import parse_scheme
from qrobust.queries import LocalLabel
from qrobust.search import Budget
from qrobust.sections import Section, section_map
from qrobust.survey import (
    LayerError,
    Margins,
    Saturation,
    WidthShares,
    layer_error,
    margins_of,
    saturation_of_program,
    saturation_of_schemes,
    shares_by_width,
)
from tests.cases import LINE, TANH_TWINS, network

MODELS = Path(__file__).parents[1] / "models"
IRIS, CAT = load(MODELS / "iris.json"), load(MODELS / "cat_paper.json")
POINTS = np.random.default_rng(1).uniform([4.3, 2, 1, 0.1], [7.9, 4.4, 6.9, 2.5], (30, 4))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    figures: list[Any] = []

    def saved(figure: Any, path: Path, table: str | None = None) -> list[Path]:
        figures.append(figure)
        return save_figure(figure, path, table)

    monkeypatch.setattr(charts, "save_figure", saved)
    return figures


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_shares_by_width_are_those_of_maps(tmp_path: Path, drawn: list[Any]) -> None:
    found = shares_by_width(IRIS, Family("int"), POINTS, range(3, 9))
    for width, counts in zip(found.widths, found.counts, strict=True):
        box = Rounding(parse_scheme(f"int{width}")).around(IRIS)
        own = robustness_map(IRIS, box, POINTS, quantity=Quantity.LABEL)
        assert counts == tuple(own.count(status) for status in Status)
    assert found.counts[0][0] < found.counts[-1][0]
    written = charts.draw_bits(found, tmp_path / "bits")
    assert [path.name for path in written] == ["bits.png", "bits.svg", "bits.csv"]
    ET.parse(written[1])
    (panel,) = drawn[0].axes
    heights = [bar.get_height() for bar in panel.containers[0]]
    assert heights == pytest.approx([safe / 30 for safe, *_ in found.counts])
    assert [label.get_text() for label in panel.get_xticklabels()] == [str(w) for w in range(3, 9)]
    assert legend(drawn[0]) == ["proved", "violated"]
    assert found.table().splitlines()[1] == f"3,{','.join(map(str, found.counts[0]))}"


def test_unknown_has_its_own_colour_and_a_pattern(tmp_path: Path, drawn: list[Any]) -> None:
    charts.draw_bits(WidthShares(LINE, "int", 4, (2, 3), ((1, 1, 2), (4, 0, 0))), tmp_path / "bits")
    from matplotlib.colors import to_hex

    (panel,) = drawn[0].axes
    unknown = panel.containers[2].patches[0]
    assert to_hex(unknown.get_facecolor()) == UNKNOWN_COLOUR
    assert unknown.get_hatch() == charts.HATCH
    assert (unknown.get_y(), unknown.get_height()) == (0.5, 0.5)


def test_margins_are_counted_once_each(tmp_path: Path, drawn: list[Any]) -> None:
    box = Rounding(parse_scheme("int6")).around(IRIS)
    found = margins_of(robustness_map(IRIS, box, POINTS, quantity=Quantity.LABEL))
    charts.draw_margins(found, tmp_path / "margins")
    (panel,) = drawn[0].axes
    assert sum(bar.get_height() for container in panel.containers for bar in container) == 30
    counts = [int((found.status == status).sum()) for status in (Status.SAFE, Status.FLIPPABLE)]
    assert legend(drawn[0]) == [f"proved ({counts[0]})", f"violated ({counts[1]})"]
    assert found.values[found.status == Status.SAFE].min() > found.values[found.status == Status.FLIPPABLE].min()
    assert len(found.table().splitlines()) == 31


def test_margins_that_are_all_zero_are_drawn(tmp_path: Path) -> None:
    nothing = Margins(LINE, "no rounding", np.zeros(2), np.zeros(2), np.array([Status.FLIPPABLE, Status.UNDECIDED]))
    assert len(charts.draw_margins(nothing, tmp_path / "none")) == 3


def test_layers_add_up_to_all(tmp_path: Path, drawn: list[Any]) -> None:
    box = Rounding(parse_scheme("int6")).around(IRIS)
    found = layer_error(blame(LocalLabel(IRIS, box, Point([5.9, 3.0, 4.2, 1.5]))))
    assert sum(map(sum, found.layers)) == pytest.approx(1)
    assert "184 % of the lead of versicolor over virginica" in found.title
    charts.draw_layers(found, tmp_path / "layers")
    (panel,) = drawn[0].axes
    total = sum(bar.get_height() for container in panel.containers for bar in container)
    assert total == pytest.approx(100)
    assert found.table().startswith("layer,weights,biases,neurons\n1,")


def test_nothing_moves_and_no_layer_is_blamed() -> None:
    found = layer_error(blame(LocalLabel(LINE, Absolute(0.0).around(LINE), Point([0.5]))))
    assert found == LayerError(found.title, ((0.0, 0.0, 0.0),))


def test_saturation_of_schemes(tmp_path: Path, drawn: list[Any]) -> None:
    """q0.3 holds -1 to 7/8: of 2, 1/2, -1 and the bias -4, two are beyond."""
    net = network(([[2, 0.5, -1]], [-4]))
    found = saturation_of_schemes(net, [parse_scheme("q0.3"), parse_scheme("int8")])
    assert [(part, cut, total) for part, name, cut, total in found.counts if name.startswith("q0.3")] == [
        ("layer 1, weights", 1, 3),
        ("layer 1, biases", 1, 1),
    ]
    assert [cut for _, name, cut, _ in found.counts if name == "int8"] == [0]
    charts.draw_saturation(found, tmp_path / "saturation")
    (panel,) = drawn[0].axes
    assert [bar.get_width() for bar in panel.containers[0].patches] == pytest.approx([100 / 3, 100])


def test_saturation_of_a_program(tmp_path: Path) -> None:
    program = load_program(MODELS / "cat_int8.tflite")
    points = at_points(program, np.array([[20.0, 3.0], [15.0, 2.0]]))
    found = saturation_of_program(compare(CAT, program, points))
    assert found is not None
    assert [total for *_, total in found.counts] == [2, 2]
    assert len(charts.draw_saturation(found, tmp_path / "program")) == 3
    assert saturation_of_program(compare(CAT, program, points, kernels=Kernels.ANY)) is None
    assert isinstance(found, Saturation)


def test_sections_are_drawn_cell_by_cell(tmp_path: Path, drawn: list[Any]) -> None:
    box = Rounding(parse_scheme("int6")).around(IRIS)
    ranges = InputBox([4.3, 2, 1, 0.1], [7.9, 4.4, 6.9, 2.5])
    section = Section.over((3, 2), ranges, (5, 4), np.array([5.8, 3, 4, 1]))
    found = section_map(Question(IRIS, box, Quantity.LABEL), section)
    charts.draw_section(found, tmp_path / "section")
    panel = drawn[0].axes[0]
    assert (panel.images[0].get_array() == found.status).all()
    assert panel.images[0].get_extent() == pytest.approx([0.1, 2.5, 1, 6.9])
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("petal width [cm]", "petal length [cm]")
    assert legend(drawn[0])[:2] == [f"safe ({found.count(Status.SAFE)})", f"flippable ({found.count(Status.FLIPPABLE)})"]
    assert "decision boundary" in legend(drawn[0])
    assert "sepal length 5.8, sepal width 3" in panel.get_title()


def test_cells_that_are_not_settled_are_masked_and_hatched(tmp_path: Path, drawn: list[Any]) -> None:
    net = network(([[1, 0]], [1]), ([[1], [1]], [0, 0]), ([[1, -1]], [0.25]), hidden=TANH_TWINS.layers[0].activation)
    question = Question(net, Absolute(0.25).around(net), backend="branch-and-bound", budget=Budget(1, 1))
    found = section_map(question, Section.over((0, 1), InputBox([0, 0], [1, 1]), (3, 3)))
    assert found.count(Status.UNDECIDED) == 9
    charts.draw_section(found, tmp_path / "open")
    assert drawn[0].axes[0].images[0].get_array().mask.all()
    assert "undecided (9)" in legend(drawn[0])
    assert len(drawn[0].axes) == 1, "there is no number for a colour bar"


def test_the_pattern_of_open_cells_reaches_their_edges() -> None:
    """Of 3 columns x 2 rows over [0, 6] x [0, 1] the last of the first row and the first of the second."""
    _, axes = new_figure(1, 1)
    panel = axes[0, 0]
    charts._hatched(panel, np.array([[False, False, True], [True, False, False]]), (0.0, 6.0, 0.0, 1.0))
    (drawn,) = panel.collections
    found = sorted([*part.min(axis=0).tolist(), *part.max(axis=0).tolist()] for part in parts_of(drawn))
    assert np.array(found) == pytest.approx(np.array([[0, 0.5, 2, 1], [4, 0, 6, 0.5]]), abs=0.01)
    charts._hatched(panel, np.ones((1, 1), dtype=bool), (0.0, 1.0, 0.0, 1.0))


def parts_of(drawn: Any) -> list[Any]:
    """The corners of each closed curve of a contour."""
    path = drawn.get_paths()[0]
    starts = np.flatnonzero(path.codes == path.MOVETO)
    return np.split(path.vertices, starts[1:])
