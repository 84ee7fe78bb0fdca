"""Do the readers of binarized networks give the function that the file's runtime computes?"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust.binarized import BinarizedNetwork, Box, Grid, Robustness, TieRule, fold
from qrobust.binarized.formats import load_binarized, read_vnnlib, save_binarized
from qrobust.binarized.formats.onnx import read_onnx
from qrobust.errors import DomainError, ModelFileError, NumberError, QRobustError, UnsupportedError
from qrobust.formats import save
from qrobust.interval import FloatArray
from qrobust.layers import Activation, Dense
from qrobust.network import Network, Output
from qrobust.quantization import Binary, Integer, Ternary
from tests.binarized import all_levels, network, sparse_dense

BYTES = Grid.of(1, 0, 255)


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_own_files_give_back_the_same_network(tmp_path: Path, suffix: str) -> None:
    for seed in range(20):
        found = network(np.random.default_rng(seed))
        path = tmp_path / f"n{seed}{suffix}"
        save_binarized(found, path)
        again = load_binarized(path).network
        assert again.sha256 == found.sha256
        levels = all_levels(found)[:50]
        np.testing.assert_array_equal(fold(again).scores(levels), fold(found).scores(levels))


def _document() -> dict[str, Any]:
    return {
        "format": "qrobust-binarized",
        "version": 1,
        "input": {"step": "1", "lower": "0", "upper": "1"},
        "layers": [{"weight": [[1, -1]]}, {"weight": [[1], [-1]]}],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="x"), "qrobust-binarized"),
        (lambda d: d["input"].pop("step"), "lacks 'step'"),
        (lambda d: d["input"].update(step=0), "step is 0"),
        (lambda d: d["input"].update(rounding="up"), "rounding"),
        (lambda d: d["layers"][0].update(weight=[[2, 1]]), "weight 2"),
        (lambda d: d["layers"][0].update(weight=[[float("nan"), 1]]), "NaN"),
        (lambda d: d["layers"][0].update(weight=[[1], [1, 1]]), "not an array"),
        (lambda d: d["layers"][0].pop("weight"), "weight is missing"),
        (lambda d: d["layers"][0].update(type="lstm"), "lstm"),
        (lambda d: d["layers"][0].update(extra=1), "extra"),
        (lambda d: d["layers"][0].update(scale=[0.0]), "scale"),
        (lambda d: d["layers"][0].update(norm={"gamma": [1]}), "norm has"),
        (lambda d: d["layers"][1].update(norm={}), "norm"),
        (lambda d: d.update(layers=[]), "empty"),
        (lambda d: d.update(layers=7), "layers"),
        (lambda d: d.update(classes=["a"]), "names of classes"),
    ],
)
def test_damaged_json_is_one_line(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    document = _document()
    change(document)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(document))
    with pytest.raises(QRobustError, match=message) as raised:
        load_binarized(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_the_document_itself_is_read(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(json.dumps(_document()))
    found = load_binarized(tmp_path / "good.json").network
    assert fold(found).labels(np.array([[0, 1], [1, 1], [1, 0]])).tolist() == [1, 0, 0]


def test_files_that_are_none_say_so(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    (tmp_path / "a.onnx.gz").write_bytes(gzip.compress(b"x" * 100)[:-9])
    (tmp_path / "a.txt").write_text("x")
    for name, message in (("a.onnx", "a.onnx"), ("a.onnx.gz", "cut short"), ("a.txt", "ends in"), ("b.npz", "not exist")):
        with pytest.raises(ModelFileError, match=message):
            load_binarized(tmp_path / name, BYTES)
    with pytest.raises(ModelFileError, match="name the input step"):
        load_binarized(tmp_path / "a.onnx")


@pytest.mark.parametrize("scheme", [Binary(), Ternary(), Binary(per_channel=True)])
def test_a_float_network_is_binarized(tmp_path: Path, scheme: Binary | Ternary) -> None:
    rng = np.random.default_rng(0)
    layers = (
        Dense(rng.normal(size=(5, 4)), rng.normal(size=5), Activation.RELU),
        Dense(rng.normal(size=(3, 5)), rng.normal(size=3)),
    )
    save(Network(layers, Output.SOFTMAX), tmp_path / "float.json")
    found = load_binarized(tmp_path / "float.json", Grid.of("1/4", 0, 1), scheme).network
    copy = scheme.copy(Network(layers, Output.SOFTMAX))
    x = found.grid.values(all_levels(found))
    signs = np.where(x @ copy.layers[0].weight.T + layers[0].bias >= 0, 1.0, -1.0)
    wanted = signs @ copy.layers[1].weight.T + layers[1].bias
    np.testing.assert_allclose(found.scores(all_levels(found)), wanted, rtol=1e-12, atol=1e-12)
    with pytest.raises(UnsupportedError, match="binary or ternary"):
        load_binarized(tmp_path / "float.json", Grid.of(1, 0, 1), Integer(8))
    with pytest.raises(ModelFileError, match="name the input step"):
        load_binarized(tmp_path / "float.json", None, scheme)


def _graph(nodes: list[Any], constants: dict[str, Any], shape: list[int], path: Path) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save_model

    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("qonnx.custom_op.general", 1)]
    save_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


def _plain(path: Path, rng: np.random.Generator, **changed: Any) -> Path:
    """A convolution on transposed images, Sign, Add, Sign, moved back, flattened, a normalization, scores."""
    from onnx import helper

    make = helper.make_node
    nodes = [
        make("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
        make("Conv", ["a", "k"], ["b"], strides=[1, 2], pads=[1, 0, 0, 1]),
        make("Add", ["b", "kb"], ["c"]),
        make("Sign", ["c"], ["d"]),
        make("Add", ["d", "tenth"], ["e"]),
        make("Sign", ["e"], ["f"]),
        make("Transpose", ["f"], ["g"], perm=[0, 2, 3, 1]),
        make("Reshape", ["g", "flat"], ["h"]),
        make("MatMul", ["h", "w"], ["i"]),
        make("BatchNormalization", ["i", "gamma", "beta", "mean", "variance"], ["j"], epsilon=0.5),
        make("Sign", ["j"], ["l"]),
        make("Add", ["l", "tenth"], ["m"]),
        make("Sign", ["m"], ["n"]),
        make("Gemm", ["n", "v", "vb"], ["s"], transB=1),
        make("Softmax", ["s"], ["y"]),
    ]
    sign: Callable[..., Any] = lambda *shape: rng.choice([-1.0, 0.0, 1.0], size=shape).astype(np.float32)  # noqa: E731
    constants = {
        "k": 0.25 * rng.choice([-1.0, 1.0], size=(3, 2, 2, 2)).astype(np.float32),
        "kb": np.array([0.5, -0.25, 3.0], np.float32).reshape(1, 3, 1, 1),
        "tenth": np.float32(0.1),
        "flat": np.array([1, -1], np.int64),
        "w": sign(18, 4),
        "gamma": np.array([1.0, -2.0, 0.5, 1.0], np.float32),
        "beta": np.array([0.5, 1.0, -1.0, 0.0], np.float32),
        "mean": np.array([1.0, -1.0, 0.0, 2.0], np.float32),
        "variance": np.array([2.0, 1.0, 3.0, 0.25], np.float32),
        "v": sign(3, 4),
        "vb": np.array([0.5, 0.0, -0.5], np.float32),
    }
    return _graph(nodes, constants | changed, [1, 3, 4, 2], path)


def test_plain_onnx_is_what_onnxruntime_computes(tmp_path: Path) -> None:
    import onnxruntime

    for seed in range(5):
        rng = np.random.default_rng(seed)
        path = _plain(tmp_path / f"{seed}.onnx", rng)
        read = read_onnx(path, Grid.of(1, 0, 3))
        session = onnxruntime.InferenceSession(str(path))
        folded = fold(read.network)
        for _ in range(40):
            image = rng.integers(0, 4, size=24)
            (wanted,) = session.run(None, {"x": image.reshape(1, 3, 4, 2).astype(np.float32)})
            scores = np.exp(read.network.scores(image[read.order][None])[0])
            np.testing.assert_allclose(wanted[0], scores / scores.sum(), rtol=1e-4)
            assert wanted[0][folded.labels(image[read.order][None])[0]] == wanted[0].max()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tenth": np.float32(0.0)}, "does not become"),
        ({"w": np.full((18, 4), 0.5, np.float32) + np.eye(18, 4, dtype=np.float32)}, "two sizes"),
        ({"variance": -np.ones(4, np.float32)}, "variance -1"),
        ({"gamma": np.zeros(4, np.float32)}, "gamma is 0"),
        ({"mean": np.full(4, np.nan, np.float32)}, "NaN"),
        ({"k": np.full((3, 2, 2, 2), np.inf, np.float32)}, "NaN or infinite|not"),
        ({"flat": np.array([1, 7], np.int64)}, "not a whole"),
    ],
)
def test_onnx_that_is_no_network_of_signs_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = _plain(tmp_path / "n.onnx", np.random.default_rng(0), **changed)
    with pytest.raises(QRobustError, match=message) as raised:
        read_onnx(path, BYTES)
    assert "\n" not in str(raised.value)


def test_an_unknown_operation_is_named(tmp_path: Path) -> None:
    from onnx import helper

    for operation in ("Relu", "Sigmoid"):
        path = _graph([helper.make_node(operation, ["x"], ["y"], name="odd")], {}, [1, 4], tmp_path / "o.onnx")
        with pytest.raises(UnsupportedError, match=f"'odd' \\({operation}\\)"):
            read_onnx(path, BYTES)


def test_bipolar_quantizers_are_signs(tmp_path: Path) -> None:
    from onnx import helper

    def bipolar(source: str, scale: str, target: str) -> Any:
        return helper.make_node("BipolarQuant", [source, scale], [target], domain="qonnx.custom_op.general")

    nodes = [
        helper.make_node("Mul", ["x", "two"], ["a"]),
        helper.make_node("Sub", ["a", "one"], ["b"]),
        bipolar("b", "half", "c"),
        bipolar("latent", "two", "w"),
        helper.make_node("MatMul", ["c", "w"], ["d"]),
        helper.make_node("Div", ["d", "two"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["y"]),
    ]
    latent = np.array([[0.3, -0.2], [0.0, -1.0], [-4.0, 0.5]], np.float32)
    constants = {"two": np.float32(2), "one": np.float32(1), "half": np.float32(0.5), "latent": latent}
    read = read_onnx(_graph(nodes, constants, [1, 3], tmp_path / "q.onnx"), Grid.of("1/4", 0, 1))
    levels = all_levels(read.network)
    signs = np.where(levels >= 2, 0.5, -0.5)
    wanted = signs @ np.where(latent >= 0, 2.0, -2.0)
    np.testing.assert_allclose(read.network.scores(levels), wanted)  # halved and shifted alike: the order is the same


def test_a_deployed_network_says_of_mnist_what_its_operations_say(shared_bench: Path) -> None:
    """The graph of TFC_1W1A.onnx once more, in NumPy's float32, operation by operation."""
    from onnx import load, numpy_helper

    path = shared_bench / "bnn" / "TFC_1W1A.onnx"
    found = read_onnx(path, Grid.of("1/255", 0, 1)).network
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in load(str(path)).graph.initializer}
    packed = gzip.decompress((shared_bench / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(packed[16:], np.uint8).reshape(-1, 784).astype(np.int64)
    labels = np.frombuffer(gzip.decompress((shared_bench / "mnist" / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
    values = np.where(2 * (images / 255).astype(np.float32) - 1 >= 0, 1, -1).astype(np.float32)
    for weight, number in (("38", 3), ("46", 7), ("54", 11)):
        gamma, beta, mean, variance = (
            constants[f"features.{number}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        values = (values @ constants[weight].T - mean) / np.sqrt(variance + np.float32(1e-5)) * gamma + beta
        values = np.where(values >= 0, 1, -1).astype(np.float32)
    wanted = (values @ constants["62"].T).argmax(axis=1)
    given = fold(found).labels(images)
    np.testing.assert_array_equal(given, wanted)
    np.testing.assert_array_equal(found.scores(images).argmax(axis=1), wanted)
    right = given == labels
    assert right.mean() == pytest.approx(0.9296)
    # Brevitas's own reference for its checkpoint (tests/brevitas_examples/pretrained_accuracy_reference.json): of each of
    # the first five hundreds
    assert right[:500].reshape(5, 100).sum(axis=1).tolist() == [96, 97, 92, 87, 89]
    scores = values @ constants["62"].T
    tied = scores == scores.max(axis=1, keepdims=True)
    assert tied[np.arange(len(labels)), labels].mean() == pytest.approx(0.9306)  # the best that any rule for ties gives


def test_vnnlib_boxes_are_read(tmp_path: Path) -> None:
    text = """; a comment (assert (<= X_0 7))
    (declare-const X_0 Real) (declare-const X_1 Real)
    (declare-const Y_0 Real) (declare-const Y_1 Real) (declare-const Y_2 Real)
    (assert (<= X_0 1.5)) (assert (>= X_0 -1e-1)) (assert (<= X_1 3)) (assert (>= X_1 3.0))
    (assert (or (and (>= Y_0 Y_1)) (and (>= Y_2 Y_1))))
    """
    (tmp_path / "q.vnnlib").write_text(text)
    found = read_vnnlib(tmp_path / "q.vnnlib")
    assert (found.lower.tolist(), found.upper.tolist(), found.label) == ([-0.1, 3.0], [1.5, 3.0], 1)
    for old, new, error in (
        ("(and (>= Y_0 Y_1))", "", UnsupportedError),
        ("Y_2 Y_1", "Y_1 Y_2", UnsupportedError),
        ("(assert (<= X_1 3))", "", ModelFileError),
        ("(declare-const X_0 Real)", "", ModelFileError),
    ):
        (tmp_path / "bad.vnnlib").write_text(text.replace(old, new))
        with pytest.raises(error):
            read_vnnlib(tmp_path / "bad.vnnlib")


def test_boxes_hold_the_levels_in_them() -> None:
    net = BinarizedNetwork(Grid.of("1/2", 0, 2), (), sparse_dense(np.eye(2)))
    region = Box(np.array([0.4, -3.0]), np.array([1.1, 0.9])).region(net)
    assert (region.lower.tolist(), region.upper.tolist()) == ([1, 0], [2, 1])
    assert Robustness(net, Box(np.zeros(2), np.ones(2)), 0, TieRule.RIVAL).to_json()["label"] == 0
    with pytest.raises(DomainError, match="no level"):
        Box(np.array([0.1, 0.0]), np.array([0.2, 1.0])).region(net)
    with pytest.raises(NumberError, match="finite"):
        Box(np.array([np.nan]), np.array([1.0]))


def _larq(path: Path, rng: np.random.Generator, **changed: Any) -> tuple[Path, dict[str, Any]]:
    """A file as Larq on Keras 2 writes it: convolution, normalization, sign, dense, normalization, sign, scores."""
    import h5py

    arrays: dict[str, Any] = {
        "c": [rng.normal(size=(2, 2, 2, 3))],
        "n": [rng.normal(size=3), rng.normal(size=3), rng.uniform(0.5, 2, size=3)],
        "d": [rng.normal(size=(18, 4)), rng.normal(size=4)],
        "m": [rng.choice([-1.0, 0.5], size=4), rng.normal(size=4), rng.normal(size=4), rng.uniform(0.5, 2, size=4)],
        "e": [rng.normal(size=(4, 3))],
    }
    arrays["c"][0][0, 0, 0, 0] = 0.0
    arrays = {name: [values.astype(np.float32) for values in group] for name, group in arrays.items()}
    conv = {"strides": [1, 2], "padding": "same", "use_bias": False, "kernel_quantizer": "ste_sign", "activation": "linear"}
    steps = {"class_name": "SteSign", "config": {}}
    layers: list[tuple[str, dict[str, Any]]] = [
        ("QuantConv2D", {"name": "c", "batch_input_shape": [None, 3, 4, 2], "input_quantizer": None} | conv),
        ("BatchNormalization", {"name": "n", "scale": False, "center": True, "epsilon": 1e-3}),
        ("Flatten", {"name": "f"}),
        ("QuantDense", {"name": "d", "use_bias": True, "input_quantizer": steps, "kernel_quantizer": steps}),
        ("BatchNormalization", {"name": "m", "scale": True, "center": True, "epsilon": 1e-3}),
        ("QuantDense", {"name": "e", "use_bias": False, "input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign"}),
        ("Activation", {"name": "s", "activation": "softmax"}),
    ]
    for name, settings in changed.items():
        layers = [(kind, own | (settings if own["name"] == name else {})) for kind, own in layers]
    described = [{"class_name": own.pop("class_name", kind), "config": own} for kind, own in layers]
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": described}})
        for name, group in arrays.items():
            names = [f"{name}/{place}" for place in range(len(group))]
            file.create_group(f"model_weights/{name}").attrs["weight_names"] = [text.encode() for text in names]
            for text, values in zip(names, group, strict=True):
                file[f"model_weights/{name}/{text}"] = values
    return path, arrays


def sign(values: FloatArray) -> FloatArray:
    """The sign, with 0 to +1."""
    return np.where(values >= 0, 1.0, -1.0)


def test_larq_models_are_their_layers(tmp_path: Path) -> None:
    """Against the layers by hand, on channels-last images: same padding below and at the right."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        path, arrays = _larq(tmp_path / f"{seed}.h5", rng)
        read = load_binarized(path, Grid.of(1, 0, 3))
        kernel = sign(arrays["c"][0])
        for _ in range(20):
            image = rng.integers(0, 4, size=(3, 4, 2))
            padded = np.pad(image, ((0, 1), (0, 0), (0, 0)))
            places = [[padded[r : r + 2, c : c + 2] for c in (0, 2)] for r in range(3)]
            values = np.array([[(kernel * patch[..., None]).sum(axis=(0, 1, 2)) for patch in row] for row in places])
            beta, mean, variance = arrays["n"]
            flat = sign((values - mean) / np.sqrt(variance + 1e-3) + beta).reshape(-1)
            gamma, beta, mean, variance = arrays["m"]
            hidden = (flat @ sign(arrays["d"][0])[: len(flat)] + arrays["d"][1] - mean) / np.sqrt(
                variance + 1e-3
            ) * gamma + beta
            wanted = sign(hidden) @ sign(arrays["e"][0])
            np.testing.assert_allclose(read.network.scores(image.reshape(-1)[read.order][None])[0], wanted)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"c": {"kernel_quantizer": "dorefa"}}, "'c' of class QuantConv2D has the quantizer 'dorefa'"),
        ({"c": {"pad_values": 1.0}}, "padding"),
        ({"c": {"kernel_quantizer": None}}, "two sizes"),
        ({"f": {"class_name": "Reshape"}}, "class Reshape is not read"),
        ({"m": {"scale": False}}, "arrays"),
        ({"d": {"input_quantizer": None}}, "without a sign"),
    ],
)
def test_larq_models_that_are_none_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path, _ = _larq(tmp_path / "bad.h5", np.random.default_rng(0), **changed)
    with pytest.raises(QRobustError, match=message) as raised:
        load_binarized(path, BYTES)
    assert "\n" not in str(raised.value)
