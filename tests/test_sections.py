"""Sections: cells as single queries say, the worst over the others, tables and arrays, and what is refused."""

from __future__ import annotations

import csv
import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qrobust import sections
from qrobust.answers import Counterexample
from qrobust.backends.deep import screen_label_boxes
from qrobust.bounds.local import Status
from qrobust.bounds.margins import gaps, margins
from qrobust.cache import ResultCache
from qrobust.check import Replay
from qrobust.domains import InputBox, Point
from qrobust.errors import NumberError, ResourceError, ShapeError
from qrobust.exact import float_bounds
from qrobust.formats import load
from qrobust.interval import FloatArray, Interval
from qrobust.leads import Leads
from qrobust.maps import CLOSED_AT_A_TIME, Quantity, Question, Sharing, robustness_map, sweep
from qrobust.network import Activation, Network
from qrobust.perturbations import Copy, Rounding
from qrobust.quantization import parse_scheme
from qrobust.queries import HALF, GlobalEpsilon, LocalEpsilon, LocalLabel, MarginLabel
from qrobust.search import Budget
from qrobust.sections import Section, SectionMap, section_map
from qrobust.solve import ENOUGH, Session
from tests.cases import SUM, ball, network
from tests.conftest import RandomNetwork

IRIS = load(Path(__file__).parents[1] / "models" / "iris.json")
CAT = load(Path(__file__).parents[1] / "models" / "cat_paper.json")
RANGES = InputBox([4.3, 2, 1, 0.1], [7.9, 4.4, 6.9, 2.5])
BASE = np.array([5.8, 3.0, 4.0, 1.0])
INT6 = Rounding(parse_scheme("int6")).around(IRIS)
WORDS = {Status.SAFE: "ROBUST", Status.FLIPPABLE: "VIOLATED", Status.UNDECIDED: "UNKNOWN"}


def labels(section: Section, **options: object) -> SectionMap:
    return section_map(Question(IRIS, INT6, Quantity.LABEL, **options), section)  # type: ignore[arg-type]


def test_a_grid_by_hand() -> None:
    """Middles of 2 columns over [0, 2] are 1/2 and 3/2, of 4 rows 1/4 to 7/4; cells go row by row."""
    section = Section.over((0, 1), InputBox([0, 0], [2, 2]), (2, 4))
    assert section.across.tolist() == [0.5, 1.5]
    assert section.up.tolist() == [0.25, 0.75, 1.25, 1.75]
    assert section.fixed
    assert section.inputs(1, 4).lower.tolist() == [[1.5, 0.25], [0.5, 0.75], [1.5, 0.75]]
    turned = Section.over((1, 0), InputBox([0, 0], [2, 2]), (2, 4))
    assert turned.inputs(1, 2).lower.tolist() == [[0.25, 1.5]]


def test_cells_are_single_queries() -> None:
    section = Section.over((2, 3), RANGES, (4, 3), BASE)
    found = labels(section)
    assert found.status.shape == (3, 4)
    for row in range(3):
        for column in range(4):
            x = BASE.copy()
            x[2], x[3] = section.across[column], section.up[row]
            verdict = Session().check(LocalLabel(IRIS, INT6, Point(x)), backend="z3").verdict.value
            assert WORDS[Status(found.status[row, column])] == verdict
    assert set(labels(Section.over((2, 3), RANGES, (20, 20), BASE)).status.ravel().tolist()) == {0, 1}


def test_eps_cells_are_single_queries() -> None:
    box = Rounding(parse_scheme("int8")).around(CAT)
    section = Section.over((0, 1), InputBox.of_features(CAT), (3, 2))
    for quantity in (Quantity.EPSILON, Quantity.LOGIT):
        found = section_map(Question(CAT, box, quantity), section)
        for number in range(len(section)):
            query = section_query(quantity, box, section.inputs(number, number + 1).lower[0])
            estimate = Session().estimate(query)
            assert found.lower.ravel()[number] <= estimate.upper
            assert estimate.lower <= found.upper.ravel()[number]
            assert found.upper.ravel()[number] - found.lower.ravel()[number] <= ENOUGH
        assert found.count(Status.SAFE) == 6


def section_query(quantity: Quantity, box: object, x: FloatArray, net: Network = CAT) -> LocalEpsilon:
    query = Question(net, box, quantity).task(Point(x)).query  # type: ignore[arg-type]
    assert isinstance(query, LocalEpsilon)
    assert query.of_logits is (quantity is Quantity.LOGIT)
    return query


