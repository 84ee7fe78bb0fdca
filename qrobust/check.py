"""Exact re-check of claims, in rationals and balls; imports no backend and no bounds.

A counterexample is replayed from the definitions: the input lies in the domain, the parameters in the box, and what the
query forbids happens. Every comparison is settled exactly or not accepted.
"""

from __future__ import annotations

from fractions import Fraction

from flint import arb

from qrobust.answers import Counterexample
from qrobust.errors import UnsoundAnswerError
from qrobust.exact import (
    Exact,
    ExactArithmetic,
    ExactArray,
    decide,
    float_bounds,
    sigmoid,
    to_exact,
)
from qrobust.network import Network, Output, confidence, logits, perturbed_logits
from qrobust.queries import ConfidenceQuery, EpsilonEstimate, GreatestDelta, LabelQuery, Query, SigmaEstimate


class Replay:
    """The nominal and the perturbed network at one input, evaluated exactly in whatever precision is in force."""

    def __init__(self, network: Network, example: Counterexample) -> None:
        self.network = network
        self._x = to_exact([Fraction(value) for value in example.x])
        self._parameters = [(to_exact(weight), to_exact(bias)) for weight, bias in example.parameters]
        self._fixed: dict[str, ExactArray] = {}

    def nominal(self) -> ExactArray:
        """Logits of the stored network."""
        return self._once("nominal", lambda: logits(self.network, self._x, ExactArithmetic()))

    def perturbed(self) -> ExactArray:
        """Logits of the perturbed network."""
        compute = lambda: perturbed_logits(self.network, self._parameters, self._x, ExactArithmetic())  # noqa: E731
        return self._once("perturbed", compute)

    def _once(self, key: str, compute) -> ExactArray:  # type: ignore[no-untyped-def]
        """Keep rational logits, which no precision changes; recompute balls."""
        if key in self._fixed:
            return self._fixed[key]
        values: ExactArray = compute()
        if not any(isinstance(value, arb) for value in values):
            self._fixed[key] = values
        return values

    def change(self) -> list[Exact]:
        """Signed change of each confidence, perturbed minus nominal."""
        nominal, perturbed = self.nominal(), self.perturbed()
        if all(not isinstance(a - b, arb) and a == b for a, b in zip(nominal, perturbed, strict=True)):
            return [a - b for a, b in zip(nominal, perturbed, strict=True)]  # exact zeros, which balls could not show
        arithmetic = ExactArithmetic()
        before, after = (confidence(self.network, values, arithmetic) for values in (nominal, perturbed))
        return [b - a for a, b in zip(before, after, strict=True)]

    def label(self, perturbed: bool, level: Fraction) -> int | None:
        """The label of either network, or None if no precision settles it."""
        values = self.perturbed if perturbed else self.nominal
        if self.network.output is Output.SIGMOID:
            sign = decide(lambda: _above_level(values()[0], level))
            return None if sign is None else int(sign > 0)
        best = 0
        for rival in range(1, self.network.class_count):
            sign = decide(lambda best=best, rival=rival: values()[rival] - values()[best])  # type: ignore[misc]
            if sign is None:
                return None
            best = rival if sign > 0 else best
        return best

    def margin(self, label: int, level: Fraction) -> Exact:
        """The margin of the stored network's label; see `queries`."""
        values = self.nominal()
        if self.network.output is Output.SIGMOID:
            above = sigmoid(values[0]) - to_exact([level])[0]
            return above if label == 1 else -above
        gaps = [values[label] - value for rival, value in enumerate(values) if rival != label]
        least = gaps[0]
        for gap in gaps[1:]:
            least = arb(least).min(arb(gap)) if isinstance(least, arb) or isinstance(gap, arb) else min(least, gap)
        return sigmoid(least) - to_exact([Fraction(1, 2)])[0]


def _above_level(logit: Exact, level: Fraction) -> Exact:
    """A number with the sign of sigmoid(logit) - level; rational logits against 1/2 need no ball."""
    if level == Fraction(1, 2):
        return logit
    return sigmoid(logit) - to_exact([level])[0]


def membership_fault(query: Query, example: Counterexample) -> str | None:
    """Return why an example is not one of the query's inputs and parameters, or None."""
    if len(example.x) != query.network.inputs:
        return f"it has {len(example.x)} inputs, the network takes {query.network.inputs}"
    if not query.domain.contains(example.x):
        return "its input lies outside the domain"
    if not query.parameters.contains(example.parameters):
        return "its parameters lie outside the box"
    return None


class Undecided(str):
    """Why a replay could not be settled in any precision: neither a violation nor its absence is shown."""


def violation_fault(query: Query, example: Counterexample) -> str | None:
    """Replay a counterexample; return None if it violates the query, else why it does not (Undecided if that is open)."""
    fault = membership_fault(query, example)
    if fault:
        return fault
    replay = Replay(query.network, example)
    if isinstance(query, ConfidenceQuery):
        return _change_fault(query, replay)
    assert isinstance(query, LabelQuery)
    before, after = replay.label(False, query.level), replay.label(True, query.level)
    if before is None or after is None:
        return Undecided("no precision settles its labels")
    if before == after:
        return "the label stays the same"
    if not query.sigma:
        return None
    sign = decide(lambda: replay.margin(before, query.level) - to_exact([query.sigma])[0])
    if sign is None:
        return Undecided(f"no precision settles whether its margin is at least {float(query.sigma):g}")
    return None if sign >= 0 else f"its margin is not at least {float(query.sigma):g}"


def _change_fault(query: ConfidenceQuery, replay: Replay) -> str | None:
    epsilon = to_exact([query.epsilon])[0]
    count = query.network.layers[-1].outputs
    signs = [decide(lambda i=i: abs(replay.change()[i]) - epsilon) for i in range(count)]  # type: ignore[misc]
    if 1 in signs:
        return None
    if None in signs:
        return Undecided(f"no precision settles whether a confidence moves by more than {float(query.epsilon):g}")
    return f"no confidence moves by more than {float(query.epsilon):g}"


def witness_bounds(query: EpsilonEstimate | SigmaEstimate, example: Counterexample) -> tuple[float, float]:
    """Enclose the value that a witness attains.

    Raises UnsoundAnswerError if it is not one of the query's inputs and parameters, or (sigma) changes no such label.
    """
    fault = membership_fault(query, example)
    if fault:
        raise UnsoundAnswerError(f"the witness does not count: {fault}")
    replay = Replay(query.network, example)
    if isinstance(query, EpsilonEstimate):
        bounds = [float_bounds(lambda i=i: abs(replay.change()[i])) for i in range(len(replay.change()))]  # type: ignore[misc]
        return max(0.0, *(lower for lower, _ in bounds)), max(0.0, *(upper for _, upper in bounds))
    before, after = replay.label(False, query.level), replay.label(True, query.level)
    if before != query.label or after is None or after == before:
        raise UnsoundAnswerError(f"the witness does not count: its labels are {before} and {after}")
    lower, upper = float_bounds(lambda: replay.margin(query.label, query.level))
    return max(lower, 0.0), max(upper, 0.0)


def delta_fault(query: GreatestDelta, delta: float, example: Counterexample) -> str | None:
    """Replay a flip at one delta; return None if it is one, else why it is not."""
    return violation_fault(query.at(delta), example)
