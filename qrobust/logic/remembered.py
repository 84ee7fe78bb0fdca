"""An oracle that asks another only what its earlier answers leave open."""

from __future__ import annotations

from collections.abc import Sequence

from qrobust.logic.oracles import NOTHING, Confirming, Deadline, Features, Fixed, Lost


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

    @property
    def ranks(self) -> Sequence[int]:
        return self._oracle.ranks

    def ask(self, held: Features, deadline: Deadline, always: Features = NOTHING) -> Fixed | Lost:
        """Answer from memory, else ask. Raises UndecidedError."""
        deadline.left()
        for fixed in self._fixed:
            if fixed.core <= held:
                return fixed
        for lost in self._lost:
            if lost.changed.isdisjoint(held):
                return lost
        self.asked += 1
        found = self._oracle.ask(held, deadline, always)
        if isinstance(found, Fixed):
            self._fixed.append(found)
        else:
            self._lost.append(found)
        return found

    def others(self, changed: Features, kept: Features, wanted: Features) -> list[Lost]:
        """Ask the oracle for other inputs that lose the label, and remember these too."""
        found = self._oracle.others(changed, kept, wanted)
        self._lost += found
        return found

    def few(self, count: int, deadline: Deadline) -> Lost | None:
        """Ask the oracle, and remember its input."""
        self.asked += 1
        found = self._oracle.few(count, deadline)
        self._lost += [] if found is None else [found]
        return found

    def confirm(self, held: Features, deadline: Deadline) -> str | None:
        """Ask the oracle's second means."""
        return self._oracle.confirm(held, deadline)
