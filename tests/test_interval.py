"""Do the rounding kernels enclose the exact result, tightly, and would this file notice if one did not?

Every kernel has adversarial cases, its exact range in rationals or balls, and a stated distance. Broken copies of each
kernel (its slack deleted, its rounding deleted or turned inward, a sign flipped) must be caught on the same cases.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from flint import arb, ctx, fmpq
from hypothesis import given
from hypothesis import strategies as st

from qrobust import interval
from qrobust.errors import EnclosureError, ShapeError
from qrobust.interval import Ends, Expansion, FloatArray, Interval

MAX = sys.float_info.max
LEAST = 2.0**-1074
UNIT = Fraction(1, 2**53)
BITS = 200

POSITIVE = (
    *(LEAST, 3 * LEAST, math.nextafter(2.0**-1022, 0.0), 2.0**-1022, 1e-200, 2.0**-537, 2.0**-30, 0.1, 1 / 3),
    *(math.nextafter(1.0, 0.0), 1.0, math.nextafter(1.0, 2.0), 17.3, 2.0**53 + 2, 1e155, 1e308, MAX),
)
SPECIAL = [0.0, -0.0, *POSITIVE, *(-value for value in POSITIVE)]

Exact = Any  # Fraction | arb
Case = tuple[Interval, ...]
Range = tuple[Exact, Exact]


@dataclass(frozen=True)
class Kernel:
    """A certified function, its cases, the exact range of every entry of a case's result, and how far off it may be."""

    enclose: Callable[..., Interval]
    cases: Sequence[Case]
    ranges: Callable[..., Iterator[Range]]
    distance: Callable[..., Iterator[Range]]

    def faults(self) -> list[str]:
        """Return where the enclosure does not enclose. Crossed ends, which Interval refuses, are a fault too."""
        found = []
        with ctx.workprec(BITS), np.errstate(all="ignore"):
            for number, case in enumerate(self.cases):
                try:
                    result = self.enclose(*case)
                except EnclosureError:
                    found.append(f"case {number}: ends crossed")
                    continue
                for (lower, upper), (least, greatest) in zip(ends(result), self.ranges(*case), strict=True):
                    if above(lower, least) or below(upper, greatest):
                        found.append(f"case {number}: [{lower!r}, {upper!r}] leaves out [{least}, {greatest}]")
        return found

    def looseness(self) -> list[str]:
        """Return where an end is farther from the exact one than stated."""
        found = []
        with ctx.workprec(BITS), np.errstate(all="ignore"):
            for number, case in enumerate(self.cases):
                entries = zip(ends(self.enclose(*case)), self.ranges(*case), self.distance(*case), strict=True)
                for (lower, upper), (least, greatest), (below_by, above_by) in entries:
                    if below(lower, least - below_by) or above(upper, greatest + above_by):
                        found.append(f"case {number}: [{lower!r}, {upper!r}] is loose for [{least}, {greatest}]")
        return found


def ends(result: Interval) -> list[tuple[float, float]]:
    return list(zip(result.lower.ravel().tolist(), result.upper.ravel().tolist(), strict=True))


def above(number: float, exact: Exact) -> bool:
    """Whether a float is certainly above an exact number. A ball at 200 bits is narrower than any gap of floats."""
    if math.isinf(number):
        limit = Fraction(MAX) if isinstance(exact, Fraction) else arb(MAX)
        return number > 0 and bool(exact <= limit)
    if isinstance(exact, Fraction):
        return Fraction(number) > exact
    assert exact.is_finite()
    return bool(arb(number) > exact)


def below(number: float, exact: Exact) -> bool:
    return above(-number, -exact)


def points_of(values: Sequence[float]) -> Interval:
    return Interval.point(values)


def sorted_pair(first: FloatArray, second: FloatArray) -> Interval:
    return Interval(np.minimum(first, second), np.maximum(first, second))


def scattered(rng: np.random.Generator, shape: tuple[int, ...], exponent: float) -> FloatArray:
    """Random numbers whose binary exponents spread over -exponent to exponent."""
    return np.asarray(rng.normal(size=shape) * 2.0 ** rng.uniform(-exponent, exponent, size=shape))


def special_intervals(rng: np.random.Generator, count: int) -> Interval:
    """Points, and intervals, between special numbers and their neighbours."""
    first, second = (rng.choice(SPECIAL, size=count) for _ in range(2))
    second = np.where(rng.random(count) < 0.3, np.nextafter(np.minimum(first, 1e308), np.inf), second)
    second = np.where(rng.random(count) < 0.3, first, np.minimum(second, MAX))
    return sorted_pair(first, second)


