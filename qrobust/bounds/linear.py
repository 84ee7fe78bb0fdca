"""Linear bounds by backward substitution (CROWN, DeepPoly) over networks with eliminated parameters, and their tuning.

Accepts   `stages`; the range of the first level; linear, ReLU, sigmoid, tanh; batches
Gives     certified upper bounds of linear objectives of any level's pre-activations, and all pre-activation bounds
Method    An objective nu . z_k becomes (nu W + sign |nu| R) . h_(k-1) + ..., exactly, for h >= 0 costs no relaxation; at each
          activation a multiplier is chosen (`envelopes`), and what that may lose is added. Any multipliers give a true bound
          (weak duality), so they are tuned by projected gradients: alpha, the lower slopes of unstable ReLUs, and beta, the
          multipliers of splits. The derivative of the bound is a forward pass through the relaxed network
Property  sound, not complete. Rounding: the multipliers are data, and everything computed from them errs by at most
          `interval.sum_slack` of the sum of the absolute values, which is taken off last. Any array library may do the
          tuning; the bounds that count are computed from what it proposes by NumPy, on the host
Source    Zhang et al. 2018, arXiv 1811.00866; Xu et al. 2021, arXiv 2011.13824 (alpha); Wang et al. 2021, arXiv 2103.06624
          (beta); Dvijotham et al. 2018, arXiv 1803.06567; for the elimination THEORY.md, sections 3 and 4
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.arrays import Array, Arrays, namespace_of
from qrobust.bounds.envelopes import ENVELOPES
from qrobust.bounds.ibp import INTERVALS
from qrobust.bounds.spans import Span
from qrobust.bounds.stages import Pulled, Stage, interval_step
from qrobust.errors import EnclosureError
from qrobust.interval import BoolArray, FloatArray, Interval, sum_slack, up
from qrobust.memory import Part, at_a_time
from qrobust.network import Activation, activate
from qrobust.search import Budget

ROWS = 8192  # objectives substituted at a time, at most
ROW_ARRAYS = 48  # float64 arrays over all levels that one objective takes while it is tuned
DEFAULT = Budget()


@dataclass(frozen=True)
class Step:
    """What backward substitution met at one level: what is wanted of h (`above`), the multiplier of z (`chosen` is it before
    beta was added), the conjugate and where it is attained."""

    above: Above
    lost: FloatArray
    chosen: FloatArray
    nu: FloatArray
    place: FloatArray
    h: FloatArray

    @property
    def rise(self) -> FloatArray:
        return self.above.rise


@dataclass(frozen=True)
class Substitution:
    """Upper bounds (batch,) of objectives (certified over Intervals), and the steps from level 0 to below the objectives'."""

    upper: FloatArray
    steps: list[Step]


