"""What came of the obligations of a sign-off plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qrobust.answers import Assurance, Verdict
from qrobust.bounds.local import Status
from qrobust.layers import IntArray
from qrobust.report.plan import Obligation

MOST_EXAMPLES = 3  # counterexamples that a finding describes; the rest are listed by row
MOST_ROWS = 1000


@dataclass(frozen=True)
class Counts:
    """At how many inputs an obligation was found robust, violated and unknown."""

    robust: int
    violated: int
    unknown: int

    @property
    def total(self) -> int:
        return self.robust + self.violated + self.unknown

    def __str__(self) -> str:
        return f"{self.robust:,} robust, {self.violated:,} violated, {self.unknown:,} unknown of {self.total:,}"


@dataclass(frozen=True, eq=False)
class Finding:
    """What came of an obligation.

    `claim` is what was asked, with its quantifiers; `ends` enclose the greatest change of a confidence where that was found;
    `rows` are the violated rows of a data set, from 1, or the violated places of an enumeration, cut at MOST_ROWS;
    `picture` is a PNG.
    """

    obligation: Obligation
    verdict: Verdict
    claim: str
    semantics: str
    assurance: Assurance | None
    backend: str
    seconds: float = 0.0
    counts: Counts | None = None
    ends: tuple[float, float] | None = None
    reason: str = ""
    rows: tuple[int, ...] = ()
    examples: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    picture: bytes | None = None

    @property
    def rows_are_data(self) -> bool:
        """Whether the inputs asked about are the rows of a data set."""
        return self.obligation.where is not None and self.obligation.where.kind == "data"


def summed(statuses: IntArray) -> tuple[Verdict, Counts, tuple[int, ...]]:
    """Return the verdict of all points, how many have which, and the violated rows."""
    robust, violated, unknown = (int((statuses == s).sum()) for s in (Status.SAFE, Status.FLIPPABLE, Status.UNDECIDED))
    verdict = Verdict.VIOLATED if violated else Verdict.UNKNOWN if unknown else Verdict.ROBUST
    rows = np.flatnonzero(statuses == Status.FLIPPABLE)[:MOST_ROWS] + 1
    return verdict, Counts(robust, violated, unknown), tuple(rows.tolist())
