"""Best-first branch and bound over boxes, batched: the only search loop.

Property  sound: `Outcome.upper` bounds the maximum whenever the search stops, because every box that was dropped had a bound
          that is accounted for. Complete in the limit if the bound converges. Deterministic
Source    Horst and Tuy 1996, "Global Optimization", chapter IV
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from qrobust.errors import EnclosureError, NumberError
from qrobust.interval import FloatArray, Interval

BATCH = 1024
FEW = 256  # boxes below which a batch is split further
SPLITS = 5  # halvings of a box in one step, at most
MOST_BOXES = 2_000_000


@dataclass(frozen=True)
class Budget:
    """Limits of one search. Raises NumberError unless both are above zero."""

    seconds: float = 60.0
    boxes: int = 5_000_000

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise NumberError(f"the time limit is {self.seconds:g} s, it must be above 0: give for example 10")
        if self.boxes < 1:
            raise NumberError(f"the limit on boxes is {self.boxes}, it must be at least 1")


class Problem(Protocol):
    """A maximisation over a box of variables."""

    @property
    def root(self) -> Interval:
        """The whole box. Shape: (variables,)."""

    @property
    def scale(self) -> FloatArray:
        """How much one unit of each variable matters, for choosing where to split. Shape: (variables,)."""

    def upper(self, boxes: Interval) -> FloatArray:
        """Certified upper bounds of the objective; -inf where nothing is feasible. Shapes: (batch, variables); (batch,)."""

    def value(self, points: FloatArray) -> FloatArray:
        """Objective at points, -inf where infeasible; a forecast. Shapes: (batch, variables); (batch,)."""


@dataclass(frozen=True)
class Outcome:
    """What a search found: the best point with its forecast value (or None), and a certified upper bound."""

    best: float
    point: FloatArray | None
    upper: float
    boxes: int
    reason: str = ""


def maximise(
    problem: Problem,
    budget: Budget,
    *,
    tolerance: float,
    stop: Callable[[Outcome], bool] = lambda _: False,
    seed: int = 0,
) -> Outcome:
    """Search until upper - best <= tolerance, `stop` says so, or the budget ends (then `reason` says which limit)."""
    deadline = time.monotonic() + budget.seconds
    best, point = _first_candidates(problem, np.random.default_rng(seed), deadline)
    boxes = Interval(problem.root.lower[None], problem.root.upper[None])
    bounds = _certified(problem, boxes)
    evaluated, dropped, batch, reason = 1, -np.inf, 32, ""
    while True:
        keep = bounds > best + tolerance
        dropped = max(dropped, bounds[~keep].max(initial=-np.inf))
        boxes, bounds = boxes[keep], bounds[keep]
        outcome = Outcome(best, point, float(max(dropped, bounds.max(initial=-np.inf), best)), evaluated, reason)
        if not len(bounds) or reason or stop(outcome):
            return outcome
        order = np.argsort(-bounds, kind="stable")
        taken, left = order[:batch], order[batch:]
        children = _split(boxes[taken], problem.scale)
        if children is None:
            return Outcome(best, point, outcome.upper, evaluated, "the boxes are as small as floats allow")
        # A child's bound may be rounded above its parent's, which holds for it too.
        parents = np.tile(bounds[taken], len(children) // len(taken))
        child_bounds = np.minimum(_certified(problem, children), parents)
        evaluated += len(child_bounds)
        best, point = _improved(problem, children.middle, best, point, deadline)
        boxes = Interval(
            np.concatenate([boxes.lower[left], children.lower]), np.concatenate([boxes.upper[left], children.upper])
        )
        bounds = np.concatenate([bounds[left], child_bounds])
        batch = min(BATCH, 2 * batch)
        if time.monotonic() > deadline:
            reason = f"the time limit of {budget.seconds:.3g} s was reached"
        elif evaluated > budget.boxes:
            reason = f"the limit of {budget.boxes:,} boxes was reached"
        elif len(bounds) > MOST_BOXES:
            reason = f"{MOST_BOXES:,} boxes are open at once, the most that memory is given to"


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
    axis = weighted.argmax(axis=1)
    rows = np.arange(len(axis))
    if not splittable[rows, axis].all():
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
    return _polished(problem, points[index], float(values[index]), deadline)


def _polished(problem: Problem, point: FloatArray, value: float, deadline: float) -> tuple[float, FloatArray]:
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
