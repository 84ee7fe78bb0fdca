"""Keras 3 `.keras` files of dense networks, read with h5py alone: no TensorFlow, and no code from the file is run.

A `.keras` file is a zip with the architecture in `config.json` and the weights in `model.weights.h5`, one group a layer,
named after the layer's class and counted in the order of the layers.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.errors import BackendUnavailableError, ModelFileError, UnsupportedError
from qrobust.files import read_bytes
from qrobust.formats.untrusted import parsing
from qrobust.interval import FloatArray
from qrobust.network import Activation, Dense, Network, Output

MOST_MEMBER_BYTES = 2**31
ACTIVATIONS = {member.value: member for member in Activation}
WITHOUT_EFFECT = ("Dropout", "GaussianNoise", "GaussianDropout", "ActivityRegularization")


def read_keras(path: Path | str) -> Network:
    """Read a Sequential model of Dense layers that ends in a sigmoid or a softmax.

    Raises    ModelFileError (damaged file), UnsupportedError (a layer that is not dense), BackendUnavailableError (no h5py)
    """
    content = read_bytes(path)
    with parsing(path, ".keras"):
        config, weights = _members(content)
        return _network(config, weights, Path(path).stem)


def _members(content: bytes) -> tuple[dict[str, Any], bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = []
        for name in ("config.json", "model.weights.h5"):
            if archive.getinfo(name).file_size > MOST_MEMBER_BYTES:
                raise ModelFileError(f"{name} unpacks to more than {MOST_MEMBER_BYTES:,} bytes")
            parts.append(archive.read(name))
    config = json.loads(parts[0])
    if not isinstance(config, dict):
        raise ModelFileError("config.json holds no model")
    return config, parts[1]


def _network(config: dict[str, Any], weights: bytes, name: str) -> Network:
    if config.get("class_name") != "Sequential":
        raise UnsupportedError(f"model class {config.get('class_name')!r} is not read, only Sequential")
    layers, output = _without_output(list(_dense_layers(config["config"]["layers"], weights)))
    return Network(layers, output, name=name)


def _dense_layers(layers: list[dict[str, Any]], weights: bytes) -> Iterator[tuple[FloatArray, FloatArray, str]]:
    """Yield weights (in, out), biases and the activation's name of each dense layer; activation layers are merged."""
    file = _open_hdf5(weights)
    counts: Counter[str] = Counter()
    pending: tuple[FloatArray, FloatArray, str] | None = None
    for layer in layers:
        kind, settings = layer["class_name"], layer["config"]
        if kind == "Dense":
            if pending is not None:
                yield pending
            group = file["layers"]["dense" + (f"_{counts[kind]}" if counts[kind] else "")]["vars"]
            _check_plain(settings)
            weight = _array(group["0"], 2)
            bias = _array(group["1"], 1) if settings["use_bias"] else np.zeros(weight.shape[1])
            if weight.shape[1] != settings["units"]:
                raise ModelFileError(f"layer {settings['name']} has {weight.shape[1]} columns, not {settings['units']}")
            pending = (weight, bias, str(settings["activation"]))
        elif kind in ("Activation", "ReLU", "Softmax") and pending is not None and pending[2] == "linear":
            pending = (pending[0], pending[1], _activation_name(kind, settings))
        elif kind == "InputLayer":
            shape = settings.get("batch_shape") or settings.get("batch_input_shape")
            if shape is not None and len(shape) != 2:
                raise UnsupportedError(f"inputs of shape {shape[1:]} cannot be represented, only plain vectors")
        elif kind not in WITHOUT_EFFECT:
            raise UnsupportedError(f"layer {settings.get('name')!r} of class {kind} cannot be represented, only Dense")
        counts[kind] += 1
    if pending is None:
        raise ModelFileError("the model has no Dense layer")
    yield pending


def _check_plain(settings: dict[str, Any]) -> None:
    """Raise UnsupportedError if a layer's stored numbers are not the ones that it computes with."""
    policy = settings.get("dtype")
    name = policy.get("class_name") if isinstance(policy, dict) else None
    if name not in (None, "DTypePolicy") or settings.get("quantization_mode") or settings.get("lora_rank"):
        raise UnsupportedError(f"layer {settings.get('name')!r} is quantized or adapted ({name}): give the float model")


def _array(dataset: Any, dimensions: int) -> FloatArray:
    """Read a dataset of floats after a look at its size."""
    if dataset.shape is None or len(dataset.shape) != dimensions or dataset.dtype.kind not in "fiu":
        raise ModelFileError(f"dataset {dataset.name} is no array of numbers in {dimensions} dimension(s)")
    if dataset.size * 8 > MOST_MEMBER_BYTES:
        raise ModelFileError(f"dataset {dataset.name} claims {dataset.size:,} numbers, more than is read")
    values: FloatArray = dataset[()].astype("float64")
    return values


def _activation_name(kind: str, settings: dict[str, Any]) -> str:
    if kind == "Activation":
        return str(settings["activation"])
    relu: dict[str, Any] = {"max_value": None, "negative_slope": 0.0, "threshold": 0.0}
    plain = relu if kind == "ReLU" else {"axis": -1}
    if any(settings.get(key, value) != value for key, value in plain.items()):
        raise UnsupportedError(f"layer {settings.get('name')!r} is a {kind} with settings that cannot be represented")
    return kind.lower()


def _without_output(layers: list[tuple[FloatArray, FloatArray, str]]) -> tuple[tuple[Dense, ...], Output]:
    """Split the last activation off: it is the output function."""
    last = layers[-1][2]
    if last not in ("sigmoid", "softmax"):
        raise UnsupportedError(f"the model ends in activation {last!r}, a classifier ends in sigmoid or softmax")
    for _, _, activation in layers[:-1]:
        if activation not in ACTIVATIONS:
            raise UnsupportedError(f"activation {activation!r} cannot be represented, only {', '.join(ACTIVATIONS)}")
    dense = [Dense(weight.T, bias, ACTIVATIONS.get(name, Activation.LINEAR)) for weight, bias, name in layers]
    return (*dense[:-1], replace(dense[-1], activation=Activation.LINEAR)), Output(last)


def _open_hdf5(content: bytes) -> Any:
    try:
        import h5py
    except ImportError:
        raise BackendUnavailableError("reading .keras files needs `pip install qrobust[keras]`") from None
    return h5py.File(io.BytesIO(content), "r")
