"""Do the parameters of integer programs lie in the box of the scheme that they claim, and is what leaves it named?"""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

import qrobust
from qrobust.errors import ShapeError
from qrobust.formats import load, load_program
from qrobust.integer.program import Affine, IntegerProgram
from qrobust.layers import Conv2d
from qrobust.quantization import box_for_program, dequantized, outside, parse_scheme
from qrobust.report.plan import read_plan
from qrobust.report.signoff import run_signoff
from tests.test_cli import refused, run

ROOT = Path(__file__).parents[1]
FILES = ROOT / "tests/data/tflite"
STEMS = ("binary", "tanh", "wide", "convolution", "grouped", "pooling")
CAT, INT8 = str(ROOT / "models/cat_paper.json"), str(ROOT / "models/cat_int8.tflite")


@pytest.mark.parametrize("width", ["int8", "int16"])
@pytest.mark.parametrize("stem", STEMS)
def test_converted_programs_lie_inside_and_no_narrower_scheme(stem: str, width: str) -> None:
    """Their weights have one scale a channel: they leave the box of a scheme with smaller steps."""
    network, program = load(FILES / f"{stem}_float.tflite"), load_program(FILES / f"{stem}_{width}.tflite")
    copy = dequantized(network, program)
    assert outside(box_for_program(network, parse_scheme("int8-per-channel"), program), copy) == []
    assert outside(box_for_program(network, parse_scheme("int10-per-channel"), program), copy) != []


def test_dequantized_weights_are_the_integers_times_their_scales() -> None:
    """Of a depthwise convolution too, whose layer holds zeros for the inputs of other channels."""
    network, program = load(FILES / "convolution_float.tflite"), load_program(FILES / "convolution_int8.tflite")
    depthwise = [o for o in program.operations if isinstance(o, Affine)][1]
    layer = dequantized(network, program).layers[1]
    assert isinstance(layer, Conv2d)
    assert depthwise.windows.groups == 4
    assert ((layer.weight != 0) <= (network.layers[1].weight != 0)).all()
    for channel in range(8):
        scale = Fraction(float(depthwise.scales[channel]))
        taps = layer.weight[channel, channel // 2].ravel().tolist()
        assert [Fraction(v) for v in taps] == [scale * int(q) for q in depthwise.weight[channel]]


def moved(program: IntegerProgram, what: str) -> IntegerProgram:
    """Return the program with the last entry of the first layer's weights or biases off by some."""
    first = program.operations[0]
    assert isinstance(first, Affine)
    weight, bias = first.weight.copy(), first.bias.copy()
    if what == "weight":
        weight[-1, -1] += 3
    else:
        bias[-1] += 3
    return replace(program, operations=(replace(first, weight=weight, bias=bias), *program.operations[1:]))


@pytest.mark.parametrize("what", ["weight", "bias"])
def test_one_wrong_integer_is_named(what: str) -> None:
    network, program = load(FILES / "wide_float.tflite"), moved(load_program(FILES / "wide_int8.tflite"), what)
    box = box_for_program(network, parse_scheme("int8-per-channel"), program)
    (stray,) = outside(box, dequantized(network, program))
    assert (stray.layer, stray.count) == (1, 1)
    assert stray.index == ((39, 69) if what == "weight" else (39,))
    first = program.operations[0]
    assert isinstance(first, Affine)
    step = first.scales[-1] * (1 if what == "weight" else first.input.scale)
    assert 1.4 * step < stray.distance < 3.6 * step


def test_a_scheme_that_quantizes_biases_binds_them() -> None:
    network, program = load(FILES / "wide_float.tflite"), load_program(FILES / "wide_int8.tflite")
    box = box_for_program(network, parse_scheme("q3.20"), program)
    assert {stray.what for stray in outside(box, dequantized(network, program))} == {"weights", "biases"}


def test_room_for_integer_biases_is_a_step_and_what_float32_rounds() -> None:
    """Exactly so much around each bias that the scheme leaves in float, none around those that it quantizes."""
    network, program = load(FILES / "wide_float.tflite"), load_program(FILES / "wide_int8.tflite")
    zero_bias = network.layers[0].bias.copy()
    zero_bias[0] = 0.0
    first = network.layers[0].with_parameters(network.layers[0].weight, zero_bias)
    network = replace(network, layers=(first, *network.layers[1:]))
    operation = program.operations[0]
    assert isinstance(operation, Affine)
    lower, upper = box_for_program(network, parse_scheme("int8-per-channel"), program).layers[0].bias.fractions
    for i in (0, 7, 39):
        slack = operation.input.scale * operation.scales[i] + abs(zero_bias[i]) / 2**23
        assert (lower[i], upper[i]) == (Fraction(zero_bias[i]) - Fraction(slack), Fraction(zero_bias[i]) + Fraction(slack))
    scheme = parse_scheme("q3.20")
    own, its = box_for_program(network, scheme, program).layers[0].bias, scheme.box(network).layers[0].bias
    assert [end.tolist() for end in own.fractions] == [end.tolist() for end in its.fractions]


def test_other_layers_are_refused() -> None:
    program = load_program(FILES / "binary_int8.tflite")
    with pytest.raises(ShapeError, match="2 operations with weights, the model 1 layers"):
        dequantized(load(CAT), program)
    with pytest.raises(ShapeError, match="has weights"):
        dequantized(load(FILES / "grouped_float.tflite"), program)


def test_inspect_says_inside_or_where_outside(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", INT8, "--of", CAT, "--scheme", "int8-per-channel")
    assert code == 0
    assert "INSIDE: cat_int8" in out.splitlines()[-1]
    code, out, _ = run(capsys, "inspect", INT8, "--of", CAT, "--scheme", "int16", "--json")
    document = json.loads(out)
    assert code == 1
    assert document["network"] == load_program(INT8).sha256
    assert [(each["layer"], each["what"]) for each in document["outside"]] == [(1, "weights")]
    assert "name the float model with --of" in refused(capsys, "inspect", INT8, "--scheme", "int8")


def test_inspect_of_a_quantized_onnx_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from tests.test_onnx_program import worked_pair

    network, _ = worked_pair(tmp_path)
    qrobust.save(network, tmp_path / "float.json")
    for scheme, code, word in (("int6-per-channel", 0, "INSIDE: m (int8: "), ("int8-per-channel", 1, "OUTSIDE: m (int8: ")):
        options = ("--of", str(tmp_path / "float.json"), "--scheme", scheme)
        found, out, _ = run(capsys, "inspect", str(tmp_path / "m.onnx"), *options)
        assert (found, word in out) == (code, True)


def test_inside_is_an_obligation_of_programs(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(
        f"""[model]
file = "{CAT}"
[shipped]
int8 = "{INT8}"
[[obligations]]
id = "A"
ask = "inside"
program = "int8"
scheme = "int8-per-channel"
[[obligations]]
id = "B"
ask = "inside"
program = "int8"
scheme = "fp16"
"""
    )
    inside, out = run_signoff(read_plan(tmp_path / "plan.toml")).findings
    assert (inside.verdict.value, out.verdict.value) == ("ROBUST", "VIOLATED")
    assert "integer biases within a step of their own" in inside.claim
    assert out.notes[0].startswith("layer 1, weights: one of its parameters outside")
