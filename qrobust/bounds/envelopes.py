"""Activations inside linear bounds: which multiplier to pass on, and the most that is lost by it.

Backward substitution bounds above(h) + the rest, where above(h) = rise max(h, 0) + fall min(h, 0) collects what the layers
behind want of h = act(z), by nu z + the rest, for a multiplier nu of our choice. What that costs is

    conjugate = max over z in [lower, upper] of above(act(z)) - nu z,

so every nu gives a true bound, and a good one a tight bound: CROWN's and DeepPoly's slopes are such choices.

Accepts   linear, ReLU, sigmoid, tanh; any interval of z
Gives     multipliers, and certified upper bounds of the conjugate with the z that attains it (nearly)
Property  sound for every multiplier; exact for linear and ReLU up to rounding (which `linear` accounts for), enclosed with
          outward rounding for sigmoid and tanh
Source    Zhang et al. 2018, arXiv 1811.00866 (CROWN); Singh et al. 2019, POPL (DeepPoly); Dvijotham et al. 2018,
          arXiv 1803.06567, for the dual view
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from qrobust.bounds.ibp import INTERVALS
from qrobust.interval import FloatArray, Interval
from qrobust.network import Activation, activate


class Envelope(Protocol):
    """The rules of one activation. Shapes: all (batch, n)."""

    def slopes(self, rise: FloatArray, fall: FloatArray, z: Interval, alpha: FloatArray | None) -> FloatArray:
        """Propose multipliers; `alpha` in [0, 1] tunes them where there is a choice."""

    def conjugate(
        self, rise: FloatArray, fall: FloatArray, nu: FloatArray, z: Interval
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return upper bounds of the conjugate, and (nearly) where it is attained: z and act(z)."""

    def peak(self, rise: FloatArray, fall: FloatArray, z: Interval) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the conjugate for multipliers 0: the most that above(act(z)) can be."""


class ReLU:
    """Here h >= 0, so `rise` alone counts."""

    def slopes(self, rise: FloatArray, fall: FloatArray, z: Interval, alpha: FloatArray | None) -> FloatArray:
        unstable = (z.lower < 0) & (z.upper > 0)
        chord = np.where(unstable, z.upper / np.where(unstable, z.upper - z.lower, 1.0), (z.upper > 0).astype(np.float64))
        if alpha is None:
            alpha = (chord > 0.5).astype(np.float64)
        nu: FloatArray = rise * np.where(unstable & (rise < 0), alpha, chord)
        return nu

    def conjugate(
        self, rise: FloatArray, fall: FloatArray, nu: FloatArray, z: Interval
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        low, high = np.maximum(z.lower, 0.0), np.maximum(z.upper, 0.0)
        at_lower, at_upper = rise * low - nu * z.lower, rise * high - nu * z.upper
        # Among equal ends the one nearer to the kink gives the derivative that is wanted.
        up = (at_upper > at_lower) | ((at_upper == at_lower) & (np.abs(z.upper) <= np.abs(z.lower)))
        value = np.maximum(at_lower, at_upper)
        kink = (z.lower < 0) & (z.upper > 0) & (value <= 0)
        value[kink] = 0.0
        place = np.where(up, z.upper, z.lower)
        place[kink] = 0.0
        return value, place, np.maximum(place, 0.0)

    def peak(self, rise: FloatArray, fall: FloatArray, z: Interval) -> tuple[FloatArray, FloatArray, FloatArray]:
        up = rise > 0
        place = np.where(up, z.upper, z.lower)
        h = np.maximum(place, 0.0)
        return rise * h, place, h


class Linear:
    """above(z) is convex in z (rise >= fall), so its chord is the best bound."""

    def slopes(self, rise: FloatArray, fall: FloatArray, z: Interval, alpha: FloatArray | None) -> FloatArray:
        low = np.where(z.lower < 0, fall, rise) * z.lower
        high = np.where(z.upper < 0, fall, rise) * z.upper
        width = z.upper - z.lower
        nu: FloatArray = np.where(width > 0, (high - low) / np.where(width > 0, width, 1.0), rise)
        return nu

    def conjugate(
        self, rise: FloatArray, fall: FloatArray, nu: FloatArray, z: Interval
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        at_lower = np.where(z.lower < 0, fall, rise) * z.lower - nu * z.lower
        at_upper = np.where(z.upper < 0, fall, rise) * z.upper - nu * z.upper
        up = at_upper >= at_lower
        place = np.where(up, z.upper, z.lower)
        return np.where(up, at_upper, at_lower), place, place

    def peak(self, rise: FloatArray, fall: FloatArray, z: Interval) -> tuple[FloatArray, FloatArray, FloatArray]:
        return self.conjugate(rise, fall, np.zeros_like(rise), z)


class Smooth:
    """Sigmoid and tanh: concave above 0 and convex below, each side bounded by itself.

    Where the side is concave in the sign that counts, the tangent at any point is an upper bound, and the tangent of slope
    nearly nu / coefficient is nearly exact; where it is convex the ends are.
    """

    def __init__(self, activation: Activation) -> None:
        self.activation = activation

    def slopes(self, rise: FloatArray, fall: FloatArray, z: Interval, alpha: FloatArray | None) -> FloatArray:
        h = activate(self.activation, z, INTERVALS)
        width = z.upper - z.lower
        wide = width > 1e-9
        coefficient = rise if self.activation is Activation.SIGMOID else np.where(z.lower + z.upper < 0, fall, rise)
        tangent = _derivative(self.activation, activate(self.activation, Interval.point(z.middle), INTERVALS).middle)
        chord = np.where(wide, (h.upper - h.lower) / np.where(wide, width, 1.0), tangent)
        # Concave in the sign that counts: the tangent in the middle; convex: the chord; a mixture: the chord, shifted.
        concave = ((z.lower >= 0) & (coefficient > 0)) | ((z.upper <= 0) & (coefficient < 0))
        nu: FloatArray = coefficient * np.where(concave, tangent, chord)
        return nu

    def conjugate(
        self, rise: FloatArray, fall: FloatArray, nu: FloatArray, z: Interval
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        sides = []
        for positive in (True, False):
            coefficient = rise if positive or self.activation is Activation.SIGMOID else fall  # sigmoid: h >= 0 on both sides
            low = np.maximum(z.lower, 0.0) if positive else z.lower
            high = z.upper if positive else np.minimum(z.upper, 0.0)
            empty = low > high
            low, high = np.where(empty, 0.0, low), np.where(empty, 0.0, high)
            value, place = self._side(coefficient, nu, Interval(low, high), positive)
            sides.append((np.where(empty, -np.inf, value), place))
        up = sides[0][0] >= sides[1][0]
        place = np.where(up, sides[0][1], sides[1][1])
        h = activate(self.activation, Interval.point(place), INTERVALS).middle
        return np.where(up, sides[0][0], sides[1][0]), place, h

    def peak(self, rise: FloatArray, fall: FloatArray, z: Interval) -> tuple[FloatArray, FloatArray, FloatArray]:
        return self.conjugate(rise, fall, np.zeros_like(rise), z)

    def _side(self, coefficient: FloatArray, nu: FloatArray, z: Interval, positive: bool) -> tuple[FloatArray, FloatArray]:
        """Bound coefficient act(z) - nu z over intervals on one side of 0."""
        factor, slope = Interval.point(coefficient), Interval.point(nu)
        ends = [
            (factor * activate(self.activation, Interval.point(e), INTERVALS) - slope * Interval.point(e)).upper
            for e in (z.lower, z.upper)
        ]
        value, place = np.maximum(*ends), np.where(ends[1] >= ends[0], z.upper, z.lower)
        concave = (coefficient > 0) if positive else (coefficient < 0)
        touch = np.clip(self._where_slope(nu, coefficient, positive), z.lower, z.upper)
        at = Interval.point(touch)
        h = activate(self.activation, at, INTERVALS)
        one = Interval.point(np.ones_like(touch))
        derivative = h * (one - h) if self.activation is Activation.SIGMOID else one - h * h
        lines = [
            (factor * (h + derivative * (Interval.point(e) - at)) - slope * Interval.point(e)).upper for e in (z.lower, z.upper)
        ]
        return np.where(concave, np.maximum(*lines), value), np.where(concave, touch, place)

    def _where_slope(self, nu: FloatArray, coefficient: FloatArray, positive: bool) -> FloatArray:
        """Return about where the derivative is nu / coefficient, on one side of 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.where(coefficient != 0, nu / np.where(coefficient != 0, coefficient, 1.0), 0.0)
            if self.activation is Activation.SIGMOID:
                wanted = np.clip(wanted, 1e-300, 0.25)
                h = 0.5 * (1.0 + np.sqrt(1.0 - 4.0 * wanted))
                z = np.log(h) - np.log(np.maximum(1.0 - h, 1e-300))
            else:
                wanted = np.clip(wanted, 1e-300, 1.0)
                z = np.arctanh(np.minimum(np.sqrt(1.0 - wanted), 1.0 - 2.0**-53))
        return z if positive else -z


def _derivative(activation: Activation, h: FloatArray) -> FloatArray:
    slope: FloatArray = h * (1.0 - h) if activation is Activation.SIGMOID else 1.0 - h * h
    return slope


ENVELOPES: dict[Activation, Envelope] = {
    Activation.LINEAR: Linear(),
    Activation.RELU: ReLU(),
    Activation.SIGMOID: Smooth(Activation.SIGMOID),
    Activation.TANH: Smooth(Activation.TANH),
}
