"""A float network beside its integer program: against plain exact loops, by hand, and what the command prints."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qrobust import comparison, formats
from qrobust.answers import Verdict
from qrobust.cli import main
from qrobust.comparison import Agreement, at_points, compare, is_enumerable, on_grid
from qrobust.domains import InputBox, Polytope
from qrobust.errors import DomainError, NumberError, ResourceError, ShapeError, UnsupportedError
from qrobust.exact import ExactArithmetic, float_bounds, to_exact
from qrobust.integer.geometry import Windows
from qrobust.integer.kernels import run
from qrobust.integer.program import Affine, Elementwise, Encoding, Function, IntegerProgram, Kernels, Softmax
from qrobust.interval import Interval
from qrobust.network import Activation, Dense, Network, Output, confidence, logits
from tests.litert import FILES

HALF = Fraction(1, 2)
SIGMOID = Encoding(2**-8, -128)


def exact_change(network: Network, program: IntegerProgram, x: np.ndarray, q: np.ndarray) -> tuple[float, float]:
    """The greatest change of a confidence at one input, to 128 bits."""
    arithmetic = ExactArithmetic()
    values = program.result.real(run(program, q[None]).values[0])
    ends = []
    for place, value in enumerate(values.tolist()):
        sides = float_bounds(
            lambda place=place, value=value: (
                confidence(network, logits(network, to_exact(x), arithmetic), arithmetic)[place]  # type: ignore[misc]
                - to_exact([value])[0]
            )
        )
        ends.append((max(sides[0], -sides[1]), max(-sides[0], sides[1])))
    return max(low for low, _ in ends), max(high for _, high in ends)


def random_pair(seed: int, classes: int) -> tuple[Network, IntegerProgram]:
    """A float network 3-4-classes and a program that is near it."""
    rng = np.random.default_rng(seed)
    weights, biases = (
        [rng.normal(0, 1, (4, 3)), rng.normal(0, 1, (classes, 4))],
        [rng.normal(0, 0.3, 4), rng.normal(0, 0.3, classes)],
    )
    encodings = [Encoding(2**-5, 0), Encoding(2**-4, -20), Encoding(2**-4, 5)]
    operations: list[Affine | Elementwise | Softmax] = []
    for weight, bias, before, after in zip(weights, biases, encodings, encodings[1:], strict=False):
        scales = (np.abs(weight).max(axis=1) / 127).astype(np.float32).astype(np.float64)
        stored = np.rint(weight / scales[:, None]).astype(np.int64)
        counts = np.rint(bias / (scales * before.scale)).astype(np.int64)
        operations.append(Affine(stored, counts, scales, Windows.whole(weight.shape[1]), before, after, exactly=True))
    end = (
        Elementwise(1, Function.LOGISTIC, encodings[2], SIGMOID)
        if classes == 1
        else Softmax(classes, 1.0, encodings[2], SIGMOID)
    )
    network = Network(
        (Dense(weights[0], biases[0], Activation.LINEAR), Dense(weights[1], biases[1])),
        Output.SIGMOID if classes == 1 else Output.SOFTMAX,
    )
    return network, IntegerProgram((*operations, end))


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_against_plain_exact_loops(classes: int) -> None:
    network, program = random_pair(classes, classes)
    points = np.random.default_rng(0).uniform(-5, 5, (60, 3))
    inputs = at_points(program, points)
    found = compare(network, program, inputs)
    for index in range(len(points)):
        low, high = exact_change(network, program, points[index], inputs.integers[index])
        assert found.changes.lower[index] <= high
        assert low <= found.changes.upper[index]
        assert found.changes.width[index] < 1e-12
        replay = comparison.exactly_at(network, points[index])
        assert found.labels[index] == replay.label(False, HALF)
    values = run(program, inputs.integers).values
    expected = values.argmax(axis=1) if classes > 1 else values[:, 0] > 0
    np.testing.assert_array_equal(found.program_labels, expected)
    assert (
        found.inputs.outside.sum() == (np.rint(points / 2**-5).clip(-128, 127) != np.rint(points / 2**-5)).any(axis=1).sum() > 0
    )


def tie_pair() -> tuple[Network, IntegerProgram]:
    """f(x) = sigmoid(0 x), exactly 1/2; the program gives sigmoid(step) at every x, 132/256 at a step of 1/16."""
    network = Network((Dense(np.zeros((1, 1)), np.zeros(1)),), Output.SIGMOID)
    before, after = Encoding(0.5, 0), Encoding(2**-4, 0)
    affine = Affine(np.array([[0]]), np.array([1]), np.array([0.125]), Windows.whole(1), before, after, exactly=True)
    return network, IntegerProgram((affine, Elementwise(1, Function.LOGISTIC, after, SIGMOID)))


def test_eps_is_settled_exactly_where_bounds_cannot() -> None:
    """1/2 against 132/256 differ by 4/256 exactly: not more than eps = 1/64, more than any smaller eps."""
    network, program = tie_pair()
    found = compare(network, program, at_points(program, np.zeros((1, 1))))
    assert found.results.lower.tolist() == [[4]]  # sigmoid(1/16) * 256 = 131.998
    assert found.changes.lower[0] < 2**-6 < found.changes.upper[0]
    verdict, indices = found.epsilon_verdict(Fraction(1, 64))
    assert (verdict, indices.tolist()) == (Verdict.ROBUST, [])
    verdict, indices = found.epsilon_verdict(Fraction(1, 64) - Fraction(1, 10**30))
    assert (verdict, indices.tolist()) == (Verdict.VIOLATED, [0])
    with pytest.raises(NumberError, match="eps is -1"):
        found.epsilon_verdict(Fraction(-1))


def test_a_change_that_no_precision_settles_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    network, program = tie_pair()
    found = compare(network, program, at_points(program, np.zeros((1, 1))))
    monkeypatch.setattr(comparison, "decide", lambda _: None)
    verdict, indices = found.epsilon_verdict(Fraction(1, 64))
    assert (verdict, indices.tolist()) == (Verdict.UNKNOWN, [])


def test_eps_between_two_floats_is_not_rounded_up() -> None:
    """A change of exactly the float above eps is more than eps, though eps is nearest to that float."""
    network, program = tie_pair()
    found = compare(network, program, at_points(program, np.zeros((1, 1))))
    change = replace(found, changes=Interval.point(np.array([0.1])))
    assert change.epsilon_verdict(Fraction(0.1) - Fraction(1, 10**30))[0] is Verdict.VIOLATED


def test_a_class_that_may_draw_level_and_stands_first_leaves_the_label_open() -> None:
    found = comparison.greatest_label(np.array([[3, 5], [3, 5], [5, 3]]), np.array([[5, 5], [4, 5], [5, 5]]))
    assert found.tolist() == [comparison.UNDECIDED, 1, 0]


def test_labels_and_ties_by_the_stated_rule() -> None:
    """f = 1/2 is class 0; the program's 132/256 is class 1 at level 1/2, and at its own level 132/256 a tie, so class 0."""
    network, program = tie_pair()
    inputs = at_points(program, np.zeros((1, 1)))
    found = compare(network, program, inputs)
    assert (found.labels.tolist(), found.program_labels.tolist(), found.ties) == ([0], [1], 0)
    assert found.agreement.tolist() == [Agreement.CHANGED]
    assert found.label_verdict() is Verdict.VIOLATED
    found = compare(network, program, inputs, level=Fraction(132, 256))
    assert (found.labels.tolist(), found.program_labels.tolist(), found.ties) == ([0], [0], 1)
    assert found.label_verdict() is Verdict.ROBUST


