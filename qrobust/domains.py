"""Sets: the inputs a query speaks of (points, boxes, polytopes) and the parameters it allows (ParameterBox)."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.errors import DomainError, NumberError, ShapeError
from qrobust.exact import ExactArray
from qrobust.interval import BoolArray, Expansion, FloatArray, Interval
from qrobust.network import Network, read_only

MOST_SHOWN = 12

Parameters = tuple[tuple[npt.NDArray[Any], npt.NDArray[Any]], ...]
"""One (weight, bias) pair a layer: a concrete choice of all parameters. Arrays of Fractions, or of float64, each of which is
exactly the number that it stores."""


class Domain(ABC):
    """A set of inputs: a box, cut by linear inequalities matrix @ x <= limit (none for most)."""

    @property
    @abstractmethod
    def box(self) -> Interval:
        """The least box around the set. Shape: (inputs,)."""

    @property
    def inequalities(self) -> tuple[FloatArray, FloatArray]:
        """The matrix (m, inputs) and the limits (m,) of matrix @ x <= limit."""
        return np.zeros((0, self.inputs)), np.zeros(0)

    @property
    def inputs(self) -> int:
        return self.box.shape[0]

    def to_json(self) -> dict[str, Any]:
        """Return the set as JSON values."""
        matrix, limit = self.inequalities
        document = {"lower": self.box.lower.tolist(), "upper": self.box.upper.tolist()}
        return document | ({"matrix": matrix.tolist(), "limit": limit.tolist()} if limit.size else {})

    def contains(self, x: Sequence[Fraction]) -> bool:
        """Decide exactly whether a point lies in the set."""
        ends = zip(x, self.box.lower.tolist(), self.box.upper.tolist(), strict=True)
        if not all(Fraction(lower) <= value <= Fraction(upper) for value, lower, upper in ends):
            return False
        matrix, limit = self.inequalities
        return all(
            sum((Fraction(a) * value for a, value in zip(row, x, strict=True)), Fraction(0)) <= Fraction(b)
            for row, b in zip(matrix.tolist(), limit.tolist(), strict=True)
        )


def shortened(parts: Sequence[str], separator: str) -> str:
    """Join words for a message, the middle ones left out where there are many."""
    if len(parts) <= MOST_SHOWN:
        return separator.join(parts)
    return separator.join([*parts[:3], f"... ({len(parts)} in all)", parts[-1]])


def _numbers(values: npt.ArrayLike, what: str, dimensions: int) -> FloatArray:
    array = read_only(values)
    if array.ndim != dimensions or array.size == 0:
        raise ShapeError(f"{what} must be a non-empty array of {dimensions} dimension(s), got shape {array.shape}")
    if not np.all(np.isfinite(array)):
        raise NumberError(f"{what} holds NaN or an infinite number: give finite numbers")
    return array


@dataclass(frozen=True, eq=False)
class Point(Domain):
    """One input. Shapes: values (inputs,)."""

    values: FloatArray

    def __init__(self, values: npt.ArrayLike) -> None:
        object.__setattr__(self, "values", _numbers(values, "a point", 1))

    @property
    def box(self) -> Interval:
        return Interval.point(self.values)

    def __str__(self) -> str:
        return f"the point ({shortened([f'{v:g}' for v in self.values], ', ')})"


@dataclass(frozen=True, eq=False)
class Points(Domain):
    """A finite set of inputs. Shapes: values (points, inputs)."""

    values: FloatArray

    def __init__(self, values: npt.ArrayLike) -> None:
        object.__setattr__(self, "values", _numbers(values, "a set of points", 2))

    @property
    def box(self) -> Interval:
        return Interval(self.values.min(axis=0), self.values.max(axis=0))

    def contains(self, x: Sequence[Fraction]) -> bool:
        return any(all(Fraction(a) == b for a, b in zip(row, x, strict=True)) for row in self.values.tolist())

    def to_json(self) -> dict[str, Any]:
        return {"points": self.values.tolist()}

    def __str__(self) -> str:
        return f"{len(self.values)} points"


@dataclass(frozen=True, eq=False)
class InputBox(Domain):
    """All inputs with lower <= x <= upper. Shapes: (inputs,). Raises DomainError if it is empty."""

    lower: FloatArray
    upper: FloatArray

    def __init__(self, lower: npt.ArrayLike, upper: npt.ArrayLike) -> None:
        object.__setattr__(self, "lower", _numbers(lower, "the box's lower corner", 1))
        object.__setattr__(self, "upper", _numbers(upper, "the box's upper corner", 1))
        if self.lower.shape != self.upper.shape:
            raise ShapeError(f"the box's corners have {self.lower.size} and {self.upper.size} numbers")
        for index in np.flatnonzero(self.lower > self.upper)[:1]:
            raise DomainError(
                f"input {index + 1} of the box has its lower end {self.lower[index]:g} above its upper end"
                f" {self.upper[index]:g}: swap them"
            )

    @classmethod
    def of_features(cls, network: Network) -> InputBox:
        """Return the box of the ranges that the network's features name. Raises DomainError if one has none."""
        lower = [feature.lower for feature in network.features if feature.lower is not None]
        upper = [feature.upper for feature in network.features if feature.upper is not None]
        if not len(lower) == len(upper) == network.inputs:
            raise DomainError("the model names no input ranges: give the box, as in --box '6.3:20.5, 2:3.9'")
        return cls(lower, upper)

    @property
    def box(self) -> Interval:
        return Interval(self.lower, self.upper)

    def __str__(self) -> str:
        sides = [f"[{a:g}, {b:g}]" for a, b in zip(self.lower, self.upper, strict=True)]
        return "the box " + shortened(sides, " x ")


