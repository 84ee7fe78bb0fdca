"""A network of signs in training: latent numbers, the forward pass, losses, attacks, and one step of all as a graph.

Values between layers are flat, or images (batch, height, width, channels) as TensorFlow on a CPU wants them; channels stand
last in both, and sums are normalized by channel.

Property  none: what a network is worth is measured and verified afterwards
Source    see recipes.py; Kingma and Ba 2014, arXiv 1412.6980 (Adam); Madry et al. 2017, arXiv 1706.06083 (projected gradients)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from qrobust.binarized.recipes import (
    SHARPNESS,
    Recipe,
    Weights,
    affine_bounds,
    ascended,
    ball_ends,
    bound_excess,
    hard_tanh,
    layer_l1,
    mask_size,
    sharpest,
    sign,
    sign_carrier,
    sum_bounds,
    through,
    unstable,
    weights,
)
from qrobust.errors import BackendUnavailableError
from qrobust.exact import to_fraction
from qrobust.interval import FloatArray
from qrobust.layers import Conv2d, Dense

EPSILON = 1e-3  # of the normalizations
LATENT_SPREAD = 0.1  # standard deviation of latent weights at the start
THREADS = 2
ATTACK_REACH = 2.0  # the steps of projected gradients reach so many times across the ball
NEAR_SHARPNESS = 0.01  # share of the trials' inputs within which two choices are equally good


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


class LatentNetwork:
    """The variables of a network in training. Shapes: x (batch, inputs), from 0 to 1; y (batch,), of classes."""

    def __init__(self, keras: Any, recipe: Recipe, layers: list[Dense | Conv2d]) -> None:
        import tensorflow

        self._keras, self._ops, self._tf, self._recipe, self._layers = keras, keras.ops, tensorflow, recipe, layers
        self._step_size = float(to_fraction(recipe.step))
        rng = np.random.default_rng(recipe.seed)
        shapes, channels = [layer.weight.shape for layer in layers], [len(layer.bias) for layer in layers]
        self._latent = [self._variable(rng.normal(0, LATENT_SPREAD, shape)) for shape in shapes]
        is_masked = recipe.weights is Weights.BINMASK
        self._masks = [self._variable(np.abs(rng.normal(0, LATENT_SPREAD, shape))) for shape in shapes if is_masked]
        self._gamma = [self._variable(np.ones(count)) for count in channels[:-1]]
        self._beta = [self._variable(np.zeros(count)) for count in channels[:-1]]
        scale = 1 / np.sqrt(layers[-1].inputs)
        self._scale, self._bias = self._variable(np.array(scale)), self._variable(np.zeros(channels[-1]))
        self._sharpness, self._eps = self._variable(np.array(1.0)), self._variable(np.array(recipe.eps))
        self._trained = [*self._latent, *self._masks, *self._gamma, *self._beta, self._scale, self._bias]
        self._noise = keras.random.SeedGenerator(recipe.seed)
        self._adam = keras.optimizers.Adam(recipe.rate)
        self._adam.build(self._trained)
        self.step, self.attacked = tensorflow.function(self._step), tensorflow.function(self._attacked)
        self._count_right = tensorflow.function(self._right_under_attack)

    def set_rate(self, rate: float) -> None:
        self._adam.learning_rate.assign(rate)

    def set_eps(self, eps: float) -> None:
        """Set the radius of the attack's ball, in inputs."""
        self._eps.assign(eps)

    def choose_sharpness(self, x: Any, y: Any) -> float:
        """Set and return the sharpness with which attacks, all from the same starts, leave fewest inputs right."""
        starts = np.random.default_rng(self._recipe.seed).random(x.shape).astype(np.float32)
        parts = [slice(start, start + self._recipe.batch) for start in range(0, len(x), self._recipe.batch)]
        right = []
        for sharpness in SHARPNESS:
            self._sharpness.assign(sharpness)
            right.append(sum(int(self._count_right(x[part], y[part], starts[part])) for part in parts))
        chosen = sharpest(right, int(NEAR_SHARPNESS * len(x)))
        self._sharpness.assign(chosen)
        return chosen

    def weights(self) -> list[FloatArray]:
        """Return the layers' weights, -1, 0 and 1."""
        return [np.rint(np.asarray(weight, dtype=np.float64)) + 0.0 for weight in self._weights()]  # no -0.0

    def affine(self, number: int) -> tuple[FloatArray, FloatArray]:
        """Return gamma and beta of a block's normalization. Shapes: (channels,)."""
        gamma, beta = (np.asarray(values[number], dtype=np.float64) for values in (self._gamma, self._beta))
        return gamma, beta

    def scores(self) -> tuple[float, FloatArray]:
        """Return the scale and the bias of the scores."""
        return float(np.asarray(self._scale)), np.asarray(self._bias, dtype=np.float64)

    def times(self, layer: Dense | Conv2d, weight: Any, value: Any) -> Any:
        """Return a layer's sums, channels last. Shapes: weight as the layer's; value flat, or an image with channels last."""
        ops = self._ops
        if isinstance(layer, Conv2d):
            top, left, bottom, right = layer.padding
            padded = ops.pad(value, ((0, 0), (top, bottom), (left, right), (0, 0)))
            kernel = ops.transpose(weight, (2, 3, 1, 0))
            return ops.conv(padded, kernel, strides=layer.stride, padding="valid", data_format="channels_last")
        if len(value.shape) == 4:
            value = ops.reshape(ops.transpose(value, (0, 3, 1, 2)), (-1, layer.inputs))
        return value @ ops.transpose(weight)

    def as_image(self, x: Any) -> Any:
        """Return inputs as the first layer takes them."""
        first, ops = self._layers[0], self._ops
        if not isinstance(first, Conv2d):
            return x
        return ops.transpose(ops.reshape(x, (-1, *first.input_shape)), (0, 2, 3, 1))

    def _variable(self, start: FloatArray) -> Any:
        return self._keras.Variable(start.astype(np.float32))

    def _weights(self) -> list[Any]:
        masks, ops = self._masks or [None] * len(self._latent), self._ops
        pairs = zip(self._latent, masks, strict=True)
        return [
            weights(ops, self._recipe.weights, ops.convert_to_tensor(latent), masked, ops.stop_gradient)
            for latent, masked in pairs
        ]

    def _rounded(self, x: Any) -> Any:
        """Inputs on the grid, with the derivative of the inputs."""
        step = self._step_size
        return through(step * self._ops.round(x / step), x, self._ops.stop_gradient)

    def _signs(self, before: Any) -> Any:
        ops = self._ops
        carrier = sign_carrier(ops, self._recipe.cancelling, self._sharpness, before)
        return through(sign(ops, before), carrier, ops.stop_gradient)

    def _forward(self, x: Any, layers: list[Any]) -> tuple[Any, list[tuple[Any, Any]]]:
        """Return the scores, and of each block the slope and the shift of its normalization over the batch."""
        ops, value, affine = self._ops, self.as_image(self._rounded(x)), []
        for layer, weight, gamma, beta in zip(self._layers, layers, self._gamma, self._beta, strict=False):
            sums = self.times(layer, weight, value)
            places = list(range(len(sums.shape) - 1))
            mean, variance = ops.mean(sums, axis=places), ops.var(sums, axis=places)
            slope = gamma / ops.sqrt(variance + EPSILON)
            affine.append((slope, beta - mean * slope))
            value = self._signs(slope * sums + affine[-1][1])
        return self._scale * self.times(self._layers[-1], layers[-1], value) + self._bias, affine

    def _cross_entropy(self, scores: Any, y: Any) -> Any:
        return self._ops.mean(self._keras.losses.sparse_categorical_crossentropy(y, scores, from_logits=True))

    def _attacked(self, x: Any, y: Any, start: Any = None) -> Any:
        """Return inputs of the ball that raise the loss, by projected gradients. Shapes: start as x, from 0 to 1."""
        ops, recipe, eps = self._ops, self._recipe, self._eps
        layers = [ops.stop_gradient(weight) for weight in self._weights()]
        lower, upper = ball_ends(ops, x, eps)
        start = self._keras.random.uniform(ops.shape(x), seed=self._noise) if start is None else start
        found = lower + (upper - lower) * start
        for _ in range(recipe.attack_steps):
            with self._tf.GradientTape() as tape:
                tape.watch(found)
                loss = self._cross_entropy(self._forward(found, layers)[0], y)
            size = ATTACK_REACH / recipe.attack_steps * eps
            found = ascended(ops, found, tape.gradient(loss, found), size, (lower, upper))
        return ops.stop_gradient(found)

    def _right_under_attack(self, x: Any, y: Any, start: Any) -> Any:
        ops = self._ops
        scores = self._forward(self._attacked(x, y, start), self._weights())[0]
        return ops.sum(ops.cast(ops.argmax(scores, axis=-1) == ops.cast(y, "int32"), "int32"))

    def _penalty(self, x: Any, layers: list[Any], affine: list[tuple[Any, Any]]) -> Any:
        """Return the recipe's losses beside cross entropy."""
        ops, recipe = self._ops, self._recipe
        found = ops.zeros(())
        if recipe.l1:
            found += recipe.l1 * sum(layer_l1(ops, latent) for latent in self._latent)
        if recipe.mask_decay:
            found += recipe.mask_decay * mask_size(ops, self._masks)
        if recipe.bound_decay:
            found += recipe.bound_decay * sum(bound_excess(ops, *pair, recipe.bound_limit) for pair in affine[1:])
        if recipe.stable_sign:
            found += recipe.stable_sign * self._instability(x, layers, affine)
        return found

    def _instability(self, x: Any, layers: list[Any], affine: list[tuple[Any, Any]]) -> Any:
        """Return how far the neurons are from one sign over the ball, by intervals, summed over layers."""
        ops, recipe, found = self._ops, self._recipe, self._ops.zeros(())
        lower, upper = (self.as_image(self._rounded(end)) for end in ball_ends(ops, x, recipe.eps))
        for layer, weight, pair in zip(self._layers, layers, affine, strict=False):
            sums = sum_bounds(ops, partial(self.times, layer), weight, lower, upper)
            lower, upper = affine_bounds(ops, *pair, *sums)
            found += unstable(ops, lower, upper)
            lower, upper = self._signs(lower), self._signs(upper)
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