def binary_cases() -> list[Case]:
    rng = np.random.default_rng(0)
    grid = np.array(list(product(SPECIAL, SPECIAL)))
    return [
        (points_of(grid[:, 0].tolist()), points_of(grid[:, 1].tolist())),
        (special_intervals(rng, 1500), special_intervals(rng, 1500)),
        (sorted_pair(*scattered(rng, (2, 500), 20)), sorted_pair(*scattered(rng, (2, 500), 20))),
    ]


def by_entry(operation: Callable[[Fraction, Fraction], Fraction]) -> Callable[[Interval, Interval], Iterator[Range]]:
    """Exact ranges of an operation that is monotone in each argument: its least and greatest value at the corners."""

    def ranges(first: Interval, second: Interval) -> Iterator[Range]:
        for a, b in zip(ends(first), ends(second), strict=True):
            corners = [operation(Fraction(x), Fraction(y)) for x in a for y in b]
            yield min(corners), max(corners)

    return ranges


def two_floats(ranges: Callable[[Interval, Interval], Iterator[Range]]) -> Callable[..., Iterator[Range]]:
    """The distance of a correctly rounded operation: two floats at the exact end; any, where that overflows."""

    def distance(first: Interval, second: Interval) -> Iterator[Range]:
        for pair in ranges(first, second):
            spans = []
            for end in pair:
                spans.append(2 * Fraction(math.ulp(float(end))) if abs(end) <= Fraction(MAX) else abs(end))
            yield spans[0], spans[1]

    return distance


SUMS, DIFFERENCES, PRODUCTS = (
    by_entry(operation) for operation in (lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y)
)


def total_cases() -> list[Case]:
    rng = np.random.default_rng(1)
    cases = [(sorted_pair(*scattered(rng, (2, 5, n), exponent)),) for n in (1, 2, 7, 100) for exponent in (0, 30, 300)]
    values = scattered(rng, (20, 50), 3)
    cancelling = np.concatenate([values, -np.nextafter(values, np.inf)], axis=1)
    large = np.array([[1e308, 1e308, -1e308], [MAX, -MAX, LEAST], [1.0, 2.0**-53, 2.0**-54]])
    return [*cases, (Interval.point(cancelling),), (Interval.point(large),), (Interval.point(values * LEAST * 8),)]


def total_ranges(x: Interval) -> Iterator[Range]:
    for lower, upper in zip(x.lower.tolist(), x.upper.tolist(), strict=True):
        yield sum(map(Fraction, lower), Fraction(0)), sum(map(Fraction, upper), Fraction(0))


def total_distance(x: Interval) -> Iterator[Range]:
    n = x.shape[-1]
    for row in zip(x.lower.tolist(), x.upper.tolist(), strict=True):
        sizes = [sum((abs(Fraction(value)) for value in values), Fraction(0)) for values in row]
        least, greatest = (
            (2 * n + 16) * UNIT * size + 4 * Fraction(LEAST) if size <= Fraction(MAX) else 3 * size for size in sizes
        )
        yield least, greatest


def affine_cases() -> list[Case]:
    """Random, zero-width, straddling, cancelling, underflowing and overflowing products."""
    rng = np.random.default_rng(2)
    cases: list[Case] = []
    for n, exponent, narrow in product((1, 2, 3, 10, 60), (0, 30, 300), (True, False)):
        one = [scattered(rng, shape, exponent) for shape in ((3, n), (4, n), (3,))]
        other = one if narrow else [scattered(rng, shape, exponent) for shape in ((3, n), (4, n), (3,))]
        cases.append(tuple(sorted_pair(a, b) for a, b in zip(one, other, strict=True)))
    zero = points_of([0.0])
    for n in (1, 8, 8, 30):
        weight, x = rng.normal(size=(1, n)), rng.normal(size=(1, n))
        weight = np.concatenate([weight, -weight], axis=1)
        x = np.concatenate([x, np.nextafter(x, np.inf)], axis=1)
        cases.append((Interval.point(weight), Interval.point(x), zero))
        cases.append((Interval.point(weight), sorted_pair(x, np.nextafter(x, -np.inf)), zero))
    tiny = np.full((1, 100), 2.0**-537)  # each product is 0.45 of the least float, and rounds to 0
    cases += [(Interval.point(tiny), Interval.point(sign * 0.9 * tiny), zero) for sign in (1, -1)]
    subnormal = rng.integers(-9, 9, size=(2, 5)) * LEAST
    cases.append((Interval.point(subnormal), Interval.point(rng.normal(size=(2, 5))), Interval.point([LEAST, 0.0])))
    large = np.array([[1e308, -1e308, 1.0], [MAX, MAX, -MAX]])
    cases += [(Interval.point(large), Interval.point([[1.5, 1.5, LEAST], [0.3, 0.3, 0.5]]), points_of([0.0, MAX]))]
    cases += [(Interval(-np.abs(large), np.abs(large)), Interval(-np.ones((1, 3)), np.ones((1, 3))), points_of([1, 2]))]
    return cases


