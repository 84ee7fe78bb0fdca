"""Activations inside linear bounds: which multiplier to pass on, and the most that is lost by it.

Backward substitution bounds above(h) + the rest, where above(h) = rise max(h, 0) + fall min(h, 0) collects what the layers
behind want of h = act(z), by nu z + the rest, for a multiplier nu of our choice. What that costs is

    conjugate = max over z in [lower, upper] of above(act(z)) - nu z,

so every nu gives a true bound, and a good one a tight bound: CROWN's and DeepPoly's slopes are such choices.

Accepts   linear, ReLU, sigmoid, tanh; any interval of z; for proposals Spans, of any library's arrays
Gives     multipliers, and certified upper bounds of the conjugate with the z that attains it (nearly)
Property  over Intervals sound for every multiplier; exact for linear and ReLU up to rounding (which `linear` accounts for),
          enclosed with outward rounding for sigmoid and tanh. Over Spans a forecast
Source    Zhang et al. 2018, arXiv 1811.00866 (CROWN); Singh et al. 2019, POPL (DeepPoly); Dvijotham et al. 2018,
          arXiv 1803.06567, for the dual view
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from qrobust.arrays import Array, namespace_of
from qrobust.bounds.ibp import INTERVALS
from qrobust.bounds.spans import SPANS, Span
from qrobust.interval import Interval
from qrobust.network import Activation, activate


class Envelope(Protocol):
    """The rules of one activation. Shapes: all (batch, n)."""

    def slopes(self, rise: Array, fall: Array, z: Interval | Span, alpha: Array | None) -> Array:
        """Propose multipliers; `alpha` in [0, 1] tunes them where there is a choice."""

    def conjugate(self, rise: Array, fall: Array, nu: Array, z: Interval | Span) -> tuple[Array, Array, Array]:
        """Return upper bounds of the conjugate, and (nearly) where it is attained: z and act(z)."""

    def peak(self, rise: Array, fall: Array, z: Interval | Span) -> tuple[Array, Array, Array]:
        """Return the conjugate for multipliers 0: the most that above(act(z)) can be."""


class ReLU:
    """Here h >= 0, so `rise` alone counts."""

    def slopes(self, rise: Array, fall: Array, z: Interval | Span, alpha: Array | None) -> Array:
        xp = namespace_of(rise)
        unstable = (z.lower < 0) & (z.upper > 0)
        on = xp.asarray(z.upper > 0, dtype=rise.dtype)
        chord = xp.where(unstable, z.upper / xp.where(unstable, z.upper - z.lower, 1.0), on)
        if alpha is None:
            alpha = xp.asarray(chord > 0.5, dtype=rise.dtype)
        nu: Array = rise * xp.where(unstable & (rise < 0), alpha, chord)
        return nu

    def conjugate(self, rise: Array, fall: Array, nu: Array, z: Interval | Span) -> tuple[Array, Array, Array]:
        xp = namespace_of(rise)
        low, high = xp.maximum(z.lower, 0.0), xp.maximum(z.upper, 0.0)
        at_lower, at_upper = rise * low - nu * z.lower, rise * high - nu * z.upper
        # Among equal ends the one nearer to the kink gives the derivative that is wanted.
        up = (at_upper > at_lower) | ((at_upper == at_lower) & (xp.abs(z.upper) <= xp.abs(z.lower)))
        value = xp.maximum(at_lower, at_upper)
        kink = (z.lower < 0) & (z.upper > 0) & (value <= 0)
        place = xp.where(kink, 0.0, xp.where(up, z.upper, z.lower))
        return xp.where(kink, 0.0, value), place, xp.maximum(place, 0.0)

    def peak(self, rise: Array, fall: Array, z: Interval | Span) -> tuple[Array, Array, Array]:
        xp = namespace_of(rise)
        up = rise > 0
        place = xp.where(up, z.upper, z.lower)
        h = xp.maximum(place, 0.0)
        return rise * h, place, h


class Linear:
    """above(z) is convex in z (rise >= fall), so its chord is the best bound."""

    def slopes(self, rise: Array, fall: Array, z: Interval | Span, alpha: Array | None) -> Array:
        xp = namespace_of(rise)
        low = xp.where(z.lower < 0, fall, rise) * z.lower
        high = xp.where(z.upper < 0, fall, rise) * z.upper
        width = z.upper - z.lower
        nu: Array = xp.where(width > 0, (high - low) / xp.where(width > 0, width, 1.0), rise)
        return nu

    def conjugate(self, rise: Array, fall: Array, nu: Array, z: Interval | Span) -> tuple[Array, Array, Array]:
        xp = namespace_of(rise)
        at_lower = xp.where(z.lower < 0, fall, rise) * z.lower - nu * z.lower
        at_upper = xp.where(z.upper < 0, fall, rise) * z.upper - nu * z.upper
        up = at_upper >= at_lower
        place = xp.where(up, z.upper, z.lower)
        return xp.maximum(at_lower, at_upper), place, place  # which passes a NaN on

    def peak(self, rise: Array, fall: Array, z: Interval | Span) -> tuple[Array, Array, Array]:
        xp = namespace_of(rise)
        return self.conjugate(rise, fall, xp.zeros_like(rise), z)


class Smooth:
    """Sigmoid and tanh: concave above 0 and convex below, each side bounded by itself.

    Where the side is concave in the sign that counts, the tangent at any point is an upper bound, and the tangent of slope
    nearly nu / coefficient is nearly exact; where it is convex the ends are.
    """

    def __init__(self, activation: Activation) -> None:
        self.activation = activation

    def slopes(self, rise: Array, fall: Array, z: Interval | Span, alpha: Array | None) -> Array:
        xp = namespace_of(rise)
        h = activate(self.activation, z, _arithmetic(z))
        width = z.upper - z.lower
        wide = width > 1e-9
        coefficient = rise if self.activation is Activation.SIGMOID else xp.where(z.lower + z.upper < 0, fall, rise)
        tangent = _derivative(self.activation, activate(self.activation, type(z).point(z.middle), _arithmetic(z)).middle)
        chord = xp.where(wide, (h.upper - h.lower) / xp.where(wide, width, 1.0), tangent)
        # Concave in the sign that counts: the tangent in the middle; convex: the chord; a mixture: the chord, shifted.
        concave = ((z.lower >= 0) & (coefficient > 0)) | ((z.upper <= 0) & (coefficient < 0))
        nu: Array = coefficient * xp.where(concave, tangent, chord)
        return xp.where(xp.isnan(nu), 0.0, nu)  # of numbers that overflowed: any multiplier is sound, but it must be one

    def conjugate(self, rise: Array, fall: Array, nu: Array, z: Interval | Span) -> tuple[Array, Array, Array]:
        xp = namespace_of(rise)
        sides = []
        for positive in (True, False):
            coefficient = rise if positive or self.activation is Activation.SIGMOID else fall  # sigmoid: h >= 0 on both sides
            low = xp.maximum(z.lower, 0.0) if positive else z.lower
            high = z.upper if positive else xp.minimum(z.upper, 0.0)
            empty = low > high
            low, high = xp.where(empty, 0.0, low), xp.where(empty, 0.0, high)
            value, place = self._side(coefficient, nu, type(z)(low, high), positive)
            sides.append((xp.where(empty, -xp.inf, value), place))
        up = sides[0][0] >= sides[1][0]
        place = xp.where(up, sides[0][1], sides[1][1])
        h = activate(self.activation, type(z).point(place), _arithmetic(z)).middle
        return xp.maximum(sides[0][0], sides[1][0]), place, h

    def peak(self, rise: Array, fall: Array, z: Interval | Span) -> tuple[Array, Array, Array]:
        xp = namespace_of(rise)
        return self.conjugate(rise, fall, xp.zeros_like(rise), z)

    def _side(self, coefficient: Array, nu: Array, z: Interval | Span, positive: bool) -> tuple[Array, Array]:
        """Bound coefficient act(z) - nu z over intervals on one side of 0."""
        xp = namespace_of(nu)
        kind: Any = type(z)
        factor, slope = kind.point(coefficient), kind.point(nu)
        ends = [
            (factor * activate(self.activation, kind.point(e), _arithmetic(z)) - slope * kind.point(e)).upper
            for e in (z.lower, z.upper)
        ]
        value, place = xp.maximum(*ends), xp.where(ends[1] >= ends[0], z.upper, z.lower)
        concave = (coefficient > 0) if positive else (coefficient < 0)
        touch = xp.clip(self._where_slope(nu, coefficient, positive), z.lower, z.upper)
        at = kind.point(touch)
        h = activate(self.activation, at, _arithmetic(z))
        one = kind.point(xp.ones_like(touch))
        derivative = h * (one - h) if self.activation is Activation.SIGMOID else one - h * h
        lines = [(factor * (h + derivative * (kind.point(e) - at)) - slope * kind.point(e)).upper for e in (z.lower, z.upper)]
        return xp.where(concave, xp.maximum(*lines), value), xp.where(concave, touch, place)

    def _where_slope(self, nu: Array, coefficient: Array, positive: bool) -> Array:
        """Return about where the derivative is nu / coefficient, on one side of 0."""
        xp = namespace_of(nu)
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = xp.where(coefficient != 0, nu / xp.where(coefficient != 0, coefficient, 1.0), 0.0)
            if self.activation is Activation.SIGMOID:
                wanted = xp.clip(wanted, 1e-300, 0.25)
                h = 0.5 * (1.0 + xp.sqrt(1.0 - 4.0 * wanted))
                z = xp.log(h) - xp.log(xp.maximum(1.0 - h, 1e-300))
            else:
                wanted = xp.clip(wanted, 1e-300, 1.0)
                z = xp.atanh(xp.minimum(xp.sqrt(1.0 - wanted), 1.0 - 2.0**-53))
        return z if positive else -z


def _arithmetic(z: Interval | Span) -> Any:
    return INTERVALS if isinstance(z, Interval) else SPANS


def _derivative(activation: Activation, h: Array) -> Array:
    slope: Array = h * (1.0 - h) if activation is Activation.SIGMOID else 1.0 - h * h
    return slope


ENVELOPES: dict[Activation, Envelope] = {
    Activation.LINEAR: Linear(),
    Activation.RELU: ReLU(),
    Activation.SIGMOID: Smooth(Activation.SIGMOID),
    Activation.TANH: Smooth(Activation.TANH),
}
