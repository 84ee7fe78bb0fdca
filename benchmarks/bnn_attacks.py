"""Attacks by name on a network of signs, at the same images: how many labels they take, and how far they raise the lead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from benchmarks.networks import shared_folder
from models.publish import FOLDER
from models.train_bnn import stem
from models.train_mnist import load_mnist
from qrobust.binarized import Ball, Method, Robustness, run_attack
from qrobust.binarized.formats import load_binarized

IMAGES, SECONDS = 10, 5.0
EPS = (Fraction(1, 20), Fraction(1, 10))


@dataclass(frozen=True)
class Attacked:
    """One method at one eps. Units: flipped a share of the images; lead the mean gain, as a share of the margin at first."""

    method: str
    eps: float
    flipped: float
    gain: float
    seconds: float

    def facts(self) -> list[tuple[str, str, float, str]]:
        """Work, metric, value and unit of each row."""
        work, images = f"bnn-attacks-{self.method}, eps {self.eps:g}", f"of {IMAGES} images, at most {SECONDS:g} s each"
        return [
            (work, "labels taken", self.flipped, f"share {images}"),
            (work, "gain of the lead", self.gain, f"of the margin at first, mean {images}"),
            (work, "mean_seconds", self.seconds, f"s {images}"),
        ]


def measure(say: Callable[[str], None]) -> list[Attacked]:
    """Attack the first test images, to the time limit, each towards the class that comes second."""
    network = load_binarized(FOLDER / f"{stem('binary')}.npz").network
    images = load_mnist(shared_folder() / "mnist", "t10k", IMAGES).inputs
    found = []
    for eps in EPS:
        for method in Method:
            answers = [
                run_attack(Robustness(network, Ball(image, eps)), method, target="second", seconds=SECONDS, stop_at_hit=False)
                for image in images
            ]
            gains = [float((one.lead - one.first_lead) / -one.first_lead) for one in answers if one.first_lead < 0]
            flipped, seconds = np.mean([one.hits for one in answers]), np.mean([one.seconds for one in answers])
            found.append(Attacked(method.value, float(eps), float(flipped), float(np.mean(gains)), float(seconds)))
            say(str(found[-1]))
    return found
