"""On random tiny queries, does any backend contradict another, or the enumeration of all corners of the parameter box?

The oracle evaluates every corner of the parameter box in NumPy and replays the best ones exactly. With at most one hidden
layer and one row that is the whole truth at a point; elsewhere it is a lower end. Half of the networks have coarse dyadic
numbers, for which NumPy is exact too and ties are common.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from qrobust.answers import Counterexample, Verdict
from qrobust.backends.base import Backend
from qrobust.backends.z3 import Z3
from qrobust.check import violation_fault, witness_bounds
from qrobust.domains import InputBox, ParameterBox, Point
from qrobust.errors import QRobustError, UnsoundAnswerError
from qrobust.exact import ExactArithmetic, to_exact, to_rational
from qrobust.formula import Encoding, encode
from qrobust.formula.encoding import has_sigmoids
from qrobust.formula.evaluate import holds
from qrobust.interval import FloatArray
from qrobust.network import Activation, Dense, FloatArithmetic, Network, Output, activate, confidence
from qrobust.perturbations import Absolute, Hull, PerLayer
from qrobust.queries import (
    ConfidenceQuery,
    EpsilonEstimate,
    GlobalConfidence,
    GlobalEpsilon,
    GlobalLabel,
    LabelQuery,
    LocalConfidence,
    LocalEpsilon,
    LocalLabel,
    MarginLabel,
    Query,
    SigmaEstimate,
)
from qrobust.search import Budget
from qrobust.solve import ENOUGH, Session, all_backends

SIZES = [(1, 1), (2, 1), (2, 3), (1, 2, 1), (2, 2, 1), (1, 1, 3), (1, 2, 3), (2, 1, 1, 1), (1, 2, 2, 1), (1, 1, 1, 3)]
BUDGET = Budget(seconds=2, boxes=3_000)
CHUNKS, PER_CHUNK = 40, 60
BACKENDS: dict[str, Backend] = {b.name: b for b in all_backends()}
CORE = ("closed-form", "z3", "branch-and-bound", "milp")
EXPLICIT = Z3(Encoding.EXPLICIT)


def random_network(rng: np.random.Generator, coarse: bool) -> Network:
    sizes = SIZES[rng.integers(len(SIZES))]
    hidden = list(Activation)[rng.integers(4)]

    def numbers(*shape: int) -> FloatArray:
        return rng.integers(-8, 9, shape) / 8 if coarse else rng.normal(size=shape)

    layers = tuple(
        Dense(numbers(after, before), numbers(after), Activation.LINEAR if k == len(sizes) - 2 else hidden)
        for k, (before, after) in enumerate(pairwise(sizes))
    )
    return Network(layers, Output.SIGMOID if sizes[-1] == 1 else Output.SOFTMAX)


def random_box(rng: np.random.Generator, network: Network, coarse: bool) -> ParameterBox:
    def size() -> float:
        return float(rng.choice([0, 1 / 64, 1 / 16, 1 / 4, 1 / 2]) if coarse else rng.uniform(0, 0.5) ** 2)

    def moved() -> list[tuple[FloatArray, FloatArray]]:
        step = size()
        return [
            (w.weight + step * rng.integers(-1, 2, w.weight.shape), w.bias + step * rng.integers(-1, 2, w.bias.shape))
            for w in network.layers
        ]

    match int(rng.integers(6)):
        case 0:
            return PerLayer([size() for _ in network.layers]).around(network)
        case 1:
            return Absolute(size(), biases=bool(rng.integers(2))).around(network)
        case 2:
            copy = tuple(Dense(w, b, x.activation) for x, (w, b) in zip(network.layers, moved(), strict=True))
            return Hull(Network(copy, network.output)).around(network)
        case 3:
            arrays = moved()
            return ParameterBox.from_arrays(arrays, arrays, shifted=True)
        case _:
            return Absolute(size()).around(network)


def random_query(rng: np.random.Generator) -> Query:
    coarse = bool(rng.integers(2))
    network = random_network(rng, coarse)
    box = random_box(rng, network, coarse)
    middle = rng.integers(-8, 9, network.inputs) / 4 if coarse else rng.uniform(-2, 2, network.inputs)
    half = rng.integers(1, 5, network.inputs) / 4 if coarse else rng.uniform(0.1, 1, network.inputs)
    sigmoid = network.output is Output.SIGMOID
    level = [Fraction(1, 2), Fraction(1, 2), Fraction(1, 4), Fraction(7, 10)][rng.integers(4)] if sigmoid else Fraction(1, 2)
    small = Fraction(int(rng.integers(0, 40)), 100)
    label = int(rng.integers(network.class_count))
    if rng.random() < 0.6:
        point = Point(middle)
        choices: list[Query] = [
            LocalLabel(network, box, point, level),
            LocalLabel(network, box, point, level, small / 2),
            LocalConfidence(network, box, point, small),
            LocalEpsilon(network, box, point),
            SigmaEstimate(network, box, point, label, level),
        ]
    else:
        domain = InputBox(middle - half, middle + half)
        choices = [
            GlobalLabel(network, box, domain, level),
            MarginLabel(network, box, domain, level, small),
            GlobalConfidence(network, box, domain, small),
            GlobalEpsilon(network, box, domain),
            SigmaEstimate(network, box, domain, label, level),
        ]
    return choices[rng.integers(len(choices))]


def is_exact(query: Query) -> bool:
    """Whether the corners of the parameter box tell the whole truth."""
    hidden = len(query.network.hidden_layers)
    if not isinstance(query.domain, Point) or hidden > 1:
        return False
    one_row = query.network.output is Output.SIGMOID or hidden == 0
    return one_row or not isinstance(query, ConfidenceQuery | EpsilonEstimate)


@dataclass(frozen=True, eq=False)
class Corners:
    """All corners of a query's parameter box: which ends they take, one row each."""

    query: Query

    @property
    def _ends(self) -> list[Any]:
        return [bounds for layer in self.query.parameters.layers for bounds in (layer.weight, layer.bias)]

    def choices(self) -> FloatArray:
        """Shape (corners, parameters): 0 for the lower end, 1 for the upper; equal ends are not told apart."""
        free = np.concatenate([(ends.lower.head != ends.upper.head).ravel() for ends in self._ends])
        rows = np.zeros((2 ** int(free.sum()), free.size))
        rows[:, free] = list(product((0, 1), repeat=int(free.sum())))
        return rows

    def logits(self, x: FloatArray, choices: FloatArray) -> FloatArray:
        """Shape (corners, logits), in floating point."""
        arithmetic, h = FloatArithmetic(), np.broadcast_to(x, (len(choices), x.size))
        place, arrays = 0, []
        for ends in self._ends:
            low, high = ends.lower.head.ravel(), ends.upper.head.ravel()
            part = low + choices[:, place : place + low.size] * (high - low)
            arrays.append(part.reshape(len(choices), *ends.lower.shape))
            place += low.size
        for layer, weight, bias in zip(self.query.network.layers, arrays[::2], arrays[1::2], strict=True):
            h = activate(layer.activation, np.einsum("coi,ci->co", weight, h) + bias, arithmetic)
        return h

    def example(self, x: FloatArray, choice: FloatArray) -> Counterexample:
        """One corner, exactly."""
        place, arrays = 0, []
        for ends in self._ends:
            low, high = ends.fractions
            part = choice[place : place + low.size].reshape(low.shape)
            arrays.append(np.where(part > 0, high, low))
            place += low.size
        pairs = tuple(zip(arrays[::2], arrays[1::2], strict=True))
        return Counterexample(tuple(Fraction(v) for v in x.tolist()), pairs)

    def best(self, x: FloatArray) -> list[Counterexample]:
        """The corners that look most like violations: every confidence and every lead at its greatest and least."""
        choices = self.choices()
        values = self.logits(x, choices)
        scores = [confidence(self.query.network, values, FloatArithmetic())]
        scores += [values[:, [a]] - values[:, [b]] for a, b in product(range(values.shape[1]), repeat=2) if a < b]
        table = np.concatenate(scores, axis=1)
        rows = sorted({*table.argmax(axis=0).tolist(), *table.argmin(axis=0).tolist()})
        return [self.example(x, choices[row]) for row in rows]


