"""ONNX operations on constants, and those that only move values: one function a row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qrobust.errors import ModelFileError
from qrobust.formats.onnx_node import Node, Signal
from qrobust.formats.onnx_tensors import Array, dequantized, quantized

NUMBER_KINDS = "fiub"


def _flatten(values: Array, node: Node) -> Array:
    axis = node.integer("axis", 1)
    if not -values.ndim <= axis <= values.ndim:
        raise ModelFileError(f"node {node.name!r} (Flatten) has axis {axis} for shape {values.shape}")
    axis = axis + values.ndim if axis < 0 else axis
    return values.reshape(math.prod(values.shape[:axis]), -1)


def _reshape(values: Array, node: Node) -> Array:
    target = node.integers(1, "shape")
    if not node.integer("allowzero", 0):
        target = [values.shape[place] if size == 0 and place < values.ndim else size for place, size in enumerate(target)]
    return values.reshape(target)


def _transpose(values: Array, node: Node) -> Array:
    return values.transpose(node.integers(1, "perm", list(range(values.ndim))[::-1]))


def _squeeze(values: Array, node: Node) -> Array:
    ones = [place for place, size in enumerate(values.shape) if size == 1]
    return values.squeeze(tuple(node.integers(1, "axes", ones)))


def _unsqueeze(values: Array, node: Node) -> Array:
    return np.expand_dims(values, tuple(node.integers(1, "axes")))


def _dropout(values: Array, node: Node) -> Array:
    """Return the values: what Dropout does after training."""
    if node.has(2) and bool(np.any(node.constant(2))):
        raise node.refused("is in training mode: export the model for inference")
    return values


# Operations that move values and change none: they act on constants, and on the places of the signal's values.
LAYOUTS: dict[str, Callable[[Array, Node], Array]] = {
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Identity": lambda values, node: values,
    "Dropout": _dropout,
}


def _constant(node: Node) -> Array:
    for kind in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if kind in node.attributes:
            value: Any = node.attributes[kind]
            dtype = np.float32 if "float" in kind else np.int64
            return value if isinstance(value, np.ndarray) else np.asarray(value, dtype=dtype)
    raise node.refused("is no plain tensor")


def _shape(node: Node) -> Array:
    value = node.inputs[0] if node.inputs else None
    if value is None:
        raise ModelFileError(f"node {node.name!r} (Shape) lacks its input")
    sizes = value.order.shape if isinstance(value, Signal) else value.shape
    end = node.attributes.get("end")
    return np.array(sizes[node.integer("start", 0) : end], dtype=np.int64)


def _gather(node: Node) -> Array:
    values, places, axis = node.constant(0), node.constant(1), node.integer("axis", 0)
    if places.dtype.kind not in "iu" or not -values.ndim <= axis < values.ndim:
        raise ModelFileError(f"node {node.name!r} (Gather) has no indices along axis {axis}")
    node.allowance.take(places.size * (values.size // max(1, values.shape[axis])), f"node {node.name!r}")
    return np.take(values, places, axis=axis)


def _concat(node: Node) -> Array:
    parts = [node.constant(index) for index in range(len(node.inputs))]
    node.allowance.take(sum(part.size for part in parts), f"node {node.name!r}")
    return np.concatenate(parts, axis=node.integer("axis", 0))


def _slice(node: Node) -> Array:
    values = node.constant(0)
    starts, ends = node.integers(1, "starts"), node.integers(2, "ends")
    axes = node.integers(3, "axes", list(range(len(starts))))
    steps = node.integers(4, "steps", [1] * len(starts))
    cuts = [slice(None)] * values.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cuts[axis] = slice(start, end if end > -(2**62) else None, step)
    return values[tuple(cuts)]


def _cast(node: Node) -> Array:
    from onnx import helper

    values, kind = node.constant(0), np.dtype(helper.tensor_dtype_to_np_dtype(node.integer("to", 1)))
    if kind.kind not in NUMBER_KINDS:
        raise node.refused(f"to {kind.name} is not computed here")
    node.allowance.take(values.size, f"node {node.name!r}")
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(kind)


def _scaled(convert: Callable[[Array, Array, Array | None, int], Array]) -> Callable[[Node], Array]:
    def rule(node: Node) -> Array:
        if node.integer("block_size", 0):
            raise node.refused("has blocks, only one scale a tensor or one a channel is read")
        values = node.constant(0)
        node.allowance.take(3 * values.size, f"node {node.name!r}")
        return convert(values, node.constant(1), node.constant(2) if node.has(2) else None, node.integer("axis", 1))

    return rule


def _clip(node: Node) -> Array:
    values = node.constant(0)
    lower, upper = (node.constant(index) if node.has(index) else None for index in (1, 2))
    if {"min", "max"} & set(node.attributes) or values.dtype.kind not in "iu":
        raise node.refused("of constants is computed of integers only")
    node.allowance.take(values.size, f"node {node.name!r}")
    return values if lower is None and upper is None else np.clip(values, lower, upper).astype(values.dtype)


CONSTANTS: dict[str, Callable[[Node], Array]] = {
    "Constant": _constant,
    "Shape": _shape,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Cast": _cast,
    "Clip": _clip,
    "QuantizeLinear": _scaled(quantized),
    "DequantizeLinear": _scaled(dequantized),
}
