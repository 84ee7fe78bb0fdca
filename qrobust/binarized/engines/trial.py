"""Every input that the constraints tell apart, tried.

Accepts   every region
Gives     Found or Nothing; Undecided at the time limit, and where sums are too large
Method    in a box, the pixels that change fastest as one table, the others one value at a time; in a ball by L0, L1 or L2,
          sets of changes, each grown by a change of a later pixel while its cost allows; `evaluation`
Property  sound and complete, in integers
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np

from qrobust.binarized.constraints import Constraints
from qrobust.binarized.engines.base import LATE, Found, Nothing, Outcome, Undecided
from qrobust.binarized.engines.evaluation import Evaluation, Values, seconds_each
from qrobust.binarized.enumeration import state_costs, tell_apart
from qrobust.binarized.queries import Norm
from qrobust.errors import ResourceError
from qrobust.layers import IntArray

TABLE = 4096  # inputs of a box's table, at most, if a pixel has not more values
GROWN = 2**16  # sets of changes that are grown at once, if a set is not grown into more
VALUES = 2**19  # values that are computed at once, at most; they stay near the processor
LEAST_BATCH = 64
MOST_INPUTS = 2**40  # far more than can be tried


def forecast(found: Constraints) -> float:
    """Return about how many seconds trying every input takes; infinity where it cannot be done."""
    count = tell_apart(found, MOST_INPUTS)
    return math.inf if count is None or found.is_unary else count * seconds_each(found)


def decide(found: Constraints, seconds: float) -> Outcome:
    """Decide by trying all."""
    if found.is_unary:
        return Undecided("inputs in unary are not tried")
    deadline = time.monotonic() + seconds
    try:
        evaluation = Evaluation(found)
    except ResourceError as error:
        return Undecided(str(error))
    batch = max(LEAST_BATCH, VALUES // max(1, found.matrix.shape[1]))
    for part in states(found):
        for start in range(0, max(1, len(part)), batch):
            few = part[start : start + batch]
            lost = np.flatnonzero((evaluation.leads(few) >= 0).any(axis=1))
            if len(lost):
                return Found(found.input_levels(few[lost[0]].astype(np.int64)))
            if time.monotonic() > deadline:
                return Undecided(LATE)
    return Nothing(exact=True)


def states(found: Constraints) -> Iterator[Values]:
    """Yield the pixels' states at all inputs of the region, each once, to be read before the next. Shape: (some, pixels)."""
    yield from _of_a_box(found) if found.region.norm is Norm.LINF else _of_a_ball(found)


def _of_a_box(found: Constraints) -> Iterator[Values]:
    sizes = [len(levels) for levels in found.levels]
    fast = next((count for count in range(len(sizes), 0, -1) if math.prod(sizes[:count]) <= TABLE), min(1, len(sizes)))
    table = np.empty((math.prod(sizes[:fast]), len(sizes)), dtype=np.float32)
    table[:, :fast] = _digits(np.arange(len(table)), sizes[:fast])
    for number in range(math.prod(sizes[fast:])):
        table[:, fast:] = _digits(np.array([number]), sizes[fast:])
        yield table


def _digits(numbers: IntArray, sizes: list[int]) -> Values:
    """Return numbers in the mixed base of some sizes. Shapes: numbers (n,); result (n, sizes)."""
    digits = np.empty((len(numbers), len(sizes)), dtype=np.float32)
    for place, size in enumerate(sizes):
        numbers, digits[:, place] = np.divmod(numbers, size)
    return digits


def _of_a_ball(found: Constraints) -> Iterator[Values]:
    costs, most = state_costs(found), found.region.most
    sizes = [len(each) for each in costs]
    home = np.array([int(each.argmin()) for each in costs], dtype=np.int64)
    pixel, state = np.repeat(np.arange(len(costs)), sizes), _places(np.array(sizes, dtype=np.int64))
    cost = np.concatenate([np.zeros(0, dtype=np.int64), *costs])
    changes = np.flatnonzero((state != home[pixel]) & (cost <= most))
    pixel, state, cost = pixel[changes], state[changes], cost[changes]
    later = np.searchsorted(pixel, pixel, side="right")  # the first change of a later pixel
    yield home[None].astype(np.float32)
    waiting = [(np.zeros((1, 0), dtype=np.int64), np.zeros(1, dtype=np.int64))]  # sets of changes, what each costs
    while waiting and len(pixel):
        chosen, spent = waiting.pop()
        first = later[chosen[:, -1]] if chosen.shape[1] else np.zeros(1, dtype=np.int64)
        count = max(1, int(np.searchsorted(np.cumsum(len(pixel) - first), GROWN, side="right")))
        if count < len(chosen):
            waiting.append((chosen[count:], spent[count:]))
        parent = np.repeat(np.arange(count), len(pixel) - first[:count])
        change = first[parent] + _places(len(pixel) - first[:count])
        total = spent[parent] + cost[change]
        kept = np.flatnonzero(total <= most)
        chosen, spent = np.column_stack([chosen[parent[kept]], change[kept]]), total[kept]
        for start in range(0, max(1, len(chosen)), TABLE):
            few = chosen[start : start + TABLE]
            part = np.repeat(home[None].astype(np.float32), len(few), axis=0)
            part[np.arange(len(few))[:, None], pixel[few]] = state[few]
            yield part
        if (open_ := spent + cost.min() <= most).any():
            waiting.append((chosen[open_], spent[open_]))


def _places(sizes: IntArray) -> IntArray:
    """Return 0, 1, ... for each size, one after another. Shapes: sizes (n,); result (their sum,)."""
    return np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
