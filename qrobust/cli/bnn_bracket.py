"""The command bnn bracket: an ordinary network between two networks of signs."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from qrobust.answers import Verdict
from qrobust.binarized.bracket import (
    Bracket,
    Cost,
    Coverage,
    Side,
    class_index,
    cost_of,
    coverage_of_rows,
    coverage_of_volume,
)
from qrobust.binarized.bracket_build import Built, Plan, Round, build
from qrobust.binarized.bracket_files import load_bracket, save_bracket
from qrobust.binarized.bracket_proof import Implication, prove
from qrobust.binarized.bracket_training import Recipe
from qrobust.binarized.thermometer import MOST_THRESHOLDS, Thermometer, along_boundary, explicit, named_features, uniform
from qrobust.charts import draw_bracket
from qrobust.cli import show
from qrobust.cli.arguments import BoxText, Json, Model, Quiet, TrustPickle
from qrobust.cli.exits import EXIT
from qrobust.cli.options import UsageError, Where, domain_of, numbers, read_model
from qrobust.cli.sections import axes_of
from qrobust.domains import InputBox
from qrobust.files import check_can_appear
from qrobust.formats.table import check_width, read_points
from qrobust.interval import FloatArray
from qrobust.network import Network
from qrobust.search import Budget

ANSWERS = ("ASK", "YES", "NO")


class Place(StrEnum):
    """Where thresholds are proposed."""

    BOUNDARY = "boundary"
    UNIFORM = "uniform"


def bracket(
    model: Model,
    name: Annotated[str | None, typer.Option("--class", metavar="NAME", help="The class, by name or number.")] = None,
    box: BoxText = None,
    thresholds: Annotated[
        int, typer.Option(min=1, max=MOST_THRESHOLDS, help="How many thresholds each feature gets, at most.")
    ] = 15,
    place: Annotated[Place, typer.Option(help="Where: along f's decision boundary, or evenly spread.")] = Place.BOUNDARY,
    given: Annotated[
        list[str] | None,
        typer.Option("--threshold", metavar="TEXT", help="A feature's own, as in 'heart weight: 8, 10.5'; may be given again."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A CSV file of inputs with a header: train for these, report their share.")
    ] = None,
    hidden: Annotated[str, typer.Option(help="Signs of each hidden layer of each of the two, as in '24' or '32, 8'.")] = "24",
    punish: Annotated[float, typer.Option(help="What a wrong yes costs in training, in missed ones.")] = 8.0,
    starts: Annotated[int, typer.Option(min=1, help="Trainings from new numbers.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Proofs of each training, its counterexamples mended between.")] = 4,
    timeout: Annotated[float, typer.Option(help="Seconds, for everything.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the random numbers.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the pair: .json or .npz.")] = None,
    saved: Annotated[Path | None, typer.Option("--from", metavar="FILE", help="Prove a written pair anew; train none.")] = None,
    improve: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on from a written pair: keep it unless another --seed finds better.")
    ] = None,
    point: Annotated[str | None, typer.Option("--point", help="Also what the pair says of one input, as in '15, 2'.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw yes, no and silence over two features, the others as --point has them: .png and .svg."),
    ] = None,
    axes: Annotated[str | None, typer.Option(help="Which two, as in 'petal length, petal width'.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Hold an ordinary network f between two small networks of signs, and prove both.

    yes(x) = 1 proves that f says the class, no(x) = 1 that it does not; both 0: ask f. They read bits, each whether a feature
    is at least a threshold (a point on it counts as at least), and are right at every real input of the box. Training
    proposes them; the least output threshold with which each is right is then found and proved, and a high enough one always
    is: a silent network is never wrong. The written file is a binarized network of bits, which the other bnn commands read.

    Exit code 0 proved, 1 wrong somewhere (--from), 3 not decided or silent everywhere.

    \b
    qrobust bnn bracket models/cat_paper.json --class male --output male.json --plot male
    qrobust bnn bracket models/cat_paper.json --from male.json --point "15, 2"
    qrobust bnn bracket models/iris.json --class setosa --box "4:8, 2:4.5, 1:7, 0:3" --threshold "petal width: 0.5, 0.8"
    """
    check_can_appear(output, plot)
    network = read_model(model, trust_pickle)
    inputs = None if plot is None else axes_of(network, axes)
    rows = None if data is None else read_points(data, network)
    if saved is not None:
        if name is not None or given or box is not None or output is not None or improve is not None:
            raise UsageError("--from names a finished pair: leave --class, --box, --threshold, --output and --improve out")
        pair = load_bracket(saved)
        with show.waiting("proving", quiet=quiet or json):
            found = [prove(network, pair, side, Budget(timeout / 2)) for side in Side]
        document, lines, code = _proved(network, pair, found, rows)
    else:
        if output is not None and output.suffix.lower() not in (".json", ".npz"):
            raise UsageError(f"--output is {output}, give a name that ends in .npz or .json")
        first = None if improve is None else load_bracket(improve)
        if first is None:
            label = _label(network, name)
            thermometer = _code(network, _box(network, box), (thresholds, place, given or []), seed)
        elif name is not None or given or box is not None:
            raise UsageError("--improve names a pair with its class and thresholds: leave --class, --box and --threshold out")
        else:
            label, thermometer = first.label, first.code
        plan = Plan(Recipe(_sizes(hidden), punish), starts, rounds, timeout, seed=seed)
        say = (lambda text: None) if quiet or json else show.progress
        built = build(network, label, thermometer, plan, rows, say, first)
        pair, document, lines, code = built.bracket, built.to_json(), list(_built(built)), 3 if built.is_silent else 0
        if output is not None:
            save_bracket(pair, output)
            lines.append(f"Wrote {output}, network {pair.network.sha256[:12]}.")
    base = None
    if point is not None:
        base = np.array(numbers(point, "--point"))
        answer = _answer(pair, base, network)
        document |= {"point": answer}
        lines.append(f"at ({point}): {answer['answer']}{_because(network, pair, answer['answer'])}")
    if inputs is not None and plot is not None:
        lines.append("Wrote " + " and ".join(str(path) for path in draw_bracket(pair, network, plot, inputs, base)) + ".")
    if json:
        show.document(document)
    else:
        for text in lines:
            show.line(text, quiet=quiet)
    raise typer.Exit(code)


