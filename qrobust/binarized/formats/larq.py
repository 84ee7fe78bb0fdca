"""Larq models in Keras's legacy .h5, read with h5py alone: no TensorFlow, and no code from the file is run.

Read are QuantDense and QuantConv2D with quantizers ste_sign or approx_sign (or none where the stored numbers are -s, 0, s
already), BatchNormalization, Flatten, a sign as Activation, and a last softmax, which changes no label. Latent weights
become their signs, 0 to +1. Images of Keras lie channels-last; the network's inputs lie channel-first, and `order` says where
each was.

Source    Larq's documentation of quantizers and layers (lq.math.sign: 0 goes to +1)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.binarized.formats.parts import Chain, ReadNetwork, split
from qrobust.binarized.network import BatchNorm, Grid
from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.files import read_bytes
from qrobust.formats.hdf5 import attribute, open_hdf5, tried
from qrobust.formats.keras import layer_arrays, named_arrays, normalization, pair_of, same_padding, sequential
from qrobust.formats.untrusted import Allowance, one_line, parsing
from qrobust.interval import FloatArray
from qrobust.layers import Activation, Conv2d, Dense, Shape

SIGNS = ("ste_sign", "approx_sign")
CLASSES = {"SteSign": "ste_sign", "ApproxSign": "approx_sign"}
WITHOUT_EFFECT = ("Dropout", "GaussianNoise", "ActivityRegularization")


def read_larq(path: Path | str, grid: Grid) -> ReadNetwork:
    """Read a whole Sequential model. Raises ModelFileError, UnsupportedError, BackendUnavailableError (no h5py)."""
    content = read_bytes(path)
    with parsing(path, ".h5"):
        return tried(lambda: _whole_model(content, grid, Path(path).stem), len(content))


def _whole_model(content: bytes, grid: Grid, name: str) -> ReadNetwork:
    file = open_hdf5(content)
    if "model_config" not in file.attrs:
        raise UnsupportedError("it holds weights without a model: save the whole model, model.save(...)")
    config = sequential(json.loads(attribute(file, "model_config")))
    reader = _Reader(file["model_weights"])
    for layer in config["layers"]:
        reader.read(str(layer["class_name"]), layer["config"])
    return reader.finished(grid, name)


class _Reader:
    """The chain so far, and the image that its values are, if any."""

    def __init__(self, groups: Any) -> None:
        self._find, self._allowance = named_arrays(groups), Allowance()
        self._chain: Chain | None = None
        self._image: Shape | None = None  # (channels, height, width), while values are an image
        self._flattened: Shape | None = None
        self._input: Shape | None = None
        self._ended = False
        self._rules: dict[str, Callable[[dict[str, Any]], None]] = {
            "InputLayer": self._start,
            "QuantDense": self._dense,
            "QuantConv2D": self._convolution,
            "BatchNormalization": self._normalization,
            "Flatten": self._flatten,
            "Activation": self._activation,
        }

    def read(self, kind: str, settings: dict[str, Any]) -> None:
        """Take in the next layer of the model."""
        name = settings.get("name")
        if kind in WITHOUT_EFFECT:
            return
        if kind not in self._rules:
            raise UnsupportedError(f"layer {name!r} of class {kind} is not read, only {', '.join(self._rules)}")
        if self._ended:
            raise UnsupportedError(f"layer {name!r} follows the softmax, which must be the end")
        if self._chain is None:
            self._start(settings)
        try:
            self._rules[kind](settings)
        except UnsupportedError as error:
            text = str(error)
            raise error if text.startswith("layer") else UnsupportedError(f"layer {name!r} of class {kind} {text}") from None

    def finished(self, grid: Grid, name: str) -> ReadNetwork:
        network = self._open.network(grid, name)
        order = np.arange(network.inputs, dtype=np.int64)
        if self._input is not None:
            channels, height, width = self._input
            order = order.reshape(height, width, channels).transpose(2, 0, 1).reshape(-1)
        return ReadNetwork(network, order)

    @property
    def _open(self) -> Chain:
        if self._chain is None:
            raise ModelFileError("it says no shape of its inputs")
        return self._chain

    def _start(self, settings: dict[str, Any]) -> None:
        shape = settings.get("batch_input_shape") or settings.get("batch_shape")
        if self._chain is not None or shape is None:
            return
        sizes = [int(size) for size in shape[1:]]
        if len(sizes) not in (1, 3) or min(sizes) < 1:
            raise UnsupportedError(f"takes inputs of shape {sizes}, only vectors and images (height, width, channels) are read")
        if len(sizes) == 3:
            self._image = self._input = (sizes[2], sizes[0], sizes[1])
        self._chain = Chain(int(np.prod(sizes)))

    def _arrays(self, settings: dict[str, Any], *dimensions: int) -> list[FloatArray]:
        return layer_arrays(self._find("", 0, settings), settings, self._allowance, *dimensions)

    def _quantized(self, settings: dict[str, Any], kernel: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Take the sign of the inputs if the layer does; return its weights as signs and scales, channels first."""
        if _quantizer(settings.get("input_quantizer")):
            self._chain = self._open.signed()
        rows = np.moveaxis(kernel, -1, 0)
        if not np.isfinite(rows).all():
            raise ModelFileError("has NaN or infinite weights")
        if _quantizer(settings.get("kernel_quantizer")):
            return np.where(rows >= 0, 1.0, -1.0), np.ones(len(rows))
        return split(rows)

    def _dense(self, settings: dict[str, Any]) -> None:
        if self._image is not None:
            raise UnsupportedError("takes images: put a Flatten before it")
        kernel, *biases = self._arrays(settings, 2, *([1] if settings["use_bias"] else []))
        signs, scale = self._quantized(settings, kernel)
        if self._flattened is not None:
            channels, height, width = self._flattened
            places = np.arange(signs.shape[1]).reshape(height, width, channels).transpose(2, 0, 1).reshape(-1)
            signs, self._flattened = signs[:, places], None
        layer = Dense(signs, biases[0] if biases else np.zeros(len(signs)))
        self._chain = self._open.linear(layer, scale)
        self._activated(settings)

    def _convolution(self, settings: dict[str, Any]) -> None:
        if self._image is None:
            raise UnsupportedError("takes no images of a known shape")
        if settings.get("groups", 1) != 1 or pair_of(settings.get("dilation_rate", 1)) != (1, 1):
            raise UnsupportedError("has groups or a dilation, which are not read")
        if settings["padding"] not in ("valid", "same") or (settings["padding"] == "same" and settings.get("pad_values", 0)):
            raise UnsupportedError(
                f"has padding {settings['padding']!r} with values {settings.get('pad_values', 0)}, not zeros"
            )
        kernel, *biases = self._arrays(settings, 4, *([1] if settings["use_bias"] else []))
        signs, scale = self._quantized(settings, kernel.transpose(2, 0, 1, 3))
        stride, size = pair_of(settings["strides"]), (int(signs.shape[2]), int(signs.shape[3]))
        padding = same_padding(self._image[1:], size, stride) if settings["padding"] == "same" else (0, 0, 0, 0)
        bias = biases[0] if biases else np.zeros(len(signs))
        layer = Conv2d(signs, bias, Activation.LINEAR, self._image, stride, padding)
        self._image, self._chain = layer.output_shape, self._open.linear(layer, scale)
        self._activated(settings)

    def _normalization(self, settings: dict[str, Any]) -> None:
        if self._flattened is not None:
            raise UnsupportedError("follows a Flatten: put it before")
        found = normalization(settings, partial(self._arrays, settings))
        self._chain = self._open.normalized(BatchNorm(*found, float(settings["epsilon"])))

    def _flatten(self, settings: dict[str, Any]) -> None:
        if self._image is not None:
            self._image, self._flattened = None, self._image

    def _activation(self, settings: dict[str, Any]) -> None:
        self._activated(settings)

    def _activated(self, settings: dict[str, Any]) -> None:
        kind = settings.get("activation")
        if kind == "softmax":
            self._ended = True
        elif _quantizer(kind if kind != "linear" else None):
            self._chain = self._open.signed()


def _quantizer(value: Any) -> bool:
    """Whether a setting is a sign. Raises UnsupportedError if it is another quantizer."""
    name = CLASSES.get(str(value.get("class_name")), str(value.get("class_name"))) if isinstance(value, dict) else value
    if name is None:
        return False
    if name not in SIGNS:
        raise UnsupportedError(f"has the quantizer {one_line(repr(name), 40)}, only {', '.join(SIGNS)} are read")
    return True
