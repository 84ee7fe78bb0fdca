"""The one search loop: known maxima, sound bounds whenever it stops, limits, determinism."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from qrobust import search
from qrobust.errors import EnclosureError, NumberError
from qrobust.interval import FloatArray, Interval
from qrobust.search import Budget, Outcome, maximise


@dataclass
class Known:
    """A maximisation over a box whose bound is `value` at the best corner plus `slope` times the widest side."""

    lower: tuple[float, ...]
    upper_corner: tuple[float, ...]
    function: Callable[[FloatArray], FloatArray]
    bound: Callable[[Interval], FloatArray]
    calls: int = 0
    asked: list[Interval] = field(default_factory=list)

    @property
    def root(self) -> Interval:
        return Interval(np.array(self.lower), np.array(self.upper_corner))

    @property
    def scale(self) -> FloatArray:
        return np.ones(len(self.lower))

    def upper(self, boxes: Interval) -> FloatArray:
        self.asked.append(boxes)
        return self.bound(boxes)

    def value(self, points: FloatArray) -> FloatArray:
        self.calls += 1
        return self.function(points)


def hill() -> Known:
    """-(x - 0.3)**2 - (y + 0.7)**2 over [-1, 1] x [-1, 2]: greatest 0, at (0.3, -0.7)."""

    def function(p: FloatArray) -> FloatArray:
        return np.asarray(-((p[:, 0] - 0.3) ** 2) - (p[:, 1] + 0.7) ** 2)

    def bound(boxes: Interval) -> FloatArray:
        nearest = np.clip(np.array([0.3, -0.7]), boxes.lower, boxes.upper)
        # Loose on purpose: a bound that is exact at once would end the search before it splits.
        return np.asarray(function(nearest) + boxes.width.sum(axis=1))

    return Known((-1.0, -1.0), (1.0, 2.0), function, bound)


def waves() -> Known:
    """sin(5 x) + x / 10 over [0, 6]: many local maxima; the greatest by a fine grid."""

    def function(p: FloatArray) -> FloatArray:
        return np.asarray(np.sin(5 * p[:, 0]) + p[:, 0] / 10)

    def bound(boxes: Interval) -> FloatArray:
        return np.asarray(function(boxes.middle) + 5.1 * boxes.width[:, 0])

    return Known((0.0,), (6.0,), function, bound)


def greatest_wave() -> float:
    return float(waves().function(np.linspace(0, 6, 2_000_001)[:, None]).max())


def test_the_top_of_a_hill() -> None:
    outcome = maximise(hill(), Budget(), tolerance=1e-4)
    assert outcome.point is not None
    assert outcome.point == pytest.approx([0.3, -0.7], abs=1e-2)
    assert outcome.best <= 0 <= outcome.upper <= outcome.best + 1e-4
    assert outcome.reason == ""


def test_a_single_box_finds_the_top_by_climbing() -> None:
    """No sample of the root is the top; climbing from the best of them comes close."""
    outcome = maximise(hill(), Budget(boxes=1), tolerance=math.inf)
    assert outcome.boxes == 1
    assert outcome.point is not None
    assert outcome.point == pytest.approx([0.3, -0.7], abs=1e-5)
    assert -1e-9 <= outcome.best <= 0


def test_the_greatest_of_many_waves() -> None:
    outcome = maximise(waves(), Budget(), tolerance=1e-6)
    assert outcome.best == pytest.approx(greatest_wave(), abs=1e-6)
    assert outcome.best <= greatest_wave() + 1e-11
    assert greatest_wave() <= outcome.upper <= outcome.best + 1e-6


def test_the_best_value_is_that_of_the_point() -> None:
    problem = waves()
    outcome = maximise(problem, Budget(), tolerance=1e-3)
    assert outcome.point is not None
    assert problem.function(outcome.point[None])[0] == outcome.best
    assert np.all((problem.root.lower <= outcome.point) & (outcome.point <= problem.root.upper))


@pytest.mark.parametrize("boxes", [1, 2, 10, 100, 300])
@pytest.mark.parametrize("problem", [hill, waves])
def test_the_upper_end_is_sound_when_stopped_early(boxes: int, problem: Callable[[], Known]) -> None:
    outcome = maximise(problem(), Budget(boxes=boxes), tolerance=0.0)
    truth = 0.0 if problem is hill else greatest_wave()
    assert outcome.upper >= truth
    assert outcome.best <= truth + 1e-11
    assert outcome.reason == f"the limit of {boxes:,} boxes was reached"
    assert outcome.boxes >= boxes


@pytest.mark.parametrize("problem", [hill, waves])
def test_more_boxes_never_loosen_the_upper_end(problem: Callable[[], Known]) -> None:
    ends = [maximise(problem(), Budget(boxes=boxes), tolerance=0.0).upper for boxes in (1, 50, 500, 5000)]
    assert ends == sorted(ends, reverse=True)
    assert ends[0] > ends[-1]


def test_the_box_with_the_greatest_bound_is_split_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """One box at a time: 400 boxes are enough to make the widest open one narrow, if it is always the next."""
    monkeypatch.setattr(search, "BATCH", 1)
    outcome = maximise(waves(), Budget(boxes=400), tolerance=1e-9)
    assert outcome.reason != ""
    assert greatest_wave() <= outcome.upper < greatest_wave() + 1


def test_dropped_boxes_stay_accounted_for() -> None:
    """Every box is dropped at once by a generous tolerance; the upper end must still hold the truth."""
    outcome = maximise(waves(), Budget(), tolerance=100.0)
    assert outcome.boxes == 1
    assert outcome.upper >= greatest_wave()


def test_the_split_boxes_cover_the_root() -> None:
    problem = hill()
    maximise(problem, Budget(boxes=200), tolerance=0.0)
    for point in np.random.default_rng(0).uniform(problem.root.lower, problem.root.upper, size=(50, 2)):
        for boxes in problem.asked[:2]:
            assert ((boxes.lower <= point) & (point <= boxes.upper)).all(axis=1).any()
    assert len(problem.asked) > 2


def test_what_is_nowhere_feasible_has_no_point() -> None:
    nowhere = Known((0.0,), (1.0,), lambda p: np.full(len(p), -np.inf), lambda b: np.where(b.width[:, 0] > 0.1, 1.0, -np.inf))
    outcome = maximise(nowhere, Budget(), tolerance=0.0)
    assert outcome.point is None
    assert (outcome.best, outcome.upper, outcome.reason) == (-math.inf, -math.inf, "")


def test_a_corner_that_is_hard_to_sample_is_still_bounded() -> None:
    """Only points within 1e-9 of a corner are feasible: without a point, the upper end must not fall below their value."""
    corner = Known(
        (0.0,),
        (1.0,),
        lambda p: np.full(len(p), -np.inf),
        lambda b: np.where(b.upper[:, 0] >= 1 - 1e-9, 1.0, -np.inf),
    )
    outcome = maximise(corner, Budget(boxes=10), tolerance=0.0)
    assert (outcome.point, outcome.upper) == (None, 1.0)


def test_a_root_of_one_point_ends_at_once() -> None:
    point = Known((0.5, 0.5), (0.5, 0.5), lambda p: p[:, 0], lambda b: b.upper[:, 0] + 0.1)
    outcome = maximise(point, Budget(), tolerance=0.0)
    assert (outcome.best, outcome.upper) == (0.5, 0.6)
    assert outcome.reason == "the boxes are as small as floats allow"


def test_neighbouring_floats_cannot_be_split() -> None:
    thin = Known((1.0,), (math.nextafter(1.0, 2.0),), lambda p: p[:, 0] - 1, lambda b: np.full(len(b), 1.0))
    outcome = maximise(thin, Budget(), tolerance=0.0)
    assert outcome.upper == 1.0
    assert outcome.reason == "the boxes are as small as floats allow"


def test_a_stop_ends_the_search() -> None:
    seen: list[Outcome] = []

    def stop(outcome: Outcome) -> bool:
        seen.append(outcome)
        return outcome.upper < 1.6

    outcome = maximise(waves(), Budget(), tolerance=0.0, stop=stop)
    assert outcome is seen[-1]
    assert greatest_wave() <= outcome.upper < 1.6
    assert all(earlier.upper >= 1.6 for earlier in seen[:-1])
    assert outcome.reason == ""


def test_the_time_limit_ends_the_search() -> None:
    outcome = maximise(hill(), Budget(seconds=0.05), tolerance=-1.0)
    assert outcome.reason == "the time limit of 0.05 s was reached"
    assert outcome.upper >= 0


@pytest.mark.parametrize("problem", [hill, waves])
def test_the_same_seed_gives_the_same_outcome(problem: Callable[[], Known]) -> None:
    first, second = (maximise(problem(), Budget(boxes=500), tolerance=0.0, seed=3) for _ in range(2))
    assert (first.best, first.upper, first.boxes) == (second.best, second.upper, second.boxes)
    assert first.point is not None
    assert second.point is not None
    assert first.point.tolist() == second.point.tolist()


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(NumberError, match="must be above 0"):
        Budget(seconds=seconds)


@pytest.mark.parametrize("boxes", [0, -5])
def test_no_boxes_are_refused(boxes: int) -> None:
    with pytest.raises(NumberError, match="must be at least 1"):
        Budget(boxes=boxes)


@pytest.mark.parametrize("when", ["at the root", "below it"])
def test_a_bound_that_is_nan_stops_the_run(when: str) -> None:
    """A NaN that is taken for a low bound would drop a box that may hold the maximum."""
    below = when == "below it"
    broken = Known((0.0,), (1.0,), lambda p: -p[:, 0], lambda b: np.where(below & (b.width[:, 0] > 0.9), 1.0, math.nan))
    with pytest.raises(EnclosureError, match="NaN"):
        maximise(broken, Budget(boxes=100), tolerance=0.0)


def test_the_time_limit_holds_while_a_point_is_polished(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow curved ridge, on which steps that gain are a millionth of the box; one evaluation takes 1 ms of the clock."""

    def ridge(p: FloatArray) -> FloatArray:
        return np.asarray(p[:, 1] - 1e6 * (p[:, 0] - 0.3 * p[:, 1] ** 2) ** 2)

    problem = Known((0.0, 0.0), (1.0, 1.0), ridge, lambda b: b.upper[:, 1])
    monkeypatch.setattr(search, "time", SimpleNamespace(monotonic=lambda: 1e-3 * problem.calls))
    outcome = maximise(problem, Budget(seconds=0.5), tolerance=1e-7)
    assert problem.calls < 20_000
    assert outcome.upper >= 1.0
