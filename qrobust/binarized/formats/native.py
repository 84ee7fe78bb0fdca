"""qrobust's own files of binarized networks: JSON that a person can read, and the same as arrays in NumPy's .npz.

    {"format": "qrobust-binarized", "version": 1, "name": "...", "classes": ["...", "..."],
     "input": {"step": "1/255", "lower": "0", "upper": "1", "offset": "0", "rounding": "half-even"},
     "layers": [{"type": "dense", "weight": [[1, -1, 0], ...], "bias": [...], "scale": [...],
                 "norm": {"gamma": [...], "beta": [...], "mean": [...], "variance": [...], "epsilon": 1e-5}},
                {"type": "conv2d", ..., "input_shape": [1, 28, 28], "stride": [1, 1], "padding": [0, 0, 0, 0]}]}

The last layer gives the scores and has no norm; after each other layer stands a sign. `weight` is (out, in) or
(out, in, height, width) of -1, 0 and 1; `bias` (zeros), `scale` (ones), `norm`, `name`, `classes`, `offset` and `rounding`
may be left out.

In .npz the arrays are "input.step" and so on (texts), and of layer N, from 1, "N.type" (text), "N.weight", "N.bias", "N.scale",
"N.gamma", "N.beta", "N.mean", "N.variance", "N.epsilon", "N.input_shape", "N.stride", "N.padding"; "name" and "classes".

Further sections, such as a bracket's, are kept beside these and not read here; in .npz each is a text of JSON.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.binarized.network import BatchNorm, BinarizedNetwork, Block, Grid, InputRounding, Linear
from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.files import read_bytes, write_whole
from qrobust.formats.npz import read_arrays
from qrobust.formats.untrusted import one_line, parsing
from qrobust.interval import FloatArray
from qrobust.layers import Activation, Conv2d, Dense

FORMAT, VERSION = "qrobust-binarized", 1
FLOAT_FORMAT = "qrobust-network"  # of an ordinary network's file
MADE_BY_SCHEME = "bnn verify, attack, map and report make it one of signs by their scheme"
MOST_BYTES = 2**28
NORM = ("gamma", "beta", "mean", "variance", "epsilon")
GEOMETRY = ("input_shape", "stride", "padding")
LAYER_KEYS = {"type", "weight", "bias", "scale", "norm", *GEOMETRY}


def to_document(network: BinarizedNetwork) -> dict[str, Any]:
    """Return a network as JSON values; floats read back exactly."""
    norms = [*(block.norm for block in network.blocks), None]
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": network.name,
        "classes": list(network.classes),
        "input": grid_document(network.grid),
        "layers": [_layer_document(linear, norm) for linear, norm in zip(network.linears, norms, strict=True)],
    }


def grid_document(grid: Grid) -> dict[str, str]:
    """Return a grid as texts, its numbers exact."""
    return {key: str(getattr(grid, key)) for key in ("step", "lower", "upper", "offset")} | {"rounding": grid.rounding.value}


def _layer_document(linear: Linear, norm: BatchNorm | None) -> dict[str, Any]:
    layer = linear.layer
    found: dict[str, Any] = {
        "type": "conv2d" if isinstance(layer, Conv2d) else "dense",
        "weight": layer.weight.astype(np.int64).tolist(),
        "bias": layer.bias.tolist(),
        "scale": linear.scale.tolist(),
    }
    if isinstance(layer, Conv2d):
        found |= {key: list(getattr(layer, key)) for key in GEOMETRY}
    if norm is not None:
        found["norm"] = {key: np.asarray(getattr(norm, key)).tolist() for key in NORM}
    return found


def from_document(document: Any) -> BinarizedNetwork:
    """Return the network that JSON values describe. Raises ModelFileError and what the network's parts raise."""
    if isinstance(document, dict) and document.get("format") == FLOAT_FORMAT:
        raise ModelFileError(f'it is a float network, not "format": "{FORMAT}": {MADE_BY_SCHEME}')
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
        raise ModelFileError(f'it does not say "format": "{FORMAT}" and "version": {VERSION}')
    settings = _of_kind(document.get("input"), dict, "input")
    layers = _of_kind(document.get("layers"), list, "layers")
    if not layers:
        raise ModelFileError('its "layers" are empty')
    grid = grid_of_document(settings)
    parts = [_layer(layer, number) for number, layer in enumerate(layers, start=1)]
    if parts[-1][1] is not None:
        raise ModelFileError("its last layer has a norm: the scores have none")
    blocks = tuple(Block(linear, norm) for linear, norm in parts[:-1])
    names = tuple(_of_kind(document.get("classes", []), list, "classes"))
    return BinarizedNetwork(grid, blocks, parts[-1][0], str(document.get("name", "")), names)


def grid_of_document(settings: dict[str, Any]) -> Grid:
    """Return the grid that JSON values describe. Raises ModelFileError, NumberError."""
    for key in ("step", "lower", "upper"):
        if key not in settings:
            raise ModelFileError(f'its "input" lacks {key!r}')
    try:
        rounding = InputRounding(settings.get("rounding", InputRounding.HALF_EVEN.value))
    except ValueError:
        raise ModelFileError(f"its rounding is none of {', '.join(rule.value for rule in InputRounding)}") from None
    return Grid.of(settings["step"], settings["lower"], settings["upper"], settings.get("offset", 0), rounding)


