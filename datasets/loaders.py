"""The tables that the project's models are trained on, each as one `Table` of inputs and labels.

Files are parsed as untrusted text: size, header and every cell are checked, and a damaged file is a `DatasetError` that
names the file, the line and the value. Rows of the athletes table are read from a path and never kept in the project.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.resources
import io
import os
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qrobust.errors import DatasetError
from qrobust.files import write_whole
from qrobust.network import Feature

CATS = Path(__file__).parent / "cats.csv"
CATS_SHA256 = "5999834c31b35d8fc2835a074d4764c60d533f5ad765e5fddf92e9d9067d8b18"

ATHLETES_URL = "https://raw.githubusercontent.com/flother/rio2016/master/athletes.csv"
ATHLETES_SHA256 = "08a0682650872d91ac05c73a5499d32c46c56e9b0db8d4d1c07bfcea4e4e171c"
KNOWN_ATHLETES = {
    ATHLETES_SHA256: "athletes.csv of github.com/flother/rio2016 at commit 3c93a1ed",
    "b0a2d827cfa73a6c2e3888dd5989b673748d6330b328a867d3823e2efeed4a48": (
        "the columns sex, height_m, weight_kg of athletes.csv of github.com/flother/rio2016 at commit 3c93a1ed"
    ),
}
ATHLETES_LAYOUTS = (("sex", "height_m", "weight_kg"), ("sex", "height", "weight"))
ATHLETES_RANGES = {"height": (0.5, 3.0), "weight": (10.0, 400.0)}

BUNDLED_FILES = {"breast_cancer": "breast_cancer.csv", "iris": "iris.csv"}

MOST_BYTES = 16 * 2**20


@dataclass(frozen=True, eq=False)
class Table:
    """Inputs with one label each, and what they mean.

    Shapes    inputs (rows, features), float64; labels (rows,), int64, each an index into `classes`
    Units     each feature carries its own; its limits are the least and the greatest value in the table
    """

    name: str
    inputs: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    features: tuple[Feature, ...]
    classes: tuple[str, ...]
    sha256: str

    def __post_init__(self) -> None:
        inputs = np.array(self.inputs, dtype=np.float64)
        labels = np.array(self.labels, dtype=np.int64)
        if inputs.ndim != 2 or labels.shape != inputs.shape[:1] or inputs.shape[1] != len(self.features):
            raise DatasetError(
                f"{self.name}: inputs of shape {inputs.shape} do not fit {labels.shape[0]} labels "
                f"and {len(self.features)} features; give one row per label and one column per feature"
            )
        if inputs.size == 0:
            raise DatasetError(f"{self.name}: a table of shape {inputs.shape} is empty; give a row and a column at least")
        if not np.isfinite(inputs).all():
            raise DatasetError(f"{self.name}: an input is not finite; drop that row")
        if labels.min() < 0 or labels.max() >= len(self.classes):
            raise DatasetError(f"{self.name}: a label lies outside 0..{len(self.classes) - 1}; name every class")
        inputs.setflags(write=False)
        labels.setflags(write=False)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "labels", labels)


def load_cats(path: str | os.PathLike[str] = CATS) -> Table:
    """The cats table: heart weight (g) and body weight (kg) of 144 adult cats; class 1 is male.

    Raises    DatasetError if the file is missing or its sha256 is not that of the project's copy
    """
    content = _read(Path(path))
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != CATS_SHA256:
        raise DatasetError(f"{path}: sha256 {sha256} is not {CATS_SHA256}; restore datasets/cats.csv from the repository")
    rows = [(float(heart), float(body), int(sex == "M")) for sex, body, heart in list(_rows(content, Path(path)))[1:]]
    inputs = np.array([row[:2] for row in rows])
    return Table(
        "cats",
        inputs,
        np.array([row[2] for row in rows]),
        _features(inputs, (("heart weight", "g"), ("body weight", "kg"))),
        ("female", "male"),
        sha256,
    )


def load_athletes(path: str | os.PathLike[str]) -> Table:
    """The complete rows of an athletes table: height (m) and weight (kg); class 1 is male.

    Accepts   the columns sex, height_m, weight_kg, or the public file's sex, height, weight, among others in any order;
              a row with an empty cell in one of the three is dropped
    Raises    DatasetError if the file is missing, too large, not such a table, or has a cell that cannot be read
    """
    content = _read(Path(path))
    rows = _rows(content, Path(path))
    columns = _athlete_columns(next(rows, []), path)
    complete: list[tuple[float, float, int]] = []
    for number, row in enumerate(rows, start=2):
        if len(row) <= max(columns):
            raise DatasetError(f"{path}: record {number} has {len(row)} cells, not {max(columns) + 1}; repair the record")
        sex, height, weight = (row[column].strip() for column in columns)
        if sex and height and weight:
            complete.append(_athlete(sex, height, weight, f"{path}: record {number}"))
    if not complete:
        raise DatasetError(f"{path}: 0 complete rows; a table of athletes needs at least one")
    inputs = np.array([row[:2] for row in complete])
    return Table(
        "athletes",
        inputs,
        np.array([row[2] for row in complete]),
        _features(inputs, (("height", "m"), ("weight", "kg"))),
        ("female", "male"),
        hashlib.sha256(content).hexdigest(),
    )


def athletes_origin(sha256: str) -> str | None:
    """Where an athletes file with this sha256 comes from; None if the sum is not a known one."""
    return KNOWN_ATHLETES.get(sha256)


def download_athletes(path: str | os.PathLike[str], *, url: str = ATHLETES_URL, seconds: float = 60.0) -> Path:
    """Write the public athletes file to `path`, whole or not at all; only ever called when asked for.

    Accepts   a path where nothing is yet
    Raises    DatasetError if something is there, the download fails, or its sha256 is not ATHLETES_SHA256;
              OutputError if the file cannot be written
    """
    target = Path(path)
    if target.exists():
        raise DatasetError(f"{target}: exists already; give another path, or remove it first")
    try:
        with urllib.request.urlopen(url, timeout=seconds) as response:
            content = bytes(response.read(MOST_BYTES + 1))
    except (OSError, ValueError, HTTPException) as error:  # URLError is an OSError; ValueError: a malformed address
        raise DatasetError(f"{url}: not downloaded ({error}); download it by hand and give its path") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != ATHLETES_SHA256:
        raise DatasetError(
            f"{url}: sha256 {sha256} is not {ATHLETES_SHA256}, that of {KNOWN_ATHLETES[ATHLETES_SHA256]}; "
            "nothing was written; get that commit's file and give its path"
        )
    write_whole(target, content)
    return target


def load_bundled(name: str, columns: Sequence[str] | None = None) -> Table:
    """One of scikit-learn's bundled tables, in its raw units, with the named columns in that order (None: all).

    Accepts   a name in BUNDLED_FILES; nothing is downloaded
    Raises    DatasetError if the table or a column has another name
    """
    if name not in BUNDLED_FILES:
        raise DatasetError(f"no bundled table {name!r}; choose among {', '.join(BUNDLED_FILES)}")
    from sklearn import datasets as bundled

    bunch = getattr(bundled, f"load_{name}")()
    known = [str(column) for column in bunch.feature_names]
    wanted = known if columns is None else list(columns)
    for column in wanted:
        if column not in known:
            raise DatasetError(f"{name} has no column {column!r}; choose among {', '.join(known)}")
    inputs = bunch.data[:, [known.index(column) for column in wanted]]
    file = importlib.resources.files("sklearn.datasets.data").joinpath(BUNDLED_FILES[name])
    return Table(
        name,
        inputs,
        bunch.target,
        _features(inputs, [_name_and_unit(column) for column in wanted]),
        tuple(str(label) for label in bunch.target_names),
        hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def _read(path: Path) -> bytes:
    """The content of a file of at most MOST_BYTES."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); check the path") from None
    if len(content) > MOST_BYTES:
        raise DatasetError(f"{path} has more than {MOST_BYTES:,} bytes; it is not one of the project's tables")
    return content


