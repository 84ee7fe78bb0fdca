"""A ROBUST answer's proof: the question's plain clauses refuted by a solver, and the refutation followed by the checker.

Property  sound whatever the solver does: what the checker refuses raises
"""

from __future__ import annotations

from dataclasses import replace

from qrobust.backends.worker import Worker, WorkerDiedError, WorkerTimeoutError
from qrobust.binarized.certificates import BinarizedCertificate
from qrobust.binarized.engines.sat import refutation
from qrobust.binarized.plain_clauses import plain_clauses
from qrobust.binarized.queries import LabelChange, Robustness
from qrobust.binarized.solve import folded
from qrobust.errors import ResourceError, UnsoundAnswerError


def certify(
    query: Robustness | LabelChange, seconds: float = 60.0, *, is_proved: bool = True, worker: Worker | None = None
) -> BinarizedCertificate:
    """Return a checked proof of a question that was answered by ROBUST.

    Accepts   is_proved: whether an exact engine said so; worker: a process for the solver, kept for the next question
    Units     seconds of the solver
    Raises    ResourceError (too many clauses, no time left, no memory; ROBUST of a float engine that is not so),
              UnsupportedError (a float network), BackendUnavailableError; UnsoundAnswerError if an exact engine's answer is
              wrong, or the proof
    """
    if isinstance(query, Robustness) and query.label is None:
        centre = query.ball.region(query.network).centre
        query = replace(query, label=int(folded(query.network, query.zero).labels(centre[None])[0]))
    own = worker or Worker()
    try:
        proof = own.call(_refutation, query, seconds=seconds)
    except WorkerTimeoutError:
        raise ResourceError(f"no proof was found in {seconds:g} s: give more time") from None
    except WorkerDiedError as error:
        raise ResourceError(f"no proof was found: {error}") from None
    finally:
        if worker is None:
            own.close()
    if proof is None and is_proved:
        raise UnsoundAnswerError("clauses that a ROBUST answer rules out have a solution: please report")
    if proof is None:
        raise ResourceError("there is no proof: an input is labelled otherwise, ROBUST was computed in floating point")
    certificate = BinarizedCertificate(query, tuple(proof))
    fault = certificate.fault()
    if fault is not None:
        raise UnsoundAnswerError(f"a proof was refused: {fault}: please report")
    return certificate


def _refutation(query: Robustness | LabelChange) -> list[str] | None:
    return refutation(plain_clauses(query).clauses)
