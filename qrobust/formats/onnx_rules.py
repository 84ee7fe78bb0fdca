"""ONNX operations on the signal: one rule a row, each the layer that the operation is, or a refusal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.formats import chain
from qrobust.formats.onnx_node import FLOAT_BITS, Node, Signal, check_values, image_shape
from qrobust.interval import FloatArray
from qrobust.layers import IntArray, Layer, Scaling, Shape
from qrobust.network import Activation, AveragePool2d, Conv2d, Dense, MaxPool2d, Output

QUANTIZED = (
    "makes integers of what comes from the input: this reader gives functions of floats, where weights alone may be quantized;"
    " integer programs are files of their own kind"
)


def _gemm(node: Node, signal: Signal) -> Signal:
    if node.inputs[0] is not signal:
        raise node.refused("multiplies a constant with what comes from the input, only the other order is read")
    node.check("transA", 0)
    matrix = node.numbers(1)
    if matrix.ndim != 2:
        raise ModelFileError(f"node {node.name!r} (Gemm) has weights of shape {matrix.shape}")
    matrix = matrix.T if node.integer("transB", 0) else matrix
    bias = np.zeros(matrix.shape[1])
    if node.has(2):
        bias = np.broadcast_to(node.numbers(2), (1, matrix.shape[1])).reshape(-1)
    alpha, beta = (np.array(float(node.attributes.get(name, 1.0))) for name in ("alpha", "beta"))
    return _dense(node, signal, chain.exact_product(matrix, alpha), chain.exact_product(bias, beta))


def _matmul(node: Node, signal: Signal) -> Signal:
    if node.inputs[0] is not signal:
        raise node.refused("multiplies a constant with what comes from the input, only the other order is read")
    matrix = node.numbers(1)
    if matrix.ndim != 2:
        raise node.refused(f"has weights of shape {matrix.shape}, only a matrix is read")
    return _dense(node, signal, matrix, np.zeros(matrix.shape[1]))


def _dense(node: Node, signal: Signal, matrix: FloatArray, bias: FloatArray) -> Signal:
    """Add a dense layer. Shapes: matrix (in, out); bias (out,)."""
    rows, columns = matrix.shape
    if signal.order.shape[-1:] != (rows,) or signal.order.size != rows:
        raise node.refused(f"takes a tensor of shape {signal.order.shape}, its weights take vectors of {rows}")
    node.allowance.take(2 * matrix.size + columns, f"node {node.name!r}")
    weight = np.empty((columns, rows))
    weight[:, signal.order.reshape(-1)] = matrix.T
    return _joined(node, signal, Dense(weight, bias), (*signal.order.shape[:-1], columns))


def _joined(node: Node, signal: Signal, layer: Layer, shape: tuple[int, ...]) -> Signal:
    """Return the signal after one more layer, with what was done to the inputs before the first."""
    check_values(layer.outputs, f"node {node.name!r}")
    node.allowance.take(layer.outputs, f"node {node.name!r}")
    before = signal.layers if signal.scaling is None else (signal.scaling,)
    order = np.arange(layer.outputs, dtype=np.int64).reshape(shape)
    return Signal(order, (*before, layer), signal.bits)


def _images(signal: Signal) -> tuple[Signal, Shape]:
    """Return the signal as images. Before the first layer, inputs take the order that their images have here."""
    shape = image_shape(signal.order)
    if signal.in_order:
        return signal, shape
    if signal.layers:
        raise UnsupportedError("takes images whose values were moved, only channel-first ones are read")
    places = signal.order.reshape(-1)
    before = signal.scaling
    scaling = None if before is None else Scaling(before.scale[places], before.offset[places])
    return replace(signal, order=np.arange(places.size).reshape(signal.order.shape), scaling=scaling), shape


def _convolution(node: Node, signal: Signal) -> Signal:
    if node.inputs[0] is not signal:
        raise node.refused("convolves a constant, only kernels that are constant are read")
    signal, image = _images(signal)
    node.check("group", 1)
    weight = node.numbers(1)
    if weight.ndim != 4:
        raise node.refused(f"has kernels of shape {weight.shape}, only images are read")
    node.check("dilations", [1, 1])
    if node.attributes.get("kernel_shape", list(weight.shape[2:])) != list(weight.shape[2:]):
        raise ModelFileError(f"node {node.name!r} (Conv) has kernels of shape {weight.shape}, not the one it names")
    bias = node.numbers(2) if node.has(2) else np.zeros(len(weight))
    strides = node.attributes.get("strides", [1, 1])
    padding = padding_of(node, image, weight.shape[2:], strides)
    node.allowance.take(weight.size, f"node {node.name!r}")
    layer = Conv2d(weight, bias, Activation.LINEAR, image, tuple(strides), padding)
    return _joined(node, signal, layer, (1, *layer.output_shape))


def padding_of(node: Node, image: Shape, size: Sequence[int], strides: Sequence[int]) -> tuple[int, int, int, int]:
    """Return (top, left, bottom, right)."""
    rule = node.text("auto_pad", "NOTSET")
    if rule in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for length, k, stride in zip(image[1:], size, strides, strict=True):
            total = max((-(-length // stride) - 1) * stride + k - length, 0)
            small, large = total // 2, total - total // 2
            before.append(small if rule == "SAME_UPPER" else large)
            after.append(large if rule == "SAME_UPPER" else small)
        return before[0], before[1], after[0], after[1]
    if rule not in ("NOTSET", "VALID"):
        raise node.refused(f"with auto_pad {rule!r} cannot be represented")
    pads = [0, 0, 0, 0] if rule == "VALID" else list(node.attributes.get("pads", [0, 0, 0, 0]))
    if len(pads) != 4 or min(pads) < 0:
        raise node.refused(f"with pads {pads} cannot be represented, only four numbers >= 0")
    return pads[0], pads[1], pads[2], pads[3]


def _pool(kind: type[AveragePool2d | MaxPool2d]) -> Callable[[Node, Signal], Signal]:
    def rule(node: Node, signal: Signal) -> Signal:
        signal, image = _images(signal)
        if len(node.outputs) > 1:
            raise node.refused("gives the places of its maxima, too, which cannot be represented")
        node.check("dilations", [1, 1])
        size = tuple(node.integers(1, "kernel_shape"))
        strides = tuple(node.attributes.get("strides", [1, 1]))
        if len(size) != 2 or len(strides) != 2:
            raise node.refused(f"of size {size} cannot be represented, only images are read")
        if any(padding_of(node, image, size, strides)):
            raise node.refused("pads its images, which cannot be represented")
        cut = any((length - k) % stride for length, k, stride in zip(image[1:], size, strides, strict=True))
        if node.integer("ceil_mode", 0) and cut:
            raise node.refused("counts windows that the image cuts off (ceil_mode), which cannot be represented")
        layer = kind(image, size, strides)
        return _joined(node, signal, layer, (1, *layer.output_shape))

    return rule


def _global_pool(kind: type[AveragePool2d | MaxPool2d]) -> Callable[[Node, Signal], Signal]:
    def rule(node: Node, signal: Signal) -> Signal:
        signal, image = _images(signal)
        layer = kind(image, image[1:], (1, 1))
        return _joined(node, signal, layer, (1, *layer.output_shape))

    return rule


def _normalization(node: Node, signal: Signal) -> Signal:
    node.check("training_mode", 0)
    node.check("spatial", 1)
    layer = chain.last_linear(signal.layers)
    channels = layer.bias.size
    if signal.order.shape[:2] != (1, channels) or not signal.in_order:
        raise node.refused(f"takes a tensor of shape {signal.order.shape}, not the {channels} channels of the layer before")
    scale, center, mean, variance = (node.numbers(index) for index in (1, 2, 3, 4))
    epsilon = float(np.float32(node.attributes.get("epsilon", 1e-5)))
    folded = chain.normalized(layer, scale, center, mean, variance, epsilon)
    return replace(signal, layers=(*signal.layers[:-1], folded))


def _activation(activation: Activation) -> Callable[[Node, Signal], Signal]:
    def rule(node: Node, signal: Signal) -> Signal:
        return replace(signal, layers=chain.activated(signal.layers, activation))

    return rule


def _softmax(node: Node, signal: Signal) -> Signal:
    shape = signal.order.shape
    axis = node.integer("axis", 1 if node.opset < 13 else -1)
    if not -len(shape) <= axis < len(shape):
        raise ModelFileError(f"node {node.name!r} (Softmax) has axis {axis} for shape {shape}")
    before = int(np.prod(shape[: axis % len(shape)]))
    whole = before == 1 if node.opset < 13 else shape[axis] == signal.order.size  # before 13 all axes from this one on
    if not whole:
        raise node.refused(f"over axis {axis} of shape {shape} is not one softmax over all classes")
    chain.last_linear(signal.layers)
    return replace(signal, output=Output.SOFTMAX)


def _scaling(node: Node, signal: Signal) -> Signal:
    """Fold Add, Sub, Mul or Div by constants into the layer before, or keep them as scaling of the inputs."""
    first = node.inputs[0] is signal
    if not first and node.op in ("Sub", "Div"):
        raise node.refused("takes what comes from the input from a constant, only the other order is read")
    values = node.numbers(1 if first else 0)
    order = _broadcast(node, signal.order, values.shape)
    spread = np.empty(order.size)
    spread[order.reshape(-1)] = np.broadcast_to(values, order.shape).reshape(-1)
    if not signal.layers:
        node.allowance.take(chain.RATIONAL_NUMBERS * order.size, f"node {node.name!r}")
        return replace(signal, order=order, scaling=chain.scaled_inputs(signal.scaling, order.size, node.op, spread))
    if node.op == "Div":
        spread = chain.reciprocal(spread)
    scale, shift = (spread, None) if node.op in ("Mul", "Div") else (None, -spread if node.op == "Sub" else spread)
    layer = chain.scaled_outputs(chain.last_linear(signal.layers), scale, shift)
    return replace(signal, order=order, layers=(*signal.layers[:-1], layer))


def _broadcast(node: Node, order: IntArray, shape: tuple[int, ...]) -> IntArray:
    """Return the places in the shape that the result has, which must hold as many values."""
    result = np.broadcast_shapes(order.shape, shape)
    if int(np.prod(result)) != order.size:
        raise node.refused(f"makes shape {result} of shape {order.shape}, which cannot be represented")
    node.allowance.take(order.size, f"node {node.name!r}")
    return order.reshape(result)


def _cast(node: Node, signal: Signal) -> Signal:
    bits = FLOAT_BITS.get(node.integer("to", 1), 0)
    if bits < signal.bits:
        raise node.refused("rounds what comes from the input, which cannot be represented")
    return replace(signal, bits=bits)


def _quantized(node: Node, signal: Signal) -> Any:
    raise node.refused(QUANTIZED)


RULES: dict[str, Callable[[Node, Signal], Signal]] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _convolution,
    "AveragePool": _pool(AveragePool2d),
    "MaxPool": _pool(MaxPool2d),
    "GlobalAveragePool": _global_pool(AveragePool2d),
    "GlobalMaxPool": _global_pool(MaxPool2d),
    "BatchNormalization": _normalization,
    "Relu": _activation(Activation.RELU),
    "Sigmoid": _activation(Activation.SIGMOID),
    "Tanh": _activation(Activation.TANH),
    "Softmax": _softmax,
    "Add": _scaling,
    "Sub": _scaling,
    "Mul": _scaling,
    "Div": _scaling,
    "Cast": _cast,
    "QuantizeLinear": _quantized,
    "DynamicQuantizeLinear": _quantized,
    "DequantizeLinear": _quantized,
}
