"""A network and its program over boxes: against all inputs, run one by one, and what the command prints."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qrobust import formats, sweep
from qrobust.answers import Verdict
from qrobust.bounds import programs
from qrobust.comparison import Agreement, compare, on_grid
from qrobust.domains import InputBox, Polytope
from qrobust.errors import DomainError, NumberError, ShapeError, UnsupportedError
from qrobust.integer.program import IntegerProgram, Kernels
from qrobust.network import Dense, Network, Scaling
from qrobust.search import Budget
from qrobust.sweep import Question
from tests.litert import FILES
from tests.test_comparison import shown
from tests.test_program_bounds import random_pair

EXAMPLES = {"cat": ("cat_paper.json", "cat_int8.tflite"), "ath": ("ath_relu.json", "ath_relu_int8.tflite")}
KERNELS = [Kernels.REFERENCE, Kernels.XNNPACK, Kernels.ANY]


def example(models: Path, name: str) -> tuple[Network, IntegerProgram]:
    floats, integers = EXAMPLES[name]
    return formats.load(models / floats), formats.load_program(models / integers)


def hull(program: IntegerProgram, low: list[int], high: list[int]) -> InputBox:
    return InputBox(*(program.input.real(np.array(ends)) for ends in (low, high)))


def check_against_all(network: Network, program: IntegerProgram, domain: InputBox | None, kernels: Kernels) -> None:
    """Both ends, the verdicts on both sides of the truth, and the labels."""
    true = compare(network, program, on_grid(program, domain), kernels=kernels)
    found = sweep.sweep(network, program, domain, kernels=kernels)
    low, high = true.greatest
    assert found.points == len(true.inputs)
    assert found.greatest[0] <= low
    assert high <= found.greatest[1] + 1e-12
    assert found.greatest[1] - high <= max(0.05 * found.greatest[1], program.result.scale / 64) + 1e-12
    assert found.worst.greatest[0] == found.greatest[0]
    margin = Fraction(1, 2**20)
    wanted = {Fraction(high) + margin: Verdict.ROBUST} | ({Fraction(low) - margin: Verdict.VIOLATED} if low > margin else {})
    for eps, verdict in wanted.items():
        asked = sweep.sweep(network, program, domain, kernels=kernels, epsilon=eps)
        assert asked.verdicts == {Question.CHANGE: verdict}
    for margin in (Fraction(0), Fraction(1, 100), Fraction(1, 10)):
        labels = sweep.sweep(network, program, domain, kernels=kernels, label=True, margin=margin)
        assert labels.verdicts[Question.LABEL] is true.label_verdict(margin)
        if labels.changed is not None:
            assert labels.changed.agreement_of(margin).tolist() == [Agreement.CHANGED]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_all_inputs_of_the_examples(name: str, kernels: Kernels, models: Path) -> None:
    network, program = example(models, name)
    check_against_all(network, program, None, kernels)
    check_against_all(network, program, hull(program, [-50, -20], [3, 90]), kernels)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sizes", [(2, 4, 1), (3, 6, 5, 4), (3, 5, 4, 1)])
def test_grids_of_random_programs(sizes: tuple[int, ...], seed: int) -> None:
    network, program = random_pair(sizes, seed)
    rng = np.random.default_rng(seed)
    low = rng.integers(-128, 90, sizes[0])
    check_against_all(
        network, program, hull(program, low.tolist(), (low + rng.integers(10, 35, sizes[0])).tolist()), KERNELS[0]
    )


@pytest.mark.parametrize("sizes", [(2, 4, 1), (3, 5, 4, 3)])
def test_networks_that_scale_their_inputs(sizes: tuple[int, ...]) -> None:
    """The first layer takes x / 7 - 1/3 and its weights are times 7: nearly the function that was quantized, in other words."""
    network, program = random_pair(sizes, 1)
    first = network.layers[0]
    assert isinstance(first, Dense)
    scaling = Scaling([Fraction(1, 7)] * sizes[0], [Fraction(-1, 3)] * sizes[0])  # type: ignore[arg-type]
    weight = 7 * first.weight
    inner = Dense(weight, first.bias + weight.sum(axis=1) / 3, first.activation)
    scaled = Network((scaling, inner, *network.layers[1:]), network.output)
    low, high = np.array([-40, -10, 3])[: sizes[0]], np.array([-10, 20, 25])[: sizes[0]]
    domain = hull(program, low.tolist(), high.tolist())
    check_against_all(scaled, program, domain, KERNELS[0])
    plain, found = (sweep.sweep(net, program, domain) for net in (network, scaled))
    assert found.greatest == pytest.approx(plain.greatest, rel=0.1)
    assert sweep.sweep(scaled, program, budget=Budget(0.5)).points == 256 ** sizes[0]


def test_folded_rows_hold_the_exact_ones() -> None:
    """W diag(s) and W o + b, in rationals; rounded to nearest they do not."""
    rng = np.random.default_rng(0)
    layer = Dense(rng.normal(size=(5, 3)), rng.normal(size=5))
    scaling = Scaling([Fraction(1, 255), Fraction(3, 7), Fraction(-1, 3)], [Fraction(1, 3), Fraction(0), Fraction(-5, 7)])  # type: ignore[arg-type]
    weight, bias = programs._rows(layer, scaling)
    exact = np.vectorize(Fraction, otypes=[object])(layer.weight)
    for found, wanted in (
        (weight, exact * scaling.scale),
        (bias, exact @ scaling.offset + np.vectorize(Fraction, otypes=[object])(layer.bias)),
    ):
        assert (found.lower <= wanted).all()
        assert (wanted <= found.upper).all()
        assert found.width.max() < 1e-13


@pytest.mark.parametrize("name", EXAMPLES)
def test_bounds_alone_prove_what_is_true(name: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With boxes of single inputs alone run, most of the 65,536 are never run."""
    monkeypatch.setattr(sweep, "FEW_POINTS", 1)
    monkeypatch.setattr(sweep, "SAMPLES", 64)
    network, program = example(models, name)
    true = compare(network, program, on_grid(program)).greatest[1]
    found = sweep.sweep(network, program, epsilon=Fraction(true * 1.25))
    assert found.verdicts[Question.CHANGE] is Verdict.ROBUST
    assert found.executed < 20_000


