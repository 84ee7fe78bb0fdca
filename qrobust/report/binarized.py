"""A report on a network of signs over the rows of a table: how many labels are kept in balls about them, eps by eps.

Gives     in one folder: result.json (see `document`), report.md, report.html (self-contained)
Property  a verdict is that of `BinarizedSession.check` about the network's own label of the row; each counterexample is
          replayed in integers, also one that was kept. An interrupted run goes on from the finished answers that it kept
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from qrobust.answers import VERSION, Verdict
from qrobust.binarized import Ball, BinarizedNetwork, BinarizedSession, Norm, Robustness
from qrobust.binarized.race import PORTFOLIO
from qrobust.binarized.solve import folded
from qrobust.cache import ResultCache, key_of
from qrobust.errors import DomainError, NumberError, ShapeError
from qrobust.interval import FloatArray
from qrobust.layers import IntArray

SCHEMA = "qrobust-bnn-report-1"
MOST_QUESTIONS = 10**6


@dataclass(frozen=True, eq=False)
class Survey:
    """What is asked: rows of inputs with their right classes, and balls about each.

    Shapes    inputs (rows, inputs); labels (rows,)
    Raises    ShapeError, NumberError, DomainError
    """

    network: BinarizedNetwork
    inputs: FloatArray
    labels: IntArray
    eps: tuple[Fraction, ...]
    norm: Norm = Norm.LINF
    seconds: float = 30.0
    engine: str = PORTFOLIO
    exact: bool = False

    def __post_init__(self) -> None:
        rows, classes = len(self.inputs), self.network.outputs
        if not rows or not self.eps:
            raise NumberError("a report needs a row and an eps at least")
        if rows * len(self.eps) > MOST_QUESTIONS:
            raise NumberError(
                f"the report would ask {rows * len(self.eps):,} questions, at most {MOST_QUESTIONS:,}: take fewer"
            )
        if self.inputs.shape[1] != self.network.inputs:
            raise ShapeError(f"the table has {self.inputs.shape[1]} inputs, the network takes {self.network.inputs}")
        strange = self.labels[(self.labels < 0) | (self.labels >= classes)]
        if len(strange):
            raise DomainError(f"the table has the class {strange[0]}, the network has classes 0 to {classes - 1}")

    @cached_property
    def own(self) -> IntArray:
        """The network's labels of the rows, in integers. Shape: (rows,)."""
        query = self.query(0, self.eps[0])
        return folded(self.network, query.zero).labels(self.network.grid.levels(self.inputs))

    @property
    def accuracy(self) -> float:
        """The share of rows labelled rightly."""
        return float((self.own == self.labels).mean())

    def query(self, row: int, eps: Fraction) -> Robustness:
        """Return what is asked of a row."""
        return Robustness(self.network, Ball(self.inputs[row], eps, self.norm))


