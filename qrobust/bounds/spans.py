"""Intervals that are not rounded outward, in arrays of any library: what `interval.Interval` is to proofs, to proposals.

Accepts   arrays of any library of the array API standard
Gives     the operations of intervals that the envelopes need
Property  proposes only: nothing computed from a Span may be called a bound. A proof takes Intervals, on the host
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qrobust.arrays import Array, Arrays, namespace_of
from qrobust.interval import Interval
from qrobust.network import FloatArithmetic

FLOATS = FloatArithmetic()


@dataclass(frozen=True, eq=False)
class Span:
    """An array of intervals [lower, upper] in plain floats."""

    lower: Array
    upper: Array

    @classmethod
    def on(cls, arrays: Arrays, z: Interval) -> Span:
        """Return intervals on a device."""
        return cls(arrays.to_device(z.lower), arrays.to_device(z.upper))

    @classmethod
    def point(cls, values: Array) -> Span:
        return cls(values, values)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.lower.shape)

    @property
    def middle(self) -> Array:
        return 0.5 * self.lower + 0.5 * self.upper

    def __neg__(self) -> Span:
        return Span(-self.upper, -self.lower)

    def __add__(self, other: Span) -> Span:
        return Span(self.lower + other.lower, self.upper + other.upper)

    def __sub__(self, other: Span) -> Span:
        return self + (-other)

    def __mul__(self, other: Span) -> Span:
        xp = namespace_of(self.lower)
        rows = [(a * other.lower, a * other.upper) for a in (self.lower, self.upper)]
        least, greatest = [xp.minimum(*row) for row in rows], [xp.maximum(*row) for row in rows]
        return Span(xp.minimum(*least), xp.maximum(*greatest))


class SpanArithmetic:
    """Activations over spans: all of them rise."""

    def relu(self, x: Span) -> Span:
        return Span(FLOATS.relu(x.lower), FLOATS.relu(x.upper))

    def sigmoid(self, x: Span) -> Span:
        return Span(FLOATS.sigmoid(x.lower), FLOATS.sigmoid(x.upper))

    def tanh(self, x: Span) -> Span:
        return Span(FLOATS.tanh(x.lower), FLOATS.tanh(x.upper))


SPANS: Any = SpanArithmetic()  # for `network.activate`, which asks for no more than these