def inputs_of(query: Query, rng: np.random.Generator) -> list[FloatArray]:
    """The point; or the box's corners, its middle and some points inside."""
    box = query.domain.box
    if isinstance(query.domain, Point):
        return [box.lower]
    ends = [np.where(np.array(pick) > 0, box.upper, box.lower) for pick in product((0, 1), repeat=query.network.inputs)]
    inside = [np.clip(box.lower + rng.random(box.lower.size) * box.width, box.lower, box.upper) for _ in range(3)]
    return [*ends, box.middle, *inside]


def paste(query: Query) -> str:
    """Python text that builds the query."""
    layers = ", ".join(f"Dense({w.weight.tolist()}, {w.bias.tolist()}, {w.activation})" for w in query.network.layers)
    ends: list[list[str]] = [[], []]
    for layer in query.parameters.layers:
        for side, bounds in enumerate(((layer.weight.lower, layer.bias.lower), (layer.weight.upper, layer.bias.upper))):
            ends[side].append(f"({bounds[0].head.tolist()}, {bounds[1].head.tolist()})")
    box = f"ParameterBox.from_arrays([{', '.join(ends[0])}], [{', '.join(ends[1])}], shifted=True)"
    sides = query.domain.box
    domain = f"InputBox({sides.lower.tolist()}, {sides.upper.tolist()})"
    if isinstance(query.domain, Point):
        domain = f"Point({sides.lower.tolist()})"
    names = ("epsilon", "level", "sigma", "label")
    own = "".join(f", {name}={getattr(query, name)!r}" for name in names if hasattr(query, name))
    network = f"Network(({layers},), {query.network.output})"
    return f"\n{type(query).__name__}(\n    {network},\n    {box},\n    {domain}{own},\n)  # tails of the bounds left out"


