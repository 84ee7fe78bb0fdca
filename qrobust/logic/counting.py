"""How many inputs of a region have a property, and what share that is, always with both ends.

Accepts   regions of binarized networks, balls of any norm among them
Gives     exact: by trying every input, or by projected model counting; approximate: two ends that hold with probability at
          least 1 - delta, from draws, whose share is within epsilon, or by parities, whose count is within a factor
          1 + epsilon, however few there are; the whole range where time ran out
Property  enumeration is exact; a model counter's count is exact and trusted; the ends of draws and parities are statistical
Source    Baluta, Shen, Shinde, Meel, Saxena 2019, arXiv 1906.10395 (counting for quantitative verification)
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.answers import VERSION, Assurance
from qrobust.backends.worker import GRACE_SECONDS, Worker, WorkerDiedError, WorkerTimeoutError
from qrobust.binarized.constraints import whole_constraints
from qrobust.binarized.enumeration import inputs as enumerated
from qrobust.binarized.folding import Folded
from qrobust.binarized.network import BinarizedNetwork
from qrobust.binarized.queries import Ball, Box, Levels, Norm, Region, TieRule, ZeroSign, check_label, check_pair
from qrobust.binarized.solve import folded
from qrobust.errors import BackendUnavailableError, DomainError, ResourceError, UnsoundAnswerError
from qrobust.layers import IntArray
from qrobust.logic.counters import Problem, ganak
from qrobust.logic.hashing import Factor, by_parities
from qrobust.logic.labels import LabelClauses, label_rows, size_of
from qrobust.logic.oracles import Deadline, UndecidedError
from qrobust.logic.sampling import Precision, drawn, ends

MOST_TRIED = 2**18  # inputs times features that `auto` tries one by one
MOST_ENUMERATED = 2**26  # ... and that enumeration does: they are all in memory
MOST_BITS = 14_000  # of a number of inputs: Python prints 4300 digits
MOST_SHOWN = 10**15  # that a sentence writes out
BoolRow = npt.NDArray[np.bool_]


class Counter(Enum):
    """How inputs are counted."""

    AUTO = "auto"  # one by one where they are few, else exactly, and approximately if that takes too long
    ENUMERATION = "enumeration"
    EXACT = "exact"  # by Ganak
    APPROXIMATE = "approximate"  # from inputs drawn at random
    PARITIES = "parities"  # within a factor, by cells that random parities cut


Place = tuple[Deadline, Worker | None]


@dataclass(frozen=True, eq=False)
class Property(ABC):
    """A property of the inputs of a region."""

    network: BinarizedNetwork
    where: Ball | Box | Levels
    zero: ZeroSign = ZeroSign.PLUS

    @property
    def region(self) -> Region:
        return self.where.region(self.network)

    @property
    def folded(self) -> Folded:
        return folded(self.network, self.zero)

    @abstractmethod
    def holds(self, levels: IntArray) -> BoolRow:
        """Return where it holds, by integer evaluation. Shapes: levels (batch, inputs); result (batch,)."""

    @abstractmethod
    def problem(self) -> Problem:
        """Return clauses over the inputs, and the literals that stand for them. Raises ResourceError, UnsupportedError."""

    @abstractmethod
    def __str__(self) -> str:
        """Say in words which inputs are counted."""


@dataclass(frozen=True, eq=False)
class Flips(Property):
    """Inputs whose label is not the named one (a ball's centre's own, if None). Raises DomainError (no such class)."""

    label: int | None = None

    def __post_init__(self) -> None:
        check_label(self.network, self.label)

    @property
    def own_label(self) -> int:
        return int(self.folded.labels(self.region.centre[None])[0]) if self.label is None else self.label

    def holds(self, levels: IntArray) -> BoolRow:
        return np.asarray(self.folded.labels(levels) != self.own_label)

    def problem(self) -> Problem:
        rows = label_rows(self.folded, self.region)
        clauses = LabelClauses(self.region, rows)
        clauses.written.add(-clauses.classes(rows)[self.own_label])
        return _problem(clauses)

    def __str__(self) -> str:
        return f"inputs {self.where} whose label is not {self.network.class_name(self.own_label)}"


@dataclass(frozen=True, eq=False)
class Disagreement(Property):
    """Inputs to which a copy of the network gives another label. Raises as `check_pair`."""

    copy: BinarizedNetwork | None = None

    def __post_init__(self) -> None:
        check_pair(self.network, self._copy)

    @property
    def _copy(self) -> BinarizedNetwork:
        return self.network if self.copy is None else self.copy

    def holds(self, levels: IntArray) -> BoolRow:
        return np.asarray(self.folded.labels(levels) != folded(self._copy, self.zero).labels(levels))

    def problem(self) -> Problem:
        rows, others = label_rows(self.folded, self.region), label_rows(folded(self._copy, self.zero), self.region)
        clauses = LabelClauses(self.region, rows)
        for own, other in zip(clauses.classes(rows), clauses.classes(others), strict=True):
            clauses.written.add(-own, -other)
        return _problem(clauses)

    def __str__(self) -> str:
        return f"inputs {self.where} to which {self.network} and {self._copy} give different labels"


@dataclass(frozen=True, eq=False)
class Influence(Property):
    """Inputs whose label some other value of one feature, in its range, changes. Raises DomainError (no such feature)."""

    feature: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.feature < self.network.inputs:
            raise DomainError(f"feature {self.feature} is not one of the network's {self.network.inputs}, counted from 0")
        if self.region.norm is not Norm.LINF:
            raise DomainError("a feature has a range of its own only in a box: ask about an linf ball")

    def holds(self, levels: IntArray) -> BoolRow:
        own, region = self.folded.labels(levels), self.region
        found = np.zeros(len(levels), dtype=np.bool_)
        for value in range(int(region.lower[self.feature]), int(region.upper[self.feature]) + 1):
            other = levels.copy()
            other[:, self.feature] = value
            found |= self.folded.labels(other) != own
        return found

    def problem(self) -> Problem:
        rows = label_rows(self.folded, self.region)
        clauses, found = LabelClauses(self.region, rows), rows.constraints
        columns = list(clauses.columns)
        for place in np.flatnonzero(found.pixels == self.feature).tolist():
            start, end = (int(n) for n in found.starts[place : place + 2])
            columns[start:end] = clauses.written.fresh(end - start)
            for before, after in zip(columns[start : end - 1], columns[start + 1 : end], strict=True):
                clauses.written.add(before, -after)
        for own, other in zip(clauses.classes(rows), clauses.classes(rows, columns), strict=True):
            clauses.written.add(-own, -other)
        return _problem(clauses)

    def __str__(self) -> str:
        return f"inputs {self.where} whose label input {self.feature + 1} alone can change"


def _problem(clauses: LabelClauses) -> Problem:
    return clauses.written.clauses, clauses.written.top, clauses.columns


@dataclass(frozen=True)
class Count:
    """How many of `total` inputs have a property: at least `lower`, at most `upper`.

    Units     epsilon, delta: None if both ends are certain; else they hold with probability at least 1 - delta. The ends of
              draws lie at most 2 epsilon apart as shares, those of parities a factor of (1 + epsilon) squared
    """

    text: str
    lower: int
    upper: int
    total: int
    counter: Counter
    assurance: Assurance | None
    seed: int
    seconds: float
    epsilon: float | None = None
    delta: float | None = None
    reason: str = ""

    @property
    def is_exact(self) -> bool:
        return self.lower == self.upper

    @property
    def share(self) -> tuple[Fraction, Fraction]:
        """Both ends of the share of all inputs."""
        return Fraction(self.lower, self.total), Fraction(self.upper, self.total)

    def __str__(self) -> str:
        low, high = (f"{100 * float(end):.6g} %" for end in self.share)
        many = _shown(self.lower) if self.is_exact else f"{_shown(self.lower)} to {_shown(self.upper)}"
        sure = "" if self.delta is None else f", with probability at least {1 - self.delta:g} (epsilon {self.epsilon:g})"
        sure += " within a factor of 1 + epsilon" if sure and self.counter is Counter.PARITIES else ""
        basis = "" if self.assurance is None else f", {self.assurance.name.lower()}"
        why = f" {self.reason}." if self.reason else ""
        return (
            f"{many} of {_shown(self.total)} ({self.text}), a share in [{low}, {high}]{sure}.{why}"
            f" [{self.counter.value}{basis}, seed {self.seed}, {self.seconds:.3g} s]"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the count as JSON values; the ends as whole numbers, the shares as floats and exactly."""
        low, high = self.share
        return {
            "property": self.text,
            "lower": self.lower,
            "upper": self.upper,
            "inputs": self.total,
            "share": [float(low), float(high)],
            "exact_share": [str(low), str(high)],
            "counter": self.counter.value,
            "assurance": None if self.assurance is None else self.assurance.name,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "seed": self.seed,
            "reason": self.reason or None,
            "seconds": self.seconds,
            "qrobust": VERSION,
        }


