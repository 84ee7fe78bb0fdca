"""The parameters of an integer program as the real numbers that they mean, beside the float model that it was made of.

Property  weights are exact. A bias is an integer at the step (input's scale) * (weights' scale), to the nearest float64
Box       the scheme's, for the weights. Where the scheme keeps biases as floats, a program still holds integers for them: such
          a bias may be off by one of its own steps and 2**-23 of its size, for converters divide in float32
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qrobust.domains import Bounds, LayerBox, ParameterBox
from qrobust.errors import ShapeError
from qrobust.integer.program import Affine, IntegerProgram
from qrobust.interval import Expansion, FloatArray
from qrobust.layers import Conv2d, Layer
from qrobust.network import Network
from qrobust.quantization.schemes import Scheme

FLOAT32_STEP = 2.0**-23


def dequantized(network: Network, program: IntegerProgram) -> Network:
    """Return the float model with the program's weights and biases in place of its own. Raises ShapeError."""
    layers = [
        layer if operation is None else layer.with_parameters(_weights(layer, operation), operation.bias * _steps(operation))
        for layer, operation in _pairs(network, program)
    ]
    return replace(network, layers=tuple(layers), name=str(program))


def box_for_program(network: Network, scheme: Scheme, program: IntegerProgram) -> ParameterBox:
    """Return the scheme's box with room for the program's integer biases (see above). Raises NumberError, ShapeError."""
    box = scheme.box(network)
    pairs = zip(_pairs(network, program), box.layers, strict=True)
    layers = tuple(own if operation is None else _with_room(own, layer, operation) for (layer, operation), own in pairs)
    return replace(box, layers=layers, rule=f"{box.rule}, integer biases within a step of their own,")


def _with_room(box: LayerBox, layer: Layer, operation: Affine) -> LayerBox:
    """Widen a box whose biases are the model's own."""
    if not _is_point(box.bias):
        return box
    slack = _steps(operation) + FLOAT32_STEP * np.abs(layer.bias)
    return LayerBox(box.weight, Bounds(Expansion.total(layer.bias, -slack), Expansion.total(layer.bias, slack)))


def _is_point(bounds: Bounds) -> bool:
    same = (bounds.lower.head == bounds.upper.head) & (bounds.lower.tail == bounds.upper.tail)
    return bool(same.all())


def _steps(operation: Affine) -> FloatArray:
    """Return the steps of the biases. Shape: (out channels,)."""
    return operation.input.scale * operation.scales


def _pairs(network: Network, program: IntegerProgram) -> list[tuple[Layer, Affine | None]]:
    """Return each layer with the operation that runs it, None for a pool. Raises ShapeError unless they match in order."""
    sums = [operation for operation in program.operations if isinstance(operation, Affine)]
    count = sum(layer.weight.size > 0 for layer in network.layers)
    if len(sums) != count:
        raise ShapeError(
            f"the program has {len(sums)} operations with weights, the model {count} layers: no copies of each other"
        )
    rest = iter(sums)
    return [(layer, next(rest) if layer.weight.size else None) for layer in network.layers]


def _weights(layer: Layer, operation: Affine) -> FloatArray:
    """Return the weights in the layer's shape: those of grouped convolutions with 0 for the inputs of other groups."""
    values = operation.scales[:, None] * (operation.weight - operation.weight_zero)
    shape, groups = layer.weight.shape, operation.windows.groups
    inside = shape[1] // groups
    fits = shape[0] == len(values) and shape[1] % groups == 0 and inside * int(np.prod(shape[2:])) == values.shape[1]
    if not fits or (layer.inputs, layer.outputs) != (operation.inputs, operation.outputs):
        raise ShapeError(f"the program's {operation} has weights {operation.weight.shape}, the model's layer {layer} {shape}")
    if not isinstance(layer, Conv2d):
        return values.reshape(shape)
    full = np.zeros((groups, shape[0] // groups, groups, inside, *shape[2:]))
    each = np.arange(groups)
    full[each, :, each] = values.reshape(groups, -1, inside, *shape[2:])
    return full.reshape(shape)
