"""The greatest change of a sigmoid over a domain by mixed-integer programs: lines above, ends around the maximum, witnesses."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest

from qrobust.answers import Assurance, Estimate
from qrobust.backends import milp, sigmoid_change
from qrobust.backends.mixed_integer import Hint, Relaxation
from qrobust.backends.sigmoid_change import RELATIVE, lines_above, pieces
from qrobust.backends.twins import twins
from qrobust.bounds.local import greatest_changes
from qrobust.check import witness_bounds
from qrobust.domains import Domain, InputBox, Polytope
from qrobust.exact import float_bounds, sigmoid, to_exact
from qrobust.interval import FloatArray
from qrobust.network import Activation, Dense, Network, Output
from qrobust.perturbations import Absolute
from qrobust.queries import GlobalEpsilon
from qrobust.search import Budget
from qrobust.solve import Session
from tests.conftest import RandomNetwork

BUDGET = Budget(seconds=30.0)
LINE = Network((Dense(np.array([[1.0]]), np.array([-0.5])),), Output.SIGMOID)


def asked(network: Network, delta: float, domain: Domain) -> Estimate:
    return Session().estimate(GlobalEpsilon(network, Absolute(delta).around(network), domain), backend="milp", budget=BUDGET)


@pytest.mark.parametrize(
    "ends", [(0.0, 0.0), (0.0, 90.0), (0.0, 800.0), (2.0, 2.5), (-3.0, -1.0), (-700.0, 0.0), (-1e-300, 0.0)]
)
def test_lines_are_above_the_sigmoid_and_near_it(ends: tuple[float, float]) -> None:
    slopes, offsets = lines_above(*ends)
    lines = [(Fraction(a), Fraction(b)) for a, b in zip(slopes.tolist(), offsets.tolist(), strict=True)]
    gaps = []
    for t in {*ends, *np.linspace(*ends, 200).tolist(), min(ends[1], ends[0] + 1.0)}:
        least, most = float_bounds(lambda t=t: sigmoid(to_exact([Fraction(t)])[0]))  # type: ignore[misc]
        values = [a * Fraction(t) + b for a, b in lines]
        assert all(value >= Fraction(least) for value in values)
        gaps.append(float(min(values)) - most)
    if ends[0] >= 0:
        assert max(gaps) < 2e-3
    else:  # a chord
        assert min(gaps) < 1e-12


def sampled(network: Network, delta: float, domain: InputBox) -> float:
    """The greatest change over a grid of inputs, with the parameters' worst corner at each (one hidden layer at most)."""
    rng = np.random.default_rng(0)
    points = domain.lower + rng.random((3000, len(domain.lower))) * (domain.upper - domain.lower)
    corners = np.array(list(product(*zip(domain.lower, domain.upper, strict=True))))
    parameters = Absolute(delta).around(network)
    return float(greatest_changes(network, parameters, np.concatenate([points, corners])).lower.max())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("delta", [0.01, 0.3])
def test_the_ends_are_around_the_maximum(seed: int, delta: float, random_network: RandomNetwork) -> None:
    network = random_network(np.random.default_rng(seed), (2, 4, 1))
    domain = InputBox([-1.0, -2.0], [1.0, 0.5])
    found = asked(network, delta, domain)
    other = Session().estimate(found.query, backend="branch-and-bound", budget=BUDGET)
    assert found.reason == ""
    assert found.upper >= other.lower
    assert other.upper >= found.lower
    assert found.upper >= sampled(network, delta, domain)
    assert found.gap <= RELATIVE * found.upper + 1e-8
    assert found.assurance is Assurance.ROUNDED
    assert found.witness is not None
    assert witness_bounds(found.query, found.witness)[0] >= found.lower  # type: ignore[arg-type]


def test_by_hand_and_none_at_all() -> None:
    """1/4 (1 + x) at most is added to x - 1/2 or taken from it: most at x = 1, and there toward 0, from 1/2."""
    found = asked(LINE, 0.25, InputBox([0.0], [1.0]))
    true = 1 / (1 + np.exp(-0.5)) - 0.5
    assert found.lower <= true + 1e-12
    assert found.upper >= true
    assert found.gap <= RELATIVE * found.upper
    nothing = asked(LINE, 0.0, InputBox([0.0], [1.0]))
    assert (nothing.lower, nothing.upper <= 1e-8) == (0.0, True)


