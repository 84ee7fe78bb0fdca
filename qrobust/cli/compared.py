"""What `compare` says of one input, and of a box."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from qrobust.answers import VERSION, Verdict, text_above, text_below
from qrobust.comparison import UNDECIDED, Comparison, count_text, outside_text, sides_outside
from qrobust.domains import MOST_SHOWN, Domain
from qrobust.network import Output
from qrobust.sweep import Question, Sweep


def witness(found: Comparison, index: int) -> list[str]:
    """Describe an input: the reals, the integers, both confidences and both labels."""
    network, encoding = found.network, found.program.result
    units = [feature.unit for feature in network.features] or [""] * network.inputs
    pairs = zip(found.inputs.reals[index].tolist(), found.inputs.integers[index].tolist(), units, strict=True)
    lines = [
        f"  {network.feature_name(i)} = {real:.10g} {unit}".rstrip() + f" (integer {q})"
        for i, (real, q, unit) in enumerate(pairs)
    ]
    if len(lines) > MOST_SHOWN:
        lines = [*lines[:3], f"  ... ({len(lines)} inputs in all; --json prints them)", lines[-1]]
    single = network.output is Output.SIGMOID
    for place in range(found.confidences.shape[1]):
        name = network.class_name(1 if single else place)
        before = found.confidences.middle[index, place]
        low, high = found.results.lower[index, place], found.results.upper[index, place]
        ends = encoding.real(np.array([low, high]))
        after = (
            f"{ends[0]:.9g} (integer {low})" if low == high else f"{ends[0]:.9g} to {ends[1]:.9g} (integers {low} to {high})"
        )
        lines.append(f"  confidence of {name}: {before:.9f} in float, {after}")
    labels = [found.labels[index], found.program_labels[index]]
    words = [network.class_name(int(v)) if v != UNDECIDED else "either" for v in labels]
    return [*lines, f"  label: {words[0]} in float, {words[1]} in integers"]


def point(found: Comparison, index: int) -> dict[str, Any]:
    results, labels = found.results[index], (found.labels[index], found.program_labels[index])
    return {
        "input": found.inputs.reals[index].tolist(),
        "integers": found.inputs.integers[index].tolist(),
        "confidences": {"lower": found.confidences.lower[index].tolist(), "upper": found.confidences.upper[index].tolist()},
        "results": {"lower": results.lower.tolist(), "upper": results.upper.tolist()},
        "labels": [None if label == UNDECIDED else int(label) for label in labels],
    }


def claims_of(epsilon: Fraction | None, margin: Fraction) -> dict[str, str]:
    """Return what is asked, by the name of the question."""
    had = f" that had margin {float(margin):g}" if margin else ""
    return {"eps": f"confidence is off by more than {float(epsilon or 0):g}", "label": f"label{had} is another"}


def box_report(
    found: Sweep, domain: Domain, epsilon: Fraction | None, seconds: float
) -> tuple[list[str], dict[str, Any], list[Verdict]]:
    """Return what was found about a box as sentences, as JSON values, and the verdicts."""
    return (
        _sentences(found, domain, epsilon, seconds),
        _document(found, domain, epsilon, seconds),
        list(found.verdicts.values()),
    )


def _sentences(found: Sweep, domain: Domain, epsilon: Fraction | None, seconds: float) -> list[str]:
    names = f"{found.network} and {found.program}"
    tail = f"[{found.kernels.value} kernels, {seconds:.3g} s]"
    lines = []
    for question, verdict in found.verdicts.items():
        what = claims_of(epsilon, found.margin)[question.value]
        every = f"at every one of the {count_text(found.points)} integer inputs in the box"
        says = {
            Verdict.ROBUST: f"{every}, no {what}",
            Verdict.VIOLATED: f"at an integer input in the box, a {what}",
            Verdict.UNKNOWN: f"{every}, whether no {what} is undecided ({found.why_open(question)})",
        }
        lines.append(f"{verdict.value}: {says[verdict]}: {names}. {tail}")
        worst = found.worst if question is Question.CHANGE else found.changed
        if verdict is Verdict.VIOLATED and worst is not None:
            lines += witness(worst, 0)
    if not lines:
        lines.append(f"{names} at the {count_text(found.points)} integer inputs in the box {tail}")
    return lines + _findings(found, domain)


def _findings(found: Sweep, domain: Domain) -> list[str]:
    low, high = found.greatest
    steps = found.program.input.scale, found.program.result.scale
    rule = (
        f"confidence exactly {found.level}: class 0" if found.network.output is Output.SIGMOID else "the lowest index is taken"
    )
    ties = f"ties in the program: {_known(found.ties_seen, found.ties)} ({rule})"
    lines = [
        f"greatest change of a confidence: in [{text_below(low)}, {text_above(high)}]",
        f"steps of the program: {steps[0]:.6g} of an input, {steps[1]:.6g} of a confidence",
        ties,
    ]
    outside = sides_outside(found.network, found.program, domain)
    lines += [outside_text(found.program, outside)] if outside else []
    layers = zip(found.layers, found.seen.tolist(), found.cut_off.tolist(), strict=True)
    cuts = [f"{operation}: {_known(seen, possible)}" for operation, seen, possible in layers if possible]
    lines.append(
        f"values before the confidences cut off at the ends of a tensor's type: {'; '.join(cuts) or _known(False, False)}"
    )
    return lines


def _known(seen: bool, possible: bool) -> str:
    return "seen" if seen else "possible, none seen" if possible else "none, proved"


def _document(found: Sweep, domain: Domain, epsilon: Fraction | None, seconds: float) -> dict[str, Any]:
    low, high = found.greatest
    layers = zip(found.layers, found.cut_off.tolist(), found.seen.tolist(), strict=True)
    return {
        "qrobust": VERSION,
        "network": found.network.sha256,
        "program": found.program.sha256,
        "kernels": found.kernels.value,
        "level": str(found.level),
        "box": domain.to_json(),
        "integers": {"lower": found.lower.tolist(), "upper": found.upper.tolist()},
        "inputs": found.points if found.points < 10**12 else count_text(found.points),
        "enumerated": False,
        "executed": found.executed,
        "boxes": found.boxes,
        "eps": None if epsilon is None else str(epsilon),
        "sigma": str(found.margin),
        "verdicts": {question.value: verdict.value for question, verdict in found.verdicts.items()},
        "reason": found.reason,
        "greatest_change": {"lower": low, "upper": high, "at": point(found.worst, 0)},
        "changed": None if found.changed is None else point(found.changed, 0),
        "ties": {"possible": found.ties, "seen": found.ties_seen},
        "outside_input_range": sides_outside(found.network, found.program, domain),
        "saturation": [
            {"operation": str(operation), "possible": possible, "seen": seen} for operation, possible, seen in layers
        ],
        "seconds": seconds,
    }