def affine_ranges(weight: Interval, x: Interval, bias: Interval) -> Iterator[Range]:
    for inputs in x:
        for row, constant in zip(weight, bias, strict=True):
            products = [list(pair) for pair in PRODUCTS(row, inputs)]
            ((lower, upper),) = ends(constant)
            yield (
                sum((least for least, _ in products), Fraction(lower)),
                sum((greatest for _, greatest in products), Fraction(upper)),
            )


def affine_distance(weight: Interval, x: Interval, bias: Interval) -> Iterator[Range]:
    """Some units in the last place of the sum of all sizes, which is what cancels; any, where that overflows."""
    n = weight.shape[1]
    sizes = [interval.magnitude(each).upper for each in (weight, x, bias)]
    for inputs in sizes[1].tolist():
        for row, constant in zip(sizes[0].tolist(), sizes[2].tolist(), strict=True):
            size = sum((Fraction(a) * Fraction(b) for a, b in zip(row, inputs, strict=True)), Fraction(constant))
            span = 2 * (10 * n + 20) * (UNIT * size + Fraction(LEAST))
            yield (span, span) if 8 * size <= Fraction(MAX) else (Fraction(2) ** 3000,) * 2


SCALARS = np.array([-1e308, -800.0, -745.2, -708.5, -37.5, 0.0, -0.0, 36.9, 709.7, 709.79, 720.5, 1e308, LEAST, -LEAST])


# Found by search: here the exponential in floats is off by more than one float, which only the slack makes good.
WORST = np.array([0.37991749987006584, 169.48041473956062, -12.765138789313283, -0.9884627394488981, 7.287402994940706])


def scalar_cases() -> list[Case]:
    rng = np.random.default_rng(3)
    spread = np.concatenate([rng.uniform(-r, r, size=n) for r, n in ((1, 900), (40, 900), (760, 300))])
    wide = sorted_pair(*rng.uniform(-50, 50, size=(2, 200)))
    values = np.concatenate([SCALARS, WORST, spread, scattered(rng, (300,), 60)])
    return [(Interval.point(values),), (wide,)]


def rising(function: Callable[[arb], arb]) -> Callable[[Interval], Iterator[Range]]:
    """Exact ranges of a function that rises."""

    def ranges(x: Interval) -> Iterator[Range]:
        for lower, upper in ends(x):
            yield function(arb(lower)), function(arb(upper))

    return ranges


def relative(ranges: Callable[[Interval], Iterator[Range]]) -> Callable[[Interval], Iterator[Range]]:
    def distance(x: Interval) -> Iterator[Range]:
        for least, greatest in ranges(x):
            yield abs(least) * arb(2) ** -46 + 16 * arb(LEAST), abs(greatest) * arb(2) ** -46 + 16 * arb(LEAST)

    return distance


def tanh_distance(x: Interval) -> Iterator[Range]:
    """2**-46, and near zero the cube and a few units in the last place."""
    for pair in ends(x):
        spans = [min(arb(2) ** -46, abs(arb(e)) ** 3 + abs(arb(e)) * arb(2) ** -50 + 16 * arb(LEAST)) for e in pair]
        yield spans[0], spans[1]


def exponential(x: arb) -> arb:
    """exp, held at +-5000: beyond it no float lies between the value and 0, or infinity."""
    return x.max(arb(-5000)).min(arb(5000)).exp()


def logistic(x: arb) -> arb:
    return 1 / (1 + exponential(-x))


EXPONENTIALS, LOGISTICS, TANGENTS = (rising(f) for f in (exponential, logistic, lambda x: x.tanh()))


def softmax_cases() -> list[Case]:
    rng = np.random.default_rng(4)
    cases: list[Case] = [(Interval.point(scattered(rng, (40, k), 2)),) for k in (2, 3, 10)]
    cases += [(sorted_pair(*rng.normal(size=(2, 40, k)) * 3),) for k in (2, 3)]
    far = [[0.0, 1e308, -1e308], [710.0, 0.0, -750.0], [5.0, 5.0, math.nextafter(5.0, 6.0)], [0.0, 0.0, -0.0]]
    return [*cases, (Interval.point(far),)]


