"""Does the checker refuse doctored counterexamples, one by one, and accept right ones?"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from qrobust import dyadic, exact
from qrobust.answers import Counterexample
from qrobust.check import Replay, Undecided, delta_fault, membership_fault, violation_fault, witness_bounds
from qrobust.domains import InputBox, LayerBox, ParameterBox, Parameters, Point, Polytope
from qrobust.errors import UnsoundAnswerError
from qrobust.exact import ExactArithmetic, to_exact, to_rational
from qrobust.interval import TINY, FloatArray
from qrobust.network import Activation, Dense, Network, Output, logits, perturbed_logits
from qrobust.perturbations import Absolute
from qrobust.queries import (
    GlobalConfidence,
    GlobalEpsilon,
    GlobalLabel,
    GreatestDelta,
    LocalLabel,
    MarginLabel,
    SigmaEstimate,
)

HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)
UNIT_BOX = InputBox([0.0], [1.0])
LEAST = Fraction(1, 2**1074)

ONE_INPUT = Network((Dense(np.array([[1.0]]), np.array([-0.5])),), Output.SIGMOID)
"""f = sigmoid(x - 1/2): class 1 iff x > 1/2."""


def exactly(values: Any) -> npt.NDArray[np.object_]:
    array = np.asarray(values, dtype=object)
    return np.asarray(np.frompyfunc(Fraction, 1, 1)(array), dtype=object).reshape(array.shape)


def parameters(*layers: tuple[Any, Any]) -> Parameters:
    return tuple((exactly(weight), exactly(bias)) for weight, bias in layers)


def example(x: Any, weight: Any = 1, bias: Any = Fraction(-1, 2)) -> Counterexample:
    """An input of ONE_INPUT with a weight and a bias."""
    return Counterexample((Fraction(x),), parameters(([[weight]], [bias])))


BOX = Absolute(0.25).around(ONE_INPUT)
LABEL = GlobalLabel(ONE_INPUT, BOX, UNIT_BOX)
FLIP = example(Fraction(3, 4), bias=Fraction(-3, 4))
"""x = 3/4: stored logit 1/4, class 1; perturbed logit 0, class 0."""


def test_a_right_flip_is_accepted() -> None:
    assert violation_fault(LABEL, FLIP) is None


@pytest.mark.parametrize(
    ("doctored", "fault"),
    [
        (example(Fraction(-1, 4), weight=QUARTER * 3, bias=Fraction(-3, 4)), "outside the domain"),
        (example(1 + LEAST, weight=Fraction(3, 4), bias=Fraction(-3, 4)), "outside the domain"),
        (example(-LEAST, bias=Fraction(-1, 4)), "outside the domain"),
        (example(Fraction(3, 4), bias=Fraction(math.nextafter(-0.75, -1.0))), "parameters lie outside the box"),
        (example(Fraction(3, 4), bias=Fraction(-3, 4) - LEAST), "parameters lie outside the box"),
        (example(Fraction(3, 4), weight=Fraction(math.nextafter(1.25, 2.0)), bias=-HALF), "outside the box"),
        (Counterexample((Fraction(3, 4),) * 2, FLIP.parameters), "has 2 inputs, the network takes 1"),
        (Counterexample((), FLIP.parameters), "has 0 inputs, the network takes 1"),
        (Counterexample(FLIP.x, ()), "outside the box"),
        (Counterexample(FLIP.x, FLIP.parameters * 2), "outside the box"),
        (Counterexample(FLIP.x, parameters(([[1, 1]], [-0.75]))), "outside the box"),
        (Counterexample(FLIP.x, parameters(([[1]], [-0.75, -0.75]))), "outside the box"),
        (Counterexample(FLIP.x, parameters(([1], [-0.75]))), "outside the box"),
        (example(Fraction(3, 4)), "the label stays the same"),
        (example(Fraction(3, 4), bias=Fraction(-3, 4) + LEAST), "the label stays the same"),
        (example(HALF, weight=Fraction(1), bias=Fraction(-1, 2)), "the label stays the same"),
    ],
)
def test_a_doctored_flip_is_refused(doctored: Counterexample, fault: str) -> None:
    found = violation_fault(LABEL, doctored)
    assert found is not None
    assert fault in found


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_parameter_that_is_not_finite_is_refused(bad: float) -> None:
    array = np.array([[bad]], dtype=object)
    doctored = Counterexample(FLIP.x, ((array, FLIP.parameters[0][1]),))
    assert violation_fault(LABEL, doctored) == "its parameters lie outside the box"


def test_a_cut_domain_is_checked_too() -> None:
    box = replace(LABEL, domain=Polytope(UNIT_BOX, [[1.0]], [0.75]))
    assert violation_fault(box, FLIP) is None
    cut = replace(LABEL, domain=Polytope(UNIT_BOX, [[1.0]], [math.nextafter(0.75, 0.0)]))
    assert violation_fault(cut, FLIP) == "its input lies outside the domain"


def test_a_point_is_checked_to_the_last_bit() -> None:
    query = LocalLabel(ONE_INPUT, BOX, Point([0.75]))
    assert violation_fault(query, FLIP) is None
    assert violation_fault(query, example(Fraction(math.nextafter(0.75, 0.0)), bias=Fraction(-3, 4))) is not None


def test_a_level_hit_exactly_means_class_0() -> None:
    """x = 1/2 has logit 0: class 0. Any rise, however small, changes the label; a fall does not."""
    assert Replay(ONE_INPUT, example(HALF)).label(False, HALF) == 0
    assert violation_fault(LABEL, example(HALF, bias=Fraction(-1, 2) + LEAST)) is None
    assert violation_fault(LABEL, example(HALF, bias=Fraction(-1, 2) - LEAST)) == "the label stays the same"


def test_a_flip_from_1_to_0_and_from_0_to_1() -> None:
    assert violation_fault(LABEL, example(Fraction(5, 8), bias=Fraction(-11, 16))) is None
    assert violation_fault(LABEL, example(Fraction(3, 8), bias=Fraction(-5, 16))) is None


# The change of a confidence must be more than epsilon.

LINEAR_CHANGE = Network((Dense(np.zeros((2, 1)), np.zeros(2)),), Output.SOFTMAX)


def test_a_change_of_exactly_epsilon_is_no_violation() -> None:
    """Nothing moves: the change is exactly 0, and epsilon = 0 holds."""
    still = Counterexample((Fraction(1),), parameters(([[0], [0]], [0, 0])))
    query = GlobalConfidence(LINEAR_CHANGE, Absolute(1.0).around(LINEAR_CHANGE), UNIT_BOX, Fraction(0))
    assert violation_fault(query, still) == "no confidence moves by more than 0"
    shifted = Counterexample((Fraction(1),), parameters(([[0], [0]], [0, LEAST])))
    assert violation_fault(query, shifted) is None


def test_a_confidence_that_does_not_move_is_seen_exactly() -> None:
    """Both logits of a softmax rise by 1; and a sigmoid of 1/4, no rational, is compared with itself."""
    both = Counterexample((Fraction(0),), parameters(([[0], [0]], [1, 1])))
    query = GlobalConfidence(LINEAR_CHANGE, Absolute(1.0).around(LINEAR_CHANGE), UNIT_BOX, Fraction(0))
    assert violation_fault(query, both) == "no confidence moves by more than 0"
    stored = GlobalConfidence(ONE_INPUT, BOX, UNIT_BOX, Fraction(0))
    fault = violation_fault(stored, example(Fraction(3, 4)))
    assert fault == "no confidence moves by more than 0"
    assert not isinstance(fault, Undecided)


def test_an_equality_that_no_precision_settles_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both logits rise by tanh(1/2): the softmax stays, but only as balls that never tell."""
    monkeypatch.setattr(exact, "MOST_BITS", 256)
    hidden = Dense(np.array([[1.0]]), np.zeros(1), Activation.TANH)
    network = Network((hidden, Dense(np.zeros((2, 1)), np.zeros(2))), Output.SOFTMAX)
    box = Absolute(1.0).around(network)
    both = Counterexample((HALF,), parameters(([[1]], [0]), ([[1], [1]], [0, 0])))
    fault = violation_fault(GlobalConfidence(network, box, UNIT_BOX, Fraction(0)), both)
    assert isinstance(fault, Undecided)
    assert fault == "no precision settles whether a confidence moves by more than 0"
    settled = violation_fault(GlobalConfidence(network, box, UNIT_BOX, Fraction(1, 10**9)), both)
    assert settled == "no confidence moves by more than 1e-09"
    assert not isinstance(settled, Undecided)


