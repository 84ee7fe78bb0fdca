"""Damaged and hostile ONNX files: one line, little time, little memory, nothing read from outside the folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, load_model_from_string

from qrobust import formats
from tests.conftest import ROOT
from tests.damage import flipped, refusal, survives
from tests.onnx_graphs import Graph, image_graph, numbers


def plain(seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    graph = Graph((1, 4)).add("Gemm", numbers(rng, 4, 5), numbers(rng, 5)).add("Relu")
    return graph.add("Gemm", numbers(rng, 5, 3), numbers(rng, 3)).add("Softmax", axis=1)


def edited(edit: Callable[[Any], object]) -> bytes:
    """The content of a plain model after an edit of its protobuf."""
    model = plain().model()
    edit(model)
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.5, 0.8, 0.95, 0.999])
def test_a_file_cut_short_is_refused(share: float, tmp_path: Path) -> None:
    content = plain().content()
    refusal(tmp_path / "m.onnx", content[: int(share * len(content)) or 1])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("images", [False, True])
def test_no_flipped_byte_gives_a_traceback(images: bool, seed: int, tmp_path: Path) -> None:
    content = image_graph(np.random.default_rng(seed)).content() if images else plain().content()
    read = 0
    started = time.monotonic()
    for number in range(150):
        read += survives(tmp_path / "m.onnx", flipped(content, 1000 * seed + number))
    assert read < 150
    assert time.monotonic() - started < 60
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def swapped(model: Any) -> None:
    model.graph.node[0].input[0] = "v1"  # the first node takes what the second gives: a cycle


def self_loop(model: Any) -> None:
    model.graph.node[0].input[0] = "v0"


def raw(model: Any, **settings: Any) -> None:
    for name, value in settings.items():
        if name == "dims":
            del model.graph.initializer[0].dims[:]
            model.graph.initializer[0].dims.extend(value)
        else:
            setattr(model.graph.initializer[0], name, value)


def sparse(model: Any) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2**40]))


def override(model: Any) -> None:
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("", "Relu", ["a"], ["b"], [node], [helper.make_opsetid("", 13)]))


def sizes(*values: int) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        dims = model.graph.input[0].type.tensor_type.shape.dim
        del dims[:]
        for value in values:
            dims.add().dim_value = value

    return edit


DAMAGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "cycle": (swapped, "takes 'v1', which nothing before it gives: the graph has a cycle"),
    "self loop": (self_loop, "takes 'v0', which nothing before it gives"),
    "lost weights": (lambda m: m.graph.initializer.pop(0), "takes 'c0', which nothing before it gives"),
    "two of one name": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "two things are called 'c0'"),
    "value given twice": (lambda m: m.graph.node[1].output.__setitem__(0, "v0"), "two things are called 'v0'"),
    "no nodes": (lambda m: m.graph.ClearField("node"), "it has no graph"),
    "no graph": (lambda m: m.ClearField("graph"), "it has no graph"),
    "no opset": (lambda m: m.ClearField("opset_import"), "which version of ONNX's operations"),
    "no output": (lambda m: m.graph.ClearField("output"), "it has no graph"),
    "unknown output": (lambda m: setattr(m.graph.output[0], "name", "y"), "'y' does not come from its input"),
    "constant output": (lambda m: setattr(m.graph.output[0], "name", "c0"), "'c0' does not come from its input"),
    "two outputs": (lambda m: m.graph.output.append(m.graph.output[0]), "has 2 outputs"),
    "two inputs": (lambda m: m.graph.input.append(helper.make_tensor_value_info("z", 1, [1])), "has 2 inputs (x, z)"),
    "no input": (lambda m: m.graph.ClearField("input"), "has 0 inputs"),
    "no shape": (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "'x' has no shape"),
    "input of text": (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 8), "of type 8, only floats"),
    "absurd input": (sizes(1, 2**40), "has 1,099,511,627,776 values"),
    "negative input": (sizes(1, -4), "only the first size may be free"),
    "other input": (sizes(1, 5), "takes a tensor of shape (1, 5), its weights take vectors of 4"),
    "no bytes": (lambda m: raw(m, raw_data=b""), "has 0 bytes for 20 values"),
    "too few bytes": (lambda m: raw(m, raw_data=b"\0" * 12), "m.onnx"),
    "absurd tensor": (lambda m: raw(m, dims=[2**40, 2**40]), "all arrays of a file at most"),
    "negative tensor": (lambda m: raw(m, dims=[-4, -5]), "has the shape [-4, -5]"),
    "other type": (lambda m: raw(m, data_type=TensorProto.INT32), "takes int32 as its input 2, only floats"),
    "text": (lambda m: raw(m, data_type=TensorProto.STRING), "m.onnx"),
    "complex": (lambda m: raw(m, data_type=TensorProto.COMPLEX64), "holds complex64, only real numbers"),
    "no type": (lambda m: raw(m, data_type=99), "is of type 99, which does not exist"),
    "NaN": (lambda m: raw(m, raw_data=np.full(20, np.nan, np.float32).tobytes()), "m.onnx"),
    "infinite": (lambda m: raw(m, raw_data=np.full(20, np.inf, np.float32).tobytes()), "NaN or infinite weights"),
    "own relu": (override, "gives ONNX's own operations another meaning"),
    "sparse": (sparse, "sparse initializers cannot be read"),
    "line break": (lambda m: setattr(m.graph.node[0], "op_type", "A\nB"), "cannot be represented"),
    "nothing given": (lambda m: m.graph.node[1].ClearField("output"), "gives nothing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_graph_is_refused(damage: str, tmp_path: Path) -> None:
    edit, message = DAMAGES[damage]
    assert message in refusal(tmp_path / "m.onnx", edited(edit))


def external(model: Any, location: str, offset: int = 0, length: int | None = 80) -> None:
    """Let the first tensor (20 numbers of 32 bits) lie in a file of its own."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    settings = {"location": location, "offset": str(offset)} | ({} if length is None else {"length": str(length)})
    for key, value in settings.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def test_external_data_are_read_from_the_folder(tmp_path: Path) -> None:
    stored = load_model_from_string(plain().content()).graph.initializer[0].raw_data
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.bin").write_bytes(b"\1" * 8 + stored)
    content = edited(lambda model: external(model, "weights/w.bin", 8))
    (tmp_path / "m.onnx").write_bytes(content)
    (tmp_path / "n.onnx").write_bytes(plain().content())
    assert formats.load(tmp_path / "m.onnx") == formats.load(tmp_path / "n.onnx")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../secret.bin", "outside the model's folder"),
        ("/etc/passwd", "outside the model's folder"),
        ("a/../../secret.bin", "outside the model's folder"),
        ("link.bin", "outside the model's folder"),
        ("", "outside the model's folder"),
        (".", "which is not there"),
        ("missing.bin", "which is not there"),
        ("pipe", "which is not there"),
        ("short.bin", "needs 80 bytes of 'short.bin' from byte 0"),
    ],
)
def test_external_data_never_come_from_elsewhere(location: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\0" * 80)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "short.bin").write_bytes(b"\0" * 79)
    os.mkfifo(folder / "pipe")
    content = edited(lambda model: external(model, location))
    assert message in refusal(folder / "m.onnx", content)


@pytest.mark.parametrize(("offset", "length"), [(-1, 80), (8, 80), (0, 2**50), (0, 4), (2**62, None)])
def test_external_data_of_other_sizes_are_refused(offset: int, length: int | None, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 80)
    content = edited(lambda model: external(model, "w.bin", offset, length))
    assert "which are not there" in refusal(tmp_path / "m.onnx", content)


def varint(value: int) -> bytes:
    result = b""
    while value > 127:
        result += bytes([value & 127 | 128])
        value >>= 7
    return result + bytes([value])


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def empty_nodes() -> bytes:
    return message(7, message(1, b"") * 20_000_000)


def empty_functions() -> bytes:
    """Submessages of a kind that the walk does not know."""
    return message(25, message(7, b"") * 20_000_000)


def nested_graphs() -> bytes:
    inner = b""
    for _ in range(5000):
        inner = message(1, message(5, message(6, inner)))
    return message(7, inner)


def shared_weights() -> bytes:
    """One matrix of 16 MB, taken by a thousand layers."""
    graph = Graph((1, 2000))
    weight = graph.constant(np.zeros((2000, 2000), dtype=np.float32))
    for _ in range(1000):
        graph.add("MatMul", weight)
    return graph.content()


def copied_places() -> bytes:
    graph = Graph((1, 4, 1000, 1000))
    for _ in range(2000):
        graph.add("Transpose", perm=[0, 2, 3, 1]).add("Reshape", np.array([1, 4, 1000, 1000]))
    return graph.content()


def far_padding() -> bytes:
    return Graph((1, 1, 8, 8)).add("Conv", np.ones((1, 1, 2, 2), np.float32), pads=[2**30] * 4).content()


def growing_constants() -> bytes:
    graph = Graph((1, 4))
    graph.last = graph.constant(np.ones(1000, np.float32))
    for _ in range(40):
        last = graph.last
        graph.add("Concat", last, axis=0)
    return graph.content()


BOMBS = (empty_nodes, empty_functions, nested_graphs, shared_weights, copied_places, far_padding, growing_constants)
MEMORY = 6 * 2**30  # address space, most of which libraries map and never touch
LIMITED = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
from qrobust import formats
from qrobust.errors import QRobustError
started = time.monotonic()
try:
    formats.load(sys.argv[1])
except QRobustError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, time.monotonic() - started)
"""


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: str(bomb.__name__))
def test_a_bomb_takes_little_memory_and_time(bomb: Callable[[], bytes], tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(bomb())
    script = LIMITED.format(memory=MEMORY)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m.onnx")], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    line, spent = done.stdout.splitlines()
    assert "m.onnx" in line
    assert "allocate" not in line.lower()
    megabytes, seconds = spent.split()
    assert int(megabytes) < 2000
    assert float(seconds) < 30
