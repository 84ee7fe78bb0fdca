"""The small convolutional network of signs of EEV, trained here: how many questions are decided, and how fast.

Source    Jia and Rinard 2020, arXiv 2005.03597, first version: the peer's numbers, of its own networks on its own machine
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from benchmarks.bnn_recipes import SECONDS, Solved, ask
from benchmarks.networks import shared_folder
from models.publish import FOLDER
from models.train_bnn import CONVOLUTIONAL, non_zeros, share_right, stem
from models.train_mnist import load_mnist
from qrobust.binarized.formats import load_binarized

IMAGES = 100  # the first of the test images
EPS = {  # the eps that each network was trained for, and the one between
    "conv-eps01": (Fraction(1, 10), Fraction(1, 5)),
    "conv-eps03": (Fraction(1, 5), Fraction(3, 10)),
}
DECIDED_AIM = 0.99
PEER = "EEV, first version, as published: its own network, machine and 10,000 test images"


@dataclass(frozen=True)
class Published:
    """What is published of one eps. Units: seconds a question, mean; verified a share of the test images."""

    seconds: float
    verified: float


PUBLISHED = {Fraction(1, 10): Published(0.0009, 0.8446), Fraction(3, 10): Published(0.0023, 0.3641)}


@dataclass(frozen=True)
class Measured:
    """One network. Units: accuracy a share of the 10,000 test images; weights those that are not 0; trained_for an eps."""

    name: str
    accuracy: float
    weights: int
    trained_for: Fraction
    solved: tuple[Solved, ...]

    def facts(self) -> list[tuple[tuple[str, str, float, str], dict[str, Any]]]:
        """Work, metric, value and unit of each row, and its aim or peer; a peer where the network was trained for the eps."""
        work, limit = f"bnn-eev-{self.name}", f"of {IMAGES} images, {SECONDS:g} s each"
        found: list[tuple[tuple[str, str, float, str], dict[str, Any]]] = [
            ((work, "accuracy", self.accuracy, "share of 10,000 test images"), {}),
            ((work, "non-zero weights", self.weights, "weights"), {}),
        ]
        for eps, one in zip(EPS[self.name], self.solved, strict=True):
            at, theirs = f"{work}, eps {one.eps:g}", PUBLISHED.get(eps) if eps == self.trained_for else None
            verified = {} if theirs is None else {"peer": PEER, "peer_value": theirs.verified}
            seconds = {} if theirs is None else {"peer": PEER, "peer_value": theirs.seconds}
            found += [
                ((at, "decided", one.decided, f"share {limit}"), {"aim": DECIDED_AIM}),
                ((at, "verified accuracy", one.verified, f"share {limit}"), verified),
                ((at, "stable neurons", one.stable, f"share, mean of {IMAGES} images"), {}),
                ((at, "mean_seconds", float(np.mean(one.seconds)), f"s {limit}"), seconds),
                ((at, "worst_seconds", max(one.seconds), f"s {limit}"), {}),
            ]
        return found


def measure(say: Callable[[str], None]) -> list[Measured]:
    """Ask both networks about the first test images, each at its EPS."""
    tests, found = load_mnist(shared_folder() / "mnist", "t10k"), []
    for name, recipe in CONVOLUTIONAL.items():
        network, solved = load_binarized(FOLDER / f"{stem(name)}.npz").network, []
        for eps in EPS[name]:
            solved.append(ask(network, eps, tests, IMAGES))
            one = solved[-1]
            say(f"{name}, eps {one.eps:g}: decided {one.decided}, verified {one.verified}, mean {np.mean(one.seconds):.3g} s")
        trained_for = Fraction(str(recipe.eps))
        found.append(Measured(name, share_right(network, tests), sum(non_zeros(network)), trained_for, tuple(solved)))
    return found
