"""`qrobust compare` of models that scale their inputs with real quantized files, beside what the files' own runtimes give."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, load, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from qrobust.interval import FloatArray
from qrobust.layers import IntArray
from tests.conftest import ROOT
from tests.litert import run_litert
from tests.test_cli import run

DATA = ROOT / "tests/data"
MOST = 255.0
EPS = 0.01


@dataclass(frozen=True)
class Pair:
    """The files, what the float one computes by hand, the program's inputs as integers, and the runtime on these."""

    model: Path
    program: Path
    confidences: Callable[[FloatArray], FloatArray]
    step: float
    zero: int
    runtime: Callable[[IntArray], FloatArray]

    def expected(self, integers: IntArray) -> tuple[FloatArray, FloatArray]:
        """Float confidences of the inputs that the integers mean, and the runtime's. Shapes: integers (points, 2)."""
        return self.confidences(np.asarray((integers - self.zero) * self.step, dtype=np.float64)), self.runtime(integers)


def by_hand(arrays: list[Any]) -> Callable[[FloatArray], FloatArray]:
    first, bias, second, last = (np.asarray(array, dtype=np.float64) for array in arrays)

    def confidences(x: FloatArray) -> FloatArray:
        logits: FloatArray = np.maximum((x / MOST) @ first + bias, 0) @ second + last
        return np.asarray(1 / (1 + np.exp(-logits[:, 0])))

    return confidences


def stored() -> list[Any]:
    """The numbers of the Keras file, by h5py alone."""
    import h5py

    with zipfile.ZipFile(DATA / "scaled_pair.keras") as archive:
        file = h5py.File(BytesIO(archive.read("model.weights.h5")))
    layers = file["layers"]
    return [layers[name]["vars"][place][()] for name in ("dense", "dense_1") for place in ("0", "1")]


def tflite_pair() -> Pair:
    """Keras's Rescaling(1/255) beside TensorFlow's own int8 conversion: tests/data/make_pair.py."""
    from ai_edge_litert.interpreter import Interpreter

    program = DATA / "scaled_pair.tflite"
    step, zero = Interpreter(str(program)).get_input_details()[0]["quantization"]
    size, offset = Interpreter(str(program)).get_output_details()[0]["quantization"]

    def runtime(integers: IntArray) -> FloatArray:
        return np.asarray((run_litert(program, integers.astype(np.int8))[:, 0].astype(np.float64) - offset) * float(size))

    return Pair(DATA / "scaled_pair.keras", program, by_hand(stored()), float(step), int(zero), runtime)


def onnx_model(path: Path, arrays: list[Any], *, divided: bool) -> Path:
    """Write the network: of inputs up to 255 that it divides, or with the division in its weights."""
    first, bias, second, last = arrays
    numbers = {"w1": first if divided else first / np.float32(MOST), "b1": bias, "w2": second, "b2": last}
    if divided:
        numbers["most"] = np.float32(MOST)
    nodes = [helper.make_node("Div", ["x", "most"], ["y"])] if divided else []
    nodes += [
        helper.make_node("Gemm", ["y" if divided else "x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["p"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", 2), ("p", 1))]
    stored = [numpy_helper.from_array(np.asarray(value, dtype=np.float32), name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString())
    return path


class Rows(CalibrationDataReader):  # type: ignore[misc]
    """Inputs to calibrate with."""

    def __init__(self) -> None:
        self.rows = iter(np.random.default_rng(0).uniform(0, MOST, (200, 1, 2)).astype(np.float32))

    def get_next(self) -> Any:
        row = next(self.rows, None)
        return None if row is None else {"x": row}


def onnx_pair(folder: Path) -> Pair:
    """ONNX's Div by 255 beside onnxruntime's own QDQ quantization of the same network, the division in its weights."""
    arrays = stored()
    model = onnx_model(folder / "float.onnx", arrays, divided=True)
    whole = onnx_model(folder / "whole.onnx", arrays, divided=False)
    program = folder / "program.onnx"
    extra = {"ActivationSymmetric": False, "WeightSymmetric": True}
    quantize_static(
        whole,
        program,
        Rows(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options=extra,
    )
    held = {each.name: numpy_helper.to_array(each) for each in load(program).graph.initializer}
    step, zero = (float(held["x_scale"]), int(held["x_zero_point"]))
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])

    def runtime(integers: IntArray) -> FloatArray:
        inputs = ((integers - zero) * np.float32(step)).astype(np.float32)
        return np.asarray(session.run(None, {"x": inputs})[0][:, 0], dtype=np.float64)

    return Pair(model, program, by_hand(arrays), step, zero, runtime)