def test_ties_of_classes_take_the_lowest_index() -> None:
    """Both logits equal: 1/2 and 1/2 in either arithmetic."""
    network = Network((Dense(np.ones((2, 1)), np.zeros(2)),), Output.SOFTMAX)
    e = Encoding(0.5, 0)
    affine = Affine(np.array([[2], [2]]), np.zeros(2, dtype=int), np.full(2, 0.5), Windows.whole(1), e, e, exactly=True)
    program = IntegerProgram((affine, Softmax(2, 1.0, e, SIGMOID)))
    found = compare(network, program, on_grid(program))
    assert (len(found.inputs), found.ties) == (256, 256)
    assert not found.labels.any()
    assert not found.program_labels.any()
    assert found.greatest[0] == 0.0
    assert found.greatest[1] < 1e-12


def test_the_whole_grid_of_a_worked_example(models: Path) -> None:
    """Every integer input is there once, and 200 of them agree with the plain exact computation."""
    network, program = formats.load(models / "cat_paper.json"), formats.load_program(models / "cat_int8.tflite")
    inputs = on_grid(program)
    assert len({tuple(row) for row in inputs.integers.tolist()}) == len(inputs) == 65_536
    found = compare(network, program, inputs)
    for index in np.random.default_rng(1).choice(65_536, 200, replace=False):
        low, high = exact_change(network, program, inputs.reals[index], inputs.integers[index])
        assert found.changes.lower[index] <= high
        assert low <= found.changes.upper[index]
    top = found.witness
    low, high = exact_change(network, program, inputs.reals[top], inputs.integers[top])
    assert found.greatest[0] <= high
    assert low <= found.greatest[1]
    assert 0 < (found.agreement == Agreement.CHANGED).sum() < 100
    box = on_grid(program, InputBox([6.3, 2.0], [20.5, 3.9]))
    inside = ((inputs.reals >= [6.3, 2.0]) & (inputs.reals <= [20.5, 3.9])).all(axis=1)
    np.testing.assert_array_equal(box.integers, inputs.integers[inside])


