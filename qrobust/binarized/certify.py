"""A ROBUST answer's proof: the question's plain clauses refuted by a solver, and the refutation followed by the checker.

Property  sound whatever the solver does: what the checker refuses raises
"""

from __future__ import annotations

from dataclasses import replace

from qrobust.backends.worker import Worker, WorkerTimeoutError
from qrobust.binarized.answers import BinarizedAnswer, LabelChangeAnswer
from qrobust.binarized.certificates import BinarizedCertificate
from qrobust.binarized.engines.sat import refutation
from qrobust.binarized.plain_clauses import plain_clauses
from qrobust.binarized.queries import LabelChange, Robustness
from qrobust.errors import UnsoundAnswerError


def certify(answer: BinarizedAnswer | LabelChangeAnswer, seconds: float = 60.0) -> BinarizedCertificate | None:
    """Return a checked proof of a ROBUST answer, or None if time runs out, or a float engine's answer is wrong.

    Units     seconds of the solver
    Raises    ResourceError (too many clauses), UnsupportedError (a float network), BackendUnavailableError;
              UnsoundAnswerError if an exact answer is wrong, or the proof; WorkerDiedError
    """
    query = replace(answer.query, label=answer.label) if isinstance(answer, BinarizedAnswer) else answer.query
    worker = Worker()
    try:
        proof = worker.call(_refutation, query, seconds=seconds)
    except WorkerTimeoutError:
        return None
    finally:
        worker.close()
    if proof is None and not answer.exact:
        return None
    if proof is None:
        raise UnsoundAnswerError("clauses that a ROBUST answer rules out have a solution: please report")
    certificate = BinarizedCertificate(query, tuple(proof))
    fault = certificate.fault()
    if fault is not None:
        raise UnsoundAnswerError(f"a proof was refused: {fault}: please report")
    return certificate


def _refutation(query: Robustness | LabelChange) -> list[str] | None:
    return refutation(plain_clauses(query).clauses)
