"""HDF5 files that anyone may have made: opened with h5py after a look at what its library would not come back from."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

from qrobust.errors import BackendUnavailableError, ModelFileError

MOST_TEXTS, MOST_HEAPS = 100_000, 64  # of variable length, and where they lie
MOST_ATTRIBUTE = 2**24  # bytes; a text of variable length takes 16, and lies in a heap
SIGNATURE, HEADER = b"GCOL", 16  # bytes before a heap's objects, and before each object's own


def open_hdf5(content: bytes) -> Any:
    """Open the bytes of a file. Raises ModelFileError, BackendUnavailableError, and what h5py raises."""
    try:
        import h5py
    except ImportError:
        raise BackendUnavailableError("reading .keras and .h5 files needs `pip install qrobust[keras]`") from None
    _check_heaps(content)
    return h5py.File(io.BytesIO(content), "r")


def attribute(owner: Any, name: str) -> Any:
    """Return an attribute of a file or group after a look at its size. Raises ModelFileError, and what h5py raises."""
    found = owner.attrs.get_id(name)
    size = max(math.prod(found.shape) * found.dtype.itemsize, found.get_storage_size())
    if size > MOST_ATTRIBUTE:
        raise ModelFileError(f"attribute {name} would take {size:,} bytes, more than {MOST_ATTRIBUTE:,} are not read")
    return owner.attrs[name]


def _check_heaps(content: bytes) -> None:
    """Raise ModelFileError unless every heap of texts leads on to its end, and no reference asks for more than its heap holds.

    HDF5 2.0 reads an object of size 0 for ever, and takes the memory that a reference asks for before it looks at the object.

    Source    HDF5 File Format Specification 3.0, III.E, Global Heap, with lengths of 8 bytes: object 0 is free space and
              counts its own header, the others' sizes are rounded up to 8; a reference is a length, the heap, the object
    """
    texts = 0
    for heaps, (start, end) in enumerate(_heaps(content), start=1):
        texts += _count_texts(content, start, end)
        if heaps > MOST_HEAPS or texts > MOST_TEXTS:
            raise ModelFileError(f"it has over {MOST_HEAPS} heaps or {MOST_TEXTS:,} texts, more are not read")
        address = start.to_bytes(8, "little")
        place = content.find(address, 4)
        while place >= 0:
            length, text = (int.from_bytes(content[at : at + 4], "little") for at in (place - 4, place + 8))
            if length > end - start and 0 < text < 2**16:
                raise ModelFileError(f"a text at byte {place:,} of {length:,} bytes is longer than its heap: save it again")
            place = content.find(address, place + 1)


def _count_texts(content: bytes, start: int, end: int) -> int:
    """Return how many objects a heap has. Raises ModelFileError if they do not lead to its end."""
    count, place = 0, start + HEADER
    while place + HEADER <= end and count <= MOST_TEXTS:
        index = int.from_bytes(content[place : place + 2], "little")
        size = int.from_bytes(content[place + 8 : place + HEADER], "little")
        place += HEADER + (size + 7) // 8 * 8 if index else size
        count += 1
        if place > end or not (index or size):
            raise ModelFileError(f"its heap of texts at byte {start:,} is damaged: save it again")
    return count


def _heaps(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the beginning and end of what may be heaps; h5py itself refuses those that reach beyond the file."""
    start = content.find(SIGNATURE)
    while start >= 0:
        end = start + int.from_bytes(content[start + 8 : start + HEADER], "little")
        if end <= len(content):
            yield start, end
        start = content.find(SIGNATURE, start + 1)
