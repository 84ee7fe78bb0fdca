"""Inputs in other units before the first layer: exact rationals, never folded into what is quantized."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, PolynomialFeatures, RobustScaler, StandardScaler

import qrobust
from qrobust import formats
from qrobust.answers import Assurance, EstimateClaim, Robust, Unknown, Verdict
from qrobust.bounds.ibp import box_logits, nominal_logits
from qrobust.check import Replay
from qrobust.domains import InputBox, ParameterBox, Point, Points, Polytope
from qrobust.errors import NumberError, ShapeError, UnsupportedError
from qrobust.exact import ExactArithmetic, to_exact, to_rational
from qrobust.formats.onnx_write import onnx_bytes, write_onnx
from qrobust.formats.sklearn import from_sklearn
from qrobust.formula import Encoding, encode, to_smtlib
from qrobust.interval import Interval
from qrobust.maps import Quantity, robustness_map
from qrobust.network import Activation, AveragePool2d, Conv2d, Dense, FloatArithmetic, Network, Output, Scaling, logits
from qrobust.quantization import parse_scheme
from qrobust.queries import ChangeOf, ConfidenceQuery, LabelQuery
from qrobust.scaled import behind, rescaled, scaled_points
from tests.onnx_graphs import Graph, relative_difference, runtime
from tests.test_cli import run
from tests.test_onnx import CLOSE, dense_tail, image, loaded, rng_numbers

SHORT = qrobust.Budget(2.0)
SOLVERS = ("auto", "closed-form", "z3", "branch-and-bound", "milp")


def core(seed: int = 0, inputs: int = 3, classes: int = 2) -> Network:
    rng = np.random.default_rng(seed)
    first = Dense(rng.normal(size=(4, inputs)), rng.normal(size=4), Activation.RELU)
    output = Output.SOFTMAX if classes > 1 else Output.SIGMOID
    return Network((first, Dense(rng.normal(size=(classes, 4)), rng.normal(size=classes))), output, f"seed {seed}")


def scaled(network: Network, scale: Any, offset: Any) -> Network:
    count = network.inputs
    scaling = Scaling(np.broadcast_to(np.asarray(scale, dtype=object), (count,)), np.broadcast_to(offset, (count,)))
    return Network((scaling, *network.layers), network.output, network.name)


DYADIC = (0.25, -0.5)  # scaled inputs are floats
RATIONAL = ("1/255", Fraction(-1, 3))


def image_of(network: Network, x: np.ndarray[Any, Any]) -> list[Fraction]:
    assert network.scaling is not None
    parts = zip(x.tolist(), network.scaling.scale, network.scaling.offset, strict=True)
    return [Fraction(value) * scale + offset for value, scale, offset in parts]


def exact_logits(network: Network, x: list[Fraction]) -> list[Fraction]:
    return [to_rational(value) for value in logits(network, to_exact(x), ExactArithmetic())]


def test_the_scaling_is_exact() -> None:
    network, x = scaled(core(), *RATIONAL), np.array([200.0, 17.0, 0.1])
    assert exact_logits(network, [Fraction(v) for v in x.tolist()]) == exact_logits(network.core, image_of(network, x))
    low = nominal_logits(network, Interval.point(x[None]))
    for value, lower, upper in zip(exact_logits(network.core, image_of(network, x)), low.lower[0], low.upper[0], strict=True):
        assert Fraction(lower) <= value <= Fraction(upper)
        assert upper - lower < 1e-12
    np.testing.assert_allclose(network.confidences([x]), network.core.confidences([[float(v) for v in image_of(network, x)]]))


def test_parameters_are_quantized_as_without_scaling() -> None:
    network = scaled(core(), *RATIONAL)
    for name in ("int8", "int4-per-channel", "q3.4-floor-wrap", "fp8-e4m3"):
        scheme = parse_scheme(name)
        copy, plain = scheme.copy(network), scheme.copy(network.core)
        assert copy.core == plain
        assert copy.scaling is network.scaling
        assert behind(scheme.box(network)).sha256 == scheme.box(network.core).sha256


def test_what_is_no_scaling_is_refused() -> None:
    for scale, offset, error in (
        ([1.0, 0.0], [0, 0], NumberError),
        ([1.0, np.nan], [0, 0], NumberError),
        ([1.0, "1/0"], [0, 0], NumberError),
        ([1.0, "x"], [0, 0], NumberError),
        ([1.0, 2.0], [0], ShapeError),
        ([[1.0, 2.0]], [[0, 0]], ShapeError),
        ([1.0, [2.0]], [0, 0], ShapeError),
        ([1.0, Fraction(2**1001)], [0, 0], NumberError),
        ([1.0, Fraction(1, 2**8193)], [0, 0], NumberError),
    ):
        with pytest.raises(error):
            Scaling(np.array(scale, dtype=object), np.array(offset, dtype=object))
    network = scaled(core(), *RATIONAL)
    assert network.scaling is not None
    with pytest.raises(ShapeError, match="only the first layer"):
        Network((network.scaling, *network.layers), network.output)
    other = scaled(core(), "1/256", Fraction(-1, 3))
    assert other != network
    with pytest.raises(ShapeError, match="layer 1 of the second network"):
        qrobust.Copy(other).around(network)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("units", [DYADIC, RATIONAL], ids=["dyadic", "rational"])
def test_a_wider_box_at_the_rounded_point_holds_every_network_at_the_point(seed: int, units: Any) -> None:
    """Exactly: the biases that the core needs lie in the box, which without widening they do not."""
    rng = np.random.default_rng(seed)
    network = scaled(core(seed), *units)
    x = rng.uniform(-300, 300, size=(2, 3))
    parameters = qrobust.Absolute(0.01).around(network)
    seen = scaled_points(network, x, behind(parameters))
    first = parameters.layers[1]
    outside = 0
    for point, z in zip(x, seen.values, strict=True):
        for end in (0, 1):
            weight, bias = first.weight.fractions[end], first.bias.fractions[end]
            rest = np.array([y - Fraction(v) for y, v in zip(image_of(network, point), z.tolist(), strict=True)], dtype=object)
            needed = bias + weight @ rest
            assert seen.parameters.layers[0].bias.contains(needed)
            outside += not first.bias.contains(needed)
        stored = zip(
            exact_logits(network.core, image_of(network, point)),
            exact_logits(network.core, [Fraction(v) for v in z.tolist()]),
            strict=True,
        )
        assert all(abs(a - b) <= seen.slack for a, b in stored)
    assert outside or units is DYADIC
    assert 0 < seen.slack < Fraction(1, 10**11)


def test_a_polytope_holds_the_image_of_what_it_was_made_of() -> None:
    network = scaled(core(), *RATIONAL)
    domain = Polytope(InputBox([-300.0] * 3, [300.0] * 3), [[1.0, -0.3, 0.7], [0.1, 0.1, 0.0]], [11.0, -0.7])
    query = qrobust.MarginLabel(network, qrobust.Absolute(0.01).around(network), domain, sigma=Fraction(1, 10))
    image = rescaled(query).core.domain
    rng, count = np.random.default_rng(0), 0
    for point in rng.uniform(-300, 300, size=(300, 3)):
        point[0] = (-0.7 - 0.1 * point[1]) / 0.1 if count % 2 else point[0]  # at a cut's edge
        if domain.contains([Fraction(v) for v in point.tolist()]):
            count += 1
            assert image.contains(image_of(network, point))
    assert count > 30


@pytest.mark.parametrize("backend", SOLVERS)
@pytest.mark.parametrize("seed", range(3))
def test_backends_agree_with_the_core_on_the_scaled_domain(backend: str, seed: int) -> None:
    plain = core(seed)
    network = scaled(plain, *DYADIC)
    x = np.random.default_rng(seed).normal(size=3) * 4
    z = [float(v) for v in image_of(network, x)]
    for delta in (0.001, 0.02, 0.3):
        boxes = [qrobust.Absolute(delta).around(n) for n in (network, plain)]
        mine = qrobust.check(qrobust.LocalLabel(network, boxes[0], Point(x)), backend=backend)
        core_s = qrobust.check(qrobust.LocalLabel(plain, boxes[1], Point(z)), backend=backend)
        assert mine.verdict is core_s.verdict
        assert mine.assurance is not Assurance.CHECKED or mine.verdict is Verdict.VIOLATED
        if mine.counterexample is not None:
            assert mine.counterexample.x == tuple(Fraction(v) for v in x.tolist())
    if backend in ("auto", "branch-and-bound"):
        ends = [
            qrobust.estimate(qrobust.LocalEpsilon(n, qrobust.Absolute(0.01).around(n), Point(p)), backend=backend, budget=SHORT)
            for n, p in ((network, x), (plain, z))
        ]
        assert ends[0].witness is not None
        assert ends[0].lower <= ends[1].upper + 1e-9
        assert ends[1].lower <= ends[0].upper + 1e-9
        assert abs(ends[0].upper - ends[1].upper) < 1e-3


@pytest.mark.parametrize("backend", ["auto", "z3", "branch-and-bound", "milp"])
def test_boxes_agree_with_the_core_on_the_scaled_box(backend: str) -> None:
    plain = core(1, inputs=2)
    network = scaled(plain, *DYADIC)
    low, high = np.array([-2.0, -4.0]), np.array([6.0, 4.0])
    boxes = [InputBox(low, high), InputBox(0.25 * low - 0.5, 0.25 * high - 0.5)]
    for sigma in (Fraction(1, 100), Fraction(45, 100)):
        answers = [
            qrobust.check(qrobust.MarginLabel(n, qrobust.Absolute(0.02).around(n), d, sigma=sigma), backend=backend)
            for n, d in zip((network, plain), boxes, strict=True)
        ]
        assert answers[0].verdict is answers[1].verdict
        assert answers[0].verdict is not Verdict.UNKNOWN or backend == "branch-and-bound"
    witnesses = 0
    for label in (0, 1):
        estimates = [
            qrobust.estimate(
                qrobust.SigmaEstimate(n, qrobust.Absolute(0.02).around(n), d, label=label), backend=backend, budget=SHORT
            )
            for n, d in zip((network, plain), boxes, strict=True)
        ]
        assert estimates[0].lower <= estimates[1].upper + 1e-9
        assert estimates[1].lower <= estimates[0].upper + 1e-9
        out_of_time = any(found.reason for found in estimates)
        assert out_of_time or abs(estimates[0].upper - estimates[1].upper) < 1e-3
        witnesses += estimates[0].witness is not None or out_of_time
    assert witnesses


def test_one_sigmoid_over_a_box_and_the_greatest_delta() -> None:
    plain = core(2, inputs=2, classes=1)
    network = scaled(plain, Fraction(1, 3), Fraction(1, 7))
    box = InputBox([-3.0, -3.0], [3.0, 3.0])
    found = qrobust.estimate(qrobust.GlobalEpsilon(network, qrobust.Absolute(0.01).around(network), box), budget=SHORT)
    assert 0 < found.lower <= found.upper < found.lower + 1e-3
    inside = InputBox([-6 / 7 + 1e-9] * 2, [8 / 7 - 1e-9] * 2)
    near = qrobust.estimate(qrobust.GlobalEpsilon(plain, qrobust.Absolute(0.01).around(plain), inside), budget=SHORT)
    assert near.lower <= found.upper
    assert near.upper > found.lower - 1e-3
    delta = qrobust.estimate(qrobust.GreatestDelta(network, Point([1.0, 2.0])), budget=SHORT)
    assert 0 < delta.lower <= delta.upper <= delta.lower * 1.1
    assert delta.witness is not None


def test_points_and_maps_are_screened_and_agree_with_single_points() -> None:
    network = scaled(core(3), *RATIONAL)
    points = np.random.default_rng(3).uniform(-300, 300, size=(60, 3))
    parameters = qrobust.Absolute(0.05).around(network)
    found = robustness_map(network, parameters, points, quantity=Quantity.LABEL)
    single = [qrobust.check(qrobust.LocalLabel(network, parameters, Point(p))).verdict for p in points]
    assert {0, 1} <= set(found.status.tolist())
    assert [(v is Verdict.VIOLATED) for v in single] == (found.status == 1).tolist()
    safe = points[found.status == 0]
    assert qrobust.check(qrobust.GlobalLabel(network, parameters, Points(safe))).verdict is Verdict.ROBUST
    assert qrobust.check(qrobust.GlobalLabel(network, parameters, Points(points))).verdict is Verdict.VIOLATED
    changes = robustness_map(network, parameters, points[:3], budget=SHORT)
    for row, point in enumerate(points[:3]):
        one = qrobust.estimate(qrobust.LocalEpsilon(network, parameters, Point(point)), budget=SHORT)
        assert changes.lower[row] <= one.upper
        assert one.lower <= changes.upper[row]


def test_a_copy_near_the_network_and_an_eps_below_the_slack() -> None:
    network = scaled(core(), *RATIONAL)
    copy = qrobust.Copy(parse_scheme("int8").copy(network)).around(network)
    query = qrobust.LocalLabel(network, copy, Point([200.0, 17.0, 3.0]))
    assert qrobust.check(query).verdict is Verdict.ROBUST
    several = qrobust.GlobalLabel(network, copy, Points([[200.0, 17.0, 3.0], [0.0, 40.0, 5.0]]))
    assert copy.shifted
    assert not rescaled(several).settles
    assert qrobust.solve.Session().unsettled(several, "auto", qrobust.Budget())[1] == [0, 1]
    assert qrobust.check(several).verdict is Verdict.ROBUST
    same = qrobust.Copy(network).around(network)
    tiny = qrobust.LocalConfidence(network, same, Point([200.0, 17.0, 3.0]), Fraction(0))
    assert not rescaled(tiny).settles
    assert isinstance(rescaled(tiny).claim(Robust(Assurance.ROUNDED)), Unknown)
    wide = qrobust.LocalConfidence(network, same, Point([200.0, 17.0, 3.0]), Fraction(1, 10**6))
    assert qrobust.check(wide).verdict is Verdict.ROBUST
    tie = Network(
        (Scaling(np.array(["1/3"], dtype=object), np.array(["-1/3"], dtype=object)), Dense(np.ones((1, 1)), np.zeros(1))),
        Output.SIGMOID,
    )
    box = qrobust.Copy(Network((tie.layers[0], Dense(np.ones((1, 1)), np.full(1, -0.5))), Output.SIGMOID)).around(tie)
    assert box.shifted
    assert qrobust.check(qrobust.LocalLabel(tie, box, Point([1.0]))).verdict is Verdict.ROBUST


def test_the_slack_is_taken_from_eps_and_sigma_and_added_to_estimates() -> None:
    network, x = scaled(core(), *RATIONAL), Point([200.0, 17.0, 3.0])
    box = qrobust.Absolute(0.01).around(network)
    slack = rescaled(qrobust.LocalConfidence(network, box, x, Fraction(1, 10))).slack
    assert slack > 0
    confidence = rescaled(qrobust.LocalConfidence(network, box, x, Fraction(1, 10))).core
    label = rescaled(qrobust.LocalLabel(network, box, x, sigma=Fraction(1, 10))).core
    assert isinstance(confidence, ConfidenceQuery)
    assert isinstance(label, LabelQuery)
    assert confidence.epsilon == label.sigma == Fraction(1, 10) - slack / 2
    for query, share in (
        (qrobust.LocalEpsilon(network, box, x), 2),
        (qrobust.SigmaEstimate(network, box, x, 0), 2),
        (qrobust.LocalEpsilon(network, box, x, ChangeOf.LOGIT), 1),
    ):
        upper = rescaled(query).estimate(EstimateClaim(0.0, None, Assurance.ROUNDED)).upper
        assert Fraction(upper) >= slack / share


def test_biases_make_up_for_the_greatest_weight_of_a_box() -> None:
    network = Network(
        (Scaling(np.array(["1/3"], dtype=object), np.zeros(1, dtype=object)), Dense(np.zeros((1, 1)), np.zeros(1))),
        Output.SIGMOID,
    )
    box = ParameterBox.from_arrays([([], []), ([[0.0]], [0.0])], [([], []), ([[7.0]], [0.0])])
    seen = scaled_points(network, np.array([[1.0]]), behind(box))
    assert seen.parameters.layers[0].bias.contains(np.array([7 * (Fraction(1, 3) - Fraction(seen.values[0, 0]))]))


def test_a_scaled_cut_keeps_the_points_on_it() -> None:
    """x1 = x2 lies on x1 - x2 <= 0; its image, 3 x1 and 10 x2, has coefficients 1/3 and -1/10, which no floats are."""
    network = Network(
        (Scaling(np.array([3, 10], dtype=object), np.zeros(2, dtype=object)), Dense(np.ones((1, 2)), np.zeros(1))),
        Output.SIGMOID,
    )
    box = InputBox([-1e6, -1e6], [1e6, 1e6])
    for row in ([1.0, -1.0], [-1.0, 1.0]):
        asked = qrobust.GlobalLabel(network, qrobust.Absolute(0.1).around(network), Polytope(box, [row], [0.0]))
        for x in (-1e6, 999_999.0, 1e6):
            assert rescaled(asked).core.domain.contains([Fraction(3 * x), Fraction(10 * x)])


def test_an_inequality_beyond_floats_is_refused() -> None:
    """x * 1e-300 is bounded by 1e10 x <= 1, which is 1e310 of the scaled input."""
    network = Network(
        (Scaling(np.array([1e-300], dtype=object), np.zeros(1, dtype=object)), Dense(np.ones((1, 1)), np.zeros(1))),
        Output.SIGMOID,
    )
    domain = Polytope(InputBox([0.0], [1.0]), [[1e10]], [1.0])
    with pytest.raises(NumberError, match="an inequality is beyond float64 in the scaled inputs"):
        rescaled(qrobust.GlobalLabel(network, qrobust.Absolute(0.1).around(network), domain))


def test_a_copy_of_another_label_where_rounding_the_input_changes_the_stored_one() -> None:
    """At 1/3 the logit is 0, whose label is 0; at the float beside it the label is 1, as the copy's is everywhere."""
    scaling = Scaling(np.array(["1/3"], dtype=object), np.zeros(1, dtype=object))
    rounded = float(
        scaled_points(
            Network((scaling, Dense(np.ones((1, 1)), np.zeros(1))), Output.SIGMOID),
            np.ones((1, 1)),
            ParameterBox.from_arrays([([[1.0]], [0.0])], [([[1.0]], [0.0])]),
        ).values[0, 0]
    )
    sign = 1.0 if Fraction(rounded) > Fraction(1, 3) else -1.0
    network = Network((scaling, Dense(np.array([[3 * sign]]), np.array([-sign]))), Output.SIGMOID)
    copy = qrobust.Copy(Network((scaling, Dense(np.array([[3 * sign]]), np.array([9.0]))), Output.SIGMOID)).around(network)
    query = qrobust.LocalLabel(network, copy, Point([1.0]))
    assert isinstance(rescaled(query).claim(Robust(Assurance.CHECKED)), Unknown)
    assert qrobust.check(query).verdict is not Verdict.ROBUST


