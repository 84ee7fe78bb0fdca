"""Keras files of Sequential classifiers, read with h5py alone: no TensorFlow, and no code from the file is run.

A `.keras` file (Keras 3) is a zip with the architecture in `config.json` and the weights in `model.weights.h5`, one group a
layer, named after the layer's class and counted in the order of the layers. A legacy `.h5` file (Keras 2 and 3) has the
architecture as text in its attribute `model_config`, and one group a layer, named after the layer, whose attribute
`weight_names` says where the layer's arrays are, in the order in which the layer has them.

Read are Dense, Conv2D, AveragePooling2D, MaxPooling2D, Flatten, BatchNormalization, activations, before them Rescaling and
Normalization, kept as scaling of the inputs in exact rationals, and layers that do nothing after training. What differs from
the file:

- Keras keeps images channels-last (row, column, channel), qrobust channel-first (channel, row, column). Kernels are
  transposed, and the columns of the first Dense after a Flatten are permuted, so that the network is the same function with
  its inputs in channel-first order: an image x of Keras is the input x.transpose(2, 0, 1).ravel(). One channel changes nothing.
- A BatchNormalization directly after a Dense or Conv2D without activation is folded into it when the file is read, in
  float64: weight * s and (bias - mean) * s + beta, with s = gamma / sqrt(variance + epsilon), each rounded to nearest. The
  folded numbers are then the network's stored numbers, and what is proved is proved of them.
- A Normalization divides by max(sqrt(variance), 1e-7), whose square root is rounded to the nearest float64.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.files import read_bytes
from qrobust.formats.chain import RATIONAL_NUMBERS, normalized, scaled_inputs
from qrobust.formats.hdf5 import attribute, numbers_of, open_hdf5, tried
from qrobust.formats.untrusted import Allowance, one_line, parsing, unpacked
from qrobust.interval import FloatArray
from qrobust.network import Activation, AveragePool2d, Conv2d, Dense, Layer, MaxPool2d, Network, Output, Scaling

Arrays = Callable[[str, int, dict[str, Any]], Sequence[Any]]  # of a layer: its class, its number among these, its settings
ACTIVATIONS = {member.value: member for member in Activation}
WITHOUT_EFFECT = (
    "Dropout",
    "SpatialDropout2D",
    "GaussianNoise",
    "GaussianDropout",
    "ActivityRegularization",
)
POOLS: dict[str, type[AveragePool2d | MaxPool2d]] = {"AveragePooling2D": AveragePool2d, "MaxPooling2D": MaxPool2d}
LEAST_DEVIATION = 1e-7  # keras.config.epsilon(), by which a Normalization divides at least
GROUPS = {"Normalization": "normalization", "Dense": "dense", "Conv2D": "conv2d", "BatchNormalization": "batch_normalization"}


def read_keras(path: Path | str) -> Network:
    """Read a Sequential model that ends in a Dense layer with a sigmoid or a softmax. Inputs become channel-first.

    Raises    ModelFileError (damaged file), UnsupportedError (what cannot be represented), BackendUnavailableError (no h5py)
    """
    content = read_bytes(path)
    with parsing(path, ".keras"):
        config, weights = members(content)
        return tried(lambda: _network(config, numbered_arrays(open_hdf5(weights), GROUPS), Path(path).stem), len(weights))


def read_h5(path: Path | str) -> Network:
    """Read a legacy `.h5` file of a whole Sequential model; otherwise as `read_keras`."""
    content = read_bytes(path)
    with parsing(path, ".h5"):
        return tried(lambda: _whole_model(content, Path(path).stem), len(content))


def _whole_model(content: bytes, name: str) -> Network:
    file = open_hdf5(content)
    if "model_config" not in file.attrs:
        raise UnsupportedError("it holds weights without a model: save the whole model, model.save(...)")
    text = attribute(file, "model_config")
    return _network(json.loads(text), named_arrays(file["model_weights"]), name)


def members(content: bytes) -> tuple[Any, bytes]:
    """Return the configuration of a `.keras` file, and its weights as a file of HDF5. Raises ModelFileError, and others."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = [unpacked(archive, name) for name in ("config.json", "model.weights.h5")]
    return json.loads(parts[0]), parts[1]


