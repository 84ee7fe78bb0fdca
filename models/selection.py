"""How a seed is chosen: the first one, counting upward, whose training meets a rule stated before it runs.

The rules look at accuracy and at units that are off everywhere. None looks at any robustness number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from qrobust.errors import QRobustError, UnsupportedError
from qrobust.network import Activation, Network

T = TypeVar("T")

MOST_LISTED = 20


class NoSeedError(QRobustError, RuntimeError):
    """None of the seeds that were tried met the rule."""


class RejectedSeed(Exception):  # noqa: N818 (a step of the search, not an error)
    """Raised by a training function for a seed that fails its rule; the text says how."""


@dataclass(frozen=True)
class Selected(Generic[T]):
    """The first seed that met the rule, what it trained, and why each earlier seed did not."""

    seed: int
    trained: T
    rejected: tuple[tuple[int, str], ...]

    @property
    def first(self) -> int:
        """The first seed that was tried."""
        return self.rejected[0][0] if self.rejected else self.seed

    def in_words(self, rule: str) -> str:
        """One paragraph for a card."""
        earlier = "; ".join(f"{seed}: {reason}" for seed, reason in self.rejected)
        if len(self.rejected) > MOST_LISTED:
            tried = f" The {len(self.rejected)} seeds before it were rejected; the script prints why."
        else:
            tried = f" Rejected before it, in order: {earlier}." if earlier else " No seed was rejected before it."
        return (
            f"Seed {self.seed} is the first, counting upward from {self.first}, with which training met this rule: "
            f"{rule}. The rule was written after looking at the accuracy and the idle units of trial trainings, and "
            f"before any robustness number of this model was computed; it looks at none.{tried}"
        )


def first_accepted(seeds: Iterable[int], train: Callable[[int], T]) -> Selected[T]:
    """The first seed for which `train` does not raise RejectedSeed. Raises NoSeedError if there is none."""
    rejected: list[tuple[int, str]] = []
    for seed in seeds:
        try:
            return Selected(seed, train(seed), tuple(rejected))
        except RejectedSeed as reason:
            rejected.append((seed, str(reason)))
            print(f"seed {seed} rejected: {reason}", flush=True)
    tried = [seed for seed, _ in rejected]
    raise NoSeedError(f"none of the seeds {tried} met the rule; start from another --seed or raise --tries")


def idle_units(network: Network, inputs: npt.NDArray[np.float64]) -> tuple[str, ...]:
    """The hidden ReLU units that are off on every row, in words. Shapes: inputs (rows, features)."""
    idle: list[str] = []
    values = inputs
    for number, layer in enumerate(network.hidden_layers, start=1):
        if layer.activation not in (Activation.RELU, Activation.LINEAR):
            raise UnsupportedError(f"layer {number}: no rule says when a {layer.activation.value} unit is off")
        values = values @ layer.weight.T + layer.bias
        if layer.activation is Activation.RELU:
            units = np.flatnonzero((values <= 0).all(axis=0))
            idle += [f"unit {unit + 1} of layer {number}" for unit in units]
            values = np.maximum(values, 0.0)
    return tuple(idle)


def switching_units(network: Network, lower: npt.NDArray[np.float64], upper: npt.NDArray[np.float64]) -> int:
    """How many units of the first layer take both signs within a box of inputs. Shapes: lower, upper (inputs,)."""
    layer = network.layers[0]
    middle = layer.weight @ ((lower + upper) / 2) + layer.bias
    reach = np.abs(layer.weight) @ ((upper - lower) / 2)
    return int((np.abs(middle) < reach).sum())
