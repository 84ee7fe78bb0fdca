"""Do quantize, inspect, --scheme and --copy answer, and meet bad input with one line? Are held counterexamples replayed?"""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import qrobust
from qrobust.check import violation_fault
from qrobust.formats.native import write_native
from qrobust.integer.program import Affine
from qrobust.network import Dense, Network, Output
from qrobust.quantization import Integer, parse_scheme
from tests.test_cli import CAT, IRIS, KERAS, ROOT, refused, run
from tests.test_onnx_program import dense

LABEL_BY_DELTA = ("--label", "--point", "15, 2", "--delta", "0.01")


@pytest.fixture
def copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The int8 copy of the iris network, as the command writes it."""
    path = tmp_path / "copy.json"
    assert run(capsys, "quantize", IRIS, "--scheme", "int8", "--out", str(path), "--quiet") == (0, "", "")
    return str(path)


def test_quantize_writes_the_copy_and_says_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "copy.json"
    code, out, err = run(capsys, "quantize", IRIS, "--scheme", "q2.5-nearest-even-saturate", "--out", str(path))
    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", 6)
    network, copy = qrobust.load(IRIS), qrobust.load(path)
    assert copy == parse_scheme("q2.5").copy(network)
    assert (copy.features, copy.classes) == (network.features, network.classes)
    beyond = int((np.rint(network.layers[0].weight * 32) < -128).sum() + (np.rint(network.layers[0].weight * 32) > 127).sum())
    change = np.abs(copy.layers[0].weight - network.layers[0].weight).max()
    assert lines[0].endswith(f"step 0.03125, changed by at most {change:.6g}, {beyond} beyond the range")
    assert beyond > 0
    assert lines[4] == "  q2.5-nearest-even-saturate quantizes 4 of 4 arrays of parameters"
    assert lines[5].startswith(f"Wrote {path}, network {copy.sha256[:12]}, from {network.sha256[:12]}")


def test_quantize_reads_keras_and_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "copy.json"
    code, out, _ = run(capsys, "quantize", str(KERAS), "--scheme", "int4-per-channel", "--out", str(path), "--json")
    document, copy = json.loads(out), qrobust.load(path)
    assert (code, document["copy"], document["scheme"]) == (0, copy.sha256, "int4-per-channel")
    assert [array["steps"] is None for array in document["arrays"]] == [False, True] * len(copy.layers)


def test_inspect_shows_layers_alone(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", CAT)
    assert code == 0
    assert out.splitlines() == [
        "CAT (paper) (2-1, 3 parameters), sigmoid over female, male, network 0014165cbdba",
        "  layer 1, weights 1x2: 0.0757786 to 1.18118",
        "  layer 1, biases 1: -3.51518 to -3.51518",
    ]


def test_inspect_shows_what_stays_in_float(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "inspect", IRIS, "--scheme", "tflite-dynamic-range")
    assert out.count("; stays in float") == 4
    assert "tflite-dynamic-range quantizes 0 of 4 arrays" in out


@pytest.mark.parametrize(
    ("scheme", "eps", "line"),
    [
        ("int8", "0.001", "eps 0.001 is below the output's own step 1/256 if outputs are stored in int8, too: no difference"),
        ("int8", "1/64", "eps 1/64 is 4 times the output's own step 1/256"),
        ("int16", "0.001", "eps 0.001 is 32.77 times the output's own step 1/32768"),
        ("fp16", "0.001", "eps 0.001 is 2.048 times the output's own step 1/2048"),
        ("q3.4", "0.01", "eps 0.01 is below the output's own step 1/16 if"),
        ("ternary", "0.01", "ternary says nothing about how confidences are stored"),
    ],
)
def test_inspect_compares_eps_with_the_outputs_step(
    scheme: str, eps: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, "inspect", IRIS, "--scheme", scheme, "--eps", eps)
    assert out.splitlines()[-1].startswith(line)


def test_a_quantized_onnx_file_says_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the numbers that the graph was made of, with and without a tolerance."""
    path = tmp_path / "m.onnx"
    path.write_bytes(dense(np.random.default_rng(0)).content())
    program = qrobust.load_program(path)
    first = program.operations[0]
    assert isinstance(first, Affine)
    code, out, _ = run(capsys, "inspect", str(path), "--eps", "0.001")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == f"{path}: {program}"
    low, high = program.input.real(np.array([program.input.least, program.input.greatest])).tolist()
    assert lines[1] == f"  inputs: {program.input}, holding {low:.6g} to {high:.6g}"
    rows, columns = first.weight.shape
    steps = f"steps {first.scales.min():.6g} to {first.scales.max():.6g}"
    assert lines[2].startswith(f"  {first}: weights {rows}x{columns}, {steps}; integer biases, ")
    assert "eps 0.001 is below the output's own step 0.00392157" in lines[-1]
    document = json.loads(run(capsys, "inspect", str(path), "--json")[1])
    assert document["program"] == program.sha256
    assert document["operations"][0]["steps"] == first.scales.tolist()
    assert "with --of, or leave out --scheme" in refused(capsys, "inspect", str(path), "--scheme", "int8")


