"""Maps of networks of signs: one question in every cell of a grid over two inputs.

Accepts   two inputs of a network as axes, on their levels; the others at one input, anywhere in a box, or in a ball about one
Gives     in each cell the label, and whether it is the only one there; or whether a copy gives another
Method    the labels of all cells in integers, many at a time; intervals and a few inputs of each cell's box, many cells at a
          time; what these leave open is asked one by one (`many`). Cells of the same two levels are asked once
Property  exact as `BinarizedSession`'s answers; undecided where the time ends
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np

from qrobust.answers import VERSION, Verdict
from qrobust.binarized.float_pairs import FloatLabels
from qrobust.binarized.folding import Folded
from qrobust.binarized.many import Made, Question, Settings, settle_all
from qrobust.binarized.network import BinarizedNetwork, Grid
from qrobust.binarized.queries import Ball, LabelChange, Levels, Norm, Robustness, TieRule, ZeroSign, check_pair
from qrobust.binarized.solve import folded
from qrobust.bounds.local import Status
from qrobust.cache import ResultCache
from qrobust.comparison import UNDECIDED
from qrobust.errors import NumberError, ResourceError, ShapeError
from qrobust.interval import FloatArray
from qrobust.layers import IntArray
from qrobust.maps import IntArray as Statuses
from qrobust.network import Network

MOST_CELLS = 10_000_000
AT_A_TIME = 2**22  # numbers that an array of cells' inputs holds at once
TRIED = 8  # inputs of each cell's box that are looked at before its question is asked
VERDICTS = {Verdict.ROBUST: Status.SAFE, Verdict.VIOLATED: Status.FLIPPABLE, Verdict.UNKNOWN: Status.UNDECIDED}


class Shown(Enum):
    """What a map shows in each cell."""

    LABEL = "label"  # the label, and whether all inputs of the cell have it
    ROBUST = "robust"  # whether all inputs of a ball about the cell's have its label
    CHANGE = "change"  # whether a copy gives another label


@dataclass(frozen=True, eq=False)
class Cut:
    """A grid over two inputs, and the levels that the inputs of a cell can have.

    Shapes    across (columns,), up (rows,): levels of axes[0] and axes[1]; lower, centre, upper (inputs,): of the others
              (the axes' own are not used); reach of each level of an axis, both ends (levels, 2), or None: the axes stay;
              in another norm than L-infinity, the costs of the levels away from the cell's sum to `most` at most
    Raises    ShapeError if the axes are not two inputs, NumberError without a cell, ResourceError beyond MOST_CELLS
    """

    axes: tuple[int, int]
    across: IntArray
    up: IntArray
    lower: IntArray
    centre: IntArray
    upper: IntArray
    reach: IntArray | None = None
    names: tuple[str, str] = ("", "")
    norm: Norm = Norm.LINF
    most: int = 0
    shown_names: tuple[str, str] = ("", "")  # with their units, for pictures

    def __post_init__(self) -> None:
        inputs = len(self.centre)
        if len(set(self.axes)) != 2 or not all(0 <= axis < inputs for axis in self.axes):
            raise ShapeError(f"axes {self.axes} are no two of the inputs 0 to {inputs - 1}: name two different ones")
        if not len(self.across) or not len(self.up):
            raise NumberError("the grid has no cell: give for example 200x200")
        if len(self) > MOST_CELLS:
            raise ResourceError(f"{len(self):,} cells are asked for, at most {MOST_CELLS:,} are taken: name a coarser --grid")

    def __len__(self) -> int:
        return len(self.across) * len(self.up)

    @property
    def fixed(self) -> bool:
        """Whether every cell is one input."""
        width = self.upper - self.lower
        width[list(self.axes)] = 0
        return self.reach is None and not width.any()

    def about(self, grid: Grid, point: FloatArray, radius: Fraction, *, axes_too: bool) -> Cut:
        """Return the cut whose other inputs lie within a radius of a point's, and its axes too or not at all.

        Raises    NumberError (a radius that is negative or above the input range), as a ball does
        """
        if radius < 0:
            raise NumberError(f"eps is {float(radius):g}, it must not be negative")
        if radius > grid.upper - grid.lower:
            raise NumberError(f"eps is {float(radius):g}, the inputs reach only {float(grid.upper - grid.lower):g} apart")
        known = {x: _ends(grid, Fraction(x), radius) for x in set(point.tolist())}
        ends = np.array([known[x] for x in point.tolist()], dtype=np.int64)
        values = (grid.offset + grid.step * level for level in range(grid.lowest, grid.highest + 1))
        reach = np.array([_ends(grid, value, radius) for value in values], dtype=np.int64) if axes_too else None
        return replace(self, lower=ends[:, 0], centre=grid.levels(point), upper=ends[:, 1], reach=reach)

    def around(self, network: BinarizedNetwork, ball: Ball, *, axes_too: bool) -> Cut:
        """Return the cut whose cells are balls: about a point with the axes at the cell's, which move too or not at all.

        Raises    ShapeError, NumberError, DomainError: as the ball
        """
        grid, norm = network.grid, ball.norm
        if norm is Norm.LINF:
            return self.about(grid, ball.centre, ball.radius, axes_too=axes_too)
        region, levels = ball.region(network), np.arange(grid.lowest, grid.highest + 1)
        far = int(ball.radius / grid.step) if norm in (Norm.L1, Norm.L2) else len(levels)
        reach = np.stack([np.maximum(levels - far, grid.lowest), np.minimum(levels + far, grid.highest)], axis=1)
        ends = replace(self, lower=region.lower, centre=region.centre, upper=region.upper)
        return replace(ends, reach=reach if axes_too else None, norm=region.norm, most=region.most)

    def boxes(self, cells: IntArray, lowest: int) -> tuple[IntArray, IntArray, IntArray]:
        """Return the lower, central and upper levels of some cells, counted row by row. Shapes: (cells, inputs) each."""
        rows, columns = np.divmod(cells, len(self.across))
        found = []
        for place, end in ((0, self.lower), (None, self.centre), (1, self.upper)):
            levels = np.repeat(end[None], len(cells), axis=0)
            for axis, own in zip(self.axes, (self.across[columns], self.up[rows]), strict=True):
                levels[:, axis] = own if self.reach is None or place is None else self.reach[own - lowest, place]
            found.append(levels)
        return found[0], found[1], found[2]


def _ends(grid: Grid, value: Fraction, radius: Fraction) -> tuple[int, int]:
    return grid.level(max(value - radius, grid.lower)), grid.level(min(value + radius, grid.upper))


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked in every cell. `copy` is for Shown.CHANGE, where the grid is the copy's.

    Raises    as `check_pair`
    """

    network: BinarizedNetwork | Network
    shown: Shown = Shown.LABEL
    copy: BinarizedNetwork | None = None
    tie: TieRule = TieRule.FIRST
    zero: ZeroSign = ZeroSign.PLUS

    def __post_init__(self) -> None:
        if self.copy is not None:
            check_pair(self.network, self.copy)

    @property
    def on_grid(self) -> BinarizedNetwork:
        """The network whose grid the cells lie on."""
        found = self.network if self.copy is None else self.copy
        assert isinstance(found, BinarizedNetwork)
        return found

    @property
    def folded(self) -> Folded:
        return folded(self.on_grid, self.zero)

    def labels(self, levels: IntArray) -> IntArray:
        """Return the network's labels; UNDECIDED where no precision settles a float network's. Shape: (batch, inputs)."""
        if isinstance(self.network, Network):
            return FloatLabels(self.network, self.on_grid.grid).at(levels)
        return folded(self.network, self.zero).labels(levels)

    def question(self, levels: Levels) -> Question:
        """Return the question about one cell."""
        if self.copy is not None:
            return LabelChange(self.network, self.copy, levels, self.zero)
        assert isinstance(self.network, BinarizedNetwork)
        return Robustness(self.network, levels, None, self.tie, self.zero)


@dataclass(frozen=True, eq=False)
class BinarizedMap:
    """Answers over a cut. Shapes: labels (of the network, at each cell's centre) and status (Status), (rows, columns)."""

    asked: Asked
    cut: Cut
    labels: IntArray
    status: Statuses
    seconds: float
    version: str = field(default=VERSION)

    def count(self, status: Status) -> int:
        """Return how many cells have a status."""
        return int((self.status == status).sum())

    @property
    def undecided(self) -> int:
        return self.count(Status.UNDECIDED)

    def values(self, levels: IntArray) -> FloatArray:
        """Return levels as inputs."""
        return self.asked.on_grid.grid.values(levels)

    def class_name(self, label: int) -> str:
        """Return the name of a label that the map shows."""
        return "undecided" if label == UNDECIDED else self.asked.on_grid.class_name(label)

    def axis_name(self, place: int) -> str:
        """Return what an axis is called: by default its input's number, from 1."""
        return self.cut.names[place] or f"x{self.cut.axes[place] + 1}"

    def __str__(self) -> str:
        names = f"{self.axis_name(0)} and {self.axis_name(1)}"
        counts = f"{self.count(Status.SAFE):,} safe, {self.count(Status.FLIPPABLE):,} flippable"
        text = f"{self.asked.shown.value} at {len(self.cut):,} cells over {names} of {self.asked.network}"
        return f"{text}: {counts}, {self.count(Status.UNDECIDED):,} undecided. [{self.seconds:.3g} s]"

    def table(self) -> Iterator[bytes]:
        """Yield the map as CSV, row by row: the two inputs, the label, the status."""
        yield f"{self.axis_name(0)},{self.axis_name(1)},label,status\n".encode()
        words = [status.name.lower() for status in Status]
        across, up = self.values(self.cut.across).tolist(), self.values(self.cut.up).tolist()
        for y, labels, row in zip(up, self.labels.tolist(), self.status.tolist(), strict=True):
            names = ((x, self.class_name(label), words[status]) for x, label, status in zip(across, labels, row, strict=True))
            yield "".join(f"{x!r},{y!r},{_quoted(name)},{word}\n" for x, name, word in names).encode()

    def arrays(self) -> bytes:
        """Return the map as an NPZ file: across, up, axes, labels, status, and what was asked."""
        buffer, cut = io.BytesIO(), self.cut
        found: dict[str, Any] = {name: np.array(text) for name, text in self.described().items()}
        found |= {"across": self.values(cut.across), "up": self.values(cut.up), "axes": np.array(cut.axes)}
        found |= {"labels": self.labels, "status": self.status, "statuses": np.array([s.name.lower() for s in Status])}
        np.savez_compressed(buffer, **found)
        return buffer.getvalue()

    def described(self) -> dict[str, str]:
        """Return what was asked, of which network, and by which version."""
        asked, copy = self.asked, self.asked.copy
        found = {"qrobust": self.version, "network": asked.network.sha256, "shown": asked.shown.value, "tie": asked.tie.value}
        return found | {"sign_of_zero": asked.zero.value} | ({} if copy is None else {"copy": copy.sha256})

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, without the cells."""
        counts = {status.name.lower(): self.count(status) for status in Status}
        shown, times = np.unique(self.labels, return_counts=True)
        labels = {self.class_name(label): count for label, count in zip(shown.tolist(), times.tolist(), strict=True)}
        cells = {"axes": list(self.cut.axes), "cells": list(self.status.shape[::-1]), "fixed": self.cut.fixed}
        cells |= {} if self.cut.norm is Norm.LINF else {"norm": self.cut.norm.value, "most": self.cut.most}
        return self.described() | cells | {"counts": counts, "labels": labels, "seconds": self.seconds}


def binarized_map(
    asked: Asked,
    cut: Cut,
    settings: Settings | None = None,
    *,
    jobs: int = 1,
    cache: ResultCache | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> BinarizedMap:
    """Ask in every cell. `progress` is called with the number just done.

    Raises    ShapeError, UnsupportedError, and what `settle_all` raises
    """
    if len(cut.centre) != asked.on_grid.inputs:
        raise ShapeError(f"the map has {len(cut.centre)} inputs, the network takes {asked.on_grid.inputs}")
    started, lowest, rng = time.monotonic(), asked.on_grid.grid.lowest, np.random.default_rng(0)
    across, columns = np.unique(cut.across, return_inverse=True)
    up, rows = np.unique(cut.up, return_inverse=True)
    once = replace(cut, across=across, up=up)
    labels = np.zeros(len(once), dtype=np.int64)
    status = np.full(len(once), Status.UNDECIDED, dtype=np.int8)
    many = max(1, AT_A_TIME // (len(cut.centre) * (1 if cut.fixed else TRIED)))
    for start in range(0, len(once), many):
        cells = np.arange(start, min(start + many, len(once)))
        lower, centre, upper = once.boxes(cells, lowest)
        labels[cells] = asked.labels(centre)
        tries = TRIED if cut.norm is Norm.LINF else 0  # the corners of a box lie in no other ball
        status[cells] = _screened(asked, labels[cells], (lower, centre, upper), fixed=cut.fixed, tries=tries, rng=rng)
    left = np.flatnonzero(status == Status.UNDECIDED) if not cut.fixed else np.zeros(0, dtype=np.int64)
    progress(len(cut) - len(left))

    def question(number: int) -> Question:
        lower, centre, upper = once.boxes(left[[number]], lowest)
        return asked.question(Levels(lower[0], upper[0], centre[0], cut.norm, cut.most))

    found = settle_all(Made(len(left), question), settings or Settings(), jobs=jobs, cache=cache, progress=lambda: progress(1))
    status[left] = [VERDICTS[one.verdict] for one in found]
    shape, places = (len(up), len(across)), np.ix_(rows, columns)
    return BinarizedMap(asked, cut, labels.reshape(shape)[places], status.reshape(shape)[places], time.monotonic() - started)


Boxes = tuple[IntArray, IntArray, IntArray]  # lower, centre, upper: (cells, inputs) each


def _screened(asked: Asked, labels: IntArray, boxes: Boxes, *, fixed: bool, tries: int, rng: np.random.Generator) -> Statuses:
    """Return the status of some cells, as far as their centres, `tries` more of their inputs, and intervals show it."""
    lower, centre, upper = boxes
    status = np.full(len(labels), Status.UNDECIDED, dtype=np.int8)
    if asked.copy is None:
        status[_flipped(asked, labels, centre)] = Status.FLIPPABLE  # under a rule for ties
        if fixed:
            return np.where(status == Status.FLIPPABLE, status, np.int8(Status.SAFE))
        safe = _kept_by_intervals(asked, labels, lower, upper)
        status[safe & (status == Status.UNDECIDED)] = Status.SAFE
        tried = np.flatnonzero(status == Status.UNDECIDED)
    else:
        other = asked.folded.labels(centre)
        status[(labels != other) & (labels != UNDECIDED)] = Status.FLIPPABLE
        if fixed:
            status[labels == other] = Status.SAFE
        tried = np.flatnonzero(status == Status.UNDECIDED)
    if fixed or not len(tried):
        return status
    for number in range(tries):
        low, high = lower[tried], upper[tried]
        ends = (low, high)[number] if number < 2 else np.where(rng.random(low.shape) < 0.5, low, high)
        status[tried[_flipped(asked, labels[tried], ends)]] = Status.FLIPPABLE
    return status


def _flipped(asked: Asked, labels: IntArray, levels: IntArray) -> IntArray:
    """Return where an input shows a flip: by the rule for ties, or of the copy. Shapes: (cells,), (cells, inputs)."""
    if asked.copy is not None:
        own, other = asked.labels(levels), asked.folded.labels(levels)
        return np.flatnonzero((own != UNDECIDED) & (own != other))
    lost = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels).tolist():
        own = np.flatnonzero(labels == label)
        lost[own] = asked.folded.is_lost(levels[own], label, asked.tie)
    return np.flatnonzero(lost)


def _kept_by_intervals(asked: Asked, labels: IntArray, lower: IntArray, upper: IntArray) -> Any:
    """Return where no class can take the label, as intervals show. Shapes: (cells,), (cells, inputs) twice; (cells,) bools."""
    integers = asked.folded
    for layer in integers.layers:
        least, most = _bounds(layer.matrix, lower, upper)
        lower, upper = np.where(least >= layer.threshold, 1, -1), np.where(most >= layer.threshold, 1, -1)
    safe = np.ones(len(labels), dtype=bool)
    for label in np.unique(labels).tolist():
        own = np.flatnonzero(labels == label)
        rivals = integers.rivals(label, asked.tie)
        _, most = _bounds(rivals.matrix, lower[own], upper[own])
        safe[own] = (most < rivals.threshold).all(axis=1)
    return safe


def _bounds(matrix: Any, lower: IntArray, upper: IntArray) -> tuple[IntArray, IntArray]:
    """Return the least and the greatest sums. Shapes: lower, upper (cells, inputs); results (cells, rows)."""
    positive, negative = matrix.maximum(0), matrix.minimum(0)
    least = (positive @ lower.T + negative @ upper.T).T
    return np.asarray(least), np.asarray((positive @ upper.T + negative @ lower.T).T)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(c in name for c in ',"\n\r') else name
