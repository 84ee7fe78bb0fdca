"""Do schemes round as exact rational arithmetic, NumPy's float16 and ml_dtypes say, and do their boxes hold what they state?"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import qrobust
from qrobust.domains import LayerBox, ParameterBox
from qrobust.errors import NumberError, QRobustError, ShapeError, UnsupportedError
from qrobust.formats import load
from qrobust.interval import Expansion, FloatArray, up
from qrobust.network import Activation, AveragePool2d, Conv2d, Dense, Network, Output
from qrobust.perturbations import Copy, HalfStep, Rounding
from qrobust.quantization import (
    DYNAMIC_RANGE,
    Bias,
    Binary,
    FixedPoint,
    FloatFormat,
    FloatingPoint,
    Integer,
    OneFormat,
    Overflow,
    PerLayerScheme,
    PowersOfTwo,
    RoundingMode,
    ScaleType,
    Scheme,
    Ternary,
    outside,
    parse_scheme,
    stored_arrays,
)
from qrobust.quantization.grids import Floating, Signs, Uniform, legal, placed

FEW = settings(max_examples=40, deadline=None)  # a test of each scheme: thousands in all
MODELS = Path(__file__).parents[1] / "models"
LEAST = 5e-324
TYPES: dict[FloatFormat, npt.DTypeLike] = {
    FloatFormat.FP16: np.float16,
    FloatFormat.BF16: ml_dtypes.bfloat16,
    FloatFormat.E4M3: ml_dtypes.float8_e4m3fn,
    FloatFormat.E5M2: ml_dtypes.float8_e5m2,
}
FIXED = [
    FixedPoint(m, n, mode, over)
    for m, n in ((0, 1), (3, 4))
    for mode in RoundingMode
    for over in (Overflow.SATURATE, Overflow.WRAP)
]
EVERY: list[OneFormat] = [
    *(Integer(bits, symmetric, mode=mode) for bits in (2, 4, 8, 16) for symmetric in (True, False) for mode in RoundingMode),
    *(Integer(bits, symmetric, scale=ScaleType.FLOAT64) for bits in (2, 8, 32) for symmetric in (True, False)),
    Integer(32),
    Integer(8, per_channel=True),
    Integer(4, block=2),
    Integer(8, bias=Bias.SAME),
    Integer(8, bias=Bias.INT32, input_steps=(0.0039,)),
    Integer(8, per_channel=True, bias=Bias.INT32, input_steps=(0.0039,)),
    *(FloatingPoint(kind, Overflow.SATURATE) for kind in FloatFormat),
    *FIXED,
    PowersOfTwo(2),
    PowersOfTwo(4, per_channel=True),
    Ternary(),
    Ternary(per_channel=True),
    Binary(),
    Binary(per_channel=True),
]

numbers = st.one_of(
    st.floats(-4, 4),
    st.floats(-1e300, 1e300),
    st.integers(-40, 40).map(lambda n: n / 16),  # ties
    st.sampled_from([0.0, -0.0, LEAST, -LEAST, 2.0**-1022, 3 * LEAST, 2.0**-149, 2.0**-150, 65520.0, 464.0, 1e38, -1e300]),
)
matrices = st.integers(1, 3).flatmap(
    lambda rows: st.integers(1, 5).flatmap(
        lambda columns: st.lists(numbers, min_size=rows * columns, max_size=rows * columns).map(
            lambda flat: np.array(flat).reshape(rows, columns)
        )
    )
)


def network_of(weight: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> Network:
    """A network of one layer; its biases are the first column unless given."""
    weight = np.array(weight, dtype=np.float64)
    layer = Dense(weight, weight[:, 0] if bias is None else np.array(bias))
    return Network((layer,), Output.SIGMOID if len(weight) == 1 else Output.SOFTMAX)


def row_of(values: npt.ArrayLike) -> Network:
    """One row of weights, and a bias of 0."""
    return network_of(np.atleast_2d(np.array(values, dtype=np.float64)), [0.0])


def copy_of(scheme: Scheme, values: npt.ArrayLike) -> list[float]:
    """The row of a row's copy."""
    return [float(v) for v in scheme.copy(row_of(values)).layers[0].weight[0]]


def exact_code(ratio: Fraction, mode: RoundingMode) -> int:
    """Round a ratio as the mode's name says, by the book."""
    below = math.floor(ratio)
    if mode is RoundingMode.FLOOR or ratio == below:
        return below
    rest = ratio - below - Fraction(1, 2)
    if rest:
        return below + (rest > 0)
    if mode is RoundingMode.HALF_AWAY:
        return below + (ratio > 0)
    return below + below % 2


