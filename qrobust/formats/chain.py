"""Building the chain of layers that a file's operations make: what joins a layer, and only where the result is exact.

Scalings of the inputs are kept as exact rationals before the first layer, whose own numbers, and so their quantization, stay
what they are. Later ones join the layer before them if every number of the result is a float, and are refused otherwise. Batch
normalization is folded by rounding to nearest, which the readers that use it say: the folded numbers are then the
network's own.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.exact import each_once
from qrobust.interval import FloatArray
from qrobust.layers import IntArray
from qrobust.network import Activation, Conv2d, Dense, Layer, MaxPool2d, Network, Output, Scaling

Layers = tuple[Layer, ...]
MOST_SCALED = 2**20  # inputs
RATIONAL_NUMBERS = 64  # float64 that two rationals, and those that they are made of, take as much memory as, with room
AFTER = "unless it follows a dense layer or a convolution without activation"
INEXACT = "since no float holds each of the numbers that result: leave it out of the model, and scale outside"


def activated(layers: Layers, activation: Activation) -> Layers:
    """Return the layers with an activation after the last. One after max pooling moves before it, for activations rise.

    Raises UnsupportedError if the last layer cannot take one.
    """
    place = len(layers) - 1
    while place >= 0 and isinstance(layers[place], MaxPool2d):
        place -= 1
    layer = layers[place] if place >= 0 else None
    if not isinstance(layer, Dense | Conv2d) or layer.activation is not Activation.LINEAR:
        raise UnsupportedError(AFTER)
    return (*layers[:place], replace(layer, activation=activation), *layers[place + 1 :])


def last_linear(layers: Layers) -> Dense | Conv2d:
    """Return the last layer, to fold something into it. Raises UnsupportedError if it has an activation, or no parameters."""
    last = layers[-1] if layers else None
    if not isinstance(last, Dense | Conv2d) or last.activation is not Activation.LINEAR:
        raise UnsupportedError(AFTER)
    return last


def normalized(
    layer: Dense | Conv2d,
    scale: FloatArray | float,
    center: FloatArray | float,
    mean: FloatArray,
    variance: FloatArray,
    epsilon: float,
) -> Dense | Conv2d:
    """Fold batch normalization in float64: weight * s, (bias - mean) * s + center, with s = scale / sqrt(variance + epsilon).

    Rounding  each operation to nearest; numbers that are not finite are refused by the layer
    Raises    ModelFileError unless each array has one number for each output channel
    """
    arrays = [array for array in (scale, center, mean, variance) if not isinstance(array, float)]
    if any(array.shape != layer.bias.shape for array in arrays):
        raise ModelFileError(f"a batch normalization does not have one number for each of {layer.bias.size} channels")
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        factor = scale / np.sqrt(variance + epsilon)
        weight = layer.weight * factor.reshape(-1, *(1,) * (layer.weight.ndim - 1))
        return layer.with_parameters(weight, (layer.bias - mean) * factor + center)


def scaled_outputs(layer: Dense | Conv2d, scale: FloatArray | None, shift: FloatArray | None) -> Dense | Conv2d:
    """Return the layer whose pre-activations are multiplied by scale, then moved by shift, if that is exact.

    Shapes    scale, shift (outputs,)
    Raises    UnsupportedError
    """
    weight, bias = layer.weight, layer.bias
    if scale is not None:
        factor = _by_channel(layer, scale, len(bias))
        weight = exact_product(weight, factor.reshape(-1, *(1,) * (weight.ndim - 1)))
        bias = exact_product(bias, factor)
    if shift is not None:
        bias = exact_sum(bias, _by_channel(layer, shift, len(bias)))
    return layer.with_parameters(weight, bias)


def scaled_inputs(before: Scaling | None, count: int, operation: str, values: FloatArray) -> Scaling:
    """Return what scales the inputs after one more operation, as exact rationals. Shapes: values (inputs,), or (1,) for all.

    Accepts   operation Add, Sub, Mul, Div: of the inputs and these values
    Raises    UnsupportedError (values that are not finite, a division by 0, more inputs than are scaled exactly), NumberError
    """
    if count > MOST_SCALED:
        raise UnsupportedError(f"scales {count:,} inputs, at most {MOST_SCALED:,} are scaled exactly: scale them outside")
    if not np.all(np.isfinite(values)) or (operation == "Div" and not np.all(values)):
        raise UnsupportedError("scales by numbers that are not finite, or divides by 0")
    exact = np.broadcast_to(each_once(Fraction, values.astype(object)), (count,))
    one, zero = Fraction(1), Fraction(0)
    first = before or Scaling(np.full(count, one), np.full(count, zero))
    match operation:
        case "Add":
            return first.then(one, exact)
        case "Sub":
            return first.then(one, -exact)
        case "Mul":
            return first.then(exact, zero)
    return first.then(1 / exact, zero)


def exact_product(first: FloatArray, second: FloatArray) -> FloatArray:
    """Multiply where no product rounds. Accepts float32 values, whose products float64 holds, and powers of two.

    Raises UnsupportedError
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        product: FloatArray = first * second
        if not (_is_single(first) and _is_single(second)):
            powers = np.abs(np.frexp(second)[0]) == 0.5
            if not np.all((second == 0) | (powers & (product / second == first))):
                raise UnsupportedError(f"cannot be folded {INEXACT}")
    return product


