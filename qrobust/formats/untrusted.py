"""Parsing files that anyone may have made: whatever a parser raises becomes one line that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qrobust.errors import BackendUnavailableError, ModelFileError, QRobustError, UnsupportedError


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