@dataclass(frozen=True)
class Reply:
    """A verdict, or two ends; the witness of either."""

    verdict: Verdict | None
    lower: float
    upper: float
    example: Counterexample | None


def ask(backend: Backend, query: Query, budget: Budget) -> Reply:
    session = Session([backend])
    if isinstance(query, ConfidenceQuery | LabelQuery):
        answer = session.check(query, backend=backend.name, budget=budget)
        return Reply(answer.verdict, 0.0, 1.0, answer.counterexample)
    estimate = session.estimate(query, backend=backend.name, budget=budget)
    return Reply(None, estimate.lower, estimate.upper, estimate.witness)


def contradictions(query: Query, examples: list[Counterexample], replies: dict[str, Reply]) -> list[str]:
    """Return what is wrong with the replies to one query."""
    if isinstance(query, EpsilonEstimate | SigmaEstimate):
        return _estimate_faults(query, examples, replies)
    found = {name: reply.verdict for name, reply in replies.items() if reply.verdict is not Verdict.UNKNOWN}
    if any(violation_fault(query, example) is None for example in examples):
        found["corners"] = Verdict.VIOLATED
    elif is_exact(query):
        found["corners"] = Verdict.ROBUST
    return [f"verdicts differ: {found}"] if len(set(found.values())) > 1 else []


def attained(query: EpsilonEstimate | SigmaEstimate, example: Counterexample) -> tuple[float, float]:
    try:
        return witness_bounds(query, example)
    except UnsoundAnswerError:  # this corner changes no label of the kind asked about
        return 0.0, 0.0


def _estimate_faults(
    query: EpsilonEstimate | SigmaEstimate, examples: list[Counterexample], replies: dict[str, Reply]
) -> list[str]:
    values = [attained(query, example) for example in examples]
    least, greatest = max(low for low, _ in values), max(high for _, high in values)
    faults = [f"{name}: {r.upper!r} is below a corner's {least!r}" for name, r in replies.items() if r.upper < least]
    if is_exact(query):
        faults += [
            f"{name}: {r.lower!r} is above all corners, {greatest!r}" for name, r in replies.items() if r.lower > greatest
        ]
    for one, other in product(replies, repeat=2):
        if replies[one].lower > replies[other].upper:
            faults.append(f"{one} attains {replies[one].lower!r}, {other} bounds by {replies[other].upper!r}")
    return faults