def neighbours(value: tuple[float, float]) -> tuple[Fraction, Fraction]:
    """A little below and a little above a number that lies between two floats."""
    return Fraction(math.nextafter(value[0], 0.0)), Fraction(math.nextafter(value[1], 1.0))


def test_epsilon_decides_to_the_last_bit() -> None:
    """The change is sigmoid(1/4) - sigmoid(0), no rational: epsilon a float below it is violated, one above is not."""
    query = GlobalEpsilon(ONE_INPUT, BOX, UNIT_BOX)
    below, above = neighbours(witness_bounds(query, FLIP))
    assert above - below < Fraction(1, 2**51)
    assert abs(float(below) - (1 / (1 + math.exp(-0.25)) - 0.5)) < 1e-15
    assert violation_fault(GlobalConfidence(ONE_INPUT, BOX, UNIT_BOX, below), FLIP) is None
    assert violation_fault(GlobalConfidence(ONE_INPUT, BOX, UNIT_BOX, above), FLIP) is not None


def test_epsilon_of_several_classes_is_the_greatest_change_of_any() -> None:
    """Logits (0, 0, 0) to (1, 0, 0): class 0 rises by e / (e + 2) - 1/3, the others fall by half of that."""
    network = Network((Dense(np.zeros((3, 1)), np.zeros(3)),), Output.SOFTMAX)
    box = Absolute(1.0).around(network)
    moved = Counterexample((Fraction(0),), parameters(([[0]] * 3, [1, 0, 0])))
    rise = math.e / (math.e + 2) - 1 / 3
    lower, upper = witness_bounds(GlobalEpsilon(network, box, UNIT_BOX), moved)
    assert lower <= rise + 1e-15
    assert upper >= rise - 1e-15
    assert upper - lower < 1e-15
    for epsilon, violated in ((rise - 1e-12, True), (rise + 1e-12, False)):
        fault = violation_fault(GlobalConfidence(network, box, UNIT_BOX, Fraction(epsilon)), moved)
        assert (fault is None) == violated


