"""What a scheme does to each array of a network, and where a shipped copy leaves the scheme's box."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qrobust.domains import Bounds, ParameterBox
from qrobust.errors import ShapeError
from qrobust.interval import FloatArray
from qrobust.network import Network
from qrobust.quantization.grids import Kept, placed
from qrobust.quantization.schemes import Scheme, naming

WEIGHTS, BIASES = "weights", "biases"


@dataclass(frozen=True)
class Stored:
    """One array under a scheme. `steps` (least, greatest) is None for an array that stays as it is.

    Units     `changed` and `steps` are in the parameters' own; both are rounded to nearest, for people
    """

    layer: int
    what: str
    shape: tuple[int, ...]
    least: float
    greatest: float
    steps: tuple[float, float] | None = None
    changed: float = 0.0
    overflowed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        ends = {"layer": self.layer, "what": self.what, "shape": list(self.shape), "least": self.least}
        steps = None if self.steps is None else list(self.steps)
        return ends | {"greatest": self.greatest, "steps": steps, "changed": self.changed, "overflowed": self.overflowed}


@dataclass(frozen=True)
class Outside:
    """The parameters of one array that lie outside a box: how many, and the farthest, its index, value and distance."""

    layer: int
    what: str
    count: int
    index: tuple[int, ...]
    value: float
    distance: float

    def __str__(self) -> str:
        number = f"{self.count} of its parameters" if self.count > 1 else "one of its parameters"
        return (
            f"layer {self.layer}, {self.what}: {number} outside, the farthest {self.value:.9g} at {self.index},"
            f" by {self.distance:.3g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        found = {"layer": self.layer, "what": self.what, "count": self.count, "index": list(self.index)}
        return found | {"value": self.value, "distance": self.distance}


def stored_arrays(network: Network, scheme: Scheme | None = None) -> list[Stored]:
    """Return what each array of parameters holds and, with a scheme, what becomes of it. Raises NumberError."""
    grids = [(Kept(), Kept()) for _ in network.layers] if scheme is None else scheme.grids(network)
    found = []
    for (number, what, values), grid in zip(_arrays(network), (g for pair in grids for g in pair), strict=True):
        if not values.size:
            continue
        array = Stored(number, what, values.shape, float(values.min()), float(values.max()))
        if not isinstance(grid, Kept):
            steps = grid.steps(values)
            with naming(f"layer {number}"):
                changes = np.abs(placed(grid, values) - values)
            array = Stored(
                array.layer,
                array.what,
                array.shape,
                array.least,
                array.greatest,
                (float(steps.min()), float(steps.max())),
                float(changes.max()),
                int(grid.overflowed(values).sum()),
            )
        found.append(array)
    return found


def outside(parameters: ParameterBox, copy: Network) -> list[Outside]:
    """Return the arrays of a copy that leave a box; none if the copy lies inside, which is decided exactly.

    Raises    ShapeError if the copy has other layers than the box
    """
    shapes = [(layer.weight.shape, layer.bias.shape) for layer in copy.layers]
    own = [(layer.weight.lower.shape, layer.bias.lower.shape) for layer in parameters.layers]
    if shapes != own:
        raise ShapeError(f"the copy has layers {shapes}, the model {own}: they are no copies of each other")
    found = []
    bounds = (b for layer in parameters.layers for b in (layer.weight, layer.bias))
    for (number, what, values), each in zip(_arrays(copy), bounds, strict=True):
        strays = ~each.inside(values)
        if strays.any():
            distances = np.where(strays, _distances(each, values), -1.0)
            index = tuple(int(i) for i in np.unravel_index(int(distances.argmax()), values.shape))
            found.append(Outside(number, what, int(strays.sum()), index, float(values[index]), float(distances[index])))
    return found


def _arrays(network: Network) -> Iterator[tuple[int, str, FloatArray]]:
    for number, layer in enumerate(network.layers, start=1):
        yield number, WEIGHTS, layer.weight
        yield number, BIASES, layer.bias


def _distances(bounds: Bounds, values: FloatArray) -> FloatArray:
    below = (bounds.lower.head - values) + bounds.lower.tail
    above = (values - bounds.upper.head) - bounds.upper.tail
    return np.asarray(np.maximum(below, above))
