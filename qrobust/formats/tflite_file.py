"""The content of a `.tflite` file: tensors, operators, and the chain of operators from its input to its output.

Source    tflite/converter/schema/schema.fbs (schema 3) at LiteRT commit f6745779; the numbers of fields are the places of
          their lines in that file's tables
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.files import read_bytes
from qrobust.formats.flatbuffer import Table
from qrobust.interval import FloatArray
from qrobust.layers import IntArray

MOST_VALUES = 2**26  # numbers in one tensor
MOST_SCALES = 2**22  # of all tensors together; these and the next limits are on what a small file can name many times
MOST_SIZES, MOST_INDICES = 8, 64  # of one tensor's shape; of one operator's inputs or outputs
TYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 7: "int16", 9: "int8"}
OPERATORS = {
    0: "ADD",
    1: "AVERAGE_POOL_2D",
    2: "CONCATENATION",
    3: "CONV_2D",
    4: "DEPTHWISE_CONV_2D",
    6: "DEQUANTIZE",
    9: "FULLY_CONNECTED",
    14: "LOGISTIC",
    17: "MAX_POOL_2D",
    18: "MUL",
    19: "RELU",
    21: "RELU6",
    22: "RESHAPE",
    25: "SOFTMAX",
    28: "TANH",
    32: "CUSTOM",
    34: "PAD",
    39: "TRANSPOSE",
    40: "MEAN",
    43: "SQUEEZE",
    45: "STRIDED_SLICE",
    70: "EXPAND_DIMS",
    77: "SHAPE",
    83: "PACK",
    114: "QUANTIZE",
}
ACTIVATIONS = {0: "none", 1: "relu", 2: "relu_n1_to_1", 3: "relu6", 4: "tanh", 5: "sign_bit"}
OF_SHAPES = ("SHAPE", "STRIDED_SLICE", "PACK")  # what a flatten is written with; their results are shapes, not values


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor: its declared shape and type, its scales and zero points, and its stored numbers if it is a constant."""

    name: str
    shape: tuple[int, ...]
    kind: str
    scales: FloatArray
    zero_points: IntArray
    axis: int
    content: npt.NDArray[np.uint8] | None

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def is_constant(self) -> bool:
        return self.content is not None

    @cached_property
    def values(self) -> npt.NDArray[np.float64] | IntArray:
        """The stored numbers: float64 or int64, in the declared shape. Raises ModelFileError if there are not as many."""
        if self.content is None:
            raise UnsupportedError(f"tensor {self.name!r} must be a constant, it is computed")
        stored = np.dtype(self.kind).newbyteorder("<")
        if len(self.content) != self.size * stored.itemsize:
            raise ModelFileError(
                f"tensor {self.name!r} of shape {self.shape} needs {self.size * stored.itemsize:,} bytes,"
                f" not {len(self.content):,}"
            )
        numbers = np.frombuffer(self.content.tobytes(), stored).reshape(self.shape)
        return numbers.astype(np.float64) if stored.kind == "f" else numbers.astype(np.int64)

    @property
    def reals(self) -> FloatArray:
        """The stored numbers times their scales: exact in float64, for a scale has 24 bits and an integer at most 17."""
        values = self.values.astype(np.float64)
        if self.kind.startswith("float"):
            return values
        if self.kind not in ("int8", "uint8", "int16") or not self.scales.size:
            raise UnsupportedError(f"tensor {self.name!r} of {self.kind} without scales cannot be read as real numbers")
        return self.along_axis(self.scales) * (values - self.along_axis(self.zero_points))

    def along_axis(self, numbers: npt.NDArray[np.float64] | IntArray) -> npt.NDArray[np.float64] | IntArray:
        """Return one number a tensor, or one an entry of the quantized axis, shaped to go with the values."""
        if numbers.size <= 1:
            return numbers.reshape(())
        if not 0 <= self.axis < len(self.shape) or numbers.size != self.shape[self.axis]:
            raise ModelFileError(f"tensor {self.name!r} of shape {self.shape} has {numbers.size} scales along axis {self.axis}")
        return numbers.reshape([-1 if i == self.axis else 1 for i in range(len(self.shape))])


