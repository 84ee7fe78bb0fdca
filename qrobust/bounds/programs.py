"""A float network beside its integer program, as differential zonotopes with bounded noise for every rounding.

Accepts   dense networks of linear and ReLU units, their inputs scaled or not, with one sigmoid or a softmax; programs of as
          many fully connected layers with the same activations; 8-bit confidences; batches of boxes of inputs, which both see
          as the same reals
Gives     for each box the greatest change of a confidence, and whether a label may be another
Method    A scaling of the network's inputs is folded into its first rows, in intervals. The program's layer is its
          dequantized weights, then noise: its result is within `allowance` steps of the real one, which is where rounding may
          go, and farther only where its clamp cuts, by what the real one exceeds the clamp.
          Noise shares a neuron's symbol with the band of its ReLU (`zonotopes`). A confidence is a sigmoid of its log odds,
          and the change of log odds is that of the margins, so that the greatest change is found from both ranges. What the
          program makes of a logit is, of one logistic, its table of 256 entries; of a softmax, the real one and noise
Property  sound for the kernels asked about. Not exact: noises of different layers are taken to be the worst at once
Rounding  outward, as in `zonotopes`; reals of integers, and weights times scales, are exact (`program`)
Source    Zhang et al., ICSE 2023 (QEBVerif), for bounding a network and its quantized twin together; the rest is ours
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from qrobust import interval
from qrobust.bounds.differential import Pair
from qrobust.bounds.zonotopes import (
    LINES,
    NUMBERS,
    Band,
    Form,
    TwinLayer,
    affine,
    changed,
    difference_band,
    input_form,
    relu_band,
    shared_among,
)
from qrobust.errors import UnsupportedError
from qrobust.exact import logit_bounds
from qrobust.integer import any_kernel
from qrobust.integer.any_kernel import IntegerInterval
from qrobust.integer.kernels import run
from qrobust.integer.program import Affine, IntegerProgram, Kernels, Operation, Requantize, Softmax
from qrobust.interval import BoolArray, FloatArray, Interval, down, round_fraction_down, round_fraction_up, up
from qrobust.network import Activation, Dense, Network, Output, Scaling

MOST_CLASSES = 32
NEAREST = 0.5 + 2.0**-12  # of a step: rounding to nearest after at most 2**-13 of error, in float32 or better


@dataclass(frozen=True, eq=False)
class Stage:
    """A layer in both forms: clamps and rounding of the program's results in real units.

    `rectified` says that both are cut at 0 from below; `allowance` how far rounding may go, `step` the distance of integers.
    """

    operation: Affine
    layer: TwinLayer
    rectified: bool
    least: float
    greatest: float
    step: float
    allowance: float

    @classmethod
    def of(cls, layer: Dense, operation: Affine, kernels: Kernels, scaling: Scaling | None = None) -> Stage:
        """Pair a layer, after a scaling of its inputs if there is one, with its operation.

        Raises    UnsupportedError where they are different functions
        """
        if layer.weight.shape != (len(operation.weight), operation.windows.taps) or not operation.windows.is_whole:
            raise UnsupportedError(f"bounds over boxes pair fully connected layers, not {layer} units with {operation}")
        output, bounds = operation.output, operation.bounds
        ends = [output.least, output.greatest]
        ends = [int(bounds.cut(output.clamp(np.array(end)))) for end in ends]
        least, greatest = output.real(np.array(ends)).tolist()
        rectified = layer.activation is Activation.RELU
        if rectified and least != 0:
            raise UnsupportedError(f"a layer of {layer} ReLU units ships as {operation}, which is not cut at 0")
        if not rectified and bounds.lower is not None:
            raise UnsupportedError(f"a layer of {layer} linear units ships as {operation} with an activation")
        unit = operation.input.scale * operation.scales  # exact: 24 bits times 24
        weight = operation.scales[:, None] * (operation.weight - operation.weight_zero)  # exact: 24 bits times 9
        bias = Interval.point(unit) * Interval.point(operation.bias)
        near = NEAREST if kernels is not Kernels.ANY and _rounds_once(operation, kernels) else any_kernel.ALLOWANCE
        twin = TwinLayer.of(layer.activation, _rows(layer, scaling), (Interval.point(weight), bias))
        return cls(operation, twin, rectified, least, greatest, output.scale, float(up(np.array(near * output.scale))))

    def noise(self, z: Interval) -> Interval:
        """Enclose the program's result minus the activation of its real-valued pre-activation. Shapes: (neurons, boxes)."""
        low, high = (np.maximum(end, 0.0) for end in (z.lower, z.upper)) if self.rectified else (z.lower, z.upper)
        below = -np.maximum(self.allowance, up(high - self.greatest))
        above = np.full(z.shape, self.allowance)
        if self.rectified:
            above = np.where(up(z.upper + self.allowance) < self.step, 0.0, above)  # no integer above 0 is near
        else:
            above = np.maximum(above, up(self.least - low))
        # The result is within the clamp, too; of what is at 0 at most, the real one is 0 and no result is below it.
        below = np.maximum(below, np.where(self.rectified & (high == 0), 0.0, down(self.least - high)))
        return Interval(below, np.minimum(above, up(self.greatest - low)))

    def cut_off(self, z: Interval) -> BoolArray:
        """Whether values may be cut off at the ends of the type, box by box (a ReLU's cut at 0 is none). Shape: (boxes,)."""
        output, bounds = self.operation.output, self.operation.bounds
        beyond = up(z.upper + self.allowance) >= output.real(np.array(output.greatest + 1))
        cut = beyond if bounds.upper is None else np.zeros_like(beyond)
        if not self.rectified:
            cut = cut | (down(z.lower - self.allowance) <= output.real(np.array(output.least - 1)))
        return np.asarray(cut.any(axis=0))


