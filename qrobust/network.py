"""Networks: immutable layers (`layers`) whose meaning is the real-valued function of their stored numbers.

`logits` and `confidence` define that meaning once, over any `Arithmetic`: floats (here), exact rationals and balls
(`exact`), intervals (`bounds.ibp`) and terms of formulas (`formula`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from qrobust.arrays import Array, namespace_of
from qrobust.errors import NumberError, ShapeError
from qrobust.interval import FloatArray
from qrobust.layers import (
    Activation,
    Arithmetic,
    AveragePool2d,
    C,
    ConstantArithmetic,
    Conv2d,
    Dense,
    IntArray,
    Layer,
    MaxPool2d,
    Scaling,
    V,
    W,
    read_only,
)
from qrobust.memory import MEMORY, Part, at_a_time

__all__ = [
    "Activation",
    "Arithmetic",
    "AveragePool2d",
    "ConstantArithmetic",
    "Conv2d",
    "Dense",
    "Feature",
    "FloatArithmetic",
    "Imaging",
    "Layer",
    "MaxPool2d",
    "Network",
    "Output",
    "Scaling",
    "activate",
    "checked_inputs",
    "confidence",
    "logits",
    "perturbed_logits",
    "read_only",
    "stored_parameters",
]

Imaging = Conv2d | AveragePool2d | MaxPool2d  # layers that take images
GATHERED = 16  # bytes that a convolution of floats takes for each number of a window: as it gathers them and as it multiplies


class Output(Enum):
    """What turns logits into confidences: one sigmoid, or a softmax over k >= 2 classes."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"


