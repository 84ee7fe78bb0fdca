"""Intervals, expansions and rounded rationals: infinite ends, exactness, errors. For the kernels see test_soundness."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrobust import interval
from qrobust.errors import EnclosureError, ShapeError
from qrobust.interval import Expansion, Interval
from tests.kernels import LEAST, MAX, UNIT, above, below, ends, points_of, special_intervals

HALF_LINES = [(-math.inf, 3.0), (-2.0, math.inf), (-math.inf, math.inf), (-math.inf, -4.0), (0.0, math.inf)]


def samples(lower: float, upper: float) -> list[float]:
    """Numbers of an interval, its finite ends among them."""
    inside = [-1e308, -1e3, -1.0, -LEAST, 0.0, 0.5, 700.0, MAX]
    return [value for value in (*inside, lower, upper) if lower <= value <= upper and math.isfinite(value)]


@pytest.mark.parametrize(("first", "second"), list(product(HALF_LINES, [*HALF_LINES, (0.0, 0.0), (-1.0, 2.0)])))
def test_infinite_ends_enclose_all_finite_numbers(first: tuple[float, float], second: tuple[float, float]) -> None:
    a, b = (Interval(np.array([[e[0]]]), np.array([[e[1]]])) for e in (first, second))
    with np.errstate(invalid="ignore"):
        results = [a + b, a - b, a * b, interval.affine(a, b, points_of([1.0]))]
    for x, y in product(samples(*first), samples(*second)):
        p, q = Fraction(x), Fraction(y)
        for result, exact in zip(results, (p + q, p - q, p * q, p * q + 1), strict=True):
            ((lower, upper),) = ends(result)
            assert not above(lower, exact)
            assert not below(upper, exact)


@pytest.mark.parametrize("half", HALF_LINES)
def test_infinite_ends_in_functions(half: tuple[float, float]) -> None:
    x = Interval(np.array([half[0]]), np.array([half[1]]))
    limits = {"exp": (0.0, math.inf), "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "relu": (0.0, math.inf)}
    for name, (least, greatest) in limits.items():
        ((lower, upper),) = ends(getattr(interval, name)(x))
        if half[0] == -math.inf:
            assert least - 1e-14 <= lower <= least
        if half[1] == math.inf:
            assert greatest <= upper
            assert upper <= greatest + 1e-14


def test_softmax_of_unbounded_logits_says_nothing() -> None:
    with np.errstate(invalid="ignore"):
        result = interval.softmax(Interval(np.array([[-math.inf, 0.0]]), np.array([[math.inf, 1.0]])))
    assert np.all(result.lower <= 1e-300)
    assert np.all(result.upper == 1.0)


def test_softmax_confidences_stay_within_0_and_1() -> None:
    result = interval.softmax(Interval.point([[0.0, 800.0, -1e308], [0.0, 0.0, 0.0]]))
    assert np.all(result.lower >= 0.0)
    assert np.all(result.upper <= 1.0)


finite = st.floats(allow_nan=False, allow_infinity=False)
moderate = st.floats(min_value=-1e300, max_value=1e300)


def two_sum_fault(total: Expansion, first: float, second: float) -> bool:
    """Whether an expansion is not the exact sum, or its head not the float nearest to it."""
    head, tail = float(total.head[0]), float(total.tail[0])
    exact = Fraction(first) + Fraction(second)
    return Fraction(head) + Fraction(tail) != exact or head != first + second


@given(moderate, moderate)
def test_two_sum_is_exact(first: float, second: float) -> None:
    total = Expansion.total(np.array([first]), np.array([second]))
    exact = Fraction(first) + Fraction(second)
    assert not two_sum_fault(total, first, second)
    assert list(total.fractions()) == [exact]
    assert total.round_down()[0] == interval.round_fraction_down(exact)
    assert total.round_up()[0] == interval.round_fraction_up(exact)


@pytest.mark.parametrize(("first", "second"), [(0.1, 0.01), (1.0, LEAST), (-0.3, 1e17), (1e300, -1e-300)])
def test_a_broken_two_sum_is_caught(first: float, second: float) -> None:
    head = np.array([first + second])
    assert two_sum_fault(Expansion(head, np.zeros(1)), first, second)
    right = Expansion.total(np.array([first]), np.array([second]))
    assert two_sum_fault(Expansion(right.head, -right.tail), first, second)
    assert not two_sum_fault(right, first, second)


@given(finite, finite)
def test_two_sum_never_claims_a_wrong_sum_near_overflow(first: float, second: float) -> None:
    try:
        total = Expansion.total(np.array([first]), np.array([second]))
    except EnclosureError:
        assert abs(Fraction(first) + Fraction(second)) > Fraction(MAX)
    else:
        assert not two_sum_fault(total, first, second)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_two_sum_at_the_greatest_floats(sign: float) -> None:
    half_step = math.ulp(MAX) / 2
    for small in (0.0, LEAST, half_step, half_step / 2, math.nextafter(half_step, 0.0), 3 * half_step):
        for first, second in ((sign * MAX, -sign * small), (-sign * small, sign * MAX), (sign * MAX, -sign * MAX)):
            assert not two_sum_fault(Expansion.total(np.array([first]), np.array([second])), first, second)


def test_two_sum_that_overflows_is_an_error() -> None:
    with pytest.raises(EnclosureError, match="smaller delta"):
        Expansion.total(np.array([MAX]), np.array([MAX]))


def rounding_fault(lower: float, upper: float, exact: Fraction) -> bool:
    """Whether two floats are not the nearest ones on the two sides of a rational."""
    neighbours = interval_ends(exact)
    return (lower, upper) != neighbours


def interval_ends(exact: Fraction) -> tuple[float, float]:
    """The greatest float at most a rational and the least at least it, by bisection over all floats."""
    low, high = _index(-math.inf), _index(math.inf)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if Fraction(_float(middle)) <= exact else (low, middle)
    lower = _float(low)
    return lower, lower if math.isfinite(lower) and Fraction(lower) == exact else _float(high)


def _index(value: float) -> int:
    """The place of a float in their order; 0.0 is at 0."""
    bits = int(np.float64(abs(value)).view(np.uint64))
    return bits if value >= 0 else -bits


def _float(index: int) -> float:
    return math.copysign(float(np.uint64(abs(index)).view(np.float64)), index)


rationals = st.one_of(
    st.fractions(),
    st.builds(Fraction, finite),
    st.builds(lambda value, part: Fraction(value) * (1 + part), finite, st.fractions(0, Fraction(1, 2**52))),
    st.builds(lambda power, part: Fraction(2) ** power * (1 + part), st.integers(-1100, 1100), st.fractions(-1, 1)),
)


@given(rationals)
def test_rationals_round_to_their_neighbours(value: Fraction) -> None:
    lower, upper = interval.round_fraction_down(value), interval.round_fraction_up(value)
    assert not rounding_fault(lower, upper, value)


@pytest.mark.parametrize("value", [Fraction(1, 3), Fraction(-1, 3), Fraction(1, 10**400), Fraction(10**400), -UNIT / 3 - 1])
def test_broken_roundings_are_caught(value: Fraction) -> None:
    lower, upper = interval.round_fraction_down(value), interval.round_fraction_up(value)
    assert not rounding_fault(lower, upper, value)
    assert rounding_fault(lower, lower, value)
    assert rounding_fault(upper, upper, value)
    assert rounding_fault(upper, lower, value)
    assert rounding_fault(math.nextafter(lower, -math.inf), upper, value) or lower == -math.inf


def test_an_interval_with_crossed_ends_or_nan_is_refused() -> None:
    for lower, upper in ((1.0, 0.0), (math.nan, 1.0), (0.0, math.nan)):
        with pytest.raises(EnclosureError):
            Interval(np.array([lower]), np.array([upper]))
    with pytest.raises(ShapeError, match="differ in shape"):
        Interval(np.zeros(2), np.zeros(3))


def test_meet_and_join() -> None:
    first, second = Interval(np.array([0.0]), np.array([2.0])), Interval(np.array([1.0]), np.array([3.0]))
    assert ends(first.meet(second)) == [(1.0, 2.0)]
    assert ends(first.join(second)) == [(0.0, 3.0)]
    with pytest.raises(EnclosureError):
        first.meet(Interval.point([2.5]))


def test_the_middle_lies_inside() -> None:
    x = special_intervals(np.random.default_rng(6), 500)
    assert np.all((x.lower <= x.middle) & (x.middle <= x.upper))
    everything = Interval(np.full(1, -np.inf), np.full(1, np.inf))
    assert np.isfinite(everything.middle).all()


def test_affine_names_the_shapes_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"weights \(2, 3\) do not take inputs \(1, 4\)"):
        interval.affine(Interval.point(np.ones((2, 3))), Interval.point(np.ones((1, 4))), points_of([0.0, 0.0]))
