"""Maps: one question asked at many inputs, or at many boxes of inputs.

Accepts   any network and parameter box; points, or a grid over two inputs with the others fixed or anywhere in a box
Gives     a certified lower and upper end and a status for each
Method    in closed form where it holds, millions at a time; so, too, the confidences of several classes behind one hidden
          layer (`bounds.softmax_change`); else linear bounds over many together; what these leave open is asked one by one, by
          as many processes as there are, until the time for the map is up. Of networks that scale their inputs the core is
          asked, at intervals that hold the scaled inputs. Answers are kept as three numbers each
Property  as the queries: sound, and undecided where the budget ends
"""

from __future__ import annotations

import csv
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from enum import Enum
from fractions import Fraction
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt

from qrobust.answers import VERSION, Estimate, Verdict
from qrobust.backends import many_boxes
from qrobust.backends.deep import screen_label_boxes, screen_labels
from qrobust.backends.many_boxes import Boxes
from qrobust.backends.many_changes import logit_changes_at, screen_changes
from qrobust.bounds import local, softmax_change
from qrobust.bounds.local import Status
from qrobust.bounds.margins import margins
from qrobust.cache import Kind, ResultCache, Task, key_of
from qrobust.domains import Domain, InputBox, ParameterBox, Point, Points
from qrobust.errors import DomainError, NumberError
from qrobust.interval import BoolArray, FloatArray, Interval, round_fraction_down, round_fraction_up
from qrobust.leads import Leads
from qrobust.network import Network, checked_inputs
from qrobust.parallel import answer_each
from qrobust.queries import HALF, ChangeOf, GlobalEpsilon, LocalEpsilon, LocalLabel, MarginLabel
from qrobust.scaled import behind, needs_core, scaled_box, scaled_inside
from qrobust.search import Budget
from qrobust.solve import ENOUGH, Session

IntArray = npt.NDArray[np.integer[Any]]
NEAR = 0.05  # of the upper end: the gap that settles the change of a raw output, or of anything over a box of inputs
CLOSED_AT_A_TIME = 2**13  # inputs that are answered together in closed form
OTHERS_AT_A_TIME = 2**8  # and by bounds, which the cache keeps together
VERDICTS = {Verdict.ROBUST: Status.SAFE, Verdict.VIOLATED: Status.FLIPPABLE, Verdict.UNKNOWN: Status.UNDECIDED}


class Quantity(Enum):
    """What a map shows at each input."""

    EPSILON = "eps"  # the greatest change of a confidence
    LOGIT = "logits"  # the greatest change of a raw output
    LABEL = "label"  # whether a label can change (that had a margin, if one is given)