# The margin must be at least sigma.


def test_a_margin_just_below_sigma_is_refused() -> None:
    """m = sigmoid(1/4) - 1/2."""
    below, above = neighbours(witness_bounds(SigmaEstimate(ONE_INPUT, BOX, UNIT_BOX, 1), FLIP))
    assert abs(float(below) - (1 / (1 + math.exp(-0.25)) - 0.5)) < 1e-15
    assert violation_fault(MarginLabel(ONE_INPUT, BOX, UNIT_BOX, sigma=below), FLIP) is None
    fault = violation_fault(MarginLabel(ONE_INPUT, BOX, UNIT_BOX, sigma=above), FLIP)
    assert fault is not None
    assert "its margin is not at least" in fault


def test_a_margin_of_exactly_sigma_counts() -> None:
    """At x = 1/2 the confidence is 1/2, at level 1/4: class 1 with margin 1/4, which a bias of -2 takes away."""
    wide = Absolute(2.0).around(ONE_INPUT)
    flip = example(HALF, bias=-2)
    exact_margin = MarginLabel(ONE_INPUT, wide, UNIT_BOX, level=QUARTER, sigma=QUARTER)
    assert violation_fault(exact_margin, flip) is None
    assert violation_fault(replace(exact_margin, sigma=QUARTER + LEAST), flip) is not None
    assert witness_bounds(SigmaEstimate(ONE_INPUT, wide, UNIT_BOX, 1, QUARTER), flip) == (0.25, 0.25)


def test_a_margin_of_class_0_counts_downward() -> None:
    """x = 1/4: class 0 with margin 1/2 - sigmoid(-1/4), lifted over the level by a weight of 1 + 1/4 and a bias of -1/4."""
    flip = example(QUARTER, weight=Fraction(5, 4), bias=Fraction(-1, 4))
    margin = 0.5 - 1 / (1 + math.exp(0.25))
    assert violation_fault(MarginLabel(ONE_INPUT, BOX, UNIT_BOX, sigma=Fraction(margin - 1e-12)), flip) is None
    assert violation_fault(MarginLabel(ONE_INPUT, BOX, UNIT_BOX, sigma=Fraction(margin + 1e-12)), flip) is not None


