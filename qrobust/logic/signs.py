"""Decisions of binarized networks, as an oracle for explanations: a SAT solver under assumptions, replayed and confirmed.

Accepts   ranges that are boxes of levels
Gives     Fixed with the core of the assumptions, or Lost with an input replayed in integers
Method    the clauses that an input of the ranges loses the label are made once; a feature is held by two order literals, so its
          greys are one feature however many bits they take. An input found is moved back towards the explained one, as far as
          integer evaluation allows
Property  sound and complete; `confirm` decides again by other means: folding anew over the smaller box, then intervals,
          enumeration or another solver
Source    Ignatiev, Narodytska, Marques-Silva 2019, arXiv 1811.10656
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from qrobust.answers import Verdict
from qrobust.binarized.cnf import Formula, formula
from qrobust.binarized.constraints import Constraints, constraints
from qrobust.binarized.folding import Folded, TieRule, ZeroSign
from qrobust.binarized.network import BinarizedNetwork
from qrobust.binarized.queries import Ball, Box, Levels, Norm, Region, Robustness
from qrobust.binarized.solve import BinarizedSession, folded
from qrobust.errors import DomainError, ResourceError, UnsoundAnswerError, UnsupportedError
from qrobust.interval import FloatArray
from qrobust.layers import IntArray, read_only
from qrobust.logic.oracles import Deadline, Features, Fixed, Lost
from qrobust.logic.sat import Assumptions

MOST_CHUNKS = 256  # inputs evaluated at a time as one is moved back


@dataclass(frozen=True, eq=False)
class SignDecision:
    """Why does the network give this input its label, where the features range over `ranges` (all their levels, if None)?

    Shapes    inputs (features,)
    Raises    UnsupportedError (ranges that are no box), DomainError (an input outside its ranges, or without the label)
    """

    network: BinarizedNetwork
    inputs: FloatArray
    ranges: Ball | Box | None = None
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
        found = constraints(decision.folded, decision.region, *self._asked)
        self._written: Formula | None = None
        if found.rival_classes and len(found.pixels):
            self._written = _written(found)
            self._literals = self._held_literals(self._written.constraints)
            self._solver = Assumptions(self._written.clauses, [literal for own in self._literals.values() for literal in own])
        pixels = found.pixels.tolist() if self._written is not None else []
        self.features: Features = frozenset(pixels)

    def __enter__(self) -> SignOracle:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()
        if self._written is not None:
            self._solver.close()

    def _held_literals(self, boolean: Constraints) -> dict[int, list[int]]:
        """Return the order literals that hold each pixel in the state of the explained input."""
        values = boolean.columns_of(self.decision.region.centre)
        found = {}
        for pixel, start, end in zip(
            boolean.pixels.tolist(), boolean.starts.tolist(), boolean.starts[1:].tolist(), strict=False
        ):
            state = start + int(values[start:end].sum())
            found[pixel] = [*([state] if state > start else []), *([-state - 1] if state < end else [])]
        return found

    def ask(self, held: Features, deadline: Deadline) -> Fixed | Lost:
        """Answer by the SAT solver. Raises UndecidedError, UnsoundAnswerError."""
        if self._written is None:
            return Fixed(frozenset())
        named = {literal: pixel for pixel in held & self.features for literal in self._literals[pixel]}
        model, core = self._solver.solve(list(named), deadline)
        if model is None:
            return Fixed(frozenset(named[literal] for literal in core))
        levels = self._written.input_levels(model)
        self._replay(levels, held)
        levels = self._moved_back(levels)
        self._replay(levels, held)
        changed = np.flatnonzero(levels != self.decision.region.centre).tolist()
        return Lost(frozenset(changed), self.decision.network.grid.values(levels))

    def _replay(self, levels: IntArray, held: Features) -> None:
        region, places = self.decision.region, sorted(held)
        same = np.array_equal(levels[places], region.centre[places])
        if not same or not region.contains(levels) or not self._lost(levels[None])[0]:
            raise UnsoundAnswerError("an input that was to lose the label does not when replayed: please report")

    def _lost(self, levels: IntArray) -> IntArray:
        return np.asarray(self.decision.folded.is_lost(levels, *self._asked))

    def _moved_back(self, levels: IntArray) -> IntArray:
        """Return an input that loses the label with no feature left that could go back to its value alone."""
        centre = self.decision.region.centre
        size = int((levels != centre).sum())
        while size:
            changed = np.flatnonzero(levels != centre)
            chunks = np.array_split(changed, -(-len(changed) // size))[:MOST_CHUNKS] if len(changed) else []
            trials = np.repeat(levels[None], len(chunks), axis=0)
            for trial, chunk in zip(trials, chunks, strict=True):
                trial[chunk] = centre[chunk]
            lost = np.flatnonzero(self._lost(trials)).tolist() if len(chunks) else []
            if len(lost):
                levels = trials[lost[0]]
            else:
                size //= 2
        return levels

    def confirm(self, held: Features, deadline: Deadline) -> str | None:
        """Return the name of an engine that proves anew that the label is kept, or None if none does in time.

        Raises    UnsoundAnswerError if one finds an input that loses it, UndecidedError
        """
        region, places, decision = self.decision.region, sorted(held), self.decision
        lower, upper = region.lower.copy(), region.upper.copy()
        lower[places] = upper[places] = region.centre[places]
        query = Robustness(decision.network, Levels(lower, upper, region.centre), self._asked[0], decision.tie, decision.zero)
        answer = self._session.check(query, seconds=deadline.left(), exact=True)
        if answer.verdict is Verdict.VIOLATED:
            raise UnsoundAnswerError("features that were to fix the label do not, says a second engine: please report")
        return answer.engine if answer.verdict is Verdict.ROBUST else None


def _written(found: Constraints) -> Formula:
    try:
        return formula(found)
    except ResourceError as error:
        narrower = "narrow the ranges of the features, or explain a sparser network"
        raise ResourceError(str(error).replace("use another engine", narrower)) from None
