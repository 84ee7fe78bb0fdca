"""The commands: check, estimate, map, replay, demo, doctor, export; compare is in a file of its own."""

from __future__ import annotations

import signal
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from qrobust.answers import VERSION, Answer, AnyQuery, Assurance, Estimate, Robust, Verdict, statement
from qrobust.backends.dreal import DReal
from qrobust.cache import Kind, ResultCache, Task
from qrobust.certificates import load_certificate
from qrobust.check import certificate_fault
from qrobust.cli import show
from qrobust.cli.compare import EXIT, compare_command
from qrobust.cli.options import Rule, UsageError, Where, domain_of, parameter_boxes, points_of, read_budget, read_model
from qrobust.domains import Domain, ParameterBox, Point, Points
from qrobust.errors import EnclosureError, NumberError, QRobustError, UnsoundAnswerError
from qrobust.exact import to_fraction
from qrobust.files import check_can_appear, write_whole
from qrobust.held import held, stored_codes
from qrobust.network import Network
from qrobust.parallel import answer_all, check_points
from qrobust.quantization import parse_scheme
from qrobust.queries import (
    ChangeOf,
    EpsilonEstimate,
    GlobalConfidence,
    GlobalEpsilon,
    GlobalLabel,
    GreatestDelta,
    LocalConfidence,
    LocalEpsilon,
    LocalLabel,
    MarginLabel,
    Query,
    SigmaEstimate,
)
from qrobust.search import Budget
from qrobust.solve import Session, check_laws

USAGE, INTERNAL, INTERRUPTED = 2, 4, 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Prove what quantization does to a neural network before it ships.",
)


class What(StrEnum):
    """What is estimated."""

    EPS = "eps"
    LOGITS = "logits"
    SIGMA = "sigma"
    DELTA = "delta"


class MapOf(StrEnum):
    """What a map shows."""

    EPS = "eps"
    LABEL = "label"
    LOGITS = "logits"


class EncodingName(StrEnum):
    """How a query becomes a formula."""

    EXPLICIT = "explicit"
    ELIMINATED = "eliminated"


class TextFormat(StrEnum):
    """The language of an exported query."""

    SMTLIB = "smtlib"
    VNNLIB = "vnnlib"


class FailOn(StrEnum):
    """Which verdicts fail."""

    UNKNOWN = "unknown"
    VIOLATED = "violated"


Model = Annotated[
    Path,
    typer.Argument(
        help="A .json (qrobust), .keras, .h5, .onnx, .npz, .nnet, .tflite, .skops or, with --trust-pickle, .joblib file."
    ),
]
Delta = Annotated[float | None, typer.Option(help="Every parameter may differ from its stored value by at most this.")]
Deltas = Annotated[list[float] | None, typer.Option("--delta", help="As above; give it again to compare several.")]
DeltaPerLayer = Annotated[str | None, typer.Option(help="One delta a layer, as in '0.01, 0.002'.")]
Against = Annotated[Path | None, typer.Option(help="A second model: every parameter between the two.")]
WeightsOnly = Annotated[bool, typer.Option("--weights-only", help="Perturb no biases.")]
Bits = Annotated[
    int | None, typer.Option(help="Every rounding to this many bits, biases too: half a step of each tensor's own scale.")
]
PerChannel = Annotated[bool, typer.Option("--per-channel", help="With --bits: one scale for each output channel.")]
SchemeText = Annotated[
    str | None,
    typer.Option("--scheme", metavar="TEXT", help="Every rounding to a format, as in int8-per-channel, fp16, q3.4-floor-wrap."),
]
CopyOf = Annotated[
    Path | None,
    typer.Option("--copy", metavar="FILE", help="A second model: exactly its parameters, such as a quantized copy's."),
]
PointText = Annotated[str | None, typer.Option("--point", help="One input, as in '15, 2'.")]
PointsFile = Annotated[Path | None, typer.Option("--points", help="A CSV file of inputs with a header.")]
BoxText = Annotated[
    str | None, typer.Option("--box", help="A box of inputs, as in '6.3:20.5, 2:3.9'. Default: the model's ranges.")
]
Cuts = Annotated[list[str] | None, typer.Option("--where", help="Cut the box, as in '2*x1 - x2 <= 3'; may be given again.")]
Level = Annotated[str, typer.Option(help="Decision level of a binary model, as in 0.3 or 1/3.")]
BackendName = Annotated[str, typer.Option("--backend", help="auto, closed-form, z3, branch-and-bound, milp or dreal.")]
Timeout = Annotated[float, typer.Option(help="Seconds for each query.")]
Memory = Annotated[float, typer.Option("--memory", metavar="GIB", help="GiB that the linear bounds and their search may take.")]
ArraysText = Annotated[
    str | None,
    typer.Option(
        "--arrays",
        metavar="LIBRARY[:DEVICE]",
        help="Tune the linear bounds in this array library, as in torch:cuda; NumPy still certifies them.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress, and no sentences.")]