def small_images(first: Any, inputs: int) -> Network:
    rng = np.random.default_rng(5)
    dense = Dense(rng.normal(size=(3, first.outputs)) * 0.3, rng.normal(size=3))
    return Network((first, dense), Output.SOFTMAX, "images")


def test_convolutions_take_scaled_images() -> None:
    """The padding's zeros stay zeros, and a dyadic scaling agrees with the network whose inputs it was applied to."""
    rng = np.random.default_rng(4)
    kernel = Conv2d(rng.normal(size=(2, 1, 3, 3)), rng.normal(size=2), Activation.RELU, (1, 5, 5), (1, 1), (1, 1, 1, 1))
    for plain in (small_images(kernel, 25), small_images(AveragePool2d((1, 6, 6), (3, 3), (1, 1)), 36)):
        x = rng.integers(-8, 9, size=plain.inputs).astype(float)
        network, other = scaled(plain, *DYADIC), scaled(plain, *RATIONAL)
        verdicts = []
        for delta in (1e-4, 0.01, 0.5):
            pair = [
                qrobust.check(qrobust.LocalLabel(n, qrobust.Absolute(delta).around(n), Point(p)))
                for n, p in ((network, x), (plain, 0.25 * x - 0.5))
            ]
            assert pair[0].verdict is pair[1].verdict
            verdicts.append(qrobust.check(qrobust.LocalLabel(other, qrobust.Absolute(delta).around(other), Point(x))).verdict)
        assert verdicts[0] is Verdict.ROBUST
        assert verdicts[-1] is Verdict.VIOLATED
        values = box_logits(other, qrobust.Absolute(0.01).around(other), Interval.point(x[None]))
        exact = exact_logits(other, [Fraction(v) for v in x.tolist()])
        assert all(Fraction(a) <= v <= Fraction(b) for a, v, b in zip(values.lower[0], exact, values.upper[0], strict=True))
        box = InputBox(np.zeros(plain.inputs), np.ones(plain.inputs))
        with pytest.raises(UnsupportedError, match="no backend can answer this"):
            qrobust.check(qrobust.GlobalLabel(other, qrobust.Absolute(0.01).around(other), box))