def _rows(content: bytes, path: Path) -> Iterator[list[str]]:
    """The records of a comma-separated file in UTF-8; blank lines are left out."""
    try:
        yield from (row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) if row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} is not comma-separated UTF-8 text ({error}); get the file again") from None


def _athlete_columns(header: list[str], path: str | os.PathLike[str]) -> list[int]:
    """Where sex, height and weight stand in a header of either layout."""
    names = [name.strip().lower() for name in header]
    for layout in ATHLETES_LAYOUTS:
        if all(names.count(name) == 1 for name in layout):
            return [names.index(name) for name in layout]
    shown = ", ".join(names)[:80]
    expected = " or ".join(", ".join(layout) for layout in ATHLETES_LAYOUTS)
    raise DatasetError(f"{path}: the header reads {shown!r}; a table of athletes has the columns {expected}, once each")


def _athlete(sex: str, height: str, weight: str, place: str) -> tuple[float, float, int]:
    """Height (m), weight (kg) and label of one complete record."""
    if sex not in ("female", "male"):
        raise DatasetError(f"{place}: sex is {sex[:40]!r}; it must be female or male")
    return _number(height, "height", place), _number(weight, "weight", place), int(sex == "male")


def _number(cell: str, name: str, place: str) -> float:
    """A cell as a number within ATHLETES_RANGES."""
    lower, upper = ATHLETES_RANGES[name]
    try:
        value = float(cell)
    except ValueError:
        raise DatasetError(f"{place}: {name} is {cell[:40]!r}; it must be a number") from None
    if not lower <= value <= upper:
        raise DatasetError(f"{place}: {name} is {value!r}; it must lie in {lower} to {upper} (metres, kilograms)")
    return value


def _features(inputs: npt.NDArray[np.float64], names: Sequence[tuple[str, str]]) -> tuple[Feature, ...]:
    """Features with the least and greatest value of their columns. Shapes: inputs (rows, features)."""
    return tuple(
        Feature(name, unit, float(column.min()), float(column.max()))
        for (name, unit), column in zip(names, inputs.T, strict=True)
    )


def _name_and_unit(column: str) -> tuple[str, str]:
    """Split `petal length (cm)` into its name and unit; a column without a unit has the unit ""."""
    name, bracket, unit = column.partition(" (")
    return (name, unit.removesuffix(")")) if bracket else (column, "")