def numbered_arrays(file: Any, groups: dict[str, str]) -> Arrays:
    """Find the arrays of a layer in the weights of a `.keras` file, where the groups of each class have a name."""

    def arrays(kind: str, count: int, settings: dict[str, Any]) -> Sequence[Any]:
        group = file["layers"][groups[kind] + (f"_{count}" if count else "")]["vars"]
        return [group[str(place)] for place in range(len(group))]

    return arrays


def named_arrays(groups: Any) -> Arrays:
    """Find the arrays of a layer in a legacy `.h5` file."""

    def arrays(kind: str, count: int, settings: dict[str, Any]) -> Sequence[Any]:
        group = groups[settings["name"]]
        names = attribute(group, "weight_names")
        return [group[name.decode() if isinstance(name, bytes) else str(name)] for name in names]

    return arrays


def sequential(config: Any) -> dict[str, Any]:
    """Return the settings of a Sequential model, its "layers" among them. Raises ModelFileError, UnsupportedError."""
    if not isinstance(config, dict):
        raise ModelFileError("its configuration holds no model")
    if config.get("class_name") != "Sequential":
        raise UnsupportedError(f"model class {one_line(repr(config.get('class_name')), 40)} is not read, only Sequential")
    settings: dict[str, Any] = config["config"]
    return settings


def _network(config: Any, arrays: Arrays, name: str) -> Network:
    reader = _Reader(arrays)
    for layer in sequential(config)["layers"]:
        reader.read(layer["class_name"], layer["config"])
    layers, output = _without_output(reader.layers, reader.activations)
    return Network(layers, output, name=name)


