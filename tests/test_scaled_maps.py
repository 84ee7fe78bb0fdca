"""Maps of networks that scale their inputs, and what maps of many inputs share: intervals around points, time, the cache."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import qrobust
from qrobust import maps
from qrobust.answers import VERSION, Answer, Unknown, Verdict
from qrobust.backends.deep import screen_labels
from qrobust.backends.many_changes import logit_changes_at, screen_changes
from qrobust.bounds import local, softmax_change
from qrobust.bounds.local import Status
from qrobust.cache import ResultCache
from qrobust.domains import InputBox, Point
from qrobust.interval import Interval
from qrobust.leads import Leads
from qrobust.maps import Found, Quantity, Question, Sharing, sweep
from qrobust.network import Activation, Dense, Network, Output
from qrobust.parallel import answer_all
from qrobust.queries import Query
from qrobust.search import Budget
from qrobust.sections import Section, section_map
from qrobust.solve import Session
from tests.conftest import RandomNetwork
from tests.test_scaling import RATIONAL, SHORT, scaled

KINDS = [(Activation.RELU, Output.SIGMOID), (Activation.RELU, Output.SOFTMAX), (Activation.TANH, Output.SOFTMAX)]


def asked_alone(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Answer no single question; return the list of those that are asked."""
    asked: list[object] = []

    def kept(tasks: list[object], **_: object) -> Iterator[object]:
        asked.extend(tasks)
        yield from ()

    monkeypatch.setattr("qrobust.maps.answer_each", kept)
    return asked


