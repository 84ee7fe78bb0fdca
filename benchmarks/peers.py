"""Running a peer in a process of its own, so that a time limit can end it."""

from __future__ import annotations

import multiprocessing
import time
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any


def call_with_limit(module: str, function: str, arguments: tuple[Any, ...], limit: float) -> tuple[float | None, float, bool]:
    """Call a peer that returns `Timed`; return its value, seconds, and whether it finished within the limit."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(there, module, function, arguments))
    started = time.perf_counter()
    process.start()
    finished = here.poll(limit)
    if not finished:
        process.kill()
        process.join()
        return None, time.perf_counter() - started, False
    result = here.recv()
    process.join()
    return result.value, result.seconds, True


def _call(pipe: Connection, module: str, function: str, arguments: tuple[Any, ...]) -> None:
    pipe.send(getattr(import_module(module), function)(*arguments))
