"""The command export: a query as SMT-LIB 2 or VNN-LIB 2.0."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from qrobust.cli import show
from qrobust.cli.arguments import (
    Against,
    Bits,
    BoxText,
    CopyOf,
    Cuts,
    Delta,
    DeltaPerLayer,
    Level,
    Model,
    PerChannel,
    PointText,
    Quiet,
    SchemeText,
    SigmaText,
    TrustPickle,
    WeightsOnly,
)
from qrobust.cli.options import Rule, UsageError, What, Where, decision, domain_of, estimates, parameter_box, read_model
from qrobust.files import check_can_appear, write_whole


class EncodingName(StrEnum):
    """How a query becomes a formula."""

    EXPLICIT = "explicit"
    ELIMINATED = "eliminated"


class TextFormat(StrEnum):
    """The language of an exported query."""

    SMTLIB = "smtlib"
    VNNLIB = "vnnlib"


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

    check_can_appear(output)
    network = read_model(model, trust_pickle)
    rule = Rule(delta, delta_per_layer, against, weights_only, bits, per_channel, scheme, copy)
    parameters = parameter_box(network, rule, trust_pickle)
    domain = domain_of(network, Where(point, None, box, tuple(where or ())))
    if estimate_of is What.DELTA:
        raise UsageError("the greatest delta is found by bisection over label queries: export --label at one delta")
    query: Any
    if estimate_of is None:
        query = decision(network, parameters, domain, eps, label, sigma, level)
    elif eps is not None or label or sigma is not None:
        raise UsageError("--estimate does not go with --eps, --label or --sigma: give one of them")
    else:
        chosen = estimates(network, [parameters], domain, estimate_of, class_name, level)
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
