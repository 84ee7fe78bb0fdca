"""Maps: one local question asked at many inputs."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from qrobust.answers import VERSION, Estimate, Verdict
from qrobust.backends.deep import screen_labels
from qrobust.bounds import local
from qrobust.bounds.local import Status
from qrobust.cache import Kind, ResultCache, Task
from qrobust.domains import Domain, ParameterBox, Point, Points
from qrobust.errors import DomainError
from qrobust.interval import FloatArray
from qrobust.leads import Leads
from qrobust.network import Network, checked_inputs
from qrobust.parallel import answer_all
from qrobust.queries import HALF, LocalEpsilon, LocalLabel
from qrobust.search import Budget
from qrobust.solve import ENOUGH, Session


class Quantity(Enum):
    """What a map shows at each input."""

    EPSILON = "eps"  # the greatest change of a confidence
    LABEL = "label"  # whether the label can change


@dataclass(frozen=True, eq=False)
class RobustnessMap:
    """Answers at many inputs; nothing is interpolated.

    Shapes    points (n, inputs); lower, upper (n,): the ends of the local eps (0 and 1 on a map of labels);
              status (n,): Status; on a map of eps UNDECIDED marks a gap above 1e-6 and SAFE all else
    """

    network: Network
    parameters: ParameterBox
    quantity: Quantity
    points: FloatArray
    lower: FloatArray
    upper: FloatArray
    status: npt.NDArray[np.int64]
    backend: str
    seconds: float
    version: str = VERSION

    def count(self, status: Status) -> int:
        """Return how many points have a status."""
        return int((self.status == status).sum())

    def __str__(self) -> str:
        who = f"{len(self.points):,} points of {self.network} ({self.parameters.rule})"
        if self.quantity is Quantity.EPSILON:
            return (
                f"local eps at {who}: median {np.median(self.upper):.6g}, greatest {self.upper.max():.6g},"
                f" {self.count(Status.UNDECIDED)} undecided. [{self.backend}, {self.seconds:.3g} s]"
            )
        return (
            f"labels at {who}: {self.count(Status.SAFE):,} safe, {self.count(Status.FLIPPABLE):,} flippable,"
            f" {self.count(Status.UNDECIDED):,} undecided. [{self.backend}, {self.seconds:.3g} s]"
        )

    def table(self) -> str:
        """Return the map as CSV text: inputs, lower, upper, status."""
        names = [self.network.feature_name(i) for i in range(self.network.inputs)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*names, "lower", "upper", "status"])
        statuses = [Status(s).name.lower() for s in self.status.tolist()]
        for x, low, high, status in zip(self.points.tolist(), self.lower.tolist(), self.upper.tolist(), statuses, strict=True):
            writer.writerow([*(repr(v) for v in x), repr(low), repr(high), status])
        return text.getvalue()


def random_points(domain: Domain, count: int, seed: int) -> FloatArray:
    """Return points drawn uniformly from a domain (by rejection where it is a polytope). Shape: (count, inputs).

    Raises DomainError if the polytope is too thin to draw from.
    """
    rng = np.random.default_rng(seed)
    if isinstance(domain, Points):
        return domain.values[rng.integers(len(domain.values), size=count)]
    matrix, limit = domain.inequalities
    found: list[FloatArray] = []
    for _ in range(1000):
        draws = domain.box.lower + rng.random((count, domain.inputs)) * domain.box.width
        inside = (draws @ matrix.T <= limit).all(axis=1)
        found.append(np.clip(draws[inside], domain.box.lower, domain.box.upper))
        if sum(map(len, found)) >= count:
            return np.concatenate(found)[:count]
    raise DomainError(f"{domain} is empty or too thin: no {count} points were found in it")


def robustness_map(
    network: Network,
    parameters: ParameterBox,
    points: npt.ArrayLike,
    *,
    quantity: Quantity = Quantity.EPSILON,
    level: Fraction = HALF,
    backend: str = "auto",
    budget: Budget | None = None,
    session: Session | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    cache: ResultCache | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> RobustnessMap:
    """Ask one local question at every point: in closed form where it holds, else point by point.

    Accepts   points (n, inputs); `budget` is for each point; `jobs`, `scheduler`, `cache` and `session` are those of
              `parallel.answer_all`, for the points without a closed form; `progress` is called with the number just done
    Raises    ShapeError, NumberError, and what `Session` and `parallel.answer_all` raise
    """
    points = checked_inputs(network, points)
    parameters.check_fits(network)
    started = time.monotonic()
    closed = local.why_not(network, confidences=quantity is Quantity.EPSILON) is None
    if closed and backend in ("auto", "closed-form"):
        lower, upper, status = _closed_form(network, parameters, points, quantity, level, (budget or Budget()).memory)
        progress(int((status != Status.UNDECIDED).sum()))
        name, todo = "closed-form", np.flatnonzero(status == Status.UNDECIDED)
    else:
        lower, upper = np.zeros(len(points)), np.ones(len(points))
        status, name, todo = np.full(len(points), Status.UNDECIDED), backend, np.arange(len(points))
        if quantity is Quantity.LABEL and backend in ("auto", "branch-and-bound"):
            status[screen_labels(Leads(network, level), parameters, points, budget or Budget())] = Status.SAFE
            name, todo = "branch-and-bound", np.flatnonzero(status == Status.UNDECIDED)
            progress(len(points) - len(todo))
    tasks = [_task(network, parameters, Point(points[i]), quantity, level, backend, budget) for i in todo.tolist()]
    results = answer_all(tasks, jobs=jobs, scheduler=scheduler, cache=cache, session=session, progress=progress)
    for index, result in zip(todo.tolist(), results, strict=True):
        name = result.backend
        if isinstance(result, Estimate):
            lower[index], upper[index] = result.lower, result.upper
            status[index] = Status.SAFE if result.gap <= ENOUGH else Status.UNDECIDED
        else:
            status[index] = {Verdict.ROBUST: Status.SAFE, Verdict.VIOLATED: Status.FLIPPABLE}.get(
                result.verdict, Status.UNDECIDED
            )
    return RobustnessMap(network, parameters, quantity, points, lower, upper, status, name, time.monotonic() - started)


def _task(
    network: Network,
    parameters: ParameterBox,
    point: Point,
    quantity: Quantity,
    level: Fraction,
    backend: str,
    budget: Budget | None,
) -> Task:
    """Return the question about one point."""
    if quantity is Quantity.EPSILON:
        return Task(LocalEpsilon(network, parameters, point), Kind.ESTIMATE, backend, budget or Budget())
    return Task(LocalLabel(network, parameters, point, level), Kind.CHECK, backend, budget or Budget())


def _closed_form(
    network: Network, parameters: ParameterBox, points: FloatArray, quantity: Quantity, level: Fraction, memory: int
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.int64]]:
    if quantity is Quantity.EPSILON:
        change = local.greatest_changes(network, parameters, points, memory)
        status = np.where(change.width <= ENOUGH, Status.SAFE, Status.UNDECIDED)
        return change.lower.copy(), np.minimum(change.upper, 1.0), status
    status, _ = local.label_changes(Leads(network, level), parameters, points, memory)
    return np.zeros(len(points)), np.ones(len(points)), status
