"""The front door: fold, fold intervals, attack, race the engines, replay, answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from types import TracebackType

import numpy as np

from qrobust.answers import Verdict
from qrobust.binarized.answers import (
    BRANCHING,
    ENUMERATION,
    INTERVALS,
    TRIAL,
    BinarizedAnswer,
    LabelChangeAnswer,
    LeastChangeAnswer,
    PairWitness,
    Witness,
    cost_units,
)
from qrobust.binarized.attack import ROUNDS, attack
from qrobust.binarized.constraints import Constraints, constraints_of
from qrobust.binarized.engines import branching, cardinality, trial
from qrobust.binarized.engines.base import LATE, Found, Nothing, Outcome, Undecided
from qrobust.binarized.enumeration import first_lost, is_small
from qrobust.binarized.float_pairs import FloatLabels, FloatPair
from qrobust.binarized.float_pairs import is_small as is_small_region
from qrobust.binarized.folding import Folded, fold, over
from qrobust.binarized.network import BinarizedNetwork
from qrobust.binarized.pairs import SAME, paired
from qrobust.binarized.queries import Ball, LabelChange, LeastChange, Norm, Region, Robustness, TieRule, ZeroSign
from qrobust.binarized.race import CARDINALITY, PORTFOLIO, Finish, Race, available, check_engine, engine_names
from qrobust.errors import NumberError, UnsoundAnswerError
from qrobust.layers import IntArray
from qrobust.network import Network

ATTACK = "attack"
ATTACK_SHARE = 0.1  # of the time
FEW_ROUNDS = 2  # of attack, before a small formula is tried
LAST_SECONDS = 0.1  # of attack at each radius, beyond the time limit, where a least change has no upper end yet
SMALL_FORMULA = 40_000  # literals
CONFLICTS = 20_000  # of a small formula, less where its literals times conflicts would be more than WORK
WORK = 2 * 10**8
FEW_BITS = 30.0  # of a box that is split sooner than a formula is written and solved
SPLIT_SECONDS = 0.1  # that a box is split for in this process; then that is a lane of the race
AT_ONCE = 0.2  # seconds that trying every input may take in this process; what takes longer is a lane of the race


@lru_cache(maxsize=16)
def folded(network: BinarizedNetwork, zero: ZeroSign) -> Folded:
    """Return the network in integers, made once. Raises UnsupportedError."""
    return fold(network, zero)


class BinarizedSession:
    """Answers questions one after another; the engines' processes stay warm in between. Use it in a `with`.

    Accepts   races: how many sessions ask at the same time, which share the processor cores
    """

    def __init__(self, *, seed: int = 0, races: int = 1) -> None:
        self._race, self._seed, self._races = Race(), seed, races

    def __enter__(self) -> BinarizedSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the engines' processes."""
        self._race.close()

    def interrupt(self) -> None:
        """Have the question that another thread asks end soon, without an answer."""
        self._race.interrupt()

    def check(
        self, query: Robustness, *, engine: str = PORTFOLIO, seconds: float = 60.0, exact: bool = False
    ) -> BinarizedAnswer:
        """Answer whether the label is kept. With `exact`, a float engine's ROBUST does not count.

        Raises    UnsupportedError, BackendUnavailableError, UnsoundAnswerError, NumberError, ShapeError, DomainError
        """
        started, integers = _start(engine, seconds), folded(query.network, query.zero)
        region = query.ball.region(query.network)
        label = _own_label(integers, region.centre) if query.label is None else query.label
        found = self._decide(integers, region, (label, query.tie), (engine, started + seconds, exact))
        return BinarizedAnswer(
            query, found.verdict, found.engine, found.exact, time.monotonic() - started, label, found.witness, found.reason
        )

    def least_change(
        self, query: LeastChange, *, engine: str = PORTFOLIO, seconds: float = 60.0, exact: bool = False
    ) -> LeastChangeAnswer:
        """Answer how little change loses the label: ends that close in on each other until they meet or time is up.

        Raises    as `check`
        """
        started, integers = _start(engine, seconds), folded(query.network, query.zero)
        grid = query.network.grid
        centre = Ball(query.centre, Fraction(0), query.norm).region(query.network).centre
        label = _own_label(integers, centre) if query.label is None else query.label
        most = cost_units(query.norm, np.full_like(centre, grid.highest - grid.lowest))
        ends = _Ends()
        if bool(integers.is_lost(centre[None], label, query.tie)[0]):
            ends.hit(0, _witness(integers, centre, label, query.tie))
        while not ends.met:
            radius = ends.next_radius(most)
            region = _units_region((grid.lowest, grid.highest), centre, query.norm, radius)
            found = self._decide(integers, region, (label, query.tie), (engine, started + seconds, exact))
            ends.engines.setdefault(found.engine)
            if found.witness is not None:
                ends.hit(cost_units(query.norm, found.witness.levels - centre), found.witness)
            elif found.verdict is Verdict.UNKNOWN:
                ends.reason = found.reason
                break
            else:
                ends.miss(radius, found.exact)
                if radius == most:
                    ends.reason = "no input loses the label"
                    break
        if ends.upper is None and ends.lower <= most:
            far = _far_hit(integers, query, (label, ends.lower, most), np.random.default_rng(self._seed))
            if far is not None:
                ends.hit(cost_units(query.norm, far - centre), _witness(integers, far, label, query.tie))
                ends.engines.setdefault(ATTACK)
        taken, names = time.monotonic() - started, tuple(ends.engines)
        return LeastChangeAnswer(query, ends.lower, ends.upper, ends.witness, ends.exact, taken, label, names, ends.reason)

    def label_change(
        self, query: LabelChange, *, engine: str = PORTFOLIO, seconds: float = 60.0, exact: bool = False
    ) -> LabelChangeAnswer:
        """Answer whether a network and its copy label every input of the ball alike.

        Raises    as `check`; UnsupportedError if the two round their inputs differently
        """
        started, copy = _start(engine, seconds), folded(query.copy, query.zero)
        region, settings = query.ball.region(query.copy), (engine, started + seconds, exact)
        if isinstance(query.network, Network):
            labels = FloatLabels(query.network, query.copy.grid)
            found, label_of = self._float_change(FloatPair(labels, copy), region, settings), labels.at
        else:
            own = folded(query.network, query.zero)
            found, label_of = self._decide(paired(own, copy), region, (SAME, TieRule.LABEL), settings), own.labels
        witness = None
        if found.witness is not None:
            levels = found.witness.levels
            witness = PairWitness(levels, int(label_of(levels[None])[0]), _own_label(copy, levels))
            if witness.label == witness.copy_label or not region.contains(levels):
                raise UnsoundAnswerError("an input that was to be labelled differently is not when replayed: please report")
        taken = time.monotonic() - started
        return LabelChangeAnswer(query, found.verdict, found.engine, found.exact, taken, witness, found.reason)

    def _float_change(self, pair: FloatPair, region: Region, settings: tuple[str, float, bool]) -> _Decision:
        """Decide a region of a float network and a network of signs; an engine's name stands for the weakest that was asked."""
        names: dict[str, None] = {}

        def ask(part: Region, label: int) -> Outcome:
            found = self._decide(pair.copy, part, (label, TieRule.FIRST), settings)
            names.setdefault(found.engine)
            if found.witness is not None:
                return Found(found.witness.levels)
            return Nothing(found.exact) if found.verdict is Verdict.ROBUST else Undecided(found.reason)

        if is_small_region(region):
            outcome, name = pair.tried(region, settings[1]), ENUMERATION
        else:
            outcome = pair.searched(region, ask, settings[1], np.random.default_rng(self._seed))
            solvers = [name for name in names if name not in (INTERVALS, ENUMERATION)]
            name = ", ".join(solvers) or (ATTACK if isinstance(outcome, Found) else INTERVALS)
        match outcome:
            case Found(levels):
                return _Decision(Verdict.VIOLATED, name, True, Witness(levels, 0, 0))
            case Nothing(is_exact):
                return _Decision(Verdict.ROBUST, name, is_exact)
            case Undecided(reason):
                return _Decision(Verdict.UNKNOWN, name, True, reason=reason)

    def _decide(
        self, integers: Folded, region: Region, asked: tuple[int, TieRule], settings: tuple[str, float, bool]
    ) -> _Decision:
        (label, tie), engine = asked, settings[0]
        if bool(integers.is_lost(region.centre[None], label, tie)[0]):
            return _Decision(Verdict.VIOLATED, INTERVALS, True, _witness(integers, region.centre, label, tie))
        small = over(integers, region.lower, region.upper)
        rivals = small.in_reach(small.rivals(label, tie), region.lower, region.upper)
        if not rivals.numbers:
            return _Decision(Verdict.ROBUST, INTERVALS, True)
        rng, deadline, is_raced = np.random.default_rng(self._seed), settings[1], engine == PORTFOLIO
        hit = _attacked((integers, small), region, asked, deadline, FEW_ROUNDS, rng) if is_raced else None
        if hit is not None:
            return hit
        found = constraints_of(small, region, rivals)
        if not found.rival_classes:
            return _Decision(Verdict.ROBUST, INTERVALS, True)
        soon = _here(integers, found, asked, deadline) if is_raced else None
        if soon is None and is_raced:
            soon = _attacked((integers, small), region, asked, deadline, ROUNDS, rng)
        return self._raced(integers, found, asked, settings) if soon is None else soon

    def _raced(
        self, integers: Folded, found: Constraints, asked: tuple[int, TieRule], settings: tuple[str, float, bool]
    ) -> _Decision:
        (label, tie), (engine, deadline, exact) = asked, settings
        left = deadline - time.monotonic()
        if left <= 0:
            return _Decision(Verdict.UNKNOWN, engine, True, reason=LATE)

        def counts(finish: Finish) -> bool:
            if isinstance(finish.outcome, Found):
                return _replays(integers, found.region, finish, asked)
            return isinstance(finish.outcome, Nothing) and (finish.outcome.exact or not exact)

        winner, others = self._race.run(engine_names(engine, found, left, self._races), found, left, counts)
        if winner is None:
            return _Decision(Verdict.UNKNOWN, engine, True, reason="; ".join(_why(finish) for finish in others))
        if isinstance(winner.outcome, Found):
            return _Decision(Verdict.VIOLATED, winner.engine, True, _witness(integers, winner.outcome.levels, label, tie))
        assert isinstance(winner.outcome, Nothing)
        return _Decision(Verdict.ROBUST, winner.engine, winner.outcome.exact)


