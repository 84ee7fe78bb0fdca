"""Is dyadic arithmetic exact, to the last bit of the smallest subnormal, and its matrix product whatever is multiplied?"""

from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qrobust import dyadic
from qrobust.answers import Counterexample
from qrobust.check import Replay
from qrobust.dyadic import EXACT_BITS, MOST_PARTS, MOST_TERMS, Dyadic, product, zeros
from qrobust.errors import NumberError, ShapeError
from qrobust.exact import ExactArithmetic, to_exact
from qrobust.interval import TINY, FloatArray
from qrobust.layers import Activation, Conv2d, Dense, MaxPool2d
from qrobust.network import Network, Output, logits, perturbed_logits

HUGE = np.finfo(np.float64).max
Objects = npt.NDArray[np.object_]


def fractions(values: npt.ArrayLike) -> Objects:
    """The numbers that floats store, one by one: what `Dyadic` must agree with."""
    array = np.asarray(values, dtype=np.float64)
    return np.asarray(np.frompyfunc(Fraction, 1, 1)(array.astype(object)), dtype=object).reshape(array.shape)


def equal(found: Dyadic, wanted: Objects) -> bool:
    assert found.shape == wanted.shape
    return bool(np.all(found.fractions() == wanted))


ARRAYS: dict[str, FloatArray] = {
    "normal": np.random.default_rng(0).normal(size=(5, 4)),
    "single precision": np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32).astype(np.float64),
    "small integers": np.random.default_rng(2).integers(-8, 9, size=(5, 4)).astype(np.float64),
    "powers of two": np.ldexp(1.0, np.arange(-10, 10)).reshape(5, 4),
    "subnormal": np.array([[TINY, -TINY, 3 * TINY, 0.0], [2.0**-1022, 7 * TINY, -(2.0**-1030), 5e-320]]),
    "huge": np.array([[HUGE, -HUGE], [2.0**1023, np.nextafter(HUGE, 0.0)]]),
    "huge spread": np.array([[1e300, 1e-300], [-1e-300, 1.0], [np.pi, -1e300]]),
    "whole range": np.array([[HUGE, TINY], [-TINY, 1.0], [-HUGE, 3 * TINY]]),
    "zeros": np.array([[0.0, -0.0], [0.0, 0.0]]),
    "one": np.array([[1.0]]),
    "one subnormal": np.array([[TINY]]),
}
each_array = pytest.mark.parametrize("values", ARRAYS.values(), ids=list(ARRAYS))


def relu(values: Any) -> Any:
    """max(value, 0), by Python's own comparison."""
    return np.frompyfunc(lambda value: max(value, Fraction(0)), 1, 1)(values)


@each_array
def test_floats_are_taken_exactly(values: FloatArray) -> None:
    assert equal(Dyadic.of(values), fractions(values))
    assert equal(Dyadic.of(values.T), fractions(values.T))
    assert equal(Dyadic.of(values)[:, 1:], fractions(values[:, 1:]))
    assert equal(Dyadic.of(values)[0], fractions(values[0]))


@each_array
def test_the_exponent_is_the_greatest_that_fits(values: FloatArray) -> None:
    integers = Dyadic.of(values).integers
    assert all(isinstance(value, int) for value in integers.flat)
    assert not integers.any() or any(int(value) % 2 for value in integers.flat)


@each_array
def test_fractions_are_taken_exactly(values: FloatArray) -> None:
    assert equal(Dyadic.of_fractions(fractions(values)), fractions(values))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(NumberError, match="no dyadic number"):
        Dyadic.of([1.0, value])


@pytest.mark.parametrize("value", [Fraction(1, 3), Fraction(5, 6), Fraction(1, 2**60 + 1)])
def test_what_is_not_dyadic_is_refused(value: Fraction) -> None:
    with pytest.raises(NumberError, match="power of two"):
        Dyadic.of_fractions([Fraction(1), value])


def test_the_caller_may_change_the_array_afterwards() -> None:
    values = np.array([[1.0, 0.5]])
    number = Dyadic.of(values)
    values[:] = TINY
    assert equal(number, fractions([[1.0, 0.5]]))


def both(values: FloatArray) -> list[Dyadic]:
    """An array that remembers its floats, and one that holds integers only."""
    return [Dyadic.of(values), Dyadic.of_fractions(fractions(values))]


OPERATIONS: dict[str, tuple[Callable[[Dyadic, Dyadic], Dyadic], Callable[[Objects, Objects], Objects]]] = {
    "add": (operator.add, operator.add),
    "subtract": (operator.sub, operator.sub),
    "multiply": (operator.mul, operator.mul),
    "maximum": (Dyadic.maximum, np.maximum),
    "minimum": (Dyadic.minimum, np.minimum),
}


