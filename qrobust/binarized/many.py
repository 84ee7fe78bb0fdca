"""Many questions about networks of signs, some at a time, each thread with engines of its own.

Property  the answers are those of `BinarizedSession`. What was kept of an earlier run is believed only if its counterexample
          replays in integers; a kept ROBUST is as good as the folder
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from qrobust.answers import VERSION, Verdict
from qrobust.backends.worker import next_answer
from qrobust.binarized.answers import INTERVALS, BinarizedAnswer, LabelChangeAnswer, cost_units
from qrobust.binarized.float_pairs import FloatLabels
from qrobust.binarized.queries import LabelChange, LeastChange, Robustness
from qrobust.binarized.race import PORTFOLIO, check_engine
from qrobust.binarized.solve import BinarizedSession, check_seconds, folded
from qrobust.cache import ResultCache, key_of
from qrobust.comparison import UNDECIDED
from qrobust.errors import NumberError
from qrobust.layers import IntArray
from qrobust.network import Network

Question = Robustness | LabelChange | LeastChange


@dataclass(frozen=True, eq=False)
class Made(Sequence[Question]):
    """Questions that are made when they are asked for, so that many take no memory."""

    size: int
    make: Callable[[int], Question]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, place: int) -> Question: ...
    @overload
    def __getitem__(self, place: slice) -> list[Question]: ...
    def __getitem__(self, place: int | slice) -> Question | list[Question]:
        if isinstance(place, slice):
            return [self.make(number) for number in range(*place.indices(self.size))]
        if not 0 <= place < self.size:
            raise IndexError(place)
        return self.make(place)


@dataclass(frozen=True)
class Settings:
    """Who is asked, and how: as `BinarizedSession.check` takes these.

    Units     seconds for each question
    Raises    NumberError (a time limit that is not positive and finite), UnsupportedError, BackendUnavailableError (the engine)
    """

    engine: str = PORTFOLIO
    seconds: float = 60.0
    exact: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_engine(self.engine)
        check_seconds(self.seconds)


@dataclass(frozen=True, eq=False)
class Settled:
    """What came of one question. Shapes: levels (inputs,) of the counterexample, or None.

    Units     ends: what a least change lies between, as in LeastChangeAnswer, its upper end None where no input is known
    """

    verdict: Verdict
    engine: str
    exact: bool
    seconds: float
    levels: IntArray | None = None
    reason: str = ""
    ends: tuple[int, int | None] | None = None

    @property
    def is_exact_optimum(self) -> bool:
        """Whether the two ends of a least change meet."""
        return self.ends is not None and self.ends[0] == self.ends[1]

    def to_json(self) -> dict[str, Any]:
        """Return what is kept of it."""
        return {
            "verdict": self.verdict.value,
            "engine": self.engine,
            "exact": self.exact,
            "seconds": self.seconds,
            "levels": None if self.levels is None else self.levels.tolist(),
            "reason": self.reason,
            **({} if self.ends is None else {"ends": list(self.ends)}),
        }


def settle_all(
    questions: Sequence[Question],
    settings: Settings,
    *,
    jobs: int = 1,
    cache: ResultCache | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[Settled]:
    """Answer every question, `jobs` at a time; what is kept is not asked again. `progress` is called once for each.

    Raises    NumberError (jobs), and what `BinarizedSession` raises; what was answered before is in the cache
    """
    if jobs < 1:
        raise NumberError(f"jobs is {jobs}, it must be at least 1")
    found: dict[int, Settled] = {}
    for number, question in enumerate(questions):
        kept = None if cache is None else believed(question, cache.document(_key(question, settings)))
        if kept is not None:
            found[number] = kept
            progress()
    left = [number for number in range(len(questions)) if number not in found]

    def take(number: int, answer: Settled) -> None:
        found[number] = answer
        if cache is not None:
            cache.keep(_key(questions[number], settings), answer.to_json())
        progress()

    if left:
        _ask_all(questions, left, settings, min(jobs, len(left)), take)
    return [found[number] for number in range(len(questions))]


def _ask_all(
    questions: Sequence[Question], left: list[int], settings: Settings, jobs: int, take: Callable[[int, Settled], None]
) -> None:
    """Ask on some threads; where one fails or we are stopped, end all."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in left:
        waiting.put(number)
    done: queue.SimpleQueue[tuple[int, Settled | Exception]] = queue.SimpleQueue()
    stop, sessions = threading.Event(), [BinarizedSession(seed=settings.seed, races=jobs) for _ in range(jobs)]

    def work(session: BinarizedSession) -> None:
        while not stop.is_set():
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, settle(questions[number], session, settings)))
            except Exception as error:
                done.put((number, error))

    threads = [threading.Thread(target=work, args=(session,), daemon=True) for session in sessions]
    try:
        for thread in threads:
            thread.start()
        for _ in left:
            number, answer = next_answer(done)
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