def exact_range(code: int, lowest: int, highest: int, overflow: Overflow) -> int:
    if overflow is Overflow.WRAP:
        return (code - lowest) % (highest - lowest + 1) + lowest
    return min(max(code, lowest), highest)


def exact_ends(value: Fraction, step: Fraction, mode: RoundingMode) -> tuple[Fraction, Fraction]:
    if mode is RoundingMode.FLOOR:
        return value - step, value
    radius = step if mode is RoundingMode.EITHER else step / 2
    return value - radius, value + radius


def ends_of(parameters: ParameterBox) -> tuple[list[Fraction], list[Fraction]]:
    """The exact ends of the first layer's weights."""
    low, high = parameters.layers[0].weight.lower.fractions(), parameters.layers[0].weight.upper.fractions()
    return low.ravel().tolist(), high.ravel().tolist()


@pytest.mark.parametrize("scheme", EVERY, ids=str)
@FEW
@given(weight=matrices)
@example(weight=np.zeros((2, 3)))
@example(weight=np.array([[LEAST]]))
@example(weight=np.array([[0.0]]))
@example(weight=np.array([[1e-320, -3e-320, LEAST], [0.0, 2e-320, -0.0]]))
@example(weight=np.array([[1e300, -1e-300, 65520.0], [464.0, 3e38, 1.0]]))
def test_the_box_holds_the_network_its_copy_and_its_code_points(scheme: OneFormat, weight: FloatArray) -> None:
    network = network_of(weight)
    try:
        box = scheme.box(network)
    except NumberError:
        zeros = scheme.bias is Bias.INT32 and not weight.any(axis=1).all()
        assert zeros or float(np.abs(weight).max()) > 1e37, "only numbers near an end of a format are refused"
        return
    copy, points = scheme.copy(network), scheme.code_points(network)
    box.check_fits(network)
    assert box.contains_network(copy)
    assert outside(box, copy) == []
    assert box.contains(points.least)
    assert box.contains(points.greatest)
    own = [(layer.weight, layer.bias) for layer in copy.layers]
    for stored, least, greatest in zip(own[0], points.least[0], points.greatest[0], strict=True):
        assert ((least <= stored) & (stored <= greatest)).all()
    snapped = scheme.snapped(network, tuple(own))
    assert all((a == b).all() for a, b in zip(snapped[0], own[0], strict=True)), "a copy is what a device holds already"
    again = tuple((w, b) for w, b in ((layer.weight, layer.bias) for layer in scheme.copy(network).layers))
    assert all((a == b).all() for a, b in zip(again[0], own[0], strict=True))


@pytest.mark.parametrize("bits", [2, 4, 8, 16, 29])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("mode", RoundingMode)
@FEW
@given(values=st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=6))
@example(values=[127.0, 0.5, 1.5, 2.5, -0.5, -1.5])
@example(values=[1e-45, 1e-44, -1.4e-43])
def test_integers_are_the_exact_roundings(bits: int, symmetric: bool, mode: RoundingMode, values: list[float]) -> None:
    scheme = Integer(bits, symmetric, mode=mode)
    low, high = min(0.0, *values), max(0.0, *values)
    count = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    size = max(-low, high) if symmetric else high - low
    step = max(float(np.float32(size / count)), 2.0**-149) if size else 0.0
    zero = 0 if symmetric else min(max(round(-low / step), 0), count) if step else 0
    lowest, highest = (-count, count) if symmetric else (-zero, count - zero)
    lower, upper = ends_of(scheme.box(row_of(values)))
    for i, (value, copied) in enumerate(zip(values, copy_of(scheme, values), strict=True)):
        if not step:
            assert all(number == 0 for number in (value, copied, lower[i], upper[i]))
            continue
        code = exact_code(Fraction(value) / Fraction(step), mode)
        exact = exact_range(code, lowest, highest, Overflow.SATURATE) * Fraction(step)
        assert Fraction(copied) == exact
        ends = exact_ends(Fraction(value), Fraction(step), mode)
        assert (lower[i], upper[i]) == (min(ends[0], exact), max(ends[1], exact))


