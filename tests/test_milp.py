"""Does the backend on HiGHS agree with Z3 and with paper, and does it stay right when the solver does not?"""

from __future__ import annotations

import time
from collections import Counter
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from qrobust.answers import Assurance, Candidate, Robust, Unknown, Verdict
from qrobust.backends import milp
from qrobust.backends.base import Backend
from qrobust.backends.binaries import Tree
from qrobust.backends.milp import Milp
from qrobust.backends.mixed_integer import Builder, Hint, Model, Relaxation, proved_ends
from qrobust.backends.relu_cuts import strengthened
from qrobust.backends.twins import twins
from qrobust.backends.z3 import Z3
from qrobust.check import violation_fault
from qrobust.domains import InputBox, ParameterBox, Point, Polytope
from qrobust.interval import FloatArray, Interval
from qrobust.leads import Leads
from qrobust.network import Activation, Dense, FloatArithmetic, Network, Output, activate
from qrobust.perturbations import Absolute
from qrobust.queries import (
    EpsilonEstimate,
    GlobalConfidence,
    GlobalLabel,
    LocalConfidence,
    LocalEpsilon,
    LocalLabel,
    MarginLabel,
    Query,
    SigmaEstimate,
)
from qrobust.search import Budget
from qrobust.solve import ENOUGH, Session
from tests.cases import CASES, Case
from tests.cases import Z3 as BY_Z3
from tests.test_agreement import Corners, Reply, ask, contradictions, inputs_of, is_decided, random_query
from tests.test_conformance import ask as ask_case
from tests.test_conformance import fault

SHIPPED, SOLVER = Milp(), Z3()
BUDGET = Budget(seconds=10)
LINE = Network((Dense(np.array([[1.0]]), np.array([-0.5])),), Output.SIGMOID)
# On paper these are decided by a comparison of two equal numbers, which no rounded bound settles.
TIES = {
    "0 stays 0 at the tie",
    "a tie left alone",
    "a tie lowered",
    "delta 0 anywhere",
    "tied classes left alone",
    "0 stays 0 at a tie of classes",
}


class InProcess:
    """The backend without its worker: what runs there runs here, where it can be tampered with."""

    name, proves, refutes = "milp", True, True

    def available(self) -> bool:
        return True

    def why_not(self, query: Any) -> str | None:
        return SHIPPED.why_not(query)

    def decide(self, query: Query, budget: Budget) -> Any:
        return milp.decide(query, budget.seconds)

    def estimate(self, query: EpsilonEstimate | SigmaEstimate, budget: Budget) -> Any:
        return milp.estimate(query, budget.seconds)


HERE: Backend = InProcess()


def random_network(rng: np.random.Generator, sizes: list[int], hidden: Activation = Activation.RELU) -> Network:
    layers = tuple(
        Dense(
            rng.normal(size=(after, before)) * np.sqrt(2 / before),
            rng.normal(size=after) / 10,
            Activation.LINEAR if k == len(sizes) - 2 else hidden,
        )
        for k, (before, after) in enumerate(pairwise(sizes))
    )
    return Network(layers, Output.SIGMOID if sizes[-1] == 1 else Output.SOFTMAX)


COVERED = [case for case in CASES if HERE.why_not(case.query) is None]


@pytest.mark.parametrize("case", COVERED, ids=[case.name for case in COVERED])
def test_it_agrees_with_the_paper(case: Case) -> None:
    result = ask_case(Session([HERE]), case, "milp", BUDGET)
    assert fault(case, result, must=BY_Z3 in case.by and case.name not in TIES) is None
    if getattr(result, "claim", None) == Robust(Assurance.TRUSTED):
        pytest.fail("a proof is qrobust's own, not the solver's")


def clash(first: Reply, second: Reply) -> bool:
    """Whether two replies to one query cannot both be true."""
    if first.verdict is not None and second.verdict is not None:
        return {first.verdict, second.verdict} == {Verdict.ROBUST, Verdict.VIOLATED}
    return first.lower > second.upper or second.lower > first.upper


