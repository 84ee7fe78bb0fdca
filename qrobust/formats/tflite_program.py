"""Reading `.tflite` files whose activations are integers (int8, uint8 at the ends, int16x8) as integer programs.

A QUANTIZE of the float input and a DEQUANTIZE of the output, as converters write them for float ends, are the program's own
reading of inputs and its meaning of confidences. Images are channel-first, as in `tflite`.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.formats.tflite import AFFINE, MOST_PARAMETERS
from qrobust.formats.tflite_file import Content, Operator, Tensor, read_content
from qrobust.formats.tflite_geometry import Layout, Weights, activation_of, pool_of, weights_of
from qrobust.formats.untrusted import parsing
from qrobust.integer.fixed_point import round_half_away
from qrobust.integer.geometry import MOST_ENTRIES, Windows
from qrobust.integer.program import (
    Affine,
    Bounds,
    Elementwise,
    Encoding,
    Function,
    IntegerProgram,
    Operation,
    Pool,
    Requantize,
    Softmax,
)

TYPES = {"int8": (8, True), "uint8": (8, False), "int16": (16, True)}
FUNCTIONS = {"LOGISTIC": Function.LOGISTIC, "TANH": Function.TANH}
POOLS = {"AVERAGE_POOL_2D": True, "MAX_POOL_2D": False}


def read_program(path: Path | str) -> IntegerProgram:
    """Read a fully quantized classifier. Raises ModelFileError (damaged file), UnsupportedError (what is not read)."""
    with parsing(path, ".tflite"):
        content = read_content(path)
        reader = _Reader(content)
        for operator in content.chain():
            reader.read(operator)
        return reader.program(Path(path).stem)


def encoding_of(tensor: Tensor) -> Encoding:
    """Return what a tensor's integers mean. Raises UnsupportedError if it holds no integers of one scale."""
    if tensor.kind not in TYPES:
        raise UnsupportedError(
            f"tensor {tensor.name!r} of {tensor.kind} stays in float or is no value: an integer program is asked for"
        )
    if tensor.scales.size != 1:
        raise UnsupportedError(f"tensor {tensor.name!r} has {tensor.scales.size} scales: values have one")
    bits, signed = TYPES[tensor.kind]
    return Encoding(float(tensor.scales[0]), int(tensor.zero_points[0]), bits, signed)


