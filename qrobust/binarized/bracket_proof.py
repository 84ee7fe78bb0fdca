"""Proof that a bracket's networks speak only where they are right, and the least output threshold with which they do.

Accepts   dense, convolutional and pooling networks with linear, ReLU, sigmoid, tanh; a thermometer code over a box of reals
Gives     the greatest sum of a half's output signs at any input where f does not say what the half would: with at least this
          output threshold the half is right everywhere, with a lesser one it is wrong at the witness
Method    best-first branch and bound over boxes whose sides lie on thresholds, while they hold several cells, then over parts
          of a cell. The sum is bounded over the codes that a box holds, in integers; f's lead over its closure by linear
          bounds, rounded outward. A box leaves when f is proved right on it, or its sum is at most that of a witness
Property  exact when it ends by itself: both ends are equal, the witness is replayed in exact arithmetic. Sound when a budget
          ends it: the upper end holds. As f is bounded on closed boxes, it holds for both ways to place a point on a threshold
Source    Horst and Tuy 1996, "Global Optimization", chapter IV; `bounds.linear` for the bounds of f
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.answers import Verdict
from qrobust.binarized.bracket import Bracket, Half, Side
from qrobust.binarized.thermometer import Thermometer
from qrobust.bounds.linear import pre_activations
from qrobust.bounds.stages import stored_stages
from qrobust.bounds.substitution import Above, Levels
from qrobust.bounds.untuned import untuned
from qrobust.errors import DomainError
from qrobust.exact import ExactArithmetic, decide, to_exact
from qrobust.interval import BoolArray, FloatArray, Interval, down
from qrobust.layers import IntArray
from qrobust.memory import MEMORY
from qrobust.network import Activation, FloatArithmetic, Network, Output, logits
from qrobust.search import Budget, Nodes, explore

TRIED = 64  # forecasts of witnesses that are replayed exactly in one step
KEPT = 4096  # points where f is not what a half would say, kept for training
STEPS = 64  # random points by which sides are weighed


@dataclass(frozen=True, eq=False)
class Claim:
    """What a half claims of f where it speaks: f says the class (YES), or f does not (NO).

    Each row over the logits is how far a rival is ahead of the class (YES), or the class of a rival (NO). YES asks that all
    rows are negative, NO that some row is.
    """

    network: Network
    label: int
    side: Side

    def __post_init__(self) -> None:
        if not 0 <= self.label < self.network.class_count:
            raise DomainError(f"the class is {self.label}, the network has classes 0 to {self.network.class_count - 1}")

    @cached_property
    def rows(self) -> FloatArray:
        """Shape: (rivals, logits)."""
        if self.network.output is Output.SIGMOID:
            ahead = np.array([[-1.0 if self.label == 1 else 1.0]])
        else:
            ahead = np.delete(np.eye(self.network.class_count), self.label, axis=0)
            ahead[:, self.label] = -1.0
        return ahead if self.side is Side.YES else -ahead

    def _joined(self, values: FloatArray) -> FloatArray:
        return np.asarray(values.max(axis=1) if self.side is Side.YES else values.min(axis=1))

    def excess(self, points: FloatArray) -> FloatArray:
        """Return numbers that are negative where the claim holds, in floating point. Shapes: (batch, inputs); (batch,)."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self._joined(logits(self.network, points, FloatArithmetic()) @ self.rows.T)

    def holds_on(self, boxes: Interval) -> BoolArray:
        """Whether the claim is proved at every point of closed boxes. Shapes: (batch, inputs); (batch,)."""
        count, rivals = len(boxes), len(self.rows)
        levels = Levels(Activation.LINEAR, stored_stages(self.network, MEMORY))
        bounds = pre_activations(levels, boxes)
        sizes = levels.sizes(bounds)
        each = np.repeat(np.arange(count), rivals)
        nu = np.tile(self.rows, (count, 1))
        size = sizes[-1] if len(sizes[-1]) == 1 else sizes[-1][each]
        below = None  # of a last layer, which is dense
        above = Above.of_rows(levels.stages[-1], nu, np.zeros(len(nu)), size, below)
        upper = untuned(levels, levels.top, above, bounds, each, sizes)
        return np.asarray(self._joined(upper.reshape(count, rivals)) < 0)

    def fails_at(self, point: FloatArray) -> bool:
        """Whether the claim fails at a point, in exact arithmetic; false where MOST_BITS bits do not settle it."""
        arithmetic = ExactArithmetic()
        x = to_exact([Fraction(value) for value in point.tolist()])
        signs = [
            decide(lambda row=row: row @ logits(self.network, x, arithmetic))  # type: ignore[misc]
            for row in to_exact(self.rows)
        ]
        if self.side is Side.YES:
            return any(sign is not None and sign >= 0 for sign in signs)
        return all(sign is not None and sign >= 0 for sign in signs)

    def __str__(self) -> str:
        verb = "is" if self.side is Side.YES else "is not"
        return f"{self.network.name or 'f'} {verb} {self.network.class_name(self.label)}"