def test_a_copy_is_inside_its_own_scheme_and_outside_another(copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", copy, "--of", IRIS, "--scheme", "int8")
    assert code == 0
    assert out.splitlines()[-1].startswith(
        "INSIDE: iris, int8 (4-5-3, 43 parameters) lies in the box of every rounding to int8 around iris"
    )
    code, out, _ = run(capsys, "inspect", copy, "--of", IRIS, "--scheme", "int16", "--json")
    found = json.loads(out)["outside"]
    assert code == 1
    original, moved = qrobust.load(IRIS).layers[0].weight, qrobust.load(copy).layers[0].weight
    excess = np.abs(moved - original) - float(np.float32(np.abs(original).max() / 32767)) / 2
    assert (found[0]["layer"], found[0]["what"], found[0]["count"]) == (1, "weights", int((excess > 0).sum()))
    assert found[0]["distance"] == pytest.approx(excess.max())
    assert tuple(found[0]["index"]) == np.unravel_index(excess.argmax(), excess.shape)
    code, out, _ = run(capsys, "inspect", copy, "--of", IRIS, "--scheme", "fp16")
    assert code == 1
    assert "OUTSIDE: iris, int8" in out
    assert "\n  layer 1, weights: " in out


def test_a_question_about_exactly_this_copy(copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The confidences of the model and of its copy at one point, from the floats: eps is their difference."""
    point = np.array([[5.1, 3.5, 1.4, 0.2]])
    before, after = qrobust.load(IRIS).confidences(point), qrobust.load(copy).confidences(point)
    code, out, _ = run(capsys, "estimate", IRIS, "eps", "--copy", copy, "--point", "5.1, 3.5, 1.4, 0.2", "--json")
    (found,) = json.loads(out)
    assert code == 0
    assert found["lower"] <= found["upper"] <= found["lower"] + 1e-6
    assert found["lower"] - 1e-9 <= np.abs(before - after).max() <= found["upper"] + 1e-9
    code, out, _ = run(capsys, "check", IRIS, "--label", "--copy", copy, "--point", "5.1, 3.5, 1.4, 0.2")
    assert (code, out[:7]) == (0, "ROBUST:")
    assert "exactly the parameters of iris, int8" in out


def test_check_says_whether_a_device_can_hold_the_counterexample(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("check", CAT, "--label", "--point", "15, 2", "--scheme")
    code, out, _ = run(capsys, *arguments, "int4-either")
    assert code == 1
    assert out.splitlines()[-1] == "  it also holds with values that int4-either can hold (replayed; --json prints them)"
    code, out, _ = run(capsys, *arguments, "int4")
    assert code == 1
    assert out.splitlines()[-1] == "  neither the nearest values that int4 can hold nor its copy violate it at this input"
    assert json.loads(run(capsys, *arguments, "int4", "--json")[1])["held"] is None
    document = json.loads(run(capsys, *arguments, "int4-either", "--json")[1])
    step = float(np.float32(1.18118408 / 7))
    held = qrobust.Counterexample.from_json(document["held"])
    assert all((Fraction(w) / Fraction(step)).denominator == 1 for w in held.parameters[0][0].ravel().tolist())
    assert "held" not in json.loads(run(capsys, "check", CAT, *LABEL_BY_DELTA, "--json")[1])


def test_a_held_counterexample_is_replayed() -> None:
    """Weights 7 and 0.4 of 7-step int4: 0.4 becomes 0, and 0.4 x - 0.1 = 0.1 at x = 0.5 becomes -0.1: the label changes."""
    network = Network((Dense(np.array([[7.0, 0.4]]), np.array([-0.1])),), Output.SIGMOID)
    scheme = Integer(4)
    query = qrobust.LocalLabel(network, scheme.box(network), qrobust.Point([0.0, 0.5]))
    answer = qrobust.check(query)
    assert answer.counterexample is not None
    found = qrobust.held(query, answer.counterexample, scheme)
    assert found is not None
    assert found.parameters[0][0].tolist() == [[7.0, 0.0]]
    assert violation_fault(query, found) is None
    kept = replace(network, layers=(Dense(np.array([[7.0, 0.6]]), np.array([-0.2])),))
    query = qrobust.LocalLabel(kept, scheme.box(kept), qrobust.Point([0.0, 0.5]))
    answer = qrobust.check(query)
    assert answer.counterexample is not None, "0.6 - 1/2 = 0.1 is in the box"
    assert qrobust.held(query, answer.counterexample, scheme) is None, "0.6 becomes 1, and nothing else"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quantize", IRIS, "--scheme", "int8", "--out", "copy.onnx"), "no float32 is"),
        (("quantize", IRIS, "--scheme", "int8", "--out", "copy.txt"), "the formats written are .json, .onnx, .npz"),
        (("quantize", IRIS, "--scheme", "int8", "--out", "copy.npz", "--double"), "--double goes with"),
        (("quantize", IRIS, "--scheme", "int8", "--out", "no/such/copy.json"), "was not written"),
        (("quantize", IRIS, "--scheme", "int99", "--out", "copy.json"), "bits is 99"),
        (("quantize", IRIS, "--scheme", "float", "--out", "copy.json"), "the scheme 'float' is not known: int8"),
        (("quantize", IRIS, "--out", "copy.json"), "--scheme"),
        (("quantize", "none.json", "--scheme", "int8", "--out", "copy.json"), "does not exist"),
        (("inspect", "none.json"), "does not exist"),
        (("inspect", IRIS, "--eps", "0.1"), "--eps and --of go with --scheme"),
        (("inspect", IRIS, "--of", IRIS), "--eps and --of go with --scheme"),
        (("inspect", IRIS, "--scheme", "int8", "--eps", "small"), "small"),
        (("inspect", IRIS, "--scheme", "int8", "--of", CAT), "they are no copies of each other"),
        (("inspect", IRIS, "--scheme", "int8-bias-int32@0.1"), "names 1 input steps, the network has 2 layers"),
        (("check", IRIS, "--label", "--scheme", "int8", "--bits", "8"), "one of them"),
        (("check", IRIS, "--label"), "--scheme, --against or --copy, one of them"),
        (("check", IRIS, "--label", "--scheme", "int8", "--weights-only"), "--weights-only goes with neither"),
        (("check", IRIS, "--label", "--scheme", "int8-wrap"), "after the format, asymmetric"),
        (("check", IRIS, "--label", "--copy", CAT), "the second network has weights"),
        (("estimate", IRIS, "delta", "--scheme", "int8"), "leave out --delta"),
        (("map", IRIS, "--copy", "none.json"), "does not exist"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_what_overflows_is_refused_with_its_layer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    write_native(Network((Dense(np.array([[70000.0]]), np.array([0.0])),), Output.SIGMOID), path)
    line = refused(capsys, "quantize", str(path), "--scheme", "fp16", "--out", str(tmp_path / "copy.json"))
    assert "layer 1: 70000 is beyond the format's greatest number 65504" in line
    assert not (tmp_path / "copy.json").exists()
    code, out, _ = run(capsys, "inspect", str(path), "--scheme", "fp16-saturate")
    assert code == 0
    assert "changed by at most 4496, 1 beyond the range" in out


def test_inspect_says_what_a_tflite_file_quantizes(capsys: pytest.CaptureFixture[str]) -> None:
    program = str(ROOT / "models" / "cat_int8.tflite")
    code, out, _ = run(capsys, "inspect", program, "--eps", "0.001")
    assert code == 0
    assert "stored sequential_1/dense_1/MatMul: int8 1x2, step 0.00930066\n" in out
    assert "1 of 1 stored arrays are quantized" in out
    assert "eps 0.001 is below the output's own step 0.00390625" in out
    code, out, _ = run(capsys, "inspect", program, "--json")
    assert [tensor["kind"] for tensor in json.loads(out)["tensors"]].count("int8") == 4
    code, out, _ = run(capsys, "inspect", str(ROOT / "tests" / "data" / "tflite" / "wide_dynamic.tflite"), "--eps", "0.1")
    assert "float32 9x40; stays in float" in out
    assert "1 of 6 stored arrays are quantized" in out
    assert "confidences are floats" in out
    assert "says itself what is quantized" in refused(capsys, "inspect", program, "--scheme", "int8")


@pytest.mark.parametrize(
    ("stem", "scheme", "code"),
    [
        ("wide_dynamic", "tflite-dynamic-range", 0),
        ("convolution_dynamic", "tflite-dynamic-range", 0),
        ("wide_fp16", "fp16", 0),
        ("wide_dynamic", "fp16", 1),
        ("wide_fp16", "tflite-dynamic-range", 1),
    ],
)
def test_tflite_files_of_float_activations_are_copies(
    stem: str, scheme: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ROOT / "tests" / "data" / "tflite"
    twin = str(folder / f"{stem.split('_')[0]}_float.tflite")
    found, out, _ = run(capsys, "inspect", str(folder / f"{stem}.tflite"), "--of", twin, "--scheme", scheme)
    assert found == code
    assert ("OUTSIDE" if code else "INSIDE") in out


def test_check_takes_a_dynamic_range_file_as_the_copy(capsys: pytest.CaptureFixture[str]) -> None:
    """Against both networks, run in floats: eps on either side of the change."""
    folder = ROOT / "tests" / "data" / "tflite"
    names = [str(folder / f"wide_{kind}.tflite") for kind in ("float", "dynamic")]
    point = np.full((1, 70), 0.5)
    first, second = (qrobust.load(name).confidences(point) for name in names)
    change = float(np.abs(first - second).max())
    assert change > 1e-5
    where = ("--copy", names[1], "--point", ", ".join(["0.5"] * 70))
    assert run(capsys, "check", names[0], "--eps", str(1.01 * change), *where)[0] == 0
    assert run(capsys, "check", names[0], "--eps", str(0.99 * change), *where)[0] == 1


@pytest.mark.parametrize(
    ("scheme", "name", "options"), [("int8", "copy.npz", ()), ("int8", "copy.onnx", ("--double",)), ("fp16", "copy.onnx", ())]
)
def test_quantize_writes_other_formats(
    scheme: str, name: str, options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    assert run(capsys, "quantize", IRIS, "--scheme", scheme, "--out", str(path), *options)[0] == 0
    copy = parse_scheme(scheme).copy(qrobust.load(IRIS))
    assert qrobust.load(path).layers[0].weight.tolist() == copy.layers[0].weight.tolist()


def test_what_float32_would_round_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "quantize", IRIS, "--scheme", "int8", "--out", str(tmp_path / "copy.onnx"))
    assert "no float32 is" in line
    assert "--double" in line
    assert list(tmp_path.iterdir()) == []
