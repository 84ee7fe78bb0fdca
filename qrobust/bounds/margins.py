"""Margins of the stored network's labels, enclosed, at many inputs.

Accepts   any network; batches of points, or of intervals around them
Gives     the margin of `queries` (the distance from the decision level, or from a tie with the strongest rival)
Property  sound: the margin lies between the ends; a label that rounding hides has margin about 0 whichever it is
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from qrobust import interval
from qrobust.bounds.ibp import nominal_logits
from qrobust.exact import logit_bounds
from qrobust.interval import FloatArray, Interval, enclosed, round_fraction_down, round_fraction_up
from qrobust.network import Network, Output


def gaps(network: Network, points: FloatArray | Interval, level: Fraction) -> Interval:
    """Enclose how far the label's logit is ahead of the strongest rival's, or a sigmoid's is from the level's, at each point.

    The margin rises with it. Shapes: points (n, inputs); result (n,)
    """
    logits = nominal_logits(network, enclosed(points))
    if network.output is Output.SIGMOID:
        lower, upper = logit_bounds(level)
        own = Interval(np.array([round_fraction_down(lower)]), np.array([round_fraction_up(upper)]))
        return _size(logits[:, 0] - own)
    order = np.sort(logits.lower, axis=1), np.sort(logits.upper, axis=1)
    first, second = (Interval(order[0][:, -place], order[1][:, -place]) for place in (1, 2))
    lead = first - second
    return Interval(np.maximum(lead.lower, 0.0), np.maximum(lead.upper, 0.0))


def margins(network: Network, points: FloatArray | Interval, level: Fraction) -> Interval:
    """Enclose the margin at each point. Shapes: points (n, inputs); result (n,)."""
    if network.output is Output.SIGMOID:
        own = Interval(np.array([round_fraction_down(level)]), np.array([round_fraction_up(level)]))
        return _size(interval.sigmoid(nominal_logits(network, enclosed(points)))[:, 0] - own)
    lead = interval.sigmoid(gaps(network, points, level)) - Interval.point(np.full(len(points), 0.5))
    return Interval(np.maximum(lead.lower, 0.0), np.maximum(lead.upper, 0.0))


def _size(values: Interval) -> Interval:
    """Enclose the absolute value."""
    least = np.maximum(np.maximum(values.lower, -values.upper), 0.0)
    return Interval(least, np.maximum(np.abs(values.lower), np.abs(values.upper)))