def _attacked(
    networks: tuple[Folded, Folded],
    region: Region,
    asked: tuple[int, TieRule],
    deadline: float,
    rounds: int,
    rng: np.random.Generator,
) -> _Decision | None:
    """Look for an input that loses the label by attacks on the network without its constant signs; None if none is found."""
    (integers, small), seconds = networks, (deadline - time.monotonic()) * ATTACK_SHARE
    hit = attack(small, region, *asked, seconds=seconds, rng=rng, rounds=rounds)
    return None if hit is None else _Decision(Verdict.VIOLATED, ATTACK, True, _witness(integers, hit, *asked))


def _far_hit(integers: Folded, query: LeastChange, asked: tuple[int, int, int], rng: np.random.Generator) -> IntArray | None:
    """Look for any input that loses the label, at twice the radius each time: time is up, and no upper end is known."""
    label, radius, most = asked
    grid = query.network.grid
    centre, radius = grid.levels(query.centre), max(radius, 1)
    while True:
        region = _units_region((grid.lowest, grid.highest), centre, query.norm, radius)
        found = attack(integers, region, label, query.tie, seconds=LAST_SECONDS, rng=rng, rounds=FEW_ROUNDS)
        if found is not None or radius == most:
            return found
        radius = min(2 * radius, most)


