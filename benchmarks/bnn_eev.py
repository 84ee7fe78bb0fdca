"""The small convolutional network of signs of EEV, trained here by every recipe: how many questions are decided, and how fast.

Source    Jia and Rinard 2020, arXiv 2005.03597, first version: the peer's numbers, of its own networks on its own machine
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from benchmarks.bnn_recipes import SECONDS, Solved, ask
from benchmarks.networks import shared_folder
from models.publish import FOLDER
from models.train_bnn import CONVOLUTIONAL, FOR_EPS, non_zeros, share_right, stem
from models.train_mnist import load_mnist
from qrobust.binarized.formats import load_binarized


@dataclass(frozen=True)
class Asked:
    """How many of the first test images are asked about. Units: seconds for each, at most."""

    images: int
    seconds: float


DECIDED_AIM = 0.99
EPS = (Fraction(1, 10), Fraction(1, 5), Fraction(3, 10))
DECIDABLE = Asked(100, SECONDS)  # of networks that are made to be decided at an eps
WHOLE = Asked(10_000, SECONDS)  # of these at that eps: the peer's images
OTHERS = Asked(20, 3.0)  # of networks that are not
PEER = "EEV, first version, as published: its own network, machine and 10,000 test images"


@dataclass(frozen=True)
class Published:
    """What is published of one eps. Units: seconds a question, mean; verified a share of the test images."""

    seconds: float
    verified: float


PUBLISHED = {Fraction(1, 10): Published(0.0009, 0.8446), Fraction(3, 10): Published(0.0023, 0.3641)}


@dataclass(frozen=True)
class Measured:
    """One network. Units: accuracy a share of the 10,000 test images; weights those that are not 0."""

    name: str
    accuracy: float
    weights: int
    solved: tuple[tuple[Fraction, Asked, Solved], ...]

    def facts(self) -> list[tuple[tuple[str, str, float, str], dict[str, Any]]]:
        """Work, metric, value and unit of each row, and its aim or peer; a peer where the network was trained for the eps."""
        work = f"bnn-eev-{self.name}"
        found: list[tuple[tuple[str, str, float, str], dict[str, Any]]] = [
            ((work, "accuracy", self.accuracy, "share of 10,000 test images"), {}),
            ((work, "non-zero weights", self.weights, "weights"), {}),
        ]
        for eps, asked, one in self.solved:
            limit = f"of {asked.images:,} images, {asked.seconds:g} s each"
            at, theirs = f"{work}, eps {float(eps):g}", PUBLISHED.get(eps) if FOR_EPS.get(self.name) == eps else None
            verified = {} if theirs is None else {"peer": PEER, "peer_value": theirs.verified}
            seconds = {} if theirs is None else {"peer": PEER, "peer_value": theirs.seconds}
            aim = {"aim": DECIDED_AIM} if self.name in FOR_EPS else {}
            if asked is WHOLE:
                at += ", all test images"
            found += [
                ((at, "decided", one.decided, f"share {limit}"), aim),
                ((at, "verified accuracy", one.verified, f"share {limit}"), verified),
                ((at, "stable neurons", one.stable, f"share, mean of {asked.images:,} images"), {}),
                ((at, "mean_seconds", float(np.mean(one.seconds)), f"s {limit}"), seconds),
                ((at, "median_seconds", float(np.median(one.seconds)), f"s {limit}"), {}),
                ((at, "worst_seconds", max(one.seconds), f"s {limit}"), {}),
            ]
        return found


def measure(say: Callable[[str], None], names: Sequence[str] = tuple(CONVOLUTIONAL)) -> list[Measured]:
    """Ask networks about the first test images, each at every eps; those made for an eps, there about all."""
    tests, found = load_mnist(shared_folder() / "mnist", "t10k"), []
    for name in names:
        network, solved = load_binarized(FOLDER / f"{stem(name)}.npz").network, []
        for eps, how in asked_of(name):
            one = ask(network, eps, tests, how.images, how.seconds)
            solved.append((eps, how, one))
            shares = f"decided {one.decided}, verified {one.verified}, mean {np.mean(one.seconds):.3g} s"
            say(f"{name}, eps {one.eps:g}, {how.images:,} images: {shares}")
        found.append(Measured(name, share_right(network, tests), sum(non_zeros(network)), tuple(solved)))
    return found


def asked_of(name: str) -> list[tuple[Fraction, Asked]]:
    """Return at which eps a network is asked, and how."""
    if name not in FOR_EPS:
        return [(eps, OTHERS) for eps in EPS]
    return [*((eps, DECIDABLE) for eps in EPS), (FOR_EPS[name], WHOLE)]
