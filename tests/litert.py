"""Running `.tflite` files with LiteRT itself, and making random models out of a file by writing other numbers into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.formats.flatbuffer import Table

FILES = Path(__file__).parent / "data" / "tflite"


def channel_last(x: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Turn points (points, inputs) in qrobust's order into TFLite's, of a shape (height, width, channels) or (inputs,)."""
    if len(shape) != 3:
        return x.reshape(len(x), *shape)
    height, width, channels = shape
    return x.reshape(len(x), channels, height, width).transpose(0, 2, 3, 1)


def run_litert(path: Path, x: npt.NDArray[Any], *, reference: bool = True) -> npt.NDArray[Any]:
    """Return LiteRT's outputs at points in qrobust's order, with its reference kernels or its own choice (XNNPACK)."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    interpreter = Interpreter(str(path), experimental_op_resolver_type=kind, num_threads=1)
    first = interpreter.get_input_details()[0]
    inputs = np.ascontiguousarray(channel_last(x, tuple(first["shape"][1:])).astype(first["dtype"]))
    interpreter.resize_tensor_input(first["index"], inputs.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(first["index"], inputs)
    interpreter.invoke()
    return np.array(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


def with_random_numbers(content: bytes, seed: int) -> bytes:
    """Return an int8 or int16 file with other weights, biases, scales and zero points, everything else as it was.

    Tensors whose scale TFLite fixes (the results of logistic, tanh and softmax, and what only moves them) are left alone.
    """
    rng = np.random.default_rng(seed)
    changed = bytearray(content)
    model = Table.root(content, b"TFL3")
    graph = model.tables(2)[0]
    tensors, buffers = graph.tables(0), model.tables(4)
    codes = [code.number(3, "<i") for code in model.tables(1)]
    for operator in graph.tables(3):
        if codes[operator.number(0, "<I")] not in (3, 4, 9):
            continue
        inputs = [tensors[i] for i in operator.vector(1, "<i4").tolist()]  # type: ignore[union-attr]
        spread = rng.choice([20, 127])
        _write(changed, buffers[inputs[1].number(2, "<I")], 0, "i1", lambda n, s=spread: rng.integers(-s, s + 1, n))
        wide = inputs[2].number(1, "<b") == 4
        _write(changed, buffers[inputs[2].number(2, "<I")], 0, "<i8" if wide else "<i4", lambda n: rng.integers(-9999, 9999, n))
        scales = inputs[1].table(4)
        _write(changed, scales, 2, "<f4", lambda n: np.exp(rng.uniform(np.log(2e-3), np.log(2e-2), n)))
    return bytes(changed)


def _write(changed: bytearray, table: Table | None, field: int, kind: str, numbers: Any) -> None:
    assert table is not None
    place = table._target(field)
    count = len(table.vector(field, kind)) if place is not None else 0  # type: ignore[arg-type]
    if field == 0:  # a buffer's bytes
        data = table.vector(field, "u1")
        assert data is not None
        count = len(data) // np.dtype(kind).itemsize
    assert place is not None
    new = numbers(count).astype(kind).tobytes()
    changed[place + 4 : place + 4 + len(new)] = new
