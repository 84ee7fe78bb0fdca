"""The losses and layers of training, in NumPy, and refusals; training itself needs TensorFlow and is done by a script."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from qrobust.binarized import recipes, training
from qrobust.binarized.formats import load_binarized
from qrobust.binarized.recipes import RECIPES, Weights
from qrobust.errors import BackendUnavailableError, DomainError, NumberError, ShapeError, UnsupportedError
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
    least, most = recipes.affine_bounds(np, slope, shift, *recipes.sum_bounds(np, weight, lower, upper))
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
    assert recipes.mask_size(np, np.array([[-1.0, 0.5]])) == 0.25


def test_recipes_are_found_by_name() -> None:
    assert recipes.recipe_of("ternary-l1-stable").weights is Weights.TERNARY
    with pytest.raises(UnsupportedError, match=r"name one of binary, ternary"):
        recipes.recipe_of("best")


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


def test_without_tensorflow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install qrobust\[tensorflow\]"):
        training.train(RECIPES["binary"], np.zeros((2, 3)), np.array([0, 1]), 2)


@pytest.mark.parametrize("name", ["binary", "ternary_l1_stable", "binmask_cbd_pgd"])
def test_kept_networks_are_what_their_cards_say(name: str) -> None:
    network = load_binarized(MODELS / f"bnn_{name}.npz").network
    card = (MODELS / f"bnn_{name}.md").read_text()
    kept = [int(linear.matrix.nnz) for linear in network.linears]
    assert network.sha256 in card
    assert f"by layer {', '.join(f'{number:,}' for number in kept)} |" in card
    assert (network.inputs, network.outputs, network.grid.highest) == (784, 10, 2)


def test_the_command_refuses_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    table, output = tmp_path / "t.csv", str(tmp_path / "net.npz")
    table.write_text("a,b,class\n0,1,0\n1,0.5,1\n")
    asked = ("bnn", "train", str(table), "--output")
    assert "pip install qrobust[tensorflow]" in refused(capsys, *asked, output)
    assert "name one of binary" in refused(capsys, *asked, output, "--recipe", "best")
    assert "ends in .npz" in refused(capsys, *asked, "net.onnx")
    assert "step" in refused(capsys, *asked, output, "--step", "0")
    table.write_text("a,class\n0,0.5\n")
    assert "whole numbers" in refused(capsys, *asked, output)
    table.write_text("a,class\n7,0\n")
    assert "from 0 to 1" in refused(capsys, *asked, output)
    assert not Path(output).exists()
