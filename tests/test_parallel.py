"""Are the answers the same however many processes give them, in order, each exactly once, and does a run continue?"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust import parallel
from qrobust.bounds.local import Status
from qrobust.cache import Kind, Result, ResultCache, Task
from qrobust.domains import Point, Points
from qrobust.errors import BackendUnavailableError, NumberError, QRobustError, UnsupportedError
from qrobust.maps import Quantity, robustness_map
from qrobust.parallel import answer_all, answer_each, check_points
from qrobust.perturbations import Absolute
from qrobust.queries import GlobalLabel, GreatestDelta, LocalEpsilon, LocalLabel
from qrobust.search import Budget
from qrobust.solve import Session
from tests.cases import LINE, TANH_TWINS, TWINS, ball, network
from tests.conftest import RandomNetwork

MODELS = Path(__file__).parents[1] / "models"
POINTS = np.linspace(-1, 2, 37)[:, None]
TWINS_BOX = ball(TWINS, 0.03125)
LABELS = [Task(LocalLabel(TWINS, TWINS_BOX, Point(x)), Kind.CHECK, "branch-and-bound") for x in POINTS]
EPS = [Task(LocalEpsilon(TWINS, TWINS_BOX, Point(x)), Kind.ESTIMATE, "branch-and-bound") for x in POINTS[::4]]
TASKS = LABELS + EPS


class Counting(ResultCache):
    """A cache that counts what it is given and what it finds."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.given: list[str] = []
        self.found = 0

    def put(self, task: Task, result: Result) -> None:
        self.given.append(task.key)
        super().put(task, result)

    def get(self, task: Task) -> Result | None:
        result = super().get(task)
        self.found += result is not None
        return result


def documents(results: list[Result]) -> list[dict[str, Any]]:
    """All that results say, but for the time they took."""
    return [result.to_json() | {"seconds": 0} for result in results]


def test_two_processes_answer_as_one_does_and_in_order() -> None:
    counts: list[int] = []
    one = answer_all(TASKS)
    two = answer_all(TASKS, jobs=2, progress=counts.append)
    assert documents(two) == documents(one)
    assert [result.query for result in two] == [task.query for task in TASKS]
    assert sum(counts) == len(TASKS)
    assert {"ROBUST", "VIOLATED"} <= {document.get("verdict") for document in documents(one)}


BOX_OF_LINE = ball(LINE, 0.25)


class Made(Sequence[Task]):
    """Tasks that are made anew each time they are asked for; `alive` are those that anybody still holds."""

    def __init__(self) -> None:
        self.alive: list[weakref.ref[Any]] = []

    def __len__(self) -> int:
        return 120

    def __getitem__(self, place: Any) -> Any:
        query = LocalLabel(LINE, BOX_OF_LINE, Point([place / 40]))
        self.alive.append(weakref.ref(query))
        return Task(query, Kind.CHECK)


@pytest.mark.parametrize("jobs", [1, 2])
def test_neither_tasks_nor_answers_are_kept(tmp_path: Path, jobs: int) -> None:
    """A hundred counterexamples and more go by, in two runs; at no time are more than a batch for each process held."""
    for _ in range(2):
        tasks, seen = Made(), []
        results: list[weakref.ref[Any]] = []
        for number, result in answer_each(tasks, jobs=jobs, cache=ResultCache(tmp_path)):
            seen.append(number)
            results.append(weakref.ref(result))
            del result
            held = sum(reference() is not None for reference in tasks.alive)
            assert held <= 6 * parallel.MOST_IN_BATCH
            assert sum(reference() is not None for reference in results) <= parallel.MOST_IN_BATCH + 1
        assert sorted(seen) == list(range(120))


def test_nothing_asked_is_nothing_answered() -> None:
    for jobs in (1, 2):
        assert answer_all([], jobs=jobs) == []


