"""qrobust: proofs of what quantization does to a neural network.

network = qrobust.load("models/cat_paper.json")
parameters = qrobust.Absolute(0.01).around(network)
print(qrobust.check(qrobust.LocalLabel(network, parameters, qrobust.Point([15.0, 2.0]))))
"""

from qrobust.answers import VERSION as __version__  # noqa: N811
from qrobust.answers import Answer, Assurance, Counterexample, Estimate, Verdict
from qrobust.arrays import Arrays
from qrobust.bits import Family, FewestBits, fewest_bits
from qrobust.certificates import Certificate, load_certificate
from qrobust.check import certificate_fault
from qrobust.domains import InputBox, ParameterBox, Point, Points, Polytope
from qrobust.errors import QRobustError
from qrobust.formats import load, load_program, save
from qrobust.held import held
from qrobust.maps import Quantity, RobustnessMap, random_points, robustness_map
from qrobust.network import Activation, AveragePool2d, Conv2d, Dense, Feature, MaxPool2d, Network, Output, Scaling
from qrobust.perturbations import Absolute, Copy, HalfStep, Hull, PerLayer, Rounding
from qrobust.quantization import PerLayerScheme, Scheme, outside, parse_scheme
from qrobust.queries import (
    ChangeOf,
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
    "Arrays",
    "Assurance",
    "AveragePool2d",
    "Budget",
    "Certificate",
    "ChangeOf",
    "Conv2d",
    "Copy",
    "Counterexample",
    "Dense",
    "Estimate",
    "Family",
    "Feature",
    "FewestBits",
    "GlobalConfidence",
    "GlobalEpsilon",
    "GlobalLabel",
    "GreatestDelta",
    "HalfStep",
    "Hull",
    "InputBox",
    "LocalConfidence",
    "LocalEpsilon",
    "LocalLabel",
    "MarginLabel",
    "MaxPool2d",
    "Network",
    "Output",
    "ParameterBox",
    "PerLayer",
    "PerLayerScheme",
    "Point",
    "Points",
    "Polytope",
    "QRobustError",
    "Quantity",
    "RobustnessMap",
    "Rounding",
    "Scaling",
    "Scheme",
    "Session",
    "SigmaEstimate",
    "Verdict",
    "__version__",
    "certificate_fault",
    "check",
    "estimate",
    "fewest_bits",
    "held",
    "load",
    "load_certificate",
    "load_program",
    "outside",
    "parse_scheme",
    "random_points",
    "robustness_map",
    "save",
]