@pytest.mark.parametrize("chunk", range(8))
def test_it_never_contradicts_z3(chunk: int) -> None:
    rng = np.random.default_rng([31, chunk])
    asked: Counter[str] = Counter()
    undecided = []
    while sum(asked.values()) < 25:
        query = random_query(rng)
        if HERE.why_not(query) is not None or SOLVER.why_not(query) is not None:
            continue
        replies = {"milp": ask(HERE, query, BUDGET), "z3": ask(SOLVER, query, BUDGET)}
        examples = [example for x in inputs_of(query, rng) for example in Corners(query).best(x)]
        assert contradictions(query, examples, replies) == []
        asked[type(query).__name__] += 1
        if is_decided(replies["z3"]) and not is_decided(replies["milp"]):
            undecided.append(query)
    assert len(undecided) <= 1  # coarse networks have ties
    assert len(asked) >= 4


@pytest.mark.parametrize(("seed", "sizes"), [(0, [2, 4, 3, 1]), (1, [2, 3, 3, 3]), (2, [2, 3, 3, 1]), (3, [1, 3, 3, 2])])
@pytest.mark.parametrize("hidden", [Activation.RELU, Activation.LINEAR])
def test_deeper_networks_agree_too(seed: int, sizes: list[int], hidden: Activation) -> None:
    rng = np.random.default_rng([32, seed])
    network = random_network(rng, sizes, hidden)
    box, middle = Absolute(0.03).around(network), rng.uniform(-0.5, 0.5, sizes[0])
    domain = InputBox(middle - 0.25, middle + 0.25)
    for query in (
        GlobalLabel(network, box, domain),
        MarginLabel(network, box, domain, sigma=Fraction(1, 20)),
        LocalLabel(network, Absolute(0.1).around(network), Point(middle)),
        SigmaEstimate(network, box, domain, 0),
    ):
        replies = {"milp": ask(HERE, query, BUDGET), "z3": ask(SOLVER, query, BUDGET)}
        assert not clash(replies["milp"], replies["z3"]), replies
        assert is_decided(replies["milp"]), replies


def test_a_polytope_is_cut() -> None:
    """x in [0, 1] with x <= 1/4: z = x - 1/2 <= -1/4 and z' <= 5/4 x - 1/4 <= 1/16: a flip; with x <= 1/8 there is none."""
    box = Absolute(0.25).around(LINE)
    for limit, kind in ((0.25, Candidate), (0.125, Robust)):
        query = GlobalLabel(LINE, box, Polytope(InputBox([0.0], [1.0]), [[1.0]], [limit]))
        assert isinstance(milp.decide(query, 5.0), kind)


def model_of(rng: np.random.Generator) -> Model:
    builder = Builder()
    low = rng.normal(size=3)
    v = builder.add(Interval(low, low + rng.uniform(0.1, 2.0, 3)))
    builder.require([(v, rng.normal(size=(2, 3)))], -np.inf, rng.normal(size=2) + 1)
    builder.require([(v, rng.normal(size=(1, 3)))], -1.0, 2.0)
    return builder.model(v, rng.normal(size=3))


def exact_maximum(model: Model) -> Fraction | None:
    """The maximum of a model of three variables, by all its vertices, in rationals; None if it has no point."""
    exact = [[Fraction(a) for a in row] for row in model.matrix.toarray().tolist()]
    walls = []
    for row, low, high in zip(exact, model.rows.lower.tolist(), model.rows.upper.tolist(), strict=True):
        walls += [(row, Fraction(end)) for end in (low, high) if np.isfinite(end)]
    for i, (low, high) in enumerate(zip(model.variables.lower.tolist(), model.variables.upper.tolist(), strict=True)):
        unit = [Fraction(int(i == j)) for j in range(3)]
        walls += [(unit, Fraction(low)), (unit, Fraction(high))]
    best: Fraction | None = None
    for three in product(walls, repeat=3):
        v = solution([row for row, _ in three], [end for _, end in three])
        if v is None or not is_inside(model, exact, v):
            continue
        value = sum((Fraction(c) * x for c, x in zip(model.cost.tolist(), v, strict=True)), Fraction(0))
        best = value if best is None or value > best else best
    return best


