"""How the operators of a `.tflite` file lie on vectors whose images are channel-first, while TFLite's are channel-last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.formats.tflite_file import ACTIVATIONS, Content, Operator, Tensor
from qrobust.integer.geometry import MOST_ENTRIES, Sliding
from qrobust.layers import Shape

BIAS_FIELD = {"FULLY_CONNECTED": 4, "CONV_2D": 6}  # quantized_bias_type: 2 is int32, 0 and 4 are int64
UNPADDED = Sliding((1, 1))
ACTIVATION_FIELD = {
    "FULLY_CONNECTED": 0,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 4,
    "AVERAGE_POOL_2D": 5,
    "MAX_POOL_2D": 5,
}


@dataclass(frozen=True)
class Layout:
    """What the values between two operators are: an image, a flattened image (in TFLite's order), or a plain vector."""

    size: int
    image: Shape | None = None
    flattened: Shape | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """Return the layout of a tensor of one input (batch, ...). Raises UnsupportedError."""
        shape = tensor.shape
        if len(shape) < 2 or shape[0] != 1 or 0 in shape:
            raise UnsupportedError(f"tensor {tensor.name!r} has the shape {shape}: only batches of one input are read")
        if len(shape) == 4:
            return cls(tensor.size, image=(shape[3], shape[1], shape[2]))
        return cls(tensor.size)

    def reshaped(self, tensor: Tensor) -> Layout:
        """Return the layout after a RESHAPE into a tensor's declared shape. Raises UnsupportedError."""
        after = Layout.of(tensor)
        if after.size != self.size:
            raise ModelFileError(f"a RESHAPE turns {self.size} numbers into {after.size}")
        before = self.image or self.flattened
        if after.image is None:
            return Layout(self.size, flattened=before)
        if before is None and 1 in (after.image[0], prod(after.image[1:])):
            return after
        if before == after.image or (before is not None and before[0] == after.image[0] == 1):
            return after
        raise UnsupportedError(
            f"a RESHAPE to {tensor.shape} reorders channels: only a flatten or images of one channel are read"
        )

    def columns(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the weights (out, size) of a fully connected layer with columns in channel-first order."""
        order = self.image or self.flattened
        if order is None:
            return weight
        channels, height, width = order
        return weight[:, np.arange(self.size).reshape(height, width, channels).transpose(2, 0, 1).ravel()]


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights and biases of an operator, how it lies on the values before it, and on images how it slides."""

    operator: str
    weight: Tensor
    bias: Tensor | None
    activation: str
    layout: Layout
    groups: int = 1
    sliding: Sliding = UNPADDED
    narrow: bool = False  # whether the operator's options say 32-bit biases for 16-bit activations

    @property
    def channels(self) -> int:
        """The number of output channels, which biases and scales have one of."""
        return self.weight.shape[3] if self.operator == "DEPTHWISE_CONV_2D" else self.weight.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """The height and width of a convolution's kernels."""
        return self.weight.shape[1], self.weight.shape[2]

    def arranged(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the weights as (out, in), or for convolutions as (out, in of a group, height, width)."""
        if self.operator == "FULLY_CONNECTED":
            return self.layout.columns(values)
        return values.transpose(3, 0, 1, 2) if self.operator == "DEPTHWISE_CONV_2D" else values.transpose(0, 3, 1, 2)

    @property
    def after(self) -> Layout:
        """The layout of the results."""
        if self.layout.image is None or self.operator == "FULLY_CONNECTED":
            return Layout(self.channels)
        down, across = self.sliding.places(self.layout.image[1:], self.size)
        return Layout(self.channels * down * across, image=(self.channels, down, across))


def weights_of(content: Content, operator: Operator, layout: Layout) -> Weights:
    """Return what a FULLY_CONNECTED, CONV_2D or DEPTHWISE_CONV_2D computes with. Raises ModelFileError, UnsupportedError."""
    weight = content.constant(operator.inputs[1] if len(operator.inputs) > 1 else None)
    bias = content.constant(operator.inputs[2] if len(operator.inputs) > 2 else None)
    if weight is None:
        raise ModelFileError(f"operator {operator.name} has no weights")
    activation = activation_of(operator)
    if operator.name == "FULLY_CONNECTED":
        if operator.option(1, "<b") != 0:
            raise UnsupportedError("a FULLY_CONNECTED has shuffled weights: convert the model with the default format")
        if len(weight.shape) != 2 or weight.shape[1] != layout.size or 0 in weight.shape:
            raise ModelFileError(f"weights {weight.name!r} of shape {weight.shape} do not take {layout.size} numbers")
        found = Weights(operator.name, weight, bias, activation, layout)
    else:
        found = _convolution(operator, weight, bias, activation, layout)
    if operator.name in BIAS_FIELD:
        found = replace(found, narrow=operator.option(BIAS_FIELD[operator.name], "<b") == 2)
    if bias is not None and bias.shape != (found.channels,):
        raise ModelFileError(f"{found.channels} channels have biases of shape {bias.shape}")
    return found


def _convolution(operator: Operator, weight: Tensor, bias: Tensor | None, activation: str, layout: Layout) -> Weights:
    if layout.image is None:
        raise UnsupportedError(f"operator {operator.name} takes a vector: only images (1, height, width, channels) are read")
    channels = layout.image[0]
    if len(weight.shape) != 4 or 0 in weight.shape:
        raise ModelFileError(f"weights {weight.name!r} have the shape {weight.shape}, a convolution needs four sizes")
    deep = operator.name == "DEPTHWISE_CONV_2D"
    first = 5 if deep else 4
    dilation = operator.option(first, "<i", 1), operator.option(first + 1, "<i", 1)
    if dilation != (1, 1):
        raise UnsupportedError(f"operator {operator.name} has dilation {dilation}: only 1 is read")
    if deep:
        if weight.shape[0] != 1 or weight.shape[3] % channels:
            raise ModelFileError(f"weights {weight.name!r} of shape {weight.shape} do not fit {channels} channels")
        groups = channels
    else:
        if channels % weight.shape[3] or weight.shape[0] % (channels // weight.shape[3]):
            raise ModelFileError(f"weights {weight.name!r} of shape {weight.shape} do not fit {channels} channels")
        groups = channels // weight.shape[3]
    sliding = sliding_of(operator, layout.image, weight.shape[1:3])
    return Weights(operator.name, weight, bias, activation, layout, groups, sliding)


def activation_of(operator: Operator) -> str:
    """Return the name of an operator's fused activation."""
    code = operator.option(ACTIVATION_FIELD[operator.name], "<b")
    if code not in ACTIVATIONS:
        raise ModelFileError(f"operator {operator.name} has a fused activation of code {code}")
    return ACTIVATIONS[code]


def sliding_of(operator: Operator, image: Shape, size: Sequence[int]) -> Sliding:
    """Return how an operator's windows move over an image. Raises ModelFileError."""
    across, down = operator.option(1, "<i"), operator.option(2, "<i")
    padding = operator.option(0, "<b")
    if min(down, across, *size) < 1 or padding not in (0, 1):
        raise ModelFileError(f"operator {operator.name} has stride {(down, across)}, windows {tuple(size)}, padding {padding}")
    stride = (down, across)
    sliding = Sliding.same_size(image[1:], size, stride) if padding == 0 else Sliding(stride)
    places = sliding.places(image[1:], size)
    if min(places) < 1 or prod(places) * prod(size) * image[0] > MOST_ENTRIES:
        raise ModelFileError(
            f"operator {operator.name} slides windows {tuple(size)} over an image {image}: none fit, or too many"
        )
    return sliding


def pool_of(operator: Operator, layout: Layout) -> tuple[Shape, tuple[int, int], Sliding]:
    """Return a pool's image, the size of its windows, and how they move. Raises ModelFileError, UnsupportedError."""
    if layout.image is None:
        raise UnsupportedError(f"operator {operator.name} takes a vector: only images (1, height, width, channels) are read")
    size = operator.option(4, "<i"), operator.option(3, "<i")
    return layout.image, size, sliding_of(operator, layout.image, size)
