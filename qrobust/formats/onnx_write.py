"""Networks as ONNX files: scaled inputs (Mul, Add, Sub, Div), Gemm, Conv, pools, Flatten, activations, and the output function.

The stored numbers are kept exactly: as float32 where every one of them is a float32, as double if that is asked for. The
double file of a network with convolutions is valid ONNX, but onnxruntime 1.31 runs no Conv in double.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.errors import BackendUnavailableError, UnsupportedError
from qrobust.exact import ExactArray
from qrobust.files import write_whole
from qrobust.formats.untrusted import one_line
from qrobust.interval import FloatArray
from qrobust.layers import Layer
from qrobust.network import Activation, AveragePool2d, Conv2d, Dense, Imaging, Network, Output, Scaling

OPSET, IR_VERSION = 13, 8
BATCH = "batch"
INPUT, OUTPUT = "input", "output"
OPERATIONS = {Activation.RELU: "Relu", Activation.SIGMOID: "Sigmoid", Activation.TANH: "Tanh"}


def write_onnx(network: Network, path: Path | str, *, double: bool = False, logits: bool = False) -> None:
    """Write a network as ONNX, whole or not at all; with `logits` without its output function.

    Raises    UnsupportedError if a number is no float32 and `double` is not asked for, OutputError, BackendUnavailableError
    """
    write_whole(path, onnx_bytes(network, double=double, logits=logits))


def onnx_bytes(network: Network, *, double: bool = False, logits: bool = False) -> bytes:
    """Return the content of the file that `write_onnx` writes. Raises UnsupportedError, BackendUnavailableError."""
    try:
        from onnx import TensorProto, checker, helper
    except ImportError:
        raise BackendUnavailableError("writing .onnx files needs `pip install qrobust[onnx]`") from None
    writer = _Writer(double)
    writer.layers(network)
    if not logits:
        settings = {"Sigmoid": {}, "Softmax": {"axis": 1}}
        operation = "Sigmoid" if network.output is Output.SIGMOID else "Softmax"
        writer.add(operation, **settings[operation])
    writer.nodes[-1].output[0] = OUTPUT
    kind = TensorProto.DOUBLE if double else TensorProto.FLOAT
    shapes: list[list[str | int | None]] = [[BATCH, *input_shape(network)], [BATCH, network.layers[-1].outputs]]
    ends = [helper.make_tensor_value_info(name, kind, s) for name, s in zip((INPUT, OUTPUT), shapes, strict=True)]
    name = one_line(network.name or "network")
    graph = helper.make_graph(writer.nodes, name, ends[:1], ends[1:], writer.initializers)
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, producer_name="qrobust", opset_imports=[opset], ir_version=IR_VERSION)
    checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def input_shape(network: Network) -> tuple[int, ...]:
    """Return the shape of one input in the file: (inputs,), or (channels, height, width) of images."""
    first = network.core.layers[0]
    return first.input_shape if isinstance(first, Imaging) else (first.inputs,)


class _Writer:
    """The nodes so far, each fed by the one before, and their numbers."""

    def __init__(self, double: bool) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._double = double

    def layers(self, network: Network) -> None:
        """Add all layers, with their values made flat or images of where the next one needs that."""
        for number, layer in enumerate(network.layers, start=1):
            self._layer(layer, number, input_shape(network))
            if layer.activation is not Activation.LINEAR:
                self.add(OPERATIONS[layer.activation])
            after = network.layers[number] if number < len(network.layers) else None
            if isinstance(after, Dense) and isinstance(layer, Imaging):
                self.add("Flatten", axis=1)
            elif isinstance(after, Imaging) and isinstance(layer, Dense):
                self.add("Reshape", self._stored(f"shape_{number}", np.array([-1, *after.input_shape], dtype=np.int64)))

    def add(self, operation: str, *inputs: str, **attributes: Any) -> None:
        """Add a node that takes what the last one gives, and these initializers."""
        from onnx import helper

        number = len(self.nodes) + 1
        before = self.nodes[-1].output[0] if self.nodes else INPUT
        name = f"{operation.lower()}_{number}"
        self.nodes.append(helper.make_node(operation, [before, *inputs], [f"value_{number}"], name=name, **attributes))

    def _layer(self, layer: Layer, number: int, shape: tuple[int, ...]) -> None:
        if isinstance(layer, Scaling):
            for place, (operation, values) in enumerate(self._steps(layer)):
                self.add(operation, self._stored(f"scaling_{place}", values.reshape(shape)))
        elif isinstance(layer, Dense | Conv2d):
            arrays = [
                self._stored(f"{what}_{number}", self._exact(values, number))
                for what, values in (("weight", layer.weight), ("bias", layer.bias))
            ]
            if isinstance(layer, Dense):
                self.add("Gemm", *arrays, transB=1)
            else:
                size = list(layer.weight.shape[2:])
                self.add("Conv", *arrays, kernel_shape=size, strides=list(layer.stride), pads=list(layer.padding))
        else:
            operation = "AveragePool" if isinstance(layer, AveragePool2d) else "MaxPool"
            self.add(operation, kernel_shape=list(layer.size), strides=list(layer.stride))

    def _steps(self, scaling: Scaling) -> list[tuple[str, Any]]:
        """Return operations that scale exactly, with numbers of the file's type. Raises UnsupportedError if there are none."""
        scale, offset = scaling.scale, scaling.offset
        ways = (
            (("Mul", scale, 1), ("Add", offset, 0)),
            (("Sub", -offset / scale, 0), ("Div", 1 / scale, 1)),
            (("Sub", -offset / scale, 0), ("Mul", scale, 1)),
            (("Div", 1 / scale, 1), ("Add", offset, 0)),
        )
        kind = np.float64 if self._double else np.float32
        for way in ways:
            steps = [(operation, values) for operation, values, nothing in way if any(values != nothing)]
            if all(_is_of(values, kind) for _, values in steps):
                return [(operation, values.astype(kind)) for operation, values in steps]
        advice = "write .json" if self._double else "write them as double"
        raise UnsupportedError(f"the inputs are scaled by numbers that no {np.dtype(kind).name} is: {advice}")

    def _exact(self, values: FloatArray, number: int) -> Any:
        """Return values in the type of the file. Raises UnsupportedError if that would round one."""
        if self._double:
            return values
        with np.errstate(over="ignore"):
            single = values.astype(np.float32)
        wrong = values[single != values]
        if wrong.size:
            raise UnsupportedError(
                f"layer {number} has {wrong.size:,} numbers that no float32 is, such as {float(wrong[0])!r}: write them as"
                " double"
            )
        return single

    def _stored(self, name: str, values: Any) -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name


def _is_of(values: ExactArray, kind: type[np.float32] | type[np.float64]) -> bool:
    """Whether every rational is a finite number of a type."""
    try:
        with np.errstate(over="ignore"):
            floats = values.astype(np.float64).astype(kind).astype(np.float64)
    except OverflowError:  # of a rational that no float64 comes near
        return False
    return bool(np.isfinite(floats).all()) and all(map(Fraction.__eq__, map(Fraction, floats.tolist()), values.tolist()))
