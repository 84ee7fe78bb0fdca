"""Figures: files written whole, two inputs only, and that what is drawn is what was found."""

from __future__ import annotations

import warnings
import xml.etree.ElementTree as ET
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust.bounds.local import Status
from qrobust.domains import InputBox
from qrobust.errors import OutputError, UnsupportedError
from qrobust.maps import Quantity, RobustnessMap, robustness_map
from qrobust.network import Dense, Feature, Network, Output
from qrobust.perturbations import Absolute
from qrobust.plotting import SigmaLines, draw_map, new_figure, panel, save_figure
from tests.cases import SUM, ball, network, over

# z = x1 + x2 - 1 over [0, 2] x [0, 2]. At d = 1/8 label 1 flips where (x1 + x2) - 1 <= (x1 + x2 + 1) / 8.
GRID = np.array([[x, y] for x in (0.0, 0.5, 1.0, 2.0) for y in (0.0, 0.5, 1.0, 2.0)])
THREE = network(([[1, 0], [0, 1], [-1, -1]], [0, 0, 0]))
PNG = b"\x89PNG\r\n\x1a\n"


def found(quantity: Quantity = Quantity.EPSILON, net: Network = SUM, points: Any = GRID) -> RobustnessMap:
    return robustness_map(net, ball(net, 0.125), points, quantity=quantity)


def drawn(shown: RobustnessMap, **options: Any) -> Any:
    """Draw a panel and return its axes."""
    figure, axes = new_figure(1, 1)
    panel(axes[0, 0], shown, **options)
    figure.canvas.draw()
    return axes[0, 0]


def legend(axes: Any) -> list[str]:
    shown = axes.get_legend()
    return [text.get_text() for text in shown.get_texts()] if shown else []


def contour(axes: Any) -> list[Any]:
    """The vertices of each contour, in the order drawn."""
    return [np.concatenate([path.vertices for path in c.get_paths()]) for c in axes.collections if hasattr(c, "levels")]


@pytest.mark.parametrize("quantity", list(Quantity))
def test_png_and_svg_lie_beside_each_other(tmp_path: Path, quantity: Quantity) -> None:
    written = draw_map(found(quantity), tmp_path / "map")
    assert written == [tmp_path / "map.png", tmp_path / "map.svg"]
    assert sorted(tmp_path.iterdir()) == written
    content = written[0].read_bytes()
    assert content.startswith(PNG)
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    assert width > 500
    assert height > 400
    root = ET.fromstring(written[1].read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "date" not in {element.tag.rpartition("}")[2] for element in root.iter()}


@pytest.mark.parametrize("quantity", list(Quantity))
def test_the_same_map_gives_the_same_files(tmp_path: Path, quantity: Quantity) -> None:
    shown = found(quantity)
    first, second = ([path.read_bytes() for path in draw_map(shown, tmp_path / name)] for name in ("a", "b"))
    assert first == second


def test_a_suffix_in_the_path_is_replaced(tmp_path: Path) -> None:
    assert [path.name for path in draw_map(found(), tmp_path / "map.pdf")] == ["map.png", "map.svg"]


def test_a_missing_folder_is_an_error_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="was not written"):
        draw_map(found(), tmp_path / "missing" / "map")
    assert list(tmp_path.iterdir()) == []


def test_an_old_figure_stays_if_the_new_one_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "map.png"
    target.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        draw_map(found(), tmp_path / "map")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("inputs", [1, 3])
def test_other_than_two_inputs_are_refused_before_anything_is_written(tmp_path: Path, inputs: int) -> None:
    net = Network((Dense(np.ones((1, inputs)), np.zeros(1)),), Output.SIGMOID, name="other")
    shown = robustness_map(net, Absolute(0.1).around(net), np.zeros((2, inputs)))
    with pytest.raises(UnsupportedError, match=f"a map is drawn over 2 inputs, other .* has {inputs}: write it as CSV"):
        draw_map(shown, tmp_path / "map")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UnsupportedError):
        panel(new_figure(1, 1)[1][0, 0], shown)


def test_labels_are_counted_and_put_where_they_are() -> None:
    shown = found(Quantity.LABEL)
    total = GRID.sum(axis=1)
    flips = np.where(total > 1, total - 1 <= (total + 1) / 8, total - 1 + (total + 1) / 8 > 0)
    assert 0 < flips.sum() < len(GRID)
    axes = drawn(shown)
    assert legend(axes) == [f"safe ({(~flips).sum()})", f"flippable ({flips.sum()})", "decision boundary"]
    scatters = {c.get_label(): np.asarray(c.get_offsets()) for c in axes.collections if not hasattr(c, "levels")}
    assert scatters[f"flippable ({flips.sum()})"].tolist() == GRID[flips].tolist()
    assert scatters[f"safe ({(~flips).sum()})"].tolist() == GRID[~flips].tolist()


