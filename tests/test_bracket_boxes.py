"""Do halves put together from proved boxes speak only there, and do their proofs look wherever they speak?"""

from __future__ import annotations

import numpy as np
import pytest

from qrobust.answers import Verdict
from qrobust.binarized.bracket import Half, Side
from qrobust.binarized.bracket_boxes import Cells, boxes_half
from qrobust.binarized.bracket_build import Plan, build
from qrobust.binarized.bracket_proof import Claim, Sums, greatest_wrong_sum, prove
from qrobust.binarized.bracket_training import Recipe
from qrobust.binarized.thermometer import Thermometer, uniform
from qrobust.domains import InputBox
from qrobust.formats import load
from qrobust.layers import Activation, Dense
from qrobust.network import Network, Output
from qrobust.search import Budget
from tests.test_bracket import MODELS

FAR = 1e9  # a deadline that does not come
MIXED = 6  # a network of both labels


def network(seed: int) -> Network:
    rng = np.random.default_rng(seed)
    first = Dense(rng.normal(size=(4, 2)), rng.normal(size=4), Activation.RELU)
    return Network((first, Dense(rng.normal(size=(1, 4)), rng.normal(size=1) / 2)), Output.SIGMOID)


def code_of(one: Network) -> Thermometer:
    return uniform(one, InputBox([-2.0, -2.0], [2.0, 2.0]), 6)


@pytest.mark.parametrize("seed", range(12))
def test_a_half_of_boxes_is_right_and_covers_what_there_is(seed: int) -> None:
    one, rng = network(seed), np.random.default_rng(seed)
    code = code_of(one)
    codes = np.concatenate(list(code.all_codes()))
    for side in Side:
        claim = Claim(one, 1, side)
        wanted = claim.holds_on(code.ends(codes))
        if not wanted.any():
            continue
        half = boxes_half(claim, code, Cells(codes[wanted], code.shares(codes[wanted])), 40, FAR, rng)
        assert half is not None
        speaks = Sums(half, code).at(codes) > half.threshold
        assert speaks[wanted].all()  # forty boxes are enough for 49 cells
        assert (claim.excess(code.ends(codes[speaks]).middle) < 0).all()
        found = greatest_wrong_sum(claim, half, code, Budget(20.0), floor=half.threshold)
        assert found.upper <= half.threshold


@pytest.mark.parametrize("seed", range(30))
def test_boxes_that_a_half_can_speak_in_hold_all_that_it_says(seed: int) -> None:
    rng, code = np.random.default_rng(seed), code_of(network(0))
    codes = np.concatenate(list(code.all_codes()))
    weights = rng.integers(-1, 2, size=(5, code.bits))
    output = rng.integers(-1, 2, size=5)
    half = Half(((weights, rng.choice([-3.5, -2.5, -1.5, -0.5, 0.5, 1.5], size=5)),), output, -int(np.abs(output).sum()))
    sums = Sums(half, code)
    found = sums.speaking(half.threshold)
    assert found is not None
    low, high = found
    speaks = codes[sums.at(codes) > half.threshold]
    assert all(bool(((one >= low) & (one <= high)).all(axis=1).any()) for one in speaks)
    assert sums.speaking(half.threshold + 2) is None


def test_a_box_too_large_is_found_wrong() -> None:
    """The same proof, begun in the boxes alone, refutes a half one of whose boxes reaches over f's boundary."""
    one = network(MIXED)
    code = code_of(one)
    claim = Claim(one, 1, Side.YES)
    everywhere = Half(((np.zeros((1, code.bits), dtype=np.int64), np.array([0.5])),), np.array([1]), -1)
    labels = one.labels(code.random_points(2000, np.random.default_rng(0)))
    assert 0 < labels.mean() < 1
    found = greatest_wrong_sum(claim, everywhere, code, Budget(20.0), floor=-1)
    assert found.lower == 1
    assert found.witness is not None
    assert claim.fails_at(found.witness)


def test_boxes_answer_most_of_what_the_bits_of_iris_allow() -> None:
    """Trained halves answered a quarter of the box of versicolor; boxes twice as much, from the same thresholds."""
    iris = load(MODELS / "iris.json")
    code = uniform(iris, InputBox.of_features(iris), 7)
    built = build(iris, 1, code, Plan(Recipe((40,), steps=1), starts=1, rounds=1, seconds=60.0))
    assert all(prove(iris, built.bracket, side, Budget(30.0)).verdict is Verdict.ROBUST for side in Side)
    assert built.volume.answered > 0.2
    assert all(one.name.endswith("boxes") for one in built.chosen)
    assert all(one.found.lower == one.found.upper == one.half.threshold for one in built.chosen)
