"""Backward substitution over networks with eliminated parameters: upper bounds of linear objectives, for any multipliers.

Accepts   `stages`; bounds of all levels below the objectives'; linear, ReLU, sigmoid, tanh; batches
Gives     certified upper bounds, and what was met on the way; the derivatives of a bound by its multipliers
Method    An objective nu . z_k becomes (nu W + sign |nu| R) . h_(k-1) + ..., exactly, for h >= 0 costs no relaxation; at each
          activation a multiplier is chosen (`envelopes`), and what that may lose is added. Any multipliers give a true bound
          (weak duality). The derivative of the bound is a forward pass through the relaxed network
Property  sound, not complete. Rounding: the multipliers are data, and everything computed from them errs by at most
          `rounding` of the sum of the absolute values, which is taken off last. A multiplier's product with a weight that
          underflows errs by TINY times the values that it meets, so these have to be below GREATEST
Source    Zhang et al. 2018, arXiv 1811.00866; Dvijotham et al. 2018, arXiv 1803.06567; for the elimination THEORY.md,
          sections 3 and 4
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.arrays import Arrays, namespace_of
from qrobust.bounds.envelopes import ENVELOPES
from qrobust.bounds.ibp import INTERVALS
from qrobust.bounds.lifted import Lifted, Weighted
from qrobust.bounds.spans import Span
from qrobust.bounds.stages import Pulled, Stage
from qrobust.interval import UNDERFLOW, FloatArray, Interval, sum_slack, up
from qrobust.memory import Part, at_a_time
from qrobust.network import Activation, activate
from qrobust.search import Budget

ROWS = 8192  # objectives substituted at a time, at most
NOTHING: Mapping[int, Weighted] = {}
LEAST, GREATEST = 2.0**-400, 2.0**400  # sizes below count as the one, above as infinite: then UNDERFLOW is above what it says
ROW_ARRAYS = 48  # float64 arrays over all levels that one objective takes while it is tuned


@dataclass(frozen=True)
class Step:
    """What backward substitution met at one level: what is wanted of h (`above`), the multiplier of z (`chosen` is it before
    beta was added), the conjugate and where it is attained; `lifted` where there are cuts."""

    above: Above
    lost: FloatArray
    chosen: FloatArray
    nu: FloatArray
    place: FloatArray
    h: FloatArray
    lifted: Lifted | None = None

    @property
    def rise(self) -> FloatArray:
        return self.above.rise if self.lifted is None else self.lifted.rise


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
        """For each level, bound abs(z) + abs(W) abs(h) + R abs(h) + abs(b) + r: the terms that a multiplier of z meets; by
        LEAST at least, and by infinity where one of them is above GREATEST.

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
            greatest = np.maximum(own, size.max(axis=1, keepdims=True))
            result.append(np.where(greatest <= GREATEST, np.maximum(own, LEAST), np.inf))
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
        shared = size.shape[0] == 1 and size.shape[1] == nu.shape[1]
        met = xp.abs(offset) + (magnitude @ size[0, :] if shared else xp.sum(magnitude * size, axis=1))
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
    def of_neurons(
        cls,
        stage: Stage,
        boxes: npt.NDArray[np.intp],
        neurons: npt.NDArray[np.intp],
        signs: FloatArray,
        size: FloatArray,
    ) -> Above:
        """Objectives signs * z[neurons]. Shapes: boxes, neurons, signs (batch,); size (boxes or 1, out)."""
        rise = fall = signs[:, None] * stage.weight[neurons]
        value = signs * stage.bias[neurons]
        if not stage.fixed:
            spread = stage.radius[neurons]
            spread = spread[:, None] if spread.ndim == 1 else spread
            rise, fall, value = rise + spread, rise - spread, value + stage.bias_radius[neurons]
        return cls(rise, fall, value, size[0, neurons] if len(size) == 1 else size[boxes, neurons])


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
    cuts: Mapping[int, Weighted] = NOTHING,
) -> Substitution:
    """Bound objectives over the pre-activations of a level from above; with `given`, by these multipliers of each level.

    `cuts` of levels of ReLUs are used together with alpha and beta.

    Property  certified where `bounds` are Intervals; over Spans, of any library's arrays, what comes out is a forecast
    Shapes    above: over the values of level - 1; bounds, sizes: each level's (batch or 1, n); alpha, beta: levels 0 to
              level - 1, (batch, n) each (level 0's is not used)
    """
    xp = namespace_of(above.value)
    value, met = above.value, above.met
    terms = levels.terms + sum(len(part.cuts) for part in cuts.values())
    steps: list[Step] = []
    for number in range(level - 1, -1, -1):
        envelope, z, cut = ENVELOPES[levels.activation(number)], bounds[number], cuts.get(number)
        if cut is not None and alpha is not None and beta is not None and isinstance(z, Interval):
            step = _lifted(above, z, cut, alpha[number], beta[number])
            steps.append(step)
            value = value + step.lost.sum(axis=1) + cut.weights @ cut.cuts.offset
            own = Above.of_rows(levels.stages[number - 1], step.nu, value, sizes[number])
            wanted = cut.weights @ cut.cuts.inputs
            value, met = own.value, met + own.met + cut.weights @ cut.size
            above = Above(own.rise + wanted, own.fall + wanted, value, met)
            continue
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
    upper = value + rounding(terms, met)
    if isinstance(bounds[0], Interval):
        upper = up(upper)
    return Substitution(xp.where(xp.isnan(upper), xp.inf, upper), steps[::-1])


