"""The greatest certified delta against the greatest that no attack survives, and the cost of the linear bounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from sklearn.datasets import load_digits

from benchmarks.networks import mnist_images, trained
from qrobust.answers import Verdict
from qrobust.backends.deep import LEVEL_TUNING, ROOT_TUNING, Situation
from qrobust.bounds.linear import Tuning
from qrobust.bounds.rows import Rows
from qrobust.domains import Point
from qrobust.interval import FloatArray
from qrobust.leads import Leads
from qrobust.perturbations import Absolute, HalfStep
from qrobust.queries import HALF, LocalLabel
from qrobust.search import Budget
from qrobust.solve import Session

IMAGES = 10
WORKERS = 2
CLOSE = 1e-3  # the bracket of the greatest delta ends when its ends are this near, relatively
SOON = 2.0  # seconds in which a flip has to be found, at first


def radius_ratios(seconds: float, say: Callable[[str], None] = print) -> list[tuple[float, float, float]]:
    """For each image: the greatest delta certified, the least at which a flip was found, and the seconds it took.

    The images are shared by WORKERS processes: the matrix products of one are too small for a second thread.
    """
    images: FloatArray = load_digits().data[:IMAGES] / 16
    found = []
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        for number, bracket in enumerate(pool.map(_bracket, images, [seconds] * IMAGES)):
            safe, flip, took = bracket
            say(f"  image {number}: certified {safe:.6f}, flipped {flip:.6f}, ratio {safe / flip:.4f}, {took:.0f} s")
            found.append(bracket)
    return found


def _bracket(image: FloatArray, seconds: float) -> tuple[float, float, float]:
    """Bracket the greatest delta: first the least at which a flip is soon found, then a proof as near below it as there is."""
    network = trained("digits_3x100")
    session, started = Session(), time.perf_counter()

    def verdict(delta: float, limit: float) -> Verdict:
        query = LocalLabel(network, Absolute(delta).around(network), Point(image))
        return session.check(query, budget=Budget(limit)).verdict

    safe, low, flip = 0.0, 0.0, 0.05
    while flip - low > CLOSE / 4 * flip:
        middle = 0.5 * (low + flip)
        found = verdict(middle, SOON)
        if found is Verdict.VIOLATED:
            flip = middle
        else:
            low, safe = middle, middle if found is Verdict.ROBUST else safe
    step = 0.999 * CLOSE  # so that rounding keeps the ratio
    while flip - safe > CLOSE * flip and step < 1:
        tried = max((1 - step) * flip, safe)
        found = verdict(tried, seconds)
        if found is Verdict.VIOLATED:
            flip = tried
        elif found is Verdict.ROBUST:
            safe, step = tried, 1.0
        else:
            step *= 4
    return safe, flip, time.perf_counter() - started


def forward_passes() -> dict[str, float]:
    """The cost of bounding all hidden levels and all rivals of one image, in float64 forward passes of one image."""
    network = trained("mnist_3x100")
    parameters, images = HalfStep(8).around(network), mnist_images(20)
    leads = Leads(network, HALF)
    passes = {}
    forward = _least(lambda: [network.confidences(image[None]) for image in images])
    for name, level, root in (("untuned", Tuning(0), Tuning(0)), ("tuned", LEVEL_TUNING, ROOT_TUNING)):

        def bound(level: Tuning = level, root: Tuning = root) -> None:
            for image in images:
                pairs = leads.of_label(int(network.labels(image[None])[0]))
                rows = Rows(leads.directions[pairs], np.zeros(len(pairs)), leads.strict[pairs])
                Situation.at(network, parameters, image, level).upper(rows, root)

        passes[name] = _least(bound) / forward
    return passes


def _least(function) -> float:  # type: ignore[no-untyped-def]
    times = []
    for _ in range(5):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)
