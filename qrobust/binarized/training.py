"""Training of networks of signs, by recipe, with Keras on TensorFlow.

Accepts   inputs from 0 to 1 with labels
Gives     a binarized network of dense blocks, each linear, batch normalization, sign, and scores of one scale
Method    Adam on latent weights through the straight-through estimator; after it, each normalization's mean and variance are
          those of all training inputs through the finished layers before it
Property  none: what a network is worth is measured and verified afterwards
Source    see recipes.py; Kingma and Ba 2014, arXiv 1412.6980 (Adam); Madry et al. 2017, arXiv 1706.06083 (projected gradients)
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from qrobust.binarized.network import BatchNorm, BinarizedNetwork, Block, Grid, Linear
from qrobust.binarized.recipes import (
    Recipe,
    Weights,
    affine_bounds,
    bound_excess,
    hard_tanh,
    layer_l1,
    mask_size,
    sign,
    sum_bounds,
    through,
    unstable,
    weights,
)
from qrobust.errors import BackendUnavailableError, DomainError, NumberError, ShapeError
from qrobust.exact import to_fraction
from qrobust.interval import FloatArray
from qrobust.layers import Dense, IntArray

EPSILON = 1e-3  # of the normalizations
LATENT_SPREAD = 0.1  # standard deviation of latent weights at the start
THREADS = 2
ATTACK_REACH = 2.0  # the steps of projected gradients reach so many times across the ball


def load_keras() -> Any:
    """Return Keras on TensorFlow, on a few CPU threads, repeatable. Raises BackendUnavailableError."""
    try:
        import keras
        import tensorflow
    except ImportError:
        raise BackendUnavailableError("training needs `pip install qrobust[tensorflow]`") from None
    tensorflow.config.set_visible_devices([], "GPU")
    tensorflow.config.threading.set_intra_op_parallelism_threads(THREADS)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    tensorflow.config.experimental.enable_op_determinism()
    return keras


def train(
    recipe: Recipe,
    inputs: FloatArray,
    labels: IntArray,
    classes: int,
    *,
    name: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> BinarizedNetwork:
    """Return a trained network.

    Shapes    inputs (points, pixels), from 0 to 1; labels (points,), from 0 to classes - 1
    Raises    BackendUnavailableError, ShapeError, NumberError, DomainError
    """
    _check(inputs, labels, classes)
    grid = Grid.of(recipe.step, 0, 1)
    model = _Model(load_keras(), recipe, inputs.shape[1], classes)
    rng = np.random.default_rng(recipe.seed)
    x, y = inputs.astype(np.float32), labels.astype(np.int32)
    count = max(1, len(x) // recipe.batch)
    for epoch in range(recipe.epochs):
        losses = []
        model.set_rate(recipe.rate * 0.5 * (1 + np.cos(np.pi * epoch / recipe.epochs)))
        for rows in np.array_split(rng.permutation(len(x))[: count * recipe.batch], count):
            losses.append(model.step(x[rows], y[rows]))
        say(f"epoch {epoch + 1}: loss {float(np.mean([float(loss) for loss in losses])):.4f}")
    return model.network(inputs, grid, name)


def _check(inputs: FloatArray, labels: IntArray, classes: int) -> None:
    if inputs.ndim != 2 or labels.shape != (len(inputs),) or not len(inputs):
        raise ShapeError(f"training takes inputs (points, pixels) and a label for each, not {inputs.shape} and {labels.shape}")
    if not np.isfinite(inputs).all() or inputs.min() < 0 or inputs.max() > 1:
        raise NumberError("training takes inputs from 0 to 1: scale them")
    if classes < 2 or labels.min() < 0 or labels.max() >= classes:
        raise DomainError(f"the labels go from {labels.min()} to {labels.max()}, the classes from 0 to {classes - 1}")


class _Model:
    """The variables of a network in training, and one step of it as a graph."""

    def __init__(self, keras: Any, recipe: Recipe, inputs: int, classes: int) -> None:
        import tensorflow

        self._keras, self._ops, self._tf, self._recipe = keras, keras.ops, tensorflow, recipe
        self._step_size = float(to_fraction(recipe.step))
        rng = np.random.default_rng(recipe.seed)
        sizes = (inputs, *recipe.hidden, classes)
        shapes = [(after, before) for before, after in pairwise(sizes)]
        self._latent = [self._variable(rng.normal(0, LATENT_SPREAD, shape)) for shape in shapes]
        is_masked = recipe.weights is Weights.BINMASK
        self._masks = [self._variable(np.abs(rng.normal(0, LATENT_SPREAD, shape))) for shape in shapes if is_masked]
        self._gamma = [self._variable(np.ones(size)) for size in recipe.hidden]
        self._beta = [self._variable(np.zeros(size)) for size in recipe.hidden]
        self._scale, self._bias = self._variable(np.array(1 / np.sqrt(sizes[-2]))), self._variable(np.zeros(classes))
        self._adam = keras.optimizers.Adam(recipe.rate)
        trained = [*self._latent, *self._masks, *self._gamma, *self._beta, self._scale, self._bias]
        self._trained, self._noise = trained, keras.random.SeedGenerator(recipe.seed)
        self._adam.build(trained)
        self.step = tensorflow.function(self._step)

    def set_rate(self, rate: float) -> None:
        self._adam.learning_rate.assign(rate)

    def _variable(self, start: FloatArray) -> Any:
        return self._keras.Variable(start.astype(np.float32))

    def _weights(self) -> list[Any]:
        masks = self._masks or [None] * len(self._latent)
        pairs = zip(self._latent, masks, strict=True)
        ops = self._ops
        return [
            weights(ops, self._recipe.weights, ops.convert_to_tensor(latent), masked, ops.stop_gradient)
            for latent, masked in pairs
        ]

    def _rounded(self, x: Any) -> Any:
        """Inputs on the grid, with the derivative of the inputs."""
        step = self._step_size
        return through(step * self._ops.round(x / step), x, self._ops.stop_gradient)

    def _forward(self, x: Any, layers: list[Any]) -> tuple[Any, list[tuple[Any, Any]]]:
        """Return the scores, and of each block the slope and the shift of its normalization over the batch."""
        ops, value, affine = self._ops, self._rounded(x), []
        for weight, gamma, beta in zip(layers, self._gamma, self._beta, strict=False):
            sums = value @ ops.transpose(weight)
            mean, variance = ops.mean(sums, axis=0), ops.var(sums, axis=0)
            slope = gamma / ops.sqrt(variance + EPSILON)
            affine.append((slope, beta - mean * slope))
            before = slope * sums + affine[-1][1]
            value = through(sign(ops, before), hard_tanh(ops, before), ops.stop_gradient)
        return self._scale * (value @ ops.transpose(layers[-1])) + self._bias, affine

    def _cross_entropy(self, scores: Any, y: Any) -> Any:
        return self._ops.mean(self._keras.losses.sparse_categorical_crossentropy(y, scores, from_logits=True))

    def _attacked(self, x: Any, y: Any) -> Any:
        """Return inputs of the ball that raise the loss, by projected gradients."""
        ops, recipe = self._ops, self._recipe
        lower, upper = ops.maximum(x - recipe.eps, 0.0), ops.minimum(x + recipe.eps, 1.0)
        found = lower + (upper - lower) * self._keras.random.uniform(ops.shape(x), seed=self._noise)
        for _ in range(recipe.attack_steps):
            with self._tf.GradientTape() as tape:
                tape.watch(found)
                loss = self._cross_entropy(self._forward(found, self._weights())[0], y)
            size = ATTACK_REACH * recipe.eps / recipe.attack_steps
            found = ops.clip(found + size * ops.sign(tape.gradient(loss, found)), lower, upper)
        return ops.stop_gradient(found)

    def _penalty(self, x: Any, layers: list[Any], affine: list[tuple[Any, Any]]) -> Any:
        """Return the recipe's losses beside cross entropy."""
        ops, recipe = self._ops, self._recipe
        found = ops.zeros(())
        if recipe.l1:
            found += recipe.l1 * sum(layer_l1(ops, latent) for latent in self._latent)
        if recipe.mask_decay:
            found += recipe.mask_decay * sum(mask_size(ops, masked) for masked in self._masks)
        if recipe.bound_decay:
            found += recipe.bound_decay * sum(bound_excess(ops, *pair, recipe.bound_limit) for pair in affine[1:])
        if recipe.stable_sign:
            lower = self._rounded(ops.maximum(x - recipe.eps, 0.0))
            upper = self._rounded(ops.minimum(x + recipe.eps, 1.0))
            for weight, pair in zip(layers, affine, strict=False):
                lower, upper = affine_bounds(ops, *pair, *sum_bounds(ops, weight, lower, upper))
                found += recipe.stable_sign * unstable(ops, lower, upper)
                lower, upper = (through(sign(ops, v), hard_tanh(ops, v), ops.stop_gradient) for v in (lower, upper))
        return found

    def _step(self, x: Any, y: Any) -> Any:
        if self._recipe.attack_steps:
            x = self._attacked(x, y)
        with self._tf.GradientTape() as tape:
            layers = self._weights()
            scores, affine = self._forward(x, layers)
            loss = self._cross_entropy(scores, y) + self._penalty(x, layers, affine)
        places = [variable.value for variable in self._trained]
        self._adam.apply(tape.gradient(loss, places), self._trained)
        for latent in [*self._latent, *self._masks]:
            latent.assign(hard_tanh(self._ops, latent))
        return loss

    def network(self, x: FloatArray, grid: Grid, name: str) -> BinarizedNetwork:
        """Return the network so far, its normalizations those of the inputs given."""
        step, blocks = self._step_size, []
        value = (step * np.rint(x / step)).astype(np.float64)
        layers = [np.rint(np.asarray(weight, dtype=np.float64)) + 0.0 for weight in self._weights()]  # no -0.0
        for weight, gamma, beta in zip(layers, self._gamma, self._beta, strict=False):
            sums = value @ weight.T
            slopes, shifts = (np.asarray(v, dtype=np.float64) for v in (gamma, beta))
            norm = BatchNorm(slopes, shifts, sums.mean(axis=0), sums.var(axis=0), EPSILON)
            blocks.append(Block(Linear(Dense(weight, np.zeros(len(weight))), np.ones(1)), norm))
            value = np.where(blocks[-1].pre_sign(value) >= 0, 1.0, -1.0)
        scale = float(np.asarray(self._scale))
        bias = np.asarray(self._bias, dtype=np.float64)
        output = Linear(Dense(layers[-1], bias), np.array([scale]))
        classes = tuple(str(number) for number in range(len(bias)))
        return BinarizedNetwork(grid, tuple(blocks), output, name, classes)
