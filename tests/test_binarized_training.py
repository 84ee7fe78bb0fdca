"""The losses and layers of training, in NumPy, and refusals; training itself needs TensorFlow and is done by a script."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import train_khalil
from models.train_bnn import CONVOLUTIONAL, FOR_EPS, HELD_OUT, KEPT, non_zeros, parted, stem
from models.train_mnist import Images
from qrobust.binarized import Grid, fold, recipes, training
from qrobust.binarized.formats import load_binarized
from qrobust.binarized.recipes import RECIPES, Cancelling, Filters, Weights
from qrobust.errors import BackendUnavailableError, DomainError, NumberError, ShapeError, UnsupportedError
from qrobust.layers import Conv2d, Dense
from tests.test_cli import refused

MODELS = Path(__file__).parent.parent / "models"


def test_quantizers() -> None:
    latent = np.array([-0.3, -0.05, -0.01, 0.0, 0.04, 0.05, 2.0])
    assert recipes.sign(np, latent).tolist() == [-1, -1, -1, 1, 1, 1, 1]
    assert recipes.ternary(np, latent).tolist() == [-1, -1, 0, 0, 0, 1, 1]
    assert recipes.mask(np, latent).tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert recipes.hard_tanh(np, latent).tolist() == [*latent[:-1].tolist(), 1.0]


@pytest.mark.parametrize("kind", list(Weights))
def test_weights_are_the_quantizers_and_carry_a_derivative(kind: Weights) -> None:
    """`stop` as a function that marks what has no derivative: with it as zero, only the carrier is left."""
    rng = np.random.default_rng(0)
    latent, masked = rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    values = recipes.weights(np, kind, latent, masked, lambda x: x)
    wanted = {
        Weights.BINARY: recipes.sign(np, latent),
        Weights.TERNARY: recipes.ternary(np, latent),
        Weights.BINMASK: recipes.sign(np, latent) * recipes.mask(np, masked),
    }[kind]
    assert np.allclose(values, wanted, rtol=0, atol=1e-12)
    carried = recipes.weights(np, kind, latent, masked, np.zeros_like)
    clipped = np.clip(latent, -1, 1)
    assert np.array_equal(carried, clipped * masked if kind is Weights.BINMASK else clipped)


def test_bounds_are_reached_and_never_left() -> None:
    rng = np.random.default_rng(1)
    weight = rng.choice([-1.0, 0.0, 1.0], size=(6, 4))
    lower = rng.integers(-3, 1, size=(3, 4)).astype(float)
    upper = lower + rng.integers(0, 4, size=(3, 4))
    slope, shift = rng.choice([-2.0, 0.5], size=6), rng.integers(-2, 3, size=6).astype(float)
    sums = recipes.sum_bounds(np, lambda factors, values: values @ factors.T, weight, lower, upper)
    least, most = recipes.affine_bounds(np, slope, shift, *sums)
    corners = np.array([[(i >> bit) & 1 for bit in range(4)] for i in range(16)])
    points = np.where(corners[:, None] == 1, upper, lower)  # (corners, batch, inputs)
    values = slope * (points @ weight.T) + shift
    assert np.array_equal(values.min(axis=0), least)
    assert np.array_equal(values.max(axis=0), most)


def test_losses_order_what_they_should() -> None:
    ones = np.ones((2, 3))
    stable, unstable = recipes.unstable(np, ones, 3 * ones), recipes.unstable(np, -2 * ones, 3 * ones)
    assert 0 < stable < 0.01 < 1.99 < unstable < 2
    assert recipes.unstable(np, -3 * ones, -ones) == stable  # both signs alike
    assert recipes.bound_excess(np, np.array([2.0, -1.0, 0.5]), np.array([-2.0, 4.0, 0.0]), 1.5) == 2.5
    assert recipes.bound_excess(np, np.array([0.0]), np.array([0.5]), 1.0) == 0.0
    assert recipes.layer_l1(np, np.array([[-1.0, 0.5]])) == 0.75
    assert recipes.mask_size(np, [np.array([[-1.0, 0.5]]), np.array([1.0, 0.5])]) == 0.5


def test_adaptive_cancelling_has_the_derivative_of_its_name() -> None:
    x, step = np.linspace(-3, 3, 13), 1e-6
    for sharpness in recipes.SHARPNESS:
        ends = [recipes.sign_carrier(np, Cancelling.ADAPTIVE, sharpness, x + shift) for shift in (-step, step)]
        assert np.allclose((ends[1] - ends[0]) / (2 * step), 1 - np.tanh(sharpness * x) ** 2, rtol=0, atol=1e-8)
    assert np.array_equal(recipes.sign_carrier(np, Cancelling.HARD_TANH, None, x), np.clip(x, -1, 1))


def test_schedules_start_and_end_where_they_should() -> None:
    recipe = replace(RECIPES["binary"], rate=0.002, epochs=10, eps=0.3, eps_epochs=3)
    rates, eps = ([at(recipe, epoch) for epoch in range(10)] for at in (recipes.rate_at, recipes.eps_at))
    assert rates[0] == 0.002
    assert rates[5] == pytest.approx(0.001)
    assert 0 < rates[9] < 0.0001
    assert rates == sorted(rates, reverse=True)
    assert eps == pytest.approx([0.1, 0.2, *[0.3] * 8])
    assert recipes.eps_at(replace(recipe, eps_epochs=0), 0) == 0.3


def test_steps_of_an_attack_stay_in_the_ball_and_climb() -> None:
    """On a linear loss three steps of a third of the width reach the ball's end that the gradient points to, from anywhere."""
    rng = np.random.default_rng(2)
    x, gradient = rng.random((5, 7)), rng.choice([-2.0, 0.0, 0.01], size=(5, 7))
    ends = recipes.ball_ends(np, x, 0.25)
    assert np.all((ends[0] >= 0) & (ends[1] <= 1) & (ends[0] <= x) & (x <= ends[1]))
    assert np.allclose(np.maximum(x - ends[0], ends[1] - x), 0.25)
    start = ends[0] + (ends[1] - ends[0]) * rng.random(x.shape)
    found = start
    for _ in range(3):
        found = recipes.ascended(np, found, gradient, 0.5 / 3 + 1e-12, ends)
    assert np.array_equal(found, np.where(gradient > 0, ends[1], np.where(gradient < 0, ends[0], start)))


