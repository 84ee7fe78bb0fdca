"""Linear bounds: above every exact value, whatever the multipliers; as tight as they should be; never crossing others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from flint import arb

from qrobust import interval
from qrobust.answers import Counterexample
from qrobust.backends.deep import levels_at
from qrobust.bounds import substitution
from qrobust.bounds.attack import climb, forward, parameters_at
from qrobust.bounds.envelopes import ENVELOPES
from qrobust.bounds.ibp import INTERVALS
from qrobust.bounds.linear import Tuning, first_alpha, pre_activations, refreshed, top_bounds
from qrobust.bounds.stages import Kernel, interval_step, stages_of
from qrobust.bounds.substitution import Above, Levels, backward
from qrobust.bounds.untuned import untuned
from qrobust.check import Replay
from qrobust.domains import ParameterBox
from qrobust.errors import ResourceError
from qrobust.interval import FloatArray, Interval, round_fraction_up
from qrobust.layers import AveragePool2d, Conv2d, MaxPool2d
from qrobust.network import Activation, Dense, FloatArithmetic, Network, Output, activate
from qrobust.perturbations import Absolute, HalfStep
from tests.conftest import RandomNetwork

SHAPES = [(3, 4, 2), (2, 4, 3, 2), (3, 3, 4, 3, 3)]


def uneven(network: Network, rng: np.random.Generator) -> ParameterBox:
    """A box whose radii differ within every row."""
    pairs = [(layer.weight, layer.bias) for layer in network.layers]
    sides = [[(rng.random(w.shape) * 0.2, rng.random(b.shape) * 0.2) for w, b in pairs] for _ in range(2)]
    lower = [(w - dw, b - db) for (w, b), (dw, db) in zip(pairs, sides[0], strict=True)]
    upper = [(w + dw, b + db) for (w, b), (dw, db) in zip(pairs, sides[1], strict=True)]
    return ParameterBox.from_arrays(lower, upper)


def boxes(network: Network, rng: np.random.Generator) -> list[ParameterBox]:
    return [Absolute(0.1).around(network), HalfStep(4).around(network), HalfStep(4, True).around(network), uneven(network, rng)]


def attained(network: Network, box: ParameterBox, x: FloatArray, rng: np.random.Generator, nu: FloatArray) -> list[float]:
    """Exact values of nu . logits at random corners and at those that attacks climb to, rounded down."""
    levels, start = levels_at(network, box, x[None], whole=True)
    bounds = pre_activations(levels, start)
    rows = np.repeat(nu[None], 12, axis=0)
    ends = [np.where(rng.random((12, z.shape[1])) < 0.5, -1.0, 1.0) for z in bounds]
    found = climb(levels, start, rows, np.zeros(12), ends)
    values = []
    for positions in (ends, found.positions):
        for row in range(12):
            chosen = parameters_at(network, box, x, [p[row] for p in positions], nu)
            assert chosen is not None
            assert box.contains(chosen)
            logits = Replay(network, Counterexample(tuple(map(Fraction, x.tolist())), chosen)).perturbed()
            total = sum(
                (Fraction(a) * b for a, b in zip(nu.tolist(), [_fraction(v) for v in logits], strict=True)), Fraction(0)
            )
            values.append(interval.round_fraction_down(total))
    return values


def _fraction(value: object) -> Fraction:
    if isinstance(value, arb):
        return Fraction(int(value.lower().fmpq().p), int(value.lower().fmpq().q))
    return Fraction(int(value.p), int(value.q))  # type: ignore[attr-defined]


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("sizes", SHAPES)
def test_any_multipliers_give_a_bound(activation: Activation, sizes: tuple[int, ...], random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(sum(sizes))
    network = random_network(rng, sizes, activation)
    for box in boxes(network, rng):
        x = rng.normal(size=sizes[0])
        nu = rng.normal(size=sizes[-1])
        levels, start = levels_at(network, box, x[None], whole=True)
        bounds = pre_activations(levels, start, Tuning(3))
        sizes_met = levels.sizes(bounds)
        above = Above.of_rows(levels.stages[-1], np.repeat(nu[None], 4, axis=0), np.zeros(4), sizes_met[-1])
        top = levels.top
        alpha = [rng.random((4, z.shape[1])) for z in bounds]
        beta = [rng.normal(size=(4, z.shape[1])) for z in bounds]
        given = [10 * rng.normal(size=(4, z.shape[1])) for z in bounds]
        uppers = [
            backward(levels, top, above, bounds, sizes_met).upper,
            backward(levels, top, above, bounds, sizes_met, alpha=alpha).upper,
            backward(levels, top, above, bounds, sizes_met, alpha=alpha, beta=beta).upper,
            backward(levels, top, above, bounds, sizes_met, given=given).upper,
            untuned(levels, top, above, bounds, np.zeros(4, dtype=np.intp), sizes_met),
            top_bounds(levels, bounds, nu[None], np.zeros(1), np.zeros(1, dtype=np.intp), Tuning(10)),
        ]
        least = min(float(upper.min()) for upper in uppers)
        assert max(attained(network, box, x, rng, nu)) <= least


@pytest.mark.parametrize("activation", Activation)
def test_the_short_way_is_the_long_way_untuned(activation: Activation, random_network: RandomNetwork) -> None:
    """Several boxes, several objectives each; at zero-width and stable ranges too."""
    rng = np.random.default_rng(21)
    for sizes in SHAPES:
        network = random_network(rng, sizes, activation)
        for box in boxes(network, rng):
            levels, start = levels_at(network, box, rng.normal(size=(5, sizes[0])), whole=True)
            bounds = pre_activations(levels, start)
            bounds = [Interval(np.where(rng.random(z.shape) < 0.2, z.upper, z.lower), z.upper) for z in bounds]
            met, own = levels.sizes(bounds), rng.integers(0, 5, size=30)
            above = Above.of_rows(levels.stages[-1], rng.normal(size=(30, sizes[-1])), np.zeros(30), met[-1][own])
            alpha = [first_alpha(z, 5)[own] for z in bounds]
            long = backward(levels, levels.top, above, [z[own] for z in bounds], [s[own] for s in met], alpha=alpha).upper
            short = untuned(levels, levels.top, above, bounds, own, met)
            assert (np.abs(short - long) <= 1e-11 * (1 + np.abs(long))).all()


@pytest.mark.parametrize("activation", Activation)
def test_pre_activations_hold_what_is_reached(activation: Activation, random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(3)
    network = random_network(rng, (3, 5, 4, 4, 2), activation)
    for box in boxes(network, rng):
        points = rng.normal(size=(5, 3))
        levels, start = levels_at(network, box, points, whole=True)
        for tuning in (Tuning(0), Tuning(5)):
            bounds = pre_activations(levels, start, tuning)
            ends = [np.where(rng.random(z.shape) < 0.5, -1.0, 1.0) for z in bounds]
            for z, reached in zip(bounds, forward(levels, start, ends), strict=True):
                slack = 1e-12 * (1 + np.abs(reached))
                assert (z.lower <= reached + slack).all()
                assert (reached <= z.upper + slack).all()


def test_one_hidden_layer_is_exact(random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(4)
    for _ in range(10):
        network = random_network(rng, (3, 6, 3))
        box, x, nu = Absolute(0.3).around(network), rng.random(3), rng.normal(size=3)
        levels, start = levels_at(network, box, x[None], whole=True)
        upper = top_bounds(levels, pre_activations(levels, start), nu[None], np.zeros(1), np.zeros(1, dtype=np.intp), Tuning(0))
        best = max(attained(network, box, x, rng, nu))
        assert best <= upper[0] <= best + 1e-9 * (1 + abs(best))


@pytest.mark.parametrize("activation", Activation)
def test_tighter_boxes_never_loosen_intervals(activation: Activation, random_network: RandomNetwork) -> None:
    """Boxes of parameters that shrink, and boxes of inputs that shrink: interval bounds shrink with them, float by float."""
    rng = np.random.default_rng(5)
    network = random_network(rng, (3, 5, 4, 3), activation)
    x = rng.random((4, 3))
    before: list[Interval] | None = None
    for delta, width in ((0.4, 0.3), (0.4, 0.1), (0.2, 0.1), (0.1, 0.0), (0.05, 0.0), (0.0, 0.0)):
        h, found = Interval(x - width, x + width), []
        for stage in stages_of(network, Absolute(delta).around(network)):
            z = interval_step(stage, h)
            found.append(z)
            h = activate(stage.activation, z, INTERVALS)
        if before is not None:
            for new, old in zip(found, before, strict=True):
                assert (old.lower <= new.lower).all()
                assert (new.upper <= old.upper).all()
                assert (new.width < old.width).all()
        before = found


@pytest.mark.parametrize("activation", Activation)
def test_tighter_boxes_never_loosen_linear_bounds_at_fixed_slopes(
    activation: Activation, random_network: RandomNetwork
) -> None:
    """With the multipliers held, the bound of a smaller box, from the smaller ranges of its levels, is no greater.

    The rounding is of the size of the bounds' own; at slopes that are chosen anew for each box the law need not hold.
    """
    rng = np.random.default_rng(11)
    for _ in range(5):
        network = random_network(rng, (3, 6, 5, 4, 3), activation)
        x, nu = rng.normal(size=(1, 3)), rng.normal(size=(6, 3))
        given: list[FloatArray] | None = None
        before: FloatArray | None = None
        for delta in (0.3, 0.2, 0.1, 0.05, 0.01, 0.0):
            levels = Levels(Activation.LINEAR, stages_of(network, Absolute(delta).around(network)))
            bounds = [Interval.point(x)]
            for number, stage in enumerate(levels.stages[:-1]):
                bounds.append(interval_step(stage, activate(levels.activation(number), bounds[-1], INTERVALS)))
            sizes = levels.sizes(bounds)
            above = Above.of_rows(levels.stages[-1], nu, np.zeros(6), sizes[-1])
            if given is None:
                alpha = [rng.random((6, z.shape[1])) for z in bounds]
                given = [step.nu for step in backward(levels, levels.top, above, bounds, sizes, alpha=alpha).steps]
            upper = backward(levels, levels.top, above, bounds, sizes, given=given).upper
            if before is not None:
                assert (upper <= before + 1e-13 * (1 + np.abs(before))).all()
                assert (upper < before - 1e-6).any()
            before = upper


@pytest.mark.parametrize(
    "rule",
    [
        lambda levels, above, start, sizes: backward(levels, 1, above, [start], sizes).upper,
        lambda levels, above, start, sizes: untuned(levels, 1, above, [start], np.zeros(1, dtype=np.intp), sizes),
    ],
)
def test_cancellation_is_covered_by_the_slack(rule: Callable[..., FloatArray], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of large weights that nearly cancel: without its slack the bound is below the exact value."""
    rng = np.random.default_rng(6)
    failures = 0
    for broken in (False, True):
        if broken:
            for module in (substitution, sys.modules[untuned.__module__]):
                monkeypatch.setattr(module, "rounding", lambda terms, sizes: np.zeros_like(sizes))
                monkeypatch.setattr(module, "up", lambda values: values)
        for _ in range(100):
            row = rng.normal(size=50) * 1e8
            weight = np.stack([row, row * (1 + 1e-12 * rng.normal(size=50))])
            network = Network((Dense(weight, rng.normal(size=2)),), Output.SOFTMAX)
            box, x, nu = Absolute(0.0).around(network), rng.normal(size=50), np.array([1.0, -1.0])
            levels, start = levels_at(network, box, x[None], whole=True)
            sizes = levels.sizes([start])
            above = Above.of_rows(levels.stages[0], nu[None], np.zeros(1), sizes[1])
            upper = float(rule(levels, above, start, sizes)[0])
            first, second = Replay(network, Counterexample(tuple(map(Fraction, x.tolist())), ())).nominal()
            exact = _fraction(first - second)
            if broken:
                failures += exact > Fraction(upper)
            else:
                assert exact <= Fraction(upper)
    assert failures > 0


