"""Are a bracket's answers explained, counted and compiled in its features' own values, and are the ranges true and widest?"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from qrobust.binarized.bracket import Bracket, Half, Side
from qrobust.binarized.bracket_codes import over_codes, range_name, whole
from qrobust.binarized.bracket_files import save_bracket
from qrobust.binarized.queries import Levels
from qrobust.binarized.thermometer import Thermometer
from qrobust.domains import InputBox
from qrobust.interval import FloatArray
from qrobust.layers import Dense, IntArray
from qrobust.logic import SignDecision, SignOracle, explain
from qrobust.logic.widening import widened
from qrobust.network import Feature, Network, Output
from tests.test_cli import refused, run

CODE = Thermometer(
    InputBox([0.0, 0.0, 0.0], [10.0, 1.0, 4.0]),
    (Feature("length", "cm"), Feature("ratio", ""), Feature("mass", "kg")),
    (np.array([2.0, 5.0, 7.5]), np.array([0.5]), np.array([1.0, 3.0])),
)


def bracket(seed: int, depth: int = 1) -> Bracket:
    """A random pair over six bits; what it says of its network does not matter here."""
    rng = np.random.default_rng(seed)
    target = Network((Dense(np.ones((1, 3)), np.zeros(1)),), Output.SIGMOID, classes=("a", "b"))
    halves = {}
    for side in Side:
        layers, width = list[tuple[IntArray, FloatArray]](), CODE.bits
        for _ in range(depth):
            layers.append((rng.integers(-1, 2, size=(5, width)), rng.choice([-1.5, -0.5, 0.5, 1.5], size=5)))
            width = 5
        halves[side] = Half(tuple(layers), rng.integers(-1, 2, size=width), int(rng.integers(0, 2)))
    return Bracket.of_halves(target, 1, CODE, halves)


def all_codes() -> IntArray:
    return np.concatenate(list(CODE.all_codes()))


@pytest.mark.parametrize("seed", range(20))
def test_over_codes_answers_as_over_bits(seed: int) -> None:
    pair = bracket(seed, seed % 3)
    codes = all_codes()
    with SignOracle(SignDecision(over_codes(pair), np.zeros(3), whole(CODE))) as oracle:
        assert np.array_equal(oracle.decision.folded.labels(codes), pair.answers_of(codes))


@pytest.mark.parametrize("seed", range(40))
def test_ranges_fix_the_label_and_cannot_be_wider(seed: int) -> None:
    """By trying every code: within the ranges all have the label, and one level more on any side lets another in."""
    pair, codes = bracket(seed), all_codes()
    answers = pair.answers_of(codes)
    own = codes[np.random.default_rng(seed).integers(len(codes))]
    everywhere = whole(CODE)
    decision = SignDecision(over_codes(pair), own.astype(float), Levels(everywhere.lower, everywhere.upper, own))
    label = int(pair.answers_of(own[None])[0])
    with SignOracle(decision) as oracle:
        found = explain(oracle)
    assert found.is_complete
    features = frozenset(found.features or ())
    ranges = widened(decision, features)
    assert ranges.is_widest

    def keeps(lower: IntArray, upper: IntArray) -> bool:
        inside = ((codes >= lower) & (codes <= upper)).all(axis=1)
        return bool((answers[inside] == label).all())

    assert keeps(ranges.lower, ranges.upper)
    for place, (side, step) in itertools.product(features, (("lower", -1), ("upper", 1))):
        ends = {"lower": ranges.lower.copy(), "upper": ranges.upper.copy()}
        ends[side][place] += step
        if everywhere.lower[place] <= ends[side][place] <= everywhere.upper[place]:
            assert not keeps(ends["lower"], ends["upper"])
    for place in set(range(3)) - features:
        assert (ranges.lower[place], ranges.upper[place]) == (0, everywhere.upper[place])


def test_values_are_named_with_their_units() -> None:
    assert range_name(CODE, 0, 1, 2) == "2 <= length < 7.5 cm"
    assert range_name(CODE, 0, 2, 3) == "length >= 5 cm"
    assert range_name(CODE, 1, 0, 0) == "ratio < 0.5"
    assert range_name(CODE, 2, 0, 2) == "any mass"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Yes where the length is 5 cm or more and the mass 3 kg or more; no where the length is below 2 cm."""
    yes = Half(((np.array([[0, 1, 0, 0, 0, 1]]), np.array([-1.5])),), np.array([1]), 0)
    no = Half(((np.array([[-1, 0, 0, 0, 0, 0]]), np.array([0.5])),), np.array([1]), 0)
    target = Network((Dense(np.ones((1, 3)), np.zeros(1)),), Output.SIGMOID, classes=("a", "b"))
    path = tmp_path / "pair.json"
    save_bracket(Bracket.of_halves(target, 1, CODE, {Side.YES: yes, Side.NO: no}), path)
    return path