def test_bound_decay_pulls_thresholds_in_and_stops_at_the_limit() -> None:
    """Descent along differences of the loss moves a threshold of 9 signs to the limit of 2, and leaves one within it alone."""
    slope, shift, step = np.array([0.5, -1.0]), np.array([-4.5, 1.5]), 1e-6
    for _ in range(400):
        ends = [
            [recipes.bound_excess(np, slope, shift + sign * step * unit, 2.0) for unit in np.eye(2)] for sign in (1.0, -1.0)
        ]
        shift = shift - 0.01 * (np.array(ends[0]) - np.array(ends[1])) / (2 * step)
    assert np.abs(shift / slope) == pytest.approx([2.0, 1.5], abs=0.05)
    assert shift[1] == 1.5


def test_convolutional_networks_are_chosen_on_images_that_they_do_not_see() -> None:
    inputs = np.arange(6000.0)[:, None]
    first, held = parted(Images(inputs, np.arange(6000)))
    assert (len(first.labels), len(held.labels)) == (1000, HELD_OUT)
    assert np.array_equal(np.concatenate([first.inputs, held.inputs]), inputs)
    assert set(FOR_EPS) <= set(CONVOLUTIONAL)


@pytest.mark.parametrize(
    ("right", "slack", "sharpness"),
    [([90, 80, 70, 60, 70, 80, 90], 0, 1.8), ([50, 52, 49, 49, 49, 49, 48], 4, 1.0), ([0, 9, 9, 9, 9, 9, 9], 0, 0.6)],
)
def test_the_sharpness_chosen_makes_attacks_strongest(right: list[int], slack: int, sharpness: float) -> None:
    assert recipes.sharpest(right, slack) == sharpness


def test_recipes_are_found_by_name() -> None:
    assert recipes.recipe_of("ternary-l1-stable").weights is Weights.TERNARY
    with pytest.raises(UnsupportedError, match=r"name one of binary, ternary"):
        recipes.recipe_of("best")
    with pytest.raises(UnsupportedError, match=r"name one of dense, small-conv"):
        recipes.recipe_of("binary", "wide")


