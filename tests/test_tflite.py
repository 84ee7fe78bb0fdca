"""`.tflite` files: what is read is what the file stores, the rest is refused in one line, and a damaged file costs nothing."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from qrobust import formats
from qrobust.errors import ModelFileError, QRobustError, UnsupportedError
from qrobust.formats.flatbuffer import Table
from qrobust.formats.tflite import TensorSummary, is_program, tensors
from qrobust.formats.tflite_file import read_content
from qrobust.integer.program import Affine, Bounds, Elementwise, Function, Pool, Softmax
from qrobust.network import Activation, Conv2d, Dense, Output
from tests.damage import flipped
from tests.litert import FILES

ALL = sorted(FILES.glob("*.tflite"))
SMALL = ("binary_float", "classes_int8", "convolution_fp16", "pooling_int16")
MOST_SECONDS, MOST_BYTES = 5.0, 400e6


def outcome(path: Path, content: bytes) -> str:
    """Read a file both ways; return "read", or the one line of an error of ours."""
    path.write_bytes(content)
    for reader in (formats.load, formats.load_program):
        try:
            reader(path)
        except QRobustError as error:
            line = str(error)
            assert "\n" not in line
            assert path.name in line
        else:
            return "read"
    return line


def test_the_files_are_all_there() -> None:
    assert len(ALL) == 31
    assert sum(path.stat().st_size for path in ALL) < 400_000


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_file_is_a_network_or_a_program(path: Path) -> None:
    program = any(kind in path.stem for kind in ("int8", "int16", "uint8"))
    assert is_program(path) is program
    if program:
        with pytest.raises(UnsupportedError, match=r"holds an integer program.*qrobust compare"):
            formats.load(path)
        assert formats.load_program(path).name == path.stem
    else:
        with pytest.raises(UnsupportedError, match="stays in float"):
            formats.load_program(path)


def test_weights_of_float_files_are_those_stored() -> None:
    network = formats.load(FILES / "binary_float.tflite")
    stored = {t.name: t for t in read_content(FILES / "binary_float.tflite").tensors if t.is_constant}
    matrices = [t.values for t in stored.values() if len(t.shape) == 2]
    assert any(np.array_equal(network.layers[0].weight, m) for m in matrices)
    assert network.output is Output.SIGMOID
    assert [layer.activation for layer in network.layers] == [Activation.RELU, Activation.LINEAR]


def test_float16_weights_are_read_exactly() -> None:
    network = formats.load(FILES / "wide_fp16.tflite")
    assert network.name == "wide_fp16 (fp16 weights)"
    exact = formats.load(FILES / "wide_float.tflite")
    for layer, twin in zip(network.layers, exact.layers, strict=True):
        np.testing.assert_array_equal(layer.weight, twin.weight.astype(np.float16).astype(np.float64))
        np.testing.assert_array_equal(layer.bias, twin.bias.astype(np.float16).astype(np.float64))


def test_dynamic_range_weights_are_scale_times_integer() -> None:
    path = FILES / "wide_dynamic.tflite"
    network, float_twin = formats.load(path), formats.load(FILES / "wide_float.tflite")
    assert network.name == "wide_dynamic (int8 weights, dynamic range)"
    steps = np.abs(float_twin.layers[0].weight).max(axis=1) / 127
    assert (np.abs(network.layers[0].weight - float_twin.layers[0].weight) <= 0.51 * steps[:, None]).all()
    units = network.layers[0].weight / steps[:, None]
    np.testing.assert_allclose(units, np.rint(units), atol=1e-4)
    np.testing.assert_array_equal(network.layers[1].weight, float_twin.layers[1].weight)  # under 1,024: left in float


def test_what_is_quantized_at_all_is_told() -> None:
    stored = [t for t in tensors(FILES / "wide_dynamic.tflite") if t.stored and len(t.shape) == 2]
    assert {t.shape: (t.kind, t.scales is not None) for t in stored} == {
        (40, 70): ("int8", True),
        (9, 40): ("float32", False),
        (5, 9): ("float32", False),
    }
    assert str(TensorSummary("w", "int8", (4, 3), (0.25, 0.5), None, True)) == "w: int8 4x3, steps 0.25 to 0.5"
    assert str(TensorSummary("x", "int8", (1, 3), (0.5, 0.5), (-64, 63.5), False)) == "x: int8 1x3, step 0.5, holds -64 to 63.5"


def test_a_depthwise_convolution_is_a_full_one_with_zeros() -> None:
    first, second, *_ = formats.load(FILES / "convolution_float.tflite").layers
    assert isinstance(first, Conv2d)
    assert isinstance(second, Conv2d)
    assert (first.padding, second.padding, second.stride) == ((1, 1, 1, 1), (0, 0, 1, 1), (2, 2))
    assert second.weight.shape == (8, 4, 3, 3)
    used = second.weight.any(axis=(2, 3))
    np.testing.assert_array_equal(used, np.repeat(np.eye(4, dtype=bool), 2, axis=0))
    assert second.activation is Activation.RELU


def test_operations_of_a_program() -> None:
    convolution, pool, _, _, dense, logistic = formats.load_program(FILES / "pooling_int8.tflite").operations
    assert isinstance(convolution, Affine)
    assert not convolution.exactly
    assert convolution.bounds == Bounds(convolution.output.zero_point)
    assert convolution.scales.shape == (5,)
    assert isinstance(pool, Pool)
    assert isinstance(dense, Affine)
    assert dense.exactly
    assert isinstance(logistic, Elementwise)
    assert logistic.function is Function.LOGISTIC
    relu6, _, softmax = formats.load_program(FILES / "classes_int8.tflite").operations
    assert isinstance(relu6, Affine)
    assert relu6.bounds.upper is not None
    assert isinstance(softmax, Softmax)
    wide = formats.load_program(FILES / "wide_int16.tflite").operations[0]
    assert isinstance(wide, Affine)
    assert wide.wide


def test_what_a_network_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"classes_float.*FULLY_CONNECTED has the activation relu6"):
        formats.load(FILES / "classes_float.tflite")


def patched(content: bytes, edit: tuple[int, int]) -> bytes:
    """Replace the builtin code of every operator of one kind by another."""
    changed = bytearray(content)
    for code in Table.root(content, b"TFL3").tables(1):
        for field, kind in ((0, "<b"), (3, "<i")):
            place = code._field(field)
            if place is not None and code.number(field, kind) == edit[0]:
                struct.pack_into(kind, changed, place, edit[1])
    return bytes(changed)


@pytest.mark.parametrize(
    ("stem", "edit", "words"),
    [
        ("binary_float", (14, 15), "operator number 15 cannot be represented"),
        ("binary_float", (14, 18), "operator MUL cannot be represented"),
        ("binary_int8", (14, 40), "operator MEAN of integers is not read"),
        ("binary_int8", (14, 28), "TFLite fixes scale and zero point"),
        ("pooling_int8", (17, 32), "operator CUSTOM"),
    ],
)
def test_unknown_operators_are_refused_by_name(stem: str, edit: tuple[int, int], words: str, tmp_path: Path) -> None:
    content = patched((FILES / f"{stem}.tflite").read_bytes(), edit)
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(UnsupportedError, match=words):
        (formats.load if "float" in stem else formats.load_program)(path)


@pytest.mark.parametrize(
    "content", [b"", b"TFL3", b"\x00" * 64, b"\xff" * 64, b"\x1c\0\0\0TFL3", b"\x08\0\0\0TFL3" + b"\xff" * 40]
)
def test_what_is_no_file_of_this_kind(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"model\.tflite"):
        formats.load(path)


@pytest.mark.parametrize("stem", SMALL)
def test_truncated_files(stem: str, tmp_path: Path) -> None:
    content = (FILES / f"{stem}.tflite").read_bytes()
    read = [outcome(tmp_path / "model.tflite", content[:size]) == "read" for size in range(1, len(content) - 64, 23)]
    assert len(read) > 60
    assert sum(read) < len(read) / 4  # a file may end in bytes that nothing refers to


@pytest.mark.parametrize("stem", SMALL)
def test_files_with_flipped_bytes(stem: str, tmp_path: Path) -> None:
    """Read or refused in one line, in little time and memory, whatever bytes are changed."""
    content = (FILES / f"{stem}.tflite").read_bytes()
    started = time.monotonic()
    tracemalloc.start()
    outcomes = [outcome(tmp_path / "model.tflite", flipped(content, seed)) for seed in range(300)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - started < 12 * MOST_SECONDS
    assert peak < MOST_BYTES
    assert 0 < outcomes.count("read") < 300


@pytest.mark.parametrize("sizes", [(1, 2**30), (1, -5), (0, 2), (2, 2), (1, 1, 1, 1)])
def test_absurd_shapes(sizes: tuple[int, ...], tmp_path: Path) -> None:
    """The input's declared shape is overwritten."""
    content = (FILES / "binary_int8.tflite").read_bytes()
    graph = Table.root(content, b"TFL3").tables(2)[0]
    place = graph.tables(0)[int(graph.vector(1, "<i4")[0])]._target(0)  # type: ignore[index]
    assert place is not None
    changed = bytearray(content)
    numbers = sizes[:2]
    struct.pack_into("<2i", changed, place + 4, *numbers)
    assert outcome(tmp_path / "model.tflite", bytes(changed)) != "read" or numbers == (1, 1)