def settle(question: Question, session: BinarizedSession, settings: Settings) -> Settled:
    """Answer one question. Raises what `BinarizedSession` raises."""
    engine, seconds, exact = settings.engine, settings.seconds, settings.exact
    answer: BinarizedAnswer | LabelChangeAnswer
    if isinstance(question, LeastChange):
        return _settle_least(question, session, settings)
    if isinstance(question, Robustness):
        answer = session.check(question, engine=engine, seconds=seconds, exact=exact)
    else:
        answer = session.label_change(question, engine=engine, seconds=seconds, exact=exact)
    levels = None if answer.witness is None else answer.witness.levels
    return Settled(answer.verdict, answer.engine, answer.exact, answer.seconds, levels, answer.reason)


def _settle_least(question: LeastChange, session: BinarizedSession, settings: Settings) -> Settled:
    """Find a least change: VIOLATED where an input that loses the label is known, ROBUST where there is none."""
    answer = session.least_change(question, engine=settings.engine, seconds=settings.seconds, exact=settings.exact)
    verdict = Verdict.ROBUST if answer.is_never_lost else Verdict.UNKNOWN
    levels = None
    if answer.witness is not None:
        verdict, levels = Verdict.VIOLATED, answer.witness.levels
    engine, ends = ", ".join(answer.engines) or INTERVALS, (answer.lower, answer.upper)
    return Settled(verdict, engine, answer.exact, answer.seconds, levels, answer.reason, ends)


def _key(question: Question, settings: Settings) -> str:
    networks = [question.network] + ([question.copy] if isinstance(question, LabelChange) else [])
    return key_of(
        {
            "qrobust": VERSION,
            "kind": "bnn",
            "networks": [network.sha256 for network in networks],
            "query": question.to_json(),
            "engine": settings.engine,
            "seconds": settings.seconds,
            "exact": settings.exact,
            "seed": settings.seed,
        }
    )


def believed(question: Question, values: dict[str, Any] | None) -> Settled | None:
    """Return what is kept, its counterexample replayed; None if it cannot be believed."""
    if values is None:
        return None
    try:
        verdict = Verdict(values["verdict"])
        levels = None if values["levels"] is None else np.array(values["levels"], dtype=np.int64)
        if (levels is not None) is not (verdict is Verdict.VIOLATED):
            return None
        ends = values.get("ends")
        if levels is not None and not _replays(question, levels, ends):
            return None
        if (ends is not None) is not isinstance(question, LeastChange):
            return None
        seconds, exact = float(values["seconds"]), bool(values["exact"])
        kept = None if ends is None else (int(ends[0]), None if ends[1] is None else int(ends[1]))
        return Settled(verdict, str(values["engine"]), exact, seconds, levels, str(values["reason"]), kept)
    except Exception:  # whatever is wrong with an entry, the question is asked again
        return None


def _replays(question: Question, levels: IntArray, ends: Any = None) -> bool:
    if isinstance(question, LeastChange):
        integers, centre = folded(question.network, question.zero), question.network.grid.levels(question.centre)
        label = int(integers.labels(centre[None])[0]) if question.label is None else question.label
        is_lost = bool(integers.is_lost(levels[None], label, question.tie)[0])
        return is_lost and cost_units(question.norm, levels - centre) == ends[1] >= ends[0]
    if isinstance(question, Robustness):
        region, integers = question.ball.region(question.network), folded(question.network, question.zero)
        label = int(integers.labels(region.centre[None])[0]) if question.label is None else question.label
        return region.contains(levels) and bool(integers.is_lost(levels[None], label, question.tie)[0])
    network, copy = question.network, folded(question.copy, question.zero)
    own = FloatLabels(network, question.copy.grid).at if isinstance(network, Network) else folded(network, question.zero).labels
    labels = own(levels[None]), copy.labels(levels[None])
    inside = question.ball.region(question.copy).contains(levels)
    return inside and int(labels[0][0]) != UNDECIDED and int(labels[0][0]) != int(labels[1][0])
