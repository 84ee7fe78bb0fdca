"""Networks of signs written as Keras models; keras.py beside this file says of which layers.

Gives     a `.keras` file that `keras.models.load_model` opens after `keras_layers()`, and computes with in float32
Rounding  scales, biases and normalizations to the nearest float32: what the file says is then the network, and is read back
          exactly. Keras's own sums are rounded, too, so where one lies next to a threshold its sign may be another
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.binarized.formats.native import grid_document, grid_of_document
from qrobust.binarized.network import BatchNorm, BinarizedNetwork, Block, InputRounding, Linear
from qrobust.errors import BackendUnavailableError, OutputError, UnsupportedError
from qrobust.files import write_whole
from qrobust.interval import FloatArray
from qrobust.layers import Conv2d, Shape

PACKAGE = "qrobust"  # that the layers are registered under


@dataclass(frozen=True, eq=False)
class Part:
    """A layer of a Keras model: its class, the arguments that make it, and its arrays in Keras's order and shapes."""

    kind: str
    settings: dict[str, Any]
    arrays: tuple[FloatArray, ...] = ()


def as_float32(network: BinarizedNetwork) -> BinarizedNetwork:
    """Return the network with its numbers rounded to float32. Raises UnsupportedError where that has none near."""
    blocks = []
    for block in network.blocks:
        norm = block.norm
        if norm is not None:
            gamma, beta, mean, variance = (_single(each) for each in (norm.gamma, norm.beta, norm.mean, norm.variance))
            norm = BatchNorm(gamma, beta, mean, variance, norm.epsilon)
        blocks.append(Block(_single_linear(block.linear), norm))
    return replace(network, blocks=tuple(blocks), output=_single_linear(network.output))


def _single_linear(linear: Linear) -> Linear:
    return Linear(replace(linear.layer, bias=_single(linear.layer.bias)), _single(linear.scale))


def _single(values: FloatArray) -> FloatArray:
    with np.errstate(over="ignore"):
        found = values.astype(np.float32).astype(np.float64) + 0.0  # no -0.0
    far = ~np.isfinite(found) | ((found == 0) & (values != 0))
    if far.any():
        raise UnsupportedError(f"Keras computes in float32, which has no number near {values[far][0]:g}: write .npz or .json")
    return found


def model_parts(network: BinarizedNetwork) -> list[Part]:
    """Return the layers of the model, without the first, its input."""
    found: list[Part] = [Part("RoundToGrid", dict(grid_document(network.grid)))]
    image: Shape | None = None
    norms = [*(block.norm for block in network.blocks), None]
    for linear, norm in zip(network.linears, norms, strict=True):
        layer, is_last = linear.layer, linear is network.output
        wanted = layer.input_shape if isinstance(layer, Conv2d) else None
        if image != wanted:
            found += _to_vector(image) + _to_image(wanted)
        found += _linear_parts(linear, network.classes if is_last else ())
        if norm is not None:
            arrays = (norm.gamma, norm.beta, norm.mean, norm.variance)
            found.append(Part("BatchNormalization", {"epsilon": norm.epsilon}, arrays))
        if not is_last:
            found.append(Part("Sign", {}))
        image = layer.output_shape if isinstance(layer, Conv2d) else None
    return found + _to_vector(image)


def _to_image(shape: Shape | None) -> list[Part]:
    return [] if shape is None else [Part("Reshape", {"target_shape": shape}), Part("Permute", {"dims": (2, 3, 1)})]


def _to_vector(shape: Shape | None) -> list[Part]:
    return [] if shape is None else [Part("Permute", {"dims": (3, 1, 2)}), Part("Flatten", {})]


def _linear_parts(linear: Linear, classes: tuple[str, ...]) -> list[Part]:
    """Return a linear layer of -1, 0 and 1, its padding before it, and after it its scales and biases if they do anything."""
    layer, found = linear.layer, []
    if isinstance(layer, Conv2d):
        top, left, bottom, right = layer.padding
        if any(layer.padding):
            found.append(Part("ZeroPadding2D", {"padding": ((top, bottom), (left, right))}))
        sizes = {"filters": len(layer.weight), "kernel_size": layer.weight.shape[2:], "strides": layer.stride}
        found.append(Part("Conv2D", sizes | {"use_bias": False}, (layer.weight.transpose(2, 3, 1, 0),)))
    else:
        found.append(Part("Dense", {"units": layer.outputs, "use_bias": False}, (layer.weight.T,)))
    if classes or (linear.scale != 1).any() or layer.bias.any():
        found.append(Part("Scale", {"classes": list(classes)}, (linear.scale, layer.bias)))
    return found


