"""Maps: the closed form's points and the others', every point as its own query says, tables, random points."""

from __future__ import annotations

import csv
import io
from fractions import Fraction

import numpy as np
import pytest

from qrobust.bounds.local import Status
from qrobust.domains import InputBox, Point
from qrobust.errors import DomainError, NumberError, ShapeError, UnsupportedError
from qrobust.maps import Quantity, random_points, robustness_map
from qrobust.network import Activation, Dense, Feature, Network, Output
from qrobust.queries import LocalEpsilon, LocalLabel
from qrobust.search import Budget
from qrobust.solve import ENOUGH, Session
from tests.cases import LINE, RAMP, SQUARE, TANH_TWINS, TWINS, ball, biases_only, by_layer, cut, network

POINTS = np.linspace(-1, 2, 13)[:, None]
CLASSES = network(([[1], [-1]], [0, 0.5]), ([[1, 0], [0, 1], [0.5, 0.5]], [0, 0, 0.125]))


@pytest.mark.parametrize(("net", "delta"), [(LINE, 0.125), (RAMP, 0.125), (TWINS, 0.03125), (CLASSES, 0.125)])
def test_labels_are_those_of_single_queries(net: Network, delta: float) -> None:
    box = ball(net, delta)
    found = robustness_map(net, box, POINTS, quantity=Quantity.LABEL)
    verdicts = [Session().check(LocalLabel(net, box, Point(x))).verdict.value for x in POINTS]
    words = {Status.SAFE: "ROBUST", Status.FLIPPABLE: "VIOLATED", Status.UNDECIDED: "UNKNOWN"}
    assert [words[Status(status)] for status in found.status.tolist()] == verdicts
    assert {"ROBUST", "VIOLATED"} <= set(verdicts)
    assert sum(found.count(status) for status in Status) == len(POINTS)


@pytest.mark.parametrize("net", [LINE, RAMP, TWINS])
def test_eps_is_that_of_single_queries(net: Network) -> None:
    box = ball(net, 0.125)
    found = robustness_map(net, box, POINTS[::3])
    for x, low, high in zip(POINTS[::3], found.lower.tolist(), found.upper.tolist(), strict=True):
        estimate = Session().estimate(LocalEpsilon(net, box, Point(x)))
        assert low <= estimate.upper
        assert estimate.lower <= high
        assert high - low <= ENOUGH
    assert found.upper.max() > 0.01
    assert found.count(Status.SAFE) == len(POINTS[::3])


def test_a_tie_is_settled_one_by_one() -> None:
    """d = 1/4: x = 1 reaches z = 0, class 0; d = 1/4 at x = 1/5 is no float; x = 2 is safe: 3/2 - 3/4 > 0."""
    seen: list[int] = []
    points = [[1.0], [2.0], [-1.0], [0.75]]
    found = robustness_map(LINE, ball(LINE, 0.25), points, quantity=Quantity.LABEL, progress=seen.append)
    assert found.status.tolist() == [Status.FLIPPABLE, Status.SAFE, Status.SAFE, Status.FLIPPABLE]
    assert seen == [3, 1]


def test_progress_adds_up_to_all_points() -> None:
    for net in (LINE, TWINS):
        seen: list[int] = []
        robustness_map(net, ball(net, 0.125), POINTS[:4], quantity=Quantity.LABEL, progress=seen.append)
        assert sum(seen) == 4


def test_what_is_not_settled_stays_undecided() -> None:
    tired = Budget(seconds=5, boxes=1)
    box = by_layer(TANH_TWINS, 0.25, 0.25, 0.25)
    found = robustness_map(TANH_TWINS, box, [[1.0]], backend="branch-and-bound", budget=tired)
    assert found.status.tolist() == [Status.UNDECIDED]
    assert 0 <= found.lower[0] < found.upper[0] - ENOUGH
    assert found.upper[0] <= 1
    assert "1 undecided" in str(found)


def test_a_level_moves_the_labels() -> None:
    """Biases within 1/8: flips where x - 1/2 is within 1/8 of the level's logit: 0, and log 3 = 1.0986 for 3/4."""
    box = biases_only(LINE, 0.125)
    points = [[0.5625], [1.5625]]
    for level, status in ((Fraction(1, 2), [1, 0]), (Fraction(3, 4), [0, 1])):
        found = robustness_map(LINE, box, points, quantity=Quantity.LABEL, level=level)
        assert found.status.tolist() == status


