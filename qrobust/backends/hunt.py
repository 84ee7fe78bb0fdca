"""The search for the maximum of one mixed-integer model of two networks: a witness that replays, and a proof from above.

Gives     the best point of HiGHS that could be rebuilt exactly and was accepted, and the proved bound of `binaries.Tree`
Method    HiGHS' own search first, for a point, unless there is a summit to climb from the tree's points (pattern search over
          inputs and the positions of neurons). A point's binaries are fixed and the linear problem that is left is solved
          with its rows narrowed by a nudge, until it replays. What is accepted raises the goal at which the tree may stop
Property  the bound is sound whatever HiGHS answers and whatever was accepted
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from qrobust.answers import Counterexample
from qrobust.backends.binaries import Proof, Tree
from qrobust.backends.mixed_integer import Model, Relaxation
from qrobust.backends.relu_cuts import strengthened
from qrobust.backends.twins import Twins
from qrobust.interval import FloatArray, Interval
from qrobust.search import Landscape, polished

CUTTING = 10  # one part in so many of the time may go to cuts
CLIMBING = 4  # ... and to climbing
CLIMB = 1.0  # seconds for one climb
EXACT = threading.Lock()  # exact arithmetic has one precision for all threads
NUDGES = (0.0, 1e-9, 1e-8, 1e-7, 1e-6)  # of logits: how far inside its rows a point is sought, until it replays


class Summit(Landscape, Protocol):
    """What is climbed over points of `bounds.objectives.Space`."""

    def witness(self, point: FloatArray) -> Counterexample:
        """Return the exact input and parameters of a point."""
        ...


class Hunt:
    """The search for one objective's maximum: the best replayed witness, and a proof from above."""

    def __init__(
        self,
        problem: tuple[Twins, Model, FloatArray],
        accepts: Callable[[Counterexample, float], float | None],
        deadline: float,
        summit: Summit | None = None,
    ) -> None:
        self._twins, self._model, self._directions = problem
        self._accepts = accepts
        self._summit = summit
        self._started, self._deadline = time.monotonic(), deadline
        self._climbed = 0.0
        self._polisher = Relaxation(self._model)
        self.best = -np.inf
        self.witness: Counterexample | None = None
        self.tree = Tree(self._model, self.found, deadline)

    def limit(self, deadline: float) -> None:
        """Set when to stop."""
        self._deadline = self.tree.deadline = deadline

    def prove(self, goal: Callable[[], float], target: float | None = None) -> Proof:
        """Bound the maximum until the bound is at most `goal()`; with no summit, half of the time goes to HiGHS' own search for
        a point, after cuts.
        """
        if self.tree.upper <= goal():
            return Proof(self.tree.upper, "", 1)
        left = self._deadline - time.monotonic()
        if self._summit is None and self._model.binary.any() and left > 0:
            cut = strengthened(self._model, self._twins.neurons, left / CUTTING)
            self.tree = Tree(cut, self.found, self._deadline)
            if self.tree.upper > goal():
                hint = Relaxation(cut, integers=True).solve(seconds=left / 2, target=target)
                if hint.values is not None:
                    self.found(hint.values)
        return self.tree.close(goal)

    def found(self, values: FloatArray) -> None:
        """Rebuild and replay a solver's point, the best one with its choice of binaries, nudged inward until it replays."""
        with EXACT:
            self._climb(values)
            self._replay(values)

    def _replay(self, values: FloatArray) -> None:
        model, lower, upper = self._model, self._model.variables.lower.copy(), self._model.variables.upper.copy()
        if model.cost @ values <= self.best:
            return
        lower[model.binary] = upper[model.binary] = np.clip(np.rint(values), lower, upper)[model.binary]
        for nudge in NUDGES if model.nudged.any() else NUDGES[:1]:
            self._polisher.nudge(nudge)
            hint = self._polisher.solve(Interval(lower, upper), seconds=self._deadline - time.monotonic())
            if hint.values is None or model.cost @ hint.values <= self.best:
                return
            if self._offer(self._twins.example(hint.values, self._directions), float(model.cost @ hint.values)):
                return

    def _offer(self, example: Counterexample, value: float) -> bool:
        attained = self._accepts(example, value)
        if attained is None or attained <= self.best:
            return False
        self.best, self.witness = attained, example
        return True

    def _climb(self, values: FloatArray) -> None:
        """Climb the summit from a solver's point, for a part of the time that has passed."""
        now = time.monotonic()
        if self._summit is None or self._climbed > (now - self._started) / CLIMBING or now > self._deadline:
            return
        point = self._twins.point(values)
        height, point = polished(
            self._summit, point, float(self._summit.value(point[None])[0]), min(now + CLIMB, self._deadline)
        )
        if height > self.best:
            self._offer(self._summit.witness(point), height)
        self._climbed += time.monotonic() - now