def test_windows_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    """A pool of a stride and size that make too many windows, in a file of a few kilobytes."""
    content = (FILES / "pooling_int8.tflite").read_bytes()
    changed = bytearray(content)
    model = Table.root(content, b"TFL3")
    graph = model.tables(2)[0]
    image = graph.tables(0)[int(graph.vector(1, "<i4")[0])]._target(0)  # type: ignore[index]
    assert image is not None
    struct.pack_into("<4i", changed, image + 4, 1, 4000, 4000, 3)
    tracemalloc.start()
    line = outcome(tmp_path / "model.tflite", bytes(changed))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "too many" in line
    assert peak < 1e7


def test_weights_named_many_times_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrobust.formats.tflite.MOST_PARAMETERS", 3000)
    monkeypatch.setattr("qrobust.formats.tflite_program.MOST_PARAMETERS", 3000)
    with pytest.raises(ModelFileError, match="more than 3,000 parameters"):
        formats.load(FILES / "wide_float.tflite")
    with pytest.raises(ModelFileError, match="more than 3,000 weights"):
        formats.load_program(FILES / "wide_int8.tflite")


@pytest.mark.parametrize(("name", "words"), [
    ("flatbuffer.MOST_TABLES", "tables: at most 3"),
    ("tflite_file.MOST_SCALES", "more than 3 scales"),
    ("tflite_file.MOST_SIZES", "4 sizes, at most 3"),
    ("tflite_file.MOST_INDICES", "4 inputs or outputs, at most 3"),
])  # fmt: skip
def test_what_a_small_file_can_name_many_times_is_counted(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"qrobust.formats.{name}", 3)
    with pytest.raises((ModelFileError, UnsupportedError), match=words):
        formats.load_program(FILES / "pooling_int8.tflite")


