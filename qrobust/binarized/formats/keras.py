"""Networks of signs as Keras models, `.keras` files of Keras 3: read with h5py alone, no TensorFlow, and no code is run.

A Sequential of these layers, those of qrobust registered by `keras_layers` in keras_write.py:

    InputLayer                   vectors, in the network's order: images channel by channel, row by row
    RoundToGrid (qrobust)        first of all; its settings name the grid: "step", "lower", "upper", "offset", "rounding"
    Reshape, Permute             before a convolution: to (channels, height, width), then channels last
    ZeroPadding2D                where a convolution has padding
    Conv2D or Dense              without bias, kernels of -1, 0 and 1
    Scale (qrobust)              channel by channel: scale * x + bias; its setting "classes" names the scores
    BatchNormalization
    Sign (qrobust)               sign(0) = +1
    Permute, Flatten             after a convolution: channels first again

The network's numbers are the file's float32 numbers, and the epsilons as its configuration says them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.binarized.formats.native import MADE_BY_SCHEME, grid_of_document
from qrobust.binarized.formats.parts import Chain
from qrobust.binarized.network import BatchNorm, BinarizedNetwork, Grid
from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.files import read_bytes
from qrobust.formats.hdf5 import open_hdf5, tried
from qrobust.formats.keras import GROUPS, layer_arrays, members, normalization, numbered_arrays, pair_of, sequential
from qrobust.formats.untrusted import Allowance, one_line, parsing
from qrobust.interval import FloatArray
from qrobust.layers import Activation, Conv2d, Dense

ROUND, SCALE, SIGN = "qrobust>RoundToGrid", "qrobust>Scale", "qrobust>Sign"
NO_PADDING = [[0, 0], [0, 0]]
PLAIN = {  # what layers are read with, where they have such a setting
    "activation": "linear",
    "use_bias": False,
    "groups": 1,
    "dilation_rate": [1, 1],
    "data_format": "channels_last",
    "axis": -1,
}


class Layout(Enum):
    """How values lie."""

    VECTOR = "a vector"
    FIRST = "images with their channels first"
    LAST = "images with their channels last"


MOVES = {(Layout.FIRST, (2, 3, 1)): Layout.LAST, (Layout.LAST, (3, 1, 2)): Layout.FIRST}


def read_keras(path: Path | str) -> BinarizedNetwork:
    """Read a network; see the module's docstring.

    Raises    ModelFileError (damaged), UnsupportedError (another model), BackendUnavailableError (no h5py)
    """
    content = read_bytes(path)
    with parsing(path, ".keras"):
        config, weights = members(content)
        return tried(lambda: _network(config, weights), len(weights))


def _network(config: Any, weights: bytes) -> BinarizedNetwork:
    settings = sequential(config)
    reader = _Reader(open_hdf5(weights))
    for layer in settings["layers"]:
        reader.read(str(layer.get("registered_name") or layer["class_name"]), layer["config"])
    return reader.finished(str(settings["name"]))


class _Reader:
    """The chain so far, and how its values lie: as a vector, or as images of a shape (channels, height, width)."""

    def __init__(self, weights: Any) -> None:
        self._find, self._allowance = numbered_arrays(weights, GROUPS | {SCALE: "scale"}), Allowance()
        self._counts: Counter[str] = Counter()
        self._grid: Grid | None = None
        self._chain = Chain(0)
        self._width = 0
        self._layout, self._shape = Layout.VECTOR, (0, 0, 0)
        self._padding: Any = NO_PADDING
        self._classes: tuple[str, ...] = ()
        self._rules: dict[str, Callable[[dict[str, Any]], None]] = {
            "InputLayer": self._input,
            ROUND: self._round,
            "Reshape": self._reshape,
            "Permute": self._permute,
            "ZeroPadding2D": self._pad,
            "Conv2D": self._convolution,
            "Dense": self._dense,
            SCALE: self._scale,
            "BatchNormalization": self._normalization,
            SIGN: self._sign,
            "Flatten": self._flatten,
        }

    def read(self, kind: str, settings: dict[str, Any]) -> None:
        """Take in the next layer of the model."""
        what = f"layer {settings.get('name')!r} of class {kind}"
        if kind not in self._rules:
            raise UnsupportedError(f"{what} is not read, only {', '.join(self._rules)}")
        if self._grid is None and kind not in ("InputLayer", ROUND):
            raise UnsupportedError(
                f"{what} takes inputs that no RoundToGrid put on a grid: if it is a float network, {MADE_BY_SCHEME}"
            )
        try:
            if self._padding != NO_PADDING and kind != "Conv2D":
                raise UnsupportedError("follows a ZeroPadding2D, which goes before a Conv2D")
            for key, value in PLAIN.items():
                if settings.get(key, value) != value:
                    raise UnsupportedError(f"has {key} {one_line(repr(settings[key]), 40)}, only {value!r} is read")
            self._rules[kind](settings)
        except UnsupportedError as error:
            raise UnsupportedError(f"{what} {error}") from None
        self._counts[kind] += 1

    def finished(self, name: str) -> BinarizedNetwork:
        """Return the network. Raises ModelFileError, UnsupportedError."""
        if self._grid is None or self._layout is not Layout.VECTOR or self._chain.norm is not None:
            raise UnsupportedError("it does not end in scores")
        return replace(self._chain.network(self._grid, name), classes=self._classes)

    def _take(self, *layouts: Layout) -> None:
        if self._layout not in layouts:
            raise UnsupportedError(f"takes {self._layout.value}, not {' or '.join(each.value for each in layouts)}")

    def _follow_linear(self) -> None:
        if not self._chain.has_begun:
            raise UnsupportedError("follows no Dense or Conv2D")

    def _arrays(self, kind: str, settings: dict[str, Any], *dimensions: int) -> list[FloatArray]:
        """Return a layer's arrays. Raises ModelFileError if Keras would round their numbers."""
        found = layer_arrays(self._find(kind, self._counts[kind], settings), settings, self._allowance, *dimensions)
        with np.errstate(over="ignore"):
            if not all(np.array_equal(each, each.astype(np.float32), equal_nan=True) for each in found):
                raise ModelFileError(f"layer {settings['name']} stores numbers that are no float32: Keras would round them")
        return found

    def _input(self, settings: dict[str, Any]) -> None:
        shape = settings["batch_shape"]
        if self._width or len(shape) != 2 or type(shape[1]) is not int or shape[1] < 1:
            raise UnsupportedError(f"has the shape {one_line(repr(shape), 40)}: vectors of a known length are read")
        self._width = shape[1]
        self._allowance.take(self._width, "an input")
        self._chain = Chain(self._width)

    def _round(self, settings: dict[str, Any]) -> None:
        if self._grid is not None or not self._width:
            raise UnsupportedError("does not follow the inputs")
        self._grid = grid_of_document(settings)

    def _reshape(self, settings: dict[str, Any]) -> None:
        self._take(Layout.VECTOR)
        shape = tuple(settings["target_shape"])
        if len(shape) != 3 or any(type(size) is not int or size < 1 for size in shape):
            raise UnsupportedError(f"gives the shape {one_line(repr(shape), 40)}, not (channels, height, width)")
        if shape[0] * shape[1] * shape[2] != self._width:
            raise UnsupportedError(f"makes {one_line(repr(shape), 40)} of {self._width} values")
        self._layout, self._shape = Layout.FIRST, shape

    def _permute(self, settings: dict[str, Any]) -> None:
        move = self._layout, tuple(settings["dims"])
        if move not in MOVES:
            raise UnsupportedError(f"moves {self._layout.value} by {one_line(repr(move[1]), 40)}")
        self._layout = MOVES[move]

    def _flatten(self, settings: dict[str, Any]) -> None:
        self._take(Layout.FIRST)
        self._layout = Layout.VECTOR

    def _pad(self, settings: dict[str, Any]) -> None:
        self._take(Layout.LAST)
        self._padding = settings["padding"]

    def _convolution(self, settings: dict[str, Any]) -> None:
        self._take(Layout.LAST)
        if settings["padding"] != "valid":
            raise UnsupportedError(
                f"has padding {one_line(repr(settings['padding']), 40)}, only a ZeroPadding2D before it is read"
            )
        (kernel,) = self._arrays("Conv2D", settings, 4)
        if kernel.shape[:2] != pair_of(settings["kernel_size"]) or kernel.shape[3] != settings["filters"]:
            raise ModelFileError(f"layer {settings['name']} has kernels of shape {kernel.shape}, not those of config.json")
        (top, bottom), (left, right) = self._padding
        weight, stride = kernel.transpose(3, 2, 0, 1) + 0.0, pair_of(settings["strides"])
        bias = np.zeros(len(weight))
        layer = Conv2d(weight, bias, Activation.LINEAR, self._shape, stride, (top, left, bottom, right))
        self._allowance.take(layer.outputs * weight[0].size, f"layer {settings['name']}")
        self._shape, self._padding = layer.output_shape, NO_PADDING
        self._linear(layer)

    def _dense(self, settings: dict[str, Any]) -> None:
        self._take(Layout.VECTOR)
        (kernel,) = self._arrays("Dense", settings, 2)
        if kernel.shape != (self._width, settings["units"]):
            raise ModelFileError(f"layer {settings['name']} has a kernel {kernel.shape}, not {self._width, settings['units']}")
        self._linear(Dense(kernel.T + 0.0, np.zeros(kernel.shape[1])))

    def _linear(self, layer: Dense | Conv2d) -> None:
        self._chain = self._chain.linear(layer, np.ones(len(layer.bias)))
        self._width, self._classes = layer.outputs, ()

    def _channels(self, arrays: list[FloatArray]) -> list[FloatArray]:
        """Return arrays of one number a channel each. Raises UnsupportedError if they are others."""
        self._follow_linear()
        self._take(Layout.VECTOR, Layout.LAST)
        assert self._chain.scale is not None
        if any(each.shape != self._chain.scale.shape for each in arrays):
            raise UnsupportedError(f"has not one number for each of the {len(self._chain.scale)} channels before it")
        return arrays

    def _scale(self, settings: dict[str, Any]) -> None:
        scale, bias = self._channels(self._arrays(SCALE, settings, 1, 1))
        self._chain = self._chain.times(scale).plus(bias)
        self._classes = tuple(settings["classes"])

    def _normalization(self, settings: dict[str, Any]) -> None:
        found = normalization(settings, partial(self._arrays, "BatchNormalization", settings))
        gamma, beta, mean, variance = self._channels(list(found))
        self._chain = self._chain.normalized(BatchNorm(gamma, beta, mean, variance, float(settings["epsilon"])))

    def _sign(self, settings: dict[str, Any]) -> None:
        self._follow_linear()
        self._chain = self._chain.signed()