@pytest.mark.parametrize("name", OPERATIONS)
@each_array
def test_operations_are_those_of_rationals(name: str, values: FloatArray) -> None:
    apply, oracle = OPERATIONS[name]
    other = np.resize(ARRAYS["whole range"], values.shape)
    for first in both(values):
        for second in both(other):
            assert equal(apply(first, second), np.asarray(oracle(fractions(values), fractions(other)), dtype=object))
            row = np.asarray(oracle(fractions(values), fractions(other)[0]), dtype=object)
            assert equal(apply(first, second[0]), row)


@each_array
def test_functions_of_one_array_are_those_of_rationals(values: FloatArray) -> None:
    exact = fractions(values)
    for number in both(values):
        assert equal(-number, -exact)
        assert equal(number.T, exact.T)
        assert equal(number.relu(), relu(exact))
        assert equal((-number).relu(), relu(-exact))
        assert equal(number.sum(axis=0), exact.sum(axis=0))
        assert equal(number.sum(axis=1), exact.sum(axis=1))
        assert number.signs().tolist() == np.sign(values).tolist()
        assert number.zero == (not values.any())


@each_array
@pytest.mark.parametrize("bits", [1, 16, 21, 26])
def test_limbs_are_short_and_add_up(values: FloatArray, bits: int) -> None:
    for number in both(values):
        total = np.full(values.shape, Fraction(0), dtype=object)
        for place, limb in number.limbs(bits).items():
            assert limb.any()
            assert np.all(limb == np.trunc(limb))
            assert np.all(np.abs(limb) < 2**bits)
            total = total + fractions(limb) * Fraction(2) ** (number.exponent + place * bits)
        assert np.all(total == fractions(values))


def test_limbs_are_cut_once() -> None:
    number = Dyadic.of(ARRAYS["normal"])
    assert number.limbs(21) is number.limbs(21)


# Products.


def exactly(first: Objects, second: Objects) -> Objects:
    """The product by its definition."""
    return np.asarray(first @ second, dtype=object)


@pytest.mark.parametrize("first", ARRAYS.values(), ids=list(ARRAYS))
@pytest.mark.parametrize("second", ARRAYS.values(), ids=list(ARRAYS))
def test_products_are_those_of_rationals(first: FloatArray, second: FloatArray) -> None:
    right = np.resize(second, (first.shape[1], 3))
    wanted = exactly(fractions(first), fractions(right))
    for a in both(first):
        for b in both(right):
            assert equal(product(a, b), wanted)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 5), (6, 1, 4), (3, 65, 1), (1, 64, 1), (2, 33, 3)])
