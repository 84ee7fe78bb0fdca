"""Quantized `.onnx` files beside onnxruntime: integer programs bit for bit; what it would leave in float is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from qrobust import formats
from qrobust.comparison import at_points, compare
from qrobust.domains import InputBox
from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.integer import any_kernel
from qrobust.integer.kernels import run
from qrobust.integer.program import IntegerProgram, Kernels, Runtime
from qrobust.interval import FloatArray
from qrobust.layers import IntArray
from qrobust.network import Activation, Dense, Network, Output
from qrobust.sweep import sweep
from qrobust.testing import assert_robust

POINTS = 3000
ALL = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
NONE = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


class Graph:
    """A quantized graph under construction: each node takes the value of the last one."""

    def __init__(self, shape: tuple[Any, ...], dtype: str = "int8") -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.last = "x"
        self.scale, self.zero = np.float32(1), 0

    @property
    def least(self) -> int:
        return int(np.iinfo(self.dtype).min)

    def constant(self, values: Any) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op: str, *inputs: Any, domain: str = "", before: str | None = None, **attributes: Any) -> Graph:
        names = [part if isinstance(part, str) else self.constant(part) for part in inputs]
        name = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, [before or self.last, *names], [name], f"n{len(self.nodes)}", domain=domain, **attributes)
        )
        self.last = name
        return self

    def encoded(self, scale: float, zero: int) -> tuple[Any, Any]:
        self.scale, self.zero = np.float32(scale), zero
        return self.scale, np.array(zero, dtype=self.dtype)

    def quantized(self, scale: float, zero: int) -> Graph:
        """Quantize and dequantize the last value."""
        step, offset = self.encoded(scale, zero)
        return self.add("QuantizeLinear", step, offset).add("DequantizeLinear", step, offset)

    def weights(self, values: IntArray, scales: Any, axis: int, dtype: str = "int8", zero: int = 0) -> str:
        """Store weights under DequantizeLinear, and return the name of what it gives."""
        scales = np.asarray(scales, dtype=np.float32)
        return self._aside(values.astype(dtype), scales, np.full(scales.shape, zero, dtype), axis)

    def _aside(self, values: Any, scales: Any, zeros: Any, axis: int) -> str:
        last, source = self.last, self.constant(values)
        name = self.add("DequantizeLinear", scales, zeros, before=source, axis=axis).last
        self.last = last
        return name

    def biases(self, values: IntArray, weight_scales: Any) -> str:
        scales = np.asarray(self.scale * np.asarray(weight_scales, dtype=np.float32), dtype=np.float32)
        return self._aside(values.astype(np.int32), scales, np.zeros(scales.shape, np.int32), 0)

    def content(self) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(self.last, self._kind(), None)],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
        content: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
        return content

    def _kind(self) -> int:
        integers = self.nodes[-1].op_type.startswith("Q")
        kinds = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}
        return int(kinds[self.dtype.name] if integers else TensorProto.FLOAT)


def session(content: bytes, level: Any = ALL) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def runtime(graph: Graph, inputs: FloatArray, level: Any = ALL) -> IntArray:
    """The integers of the confidences that onnxruntime finds. Shapes: inputs (points, inputs)."""
    shape = [len(inputs), *graph.shape[1:]]
    values = session(graph.content(), level).run(None, {"x": inputs.astype(np.float32).reshape(shape)})[0]
    values = values.reshape(len(inputs), -1)
    if values.dtype == np.float32:
        return np.asarray(np.rint(values / graph.scale) + graph.zero, dtype=np.int64)
    return np.asarray(values, dtype=np.int64)


def loaded(tmp_path: Path, graph: Graph) -> IntegerProgram:
    path = tmp_path / "m.onnx"
    path.write_bytes(graph.content())
    return formats.load_program(path)


def integers(rng: np.random.Generator, *shape: int, most: int = 63) -> IntArray:
    """Random weights of 7 bits, for which processors without VNNI do not saturate either."""
    return rng.integers(-most, most + 1, shape)


def hidden_encoding(rng: np.random.Generator, graph: Graph, rectified: bool) -> tuple[float, int]:
    return float(rng.uniform(0.02, 0.06)), graph.least + (0 if rectified else int(rng.integers(90, 160)))


def ended(rng: np.random.Generator, graph: Graph, function: str = "Sigmoid") -> Graph:
    graph.add(function) if function == "Sigmoid" else graph.add(function, axis=-1)
    unit = [1 / 255, 1 / 256][int(rng.integers(2))]
    return graph.quantized(unit, graph.least)


def dense(rng: np.random.Generator, classes: int = 1) -> Graph:
    """Gemm and MatMul, weights by tensor and by channel, Relu before or after the rounding, in QDQ."""
    graph = Graph(("batch", 6), str(rng.choice(["int8", "uint8"])))
    graph.quantized(float(rng.uniform(0.01, 0.05)), graph.least + int(rng.integers(60, 200)))
    for inputs, outputs in ((6, 7), (7, classes)):
        most = int(rng.choice([1, 7, 63]))
        scales = (rng.uniform(0.5, 1.5, outputs if rng.random() < 0.5 else ()) / (most * inputs**0.5)).astype(np.float32)
        weight = integers(rng, inputs, outputs, most=most)
        turned = bool(rng.random() < 0.5)
        if rng.random() < 0.3:
            zero = 0 if scales.ndim else int(rng.integers(127, 129))  # weights - zero: int8, and of uint8 with a zero point
            graph.add("MatMul", graph.weights(weight + zero, scales, 1, "uint8" if zero else "int8", zero))
        else:
            stored = graph.weights(weight.T if turned else weight, scales, 0 if turned else 1)
            bias = [graph.biases(integers(rng, outputs, most=3000), scales)] if rng.random() < 0.8 else []
            graph.add("Gemm", stored, *bias, transB=int(turned))
        rectified = outputs == 7 and bool(rng.random() < 0.7)
        scale, zero = hidden_encoding(rng, graph, rectified)
        if rectified:
            graph.add("Relu")
        graph.quantized(scale, zero)
        if outputs == 7 and not rectified:
            graph.add("Relu").quantized(scale, zero)
    return ended(rng, graph, "Sigmoid" if classes == 1 else "Softmax")


def images(rng: np.random.Generator) -> Graph:
    """Convolutions with strides and padding, a max pool and a flatten, in QDQ."""
    graph = Graph(("batch", 2, 7, 6), str(rng.choice(["int8", "uint8"])))
    graph.quantized(0.02, graph.least + int(rng.integers(60, 200)))
    scales = rng.uniform(0.004, 0.016, 3 if rng.random() < 0.5 else ()).astype(np.float32)
    stored = graph.weights(integers(rng, 3, 2, 3, 2), scales, 0)
    bias = graph.biases(integers(rng, 3, most=3000), scales)
    graph.add("Conv", stored, bias, strides=[1, 2], pads=[1, 0, 1, 1], kernel_shape=[3, 2]).add("Relu")
    scale, zero = hidden_encoding(rng, graph, True)
    graph.quantized(scale, zero)
    graph.add("MaxPool", kernel_shape=[2, 1], strides=[2, 1]).quantized(scale, zero)
    graph.add("Flatten").quantized(scale, zero)
    graph.add("Gemm", graph.weights(integers(rng, 27, 1), 0.002, 1), graph.biases(integers(rng, 1), 0.002))
    graph.quantized(0.05, graph.least + 120)
    return ended(rng, graph)


def operators(rng: np.random.Generator) -> Graph:
    """QLinearConv, QGemm, QLinearMatMul and QLinearSigmoid."""
    graph = Graph((1, 1, 4, 4), str(rng.choice(["int8", "uint8"])))
    before = graph.encoded(0.03, graph.least + 128)
    graph.add("QuantizeLinear", *before)

    def weights(*shape: int) -> tuple[Any, ...]:
        return integers(rng, *shape).astype(np.int8), np.float32(rng.uniform(0.008, 0.016)), np.int8(0)

    after = graph.encoded(0.04, graph.least)
    biases = integers(rng, 2, most=2000).astype(np.int32)
    graph.add("QLinearConv", *before, *weights(2, 1, 3, 3), *after, biases, kernel_shape=[3, 3])
    graph.add("Flatten")
    before, after = after, graph.encoded(0.05, graph.least + 100)
    graph.add("QGemm", *before, *weights(8, 5), integers(rng, 5, most=2000).astype(np.int32), *after, domain="com.microsoft")
    before, after = after, graph.encoded(0.04, graph.least + 128)
    graph.add("QLinearMatMul", *before, *weights(5, 1), *after)
    before, after = after, graph.encoded(1 / 255, graph.least)
    return graph.add("QLinearSigmoid", *before, *after, domain="com.microsoft")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("made", [dense, images, operators])
def test_integers_are_onnxruntimes(made: Callable[[np.random.Generator], Graph], seed: int, tmp_path: Path) -> None:
    """Its default session gives every confidence bit for bit; one image at a time where the file says so."""
    rng = np.random.default_rng(seed)
    graph = made(rng)
    program = loaded(tmp_path, graph)
    points = rng.uniform(-5, 5, (POINTS if graph.shape[0] != 1 else 200, program.inputs))
    pieces = [points] if graph.shape[0] != 1 else list(points[:, None])
    expected = np.concatenate([runtime(graph, piece) for piece in pieces])
    found = run(program, program.quantized(points))
    np.testing.assert_array_equal(found.values, expected)
    assert made is dense or len(np.unique(found.values)) > 10
    ranges = any_kernel.run(program, any_kernel.IntegerInterval.point(program.quantized(points)))
    assert ((ranges.lower <= expected) & (expected <= ranges.upper)).all()


def test_random_dense_programs_give_many_values(tmp_path: Path) -> None:
    distinct = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        program = loaded(tmp_path, dense(rng))
        values = run(program, program.quantized(rng.uniform(-5, 5, (POINTS, 6)))).values
        distinct.append(len(np.unique(values)))
    assert np.median(distinct) > 20


def test_halves_go_to_the_even_neighbour(tmp_path: Path) -> None:
    """Inputs at halves of a step, and sums that are halves of a step, as powers of two make them."""
    graph = Graph(("batch", 1)).quantized(0.5, 0)
    graph.add("Gemm", graph.weights(np.array([[1]]), 0.5, 1), graph.biases(np.array([1]), 0.5)).quantized(0.5, -3)
    graph = graph.add("Sigmoid").quantized(1 / 255, -128)
    program = loaded(tmp_path, graph)
    points = np.arange(-70, 70, 0.25)[:, None]
    assert program.quantized(np.array([[0.25], [0.75]])).tolist() == [[0], [2]]
    np.testing.assert_array_equal(run(program, program.quantized(points)).values, runtime(graph, points))


def test_without_fusion_sums_near_a_half_may_differ(tmp_path: Path) -> None:
    """How often `ORT_DISABLE_ALL` gives another integer: printed with -s, as `kernels` says it."""
    differ = total = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        graph = dense(rng)
        points = rng.uniform(-5, 5, (8 * POINTS, 6))
        apart = runtime(graph, points, NONE) - runtime(graph, points)
        differ, total = differ + int((apart != 0).sum()), total + apart.size
        assert np.abs(apart).max() <= 1
    print(f"{differ} of {total:,} confidences differ without fusion")
    assert differ < total / 1000


def test_weights_of_fewer_bits(tmp_path: Path) -> None:
    """QCDQ: constants that are quantized, clipped to 4 bits and dequantized."""
    rng = np.random.default_rng(3)
    graph = Graph(("batch", 6)).quantized(0.03, 5)
    last, source = graph.last, graph.constant(rng.normal(0, 0.1, (6, 1)).astype(np.float32))
    scale, zero = np.float32(0.02), np.int8(0)
    graph.add("QuantizeLinear", scale, zero, before=source).add("Clip", np.int8(-8), np.int8(7))
    stored = graph.add("DequantizeLinear", scale, zero).last
    graph.last = last
    graph.add("MatMul", stored).quantized(0.02, 0)
    graph = ended(rng, graph)
    program = loaded(tmp_path, graph)
    weight = program.operations[0].weight  # type: ignore[union-attr]
    assert (weight.min(), weight.max() <= 7) == (-8, True)
    points = rng.uniform(-4, 4, (POINTS, 6))
    np.testing.assert_array_equal(run(program, program.quantized(points)).values, runtime(graph, points))


@pytest.mark.parametrize("seed", range(6))
def test_a_softmax_is_bounded_for_any_kernels(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    graph = dense(rng, classes=4)
    program = loaded(tmp_path, graph)
    points = rng.uniform(-5, 5, (POINTS, 6))
    with pytest.raises(UnsupportedError, match="softmax 4 is not known bit for bit: only the kernels any-kernel bound it"):
        run(program, program.quantized(points))
    found = any_kernel.run(program, any_kernel.IntegerInterval.point(program.quantized(points)))
    expected = runtime(graph, points)
    assert ((found.lower <= expected) & (expected <= found.upper)).all()


def worked_pair(tmp_path: Path) -> tuple[Network, IntegerProgram]:
    """x -> sigmoid(relu(x W + b) V), and its QDQ file."""
    rng = np.random.default_rng(0)
    first, second = integers(rng, 2, 4), integers(rng, 4, 1)
    graph = Graph(("batch", 2), "uint8").quantized(0.05, 100)
    graph.add("Gemm", graph.weights(first, 0.01, 1), graph.biases(np.array([50, -9, 0, 70]), 0.01)).add("Relu")
    graph.quantized(0.08, 0)
    graph.add("Gemm", graph.weights(second, 0.01, 1)).quantized(0.1, 128).add("Sigmoid").quantized(1 / 255, 0)
    program = loaded(tmp_path, graph)
    unit = float(np.float32(0.01))
    bias = np.array([50, -9, 0, 70]) * float(np.float32(0.05)) * unit
    weight = np.asarray(first.T * unit + rng.normal(0, 0.003, (4, 2)), dtype=np.float64)
    last = np.asarray(second.T * unit, dtype=np.float64)
    return Network((Dense(weight, bias, Activation.RELU), Dense(last, np.zeros(1))), Output.SIGMOID), program


@pytest.mark.parametrize("kernels", [Kernels.ONNX, Kernels.ANY])
def test_comparisons_at_points_and_over_boxes(kernels: Kernels, tmp_path: Path) -> None:
    from tests.test_sweep import check_against_all

    network, program = worked_pair(tmp_path)
    assert program.runtime is Runtime.ONNX
    check_against_all(network, program, None, kernels)
    found = compare(network, program, at_points(program, np.array([[0.5, -0.5]])))
    assert found.kernels is Kernels.ONNX
    assert 0 < found.greatest[1] < 0.2
    with pytest.raises(UnsupportedError, match="reference kernels do not run this program"):
        sweep(network, program, InputBox([-1, -1], [1, 1]), kernels=Kernels.REFERENCE)


def test_assertions_take_the_usual_kernels_of_the_runtime(tmp_path: Path) -> None:
    network, program = worked_pair(tmp_path)
    assert_robust(network, program, [0.5, -0.5], eps=0.2)
    with pytest.raises(AssertionError, match=r"\(onnxruntime kernels\) does not keep every confidence within 1e-05"):
        assert_robust(network, program, [0.5, -0.5], eps="0.00001")


def faulty(change: str) -> Graph:
    """A small graph with one fault."""
    rng = np.random.default_rng(0)
    graph = Graph(("batch", 3))
    if change != "float input":
        graph.quantized(0.05, 0)
    if change == "two outputs of weights":
        return graph.add("Add", graph.last)
    weights: Any = graph.weights(integers(rng, 3, 1), 0.01, 1)
    if change == "float weights":
        weights = rng.normal(size=(3, 1)).astype(np.float32)
    if change == "channel zeros":
        weights = graph._aside(np.ones((1, 3), np.int8), np.ones(3, np.float32), np.array([0, 1, 2], np.int8), 1)
        return graph.add("Gemm", weights, transB=1).quantized(0.1, 0).add("Sigmoid").quantized(1 / 255, -128)
    extra: list[Any] = [np.zeros(1, np.float32)] if change == "float bias" else []
    graph.add("Gemm", weights, *extra, alpha=0.5 if change == "alpha" else 1.0)
    if change == "float relu":
        graph.add("Relu")
    if change != "float sum":
        graph.quantized(0.1, 3)
    graph.add("Sigmoid")
    if change == "float end":
        return graph
    graph.quantized(1 / 255, -128)
    if change == "rescaled":
        graph.quantized(1 / 200, -128)
    return graph


@pytest.mark.parametrize(("change", "words"), [
    ("float input", "(Gemm) takes floats"),
    ("two outputs of weights", "joins two values"),
    ("float weights", "has weights in float"),
    ("float bias", "has biases in float"),
    ("channel zeros", "scales along axis 1 for 1 channels"),
    ("alpha", "alpha or beta"),
    ("float relu", "Relu whose 0 is not its least integer"),
    ("float sum", "follows Gemm in float"),
    ("float end", "ends in Sigmoid in float"),
    ("rescaled", "changes the encoding"),
])  # fmt: skip
def test_what_is_refused(change: str, words: str, tmp_path: Path) -> None:
    with pytest.raises((UnsupportedError, ModelFileError)) as caught:
        loaded(tmp_path, faulty(change))
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_float_files_are_no_programs(tmp_path: Path) -> None:
    graph = Graph(("batch", 3)).add("Gemm", np.ones((3, 1), np.float32)).add("Sigmoid")
    with pytest.raises(UnsupportedError, match=r"takes floats: .*check --copy"):
        loaded(tmp_path, graph)


def test_the_fanc_copies_are_float_files(shared_bench: Path) -> None:
    """Their weights alone were truncated, and are stored as float32: networks, read as such, and no programs."""
    for name in ("fcnn7_quant8", "fcnn7_quant16", "fconv4_quant8", "fconv4_quant16"):
        path = shared_bench / "fanc" / f"{name}.onnx"
        assert formats.load(path).inputs == 784
        with pytest.raises(UnsupportedError, match="takes floats"):
            formats.load_program(path)


@pytest.mark.parametrize("cut", range(0, 1100, 37))
def test_damaged_files_are_refused(cut: int, tmp_path: Path) -> None:
    content = dense(np.random.default_rng(1)).content()
    path = tmp_path / "m.onnx"
    for damaged in (content[:cut], content[:cut] + bytes([content[cut] ^ 255]) + content[cut + 1 :]):
        path.write_bytes(damaged)
        assert len(refused(path).splitlines()) <= 1


def refused(path: Path) -> str:
    """What a file is refused for; nothing if the damage left a program."""
    try:
        formats.load_program(path)
    except (ModelFileError, UnsupportedError) as error:
        return str(error)
    return ""
