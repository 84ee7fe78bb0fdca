"""Binarized networks in ONNX: QONNX's BipolarQuant, and plain ONNX with `Sign, Add c, Sign` for a sign without 0.

The graph is walked once, in the file's order, as `qrobust.formats.onnx` does: a value is an array of constants, or the signal
with the place of each of its entries. The file does not say which inputs there are: the reader is told the grid.

What differs from the file, and all that does:

- Weights -s, 0, s of a channel become signs and a scale; scaling and shifts by constants are folded where float64 is exact.
- Scaling and shifts of all scores by one positive number and one shift, and a softmax, are left out: they change no label.
- Where images are transposed before the first convolution, inputs lie in the order after it; `order` says where each was.

Source    QONNX's documentation of BipolarQuant (x >= 0 gives +scale)
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.binarized.formats.parts import Chain, ReadNetwork, split
from qrobust.binarized.network import BatchNorm, Grid
from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.files import read_bytes
from qrobust.formats.onnx_constants import CONSTANTS, LAYOUTS
from qrobust.formats.onnx_node import FLOAT_BITS, Node, Signal, check_values, image_shape
from qrobust.formats.onnx_tensors import Array, TensorReader
from qrobust.formats.untrusted import Allowance, parsing
from qrobust.formats.wire import onnx_model
from qrobust.interval import FloatArray
from qrobust.layers import Activation, Conv2d, Dense, IntArray

OWN_DOMAINS = ("", "ai.onnx")
BIPOLAR_DOMAINS = ("onnx.brevitas", "qonnx.custom_op.general", "finn.custom_op.general")
MOST_NODES = 4096
MOST_PACKED = 2**30


def read_onnx(path: Path | str, grid: Grid) -> ReadNetwork:
    """Read a binarized network from an .onnx file, or from one packed as .onnx.gz.

    Raises    ModelFileError, UnsupportedError, BackendUnavailableError
    """
    content = unpacked(path)
    with parsing(path, ".onnx"):
        name = Path(path).name.removesuffix(".gz").removesuffix(".onnx")
        return _Reader(onnx_model(content), Path(path).parent).read(grid, name)


def unpacked(path: Path | str) -> bytes:
    """Return a file's content, unpacked if its name ends in .gz. Raises ModelFileError (damaged, or more than is read)."""
    content = read_bytes(path)
    if not str(path).lower().endswith(".gz"):
        return content
    with parsing(path, ".gz"):
        unpacker = zlib.decompressobj(31)
        found = unpacker.decompress(content, MOST_PACKED)
        if not unpacker.eof:
            raise ModelFileError(f"it is cut short, or unpacks to more than {MOST_PACKED:,} bytes")
        return found


@dataclass(frozen=True, eq=False)
class _Link:
    """What the signal is: the chain, half of a sign (`raw`: a sign that may be 0, with what was added), scores that end."""

    chain: Chain
    raw: FloatArray | None = None
    waiting: tuple[tuple[str, FloatArray], ...] = ()