def test_the_small_convolutional_network_has_its_published_shapes() -> None:
    layers = training.network_layers(recipes.recipe_of("binary", "small-conv"), 784, 10, None)
    assert [layer.weight.shape for layer in layers] == [(16, 1, 4, 4), (32, 16, 4, 4), (100, 1568), (10, 100)]
    with pytest.raises(ShapeError, match="an input has 784 numbers"):
        training.network_layers(recipes.recipe_of("binary", "small-conv"), 784, 10, (1, 28, 27))


class Finished:
    """A network whose training is over, in NumPy: what `export` reads."""

    def __init__(self, layers: list[Dense | Conv2d], rng: np.random.Generator) -> None:
        self._layers, self._rng = layers, rng

    def weights(self) -> list[np.ndarray]:
        return [self._rng.choice([-1.0, 0.0, 1.0], size=layer.weight.shape) for layer in self._layers]

    def affine(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        count = len(self._layers[number].bias)
        return self._rng.choice([-1.0, 0.5, 2.0], size=count), self._rng.normal(size=count)

    def scores(self) -> tuple[float, np.ndarray]:
        return 0.25, self._rng.normal(size=len(self._layers[-1].bias))

    def as_image(self, x: np.ndarray) -> np.ndarray:
        first = self._layers[0]
        assert isinstance(first, Conv2d)
        return x.reshape(-1, *first.input_shape).transpose(0, 2, 3, 1)

    def times(self, layer: Dense | Conv2d, weight: np.ndarray, value: np.ndarray) -> np.ndarray:
        flat = value.transpose(0, 3, 1, 2).reshape(len(value), -1) if value.ndim == 4 else value
        sums: np.ndarray = (layer.matrix(weight) @ flat.T).T
        if isinstance(layer, Dense):
            return sums
        return sums.reshape(-1, *layer.output_shape).transpose(0, 2, 3, 1)


def test_an_exported_network_is_normalized_by_the_inputs_it_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each sign the mean by channel is the normalization's beta, and the variance nearly gamma squared."""
    monkeypatch.setattr(training, "CHUNK", 7)
    rng = np.random.default_rng(3)
    chosen = replace(RECIPES["binary"], convolutions=(Filters(3, 2, 1, 1), Filters(2, 3, 2)), hidden=(5,))
    layers = training.network_layers(chosen, 36, 4, None)
    x = rng.random((40, 36))
    grid = Grid.of("0.61", 0, 1)
    network = training.exported(Finished(layers, rng), layers, x, grid, "small")
    assert [linear.layer.geometry for linear in network.linears] == [layer.geometry for layer in layers]
    value = grid.values(grid.levels(x))
    for block in network.blocks:
        before = block.pre_sign(value).reshape(len(x), block.linear.channels, -1)
        assert block.norm is not None
        assert np.allclose(before.mean(axis=(0, 2)), block.norm.beta, rtol=0, atol=1e-9)
        kept = block.norm.variance / (block.norm.variance + block.norm.epsilon)
        assert np.allclose(before.var(axis=(0, 2)), block.norm.gamma**2 * kept)
        value = np.where(before.reshape(len(x), -1) >= 0, 1.0, -1.0)


@pytest.mark.parametrize(
    ("inputs", "labels", "error"),
    [
        (np.zeros((2, 3, 1)), np.zeros(2), ShapeError),
        (np.zeros((2, 3)), np.zeros(3), ShapeError),
        (np.zeros((0, 3)), np.zeros(0), ShapeError),
        (np.full((2, 3), np.nan), np.zeros(2), NumberError),
        (np.full((2, 3), 255.0), np.zeros(2), NumberError),
        (np.zeros((2, 3)), np.array([0, 2]), DomainError),
        (np.zeros((2, 3)), np.array([0, -1]), DomainError),
    ],
)
def test_bad_data_is_refused(inputs: np.ndarray, labels: np.ndarray, error: type[Exception]) -> None:
    with pytest.raises(error):
        training.train(RECIPES["binary"], inputs, labels.astype(np.int64), 2)


def test_what_a_recipe_cannot_have_is_refused() -> None:
    x, y = np.zeros((2, 3)), np.array([0, 1])
    with pytest.raises(UnsupportedError, match="give attack_steps"):
        training.train(replace(RECIPES["binary"], cancelling=Cancelling.ADAPTIVE), x, y, 2)
    with pytest.raises(ShapeError, match="an input has 3 numbers"):
        training.train(recipes.recipe_of("binary", "small-conv"), x, y, 2)


def test_without_tensorflow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install qrobust\[tensorflow\]"):
        training.train(RECIPES["binary"], np.zeros((2, 3)), np.array([0, 1]), 2)


@pytest.mark.parametrize("name", list(KEPT))
def test_kept_networks_are_what_their_cards_say(name: str) -> None:
    network = load_binarized(MODELS / f"{stem(name)}.npz").network
    card = (MODELS / f"{stem(name)}.md").read_text()
    assert network.sha256 in card
    assert f"by layer {', '.join(f'{number:,}' for number in non_zeros(network))} |" in card
    assert (network.inputs, network.outputs, network.grid.highest) == (784, 10, 2)


@pytest.mark.parametrize("name", list(CONVOLUTIONAL))
def test_convolutions_fold_to_what_the_float_network_says(name: str) -> None:
    """Every sign of every layer, on inputs of which some are half way between two levels."""
    network = load_binarized(MODELS / f"{stem(name)}.npz").network
    rng = np.random.default_rng(0)
    inputs = np.clip(rng.normal(0.3, 0.5, size=(200, 784)), 0, 1)
    inputs[:50] = rng.choice([0.0, 0.305, 0.915, 1.0], size=(50, 784))
    levels = network.grid.levels(inputs)
    folded, signs, values = fold(network), levels, network.grid.values(levels)
    for layer, block in zip(folded.layers, network.blocks, strict=True):
        signs, values = layer.signs(signs), np.where(block.pre_sign(values) >= 0, 1.0, -1.0)
        assert np.array_equal(signs, values)
    assert np.array_equal(folded.labels(levels), network.scores(levels).argmax(axis=1))


def test_the_command_refuses_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    table, output = tmp_path / "t.csv", str(tmp_path / "net.npz")
    table.write_text("a,b,class\n0,1,0\n1,0.5,1\n")
    asked = ("bnn", "train", str(table), "--output")
    assert "pip install qrobust[tensorflow]" in refused(capsys, *asked, output)
    assert "pip install qrobust[tensorflow]" in refused(capsys, *asked, str(tmp_path / "net.keras"))
    assert "name one of binary" in refused(capsys, *asked, output, "--recipe", "best")
    assert "name one of dense" in refused(capsys, *asked, output, "--architecture", "wide")
    assert "channels, height and width" in refused(capsys, *asked, output, "--image", "1, 2")
    for sizes in ("10.5", "0, 10", "-3", "nan"):
        assert "--hidden" in refused(capsys, *asked, output, f"--hidden={sizes}")
    assert "an input has 2 numbers" in refused(capsys, *asked, output, "--architecture", "small-conv", "--image", "1, 2, 2")
    assert "ends in .npz, .json or .keras" in refused(capsys, *asked, "net.onnx")
    assert "step" in refused(capsys, *asked, output, "--step", "0")
    table.write_text("a,class\n0,0.5\n")
    assert "whole numbers" in refused(capsys, *asked, output)
    table.write_text("a,class\n7,0\n")
    assert "from 0 to 1" in refused(capsys, *asked, output)
    assert not Path(output).exists()


@pytest.mark.parametrize("name", list(train_khalil.RECIPES))
def test_networks_to_compare_attacks_on_are_what_their_card_says(name: str) -> None:
    network = load_binarized(train_khalil.path_of(name)).network
    depth, width = map(int, name.split("x"))
    assert [block.linear.layer.outputs for block in network.blocks] == [width] * depth
    assert network.grid == Grid.of("1/255", 0, 1)
    assert set(np.unique(np.concatenate([linear.layer.weight.ravel() for linear in network.linears]))) == {-1.0, 1.0}
    assert f"| {name} |" in (card := (train_khalil.KEPT / "README.md").read_text())
    assert f"`{network.sha256}`" in card