@dataclass(frozen=True)
class Feature:
    """One input: its name, unit, and the range seen in training, where known. For people, never for a proof."""

    name: str
    unit: str = ""
    lower: float | None = None
    upper: float | None = None

    @property
    def label(self) -> str:
        """The name with its unit, as an axis shows it."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


@dataclass(frozen=True, eq=False)
class Network:
    """Layers, the last of them dense, and an output function. Two networks are equal when they mean the same: see `sha256`.

    A `Scaling` may be the first layer, and nowhere else: what follows it is the `core`.

    `name`, `features` and `classes` are for people and leave the hash alone; features and classes may be empty.
    Raises    ShapeError if layers do not fit, the last one is not dense and linear, or the output needs other rows
    """

    layers: tuple[Layer, ...]
    output: Output
    name: str = ""
    features: tuple[Feature, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers:
            raise ShapeError("a network needs at least one layer")
        for number, (before, after) in enumerate(zip(self.layers, self.layers[1:], strict=False), start=2):
            if after.inputs != before.outputs:
                raise ShapeError(f"layer {number} takes {after.inputs} inputs but layer {number - 1} gives {before.outputs}")
            if isinstance(after, Scaling):
                raise ShapeError(f"layer {number} scales values, which only the first layer may do: fold it into a layer")
            if (
                not isinstance(before, Dense | Scaling)
                and not isinstance(after, Dense)
                and after.input_shape != before.output_shape
            ):
                raise ShapeError(
                    f"layer {number} takes images {after.input_shape} but layer {number - 1} gives {before.output_shape}"
                )
        if not isinstance(self.layers[-1], Dense):
            raise ShapeError("the last layer gives logits: it must be dense")
        if self.layers[-1].activation is not Activation.LINEAR:
            raise ShapeError("the last layer gives logits: it must be linear, the output function follows it")
        rows = self.layers[-1].outputs
        if self.output is Output.SIGMOID and rows != 1:
            raise ShapeError(f"a sigmoid output needs 1 logit, the last layer gives {rows}")
        if self.output is Output.SOFTMAX and rows < 2:
            raise ShapeError(f"a softmax output needs at least 2 logits, the last layer gives {rows}")
        if self.features and len(self.features) != self.inputs:
            raise ShapeError(f"{len(self.features)} features are named but the network takes {self.inputs} inputs")
        if self.classes and len(self.classes) != self.class_count:
            raise ShapeError(f"{len(self.classes)} classes are named but the network has {self.class_count}")

    @property
    def inputs(self) -> int:
        """The number of inputs."""
        return self.layers[0].inputs

    @property
    def scaling(self) -> Scaling | None:
        """How the inputs are scaled before the first layer with parameters, where they are."""
        return self.layers[0] if isinstance(self.layers[0], Scaling) else None

    @cached_property
    def core(self) -> Network:
        """The network without its scaling of inputs: a function of the scaled ones, whose ranges it does not name."""
        if self.scaling is None:
            return self
        features = tuple(Feature(feature.name) for feature in self.features)
        return Network(self.layers[1:], self.output, self.name, features, self.classes)

    @property
    def class_count(self) -> int:
        """The number of classes: 2 for one sigmoid."""
        return 2 if self.output is Output.SIGMOID else self.layers[-1].outputs

    @property
    def hidden_layers(self) -> tuple[Layer, ...]:
        return self.layers[:-1]

    @property
    def is_dense(self) -> bool:
        """Whether every layer is dense: what the closed form and the bounds by rows of weights need."""
        return all(isinstance(layer, Dense) for layer in self.layers)

    @property
    def parameter_count(self) -> int:
        return sum(layer.weight.size + layer.bias.size for layer in self.layers)

    @cached_property
    def sha256(self) -> str:
        """Hash of what the network computes: activations, shapes, geometry, numbers, output; not of names."""
        digest = hashlib.sha256(f"qrobust-network-1 {self.output.value}".encode())
        for layer in self.layers:
            digest.update(f" {layer.signature} ".encode())
            for array in (layer.weight, layer.bias):
                digest.update((np.ascontiguousarray(array) + 0.0).astype("<f8").tobytes())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Network) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return int(self.sha256[:15], 16)

    def feature_name(self, index: int) -> str:
        """Name an input for a message: its feature's name, or its number."""
        return self.features[index].name if self.features else f"input {index + 1}"

    def class_name(self, index: int) -> str:
        """Name a class for a message."""
        return self.classes[index] if self.classes else f"class {index}"

    def __str__(self) -> str:
        first, layers = self.core.layers[0], self.core.layers
        inputs = "x".join(str(n) for n in first.input_shape) if isinstance(first, Imaging) else str(self.inputs)
        shape = "-".join([inputs, *(str(layer) for layer in layers)])
        scaled = ", inputs scaled" if self.scaling is not None else ""
        return f"{self.name or 'network'} ({shape}, {self.parameter_count} parameters{scaled})"

    def confidences(self, x: npt.ArrayLike) -> FloatArray:
        """Return the confidences in floating point: a forecast, never a proof.

        Shapes    x (batch, inputs); result (batch, 1) for a sigmoid, (batch, k) for a softmax
        """
        arithmetic = FloatArithmetic()
        with np.errstate(over="ignore", invalid="ignore"):
            return confidence(self, logits(self, checked_inputs(self, x), arithmetic), arithmetic)

    def labels(self, x: npt.ArrayLike, level: float = 0.5) -> npt.NDArray[np.int64]:
        """Return the labels in floating point. Shapes: x (batch, inputs); result (batch,)."""
        values = self.confidences(x)
        if self.output is Output.SIGMOID:
            return (values[:, 0] > level).astype(np.int64)
        return np.asarray(values.argmax(axis=1), dtype=np.int64)


def checked_inputs(network: Network, x: npt.ArrayLike) -> FloatArray:
    """Return inputs as a float64 array (batch, inputs). Raises ShapeError or NumberError."""
    array = read_only(x)
    if array.ndim != 2 or array.shape[1] != network.inputs:
        raise ShapeError(f"the network takes points of {network.inputs} numbers, got an array of shape {array.shape}")
    if not np.all(np.isfinite(array)):
        raise NumberError("an input is NaN or infinite: give finite numbers")
    return array


