"""The search for the maximum of one mixed-integer model of two networks: a witness that replays, and a proof from above.

Gives     the best point of HiGHS that could be rebuilt exactly and was accepted, and the proved bound of `binaries.Tree`
Method    HiGHS' own search first, for a point; then its binaries are fixed and the linear problem that is left is solved with
          its rows narrowed by a nudge, until the point replays. What is accepted raises the goal at which the tree may stop
Property  the bound is sound whatever HiGHS answers and whatever was accepted
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from qrobust.answers import Counterexample
from qrobust.backends.binaries import Proof, Tree
from qrobust.backends.mixed_integer import Model, Relaxation
from qrobust.backends.relu_cuts import strengthened
from qrobust.backends.twins import Twins
from qrobust.interval import FloatArray, Interval

CUTTING = 10  # one part in so many of the time may go to cuts
NUDGES = (0.0, 1e-9, 1e-8, 1e-7, 1e-6)  # of logits: how far inside its rows a point is sought, until it replays


class Hunt:
    """The search for one objective's maximum: the best replayed witness, and a proof from above."""

    def __init__(
        self,
        problem: tuple[Twins, Model, FloatArray],
        accepts: Callable[[Counterexample, float], float | None],
        deadline: float,
    ) -> None:
        self._twins, self._model, self._directions = problem
        self._accepts = accepts
        self._deadline = deadline
        self._polisher = Relaxation(self._model)
        self.best = -np.inf
        self.witness: Counterexample | None = None
        self.tree = Tree(self._model, self.found, deadline)

    def limit(self, deadline: float) -> None:
        """Set when to stop."""
        self._deadline = self.tree.deadline = deadline

    def prove(self, goal: Callable[[], float], target: float | None = None) -> Proof:
        """Bound the maximum until the bound is at most `goal()`; half of the time goes to HiGHS' own search for a point."""
        if self.tree.root_bound <= goal():
            return Proof(self.tree.root_bound, "", 1)
        left = self._deadline - time.monotonic()
        if self._model.binary.any() and left > 0:
            cut = strengthened(self._model, self._twins.neurons, left / CUTTING)
            self.tree = Tree(cut, self.found, self._deadline)
            if self.tree.root_bound > goal():
                hint = Relaxation(cut, integers=True).solve(seconds=left / 2, target=target)
                if hint.values is not None:
                    self.found(hint.values)
        return self.tree.close(goal)

    def found(self, values: FloatArray) -> None:
        """Rebuild and replay a solver's point, the best one with its choice of binaries, nudged inward until it replays."""
        model, lower, upper = self._model, self._model.variables.lower.copy(), self._model.variables.upper.copy()
        if model.cost @ values <= self.best:
            return
        lower[model.binary] = upper[model.binary] = np.clip(np.rint(values), lower, upper)[model.binary]
        for nudge in NUDGES if model.nudged.any() else NUDGES[:1]:
            self._polisher.nudge(nudge)
            hint = self._polisher.solve(Interval(lower, upper), seconds=self._deadline - time.monotonic())
            if hint.values is None or model.cost @ hint.values <= self.best:
                return
            example = self._twins.example(hint.values, self._directions)
            attained = self._accepts(example, float(model.cost @ hint.values))
            if attained is not None and attained > self.best:
                self.best, self.witness = attained, example
                return
