"""Thermometer codes: real inputs as bits, each the answer to whether a feature is at least a threshold.

    bit j of feature i = (x_i >= threshold_ij),    thresholds rising

A function of the bits is constant on every cell, a product of half-open intervals [threshold, next threshold); the last
interval of a feature holds its upper end. A point on a threshold belongs to the cell above it.

Accepts   a box of inputs; for each feature thresholds strictly inside its range, or none
Gives     codes (how many of a feature's bits are 1), bits, cells and their shares of the box's volume
Property  exact: floats are compared, never computed with; shares are rounded to nearest
Source    Jiang et al. 2010, arXiv 1009.3604, for the name; the code is older
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qrobust.domains import InputBox
from qrobust.errors import DomainError, NumberError, ShapeError
from qrobust.interval import FloatArray, Interval
from qrobust.layers import IntArray, read_only
from qrobust.network import Feature, Network

MOST_THRESHOLDS = 255  # of one feature
SAMPLES = 4096  # pairs of points between which the boundary is looked for
HALVINGS = 30
DIGITS = 4  # a proposed threshold is rounded to this many decimal places of its feature's width
MARGIN = 0.01  # of the width: how far beyond the boundary's ends the outer thresholds stand
CHUNK = 2**14


@dataclass(frozen=True, eq=False)
class Thermometer:
    """Thresholds of each feature over a box. Raises ShapeError, NumberError (not finite), DomainError (outside, not rising)."""

    box: InputBox
    features: tuple[Feature, ...]
    thresholds: tuple[FloatArray, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", tuple(read_only(each) for each in self.thresholds))
        if not len(self.thresholds) == len(self.features) == self.box.inputs:
            raise ShapeError(f"thresholds for {len(self.thresholds)} features, the domain has {self.box.inputs}")
        ends = zip(self.features, self.thresholds, self.box.lower.tolist(), self.box.upper.tolist(), strict=True)
        for feature, values, lower, upper in ends:
            _check(feature, values, lower, upper)
        if not self.bits:
            raise DomainError("the code has no threshold, so no bit: give a box with an inside, and one threshold or more")

    @property
    def bits(self) -> int:
        return sum(each.size for each in self.thresholds)

    @property
    def cells(self) -> int:
        return math.prod(each.size + 1 for each in self.thresholds)

    @property
    def bit_names(self) -> tuple[str, ...]:
        """What each bit says, as in 'heart weight >= 8.1 g'."""
        pairs = zip(self.features, self.thresholds, strict=True)
        return tuple(f"{f.name} >= {t:.10g} {f.unit}".rstrip(" -") for f, values in pairs for t in values.tolist())

    def codes(self, x: FloatArray) -> IntArray:
        """Return how many bits of each feature are 1. Shapes: x (batch, features), and the result."""
        found = [np.searchsorted(t, x[:, i], side="right") for i, t in enumerate(self.thresholds)]
        return np.stack(found, axis=1).astype(np.int64)

    def codes_below(self, upper: FloatArray) -> IntArray:
        """Return the codes just below these ends: of the last points of boxes that leave their upper ends out."""
        found = [np.searchsorted(t, upper[:, i], side="left") for i, t in enumerate(self.thresholds)]
        return np.stack(found, axis=1).astype(np.int64)

    def bits_of(self, codes: IntArray) -> IntArray:
        """Return the bits, 0 or 1. Shapes: codes (batch, features); result (batch, bits)."""
        found = [codes[:, [i]] > np.arange(t.size) for i, t in enumerate(self.thresholds)]
        return np.concatenate(found, axis=1).astype(np.int64)

    def encode(self, x: FloatArray) -> IntArray:
        """Return the bits of inputs. Shapes: x (batch, features); result (batch, bits). Raises ShapeError, DomainError."""
        self.check_inside(x)
        return self.bits_of(self.codes(np.asarray(x, dtype=np.float64)))

    def check_inside(self, x: FloatArray) -> None:
        """Raise ShapeError or DomainError unless all points lie in the box. Shape: x (batch, features)."""
        points = np.asarray(x, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != self.box.inputs:
            raise ShapeError(f"a point has {self.box.inputs} numbers, got an array of shape {points.shape}")
        outside = ~((points >= self.box.lower) & (points <= self.box.upper))
        if outside.any():
            row, i = np.argwhere(outside)[0].tolist()
            raise DomainError(
                f"point {row + 1} lies outside the domain: {self.features[i].name} is {points[row, i]:g},"
                f" the box allows [{self.box.lower[i]:g}, {self.box.upper[i]:g}]"
            )

    def random_points(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Return points of the box, uniform. Shape: (count, features)."""
        points = self.box.lower + rng.random((count, self.box.inputs)) * (self.box.upper - self.box.lower)
        return np.clip(points, self.box.lower, self.box.upper)

    def ends(self, codes: IntArray) -> Interval:
        """Return the closed cells of codes. Shapes: codes (batch, features); result likewise."""
        lower, upper = np.empty(codes.shape), np.empty(codes.shape)
        for i, t in enumerate(self.thresholds):
            steps = np.concatenate([[self.box.lower[i]], t, [self.box.upper[i]]])
            lower[:, i], upper[:, i] = steps[codes[:, i]], steps[codes[:, i] + 1]
        return Interval(lower, upper)

    def values_of(self, feature: int, lower: int, upper: int) -> tuple[float, float]:
        """Return the ends of the values of a feature that codes from one to another stand for."""
        steps = [self.box.lower[feature], *self.thresholds[feature].tolist(), self.box.upper[feature]]
        return float(steps[lower]), float(steps[upper + 1])

    def shares(self, codes: IntArray) -> FloatArray:
        """Return the cells' shares of the box's volume, flat features left out. Shapes: codes (batch, features); (batch,)."""
        cells, wide = self.ends(codes), self.box.lower < self.box.upper
        return np.asarray((cells.width[:, wide] / self.box.box.width[wide]).prod(axis=1))

    def all_codes(self) -> Iterator[IntArray]:
        """Yield the codes of all cells, in chunks. Shape of each: (at most CHUNK, features)."""
        sizes = tuple(t.size + 1 for t in self.thresholds)
        for start in range(0, self.cells, CHUNK):
            numbers = np.arange(start, min(start + CHUNK, self.cells))
            yield np.stack(np.unravel_index(numbers, sizes), axis=1).astype(np.int64)


