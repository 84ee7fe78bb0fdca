"""Integer programs made of float networks by plain calibration, for the tests of what compares the two."""

from __future__ import annotations

import numpy as np

from qrobust.integer.geometry import Windows
from qrobust.integer.program import (
    Affine,
    Bounds,
    Elementwise,
    Encoding,
    Function,
    IntegerProgram,
    Operation,
    Runtime,
    Softmax,
)
from qrobust.interval import FloatArray
from qrobust.network import Activation, Dense, Network, Output

CONFIDENCES = {Runtime.TFLITE: Encoding(2**-8, -128), Runtime.ONNX: Encoding(float(np.float32(1 / 255)), 0, signed=False)}


def single(value: float) -> float:
    return float(np.float32(value))


def encoding_for(values: FloatArray, *, signed: bool = True) -> Encoding:
    """The asymmetric encoding of 8 bits whose range just holds the values and 0."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 1e-3)
    scale = single((high - low) / 255)
    least = -128 if signed else 0
    return Encoding(scale, int(np.clip(round(least - low / scale), least, least + 255)), signed=signed)


def quantized(
    network: Network, samples: FloatArray, *, runtime: Runtime = Runtime.TFLITE, signed: bool = True
) -> IntegerProgram:
    """The int8 program of a dense network of linear and ReLU units, calibrated at samples (points, inputs)."""
    h, before = samples, encoding_for(samples, signed=signed)
    operations: list[Operation] = []
    for layer in network.layers:
        assert isinstance(layer, Dense)
        z = h @ layer.weight.T + layer.bias
        rectified = layer.activation is Activation.RELU
        h = np.maximum(z, 0) if rectified else z
        after = encoding_for(h, signed=signed)
        scales = np.maximum(np.abs(layer.weight).max(axis=1) / 127, 1e-6).astype(np.float32).astype(np.float64)
        weight = np.rint(layer.weight / scales[:, None]).astype(np.int64)
        bias = np.rint(layer.bias / (scales * before.scale)).astype(np.int64)
        bounds = Bounds(after.zero_point) if rectified else Bounds()
        windows = Windows.whole(layer.inputs)
        operations.append(Affine(weight, bias, scales, windows, before, after, 0, bounds, exactly=True))
        before = after
    end = CONFIDENCES[runtime]
    if network.output is Output.SIGMOID:
        operations.append(Elementwise(1, Function.LOGISTIC, before, end))
    else:
        operations.append(Softmax(network.class_count, 1.0, before, end))
    return IntegerProgram(tuple(operations), runtime=runtime)
