"""Label questions about whole networks: the share of images decided, and how long each took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.networks import fanc, fanc_images, mnist_images, trained
from qrobust.answers import Verdict
from qrobust.domains import ParameterBox, Point
from qrobust.interval import FloatArray
from qrobust.network import Network
from qrobust.perturbations import HalfStep, PerLayer
from qrobust.queries import LocalLabel
from qrobust.search import Budget
from qrobust.solve import Session

SECONDS = 60.0


@dataclass(frozen=True)
class Work:
    """One row of the table: a network, its box, its images, and the aims (decided, median seconds, worst seconds)."""

    network: Callable[[], Network]
    images: Callable[[], FloatArray]
    box: Callable[[Network], ParameterBox]
    decided: float | None
    median: float | None = None
    worst: float | None = None
    seconds: float = SECONDS
    of_standing: bool = False  # whether the aim is half of what the attack leaves standing


def _half_step(per_channel: bool) -> Callable[[Network], ParameterBox]:
    return lambda network: HalfStep(8, per_channel).around(network)


def one_layer(number: int, percent: float) -> Callable[[Network], ParameterBox]:
    """Every parameter of one layer within a percentage of the range of its weights."""

    def box(network: Network) -> ParameterBox:
        weight = network.layers[number - 1].weight
        half = percent / 100 * float(weight.max() - weight.min())
        return PerLayer(tuple(half if place == number else 0.0 for place in range(1, len(network.layers) + 1))).around(network)

    return box


def works() -> dict[str, Work]:
    """All rows by name."""
    rows: dict[str, Work] = {}
    for size, decided, median, worst in (
        ("1x100", 1.0, 1.0, 20.0),
        ("2x100", 1.0, 1.0, 20.0),
        ("3x100", 0.95, None, 60.0),
        ("2x512", 0.99, None, 60.0),
    ):
        network = lambda size=size: trained(f"mnist_{size}")  # noqa: E731
        rows[f"mnist-{size}-int8"] = Work(network, mnist_images, _half_step(False), decided, median, worst)
        rows[f"mnist-{size}-int8-per-channel"] = Work(network, mnist_images, _half_step(True), 1.0)
    fcnn7 = lambda: fanc("fcnn7")  # noqa: E731
    rows["fcnn7-int8"] = Work(fcnn7, fanc_images, _half_step(False), 0.97)
    rows["fcnn7-int8-per-channel"] = Work(fcnn7, fanc_images, _half_step(True), 1.0)
    six = lambda: trained("mnist_6layer")  # noqa: E731
    for number, percents in ((6, (0.5, 1.0, 1.5, 2.0)), (5, (0.1, 0.2, 0.3, 0.4)), (4, (0.1, 0.2, 0.3, 0.4))):
        for percent in percents:
            rows[f"onelayer-fc{number}-{percent:g}"] = Work(six, mnist_images, one_layer(number, percent), 1.0, 0.01)
    for number in (3, 2, 1):
        for percent in (0.1, 0.2, 0.3, 0.4):
            rows[f"onelayer-fc{number}-{percent:g}"] = Work(six, mnist_images, one_layer(number, percent), None, seconds=5.0)
    rows["onelayer-all-int8"] = Work(six, mnist_images, _half_step(False), None, seconds=5.0)
    rows["fconv4-int8-per-channel"] = Work(
        lambda: fanc("fconv4"), fanc_images, _half_step(True), None, seconds=20.0, of_standing=True
    )
    return rows


@dataclass(frozen=True)
class Measured:
    """Verdicts and seconds of all images."""

    verdicts: list[Verdict]
    seconds: list[float]

    def share(self, *verdicts: Verdict) -> float:
        return sum(v in verdicts for v in self.verdicts) / len(self.verdicts)

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))


def measure(work: Work, say: Callable[[str], None] = print) -> Measured:
    """Ask about every image in turn; what all images share (the prepared network) is made before the clock starts."""
    network, images = work.network(), work.images()
    box, session = work.box(network), Session()
    session.check(LocalLabel(network, box, Point(images[0])), budget=Budget(1.0))
    verdicts, times = [], []
    for number, image in enumerate(images):
        started = time.perf_counter()
        answer = session.check(LocalLabel(network, box, Point(image)), budget=Budget(work.seconds))
        times.append(time.perf_counter() - started)
        verdicts.append(answer.verdict)
        if answer.verdict is Verdict.UNKNOWN:
            say(f"  image {number}: unknown after {times[-1]:.1f} s")
    return Measured(verdicts, times)
