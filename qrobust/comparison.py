"""A float network beside the integer program that ships in its place, input by input.

Accepts   a `Network` and an `IntegerProgram` of as many inputs and classes; real points, or the program's whole grid of
          integer inputs (all 65,536 of two features of 8 bits), which the network sees as the reals that they mean
Gives     for each input the change of the confidence and of the label; the greatest change with both ends; where they came from
Method    the program is run; the network's real-valued function is enclosed by outward-rounded intervals, whole batches at a
          time, and evaluated in exact arithmetic where these do not decide
Property  exact at each input for kernels that give integers; with `Kernels.ANY` sound: ROBUST holds for any kernels, VIOLATED
          for every one, and the rest is UNKNOWN
Labels    the network's and the program's both by the rule of `queries`: of one confidence, class 1 iff it is above the level;
          of several, the greatest, the lowest index on a tie. A program has ties often: they are counted

A real input becomes integers as the program's runtime does it, in float32 with a half away from zero (TFLite's QUANTIZE) or
to the even neighbour (ONNX's QuantizeLinear), whether the file holds that operator or its caller is to do the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from qrobust import interval
from qrobust.answers import Counterexample, Verdict
from qrobust.bounds.ibp import INTERVALS, nominal_logits
from qrobust.check import Replay
from qrobust.domains import MOST_SHOWN, Domain
from qrobust.errors import DomainError, NumberError, ResourceError, ShapeError
from qrobust.exact import ExactArithmetic, decide, logit_bounds, to_exact
from qrobust.integer import any_kernel
from qrobust.integer.any_kernel import IntegerInterval
from qrobust.integer.kernels import run
from qrobust.integer.program import IntegerProgram, Kernels
from qrobust.interval import BoolArray, FloatArray, Interval, round_fraction_down, round_fraction_up
from qrobust.layers import IntArray
from qrobust.network import Dense, Network, Output, Scaling, confidence

MOST_ENUMERATED = 2**22
MOST_GATHERED = 2**23  # numbers that a layer's bounds take at a time
UNDECIDED = -1


class Agreement(IntEnum):
    """Whether the labels of network and program agree at an input."""

    SAME = 0
    CHANGED = 1
    UNDECIDED = 2


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs to compare at: the reals that the network sees, the integers that the program takes, and how they were made.

    Shapes    reals, integers (points, inputs); outside (points,): whether the program's input range cut the point off
    """

    reals: FloatArray
    integers: IntArray
    outside: np.ndarray[Any, np.dtype[np.bool_]]
    enumerated: bool

    def __len__(self) -> int:
        return len(self.reals)


def at_points(program: IntegerProgram, points: FloatArray) -> Inputs:
    """Return real points (points, inputs) with the integers that they become. Raises ShapeError, NumberError."""
    if points.ndim != 2 or points.shape[1] != program.inputs or not len(points):
        raise ShapeError(f"the program takes points of {program.inputs} numbers, got an array of shape {points.shape}")
    if not np.isfinite(points).all():
        raise NumberError("an input is NaN or infinite: give finite numbers")
    wanted = program.unclamped(points)
    integers = program.input.clamp(wanted)
    return Inputs(points, integers, (integers != wanted).any(axis=1), enumerated=False)


def on_grid(program: IntegerProgram, domain: Domain | None = None) -> Inputs:
    """Return every integer input, or every one whose real meaning lies in the box of a domain.

    Raises    ResourceError if there are more than MOST_ENUMERATED; DomainError if there is none
    """
    lower, upper = grid_ends(program, domain)
    axes = [np.arange(low, high + 1, dtype=np.int64) for low, high in zip(lower.tolist(), upper.tolist(), strict=True)]
    count = grid_size(lower, upper)
    if count > MOST_ENUMERATED:
        raise ResourceError(
            f"there are {count_text(count)} integer inputs, at most {MOST_ENUMERATED:,} are enumerated: ask"
            " `qrobust compare --box` without --enumerate"
        )
    return of_grid(program, np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, program.inputs))


def is_enumerable(program: IntegerProgram, domain: Domain | None = None) -> bool:
    """Whether `on_grid` returns the inputs of a domain, which are not too many. Raises as `grid_ends`."""
    return grid_size(*grid_ends(program, domain)) <= MOST_ENUMERATED


def grid_size(lower: IntArray, upper: IntArray) -> int:
    """Return how many integer inputs a box of them holds, which may be far more than a float counts. Shapes: (inputs,)."""
    return math.prod((upper - lower + 1).tolist())


def count_text(count: int) -> str:
    """Return how many integer inputs there are, of very many a power of two that is not above it."""
    return f"{count:,}" if count < 10**12 else f"2**{count.bit_length() - 1} or more"