@dataclass(frozen=True, eq=False)
class Polytope(Domain):
    """The inputs of a box with matrix @ x <= limit. Shapes: matrix (m, inputs); limit (m,)."""

    within: InputBox
    matrix: FloatArray
    limit: FloatArray

    def __init__(self, within: InputBox, matrix: npt.ArrayLike, limit: npt.ArrayLike) -> None:
        object.__setattr__(self, "within", within)
        object.__setattr__(self, "matrix", _numbers(matrix, "the matrix of inequalities", 2))
        object.__setattr__(self, "limit", _numbers(limit, "the limits of the inequalities", 1))
        if self.matrix.shape != (self.limit.size, within.inputs):
            raise ShapeError(f"{self.limit.size} inequalities on {within.inputs} inputs, not {self.matrix.shape}")

    @property
    def box(self) -> Interval:
        return self.within.box

    @property
    def inequalities(self) -> tuple[FloatArray, FloatArray]:
        return self.matrix, self.limit

    def __str__(self) -> str:
        return f"{self.within} cut by {self.limit.size} inequalities"


@dataclass(frozen=True, eq=False)
class Bounds:
    """The exact lower and upper ends of one array of parameters. Raises NumberError if an end is above the other."""

    lower: Expansion
    upper: Expansion

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise ShapeError(f"lower parameters have shape {self.lower.shape}, upper ones {self.upper.shape}")
        for end in (self.lower, self.upper):
            if not (end.head + end.tail == end.head).all():  # what is compared below, and elsewhere, are the heads first
                raise NumberError("a parameter bound's head is not the float nearest to it: make it with Expansion.total")
        crossed = (self.lower.head > self.upper.head) | (
            (self.lower.head == self.upper.head) & (self.lower.tail > self.upper.tail)
        )
        for index in np.argwhere(crossed)[:1]:
            place = tuple(int(i) for i in index)
            raise NumberError(
                f"parameter {place} has its lower end {self.lower.head[place]:g} above its upper end"
                f" {self.upper.head[place]:g}: swap them"
            )

    @cached_property
    def interval(self) -> Interval:
        """The bounds as floats, rounded outward."""
        return Interval(self.lower.round_down(), self.upper.round_up())

    @cached_property
    def fractions(self) -> tuple[ExactArray, ExactArray]:
        """The bounds as Fractions."""
        return self.lower.fractions(), self.upper.fractions()

    def contains(self, values: npt.NDArray[Any]) -> bool:
        """Decide exactly whether Fractions, or floats as the numbers they store, lie within the bounds."""
        if values.shape != self.lower.shape:
            return False
        if values.dtype == np.float64:
            return bool(self.inside(values).all())
        lower, upper = self.fractions
        with np.errstate(invalid="ignore"):  # a NaN among the values lies nowhere, and needs no warning
            return bool(np.all((lower <= values) & (values <= upper)))

    def inside(self, values: FloatArray) -> BoolArray:
        """Decide exactly which floats lie within the bounds; a NaN lies nowhere."""
        low, high = self.lower, self.upper
        above = (values > low.head) | ((values == low.head) & (low.tail <= 0))
        below = (values < high.head) | ((values == high.head) & (high.tail >= 0))
        return np.asarray(above & below)