TrustPickle = Annotated[bool, typer.Option("--trust-pickle", help="Read .joblib files, which run code from the file.")]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FOLDER",
        help="Keep finished answers in this folder, and take from it what the same question and --timeout gave before.",
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, metavar="N", help="Processes that share the inputs on this machine.")]
Scheduler = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="ADDRESS", help="Share the inputs on a Dask cluster instead, as in tcp://host:8786."),
]
SigmaText = Annotated[str | None, typer.Option("--sigma", help="Ask about labels that had at least this margin.")]


@app.command()
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
    if scheduler is not None and jobs > 1:
        raise UsageError("--jobs and --scheduler do not go together: give one of them")
    budget = read_budget(timeout, memory, arrays)
    network = read_model(model, trust_pickle)
    rule = Rule(_one_delta(delta), delta_per_layer, against, weights_only, bits, per_channel, scheme, copy)
    (parameters,) = parameter_boxes(network, rule, trust_pickle)
    domain = domain_of(network, Where(point, points, box, tuple(where or ())))
    query = decision(network, parameters, domain, eps, label, sigma, level)
    kept = _cache(cache)
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
    unknown_passes = answer.verdict is Verdict.UNKNOWN and fail_on is FailOn.VIOLATED
    raise typer.Exit(0 if unknown_passes else EXIT[answer.verdict])


def _one_answer(task: Task, cache: ResultCache | None, certificate: Path | None, quiet: bool) -> tuple[Answer, bool]:
    """Answer one question; say whether its certificate was asked for and written."""
    assert not isinstance(task.query, GreatestDelta)
    with show.waiting("deciding", quiet=quiet):
        if certificate is None:
            answer = _answered(task, Session(), cache)
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


def _cache(folder: Path | None) -> ResultCache | None:
    return None if folder is None else ResultCache(folder, show.warning)


def _answered(task: Task, session: Session, cache: ResultCache | None) -> Answer | Estimate:
    (result,) = answer_all([task], session=session, cache=cache)
    return result


def _one_delta(delta: float | None) -> tuple[float, ...]:
    return () if delta is None else (delta,)


def decision(
    network: Network,
    parameters: ParameterBox,
    domain: Domain,
    eps: str | None,
    label: bool,
    sigma: str | None,
    level: str,
) -> Query:
    if sum([eps is not None, label, sigma is not None]) != 1:
        raise UsageError("say what is asked: give --eps, --label or --sigma, one of them")
    local = isinstance(domain, Point)
    if eps is not None:
        kind = LocalConfidence if local else GlobalConfidence
        return kind(network, parameters, domain, to_fraction(eps))
    exact_level = to_fraction(level)
    if sigma is None:
        return (LocalLabel if local else GlobalLabel)(network, parameters, domain, exact_level)
    return (LocalLabel if local else MarginLabel)(network, parameters, domain, exact_level, to_fraction(sigma))


def _show_answer(answer: Answer, quiet: bool) -> None:
    show.line(str(answer), quiet=quiet)
    if answer.counterexample is not None:
        show.line(show.counterexample_text(answer.query.network, answer.counterexample), quiet=quiet)


