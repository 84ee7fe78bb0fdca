"""What bnn verify does over many rows of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import typer

from qrobust.answers import VERSION, Verdict
from qrobust.backends.worker import Worker
from qrobust.binarized import Ball, BinarizedNetwork, Box, LabelChange, LeastChange, Norm, Robustness, TieRule, ZeroSign
from qrobust.binarized.answers import distance_of
from qrobust.binarized.certification import certify
from qrobust.binarized.formats import ReadNetwork
from qrobust.binarized.many import Made, Question, Settings, Settled, settle_all
from qrobust.cache import ResultCache
from qrobust.cli import show
from qrobust.cli.exits import EXIT
from qrobust.cli.options import UsageError
from qrobust.errors import ResourceError, ShapeError, UnsupportedError
from qrobust.formats.table import read_table
from qrobust.interval import FloatArray
from qrobust.network import Network

MOST_NAMED = 10  # rows that a sentence names


@dataclass(frozen=True, eq=False)
class RowsAsked:
    """What is asked of each row of a table; `text` names the rows, from 1, as in 1:100, with either end left out.

    A row is an input, in a ball of a radius or, without a radius, asked for its least change; or, in a table of boxes, the
    lower and the upper end of each input in turn. With `compared` (a network and its copy), whether the two agree.
    """

    table: str | None
    text: str
    radius: Fraction | None
    norm: Norm
    label: int | None
    tie: TieRule
    zero: ZeroSign
    is_boxes: bool = False
    compared: BinarizedNetwork | Network | None = None

    def question(self, network: BinarizedNetwork, row: FloatArray) -> Question:
        """Return the question about a row, its numbers in the network's order."""
        if self.is_boxes:
            ball: Ball | Box = Box(row[0::2], row[1::2])
        elif self.radius is None:
            return LeastChange(network, row, self.norm, self.label, self.tie, self.zero)
        else:
            ball = Ball(row, self.radius, self.norm)
        if self.compared is not None:
            return LabelChange(self.compared, network, ball, self.zero)
        return Robustness(network, ball, self.label, self.tie, self.zero)


@dataclass(frozen=True)
class _Asked:
    """The rows that were asked. Units: start, stop from 1, both included."""

    table: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"rows {self.start} to {self.stop} of {self.table}"


def verify_rows(
    read: ReadNetwork,
    asked: RowsAsked,
    settings: Settings,
    certificate: Path | None,
    *,
    jobs: int,
    cache: ResultCache | None,
    json: bool,
    quiet: bool,
) -> None:
    """Ask about each row, print what was found, and exit: 1 if one is violated, else 3 if one is unknown, else 0.

    Proofs are kept in files beside `certificate`, named after it and the row.

    Of least changes: 0 if each is found, or proved not to be, else 3.
    """
    rows, inputs = _read(read, asked)
    with show.Bar(len(inputs), "rows", quiet=quiet or json) as bar:
        questions = Made(len(inputs), lambda number: asked.question(read.network, inputs[number]))
        found = settle_all(questions, settings, jobs=jobs, cache=cache, progress=bar.advance)
    if asked.radius is None and not asked.is_boxes:
        _show_least(LeastChange(read.network, inputs[0], asked.norm), rows, found, json=json, quiet=quiet)
    written = [] if certificate is None else _certified(questions, rows, found, certificate, settings, quiet=quiet or json)
    _show_verdicts(read.network, rows, found, written, json=json, quiet=quiet)


def _certified(
    questions: Sequence[Question], rows: _Asked, found: list[Settled], path: Path, settings: Settings, *, quiet: bool
) -> list[str]:
    """Write the proof of each row that is ROBUST, and return the files' names."""
    robust, written, worker = [n for n, one in enumerate(found) if one.verdict is Verdict.ROBUST], list[str](), Worker()
    with show.Bar(len(robust), "proofs", quiet=quiet) as bar, closing(worker):
        for number in robust:
            own = path.with_name(f"{path.stem}-{rows.start + number}{path.suffix}")
            question = questions[number]
            assert not isinstance(question, LeastChange)
            try:
                certify(question, settings.seconds, is_proved=found[number].exact, worker=worker).save(own)
                written.append(own.name)
            except (ResourceError, UnsupportedError) as error:
                show.warning(f"{own} was not written: {error}")
            bar.advance()
    return written