class Sums:
    """Integer bounds of a half's output sum over boxes of codes.

    The first layer's sums are exact for each neuron: over the codes from a to b of a feature its part runs through prefix sums.
    """

    def __init__(self, half: Half, code: Thermometer) -> None:
        self._thresholds = [np.ceil(-bias).astype(np.int64) for _, bias in half.layers]
        weights = [weight for weight, _ in half.layers] + [half.output[None]]
        self._later = weights[1:]
        self._parts = []
        start = 0
        for t in code.thresholds:
            part = weights[0][:, start : start + t.size]
            sums = np.concatenate([np.zeros((len(part), 1), dtype=np.int64), np.cumsum(part, axis=1)], axis=1)
            self._parts.append(_ranges(sums.T))
            start += t.size

    def bounds(self, low: IntArray, high: IntArray) -> tuple[IntArray, IntArray]:
        """Return the least and the greatest sum. Shapes: low, high (batch, features); results (batch,)."""
        pairs = [(least[low[:, i], high[:, i]], most[low[:, i], high[:, i]]) for i, (least, most) in enumerate(self._parts)]
        lower, upper = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
        for weight, threshold in zip(self._later, self._thresholds, strict=True):
            first, last = np.where(lower >= threshold, 1, -1), np.where(upper >= threshold, 1, -1)
            gain, loss = np.maximum(weight, 0).T, np.minimum(weight, 0).T
            lower, upper = first @ gain + last @ loss, last @ gain + first @ loss
        return np.asarray(lower)[:, 0], np.asarray(upper)[:, 0]

    def speaking(self, threshold: int) -> tuple[IntArray, IntArray] | None:
        """Return boxes of codes that hold all codes with greater sums, one for each sign; None where not one sign decides.

        With one layer and a threshold of the least sum, one sign must be the output's. Shapes: low, high (signs, features)
        """
        if len(self._later) != 1 or threshold != -int(np.abs(self._later[0]).sum()):
            return None
        output = self._later[0][0]
        used = np.flatnonzero(output)
        sign, limit = output[used], self._thresholds[0][used]
        parts = [np.array([most[c, c, used] for c in range(len(most))]) for _, most in self._parts]  # (codes, signs) each
        reach = [np.where(sign > 0, part, -part) for part in parts]
        need = np.where(sign > 0, limit, 1 - limit)
        total = np.sum([part.max(axis=0) for part in reach], axis=0)
        can = [total - part.max(axis=0) + part >= need for part in reach]
        fires = np.logical_and.reduce([own.any(axis=0) for own in can])
        low = np.stack([own.argmax(axis=0) for own in can], axis=1)
        high = np.stack([len(own) - 1 - own[::-1].argmax(axis=0) for own in can], axis=1)
        return low[fires].astype(np.int64), high[fires].astype(np.int64)

    def at(self, codes: IntArray) -> IntArray:
        """Return the sums at codes. Shapes: (batch, features); (batch,)."""
        return self.bounds(codes, codes)[1]


def _ranges(sums: IntArray) -> tuple[IntArray, IntArray]:
    """Return the least and the greatest of sums[a..b] for all a <= b.

    Shapes    sums (codes, neurons); results (codes, codes, neurons)
    """
    count = len(sums)
    least = np.repeat(sums[:, None], count, axis=1)
    most = least.copy()
    for b in range(1, count):
        least[:b, b] = np.minimum(least[:b, b - 1], sums[b])
        most[:b, b] = np.maximum(most[:b, b - 1], sums[b])
    return least, most