def of_grid(program: IntegerProgram, integers: IntArray) -> Inputs:
    """Return integer inputs (points, inputs) with the reals that they mean."""
    return Inputs(program.input.real(integers), integers, np.zeros(len(integers), dtype=bool), enumerated=True)


def grid_ends(program: IntegerProgram, domain: Domain | None = None) -> tuple[IntArray, IntArray]:
    """Return the least and the greatest integer of each input: of the type, or in the box of a domain. Shapes: (inputs,).

    Raises    ShapeError; DomainError if there is none, or the domain is no box
    """
    encoding = program.input
    every = np.arange(encoding.least, encoding.greatest + 1, dtype=np.int64)
    inside = np.ones((program.inputs, len(every)), dtype=bool)
    if domain is not None:
        if domain.inputs != program.inputs:
            raise ShapeError(f"the box has {domain.inputs} sides, the program takes {program.inputs} inputs")
        if domain.inequalities[1].size:
            raise DomainError("the grid is taken over boxes, without inequalities (where)")
        reals, box = encoding.real(every), domain.box
        inside = (box.lower[:, None] <= reals) & (reals <= box.upper[:, None])
        if not inside.any(axis=1).all():
            raise DomainError("the box holds no input of the program's grid: give a wider one")
    return every[inside.argmax(axis=1)], every[len(every) - 1 - inside[:, ::-1].argmax(axis=1)]


def sides_outside(network: Network, program: IntegerProgram, domain: Domain) -> list[str]:
    """Name the sides of a domain's box that leave the calibrated range, beyond which the program cuts inputs off."""
    least, greatest = _range(program)
    parts = []
    for index, (low, high) in enumerate(zip(domain.box.lower.tolist(), domain.box.upper.tolist(), strict=True)):
        name = network.feature_name(index)
        parts += [f"{name} down to {low:g}"] if low < least else []
        parts += [f"{name} up to {high:g}"] if high > greatest else []
    return parts if len(parts) <= MOST_SHOWN else [*parts[:MOST_SHOWN], f"and {len(parts) - MOST_SHOWN} more"]


def outside_text(program: IntegerProgram, sides: list[str]) -> str:
    """Say which sides leave the range."""
    least, greatest = _range(program)
    return f"inputs outside the program's calibrated range [{least:.6g}, {greatest:.6g}]: {', '.join(sides)}, not looked at"