@dataclass(frozen=True, eq=False)
class LayerBox:
    """The bounds of one layer's weights, in the layer's own shape, and biases (out,); both empty for a pool."""

    weight: Bounds
    bias: Bounds


@dataclass(frozen=True, eq=False)
class ParameterBox:
    """All parameters with lower <= p <= upper, one LayerBox a layer. The bounds are exact real numbers.

    It contains the network's own parameters, unless `shifted` says that it need not. `rule` says in words where it came
    from.
    """

    layers: tuple[LayerBox, ...]
    shifted: bool = False
    rule: str = "parameters within explicit bounds"

    @cached_property
    def sha256(self) -> str:
        """Hash of the exact bounds."""
        digest = hashlib.sha256(b"qrobust-parameter-box-1")
        for layer in self.layers:
            for bounds in (layer.weight, layer.bias):
                for end in (bounds.lower, bounds.upper):
                    digest.update((end.head + 0.0).astype("<f8").tobytes() + (end.tail + 0.0).astype("<f8").tobytes())
        return digest.hexdigest()

    @classmethod
    def from_arrays(
        cls,
        lower: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
        upper: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
        *,
        shifted: bool = False,
        rule: str = "parameters within explicit bounds",
    ) -> ParameterBox:
        """Build a box from explicit arrays: one (weight, bias) pair a layer, two empty ones for a pool.

        Raises    ShapeError, NumberError
        """
        if len(lower) != len(upper):
            raise ShapeError(f"lower bounds for {len(lower)} layers, upper bounds for {len(upper)}")
        layers = []
        for (weight_lower, bias_lower), (weight_upper, bias_upper) in zip(lower, upper, strict=True):
            weights, biases = (read_only(weight_lower), read_only(weight_upper)), (bias_lower, bias_upper)
            if all(array.shape == (0,) for array in (*weights, *map(read_only, biases))):
                layers.append(LayerBox(_EMPTY, _EMPTY))
                continue
            dimensions = 4 if weights[0].ndim == 4 else 2
            layers.append(
                LayerBox(
                    Bounds(_stored(weights[0], dimensions), _stored(weights[1], dimensions)),
                    Bounds(_stored(bias_lower, 1), _stored(bias_upper, 1)),
                )
            )
        return cls(tuple(layers), shifted, rule)

    @property
    def intervals(self) -> list[tuple[Interval, Interval]]:
        """(weight, bias) a layer, rounded outward."""
        return [(layer.weight.interval, layer.bias.interval) for layer in self.layers]

    def contains(self, parameters: Parameters) -> bool:
        """Decide exactly whether a choice of parameters lies in the box."""
        return len(parameters) == len(self.layers) and all(
            layer.weight.contains(weight) and layer.bias.contains(bias)
            for layer, (weight, bias) in zip(self.layers, parameters, strict=True)
        )

    def contains_network(self, network: Network) -> bool:
        """Decide exactly whether the network's own parameters lie in the box."""
        return _contains_network(self, network)

    def check_fits(self, network: Network) -> None:
        """Raise ShapeError or NumberError unless the box has the network's shape and contains its parameters."""
        shapes = [(layer.weight.shape, layer.bias.shape) for layer in network.layers]
        own = [(layer.weight.lower.shape, layer.bias.lower.shape) for layer in self.layers]
        if own != shapes:
            raise ShapeError(f"the parameter box has layers {own}, the network {shapes}")
        if not self.shifted and not self.contains_network(network):
            raise NumberError("the parameter box leaves out the network's own parameters: widen it, or set shifted=True")


_EMPTY = Bounds(Expansion.of(read_only([])), Expansion.of(read_only([])))


@lru_cache(maxsize=16)
def _contains_network(parameters: ParameterBox, network: Network) -> bool:
    """Kept for the last few, since many queries share a network and a box."""
    return all(
        bool(box.weight.inside(layer.weight).all() and box.bias.inside(layer.bias).all())
        for layer, box in zip(network.layers, parameters.layers, strict=True)
    )


def _stored(values: npt.ArrayLike, dimensions: int) -> Expansion:
    return Expansion.of(_numbers(values, "an array of parameter bounds", dimensions))
