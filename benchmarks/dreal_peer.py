"""The peer: the paper's queries written for dReal in the straightforward way, every parameter a variable.

This is what a reader of the paper would write with dReal's Python module. It shares no code with qrobust but the reading of
the network, and its answers are dReal's own, up to its precision.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import dreal
import numpy as np

from qrobust.network import Activation, Network

PRECISION = 1e-4


@dataclass(frozen=True)
class Timed:
    """A number and the seconds it took; None if the time limit ended it."""

    value: float | None
    seconds: float


class Encoding:
    """f_p0 and f_p as dReal expressions over x and p."""

    def __init__(self, network: Network, delta: float) -> None:
        self.network = network
        self.bounds: list[Any] = []
        self.parameters: list[tuple[list[list[Any]], list[Any]]] = []
        for number, layer in enumerate(network.layers):
            weight = [
                [self._variable(f"w{number}_{i}_{j}", v, delta) for j, v in enumerate(row)]
                for i, row in enumerate(layer.weight)
            ]
            bias = [self._variable(f"b{number}_{i}", v, delta) for i, v in enumerate(layer.bias)]
            self.parameters.append((weight, bias))

    def _variable(self, name: str, value: float, delta: float) -> Any:
        variable = dreal.Variable(name)
        self.bounds += [variable >= float(value) - delta, variable <= float(value) + delta]
        return variable

    def inputs(self, lower: Any, upper: Any) -> tuple[list[Any], list[Any]]:
        """Return input variables and their bounds."""
        x = [dreal.Variable(f"x{i}") for i in range(self.network.inputs)]
        return x, [f for v, a, b in zip(x, lower, upper, strict=True) for f in (v >= float(a), v <= float(b))]

    def perturbed(self, x: list[Any]) -> Any:
        """The logit with variable parameters."""
        return self._logit(x, self.parameters)

    def stored(self, x: list[Any]) -> Any:
        """The logit with the stored parameters."""
        return self._logit(x, [(layer.weight.tolist(), layer.bias.tolist()) for layer in self.network.layers])

    def _logit(self, x: list[Any], parameters: Any) -> Any:
        for layer, (weight, bias) in zip(self.network.layers, parameters, strict=True):
            z = [sum((w * v for w, v in zip(row, x, strict=True)), b) for row, b in zip(weight, bias, strict=True)]
            x = [dreal.Max(v, 0) for v in z] if layer.activation is Activation.RELU else z
        return x[0]


def sigmoid(z: Any) -> Any:
    """1 / (1 + exp(-z)) as a dReal expression."""
    return 1 / (1 + dreal.exp(-z))


def local_eps(network: Network, delta: float, points: Any) -> tuple[list[float], float]:
    """Minimise -abs(f_p - f_p0) at each point (the objective form, precision delta / 50); return values and seconds."""
    encoding, values = Encoding(network, delta), []
    confidences = network.confidences(points)[:, 0]
    started = time.perf_counter()
    for point, confidence in zip(points.tolist(), confidences.tolist(), strict=True):
        objective = -abs(sigmoid(encoding.perturbed(point)) - confidence)
        box = dreal.Minimize(objective, dreal.And(*encoding.bounds), min(PRECISION, delta / 50))
        values.append(_change(network, point, encoding, box, confidence))
    return values, time.perf_counter() - started


def _change(network: Network, point: list[float], encoding: Encoding, box: Any, confidence: float) -> float:
    x = np.array(point)
    for layer, (weight, bias) in zip(network.layers, encoding.parameters, strict=True):
        z = np.array([[box[v].mid() for v in row] for row in weight]) @ x + np.array([box[v].mid() for v in bias])
        x = np.maximum(z, 0) if layer.activation is Activation.RELU else z
    return float(abs(1 / (1 + np.exp(-x[0])) - confidence))


def local_flips(network: Network, delta: float, points: Any) -> tuple[int, float]:
    """Ask for a changed label at each point; return how many are delta-satisfiable, and seconds."""
    encoding, flips = Encoding(network, delta), 0
    labels = network.labels(points)
    started = time.perf_counter()
    for point, label in zip(points.tolist(), labels.tolist(), strict=True):
        logit = encoding.perturbed(point)
        changed = logit <= 0 if label else logit >= 0
        flips += dreal.CheckSatisfiability(dreal.And(changed, *encoding.bounds), PRECISION) is not None
    return flips, time.perf_counter() - started


def global_eps(network: Network, delta: float, lower: Any, upper: Any) -> Timed:
    """Bisect eps in "some x and p move the confidence by eps" to PRECISION; return the last one refuted."""
    encoding = Encoding(network, delta)
    x, within = encoding.inputs(lower, upper)
    change = abs(sigmoid(encoding.perturbed(x)) - sigmoid(encoding.stored(x)))
    started, low, high = time.perf_counter(), 0.0, 1.0
    while high - low > 2 * PRECISION:
        middle = (low + high) / 2
        if dreal.CheckSatisfiability(dreal.And(change >= middle, *within, *encoding.bounds), PRECISION) is None:
            high = middle
        else:
            low = middle
    return Timed(high, time.perf_counter() - started)


def global_sigma(network: Network, delta: float, lower: Any, upper: Any, label: int) -> Timed:
    """Bisect sigma in "some x of that label and margin sigma changes it" to PRECISION; return the last one refuted."""
    encoding = Encoding(network, delta)
    x, within = encoding.inputs(lower, upper)
    stored, logit = encoding.stored(x), encoding.perturbed(x)
    margin = sigmoid(stored) - 0.5 if label else 0.5 - sigmoid(stored)
    changed = logit <= 0 if label else logit >= 0
    started, low, high = time.perf_counter(), 0.0, 0.5
    while high - low > 2 * PRECISION:
        middle = (low + high) / 2
        if dreal.CheckSatisfiability(dreal.And(margin >= middle, changed, *within, *encoding.bounds), PRECISION) is None:
            high = middle
        else:
            low = middle
    return Timed(high, time.perf_counter() - started)
