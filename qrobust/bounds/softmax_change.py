"""The greatest change of the confidences of k classes at points, for one hidden layer and many points at once.

Accepts   dense networks with one hidden layer and several classes; any parameter box; batches of points, or of intervals around
          them (see `local`)
Gives     enclosures of the greatest change of any confidence (equation 11)
Method    The hidden values reach exactly a box, and no two rows of the last layer share a parameter. At a hidden value h the
          confidence of a class is greatest with its own logit at its upper end and its rivals' at their lower ends, which are
          concave and convex in each h_i: between the ends of h_i each is on the safe side of its chord. So the least and
          the greatest odds of the rivals are bounded by `odds`; what they propose is evaluated in intervals at the exact ends
          of the parameters, which is the lower end of the change
Property  sound; the ends meet, up to rounding, where no hidden value changes sign and `odds` closes
Source    THEORY.md, section 3
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qrobust import interval
from qrobust.bounds import odds
from qrobust.bounds.ibp import nominal_logits
from qrobust.bounds.local import CHUNK, hidden_reach
from qrobust.bounds.odds import Odds
from qrobust.domains import Bounds, LayerBox, ParameterBox
from qrobust.interval import Ends, FloatArray, Interval, down, enclosed, up
from qrobust.memory import MEMORY, Part, at_a_time
from qrobust.network import Network, Output

POINT_ARRAYS = 24 + 5 * odds.MOST_PARTS  # float64 arrays over classes and hidden neurons that one point takes


def why_not(network: Network) -> str | None:
    """Return None if the change can be bounded, else the reason."""
    if not network.is_dense or len(network.hidden_layers) != 1 or network.output is not Output.SOFTMAX:
        return "the change of several confidences is bounded for dense networks with one hidden layer"
    return None


def point_bytes(network: Network) -> int:
    """Bound what one point takes, in bytes."""
    return 8 * POINT_ARRAYS * network.class_count * (network.inputs + network.hidden_layers[0].outputs + 4)


def greatest_changes(
    network: Network, parameters: ParameterBox, points: FloatArray | Interval, memory: int = MEMORY
) -> Interval:
    """Enclose max over p and the classes c of abs(f_p0(x)_c - f_p(x)_c) at each point.

    Shapes    points (n, inputs); result (n,)
    """
    step = at_a_time(point_bytes(network), memory, Part.INPUTS, "one point of several classes", CHUNK)
    x = enclosed(points)
    with np.errstate(over="ignore", invalid="ignore"):
        parts = [_changes(_Hidden.at(network, parameters, x[i : i + step])) for i in range(0, len(x), step)]
    return Interval(np.concatenate([p.lower for p in parts]), np.concatenate([p.upper for p in parts]))


@dataclass(frozen=True, eq=False)
class _Hidden:
    """What points make of the hidden layer: the box that its values reach, from outside and from inside, and the last layer.

    Shapes    outer, inner (batch, n); before (batch, k), the stored confidences; ends: the products of the last layer's
              weights with the lower and the upper hidden values, (batch, k, n)
    """

    outer: Interval
    inner: Ends
    before: Interval
    ends: tuple[Interval, Interval]
    last: LayerBox

    @classmethod
    def at(cls, network: Network, parameters: ParameterBox, x: Interval) -> _Hidden:
        outer, inner = hidden_reach(network, parameters, x)
        last = parameters.layers[-1]
        before = interval.softmax(nominal_logits(network, x))
        low, high = (last.weight.interval[None] * Interval.point(h[:, None, :]) for h in (outer.lower, outer.upper))
        return cls(outer, inner, before, (low, high), last)

    def rising(self, label: int, rivals: list[int]) -> Odds:
        """Odds below the rivals' least: rounded down, with every value between the chords' ends."""
        low, high = (down(end.lower[:, rivals] - end.upper[:, [label]]) for end in self.ends)
        bias = down(self.last.bias.interval.lower[rivals] - self.last.bias.interval.upper[label])
        return Odds(down(interval.total(Interval.point(low)).lower + bias), down(high - low))

    def falling(self, label: int, rivals: list[int]) -> Odds:
        """Odds above the rivals' greatest, rounded up."""
        low, high = (up(end.upper[:, rivals] - end.lower[:, [label]]) for end in self.ends)
        bias = up(self.last.bias.interval.upper[rivals] - self.last.bias.interval.lower[label])
        return Odds(up(interval.total(Interval.point(low)).upper + bias), up(high - low))

    def attained(self, t: FloatArray) -> tuple[Interval, Interval]:
        """Enclose the least and the greatest logits at hidden values that some parameters reach. Shapes: (batch, k) both."""
        inside = self.inner.least + t * (self.inner.greatest - self.inner.least)
        inside = np.minimum(np.maximum(inside, self.inner.least), self.inner.greatest)
        surely = self.inner.least <= self.inner.greatest  # else the range is as narrow as its rounding
        h = Interval(np.where(surely, inside, self.outer.lower), np.where(surely, inside, self.outer.upper))
        return ends_at(self.last, h)


def ends_at(box: LayerBox, h: Interval) -> tuple[Interval, Interval]:
    """Enclose the least and the greatest values of a layer's rows over its box, at each h.

    Shapes    h (batch, n); results (batch, out)
    """
    x = _beside(*(Interval(part(h.lower, 0.0), part(h.upper, 0.0)) for part in (np.maximum, np.minimum)))
    (low, high), bias = _exact_ends(box.weight), _exact_ends(box.bias)
    return interval.affine(_beside(low, high), x, bias[0]), interval.affine(_beside(high, low), x, bias[1])


def _exact_ends(bounds: Bounds) -> tuple[Interval, Interval]:
    """Enclose the exact lower and upper ends of parameters."""
    low, high = ((end.round_down(), end.round_up()) for end in (bounds.lower, bounds.upper))
    return Interval(*low), Interval(*high)


def _beside(first: Interval, second: Interval) -> Interval:
    pairs = (first.lower, second.lower), (first.upper, second.upper)
    return Interval(*(np.concatenate(pair, axis=1) for pair in pairs))


def _changes(hidden: _Hidden) -> Interval:
    points, classes = hidden.before.shape
    lower, upper = np.zeros(points), np.zeros(points)
    for label in range(classes):
        rivals = [j for j in range(classes) if j != label]
        before = hidden.before[:, label]
        t, least = odds.least(hidden.rising(label, rivals))
        logits = hidden.attained(t)
        after = confidence(logits[0][:, rivals] - logits[1][:, [label]])
        lower = np.maximum(lower, down(after.lower - before.upper))
        upper = np.maximum(upper, up(np.minimum(up(1 / down(1 + least)), 1.0) - before.lower))
        t, greatest = odds.greatest(hidden.falling(label, rivals))
        logits = hidden.attained(t)
        after = confidence(logits[1][:, rivals] - logits[0][:, [label]])
        lower = np.maximum(lower, down(before.lower - after.upper))
        upper = np.maximum(upper, up(before.upper - np.maximum(down(1 / up(1 + greatest)), 0.0)))
    return Interval(lower, np.minimum(upper, 1.0))


def confidence(leads: Interval) -> Interval:
    """Enclose 1 / (1 + the sum of exp of the rivals' leads). Shapes: leads (batch, rivals); result (batch,)."""
    whole = interval.total(interval.exp(leads))
    lower, upper = down(1 / up(1 + whole.upper)), up(1 / down(1 + whole.lower))
    return Interval(np.clip(lower, 0.0, 1.0), np.clip(upper, 0.0, 1.0))
