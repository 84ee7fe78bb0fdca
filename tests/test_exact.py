"""Exact scalars: rationals stay rational, balls enclose, comparisons are settled or left open."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx, fmpq

from qrobust.errors import EnclosureError, NumberError
from qrobust.exact import (
    FIRST_BITS,
    ExactArithmetic,
    decide,
    float_bounds,
    logit_bounds,
    sigmoid,
    to_exact,
    to_fraction,
    to_rational,
)

MAX = sys.float_info.max


@pytest.mark.parametrize(
    ("value", "exact"),
    [
        (0.1, Fraction(3602879701896397, 36028797018963968)),
        ("0.1", Fraction(1, 10)),
        ("1/64", Fraction(1, 64)),
        (3, Fraction(3)),
        (Fraction(2, 7), Fraction(2, 7)),
        ("-1e-3", Fraction(-1, 1000)),
    ],
)
def test_numbers_are_taken_exactly(value: float | str | Fraction, exact: Fraction) -> None:
    assert to_fraction(value) == exact


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "", "one", "1/0", "0.1.2", None, [1.0]])
def test_what_is_no_number_is_refused_in_one_line(value: object) -> None:
    with pytest.raises(NumberError, match="not a finite number") as caught:
        to_fraction(value)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_arrays_keep_their_shape_and_every_bit() -> None:
    values = np.array([[0.1, -0.0, 5e-324], [1e308, -1 / 3, 2.0**-1022]])
    exact = to_exact(values)
    assert exact.shape == (2, 3)
    assert [to_rational(value) for value in exact.ravel()] == [Fraction(value) for value in values.ravel().tolist()]
    assert [to_rational(value) for value in to_exact([Fraction(1, 3), Fraction(-2, 7)])] == [
        Fraction(1, 3),
        Fraction(-2, 7),
    ]


def test_affine_and_relu_stay_rational() -> None:
    arithmetic = ExactArithmetic()
    weight, bias = arithmetic.constant(np.array([[0.1, -0.2], [1.0, 3.0]])), arithmetic.constant(np.array([0.5, -4.0]))
    result = arithmetic.relu(arithmetic.affine(weight, to_exact([Fraction(1, 3), Fraction(1, 7)]), bias))
    first = Fraction(0.1) / 3 - Fraction(0.2) / 7 + Fraction(1, 2)
    assert [to_rational(value) for value in result] == [first, 0]


def test_relu_of_a_ball() -> None:
    result = ExactArithmetic().relu(to_exact([0, 0]) + np.array([arb(2).sqrt(), -arb(2).sqrt()], dtype=object))
    assert result[0] ** 2 - 2 < 1e-9
    assert result[0] > 1
    assert result[1] == 0


@pytest.mark.parametrize("x", [-40.0, -1.0, 0.3, 7.5])
def test_functions_agree_with_floats(x: float) -> None:
    arithmetic = ExactArithmetic()
    values = to_exact([x])
    assert float(arithmetic.sigmoid(values)[0]) == pytest.approx(1 / (1 + math.exp(-x)), rel=1e-15)
    assert float(arithmetic.tanh(values)[0]) == pytest.approx(math.tanh(x), rel=1e-15)
    softmax = arithmetic.softmax(to_exact([x, 0.0, 1.0]))
    powers = [math.exp(value) for value in (x, 0.0, 1.0)]
    assert [float(value) for value in softmax] == pytest.approx([power / sum(powers) for power in powers], rel=1e-14)


def test_sigmoid_is_exact_at_0() -> None:
    assert sigmoid(fmpq(0)) == fmpq(1, 2)
    assert not isinstance(sigmoid(fmpq(0)), arb)


def test_decide_settles_what_64_bits_do_not() -> None:
    bits: list[int] = []

    def difference() -> arb:
        bits.append(ctx.prec)
        return arb(2).sqrt() ** 2 - 2 - arb(2) ** -500

    assert decide(difference) == -1
    assert bits[0] == FIRST_BITS
    assert bits[-1] > 500


def test_decide_leaves_an_equality_of_balls_open() -> None:
    assert decide(lambda: arb(2).sqrt() ** 2 - 2) is None


def test_decide_is_exact_for_rationals() -> None:
    third = fmpq(1, 3)
    assert decide(lambda: third * 3 - 1) == 0
    assert decide(lambda: third - fmpq(333333333333333333333, 1000000000000000000000)) == 1
    assert decide(lambda: fmpq(333333333333333333333, 1000000000000000000000) - third) == -1
    assert decide(lambda: arb(0)) == 0


def test_decide_never_settles_a_ball_that_is_not_finite() -> None:
    assert decide(lambda: arb("nan")) is None
    assert decide(lambda: arb(0, math.inf)) is None


@pytest.mark.parametrize("value", [Fraction(1, 3), Fraction(-1, 3), Fraction(1, 4), Fraction(1, 10**400)])
def test_float_bounds_of_rationals_are_neighbours(value: Fraction) -> None:
    lower, upper = float_bounds(lambda: to_exact([value])[0])
    assert Fraction(lower) <= value <= Fraction(upper)
    assert upper in (lower, math.nextafter(lower, math.inf))


@pytest.mark.parametrize(
    "compute",
    [
        lambda: arb(2).sqrt(),
        lambda: -arb(3).exp(),
        lambda: arb(-2000).exp(),
        lambda: -arb(-2000).exp(),
        lambda: arb(-730).exp(),
        lambda: arb(720).exp(),
    ],
    ids=["sqrt(2)", "-exp(3)", "exp(-2000)", "-exp(-2000)", "exp(-730)", "exp(720)"],
)
def test_float_bounds_of_balls_are_neighbours(compute: Callable[[], arb]) -> None:
    lower, upper = float_bounds(compute)
    with ctx.workprec(300):
        assert arb(lower) < compute()
        assert arb(upper) > compute()
    assert upper == math.nextafter(lower, math.inf)


def test_float_bounds_of_huge_balls() -> None:
    assert float_bounds(lambda: arb(10**6).exp()) == (MAX, math.inf)
    assert float_bounds(lambda: -arb(10**6).exp()) == (-math.inf, -MAX)
    with pytest.raises(EnclosureError):
        float_bounds(lambda: arb(0, math.inf))


@pytest.mark.parametrize("level", [Fraction(1, 10), Fraction(0.3), Fraction(999, 1000), Fraction(1, 10**30)])
def test_logit_bounds_enclose_tightly(level: Fraction) -> None:
    lower, upper = logit_bounds(level)
    with ctx.workprec(400):
        logit = arb(fmpq(*(level / (1 - level)).as_integer_ratio())).log()
        assert arb(fmpq(*lower.as_integer_ratio())) < logit
        assert arb(fmpq(*upper.as_integer_ratio())) > logit
    assert 0 < upper - lower < Fraction(1, 2**100)


def test_logit_is_exact_at_a_half() -> None:
    assert logit_bounds(Fraction(1, 2)) == (Fraction(0), Fraction(0))


@pytest.mark.parametrize("level", [0, 1, Fraction(-1, 2), 2])
def test_logit_that_does_not_exist(level: Fraction) -> None:
    with pytest.raises(NumberError, match="strictly between 0 and 1"):
        logit_bounds(Fraction(level))


@pytest.mark.parametrize(
    "text", ["1e9999999999", "1e-99999999", "1e000000000999999999", "1E+99_999_999", "1e400", "-1e999", "inf", "1/0", ""]
)
def test_numbers_beyond_float64_are_refused_at_once(text: str) -> None:
    with pytest.raises(NumberError):
        to_fraction(text)