def test_eps_of_three_classes_needs_no_search() -> None:
    """Every cell of an iris map has both ends at once; a few are compared with the search."""
    section = Section.over((2, 3), RANGES, (30, 20), BASE)
    sharing = Sharing(session=Session([]))  # answers nothing by itself
    found = section_map(Question(IRIS, INT6, Quantity.EPSILON), section, sharing)
    assert found.count(Status.SAFE) == 600
    assert (found.upper - found.lower).max() <= ENOUGH
    for number in range(25, 600, 145):
        query = section_query(Quantity.EPSILON, INT6, section.inputs(number, number + 1).lower[0], IRIS)
        estimate = Session().estimate(query, backend="branch-and-bound", budget=Budget(2))
        assert found.lower.ravel()[number] <= estimate.upper
        assert estimate.lower <= found.upper.ravel()[number]


def test_the_time_for_all_searches_ends() -> None:
    """With two hidden layers cells are searched one by one: after the time is up the rest stays undecided."""
    deep = network(([[1], [-1]], [0, 0]), ([[1, 2], [2, 1]], [0, 0]), ([[1, -1], [1, 1], [0, 1]], [0, 0, 0]))
    question = Question(deep, ball(deep, 0.5), budget=Budget(0.2))
    cells = robustness_map(deep, question.parameters, [[0.5]] * 9, budget=question.budget, seconds=0.01)
    assert cells.count(Status.UNDECIDED) >= 8
    assert ((cells.lower >= 0) & (cells.upper <= 1)).all()
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(NumberError, match="time for all inputs"):
            Sharing(seconds=seconds)


def test_the_worst_over_the_others() -> None:
    """Each cell over a box says what a global query says, and is never safer than a cell with the others fixed inside."""
    box = InputBox([5.7, 3, 1, 0.1], [5.9, 3.1, 6.9, 2.5])
    parameters = Rounding(parse_scheme("int8")).around(IRIS)
    question = Question(IRIS, parameters, Quantity.LABEL, budget=Budget(10))
    worst = section_map(question, Section.over((2, 3), box, (5, 4)))
    fixed = section_map(question, Section.over((2, 3), box, (5, 4), BASE))
    assert not worst.section.fixed
    for number in range(0, 20, 3):
        ends = worst.section.inputs(number, number + 1)[0]
        query = MarginLabel(IRIS, parameters, InputBox(ends.lower, ends.upper))
        assert Session().check(query).verdict.value == WORDS[Status(worst.status.ravel()[number])]
    assert (worst.status >= fixed.status).all()
    assert 0 < worst.count(Status.SAFE) <= fixed.count(Status.SAFE)
    assert worst.count(Status.FLIPPABLE) > 0


def test_eps_over_the_others() -> None:
    """z = x1 + x2 - 1 within 1/8: with x2 anywhere in a box the change is at least that with x2 fixed in it."""
    box = ball(SUM, 0.125)
    cells = Section((0, 1), np.array([0.5, 1.0]), np.array([0.25]), Interval.point(np.zeros(2)))
    assert cells.fixed
    three = network(([[1, 1, 1]], [-1]))
    section = Section.over((0, 1), InputBox([0, 0, 0], [1, 1, 1]), (2, 2))
    found = section_map(Question(three, ball(three, 0.125), Quantity.EPSILON, budget=Budget(10)), section)
    for number in range(4):
        ends = section.inputs(number, number + 1)[0]
        whole = Session().estimate(GlobalEpsilon(three, ball(three, 0.125), InputBox(ends.lower, ends.upper)))
        assert found.lower.ravel()[number] <= whole.upper
        assert whole.lower <= found.upper.ravel()[number]
        middle = Session().estimate(LocalEpsilon(three, ball(three, 0.125), Point(ends.middle)))
        assert middle.lower <= found.upper.ravel()[number]
    assert box.sha256 != ball(three, 0.125).sha256


@pytest.mark.parametrize("sizes", [(3, 4, 2), (3, 4, 3, 1)])
@pytest.mark.parametrize("activation", [Activation.RELU, Activation.TANH])
def test_boxes_that_are_screened_keep_their_labels(
    sizes: tuple[int, ...], activation: Activation, random_network: RandomNetwork
) -> None:
    """No random input of a box that counts as safe has another label, at the stored parameters or in the box's corners."""
    rng = np.random.default_rng(5)
    count = 0
    for _ in range(2):
        net = random_network(rng, sizes, activation)
        scheme = parse_scheme("int6")
        lower = rng.normal(size=(25, 3))
        boxes = Interval(lower, lower + rng.random((25, 3)) * 0.3)
        for parameters in (Rounding(scheme).around(net), Copy(scheme.copy(net)).around(net)):
            safe = screen_label_boxes(Leads(net, HALF), parameters, boxes)
            count += int(safe.sum())
            for index in np.flatnonzero(safe):
                inside = lower[index] + rng.random((4, 3)) * (boxes.upper[index] - lower[index])
                status = robustness_map(net, parameters, inside, quantity=Quantity.LABEL, budget=Budget(0.2)).status
                assert (status != Status.FLIPPABLE).all()
                assert len(set(net.labels(inside).tolist())) == 1
    assert count > 10