class _Reader:
    """The layers read so far, each linear, with the names of their activations, and the shape that the next one takes."""

    def __init__(self, find: Arrays) -> None:
        self.layers: list[Layer] = []
        self.activations: list[str] = []
        self._find = find
        self._allowance = Allowance()
        self._counts: Counter[str] = Counter()
        self._image: tuple[int, int, int] | None = None  # (channels, height, width), while values are an image
        self._scaling: Scaling | None = None  # of one number, or of all inputs
        self._flattened: tuple[int, int, int] | None = None  # the image that the values are, flattened
        self._rules: dict[str, Callable[[dict[str, Any]], None]] = {
            "InputLayer": self._input,
            "Rescaling": self._rescaling,
            "Normalization": self._input_normalization,
            "Dense": self._dense,
            "Conv2D": self._convolution,
            "AveragePooling2D": lambda settings: self._pool("AveragePooling2D", settings),
            "MaxPooling2D": lambda settings: self._pool("MaxPooling2D", settings),
            "Flatten": self._flatten,
            "BatchNormalization": self._normalization,
            "Activation": lambda settings: self._activation("Activation", settings),
            "ReLU": lambda settings: self._activation("ReLU", settings),
            "Softmax": lambda settings: self._activation("Softmax", settings),
        }

    def read(self, kind: str, settings: dict[str, Any]) -> None:
        """Take in the next layer of the model."""
        if not self._counts and kind != "InputLayer":
            self._input(settings)  # Keras 2 may say the input's shape with the first layer
        if kind in self._rules:
            self._rules[kind](settings)
        elif kind not in WITHOUT_EFFECT:
            known = ", ".join(rule for rule in self._rules if rule != "InputLayer")
            raise UnsupportedError(f"layer {settings.get('name')!r} of class {kind} cannot be represented, only {known}")
        self._counts[kind] += 1

    def _add(self, layer: Layer, activation: str = "linear") -> None:
        if self._scaling is not None:
            found, self._scaling = self._scaling, None
            if found.inputs not in (1, layer.inputs):
                raise ModelFileError(f"{found.inputs} inputs are scaled, the first layer takes {layer.inputs}")
            self._add(found.spread(layer.inputs))
        self.layers.append(layer)
        self.activations.append(activation)

    def _arrays(self, kind: str, settings: dict[str, Any], *dimensions: int) -> list[FloatArray]:
        """Return a layer's arrays, of so many dimensions each. Raises ModelFileError if there are others."""
        return layer_arrays(self._find(kind, self._counts[kind], settings), settings, self._allowance, *dimensions)

    def _images(self, kind: str, settings: dict[str, Any]) -> tuple[int, int, int]:
        """Return the shape of the images that come in, channel-first."""
        if self._image is None:
            raise _cannot(kind, settings, "on inputs that are no images of a known shape (height, width, channels)")
        if settings.get("data_format") not in (None, "channels_last"):
            raise _cannot(kind, settings, f"with data_format {settings['data_format']!r}, only channels_last")
        return self._image

    def _input(self, settings: dict[str, Any]) -> None:
        shape = settings.get("batch_shape") or settings.get("batch_input_shape")
        if shape is None or len(shape) == 2:
            return
        if len(shape) != 4 or not all(isinstance(size, int) and size > 0 for size in shape[1:]):
            raise UnsupportedError(
                f"inputs of shape {shape[1:]} cannot be represented, only plain vectors and images (height, width, channels)"
            )
        height, width, channels = shape[1:]
        self._image = (channels, height, width)

    def _rescaling(self, settings: dict[str, Any]) -> None:
        scale, offset = (np.asarray(settings[key], dtype=np.float64) for key in ("scale", "offset"))
        self._scale("Rescaling", settings, "Mul", scale)
        self._scale("Rescaling", settings, "Add", offset)

    def _input_normalization(self, settings: dict[str, Any]) -> None:
        """See the module's docstring. The mean and the variance stand in the settings, or with a count in the weights."""
        if settings.get("invert"):
            raise _cannot("Normalization", settings, "with invert")
        axis = settings.get("axis", -1)
        axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
        if axis not in (None, [], -1, 3 if self._image else 1):
            raise _cannot("Normalization", settings, f"over axis {axis}, only over the last one or over all")
        if settings.get("mean") is not None:
            mean, variance = (np.asarray(settings[key], dtype=np.float64) for key in ("mean", "variance"))
        else:
            dimensions = 0 if axis in (None, []) else 1
            mean, variance, _ = self._arrays("Normalization", settings, dimensions, dimensions, 0)
        self._scale("Normalization", settings, "Sub", mean)
        self._scale("Normalization", settings, "Div", np.maximum(np.sqrt(variance), LEAST_DEVIATION))

    def _scale(self, kind: str, settings: dict[str, Any], operation: str, values: FloatArray) -> None:
        """Scale the inputs once more: by one number, or by one for each entry of the last axis."""
        if self.layers:
            raise _cannot(kind, settings, "after a layer with parameters, only before the first")
        values = values.reshape(-1)
        if values.size > 1 and self._flattened is not None:
            raise _cannot(kind, settings, "by several numbers after a Flatten, put it before")
        if values.size > 1 and self._image is not None:
            channels, height, width = self._image
            if values.size != channels:
                raise _cannot(kind, settings, f"by {values.size} numbers, its images have {channels} channels")
            self._allowance.take(RATIONAL_NUMBERS * channels * height * width, f"layer {settings.get('name')!r}")
            values = np.repeat(values, height * width)
        before = self._scaling
        count = max(values.size, 1 if before is None else before.inputs)
        if before is not None and before.inputs < count:
            before = before.spread(count)
        self._scaling = scaled_inputs(before, count, operation, values)

    def _dense(self, settings: dict[str, Any]) -> None:
        if self._image is not None:
            raise _cannot("Dense", settings, "on images, put a Flatten before it")
        weight, *biases = self._arrays("Dense", settings, 2, *([1] if settings["use_bias"] else []))
        bias = biases[0] if biases else np.zeros(weight.shape[1])
        if weight.shape[1] != settings["units"]:
            raise ModelFileError(f"layer {settings['name']} has {weight.shape[1]} columns, not {settings['units']}")
        if self._flattened is not None:
            channels, height, width = self._flattened
            if len(weight) != channels * height * width:
                raise ModelFileError(f"layer {settings['name']} takes {len(weight)} inputs, not {channels * height * width}")
            weight = weight[np.arange(len(weight)).reshape(height, width, channels).transpose(2, 0, 1).ravel()]
            self._flattened = None
        self._add(Dense(weight.T, bias), str(settings["activation"]))

    def _convolution(self, settings: dict[str, Any]) -> None:
        image = self._images("Conv2D", settings)
        if settings.get("groups", 1) != 1:
            raise _cannot("Conv2D", settings, f"with {settings['groups']} groups, only 1")
        if pair_of(settings.get("dilation_rate", 1)) != (1, 1):
            raise _cannot("Conv2D", settings, f"with dilation {settings['dilation_rate']}, only 1")
        kernel, *biases = self._arrays("Conv2D", settings, 4, *([1] if settings["use_bias"] else []))
        bias = biases[0] if biases else np.zeros(kernel.shape[3])
        if kernel.shape[3] != settings["filters"] or kernel.shape[:2] != pair_of(settings["kernel_size"]):
            raise ModelFileError(f"layer {settings['name']} has kernels of shape {kernel.shape}, not those of config.json")
        stride = pair_of(settings["strides"])
        if settings["padding"] not in ("valid", "same"):
            raise _cannot("Conv2D", settings, f"with padding {settings['padding']!r}, only valid and same")
        padding = same_padding(image[1:], kernel.shape[:2], stride) if settings["padding"] == "same" else (0, 0, 0, 0)
        layer = Conv2d(kernel.transpose(3, 2, 0, 1), bias, Activation.LINEAR, image, stride, padding)
        self._image = layer.output_shape
        self._add(layer, str(settings["activation"]))

    def _pool(self, kind: str, settings: dict[str, Any]) -> None:
        image = self._images(kind, settings)
        if settings["padding"] != "valid":
            raise _cannot(kind, settings, f"with padding {settings['padding']!r}, only valid")
        size = pair_of(settings["pool_size"])
        layer = POOLS[kind](image, size, size if settings["strides"] is None else pair_of(settings["strides"]))
        self._image = layer.output_shape
        self._add(layer)

    def _flatten(self, settings: dict[str, Any]) -> None:
        if self._image is not None:
            self._image, self._flattened = None, self._images("Flatten", settings)

    def _normalization(self, settings: dict[str, Any]) -> None:
        """Fold into the layer before; see the module's docstring."""
        last = self.layers[-1] if self.layers else None
        if not isinstance(last, Dense | Conv2d) or self.activations[-1] != "linear" or self._flattened is not None:
            raise _cannot("BatchNormalization", settings, "unless it follows a Dense or Conv2D without activation directly")
        axis = settings.get("axis", -1)
        if (axis[0] if isinstance(axis, list) and len(axis) == 1 else axis) not in (-1, 3 if self._image else 1):
            raise _cannot("BatchNormalization", settings, f"over axis {axis}, only over the last one")
        found = normalization(settings, partial(self._arrays, "BatchNormalization", settings))
        self.layers[-1] = normalized(last, *found, float(settings["epsilon"]))

    def _activation(self, kind: str, settings: dict[str, Any]) -> None:
        if not self.layers or not isinstance(self.layers[-1], Dense | Conv2d) or self.activations[-1] != "linear":
            raise _cannot(kind, settings, "unless it follows a Dense or Conv2D without activation")
        self.activations[-1] = _activation_name(kind, settings)


