"""Reading `.onnx` files whose activations are integers of 8 bits as integer programs, run by onnxruntime's integer kernels.

Accepts   QDQ: Gemm, MatMul, Conv, Sigmoid, Tanh, Softmax, MaxPool and Relu between DequantizeLinear and QuantizeLinear;
          QOperator: QLinearConv, QLinearMatMul, and QGemm, QLinearSigmoid, QLinearSoftmax of com.microsoft. Weights are
          integers under DequantizeLinear, or constants that QuantizeLinear and Clip make such (QCDQ, for fewer bits)
Gives     the program that onnxruntime's default session makes of the file: it puts integer kernels in place of QDQ operations
Refused   by name: what that session would leave in float, for the float32 sums of its matrix products have no fixed order
Images    channel-first, as in the file

With graph optimizations disabled, onnxruntime multiplies dequantized float32 matrices instead, and a sum near a half may round
the other way; `kernels` says how often that was seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.files import read_bytes
from qrobust.formats.onnx import MOST_NODES, fill, graph_input, named, opset_of
from qrobust.formats.onnx_constants import CONSTANTS, LAYOUTS
from qrobust.formats.onnx_node import Node, check_values, image_shape
from qrobust.formats.onnx_rules import padding_of
from qrobust.formats.onnx_tensors import Array, TensorReader
from qrobust.formats.untrusted import Allowance, parsing
from qrobust.formats.wire import onnx_model
from qrobust.integer.geometry import Windows
from qrobust.integer.program import (
    Affine,
    Bounds,
    Elementwise,
    Encoding,
    Function,
    IntegerProgram,
    Operation,
    Pool,
    Runtime,
    Softmax,
)
from qrobust.interval import FloatArray
from qrobust.layers import Activation, Conv2d, IntArray, MaxPool2d

FUNCTIONS = {"Sigmoid": Function.LOGISTIC, "Tanh": Function.TANH}
CONTRIB = ("QGemm", "QLinearSigmoid", "QLinearSoftmax")


@dataclass(frozen=True, eq=False)
class Stored:
    """Integers that a constant is dequantized from; scale and zero: one number, or one for each index of the axis."""

    values: Array
    scale: Array
    zero: Array
    axis: int


@dataclass(frozen=True, eq=False)
class Sums:
    """What a dense layer or convolution sums, as in `Affine`."""

    weight: IntArray
    bias: IntArray
    scales: FloatArray
    weight_zero: int
    windows: Windows


@dataclass(frozen=True, eq=False)
class Pending:
    """An operation without the encoding of its result."""

    kind: str
    sums: Sums | None = None
    rectified: bool = False


@dataclass(frozen=True, eq=False)
class Flow:
    """What comes from the input: its places in the flat vector (as in `onnx_node.Signal`), its encoding, whether it is
    dequantized, and the operation that it is still to be quantized after. The graph's own input has no encoding.
    """

    order: IntArray
    encoding: Encoding | None = None
    real: bool = True
    pending: Pending | None = None


Value = Array | Stored | Flow


def read_onnx_program(path: Path | str) -> IntegerProgram:
    """Read a quantized classifier. Raises ModelFileError, UnsupportedError, BackendUnavailableError."""
    content = read_bytes(path)
    with parsing(path, ".onnx"):
        return _Reader(onnx_model(content), Path(path).parent).program(Path(path).stem)


class _Reader:
    """The values that the nodes so far have given, by name, and the operations."""

    def __init__(self, model: Any, folder: Path) -> None:
        self._graph = model.graph
        self._opset = opset_of(model)
        if model.functions:
            raise UnsupportedError("it has functions of its own, which are not read")
        self._allowance = Allowance()
        self._tensors = TensorReader(folder, self._allowance)
        self._values: dict[str, Value] = {}
        self._operations: list[Operation] = []

    def program(self, name: str) -> IntegerProgram:
        graph = self._graph
        if not graph.node or len(graph.node) > MOST_NODES or graph.sparse_initializer:
            raise UnsupportedError(f"its graph has {len(graph.node):,} nodes or sparse constants: 1 to {MOST_NODES:,} are read")
        for tensor in graph.initializer:
            self._set(tensor.name, self._tensors.array(tensor))
        source, order, _ = graph_input(graph, self._values)
        self._set(source, Flow(order))
        for proto in graph.node:
            self._run(proto)
        outputs = [self._values.get(value.name) for value in graph.output]
        end = outputs[0] if len(outputs) == 1 else None
        if not isinstance(end, Flow):
            raise UnsupportedError(f"its graph has {len(outputs)} outputs, a classifier has one that comes from the input")
        if end.pending is not None or end.encoding is None:
            kind = "nothing quantized" if end.pending is None else end.pending.kind
            raise UnsupportedError(f"it ends in {kind} in float: quantize the confidences, as quantize_static does")
        if not np.array_equal(end.order.reshape(-1), np.arange(end.order.size)):
            raise UnsupportedError("its confidences come out in another order")
        return IntegerProgram(tuple(self._operations), name, quantizes=True, runtime=Runtime.ONNX)

    def _set(self, name: str, value: Value) -> None:
        if name in self._values:
            raise ModelFileError(f"two things are called {name!r}")
        self._values[name] = value

    def _run(self, proto: Any) -> None:
        node = named(proto, self._opset, self._allowance)
        if proto.domain not in ("", "ai.onnx") and not (proto.domain == "com.microsoft" and node.op in CONTRIB):
            raise node.refused(f"of domain {proto.domain!r} is not read")
        fill(node, proto, self._values, self._tensors)
        if not node.outputs:
            raise ModelFileError(f"node {node.name!r} ({node.op}) gives nothing")
        flows = [value for value in node.inputs if isinstance(value, Flow)]
        if len(flows) > 1 or (flows and node.inputs[0] is not flows[0]):
            raise node.refused("joins two values that come from the input, or takes them second: only chains are read")
        try:
            result = self._of_flow(node, flows[0]) if flows and node.op != "Shape" else self._of_constants(node)
        except UnsupportedError as error:
            raise error if str(error).startswith("node ") else node.refused(str(error)) from None
        self._set(node.outputs[0], result)

    def _of_constants(self, node: Node) -> Value:
        if node.op == "DequantizeLinear":
            values, scale, zero = constant(node, 0), constant(node, 1), None
            zero = constant(node, 2) if node.has(2) else np.zeros(scale.shape, values.dtype)
            return Stored(values, scale, zero, node.integer("axis", 1))
        if any(isinstance(value, Stored) for value in node.inputs):
            raise node.refused("changes dequantized weights, which onnxruntime then keeps in float")
        if node.op == "Shape" and isinstance(node.inputs[0], Flow):
            return np.array(node.inputs[0].order.shape, dtype=np.int64)
        rules = LAYOUTS if node.op in LAYOUTS else CONSTANTS
        if node.op not in rules:
            raise node.refused("of constants is not computed here: export the model with constants folded")
        return LAYOUTS[node.op](node.constant(0), node) if node.op in LAYOUTS else CONSTANTS[node.op](node)

    def _of_flow(self, node: Node, flow: Flow) -> Flow:
        if node.op in LAYOUTS:
            if flow.pending is not None:
                raise node.refused(f"stands between {flow.pending.kind} and its QuantizeLinear")
            return replace(flow, order=LAYOUTS[node.op](flow.order, node))
        if node.op == "QuantizeLinear":
            return self._quantized(node, flow, encoding_of(node, 1, 2))
        if node.op == "DequantizeLinear":
            if flow.real or flow.encoding != encoding_of(node, 1, 2):
                raise node.refused(f"dequantizes {flow.encoding or 'floats'} as {encoding_of(node, 1, 2)}")
            return replace(flow, real=True)
        if node.op == "MaxPool" and flow.encoding is not None and flow.pending is None:
            return self._pooled(node, flow)
        if node.op in QOPERATORS and not flow.real:
            return self._operator(node, flow)
        if node.op in ("Gemm", "MatMul", "Conv", "Sigmoid", "Tanh", "Softmax", "Relu") and flow.encoding and flow.real:
            return self._pending(node, flow)
        if flow.encoding is None:
            raise node.refused("takes floats: no integer program. A copy with other weights is asked about with `check --copy`")
        raise node.refused("of integers is not read, or is left in float: put DequantizeLinear and QuantizeLinear around it")

    def _pending(self, node: Node, flow: Flow) -> Flow:
        if node.op == "Relu":
            before = Pending("Relu") if flow.pending is None else flow.pending
            return replace(flow, pending=replace(before, rectified=True))
        if flow.pending is not None:
            raise node.refused(f"follows {flow.pending.kind} in float")
        if node.op in FUNCTIONS:
            return replace(flow, pending=Pending(node.op))
        if node.op == "Softmax":
            return replace(flow, pending=softmax(node, flow))
        stored = node.inputs[1] if node.has(1) else None
        if not isinstance(stored, Stored):
            raise node.refused("has weights in float")
        bias = node.inputs[2] if node.has(2) else None
        if bias is not None and not isinstance(bias, Stored):
            raise node.refused("has biases in float: onnxruntime then computes in float")
        if node.op == "Gemm" and (node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)) != (1.0, 1.0):
            raise node.refused("has alpha or beta other than 1")
        assert flow.encoding is not None
        return weighted(node, flow, stored, None if bias is None else (bias.values, biases_fit(bias, stored, flow.encoding)))

    def _operator(self, node: Node, flow: Flow) -> Flow:
        """Read an operation that holds the encodings of what it takes and gives."""
        if flow.encoding != encoding_of(node, 1, 2):
            raise node.refused(f"takes {encoding_of(node, 1, 2)}, but is given {flow.encoding}")
        places = QOPERATORS[node.op]
        after = encoding_of(node, *places)
        if node.op == "QLinearSigmoid":
            made = replace(flow, real=True, pending=Pending("Sigmoid"))
        elif node.op == "QLinearSoftmax":
            made = replace(flow, real=True, pending=softmax(node, flow))
        else:
            stored = Stored(constant(node, 3), constant(node, 4), constant(node, 5), 0 if node.op == "QLinearConv" else 1)
            index = 6 if node.op == "QGemm" else 8
            if node.op == "QGemm" and node.attributes.get("alpha", 1.0) != 1.0:
                raise node.refused("has alpha other than 1")
            bias = (constant(node, index), True) if node.op != "QLinearMatMul" and node.has(index) else None
            made = weighted(node, flow, stored, bias)
        return self._quantized(node, made, after)

    def _quantized(self, node: Node, flow: Flow, after: Encoding) -> Flow:
        if not flow.real:
            raise node.refused("quantizes integers")
        pending, before, done = flow.pending, flow.encoding, Flow(flow.order, after, real=False)
        if before is None:
            return done
        if pending is None or pending.kind == "Relu":
            if before != after:
                raise node.refused(f"changes the encoding from {before} to {after}")
            if pending is not None:
                self._rectify(node, after)
            return done
        count = flow.order.size
        if pending.rectified and (pending.sums is None or after.zero_point != after.least):
            raise node.refused("follows a Relu whose 0 is not its least integer: onnxruntime then computes in float")
        if pending.sums is not None:
            sums, bounds = pending.sums, Bounds(after.zero_point) if pending.rectified else Bounds()
            arrays = sums.weight, sums.bias, sums.scales, sums.windows
            self._operations.append(Affine(*arrays, before, after, sums.weight_zero, bounds))
        elif pending.kind == "Softmax":
            self._operations.append(Softmax(count, 1.0, before, after))
        else:
            self._operations.append(Elementwise(count, FUNCTIONS[pending.kind], before, after))
        return done

    def _rectify(self, node: Node, encoding: Encoding) -> None:
        """Cut the results of the last operation at 0."""
        last = self._operations[-1] if self._operations else None
        if not isinstance(last, Affine) or last.bounds != Bounds():
            raise node.refused("cuts values that no dense layer or convolution gives")
        self._operations[-1] = replace(last, bounds=Bounds(encoding.zero_point))

    def _pooled(self, node: Node, flow: Flow) -> Flow:
        image = images(flow)
        node.check("dilations", [1, 1])
        size, stride = tuple(node.integers(1, "kernel_shape")), tuple(node.attributes.get("strides", [1, 1]))
        if len(node.outputs) > 1 or len(size) != 2 or len(stride) != 2 or node.integer("ceil_mode", 0):
            raise node.refused("is no plain pool of images")
        if any(padding_of(node, image, size, stride)):
            raise node.refused("pads its images, which is not read")
        layer = MaxPool2d(image, (size[0], size[1]), (stride[0], stride[1]))
        assert flow.encoding is not None
        node.allowance.take(layer.windows.size, f"node {node.name!r}")
        windows = Windows(layer.windows.reshape(image[0], -1, layer.windows.shape[1]), layer.inputs)
        self._operations.append(Pool(windows, flow.encoding, average=False))
        return replace(flow, order=np.arange(layer.outputs).reshape(1, *layer.output_shape))


def constant(node: Node, index: int) -> Array:
    """Return an input that must be an array. Raises UnsupportedError, ModelFileError."""
    value = node.constant(index)
    if not isinstance(value, np.ndarray):
        raise node.refused(f"takes what is not constant, or dequantized, as its input {index + 1}")
    return value


def encoding_of(node: Node, scale: int, zero: int) -> Encoding:
    """Return the encoding that two inputs of a node give. Raises UnsupportedError."""
    step = constant(node, scale)
    offset = constant(node, zero) if node.has(zero) else np.zeros((), dtype=np.uint8)
    if step.dtype != np.float32 or step.size != 1 or offset.size != 1 or offset.dtype not in (np.uint8, np.int8):
        raise node.refused(f"has scales {step.dtype.name} {step.shape} and zero points {offset.dtype.name}: 8 bits, one scale")
    return Encoding(float(step.reshape(-1)[0]), int(offset.reshape(-1)[0]), 8, signed=offset.dtype == np.int8)


def softmax(node: Node, flow: Flow) -> Pending:
    """Return the softmax over all of a vector."""
    shape, axis = flow.order.shape, node.integer("axis", -1)
    if flow.order.size != shape[-1] or axis % len(shape) != len(shape) - 1:
        raise node.refused(f"over axis {axis} of shape {shape} is not one softmax over all classes")
    return Pending("Softmax")


def images(flow: Flow) -> tuple[int, int, int]:
    """Return the shape of images in their own order. Raises UnsupportedError."""
    if not np.array_equal(flow.order.reshape(-1), np.arange(flow.order.size)):
        raise UnsupportedError("takes images whose values were moved, only channel-first ones are read")
    return image_shape(flow.order)


def biases_fit(bias: Stored, weight: Stored, before: Encoding) -> bool:
    """Whether biases are in the units of the sums that they join."""
    units = np.float32(before.scale) * weight.scale.reshape(-1)
    return bool(np.isclose(bias.scale.reshape(-1), units, rtol=2.0**-22, atol=0).all()) and not bias.zero.any()


def weighted(node: Node, flow: Flow, stored: Stored, bias: tuple[Array, bool] | None) -> Flow:
    """Return the flow after a dense layer or convolution with these weights, and biases that are in the units of its sums."""
    values = stored.values
    if values.dtype not in (np.int8, np.uint8) or stored.scale.dtype != np.float32:
        raise node.refused(f"has weights of {values.dtype.name}, only int8 and uint8 are read")
    convolution = node.op.endswith("Conv")
    if values.ndim != (4 if convolution else 2):
        raise node.refused(f"has weights of shape {values.shape}")
    axis = 0
    if not convolution:
        turned = node.integer("transB", 0)
        axis = 0 if turned else 1
        values = values if turned else values.T
    channels = len(values)
    scales, zeros = stored.scale.reshape(-1), stored.zero.reshape(-1)
    if scales.size not in (1, channels) or (scales.size > 1 and node.op[0] != "Q" and stored.axis % stored.values.ndim != axis):
        raise node.refused(f"has {scales.size} scales along axis {stored.axis} for {channels} channels")
    if (zeros != zeros[:1]).any():
        raise node.refused("has weights with several zero points")
    if bias is not None and (not bias[1] or bias[0].dtype != np.int32 or bias[0].size != channels):
        raise node.refused("has biases that are no int32 in units of input scale times weight scale, one a channel")
    node.allowance.take(2 * values.size + channels, f"node {node.name!r}")
    numbers = np.zeros(channels, dtype=np.int64) if bias is None else bias[0].reshape(-1).astype(np.int64)
    weight, windows, shape = _lain(node, flow, values)
    check_values(int(np.prod(shape)), f"node {node.name!r}")
    spread = np.broadcast_to(scales, (channels,)).astype(np.float64)
    pending = Pending(node.op, Sums(weight, numbers, spread, int(zeros[0]), windows))
    return replace(flow, order=np.arange(int(np.prod(shape))).reshape(shape), real=True, pending=pending)


def _lain(node: Node, flow: Flow, values: Array) -> tuple[IntArray, Windows, tuple[int, ...]]:
    """Return weights (channels, taps), what they see, and the shape of the result."""
    if values.ndim == 2:
        outputs, inputs = values.shape
        if flow.order.shape[-1:] != (inputs,) or flow.order.size != inputs:
            raise node.refused(f"takes a tensor of shape {flow.order.shape}, its weights take vectors of {inputs}")
        weight = np.empty((outputs, inputs), dtype=np.int64)
        weight[:, flow.order.reshape(-1)] = values
        return weight, Windows.whole(inputs), (*flow.order.shape[:-1], outputs)
    image = images(flow)
    node.check("group", 1)
    node.check("dilations", [1, 1])
    stride = node.attributes.get("strides", [1, 1])
    padding = padding_of(node, image, values.shape[2:], stride)
    layer = Conv2d(np.zeros(values.shape), np.zeros(len(values)), Activation.LINEAR, image, (stride[0], stride[1]), padding)
    node.allowance.take(layer.windows.size, f"node {node.name!r}")
    return (
        values.reshape(len(values), -1).astype(np.int64),
        Windows(layer.windows[None], layer.inputs),
        (1, *layer.output_shape),
    )


# Where an operation holds the scale and the zero point of what it gives.
QOPERATORS = {
    "QLinearConv": (6, 7),
    "QLinearMatMul": (6, 7),
    "QGemm": (7, 8),
    "QLinearSigmoid": (3, 4),
    "QLinearSoftmax": (3, 4),
}