@pytest.mark.parametrize("stem", ["cat", "ath_relu"])
def test_any_kernels_hold_for_both_sets(stem: str, models: Path) -> None:
    network = formats.load(models / f"{stem.replace('cat', 'cat_paper')}.json")
    program = formats.load_program(models / f"{stem}_int8.tflite")
    inputs = on_grid(program)
    every = compare(network, program, inputs, kernels=Kernels.ANY)
    for kernels in (Kernels.REFERENCE, Kernels.XNNPACK):
        one = compare(network, program, inputs, kernels=kernels)
        assert (every.changes.lower <= one.changes.upper).all()
        assert (one.changes.lower <= every.changes.upper).all()
        certain = every.agreement != Agreement.UNDECIDED
        np.testing.assert_array_equal(every.agreement[certain], one.agreement[certain])
    assert 0 < (~certain).sum() < 0.05 * len(inputs)
    limit = Fraction(float(every.changes.upper.max()))
    assert every.epsilon_verdict(limit)[0] is Verdict.ROBUST
    between = Fraction(float(one.changes.upper.max()))
    assert every.epsilon_verdict(between)[0] is Verdict.UNKNOWN
    assert every.epsilon_verdict(Fraction(1, 100))[0] is Verdict.VIOLATED


def test_any_kernels_may_read_reals_otherwise() -> None:
    """Where the file itself quantizes, its inputs are intervals, too, that hold the reference's."""
    program = formats.load_program(FILES / "classes_int8_floats.tflite")
    points = np.random.default_rng(0).uniform(-1, 3, (50, 6))
    inputs = at_points(program, points)
    found = comparison._any_inputs(program, inputs)
    assert ((found.lower <= inputs.integers) & (inputs.integers <= found.upper)).all()
    assert (found.upper - found.lower).max() >= 2


