"""Every step of a zonotope alone: what it computes wrongly lies within the radius, in exact arithmetic, and not by luck.

The numbers span many magnitudes and cancel, so that nearly every float operation is inexact.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from qrobust.bounds import zonotopes
from qrobust.bounds.differential import Pair
from qrobust.bounds.zonotopes import Band, Form, TwinLayer, affine, ball, changed, difference_band, relu_band
from qrobust.interval import TINY, FloatArray, Interval
from qrobust.network import Activation, Dense

Exact = npt.NDArray[np.object_]
NEURONS, SYMBOLS, INPUTS, BOXES = 6, 40, 3, 4


def exactly(values: FloatArray) -> Exact:
    return np.asarray(np.frompyfunc(Fraction, 1, 1)(values.astype(object)), dtype=object)


def numbers(rng: np.random.Generator, *shape: int) -> FloatArray:
    return np.asarray(rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4, shape))


def form(rng: np.random.Generator, symbols: int = SYMBOLS) -> Form:
    return Form(
        numbers(rng, NEURONS, BOXES), numbers(rng, NEURONS, symbols, BOXES), np.abs(numbers(rng, NEURONS, BOXES)) * 1e-20
    )


def missing(found: Form, centre: Exact, generators: Exact, radius: Exact) -> Exact:
    """How far a form falls short of an exact one in which its symbols are the first, below 0 where it holds all of it."""
    own = exactly(found.generators)
    off = abs(centre - exactly(found.centre)) + abs(generators - own[:, : generators.shape[1]]).sum(axis=1)
    rest = abs(own[:, generators.shape[1] :]).sum(axis=1)
    return np.asarray(off + radius - rest - exactly(found.radius), dtype=object)


def times(weight: FloatArray, generators: FloatArray) -> Exact:
    return np.asarray(np.tensordot(exactly(weight), exactly(generators), axes=1), dtype=object)


def reaches(rng: np.random.Generator, scale: float) -> Interval:
    low = numbers(rng, NEURONS, BOXES)
    return Interval(low, np.nextafter(low + scale * np.abs(numbers(rng, NEURONS, BOXES)), np.inf))


def range_is_short(rng: np.random.Generator) -> bool:
    each = form(rng)
    reach = abs(exactly(each.generators)).sum(axis=1) + exactly(each.radius)
    low, high = exactly(each.centre) - reach, exactly(each.centre) + reach
    return bool(((exactly(each.range.lower) > low) | (exactly(each.range.upper) < high)).any())


def band_is_short(rng: np.random.Generator) -> bool:
    each, slope = form(rng), rng.choice([0.0, 0.5, 1.0], (NEURONS, BOXES))
    band = Band(slope, numbers(rng, NEURONS, BOXES), np.abs(numbers(rng, NEURONS, BOXES)))
    found, steep = band.of(each)[0], exactly(slope)
    centre = steep * exactly(each.centre) + exactly(band.centre)
    radius = steep * exactly(each.radius) + exactly(band.reach)
    return bool((missing(found, centre, steep[:, None] * exactly(each.generators), radius) > 0).any())


def widened_band_is_short(rng: np.random.Generator) -> bool:
    band, noise = (
        Band(np.ones((NEURONS, BOXES)), numbers(rng, NEURONS, BOXES), np.abs(numbers(rng, NEURONS, BOXES))),
        reaches(rng, 1),
    )
    found = band.widened(noise)
    low, high = (exactly(band.centre) + s * exactly(band.reach) + exactly(e) for s, e in ((-1, noise.lower), (1, noise.upper)))
    centre, reach = exactly(found.centre), exactly(found.reach)
    return bool(((centre - reach > low) | (centre + reach < high)).any())


def affine_is_short(rng: np.random.Generator) -> bool:
    each, weight, bias = form(rng), numbers(rng, NEURONS, NEURONS), numbers(rng, NEURONS, 1)
    reach = (np.abs(numbers(rng, NEURONS, NEURONS)) * 1e-3, np.abs(numbers(rng, NEURONS, 1)))
    found = affine((weight, bias), reach, each)
    size = abs(exactly(each.centre)) + abs(exactly(each.generators)).sum(axis=1) + exactly(each.radius)
    radius = abs(exactly(weight)) @ exactly(each.radius) + exactly(reach[0]) @ size + exactly(reach[1])
    return bool(
        (
            missing(found, exactly(weight) @ exactly(each.centre) + exactly(bias), times(weight, each.generators), radius) > 0
        ).any()
    )


def change_is_short(rng: np.random.Generator) -> bool:
    """The symbols of the perturbed network's values besides the inputs' count as radius."""
    change, perturbed = form(rng), form(rng, INPUTS + 2)
    layer = Dense(numbers(rng, NEURONS, NEURONS), numbers(rng, NEURONS), Activation.RELU)
    ends = [np.abs(numbers(rng, *each.shape)) * 1e-3 for each in (layer.weight, layer.bias)]
    box = Interval(layer.weight - ends[0], layer.weight), Interval(layer.bias - ends[1], layer.bias)
    twin = TwinLayer.of(layer.activation, (Interval.point(layer.weight), Interval.point(layer.bias)), box)
    found = changed(twin, change, perturbed, INPUTS)
    (deviation, bias), (reach, bias_reach) = twin.change, twin.change_reach
    centre = exactly(layer.weight) @ exactly(change.centre) + exactly(deviation) @ exactly(perturbed.centre) + exactly(bias)
    generators = times(layer.weight, change.generators)
    generators[:, :INPUTS] += times(deviation, perturbed.generators[:, :INPUTS])
    others = abs(exactly(perturbed.generators[:, INPUTS:])).sum(axis=1) + exactly(perturbed.radius)
    size = abs(exactly(perturbed.centre)) + abs(exactly(perturbed.generators)).sum(axis=1) + exactly(perturbed.radius)
    radius = abs(exactly(layer.weight)) @ exactly(change.radius) + abs(exactly(deviation)) @ others
    radius = radius + exactly(reach) @ size + exactly(bias_reach)
    return bool((missing(found, centre, generators, radius) > 0).any())


def ball_is_short(rng: np.random.Generator) -> bool:
    box = reaches(rng, 1)
    middle, reach = (exactly(part) for part in ball(box))
    return bool(((middle - reach > exactly(box.lower)) | (middle + reach < exactly(box.upper))).any())


def relu_is_short(rng: np.random.Generator) -> bool:
    """The ends and the kink are what counts: between them both sides are lines."""
    size = np.where(rng.random((NEURONS, BOXES)) < 0.5, TINY, np.abs(numbers(rng, NEURONS, BOXES)))  # half of TINY is no float
    z = Interval(-size, size)
    band = relu_band(z)
    points = (exactly(end) for end in (z.lower, z.upper, np.zeros(z.shape)))
    off = (abs(np.maximum(x, 0) - exactly(band.slope) * x - exactly(band.centre)) - exactly(band.reach) for x in points)
    return any(bool((each > 0).any()) for each in off)


def difference_is_short(rng: np.random.Generator) -> bool:
    """At pairs of values that are corners of both ranges and of the difference's."""
    stored, change = reaches(rng, 10.0), reaches(rng, 0.1)
    z = exactly(stored.lower), exactly(stored.upper)
    moved = [a + exactly(d) for a in z for d in (change.lower, change.upper)]
    perturbed = stored + change
    band = difference_band(Pair(stored, perturbed, change))
    for place, after in enumerate(moved):
        before = z[place // 2]
        off = abs(np.maximum(after, 0) - np.maximum(before, 0) - exactly(band.slope) * (after - before) - exactly(band.centre))
        if (off > exactly(band.reach)).any():
            return True
    return False


STEPS = {
    step.__name__: step
    for step in (
        range_is_short,
        band_is_short,
        widened_band_is_short,
        affine_is_short,
        change_is_short,
        ball_is_short,
        relu_is_short,
        difference_is_short,
    )
}
BY_SLACK = ("range_is_short", "band_is_short", "widened_band_is_short", "affine_is_short", "change_is_short")
BY_ROUNDING = ("ball_is_short", "relu_is_short", "difference_is_short")


@pytest.mark.parametrize("name", STEPS)
def test_a_step_holds_what_is_exact(name: str) -> None:
    assert not any(STEPS[name](np.random.default_rng(seed)) for seed in range(12))


@pytest.mark.parametrize("name", [*BY_SLACK, *BY_ROUNDING])
def test_a_step_without_its_rounding_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for rounds in ("up", "down"):
        monkeypatch.setattr(zonotopes, rounds, lambda values: values)
    if name in BY_SLACK:
        monkeypatch.setattr(zonotopes, "sum_slack", lambda terms, sizes: np.zeros_like(sizes))
        monkeypatch.setattr(zonotopes, "UNDERFLOW", 0.0)
    assert any(STEPS[name](np.random.default_rng(seed)) for seed in range(12))
