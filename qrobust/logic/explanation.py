"""Explanations of one decision, found, made minimal and checked.

Accepts   any oracle that can confirm its proofs
Gives     one explanation of either kind, subset-minimal or of least size, or all of them; each with how far it was checked
Method    an abductive explanation: a second solver proves anew that its features fix the label, and for each of its features
          there is an input, replayed exactly, that loses the label once this feature is free. A contrastive one: an input that
          loses the label while only its features differ, and for each feature a second solver's proof that the others do not.
          That there is none of these, a second solver proves anew
Property  exact where checked; at the deadline an explanation may be larger than needed, and says so
Source    Ignatiev, Narodytska, Marques-Silva 2019, arXiv 1811.10656; Marques-Silva 2022, arXiv 2211.00541
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from qrobust.interval import FloatArray
from qrobust.logic.minimal import Listing, Method, Order, least, minimal
from qrobust.logic.oracles import Confirming, Deadline, Features, Fixed, Kind, Lost, Side, UndecidedError
from qrobust.logic.remembered import Remembered

CHECK_SHARE = 0.3  # of the time, kept for the checks
LATE_CHECKS = "the checks did not end in the time given"


class Size(Enum):
    """How small an explanation is to be."""

    SUBSET = "subset"  # none of its features can be left out
    LEAST = "least"  # no explanation of its kind has fewer features


@dataclass(frozen=True, eq=False)
class Witness:
    """An input, replayed exactly, that loses the label with one feature free, or (None) with all of an explanation's.

    Shapes    inputs (features,)
    """

    free: int | None
    inputs: FloatArray


@dataclass(frozen=True, eq=False)
class Explanation:
    """Features that explain a label, or None where no explanation of the kind exists.

    Units     lower: no explanation of the kind has fewer features; seconds
    Shapes    witnesses: inputs (features,) that lose the label; abductive: each with the feature that is free; contrastive: one
    """

    kind: Kind
    features: tuple[int, ...] | None
    is_minimal: bool
    lower: int
    seconds: float
    questions: int
    confirmed_by: tuple[str, ...] = ()
    witnesses: tuple[Witness, ...] = ()
    is_checked: bool = False
    reason: str = ""

    @property
    def is_least(self) -> bool:
        """Whether no explanation of the kind has fewer features."""
        return self.features is not None and len(self.features) <= self.lower

    @property
    def is_complete(self) -> bool:
        """Whether what was asked for was found and checked."""
        return self.is_checked and not self.reason

    @property
    def how_small(self) -> str:
        """Say in words what is proved of the size."""
        if self.is_least:
            return "of least size"
        if self.is_minimal:
            return "subset-minimal"
        return f"not proved minimal, at least {self.lower}" if self.lower else "not proved minimal"

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as JSON values; features are counted from 0."""
        return {
            "kind": self.kind.value,
            "features": None if self.features is None else list(self.features),
            "size": None if self.features is None else {"lower": self.lower, "upper": len(self.features)},
            "subset_minimal": self.is_minimal,
            "least": self.is_least,
            "checked": self.is_checked,
            "confirmed_by": list(self.confirmed_by),
            "witnesses": [{"free": each.free, "input": each.inputs.tolist()} for each in self.witnesses],
            "reason": self.reason or None,
            "questions": self.questions,
            "seconds": self.seconds,
        }


def explain(
    oracle: Confirming,
    kind: Kind = Kind.ABDUCTIVE,
    size: Size = Size.SUBSET,
    *,
    ranks: Sequence[int] | None = None,
    method: Method = Method.DELETION,
    seconds: float = 60.0,
) -> Explanation:
    """Return one explanation. `ranks` are all features, those that are rather left out first.

    Raises    NumberError (a time limit that is not positive), UnsoundAnswerError
    """
    started, last = time.monotonic(), Deadline.after(seconds)
    deadline = Deadline.after(seconds * (1 - CHECK_SHARE))
    asked = Remembered(oracle)
    side, order = Side(asked, kind), list(oracle.ranks if ranks is None else ranks)
    found: Features | None = None
    is_minimal, lower, reason = False, 0, ""
    try:
        everything = oracle.features
        holds, start = side.holds(everything, deadline, (everything, everything))
        if not holds:
            return _none(asked, kind, last, started)
        if size is Size.LEAST:
            best = least(side, start, order, deadline)
            found, lower = best.found, best.lower
            assert found is not None
            is_minimal = best.is_least
        else:
            found, is_minimal = minimal(side, start, order, deadline, method)
    except UndecidedError as error:
        reason = str(error)
    if found is not None and not (is_minimal and (size is Size.SUBSET or len(found) <= lower)):
        reason = "the search for a smaller one stopped: the time limit was reached, or a solver gave up"
    return checked(asked, kind, found, is_minimal, last, lower=lower, reason=reason, started=started)