def softmax_ranges(logits: Interval) -> Iterator[Range]:
    for lower, upper in zip(logits.lower.tolist(), logits.upper.tolist(), strict=True):
        for own in range(len(lower)):
            rivals = [j for j in range(len(lower)) if j != own]
            yield (
                1 / (1 + sum((exponential(arb(upper[j]) - arb(lower[own])) for j in rivals), arb(0))),
                1 / (1 + sum((exponential(arb(lower[j]) - arb(upper[own])) for j in rivals), arb(0))),
            )


def softmax_distance(logits: Interval) -> Iterator[Range]:
    """Relative, plus what rounding a difference of logits costs."""
    for lower, upper in zip(logits.lower.tolist(), logits.upper.tolist(), strict=True):
        size = min(max(map(abs, lower + upper)), 1e15)
        for _ in lower:
            span = arb(2) ** -45 + size * arb(2) ** -50
            yield span, span


def magnitude_ranges(x: Interval) -> Iterator[Range]:
    for lower, upper in ends(x):
        sizes = sorted((abs(Fraction(lower)), abs(Fraction(upper))))
        yield (Fraction(0) if lower <= 0 <= upper else sizes[0]), sizes[1]


def relu_ranges(x: Interval) -> Iterator[Range]:
    for lower, upper in ends(x):
        yield max(Fraction(lower), Fraction(0)), max(Fraction(upper), Fraction(0))


def exactly(x: Interval) -> Iterator[Range]:
    for _ in ends(x):
        yield Fraction(0), Fraction(0)


SPECIALS: list[Case] = [(special_intervals(np.random.default_rng(5), 2000),)]

KERNELS = {
    "+": Kernel(lambda a, b: a + b, binary_cases(), SUMS, two_floats(SUMS)),
    "-": Kernel(lambda a, b: a - b, binary_cases(), DIFFERENCES, two_floats(DIFFERENCES)),
    "*": Kernel(lambda a, b: a * b, binary_cases(), PRODUCTS, two_floats(PRODUCTS)),
    "total": Kernel(interval.total, total_cases(), total_ranges, total_distance),
    "affine": Kernel(interval.affine, affine_cases(), affine_ranges, affine_distance),
    "magnitude": Kernel(interval.magnitude, SPECIALS, magnitude_ranges, exactly),
    "relu": Kernel(interval.relu, SPECIALS, relu_ranges, exactly),
    "exp": Kernel(interval.exp, scalar_cases(), EXPONENTIALS, relative(EXPONENTIALS)),
    "sigmoid": Kernel(interval.sigmoid, scalar_cases(), LOGISTICS, relative(LOGISTICS)),
    "tanh": Kernel(interval.tanh, scalar_cases(), TANGENTS, tanh_distance),
    "softmax": Kernel(interval.softmax, softmax_cases(), softmax_ranges, softmax_distance),
}


@pytest.mark.parametrize("name", KERNELS)
def test_encloses(name: str) -> None:
    assert KERNELS[name].faults() == []


@pytest.mark.parametrize("name", KERNELS)
def test_is_tight(name: str) -> None:
    assert KERNELS[name].looseness() == []


def unchanged(values: FloatArray) -> FloatArray:
    return values


def other_part(values: FloatArray, sign: int) -> FloatArray:
    return np.minimum(values, 0.0) if sign > 0 else np.maximum(values, 0.0)


NO_ROUNDING: dict[str, object] = {"down": unchanged, "up": unchanged}
NO_SLACK: dict[str, object] = {"UNIT": 0.0, "TINY": 0.0, "EXP_ERROR": 0.0}
BREAKAGES: dict[str, dict[str, object]] = {
    "rounding deleted": NO_ROUNDING,
    "rounding turned inward": {"down": interval.up, "up": interval.down},
    "slack deleted": NO_SLACK,
    "slack and rounding deleted": NO_ROUNDING | NO_SLACK,
    "slack flipped": {"UNIT": -interval.UNIT, "EXP_ERROR": -interval.EXP_ERROR},
    "underflow forgotten": {"TINY": 0.0},
    "a sign flipped": {"_part": other_part},
    "ln 2 cut short": {"_LN2_TAIL": 0.0},
    "Taylor's polynomial cut short": {"_TAYLOR": (*interval._TAYLOR[:11], 0.0, 0.0, 0.0)},
}
# Slack alone covers the last rounding of sums of products and of exp, so there rounding is deleted together with it.
CAUGHT = [
    *product(("+", "-", "*"), ("rounding deleted", "rounding turned inward")),
    *product(("total",), ("slack deleted", "slack and rounding deleted", "slack flipped")),
    *product(("affine",), ("slack deleted", "slack and rounding deleted", "slack flipped")),
    *product(("affine",), ("underflow forgotten", "a sign flipped")),
    *product(("exp", "sigmoid", "tanh"), ("slack deleted", "slack and rounding deleted", "slack flipped")),
    *product(("softmax",), ("slack and rounding deleted", "slack flipped")),
    *product(("exp", "sigmoid", "tanh", "softmax"), ("ln 2 cut short", "Taylor's polynomial cut short")),
]


