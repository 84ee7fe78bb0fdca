"""Plain weights in NumPy's `.npz`: arrays by name, no pickles.

    numpy.savez("model.npz", **{"1.weight": W1, "1.bias": b1, "1.activation": "relu", "2.weight": W2, "2.bias": b2,
                                "output": "softmax"})

Layers are numbered from 1. Of layer N:

    N.type          "dense" (if left out), "conv2d", "average_pool2d", "max_pool2d", or as the first "scaling"
    N.weight        dense (out, in): y = weight @ x + bias; conv2d (out, in, height, width)
    N.bias          (out,)
    N.activation    "linear" (if left out), "relu", "sigmoid" or "tanh"
    N.input_shape   of images (channels, height, width); their values lie channel-first
    N.stride, N.padding     of conv2d: (down, right) and zeros (top, left, bottom, right)
    N.size, N.stride        of pools: (height, width) and (down, right)
    N.scale, N.offset       of scaling, x * scale + offset: (inputs,), numbers, or texts such as "1/255" that are exact

and once: `output`, "sigmoid" (one logit) or "softmax"; `name` and `classes` (texts) may be left out. Numbers are float16,
float32, float64, or integers that float64 holds. Features are not kept.
"""

from __future__ import annotations

import io
import math
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.exact import ExactArray
from qrobust.files import read_bytes, write_whole
from qrobust.formats.native import from_document, to_document
from qrobust.formats.untrusted import Allowance, parsing, unpacked
from qrobust.network import Network, Scaling

Array = npt.NDArray[Any]
MOST_MEMBERS = 4096
MOST_TEXT = 2**20  # bytes of an array of texts
RATIONAL = ("scale", "offset")
GEOMETRY = ("input_shape", "stride", "padding", "size")
KINDS = {"f": "f2 f4 f8", "i": "i1 i2 i4 i8", "u": "u1 u2 u4 u8"}


def write_npz(network: Network, path: Path | str) -> None:
    """Write a network's numbers as float64, whole or not at all. Raises OutputError."""
    document = to_document(network)
    arrays: dict[str, Any] = {"output": document["output"], "name": network.name}
    if network.classes:
        arrays["classes"] = list(network.classes)
    for number, (layer, settings) in enumerate(zip(network.layers, document["layers"], strict=True), start=1):
        own = {key: value for key, value in settings.items() if key not in ("weight", "bias")}
        if isinstance(layer, Scaling):
            own |= {key: _numbers_or_texts(getattr(layer, key)) for key in RATIONAL}
        if layer.weight.size:
            own |= {"weight": layer.weight, "bias": layer.bias}
        arrays |= {f"{number}.{key}": value for key, value in own.items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_whole(path, buffer.getvalue())


def _numbers_or_texts(values: ExactArray) -> Array:
    """Return rationals as float64 if each of them is one, else as texts."""
    numbers = values.astype(np.float64)
    exact = all(Fraction(number) == value for number, value in zip(numbers.tolist(), values.tolist(), strict=True))
    return numbers if exact else np.array([str(value) for value in values.tolist()])


def read_npz(path: Path | str) -> Network:
    """Read a network from the arrays that the module's docstring names. Raises ModelFileError, UnsupportedError."""
    content = read_bytes(path)
    with parsing(path, ".npz"):
        network = from_document(_document(read_arrays(content)))
        return network if network.name else Network(network.layers, network.output, Path(path).stem, (), network.classes)


def read_arrays(content: bytes) -> dict[str, Array]:
    allowance = Allowance()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if len(names) > MOST_MEMBERS:
            raise ModelFileError(f"it has {len(names):,} arrays, at most {MOST_MEMBERS:,} are read")
        if len(set(names)) < len(names):
            raise ModelFileError("two of its arrays have one name")
        return {name.removesuffix(".npy"): _array(name, archive, allowance) for name in names}


def _array(name: str, archive: zipfile.ZipFile, allowance: Allowance) -> Array:
    """Return one array, after its header has been compared with the bytes that are there."""
    allowance.take(-(-archive.getinfo(name).file_size // 8), f"array {name!r}")
    file = io.BytesIO(unpacked(archive, name))
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise UnsupportedError(f"array {name!r} is of version {version} of .npy, only 1 and 2 are read")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(file)
    text = dtype.kind == "U" and math.prod(shape) * dtype.itemsize <= MOST_TEXT
    if not text and dtype.str[1:] not in KINDS.get(dtype.kind, "").split():
        raise UnsupportedError(f"array {name!r} holds {dtype}, only floats, integers and short texts are read")
    rest = file.read()
    if any(size < 0 for size in shape) or len(rest) != math.prod(shape) * dtype.itemsize:
        raise ModelFileError(f"array {name!r} has {len(rest):,} bytes, not those of its shape {shape}")
    values = np.frombuffer(rest, dtype=dtype) if rest else np.zeros(0, dtype=dtype)
    return values.reshape(shape, order="F" if by_columns else "C")


def _document(arrays: dict[str, Array]) -> dict[str, Any]:
    """Return the arrays in the order of qrobust's own JSON, numbers still as arrays."""
    if "output" not in arrays or ("1.type" not in arrays and "1.weight" not in arrays):
        raise ModelFileError('it has no arrays "output" and "1.weight": name them as qrobust/formats/npz.py says')
    layers: list[dict[str, Any]] = []
    while own := _layer(arrays, len(layers) + 1):
        layers.append(own)
    known = {f"{number}.{key}" for number, layer in enumerate(layers, start=1) for key in layer}
    unknown = sorted(set(arrays) - known - {"output", "name", "classes"})
    if unknown:
        raise ModelFileError(f"array {unknown[0]!r} is not known, or belongs to none of the layers 1 to {len(layers)}")
    return {
        "format": "qrobust-network",
        "version": 1,
        "layers": layers,
        "output": _text(arrays["output"], "output"),
        "name": _text(arrays["name"], "name") if "name" in arrays else "",
        "classes": [str(name) for name in arrays["classes"].reshape(-1)] if "classes" in arrays else [],
    }


def _layer(arrays: dict[str, Array], number: int) -> dict[str, Any]:
    prefix = f"{number}."
    own = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    if not own:
        return {}
    layer: dict[str, Any] = {"type": "dense", "activation": "linear"}
    for key, values in own.items():
        if key in ("type", "activation"):
            layer[key] = _text(values, prefix + key)
        elif key in GEOMETRY or (key in RATIONAL and values.dtype.kind == "U"):
            layer[key] = values.tolist()
        elif key in ("weight", "bias", *RATIONAL):
            layer[key] = _exact(values, prefix + key)
        else:
            raise ModelFileError(f"array {prefix + key!r} is not known: name arrays as qrobust/formats/npz.py says")
    return layer


def _text(values: Array, name: str) -> str:
    if values.dtype.kind != "U" or values.size != 1:
        raise ModelFileError(f"array {name!r} must be one text")
    return str(values.reshape(-1)[0])


def _exact(values: Array, name: str) -> Array:
    """Return numbers as float64. Raises ModelFileError if one is none."""
    if values.dtype.kind not in "fiu":
        raise ModelFileError(f"array {name!r} must hold numbers")
    result = values.astype(np.float64)
    if values.dtype.kind != "f" and not np.array_equal(result.astype(object), values.astype(object)):
        raise ModelFileError(f"array {name!r} has integers that no float64 is")
    return result
