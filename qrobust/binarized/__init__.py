"""Networks of signs, decided exactly.

from qrobust.binarized import Ball, BinarizedSession, Robustness
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