@dataclass(frozen=True, eq=False)
class Operator:
    """An operator: its name, the tensors that it takes (None where one is left out) and gives, and its options."""

    name: str
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    options: Table | None

    def option(self, index: int, kind: str, default: int = 0) -> int:
        return default if self.options is None else int(self.options.number(index, kind, default))


@dataclass(frozen=True, eq=False)
class Content:
    """What a file holds: one subgraph."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    input: int
    output: int

    @cached_property
    def producers(self) -> dict[int, Operator]:
        return {output: operator for operator in self.operators for output in operator.outputs}

    def constant(self, index: int | None) -> Tensor | None:
        """Return a constant, also one that a DEQUANTIZE turns into float32; None for a tensor left out."""
        if index is None:
            return None
        tensor, producer = self.tensors[index], self.producers.get(index)
        if producer is None or producer.name != "DEQUANTIZE" or not producer.inputs or producer.inputs[0] is None:
            return tensor
        stored = self.tensors[producer.inputs[0]]
        if stored.kind == "float16":
            return stored
        raise UnsupportedError(
            f"tensor {stored.name!r} of {stored.kind} is dequantized when the model runs: only float16 is read"
        )

    def chain(self) -> list[Operator]:
        """Return the operators from the input to the output, each fed by the one before; those of shapes are left out.

        Raises    UnsupportedError where values branch or join, or an operator is none of a chain
        """
        helpers = {id(o) for o in self.operators if o.name in OF_SHAPES or self._dequantizes_constant(o)}
        value, steps = self.input, []
        rest = [o for o in self.operators if id(o) not in helpers]
        for operator in rest:
            if not operator.inputs or operator.inputs[0] != value or len(operator.outputs) != 1:
                raise UnsupportedError(f"operator {operator.name} does not follow the one before it: only chains are read")
            others = [i for i in operator.inputs[1:] if i is not None]
            made = [self.producers[i] for i in others if i in self.producers]
            if any(id(producer) not in helpers for producer in made):
                raise UnsupportedError(f"operator {operator.name} joins two computed tensors: only chains are read")
            if operator.name != "RESHAPE" and any(producer.name in OF_SHAPES for producer in made):
                raise UnsupportedError(f"operator {operator.name} takes a computed shape: only RESHAPE may")
            value = operator.outputs[0]
            steps.append(operator)
        if value != self.output or not steps:
            raise UnsupportedError("the model's output is not the end of its chain of operators")
        return steps

    def _dequantizes_constant(self, operator: Operator) -> bool:
        first = operator.inputs[0] if operator.inputs else None
        return operator.name == "DEQUANTIZE" and first is not None and self.tensors[first].is_constant


def read_content(path: Path | str) -> Content:
    """Read a file's tables. Raises ModelFileError, UnsupportedError; call it within `untrusted.parsing`."""
    model = Table.root(read_bytes(path), b"TFL3")
    if model.number(0, "<I") != 3:
        raise UnsupportedError(f"the file follows version {model.number(0, '<I')} of the schema, only 3 is read")
    graphs = model.tables(2)
    if len(graphs) != 1:
        raise UnsupportedError(f"the file has {len(graphs)} subgraphs, only one is read")
    buffers = model.tables(4)
    tensors = _tensors(graphs[0], buffers)
    names = [_operator_name(table) for table in model.tables(1)]
    operators = tuple(_operator(table, names, len(tensors)) for table in graphs[0].tables(3))
    ends = [_indices(graphs[0], index, len(tensors)) for index in (1, 2)]
    if [len(end) for end in ends] != [1, 1] or None in (ends[0][0], ends[1][0]):
        raise UnsupportedError(f"the model has {len(ends[0])} inputs and {len(ends[1])} outputs, only one of each is read")
    (first,), (last,) = ends
    assert first is not None
    assert last is not None
    outputs = [output for operator in operators for output in operator.outputs]
    if len(set(outputs)) != len(outputs) or first in outputs:
        raise ModelFileError("a tensor is computed twice")
    return Content(tensors, operators, first, last)