def test_the_same_question_twice_is_answered_twice() -> None:
    for jobs in (1, 2):
        counts: list[int] = []
        found = answer_all([TASKS[0], TASKS[9], TASKS[0]], jobs=jobs, progress=counts.append)
        assert documents(found)[0] == documents(found)[2] != documents(found)[1]
        assert sum(counts) == 3


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupted_run_continues(tmp_path: Path, jobs: int) -> None:
    def interrupted(_: int) -> None:
        if len(first.given) == 20:
            raise KeyboardInterrupt

    first, second, third = (Counting(tmp_path) for _ in range(3))
    with pytest.raises(KeyboardInterrupt):
        answer_all(TASKS, jobs=jobs, cache=first, progress=interrupted)
    counts: list[int] = []
    found = answer_all(TASKS, jobs=jobs, cache=second, progress=counts.append)
    assert documents(found) == documents(answer_all(TASKS))
    assert (second.found, len(second.given)) == (20, len(TASKS) - 20)
    assert sum(counts) == len(TASKS)
    assert sorted(first.given + second.given) == sorted(task.key for task in TASKS)
    answer_all(TASKS, jobs=jobs, cache=third)
    assert (third.found, third.given) == (len(TASKS), [])


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_keeps_what_was_answered_before_it(tmp_path: Path, jobs: int) -> None:
    wrong = Task(LocalLabel(TWINS, TWINS_BOX, Point([0.0])), Kind.CHECK, "closed-form")
    cache = Counting(tmp_path)
    with pytest.raises(UnsupportedError, match="closed-form cannot answer this"):
        answer_all([*LABELS[:3], wrong], jobs=jobs, cache=cache)
    assert set(cache.given) <= {task.key for task in LABELS[:3]}
    if jobs == 1:
        assert len(cache.given) == 3


def test_a_killed_process_is_one_clear_error_and_a_second_run_continues(tmp_path: Path) -> None:
    from joblib.externals.loky import reusable_executor

    def kill(_: int) -> None:
        if len(first.given) == 10:
            os.kill(next(iter(reusable_executor._executor._processes)), signal.SIGKILL)

    first, second = Counting(tmp_path), Counting(tmp_path)
    with pytest.raises(BackendUnavailableError, match="a worker process was killed"):
        answer_all(TASKS, jobs=2, cache=first, progress=kill)
    assert documents(answer_all(TASKS, jobs=2, cache=second)) == documents(answer_all(TASKS))
    assert 10 <= len(first.given) < len(TASKS)
    assert sorted(first.given + second.given) == sorted(task.key for task in TASKS)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(NumberError, match="jobs is 0"):
        answer_all(TASKS, jobs=0)
    with pytest.raises(UnsupportedError, match="do not go together"):
        answer_all(TASKS, jobs=2, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(UnsupportedError, match="use estimate"):
        answer_all([Task(GreatestDelta(LINE, Point([1.0])), Kind.CHECK)])


def test_a_batch_holds_the_network_once() -> None:
    """A batch of 16 questions about a network of 4,000 parameters is little larger than one question."""
    rng = np.random.default_rng(0)
    net = network((rng.normal(size=(40, 100)), np.zeros(40)), (rng.normal(size=(1, 40)), [0.0]))
    box = ball(net, 0.1)
    tasks = [Task(LocalEpsilon(net, box, Point(rng.normal(size=100))), Kind.ESTIMATE) for _ in range(64)]
    one, many = (next(parallel._batches(enumerate(part), len(part), 1)) for part in (tasks[:1], tasks))
    assert len(one) > 8 * 4000
    assert len(many) < len(one) + 16 * 8 * 100 * 2


def test_batches_hold_every_task_once() -> None:
    for count in (1, 2, 7, 16, 64, 37):
        for workers in (1, 2, 100):
            numbered = list(enumerate((LABELS * 2)[:count]))
            batches = [pickle.loads(batch) for batch in parallel._batches(iter(numbered), len(numbered), workers)]
            assert [number for batch in batches for number, _ in batch] == list(range(count))
            assert max(map(len, batches)) <= parallel.MOST_IN_BATCH


def test_a_worker_of_another_version_refuses() -> None:
    ((_, error),) = pickle.loads(parallel.answer_batch("0.0.9", b"not even read"))
    assert isinstance(error, QRobustError)
    assert "install one version everywhere" in str(error)


def test_a_map_is_the_same_with_processes_and_a_cache(tmp_path: Path) -> None:
    maps = [
        robustness_map(TWINS, TWINS_BOX, POINTS, quantity=Quantity.LABEL, backend="branch-and-bound", jobs=jobs, cache=cache)
        for jobs, cache in ((1, None), (2, Counting(tmp_path)), (1, Counting(tmp_path)))
    ]
    assert maps[0].table() == maps[1].table() == maps[2].table()
    assert maps[0].count(Status.FLIPPABLE) > 0
    tired = Budget(60, boxes=1)
    box, search = ball(TANH_TWINS, 0.125), "branch-and-bound"
    eps = [robustness_map(TANH_TWINS, box, POINTS[:4], backend=search, budget=tired, jobs=j).table() for j in (1, 2)]
    assert eps[0] == eps[1]


def test_a_map_asks_only_about_the_points_its_closed_form_leaves_open(tmp_path: Path) -> None:
    cache = Counting(tmp_path)
    robustness_map(LINE, ball(LINE, 0.25), [[1.0], [2.0]], quantity=Quantity.LABEL, cache=cache)
    assert len(cache.given) == 1


# The command line.


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "qrobust", *arguments]


