"""Rules that turn a Network into the ParameterBox of all its perturbed copies."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qrobust.domains import Bounds, LayerBox, ParameterBox
from qrobust.errors import NumberError, ShapeError
from qrobust.interval import Expansion, FloatArray
from qrobust.network import Network
from qrobust.quantization import Bias, Integer, ScaleType, Scheme


class Perturbation(ABC):
    """A rule; `around` applies it."""

    @abstractmethod
    def around(self, network: Network) -> ParameterBox:
        """Return the box of the parameters that the rule allows."""


@dataclass(frozen=True)
class Absolute(Perturbation):
    """abs(p - p0) <= delta for every parameter (Murthy, Das, Islam 2019); `weights` or `biases` alone if asked.

    Raises NumberError if delta is negative or not finite, or if nothing is perturbed.
    """

    delta: float
    weights: bool = True
    biases: bool = True

    def __post_init__(self) -> None:
        check_delta(self.delta)
        if not (self.weights or self.biases):
            raise NumberError("neither weights nor biases are perturbed: allow one of them")

    def around(self, network: Network) -> ParameterBox:
        deltas = (self.delta,) * sum(layer.weight.size > 0 for layer in network.layers)
        box = PerLayer(deltas, self.weights, self.biases).around(network)
        return replace(box, rule=f"{_perturbed(self.weights, self.biases)} within {self.delta:g} of its stored value")


@dataclass(frozen=True)
class PerLayer(Perturbation):
    """abs(p - p0) <= delta of the parameter's layer; layers without parameters (pools) have no delta.

    Raises NumberError, and ShapeError if layers and deltas differ.
    """

    deltas: Sequence[float]
    weights: bool = True
    biases: bool = True

    def __post_init__(self) -> None:
        for delta in self.deltas:
            check_delta(delta)

    def around(self, network: Network) -> ParameterBox:
        count = sum(layer.weight.size > 0 for layer in network.layers)
        if len(self.deltas) != count:
            raise ShapeError(f"{len(self.deltas)} deltas for {count} layers: give one a layer that has parameters")
        left = iter(self.deltas)
        deltas = [next(left) if layer.weight.size else 0.0 for layer in network.layers]
        return ParameterBox(
            tuple(
                LayerBox(
                    _ball(layer.weight, delta if self.weights else 0.0),
                    _ball(layer.bias, delta if self.biases else 0.0),
                )
                for layer, delta in zip(network.layers, deltas, strict=True)
            ),
            rule=f"{_perturbed(self.weights, self.biases)} within {', '.join(f'{d:g}' for d in self.deltas)} (by layer)",
        )


@dataclass(frozen=True)
class Rounding(Perturbation):
    """Every rounding to a scheme around the stored network: `Scheme.box`."""

    scheme: Scheme

    def around(self, network: Network) -> ParameterBox:
        return self.scheme.box(network)


@dataclass(frozen=True)
class HalfStep(Perturbation):
    """Rounding to symmetric integers, biases too: abs(p - p0) <= step / 2, step = max abs(p0) / (2**(bits - 1) - 1).

    The greatest absolute value is taken over each array of weights, or over each of its output channels (rows) if
    `per_channel`, and over each array of biases; the step is rounded up to a float64. Raises NumberError unless
    2 <= bits <= 32.
    """

    bits: int = 8
    per_channel: bool = False

    def __post_init__(self) -> None:
        Integer(self.bits)  # raises for a wrong number of bits

    @property
    def scheme(self) -> Integer:
        """The scheme whose roundings these are."""
        return Integer(self.bits, per_channel=self.per_channel, scale=ScaleType.FLOAT64, bias=Bias.SAME)

    def around(self, network: Network) -> ParameterBox:
        unit = "output channel" if self.per_channel else "tensor"
        box = Rounding(self.scheme).around(network)
        return replace(box, rule=f"every parameter within half a step of {self.bits} bits per {unit}")


@dataclass(frozen=True)
class Copy(Perturbation):
    """The parameters of one other network, such as the quantized copy that ships, and no others.

    Raises ShapeError if the two differ in shape.
    """

    network: Network

    def around(self, network: Network) -> ParameterBox:
        _check_alike(network, self.network)
        parameters = [(layer.weight, layer.bias) for layer in self.network.layers]
        rule = f"exactly the parameters of {self.network.name or 'a second network'}"
        return ParameterBox.from_arrays(parameters, parameters, shifted=True, rule=rule)


@dataclass(frozen=True)
class Hull(Perturbation):
    """Every parameter between its value and that of a second network, such as a quantized copy.

    Raises ShapeError if the two differ in shape.
    """

    other: Network

    def around(self, network: Network) -> ParameterBox:
        _check_alike(network, self.other)
        pairs = list(zip(network.layers, self.other.layers, strict=True))
        return ParameterBox.from_arrays(
            [(np.minimum(a.weight, b.weight), np.minimum(a.bias, b.bias)) for a, b in pairs],
            [(np.maximum(a.weight, b.weight), np.maximum(a.bias, b.bias)) for a, b in pairs],
            rule=f"every parameter between its stored value and that of {self.other.name or 'a second network'}",
        )


def with_rows(box: ParameterBox, other: ParameterBox, rows: Sequence[npt.NDArray[np.bool_]], rule: str) -> ParameterBox:
    """Return a box with some output channels (rows, and their biases) taken from another box.

    Shapes    rows: one mask a layer, (channels,)
    """
    layers = tuple(
        LayerBox(_chosen(own.weight, better.weight, mask), _chosen(own.bias, better.bias, mask))
        for own, better, mask in zip(box.layers, other.layers, rows, strict=True)
    )
    return ParameterBox(layers, box.shifted or other.shifted, rule)


def _chosen(own: Bounds, other: Bounds, rows: npt.NDArray[np.bool_]) -> Bounds:
    mask = rows.reshape(-1, *(1,) * (len(own.lower.shape) - 1))
    pairs = [(own.lower, other.lower), (own.upper, other.upper)]
    ends = [Expansion(np.where(mask, b.head, a.head), np.where(mask, b.tail, a.tail)) for a, b in pairs]
    return Bounds(*ends)


def check_delta(delta: float) -> None:
    """Raise NumberError unless delta is a finite number >= 0."""
    if not (math.isfinite(delta) and delta >= 0):
        raise NumberError(f"delta is {delta}, it must be a finite number >= 0, such as 0.01")


def _check_alike(network: Network, other: Network) -> None:
    """Raise ShapeError unless two networks have the same layers."""
    shapes = [[layer.weight.shape for layer in n.layers] for n in (network, other)]
    if shapes[0] != shapes[1]:
        raise ShapeError(f"the second network has weights {shapes[1]}, the first {shapes[0]}")
    for number, (a, b) in enumerate(zip(network.layers, other.layers, strict=True), start=1):
        if type(a) is not type(b) or a.geometry != b.geometry:
            raise ShapeError(f"layer {number} of the second network is no layer like that of the first")


def _perturbed(weights: bool, biases: bool) -> str:
    return "every parameter" if weights and biases else "every weight" if weights else "every bias"


def _ball(values: FloatArray, delta: float | FloatArray) -> Bounds:
    radius = np.broadcast_to(np.asarray(delta, dtype=np.float64), values.shape).copy()
    return Bounds(Expansion.total(values, -radius), Expansion.total(values, radius))
