"""Attacks by name: inputs of a region that raise a class's score over the label's.

Accepts   every region for fgsm, ifgsm and milp; L-infinity balls and boxes for iprop
Gives     the input of greatest lead found in the time given, replayed in integers, and how the lead grew
Method    fgsm     each pixel to the end that the surrogate's derivative at the centre points to
          ifgsm    small steps along that derivative, from the centre and from random points
          milp     one integer program for each rival, its objective the rival's score less the label's, the constants of each
                   row from propagated bounds, normalizations folded; started from what ifgsm finds
          iprop    target propagation, see propagation.py; started from what ifgsm finds too
Property  refutes only. `optimal` says that HiGHS, in floating point, proved the lead greatest
Source    Goodfellow et al. 2014, arXiv 1412.6572 (fgsm); Kurakin et al. 2016, arXiv 1607.02533 (ifgsm); Khalil, Gupta, Dilkina
          2019, arXiv 1810.03538 (milp, iprop, the second-best class as target)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import partial
from typing import Any, Literal

import numpy as np

from qrobust.answers import VERSION, Verdict
from qrobust.backends.worker import Worker, WorkerDiedError, WorkerTimeoutError
from qrobust.binarized.attack import projected
from qrobust.binarized.constraints import lead_constraints
from qrobust.binarized.engines.highs import Program, Solution, load_highs, maximise
from qrobust.binarized.engines.milp import Rows
from qrobust.binarized.goal import Best, Goal
from qrobust.binarized.propagation import propagate
from qrobust.binarized.queries import Norm, Region, Robustness, inputs_of
from qrobust.binarized.solve import check_seconds, folded
from qrobust.binarized.surrogate import backward, forward
from qrobust.binarized.unary import unary
from qrobust.errors import DomainError, UnsupportedError
from qrobust.interval import FloatArray
from qrobust.layers import IntArray

WINDOWS = (1.0, 3.0)  # widths of the surrogate's windows, tried in turn
STEPS = 10  # of ifgsm across a pixel's range
ITERATIONS = 60
STARTS = 16
SMALL_PROGRAM = 5000  # terms of an integer program that keeps its limit in this process, too
WARM_SHARE = 0.3  # of the time for ifgsm before milp and iprop

Target = int | Literal["second", "any"]


class Method(Enum):
    """How an input is looked for."""

    FGSM = "fgsm"
    IFGSM = "ifgsm"
    MILP = "milp"
    IPROP = "iprop"


@dataclass(frozen=True, eq=False)
class AttackAnswer:
    """The best input found.

    Shapes    levels (inputs,)
    Units     label, rival and new_label are classes; leads are of scores; trace: seconds since the start, and the lead then
    """

    query: Robustness
    method: Method
    label: int
    rival: int
    levels: IntArray
    lead: Fraction
    first_lead: Fraction
    hits: bool
    new_label: int
    optimal: bool
    seconds: float
    trace: tuple[tuple[float, Fraction], ...]

    @property
    def verdict(self) -> Verdict:
        """VIOLATED if the input takes the label for the target, else UNKNOWN: no attack proves that there is none."""
        return Verdict.VIOLATED if self.hits else Verdict.UNKNOWN

    def __str__(self) -> str:
        network = self.query.network
        own, other = network.class_name(self.label), network.class_name(self.rival)
        text = f"{self.query.ball}, the score of {other} less that of {own} goes from {float(self.first_lead):g} to"
        what = f"takes the label {own}" if self.hits else f"leaves the label {own}"
        best = ", the greatest there is, computed in floating point" if self.optimal else ""
        return (
            f"{self.verdict.value}: {text} {float(self.lead):g}{best}; it {what}. [{self.method.value}, {self.seconds:.3g} s]"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the answer with its provenance, as JSON values."""
        network = self.query.network
        return {
            "query": self.query.to_json(),
            "network": {"name": network.name, "sha256": network.sha256},
            "method": self.method.value,
            "verdict": self.verdict.value,
            "label": self.label,
            "rival": self.rival,
            "new_label": self.new_label,
            "lead": float(self.lead),
            "first_lead": float(self.first_lead),
            "optimal": self.optimal,
            "levels": self.levels.tolist(),
            "input": inputs_of(self.query.ball, network.grid, self.levels).tolist(),
            "trace": [[seconds, float(lead)] for seconds, lead in self.trace],
            "seconds": self.seconds,
            "qrobust": VERSION,
        }


def run_attack(
    query: Robustness,
    method: Method,
    *,
    target: Target = "any",
    seconds: float = 60.0,
    stop_at_hit: bool = True,
    seed: int = 0,
) -> AttackAnswer:
    """Return the best input found in the time given; with stop_at_hit, the first that takes the label.

    Accepts   target: a class, "second" (the rival of greatest score at the centre), or "any"
    Raises    NumberError, DomainError, ShapeError, UnsupportedError (iprop in balls of another norm)
    """
    check_seconds(seconds)
    integers, region = folded(query.network, query.zero), query.ball.region(query.network)
    if method is Method.IPROP and region.norm is not Norm.LINF:
        raise UnsupportedError(f"iprop attacks in L-infinity balls and boxes, not {region.norm.value}: use milp")
    label = int(integers.labels(region.centre[None])[0]) if query.label is None else query.label
    goal = Goal(integers, label, _rivals(query, integers.scores(region.centre[None])[0].tolist(), label, target), query.tie)
    best = Best(goal, region, seconds, stop_at_hit)
    best.offer(region.centre[None])
    first_lead = best.lead
    rng = np.random.default_rng(seed)
    optimal = False if best.is_over else METHODS[method](goal, region, best, rng)
    new_label = int(integers.labels(best.levels[None])[0])
    found = (best.levels, best.lead, first_lead, best.hits, new_label, optimal, best.seconds, tuple(best.trace))
    return AttackAnswer(query, method, label, best.rival, *found)


