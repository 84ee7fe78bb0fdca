"""The command bnn map: one question about a network of signs in every cell of a grid over two inputs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from qrobust.binarized import Ball, BinarizedNetwork, Norm
from qrobust.binarized.formats import ReadNetwork, load_binarized
from qrobust.binarized.many import Settings
from qrobust.binarized.maps import Asked, BinarizedMap, Cut, Shown, binarized_map
from qrobust.binarized.race import ENGINES, PORTFOLIO
from qrobust.charts import draw_binarized
from qrobust.cli import show
from qrobust.cli.arguments import Cache, Jobs, Json, Quiet
from qrobust.cli.bnn import NormName, TieName, box_of, grid_of, named_point, policies_of
from qrobust.cli.bnn_pairs import read_pair
from qrobust.cli.options import UsageError, cache_in
from qrobust.cli.sections import MOST_CSV, cells_of
from qrobust.errors import ResourceError
from qrobust.exact import to_fraction
from qrobust.files import check_can_appear, write_whole
from qrobust.formats import load
from qrobust.formats.table import read_table
from qrobust.layers import IntArray
from qrobust.network import Feature, Network
from qrobust.quantization import parse_scheme

MOST_NAMED = 12  # inputs that a message names
MOST_LEVELS = 200  # of an axis that are all shown without --grid


class ShownName(StrEnum):
    """What a map shows."""

    LABEL = "label"
    ROBUST = "robust"
    CHANGE = "change"


def bnn_map(
    model: Annotated[Path, typer.Argument(help="A binarized network: .json, .npz, .keras, .onnx, .onnx.gz, .h5 (Larq).")],
    axes: Annotated[str, typer.Option(help="Two inputs, by number from 1 or by name, as in '1, 2'.")],
    what: Annotated[
        ShownName | None,
        typer.Option(
            help="label; robust: is it kept in a ball (--eps); change: does --copy give another. Default: as these say."
        ),
    ] = None,
    given: Annotated[
        str | None, typer.Option("--input", help="Where the other inputs are, or a CSV file. Default: the worst over the box.")
    ] = None,
    row: Annotated[int, typer.Option(help="Which row of the CSV file, from 1.")] = 1,
    eps: Annotated[str | None, typer.Option(help="How far the other inputs may be from --input.")] = None,
    norm: Annotated[NormName, typer.Option(help="With --eps: the ball's norm; linf says how far each may be.")] = NormName.LINF,
    axes_too: Annotated[bool, typer.Option("--axes-too", help="With --eps: the two axes' inputs move as well.")] = False,
    box: Annotated[
        str | None, typer.Option(help="Each input's two ends, as in '0:1, 0.5:1'. Default: the input range.")
    ] = None,
    cells: Annotated[str | None, typer.Option("--grid", help="Columns x rows, as in 200x200. Default: every level.")] = None,
    copy: Annotated[str | None, typer.Option(help="A second network, or binary or ternary: MODEL made so.")] = None,
    is_float: Annotated[bool, typer.Option("--float", help="MODEL is a float network, compared as it is with --copy.")] = False,
    tie: Annotated[TieName, typer.Option(help="Who has the label where scores are equal.")] = TieName.FIRST,
    zero: Annotated[int, typer.Option("--sign-of-zero", help="What sign(0) is: 1 or -1.")] = 1,
    step: Annotated[str | None, typer.Option(help="The step that inputs are rounded to, as in 1/255.")] = None,
    reach: Annotated[str | None, typer.Option("--range", help="The inputs' range, as in 0:1.")] = None,
    rounding: Annotated[str, typer.Option(help="half-even, half-up or half-away.")] = "half-even",
    scheme: Annotated[str | None, typer.Option(help="Binarize a float network: binary or ternary.")] = None,
    engine: Annotated[str, typer.Option(help=f"{PORTFOLIO}, {', '.join(ENGINES)}.")] = PORTFOLIO,
    exact: Annotated[bool, typer.Option("--exact", help="A ROBUST in floating point does not count.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for each cell that has to be asked.")] = 10.0,
    output: Annotated[Path | None, typer.Option(help="Write the map as CSV, or .npz.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the map as PNG and SVG.")] = None,
    jobs: Jobs = 1,
    cache: Cache = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask in every cell of a grid over two inputs. Exit code 0, or 3 if some cells are undecided.

    \b
    qrobust bnn map model.npz --axes "1, 2" --input "0, 0, 1, 1" --plot map
    qrobust bnn map model.npz --axes "1, 2" --input x.csv --eps 0.1 --jobs 2 --cache answers --output map.csv
    qrobust bnn map model.npz --axes "width, length" --input x.csv --eps 2 --norm l0 --axes-too
    qrobust bnn map iris.json --float --copy ternary --step 1/10 --range 0:8 --axes "3, 4" --input "5.8, 3, 4, 1" --plot map
    """
    check_can_appear(output, plot)
    grid, chosen = grid_of(step, reach, rounding), None if scheme is None else parse_scheme(scheme)
    shown, (ties, sign) = _shown(what, eps, copy, axes_too=axes_too), policies_of(tie, zero)
    if shown is Shown.CHANGE or is_float:
        pair = read_pair(model, copy, grid, chosen, is_float=is_float)
        read = pair.read
        asked = Asked(pair.network, shown, read.network, ties, sign)
        source = pair.network if isinstance(pair.network, Network) else None
    else:
        read = load_binarized(model, grid, chosen)
        asked, source = Asked(read.network, shown, None, ties, sign), None
    source = load(model) if source is None and chosen is not None else source
    features = _features(source, given, read.network.inputs)
    cut = _cut(read, (axes, box, cells), (given, row, eps, norm), features, axes_too=axes_too)
    if output is not None and output.suffix.lower() != ".npz" and len(cut) > MOST_CSV:
        raise ResourceError(f"{len(cut):,} cells are too many lines of CSV: name an .npz file, or a coarser --grid")
    kept = cache_in(cache)
    with show.Bar(len(cut), "cells", quiet=quiet or json) as bar:
        found = binarized_map(asked, cut, Settings(engine, timeout, exact), jobs=jobs, cache=kept, progress=bar.advance)
    _write(found, output, plot)
    if json:
        show.document(found.to_json())
    else:
        show.line(str(found), quiet=quiet)
    raise typer.Exit(3 if found.undecided else 0)


