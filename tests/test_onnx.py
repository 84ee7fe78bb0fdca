"""ONNX files: read as onnxruntime computes, refused by name where there is no chain of layers, written exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from qrobust import formats
from qrobust.errors import UnsupportedError
from qrobust.formats.onnx_write import onnx_bytes, write_onnx
from qrobust.interval import FloatArray
from qrobust.network import (
    Activation,
    AveragePool2d,
    Conv2d,
    Dense,
    FloatArithmetic,
    MaxPool2d,
    Network,
    Output,
    logits,
)
from tests.conftest import RandomNetwork
from tests.damage import refusal
from tests.onnx_graphs import Graph, dense_graph, image_graph, numbers, reference, relative_difference, runtime

CLOSE = 1e-6


def loaded(path: Path, content: bytes) -> Network:
    path.write_bytes(content)
    return formats.load(path)


def outputs(network: Network, graph: Any, inputs: FloatArray) -> FloatArray:
    """What the network says the graph computes: confidences, or logits where the graph has no output function."""
    if graph.nodes[-1].op_type in ("Softmax", "Sigmoid"):
        return network.confidences(inputs)
    return logits(network, inputs, FloatArithmetic())


@pytest.mark.parametrize("seed", range(60))
def test_random_dense_graphs_are_read_as_onnxruntime_computes(seed: int, tmp_path: Path) -> None:
    graph = dense_graph(np.random.default_rng(seed))
    network = loaded(tmp_path / "m.onnx", graph.content())
    inputs = np.random.default_rng(seed).normal(size=(20, network.inputs)).astype(np.float32).astype(np.float64)
    assert relative_difference(outputs(network, graph, inputs), runtime(graph.content(), inputs)) < CLOSE


@pytest.mark.parametrize("seed", range(60))
def test_random_image_graphs_are_read_as_onnxruntime_computes(seed: int, tmp_path: Path) -> None:
    graph = image_graph(np.random.default_rng(seed))
    network = loaded(tmp_path / "m.onnx", graph.content())
    images, inputs = image_inputs(graph, seed)
    assert relative_difference(outputs(network, graph, inputs), runtime(graph.content(), images)) < CLOSE


def image_inputs(graph: Graph, seed: int) -> tuple[FloatArray, FloatArray]:
    """Random images as the graph takes them, and as the network does: channel-first, flat."""
    images = np.random.default_rng(seed).normal(size=(10, *graph.shape[1:])).astype(np.float32).astype(np.float64)
    last_axis = graph.nodes[0].op_type == "Transpose"
    return images, (images.transpose(0, 3, 1, 2) if last_axis else images).reshape(10, -1)


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs_in_double_are_read_to_the_last_bits(seed: int, tmp_path: Path) -> None:
    """The function itself is the same: nothing but the rounding of the last bits of float64 differs."""
    for kind in (dense_graph, image_graph):
        graph = kind(np.random.default_rng(seed), "float64")
        network = loaded(tmp_path / "m.onnx", graph.content())
        if kind is dense_graph:
            images = inputs = np.random.default_rng(seed).normal(size=(20, network.inputs))
        else:
            images, inputs = image_inputs(graph, seed)
        assert relative_difference(outputs(network, graph, inputs), reference(graph, images)) < 1e-13


def image_network(rng: np.random.Generator, output: Output = Output.SOFTMAX) -> Network:
    """Every kind of layer, images made of a vector in the middle, and numbers of 32 bits."""

    def stored(*shape: int) -> FloatArray:
        return np.asarray(numbers(rng, *shape), dtype=np.float64)

    classes = 1 if output is Output.SIGMOID else 3
    layers = (
        Conv2d(stored(3, 2, 3, 2), stored(3), Activation.RELU, (2, 7, 8), (2, 1), (1, 0, 2, 1)),
        MaxPool2d((3, 4, 8), (2, 2), (2, 2)),
        AveragePool2d((3, 2, 4), (2, 3), (1, 1)),
        Dense(stored(8, 6), stored(8), Activation.TANH),
        Conv2d(stored(2, 2, 2, 2), stored(2), Activation.SIGMOID, (2, 2, 2)),
        Dense(stored(classes, 2), stored(classes)),
    )
    return Network(layers, output, name="written")


@pytest.mark.parametrize("output", Output)
def test_what_is_written_is_read_back_and_runs(output: Output, tmp_path: Path) -> None:
    network = image_network(np.random.default_rng(3), output)
    write_onnx(network, tmp_path / "m.onnx")
    assert formats.load(tmp_path / "m.onnx") == network
    inputs = np.random.default_rng(4).normal(size=(20, network.inputs)).astype(np.float32).astype(np.float64)
    assert relative_difference(network.confidences(inputs), runtime(onnx_bytes(network), inputs)) < CLOSE
    found = logits(network, inputs, FloatArithmetic())
    assert relative_difference(found, runtime(onnx_bytes(network, logits=True), inputs)) < CLOSE


@pytest.mark.parametrize("stem", ["iris", "ath_relu", "cat_paper"])
def test_the_projects_own_networks_are_written_in_double(stem: str, models: Path, tmp_path: Path) -> None:
    network = formats.load(models / f"{stem}.json")
    write_onnx(network, tmp_path / "m.onnx", double=True)
    assert formats.load(tmp_path / "m.onnx") == network
    inputs = np.random.default_rng(4).uniform(0, 5, size=(20, network.inputs))
    assert relative_difference(network.confidences(inputs), runtime(onnx_bytes(network, double=True), inputs)) < 1e-14


def test_numbers_that_float32_would_round_are_not_written(cat: Network, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"layer 1 has 2 numbers that no float32 is, such as .*: write them as double"):
        write_onnx(cat, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_random_networks_round_trip(tmp_path: Path, random_network: RandomNetwork) -> None:
    for number, activation in enumerate(Activation):
        network = random_network(np.random.default_rng(number), (3, 5, 2, 3), activation)
        write_onnx(network, tmp_path / "m.onnx", double=True)
        assert formats.load(tmp_path / "m.onnx") == network


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32"])
def test_dequantized_constants_are_the_numbers_of_onnxruntime(kind: str, channels: bool, tmp_path: Path) -> None:
    """Bit for bit: the graph that gives the dequantized matrix itself is run beside the reader."""
    rng = np.random.default_rng(7)
    limits = np.iinfo(kind)
    values = rng.integers(limits.min, limits.max, size=(4, 3), endpoint=True).astype(kind)
    values[0] = limits.min, limits.max, 0
    scales = rng.uniform(0.01, 0.1, size=3).astype(np.float32) if channels else np.float32(0.0123)
    zeros = np.zeros(np.shape(scales), dtype=kind)
    if kind != "int32":
        zeros = rng.integers(limits.min, limits.max, size=np.shape(scales), endpoint=True).astype(kind)
    graph = Graph((1, 4), opset=21)
    arrays = [graph.constant(array) for array in (values, np.asarray(scales), np.asarray(zeros))]
    graph.nodes.append(helper.make_node("DequantizeLinear", arrays, ["w"], axis=1))
    graph.add("MatMul", "w")
    network = loaded(tmp_path / "m.onnx", graph.content())
    expected = runtime(graph.content(), np.eye(4))  # products with 1 and sums with 0 round nothing
    np.testing.assert_array_equal(network.layers[0].weight.T, expected)


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_weights_quantized_clipped_and_dequantized_are_those_of_onnxruntime(kind: str, channels: bool, tmp_path: Path) -> None:
    """As training for quantization exports them; ties, saturation and clipping among the values."""
    rng = np.random.default_rng(8)
    scales = np.array([0.5, 0.013, 0.1], dtype=np.float32) if channels else np.asarray(np.float32(0.5))
    values = (rng.normal(size=(40, 3)) * 20).astype(np.float32)
    values[:4] = np.array([0.25, -0.75, 1e6, -1e6], dtype=np.float32)[:, None]
    zeros = rng.integers(0, 9, size=scales.shape).astype(kind)
    graph = Graph((1, 40), opset=21)
    names = [graph.constant(array) for array in (scales, zeros)]
    graph.nodes.append(helper.make_node("QuantizeLinear", [graph.constant(values), *names], ["q"], axis=1))
    limits = [graph.constant(np.array(limit, dtype=kind)) for limit in (0 if kind == "uint8" else -100, 100)]
    graph.nodes.append(helper.make_node("Clip", ["q", *limits], ["c"]))
    graph.nodes.append(helper.make_node("DequantizeLinear", ["c", *names], ["w"], axis=1))
    graph.add("MatMul", "w")
    network = loaded(tmp_path / "m.onnx", graph.content())
    np.testing.assert_array_equal(network.layers[0].weight.T, runtime(graph.content(), np.eye(40)))


def test_quantized_activations_are_refused_by_name(tmp_path: Path) -> None:
    graph = Graph((1, 4)).add("QuantizeLinear", numbers(np.random.default_rng(0), 1)[0], np.array(0, dtype=np.int8))
    assert "'n0' (QuantizeLinear) makes integers" in refusal(tmp_path / "m.onnx", graph.content())


def rng_numbers(*shape: int) -> Any:
    return numbers(np.random.default_rng(5), *shape)


def dense_tail(graph: Graph, inputs: int = 4, classes: int = 3) -> Graph:
    return graph.add("Gemm", rng_numbers(inputs, classes), rng_numbers(classes))


def image(*sizes: int) -> Graph:
    return Graph((1, *(sizes or (2, 6, 6))))


def branches() -> Graph:
    graph = dense_tail(Graph((1, 4)))
    first = graph.last
    graph.add("Relu")
    return graph.add("Add", first)


def mask() -> Graph:
    graph = image()
    graph.nodes.append(helper.make_node("MaxPool", ["x"], ["v", "places"], name="n0", kernel_shape=[2, 2]))
    graph.last = "v"
    return graph


def with_subgraph() -> Graph:
    body = helper.make_graph([], "body", [], [])
    graph = Graph((1, 4))
    graph.nodes.append(helper.make_node("If", ["x"], ["v"], name="n0", then_branch=body, else_branch=body))
    graph.last = "v"
    return graph


REFUSED: dict[str, tuple[Any, str]] = {
    "unknown operation": (lambda: Graph((1, 4)).add("Elu"), "node 'n0' (Elu) cannot be represented"),
    "other domain": (lambda: Graph((1, 4)).add("Gelu", domain="com.microsoft"), "(Gelu) of domain 'com.microsoft'"),
    "branches": (branches, "'n2' (Add) joins two values that come from the input"),
    "subgraph": (with_subgraph, "'n0' (If) has a graph of its own"),
    "relu first": (lambda: dense_tail(Graph((1, 4)).add("Relu")), "'n0' (Relu) unless it follows"),
    "relu after average": (
        lambda: image().add("AveragePool", kernel_shape=[2, 2]).add("Relu"),
        "'n1' (Relu) unless it follows",
    ),
    "two activations": (lambda: dense_tail(Graph((1, 4))).add("Tanh").add("Relu"), "'n2' (Relu) unless it follows"),
    "softmax inside": (lambda: dense_tail(dense_tail(Graph((1, 4))).add("Softmax"), 3), "'n2' (Gemm) follows the sigmoid"),
    "softmax of images": (lambda: image().add("Conv", rng_numbers(3, 2, 1, 1)).add("Softmax", axis=1), "not one softmax"),
    "groups": (lambda: image().add("Conv", rng_numbers(2, 1, 1, 1), group=2), "'n0' (Conv) with group 2 cannot"),
    "dilations": (lambda: image().add("Conv", rng_numbers(2, 2, 2, 2), dilations=[2, 2]), "(Conv) with dilations [2, 2]"),
    "negative pads": (lambda: image().add("Conv", rng_numbers(2, 2, 2, 2), pads=[-1, 0, 0, 0]), "with pads [-1, 0, 0, 0]"),
    "conv of a line": (lambda: Graph((1, 2, 6)).add("Conv", rng_numbers(2, 2, 3)), "only images"),
    "padded pool": (lambda: image().add("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 1, 1]), "pads its images"),
    "ceil": (lambda: image(2, 5, 5).add("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), "(ceil_mode)"),
    "places of maxima": (mask, "'n0' (MaxPool) gives the places"),
    "constant first": (lambda: Graph((4, 1)).add("MatMul", rng_numbers(3, 4), before=True), "input 'x' has shape [4, 1]"),
    "matrix first": (lambda: Graph((1, 4)).add("MatMul", rng_numbers(3, 1), before=True), "multiplies a constant with"),
    "transposed input": (lambda: Graph((1, 1)).add("Gemm", rng_numbers(1, 3), transA=1), "with transA 1"),
    "division by zero": (
        lambda: dense_tail(Graph((1, 4)).add("Div", np.array([1, 0, 2, 3], dtype=np.float32))),
        "'n0' (Div) scales by numbers",
    ),
    "scaled by zero": (lambda: dense_tail(Graph((1, 4)).add("Mul", np.float32(0))), "an input is scaled by 0"),
    "scaled by infinity": (lambda: dense_tail(Graph((1, 4)).add("Mul", np.float32(np.inf))), "that are not finite"),
    "inexact bias": (
        lambda: dense_tail(Graph((1, 4))).add("Add", np.array([1e-30, 0, 0], dtype=np.float32)),
        "'n1' (Add) cannot be folded since no float holds",
    ),
    "from a constant": (lambda: dense_tail(Graph((1, 4)).add("Sub", rng_numbers(4), before=True)), "only the other order"),
    "scaling by place": (
        lambda: image().add("Conv", rng_numbers(2, 2, 1, 1)).add("Add", rng_numbers(6, 6)),
        "'n1' (Add) differs from place to place",
    ),
    "growing": (lambda: Graph((1, 4)).add("Add", rng_numbers(3, 4)), "makes shape (3, 4) of shape (1, 4)"),
    "moved images": (
        lambda: (
            image(2, 6, 6)
            .add("Conv", rng_numbers(2, 2, 1, 1))
            .add("Transpose", perm=[0, 1, 3, 2])
            .add("Conv", rng_numbers(2, 2, 1, 1))
        ),
        "'n2' (Conv) takes images whose values were moved",
    ),
    "normalized input": (
        lambda: Graph((1, 4)).add("BatchNormalization", *(np.ones(4, np.float32),) * 4),
        "(BatchNormalization) unless it follows",
    ),
    "training": (
        lambda: dense_tail(Graph((1, 4))).add("BatchNormalization", *(np.ones(3, np.float32),) * 4, training_mode=1),
        "with training_mode 1",
    ),
    "narrowing": (lambda: Graph((1, 4)).add("Cast", to=TensorProto.FLOAT16), "'n0' (Cast) rounds what comes from the input"),
    "constant computed": (lambda: Graph((1, 4)).add("Identity").add("MatMul", "c"), "m.onnx"),
    "ends in relu": (lambda: dense_tail(Graph((1, 4))).add("Relu"), "ends in activation 'relu'"),
    "ends in a convolution": (lambda: image().add("Conv", rng_numbers(3, 2, 6, 6)).add("Flatten"), "does not end in a dense"),
    "one linear value": (lambda: dense_tail(Graph((1, 4)), classes=1), "ends in one linear value"),
    "several sigmoids": (lambda: dense_tail(Graph((1, 4))).add("Sigmoid"), "3 sigmoids have no single label"),
    "no layer": (lambda: Graph((1, 4)).add("Identity"), "does not end in a dense layer"),
    "a batch of 7": (lambda: dense_tail(Graph((7, 4))), "only the first size may be free, or is 1"),
    "a free size": (lambda: image("h", 6, 6).add("Flatten"), "'free'"),  # type: ignore[arg-type]
    "old opset": (lambda: dense_tail(Graph((1, 4), opset=6)), "it uses opset 6"),
    "new opset": (lambda: dense_tail(Graph((1, 4), opset=999)), "it uses opset 999"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_chain_of_layers_is_refused_by_name(case: str, tmp_path: Path) -> None:
    build, message = REFUSED[case]
    assert message in refusal(tmp_path / "m.onnx", build().content())


def test_what_changes_nothing_is_read(tmp_path: Path) -> None:
    """Widening, a ceil_mode that cuts nothing, an activation after max pooling, a scaling that is exact."""
    graph = image(2, 6, 6).add("Mul", np.float32(0.25)).add("Conv", rng_numbers(2, 2, 1, 1))
    graph.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1).add("Sigmoid")
    graph.add("Flatten").add("Cast", to=TensorProto.FLOAT)
    content = dense_tail(graph, 18).add("Squeeze", np.array([0])).content()
    network = loaded(tmp_path / "m.onnx", content)
    inputs = np.random.default_rng(1).normal(size=(5, 72)).astype(np.float32).astype(np.float64)
    assert relative_difference(logits(network, inputs, FloatArithmetic()), runtime(content, inputs)) < CLOSE
    linear = Activation.LINEAR
    assert [layer.activation for layer in network.layers] == [linear, Activation.SIGMOID, linear, linear]


def test_classes_that_are_moved_at_the_end(tmp_path: Path) -> None:
    graph = dense_tail(Graph((1, 4)), classes=6).add("Reshape", np.array([1, 2, 3])).add("Transpose", perm=[0, 2, 1])
    content = graph.add("Flatten").add("Softmax", axis=-1).content()
    network = loaded(tmp_path / "m.onnx", content)
    inputs = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32).astype(np.float64)
    assert relative_difference(network.confidences(inputs), runtime(content, inputs)) < CLOSE


def test_fanc_networks_are_read_as_onnxruntime_computes(shared_bench: Path) -> None:
    for name in ("fcnn7", "fconv4", "fconv4_quant8"):
        path = shared_bench / "fanc" / f"{name}.onnx"
        inputs = np.random.default_rng(0).uniform(size=(10, 784)).astype(np.float32).astype(np.float64)
        expected = runtime(path.read_bytes(), inputs)
        assert relative_difference(logits(formats.load(path), inputs, FloatArithmetic()), expected) < CLOSE