def _label(network: Network, name: str | None) -> int:
    if name is None:
        known = ", ".join(network.class_name(i) for i in range(network.class_count))
        raise UsageError(f"say which class: give --class, one of {known}")
    return class_index(network, name)


def _box(network: Network, text: str | None) -> InputBox:
    found = domain_of(network, Where(None, None, text))
    assert isinstance(found, InputBox)
    return found


def _sizes(text: str) -> tuple[int, ...]:
    values = numbers(text, "--hidden")
    if any(value != int(value) for value in values):
        raise UsageError(f"--hidden is {text!r}, give whole numbers of signs, as in '24' or '32, 8'")
    return tuple(int(value) for value in values)


def _code(network: Network, box: InputBox, wanted: tuple[int, Place, list[str]], seed: int) -> Thermometer:
    """Return the thresholds that are named, and proposed ones for the features that are not."""
    count, place, texts = wanted
    features = named_features(network)
    own: dict[int, list[float]] = {}
    for text in texts:
        word, colon, values = text.rpartition(":")
        index = next((i for i, f in enumerate(features) if f.name == word.strip()), None)
        if not colon or index is None:
            known = ", ".join(f.name for f in features)
            raise UsageError(
                f"--threshold {text!r:.80} is not read: write a feature's name, a colon and numbers; known: {known}"
            )
        own[index] = [*own.get(index, []), *numbers(values, "--threshold")]
    if len(own) == len(features):
        return explicit(network, box, [sorted(own[i]) for i in range(len(features))])
    rng = np.random.default_rng(seed)
    found = along_boundary(network, box, count, rng) if place is Place.BOUNDARY else uniform(network, box, count)
    return explicit(network, box, [sorted(own[i]) if i in own else t.tolist() for i, t in enumerate(found.thresholds)])


