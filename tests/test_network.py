"""Networks: validation, meaning, hash, and the label's convention."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from qrobust.errors import NumberError, ShapeError
from qrobust.exact import ExactArithmetic, to_exact
from qrobust.network import Activation, Dense, Feature, Network, Output, confidence, logits
from tests.conftest import RandomNetwork

ONE = Dense(np.array([[1.0, -2.0]]), np.array([0.5]))
TWO = Dense(np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([0.0, -1.0]), Activation.RELU)


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        ([1.0, 2.0], [1.0], "needs weights \\(out, in\\)"),
        ([[[1.0]]], [1.0], "needs weights"),
        (np.zeros((0, 2)), [], "needs weights"),
        (np.zeros((2, 0)), [1.0, 1.0], "needs weights"),
        ([[1.0, 2.0]], [1.0, 2.0], "need 1 biases"),
        ([[1.0]], [[1.0]], "need 1 biases"),
        ([[1.0, 2.0], [3.0]], [1.0, 2.0], "different lengths"),
        ([["a"]], [1.0], "not numbers"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused(weight: list[object], bias: list[object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Dense(weight, bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_layer_of_numbers_that_are_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(NumberError, match="NaN or infinite"):
        Dense(np.array([[bad]]), np.array([0.0]))
    with pytest.raises(NumberError, match="NaN or infinite"):
        Dense(np.array([[0.0]]), np.array([bad]))


def test_a_layer_keeps_a_copy_that_cannot_be_written() -> None:
    weight = np.array([[1.0, 2.0]])
    layer = Dense(weight, np.array([0.0]))
    weight[0, 0] = 7.0
    assert layer.weight[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        layer.weight[0, 0] = 7.0
    with pytest.raises(FrozenInstanceError):
        layer.bias = np.array([1.0])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("layers", "output", "message"),
    [
        ((), Output.SIGMOID, "at least one layer"),
        ((TWO, Dense(np.ones((1, 3)), np.zeros(1))), Output.SIGMOID, "layer 2 takes 3 inputs but layer 1 gives 2"),
        ((TWO,), Output.SOFTMAX, "last layer gives logits: it must be linear"),
        ((replace(TWO, activation=Activation.LINEAR),), Output.SIGMOID, "needs 1 logit, the last layer gives 2"),
        ((ONE,), Output.SOFTMAX, "at least 2 logits, the last layer gives 1"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(layers: tuple[Dense, ...], output: Output, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Network(layers, output)


def test_names_must_fit() -> None:
    with pytest.raises(ShapeError, match="1 features are named but the network takes 2"):
        Network((ONE,), Output.SIGMOID, features=(Feature("a"),))
    with pytest.raises(ShapeError, match="3 classes are named but the network has 2"):
        Network((ONE,), Output.SIGMOID, classes=("a", "b", "c"))


def test_what_a_network_says_of_itself() -> None:
    network = Network((TWO, ONE), Output.SIGMOID, name="tiny", features=(Feature("height", "m"), Feature("age")))
    assert (network.inputs, network.class_count, network.parameter_count) == (2, 2, 9)
    assert network.hidden_layers == (TWO,)
    assert str(network) == "tiny (2-2-1, 9 parameters)"
    assert (network.feature_name(0), network.class_name(1)) == ("height", "class 1")
    assert [feature.label for feature in network.features] == ["height [m]", "age"]
    unnamed = Network((ONE,), Output.SIGMOID, classes=("no", "yes"))
    assert (unnamed.feature_name(1), unnamed.class_name(1), str(unnamed)) == ("input 2", "yes", "network (2-1, 3 parameters)")


def test_a_network_worked_by_hand() -> None:
    """h = relu(1 + 2*2, 2 - 1) = (5, 1); z = 5 - 2 + 0.5 = 3.5."""
    network = Network((TWO, ONE), Output.SIGMOID)
    assert network.confidences([[1.0, 2.0]])[0, 0] == pytest.approx(1 / (1 + np.exp(-3.5)), rel=1e-15)
    assert float(logits(network, to_exact([1.0, 2.0]), ExactArithmetic())[0].p) == 7
    assert network.labels([[1.0, 2.0]], level=0.97).tolist() == [1]
    assert network.labels([[1.0, 2.0]], level=0.98).tolist() == [0]


def test_a_tie_goes_to_the_lower_class() -> None:
    zero = Network((Dense(np.zeros((1, 2)), np.zeros(1)),), Output.SIGMOID)
    assert zero.labels([[1.0, 1.0]]).tolist() == [0]
    equal = Network((Dense(np.zeros((3, 2)), np.array([0.0, 1.0, 1.0])),), Output.SOFTMAX)
    assert equal.labels([[1.0, 1.0]]).tolist() == [1]


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("logit_count", [1, 3])
def test_floats_agree_with_exact_arithmetic(activation: Activation, logit_count: int, random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(1)
    network = random_network(rng, (3, 4, 3, logit_count), activation)
    inputs = rng.normal(size=(10, 3))
    arithmetic = ExactArithmetic()
    for x, found in zip(inputs, network.confidences(inputs), strict=True):
        exact = confidence(network, logits(network, to_exact(x), arithmetic), arithmetic)
        assert found.tolist() == pytest.approx([float(value) for value in exact], rel=1e-12)


@pytest.mark.parametrize("x", [[[800.0]], [[-800.0]], [[1e308]], [[-1e308]]])
def test_far_inputs_give_confidences_without_a_warning(x: list[list[float]]) -> None:
    one = Network((Dense(np.array([[1.0]]), np.zeros(1)),), Output.SIGMOID)
    two = Network((Dense(np.array([[1.0], [-1.0]]) / 2, np.zeros(2)),), Output.SOFTMAX)
    with np.errstate(over="raise", invalid="raise"):
        assert one.confidences(x)[0, 0] == (1.0 if x[0][0] > 0 else pytest.approx(0.0, abs=1e-300))
        assert two.confidences(x).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("x", [[1.0, 2.0], [[1.0]], [[1.0, 2.0, 3.0]], [[[1.0, 2.0]]], [["a", "b"]], [[1.0, 2.0], [1.0]]])
def test_inputs_of_another_shape_are_refused(x: list[object]) -> None:
    with pytest.raises(ShapeError):
        Network((ONE,), Output.SIGMOID).confidences(x)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(NumberError, match="NaN or infinite"):
        Network((ONE,), Output.SIGMOID).confidences([[1.0, bad]])


def test_the_hash_is_of_the_meaning() -> None:
    network = Network((TWO, ONE), Output.SIGMOID)
    named = Network((TWO, ONE), Output.SIGMOID, name="x", features=(Feature("a"), Feature("b")), classes=("n", "y"))
    assert network == named
    assert hash(network) == hash(named)
    assert len(network.sha256) == 64


@pytest.mark.parametrize(
    "other",
    [
        Network((replace(TWO, activation=Activation.TANH), ONE), Output.SIGMOID),
        Network((replace(TWO, activation=Activation.LINEAR), ONE), Output.SIGMOID),
        Network((TWO, Dense(np.nextafter(ONE.weight, 9.0), ONE.bias)), Output.SIGMOID),
        Network((TWO, Dense(ONE.weight, np.nextafter(ONE.bias, 9.0))), Output.SIGMOID),
        Network((Dense(TWO.weight.T, TWO.bias, TWO.activation), ONE), Output.SIGMOID),
        Network((ONE,), Output.SIGMOID),
    ],
)
def test_the_hash_tells_networks_apart(other: Network) -> None:
    assert other != Network((TWO, ONE), Output.SIGMOID)


def test_the_hash_does_not_tell_the_signs_of_zero_apart() -> None:
    plus, minus = (Network((Dense(np.array([[z, 1.0]]), np.array([z])),), Output.SIGMOID) for z in (0.0, -0.0))
    assert plus == minus


def test_a_network_is_not_equal_to_something_else() -> None:
    assert Network((ONE,), Output.SIGMOID) != "network"
