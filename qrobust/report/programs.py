"""Obligations about an integer program: the float model beside it, input by input.

Property  exact at each input for kernels that give integers: every counterexample shown is decided again in exact arithmetic;
          with `Kernels.ANY` ROBUST holds for any kernels, VIOLATED for every one
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from qrobust import interval
from qrobust.answers import Assurance, Verdict
from qrobust.bounds.local import Status
from qrobust.comparison import UNDECIDED, Agreement, Comparison, at_points, compare, exactly_at, on_grid
from qrobust.domains import Points
from qrobust.errors import UnsoundAnswerError
from qrobust.integer.program import Kernels
from qrobust.interval import Interval, round_fraction_down, round_fraction_up
from qrobust.layers import IntArray
from qrobust.network import Output
from qrobust.report import pictures
from qrobust.report.examples import program_example
from qrobust.report.findings import MOST_EXAMPLES, Finding, summed
from qrobust.report.plan import Ask, Obligation, Plan


def compared(plan: Plan, obligation: Obligation) -> Finding:
    """Compare the network with an integer program, input by input."""
    assert obligation.program is not None
    assert obligation.where is not None
    domain = obligation.where.domain
    inputs = at_points(obligation.program, domain.values) if isinstance(domain, Points) else on_grid(obligation.program, domain)
    found = compare(plan.network, obligation.program, inputs, kernels=obligation.kernels, level=plan.level)
    of_labels = obligation.ask in (Ask.LABEL, Ask.MARGIN)
    statuses = statuses_of(found, obligation.eps, obligation.sigma)
    verdict, counts, rows = summed(statuses)
    violated = np.flatnonzero(statuses == Status.FLIPPABLE)
    worst = violated[np.argsort(-found.changes.lower[violated], kind="stable")][:MOST_EXAMPLES]
    for index in worst.tolist():
        _replay(found, index, obligation)
    exact = verdict is Verdict.VIOLATED and obligation.kernels is not Kernels.ANY
    shown = pictures.of_points(plan.network, inputs.reals, statuses, plan.level)
    if not of_labels or plan.network.inputs != 2:
        shown = pictures.of_changes(plan.network, inputs.reals, found.changes.upper, statuses, obligation.eps, plan.level)
    return Finding(
        obligation,
        verdict,
        _program_claim(found, obligation),
        f"integer program, {obligation.kernels.value} kernels",
        None if verdict is Verdict.UNKNOWN else Assurance.CHECKED if exact else Assurance.ROUNDED,
        "execution" if obligation.kernels is not Kernels.ANY else "bounds of any kernels",
        counts=counts,
        ends=found.greatest,
        reason="kernels may differ there, or no precision settles it" if verdict is Verdict.UNKNOWN else "",
        rows=rows,
        examples=tuple(program_example(found, int(index)) for index in worst),
        notes=tuple(_program_notes(found, obligation)),
        picture=shown,
    )


def _replay(found: Comparison, index: int, obligation: Obligation) -> None:
    """Decide a counterexample again in exact arithmetic. Raises UnsoundAnswerError if it does not hold."""
    if obligation.eps is not None:
        holds = found.kernels is Kernels.ANY or found.exceeds(index, obligation.eps)
    else:
        label = exactly_at(found.network, found.inputs.reals[index]).label(False, found.level)
        holds = label is not None and label == found.labels[index] and label != found.program_labels[index]
    if not holds:
        raise UnsoundAnswerError(f"the counterexample of {obligation.id} does not replay: please report this")


def statuses_of(found: Comparison, eps: Fraction | None, sigma: Fraction = Fraction(0)) -> IntArray:
    """Return the `Status` of each input: of its change against eps or, without an eps, of its label that had margin sigma."""
    return _label_statuses(found, sigma) if eps is None else _change_statuses(found, eps)


def _label_statuses(found: Comparison, sigma: Fraction) -> IntArray:
    """Return the statuses of labels that had margin sigma: SAFE where they agree, or the margin is surely less."""
    agreement = found.agreement
    statuses = np.full(len(agreement), Status.SAFE)
    statuses[agreement == Agreement.UNDECIDED] = Status.UNDECIDED
    statuses[agreement == Agreement.CHANGED] = Status.FLIPPABLE
    if sigma:
        surely, perhaps = _margins(found, sigma)
        statuses[(statuses == Status.FLIPPABLE) & ~surely] = Status.UNDECIDED
        statuses[~perhaps] = Status.SAFE
    return statuses


def _margins(found: Comparison, sigma: Fraction) -> tuple[Any, Any]:
    """Return where the network's margin is surely, and where it is perhaps, at least sigma. Shapes: (points,) both.

    Of one sigmoid it is abs(f - level) >= sigma; of several classes, for the label a and every rival j, it is
    f_a (1/2 - sigma) >= f_j (1/2 + sigma), which is the definition without its division.
    """
    values, half = found.confidences, Fraction(1, 2)
    if found.network.output is Output.SIGMOID:
        excess = interval.magnitude(values - _enclosed(found.level))[:, 0] - _enclosed(sigma)
        return excess.lower >= 0, excess.upper >= 0
    own = np.where(found.labels == UNDECIDED, 0, found.labels)
    mine = Interval(*(np.take_along_axis(end, own[:, None], axis=1) for end in (values.lower, values.upper)))
    gaps = mine * _enclosed(half - sigma) - values * _enclosed(half + sigma)
    rivals = np.arange(values.shape[1]) != own[:, None]
    surely = np.where(rivals, gaps.lower >= 0, True).all(axis=1) & (found.labels != UNDECIDED)
    perhaps = np.where(rivals, gaps.upper >= 0, True).all(axis=1) | (found.labels == UNDECIDED)
    return surely, perhaps


def _enclosed(value: Fraction) -> Interval:
    return Interval(np.array([round_fraction_down(value)]), np.array([round_fraction_up(value)]))


def _change_statuses(found: Comparison, eps: Fraction) -> IntArray:
    """Return the statuses of changes against eps, exactly where the program gives integers."""
    limit = round_fraction_down(eps)
    statuses = np.where(found.changes.lower > limit, Status.FLIPPABLE, Status.SAFE)
    for index in np.flatnonzero((found.changes.upper > limit) & (statuses == Status.SAFE)).tolist():
        exceeds = found.exceeds(index, eps) if found.kernels is not Kernels.ANY else None
        statuses[index] = Status.UNDECIDED if exceeds is None else Status.FLIPPABLE if exceeds else Status.SAFE
    return statuses


def _program_claim(found: Comparison, obligation: Obligation) -> str:
    assert obligation.where is not None
    count = f"{len(found.inputs):,}"
    where = f"each of the {count} integer inputs that mean a point of {obligation.where.domain}"
    if not found.inputs.enumerated:
        where = f"each of the {count} points"
    match obligation.ask:
        case Ask.LABEL:
            what = "has the label of"
        case Ask.MARGIN:
            what = f"has, where the margin is at least {float(obligation.sigma):g}, the label of"
        case _:
            assert obligation.eps is not None
            what = f"has every confidence within {float(obligation.eps):g} of that of"
    return f"at {where}, {found.program} {what} {found.network}"


def _program_notes(found: Comparison, obligation: Obligation) -> list[str]:
    """Say what a reader should know besides: steps, ties, cut-off inputs and values."""
    step_in, step_out = found.program.input.scale, found.program.result.scale
    notes = [
        f"steps of the program: {step_in:.6g} of an input, {step_out:.6g} of a confidence",
    ]
    if obligation.eps is not None and obligation.eps < Fraction(step_out) / 2:
        notes.append(f"eps {float(obligation.eps):g} is below half the confidence's own step")
    if found.kernels is not Kernels.ANY and found.ties:
        notes.append(f"ties in the program: {found.ties:,}")
    cut = int(found.inputs.outside.sum())
    if cut:
        notes.append(f"inputs outside the program's calibrated range, cut off there: {cut:,} of {len(found.inputs):,}")
    if found.saturated is not None and found.counts is not None:
        triples = zip(found.program.operations, found.saturated.tolist(), found.counts.tolist(), strict=True)
        parts = [f"{operation}: {some:,} of {total:,}" for operation, some, total in triples if some]
        notes += [f"values cut off at the ends of a tensor's type: {'; '.join(parts)}"] if parts else []
    return notes
