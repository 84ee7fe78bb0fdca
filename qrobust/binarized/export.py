"""Constraints as text for other solvers: DIMACS (SAT), OPB (pseudo-Boolean), LP (integer programming).

Each is satisfiable, or feasible, if and only if an input of the region loses the label. The first variables are the pixels'
columns of the unary constraints; LP's are v0, v1, ..., the others' 1, 2, ...

Source    SAT competition's DIMACS; PB competition's OPB, Roussel and Manquinho; CPLEX's LP
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from qrobust.binarized.cnf import Formula, formula
from qrobust.binarized.constraints import Constraints, row_bounds
from qrobust.binarized.unary import unary
from qrobust.errors import UnsupportedError
from qrobust.files import write_whole
from qrobust.layers import IntArray, SparseMatrix


def dimacs(written: Formula) -> str:
    """Return the clauses in DIMACS."""
    lines = [f"p cnf {written.variables} {len(written.clauses)}"]
    lines += [" ".join(map(str, [*clause, 0])) for clause in written.clauses]
    return "\n".join(lines) + "\n"


def inequalities(found: Constraints) -> tuple[Constraints, SparseMatrix, IntArray]:
    """Return the unary constraints as rows @ variables >= limits, each half of a reified row by itself.

    After the constraints' variables stands one for each rival, which implies the rival's row; one of them is true.
    """
    from scipy import sparse

    boolean = unary(found)
    rows, columns, ways = boolean.matrix.shape[0], boolean.columns, boolean.rivals.shape[0]
    width = columns + rows + ways
    least, most = row_bounds(boolean.matrix, boolean.ranges)
    rival_least, _ = row_bounds(boolean.rivals, boolean.ranges)

    def with_factor(matrix: SparseMatrix, first: int, factors: IntArray) -> SparseMatrix:
        places = np.arange(len(factors))
        wide = sparse.csr_array(matrix, copy=True)
        wide.resize((len(factors), width))
        return wide + sparse.csr_array((factors, (places, first + places)), shape=(len(factors), width))

    down = with_factor(boolean.matrix, columns, least - boolean.threshold)
    up = with_factor(-boolean.matrix, columns, most - boolean.threshold + 1)
    rivals = with_factor(boolean.rivals, columns + rows, rival_least - boolean.rival_threshold)
    hard = with_factor(boolean.hard, 0, np.zeros(boolean.hard.shape[0], dtype=np.int64))
    some = sparse.csr_array(
        (np.ones(ways, dtype=np.int64), (np.zeros(ways, int), columns + rows + np.arange(ways))), (1, width)
    )
    matrix = sparse.csr_array(sparse.vstack([down, up, hard, rivals, some]))
    matrix.eliminate_zeros()
    limits = [least, 1 - boolean.threshold, boolean.hard_threshold, rival_least, np.ones(1, dtype=np.int64)]
    return boolean, matrix, np.concatenate(limits)


def opb(found: Constraints) -> str:
    """Return the constraints in OPB."""
    _, matrix, limits = inequalities(found)
    lines = [f"* #variable= {matrix.shape[1]} #constraint= {len(limits)}"]
    for terms, limit in zip(_terms(matrix, "{:+d} x{}", 1), limits.tolist(), strict=True):
        lines.append(f"{' '.join(terms)} >= {limit} ;")
    return "\n".join(lines) + "\n"


def lp(found: Constraints) -> str:
    """Return the constraints in LP, without an objective."""
    _, matrix, limits = inequalities(found)
    lines = ["Minimize", " obj:", "Subject To"]
    for number, (terms, limit) in enumerate(zip(_terms(matrix, "{:+d} v{}", 0), limits.tolist(), strict=True)):
        lines.append(f" c{number}: {' '.join(terms)} >= {limit}")
    lines += ["Binaries", *(f" v{column}" for column in range(matrix.shape[1])), "End"]
    return "\n".join(lines) + "\n"


def _terms(matrix: SparseMatrix, form: str, first: int) -> list[list[str]]:
    texts = [form.format(factor, column + first) for factor, column in zip(matrix.data.tolist(), matrix.indices, strict=True)]
    return [texts[a:b] for a, b in zip(matrix.indptr, matrix.indptr[1:], strict=False)]


def write_constraints(found: Constraints, path: Path) -> None:
    """Write the constraints by the ending of the name: .cnf, .opb or .lp. Raises UnsupportedError, OutputError."""
    writers: dict[str, Callable[[], str]] = {
        ".cnf": lambda: dimacs(formula(found)),
        ".opb": lambda: opb(found),
        ".lp": lambda: lp(found),
    }
    suffix = path.suffix.lower()
    if suffix not in writers:
        raise UnsupportedError(f"{path} ends in {suffix or 'nothing'!r}: constraints are written as {', '.join(writers)}")
    write_whole(path, writers[suffix]().encode())