def _shown(number: int) -> str:
    return f"{number:,}" if number < MOST_SHOWN else f"about {Decimal(number):.4e}"


def count(
    asked: Property,
    counter: Counter = Counter.AUTO,
    *,
    precision: Precision | None = None,
    factor: Factor | None = None,
    seed: int = 0,
    seconds: float = 60.0,
    worker: Worker | None = None,
) -> Count:
    """Return both ends of a count; model counters run in a worker process, which may be given to spare its start.

    `precision` is that of draws, `factor` that of parities.

    Raises    ResourceError, UnsupportedError, BackendUnavailableError, NumberError
    """
    started, deadline, region = time.monotonic(), Deadline.after(seconds), asked.region
    total = size_of(region)
    if total.bit_length() > MOST_BITS:
        raise ResourceError(f"the region has over 2**{MOST_BITS:,} inputs, a number too long to print: take a smaller one")
    wide = Count(str(asked), 0, total, total, counter, None, seed, 0.0, reason="the time limit was reached")
    if counter is Counter.ENUMERATION or (counter is Counter.AUTO and total * asked.network.inputs <= MOST_TRIED):
        if total * asked.network.inputs > MOST_ENUMERATED:
            raise ResourceError(f"enumeration tries at most {MOST_ENUMERATED:,} numbers of inputs: take another counter")
        found = replace(_tried(asked, deadline) or wide, counter=Counter.ENUMERATION, seed=seed)
    elif counter is Counter.APPROXIMATE:
        found = _approximate(asked, wide, precision or Precision(), deadline) or wide
    elif counter is Counter.PARITIES:
        found = _within_a_factor(asked, wide, factor or Factor(), (deadline, worker)) or wide
    elif counter is Counter.EXACT:
        found = _exact(asked, wide, (deadline, worker)) or wide
    else:
        found = _either(asked, wide, precision or Precision(), (deadline, worker))
    return replace(found, seconds=time.monotonic() - started)