def _cannot(kind: str, settings: dict[str, Any], why: str) -> UnsupportedError:
    return UnsupportedError(f"layer {settings.get('name')!r} of class {kind} cannot be represented {why}")


def pair_of(value: Any) -> tuple[int, int]:
    """Return Keras's one number or list of two as a pair. Raises ModelFileError."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(number, int) and number > 0 for number in pair):
        raise ModelFileError(f"a size or stride is {value!r:.40}, it must be two whole numbers > 0")
    return pair[0], pair[1]


def same_padding(image: tuple[int, int], kernel: tuple[int, ...], stride: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (top, left, bottom, right) of Keras's "same": ceil(size / stride) places, an odd zero below and at the right."""
    total = [max((-(-size // s) - 1) * s + k - size, 0) for size, k, s in zip(image, kernel, stride, strict=True)]
    top, left = (zeros // 2 for zeros in total)
    return top, left, total[0] - top, total[1] - left


def layer_arrays(datasets: Sequence[Any], settings: dict[str, Any], allowance: Allowance, *dimensions: int) -> list[FloatArray]:
    """Return a layer's arrays, of so many dimensions each. Raises ModelFileError if there are others."""
    _check_plain(settings)
    if len(datasets) != len(dimensions):
        raise ModelFileError(f"layer {settings['name']} has {len(datasets)} arrays, not {len(dimensions)}")
    return [_array(each, count, allowance) for each, count in zip(datasets, dimensions, strict=True)]


def normalization(
    settings: dict[str, Any], arrays: Callable[..., list[FloatArray]]
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return gamma, beta, mean and variance of a BatchNormalization, given what reads so many arrays. Shapes: (channels,)."""
    names = [name for name in ("scale", "center") if settings[name]] + ["mean", "variance"]
    found = dict(zip(names, arrays(*(1 for _ in names)), strict=True))
    ones = np.ones_like(found["mean"])
    return found.get("scale", ones), found.get("center", 0 * ones), found["mean"], found["variance"]


def _check_plain(settings: dict[str, Any]) -> None:
    """Raise UnsupportedError if a layer's stored numbers are not the ones that it computes with."""
    policy = settings.get("dtype")
    name = policy.get("class_name") if isinstance(policy, dict) else None
    if name not in (None, "DTypePolicy") or settings.get("quantization_mode") or settings.get("lora_rank"):
        raise UnsupportedError(f"layer {settings.get('name')!r} is quantized or adapted ({name}): give the float model")


def _array(dataset: Any, dimensions: int, allowance: Allowance) -> FloatArray:
    """Read a dataset of floats after a look at its size."""
    if dataset.shape is None or len(dataset.shape) != dimensions or dataset.dtype.kind not in "fiu":
        raise ModelFileError(f"dataset {dataset.name} is no array of numbers in {dimensions} dimension(s)")
    values: FloatArray = numbers_of(dataset, allowance).astype("float64")
    return values


def _activation_name(kind: str, settings: dict[str, Any]) -> str:
    if kind == "Activation":
        return str(settings["activation"])
    relu: dict[str, Any] = {"max_value": None, "negative_slope": 0.0, "threshold": 0.0}
    plain = relu if kind == "ReLU" else {"axis": -1}
    if any(settings.get(key, value) != value for key, value in plain.items()):
        raise UnsupportedError(f"layer {settings.get('name')!r} is a {kind} with settings that cannot be represented")
    return kind.lower()


def _without_output(layers: list[Layer], activations: list[str]) -> tuple[tuple[Layer, ...], Output]:
    """Split the last activation off: it is the output function."""
    if not any(isinstance(layer, Dense) for layer in layers):
        raise ModelFileError("the model has no Dense layer")
    if activations[-1] not in ("sigmoid", "softmax"):
        raise UnsupportedError(f"the model ends in activation {activations[-1]!r}, a classifier ends in sigmoid or softmax")
    for activation in activations[:-1]:
        if activation not in ACTIVATIONS:
            raise UnsupportedError(f"activation {activation!r} cannot be represented, only {', '.join(ACTIVATIONS)}")
    hidden = [
        replace(layer, activation=ACTIVATIONS[name]) if isinstance(layer, Dense | Conv2d) else layer
        for layer, name in zip(layers[:-1], activations, strict=False)
    ]
    return (*hidden, layers[-1]), Output(activations[-1])