class _Reader:
    """The values that the nodes so far have given, by name, and the links that the signals stand for."""

    def __init__(self, model: Any, folder: Path) -> None:
        self._graph = model.graph
        self._opset = max([int(e.version) for e in model.opset_import if e.domain in OWN_DOMAINS], default=0)
        self._allowance = Allowance()
        self._tensors = TensorReader(folder, self._allowance)
        self._values: dict[str, Any] = {}
        self._links: dict[str, _Link] = {}
        self._order = np.zeros(0, dtype=np.int64)

    def read(self, grid: Grid, name: str) -> ReadNetwork:
        graph = self._graph
        if not graph.node or len(graph.output) != 1 or len(graph.node) > MOST_NODES:
            raise ModelFileError(f"its graph has {len(graph.node):,} nodes and {len(graph.output)} outputs, not a network's")
        if self._opset < 7:
            raise UnsupportedError(f"it uses opset {self._opset}, opsets from 7 on are read")
        for tensor in graph.initializer:
            self._values[tensor.name] = self._tensors.array(tensor)
        self._input()
        for proto in graph.node:
            self._run(proto)
        end = self._links.get(graph.output[0].name)
        if end is None:
            raise ModelFileError(f"its output {graph.output[0].name!r} does not come from its input")
        signal = self._values[graph.output[0].name]
        if end.raw is not None:
            raise UnsupportedError("it ends in a sign: the last layer must give scores")
        if not np.array_equal(signal.order.reshape(-1), np.arange(signal.order.size)):
            raise UnsupportedError("its scores are moved to other places, which is not read")
        return ReadNetwork(_settled(end, scores=True).network(grid, name), self._order)

    def _input(self) -> None:
        inputs = [value for value in self._graph.input if value.name not in self._values]
        if len(inputs) != 1:
            raise UnsupportedError(f"its graph has {len(inputs)} inputs, a classifier has one")
        tensor = inputs[0].type.tensor_type
        sizes = [int(size.dim_value) if size.HasField("dim_value") else 1 for size in tensor.shape.dim]
        if tensor.elem_type not in FLOAT_BITS or not sizes or any(size <= 0 for size in sizes[1:]):
            raise UnsupportedError(f"input {inputs[0].name!r} is no float tensor of known sizes")
        count = math.prod(sizes[1:]) * max(1, sizes[0])
        check_values(count, f"input {inputs[0].name!r}")
        order = np.arange(count, dtype=np.int64).reshape([max(1, sizes[0]), *sizes[1:]])
        self._order = order.reshape(-1)
        self._values[inputs[0].name] = Signal(order, (), FLOAT_BITS[tensor.elem_type])
        self._links[inputs[0].name] = _Link(Chain(count))

    def _run(self, proto: Any) -> None:
        node, sources = self._node(proto), [name for name in proto.input if name in self._links]
        if len(sources) > 1:
            raise node.refused("joins two values that come from the input, only chains of layers are read")
        if not node.outputs:
            raise ModelFileError(f"node {node.name!r} ({node.op}) gives nothing")
        try:
            if not sources or node.op == "Shape":
                self._values[node.outputs[0]] = _constant(node)
                return
            signal, link = self._values[sources[0]], self._links[sources[0]]
            if node.op in LAYOUTS:
                self._allowance.take(signal.order.size, f"node {node.name!r}")
                signal = replace(signal, order=LAYOUTS[node.op](signal.order, node))
            elif node.op in RULES:
                signal, link = RULES[node.op](self, node, signal, link)
            else:
                raise node.refused("is not read in a binarized network")
        except UnsupportedError as error:
            raise error if str(error).startswith("node ") else node.refused(str(error)) from None
        self._values[node.outputs[0]], self._links[node.outputs[0]] = signal, link

    def _node(self, proto: Any) -> Node:
        from onnx import AttributeProto, helper

        name = proto.name or (proto.output[0] if proto.output else "")
        node = Node(proto.op_type, name, [], {}, self._opset, self._allowance)
        wanted = BIPOLAR_DOMAINS if proto.op_type == "BipolarQuant" else OWN_DOMAINS
        if proto.domain not in wanted:
            raise node.refused(f"of domain {proto.domain!r} is not read")
        for source in proto.input:
            if source and source not in self._values:
                raise ModelFileError(f"node {name!r} ({proto.op_type}) takes {source!r}, which nothing before it gives")
            node.inputs.append(self._values[source] if source else None)
        for attribute in proto.attribute:
            if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                raise node.refused("has a graph of its own, which is not read")
            is_tensor = attribute.type == AttributeProto.TENSOR
            value = self._tensors.array(attribute.t) if is_tensor else helper.get_attribute_value(attribute)
            node.attributes[attribute.name] = value
        node.outputs = [output for output in proto.output if output]
        return node

    def place_input(self, order: IntArray) -> None:
        """Say that the network's inputs lie in the order of a tensor."""
        self._order = order.reshape(-1)


def _constant(node: Node) -> Array:
    if node.op == "BipolarQuant":
        values, scale = node.numbers(0), node.numbers(1)
        return np.asarray(np.where(values >= 0, scale, -scale))
    if node.op == "Pow":
        with np.errstate(all="ignore"):
            return np.asarray(node.numbers(0) ** node.numbers(1))
    if node.op in LAYOUTS:
        return LAYOUTS[node.op](node.constant(0), node)
    if node.op not in CONSTANTS:
        raise node.refused("of constants is not computed here: export the model with constants folded")
    return CONSTANTS[node.op](node)


def _settled(link: _Link, *, scores: bool = False) -> Chain:
    """Return the chain with all scaling done; of scores, what moves all alike is left out. Raises UnsupportedError."""
    chain, waiting = link.chain, list(link.waiting)
    while scores and waiting:
        how, values = waiting[-1]
        if len(set(values.tolist())) > 1 or (how == "times" and not values[0] > 0):
            break
        waiting.pop()
    for how, values in waiting:
        chain = chain.times(values) if how == "times" else chain.plus(values)
    return chain


def _per_channel(chain: Chain, order: IntArray, constant: FloatArray) -> FloatArray:
    """Return a constant that is added or multiplied as one number a channel. Raises UnsupportedError."""
    values = np.empty(order.size)
    if np.broadcast_shapes(constant.shape, order.shape) != order.shape:
        raise UnsupportedError(f"has a constant of shape {constant.shape}, which does not fit {order.shape}")
    values[order.reshape(-1)] = np.broadcast_to(constant, order.shape).reshape(-1)
    if not np.isfinite(values).all():
        raise ModelFileError("a constant is not finite")
    channels = order.size if chain.layer is None else len(chain.layer.bias)
    rows = values.reshape(channels, -1)
    if (rows != rows[:, :1]).any():
        raise UnsupportedError("has another constant for each place of a channel, which is not read")
    return rows[:, 0]


Step = tuple[Signal, _Link]