@FEW
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6), bits=st.integers(2, 32))
def test_a_scale_of_float64_is_rounded_up_and_its_products_toward_the_stored_number(values: list[float], bits: int) -> None:
    network, size, count = row_of(values), max(map(abs, values)), 2 ** (bits - 1) - 1
    scheme = Integer(bits, scale=ScaleType.FLOAT64)
    if not size:
        return
    step = Fraction(math.nextafter(size / count, math.inf))
    assert step * count >= Fraction(size)
    assert stored_arrays(network, scheme)[0].overflowed == 0
    for value, copied in zip(values, copy_of(scheme, values), strict=True):
        exact = exact_code(Fraction(value) / step, RoundingMode.NEAREST_EVEN) * step
        assert abs(Fraction(copied) - exact) <= Fraction(math.ulp(copied))
        assert abs(Fraction(copied) - Fraction(value)) <= Fraction(float(up(np.array(float(step / 2)))))


@pytest.mark.parametrize("scheme", FIXED, ids=str)
@FEW
@given(
    values=st.lists(
        st.one_of(st.floats(-1e300, 1e300), st.floats(-20, 20), st.integers(-700, 700).map(lambda n: n / 32)), min_size=1
    )
)
def test_fixed_point_is_the_exact_rounding(scheme: FixedPoint, values: list[float]) -> None:
    step, end = Fraction(1, 2**scheme.fraction_bits), 2 ** (scheme.integer_bits + scheme.fraction_bits)
    lower, upper = ends_of(scheme.box(row_of(values)))
    for i, (value, copied) in enumerate(zip(values, copy_of(scheme, values), strict=True)):
        exact = exact_range(exact_code(Fraction(value) / step, scheme.mode), -end, end - 1, scheme.overflow) * step
        assert Fraction(copied) == exact
        ends = exact_ends(Fraction(value), step, scheme.mode)
        assert (lower[i], upper[i]) == (min(ends[0], exact), max(ends[1], exact))


def test_hls4mls_defaults_by_hand() -> None:
    """q3.4: steps of 1/16 from -8 to 7.9375. 8.03 is 128.48 steps: floor 128, which wraps to -128; -0.01 floors to -1 step."""
    scheme = parse_scheme("q3.4-floor-wrap")
    assert copy_of(scheme, [8.03, -0.01, 7.99, -8.01, 0.99]) == [-8.0, -0.0625, 7.9375, 7.9375, 0.9375]
    assert copy_of(parse_scheme("q3.4"), [8.03, -0.01, 7.99, -8.01, 0.99]) == [7.9375, 0.0, 7.9375, -8.0, 1.0]
    lower, upper = ends_of(scheme.box(row_of([8.03, 0.99])))
    assert (lower[0], upper[0]) == (Fraction(-8), Fraction(8.03))
    assert (lower[1], upper[1]) == (Fraction(0.99) - Fraction(1, 16), Fraction(0.99))


