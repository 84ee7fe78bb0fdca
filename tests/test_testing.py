"""Does `assert_robust` pass where it is proved, and say what, where and the counterexample where not?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import qrobust
from qrobust import comparison
from qrobust.errors import NumberError
from qrobust.integer.program import Kernels
from qrobust.quantization import parse_scheme
from qrobust.testing import Change, assert_robust

MODELS = Path(__file__).parents[1] / "models"
CAT = qrobust.load(MODELS / "cat_paper.json")
PROGRAM = qrobust.load_program(MODELS / "cat_int8.tflite")
SEEN = qrobust.InputBox.of_features(CAT)
CHANGES: list[Change] = [
    "fp16",
    parse_scheme("fp16"),
    qrobust.Rounding(parse_scheme("fp16")),
    qrobust.Rounding(parse_scheme("fp16")).around(CAT),
    parse_scheme("fp16").copy(CAT),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
def test_every_kind_of_change_passes_where_it_is_proved(change: Change) -> None:
    assert_robust(CAT, change, SEEN, eps=0.01)
    assert_robust(CAT, change, [7.0, 2.0])
    assert_robust(CAT, change, [[7.0, 2.0], [20.0, 3.5]])


def test_the_message_says_what_where_and_the_counterexample() -> None:
    with pytest.raises(AssertionError) as caught:
        assert_robust(CAT, qrobust.Absolute(0.01), [15.0, 2.0])
    message = str(caught.value)
    assert message.startswith("VIOLATED: at input (heart weight = 15, body weight = 2)")
    assert "confidence of male: 0.495966785 -> 0.540875272" in message
    assert "layer 1, weights then biases" in message


def test_a_program_in_the_network_s_place() -> None:
    assert_robust(CAT, PROGRAM, SEEN, eps=0.01)
    assert_robust(CAT, PROGRAM, SEEN, margin=0.01)
    with pytest.raises(AssertionError) as caught:
        assert_robust(CAT, PROGRAM, SEEN)
    message = str(caught.value)
    assert "does not keep every label of margin 0" in message
    assert "at 28 of 4,224 inputs" in message
    assert "(integer " in message


def test_a_program_over_a_box_of_too_many_inputs_to_run() -> None:
    data = Path(__file__).parent / "data/tflite"
    network, program = qrobust.load(data / "wide_float.tflite"), qrobust.load_program(data / "wide_int8.tflite")
    near = qrobust.InputBox([0.5] * 70, [0.55] * 70)
    assert_robust(network, program, near, eps=0.5)
    assert_robust(network, program, near, margin=0.3)
    with pytest.raises(AssertionError, match=r"VIOLATED: wide_int8 .* does not keep every confidence within 0\.001") as caught:
        assert_robust(network, program, near, eps=0.001)
    assert "(integer " in str(caught.value)
    with pytest.raises(AssertionError, match=r"UNKNOWN: .* time limit of 0\.2 s"):
        assert_robust(network, program, qrobust.InputBox([0.0] * 70, [1.0] * 70), margin=0.3, seconds=0.2)


def test_a_program_over_a_box_says_why_it_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time runs out: what any kernels may give lies on both sides of eps, and eps within the rounding of one change."""
    box = qrobust.InputBox([14.0, 2.0], [16.0, 2.1])
    eps = comparison.compare(CAT, PROGRAM, comparison.on_grid(PROGRAM, box)).greatest[0]
    monkeypatch.setattr(comparison, "MOST_ENUMERATED", 10)
    with pytest.raises(AssertionError, match=r"^UNKNOWN: .* \(kernels may differ\)\.$"):
        assert_robust(CAT, PROGRAM, box, eps=0.004, kernels=Kernels.ANY)
    with pytest.raises(AssertionError, match=r"^UNKNOWN: .* \(eps lies within the rounding of the bounds: ask about another\)"):
        assert_robust(CAT, PROGRAM, box, eps=eps)


def test_what_is_undecided_fails_too() -> None:
    network = qrobust.load(MODELS / "breast_cancer_50.json")
    with pytest.raises(AssertionError, match=r"^(UNKNOWN|VIOLATED): "):
        assert_robust(network, "int4", qrobust.InputBox.of_features(network), seconds=0.5)


def test_numbers_are_taken_as_they_are_written() -> None:
    """A change of exactly eps passes: two networks without inputs' influence, whose confidences are known."""
    dense = qrobust.Dense(np.zeros((1, 1)), np.zeros(1))
    network = qrobust.Network((dense,), qrobust.Output.SIGMOID)
    assert_robust(network, qrobust.Absolute(0.0), [0.0], eps=0)
    with pytest.raises(NumberError, match="do not go together"):
        assert_robust(network, qrobust.Absolute(0.0), [0.0], eps=0.1, margin=0.1)
