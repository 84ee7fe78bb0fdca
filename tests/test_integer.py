"""Integer programs without any runtime: fixed-point functions by hand, kernels against plain loops, any kernels sound."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from qrobust.errors import NumberError, ResourceError, ShapeError, UnsupportedError
from qrobust.integer import any_kernel, fixed_point
from qrobust.integer.any_kernel import IntegerInterval
from qrobust.integer.geometry import Sliding, Windows
from qrobust.integer.kernels import run
from qrobust.integer.program import (
    Affine,
    Bounds,
    Elementwise,
    Encoding,
    Function,
    IntegerProgram,
    Kernels,
    Operation,
    Pool,
    Requantize,
    Runtime,
    Softmax,
)

SIGMOID = Encoding(2**-8, -128)
IN, MIDDLE = Encoding(0.5, 3), Encoding(0.25, -7)
Ints = npt.NDArray[np.int64]


def ints(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


def dense(weight: list[list[int]], bias: list[int], before: Encoding, after: Encoding, **options: object) -> Affine:
    windows = Windows.whole(len(weight[0]))
    scales = np.full(len(weight), 0.125)
    return Affine(np.array(weight), np.array(bias), scales, windows, before, after, exactly=True, **options)  # type: ignore[arg-type]


def binary(*operations: Operation) -> IntegerProgram:
    last = operations[-1]
    return IntegerProgram((*operations, Elementwise(1, Function.LOGISTIC, last.output, SIGMOID)))


def test_rounding_takes_a_half_away_from_zero() -> None:
    values = np.array([0.5, -0.5, 1.5, 2.5, -2.5, 0.49999999999999994, 4503599627370495.5, 2.0**53 + 2])
    expected = [1, -1, 2, 3, -3, 0, 4503599627370496, 2.0**53 + 2]
    np.testing.assert_array_equal(fixed_point.round_half_away(values), expected)


@pytest.mark.parametrize(
    ("factor", "multiplier", "shift"),
    [
        (1.0, 2**30, 1),
        (0.5, 2**30, 0),
        (0.75, 3 * 2**29, 0),
        (1 - 2**-40, 2**30, 1),
        (2**-33, 0, 0),
        (0.0, 0, 0),
    ],
)
def test_multipliers_by_hand(factor: float, multiplier: int, shift: int) -> None:
    assert fixed_point.quantized_multiplier(factor) == (multiplier, shift)


def test_the_two_roundings_of_32_bits_differ_from_one() -> None:
    """1/4 is the multiplier 2**30 (a half) and one shift: 1 becomes 1/2, rounded 1, then 1/2, rounded 1. -1 becomes 0 and 0."""
    multiplier, shift = fixed_point.quantized_multiplier(0.25)
    found = fixed_point.scaled_32(ints(1, -1, 2, -2, 3, 6, -6), multiplier, shift)
    np.testing.assert_array_equal(found, [1, 0, 1, -1, 1, 2, -2])
    np.testing.assert_array_equal(fixed_point.high_product(ints(-(2**31)), -(2**31)), [2**31 - 1])
    np.testing.assert_array_equal(fixed_point.divide_by_power(ints(-3, 3, -1, 1, 6), 1), [-2, 2, -1, 1, 3])


def test_exponentials_and_reciprocals_are_near_the_real_ones() -> None:
    x = -np.arange(0, 2**31, 2**20 + 7, dtype=np.int64)
    np.testing.assert_allclose(fixed_point.exp_of_negative(x) / 2**31, np.exp(x / 2.0**26), atol=2e-7)
    a = np.arange(2**19, 2**30, 2**21 + 3, dtype=np.int64)
    mantissa, bits = fixed_point.reciprocal(a, 12)
    np.testing.assert_allclose(mantissa * 2.0 ** -(31.0 + bits), 2.0**19 / a, rtol=2e-8)


def test_a_dense_program_by_hand() -> None:
    """x = (5, 1): 0.5 * (2, -2); sums 3*2 - 2*(-2) + 4 = 14, of 0.5 * 0.125 = 1/16 each: 0.875 = 3.5 steps of 0.25, so 4.

    4 + the zero point -7 = -3; relu cuts at -7; its real value is 1, sigmoid(1) * 256 = 187.15, so 187 - 128 = 59.
    """
    program = binary(dense([[3, -2]], [4], IN, MIDDLE, bounds=Bounds(-7)))
    trace = run(program, np.array([[5, 1]]))
    assert trace.values.tolist() == [[59]]
    assert trace.saturated.tolist() == [0, 0]
    assert run(program, np.array([[5, 1]]), Kernels.XNNPACK).values.tolist() == [[59]]  # 3.5 to even is 4, too
    low = run(program, np.array([[-128, 127]]))
    assert low.values.tolist() == [[0]]  # cut by the relu: sigmoid(0), and nothing counted as cut off by the type
    assert low.saturated.tolist() == [0, 0]


def test_saturation_is_counted() -> None:
    program = binary(dense([[127]], [0], IN, Encoding(2**-7, 0)))
    trace = run(program, np.array([[127], [-128], [3], [4]]))
    assert trace.saturated.tolist() == [3, 0]
    assert trace.counts.tolist() == [4, 4]


def plain_convolution(operation: Affine, image: Ints, kernel: Ints, sliding: Sliding, groups: int) -> Ints:
    """Sums by loops over every place, channel and tap, as the definition reads."""
    _, height, width = image.shape
    down, across = sliding.places((height, width), kernel.shape[2:])
    sums = np.zeros((len(kernel), down, across), dtype=np.int64)
    for out, y, x in np.ndindex(sums.shape):
        group = out // (len(kernel) // groups)
        total = int(operation.bias[out])
        for c, i, j in np.ndindex(kernel.shape[1:]):
            row, column = y * sliding.stride[0] + i - sliding.padding[0], x * sliding.stride[1] + j - sliding.padding[1]
            if 0 <= row < height and 0 <= column < width:
                value = image[group * kernel.shape[1] + c, row, column] - operation.input.zero_point
                total += int(kernel[out, c, i, j]) * int(value)
        sums[out, y, x] = total
    return sums.reshape(len(kernel), -1)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("same", [True, False])
def test_convolutions_against_plain_loops(groups: int, stride: tuple[int, int], same: bool) -> None:
    from qrobust.integer.kernels import accumulators

    rng = np.random.default_rng(5)
    image, kernel = (4, 5, 7), rng.integers(-127, 128, (6, 4 // groups, 3, 2))
    sliding = Sliding.same_size(image[1:], (3, 2), stride) if same else Sliding(stride)
    windows = Windows.over_image(image, (3, 2), sliding, groups)
    bias, scales = rng.integers(-1000, 1000, 6), np.full(6, 0.01171875)
    operation = Affine(kernel.reshape(6, -1), bias, scales, windows, IN, Encoding(0.5, 0))
    x = rng.integers(-128, 128, (3, 140))
    found = accumulators(operation, x)
    for row, values in zip(x, found, strict=True):
        np.testing.assert_array_equal(values, plain_convolution(operation, row.reshape(image), kernel, sliding, groups))


def test_pools_by_hand() -> None:
    """Windows that leave the image: the mean is of what is inside, a half away from zero."""
    sliding = Sliding.same_size((2, 3), (2, 2), (2, 2))
    windows = Windows.over_image((1, 2, 3), (2, 2), sliding)
    x = np.array([[1, 2, -3, 2, 2, -4]])  # rows (1, 2, -3) and (2, 2, -4): windows of 1, 2, 2, 2 and of -3, -4
    for average, expected in ((True, [2, -4]), (False, [2, -3])):
        from qrobust.integer.kernels import RULES

        assert RULES[Kernels.REFERENCE][Pool](Pool(windows, IN, average), x)[0].tolist() == expected


def random_programs(seed: int) -> IntegerProgram:
    """A convolution, a pool, a dense layer, tanh, a dense layer, and a softmax, of random numbers."""
    rng = np.random.default_rng(seed)
    encodings = [Encoding(float(np.float32(rng.uniform(0.01, 0.1))), int(rng.integers(-128, 128))) for _ in range(4)]
    windows = Windows.over_image((2, 6, 6), (3, 3), Sliding.same_size((6, 6), (3, 3), (1, 1)))
    pooled = Windows.over_image((3, 6, 6), (2, 2), Sliding((2, 2)), groups=3)

    def affine(rows: int, w: Windows, before: Encoding, after: Encoding, *, exactly: bool) -> Affine:
        weight = rng.integers(-127, 128, (rows, w.taps))
        scales = rng.uniform(0.002, 0.01, rows).astype(np.float32).astype(np.float64)
        return Affine(weight, rng.integers(-500, 500, rows), scales, w, before, after, exactly=exactly)

    tanh = Encoding(2**-7, 0)
    return IntegerProgram(
        (
            affine(3, windows, encodings[0], encodings[1], exactly=False),
            Pool(pooled, encodings[1], bool(rng.integers(2))),
            affine(5, Windows.whole(27), encodings[1], encodings[2], exactly=True),
            Elementwise(5, Function.TANH, encodings[2], tanh),
            affine(4, Windows.whole(5), tanh, encodings[3], exactly=True),
            Softmax(4, 1.0, encodings[3], SIGMOID),
        )
    )


@pytest.mark.parametrize("seed", range(8))
def test_any_kernels_hold_the_reference_and_every_input_in_a_box(seed: int) -> None:
    program, rng = random_programs(seed), np.random.default_rng(seed)
    low = rng.integers(-128, 120, (20, program.inputs))
    high = np.minimum(low + rng.integers(0, 6, low.shape), 127)
    bounds = any_kernel.run(program, IntegerInterval(low, high))
    for _ in range(20):
        corners = np.where(rng.integers(0, 2, low.shape), low, high)
        for x in (corners, rng.integers(low, high + 1)):
            values = run(program, x).values
            assert ((bounds.lower <= values) & (values <= bounds.upper)).all()
    points = any_kernel.run(program, IntegerInterval.point(low))
    assert ((bounds.lower <= points.lower) & (points.upper <= bounds.upper)).all()
    one = any_kernel.run(binary(dense([[3, -2]], [4], IN, MIDDLE)), IntegerInterval.point(np.array([[5, 1]])))
    assert one.upper[0, 0] - one.lower[0, 0] <= 2 * (1.5 + 1.5 * 16 + 1)  # a step of 1/4 moves 256 sigmoids by 16 at most


def test_a_kernel_that_is_off_by_more_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the allowance deleted, the reference kernels' own rounding leaves the bounds."""
    monkeypatch.setattr(any_kernel, "ALLOWANCE", 0.0)
    monkeypatch.setattr(any_kernel, "near", _near_without_check)
    outside = 0
    for seed in range(4):
        program = random_programs(seed)
        x = np.random.default_rng(seed).integers(-128, 128, (100, program.inputs))
        bounds, values = any_kernel.run(program, IntegerInterval.point(x)), run(program, x).values
        outside += int(((values < bounds.lower) | (values > bounds.upper)).sum())
    assert outside > 0