def _rivals(query: Robustness, scores: list[int], label: int, target: Target) -> tuple[int, ...]:
    others = tuple(number for number in range(len(scores)) if number != label)
    if target == "any":
        return others
    if target == "second":
        return (max(others, key=lambda number: scores[number]),)
    if target not in others:
        raise DomainError(f"the target is {target}, give a class from 0 to {len(scores) - 1} that is not the label {label}")
    return (target,)


def _fgsm(goal: Goal, region: Region, best: Best, rng: np.random.Generator) -> bool:
    for width in WINDOWS:
        gradient = _gradient(goal, region.centre[None], width)
        ends = np.where(gradient > 0, region.upper, np.where(gradient < 0, region.lower, region.centre))
        best.offer(projected(region, ends, np.abs(gradient)))
        if best.is_over:
            break
    return False


def _ifgsm(goal: Goal, region: Region, best: Best, rng: np.random.Generator) -> bool:
    return _climb(goal, region, best, rng, best.deadline)


def _climb(goal: Goal, region: Region, best: Best, rng: np.random.Generator, deadline: float) -> bool:
    spread = region.upper - region.lower
    starts = rng.integers(region.lower, region.upper + 1, size=(STARTS - 1, len(spread)))
    points = np.concatenate([region.centre[None], projected(region, starts, rng.random(starts.shape))])
    step = np.maximum(1, -(-spread // STEPS))
    for number in range(ITERATIONS):
        gradient = _gradient(goal, points, WINDOWS[number % len(WINDOWS)])
        moved = np.clip(points + step * np.sign(gradient).astype(np.int64), region.lower, region.upper)
        points = projected(region, moved, np.abs(gradient))
        best.offer(points)
        if best.is_over or time.monotonic() > deadline:
            break
    return False


def _gradient(goal: Goal, points: IntArray, width: float) -> FloatArray:
    """Return the surrogate's derivative of the lead of each point's best rival. Shapes: points and result (batch, inputs)."""
    _, windows = forward(goal.folded, points, [width] * len(goal.folded.layers))
    rival = np.array(goal.rivals)[np.argmax(goal.margins(points), axis=1)]
    slope = np.zeros((len(points), len(goal.folded.scale)))
    slope[np.arange(len(points)), rival] = 1.0
    slope[:, goal.label] = -1.0
    return backward(goal.folded, slope, windows)


def _milp(goal: Goal, region: Region, best: Best, rng: np.random.Generator) -> bool:
    """Solve one program for each rival, the one of greatest lead at the centre first, in a process that is ended in time."""
    _climb(goal, region, best, rng, time.monotonic() + WARM_SHARE * best.left)
    order = np.argsort([-int(margin) for margin in goal.margins(region.centre[None])[0]], kind="stable")
    optimal, worker = True, Worker()
    try:
        for place, number in enumerate(order.tolist()):
            if best.is_over:
                return False
            found = lead_constraints(goal.folded, region, goal.label, goal.rivals[number])
            found = found if region.norm is Norm.LINF else unary(found)
            if not found.matrix.shape[1]:  # the lead is the same all over the region
                continue
            solve = partial(maximise, start=found.columns_of(best.levels))
            solution = _solved(worker, solve, Rows(found).program(0), best, len(order) - place)
            optimal = optimal and solution is not None and solution.optimal
            if solution is not None and solution.values is not None:
                best.offer(found.input_levels(solution.values[: found.columns])[None])
    finally:
        worker.close()
    return optimal


def _solved(worker: Worker, solve: Callable[..., Solution], program: Program, best: Best, left: int) -> Solution | None:
    """Return the solution of the first of some programs left, or None: HiGHS looks at its clock seldom before it branches."""
    if program.matrix.nnz <= SMALL_PROGRAM:
        found: Solution = solve(program, best.left / left)
        return found
    try:
        worker.call(load_highs, seconds=best.left)
        seconds = best.left / left
        found = worker.call(solve, program, seconds, seconds=seconds)
    except (WorkerTimeoutError, WorkerDiedError):
        return None
    return found


def _iprop(goal: Goal, region: Region, best: Best, rng: np.random.Generator) -> bool:
    _climb(goal, region, best, rng, time.monotonic() + WARM_SHARE * best.left)
    propagate(goal, region, best, rng)
    return False


METHODS: dict[Method, Callable[[Goal, Region, Best, np.random.Generator], bool]] = {
    Method.FGSM: _fgsm,
    Method.IFGSM: _ifgsm,
    Method.MILP: _milp,
    Method.IPROP: _iprop,
}
