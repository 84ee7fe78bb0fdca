"""What Keras would write of a network of signs, put together without it."""

from __future__ import annotations

import io
import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np

from qrobust.binarized import BinarizedNetwork
from qrobust.binarized.formats.keras_write import Part, as_float32, model_name, model_parts
from tests.damage import packed

GROUPS = {"Dense": "dense", "Conv2D": "conv2d", "BatchNormalization": "batch_normalization", "Scale": "scale"}
OWN = ("RoundToGrid", "Scale", "Sign")
DEFAULTS: dict[str, dict[str, Any]] = {  # what Keras adds to the arguments given
    "Dense": {"activation": "linear"},
    "Conv2D": {
        "activation": "linear",
        "padding": "valid",
        "groups": 1,
        "dilation_rate": [1, 1],
        "data_format": "channels_last",
    },
    "ZeroPadding2D": {"data_format": "channels_last"},
    "Flatten": {"data_format": "channels_last"},
    "BatchNormalization": {"axis": -1, "scale": True, "center": True, "renorm": False},
}


def config_of(kind: str, settings: dict[str, Any], number: int) -> dict[str, Any]:
    own = {"class_name": kind, "registered_name": f"qrobust>{kind}" if kind in OWN else None}
    return own | {"config": {"name": f"{kind.lower()}_{number}"} | DEFAULTS.get(kind, {}) | settings}


def saved(parts: list[Part], inputs: int, name: str | None) -> bytes:
    """A `.keras` file of these layers, in place of `keras_write._saved`."""
    import h5py

    layers = [config_of("InputLayer", {"batch_shape": [None, inputs]}, 0)]
    counts: Counter[str] = Counter()
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for number, part in enumerate(parts, start=1):
            layers.append(config_of(part.kind, part.settings, number))
            if part.arrays:
                group = GROUPS[part.kind] + (f"_{counts[part.kind]}" if counts[part.kind] else "")
                for place, values in enumerate(part.arrays):
                    file[f"layers/{group}/vars/{place}"] = values.astype(np.float32)
            counts[part.kind] += 1
    config = {"class_name": "Sequential", "config": {"name": name or "sequential", "layers": layers}}
    return packed({"config.json": json.dumps(config).encode(), "model.weights.h5": buffer.getvalue()})


def file_of(network: BinarizedNetwork) -> bytes:
    return saved(model_parts(as_float32(network)), network.inputs, model_name(network.name))


class Layer:
    """As much of Keras's layers as those of qrobust use."""

    compute_dtype = "float32"

    def add_weight(self, name: str, shape: tuple[int, ...], initializer: str) -> Any:
        return np.ones(shape, "f4") if initializer == "ones" else np.zeros(shape, "f4")

    def get_config(self) -> dict[str, Any]:
        return {"name": "layer"}


def cast(values: Any, kind: str) -> Any:
    return np.asarray(values).astype(kind)


OPERATIONS = SimpleNamespace(cast=cast, round=np.round, floor=np.floor, sign=np.sign, abs=np.abs)
IN_NUMPY = SimpleNamespace(ops=OPERATIONS, layers=SimpleNamespace(Layer=Layer))  # in place of Keras
