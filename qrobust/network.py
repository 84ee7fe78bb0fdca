"""Networks: immutable layers whose meaning is the real-valued function of their stored numbers.

`logits` and `confidence` define that meaning once, over any `Arithmetic`: floats (here), exact rationals and balls
(`exact`), intervals (`bounds.ibp`) and terms of formulas (`formula`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from qrobust.errors import NumberError, ShapeError
from qrobust.interval import FloatArray

W = TypeVar("W", contravariant=True)
C = TypeVar("C")
V = TypeVar("V")


class Activation(Enum):
    """The function applied to each pre-activation of a layer."""

    LINEAR = "linear"
    RELU = "relu"
    SIGMOID = "sigmoid"
    TANH = "tanh"


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
class Dense:
    """A fully connected layer: activation(weight @ x + bias).

    Shapes    weight (out, in); bias (out,)
    Raises    ShapeError, NumberError (NaN or infinite numbers)
    """

    weight: FloatArray
    bias: FloatArray
    activation: Activation = Activation.LINEAR

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", read_only(self.weight))
        object.__setattr__(self, "bias", read_only(self.bias))
        if self.weight.ndim != 2 or 0 in self.weight.shape:
            raise ShapeError(f"a dense layer needs weights (out, in), not shape {self.weight.shape}")
        if self.bias.shape != self.weight.shape[:1]:
            raise ShapeError(f"weights {self.weight.shape} need {self.weight.shape[0]} biases, not {self.bias.shape}")
        if not (np.all(np.isfinite(self.weight)) and np.all(np.isfinite(self.bias))):
            raise NumberError("a dense layer has NaN or infinite weights: export the model again")

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[1])

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[0])


def read_only(values: npt.ArrayLike) -> FloatArray:
    """Return a float64 copy that cannot be written to."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ShapeError(
            "an array of numbers has rows of different lengths, or cells that are not numbers that 64 bits hold"
        ) from None
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Network:
    """Dense layers and an output function. Two networks are equal when they mean the same: see `sha256`.

    `name`, `features` and `classes` are for people and leave the hash alone; features and classes may be empty.
    Raises    ShapeError if layers do not fit, the last one is not linear, or the output needs other rows
    """

    layers: tuple[Dense, ...]
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
    def class_count(self) -> int:
        """The number of classes: 2 for one sigmoid."""
        return 2 if self.output is Output.SIGMOID else self.layers[-1].outputs

    @property
    def hidden_layers(self) -> tuple[Dense, ...]:
        return self.layers[:-1]

    @property
    def parameter_count(self) -> int:
        return sum(layer.weight.size + layer.bias.size for layer in self.layers)

    @cached_property
    def sha256(self) -> str:
        """Hash of what the network computes: activations, shapes, numbers, output; not of names."""
        digest = hashlib.sha256(f"qrobust-network-1 {self.output.value}".encode())
        for layer in self.layers:
            digest.update(f" {layer.activation.value} {layer.outputs} {layer.inputs} ".encode())
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
        shape = "-".join(str(n) for n in (self.inputs, *(layer.outputs for layer in self.layers)))
        return f"{self.name or 'network'} ({shape}, {self.parameter_count} parameters)"

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


class Arithmetic(Protocol[W, V]):
    """The operations that a network is made of, over one kind of number. W: parameters; V: vectors of values."""

    def affine(self, weight: W, x: V, bias: W) -> V: ...
    def relu(self, x: V) -> V: ...
    def sigmoid(self, x: V) -> V: ...
    def tanh(self, x: V) -> V: ...
    def softmax(self, x: V) -> V: ...


class ConstantArithmetic(Arithmetic[C, V], Protocol[C, V]):
    """An arithmetic that can also take a network's stored numbers."""

    def constant(self, values: FloatArray) -> C: ...


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
        x = activate(layer.activation, arithmetic.affine(weight, x, bias), arithmetic)
    return x


def logits(network: Network, x: V, arithmetic: ConstantArithmetic[C, V]) -> V:
    """Return the logits of the network as stored: the definition of f_p0."""
    return perturbed_logits(network, stored_parameters(network, arithmetic), x, arithmetic)


def confidence(network: Network, values: V, arithmetic: Arithmetic[W, V]) -> V:
    """Return the confidences that belong to logits."""
    return arithmetic.sigmoid(values) if network.output is Output.SIGMOID else arithmetic.softmax(values)


class FloatArithmetic:
    """Batches of floats, rounded to nearest. Shapes: x (batch, n)."""

    def constant(self, values: FloatArray) -> FloatArray:
        return values

    def affine(self, weight: FloatArray, x: FloatArray, bias: FloatArray) -> FloatArray:
        result: FloatArray = x @ weight.T + bias
        return result

    def relu(self, x: FloatArray) -> FloatArray:
        return np.maximum(x, 0.0)

    def sigmoid(self, x: FloatArray) -> FloatArray:
        power = np.exp(-np.abs(x))
        return np.where(x >= 0, 1.0, power) / (1.0 + power)

    def tanh(self, x: FloatArray) -> FloatArray:
        return np.tanh(x)

    def softmax(self, x: FloatArray) -> FloatArray:
        powers = np.exp(x - x.max(axis=-1, keepdims=True))
        result: FloatArray = powers / powers.sum(axis=-1, keepdims=True)
        return result
