"""Linear bounds (CROWN, DeepPoly, alpha-CROWN) of all pre-activations and of rows over the logits.

Accepts   `stages`; the range of the first level; linear, ReLU, sigmoid, tanh; batches
Gives     certified upper bounds of linear objectives of any level's pre-activations, and all pre-activation bounds
Method    `substitution`, level by level. Any multipliers give a true bound, so alpha, the lower slopes of unstable ReLUs, are
          tuned by projected gradients; untuned bounds take the short way of `untuned`
Property  sound, not complete; rounding as in `substitution`. Any array library may do the tuning; the bounds that count are
          computed from what it proposes by NumPy, on the host
Source    Zhang et al. 2018, arXiv 1811.00866; Xu et al. 2021, arXiv 2011.13824 (alpha)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qrobust.arrays import Array, Arrays, namespace_of
from qrobust.bounds.ibp import INTERVALS
from qrobust.bounds.spans import Span
from qrobust.bounds.stages import interval_step
from qrobust.bounds.substitution import Above, Levels, Substitution, backward, derivatives, short
from qrobust.bounds.untuned import first_slopes, of_boxes, untuned
from qrobust.errors import EnclosureError
from qrobust.interval import BoolArray, FloatArray, Interval
from qrobust.network import Activation, activate
from qrobust.search import Budget

AT_ONCE = 2**16  # numbers in one array over objectives and neurons: what untuned bounds work on stays in the cache
DEFAULT = Budget()


@dataclass(frozen=True)
class Tuning:
    """How multipliers are tuned: projected Adam steps, the first of `rate`, each `decay` times the one before."""

    steps: int = 12
    rate: float = 0.3
    decay: float = 0.95


class Adam:
    """Adam (Kingma, Ba 2015) on one array."""

    def __init__(self, like: Array) -> None:
        self.xp = namespace_of(like)
        self.mean, self.square, self.count = self.xp.zeros_like(like), self.xp.zeros_like(like), 0

    def take(self, mask: npt.NDArray[np.bool_]) -> Adam:
        """Return the state of some rows."""
        part = copy.copy(self)
        part.mean, part.square = self.mean[mask], self.square[mask]
        return part

    def step(self, slope: Array) -> Array:
        """Return the direction of steepest ascent, of size about 1."""
        self.count += 1
        slope = self.xp.where(self.xp.isfinite(slope), slope, 0.0)  # where numbers overflow nothing is to be learnt
        self.mean = 0.9 * self.mean + 0.1 * slope
        self.square = 0.999 * self.square + 0.001 * slope * slope
        direction: Array = (self.mean / (1 - 0.9**self.count)) / (self.xp.sqrt(self.square / (1 - 0.999**self.count)) + 1e-12)
        return direction


def tuned(
    levels: Levels,
    level: int,
    above: Above,
    bounds: Sequence[Interval],
    sizes: Sequence[FloatArray],
    tuning: Tuning,
    kept: list[FloatArray] | None = None,
    arrays: Arrays | None = None,
) -> FloatArray:
    """Return the least of the certified bounds that tuning alpha meets; with `arrays` the device tunes, and its best counts.

    `kept`, arrays of the levels' shapes, gets the multipliers that gave it. Shapes as `backward`; result (batch,)
    """
    alpha = [first_alpha(z, len(above.value)) for z in bounds[:level]]
    if arrays is not None and tuning.steps:
        alpha, tuning = proposed(levels, level, above, bounds, tuning, alpha, arrays), Tuning(0)
    best = np.full(len(above.value), np.inf)
    for _, found in ascent(levels, level, above, bounds, sizes, tuning, alpha):
        if kept is not None:
            for old, step in zip(kept, found.steps, strict=True):
                old[found.upper < best] = step.nu[found.upper < best]
        best = np.minimum(best, found.upper)
    return best


def ascent(
    levels: Levels,
    level: int,
    above: Above,
    bounds: Sequence[Interval] | Sequence[Span],
    sizes: Sequence[Array],
    tuning: Tuning,
    alpha: list[Array],
) -> Iterator[tuple[list[Array], Substitution]]:
    """Yield alpha and what it gives, from the alpha that is given on, step by step. Shapes as `backward`."""
    adams = [Adam(a) for a in alpha]
    rate = tuning.rate
    for count in range(tuning.steps + 1):
        found = backward(levels, level, above, bounds, sizes, alpha=alpha)
        yield alpha, found
        if count == tuning.steps:
            break
        slopes = derivatives(levels, level, found.steps, bounds).alpha
        moved = [a - rate * adam.step(slope) for a, adam, slope in zip(alpha[1:], adams[1:], slopes[1:], strict=True)]
        alpha = [alpha[0], *(namespace_of(a).clip(a, 0.0, 1.0) for a in moved)]
        rate *= tuning.decay


def proposed(
    levels: Levels,
    level: int,
    above: Above,
    bounds: Sequence[Interval],
    tuning: Tuning,
    alpha: list[FloatArray],
    arrays: Arrays,
) -> list[FloatArray]:
    """Return the alpha that a device finds best for each objective. Property: proposes only. Shapes as `backward`."""
    with arrays.proposing():
        spans = [Span.on(arrays, z) for z in bounds[:level]]
        nothing = [arrays.to_device(np.zeros((1, 1)))] * (level + 1)
        given = [arrays.to_device(a) for a in alpha]
        best = Best(arrays.to_device(np.full(len(above.value), np.inf)), given)
        for now, found in ascent(levels.on(arrays), level, above.on(arrays), spans, nothing, tuning, given):
            best = best.met(found.upper, now)
        return [np.clip(arrays.to_host(a, old.shape, 0.5), 0.0, 1.0) for a, old in zip(best.arrays, alpha, strict=True)]


@dataclass(frozen=True)
class Best:
    """The least forecast met for each objective, and the arrays (batch, n) that gave it."""

    upper: Array
    arrays: list[Array]

    def met(self, upper: Array, arrays: Sequence[Array]) -> Best:
        """Take what is better."""
        xp = namespace_of(upper)
        better = upper < self.upper
        kept = [xp.where(better[:, None], new, old) for new, old in zip(arrays, self.arrays, strict=True)]
        return Best(xp.where(better, upper, self.upper), kept)


def first_alpha(z: Interval, batch: int) -> FloatArray:
    """The lower slope of least area: 1 where more of the interval is positive, else 0."""
    return np.broadcast_to(first_slopes(z), (batch, z.shape[1])).copy()


@dataclass(frozen=True)
class Proof:
    """Rows that prove bounds of one level at one box: which neurons, which ends (+1 upper), and their multipliers."""

    level: int
    neurons: npt.NDArray[np.intp]
    signs: FloatArray
    multipliers: list[FloatArray]


def pre_activations(
    levels: Levels,
    start: Interval,
    tuning: Tuning | None = None,
    proofs: list[Proof] | None = None,
    budget: Budget = DEFAULT,
) -> list[Interval]:
    """Enclose the pre-activations of all hidden levels: interval steps, and linear bounds where those leave a sign open.

    Shapes    start: the range of level 0, (batch, n); results (batch, n) each, levels 0 to the last hidden one
    Proofs    if a list is given, one box is asked about, and for each level from 2 on the rows that prove it are added
    """
    bounds = [start]
    everywhere = np.ones(len(start), dtype=bool)
    for level in range(1, levels.top):
        h = activate(levels.activation(level - 1), bounds[-1], INTERVALS)
        z = interval_step(levels.stages[level - 1], h)
        if level > 1:  # over a box of inputs one stage's intervals are exact
            sizes = levels.sizes(bounds)
            z, empty = _tightened(levels, level, z, bounds, sizes, tuning or Tuning(0), everywhere, budget, proofs)
            if empty.any():
                raise EnclosureError("linear and interval bounds contradict each other: please report this bug")
        bounds.append(z)
    return bounds


def refreshed(
    levels: Levels,
    known: Sequence[Interval],
    sizes: Sequence[FloatArray],
    since: npt.NDArray[np.intp],
    budget: Budget = DEFAULT,
) -> tuple[list[Interval], BoolArray]:
    """Tighten pre-activation bounds that hold already, after one at level `since` (batch,) was narrowed; say which are empty.

    Where a set is empty no point satisfies the bounds, and those returned say nothing.
    """
    bounds = [known[0], known[1]]
    empty = np.zeros(len(since), dtype=bool)
    for level in range(2, levels.top):
        h = activate(levels.activation(level - 1), bounds[-1], INTERVALS)
        z, gone = intersected(known[level], interval_step(levels.stages[level - 1], h))
        empty |= gone
        z, gone = _tightened(levels, level, z, bounds, sizes, Tuning(0), (since < level) & ~empty, budget)
        empty |= gone
        bounds.append(z)
    return bounds, empty


def intersected(first: Interval, second: Interval) -> tuple[Interval, BoolArray]:
    """Intersect row by row; where that is empty the first is kept and the row is named."""
    lower, upper = np.maximum(first.lower, second.lower), np.minimum(first.upper, second.upper)
    empty = (lower > upper).any(axis=1)
    lower[empty], upper[empty] = first.lower[empty], first.upper[empty]
    return Interval(lower, upper), np.asarray(empty)


def _tightened(
    levels: Levels,
    level: int,
    z: Interval,
    bounds: Sequence[Interval],
    sizes: Sequence[FloatArray],
    tuning: Tuning,
    wanted: BoolArray,
    budget: Budget,
    proofs: list[Proof] | None = None,
) -> tuple[Interval, BoolArray]:
    """Meet bounds with linear ones at the neurons whose sign is open (all of them, where the activation is curved)."""
    is_relu = levels.activation(level) is Activation.RELU
    open_ = (z.lower < 0) & (z.upper > 0) if is_relu else z.lower < z.upper
    boxes, neurons = np.nonzero(open_ & wanted[:, None])
    lower, upper = np.full(z.shape, -np.inf), np.full(z.shape, np.inf)
    plain = not tuning.steps and proofs is None
    pairs = levels.rows(budget) // 2
    if plain:
        pairs = min(pairs, 1 + AT_ONCE // max(2 * part.shape[1] for part in bounds))
    for first in range(0, len(boxes), pairs):
        box, neuron = boxes[first : first + pairs], neurons[first : first + pairs]
        both, twice = np.concatenate([box, box]), np.concatenate([neuron, neuron])
        signs = np.repeat([1.0, -1.0], len(box))
        above = Above.of_neurons(levels.stages[level - 1], both, twice, signs, sizes[level])
        if plain:
            bound = untuned(levels, level, above, bounds, both, sizes)
        else:
            own = [of_boxes(part, both) for part in bounds]
            size = [s if len(s) == 1 else s[both] for s in sizes]
            kept = None if proofs is None else [np.zeros((len(both), part.shape[1])) for part in bounds]
            bound = tuned(levels, level, above, own, size, tuning, kept, budget.arrays)
            if proofs is not None and kept is not None:
                kept = short(kept)
                bound = backward(levels, level, above, own, size, given=kept).upper
                proofs.append(Proof(level, twice, signs, kept))
        upper[box, neuron], lower[box, neuron] = bound[: len(box)], -bound[len(box) :]
    crossed = lower > upper  # linear bounds of an empty set may cross
    narrower = Interval(np.where(crossed, z.lower, lower), np.where(crossed, z.upper, upper))
    result, empty = intersected(z, narrower)
    return result, np.asarray(empty | crossed.any(axis=1))


def top_bounds(
    levels: Levels,
    bounds: Sequence[Interval],
    nu: FloatArray,
    offset: FloatArray,
    boxes: npt.NDArray[np.intp],
    tuning: Tuning,
    budget: Budget = DEFAULT,
) -> FloatArray:
    """Bound rows over the logits from above. Shapes: nu (rows, logits); offset, boxes (rows,): which box each is about."""
    sizes = levels.sizes(bounds)
    result = np.empty(len(nu))
    rows = levels.rows(budget)
    for first in range(0, len(nu), rows):
        part = slice(first, first + rows)
        own, size = [of_boxes(z, boxes[part]) for z in bounds], [s if len(s) == 1 else s[boxes[part]] for s in sizes]
        above = Above.of_rows(levels.stages[-1], nu[part], offset[part], size[-1])
        result[part] = tuned(levels, levels.top, above, own, size, tuning, arrays=budget.arrays)
    return result
