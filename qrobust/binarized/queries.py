"""Questions about binarized networks: what inputs are allowed, and what counts as a changed label.

Distances are between inputs on the network's grid, in the inputs' own unit, except in an L-infinity ball, which is a box of
real inputs each rounded to its level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from qrobust.binarized.network import BinarizedNetwork, Grid
from qrobust.errors import DomainError, NumberError, ShapeError, UnsupportedError
from qrobust.exact import to_fraction
from qrobust.interval import FloatArray
from qrobust.layers import IntArray, read_only
from qrobust.network import Network

MOST_STEPS = 256  # between levels, found once for each radius


class ZeroSign(Enum):
    """What sign(0) is."""

    PLUS = "+1"
    MINUS = "-1"


class TieRule(Enum):
    """What label two or more equal greatest scores give."""

    FIRST = "first"  # the class that stands first, as argmax says
    RIVAL = "rival"  # a rival that draws level has changed the label, as VNN-LIB's >= says
    LABEL = "label"  # a rival must be strictly greater


class Norm(Enum):
    """How far an input is from the centre."""

    LINF = "linf"  # the greatest change of an input
    L0 = "l0"  # how many inputs change
    L1 = "l1"  # the sum of the changes
    L2 = "l2"  # the root of the sum of their squares
    HAMMING = "hamming"  # how many inputs change, of inputs that have two levels


@dataclass(frozen=True, eq=False)
class Region:
    """Levels in a box, and where a norm asks it, a sum of costs of at most `most`.

    The cost of a level is 1 if it is not the centre's (L0), the number of levels between (L1), or its square (L2).

    Shapes    centre, lower, upper (inputs,), of levels
    """

    centre: IntArray
    lower: IntArray
    upper: IntArray
    norm: Norm = Norm.LINF
    most: int = 0

    def cost(self, levels: IntArray) -> IntArray:
        """Return the cost of each level. Shapes: levels (..., inputs), and the result."""
        change = np.abs(levels - self.centre)
        return level_costs(change, self.norm)

    def contains(self, levels: IntArray) -> bool:
        """Whether an input lies in the region. Shape: levels (inputs,)."""
        inside = bool(((levels >= self.lower) & (levels <= self.upper)).all())
        return inside and (self.norm is Norm.LINF or int(self.cost(levels).sum()) <= self.most)


def level_costs(change: IntArray, norm: Norm) -> IntArray:
    """Return what changes by so many levels cost."""
    if norm is Norm.L1:
        return change
    return change**2 if norm is Norm.L2 else (change != 0).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Ball:
    """Inputs within a radius of a centre, and in the network's input range.

    Shapes    centre (inputs,)
    Raises    NumberError (a radius that is negative, not finite, or above the input range)
    """

    centre: FloatArray
    radius: Fraction
    norm: Norm = Norm.LINF

    def __post_init__(self) -> None:
        object.__setattr__(self, "centre", read_only(self.centre))
        object.__setattr__(self, "radius", to_fraction(self.radius))
        if self.radius < 0:
            raise NumberError(f"eps is {float(self.radius):g}, it must not be negative")

    def __str__(self) -> str:
        return f"within {self.norm.value} distance {float(self.radius):g} of the input"

    def to_json(self) -> dict[str, Any]:
        """Return the ball as JSON values."""
        return {"norm": self.norm.value, "eps": str(self.radius), "centre": self.centre.tolist()}

    def region(self, network: BinarizedNetwork) -> Region:
        """Return the levels that the inputs can have. Raises ShapeError, DomainError, NumberError."""
        grid, radius = network.grid, self.radius
        if self.centre.shape != (network.inputs,):
            raise ShapeError(f"an input has shape {self.centre.shape}, the network takes {network.inputs} numbers")
        if self.norm in (Norm.LINF, Norm.L1, Norm.L2):
            width = grid.upper - grid.lower
            reach = width if self.norm is Norm.LINF else width * network.inputs
            if radius > reach:
                raise NumberError(f"eps is {float(radius):g}, the inputs reach only {float(reach):g} apart")
        centre = grid.levels(self.centre)
        if self.norm is Norm.LINF:
            lower, upper = (_levels_at(grid, self.centre, shift) for shift in (-radius, radius))
            return Region(centre, lower, upper)
        lower, upper = np.full_like(centre, grid.lowest), np.full_like(centre, grid.highest)
        if self.norm in (Norm.L0, Norm.HAMMING):
            if radius.denominator != 1 or radius > network.inputs:
                raise NumberError(f"eps is {float(radius):g} inputs, it must be a whole number of at most {network.inputs}")
            if self.norm is Norm.HAMMING and grid.highest - grid.lowest != 1:
                raise DomainError(f"a Hamming ball needs inputs of two levels, not {grid.highest - grid.lowest + 1}: use l0")
            return Region(centre, lower, upper, Norm.L0, int(radius))
        units = radius / grid.step
        most = int(units) if self.norm is Norm.L1 else int(units * units)
        reach_levels = int(units)
        lower, upper = np.maximum(lower, centre - reach_levels), np.minimum(upper, centre + reach_levels)
        return Region(centre, lower, upper, self.norm, most)


_steps_after = lru_cache(maxsize=16)(Grid.steps_after)


def _levels_at(grid: Grid, centre: FloatArray, shift: Fraction) -> IntArray:
    """Return the levels of centre + shift, exactly, kept in the grid's range. Shapes: centre and result (inputs,)."""
    if grid.highest - grid.lowest <= MOST_STEPS:
        return grid.lowest + np.searchsorted(_steps_after(grid, shift), centre, side="right").astype(np.int64)
    level = {x: grid.level(min(max(Fraction(x) + shift, grid.lower), grid.upper)) for x in set(centre.tolist())}
    return np.array([level[x] for x in centre.tolist()], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Box:
    """Inputs on the grid between two ends, and in the network's input range.

    A box of real inputs that are no levels holds more than this: then a counterexample holds for it, a proof does not.

    Shapes    lower, upper (inputs,)
    Raises    NumberError (an end that is not finite), DomainError (ends that are crossed, an input without a level in the box)
    """

    lower: FloatArray
    upper: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "lower", read_only(self.lower))
        object.__setattr__(self, "upper", read_only(self.upper))
        if self.lower.shape != self.upper.shape or not np.isfinite([self.lower, self.upper]).all():
            raise NumberError("a box needs as many lower as upper ends, all finite")
        if (self.lower > self.upper).any():
            place = int(np.argmax(self.lower > self.upper))
            raise DomainError(
                f"the box's lower end {self.lower[place]:g} of input {place + 1} is above its upper end {self.upper[place]:g}"
            )

    def __str__(self) -> str:
        return f"in a box of {len(self.lower)} inputs"

    def region(self, network: BinarizedNetwork) -> Region:
        """Return the levels in the box; the centre is the level in the middle. Raises ShapeError, DomainError."""
        if self.lower.shape != (network.inputs,):
            raise ShapeError(f"a box has {len(self.lower)} inputs, the network takes {network.inputs}")
        grid = network.grid
        ends = {x: (Fraction(x) - grid.offset) / grid.step for x in {*self.lower.tolist(), *self.upper.tolist()}}
        lower = np.array([max(math.ceil(ends[x]), grid.lowest) for x in self.lower.tolist()], dtype=np.int64)
        upper = np.array([min(math.floor(ends[x]), grid.highest) for x in self.upper.tolist()], dtype=np.int64)
        if (lower > upper).any():
            raise DomainError(f"input {int(np.argmax(lower > upper)) + 1} has no level in the box: take a smaller step")
        return Region((lower + upper) // 2, lower, upper)

    def to_json(self) -> dict[str, Any]:
        """Return the box as JSON values."""
        return {"lower": self.lower.tolist(), "upper": self.upper.tolist()}


@dataclass(frozen=True, eq=False)
class Levels:
    """Inputs whose levels lie between two ends; the centre is the input that they are about.

    In another norm than L-infinity, the levels' costs away from the centre sum to `most` at most, as in a Region.

    Shapes    lower, upper, centre (inputs,), of levels
    Raises    ShapeError; DomainError (an end below the other, or the centre not between them)
    """

    lower: IntArray
    upper: IntArray
    centre: IntArray
    norm: Norm = Norm.LINF
    most: int = 0

    def __post_init__(self) -> None:
        if not self.lower.shape == self.upper.shape == self.centre.shape:
            raise ShapeError(
                f"ends {self.lower.shape} and {self.upper.shape} and a centre {self.centre.shape} do not fit together"
            )
        if (self.lower > self.upper).any():
            raise DomainError(f"input {int(np.argmax(self.lower > self.upper))} has no level between the two ends")
        if (outside := (self.centre < self.lower) | (self.centre > self.upper)).any():
            raise DomainError(f"the centre of input {int(np.argmax(outside))} does not lie between the two ends")

    def __str__(self) -> str:
        within = "" if self.norm is Norm.LINF else f", within {self.most} of {self.norm.value} cost"
        return f"in a box of {len(self.lower)} inputs' levels{within}"

    def region(self, network: BinarizedNetwork) -> Region:
        """Return the levels. Raises ShapeError, DomainError."""
        if self.lower.shape != (network.inputs,):
            raise ShapeError(f"a box has {len(self.lower)} inputs, the network takes {network.inputs}")
        if self.lower.min() < network.grid.lowest or self.upper.max() > network.grid.highest:
            raise DomainError(f"levels go from {network.grid.lowest} to {network.grid.highest}, the box has others")
        return Region(self.centre, self.lower, self.upper, self.norm, self.most)

    def to_json(self) -> dict[str, Any]:
        """Return the levels as JSON values; the centre's label is the one to be kept where none is named."""
        found: dict[str, Any] = {"lower_levels": self.lower.tolist(), "upper_levels": self.upper.tolist()}
        found["centre_levels"] = self.centre.tolist()
        return found if self.norm is Norm.LINF else found | {"norm": self.norm.value, "most": self.most}


def check_label(network: BinarizedNetwork, label: int | None) -> None:
    """Raise DomainError if a label is named and no class of the network."""
    if label is not None and not 0 <= label < network.outputs:
        raise DomainError(f"the label is {label}, the network has classes 0 to {network.outputs - 1}")


def _told(grid: Grid, zero: ZeroSign) -> dict[str, Any]:
    """Return what every question says of the network's numbers, as JSON values."""
    return {"sign_of_zero": zero.value, "step": str(grid.step), "range": [str(grid.lower), str(grid.upper)]}


def inputs_of(where: Ball | Box | Levels, grid: Grid, levels: IntArray) -> FloatArray:
    """Return an input with these levels: of an L-infinity ball the one nearest to its centre, else the one on the grid.

    So it lies in the ball, as far as float64 can say. Shapes: levels and result (inputs,)
    """
    if isinstance(where, Ball) and where.norm is Norm.LINF:
        return grid.nearest(where.centre, levels)
    return grid.values(levels)


@dataclass(frozen=True, eq=False)
class Robustness:
    """For all x in the ball: the label of x is `label` (the centre's own, if None).

    In words: no input in the ball is given another label, where sign(0) and ties are as the policies say.

    Raises    DomainError (a class that does not exist)
    """

    network: BinarizedNetwork
    ball: Ball | Box | Levels
    label: int | None = None
    tie: TieRule = TieRule.FIRST
    zero: ZeroSign = ZeroSign.PLUS

    def __post_init__(self) -> None:
        check_label(self.network, self.label)

    def statement(self, label: int) -> str:
        """Return what is so if every input has the label."""
        return f"{self.ball}, {self.network} keeps the label {self.network.class_name(label)}"

    def to_json(self) -> dict[str, Any]:
        """Return the question as JSON values."""
        return {
            "type": "binarized-robustness",
            "inputs": self.ball.to_json(),
            "label": self.label,
            "tie": self.tie.value,
            **_told(self.network.grid, self.zero),
        }


@dataclass(frozen=True, eq=False)
class LeastChange:
    """The least radius of a ball about the centre in which some input is given another label.

    Raises    DomainError (a class that does not exist)
    """

    network: BinarizedNetwork
    centre: FloatArray
    norm: Norm = Norm.LINF
    label: int | None = None
    tie: TieRule = TieRule.FIRST
    zero: ZeroSign = ZeroSign.PLUS

    def __post_init__(self) -> None:
        object.__setattr__(self, "centre", read_only(self.centre))
        check_label(self.network, self.label)

    def to_json(self) -> dict[str, Any]:
        """Return the question as JSON values."""
        return {
            "type": "binarized-least-change",
            "centre": self.centre.tolist(),
            "norm": self.norm.value,
            "label": self.label,
            "tie": self.tie.value,
            **_told(self.network.grid, self.zero),
        }


def check_pair(network: BinarizedNetwork | Network, copy: BinarizedNetwork) -> None:
    """Raise ShapeError (other inputs or classes), or UnsupportedError (networks of signs that round inputs differently)."""
    classes = network.class_count if isinstance(network, Network) else network.outputs
    for what, mine, other in (("inputs", network.inputs, copy.inputs), ("classes", classes, copy.outputs)):
        if mine != other:
            raise ShapeError(f"the network has {mine} {what} and the copy {other}: they cannot be compared")
    if isinstance(network, BinarizedNetwork) and network.grid != copy.grid:
        raise UnsupportedError("the network and the copy round their inputs differently: give both one step and range")


@dataclass(frozen=True, eq=False)
class LabelChange:
    """For all x in the ball, on the copy's grid: the network and its copy give x the same label.

    A label is the class of greatest score, the first of equals. A float network's is that of its real-valued function at
    offset + step * level, by the level 1/2 if it has one output.
    Raises    as `check_pair`
    """

    network: BinarizedNetwork | Network
    copy: BinarizedNetwork
    ball: Ball | Box | Levels
    zero: ZeroSign = ZeroSign.PLUS

    def __post_init__(self) -> None:
        check_pair(self.network, self.copy)

    def statement(self) -> str:
        """Return what is so if no input's label is another."""
        return f"{self.ball}, {self.network} and {self.copy} give the same label"

    def to_json(self) -> dict[str, Any]:
        """Return the question as JSON values."""
        return {
            "type": "binarized-label-change",
            "inputs": self.ball.to_json(),
            **_told(self.copy.grid, self.zero),
        }
