"""What an attack is to reach, and the best that it has found so far, replayed in integers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.binarized.folding import Folded
from qrobust.binarized.queries import Region, TieRule
from qrobust.layers import IntArray


@dataclass(frozen=True, eq=False)
class Goal:
    """One of the rivals is to take the label."""

    folded: Folded
    label: int
    rivals: tuple[int, ...]
    tie: TieRule

    def margins(self, levels: IntArray) -> npt.NDArray[Any]:
        """Return integers, ordered as the leads and in equals by who wins, not negative where the label is lost to the rival.

        Shapes    levels (batch, inputs); result (batch, rivals)
        """
        scores = self.folded.scores(levels).astype(object)
        return np.asarray(2 * (scores[:, list(self.rivals)] - scores[:, [self.label]]) - self._needed, dtype=object)

    @property
    def _needed(self) -> IntArray:
        """0 where the rival wins ties, else 1."""
        rivals = np.array(self.rivals, dtype=np.int64)
        if self.tie is TieRule.FIRST:
            return (rivals > self.label).astype(np.int64)
        return np.full_like(rivals, self.tie is TieRule.LABEL)

    def lead(self, levels: IntArray, rival: int) -> Fraction:
        """Return a rival's score less the label's, exactly. Shape: levels (inputs,)."""
        scores = self.folded.scores(levels[None])[0]
        return Fraction(int(scores[rival]) - int(scores[self.label]), self.folded.score_unit)


class Best:
    """The best input so far. Every input comes in through `offer`, which replays it; what leaves the region is left out."""

    def __init__(self, goal: Goal, region: Region, seconds: float, stop_at_hit: bool) -> None:
        self._goal, self._region, self._stop_at_hit = goal, region, stop_at_hit
        self._started = time.monotonic()
        self.limit, self.deadline = seconds, self._started + seconds
        self.levels: IntArray = region.centre
        self.margin: int | None = None
        self.rival = goal.rivals[0]
        self.lead = Fraction(0)
        self.trace: list[tuple[float, Fraction]] = []

    @property
    def hits(self) -> bool:
        return self.margin is not None and self.margin >= 0

    @property
    def left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def is_over(self) -> bool:
        return self.left == 0.0 or (self._stop_at_hit and self.hits)

    def offer(self, points: IntArray) -> bool:
        """Take the best of some inputs, and return whether it is better than before. Shape: points (batch, inputs)."""
        inside = [point for point in points if self._region.contains(point)]
        if not inside:
            return False
        margins = self._goal.margins(np.array(inside))
        place, rival = np.unravel_index(int(np.argmax(margins)), margins.shape)
        margin = int(margins[place, rival])
        if self.margin is not None and margin <= self.margin:
            return False
        self.margin, self.levels, self.rival = margin, np.array(inside[int(place)]), self._goal.rivals[int(rival)]
        self.lead = self._goal.lead(self.levels, self.rival)
        self.trace.append((self.seconds, self.lead))
        return True
