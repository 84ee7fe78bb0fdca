"""ONNX tensors as arrays: sizes checked before memory is taken, external data only from the model's own folder.

Quantized constants: QuantizeLinear gives the integer nearest to x / scale, the quotient in float32 and ties to even, plus the
zero point, held within the integers' range. Dequantized constants: DequantizeLinear gives (q - zero_point) * scale, the
difference exact in integers, turned into float32 (which rounds only integers beyond 2**24, as biases may be) and multiplied
in float32, rounded to nearest even. Both are onnxruntime's numbers, bit for bit.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.formats.untrusted import Allowance

Array = npt.NDArray[Any]
EXTERNAL = 1  # TensorProto.DataLocation
PER_BYTE = 2  # values of 4 bits lie two in a byte


class TensorReader:
    """Reads tensors of one model; `folder` is where its external data may lie."""

    def __init__(self, folder: Path, allowance: Allowance) -> None:
        self._folder = folder
        self._allowance = allowance

    def array(self, tensor: Any) -> Array:
        """Return a tensor's values. Raises ModelFileError, UnsupportedError (text, complex numbers)."""
        from onnx import helper, numpy_helper

        dimensions = [int(size) for size in tensor.dims]
        if any(size < 0 for size in dimensions):
            raise ModelFileError(f"tensor {tensor.name!r} has the shape {dimensions}")
        count = math.prod(dimensions)
        self._allowance.take(count, f"tensor {tensor.name!r}")
        try:
            kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        except KeyError:
            raise ModelFileError(f"tensor {tensor.name!r} is of type {tensor.data_type}, which does not exist") from None
        if kind.kind in "OSUcMm":
            raise UnsupportedError(f"tensor {tensor.name!r} holds {kind.name}, only real numbers are read")
        if tensor.data_location == EXTERNAL:
            return self._external(tensor, kind, dimensions, count)
        if tensor.HasField("raw_data") and len(tensor.raw_data) * PER_BYTE < count:
            raise ModelFileError(f"tensor {tensor.name!r} has {len(tensor.raw_data):,} bytes for {count:,} values")
        return np.asarray(numpy_helper.to_array(tensor))

    def _external(self, tensor: Any, kind: Any, dimensions: list[int], count: int) -> Array:
        settings = {entry.key: entry.value for entry in tensor.external_data}
        location, offset = str(settings.get("location", "")), int(settings.get("offset", 0))
        size = count * kind.itemsize
        if kind.kind not in "fiub" or kind.itemsize == 0:
            raise UnsupportedError(f"tensor {tensor.name!r} is {kind.name} in a file of its own, which is not read")
        path = self._inside(location, f"tensor {tensor.name!r}")
        if offset < 0 or int(settings.get("length", size)) != size or path.stat().st_size < offset + size:
            raise ModelFileError(
                f"tensor {tensor.name!r} needs {size:,} bytes of {location!r} from byte {offset:,}, which are not there"
            )
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        return np.frombuffer(content, dtype=kind.newbyteorder("<")).astype(kind).reshape(dimensions)

    def _inside(self, location: str, what: str) -> Path:
        """Return the path of external data. Raises ModelFileError if it leaves the model's folder, or is no file."""
        folder = self._folder.resolve()
        path = (folder / location).resolve()
        if not location or "\0" in location or not path.is_relative_to(folder):
            raise ModelFileError(f"{what} names the file {location!r}, which is outside the model's folder")
        if not path.is_file():
            raise ModelFileError(f"{what} names the file {location!r}, which is not there")
        return path


def quantized(values: Array, scale: Array, zero_point: Array | None, axis: int) -> Array:
    """Return integers of the zero point's type (uint8 without one); see the module's docstring.

    Shapes    scale and zero_point: one number, or one for each index of the axis
    Raises    UnsupportedError, ModelFileError
    """
    if values.dtype != np.float32:
        raise UnsupportedError(f"quantizes {values.dtype.name}, only float32 is read")
    kind = np.dtype(np.uint8) if zero_point is None else zero_point.dtype
    if kind.kind not in "iu":
        raise UnsupportedError(f"quantizes to {kind.name}, only integers of 8 bits and more are read")
    step, offset = _aligned(values, scale, zero_point, axis)
    limits = np.iinfo(kind)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        nearest = np.rint(values / step).astype(np.float64) + offset
    if not np.isfinite(nearest).all():
        raise ModelFileError("quantizes numbers that are not finite, or by a step of 0")
    result: Array = np.clip(nearest, limits.min, limits.max).astype(kind)
    return result


def dequantized(values: Array, scale: Array, zero_point: Array | None, axis: int) -> Array:
    """Return (values - zero_point) * scale in float32; see the module's docstring.

    Shapes    scale and zero_point: one number, or one for each index of the axis
    Raises    UnsupportedError, ModelFileError
    """
    if values.dtype.kind not in "iu" and values.dtype.name not in ("int4", "uint4", "int2", "uint2"):
        raise UnsupportedError(f"dequantizes {values.dtype.name}, only integers are read")
    step, offset = _aligned(values, scale, zero_point, axis)
    with np.errstate(over="ignore"):
        result: Array = (values.astype(np.int64) - offset).astype(np.float32) * step
    return result


def _aligned(values: Array, scale: Array, zero_point: Array | None, axis: int) -> tuple[Array, Array]:
    """Return scale and zero point (as int64) in shapes that broadcast along the axis."""
    if scale.dtype != np.float32:
        raise UnsupportedError(f"has a scale of {scale.dtype.name}, only float32 is read")
    if scale.ndim > 1 or (scale.ndim == 1 and scale.size > 1 and not -values.ndim <= axis < values.ndim):
        raise UnsupportedError(f"has scales of shape {scale.shape}, only one a tensor or one a channel is read")
    shape: tuple[int, ...] = ()
    if scale.size > 1:
        axis %= values.ndim
        if values.shape[axis] != scale.size:
            raise ModelFileError(f"{scale.size} scales do not fit {values.shape[axis]} channels")
        shape = (-1, *(1,) * (values.ndim - axis - 1))
    offset = np.zeros(scale.shape, dtype=np.int64) if zero_point is None else zero_point.astype(np.int64)
    if offset.size != scale.size:
        raise ModelFileError(f"{offset.size} zero points do not fit {scale.size} scales")
    return scale.reshape(shape), offset.reshape(shape)
