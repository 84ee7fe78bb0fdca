"""Training of networks of signs, by recipe, with Keras on TensorFlow.

Accepts   inputs from 0 to 1 with labels
Gives     a binarized network of convolutions and dense layers, each linear, batch normalization, sign, and scores of one scale
Method    Adam on latent weights through the straight-through estimator; after it, each normalization's mean and variance are
          those of all training inputs (attacked, if training attacks them) through the finished layers before it
Property  none: what a network is worth is measured and verified afterwards
Source    see recipes.py and latent.py
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from qrobust.binarized.latent import EPSILON, LatentNetwork, load_keras
from qrobust.binarized.network import BatchNorm, BinarizedNetwork, Block, Grid, Linear
from qrobust.binarized.recipes import Cancelling, Recipe, eps_at, rate_at
from qrobust.errors import DomainError, NumberError, ResourceError, ShapeError, UnsupportedError
from qrobust.interval import FloatArray
from qrobust.layers import Activation, Conv2d, Dense, IntArray, Shape

TRIALS = 5  # batches on which sharpness is chosen
MOST_WEIGHTS = 10**8
CHUNK = 500  # inputs that are run through a layer at a time


def train(
    recipe: Recipe,
    inputs: FloatArray,
    labels: IntArray,
    classes: int,
    *,
    image: Shape | None = None,
    name: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> BinarizedNetwork:
    """Return a trained network.

    Shapes    inputs (points, pixels), from 0 to 1, of images (channel, row, column); labels (points,), from 0 to classes - 1;
              image (channels, height, width), of one grey channel and square if None
    Raises    BackendUnavailableError, ShapeError, NumberError, DomainError, UnsupportedError, ResourceError
    """
    _check(recipe, inputs, labels, classes)
    grid = Grid.of(recipe.step, 0, 1)
    layers = network_layers(recipe, inputs.shape[1], classes, image)
    model = LatentNetwork(load_keras(), recipe, layers)
    rng = np.random.default_rng(recipe.seed)
    x, y = inputs.astype(np.float32), labels.astype(np.int32)
    count = max(1, len(x) // recipe.batch)
    for epoch in range(recipe.epochs):
        losses = []
        model.set_rate(rate_at(recipe, epoch))
        model.set_eps(eps_at(recipe, epoch))
        text = ""
        if recipe.cancelling is Cancelling.ADAPTIVE and epoch:
            trials = slice(0, TRIALS * recipe.batch)
            text = f", sharpness {model.choose_sharpness(x[trials], y[trials]):g}"
        for rows in np.array_split(rng.permutation(len(x))[: count * recipe.batch], count):
            losses.append(model.step(x[rows], y[rows]))
        say(f"epoch {epoch + 1}: loss {float(np.mean([float(loss) for loss in losses])):.4f}{text}")
    if recipe.attack_steps:
        parts = np.array_split(np.arange(len(x)), max(1, len(x) // CHUNK))
        inputs = np.concatenate([np.asarray(model.attacked(x[rows], y[rows])) for rows in parts])
    return exported(model, layers, inputs, grid, name)


def _check(recipe: Recipe, inputs: FloatArray, labels: IntArray, classes: int) -> None:
    if inputs.ndim != 2 or labels.shape != (len(inputs),) or not len(inputs):
        raise ShapeError(f"training takes inputs (points, pixels) and a label for each, not {inputs.shape} and {labels.shape}")
    if not np.isfinite(inputs).all() or inputs.min() < 0 or inputs.max() > 1:
        raise NumberError("training takes inputs from 0 to 1: scale them")
    if classes < 2 or labels.min() < 0 or labels.max() >= classes:
        raise DomainError(f"the labels go from {labels.min()} to {labels.max()}, the classes from 0 to {classes - 1}")
    if recipe.cancelling is Cancelling.ADAPTIVE and not recipe.attack_steps:
        raise UnsupportedError("adaptive gradient cancelling is chosen by attacks: give attack_steps")


def network_layers(recipe: Recipe, pixels: int, classes: int, image: Shape | None) -> list[Dense | Conv2d]:
    """Return the layers in order, their weights 0. Raises ShapeError, ResourceError (too many weights)."""
    found: list[Dense | Conv2d] = []
    if recipe.convolutions:
        side = math.isqrt(pixels)
        shape = (1, side, side) if image is None else image
        if math.prod(shape) != pixels:
            raise ShapeError(
                f"an input has {pixels} numbers, an image {shape} (channels, height, width) has {math.prod(shape)}"
            )
        for filters in recipe.convolutions:
            kernels = np.zeros((filters.channels, shape[0], filters.side, filters.side))
            bias, stride, padding = np.zeros(filters.channels), (filters.stride,) * 2, (filters.padding,) * 4
            layer = Conv2d(kernels, bias, Activation.LINEAR, shape, stride, padding)
            found.append(layer)
            shape = layer.output_shape
        pixels = math.prod(shape)
    sizes = (pixels, *recipe.hidden, classes)
    if min(sizes) < 1:
        raise ShapeError(f"a layer has {min(sizes)} neurons, it must have 1 or more")
    weights = sum(before * after for before, after in pairwise(sizes))
    if weights > MOST_WEIGHTS:
        raise ResourceError(
            f"the layers {'-'.join(map(str, sizes))} have {weights:,} weights, at most {MOST_WEIGHTS:,} are trained:"
            " take fewer neurons or classes"
        )
    return found + [Dense(np.zeros((after, before)), np.zeros(after)) for before, after in pairwise(sizes)]


class Finished(Protocol):
    """What export reads of a network in training: see latent.py."""

    def weights(self) -> list[FloatArray]: ...
    def affine(self, number: int) -> tuple[FloatArray, FloatArray]: ...
    def scores(self) -> tuple[float, FloatArray]: ...
    def as_image(self, x: Any) -> Any: ...
    def times(self, layer: Dense | Conv2d, weight: Any, value: Any) -> Any: ...


def exported(model: Finished, layers: list[Dense | Conv2d], x: FloatArray, grid: Grid, name: str) -> BinarizedNetwork:
    """Return the network so far, its normalizations those of the inputs given."""
    blocks, weights, step = [], model.weights(), float(grid.step)
    parts = np.array_split(np.rint(x / step), max(1, len(x) // CHUNK))  # levels, then signs: all sums are whole numbers
    parts = [np.asarray(model.as_image(part.astype(np.float32))) for part in parts]
    for number, (layer, weight) in enumerate(zip(layers[:-1], weights, strict=False)):
        kernel = weight.astype(np.float32)
        parts = [np.asarray(model.times(layer, kernel, part)) for part in parts]
        norm = _norm(*model.affine(number), step, parts)
        blocks.append(Block(Linear(layer.with_parameters(weight, np.zeros(len(weight))), np.ones(1)), norm))
        parts = [_signs(norm, step, sums) for sums in parts]
        step = 1.0
    scale, bias = model.scores()
    output = Linear(layers[-1].with_parameters(weights[-1], bias), np.array([scale]))
    return BinarizedNetwork(grid, tuple(blocks), output, name, tuple(str(number) for number in range(len(bias))))


def _norm(gamma: FloatArray, beta: FloatArray, step: float, parts: list[FloatArray]) -> BatchNorm:
    """Return the normalization by the mean and variance of step * sums, by channel. Shapes: each part (..., channels)."""
    count = sum(part.size for part in parts) / len(gamma)
    flat = [part.reshape(-1, len(gamma)) for part in parts]
    mean = sum(part.sum(axis=0, dtype=np.float64) for part in flat) / count
    variance = sum(((part.astype(np.float64) - mean) ** 2).sum(axis=0) for part in flat) / count
    return BatchNorm(gamma, beta, step * mean, step**2 * variance, EPSILON)


def _signs(norm: BatchNorm, step: float, sums: FloatArray) -> FloatArray:
    """Return the signs of normalized sums. Shapes: sums (..., channels), and the result."""
    slope = norm.gamma / np.sqrt(norm.variance + norm.epsilon)
    before = (step * sums.astype(np.float64) - norm.mean) * slope + norm.beta
    return np.where(before >= 0, np.float32(1), np.float32(-1))