@app.command()
def estimate(
    model: Model,
    what: Annotated[
        What, typer.Argument(help="eps, logits (eps of raw outputs), sigma, or delta (the greatest that changes no label).")
    ],
    delta: Deltas = None,
    delta_per_layer: DeltaPerLayer = None,
    against: Against = None,
    weights_only: WeightsOnly = False,
    bits: Bits = None,
    per_channel: PerChannel = False,
    scheme: SchemeText = None,
    copy: CopyOf = None,
    class_name: Annotated[str | None, typer.Option("--class", help="Sigma of this class alone: its name or index.")] = None,
    sigma: SigmaText = None,
    point: PointText = None,
    points: PointsFile = None,
    box: BoxText = None,
    where: Cuts = None,
    level: Level = "1/2",
    backend: BackendName = "auto",
    timeout: Timeout = 60.0,
    memory: Memory = 4.0,
    arrays: ArraysText = None,
    cache: Cache = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="Also print dReal's Minimize, for comparison only.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Estimate eps, sigma or the greatest delta, each between a witnessed lower and a certified upper end.

    \b
    qrobust estimate models/cat_paper.json eps --delta 0.005 --delta 0.01
    qrobust estimate models/cat_paper.json delta --point "15, 2"
    """
    budget = read_budget(timeout, memory, arrays)
    network = read_model(model, trust_pickle)
    domain = domain_of(network, Where(point, points, box, tuple(where or ())))
    queries: list[AnyQuery]
    if what is What.DELTA:
        if delta or delta_per_layer or against or bits or per_channel or scheme or copy:
            raise UsageError(
                "the greatest delta is what is estimated: leave out --delta, --delta-per-layer, --bits, --scheme, --against"
                " and --copy"
            )
        margin = to_fraction(sigma or "0")
        queries = [GreatestDelta(network, domain, margin, to_fraction(level), biases=not weights_only)]
    else:
        if sigma is not None:
            raise UsageError("--sigma goes with the estimate of delta: leave it out")
        rule = Rule(tuple(delta or ()), delta_per_layer, against, weights_only, bits, per_channel, scheme, copy)
        boxes = parameter_boxes(network, rule, trust_pickle)
        queries = _estimates(network, boxes, domain, what, class_name, level)
    session, kept, documents = Session(), _cache(cache), []
    earlier: list[Estimate] = []
    for query in queries:
        with show.waiting("estimating", quiet=quiet or json):
            found = _answered(Task(query, Kind.ESTIMATE, backend, budget), session, kept)
        assert isinstance(found, Estimate)
        check_laws(found, earlier)
        earlier.append(found)
        documents.append(found.to_json())
        if minimize and isinstance(query, EpsilonEstimate | SigmaEstimate):
            documents[-1]["minimize"] = DReal().minimize_as_in_paper(query, seconds=timeout)
        if not json:
            show.line(str(found), quiet=quiet)
            if "minimize" in documents[-1]:
                show.line(f"  dReal's Minimize, which proves nothing: {documents[-1]['minimize']}", quiet=quiet)
    if json:
        show.document(documents)


def _estimates(
    network: Network, boxes: list[ParameterBox], domain: Domain, what: What, class_name: str | None, level: str
) -> list[AnyQuery]:
    if what in (What.EPS, What.LOGITS):
        kind = LocalEpsilon if isinstance(domain, Point) else GlobalEpsilon
        of = ChangeOf.LOGIT if what is What.LOGITS else ChangeOf.CONFIDENCE
        return [kind(network, parameters, domain, of) for parameters in boxes]
    labels = list(range(network.class_count))
    if class_name is not None:
        names = {network.class_name(i): i for i in labels} | {str(i): i for i in labels}
        if class_name not in names:
            raise NumberError(f"no class is called {class_name!r}: the classes are {', '.join(names)}")
        labels = [names[class_name]]
    exact_level = to_fraction(level)
    return [SigmaEstimate(network, parameters, domain, label, exact_level) for parameters in boxes for label in labels]


@app.command("map")
def map_command(
    model: Model,
    delta: Delta = None,
    delta_per_layer: DeltaPerLayer = None,
    against: Against = None,
    weights_only: WeightsOnly = False,
    bits: Bits = None,
    per_channel: PerChannel = False,
    scheme: SchemeText = None,
    copy: CopyOf = None,
    what: Annotated[MapOf, typer.Option(help="Local eps, that of raw outputs, or whether the label can change.")] = MapOf.EPS,
    sigma: SigmaText = None,
    axes: Annotated[
        str | None, typer.Option(help="Two inputs, by name or number from 1: a grid over them, or the axes of --plot.")
    ] = None,
    grid: Annotated[str | None, typer.Option(help="Ask at a grid of columns x rows over --box, as in 200x200.")] = None,
    point: Annotated[
        str | None, typer.Option(help="With a grid: where the other inputs are. Default: the worst over the box.")
    ] = None,
    points: PointsFile = None,
    random: Annotated[int | None, typer.Option(min=1, max=10_000_000, help="This many random inputs of the domain.")] = None,
    box: BoxText = None,
    where: Cuts = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random inputs.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Write the map as CSV, or a grid as .npz.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the map over two inputs as PNG and SVG.")] = None,
    level: Level = "1/2",
    backend: BackendName = "auto",
    timeout: Timeout = 10.0,
    total: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Time for all single searches together; the rest stays undecided.")
    ] = None,
    memory: Memory = 4.0,
    arrays: ArraysText = None,
    jobs: Jobs = 1,
    scheduler: Scheduler = None,
    cache: Cache = None,
    json: Json = False,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Ask one question at many inputs: 1,000 random ones unless --points, --random, --grid or --axes says otherwise.

    \b
    qrobust map models/cat_paper.json --delta 0.01 --what label --output map.csv --plot map.png
    qrobust map models/iris.json --delta 0.05 --jobs 4 --cache answers   (stopped half-way, it goes on where it stopped)
    qrobust map models/iris.json --scheme int8 --what label --axes "petal length, petal width" --point "5.8, 3, 4, 1" --plot map
    """
    from qrobust.cli.sections import axes_of, section_of, show_section
    from qrobust.maps import Quantity, Question, Sharing, random_points, robustness_map
    from qrobust.plotting import check_two_inputs, draw_map

    check_can_appear(output, plot)
    budget = read_budget(timeout, memory, arrays)
    network = read_model(model, trust_pickle)
    rule = Rule(_one_delta(delta), delta_per_layer, against, weights_only, bits, per_channel, scheme, copy)
    (parameters,) = parameter_boxes(network, rule, trust_pickle)
    if points is not None and random is not None:
        raise UsageError("--points and --random do not go together: give one of them")
    if scheduler is not None and jobs > 1:
        raise UsageError("--jobs and --scheduler do not go together: give one of them")
    if sigma is not None and what is not MapOf.LABEL:
        raise UsageError("--sigma goes with --what label: leave it out")
    kept, quantity, exact_level, margin = _cache(cache), Quantity(what.value), to_fraction(level), to_fraction(sigma or "0")
    if grid is not None or (axes is not None and points is None and random is None):
        if random is not None:
            raise UsageError("--grid asks at its own cells: leave out --random")
        section = section_of(network, Where(point, points, box, tuple(where or ())), axes, grid)
        question = Question(network, parameters, quantity, exact_level, margin, backend, budget)
        sharing = Sharing(jobs, scheduler, kept, seconds=total)
        show_section(question, section, sharing, output=output, plot=plot, json=json, quiet=quiet)
        return
    if point is not None:
        raise UsageError("--point says where the other inputs of a grid are: give --grid or --axes, too")
    drawn = axes_of(network, axes) if axes is not None else None
    if plot is not None and axes is None:
        check_two_inputs(network)
    inputs = points_of(network, Where(points=points))
    if inputs is None:
        inputs = random_points(domain_of(network, Where(box=box, cuts=tuple(where or ()))), random or 1000, seed)
    else:
        domain_of(network, Where(points=points, box=box, cuts=tuple(where or ())))  # raises if a point lies outside
    with show.Bar(len(inputs), "points", quiet=quiet or json) as bar:
        found = robustness_map(
            network,
            parameters,
            inputs,
            quantity=quantity,
            level=exact_level,
            sigma=margin,
            backend=backend,
            budget=budget,
            jobs=jobs,
            scheduler=scheduler,
            cache=kept,
            seconds=total,
            progress=bar.advance,
        )
    if output is not None:
        write_whole(output, found.table().encode())
    if plot is not None:
        draw_map(found, plot, level=exact_level, inputs=drawn)
    if json:
        statuses = {"safe": 0, "flippable": 1, "undecided": 2}
        counts = {name: int((found.status == value).sum()) for name, value in statuses.items()}
        columns = {"points": inputs.tolist(), "lower": found.lower.tolist(), "upper": found.upper.tolist()}
        show.document({"network": network.sha256, "seconds": found.seconds, "counts": counts, **columns})
    else:
        show.line(str(found), quiet=quiet)


@app.command()
def export(
    model: Model,
    eps: Annotated[str | None, typer.Option(help="The query of `check --eps`.")] = None,
    label: Annotated[bool, typer.Option("--label", help="The query of `check --label`.")] = False,
    sigma: SigmaText = None,
    estimate_of: Annotated[What | None, typer.Option("--estimate", help="The query of `estimate`: eps or sigma.")] = None,
    class_name: Annotated[str | None, typer.Option("--class", help="With --estimate sigma: the class.")] = None,
    delta: Delta = None,
    delta_per_layer: DeltaPerLayer = None,
    against: Against = None,
    weights_only: WeightsOnly = False,
    bits: Bits = None,
    per_channel: PerChannel = False,
    scheme: SchemeText = None,
    copy: CopyOf = None,
    point: PointText = None,
    box: BoxText = None,
    where: Cuts = None,
    level: Level = "1/2",
    encoding: Annotated[EncodingName, typer.Option(help="Parameters as variables, or eliminated.")] = EncodingName.EXPLICIT,
    for_dreal: Annotated[bool, typer.Option("--for-dreal", help="In the stricter form that dReal needs.")] = False,
    text_format: Annotated[
        TextFormat, typer.Option("--format", help="vnnlib: with --against and --output, beside both networks as ONNX.")
    ] = TextFormat.SMTLIB,
    output: Annotated[Path | None, typer.Option(help="Write here instead of printing.")] = None,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Write a query as SMT-LIB 2, satisfiable iff it is violated; or as VNN-LIB 2.0, about a network and one copy.

    \b
    qrobust export models/cat_paper.json --label --delta 0.01 --point "15, 2" --encoding eliminated
    qrobust export float.onnx --label --against int8.onnx --format vnnlib --output query.vnnlib
    """
    from qrobust.formula import Dialect, Encoding, encode, to_smtlib
    from qrobust.formula.smtlib import text_hash

    network = read_model(model, trust_pickle)
    rule = Rule(_one_delta(delta), delta_per_layer, against, weights_only, bits, per_channel, scheme, copy)
    (parameters,) = parameter_boxes(network, rule, trust_pickle)
    domain = domain_of(network, Where(point, None, box, tuple(where or ())))
    if estimate_of is What.DELTA:
        raise UsageError("the greatest delta is found by bisection over label queries: export --label at one delta")
    query: Any
    if estimate_of is None:
        query = decision(network, parameters, domain, eps, label, sigma, level)
    elif eps is not None or label or sigma is not None:
        raise UsageError("--estimate does not go with --eps, --label or --sigma: give one of them")
    else:
        chosen = _estimates(network, [parameters], domain, estimate_of, class_name, level)
        if len(chosen) > 1:
            raise UsageError("sigma is estimated for one class: name it with --class")
        query = chosen[0]
    if text_format is TextFormat.VNNLIB:
        from qrobust.formula.vnnlib import write_vnnlib

        if against is None or output is None:
            raise UsageError("VNN-LIB asks about two networks, and is written beside them: give --against and --output")
        written = write_vnnlib(query, read_model(against, trust_pickle), output)
        show.line(f"Wrote {', '.join(str(path) for path in written)}.", quiet=quiet)
        return
    dialect = Dialect.DREAL if for_dreal else Dialect.STANDARD
    text = to_smtlib(encode(query, Encoding(encoding.value)), dialect)
    if output is None:
        print(text, end="")
    else:
        write_whole(output, text.encode())
        show.line(f"Wrote {output}, sha256 {text_hash(text)}.", quiet=quiet)


@app.command()
def replay(
    certificate: Annotated[Path, typer.Argument(help="A file that `qrobust check --certificate` wrote.")],
    model: Annotated[Path | None, typer.Option(help="Also check that it is about this model.")] = None,
    json: Json = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Check a certificate again, alone and in exact arithmetic. Exit code 0 if it proves what it says, else 4.

    \b
    qrobust check models/iris.json --label --point "5.1, 3.5, 1.4, 0.2" --delta 0.01 --certificate iris.cert
    qrobust replay iris.cert --model models/iris.json
    """
    proof = load_certificate(certificate)
    query = proof.query
    if model is not None and read_model(model, trust_pickle) != query.network:
        raise UsageError(f"{certificate} is about another network than {model}")
    started = time.monotonic()
    fault = certificate_fault(proof)
    seconds = time.monotonic() - started
    if json:
        hashes = {"network": query.network.sha256, "parameters": query.parameters.sha256}
        show.document({"proved": fault is None, "fault": fault, "leaves": proof.leaves, "seconds": seconds} | hashes)
    elif fault is None:
        claim = statement(query, Robust(Assurance.CHECKED))
        show.line(f"PROVED: {claim} [{proof.leaves} leaves, network {query.network.sha256[:12]}, {seconds:.3g} s]")
    else:
        show.line(f"REFUSED: {fault}. [{seconds:.3g} s]")
    raise typer.Exit(0 if fault is None else INTERNAL)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="The folder to write into.")] = Path("plots"),
    models: Annotated[Path | None, typer.Option(help="The folder with the paper's networks.")] = None,
    timeout: Timeout = 60.0,
    quiet: Quiet = False,
) -> None:
    """Redo the analysis of Murthy, Das and Islam (2019) with proofs: its table, its figures, and a report."""
    from qrobust.report.demo import STEPS, run_demo

    Budget(timeout)
    with show.Bar(STEPS, "demo", quiet=quiet) as bar:
        code = run_demo(
            output,
            models=models,
            seconds=timeout,
            progress=lambda text: bar.advance(text=text),
            say=lambda text: show.line(text, quiet=quiet),
        )
    raise typer.Exit(code)


@app.command()
def doctor(json: Json = False) -> None:
    """Say which backends and readers work here, by trying them, and how to get the others."""
    from qrobust.cli.doctor import findings

    found = findings()
    if json:
        show.document([finding.to_json() for finding in found])
        return
    for finding in found:
        print(finding)


app.command("compare")(compare_command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"qrobust {VERSION}")
        raise typer.Exit(0)


@app.callback()
def top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Prove what quantization does to a neural network before it ships."""


def main() -> None:
    """Run the command line: our errors become one line and an exit code; bugs keep their traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with np.errstate(all="ignore"):  # what overflows in a forecast proves nothing; bounds look at their own numbers
            code = app(standalone_mode=False)
    except (UnsoundAnswerError, EnclosureError) as error:
        _fail(str(error), INTERNAL)
    except QRobustError as error:
        _fail(str(error), USAGE)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; nothing was left half-written", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own usage errors
            _fail(error.format_message(), USAGE)
        import traceback

        traceback.print_exc()
        sys.exit(INTERNAL)
    if code == INTERRUPTED:  # typer turns Ctrl-C into this code without a word
        _fail("interrupted; nothing was left half-written", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