def _matmul(reader: _Reader, node: Node, signal: Signal, link: _Link) -> Step:
    weight = node.numbers(1)
    if node.op == "Gemm":
        node.check("alpha", 1.0)
        node.check("beta", 1.0)
        node.check("transA", 0)
        weight = weight.T if node.integer("transB", 0) else weight
    if weight.ndim != 2 or weight.shape[0] != signal.order.size:
        raise UnsupportedError(f"has weights of shape {weight.shape} for {signal.order.size} values")
    rows = np.empty((weight.shape[1], weight.shape[0]))
    rows[:, signal.order.reshape(-1)] = weight.T
    bias = node.numbers(2).reshape(-1) if node.has(2) else np.zeros(len(rows))
    signs, scale = split(rows)
    chain = _settled(_closed(link)).linear(Dense(signs, bias), scale)
    return Signal(np.arange(len(rows), dtype=np.int64)[None], (), signal.bits), _Link(chain)


def _conv(reader: _Reader, node: Node, signal: Signal, link: _Link) -> Step:
    node.check("group", 1)
    node.check("dilations", [1, 1])
    node.check("auto_pad", b"NOTSET", b"VALID")
    shape, weight = image_shape(signal.order), node.numbers(1)
    chain = _settled(_closed(link))
    if not signal.in_order:
        if chain.blocks or chain.has_begun:
            raise UnsupportedError("takes values in another order than channel by channel")
        reader.place_input(signal.order)
    bias = node.numbers(2) if node.has(2) else np.zeros(len(weight))
    stride, pads = node.attributes.get("strides", [1, 1]), node.attributes.get("pads", [0, 0, 0, 0])
    signs, scale = split(weight)
    layer = Conv2d(signs, bias, Activation.LINEAR, shape, tuple(stride), tuple(pads))
    order = np.arange(layer.outputs, dtype=np.int64).reshape((1, *layer.output_shape))
    return Signal(order, (), signal.bits), _Link(chain.linear(layer, scale))


def _closed(link: _Link) -> _Link:
    """Return a link that is no half of a sign. Raises UnsupportedError."""
    if link.raw is not None:
        raise UnsupportedError("takes a sign that may be 0: write Sign, Add c, Sign, which is +1 or -1")
    return link


def _shifted(how: str) -> Callable[[_Reader, Node, Signal, _Link], Step]:
    def rule(reader: _Reader, node: Node, signal: Signal, link: _Link) -> Step:
        first = isinstance(node.inputs[0], Signal)
        if not first and how in ("Sub", "Div"):
            raise UnsupportedError("takes the signal as its second input, which is not read")
        constant = node.numbers(1 if first else 0)
        values = _per_channel(link.chain, signal.order, constant)
        if link.raw is not None:
            if how not in ("Add", "Sub"):
                raise UnsupportedError("scales a sign that may be 0")
            return signal, replace(link, raw=link.raw + (values if how == "Add" else -values))
        if how == "Div":
            if not values.all():
                raise ModelFileError("divides by 0")
            return signal, replace(link, waiting=(*link.waiting, ("times", 1 / values)))
        entry = ("times", values) if how == "Mul" else ("plus", values if how == "Add" else -values)
        return signal, replace(link, waiting=(*link.waiting, entry))

    return rule


def _batch_norm(reader: _Reader, node: Node, signal: Signal, link: _Link) -> Step:
    node.check("training_mode", 0)
    chain = _settled(_closed(link))
    gamma, beta, mean, variance = (node.numbers(index) for index in range(1, 5))
    norm = BatchNorm(gamma, beta, mean, variance, float(node.attributes.get("epsilon", 1e-5)))
    return signal, _Link(chain.normalized(norm))


def _sign(reader: _Reader, node: Node, signal: Signal, link: _Link) -> Step:
    if link.raw is None:
        chain = _settled(link)
        return signal, _Link(chain, raw=np.zeros(1))
    if not ((link.raw > 0) & (link.raw < 1)).all():
        raise UnsupportedError("follows a sign whose 0 does not become +1: add a number between 0 and 1 before it")
    return signal, _Link(link.chain.signed())


def _bipolar(reader: _Reader, node: Node, signal: Signal, link: _Link) -> Step:
    scale = node.numbers(1)
    if scale.size != 1 or not scale.reshape(-1)[0] > 0:
        raise UnsupportedError("has scales that are not one positive number")
    return signal, _Link(_settled(_closed(link)).signed(float(scale.reshape(-1)[0])))


def _softmax(reader: _Reader, node: Node, signal: Signal, link: _Link) -> Step:
    return signal, _closed(link)


RULES: dict[str, Callable[[_Reader, Node, Signal, _Link], Step]] = {
    "MatMul": _matmul,
    "Gemm": _matmul,
    "Conv": _conv,
    "Mul": _shifted("Mul"),
    "Div": _shifted("Div"),
    "Add": _shifted("Add"),
    "Sub": _shifted("Sub"),
    "BatchNormalization": _batch_norm,
    "Sign": _sign,
    "BipolarQuant": _bipolar,
    "Softmax": _softmax,
}
