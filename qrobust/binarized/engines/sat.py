"""SAT: the constraints as clauses, decided by CaDiCaL through python-sat.

Accepts   every question whose clauses fit in memory
Gives     Found or Nothing, both in exact arithmetic; on request the proof that there is nothing, as DRAT lines
Property  sound and complete; the solver itself is trusted, or its proof is checked by an independent checker
Source    Narodytska et al. 2018, arXiv 1709.06662; Biere et al., CaDiCaL; Ignatiev et al., python-sat
"""

from __future__ import annotations

from pathlib import Path

from qrobust.binarized.cnf import INSTALL, Encoding, formula
from qrobust.binarized.constraints import Constraints
from qrobust.binarized.engines.base import Found, Nothing, Outcome, Undecided
from qrobust.binarized.export import dimacs
from qrobust.errors import BackendUnavailableError, ResourceError
from qrobust.files import write_together

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


def prove(found: Constraints, stem: Path, encoding: Encoding = Encoding.TOTALIZER) -> bool:
    """Write stem.cnf and, if no input loses the label, stem.drat with it; return whether there is such a proof.

    Raises    BackendUnavailableError, ResourceError, OutputError
    """
    try:
        from pysat.solvers import Solver
    except ImportError:
        raise BackendUnavailableError(INSTALL) from None
    written = formula(found, encoding)
    files = {stem.with_suffix(".cnf"): dimacs(written).encode()}
    with Solver(name=SOLVER, bootstrap_with=written.clauses, with_proof=True) as solver:
        proved = not solver.solve()
        if proved:
            files[stem.with_suffix(".drat")] = ("\n".join(solver.get_proof()) + "\n").encode()
    write_together(files)
    return proved
