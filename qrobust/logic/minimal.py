"""Sets of features that explain, made minimal, found least, and enumerated.

Accepts   either side of an oracle
Gives     subset-minimal sets (by deletion or QuickXplain), sets of least size with both ends (implicit hitting sets), all
          minimal sets of both kinds, in the order of their size or as they are found
Method    a set explains exactly where it meets every minimal set of the dual kind; so each candidate is a minimal set that
          meets the dual sets so far, and where it does not explain, it gives a dual set that it has missed
Property  exact where the oracle is; anytime: a deadline leaves sets that explain but may not be minimal
Source    Junker 2004 (QuickXplain); Ignatiev, Previti, Liffiton, Marques-Silva 2015 (implicit hitting sets); Liffiton, Previti,
          Malik, Marques-Silva 2016 (MARCO, enumeration over the map of all sets)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from qrobust.logic.oracles import NOTHING, Between, Deadline, Features, Kind, Side, UndecidedError
from qrobust.logic.sat import HittingSets

FIRST_SHARE = 0.5  # of the time, for a first set before its least size is looked for
WINDOW = 24  # features that are settled with one narrower question


class Method(Enum):
    """How a set is made minimal."""

    DELETION = "deletion"
    QUICKXPLAIN = "quickxplain"


class Order(Enum):
    """In which order explanations are enumerated."""

    SIZE = "size"
    FOUND = "found"


def minimal(
    side: Side, start: Features, ranks: Sequence[int], deadline: Deadline, method: Method = Method.DELETION
) -> tuple[Features, bool]:
    """Return a part of a set that explains, and whether it is subset-minimal: at the deadline it may not be.

    Accepts   start explains; ranks: all features, those that are rather left out first
    """
    if method is Method.QUICKXPLAIN:
        try:
            return _quickxplain(side, NOTHING, True, [f for f in reversed(ranks) if f in start], deadline), True
        except UndecidedError:
            return start, False
    search = _Deletion(side, start, [feature for feature in ranks if feature in start])
    try:
        search.run(deadline)
    except UndecidedError:
        return search.kept, False
    return search.kept, search.is_minimal


class _Deletion:
    """Features are left out in blocks, which grow while they can be and shrink where they cannot, down to one.

    While blocks are large each is a question of its own; then a window of features is settled at a time, and the questions
    within it are alike in all others.
    """

    def __init__(self, side: Side, start: Features, ranks: Sequence[int]) -> None:
        self.side, self.kept = side, start
        self._waiting, self._size = list(ranks), max(WINDOW, len(ranks) // 4)
        self._open: list[int] = []  # what one question left undecided

    @property
    def is_minimal(self) -> bool:
        """Whether each feature that is kept was shown to be needed."""
        return not self._waiting and self.kept.isdisjoint(self._open)

    def run(self, deadline: Deadline) -> None:
        """Settle all that wait. Raises UndecidedError at the deadline."""
        while self._waiting:
            block = frozenset(self._waiting[: self._size])
            if self._size > WINDOW:
                is_out = self._leave_out(block, (self.kept - block, self.kept), deadline.part())[0]
                self._size = 2 * self._size if is_out else max(WINDOW, self._size // 4)
            else:
                self._settle(block, deadline)
        self._ask_again(deadline)

    def _ask_again(self, deadline: Deadline) -> None:
        """Ask about what was left undecided with all the time that is left, shared evenly."""
        for place, feature in enumerate(again := self._open):
            if feature in self.kept:
                longer = Deadline.after(deadline.left() / (len(again) - place))
                missed = self._leave_out(frozenset({feature}), (self.kept - {feature}, self.kept), longer)[1]
                if missed is not None:
                    self._open = [one for one in self._open if one != feature]

    def _settle(self, window: Features, deadline: Deadline) -> None:
        between, size = (self.kept - window, self.kept), 1
        while waiting := [feature for feature in self._waiting if feature in window]:
            block = frozenset(waiting[:size])
            is_out, missed = self._leave_out(block, between, deadline.part())
            if is_out:
                size *= 2
            elif size > 1:
                size = max(1, size // 4)
            else:
                self._open += [] if missed is not None else block
                needed = block if missed is None else block | self.side.needed(missed, self.kept, frozenset(self._waiting))
                self._waiting = [feature for feature in self._waiting if feature not in needed]

    def _leave_out(self, block: Features, between: Between, deadline: Deadline) -> tuple[bool, Features | None]:
        """Leave a block out if what remains explains; else return the dual set that it misses, None if it stays undecided."""
        try:
            holds, part = self.side.holds(self.kept - block, deadline, between)
        except UndecidedError:
            return False, None
        if holds:
            self.kept = part
            self._waiting = [feature for feature in self._waiting if feature in part]
        return holds, part


def _quickxplain(side: Side, base: Features, is_new: bool, candidates: list[int], deadline: Deadline) -> Features:
    """Return a minimal set of candidates that explains with the base; `is_new` if the base was not asked of yet."""
    if is_new and side.holds(base, deadline, (base, base.union(candidates)))[0]:
        return NOTHING
    if len(candidates) <= 1:
        return frozenset(candidates)
    first, second = candidates[: len(candidates) // 2], candidates[len(candidates) // 2 :]
    right = _quickxplain(side, base | frozenset(first), True, second, deadline)
    left = _quickxplain(side, base | right, bool(right), first, deadline)
    return left | right


@dataclass(frozen=True)
class Least:
    """A set that explains, None if none is known, and both ends of the least size: `lower` is proved, `found` has the upper."""

    found: Features | None
    lower: int
    bounds: tuple[Features, ...]  # minimal sets of the dual kind; every explanation meets each of them

    @property
    def is_least(self) -> bool:
        return self.found is not None and len(self.found) <= self.lower


def least(side: Side, start: Features, ranks: Sequence[int], deadline: Deadline) -> Least:
    """Return a set of least size that explains, or both ends so far. Accepts a start that explains."""
    best, lower = start, 0
    if side.kind is Kind.CONTRASTIVE:
        best, _ = minimal(side, start, ranks, deadline)
        best, lower = _fewest(side, best, deadline)
    with HittingSets(by_size=True) as hitting:
        try:
            if side.kind is Kind.ABDUCTIVE:
                best, _ = minimal(side, start, ranks, Deadline.after(FIRST_SHARE * deadline.left()))
            while lower < len(best):
                candidate = hitting.next(deadline)
                assert candidate is not None  # the start meets every dual set
                lower = max(lower, len(candidate))
                if lower >= len(best):
                    break
                grown = candidate
                while True:  # dual sets disjoint from each other, until what meets them all explains
                    holds, part = side.holds(grown, deadline)
                    if holds:
                        break
                    missed, _ = minimal(side.dual, part, ranks, deadline)
                    hitting.add(missed)
                    grown |= missed
                if len(part) < len(best):
                    best, _ = minimal(side, part, ranks, deadline)
        except UndecidedError:
            pass
        return Least(best, lower, tuple(hitting.sets))


def _fewest(side: Side, best: Features, deadline: Deadline) -> tuple[Features, int]:
    """Return a smaller set whose change loses the label, and a size that none is below: by halves, then one by one."""
    lower = 0
    try:
        while (half := len(best) // 2) and (found := side.oracle.few(half, deadline.part())) is not None:
            best = found.changed
    except UndecidedError:
        half = 0
    try:
        lower = half + 1 if half else 0
        while lower < len(best):
            found = side.oracle.few(lower, deadline)
            if found is None:
                lower += 1
            else:
                best = found.changed
    except UndecidedError:
        pass
    return best, lower


class Listing:
    """Minimal explanations of both kinds, one after another, those of the side's own kind in the order asked for.

    Units     complete: whether the iteration ended since nothing was left to find
    """

    def __init__(self, side: Side, ranks: Sequence[int], order: Order = Order.FOUND, most: int | None = None) -> None:
        self._side, self._ranks, self._order, self._most = side, ranks, order, most
        self.complete = False

    def run(self, deadline: Deadline) -> Iterator[tuple[Kind, Features]]:
        """Yield each explanation as it is found, until there are no more or the deadline comes."""
        with HittingSets(by_size=self._order is Order.SIZE) as hitting:
            try:
                yield from self._run(hitting, deadline)
            except UndecidedError:
                return

    def _run(self, hitting: HittingSets, deadline: Deadline) -> Iterator[tuple[Kind, Features]]:
        side, count = self._side, 0
        while self._most is None or count < self._most:
            candidate = hitting.next(deadline)
            if candidate is None:
                self.complete = True
                return
            holds, part = side.holds(candidate, deadline)
            if holds:  # minimal, since it meets each dual set minimally
                hitting.block(candidate)
                count += 1
                yield side.kind, candidate
                continue
            missed, is_minimal = minimal(side.dual, part, self._ranks, deadline)
            if not is_minimal:
                return
            hitting.add(missed)
            yield side.dual.kind, missed
