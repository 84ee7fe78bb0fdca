"""A 30-50-1 network over the box of its table: the greatest change of its confidence, and the margin that keeps a label."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.networks import MODELS
from qrobust.domains import InputBox
from qrobust.formats import load
from qrobust.perturbations import Absolute
from qrobust.queries import GlobalEpsilon, SigmaEstimate
from qrobust.search import Budget
from qrobust.solve import Session

SECONDS = 60.0
AIM = 0.01  # (upper - lower) / upper
DELTAS = (0.001, 0.005, 0.01)
LABEL = 1


@dataclass(frozen=True)
class Measured:
    """One quantity at one delta."""

    name: str
    lower: float
    upper: float
    seconds: float

    @property
    def gap(self) -> float:
        return (self.upper - self.lower) / self.upper if self.upper else 0.0


def measure() -> list[Measured]:
    """Estimate eps and sigma for each delta, by mixed-integer programs."""
    network, found = load(MODELS / "breast_cancer_50.json"), []
    domain = InputBox.of_features(network)
    for delta in DELTAS:
        box = Absolute(delta).around(network)
        for what, query in (
            ("eps", GlobalEpsilon(network, box, domain)),
            (f"sigma-{LABEL}", SigmaEstimate(network, box, domain, LABEL)),
        ):
            started = time.perf_counter()
            estimate = Session().estimate(query, backend="milp", budget=Budget(SECONDS))
            took = time.perf_counter() - started
            found.append(Measured(f"{what}-{delta:g}", estimate.lower, estimate.upper, took))
    return found