@pytest.mark.parametrize("activation", Activation)
def test_a_conjugate_is_the_greatest_of_its_function(activation: Activation) -> None:
    rng = np.random.default_rng(7)
    shape = (40, 5)
    rise = rng.normal(size=shape)
    fall = rise - rng.random(shape)
    nu = rng.normal(size=shape) * rng.choice([0.0, 0.3, 1.0, 30.0], size=shape)
    low = rng.normal(size=shape) * 3
    z = Interval(low, low + rng.random(shape) * rng.choice([0.0, 1e-9, 1.0, 20.0], size=shape))
    rule = ENVELOPES[activation]
    for multipliers in (nu, rule.slopes(rise, fall, z, None), rule.slopes(rise, fall, z, rng.random(shape))):
        value, place, _ = rule.conjugate(rise, fall, multipliers, z)
        assert ((z.lower <= place) & (place <= z.upper)).all()
        sample = z.lower[..., None] + np.linspace(0, 1, 4001) * z.width[..., None]
        sample = np.concatenate([sample, np.clip(0.0, z.lower, z.upper)[..., None]], axis=2)
        h = activate(activation, sample, FloatArithmetic())
        above = rise[..., None] * np.maximum(h, 0.0) + fall[..., None] * np.minimum(h, 0.0)
        greatest = (above - multipliers[..., None] * sample).max(axis=2)
        size = 1 + np.abs(rise) + np.abs(multipliers) * np.maximum(np.abs(z.lower), np.abs(z.upper))
        assert (greatest <= value + 1e-12 * size).all()
        assert (value <= greatest + 1e-3 * size).all()


