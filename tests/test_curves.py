"""Bands around sigmoid and tanh: they hold what they are around, and are no wider than they need to be."""

from __future__ import annotations

import numpy as np
import pytest

from qrobust import interval
from qrobust.bounds import curves
from qrobust.bounds.curves import difference_line, value_line
from qrobust.bounds.differential import Pair
from qrobust.bounds.ibp import INTERVALS
from qrobust.interval import FloatArray, Interval
from qrobust.network import Activation, activate

CURVES = [Activation.SIGMOID, Activation.TANH]


def at(activation: Activation, x: FloatArray) -> Interval:
    return activate(activation, Interval.point(x), INTERVALS)


def off(value: Interval, slope: FloatArray, x: FloatArray, centre: FloatArray) -> FloatArray:
    """A lower end of how far a value is from its line."""
    line = Interval.point(slope) * Interval.point(x) + Interval.point(centre)
    lower: FloatArray = interval.magnitude(value - line).lower
    return lower


def ranges(count: int) -> Interval:
    """Ranges of many widths, some of none, on both sides of 0 and around it."""
    rng = np.random.default_rng(0)
    middle = rng.normal(size=count) * rng.choice([0.1, 3.0, 40.0], count)
    width = rng.random(count) * 10.0 ** rng.integers(-12, 2, count) * (rng.random(count) < 0.9)
    return Interval(middle - width, middle + width)


def worst_value(activation: Activation, z: Interval) -> FloatArray:
    """How far values exceed the reach of their band: above 0 where the band is wrong."""
    slope, centre, reach = value_line(activation, z)
    points = [np.clip(z.lower + t * (z.upper - z.lower), z.lower, z.upper) for t in np.linspace(0, 1, 33)]
    found: FloatArray = np.max([off(at(activation, x), slope, x, centre) for x in points], axis=0) - reach
    return found


@pytest.mark.parametrize("activation", CURVES)
def test_values_lie_in_their_bands(activation: Activation) -> None:
    z = ranges(20_000)
    worst = worst_value(activation, z)
    assert (worst <= 0).all()
    reach = value_line(activation, z)[2]
    wide = (z.width > 0.01) & (reach > 1e-9)
    assert (worst > -0.02 * reach)[wide].mean() > 0.95, "the bands are wider than they need to be"


@pytest.mark.parametrize("activation", CURVES)
def test_bands_without_their_tangent_or_rounding_are_caught(activation: Activation, monkeypatch: pytest.MonkeyPatch) -> None:
    z = ranges(5_000)
    with monkeypatch.context() as patched:
        patched.setattr(
            curves, "_tangent", lambda activation, z, slope: at(activation, z.middle) - Interval.point(slope * z.middle)
        )
        assert (worst_value(activation, z) > 0).any()
    with monkeypatch.context() as patched:
        patched.setattr(curves, "_ball", lambda low, high: (0.5 * low + 0.5 * high, 0.49 * high - 0.49 * low))
        assert (worst_value(activation, z) > 0).any()


@pytest.mark.parametrize("activation", CURVES)
def test_differences_lie_in_their_bands(activation: Activation) -> None:
    rng, z = np.random.default_rng(1), ranges(5_000)
    change = rng.normal(size=len(z)) * 10.0 ** rng.integers(-6, 1, len(z))
    reach = np.abs(change) * rng.choice([0.0, 0.5, 2.0], len(z))
    moved = Interval(change - reach, change + reach)
    pair = Pair(z, Interval(z.lower + moved.lower - 1e-12, z.upper + moved.upper + 1e-12), moved)
    for radius in (np.zeros(len(z)), np.abs(change)):
        slope, centre, wide = difference_line(activation, pair, radius)
        for t in np.linspace(0, 1, 9):
            for d in (moved.lower, change, moved.upper):
                x = np.clip(z.lower + t * z.width, z.lower, z.upper)
                after = x + d
                value = at(activation, after) - at(activation, x)
                assert (off(value, slope, after - x, centre) <= wide + 4e-16 * (1 + np.abs(x))).all()  # after - x is rounded


@pytest.mark.parametrize("activation", CURVES)
def test_ranges_without_ends(activation: Activation) -> None:
    ends = [(-np.inf, np.inf), (-np.inf, 1.0), (0.0, np.inf), (1e300, 1e301), (-800.0, 800.0), (0.0, 0.0)]
    low, high = (np.array(end) for end in zip(*ends, strict=True))
    slope, centre, reach = value_line(activation, Interval(low, high))
    values = activate(activation, Interval(low, high), INTERVALS)
    bare = slope == 0
    assert bare[:5].all()
    assert (centre - reach <= values.lower)[bare].all()
    assert (values.upper <= centre + reach)[bare].all()
    everything = Interval(np.full(1, -np.inf), np.full(1, np.inf))
    slope, centre, reach = difference_line(activation, Pair(everything, everything, everything))
    assert slope[0] == 0
    assert reach[0] >= 1.0 - (activation is Activation.SIGMOID) * 1e-15
