"""Engines raced in processes of their own: the first answer that counts wins, the rest are ended.

A process for each engine also keeps libraries apart: OR-Tools and highspy bring each its own HiGHS, and cannot both be loaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qrobust.backends.worker import Worker, WorkerDiedError, WorkerTimeoutError, next_answer
from qrobust.binarized.answers import BRANCHING, TRIAL
from qrobust.binarized.constraints import Constraints
from qrobust.binarized.engines import annealing, branching, cardinality, cpsat, exact_solver, milp, pseudo_boolean, sat, trial
from qrobust.binarized.engines.base import LATE, Engine, Outcome, Undecided
from qrobust.errors import BackendUnavailableError, UnsupportedError

ANNEALING, CARDINALITY = "annealing", "cardinality"
ENGINES: dict[str, Engine] = {
    CARDINALITY: cardinality.decide,
    "sat": sat.decide,
    "milp": milp.decide,
    "cp-sat": cpsat.decide,
    "z3": pseudo_boolean.decide,
    "exact": exact_solver.decide,
    BRANCHING: branching.decide,
    TRIAL: trial.decide,
    ANNEALING: annealing.decide,
}
NEEDS = {
    CARDINALITY: "pysat",
    "sat": "pysat",
    "milp": "highspy",
    "cp-sat": "ortools",
    "z3": "z3",
    "exact": "exact",
    BRANCHING: "numpy",
    TRIAL: "numpy",
    ANNEALING: "numpy",
}
PORTFOLIO = "portfolio"
DENSE = 40.0  # mean terms of a row from which on integer programming starts first
MORE_LANES = (("exact", 4), ("cp-sat", 2))  # where they are installed, and there are so many processor cores
GRACE = 0.1  # seconds that an answer at the limit may still take to arrive
END_SECONDS = 0.5  # that ended processes may take to be gone
ANNEALING_SHARE = 0.6  # of the time, for what finds an input soon or not at all
HEAD_START = 0.3  # seconds that a lane has before the next one starts; the first two start at once


def available(name: str) -> bool:
    """Whether an engine's solver is installed; it is not imported."""
    return importlib.util.find_spec(NEEDS[name]) is not None


def how_to_install(name: str) -> str:
    """Say what an engine needs."""
    return exact_solver.INSTALL if name == "exact" else f"the {name} engine needs `pip install qrobust[bnn]`"


def engine_names(choice: str, found: Constraints, seconds: float = 60.0, races: int = 1) -> list[str]:
    """Return the engines to race, the first to start first. Raises UnsupportedError, BackendUnavailableError.

    Accepts   seconds: the time for the race; where every input can be tried in it, that is a lane, too; races: how many
              share the processor cores
    """
    if choice == PORTFOLIO:
        more = [name for name, cores in MORE_LANES if available(name) and _cores() // races >= cores]
        clauses = ["sat"] if available("sat") else ["z3"]
        sums = [CARDINALITY] if available(CARDINALITY) else []
        lanes = ["milp", *more[::-1], *clauses, *sums] if found.density > DENSE else [*sums, *clauses, *more, "milp"]
        split = [BRANCHING] if branching.bits(found) <= branching.MANY_BITS else []
        tried = [TRIAL] if trial.forecast(found) < seconds else []
        return [ANNEALING, *split, *tried, *lanes]
    check_engine(choice)
    return [choice]


def check_engine(choice: str) -> None:
    """Raise UnsupportedError if there is no such engine, BackendUnavailableError if its solver is not installed."""
    if choice != PORTFOLIO and choice not in ENGINES:
        raise UnsupportedError(f"there is no engine {choice!r}: name one of {', '.join([PORTFOLIO, *ENGINES])}")
    if choice != PORTFOLIO and not available(choice):
        raise BackendUnavailableError(how_to_install(choice))


def _cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, eq=False)
class Finish:
    """What an engine answered."""

    engine: str
    outcome: Outcome


@dataclass(frozen=True, eq=False)
class EngineFault:
    """What an engine raised."""

    engine: str
    error: Exception


class Race:
    """The engines' processes, kept from question to question."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def interrupt(self) -> None:
        """Kill what computes, from another thread: the race that waits for it finds no winner."""
        for worker in list(self._workers.values()):
            _kill(worker)

    def run(
        self, names: Sequence[str], found: Constraints, seconds: float, counts: Callable[[Finish], bool]
    ) -> tuple[Finish | None, list[Finish]]:
        """Return the first answer that counts, or None, and the answers that did not. Starting a process counts as time.

        Raises    what an engine raised, if no other's answer counts
        """
        deadline = time.monotonic() + seconds
        over = threading.Event()
        answers: queue.SimpleQueue[Finish | EngineFault] = queue.SimpleQueue()

        def lane(place: int, name: str, worker: Worker) -> None:
            if over.wait(max(0, place - 1) * HEAD_START):
                return
            left = (deadline - time.monotonic()) * (ANNEALING_SHARE if name == ANNEALING and len(names) > 1 else 1)
            try:
                answers.put(Finish(name, worker.call(ENGINES[name], found, left, seconds=max(left, 0.0))))
            except WorkerTimeoutError:
                answers.put(Finish(name, Undecided(LATE)))
            except WorkerDiedError as error:
                answers.put(Finish(name, Undecided(str(error))))
            except Exception as error:
                answers.put(EngineFault(name, error))

        threads = []
        for place, name in enumerate(names):
            worker = self._workers.setdefault(name, Worker())
            threads.append((threading.Thread(target=lane, args=(place, name, worker), daemon=True), worker))
        others: list[Finish] = []
        try:
            for thread, _ in threads:
                thread.start()
            return self._wait(answers, deadline, list(names), counts, others), others
        finally:
            over.set()
            stuck = _end(threads)  # their threads close them; the next question gets others
            self._workers = {name: worker for name, worker in self._workers.items() if worker not in stuck}

    @staticmethod
    def _wait(
        answers: queue.SimpleQueue[Finish | EngineFault],
        deadline: float,
        names: list[str],
        counts: Callable[[Finish], bool],
        others: list[Finish],
    ) -> Finish | None:
        fault: Exception | None = None
        while names:
            try:
                answer = next_answer(answers, deadline + GRACE)
            except queue.Empty:
                others += [Finish(name, Undecided(LATE)) for name in names]
                break
            names.remove(answer.engine)
            if isinstance(answer, EngineFault):
                fault = answer.error
            elif counts(answer):
                return answer
            else:
                others.append(answer)
        if fault is not None:
            raise fault
        return None


def _end(threads: list[tuple[threading.Thread, Worker]]) -> list[Worker]:
    """Kill the processes that still compute; return those whose threads do not see it in time, as where the system is slow."""
    deadline = time.monotonic() + END_SECONDS
    stuck = []
    for thread, worker in threads:
        while thread.is_alive() and time.monotonic() < deadline:
            _kill(worker)
            thread.join(0.05)
        if thread.is_alive():
            stuck.append(worker)
    return stuck


def _kill(worker: Worker) -> None:
    pid = worker.pid
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
