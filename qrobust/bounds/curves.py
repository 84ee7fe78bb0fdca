"""Bands around sigmoid and tanh: lines with a reach, for values and for the difference of two values.

Accepts   sigmoid and tanh; arrays of ranges of any shape, infinite ones included
Gives     slope, centre and reach: act(z) is within reach of slope * z + centre, act(z') - act(z) of slope * (z' - z) + centre
Method    On one side of 0 the functions have one curvature: a value lies between its chord and the parallel tangent. Where z
          has both signs, the slope is the least derivative, so that act(z) - slope * z rises. A difference is m (z' - z) with
          m between the least and the greatest derivative, or what the two ranges leave; the narrower of the two is taken,
          what a slope carries of a form's radius counted
Property  sound; the reach of a value falls with the square of the width of z, that of a difference with the width
Rounding  any slope will do; the ends of act(z) - slope * z are enclosed in intervals, the tangent's own slope as well
Source    Singh et al., NeurIPS 2018 (DeepZ), for the least derivative as the slope; the mean value theorem
"""

from __future__ import annotations

import numpy as np

from qrobust import interval
from qrobust.bounds.differential import Pair, chord_slopes
from qrobust.bounds.ibp import INTERVALS
from qrobust.interval import FloatArray, Interval, down, up
from qrobust.network import Activation, activate

Line = tuple[FloatArray, FloatArray, FloatArray]


def value_line(activation: Activation, z: Interval, radius: FloatArray | float = 0.0) -> Line:
    """Enclose act(z) by a line around z, a form of this radius. Shapes: those of z."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        values = activate(activation, z, INTERVALS)  # act rises: its values at both ends
        ends = [activate(activation, Interval.point(end), INTERVALS) for end in (z.lower, z.upper)]
        convex, concave = z.upper <= 0, z.lower >= 0
        chord = np.clip((ends[1].middle - ends[0].middle) / (z.upper - z.lower), 0.0, 1.0)
        least = np.clip(chord_slopes(activation, z).lower, 0.0, 1.0)
        slope = np.where(convex | concave, np.where(np.isfinite(chord), chord, least), least)
        ends_off = [end - Interval.point(slope) * Interval.point(at) for end, at in zip(ends, (z.lower, z.upper), strict=True)]
        tangent = _tangent(activation, z, slope)
        lower = np.where(convex, tangent.lower, np.minimum(ends_off[0].lower, ends_off[1].lower))
        upper = np.where(concave, tangent.upper, np.maximum(ends_off[0].upper, ends_off[1].upper))
        flat = ~(upper - lower + 2 * slope * radius < values.width)  # NaN, too
    lower, upper = np.where(flat, values.lower, lower), np.where(flat, values.upper, upper)
    return np.where(flat, 0.0, slope), *_ball(lower, upper)


def difference_line(activation: Activation, z: Pair, radius: FloatArray | float = 0.0) -> Line:
    """Enclose act(z') - act(z) by a line around z' - z, a form of this radius. Shapes: those of z."""
    with np.errstate(over="ignore", invalid="ignore"):
        slopes = chord_slopes(activation, z.stored.join(z.perturbed))
        slope = 0.5 * (slopes.lower + slopes.upper)
        size = np.maximum(-z.difference.lower, z.difference.upper)
        reach = up(np.maximum(up(slopes.upper - slope), up(slope - slopes.lower)) * size)
        apart = activate(activation, z.perturbed, INTERVALS) - activate(activation, z.stored, INTERVALS)
        moved = z.difference * slopes
        centre, flat = _ball(np.maximum(apart.lower, moved.lower), np.minimum(apart.upper, moved.upper))
        level = ~(reach + slope * radius <= flat)  # NaN, too
    zero = np.zeros_like(slope)
    return np.where(level, 0.0, slope), np.where(level, centre, zero), np.where(level, flat, reach)


def _tangent(activation: Activation, z: Interval, slope: FloatArray) -> Interval:
    """Enclose act(p) - slope * p -+ abs(act'(p) - slope) * width at the p in z whose derivative is about the slope.

    A convex act is above its tangent at p, and so act(z) - slope * z above the lower end; a concave one below the upper end.
    """
    if activation is Activation.SIGMOID:
        value = 0.5 - 0.5 * np.sqrt(np.maximum(1 - 4 * slope, 0.0))
        near = np.log(value) - np.log1p(-value)
    else:
        near = -np.arctanh(np.sqrt(np.maximum(1 - slope, 0.0)))
    near = np.where(z.lower >= 0, -near, near)
    point = Interval.point(np.clip(np.where(np.isfinite(near), near, z.lower), z.lower, z.upper))
    line = Interval.point(slope)
    off = interval.magnitude(chord_slopes(activation, point) - line).upper * up(z.upper - z.lower)
    at = activate(activation, point, INTERVALS) - line * point
    return Interval(down(at.lower - up(off)), up(at.upper + up(off)))


def _ball(lower: FloatArray, upper: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return a centre and a reach that hold both ends; those of an empty range hold both, too."""
    centre = 0.5 * lower + 0.5 * upper
    return centre, up(np.maximum(np.abs(upper - centre), np.abs(centre - lower)))