THREE = Network((Dense(np.array([[1.0], [0.0], [-1.0]]), np.array([0.0, 0.0, 0.0])),), Output.SOFTMAX)
"""Logits (x, 0, -x): class 0 for x > 0 and, tied, for x = 0; class 2 for x < 0."""


def three(x: Any, *bias: Any) -> Counterexample:
    return Counterexample((Fraction(x),), parameters(([[1], [0], [-1]], bias)))


def test_a_tie_of_logits_goes_to_the_lowest_index() -> None:
    tie = three(0, 0, 0, 0)
    assert Replay(THREE, tie).label(False, HALF) == 0
    domain = InputBox([-1.0], [1.0])
    query = GlobalLabel(THREE, Absolute(1.0).around(THREE), domain)
    assert violation_fault(query, three(0, 0, LEAST, 0)) is None
    assert violation_fault(query, three(0, LEAST, LEAST, LEAST)) == "the label stays the same"
    assert violation_fault(query, three(1, 0, 1, 0)) == "the label stays the same"  # (1, 1, -1)
    assert violation_fault(query, three(1, 0, 1, 0.5)) == "the label stays the same"
    assert violation_fault(query, three(-1, 0, 1, 0)) is None  # class 2 before, (-1, 1, 1): class 1 after


def test_the_margin_of_several_classes_is_from_the_strongest_rival() -> None:
    """x = 1: logits (1, 0, -1), gap 1 to class 1, margin sigmoid(1) - 1/2, though class 2 takes over."""
    query = SigmaEstimate(THREE, Absolute(1.0).around(THREE), InputBox([-1.0], [1.0]), 0)
    moved = Counterexample((Fraction(1),), parameters(([[0], [0], [0]], [-1, -1, 1])))
    lower, upper = witness_bounds(query, moved)
    margin = 1 / (1 + math.exp(-1)) - 0.5
    assert abs(lower - margin) < 1e-15
    assert 0 <= upper - lower < 1e-15
    sharp = {sigma: MarginLabel(THREE, query.parameters, query.domain, sigma=Fraction(sigma)) for sigma in (0.231, 0.232)}
    assert violation_fault(sharp[0.231], moved) is None
    assert violation_fault(sharp[0.232], moved) is not None
    mirrored = Counterexample((Fraction(-1),), parameters(([[0], [0], [0]], [1, -1, -1])))
    assert witness_bounds(replace(query, label=2), mirrored) == (lower, upper)  # here class 1 is the last rival, not the first


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_the_strongest_rival_is_found_among_balls(order: tuple[int, ...]) -> None:
    """Logits tanh(1/2) * (1, 0, -1) in some order: the gap to the rival in the middle counts, wherever it stands."""
    scale = np.array([1.0, 0.0, -1.0])[list(order)]
    hidden = Dense(np.array([[1.0]]), np.zeros(1), Activation.TANH)
    network = Network((hidden, Dense(scale[:, None], np.zeros(3))), Output.SOFTMAX)
    label = order.index(0)
    query = SigmaEstimate(network, Absolute(1.0).around(network), UNIT_BOX, label)
    moved = Counterexample((HALF,), parameters(([[1]], [0]), (np.zeros((3, 1)), -np.eye(3)[label])))
    lower, upper = witness_bounds(query, moved)
    margin = 1 / (1 + math.exp(-math.tanh(0.5))) - 0.5
    assert lower == pytest.approx(margin, rel=1e-14)
    assert lower <= upper <= math.nextafter(lower, 1.0)
    for sigma, violated in ((margin - 1e-12, True), (margin + 1e-12, False)):
        fault = violation_fault(MarginLabel(network, query.parameters, UNIT_BOX, sigma=Fraction(sigma)), moved)
        assert (fault is None) == violated