def is_inside(model: Model, exact: list[list[Fraction]], v: list[Fraction]) -> bool:
    sums = [sum((a * x for a, x in zip(row, v, strict=True)), Fraction(0)) for row in exact]
    ends = [*zip(sums, model.rows.lower, model.rows.upper, strict=True)]
    ends += [*zip(v, model.variables.lower, model.variables.upper, strict=True)]
    above = all(not np.isfinite(low) or Fraction(float(low)) <= value for value, low, _ in ends)
    return above and all(not np.isfinite(high) or value <= Fraction(float(high)) for value, _, high in ends)


def solution(rows: list[list[Fraction]], right: list[Fraction]) -> list[Fraction] | None:
    """Cramer's rule for three equations."""

    def determinant(m: list[list[Fraction]]) -> Fraction:
        return sum(
            (m[0][i] * (m[1][(i + 1) % 3] * m[2][(i + 2) % 3] - m[1][(i + 2) % 3] * m[2][(i + 1) % 3]) for i in range(3)),
            Fraction(0),
        )

    whole = determinant(rows)
    if whole == 0:
        return None
    return [determinant([[*row[:i], b, *row[i + 1 :]] for row, b in zip(rows, right, strict=True)]) / whole for i in range(3)]


def wrong_multipliers(rng: np.random.Generator) -> list[FloatArray]:
    return [rng.normal(size=3) * 10.0**size for size in range(-3, 9, 2)] + [
        np.zeros(3),
        np.array([np.nan, np.inf, -np.inf]),
        np.full(3, 1e300),
    ]


@pytest.mark.parametrize("seed", range(12))
def test_a_bound_holds_for_any_multipliers(seed: int) -> None:
    rng = np.random.default_rng([33, seed])
    model = model_of(rng)
    best, hint = exact_maximum(model), Relaxation(model).solve(seconds=5)
    if best is None:
        assert hint.ray is not None
        assert min(model.upper_bound(ray, cost=np.zeros(3)) for ray in (hint.ray, -hint.ray)) < 0
        return
    for y in wrong_multipliers(rng):
        assert Fraction(min(model.upper_bound(y), 1e308)) >= best
        assert model.upper_bound(y, cost=np.zeros(3)) >= 0
    assert hint.multipliers is not None
    tight = Fraction(model.upper_bound(hint.multipliers))
    assert best <= tight <= best + Fraction(1, 10**9) * max(abs(best), 1)  # type: ignore[operator]


def careless_bound(model: Model, y: FloatArray) -> float:
    """The bound without its rounding: a broken copy, which must be caught."""
    end = np.where(y > 0, model.rows.upper, model.rows.lower)
    reduced = model.cost - model.matrix.T @ y
    return float((y * end).sum() + np.maximum(reduced * model.variables.lower, reduced * model.variables.upper).sum())


def test_a_bound_without_its_rounding_is_caught() -> None:
    """v <= U and a v <= a U with a just over 2**-53, k = -U, U = 2**60; (1 + 2**-52) v + k is at most 2**60 * 2**-52 = 256.

    With multipliers 1 the reduced cost of v is 2**-52 - a > 0 exactly, but 1 + a rounds to 1 + 2**-52, which leaves 0.
    """
    builder, u, a = Builder(), 2.0**60, 2.0**-53 * (1 + 2.0**-40)
    v = builder.add(Interval(np.array([0.0, -u]), np.array([u, -u])))
    builder.require([(v[:1], 1.0)], -np.inf, u)
    builder.require([(v[1:], 1.0)], -u, -u)
    builder.require([(v[:1], a)], -np.inf, a * u)
    model, y = builder.model(v, np.array([1 + 2.0**-52, 1.0])), np.ones(3)
    exact = Fraction(float(model.cost[0])) * Fraction(u) - Fraction(u)
    assert exact == 256
    assert Fraction(careless_bound(model, y)) < exact
    assert Fraction(model.upper_bound(y)) >= exact