def test_margins_hold_the_exact_ones() -> None:
    points = np.random.default_rng(3).uniform(RANGES.lower, RANGES.upper, (20, 4))
    for net, inputs, level in ((IRIS, points, HALF), (CAT, points[:, :2], HALF), (CAT, points[:, :2], Fraction(1, 3))):
        found = margins(net, inputs, level)
        for x, low, high in zip(inputs, found.lower.tolist(), found.upper.tolist(), strict=True):
            label = int(net.labels(x[None], float(level))[0])
            replay = Replay(net, Counterexample(tuple(map(Fraction, x.tolist())), ()))
            least, greatest = float_bounds(lambda r=replay, own=label, at=level: r.margin(own, at))  # type: ignore[misc]
            assert low <= greatest
            assert least <= high
            assert high - low < 1e-9
        order = np.argsort(found.lower)
        if level == HALF:
            assert (np.diff(gaps(net, inputs, level).middle[order]) >= -1e-9).all()


def test_a_margin_takes_what_has_less_out_of_account() -> None:
    section = Section.over((2, 3), RANGES, (12, 10), BASE)
    sigma = Fraction(2, 5)
    plain, asked = labels(section), labels(section, sigma=sigma)
    known = margins(IRIS, section.inputs(0, len(section)).lower, HALF)
    for before, after, margin in zip(plain.status.ravel(), asked.status.ravel(), known.middle, strict=True):
        assert after == (before if margin >= sigma else Status.SAFE)
    assert asked.count(Status.SAFE) > plain.count(Status.SAFE)


def test_large_maps_go_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than CLOSED_AT_A_TIME inputs are made at once, and the parts fit together."""
    monkeypatch.setattr("qrobust.maps.CLOSED_AT_A_TIME", 7)
    seen: list[int] = []

    class Watched:
        section = Section.over((2, 3), RANGES, (6, 5), BASE)

        def __len__(self) -> int:
            return len(self.section)

        def inputs(self, start: int, stop: int) -> Interval:
            seen.append(stop - start)
            return self.section.inputs(start, stop)

    done: list[int] = []
    found = sweep(Question(IRIS, INT6, Quantity.LABEL), Watched(), Sharing(), done.append)
    assert max(seen) <= 7
    assert sum(done) == 30
    monkeypatch.setattr("qrobust.maps.CLOSED_AT_A_TIME", CLOSED_AT_A_TIME)
    assert found.status.tolist() == labels(Watched.section).status.ravel().tolist()


def test_processes_and_the_cache_give_the_same(tmp_path: Path) -> None:
    section = Section.over((2, 3), InputBox([5.7, 3, 1, 0.1], [5.9, 3.1, 6.9, 2.5]), (4, 4))
    question = Question(IRIS, INT6, Quantity.LABEL, backend="z3", budget=Budget(20))
    plain = section_map(question, section)
    for _ in range(2):
        done: list[int] = []
        shared = section_map(question, section, Sharing(jobs=2, cache=ResultCache(tmp_path)), done.append)
        assert shared.status.tolist() == plain.status.tolist()
        assert sum(done) == 16


def test_tables_and_arrays_hold_the_map() -> None:
    found = section_map(
        Question(CAT, Rounding(parse_scheme("int8")).around(CAT)), Section.over((0, 1), InputBox.of_features(CAT), (3, 2))
    )
    rows = list(csv.reader(io.StringIO(b"".join(found.table()).decode())))
    assert rows[0] == ["heart weight", "body weight", "lower", "upper", "status"]
    assert [float(row[3]) for row in rows[1:]] == found.upper.ravel().tolist()
    assert {row[4] for row in rows[1:]} == {"safe"}
    assert (float(rows[2][0]), float(rows[2][1])) == (found.section.across[1], found.section.up[0])
    with np.load(io.BytesIO(found.arrays())) as file:
        assert (file["upper"] == found.upper).all()
        assert str(file["network"]) == CAT.sha256
        assert file["statuses"].tolist()[0] == "safe"
    assert "6 cells over heart weight and body weight" in str(found)


@pytest.mark.parametrize("axes", [(0, 0), (0, 4), (-1, 2)])
def test_axes_that_are_no_two_inputs(axes: tuple[int, int]) -> None:
    with pytest.raises((ShapeError, IndexError)):
        Section(axes, np.zeros(1), np.zeros(1), RANGES.box)


def test_sizes_are_checked_before_memory_is_taken() -> None:
    for counts in ((20_000, 20_000), (10**12, 1), (10**8, 10**8)):
        with pytest.raises(ResourceError, match="at most"):
            Section.over((0, 1), RANGES, counts)
    with pytest.raises(NumberError, match="has none"):
        Section.over((0, 1), RANGES, (0, 3))
    with pytest.raises(ShapeError, match="the network takes 2"):
        section_map(Question(CAT, ball(CAT, 0.1)), Section.over((0, 1), RANGES, (2, 2)))
    assert sections.MOST_CELLS >= 10_000_000
