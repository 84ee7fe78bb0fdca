"""Ranges with the ends nearer to 0 moved: they enclose exact pre-activations, and they are narrower."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from qrobust.bounds import substitution, untuned
from qrobust.bounds.near_ends import nearer_ends
from qrobust.bounds.stages import interval_step, stored_stages
from qrobust.bounds.substitution import Levels
from qrobust.bounds.zonotopes import TwinZonotopes
from qrobust.exact import ExactArithmetic, to_exact, to_rational
from qrobust.interval import FloatArray, Interval, relu
from qrobust.network import Activation, Dense, Network, Output, logits
from qrobust.perturbations import Absolute, Copy
from tests.conftest import RandomNetwork
from tests.test_zonotopes import boxes_of, points_in, rounded_copy


def steps(network: Network, boxes: Interval) -> tuple[Levels, list[Interval]]:
    """The network's levels, and the ranges of all by interval steps."""
    levels, ranges = Levels(Activation.LINEAR, stored_stages(network)), [boxes]
    for number, stage in enumerate(levels.stages):
        ranges.append(interval_step(stage, ranges[-1] if not number else relu(ranges[-1])))
    return levels, ranges


def exact_logits(network: Network, x: FloatArray) -> list[Fraction]:
    return [to_rational(v) for v in logits(network, to_exact([Fraction(v) for v in x.tolist()]), ExactArithmetic())]


@pytest.mark.parametrize("width", [1.0, 0.1])
def test_they_enclose_and_move_the_end_nearer_to_zero(width: float, random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(6)
    network, boxes = random_network(rng, (3, 8, 8, 6)), boxes_of(rng, 8, 3, width)
    levels, ranges = steps(network, boxes)
    found, before = nearer_ends(levels, ranges[:-1], ranges[-1]), ranges[-1]
    open_ends = (before.lower < 0) & (before.upper > 0)
    upper_is_near = before.upper < -before.lower
    assert ((found.lower == before.lower) | (open_ends & ~upper_is_near)).all()
    assert ((found.upper == before.upper) | (open_ends & upper_is_near)).all()
    assert found.width[open_ends].sum() < 0.9 * before.width[open_ends].sum()
    for number in range(len(boxes)):
        for x in points_in(boxes[number], rng):
            values = exact_logits(network, x)
            ends = zip(values, found.lower[number].tolist(), found.upper[number].tolist(), strict=True)
            assert all(Fraction(low) <= value <= Fraction(high) for value, low, high in ends)


def cancelling() -> tuple[Network, FloatArray]:
    """x - x by a million million, plus 0: the second logit of a point is 0 exactly, and its rounded bounds are around it."""
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(30, 2)) * 1e6
    first = Dense(np.concatenate([weight, weight]), np.full(60, 1e8), Activation.RELU)
    last = rng.normal(size=(5, 30)) * 1e6
    network = Network((first, Dense(np.concatenate([last, -last], axis=1), np.zeros(5))), Output.SOFTMAX)
    return network, rng.normal(size=(20, 2))


def test_the_rounding_of_sums_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    network, points = cancelling()
    levels, ranges = steps(network, Interval.point(points))
    assert all(value == 0 for x in points for value in exact_logits(network, x))

    def wrong() -> bool:
        found = nearer_ends(levels, ranges[:-1], ranges[-1])
        return bool(((found.lower > 0) | (found.upper < 0)).any())

    assert not wrong()
    for module in (substitution, untuned):
        monkeypatch.setattr(module, "rounding", lambda terms, sizes: np.zeros_like(sizes))
    assert wrong(), "bounds without their rounding slack pass this test: it shows nothing"


def test_narrowing_takes_much_of_the_bound_and_only_where_it_is_wanted(random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(5)
    network = random_network(rng, (3, 16, 16, 16, 2))
    for parameters in (Copy(rounded_copy(network, 5)).around(network), Absolute(0.01).around(network)):
        twins, boxes = TwinZonotopes(network, parameters), boxes_of(rng, 60, 3, 0.2)
        none = twins.changes(boxes, np.zeros(60, dtype=bool))
        half = twins.changes(boxes, np.arange(60) < 30)
        assert np.isnan(none.gain).all()
        assert np.isnan(half.gain[30:]).all()
        np.testing.assert_allclose(half.greatest, np.where(np.arange(60) < 30, 1 - half.gain, 1.0) * none.greatest)
        assert (half.gain[:30] >= 0).all()
        assert half.gain[:30].max() > 0.1
        limit = float(np.median(none.greatest))
        assert (np.isnan(twins.changes(boxes, limit=limit).gain) == (none.greatest <= limit)).all()
