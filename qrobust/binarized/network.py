"""Networks of signs: immutable stored numbers with a stated meaning.

An input x is rounded to a level q = round((x - offset) / step), and the network sees offset + step * q. Blocks follow, each

    sign(gamma * (scale * (W v) + bias - mean) / sqrt(variance + epsilon) + beta),    W over {-1, 0, +1}

and last a linear layer whose results scale * (W v) + bias are the scores of the classes. All stored numbers are rationals
(floats are what they store), so every sign is exactly defined. What sign(0) is, is said by the query.

Source    Hubara et al. 2016, arXiv 1602.02830; Jia and Rinard 2020, section 3 (the input step), arXiv 2005.03597
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from qrobust.errors import DomainError, NumberError, ResourceError, ShapeError
from qrobust.exact import to_fraction
from qrobust.interval import FloatArray, down, round_fraction_up, up
from qrobust.layers import Conv2d, Dense, IntArray, SparseMatrix, read_only

Number = float | int | str | Fraction
MOST_LEVELS = 2**16
MOST_TERMS = 2**28  # of all sums of a layer together, zeros too, and inputs of it
QUOTIENT_ERROR = 2.0**-50  # of a quotient of floats: what is taken from an input may be much greater than what is left
NEAR_TIE = 1e-6  # a quotient this near to a tie, relatively, is rounded in exact arithmetic


class InputRounding(Enum):
    """Which level an input half way between two goes to."""

    HALF_EVEN = "half-even"
    HALF_AWAY = "half-away"
    HALF_UP = "half-up"


@dataclass(frozen=True)
class Grid:
    """Inputs from lower to upper, rounded to offset + step * level.

    Raises    NumberError if the step is not positive, the range is empty, or there are over MOST_LEVELS levels
    """

    step: Fraction
    lower: Fraction
    upper: Fraction
    offset: Fraction = Fraction(0)
    rounding: InputRounding = InputRounding.HALF_EVEN

    def __post_init__(self) -> None:
        if self.step <= 0:
            raise NumberError(f"the input step is {float(self.step):g}, it must be positive")
        if self.lower > self.upper:
            raise NumberError(f"the input range is [{float(self.lower):g}, {float(self.upper):g}], which is empty")
        if self.highest - self.lowest >= MOST_LEVELS:
            raise NumberError(
                f"the input has {self.highest - self.lowest + 1:,} levels, at most {MOST_LEVELS:,}: take a greater step"
            )

    @classmethod
    def of(
        cls,
        step: Number,
        lower: Number,
        upper: Number,
        offset: Number = 0,
        rounding: InputRounding = InputRounding.HALF_EVEN,
    ) -> Grid:
        """Return the grid of numbers of any kind. Raises NumberError."""
        return cls(to_fraction(step), to_fraction(lower), to_fraction(upper), to_fraction(offset), rounding)

    @property
    def lowest(self) -> int:
        return self.level(self.lower)

    @property
    def highest(self) -> int:
        return self.level(self.upper)

    def level(self, x: Fraction) -> int:
        """Return the level of one input, exactly."""
        quotient = (x - self.offset) / self.step
        if self.rounding is InputRounding.HALF_EVEN:
            return round(quotient)
        half = Fraction(1, 2)
        if self.rounding is InputRounding.HALF_UP or quotient >= 0:
            return int((quotient + half).__floor__())
        return int((quotient - half).__ceil__())

    def steps_after(self, shift: Fraction) -> FloatArray:
        """Return the least floats x at which level(x + shift) is above the lowest level, the next, and so on.

        Shape: (levels - 1,), ascending. So the level of x + shift, kept in the range, is lowest + the count of those <= x.
        """
        return np.array([self._first_above(level, shift) for level in range(self.lowest, self.highest)], dtype=np.float64)

    def _first_above(self, level: int, shift: Fraction = Fraction(0)) -> float:
        """Return the least float x at which level(x + shift) is above a level."""
        tie = self.offset + (level + Fraction(1, 2)) * self.step
        least = np.array(round_fraction_up(tie - shift))
        is_next = self.level(tie) == level and to_fraction(float(least)) == tie - shift
        return float(up(least) if is_next else least)

    def levels(self, inputs: FloatArray) -> IntArray:
        """Return the levels of inputs, exactly. Raises NumberError (not finite), DomainError (outside the range)."""
        x = np.asarray(inputs, dtype=np.float64)
        if not np.isfinite(x).all():
            raise NumberError("an input is not finite")
        quotient = (x - float(self.offset)) / float(self.step)
        levels = np.rint(quotient).astype(np.int64)
        lost = QUOTIENT_ERROR * (np.abs(x) + abs(float(self.offset))) / float(self.step)
        near = np.abs(np.abs(quotient - levels) - 0.5) < NEAR_TIE * (1 + np.abs(quotient)) + lost
        for place in np.argwhere(near):
            levels[tuple(place)] = self.level(Fraction(float(x[tuple(place)])))
        if levels.size and (levels.min() < self.lowest or levels.max() > self.highest):
            raise DomainError(f"an input lies outside the input range [{float(self.lower):g}, {float(self.upper):g}]")
        return levels

    def nearest(self, centre: FloatArray, levels: IntArray) -> FloatArray:
        """Return the floats of given levels that are nearest to a centre's. Shapes: all (inputs,). Raises as `levels`."""
        found, own = np.array(centre, dtype=np.float64), self.levels(centre)
        for place in np.flatnonzero(levels != own):
            level = int(levels[place])
            found[place] = self._first_above(level - 1) if level > own[place] else down(np.array(self._first_above(level)))
        return found

    def values(self, levels: IntArray) -> FloatArray:
        """Return what the network sees of levels, rounded to float64."""
        return np.asarray(float(self.offset) + float(self.step) * levels, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Linear:
    """scale * (W v) + bias, the weights W in {-1, 0, +1} and the biases those of the layer.

    Shapes    scale (channels,), one for each row of a dense layer's weights or each channel of a convolution's
    Raises    NumberError (other weights; a scale that is zero or not finite), ShapeError, ResourceError (over MOST_TERMS)
    """

    layer: Dense | Conv2d
    scale: FloatArray

    def __post_init__(self) -> None:
        weight = self.layer.weight
        strange = weight[~np.isin(weight, (-1.0, 0.0, 1.0))]
        if strange.size:
            raise NumberError(f"a binarized layer has the weight {strange.flat[0]:g}: only -1, 0 and 1 are weights of signs")
        terms = self.layer.outputs * self.layer.weight[0].size
        if max(self.layer.inputs, terms) > MOST_TERMS:
            raise ResourceError(
                f"a layer has {self.layer.inputs:,} inputs and {terms:,} terms in its sums, at most {MOST_TERMS:,} are taken"
            )
        channels = len(self.layer.bias)
        scale = read_only(np.broadcast_to(np.asarray(self.scale, dtype=np.float64), (channels,)))
        object.__setattr__(self, "scale", scale)
        if not np.isfinite(scale).all() or not scale.all():
            raise NumberError("a scale of a binarized layer is zero or not finite: leave its neurons out")

    @property
    def channels(self) -> int:
        return len(self.layer.bias)

    @cached_property
    def matrix(self) -> SparseMatrix:
        """The weights as a csr_array of int64 (outputs, inputs), zeros left out. Not to be changed."""
        from scipy import sparse

        found = sparse.csr_array(self.layer.matrix(self.layer.weight)).astype(np.int64)
        found.eliminate_zeros()
        found.sort_indices()
        return found

    @property
    def channel_of(self) -> IntArray:
        """The channel of each output. Shape: (outputs,)."""
        return np.repeat(np.arange(self.channels, dtype=np.int64), self.layer.outputs // self.channels)

    def apply(self, values: FloatArray) -> FloatArray:
        """Return scale * (W v) + bias in float64. Shapes: values (batch, inputs); result (batch, outputs)."""
        channel = self.channel_of
        return np.asarray((self.matrix @ values.T).T * self.scale[channel] + self.layer.bias[channel])


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """gamma * (y - mean) / sqrt(variance + epsilon) + beta, for each channel.

    Shapes    all (channels,); epsilon a number
    Raises    ShapeError; NumberError if a number is not finite, a gamma is 0, or variance + epsilon is not positive
    """

    gamma: FloatArray
    beta: FloatArray
    mean: FloatArray
    variance: FloatArray
    epsilon: float

    def __post_init__(self) -> None:
        for name in ("gamma", "beta", "mean", "variance"):
            values = read_only(getattr(self, name))
            object.__setattr__(self, name, values)
            if values.shape != (self.gamma.size,):
                raise ShapeError(f"a batch normalization has {self.gamma.size} gammas and {values.shape} numbers of {name}")
            if not np.isfinite(values).all():
                raise NumberError(f"a batch normalization's {name} holds NaN or an infinite number: export the model again")
        if not self.gamma.all():
            raise NumberError(f"a batch normalization's gamma is 0 in channel {int(np.argmin(np.abs(self.gamma)))}: remove it")
        if not np.isfinite(self.epsilon) or not (self.variance + self.epsilon > 0).all() or (self.variance < 0).any():
            worst = int(np.argmin(self.variance))
            raise NumberError(
                f"a batch normalization has variance {self.variance[worst]:g} and epsilon {self.epsilon:g} in channel {worst}:"
                " their sum must be positive"
            )

    def apply(self, values: FloatArray, channel: IntArray) -> FloatArray:
        """Return the normalized values in float64. Shapes: values (batch, outputs); channel (outputs,)."""
        slope = self.gamma / np.sqrt(self.variance + self.epsilon)
        return np.asarray((values - self.mean[channel]) * slope[channel] + self.beta[channel])


@dataclass(frozen=True, eq=False)
class Block:
    """sign(norm(linear(v))). Raises ShapeError."""

    linear: Linear
    norm: BatchNorm | None = None

    def __post_init__(self) -> None:
        if self.norm is not None and self.norm.gamma.size != self.linear.channels:
            raise ShapeError(
                f"a batch normalization of {self.norm.gamma.size} channels follows a layer of {self.linear.channels}"
            )

    def pre_sign(self, values: FloatArray) -> FloatArray:
        """Return what the sign is taken of, in float64. Shapes: values (batch, inputs); result (batch, outputs)."""
        found = self.linear.apply(values)
        return found if self.norm is None else self.norm.apply(found, self.linear.channel_of)


@dataclass(frozen=True, eq=False)
class BinarizedNetwork:
    """Blocks between quantized inputs and scores. Raises ShapeError."""

    grid: Grid
    blocks: tuple[Block, ...]
    output: Linear
    name: str = ""
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        object.__setattr__(self, "classes", tuple(str(name) for name in self.classes))
        linears = self.linears
        for number, (before, after) in enumerate(itertools.pairwise(linears), start=2):
            if before.layer.outputs != after.layer.inputs:
                raise ShapeError(
                    f"layer {number} takes {after.layer.inputs} inputs but layer {number - 1} gives {before.layer.outputs}"
                )
        if self.outputs < 2:
            raise ShapeError("a binarized network needs two scores or more, one for each class")
        if self.classes and len(self.classes) != self.outputs:
            raise ShapeError(f"the network has {self.outputs} scores but {len(self.classes)} names of classes")

    @property
    def linears(self) -> tuple[Linear, ...]:
        return (*(block.linear for block in self.blocks), self.output)

    @property
    def inputs(self) -> int:
        return self.linears[0].layer.inputs

    @property
    def outputs(self) -> int:
        return self.output.layer.outputs

    def __str__(self) -> str:
        sizes = "-".join([str(self.inputs), *(str(linear.layer) for linear in self.linears)])
        return f"{self.name or 'binarized network'} ({sizes})"

    def class_name(self, index: int) -> str:
        return self.classes[index] if self.classes else str(index)

    def scores(self, levels: IntArray) -> FloatArray:
        """Return the scores in float64, rounded as NumPy rounds, sign(0) = +1: what a float runtime would say.

        Shapes    levels (batch, inputs); result (batch, classes)
        """
        values = self.grid.values(levels)
        for block in self.blocks:
            values = np.where(block.pre_sign(values) >= 0, 1.0, -1.0)
        return self.output.apply(values)

    @cached_property
    def sha256(self) -> str:
        """The hash of all that the network computes."""
        digest = hashlib.sha256(repr(self.grid).encode())
        for linear in self.linears:
            digest.update(linear.layer.signature.encode())
            for array in (linear.layer.weight, linear.layer.bias, linear.scale):
                digest.update(np.ascontiguousarray(array).tobytes())
        norms: list[Any] = [block.norm for block in self.blocks]
        for norm in norms:
            digest.update(b"none" if norm is None else repr(norm.epsilon).encode())
            for array in () if norm is None else (norm.gamma, norm.beta, norm.mean, norm.variance):
                digest.update(array.tobytes())
        return digest.hexdigest()