@pytest.mark.parametrize(("name", "breakage"), CAUGHT)
def test_a_broken_copy_is_caught(name: str, breakage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for attribute, value in BREAKAGES[breakage].items():
        monkeypatch.setattr(interval, attribute, value)
    assert len(KERNELS[name].faults()) > 0


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("-", lambda a, b: a + b),
        ("-", lambda a, b: Interval(a.lower - b.lower, np.maximum(a.upper - b.upper, a.lower - b.lower))),
        ("*", lambda a, b: Interval(np.minimum(a.lower * b.lower, a.upper * b.upper), np.full(a.shape, np.inf))),
        ("magnitude", lambda x: sorted_pair(np.abs(x.lower), np.abs(x.upper))),
        ("relu", lambda x: x),
        ("affine", lambda w, x, b: interval.affine(w, x, -b)),
        ("affine", lambda w, x, b: interval.affine(w, interval.magnitude(x), b)),
        ("softmax", lambda x: interval.softmax(Interval.point(x.middle))),
    ],
)
def test_a_wrong_formula_is_caught(name: str, broken: Callable[..., Interval]) -> None:
    assert len(replace(KERNELS[name], enclose=broken).faults()) > 0


def inner_faults(bend: bool) -> list[str]:
    """Return where affine_inner reaches beyond the exact range of x @ weight.T + bias; bent ends lie further in."""
    found = []
    for number, (weight, x, bias) in enumerate(affine_cases()):
        least, greatest = (np.nextafter(a, b) if bend else a for a, b in ((x.lower, np.inf), (x.upper, -np.inf)))
        result = interval.affine_inner(Ends(weight.lower, weight.upper), Ends(least, greatest), Ends(bias.lower, bias.upper))
        pairs = zip(result.least.ravel().tolist(), result.greatest.ravel().tolist(), strict=True)
        for (low, high), (exact_low, exact_high) in zip(pairs, affine_ranges(weight, x, bias), strict=True):
            if below(low, exact_low) or above(high, exact_high):
                found.append(f"case {number}: {low!r} and {high!r} are not inside [{exact_low}, {exact_high}]")
    return found


@pytest.mark.parametrize("bend", [False, True])
def test_inner_ends_lie_inside(bend: bool) -> None:
    assert inner_faults(bend) == []


def test_inner_ends_are_tight() -> None:
    loose = []
    for weight, x, bias in affine_cases():
        arguments = [Ends(each.lower, each.upper) for each in (weight, x, bias)]
        result = interval.affine_inner(*arguments)
        pairs = zip(result.least.ravel().tolist(), result.greatest.ravel().tolist(), strict=True)
        entries = zip(pairs, affine_ranges(weight, x, bias), affine_distance(weight, x, bias), strict=True)
        loose += [
            (low, high)
            for (low, high), (least, greatest), (span, _) in entries
            if above(low, least + span) or below(high, greatest - span)
        ]
    assert loose == []


@pytest.mark.parametrize("breakage", ["slack deleted", "slack flipped", "underflow forgotten"])
def test_broken_inner_ends_are_caught(breakage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for attribute, value in BREAKAGES[breakage].items():
        monkeypatch.setattr(interval, attribute, value)
    with np.errstate(all="ignore"):
        assert len(inner_faults(False)) > 0


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


def test_affine_names_the_shapes_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"weights \(2, 3\) do not take inputs \(1, 4\)"):
        interval.affine(Interval.point(np.ones((2, 3))), Interval.point(np.ones((1, 4))), points_of([0.0, 0.0]))


def test_exact_constants_of_this_file() -> None:
    """The oracle's own numbers: fmpq and Fraction agree, and a ball at 200 bits separates neighbours."""
    assert fmpq(1, 3) == fmpq(*Fraction(1, 3).as_integer_ratio())
    with ctx.workprec(BITS):
        assert not above(1.0, logistic(arb(700)))  # equal to 1 as far as 200 bits see, so not certainly above
        assert above(math.nextafter(0.5, 1.0), logistic(arb(0)))
        assert below(math.nextafter(0.5, 0.0), logistic(arb(0)))