def pick(rng: np.random.Generator, low: FloatArray, high: FloatArray) -> FloatArray:
    """Either end of each parameter."""
    return np.where(rng.random(low.shape) < 0.5, low, high)


def image_network(rng: np.random.Generator) -> Network:
    convolution = Conv2d(rng.normal(size=(2, 1, 2, 2)), rng.normal(size=2), Activation.RELU, (1, 5, 5))
    pool = MaxPool2d(convolution.output_shape, (2, 2), (2, 2))
    again = Conv2d(rng.normal(size=(2, 2, 1, 1)), rng.normal(size=2), Activation.RELU, pool.output_shape)
    mean = AveragePool2d(again.output_shape, (2, 2), (2, 2))
    return Network(
        (convolution, pool, again, mean, Dense(rng.normal(size=(3, mean.outputs)), rng.normal(size=3))), Output.SOFTMAX
    )


def test_convolutions_and_pools_are_enclosed() -> None:
    rng = np.random.default_rng(8)
    widths = []
    for _ in range(3):
        network = image_network(rng)
        box = Absolute(0.02).around(network)
        x = rng.random(25)
        exact = []
        for _ in range(8):
            ends = [[(b.lower.round_up(), b.upper.round_down()) for b in (p.weight, p.bias)] for p in box.layers]
            chosen = tuple((pick(rng, *weight), pick(rng, *bias)) for weight, bias in ends)
            example = Counterexample(tuple(map(Fraction, x.tolist())), chosen)
            exact.append([float(_fraction(v)) for v in Replay(network, example).perturbed()])
        levels, start = levels_at(network, box, x[None])
        apart = Levels(levels.first, tuple(replace(stage, kernel=None) for stage in levels.stages))
        for each in (levels, apart):  # each kernel weight once; each of its uses by itself
            bounds = pre_activations(each, start)
            rows = np.concatenate([np.eye(3), -np.eye(3)])
            upper = top_bounds(each, bounds, rows, np.zeros(6), np.zeros(6, dtype=np.intp), Tuning(5))
            assert (np.array(exact).max(axis=0) <= upper[:3]).all()
            assert (-np.array(exact).min(axis=0) <= upper[3:]).all()
            widths.append(float((upper[:3] + upper[3:]).sum()))
    assert sum(widths[0::2]) < sum(widths[1::2])