def _tensors(graph: Table, buffers: list[Table]) -> tuple[Tensor, ...]:
    tensors, scales = [], 0
    for table in graph.tables(0):
        tensors.append(_tensor(table, buffers))
        scales += tensors[-1].scales.size
        if scales > MOST_SCALES:
            raise ModelFileError(f"the tensors have more than {MOST_SCALES:,} scales together")
    return tuple(tensors)


def _tensor(table: Table, buffers: list[Table]) -> Tensor:
    name, code = table.text(3), table.number(1, "<b")
    shape = table.vector(0, "<i4")
    if shape is not None and len(shape) > MOST_SIZES:
        raise ModelFileError(f"tensor {name!r} has {len(shape):,} sizes, at most {MOST_SIZES} are read")
    sizes = () if shape is None else tuple(shape.tolist())
    if any(size < 0 for size in sizes) or prod(sizes) > MOST_VALUES:
        raise ModelFileError(f"tensor {name!r} has the shape {sizes}: at most {MOST_VALUES:,} numbers are read")
    number = table.number(2, "<I")
    if number >= len(buffers):
        raise ModelFileError(f"tensor {name!r} is in buffer {number}, the file has {len(buffers)}")
    if table.table(6) is not None:
        raise UnsupportedError(f"tensor {name!r} is stored sparsely: convert the model without sparsity")
    if buffers[number].number(1, "<Q") > 1 or table.number(10, "<I"):
        raise UnsupportedError(f"tensor {name!r} is stored outside the FlatBuffer: convert the model to one of less than 2 GB")
    content = buffers[number].vector(0, "u1")
    scales, zeros, axis = np.zeros(0), np.zeros(0, dtype=np.int64), 0
    quantization = table.table(4)
    if quantization is not None:
        stored = quantization.vector(2, "<f4"), quantization.vector(3, "<i8")
        scales = scales if stored[0] is None else stored[0].astype(np.float64)
        zeros = np.zeros(scales.size, dtype=np.int64) if stored[1] is None else stored[1].astype(np.int64)
        axis = quantization.number(6, "<i")
        if zeros.size not in (1, scales.size) or not ((scales > 0) & np.isfinite(scales)).all():
            raise ModelFileError(
                f"tensor {name!r} has {scales.size} scales and {zeros.size} zero points, or one that is not > 0"
            )
    filled = content if content is not None and content.size else None
    return Tensor(name, sizes, TYPES.get(code, f"type {code}"), scales, zeros, axis, filled)


def _operator_name(table: Table) -> str:
    code = max(table.number(0, "<b"), table.number(3, "<i"))
    name = OPERATORS.get(code, f"number {code}")
    return f"{name} {table.text(1)!r}" if name == "CUSTOM" else name


def _operator(table: Table, names: list[str], tensors: int) -> Operator:
    number = table.number(0, "<I")
    if number >= len(names):
        raise ModelFileError(f"an operator has code {number}, the file has {len(names)}")
    outputs = _indices(table, 2, tensors)
    return Operator(names[number], _indices(table, 1, tensors), tuple(i for i in outputs if i is not None), table.table(4))


def _indices(table: Table, index: int, tensors: int) -> tuple[int | None, ...]:
    """Return numbers of tensors, None for -1. Raises ModelFileError if one is out of range."""
    numbers = table.vector(index, "<i4")
    if numbers is not None and len(numbers) > MOST_INDICES:
        raise UnsupportedError(
            f"an operator or the model has {len(numbers):,} inputs or outputs, at most {MOST_INDICES} are read"
        )
    found = [] if numbers is None else numbers.tolist()
    wrong = [number for number in found if not -1 <= number < tensors]
    if wrong:
        raise ModelFileError(f"tensor {wrong[0]} is named, the file has {tensors}")
    return tuple(None if number == -1 else number for number in found)