@pytest.mark.parametrize("encoding", list(Encoding))
def test_formulas_hold_the_scaling_exactly(encoding: Encoding) -> None:
    import z3

    line = Network(
        (Dense(np.array([[1.5, -2.0]]), np.array([0.25])),), Output.SIGMOID
    )  # explicit formulas of several layers take z3 too long
    network = scaled(line if encoding is Encoding.EXPLICIT else core(0, inputs=2), *RATIONAL)
    verdicts = set()
    for delta in (0.001, 3.0):
        query = qrobust.LocalLabel(network, qrobust.Absolute(delta).around(network), Point([120.0, 30.0]))
        solver = z3.Solver()
        solver.from_string(to_smtlib(encode(query, encoding)))
        violated = solver.check() == z3.sat
        assert violated == (qrobust.check(query).verdict is Verdict.VIOLATED)
        verdicts.add(violated)
    assert verdicts == {True, False}


@pytest.mark.parametrize("ending", ["json", "npz"])
def test_own_files_keep_the_rationals(ending: str, tmp_path: Path) -> None:
    for network in (scaled(core(), *RATIONAL), scaled(core(), *DYADIC), scaled(core(), 0.1, 1 / 3)):
        formats.save(network, tmp_path / f"m.{ending}")
        assert formats.load(tmp_path / f"m.{ending}") == network


