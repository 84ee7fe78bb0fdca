"""PyTorch's nn.Sequential, live: its modules are recognised by the names of their classes, and torch is never imported here.

What is read is the module as in `eval()`: Dropout does nothing, batch normalization uses its running statistics and is folded
into the layer before it in float64, each operation rounded to nearest (`chain.normalized`). Images are channel-first, as in
qrobust. A last linear layer of two or more values gives the logits of a softmax, as nn.CrossEntropyLoss takes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.formats import chain
from qrobust.formats.untrusted import one_line
from qrobust.interval import FloatArray
from qrobust.layers import Layer, Shape
from qrobust.network import Activation, AveragePool2d, Conv2d, Dense, MaxPool2d, Network, Output, Scaling

PACKAGE = "torch.nn.modules."
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def from_torch(module: Any, *, input_shape: tuple[int, ...] = (), name: str = "") -> Network:
    """Return the network that an nn.Sequential (or one layer) computes in evaluation mode.

    Shapes    input_shape (channels, height, width) where images come in; vectors need none
    Raises    UnsupportedError naming the module that cannot be represented
    """
    reader = _Reader(tuple(int(size) for size in input_shape))
    for path, part in _leaves(module, ""):
        try:
            reader.read(part)
        except UnsupportedError as error:
            raise UnsupportedError(f"module {path or '0'} ({type(part).__name__}) {error}") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = one_line(str(error), 100)
            raise UnsupportedError(f"module {path or '0'} ({type(part).__name__}) is none that PyTorch makes: {why}") from None
    shape = reader.shape
    if len(shape) == 3:
        raise UnsupportedError(f"the module ends in images {shape}, a classifier ends in a linear layer: add nn.Flatten")
    order = np.arange(reader.layers[-1].outputs if reader.layers else 0)
    return chain.classifier(tuple(reader.layers), reader.output, order, name or type(module).__name__)


def _leaves(module: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the modules that run one after the other, with their places. Raises UnsupportedError."""
    kind = type(module)
    if not kind.__module__.startswith(PACKAGE):
        raise UnsupportedError(
            f"module {path or '0'} is a {kind.__module__}.{kind.__name__}, whose forward cannot be seen: "
            "give an nn.Sequential of PyTorch's own layers, or export it to ONNX"
        )
    if any(getattr(module, hooks, None) for hooks in HOOKS):
        raise UnsupportedError(f"module {path or '0'} ({kind.__name__}) has hooks, which may do anything: remove them")
    if kind.__name__ != "Sequential":
        yield path, module
        return
    for child, part in module.named_children():
        yield from _leaves(part, f"{path}.{child}" if path else child)


@dataclass
class _Reader:
    """The layers so far, and the shape of one value: (n,) or (channels, height, width); () while it is not known."""

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        self.layers: list[Layer] = []
        self.output: Output | None = None

    def read(self, part: Any) -> None:
        """Take in the next module."""
        kind = type(part).__name__
        if kind not in RULES:
            raise UnsupportedError(f"cannot be represented, only {', '.join(sorted(RULES))}")
        if self.output is not None and kind not in NOTHING:
            raise UnsupportedError("follows the softmax, which must be the end")
        RULES[kind](self, part)

    def image(self) -> Shape:
        """Return the shape of the images that come in. Raises UnsupportedError."""
        if len(self.shape) != 3:
            raise UnsupportedError(
                f"takes images, not values of shape {self.shape}: give input_shape=(channels, height, width)"
            )
        return self.shape[0], self.shape[1], self.shape[2]

    def add(self, layer: Layer) -> None:
        """Add a layer."""
        self.layers.append(layer)
        self.shape = (layer.outputs,) if isinstance(layer, Dense | Scaling) else layer.output_shape


def _numbers(tensor: Any) -> FloatArray:
    """Return a tensor of floats in float64, which holds each exactly."""
    if not tensor.is_floating_point():
        raise UnsupportedError(f"has a tensor of {tensor.dtype}, only floats are read")
    return np.asarray(tensor.detach().cpu().double().numpy(), dtype=np.float64)


def _parameters(part: Any) -> tuple[FloatArray, FloatArray]:
    weight = _numbers(part.weight)
    return weight, np.zeros(len(weight)) if part.bias is None else _numbers(part.bias)


def _linear(reader: _Reader, part: Any) -> None:
    weight, bias = _parameters(part)
    if reader.shape not in ((), weight.shape[1:]):
        raise UnsupportedError(f"takes {weight.shape[1]} values, not values of shape {reader.shape}")
    reader.add(Dense(weight, bias))