def _proved(
    network: Network, pair: Bracket, found: list[Implication], rows: FloatArray | None
) -> tuple[dict[str, Any], list[str], int]:
    """Return what is said about a pair that was read: its document, lines and exit code."""
    volume = coverage_of_volume(pair.code, pair.answers_of, np.random.default_rng(0))
    covered = None if rows is None else coverage_of_rows(pair.code, pair.answers_of, rows)
    worst = max((one.verdict for one in found), key=[Verdict.ROBUST, Verdict.UNKNOWN, Verdict.VIOLATED].index)
    document = {
        "network": {"name": network.name, "sha256": network.sha256},
        "class": pair.class_name,
        "domain": pair.code.box.to_json(),
        "bits": list(pair.code.bit_names),
        "halves": [one.to_json() for one in found],
        "volume": volume.to_json(),
        "data": None if covered is None else covered.to_json(),
        "cost": {"bracket": pair.cost().to_json(), "network": cost_of(network).to_json()},
    }
    lines = [_head(pair, worst, sum(one.seconds for one in found))]
    for one in found:
        lines.append(f"  {one}")
        if one.witness is not None:
            lines += [f"    {text}" for text in _named(pair, one.witness)]
    return document, [*lines, *_figures(network, pair, volume, covered)], EXIT[worst]


def _built(built: Built) -> Iterator[str]:
    verdict = Verdict.UNKNOWN if built.is_silent else Verdict.ROBUST
    yield _head(built.bracket, verdict, built.seconds, silent=built.is_silent)
    for one in built.chosen:
        yield f"  {_half(built.bracket, one)}"
    yield from _figures(built.network, built.bracket, built.volume, built.rows)


def _head(pair: Bracket, verdict: Verdict, seconds: float, *, silent: bool = False) -> str:
    word = {Verdict.ROBUST: "PROVED", Verdict.VIOLATED: "VIOLATED", Verdict.UNKNOWN: "UNKNOWN"}[verdict]
    basis = {Verdict.ROBUST: "rounded, ", Verdict.VIOLATED: "checked, ", Verdict.UNKNOWN: ""}[verdict]
    why = ": both are silent everywhere" if silent else ""
    return (
        f"{word}: two networks of signs around {pair.target or 'f'}, class {pair.class_name}, anywhere in {pair.code.box}{why};"
        f" {pair.code.bits} bits, {pair.code.cells:,} cells. [branch-and-bound, {basis}{seconds:.3g} s]"
    )


def _half(pair: Bracket, one: Round) -> str:
    found, side = one.found, one.found.claim.side.word
    signs = " and ".join(str(len(bias)) for _, bias in one.half.layers) or "no"
    text = f"{side}: speaks only where {found.claim}; {signs} signs, output threshold {one.half.threshold}"
    if found.witness is None:
        return text
    least = "the least that holds" if found.lower == found.upper else f"{found.lower:g} or more is needed"
    return f"{text}, {least}; with a lesser one it is wrong at ({', '.join(f'{value:g}' for value in found.witness)})"


def _figures(network: Network, pair: Bracket, volume: Coverage, rows: Coverage | None) -> Iterator[str]:
    by = f"by all {volume.count:,} cells" if volume.exact else f"{volume.count:,} points: {volume.low:.2%} to {volume.high:.2%}"
    yield f"  of the domain's volume: yes {volume.yes:.2%}, no {volume.no:.2%}, ask f {1 - volume.answered:.2%} ({by})"
    if rows is not None:
        yield f"  of {rows.count:,} rows: yes {rows.yes:.2%}, no {rows.no:.2%}, ask f {1 - rows.answered:.2%}"
    yield f"  one answer of both takes {_cost(pair.cost())}; of f {_cost(cost_of(network))}"


def _cost(cost: Cost) -> str:
    parts = [
        (cost.multiplications, "multiplications"),
        (cost.additions, "additions"),
        (cost.comparisons, "comparisons"),
        (cost.exponentials, "exponentials"),
    ]
    counts = [f"{count:,} {name.removesuffix('s') if count == 1 else name}" for count, name in parts if count]
    return f"{cost.bits:,} bits and " + ", ".join(counts)


def _named(pair: Bracket, point: FloatArray) -> list[str]:
    pairs = zip(pair.code.features, point.tolist(), strict=True)
    return [f"{feature.name} = {value:.10g} {feature.unit}".rstrip(" -") for feature, value in pairs]


def _answer(pair: Bracket, point: FloatArray, network: Network) -> dict[str, Any]:
    x = point[None]
    check_width(x, network)
    bits = pair.code.encode(x)
    return {"input": x[0].tolist(), "bits": bits[0].tolist(), "answer": ANSWERS[int(pair.answers(x)[0])]}


def _because(network: Network, pair: Bracket, answer: str) -> str:
    name = network.name or "f"
    words = {"YES": f", {name} says {pair.class_name}", "NO": f", {name} does not say {pair.class_name}"}
    return words.get(answer, f" {name}") + "."
