"""Networks of signs, decided exactly.

from fractions import Fraction
from qrobust.binarized import Ball, BinarizedSession, Robustness
from qrobust.binarized.formats import load_binarized

network = load_binarized("models/bnn_conv_eps03.npz").network
with BinarizedSession() as session:
    print(session.check(Robustness(network, Ball([0.0] * 784, Fraction(1, 10)))))
"""

from qrobust.binarized.answers import BinarizedAnswer, LabelChangeAnswer, LeastChangeAnswer, PairWitness, Witness
from qrobust.binarized.attacks import AttackAnswer, Method, run_attack
from qrobust.binarized.certificates import BinarizedCertificate, load_certificate
from qrobust.binarized.certification import certify
from qrobust.binarized.folding import Folded, fold
from qrobust.binarized.network import BatchNorm, BinarizedNetwork, Block, Grid, InputRounding, Linear
from qrobust.binarized.queries import Ball, Box, LabelChange, LeastChange, Norm, Region, Robustness, TieRule, ZeroSign
from qrobust.binarized.solve import BinarizedSession

__all__ = [
    "AttackAnswer",
    "Ball",
    "BatchNorm",
    "BinarizedAnswer",
    "BinarizedCertificate",
    "BinarizedNetwork",
    "BinarizedSession",
    "Block",
    "Box",
    "Folded",
    "Grid",
    "InputRounding",
    "LabelChange",
    "LabelChangeAnswer",
    "LeastChange",
    "LeastChangeAnswer",
    "Linear",
    "Method",
    "Norm",
    "PairWitness",
    "Region",
    "Robustness",
    "TieRule",
    "Witness",
    "ZeroSign",
    "certify",
    "fold",
    "load_certificate",
    "run_attack",
]
