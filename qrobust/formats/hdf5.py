"""HDF5 files that anyone may have made: read once by a process with nothing to lose, and only then by this one.

HDF5's library has no defence against damaged files: version 2.0 reads free space of size 0 in a heap for ever, takes 4 GiB
where a reference to a text says so, and on some files ends the process. No look at the bytes finds all of these, so on Linux a
fork of this process reads everything in the file first, within limits on its time and memory.
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
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from qrobust.errors import BackendUnavailableError, ModelFileError
from qrobust.formats.untrusted import Allowance

MOST_ATTRIBUTE = 2**24  # bytes
MOST_OBJECTS = 100_000
LEAST_SECONDS, BYTES_A_SECOND = 1, 20_000_000  # of the processor
ROOM = 2**31  # bytes of memory beside the file's own
STALLED = 60  # seconds without an end
WHOLE, LARGE = b"w", b"l"
KNOWN = ("model_config", "model_weights", "weight_names", "layers", "vars", *map(str, range(10)))


def open_hdf5(content: bytes) -> Any:
    """Open the bytes of a file. Raises ModelFileError, BackendUnavailableError, and what h5py raises."""
    try:
        import h5py
    except ImportError:
        raise BackendUnavailableError("reading .keras and .h5 files needs `pip install qrobust[keras]`") from None
    if sys.platform == "linux":
        _try_first(h5py, content)
    return h5py.File(io.BytesIO(content), "r")


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


def _try_first(h5py: Any, content: bytes) -> None:
    """Raise ModelFileError if reading everything in the file stalls, bloats or ends a process."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the fork takes no lock but h5py's
        child = os.fork()
    if child == 0:
        _try_here(h5py, content, write)
    os.close(write)
    try:
        ready, _, _ = select.select([read], [], [], STALLED + len(content) / BYTES_A_SECOND)
        said = os.read(read, 1) if ready else b""
    finally:
        os.close(read)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if said == LARGE:
        raise ModelFileError(f"reading it would take over {ROOM / 2**30:g} GiB of memory: it is damaged, save it again")
    if said != WHOLE:
        raise ModelFileError("reading it stalls or ends HDF5's library: it is damaged, save it again")


def _try_here(h5py: Any, content: bytes, write: int) -> NoReturn:
    """Read the file within limits, say what came of it, and end this process."""
    import resource

    said = b""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process ends this one
        faulthandler.disable()  # nobody is told how it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        seconds = LEAST_SECONDS + len(content) // BYTES_A_SECOND
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: used + len(content) + ROOM}
        for kind, most in limits.items():
            with suppress(ValueError):  # the limit is lower already
                resource.setrlimit(kind, (most, most))
        said = LARGE if _bloats(h5py, content) else WHOLE
    finally:
        os.write(write, said)
        os._exit(0)


def _bloats(h5py: Any, content: bytes) -> bool:
    """Read every attribute and dataset that a reader may read; say if memory ran out. What is wrong otherwise it will meet."""
    waiting: list[Callable[[], list[Any]]] = [lambda: [h5py.File(io.BytesIO(content), "r")]]
    seen: set[int] = set()
    while waiting and len(seen) < MOST_OBJECTS:
        try:
            found = waiting.pop()()
            for item in found:
                address = h5py.h5o.get_info(item.id).addr
                if address not in seen:
                    seen.add(address)
                    waiting += _steps(h5py, item)
        except Exception as error:
            if _is_memory(error):
                return True
    return False


def _steps(h5py: Any, item: Any) -> list[Callable[[], list[Any]]]:
    """Return what is to be read of an object, each apart, since one may fail and the next be read: it gives further objects."""
    steps: list[Callable[[], list[Any]]] = [partial(_none, partial(attribute, item, name)) for name in _names(item.attrs)]
    if isinstance(item, h5py.Dataset):
        return [*steps, partial(_none, partial(numbers_of, item, Allowance()))]
    return [*steps, *(partial(_child, h5py, item, name) for name in _names(item))]


def _names(mapping: Any) -> list[str]:
    """Return the names that can be found out, and those that readers look for in any case."""
    found = [*KNOWN]
    with suppress(Exception):
        found += [name for name in mapping if name not in KNOWN]
    return found


def _none(read: Callable[[], object]) -> list[Any]:
    read()
    return []


def _child(h5py: Any, item: Any, name: str) -> list[Any]:
    """Return an object in a group, but none in another file."""
    return [item[name]] if isinstance(item.get(name, getlink=True), h5py.HardLink) else []


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "alloc" in str(error)
