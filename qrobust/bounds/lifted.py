"""Cuts of single neurons inside linear bounds: rows that tie a ReLU's value to its on-off state and the values below it.

The row h <= inputs . h_below + slope s + offset, where s is 1 if the neuron is on and else 0, holds for every network of a box
(`Cuts`). With a weight mu >= 0 it adds mu (inputs . h_below + slope s + offset - h) to an objective, which then wants
rise - mu of h and lift = mu slope of s. What a multiplier nu of z loses is the greatest of rise h + lift s - nu z over the
hull of {z <= 0, h = s = 0} and {z = h >= 0, s = 1}, attained at an end or at the kink.

Accepts   ReLU; rows whose proof is the caller's
Gives     multipliers with their derivatives, and the conjugate with where it is attained
Property  sound for every mu >= 0 and nu; exact up to rounding, which `substitution` accounts for
Source    Zhang et al. 2022, arXiv 2208.05740 (GCP-CROWN: cuts in bound propagation); Anderson et al. 2020, Mathematical
          Programming 183 (the rows)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from qrobust.interval import FloatArray, Interval


@dataclass(frozen=True, eq=False)
class Cuts:
    """Rows of one level. Shapes: neurons, slope, offset (cuts,); inputs (cuts, below); width: the level's neurons."""

    neurons: npt.NDArray[np.intp]
    inputs: FloatArray
    slope: FloatArray
    offset: FloatArray
    width: int

    def __len__(self) -> int:
        return len(self.neurons)

    @cached_property
    def places(self) -> FloatArray:
        """1 where a row is about a neuron. Shape: (cuts, width)."""
        return np.asarray(self.neurons[:, None] == np.arange(self.width), dtype=np.float64)

    @cached_property
    def lifts(self) -> FloatArray:
        """What each row gives to the state of each neuron. Shape: (cuts, width)."""
        return self.slope[:, None] * self.places

    def size(self, below: FloatArray, here: FloatArray) -> FloatArray:
        """Bound the absolute values that a row meets. Shapes: below (below,), here (width,): of abs(h); result (cuts,)."""
        return np.asarray(here[self.neurons] + np.abs(self.inputs) @ below + np.abs(self.slope) + np.abs(self.offset))

    def restricted(self, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Cuts:
        """Return the rows about these neurons, over these inputs: the other neurons are 0."""
        kept = np.isin(self.neurons, rows)
        neurons = np.searchsorted(rows, self.neurons[kept])
        return Cuts(neurons, self.inputs[kept][:, columns], self.slope[kept], self.offset[kept], len(rows))

    def broken(self, below: FloatArray, h: FloatArray, state: FloatArray) -> FloatArray:
        """Return by how much points keep each row, below 0 where they break it. Shapes: (batch, n) each; (batch, cuts)."""
        room: FloatArray = below @ self.inputs.T + state[:, self.neurons] * self.slope + self.offset - h[:, self.neurons]
        return room


@dataclass(frozen=True)
class Weighted:
    """Cuts in use: their weights (batch, cuts), and the absolute values that each row meets (cuts,)."""

    cuts: Cuts
    weights: FloatArray
    size: FloatArray

    def take(self, index: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Weighted:
        return Weighted(self.cuts, self.weights[index], self.size)


@dataclass(frozen=True)
class Lifted:
    """A level with cuts, for a batch: what is wanted of h and s, the multipliers of z and their derivatives, the conjugate,
    and where it is attained (z, h and s). Shapes: all (batch, n)."""

    rise: FloatArray
    lift: FloatArray
    nu: FloatArray
    by_rise: FloatArray
    by_lift: FloatArray
    by_alpha: FloatArray
    lost: FloatArray
    place: FloatArray
    h: FloatArray
    state: FloatArray

    @classmethod
    def of(cls, rise: FloatArray, lift: FloatArray, z: Interval, alpha: FloatArray, beta: FloatArray) -> Lifted:
        """Choose multipliers, add beta, and bound what they lose."""
        nu, by_rise, by_lift, by_alpha = chosen(rise, lift, z, alpha)
        nu = nu + beta
        return cls(rise, lift, nu, by_rise, by_lift, by_alpha, *conjugate(rise, lift, nu, z))


def chosen(
    rise: FloatArray, lift: FloatArray, z: Interval, alpha: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Propose multipliers nu of z, with their derivatives by rise, lift and alpha.

    Between l < 0 < u the two ends lose the same at (rise u + lift) / (u - l); if that is less than what the kink loses,
    m = max(0, lift), every nu from m / -l to rise + (lift - m) / u loses m, and alpha in [0, 1] chooses
    """
    unstable, on = (z.lower < 0) & (z.upper > 0), (z.upper > 0).astype(np.float64)
    low, high = np.where(unstable, -z.lower, 1.0), np.where(unstable, z.upper, 1.0)
    width = low + high
    crossing = (rise * high + lift) / width
    kink = np.maximum(lift, 0.0)
    flat = unstable & (crossing * low < kink)
    first, last = kink / low, rise + np.minimum(lift, 0.0) / high
    nu = np.where(unstable, np.where(flat, first + alpha * (last - first), crossing), rise * on)
    by_rise = np.where(flat, alpha, np.where(unstable, high / width, on))
    by_lift = np.where(flat, np.where(lift > 0, (1.0 - alpha) / low, alpha / high), np.where(unstable, 1.0 / width, 0.0))
    return nu, by_rise, by_lift, np.where(flat, last - first, 0.0)


def conjugate(
    rise: FloatArray, lift: FloatArray, nu: FloatArray, z: Interval
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return the most that rise h + lift s - nu z can be, and where: z, h and s."""
    on, can = z.lower >= 0, z.upper > 0
    on = on & can
    at_lower = np.where(on, (rise - nu) * z.lower + lift, -nu * z.lower)
    at_upper = np.where(can, (rise - nu) * z.upper + lift, -nu * z.upper)
    value, up = np.maximum(at_lower, at_upper), at_upper > at_lower
    top = np.maximum(lift, 0.0)
    kink = can & (z.lower < 0) & (value <= top)
    value = np.where(kink, top, value)
    place = np.where(kink, 0.0, np.where(up, z.upper, z.lower))
    state = np.where(kink, lift > 0, np.where(up, can, on)).astype(np.float64)
    return value, place, np.maximum(place, 0.0), state
