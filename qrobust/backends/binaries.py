"""Branch and bound over the binaries of a mixed-integer model, with every bound proved.

Accepts   a `mixed_integer.Model`
Gives     a bound of its maximum, as low as a goal if it can be had in time
Method    best bound first. Of the undecided binaries a node tries those without a reliable record in both directions (strong
          branching, then averages of past losses: reliability branching)
Property  sound, whatever the solver answers: a node's bound is computed from multipliers in interval arithmetic, and a node
          without one keeps its parent's. Complete up to rounding
Source    Achterberg, Koch, Martin 2005, Operations Research Letters 33; Neumaier and Shcherbina 2004
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qrobust.backends.mixed_integer import Model, Relaxation
from qrobust.interval import BoolArray, FloatArray, Interval

FRACTIONAL = 1e-6  # how far from 0 and 1 a relaxed binary counts as undecided
TRIED = 8  # undecided binaries without a reliable record that a node tries
ROUNDED = 20  # one node in so many is rounded, for a point
RELIABLE = 4  # trials of a binary after which its average loss is believed


@dataclass(frozen=True, eq=False)
class Node:
    """A part of the tree: the ends of its variables, its proved bound, and the relaxed solution, if any."""

    variables: Interval
    upper: float
    values: FloatArray | None


@dataclass(frozen=True)
class Proof:
    """What a tree proved: cost @ v <= upper for every v of the model; why it is no tighter, if it should be."""

    upper: float
    reason: str
    nodes: int


class Tree:
    """See the module's docstring. `found` is told of every point whose binaries are all decided, and of some others."""

    def __init__(self, model: Model, found: Callable[[FloatArray], None], deadline: float) -> None:
        self.model = model
        self._relaxation = Relaxation(model)
        self._found = found
        self.deadline = deadline
        self._losses = np.zeros((2, len(model.cost)))
        self._trials = np.zeros((2, len(model.cost)))
        self.nodes = 0
        self._closed, self._reason, self._count = -np.inf, "", 0
        root = self._bounded(model.variables, model.upper_bound(np.zeros(len(model.rows))))
        self._heap = [] if root is None else [(-root.upper, 0, root)]

    @property
    def upper(self) -> float:
        """What is proved so far: at first the bound of the model without its binaries; -inf if that is proved to be empty."""
        return max(self._closed, -self._heap[0][0] if self._heap else -np.inf)

    def close(self, goal: Callable[[], float]) -> Proof:
        """Bound the model's maximum until the bound is at most `goal()`, which may rise as points are found; another call
        goes on from there.
        """
        late = ""
        while not self.is_done and self.upper > goal():
            if time.monotonic() > self.deadline:
                late = "the time limit was reached"
                break
            node = heapq.heappop(self._heap)[2]
            children = self._branches(node)
            if children is None:
                self._closed, self._reason = max(self._closed, node.upper), "rounding hides whether a leaf can be closed"
                continue
            for child in children:
                self._count += 1
                heapq.heappush(self._heap, (-child.upper, self._count, child))
        return Proof(self.upper, late or self._reason, self.nodes)

    @property
    def is_done(self) -> bool:
        """Whether every part has all its binaries fixed, so that no call will lower the bound."""
        return not self._heap or -self._heap[0][0] <= self._closed

    def _bounded(self, variables: Interval, upper: float) -> Node | None:
        """Bound a node, at most by its parent's bound; None if it is proved to be empty."""
        self.nodes += 1
        hint = self._relaxation.solve(variables, seconds=self.deadline - time.monotonic())
        if hint.ray is not None:
            for ray in (hint.ray, -hint.ray):
                if self.model.upper_bound(ray, variables, np.zeros(len(self.model.cost))) < 0:
                    return None
        if hint.multipliers is not None:
            upper = min(upper, self.model.upper_bound(hint.multipliers, variables))
        tried = self.nodes % ROUNDED == 1
        if hint.values is not None and (tried or not self._undecided(variables, hint.values).any()):
            self._found(hint.values)
        return Node(variables, upper, hint.values)

    def _undecided(self, variables: Interval, values: FloatArray) -> BoolArray:
        open_ends = self.model.binary & (variables.lower < variables.upper)
        return np.asarray(open_ends & (np.minimum(values, 1 - values) > FRACTIONAL))

    def _branches(self, node: Node) -> list[Node] | None:
        """Split a node in two; None if all its binaries are fixed."""
        free = np.flatnonzero(self.model.binary & (node.variables.lower < node.variables.upper))
        if not len(free):
            return None
        values = np.full(len(self.model.cost), 0.5) if node.values is None else node.values
        chosen = free[np.minimum(values[free], 1 - values[free]) > FRACTIONAL]
        if not len(chosen):
            return self._children(node, int(free[0]))
        scores = self._scores(values, chosen)
        order = chosen[np.argsort(-scores, kind="stable")]
        best, most = None, -np.inf
        for place, number in enumerate(order[: 2 * TRIED].tolist()):
            known = self._trials[:, number].min() >= RELIABLE
            if place and (known or place >= TRIED):
                continue
            children = self._children(node, number, values)
            losses = [node.upper - child.upper for child in children] + [np.inf] * (2 - len(children))
            score = max(min(losses), 1e-12) * min(max(*losses, 1e-12), 1e9)
            if score > most:
                best, most = children, score
            if len(children) < 2 or known or time.monotonic() > self.deadline:
                break
        return best

    def _scores(self, values: FloatArray, chosen: npt.NDArray[np.int64]) -> FloatArray:
        trials = self._trials[:, chosen]
        average = self._losses[:, chosen] / np.maximum(trials, 1)
        typical = self._losses.sum() / max(self._trials.sum(), 1.0) or 1.0
        average = np.where(trials > 0, average, typical)
        down, up = average[0] * values[chosen], average[1] * (1 - values[chosen])
        return np.asarray(np.maximum(down, 1e-12) * np.maximum(up, 1e-12))

    def _children(self, node: Node, number: int, values: FloatArray | None = None) -> list[Node]:
        children = []
        for side in (0, 1):
            lower, upper = node.variables.lower.copy(), node.variables.upper.copy()
            lower[number] = upper[number] = float(side)
            child = self._bounded(Interval(lower, upper), node.upper)
            if child is None:
                continue
            children.append(child)
            if values is not None:
                distance = values[number] if side == 0 else 1 - values[number]
                self._losses[side, number] += (node.upper - child.upper) / max(distance, FRACTIONAL)
                self._trials[side, number] += 1
        return children