def test_bounds_that_lie_are_seen(monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    """A float side moved by a thousandth contradicts the plain exact loop."""
    network, program = formats.load(models / "cat_paper.json"), formats.load_program(models / "cat_int8.tflite")
    inputs = at_points(program, np.array([[15.0, 2.0]]))
    true = comparison._confidences

    def moved(net: Network, x: np.ndarray) -> tuple[Interval, Interval]:
        values, nominal = true(net, x)
        return Interval(values.lower + 1e-3, values.upper + 1e-3), nominal

    monkeypatch.setattr(comparison, "_confidences", moved)
    low, high = exact_change(network, program, inputs.reals[0], inputs.integers[0])
    found = compare(network, program, inputs).changes
    assert found.lower[0] > high or found.upper[0] < low


def test_what_cannot_be_compared(models: Path) -> None:
    cat, program = formats.load(models / "cat_paper.json"), formats.load_program(models / "cat_int8.tflite")
    points = at_points(program, np.array([[15.0, 2.0]]))
    with pytest.raises(ShapeError, match="4 inputs and has 3 classes"):
        compare(formats.load(models / "iris.json"), program, points)
    with pytest.raises(ShapeError, match="2 numbers"):
        at_points(program, np.zeros((3, 3)))
    with pytest.raises(NumberError, match="NaN"):
        at_points(program, np.array([[np.nan, 1.0]]))
    with pytest.raises(DomainError, match="no input"):
        on_grid(program, InputBox([0.01, 0.01], [0.02, 0.02]))
    with pytest.raises(DomainError, match="without inequalities"):
        on_grid(program, Polytope(InputBox([0, 0], [9, 9]), [[1.0, 1.0]], [3.0]))
    with pytest.raises(ShapeError, match="3 sides"):
        on_grid(program, InputBox([0, 0, 0], [9, 9, 9]))
    with pytest.raises(ResourceError, match="enumerated"):
        on_grid(formats.load_program(FILES / "classes_int8.tflite"))
    wide = formats.load_program(FILES / "binary_int16.tflite")
    network = formats.load(FILES / "binary_float.tflite")
    with pytest.raises(UnsupportedError, match="16 bits"):
        compare(network, wide, at_points(wide, np.zeros((1, 2))), kernels=Kernels.XNNPACK)
    assert compare(cat, program, points).kernels is Kernels.REFERENCE


@pytest.mark.parametrize(("inputs", "said"), [(9, "2**72 or more"), (784, "2**6272 or more")])
def test_grids_of_more_inputs_than_floats_count(inputs: int, said: str) -> None:
    """An image of 784 pixels has 256**784 integer inputs, beyond float64: they are told in one line, and without a warning."""
    encoding = Encoding(2**-4, 0)
    affine = Affine(
        np.ones((1, inputs), dtype=np.int64), np.zeros(1, dtype=np.int64), np.ones(1), Windows.whole(inputs), encoding, encoding
    )
    program = IntegerProgram((affine, Elementwise(1, Function.LOGISTIC, encoding, Encoding(2**-8, -128))))
    with warnings.catch_warnings(action="error"):
        assert not is_enumerable(program)
        with pytest.raises(ResourceError, match=re.escape(f"there are {said} integer inputs")):
            on_grid(program)
    assert is_enumerable(program, InputBox([0.0] * inputs, [0.0] * (inputs - 1) + [1.0]))


@pytest.mark.parametrize("kind", ["int8", "int16"])
@pytest.mark.parametrize("stem", ["binary", "tanh", "wide", "convolution", "grouped", "pooling"])
def test_converted_models_are_near_their_float_twins(stem: str, kind: str) -> None:
    """Images and flattens lie the same way in both: a wrong order would move confidences by far more."""
    network, program = formats.load(FILES / f"{stem}_float.tflite"), formats.load_program(FILES / f"{stem}_{kind}.tflite")
    points = np.random.default_rng(7).uniform(-1, 3, (300, network.inputs))
    found = compare(network, program, at_points(program, points))
    assert np.median(found.changes.upper) < (0.01 if kind == "int8" else 0.004)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["qrobust", "compare", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


@pytest.fixture
def pair(models: Path) -> tuple[str, str]:
    return str(models / "cat_paper.json"), str(models / "cat_int8.tflite")


BOX = ("--enumerate", "--box", "6.3:20.5, 2:3.9")


@pytest.mark.parametrize(("arguments", "code", "words"), [
    ((*BOX, "--eps", "0.01"), 0, "ROBUST: at the 4,224 integer inputs, no confidence is off by more than 0.01"),
    ((*BOX, "--eps", "0.005"), 1, "VIOLATED: at the 4,224 integer inputs, a confidence is off by more than 0.005"),
    ((*BOX, "--label"), 1, "label: male in float, female in integers"),
    ((*BOX, "--label", "--eps", "0.01"), 1, "VIOLATED"),
    ((*BOX, "--sigma", "0.005"), 1, "VIOLATED: at the 4,224 integer inputs, a label that had margin 0.005 is another"),
    ((*BOX, "--sigma", "0.05"), 0, "ROBUST: at the 4,224 integer inputs, no label that had margin 0.05 is another"),
    ((*BOX, "--eps", "0.01", "--kernels", "any-kernel"), 3, "UNKNOWN"),
    ((*BOX,), 0, "greatest change of a confidence"),
    (("--point", "15, 2", "--label"), 0, "ROBUST: at the point, no label is another"),
    (("--enumerate", "--box", "6.3:99, 2:3.9"), 0, "calibrated range [0, 20.5]: heart weight up to 99, not looked at"),
    (("--point", "25, 2"), 0, "outside the program's range [0, 20.5]: 1 of 1"),
])  # fmt: skip
def test_the_command(
    arguments: tuple[str, ...], code: int, words: str, pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, _ = shown(capsys, *pair, *arguments)
    assert found == code
    assert words in out


@pytest.mark.parametrize(("arguments", "words"), [
    ((), "say where"),
    (("--enumerate", "--point", "15, 2"), "say where"),
    (("--point", "15, 2", "--box", "6:20, 2:3"), "--box goes alone or with --enumerate"),
    (("--point", "15"), "takes 2"),
    (("--point", "1e300, 2"), "too large"),
    (("--enumerate", "--eps", "small"), "small"),
    (("--enumerate", "--level", "2"), "between 0 and 1"),
])  # fmt: skip
def test_wrong_commands(
    arguments: tuple[str, ...], words: str, pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = shown(capsys, *pair, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1


def test_models_in_the_wrong_places(pair: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = shown(capsys, pair[1], pair[0], "--enumerate")
    assert code == 2
    assert "holds an integer program" in err
    code, _, err = shown(capsys, pair[0], pair[0], "--enumerate")
    assert code == 2
    assert "integer programs are read from .tflite, .onnx" in err


def test_points_of_a_file_and_json(pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "points.csv"
    table.write_text("body weight,heart weight\n2,15\n2.0098,15.194\n3,99\n")
    code, out, _ = shown(capsys, *pair, "--points", str(table), "--label", "--eps", "0.5", "--json")
    document = json.loads(out)
    assert code == 1
    assert document["verdicts"] == {"eps": "ROBUST", "label": "VIOLATED"}
    assert (document["inputs"], document["changed_labels"], document["outside_input_range"]) == (3, 1, 1)
    assert document["changed"][0]["input"] == [15.194, 2.0098]
    assert document["changed"][0]["labels"] == [1, 0]
    assert document["kernels"] == "reference"
    assert document["program"] == formats.load_program(pair[1]).sha256
    assert document["greatest_change"]["lower"] <= document["greatest_change"]["upper"]


@pytest.mark.parametrize("stem", ["cat_int8", "ath_relu_int8"])
def test_cards_are_of_their_files(stem: str, models: Path) -> None:
    import hashlib

    card = (models / f"{stem}.md").read_text()
    assert f"`{formats.load_program(models / f'{stem}.tflite').sha256}`" in card
    assert f"`{hashlib.sha256((models / f'{stem}.tflite').read_bytes()).hexdigest()}`" in card
    twin = "cat_paper" if stem == "cat_int8" else "ath_relu"
    assert f"`{formats.load(models / f'{twin}.json').sha256}`" in card