def exact_sum(first: FloatArray, second: FloatArray) -> FloatArray:
    """Add where no sum rounds (the rounding error of a sum is a float: Knuth's two-sum). Raises UnsupportedError."""
    with np.errstate(over="ignore", invalid="ignore"):
        total: FloatArray = first + second
        part = total - first
        error = (first - (total - part)) + (second - part)
    if not np.all(error == 0):
        raise UnsupportedError(f"cannot be folded {INEXACT}")
    return total


def reciprocal(values: FloatArray) -> FloatArray:
    """Return 1 / values, if values are powers of two. Raises UnsupportedError."""
    with np.errstate(divide="ignore", over="ignore"):
        result: FloatArray = 1 / values
    if not np.all((np.abs(np.frexp(values)[0]) == 0.5) & np.isfinite(result) & (1 / result == values)):
        raise UnsupportedError(f"divides by {values.flat[0]:g}, which is exact for powers of two only: multiply instead")
    return result


def classifier(layers: Layers, output: Output | None, order: IntArray, name: str) -> Network:
    """Return the network of layers whose last values, in this order, are the classes.

    Without an output function the last values are logits of a softmax: labels are the same, confidences are the softmax.
    Raises    UnsupportedError if the layers are no classifier
    """
    last = layers[-1] if layers else None
    if not isinstance(last, Dense):
        raise UnsupportedError("the model does not end in a dense layer with a sigmoid or a softmax")
    if output is None and last.activation is Activation.SIGMOID:
        output, last = Output.SIGMOID, replace(last, activation=Activation.LINEAR)
    if last.activation is not Activation.LINEAR:
        raise UnsupportedError(f"the model ends in activation {last.activation.value!r}, a classifier in sigmoid or softmax")
    if output is None and last.outputs == 1:
        raise UnsupportedError("the model ends in one linear value: for a classifier of two classes add a sigmoid")
    if output is Output.SIGMOID and last.outputs > 1:
        raise UnsupportedError(f"{last.outputs} sigmoids have no single label: end in one sigmoid, or in a softmax")
    if not np.array_equal(order, np.arange(last.outputs)):
        last = last.with_parameters(last.weight[order], last.bias[order])
    return Network((*layers[:-1], last), output or Output.SOFTMAX, name=name)


def _by_channel(layer: Dense | Conv2d, values: FloatArray, channels: int) -> FloatArray:
    """Return one number a channel of what is one number a value. Raises UnsupportedError if they differ within a channel."""
    table = values.reshape(channels, -1)
    if not np.all(table == table[:, :1]):
        raise UnsupportedError(f"differs from place to place, which cannot be folded into a {type(layer).__name__}")
    return table[:, 0]


def _is_single(values: FloatArray) -> bool:
    return bool(np.all(values.astype(np.float32) == values))
