"""Blame: the shares add up to what the bound uses, are those of a hand calculation, and reliefs hold when asked anew."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qrobust.answers import Verdict
from qrobust.blame import Blame, blame, blame_json, channel_reliefs, layer_reliefs, relieved
from qrobust.bounds.shares import Shares, shares
from qrobust.domains import ParameterBox, Point
from qrobust.errors import UnsupportedError
from qrobust.formats import load
from qrobust.interval import FloatArray
from qrobust.leads import Leads
from qrobust.network import Activation, Network
from qrobust.perturbations import Absolute, Copy, Rounding, with_rows
from qrobust.quantization import parse_scheme
from qrobust.queries import HALF, LocalLabel
from qrobust.search import Budget
from qrobust.solve import Session
from tests.cases import LINE, TIED, network
from tests.conftest import RandomNetwork
from tests.test_linear_bounds import boxes, image_network

IRIS = load(Path(__file__).parents[1] / "models" / "iris.json")
X = [5.9, 3.0, 4.2, 1.5]


def of_label(net: Network, box: ParameterBox, x: FloatArray) -> Shares:
    leads = Leads(net, HALF)
    pairs = leads.of_label(int(net.labels(x[None])[0]))
    return shares(net, box, x, leads.directions[pairs], leads.offset.upper[pairs])


def assert_adds_up(found: Shares) -> None:
    total = sum(own.total + own.relaxed for own in found.layers)
    size = sum(abs(own.total) + abs(own.relaxed) for own in found.layers) + abs(found.stored) + 1
    assert total == pytest.approx(found.used, abs=1e-8 * size)
    for own in found.layers:
        assert own.rows.sum() == pytest.approx(own.total, abs=1e-9 * size)


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("sizes", [(3, 2), (3, 4, 1), (4, 5, 5, 3), (2, 6, 6, 6, 2)])
def test_shares_add_up(activation: Activation, sizes: tuple[int, ...], random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(sum(sizes))
    net, x = random_network(rng, sizes, activation), rng.normal(size=sizes[0])
    for box in (*boxes(net, rng), Rounding(parse_scheme("q3.4-floor")).around(net)):
        found = of_label(net, box, x)
        assert_adds_up(found)
        for own in found.layers:
            assert (own.weight >= -1e-12).all()
            assert (own.bias >= -1e-12).all()
            assert own.relaxed >= -1e-9
        assert found.used > 0


def test_shares_of_convolutions_and_pools_add_up() -> None:
    rng = np.random.default_rng(1)
    for _ in range(3):
        net, x = image_network(rng), rng.normal(size=25)
        for rule in (Absolute(0.01), Absolute(0.1, weights=False), Rounding(parse_scheme("int6-per-channel"))):
            found = of_label(net, rule.around(net), x)
            assert_adds_up(found)
            assert [own.weight.shape for own in found.layers] == [layer.weight.shape for layer in net.layers]
            assert all(own.relaxed >= -1e-9 for own in found.layers)


def test_nothing_moves_and_nothing_is_used() -> None:
    found = of_label(IRIS, Absolute(0.0).around(IRIS), np.array(X))
    assert found.used == pytest.approx(0.0, abs=1e-9)
    assert all(own.total == 0 for own in found.layers)


def test_by_hand() -> None:
    """z = w2 relu(w1 x + b1) + b2 with w1 = 1, b1 = 0, w2 = 2, b2 = -1 at x = 3, all within 1/8: label 1, z = 5 - ... .

    The lead of label 0 is -z: prices are nu2 = -1 and nu1 = -2 times the relaxed slope 1. Stored h = 3: w2 takes 3/8, b2
    1/8. Over w2 in [15/8, 17/8] the least z is 15/8 (3 - 3/8 - 1/8) - 9/8 = 57/16: 23/16 below 5. What the product w1 w2
    saves, (1/8)(1/2) = 1/16, is shared out by the price of layer 1, which is 15/8 and not 2: w1 takes 45/64, b1 15/64.
    """
    net = network(([[1]], [0]), ([[2]], [-1]))
    found = blame(LocalLabel(net, Absolute(0.125).around(net), Point([3.0])))
    assert (found.label, found.rival, found.margin) == (1, 0, 5.0)
    first, second = found.layers
    assert second.weight[0, 0] == pytest.approx(3 / 8)
    assert second.bias[0] == pytest.approx(1 / 8)
    assert first.weight[0, 0] == pytest.approx(45 / 64)
    assert first.bias[0] == pytest.approx(15 / 64)
    assert found.shares.used == pytest.approx(23 / 16)
    assert found.shares.upper == pytest.approx(-57 / 16)
    inputs = found.inputs()
    assert inputs is not None
    assert inputs.tolist() == [first.weight[0, 0]]
    assert [(p.layer, p.row, p.index) for p in found.parameters(2)] == [(0, 0, (0, 0)), (1, 0, (0, 0))]


def test_a_copy_pays_what_it_moves() -> None:
    """LINE at x = 1, its copy has w = 3/4: the logit falls by 1/4, by the weight alone."""
    copy = network(([[0.75]], [-0.5]))
    found = blame(LocalLabel(LINE, Copy(copy).around(LINE), Point([1.0])))
    assert found.layers[0].weight.tolist() == [[0.25]]
    assert found.layers[0].bias.tolist() == [0.0]
    assert found.shares.upper == pytest.approx(-0.25)


def at_iris(scheme: str) -> Blame:
    return blame(LocalLabel(IRIS, Rounding(parse_scheme(scheme)).around(IRIS), Point(X)))


def test_reliefs_hold_when_asked_anew() -> None:
    found, exact = at_iris("int6"), Absolute(0.0).around(IRIS)
    layers = layer_reliefs(found, exact, Session(), Budget(10))
    for relief, place in zip(layers, ("float/int6", "int6/float"), strict=True):
        box = Rounding(parse_scheme(place)).around(IRIS)
        assert relief.answer.query.parameters.sha256 == box.sha256
        verdict = Session().check(LocalLabel(IRIS, box, Point(X)), backend="z3").verdict
        assert relief.answer.verdict is verdict
    channels = channel_reliefs(found, exact, Session(), Budget(10))
    proved = [len(relief.places) for relief in channels if relief.proved]
    failed = [len(relief.places) for relief in channels if not relief.proved]
    assert min(proved) == max(failed) + 1
    for relief in channels:
        query = relieved(found, exact, relief.places)
        assert Session().check(query, backend="z3").verdict is relief.answer.verdict


def test_the_order_is_that_of_the_shares() -> None:
    found = at_iris("int5")
    places = found.channels()
    assert [p.share for p in places] == sorted((p.share for p in places), reverse=True)
    assert len(places) == 8
    everything = channel_reliefs(found, found.query.parameters, Session(), Budget(10))
    assert len(everything[-1].places) == 8  # the same box helps nobody
    assert not any(relief.proved for relief in everything)


def test_rows_of_two_boxes() -> None:
    wide, narrow = (Absolute(d).around(IRIS) for d in (0.5, 0.25))
    masks = [np.arange(5) == 2, np.arange(3) == 9]
    box = with_rows(wide, narrow, masks, "mixed")
    widths = box.layers[0].weight.interval.width[:, 0]
    assert widths == pytest.approx([1, 1, 0.5, 1, 1])
    assert box.layers[1].weight.interval.width == pytest.approx(np.ones((3, 5)))
    assert box.layers[0].bias.interval.width == pytest.approx([1, 1, 0.5, 1, 1])
    assert box.rule == "mixed"


def test_as_json() -> None:
    document = blame_json(at_iris("int6"), 3)
    total = sum(own["weights"] + own["biases"] + own["relaxed"] for own in document["layers"])
    assert total == pytest.approx(document["used"])
    assert len(document["channels"]) == len(document["parameters"]) == 3


def test_what_is_refused() -> None:
    box = Absolute(0.1).around(LINE)
    with pytest.raises(UnsupportedError, match="sigma"):
        blame(LocalLabel(LINE, box, Point([1.0]), HALF, Fraction(1, 4)))
    tied = Absolute(0.1).around(TIED)
    found = blame(LocalLabel(TIED, tied, Point([1.0])))  # a tie of exact numbers has a label: the lower index
    assert (found.label, found.margin) == (0, 0.0)
    assert found.query.parameters is tied
    assert Session().check(found.query).verdict is Verdict.VIOLATED


def test_a_level_moves_the_margin() -> None:
    """z = 1/2 at x = 1, and the logit of 1/3 is -log 2."""
    query = LocalLabel(LINE, Absolute(0.1).around(LINE), Point([1.0]), Fraction(1, 3))
    assert blame(query).margin == pytest.approx(0.5 + np.log(2))