def test_a_first_convolution_is_exact_at_a_point() -> None:
    """With a linear network behind it, the bound is attained by the corner that the signs of the summed inputs name."""
    rng = np.random.default_rng(14)
    for _ in range(10):
        shape = (1, 4, 4)
        convolution = Conv2d(rng.normal(size=(2, 1, 2, 2)), rng.normal(size=2), Activation.LINEAR, shape, padding=(1, 0, 0, 1))
        last = Dense(rng.normal(size=(2, convolution.outputs)), rng.normal(size=2))
        network = Network((convolution, last), Output.SOFTMAX)
        zeros = [(layer.weight * 0, layer.bias * 0) for layer in network.layers]
        radii = [(rng.random((2, 1, 2, 2)), rng.random(2)), zeros[1]]
        pairs = [(layer.weight, layer.bias) for layer in network.layers]
        box = ParameterBox.from_arrays(
            *([(w + s * dw, b + s * db) for (w, b), (dw, db) in zip(pairs, radii, strict=True)] for s in (-1, 1))
        )
        x, nu = rng.normal(size=16), np.array([1.0, -1.0])
        levels, start = levels_at(network, box, x[None])
        upper = top_bounds(levels, pre_activations(levels, start), nu[None], np.zeros(1), np.zeros(1, dtype=np.intp), Tuning(0))
        wanted = (nu @ last.weight).reshape(2, -1)
        sums = wanted @ np.append(x, 0.0)[convolution.windows]
        signs = np.sign(sums).reshape(2, 1, 2, 2), np.sign(wanted.sum(axis=1))
        moved = convolution.weight + signs[0] * radii[0][0], convolution.bias + signs[1] * radii[0][1]
        example = Counterexample(tuple(map(Fraction, x.tolist())), (moved, pairs[1]))
        first, second = Replay(network, example).perturbed()
        best = float(_fraction(first - second))
        assert best - 1e-12 <= upper[0] <= best + 1e-9 * (1 + abs(best))