def test_over_a_polytope_it_is_less(random_network: RandomNetwork) -> None:
    network, box = random_network(np.random.default_rng(3), (2, 5, 1)), InputBox([-1.0, -1.0], [1.0, 1.0])
    whole = asked(network, 0.1, box)
    part = asked(network, 0.1, Polytope(box, [[1.0, 1.0]], [-0.5]))
    assert part.lower <= whole.upper
    assert part.upper < whole.upper
    assert part.witness is not None
    assert sum(part.witness.x) <= Fraction(-1, 2)


def test_pieces_hold_every_pair_of_logits_that_may_differ(random_network: RandomNetwork) -> None:
    network = random_network(np.random.default_rng(0), (2, 6, 1))
    query = GlobalEpsilon(network, Absolute(0.2).around(network), InputBox([-1.0] * 2, [1.0] * 2))
    both = twins(query)
    todo, seen = pieces(both), []
    for _ in range(4):
        seen, todo = todo, [half for piece in todo for half in piece.halves()]
    logits, rng = both.logits, np.random.default_rng(1)
    ranges = [(float(z.lower[0, 0]), float(z.upper[0, 0])) for z in (logits.stored, logits.perturbed)]
    for before, after in zip(*(rng.uniform(*ends, 200).tolist() for ends in ranges), strict=True):
        sign = 1.0 if after > before else -1.0
        for those in (seen, todo):
            holding = [p for p in those if p.sign == sign and _inside(before, p.stored) and _inside(after, p.perturbed)]
            assert any(p.upper >= abs(_s(np.array(after)) - _s(np.array(before))) for p in holding)


def _s(t: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-t)))


def _inside(value: float, ends: tuple[float, float]) -> bool:
    return ends[0] <= value <= ends[1]


def test_out_of_time_it_still_bounds(random_network: RandomNetwork) -> None:
    network = random_network(np.random.default_rng(1), (6, 12, 1))
    query = GlobalEpsilon(network, Absolute(0.05).around(network), InputBox([-1.0] * 6, [1.0] * 6))
    claim = sigmoid_change.Search(query, twins(query), deadline=0.0).close()
    assert claim.reason == "the time limit was reached"
    assert claim.upper >= sampled(network, 0.05, InputBox([-1.0] * 6, [1.0] * 6))


@pytest.mark.parametrize("noise", [None, 0.1])
def test_a_solver_that_is_wrong_does_not_lower_the_upper_end(
    noise: float | None, random_network: RandomNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, domain, rng = (
        random_network(np.random.default_rng(2), (2, 4, 1)),
        InputBox([-1.0] * 2, [1.0] * 2),
        np.random.default_rng(0),
    )
    honest = Relaxation.solve

    def wrong(self: Relaxation, *arguments: Any, **options: Any) -> Hint:
        hint = honest(self, *arguments, **options)
        if noise is None or hint.values is None or hint.multipliers is None:
            return Hint()
        return Hint(hint.values, hint.multipliers + noise * rng.normal(size=hint.multipliers.shape))

    monkeypatch.setattr(Relaxation, "solve", wrong)
    query = GlobalEpsilon(network, Absolute(0.1).around(network), domain)
    assert milp.estimate(query, 1.0).upper >= sampled(network, 0.1, domain)


def test_a_hidden_linear_layer_is_no_obstacle() -> None:
    layers = (Dense(np.array([[1.0, -1.0]]), np.zeros(1), Activation.LINEAR), Dense(np.array([[2.0]]), np.zeros(1)))
    network = Network(layers, Output.SIGMOID)
    found = asked(network, 0.1, InputBox([-1.0] * 2, [1.0] * 2))
    assert sampled(network, 0.1, InputBox([-1.0] * 2, [1.0] * 2)) <= found.upper
    assert found.gap <= RELATIVE * found.upper
