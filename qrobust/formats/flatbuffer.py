"""Reading FlatBuffers as untrusted: every offset and length is checked against the file before anything is taken.

Source    flatbuffers.dev, "FlatBuffer Internals": a table starts with the distance back to its vtable, which says where each
          field lies, 0 for a field left out; an offset field holds the distance forward to a table, vector or string
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.errors import ModelFileError

MOST_TABLES = 2**16  # in one vector; many may be one and the same place of a small file


@dataclass(frozen=True, eq=False)
class Table:
    """One table of a FlatBuffer, at a place in the whole content. Raises ModelFileError where anything leaves the file."""

    content: bytes
    place: int

    @classmethod
    def root(cls, content: bytes, identifier: bytes) -> Table:
        """Return the table that a file starts with."""
        if content[4:8] != identifier:
            raise ModelFileError(f"the file is no {identifier.decode()} FlatBuffer: it lacks these letters at byte 4")
        return cls(content, _number(content, 0, "<I"))

    def _field(self, index: int) -> int | None:
        """Return where a field lies, or None if it is left out."""
        vtable = self.place - _number(self.content, self.place, "<i")
        size = _number(self.content, vtable, "<H")
        entry = 4 + 2 * index
        if entry + 2 > size:
            return None
        distance = _number(self.content, vtable + entry, "<H")
        return self.place + distance if distance else None

    def number(self, index: int, kind: str, default: Any = 0) -> Any:
        """Return a number of struct's kind, such as "<i"."""
        place = self._field(index)
        return default if place is None else _number(self.content, place, kind)

    def _target(self, index: int) -> int | None:
        place = self._field(index)
        return None if place is None else place + _number(self.content, place, "<I")

    def table(self, index: int) -> Table | None:
        """Return a table, or None if it is left out."""
        place = self._target(index)
        return None if place is None else Table(self.content, place)

    def vector(self, index: int, kind: str) -> npt.NDArray[Any] | None:
        """Return a vector of numbers of a NumPy kind, such as "<i4", or None if it is left out; a view of the content."""
        place = self._target(index)
        if place is None:
            return None
        count, size = _number(self.content, place, "<I"), np.dtype(kind).itemsize
        if place + 4 + count * size > len(self.content):
            raise ModelFileError(f"a vector of {count:,} numbers leaves the file of {len(self.content):,} bytes")
        return np.frombuffer(self.content, kind, count, place + 4)

    def tables(self, index: int) -> list[Table]:
        """Return a vector of tables, empty if it is left out."""
        distances = self.vector(index, "<u4")
        if distances is None:
            return []
        if len(distances) > MOST_TABLES:
            raise ModelFileError(f"a vector of {len(distances):,} tables: at most {MOST_TABLES:,} are read")
        start = self._target(index)
        assert start is not None
        return [Table(self.content, start + 4 + 4 * i + distance) for i, distance in enumerate(distances.tolist())]

    def text(self, index: int) -> str:
        """Return a string, empty if it is left out; what is no UTF-8 is replaced."""
        letters = self.vector(index, "u1")
        return "" if letters is None else letters[:200].tobytes().decode("utf-8", "replace")


def _number(content: bytes, place: int, kind: str) -> Any:
    if not 0 <= place <= len(content) - struct.calcsize(kind):
        raise ModelFileError(f"an offset leads to byte {place}, outside the file of {len(content):,} bytes")
    return struct.unpack_from(kind, content, place)[0]
