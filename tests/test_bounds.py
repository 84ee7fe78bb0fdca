"""Do the bounding methods enclose what networks really do over boxes of inputs, neurons' positions and parameters?

Random small networks of every activation; points and parameters at random and at corners; values in exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from qrobust import interval
from qrobust.answers import Counterexample
from qrobust.bounds import centred, differential
from qrobust.bounds.centred import greatest_row, stored_row
from qrobust.bounds.corners import corner, positions_of, rounded_inside
from qrobust.bounds.differential import PairBounds, chord_slopes, row_forecast, row_pair
from qrobust.bounds.ibp import box_logits, nominal_logits
from qrobust.check import Replay
from qrobust.domains import Bounds, LayerBox, ParameterBox
from qrobust.errors import EnclosureError
from qrobust.exact import Exact, ExactArithmetic, ExactArray, decide, to_exact, to_rational
from qrobust.interval import Expansion, FloatArray, Interval
from qrobust.network import Activation, Network, activate
from qrobust.perturbations import Absolute
from tests.conftest import RandomNetwork

SHAPES = [(sizes, logits) for sizes in ((2,), (3, 4), (2, 3, 3), (2, 3, 2, 3)) for logits in (1, 3)]
CONFIGURATIONS = list(product(Activation, SHAPES))
BATCH = 5
POINTS = 3


@dataclass(frozen=True)
class Situation:
    """A network, its parameter box, and boxes over (x, t) with points in them; `free` hidden layers have a t."""

    network: Network
    parameters: ParameterBox
    free: int
    boxes: Interval
    seed: int

    @property
    def bounds(self) -> PairBounds:
        return PairBounds(self.network, self.parameters, free_layers=self.free)

    def points(self, index: int) -> list[FloatArray]:
        """Points (x, t) of one box: corners and random ones."""
        rng = np.random.default_rng([self.seed, index])
        lower, upper = self.boxes.lower[index], self.boxes.upper[index]
        corners = [np.where(rng.random(len(lower)) < 0.5, lower, upper) for _ in range(POINTS)]
        inside = np.clip(lower + rng.random(len(lower)) * (upper - lower), lower, upper)
        return [*corners, inside]

    def corner(self, point: FloatArray, directions: FloatArray) -> Counterexample:
        """Exact parameters at a point (x, t), the layers that are not free where the directed logits are greatest."""
        positions, place = [], self.network.inputs
        for layer in self.network.layers[: self.free]:
            positions.append(point[place : place + layer.outputs])
            place += layer.outputs
        x = [Fraction(value) for value in point[: self.network.inputs].tolist()]
        return corner(self.network, self.parameters, x, directions, positions)

    def examples(self, point: FloatArray) -> list[Counterexample]:
        """The directed corners, and random parameters in the layers that are not free."""
        logits = self.network.layers[-1].outputs
        directed = [self.corner(point, sign * np.eye(logits)[i]) for i in range(logits) for sign in (1.0, -1.0)]
        return [*directed, *(self.scrambled(directed[0], seed) for seed in range(2))]

    def scrambled(self, example: Counterexample, seed: int) -> Counterexample:
        """Replace the parameters of the layers that are not free by random ones, mostly at ends of their bounds."""
        rng = np.random.default_rng([self.seed, seed])
        layers = list(example.parameters[: self.free])
        for box in self.parameters.layers[self.free :]:
            arrays = []
            for low, high in (box.weight.fractions, box.bias.fractions):
                way = rng.choice(np.array([0, 0, 1, 1, Fraction(1, 3), Fraction(4, 5)], dtype=object), size=low.shape)
                arrays.append(low + way * (high - low))
            layers.append((arrays[0], arrays[1]))
        return Counterexample(example.x, tuple(layers))


def situation(
    random_network: RandomNetwork, activation: Activation, sizes: tuple[int, ...], logits: int, *, fixed: int
) -> Situation:
    """Boxes of different widths: a point, a narrow box, wide ones; t from a point to the whole of [-1, 1].

    At most `fixed` hidden layers, the last ones, have no t.
    """
    seed = 1000 * len(sizes) + 10 * logits + list(Activation).index(activation)
    rng = np.random.default_rng(seed)
    network = random_network(rng, (*sizes, logits), activation)
    delta = float(rng.choice([0.01, 0.2, 0.8]))  # 0.8 makes weights straddle zero
    hidden = len(network.hidden_layers)
    free = int(rng.integers(max(hidden - fixed, 0), hidden + 1))
    variables = sizes[0] + sum(sizes[1 : free + 1])
    centre = rng.uniform(-1, 1, size=(BATCH, variables))
    centre[:, : sizes[0]] *= 2
    radius = np.array([0.0, 1e-9, 0.1, 0.5, 1.0])[:, None] * rng.random((BATCH, variables))
    lower, upper = centre - radius, centre + radius
    lower[:, sizes[0] :], upper[:, sizes[0] :] = (np.clip(end[:, sizes[0] :], -1, 1) for end in (lower, upper))
    return Situation(network, Absolute(delta).around(network), free, Interval(lower, upper), seed)


def outside(lower: float, upper: float, compute: Callable[[], Exact]) -> bool:
    """Whether an exact number is certainly not in [lower, upper]."""
    low, high = to_exact([Fraction(lower), Fraction(upper)])
    return decide(lambda: compute() - low) == -1 or decide(lambda: high - compute()) == -1


def row_faults(enclosure: Interval, index: int, compute: Callable[[], ExactArray]) -> int:
    """Count the entries of one row that its enclosure leaves out."""
    ends = zip(enclosure.lower[index].tolist(), enclosure.upper[index].tolist(), strict=True)
    return sum(outside(low, high, lambda i=i: compute()[i]) for i, (low, high) in enumerate(ends))  # type: ignore[misc]


def ibp_faults(s: Situation) -> int:
    x = s.boxes[:, : s.network.inputs]
    nominal, perturbed = nominal_logits(s.network, x), box_logits(s.network, s.parameters, x)
    count = 0
    for index in range(BATCH):
        for point in s.points(index):
            for example in s.examples(point):
                replay = Replay(s.network, example)
                count += row_faults(nominal, index, replay.nominal) + row_faults(perturbed, index, replay.perturbed)
    return count


def differential_faults(s: Situation) -> int:
    bounds = s.bounds
    last = bounds.layers[-1]
    pair = row_pair(last.stored, last.box, last.deviation, bounds.hidden(s.boxes))
    count = 0
    for index in range(BATCH):
        for point in s.points(index):
            for example in s.examples(point):
                replay = Replay(s.network, example)
                count += row_faults(pair.stored, index, replay.nominal)
                count += row_faults(pair.perturbed, index, replay.perturbed)
                count += row_faults(pair.difference, index, lambda r=replay: r.perturbed() - r.nominal())  # type: ignore[misc]
    return count


def centred_faults(s: Situation) -> int:
    bounds = s.bounds
    last = bounds.layers[-1]
    count = 0
    for row in range(s.network.layers[-1].outputs):
        one = slice(row, row + 1)
        before = stored_row(bounds, s.boxes, (last.stored[0][one], last.stored[1][one]))
        after = greatest_row(bounds, s.boxes, (last.box[0][one], last.box[1][one]))
        over_before, over_after = before.over(s.boxes), None if after is None else after.over(s.boxes)
        over_rise = None if after is None else (after - before).over(s.boxes)
        direction = np.eye(s.network.layers[-1].outputs)[row]
        for index in range(BATCH):
            for point in s.points(index):
                replay = Replay(s.network, s.corner(point, direction))
                nominal, greatest = lambda r=replay: r.nominal()[row], lambda r=replay: r.perturbed()[row]  # noqa: B023
                rise = lambda r=replay: r.perturbed()[row] - r.nominal()[row]  # noqa: B023, E731
                for over, compute in ((over_before, nominal), (over_after, greatest), (over_rise, rise)):
                    if over is not None:
                        count += outside(float(over.lower[index]), float(over.upper[index]), compute)
    return count


METHODS = {"ibp": ibp_faults, "differential": differential_faults, "centred": centred_faults}
FIXED = {"ibp": 3, "differential": 3, "centred": 1}  # the greatest row needs a t in all hidden layers but the last


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("activation", "shape"), CONFIGURATIONS)
def test_encloses(
    method: str, activation: Activation, shape: tuple[tuple[int, ...], int], random_network: RandomNetwork
) -> None:
    assert METHODS[method](situation(random_network, activation, *shape, fixed=FIXED[method])) == 0


def all_faults(method: str, random_network: RandomNetwork) -> int:
    """Count the faults over networks with hidden layers; crossed ends, which Interval refuses, count as one."""
    count = 0
    for activation, (sizes, logits) in CONFIGURATIONS:
        if sizes in ((3, 4), (2, 3, 3)):
            try:
                count += METHODS[method](situation(random_network, activation, sizes, logits, fixed=FIXED[method]))
            except EnclosureError:
                count += 1
            if count:
                break
    return count


def steepest_only(activation: Activation, z: Interval) -> Interval:
    return Interval.point(np.ones(z.shape))


def forget_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("down", "up"):
        monkeypatch.setattr(interval, name, lambda values: values)
    for name in ("UNIT", "TINY", "EXP_ERROR"):
        monkeypatch.setattr(interval, name, 0.0)


def forget_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "box_logits", lambda network, _, x: nominal_logits(network, x))


def forget_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interval, "magnitude", lambda x: x)
    monkeypatch.setattr(centred, "_signs", lambda x: Interval.point(np.ones(x.shape))[:, None, :])


def forget_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (differential, centred):
        monkeypatch.setattr(module, "chord_slopes", steepest_only)


def stop_at_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(centred.CentredRow, "over", lambda row, boxes: row.centre)


BROKEN = [
    *(("ibp", break_it) for break_it in (forget_rounding, forget_parameters)),
    *(("differential", break_it) for break_it in (forget_rounding, forget_slopes, forget_signs)),
    *(("centred", break_it) for break_it in (forget_rounding, forget_slopes, forget_signs, stop_at_the_middle)),
]


@pytest.mark.parametrize(("method", "break_it"), BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_copy_is_caught(
    method: str,
    break_it: Callable[[pytest.MonkeyPatch], None],
    random_network: RandomNetwork,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_it(monkeypatch)
    assert all_faults(method, random_network) > 0


def as_float(value: Exact) -> float:
    return float(value.p) / float(value.q) if hasattr(value, "p") else float(value)


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("sizes", [(3,), (3, 4)])
def test_ibp_is_exact_at_a_point_with_one_hidden_layer(
    activation: Activation, sizes: tuple[int, ...], random_network: RandomNetwork
) -> None:
    rng = np.random.default_rng(7)
    network = random_network(rng, (*sizes, 1), activation)
    parameters = Absolute(0.3).around(network)
    for x in rng.normal(size=(10, 3)):
        result = box_logits(network, parameters, Interval.point(x[None]))
        for sign, end in ((1.0, result.upper[0, 0]), (-1.0, result.lower[0, 0])):
            attained = Replay(
                network, corner(network, parameters, [Fraction(v) for v in x.tolist()], np.array([sign]))
            ).perturbed()[0]
            assert abs(as_float(attained) - end) <= 1e-12 * (1 + abs(end))


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("logits", [1, 3])
def test_pair_bounds_are_exact_at_a_point(activation: Activation, logits: int, random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(8)
    network = random_network(rng, (2, 3, 3, logits), activation)
    s = Situation(network, Absolute(0.2).around(network), 2, Interval.point(rng.uniform(-1, 1, size=(BATCH, 8))), 8)
    last = s.bounds.layers[-1]
    pair = row_pair(last.stored, last.box, last.deviation, s.bounds.hidden(s.boxes))
    for index in range(BATCH):
        for row, sign in product(range(logits), (1.0, -1.0)):
            replay = Replay(network, s.corner(s.boxes.lower[index], sign * np.eye(logits)[row]))
            attained, stored = as_float(replay.perturbed()[row]), as_float(replay.nominal()[row])
            end, rise = ((each.upper if sign > 0 else each.lower)[index, row] for each in (pair.perturbed, pair.difference))
            assert abs(attained - end) <= 1e-12 * (1 + abs(end))
            assert abs(attained - stored - rise) <= 1e-12 * (1 + abs(end))
            assert abs(pair.stored.upper[index, row] - stored) <= 1e-12 * (1 + abs(stored))


@pytest.mark.parametrize(("activation", "shape"), CONFIGURATIONS)
def test_forecasts_are_what_the_corners_attain(
    activation: Activation, shape: tuple[tuple[int, ...], int], random_network: RandomNetwork
) -> None:
    """The least and greatest value of each row at a point, where the last hidden layer at most has no t."""
    s = situation(random_network, activation, *shape, fixed=1)
    bounds = s.bounds
    for index in range(BATCH):
        for point in s.points(index):
            stored, low, high = bounds.forecast(point[None])
            least, greatest = row_forecast(bounds.layers[-1].box, low, high)
            before = stored @ s.network.layers[-1].weight.T + s.network.layers[-1].bias
            for row in range(s.network.layers[-1].outputs):
                for sign, forecast in ((1.0, greatest), (-1.0, least)):
                    replay = Replay(s.network, s.corner(point, sign * np.eye(before.shape[1])[row]))
                    attained = as_float(replay.perturbed()[row])
                    assert forecast[0, row] == pytest.approx(attained, rel=1e-12, abs=1e-12)
                    assert before[0, row] == pytest.approx(as_float(replay.nominal()[row]), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("activation", [Activation.LINEAR, Activation.RELU])
def test_positions_are_found_again(activation: Activation, random_network: RandomNetwork) -> None:
    """From positions to parameters, from these to pre-activations, and back to the positions, exactly."""
    rng = np.random.default_rng(14)
    network = random_network(rng, (2, 3, 4, 1), activation)
    parameters = Absolute(0.3).around(network)
    x = [Fraction(1, 3), Fraction(-5, 7)]
    chosen = [np.array([Fraction(int(n), 8) for n in rng.integers(-8, 9, size=size)], dtype=object) for size in (3, 4)]
    example = corner(network, parameters, x, np.array([1.0]), chosen)
    assert parameters.contains(example.parameters)
    reached, h = [], to_exact(x)
    for layer, (weight, bias) in zip(network.hidden_layers, example.parameters, strict=False):
        z = ExactArithmetic().affine(to_exact(weight), h, to_exact(bias))
        reached.append(np.array([to_rational(value) for value in z], dtype=object))
        h = activate(layer.activation, z, ExactArithmetic())
    found = positions_of(network, parameters, x, reached)
    assert [positions.tolist() for positions in found] == [positions.tolist() for positions in chosen]


def test_positions_are_the_middle_where_nothing_can_move(random_network: RandomNetwork) -> None:
    network = random_network(np.random.default_rng(15), (2, 3, 1))
    still = Absolute(0.0).around(network)
    weight, bias = (ends[0] for ends in (still.layers[0].weight.fractions, still.layers[0].bias.fractions))
    z = ExactArithmetic().affine(to_exact(weight), to_exact([1, 2]), to_exact(bias))
    reached = np.array([to_rational(value) for value in z], dtype=object)
    (found,) = positions_of(network, still, [Fraction(1), Fraction(2)], [reached])
    assert found.tolist() == [0, 0, 0]


def test_centred_forms_are_exact_where_no_neuron_switches(random_network: RandomNetwork) -> None:
    """A linear network without free layers and perturbation: the greatest value over a box is at a corner of it."""
    rng = np.random.default_rng(9)
    network = random_network(rng, (2, 4, 1), Activation.LINEAR)
    boxes = Interval(rng.uniform(-3, 0, size=(6, 2)), rng.uniform(0, 3, size=(6, 2)))
    bounds = PairBounds(network, Absolute(0.0).around(network), free_layers=0)
    result = stored_row(bounds, boxes, bounds.layers[-1].stored).over(boxes)
    corners = np.stack([[b.lower, b.upper] for b in boxes])
    for index, ends in enumerate(corners):
        points = np.array([[ends[i, 0], ends[j, 1]] for i in (0, 1) for j in (0, 1)])
        logits = (points @ network.layers[0].weight.T + network.layers[0].bias) @ network.layers[1].weight.T
        values = logits + network.layers[1].bias
        assert result.upper[index] == pytest.approx(values.max(), abs=1e-12)
        assert result.lower[index] == pytest.approx(values.min(), abs=1e-12)


@pytest.mark.parametrize("activation", [Activation.SIGMOID, Activation.TANH])
def test_centred_forms_converge_quadratically(activation: Activation, random_network: RandomNetwork) -> None:
    network = random_network(np.random.default_rng(10), (2, 4, 1), activation)
    bounds = PairBounds(network, Absolute(0.05).around(network), free_layers=0)
    centre = np.array([[0.3, -0.2]])
    excess = []
    for width in (2.0**-3, 2.0**-7):
        boxes = Interval(centre - width, centre + width)
        row = greatest_row(bounds, boxes, bounds.layers[-1].box)
        assert row is not None
        grid = np.stack(np.meshgrid(*[np.linspace(c - width, c + width, 41) for c in centre[0]]), axis=-1).reshape(-1, 2)
        attained = box_logits(network, Absolute(0.05).around(network), Interval.point(grid)).upper.max()
        excess.append(float(row.over(boxes).upper[0] - attained))
    assert 0 <= excess[1] <= excess[0] / 64  # a linear method gains 16, a quadratic one 256


def test_no_greatest_row_where_the_best_end_is_not_single(random_network: RandomNetwork) -> None:
    boxes = Interval.point(np.zeros((1, 2)))
    for activation in Activation:
        network = random_network(np.random.default_rng(11), (2, 3, 1), activation)
        bounds = PairBounds(network, Absolute(5.0).around(network), free_layers=0)
        row = greatest_row(bounds, boxes, bounds.layers[-1].box)
        assert (row is None) == (activation in (Activation.LINEAR, Activation.TANH))
        narrow = PairBounds(network, Absolute(1e-9).around(network), free_layers=0)
        assert greatest_row(narrow, boxes, narrow.layers[-1].box) is not None


@pytest.mark.parametrize("activation", Activation)
def test_chord_slopes_hold_all_chords(activation: Activation) -> None:
    rng = np.random.default_rng(12)
    ends = np.sort(rng.normal(size=(2, 60)) * 3, axis=0)
    slopes = chord_slopes(activation, Interval(ends[0], ends[1]))
    for index in range(60):
        inside = rng.uniform(ends[0, index], ends[1, index], size=(2, 2))
        for pair in (ends[:, index], *inside):
            x = to_exact(pair)

            def chord(x: ExactArray = x) -> Exact:
                y = activate(activation, x, ExactArithmetic())
                return (y[1] - y[0]) / (x[1] - x[0])

            assert not outside(float(slopes.lower[index]), float(slopes.upper[index]), chord)


@pytest.mark.parametrize("activation", Activation)
def test_chord_slopes_at_a_point(activation: Activation) -> None:
    """At zero a ReLU's chords may have any slope from 0 to 1; elsewhere a point has its derivative."""
    at_zero = chord_slopes(activation, Interval.point([0.0]))
    expected = {Activation.LINEAR: 1.0, Activation.RELU: 0.5, Activation.SIGMOID: 0.25, Activation.TANH: 1.0}
    assert at_zero.lower[0] <= expected[activation] <= at_zero.upper[0]


def test_rounded_parameters_stay_inside(random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(13)
    network = random_network(rng, (2, 3, 1))
    for delta in (0.1, 1e-17):
        parameters = Absolute(delta).around(network)
        example = corner(network, parameters, [Fraction(1, 3), Fraction(-2)], np.array([1.0]))
        assert parameters.contains(example.parameters)
        rounded = rounded_inside(parameters, example)
        assert rounded is not None
        assert parameters.contains(rounded.parameters)
        assert all(Fraction(float(v)) == v for w, b in rounded.parameters for v in (*w.ravel(), *b.ravel()))


def test_no_rounded_parameters_where_bounds_hold_no_float() -> None:
    one = np.array([1.0])
    between = Bounds(Expansion(one, np.array([2.0**-60])), Expansion(one, np.array([2.0**-59])))
    weight = Bounds(*(Expansion(end.head[None], end.tail[None]) for end in (between.lower, between.upper)))
    parameters = ParameterBox((LayerBox(weight, between),), shifted=True)
    low, _ = weight.fractions
    example = Counterexample((Fraction(0),), ((low, low[0]),))
    assert parameters.contains(example.parameters)
    assert rounded_inside(parameters, example) is None
