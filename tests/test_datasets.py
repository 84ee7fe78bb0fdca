"""The tables that models are trained on: content against cards and sums, damaged files refused in one line."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from datasets import loaders
from datasets.loaders import (
    ATHLETES_SHA256,
    CATS,
    CATS_SHA256,
    KNOWN_ATHLETES,
    Table,
    athletes_origin,
    download_athletes,
    load_athletes,
    load_bundled,
    load_cats,
)
from qrobust.errors import DatasetError, OutputError
from qrobust.network import Feature

FOLDER = Path(loaders.__file__).parent
SHARED_SHA256 = next(sha256 for sha256 in KNOWN_ATHLETES if sha256 != ATHLETES_SHA256)


def sums(card: str) -> set[str]:
    """The sha256 sums that a card names."""
    return set(re.findall(r"\b[0-9a-f]{64}\b", (FOLDER / card).read_text()))


def refusal(path: Path, content: bytes | None = None) -> str:
    """Return the one line with which a table of athletes is refused."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        load_athletes(path)
    line = str(caught.value)
    assert "\n" not in line
    assert path.name in line
    assert len(line) < 600
    return line


def test_the_cats_are_those_of_their_card() -> None:
    assert sums("cats.md") == {CATS_SHA256, hashlib.sha256(CATS.read_bytes()).hexdigest()}


def test_the_cats() -> None:
    table = load_cats()
    assert table.inputs.shape == (144, 2)
    assert (table.labels.sum(), table.classes) == (97, ("female", "male"))
    assert table.features == (Feature("heart weight", "g", 6.3, 20.5), Feature("body weight", "kg", 2.0, 3.9))
    assert table.sha256 == CATS_SHA256
    first = CATS.read_text().splitlines()[1].split(",")
    assert [table.labels[0], *table.inputs[0]] == [int(first[0].strip('"') == "M"), float(first[2]), float(first[1])]


def test_other_cats_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "cats.csv"
    other.write_bytes(CATS.read_bytes().replace(b"20.5", b"20.6"))
    with pytest.raises(DatasetError, match=r"cats.csv: sha256 [0-9a-f]{64} is not"):
        load_cats(other)
    with pytest.raises(DatasetError, match="cannot be read"):
        load_cats(tmp_path / "missing.csv")


@pytest.mark.parametrize(
    ("name", "shape", "counts"), [("iris", (150, 4), [50, 50, 50]), ("breast_cancer", (569, 30), [212, 357])]
)
def test_bundled_tables(name: str, shape: tuple[int, int], counts: list[int]) -> None:
    table = load_bundled(name)
    assert table.inputs.shape == shape
    assert np.bincount(table.labels).tolist() == counts
    assert len(table.classes) == len(counts)
    assert table.sha256 in sums("bundled.md")


