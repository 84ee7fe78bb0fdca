"""Tables of inputs: right ones are read, wrong ones named by file, row and column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qrobust.errors import DatasetError
from qrobust.formats.table import read_rows, read_table

GOOD = "a, b ,c\n1,2.5,-3\n4,1e-3,6\n"


def refusal(path: Path, content: str | bytes, columns: tuple[str, ...] = ()) -> str:
    """Return the one line with which a table is refused."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DatasetError) as caught:
        read_table(path, columns)
    line = str(caught.value)
    assert "\n" not in line
    assert path.name in line
    return line


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "points.csv"


def test_all_columns(path: Path) -> None:
    path.write_text(GOOD)
    names, values = read_table(path)
    assert names == ("a", "b", "c")
    np.testing.assert_array_equal(values, [[1, 2.5, -3], [4, 1e-3, 6]])


def test_some_columns_in_the_order_asked_for(path: Path) -> None:
    path.write_text(GOOD)
    names, values = read_table(str(path), ("c", "a"))
    assert names == ("c", "a")
    np.testing.assert_array_equal(values, [[-3, 1], [6, 4]])


def test_columns_that_are_not_asked_for_may_hold_text(path: Path) -> None:
    path.write_text("name,x\nadam,1\neve,2\n")
    np.testing.assert_array_equal(read_table(path, ("x",))[1], [[1], [2]])


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfa,b\n1,2\n", b"a,b\r\n1,2\r\n", b"a,b\n\n1,2\n\n", b'"a","b"\n"1","2"\n', b"a,b\n 1 , 2 \n"]
)
def test_layouts_that_mean_the_same(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    names, values = read_table(path)
    assert names == ("a", "b")
    assert values.tolist() == [[1.0, 2.0]]


def test_floats_are_read_exactly(path: Path) -> None:
    numbers = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308]
    path.write_text("x\n" + "\n".join(map(repr, numbers)) + "\n")
    assert read_table(path)[1][:, 0].tolist() == numbers


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("x", "'x' is not a number"),
        ("", "'' is not a number"),
        ("1,5", "4 cells, the header has 3"),
        ("1.2.3", "'1.2.3' is not a number"),
        ("nan", "'nan' is not finite"),
        ("inf", "'inf' is not finite"),
        ("-Infinity", "'-Infinity' is not finite"),
        ("1e999", "'1e999' is not finite"),
        ("\x00", "is not a number"),
        ('"a\nb"', r"'a\nb' is not a number"),
    ],
)
def test_a_cell_that_is_no_number_is_named_by_row_and_column(cell: str, message: str, path: Path) -> None:
    line = refusal(path, f"a,b,c\n1,2,3\n4,{cell},6\n")
    assert message in line
    assert "row 2" in line
    assert "column 'b'" in line or "cells" in message


@pytest.mark.parametrize(("row", "cells"), [("1,2", 2), ("1,2,3,4", 4), ("1", 1)])
def test_a_row_of_another_length_is_named(row: str, cells: int, path: Path) -> None:
    assert f"row 3: {cells} cells, the header has 3" in refusal(path, f"a,b,c\n1,2,3\n4,5,6\n{row}\n7,8,9\n")


def test_a_missing_column_is_named_with_those_there(path: Path) -> None:
    assert "has no column 'd': its columns are a, b, c" in refusal(path, GOOD, ("a", "d"))
    refusal(path, '"a\nb",c\n1,2\n', ("d",))


@pytest.mark.parametrize("content", ["", "\n\n", "a,b,c\n", "a,b,c\n\n"])
def test_a_table_without_rows_is_refused(content: str, path: Path) -> None:
    assert "no rows below its header" in refusal(path, content)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", b"a,b\n1,\xe9\n", bytes(range(256))])
def test_a_binary_file_is_refused(content: bytes, path: Path) -> None:
    assert "cannot be read as text" in refusal(path, content)


def test_a_huge_cell_is_refused(path: Path) -> None:
    assert "is not CSV" in refusal(path, 'a\n"' + "9" * 200_000 + '"\n')


def test_a_long_cell_is_not_repeated_in_full(path: Path) -> None:
    assert len(refusal(path, "a\n" + "x" * 100_000 + "\n")) < 500


def test_a_name_that_stands_for_two_columns_is_refused(path: Path) -> None:
    assert "a" in refusal(path, "a,b,a\n1,2,3\n", ("a",))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        read_table(tmp_path / "missing.csv")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_table(tmp_path)


def test_rows_come_as_they_stand(path: Path) -> None:
    path.write_text("a,b\n1,x\n\n2,y\n")
    assert read_rows(path) == [["a", "b"], ["1", "x"], ["2", "y"]]
