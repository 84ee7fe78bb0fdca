"""HDF5 files that anyone may have made: read once by a process with nothing to lose, and only then by this one.

HDF5's library has no defence against damaged files: version 2.0 reads free space of size 0 in a heap for ever, takes 4 GiB
where a reference to a text says so, and on some files ends the process. No look at the bytes finds all of these, so on Linux a
fork of this process reads the file first, in just the same order, within limits on its time and memory.
"""

from __future__ import annotations

import faulthandler
import io
import math
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from qrobust.errors import BackendUnavailableError, ModelFileError
from qrobust.formats.untrusted import Allowance

MOST_ATTRIBUTE = 2**24  # bytes
LEAST_SECONDS, BYTES_A_SECOND = 1, 20_000_000  # of the processor
ROOM = 2**31  # bytes of memory beside the file's own
STALLED = 60  # seconds without an end
WHOLE, LARGE = b"w", b"l"
Read = TypeVar("Read")


def open_hdf5(content: bytes) -> Any:
    """Open the bytes of a file. Raises ModelFileError, BackendUnavailableError, and what h5py raises."""
    try:
        import h5py
    except ImportError:
        raise BackendUnavailableError("reading .keras and .h5 files needs `pip install qrobust[keras]`") from None
    return h5py.File(io.BytesIO(content), "r")


def tried(read: Callable[[], Read], size: int) -> Read:
    """Return what reading a file of `size` bytes gives, after a fork of this process has done the same.

    Raises    ModelFileError if the fork stalls, takes too much memory or is ended; and what `read` raises
    """
    if sys.platform == "linux":
        _try_first(read, size)
    return read()


def attribute(owner: Any, name: str) -> Any:
    """Return an attribute of a file or group after a look at its size. Raises ModelFileError, and what h5py raises."""
    found = owner.attrs.get_id(name)
    size = math.prod(found.shape) * found.dtype.itemsize
    if size > MOST_ATTRIBUTE:
        raise ModelFileError(f"attribute {name} would take {size:,} bytes, more than {MOST_ATTRIBUTE:,} are not read")
    return owner.attrs[name]


def numbers_of(dataset: Any, allowance: Allowance) -> Any:
    """Return a dataset's numbers after a look at where they lie and how many they are. Raises ModelFileError."""
    if dataset.dtype.kind not in "fiu" or dataset.shape is None:
        raise ModelFileError(f"dataset {dataset.name} is no array of numbers")
    if dataset.external or dataset.is_virtual:
        raise ModelFileError(f"dataset {dataset.name} lies in another file, which is not read: save the model in one file")
    allowance.take(dataset.size, f"dataset {dataset.name}")
    return dataset[()]


def _try_first(read_file: Callable[[], object], size: int) -> None:
    """Raise ModelFileError if reading the file stalls, bloats or ends a process."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the fork takes no lock but h5py's
        child = os.fork()
    if child == 0:
        _try_here(read_file, size, write)
    os.close(write)
    try:
        ready, _, _ = select.select([read], [], [], STALLED + size / BYTES_A_SECOND)
        said = os.read(read, 1) if ready else b""
    finally:
        os.close(read)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if said == LARGE:
        raise ModelFileError(f"reading it would take over {ROOM / 2**30:g} GiB of memory: it is damaged, save it again")
    if said != WHOLE:
        raise ModelFileError("reading it stalls or ends HDF5's library: it is damaged, save it again")


def _try_here(read_file: Callable[[], object], size: int, write: int) -> NoReturn:
    """Read the file within limits, say what came of it, and end this process."""
    import resource

    said = b""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process ends this one
        faulthandler.disable()  # nobody is told how it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        seconds = LEAST_SECONDS + size // BYTES_A_SECOND
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: used + size + ROOM}
        for kind, most in limits.items():
            with suppress(ValueError):  # the limit is lower already
                resource.setrlimit(kind, (most, most))
        said = LARGE if _fails_for_memory(read_file) else WHOLE
    finally:
        os.write(write, said)
        os._exit(0)


def _fails_for_memory(read: Callable[[], object]) -> bool:
    """Read the file; say if memory ran out. Whatever else is wrong with it, the other process will meet."""
    try:
        read()
    except Exception as error:
        return _is_memory(error)
    return False


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "alloc" in str(error)
