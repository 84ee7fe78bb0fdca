"""Building a bracket: train both halves on f's labels, find the least threshold with which each is right, mend, and go on.

Method    1. cells of the domain, by volume, and those of rows of data, labelled by f: an answer is wanted of a cell where f
             gives it throughout;
          2. each half is first put together from boxes on which its claim is proved (`bracket_boxes`), where it has one
             hidden layer, and is then trained with a loss that punishes a wrong yes;
          3. the least output threshold with which it is right everywhere is found and proved (`bracket_proof`);
          4. the cells of the search's wrong points are added, and the half is trained on; the round that answers most is kept.
             The last word has the threshold: high enough, a half is silent and therefore right
Property  whatever training gives and whenever the budget ends, what is returned is proved. Deterministic for a seed, unless the
          time limit ends it
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qrobust.answers import VERSION
from qrobust.binarized.bracket import (
    ASK,
    Bracket,
    Coverage,
    Half,
    Side,
    cost_of,
    coverage_of_rows,
    coverage_of_volume,
)
from qrobust.binarized.bracket_boxes import Cells, boxes_half
from qrobust.binarized.bracket_proof import Claim, GreatestWrongSum, Sums, greatest_wrong_sum, half_of
from qrobust.binarized.bracket_training import Recipe, first_latent, train_half
from qrobust.binarized.thermometer import Thermometer
from qrobust.errors import NumberError
from qrobust.interval import BoolArray, FloatArray
from qrobust.layers import IntArray
from qrobust.network import Network
from qrobust.search import Budget

MOST_POINTS = 2**14  # of the domain, uniform, where there are more cells than this
AT_ONCE = 2**12  # cells labelled at a time
DATA_SHARE = 0.5  # of the weight of all points goes to rows of data, where there are any
WRONG_SHARE = 0.25  # of the weight of all points goes to wrong points, once there are any
BOX_SHARE = 0.4  # of the time that is left goes to boxes
PROOF_SHARE = 0.5  # of the time that is left goes to one proof, at most
MOST_PROOF_BOXES = 400_000
TRIED = 64  # points, of which one shows that a lesser threshold is wrong
MOST_WRONG = 20_000  # points kept for training
LEAST_SECONDS = 0.5  # of one proof, even where time is up: what is returned is proved
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Round:
    """One half, trained and proved: its threshold is the least that holds, or higher where the budget ended the search.

    `value` is the share of the domain that it answers; where there are rows of data, the mean of that and of their share.
    """

    half: Half
    trained_threshold: int
    found: GreatestWrongSum
    value: float
    name: str

    def __str__(self) -> str:
        reason = f" ({self.found.reason})" if self.found.reason else ""
        return (
            f"{self.name}: threshold {self.trained_threshold} trained, {self.half.threshold} proved{reason},"
            f" coverage {self.value:.1%}, {self.found.boxes:,} boxes"
        )


@dataclass(frozen=True, eq=False)
class Built:
    """A bracket whose two halves are proved, and how it came about."""

    bracket: Bracket
    network: Network
    rounds: tuple[Round, ...]
    chosen: tuple[Round, Round]
    volume: Coverage
    rows: Coverage | None
    seconds: float
    seed: int

    @property
    def is_silent(self) -> bool:
        """Whether it answers nothing that was looked at: no part of the volume, and no row."""
        return self.volume.answered == 0 and (self.rows is None or self.rows.answered == 0)

    def to_json(self) -> dict[str, Any]:
        """Return what was found as JSON values."""
        bracket, own = self.bracket, cost_of(self.network)
        return {
            "network": {"name": self.network.name, "sha256": self.network.sha256},
            "class": bracket.class_name,
            "domain": bracket.code.box.to_json(),
            "bits": list(bracket.code.bit_names),
            "halves": [_round_document(one) for one in self.chosen],
            "volume": self.volume.to_json(),
            "data": None if self.rows is None else self.rows.to_json(),
            "cost": {"bracket": bracket.cost().to_json(), "network": own.to_json()},
            "bracket": {"sha256": bracket.network.sha256},
            "seed": self.seed,
            "seconds": self.seconds,
            "qrobust": VERSION,
        }


def _round_document(one: Round) -> dict[str, Any]:
    low, high = one.found.lower, one.found.upper
    return {
        "side": one.found.claim.side.word,
        "claim": str(one.found.claim),
        "verdict": "PROVED",
        "assurance": "ROUNDED",
        "threshold": one.half.threshold,
        "least_threshold": [None if end == -np.inf else end for end in (low, high)],
        "trained_threshold": one.trained_threshold,
        "witness_below": None if one.found.witness is None else one.found.witness.tolist(),
        "signs": [len(bias) for _, bias in one.half.layers],
        "round": one.name,
        "reason": one.found.reason or None,
        "seconds": one.found.seconds,
    }


@dataclass(frozen=True)
class Plan:
    """How much is tried: `starts` trainings from new numbers, each mended for `rounds`; seconds for everything.

    Raises    NumberError
    """

    recipe: Recipe = field(default_factory=Recipe)
    starts: int = 3
    rounds: int = 4
    seconds: float = 60.0
    boxes: int = MOST_PROOF_BOXES
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("starts", "rounds", "boxes"):
            if getattr(self, name) < 1:
                raise NumberError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if not self.seconds > 0:
            raise NumberError(f"the time limit is {self.seconds:g} s, it must be above 0: give for example 60")


def build(
    network: Network,
    label: int,
    code: Thermometer,
    plan: Plan,
    data: FloatArray | None = None,
    say: Say = lambda text: None,
    first: Bracket | None = None,
) -> Built:
    """Return a bracket of a class, both halves proved. Shapes: data (rows, inputs).

    `first` is an earlier one of the same class and code, whose halves are proved anew and kept unless better ones are found:
    so a long work goes on where it was left, with another seed.
    Raises    DomainError (no such class; data outside the domain; another network's bracket), ShapeError, ResourceError
    """
    started = time.monotonic()
    claims = [Claim(network, label, side) for side in Side]
    rng = np.random.default_rng(plan.seed)
    rows = np.zeros((0, code.box.inputs)) if data is None else np.asarray(data, dtype=np.float64)
    code.check_inside(rows)
    if first is not None:
        first.check_belongs(network)
    rounds: list[Round] = []
    chosen = []
    for claim, deadline in zip(claims, (started + plan.seconds / 2, started + plan.seconds), strict=True):
        own = list(_Builder(claim, code, plan, rows, deadline, rng).rounds(say, first))
        rounds += own
        chosen.append(max(own, key=lambda one: one.value))
    halves = {one.found.claim.side: one.half for one in chosen}
    bracket = Bracket.of_halves(network, label, code, halves)
    volume = coverage_of_volume(code, bracket.answers_of, rng)
    covered = coverage_of_rows(code, bracket.answers_of, rows) if len(rows) else None
    seconds = time.monotonic() - started
    return Built(bracket, network, tuple(rounds), (chosen[0], chosen[1]), volume, covered, seconds, plan.seed)


@dataclass(frozen=True, eq=False)
class _Material:
    """Cells to train on. Shapes: codes (rows, features); wanted, weights (rows,)."""

    codes: IntArray
    wanted: BoolArray
    weights: FloatArray


@dataclass(frozen=True, eq=False)
class _Builder:
    """What the rounds of one half share."""

    claim: Claim
    code: Thermometer
    plan: Plan
    rows: FloatArray
    deadline: float
    rng: np.random.Generator

    def rounds(self, say: Say, first: Bracket | None) -> Iterator[Round]:
        """Yield rounds, one at least, until all are done or time is up; first that of an earlier bracket."""
        if first is not None:
            one = self._proved(half_of(first, self.claim.side), f"{self.claim.side.word}, as it was")
            say(str(one))
            yield one
        material = self._material()
        if (half := self._of_boxes(material)) is not None:
            one = self._proved(half, f"{self.claim.side.word}, boxes", self._surely(half, material))
            say(str(one))
            yield one
            if time.monotonic() > self.deadline:
                return
        for start in range(1, self.plan.starts + 1):
            latent = first_latent(self.plan.recipe, self.code, self.code.bits_of(material.codes), self.rng)
            for number in range(1, self.plan.rounds + 1):
                latent = train_half(
                    self.plan.recipe, latent, self.code.bits_of(material.codes), material.wanted, material.weights, self.rng
                )
                one = self._proved(latent.half(), f"{self.claim.side.word}, start {start}, round {number}")
                say(str(one))
                yield one
                if time.monotonic() > self.deadline:
                    return
                material = self._with_wrong(material, one.found.wrong)

    def _of_boxes(self, material: _Material) -> Half | None:
        """Return a half of proved boxes; None where it is to have other than one hidden layer, or nothing is wanted."""
        sizes, wanted = self.plan.recipe.hidden, material.wanted
        if len(sizes) != 1 or not wanted.any():
            return None
        cells = Cells(material.codes[wanted], material.weights[wanted])
        deadline = time.monotonic() + BOX_SHARE * (self.deadline - time.monotonic())
        return boxes_half(self.claim, self.code, cells, sizes[0], deadline, self.rng)

    def _material(self) -> _Material:
        """Return the cells to train on: all, or those of random points; those of rows of data weigh as much together."""
        if self.code.cells <= MOST_POINTS:
            codes = np.concatenate(list(self.code.all_codes()))
            weights = self.code.shares(codes)
        else:
            codes = self.code.codes(self.code.random_points(MOST_POINTS, self.rng))
            weights = np.full(len(codes), 1 / MOST_POINTS)
        if len(self.rows):
            codes = np.concatenate([codes, self.code.codes(self.rows)])
            own = np.full(len(self.rows), DATA_SHARE / len(self.rows))
            weights = np.concatenate([(1 - DATA_SHARE) * weights, own])
        return self._labelled(codes, weights)

    def _labelled(self, codes: IntArray, weights: FloatArray) -> _Material:
        cells, place = np.unique(codes, axis=0, return_inverse=True)
        total = np.bincount(place.reshape(-1), weights=weights, minlength=len(cells))
        ends = self.code.ends(cells)
        wanted = np.concatenate([self.claim.holds_on(ends[at : at + AT_ONCE]) for at in range(0, len(cells), AT_ONCE)])
        return _Material(cells, wanted, np.where(wanted, total, total[~wanted].sum() / max((~wanted).sum(), 1)))

    def _with_wrong(self, material: _Material, wrong: FloatArray) -> _Material:
        """Add the cells of wrong points, each as heavy as the heaviest cell of which no answer is wanted."""
        found = np.unique(self.code.codes(wrong), axis=0) if len(wrong) else np.zeros((0, self.code.box.inputs), dtype=np.int64)
        codes = np.concatenate([material.codes, found])
        wanted = np.concatenate([material.wanted, np.zeros(len(found), dtype=bool)])
        heavy = material.weights[~material.wanted].max(initial=0.0) or material.weights.mean()
        return _Material(codes, wanted, np.concatenate([material.weights, np.full(len(found), heavy)]))

    @property
    def _budget(self) -> Budget:
        return Budget(max(PROOF_SHARE * (self.deadline - time.monotonic()), LEAST_SECONDS), self.plan.boxes)

    def _surely(self, half: Half, material: _Material) -> GreatestWrongSum | None:
        """Return the greatest wrong sum of a half that speaks in proved boxes alone, where they are proved again; else None."""
        found = greatest_wrong_sum(self.claim, half, self.code, self._budget, floor=half.threshold)
        if found.upper > half.threshold:
            return None
        ends = self.code.ends(material.codes[~material.wanted])
        points = ends.middle[self.claim.excess(ends.middle) >= 0][:TRIED]
        witness = next((point for point in points if self.claim.fails_at(point)), None)
        lower = -np.inf if witness is None else float(half.threshold)
        return replace(found, lower=lower, upper=float(half.threshold), witness=witness)

    def _proved(self, half: Half, name: str, known: GreatestWrongSum | None = None) -> Round:
        """Set the threshold to the least that holds, found anew unless it is known."""
        found = greatest_wrong_sum(self.claim, half, self.code, self._budget) if known is None else known
        least = -half.greatest - 1 if found.threshold is None else found.threshold
        fixed = replace(half, threshold=least).pruned()
        sums, side = Sums(fixed, self.code), self.claim.side.value

        def answer(codes: IntArray) -> IntArray:
            return np.where(sums.at(codes) > least, side, ASK)

        value = coverage_of_volume(self.code, answer, self.rng).answered
        if len(self.rows):
            value = (1 - DATA_SHARE) * value + DATA_SHARE * coverage_of_rows(self.code, answer, self.rows).answered
        return Round(fixed, half.threshold, found, value, name)
