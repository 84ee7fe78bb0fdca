"""Many questions at once: in this process, in several, or on a Dask cluster.

Property  every task is answered exactly once, whatever order the answers come in and whichever workers die; each answer is
          kept in the cache, by this process alone, as soon as it arrives
"""

from __future__ import annotations

import pickle
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import Any

from qrobust.answers import VERSION, Answer, Estimate, Verdict
from qrobust.cache import Kind, Result, ResultCache, Task
from qrobust.domains import Points
from qrobust.errors import BackendUnavailableError, NumberError, QRobustError, UnsupportedError
from qrobust.queries import GreatestDelta, Query
from qrobust.search import Budget
from qrobust.solve import Session, of_points, query_at

MOST_IN_BATCH = 16  # tasks that share one copy of the network, and that a dying worker loses
BATCHES_A_WORKER = 4  # so that no worker idles while another has much left
CONNECT_SECONDS = 10
LEAST_SECONDS = 0.01  # of a search whose time is up before it begins
RETRIES = 3  # of a batch whose worker died or failed

Numbered = Iterator[tuple[int, Task]]
Outcome = tuple[int, Result | QRobustError]


def answer_all(
    tasks: Sequence[Task],
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    cache: ResultCache | None = None,
    session: Session | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Result]:
    """Answer every task; return the answers in the order of the tasks.

    Accepts   jobs: processes on this machine; scheduler: the address of a Dask cluster's, as in tcp://host:8786, instead;
              session: what answers where everything is done in this process; progress: called with the number just done
    Raises    NumberError, BackendUnavailableError (no Dask, no scheduler, failing workers), UnsupportedError, and the first
              error that a task itself raises; what was answered before is in the cache
    """
    found: dict[int, Result] = {}
    with closing(answer_each(tasks, jobs=jobs, scheduler=scheduler, cache=cache, session=session)) as answers:
        for number, result in answers:
            found[number] = result
            progress(1)
    return [found[number] for number in range(len(tasks))]


def answer_each(
    tasks: Sequence[Task],
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    cache: ResultCache | None = None,
    session: Session | None = None,
) -> Generator[tuple[int, Result], None, None]:
    """Yield each task's number and answer as it comes, in any order; close it (`contextlib.closing`) to stop the workers.

    Nothing is kept here but numbers: a sequence that makes its tasks when they are asked for takes no memory either.
    Accepts and raises what `answer_all` does
    """
    if jobs < 1:
        raise NumberError(f"jobs is {jobs}, it must be at least 1")
    if scheduler is not None and jobs > 1:
        raise UnsupportedError("jobs on this machine and a scheduler do not go together: give one of them")
    left: set[int] = set()
    for number in range(len(tasks)):
        kept = None if cache is None else cache.get(tasks[number])
        if kept is None:
            left.add(number)
        else:
            yield number, kept
    with closing(_outcomes(tasks, sorted(left), jobs, scheduler, session)) as outcomes:  # stops the workers, come what may
        for number, outcome in outcomes:
            if isinstance(outcome, QRobustError):
                raise outcome
            if number not in left:  # a batch whose worker seemed dead was answered twice
                continue
            left.remove(number)
            task = tasks[number]
            result = replace(outcome, query=task.query)  # type: ignore[arg-type]
            if cache is not None and (_is_final(result) or time.time() + task.budget.seconds <= task.until):
                cache.put(task, result)  # what ended early may be asked again
            yield number, result


def _outcomes(
    tasks: Sequence[Task], left: list[int], jobs: int, scheduler: str | None, session: Session | None
) -> Generator[Outcome, None, None]:
    """Yield an answer or an error for each task that is left."""
    if not left:
        return
    numbered = ((number, tasks[number]) for number in left)
    if scheduler is None and jobs == 1:
        session = session or Session()
        yield from ((number, answer(task, session)) for number, task in numbered)
        return
    if scheduler is None:
        contents = _on_processes(_batches(numbered, len(left), jobs), jobs)
    else:
        contents = _on_cluster(numbered, len(left), scheduler)
    with closing(contents):
        for content in contents:
            yield from pickle.loads(content)  # from a worker that we started or were told to ask