def test_any_slope_of_a_kernel_gives_a_bound() -> None:
    """Over boxes of inputs, with sums that change their sign, against exact sums at random corners."""
    rng = np.random.default_rng(15)
    layer = Conv2d(
        rng.normal(size=(2, 2, 2, 2)), rng.normal(size=2), Activation.RELU, (2, 4, 4), stride=(2, 1), padding=(0, 1, 0, 0)
    )
    radius, bias_radius = rng.random((2, 8)), rng.random(2)
    kernel = Kernel(layer.windows, layer.inputs, radius, bias_radius)
    crossing = 0
    for _ in range(50):
        nu = rng.normal(size=(3, layer.outputs))
        low = rng.normal(size=(1, layer.inputs))
        h = Interval(low, low + rng.random(low.shape) * rng.choice([0.0, 0.1, 3.0]))
        pulled = kernel.pulled(nu, h)
        slopes = pulled.slopes / radius
        crossing += int((np.abs(slopes) < 1 - 1e-9).sum())
        assert (np.abs(slopes) <= 1 + 1e-12).all()
        for _ in range(5):
            chosen = np.where(rng.random(low.shape) < 0.5, h.lower, h.upper)
            sums = nu.reshape(3, 2, -1) @ np.append(chosen[0], 0.0)[layer.windows]
            most = (radius * np.abs(sums)).sum(axis=(1, 2)) + np.abs(nu.reshape(3, 2, -1).sum(axis=2)) @ bias_radius
            assert (most <= pulled.value + pulled.coefficients @ chosen[0] + 1e-12 * (1 + most)).all()
            ends = kernel.moved(np.repeat(chosen, 3, axis=0), pulled.slopes, pulled.signs)
            assert ((nu * ends).sum(axis=1) <= most + 1e-12 * (1 + most)).all()
    assert crossing > 100


