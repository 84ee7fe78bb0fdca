"""A report on a network of signs over the rows of a table: how many labels are kept in balls about them, eps by eps.

Gives     in one folder: result.json (see `document`), report.md, report.html (self-contained)
Property  a verdict is that of `BinarizedSession.check` about the network's own label of the row; each counterexample is
          replayed in integers, also one that was kept. An interrupted run goes on from the finished answers that it kept
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from qrobust.answers import Verdict
from qrobust.binarized import Ball, BinarizedNetwork, Folded, Norm, Robustness
from qrobust.binarized.many import Made, Settings, Settled, settle_all
from qrobust.binarized.queries import inputs_of
from qrobust.binarized.race import PORTFOLIO
from qrobust.binarized.solve import folded
from qrobust.cache import ResultCache
from qrobust.errors import DomainError, NumberError, ShapeError
from qrobust.interval import FloatArray
from qrobust.layers import IntArray

SCHEMA = "qrobust-bnn-report-1"
MOST_QUESTIONS = 10**6


@dataclass(frozen=True, eq=False)
class Survey:
    """What is asked: rows of inputs with their right classes, and balls about each.

    Shapes    inputs (rows, inputs); labels (rows,)
    Raises    ShapeError, NumberError, DomainError
    """

    network: BinarizedNetwork
    inputs: FloatArray
    labels: IntArray
    eps: tuple[Fraction, ...]
    norm: Norm = Norm.LINF
    seconds: float = 30.0
    engine: str = PORTFOLIO
    exact: bool = False

    def __post_init__(self) -> None:
        rows, classes = len(self.inputs), self.network.outputs
        if not rows or not self.eps:
            raise NumberError("a report needs a row and an eps at least")
        if rows * len(self.eps) > MOST_QUESTIONS:
            raise NumberError(
                f"the report would ask {rows * len(self.eps):,} questions, at most {MOST_QUESTIONS:,}: take fewer"
            )
        if self.inputs.shape[1] != self.network.inputs:
            raise ShapeError(f"the table has {self.inputs.shape[1]} inputs, the network takes {self.network.inputs}")
        strange = self.labels[(self.labels < 0) | (self.labels >= classes)]
        if len(strange):
            raise DomainError(f"the table has the class {strange[0]}, the network has classes 0 to {classes - 1}")

    @cached_property
    def own(self) -> IntArray:
        """The network's labels of the rows, in integers. Shape: (rows,)."""
        query = self.query(0, self.eps[0])
        return folded(self.network, query.zero).labels(self.network.grid.levels(self.inputs))

    @property
    def accuracy(self) -> float:
        """The share of rows labelled rightly."""
        return float((self.own == self.labels).mean())

    def query(self, row: int, eps: Fraction) -> Robustness:
        """Return what is asked of a row."""
        return Robustness(self.network, Ball(self.inputs[row], eps, self.norm))

    def inputs_of(self, row: int, levels: IntArray) -> FloatArray:
        """Return an input with these levels as near to a row as may be, as `queries.inputs_of`. Shapes: (inputs,)."""
        return inputs_of(self.query(row, self.eps[0]).ball, self.network.grid, levels)


@dataclass(frozen=True, eq=False)
class Decided:
    """What came of one question. Units: rows from 0; rival: the counterexample's label, or None."""

    row: int
    eps: Fraction
    settled: Settled
    rival: int | None = None

    @classmethod
    def of(cls, row: int, eps: Fraction, settled: Settled, integers: Folded) -> Decided:
        """Return an answer with the label of its counterexample."""
        levels = settled.levels
        return cls(row, eps, settled, None if levels is None else int(integers.labels(levels[None])[0]))

    @property
    def verdict(self) -> Verdict:
        return self.settled.verdict


@dataclass(frozen=True, eq=False)
class Radius:
    """All answers at one eps, with the rows that the network labels rightly. Shape: right (rows,) of Booleans."""

    eps: Fraction
    answers: tuple[Decided, ...]
    right: tuple[bool, ...]

    def count(self, verdict: Verdict) -> int:
        return sum(one.verdict is verdict for one in self.answers)

    @property
    def decided(self) -> float:
        """The share of rows that are not UNKNOWN."""
        return 1 - self.count(Verdict.UNKNOWN) / len(self.answers)

    @property
    def verified(self) -> tuple[float, float]:
        """Both ends of the share of rows labelled rightly all over their balls; they meet where all are decided."""
        pairs = list(zip(self.answers, self.right, strict=True))
        low = sum(right and one.verdict is Verdict.ROBUST for one, right in pairs)
        high = sum(right and one.verdict is not Verdict.VIOLATED for one, right in pairs)
        return low / len(pairs), high / len(pairs)

    @property
    def seconds(self) -> dict[str, float]:
        """Mean, median and worst seconds of a question."""
        taken = [one.settled.seconds for one in self.answers]
        return {"mean": float(np.mean(taken)), "median": float(np.median(taken)), "worst": max(taken)}

    @property
    def engines(self) -> dict[str, int]:
        """How many questions each engine answered."""
        names = [one.settled.engine for one in self.answers if one.verdict is not Verdict.UNKNOWN]
        return {name: names.count(name) for name in sorted(set(names))}

    @property
    def floating(self) -> int:
        """How many ROBUST answers were computed in floating point."""
        return sum(one.verdict is Verdict.ROBUST and not one.settled.exact for one in self.answers)