def _check(feature: Feature, values: FloatArray, lower: float, upper: float) -> None:
    if values.ndim != 1 or not np.isfinite(values).all():
        raise NumberError(f"a threshold of {feature.name} is not a finite number")
    if values.size > MOST_THRESHOLDS:
        raise NumberError(f"{feature.name} has {values.size} thresholds, at most {MOST_THRESHOLDS}")
    outside = values[~((values > lower) & (values < upper))]
    if outside.size:
        unit = f" {feature.unit}" if feature.unit else ""
        raise DomainError(
            f"the threshold {outside[0]:g}{unit} of {feature.name} does not lie inside the box: give one between"
            f" {lower:g} and {upper:g}, both left out"
        )
    if (np.diff(values) <= 0).any():
        raise DomainError(f"the thresholds of {feature.name} do not rise, or one is given twice")


def named_features(network: Network) -> tuple[Feature, ...]:
    """Return the network's features; where it names none, 'input 1' and so on."""
    return network.features or tuple(Feature(network.feature_name(i)) for i in range(network.inputs))


def explicit(network: Network, box: InputBox, thresholds: Sequence[Sequence[float]]) -> Thermometer:
    """Return the code of thresholds that are given. Raises ShapeError, NumberError, DomainError."""
    return Thermometer(box, named_features(network), tuple(np.array(each, dtype=np.float64) for each in thresholds))


def uniform(network: Network, box: InputBox, count: int) -> Thermometer:
    """Return the code of `count` thresholds a feature, evenly spread; none for a feature without width. Raises DomainError."""
    shares = np.arange(1, count + 1) / (count + 1)
    return _proposed(network, box, [low + shares * width for low, width in _sides(box)])


def along_boundary(network: Network, box: InputBox, count: int, rng: np.random.Generator) -> Thermometer:
    """Return the code whose thresholds of each feature part the decision boundary's points evenly.

    Method    points of different labels are joined, and the boundary between them is found by halving; thresholds are
              quantiles of these points, the outer ones a little beyond; evenly spread where the label is one throughout
    Property  a proposal: any thresholds give a sound proof
    Raises    DomainError
    """
    x = box.lower + rng.random((2 * SAMPLES, box.inputs)) * box.box.width
    labels = network.labels(x)
    first, second = x[:SAMPLES], x[SAMPLES:]
    apart = labels[:SAMPLES] != labels[SAMPLES:]
    first, second, label = first[apart], second[apart], labels[:SAMPLES][apart]
    if not len(first):
        return uniform(network, box, count)
    for _ in range(HALVINGS):
        middle = 0.5 * first + 0.5 * second
        same = (network.labels(middle) == label)[:, None]
        first, second = np.where(same, middle, first), np.where(same, second, middle)
    found = []
    for i, (_, width) in enumerate(_sides(box)):
        values = np.quantile(first[:, i], np.linspace(0.0, 1.0, count)) if width > 0 else np.zeros(0)
        if values.size:
            values[0], values[-1] = values[0] - MARGIN * width, values[-1] + MARGIN * width
        found.append(values)
    return _proposed(network, box, found)


def _sides(box: InputBox) -> list[tuple[float, float]]:
    return list(zip(box.lower.tolist(), (box.upper - box.lower).tolist(), strict=True))


def _proposed(network: Network, box: InputBox, values: Sequence[FloatArray]) -> Thermometer:
    """Round thresholds to short decimals, and leave out doubles and what is not inside."""
    kept = []
    for (low, width), each in zip(_sides(box), values, strict=True):
        places = DIGITS - math.floor(math.log10(width)) if width > 0 else 0
        rounded = np.unique(np.round(each, places))
        kept.append(rounded[(rounded > low) & (rounded < low + width)] if width > 0 else np.zeros(0))
    return Thermometer(box, named_features(network), tuple(kept))
