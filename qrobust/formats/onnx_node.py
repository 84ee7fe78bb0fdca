"""What the rules for ONNX operations work on: a node with its inputs, and the signal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.formats.onnx_tensors import Array
from qrobust.formats.untrusted import Allowance
from qrobust.interval import FloatArray
from qrobust.layers import IntArray, Layer, Scaling, Shape
from qrobust.network import Output

FLOAT_BITS = {10: 16, 1: 32, 11: 64}  # TensorProto's numbers of float16, float and double, and their bits
MOST_VALUES = 2**24  # of one tensor that comes from the input


@dataclass(frozen=True, eq=False)
class Signal:
    """A tensor that comes from the input.

    Shapes    order: the tensor's own shape, each entry the place of its value in the flat vector that the last layer gives
              (or in the network's input); scaling (inputs,) before the first layer: what was done to the inputs
    """

    order: IntArray
    layers: tuple[Layer, ...]
    bits: int
    output: Output | None = None
    scaling: Scaling | None = None

    @property
    def in_order(self) -> bool:
        """Whether the tensor's values, read row by row, are the flat vector."""
        return bool(np.array_equal(self.order.reshape(-1), np.arange(self.order.size)))


Value = Array | Signal


@dataclass
class Node:
    """An operation of the graph, with the values that it takes: `Value` or None, or what another reader keeps."""

    op: str
    name: str
    inputs: list[Any]
    attributes: dict[str, Any]
    opset: int
    allowance: Allowance
    outputs: list[str] = field(default_factory=list)

    def refused(self, why: str) -> UnsupportedError:
        """Return the refusal of this node."""
        return UnsupportedError(f"node {self.name!r} ({self.op}) {why}")

    def has(self, index: int) -> bool:
        """Whether an input, which may be left out, is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def constant(self, index: int) -> Array:
        """Return an input that must be constant. Raises UnsupportedError, ModelFileError."""
        if not self.has(index):
            raise ModelFileError(f"node {self.name!r} ({self.op}) lacks its input {index + 1}")
        value = self.inputs[index]
        if isinstance(value, Signal):
            raise self.refused(f"takes what comes from the input as its input {index + 1}, which must be constant")
        array: Array = value
        return array

    def numbers(self, index: int) -> FloatArray:
        """Return an input that must be constant, in float64, which holds every float16, float32 and float64 exactly."""
        value = self.constant(index)
        if value.dtype.kind != "f":
            raise self.refused(f"takes {value.dtype.name} as its input {index + 1}, only floats are read there")
        self.allowance.take(value.size, f"node {self.name!r}")
        return value.astype(np.float64)

    def integers(self, index: int, attribute: str, default: list[int] | None = None) -> list[int]:
        """Return whole numbers that are an input, or in older versions an attribute."""
        if self.has(index):
            value = self.constant(index)
            if value.dtype.kind not in "iu" or value.size > 64:
                raise ModelFileError(f"node {self.name!r} ({self.op}) needs a few whole numbers as its input {index + 1}")
            return [int(number) for number in value.reshape(-1)]
        found = self.attributes.get(attribute, default)
        if found is None:
            raise ModelFileError(f"node {self.name!r} ({self.op}) lacks {attribute!r}")
        return [int(number) for number in found]

    def integer(self, attribute: str, default: int) -> int:
        """Return a whole number that is an attribute."""
        return int(self.attributes.get(attribute, default))

    def text(self, attribute: str, default: str) -> str:
        """Return a text that is an attribute."""
        value = self.attributes.get(attribute, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def check(self, attribute: str, *allowed: Any) -> None:
        """Raise UnsupportedError unless an attribute is left out or has one of these values."""
        value = self.attributes.get(attribute, allowed[0])
        if list(value) not in allowed if isinstance(value, list | tuple) else value not in allowed:
            raise self.refused(f"with {attribute} {value!r} cannot be represented, only {allowed[0]!r}")


def check_values(count: int, what: str) -> None:
    """Raise UnsupportedError if a tensor that comes from the input has more values than are read."""
    if count > MOST_VALUES:
        raise UnsupportedError(f"{what} has {count:,} values, at most {MOST_VALUES:,} are read")


def image_shape(order: IntArray) -> Shape:
    """Return (channels, height, width) of a tensor (1, channels, height, width). Raises UnsupportedError."""
    if order.ndim != 4 or order.shape[0] != 1:
        raise UnsupportedError(f"takes a tensor of shape {order.shape}, only images (1, channels, height, width) are read")
    return int(order.shape[1]), int(order.shape[2]), int(order.shape[3])