@dataclass(frozen=True, eq=False)
class RobustnessMap:
    """Answers at many inputs; nothing is interpolated.

    Shapes    points (n, inputs); lower, upper (n,): the ends of the local eps (0 and 1 on a map of labels);
              status (n,): Status; on a map of eps UNDECIDED marks a gap above
              1e-6 (of raw outputs, and over boxes of inputs, one that is also above 5 % of the upper end) and SAFE all else
    """

    network: Network
    parameters: ParameterBox
    quantity: Quantity
    points: FloatArray
    lower: FloatArray
    upper: FloatArray
    status: IntArray
    backend: str
    seconds: float
    version: str = VERSION

    def count(self, status: Status) -> int:
        """Return how many points have a status."""
        return int((self.status == status).sum())

    def __str__(self) -> str:
        who = f"{len(self.points):,} points of {self.network} ({self.parameters.rule})"
        if self.quantity is not Quantity.LABEL:
            return (
                f"local {self.quantity.value} at {who}: median {np.median(self.upper):.6g}, greatest {self.upper.max():.6g},"
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


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked everywhere: a quantity of a network over a parameter box. `budget` is for each input."""

    network: Network
    parameters: ParameterBox
    quantity: Quantity = Quantity.EPSILON
    level: Fraction = HALF
    sigma: Fraction = Fraction(0)
    backend: str = "auto"
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        self.parameters.check_fits(self.network)

    def key(self, inputs: Interval) -> str:
        """Hash of all that `at_once` depends on but the deadline."""
        ends = hashlib.sha256(inputs.lower.tobytes() + inputs.upper.tobytes()).hexdigest()
        parts = {"qrobust": VERSION, "network": self.network.sha256, "parameters": self.parameters.sha256, "inputs": ends}
        parts |= {"quantity": self.quantity.value, "level": str(self.level), "sigma": str(self.sigma), "backend": self.backend}
        return key_of(parts | {"shape": list(inputs.shape), "budget": [self.budget.memory, str(self.budget.arrays)]})

    def task(self, domain: Point | InputBox, until: float = np.inf) -> Task:
        """Return the question about one input, or one box of inputs, to be answered until some `time.time`."""
        network, parameters, local_one = self.network, self.parameters, isinstance(domain, Point)
        if self.quantity is not Quantity.LABEL:
            of = ChangeOf.LOGIT if self.quantity is Quantity.LOGIT else ChangeOf.CONFIDENCE
            kind = LocalEpsilon if local_one else GlobalEpsilon
            return Task(kind(network, parameters, domain, of), Kind.ESTIMATE, self.backend, self.budget, until)
        label_kind = LocalLabel if local_one else MarginLabel
        query = label_kind(network, parameters, domain, self.level, self.sigma)
        return Task(query, Kind.CHECK, self.backend, self.budget, until)

    @property
    def closes(self) -> bool:
        """Whether points have a closed form, thousands of them in less than a second."""
        network = self.network.core if needs_core(self.network) else self.network
        confidences = self.quantity is Quantity.EPSILON
        one_row = local.why_not(network, confidences=confidences) is None
        return self.quantity is not Quantity.LOGIT and (one_row or (confidences and softmax_change.why_not(network) is None))

    def at_once(self, inputs: Interval, deadline: float = np.inf) -> Found:
        """Answer many inputs (n, inputs) together, as far as that goes until the deadline (of `time.monotonic`)."""
        points = bool((inputs.width == 0).all())
        if not needs_core(self.network):
            return self._together(Boxes.exact(inputs), points, deadline)
        image = Boxes(scaled_box(self.network, inputs), scaled_inside(self.network, inputs))
        core = replace(self, network=self.network.core, parameters=behind(self.parameters))
        return core._together(image, points, deadline)

    def _together(self, boxes: Boxes, points: bool, deadline: float) -> Found:
        """Answer boxes; with `points` each holds one point, known but for rounding."""
        inputs = boxes.outer
        found = Found.open(len(inputs), self.quantity, self.backend)
        reason = local.why_not(self.network, confidences=self.quantity is Quantity.EPSILON)
        closed = self.backend in ("auto", "closed-form") and points and self.quantity is not Quantity.LOGIT and not reason
        if closed and self.quantity is Quantity.EPSILON:
            change = local.greatest_changes(self.network, self.parameters, inputs, self.budget.memory)
            return self._found(change, points, "closed-form")
        if self.quantity is not Quantity.LABEL:
            return self._many_bounds(boxes, points, deadline) or found
        leads = Leads(self.network, self.level)
        if closed:
            status, _ = local.label_changes(leads, self.parameters, inputs, self.budget.memory)
            found = Found(found.lower, found.upper, status.astype(np.int8), "closed-form")
        elif self.backend in ("auto", "branch-and-bound"):
            screen = screen_labels if points else screen_label_boxes
            found.status[screen(leads, self.parameters, inputs, self.budget)] = Status.SAFE
            if not points and not self.sigma and local.why_not(self.network, confidences=False) is None:
                self._refute(found.status, boxes)
            found = Found(found.lower, found.upper, found.status, "branch-and-bound")
        if self.sigma and points:
            self._by_margin(found.status, inputs)
        return found

    def _many_bounds(self, boxes: Boxes, points: bool, deadline: float) -> Found | None:
        """Bound changes that have no closed form, where bounds of many together can."""
        if self.backend not in ("auto", "branch-and-bound"):
            return None
        given, confidences, inputs = (self.network, self.parameters), self.quantity is Quantity.EPSILON, boxes.outer
        if points and confidences:
            if softmax_change.why_not(self.network) is None:
                change = softmax_change.greatest_changes(*given, inputs, self.budget.memory)
            else:
                change = screen_changes(*given, inputs, self.budget)
        elif not self.network.is_dense:
            return None
        elif points:
            change = logit_changes_at(*given, inputs, self.budget)
        else:
            over = many_boxes.changes_over if confidences else many_boxes.logit_changes_over
            change = over(*given, boxes, self.budget, deadline)
        return self._found(change, points, "branch-and-bound")

    def _found(self, change: Interval, points: bool, backend: str) -> Found:
        status = np.where(self.settled(change, points), Status.SAFE, Status.UNDECIDED).astype(np.int8)
        upper = np.minimum(change.upper, 1.0) if self.quantity is Quantity.EPSILON else change.upper.copy()
        return Found(change.lower.copy(), upper, status, backend)

    def settled(self, change: Interval, points: bool) -> BoolArray:
        """Where the ends of a change are near enough: for confidences at points ENOUGH, else also NEAR of the upper end."""
        enough = change.width <= ENOUGH
        if points and self.quantity is Quantity.EPSILON:
            return enough
        return np.asarray(enough | (np.isfinite(change.upper) & (change.width <= NEAR * change.upper)))

    def _refute(self, status: IntArray, boxes: Boxes) -> None:
        """Settle open boxes in which a label changes at the middle or at an end of the diagonal."""
        open_ = np.flatnonzero(status == Status.UNDECIDED)
        for points in (boxes.outer.middle, boxes.outer.lower, boxes.outer.upper):
            if not len(open_):
                return
            leads, x = Leads(self.network, self.level), boxes[open_].within(points[open_])
            found, _ = local.label_changes(leads, self.parameters, x, self.budget.memory)
            status[open_[found == Status.FLIPPABLE]] = Status.FLIPPABLE
            open_ = open_[found != Status.FLIPPABLE]

    def _by_margin(self, status: IntArray, points: Interval) -> None:
        """Settle what has not the margin that is asked for, and leave open what rounding hides."""
        known = margins(self.network, points, self.level)
        status[(status == Status.FLIPPABLE) & (known.lower < round_fraction_up(self.sigma))] = Status.UNDECIDED
        status[known.upper < round_fraction_down(self.sigma)] = Status.SAFE


class Cells(Protocol):
    """The inputs of a map, or boxes of inputs, numbered from 0."""

    def __len__(self) -> int: ...

    def inputs(self, start: int, stop: int) -> Interval:
        """Return some of them. Shape: (stop - start, inputs)."""


@dataclass(frozen=True, eq=False)
class Found:
    """Both ends and the status (Status, as int8) of every input, and who answered. Shapes: all (n,)."""

    lower: FloatArray
    upper: FloatArray
    status: IntArray
    backend: str

    @classmethod
    def open(cls, count: int, quantity: Quantity, backend: str) -> Found:
        """Nothing is known yet: a confidence changes by 0 to 1, a raw output by any amount."""
        greatest = np.inf if quantity is Quantity.LOGIT else 1.0
        status = np.full(count, Status.UNDECIDED, dtype=np.int8)
        return cls(np.zeros(count), np.full(count, greatest), status, backend)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; ends as text, for the sake of infinity."""
        ends = {"lower": self.lower, "upper": self.upper}
        texts = {name: [repr(value) for value in end.tolist()] for name, end in ends.items()}
        return texts | {"status": self.status.tolist(), "backend": self.backend}

    @classmethod
    def from_json(cls, document: dict[str, Any] | None, count: int) -> Found | None:
        """Return what `to_json` gave for so many inputs; None for anything else."""
        try:
            assert document is not None
            lower, upper = (np.array([float(text) for text in document[name]]) for name in ("lower", "upper"))
            status = np.array([Status(value) for value in document["status"]], dtype=np.int8)
            alike = lower.shape == upper.shape == status.shape == (count,) and (lower <= upper).all()
            return cls(lower, upper, status, str(document["backend"])) if alike else None
        except (AssertionError, KeyError, TypeError, ValueError):
            return None


@dataclass(frozen=True, eq=False)
class Sharing:
    """How single questions are answered: as `parallel.answer_all` takes these; `seconds` is for the whole map.

    Raises    NumberError if `seconds` is not above 0
    """

    jobs: int = 1
    scheduler: str | None = None
    cache: ResultCache | None = None
    session: Session | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0:
            raise NumberError(f"the time for all inputs is {self.seconds:g} s, it must be above 0: give for example 600")


def sweep(question: Question, cells: Cells, sharing: Sharing, progress: Callable[[int], None] = lambda _: None) -> Found:
    """Ask everywhere. `progress` is called with the number just done; where the time ends, what is left stays undecided.

    What took long is in the cache, if there is one: asked again, it goes on from there.
    Raises    what `parallel.answer_each` raises
    """
    seconds = np.inf if sharing.seconds is None else sharing.seconds
    deadline, until = time.monotonic() + seconds, time.time() + seconds
    found = Found.open(len(cells), question.quantity, question.backend)
    name = question.backend
    for here in _slices(len(cells), CLOSED_AT_A_TIME if question.closes else OTHERS_AT_A_TIME):
        if time.monotonic() > deadline:
            return Found(found.lower, found.upper, found.status, name)
        part = _part(question, cells.inputs(here.start, here.stop), sharing.cache, deadline)
        found.lower[here], found.upper[here], found.status[here], name = part.lower, part.upper, part.status, part.backend
        progress(int((part.status != Status.UNDECIDED).sum()))
    todo = np.flatnonzero(found.status == Status.UNDECIDED)
    answers = answer_each(
        _Tasks(question, cells, todo, until),
        jobs=sharing.jobs,
        scheduler=sharing.scheduler,
        cache=sharing.cache,
        session=sharing.session,
    )
    with closing(answers):
        for number, result in answers if time.monotonic() < deadline else ():
            index, name = todo[number], result.backend
            if isinstance(result, Estimate):
                both = Interval(found.lower[[index]], found.upper[[index]]).meet(
                    Interval(*map(_one, (result.lower, result.upper)))
                )
                found.lower[index], found.upper[index] = both.lower[0], both.upper[0]
                near = question.settled(both, isinstance(result.query.domain, Point))[0]
                found.status[index] = Status.SAFE if near else Status.UNDECIDED
            else:
                found.status[index] = VERDICTS[result.verdict]
            progress(1)
            if time.monotonic() > deadline:
                break
    return Found(found.lower, found.upper, found.status, name)


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _part(question: Question, inputs: Interval, cache: ResultCache | None, deadline: float) -> Found:
    """Answer some inputs together, or find what was answered before. What the deadline cut short is not kept."""
    if cache is None or question.closes:
        return question.at_once(inputs, deadline)
    key = question.key(inputs)
    kept = Found.from_json(cache.document(key), len(inputs))
    if kept is not None:
        return kept
    found = question.at_once(inputs, deadline)
    if time.monotonic() < deadline:
        cache.keep(key, found.to_json())
    return found


def _one(value: float) -> FloatArray:
    return np.array([value])


@dataclass(frozen=True, eq=False)
class _Tasks(Sequence[Task]):
    """The single questions about some cells, each made when it is asked for."""

    question: Question
    cells: Cells
    numbers: npt.NDArray[np.intp]
    until: float

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Task: ...
    @overload
    def __getitem__(self, place: slice) -> list[Task]: ...
    def __getitem__(self, place: int | slice) -> Task | list[Task]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        number = int(self.numbers[place])
        ends = self.cells.inputs(number, number + 1)[0]
        point = bool((ends.width == 0).all())
        return self.question.task(Point(ends.lower) if point else InputBox(ends.lower, ends.upper), self.until)


@dataclass(frozen=True, eq=False)
class _Listed:
    """Points (n, inputs) as cells."""

    points: FloatArray

    def __len__(self) -> int:
        return len(self.points)

    def inputs(self, start: int, stop: int) -> Interval:
        return Interval.point(self.points[start:stop])


def robustness_map(
    network: Network,
    parameters: ParameterBox,
    points: npt.ArrayLike,
    *,
    quantity: Quantity = Quantity.EPSILON,
    level: Fraction = HALF,
    sigma: Fraction = Fraction(0),
    backend: str = "auto",
    budget: Budget | None = None,
    session: Session | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    cache: ResultCache | None = None,
    seconds: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> RobustnessMap:
    """Ask one local question at every point: in closed form where it holds, else point by point.

    Accepts   points (n, inputs); `budget` is for each point; `jobs`, `scheduler`, `cache` and `session` are those of
              `parallel.answer_all`, for the points that bounds over many leave open, and `seconds` is for the whole map;
              `progress` is called with the number just done
    Raises    ShapeError, NumberError, and what `Session` and `parallel.answer_all` raise
    """
    started = time.monotonic()
    points = checked_inputs(network, points)
    question = Question(network, parameters, quantity, level, sigma, backend, budget or Budget())
    found = sweep(question, _Listed(points), Sharing(jobs, scheduler, cache, session, seconds), progress)
    seconds = time.monotonic() - started
    return RobustnessMap(network, parameters, quantity, points, found.lower, found.upper, found.status, found.backend, seconds)
