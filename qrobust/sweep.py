"""A float network beside its integer program at every integer input of a box, without running them all.

Accepts   what `bounds.programs` accepts; boxes of any number of integer inputs
Gives     the greatest change of a confidence with both ends, or whether every label is the same; inputs that attain what is
          claimed; whether values are cut off at the ends of a type
Method    branch and bound over boxes of integers: `bounds.programs` bounds a box, a box of few inputs is compared exactly at
          each (`comparison`). Random inputs, corners and the middles of boxes are compared, too; the best one is climbed from
Property  ROBUST is proved for every integer input of the box; VIOLATED comes with an input that was run exactly; in between the
          two ends are certified. Complete where time allows, for kernels that give integers, unless eps lies within
          the rounding of a change's bounds
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.answers import Verdict
from qrobust.bounds.programs import Bounded, ProgramZonotopes
from qrobust.comparison import Agreement, Comparison, compare, grid_ends, grid_size, of_grid
from qrobust.domains import Domain
from qrobust.errors import NumberError
from qrobust.integer.program import Affine, IntegerProgram, Kernels
from qrobust.interval import FloatArray, Interval, round_fraction_down
from qrobust.layers import IntArray
from qrobust.network import Network, Output
from qrobust.search import BATCH, Budget, Nodes, Outcome, explore, polished

FEW_POINTS = 64  # inputs of a box that are compared one by one
SAMPLES = 4096
COVER = 256  # boxes over which values that are cut off, and ties, are looked for
MOST_NUMBERS = 2**26  # corners of open boxes: 1 GiB
RELATIVE = 0.05  # (upper - lower) / upper at which an estimate ends
SMALL = 2.0**-6  # or the same gap in steps of a confidence
AGREES = {Agreement.SAME: 0.0, Agreement.UNDECIDED: 1.0, Agreement.CHANGED: 2.0}


class Question(Enum):
    """What is searched for: the greatest change of a confidence, or an input whose label changes."""

    CHANGE = "eps"
    LABEL = "label"  # that had the margin


@dataclass(frozen=True, eq=False)
class Sweep:
    """What is known of a box of integer inputs.

    Shapes    lower, upper (inputs,): its corners in integers; cut_off, seen (layers,): whether bounds leave it possible that
              a value is cut off at the ends of its type, and whether one that was run was; ties and ties_seen likewise
    `worst` and `changed` are comparisons at one input: of the greatest change found, and of a changed label that had the
    margin, if there is one
    """

    network: Network
    program: IntegerProgram
    kernels: Kernels
    level: Fraction
    margin: Fraction
    lower: IntArray
    upper: IntArray
    greatest: tuple[float, float]
    worst: Comparison
    changed: Comparison | None
    verdicts: dict[Question, Verdict]
    layers: tuple[Affine, ...]
    cut_off: npt.NDArray[np.bool_]
    seen: npt.NDArray[np.bool_]
    ties: bool
    ties_seen: bool
    executed: int
    boxes: int
    reason: str = ""

    @property
    def points(self) -> int:
        """The number of integer inputs in the box."""
        return grid_size(self.lower, self.upper)

    def why_open(self, question: Question) -> str:
        """Say why a question is UNKNOWN."""
        if self.reason:
            return self.reason
        if self.kernels is Kernels.ANY:
            return "kernels may differ"
        what = "a margin or a label" if question is Question.LABEL else "eps"
        return f"{what} lies within the rounding of the bounds: ask about another"


def sweep(
    network: Network,
    program: IntegerProgram,
    domain: Domain | None = None,
    *,
    kernels: Kernels | None = None,
    level: Fraction = Fraction(1, 2),
    epsilon: Fraction | None = None,
    label: bool = False,
    margin: Fraction = Fraction(0),
    budget: Budget | None = None,
    seed: int = 0,
) -> Sweep:
    """Decide about every integer input whose real meaning lies in the domain's box, or estimate the greatest change.

    Accepts   margin: of the network's labels, those are asked about that have it
    Raises    ShapeError, DomainError, NumberError, UnsupportedError (see `bounds.programs`)
    """
    if epsilon is not None and epsilon < 0:
        raise NumberError(f"eps is {float(epsilon):g}: give a number >= 0")
    kernels, budget = kernels or program.runtime.kernels[0], budget or Budget()
    started, questions = time.monotonic(), max(1, (epsilon is not None) + label)
    budget = replace(budget, boxes=min(budget.boxes, max(1, MOST_NUMBERS // program.inputs)))
    lower, upper = grid_ends(program, domain)
    runs = _Runs(network, program, kernels, level, margin)
    runs.at(_samples(lower, upper, np.random.default_rng(seed)))  # first, so that what does not fit is named
    bounds = ProgramZonotopes(network, program, kernels, level, margin)
    verdicts, boxes, reasons = {}, 0, []
    greatest = min(1.0, float(bounds.bounds(_reals(program, lower[None], upper[None])).change[0]))
    if epsilon is not None or not label:
        limit = None if epsilon is None else round_fraction_down(epsilon)
        outcome = _Tree(runs, bounds, lower, upper, Question.CHANGE, seed).searched(budget, limit)
        greatest, boxes, reasons = min(greatest, outcome.upper), boxes + outcome.boxes, [outcome.reason]
        if limit is not None:
            verdicts[Question.CHANGE] = _verdict(outcome.upper <= limit, runs.least > limit)
    if label:
        outcome = _Tree(runs, bounds, lower, upper, Question.LABEL, seed).searched(budget, None)
        boxes, reasons = boxes + outcome.boxes, [*reasons, outcome.reason]
        verdicts[Question.LABEL] = _verdict(outcome.upper <= 0, runs.changed is not None)
    assert runs.worst is not None
    late = time.monotonic() - started > questions * budget.seconds
    cover = _cover(bounds, lower, upper, 1 if late else COVER)
    return Sweep(
        network=network,
        program=program,
        kernels=kernels,
        level=level,
        margin=margin,
        lower=lower,
        upper=upper,
        greatest=(runs.least, max(greatest, runs.least)),
        worst=runs.worst,
        changed=runs.changed,
        verdicts=verdicts,
        layers=tuple(stage.operation for stage in bounds.stages),
        cut_off=np.asarray(cover.cut_off.any(axis=1)),
        seen=runs.seen[: len(bounds.stages)],
        ties=bool(cover.ties.any()),
        ties_seen=runs.ties,
        executed=runs.executed,
        boxes=boxes,
        reason=next((reason for reason in reasons if reason), ""),
    )


def _verdict(proved: bool, refuted: bool) -> Verdict:
    return Verdict.VIOLATED if refuted else Verdict.ROBUST if proved else Verdict.UNKNOWN


def _reals(program: IntegerProgram, lower: IntArray, upper: IntArray) -> Interval:
    """The reals that boxes of integers mean: exact ends."""
    return Interval(program.input.real(lower), program.input.real(upper))


def _samples(lower: IntArray, upper: IntArray, rng: np.random.Generator) -> IntArray:
    """Random inputs, corners and the middle. Shape: (points, inputs)."""
    shape = (SAMPLES, len(lower))
    corners = np.where(rng.random(shape) < 0.5, lower, upper)[: SAMPLES // 4]
    points = np.concatenate([rng.integers(lower, upper + 1, shape), corners, ((lower + upper) // 2)[None]])
    return np.unique(points, axis=0)


def _cover(bounds: ProgramZonotopes, lower: IntArray, upper: IntArray, boxes: int) -> Bounded:
    """Bound so many boxes, or a few more, that cover the whole."""
    low, high = lower[None], upper[None]
    while len(low) < min(boxes, bounds.batch) and (low < high).any():
        low, high = _halved(low, high, ((high - low) / (1 + upper - lower)).argmax(axis=1))
    return bounds.bounds(_reals(bounds.program, low, high))


def _halved(lower: IntArray, upper: IntArray, axis: npt.NDArray[np.intp]) -> tuple[IntArray, IntArray]:
    """Halve boxes of integers along an axis each; those of one integer there stay, once."""
    rows = np.arange(len(axis))
    middle = (lower[rows, axis] + upper[rows, axis]) // 2
    left_upper, right_lower = upper.copy(), lower.copy()
    left_upper[rows, axis], right_lower[rows, axis] = middle, middle + 1
    real = middle < upper[rows, axis]
    return np.concatenate([lower, right_lower[real]]), np.concatenate([left_upper, upper[real]])


class _Runs:
    """What running both at integer inputs has shown so far."""

    def __init__(self, network: Network, program: IntegerProgram, kernels: Kernels, level: Fraction, margin: Fraction) -> None:
        self.network, self.program, self.kernels, self.level, self.margin = network, program, kernels, level, margin
        self.least = -np.inf
        self.worst: Comparison | None = None
        self.changed: Comparison | None = None
        self.executed = 0
        self.ties = False
        self.seen = np.zeros(len(program.operations), dtype=bool)

    def at(self, points: IntArray) -> Comparison:
        """Compare at integer inputs. Shape: (points, inputs)."""
        found = self._compared(points)
        self.executed += len(points)
        self.ties = self.ties or found.ties > 0
        if found.saturated is not None:
            self.seen = self.seen | (found.saturated > 0)
        if found.greatest[0] > self.least:
            self.least, self.worst = found.greatest[0], self._compared(points[[found.witness]])
        changes = np.flatnonzero(found.agreement_of(self.margin) == Agreement.CHANGED)
        if self.changed is None and changes.size:
            self.changed = self._compared(points[changes[:1]])
        return found

    def _compared(self, points: IntArray) -> Comparison:
        return compare(self.network, self.program, of_grid(self.program, points), kernels=self.kernels, level=self.level)


class _Tree:
    """Boxes of integers with the axis along which each is to be halved; a `search.Tree` and a `search.Landscape`.

    The objective at an input is the upper end of its change, or `AGREES`. A box of few inputs is bounded by its exact maximum.
    """

    def __init__(
        self, runs: _Runs, bounds: ProgramZonotopes, lower: IntArray, upper: IntArray, question: Question, seed: int
    ) -> None:
        self.runs, self.bounds, self.question = runs, bounds, question
        self.lower, self.upper = lower, upper
        self.best: float = -np.inf
        self.height: float = -np.inf
        self.point: Any = None
        points = _samples(lower, upper, np.random.default_rng(seed + 1))
        self._offer(points)

    @property
    def root(self) -> Interval:
        return Interval(self.lower.astype(np.float64), self.upper.astype(np.float64))

    def value(self, points: FloatArray) -> FloatArray:
        """What is climbed, at the integers nearest to points. Shapes: (batch, inputs); (batch,)."""
        return self._height(self.runs.at(np.rint(points).astype(np.int64)))

    def searched(self, budget: Budget, limit: float | None) -> Outcome:
        """Search until the question is settled (of eps, against a limit), or the ends of an estimate are near."""
        start = time.monotonic()
        deadline = start + budget.seconds
        if self.question is Question.CHANGE or (self.runs.changed is None and self.roots().upper.max() > 0):
            self.height, self.point = polished(self, self.point, self.height, start + budget.seconds / 4)
            self._offer(self.point.round().astype(np.int64)[None])
        return explore(self, budget, tolerance=0.0, stop=lambda o: self._settled(o, limit), deadline=deadline, batch=BATCH)

    def _settled(self, outcome: Outcome, limit: float | None) -> bool:
        if self.question is Question.LABEL:
            return self.runs.changed is not None
        if limit is not None:
            return self.runs.least > limit or outcome.upper <= limit
        gap = outcome.upper - self.runs.least
        return gap <= RELATIVE * outcome.upper or gap <= SMALL * self.runs.program.result.scale

    def roots(self) -> Nodes:
        return self._bounded(self.lower[None], self.upper[None], np.full(1, np.inf))

    def split(self, nodes: Nodes) -> Nodes | None:
        lower, upper, axis = nodes.parts
        rows = np.arange(len(axis))
        if not (lower[rows, axis] < upper[rows, axis]).all():
            return None
        halves = _halved(lower, upper, axis)
        return self._bounded(*halves, np.tile(nodes.upper, 2))

    def _objective(self, found: Comparison) -> FloatArray:
        if self.question is Question.CHANGE:
            return found.changes.upper
        return np.array([AGREES[kind] for kind in Agreement])[found.agreement_of(self.runs.margin)]

    def _height(self, found: Comparison) -> FloatArray:
        """The change or, of labels, by how much the one that has the margin is lost: above 0 where it is."""
        return found.changes.upper if self.question is Question.CHANGE else _loss(found, float(self.runs.margin))

    def _offer(self, points: IntArray) -> FloatArray:
        """Compare at inputs, and keep the best; return their objectives."""
        found = self.runs.at(points)
        values, heights = self._objective(found), self._height(found)
        self.best, index = max(self.best, float(values.max())), int(heights.argmax())
        if heights[index] > self.height:
            self.height, self.point = float(heights[index]), points[index].astype(np.float64)
        return values

    def _bounded(self, lower: IntArray, upper: IntArray, parents: FloatArray) -> Nodes:
        """Bound boxes by themselves and their parents' bounds, run the small ones and the middles of the others."""
        with np.errstate(over="ignore"):
            small = (upper - lower + 1).astype(np.float64).prod(axis=1) <= FEW_POINTS
        bound, axis = parents.copy(), np.zeros(len(parents), dtype=np.int64)
        if not small.all():
            wide = np.flatnonzero(~small)
            found = self.bounds.bounds(_reals(self.runs.program, lower[wide], upper[wide]))
            own = found.change if self.question is Question.CHANGE else np.where(found.differs, AGREES[Agreement.CHANGED], 0.0)
            bound[wide] = np.minimum(bound[wide], own)
            splittable = lower[wide] < upper[wide]
            axis[wide] = np.where(splittable, found.influence + np.finfo(float).tiny, -1.0).argmax(axis=1)
            self._offer((lower[wide] + upper[wide]) // 2)
        if small.any():
            points, starts = _expanded(lower[small], upper[small])
            bound[small] = np.maximum.reduceat(self._offer(points), starts)
        return Nodes(bound, (lower, upper, axis))


def _loss(found: Comparison, margin: float) -> FloatArray:
    """The lesser of what the network's label has beyond the margin and the program's lead of another label; a heuristic."""
    before, after = found.confidences.middle, found.program.result.real(found.results.lower)
    if found.network.output is Output.SIGMOID:
        level = float(found.level)
        lead, lost = np.abs(before[:, 0] - level), np.where(before[:, 0] > level, level - after[:, 0], after[:, 0] - level)
        return np.asarray(np.minimum(lead - margin, lost))
    rows, own = np.arange(len(before)), before.argmax(axis=1)
    rivals = np.where(np.arange(before.shape[1]) == own[:, None], -1.0, 1.0)
    strongest, other = (np.where(rivals > 0, values, -1.0).max(axis=1) for values in (before, after))
    lead = before[rows, own] / (before[rows, own] + strongest) - 0.5
    return np.asarray(np.minimum(lead - margin, other - after[rows, own]))


def _expanded(lower: IntArray, upper: IntArray) -> tuple[IntArray, IntArray]:
    """Return every input of each box, box after box, and where each box starts. Shapes: (points, inputs); (boxes,)."""
    sizes = upper - lower + 1
    counts = sizes.prod(axis=1)
    starts = np.cumsum(counts) - counts
    box = np.repeat(np.arange(len(counts)), counts)
    rest = np.arange(int(counts.sum())) - starts[box]
    points = lower[box]
    for place in range(lower.shape[1]):
        points[:, place] += rest % sizes[box, place]
        rest = rest // sizes[box, place]
    return points, starts
