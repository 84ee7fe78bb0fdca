"""Damaged model files: how they are made, and what a reader may do with them."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qrobust import formats
from qrobust.errors import ModelFileError, QRobustError, UnsupportedError

ALLOWED = (ModelFileError, UnsupportedError)


def refusal(path: Path, content: bytes | None = None, *, read: Callable[..., object] = formats.load, **options: Any) -> str:
    """Return the one line with which a file is refused."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ALLOWED) as caught:
        read(path, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert path.name in line, f"the message does not name the file: {line}"
    return line


def survives(path: Path, content: bytes, *, read: Callable[..., object] = formats.load) -> bool:
    """Whether a file is read; any other outcome must be one of our errors in one line."""
    path.write_bytes(content)
    try:
        read(path)
    except QRobustError as error:
        line = str(error)
    else:
        return True
    assert "\n" not in line
    return False


def flipped(content: bytes, seed: int) -> bytes:
    """Replace one to ten bytes at random."""
    rng = random.Random(seed)
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 10])):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return bytes(damaged)


def packed(contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return buffer.getvalue()