@dataclass(frozen=True, eq=False)
class GreatestWrongSum:
    """Both ends of the greatest sum where the claim fails; -inf where it fails nowhere.

    The witness, if any, has the sum `lower`, replayed exactly; `wrong` are points (n, inputs) where f fails the claim as
    floats say, with sums that were the greatest yet: they are for training.
    """

    claim: Claim
    lower: float
    upper: float
    witness: FloatArray | None
    wrong: FloatArray
    boxes: int
    seconds: float
    reason: str

    @property
    def threshold(self) -> int | None:
        """The least output threshold that is proved; None if the claim holds everywhere, whatever the half says."""
        return None if self.upper == -np.inf else int(self.upper)


class _WrongTree:
    """The tree of `explore`: boxes of inputs, with the codes of their inside points."""

    def __init__(self, claim: Claim, sums: Sums, code: Thermometer, floor: float) -> None:
        self.claim, self.sums, self.code = claim, sums, code
        self.best, self.point, self.floor = -np.inf, None, floor
        self.wrong: list[FloatArray] = []
        self.scale = _influence(claim, code)

    def roots(self) -> Nodes:
        boxes = Interval(self.code.box.lower[None], self.code.box.upper[None])
        found = None if self.floor == -np.inf else self.sums.speaking(int(self.floor))
        if found is not None and len(found[0]):
            boxes = Interval(self.code.ends(found[0]).lower, self.code.ends(found[1]).upper)
        return self._bounded(boxes, np.full(len(boxes), np.inf))

    def split(self, nodes: Nodes) -> Nodes | None:
        boxes = Interval(*nodes.parts)
        children = self._parts(boxes)
        return None if children is None else self._bounded(children, np.concatenate([nodes.upper, nodes.upper]))

    def _codes(self, boxes: Interval) -> tuple[IntArray, IntArray]:
        low = self.code.codes(boxes.lower)
        return low, np.maximum(low, self.code.codes_below(boxes.upper))

    def _parts(self, boxes: Interval) -> Interval | None:
        """Halve each box: at a threshold while it holds several cells, else in the middle of its most influential side."""
        low, high = self._codes(boxes)
        many = high > low
        weight = boxes.width * self.scale + np.finfo(np.float64).tiny
        weight = np.where(many | ~many.any(axis=1, keepdims=True), weight, -1.0)
        axis, rows = weight.argmax(axis=1), np.arange(len(boxes))
        place = boxes.middle[rows, axis]
        for i, t in enumerate(self.code.thresholds):
            own = (axis == i) & many[rows, axis]
            place[own] = t[(low[own, i] + high[own, i] - 1) // 2]
        first, last = boxes.lower[rows, axis], boxes.upper[rows, axis]
        if not ((first < place) & (place < last)).all():
            return None
        upper, lower = boxes.upper.copy(), boxes.lower.copy()
        upper[rows, axis] = lower[rows, axis] = place
        return Interval(np.concatenate([boxes.lower, lower]), np.concatenate([upper, boxes.upper]))

    def _bounded(self, boxes: Interval, parents: FloatArray) -> Nodes:
        low, high = self._codes(boxes)
        upper = np.minimum(self.sums.bounds(low, high)[1].astype(np.float64), parents)
        upper[upper <= self.floor] = -np.inf
        open_ = np.flatnonzero(upper > self.best)
        if len(open_):
            some = boxes[open_]
            upper[open_[self.claim.holds_on(some)]] = -np.inf
            left = open_[upper[open_] > -np.inf]
            self._look(boxes[left])
        return Nodes(upper, (boxes.lower, boxes.upper))

    def _look(self, boxes: Interval) -> None:
        """Try the middles of boxes, and the corners where the claim's excess is greatest as the middle's slopes say."""
        if not len(boxes):
            return
        ends = np.where(self.code.codes(boxes.upper) > self._codes(boxes)[1], down(boxes.upper), boxes.upper)
        ends = np.maximum(ends, boxes.lower)
        middle, corner = np.minimum(boxes.middle, ends), boxes.lower.copy()
        for i in range(boxes.shape[1]):
            sides = middle.copy(), middle.copy()
            sides[0][:, i], sides[1][:, i] = boxes.lower[:, i], ends[:, i]
            rises = self.claim.excess(sides[1]) > self.claim.excess(sides[0])
            corner[rises, i] = ends[rises, i]
        points = np.concatenate([middle, corner])
        points = points[self.claim.excess(points) >= 0]
        sums = self.sums.at(self.code.codes(points))
        better = np.flatnonzero(sums > max(self.best, self.floor))
        if not len(better):
            return
        order = better[np.argsort(-sums[better], kind="stable")]
        self.wrong.append(points[order[:TRIED]])
        for place in order[:TRIED].tolist():
            if self.claim.fails_at(points[place]):
                self.best, self.point = float(sums[place]), points[place]
                return


def _influence(claim: Claim, code: Thermometer) -> FloatArray:
    """Return how far the excess moves along each side, over its width, from random points. Shape: (features,)."""
    lower, upper = code.box.lower, code.box.upper
    points = lower + np.random.default_rng(0).random((STEPS, len(lower))) * (upper - lower)
    found = np.zeros(len(lower))
    for i in range(len(lower)):
        first, last = points.copy(), points.copy()
        first[:, i], last[:, i] = lower[i], upper[i]
        found[i] = np.abs(claim.excess(last) - claim.excess(first)).mean()
    found = np.maximum(found, 1e-3 * found.max(initial=1e-300))
    return np.asarray(found / np.where(upper > lower, upper - lower, 1.0))


def greatest_wrong_sum(
    claim: Claim, half: Half, code: Thermometer, budget: Budget, *, floor: float = -np.inf
) -> GreatestWrongSum:
    """Enclose the greatest sum at an input where the claim fails; sums of at most `floor` are not looked at.

    Raises    ResourceError if f's matrices do not fit the budget of memory
    """
    started = time.monotonic()
    stored_stages(claim.network, budget.memory)
    tree = _WrongTree(claim, Sums(half, code), code, floor)
    outcome = explore(tree, budget, tolerance=0.0, deadline=started + budget.seconds)
    points: npt.NDArray[Any] = np.concatenate(tree.wrong)[-KEPT:] if tree.wrong else np.zeros((0, code.box.inputs))
    seconds = time.monotonic() - started
    return GreatestWrongSum(claim, outcome.best, outcome.upper, outcome.point, points, outcome.boxes, seconds, outcome.reason)


@dataclass(frozen=True, eq=False)
class Implication:
    """Whether a half of a bracket speaks only where it is right: ROBUST, VIOLATED with a witness, or UNKNOWN."""

    side: Side
    verdict: Verdict
    text: str
    witness: FloatArray | None
    boxes: int
    seconds: float
    reason: str = field(default="")

    def __str__(self) -> str:
        return f"{self.side.word}: {self.text}"

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON values."""
        return {
            "side": self.side.word,
            "verdict": "PROVED" if self.verdict is Verdict.ROBUST else self.verdict.value,
            "assurance": None if self.verdict is Verdict.UNKNOWN else self._assurance,
            "counterexample": None if self.witness is None else self.witness.tolist(),
            "boxes": self.boxes,
            "seconds": self.seconds,
            "reason": self.reason or None,
        }

    @property
    def _assurance(self) -> str:
        return "ROUNDED" if self.verdict is Verdict.ROBUST else "CHECKED"


def prove(network: Network, bracket: Bracket, side: Side, budget: Budget) -> Implication:
    """Decide whether one half of a bracket is right wherever it speaks, anew. Raises DomainError (another network)."""
    bracket.check_belongs(network)
    claim, half = Claim(network, bracket.label, side), half_of(bracket, side)
    found = greatest_wrong_sum(claim, half, bracket.code, budget, floor=half.threshold)
    facts = (found.boxes, found.seconds)
    if found.lower > half.threshold:
        text = f"speaks at an input where it is not so that {claim}"
        return Implication(side, Verdict.VIOLATED, text, found.witness, *facts)
    if found.upper <= half.threshold:
        text = f"speaks only where {claim}, anywhere in {bracket.code.box}"
        return Implication(side, Verdict.ROBUST, text, None, *facts)
    return Implication(side, Verdict.UNKNOWN, found.reason, None, *facts, found.reason)


def half_of(bracket: Bracket, side: Side) -> Half:
    """Return one of the two networks, with integer thresholds, and whatever else its rows read."""
    folded = bracket.folded
    layers = tuple((layer.matrix.toarray(), -layer.threshold.astype(np.float64)) for layer in folded.layers)
    output = folded.matrix.toarray()[side.value]
    return Half(layers, output, int(np.floor(-float(folded.bias[side.value])))).pruned()