@pytest.mark.parametrize("kind", FloatFormat)
@FEW
@given(values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
@example(values=[65519.0, 65504.0, 448.0, 464.0, 463.0, 57344.0, 61439.0, 2.0**-149, -(2.0**-25), 3 * 2.0**-26])
def test_floats_round_as_numpy_and_ml_dtypes_do(kind: FloatFormat, values: list[float]) -> None:
    """From float32 values, which ml_dtypes rounds once."""
    scheme = FloatingPoint(kind, Overflow.SATURATE)
    with np.errstate(over="ignore"):
        theirs = np.array(values, dtype=np.float32).astype(TYPES[kind]).astype(np.float64)
    greatest = kind.value[3]
    expected = np.where(np.isfinite(theirs), theirs, np.copysign(greatest, values))
    assert copy_of(scheme, values) == expected.tolist()
    if np.isfinite(theirs).all():
        assert copy_of(replace(scheme, overflow=Overflow.REFUSE), values) == theirs.tolist()
    else:
        with pytest.raises(NumberError, match=r"layer 1: .* is beyond the format's greatest number"):
            FloatingPoint(kind).copy(row_of(values))


@FEW
@given(values=st.lists(st.floats(-65519, 65519), min_size=1, max_size=8))
@example(values=[1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-11, 1 + 3 * 2.0**-11 - 2.0**-50])
def test_float64_is_rounded_to_float16_once(values: list[float]) -> None:
    assert copy_of(FloatingPoint(FloatFormat.FP16), values) == np.array(values).astype(np.float16).astype(np.float64).tolist()


@pytest.mark.parametrize("kind", FloatFormat)
@FEW
@given(values=st.lists(st.floats(-60000, 60000), min_size=1, max_size=6))
def test_the_box_of_a_float_is_half_its_own_step(kind: FloatFormat, values: list[float]) -> None:
    scheme, (_, fraction, least, greatest) = FloatingPoint(kind, Overflow.SATURATE), kind.value
    lower, upper = ends_of(scheme.box(row_of(values)))
    for i, value in enumerate(values):
        exponent = max(math.frexp(value)[1] - 1, least) if value else least
        half = Fraction(2) ** (exponent - fraction - 1)
        assert lower[i] == min(Fraction(value) - half, Fraction(greatest)) if value > greatest else Fraction(value) - half
        assert upper[i] == max(Fraction(value) + half, -Fraction(greatest)) if value < -greatest else Fraction(value) + half


def all_values(scheme: OneFormat, values: FloatArray) -> FloatArray:
    """All legal values of a small format for one row of weights, by another way."""
    if isinstance(scheme, FloatingPoint):
        every = np.arange(256, dtype=np.uint8).view(TYPES[scheme.format]).astype(np.float64)
        return np.unique(every[np.isfinite(every)])
    size = np.abs(values)
    match scheme:
        case FixedPoint(m, n):
            return np.arange(-(2 ** (m + n)), 2 ** (m + n)) / 2.0**n
        case Integer():
            count = 2 ** (scheme.bits - 1) - 1
            return np.arange(-count, count + 1) * float(np.float32(size.max() / count))
        case PowersOfTwo():
            top = max(range(-60, 60), key=lambda e: (-abs(Fraction(2) ** e - Fraction(float(size.max()))), e))
            powers = 2.0 ** np.arange(top, top - 2 ** (scheme.bits - 1) + 1, -1)
            return np.unique([0.0, *powers, *-powers])
        case Ternary():
            a = float(
                np.float32(
                    math.fsum(size[size > 0.7 * (math.fsum(size) / size.size)])
                    / max(1, int((size > 0.7 * (math.fsum(size) / size.size)).sum()))
                )
            )
            return np.array([-a, 0.0, a])
        case _:
            a = float(np.float32(math.fsum(size) / size.size))
            return np.array([-a, a])


SMALL = [
    FloatingPoint(FloatFormat.E4M3, Overflow.SATURATE),
    FloatingPoint(FloatFormat.E5M2, Overflow.SATURATE),
    *FIXED,
    *(Integer(4, mode=mode) for mode in RoundingMode),
    PowersOfTwo(2),
    PowersOfTwo(4),
    Ternary(),
    Binary(),
]


@pytest.mark.parametrize("scheme", SMALL, ids=str)
@FEW
@given(
    values=st.lists(
        st.one_of(st.floats(-10, 10), st.integers(-64, 64).map(lambda n: n / 8), st.floats(-70000, 70000)),
        min_size=1,
        max_size=5,
    )
)
def test_code_points_are_all_the_legal_values_in_the_box(scheme: OneFormat, values: list[float]) -> None:
    if not any(abs(value) > 1e-6 for value in values):
        values = [1.0, *values]
    network = row_of(values)
    points, bounds = scheme.code_points(network), scheme.box(network).layers[0].weight
    every, copied = all_values(scheme, np.array(values)), copy_of(scheme, values)
    for i, value in enumerate(values):
        held = [v for v in every if bounds.contains(np.array([[v if j == i else w for j, w in enumerate(values)]]))]
        assert (points.least[0][0][0, i], points.greatest[0][0][0, i]) == (min(held), max(held))
        if not isinstance(scheme, FixedPoint | Integer) and not stored_arrays(network, scheme)[0].overflowed:
            nearest = min(abs(v - value) for v in every)
            assert abs(copied[i] - value) == nearest, "rounding is to nearest"


@pytest.mark.parametrize("form", [FloatFormat.E4M3, FloatFormat.E5M2], ids=lambda form: form.value)
def test_both_neighbours_of_a_tie_are_legal(form: FloatFormat) -> None:
    """Midway between two values of the format, around 0 too, either may be taken; the grid's ends are exactly these two."""
    scheme = FloatingPoint(form, Overflow.SATURATE)
    every = all_values(scheme, np.zeros(0))
    points = scheme.code_points(row_of((every[:-1] / 2 + every[1:] / 2).tolist()))
    assert points.least[0][0][0].tolist() == every[:-1].tolist()
    assert points.greatest[0][0][0].tolist() == every[1:].tolist()


def test_powers_of_two_by_hand() -> None:
    """Three bits: 0 and three powers. Greatest 1.5 is a tie of 1 and 2: 2. So 2, 1, 1/2; 0.25 is a tie of 0 and 1/2: 0."""
    assert copy_of(PowersOfTwo(3), [1.5, 0.25, 0.3, -0.7, -0.8, 1.4]) == [2.0, 0.0, 0.5, -0.5, -1.0, 1.0]
    assert copy_of(PowersOfTwo(3), [1.49, -1.2]) == [1.0, -1.0]


def test_ternary_and_binary_by_hand() -> None:
    """Mean size 1, so 2 and 1 count (above 0.7): a = 1.5. 0.8 is nearer to a, 0.75 is a tie."""
    assert copy_of(Ternary(), [2.0, -1.0, 0.5, 0.5]) == [1.5, -1.5, 0.0, 0.0]
    assert copy_of(Binary(), [2.0, -1.0, 0.0, -1.0]) == [1.0, -1.0, 1.0, -1.0]
    lower, upper = ends_of(Binary().box(row_of([2.5, -1.0, 0.0, -0.5])))
    assert (lower[0], upper[0]) == (Fraction(1), Fraction(7, 2)), (
        "2.5 saturates at 1, farther than half the distance of -1 and 1"
    )
    assert (lower[3], upper[3]) == (Fraction(-3, 2), Fraction(1, 2))


def test_channels_and_blocks_have_scales_of_their_own() -> None:
    weight = [[127.0, 12.7, 0.4], [1.27, 0.5, 0.004]]
    wholes = Integer(8, per_channel=True).copy(network_of(weight, [0.0, 0.0])).layers[0].weight
    np.testing.assert_array_equal(wholes[0], [127.0, 13.0, 0.0])
    hundredth = float(np.float32(1.27 / 127))
    np.testing.assert_array_equal(wholes[1], [127 * hundredth, 50 * hundredth, 0.0])
    blocks = Integer(8, block=2).copy(network_of(weight, [0.0, 0.0])).layers[0].weight
    np.testing.assert_array_equal(blocks[0], [127.0, 13.0, 127 * float(np.float32(0.4 / 127))])


def image_network() -> Network:
    """A convolution, a pool, and two dense layers."""
    rng = np.random.default_rng(5)
    convolution = Conv2d(rng.normal(size=(2, 3, 2, 2)), rng.normal(size=2), Activation.RELU, (3, 5, 5), (1, 1), (0, 0, 0, 0))
    pool = AveragePool2d((2, 4, 4), (2, 2), (2, 2))
    dense = Dense(rng.normal(size=(4, 8)), rng.normal(size=4), Activation.RELU)
    return Network((convolution, pool, dense, Dense(rng.normal(size=(3, 4)), rng.normal(size=3))), Output.SOFTMAX)


@pytest.mark.parametrize("scheme", [*EVERY, DYNAMIC_RANGE, Integer(8, bias=Bias.INT32, input_steps=(0.1, 0.2, 0.3))], ids=str)
def test_layers_of_images_and_pools(scheme: OneFormat) -> None:
    network = image_network()
    if scheme.bias is Bias.INT32 and len(getattr(scheme, "input_steps", ())) != 3:
        with pytest.raises(ShapeError, match="names 1 input steps, the network has 3"):
            scheme.box(network)
        return
    box, copy = scheme.box(network), scheme.copy(network)
    box.check_fits(network)
    assert box.contains_network(copy)
    assert box.contains(scheme.code_points(network).least)
    assert copy.layers[1].geometry == network.layers[1].geometry


def test_blocks_of_a_convolution_run_along_its_input_channels() -> None:
    layer = image_network().layers[0]
    copy = Integer(8, block=2).copy(image_network()).layers[0]
    for block in (slice(0, 2), slice(2, 3)):
        for place in np.ndindex(2, 2):
            entries = layer.weight[(1, block, *place)]
            step = float(np.float32(np.abs(entries).max() / 127))
            np.testing.assert_array_equal(copy.weight[(1, block, *place)], np.rint(entries / step) * step)


def test_biases_of_32_bits_have_the_product_of_both_steps() -> None:
    network = network_of([[1.27, 0.5]], [0.777])
    scheme = parse_scheme("int8-bias-int32@0.5")
    step = Fraction(float(np.float32(1.27 / 127))) / 2
    bias = Fraction(float(scheme.copy(network).layers[0].bias[0]))
    assert bias == exact_code(Fraction(0.777) / step, RoundingMode.NEAREST_EVEN) * step
    bounds = scheme.box(network).layers[0].bias
    assert bounds.upper.fractions()[0] == Fraction(0.777) + step / 2
    with pytest.raises(UnsupportedError, match="layer 1: biases of 32 bits need one scale"):
        Integer(8, block=2, bias=Bias.INT32, input_steps=(0.5,)).box(network_of([[1.0, 2.0, 3.0]]))


def test_zero_weights_give_a_bias_of_32_bits_no_step() -> None:
    scheme = Integer(8, per_channel=True, bias=Bias.INT32, input_steps=(0.5,))
    with pytest.raises(NumberError, match="layer 1: weights that are all 0 give their bias of 32 bits no step"):
        scheme.copy(network_of([[0.0, 0.0], [1.0, 2.0]], [1.0, 1.0]))
    copy = scheme.copy(network_of([[0.0, 0.0], [1.0, 2.0]], [0.0, 0.0]))
    assert copy.layers[0].bias.tolist() == [0.0, 0.0]


def test_dynamic_range_leaves_small_arrays_in_float() -> None:
    """1,024 elements are quantized, 1,023 are not, and biases never are."""
    rng = np.random.default_rng(0)
    layers = (Dense(rng.normal(size=(32, 32)), rng.normal(size=32)), Dense(rng.normal(size=(31, 32)), rng.normal(size=31)))
    network = Network((*layers[:1], *layers[1:]), Output.SOFTMAX)
    stored = stored_arrays(network, DYNAMIC_RANGE)
    assert [array.steps is not None for array in stored] == [True, False, False, False]
    assert DYNAMIC_RANGE.copy(network).layers[1].weight.tolist() == network.layers[1].weight.tolist()


@pytest.mark.parametrize("bits", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("per_channel", [False, True])
def test_half_step_is_what_it_was(bits: int, per_channel: bool) -> None:
    """The radius by its definition: max abs(p0) / (2 (2**(bits - 1) - 1)), rounded up to the next float."""
    network = image_network()
    for layer, box in zip(network.layers, HalfStep(bits, per_channel).around(network).layers, strict=True):
        for values, bounds, grouped in ((layer.weight, box.weight, per_channel), (layer.bias, box.bias, False)):
            if not values.size:
                continue
            axes = tuple(range(1, values.ndim)) if grouped else None
            size = np.abs(values).max(axis=axes, keepdims=True)
            radius = np.broadcast_to(up(size / (2 * (2.0 ** (bits - 1) - 1))), values.shape)
            for end, expected in ((bounds.lower, -radius), (bounds.upper, radius)):
                np.testing.assert_array_equal(end.head, Expansion.total(values, expected).head)
                np.testing.assert_array_equal(end.tail, Expansion.total(values, expected).tail)


def test_a_rounding_by_division_is_caught() -> None:
    """A broken copy of the kernel: the quotient's own rounding makes a tie of what lies beside one."""
    steps = np.random.default_rng(1).uniform(0.1, 1.0, size=2000)
    values = steps * 2.5  # rounded: some lie above the tie of 2 and 3, some below
    ratios = [Fraction(value) / Fraction(step) for value, step in zip(values.tolist(), steps.tolist(), strict=True)]
    expected = [exact_code(ratio, RoundingMode.NEAREST_EVEN) for ratio in ratios]
    codes = np.rint(placed(Uniform(steps, np.array(-127.0), np.array(127.0)), values) / steps)
    assert codes.tolist() == expected
    assert np.rint(values / steps).tolist() != expected


def test_rules_say_where_a_box_came_from() -> None:
    network = row_of([1.0, 2.0])
    assert Rounding(Integer(8)).around(network).rule == "every rounding to int8"
    assert HalfStep(8).around(network).rule == "every parameter within half a step of 8 bits per tensor"
    with pytest.raises(NumberError, match="bits is 1"):
        HalfStep(1)


def test_copy_is_one_choice_of_parameters() -> None:
    network = qrobust.load(MODELS / "iris.json")
    copy = Integer(4).copy(network)
    box = Copy(copy).around(network)
    box.check_fits(network)
    assert box.contains_network(copy)
    assert not box.contains_network(network)
    with pytest.raises(ShapeError, match="the second network has weights"):
        Copy(row_of([1.0])).around(network)


def test_a_copy_outside_the_box_is_named() -> None:
    network = row_of([127.0, 3.2, -5.1])
    moved = row_of([127.0, 3.9, -5.9])
    found = outside(Integer(8).box(network), moved)
    assert [(f.layer, f.what, f.count, f.index, f.value) for f in found] == [(1, "weights", 2, (0, 2), -5.9)]
    assert found[0].distance == pytest.approx(0.3)
    assert str(found[0]) == "layer 1, weights: 2 of its parameters outside, the farthest -5.9 at (0, 2), by 0.3"
    assert outside(Integer(8).box(network), network) == []
    nearly = row_of([127.5, math.nextafter(3.7, 9), -5.1])
    assert outside(Integer(8).box(network), row_of([127.5, 3.7, -5.6])) == []
    assert len(outside(Integer(8).box(network), nearly)) == 1, "the end is decided exactly"
    with pytest.raises(ShapeError, match="they are no copies of each other"):
        outside(Integer(8).box(network), row_of([1.0]))


TEXTS = [
    "int8",
    "int8-per-channel",
    "int4-block32",
    "int8-asymmetric",
    "int16-asymmetric-per-channel-half-away-bias-same",
    "int8-float64-scale-bias-same",
    "int8-either",
    "int8-bias-int32@0.0039,1e-05",
    "int8-fewest512",
    "tflite-dynamic-range",
    "fp16",
    "bf16-saturate",
    "fp8-e4m3",
    "fp8-e5m2-saturate-bias-float",
    "q3.4-floor-wrap",
    "q0.7-nearest-even-saturate-bias-float",
    "pow2",
    "pow2-bits5-per-channel",
    "ternary",
    "binary-per-channel",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back(text: str) -> None:
    scheme = parse_scheme(text)
    assert str(scheme) == text
    assert parse_scheme(f" {text.upper()} ") == scheme


@pytest.mark.parametrize("scheme", EVERY, ids=str)
def test_every_scheme_has_a_text(scheme: OneFormat) -> None:
    assert parse_scheme(str(scheme)) == scheme


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the scheme '' is not known: int8"),
        ("int99", "bits is 99"),
        ("int", "is not known: int8"),
        ("int8x", "is not known: int8"),
        ("int1", "bits is 1, it must lie between 2 and 32"),
        ("int8-wrap", "'wrap' in the scheme 'int8-wrap' is not known: after the format, asymmetric, per-channel"),
        ("int8-", "'' in the scheme 'int8-' is not known"),
        ("int8-block0", "block is 0"),
        ("int8-block4-per-channel", "without per-channel"),
        ("int8-per-channel-per-channel", "says twice what its per channel is"),
        ("int8-bias-int32", "needs the step of each layer's input"),
        ("int8@0.5", "needs the step of each layer's input"),
        ("int8-bias-int32@x", "are no numbers"),
        ("int8-bias-int32@-1", "must be finite numbers above 0"),
        ("q3.4@1", "takes no input steps"),
        ("q3.4-refuse", "fixed point saturates or wraps"),
        ("q30.4", "must have 2 to 32"),
        ("q3", "is not known: int8"),
        ("fp16-wrap", "fp16 does not wrap"),
        ("fp16-per-channel", "'per-channel' in the scheme"),
        ("fp8", "is not known: int8"),
        ("pow2-bits9", "2 to 8 bits"),
        ("ternary-bias-int32", "go with integer weights"),
    ],
)
def test_a_wrong_text_gets_one_line(text: str, message: str) -> None:
    with pytest.raises(QRobustError, match=message.replace("(", "\\(")) as raised:
        parse_scheme(text)
    assert "\n" not in str(raised.value)


def test_numbers_too_large_for_a_format_are_refused_with_their_layer() -> None:
    for scheme, value, message in (
        (Integer(8), 1e300, "layer 1: values up to 1e\\+300 need a scale beyond float32"),
        (Integer(8, scale=ScaleType.FLOAT64), 1.797e308, "layer 1: 1.797e\\+308 is too near the end of float64"),
        (Binary(), 1.7e308, "layer 1: the mean size of the numbers: their sum is beyond float64"),
    ):
        with pytest.raises(NumberError, match=message):
            scheme.box(network_of([[value, value]], [0.0]))


def test_either_reaches_both_neighbours() -> None:
    """Scale 1: 0.3 may go to 0 or 1, as code points and as the ends of the box say."""
    scheme, network = Integer(8, mode=RoundingMode.EITHER), row_of([127.0, 0.3])
    points = scheme.code_points(network)
    assert (points.least[0][0][0, 1], points.greatest[0][0][0, 1]) == (0.0, 1.0)
    assert points.greatest[0][0][0, 0] == 127.0, "there is no code 128"
    vertex = ((np.array([[127.0, 1.3]]), np.array([0.0])),)
    assert scheme.snapped(network, vertex)[0][0].tolist() == [[127.0, 1.0]]
    assert isinstance(scheme.box(network).layers[0], LayerBox)


def test_legal_values_of_one_array() -> None:
    least, greatest = legal(Uniform(np.array(1.0), np.array(-2.0), np.array(2.0)), np.array([0.5, 0.4, 9.0]))
    assert (least.tolist(), greatest.tolist()) == ([0.0, 0.0, 2.0], [1.0, 0.0, 2.0])


def test_a_copy_next_to_a_tie_stays_within_half_a_step() -> None:
    """Codes of 31 bits times steps of 53: the product's own rounding may cross the end of half a step, on either side."""
    rng = np.random.default_rng(0)
    steps, codes = rng.uniform(1, 2, 2000), rng.integers(2**30, 2**31 - 2, 2000)
    sides = np.repeat([1.0, -1.0], 1000)
    grid = Uniform(steps, np.array(1.0 - 2**31), np.array(2.0**31 - 1))
    values = sides * steps * (codes + 0.5)
    over = [exact_distance(v, c) > Fraction(s) / 2 for v, c, s in zip(values, grid.rounded(values), steps, strict=True)]
    assert {bool(side > 0) for side, one in zip(sides, over, strict=True) if one} == {True, False}, "else nothing is tested"
    copies = placed(grid, values)
    assert all(exact_distance(v, c) <= Fraction(s) / 2 for v, c, s in zip(values, copies, steps, strict=True))


def test_figures_of_one_array() -> None:
    """The step of two values is their distance; an error names the number that is too large, and the greatest there is."""
    assert Signs(np.array(0.75)).steps(np.zeros(2)).tolist() == [1.5, 1.5]
    grid = Floating(10, np.array([-14, -14]), np.array([65504.0, 100.0]), Overflow.REFUSE)
    with pytest.raises(NumberError, match=r"^70000 is beyond the format's greatest number 65504 "):
        grid.rounded(np.array([-70000.0, 1.0]))
    with pytest.raises(NumberError, match=r"^1\.79769e\+308 is too near the end of float64"):
        legal(Uniform(np.array(2.0**1000), np.array(-(2.0**24)), np.array(2.0**24)), np.array([-1.7976931348623157e308, 1.0]))


def exact_distance(first: float, second: float) -> Fraction:
    return abs(Fraction(float(first)) - Fraction(float(second)))


def test_one_scheme_a_layer() -> None:
    """Each layer's box and copy are those of its own scheme; one that stays as it is stored does not move."""
    net = load(MODELS / "iris.json")
    scheme = parse_scheme("int4-per-channel / float")
    assert str(scheme) == "int4-per-channel/float"
    assert parse_scheme(str(scheme)) == scheme
    own, stored = scheme.box(net), parse_scheme("int4-per-channel").box(net)
    assert (own.layers[0].weight.lower.head == stored.layers[0].weight.lower.head).all()
    assert (own.layers[1].weight.interval.width == 0).all()
    copy = scheme.copy(net)
    assert own.contains_network(copy)
    assert (copy.layers[1].weight == net.layers[1].weight).all()
    assert (copy.layers[0].weight == parse_scheme("int4-per-channel").copy(net).layers[0].weight).all()


@pytest.mark.parametrize(
    ("text", "says"), [("int8/", "not known"), ("int8-bias-int32@0.1/int8", "needs the steps"), ("int8/what", "not known")]
)
def test_schemes_of_layers_that_are_refused(text: str, says: str) -> None:
    with pytest.raises(NumberError, match=says):
        parse_scheme(text)


def test_a_scheme_for_each_layer_with_parameters() -> None:
    with pytest.raises(ShapeError, match="3 schemes, the network has 2 layers"):
        parse_scheme("int8/int8/int8").box(load(MODELS / "iris.json"))
    with pytest.raises(NumberError, match="no scheme is given"):
        PerLayerScheme(())