def _convolution(reader: _Reader, part: Any) -> None:
    image, (weight, bias) = reader.image(), _parameters(part)
    if part.groups != 1 or _pair(part.dilation) != (1, 1) or part.padding_mode != "zeros":
        raise UnsupportedError("with groups, dilation, or padding by other than zeros cannot be represented")
    stride = _pair(part.stride)
    if part.padding == "same":  # stride 1; an odd zero is below and at the right
        down, across = (size - 1 for size in weight.shape[2:])
        padding = (down // 2, across // 2, down - down // 2, across - across // 2)
    else:
        down, across = (0, 0) if part.padding == "valid" else _pair(part.padding)
        padding = (down, across, down, across)
    reader.add(Conv2d(weight, bias, Activation.LINEAR, image, stride, padding))


def _pool(kind: type[AveragePool2d | MaxPool2d]) -> Callable[[_Reader, Any], None]:
    def rule(reader: _Reader, part: Any) -> None:
        image, size = reader.image(), _pair(part.kernel_size)
        stride = size if part.stride is None else _pair(part.stride)
        odd = _pair(getattr(part, "dilation", 1)) != (1, 1) or getattr(part, "divisor_override", None) is not None
        if _pair(part.padding) != (0, 0) or odd or getattr(part, "return_indices", False):
            raise UnsupportedError("with padding, dilation, indices or a divisor of its own cannot be represented")
        if part.ceil_mode and any((n - k) % s for n, k, s in zip(image[1:], size, stride, strict=True)):
            raise UnsupportedError("counts windows that the image cuts off (ceil_mode), which cannot be represented")
        reader.add(kind(image, size, stride))

    return rule


def _adaptive(reader: _Reader, part: Any) -> None:
    image = reader.image()
    if _pair(part.output_size) != (1, 1):
        raise UnsupportedError(f"of size {part.output_size} cannot be represented, only 1")
    reader.add(AveragePool2d(image, image[1:], (1, 1)))


def _normalization(reader: _Reader, part: Any) -> None:
    layer = chain.last_linear(tuple(reader.layers))
    if part.running_mean is None or part.running_var is None:
        raise UnsupportedError("has no running statistics: it depends on the batch")
    scale, center = (default if array is None else _numbers(array) for array, default in ((part.weight, 1.0), (part.bias, 0.0)))
    mean, variance = _numbers(part.running_mean), _numbers(part.running_var)
    reader.layers[-1] = chain.normalized(layer, scale, center, mean, variance, float(part.eps))


def _flatten(reader: _Reader, part: Any) -> None:
    if part.start_dim != 1 or part.end_dim not in (-1, len(reader.shape)):
        raise UnsupportedError(f"from {part.start_dim} to {part.end_dim} cannot be represented, only from 1 to the end")
    if reader.shape:
        reader.shape = (math.prod(reader.shape),)


def _activation(activation: Activation) -> Callable[[_Reader, Any], None]:
    def rule(reader: _Reader, part: Any) -> None:
        reader.layers = list(chain.activated(tuple(reader.layers), activation))

    return rule


def _softmax(reader: _Reader, part: Any) -> None:
    if part.dim not in (1, -1) or len(reader.shape) != 1:
        raise UnsupportedError(f"over dimension {part.dim} of values of shape {reader.shape} is not one over all classes")
    chain.last_linear(tuple(reader.layers))
    reader.output = Output.SOFTMAX


def _nothing(reader: _Reader, part: Any) -> None:
    """Do nothing, as the module does in evaluation mode."""


def _pair(value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(number, int) for number in pair):
        raise ModelFileError(f"a size is {value!r:.40}, it must be one or two whole numbers")
    return pair[0], pair[1]


NOTHING = ("Identity", "Dropout", "Dropout1d", "Dropout2d", "AlphaDropout", "FeatureAlphaDropout")
RULES: dict[str, Callable[[_Reader, Any], None]] = {
    "Linear": _linear,
    "Conv2d": _convolution,
    "AvgPool2d": _pool(AveragePool2d),
    "MaxPool2d": _pool(MaxPool2d),
    "AdaptiveAvgPool2d": _adaptive,
    "BatchNorm1d": _normalization,
    "BatchNorm2d": _normalization,
    "Flatten": _flatten,
    "ReLU": _activation(Activation.RELU),
    "Sigmoid": _activation(Activation.SIGMOID),
    "Tanh": _activation(Activation.TANH),
    "Softmax": _softmax,
} | dict.fromkeys(NOTHING, _nothing)