@dataclass(frozen=True, eq=False)
class Decided:
    """What came of one question. Shapes: levels (inputs,) of the counterexample, or None. Units: rows from 0."""

    row: int
    eps: Fraction
    verdict: Verdict
    engine: str
    exact: bool
    seconds: float
    levels: IntArray | None = None
    rival: int | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what is kept of it."""
        return {
            "verdict": self.verdict.value,
            "engine": self.engine,
            "exact": self.exact,
            "seconds": self.seconds,
            "levels": None if self.levels is None else self.levels.tolist(),
            "reason": self.reason,
        }


@dataclass(frozen=True, eq=False)
class Radius:
    """All answers at one eps, with the rows that the network labels rightly. Shape: right (rows,) of Booleans."""

    eps: Fraction
    answers: tuple[Decided, ...]
    right: tuple[bool, ...]

    def count(self, verdict: Verdict) -> int:
        return sum(one.verdict is verdict for one in self.answers)

    @property
    def decided(self) -> float:
        """The share of rows that are not UNKNOWN."""
        return 1 - self.count(Verdict.UNKNOWN) / len(self.answers)

    @property
    def verified(self) -> tuple[float, float]:
        """Both ends of the share of rows labelled rightly all over their balls; they meet where all are decided."""
        pairs = list(zip(self.answers, self.right, strict=True))
        low = sum(right and one.verdict is Verdict.ROBUST for one, right in pairs)
        high = sum(right and one.verdict is not Verdict.VIOLATED for one, right in pairs)
        return low / len(pairs), high / len(pairs)

    @property
    def seconds(self) -> dict[str, float]:
        """Mean, median and worst seconds of a question."""
        taken = [one.seconds for one in self.answers]
        return {"mean": float(np.mean(taken)), "median": float(np.median(taken)), "worst": max(taken)}

    @property
    def engines(self) -> dict[str, int]:
        """How many questions each engine answered."""
        names = [one.engine for one in self.answers if one.verdict is not Verdict.UNKNOWN]
        return {name: names.count(name) for name in sorted(set(names))}

    @property
    def floating(self) -> int:
        """How many ROBUST answers were computed in floating point."""
        return sum(one.verdict is Verdict.ROBUST and not one.exact for one in self.answers)


@dataclass(frozen=True, eq=False)
class Surveyed:
    """A survey with what came of it, eps by eps."""

    survey: Survey
    radii: tuple[Radius, ...]
    started: datetime
    seconds: float

    @property
    def unknown(self) -> int:
        return sum(radius.count(Verdict.UNKNOWN) for radius in self.radii)


def run_survey(
    survey: Survey, *, jobs: int = 1, cache: ResultCache | None = None, progress: Callable[[], None] = lambda: None
) -> Surveyed:
    """Answer every question, `jobs` at a time; what is kept is not asked again.

    Raises    NumberError (jobs), and what `BinarizedSession.check` raises
    """
    if jobs < 1:
        raise NumberError(f"jobs is {jobs}, it must be at least 1")
    started, clock = datetime.now(UTC), time.monotonic()
    places = [(row, eps) for eps in survey.eps for row in range(len(survey.inputs))]
    found: dict[int, Decided] = {}
    for number, (row, eps) in enumerate(places):
        kept = None if cache is None else _believed(survey, row, eps, cache.document(_key(survey, row, eps)))
        if kept is not None:
            found[number] = kept
            progress()
    left = [number for number in range(len(places)) if number not in found]

    def take(number: int, answer: Decided) -> None:
        found[number] = answer
        if cache is not None:
            cache.keep(_key(survey, answer.row, answer.eps), answer.to_json())
        progress()

    _ask_all(survey, [(number, *places[number]) for number in left], min(jobs, max(1, len(left))), take)
    rows, right = len(survey.inputs), tuple((survey.own == survey.labels).tolist())
    radii = [
        Radius(eps, tuple(found[start * rows + row] for row in range(rows)), right) for start, eps in enumerate(survey.eps)
    ]
    return Surveyed(survey, tuple(radii), started, time.monotonic() - clock)


Place = tuple[int, int, Fraction]  # the question's number, its row and its eps


def _ask_all(survey: Survey, places: Sequence[Place], jobs: int, take: Callable[[int, Decided], None]) -> None:
    """Ask on some threads, each with engines of its own; where one fails or we are stopped, end all."""
    waiting: queue.SimpleQueue[Place] = queue.SimpleQueue()
    for place in places:
        waiting.put(place)
    done: queue.SimpleQueue[tuple[int, Decided | Exception]] = queue.SimpleQueue()
    stop, sessions = threading.Event(), [BinarizedSession() for _ in range(jobs)]

    def work(session: BinarizedSession) -> None:
        while not stop.is_set():
            try:
                number, row, eps = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, _asked(survey, session, row, eps)))
            except Exception as error:
                done.put((number, error))

    threads = [threading.Thread(target=work, args=(session,), daemon=True) for session in sessions]
    try:
        for thread in threads:
            thread.start()
        for _ in places:
            number, answer = done.get()
            if isinstance(answer, Exception):
                raise answer
            take(number, answer)
    finally:
        stop.set()
        for session, thread in zip(sessions, threads, strict=True):
            while thread.is_alive():
                session.interrupt()
                thread.join(0.05)
            session.close()


def _asked(survey: Survey, session: BinarizedSession, row: int, eps: Fraction) -> Decided:
    answer = session.check(survey.query(row, eps), engine=survey.engine, seconds=survey.seconds, exact=survey.exact)
    levels, rival = (None, None) if answer.witness is None else (answer.witness.levels, answer.witness.label)
    return Decided(row, eps, answer.verdict, answer.engine, answer.exact, answer.seconds, levels, rival, answer.reason)


def _key(survey: Survey, row: int, eps: Fraction) -> str:
    return key_of(
        {
            "qrobust": VERSION,
            "kind": "bnn",
            "network": survey.network.sha256,
            "query": survey.query(row, eps).to_json(),
            "engine": survey.engine,
            "seconds": survey.seconds,
            "exact": survey.exact,
        }
    )


def _believed(survey: Survey, row: int, eps: Fraction, values: dict[str, Any] | None) -> Decided | None:
    """Return what is kept, its counterexample replayed; None if it cannot be believed."""
    if values is None:
        return None
    try:
        query, verdict = survey.query(row, eps), Verdict(values["verdict"])
        levels = None if values["levels"] is None else np.array(values["levels"], dtype=np.int64)
        rival = None
        if (levels is not None) is not (verdict is Verdict.VIOLATED):
            return None
        if levels is not None:
            integers, label = folded(survey.network, query.zero), int(survey.own[row])
            if (
                not query.ball.region(survey.network).contains(levels)
                or not integers.is_lost(levels[None], label, query.tie)[0]
            ):
                return None
            rival = int(integers.labels(levels[None])[0])
        seconds, exact = float(values["seconds"]), bool(values["exact"])
        return Decided(row, eps, verdict, str(values["engine"]), exact, seconds, levels, rival, str(values["reason"]))
    except Exception:  # whatever is wrong with an entry, the question is asked again
        return None


def document(found: Surveyed, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return result.json. Keys below a list are written with []:

    schema: text                    "qrobust-bnn-report-1"
    started, seconds, command, model, table, versions    as in a sign-off's result.json
    network: object                 name and sha256
    norm, timeout, engine, exact    what was asked
    rows, accuracy                  of the table
    eps[].eps: text                 an exact fraction
    eps[].decided: number           share of rows that are not UNKNOWN
    eps[].verified: list            both ends of the share labelled rightly all over their balls
    eps[].robust, violated, unknown, floating: number    of rows; floating: ROBUST, computed in floating point
    eps[].seconds: object           mean, median, worst, of a question
    eps[].engines: object           how many questions each engine answered
    eps[].answers[]: object         row from 1, label, own (the network's), verdict, engine, exact, seconds, rival, levels,
                                    reason
    """
    survey = found.survey
    return {
        "schema": SCHEMA,
        **provenance,
        "started": found.started.isoformat(timespec="seconds"),
        "seconds": found.seconds,
        "network": {"name": str(survey.network), "sha256": survey.network.sha256},
        "norm": survey.norm.value,
        "timeout": survey.seconds,
        "engine": survey.engine,
        "exact": survey.exact,
        "rows": len(survey.inputs),
        "rows_sha256": hashlib.sha256(survey.inputs.tobytes() + survey.labels.tobytes()).hexdigest(),
        "accuracy": survey.accuracy,
        "eps": [_radius(survey, radius) for radius in found.radii],
    }


def _radius(survey: Survey, radius: Radius) -> dict[str, Any]:
    counts = {verdict.value.lower(): radius.count(verdict) for verdict in Verdict}
    return {
        "eps": str(radius.eps),
        "decided": radius.decided,
        "verified": list(radius.verified),
        **counts,
        "floating": radius.floating,
        "seconds": radius.seconds,
        "engines": radius.engines,
        "answers": [
            {
                "row": one.row + 1,
                "label": int(survey.labels[one.row]),
                "own": int(survey.own[one.row]),
                **one.to_json(),
                "rival": one.rival,
                "reason": one.reason or None,
            }
            for one in radius.answers
        ],
    }
