"""For test suites: assert that a quantization changes nothing that matters.

from qrobust.testing import assert_robust

def test_int8_keeps_the_labels():
    network = qrobust.load("model.keras")
    assert_robust(network, "int8-per-channel", validation_rows, margin=0.05)
    assert_robust(network, qrobust.load_program("model_int8.tflite"), validation_rows, eps=0.02)
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from qrobust.answers import Verdict
from qrobust.bounds.local import Status
from qrobust.comparison import at_points, compare, is_enumerable, on_grid
from qrobust.domains import Domain, ParameterBox, Point, Points
from qrobust.errors import NumberError
from qrobust.exact import to_fraction
from qrobust.integer.program import IntegerProgram, Kernels
from qrobust.network import Network
from qrobust.perturbations import Copy, Perturbation, Rounding
from qrobust.quantization import Scheme, parse_scheme
from qrobust.queries import (
    GlobalConfidence,
    GlobalLabel,
    LocalConfidence,
    LocalLabel,
    MarginLabel,
    Query,
)
from qrobust.report.examples import counterexample_text, example_text, program_example
from qrobust.report.findings import summed
from qrobust.report.programs import statuses_of
from qrobust.search import Budget
from qrobust.solve import Session
from qrobust.sweep import sweep

__all__ = ["Change", "assert_robust"]

Change = str | Scheme | Perturbation | ParameterBox | Network | IntegerProgram
"""What is done to a network: any rounding to a scheme (or its name), any parameters of a rule's box or of a box, exactly the
parameters of another network, or an integer program in its place."""


def assert_robust(
    network: Network,
    change: Change,
    where: Domain | npt.ArrayLike,
    *,
    eps: float | str | Fraction | None = None,
    margin: float | str | Fraction = 0,
    level: float | str | Fraction = "1/2",
    seconds: float = 60.0,
    backend: str = "auto",
    kernels: Kernels | None = None,
) -> None:
    """Pass if the change is proved to move no confidence by more than eps or, without eps, to keep every label of a margin.

    Accepts   where: a domain, one input (inputs,), or several (points, inputs); an integer program over a box is asked about
              every integer input that means a point of it. seconds: for the whole question. Floats count as they are written.
              kernels: of an integer program; the usual ones of its runtime unless others are named
    Raises    AssertionError that says what, where and the counterexample, if it is violated or undecided; and what
              `Session.check` or `comparison.compare` raise
    """
    domain = where if isinstance(where, Domain) else _domain(where)
    exact = None if eps is None else _exact(eps)
    if exact is not None and _exact(margin):
        raise NumberError("eps and margin do not go together: ask twice")
    if isinstance(change, IntegerProgram):
        if not isinstance(domain, Point | Points) and not is_enumerable(change, domain):
            _assert_over_box(network, change, domain, exact, _exact(margin), _exact(level), kernels, seconds)
        else:
            _assert_program(network, change, domain, exact, _exact(margin), _exact(level), kernels)
        return
    query = _query(network, _box(network, change), domain, exact, _exact(margin), _exact(level))
    answer = Session().check(query, backend=backend, budget=Budget(seconds))
    if answer.verdict is not Verdict.ROBUST:
        example = answer.counterexample
        shown = "" if example is None else "\n" + counterexample_text(network, example)
        raise AssertionError(f"{answer}{shown}")


def _exact(value: float | str | Fraction) -> Fraction:
    return to_fraction(repr(value) if isinstance(value, float) else value)


def _domain(where: npt.ArrayLike) -> Domain:
    array = np.asarray(where, dtype=np.float64)
    return Point(array) if array.ndim == 1 else Points(array)


def _box(network: Network, change: Change) -> ParameterBox:
    match change:
        case ParameterBox():
            return change
        case str():
            return Rounding(parse_scheme(change)).around(network)
        case Scheme():
            return Rounding(change).around(network)
        case Network():
            return Copy(change).around(network)
        case Perturbation():
            return change.around(network)
    raise TypeError(f"a {type(change).__name__} is no change of a network: give a scheme, a rule, a box, a copy or a program")


def _query(
    network: Network, box: ParameterBox, domain: Domain, eps: Fraction | None, margin: Fraction, level: Fraction
) -> Query:
    local = isinstance(domain, Point)
    if eps is not None:
        return (LocalConfidence if local else GlobalConfidence)(network, box, domain, eps)
    if local:
        return LocalLabel(network, box, domain, level, margin)
    return MarginLabel(network, box, domain, level, margin) if margin else GlobalLabel(network, box, domain, level)


def _assert_program(
    network: Network,
    program: IntegerProgram,
    domain: Domain,
    eps: Fraction | None,
    margin: Fraction,
    level: Fraction,
    kernels: Kernels | None,
) -> None:
    points = np.asarray([domain.values]) if isinstance(domain, Point) else domain.values if isinstance(domain, Points) else None
    inputs = on_grid(program, domain) if points is None else at_points(program, points)
    found = compare(network, program, inputs, kernels=kernels, level=level)
    statuses = statuses_of(found, eps, margin)
    verdict, counts, _ = summed(statuses)
    if verdict is Verdict.ROBUST:
        return
    kept = _kept(eps, margin)
    bad = np.flatnonzero(statuses == (Status.FLIPPABLE if verdict is Verdict.VIOLATED else Status.UNDECIDED))
    worst = int(bad[found.changes.lower[bad].argmax()])
    raise AssertionError(
        f"{verdict.value}: {program} ({found.kernels.value} kernels) does not keep {kept} of {network}"
        f" at {counts.violated:,} of {counts.total:,} inputs ({counts.unknown:,} undecided).\n"
        f"  {example_text(program_example(found, worst))}"
    )


def _kept(eps: Fraction | None, margin: Fraction) -> str:
    return f"every confidence within {float(eps):g}" if eps is not None else f"every label of margin {float(margin):g}"


def _assert_over_box(
    network: Network,
    program: IntegerProgram,
    domain: Domain,
    eps: Fraction | None,
    margin: Fraction,
    level: Fraction,
    kernels: Kernels | None,
    seconds: float,
) -> None:
    """Assert about a box of too many integer inputs to run them all, by bounds."""
    budget, label = Budget(seconds), eps is None
    found = sweep(
        network, program, domain, kernels=kernels, level=level, epsilon=eps, label=label, margin=margin, budget=budget
    )
    ((question, verdict),) = found.verdicts.items()
    if verdict is Verdict.ROBUST:
        return
    example = found.changed if label else found.worst
    said = f" ({found.why_open(question)})."
    if verdict is Verdict.VIOLATED and example is not None:
        said = f".\n  {example_text(program_example(example, 0))}"
    raise AssertionError(
        f"{verdict.value}: {program} ({found.kernels.value} kernels) does not keep {_kept(eps, margin)} of {network} at every"
        f" integer input in {domain}{said}"
    )
