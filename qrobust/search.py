"""Best-first branch and bound over boxes, batched: the only search loop. Short of memory, those that close soonest come first.

Property  sound: `Outcome.upper` bounds the maximum whenever the search stops, because every box that was dropped had a bound
          that is accounted for. Complete in the limit if the bound converges. Deterministic
Source    Horst and Tuy 1996, "Global Optimization", chapter IV
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qrobust.arrays import Arrays
from qrobust.errors import EnclosureError, NumberError
from qrobust.interval import FloatArray, Interval
from qrobust.memory import GIB, MEMORY, Part, at_a_time

BATCH = 1024
FEW = 256  # boxes below which a batch is split further
SPLITS = 5  # halvings of a box in one step, at most
MOST_BOXES = 2_000_000  # open at once: beyond it the sorting takes longer than the bounds
COPIES = 4  # of the open nodes, while some are taken out and others put in
LEAST_MEMORY = 2**24


@dataclass(frozen=True)
class Budget:
    """What an answer may cost: seconds, boxes of a search, bytes of memory (see `memory`), and whose arrays propose (`arrays`).

    Raises    NumberError if one is too small
    """

    seconds: float = 60.0
    boxes: int = 5_000_000
    memory: int = MEMORY
    arrays: Arrays | None = None

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise NumberError(f"the time limit is {self.seconds:g} s, it must be above 0: give for example 10")
        if self.boxes < 1:
            raise NumberError(f"the limit on boxes is {self.boxes}, it must be at least 1")
        if not self.memory >= LEAST_MEMORY:
            raise NumberError(f"the memory is {self.memory / GIB:.3g} GiB, it must be at least {LEAST_MEMORY / GIB:.3g} GiB")


@dataclass(frozen=True, eq=False)
class Nodes:
    """Open parts of a search: certified upper bounds (n,), and arrays (n, ...) that only the tree understands."""

    upper: FloatArray
    parts: tuple[npt.NDArray[Any], ...]

    def __len__(self) -> int:
        return len(self.upper)

    @property
    def each(self) -> int:
        """Bytes that one node takes in a search."""
        return COPIES * sum(part[:1].nbytes for part in (self.upper, *self.parts))

    def take(self, index: npt.NDArray[Any]) -> Nodes:
        """Return some of the nodes, by number or by mask."""
        return Nodes(self.upper[index], tuple(part[index] for part in self.parts))

    def join(self, other: Nodes) -> Nodes:
        """Return these and the others."""
        parts = zip(self.parts, other.parts, strict=True)
        return Nodes(np.concatenate([self.upper, other.upper]), tuple(np.concatenate(pair) for pair in parts))


class Tree(Protocol):
    """A maximisation that splits its nodes itself, and keeps the best point it has met."""

    best: float
    point: Any

    def roots(self) -> Nodes:
        """The first nodes."""

    def split(self, nodes: Nodes) -> Nodes | None:
        """Return children that cover the nodes, with their bounds; None if a node cannot be split. May improve `best`."""


@dataclass(frozen=True)
class Outcome:
    """What a search found: the best point with its forecast value (or None), and a certified upper bound.

    `boxes` counts the nodes that were bounded; `open` are those that are left, from which the search can be resumed, and
    `dropped` is the greatest bound among those that are not.
    """

    best: float
    point: Any
    upper: float
    boxes: int
    reason: str = ""
    open: Nodes | None = field(default=None, repr=False, compare=False)
    dropped: float = -np.inf


def explore(
    tree: Tree,
    budget: Budget,
    *,
    tolerance: float,
    stop: Callable[[Outcome], bool] = lambda _: False,
    resumed: Outcome | None = None,
    first_batch: int = 32,
    batch: int = BATCH,
    deadline: float | None = None,
) -> Outcome:
    """Search until upper - best <= tolerance, `stop` says so, or the budget ends (then `reason` says which limit).

    `resumed` continues an earlier search of the same tree; its nodes are not bounded again.
    """
    deadline = deadline if deadline is not None else time.monotonic() + budget.seconds
    nodes = tree.roots() if resumed is None or resumed.open is None else resumed.open
    evaluated, dropped = (len(nodes), -np.inf) if resumed is None else (resumed.boxes, resumed.dropped)
    limit, reason, size = evaluated + budget.boxes - 1, "", first_batch
    room = at_a_time(nodes.each, budget.memory, Part.NODES, "one node of the search", MOST_BOXES)
    while True:
        if np.isnan(nodes.upper).any():  # a NaN compares false with everything: its node would be dropped in silence
            raise EnclosureError("a bound in the search is NaN: please report this bug")
        keep = nodes.upper > tree.best + tolerance
        dropped = max(dropped, nodes.upper[~keep].max(initial=-np.inf))
        nodes = nodes.take(keep)
        upper = float(max(dropped, nodes.upper.max(initial=-np.inf), tree.best))
        outcome = Outcome(tree.best, tree.point, upper, evaluated, reason, nodes, dropped)
        if not len(nodes) or reason or stop(outcome):
            return outcome
        order = np.argsort(-nodes.upper, kind="stable")
        order = order if len(nodes) < room // 2 else order[::-1]  # the least close soonest
        taken, left = nodes.take(order[:size]), nodes.take(order[size:])
        children = tree.split(taken)
        if children is None:
            return replace(outcome, reason="the boxes are as small as floats allow")
        evaluated += len(children)
        nodes = left.join(children)
        size = min(batch, 2 * size)
        if time.monotonic() > deadline:
            reason = f"the time limit of {budget.seconds:.3g} s was reached"
        elif evaluated > limit:
            reason = f"the limit of {budget.boxes:,} boxes was reached"
        elif len(nodes) > room:
            reason = f"{room:,} boxes are open at once, the most that a memory of {budget.memory / GIB:.3g} GiB is given to"


class Landscape(Protocol):
    """What a climb needs: a box of variables, and an objective."""

    @property
    def root(self) -> Interval:
        """The whole box. Shape: (variables,)."""

    def value(self, points: FloatArray) -> FloatArray:
        """Objective at points, -inf where infeasible; a forecast. Shapes: (batch, variables); (batch,)."""


class Problem(Landscape, Protocol):
    """A maximisation over a box of variables."""

    @property
    def scale(self) -> FloatArray:
        """How much one unit of each variable matters, for choosing where to split. Shape: (variables,)."""

    def upper(self, boxes: Interval) -> FloatArray:
        """Certified upper bounds of the objective; -inf where nothing is feasible. Shapes: (batch, variables); (batch,)."""


class BoxTree:
    """The tree of a `Problem`: boxes, halved; every middle is tried, and a new best is polished by pattern search."""

    def __init__(self, problem: Problem, deadline: float, seed: int) -> None:
        self.problem, self.deadline = problem, deadline
        self.best, self.point = _first_candidates(problem, np.random.default_rng(seed), deadline)

    def roots(self) -> Nodes:
        boxes = Interval(self.problem.root.lower[None], self.problem.root.upper[None])
        return Nodes(_certified(self.problem, boxes), (boxes.lower, boxes.upper))

    def split(self, nodes: Nodes) -> Nodes | None:
        children = _split(Interval(*nodes.parts), self.problem.scale)
        if children is None:
            return None
        # A child's bound may be rounded above its parent's, which holds for it too.
        upper = np.minimum(_certified(self.problem, children), np.tile(nodes.upper, len(children) // len(nodes)))
        self.best, self.point = _improved(self.problem, children.middle, self.best, self.point, self.deadline)
        return Nodes(upper, (children.lower, children.upper))


def maximise(
    problem: Problem,
    budget: Budget,
    *,
    tolerance: float,
    stop: Callable[[Outcome], bool] = lambda _: False,
    seed: int = 0,
) -> Outcome:
    """Maximise over boxes; see `explore`."""
    deadline = time.monotonic() + budget.seconds
    tree = BoxTree(problem, deadline, seed)
    return explore(tree, budget, tolerance=tolerance, stop=stop, deadline=deadline)


def _split(boxes: Interval, scale: FloatArray) -> Interval | None:
    """Halve each box along its widest side by scale, twice, and again while that gives few boxes: a batch costs about as
    much for one box as for hundreds. None if a box has no float between its ends.
    """
    halves = _halved(boxes, scale)
    if halves is None:
        return None
    for _ in range(SPLITS - 1):
        smaller = _halved(halves, scale) if len(halves) < FEW or len(halves) == 2 * len(boxes) else None
        if smaller is None:
            break
        halves = smaller
    return halves


def _certified(problem: Problem, boxes: Interval) -> FloatArray:
    bounds = problem.upper(boxes)
    if np.isnan(bounds).any():  # a NaN compares false with everything: its box would be dropped in silence
        raise EnclosureError("a bound in the search is NaN: please report this bug")
    return bounds


def _halved(boxes: Interval, scale: FloatArray) -> Interval | None:
    middle = boxes.middle
    splittable = (boxes.lower < middle) & (middle < boxes.upper)
    weighted = np.where(splittable, boxes.width * scale + np.finfo(float).tiny, -1.0)
    return halved_along(boxes, weighted.argmax(axis=1))


def halved_along(boxes: Interval, axis: npt.NDArray[np.intp]) -> Interval | None:
    """Halve each box along its own axis: first all lower halves, then all upper ones. None if one has no float in between."""
    middle, rows = boxes.middle, np.arange(len(axis))
    if not ((boxes.lower < middle) & (middle < boxes.upper))[rows, axis].all():
        return None
    first_upper, second_lower = boxes.upper.copy(), boxes.lower.copy()
    first_upper[rows, axis] = second_lower[rows, axis] = middle[rows, axis]
    return Interval(np.concatenate([boxes.lower, second_lower]), np.concatenate([first_upper, boxes.upper]))


def _first_candidates(problem: Problem, rng: np.random.Generator, deadline: float) -> tuple[float, FloatArray | None]:
    root = problem.root
    shape = (256, root.shape[0])
    inside = root.lower + rng.random(shape) * root.width
    corners = np.where(rng.random(shape) < 0.5, root.lower, root.upper)
    return _improved(problem, np.concatenate([inside, corners, root.middle[None]]), -np.inf, None, deadline)


def _improved(
    problem: Problem, points: FloatArray, best: float, point: FloatArray | None, deadline: float
) -> tuple[float, FloatArray | None]:
    """Return the best of the points and the best so far; a new best is polished by pattern search."""
    values = problem.value(points)
    index = int(values.argmax())
    if not values[index] > best:
        return best, point
    return polished(problem, points[index], float(values[index]), deadline)


def polished(problem: Landscape, point: FloatArray, value: float, deadline: float) -> tuple[float, FloatArray]:
    """Climb along the axes and diagonals with steps that shrink (Hooke and Jeeves 1961)."""
    root = problem.root
    dimensions = len(point)
    steps = np.concatenate([np.eye(dimensions), -np.eye(dimensions), _diagonals(dimensions)])
    size = 0.25
    while size > 1e-12 and time.monotonic() < deadline:
        trials = np.clip(point + size * root.width * steps, root.lower, root.upper)
        values = problem.value(trials)
        index = int(values.argmax())
        if values[index] > value:
            point, value = trials[index], float(values[index])
        else:
            size *= 0.5
    return value, point


def _diagonals(dimensions: int) -> FloatArray:
    signs = np.random.default_rng(dimensions).choice([-1.0, 1.0], size=(4 * dimensions, dimensions))
    return signs