def _shown(what: ShownName | None, eps: str | None, copy: str | None, *, axes_too: bool) -> Shown:
    """Return what the options ask for. Raises UsageError."""
    if eps is not None and copy is not None:
        raise UsageError("--eps and --copy do not go together: give one of them")
    implied = Shown.ROBUST if eps is not None else Shown.CHANGE if copy is not None else Shown.LABEL
    if axes_too and eps is None:
        raise UsageError("--axes-too goes with --eps: say how far the inputs may move")
    if what is not None and Shown(what.value) is not implied:
        raise UsageError(f"--what {what.value}: robust goes with --eps, change with --copy, label with neither")
    return implied


def _features(source: Network | None, given: str | None, inputs: int) -> list[Feature]:
    """Return the inputs' names: the float network's features, else the header of --input's table, else x1, x2, ..."""
    if source is not None and source.features and len(source.features) == inputs:
        return list(source.features)
    if given is not None and Path(given).suffix.lower() == ".csv":
        header, _ = read_table(Path(given))
        if len(header) == inputs:
            return [Feature(name or f"x{number}") for number, name in enumerate(header, start=1)]
    return [Feature(f"x{number}") for number in range(1, inputs + 1)]


def _cut(
    read: ReadNetwork,
    where: tuple[str, str | None, str | None],
    about: tuple[str | None, int, str | None, NormName],
    features: list[Feature],
    *,
    axes_too: bool,
) -> Cut:
    """Return the grid that --axes, --box and --grid name, about the input that --input names."""
    (axes, box, cells), (given, row, eps, norm) = where, about
    network: BinarizedNetwork = read.network
    grid, numbers = network.grid, _axes(axes, [feature.name for feature in features])
    places = np.argsort(read.order)[list(numbers)].tolist()
    region = None if box is None else box_of(box, read).region(network)
    lower = np.full(network.inputs, grid.lowest) if region is None else region.lower
    upper = np.full(network.inputs, grid.highest) if region is None else region.upper
    sides = [_side(int(lower[place]), int(upper[place]), count) for place, count in zip(places, _counts(cells), strict=True)]
    first, second = (features[number] for number in numbers)
    own, labels = (first.name, second.name), (first.label, second.label)
    axes_of, middle = (places[0], places[1]), (lower + upper) // 2
    cut = Cut(axes_of, sides[0], sides[1], lower, middle, upper, None, own, shown_names=labels)
    if eps is not None:
        if network.inputs == 2 and not axes_too:
            raise UsageError("the model has no inputs but the axes: with --eps, add --axes-too")
        ball = Ball(named_point(given, row, read), to_fraction(eps), Norm(norm.value))
        return cut.around(network, ball, axes_too=axes_too)
    if norm is not NormName.LINF:
        raise UsageError("--norm goes with --eps: say how far the inputs may move")
    return cut if given is None else cut.about(grid, named_point(given, row, read), to_fraction(0), axes_too=False)


def _axes(text: str, names: list[str]) -> tuple[int, int]:
    """Return two inputs, from 0, by number from 1 or by name; a number stands for itself. Raises UsageError."""
    known = {name: place for place, name in enumerate(names)} | {str(place + 1): place for place in range(len(names))}
    words = [word.strip() for word in text.split(",")]
    if len(words) != 2:
        raise UsageError(f"--axes is {text!r:.60}, give two inputs by number from 1, or by name, as in '1, 2'")
    if any(word not in known for word in words) or known[words[0]] == known[words[1]]:
        some = ", ".join(names[:MOST_NAMED])
        raise UsageError(f"--axes is {text!r:.60}, give two different inputs of 1 to {len(names)}, or of {some}")
    return known[words[0]], known[words[1]]


def _counts(cells: str | None) -> tuple[int | None, int | None]:
    return (None, None) if cells is None else cells_of(cells)


def _side(lower: int, upper: int, count: int | None) -> IntArray:
    """Return the levels of an axis: all of them, or those in the middles of equal parts."""
    levels = upper - lower + 1
    if count is None and levels <= MOST_LEVELS:
        return np.arange(lower, upper + 1)
    parts = MOST_LEVELS if count is None else count
    return lower + ((2 * np.arange(parts, dtype=np.int64) + 1) * levels) // (2 * max(parts, 1))


def _write(found: BinarizedMap, output: Path | None, plot: Path | None) -> None:
    if output is not None:
        write_whole(output, found.arrays() if output.suffix.lower() == ".npz" else found.table())
    if plot is not None:
        draw_binarized(found, plot)
