"""Sets of inputs and parameters, the rules that make them, and the queries over them: validation and membership."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from qrobust.domains import Bounds, Domain, InputBox, LayerBox, ParameterBox, Point, Points, Polytope
from qrobust.errors import DomainError, NumberError, QRobustError, ShapeError
from qrobust.interval import Expansion
from qrobust.network import Dense, Feature, Network, Output
from qrobust.perturbations import Absolute, Hull, PerLayer
from qrobust.queries import (
    GlobalConfidence,
    GlobalEpsilon,
    GlobalLabel,
    GreatestDelta,
    LocalConfidence,
    LocalEpsilon,
    LocalLabel,
    MarginLabel,
    SigmaEstimate,
)
from tests.conftest import RandomNetwork

SQUARE = InputBox([0.0, 0.0], [1.0, 1.0])
TRIANGLE = Polytope(SQUARE, [[1.0, 1.0]], [1.0])
LEAST = Fraction(1, 2**1074)


def refusal(make: Callable[[], object], kind: type[QRobustError]) -> str:
    """Return the one line with which something is refused."""
    with pytest.raises(kind) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: Point([]), ShapeError),
        (lambda: Point([[1.0]]), ShapeError),
        (lambda: Point(["a"]), ShapeError),
        (lambda: Point([math.nan]), NumberError),
        (lambda: Point([math.inf]), NumberError),
        (lambda: Points([1.0]), ShapeError),
        (lambda: Points(np.zeros((0, 2))), ShapeError),
        (lambda: Points([[1.0], [math.nan]]), NumberError),
        (lambda: Points([[1.0], [1.0, 2.0]]), ShapeError),
        (lambda: InputBox([0.0], [1.0, 2.0]), ShapeError),
        (lambda: InputBox([0.0, 2.0], [1.0, 1.0]), DomainError),
        (lambda: InputBox([-math.inf], [0.0]), NumberError),
        (lambda: Polytope(SQUARE, [[1.0]], [1.0]), ShapeError),
        (lambda: Polytope(SQUARE, [[1.0, 1.0]], [1.0, 2.0]), ShapeError),
        (lambda: Polytope(SQUARE, [[1.0, math.nan]], [1.0]), NumberError),
        (lambda: Polytope(SQUARE, [[1.0, 1.0]], [math.inf]), NumberError),
    ],
)
def test_a_domain_that_makes_no_sense_is_refused(make: Callable[[], object], kind: type[QRobustError]) -> None:
    refusal(make, kind)


def test_a_crossed_box_names_the_input() -> None:
    assert "input 2 of the box has its lower end 2 above its upper end 1" in refusal(
        lambda: InputBox([0.0, 2.0], [1.0, 1.0]), DomainError
    )


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (Point([0.1, 0.2]), (Fraction(0.1), Fraction(0.2)), (Fraction(1, 10), Fraction(0.2))),
        (SQUARE, (Fraction(1), Fraction(0)), (1 + LEAST, Fraction(0))),
        (SQUARE, (LEAST, Fraction(1, 3)), (-LEAST, Fraction(1, 3))),
        (TRIANGLE, (Fraction(1, 3), Fraction(2, 3)), (Fraction(1, 3), Fraction(2, 3) + LEAST)),
        (TRIANGLE, (Fraction(0), Fraction(1)), (Fraction(1, 2), Fraction(-1, 2))),
        (Points([[0.1, 1.0], [0.3, 2.0]]), (Fraction(0.3), Fraction(2)), (Fraction(0.1), Fraction(2))),
        (Points([[0.1, 1.0], [0.3, 2.0]]), (Fraction(0.1), Fraction(1)), (Fraction(5), Fraction(5))),
        (InputBox([0.5], [0.5]), (Fraction(1, 2),), (Fraction(1, 2) + LEAST,)),
    ],
)
def test_membership_is_exact(domain: Domain, inside: tuple[Fraction, ...], outside: tuple[Fraction, ...]) -> None:
    assert domain.contains(inside)
    assert not domain.contains(outside)


def test_domains_have_their_boxes() -> None:
    points = Points([[1.0, 5.0], [2.0, -1.0], [3.0, 0.0]])
    for domain, lower, upper in (
        (Point([1.0, 2.0]), [1.0, 2.0], [1.0, 2.0]),
        (points, [1.0, -1.0], [3.0, 5.0]),
        (SQUARE, [0.0, 0.0], [1.0, 1.0]),
        (TRIANGLE, [0.0, 0.0], [1.0, 1.0]),
    ):
        assert domain.inputs == 2
        assert (domain.box.lower.tolist(), domain.box.upper.tolist()) == (lower, upper)


def test_domains_say_what_they_are() -> None:
    assert str(SQUARE) == "the box [0, 1] x [0, 1]"
    assert str(TRIANGLE) == "the box [0, 1] x [0, 1] cut by 1 inequalities"
    assert TRIANGLE.to_json() == {"lower": [0, 0], "upper": [1, 1], "matrix": [[1, 1]], "limit": [1]}
    assert Points([[1.0]]).to_json() == {"points": [[1.0]]}
    assert SQUARE.to_json() == {"lower": [0, 0], "upper": [1, 1]}


def test_a_box_of_feature_ranges(cat: Network) -> None:
    layers, output = cat.layers, cat.output
    known = Network(layers, output, features=(Feature("a", "", 1.0, 2.0), Feature("b", "", 3.0, 4.0)))
    box = InputBox.of_features(known)
    assert (box.lower.tolist(), box.upper.tolist()) == ([1.0, 3.0], [2.0, 4.0])
    assert "names no input ranges" in refusal(lambda: InputBox.of_features(cat), DomainError)
    for half in (Feature("b", "", 3.0, None), Feature("b", "", None, 4.0)):
        network = Network(layers, output, features=(known.features[0], half))
        assert "names no input ranges" in refusal(lambda network=network: InputBox.of_features(network), DomainError)  # type: ignore[misc]


def test_absolute_is_exact(cat: Network) -> None:
    """0.1 + 0.07577862 is no float; the box ends at the real number."""
    box = Absolute(0.1).around(cat)
    low, high = box.layers[0].weight.fractions
    stored = [Fraction(value) for value in cat.layers[0].weight[0].tolist()]
    assert low[0].tolist() == [value - Fraction(0.1) for value in stored]
    assert high[0].tolist() == [value + Fraction(0.1) for value in stored]
    weight = box.layers[0].weight.interval
    assert all(Fraction(a) <= b for a, b in zip(weight.lower[0].tolist(), low[0], strict=True))
    assert all(Fraction(a) >= b for a, b in zip(weight.upper[0].tolist(), high[0], strict=True))
    assert np.all(weight.upper - weight.lower < 0.2 + 1e-15)


@pytest.mark.parametrize("delta", [0.0, 1e-30, 1e-9, 0.3, 1e30])
def test_every_ball_contains_its_centre(delta: float, random_network: RandomNetwork) -> None:
    network = random_network(np.random.default_rng(0), (2, 3, 1))
    assert Absolute(delta).around(network).contains_network(network)


def test_a_rule_for_weights_or_biases_alone(cat: Network) -> None:
    weights, biases = (Absolute(0.1, *which).around(cat).layers[0] for which in ((True, False), (False, True)))
    assert weights.weight.interval.width.min() > 0.19
    assert weights.bias.fractions[0].tolist() == weights.bias.fractions[1].tolist() == [Fraction(-3.51518067)]
    assert biases.weight.interval.width.max() == 0.0
    assert biases.bias.interval.width.min() > 0.19
    assert Absolute(0.1, biases=False).around(cat).rule == "every weight within 0.1 of its stored value"


def test_a_delta_for_each_layer(random_network: RandomNetwork) -> None:
    network = random_network(np.random.default_rng(0), (2, 3, 1))
    box = PerLayer((0.0, 0.5)).around(network)
    assert box.layers[0].weight.interval.width.max() == 0.0
    assert box.layers[1].weight.interval.width.min() == pytest.approx(1.0)
    assert "1 deltas for 2 layers" in refusal(lambda: PerLayer((0.1,)).around(network), ShapeError)


@pytest.mark.parametrize("delta", [-1e-9, math.nan, math.inf, -math.inf])
def test_a_delta_that_makes_no_sense_is_refused(delta: float) -> None:
    assert "finite number >= 0" in refusal(lambda: Absolute(delta), NumberError)
    assert "finite number >= 0" in refusal(lambda: PerLayer((0.1, delta)), NumberError)


def test_nothing_to_perturb_is_refused() -> None:
    assert "allow one of them" in refusal(lambda: Absolute(0.1, weights=False, biases=False), NumberError)


def test_a_hull_contains_both_networks_and_nothing_beyond(cat: Network) -> None:
    other = Network((Dense(np.array([[0.25, 1.0]]), np.array([-4.0])),), Output.SIGMOID, name="int8")
    box = Hull(other).around(cat)
    assert box.contains_network(cat)
    assert box.contains_network(other)
    beyond = Network((Dense(np.nextafter(other.layers[0].weight, [[1.0, 0.0]]), other.layers[0].bias),), Output.SIGMOID)
    assert not box.contains_network(beyond)
    assert "int8" in box.rule
    wider = Network((Dense(np.ones((1, 3)), np.zeros(1)),), Output.SIGMOID)
    assert "the second network has weights" in refusal(lambda: Hull(wider).around(cat), ShapeError)


def test_parameters_in_a_box_to_the_last_bit(cat: Network) -> None:
    box = Absolute(0.1).around(cat)
    low, high = box.layers[0].weight.fractions
    bias = box.layers[0].bias.fractions[0]
    assert box.contains(((low, bias),))
    assert box.contains(((high, bias),))
    assert not box.contains(((low - LEAST, bias),))
    assert not box.contains(((high + LEAST, bias),))
    assert not box.contains(((low, bias - LEAST),))
    assert not box.contains(((low[:, :1], bias),))
    assert not box.contains(())
    assert not box.contains(((low, bias), (low, bias)))


def test_one_parameter_outside_is_enough(random_network: RandomNetwork) -> None:
    """Every single weight and bias of a box of two layers, moved beyond either end of its bounds by the least step."""
    box = Absolute(0.1).around(random_network(np.random.default_rng(0), (2, 3, 1)))
    ends = [[(a.weight.fractions[i].copy(), a.bias.fractions[i].copy()) for a in box.layers] for i in (0, 1)]
    moved = 0
    for corner, step in zip(ends, (-LEAST, LEAST), strict=True):
        assert box.contains(tuple(corner))
        for array in (array for pair in corner for array in pair):
            for index in np.ndindex(array.shape):
                array[index] += step
                assert not box.contains(tuple(corner))
                array[index] -= step
                moved += 1
        assert box.contains(tuple(corner))
    assert moved == 2 * 13


def test_one_parameter_of_a_network_outside_is_enough(random_network: RandomNetwork) -> None:
    network = random_network(np.random.default_rng(0), (2, 3, 1))
    still = Absolute(0.0).around(network)
    assert still.contains_network(network)
    moved = 0
    for number, layer in enumerate(network.layers):
        for name in ("weight", "bias"):
            for index in np.ndindex(getattr(layer, name).shape):
                values = getattr(layer, name).copy()
                values[index] = np.nextafter(values[index], np.inf)
                layers = list(network.layers)
                layers[number] = replace(layer, **{name: values})
                assert not still.contains_network(replace(network, layers=tuple(layers)))
                moved += 1
    assert moved == network.parameter_count == 13


def arrays(*values: float) -> list[tuple[list[list[float]], list[float]]]:
    """Weights (1, 1) and a bias for one layer."""
    return [([[values[0]]], [values[1]])]


@pytest.mark.parametrize(
    ("lower", "upper", "kind"),
    [
        (arrays(1.0, 0.0), arrays(0.5, 0.0), NumberError),
        (arrays(0.0, 1.0), arrays(0.0, 0.5), NumberError),
        (arrays(math.nan, 0.0), arrays(1.0, 0.0), NumberError),
        (arrays(0.0, 0.0), arrays(math.inf, 0.0), NumberError),
        (arrays(0.0, 0.0), arrays(1.0, 0.0) * 2, ShapeError),
        (arrays(0.0, 0.0), [([[1.0, 1.0]], [0.0])], ShapeError),
        ([([0.0], [0.0])], [([0.0], [0.0])], ShapeError),
    ],
)
def test_bounds_that_make_no_sense_are_refused(lower: list[object], upper: list[object], kind: type[QRobustError]) -> None:
    refusal(lambda: ParameterBox.from_arrays(lower, upper), kind)  # type: ignore[arg-type]


def test_ends_that_cross_in_the_tail_are_refused() -> None:
    one, less, more = np.array([1.0]), np.array([-1e-20]), np.array([1e-20])
    Bounds(Expansion(one, less), Expansion(one, more))
    assert "swap them" in refusal(lambda: Bounds(Expansion(one, more), Expansion(one, less)), NumberError)


def test_a_box_must_fit_its_network(cat: Network) -> None:
    shifted = ParameterBox.from_arrays([([[1.0, 1.0]], [0.0])], [([[2.0, 2.0]], [0.0])])
    assert "leaves out the network's own parameters" in refusal(lambda: shifted.check_fits(cat), NumberError)
    ParameterBox(shifted.layers, shifted=True).check_fits(cat)
    wider = ParameterBox.from_arrays([([[1.0]], [0.0])], [([[2.0]], [0.0])])
    assert "the network" in refusal(lambda: wider.check_fits(cat), ShapeError)


def test_the_hash_of_a_box_is_of_its_exact_bounds(cat: Network) -> None:
    one, same, other = Absolute(0.1), Absolute(0.1), Absolute(math.nextafter(0.1, 1.0))
    assert one.around(cat).sha256 == same.around(cat).sha256 != other.around(cat).sha256
    boxes = [
        ParameterBox.from_arrays(arrays(*lower), arrays(*upper))
        for lower, upper in (((0, 0), (1, 1)), ((-1, 0), (1, 1)), ((0, -1), (1, 1)), ((0, 0), (2, 1)), ((0, 0), (1, 2)))
    ]
    assert len({box.sha256 for box in boxes}) == len(boxes)
    minus = ParameterBox.from_arrays(arrays(-0.0, -0.0), arrays(1, 1))
    assert minus.sha256 == boxes[0].sha256


def test_the_hash_of_a_box_sees_what_one_float_cannot() -> None:
    """1 - 2**-60 and 1 are one float."""
    one, tail = np.array([1.0]), np.array([2.0**-60])
    hashes = set()
    for lower, upper in ((0 * tail, 0 * tail), (-tail, 0 * tail), (0 * tail, tail), (-tail, tail)):
        bias = Bounds(Expansion(one, lower), Expansion(one, upper))
        weight = Bounds(Expansion(one[None], lower[None]), Expansion(one[None], upper[None]))
        hashes.add(ParameterBox((LayerBox(weight, bias),)).sha256)
    assert len(hashes) == 4


def softmax_network() -> Network:
    return Network((Dense(np.eye(3)[:, :2], np.zeros(3)),), Output.SOFTMAX)


@pytest.mark.parametrize("kind", [LocalConfidence, LocalEpsilon, LocalLabel])
def test_a_local_query_is_about_a_point(kind: type, cat: Network) -> None:
    box = Absolute(0.1).around(cat)
    own = {"epsilon": Fraction(1, 10)} if kind is LocalConfidence else {}
    kind(cat, box, Point([1.0, 1.0]), **own)
    assert "use the global one" in refusal(lambda: kind(cat, box, SQUARE, **own), DomainError)


@pytest.mark.parametrize("domain", [Point([1.0]), InputBox([0.0] * 3, [1.0] * 3)])
def test_a_domain_must_fit_the_network(domain: Domain, cat: Network) -> None:
    assert "the network takes 2" in refusal(lambda: GlobalEpsilon(cat, Absolute(0.1).around(cat), domain), ShapeError)
    assert "the network takes 2" in refusal(lambda: GreatestDelta(cat, domain), ShapeError)


def test_a_box_of_another_network_is_refused(cat: Network, random_network: RandomNetwork) -> None:
    other = random_network(np.random.default_rng(0), (2, 3, 1))
    refusal(lambda: GlobalEpsilon(cat, Absolute(0.1).around(other), SQUARE), ShapeError)


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, math.nan, math.inf, "a tenth", None])
def test_an_epsilon_that_makes_no_sense_is_refused(epsilon: object, cat: Network) -> None:
    box = Absolute(0.1).around(cat)
    refusal(lambda: GlobalConfidence(cat, box, SQUARE, epsilon), NumberError)  # type: ignore[arg-type]


def test_numbers_of_queries_are_exact(cat: Network) -> None:
    box = Absolute(0.1).around(cat)
    assert GlobalConfidence(cat, box, SQUARE, "0.1").epsilon == Fraction(1, 10)  # type: ignore[arg-type]
    assert GlobalConfidence(cat, box, SQUARE, 0.1).epsilon == Fraction(0.1)  # type: ignore[arg-type]
    query = MarginLabel(cat, box, SQUARE, "1/3", "0.05")  # type: ignore[arg-type]
    assert (query.level, query.sigma) == (Fraction(1, 3), Fraction(1, 20))


def test_numbers_at_their_limits(cat: Network) -> None:
    box = Absolute(0.1).around(cat)
    for limit in (Fraction(0), Fraction(1)):
        assert GlobalConfidence(cat, box, SQUARE, limit).epsilon == limit
        assert MarginLabel(cat, box, SQUARE, sigma=limit).sigma == limit
    assert "must lie between 0 and 1" in refusal(lambda: GlobalConfidence(cat, box, SQUARE, Fraction(2)), NumberError)
    assert "must lie strictly between 0 and 1" in refusal(lambda: GlobalLabel(cat, box, SQUARE, Fraction(1)), NumberError)


@pytest.mark.parametrize("level", [0, 1, -0.5, 1.5, math.nan])
def test_a_level_that_makes_no_sense_is_refused(level: float, cat: Network) -> None:
    box = Absolute(0.1).around(cat)
    refusal(lambda: GlobalLabel(cat, box, SQUARE, level), NumberError)  # type: ignore[arg-type]
    refusal(lambda: SigmaEstimate(cat, box, SQUARE, 0, level), NumberError)  # type: ignore[arg-type]
    refusal(lambda: GreatestDelta(cat, SQUARE, level=level), NumberError)  # type: ignore[arg-type]


def test_a_softmax_has_no_level() -> None:
    network = softmax_network()
    box = Absolute(0.1).around(network)
    GlobalLabel(network, box, SQUARE)
    assert "no decision level" in refusal(lambda: GlobalLabel(network, box, SQUARE, Fraction(1, 3)), NumberError)


@pytest.mark.parametrize("sigma", [-0.01, 1.01, math.nan])
def test_a_sigma_that_makes_no_sense_is_refused(sigma: float, cat: Network) -> None:
    box = Absolute(0.1).around(cat)
    refusal(lambda: MarginLabel(cat, box, SQUARE, sigma=sigma), NumberError)  # type: ignore[arg-type]
    refusal(lambda: GreatestDelta(cat, SQUARE, sigma=sigma), NumberError)  # type: ignore[arg-type]


def test_a_global_label_query_has_no_sigma(cat: Network) -> None:
    box = Absolute(0.1).around(cat)
    assert "use MarginLabel" in refusal(lambda: GlobalLabel(cat, box, SQUARE, sigma=Fraction(1, 10)), NumberError)


@pytest.mark.parametrize(("label", "network"), [(-1, None), (2, None), (3, softmax_network())])
def test_a_label_that_is_no_class_is_refused(label: int, network: Network | None, cat: Network) -> None:
    network = network or cat
    box = Absolute(0.1).around(network)
    assert "counted from 0" in refusal(lambda: SigmaEstimate(network, box, SQUARE, label), NumberError)


def test_the_query_of_one_delta(cat: Network) -> None:
    at_point = GreatestDelta(cat, Point([1.0, 2.0]), level=Fraction(1, 3)).at(0.25)
    assert isinstance(at_point, LocalLabel)
    assert (at_point.level, at_point.sigma) == (Fraction(1, 3), Fraction(0))
    over_box = GreatestDelta(cat, SQUARE, sigma=Fraction(1, 10), biases=False).at(0.25)
    assert isinstance(over_box, MarginLabel)
    assert over_box.sigma == Fraction(1, 10)
    assert over_box.parameters.layers[0].bias.interval.width.max() == 0.0


def test_queries_say_what_identifies_them(cat: Network) -> None:
    box = Absolute(0.1).around(cat)
    document = MarginLabel(cat, box, TRIANGLE, sigma=Fraction(1, 20)).to_json()
    assert document["kind"] == "MarginLabel"
    assert document["domain"] == TRIANGLE.to_json()
    assert document["parameters"] == {"rule": box.rule, "sha256": box.sha256}
    assert (document["level"], document["sigma"]) == ("1/2", "1/20")
    delta = GreatestDelta(cat, SQUARE, sigma=Fraction(1, 10), biases=False).to_json()
    own = {"sigma": "1/10", "level": "1/2", "weights": "True", "biases": "False"}
    assert delta == {"kind": "GreatestDelta", "domain": SQUARE.to_json()} | own
