"""What every engine is asked and answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qrobust.binarized.constraints import Constraints
from qrobust.layers import IntArray

LATE = "the time limit was reached"


@dataclass(frozen=True, eq=False)
class Found:
    """An input in the region that, says the engine, loses the label. Shape: levels (inputs,)."""

    levels: IntArray


@dataclass(frozen=True)
class Nothing:
    """The engine says that no input in the region loses the label. `exact`: it computes in integers only."""

    exact: bool


@dataclass(frozen=True)
class Undecided:
    """The engine does not know, and why."""

    reason: str


Outcome = Found | Nothing | Undecided
Engine = Callable[[Constraints, float], Outcome]
