"""How far the features of an explanation may themselves move: ranges of levels that alone fix the label.

Accepts   features that fix a decision's label at their values
Gives     a range for each, around its value, that cannot be made wider on either side; the label is kept wherever all features
          of the explanation are within their ranges, whatever the others do
Method    feature by feature, lower end then upper, by halving: each question is one of robustness over a box of levels
Property  sound: every range taken is proved; widest while time lasts, and says so
Source    Izza, Ignatiev, Stuckey, Marques-Silva 2023, arXiv 2306.15272 (inflated explanations)
"""

from __future__ import annotations

from dataclasses import dataclass

from qrobust.answers import Verdict
from qrobust.binarized.queries import Levels, Robustness
from qrobust.binarized.solve import BinarizedSession
from qrobust.errors import UnsoundAnswerError
from qrobust.layers import IntArray
from qrobust.logic.oracles import Deadline, Features, UndecidedError
from qrobust.logic.signs import SignDecision


@dataclass(frozen=True, eq=False)
class Ranges:
    """Shapes    lower, upper (inputs,), of levels: those of the explanation's features as wide as proved, the others' whole.

    Units     is_widest: none can be made wider; engine: who proved the last
    """

    lower: IntArray
    upper: IntArray
    is_widest: bool
    engine: str


def widened(decision: SignDecision, features: Features, *, seconds: float = 60.0) -> Ranges:
    """Return ranges for an explanation's features.

    Raises    NumberError, UnsoundAnswerError (these features do not fix the label)
    """
    deadline, region, places = Deadline.after(seconds), decision.region, sorted(features)
    ends = region.lower.copy(), region.upper.copy()
    for own in ends:
        own[places] = region.centre[places]
    with BinarizedSession() as session:
        search = _Widening(decision, session, deadline, ends)
        is_widest = search.holds(*ends)
        if search.is_refuted:
            raise UnsoundAnswerError("features that were to fix the label do not: please report")
        for place in places if is_widest else ():
            is_widest &= search.widen(place, 0, int(region.lower[place])) & search.widen(place, 1, int(region.upper[place]))
    return Ranges(*search.ends, is_widest, search.engine)


class _Widening:
    """The widest ranges so far, and whether a question was left open or refuted."""

    def __init__(
        self, decision: SignDecision, session: BinarizedSession, deadline: Deadline, ends: tuple[IntArray, IntArray]
    ) -> None:
        self.ends, self.engine, self.is_refuted = ends, "", False
        self._decision, self._session, self._deadline = decision, session, deadline

    def holds(self, lower: IntArray, upper: IntArray) -> bool:
        """Whether the label is proved to be kept within these ranges."""
        decision, self.is_refuted = self._decision, False
        where = Levels(lower, upper, decision.region.centre)
        query = Robustness(decision.network, where, decision.own_label, decision.tie, decision.zero)
        try:
            answer = self._session.check(query, seconds=self._deadline.left(), exact=True)
        except UndecidedError:
            return False
        self.is_refuted = answer.verdict is Verdict.VIOLATED
        if answer.verdict is Verdict.ROBUST:
            self.engine = answer.engine
        return answer.verdict is Verdict.ROBUST

    def widen(self, place: int, side: int, most: int) -> bool:
        """Move one end of one range as far as is proved; return whether the step after it was refuted."""
        known = int(self.ends[side][place])
        refused, trial, is_widest = most + (1 if side else -1), most, True  # the whole range is tried first
        while abs(refused - known) > 1:
            ends = [own.copy() for own in self.ends]
            ends[side][place] = trial
            if self.holds(ends[0], ends[1]):
                self.ends, known = (ends[0], ends[1]), trial
            else:
                is_widest &= self.is_refuted
                refused = trial
            trial = (known + refused) // 2
        return is_widest