def write_keras(network: BinarizedNetwork, path: Path | str, notes: dict[str, Any] | None = None) -> None:
    """Write a network as a Keras model, whole or not at all. Raises OutputError, UnsupportedError, BackendUnavailableError."""
    if notes:
        raise UnsupportedError(f"{path}: a Keras model has no place for {', '.join(notes)}: write .npz or .json")
    parts = model_parts(as_float32(network))
    try:
        content = _saved(parts, network.inputs, model_name(network.name))
    except OSError as error:
        raise OutputError(f"{path} was not written: {error.strerror or error}") from None
    write_whole(path, content)


def model_name(name: str) -> str | None:
    """Return a name that TensorFlow takes: letters, digits, '_', '.' and '-' of ASCII, a letter or a digit first."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip("_.-") or None


def _saved(parts: list[Part], inputs: int, name: str | None) -> bytes:
    """Return the content of the model's file. Raises BackendUnavailableError, OSError."""
    own, keras = keras_layers(), load_keras()
    layers = [(own.get(part.kind) or getattr(keras.layers, part.kind))(**part.settings, dtype="float32") for part in parts]
    model = keras.Sequential([keras.Input((inputs,), dtype="float32"), *layers], name=name)
    for layer, part in zip(layers, parts, strict=True):
        layer.set_weights([each.astype(np.float32) for each in part.arrays])
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.keras")
        return (Path(folder) / "model.keras").read_bytes()


def load_keras() -> Any:
    """Return Keras. Raises BackendUnavailableError."""
    try:
        import keras
    except ImportError:
        raise BackendUnavailableError("Keras models need `pip install qrobust[tensorflow]`") from None
    return keras


@cache
def keras_layers() -> dict[str, Any]:
    """Return the classes of qrobust's layers by name, and register them: `keras.models.load_model` knows them afterwards.

    Raises    BackendUnavailableError
    """
    keras = load_keras()
    found = [make(keras) for make in (_round_to_grid, _scale, _sign)]
    return {each.__name__: keras.saving.register_keras_serializable(PACKAGE)(each) for each in found}


def _round_to_grid(keras: Any) -> Any:
    ops = keras.ops
    rules: dict[InputRounding, Callable[[Any], Any]] = {
        InputRounding.HALF_EVEN: ops.round,
        InputRounding.HALF_UP: lambda x: ops.floor(x + 0.5),
        InputRounding.HALF_AWAY: lambda x: ops.sign(x) * ops.floor(ops.abs(x) + 0.5),
    }

    class RoundToGrid(keras.layers.Layer):  # type: ignore[misc]
        """offset + step * round((x - offset) / step), in float64."""

        def __init__(self, step: str, lower: str, upper: str, offset: str, rounding: str, **settings: Any) -> None:
            super().__init__(**settings)
            texts = {"step": step, "lower": lower, "upper": upper, "offset": offset, "rounding": rounding}
            self.grid = grid_of_document(texts)

        def call(self, inputs: Any) -> Any:
            step, offset = float(self.grid.step), float(self.grid.offset)
            levels = rules[self.grid.rounding]((ops.cast(inputs, "float64") - offset) / step)
            return ops.cast(offset + step * levels, self.compute_dtype)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), **grid_document(self.grid)}

    return RoundToGrid


def _scale(keras: Any) -> Any:
    class Scale(keras.layers.Layer):  # type: ignore[misc]
        """scale * x + bias, channel by channel; classes are the names of the scores."""

        def __init__(self, classes: list[str] | tuple[str, ...] = (), **settings: Any) -> None:
            super().__init__(**settings)
            self.classes = [str(name) for name in classes]

        def build(self, input_shape: Any) -> None:
            self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer="ones")
            self.bias = self.add_weight(name="bias", shape=(input_shape[-1],), initializer="zeros")

        def call(self, inputs: Any) -> Any:
            return self.scale * inputs + self.bias

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "classes": list(self.classes)}

    return Scale


def _sign(keras: Any) -> Any:
    class Sign(keras.layers.Layer):  # type: ignore[misc]
        """+1 where x >= 0, else -1."""

        def call(self, inputs: Any) -> Any:
            return keras.ops.cast(inputs >= 0, self.compute_dtype) * 2 - 1

    return Sign
