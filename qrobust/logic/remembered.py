"""An oracle that asks another only what its earlier answers leave open."""

from __future__ import annotations

from qrobust.logic.oracles import Confirming, Deadline, Features, Fixed, Lost


class Remembered:
    """Answers from cores and inputs found before where they decide: both stay true for other sets of features."""

    def __init__(self, oracle: Confirming) -> None:
        self._oracle = oracle
        self._fixed: list[Fixed] = []
        self._lost: list[Lost] = []
        self.asked = 0  # questions that went on to the oracle

    @property
    def features(self) -> Features:
        return self._oracle.features

    def ask(self, held: Features, deadline: Deadline) -> Fixed | Lost:
        """Answer from memory, else ask. Raises UndecidedError."""
        deadline.left()
        for fixed in self._fixed:
            if fixed.core <= held:
                return fixed
        for lost in self._lost:
            if lost.changed.isdisjoint(held):
                return lost
        self.asked += 1
        found = self._oracle.ask(held, deadline)
        if isinstance(found, Fixed):
            self._fixed.append(found)
        else:
            self._lost.append(found)
        return found

    def confirm(self, held: Features, deadline: Deadline) -> str | None:
        """Ask the oracle's second means."""
        return self._oracle.confirm(held, deadline)