def test_undecided_points_are_shown_as_such() -> None:
    """A map whose points are all undecided: no point may look safe, and no colour may stand for a number."""
    for quantity in Quantity:
        known = found(quantity)
        count = len(GRID)
        status = np.full(count, Status.UNDECIDED)
        shown = RobustnessMap(SUM, known.parameters, quantity, GRID, np.zeros(count), np.ones(count), status, "fake", 0.0)
        axes = drawn(shown)
        names = legend(axes)
        assert any(name.startswith("undecided") for name in names)
        assert not any(name.startswith(("safe", "flippable")) for name in names)
        with_points = [c for c in axes.collections if not hasattr(c, "levels") and len(c.get_offsets())]
        assert [c.get_label().split()[0] for c in with_points] == ["undecided"]


def test_eps_colours_are_the_certified_upper_ends() -> None:
    shown = found()
    axes = drawn(shown)
    (points,) = (c for c in axes.collections if not hasattr(c, "levels") and c.get_array() is not None)
    assert points.get_array().tolist() == shown.upper.tolist()
    assert points.get_clim() == (0.0, shown.upper.max())
    assert drawn(shown, colour_limits=(0.0, 0.5)).collections[0].get_clim() == (0.0, 0.5)


@pytest.mark.parametrize("level", [Fraction(1, 2), Fraction(7, 10)])
def test_the_boundary_is_where_the_label_changes(level: Fraction) -> None:
    (line,) = contour(drawn(found(), level=level))
    assert np.abs(SUM.confidences(line)[:, 0] - float(level)).max() < 1e-4
    assert len(line) > 50


def test_sigma_lines_are_a_sigma_from_the_level() -> None:
    axes = drawn(found(), lines=SigmaLines(0.125, 0.25))
    confidences = [np.unique(SUM.confidences(line)[:, 0].round(3)).tolist() for line in contour(axes)]
    assert confidences == [[0.5], [0.375], [0.75]]
    assert legend(axes)[1:] == ["0.5 - sigma of label 0 (0.1250)", "0.5 + sigma of label 1 (0.2500)"]


def test_boundaries_between_classes() -> None:
    axes = drawn(found(Quantity.LABEL, THREE, GRID - 1), domain=over((-1, 1), (-1, 1)))
    for line in contour(axes):
        top = np.sort(THREE.confidences(line), axis=1)
        assert (top[:, 2] - top[:, 1]).max() < 0.02  # a straight segment near the corner of three classes is a little off
    assert len(contour(axes)) == 3
    assert legend(axes).count("decision boundary") == 1


def test_no_boundary_where_the_label_stays_the_same() -> None:
    axes = drawn(found(points=GRID[GRID.sum(axis=1) > 1.9]), domain=over((1.5, 2), (1.5, 2)))
    assert contour(axes) == []
    assert "decision boundary" not in legend(axes)


def test_axes_show_the_domain_and_the_features() -> None:
    named = Network(SUM.layers, Output.SIGMOID, features=(Feature("height", "m"), Feature("age")))
    shown = robustness_map(named, ball(named, 0.125), GRID)
    axes = drawn(shown, domain=InputBox([-1, 0], [1, 4]))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("height [m]", "age")
    assert axes.get_xlim() == pytest.approx((-1.04, 1.04))
    assert axes.get_ylim() == pytest.approx((-0.08, 4.08))
    plain = drawn(found())
    assert (plain.get_xlabel(), plain.get_ylabel()) == ("input 1", "input 2")


@pytest.mark.parametrize("quantity", list(Quantity))
@pytest.mark.parametrize("points", [[[1.0, 0.25]], [[1.0, 0.0], [1.0, 2.0]]], ids=["one point", "one line"])
def test_points_without_an_area(tmp_path: Path, quantity: Quantity, points: list[list[float]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_map(found(quantity, points=points), tmp_path / "map")[0].read_bytes().startswith(PNG)


def test_a_grid_of_panels(tmp_path: Path) -> None:
    figure, axes = new_figure(2, 3)
    assert axes.shape == (2, 3)
    assert [path.suffix for path in save_figure(figure, tmp_path / "panels")] == [".png", ".svg"]
