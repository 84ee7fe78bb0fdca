"""Convolutions and pools: every arithmetic, the matrices and the readers against the definition, loop by loop."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qrobust
from qrobust import formats
from qrobust.bounds import local
from qrobust.bounds.ibp import INTERVALS, box_logits, nominal_logits
from qrobust.domains import ParameterBox
from qrobust.errors import NumberError, QRobustError, ShapeError, UnsupportedError
from qrobust.exact import ExactArithmetic, ExactArray, to_exact, to_rational
from qrobust.formats.native import from_document, read_native, to_document, write_native
from qrobust.formula import Encoding, encode
from qrobust.interval import FloatArray, Interval
from qrobust.layers import AveragePool2d, Conv2d, Layer, MaxPool2d, Scaling
from qrobust.network import GATHERED, Activation, Dense, FloatArithmetic, Network, Output, logits, perturbed_logits
from qrobust.perturbations import Absolute, Hull, PerLayer
from tests.damage import packed, refusal

RELU, LINEAR = Activation.RELU, Activation.LINEAR
EXACT = ExactArithmetic()


def convolution(
    rng: np.random.Generator,
    input_shape: tuple[int, int, int] = (2, 5, 4),
    channels: int = 3,
    kernel: tuple[int, int] = (2, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    activation: Activation = LINEAR,
) -> Conv2d:
    weight = rng.normal(size=(channels, input_shape[0], *kernel))
    return Conv2d(weight, rng.normal(size=channels), activation, input_shape, stride, padding)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one by one": {"kernel": (1, 1)},
    "whole image": {"kernel": (5, 4)},
    "stride": {"stride": (2, 1), "kernel": (2, 2)},
    "long stride": {"stride": (9, 9), "kernel": (2, 2)},
    "padding": {"padding": (1, 1, 1, 1), "kernel": (3, 3)},
    "uneven padding": {"padding": (0, 2, 1, 0), "stride": (2, 2), "kernel": (3, 2)},
    "nothing but padding": {"padding": (4, 0, 4, 0), "kernel": (2, 2), "stride": (3, 1)},
    "one channel": {"input_shape": (1, 4, 4), "channels": 1},
}
POOLS = (((2, 4, 6), (2, 2), (2, 2)), ((1, 5, 5), (3, 2), (1, 2)), ((3, 5, 4), (2, 3), (2, 1)), ((2, 3, 3), (3, 3), (1, 1)))


def defined(layer: Layer, weight: Any, bias: Any, x: list[Any]) -> list[Any]:
    """A convolution or a pool as it is defined, over any numbers; weight and bias of a pool are not looked at."""
    assert not isinstance(layer, Dense | Scaling)
    channels, height, width = layer.input_shape
    image = {(c, r, k): x[(c * height + r) * width + k] for c in range(channels) for r in range(height) for k in range(width)}
    size = layer.weight.shape[2:] if isinstance(layer, Conv2d) else layer.size
    top, left = layer.padding[:2] if isinstance(layer, Conv2d) else (0, 0)
    result = []
    for c in range(layer.output_shape[0]):
        for i in range(layer.output_shape[1]):
            for j in range(layer.output_shape[2]):
                place = [
                    (a, b, i * layer.stride[0] + a - top, j * layer.stride[1] + b - left)
                    for a in range(size[0])
                    for b in range(size[1])
                ]
                if isinstance(layer, Conv2d):
                    total = bias[c]
                    for d in range(channels):
                        total += sum(weight[c][d][a][b] * image.get((d, row, column), 0) for a, b, row, column in place)
                    result.append(total)
                else:
                    seen = [image[c, row, column] for _, _, row, column in place]
                    result.append(max(seen) if isinstance(layer, MaxPool2d) else sum(seen) / Fraction(len(seen)))
    return result


def fractions(values: FloatArray) -> Any:
    return np.frompyfunc(Fraction, 1, 1)(values.astype(object))


def exact_outputs(layer: Layer, x: FloatArray) -> list[Fraction]:
    return defined(layer, fractions(layer.weight), fractions(layer.bias), [Fraction(value) for value in x.tolist()])


def image_layers() -> list[Layer]:
    rng = np.random.default_rng(5)
    found: list[Layer] = [convolution(rng, **settings) for settings in CONVOLUTIONS.values()]
    for shape, size, stride in POOLS:
        found += [AveragePool2d(shape, size, stride), MaxPool2d(shape, size, stride)]
    return found


LAYERS = image_layers()


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_is_what_its_definition_says(layer: Layer) -> None:
    rng = np.random.default_rng(6)
    batch = rng.normal(size=(3, layer.inputs))
    floats = layer.apply(FloatArithmetic(), layer.weight, batch, layer.bias)
    assert floats.shape == (3, layer.outputs)
    for x, found in zip(batch, floats, strict=True):
        expected = exact_outputs(layer, x)
        exact = layer.apply(EXACT, to_exact(layer.weight), to_exact(x), to_exact(layer.bias))
        assert [to_rational(value) for value in exact] == expected
        np.testing.assert_allclose(found, [float(value) for value in expected], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_intervals_hold_every_exact_value(layer: Layer) -> None:
    rng = np.random.default_rng(7)
    middle, radius = rng.normal(size=(2, layer.inputs)), rng.exponential(size=(2, layer.inputs))
    box = Interval(middle - radius, middle + radius)
    ends = [(values - 0.25 * np.abs(values), values + 0.5) for values in (layer.weight, layer.bias)]
    weight, bias = (Interval(low, high) for low, high in ends)
    found = layer.apply(INTERVALS, weight, box, bias)
    assert found.shape == (2, layer.outputs)
    for row in range(2):
        for _ in range(8):
            x, w, b = (
                np.where(rng.random(side.lower.shape) < 0.5, side.lower, side.upper) for side in (box[row], weight, bias)
            )
            values = defined(layer, fractions(w), fractions(b), [Fraction(value) for value in x.tolist()])
            for value, low, high in zip(values, found.lower[row].tolist(), found.upper[row].tolist(), strict=True):
                assert Fraction(low) <= value <= Fraction(high)


def test_each_output_of_an_interval_convolution_is_attained() -> None:
    """One output uses each weight once: its interval is the exact range, up to rounding."""
    rng = np.random.default_rng(8)
    layer = convolution(rng, kernel=(3, 3), padding=(1, 1, 1, 1))
    x = rng.normal(size=layer.inputs)
    weight = Interval(layer.weight - 0.1, layer.weight + 0.1)
    found = layer.apply(INTERVALS, weight, Interval.point(x[None]), Interval.point(layer.bias))
    place = 7
    patch = np.append(x, 0.0)[layer.windows[place]].reshape(layer.weight.shape[1:])
    best = np.where(patch > 0, weight.upper, weight.lower)
    exact = defined(layer, fractions(best), fractions(layer.bias), [Fraction(value) for value in x.tolist()])
    for channel in range(3):
        index = channel * len(layer.windows) + place
        assert float(exact[index]) == pytest.approx(found.upper[0, index], rel=1e-12)


def test_balls_go_through_every_layer() -> None:
    rng = np.random.default_rng(9)
    layers = (
        convolution(rng, (1, 4, 4), 2, (2, 2), padding=(0, 0, 1, 1), activation=Activation.TANH),
        MaxPool2d((2, 4, 4), (2, 2), (2, 2)),
        AveragePool2d((2, 2, 2), (2, 1), (1, 1)),
        convolution(rng, (2, 1, 2), 1, (1, 2), activation=Activation.SIGMOID),
        Dense(rng.normal(size=(1, 1)), rng.normal(size=1)),
    )
    network = Network(layers, Output.SIGMOID)
    x = rng.normal(size=16)
    value = logits(network, to_exact(x), EXACT)[0]
    assert float(value) == pytest.approx(float(logits(network, x[None], FloatArithmetic())[0, 0]), rel=1e-12)


def test_a_large_batch_is_convolved_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    layer = convolution(rng)
    x = rng.normal(size=(7, layer.inputs))
    whole = layer.apply(FloatArithmetic(), layer.weight, x, layer.bias)
    monkeypatch.setattr("qrobust.network.MEMORY", 2 * 8 * GATHERED * layer.windows.size)
    np.testing.assert_allclose(layer.apply(FloatArithmetic(), layer.weight, x, layer.bias), whole, rtol=1e-13)
    assert layer.apply(FloatArithmetic(), layer.weight, x[:0], layer.bias).shape == (0, layer.outputs)


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if not isinstance(layer, MaxPool2d)], ids=str)
def test_the_matrix_is_the_layer(layer: Layer) -> None:
    assert not isinstance(layer, MaxPool2d | Scaling)
    rng = np.random.default_rng(11)
    x, weight, bias = rng.normal(size=layer.inputs), rng.normal(size=layer.weight.shape), rng.normal(size=layer.bias.shape)
    matrix: Any = layer.matrix(weight)
    added = layer.bias_vector(bias)
    assert matrix.shape == (layer.outputs, layer.inputs)
    assert added.shape == (layer.outputs,)
    found = layer.apply(FloatArithmetic(), weight, x[None], bias)[0]
    np.testing.assert_allclose(matrix @ x + added, found, rtol=1e-12, atol=1e-12)
    if isinstance(layer, Conv2d):
        assert matrix.has_canonical_format
        assert set(matrix.data.tolist()) <= set(weight.ravel().tolist())
        names = layer.matrix(np.arange(1.0, weight.size + 1).reshape(weight.shape))
        assert names.nnz == np.count_nonzero(layer.windows < layer.inputs) * len(weight)


def test_the_matrix_of_a_dense_layer_is_its_weights() -> None:
    layer = Dense(np.array([[1.0, 2.0]]), np.array([3.0]))
    assert layer.matrix(layer.weight) is layer.weight
    assert layer.bias_vector(layer.bias) is layer.bias


@pytest.mark.parametrize(("size", "exact"), [((2, 2), True), ((1, 1), True), ((4, 2), True), ((3, 2), False), ((5, 5), False)])
def test_a_mean_is_enclosed(size: tuple[int, int], exact: bool) -> None:
    pool = AveragePool2d((1, 5, 5), size, (1, 1))
    low, high = pool.share
    assert Fraction(low) <= Fraction(1, pool.count) <= Fraction(high)
    assert pool.is_exact == exact == (low == high)
    assert high <= math.nextafter(low, 1.0)
    lower, upper = pool.matrix_bounds()
    assert set(lower.data.tolist()) == {low}
    assert set(upper.data.tolist()) == {high}
    assert (lower.indices == pool.windows.ravel()).all()


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Conv2d(np.ones((1, 2, 2)), np.ones(1), RELU, (1, 3, 3)), ShapeError, "needs weights"),
        (lambda: Conv2d(np.ones((0, 1, 2, 2)), np.ones(0), RELU, (1, 3, 3)), ShapeError, "needs weights"),
        (lambda: Conv2d(np.ones((1, 1, 2, 2)), np.ones(2), RELU, (1, 3, 3)), ShapeError, "need 1 biases"),
        (lambda: Conv2d(np.ones((1, 1, 2, 2)), np.ones(1), RELU, (2, 3, 3)), ShapeError, "cannot take 2 channels"),
        (lambda: Conv2d(np.ones((1, 1, 4, 2)), np.ones(1), RELU, (1, 3, 3)), ShapeError, "do not fit an image"),
        (lambda: Conv2d(np.ones((1, 1, 2, 2)), np.ones(1), RELU, (1, 3)), ShapeError, "input_shape must be 3"),  # type: ignore[arg-type]
        (lambda: Conv2d(np.ones((1, 1, 2, 2)), np.ones(1), RELU, (1, 3, 0)), ShapeError, "whole numbers >= 1"),
        (lambda: Conv2d(np.ones((1, 1, 2, 2)), np.ones(1), RELU, (1, 3, 3), (0, 1)), ShapeError, "stride must be 2"),
        (lambda: Conv2d(np.ones((1, 1, 2, 2)), np.ones(1), RELU, (1, 3, 3), (1.0, 1)), ShapeError, "stride"),  # type: ignore[arg-type]
        (lambda: Conv2d(np.ones((1, 1, 2, 2)), np.ones(1), RELU, (1, 3, 3), (True, 1)), ShapeError, "stride"),
        (lambda: Conv2d(np.ones((1, 1, 2, 2)), np.ones(1), RELU, (1, 3, 3), (1, 1), (0, 0, 0, -1)), ShapeError, "padding"),
        (lambda: Conv2d(np.full((1, 1, 2, 2), np.nan), np.ones(1), RELU, (1, 3, 3)), NumberError, "NaN or infinite"),
        (lambda: Conv2d(np.ones((1, 1, 2, 2)), np.array([np.inf]), RELU, (1, 3, 3)), NumberError, "NaN or infinite"),
        (lambda: MaxPool2d((1, 3, 3), (4, 1), (1, 1)), ShapeError, "does not fit an image"),
        (lambda: AveragePool2d((1, 3, 3), (0, 1), (1, 1)), ShapeError, "size must be 2"),
        (lambda: AveragePool2d((1, 3, 3), (1, 1), "ab"), ShapeError, "stride must be 2"),  # type: ignore[arg-type]
    ],
)
def test_geometry_that_makes_no_sense_is_refused(make: Callable[[], Layer], kind: type[QRobustError], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def small(seed: int = 12, pool: type[AveragePool2d | MaxPool2d] = AveragePool2d) -> Network:
    """A convolution, a pool and two dense layers on images (1, 4, 4)."""
    rng = np.random.default_rng(seed)
    layers = (
        convolution(rng, (1, 4, 4), 2, (3, 3), padding=(1, 1, 1, 1), activation=RELU),
        pool((2, 4, 4), (2, 2), (2, 2)),
        Dense(rng.normal(size=(3, 8)), rng.normal(size=3), RELU),
        Dense(rng.normal(size=(2, 3)), rng.normal(size=2)),
    )
    return Network(layers, Output.SOFTMAX, name="small")


def test_layers_of_a_network_must_fit() -> None:
    conv, pool, dense, last = small().layers
    assert isinstance(pool, AveragePool2d)
    with pytest.raises(ShapeError, match="the last layer gives logits: it must be dense"):
        Network((conv, pool), Output.SOFTMAX)
    with pytest.raises(ShapeError, match=r"layer 2 takes images \(4, 2, 4\) but layer 1 gives \(2, 4, 4\)"):
        Network((conv, replace(pool, input_shape=(4, 2, 4)), dense, last), Output.SOFTMAX)
    with pytest.raises(ShapeError, match="layer 3 takes 8 inputs but layer 2 gives 32"):
        Network((conv, MaxPool2d((2, 4, 4), (1, 1), (1, 1)), dense, last), Output.SOFTMAX)


def test_what_a_network_of_images_says_of_itself() -> None:
    network = small()
    assert str(network) == "small (1x4x4-conv 2x4x4-average 2x2x2-3-2, 55 parameters)"
    assert (network.inputs, network.class_count, network.is_dense) == (16, 2, False)
    assert all(layer.weight.shape == layer.bias.shape == (0,) for layer in network.layers[1:2])
    assert network.confidences(np.zeros((5, 16))).shape == (5, 2)


def test_the_hash_of_dense_networks_is_as_ever() -> None:
    """Hashes stand in committed cards; this one was taken before there were convolutions."""
    network = Network((Dense([[1.0, 2.0], [0.5, -1.0]], [0.0, 1.0], RELU), Dense([[1.0, -1.0]], [0.25])), Output.SIGMOID)  # type: ignore[arg-type]
    assert network.sha256 == "b845d701c021d5b881585fce5f65c0eacc9390bce7fa030b43d5a24b893e1ed8"


def test_the_hash_sees_the_geometry() -> None:
    network = small()
    conv, pool, *rest = network.layers
    assert isinstance(conv, Conv2d)
    others = [
        (replace(conv, padding=(2, 1, 0, 1)), pool, *rest),
        (replace(conv, activation=LINEAR), pool, *rest),
        (conv, MaxPool2d((2, 4, 4), (2, 2), (2, 2)), *rest),
        (conv, AveragePool2d((2, 4, 4), (3, 2), (1, 2)), *rest),
        (conv, AveragePool2d((2, 4, 4), (2, 2), (2, 2)), *rest),
    ]
    hashes = [Network(layers, Output.SOFTMAX).sha256 for layers in others]
    assert hashes[-1] == network.sha256
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("pool", [AveragePool2d, MaxPool2d])
def test_boxes_around_a_network_of_images(pool: type[AveragePool2d | MaxPool2d]) -> None:
    network = small(pool=pool)
    box = PerLayer((0.5, 0.25, 0.125)).around(network)
    radii = [float(layer.weight.interval.width.max(initial=0.0)) / 2 for layer in box.layers]
    assert radii == pytest.approx([0.5, 0.0, 0.25, 0.125])
    with pytest.raises(ShapeError, match="2 deltas for 3 layers"):
        PerLayer((0.1, 0.1)).around(network)
    for each in (box, Absolute(0.01).around(network), Hull(small(13, pool)).around(network)):
        each.check_fits(network)
        stored = tuple((fractions(layer.weight), fractions(layer.bias)) for layer in network.layers)
        assert each.contains(stored)
        assert len(each.sha256) == 64
    with pytest.raises(ShapeError, match="layer 2 of the second network is no layer like that of the first"):
        Hull(small(13, AveragePool2d if pool is MaxPool2d else MaxPool2d)).around(network)


def test_a_box_of_explicit_arrays_keeps_its_rules() -> None:
    network = small()
    arrays = [(layer.weight, layer.bias) for layer in network.layers]
    ParameterBox.from_arrays(arrays, arrays).check_fits(network)
    with pytest.raises(ShapeError, match="non-empty"):
        ParameterBox.from_arrays([([], [1.0])], [([], [1.0])])
    dense = Network(network.layers[2:], Output.SOFTMAX)
    with pytest.raises(ShapeError, match="the parameter box has layers"):
        ParameterBox.from_arrays([([], []), arrays[3]], [([], []), arrays[3]]).check_fits(dense)


@pytest.mark.parametrize("pool", [AveragePool2d, MaxPool2d])
def test_interval_logits_hold_every_perturbed_network(pool: type[AveragePool2d | MaxPool2d]) -> None:
    rng = np.random.default_rng(14)
    network = small(pool=pool)
    box = Absolute(0.05).around(network)
    x = rng.normal(size=16)
    inputs = Interval(x[None] - 0.02, x[None] + 0.02)
    outer, stored = box_logits(network, box, inputs), nominal_logits(network, inputs)
    assert (outer.lower <= stored.lower).all()
    assert (stored.upper <= outer.upper).all()
    for _ in range(20):
        point = np.where(rng.random(16) < 0.5, inputs.lower[0], inputs.upper[0])
        chosen: list[tuple[ExactArray, ExactArray]] = []
        for layer in box.layers:
            ends = (layer.weight.fractions, layer.bias.fractions)
            chosen.append(tuple(np.where(rng.random(low.shape) < 0.5, low, high) for low, high in ends))  # type: ignore[arg-type]
        assert box.contains(tuple(chosen))
        values = perturbed_logits(network, [(to_exact(w), to_exact(b)) for w, b in chosen], to_exact(point), EXACT)
        for value, low, high in zip(values, outer.lower[0].tolist(), outer.upper[0].tolist(), strict=True):
            assert Fraction(low) <= to_rational(value) <= Fraction(high)


@pytest.mark.parametrize("encoding", Encoding)
def test_what_has_no_rule_for_images_says_so(encoding: Encoding) -> None:
    network = small()
    box = Absolute(0.01).around(network)
    query = qrobust.LocalLabel(network, box, qrobust.Point(np.zeros(16)))
    with pytest.raises(
        UnsupportedError, match="the formulas have no rule for Conv2d; use `qrobust check --backend branch-and-bound`"
    ):
        encode(query, encoding)
    assert "convolutions" in str(local.why_not(network, confidences=False))
    for backend in ("closed-form", "z3", "dreal"):
        with pytest.raises(UnsupportedError, match="convolutions and pools"):
            qrobust.check(query, backend=backend)


@pytest.mark.parametrize("pool", [AveragePool2d, MaxPool2d])
def test_networks_of_images_are_written_and_read(pool: type[AveragePool2d | MaxPool2d], tmp_path: Path) -> None:
    network = small(pool=pool)
    write_native(network, tmp_path / "m.json")
    again = read_native(tmp_path / "m.json")
    assert again == network
    assert again.name == "small"
    assert formats.load(tmp_path / "m.json").layers[0].windows.tolist() == network.layers[0].windows.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("number", "key", "value", "message"),
    [
        (0, "stride", [0, 1], "layer 1: a convolution's stride must be 2 whole numbers >= 1"),
        (0, "stride", None, 'layer 1: "stride" must be a list'),
        (0, "input_shape", [1, 4, 4.5], "layer 1: a convolution's input_shape"),
        (0, "padding", [[0], 0, 0, 0], "layer 1: a convolution's padding"),
        (0, "weight", [1.0], "layer 1: a convolution needs weights"),
        (0, "type", "conv3d", "layer 1 must be an object of type dense, conv2d"),
        (1, "size", [5, 5], "layer 2: a pool of size (5, 5) does not fit"),
        (1, "size", 2, 'layer 2: "size" must be a list'),
        (1, "type", "dense", "layer 2: activation None is not known"),
    ],
)
def test_a_damaged_document_is_refused(number: int, key: str, value: Any, message: str) -> None:
    document = to_document(small())
    document["layers"][number][key] = value
    with pytest.raises(QRobustError) as caught:
        from_document(document)
    assert message in str(caught.value)


# A .keras file as Keras 3.13 writes it, by hand; `expected` computes it as Keras does, channels last.

IMAGE = (5, 4, 2)
CONFIG: dict[str, dict[str, Any]] = {
    "Conv2D": {
        "name": "c", "filters": 3, "kernel_size": [3, 2], "strides": [2, 1], "padding": "same", "data_format": "channels_last",
        "dilation_rate": [1, 1], "groups": 1, "activation": "linear", "use_bias": True,
    },
    "BatchNormalization": {"name": "n", "axis": -1, "epsilon": 0.001, "center": True, "scale": True},
    "ReLU": {"name": "r", "max_value": None, "negative_slope": 0.0, "threshold": 0.0},
    "MaxPooling2D": {
        "name": "m", "pool_size": [2, 2], "strides": [1, 1], "padding": "valid", "data_format": "channels_last",
    },
    "Flatten": {"name": "f", "data_format": "channels_last"},
    "Dense": {"name": "d", "units": 3, "activation": "softmax", "use_bias": True},
}  # fmt: skip


def architecture() -> list[dict[str, Any]]:
    layers = [{"class_name": "InputLayer", "config": {"batch_shape": [None, *IMAGE], "name": "i"}}]
    return layers + [{"class_name": kind, "config": dict(settings)} for kind, settings in CONFIG.items()]


def stored_arrays() -> dict[str, FloatArray]:
    rng = np.random.default_rng(15)
    shapes: dict[str, tuple[int, ...]] = {
        "conv2d/vars/0": (3, 2, 2, 3),
        "conv2d/vars/1": (3,),
        "dense/vars/0": (18, 3),
        "dense/vars/1": (3,),
    }
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    arrays |= {f"batch_normalization/vars/{place}": rng.normal(size=3) for place in range(3)}
    arrays["batch_normalization/vars/3"] = rng.uniform(0.5, 2.0, size=3)
    return {name: values.astype("f4").astype("f8") for name, values in arrays.items()}


def keras_file(layers: list[dict[str, Any]], arrays: dict[str, FloatArray]) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(f"layers/{name}", data=values.astype("f4"))
    config = json.dumps({"class_name": "Sequential", "config": {"name": "s", "layers": layers}}).encode()
    return packed({"metadata.json": b"{}", "config.json": config, "model.weights.h5": buffer.getvalue()})


def expected(image: FloatArray) -> FloatArray:
    """Logits of the model above by direct loops over a channels-last image."""
    arrays = stored_arrays()
    kernel, bias = arrays["conv2d/vars/0"], arrays["conv2d/vars/1"]
    gamma, beta, mean, variance = (arrays[f"batch_normalization/vars/{place}"] for place in range(4))
    # "same", stride (2, 1): ceil(5 / 2) = 3 rows need 7, one zero above and one below; 4 columns need 5, one at the right.
    padded = np.zeros((7, 5, 2))
    padded[1:6, :4] = image
    values = np.zeros((3, 4, 3))
    for i in range(3):
        for j in range(4):
            for c in range(3):
                values[i, j, c] = (padded[2 * i : 2 * i + 3, j : j + 2] * kernel[:, :, :, c]).sum() + bias[c]
    values = np.maximum((values - mean) / np.sqrt(variance + 0.001) * gamma + beta, 0.0)
    pooled = np.zeros((2, 3, 3))
    for i in range(2):
        for j in range(3):
            pooled[i, j] = values[i : i + 2, j : j + 2].max(axis=(0, 1))
    return np.asarray(pooled.ravel() @ arrays["dense/vars/0"] + arrays["dense/vars/1"])


def test_a_keras_model_of_images_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.keras").write_bytes(keras_file(architecture(), stored_arrays()))
    network = formats.load(tmp_path / "m.keras")
    assert str(network) == "m (2x5x4-conv 3x3x4-max 3x2x3-3, 96 parameters)"
    for image in np.random.default_rng(16).normal(size=(10, *IMAGE)):
        x = image.transpose(2, 0, 1).reshape(1, -1)
        np.testing.assert_allclose(logits(network, x, FloatArithmetic())[0], expected(image), rtol=1e-10, atol=1e-10)


def test_a_normalization_without_scale_and_center_is_folded(tmp_path: Path) -> None:
    """After a Dense: mean and variance alone are stored, as vars 0 and 1."""
    layers: list[dict[str, Any]] = [
        {"class_name": "Dense", "config": CONFIG["Dense"] | {"units": 2, "activation": "linear", "use_bias": False}},
        {"class_name": "BatchNormalization", "config": CONFIG["BatchNormalization"] | {"center": False, "scale": False}},
        {"class_name": "Activation", "config": {"name": "a", "activation": "softmax"}},
    ]
    weight, mean, variance = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.5, 1.0]), np.array([3.75, 0.0])
    arrays = {"dense/vars/0": weight, "batch_normalization/vars/0": mean, "batch_normalization/vars/1": variance}
    layers[1]["config"]["epsilon"] = 0.25
    (tmp_path / "m.keras").write_bytes(keras_file(layers, arrays))
    (layer,) = formats.load(tmp_path / "m.keras").layers
    assert layer.weight.tolist() == [[0.5, 1.5], [4.0, 8.0]]
    assert layer.bias.tolist() == [-0.25, -2.0]


def test_pools_and_two_convolutions_find_their_numbers(tmp_path: Path) -> None:
    """Groups are counted class by class; a pool takes its size as its stride where none is given."""
    pool = {"name": "a", "pool_size": [2, 2], "strides": None, "padding": "valid", "data_format": "channels_last"}
    one = CONFIG["Conv2D"] | {"filters": 2, "kernel_size": [1, 1], "strides": [1, 1], "padding": "valid", "use_bias": False}
    layers = [
        {"class_name": "InputLayer", "config": {"batch_shape": [None, 4, 4, 1]}},
        {"class_name": "Conv2D", "config": one},
        {"class_name": "AveragePooling2D", "config": pool},
        {"class_name": "Conv2D", "config": one | {"activation": "relu"}},
        {"class_name": "Flatten", "config": {}},
        {"class_name": "Dense", "config": CONFIG["Dense"] | {"units": 1, "activation": "sigmoid"}},
    ]
    arrays = {
        "conv2d/vars/0": np.array([1.0, 2.0]).reshape(1, 1, 1, 2),
        "conv2d_1/vars/0": np.array([[1.0, 0.0], [0.0, -1.0]]).reshape(1, 1, 2, 2),
        "dense/vars/0": np.arange(8.0).reshape(8, 1),
        "dense/vars/1": np.array([0.5]),
    }
    (tmp_path / "m.keras").write_bytes(keras_file(layers, arrays))
    network = formats.load(tmp_path / "m.keras")
    assert [type(layer) for layer in network.layers] == [Conv2d, AveragePool2d, Conv2d, Dense]
    # Means of 2 x 2 blocks of 0..15: 2.5, 4.5, 10.5, 12.5; channel 1 of the result is their double negated: 0 after ReLU.
    # Keras's flat order alternates the channels: the means meet the weights 0, 2, 4, 6.
    value = logits(network, np.arange(16.0)[None], FloatArithmetic())[0, 0]
    assert value == 2 * 4.5 + 4 * 10.5 + 6 * 12.5 + 0.5


def edited(kind: str, **settings: Any) -> list[dict[str, Any]]:
    layers = architecture()
    next(layer for layer in layers if layer["class_name"] == kind)["config"].update(settings)
    return layers


def without(kind: str) -> list[dict[str, Any]]:
    return [layer for layer in architecture() if layer["class_name"] != kind]


def swapped(first: int, second: int) -> list[dict[str, Any]]:
    layers = architecture()
    layers[first], layers[second] = layers[second], layers[first]
    return layers


REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "groups": (edited("Conv2D", groups=2), "of class Conv2D cannot be represented with 2 groups"),
    "dilation": (edited("Conv2D", dilation_rate=[2, 1]), "cannot be represented with dilation"),
    "channels first": (edited("Conv2D", data_format="channels_first"), "data_format 'channels_first', only channels_last"),
    "padding": (edited("Conv2D", padding="causal"), "with padding 'causal', only valid and same"),
    "padded pool": (edited("MaxPooling2D", padding="same"), "with padding 'same', only valid"),
    "channels-first pool": (edited("MaxPooling2D", data_format="channels_first"), "only channels_last"),
    "channels-first flatten": (edited("Flatten", data_format="channels_first"), "only channels_last"),
    "filters": (edited("Conv2D", filters=4), "kernels of shape (3, 2, 2, 3), not those of config.json"),
    "kernel": (edited("Conv2D", kernel_size=3), "not those of config.json"),
    "stride": (edited("Conv2D", strides=[1, 2, 3]), "it must be two whole numbers > 0"),
    "stride 0": (edited("Conv2D", strides=0), "it must be two whole numbers > 0"),
    "activation": (edited("Conv2D", activation="relu"), "of class BatchNormalization cannot be represented unless"),
    "axis": (edited("BatchNormalization", axis=1), "over axis 1, only over the last one"),
    "no flatten": (without("Flatten"), "of class Dense cannot be represented on images, put a Flatten before it"),
    "no input": (without("InputLayer"), "no images of a known shape"),
    "unknown size": (edited("InputLayer", batch_shape=[None, None, None, 2]), "only plain vectors and images"),
    "normalized pool": (
        [architecture()[i] for i in (0, 1, 4, 2, 5, 6)],
        "of class BatchNormalization cannot be represented unless",
    ),
    "normalized flatten": ([architecture()[i] for i in (0, 1, 5, 2, 3, 6)], "of class BatchNormalization cannot be"),
    "another image": (edited("InputLayer", batch_shape=[None, 5, 6, 2]), "takes 18 inputs, not 30"),
    "other channels": (edited("InputLayer", batch_shape=[None, 5, 4, 1]), "cannot take 1 channels"),
    "activated pool": (swapped(3, 4), "of class ReLU cannot be represented unless"),
    "no dense": (architecture()[:-1], "no Dense layer"),
    "large pool": (edited("MaxPooling2D", pool_size=[9, 9]), "does not fit an image"),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_a_keras_model_that_cannot_be_represented_is_refused(damage: str, tmp_path: Path) -> None:
    layers, message = REFUSED[damage]
    assert message in refusal(tmp_path / "m.keras", keras_file(layers, stored_arrays()))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("batch_normalization/vars/3", np.full(3, -1.0), "NaN or infinite"),
        ("batch_normalization/vars/2", np.zeros(2), "one number for each of 3 channels"),
        ("conv2d/vars/0", np.zeros((3, 2, 2)), "4 dimension(s)"),
        ("conv2d/vars/1", np.zeros(4), "need 3 biases"),
    ],
)
def test_damaged_numbers_of_images_are_refused(name: str, values: FloatArray, message: str, tmp_path: Path) -> None:
    content = keras_file(architecture(), stored_arrays() | {name: values})
    assert message in refusal(tmp_path / "m.keras", content)