@pytest.mark.parametrize(("level", "before"), [(Fraction(1, 4), 1), (Fraction(7, 10), 0), (Fraction(56217, 100000), 1)])
def test_levels_other_than_a_half(level: Fraction, before: int) -> None:
    """At x = 3/4 the stored confidence is sigmoid(1/4) = 0.562176..."""
    assert Replay(ONE_INPUT, FLIP).label(False, level) == before


def test_a_flip_at_another_level() -> None:
    """x = 1: stored sigmoid(1/2) = 0.6225, lowered to sigmoid(0) = 0.5; a flip at 0.6, none at 0.63 or 0.49."""
    lowered = example(1, weight=Fraction(3, 4), bias=Fraction(-3, 4))
    faults = [violation_fault(replace(LABEL, level=Fraction(level)), lowered) for level in ("0.6", "0.63", "0.49")]
    assert faults == [None, "the label stays the same", "the label stays the same"]


def test_a_level_that_a_sigmoid_never_hits_is_settled() -> None:
    """A rational level other than 1/2 against a logit that rounds to its own: 8192 bits always suffice here."""
    close = Fraction(1 / (1 + math.exp(-0.25)))
    assert Replay(ONE_INPUT, FLIP).label(False, close) in (0, 1)
    assert Replay(ONE_INPUT, FLIP).label(False, close + Fraction(1, 2**40)) == 0
    assert Replay(ONE_INPUT, FLIP).label(False, close - Fraction(1, 2**40)) == 1


@pytest.mark.parametrize("activation", [Activation.SIGMOID, Activation.TANH])
def test_hidden_layers_with_balls(activation: Activation) -> None:
    """f = sigmoid(act(x) - act(1/2)'s float): flips are found, equal labels refused."""
    value = math.tanh(0.5) if activation is Activation.TANH else 1 / (1 + math.exp(-0.5))
    network = Network(
        (Dense(np.array([[1.0]]), np.array([0.0]), activation), Dense(np.array([[1.0]]), np.array([-value]))), Output.SIGMOID
    )
    query = GlobalLabel(network, Absolute(0.01).around(network), UNIT_BOX)
    stored = parameters(([[1]], [0]), ([[1]], [-value]))
    up = parameters(([[1]], [Fraction(1, 100) - Fraction(1, 10**20)]), ([[1]], [-value]))
    x = (Fraction(Fraction(1, 2) - Fraction(1, 1000)),)
    assert violation_fault(query, Counterexample(x, up)) is None
    assert violation_fault(query, Counterexample(x, stored)) == "the label stays the same"
    assert violation_fault(query, Counterexample((Fraction(3, 4),), up)) == "the label stays the same"


def twins() -> tuple[Network, ParameterBox]:
    """z = tanh(x) - tanh(y): at x = y the logit is exactly 0, which no ball can show."""
    network = Network(
        (Dense(np.eye(2), np.zeros(2), Activation.TANH), Dense(np.array([[1.0, -1.0]]), np.zeros(1))), Output.SIGMOID
    )
    return network, Absolute(0.5).around(network)


def test_a_label_that_no_precision_settles_is_refused_not_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "MOST_BITS", 256)
    network, box = twins()
    domain = InputBox([0.0, 0.0], [1.0, 1.0])
    low = parameters((np.eye(2), [0, 0]), ([[1, -1]], [Fraction(-1, 4)]))
    tied = Counterexample((HALF, HALF), low)
    assert Replay(network, tied).label(False, HALF) is None
    fault = violation_fault(GlobalLabel(network, box, domain), tied)
    assert isinstance(fault, Undecided)
    assert fault == "no precision settles its labels"
    apart = Counterexample((Fraction(5, 8), HALF), low)
    assert violation_fault(GlobalLabel(network, box, domain), apart) is None
    with pytest.raises(UnsoundAnswerError, match="labels are None"):
        witness_bounds(SigmaEstimate(network, box, domain, 0), tied)


