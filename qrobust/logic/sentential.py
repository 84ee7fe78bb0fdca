"""A binarized network over few inputs as sentential decision diagrams, a second compilation to compare with.

Accepts   boxes of levels
Gives     one diagram for each class: its size, and how many inputs have the label
Method    the sums of `labels`, over a balanced tree of the variables
Property  exact. A limit on the size refuses what grows beyond it, with the figure at which it stopped
Source    Darwiche 2011 (SDDs); Choi, Darwiche et al., the SDD package, and PySDD
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import reduce
from typing import Any

from qrobust.binarized.engines.base import LATE
from qrobust.binarized.network import BinarizedNetwork
from qrobust.binarized.queries import Norm, Region, ZeroSign
from qrobust.binarized.solve import folded
from qrobust.errors import BackendUnavailableError, ResourceError, UnsupportedError
from qrobust.logic.diagrams import INSTALL
from qrobust.logic.labels import class_values, label_rows, size_of
from qrobust.logic.oracles import Deadline

MOST_SIZE = 1_000_000  # elements alive


@dataclass(frozen=True)
class Sentential:
    """Units     counts: inputs of each label; size: elements of all classes' diagrams, one after another"""

    counts: tuple[int, ...]
    size: int


def compile_sentential(
    network: BinarizedNetwork,
    region: Region,
    *,
    most: int = MOST_SIZE,
    seconds: float = 60.0,
    zero: ZeroSign = ZeroSign.PLUS,
) -> Sentential:
    """Compile a network. Raises BackendUnavailableError, UnsupportedError, NumberError, ResourceError (size, or seconds)."""
    deadline = Deadline.after(seconds)
    try:
        from pysdd.sdd import SddManager, Vtree
    except ImportError:
        raise BackendUnavailableError(INSTALL) from None
    if region.norm is not Norm.LINF:
        raise UnsupportedError("decision diagrams are over boxes of levels: take an linf ball or the whole range")
    rows = label_rows(folded(network, zero), region)
    found = rows.constraints
    if not found.columns:
        label = int(folded(network, zero).labels(region.centre[None])[0])
        return Sentential(tuple(size_of(region) * (own == label) for own in range(rows.classes)), 0)
    manager = SddManager.from_vtree(Vtree(var_count=found.columns, vtree_type="balanced"))
    true, false = manager.true(), manager.false()
    literals: list[Any] = [manager.literal(number + 1) for number in range(found.columns)]

    def at_least(values: list[Any], least: int) -> Any:
        after = [true] + [false] * least
        for value in reversed(values):
            new = [(value & after[k - 1]) | (~value & after[k]) for k in range(1, least + 1)]
            after = [true, *new]
            reached = manager.live_size() + manager.dead_size()
            if reached > most or deadline.is_over:
                why = f"its limit is {most:,}" if reached > most else LATE
                raise ResourceError(f"the sentential diagram stopped at size {reached:,}, {why}: take fewer inputs")
        return after[least]

    valid, starts = true, found.starts.tolist()
    for start, end in itertools.pairwise(starts):
        for place in range(start + 1, end):
            valid = valid & (~literals[place] | literals[place - 1])
    _, takes = class_values(rows, literals, at_least, (lambda node: ~node, true, false))
    counts, size = [], 0
    for own in range(rows.classes):
        parts = [takes[a, own] for a in range(own)] + [~takes[own, b] for b in range(own + 1, rows.classes)]
        node = reduce(lambda a, b: a & b, parts, valid)
        counts.append(0 if node.is_false() else int(node.global_model_count()))
        size += int(node.size())
    return Sentential(tuple(counts), size)
