"""Why a network gives a label, how often it does something, and all of its decisions at once.

from qrobust.logic import SignDecision, SignOracle, explain
"""

from qrobust.logic.explanation import Explanation, Explanations, Size, explain, explanations
from qrobust.logic.minimal import Method, Order
from qrobust.logic.oracles import Kind
from qrobust.logic.reals import Promise, RealDecision, RealOracle
from qrobust.logic.signs import SignDecision, SignOracle

__all__ = [
    "Explanation",
    "Explanations",
    "Kind",
    "Method",
    "Order",
    "Promise",
    "RealDecision",
    "RealOracle",
    "SignDecision",
    "SignOracle",
    "Size",
    "explain",
    "explanations",
]
