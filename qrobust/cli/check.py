"""The command check: one question, decided."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qrobust.answers import Answer, Verdict
from qrobust.cache import Kind, ResultCache, Task
from qrobust.cli import show
from qrobust.cli.arguments import (
    Against,
    ArraysText,
    BackendName,
    Bits,
    BoxText,
    Cache,
    CopyOf,
    Cuts,
    Delta,
    DeltaPerLayer,
    Jobs,
    Json,
    Level,
    Memory,
    Model,
    PerChannel,
    PointsFile,
    PointText,
    Quiet,
    Scheduler,
    SchemeText,
    SigmaText,
    Timeout,
    TrustPickle,
    WeightsOnly,
)
from qrobust.cli.exits import FailOn, exit_code
from qrobust.cli.options import (
    Rule,
    UsageError,
    Where,
    cache_in,
    check_sharing,
    decision,
    domain_of,
    parameter_box,
    read_budget,
    read_model,
)
from qrobust.domains import Point, Points
from qrobust.files import check_can_appear
from qrobust.held import held, stored_codes
from qrobust.parallel import answer_all, check_points
from qrobust.quantization import parse_scheme
from qrobust.queries import GreatestDelta
from qrobust.solve import Session


def check(
    model: Model,
    eps: Annotated[str | None, typer.Option(help="Does any confidence move by more than this (definitions 1, 2)?")] = None,
    label: Annotated[bool, typer.Option("--label", help="Does any label change (definitions 3, 4)?")] = False,
    sigma: SigmaText = None,
    delta: Delta = None,
    delta_per_layer: DeltaPerLayer = None,
    against: Against = None,
    weights_only: WeightsOnly = False,
    bits: Bits = None,
    per_channel: PerChannel = False,
    scheme: SchemeText = None,
    copy: CopyOf = None,
    point: PointText = None,
    points: PointsFile = None,
    box: BoxText = None,
    where: Cuts = None,
    level: Level = "1/2",
    backend: BackendName = "auto",
    timeout: Timeout = 60.0,
    memory: Memory = 4.0,
    arrays: ArraysText = None,
    jobs: Jobs = 1,
    scheduler: Scheduler = None,
    cache: Cache = None,
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="If ROBUST (--label, --point), write the proof for `qrobust replay`."),
    ] = None,
    fail_on: Annotated[FailOn, typer.Option(help="Which verdicts give a non-zero exit code.")] = FailOn.UNKNOWN,
    json: Json = False,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Decide one question, with a proof or a counterexample. Exit code 0 robust, 1 violated, 3 unknown.

    \b
    qrobust check models/cat_paper.json --label --delta 0.01 --point "15, 2"
    qrobust check models/cat_paper.json --sigma 0.06 --delta 0.01
    """
    check_can_appear(certificate)
    check_sharing(jobs, scheduler)
    budget = read_budget(timeout, memory, arrays)
    network = read_model(model, trust_pickle)
    rule = Rule(delta, delta_per_layer, against, weights_only, bits, per_channel, scheme, copy)
    parameters = parameter_box(network, rule, trust_pickle)
    domain = domain_of(network, Where(point, points, box, tuple(where or ())))
    query = decision(network, parameters, domain, eps, label, sigma, level)
    kept = cache_in(cache)
    if certificate is not None and not (label and isinstance(domain, Point) and backend == "auto"):
        raise UsageError("--certificate goes with --label, --point and --backend auto: other proofs are not kept")
    if isinstance(domain, Points) and (jobs > 1 or scheduler is not None or kept is not None):
        with show.Bar(len(domain.values), "points", quiet=quiet or json) as bar:
            answer = check_points(
                query, backend=backend, budget=budget, jobs=jobs, scheduler=scheduler, cache=kept, progress=bar.advance
            )
    elif jobs > 1 or scheduler is not None:
        raise UsageError("--jobs and --scheduler share inputs: they go with --points")
    else:
        answer, written = _one_answer(Task(query, Kind.CHECK, backend, budget), kept, certificate, quiet or json)
    stored = None if scheme is None or answer.counterexample is None else _held(answer, scheme)
    if json:
        show.document(answer.to_json() | ({} if stored is None else {"held": stored[0]}))
    else:
        _show_answer(answer, quiet)
        if stored is not None:
            show.line(f"  {stored[1]}", quiet=quiet)
    if certificate is not None and answer.verdict is Verdict.ROBUST and not written:
        show.warning(f"{certificate} was not written: the proof was not found in a form that can be checked leaf by leaf")
    raise typer.Exit(exit_code(answer.verdict, fail_on))


def _one_answer(task: Task, cache: ResultCache | None, certificate: Path | None, quiet: bool) -> tuple[Answer, bool]:
    """Answer one question; say whether its certificate was asked for and written."""
    assert not isinstance(task.query, GreatestDelta)
    with show.waiting("deciding", quiet=quiet):
        if certificate is None:
            (answer,) = answer_all([task], session=Session(), cache=cache)
            assert isinstance(answer, Answer)
            return answer, False
        answer, proof = Session().certify(task.query, task.budget)
        if proof is not None:
            proof.save(certificate)
        return answer, proof is not None


def _held(answer: Answer, scheme: str) -> tuple[dict[str, Any] | None, str]:
    """Look for a counterexample of the scheme's own values; return it as JSON, or None, and a sentence."""
    assert answer.counterexample is not None
    found = held(answer.query, answer.counterexample, parse_scheme(scheme))
    if found is None:
        return None, f"neither the nearest values that {scheme} can hold nor its copy violate it at this input"
    codes = stored_codes(answer.query.network, found, parse_scheme(scheme))
    return found.to_json() | {
        "codes": codes
    }, f"it also holds with values that {scheme} can hold (replayed; --json prints them)"


def _show_answer(answer: Answer, quiet: bool) -> None:
    show.line(str(answer), quiet=quiet)
    if answer.counterexample is not None:
        show.line(show.counterexample_text(answer.query.network, answer.counterexample), quiet=quiet)