def test_a_label_of_several_classes_that_no_precision_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits (-9, tanh(x), tanh(y)): a tie of balls at x = y."""
    monkeypatch.setattr(exact, "MOST_BITS", 256)
    hidden = Dense(np.eye(2), np.zeros(2), Activation.TANH)
    last = Dense(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([-9.0, 0.0, 0.0]))
    network = Network((hidden, last), Output.SOFTMAX)
    stored = parameters((hidden.weight, hidden.bias), (last.weight, last.bias))
    labels = [Replay(network, Counterexample((HALF, y), stored)).label(True, HALF) for y in (HALF, HALF + LEAST, HALF - LEAST)]
    assert labels == [None, None, None]  # LEAST moves bit 1075, and 256 are allowed
    clear = Counterexample((HALF, HALF + Fraction(1, 2**100)), stored)
    assert Replay(network, clear).label(True, HALF) == 2


def test_a_label_that_takes_many_bits_is_settled() -> None:
    """z = tanh(1/2) - tanh(1/2 - 2**-200), about 2**-200: the balls must be computed anew in each precision."""
    network, box = twins()
    domain = InputBox([0.0, 0.0], [1.0, 1.0])
    close = (HALF, HALF - Fraction(1, 2**200))
    lowered = Counterexample(close, parameters((np.eye(2), [0, 0]), ([[1, -1]], [Fraction(-1, 2**199)])))
    assert Replay(network, lowered).label(False, HALF) == 1
    assert violation_fault(GlobalLabel(network, box, domain), lowered) is None
    lifted = Counterexample(close, parameters((np.eye(2), [0, 0]), ([[1, -1]], [Fraction(1, 2**199)])))
    assert violation_fault(GlobalLabel(network, box, domain), lifted) == "the label stays the same"


def test_a_margin_that_no_precision_settles_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    checker = sys.modules[violation_fault.__module__]  # `qrobust.check` itself names the front door's function
    monkeypatch.setattr(checker, "decide", lambda _: None)
    assert violation_fault(MarginLabel(ONE_INPUT, BOX, UNIT_BOX, sigma=Fraction(1, 100)), FLIP) == (
        "no precision settles its labels"
    )
    labels = iter((1, -1, None))
    monkeypatch.setattr(checker, "decide", lambda _: next(labels))
    fault = violation_fault(MarginLabel(ONE_INPUT, BOX, UNIT_BOX, sigma=Fraction(1, 100)), FLIP)
    assert isinstance(fault, Undecided)
    assert fault == "no precision settles whether its margin is at least 0.01"


@pytest.mark.parametrize(
    ("doctored", "message"),
    [
        (example(2, weight=Fraction(3, 4), bias=Fraction(-3, 4)), "outside the domain"),
        (example(Fraction(3, 4), bias=Fraction(-3, 4) - LEAST), "outside the box"),
        (example(Fraction(3, 4)), "its labels are 1 and 1"),
        (example(QUARTER, bias=Fraction(-1, 4), weight=Fraction(5, 4)), "its labels are 0 and 1"),
    ],
)
def test_a_doctored_witness_is_an_error(doctored: Counterexample, message: str) -> None:
    with pytest.raises(UnsoundAnswerError, match=message):
        witness_bounds(SigmaEstimate(ONE_INPUT, BOX, UNIT_BOX, 1), doctored)


def test_a_doctored_witness_of_epsilon_is_an_error() -> None:
    with pytest.raises(UnsoundAnswerError, match="outside the box"):
        witness_bounds(GlobalEpsilon(ONE_INPUT, BOX, UNIT_BOX), example(Fraction(3, 4), bias=Fraction(-3, 4) - LEAST))


def test_a_flip_counts_only_for_its_delta() -> None:
    query = GreatestDelta(ONE_INPUT, UNIT_BOX)
    assert delta_fault(query, 0.25, FLIP) is None
    assert delta_fault(query, math.nextafter(0.25, 0.0), FLIP) == "its parameters lie outside the box"
    assert delta_fault(query, 1.0, example(Fraction(3, 4))) == "the label stays the same"


def test_bounds_between_floats_are_kept_exactly() -> None:
    """The box of delta = 0.1 around -1/2 ends at a number that is no float; both its float neighbours are told apart."""
    box = Absolute(0.1).around(ONE_INPUT)
    end = Fraction(-1, 2) - Fraction(0.1)
    assert Fraction(float(end)) != end
    query = GlobalLabel(ONE_INPUT, box, UNIT_BOX)
    x = Fraction(11, 20)
    assert violation_fault(query, example(x, bias=end)) is None
    assert violation_fault(query, example(x, bias=end - LEAST)) == "its parameters lie outside the box"


def test_a_swapped_box_is_noticed() -> None:
    """Bounds of the weight given for the bias: the shapes differ, and nothing is accepted."""
    layer = BOX.layers[0]
    doctored = replace(LABEL)
    object.__setattr__(doctored, "parameters", ParameterBox((LayerBox(layer.bias, layer.weight),)))
    assert violation_fault(doctored, FLIP) == "its parameters lie outside the box"


def test_replay_is_the_definition() -> None:
    """h = relu(2 x - 1, -x) at x = 1: (1, 0); z = 3 h1 - h2 + 1/4 = 13/4."""
    network = Network(
        (
            Dense(np.array([[1.0], [1.0]]), np.array([0.0, 0.0]), Activation.RELU),
            Dense(np.array([[1.0, 1.0]]), np.array([0.0])),
        ),
        Output.SIGMOID,
    )
    replay = Replay(network, Counterexample((Fraction(1),), parameters(([[2], [-1]], [-1, 0]), ([[3, -1]], [QUARTER]))))
    assert to_rational(replay.perturbed()[0]) == Fraction(13, 4)
    assert to_rational(replay.nominal()[0]) == 2
    assert float(replay.change()[0]) == pytest.approx(1 / (1 + math.exp(-3.25)) - 1 / (1 + math.exp(-2)), rel=1e-14)


# Big networks: float parameters, big integers in place of rationals.

WIDTHS = [(3, 1), (1, 4, 1), (5, 7, 3), (4, 6, 5, 2), (300, 9, 1)]
Scale = Callable[[np.random.Generator, FloatArray], FloatArray]
SCALES: dict[str, Scale] = {
    "normal": lambda rng, values: values,
    "single precision": lambda rng, values: values.astype(np.float32).astype(np.float64),
    "wide": lambda rng, values: values * 2.0 ** rng.integers(-300, 300, values.shape),
    "subnormal": lambda rng, values: TINY * rng.integers(-9, 10, values.shape).astype(np.float64),
    "sparse": lambda rng, values: np.where(rng.random(values.shape) < 0.7, 0.0, values),
}


def random_layers(rng: np.random.Generator, widths: tuple[int, ...], scale: Scale) -> list[tuple[FloatArray, FloatArray]]:
    return [(scale(rng, rng.normal(size=(b, a)) / math.sqrt(a)), scale(rng, rng.normal(size=b))) for a, b in pairwise(widths)]


def network_of(layers: list[tuple[FloatArray, FloatArray]], activation: Activation = Activation.RELU) -> Network:
    kinds = [activation] * (len(layers) - 1) + [Activation.LINEAR]
    output = Output.SIGMOID if len(layers[-1][1]) == 1 else Output.SOFTMAX
    return Network(tuple(Dense(*pair, kind) for pair, kind in zip(layers, kinds, strict=True)), output)


def by_definition(network: Network, found: Counterexample) -> tuple[list[Any], list[Any]]:
    """Both networks' logits in rationals, one parameter after the other."""
    x = to_exact(list(found.x))
    pairs = [(to_exact(weight), to_exact(bias)) for weight, bias in found.parameters]
    arithmetic = ExactArithmetic()
    return logits(network, x, arithmetic).tolist(), perturbed_logits(network, pairs, x, arithmetic).tolist()


