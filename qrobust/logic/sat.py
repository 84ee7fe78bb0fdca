"""What explanations take from python-sat: clauses asked of again and again under assumptions, and hitting sets.

Property  exact; the solvers themselves are trusted, and what they answer is checked elsewhere
Source    Audemard and Simon, Glucose; Ignatiev et al., python-sat (Hitman); Davies and Bacchus 2011 (implicit hitting sets)
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from qrobust.binarized.engines.base import interruptible
from qrobust.errors import BackendUnavailableError
from qrobust.logic.oracles import Deadline, Features

CONFLICTS = 2000  # between two looks at the clock
INSTALL = "explanations need `pip install qrobust[logic]`"


class HittingSets:
    """Minimal sets that meet all sets added, each but once. Use it in a `with`. Raises BackendUnavailableError."""

    def __init__(self, *, by_size: bool) -> None:
        try:
            from pysat.examples.hitman import Hitman
        except ImportError:
            raise BackendUnavailableError(INSTALL) from None
        self._solver: Any = Hitman(solver="g3", htype="sorted" if by_size else "lbx")
        self.sets: list[Features] = []
        self._empty_blocked = False
        self._impossible = False

    def __enter__(self) -> HittingSets:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._solver.delete()

    def next(self, deadline: Deadline) -> Features | None:
        """Return a set that meets all, or None if there is none that is not blocked. Raises UndecidedError."""
        deadline.left()
        if self._impossible:
            return None
        if not self.sets:
            return None if self._empty_blocked else frozenset()
        with interruptible():
            found = self._solver.get()
        return None if found is None else frozenset(found)

    def add(self, missed: Features) -> None:
        """Take one more set that is to be met; no set meets the empty one."""
        self.sets.append(missed)
        if missed:
            self._solver.hit(sorted(missed))
        else:
            self._impossible = True

    def block(self, found: Features) -> None:
        """Leave out a set and all that contain it."""
        if found:
            self._solver.block(sorted(found))
        else:
            self._empty_blocked = True
            self._impossible = True


class Assumptions:
    """Clauses that are asked of again and again under assumptions. Raises BackendUnavailableError."""

    def __init__(self, clauses: list[list[int]], likely: list[int]) -> None:
        try:
            from pysat.solvers import Glucose4
        except ImportError:
            raise BackendUnavailableError(INSTALL) from None
        self._solver: Any = Glucose4(bootstrap_with=clauses)
        self._solver.set_phases(likely)

    def close(self) -> None:
        """Give the memory back."""
        self._solver.delete()

    def solve(self, assumed: list[int], deadline: Deadline) -> tuple[list[int] | None, list[int]]:
        """Return a solution's literals, or None and assumptions that together have none. Raises UndecidedError."""
        found = None
        while found is None:  # in slices, for an interrupt from outside may go unheard for minutes
            deadline.left()
            self._solver.conf_budget(CONFLICTS)
            with interruptible():
                found = self._solver.solve_limited(assumptions=assumed)
        return (self._solver.get_model(), []) if found else (None, self._solver.get_core() or [])
