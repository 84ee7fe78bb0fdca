"""The command plot: pictures over a data set, each beside its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qrobust.bits import LEAST, Family
from qrobust.blame import blame
from qrobust.charts import draw_bits, draw_layers, draw_margins, draw_saturation
from qrobust.cli import show
from qrobust.cli.arguments import (
    Against,
    Bits,
    CopyOf,
    Delta,
    DeltaPerLayer,
    Jobs,
    Level,
    Memory,
    Model,
    PerChannel,
    PointsFile,
    Quiet,
    SchemeText,
    Timeout,
    TrustPickle,
    WeightsOnly,
)
from qrobust.cli.compare import KernelsName
from qrobust.cli.options import Rule, UsageError, Where, domain_of, parameter_box, points_of, read_budget, read_model
from qrobust.comparison import at_points, compare
from qrobust.domains import Point
from qrobust.errors import NumberError, UnsupportedError
from qrobust.exact import to_fraction
from qrobust.files import check_can_appear
from qrobust.formats import load_program
from qrobust.integer.program import Kernels
from qrobust.interval import FloatArray
from qrobust.maps import Quantity, robustness_map
from qrobust.network import Network
from qrobust.quantization import parse_scheme
from qrobust.queries import LocalLabel
from qrobust.survey import (
    layer_error,
    margins_of,
    saturation_of_program,
    saturation_of_schemes,
    shares_by_width,
)

plots = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Draw PNG and SVG, with the numbers as CSV beside them.")

Output = Annotated[Path, typer.Option("--output", metavar="FILE", help="Where: .png, .svg and .csv are written.")]
Points = Annotated[Path, typer.Option("--points", help="A CSV file of inputs with a header.")]


@plots.command("bits")
def plot_bits(
    model: Model,
    points: Points,
    output: Output,
    scheme: Annotated[
        str, typer.Option("--scheme", metavar="FAMILY", help="Formats without their width, as for `bits`.")
    ] = "int",
    least: Annotated[int, typer.Option(help="The least width.")] = LEAST,
    most: Annotated[int | None, typer.Option(help="The greatest width: 16, or 8 for pow2.")] = None,
    level: Level = "1/2",
    timeout: Timeout = 10.0,
    memory: Memory = 4.0,
    jobs: Jobs = 1,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """The share of a data set's labels that any rounding keeps, at each width.

    \b
    qrobust plot bits models/iris.json --points inputs.csv --output bits
    """
    _check_places(output)
    network, family = read_model(model, trust_pickle), Family(scheme)
    widths = range(least, (family.most if most is None else most) + 1)
    if not widths:
        raise NumberError(f"widths from {least} to {most} are none: give the least first")
    with show.waiting("proving", quiet=quiet):
        inputs = _inputs(network, points)
        found = shares_by_width(
            network, family, inputs, widths, level=to_fraction(level), budget=read_budget(timeout, memory, None), jobs=jobs
        )
    _written(draw_bits(found, output), quiet)


@plots.command("margins")
def plot_margins(
    model: Model,
    points: Points,
    output: Output,
    delta: Delta = None,
    delta_per_layer: DeltaPerLayer = None,
    against: Against = None,
    weights_only: WeightsOnly = False,
    bits: Bits = None,
    per_channel: PerChannel = False,
    scheme: SchemeText = None,
    copy: CopyOf = None,
    level: Level = "1/2",
    timeout: Timeout = 10.0,
    memory: Memory = 4.0,
    jobs: Jobs = 1,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """How many inputs have each margin, and whose labels are proved.

    \b
    qrobust plot margins models/iris.json --points inputs.csv --scheme int8 --output margins
    """
    _check_places(output)
    network, exact_level = read_model(model, trust_pickle), to_fraction(level)
    rule = Rule(delta, delta_per_layer, against, weights_only, bits, per_channel, scheme, copy)
    parameters = parameter_box(network, rule, trust_pickle)
    with show.waiting("proving", quiet=quiet):
        answers = robustness_map(
            network,
            parameters,
            _inputs(network, points),
            quantity=Quantity.LABEL,
            level=exact_level,
            budget=read_budget(timeout, memory, None),
            jobs=jobs,
        )
    found = margins_of(answers, exact_level)
    _written(draw_margins(found, output), quiet)


@plots.command("blame")
def plot_blame(
    model: Model,
    point: Annotated[str, typer.Option("--point", help="One input, as in '15, 2'.")],
    output: Output,
    delta: Delta = None,
    delta_per_layer: DeltaPerLayer = None,
    against: Against = None,
    weights_only: WeightsOnly = False,
    bits: Bits = None,
    per_channel: PerChannel = False,
    scheme: SchemeText = None,
    copy: CopyOf = None,
    level: Level = "1/2",
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Each layer's share of what uses up a label's margin; see the command blame.

    \b
    qrobust plot blame models/iris.json --point "5.9, 3.0, 4.2, 1.5" --scheme int6 --output blame
    """
    _check_places(output)
    network = read_model(model, trust_pickle)
    rule = Rule(delta, delta_per_layer, against, weights_only, bits, per_channel, scheme, copy)
    parameters = parameter_box(network, rule, trust_pickle)
    domain = domain_of(network, Where(point))
    assert isinstance(domain, Point)
    found = layer_error(blame(LocalLabel(network, parameters, domain, to_fraction(level))))
    _written(draw_layers(found, output), quiet)


@plots.command("saturation")
def plot_saturation(
    model: Model,
    output: Output,
    scheme: Annotated[
        list[str] | None, typer.Option("--scheme", help="Count parameters beyond this format's range; may be given again.")
    ] = None,
    program: Annotated[
        Path | None, typer.Option("--program", help="Count values that this .tflite file cuts off, at --points.")
    ] = None,
    points: PointsFile = None,
    kernels: Annotated[
        KernelsName | None, typer.Option(help="With --program: whose arithmetic runs it, as for `compare`.")
    ] = None,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """How many numbers are cut off: parameters by a format, or values by an integer program.

    \b
    qrobust plot saturation models/iris.json --scheme q2.5 --scheme q3.4 --output saturation
    qrobust plot saturation models/cat_paper.json --program models/cat_int8.tflite --points cats.csv --output saturation
    """
    _check_places(output)
    if (program is None) == (not scheme) or (program is None) != (points is None):
        raise UsageError("say what is cut off: give --scheme, or --program with --points")
    if kernels is not None and program is None:
        raise UsageError("--kernels goes with --program: leave it out")
    network = read_model(model, trust_pickle)
    if program is None:
        found = saturation_of_schemes(network, [parse_scheme(text) for text in scheme or ()])
    else:
        assert points is not None
        integers = load_program(program)
        chosen = None if kernels is None else Kernels(kernels.value)
        found_there = compare(network, integers, at_points(integers, _inputs(network, points)), kernels=chosen)
        counted = saturation_of_program(found_there)
        if counted is None:
            raise UnsupportedError("any-kernel leaves open which values are cut off: name one arithmetic with --kernels")
        found = counted
    _written(draw_saturation(found, output), quiet)


def _inputs(network: Network, points: Path) -> FloatArray:
    inputs = points_of(network, Where(points=points))
    assert inputs is not None
    return inputs


def _check_places(output: Path) -> None:
    """Raise OutputError, before long work, if one of the three files cannot appear."""
    check_can_appear(*(output.with_suffix(suffix) for suffix in (".png", ".svg", ".csv")))


def _written(files: list[Path], quiet: bool) -> None:
    show.line(f"Wrote {', '.join(map(str, files))}.", quiet=quiet)