def check_points(
    query: Query,
    *,
    backend: str = "auto",
    budget: Budget | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    cache: ResultCache | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Answer:
    """Answer a query about a set of points, each point that quick bounds leave open as a task of its own.

    Accepts   `budget` is for each point; the rest as `answer_all`
    """
    started, session, budget = time.monotonic(), Session(), budget or Budget()
    assert isinstance(query.domain, Points)
    name, todo = session.unsettled(query, backend, budget)
    progress(len(query.domain.values) - len(todo))
    tasks = [Task(query_at(query, index), Kind.CHECK, backend, budget) for index in todo]
    found = answer_all(tasks, jobs=jobs, scheduler=scheduler, cache=cache, session=session, progress=progress)
    answers = [result for result in found if isinstance(result, Answer)]
    return of_points(query, answers, name, time.monotonic() - started)


def answer(task: Task, session: Session) -> Result:
    """Answer one task in this process. Raises what `Session` raises."""
    query, kind, backend, budget, until = task
    budget = replace(budget, seconds=min(budget.seconds, max(until - time.time(), LEAST_SECONDS)))
    if kind is Kind.ESTIMATE:
        return session.estimate(query, backend=backend, budget=budget, remember=False)
    if isinstance(query, GreatestDelta):
        raise UnsupportedError("the greatest delta is a quantity: use estimate")
    return session.check(query, backend=backend, budget=budget)


def _is_final(result: Result) -> bool:
    """Whether more time would not have changed what a search found."""
    return not result.reason if isinstance(result, Estimate) else result.verdict is not Verdict.UNKNOWN


def _batches(left: Numbered, count: int, workers: int) -> Iterator[bytes]:
    """Yield the tasks as pickles of a few tasks each: a pickle holds what they share, such as the network, once."""
    size = max(1, min(MOST_IN_BATCH, count // (BATCHES_A_WORKER * workers)))
    while batch := list(islice(left, size)):
        yield pickle.dumps(batch)


_own = threading.local()  # a session a thread: its solvers' processes are used again by the next batch


def answer_batch(version: str, content: bytes) -> bytes:
    """Answer the tasks of a batch, in a worker: a pickle of numbers with answers (without queries), up to the first error."""
    if version != VERSION:
        error = UnsupportedError(f"a worker runs qrobust {VERSION}, this is {version}: install one version everywhere")
        return pickle.dumps([(-1, error)])
    if not hasattr(_own, "session"):
        _own.session = Session()
    outcomes: list[Outcome] = []
    tasks: list[tuple[int, Task]] = pickle.loads(content)
    for number, task in tasks:
        try:
            outcomes.append((number, replace(answer(task, _own.session), query=None)))  # type: ignore[arg-type]
        except QRobustError as error:
            outcomes.append((number, error))
            break
    return pickle.dumps(outcomes)


def _answer_undisturbed(version: str, content: bytes) -> bytes:
    """`answer_batch` in a process of our own: Ctrl-C is the parent's to handle, which ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return answer_batch(version, content)


def _on_processes(batches: Iterator[bytes], jobs: int) -> Generator[bytes, None, None]:
    """Answer on fresh processes of this machine (never forked ones), one BLAS thread each; stop them if we are stopped."""
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    calls = (delayed(_answer_undisturbed)(VERSION, batch) for batch in batches)
    with parallel_config(backend="loky", inner_max_num_threads=1):
        contents = Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")(calls)
    finished = False
    try:
        for content in contents:  # noqa: UP028  # `yield from` would close it outside of catch_warnings
            yield content
        finished = True
    except TerminatedWorkerError:
        raise BackendUnavailableError(
            "a worker process was killed, perhaps for lack of memory; what was answered before is in the cache, where there is"
            " one: run again with fewer jobs"
        ) from None
    finally:
        if not finished:
            with warnings.catch_warnings(action="ignore"):
                contents.close()
            get_reusable_executor(kill_workers=True).shutdown(kill_workers=True)


@contextmanager
def _client(address: str) -> Iterator[Any]:
    """Connect to a Dask scheduler. Raises BackendUnavailableError if there is no Dask, or none answers there in time."""
    if not re.fullmatch(r"(tcp|tls|ucx|ws|wss)://\S+:\d{1,5}", address):  # Client would hang at its end over such a one
        raise UnsupportedError(f"{address!r} is no address of a Dask scheduler: give one as in tcp://host:8786")
    try:
        from distributed import Client
    except ImportError:
        raise BackendUnavailableError("a cluster needs Dask, which is not installed: pip install qrobust[dask]") from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except OSError:
        raise BackendUnavailableError(
            f"no Dask scheduler answers at {address} within {CONNECT_SECONDS} s: start it, or see that the address is right"
        ) from None
    try:
        yield client
    finally:
        client.close()


def _on_cluster(left: Numbered, count: int, address: str) -> Generator[bytes, None, None]:
    """Answer on a Dask cluster; a batch whose worker dies goes to another one. It waits for workers if there are none."""
    with _client(address) as client:
        from distributed import as_completed

        workers = max(1, sum(client.ncores().values()))
        futures = (
            client.submit(answer_batch, VERSION, batch, pure=False, retries=RETRIES) for batch in _batches(left, count, workers)
        )
        running = set(islice(futures, BATCHES_A_WORKER * workers))  # the rest follows as these end, to save memory
        completed = as_completed(running, loop=client.loop)
        try:
            for future in completed:
                yield _gathered(future, address)
                running.remove(future)
                for following in islice(futures, 1):
                    running.add(following)
                    completed.add(following)
        finally:
            with suppress(Exception):
                client.cancel(list(running))


def _gathered(future: Any, address: str) -> bytes:
    """Return a finished batch. Raises BackendUnavailableError with the reason if its workers failed, one after the other."""
    from concurrent.futures import CancelledError

    try:
        content: bytes = future.result()
    except (Exception, CancelledError) as error:
        raise BackendUnavailableError(
            f"the workers of {address} failed on a batch ({type(error).__name__}: {error}); what was answered before is in the"
            " cache, where there is one: see that qrobust is installed on every worker, and run again"
        ) from None
    return content
