"""The command bnn report: a network of signs over the rows of a table and a list of eps."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from qrobust.binarized import Norm
from qrobust.binarized.formats import load_binarized
from qrobust.binarized.race import ENGINES, PORTFOLIO
from qrobust.cache import ResultCache
from qrobust.cli import show
from qrobust.cli.arguments import Jobs, Json, Quiet
from qrobust.cli.bnn import NormName, grid_of
from qrobust.cli.options import UsageError
from qrobust.errors import ShapeError
from qrobust.exact import to_fraction
from qrobust.formats.table import read_table
from qrobust.quantization import parse_scheme


def report(
    model: Annotated[Path, typer.Argument(help="A binarized network: .json, .npz, .keras, .onnx, .onnx.gz, .h5 (Larq).")],
    table: Annotated[Path, typer.Argument(help="A CSV file with a header: inputs, last the class's number.")],
    eps: Annotated[str, typer.Option(help="The radii, as in '0.05, 0.1, 1/5'.")],
    rows: Annotated[int | None, typer.Option(min=1, help="How many rows, from the first; all by default.")] = None,
    norm: Annotated[NormName, typer.Option(help="The balls' norm.")] = NormName.LINF,
    step: Annotated[str | None, typer.Option(help="The step that inputs are rounded to, as in 1/255.")] = None,
    reach: Annotated[str | None, typer.Option("--range", help="The inputs' range, as in 0:1.")] = None,
    rounding: Annotated[str, typer.Option(help="half-even, half-up or half-away.")] = "half-even",
    scheme: Annotated[str | None, typer.Option(help="Binarize a float network: binary or ternary.")] = None,
    engine: Annotated[str, typer.Option(help=f"{PORTFOLIO}, {', '.join(ENGINES)}.")] = PORTFOLIO,
    exact: Annotated[bool, typer.Option("--exact", help="A ROBUST in floating point does not count.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for each question.")] = 30.0,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the report goes.")] = Path("bnn-report"),
    jobs: Jobs = 1,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask of each row and eps whether the label is kept, and write result.json, report.md and report.html.

    Exit code 0, or 3 if some are undecided. An interrupted run continues where it stopped: answers are kept in FOLDER/cache.

    \b
    qrobust bnn report digits.npz digits.csv --eps "0.05, 0.1" --rows 100 --jobs 2 --out report
    """
    from qrobust.report.binarized import Survey, document, run_survey
    from qrobust.report.binarized_documents import Sources, write_report
    from qrobust.report.plan import File
    from qrobust.report.signoff import make_folder

    read = load_binarized(model, grid_of(step, reach, rounding), None if scheme is None else parse_scheme(scheme))
    sources = Sources(File.of(model), File.of(table), shlex.join(["qrobust", *sys.argv[1:]]))
    radii = tuple(dict.fromkeys(to_fraction(text.strip()) for text in eps.split(",") if text.strip()))
    if not radii:
        raise UsageError(f"--eps is {eps!r}, give a radius or more, as in '0.05, 0.1'")
    _, values = read_table(table)
    values = values[:rows]
    labels = values[:, -1].astype(np.int64)
    if not np.array_equal(labels, values[:, -1]):
        raise ShapeError(f"{table} needs last a column of whole numbers, the classes")
    if values.shape[1] != read.network.inputs + 1:
        raise ShapeError(f"{table} has {values.shape[1] - 1} inputs and a class, the model takes {read.network.inputs} inputs")
    inputs = values[:, :-1][:, read.order]
    survey = Survey(read.network, inputs, labels, radii, Norm(norm.value), timeout, engine, exact)
    make_folder(out)
    with show.Bar(len(labels) * len(radii), "questions", quiet=quiet or json) as bar:
        found = run_survey(survey, jobs=jobs, cache=ResultCache(out / "cache", show.warning), progress=bar.advance)
    written = write_report(found, sources, out)
    if json:
        show.document(document(found, sources.to_json()))
    else:
        show.line(f"{read.network}: accuracy {survey.accuracy:.2%} of {len(labels):,} rows, in integers", quiet=quiet)
        for radius in found.radii:
            low, high = radius.verified
            ends = f"{low:.2%}" if low == high else f"in [{low:.2%}, {high:.2%}]"
            taken = ", ".join(f"{name} {seconds:.3g}" for name, seconds in radius.seconds.items())
            show.line(
                f"eps {float(radius.eps):g}: verified accuracy {ends}, {radius.decided:.2%} decided; seconds: {taken}",
                quiet=quiet,
            )
        show.line(f"Wrote {', '.join(path.name for path in written)} into {out}.", quiet=quiet)
    raise typer.Exit(3 if found.unknown else 0)
