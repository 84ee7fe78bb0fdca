"""Linear bounds whose slopes nobody tunes: what `substitution.backward` gives by the slopes of least area, in fewer passes.

Accepts   as `substitution`; many objectives a box
Gives     certified upper bounds
Method    For a ReLU between l < 0 < u and a multiplier nu of z, what is lost is max(-nu l, (rise - nu) u, 0). At the slopes
          nu = chord max(rise, 0) + alpha min(rise, 0), alpha 0 or 1, that is max(rise, 0) times one number of the box alone,
          max(-l chord, u (1 - chord)): both are computed once a box, and no maximum is taken for each objective
Property  sound, not complete. The number is right for any float chord in [0, 1], so what rounding does to the chord costs
          tightness alone; the products with it err by a few units of max(rise, 0) times max(-l, u), which `substitution`'s
          slack of the absolute values covers
Source    Zhang et al. 2018, arXiv 1811.00866 (the slopes)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qrobust.bounds.envelopes import ENVELOPES
from qrobust.bounds.ibp import INTERVALS
from qrobust.bounds.substitution import Above, Levels, rounding
from qrobust.interval import FloatArray, Interval, up
from qrobust.network import Activation, activate


def untuned(
    levels: Levels,
    level: int,
    above: Above,
    bounds: Sequence[Interval],
    boxes: npt.NDArray[np.intp],
    sizes: Sequence[FloatArray],
) -> FloatArray:
    """Bound objectives over the pre-activations of a level from above.

    Shapes    above: over the values of level - 1, (batch, n); bounds, sizes: each level's (boxes or 1, n); boxes (batch,):
              which box each objective is about; result (batch,)
    """
    value, met = above.value, above.met
    for number in range(level - 1, -1, -1):
        z, activation = bounds[number], levels.activation(number)
        if number == 0:
            lost = ENVELOPES[activation].peak(above.rise, above.fall, of_boxes(z, boxes))[0].sum(axis=1)
            nu = None
        elif activation is Activation.RELU:
            nu, lost = _relu(above.rise, z, boxes)
        else:
            own = of_boxes(z, boxes)
            nu = ENVELOPES[activation].slopes(above.rise, above.fall, own, None)
            lost = ENVELOPES[activation].conjugate(above.rise, above.fall, nu, own)[0].sum(axis=1)
        value = value + lost
        if nu is not None:
            stage, below = levels.stages[number - 1], None
            if stage.kernel is not None:
                below = activate(levels.activation(number - 1), of_boxes(bounds[number - 1], boxes), INTERVALS)
            size = sizes[number] if len(sizes[number]) == 1 else sizes[number][boxes]
            above = Above.of_rows(stage, nu, value, size, below)
            value, met = above.value, met + above.met
    upper = up(value + rounding(levels.terms, met))
    return np.where(np.isnan(upper), np.inf, upper)


def of_boxes(z: Interval, boxes: npt.NDArray[np.intp]) -> Interval:
    """Return each objective's own bounds; one box stays one. Shapes: z (boxes or 1, n)."""
    return z if len(z) == 1 else z[boxes]


def first_slopes(z: Interval) -> FloatArray:
    """The lower slope of least area: 1 where more of the interval is positive, else 0."""
    return (z.upper > -z.lower).astype(np.float64)


def _relu(rise: FloatArray, z: Interval, boxes: npt.NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
    """Return the multipliers of a ReLU's z, and what each objective loses. Shapes: (batch, n); (batch,)."""
    unstable = (z.lower < 0) & (z.upper > 0)
    low, high = np.where(unstable, z.lower, -1.0), np.where(unstable, z.upper, 1.0)
    on = (z.upper > 0).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        chord = np.where(unstable, high / (high - low), on)
        gap = np.where(unstable, np.maximum(-low * chord, high * (1 - chord)), 0.0)
        slope = np.where(unstable, first_slopes(z), on)
        if len(z) > 1:
            chord, gap, slope = chord[boxes], gap[boxes], slope[boxes]
        positive = np.maximum(rise, 0.0)
        lost = positive @ gap[0] if len(gap) == 1 else np.einsum("ij,ij->i", positive, gap)
        nu = rise - positive
        nu *= slope
        positive *= chord
        nu += positive
    return nu, lost