class _Reader:
    """The operations read so far and the layout of the values after them."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._layout = Layout.of(content.tensors[content.input])
        self._operations: list[Operation] = []
        self._quantizes = False
        self._ended = False
        self._parameters = 0
        self._entries = 0

    def read(self, operator: Operator) -> None:
        """Take in the next operator."""
        if self._ended:
            raise UnsupportedError(f"operator {operator.name} follows the DEQUANTIZE of the confidences")
        first = operator.inputs[0]
        assert first is not None
        before, after = self._content.tensors[first], self._content.tensors[operator.outputs[0]]
        if operator.name == "QUANTIZE" and before.kind == "float32" and not self._operations:
            encoding_of(after)
            self._quantizes = True
        elif operator.name == "DEQUANTIZE" and self._operations:
            self._ended = True
        elif operator.name == "RESHAPE":
            if encoding_of(before) != encoding_of(after):
                raise UnsupportedError("a RESHAPE changes the encoding")
            self._layout = self._layout.reshaped(after)
        else:
            self._operations.append(self._operation(operator, encoding_of(before), encoding_of(after)))

    def _operation(self, operator: Operator, before: Encoding, after: Encoding) -> Operation:
        if operator.name in AFFINE:
            weights = weights_of(self._content, operator, self._layout)
            operation = self._affine(weights, before, after)
            self._layout = weights.after
            return operation
        if operator.name in POOLS:
            return self._pool(operator, before, after)
        size = self._layout.size
        if operator.name in FUNCTIONS:
            return Elementwise(size, FUNCTIONS[operator.name], before, after)
        if operator.name == "SOFTMAX":
            if self._layout.image is not None and prod(self._layout.image[1:]) != 1:
                raise UnsupportedError("a SOFTMAX of each place of an image is not read, only of a vector")
            beta = 0.0 if operator.options is None else operator.options.number(0, "<f", 0.0)
            return Softmax(size, float(beta), before, after)
        if operator.name == "QUANTIZE":
            return Requantize(size, before, after)
        known = ", ".join([*AFFINE, *POOLS, *FUNCTIONS, "SOFTMAX", "RESHAPE", "QUANTIZE", "DEQUANTIZE"])
        raise UnsupportedError(f"operator {operator.name} of integers is not read, only {known}")

    def _affine(self, weights: Weights, before: Encoding, after: Encoding) -> Affine:
        weight, bias, channels = weights.weight, weights.bias, weights.channels
        wide = before.bits == 16
        if weight.kind != "int8" or not weight.scales.size:
            raise UnsupportedError(f"weights {weight.name!r} are {weight.kind}: only int8 with scales are read")
        wanted = "int64" if wide and not weights.narrow else "int32"
        if bias is not None and bias.kind != wanted:
            raise UnsupportedError(f"biases {bias.name!r} are {bias.kind}, where {weights.operator}'s kernel reads {wanted}")
        if (
            not before.signed
            or not after.signed
            or before.bits != after.bits
            or (wide and (before.zero_point, after.zero_point) != (0, 0))
        ):
            raise UnsupportedError(f"operator {weights.operator} from {before} to {after} is not read")
        self._count(weight.size)
        dense = weights.operator == "FULLY_CONNECTED"
        axis = 3 if weights.operator == "DEPTHWISE_CONV_2D" else 0
        if weight.scales.size > 1 and (weight.axis != axis or weight.scales.size != channels):
            raise ModelFileError(f"weights {weight.name!r} have {weight.scales.size} scales along axis {weight.axis}")
        zero = int(weight.zero_points[0]) if dense and weight.scales.size == 1 else 0
        if (zero != 0 and not dense) or (weight.scales.size > 1 and weight.zero_points.any()):
            raise UnsupportedError(f"weights {weight.name!r} have zero points other than 0")
        image = self._layout.image
        if dense or image is None:
            windows = Windows.whole(self._layout.size)
        else:
            windows = Windows.over_image(image, weights.size, weights.sliding, weights.groups)
            self._entries += windows.table.size
            if self._entries > MOST_ENTRIES:
                raise ModelFileError(f"the convolutions need more than {MOST_ENTRIES:,} entries of windows together")
        values = weights.arranged(weight.values)
        return Affine(
            values.reshape(len(values), -1),
            np.zeros(channels, dtype=np.int64) if bias is None else bias.values.astype(np.int64),
            np.broadcast_to(weight.scales, (channels,)),
            windows,
            before,
            after,
            zero,
            bounds_of(weights.activation, after, weights.operator),
            wide=wide and not weights.narrow,
            exactly=dense,
        )

    def _pool(self, operator: Operator, before: Encoding, after: Encoding) -> Pool:
        image, size, sliding = pool_of(operator, self._layout)
        if before != after:
            raise UnsupportedError(f"operator {operator.name} changes the encoding from {before} to {after}")
        windows = Windows.over_image(image, size, sliding, groups=image[0])
        self._entries += windows.table.size
        if self._entries > MOST_ENTRIES:
            raise ModelFileError(f"the windows need more than {MOST_ENTRIES:,} entries together")
        down, across = sliding.places(image[1:], size)
        self._layout = Layout(image[0] * down * across, image=(image[0], down, across))
        return Pool(windows, before, POOLS[operator.name], bounds_of(activation_of(operator), after, operator.name))

    def _count(self, parameters: int) -> None:
        self._parameters += parameters
        if self._parameters > MOST_PARAMETERS:
            raise ModelFileError(f"the operators have more than {MOST_PARAMETERS:,} weights together")

    def program(self, name: str) -> IntegerProgram:
        """Return what was read."""
        return IntegerProgram(tuple(self._operations), name, self._quantizes)


def bounds_of(activation: str, encoding: Encoding, operator: str) -> Bounds:
    """Return where a fused activation cuts: at the integers nearest to 0, 6 or 1 in float32, as the kernels find them."""

    def integer(value: float) -> int:
        quotient = np.array(float(np.float32(value) / np.float32(encoding.scale)))
        return int(round_half_away(quotient)) + encoding.zero_point

    match activation:
        case "none":
            return Bounds()
        case "relu":
            return Bounds(integer(0.0))
        case "relu6":
            return Bounds(integer(0.0), integer(6.0))
        case "relu_n1_to_1":
            return Bounds(integer(-1.0), integer(1.0))
        case _:
            raise UnsupportedError(f"operator {operator} has the activation {activation}, which is not read")
