"""Bounds between a network and its integer program over boxes: they hold at every integer input, and are near it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from qrobust.bounds import programs
from qrobust.bounds.programs import Margins, ProgramZonotopes, Stage, _Logistic, _Shares, greatest_rise
from qrobust.comparison import Agreement, Comparison, compare, of_grid
from qrobust.errors import UnsupportedError
from qrobust.integer.geometry import Windows
from qrobust.integer.program import (
    Affine,
    Bounds,
    Elementwise,
    Encoding,
    Function,
    IntegerProgram,
    Kernels,
    Requantize,
    Runtime,
)
from qrobust.interval import Interval
from qrobust.layers import IntArray
from qrobust.network import Activation, Dense, Network, Output
from tests.programs import CONFIDENCES, quantized

SIZES = [(2, 1), (2, 4, 1), (3, 5, 4, 1), (2, 5, 3), (3, 6, 5, 4)]
KERNELS = [Kernels.REFERENCE, Kernels.XNNPACK, Kernels.ANY]


def random_pair(sizes: tuple[int, ...], seed: int, reach: float = 2.0) -> tuple[Network, IntegerProgram]:
    """A random network, and its program calibrated within a reach: inputs beyond it are cut off."""
    rng = np.random.default_rng(seed)
    layers = []
    for place, (inputs, outputs) in enumerate(pairwise(sizes)):
        hidden = place < len(sizes) - 2
        weight, bias = rng.normal(0, 1.2, (outputs, inputs)), rng.normal(0, 0.4, outputs)
        layers.append(Dense(weight, bias, Activation.RELU if hidden else Activation.LINEAR))
    network = Network(tuple(layers), Output.SIGMOID if sizes[-1] == 1 else Output.SOFTMAX)
    program = quantized(network, rng.uniform(-reach, reach, (100, sizes[0])))
    if seed % 3 == 0:  # a finer last scale: logits are cut off
        last = program.operations[-2]
        assert isinstance(last, Affine)
        narrow = replace(last.output, scale=last.output.scale / 4)
        program = replace(
            program,
            operations=(*program.operations[:-2], replace(last, output=narrow), replace(program.operations[-1], input=narrow)),
        )
    return network, program


def random_boxes(program: IntegerProgram, rng: np.random.Generator, count: int) -> list[tuple[IntArray, IntArray]]:
    """Boxes of integers, some of one input, each of a few hundred at most."""
    middle = rng.integers(-128, 128, (count, program.inputs))
    most = 8 if program.inputs == 2 else 3
    reach = rng.integers(0, most, (count, program.inputs))
    return list(zip(np.maximum(middle - reach, -128), np.minimum(middle + reach, 127), strict=True))


def exhaustive(network: Network, program: IntegerProgram, box: tuple[IntArray, IntArray], kernels: Kernels) -> Comparison:
    axes = [np.arange(low, high + 1) for low, high in zip(*(end.tolist() for end in box), strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, program.inputs)
    return compare(network, program, of_grid(program, points), kernels=kernels)


def faults(sizes: tuple[int, ...], seeds: range, kernels: Kernels) -> tuple[int, list[float]]:
    """How many boxes are bounded wrongly, and by how much the others' bounds exceed the greatest change."""
    wrong, above = 0, []
    for seed in seeds:
        network, program = random_pair(sizes, seed)
        boxes = random_boxes(program, np.random.default_rng(seed), 12)
        reals = Interval(*(program.input.real(np.array(ends)) for ends in zip(*boxes, strict=True)))
        found = ProgramZonotopes(network, program, kernels).bounds(reals)
        for place, box in enumerate(boxes):
            true = exhaustive(network, program, box, kernels)
            differs = bool((true.agreement == Agreement.CHANGED).any())
            cut = None if true.saturated is None else true.saturated[: len(found.cut_off)] > 0
            missed = cut is not None and bool((cut & ~found.cut_off[:, place]).any())
            wrong += bool(found.change[place] < true.greatest[0]) or missed or (differs and not bool(found.differs[place]))
            above.append(float(found.change[place]) - true.greatest[1])
    return wrong, above


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("sizes", SIZES)
def test_bounds_hold_at_every_integer_input(sizes: tuple[int, ...], kernels: Kernels) -> None:
    wrong, above = faults(sizes, range(12), kernels)
    assert wrong == 0
    assert np.median(above) < (0.05 if kernels is not Kernels.ANY else 0.12)


def test_without_noise_bounds_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stage, "noise", lambda self, z: Interval.point(np.zeros(z.shape)))
    assert faults((3, 5, 4, 1), range(4), Kernels.REFERENCE)[0] > 0


def test_without_clamps_bounds_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Stage.noise

    def unclamped(self: Stage, z: Interval) -> Interval:
        return true(replace(self, greatest=1e9, least=self.least if self.rectified else -1e9), z)

    monkeypatch.setattr(Stage, "noise", unclamped)
    assert faults((2, 4, 1), range(0, 12, 3), Kernels.REFERENCE)[0] > 0