def _near_without_check(values: object, zero_point: int = 0) -> IntegerInterval:
    middle = np.floor((values.lower + values.upper) / 2).astype(np.int64) + zero_point  # type: ignore[attr-defined]
    return IntegerInterval(middle, middle)


def test_results_of_more_units_than_64_bits_hold_are_cut_at_the_right_end() -> None:
    """sigmoid(5) is 1e30 units of 1e-30: the greatest integer, in all kernels."""
    encoding, fine = Encoding(1.0, 0), Encoding(float(np.float32(1e-30)), 0)
    program = IntegerProgram((Elementwise(1, Function.LOGISTIC, encoding, fine),), runtime=Runtime.ONNX)
    x = np.array([[5]])
    found = any_kernel.run(program, IntegerInterval.point(x))
    assert found.lower.tolist() == found.upper.tolist() == run(program, x).values.tolist() == [[127]]


@pytest.mark.parametrize(
    "operation",
    [
        Elementwise(1, Function.LOGISTIC, Encoding(2**-10, 0, 16), Encoding(2**-15, 0, 16)),
        Softmax(3, 1.0, Encoding(2**-10, 0, 16), Encoding(2**-15, 0, 16)),
    ],
)
def test_any_kernels_say_what_they_do_not_bound(operation: Elementwise | Softmax) -> None:
    program = IntegerProgram((operation,))
    with pytest.raises(UnsupportedError, match="16 bits: take the kernels reference"):
        any_kernel.run(program, IntegerInterval.point(np.zeros((1, operation.size), dtype=np.int64)))
    with pytest.raises(UnsupportedError, match="16 bits: take the kernels reference"):
        run(program, np.zeros((1, operation.size), dtype=np.int64), Kernels.XNNPACK)


