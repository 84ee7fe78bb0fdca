"""The command map: one local question at many inputs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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
    Quiet,
    Scheduler,
    SchemeText,
    SigmaText,
    Timeout,
    TrustPickle,
    WeightsOnly,
)
from qrobust.cli.options import (
    Rule,
    UsageError,
    Where,
    cache_in,
    check_sharing,
    domain_of,
    parameter_box,
    points_of,
    read_budget,
    read_model,
)
from qrobust.cli.sections import axes_of, section_of, show_section
from qrobust.exact import to_fraction
from qrobust.files import check_can_appear, write_whole
from qrobust.maps import Quantity, Question, Sharing, random_points, robustness_map
from qrobust.plotting import check_two_inputs, draw_map


class MapOf(StrEnum):
    """What a map shows."""

    EPS = "eps"
    LABEL = "label"
    LOGITS = "logits"


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
        float | None, typer.Option(metavar="SECONDS", help="Time for the whole map; the rest stays undecided.")
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
    check_can_appear(output, plot)
    budget = read_budget(timeout, memory, arrays)
    network = read_model(model, trust_pickle)
    rule = Rule(delta, delta_per_layer, against, weights_only, bits, per_channel, scheme, copy)
    parameters = parameter_box(network, rule, trust_pickle)
    if points is not None and random is not None:
        raise UsageError("--points and --random do not go together: give one of them")
    check_sharing(jobs, scheduler)
    if sigma is not None and what is not MapOf.LABEL:
        raise UsageError("--sigma goes with --what label: leave it out")
    kept, quantity, exact_level, margin = cache_in(cache), Quantity(what.value), to_fraction(level), to_fraction(sigma or "0")
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
