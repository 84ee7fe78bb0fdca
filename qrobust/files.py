"""Reading files as untrusted and writing them whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from qrobust.errors import ModelFileError, OutputError, QRobustError

MOST_BYTES = 2**31


def read_bytes(path: Path | str) -> bytes:
    """Return a file's content. Raises ModelFileError if it is missing, a folder, empty, or over MOST_BYTES."""
    path = Path(path)
    check_no_stream(path, ModelFileError)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise ModelFileError(f"{path} is a folder: name the model's file")
        if size == 0:
            raise ModelFileError(f"{path} is empty: export the model again")
        if size > MOST_BYTES:
            raise ModelFileError(f"{path} has {size:,} bytes, at most {MOST_BYTES:,} are read")
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelFileError(f"{path} does not exist: check the path") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from None


def check_no_stream(path: Path, error: type[QRobustError]) -> None:
    """Raise an error of this class if a path names a pipe or a device, which may never end or never begin."""
    try:
        mode = path.stat().st_mode
    except OSError:  # whoever reads it says why it cannot be read
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise error(f"{path} is a pipe or a device: name a file")


def check_can_appear(*paths: Path | None) -> None:
    """Raise OutputError, before long work and not after, if a file to be written is a folder or its own folder is missing."""
    for path in paths:
        if path is None:
            continue
        try:
            taken, room = path.is_dir(), path.parent.is_dir()
        except OSError as error:
            raise OutputError(f"{path} was not written: {error.strerror}") from None
        if taken:
            raise OutputError(f"{path} was not written: it is a folder; name a file in it")
        if not room:
            raise OutputError(f"{path} was not written: there is no folder {path.parent}; make it first")


def write_whole(path: Path | str, content: bytes | Iterable[bytes]) -> None:
    """Write a file, at once or in parts, so that it appears whole or not at all: a neighbour is written, then renamed over it.

    Raises OutputError, and leaves what was there before, when the folder is missing or the disk is full.
    """
    write_together({Path(path): content})


def write_together(contents: Mapping[Path, bytes | Iterable[bytes]]) -> None:
    """Write files that belong together, each as `write_whole` does: none is renamed before all of them are on the disk.

    Raises OutputError, and leaves what was there before, when a folder is missing or the disk is full.
    """
    check_can_appear(*contents)
    waiting: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, content in contents.items():
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
            waiting.append((Path(name), path))
            with os.fdopen(descriptor, "wb") as file:
                file.writelines([content] if isinstance(content, bytes) else content)
                file.flush()
                os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        while waiting:
            neighbour, path = waiting[0]
            neighbour.chmod(0o666 & ~umask)
            neighbour.replace(path)
            waiting.pop(0)
    except OSError as error:
        raise OutputError(f"{path} was not written: {error.strerror}; nothing was left half-written") from None
    finally:
        for neighbour, _ in waiting:
            with contextlib.suppress(OSError):
                neighbour.unlink()
