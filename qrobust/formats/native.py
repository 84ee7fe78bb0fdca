"""qrobust's own JSON: a network as a person can read it. Floats are written so that they read back exactly.

    {"format": "qrobust-network", "version": 1, "name": "...",
     "features": [{"name": "...", "unit": "...", "lower": 0.0, "upper": 1.0}], "classes": ["...", "..."],
     "layers": [{"type": "dense", "activation": "relu", "weight": [[...], ...], "bias": [...]}],
     "output": "sigmoid" or "softmax"}

`weight` is (out, in). `name`, `features` (with `unit`, `lower`, `upper`) and `classes` may be left out. Layers of images,
whose values lie in channel-first order (channel, row, column):

    {"type": "conv2d", "activation": "relu", "weight": [[[[...]]]], "bias": [...], "input_shape": [1, 28, 28],
     "stride": [1, 1], "padding": [0, 0, 0, 0]}
    {"type": "average_pool2d" or "max_pool2d", "input_shape": [8, 24, 24], "size": [2, 2], "stride": [2, 2]}

Inputs in other units before the first layer, x * scale + offset, one number an input; "1/255" is the quotient itself:

    {"type": "scaling", "scale": ["1/255", 0.5], "offset": [0, -1]}

`weight` is (out, in, height, width); `input_shape` (channels, height, width); `padding` (top, left, bottom, right).
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from qrobust.errors import ModelFileError, QRobustError
from qrobust.files import read_bytes, write_whole
from qrobust.formats.untrusted import one_line, parsing
from qrobust.network import (
    Activation,
    AveragePool2d,
    Conv2d,
    Dense,
    Feature,
    Layer,
    MaxPool2d,
    Network,
    Output,
    Scaling,
)

E = TypeVar("E", Activation, Output)

TYPES: dict[type[Layer], str] = {
    Dense: "dense",
    Conv2d: "conv2d",
    AveragePool2d: "average_pool2d",
    MaxPool2d: "max_pool2d",
    Scaling: "scaling",
}
MOST_BYTES = 2**28  # numbers take up to eight times as much as their text
FORMAT = "qrobust-network"
VERSION = 1


def write_native(network: Network, path: Path | str) -> None:
    """Write a network as JSON, whole or not at all. Raises OutputError."""
    write_whole(path, (json.dumps(to_document(network), indent=1, allow_nan=False) + "\n").encode())


def read_native(path: Path | str) -> Network:
    """Read a network from JSON. Raises ModelFileError with the place that is wrong."""
    content = read_bytes(path)
    if len(content) > MOST_BYTES:
        raise ModelFileError(f"{path} has {len(content):,} bytes, as JSON at most {MOST_BYTES:,} are read: use .npz or .onnx")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not JSON ({one_line(str(error), 80)}): export the model again") from None
    with parsing(path, "model"):
        return from_document(document)


def to_document(network: Network) -> dict[str, Any]:
    """Return the network as JSON values."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": network.name,
        "features": [{"name": f.name, "unit": f.unit, "lower": f.lower, "upper": f.upper} for f in network.features],
        "classes": list(network.classes),
        "layers": [_layer_document(layer) for layer in network.layers],
        "output": network.output.value,
    }


def from_document(document: Any) -> Network:
    """Build a network from JSON values. Raises ModelFileError, ShapeError or NumberError."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ModelFileError(f'not a qrobust network: "format" must be "{FORMAT}"')
    if document.get("version") != VERSION:
        raise ModelFileError(f"version {document.get('version')!r} of the format is not known, this reads {VERSION}")
    layers = _list(document, "layers")
    return Network(
        layers=tuple(_layer(number, layer) for number, layer in enumerate(layers, start=1)),
        output=_choice(Output, document.get("output"), "output"),
        name=_text(document.get("name", ""), "name"),
        features=tuple(_feature(feature) for feature in _list(document, "features", optional=True)),
        classes=tuple(_text(name, "classes") for name in _list(document, "classes", optional=True)),
    )


def _layer_document(layer: Layer) -> dict[str, Any]:
    kind = {"type": TYPES[type(layer)]}
    if isinstance(layer, AveragePool2d | MaxPool2d):
        return kind | {key: list(getattr(layer, key)) for key in ("input_shape", "size", "stride")}
    if isinstance(layer, Scaling):
        return kind | {key: [_number(value) for value in getattr(layer, key)] for key in ("scale", "offset")}
    parameters = {"activation": layer.activation.value, "weight": layer.weight.tolist(), "bias": layer.bias.tolist()}
    geometry = ("input_shape", "stride", "padding") if isinstance(layer, Conv2d) else ()
    return kind | parameters | {key: list(getattr(layer, key)) for key in geometry}


def _number(value: Fraction) -> float | str:
    """Return a rational as the float that it is, or as text."""
    nearest = float(value)
    return nearest if Fraction(nearest) == value else str(value)


def _layer(number: int, layer: Any) -> Layer:
    if not isinstance(layer, dict) or layer.get("type") not in TYPES.values():
        raise ModelFileError(f"layer {number} must be an object of type {', '.join(TYPES.values())}")
    kind = layer["type"]
    try:
        if kind in ("average_pool2d", "max_pool2d"):
            pool: type[AveragePool2d | MaxPool2d] = AveragePool2d if kind == "average_pool2d" else MaxPool2d
            return pool(*(_list(layer, key) for key in ("input_shape", "size", "stride")))
        if kind == "scaling":
            return Scaling(_list(layer, "scale"), _list(layer, "offset"))
        activation = _choice(Activation, layer.get("activation"), "activation")
        weight, bias = _list(layer, "weight"), _list(layer, "bias")
        if kind == "dense":
            return Dense(weight, bias, activation)
        geometry = [_list(layer, key) for key in ("input_shape", "stride", "padding")]
        return Conv2d(weight, bias, activation, *geometry)
    except QRobustError as error:
        raise ModelFileError(f"layer {number}: {error}") from None


def _feature(feature: Any) -> Feature:
    if not isinstance(feature, dict):
        raise ModelFileError("each of features must be an object with a name")
    lower, upper = feature.get("lower"), feature.get("upper")
    for value in (lower, upper):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= 1e308):
            raise ModelFileError(f"features: a range end is {value!r:.40}, it must be a finite number")
    return Feature(_text(feature.get("name"), "features"), _text(feature.get("unit", ""), "features"), lower, upper)


def _list(document: dict[str, Any], key: str, *, optional: bool = False) -> Any:
    value = document.get(key, [] if optional else None)
    if not isinstance(value, list | np.ndarray):  # arrays come from .npz files
        raise ModelFileError(f'"{key}" must be a list, found {type(value).__name__}')
    return value


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise ModelFileError(f"{place}: a name must be text, found {value!r}")
    return value


def _choice(kind: type[E], value: Any, place: str) -> E:
    known = [member.value for member in kind]
    if value not in known:
        raise ModelFileError(f"{place} {value!r} is not known, it must be one of {', '.join(known)}")
    return kind(value)
