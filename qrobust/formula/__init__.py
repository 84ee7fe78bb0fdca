"""Queries as logical formulas: one term language, two encodings, SMT-LIB 2 text, exact evaluation."""

from qrobust.formula.encode import encode
from qrobust.formula.encoding import Encoding, Problem
from qrobust.formula.smtlib import Dialect, to_smtlib

__all__ = ["Dialect", "Encoding", "Problem", "encode", "to_smtlib"]
