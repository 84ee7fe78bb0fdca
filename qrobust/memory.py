"""How much memory bounds may take, and how many things at a time that allows: every batch gets its size here.

A budget of bytes (`search.Budget.memory`) is shared out by `Part`. Each method states what one of its things takes, in bytes;
what does not fit even one at a time is refused with the figures before any of it is taken. The network, its box and the inputs
themselves are there before and are not counted.
"""

from __future__ import annotations

import math
from enum import Enum

from qrobust.errors import ResourceError

GIB = 2**30
MEMORY = 4 * GIB  # bytes, unless the budget says otherwise


class Part(Enum):
    """What the budget is shared among: the fraction of it that may be taken; no two are alike."""

    MATRICES = 0.5  # of the network's layers
    OBJECTIVES = 0.25  # rows that are bounded and tuned together
    INPUTS = 0.15  # inputs that are bounded together
    NODES = 0.1  # open nodes of a search


def check_fits(needed: int, memory: int, part: Part, what: str) -> None:
    """Raise ResourceError if `needed` bytes are more than the part of the budget."""
    if needed > memory * part.value:
        enough = math.ceil(needed / part.value / GIB * 1000) / 1000
        raise ResourceError(
            f"{what} would take {needed / GIB:.3g} GiB of {part.name.lower()}, a memory budget of {memory / GIB:.3g} GiB has"
            f" {memory * part.value / GIB:.3g} GiB for them: give --memory {enough:g} to a command that has it"
            " (Budget(memory=...)) or a smaller network"
        )


def at_a_time(each: int, memory: int, part: Part, what: str, most: int) -> int:
    """Return how many things of `each` bytes fit in the part of the budget, at most `most`; check_fits if not even one does."""
    check_fits(each, memory, part, what)
    return min(most, int(memory * part.value) // max(each, 1))
