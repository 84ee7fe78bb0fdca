"""Leads: label questions, of one sigmoid or of k classes, as signs of differences of two logits.

The lead of a rival over a label is z_rival - z_label. A sigmoid with decision level l is the two-class case with
z_1 = the logit and z_0 = log(l / (1 - l)). With lowest-index ties, as `queries` states them:

    the label is a          iff  every lead over a is < 0 (rival < a) or <= 0 (rival > a)
    it changes from a to b  if   the perturbed lead of b over a is >= 0 (b < a) or > 0 (b > a)

Margins are monotone in the least gap (the lead of a over its strongest rival): sigmoid(gap) - 1/2 for k classes, and
sigmoid(z_0 + gap) - l, or l - sigmoid(z_0 - gap) for label 0, for one sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt
from flint import arb

from qrobust.exact import Exact, float_bounds, logit_bounds, sigmoid, to_exact
from qrobust.interval import FloatArray, Interval, round_fraction_down, round_fraction_up
from qrobust.network import Network, Output


@dataclass(frozen=True)
class Leads:
    """All ordered pairs (label, rival) of a network's classes, and how their leads come from the logits."""

    network: Network
    level: Fraction

    @cached_property
    def pairs(self) -> npt.NDArray[np.int64]:
        """Shape (pairs, 2): label and rival; labels outer."""
        classes = self.network.class_count
        return np.array([(a, b) for a in range(classes) for b in range(classes) if a != b])

    @cached_property
    def strict(self) -> npt.NDArray[np.bool_]:
        """Shape (pairs,): whether the rival wins only with a lead > 0 (it comes after the label), not with >= 0."""
        result: npt.NDArray[np.bool_] = self.pairs[:, 1] > self.pairs[:, 0]
        return result

    @property
    def directions(self) -> FloatArray:
        """Shape (pairs, logits): +1 for the logit that raises the lead, -1 for the one that lowers it, else 0."""
        if self.network.output is Output.SIGMOID:
            return np.array([[1.0], [-1.0]])
        identity = np.eye(self.network.class_count)
        directions: FloatArray = identity[self.pairs[:, 1]] - identity[self.pairs[:, 0]]
        return directions

    def rows(self, weight: Interval, bias: Interval) -> tuple[Interval, Interval]:
        """Fold the last layer's rows (logits, in) into one row a pair (pairs, in); two rows share no parameter."""
        if self.network.output is Output.SIGMOID:
            return _stack(weight, -weight), _stack(bias, -bias)
        return weight[self.pairs[:, 1]] - weight[self.pairs[:, 0]], bias[self.pairs[:, 1]] - bias[self.pairs[:, 0]]

    @cached_property
    def offset(self) -> Interval:
        """What is added to the folded rows, shape (pairs,): minus or plus the logit of the level for one sigmoid."""
        if self.network.output is Output.SOFTMAX:
            return Interval.point(np.zeros(len(self.pairs)))
        lower, upper = logit_bounds(self.level)
        threshold = Interval(np.array([round_fraction_down(lower)]), np.array([round_fraction_up(upper)]))
        return _stack(-threshold, threshold)

    @property
    def offset_is_exact(self) -> bool:
        """Whether the level's logit is rational: at 1/2 alone."""
        return self.network.output is Output.SOFTMAX or self.level == Fraction(1, 2)

    def offset_bounds(self, pair: int) -> tuple[Fraction, Fraction]:
        """Enclose one pair's offset between two rationals."""
        if self.network.output is Output.SOFTMAX:
            return Fraction(0), Fraction(0)
        lower, upper = logit_bounds(self.level)
        return (-upper, -lower) if self.pairs[pair, 1] == 1 else (lower, upper)

    def of_label(self, label: int) -> npt.NDArray[np.int64]:
        """Return the indices of the pairs with this label."""
        return np.flatnonzero(self.pairs[:, 0] == label)

    def margin_of_gap(self, gap: float, label: int) -> tuple[float, float]:
        """Enclose the margin that belongs to a least gap >= 0."""
        if np.isinf(gap):
            return 0.0, float(max(1 - self.level, self.level)) + 2.0**-52
        least, greatest = float_bounds(lambda: self.margin(Fraction(gap), label))
        return max(least, 0.0), max(greatest, 0.0)

    def margin(self, gap: Fraction, label: int) -> Exact:
        """Return the margin that belongs to a least gap >= 0, in the precision in force."""
        own = self.level if self.network.output is Output.SIGMOID else Fraction(1, 2)
        threshold = arb(0) if own == Fraction(1, 2) else _log_odds(own)
        side = to_exact([gap])[0]
        if self.network.output is Output.SIGMOID and label == 0:
            return arb(to_exact([own])[0]) - sigmoid(threshold - side)
        return sigmoid(threshold + side) - arb(to_exact([own])[0])

    def gap_of_margin(self, sigma: Fraction, label: int) -> tuple[Fraction, Fraction] | None:
        """Enclose the least gap that a margin of sigma needs; None if no gap is enough."""
        if sigma == 0:
            return Fraction(0), Fraction(0)
        own = self.level if self.network.output is Output.SIGMOID else Fraction(1, 2)
        low_side = self.network.output is Output.SIGMOID and label == 0
        target = own - sigma if low_side else own + sigma
        if not 0 < target < 1:
            return None
        near, far = logit_bounds(own), logit_bounds(target)
        first, second = (far, near) if not low_side else (near, far)
        return first[0] - second[1], first[1] - second[0]


def _stack(first: Interval, second: Interval) -> Interval:
    return Interval(np.concatenate([first.lower, second.lower]), np.concatenate([first.upper, second.upper]))


def _log_odds(level: Fraction) -> arb:
    odds = to_exact([level / (1 - level)])[0]
    return arb(odds).log()
