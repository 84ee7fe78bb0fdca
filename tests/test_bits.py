"""Fewest bits: each choice of widths is proved again on its own, the one below is not, and the bits add up."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrobust.answers import Verdict
from qrobust.bits import LIMITS, Asking, Family, FewestBits, Trial, certificate_why_not, fewest_bits, stored_bits
from qrobust.cache import ResultCache
from qrobust.certificates import Certificate
from qrobust.check import certificate_fault, violation_fault
from qrobust.domains import InputBox, ParameterBox, Point, Points
from qrobust.errors import NumberError, QRobustError
from qrobust.formats import load
from qrobust.network import Network
from qrobust.perturbations import Rounding
from qrobust.quantization import Bias, FixedPoint, Integer, PerLayerScheme, parse_scheme
from qrobust.queries import GlobalLabel, LocalConfidence, LocalLabel, MarginLabel, Query
from qrobust.search import Budget
from qrobust.solve import Session
from tests.cases import LINE, TANH_TWINS, network

IRIS = load(Path(__file__).parents[1] / "models" / "iris.json")
FAMILIES = [Family(text) for text in ("int", "int-per-channel", "int-asymmetric-bias-same", "q", "q-floor-wrap", "pow2")]


def labels(net: Network, x: list[float], family: Family, most: int = 12) -> FewestBits:
    return fewest_bits(net, family, lambda box: LocalLabel(net, box, Point(x)), most=min(most, family.most))


def proved_again(found: FewestBits, trial: Trial, x: list[float]) -> Verdict:
    """Ask about a choice of widths with a box that is assembled here, by another backend."""
    net = found.network
    boxes = [
        Rounding(found.family.layer_format(layer, w)).around(net) for layer, w in zip(net.layers, trial.widths, strict=True)
    ]
    box = ParameterBox(tuple(own.layers[place] for place, own in enumerate(boxes)))
    assert box.sha256 == trial.answer.query.parameters.sha256
    return Session().check(LocalLabel(net, box, Point(x)), backend="z3").verdict


@pytest.mark.parametrize("family", FAMILIES, ids=[family.text for family in FAMILIES])
@settings(max_examples=3, deadline=None)
@given(x=st.tuples(*(st.floats(a, b) for a, b in ((4.3, 7.9), (2, 4.4), (1, 6.9), (0.1, 2.5)))))
def test_each_accepted_choice_is_proved_again(family: Family, x: tuple[float, ...]) -> None:
    point = list(x)
    found = labels(IRIS, point, family, most=8)
    for trial in found.trials:
        assert proved_again(found, trial, point) is trial.answer.verdict
    if found.uniform is None:
        assert found.layers is None
        assert found.below is not None
        assert not found.below.proved
        return
    assert found.layers is not None
    assert found.uniform.proved
    assert found.layers.proved
    assert found.layers.bits <= found.uniform.bits
    assert all(own <= uniform for own, uniform in zip(found.layers.widths, found.uniform.widths, strict=True))
    if found.uniform.widths[0] > 2:
        assert found.below is not None
        assert found.below.widths == tuple(width - 1 for width in found.uniform.widths)
        assert not found.below.proved


def test_by_hand() -> None:
    """z = w x + b with w = 1, b = -1/2 (kept) at x = 1: step 1 / (2**(b - 1) - 1), so z is 1/2 +- step / 2, safe above 0.

    2 bits: step 1, z reaches 0, which is class 0. 3 bits: step 1/3, z >= 1/3.
    """
    found = labels(network(([[1]], [-0.5])), [1.0], Family("int"))
    assert found.uniform is not None
    assert found.uniform.widths == (3,)
    assert found.layers is found.uniform
    assert found.below is not None
    assert found.below.answer.verdict is Verdict.VIOLATED
    example = found.below.answer.counterexample
    assert example is not None
    assert violation_fault(found.below.answer.query, example) is None
    assert (found.uniform.bits, found.float_bits) == (3 + 32, 64)


def test_the_layer_with_most_parameters_is_narrowed_first() -> None:
    net = network(([[1, 0, 0], [0, 1, 1]], [0, 0]), ([[1, 0.0625]], [-0.8125]))
    found = labels(net, [1.0, 0.0, 0.0], Family("int"))
    assert found.uniform is not None
    (width, _) = found.uniform.widths
    mixed = [trial.widths for trial in found.trials if len(set(trial.widths)) > 1]
    assert mixed
    assert mixed[0][1] == width > mixed[0][0]


def test_none_below_the_least() -> None:
    found = labels(network(([[1]], [-0.25])), [8.0], Family("int"))
    assert found.uniform is not None
    assert found.uniform.widths == (2,)
    assert found.below is None


def test_what_no_width_keeps() -> None:
    """At the boundary itself, x = 1/2, every rounding of w changes the label."""
    found = labels(LINE, [0.5], Family("int"))
    assert found.uniform is None
    assert found.certificate is None
    assert found.below is not None
    assert found.below.widths == (12,)
    assert found.to_json()["uniform"] is None


def test_boxes_and_points_and_margins() -> None:
    box = InputBox([5, 3, 1, 0.1], [5.5, 3.5, 1.5, 0.3])
    found = fewest_bits(IRIS, Family("int"), lambda p: MarginLabel(IRIS, p, box, sigma=Fraction(1, 4)))
    assert found.uniform is not None
    assert certificate_why_not(found.uniform.answer.query) is not None
    points = Points([[5.1, 3.5, 1.4, 0.2], [5.9, 3.0, 4.2, 1.5]])
    both = fewest_bits(IRIS, Family("int"), lambda p: GlobalLabel(IRIS, p, points))
    singles = [labels(IRIS, x, Family("int")) for x in points.values.tolist()]
    assert both.uniform is not None
    assert both.uniform.widths == max(one.uniform.widths for one in singles if one.uniform)
    assert both.certificate is None


def test_the_certificate_is_followed() -> None:
    found = labels(IRIS, [5.1, 3.5, 1.4, 0.2], Family("int"))
    assert isinstance(found.certificate, Certificate)
    assert certificate_fault(found.certificate) is None
    assert found.layers is not None
    assert found.certificate.query.parameters.sha256 == found.layers.answer.query.parameters.sha256
    assert certificate_why_not(LocalLabel(TANH_TWINS, Rounding(Integer(8)).around(TANH_TWINS), Point([1.0]))) is not None


def test_an_unknown_is_not_taken_as_proved() -> None:
    asking = Asking("branch-and-bound", Budget(5, 1))
    x = Point([1.0])
    found = fewest_bits(
        TANH_TWINS, Family("int-bias-same"), lambda p: LocalConfidence(TANH_TWINS, p, x, Fraction(0)), most=4, asking=asking
    )
    assert found.uniform is None


def test_a_second_run_takes_answers_from_the_cache(tmp_path: Path) -> None:
    asking = Asking(cache=ResultCache(tmp_path))

    class Refusing(Session):
        def check(self, *_: object, **__: object) -> object:  # type: ignore[override]
            raise AssertionError("asked again")

    def question(box: ParameterBox) -> Query:
        return LocalConfidence(IRIS, box, Point([5.1, 3.5, 1.4, 0.2]), Fraction(1, 20))

    first = fewest_bits(IRIS, Family("int"), question, asking=asking)
    again = fewest_bits(IRIS, Family("int"), question, asking=asking, session=Refusing())
    assert [t.widths for t in again.trials] == [t.widths for t in first.trials]
    assert again.layers is not None
    assert first.layers is not None
    assert again.layers.widths == first.layers.widths


def test_processes_share_the_points() -> None:
    points = Points(np.random.default_rng(0).uniform([4.3, 2, 1, 0.1], [7.9, 4.4, 6.9, 2.5], (6, 4)))
    plain, shared = (
        fewest_bits(IRIS, Family("int"), lambda p: GlobalLabel(IRIS, p, points), asking=Asking(jobs=jobs)) for jobs in (1, 2)
    )
    assert [(t.widths, t.answer.verdict) for t in plain.trials] == [(t.widths, t.answer.verdict) for t in shared.trials]


def test_fixed_point_takes_the_least_range_that_holds_a_layer() -> None:
    """|w| <= 3 in the first layer needs 2 bits before the point, 0.25 in the second none."""
    net = network(([[3], [-1]], [0, 0]), ([[0.25, 0.25]], [0]))
    scheme = Family("q").scheme(net, (8, 6))
    assert isinstance(scheme, PerLayerScheme)
    assert scheme.schemes == (FixedPoint(2, 5), FixedPoint(0, 5))
    assert not any(grid.overflowed(net.layers[0].weight).any() for grid, _ in scheme.grids(net)[:1])


def test_bits_are_counted_by_array() -> None:
    """8 + 4 weights, 4 + 3 biases: kept biases take 32 bits, quantized ones the width."""
    assert stored_bits(IRIS, parse_scheme("int6"), (6, 6)) == 6 * (20 + 15) + 32 * 8
    assert stored_bits(IRIS, parse_scheme("int6-bias-same/int4"), (6, 4)) == 6 * 25 + 4 * 15 + 32 * 3


@pytest.mark.parametrize("text", ["int8", "q3.4", "fp16", "integer", "int-what", "", "int-per-channel8"])
def test_no_family(text: str) -> None:
    with pytest.raises(QRobustError):
        Family(text)


@pytest.mark.parametrize(("least", "most"), [(1, 8), (8, 7), (2, 33)])
def test_widths_out_of_range(least: int, most: int) -> None:
    with pytest.raises(NumberError, match="2 to 32"):
        fewest_bits(LINE, Family("int"), lambda p: LocalLabel(LINE, p, Point([1.0])), least=least, most=most)


def test_every_family_has_limits_and_a_format() -> None:
    for family in FAMILIES:
        for width in LIMITS[family.head]:
            assert family.layer_format(IRIS.layers[0], width) is not None
    biased = Family("int-bias-same").layer_format(IRIS.layers[0], 5)
    assert isinstance(biased, Integer)
    assert (biased.bits, biased.bias) == (5, Bias.SAME)