def test_biases_that_a_kernel_would_read_otherwise_are_refused(tmp_path: Path) -> None:
    """Without the option that says 32 bits, LiteRT's kernel reads the int32 biases as int64."""
    content = (FILES / "classes_int16_bias32.tflite").read_bytes()
    changed = bytearray(content)
    options = Table.root(content, b"TFL3").tables(2)[0].tables(3)[0].table(4)
    assert options is not None
    place = options._field(4)
    assert place is not None
    changed[place] = 0
    path = tmp_path / "model.tflite"
    path.write_bytes(changed)
    with pytest.raises(UnsupportedError, match="are int32, where FULLY_CONNECTED's kernel reads int64"):
        formats.load_program(path)


def test_dense_layers_after_a_flatten_take_channels_first() -> None:
    """The columns of the dense layer are those of TFLite, reordered: (height, width, channel) to (channel, height, width)."""
    network = formats.load(FILES / "convolution_float.tflite")
    last = network.layers[-1]
    assert isinstance(last, Dense)
    content = read_content(FILES / "convolution_float.tflite")
    (stored,) = [t.values for t in content.tensors if t.is_constant and t.shape == (4, 32)]
    for row, column, channel in ((0, 0, 0), (0, 1, 3), (1, 0, 7), (1, 1, 5)):
        theirs = (row * 2 + column) * 8 + channel
        ours = (channel * 2 + row) * 2 + column
        np.testing.assert_array_equal(last.weight[:, ours], stored[:, theirs])