def _rows(layer: Dense, scaling: Scaling | None) -> tuple[Interval, Interval]:
    """Enclose the weights and biases by which a layer sees inputs before they are scaled: W diag(s) and W o + b."""
    weight, bias = Interval.point(layer.weight), Interval.point(layer.bias)
    if scaling is None:
        return weight, bias
    scale, offset = scaling.enclosures
    return weight * scale[None], interval.affine(weight, offset[None], bias)[0]


def _rounds_once(operation: Affine, kernels: Kernels) -> bool:
    """Whether kernels scale a sum with little error and round it once."""
    return operation.exactly if kernels is Kernels.REFERENCE else operation.output.bits == 8


@dataclass(frozen=True, eq=False)
class Bounded:
    """Bounds over a batch of boxes.

    Shapes    change (boxes,): the greatest change of a confidence; differs (boxes,): whether a label may be another; ties
              (boxes,): whether the program's label may be a tie; influence (boxes, inputs): how much of what makes the bounds
              wide comes from each input; cut_off (stages, boxes)
    """

    change: FloatArray
    differs: BoolArray
    ties: BoolArray
    influence: FloatArray
    cut_off: BoolArray


class ProgramZonotopes:
    """A float network and its integer program, prepared for bounding batches of input boxes.

    Accepts   margin: labels of which the network has less count as kept
    Raises    UnsupportedError, naming what the bounds have no rule for
    """

    def __init__(
        self,
        network: Network,
        program: IntegerProgram,
        kernels: Kernels = Kernels.REFERENCE,
        level: Fraction = Fraction(1, 2),
        margin: Fraction = Fraction(0),
    ) -> None:
        core = network if network.scaling is None else network.core
        body, self.tail = _parts(program)
        layers = [layer for layer in core.layers if isinstance(layer, Dense) and layer.activation in LINES]
        if not core.is_dense or len(layers) != len(core.layers) or len(body) != len(layers):
            raise UnsupportedError(
                "bounds over boxes pair dense layers of linear and ReLU units with fully connected ones:"
                f" {network} and {program}"
            )
        self.network, self.program, self.kernels = network, program, kernels
        scalings = [network.scaling, *[None] * (len(layers) - 1)]
        self.stages = [
            Stage.of(*pair, kernels, own) for pair, own in zip(zip(layers, body, strict=True), scalings, strict=True)
        ]
        self.classes = 1 if network.output is Output.SIGMOID else network.class_count
        if self.classes > MOST_CLASSES:
            raise UnsupportedError(f"bounds over boxes take at most {MOST_CLASSES} classes, not {self.classes}")
        self.ending: _Logistic | _Shares = (
            _Logistic(program, self.tail, kernels, level, margin)
            if self.classes == 1
            else _Shares(program, self.tail, kernels, margin)
        )

    @property
    def batch(self) -> int:
        """How many boxes are bounded at a time: fewer, the more each costs."""
        inputs, widths = self.network.inputs, [stage.layer.stored[0].shape[0] for stage in self.stages]
        return int(max(1, NUMBERS // (max(inputs, *widths, self.classes**2) * (inputs + sum(widths)))))

    def bounds(self, boxes: Interval) -> Bounded:
        """Bound every box. Shapes: boxes (boxes, inputs)."""
        step = self.batch
        with np.errstate(over="ignore", invalid="ignore"):
            parts = [self._bounds(boxes[start : start + step]) for start in range(0, len(boxes), step)]
        whole = {
            name: np.concatenate([vars(part)[name] for part in parts]) for name in ("change", "differs", "ties", "influence")
        }
        return Bounded(**whole, cut_off=np.concatenate([part.cut_off for part in parts], axis=1))

    def _bounds(self, boxes: Interval) -> Bounded:
        inputs = self.network.inputs
        stored = perturbed = input_form(boxes)
        change = Form(np.zeros_like(stored.centre), np.zeros_like(stored.generators), np.zeros_like(stored.radius))
        known = np.repeat(np.eye(inputs)[:, :, None], len(boxes), axis=2)
        shares, cut = [known], []
        for stage in self.stages:
            change = changed(stage.layer, change, perturbed, inputs)
            stored = affine(stage.layer.stored, stage.layer.lost, stored)
            perturbed = affine(stage.layer.perturbed, stage.layer.perturbed_reach, perturbed)
            z = Pair(stored.range, perturbed.range, change.range).tightened()
            cut.append(stage.cut_off(z.perturbed))
            bands = _bands(stage, z)
            share = shared_among(stored, known, (bands[0].reach > 0) | (bands[1].reach > 0))
            change, moved = bands[0].of(change)
            stored, switched = bands[1].of(stored)
            perturbed, _ = bands[2].of(perturbed)
            shares.append(moved.spread(share))
            known = np.concatenate([known, switched.spread(share)], axis=1)
        margins = Margins.of(self.classes, stored, perturbed, change)
        return Bounded(
            *self.ending.bounds(margins), _influence(stored, change, np.concatenate(shares, axis=1), inputs), np.array(cut)
        )


def _bands(stage: Stage, z: Pair) -> tuple[Band, Band, Band]:
    """The bands of the change, the stored and the program's values."""
    if stage.rectified:
        bands = difference_band(z), relu_band(z.stored), relu_band(z.perturbed)
    else:
        zero = np.zeros(z.stored.shape)
        line = Band(zero + 1.0, zero, zero)
        bands = line, line, line
    noise = stage.noise(z.perturbed)
    return bands[0].widened(noise), bands[1], bands[2].widened(noise)


def _influence(stored: Form, change: Form, shares: FloatArray, inputs: int) -> FloatArray:
    """Share what widens the change among the inputs, and a little of what moves the logits; a heuristic, no bound."""
    lost = np.abs(change.generators).sum(axis=0)
    lost[:inputs] *= 0.1
    moves = np.abs(stored.generators[:, :inputs]).sum(axis=0)
    influence: FloatArray = np.einsum("isb,sb->bi", shares, lost) + 0.01 * moves.T
    return np.where(np.isfinite(influence), influence, 1.0)


def _parts(program: IntegerProgram) -> tuple[list[Affine], IntegerProgram]:
    """Return the layers and the program that makes confidences of logits. Raises UnsupportedError."""
    body: list[Affine] = []
    rest: tuple[Operation, ...] = program.operations
    while rest and isinstance(rest[0], Affine):
        body.append(rest[0])
        rest = rest[1:]
    scaled = [o for o in rest[1:] if not isinstance(o, Requantize) or o.input.scale != o.output.scale]
    if not body or isinstance(rest[0], Requantize) or scaled:
        raise UnsupportedError(f"bounds over boxes take fully connected layers, then one logistic or softmax, not {program}")
    if rest[0].input.bits != 8:
        raise UnsupportedError(f"bounds over boxes take 8-bit logits: {rest[0]} takes {rest[0].input.bits} bits")
    return body, IntegerProgram(rest, runtime=program.runtime)


@dataclass(frozen=True, eq=False)
class Margins:
    """The margin of each class over each rival (of one logistic, the logit): the float network's, the program's, the change.

    Shapes    each (classes, rivals, boxes)
    """

    stored: Interval
    program: Interval
    change: Interval

    @classmethod
    def of(cls, classes: int, stored: Form, perturbed: Form, change: Form) -> Margins:
        """Return the margins of forms of logits."""
        rows = np.array([[1.0]])
        if classes > 1:
            each = np.eye(classes)
            rows = np.array([each[c] - each[j] for c in range(classes) for j in range(classes) if j != c])
        forms = [affine((rows, np.zeros((len(rows), 1))), None, form) for form in (stored, perturbed, change)]
        pair = Pair(*(form.range for form in forms)).tightened()
        shape = (classes, max(1, classes - 1), -1)
        ranges = (pair.stored, pair.perturbed, pair.difference)
        return cls(*(Interval(x.lower.reshape(shape), x.upper.reshape(shape)) for x in ranges))

    def greatest_change(self) -> FloatArray:
        """Bound the change of the sigmoid of the log odds, which is that of each confidence. Shape: (classes, boxes)."""
        odds, after = log_odds(self.stored), log_odds(self.program)
        least, greatest = self.change.lower.min(axis=1), self.change.upper.max(axis=1)
        by_change = np.maximum(greatest_rise(odds, greatest), greatest_rise(-odds, -least))
        return np.minimum(by_change, interval.magnitude(interval.sigmoid(after) - interval.sigmoid(odds)).upper)


def log_odds(margins: Interval) -> Interval:
    """Enclose each class's log odds: minus the log of the sum of exp(-margin). Shapes: result (classes, boxes)."""
    rivals = margins.shape[1]
    excess = math.log(rivals) * (1 + 2.0**-50) if rivals > 1 else 0.0
    return Interval(down(margins.lower.min(axis=1) - excess), margins.upper.min(axis=1))


def greatest_rise(u: Interval, rise: FloatArray) -> FloatArray:
    """Bound sigmoid(u + d) - sigmoid(u) for 0 <= d <= rise: it rises with d, and in u up to -d / 2, then falls."""
    rise = np.maximum(rise, 0.0)
    start = Interval.point(np.clip(-0.5 * rise, u.lower, u.upper))
    return (interval.sigmoid(start + Interval.point(rise)) - interval.sigmoid(start)).upper


def _logit(level: Fraction) -> tuple[float, float]:
    """Enclose the logit of a level, infinite where no confidence reaches it."""
    if not 0 < level < 1:
        end = -math.inf if level <= 0 else math.inf
        return end, end
    low, high = logit_bounds(level)
    return round_fraction_down(low), round_fraction_up(high)


class _Logistic:
    """The end of a binary program: what its table makes of each logit."""

    def __init__(
        self, program: IntegerProgram, tail: IntegerProgram, kernels: Kernels, level: Fraction, margin: Fraction
    ) -> None:
        encoding = tail.input
        every = np.arange(encoding.least, encoding.greatest + 1, dtype=np.int64)[:, None]
        if kernels is Kernels.ANY:
            found = any_kernel.run(tail, IntegerInterval.point(every))
        else:
            found = IntegerInterval.point(run(tail, every, kernels).values)
        self.logits: FloatArray = encoding.real(every[:, 0])
        exact = interval.sigmoid(Interval.point(self.logits[:, None]))
        self.errors: FloatArray = interval.magnitude(found.real(tail.result) - exact).upper[:, 0]
        exact_level = level / Fraction(program.result.scale) + program.result.zero_point
        whole = math.floor(exact_level)
        self.ties = (found.lower[:, 0] <= whole) & (whole <= found.upper[:, 0]) & (exact_level == whole)
        ones, zeros = found.upper[:, 0] > whole, found.lower[:, 0] <= whole
        self.rises = self.logits[ones].min(initial=np.inf)  # the least logit that may be of class 1
        self.falls = self.logits[zeros].max(initial=-np.inf)  # the greatest that may be of class 0
        # The network's logit where its label is 1, and has the margin, is at least the first, where it is 0 at most the second.
        self.level = _logit(level + margin)[0], _logit(level - margin)[1]

    def bounds(self, margins: Margins) -> tuple[FloatArray, BoolArray, BoolArray]:
        """Return the greatest change of the confidence, whether labels may differ, and be ties. Shapes: (boxes,) each."""
        stored, after, change = (x[0, 0] for x in (margins.stored, margins.program, margins.change))
        low = np.searchsorted(self.logits, after.lower, side="left")  # the program's logits are reals of integers
        high = np.searchsorted(self.logits, after.upper, side="right")
        places = np.arange(len(self.logits))
        inside = (low[:, None] <= places) & (places < high[:, None])
        error = np.where(inside, self.errors, 0.0).max(axis=1)
        found = np.minimum(up(margins.greatest_change()[0] + error), 1.0)
        ones, zeros = self.level
        rising = (stored.lower <= zeros) & (after.upper >= self.rises) & (change.upper >= down(self.rises - zeros))
        falling = (stored.upper >= ones) & (after.lower <= self.falls) & (change.lower <= up(self.falls - ones))
        return found, rising | falling, np.asarray((inside & self.ties).any(axis=1))


class _Shares:
    """The end of a program with a softmax: each share within `allowance` of the real one, or cut off at the greatest.

    The allowance is that of `Kernels.ANY` for all kernels. TFLite's need less: half a unit for the last rounding, and for at
    most MOST_CLASSES terms, each off by 2**-20 of the greatest, under 2**-6 units.
    """

    def __init__(self, program: IntegerProgram, tail: IntegerProgram, kernels: Kernels, margin: Fraction) -> None:
        softmax, result = tail.operations[0], program.result
        assert isinstance(softmax, Softmax)
        if softmax.beta != 1:
            raise UnsupportedError(f"bounds over boxes take a softmax of beta 1, not {softmax.beta:g}")
        roundings = len(tail.operations) if kernels is Kernels.ANY else 1  # other kernels copy what keeps its scale
        self.allowance = float(up(np.array(roundings * any_kernel.ALLOWANCE * result.scale)))
        ends = [o.output.real(np.array(o.output.greatest)) for o in tail.operations]  # a change of zero point may cut, too
        self.greatest = float(min(ends))
        least = 1 / program.class_count - 2 * self.allowance  # the real share of the class that the program finds greatest
        whole = result.zero_point == result.least and self.greatest >= 1 - self.allowance and least > 0
        # Shares that come out equal, or in the other order, are of logits that are no farther apart than this.
        self.lead = _logit(Fraction(1, 2) + margin)[0]  # of the network's label over every rival
        self.tie = math.log1p(2 * self.allowance / least) * (1 + 2.0**-40) if whole else math.inf
        self.fall = float(up(np.array(self.tie - self.lead)))  # the lead must change by as much at least to be lost

    def bounds(self, margins: Margins) -> tuple[FloatArray, BoolArray, BoolArray]:
        """Return the greatest change of a confidence, whether labels may differ, and be ties. Shapes: (boxes,) each."""
        most = interval.sigmoid(log_odds(margins.program)).upper
        noise = np.maximum(self.allowance, up(most - self.greatest))
        found = np.minimum(up(margins.greatest_change() + noise), 1.0).max(axis=0)
        stored, after, change = margins.stored, margins.program, margins.change
        leads = (stored.upper >= self.lead).all(axis=1, keepdims=True)
        differs = leads & (after.lower <= self.tie) & (change.lower <= self.fall)
        ties = (after.lower <= self.tie) & (after.upper >= -self.tie)
        return found, np.asarray(differs.any(axis=(0, 1))), np.asarray(ties.any(axis=(0, 1)))
