"""Obligations about an integer program: the float model beside it, at points, at every integer input of a box, or by bounds.

Property  exact at each input for kernels that give integers: every counterexample shown is decided again in exact arithmetic;
          with `Kernels.ANY` ROBUST holds for any kernels, VIOLATED for every one. A box of too many inputs to run them all
          is bounded by `sweep`. What was found is kept, and its counterexamples are run again before it is believed
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from qrobust.answers import VERSION, Assurance, Verdict
from qrobust.bounds.local import Status
from qrobust.cache import ResultCache, key_of
from qrobust.comparison import (
    Comparison,
    at_points,
    compare,
    count_text,
    exactly_at,
    grid_ends,
    is_enumerable,
    of_grid,
    on_grid,
    outside_text,
    sides_outside,
)
from qrobust.domains import Points
from qrobust.errors import UnsoundAnswerError
from qrobust.integer.program import IntegerProgram, Kernels
from qrobust.interval import round_fraction_down
from qrobust.layers import IntArray
from qrobust.report import pictures
from qrobust.report.examples import program_example
from qrobust.report.findings import MOST_EXAMPLES, Counts, Finding, summed
from qrobust.report.plan import Ask, Obligation, Plan
from qrobust.search import Budget
from qrobust.sweep import Sweep, sweep

LABELS = (Ask.LABEL, Ask.MARGIN)
STATUSES = np.array([Status.SAFE, Status.FLIPPABLE, Status.UNDECIDED])  # by `Agreement`
EXECUTED, BOUNDED = "execution", "bounds over boxes, and execution"


@dataclass(frozen=True)
class Outcome:
    """What came of an obligation, so that it can be kept as JSON.

    `places` are the inputs of its counterexamples: rows of the data from 0, or integers of the program. `inputs` is how many
    were asked about
    """

    verdict: Verdict
    inputs: int
    ends: tuple[float, float]
    method: str
    counts: Counts | None = None
    reason: str = ""
    rows: tuple[int, ...] = ()
    places: tuple[Any, ...] = ()
    notes: tuple[str, ...] = ()
    picture: bytes | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        counts = None if self.counts is None else [self.counts.robust, self.counts.violated, self.counts.unknown]
        return {
            "verdict": self.verdict.value,
            "inputs": self.inputs,
            "ends": list(self.ends),
            "method": self.method,
            "counts": counts,
            "reason": self.reason,
            "rows": list(self.rows),
            "places": list(self.places),
            "notes": list(self.notes),
            "picture": None if self.picture is None else base64.b64encode(self.picture).decode(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Outcome:
        """Return what JSON values stand for. Raises any exception if they stand for none."""
        counts, picture = values["counts"], values["picture"]
        return cls(
            Verdict(values["verdict"]),
            int(values["inputs"]),
            (float(values["ends"][0]), float(values["ends"][1])),
            str(values["method"]),
            None if counts is None else Counts(*counts),
            str(values["reason"]),
            tuple(values["rows"]),
            tuple(values["places"]),
            tuple(values["notes"]),
            None if picture is None else base64.b64decode(picture),
        )


def compared(plan: Plan, obligation: Obligation, cache: ResultCache | None = None) -> Finding:
    """Compare the network with an integer program, or take what is kept of it."""
    key = key_of(_parts(plan, obligation))
    kept = None if cache is None else _believed(plan, obligation, cache.document(key))
    outcome, examples = kept or _computed(plan, obligation)
    if kept is None and cache is not None:
        cache.keep(key, outcome.to_json())
    single = obligation.kernels is not Kernels.ANY
    assurance = Assurance.CHECKED if outcome.verdict is Verdict.VIOLATED and single else Assurance.ROUNDED
    return Finding(
        obligation,
        outcome.verdict,
        _claim(plan, obligation, outcome),
        f"integer program, {obligation.kernels.value} kernels",
        None if outcome.verdict is Verdict.UNKNOWN else assurance,
        outcome.method if single else "bounds of any kernels",
        counts=outcome.counts,
        ends=outcome.ends,
        reason=outcome.reason,
        rows=outcome.rows,
        examples=examples,
        notes=outcome.notes,
        picture=outcome.picture,
    )


def _program(obligation: Obligation) -> IntegerProgram:
    assert obligation.program is not None
    return obligation.program


def _parts(plan: Plan, obligation: Obligation) -> dict[str, Any]:
    """Return all that the outcome depends on as JSON values: hashes of both, the kernels, the inputs, the question."""
    assert obligation.where is not None
    domain = obligation.where.domain
    points = hashlib.sha256(domain.values.tobytes()).hexdigest() if isinstance(domain, Points) else None
    return {
        "qrobust": VERSION,
        "kind": "program",
        "network": plan.network.sha256,
        "features": [feature.label for feature in plan.network.features],
        "program": _program(obligation).sha256,
        "quantizes": _program(obligation).quantizes,
        "kernels": obligation.kernels.value,
        "level": str(plan.level),
        "ask": obligation.ask.value,
        "eps": None if obligation.eps is None else str(obligation.eps),
        "sigma": str(obligation.sigma),
        "points": points,
        "box": domain.to_json() if points is None else None,
        "seconds": obligation.seconds,
    }


def _believed(plan: Plan, obligation: Obligation, values: dict[str, Any] | None) -> tuple[Outcome, tuple[Any, ...]] | None:
    """Return what is kept with its counterexamples, which are run again; None if it cannot be believed."""
    if values is None:
        return None
    try:
        outcome = Outcome.from_json(values)
        return outcome, _examples(plan, obligation, outcome)
    except Exception:  # whatever is wrong with an entry, the answer is computed again
        return None


def _computed(plan: Plan, obligation: Obligation) -> tuple[Outcome, tuple[Any, ...]]:
    outcome = _swept(plan, obligation) if _is_large(obligation) else _executed(plan, obligation)
    return outcome, _examples(plan, obligation, outcome)


def _is_large(obligation: Obligation) -> bool:
    """Say whether the obligation is about more integer inputs than are run one by one."""
    assert obligation.where is not None
    domain = obligation.where.domain
    return not isinstance(domain, Points) and not is_enumerable(_program(obligation), domain)


def _executed(plan: Plan, obligation: Obligation) -> Outcome:
    """Run both at every input."""
    assert obligation.where is not None
    domain, program = obligation.where.domain, _program(obligation)
    of_points = isinstance(domain, Points)
    inputs = at_points(program, domain.values) if isinstance(domain, Points) else on_grid(program, domain)
    found = compare(plan.network, program, inputs, kernels=obligation.kernels, level=plan.level)
    statuses = statuses_of(found, obligation.eps, obligation.sigma)
    verdict, counts, rows = summed(statuses)
    violated = np.flatnonzero(statuses == Status.FLIPPABLE)
    worst = violated[np.argsort(-found.changes.lower[violated], kind="stable")][:MOST_EXAMPLES].tolist()
    shown = pictures.of_points(plan.network, inputs.reals, statuses, plan.level)
    if obligation.ask not in LABELS or plan.network.inputs != 2:
        shown = pictures.of_changes(plan.network, inputs.reals, found.changes.upper, statuses, obligation.eps, plan.level)
    return Outcome(
        verdict,
        len(inputs),
        found.greatest,
        EXECUTED,
        counts,
        "kernels may differ there, or no precision settles it" if verdict is Verdict.UNKNOWN else "",
        rows,
        tuple(worst if of_points else [inputs.integers[index].tolist() for index in worst]),
        (*_program_notes(found, obligation), *_outside_notes(plan, obligation)),
        shown,
    )


def _swept(plan: Plan, obligation: Obligation) -> Outcome:
    """Bound boxes of inputs."""
    assert obligation.where is not None
    of_labels = obligation.ask in LABELS
    found = sweep(
        plan.network,
        _program(obligation),
        obligation.where.domain,
        kernels=obligation.kernels,
        level=plan.level,
        epsilon=obligation.eps,
        label=of_labels,
        margin=obligation.sigma,
        budget=Budget(obligation.seconds),
    )
    ((question, verdict),) = found.verdicts.items()
    worst = found.changed if of_labels else found.worst
    return Outcome(
        verdict,
        found.points,
        found.greatest,
        BOUNDED,
        reason=found.why_open(question) if verdict is Verdict.UNKNOWN else "",
        places=(worst.inputs.integers[0].tolist(),) if worst is not None and verdict is Verdict.VIOLATED else (),
        notes=(*_sweep_notes(found, obligation), *_outside_notes(plan, obligation)),
    )


def _examples(plan: Plan, obligation: Obligation, outcome: Outcome) -> tuple[dict[str, Any], ...]:
    """Run the counterexamples again and describe them. Raises UnsoundAnswerError if one does not hold."""
    assert obligation.where is not None
    if outcome.verdict is not Verdict.VIOLATED:
        return ()
    domain, program = obligation.where.domain, _program(obligation)
    rows = isinstance(domain, Points)
    if isinstance(domain, Points):
        inputs = at_points(program, domain.values[list(outcome.places)])
    else:
        inputs = of_grid(program, np.array(outcome.places, dtype=np.int64))
        _check_in_box(obligation, inputs.integers)
    found = compare(plan.network, program, inputs, kernels=obligation.kernels, level=plan.level)
    statuses = statuses_of(found, obligation.eps, obligation.sigma)
    for index, status in enumerate(statuses.tolist()):
        if status != Status.FLIPPABLE:
            raise _unsound(obligation)
        _replay(found, index, obligation)
    return tuple(
        program_example(found, index) | ({"row": place + 1} if rows else {}) for index, place in enumerate(outcome.places)
    )


def _check_in_box(obligation: Obligation, integers: IntArray) -> None:
    assert obligation.where is not None
    lower, upper = grid_ends(_program(obligation), obligation.where.domain)
    if not ((lower <= integers) & (integers <= upper)).all():
        raise _unsound(obligation)


def _unsound(obligation: Obligation) -> UnsoundAnswerError:
    return UnsoundAnswerError(f"the counterexample of {obligation.id} does not replay: please report this")


def _replay(found: Comparison, index: int, obligation: Obligation) -> None:
    """Decide a counterexample again in exact arithmetic. Raises UnsoundAnswerError if it does not hold."""
    if obligation.eps is not None:
        holds = found.kernels is Kernels.ANY or found.exceeds(index, obligation.eps)
    else:
        label = exactly_at(found.network, found.inputs.reals[index]).label(False, found.level)
        holds = label is not None and label == found.labels[index] and label != found.program_labels[index]
    if not holds:
        raise _unsound(obligation)


def statuses_of(found: Comparison, eps: Fraction | None, sigma: Fraction = Fraction(0)) -> IntArray:
    """Return the `Status` of each input: of its change against eps or, without an eps, of its label that had margin sigma."""
    return STATUSES[found.agreement_of(sigma)] if eps is None else _change_statuses(found, eps)


def _change_statuses(found: Comparison, eps: Fraction) -> IntArray:
    """Return the statuses of changes against eps, exactly where the program gives integers."""
    limit = round_fraction_down(eps)
    statuses = np.where(found.changes.lower > limit, Status.FLIPPABLE, Status.SAFE)
    for index in np.flatnonzero((found.changes.upper > limit) & (statuses == Status.SAFE)).tolist():
        exceeds = found.exceeds(index, eps) if found.kernels is not Kernels.ANY else None
        statuses[index] = Status.UNDECIDED if exceeds is None else Status.FLIPPABLE if exceeds else Status.SAFE
    return statuses


def _claim(plan: Plan, obligation: Obligation, outcome: Outcome) -> str:
    assert obligation.where is not None
    domain = obligation.where.domain
    count = count_text(outcome.inputs)
    where = f"each of the {count} points"
    if not isinstance(domain, Points):
        where = f"each of the {count} integer inputs that mean a point of {domain}"
    match obligation.ask:
        case Ask.LABEL:
            what = "has the label of"
        case Ask.MARGIN:
            what = f"has, where the margin is at least {float(obligation.sigma):g}, the label of"
        case _:
            assert obligation.eps is not None
            what = f"has every confidence within {float(obligation.eps):g} of that of"
    return f"at {where}, {_program(obligation)} {what} {plan.network}"


def _steps_notes(program: IntegerProgram, obligation: Obligation) -> list[str]:
    """Say the steps of the program, and whether eps is below its own."""
    step_in, step_out = program.input.scale, program.result.scale
    notes = [f"steps of the program: {step_in:.6g} of an input, {step_out:.6g} of a confidence"]
    if obligation.eps is not None and obligation.eps < Fraction(step_out) / 2:
        notes.append(f"eps {float(obligation.eps):g} is below half the confidence's own step")
    return notes


def _outside_notes(plan: Plan, obligation: Obligation) -> list[str]:
    """Say which sides of a domain the program cannot hold."""
    assert obligation.where is not None
    domain, program = obligation.where.domain, _program(obligation)
    sides = [] if isinstance(domain, Points) else sides_outside(plan.network, program, domain)
    return [outside_text(program, sides)] if sides else []


def _sweep_notes(found: Sweep, obligation: Obligation) -> list[str]:
    """Say what a reader should know besides: steps, what was run, what may be cut off."""
    notes = _steps_notes(found.program, obligation)
    notes.append(f"{found.executed:,} inputs were run, {found.boxes:,} boxes bounded")
    if found.ties_seen or found.ties:
        notes.append(f"ties in the program: {'seen' if found.ties_seen else 'possible, none seen'}")
    layers = zip(found.layers, found.seen.tolist(), found.cut_off.tolist(), strict=True)
    cuts = [f"{operation}: {'seen' if seen else 'possible'}" for operation, seen, possible in layers if possible]
    return [*notes, f"values cut off at the ends of a tensor's type: {'; '.join(cuts)}"] if cuts else notes


def _program_notes(found: Comparison, obligation: Obligation) -> list[str]:
    """Say what a reader should know besides: steps, ties, cut-off inputs and values."""
    notes = _steps_notes(found.program, obligation)
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