def activate(activation: Activation, x: V, arithmetic: Arithmetic[W, V]) -> V:
    """Apply an activation in any arithmetic."""
    match activation:
        case Activation.LINEAR:
            return x
        case Activation.RELU:
            return arithmetic.relu(x)
        case Activation.SIGMOID:
            return arithmetic.sigmoid(x)
        case Activation.TANH:
            return arithmetic.tanh(x)


def stored_parameters(network: Network, arithmetic: ConstantArithmetic[C, V]) -> list[tuple[C, C]]:
    """Return the network's own weights and biases in an arithmetic."""
    return [(arithmetic.constant(layer.weight), arithmetic.constant(layer.bias)) for layer in network.layers]


def perturbed_logits(network: Network, parameters: Sequence[tuple[W, W]], x: V, arithmetic: Arithmetic[W, V]) -> V:
    """Return the logits with other weights and biases in place of the stored ones: the definition of f_p."""
    for layer, (weight, bias) in zip(network.layers, parameters, strict=True):
        x = activate(layer.activation, layer.apply(arithmetic, weight, x, bias), arithmetic)
    return x


def logits(network: Network, x: V, arithmetic: ConstantArithmetic[C, V]) -> V:
    """Return the logits of the network as stored: the definition of f_p0."""
    return perturbed_logits(network, stored_parameters(network, arithmetic), x, arithmetic)


def confidence(network: Network, values: V, arithmetic: Arithmetic[W, V]) -> V:
    """Return the confidences that belong to logits."""
    return arithmetic.sigmoid(values) if network.output is Output.SIGMOID else arithmetic.softmax(values)


class FloatArithmetic:
    """Batches of floats, rounded to nearest; the activations take arrays of any library. Shapes: x (batch, n)."""

    def constant(self, values: FloatArray) -> FloatArray:
        return values

    def affine(self, weight: FloatArray, x: FloatArray, bias: FloatArray) -> FloatArray:
        result: FloatArray = x @ weight.T + bias
        return result

    def convolve(self, weight: FloatArray, x: FloatArray, bias: FloatArray, windows: IntArray) -> FloatArray:
        kernels = weight.reshape(len(weight), -1).T
        padded = np.concatenate([x, np.zeros((len(x), 1))], axis=1)
        result = np.empty((len(x), len(weight), len(windows)))
        step = at_a_time(GATHERED * windows.size, MEMORY, Part.INPUTS, "a convolution", max(len(x), 1))
        for start in range(0, len(x), step):
            here = slice(start, start + step)
            result[here] = (padded[here][:, windows] @ kernels + bias).swapaxes(1, 2)
        return result.reshape(len(x), len(weight) * len(windows))

    def mean(self, x: FloatArray, windows: IntArray) -> FloatArray:
        result: FloatArray = x[:, windows].sum(axis=2) / windows.shape[1]
        return result

    def maximum(self, x: FloatArray, windows: IntArray) -> FloatArray:
        result: FloatArray = x[:, windows].max(axis=2)
        return result

    def rescale(self, x: FloatArray, scaling: Scaling) -> FloatArray:
        scale, offset = scaling.nearest
        result: FloatArray = x * scale + offset
        return result

    def relu(self, x: Array) -> Array:
        return namespace_of(x).maximum(x, 0.0)

    def sigmoid(self, x: Array) -> Array:
        xp = namespace_of(x)
        power = xp.exp(-xp.abs(x))
        return xp.where(x >= 0, 1.0, power) / (1.0 + power)

    def tanh(self, x: Array) -> Array:
        return namespace_of(x).tanh(x)

    def softmax(self, x: FloatArray) -> FloatArray:
        powers = np.exp(x - x.max(axis=-1, keepdims=True))
        result: FloatArray = powers / powers.sum(axis=-1, keepdims=True)
        return result
