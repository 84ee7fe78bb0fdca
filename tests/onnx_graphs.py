"""Random ONNX graphs of classifiers, made with onnx.helper, and what onnxruntime computes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qrobust.interval import FloatArray

Array = npt.NDArray[Any]


class Graph:
    """A graph under construction: each node takes the value of the last one."""

    def __init__(self, shape: tuple[Any, ...], dtype: str = "float32", opset: int = 13) -> None:
        # ONNX's own evaluator normalizes batches by statistics of its own before opset 14.
        self.shape, self.dtype, self.opset = shape, np.dtype(dtype), 17 if dtype == "float64" else opset
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.last = "x"

    def constant(self, values: Any) -> str:
        """Store an array and return its name. Numbers of 32 bits take the graph's own type."""
        array = np.asarray(values)
        array = array.astype(self.dtype) if array.dtype == np.float32 else array
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, *inputs: Any, before: bool = False, **attributes: Any) -> Graph:
        """Add a node; arrays among its inputs become initializers, with `before` they come before the last value."""
        names = [part if isinstance(part, str) else self.constant(part) for part in inputs]
        taken = [*names, self.last] if before else [self.last, *names]
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, taken, [name], name=f"n{len(self.nodes)}", **attributes))
        self.last = name
        return self

    def model(self) -> Any:
        """Return the model as a protobuf."""
        kind: Any = TensorProto.DOUBLE if self.dtype == np.float64 else TensorProto.FLOAT
        output = helper.make_tensor_value_info(self.last, kind, None)
        graph = helper.make_graph(
            self.nodes, "g", [helper.make_tensor_value_info("x", kind, self.shape)], [output], self.initializers
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def content(self) -> bytes:
        """Return the file's content."""
        content: bytes = self.model().SerializeToString()
        return content


def runtime(content: bytes, inputs: Array) -> FloatArray:
    """Return what onnxruntime computes, one input at a time. Shapes: inputs (points, ...); result (points, outputs)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    shape = [size if isinstance(size, int) and size > 0 else 1 for size in source.shape]
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[source.type]
    rows = [session.run(None, {source.name: row.reshape(shape).astype(dtype)})[0].reshape(-1) for row in inputs]
    result: FloatArray = np.array(rows, dtype=np.float64)
    return result


def relative_difference(found: FloatArray, expected: FloatArray) -> float:
    """Return the greatest difference over the greatest size of all expected outputs, or over 1 if that is more."""
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def reference(graph: Graph, inputs: Array) -> FloatArray:
    """Return what ONNX's own evaluator computes in NumPy, in the graph's type. Shapes: as `runtime`."""
    evaluator: Any = ReferenceEvaluator(graph.model())
    shape = [size if isinstance(size, int) else 1 for size in graph.shape]
    rows = [evaluator.run(None, {"x": row.reshape(shape).astype(graph.dtype)})[0].reshape(-1) for row in inputs]
    result: FloatArray = np.array(rows, dtype=np.float64)
    return result


def numbers(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Any:
    return (scale * rng.normal(size=shape)).astype(np.float32)


def dense_graph(rng: np.random.Generator, dtype: str = "float32") -> Graph:
    """Dense layers in the forms in which exporters write them, with a random end."""
    sizes = [int(n) for n in rng.integers(2, 9, size=rng.integers(2, 5))]
    graph = Graph(("batch" if rng.random() < 0.5 else 1, sizes[0]), dtype, opset=int(rng.choice([9, 11, 13, 17])))
    if rng.random() < 0.3:
        graph.add("Sub", numbers(rng, sizes[0])).add("Div", rng.uniform(0.3, 3.0, size=sizes[0]).astype(np.float32))
    for place, (inputs, outputs) in enumerate(zip(sizes, [*sizes[1:], int(rng.integers(2, 6))], strict=True)):
        _affine(rng, graph, inputs, outputs)
        if place < len(sizes) - 1:
            if rng.random() < 0.25:
                _normalize(rng, graph, outputs)
            graph.add(str(rng.choice(["Relu", "Sigmoid", "Tanh", "Relu"])))
            if rng.random() < 0.2:
                graph.add(str(rng.choice(["Identity", "Dropout"])))
    return _end(rng, graph, outputs)


def _affine(rng: np.random.Generator, graph: Graph, inputs: int, outputs: int) -> None:
    weight, bias = numbers(rng, inputs, outputs), numbers(rng, outputs)
    match int(rng.integers(0, 5)):
        case 0:
            graph.add("Gemm", weight, bias)
        case 1:
            graph.add("Gemm", np.ascontiguousarray(weight.T), bias, transB=1)
        case 2:
            graph.add("Gemm", weight, bias, alpha=0.5, beta=-2.0)
        case 3:
            graph.add("MatMul", weight).add("Add", bias, before=bool(rng.random() < 0.5))
        case _:
            graph.add("MatMul", weight).add("Sub", bias).add("Mul", numbers(rng, 1))


def _normalize(rng: np.random.Generator, graph: Graph, channels: int) -> None:
    arrays = [numbers(rng, channels) for _ in range(3)]
    graph.add("BatchNormalization", *arrays, rng.uniform(0.5, 2.0, channels).astype(np.float32), epsilon=1e-3)


def _end(rng: np.random.Generator, graph: Graph, classes: int) -> Graph:
    match int(rng.integers(0, 3)):
        case 0:
            return graph.add("Softmax", axis=1)
        case 1:
            return graph
        case _:
            return graph.add("Relu").add("Gemm", numbers(rng, classes, 1), numbers(rng, 1)).add("Sigmoid")


def image_graph(rng: np.random.Generator, dtype: str = "float32") -> Graph:
    """Convolutions and pools in either order of axes, then dense layers."""
    channels, height, width = int(rng.integers(1, 4)), int(rng.integers(7, 11)), int(rng.integers(7, 11))
    last_axis = bool(rng.random() < 0.3)  # as converters from TensorFlow write: images channel-last, a Transpose first
    shape = (1, height, width, channels) if last_axis else (1, channels, height, width)
    graph = Graph(shape, dtype, opset=int(rng.choice([11, 13, 17])))
    if last_axis:
        graph.add("Transpose", perm=[0, 3, 1, 2])
    if rng.random() < 0.3:
        graph.add("Mul", numbers(rng, 1, channels, 1, 1))
    for _ in range(int(rng.integers(1, 3))):
        channels, height, width = _convolution(rng, graph, channels, height, width)
    if rng.random() < 0.3:
        graph.add("GlobalAveragePool")
        height = width = 1
    size = channels * height * width
    match int(rng.integers(0, 4)):
        case 0:
            graph.add("Flatten")
        case 1:
            graph.add("Reshape", np.array([0, -1]))
        case 2:
            graph.add("Transpose", perm=[0, 2, 3, 1]).add("Reshape", np.array([1, size]))
        case _:
            _reshape_of_shape(graph)
    graph.add("Gemm", numbers(rng, size, 4, scale=0.3), numbers(rng, 4)).add("Relu")
    graph.add("MatMul", numbers(rng, 4, 3)).add("Add", numbers(rng, 3))
    return _end(rng, graph, 3)


def _convolution(rng: np.random.Generator, graph: Graph, channels: int, height: int, width: int) -> tuple[int, int, int]:
    outputs, size = int(rng.integers(1, 5)), [int(rng.integers(1, min(4, n + 1))) for n in (height, width)]
    strides = [int(n) for n in rng.integers(1, 3, size=2)]
    settings: dict[str, Any] = {"strides": strides}
    match int(rng.integers(0, 4)):
        case 0:
            pads = [int(n) for n in rng.integers(0, 2, size=4)]
            settings["pads"] = pads
            height, width = ((n + pads[a] + pads[a + 2] - size[a]) // strides[a] + 1 for a, n in enumerate((height, width)))
        case 1:
            height, width = ((n - k) // s + 1 for n, k, s in zip((height, width), size, strides, strict=True))
        case case:
            settings["auto_pad"] = "SAME_UPPER" if case == 2 else "SAME_LOWER"
            height, width = (-(-n // s) for n, s in zip((height, width), strides, strict=True))
    weight = numbers(rng, outputs, channels, *size, scale=0.5)
    bias = [numbers(rng, outputs)] if rng.random() < 0.7 else []
    graph.add("Conv", weight, *bias, **settings)
    if rng.random() < 0.3:
        _normalize(rng, graph, outputs)
    activation = str(rng.choice(["Relu", "Tanh", "Sigmoid"]))
    pool = str(rng.choice(["MaxPool", "AveragePool", "none"])) if min(height, width) >= 2 else "none"
    if pool != "MaxPool" or rng.random() < 0.5:
        graph.add(activation)
    if pool != "none":
        graph.add(pool, kernel_shape=[2, 2], strides=[2, 2])
        height, width = height // 2, width // 2
        if graph.nodes[-2].op_type not in ("Relu", "Tanh", "Sigmoid"):
            graph.add(activation)
    return outputs, height, width


def _reshape_of_shape(graph: Graph) -> None:
    """Flatten as PyTorch writes it: to (size of axis 0, -1), found by Shape and Gather."""
    source = graph.last
    graph.add("Shape").add("Gather", np.array(0), axis=0)
    if graph.opset < 13:
        graph.add("Unsqueeze", axes=[0])
    else:
        graph.add("Unsqueeze", np.array([0]))
    graph.add("Concat", np.array([-1]), axis=0)
    target = graph.last
    graph.last = source
    graph.add("Reshape", target)