def test_overflow_is_refused_before_anything_runs() -> None:
    with pytest.raises(UnsupportedError, match="may overflow"):
        dense([[127] * 70_000], [2**31 - 1], IN, MIDDLE)
    with pytest.raises(UnsupportedError, match="may overflow"):
        dense([[127] * 100], [0], Encoding(1000.0, 0), Encoding(2**-10, 0))


@pytest.mark.parametrize(("make", "kind", "words"), [
    (lambda: Encoding(0.1, 0), NumberError, "float32"),
    (lambda: Encoding(-1.0, 0), NumberError, "positive"),
    (lambda: Encoding(0.5, 128), NumberError, "zero point 128"),
    (lambda: IntegerProgram((Elementwise(1, Function.LOGISTIC, IN, MIDDLE),)), UnsupportedError, "TFLite fixes"),
    (lambda: Softmax(1, 1.0, IN, SIGMOID), UnsupportedError, "1 classes"),
    (lambda: Softmax(3, float("nan"), IN, SIGMOID), NumberError, "beta"),
    (lambda: Requantize(1, IN, Encoding(2**-30, 0)), UnsupportedError, "too far apart"),
    (lambda: IntegerProgram(()), ShapeError, "at least one"),
    (lambda: IntegerProgram((dense([[1]], [0], IN, MIDDLE),)), UnsupportedError, "ends in fully connected"),
    (lambda: binary(dense([[1], [1]], [0, 0], IN, MIDDLE)), ShapeError, "takes 1"),
    (lambda: dense([[1]], [0, 1], IN, MIDDLE), ShapeError, "1 channels"),
    (lambda: Windows.over_image((1, 10**5, 10**5), (3, 3), Sliding((1, 1))), ResourceError, "entries"),
    (lambda: Pool(Windows.over_image((1, 200, 200), (200, 200), Sliding((1, 1)), 1), Encoding(0.5, 0, 16), True),
     UnsupportedError, "may overflow"),
    (lambda: Windows.over_image((1, 2, 2), (3, 3), Sliding((1, 1))), ShapeError, "do not fit"),
])  # fmt: skip
def test_what_is_no_program(make: object, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()  # type: ignore[operator]


def test_inputs_that_no_integer_stands_for() -> None:
    program = binary(dense([[1]], [0], IN, MIDDLE))
    with pytest.raises(NumberError, match="too large"):
        program.quantized([[1e300]])
    assert program.quantized([[0.74], [0.75], [-0.25], [1e6]]).tolist() == [[4], [5], [2], [127]]
    with pytest.raises(ShapeError, match="1 integers"):
        run(program, np.zeros((2, 2), dtype=np.int64))


def test_the_meaning_of_integers_is_exact() -> None:
    encoding = Encoding(float(np.float32(0.1)), -5, 16)
    values = ints(-32768, 32767, 0, -5)
    exact = [Fraction(encoding.scale) * (v + 5) for v in values.tolist()]
    assert [Fraction(v) for v in encoding.real(values).tolist()] == exact


def test_the_hash_sees_every_number() -> None:
    base = binary(dense([[3, -2]], [4], IN, MIDDLE))
    others = [
        binary(dense([[3, -1]], [4], IN, MIDDLE)),
        binary(dense([[3, -2]], [5], IN, MIDDLE)),
        binary(dense([[3, -2]], [4], Encoding(0.5, 4), MIDDLE)),
        binary(dense([[3, -2]], [4], IN, MIDDLE, bounds=Bounds(-7))),
    ]
    assert len({program.sha256 for program in [base, *others]}) == 5
    assert base.sha256 == binary(dense([[3, -2]], [4], IN, MIDDLE)).sha256