def test_onnx_files_are_written_where_they_can_scale_exactly(tmp_path: Path) -> None:
    single = core()
    single = Network(
        tuple(layer.with_parameters(*(np.float32(a) for a in (layer.weight, layer.bias))) for layer in single.layers),
        single.output,
    )
    ways = (("1/255", 0), (0.5, 3), (Fraction(1, 3), Fraction(-2, 3)), (Fraction(1, 3), 7), (1, 0.25), (3, 1))
    for scale, offset in ways:
        network = scaled(single, scale, offset)
        content = onnx_bytes(network)
        (tmp_path / "m.onnx").write_bytes(content)
        assert formats.load(tmp_path / "m.onnx") == network or (scale, offset) == (1, 0)
        x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32).astype(np.float64)
        assert relative_difference(network.confidences(x), runtime(content, x)) < CLOSE
    with pytest.raises(UnsupportedError, match="no float32 is"):
        onnx_bytes(scaled(single, "1/255", Fraction(1, 7)))
    with pytest.raises(UnsupportedError, match="no float32 is"):
        onnx_bytes(scaled(single, 1e-310, 1))  # 1 / scale is beyond float64
    with pytest.raises(UnsupportedError, match="no float64 is"):
        write_onnx(scaled(single, "1/255", Fraction(1, 7)), tmp_path / "n.onnx", double=True)
    assert not (tmp_path / "n.onnx").exists()