def test_every_real_configuration_satisfies_the_rows() -> None:
    """Points of both networks, parameters at random in the box, in the model's variables: a row may be off by rounding only."""
    rng = np.random.default_rng(34)
    for sizes, hidden in (([2, 4, 1], Activation.RELU), ([3, 4, 3, 2], Activation.RELU), ([2, 3, 3, 1], Activation.LINEAR)):
        network = random_network(rng, sizes, hidden)
        box = Absolute(0.2).around(network)
        pair = twins(GlobalLabel(network, box, InputBox(-np.ones(sizes[0]), np.ones(sizes[0]))))
        model = pair.builder.model(pair.perturbed[:1], 1.0)
        for _ in range(20):
            ends = fixed_ends(rng, network, box, pair, model)
            hint = Relaxation(model).solve(ends, seconds=5)
            assert hint.values is not None


def fixed_ends(rng: np.random.Generator, network: Network, box: ParameterBox, pair: Any, model: Model) -> Interval:
    """The model's ends with inputs and all pre-activations within 1e-7 of those of a random choice of parameters."""
    lower, upper, arithmetic = model.variables.lower.copy(), model.variables.upper.copy(), FloatArithmetic()
    x = rng.choice([-1.0, 1.0, float(rng.uniform(-1, 1))], size=(1, network.inputs))
    h, moved = x, x
    wanted = [(pair.x, x)]
    for layer, part, (before, after) in zip(network.layers, box.layers, pair.pre_activations, strict=True):
        weight, bias = (
            i.lower + rng.choice([0.0, 0.5, 1.0], i.shape) * i.width for i in (part.weight.interval, part.bias.interval)
        )
        h, moved = arithmetic.affine(layer.weight, h, layer.bias), arithmetic.affine(weight, moved, bias)
        wanted += [(before, h), (after, moved)]
        h, moved = activate(layer.activation, h, arithmetic), activate(layer.activation, moved, arithmetic)
    for numbers, values in wanted:
        lower[numbers] = np.clip(values[0] - 1e-7, lower[numbers], upper[numbers])
        upper[numbers] = np.clip(values[0] + 1e-7, lower[numbers], upper[numbers])
    return Interval(lower, upper)


def test_tightened_bounds_hold() -> None:
    rng = np.random.default_rng(35)
    network = random_network(rng, [2, 4, 4, 1])
    box = Absolute(0.05).around(network)
    query = GlobalLabel(network, box, InputBox(-np.ones(2), np.ones(2)))
    loose = twins(query)
    tight = loose.tightened(loose.builder.copy().model(loose.perturbed, 0.0), time.monotonic() + 20)
    assert tight is not None
    assert (tight.trace[1].stored.width < loose.trace[1].stored.width - 1e-3).any()
    h = rng.uniform(-1, 1, (5000, 2))
    for layer, pair in zip(network.layers, tight.trace, strict=True):
        z = h @ layer.weight.T + layer.bias
        assert (z >= pair.stored.lower - 1e-12).all()
        assert (z <= pair.stored.upper + 1e-12).all()
        h = np.maximum(z, 0)


def doctored(hint: Hint, rng: np.random.Generator) -> Hint:
    """What a broken solver might say: noise on points and multipliers, or a ray for a problem that has points."""
    values = None if hint.values is None else hint.values + rng.normal(size=hint.values.shape)
    multipliers = None if hint.multipliers is None else hint.multipliers + rng.normal(size=hint.multipliers.shape)
    ray = rng.normal(size=hint.multipliers.shape) if hint.multipliers is not None and rng.random() < 0.3 else hint.ray
    return Hint(values, multipliers, ray)


def test_a_doctored_solver_changes_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, honest = np.random.default_rng(36), Relaxation.solve
    drawn = [random_query(rng) for _ in range(150)]
    queries = [query for query in drawn if HERE.why_not(query) is None and SOLVER.why_not(query) is None]
    truth = [ask(SOLVER, query, BUDGET) for query in queries]
    monkeypatch.setattr(Relaxation, "solve", lambda self, *a, **k: doctored(honest(self, *a, **k), rng))
    decided = 0
    for query, right in zip(queries, truth, strict=True):
        reply: Reply = ask(HERE, query, Budget(0.5))
        assert not clash(reply, right), (reply, right)
        decided += is_decided(reply)
    assert decided < len(queries)  # the noise was felt


