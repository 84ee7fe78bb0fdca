"""ONNX files of classifiers in floating point, read with the onnx package.

The graph is walked once, in the file's order. A value is an array of constants, or the signal: the tensor that comes from
the input, as the chain of layers so far and, for each entry of the tensor, its place in the network's flat vector. So
Flatten, Reshape and Transpose move places and nothing else, and a dense layer after them has its columns permuted.

What differs from the file, and all that does:

- BatchNormalization is folded into the layer before in float64, each operation rounded to nearest (see `chain.normalized`).
- Scaling by constants (Add, Sub, Mul, Div) after a layer is folded where every resulting number is a float, so that the
  function is the same; elsewhere it is refused. Scaling of the inputs is kept as it is, in exact rationals.
- Where images are transposed before the first convolution or pool, inputs lie in the order after it: channel-first.
- Without a Sigmoid or Softmax at the end, two or more last values are the logits of a softmax.
- Constants under QuantizeLinear, Clip and DequantizeLinear become the float32 numbers that onnxruntime computes (see
  `onnx_tensors`).

Whatever has no place in a chain of layers is refused by its operation and its node's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.files import read_bytes
from qrobust.formats import chain
from qrobust.formats.onnx_constants import CONSTANTS, LAYOUTS
from qrobust.formats.onnx_node import FLOAT_BITS, Node, Signal, Value, check_values
from qrobust.formats.onnx_rules import RULES
from qrobust.formats.onnx_tensors import Array, TensorReader
from qrobust.formats.untrusted import Allowance, parsing
from qrobust.formats.wire import onnx_model
from qrobust.layers import IntArray
from qrobust.network import Network

OLDEST_OPSET = 7  # operations broadcast as NumPy does from here on
MOST_NODES = 4096


def read_onnx(path: Path | str) -> Network:
    """Read a classifier from an ONNX file; see the module's docstring for what is read and how.

    Raises    ModelFileError (damaged file), UnsupportedError (what cannot be represented), BackendUnavailableError
    """
    content = read_bytes(path)
    with parsing(path, ".onnx"):
        return _Reader(onnx_model(content), Path(path).parent).network(Path(path).stem)


class _Reader:
    """The values that the nodes so far have given, by name."""

    def __init__(self, model: Any, folder: Path) -> None:
        self._graph = model.graph
        self._opset = opset_of(model)
        self._allowance = Allowance()
        self._tensors = TensorReader(folder, self._allowance)
        self._values: dict[str, Value] = {}

    def network(self, name: str) -> Network:
        graph = self._graph
        if not graph.node or not graph.output:
            raise ModelFileError("it has no graph")
        if len(graph.node) > MOST_NODES:
            raise UnsupportedError(f"its graph has {len(graph.node):,} nodes, at most {MOST_NODES:,} are read")
        if graph.sparse_initializer:
            raise UnsupportedError("its sparse initializers cannot be read, only plain ones")
        for tensor in graph.initializer:
            self._set(tensor.name, self._tensors.array(tensor))
        source, order, bits = graph_input(graph, self._values)
        self._set(source, Signal(order, (), bits))
        for proto in graph.node:
            self._run(self._node(proto))
        return self._classifier(name)

    def _set(self, name: str, value: Value) -> None:
        if name in self._values:
            raise ModelFileError(f"two things are called {name!r}")
        self._values[name] = value

    def _node(self, proto: Any) -> Node:
        node = Node(
            proto.op_type, proto.name or (proto.output[0] if proto.output else ""), [], {}, self._opset, self._allowance
        )
        if proto.domain not in ("", "ai.onnx"):
            raise node.refused(f"of domain {proto.domain!r} cannot be represented")
        fill(node, proto, self._values, self._tensors)
        return node

    def _run(self, node: Node) -> None:
        signals = [value for value in node.inputs if isinstance(value, Signal)]
        if not node.outputs:
            raise ModelFileError(f"node {node.name!r} ({node.op}) gives nothing")
        if len(signals) > 1:
            raise node.refused("joins two values that come from the input, only chains of layers can be represented")
        try:
            result = self._result(node, signals[0] if signals else None)
        except UnsupportedError as error:
            raise error if str(error).startswith("node ") else node.refused(str(error)) from None
        self._set(node.outputs[0], result)

    def _result(self, node: Node, signal: Signal | None) -> Value:
        if node.op in LAYOUTS and (signal is None or node.inputs[0] is signal):
            move: Callable[[Array, Node], Array] = LAYOUTS[node.op]
            if signal is None:
                return move(node.constant(0), node)
            node.allowance.take(signal.order.size, f"node {node.name!r}")
            moved: Signal = replace(signal, order=move(signal.order, node))
            return moved
        if signal is None or node.op == "Shape":
            if node.op not in CONSTANTS:
                raise node.refused("of constants is not computed here: export the model with constants folded")
            return CONSTANTS[node.op](node)
        if node.op not in RULES:
            raise node.refused("cannot be represented")
        if signal.output is not None:
            raise node.refused("follows the sigmoid or softmax, which must be the end")
        return RULES[node.op](node, signal)

    def _classifier(self, name: str) -> Network:
        names = [value.name for value in self._graph.output]
        if len(names) != 1:
            raise UnsupportedError(f"its graph has {len(names)} outputs ({', '.join(names)}), a classifier has one")
        end = self._values.get(names[0])
        if not isinstance(end, Signal):
            raise ModelFileError(f"its output {names[0]!r} does not come from its input")
        return chain.classifier(end.layers, end.output, end.order.reshape(-1), name)


def opset_of(model: Any) -> int:
    """Return the version of ONNX's own operations that the model uses. Raises ModelFileError, UnsupportedError."""
    from onnx import defs

    versions = [int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    newest = defs.onnx_opset_version()
    if len(versions) != 1:
        raise ModelFileError("it does not say which version of ONNX's operations it uses")
    if not OLDEST_OPSET <= versions[0] <= newest:
        raise UnsupportedError(f"it uses opset {versions[0]}, opsets {OLDEST_OPSET} to {newest} are read")
    if any(function.domain in ("", "ai.onnx") for function in model.functions):
        raise UnsupportedError("it gives ONNX's own operations another meaning, by functions of the same domain")
    return versions[0]


def graph_input(graph: Any, constants: Collection[str]) -> tuple[str, IntArray, int]:
    """Return the name of the one input that is no constant, the places of its values in its shape, and its bits.

    Raises    UnsupportedError
    """
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise UnsupportedError(f"its graph has {len(inputs)} inputs ({names}), a classifier has one")
    (value,) = inputs
    tensor = value.type.tensor_type
    if tensor.elem_type not in FLOAT_BITS:
        raise UnsupportedError(f"input {value.name!r} is of type {tensor.elem_type}, only floats are read")
    if not tensor.HasField("shape") or not tensor.shape.dim:
        raise UnsupportedError(f"input {value.name!r} has no shape: export the model with its input's sizes")
    sizes = [int(size.dim_value) if size.HasField("dim_value") else 0 for size in tensor.shape.dim]
    if len(sizes) > 1 and sizes[0] <= 0:
        sizes[0] = 1
    if any(size <= 0 for size in sizes) or (len(sizes) > 1 and sizes[0] != 1):
        shown = [size if size > 0 else "free" for size in sizes]
        raise UnsupportedError(f"input {value.name!r} has shape {shown}: only the first size may be free, or is 1")
    count = math.prod(sizes)
    check_values(count, f"input {value.name!r}")
    return value.name, np.arange(count, dtype=np.int64).reshape(sizes), FLOAT_BITS[tensor.elem_type]


def named(proto: Any, opset: int, allowance: Allowance) -> Node:
    """Return a node without its inputs."""
    return Node(proto.op_type, proto.name or (proto.output[0] if proto.output else ""), [], {}, opset, allowance)


def fill(node: Node, proto: Any, values: Mapping[str, Any], tensors: TensorReader) -> None:
    """Give a node its inputs, by name among the values so far, and its attributes. Raises ModelFileError, UnsupportedError."""
    from onnx import AttributeProto, helper

    for source in proto.input:
        if source and source not in values:
            raise ModelFileError(
                f"node {node.name!r} ({node.op}) takes {source!r}, which nothing before it gives:"
                " the graph has a cycle, is not in order, or lacks a part"
            )
        node.inputs.append(values[source] if source else None)
    for attribute in proto.attribute:
        if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            raise node.refused("has a graph of its own, which cannot be represented")
        if attribute.type == AttributeProto.TENSOR:
            node.attributes[attribute.name] = tensors.array(attribute.t)
        else:
            node.attributes[attribute.name] = helper.get_attribute_value(attribute)
    node.outputs = [output for output in proto.output if output]