def test_a_named_backend_answers_alone() -> None:
    for backend in ("z3", "branch-and-bound"):
        found = robustness_map(LINE, ball(LINE, 0.125), [[0.5625], [2.0]], quantity=Quantity.LABEL, backend=backend)
        assert found.backend == backend
        assert found.status.tolist() == [Status.FLIPPABLE, Status.SAFE]
    with pytest.raises(UnsupportedError, match="closed-form cannot answer this"):
        robustness_map(TWINS, ball(TWINS, 0.125), [[0.0]], backend="closed-form")


def test_bad_points_are_refused() -> None:
    with pytest.raises(ShapeError, match="points of 1 numbers"):
        robustness_map(LINE, ball(LINE, 0.125), [[0.0, 1.0]])
    with pytest.raises(NumberError, match="NaN or infinite"):
        robustness_map(LINE, ball(LINE, 0.125), [[np.nan]])
    with pytest.raises(ShapeError, match="parameter box"):
        robustness_map(LINE, ball(RAMP, 0.125), [[0.0]])


def test_the_table_reads_back() -> None:
    net = Network(
        (Dense([[1.0, -1.0]], [0.0]),),  # type: ignore[arg-type]
        Output.SIGMOID,
        features=(Feature("length, of body", "m"), Feature("mass")),
    )
    found = robustness_map(net, ball(net, 0.125), [[0.1, 1 / 3], [1e-300, 2.0]])
    rows = list(csv.reader(io.StringIO(found.table())))
    assert rows[0] == ["length, of body", "mass", "lower", "upper", "status"]
    assert [[float(cell) for cell in row[:4]] for row in rows[1:]] == np.column_stack(
        [found.points, found.lower, found.upper]
    ).tolist()
    assert [row[4] for row in rows[1:]] == ["safe", "safe"]


def test_a_name_with_quotes_reads_back() -> None:
    name = 'the "long", one'
    net = Network((Dense([[1.0]], [0.0]),), Output.SIGMOID, features=(Feature(name),))  # type: ignore[arg-type]
    rows = list(csv.reader(io.StringIO(robustness_map(net, ball(net, 0.125), [[0.5]]).table())))
    assert rows[0] == [name, "lower", "upper", "status"]


def test_maps_read_as_sentences() -> None:
    labels = robustness_map(LINE, ball(LINE, 0.25), [[1.0], [2.0], [3.0]], quantity=Quantity.LABEL)
    assert "3 points of network (1-1, 2 parameters)" in str(labels)
    assert "2 safe, 1 flippable, 0 undecided" in str(labels)
    eps = robustness_map(LINE, ball(LINE, 0.25), [[1.0]])
    assert "median 0.122459, greatest 0.122459, 0 undecided. [closed-form" in str(eps)


def test_a_sigmoid_layer_has_a_closed_form() -> None:
    net = network(([[1]], [0]), ([[4]], [-1]), hidden=Activation.SIGMOID)
    found = robustness_map(net, biases_only(net, 0.25), [[0.0]], quantity=Quantity.LABEL)
    assert (found.backend, found.status.tolist()) == ("closed-form", [Status.SAFE])


# Random points.


def test_random_points_lie_in_their_domain() -> None:
    for domain in (SQUARE, cut(SQUARE, [1.0, 1.0], 0.5), Point([0.1, 0.3]), InputBox([0.1, -1e300], [0.1, 1e300])):
        points = random_points(domain, 200, seed=1)
        assert points.shape == (200, 2)
        assert all(domain.contains([Fraction(v) for v in x]) for x in points.tolist())


def test_random_points_follow_their_seed() -> None:
    first, again, other = (random_points(SQUARE, 10, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.ptp(random_points(SQUARE, 1000, 0), axis=0) == pytest.approx([2, 2], abs=0.05)


def test_random_points_of_nothing_are_refused() -> None:
    with pytest.raises(DomainError, match="empty or too thin"):
        random_points(cut(SQUARE, [1.0, 1.0], -1.0), 3, seed=0)