def checked(
    oracle: Remembered,
    kind: Kind,
    found: Features | None,
    is_minimal: bool,
    deadline: Deadline,
    *,
    lower: int = 0,
    reason: str = "",
    started: float,
) -> Explanation:
    """Return an explanation with the checks that its kind has. Raises UnsoundAnswerError."""
    if found is None:
        return Explanation(kind, None, False, lower, time.monotonic() - started, oracle.asked, reason=reason)
    check = _check_abductive if kind is Kind.ABDUCTIVE else _check_contrastive
    engines: list[str] = []
    witnesses: list[Witness] = []
    try:
        is_checked = check(oracle, found, is_minimal, (engines, witnesses), deadline)
    except UndecidedError:
        is_checked = False
    if not is_checked and not reason:
        reason = LATE_CHECKS
    names = tuple(dict.fromkeys(engines))
    taken, own = time.monotonic() - started, tuple(sorted(found))
    return Explanation(kind, own, is_minimal, lower, taken, oracle.asked, names, tuple(witnesses), is_checked, reason)


def _none(oracle: Remembered, kind: Kind, deadline: Deadline, started: float) -> Explanation:
    """Return that no explanation of a kind exists: an input has shown it, or that nothing loses the label is proved anew."""
    names: tuple[str, ...] = ()
    if kind is Kind.CONTRASTIVE:
        try:
            name = oracle.confirm(frozenset(), deadline)
        except UndecidedError:
            name = None
        names = () if name is None else (name,)
    is_checked = kind is Kind.ABDUCTIVE or bool(names)
    reason = "" if is_checked else LATE_CHECKS
    taken = time.monotonic() - started
    return Explanation(kind, None, True, 0, taken, oracle.asked, names, is_checked=is_checked, reason=reason)


Evidence = tuple[list[str], list[Witness]]  # engines that confirmed, and inputs that lose the label


def _check_abductive(oracle: Remembered, found: Features, is_minimal: bool, evidence: Evidence, deadline: Deadline) -> bool:
    engines, witnesses = evidence
    name = oracle.confirm(found, deadline)
    if name is None:
        return False
    engines.append(name)
    for feature in sorted(found) if is_minimal else ():
        answer = oracle.ask(found - {feature}, deadline)
        if not isinstance(answer, Lost):
            return False
        witnesses.append(Witness(feature, answer.inputs))
    return True


def _check_contrastive(oracle: Remembered, found: Features, is_minimal: bool, evidence: Evidence, deadline: Deadline) -> bool:
    engines, witnesses = evidence
    rest = oracle.features - found
    answer = oracle.ask(rest, deadline)
    if isinstance(answer, Fixed):
        return False
    witnesses.append(Witness(None, answer.inputs))
    for feature in sorted(found) if is_minimal else ():
        name = oracle.confirm(rest | {feature}, deadline)
        if name is None:
            return False
        engines.append(name)
    return True


@dataclass(frozen=True)
class Explanations:
    """Minimal explanations of both kinds, in the order of their finding; `complete`: there are no others."""

    found: tuple[Explanation, ...]
    complete: bool
    seconds: float

    def of(self, kind: Kind) -> tuple[Explanation, ...]:
        """Return those of one kind."""
        return tuple(each for each in self.found if each.kind is kind)

    def to_json(self) -> dict[str, Any]:
        """Return the explanations as JSON values."""
        return {
            "explanations": [each.to_json() for each in self.found],
            "complete": self.complete,
            "seconds": self.seconds,
        }


def explanations(
    oracle: Confirming,
    kind: Kind = Kind.ABDUCTIVE,
    order: Order = Order.FOUND,
    *,
    ranks: Sequence[int] | None = None,
    most: int | None = None,
    seconds: float = 60.0,
    say: Callable[[Explanation], None] = lambda found: None,
) -> Explanations:
    """Return all minimal explanations of both kinds, each checked; those of `kind` come in the order asked for.

    `most` stops after so many of the kind, `seconds` at any time. Raises NumberError, UnsoundAnswerError
    """
    deadline, asked = Deadline.after(seconds), Remembered(oracle)
    order_of_features = list(oracle.ranks if ranks is None else ranks)
    listing, found = Listing(Side(asked, kind), order_of_features, order, most), []
    start = started = time.monotonic()
    for each, features in listing.run(deadline):
        found.append(checked(asked, each, features, True, deadline, started=start))
        say(found[-1])
        start = time.monotonic()
    return Explanations(tuple(found), listing.complete, time.monotonic() - started)
