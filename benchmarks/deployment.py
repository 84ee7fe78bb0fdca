"""What decides a deployment: does any rounding to a scheme keep a label, and does the copy that ships?

Small MLPs are trained with fixed seeds on the tables that scikit-learn bundles, inputs standardised; the questions are about
inputs that were held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from qrobust.bounds.local import Status
from qrobust.domains import ParameterBox
from qrobust.formats.sklearn import from_sklearn
from qrobust.interval import FloatArray
from qrobust.maps import Quantity, robustness_map
from qrobust.network import Network
from qrobust.perturbations import Copy, Rounding
from qrobust.quantization import parse_scheme
from qrobust.search import Budget

HIDDEN = {"iris": (8,), "wine": (16,), "breast_cancer": (16, 16), "digits": (32, 32)}
SCHEMES = ("int8", "int8-per-channel", "int4", "fp16")
SECONDS = 20.0  # a point
SEED = 0


@dataclass(frozen=True)
class Shares:
    """Shares of the held-out inputs: any rounding keeps the label (certified), or that is decided; the copy keeps it."""

    certified: float
    decided: float
    copy: float
    seconds: float


def trained(name: str) -> tuple[Network, FloatArray, float]:
    """Return an MLP, the standardised inputs held out (three in ten), and the share of these that it labels right."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    inputs, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    split = train_test_split(inputs, labels, test_size=0.3, random_state=SEED, stratify=labels)
    scaler = StandardScaler().fit(split[0])
    model = MLPClassifier(HIDDEN[name], random_state=SEED, max_iter=2000, alpha=1e-3).fit(scaler.transform(split[0]), split[2])
    held_out = np.asarray(scaler.transform(split[1]), dtype=np.float64)
    return from_sklearn(model), held_out, float(model.score(held_out, split[3]))


def shares(network: Network, points: FloatArray, scheme: str) -> Shares:
    """Decide every held-out input for any rounding, and for the one copy."""
    chosen = parse_scheme(scheme)
    boxes: list[ParameterBox] = [Rounding(chosen).around(network), Copy(chosen.copy(network)).around(network)]
    anyhow, copied = (robustness_map(network, b, points, quantity=Quantity.LABEL, budget=Budget(SECONDS)) for b in boxes)
    safe, open_ = anyhow.count(Status.SAFE), anyhow.count(Status.UNDECIDED)
    return Shares(safe / len(points), 1 - open_ / len(points), copied.count(Status.SAFE) / len(points), anyhow.seconds)


def measure(say: Callable[[str], None]) -> Iterator[tuple[str, str, int, float, Shares]]:
    """Yield for each table and scheme: both names, how many inputs, the float model's accuracy, and the shares."""
    for name in HIDDEN:
        network, points, accuracy = trained(name)
        say(f"{name}: {network}, {accuracy:.1%} of {len(points)} held-out inputs right")
        for scheme in SCHEMES:
            found = shares(network, points, scheme)
            say(f"  {scheme}: certified {found.certified:.1%}, copy {found.copy:.1%}, {found.seconds:.1f} s")
            yield name, scheme, len(points), accuracy, found
