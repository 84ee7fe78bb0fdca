"""What training a network of signs adds to cross entropy, each a function of arrays: one layer or one loss, by name.

`xp` is the array library: NumPy, or `keras.ops` where derivatives are wanted. A quantizer gives values alone; `through` gives
them the derivative of something else.

Source    Bengio et al. 2013, arXiv 1308.3432 (straight-through); Hubara et al. 2016, arXiv 1602.02830 (binary weights);
          Narodytska et al. 2020, ICLR (ternary weights, L1 on the latent weights, stable sign), the loss of which is that of
          Xiao et al. 2019, arXiv 1809.03008; Jia and Rinard 2020, arXiv 2005.03597 (BinMask, cardinality bound decay,
          adaptive gradient cancelling, projected gradients, the small convolutional network)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from qrobust.errors import UnsupportedError

TERNARY_THRESHOLD = 0.05  # a latent weight nearer to 0 is the weight 0
SHARPNESS = (0.6, 1.0, 1.4, 1.8, 2.2, 2.6, 3.0)  # what adaptive gradient cancelling chooses from
Stop = Callable[[Any], Any]
Times = Callable[[Any, Any], Any]  # a layer's weights and its inputs, to its sums


class Weights(Enum):
    """What the weights of all layers are."""

    BINARY = "binary"  # -1 and 1
    TERNARY = "ternary"  # -1, 0 and 1, by a threshold
    BINMASK = "binmask"  # a sign times a mask of 0 and 1, each with latent numbers of its own


class Cancelling(Enum):
    """What a sign's derivative is, so that gradients far from the threshold are cancelled."""

    HARD_TANH = "hard-tanh"  # 1 between -1 and 1, else 0
    ADAPTIVE = "adaptive"  # 1 - tanh(a x)^2, with the a of SHARPNESS, chosen anew each epoch, that makes attacks strongest


@dataclass(frozen=True)
class Filters:
    """A convolution of square kernels, zeros around the image. Units: side, stride, padding in pixels."""

    channels: int
    side: int
    stride: int = 1
    padding: int = 0

    def __str__(self) -> str:
        return f"{self.channels} of {self.side}x{self.side}, stride {self.stride}, padding {self.padding}"


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; a factor of 0 leaves its loss out.

    Units     l1, mask_decay, stable_sign, bound_decay are factors of losses; eps that of the ball, in inputs; bound_limit in
              signs; attack_steps of projected gradients a batch; eps_epochs those over which the attack's eps grows to eps
    """

    weights: Weights = Weights.BINARY
    cancelling: Cancelling = Cancelling.HARD_TANH
    l1: float = 0.0
    mask_decay: float = 0.0
    stable_sign: float = 0.0
    bound_decay: float = 0.0
    bound_limit: float = 0.0
    attack_steps: int = 0
    eps: float = 0.1
    eps_epochs: int = 0
    convolutions: tuple[Filters, ...] = ()
    hidden: tuple[int, ...] = (100, 100)
    epochs: int = 15
    batch: int = 128
    rate: float = 1e-3
    step: str = "0.61"
    seed: int = 0


_BINMASK = Recipe(Weights.BINMASK, mask_decay=1.0)
RECIPES = {
    "binary": Recipe(),
    "ternary": Recipe(Weights.TERNARY),
    "ternary-l1-stable": Recipe(Weights.TERNARY, l1=0.6, stable_sign=0.02, epochs=20),
    "binmask": _BINMASK,
    "binmask-cbd": replace(_BINMASK, bound_decay=0.01, bound_limit=1.0),
    "binmask-cbd-pgd": replace(_BINMASK, bound_decay=0.01, bound_limit=1.0, attack_steps=4),
    "binmask-cbd-pgd-agc": replace(_BINMASK, bound_decay=0.01, bound_limit=1.0, attack_steps=4, cancelling=Cancelling.ADAPTIVE),
}
ARCHITECTURES: dict[str, tuple[tuple[Filters, ...], tuple[int, ...]]] = {
    "dense": ((), (100, 100)),
    "small-conv": ((Filters(16, 4, 2, 1), Filters(32, 4, 2, 1)), (100,)),
}


def recipe_of(name: str, architecture: str = "dense") -> Recipe:
    """Return a recipe by name, for an architecture by name. Raises UnsupportedError."""
    if name not in RECIPES:
        raise UnsupportedError(f"there is no recipe {name!r}: name one of {', '.join(RECIPES)}")
    if architecture not in ARCHITECTURES:
        raise UnsupportedError(f"there is no architecture {architecture!r}: name one of {', '.join(ARCHITECTURES)}")
    convolutions, hidden = ARCHITECTURES[architecture]
    return replace(RECIPES[name], convolutions=convolutions, hidden=hidden)


def rate_at(recipe: Recipe, epoch: int) -> float:
    """Return the learning rate of an epoch, from 0: half a cosine, from the recipe's rate towards 0."""
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))


