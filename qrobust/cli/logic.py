"""The commands that give reasons and numbers: bnn explain, bnn count, bnn compile."""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from qrobust.binarized import BinarizedNetwork, Norm
from qrobust.binarized.bracket_codes import range_name
from qrobust.binarized.network import Grid
from qrobust.binarized.queries import Levels
from qrobust.cli import show
from qrobust.cli.arguments import SchemeText, TrustPickle
from qrobust.cli.bnn import NormName, TieName, given_numbers, grid_of, policies_of
from qrobust.cli.options import Rule, UsageError, parameter_boxes, read_model
from qrobust.cli.reasoned import About, Reasoned, read_reasoned
from qrobust.domains import InputBox
from qrobust.errors import DomainError, NumberError
from qrobust.exact import to_fraction
from qrobust.files import check_can_appear
from qrobust.formats.table import check_width, read_points
from qrobust.interval import down, round_fraction_up, up
from qrobust.logic.compiled import Wanted, read_off
from qrobust.logic.counting import Counter, Disagreement, Flips, Influence, Property, count
from qrobust.logic.diagrams import MOST_NODES, region_of
from qrobust.logic.explanation import Explanation, Size, explain, explanations
from qrobust.logic.hashing import Factor
from qrobust.logic.minimal import Method, Order
from qrobust.logic.oracles import Kind
from qrobust.logic.pictures import Held, draw_explanation, named
from qrobust.logic.reals import Promise, RealDecision, RealOracle
from qrobust.logic.sampling import Precision
from qrobust.logic.signs import SignDecision, SignOracle
from qrobust.logic.widening import Ranges, widened
from qrobust.network import Feature
from qrobust.plotting import save_figure

SHOWN = 20  # features of a line