def test_without_the_table_bounds_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight of 1 and no rounding before the logistic: all that is left is its table's."""
    encoding = Encoding(2**-4, 0)
    affine = Affine(
        np.array([[1]]), np.zeros(1, dtype=np.int64), np.ones(1), Windows.whole(1), encoding, encoding, exactly=True
    )
    program = IntegerProgram((affine, Elementwise(1, Function.LOGISTIC, encoding, CONFIDENCES[Runtime.TFLITE])))
    network = Network((Dense(np.ones((1, 1)), np.zeros(1)),), Output.SIGMOID)
    boxes = Interval.point(np.arange(-128, 128)[:, None] * encoding.scale)
    true = compare(network, program, of_grid(program, np.arange(-128, 128)[:, None])).changes
    prepared = ProgramZonotopes(network, program)
    assert (prepared.bounds(boxes).change >= true.lower).all()
    monkeypatch.setattr(prepared.ending, "errors", np.zeros(256))
    assert not (prepared.bounds(boxes).change - (prepared.stages[0].allowance / 4) >= true.lower).all()


def test_zero_points_that_move_to_and_fro_cut_shares_off() -> None:
    """Shares above 127 units are cut where the zero point is 0, and stay cut when it is -128 again."""
    network, program = random_pair((2, 5, 3), 1)
    whole = program.result
    to, fro = Requantize(3, whole, replace(whole, zero_point=0)), Requantize(3, replace(whole, zero_point=0), whole)
    program = replace(program, operations=(*program.operations, to, fro))
    boxes = random_boxes(program, np.random.default_rng(1), 20)
    reals = Interval(*(program.input.real(np.array(ends)) for ends in zip(*boxes, strict=True)))
    for kernels in KERNELS:
        found = ProgramZonotopes(network, program, kernels).bounds(reals)
        true = [exhaustive(network, program, box, kernels) for box in boxes]
        assert max(one.greatest[0] for one in true) > 0.25  # not of rounding alone
        assert all(one.greatest[0] <= bound for one, bound in zip(true, found.change.tolist(), strict=True))


def test_one_rounding_by_hand() -> None:
    """z' = 3 in steps of 2, so 1.5 steps: the result is 2 or 4, and the noise within a step either way and a little more."""
    encoding = Encoding(2.0, -128)
    affine = Affine(
        np.array([[1]]), np.zeros(1, dtype=np.int64), np.ones(1), Windows.whole(1), Encoding(1.0, 0), encoding, exactly=True
    )
    layer = Dense(np.ones((1, 1)), np.zeros(1), Activation.RELU)
    stage = Stage.of(layer, affine, Kernels.REFERENCE)
    assert (stage.least, stage.greatest, stage.step) == (0.0, 510.0, 2.0)
    near = stage.noise(Interval(np.array([[3.0, -5.0, 600.0]]), np.array([[3.0, -1.0, 700.0]])))
    assert 1.0 < near.upper[0, 0] < 1.001
    assert -1.001 < near.lower[0, 0] < -1.0
    assert stage.noise(Interval.point(np.array([[0.05]]))).lower[0, 0] <= -0.05  # on, and rounded to 0
    assert near.lower[0, 1] == near.upper[0, 1] == 0.0  # off: exactly 0 in both
    assert -190.01 < near.lower[0, 2] <= -190.0  # 510 - 700
    assert -90.0 <= near.upper[0, 2] < -89.99  # 510 - 600
    wide = Stage.of(layer, affine, Kernels.ANY)
    assert wide.noise(Interval.point(np.array([[-1.0]]))).upper[0, 0] > 2  # -1/2 step: any kernel may give 1


@pytest.mark.parametrize(("low", "high", "rise"), [(-9.0, 9.0, 1.0), (2.0, 3.0, 0.5), (-3.0, -2.9, 0.1), (-0.4, 5.0, 2.0)])
def test_the_greatest_rise_of_a_sigmoid(low: float, high: float, rise: float) -> None:
    u = np.linspace(low, high, 20_001)
    true = (1 / (1 + np.exp(-u - rise)) - 1 / (1 + np.exp(-u))).max()
    found = greatest_rise(Interval(np.array([low]), np.array([high])), np.array([rise]))[0]
    assert true <= found + 1e-15
    assert found < true + 1e-7


def test_a_logit_at_either_end_of_its_range_counts() -> None:
    network, program = random_pair((3, 5, 4, 1), 1)
    ending = ProgramZonotopes(network, program).ending
    assert isinstance(ending, _Logistic)
    logits = Interval.point(ending.logits[None, None])
    found, _, _ = ending.bounds(Margins(logits, logits, Interval.point(np.zeros(logits.shape))))
    assert (found >= ending.errors).all()
    assert ending.errors.max() > 0


