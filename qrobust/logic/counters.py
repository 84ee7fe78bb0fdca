"""Exact model counting by Ganak, which is run in a process of its own.

Property  exact: how many assignments of some variables extend to a solution; the counter is trusted
Source    Sharma, Roy, Soos, Meel 2019 (Ganak)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from qrobust.errors import BackendUnavailableError

INSTALL = "counting needs `pip install qrobust[logic]`"
Problem = tuple[list[list[int]], int, list[int]]  # clauses, how many variables there are, those that are counted


def ganak(problem: Problem, seed: int) -> int:
    """Return the exact count. Raises BackendUnavailableError."""
    try:
        from pyganak import Counter
    except ImportError:
        raise BackendUnavailableError(INSTALL) from None
    clauses, variables, counted = problem
    counter = Counter(seed=seed)
    counter.new_vars(variables)
    counter.add_clauses(clauses)
    counter.set_sampling_set(counted)
    with _silent():
        return int(counter.count())


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what a library prints on its way from this process's standard error."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