def expected_to_decide(name: str, query: Query) -> bool:
    """Whether a backend must give a verdict or tight ends: those that compute exactly, hidden tanh and sigmoid apart."""
    if has_sigmoids(query.network):
        return False
    if getattr(query, "level", Fraction(1, 2)) != Fraction(1, 2) or getattr(query, "sigma", 0):
        return name == "closed-form"  # a logit had to be rounded, and Z3's answer may lie in between
    return name == "closed-form" or (name == "z3" and not isinstance(query, LocalConfidence))


def is_decided(reply: Reply) -> bool:
    if reply.verdict is not None:
        return reply.verdict is not Verdict.UNKNOWN
    return reply.upper - reply.lower <= ENOUGH


def formula_faults(query: Query, examples: list[Counterexample]) -> list[str]:
    """Evaluate both encodings exactly at examples: a violation must satisfy them, and what is none only where rounded."""
    faults = []
    problems = {encoding: encode(query, encoding) for encoding in Encoding}
    for example in examples:
        violates = violation_fault(query, example) is None
        for encoding, problem in problems.items():
            assignment = assignment_of(query, example, encoding)
            satisfied = holds(problem.formula, assignment)
            if violates and satisfied is not True:
                faults.append(f"{encoding}: a violation gives {satisfied}")
            if not violates and satisfied and problem.exact and encoding is Encoding.EXPLICIT:
                faults.append(f"{encoding}: what is no violation satisfies it")
    return faults


def assignment_of(query: Query, example: Counterexample, encoding: Encoding) -> dict[str, Fraction]:
    values = {f"x{i + 1}": value for i, value in enumerate(example.x)}
    h, arithmetic = to_exact(list(example.x)), ExactArithmetic()
    for k, (layer, (weight, bias)) in enumerate(zip(query.network.layers, example.parameters, strict=True), start=1):
        z = arithmetic.affine(to_exact(weight), h, to_exact(bias))
        if encoding is Encoding.EXPLICIT:
            rows = enumerate(weight.tolist())
            values |= {f"w{k}_{i + 1}_{j + 1}": value for i, row in rows for j, value in enumerate(row)}
            values |= {f"b{k}_{i + 1}": value for i, value in enumerate(bias.tolist())}
        elif k < len(query.network.layers):
            values |= {f"z{k}_{i + 1}": to_rational(value) for i, value in enumerate(z)}
        h = activate(layer.activation, z, arithmetic)
    return values


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_backend_contradicts_another(chunk: int) -> None:
    rng = np.random.default_rng([20, chunk])
    asked: Counter[str] = Counter()
    for _ in range(PER_CHUNK):
        query = random_query(rng)
        corners = Corners(query)
        examples = [example for x in inputs_of(query, rng) for example in corners.best(x)]
        replies = {}
        for name in CORE:
            if BACKENDS[name].why_not(query) is None:
                try:
                    replies[name] = ask(BACKENDS[name], query, BUDGET)
                except (QRobustError, ArithmeticError) as error:
                    pytest.fail(f"{name}: {type(error).__name__}: {error}{paste(query)}")
                asked[name] += 1
                asked[f"{name} decided"] += is_decided(replies[name])
        faults = contradictions(query, examples, replies)
        faults += [
            f"{name} gave up: {reply}"
            for name, reply in replies.items()
            if expected_to_decide(name, query) and not is_decided(reply)
        ]
        assert not faults, f"{faults}{paste(query)}"
    assert asked["branch-and-bound"] == PER_CHUNK
    assert asked["branch-and-bound decided"] > 0.6 * PER_CHUNK
    assert asked["closed-form"] > 0.1 * PER_CHUNK
    assert asked["z3"] > 0.1 * PER_CHUNK