@dataclass(frozen=True, eq=False)
class Levels:
    """A network from some level on: `first` is the activation of level 0; stage k gives the pre-activations of level k + 1."""

    first: Activation
    stages: tuple[Stage, ...]

    @property
    def top(self) -> int:
        """The level of the logits."""
        return len(self.stages)

    def on(self, arrays: Arrays) -> Levels:
        """Return the same on a device."""
        return Levels(self.first, tuple(stage.on(arrays) for stage in self.stages))

    def activation(self, level: int) -> Activation:
        return self.first if level == 0 else self.stages[level - 1].activation

    @property
    def terms(self) -> int:
        """How many terms the longest chain of sums has, for the rounding error."""
        return sum(stage.terms for stage in self.stages)

    @property
    def row_bytes(self) -> int:
        """What one objective takes while it is substituted and tuned."""
        return sum(8 * ROW_ARRAYS * int(stage.weight.shape[1]) + stage.kernel_bytes for stage in self.stages)

    def rows(self, budget: Budget) -> int:
        """Return how many objectives are substituted at a time, 2 at least. Raises ResourceError if these do not fit."""
        pairs = at_a_time(2 * self.row_bytes, budget.memory, Part.OBJECTIVES, "a pair of linear bounds", ROWS // 2)
        return 2 * pairs

    def sizes(self, bounds: Sequence[Interval]) -> list[FloatArray]:
        """For each level, bound abs(z) + abs(W) abs(h) + R abs(h) + abs(b) + r: the terms that a multiplier of z meets.

        Shapes: bounds, for levels 0 to some k, (batch, n) each; results likewise, for levels 0 to k + 1
        """
        result = [np.zeros(bounds[0].shape)]
        for number, (stage, z) in enumerate(zip(self.stages, bounds, strict=False)):
            h = activate(self.activation(number), z, INTERVALS)
            size = np.maximum(np.abs(h.lower), np.abs(h.upper))
            own = stage.met(size)
            if number + 1 < len(bounds):
                after = bounds[number + 1]
                own = own + np.maximum(np.abs(after.lower), np.abs(after.upper))
            result.append(own)
        return result


@dataclass(frozen=True)
class Above:
    """What objectives want of the values h below a stage: rise max(h, 0) + fall min(h, 0) + value, (batch, n) and (batch,).

    `met` is the sum of the absolute values met so far, for the rounding error; `pulled` is how a kernel was eliminated.
    """

    rise: FloatArray
    fall: FloatArray
    value: FloatArray
    met: FloatArray
    pulled: Pulled | None = None

    def on(self, arrays: Arrays) -> Above:
        """Return the same on a device."""
        return Above(*(arrays.to_device(part) for part in (self.rise, self.fall, self.value, self.met)))

    def take(self, index: npt.NDArray[Any]) -> Above:
        return Above(self.rise[index], self.fall[index], self.value[index], self.met[index])

    @classmethod
    def of_rows(
        cls, stage: Stage, nu: FloatArray, offset: FloatArray, size: FloatArray, below: Interval | None = None
    ) -> Above:
        """Objectives nu . z + offset over the stage's pre-activations z. Shapes: nu (batch, out); offset (batch,).

        `below` bounds the values h below, which a stage with a kernel needs. Shape: (batch or 1, in)
        """
        xp = namespace_of(nu)
        magnitude = xp.abs(nu)
        met = xp.abs(offset) + xp.sum(magnitude * size, axis=1)
        value = offset + nu @ stage.bias
        rise = fall = nu @ stage.weight
        if stage.kernel is not None and below is not None:
            pulled = stage.kernel.pulled(nu, below)
            rise = rise + pulled.coefficients
            return cls(rise, rise, value + pulled.value, met, pulled)
        if not stage.fixed:
            value = value + magnitude @ stage.bias_radius
            spread = stage.spread(nu)
            rise, fall = rise + spread, rise - spread
        return cls(rise, fall, value, met)

    @classmethod
    def of_neurons(cls, stage: Stage, neurons: npt.NDArray[np.intp], signs: FloatArray, size: FloatArray) -> Above:
        """Objectives signs * z[neurons]. Shapes: neurons, signs (batch,)."""
        rise = fall = signs[:, None] * stage.weight[neurons]
        value = signs * stage.bias[neurons]
        if not stage.fixed:
            spread = stage.radius[neurons]
            spread = spread[:, None] if spread.ndim == 1 else spread
            rise, fall, value = rise + spread, rise - spread, value + stage.bias_radius[neurons]
        own = np.broadcast_to(size, (len(neurons), size.shape[1]))
        return cls(rise, fall, value, own[np.arange(len(neurons)), neurons])


def backward(
    levels: Levels,
    level: int,
    above: Above,
    bounds: Sequence[Interval] | Sequence[Span],
    sizes: Sequence[FloatArray],
    *,
    alpha: Sequence[FloatArray] | None = None,
    beta: Sequence[FloatArray] | None = None,
    given: Sequence[FloatArray] | None = None,
) -> Substitution:
    """Bound objectives over the pre-activations of a level from above; with `given`, by these multipliers of each level.

    Property  certified where `bounds` are Intervals; over Spans, of any library's arrays, what comes out is a forecast
    Shapes    above: over the values of level - 1; bounds, sizes: each level's (batch or 1, n); alpha, beta: levels 0 to
              level - 1, (batch, n) each (level 0's is not used)
    """
    xp = namespace_of(above.value)
    value, met = above.value, above.met
    steps: list[Step] = []
    for number in range(level - 1, -1, -1):
        envelope, z = ENVELOPES[levels.activation(number)], bounds[number]
        if number == 0:
            nu = chosen = xp.zeros_like(above.rise)
        elif given is not None:
            nu = chosen = given[number]
        else:
            nu = chosen = envelope.slopes(above.rise, above.fall, z, None if alpha is None else alpha[number])
            if beta is not None:
                nu = nu + beta[number]
        found = envelope.conjugate(above.rise, above.fall, nu, z) if number else envelope.peak(above.rise, above.fall, z)
        lost, place, h = found
        value = value + xp.sum(lost, axis=1)
        steps.append(Step(above, lost, chosen, nu, place, h))
        if number > 0:
            stage, before, below = levels.stages[number - 1], bounds[number - 1], None
            if stage.kernel is not None and isinstance(before, Interval):  # a device's stages have none
                below = activate(levels.activation(number - 1), before, INTERVALS)
            above = Above.of_rows(stage, nu, value, sizes[number], below)
            value, met = above.value, met + above.met
    upper = value + sum_slack(levels.terms, met)
    if isinstance(bounds[0], Interval):
        upper = up(upper)
    return Substitution(xp.where(xp.isnan(upper), xp.inf, upper), steps[::-1])


def short(multipliers: Sequence[FloatArray]) -> list[FloatArray]:
    """Return multipliers of 24 bits, as a certificate keeps them: any multipliers give a true bound."""
    return [values.astype(np.float32).astype(np.float64) for values in multipliers]


@dataclass(frozen=True)
class Slopes:
    """Derivatives of a bound: `reached` (the relaxed pre-activations) at each level from 1 to below the objective's."""

    alpha: list[FloatArray]
    beta: list[FloatArray]
    reached: list[FloatArray]


def derivatives(levels: Levels, level: int, steps: Sequence[Step], bounds: Sequence[Interval] | Sequence[Span]) -> Slopes:
    """Return the derivatives of a substitution's bound with respect to alpha and beta (Danskin's theorem), in floats."""
    h = steps[0].h
    xp = namespace_of(h)
    zero = xp.zeros_like(h)
    alphas, betas, reached = [zero], [zero], [steps[0].place]
    for number in range(1, level):
        stage, step, z = levels.stages[number - 1], steps[number], bounds[number]
        relaxed = h @ stage.transposed + stage.bias
        pulled = steps[number - 1].above.pulled
        if stage.kernel is not None and pulled is not None:
            relaxed = relaxed + stage.kernel.moved(h, pulled.slopes, pulled.signs)
        elif not stage.fixed:
            relaxed = relaxed + xp.where(step.nu < 0, -1.0, xp.ones_like(step.nu)) * stage.reach(h)
        excess = relaxed - step.place
        free = (z.lower < 0) & (z.upper > 0) & (step.rise < 0)
        alphas.append(xp.where(free, step.rise * excess, 0.0))
        betas.append(excess)
        reached.append(relaxed)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = xp.where(step.rise != 0, step.chosen / step.rise, 0.0)
        h = step.h + excess * xp.clip(slope, 0.0, 1.0)
    return Slopes(alphas, betas, reached)


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
    return np.broadcast_to((z.upper > -z.lower).astype(np.float64), (batch, z.shape[1])).copy()


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
    pairs = levels.rows(budget) // 2
    for first in range(0, len(boxes), pairs):
        box, neuron = boxes[first : first + pairs], neurons[first : first + pairs]
        both, twice = np.concatenate([box, box]), np.concatenate([neuron, neuron])
        signs = np.repeat([1.0, -1.0], len(box))
        own = [_of(part, both) for part in bounds]
        size = [s if len(s) == 1 else s[both] for s in sizes]
        above = Above.of_neurons(levels.stages[level - 1], twice, signs, size[level])
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


def _of(z: Interval, boxes: npt.NDArray[np.intp]) -> Interval:
    return z if len(z) == 1 else z[boxes]


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
        own, size = [_of(z, boxes[part]) for z in bounds], [s if len(s) == 1 else s[boxes[part]] for s in sizes]
        above = Above.of_rows(levels.stages[-1], nu[part], offset[part], size[-1])
        result[part] = tuned(levels, levels.top, above, own, size, tuning, arrays=budget.arrays)
    return result