def test_columns_of_a_bundled_table() -> None:
    table = load_bundled("iris", ["petal width (cm)", "sepal length (cm)"])
    assert [feature.label for feature in table.features] == ["petal width [cm]", "sepal length [cm]"]
    np.testing.assert_array_equal(table.inputs, load_bundled("iris").inputs[:, [3, 0]])


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("wine", None, "no bundled table 'wine'"),
        ("iris", ["height"], "iris has no column 'height'"),
        ("iris", [], "is empty"),
    ],
)
def test_bundled_tables_that_are_not_there(name: str, columns: list[str] | None, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_bundled(name, columns)


def test_the_athletes(athletes_path: Path) -> None:
    table = load_athletes(athletes_path)
    assert table.inputs.shape == (10858, 2)
    assert table.labels.mean() == pytest.approx(0.54, abs=0.005)
    assert table.features == (Feature("height", "m", 1.21, 2.18), Feature("weight", "kg", 31.0, 170.0))
    assert table.sha256 == hashlib.sha256(athletes_path.read_bytes()).hexdigest() == SHARED_SHA256
    assert athletes_origin(table.sha256) is not None


def test_the_card_of_the_athletes_names_both_sums() -> None:
    assert sums("athletes.md") == set(KNOWN_ATHLETES)
    assert athletes_origin("0" * 64) is None


def test_no_athlete_is_kept_in_the_project() -> None:
    root = FOLDER.parent
    kept = [path for folder in ("datasets", "models", "tests", "plots") for path in (root / folder).rglob("athletes*.csv")]
    assert kept == []


@pytest.mark.parametrize(
    "content",
    [
        b"sex,height_m,weight_kg\nmale,1.8,80\nfemale,1.7,60\n",
        b"name,sex,height,weight,nation\nx,male,1.8,80,A\ny,female,1.7,60,B\n",
        b"weight,height,sex\n80,1.8,male\n60,1.7,female\n",
        b"\xef\xbb\xbfsex,height_m,weight_kg\r\nmale,1.8,80\r\nfemale,,60\r\n\r\nfemale,1.7,60",
    ],
)
def test_layouts_that_mean_the_same(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    table = load_athletes(path)
    assert table.labels.tolist() == [1, 0]
    assert table.inputs.tolist() == [[1.8, 80.0], [1.7, 60.0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the header reads ''"),
        (b"\n", "the header reads ''"),
        (b"a,b\n1,2\n", "the header reads 'a, b'"),
        (b"sex,sex,height,weight\nmale,1.8,80\n", "once each"),
        (b"sex,height,weight\n", "0 complete rows"),
        (b"sex,height,weight\nmale,,\n", "0 complete rows"),
        (b"sex,height,weight\nmale,1.8\n", "record 2 has 2 cells"),
        (b"sex,height,weight\nmale,1.8,80\nmale,180,80\n", "record 3: height is 180.0"),
        (b"sex,height,weight\nmale,1.8,8000\n", "record 2: weight is 8000.0"),
        (b"sex,height,weight\nmale,nan,80\n", "height is nan"),
        (b"sex,height,weight\nmale,1.8,1e999\n", "weight is inf"),
        (b"sex,height,weight\nmale,x,80\n", "height is 'x'"),
        (b"sex,height,weight\nM,1.8,80\n", "sex is 'M'"),
        (b"sex,height,weight\nma\x00le,1.8,80\n", "sex is"),
        (b"sex,height,weight\nmale,1.8," + b"9" * 90_000 + b"x\n", "weight is '999"),
        (b"\xff\xfe\x00", "not comma-separated UTF-8 text"),
        (b'sex,height,weight\n"' + b"a" * 200_000, "not comma-separated UTF-8 text"),
    ],
)
def test_damaged_athletes_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path / "a.csv", content)


def test_athletes_that_are_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be read" in refusal(tmp_path / "missing.csv")
    (tmp_path / "folder").mkdir()
    assert "cannot be read" in refusal(tmp_path / "folder")
    monkeypatch.setattr(loaders, "MOST_BYTES", 10)
    assert "more than 10 bytes" in refusal(tmp_path / "a.csv", b"sex,height,weight\nmale,1.8,80\n")


def test_a_download_is_whole_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"sex,height,weight\nmale,1.8,80\n"
    served, target = tmp_path / "served.csv", tmp_path / "got" / "a.csv"
    served.write_bytes(content)
    target.parent.mkdir()
    with pytest.raises(DatasetError, match="nothing was written"):
        download_athletes(target, url=served.as_uri())
    monkeypatch.setattr(loaders, "ATHLETES_SHA256", hashlib.sha256(content).hexdigest())
    assert list(target.parent.iterdir()) == []
    assert download_athletes(target, url=served.as_uri()) == target
    assert target.read_bytes() == content
    with pytest.raises(DatasetError, match="exists already"):
        download_athletes(target, url=served.as_uri())
    assert [path.name for path in target.parent.iterdir()] == ["a.csv"]
    with pytest.raises(OutputError, match="was not written"):
        download_athletes(tmp_path / "no" / "a.csv", url=served.as_uri())


@pytest.mark.parametrize("url", ["file:///no/such/file", "nonsense", "http://[::bad", ""])
def test_a_download_that_fails_writes_nothing(url: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not downloaded"):
        download_athletes(tmp_path / "a.csv", url=url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.zeros((3, 2)), np.zeros(2), "do not fit"),
        (np.zeros((3, 1)), np.zeros(3), "do not fit"),
        (np.zeros((0, 2)), np.zeros(0), "is empty"),
        (np.array([[np.nan, 1.0]]), np.zeros(1), "not finite"),
        (np.zeros((1, 2)), np.array([2]), "outside 0..1"),
        (np.zeros((1, 2)), np.array([-1]), "outside 0..1"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(
    inputs: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        Table("t", inputs, labels, (Feature("a"), Feature("b")), ("no", "yes"), "")


def test_a_table_cannot_be_written() -> None:
    table = load_cats()
    with pytest.raises(ValueError, match="read-only"):
        table.inputs[0, 0] = 1.0
