"""Fixed-point arithmetic of TFLite's kernels, on arrays of int64 that hold 32-bit numbers.

Source    gemmlowp/fixedpoint/fixedpoint.h (the functions' names in CamelCase there) and tflite/kernels/internal/
          {common.cc, quantization_util.cc}, read at LiteRT commit f6745779. A number of n integer bits is stored as its value
          times 2**(31 - n).
"""

from __future__ import annotations

import math

import numpy as np

from qrobust.interval import FloatArray
from qrobust.layers import IntArray

MOST_32, LEAST_32 = 2**31 - 1, -(2**31)
QUARTER_STEPS = (  # exp(-2**k) for k = -2 ... 4, times 2**31: the factors of exp_of_negative
    (24, 1672461947),
    (25, 1302514674),
    (26, 790015084),
    (27, 290630308),
    (28, 39332535),
    (29, 720401),
    (30, 242),
)
EXP_OF_EIGHTH, THIRD = 1895147668, 715827883  # exp(-1/8) and 1/3, times 2**31
NEWTON_START, NEWTON_SLOPE = 1515870810, -1010580540  # 48/17 and -32/17, times 2**29


def round_half_away(values: FloatArray) -> FloatArray:
    """Return the nearest whole number, a half away from zero, as C's round does; exact for every float."""
    whole = np.trunc(values)
    return whole + np.where(np.abs(values - whole) >= 0.5, np.sign(values), 0.0)


def quantized_multiplier(factor: float) -> tuple[int, int]:
    """Return the 31-bit multiplier and the left shift that stand for a factor >= 0 (QuantizeMultiplier)."""
    if factor == 0:
        return 0, 0
    fraction, shift = math.frexp(factor)
    multiplier = math.floor(fraction * 2.0**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def high_product(a: IntArray, b: IntArray | int) -> IntArray:
    """Return a * b / 2**31, rounded, a half upward; the one product that overflows saturates."""
    product = a * b
    nudged = product + np.where(product >= 0, 2**30, 1 - 2**30)
    return np.minimum(_truncated(nudged, 2**31), MOST_32)


def _truncated(a: IntArray, divisor: int | IntArray) -> IntArray:
    """Return a / divisor rounded toward zero, as C divides."""
    return np.asarray(np.sign(a) * (np.abs(a) // divisor), dtype=np.int64)


def divide_by_power(a: IntArray, exponent: int | IntArray) -> IntArray:
    """Return a / 2**exponent rounded to nearest, a half away from zero (RoundingDivideByPOT)."""
    mask = np.left_shift(np.int64(1), exponent) - 1
    return np.asarray((a >> exponent) + ((a & mask) > (mask >> 1) + (a < 0)), dtype=np.int64)


def saturating_shift(a: IntArray, exponent: int) -> IntArray:
    """Return a * 2**exponent within 32 bits."""
    return np.asarray(np.clip(a << exponent, LEAST_32, MOST_32), dtype=np.int64)


def scaled_32(a: IntArray, multiplier: IntArray | int, shift: IntArray | int) -> IntArray:
    """Return a * multiplier * 2**(shift - 31), rounded twice, as 32-bit accumulators are (MultiplyByQuantizedMultiplier)."""
    return divide_by_power(high_product(a << np.maximum(shift, 0), multiplier), np.maximum(-shift, 0))


def scaled_64(a: IntArray, multiplier: IntArray | int, shift: IntArray | int) -> IntArray:
    """Return a * multiplier * 2**(shift - 31) with 15 bits of the multiplier, rounded once, as 64-bit accumulators are."""
    reduced = np.where(multiplier < 0x7FFF0000, (multiplier + 2**15) >> 16, 0x7FFF)
    total = 15 - shift
    return np.asarray((a * reduced + np.left_shift(np.int64(1), total - 1)) >> total, dtype=np.int64)


def exp_of_negative(a: IntArray) -> IntArray:
    """Return exp(a), 0 integer bits, for a <= 0 with 5 integer bits (exp_on_negative_values)."""
    quarter = 1 << 24
    below = (a & (quarter - 1)) - quarter
    result = _exp_near_eighth(saturating_shift(below, 5))
    rest = below - a
    for bit, factor in QUARTER_STEPS:
        result = np.where(rest & (1 << bit), high_product(result, factor), result)
    return np.where(a == 0, MOST_32, result)


def _exp_near_eighth(a: IntArray) -> IntArray:
    """Return exp(a) for -1/4 <= a < 0 by Taylor's polynomial of degree 4 at -1/8."""
    x = a + (1 << 28)
    x2 = high_product(x, x)
    x3, x4 = high_product(x2, x), high_product(x2, x2)
    tail = divide_by_power(high_product(divide_by_power(x4, 2) + x3, THIRD) + x2, 1)
    return EXP_OF_EIGHTH + high_product(np.asarray(x + tail), EXP_OF_EIGHTH)


def reciprocal(a: IntArray, integer_bits: int) -> tuple[IntArray, IntArray]:
    """Return 1 / a as (mantissa, bits) with the value mantissa * 2**(-31 - bits), for a > 0 (GetReciprocal)."""
    headroom = 32 - np.frexp(a.astype(np.float64))[1].astype(np.int64)
    rest = (a << headroom) - 2**31  # a = (1 + rest / 2**31) * a power of two
    total = rest + MOST_32
    half = _truncated(total + np.where(total >= 0, 1, -1), 2)
    x = NEWTON_START + high_product(half, NEWTON_SLOPE)
    for _ in range(3):
        error = (1 << 29) - high_product(half, x)
        x = x + saturating_shift(high_product(x, error), 2)
    return saturating_shift(x, 1), integer_bits - headroom
