"""Decisions of binarized networks, as an oracle for explanations: a SAT solver under assumptions, replayed and confirmed.

Accepts   ranges that are boxes of levels
Gives     Fixed with the core of the assumptions, or Lost with an input replayed in integers
Method    the clauses that an input loses the label are made over the ranges with the features folded away that a run of
          questions holds, and asked under assumptions for the others; a feature is held by two order literals, so its greys are
          one feature however many bits they take. An input found is moved back towards the explained one, as far as integer
          evaluation allows; and it is tried, likewise, with another feature changed in place of one
Property  sound and complete; `confirm` decides again by other means: folding anew over the smaller box, then intervals,
          enumeration or another solver
Source    Ignatiev, Narodytska, Marques-Silva 2019, arXiv 1811.10656
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from qrobust.answers import Verdict
from qrobust.binarized.attack import attack
from qrobust.binarized.cnf import Formula, formula
from qrobust.binarized.constraints import Constraints, constraints
from qrobust.binarized.folding import Folded, over
from qrobust.binarized.network import BinarizedNetwork
from qrobust.binarized.queries import Ball, Box, Levels, Norm, Region, Robustness, TieRule, ZeroSign
from qrobust.binarized.solve import BinarizedSession, folded
from qrobust.errors import DomainError, ResourceError, UnsoundAnswerError, UnsupportedError
from qrobust.interval import BoolArray, FloatArray
from qrobust.layers import IntArray, read_only
from qrobust.logic.oracles import NOTHING, Deadline, Features, Fixed, Lost
from qrobust.logic.sat import Assumptions

ATTACK_SHARE = 0.05  # of the time
MOST_CHUNKS = 256  # inputs evaluated at a time as one is moved back


@dataclass(frozen=True, eq=False)
class SignDecision:
    """Why does the network give this input its label, where the features range over `ranges` (all their levels, if None)?

    Shapes    inputs (features,)
    Raises    UnsupportedError (ranges that are no box), DomainError (an input outside its ranges, or without the label)
    """

    network: BinarizedNetwork
    inputs: FloatArray
    ranges: Ball | Box | Levels | None = None
    label: int | None = None
    tie: TieRule = TieRule.FIRST
    zero: ZeroSign = ZeroSign.PLUS

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", read_only(self.inputs))
        if isinstance(self.ranges, Ball) and self.ranges.norm is not Norm.LINF:
            raise UnsupportedError(
                f"features have ranges of their own, which an {self.ranges.norm.value} ball has not: use linf"
            )
        region, own = self.region, self.own_label
        if not region.contains(region.centre):
            raise DomainError("the input lies outside the ranges of its features")
        if bool(self.folded.is_lost(region.centre[None], own, self.tie)[0]):
            name = self.network.class_name
            raise DomainError(f"the input has the label {name(self._label_here)}, not {name(own)}: nothing is to be explained")

    @property
    def folded(self) -> Folded:
        return folded(self.network, self.zero)

    @cached_property
    def region(self) -> Region:
        """The levels of the ranges; the centre is the explained input."""
        grid = self.network.grid
        centre = Ball(self.inputs, 0).region(self.network).centre  # type: ignore[arg-type]
        if self.ranges is None:
            return Region(centre, np.full_like(centre, grid.lowest), np.full_like(centre, grid.highest))
        return replace(self.ranges.region(self.network), centre=centre)

    @property
    def _label_here(self) -> int:
        return int(self.folded.labels(self.region.centre[None])[0])

    @property
    def own_label(self) -> int:
        return self._label_here if self.label is None else self.label


class SignOracle:
    """See the module's docstring. Use it in a `with`.

    Raises    ResourceError (too many clauses), BackendUnavailableError, UnsupportedError
    """

    def __init__(self, decision: SignDecision) -> None:
        self.decision = decision
        self._asked = decision.own_label, decision.tie
        self._session = BinarizedSession()
        self._questions: dict[bool, _Question] = {}  # by whether features are folded away: the latest of both sorts
        self._lost: dict[Features, IntArray] = {}
        found = constraints(decision.folded, decision.region, *self._asked)
        self.features: Features = frozenset(found.pixels.tolist() if found.rival_classes else [])
        influence = _influence(decision)
        self.ranks = sorted(self.features, key=lambda feature: (float(influence[feature]), feature))

    def __enter__(self) -> SignOracle:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()
        for question in self._questions.values():
            question.close()

    def _question(self, always: Features) -> _Question:
        own = self._questions.get(bool(always))
        if own is None or own.always != always:
            if own is not None:
                own.close()
            self._questions[bool(always)] = own = _Question(self.decision, always)
        return own

    def ask(self, held: Features, deadline: Deadline, always: Features = NOTHING) -> Fixed | Lost:
        """Answer by an attack, intervals or the SAT solver. Raises UndecidedError, UnsoundAnswerError."""
        always &= self.features
        own = self._questions.get(bool(always))
        lost = self._attacked(held, deadline) if own is None or own.always != always else None
        found = self._question(always).solve(held, deadline) if lost is None else lost
        if not isinstance(found, np.ndarray):
            return Fixed(found)
        self._replay(found, held)
        return self._lost_at(self._moved_back(found), held)

    def few(self, count: int, deadline: Deadline) -> Lost | None:
        """Decide by clauses that count the changed features. Raises UndecidedError, UnsoundAnswerError, ResourceError."""
        region = replace(self.decision.region, norm=Norm.L0, most=count)
        found = constraints(self.decision.folded, region, *self._asked)
        if not found.rival_classes:
            return None
        written = _written(found)
        solver = Assumptions(written.clauses, [])
        try:
            model, _ = solver.solve([], deadline)
        finally:
            solver.close()
        return None if model is None else self._lost_at(self._moved_back(written.input_levels(model)), NOTHING)

    def _attacked(self, held: Features, deadline: Deadline) -> IntArray | None:
        """Look for an input that loses the label before clauses are written, which takes longer."""
        region, rng = _narrowed(self.decision.region, held), np.random.default_rng(0)
        network = over(self.decision.folded, region.lower, region.upper)
        return attack(network, region, *self._asked, seconds=ATTACK_SHARE * deadline.left(), rng=rng)

    def _lost_at(self, levels: IntArray, held: Features) -> Lost:
        self._replay(levels, held)
        changed = frozenset(np.flatnonzero(levels != self.decision.region.centre).tolist())
        self._lost[changed] = levels
        return Lost(changed, self.decision.network.grid.values(levels))

    def others(self, changed: Features, kept: Features, wanted: Features) -> list[Lost]:
        """Try an input with another feature at an end of its range in place of the kept one; then those found likewise."""
        if changed not in self._lost:
            return []
        region, places = self.decision.region, sorted(kept)
        waiting, left, found = [self._lost[changed]], wanted - changed, list[Lost]()
        while waiting and left:
            base = waiting.pop().copy()
            base[places] = region.centre[places]
            for trial in self._lost_with_one(base, sorted(left)):
                (feature,) = np.flatnonzero((trial != region.centre)[places]).tolist()
                if places[feature] in left:
                    left -= {places[feature]}
                    waiting.append(trial)
                    found.append(self._lost_at(trial, kept - {places[feature]}))
        return found

    def _lost_with_one(self, base: IntArray, features: list[int]) -> IntArray:
        """Return inputs that lose the label, each the base with one feature at an end. Shapes: (inputs,); (n, inputs)."""
        region, found = self.decision.region, [np.zeros((0, len(base)), dtype=np.int64)]
        ends = [(i, end) for i in features for end in (region.lower[i], region.upper[i]) if end != region.centre[i]]
        for start in range(0, len(ends), MOST_CHUNKS):
            own = ends[start : start + MOST_CHUNKS]
            trials = np.repeat(base[None], len(own), axis=0)
            trials[np.arange(len(own)), [i for i, _ in own]] = [end for _, end in own]
            found.append(trials[self._is_lost(trials)])
        return np.concatenate(found)

    def _replay(self, levels: IntArray, held: Features) -> None:
        region, places = self.decision.region, sorted(held)
        same = np.array_equal(levels[places], region.centre[places])
        if not same or not region.contains(levels) or not self._is_lost(levels[None])[0]:
            raise UnsoundAnswerError("an input that was to lose the label does not when replayed: please report")

    def _is_lost(self, levels: IntArray) -> BoolArray:
        return np.asarray(self.decision.folded.is_lost(levels, *self._asked))

    def _moved_back(self, levels: IntArray) -> IntArray:
        """Return an input that loses the label with no feature left that could go back to its value alone."""
        size = int((levels != self.decision.region.centre).sum())
        while size:
            nearer = self._nearer(levels, size)
            levels, size = (levels, size // 2) if nearer is None else (nearer, size)
        return levels

    def _nearer(self, levels: IntArray, size: int) -> IntArray | None:
        """Return an input with so many of the changed features back at their values, if one of such parts can go; or None."""
        centre = self.decision.region.centre
        changed = np.flatnonzero(levels != centre)
        chunks = np.array_split(changed, -(-len(changed) // size))
        for start in range(0, len(chunks), MOST_CHUNKS):
            own = chunks[start : start + MOST_CHUNKS]
            trials = np.repeat(levels[None], len(own), axis=0)
            for trial, chunk in zip(trials, own, strict=True):
                trial[chunk] = centre[chunk]
            lost = np.flatnonzero(self._is_lost(trials))
            if len(lost):
                return np.asarray(trials[lost[0]])
        return None

    def confirm(self, held: Features, deadline: Deadline) -> str | None:
        """Return the name of an engine that proves anew that the label is kept, or None if none does in time.

        Raises    UnsoundAnswerError if one finds an input that loses it, UndecidedError
        """
        decision, region = self.decision, _narrowed(self.decision.region, held)
        where = Levels(region.lower, region.upper, region.centre)
        query = Robustness(decision.network, where, self._asked[0], decision.tie, decision.zero)
        answer = self._session.check(query, seconds=deadline.left(), exact=True)
        if answer.verdict is Verdict.VIOLATED:
            raise UnsoundAnswerError("features that were to fix the label do not, says a second engine: please report")
        return answer.engine if answer.verdict is Verdict.ROBUST else None


class _Question:
    """Whether an input loses the label, with some features held for good and more of them under assumptions."""

    def __init__(self, decision: SignDecision, always: Features) -> None:
        self.always = always
        self._written: Formula | None = None
        region, asked = _narrowed(decision.region, always), (decision.own_label, decision.tie)
        found = constraints(over(decision.folded, region.lower, region.upper), region, *asked)
        if found.rival_classes and len(found.pixels):
            self._written = _written(found)
            self._literals = _held_literals(self._written.constraints)
            likely = [literal for own in self._literals.values() for literal in own]
            self._solver = Assumptions(self._written.clauses, likely)

    def close(self) -> None:
        """Give the memory back."""
        if self._written is not None:
            self._solver.close()

    def solve(self, held: Features, deadline: Deadline) -> IntArray | Features:
        """Return an input that loses the label, or held features that fix it. Raises UndecidedError."""
        if self._written is None:
            return self.always
        named = {literal: pixel for pixel in held & self._literals.keys() for literal in self._literals[pixel]}
        model, core = self._solver.solve(list(named), deadline)
        if model is None:
            return self.always.union(named[literal] for literal in core)
        return self._written.input_levels(model)


def _held_literals(boolean: Constraints) -> dict[int, list[int]]:
    """Return the order literals that hold each pixel in the state of the explained input, the region's centre."""
    values = boolean.columns_of(boolean.region.centre)
    found = {}
    starts = boolean.starts.tolist()
    for pixel, start, end in zip(boolean.pixels.tolist(), starts, starts[1:], strict=False):
        state = start + int(values[start:end].sum())
        found[pixel] = [*([state] if state > start else []), *([-state - 1] if state < end else [])]
    return found


def _narrowed(region: Region, held: Features) -> Region:
    """Return a box with some features held at the centre's values."""
    places, lower, upper = sorted(held), region.lower.copy(), region.upper.copy()
    lower[places] = upper[places] = region.centre[places]
    return replace(region, lower=lower, upper=upper)


def _influence(decision: SignDecision) -> FloatArray:
    """Return how far each feature's range moves a rival's lead, at most, were the open signs linear. Shape: (inputs,)."""
    region = decision.region
    network = over(decision.folded, region.lower, region.upper)
    slope = network.matrix.toarray() * np.array([[float(scale)] for scale in network.scale])
    slope = slope - slope[decision.own_label]
    for layer in reversed(network.layers):
        slope = np.asarray(slope @ layer.matrix)
    return np.asarray(np.abs(slope).max(axis=0) * (region.upper - region.lower))


def _written(found: Constraints) -> Formula:
    try:
        return formula(found)
    except ResourceError as error:
        narrower = "narrow the ranges of the features, or explain a sparser network"
        raise ResourceError(str(error).replace("use another engine", narrower)) from None
