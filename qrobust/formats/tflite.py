"""Reading `.tflite` files whose activations are floats; needs neither TensorFlow nor its runtime.

What is read is the real-valued function of the numbers that the file stores:

- float weights as they are; float16 weights (behind a DEQUANTIZE) exactly those 11-bit numbers;
- int8 weights beside float activations (dynamic range) exactly scale * (integer - zero point). TensorFlow's hybrid kernels
  compute something else: they also round the activations to 8 bits, by their range at each input. What is proved here is
  proved of the stored weights, not of that runtime. `tensors` shows which are quantized: TensorFlow's converter silently
  leaves those under 1,024 elements in float;
- a depthwise or grouped convolution as a full one whose other weights are 0: the same function, but a rule such as
  `Absolute` moves the zeros, too (a larger set, so still sound).

Images are channel-first: an image x of TFLite is the input x.transpose(2, 0, 1).ravel(). A file whose activations are
integers is no Network but a program: `read_program`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.formats.tflite_file import Content, Operator, Tensor, read_content
from qrobust.formats.tflite_geometry import Layout, Weights, activation_of, pool_of, weights_of
from qrobust.formats.untrusted import parsing
from qrobust.interval import FloatArray
from qrobust.network import Activation, AveragePool2d, Conv2d, Dense, Layer, MaxPool2d, Network, Output

MOST_PARAMETERS = 2**24  # of all layers together; a small file can name the same stored weights many times
FUSED = {"none": Activation.LINEAR, "relu": Activation.RELU}
FUNCTIONS = {"RELU": Activation.RELU, "LOGISTIC": Activation.SIGMOID, "TANH": Activation.TANH}
AFFINE = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")
POOLS: dict[str, type[AveragePool2d | MaxPool2d]] = {"AVERAGE_POOL_2D": AveragePool2d, "MAX_POOL_2D": MaxPool2d}
INTEGERS = ("int8", "int16", "uint8")


@dataclass(frozen=True)
class TensorSummary:
    """What a tensor of a file is, for people: its type, its least and greatest scale (None in float), the real numbers that it
    can hold (None in float or with several scales), and whether the file stores its numbers.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    scales: tuple[float, float] | None
    reach: tuple[float, float] | None
    stored: bool

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSummary:
        found = tensor.scales.tolist()
        reach = None
        if len(found) == 1 and tensor.kind in INTEGERS:
            limits, zero = np.iinfo(tensor.kind), int(tensor.zero_points[0])
            reach = (found[0] * (limits.min - zero), found[0] * (limits.max - zero))
        steps = (min(found), max(found)) if found else None
        return cls(tensor.name, tensor.kind, tensor.shape, steps, reach, tensor.is_constant)

    def __str__(self) -> str:
        text = f"{self.name}: {self.kind} {'x'.join(map(str, self.shape)) or 'scalar'}"
        if self.scales is None:
            return text
        low, high = self.scales
        text += f", step {low:.6g}" if low == high else f", steps {low:.6g} to {high:.6g}"
        return text if self.reach is None or self.stored else f"{text}, holds {self.reach[0]:.6g} to {self.reach[1]:.6g}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def tensors(path: Path | str) -> list[TensorSummary]:
    """Return what each tensor of a file is: which are quantized, by which scales, and which stay in float."""
    with parsing(path, ".tflite"):
        return [TensorSummary.of(tensor) for tensor in read_content(path).tensors]


def is_program(path: Path | str) -> bool:
    """Whether a file's weights meet integer activations, so that it is an integer program and no Network."""
    with parsing(path, ".tflite"):
        return holds_integers(read_content(path))


def holds_integers(content: Content) -> bool:
    """Whether any operator with weights takes integers."""
    firsts = [o.inputs[0] for o in content.operators if o.name in AFFINE and o.inputs]
    return any(content.tensors[i].kind in INTEGERS for i in firsts if i is not None)


def read_tflite(path: Path | str) -> Network:
    """Read a model of float activations that ends in a fully connected layer with LOGISTIC or SOFTMAX.

    Raises    ModelFileError (damaged file), UnsupportedError (what cannot be represented, an integer program among it)
    """
    with parsing(path, ".tflite"):
        content = read_content(path)
        if holds_integers(content):
            raise UnsupportedError("holds an integer program, not a network: `qrobust compare FLOAT_MODEL THIS_FILE` reads it")
        reader = _Reader(content)
        for operator in content.chain():
            reader.read(operator)
        return reader.network(Path(path).stem)