@pytest.mark.parametrize("activation", [Activation.RELU, Activation.LINEAR])
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("scale", SCALES)
def test_big_integers_give_the_logits_of_rationals(
    scale: str, widths: tuple[int, ...], activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are indeed what is used: the rational evaluation is taken away."""
    rng = np.random.default_rng(len(scale) + sum(widths))
    network = network_of(random_layers(rng, widths, SCALES[scale]), activation)
    chosen = tuple(random_layers(rng, widths, SCALES[scale]))
    x = tuple(map(Fraction, SCALES[scale](rng, rng.normal(size=widths[0])).tolist()))
    in_floats = Counterexample(x, chosen)
    in_fractions = Counterexample(x, parameters(*chosen))
    nominal, perturbed = by_definition(network, in_floats)
    for name in ("logits", "perturbed_logits"):
        monkeypatch.delattr(sys.modules[Replay.__module__], name)
    for replay in (Replay(network, in_floats), Replay(network, in_fractions)):
        for values, wanted in ((replay.nominal(), nominal), (replay.perturbed(), perturbed)):
            assert values.tolist() == wanted
            assert [type(value) for value in values] == [type(value) for value in wanted]


def test_what_is_not_dyadic_is_replayed_in_rationals() -> None:
    """A third among the inputs, or one third among the parameters beside float layers."""
    rng = np.random.default_rng(0)
    layers = random_layers(rng, (3, 4, 2), SCALES["normal"])
    network, third = network_of(layers), Fraction(1, 3)
    mixed = (layers[0], (exactly(layers[1][0]), exactly([third, 0])))
    for found in (Counterexample((third, third, -third), tuple(layers)), Counterexample((Fraction(1),) * 3, mixed)):
        replay = Replay(network, found)
        assert (replay.nominal().tolist(), replay.perturbed().tolist()) == by_definition(network, found)


def test_a_stored_network_is_cut_into_limbs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(random_layers(np.random.default_rng(1), (3, 4, 5, 2), SCALES["normal"]))
    cuts, cut = [], dyadic._float_limbs

    def counted(values: FloatArray, exponent: int, bits: int) -> list[FloatArray]:
        cuts.append(values.shape)
        return cut(values, exponent, bits)

    monkeypatch.setattr(dyadic, "_float_limbs", counted)
    for x in (Fraction(1), Fraction(1, 2)):
        Replay(network, Counterexample((x,) * 3, ())).nominal()
        assert len(cuts) == len(network.layers)


@pytest.mark.parametrize("radius", [0.1, 2.0**-4, 1e-12])
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize(("layer", "part"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_float_one_step_outside_the_box_is_refused(layer: int, part: int, side: int, radius: float) -> None:
    """The last float inside is accepted, the next one is not; rationals decide which is which."""
    layers = random_layers(np.random.default_rng(2), (3, 4, 2), SCALES["normal"])
    network = network_of(layers)
    query = LocalLabel(network, Absolute(radius).around(network), Point([1.0, -1.0, 0.5]))
    bounds = (query.parameters.layers[layer].weight, query.parameters.layers[layer].bias)[part]
    for place in np.ndindex(bounds.lower.shape):
        end = bounds.fractions[side > 0][place]
        inside = float(end)
        while side * (Fraction(inside) - end) > 0:
            inside = math.nextafter(inside, -side * math.inf)
        while side * (Fraction(math.nextafter(inside, side * math.inf)) - end) <= 0:
            inside = math.nextafter(inside, side * math.inf)
        for value, fault in (
            (inside, None),
            (math.nextafter(inside, side * math.inf), "its parameters lie outside the box"),
            (side * math.inf, "its parameters lie outside the box"),
            (math.nan, "its parameters lie outside the box"),
        ):
            chosen = [[array.copy() for array in pair] for pair in layers]
            chosen[layer][part][place] = value
            found = Counterexample((Fraction(1), Fraction(-1), HALF), tuple((weight, bias) for weight, bias in chosen))
            assert membership_fault(query, found) == fault


def test_a_flip_of_a_million_parameters_is_replayed_at_once() -> None:
    """784-1024-512-10, containment included. The flip: the leader's last weights fall, another's rise."""
    rng = np.random.default_rng(3)
    layers = random_layers(rng, (784, 1024, 512, 10), SCALES["normal"])
    network = network_of(layers)
    x = rng.random(784)
    query = LocalLabel(network, Absolute(0.25).around(network), Point(x))
    stored = Counterexample(tuple(map(Fraction, x.tolist())), tuple(layers))
    leader = Replay(network, stored).label(False, HALF)
    assert leader is not None
    moved = layers[-1][0].copy()
    moved[leader] -= 0.125
    moved[(leader + 1) % 10] += 0.125
    flip = Counterexample(stored.x, (*layers[:-1], (moved, layers[-1][1])))
    seconds = []
    for _ in range(3):
        start = time.thread_time()
        assert violation_fault(query, flip) is None
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 2  # about 0.05 s where nothing else runs
    assert violation_fault(query, stored) == "the label stays the same"