@pytest.mark.parametrize(("hidden", "output"), KINDS)
@pytest.mark.parametrize("quantity", list(Quantity))
def test_maps_ask_the_core_of_all_cells_at_once(
    hidden: Activation, output: Output, quantity: Quantity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells of scaled inputs agree with single queries, and nearly none is left for them."""
    rng = np.random.default_rng(3)
    last = 1 if output is Output.SIGMOID else 3
    inner = Network(
        (Dense(rng.normal(size=(4, 3)), rng.normal(size=4), hidden), Dense(rng.normal(size=(last, 4)), rng.normal(size=last))),
        output,
    )
    network = scaled(inner, *RATIONAL)
    parameters = qrobust.Absolute(0.03).around(network)
    question = Question(network, parameters, quantity, budget=SHORT)
    wide = InputBox([-300.0, -300.0, 10.0], [300.0, 300.0, 20.0])
    for base in (np.array([1.0, 2.0, 0.1]), None):
        section = Section.over((0, 1), wide, (6, 4), base)
        with monkeypatch.context() as patched:
            asked = asked_alone(patched)
            found = section_map(question, section)
        assert len(asked) <= (0 if base is not None else 8)
        for number in range(0, 24, 5):
            ends = section.inputs(number, number + 1)[0]
            task = question.task(Point(ends.lower) if base is not None else InputBox(ends.lower, ends.upper))
            low, high = found.lower.ravel()[number], found.upper.ravel()[number]
            if quantity is not Quantity.LABEL:
                one = qrobust.estimate(task.query, budget=SHORT)
                assert low <= one.upper
                assert one.lower <= high
                assert low > 0
            elif found.status.ravel()[number] != Status.UNDECIDED:
                assert isinstance(task.query, Query)
                verdict = qrobust.check(task.query, budget=SHORT).verdict
                wanted = {Verdict.ROBUST: Status.SAFE, Verdict.VIOLATED: Status.FLIPPABLE}
                assert verdict is Verdict.UNKNOWN or wanted[verdict] == found.status.ravel()[number]


@pytest.mark.parametrize("sizes", [(3, 4, 1), (3, 5, 3), (3, 4, 4, 3)], ids=str)
def test_what_is_claimed_of_an_interval_holds_at_its_points(sizes: tuple[int, ...], random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(1)
    network = random_network(rng, sizes)
    parameters = qrobust.Absolute(0.05).around(network)
    middle, leads = rng.normal(size=(200, 3)), Leads(network, Fraction(1, 2))
    x = Interval(middle - 0.01, middle + 0.01)
    closed = len(sizes) == 3
    changes = [softmax_change.greatest_changes if sizes[-1] > 1 else local.greatest_changes] if closed else [screen_changes]
    found = [change(network, parameters, x) for change in (*changes, logit_changes_at)]
    status, labels = local.label_changes(leads, parameters, x) if closed else (np.full(200, 2), np.zeros(0))
    safe = screen_labels(leads, parameters, x)
    assert safe.any()
    assert {0, 1} <= set(status.tolist()) or not closed
    for _ in range(20):
        points = x.lower + rng.random(x.shape) * x.width
        for whole, change in zip(found, (*changes, logit_changes_at), strict=True):
            one = change(network, parameters, points)
            assert (whole.lower <= one.upper).all()
            assert (one.lower <= whole.upper).all()
        assert screen_labels(leads, parameters, points)[safe].all()
        if closed:
            own, named = local.label_changes(leads, parameters, points)
            settled = status != Status.UNDECIDED
            assert (own[settled] == status[settled]).all()
            assert (named[labels >= 0] == labels[labels >= 0]).all()


# Time and the cache.

BOX = InputBox([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])


def deep(random_network: RandomNetwork) -> Question:
    network = random_network(np.random.default_rng(2), (3, 5, 5, 3))
    return Question(network, qrobust.Absolute(0.05).around(network), budget=Budget(0.5))


def test_the_time_for_a_map_ends_its_bounds_too(random_network: RandomNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four parts the clock allows two; no search is begun, and what is known holds."""
    monkeypatch.setattr(maps, "OTHERS_AT_A_TIME", 5)
    monkeypatch.setattr(maps, "answer_each", lambda *_, **__: pytest.fail("a search was begun after the end"))
    question, section = deep(random_network), Section.over((0, 1), BOX, (5, 4))
    whole, parts = question.at_once(section.inputs(0, 20)), []
    clock = iter([0.0, 1.0, 1.0, 2.0, 2.0, *[11.0] * 99])
    original = Question.at_once

    def counted(own: Question, inputs: Interval, deadline: float) -> Found:
        assert deadline == 10.0
        parts.append(len(inputs))
        next(clock)
        return original(own, inputs)

    monkeypatch.setattr(Question, "at_once", counted)
    monkeypatch.setattr(maps, "time", SimpleNamespace(monotonic=lambda: next(clock), time=lambda: 0.0))
    found = sweep(question, section, Sharing(seconds=10.0))
    assert parts == [5, 5]
    assert (found.lower[:10] == whole.lower[:10]).all()
    assert (found.upper[10:] == 1.0).all()
    assert (found.status[10:] == Status.UNDECIDED).all()


def test_a_map_that_was_stopped_goes_on(random_network: RandomNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was bounded is in the cache, part by part; a damaged part is bounded again."""
    monkeypatch.setattr(maps, "OTHERS_AT_A_TIME", 5)
    question, section = deep(random_network), Section.over((0, 1), BOX, (5, 2))
    cache, original, asked = ResultCache(tmp_path), Question.at_once, []

    def counted(own: Question, inputs: Interval, deadline: float) -> Found:
        asked.append(len(inputs))
        return original(own, inputs, deadline)

    monkeypatch.setattr(Question, "at_once", counted)
    first = sweep(question, section, Sharing(cache=cache))
    again = sweep(question, section, Sharing(cache=cache))
    assert asked == [5, 5]
    for name in ("lower", "upper", "status"):
        assert (getattr(first, name) == getattr(again, name)).all()
    cache.path(question.key(section.inputs(0, 5))).write_bytes(b"{}")
    sweep(question, section, Sharing(cache=cache))
    assert asked == [5, 5, 5]
    assert question.key(section.inputs(0, 5)) != question.key(section.inputs(5, 10))
    for other in (Quantity.LABEL, Quantity.LOGIT):
        assert Question(question.network, question.parameters, other).key(section.inputs(0, 5)) != question.key(
            section.inputs(0, 5)
        )


def test_what_a_deadline_cut_short_is_not_kept(random_network: RandomNetwork, tmp_path: Path) -> None:
    question, section = deep(random_network), Section.over((0, 1), BOX, (3, 2))
    cache = ResultCache(tmp_path)
    sweep(question, section, Sharing(cache=cache, seconds=1e-4))
    assert not list(tmp_path.rglob("*.json"))


def test_a_search_ends_with_the_map(random_network: RandomNetwork, tmp_path: Path) -> None:
    """A task that may take 60 s takes what is left until the end, and its Unknown is not kept as that of 60 s."""
    question, cache, given = deep(random_network), ResultCache(tmp_path), []

    class Tired(Session):
        def check(self, query: Query, *, backend: str = "auto", budget: Budget | None = None) -> Answer:
            assert budget is not None
            given.append(budget.seconds)
            return Answer(query, Unknown("tired"), backend, 0.0, VERSION)

    long = replace(question, quantity=Quantity.LABEL, budget=Budget(60.0))
    for until, most, kept in ((time.time() + 5, 5.0, 0), (time.time() - 5, 0.01, 0), (np.inf, 60.0, 1)):
        answer_all([long.task(Point([0.5] * 3), until)], cache=cache, session=Tired())
        assert given[-1] <= most
        assert len(list(tmp_path.rglob("*.json"))) == kept
    assert given[-1] == 60.0


def test_parts_of_a_cache_that_are_no_parts() -> None:
    good = Found.open(2, Quantity.LOGIT, "auto").to_json()
    read = Found.from_json(good, 2)
    assert read is not None
    assert read.upper.tolist() == [np.inf, np.inf]
    wrong = [None, {}, good | {"lower": ["1"]}, good | {"status": [0, 9]}, good | {"lower": ["nan", "0"]}]
    wrong += [good | {"upper": ["-1", "1"]}, good | {"upper": 3}, good | {"lower": ["x", "0"]}]
    assert [Found.from_json(document, 2) for document in wrong] == [None] * len(wrong)
    assert Found.from_json(good, 3) is None