@pytest.fixture(params=["tflite", "onnx"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    return tflite_pair() if request.param == "tflite" else onnx_pair(tmp_path)


def grid(pair: Pair) -> IntArray:
    """Every integer input, shape (65536, 2)."""
    least = -128 if pair.program.suffix == ".tflite" else 0
    axis = np.arange(least, least + 256)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


def agrees(document: dict[str, Any], before: FloatArray, after: FloatArray) -> None:
    """A document's counts and greatest change are the runtime's; a confidence a hair from 1/2 or from eps decides nothing."""
    changes = np.abs(before - after)
    moved = (before > 0.5) != (after > 0.5)
    assert np.abs(before - 0.5).min() > 1e-9
    assert np.abs(changes - EPS).min() > 1e-9
    assert document["inputs"] == len(before)
    assert document["changed_labels"] == document["violations"]["label"] == int(moved.sum())
    assert document["violations"]["eps"] == int((changes > EPS).sum())
    assert document["ties"] == int((after == 0.5).sum())
    assert document["greatest_change"]["lower"] == pytest.approx(changes.max(), abs=1e-7)
    assert document["greatest_change"]["upper"] == pytest.approx(changes.max(), abs=1e-7)
    expected = {"eps": (changes > EPS).any(), "label": moved.any()}
    assert document["verdicts"] == {name: "VIOLATED" if wrong else "ROBUST" for name, wrong in expected.items()}


def asked(pair: Pair, capsys: pytest.CaptureFixture[str], *where: str) -> tuple[int, dict[str, Any]]:
    command = ("compare", str(pair.model), str(pair.program), "--eps", str(EPS), "--label", *where, "--json")
    code, out, err = run(capsys, *command)
    assert err == ""
    return code, json.loads(out)


def test_every_input(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = asked(pair, capsys, "--enumerate")
    before, after = pair.expected(grid(pair))
    agrees(document, before, after)
    assert document["changed_labels"] > 0
    assert code == 1


def test_every_input_of_a_box(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = asked(pair, capsys, "--enumerate", "--box", "20:60, 100.5:200")
    integers = grid(pair)
    real = (integers - pair.zero) * pair.step
    inside = ((real >= [20, 100.5]) & (real <= [60, 200])).all(axis=1)
    assert 3000 < inside.sum() < 5000
    agrees(document, *pair.expected(integers[inside]))
    assert code == (1 if "VIOLATED" in document["verdicts"].values() else 0)


def test_points(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Points off the program's grid are rounded to it, and cut off at its ends, for the program alone."""
    points = np.random.default_rng(5).uniform(-20, 290, (500, 2))
    rows = tmp_path / "points.csv"
    rows.write_text("a,b\n" + "\n".join(f"{a!r},{b!r}" for a, b in points.tolist()) + "\n")
    code, document = asked(pair, capsys, "--points", str(rows))
    least = -128 if pair.program.suffix == ".tflite" else 0
    unclipped = np.rint(points.astype(np.float32) / np.float32(pair.step)) + pair.zero
    integers = np.clip(unclipped, least, least + 255).astype(np.int64)
    agrees(document, pair.confidences(points), pair.runtime(integers))
    assert document["outside_input_range"] == int((unclipped != integers).any(axis=1).sum()) > 50
    assert code == 1


def test_bounds_over_a_box_hold_what_enumeration_finds(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --enumerate a box is bounded and searched: the same verdicts, and ends around the greatest change."""
    ask = ("compare", str(pair.model), str(pair.program), "--eps", str(EPS), "--label", "--box", "20:60, 100.5:200", "--json")
    swept, every = (json.loads(run(capsys, *ask, *more)[1]) for more in ((), ("--enumerate",)))
    assert swept["verdicts"] == every["verdicts"]
    true = every["greatest_change"]
    assert swept["greatest_change"]["lower"] <= true["upper"]
    assert true["lower"] <= swept["greatest_change"]["upper"]