def test_refreshing_loses_no_point(random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(9)
    network = random_network(rng, (3, 5, 5, 4, 2))
    box, x = Absolute(0.2).around(network), rng.random((1, 3))
    levels, start = levels_at(network, box, x, whole=True)
    bounds = pre_activations(levels, start)
    ends = [np.where(rng.random((200, z.shape[1])) < 0.5, -1.0, 1.0) for z in bounds]
    reached = forward(levels, start, ends)
    open_ = np.flatnonzero((bounds[1].lower[0] < 0) & (bounds[1].upper[0] > 0))
    assert len(open_)
    for neuron in open_.tolist():
        for above in (True, False):
            lower, upper = bounds[1].lower.copy(), bounds[1].upper.copy()
            (lower if above else upper)[0, neuron] = 0.0
            known = [bounds[0], Interval(lower, upper), *bounds[2:]]
            found, empty = refreshed(levels, known, levels.sizes(bounds), np.array([1]))
            inside = reached[1][:, neuron] >= 0 if above else reached[1][:, neuron] <= 0
            assert not (empty[0] and inside.any())
            for z, values in zip(found[2:], reached[2:], strict=True):
                own = values[inside]
                assert ((z.lower - 1e-9 <= own) & (own <= z.upper + 1e-9)).all()


def test_too_large_a_network_is_refused(random_network: RandomNetwork) -> None:
    network = random_network(np.random.default_rng(10), (3, 5, 2))
    with pytest.raises(ResourceError, match="GiB"):
        stages_of(network, Absolute(0.123).around(network), memory=100)


def test_first_slopes_are_those_of_least_area() -> None:
    z = Interval(np.array([[-1.0, -2.0, 1.0]]), np.array([[2.0, 1.0, 3.0]]))
    assert first_alpha(z, 2).tolist() == [[1.0, 0.0, 1.0]] * 2


@pytest.mark.parametrize("tuning", [Tuning(0), Tuning(3)])
def test_a_multiplier_that_underflows_is_accounted_for(tuning: Tuning) -> None:
    """1e300 is reached behind the first ReLU, and the product of the other weights, 1e-320, has four digits left."""
    weights = 1e150, 1.7e-20, 1.3e-300
    last = len(weights) - 1
    layers = (
        Dense(np.array([[w]]), np.zeros(1), Activation.LINEAR if i == last else Activation.RELU) for i, w in enumerate(weights)
    )
    network = Network(tuple(layers), Output.SIGMOID)
    levels = Levels(Activation.LINEAR, stages_of(network, Absolute(0.0).around(network)))
    exact = Fraction(1e150)
    for weight in weights:
        exact *= Fraction(weight)
    bounds = pre_activations(levels, Interval.point(np.array([[1e150]])), tuning)
    nu, zero = np.array([[1.0], [-1.0]]), np.zeros(2, dtype=np.intp)
    upper = top_bounds(levels, bounds, nu, np.zeros(2), zero, tuning)
    assert round_fraction_up(exact) <= upper[0]
    assert round_fraction_up(-exact) <= upper[1]


def within(network: Network, radii: Callable[[tuple[int, ...]], FloatArray]) -> ParameterBox:
    """A box with ends that are floats, so far on either side."""
    pairs = [(layer.weight, layer.bias) for layer in network.layers]
    ends = ([(w + s * radii(w.shape), b + s * radii(b.shape)) for w, b in pairs] for s in (-1, 1))
    return ParameterBox.from_arrays(*ends)


def test_stages_hold_every_parameter_of_the_box_exactly() -> None:
    """The ends of the box may lie between floats, radii of a row that nearly agree are one number, and 1 / 3 is no float."""
    rng = np.random.default_rng(8)
    layers = (
        AveragePool2d((1, 3, 6), (1, 3), (1, 3)),
        Dense(rng.normal(size=(5, 6)), rng.normal(size=5), Activation.RELU),
        Dense(rng.normal(size=(1, 5)), rng.normal(size=1)),
    )
    network = Network(layers, Output.SIGMOID)
    for parameters in (
        Absolute(0.1).around(network),
        HalfStep(4, True).around(network),
        within(network, lambda shape: 7 * rng.random(shape)),
        within(network, lambda shape: 0.1 + 1e-11 * rng.random(shape)),
    ):
        pool, *stages = stages_of(network, parameters)
        third = pool.weight.max()
        assert Fraction(third) <= Fraction(1, 3) <= Fraction(third) + Fraction(pool.radius.max())
        for stage, box in zip(stages, parameters.layers[1:], strict=True):
            radius = stage.radius[:, None] if stage.radius.ndim == 1 else stage.radius
            pairs = (stage.weight, radius, box.weight), (stage.bias, stage.bias_radius, box.bias)
            for centre, reach, bounds in pairs:
                exact = [np.frompyfunc(Fraction, 1, 1)(part.astype(object)) for part in (centre, reach)]
                lower, upper = bounds.fractions
                assert (exact[0] - exact[1] <= lower).all()
                assert (upper <= exact[0] + exact[1]).all()