@dataclass(frozen=True, eq=False)
class Surveyed:
    """A survey with what came of it, eps by eps."""

    survey: Survey
    radii: tuple[Radius, ...]
    started: datetime
    seconds: float

    @property
    def unknown(self) -> int:
        return sum(radius.count(Verdict.UNKNOWN) for radius in self.radii)


def run_survey(
    survey: Survey, *, jobs: int = 1, cache: ResultCache | None = None, progress: Callable[[], None] = lambda: None
) -> Surveyed:
    """Answer every question, `jobs` at a time; what is kept is not asked again.

    Raises    NumberError (jobs), and what `BinarizedSession.check` raises
    """
    started, clock = datetime.now(UTC), time.monotonic()
    places = [(row, eps) for eps in survey.eps for row in range(len(survey.inputs))]
    settings = Settings(survey.engine, survey.seconds, survey.exact)
    questions = Made(len(places), lambda number: survey.query(*places[number]))
    settled = settle_all(questions, settings, jobs=jobs, cache=cache, progress=progress)
    integers = folded(survey.network, survey.query(*places[0]).zero)
    found = [Decided.of(row, eps, one, integers) for (row, eps), one in zip(places, settled, strict=True)]
    rows, right = len(survey.inputs), tuple((survey.own == survey.labels).tolist())
    radii = [Radius(eps, tuple(found[start * rows : (start + 1) * rows]), right) for start, eps in enumerate(survey.eps)]
    return Surveyed(survey, tuple(radii), started, time.monotonic() - clock)


def document(found: Surveyed, provenance: dict[str, Any]) -> dict[str, Any]:
    """Return result.json. Keys below a list are written with []:

    schema: text                    "qrobust-bnn-report-1"
    started, seconds, command, model, table, versions    as in a sign-off's result.json
    network: object                 name and sha256
    norm, timeout, engine, exact    what was asked
    rows, accuracy                  of the table
    eps[].eps: text                 an exact fraction
    eps[].decided: number           share of rows that are not UNKNOWN
    eps[].verified: list            both ends of the share labelled rightly all over their balls
    eps[].robust, violated, unknown, floating: number    of rows; floating: ROBUST, computed in floating point
    eps[].seconds: object           mean, median, worst, of a question
    eps[].engines: object           how many questions each engine answered
    eps[].answers[]: object         row from 1, label, own (the network's), verdict, engine, exact, seconds, rival, levels,
                                    input (of the counterexample, in the ball), reason
    """
    survey = found.survey
    return {
        "schema": SCHEMA,
        **provenance,
        "started": found.started.isoformat(timespec="seconds"),
        "seconds": found.seconds,
        "network": {"name": str(survey.network), "sha256": survey.network.sha256},
        "norm": survey.norm.value,
        "timeout": survey.seconds,
        "engine": survey.engine,
        "exact": survey.exact,
        "rows": len(survey.inputs),
        "rows_sha256": hashlib.sha256(survey.inputs.tobytes() + survey.labels.tobytes()).hexdigest(),
        "accuracy": survey.accuracy,
        "eps": [_radius(survey, radius) for radius in found.radii],
    }


def _radius(survey: Survey, radius: Radius) -> dict[str, Any]:
    counts = {verdict.value.lower(): radius.count(verdict) for verdict in Verdict}
    return {
        "eps": str(radius.eps),
        "decided": radius.decided,
        "verified": list(radius.verified),
        **counts,
        "floating": radius.floating,
        "seconds": radius.seconds,
        "engines": radius.engines,
        "answers": [
            {
                "row": one.row + 1,
                "label": int(survey.labels[one.row]),
                "own": int(survey.own[one.row]),
                **one.settled.to_json(),
                "rival": one.rival,
                "input": None if one.settled.levels is None else survey.inputs_of(one.row, one.settled.levels).tolist(),
                "reason": one.settled.reason or None,
            }
            for one in radius.answers
        ],
    }