class _Reader:
    """The layers read so far and the layout of the values after them."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._layout = Layout.of(content.tensors[content.input])
        self._layers: list[Layer] = []
        self._output: Output | None = None
        self._parameters = 0
        self._stored: set[str] = set()

    def read(self, operator: Operator) -> None:
        """Take in the next operator."""
        if self._output is not None:
            raise UnsupportedError(f"operator {operator.name} follows the confidences")
        kind = self._content.tensors[operator.outputs[0]].kind
        if kind != "float32":
            raise UnsupportedError(f"operator {operator.name} gives {kind}, a network's values are float32")
        if operator.name in AFFINE:
            self._affine(weights_of(self._content, operator, self._layout))
        elif operator.name in POOLS:
            self._pool(operator)
        elif operator.name == "RESHAPE":
            self._layout = self._layout.reshaped(self._content.tensors[operator.outputs[0]])
        elif operator.name in FUNCTIONS or operator.name == "SOFTMAX":
            self._function(operator)
        else:
            known = ", ".join([*AFFINE, *POOLS, *FUNCTIONS, "SOFTMAX", "RESHAPE"])
            raise UnsupportedError(f"operator {operator.name} cannot be represented, only {known}")

    def _affine(self, weights: Weights) -> None:
        if weights.activation not in FUSED:
            raise UnsupportedError(
                f"operator {weights.operator} has the activation {weights.activation}, only none and relu are read"
            )
        self._stored.add(weights.weight.kind)
        image = self._layout.image
        count = weights.weight.size * (weights.groups if image else 1)
        self._parameters += count
        if self._parameters > MOST_PARAMETERS:
            raise ModelFileError(f"the layers have more than {MOST_PARAMETERS:,} parameters together")
        values = weights.arranged(weights.weight.reals)
        bias = np.zeros(weights.channels) if weights.bias is None else weights.bias.reals
        activation = FUSED[weights.activation]
        if image is None or weights.operator == "FULLY_CONNECTED":
            self._layers.append(Dense(values, bias, activation))
        else:
            full = _all_channels(values, weights.groups)
            stride, padding = weights.sliding.stride, _padding(weights, image)
            self._layers.append(Conv2d(full, bias, activation, image, stride, padding))
        self._layout = weights.after

    def _pool(self, operator: Operator) -> None:
        image, size, sliding = pool_of(operator, self._layout)
        places = sliding.places(image[1:], size)
        covered = [(n - 1) * s + k for n, s, k in zip(places, sliding.stride, size, strict=True)]
        if activation_of(operator) != "none" or any(c > n for c, n in zip(covered, image[1:], strict=True)):
            raise UnsupportedError(f"operator {operator.name} has a padding or an activation, a network's pools have none")
        layer = POOLS[operator.name](image, size, sliding.stride)
        if layer.output_shape[1:] != places:
            raise UnsupportedError(f"operator {operator.name} pads an image {image}, a network's pools do not")
        self._layers.append(layer)
        self._layout = Layout(layer.outputs, image=layer.output_shape)

    def _function(self, operator: Operator) -> None:
        last = self._layers[-1] if self._layers else None
        if not isinstance(last, Dense | Conv2d) or last.activation is not Activation.LINEAR:
            raise UnsupportedError(
                f"operator {operator.name} cannot be represented unless it follows weights without activation"
            )
        is_end = operator.outputs[0] == self._content.output
        if operator.name == "SOFTMAX":
            beta = 0.0 if operator.options is None else operator.options.number(0, "<f", 0.0)
            if not is_end or beta != 1.0 or not isinstance(last, Dense):
                raise UnsupportedError(
                    f"a SOFTMAX of beta {beta:g} is read at the end of a model, after a dense layer, with beta 1"
                )
            self._output = Output.SOFTMAX
        elif operator.name == "LOGISTIC" and is_end:
            self._output = Output.SIGMOID
        else:
            self._layers[-1] = replace(last, activation=FUNCTIONS[operator.name])

    def network(self, name: str) -> Network:
        """Return what was read."""
        if self._output is None:
            raise UnsupportedError("the model does not end in LOGISTIC or SOFTMAX, as a classifier does")
        kinds = {"float16": "fp16 weights", "int8": "int8 weights, dynamic range"}
        said = [words for kind, words in kinds.items() if kind in self._stored]
        return Network(tuple(self._layers), self._output, name=f"{name} ({', '.join(said)})" if said else name)


def _all_channels(values: npt.NDArray[Any], groups: int) -> FloatArray:
    """Return kernels (out, in of a group, height, width) as kernels of all input channels, 0 outside the group's."""
    if groups == 1:
        return values
    out, inside = values.shape[:2]
    full = np.zeros((out, inside * groups, *values.shape[2:]))
    for group, rows in enumerate(np.split(np.arange(out), groups)):
        full[rows, group * inside : (group + 1) * inside] = values[rows]
    return full


def _padding(weights: Weights, image: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Return the zeros (top, left, bottom, right) around an image."""
    (top, left), stride = weights.sliding.padding, weights.sliding.stride
    if not weights.sliding.same:
        return 0, 0, 0, 0
    places = weights.sliding.places(image[1:], weights.size)
    total = [max((n - 1) * s + k - size, 0) for n, s, k, size in zip(places, stride, weights.size, image[1:], strict=True)]
    return top, left, total[0] - top, total[1] - left