def _here(integers: Folded, found: Constraints, asked: tuple[int, TieRule], deadline: float) -> _Decision | None:
    """Decide in this process by what ends soon; None if nothing does."""
    for decide in (_split, _soon) if branching.bits(found) <= FEW_BITS else (_soon, _split):
        decision = decide(integers, found, asked, deadline)
        if decision is not None:
            return decision
    return _enumerated(integers, found, asked) or _tried(integers, found, asked, deadline)


def _soon(integers: Folded, found: Constraints, asked: tuple[int, TieRule], deadline: float) -> _Decision | None:
    """Decide a small formula in this process; None if it is not small, or takes too many conflicts, or too long."""
    if not is_small_formula(found):
        return None
    conflicts = min(CONFLICTS, WORK // max(1, cardinality.literal_count(found)))
    outcome = cardinality.decide_here(found, conflicts, min(deadline - time.monotonic(), cardinality.MOST_SECONDS))
    return _settled(integers, found, asked, Finish(CARDINALITY, outcome))


def _split(integers: Folded, found: Constraints, asked: tuple[int, TieRule], deadline: float) -> _Decision | None:
    """Decide a box by halves in this process; None if its inputs are many, or it takes long."""
    if branching.bits(found) > branching.MANY_BITS:
        return None
    left = min(deadline - time.monotonic(), SPLIT_SECONDS)
    return _settled(integers, found, asked, Finish(BRANCHING, branching.decide(found, left)))


def _tried(integers: Folded, found: Constraints, asked: tuple[int, TieRule], deadline: float) -> _Decision | None:
    """Decide by every input in this process; None if that may take long, or cannot be done."""
    if trial.forecast(found) >= AT_ONCE:
        return None
    return _settled(integers, found, asked, Finish(TRIAL, trial.decide(found, deadline - time.monotonic())))


def _settled(integers: Folded, found: Constraints, asked: tuple[int, TieRule], finish: Finish) -> _Decision | None:
    """Return what an engine in this process has decided, its input replayed; None if it has not."""
    if isinstance(finish.outcome, Found):
        _replays(integers, found.region, finish, asked)
        return _Decision(Verdict.VIOLATED, finish.engine, True, _witness(integers, finish.outcome.levels, *asked))
    return _Decision(Verdict.ROBUST, finish.engine, finish.outcome.exact) if isinstance(finish.outcome, Nothing) else None


def _enumerated(integers: Folded, found: Constraints, asked: tuple[int, TieRule]) -> _Decision | None:
    """Decide by the network itself at every input, where these are few; else None."""
    if not is_small(integers, found):
        return None
    levels = first_lost(integers, found, *asked)
    if levels is None:
        return _Decision(Verdict.ROBUST, ENUMERATION, True)
    return _Decision(Verdict.VIOLATED, ENUMERATION, True, _witness(integers, levels, *asked))


def is_small_formula(found: Constraints) -> bool:
    """Whether sums are written and looked through in this process sooner than another process answers."""
    return available(CARDINALITY) and cardinality.literal_count(found) <= SMALL_FORMULA


@dataclass(frozen=True, eq=False)
class _Decision:
    verdict: Verdict
    engine: str
    exact: bool
    witness: Witness | None = None
    reason: str = ""


@dataclass(eq=False)
class _Ends:
    """What is known of a least change: all below `lower` is ruled out, all below `proved` in integers, `upper` is witnessed."""

    lower: int = 0
    proved: int = 0
    upper: int | None = None
    witness: Witness | None = None
    reason: str = ""
    stride: int = 1
    engines: dict[str, None] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return self.upper is not None and self.lower >= self.upper

    def next_radius(self, most: int) -> int:
        """Return a radius to ask about: growing strides until there is a witness, then the middle."""
        return min(self.lower + self.stride - 1, most) if self.upper is None else (self.lower + self.upper - 1) // 2

    @property
    def exact(self) -> bool:
        return self.lower == self.proved

    def hit(self, units: int, witness: Witness) -> None:
        """Take a witness; where floats have ruled it out, they are not believed. Raises UnsoundAnswerError if integers have."""
        if units < self.proved:
            raise UnsoundAnswerError(f"an input {units} away loses the label, which an engine has ruled out: please report")
        self.upper, self.witness = units, witness
        self.lower = self.lower if units >= self.lower else self.proved

    def miss(self, radius: int, exact: bool) -> None:
        self.lower, self.stride = radius + 1, 2 * self.stride
        self.proved = self.lower if exact else self.proved


def check_seconds(seconds: float) -> None:
    """Raise NumberError unless a time limit is positive and finite."""
    if not 0 < seconds < float("inf"):
        raise NumberError(f"a time limit is {seconds:g} s, it must be positive and finite")


def _start(engine: str, seconds: float) -> float:
    check_engine(engine)
    check_seconds(seconds)
    return time.monotonic()


def _own_label(integers: Folded, centre: IntArray) -> int:
    return int(integers.labels(centre[None])[0])


def _replays(integers: Folded, region: Region, finish: Finish, asked: tuple[int, TieRule]) -> bool:
    """Whether an engine's input is what it says. Raises UnsoundAnswerError if it is not, and the engine is no float engine."""
    assert isinstance(finish.outcome, Found)
    levels = finish.outcome.levels
    if region.contains(levels) and bool(integers.is_lost(levels[None], *asked)[0]):
        return True
    if finish.engine == "milp":
        return False
    raise UnsoundAnswerError(f"the {finish.engine} engine's input does not lose the label when replayed: please report")


def _why(finish: Finish) -> str:
    match finish.outcome:
        case Undecided(reason):
            return f"{finish.engine}: {reason}"
        case Found():
            return f"{finish.engine}: its input does not replay in integers"
        case Nothing():
            return f"{finish.engine}: it finds none, in floating point only"


def _witness(integers: Folded, levels: IntArray, label: int, tie: TieRule) -> Witness:
    """Return a replayed witness. Raises UnsoundAnswerError if the label is kept."""
    if not bool(integers.is_lost(levels[None], label, tie)[0]):
        raise UnsoundAnswerError("an input that was to lose the label keeps it when replayed: please report")
    scores = integers.scores(levels[None])[0].tolist()
    best = max(score for number, score in enumerate(scores) if number != label)
    rival = next(number for number, score in enumerate(scores) if number != label and score == best)
    float_label = int(integers.network.scores(levels[None])[0].argmax())
    return Witness(levels, rival, float_label)


def _units_region(ends: tuple[int, int], centre: IntArray, norm: Norm, units: int) -> Region:
    """Return the inputs on the grid, whose lowest and highest level are its ends, within so many units of the centre."""
    lowest, highest = ends
    if norm in (Norm.L0, Norm.HAMMING):
        return Region(centre, np.full_like(centre, lowest), np.full_like(centre, highest), Norm.L0, units)
    reach = int(np.sqrt(units)) if norm is Norm.L2 else units
    lower, upper = np.maximum(centre - reach, lowest), np.minimum(centre + reach, highest)
    return Region(centre, lower, upper, norm, 0 if norm is Norm.LINF else units)
