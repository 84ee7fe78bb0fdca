"""The change of several confidences behind one hidden layer: against exact sums, samples, and the search cell by cell."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx

from qrobust.backends.branch_and_bound import BranchAndBound
from qrobust.bounds import odds
from qrobust.bounds.odds import Odds
from qrobust.bounds.softmax_change import greatest_changes, why_not
from qrobust.domains import ParameterBox, Point
from qrobust.errors import ResourceError
from qrobust.exact import to_exact
from qrobust.interval import FloatArray
from qrobust.network import Activation, Network, perturbed_logits
from qrobust.network import FloatArithmetic as Floats
from qrobust.perturbations import Absolute, Copy, Rounding
from qrobust.quantization import parse_scheme
from qrobust.queries import LocalEpsilon
from qrobust.search import Budget
from qrobust.solve import ENOUGH, Session
from tests.cases import TWINS, network
from tests.conftest import RandomNetwork


def exact_sum(base: FloatArray, slope: FloatArray, t: FloatArray) -> arb:
    """The sum at one t in 200 bits. Shapes: base (rivals,), slope (rivals, n), t (n,)."""
    with ctx.workprec(200):
        rows = [
            Fraction(b) + sum(Fraction(s) * Fraction(v) for s, v in zip(row, t, strict=True))
            for b, row in zip(base, slope, strict=True)
        ]
        return sum((arb(e).exp() for e in to_exact(rows)), arb(0))


def faults(given: Odds) -> list[int]:
    """The boxes in which some vertex or inner point contradicts a bound."""
    rng = np.random.default_rng(1)
    (_, low), (_, high) = odds.least(given), odds.greatest(given)
    n = given.slope.shape[2]
    points = [np.array(v, dtype=float) for v in itertools.product((0, 1), repeat=n)] + list(rng.random((20, n)))
    wrong = []
    for box in range(len(given)):
        sums = [exact_sum(given.base[box], given.slope[box], t) for t in points]
        if any(not (arb(float(low[box])) <= s) or not (s <= arb(float(high[box]))) for s in sums):
            wrong.append(box)
    return wrong


def random_odds(seed: int, rivals: int, n: int, scale: float) -> Odds:
    rng = np.random.default_rng(seed)
    return Odds(rng.normal(size=(12, rivals)) * scale, rng.normal(size=(12, rivals, n)) * scale)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 10.0, 300.0])
@pytest.mark.parametrize("rivals", [1, 2, 4])
def test_sums_lie_between_their_bounds_and_meet_them(rivals: int, scale: float) -> None:
    given = random_odds(rivals, rivals, 4, scale)
    assert faults(given) == []
    (t, low), (vertex, high) = odds.least(given), odds.greatest(given)
    assert ((t >= 0) & (t <= 1)).all()
    assert ((vertex == 0) | (vertex == 1)).all()
    for box in range(12 if scale < 100 else 0):  # beyond, the search inside takes more steps than it is given
        at_least, at_most = (exact_sum(given.base[box], given.slope[box], p[box]) for p in (t, vertex))
        for bound, attained in ((low, at_least), (high, at_most)):
            assert abs(1 / (1 + float(bound[box])) - float(1 / (1 + attained))) < 1e-7


@pytest.mark.parametrize("scale", [1e3, 1e8, 1e15])
@pytest.mark.parametrize("rivals", [1, 2])
def test_exponents_that_cancel_lie_between_their_bounds(rivals: int, scale: float) -> None:
    """Large numbers whose sums are small where the sum is greatest (or least), so that rounding is all there is."""
    for seed, end in enumerate((np.maximum, np.minimum)):
        drawn = random_odds(seed, rivals, 4, scale)
        base = drawn.base / scale - end(drawn.slope, 0.0).sum(axis=2)
        assert faults(Odds(base, drawn.slope)) == []


def test_a_sum_by_hand() -> None:
    """exp(t) + exp(-t) over [0, 1]: least 2 at 0, greatest e + 1/e at 1; exp(2t - 1) + exp(1 - 2t): least 2, inside, at 1/2."""
    given = Odds(np.array([[0.0, 0.0], [-1.0, 1.0]]), np.array([[[1.0], [-1.0]], [[2.0], [-2.0]]]))
    (t, low), (vertex, high) = odds.least(given), odds.greatest(given)
    assert t[:, 0] == pytest.approx([0, 0.5], abs=1e-6)
    assert low == pytest.approx([2, 2], abs=1e-9)
    assert (low <= 2).all()
    assert high == pytest.approx([np.e + 1 / np.e] * 2, rel=1e-9)
    assert vertex[0, 0] == 1


def test_overflow_says_nothing() -> None:
    huge = np.array([[1e308, -1e308]])
    given = Odds(huge, np.stack([huge, -huge], axis=2) * 1.5)
    low, high = odds.least(given)[1], odds.greatest(given)[1]
    assert low[0] >= 0
    assert high[0] == np.inf


def test_broken_bounds_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With chords or weights that count for a tenth too little or too much, the sums contradict the bounds."""
    given = random_odds(7, 3, 4, 2.0)
    assert faults(given) == []
    under, jensen = odds._under_chords, odds._by_jensen
    with monkeypatch.context() as broken:
        broken.setattr(odds, "_under_chords", lambda part, faces: (0.9 * under(part, faces)[0], under(part, faces)[1]))
        assert faults(given) != []
    with monkeypatch.context() as broken:
        broken.setattr(odds, "_by_jensen", lambda part, t: 1.1 * jensen(part, t))
        assert faults(given) != []


