"""Windows over images, and the matrices that they are: the sizes and places of convolutions and pools, as whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.errors import ShapeError
from qrobust.interval import FloatArray

IntArray = npt.NDArray[np.int64]
Shape = tuple[int, int, int]
SparseMatrix = Any  # scipy.sparse.csr_array, which has no types; SciPy is imported where the first one is built


def integers(values: Sequence[int], count: int, least: int, what: str) -> tuple[int, ...]:
    """Return whole numbers as a tuple. Raises ShapeError."""
    found = tuple(values) if isinstance(values, tuple | list) else ()
    whole = all(isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= least for value in found)
    if len(found) != count or not whole:
        raise ShapeError(f"{what} must be {count} whole numbers >= {least}, not {values!r:.60}")
    return tuple(int(value) for value in found)


def product(numbers: Sequence[int]) -> int:
    result = 1
    for number in numbers:
        result *= int(number)
    return result


def times(numbers: Sequence[int]) -> str:
    return "x".join(str(int(number)) for number in numbers)


def steps(image: Sequence[int], size: Sequence[int], stride: Sequence[int]) -> tuple[int, int]:
    """Return how many whole windows stand below and beside each other."""
    down, across = ((a - b) // s + 1 if a >= b else 0 for a, b, s in zip(image, size, stride, strict=True))
    return int(down), int(across)


def plane_windows(
    image: tuple[int, int], size: Sequence[int], stride: Sequence[int], padding: tuple[int, int, int, int]
) -> IntArray:
    """Return the places (row * width + column) that each window of one channel sees, -1 in the padding.

    Shapes    (windows, size[0] * size[1])
    """
    top, left, bottom, right = padding
    down, across = steps((image[0] + top + bottom, image[1] + left + right), size, stride)
    rows = np.arange(down, dtype=np.int64)[:, None] * stride[0] + np.arange(size[0]) - top
    columns = np.arange(across, dtype=np.int64)[:, None] * stride[1] + np.arange(size[1]) - left
    row, column = rows[:, None, :, None], columns[None, :, None, :]
    inside = (row >= 0) & (row < image[0]) & (column >= 0) & (column < image[1])
    return np.where(inside, row * image[1] + column, -1).reshape(down * across, -1)


def locked(array: IntArray) -> IntArray:
    array.setflags(write=False)
    return array


def sparse_matrix(entries: FloatArray, columns: IntArray, starts: IntArray, width: int) -> SparseMatrix:
    from scipy.sparse import csr_array

    return csr_array((entries, columns, starts), shape=(len(starts) - 1, width))