def _read(read: ReadNetwork, asked: RowsAsked) -> tuple[_Asked, FloatArray]:
    """Return which rows are asked, and their numbers, in the network's order. Raises UsageError, ShapeError, DomainError."""
    if asked.table is None or Path(asked.table).suffix.lower() != ".csv":
        raise UsageError("--rows goes with --input FILE.csv, or --box FILE.csv: name a table")
    _, table = read_table(asked.table)
    start, stop = _ends(asked.text, len(table), asked.table)
    inputs, order = read.network.inputs, read.order
    if table.shape[1] != inputs * (1 + asked.is_boxes):
        ends = f"inputs, and of each the lower and the upper end ({2 * inputs})" if asked.is_boxes else "inputs"
        raise ShapeError(f"{asked.table} has {table.shape[1]} columns, the model takes {inputs} {ends}")
    if asked.is_boxes:
        order = np.stack([2 * order, 2 * order + 1], axis=1).reshape(-1)
    rows = table[start - 1 : stop, order]
    if not asked.is_boxes:
        read.network.grid.levels(rows)  # an input outside the range is said before anything runs
    return _Asked(asked.table, start, stop), rows


def _show_least(asked: LeastChange, rows: _Asked, found: list[Settled], *, json: bool, quiet: bool) -> None:
    """Print least changes, and exit: 0 if each is found, or proved not to be, else 3."""
    network, met = asked.network, [number for number, one in enumerate(found) if one.is_exact_optimum]
    never = [number for number, one in enumerate(found) if one.verdict is Verdict.ROBUST]
    known = {*met, *never}

    def distance(units: int | None) -> float | None:
        return None if units is None else distance_of(network.grid, asked.norm, units)

    if json:
        each = [
            {"row": rows.start + number, "lower": distance(ends[0]), "upper": distance(ends[1])} | one.to_json()
            for number, one in enumerate(found)
            if (ends := one.ends) is not None
        ]
        named = {"name": network.name, "sha256": network.sha256}
        show.document({"network": named, "norm": asked.norm.value, "found": len(met), "rows": each, "qrobust": VERSION})
    else:
        show.line(f"{rows}: the least {asked.norm.value} change found of {len(met):,} of {len(found):,}.", quiet=quiet)
        spread = sorted((units, number) for number in met if (units := (found[number].ends or (0, 0))[0]) is not None)
        for word, place in (("least", 0), ("median", (len(spread) - 1) // 2), ("greatest", -1)) if spread else ():
            units, number = spread[place]
            show.line(f"  {word}: {distance(units):g}, row {rows.start + number}", quiet=quiet)
        _show_named("no input loses the label", [rows.start + number for number in never], quiet=quiet)
        _show_named("not found", [rows.start + number for number in range(len(found)) if number not in known], quiet=quiet)
    raise typer.Exit(0 if len(known) == len(found) else 3)


def _show_verdicts(
    network: BinarizedNetwork, asked: _Asked, found: list[Settled], certificates: list[str], *, json: bool, quiet: bool
) -> None:
    counts = Counter(one.verdict for one in found)
    verdict = next((each for each in (Verdict.VIOLATED, Verdict.UNKNOWN) if counts[each]), Verdict.ROBUST)
    if json:
        rows = [{"row": asked.start + number} | one.to_json() for number, one in enumerate(found)]
        totals = {each.value.lower(): counts[each] for each in Verdict}
        named = {"name": network.name, "sha256": network.sha256}
        kept = {"certificates": certificates} if certificates else {}
        document = {"network": named, "verdict": verdict.value, "counts": totals, "rows": rows}
        show.document(document | kept | {"qrobust": VERSION})
    else:
        parts = [f"{counts[each]:,} {each.value.lower()}" for each in Verdict]
        show.line(f"{verdict.value}: {asked}: {', '.join(parts)}.", quiet=quiet)
        for each in (Verdict.VIOLATED, Verdict.UNKNOWN):
            own = [asked.start + number for number, one in enumerate(found) if one.verdict is each]
            _show_named(each.value.lower(), own, quiet=quiet)
        if certificates:
            ends = certificates[0] if len(certificates) == 1 else f"{certificates[0]} to {certificates[-1]}"
            show.line(f"  certificates: {len(certificates):,}, followed by the checker: {ends}", quiet=quiet)
    raise typer.Exit(EXIT[verdict])


def _show_named(word: str, rows: list[int], *, quiet: bool) -> None:
    more = f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
    if rows:
        show.line(f"  {word}: rows {', '.join(map(str, rows[:MOST_NAMED]))}{more}", quiet=quiet)


def _ends(text: str, count: int, table: str) -> tuple[int, int]:
    """Return the first and the last row, from 1. Raises UsageError."""
    parts = [part.strip() for part in text.split(":")]
    if len(parts) != 2 or not all(part == "" or (part.isascii() and part.isdigit() and len(part) < 10) for part in parts):
        raise UsageError(f"--rows is {text!r:.40}, give first:last, as in 1:100, or : for all")
    start, stop = int(parts[0] or 1), int(parts[1] or count)
    if not 1 <= start <= stop <= count:
        raise UsageError(f"--rows is {text!r:.40}, {table} has rows 1 to {count}")
    return start, stop
