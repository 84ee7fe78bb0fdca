"""Networks of signs trained by recipe: how well they label, and how fast questions about them are decided."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from benchmarks.networks import shared_folder
from models.publish import FOLDER
from models.train_bnn import non_zeros, share_right, stem
from models.train_mnist import Images, load_mnist
from qrobust.answers import Verdict
from qrobust.binarized import Ball, BinarizedNetwork, BinarizedSession, Folded, Region, Robustness, fold
from qrobust.binarized.formats import load_binarized
from qrobust.binarized.recipes import RECIPES

IMAGES = 20  # the first of the test images
SECONDS = 30.0  # for each
EPS = (Fraction(1, 20), Fraction(1, 10), Fraction(1, 5))


@dataclass(frozen=True)
class Solved:
    """What came of one network's questions at one eps: the seconds of each, and shares of the images."""

    eps: float
    seconds: tuple[float, ...]
    decided: float
    verified: float
    stable: float


@dataclass(frozen=True)
class Measured:
    """One recipe's network. Units: accuracy a share of the 10,000 test images; weights those that are not 0."""

    name: str
    accuracy: float
    weights: int
    solved: tuple[Solved, ...]

    def facts(self) -> list[tuple[str, str, float, str]]:
        """Work, metric, value and unit of each row."""
        work, limit = f"bnn-recipes-{self.name}", f"of {IMAGES} images, {SECONDS:g} s each"
        found: list[tuple[str, str, float, str]] = [
            (work, "accuracy", self.accuracy, "share of 10,000 test images"),
            (work, "non-zero weights", self.weights, "weights"),
        ]
        for one in self.solved:
            at = f"{work}, eps {one.eps:g}"
            found += [
                (at, "share decided", one.decided, f"share {limit}"),
                (at, "verified accuracy", one.verified, f"share {limit}"),
                (at, "stable neurons", one.stable, f"share, mean of {IMAGES} images"),
                (at, "mean_seconds", float(np.mean(one.seconds)), f"s {limit}"),
                (at, "worst_seconds", max(one.seconds), f"s {limit}"),
            ]
        return found


def measure(say: Callable[[str], None]) -> list[Measured]:
    """Ask about the first test images, each at its own label."""
    folder, found = shared_folder() / "mnist", []
    tests = load_mnist(folder, "t10k")
    for name in RECIPES:
        network = load_binarized(FOLDER / f"{stem(name)}.npz").network
        solved = []
        for eps in EPS:
            solved.append(ask(network, eps, tests, IMAGES))
            say(f"{name}, eps {float(eps):g}: {solved[-1]}")
        found.append(Measured(name, share_right(network, tests), sum(non_zeros(network)), tuple(solved)))
    return found


def ask(network: BinarizedNetwork, eps: Fraction, tests: Images, count: int, limit: float = SECONDS) -> Solved:
    """Ask about the first test images, each at its own label, `limit` seconds for each."""
    images, labels = tests.inputs[:count], tests.labels[:count]
    seconds, decided, verified, stable, integers = [], 0, 0, [], fold(network)
    with BinarizedSession() as session:
        session.check(Robustness(network, Ball(images[0], Fraction(0))))  # folds the network, once
        for image, label in zip(images, labels.tolist(), strict=True):
            query = Robustness(network, Ball(image, eps))
            stable.append(stable_share(integers, query.ball.region(network)))
            started = time.perf_counter()
            answer = session.check(query, seconds=limit)
            seconds.append(time.perf_counter() - started)
            decided += answer.verdict is not Verdict.UNKNOWN
            verified += answer.verdict is Verdict.ROBUST and answer.label == label
    return Solved(float(eps), tuple(seconds), decided / count, verified / count, float(np.mean(stable)))


def stable_share(integers: Folded, region: Region) -> float:
    """The share of neurons that intervals show to have one sign all over a region."""
    lower, upper, stable, neurons = region.lower, region.upper, 0, 0
    for layer in integers.layers:
        up, down = layer.matrix.maximum(0), layer.matrix.minimum(0)
        on = up @ lower + down @ upper >= layer.threshold
        off = up @ upper + down @ lower < layer.threshold
        stable, neurons = stable + int((on | off).sum()), neurons + len(on)
        lower, upper = np.where(on, 1, -1), np.where(off, -1, 1)
    return stable / neurons