def test_labels_may_differ_at_the_least_logit_of_one_and_the_greatest_of_the_other() -> None:
    network, program = random_pair((3, 5, 4, 1), 1)
    ending = ProgramZonotopes(network, program).ending
    assert isinstance(ending, _Logistic)
    for stored, found, differ in (
        (0.0, ending.rises, True),  # the stored label at 0 is 0
        (0.01, ending.falls, True),
        (-0.01, ending.falls - 1, False),
        (0.01, ending.rises + 1, False),
    ):
        ends = (Interval.point(np.full((1, 1, 1), value)) for value in (stored, found, found - stored))
        assert ending.bounds(Margins(*ends))[1].tolist() == [differ]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("sizes", SIZES)
def test_labels_that_have_a_margin(sizes: tuple[int, ...], kernels: Kernels) -> None:
    """Where one is lost, the bounds leave it possible; and they clear boxes in which labels of less margin are lost."""
    cleared = 0
    for seed in range(8):
        network, program = random_pair(sizes, seed)
        boxes = random_boxes(program, np.random.default_rng(seed), 12)
        reals = Interval(*(program.input.real(np.array(ends)) for ends in zip(*boxes, strict=True)))
        trues = [exhaustive(network, program, box, kernels) for box in boxes]
        for margin in (Fraction(1, 100), Fraction(1, 20), Fraction(3, 10), Fraction(1, 2)):
            found = ProgramZonotopes(network, program, kernels, margin=margin).bounds(reals).differs
            lost = np.array([bool((true.agreement_of(margin) == Agreement.CHANGED).any()) for true in trues])
            assert (found >= lost).all()
            less = np.array([bool((true.agreement == Agreement.CHANGED).any()) for true in trues])
            cleared += int((less & ~found).sum()) if margin < Fraction(1, 2) else 0
    assert kernels is Kernels.ANY or cleared > 0


def test_a_margin_moves_where_the_networks_label_counts() -> None:
    """By hand: with level 1/2 and margin 1/4, label 1 needs a logit of log 3, label 0 one of -log 3."""
    network, program = random_pair((3, 5, 4, 1), 1)
    ending = ProgramZonotopes(network, program, margin=Fraction(1, 4)).ending
    assert isinstance(ending, _Logistic)
    for stored, found, differ in (
        (1.0986, ending.falls, False),
        (1.0987, ending.falls, True),
        (-1.0986, ending.rises, False),
        (-1.0987, ending.rises, True),
    ):
        ends = (Interval.point(np.full((1, 1, 1), value)) for value in (stored, found, found - stored))
        assert ending.bounds(Margins(*ends))[1].tolist() == [differ]


@pytest.mark.parametrize(("share", "near"), [(0.5, True), (1.5, False)])
def test_shares_may_tie_where_logits_are_near(share: float, near: bool) -> None:
    """A lead that rounding may hide lets the label be another, and the program's a tie; a greater one does not."""
    network, program = random_pair((3, 5, 4, 3), 1)
    ending = ProgramZonotopes(network, program).ending
    assert isinstance(ending, _Shares)
    lead = Interval.point(np.full((3, 2, 1), share * ending.tie))
    _, differs, ties = ending.bounds(Margins(Interval.point(np.zeros((3, 2, 1))), lead, lead))
    assert differs.tolist() == ties.tolist() == [near]


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    network, program = random_pair((3, 5, 4, 1), 1)
    boxes = random_boxes(program, np.random.default_rng(0), 20)
    reals = Interval(*(program.input.real(np.array(ends)) for ends in zip(*boxes, strict=True)))
    whole = ProgramZonotopes(network, program).bounds(reals)
    monkeypatch.setattr(programs, "NUMBERS", 1)
    each = ProgramZonotopes(network, program).bounds(reals)
    np.testing.assert_allclose(each.change, whole.change, atol=1e-9)
    np.testing.assert_array_equal(each.differs, whole.differs)


def test_what_has_no_rule() -> None:
    network, program = random_pair((2, 4, 1), 1)
    first, second, end = program.operations
    assert isinstance(first, Affine)
    hidden, last = network.layers
    linear, curved = (
        Network((Dense(hidden.weight, hidden.bias, activation), last), Output.SIGMOID)
        for activation in (Activation.LINEAR, Activation.TANH)
    )
    with pytest.raises(UnsupportedError, match="4 linear units ships as fully connected 4 with an activation"):
        ProgramZonotopes(linear, program)
    bare = replace(program, operations=(replace(first, bounds=Bounds(-120)), second, end))
    with pytest.raises(UnsupportedError, match="not cut at 0"):
        ProgramZonotopes(network, bare)
    with pytest.raises(UnsupportedError, match="pair dense layers of linear and ReLU units"):
        ProgramZonotopes(curved, program)
    moved = replace(program, operations=(Requantize(2, first.input, first.input), *program.operations))
    with pytest.raises(UnsupportedError, match="fully connected layers, then one logistic"):
        ProgramZonotopes(network, moved)
    other, _ = random_pair((2, 5, 1), 1)
    with pytest.raises(UnsupportedError, match="not 5 units with fully connected 4"):
        ProgramZonotopes(other, program)
    assert ProgramZonotopes(network, program, level=Fraction(1, 3)).bounds(Interval.point(np.zeros((1, 2)))).change[0] < 1
