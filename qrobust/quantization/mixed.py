"""One scheme a layer: mixed precision."""

from __future__ import annotations

from dataclasses import dataclass

from qrobust.errors import NumberError, ShapeError
from qrobust.network import Network
from qrobust.quantization.grids import Grid, Kept
from qrobust.quantization.schemes import OneFormat, Scheme, naming

STORED = "float"  # the word for a layer that stays as it is stored
SEPARATOR = "/"


@dataclass(frozen=True)
class PerLayerScheme(Scheme):
    """One scheme for each layer that has parameters, in order; None for a layer that stays as it is stored.

    Raises    NumberError if there are none, or if one needs the steps of inputs (biases of 32 bits)
    """

    schemes: tuple[OneFormat | None, ...]

    def __post_init__(self) -> None:
        if not self.schemes:
            raise NumberError("no scheme is given: name one for each layer that has parameters, as in int8/int4")
        for scheme in self.schemes:
            if scheme is not None and scheme.input_steps:
                raise NumberError(f"{scheme} needs the steps of all layers' inputs: name it alone, not layer by layer")

    def grids(self, network: Network) -> list[tuple[Grid, Grid]]:
        count = sum(layer.weight.size > 0 for layer in network.layers)
        if len(self.schemes) != count:
            raise ShapeError(f"{self} names {len(self.schemes)} schemes, the network has {count} layers with parameters")
        left, found = iter(self.schemes), list[tuple[Grid, Grid]]()
        for number, layer in enumerate(network.layers, start=1):
            scheme = next(left) if layer.weight.size else None
            with naming(f"layer {number}"):
                found.append((Kept(), Kept()) if scheme is None else scheme.layer_grids(layer))
        return found

    def __str__(self) -> str:
        return SEPARATOR.join(STORED if scheme is None else str(scheme) for scheme in self.schemes)
