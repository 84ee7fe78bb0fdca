"""Exact: reified sums over integers, as they are.

Accepts   every question
Gives     Found or Nothing; Undecided at the time limit
Property  sound and complete: it computes in integers; the solver itself is trusted. It can log proofs that VeriPB checks; they
          are not asked for here
Licence   AGPL-3.0, so it is no dependency and in no extra: whoever wants it installs it
Source    Elffers and Nordstrom 2018 (RoundingSat), IJCAI; Devriendt et al. 2021, AAAI; https://pypi.org/project/exact
"""

from __future__ import annotations

import numpy as np

from qrobust.binarized.constraints import Constraints
from qrobust.binarized.engines.base import Found, Nothing, Outcome, Undecided
from qrobust.binarized.queries import Norm
from qrobust.binarized.unary import unary
from qrobust.errors import BackendUnavailableError
from qrobust.layers import SparseMatrix

INSTALL = "the exact engine needs `pip install exact` (its licence is AGPL-3.0)"
MOST_ORDERED = 256  # values of a variable that gets one Boolean each; one of more gets its binary digits


def decide(found: Constraints, seconds: float) -> Outcome:
    """Decide by one model over all rivals. Raises BackendUnavailableError."""
    try:
        import exact
    except ImportError:
        raise BackendUnavailableError(INSTALL) from None
    if found.region.norm is not Norm.LINF:
        found = unary(found)
    solver = exact.Exact([("verbosity", "0")])
    ranges = found.ranges.tolist()
    for number, top in enumerate(ranges):
        solver.addVariable(f"v{number}", 0, top, "order" if top < MOST_ORDERED else "log")
    for row, limit in enumerate(found.threshold.tolist()):
        solver.addReification(f"v{found.columns + row}", True, _terms(found.matrix, row), limit)
    for row, limit in enumerate(found.hard_threshold.tolist()):
        solver.addConstraint(_terms(found.hard, row), True, limit, False, 0)
    ways = []
    for row, limit in enumerate(found.rival_threshold.tolist()):
        ways.append(f"w{row}")
        solver.addVariable(ways[-1], 0, 1)
        solver.addRightReification(ways[-1], True, _terms(found.rivals, row), limit)
    solver.addConstraint([(1, way) for way in ways], True, 1, False, 0)
    status = solver.runFull(False, max(seconds, 0.01))
    if status == "UNSAT":
        return Nothing(exact=True)
    if status != "SAT":
        return Undecided(f"Exact stopped: {status.lower()}")
    values = solver.getLastSolutionFor([f"v{column}" for column in range(found.columns)])
    return Found(found.input_levels(np.array(values, dtype=np.int64)))


def _terms(matrix: SparseMatrix, row: int) -> list[tuple[int, str]]:
    part = slice(matrix.indptr[row], matrix.indptr[row + 1])
    names = [f"v{column}" for column in matrix.indices[part].tolist()]
    return list(zip(matrix.data[part].tolist(), names, strict=True))