def test_thirty_inputs(models: Path) -> None:
    """A box of 2**60 inputs and more: labels and a bound in one box, and a witness that replays."""
    network, program = random_pair((30, 12, 1), 1)
    domain = hull(program, [-6] * 30, [2] * 30)
    found = sweep.sweep(network, program, domain, epsilon=Fraction(1, 2), label=True, budget=Budget(seconds=20))
    assert found.points == 9**30
    assert found.verdicts[Question.CHANGE] is Verdict.ROBUST
    again = compare(network, program, found.worst.inputs)
    assert again.greatest == found.worst.greatest
    assert found.greatest[0] < found.greatest[1] <= 0.5


def test_a_lost_label_that_had_a_margin_is_climbed_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels with a margin of 0.05 are lost at so few of 2**180 inputs that neither samples nor boxes meet one."""
    network, program = random_pair((30, 12, 1), 0)
    domain, margin = hull(program, [-40] * 30, [30] * 30), Fraction(1, 20)
    found = sweep.sweep(network, program, domain, label=True, margin=margin, budget=Budget(seconds=20, boxes=64))
    assert found.verdicts == {Question.LABEL: Verdict.VIOLATED}
    assert found.changed is not None
    again = compare(network, program, found.changed.inputs)
    assert again.agreement_of(margin).tolist() == [Agreement.CHANGED]
    assert abs(network.confidences(again.inputs.reals)[0, 0] - 0.5) > 0.05
    monkeypatch.setattr(sweep, "polished", lambda tree, point, value, deadline: (value, point))
    alone = sweep.sweep(network, program, domain, label=True, margin=margin, budget=Budget(seconds=20, boxes=64))
    assert alone.verdicts == {Question.LABEL: Verdict.UNKNOWN}


def test_a_budget_ends_as_unknown() -> None:
    network, program = random_pair((30, 12, 1), 1)
    domain = hull(program, [-20] * 30, [10] * 30)
    ends = sweep.sweep(network, program, domain, budget=Budget(boxes=8)).greatest
    found = sweep.sweep(network, program, domain, epsilon=Fraction(sum(ends) / 2), budget=Budget(boxes=8))
    assert found.verdicts[Question.CHANGE] is Verdict.UNKNOWN
    assert "limit of 8 boxes" in found.reason
    assert found.greatest[0] < sum(ends) / 2 < found.greatest[1]


def test_cut_off_values_are_possible_wherever_they_are_seen(models: Path) -> None:
    for name in EXAMPLES:
        network, program = example(models, name)
        found = sweep.sweep(network, program)
        seen = compare(network, program, on_grid(program)).saturated
        assert seen is not None
        assert (found.cut_off >= (seen[: len(found.cut_off)] > 0)).all()
    inside = sweep.sweep(network, program, hull(program, [-126, -40], [-125, -30]))
    assert not inside.cut_off.any()


def test_ties_are_possible_wherever_they_are(models: Path) -> None:
    for name in EXAMPLES:
        network, program = example(models, name)
        found = sweep.sweep(network, program)
        assert found.ties
        assert found.ties_seen
        for seed in range(3):
            low = np.random.default_rng(seed).integers(-128, 120, 2)
            domain = hull(program, low.tolist(), (low + 7).tolist())
            true = compare(network, program, on_grid(program, domain))
            assert sweep.sweep(network, program, domain).ties >= (true.ties > 0)


def test_what_cannot_be_swept(models: Path) -> None:
    network, program = example(models, "cat")
    with pytest.raises(NumberError, match="eps is -1"):
        sweep.sweep(network, program, epsilon=Fraction(-1))
    with pytest.raises(DomainError, match="no input"):
        sweep.sweep(network, program, InputBox([0.01, 0.01], [0.02, 0.02]))
    with pytest.raises(DomainError, match="without inequalities"):
        sweep.sweep(network, program, Polytope(InputBox([0, 0], [9, 9]), [[1.0, 1.0]], [3.0]))
    with pytest.raises(ShapeError, match="4 inputs and has 3 classes"):
        sweep.sweep(formats.load(models / "iris.json"), program)
    images = formats.load(FILES / "convolution_float.tflite"), formats.load_program(FILES / "convolution_int8.tflite")
    with pytest.raises(UnsupportedError, match="bounds over boxes"):
        sweep.sweep(*images)


@pytest.fixture
def pair(models: Path) -> tuple[str, str]:
    return str(models / "cat_paper.json"), str(models / "cat_int8.tflite")


BOX = ("--box", "6.3:20.5, 2:3.9")


@pytest.mark.parametrize(("arguments", "code", "words"), [
    ((*BOX, "--eps", "0.01"), 0, "ROBUST: at every one of the 4,224 integer inputs in the box, no confidence is off by more"),
    ((*BOX, "--eps", "0.005"), 1, "VIOLATED: at an integer input in the box, a confidence is off by more than 0.005"),
    ((*BOX, "--label"), 1, "label: male in float, female in integers"),
    ((*BOX, "--label", "--eps", "0.01"), 1, "VIOLATED"),
    ((*BOX, "--sigma", "0.005"), 1, "VIOLATED: at an integer input in the box, a label that had margin 0.005 is another"),
    ((*BOX, "--sigma", "0.05"), 0, "integer inputs in the box, no label that had margin 0.05 is another"),
    ((*BOX, "--eps", "0.0096", "--kernels", "any-kernel"), 3, "UNKNOWN"),
    ((*BOX,), 0, "greatest change of a confidence"),
    (("--box", "6.3:99, 2:3.9", "--eps", "0.5"), 0, "outside the program's calibrated range [0, 20.5]: heart weight up to 99"),
    (("--box", "15:16, 2.2:2.5", "--label"), 0, "at the ends of a tensor's type: none, proved"),
    (("--box", "15:16, 2.2:2.5", "--label"), 0, "ties in the program: none, proved"),
    (("--box", "6:10, 2:2.5", "--label"), 1, "ties in the program: seen"),
])  # fmt: skip
def test_the_command(
    arguments: tuple[str, ...], code: int, words: str, pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, _ = shown(capsys, *pair, *arguments)
    assert words in out
    assert found == code


def test_json(pair: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = shown(capsys, *pair, *BOX, "--eps", "0.01", "--label", "--json")
    document = json.loads(out)
    assert code == 1
    assert document["verdicts"] == {"eps": "ROBUST", "label": "VIOLATED"}
    assert document["inputs"] == 4224
    assert document["greatest_change"]["lower"] <= document["greatest_change"]["upper"] <= 0.01
    assert document["changed"]["labels"] == [1, 0]
    assert document["kernels"] == "reference"


@pytest.mark.parametrize(("arguments", "words"), [
    (("--box", "6:20, 2:3", "--point", "15, 2"), "--box goes alone"),
    (("--box", "6:20"), "2"),
    ((*BOX, "--sigma", "0.1", "--label"), "give one of them"),
    ((*BOX, "--sigma", "2"), "sigma is 2: give a number from 0 to below 1"),
    ((*BOX, "--timeout", "0"), "above 0"),
])  # fmt: skip
def test_wrong_commands(
    arguments: tuple[str, ...], words: str, pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = shown(capsys, *pair, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
