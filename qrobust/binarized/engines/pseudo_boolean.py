"""Z3's pseudo-Boolean constraints over the unary constraints.

Accepts   every question
Gives     Found or Nothing; Undecided at the time limit
Property  sound and complete: it computes in integers; the solver itself is trusted
Source    Bjorner et al., Z3
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qrobust.binarized.cnf import sums
from qrobust.binarized.constraints import Constraints
from qrobust.binarized.engines.base import Found, Nothing, Outcome, Undecided
from qrobust.binarized.unary import unary


def decide(found: Constraints, seconds: float) -> Outcome:
    """Decide by Z3's solver for finite domains."""
    import z3

    boolean = unary(found)
    variables = [z3.Bool(f"v{number}") for number in range(boolean.columns + boolean.matrix.shape[0])]
    solver = z3.SolverFor("QF_FD")
    solver.set("timeout", max(1, min(int(seconds * 1000), 2**31 - 1)))
    for row, (literals, least) in enumerate(sums(boolean.matrix, boolean.threshold)):
        solver.add(variables[boolean.columns + row] == _at_least(variables, literals, least))
    for literals, least in sums(boolean.hard, boolean.hard_threshold):
        solver.add(_at_least(variables, literals, least))
    solver.add(z3.Or([_at_least(variables, *row) for row in sums(boolean.rivals, boolean.rival_threshold)]))
    verdict = solver.check()
    if verdict == z3.unsat:
        return Nothing(exact=True)
    if verdict != z3.sat:
        return Undecided(f"Z3 stopped: {solver.reason_unknown()}")
    model = solver.model()
    columns = [int(z3.is_true(model.eval(variables[c], model_completion=True))) for c in range(boolean.columns)]
    return Found(boolean.input_levels(np.array(columns, dtype=np.int64)))


def _at_least(variables: list[Any], literals: list[int], least: int) -> Any:
    import z3

    if least <= 0:
        return z3.BoolVal(True)
    if least > len(literals):
        return z3.BoolVal(False)
    counts: dict[int, int] = {}
    for literal in literals:
        counts[literal] = counts.get(literal, 0) + 1
    terms = [(variables[c - 1] if c > 0 else z3.Not(variables[-c - 1]), n) for c, n in counts.items()]
    return z3.PbGe(terms, least)
