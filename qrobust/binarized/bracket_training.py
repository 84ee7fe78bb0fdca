"""Training of one half of a bracket: a small ternary network of signs over bits, in NumPy.

Accepts   bits, which answer is wanted of each row, and what each row weighs
Gives     a `Half` with its output threshold where the loss puts it
Method    Adam on the logistic loss, of all rows or random batches; latent weights, from -1 to 1, are rounded to -1, 0 or 1 on
          the way forward, and the derivative passes through the rounding and, near 0, through the signs (straight-through). A
          row of which no answer is wanted weighs `punish` times as much: a wrong yes costs more than a silence
Property  estimates; nothing that is proved rests on it
Source    Bengio et al. 2013, arXiv 1308.3432 (straight-through); Hubara et al. 2016, arXiv 1602.02830 (clipped latent
          weights); Kingma and Ba 2015, arXiv 1412.6980 (Adam)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.binarized.bracket import Half
from qrobust.binarized.thermometer import Thermometer
from qrobust.errors import NumberError
from qrobust.interval import BoolArray, FloatArray
from qrobust.layers import IntArray

ZERO = 1 / 3  # a latent weight nearer to 0 than this is the weight 0
MOST_WIDTH = 1024
BATCH = 2048  # rows of one step, at random, where there are more

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """How a half is trained.

    `hidden` are the neurons of each layer of signs; `punish` is what a wrong yes costs, in missed ones; `steps` of Adam, the
    first of `rate`, falling to a tenth of it.
    Raises    NumberError
    """

    hidden: tuple[int, ...] = (24,)
    punish: float = 8.0
    steps: int = 400
    rate: float = 0.03

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        wrong = [size for size in self.hidden if not 1 <= size <= MOST_WIDTH]
        if wrong:
            raise NumberError(f"a hidden layer has {wrong[0]} signs, it must have 1 to {MOST_WIDTH}")
        if not (np.isfinite(self.punish) and self.punish > 0):
            raise NumberError(f"a wrong yes costs {self.punish:g}, it must be above 0: give for example 8")
        if self.steps < 1 or not self.rate > 0:
            raise NumberError(f"{self.steps} steps of rate {self.rate:g}: both must be above 0")


@dataclass
class Latent:
    """Latent numbers: of each layer weights (out, in) and biases (out,); of the output its weights, bias and log scale."""

    layers: list[tuple[Array, Array]]
    output: Array
    bias: Array
    scale: Array

    @property
    def arrays(self) -> list[Array]:
        return [*(array for layer in self.layers for array in layer), self.output, self.bias, self.scale]

    def half(self) -> Half:
        """Return the network that these numbers stand for."""
        layers = tuple((_ternary(w).astype(np.int64), b.astype(np.float64)) for w, b in self.layers)
        return Half(layers, _ternary(self.output).astype(np.int64), int(np.floor(-float(self.bias[0]))))


def _ternary(latent: Array) -> Array:
    return np.asarray(np.sign(latent) * (np.abs(latent) > ZERO), dtype=np.float32)


def first_latent(recipe: Recipe, code: Thermometer, bits: IntArray, rng: np.random.Generator) -> Latent:
    """Return latent numbers whose first neurons are half-spaces of random slope through random rows.

    Shapes    bits (rows, bits)
    """
    sizes = [t.size for t in code.thresholds]
    layers: list[tuple[Array, Array]] = []
    x = bits.astype(np.float32)
    for number, width in enumerate(recipe.hidden):
        if number == 0:
            slopes = rng.normal(size=(width, len(sizes)))
            slopes /= np.abs(slopes).max(axis=1, keepdims=True)
            latent = np.repeat(slopes, sizes, axis=1) * rng.uniform(0.2, 1.0, size=(width, sum(sizes)))
        else:
            latent = rng.uniform(-1, 1, size=(width, x.shape[1]))
        weight = latent.astype(np.float32)
        sums = x @ _ternary(weight).T
        bias = -sums[rng.integers(len(x), size=width), np.arange(width)]
        layers.append((weight, np.asarray(bias + rng.choice([-0.5, 0.5], size=width), dtype=np.float32)))
        x = np.asarray(np.where(sums + layers[-1][1] >= 0, 1.0, -1.0), dtype=np.float32)
    output = np.asarray(rng.uniform(-1, 1, size=x.shape[1]), dtype=np.float32)
    return Latent(layers, output, np.zeros(1, dtype=np.float32), np.zeros(1, dtype=np.float32))


def train_half(
    recipe: Recipe, latent: Latent, bits: IntArray, wanted: BoolArray, weights: FloatArray, rng: np.random.Generator
) -> Latent:
    """Return better latent numbers. Shapes: bits (rows, bits); wanted, weights (rows,)."""
    x, target = bits.astype(np.float32), wanted.astype(np.float32)
    costs = np.where(wanted, 1.0, recipe.punish) * weights
    share = np.asarray(costs / costs.sum(), dtype=np.float32)
    now = replace(latent, layers=list(latent.layers))
    means = [np.zeros_like(a) for a in now.arrays]
    squares = [np.zeros_like(a) for a in now.arrays]
    for step in range(1, recipe.steps + 1):
        rows = rng.integers(len(x), size=BATCH) if len(x) > BATCH else np.arange(len(x))
        slopes = _slopes(now, x[rows], target[rows], share[rows] * np.float32(len(x) / len(rows)))
        rate = recipe.rate * 0.1 ** (step / recipe.steps)
        means = [0.9 * mean + 0.1 * slope for mean, slope in zip(means, slopes, strict=True)]
        squares = [0.999 * square + 0.001 * slope * slope for square, slope in zip(squares, slopes, strict=True)]
        corrections = 1 - 0.9**step, 1 - 0.999**step
        moved = []
        for array, mean, square in zip(now.arrays, means, squares, strict=True):
            direction = mean / corrections[0] / (np.sqrt(square / corrections[1]) + 1e-12)
            moved.append(np.asarray(array - rate * _reach(array) * direction, dtype=np.float32))
        now = _unpacked(moved)
    return now


def _reach(array: Array) -> float:
    """Biases are sums of many weights of size 1, and move as much farther."""
    return 1.0 if array.ndim == 2 or array.size == 1 else 4.0


def _unpacked(arrays: list[Any]) -> Latent:
    layers = [(np.clip(arrays[i], -1, 1), arrays[i + 1]) for i in range(0, len(arrays) - 3, 2)]
    return Latent(layers, np.clip(arrays[-3], -1, 1), arrays[-2], arrays[-1])


def _slopes(now: Latent, x: Array, target: Array, share: Array) -> list[Array]:
    """Return the derivatives of the loss, straight through rounding and signs.

    Shapes    x (rows, bits); target, share (rows,)
    """
    values, widths, sums = [x], [], []
    for weight, bias in now.layers:
        chosen = _ternary(weight)
        sums.append(values[-1] @ chosen.T + bias)
        widths.append(np.sqrt(np.maximum(np.abs(chosen).sum(axis=1), 1.0)))
        values.append(np.where(sums[-1] >= 0, 1.0, -1.0).astype(np.float32))
    output = _ternary(now.output)
    total = values[-1] @ output + now.bias
    factor = np.exp(np.clip(now.scale, -4.0, 2.0))
    miss = share * (1 / (1 + np.exp(-np.clip(factor * total, -30, 30))) - target)
    back = (factor * miss)[:, None] * output
    found = [values[-1].T @ (factor * miss), np.array([(factor * miss).sum()]), np.array([(factor * miss * total).sum()])]
    for number in range(len(now.layers) - 1, -1, -1):
        back = back * (np.abs(sums[number]) <= 1.5 * widths[number]) / widths[number]
        found = [back.T @ values[number], back.sum(axis=0), *found]
        back = back @ _ternary(now.layers[number][0])
    return [np.asarray(each, dtype=np.float32) for each in found]