def test_random_products(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(sum(shape))
    m, k, n = shape
    for exponents in (1, 30, 600):
        first = np.ldexp(rng.normal(size=(m, k)), rng.integers(-exponents, exponents, size=(m, k)))
        second = np.ldexp(rng.normal(size=(k, n)), rng.integers(-exponents, exponents, size=(k, n)))
        assert equal(product(Dyadic.of(first), Dyadic.of(second)), exactly(fractions(first), fractions(second)))


def test_what_cancels_leaves_the_last_bit() -> None:
    """w x - w next(x) is w times one unit in the last place; floats give 0, or noise beside 1e300."""
    x = 1.0 + 2.0**-52
    first = np.array([[1e300, 1e300, 1.0, -1.0, TINY]])
    second = np.array([[1.0], [-1.0], [x], [1.0], [1.0]])
    assert equal(product(Dyadic.of(first), Dyadic.of(second)), np.array([[Fraction(1, 2**52) + Fraction(TINY)]]))
    rng = np.random.default_rng(5)
    half = rng.normal(size=(1, 40)) * 1e150
    row = np.concatenate([half, -half, [[1e-200]]], axis=1)
    column = np.concatenate([half, half, [[1e-100]]], axis=1).T
    assert equal(product(Dyadic.of(row), Dyadic.of(column)), np.array([[Fraction(1e-200) * Fraction(1e-100)]]))


def full(terms: int, bits: int) -> tuple[FloatArray, FloatArray]:
    """Two vectors of the greatest limbs, whose product is terms (2**bits - 1)**2; one entry makes that odd."""
    first, second = (np.full(shape, 2.0**bits - 1) for shape in ((1, terms), (terms, 1)))
    return first, second


def budget(terms: int) -> int:
    """The greatest number of bits that the definition allows: the sum of terms full products is at most 2**53."""
    bits = 1
    while terms * (2 ** (bits + 1) - 1) ** 2 <= 2**EXACT_BITS:
        bits += 1
    return bits


TERMS = [1, 2, 3, 4, 5, 784, 1023, 1024, 1025, 2047, 2048, 2049, 4000, 4095, 4096, 4097, 2**15 - 1, 2**15 + 1]


@pytest.mark.parametrize("terms", TERMS)
def test_full_limbs_fit(terms: int) -> None:
    for bits in (budget(terms) - 1, budget(terms), budget(terms) + 1, 53):
        first, second = full(terms, bits)
        wanted = np.array([[terms * (2**bits - 1) ** 2]], dtype=object)
        for sign in (1, -1):
            assert equal(product(Dyadic.of(float(sign) * first), Dyadic.of(second)), sign * wanted)


def wide_budget(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """Break the kernel: give each limb so many bits more than fit."""
    monkeypatch.setattr(dyadic, "EXACT_BITS", EXACT_BITS + 2 * bits)


@pytest.mark.parametrize("terms", [2, 4, 5, 784, 1024, 4000, 4096])
def test_one_bit_too_many_is_caught(terms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken copy sums what does not fit into 53 bits; full limbs of its own size show it."""
    bits = (EXACT_BITS - (terms - 1).bit_length()) // 2 + 1
    first, second = full(terms, bits)
    first[0, 0] -= 1  # an odd number of odd products, or one even among them: the sum must not be a round number
    wanted = np.array([[sum(int(a) * int(b) for a, b in zip(first[0], second[:, 0], strict=True))]], dtype=object)
    assert equal(product(Dyadic.of(first), Dyadic.of(second)), wanted)
    wide_budget(monkeypatch, 1)
    broken = product(Dyadic.of(first), Dyadic.of(second))
    assert int(wanted[0, 0]) > 2**EXACT_BITS
    assert not equal(broken, wanted)


def test_numbers_longer_than_a_thousand_limbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the sums of one shift could pass 2**63 they are Python's; int64 there is a broken copy."""
    terms, limbs = 2, MOST_PARTS + 60
    bits = (EXACT_BITS - 1) // 2
    assert limbs * terms * (2**bits - 1) ** 2 >= 2**63
    value = 2 ** (bits * limbs) - 1
    first = Dyadic(np.full((1, terms), value, dtype=object), 0)
    second = Dyadic(np.full((terms, 1), value, dtype=object), 0)
    # The limbs of full numbers are the same at all places: give them, rather than cut a million digits.
    for number in (first, second):
        number._limbs[bits] = dict.fromkeys(range(limbs), np.full(number.shape, 2.0**bits - 1))
    wanted = np.array([[terms * value * value]], dtype=object)
    assert np.all(product(first, second).integers == wanted)
    monkeypatch.setattr(dyadic, "MOST_PARTS", 2 * limbs)
    with np.errstate(over="ignore"):
        assert np.any(product(first, second).integers != wanted)


def test_too_many_terms_are_refused() -> None:
    row = np.lib.stride_tricks.as_strided(np.zeros(1), (1, MOST_TERMS + 1), (0, 0))
    with pytest.raises(NumberError, match="too many"):
        product(Dyadic.of(row), Dyadic.of(row.T))


@pytest.mark.parametrize(("first", "second"), [((2, 3), (2, 3)), ((3,), (3, 1)), ((1, 3), (3,)), ((1, 1, 1), (1, 1))])
def test_shapes_that_do_not_fit_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="cannot be multiplied"):
        product(zeros(first), zeros(second))


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
def test_an_empty_product_is_a_sum_of_nothing(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    assert equal(product(zeros((m, k)), zeros((k, n))), np.full((m, n), Fraction(0), dtype=object))


def test_convolutions_are_replayed_in_big_integers() -> None:
    rng = np.random.default_rng(16)
    for count in range(20):
        first = Conv2d(rng.normal(size=(2, 2, 2, 3)), rng.normal(size=2), Activation.RELU, (2, 6, 5), (1, 2), (1, 0, 0, 2))
        pool = MaxPool2d(first.output_shape, (2, 2), (1, 1))
        layers = (first, pool, Dense(rng.normal(size=(2, pool.outputs)), rng.normal(size=2)))
        network = Network(layers, Output.SOFTMAX)
        x = tuple(Fraction(v) for v in (rng.normal(size=60) * 10.0 ** rng.integers(-9, 9)).tolist())
        moved = tuple((w + rng.normal(size=w.shape), b * 3) for w, b in ((layer.weight, layer.bias) for layer in layers))
        replay = Replay(network, Counterexample(x, moved))
        assert replay._input is not None
        exact = to_exact(list(x))
        stored = logits(network, exact, ExactArithmetic())
        changed = perturbed_logits(network, [(to_exact(w), to_exact(b)) for w, b in moved], exact, ExactArithmetic())
        assert list(replay.nominal()) == list(stored), count
        assert list(replay.perturbed()) == list(changed), count
