"""A real cluster on this machine: answers as in this process, each exactly once, even when a worker is killed half-way."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust import parallel
from qrobust.cache import Kind, Result, ResultCache, Task
from qrobust.domains import Point
from qrobust.errors import BackendUnavailableError, UnsupportedError
from qrobust.maps import Quantity, robustness_map
from qrobust.parallel import answer_all
from qrobust.queries import LocalEpsilon, LocalLabel
from qrobust.search import Budget
from tests.cases import TANH_TWINS, TWINS, ball

distributed = pytest.importorskip("distributed", reason="needs qrobust[dask]")

POINTS = np.linspace(-1, 2, 60)[:, None]
TANH_BOX, TWINS_BOX = ball(TANH_TWINS, 0.125), ball(TWINS, 0.03125)
LIMIT = Budget(seconds=60, boxes=2000)  # boxes end the search before seconds do: the same answers everywhere
TASKS = [Task(LocalEpsilon(TANH_TWINS, TANH_BOX, Point(x)), Kind.ESTIMATE, "branch-and-bound", LIMIT) for x in POINTS]
LABELS = [Task(LocalLabel(TWINS, TWINS_BOX, Point(x)), Kind.CHECK, "branch-and-bound") for x in POINTS[::4]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None) as started:
        yield started


def documents(results: list[Result]) -> list[dict[str, Any]]:
    """All that results say, but for the time they took."""
    return [result.to_json() | {"seconds": 0} for result in results]


class Counting(ResultCache):
    """A cache that counts how often it is given each answer."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.given: Counter[str] = Counter()

    def put(self, task: Task, result: Result) -> None:
        self.given[task.key] += 1
        super().put(task, result)


def pids(cluster: Any) -> list[int]:
    """The processes of the workers."""
    return [worker.process.pid for worker in cluster.workers.values() if worker.process is not None]


def test_a_killed_worker_loses_nothing_and_counts_nothing_twice(cluster: Any, tmp_path: Path) -> None:
    serial = answer_all(TASKS)
    victim, cache, done = pids(cluster)[0], Counting(tmp_path), 0

    def kill_half_way(count: int) -> None:
        nonlocal done
        if done < len(TASKS) // 2 <= done + count:
            os.kill(victim, signal.SIGKILL)
        done += count

    found = answer_all(TASKS, scheduler=cluster.scheduler_address, cache=cache, progress=kill_half_way)
    assert documents(found) == documents(serial)
    assert [result.query for result in found] == [task.query for task in TASKS]
    assert done == len(TASKS)
    assert cache.given == Counter(task.key for task in TASKS)
    assert len(list(tmp_path.rglob("*.json"))) == len(TASKS)
    deadline = time.monotonic() + 10
    while len(pids(cluster)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert victim not in pids(cluster), "the worker was never killed"


def test_a_cluster_continues_what_a_serial_run_began(cluster: Any, tmp_path: Path) -> None:
    answer_all(LABELS[:6], cache=ResultCache(tmp_path))
    cache = Counting(tmp_path)
    found = answer_all(LABELS, scheduler=cluster.scheduler_address, cache=cache)
    assert cache.given == Counter(task.key for task in LABELS[6:])
    assert documents(found) == documents(answer_all(LABELS))


def test_a_map_on_a_cluster(cluster: Any) -> None:
    here, there = (
        robustness_map(
            TWINS, TWINS_BOX, POINTS[::5], quantity=Quantity.LABEL, backend="branch-and-bound", scheduler=scheduler
        ).table()
        for scheduler in (None, cluster.scheduler_address)
    )
    assert here == there


def test_a_question_that_cannot_be_answered_raises_as_here(cluster: Any) -> None:
    wrong = LABELS[0]._replace(backend="closed-form")
    with pytest.raises(UnsupportedError, match="closed-form cannot answer this"):
        answer_all([LABELS[0], wrong], scheduler=cluster.scheduler_address)


def test_workers_of_another_version_are_refused(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "VERSION", "9.9.9")
    with pytest.raises(UnsupportedError, match=r"a worker runs qrobust 0\.\d+\.\d+, this is 9\.9\.9: install one version"):
        answer_all(LABELS, scheduler=cluster.scheduler_address)


def test_a_batch_that_kills_every_worker_is_one_clear_error(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that ends its process stands for a batch that runs out of memory wherever it goes."""
    monkeypatch.setattr(parallel, "answer_batch", _die)
    with pytest.raises(BackendUnavailableError, match="failed on a batch"):
        answer_all(LABELS[:1], scheduler=cluster.scheduler_address)


def _die(_: str, __: bytes) -> bytes:
    os._exit(1)


def test_a_scheduler_that_is_not_there_is_said_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "CONNECT_SECONDS", 1)
    for address in ("tcp://127.0.0.1:1", "tcp://nowhere.invalid:8786"):
        started = time.monotonic()
        with pytest.raises(BackendUnavailableError, match="no Dask scheduler answers at"):
            answer_all(LABELS, scheduler=address)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("address", ["", "8786", "nonsense://x:1", "tcp://127.0.0.1:port", "tcp://127.0.0.1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UnsupportedError, match="is no address of a Dask scheduler"):
        answer_all(LABELS, scheduler=address)