def _range(program: IntegerProgram) -> tuple[float, float]:
    encoding = program.input
    ends: list[float] = encoding.real(np.array([encoding.least, encoding.greatest])).tolist()
    return ends[0], ends[1]


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a comparison found.

    Shapes    results (points, n): the program's integers; confidences (points, n): the network's, enclosed; changes (points,):
              the greatest abs(network - program) over the classes; labels, program_labels (points,): UNDECIDED where kernels
              may differ or no precision settles it; saturated, counts (operations,), None for any kernels
    """

    network: Network
    program: IntegerProgram
    inputs: Inputs
    kernels: Kernels
    level: Fraction
    results: IntegerInterval
    confidences: Interval
    changes: Interval
    labels: IntArray
    program_labels: IntArray
    saturated: IntArray | None
    counts: IntArray | None

    @cached_property
    def agreement(self) -> IntArray:
        """The `Agreement` of each input. Shape: (points,)."""
        known = (self.labels != UNDECIDED) & (self.program_labels != UNDECIDED)
        differ = np.where(self.labels == self.program_labels, Agreement.SAME, Agreement.CHANGED)
        return np.where(known, differ, Agreement.UNDECIDED)

    def agreement_of(self, margin: Fraction) -> IntArray:
        """The `Agreement` of each label that in the network has a margin; SAME where it surely has less. Shape: (points,).

        The margin is that of `queries`. Of one sigmoid it is abs(f - level); of several classes f_a / (f_a + f_j) - 1/2 of the
        label a over every rival j, here without the division.
        """
        if not margin:
            return self.agreement
        surely, perhaps = self._margins(margin)
        doubtful = (self.agreement == Agreement.CHANGED) & ~surely
        return np.where(perhaps, np.where(doubtful, Agreement.UNDECIDED, self.agreement), Agreement.SAME)

    def _margins(self, margin: Fraction) -> tuple[BoolArray, BoolArray]:
        """Return where the network's margin is surely, and where it is perhaps, at least this. Shapes: (points,) both."""
        values, half = self.confidences, Fraction(1, 2)
        if self.network.output is Output.SIGMOID:
            excess = interval.magnitude(values - _enclosed(self.level))[:, 0] - _enclosed(margin)
            return excess.lower >= 0, excess.upper >= 0
        own = np.where(self.labels == UNDECIDED, 0, self.labels)
        mine = Interval(*(np.take_along_axis(end, own[:, None], axis=1) for end in (values.lower, values.upper)))
        gaps = mine * _enclosed(half - margin) - values * _enclosed(half + margin)
        rivals = np.arange(values.shape[1]) != own[:, None]
        surely = np.where(rivals, gaps.lower >= 0, True).all(axis=1) & (self.labels != UNDECIDED)
        perhaps = np.where(rivals, gaps.upper >= 0, True).all(axis=1) | (self.labels == UNDECIDED)
        return surely, perhaps

    @property
    def greatest(self) -> tuple[float, float]:
        """Both ends of the greatest change of a confidence."""
        return float(self.changes.lower.max()), float(self.changes.upper.max())

    @property
    def witness(self) -> int:
        """The input that attains the lower end."""
        return int(self.changes.lower.argmax())

    @cached_property
    def ties(self) -> int:
        """At how many inputs the program's label is decided by the rule for ties (0 for any kernels, who give none)."""
        values = self.results.lower
        if self.kernels is Kernels.ANY:
            return 0
        if self.program.output is Output.SOFTMAX:
            return int(((values == values.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())
        exact = self.level / Fraction(self.program.result.scale) + self.program.result.zero_point
        return 0 if exact.denominator != 1 else int((values[:, 0] == exact.numerator).sum())

    def label_verdict(self, margin: Fraction = Fraction(0)) -> Verdict:
        """Whether every label that has a margin agrees."""
        agreement = self.agreement_of(margin)
        if (agreement == Agreement.CHANGED).any():
            return Verdict.VIOLATED
        return Verdict.UNKNOWN if (agreement == Agreement.UNDECIDED).any() else Verdict.ROBUST

    def epsilon_verdict(self, epsilon: Fraction) -> tuple[Verdict, IntArray]:
        """Whether no confidence changes by more than epsilon, and the inputs where one certainly does. Raises NumberError."""
        if epsilon < 0:
            raise NumberError(f"eps is {float(epsilon):g}: give a number >= 0")
        limit = round_fraction_down(epsilon)  # no float lies between it and epsilon
        above, open_ = self.changes.lower > limit, self.changes.upper > limit
        undecided = np.flatnonzero(open_ & ~above)
        single = self.kernels is not Kernels.ANY
        settled = [self.exceeds(int(i), epsilon) if single else None for i in undecided]
        known = undecided[np.array([found is True for found in settled], dtype=bool)]
        exceeding = np.sort(np.concatenate([np.flatnonzero(above), known]))
        if exceeding.size:
            return Verdict.VIOLATED, exceeding
        return (Verdict.UNKNOWN if None in settled else Verdict.ROBUST), exceeding

    def exceeds(self, index: int, epsilon: Fraction) -> bool | None:
        """Decide exactly whether a confidence changes by more than epsilon at an input; None if no precision settles it."""
        replay = exactly_at(self.network, self.inputs.reals[index])
        values = [Fraction(v) for v in self.program.result.real(self.results.lower[index]).tolist()]
        arithmetic = ExactArithmetic()

        def excess(place: int, sign: int) -> Callable[[], Any]:
            wanted, limit = to_exact([values[place]])[0], to_exact([epsilon])[0]
            return lambda: sign * (confidence(self.network, replay.nominal(), arithmetic)[place] - wanted) - limit

        signs = [decide(excess(place, sign)) for place in range(len(values)) for sign in (1, -1)]
        return True if 1 in signs else None if None in signs else False


def _enclosed(value: Fraction) -> Interval:
    return Interval(np.array([round_fraction_down(value)]), np.array([round_fraction_up(value)]))


def exactly_at(network: Network, x: FloatArray) -> Replay:
    """Return the stored network at an input, in exact arithmetic."""
    stored = tuple((layer.weight, layer.bias) for layer in network.layers)
    return Replay(network, Counterexample(tuple(Fraction(v) for v in x.tolist()), stored))


def check_alike(network: Network, program: IntegerProgram) -> None:
    """Raise ShapeError unless the two take as many inputs and have the same kind of output and as many classes."""
    if (network.inputs, network.output, network.class_count) != (program.inputs, program.output, program.class_count):
        raise ShapeError(
            f"the network takes {network.inputs} inputs and has {network.class_count} classes ({network.output.value}), the"
            f" program {program.inputs} and {program.class_count} ({program.output.value})"
        )


def compare(
    network: Network,
    program: IntegerProgram,
    inputs: Inputs,
    *,
    kernels: Kernels | None = None,
    level: Fraction = Fraction(1, 2),
) -> Comparison:
    """Compare at every input, with the usual kernels of the program's runtime unless others are named.

    Raises    ShapeError if the two do not fit, UnsupportedError if the kernels take no such program
    """
    check_alike(network, program)
    kernels = kernels or program.runtime.kernels[0]
    if kernels is Kernels.ANY:
        results, saturated, counts = any_kernel.run(program, _any_inputs(program, inputs)), None, None
    else:
        trace = run(program, inputs.integers, kernels)
        results, saturated, counts = IntegerInterval.point(trace.values), trace.saturated, trace.counts
    step = _points_at_a_time(network)
    pieces = [_confidences(network, inputs.reals[start : start + step]) for start in range(0, len(inputs), step)]
    values, nominal = _joined([value for value, _ in pieces]), _joined([logit for _, logit in pieces])
    change = interval.magnitude(values - results.real(program.result))
    changes = Interval(change.lower.max(axis=1), change.upper.max(axis=1))
    labels = _labels(network, nominal, inputs.reals, level)
    program_labels = _program_labels(program, results, level)
    return Comparison(
        network, program, inputs, kernels, level, results, values, changes, labels, program_labels, saturated, counts
    )


def _any_inputs(program: IntegerProgram, inputs: Inputs) -> IntegerInterval:
    """Return the integers that any kernels may start from: the given ones, unless the program itself quantizes reals."""
    if inputs.enumerated or not program.quantizes:
        return IntegerInterval.point(inputs.integers)
    scale, clamp = program.input.scale, program.input.clamp
    units = inputs.reals / scale
    slack = np.abs(units) * 2.0**-22  # the reals become float32 first
    found = any_kernel.near(Interval(units - slack, units + slack), program.input.zero_point)
    return IntegerInterval(clamp(found.lower), clamp(found.upper))


def _points_at_a_time(network: Network) -> int:
    """Return how many points' bounds fit the memory that is meant for them."""
    widths = [
        layer.inputs + layer.outputs if isinstance(layer, Dense | Scaling) else layer.windows.size for layer in network.layers
    ]
    return max(1, min(8192, MOST_GATHERED // max(*widths, network.class_count**2)))


def _confidences(network: Network, x: FloatArray) -> tuple[Interval, Interval]:
    """Enclose the confidences and the logits. Shapes: x (points, inputs)."""
    nominal = nominal_logits(network, Interval.point(x))
    return confidence(network, nominal, INTERVALS), nominal


def _joined(pieces: list[Interval]) -> Interval:
    return Interval(np.concatenate([p.lower for p in pieces]), np.concatenate([p.upper for p in pieces]))


def _labels(network: Network, nominal: Interval, x: FloatArray, level: Fraction) -> IntArray:
    """Return the network's labels, exactly where the bounds of the logits leave a choice. Shapes: x (points, inputs)."""
    if network.output is Output.SIGMOID:
        low, high = logit_bounds(level)
        labels = label_of_one(nominal, round_fraction_down(low), round_fraction_up(high))
    else:
        labels = greatest_label(nominal.lower, nominal.upper)
    for index in np.flatnonzero(labels == UNDECIDED).tolist():
        label = exactly_at(network, x[index]).label(False, level)
        labels[index] = UNDECIDED if label is None else label
    return labels


def label_of_one(values: Interval, low: float, high: float) -> IntArray:
    """Return 1 above the level, 0 at or below it; the level lies in [low, high]."""
    above = values.lower[:, 0] > high
    below = values.upper[:, 0] < low if low != high else values.upper[:, 0] <= low
    return np.where(above, 1, np.where(below, 0, UNDECIDED)).astype(np.int64)


def greatest_label(lower: FloatArray | IntArray, upper: FloatArray | IntArray) -> IntArray:
    """Return the index of the greatest value, the lowest on a tie, UNDECIDED where the intervals leave a choice."""
    best = lower.argmax(axis=1)
    own = np.take_along_axis(lower, best[:, None], axis=1)
    places = np.arange(lower.shape[1])
    wins = np.where(places < best[:, None], own > upper, own >= upper) | (places == best[:, None])
    return np.where(wins.all(axis=1), best, UNDECIDED)


def _program_labels(program: IntegerProgram, results: IntegerInterval, level: Fraction) -> IntArray:
    """Return the program's labels. Shapes: results (points, confidences)."""
    if program.output is Output.SOFTMAX:
        return greatest_label(results.lower, results.upper)
    limit = level / Fraction(program.result.scale) + program.result.zero_point  # in units: above iff q > floor(limit)
    whole = limit.numerator // limit.denominator
    low, high = results.lower[:, 0] > whole, results.upper[:, 0] > whole
    return np.where(low == high, low, UNDECIDED).astype(np.int64)
