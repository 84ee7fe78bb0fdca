"""The greatest changes over many boxes at once, against the search of one box and against points in it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import qrobust
from qrobust import formats
from qrobust.backends.many_boxes import changes_over, logit_changes_over, why_not
from qrobust.backends.many_changes import logit_changes_at, screen_changes
from qrobust.bounds.local import Status
from qrobust.bounds.twin_confidences import TwinConfidences
from qrobust.bounds.zonotopes import TwinZonotopes
from qrobust.domains import InputBox, Point
from qrobust.interval import Interval
from qrobust.maps import Quantity, Question
from qrobust.network import Activation, Dense, Network, Output
from qrobust.queries import ChangeOf, GlobalEpsilon, LocalEpsilon
from qrobust.search import Budget
from qrobust.sections import Section, section_map
from tests.test_cli import refused, run

SHORT = Budget(1.0)


def network(seed: int, widths: tuple[int, ...], activation: Activation = Activation.RELU) -> Network:
    rng = np.random.default_rng(seed)
    layers = [Dense(rng.normal(size=(b, a)), rng.normal(size=b), activation) for a, b in pairwise(widths[:-1])]
    last = Dense(rng.normal(size=widths[-1:] + widths[-2:-1]), rng.normal(size=widths[-1]))
    return Network((*layers, last), Output.SIGMOID if widths[-1] == 1 else Output.SOFTMAX, f"seed {seed}")


def boxes(seed: int, count: int, inputs: int, width: float) -> Interval:
    low = np.random.default_rng(seed).uniform(-1, 1, size=(count, inputs))
    return Interval(low, low + width * np.arange(inputs).clip(0, 1))  # the first input is fixed, as in a section


SHAPES = [(3, 4, 1), (3, 4, 2), (3, 5, 3), (2, 3, 4, 3), (2, 3, 3, 1), (2, 3)]


@pytest.mark.parametrize("widths", SHAPES, ids=str)
@pytest.mark.parametrize("logits", [False, True], ids=["confidences", "raw outputs"])
@pytest.mark.parametrize("delta", [0.01, 0.2])
def test_both_ends_hold_at_points_and_agree_with_the_search(widths: tuple[int, ...], logits: bool, delta: float) -> None:
    net, cells = network(sum(widths), widths), boxes(1, 6, widths[0], 0.3)
    box = qrobust.Absolute(delta).around(net)
    found = (logit_changes_over if logits else changes_over)(net, box, cells)
    rng = np.random.default_rng(2)
    points = cells.lower + rng.random((40, *cells.shape)) * cells.width
    at = (logit_changes_at if logits else screen_changes)(net, box, points.reshape(-1, widths[0]))
    assert (at.lower.reshape(40, -1) <= found.upper).all()
    of = ChangeOf.LOGIT if logits else ChangeOf.CONFIDENCE
    for row in range(2):
        domain = InputBox(cells.lower[row], cells.upper[row])
        one = qrobust.estimate(GlobalEpsilon(net, box, domain, of), budget=SHORT)
        assert found.lower[row] <= one.upper
        assert one.lower <= found.upper[row]
        assert found.lower[row] >= 0.8 * one.lower


@pytest.mark.parametrize("widths", SHAPES, ids=str)
def test_bounds_of_parts_hold_for_choices_of_parameters(widths: tuple[int, ...]) -> None:
    """Plain floating point at random points and ends of parameters, which no bound may be below."""
    net, cells = network(7, widths), boxes(3, 20, widths[0], 0.5)
    rng, delta = np.random.default_rng(0), 0.05
    upper, influence = TwinConfidences(net, qrobust.Absolute(delta).around(net)).changes(cells)
    assert influence.shape == cells.shape
    greatest = np.zeros(20)
    for _ in range(200):
        points = cells.lower + rng.random(cells.shape) * cells.width
        layers = [
            Dense(
                layer.weight + rng.choice([-delta, delta], layer.weight.shape),
                layer.bias + rng.choice([-delta, delta], layer.bias.shape),
                layer.activation,
            )
            for layer in net.layers
        ]
        other = Network(tuple(layers), net.output)
        greatest = np.maximum(greatest, np.abs(other.confidences(points) - net.confidences(points)).max(axis=1))
    assert (greatest <= upper + 1e-12).all()
    assert (greatest > 0.01).any()


@pytest.mark.parametrize("widths", SHAPES, ids=str)
def test_raw_outputs_at_points(widths: tuple[int, ...]) -> None:
    net = network(3, widths)
    points = np.random.default_rng(1).uniform(-1, 1, size=(30, widths[0]))
    box = qrobust.Absolute(0.02).around(net)
    found = logit_changes_at(net, box, points)
    twin = TwinZonotopes(net, box).changes(Interval.point(points)).greatest
    assert (found.lower <= twin).all()
    assert (found.width <= 0.1 * found.upper).mean() > 0.7
    for row in range(3):
        one = qrobust.estimate(LocalEpsilon(net, box, Point(points[row]), ChangeOf.LOGIT), budget=SHORT)
        assert found.lower[row] <= one.upper
        assert one.lower <= found.upper[row]


def test_huge_numbers_leave_everything_open_and_never_too_little() -> None:
    rng = np.random.default_rng(0)
    net = Network(
        (Dense(rng.normal(size=(3, 2)) * 1e200, np.zeros(3), Activation.RELU), Dense(np.ones((2, 3)) * 1e150, np.zeros(2))),
        Output.SOFTMAX,
    )
    cells = Interval(np.full((2, 2), -1e5), np.full((2, 2), 1e5))
    found = changes_over(net, qrobust.Absolute(1.0).around(net), cells)
    assert (found.upper >= 0.5).all()  # both classes are equal, and one can win
    assert (logit_changes_over(net, qrobust.Absolute(1.0).around(net), cells).upper > 1e300).all()


@pytest.mark.parametrize("quantity", [Quantity.EPSILON, Quantity.LOGIT])
def test_a_section_over_a_box_asks_few_cells_alone(quantity: Quantity, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = formats.load(models / "iris.json")
    box = InputBox([5.8, 2.9, 1, 0.1], [6, 3.1, 6.9, 2.5])
    question = Question(net, qrobust.Rounding(qrobust.parse_scheme("int8")).around(net), quantity, budget=SHORT)
    asked: list[object] = []

    def kept(tasks: list[object], **_: object) -> Iterator[object]:
        asked.extend(tasks)
        yield from ()

    monkeypatch.setattr("qrobust.maps.answer_each", kept)
    found = section_map(question, Section.over((2, 3), box, (6, 5)))
    assert len(asked) <= 15  # of 30
    assert (found.lower <= found.upper).all()
    width = found.upper - found.lower
    near = (width <= 0.05 * found.upper) | (width <= 1e-6)
    assert (near == (found.status == Status.SAFE)).all()


def test_what_has_no_such_bounds_is_asked_alone() -> None:
    net = network(0, (2, 3, 1), Activation.SIGMOID)
    assert why_not(net) is not None
    question = Question(net, qrobust.Absolute(0.01).around(net), budget=Budget(0.2))
    found = section_map(question, Section.over((0, 1), InputBox([0, 0], [1, 1]), (2, 1)))
    assert (found.upper > 0).all()


def test_grids_that_take_more_memory_than_there_is(capsys: pytest.CaptureFixture[str], models: Path) -> None:
    line = refused(capsys, "map", str(models / "iris.json"), "--scheme", "int8", "--axes", "1,2", "--grid", "10000x10000")
    assert "100,000,000 cells" in line
    assert "--memory" in line
    assert (
        run(capsys, "map", str(models / "cat_paper.json"), "--delta", "0.01", "--what", "label", "--grid", "3x2", "--quiet")[0]
        == 0
    )
