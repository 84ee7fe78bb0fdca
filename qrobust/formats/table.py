"""Tables of inputs in CSV: a header of names, then one row a point."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np

from qrobust.errors import DatasetError, ShapeError
from qrobust.files import check_no_stream
from qrobust.formats.untrusted import one_line
from qrobust.interval import FloatArray
from qrobust.network import Network

MOST_BYTES = 2**29  # of a file; its cells take many times as much
MOST_NAMED = 12  # inputs of a model that an error names all


def read_table(path: Path | str, columns: tuple[str, ...] = ()) -> tuple[tuple[str, ...], FloatArray]:
    """Return the names and the numbers of the named columns, or of all columns.

    Shapes    result (rows, columns)
    Raises    DatasetError naming the file, and the row (1 is the first below the header) and column where it applies
    """
    rows = read_rows(path)
    header = tuple(name.strip() for name in rows[0])
    wanted = columns or header
    missing = [name for name in wanted if name not in header]
    if missing:
        raise DatasetError(f"{path} has no column {missing[0]!r}: its columns are {one_line(', '.join(header))}")
    twice = [name for name in wanted if header.count(name) > 1]
    if twice:
        raise DatasetError(f"{path} has {header.count(twice[0])} columns called {twice[0]!r}: rename one")
    places = [header.index(name) for name in wanted]
    values = np.empty((len(rows) - 1, len(places)))
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise DatasetError(f"{path}, row {number}: {len(row)} cells, the header has {len(header)}")
        for target, place in enumerate(places):
            values[number - 1, target] = _number(row[place], f"{path}, row {number}, column {header[place]!r}")
    return wanted, values


def read_points(path: Path | str, network: Network) -> FloatArray:
    """Return the inputs of a network that a file holds: by name where the file has all of its features, else by order.

    Shapes    result (points, inputs)
    Raises    DatasetError; ShapeError if the file has another number of columns
    """
    names = tuple(feature.name for feature in network.features)
    header = {name.strip() for name in read_rows(path)[0]}
    _, values = read_table(path, names if names and set(names) <= header else ())
    check_width(values, network)
    return values


def check_width(points: FloatArray, network: Network) -> None:
    """Raise ShapeError unless points have as many numbers as the network takes."""
    if points.shape[1] != network.inputs:
        names = [network.feature_name(i) for i in range(min(network.inputs, MOST_NAMED))]
        wanted = ", ".join(
            names if network.inputs <= MOST_NAMED else [*names[:2], "...", network.feature_name(network.inputs - 1)]
        )
        raise ShapeError(f"a point has {points.shape[1]} numbers, the model takes {network.inputs}: {one_line(wanted)}")


def read_rows(path: Path | str) -> list[list[str]]:
    """Return the cells of a CSV file, its header first. Raises DatasetError if it is missing, empty or not text."""
    check_no_stream(Path(path), DatasetError)
    try:
        size = Path(path).stat().st_size
        if size > MOST_BYTES:
            raise DatasetError(f"{path} has {size:,} bytes, at most {MOST_BYTES:,} are read: split the table")
        content = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist: check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as text: {str(error)[:80]}") from None
    try:
        rows = [row for row in csv.reader(io.StringIO(content)) if row]
    except csv.Error as error:
        raise DatasetError(f"{path} is not CSV: {error}") from None
    if len(rows) < 2:
        raise DatasetError(f"{path} holds no rows below its header: give at least one")
    return rows


def _number(cell: str, place: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise DatasetError(f"{place}: {one_line(repr(cell), 60)} is not a number") from None
    if not math.isfinite(value):
        raise DatasetError(f"{place}: {one_line(repr(cell), 60)} is not finite")
    return value