BinarizedModel = Annotated[Path, typer.Argument(help="A binarized network: .json, .npz, .keras, .onnx, .onnx.gz, .h5 (Larq).")]
Given = Annotated[str | None, typer.Option("--input", help="An input, '0, 1, 0.5', or a CSV file with a header.")]
Row = Annotated[int, typer.Option(help="Which row of the CSV file, from 1.")]
Zero = Annotated[int, typer.Option("--sign-of-zero", help="What sign(0) is: 1 or -1.")]
Step = Annotated[str | None, typer.Option(help="The step that inputs are rounded to, as in 1/255.")]
Reach = Annotated[str | None, typer.Option("--range", help="The inputs' range, as in 0:1.")]
Seconds = Annotated[float, typer.Option("--timeout", help="Seconds.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]


class KindName(StrEnum):
    """What an explanation says of its features."""

    ABDUCTIVE = "abductive"
    CONTRASTIVE = "contrastive"


class SizeName(StrEnum):
    """How small an explanation is to be."""

    SUBSET = "subset"
    LEAST = "least"


class OrderName(StrEnum):
    """In which order explanations are listed."""

    SIZE = "size"
    FOUND = "found"


class MethodText(StrEnum):
    """How a set is made minimal."""

    DELETION = "deletion"
    QUICKXPLAIN = "quickxplain"


class CounterName(StrEnum):
    """Who counts."""

    AUTO = "auto"
    ENUMERATION = "enumeration"
    EXACT = "exact"
    APPROXIMATE = "approximate"
    PARITIES = "parities"


class PromiseName(StrEnum):
    """What features ensure of every rounding."""

    LABEL = "label"
    AGREEMENT = "agreement"


def explain_command(
    model: Annotated[Path, typer.Argument(help="A binarized network; with --real, an ordinary one.")],
    given: Given = None,
    row: Row = 1,
    kind: Annotated[
        KindName, typer.Option(help="abductive: features that alone fix the label; contrastive: whose change can flip it.")
    ] = KindName.ABDUCTIVE,
    size: Annotated[SizeName, typer.Option(help="subset: none can be left out; least: none has fewer.")] = SizeName.SUBSET,
    eps: Annotated[str | None, typer.Option(help="How far each other feature ranges; all its range by default.")] = None,
    every: Annotated[bool, typer.Option("--all", help="List all minimal explanations, of both kinds.")] = False,
    order: Annotated[OrderName, typer.Option(help="Of --all: as found, or the least first.")] = OrderName.FOUND,
    most: Annotated[int | None, typer.Option(min=1, help="Of --all: stop after so many of the kind.")] = None,
    method: Annotated[MethodText, typer.Option(help="How a set is made minimal.")] = MethodText.DELETION,
    names: Annotated[str | None, typer.Option(help="The features' names, with commas between.")] = None,
    last: Annotated[
        str | None, typer.Option("--rather", help="Features rather kept than others, by name or number from 1, with commas.")
    ] = None,
    label: Annotated[int | None, typer.Option(help="The label to explain; it must be the input's own.")] = None,
    tie: Annotated[TieName, typer.Option(help="Who has the label where scores are equal.")] = TieName.FIRST,
    zero: Zero = 1,
    step: Step = None,
    reach: Reach = None,
    real: Annotated[bool, typer.Option("--real", help="Explain an ordinary network, through Z3, HiGHS and bounds.")] = False,
    scheme: SchemeText = None,
    promise: Annotated[
        PromiseName,
        typer.Option(help="With --scheme: every rounding gives the label, or agrees with the stored network."),
    ] = PromiseName.LABEL,
    picture: Annotated[Path | None, typer.Option(help="Draw it: .png and .svg, and a table as .csv.")] = None,
    timeout: Seconds = 60.0,
    json: Json = False,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Say why an input has its label. Exit code 0 found and checked, 3 time ran out before it was minimal or checked.

    \b
    qrobust bnn explain digits.npz --input image.csv --eps 0.7 --picture why
    qrobust bnn explain model.npz --input "0, 1, 1" --kind contrastive --size least
    qrobust bnn explain model.npz --input "0, 1, 1" --all --order size
    qrobust bnn explain models/iris.json --real --input "5.9, 3, 4.2, 1.5" --scheme int8
    """
    if picture is not None:
        check_can_appear(*(picture.with_suffix(suffix) for suffix in (".png", ".svg", ".csv")))
    if not real and (scheme is not None or promise is PromiseName.AGREEMENT):
        raise UsageError("--scheme and --promise go with --real: a binarized network has no rounding left")
    oracle, about, told = (
        _real_oracle(model, (given, row, eps), scheme, Promise(promise.value), trust_pickle=trust_pickle)
        if real
        else _sign_oracle(read_reasoned(model, grid_of(step, reach, "half-even"), given, row, eps), label, (tie, zero))
    )
    if names is not None and about.code is not None:
        raise UsageError("a bracket names its features itself: leave --names out")
    features, inputs = _named(names, about.features), about.shown
    about, ranks = replace(about, features=features), _ranks(last, features, oracle)
    with oracle, show.waiting("explaining", quiet=quiet or json):
        if every:
            listing = explanations(
                oracle,
                Kind(kind.value),
                Order(order.value),
                ranks=ranks,
                most=most,
                seconds=timeout,
                say=lambda each: None if quiet or json else show.progress(_sentence(each, told, about)),
            )
            found, document = list(listing.found), listing.to_json()
            enough = most is not None and len(listing.of(Kind(kind.value))) >= most
            complete = (listing.complete or enough) and all(each.is_checked for each in found)
        else:
            one = explain(oracle, Kind(kind.value), Size(size.value), ranks=ranks, method=Method(method.value), seconds=timeout)
            found, complete, document = [one], one.is_complete, one.to_json()
    document |= {"label": told, "names": [feature.name for feature in features], "input": inputs.tolist()}
    wide = None if every or about.code is None else _ranges(oracle, found[0], timeout)
    if wide is not None:
        document["ranges"] = [about.words(place, wide.lower, wide.upper) for place in found[0].features or ()]
        document["widest"] = wide.is_widest
    is_told = every and sys.stdout.isatty() and sys.stderr.isatty()  # as they were found, on the same terminal
    for each in [] if json or is_told else found:
        show.line(_sentence(each, told, about, wide), quiet=quiet)
    if json:
        show.document(document)
    if picture is not None and found and found[0].features is not None:
        title, held = _sentence(found[0], told, about, shown=0).split(" [")[0], _held(found[0], about, wide)
        written = draw_explanation(found[0], inputs, features, held, title=title, path=picture)
        show.line(f"Wrote {', '.join(map(str, written))}.", quiet=quiet or json)
    raise typer.Exit(0 if complete else 3)


Told = tuple[SignOracle | RealOracle, About, str]


def _sign_oracle(read: Reasoned, label: int | None, policies: tuple[TieName, int]) -> Told:
    inputs, about = read.given
    decision = SignDecision(read.network, inputs, read.where, label, *policies_of(*policies))
    return SignOracle(decision), about, read.network.class_name(decision.own_label)


def _real_oracle(
    model: Path, where: tuple[str | None, int, str | None], scheme: str | None, promise: Promise, *, trust_pickle: bool
) -> Told:
    given, row, eps = where
    network = read_model(model, trust_pickle)
    inputs = given_numbers(given, row, lambda path: read_points(path, network))
    check_width(inputs[None], network)
    if not np.isfinite(inputs).all():
        raise NumberError("--input holds a number that is not finite")
    parameters = None if scheme is None else parameter_boxes(network, Rule(scheme=scheme), trust_pickle)[0]
    if promise is Promise.AGREEMENT and parameters is None:
        raise UsageError("--promise agreement is about roundings: give --scheme")
    if eps is None and any(feature.lower is None for feature in network.features or (Feature("x"),)):
        raise UsageError("the model names no input ranges: say how far the other features range, --eps")
    reach = None if eps is None else round_fraction_up(to_fraction(eps))
    ranges = None if reach is None else InputBox(down(inputs - reach), up(inputs + reach))  # outward: the ball lies within
    decision = RealDecision(network, inputs, ranges, parameters, promise)
    label = network.class_name(int(network.labels(inputs[None])[0]))
    return RealOracle(decision), About(named(network.features, network.inputs), inputs), label


def _ranges(oracle: SignOracle | RealOracle, found: Explanation, seconds: float) -> Ranges | None:
    """Return how far the features of an abductive explanation may move; None for another."""
    if not isinstance(oracle, SignOracle) or found.kind is not Kind.ABDUCTIVE or found.features is None:
        return None
    return widened(oracle.decision, frozenset(found.features), seconds=seconds)


def _held(found: Explanation, about: About, wide: Ranges | None) -> Held:
    """Return what is said of each feature of an explanation: its range, its value, or that it may change."""
    words, ends = list[str](), list[tuple[float, float]]()
    for place in found.features or ():
        feature, value = about.features[place], float(about.shown[place])
        whole = tuple(value if end is None else end for end in (feature.lower, feature.upper))
        if found.kind is Kind.CONTRASTIVE:
            words.append(f"{feature.name} may change")
            ends.append((whole[0], whole[1]))
        elif wide is not None and about.code is not None:
            words.append(about.words(place, wide.lower, wide.upper))
            ends.append(about.code.values_of(place, int(wide.lower[place]), int(wide.upper[place])))
        else:
            words.append(f"{feature.name} = {value:.10g} {feature.unit}".strip())
            ends.append((value, value))
    return Held(tuple(words), tuple(ends))


def _named(names: str | None, features: tuple[Feature, ...]) -> tuple[Feature, ...]:
    if names is None:
        return features
    own = [name.strip() for name in names.split(",")]
    if len(own) != len(features) or len(set(own)) != len(own):
        raise UsageError(f"--names has {len(set(own))} different names, the model takes {len(features)} inputs")
    return tuple(replace(feature, name=name) for feature, name in zip(features, own, strict=True))


def _place(name: str, features: tuple[Feature, ...]) -> int:
    """Return a feature's place, by its name or its number from 1. Raises DomainError."""
    known = [feature.name for feature in features]
    if name in known:
        return known.index(name)
    numbers = [str(number) for number in range(1, len(features) + 1)]
    if name in numbers:
        return numbers.index(name)
    raise DomainError(
        f"there is no feature {name!r:.60}: name one of {', '.join(known[:5])}, ..., or a number from 1 to {len(known)}"
    )


def _ranks(last: str | None, features: tuple[Feature, ...], oracle: SignOracle | RealOracle) -> list[int]:
    kept = [] if last is None else [_place(name.strip(), features) for name in last.split(",")]
    return [place for place in oracle.ranks if place not in kept] + kept[::-1]


def _sentence(found: Explanation, label: str, about: About, wide: Ranges | None = None, *, shown: int = SHOWN) -> str:
    if found.features is None:
        text = "no explanation was found" if found.reason else "none exists, whatever the features"
    else:
        ends = () if wide is None else (wide.lower, wide.upper)
        words = [about.words(place, *ends) for place in found.features[:shown]]
        words += ["..."] if words and len(found.features) > shown else []
        count = len(found.features)
        own = f"{count} {'feature' if count == 1 else 'features'}" + (f" ({', '.join(words)})" if words else "")
        own = own if count else "no feature"
        verb = "fix the label" if count > 1 else "fixes the label" if count else "is needed: whatever all do, the label is"
        what = verb if found.kind is Kind.ABDUCTIVE else "can change and lose the label"
        text = f"{own} {what} {label}; {found.how_small}"
    by = f", confirmed by {', '.join(found.confirmed_by)}" if found.confirmed_by else ""
    basis = "checked" if found.is_checked else "not checked"
    why = f" {found.reason}." if found.reason else ""
    return f"{found.kind.value}: {text}.{why} [{basis}{by}, {found.seconds:.3g} s]"


def count_command(
    model: BinarizedModel,
    given: Given = None,
    row: Row = 1,
    eps: Annotated[str | None, typer.Option(help="The radius of a ball about --input; without it, all inputs count.")] = None,
    norm: Annotated[NormName, typer.Option(help="The ball's norm.")] = NormName.LINF,
    copy: Annotated[Path | None, typer.Option(help="Count the inputs to which this copy gives another label.")] = None,
    feature: Annotated[
        str | None, typer.Option(help="Count the inputs whose label this feature alone, by name or number from 1, can change.")
    ] = None,
    label: Annotated[int | None, typer.Option(help="Count the inputs without this label; --input's own by default.")] = None,
    counter: Annotated[CounterName, typer.Option(help="Who counts.")] = CounterName.AUTO,
    epsilon: Annotated[
        float | None,
        typer.Option(help="approximate: the share within epsilon [0.01]; parities: the count within 1 + epsilon times [0.8]."),
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Both with probability 1 - delta [approximate 0.001, parities 0.05].")
    ] = None,
    zero: Zero = 1,
    step: Step = None,
    reach: Reach = None,
    timeout: Seconds = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws, and the counter.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Count the inputs of a region that lose a label. Exit code 0 counted, 3 time ran out.

    \b
    qrobust bnn count model.npz --input "0, 1, 1" --eps 2 --norm hamming
    qrobust bnn count model.npz --copy smaller.npz
    qrobust bnn count model.npz --feature 3 --counter approximate --epsilon 0.02 --delta 0.01
    qrobust bnn count model.npz --copy smaller.npz --counter parities --epsilon 0.5
    """
    if copy is not None and feature is not None:
        raise UsageError("--copy and --feature ask two questions: give one of them")
    if norm is not NormName.LINF and eps is None:
        raise UsageError("--norm goes with --eps: say how far inputs may be")
    grid, sign = grid_of(step, reach, "half-even"), policies_of(TieName.FIRST, zero)[1]
    read = read_reasoned(model, grid, given, row, eps, Norm(norm.value))
    network = read.network
    where = _everywhere(network) if read.where is None else read.where
    asked: Property
    if copy is not None:
        asked = Disagreement(network, where, sign, _copy(copy, grid, read))
    elif feature is not None:
        asked = Influence(network, where, sign, _place(feature, read.features))
    elif label is None and given is None:
        raise UsageError("say what is counted: give --input, --label, --copy or --feature")
    else:
        asked = Flips(network, where, sign, label)
    is_factor = counter is CounterName.PARITIES
    own = {name: value for name, value in (("epsilon", epsilon), ("delta", delta)) if value is not None}
    precision, factor = Precision(**({} if is_factor else own)), Factor(**(own if is_factor else {}))
    with show.waiting("counting", quiet=quiet or json):
        found = count(asked, Counter(counter.value), precision=precision, factor=factor, seed=seed, seconds=timeout)
    if json:
        show.document(found.to_json() | {"network": {"name": network.name, "sha256": network.sha256}})
    else:
        show.line(str(found), quiet=quiet)
    raise typer.Exit(0 if found.assurance is not None else 3)


def _everywhere(network: BinarizedNetwork) -> Levels:
    region = region_of(network, None)
    return Levels(region.lower, region.upper, region.centre)


def _copy(copy: Path, grid: Grid | None, read: Reasoned) -> BinarizedNetwork:
    """Read another network; of brackets, one of the same thresholds. Raises DomainError."""
    other = read_reasoned(copy, grid, None, 1, None)
    if (read.code is None) != (other.code is None) or (
        read.code and other.code and read.code.bit_names != other.code.bit_names
    ):
        raise DomainError(f"{copy} reads other bits: compare brackets of the same thresholds")
    return other.network


def compile_command(
    model: BinarizedModel,
    given: Given = None,
    row: Row = 1,
    eps: Annotated[str | None, typer.Option(help="Compile a box about --input; without it, the whole range.")] = None,
    copy: Annotated[Path | None, typer.Option(help="Is this copy equivalent? If not, an input that tells them apart.")] = None,
    primes: Annotated[int | None, typer.Option(help="List the prime implicants of this class.")] = None,
    monotone: Annotated[bool, typer.Option("--monotone", help="Say which features raise or lower which class.")] = False,
    distances: Annotated[bool, typer.Option("--robustness", help="How many features must change, for every input.")] = False,
    sentential: Annotated[bool, typer.Option("--sdd", help="Compile to SDDs as well, and compare.")] = False,
    draw: Annotated[Path | None, typer.Option(help="Draw --primes' class, or class 0: .png and .svg.")] = None,
    nodes: Annotated[int, typer.Option(min=2, help="The most nodes.")] = MOST_NODES,
    timeout: Seconds = 60.0,
    zero: Zero = 1,
    step: Step = None,
    reach: Reach = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile a network over few inputs to decision diagrams, and read off them. Exit code 0; with --copy, 1 not equivalent.

    \b
    qrobust bnn compile model.npz --robustness --monotone
    qrobust bnn compile model.npz --primes 1 --draw diagram
    qrobust bnn compile model.npz --copy smaller.npz
    """
    if draw is not None:
        check_can_appear(*(draw.with_suffix(suffix) for suffix in (".png", ".svg")))
    grid = grid_of(step, reach, "half-even")
    read, sign = read_reasoned(model, grid, given, row, eps), policies_of(TieName.FIRST, zero)[1]
    network = read.network
    if (eps is None) != (given is None):
        raise UsageError("--input and --eps go together: give both, or neither for the whole range")
    label = 0 if primes is None else primes
    if not 0 <= label < network.outputs:
        raise DomainError(f"the class is {label}, the network has classes 0 to {network.outputs - 1}")
    wanted = Wanted(
        network,
        region_of(network, read.where),
        nodes,
        timeout,
        sign,
        sentential,
        distances,
        monotone,
        primes,
        None if copy is None else _copy(copy, grid, read),
        None if draw is None else label,
    )
    with show.waiting("compiling", quiet=quiet or json):
        document, figure = read_off(wanted)
    written = [] if draw is None or figure is None else save_figure(figure, draw)
    if json:
        show.document(document)
    else:
        for text in _compiled(document, read):
            show.line(text, quiet=quiet)
    if written:
        show.line(f"Wrote {', '.join(map(str, written))}.", quiet=quiet or json)
    raise typer.Exit(1 if document.get("differences") else 0)


def _compiled(document: dict[str, Any], read: Reasoned) -> list[str]:
    network, total = read.network, sum(document["counts"])
    unit = "inputs" if read.code is None else "cells"
    lines = [f"{document['nodes']:,} nodes" + (f", SDD size {document['sdd_size']:,}" if "sdd_size" in document else "")]
    for own, many in enumerate(document["counts"]):
        lines.append(f"  {network.class_name(own)}: {many:,} of {total:,} {unit}, {many / total:.6g}")
    for flips, many in enumerate(document.get("least_flips", ())):
        changed = "1 feature" if flips == 1 else f"{flips} features"
        what = "never lose their label" if not flips else f"lose their label by changing {changed}, and no fewer"
        lines += [f"  {many:,} {unit} {what}"] if many else []
    for one in document.get("monotone", ()):
        words = {(True, True): "does not matter to", (True, False): "speaks for", (False, True): "speaks against"}
        word = words.get((one["never_lost_by_raising"], one["never_lost_by_lowering"]), "is not monotone for")
        lines.append(f"  {read.features[one['feature']].name} {word} {network.class_name(one['class'])}")
    for prime in document.get("primes", ()):
        lines.append("  " + (" and ".join(_range(read, *one) for one in prime) or "always"))
    if "differences" in document:
        apart = f"{document['differences']:,} {unit} tell them apart, as {document['witness']}"
        lines.append(apart if document["differences"] else "equivalent: every input has the same label")
    return lines


def _range(read: Reasoned, place: int, least: int, most: int) -> str:
    """Say between which levels an input lies; of a bracket, which values these stand for."""
    if read.code is not None:
        return range_name(read.code, place, least, most)
    levels = f"level {least}" if least == most else f"levels {least} to {most}"
    return f"{read.features[place].name} at {levels}"
