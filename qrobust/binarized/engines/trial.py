"""Every input that the constraints tell apart, tried.

Accepts   questions about boxes
Gives     Found or Nothing; Undecided at the time limit, and where the dense rows are too large
Method    the pixels that change fastest as one table, the others one value at a time; `evaluation`
Property  sound and complete, in integers
"""

from __future__ import annotations

import math
import time

import numpy as np

from qrobust.binarized.constraints import Constraints
from qrobust.binarized.engines.base import LATE, Found, Nothing, Outcome, Undecided
from qrobust.binarized.engines.evaluation import Evaluation, Values, dense_terms
from qrobust.binarized.queries import Norm
from qrobust.errors import ResourceError
from qrobust.layers import IntArray

TABLE = 4096  # inputs tried at once, at most, if a pixel has not more values
MOST_FORECAST = 2**512  # inputs: far more than can be tried, and still a float
PRODUCTS_A_SECOND = 2.0**35  # taken to forecast the time, on one core; `dense_terms` counts more than are done


def forecast(found: Constraints) -> float:
    """Return how many seconds trying every input may take; infinity where it cannot be done, or no float holds the number."""
    count = math.prod(len(levels) for levels in found.levels)
    if not _is_box(found) or count >= MOST_FORECAST:
        return math.inf
    return float(count) * dense_terms(found) / PRODUCTS_A_SECOND


def _is_box(found: Constraints) -> bool:
    return found.region.norm is Norm.LINF and not len(found.hard_threshold)


def decide(found: Constraints, seconds: float) -> Outcome:
    """Decide by trying all."""
    if not _is_box(found):
        return Undecided("only the inputs of a box are tried")
    deadline = time.monotonic() + seconds
    try:
        evaluation = Evaluation(found)
    except ResourceError as error:
        return Undecided(str(error))
    sizes = [len(levels) for levels in found.levels]
    fast = next((count for count in range(len(sizes), 0, -1) if math.prod(sizes[:count]) <= TABLE), min(1, len(sizes)))
    states = np.empty((math.prod(sizes[:fast]), len(sizes)), dtype=np.float32)
    states[:, :fast] = _digits(np.arange(len(states)), sizes[:fast])
    for number in range(math.prod(sizes[fast:])):
        states[:, fast:] = _digits(np.array([number]), sizes[fast:])
        lost = np.flatnonzero((evaluation.leads(states) >= 0).any(axis=1))
        if len(lost):
            return Found(found.input_levels(states[lost[0]].astype(np.int64)))
        if time.monotonic() > deadline:
            return Undecided(LATE)
    return Nothing(exact=True)


def _digits(numbers: IntArray, sizes: list[int]) -> Values:
    """Return numbers in the mixed base of some sizes. Shapes: numbers (n,); result (n, sizes)."""
    digits = np.empty((len(numbers), len(sizes)), dtype=np.float32)
    for place, size in enumerate(sizes):
        numbers, digits[:, place] = np.divmod(numbers, size)
    return digits
