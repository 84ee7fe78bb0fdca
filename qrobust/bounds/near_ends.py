"""Tighter ranges of pre-activations whose sign is open: of each, the end nearer to 0, by backward substitution.

Accepts   `linear`; a batch of boxes of inputs with ranges of all pre-activations up to some layer
Gives     the ranges with the ends nearer to 0 moved toward it, or beyond: what then has one sign behaves as a line
Method    `linear.tuned`, with no step for all open neurons, and then with one for those that stay open
Property  sound. Not every end is moved: the other one does not matter to a ReLU's band
Source    as `linear`
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qrobust.bounds.linear import Tuning, tuned
from qrobust.bounds.substitution import ROWS, Above, Levels
from qrobust.bounds.untuned import untuned
from qrobust.interval import FloatArray, Interval

TUNINGS = (Tuning(0), Tuning(1, rate=1.0))  # a step of 1 takes a slope from one end of its range to the other


def nearer_ends(levels: Levels, known: Sequence[Interval], z: Interval, tunings: Sequence[Tuning] = TUNINGS) -> Interval:
    """Narrow the ranges of the level after the known ones where they have 0 inside.

    Shapes    known: levels 0 (the inputs) to k - 1, (batch, n) each; z, of level k, (batch, n), as the result
    """
    lower, upper = z.lower.copy(), z.upper.copy()
    sizes = levels.sizes(known)
    for tuning in tunings:
        boxes, neurons = np.nonzero((lower < 0) & (upper > 0))
        for first in range(0, len(boxes), ROWS):
            box, neuron = boxes[first : first + ROWS], neurons[first : first + ROWS]
            above_zero = upper[box, neuron] < -lower[box, neuron]
            most = _greatest(levels, known, sizes, box, neuron, np.where(above_zero, 1.0, -1.0), tuning)
            upper[box, neuron] = np.where(above_zero, np.minimum(upper[box, neuron], most), upper[box, neuron])
            lower[box, neuron] = np.where(above_zero, lower[box, neuron], np.maximum(lower[box, neuron], -most))
    return Interval(lower, upper)


def _greatest(
    levels: Levels,
    known: Sequence[Interval],
    sizes: Sequence[FloatArray],
    boxes: npt.NDArray[np.intp],
    neurons: npt.NDArray[np.intp],
    signs: FloatArray,
    tuning: Tuning,
) -> FloatArray:
    """Bound signs * z[neurons] of each box from above. Shapes: boxes, neurons, signs, result (rows,)."""
    level = len(known)
    above = Above.of_neurons(levels.stages[level - 1], boxes, neurons, signs, sizes[level])
    if not tuning.steps:
        return untuned(levels, level, above, known, boxes, sizes)
    size = [s if len(s) == 1 else s[boxes] for s in sizes]
    return tuned(levels, level, above, [z[boxes] for z in known], size, tuning)
