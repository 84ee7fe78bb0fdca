"""Leads: who beats whom, ties, levels, and margins there and back, against the definitions replayed exactly."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from flint import arb, ctx, fmpq

from qrobust.answers import Counterexample
from qrobust.check import Replay
from qrobust.domains import LayerBox
from qrobust.exact import ExactArray, decide, to_exact, to_rational
from qrobust.interval import Interval
from qrobust.leads import Leads
from qrobust.network import Activation, Network
from tests.cases import LINE, at, ball, network
from tests.conftest import RandomNetwork

HALF = Fraction(1, 2)
LEVELS = [HALF, Fraction(1, 4), Fraction(7, 10), Fraction(1, 1000), 1 - Fraction(1, 10**9)]
THREE = network(([[1], [0], [-1]], [0, 0, 0]))


def stored(net: Network, x: list[Fraction]) -> Replay:
    """The stored network at an input, exactly."""
    exact = np.frompyfunc(Fraction, 1, 1)
    layers = tuple((exact(layer.weight.astype(object)), exact(layer.bias.astype(object))) for layer in net.layers)
    return Replay(net, Counterexample(tuple(x), layers))


def exact_leads(leads: Leads, values: ExactArray, pair: int) -> tuple[Fraction, Fraction]:
    """Enclose the lead of one pair that belongs to rational logits."""
    directions = leads.directions[pair].tolist()
    total = sum((Fraction(d) * to_rational(v) for d, v in zip(directions, values, strict=True)), Fraction(0))
    low, high = leads.offset_bounds(pair)
    return total + low, total + high


def label_of(leads: Leads, values: ExactArray) -> list[int]:
    """The labels whose leads say that they are the label: all rivals behind, or level with it if they come after."""
    chosen = []
    for label in range(leads.network.class_count):
        behind = []
        for pair in leads.of_label(label).tolist():
            low, high = exact_leads(leads, values, pair)
            assert low == high or low > 0 or high < 0, "an enclosed level that does not settle the test's own case"
            behind.append(high <= 0 if leads.strict[pair] else high < 0)
        chosen += [label] if all(behind) else []
    return chosen


def test_pairs_of_one_sigmoid_are_two_classes() -> None:
    leads = Leads(LINE, HALF)
    assert leads.pairs.tolist() == [[0, 1], [1, 0]]
    assert leads.strict.tolist() == [True, False]  # class 1 needs f > 1/2; at the tie it is class 0
    assert leads.directions.tolist() == [[1], [-1]]


def test_pairs_of_three_classes() -> None:
    leads = Leads(THREE, HALF)
    assert leads.pairs.tolist() == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]
    assert leads.strict.tolist() == [True, True, False, True, False, False]
    assert leads.directions[3].tolist() == [0, -1, 1]
    assert [leads.of_label(label).tolist() for label in range(3)] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("values", list(product([-1, 0, 1], repeat=3)))
def test_the_lowest_index_wins_a_tie(values: tuple[int, ...]) -> None:
    """Biases alone are the logits: all ties of three classes, against Replay and against argmax."""
    net = network(([[0], [0], [0]], list(values)))
    assert label_of(Leads(net, HALF), to_exact(list(values))) == [int(np.argmax(values))]
    assert stored(net, [Fraction(0)]).label(False, HALF) == int(np.argmax(values))


def test_the_decision_level_belongs_to_class_0() -> None:
    for z, label in ((0, 0), (Fraction(1, 2**80), 1), (-Fraction(1, 2**80), 0)):
        assert label_of(Leads(LINE, HALF), to_exact([Fraction(z)])) == [label]
        assert stored(LINE, [HALF + z]).label(False, HALF) == label


@pytest.mark.parametrize("activation", [Activation.LINEAR, Activation.RELU])
@pytest.mark.parametrize(("sizes", "level"), [((2, 3, 4), HALF), ((2, 2), HALF), *(((2, 3, 1), v) for v in LEVELS)])
def test_leads_agree_with_the_definitions(
    random_network: RandomNetwork, sizes: tuple[int, ...], level: Fraction, activation: Activation
) -> None:
    rng = np.random.default_rng([len(sizes), sizes[-1]])
    for _ in range(20):
        net = random_network(rng, sizes, activation)
        replay = stored(net, [Fraction(v) for v in (3 * rng.normal(size=2)).tolist()])
        leads = Leads(net, level)
        (label,) = label_of(leads, replay.nominal())
        assert replay.label(False, level) == label
        gaps = [exact_leads(leads, replay.nominal(), pair) for pair in leads.of_label(label).tolist()]
        low, high = min(-high for _, high in gaps), min(-low for low, _ in gaps)
        for gap, sign in ((low, 1), (high, -1)):
            found = margins_apart(leads, replay, gap, label)
            assert found in (sign, 0) or (found is None and low == high)


def margins_apart(leads: Leads, replay: Replay, gap: Fraction, label: int) -> int | None:
    """The sign of the margin as defined minus that of a gap."""
    return decide(lambda: arb(replay.margin(label, leads.level)) - arb(leads.margin(gap, label)))


@pytest.mark.parametrize("sizes", [(2, 3), (2, 1)])
def test_rows_enclose_the_differences_of_corners(random_network: RandomNetwork, sizes: tuple[int, int]) -> None:
    net = random_network(np.random.default_rng(3), sizes)
    box: LayerBox = ball(net, 0.25).layers[0]
    weight, bias = (Interval(b.lower.round_down(), b.upper.round_up()) for b in (box.weight, box.bias))
    leads = Leads(net, HALF)
    rows, shifts = leads.rows(weight, bias)
    for pair, (label, rival) in enumerate(leads.pairs.tolist()):
        for column in range(2):
            low, high = (ends[:, column] for ends in box.weight.fractions)
            ends = (low[rival] - high[label], high[rival] - low[label]) if sizes[1] > 1 else _signed(low[0], high[0], rival)
            assert Fraction(rows.lower[pair, column]) <= ends[0] <= Fraction(rows.lower[pair, column]) + Fraction(1, 10**12)
            assert Fraction(rows.upper[pair, column]) - Fraction(1, 10**12) <= ends[1] <= Fraction(rows.upper[pair, column])
        low, high = box.bias.fractions
        ends = (low[rival] - high[label], high[rival] - low[label]) if sizes[1] > 1 else _signed(low[0], high[0], rival)
        assert Fraction(shifts.lower[pair]) <= ends[0] <= ends[1] <= Fraction(shifts.upper[pair])


def _signed(low: Fraction, high: Fraction, rival: int) -> tuple[Fraction, Fraction]:
    return (low, high) if rival == 1 else (-high, -low)


@pytest.mark.parametrize("level", LEVELS)
def test_the_offset_encloses_the_logit_of_the_level(level: Fraction) -> None:
    """Minus log(l / (1 - l)) where class 1 is the rival, plus it where class 0 is."""
    leads = Leads(LINE, level)
    odds = level / (1 - level)
    with ctx.workprec(400):
        logit = arb(fmpq(odds.numerator, odds.denominator)).log()
        for pair, truth in enumerate((-logit, logit)):
            low, high = leads.offset_bounds(pair)
            assert arb(_ball(low)) <= truth or truth.contains(_ball(low))
            assert truth <= arb(_ball(high)) or truth.contains(_ball(high))
            assert high - low <= Fraction(1, 10**30)
            assert Fraction(leads.offset.lower[pair]) <= low <= high <= Fraction(leads.offset.upper[pair])
            assert leads.offset.upper[pair] - leads.offset.lower[pair] <= 1e-14 * max(1.0, abs(leads.offset.upper[pair]))
    assert leads.offset_is_exact == (level == HALF)


def _ball(value: Fraction) -> fmpq:
    return fmpq(value.numerator, value.denominator)


def test_classes_have_no_offset() -> None:
    leads = Leads(THREE, HALF)
    assert leads.offset_is_exact
    assert leads.offset.lower.tolist() == leads.offset.upper.tolist() == [0.0] * 6
    assert {leads.offset_bounds(pair) for pair in range(6)} == {(Fraction(0), Fraction(0))}


def against(leads: Leads, gap: Fraction, label: int, sigma: Fraction) -> int | None:
    """The sign of a gap's margin minus sigma."""
    return decide(lambda: leads.margin(gap, label) - to_exact([sigma])[0])


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("level", LEVELS)
def test_margins_there_and_back(level: Fraction, label: int) -> None:
    """sigma lies between the margins of the two ends of the gap that it needs, and these ends are near each other."""
    leads = Leads(LINE, level)
    room = level if label == 0 else 1 - level
    for part in (Fraction(1, 2**40), Fraction(1, 3), HALF, Fraction(999, 1000)):
        sigma = part * room
        found = leads.gap_of_margin(sigma, label)
        assert found is not None
        low, high = found
        assert 0 < low <= high <= low + Fraction(1, 10**30)
        at_low, at_high = (against(leads, gap, label, sigma) for gap in found)
        assert (at_low, at_high) == (-1, 1)
    assert leads.gap_of_margin(Fraction(0), label) == (Fraction(0), Fraction(0))
    assert leads.gap_of_margin(room, label) is None  # a confidence is never 0 or 1
    assert leads.gap_of_margin(min(room + Fraction(1, 100), Fraction(1)), label) is None