def oracle_agrees(net: Network, box: ParameterBox, points: FloatArray, *, widest: float) -> FloatArray:
    """Compare with the search at each point; return the upper ends."""
    found = greatest_changes(net, box, points)
    assert (found.width <= widest).all()
    for x, low, high in zip(points, found.lower.tolist(), found.upper.tolist(), strict=True):
        claim = Session([BranchAndBound()]).estimate(LocalEpsilon(net, box, Point(x)), budget=Budget(2))
        assert claim.lower <= high
        assert low <= claim.upper
    return found.upper


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 3, 3), (2, 4, 4)])
def test_the_search_cell_by_cell_agrees(sizes: tuple[int, ...], activation: Activation, random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(11)
    net = random_network(rng, sizes, activation)
    points = rng.normal(size=(3, sizes[0]))
    signed = activation in (Activation.LINEAR, Activation.TANH)  # hidden values near 0 may change sign
    for delta in (0.01, 0.2):
        assert (oracle_agrees(net, Absolute(delta).around(net), points, widest=0.2 if signed else ENOUGH) > 1e-4).all()


def test_random_parameters_stay_below(random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(2)
    for activation in (Activation.RELU, Activation.TANH):
        net = random_network(rng, (3, 6, 4), activation)
        box = Absolute(0.3).around(net)
        points = rng.normal(size=(20, 3))
        upper = greatest_changes(net, box, points).upper
        before = net.confidences(points)
        for _ in range(200):
            parameters = tuple(
                (
                    layer.weight + rng.choice([-0.3, 0.3], layer.weight.shape),
                    layer.bias + rng.choice([-0.3, 0.3], layer.bias.shape),
                )
                for layer in net.layers
            )
            after = Floats().softmax(perturbed_logits(net, parameters, points, Floats()))
            assert (np.abs(after - before).max(axis=1) <= upper + 1e-12).all()


def test_boxes_without_width(random_network: RandomNetwork) -> None:
    """Nothing moves: 0. A single copy: what it changes, to rounding."""
    net = random_network(np.random.default_rng(4), (3, 5, 3))
    points = np.random.default_rng(5).normal(size=(9, 3))
    still = greatest_changes(net, Absolute(0.0).around(net), points)
    assert (still.lower == 0).all()
    assert (still.upper < 1e-12).all()
    quantized = parse_scheme("int4").copy(net)
    found = greatest_changes(net, Copy(quantized).around(net), points)
    moved = np.abs(quantized.confidences(points) - net.confidences(points)).max(axis=1)
    assert found.middle == pytest.approx(moved, abs=1e-11)
    assert (found.width < 1e-11).all()


def test_parts_by_memory_give_the_same(random_network: RandomNetwork) -> None:
    net = random_network(np.random.default_rng(6), (3, 8, 5))
    box = Rounding(parse_scheme("int6")).around(net)
    points = np.random.default_rng(7).normal(size=(40, 3))
    whole, parts = greatest_changes(net, box, points), greatest_changes(net, box, points, memory=2**20)
    assert np.abs(whole.upper - parts.upper).max() < 1e-9
    with pytest.raises(ResourceError, match="one point of several classes"):
        greatest_changes(net, box, points, memory=2**14)


def test_large_numbers_stay_enclosed() -> None:
    """Logits beyond what exp holds, and hidden values that overflow: changes between 0 and 1."""
    net = network(([[1e300], [1.0]], [0, 0]), ([[1, 0], [0, 1], [1, 1]], [0, 0, 0]))
    found = greatest_changes(net, Absolute(0.5).around(net), np.array([[1.0], [1e10], [-1e300]]))
    assert ((found.lower >= 0) & (found.lower <= found.upper) & (found.upper <= 1)).all()


def test_what_is_not_covered_says_so() -> None:
    assert why_not(TWINS) is not None
    assert why_not(network(([[1], [1]], [0, 0]), ([[1, 1], [0, 1]], [0, 0]))) is None