def entries(folder: Path) -> int:
    return len(list(folder.rglob("*.json")))


def alive(pid: str) -> bool:
    """Whether a process runs: it is there, and no zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_ctrl_c_stops_the_workers_and_a_second_run_continues(tmp_path: Path) -> None:
    cells = ("--axes", "petal length, petal width", "--grid", "10x8", "--box", "4:6, 2:4, 1:5, 0:2")
    kept, slow = tmp_path / "kept", ("map", str(MODELS / "iris.json"), "--delta", "0.05", *cells)
    long = ("--what", "label", "--backend", "z3")  # which asks about each cell by itself, some 0.1 s long
    arguments = command(*slow, *long, "--jobs", "2", "--cache", str(kept))
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 20
    while entries(kept) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split() if children.exists() else []
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1] == "error: interrupted; nothing was left half-written"
    time.sleep(0.2)
    assert not [pid for pid in workers if alive(pid)]
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*.json")}
    assert 5 <= len(before) < 80
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert "80 cells" in done.stdout
    assert entries(kept) == 80
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())


def test_check_and_estimate_keep_their_answers(tmp_path: Path) -> None:
    cat, kept = str(MODELS / "cat_paper.json"), str(tmp_path / "kept")
    for arguments, code in (
        (("check", cat, "--label", "--delta", "0.01", "--point", "15, 2"), 1),
        (("estimate", cat, "eps", "--delta", "0.005", "--delta", "0.01"), 0),
    ):
        runs = [
            subprocess.run(command(*arguments, "--cache", kept), capture_output=True, text=True, check=False) for _ in range(2)
        ]
        assert [run.returncode for run in runs] == [code, code]
        assert runs[0].stdout == runs[1].stdout  # to the seconds that the first run took
    assert entries(tmp_path) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--jobs", "2", "--scheduler", "tcp://127.0.0.1:1"), "do not go together"),
        (("--cache", __file__), "is a file, so no results can be kept"),
        (("--jobs", "0"), "jobs"),
    ],
)
def test_options_that_do_not_fit(arguments: tuple[str, ...], message: str) -> None:
    cat = str(MODELS / "cat_paper.json")
    run = subprocess.run(command("map", cat, "--delta", "0.01", *arguments), capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_dask_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install qrobust\[dask\]"):
        answer_all(TASKS, scheduler="tcp://127.0.0.1:1")


def test_points_are_checked_by_several_processes(random_network: RandomNetwork, tmp_path: Path) -> None:
    """The verdict about a set is that of one process, and a second run takes its parts from the cache."""
    rng = np.random.default_rng(3)
    subject = random_network(rng, (3, 6, 5, 3))
    for delta in (0.01, 0.4):
        query = GlobalLabel(subject, Absolute(delta).around(subject), Points(rng.normal(size=(30, 3))))
        alone = Session().check(query)
        cache = ResultCache(tmp_path / f"{delta}")
        for _ in range(2):
            shared = check_points(query, jobs=2, cache=cache)
            assert shared.verdict is alone.verdict
            assert shared.query is query