def test_the_commands_speak_of_features(capsys: pytest.CaptureFixture[str], saved: Path, tmp_path: Path) -> None:
    picture = tmp_path / "why"
    code, out, _ = run(capsys, "bnn", "explain", str(saved), "--input", "8, 0.2, 3.5", "--picture", str(picture))
    assert code == 0
    assert out.startswith("abductive: 2 features (length >= 5 cm, mass >= 3 kg) fix the label b; subset-minimal.")
    assert '0,"length",8.0,cm' in picture.with_suffix(".csv").read_text()
    code, out, _ = run(capsys, "bnn", "explain", str(saved), "--input", "1, 0.2, 3.5", "--json")
    document = json.loads(out)
    assert (document["ranges"], document["label"], document["input"]) == (["length < 2 cm"], "not b", [1.0, 0.2, 3.5])
    code, out, _ = run(capsys, "bnn", "explain", str(saved), "--input", "1,1,1,0,1,1")  # the bits themselves
    assert "length >= 5 cm, mass >= 3 kg" in out
    code, out, _ = run(capsys, "bnn", "count", str(saved), "--label", "1")
    assert out.startswith("20 of 24")  # yes: 2 of 4 lengths, 2 ratios, 1 of 3 masses
    code, out, _ = run(capsys, "bnn", "compile", str(saved), "--primes", "1")
    assert "length >= 5 cm and mass >= 3 kg" in out
    assert "  b: 4 of 24 cells" in out


def test_a_bracket_says_itself_what_it_takes(capsys: pytest.CaptureFixture[str], saved: Path) -> None:
    for options, words in (
        (("--input", "8, 0.2"), "takes 3 features or 6 bits"),
        (("--input", "8, 0.2, 9"), "mass is 9, the box allows [0, 4]"),
        (("--input", "8, 0.2, 3", "--eps", "-1"), "must not be negative"),
        (("--input", "8, 0.2, 3", "--names", "a,b,c"), "names its features itself"),
        (("--input", "8, 0.2, 3", "--step", "1", "--range", "0:1"), "leave --step and --range out"),
    ):
        assert words in refused(capsys, "bnn", "explain", str(saved), *options)


def test_a_full_table_is_refused_with_its_figure(capsys: pytest.CaptureFixture[str], saved: Path) -> None:
    for nodes in (2, 5, 8):
        assert "stopped at" in refused(capsys, "bnn", "compile", str(saved), "--nodes", str(nodes))


def test_a_ball_about_an_input_is_one_of_its_features(capsys: pytest.CaptureFixture[str], saved: Path) -> None:
    """Within 1 of (8, 0.2, 3.5) the length keeps two cells and the ratio both: the mass alone can lose the label."""
    code, out, _ = run(capsys, "bnn", "explain", str(saved), "--input", "8, 0.2, 3.5", "--eps", "1")
    assert code == 0
    assert out.startswith("abductive: 1 feature (mass >= 3 kg) fixes the label b")
    code, out, _ = run(capsys, "bnn", "explain", str(saved), "--input", "8, 0.2, 3.5", "--eps", "0.1")
    assert "no feature is needed" in out
    code, out, _ = run(capsys, "bnn", "compile", str(saved), "--copy", str(saved))
    assert (code, "equivalent" in out) == (0, True)
