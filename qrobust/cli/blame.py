"""The command blame: what uses up the margin of a label, and what to leave in higher precision."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer

from qrobust.answers import Verdict
from qrobust.blame import Blame, Place, Relief, blame, blame_json, channel_reliefs, layer_reliefs
from qrobust.cli import show
from qrobust.cli.arguments import (
    Against,
    Bits,
    CopyOf,
    Delta,
    DeltaPerLayer,
    Json,
    Level,
    Memory,
    Model,
    PerChannel,
    Quiet,
    SchemeText,
    Timeout,
    TrustPickle,
    WeightsOnly,
)
from qrobust.cli.options import Rule, UsageError, Where, domain_of, parameter_box, read_budget, read_model
from qrobust.domains import MOST_SHOWN, ParameterBox, Point
from qrobust.exact import to_fraction
from qrobust.network import Network
from qrobust.perturbations import Absolute, Rounding
from qrobust.quantization import parse_scheme
from qrobust.queries import LocalLabel
from qrobust.solve import Session


def blame_command(
    model: Model,
    point: Annotated[str, typer.Option("--point", help="One input, as in '15, 2'.")],
    delta: Delta = None,
    delta_per_layer: DeltaPerLayer = None,
    against: Against = None,
    weights_only: WeightsOnly = False,
    bits: Bits = None,
    per_channel: PerChannel = False,
    scheme: SchemeText = None,
    copy: CopyOf = None,
    keep: Annotated[
        str, typer.Option(metavar="SCHEME", help="What parts are left in, to see what helps: float, or a format as in int16.")
    ] = "float",
    top: Annotated[int, typer.Option(min=1, help="How many channels, inputs and parameters are listed.")] = 10,
    level: Level = "1/2",
    timeout: Timeout = 10.0,
    memory: Memory = 4.0,
    json: Json = False,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Say which layers, channels, inputs and parameters use up the margin of a label, and what to leave in higher precision.

    Shares belong to one linear bound; what is said to help is proved anew. Exit code 0.

    \b
    qrobust blame models/iris.json --point "5.9, 3.0, 4.2, 1.5" --scheme int6
    """
    budget, session = read_budget(timeout, memory, None), Session()
    network = read_model(model, trust_pickle)
    rule = Rule(delta, delta_per_layer, against, weights_only, bits, per_channel, scheme, copy)
    parameters = parameter_box(network, rule, trust_pickle)
    better = _better(network, keep)
    domain = domain_of(network, Where(point))
    assert isinstance(domain, Point)
    query = LocalLabel(network, parameters, domain, to_fraction(level))
    with show.waiting("blaming", quiet=quiet or json):
        found, answer = blame(query), session.check(query, budget=budget)
        open_ = answer.verdict is not Verdict.ROBUST
        layers = layer_reliefs(found, better, session, budget) if open_ else []
        channels = channel_reliefs(found, better, session, budget) if open_ else []
    if json:
        reliefs = {"layer_reliefs": [_relief_json(r) for r in layers], "channel_reliefs": [_relief_json(r) for r in channels]}
        show.document(blame_json(found, top) | {"verdict": answer.verdict.value, "keep": keep} | reliefs)
        return
    show.line(str(answer), quiet=quiet)
    for text in (*_shares(found), *_listed(found, top), *_reliefs(found, keep, layers, channels)):
        show.line(text, quiet=quiet)


def _better(network: Network, keep: str) -> ParameterBox:
    if keep == "float":
        return Absolute(0.0).around(network)
    if "/" in keep:
        raise UsageError(f"--keep {keep}: name one format, or float")
    return Rounding(parse_scheme(keep)).around(network)


def _relief_json(relief: Relief) -> dict[str, object]:
    places = [{"layer": layer + 1, "row": row} for layer, row in relief.places]
    return {"places": places, "verdict": relief.answer.verdict.value, "seconds": relief.answer.seconds}


def _shares(found: Blame) -> list[str]:
    network, used = found.network, found.shares.used
    names = network.class_name(found.label), network.class_name(found.rival)
    lines = [
        f"{names[0]} is {found.margin:.6g} ahead of {names[1]} (a difference of logits); of this"
        f" {used:.6g} is used up at most, {_percent(used, found.margin)}",
        "  layer  weights      biases       neurons' bounds",
    ]
    for number, own in enumerate(found.layers, start=1):
        parts = (float(own.weight.sum()), float(own.bias.sum()), own.relaxed)
        lines.append(f"  {number:>5}  " + "  ".join(f"{_percent(part, used):<11}" for part in parts).rstrip())
    return lines


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3g} %" if whole > 0 else f"{part:.3g}"


def _listed(found: Blame, top: int) -> list[str]:
    network, used = found.network, found.shares.used
    channels = [p for p in found.channels()[:top] if p.share > 0]
    words = [f"{_named(network, p.layer, p.row)} {_percent(p.share, used)}" for p in channels]
    lines = [f"output channels, counted from 0: {'; '.join(words)}"]
    inputs = found.inputs()
    if inputs is not None:
        order = [i for i in np.argsort(-inputs, kind="stable")[:top].tolist() if inputs[i] > 0]
        if order:
            words = [f"{network.feature_name(i)} {_percent(float(inputs[i]), used)}" for i in order]
            lines.append(f"inputs, through layer 1: {'; '.join(words)}")
    parameters = [p for p in found.parameters(top) if p.share > 0]
    words = [f"{_parameter(network, p)} {_percent(p.share, used)}" for p in parameters]
    return [*lines, f"parameters: {'; '.join(words)}"]


def _named(network: Network, layer: int, row: int | None) -> str:
    if row is None:
        return f"layer {layer + 1}"
    last = layer + 1 == len(network.layers) and network.classes and network.class_count == network.layers[-1].outputs
    return f"layer {layer + 1} weights[{row}]" + (f" ({network.class_name(row)})" if last else "")


def _parameter(network: Network, place: Place) -> str:
    layer = network.layers[place.layer]
    if place.index is None:
        assert place.row is not None
        return f"layer {place.layer + 1} biases[{place.row}] = {layer.bias[place.row]:.4g}"
    index = ", ".join(map(str, place.index))
    return f"layer {place.layer + 1} weights[{index}] = {layer.weight[place.index]:.4g}"


def _reliefs(found: Blame, keep: str, layers: list[Relief], channels: list[Relief]) -> list[str]:
    lines = [f"{_named(found.network, *relief.places[0])} alone in {keep}: {relief.answer.verdict.value}" for relief in layers]
    proved = [relief for relief in channels if relief.proved]
    if channels and not proved:
        lines.append(f"all {len(channels[-1].places)} channels in {keep}: {channels[-1].answer.verdict.value}")
    if proved:
        best = min(proved, key=lambda relief: len(relief.places))
        names = [_named(found.network, *place) for place in best.places]
        words = names if len(names) <= MOST_SHOWN else [*names[:MOST_SHOWN], "..."]
        short = [relief for relief in channels if len(relief.places) == len(best.places) - 1]
        fewer = f"; without the last of them {short[0].answer.verdict.value}" if short else ""
        count = f"the {len(names)} channels with" if len(names) > 1 else "the channel with"
        lines.append(f"{count} the greatest share in {keep}: ROBUST{fewer}: {', '.join(words)}")
    return lines