@pytest.mark.parametrize("chunk", range(8))
def test_the_two_encodings_agree(chunk: int) -> None:
    """Z3 on each encoding of the same label question, and both formulas evaluated exactly at corners."""
    rng = np.random.default_rng([21, chunk])
    seen: Counter[object] = Counter()
    while seen["asked"] < 12:
        query = random_query(rng)
        if has_sigmoids(query.network) or not isinstance(query, LabelQuery | LocalConfidence):
            continue
        if query.network.parameter_count > 10 or BACKENDS["z3"].why_not(query) is not None:
            continue
        examples = [example for x in inputs_of(query, rng)[:2] for example in Corners(query).best(x)]
        assert not formula_faults(query, examples), f"{formula_faults(query, examples)}{paste(query)}"
        replies = {"eliminated": ask(BACKENDS["z3"], query, BUDGET), "explicit": ask(EXPLICIT, query, Budget(seconds=1))}
        faults = contradictions(query, examples, replies)
        assert not faults, f"{faults}{paste(query)}"
        seen["asked"] += 1
        seen["explicit decided"] += is_decided(replies["explicit"])
        seen[replies["eliminated"].verdict] += 1
    assert seen["explicit decided"] > 6
    assert seen[Verdict.ROBUST] > 0
    assert seen[Verdict.VIOLATED] > 0


@pytest.mark.parametrize("chunk", range(6))
def test_dreal_contradicts_nobody(chunk: int) -> None:
    backend = BACKENDS["dreal"]
    if not backend.available():
        pytest.skip("dReal is not installed")
    rng = np.random.default_rng([22, chunk])
    asked = decided = 0
    while asked < 8:
        query = random_query(rng)
        if backend.why_not(query) is not None or query.network.parameter_count > 9:
            continue
        examples = [example for x in inputs_of(query, rng) for example in Corners(query).best(x)]
        own = ask(backend, query, Budget(seconds=1))
        replies = {"dreal": own, "branch-and-bound": ask(BACKENDS["branch-and-bound"], query, BUDGET)}
        faults = contradictions(query, examples, replies)
        assert not faults, f"{faults}{paste(query)}"
        asked += 1
        decided += own.verdict in (Verdict.ROBUST, Verdict.VIOLATED) or (own.verdict is None and own.upper < 1)
    assert decided >= asked / 2


def test_a_contradiction_would_be_seen() -> None:
    """Turn right replies into wrong ones, in every way that `contradictions` looks for."""
    rng = np.random.default_rng(3)
    opposite = {Verdict.ROBUST: Verdict.VIOLATED, Verdict.VIOLATED: Verdict.ROBUST}
    verdicts = ends = 0
    for _ in range(60):
        query = random_query(rng)
        if BACKENDS["closed-form"].why_not(query) is not None:
            continue
        examples = Corners(query).best(query.domain.box.lower)
        right = ask(BACKENDS["closed-form"], query, BUDGET)
        assert contradictions(query, examples, {"a": right}) == []
        if right.verdict in opposite:
            assert contradictions(query, examples, {"a": Reply(opposite[right.verdict], 0, 1, None)})
            verdicts += 1
        elif right.verdict is None and right.lower > 0.001:
            assert contradictions(query, examples, {"a": Reply(None, 0.0, right.lower - 0.001, None)})
            assert contradictions(query, examples, {"a": Reply(None, right.upper + 0.001, 1.0, None)})
            two = {"a": right, "b": Reply(None, 0.0, right.lower - 0.001, None)}
            assert len(contradictions(query, examples, two)) > len(contradictions(query, examples, {"b": two["b"]}))
            ends += 1
    assert verdicts > 5
    assert ends > 2


def test_a_pasted_query_is_the_query() -> None:
    """The text is run only here, on queries that this file made."""
    names = {**globals()}
    for seed in range(20):
        query = random_query(np.random.default_rng([23, seed]))
        again = eval(paste(query).strip(), names)
        assert again.to_json()["domain"] == query.to_json()["domain"]
        assert again.network == query.network
