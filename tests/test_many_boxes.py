"""The greatest changes over many boxes at once, against the search of one box and against points in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import qrobust
from qrobust import formats
from qrobust.answers import Verdict
from qrobust.backends.many_boxes import Boxes, changes_over, logit_changes_over
from qrobust.backends.many_changes import attained_changes, logit_changes_at, screen_changes
from qrobust.bounds import softmax_change
from qrobust.bounds.local import Status
from qrobust.bounds.twin_confidences import TwinConfidences
from qrobust.bounds.zonotopes import TwinZonotopes
from qrobust.domains import InputBox, Point
from qrobust.interval import Ends, Interval
from qrobust.maps import Quantity, Question
from qrobust.network import Activation, Dense, Network, Output
from qrobust.queries import ChangeOf, GlobalEpsilon, LocalConfidence, LocalEpsilon, LocalLabel
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
@pytest.mark.parametrize(
    ("delta", "activation"),
    [(0.01, Activation.RELU), (0.2, Activation.RELU), (0.02, Activation.TANH), (0.05, Activation.SIGMOID)],
)
def test_both_ends_hold_at_points_and_agree_with_the_search(
    widths: tuple[int, ...], logits: bool, delta: float, activation: Activation
) -> None:
    net, cells = network(sum(widths), widths, activation), boxes(1, 6, widths[0], 0.3)
    box = qrobust.Absolute(delta).around(net)
    found = (logit_changes_over if logits else changes_over)(net, box, Boxes.exact(cells))
    rng = np.random.default_rng(2)
    points = cells.lower + rng.random((40, *cells.shape)) * cells.width
    at = (logit_changes_at if logits else screen_changes)(net, box, points.reshape(-1, widths[0]))
    assert (at.lower.reshape(40, -1) <= found.upper).all()
    of = ChangeOf.LOGIT if logits else ChangeOf.CONFIDENCE
    for row in range(2 if activation is Activation.RELU else 1):
        domain = InputBox(cells.lower[row], cells.upper[row])
        one = qrobust.estimate(GlobalEpsilon(net, box, domain, of), budget=SHORT)
        assert found.lower[row] <= one.upper
        assert one.lower <= found.upper[row]
        assert found.lower[row] >= 0.8 * one.lower


@pytest.mark.parametrize("widths", SHAPES, ids=str)
@pytest.mark.parametrize("activation", [Activation.RELU, Activation.SIGMOID, Activation.TANH, Activation.LINEAR])
def test_bounds_of_parts_hold_for_choices_of_parameters(widths: tuple[int, ...], activation: Activation) -> None:
    """Plain floating point at random points and ends of parameters, which no bound may be below."""
    net, cells = network(7, widths, activation), boxes(3, 20, widths[0], 0.5)
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
    assert (greatest > 0.003).any()


@pytest.mark.parametrize("activation", [Activation.RELU, Activation.SIGMOID, Activation.TANH])
def test_at_points_of_one_hidden_layer_the_bounds_are_nearly_exact(activation: Activation) -> None:
    """Rivals that pull hidden values apart are bounded by one row, and parameters by the sign of what they are times."""
    net = network(5, (3, 6, 3), activation)
    points, box = np.random.default_rng(1).uniform(-1, 1, size=(60, 3)), qrobust.Absolute(0.01).around(net)
    upper, _ = TwinConfidences(net, box).changes(Interval.point(points))
    exact = softmax_change.greatest_changes(net, box, points)
    assert (upper >= exact.lower).all()
    assert np.quantile(upper / exact.upper, 0.9) < 1.09
    assert np.median(upper / exact.upper) < 1.02


@pytest.mark.parametrize("widths", SHAPES, ids=str)
def test_attacked_parameters_make_no_more_than_the_greatest_change(widths: tuple[int, ...]) -> None:
    net, points = network(2, widths), np.random.default_rng(1).uniform(-1, 1, size=(40, widths[0]))
    box = qrobust.Absolute(0.05).around(net)
    made, bounds = attained_changes(net, box, points), screen_changes(net, box, points)
    assert (made <= bounds.upper).all()
    assert np.median(made / bounds.lower) > 0.9


def test_points_near_a_box_lie_surely_in_it() -> None:
    """Of [1 - e, 1 + e], one number but for rounding, all counts; of [0 - e, 2 + e] what is surely inside."""
    e = 2.0**-50
    whole = Boxes(
        Interval(np.array([[1 - e, -e]]), np.array([[1 + e, 2 + e]])), Ends(np.array([[1 + e, e]]), np.array([[1 - e, 2 - e]]))
    )
    for given, wanted in ((1.5, (1.5, 1.5)), (-3.0, (e, e)), (2.0, (2 - e, 2 - e))):
        found = whole.within(np.array([[1.0, given]]))
        assert (found.lower.tolist(), found.upper.tolist()) == ([[1 - e, wanted[0]]], [[1 + e, wanted[1]]])


def test_a_deadline_leaves_what_is_known_then() -> None:
    net, cells = network(4, (3, 4, 2)), boxes(1, 6, 3, 0.5)
    box = qrobust.Absolute(0.05).around(net)
    late, whole = (changes_over(net, box, Boxes.exact(cells), deadline=end) for end in (0.0, np.inf))
    assert (late.lower.tolist(), late.upper.tolist()) == ([0.0] * 6, [1.0] * 6)
    assert (whole.upper < 1).all()
    soon = changes_over(net, box, Boxes.exact(cells), deadline=time.monotonic() + 0.01)
    assert (soon.lower <= whole.upper).all()
    assert (whole.lower <= soon.upper).all()


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
    found = changes_over(net, qrobust.Absolute(1.0).around(net), Boxes.exact(cells))
    assert (found.upper >= 0.5).all()  # both classes are equal, and one can win
    assert (logit_changes_over(net, qrobust.Absolute(1.0).around(net), Boxes.exact(cells)).upper > 1e300).all()


@pytest.mark.parametrize("activation", [Activation.RELU, Activation.SIGMOID, Activation.TANH])
@pytest.mark.parametrize("classes", [1, 3])
def test_values_beyond_floats_leave_what_they_touch_open(activation: Activation, classes: int) -> None:
    """Products of 1e400: bounds are infinite, and no NaN of theirs is taken for a fault or for a bound."""
    layers = Dense(np.full((2, 1), 1e200), np.zeros(2)), Dense(np.array([[1e200, -1e200]]), np.zeros(1), activation)
    last = Dense(np.array([[1e200], [1.0], [-1e200]])[:classes], np.zeros(classes))
    net = Network((*layers, last), Output.SIGMOID if classes == 1 else Output.SOFTMAX)
    box = qrobust.Absolute(0.1).around(net)
    cells = Interval(np.array([[-1.0]]), np.array([[1.0]])), Interval.point([[1.0]])  # at 1 the second layer may give 0 or much
    queries = LocalLabel(net, box, Point([1.0])), LocalConfidence(net, box, Point([1.0]), Fraction(1, 10))
    with np.errstate(all="ignore"):  # as the command line has it
        for each in cells:
            found = {quantity: Question(net, box, quantity, budget=SHORT).at_once(each) for quantity in Quantity}
            assert found[Quantity.EPSILON].upper[0] > 0.4
            assert found[Quantity.LOGIT].upper[0] > 1e190
            assert found[Quantity.LABEL].status[0] != Status.SAFE
            assert TwinConfidences(net, box).changes(each)[0][0] > 0.4
        for query in queries:
            assert qrobust.check(query, backend="branch-and-bound", budget=SHORT).verdict is not Verdict.ROBUST


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


def test_grids_that_take_more_memory_than_there_is(capsys: pytest.CaptureFixture[str], models: Path) -> None:
    line = refused(capsys, "map", str(models / "iris.json"), "--scheme", "int8", "--axes", "1,2", "--grid", "10000x10000")
    assert "100,000,000 cells" in line
    assert "--memory" in line
    assert (
        run(capsys, "map", str(models / "cat_paper.json"), "--delta", "0.01", "--what", "label", "--grid", "3x2", "--quiet")[0]
        == 0
    )