@pytest.mark.parametrize("sigma", [Fraction(1, 100), Fraction(1, 4), Fraction(49, 100)])
def test_margins_of_classes_do_not_depend_on_the_label(sigma: Fraction) -> None:
    leads = Leads(THREE, HALF)
    assert len({leads.gap_of_margin(sigma, label) for label in range(3)}) == 1
    assert leads.gap_of_margin(HALF, 0) is None
    low, high = leads.gap_of_margin(sigma, 0) or (Fraction(0), Fraction(0))
    truth = np.log((0.5 + float(sigma)) / (0.5 - float(sigma)))
    assert float(low) == pytest.approx(truth, rel=1e-12)
    assert low <= high


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("gap", [0.0, 5e-324, 1e-12, 0.5, 30.0, 1e3])
def test_the_margin_of_a_gap_is_enclosed(level: Fraction, label: int, gap: float) -> None:
    """Against sigmoid(z_0 + gap) - l for label 1, l - sigmoid(z_0 - gap) for label 0, in high precision."""
    low, high = Leads(LINE, level).margin_of_gap(gap, label)
    odds = level / (1 - level)
    with ctx.workprec(4000):
        sign, own = (1 if label == 1 else -1), arb(_ball(level))
        raised = arb(_ball(odds)).log() + sign * arb(_ball(Fraction(gap)))
        truth = sign * (1 / (1 + (-raised).exp()) - own)
        slack = arb(2) ** -3000
        assert arb(low) <= truth + slack
        assert truth - slack <= arb(high)
    assert 0 <= low <= high
    assert high - low <= 1e-15 * high + 1e-37  # near a level but 1/2 two numbers of its size are subtracted, in 128 bits


@pytest.mark.parametrize("net", [LINE, THREE])
def test_no_margin_is_above_that_of_an_infinite_gap(net: Network) -> None:
    for level in LEVELS if net is LINE else [HALF]:
        for label in (0, 1):
            leads = Leads(net, level)
            low, high = leads.margin_of_gap(np.inf, label)
            assert low == 0
            assert leads.margin_of_gap(1e4, label)[1] <= high <= 1 + 1e-15


def test_a_point_and_its_margin_by_hand() -> None:
    """z = x - 1/2. At x = 5/2, z = 2: margin s(2) - 1/2 = tanh(1) / 2; at x = -3/2 the same for label 0."""
    for x, label in ((2.5, 1), (-1.5, 0)):
        (label_found,) = label_of(Leads(LINE, HALF), stored(LINE, [Fraction(at(x).values[0])]).nominal())
        assert label_found == label
        assert Leads(LINE, HALF).margin_of_gap(2.0, label)[0] == pytest.approx(np.tanh(1) / 2, abs=1e-15)
