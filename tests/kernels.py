"""The certified kernels of `interval`, with adversarial cases, their exact ranges, and how far off they may be.

The oracle shares no code with the kernels: ranges are Fractions, or Arb balls where a value is transcendental.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
from flint import arb, ctx

from qrobust import interval
from qrobust.errors import EnclosureError
from qrobust.interval import FloatArray, Interval

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
                    limit = Fraction(MAX) if isinstance(least, Fraction) else arb(MAX)
                    nearest_lower, nearest_upper = min(least - below_by, limit), max(greatest + above_by, -limit)
                    if below(lower, nearest_lower) or above(upper, nearest_upper):
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
    """The distance of a correctly rounded operation: two floats at the exact end."""

    def distance(first: Interval, second: Interval) -> Iterator[Range]:
        for least, greatest in ranges(first, second):
            spans = [2 * Fraction(math.ulp(float(min(abs(end), Fraction(MAX))))) for end in (least, greatest)]
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