def test_a_solver_that_says_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Relaxation, "solve", lambda self, *a, **k: Hint())
    network = random_network(np.random.default_rng(37), [2, 5, 1])
    box = Absolute(0.1).around(network)
    claim = milp.decide(GlobalLabel(network, box, InputBox(-np.ones(2), np.ones(2))), 0.3)
    assert isinstance(claim, Unknown)
    assert claim.reason
    estimate = milp.estimate(SigmaEstimate(network, box, InputBox(-np.ones(2), np.ones(2)), 0), 0.3)
    assert estimate.witness is None
    assert estimate.upper > 0


HARD = random_network(np.random.default_rng(38), [12, 40, 1])
WIDE = InputBox(-np.ones(12), np.ones(12))


@pytest.mark.parametrize("seconds", [0.001, 1.0])
def test_it_keeps_its_time(seconds: float) -> None:
    box = Absolute(0.05).around(HARD)
    SHIPPED.decide(LocalLabel(LINE, Absolute(0.1).around(LINE), Point([2.0])), BUDGET)  # starts the process
    started = time.monotonic()
    estimate = SHIPPED.estimate(SigmaEstimate(HARD, box, WIDE, 1), Budget(seconds))
    assert time.monotonic() - started < seconds + 2
    assert "time limit" in estimate.reason
    if seconds < 0.01:
        claim = SHIPPED.decide(MarginLabel(HARD, box, WIDE, sigma=Fraction(3, 10)), Budget(seconds))
        assert isinstance(claim, Unknown)
        assert "time limit" in claim.reason


def test_a_witness_and_a_bound_come_out_of_a_search_cut_short() -> None:
    estimate = Session([SHIPPED]).estimate(SigmaEstimate(HARD, Absolute(0.005).around(HARD), WIDE, 1), budget=Budget(6.0))
    assert 0 < estimate.lower <= estimate.upper < 0.5
    assert estimate.assurance is Assurance.ROUNDED
    assert estimate.witness is not None
    assert estimate.gap <= ENOUGH or estimate.reason


def test_a_violation_replays_as_it_is() -> None:
    box = Absolute(0.05).around(HARD)
    query = GlobalLabel(HARD, box, WIDE)
    claim = milp.decide(query, 10.0)
    assert isinstance(claim, Candidate)
    assert violation_fault(query, claim.counterexample) is None


def test_proved_ends_are_never_looser_than_given_ones() -> None:
    model = model_of(np.random.default_rng([33, 1]))
    given = Interval(np.array([-50.0]), np.array([50.0]))
    ends = proved_ends(model, model.cost, Relaxation(model), given, 5.0)
    assert ends is not None
    assert -50 <= ends.lower[0] <= ends.upper[0] <= 50
    assert proved_ends(model, model.cost, Relaxation(model), Interval(ends.upper + 1, ends.upper + 2), 5.0) is None


def test_what_it_leaves_to_others() -> None:
    bent = Network((Dense(np.ones((1, 1)), np.zeros(1), Activation.TANH), Dense(np.ones((1, 1)), np.zeros(1))), Output.SIGMOID)
    box, three = InputBox([0.0], [1.0]), random_network(np.random.default_rng(1), [1, 3])
    assert "tanh" in str(SHIPPED.why_not(GlobalLabel(bent, Absolute(0.1).around(bent), box)))
    around = Absolute(0.1).around(LINE)
    assert "two sigmoids" in str(SHIPPED.why_not(GlobalConfidence(LINE, around, box, Fraction(1, 10))))
    assert "several classes" in str(SHIPPED.why_not(LocalEpsilon(three, Absolute(0.1).around(three), Point([0.0]))))
    assert SHIPPED.why_not(LocalConfidence(LINE, around, Point([0.0]), Fraction(1, 10))) is None


