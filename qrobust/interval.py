"""Arrays of intervals in float64, rounded outward.

This is the only module that rounds. Basic operations (+, -, *, /) of IEEE 754 are correctly rounded, so one step to the
neighbouring float in the right direction encloses the exact result, subnormals and overflow included. Sums of products
use an a-priori error bound that holds for any order of summation and with or without fused multiply-add (Higham 2002,
"Accuracy and Stability of Numerical Algorithms", section 3.1; Rump 1999, BIT 39(3)). exp, and with it sigmoid and tanh,
is computed here from basic operations alone, so its error bound does not depend on a mathematical library.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.errors import EnclosureError, ShapeError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

UNIT = 2.0**-53  # half the distance from 1 to the next float
TINY = 2.0**-1074  # the least positive float: twice the greatest error of a product that underflows
UNDERFLOW = 2.0**-500  # above what many such products lose, numbers below 2**400 times each; TINY makes slow, subnormal sums
EXP_ERROR = 2.0**-49  # relative error of _exp, proved in its docstring


def down(values: FloatArray) -> FloatArray:
    """Return the next float below each value."""
    return np.nextafter(values, -np.inf)


def up(values: FloatArray) -> FloatArray:
    """Return the next float above each value."""
    return np.nextafter(values, np.inf)


def round_fraction_down(value: Fraction) -> float:
    """Return the greatest float that is at most `value` (or -inf)."""
    nearest = _nearest(value)
    return nearest if nearest == -np.inf or _at_most(nearest, value) else math.nextafter(nearest, -math.inf)


def round_fraction_up(value: Fraction) -> float:
    """Return the least float that is at least `value` (or inf)."""
    return -round_fraction_down(-value)


def _nearest(value: Fraction) -> float:
    try:
        return value.numerator / value.denominator
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _at_most(number: float, value: Fraction) -> bool:
    return number != float("inf") and Fraction(number) <= value


@dataclass(frozen=True, eq=False)
class Interval:
    """An array of closed intervals [lower, upper], entry by entry.

    Raises ShapeError if the two arrays differ in shape; EnclosureError if a lower end is above its upper end or NaN.
    """

    lower: FloatArray
    upper: FloatArray

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise ShapeError(f"interval ends differ in shape: {self.lower.shape} and {self.upper.shape}")
        if not (self.lower <= self.upper).all():
            raise EnclosureError("an interval has its lower end above its upper end, or a NaN: please report this bug")

    @classmethod
    def point(cls, values: npt.ArrayLike) -> Interval:
        """Return the intervals that hold one number each."""
        array = np.asarray(values, dtype=np.float64)
        return cls(array, array)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.lower.shape

    @property
    def width(self) -> FloatArray:
        """Upper minus lower, not rounded outward: for choosing where to split, never for a proof."""
        width: FloatArray = self.upper - self.lower
        return width

    @property
    def middle(self) -> FloatArray:
        """A float inside each interval, near its middle."""
        with np.errstate(invalid="ignore"):
            middle = 0.5 * self.lower + 0.5 * self.upper
        return np.clip(np.where(np.isnan(middle), 0.0, middle), self.lower, self.upper)  # NaN: of all numbers

    def __getitem__(self, index: Any) -> Interval:
        return Interval(self.lower[index], self.upper[index])

    def __len__(self) -> int:
        return len(self.lower)

    def __iter__(self) -> Iterator[Interval]:
        return (self[i] for i in range(len(self)))

    def __neg__(self) -> Interval:
        return Interval(-self.upper, -self.lower)

    def __add__(self, other: Interval) -> Interval:
        """Enclose the sum of any two numbers in the intervals."""
        return _guarded(down(self.lower + other.lower), up(self.upper + other.upper))

    def __sub__(self, other: Interval) -> Interval:
        """Enclose the difference of any two numbers in the intervals."""
        return self + (-other)

    def __mul__(self, other: Interval) -> Interval:
        """Enclose the product of any two numbers in the intervals."""
        with np.errstate(invalid="ignore", over="ignore"):
            products = np.stack(
                np.broadcast_arrays(
                    self.lower * other.lower,
                    self.lower * other.upper,
                    self.upper * other.lower,
                    self.upper * other.upper,
                )
            )
        return _guarded(down(products.min(axis=0)), up(products.max(axis=0)))

    def meet(self, other: Interval) -> Interval:
        """Enclose what lies in both; both must enclose the same number, or this raises EnclosureError."""
        return Interval(np.maximum(self.lower, other.lower), np.minimum(self.upper, other.upper))

    def join(self, other: Interval) -> Interval:
        """Return the hull of the two."""
        return Interval(np.minimum(self.lower, other.lower), np.maximum(self.upper, other.upper))


def enclosed(points: FloatArray | Interval) -> Interval:
    """Return points as intervals of no width; intervals, of points that are known but for rounding, stay what they are."""
    return points if isinstance(points, Interval) else Interval.point(points)


def _guarded(lower: FloatArray, upper: FloatArray) -> Interval:
    """Replace ends that overflowed into NaN by the infinite end, which is always true."""
    if (lower <= upper).all():  # no NaN, the usual case
        return Interval(lower, upper)
    return Interval(np.where(np.isnan(lower), -np.inf, lower), np.where(np.isnan(upper), np.inf, upper))


@dataclass(frozen=True, eq=False)
class Expansion:
    """An array of real numbers, each the exact, unevaluated sum of two floats: head + tail, head nearest to the sum.

    It holds p - delta and p + delta without error for floats p and delta (Dekker's sum), which one float cannot.
    """

    head: FloatArray
    tail: FloatArray

    @classmethod
    def of(cls, values: FloatArray) -> Expansion:
        """Return the floats themselves."""
        return cls(values, np.zeros_like(values))

    @classmethod
    def total(cls, first: FloatArray, second: FloatArray) -> Expansion:
        """Return first + second exactly (Dekker 1971, Numerische Mathematik 18, with the larger summand first).

        Raises EnclosureError if the sum overflows.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            swap = np.abs(first) < np.abs(second)
            large, small = np.where(swap, second, first), np.where(swap, first, second)
            head = large + small
            tail = small - (head - large)
        if not (np.isfinite(head) & np.isfinite(tail)).all():
            raise EnclosureError("a parameter bound overflows float64: use a smaller delta")
        return cls(head, tail)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.head.shape

    def round_down(self) -> FloatArray:
        """Return the greatest float at most each number (or the one below it, which is as true)."""
        return np.where(self.tail < 0, down(self.head), self.head)

    def round_up(self) -> FloatArray:
        """Return the least float at least each number (or the one above it, which is as true)."""
        return np.where(self.tail > 0, up(self.head), self.head)

    def fractions(self) -> npt.NDArray[np.object_]:
        """Return the numbers as Fractions."""
        exact = np.frompyfunc(lambda head, tail: Fraction(head) + Fraction(tail), 2, 1)
        return np.asarray(exact(self.head.astype(object), self.tail.astype(object)), dtype=object).reshape(self.shape)


def affine(weight: Interval, x: Interval, bias: Interval) -> Interval:
    """Enclose x @ weight.T + bias for every x, weight and bias in their intervals.

    Shapes    weight (out, in); x (batch, in); bias (out,); result (batch, out)
    Property  exact up to rounding
    Rounding  outward: with P the products that cannot be negative and Q those that cannot be positive, summing 2 in terms
              each in any order errs by at most gamma(2 in) (P - Q), taking off at most `in` terms counted twice (together
              at most P) by gamma(in) P, three more additions by 3 UNIT (P - Q + abs(bias)) and underflow by TINY a
              product; 3 in + 8 in place of 3 in + 3 covers the rounding of the slack itself
    Raises    ShapeError if `in` differs
    Source    Higham 2002, section 3.1; Rump 1999, BIT 39(3)
    """
    if weight.shape[1] != x.shape[1] or weight.shape[0] != bias.shape[0]:
        raise ShapeError(f"weights {weight.shape} do not take inputs {x.shape} with biases {bias.shape}")
    upper = _greatest(weight, x, bias.upper, outward=True)
    lower = -_greatest(-weight, x, -bias.lower, outward=True)
    return Interval(lower, upper)


def affine_ball(
    weight: FloatArray,
    radius: FloatArray,
    bias: FloatArray,
    bias_radius: FloatArray,
    x: Interval,
    magnitude: FloatArray,
    sums: FloatArray,
) -> Interval:
    """Enclose (weight + E) @ x + bias + e for every x in its box, abs(E) <= radius and abs(e) <= bias_radius.

    Shapes    weight (out, in); radius (out,), one a row, or (out, in); biases (out,); x (batch, in); result (batch, out);
              magnitude (in, out) is abs(weight).T and sums (out,) the sum of abs(weight) and radius in each row
    Rounding  outward: with a = max abs(x) over the box, every partial sum is at most a (sum abs(weight) + sum radius) in a
              row; two products of `in` terms and their sum err by at most 4 (in + 8) UNIT of that, underflow included apart
    Source    Higham 2002, section 3.1; Rump 1999, BIT 39(3)
    """
    terms = weight.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        middle = np.where(x.lower == x.upper, x.lower, 0.5 * x.lower + 0.5 * x.upper)
        half = up(np.maximum(x.upper - middle, middle - x.lower))
        half = np.where(x.lower == x.upper, 0.0, half)
        size = np.abs(middle) + half
        reach = np.broadcast_to(bias_radius, (len(middle), len(bias)))
        if radius.any():
            reach = reach + (size.sum(axis=1, keepdims=True) * radius if radius.ndim == 1 else size @ radius.T)
        centre = middle @ weight.T + bias
        if half.any():
            reach = reach + half @ magnitude
        largest = size.max(axis=1, keepdims=True) * sums + np.abs(bias) + bias_radius
        slack = 4 * (terms + 8) * UNIT * largest + 8 * (terms + 8) * TINY
        return _guarded(down(centre - reach - slack), up(centre + reach + slack))


def sum_slack(terms: int, sizes: FloatArray) -> FloatArray:
    """Bound the rounding error of a chain of sums of products, computed in any order, of `terms` terms in all.

    Accepts   sizes: the sums of the products' absolute values, themselves rounded
    Rounding  gamma(2 terms + 32) with a factor 2 for what the sizes lack by rounding, and underflow
    """
    slack: FloatArray = 4 * (terms + 32) * UNIT * sizes + 8 * (terms + 32) * TINY
    return slack


@dataclass(frozen=True, eq=False)
class Ends:
    """Two arrays on the inner side of the exact ends of an interval: least >= exact least, greatest <= exact greatest.

    They may cross by rounding, where the exact interval is as narrow as that.
    """

    least: FloatArray
    greatest: FloatArray

    def __neg__(self) -> Ends:
        return Ends(-self.greatest, -self.least)


def affine_inner(weight: Ends, x: Ends, bias: Ends) -> Ends:
    """Return inner ends of the exact range of x @ weight.T + bias, given inner ends of weight, x and bias.

    Method    the greatest value is monotone in every end, so inner ends give at most the exact one; then round inward
    """
    greatest = _greatest(weight, x, bias.greatest, outward=False)
    least = -_greatest(-weight, x, -bias.least, outward=False)
    return Ends(least, greatest)


def affine_greatest(outer: tuple[Interval, Interval, Interval], inner: tuple[Ends, Ends, Ends]) -> Interval:
    """Enclose the greatest x @ weight.T + bias alone, from outer and inner ends of (weight, x, bias)."""
    upper = _greatest(outer[0], outer[1], outer[2].upper, outward=True)
    lower = _greatest(inner[0], inner[1], inner[2].greatest, outward=False)
    return Interval(np.minimum(lower, upper), upper)


def affine_upper(weight: Interval, x: Interval, bias: Interval) -> FloatArray:
    """Return the upper ends of `affine` alone."""
    return _greatest(weight, x, bias.upper, outward=True)


def _greatest(weight: Interval | Ends, x: Interval | Ends, bias: FloatArray, *, outward: bool) -> FloatArray:
    """Return floats at least (outward) or at most (inward) the greatest x @ weight.T + bias; see `affine`.

    The greatest product of one weight and one input is wu+ xu+ + wl- xl- (never negative) + wl+ xu- + wu- xl+ (never
    positive), with wl, wu, xl, xu the ends, a+ = max(a, 0) and a- = min(a, 0); but where both have ends of opposite sign
    it is the greater of wu xu and wl xl, so the lesser is taken off again.
    """
    weight_low, weight_high = _pair_of(weight)
    x_low, x_high = _pair_of(x)
    terms = weight_low.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        if (x_low >= 0).all() and (x_low is x_high or (x_high >= 0).all()):  # the usual case after a ReLU: half the products
            gains, losses = x_high @ _part(weight_high, 1).T, x_low @ _part(weight_high, -1).T
            value = gains + losses + bias
        else:
            gains = _parts_product(x_high, weight_high, 1, 1) + _parts_product(x_low, weight_low, -1, -1)
            losses = _parts_product(x_high, weight_low, -1, 1) + _parts_product(x_low, weight_high, 1, -1)
            value = gains + losses + bias - _counted_twice(weight_low, weight_high, x_low, x_high)
        slack = (3 * terms + 8) * UNIT * (gains - losses + np.abs(bias)) + (5 * terms + 8) * TINY
        bound = up(value + slack) if outward else down(value - slack)
    # An overflowed sum says nothing about the exact one; infinity is always a true bound.
    if np.isfinite(bound.sum()):  # no infinity and no NaN among them, the usual case
        return bound
    return np.where(np.isfinite(bound), bound, np.inf if outward else -np.inf)


def _counted_twice(
    weight_low: FloatArray, weight_high: FloatArray, x_low: FloatArray, x_high: FloatArray
) -> FloatArray | float:
    """Return, for each row, the sum of min(wu xu, wl xl) over the weights and inputs that both straddle zero."""
    straddling = (weight_low < 0) & (weight_high > 0)
    if not straddling.any() or not ((x_low < 0) & (x_high > 0)).any():
        return 0.0
    rows, columns = np.nonzero(straddling)
    overlap = np.minimum(
        np.maximum(x_high[:, columns], 0.0) * weight_high[rows, columns],
        np.minimum(x_low[:, columns], 0.0) * weight_low[rows, columns],
    )
    doubled = np.zeros((weight_low.shape[0], x_low.shape[0]))
    np.add.at(doubled, rows, overlap.T)
    return doubled.T


def _pair_of(x: Interval | Ends) -> tuple[FloatArray, FloatArray]:
    return (x.lower, x.upper) if isinstance(x, Interval) else (x.least, x.greatest)


def _parts_product(x: FloatArray, weight: FloatArray, x_sign: int, weight_sign: int) -> FloatArray:
    """Return (the part of x of one sign) @ (the part of weight of one sign).T."""
    x_part, weight_part = _part(x, x_sign), _part(weight, weight_sign)
    if not x_part.any() or not weight_part.any():
        return np.zeros((x.shape[0], weight.shape[0]))
    product: FloatArray = x_part @ weight_part.T
    return product


def _part(values: FloatArray, sign: int) -> FloatArray:
    return np.maximum(values, 0.0) if sign > 0 else np.minimum(values, 0.0)


def total(x: Interval) -> Interval:
    """Enclose the sum along the last axis. Rounding: n terms in any order err by at most gamma(n) sum abs(x)."""
    terms = x.shape[-1]
    with np.errstate(over="ignore", invalid="ignore"):
        slack_lower = (terms + 4) * UNIT * np.abs(x.lower).sum(axis=-1)
        slack_upper = (terms + 4) * UNIT * np.abs(x.upper).sum(axis=-1)
        return _guarded(down(x.lower.sum(axis=-1) - slack_lower), up(x.upper.sum(axis=-1) + slack_upper))


def magnitude(x: Interval) -> Interval:
    """Return the exact range of abs(x)."""
    upper = np.maximum(-x.lower, x.upper)
    lower = np.maximum(np.maximum(x.lower, -x.upper), 0.0)
    return Interval(lower, upper)


def relu(x: Interval) -> Interval:
    """Return the exact range of max(x, 0)."""
    return Interval(np.maximum(x.lower, 0.0), np.maximum(x.upper, 0.0))


def exp(x: Interval) -> Interval:
    """Enclose exp(x). Rounding: outward by EXP_ERROR, see `_exp`."""
    with np.errstate(over="ignore"):
        lower = down(_exp(x.lower) * (1 - 2 * EXP_ERROR) - 4 * TINY)
        upper = up(_exp(x.upper) * (1 + 2 * EXP_ERROR) + 4 * TINY)
    return Interval(np.maximum(lower, 0.0), upper)


def sigmoid(x: Interval) -> Interval:
    """Enclose 1 / (1 + exp(-x)), which rises with x.

    Rounding  with e = exp(-abs(x)) known to EXP_ERROR, 1 / (1 + e) and e / (1 + e) err by at most 1.5 EXP_ERROR + 2 UNIT
              relatively; 2 EXP_ERROR is taken, and TINY where e underflows
    """
    lower = down(_sigmoid(x.lower) * (1 - 2 * EXP_ERROR) - 4 * TINY)
    upper = up(_sigmoid(x.upper) * (1 + 2 * EXP_ERROR) + 4 * TINY)
    return Interval(np.maximum(lower, 0.0), np.minimum(upper, 1.0))


def tanh(x: Interval) -> Interval:
    """Enclose tanh(x), which rises with x.

    Rounding  (1 - q) / (1 + q) with q = exp(-2 abs(x)) known to EXP_ERROR errs by less than 4 EXP_ERROR absolutely; near
              zero abs(x) - abs(x)**3 / 3 <= tanh(abs(x)) <= abs(x) is tighter and is taken
    """
    lower, upper = _tanh_lower(x.lower), -_tanh_lower(-x.upper)
    return Interval(lower, upper)


def softmax(logits: Interval) -> Interval:
    """Enclose the confidences of classes whose logits vary independently, each in its interval.

    Shapes    logits (batch, k); result (batch, k)
    Method    1 / (1 + sum over rivals j of exp(z_j - z_c)), least and greatest at corners of the box of logits
    Rounding  a sum of k terms of one sign errs by gamma(k) relatively, the division by UNIT
    """
    classes = logits.shape[1]
    rivals = np.array([[j for j in range(classes) if j != c] for c in range(classes)])
    powers = exp(logits[:, rivals] - logits[:, :, None])
    with np.errstate(over="ignore"):
        least = (1.0 + powers.lower.sum(axis=2)) * (1 - (classes + 4) * UNIT)
        greatest = (1.0 + powers.upper.sum(axis=2)) * (1 + (classes + 4) * UNIT)
    return Interval(np.maximum(down(1.0 / greatest), 0.0), np.minimum(up(1.0 / least), 1.0))


def _sigmoid(x: FloatArray) -> FloatArray:
    power = _exp(-np.abs(x))
    return np.where(x >= 0, 1.0, power) / (1.0 + power)


def _tanh_lower(x: FloatArray) -> FloatArray:
    size = np.abs(x)
    power = _exp(-2.0 * size)
    value = (1.0 - power) / (1.0 + power)
    small = np.minimum(size, 1.0)
    cube = up(up(up(up(small * small) * small) / 3.0))
    least = np.maximum(down(value - 4 * EXP_ERROR), down(small - cube))
    greatest = np.minimum(up(value + 4 * EXP_ERROR), size)
    return np.where(x >= 0, np.clip(least, 0.0, 1.0), -np.minimum(greatest, 1.0))


_LN2_HEAD = 6.93147180369123816490e-01  # the leading 32 bits of ln 2, so that k * _LN2_HEAD is exact for abs(k) < 2**20
_LN2_TAIL = 1.90821492927058770002e-10  # ln 2 - _LN2_HEAD, to 2**-86
_TAYLOR = tuple(1.0 / float(np.prod(np.arange(1.0, n + 1))) for n in range(14))


def _exp(x: FloatArray) -> FloatArray:
    """Return exp(x), off by at most EXP_ERROR = 2**-49 relatively plus TINY; 0 and inf stand for what is out of range.

    Method    x = k ln 2 + r with abs(r) < 0.36 (Cody and Waite); exp(r) by Taylor's polynomial of degree 13, in Horner form
    Rounding  k * _LN2_HEAD is exact; the three other operations on r leave at most 2**-53 absolute error; the remainder
              0.36**14 / 14! * e**0.36 is below 2**-56; Horner's last addition errs by UNIT, the earlier ones by less than
              0.36 * 4 UNIT: less than 5 UNIT in all, and 16 UNIT is claimed. Scaling by 2**k is exact, or off by TINY
    """
    clipped = np.clip(x, -760.0, 720.0)
    k = np.rint(clipped * 1.4426950408889634)
    r = (clipped - k * _LN2_HEAD) - k * _LN2_TAIL
    value = np.full_like(r, _TAYLOR[13])
    for coefficient in _TAYLOR[12::-1]:
        value *= r
        value += coefficient
    with np.errstate(over="ignore", under="ignore"):
        result: FloatArray = np.ldexp(value, k.astype(np.int32))
    return result
