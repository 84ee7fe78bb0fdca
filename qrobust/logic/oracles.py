"""What an explanation asks: do these features, held at their values, fix the label whatever the others do?

A `Side` is one kind of explanation seen through such an oracle. Both kinds ask the same questions: a set of features is
contrastive if freeing it alone loses the label, that is, if holding all others does not fix it.

Source    Ignatiev, Narodytska, Asher, Marques-Silva 2020, arXiv 2012.11067 (the duality of both kinds)
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from qrobust.errors import NumberError
from qrobust.interval import FloatArray

Features = frozenset[int]


class Kind(Enum):
    """What an explanation says of its features."""

    ABDUCTIVE = "abductive"  # held at their values, they fix the label whatever the others do
    CONTRASTIVE = "contrastive"  # the label can be lost where they alone change

    @property
    def dual(self) -> Kind:
        return Kind.CONTRASTIVE if self is Kind.ABDUCTIVE else Kind.ABDUCTIVE


@dataclass(frozen=True)
class Fixed:
    """The label is kept wherever the features of the core, some of those that were held, have their values."""

    core: Features


@dataclass(frozen=True, eq=False)
class Lost:
    """An input, replayed exactly, that loses the label while only these features differ. Shape: inputs (features,)."""

    changed: Features
    inputs: FloatArray


class UndecidedError(Exception):
    """The deadline came before the answer, or a solver gave up; what was found so far stands. Its text is the reason."""


LATE = "the time limit was reached"
PART = 0.05  # of the time left, for one question of many
LEAST_PART = 0.25  # seconds


@dataclass(frozen=True)
class Deadline:
    """When to stop, on time.monotonic's clock."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline in so many seconds. Raises NumberError."""
        if not 0 < seconds < float("inf"):
            raise NumberError(f"a time limit is {seconds:g} s, it must be positive and finite")
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Return the seconds left. Raises UndecidedError if there are none."""
        found = self.at - time.monotonic()
        if found <= 0:
            raise UndecidedError(LATE)
        return found

    def part(self) -> Deadline:
        """Return an earlier one, for one of many questions. Raises UndecidedError if there is no time left."""
        return Deadline(time.monotonic() + max(LEAST_PART, self.left() * PART))


class Oracle(Protocol):
    """Answers for one decision: an input, its label, and what ranges its features have."""

    @property
    def features(self) -> Features:
        """The features that may matter; the label is the same whatever the others do."""

    def ask(self, held: Features, deadline: Deadline) -> Fixed | Lost:
        """Answer for some features held at their values. Raises UndecidedError."""


class Confirming(Oracle, Protocol):
    """An oracle whose proofs a second solver can confirm."""

    def confirm(self, held: Features, deadline: Deadline) -> str | None:
        """Return who proves anew, by other means, that the label is kept with these features held; None if nobody does in time.

        Raises    UnsoundAnswerError if it is not kept, UndecidedError
        """


@dataclass(frozen=True, eq=False)
class Side:
    """One kind of explanation. `holds` is monotone: what a set does, its supersets do."""

    oracle: Oracle
    kind: Kind

    @property
    def dual(self) -> Side:
        return Side(self.oracle, self.kind.dual)

    def holds(self, chosen: Iterable[int], deadline: Deadline) -> tuple[bool, Features]:
        """Return whether a set explains, and a part of it that does; else a set disjoint from it that does on the dual side.

        Raises    UndecidedError
        """
        own, all_features = frozenset(chosen), self.oracle.features
        answer = self.oracle.ask(own if self.kind is Kind.ABDUCTIVE else all_features - own, deadline)
        if isinstance(answer, Fixed):
            return self.kind is Kind.ABDUCTIVE, answer.core
        return self.kind is Kind.CONTRASTIVE, answer.changed