@pytest.mark.parametrize("seed", range(4))
def test_cuts_keep_what_networks_do_and_cut_what_they_do_not(seed: int) -> None:
    """Cuts are collected at random points; then every real configuration must satisfy them, up to its own rounding."""
    rng = np.random.default_rng([39, seed])
    network = random_network(rng, [3, 6, 4, 1])
    box = Absolute(0.1).around(network)
    pair = twins(GlobalLabel(network, box, InputBox(-np.ones(3), np.ones(3))))
    model = pair.builder.model(pair.perturbed[:1], 1.0)
    rows = []
    for _ in range(30):
        values = model.variables.lower + rng.random(len(model.cost)) * model.variables.width
        rows += [row for neurons in pair.neurons for row in neurons.broken(model, values)]
    assert len(rows) > 20
    for numbers, coefficients, end in rows:
        assert coefficients[0] == 1.0  # of h
        assert end >= 0 or coefficients[1] != 0
        assert len(set(numbers.tolist())) == len(numbers)
    for _ in range(100):
        x = rng.choice([-1.0, 1.0, float(rng.uniform(-1, 1))], size=3)
        values = configuration(rng, network, box, pair, model, x)
        for numbers, coefficients, end in rows:
            assert coefficients @ values[numbers] <= end + 1e-9


def configuration(
    rng: np.random.Generator, network: Network, box: ParameterBox, pair: Any, model: Model, x: FloatArray
) -> FloatArray:
    """The values of the inputs' parts, pre-activations, hidden values and binaries of both networks, at random parameters."""
    values = np.zeros(len(model.cost))
    values[pair.x] = x
    h, moved, places = x, x, iter(pair.neurons)
    for number, (layer, part) in enumerate(zip(network.layers, box.layers, strict=True)):
        weight, bias = (
            i.lower + rng.choice([0.0, 0.5, 1.0], i.shape) * i.width for i in (part.weight.interval, part.bias.interval)
        )
        if number == len(network.hidden_layers):
            break
        z, shifted = layer.weight @ h + layer.bias, weight @ moved + bias
        above, own = next(places), next(places)
        if not number:  # inputs that change sign are split: positive parts, then negative ones
            values[above.inputs] = np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)])
        h, moved = np.maximum(z, 0), np.maximum(shifted, 0)
        values[own.h], values[own.active] = h, z >= 0
        values[above.h], values[above.active] = moved, shifted >= 0
    return values


def test_cuts_lower_the_bound_of_the_relaxation() -> None:
    box = Absolute(0.02).around(HARD)
    pair = twins(SigmaEstimate(HARD, box, WIDE, 1))
    model = milp._gap_model(pair, Leads(HARD, Fraction(1, 2)), 1)
    cut = strengthened(model, pair.neurons, 20.0)
    bounds = []
    for each in (model, cut):
        hint = Relaxation(each).solve(seconds=5)
        assert hint.multipliers is not None
        bounds.append(each.upper_bound(hint.multipliers))
    assert bounds[1] < 0.98 * bounds[0]


def test_another_use_of_highs_in_the_process_does_not_matter() -> None:
    """HiGHS runs on as many threads as whoever came first in the process, unless told to forget them."""
    import highspy

    other = highspy.Highs()
    other.setOptionValue("output_flag", False)
    other.setOptionValue("threads", 2)
    other.run()
    network = random_network(np.random.default_rng(4), [3, 4, 1])
    both = twins(GlobalLabel(network, Absolute(0.05).around(network), InputBox([-1.0] * 3, [1.0] * 3)))
    assert Relaxation(both.builder.copy().model(both.perturbed, 1.0)).solve(seconds=5).multipliers is not None


def test_a_tree_goes_on_from_where_it_stopped() -> None:
    """Goal after goal it visits the nodes that it visits at once, and its bound never rises."""
    network = random_network(np.random.default_rng(4), [3, 8, 1])
    both = twins(GlobalLabel(network, Absolute(0.05).around(network), InputBox([-1.0] * 3, [1.0] * 3)))
    model = both.builder.copy().model(both.perturbed, 1.0)
    whole, parts = (Tree(model, lambda _: None, time.monotonic() + 60) for _ in range(2))
    proof, uppers = whole.close(lambda: -np.inf), [parts.upper]
    for share in (0.9, 0.5, 0.1):
        goal = proof.upper + share * (uppers[0] - proof.upper)
        uppers.append(parts.close(lambda g=goal: g).upper)  # type: ignore[misc]
        assert not parts.is_done
        assert proof.upper <= uppers[-1] <= goal
    assert parts.close(lambda: -np.inf) == proof
    assert parts.is_done
    assert sorted(uppers, reverse=True) == uppers
