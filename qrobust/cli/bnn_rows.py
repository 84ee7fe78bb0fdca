"""What bnn verify does over many rows of a table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import typer

from qrobust.answers import VERSION, Verdict
from qrobust.binarized import Ball, Norm, Robustness, TieRule, ZeroSign
from qrobust.binarized.formats import ReadNetwork
from qrobust.binarized.many import Made, Settings, settle_all
from qrobust.cache import ResultCache
from qrobust.cli import show
from qrobust.cli.exits import EXIT
from qrobust.cli.options import UsageError
from qrobust.errors import ShapeError
from qrobust.formats.table import read_table

MOST_NAMED = 10  # rows that a sentence names


@dataclass(frozen=True)
class RowsAsked:
    """What is asked of each row of a table; `text` names the rows, from 1, as in 1:100, with either end left out."""

    table: str | None
    text: str
    radius: Fraction
    norm: Norm
    label: int | None
    tie: TieRule
    zero: ZeroSign


def verify_rows(
    read: ReadNetwork,
    asked: RowsAsked,
    settings: Settings,
    *,
    jobs: int,
    cache: ResultCache | None,
    json: bool,
    quiet: bool,
) -> None:
    """Ask about each row, print what was found, and exit: 1 if one is violated, else 3 if one is unknown, else 0."""
    if asked.table is None or Path(asked.table).suffix.lower() != ".csv":
        raise UsageError("--rows goes with --input FILE.csv: name a table of inputs")
    _, table = read_table(asked.table)
    start, stop = _ends(asked.text, len(table), asked.table)
    if table.shape[1] != read.network.inputs:
        raise ShapeError(f"{asked.table} has {table.shape[1]} columns, the model takes {read.network.inputs} inputs")
    inputs = table[start - 1 : stop, read.order]
    read.network.grid.levels(inputs)  # an input outside the range is said before anything runs

    def question(number: int) -> Robustness:
        ball = Ball(inputs[number], asked.radius, asked.norm)
        return Robustness(read.network, ball, asked.label, asked.tie, asked.zero)

    with show.Bar(len(inputs), "rows", quiet=quiet or json) as bar:
        found = settle_all(Made(len(inputs), question), settings, jobs=jobs, cache=cache, progress=bar.advance)
    counts = Counter(one.verdict for one in found)
    verdict = next((each for each in (Verdict.VIOLATED, Verdict.UNKNOWN) if counts[each]), Verdict.ROBUST)
    if json:
        rows = [{"row": start + number} | one.to_json() for number, one in enumerate(found)]
        totals = {each.value.lower(): counts[each] for each in Verdict}
        network = {"name": read.network.name, "sha256": read.network.sha256}
        show.document({"network": network, "verdict": verdict.value, "counts": totals, "rows": rows, "qrobust": VERSION})
    else:
        parts = [f"{counts[each]:,} {each.value.lower()}" for each in Verdict]
        show.line(f"{verdict.value}: rows {start} to {stop} of {asked.table}: {', '.join(parts)}.", quiet=quiet)
        for each in (Verdict.VIOLATED, Verdict.UNKNOWN):
            own = [str(start + number) for number, one in enumerate(found) if one.verdict is each]
            more = f" and {len(own) - MOST_NAMED} more" if len(own) > MOST_NAMED else ""
            if own:
                show.line(f"  {each.value.lower()}: rows {', '.join(own[:MOST_NAMED])}{more}", quiet=quiet)
    raise typer.Exit(EXIT[verdict])


def _ends(text: str, count: int, table: str) -> tuple[int, int]:
    """Return the first and the last row, from 1. Raises UsageError."""
    parts = [part.strip() for part in text.split(":")]
    if len(parts) != 2 or not all(part == "" or (part.isascii() and part.isdigit() and len(part) < 10) for part in parts):
        raise UsageError(f"--rows is {text!r:.40}, give first:last, as in 1:100, or : for all")
    start, stop = int(parts[0] or 1), int(parts[1] or count)
    if not 1 <= start <= stop <= count:
        raise UsageError(f"--rows is {text!r:.40}, {table} has rows 1 to {count}")
    return start, stop
