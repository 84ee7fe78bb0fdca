"""Differential zonotopes: they enclose the exact change of every logit, are tight, and do not depend on the batch."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from qrobust.bounds import zonotopes
from qrobust.bounds.differential import Pair
from qrobust.bounds.zonotopes import TwinZonotopes, difference_band, relu_band
from qrobust.domains import Parameters
from qrobust.errors import EnclosureError
from qrobust.exact import ExactArithmetic, to_exact, to_rational
from qrobust.interval import FloatArray, Interval
from qrobust.network import Activation, Dense, Network, Output, logits, perturbed_logits
from qrobust.perturbations import Absolute, Copy
from tests.conftest import RandomNetwork

SIZES = [(2, 3, 2), (3, 5, 4, 1), (5, 8, 8, 8, 5), (1, 1), (2, 6, 6, 3)]


def rounded_copy(network: Network, bits: int) -> Network:
    """Every parameter rounded to so many binary digits after the point."""
    step = 2.0**-bits
    layers = [
        Dense(np.rint(layer.weight / step) * step, np.rint(layer.bias / step) * step, layer.activation)
        for layer in network.layers
    ]
    return Network(tuple(layers), network.output)


def exact_change(network: Network, parameters: Parameters, x: FloatArray) -> list[Fraction]:
    arithmetic, point = ExactArithmetic(), to_exact([Fraction(v) for v in x.tolist()])
    before = logits(network, point, arithmetic)
    after = perturbed_logits(network, [(to_exact(w), to_exact(b)) for w, b in parameters], point, arithmetic)
    return [to_rational(b) - to_rational(a) for a, b in zip(before, after, strict=True)]


def boxes_of(rng: np.random.Generator, count: int, inputs: int, width: float) -> Interval:
    middle = rng.normal(size=(count, inputs))
    reach = width * rng.random((count, inputs)) * (rng.random((count, inputs)) < 0.8)  # some sides have no width
    return Interval(middle - reach, middle + reach)


def points_in(box: Interval, rng: np.random.Generator) -> list[FloatArray]:
    corners = [np.array(c) for c in product(*zip(box.lower.tolist(), box.upper.tolist(), strict=True))]
    inside = np.clip(box.lower + rng.random((4, len(box))) * box.width, box.lower, box.upper)
    return [*corners, *inside, box.middle]


def escapes(found: Interval, network: Network, parameters: Parameters, x: FloatArray) -> bool:
    """Whether an exact change lies outside the bounds of its box."""
    ends = zip(exact_change(network, parameters, x), found.lower.tolist(), found.upper.tolist(), strict=True)
    return any(not Fraction(low) <= value <= Fraction(high) for value, low, high in ends)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("width", [1.0, 0.05, 1e-9])
def test_they_enclose_the_change_of_a_copy(sizes: tuple[int, ...], width: float, random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(len(sizes))
    network = random_network(rng, sizes)
    copy = rounded_copy(network, 6)
    stored = tuple((layer.weight, layer.bias) for layer in copy.layers)
    boxes = boxes_of(rng, 6, sizes[0], width)
    found = TwinZonotopes(network, Copy(copy).around(network)).changes(boxes).change
    for number in range(len(boxes)):
        for x in points_in(boxes[number], rng):
            assert not escapes(found[number], network, stored, x)


@pytest.mark.parametrize("sizes", SIZES)
def test_they_enclose_the_change_of_every_choice_in_a_box(sizes: tuple[int, ...], random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(7)
    network = random_network(rng, sizes)
    box = Absolute(0.125).around(network)
    boxes = boxes_of(rng, 4, sizes[0], 0.2)
    found = TwinZonotopes(network, box).changes(boxes).change
    for number in range(len(boxes)):
        for x in points_in(boxes[number], rng):
            signs = [[rng.choice([-0.125, 0.125], a.shape) for a in (layer.weight, layer.bias)] for layer in network.layers]
            chosen = tuple(
                (to_exact(layer.weight) + to_exact(w), to_exact(layer.bias) + to_exact(b))
                for layer, (w, b) in zip(network.layers, signs, strict=True)
            )
            rational = tuple((np.array([to_fractions(r) for r in w]), np.array(to_fractions(b))) for w, b in chosen)
            assert not escapes(found[number], network, rational, x)


def to_fractions(values: object) -> list[Fraction]:
    return [to_rational(v) for v in values]  # type: ignore[attr-defined]


def test_at_a_point_they_are_exact_up_to_rounding(random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(3)
    network = random_network(rng, (4, 10, 10, 3))
    copy = rounded_copy(network, 8)
    points = rng.normal(size=(50, 4))
    change = TwinZonotopes(network, Copy(copy).around(network)).changes(Interval.point(points)).change
    assert change.width.max() < 1e-11
    stored = tuple((layer.weight, layer.bias) for layer in copy.layers)
    for x, low, high in zip(points[:5], change.lower, change.upper, strict=False):
        for value, a, b in zip(exact_change(network, stored, x), low.tolist(), high.tolist(), strict=True):
            assert Fraction(a) <= value <= Fraction(b)


def test_without_switches_they_are_exact_on_a_box() -> None:
    """x in [1, 2]: relu(x) against relu(1.5 x) + 0.25, times 2: the change is x + 0.5, from 1.5 to 2.5."""
    first, last = Dense(np.array([[1.0]]), np.zeros(1), Activation.RELU), Dense(np.array([[2.0]]), np.zeros(1))
    network = Network((first, last), Output.SIGMOID)
    copy = Network((Dense(np.array([[1.5]]), np.array([0.25]), Activation.RELU), last), Output.SIGMOID)
    found = TwinZonotopes(network, Copy(copy).around(network)).changes(Interval(np.array([[1.0]]), np.array([[2.0]])))
    assert found.change.lower[0, 0] == pytest.approx(1.5, abs=1e-12)
    assert found.change.upper[0, 0] == pytest.approx(2.5, abs=1e-12)
    assert found.favoured.tolist() == [[2.0]]


def test_identical_networks_do_not_differ(random_network: RandomNetwork) -> None:
    network = random_network(np.random.default_rng(0), (3, 6, 6, 2))
    found = TwinZonotopes(network, Copy(network).around(network)).changes(boxes_of(np.random.default_rng(1), 5, 3, 2.0))
    assert found.change.width.max() < 1e-12


def test_smaller_boxes_come_near_the_change(random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(5)
    network = random_network(rng, (3, 12, 12, 2))
    twins = TwinZonotopes(network, Copy(rounded_copy(network, 5)).around(network))
    middle = rng.normal(size=(40, 3))
    widths = [twins.changes(Interval(middle - r, middle + r)).change.width.mean() for r in (1.0, 0.1, 0.01, 0.001)]
    assert widths[0] > widths[1] > widths[2] > widths[3]
    assert widths[3] < 0.02 * widths[0]


def test_a_batch_gives_what_single_boxes_give(random_network: RandomNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(11)
    network = random_network(rng, (3, 7, 7, 4))
    twins, boxes = TwinZonotopes(network, Copy(rounded_copy(network, 5)).around(network)), boxes_of(rng, 30, 3, 0.5)
    together = twins.changes(boxes)
    alone = [twins.changes(boxes[i : i + 1]) for i in range(len(boxes))]
    monkeypatch.setattr(zonotopes, "NUMBERS", 1)
    for parts in (alone, [twins.changes(boxes)]):
        for name in ("influence", "favoured"):
            np.testing.assert_allclose(np.concatenate([getattr(p, name) for p in parts]), getattr(together, name), atol=1e-9)
        for end in ("lower", "upper"):
            ends = np.concatenate([getattr(p.change, end) for p in parts])
            np.testing.assert_allclose(ends, getattr(together.change, end), rtol=1e-9, atol=1e-12)


def cancelling() -> tuple[Network, Network, Interval]:
    """Sums of huge terms that cancel: what rounding takes from them is all that is left of the change."""
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(40, 3)) * 1e6
    first = Dense(weight, rng.normal(size=40), Activation.LINEAR)
    last = Dense(np.concatenate([np.full(20, 1e6), np.full(20, -1e6)])[None] * rng.normal(size=(1, 40)), np.zeros(1))
    network = Network((first, last), Output.SIGMOID)
    copy = Network((Dense(weight * (1 + 2.0**-50), first.bias), last), Output.SIGMOID)
    return network, copy, Interval.point(rng.normal(size=(20, 3)))


def test_the_rounding_of_sums_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    network, copy, boxes = cancelling()
    stored = tuple((layer.weight, layer.bias) for layer in copy.layers)

    def wrong() -> bool:
        try:
            found = TwinZonotopes(network, Copy(copy).around(network)).changes(boxes).change
        except EnclosureError:  # enclosures that do not meet
            return True
        return any(escapes(found[i], network, stored, boxes.lower[i]) for i in range(len(boxes)))

    assert not wrong()
    monkeypatch.setattr(zonotopes, "sum_slack", lambda terms, sizes: np.zeros_like(sizes))
    assert wrong(), "bounds without their rounding slack pass this test: it shows nothing"


def test_sums_that_overflow_leave_true_bounds() -> None:
    layers = tuple(Dense(np.full((3, 3), 1e200), np.zeros(3), Activation.RELU) for _ in range(3))
    network = Network((*layers, Dense(np.full((1, 3), 1.0), np.zeros(1))), Output.SIGMOID)
    copy = Network(
        (*layers[:2], layers[2].with_parameters(np.full((3, 3), 1.5e200), np.zeros(3)), network.layers[3]), Output.SIGMOID
    )
    boxes = Interval(np.full((2, 3), -1.0), np.full((2, 3), 1.0))
    found = TwinZonotopes(network, Copy(copy).around(network)).changes(boxes).change
    assert (found.upper == np.inf).all()


def random_pairs(rng: np.random.Generator) -> tuple[Pair, FloatArray, FloatArray]:
    """Many z and z' = z + dz, and intervals around them, some touching 0."""
    z, change = rng.normal(size=(40, 500)), rng.normal(size=(40, 500)) * rng.choice([0.01, 1.0, 100.0], (40, 500))
    reach = rng.random((3, 2, 40, 500)) * rng.choice([0.0, 0.1, 3.0], (3, 2, 40, 500))
    exact = [z, z + change, (z + change) - z]
    ends = [
        Interval(np.nextafter(v - r[0], -np.inf), np.nextafter(v + r[1], np.inf)) for v, r in zip(exact, reach, strict=True)
    ]
    return Pair(*ends), exact[0], exact[1]


def test_bands_hold_what_they_are_around() -> None:
    pair, z, after = random_pairs(np.random.default_rng(4))
    change = after - z
    for band, value, of in (
        (relu_band(pair.stored), np.maximum(z, 0), z),
        (difference_band(pair), np.maximum(after, 0) - np.maximum(z, 0), change),
    ):
        off = np.abs(value - band.slope * of - band.centre)
        assert (off <= band.reach + 1e-12 * (1 + np.abs(of))).all()
        assert (off > 0.9 * band.reach)[band.reach > 0].any(), "the bands are wider than they need to be"
