"""What an explanation asks: do these features, held at their values, fix the label whatever the others do?

A `Side` is one kind of explanation seen through such an oracle. Both kinds ask the same questions: a set of features is
contrastive if freeing it alone loses the label, that is, if holding all others does not fix it.

Source    Ignatiev, Narodytska, Asher, Marques-Silva 2020, arXiv 2012.11067 (the duality of both kinds)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from qrobust.binarized.engines.base import LATE
from qrobust.errors import NumberError
from qrobust.interval import FloatArray

Features = frozenset[int]
NOTHING: Features = frozenset()


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

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.at

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

    @property
    def ranks(self) -> Sequence[int]:
        """All features, those that seem to matter least first."""

    def ask(self, held: Features, deadline: Deadline, always: Features = NOTHING) -> Fixed | Lost:
        """Answer for some features held at their values. Raises UndecidedError.

        Accepts   always: those of them that the next questions hold too, which can make these cheaper
        """

    def others(self, changed: Features, kept: Features, wanted: Features) -> list[Lost]:
        """Return inputs that lose the label and change one of the kept features each, a wanted one, besides what is not kept.

        Accepts   changed: of an answer before, with one of the kept features
        """

    def few(self, count: int, deadline: Deadline) -> Lost | None:
        """Return an input that loses the label with so many features changed at most; None if there is none.

        Raises    UndecidedError, also where nothing but sets of features can be asked about
        """


class Confirming(Oracle, Protocol):
    """An oracle whose proofs a second solver can confirm."""

    def confirm(self, held: Features, deadline: Deadline) -> str | None:
        """Return who proves anew, by other means, that the label is kept with these features held; None if nobody does in time.

        Raises    UnsoundAnswerError if it is not kept, UndecidedError
        """


Between = tuple[Features, Features]


@dataclass(frozen=True, eq=False)
class Side:
    """One kind of explanation. `holds` is monotone: what a set does, its supersets do."""

    oracle: Oracle
    kind: Kind

    @property
    def dual(self) -> Side:
        return Side(self.oracle, self.kind.dual)

    def holds(self, chosen: Iterable[int], deadline: Deadline, between: Between | None = None) -> tuple[bool, Features]:
        """Return whether a set explains, and a part of it that does; else a set disjoint from it that does on the dual side.

        Accepts   between: the least and the greatest set of this question and the next ones
        Raises    UndecidedError
        """
        own, all_features = frozenset(chosen), self.oracle.features
        is_abductive, (least, most) = self.kind is Kind.ABDUCTIVE, (NOTHING, all_features) if between is None else between
        held, always = (own, least & own) if is_abductive else (all_features - own, all_features - most)
        answer = self.oracle.ask(held, deadline, always)
        if isinstance(answer, Fixed):
            return is_abductive, answer.core
        return not is_abductive, answer.changed

    def needed(self, missed: Features, kept: Features, wanted: Features) -> Features:
        """Return some of the wanted features without which a set does not explain, given a dual set that it meets in one."""
        if self.kind is Kind.CONTRASTIVE:
            return missed & kept
        others = self.oracle.others(missed, kept, wanted)
        return NOTHING.union(missed & kept, *(lost.changed & kept for lost in others))