def _either(asked: Property, wide: Count, precision: Precision, place: Place) -> Count:
    """Count exactly in half the time, else from draws; these say what kept it from being exact."""
    deadline, worker = place
    why = "an exact count took too long"
    try:
        found = _exact(asked, wide, (Deadline(time.monotonic() + deadline.left() / 2), worker))
    except (ResourceError, BackendUnavailableError) as error:
        found, why = None, str(error)
    if found is None:
        drawn_count = _approximate(asked, wide, precision, deadline)
        reasons = [f"not exact: {why}"] + ([drawn_count.reason] if drawn_count is not None and drawn_count.reason else [])
        found = wide if drawn_count is None else replace(drawn_count, reason="; ".join(reasons))
    return found


def _tried(asked: Property, deadline: Deadline) -> Count | None:
    found, total, nobody = 0, 0, asked.folded.rivals(0, TieRule.FIRST, ())
    for levels in enumerated(whole_constraints(asked.folded, asked.region, nobody)):
        if deadline.is_over:
            return None
        found += int(asked.holds(levels).sum())
        total += len(levels)
    return Count(str(asked), found, found, total, Counter.ENUMERATION, Assurance.CHECKED, 0, 0.0)


def _exact(asked: Property, wide: Count, place: Place) -> Count | None:
    found = _called(place, _models, asked, wide.seed)
    if found is None:
        return None
    _check(found, wide)
    return replace(wide, lower=found, upper=found, counter=Counter.EXACT, assurance=Assurance.TRUSTED, reason="")


def _approximate(asked: Property, wide: Count, precision: Precision, deadline: Deadline) -> Count | None:
    """Count from draws, from fewer where time ends before: when to stop does not depend on what was drawn."""
    hits = made = 0
    for levels in drawn(asked.region, precision.draws, wide.seed):
        if deadline.is_over:
            break
        hits, made = hits + int(asked.holds(levels).sum()), made + len(levels)
    if not made:
        return None
    low, high = (Fraction(end) for end in ends(hits, made, precision.delta))
    found = replace(wide, lower=int(low * wide.total), upper=int(-(-high * wide.total // 1)), counter=Counter.APPROXIMATE)
    epsilon, reason = precision.epsilon, ""
    if made < precision.draws:
        epsilon, reason = precision.reached(made), f"the time limit was reached after {made:,} of {precision.draws:,} draws"
    return replace(found, assurance=Assurance.STATISTICAL, epsilon=epsilon, delta=precision.delta, reason=reason)


def _within_a_factor(asked: Property, wide: Count, factor: Factor, place: Place) -> Count | None:
    ends_found = _called(place, _models_by_parities, asked, factor, wide.seed)
    if ends_found is None:
        return None
    lower, upper, is_exact = ends_found
    _check(lower, wide)
    found = replace(wide, lower=lower, upper=min(upper, wide.total), counter=Counter.PARITIES, reason="")
    if is_exact:  # so few that they were counted one by one
        return replace(found, assurance=Assurance.TRUSTED)
    return replace(found, assurance=Assurance.STATISTICAL, epsilon=factor.epsilon, delta=factor.delta)


def _check(found: int, wide: Count) -> None:
    if not 0 <= found <= wide.total:
        raise UnsoundAnswerError(f"a model counter counts {found} of {wide.total} inputs: please report")


def _models(asked: Property, seed: int) -> int:
    """Write the clauses and count; both in a process that is ended in time."""
    return ganak(asked.problem(), seed)


def _models_by_parities(asked: Property, factor: Factor, seed: int) -> tuple[int, int, bool]:
    return by_parities(asked.problem(), factor, seed)


def _called(place: Place, function: Any, *arguments: Any) -> Any:
    deadline, given = place
    worker = Worker() if given is None else given
    try:
        seconds = deadline.left() - GRACE_SECONDS  # counters keep no limit to be late for
        return worker.call(function, *arguments, seconds=seconds)
    except (WorkerTimeoutError, WorkerDiedError, UndecidedError):
        return None
    finally:
        if given is None:
            worker.close()
