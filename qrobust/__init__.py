"""qrobust: proofs of what quantization does to a neural network.

network = qrobust.load("models/cat_paper.json")
parameters = qrobust.Absolute(0.01).around(network)
print(qrobust.check(qrobust.LocalLabel(network, parameters, qrobust.Point([15.0, 2.0]))))
"""

from qrobust.answers import VERSION as __version__  # noqa: N811
from qrobust.answers import Answer, Assurance, Counterexample, Estimate, Verdict
from qrobust.domains import InputBox, ParameterBox, Point, Points, Polytope
from qrobust.errors import QRobustError
from qrobust.formats import load
from qrobust.maps import Quantity, RobustnessMap, random_points, robustness_map
from qrobust.network import Activation, Dense, Feature, Network, Output
from qrobust.perturbations import Absolute, Hull, PerLayer
from qrobust.queries import (
    GlobalConfidence,
    GlobalEpsilon,
    GlobalLabel,
    GreatestDelta,
    LocalConfidence,
    LocalEpsilon,
    LocalLabel,
    MarginLabel,
    SigmaEstimate,
)
from qrobust.search import Budget

# Last: the function takes the name of the module `qrobust.check`, which stays importable by `from qrobust.check import ...`.
from qrobust.solve import Session, check, estimate  # isort: skip

__all__ = [
    "Absolute",
    "Activation",
    "Answer",
    "Assurance",
    "Budget",
    "Counterexample",
    "Dense",
    "Estimate",
    "Feature",
    "GlobalConfidence",
    "GlobalEpsilon",
    "GlobalLabel",
    "GreatestDelta",
    "Hull",
    "InputBox",
    "LocalConfidence",
    "LocalEpsilon",
    "LocalLabel",
    "MarginLabel",
    "Network",
    "Output",
    "ParameterBox",
    "PerLayer",
    "Point",
    "Points",
    "Polytope",
    "QRobustError",
    "Quantity",
    "RobustnessMap",
    "Session",
    "SigmaEstimate",
    "Verdict",
    "__version__",
    "check",
    "estimate",
    "load",
    "random_points",
    "robustness_map",
]