def eps_at(recipe: Recipe, epoch: int) -> float:
    """Return the radius of the attack's ball in an epoch, from 0: growing evenly to eps in the last of eps_epochs."""
    return recipe.eps * min(1.0, (epoch + 1) / max(1, recipe.eps_epochs))


def ball_ends(xp: Any, x: Any, eps: Any) -> tuple[Any, Any]:
    """Return the least and greatest inputs within eps of x, from 0 to 1. Shapes: as x."""
    return xp.maximum(x - eps, 0.0), xp.minimum(x + eps, 1.0)


def ascended(xp: Any, x: Any, gradient: Any, size: Any, ends: tuple[Any, Any]) -> Any:
    """Return x after one step of projected gradients: by `size` the way each gradient points, kept in the ball's ends."""
    return xp.clip(x + size * xp.sign(gradient), *ends)


def sign(xp: Any, x: Any) -> Any:
    """Return +1 where x >= 0, else -1."""
    return xp.where(x >= 0, xp.ones_like(x), -xp.ones_like(x))


def hard_tanh(xp: Any, x: Any) -> Any:
    """Return x kept between -1 and 1: what the derivative of a sign is taken from."""
    return xp.clip(x, -1.0, 1.0)


def sign_carrier(xp: Any, kind: Cancelling, sharpness: Any, x: Any) -> Any:
    """Return what the derivative of a neuron's sign is taken from. `sharpness`: the a of ADAPTIVE, else not looked at."""
    return hard_tanh(xp, x) if kind is Cancelling.HARD_TANH else xp.tanh(sharpness * x) / sharpness


def sharpest(right: Sequence[int], slack: int) -> float:
    """Return the a of SHARPNESS with which attacks left fewest inputs right; of those within `slack`, the nearest to 1."""
    least = min(right)
    near = [a for a, count in zip(SHARPNESS, right, strict=True) if count <= least + slack]
    return min(near, key=lambda a: abs(a - 1.0))


def through(values: Any, carrier: Any, stop: Stop) -> Any:
    """Return values with the derivative of a carrier; `stop` is the identity without derivative."""
    return carrier + stop(values - carrier)


def ternary(xp: Any, latent: Any) -> Any:
    """Return the sign of latent weights, and 0 for those within TERNARY_THRESHOLD of 0."""
    return xp.where(xp.abs(latent) < TERNARY_THRESHOLD, xp.zeros_like(latent), sign(xp, latent))


def mask(xp: Any, latent: Any) -> Any:
    """Return 1 where a weight is kept (latent >= 0), else 0."""
    return xp.where(latent >= 0, xp.ones_like(latent), xp.zeros_like(latent))


def weights(xp: Any, kind: Weights, latent: Any, masked: Any, stop: Stop) -> Any:
    """Return a layer's weights with derivatives. `masked`: the mask's latent numbers, looked at for BINMASK alone."""
    carrier = hard_tanh(xp, latent)
    if kind is Weights.TERNARY:
        return through(ternary(xp, latent), carrier, stop)
    signs = through(sign(xp, latent), carrier, stop)
    return signs * through(mask(xp, masked), masked, stop) if kind is Weights.BINMASK else signs


def layer_l1(xp: Any, latent: Any) -> Any:
    """Return the mean size of a layer's latent weights, so that each layer counts alike, whatever its size."""
    return xp.mean(xp.abs(latent))


def mask_size(xp: Any, masks: Sequence[Any]) -> Any:
    """Return the mean of all masks' positive latent numbers: only kept weights are pulled down, in every layer alike."""
    count = sum(math.prod(masked.shape) for masked in masks)
    return sum(xp.sum(xp.maximum(masked, 0.0)) for masked in masks) / count


def sum_bounds(xp: Any, times: Times, weight: Any, lower: Any, upper: Any) -> tuple[Any, Any]:
    """Return the least and greatest sums times(weight, v) over lower <= v <= upper, in floats (a loss, no proof)."""
    up, down = xp.maximum(weight, 0.0), xp.minimum(weight, 0.0)
    return times(up, lower) + times(down, upper), times(up, upper) + times(down, lower)


def affine_bounds(xp: Any, slope: Any, shift: Any, lower: Any, upper: Any) -> tuple[Any, Any]:
    """Return the ends of slope * y + shift over lower <= y <= upper. Shapes: slope, shift (channels,)."""
    ends = slope * lower + shift, slope * upper + shift
    return xp.minimum(*ends), xp.maximum(*ends)


def unstable(xp: Any, lower: Any, upper: Any) -> Any:
    """Return the mean of 1 - tanh(1 + lower * upper): near 0 where both ends have one sign, up to 2 where they have not."""
    return xp.mean(1.0 - xp.tanh(1.0 + lower * upper))


def bound_excess(xp: Any, slope: Any, shift: Any, limit: float) -> Any:
    """Return how far thresholds -shift / slope of sums go beyond a limit, summed over a layer's neurons."""
    away = xp.where(xp.abs(slope) < 1e-6, xp.ones_like(slope), slope)
    return xp.sum(xp.maximum(xp.abs(shift / away) - limit, 0.0))
