"""Parsing files that anyone may have made: whatever a parser raises becomes one line that names the file.

Sizes are looked at before memory is taken: `Allowance` counts the numbers that a file's arrays come to, `unpacked` takes a
member out of a zip only if it is no bomb.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qrobust.errors import BackendUnavailableError, ModelFileError, QRobustError, UnsupportedError

MOST_NUMBERS = 2**28  # of eight bytes each, in all arrays that are made of one file
MOST_MEMBER_BYTES = 2**31
MOST_FREE_BYTES = 2**26  # a member up to this size may be packed as tightly as it likes
MOST_RATIO = 100  # trained weights hardly pack at all


@contextmanager
def parsing(path: Path | str, kind: str) -> Iterator[None]:
    """Turn every error inside into ModelFileError (UnsupportedError and BackendUnavailableError keep their class).

    A damaged file can make a parser raise nearly anything, and the file is not usable whatever it was.
    """
    try:
        yield
    except (UnsupportedError, BackendUnavailableError) as error:
        raise type(error)(f"{path}: {one_line(str(error))}") from None
    except QRobustError as error:
        raise ModelFileError(f"{path}: {one_line(str(error))}") from None
    except Exception as error:
        why = one_line(str(error)) or type(error).__name__
        raise ModelFileError(f"{path} is not a whole {kind} file ({why}): save it again") from None


def one_line(text: str, most: int = 200) -> str:
    """Return text without line breaks, cut where it is too long for a message."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 3] + "..."


class Allowance:
    """How many numbers one file's arrays may still come to; counted before an array is made."""

    def __init__(self, numbers: int | None = None) -> None:
        self._most = MOST_NUMBERS if numbers is None else numbers
        self._taken = 0

    def take(self, count: int, what: str) -> None:
        """Count the numbers of an array that is about to be made. Raises ModelFileError."""
        self._taken += count
        if count < 0 or self._taken > self._most:
            raise ModelFileError(f"{what} would take {count:,} numbers, all arrays of a file at most {self._most:,}")


def unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a member of a zip. Raises ModelFileError if it unpacks to more than is read, or is packed like a bomb."""
    member = archive.getinfo(name)
    limit = min(MOST_MEMBER_BYTES, max(MOST_FREE_BYTES, MOST_RATIO * member.compress_size))
    if member.file_size > limit:
        raise ModelFileError(f"{name} unpacks to {member.file_size:,} bytes, more than {limit:,} bytes are not read")
    return archive.read(name)


def check_archive(archive: zipfile.ZipFile) -> None:
    """Raise ModelFileError if all members of a zip together unpack to more than is read, or are packed like a bomb."""
    size = sum(member.file_size for member in archive.infolist())
    packed = sum(member.compress_size for member in archive.infolist())
    limit = min(MOST_MEMBER_BYTES, max(MOST_FREE_BYTES, MOST_RATIO * packed))
    if size > limit:
        raise ModelFileError(f"it unpacks to {size:,} bytes, more than {limit:,} bytes are not read")