def _of_kind(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise ModelFileError(f'its "{name}" is {one_line(repr(value), 40)}, not a {kind.__name__}')
    return value


def _layer(document: Any, number: int) -> tuple[Linear, BatchNorm | None]:
    where = f"layer {number}"
    settings = _of_kind(document, dict, where)
    unknown = sorted(set(settings) - LAYER_KEYS)
    if unknown:
        raise ModelFileError(f"{where} has {unknown[0]!r}, which is not known")
    kind, weight = settings.get("type", "dense"), _numbers(settings.get("weight"), f"{where}: weight")
    bias = _numbers(settings.get("bias", [0.0] * len(weight)), f"{where}: bias")
    scale = _numbers(settings.get("scale", 1.0), f"{where}: scale")
    layer: Dense | Conv2d
    if kind == "dense":
        layer = Dense(weight, bias)
    elif kind == "conv2d":
        shape, stride = (tuple(settings.get(key, default)) for key, default in (("input_shape", ()), ("stride", (1, 1))))
        layer = Conv2d(weight, bias, Activation.LINEAR, shape, stride, tuple(settings.get("padding", (0, 0, 0, 0))))
    else:
        raise UnsupportedError(f"{where} is of type {one_line(repr(kind), 40)}, only dense and conv2d are read")
    return Linear(layer, scale), _norm(settings.get("norm"), where)


def _norm(document: Any, where: str) -> BatchNorm | None:
    if document is None:
        return None
    settings = _of_kind(document, dict, f"{where}: norm")
    if set(settings) != set(NORM):
        raise ModelFileError(f"{where}: a norm has {', '.join(NORM)}, not {one_line(', '.join(map(str, settings)), 80)}")
    gamma, beta, mean, variance = (_numbers(settings[key], f"{where}: {key}") for key in NORM[:4])
    return BatchNorm(gamma, beta, mean, variance, float(_numbers(settings["epsilon"], f"{where}: epsilon")))


def _numbers(values: Any, where: str) -> FloatArray:
    try:
        found = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ModelFileError(f"{where} is not an array of numbers") from None
    if values is None:
        raise ModelFileError(f"{where} is missing")
    return found


def read_json(path: Path | str) -> BinarizedNetwork:
    """Read a network from JSON. Raises ModelFileError, UnsupportedError."""
    content = read_bytes(path)
    with parsing(path, ".json"):
        if len(content) > MOST_BYTES:
            raise ModelFileError(f"it has {len(content):,} bytes, at most {MOST_BYTES:,} are read")
        return from_document(json.loads(content))


def write_json(network: BinarizedNetwork, path: Path | str, notes: dict[str, Any] | None = None) -> None:
    """Write a network as JSON, and further sections of JSON values, whole or not at all. Raises OutputError."""
    write_whole(path, (json.dumps(to_document(network) | (notes or {}), allow_nan=False) + "\n").encode())


def write_npz(network: BinarizedNetwork, path: Path | str, notes: dict[str, Any] | None = None) -> None:
    """Write a network's arrays, and further sections as texts of JSON, whole or not at all. Raises OutputError."""
    document = to_document(network)
    arrays: dict[str, Any] = {f"input.{key}": value for key, value in document["input"].items()}
    arrays |= {"name": network.name} | ({"classes": list(network.classes)} if network.classes else {})
    for number, layer in enumerate(document["layers"], start=1):
        flat = {key: value for key, value in layer.items() if key != "norm"} | layer.get("norm", {})
        flat["weight"] = np.array(flat["weight"], dtype=np.int8)
        arrays |= {f"{number}.{key}": value for key, value in flat.items()}
    arrays |= {key: json.dumps(value, allow_nan=False) for key, value in (notes or {}).items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_whole(path, buffer.getvalue())


def read_npz(path: Path | str) -> BinarizedNetwork:
    """Read a network from arrays. Raises ModelFileError, UnsupportedError."""
    content = read_bytes(path)
    with parsing(path, ".npz"):
        arrays = read_arrays(content)
        layers: list[dict[str, Any]] = []
        while own := _own(arrays, f"{len(layers) + 1}."):
            norm = {key: own.pop(key) for key in NORM if key in own}
            layers.append(own | ({"norm": norm} if norm else {}))
        document = {
            "format": FORMAT,
            "version": VERSION,
            "name": str(arrays.get("name", "")),
            "classes": [str(name) for name in np.atleast_1d(arrays.get("classes", np.zeros(0)))],
            "input": _own(arrays, "input."),
            "layers": layers,
        }
        return from_document(document)


def read_section(path: Path | str, name: str) -> Any:
    """Return the JSON values of a further section of a file, or None. Raises ModelFileError, UnsupportedError."""
    content, suffix = read_bytes(path), Path(path).suffix.lower()
    with parsing(path, suffix):
        if suffix == ".npz":
            arrays = read_arrays(content)
            return json.loads(str(arrays[name])) if name in arrays else None
        if suffix != ".json":
            return None
        document = json.loads(content)
        return document.get(name) if isinstance(document, dict) else None


def _own(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the arrays under a prefix, texts and single numbers as such."""
    found = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    return {key: value.item() if value.ndim == 0 else value for key, value in found.items()}