def rounding(terms: int, met: FloatArray) -> FloatArray:
    """Bound what rounding does to an objective whose longest chain of sums has so many terms. Shapes: met (batch,)."""
    slack: FloatArray = sum_slack(terms, met) + UNDERFLOW
    return slack


def _lifted(above: Above, z: Interval, cut: Weighted, alpha: FloatArray, beta: FloatArray) -> Step:
    """Return the step at a level with cuts."""
    rise = above.rise - cut.weights @ cut.cuts.places
    found = Lifted.of(rise, cut.weights @ cut.cuts.lifts, z, alpha, beta)
    return Step(above, found.lost, found.nu - beta, found.nu, found.place, found.h, found)


def short(multipliers: Sequence[FloatArray]) -> list[FloatArray]:
    """Return multipliers of 24 bits, as a certificate keeps them: any multipliers give a true bound."""
    return [values.astype(np.float32).astype(np.float64) for values in multipliers]


@dataclass(frozen=True)
class Slopes:
    """Derivatives of a bound: `reached` (the relaxed pre-activations) at each level from 1 to below the objective's."""

    alpha: list[FloatArray]
    beta: list[FloatArray]
    reached: list[FloatArray]
    cuts: dict[int, FloatArray]


def derivatives(
    levels: Levels,
    level: int,
    steps: Sequence[Step],
    bounds: Sequence[Interval] | Sequence[Span],
    cuts: Mapping[int, Weighted] = NOTHING,
) -> Slopes:
    """Return the derivatives of a substitution's bound by alpha, beta and the cuts' weights (Danskin's theorem), in floats."""
    h = steps[0].h
    xp = namespace_of(h)
    zero = xp.zeros_like(h)
    alphas, betas, reached = [zero], [zero], [steps[0].place]
    weights: dict[int, FloatArray] = {}
    for number in range(1, level):
        stage, step, z = levels.stages[number - 1], steps[number], bounds[number]
        relaxed = h @ stage.transposed + stage.bias
        pulled = steps[number - 1].above.pulled
        if stage.kernel is not None and pulled is not None:
            relaxed = relaxed + stage.kernel.moved(h, pulled.slopes, pulled.signs)
        elif not stage.fixed:
            relaxed = relaxed + xp.where(step.nu < 0, -1.0, xp.ones_like(step.nu)) * stage.reach(h)
        excess = relaxed - step.place
        if step.lifted is not None:
            lifted, below = step.lifted, h
            h, state = step.h + excess * lifted.by_rise, lifted.state + excess * lifted.by_lift
            weights[number] = cuts[number].cuts.broken(below, h, state)
            alphas.append(excess * lifted.by_alpha)
            betas.append(excess)
            reached.append(relaxed)
            continue
        free = (z.lower < 0) & (z.upper > 0) & (step.rise < 0)
        alphas.append(xp.where(free, step.rise * excess, 0.0))
        betas.append(excess)
        reached.append(relaxed)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = xp.where(step.rise != 0, step.chosen / step.rise, 0.0)
        h = step.h + excess * xp.clip(slope, 0.0, 1.0)
    return Slopes(alphas, betas, reached, weights)
