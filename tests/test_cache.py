"""Is a kept answer the one that was given, is a damaged one never believed, and does a full disk cost nothing?"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust import cache as cache_module
from qrobust.answers import Answer, Counterexample, Estimate, Unknown, Verdict
from qrobust.cache import Kind, ResultCache, Task
from qrobust.domains import InputBox, Point, Points
from qrobust.errors import NumberError, OutputError
from qrobust.parallel import answer, answer_all
from qrobust.queries import (
    GlobalEpsilon,
    GlobalLabel,
    GreatestDelta,
    LocalConfidence,
    LocalEpsilon,
    LocalLabel,
    MarginLabel,
    SigmaEstimate,
)
from qrobust.search import Budget
from qrobust.solve import Session
from tests.cases import COPY, LINE, QUARTERED, RAMP, TWINS, ball

BOX = ball(LINE, 0.25)
VIOLATED = Task(LocalLabel(LINE, BOX, Point([1.0])), Kind.CHECK)
ROBUST = Task(LocalLabel(LINE, BOX, Point([2.0])), Kind.CHECK)
EPS = Task(LocalEpsilon(LINE, BOX, Point([0.3])), Kind.ESTIMATE)
TASKS = [
    VIOLATED,
    ROBUST,
    EPS,
    Task(LocalConfidence(LINE, BOX, Point([0.1]), Fraction(1, 3)), Kind.CHECK),
    Task(GlobalLabel(LINE, BOX, Points([[2.0], [0.1]])), Kind.CHECK),
    Task(GlobalEpsilon(TWINS, ball(TWINS, 0.125), InputBox([0.0], [1.0])), Kind.ESTIMATE),
    Task(SigmaEstimate(LINE, BOX, InputBox([0.0], [1.0]), 1), Kind.ESTIMATE),
    Task(SigmaEstimate(LINE, BOX, Point([2.0]), 1), Kind.ESTIMATE),  # no label changes: no witness
    Task(GreatestDelta(LINE, Point([1.0])), Kind.ESTIMATE),
    Task(LocalLabel(QUARTERED, COPY, Point([0.8125])), Kind.CHECK),
]


def document(result: Answer | Estimate) -> str:
    return json.dumps(result.to_json())


def computed(task: Task, cache: ResultCache) -> int:
    """Answer a task; return how many times anything had to be computed (0 or 1)."""

    class Counting(Session):
        calls = 0

        def check(self, *arguments: Any, **options: Any) -> Answer:
            Counting.calls += 1
            return super().check(*arguments, **options)

        def estimate(self, *arguments: Any, **options: Any) -> Estimate:
            Counting.calls += 1
            return super().estimate(*arguments, **options)

    (found,) = answer_all([task], cache=cache, session=Counting())
    assert json.loads(document(found)) | {"seconds": 0} == json.loads(document(answer(task, Session()))) | {"seconds": 0}
    return min(Counting.calls, 1)


# What is kept comes back.


@pytest.mark.parametrize("number", range(len(TASKS)))
def test_what_is_kept_comes_back(number: int, tmp_path: Path) -> None:
    task, cache = TASKS[number], ResultCache(tmp_path / "deep" / "answers")
    assert cache.get(task) is None
    result = answer(task, Session())
    cache.put(task, result)
    found = ResultCache(cache.folder).get(task)
    assert found is not None
    assert found.query is task.query
    assert document(found) == document(result)
    assert str(found) == str(result)
    (entry,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert entry == cache.folder / task.key[:2] / f"{task.key}.json"


def test_an_unknown_is_kept_with_its_bounds(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    given = Answer(ROBUST.query, Unknown("the time limit of 1 s was reached", 0.1, math.inf), "z3", 1.0, "0.1.0")  # type: ignore[arg-type]
    cache.put(ROBUST, given)
    found = cache.get(ROBUST)
    assert isinstance(found, Answer)
    assert found.claim == given.claim


def test_the_second_time_nothing_is_computed(tmp_path: Path) -> None:
    for task in (VIOLATED, ROBUST, EPS):
        assert [computed(task, ResultCache(tmp_path)) for _ in range(2)] == [1, 0]


def test_counterexamples_read_back_exactly() -> None:
    weights = np.array([[Fraction(1, 3), Fraction(10**400, 7)], [Fraction(-1, 2), Fraction(0)]], dtype=object)
    empty = np.array([], dtype=object)  # a pool's
    example = Counterexample((Fraction(1, 7), Fraction(2)), ((weights, np.array([Fraction(1)] * 2)), (empty, empty)))
    found = Counterexample.from_json(json.loads(json.dumps(example.to_json())))
    assert found.x == example.x
    for pair, other in zip(found.parameters, example.parameters, strict=True):
        for a, b in zip(pair, other, strict=True):
            assert a.shape == b.shape
            assert a.tolist() == b.tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {},
        {"input": [1.0]},
        {"input": ["1/0"], "parameters": []},
        {"input": ["1e9"], "parameters": []},
        {"input": [math.nan], "parameters": []},
        {"input": [math.inf], "parameters": []},
        {"input": [[1.0]], "parameters": [{"weight": [[1.0], [1.0, 2.0]], "bias": []}]},
        {"input": [1.0], "parameters": [{"weight": [[None]], "bias": []}]},
        {"input": 1.0, "parameters": []},
    ],
)
def test_other_documents_are_no_counterexamples(wrong: Any) -> None:
    with pytest.raises(NumberError, match="no counterexample"):
        Counterexample.from_json(wrong)


# Each ingredient of the key.


def test_the_key_differs_by_each_ingredient(monkeypatch: pytest.MonkeyPatch) -> None:
    query, point = VIOLATED.query, Point([1.0])
    tasks = [
        VIOLATED,
        Task(LocalLabel(LINE, BOX, Point([1.5])), Kind.CHECK),
        Task(LocalLabel(LINE, ball(LINE, 0.125), point), Kind.CHECK),
        Task(LocalLabel(LINE, BOX, point, level=Fraction(1, 3)), Kind.CHECK),
        Task(LocalLabel(LINE, BOX, point, sigma=Fraction(1, 100)), Kind.CHECK),
        Task(MarginLabel(LINE, BOX, point), Kind.CHECK),
        Task(LocalConfidence(LINE, BOX, point, Fraction(1, 10)), Kind.CHECK),
        Task(LocalConfidence(LINE, BOX, point, Fraction(0.1)), Kind.CHECK),
        VIOLATED._replace(kind=Kind.ESTIMATE),
        VIOLATED._replace(backend="z3"),
        VIOLATED._replace(budget=Budget(seconds=61)),
        VIOLATED._replace(budget=Budget(boxes=7)),
        Task(GreatestDelta(LINE, point), Kind.ESTIMATE),
        Task(GreatestDelta(QUARTERED, point), Kind.ESTIMATE),
    ]
    keys = [task.key for task in tasks]
    assert len(set(keys)) == len(keys)
    assert Task(LocalLabel(LINE, ball(LINE, 0.25), Point([1.0])), Kind.CHECK, budget=Budget(60)).key == keys[0]
    assert VIOLATED._replace(query=replace(query, domain=point)).key == keys[0]
    monkeypatch.setattr(cache_module, "VERSION", "0.0.9")
    assert VIOLATED.key != keys[0]


def test_the_network_counts_beside_its_box() -> None:
    shifted = replace(BOX, shifted=True)
    assert Task(LocalLabel(LINE, shifted, Point([1.0])), Kind.CHECK).key != (
        Task(LocalLabel(QUARTERED, shifted, Point([1.0])), Kind.CHECK).key
    )


# Damage: every kind is found, and the answer computed and kept again.


def damaged(tmp_path: Path, task: Task, damage: Callable[[Path], object]) -> None:
    """Keep an answer, damage its file: it is computed again, as before, and then kept again."""
    cache = ResultCache(tmp_path)
    assert computed(task, cache) == 1
    damage(cache.path(task.key))
    assert cache.get(task) is None
    assert [computed(task, cache) for _ in range(2)] == [1, 0]


def rewritten(path: Path, **changes: Any) -> None:
    """Change a payload and make its digest right: what only somebody could do who means it."""
    entry = json.loads(path.read_bytes())
    entry["payload"] |= changes
    text = json.dumps(entry["payload"], sort_keys=True, separators=(",", ":"))
    entry["digest"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(entry, sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b'{"payload": 1}', b"[" * 100_000])
def test_files_that_are_no_entries(tmp_path: Path, content: bytes) -> None:
    damaged(tmp_path, VIOLATED, lambda path: path.write_bytes(content))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated(tmp_path: Path, share: float) -> None:
    def cut(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    damaged(tmp_path, VIOLATED, cut)


@pytest.mark.parametrize("task", [VIOLATED, ROBUST, EPS])
def test_any_flipped_character(tmp_path: Path, task: Task) -> None:
    """A flip in any place of the file, hence in each field, its name, and what is between."""
    cache = ResultCache(tmp_path)
    assert computed(task, cache) == 1
    path = cache.path(task.key)
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in (1, 16):
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            assert cache.get(task) is None, f"believed with byte {place} flipped"
    assert [computed(task, cache) for _ in range(2)] == [1, 0]


def test_another_entry_copied_over(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    computed(ROBUST, cache)
    damaged(tmp_path, VIOLATED, lambda path: path.write_bytes(cache.path(ROBUST.key).read_bytes()))


def test_an_entry_of_another_version(tmp_path: Path) -> None:
    damaged(tmp_path, ROBUST, lambda path: rewritten(path, version="0.0.9"))


def test_a_folder_in_the_place_of_an_entry(tmp_path: Path) -> None:
    told: list[str] = []
    cache = ResultCache(tmp_path, told.append)
    cache.path(ROBUST.key).mkdir(parents=True)
    assert [computed(ROBUST, cache) for _ in range(2)] == [1, 1]
    assert len(told) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": "VIOLATED"},  # no counterexample
        {"verdict": "VIOLATED", "example": {"input": [2.0], "parameters": [{"weight": [[1.0]], "bias": [-0.5]}]}},
        {"verdict": "VIOLATED", "example": {"input": [2.0], "parameters": [{"weight": [[-9.0]], "bias": [-0.5]}]}},
        {"verdict": "VIOLATED", "example": {"input": [0.6], "parameters": [{"weight": [[0.75]], "bias": [-0.5]}]}},
        {"verdict": "VIOLATED", "example": {"input": [2.0], "parameters": []}},
        {"verdict": "VIOLATED", "example": {"input": [], "parameters": [{"weight": [], "bias": []}]}},
        {"verdict": "MAYBE"},
        {"assurance": 9},
        {"assurance": None},
        {"seconds": "soon"},
        {"seconds": None},
    ],
)
def test_a_doctored_verdict_with_a_right_digest(tmp_path: Path, changes: dict[str, Any]) -> None:
    damaged(tmp_path, ROBUST, lambda path: rewritten(path, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"lower": "0.5", "upper": "0.75"},  # more than the witness attains
        {"lower": "0.5", "upper": "0.25"},
        {"lower": "nan"},
        {"upper": "1e-9"},
        {"example": None},  # a lower end above 0 needs a witness
        {"example": {"input": [7.0], "parameters": [{"weight": [[1.0]], "bias": [-0.5]}]}},
        {"example": {"input": [0.3], "parameters": [{"weight": [["1/0"]], "bias": [-0.5]}]}},
    ],
)
def test_a_doctored_estimate_with_a_right_digest(tmp_path: Path, changes: dict[str, Any]) -> None:
    damaged(tmp_path, EPS, lambda path: rewritten(path, **changes))


def test_a_doctored_greatest_delta(tmp_path: Path) -> None:
    task = Task(GreatestDelta(LINE, Point([1.0])), Kind.ESTIMATE)
    for changes in ({"upper": "0.1", "lower": "0.05"}, {"example": None}):
        damaged(tmp_path / str(len(changes)), task, lambda path, changes=changes: rewritten(path, **changes))  # type: ignore[misc]


def test_a_verdict_is_no_estimate(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path)
    wrong = VIOLATED._replace(kind=Kind.ESTIMATE)
    cache.put(wrong, answer(VIOLATED, Session()))
    assert cache.get(wrong) is None
    cache.put(EPS._replace(kind=Kind.CHECK), answer(EPS, Session()))
    assert cache.get(EPS._replace(kind=Kind.CHECK)) is None


# A disk that does not take it.


def test_a_full_disk_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _: bytes) -> None:
        raise OutputError(f"{path} was not written: {os.strerror(errno.ENOSPC)}; nothing was left half-written")

    monkeypatch.setattr(cache_module, "write_whole", full)
    told: list[str] = []
    cache = ResultCache(tmp_path, told.append)
    results = answer_all([VIOLATED, ROBUST], cache=cache)
    assert [result.verdict for result in results if isinstance(result, Answer)] == [Verdict.VIOLATED, Verdict.ROBUST]
    assert len(told) == 1
    assert "results are not being kept" in told[0]
    assert "No space left on device" in told[0]
    monkeypatch.undo()
    assert [computed(VIOLATED, cache) for _ in range(2)] == [1, 0]


def test_a_sub_folder_that_cannot_be_made_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / VIOLATED.key[:2]).write_text("in the way")
    cache = ResultCache(tmp_path)
    with pytest.warns(UserWarning, match="results are not being kept"):
        assert computed(VIOLATED, cache) == 1
    with warnings.catch_warnings(action="error"):
        assert computed(VIOLATED, cache) == 1


def test_a_folder_that_may_not_be_written_costs_one_warning(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.warns(UserWarning, match="results are not being kept"):
        assert computed(VIOLATED, ResultCache(tmp_path / "answers")) == 1


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "answers"):
        with pytest.raises(OutputError, match="file is a file"):
            ResultCache(folder)


def test_hidden_layers_are_kept_too(tmp_path: Path) -> None:
    task = Task(LocalLabel(RAMP, ball(RAMP, 0.25), Point([1.0])), Kind.CHECK)
    assert [computed(task, ResultCache(tmp_path)) for _ in range(2)] == [1, 0]
