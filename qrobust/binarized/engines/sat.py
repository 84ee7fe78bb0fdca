"""SAT: the constraints as clauses, decided by CaDiCaL through python-sat.

Accepts   every question whose clauses fit in memory
Gives     Found or Nothing, both in exact arithmetic; on request the proof that there is nothing, in LRAT
Property  sound and complete; the solver itself is trusted, or its proof is checked by `lrat`, which shares nothing with it
Source    Narodytska et al. 2018, arXiv 1709.06662; Biere et al., CaDiCaL; Ignatiev et al., python-sat
"""

from __future__ import annotations

import tempfile

from qrobust.binarized.cnf import INSTALL, Encoding, formula
from qrobust.binarized.constraints import Constraints
from qrobust.binarized.engines.base import Found, Nothing, Outcome, Undecided
from qrobust.binarized.lrat import trimmed
from qrobust.errors import BackendUnavailableError, ResourceError

SOLVER = "cadical195"


def decide(found: Constraints, seconds: float, encoding: Encoding = Encoding.TOTALIZER) -> Outcome:
    """Decide by clauses. The time limit is enforced from outside. Raises BackendUnavailableError."""
    try:
        from pysat.solvers import Solver
    except ImportError:
        raise BackendUnavailableError(INSTALL) from None
    try:
        written = formula(found, encoding)
    except ResourceError as error:
        return Undecided(str(error))
    with Solver(name=SOLVER, bootstrap_with=written.clauses) as solver:
        if not solver.solve():
            return Nothing(exact=True)
        return Found(written.input_levels(solver.get_model()))


def refutation(clauses: list[list[int]]) -> list[str] | None:
    """Return a proof that clauses have no solution, as lines of LRAT, or None if they have one.

    The time limit is enforced from outside. Raises BackendUnavailableError.
    """
    try:
        import pysolvers
        from pysat.solvers import Cadical195
    except ImportError:
        raise BackendUnavailableError(INSTALL) from None
    if [] in clauses:
        return [f"{len(clauses) + 1} 0 {clauses.index([]) + 1} 0"]
    with tempfile.TemporaryFile() as traced, Cadical195() as solver:
        solver.configure({"lrat": 1, "binary": 0})
        pointer = pysolvers.cadical195_tracepr(solver.cadical, traced)
        for clause in clauses:
            solver.add_clause(clause)
        if solver.solve():
            return None
        pysolvers.flushpr(pointer)
        traced.seek(0)
        return trimmed(traced.read().decode().splitlines(), len(clauses))
