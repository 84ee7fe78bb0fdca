"""ACAS Xu: how far the float16 copies of six networks move any score, over the boxes of the published properties.

The boxes are those of properties 1, 3, 4 and 5 of Katz et al. 2017 (arXiv 1702.01135, appendix), in the inputs' own units:
distance rho (ft), angle theta (rad), heading psi (rad), speeds v_own and v_int (ft/s); a bound that a property leaves open is
the end of the input's range. Property 2 has the box of property 1. Properties 1, 3 and 4 are about all six networks here,
property 5 about 1_1 alone; properties 6 to 10 are about other networks, but for 6, whose box for 1_1 is two nearly full ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.networks import shared_folder
from qrobust.domains import InputBox
from qrobust.formats import load
from qrobust.network import Network
from qrobust.perturbations import Copy
from qrobust.queries import ChangeOf, GlobalEpsilon
from qrobust.search import Budget
from qrobust.solve import Session

SECONDS = 60.0
AIM = 0.10  # (upper - lower) / upper
NETWORKS = ("1_1", "1_2", "1_3", "2_1", "2_2", "2_3")
PI = 3.141593  # the ends of theta and psi in the files
MEANS = np.array([19791.091, 0.0, 0.0, 650.0, 600.0])  # of the inputs, in the files
RANGES = np.array([60261.0, 6.28318530718, 6.28318530718, 1100.0, 1200.0])
BOXES: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((55947.691, -PI, -PI, 1145.0, 0.0), (60760.0, PI, PI, 1200.0, 60.0)),
    3: ((1500.0, -0.06, 3.10, 980.0, 960.0), (1800.0, 0.06, PI, 1200.0, 1200.0)),
    4: ((1500.0, -0.06, 0.0, 1000.0, 700.0), (1800.0, 0.06, 0.0, 1200.0, 800.0)),
    5: ((250.0, 0.2, -3.141592, 100.0, 0.0), (400.0, 0.4, -3.141592 + 0.005, 400.0, 400.0)),
}
ABOUT: dict[int, tuple[str, ...]] = {1: NETWORKS, 3: NETWORKS, 4: NETWORKS, 5: ("1_1",)}


@dataclass(frozen=True)
class Measured:
    """One network over one box."""

    name: str
    lower: float
    upper: float
    seconds: float

    @property
    def gap(self) -> float:
        return (self.upper - self.lower) / self.upper


def pair(folder: Path, number: str) -> tuple[Network, Network]:
    """A network and its float16 copy."""
    stored, copy = (load(folder / f"ACASXU_run2a_{number}_batch_2000{end}.nnet") for end in ("", "_16bit"))
    return stored, copy


def property_box(number: int) -> InputBox:
    """The normalized box of a property, rounded to nearest."""
    lower, upper = ((np.array(end) - MEANS) / RANGES for end in BOXES[number])
    return InputBox(lower, upper)


def measure(seconds: float = SECONDS, say: Callable[[str], None] = print) -> list[Measured]:
    """Estimate the greatest change for each property and each network that it is about."""
    folder, found = shared_folder() / "acasxu", []
    for number, names in ABOUT.items():
        for name in names:
            network, copy = pair(folder, name)
            query = GlobalEpsilon(network, Copy(copy).around(network), property_box(number), ChangeOf.LOGIT)
            started = time.perf_counter()
            estimate = Session().estimate(query, budget=Budget(seconds))
            took = time.perf_counter() - started
            one = Measured(f"{name}, property {number}", estimate.lower, estimate.upper, took)
            say(f"  {one.name}: [{one.lower:.6g}, {one.upper:.6g}], relative gap {one.gap:.3f}, {one.seconds:.1f} s")
            found.append(one)
    return found
