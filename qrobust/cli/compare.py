"""The command compare: a float network beside the integer program that ships in its place."""

from __future__ import annotations

import time
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from qrobust.answers import VERSION, Verdict, text_above, text_below
from qrobust.cli import show
from qrobust.cli.arguments import Json, Level, Memory, PointsFile, PointText, Quiet, TrustPickle
from qrobust.cli.compared import box_report, claims_of, point, witness
from qrobust.cli.exits import EXIT
from qrobust.cli.options import UsageError, Where, domain_of, points_of, read_budget, read_model
from qrobust.comparison import Agreement, Comparison, Inputs, at_points, compare, on_grid, outside_text, sides_outside
from qrobust.domains import Point
from qrobust.errors import NumberError
from qrobust.exact import to_fraction
from qrobust.formats import load_program
from qrobust.integer.program import IntegerProgram, Kernels
from qrobust.network import Network, Output
from qrobust.sweep import sweep

LISTED = 1000  # inputs in a list of the JSON document


class KernelsName(StrEnum):
    """Whose arithmetic the program is run with."""

    REFERENCE = "reference"
    XNNPACK = "xnnpack"
    ONNX = "onnxruntime"
    ANY = "any-kernel"


def compare_command(
    model: Annotated[Path, typer.Argument(metavar="FLOAT", help="The float model: any file that `check` reads.")],
    program: Annotated[
        Path, typer.Argument(metavar="INTEGER", help="The integer program: a fully quantized .tflite or .onnx file.")
    ],
    eps: Annotated[str | None, typer.Option(help="Is any confidence off by more than this?")] = None,
    label: Annotated[bool, typer.Option("--label", help="Is any label another?")] = False,
    sigma: Annotated[str | None, typer.Option(help="Is any label another that had this margin?")] = None,
    points: PointsFile = None,
    point: PointText = None,
    enumerate_all: Annotated[bool, typer.Option("--enumerate", help="Every integer input of the program.")] = False,
    box: Annotated[
        str | None, typer.Option("--box", help="Every integer input in this box, by bounds; as in '6.3:20.5, 2:3.9'.")
    ] = None,
    kernels: Annotated[
        KernelsName | None,
        typer.Option(help="Whose arithmetic runs the program; reference for .tflite, onnxruntime for .onnx."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for each question about a box.")] = 60.0,
    memory: Memory = 4.0,
    level: Level = "1/2",
    json: Json = False,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Compare a float model with its integer program: at points, at every input of its grid, or over a box of any size.

    Exit code 0 robust, 1 violated, 3 unknown; 0 if none of --eps, --label and --sigma asks. With --enumerate each input is
    run, and with --box those in the box; --box alone bounds what is not run.

    \b
    qrobust compare models/cat_paper.json models/cat_int8.tflite --enumerate --eps 0.02
    qrobust compare models/cat_paper.json models/cat_int8.tflite --point "15, 2" --sigma 0.05
    qrobust compare models/cat_paper.json models/cat_int8.tflite --box "6.3:20.5, 2:3.9" --eps 0.01
    """
    started = time.monotonic()
    epsilon, exact_level = None if eps is None else to_fraction(eps), to_fraction(level)
    margin = _margin(sigma, label)
    label = label or sigma is not None
    network, integers = read_model(model, trust_pickle), load_program(program)
    where, choice = Where(point, points, box), None if kernels is None else Kernels(kernels.value)
    if box is not None and point is None and points is None and not enumerate_all:
        domain = domain_of(network, where)
        with show.waiting("bounding", quiet=quiet or json):
            found = sweep(
                network,
                integers,
                domain,
                kernels=choice,
                level=exact_level,
                epsilon=epsilon,
                label=label,
                margin=margin,
                budget=read_budget(timeout, memory, None),
            )
        texts, document, verdicts = box_report(found, domain, epsilon, time.monotonic() - started)
    else:
        inputs = _inputs(network, integers, where, enumerate_all)
        with show.waiting("comparing", quiet=quiet or json):
            each = compare(network, integers, inputs, kernels=choice, level=exact_level)
            asked = _verdicts(each, epsilon, margin if label else None)
        seconds = time.monotonic() - started
        claims = claims_of(epsilon, margin)
        sides = [] if box is None else sides_outside(network, integers, domain_of(network, where))
        texts = _sentences(each, asked, claims, seconds) + ([outside_text(integers, sides)] if sides else [])
        document = _document(each, asked, epsilon, margin, seconds) | {"sides_outside_input_range": sides}
        verdicts = [verdict for verdict, _ in asked.values()]
    if json:
        show.document(document)
    else:
        for text in texts:
            show.line(text, quiet=quiet)
    codes = [EXIT[verdict] for verdict in verdicts]
    raise typer.Exit(1 if 1 in codes else max(codes, default=0))


Asked = dict[str, tuple[Verdict, Any]]  # "eps" and "label": the verdict and the indices of the inputs that break it


def _inputs(network: Network, program: IntegerProgram, where: Where, enumerate_all: bool) -> Inputs:
    given = [where.point is not None, where.points is not None, enumerate_all]
    if sum(given) != 1:
        raise UsageError("say where: give --points, --point, --enumerate or --box, one of them")
    if enumerate_all:
        domain = None if where.box is None else domain_of(network, where)
        assert not isinstance(domain, Point)
        return on_grid(program, domain)
    if where.box is not None:
        raise UsageError("--box goes alone or with --enumerate, not with points: leave it out")
    named = points_of(network, where)
    assert named is not None
    return at_points(program, named)


def _margin(sigma: str | None, label: bool) -> Fraction:
    """Return the margin asked for. Raises UsageError, NumberError."""
    if sigma is not None and label:
        raise UsageError("--label asks about every label, --sigma about those that had a margin: give one of them")
    margin = Fraction(0) if sigma is None else to_fraction(sigma)
    if not 0 <= margin < 1:
        raise NumberError(f"sigma is {sigma}: give a number from 0 to below 1")
    return margin


def _verdicts(found: Comparison, epsilon: Fraction | None, margin: Fraction | None) -> Asked:
    asked: Asked = {}
    if epsilon is not None:
        asked["eps"] = found.epsilon_verdict(epsilon)
    if margin is not None:
        asked["label"] = found.label_verdict(margin), np.flatnonzero(found.agreement_of(margin) == Agreement.CHANGED)
    return asked


def _sentences(found: Comparison, asked: Asked, claims: dict[str, str], seconds: float) -> list[str]:
    """Say the verdicts, then the findings."""
    where = _where(found)
    names = f"{found.network} and {found.program}"
    lines = []
    for question, (verdict, indices) in asked.items():
        claim = _claim(claims[question], verdict, len(indices))
        lines.append(f"{verdict.value}: at {where}, {claim}: {names}. [{found.kernels.value} kernels, {seconds:.3g} s]")
        if len(indices):
            worst = found.changes.lower[indices].argmax()
            lines += witness(found, int(indices[worst]))
    if not asked:
        lines.append(f"{names} at {where} [{found.kernels.value} kernels, {seconds:.3g} s]")
    return lines + _findings(found)


def _where(found: Comparison) -> str:
    if found.inputs.enumerated:
        return f"the {len(found.inputs):,} integer inputs"
    return "the point" if len(found.inputs) == 1 else f"the {len(found.inputs):,} points"


def _claim(what: str, verdict: Verdict, broken: int) -> str:
    what = f"a {what}"
    if verdict is Verdict.ROBUST:
        return what.replace("a ", "no ", 1)
    return f"{what} ({broken:,} of them)" if verdict is Verdict.VIOLATED else f"whether {what} is undecided"


def _findings(found: Comparison) -> list[str]:
    low, high = found.greatest
    count = len(found.inputs)
    changed, open_ = (int((found.agreement == kind).sum()) for kind in (Agreement.CHANGED, Agreement.UNDECIDED))
    steps = found.program.input.scale, found.program.result.scale
    lines = [f"greatest change of a confidence: in [{text_below(low)}, {text_above(high)}]"]
    lines.append(f"steps of the program: {steps[0]:.6g} of an input, {steps[1]:.6g} of a confidence")
    undecided = f", {open_:,} are undecided" if open_ else ""
    lines.append(f"labels: {changed:,} of {count:,} are others ({100 * changed / count:.3g} %){undecided}")
    rule = (
        f"confidence exactly {found.level}: class 0" if found.network.output is Output.SIGMOID else "the lowest index is taken"
    )
    lines.append(
        f"ties in the program: {found.ties:,} ({rule})" if found.kernels is not Kernels.ANY else "ties: depend on the kernels"
    )
    if not found.inputs.enumerated:
        outside = int(found.inputs.outside.sum())
        ends = found.program.input.real(np.array([found.program.input.least, found.program.input.greatest]))
        lines.append(
            f"inputs outside the program's range [{ends[0]:.6g}, {ends[1]:.6g}]: {outside:,} of {count:,}, cut off there"
        )
    if found.saturated is not None and found.counts is not None:
        triples = zip(found.program.operations, found.saturated.tolist(), found.counts.tolist(), strict=True)
        parts = [f"{operation}: {cut:,} of {total:,}" for operation, cut, total in triples if cut]
        lines.append(f"values cut off at the ends of a tensor's type: {'; '.join(parts) or 'none'}")
    return lines


def _document(found: Comparison, asked: Asked, epsilon: Fraction | None, margin: Fraction, seconds: float) -> dict[str, Any]:
    """Return the comparison as JSON values; lists of inputs are cut at LISTED."""
    low, high = found.greatest
    changed = int((found.agreement == Agreement.CHANGED).sum())
    lost = np.flatnonzero(found.agreement_of(margin) == Agreement.CHANGED)
    document: dict[str, Any] = {
        "qrobust": VERSION,
        "network": found.network.sha256,
        "program": found.program.sha256,
        "kernels": found.kernels.value,
        "level": str(found.level),
        "inputs": len(found.inputs),
        "enumerated": found.inputs.enumerated,
        "eps": None if epsilon is None else str(epsilon),
        "sigma": str(margin),
        "verdicts": {question: verdict.value for question, (verdict, _) in asked.items()},
        "violations": {question: len(indices) for question, (_, indices) in asked.items()},
        "greatest_change": {"lower": low, "upper": high, "at": point(found, found.witness)},
        "changed_labels": changed,
        "undecided_labels": int((found.agreement == Agreement.UNDECIDED).sum()),
        "changed": [point(found, int(i)) for i in lost[:LISTED]],
        "listed": min(len(lost), LISTED),
        "ties": None if found.kernels is Kernels.ANY else found.ties,
        "outside_input_range": int(found.inputs.outside.sum()),
        "seconds": seconds,
    }
    if found.saturated is not None and found.counts is not None:
        triples = zip(found.program.operations, found.saturated.tolist(), found.counts.tolist(), strict=True)
        document["saturation"] = [{"operation": str(o), "cut_off": cut, "values": total} for o, cut, total in triples]
    return document
