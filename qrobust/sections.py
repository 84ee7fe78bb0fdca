"""Sections: maps over a grid of two inputs, the others fixed or anywhere in a box.

Accepts   any network with two inputs or more; grids of up to MOST_CELLS
Gives     a certified lower and upper end and a status for each cell, as arrays, CSV or NPZ
Method    `maps.sweep`; a cell stands for the two values in its middle, which are floats
Property  as the queries; with others in a box, each cell holds for every input with its two values: the worst case
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qrobust.answers import VERSION
from qrobust.bounds.local import Status
from qrobust.domains import InputBox
from qrobust.errors import NumberError, ResourceError, ShapeError
from qrobust.interval import FloatArray, Interval
from qrobust.maps import IntArray, Quantity, Question, Sharing, sweep
from qrobust.memory import GIB
from qrobust.network import Network

MOST_CELLS = 100_000_000
CELL_BYTES = 40  # of one cell: ends, status and number, and what a file or a figure copies of them
ROWS_AT_A_TIME = 2**16  # of a table


@dataclass(frozen=True, eq=False)
class Section:
    """A grid: the values along two inputs, and the ends between which the others lie (the axes' own ends are not used).

    Shapes    across (columns,), along axes[0]; up (rows,), along axes[1]; others (inputs,)
    Cells     numbered row by row: cell r * columns + c has across[c] and up[r]
    Raises    ShapeError if the axes are not two inputs, ResourceError beyond MOST_CELLS
    """

    axes: tuple[int, int]
    across: FloatArray
    up: FloatArray
    others: Interval

    def __post_init__(self) -> None:
        inputs = self.others.shape[0]
        if len(set(self.axes)) != 2 or not all(0 <= axis < inputs for axis in self.axes):
            raise ShapeError(f"axes {self.axes} are no two of the inputs 0 to {inputs - 1}: name two different ones")
        _check_count(len(self.across), len(self.up))

    @classmethod
    def over(cls, axes: tuple[int, int], box: InputBox, counts: tuple[int, int], base: FloatArray | None = None) -> Section:
        """Return the grid of a box's two sides: the others at `base` (inputs,), or anywhere in the box."""
        if min(counts) < 1:
            raise NumberError(f"a grid of {counts[0]}x{counts[1]} cells has none: give for example 200x200")
        _check_count(*counts)
        across, up = (np.asarray(_middles(box.lower[i], box.upper[i], n)) for i, n in zip(axes, counts, strict=True))
        return cls(axes, across, up, box.box if base is None else Interval.point(base))

    def __len__(self) -> int:
        return len(self.across) * len(self.up)

    @property
    def fixed(self) -> bool:
        """Whether every cell is one input."""
        width = self.others.width.copy()
        width[list(self.axes)] = 0
        return not width.any()

    def inputs(self, start: int, stop: int) -> Interval:
        rows, columns = np.divmod(np.arange(start, stop), len(self.across))
        lower, upper = (np.repeat(end[None], stop - start, axis=0) for end in (self.others.lower, self.others.upper))
        for end in (lower, upper):
            end[:, self.axes[0]], end[:, self.axes[1]] = self.across[columns], self.up[rows]
        return Interval(lower, upper)


def _check_count(columns: int, rows: int) -> None:
    if columns * rows > MOST_CELLS:
        raise ResourceError(f"{columns * rows:,} cells are asked for, at most {MOST_CELLS:,} are taken: name a coarser --grid")


def _middles(low: float, high: float, count: int) -> FloatArray:
    """Return the middles of `count` equal parts."""
    parts = (np.arange(count) + 0.5) / count
    return np.clip(low + parts * (high - low), low, high)


@dataclass(frozen=True, eq=False)
class SectionMap:
    """Answers over a section. Shapes: lower, upper, status (rows, columns), as `maps.RobustnessMap` has them."""

    question: Question
    section: Section
    lower: FloatArray
    upper: FloatArray
    status: IntArray
    backend: str
    seconds: float
    version: str = VERSION

    @property
    def network(self) -> Network:
        return self.question.network

    def count(self, status: Status) -> int:
        """Return how many cells have a status."""
        return int((self.status == status).sum())

    def __str__(self) -> str:
        names = " and ".join(self.network.feature_name(axis) for axis in self.section.axes)
        where = f"{len(self.section):,} cells over {names} of {self.network} ({self.question.parameters.rule})"
        how = "" if self.section.fixed else ", the worst over the other inputs' ranges"
        open_ = self.count(Status.UNDECIDED)
        tail = f"{open_:,} undecided. [{self.backend}, {self.seconds:.3g} s]"
        if self.question.quantity is Quantity.LABEL:
            counts = f"{self.count(Status.SAFE):,} safe, {self.count(Status.FLIPPABLE):,} flippable"
            return f"labels at {where}{how}: {counts}, {tail}"
        median, greatest = np.median(self.upper), self.upper.max()
        return f"{self.question.quantity.value} at {where}{how}: median {median:.6g}, greatest {greatest:.6g}, {tail}"

    def table(self) -> Iterator[bytes]:
        """Yield the map as CSV: the two inputs, lower, upper, status; in parts, for it may be long."""
        names = [self.network.feature_name(axis) for axis in self.section.axes]
        yield (",".join([*(_quoted(name) for name in names), "lower", "upper", "status"]) + "\n").encode()
        words = np.array([status.name.lower() for status in Status])
        columns = len(self.section.across)
        for start in range(0, len(self.section), ROWS_AT_A_TIME):
            here = np.arange(start, min(start + ROWS_AT_A_TIME, len(self.section)))
            values = (self.section.across[here % columns], self.section.up[here // columns])
            ends = (self.lower.ravel()[here], self.upper.ravel()[here])
            parts = [part.tolist() for part in (*values, *ends)]
            status = words[self.status.ravel()[here]].tolist()
            lines = (f"{a!r},{b!r},{low!r},{high!r},{s}" for a, b, low, high, s in zip(*parts, status, strict=True))
            yield ("\n".join(lines) + "\n").encode()

    def arrays(self) -> bytes:
        """Return the map as an NPZ file: across, up, axes, others (2, inputs), lower, upper, status, and what was asked."""
        section = self.section
        buffer = io.BytesIO()
        found: dict[str, Any] = {name: np.array(text) for name, text in self.described().items()}
        found |= {"across": section.across, "up": section.up, "axes": np.array(section.axes)}
        found |= {"others": np.stack([section.others.lower, section.others.upper])}
        found |= {"lower": self.lower, "upper": self.upper, "status": self.status}
        found |= {"statuses": np.array([status.name.lower() for status in Status])}
        np.savez_compressed(buffer, **found)
        return buffer.getvalue()

    def described(self) -> dict[str, str]:
        """Return what was asked, of which network, and by which version."""
        question = self.question
        return {
            "qrobust": self.version,
            "network": question.network.sha256,
            "parameters": question.parameters.sha256,
            "rule": question.parameters.rule,
            "quantity": question.quantity.value,
            "level": str(question.level),
            "sigma": str(question.sigma),
        }

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, without the cells."""
        counts = {status.name.lower(): self.count(status) for status in Status}
        features = [self.network.feature_name(axis) for axis in self.section.axes]
        more = {"axes": list(self.section.axes), "features": features, "cells": list(self.status.shape[::-1])}
        return self.described() | more | {"fixed": self.section.fixed, "counts": counts, "seconds": self.seconds}


def section_map(
    question: Question, section: Section, sharing: Sharing | None = None, progress: Callable[[int], None] = lambda _: None
) -> SectionMap:
    """Ask one question in every cell. Raises ShapeError, ResourceError, and what `maps.sweep` raises."""
    if section.others.shape[0] != question.network.inputs:
        raise ShapeError(f"the section has {section.others.shape[0]} inputs, the network takes {question.network.inputs}")
    taken, memory = CELL_BYTES * len(section), question.budget.memory
    if taken > memory / 2:
        raise ResourceError(
            f"{len(section):,} cells take {taken / GIB:.3g} GiB, a memory budget of {memory / GIB:.3g} GiB has half of it for"
            f" them: name a coarser --grid, or give --memory {math.ceil(2 * taken / GIB)}"
        )
    started = time.monotonic()
    found = sweep(question, section, sharing or Sharing(), progress)
    shape = (len(section.up), len(section.across))
    lower, upper, status = found.lower.reshape(shape), found.upper.reshape(shape), found.status.reshape(shape)
    return SectionMap(question, section, lower, upper, status, found.backend, time.monotonic() - started)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(c in name for c in ',"\n\r') else name