GRAPHS = {
    "by 255": lambda: dense_tail(Graph((1, 4)).add("Div", np.float32(255.0))),
    "by a tenth": lambda: dense_tail(Graph((1, 4)).add("Mul", np.float32(0.1))),
    "standardized": lambda: dense_tail(Graph((1, 4)).add("Sub", rng_numbers(4)).add("Div", np.abs(rng_numbers(4)) + 1)),
    "far apart": lambda: dense_tail(Graph((1, 4)).add("Sub", np.array([1e-9, 1e9, 1, 1], dtype=np.float32))),
    "before padding": lambda: dense_tail(
        image().add("Add", np.float32(0.5)).add("Conv", rng_numbers(2, 2, 3, 3), pads=[1, 1, 1, 1]).add("Flatten"), 72
    ),
    "a pool": lambda: dense_tail(image().add("Div", np.float32(255)).add("MaxPool", kernel_shape=[6, 6]).add("Flatten"), 2),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_onnx_scaling_of_inputs(name: str, tmp_path: Path) -> None:
    content = GRAPHS[name]().content()
    network = loaded(tmp_path / "m.onnx", content)
    assert network.scaling is not None
    inputs = np.random.default_rng(1).normal(size=(5, network.inputs)).astype(np.float32).astype(np.float64) * 100
    assert relative_difference(logits(network, inputs, FloatArithmetic()), runtime(content, inputs)) < 10 * CLOSE
    if name == "by 255":
        assert set(network.scaling.scale.tolist()) == {Fraction(1, 255)}


SCALERS = (StandardScaler(), StandardScaler(with_mean=False), MinMaxScaler((-1, 1)), MaxAbsScaler(), RobustScaler())


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
@pytest.mark.parametrize("scaler", SCALERS, ids=str)
def test_pipelines_of_scikit_learn(scaler: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 3)) * [1, 30, 0.1] + [0, 100, 1]
    labels = (inputs[:, 1] > 100 + 10 * inputs[:, 0]).astype(int)
    pipeline = make_pipeline(scaler, MLPClassifier((4,), solver="lbfgs", max_iter=60, random_state=0)).fit(inputs, labels)
    network = from_sklearn(pipeline)
    np.testing.assert_allclose(network.confidences(inputs), pipeline.predict_proba(inputs)[:, 1:], rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(network.labels(inputs), pipeline.predict(inputs))
    import skops.io

    skops.io.dump(pipeline, tmp_path / "m.skops")
    assert formats.load(tmp_path / "m.skops") == network


def test_pipelines_that_do_more_are_refused() -> None:
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(50, 2)), np.arange(50) % 2
    for step, message in ((PolynomialFeatures(), "'polynomialfeatures' of class"), (MinMaxScaler(clip=True), "that clips")):
        pipeline = make_pipeline(step, MLPClassifier((2,), max_iter=1)).fit(inputs, labels)
        with pytest.raises(UnsupportedError, match=message):
            from_sklearn(pipeline)


def test_the_command_line_speaks_in_the_models_own_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = scaled(core(), *RATIONAL)
    formats.save(network, tmp_path / "m.json")
    code, out, _ = run(capsys, "check", str(tmp_path / "m.json"), "--label", "--delta", "0.5", "--point", "200, 17, 3")
    assert code == 1
    assert "input 1 = 200, input 2 = 17, input 3 = 3" in out
    code, out, _ = run(capsys, "blame", str(tmp_path / "m.json"), "--point", "200, 17, 3", "--delta", "0.01")
    assert code == 0
    code, out, _ = run(capsys, "inspect", str(tmp_path / "m.json"), "--scheme", "int8")
    assert "layer 2, weights 4x3" in out
    assert Replay(network, qrobust.answers.Counterexample((Fraction(1),) * 3, ())).label(False, Fraction(1, 2)) in (0, 1)
