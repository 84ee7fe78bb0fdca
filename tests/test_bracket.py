"""An ordinary network between two of signs: every claim against exhaustive truth on few cells, Z3, and dense samples."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust.answers import Verdict
from qrobust.binarized import BinarizedSession, Box, Robustness
from qrobust.binarized.bracket import (
    ASK,
    NO,
    YES,
    Bracket,
    Half,
    Side,
    class_index,
    cost_of,
    coverage_of_rows,
    coverage_of_volume,
)
from qrobust.binarized.bracket_build import Plan, build
from qrobust.binarized.bracket_files import load_bracket, save_bracket
from qrobust.binarized.bracket_proof import Claim, Sums, greatest_wrong_sum, half_of, prove
from qrobust.binarized.bracket_training import Recipe
from qrobust.binarized.formats import load_binarized, save_binarized
from qrobust.binarized.thermometer import Thermometer, along_boundary, explicit, uniform
from qrobust.charts import draw_bracket
from qrobust.domains import InputBox
from qrobust.errors import DomainError, ModelFileError, NumberError, ShapeError, UnsupportedError
from qrobust.formats import load
from qrobust.layers import IntArray
from qrobust.network import Activation, Dense, Feature, Network, Output
from qrobust.search import Budget

MODELS = Path(__file__).parents[1] / "models"
LONG = Budget(60.0)
QUICK = Plan(Recipe(hidden=(8,), steps=120), starts=1, rounds=2, seconds=60.0)


def random_network(rng: np.random.Generator, inputs: int, hidden: int, outputs: int, activation: Activation) -> Network:
    """Of dyadic numbers; without a hidden layer if `hidden` is 0."""
    layers, size = [], inputs
    if hidden:
        layers.append(Dense(rng.integers(-8, 9, (hidden, inputs)) / 4, rng.integers(-8, 9, hidden) / 4, activation))
        size = hidden
    layers.append(Dense(rng.integers(-8, 9, (outputs, size)) / 4, rng.integers(-8, 9, outputs) / 8))
    return Network(tuple(layers), Output.SIGMOID if outputs == 1 else Output.SOFTMAX)


def random_half(rng: np.random.Generator, bits: int, hidden: tuple[int, ...], threshold: int = 0) -> Half:
    layers, size = [], bits
    for width in hidden:
        layers.append((rng.integers(-1, 2, (width, size)), rng.integers(-4, 5, width) / 2))
        size = width
    return Half(tuple(layers), rng.integers(-1, 2, size), threshold)


def random_code(rng: np.random.Generator, network: Network, most: int) -> Thermometer:
    """Over the box from -2 to 2; a feature may have no threshold, but one has."""
    choices = np.arange(-15, 16) / 8
    counts = rng.integers(0, most + 1, network.inputs)
    counts[0] = max(counts[0], 1)
    values = [np.sort(rng.choice(choices, size=count, replace=False)) for count in counts]
    return explicit(network, InputBox([-2.0] * network.inputs, [2.0] * network.inputs), [each.tolist() for each in values])


def sums_by_hand(half: Half, bits: IntArray) -> IntArray:
    """The output sums, each neuron by the sentence that defines it."""
    values = np.asarray(bits)
    for weight, bias in half.layers:
        values = np.where(values @ weight.T + bias >= 0, 1, -1)
    return np.asarray(values @ half.output)


def z3_says_wrong(claim: Claim, half: Half, code: Thermometer) -> bool:
    """Whether Z3 finds an input of the box where the half speaks and the claim fails: both networks over the same reals."""
    import z3

    def number(value: float) -> Any:
        fraction = Fraction(value)
        return z3.Q(fraction.numerator, fraction.denominator)

    x = [z3.Real(f"x{i}") for i in range(code.box.inputs)]
    solver = z3.Solver()
    ends = zip(x, code.box.lower.tolist(), code.box.upper.tolist(), strict=True)
    solver.add(*(z3.And(v >= number(low), v <= number(high)) for v, low, high in ends))
    values = [z3.If(x[i] >= number(t), 1, 0) for i, each in enumerate(code.thresholds) for t in each.tolist()]
    for weight, bias in half.layers:
        rows = [
            z3.Sum([int(w) * v for w, v in zip(row, values, strict=True)]) >= math.ceil(-b)
            for row, b in zip(weight.tolist(), bias.tolist(), strict=True)
        ]
        values = [z3.If(row, 1, -1) for row in rows]
    solver.add(z3.Sum([int(w) * v for w, v in zip(half.output.tolist(), values, strict=True)]) > half.threshold)
    h = x
    for layer in claim.network.layers:
        assert isinstance(layer, Dense)
        z = [
            z3.Sum([number(w) * v for w, v in zip(row, h, strict=True)]) + number(b)
            for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        ]
        h = [z3.If(v > 0, v, z3.RealVal(0)) for v in z] if layer.activation is Activation.RELU else z
    behind = [z3.Sum([number(a) * v for a, v in zip(row, h, strict=True)]) < 0 for row in claim.rows.tolist()]
    solver.add(z3.Not(z3.And(behind) if claim.side is Side.YES else z3.Or(behind)))
    result = solver.check()
    assert result != z3.unknown
    return bool(result == z3.sat)


def cells(code: Thermometer) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(t.size + 1) for t in code.thresholds)))


def test_a_point_on_a_threshold_belongs_to_the_cell_above() -> None:
    code = Thermometer(InputBox([0.0], [10.0]), (Feature("length", "cm"),), (np.array([2.0, 5.0]),))
    assert code.encode(np.array([[0.0], [2.0], [4.999], [5.0], [10.0]])).tolist() == [[0, 0], [1, 0], [1, 0], [1, 1], [1, 1]]
    assert code.bit_names == ("length >= 2 cm", "length >= 5 cm")
    assert code.ends(np.array([[0], [1], [2]])).upper.tolist() == [[2.0], [5.0], [10.0]]
    assert code.shares(np.array([[0], [1], [2]])).tolist() == pytest.approx([0.2, 0.3, 0.5])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0.0]], "does not lie inside"),
        ([[10.0]], "does not lie inside"),
        ([[3.0, 3.0]], "given twice"),
        ([[]], "no threshold"),
    ],
)
def test_bad_thresholds_are_one_line(values: list[list[float]], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        Thermometer(InputBox([0.0], [10.0]), (Feature("length", "cm"),), tuple(np.array(each) for each in values))


def test_other_bad_input_is_one_line() -> None:
    network = load(MODELS / "iris.json")
    box = InputBox.of_features(network)
    with pytest.raises(NumberError, match="not a finite"):
        explicit(network, box, [[math.nan], [], [], []])
    with pytest.raises(DomainError, match="no class 'rose'"):
        class_index(network, "rose")
    with pytest.raises(DomainError, match="classes 0 to 2"):
        Claim(network, 3, Side.YES)
    with pytest.raises(DomainError, match="sepal length is 99"):
        build(network, 0, uniform(network, box, 2), QUICK, np.array([[99.0, 3, 3, 1]]))
    with pytest.raises(DomainError, match="no threshold"):
        uniform(network, InputBox([5.0, 3, 3, 1], [5.0, 3, 3, 1]), 3)
    for fault in ({"hidden": (0,)}, {"punish": 0.0}, {"steps": 0}):
        with pytest.raises(NumberError):
            Recipe(**fault)


def test_sums_over_codes_enclose_and_are_exact_at_a_code() -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        network = random_network(rng, int(rng.integers(1, 4)), 0, 1, Activation.LINEAR)
        code = random_code(rng, network, 3)
        half = random_half(rng, code.bits, tuple(rng.integers(1, 5, rng.integers(0, 3)).tolist()))
        sums = Sums(half, code)
        every = np.array(cells(code))
        truth = sums_by_hand(half, code.bits_of(every))
        assert sums.at(every).tolist() == truth.tolist()
        assert sums_by_hand(half.pruned(), code.bits_of(every)).tolist() == truth.tolist()
        low = every[rng.integers(len(every), size=20)]
        high = np.maximum(low, every[rng.integers(len(every), size=20)])
        least, most = sums.bounds(low, high)
        for a, b, first, last in zip(low, high, least, most, strict=True):
            own = truth[((every >= a) & (every <= b)).all(axis=1)]
            assert first <= own.min()
            assert own.max() <= last
            if not half.layers:
                assert (first, last) == (own.min(), own.max())


def compared_with_truth(count: int) -> tuple[int, int]:
    """Return how many random pairs of linear networks and halves were compared with all cells, and how many differed.

    On a cell, a half-open box, an affine lead is greatest at a corner, which belongs to the cell or is its limit.
    """
    rng = np.random.default_rng(2)
    compared = differing = 0
    for _ in range(count):
        network = random_network(rng, int(rng.integers(1, 4)), 0, 1, Activation.LINEAR)
        code = random_code(rng, network, 3)
        half = random_half(rng, code.bits, (4,))
        side, label = list(Side)[rng.integers(2)], int(rng.integers(2))
        claim = Claim(network, label, side)
        layer = network.layers[0]
        row, bias = claim.rows[0, 0] * layer.weight[0], claim.rows[0, 0] * layer.bias[0]
        every = np.array(cells(code))
        ends = code.ends(every)
        greatest = np.where(row > 0, ends.upper, ends.lower) @ row + bias
        if (greatest == 0).any():  # the lead is 0 at an end that may not belong to its cell
            continue
        wrong = sums_by_hand(half, code.bits_of(every))[greatest > 0]
        found = greatest_wrong_sum(claim, half, code, LONG)
        compared += 1
        differing += not (
            found.lower == found.upper == wrong.max(initial=-(10**9)) or (not len(wrong) and found.threshold is None)
        )
        if found.witness is not None:
            assert claim.fails_at(found.witness)
            assert sums_by_hand(half, code.encode(found.witness[None]))[0] == found.lower
    return compared, differing


def test_least_thresholds_of_linear_networks_are_the_exhaustive_truth() -> None:
    compared, differing = compared_with_truth(120)
    assert compared > 60
    assert differing == 0


@pytest.mark.parametrize("broken", ["codes", "signs", "claims"])
def test_the_truth_catches_broken_kernels(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    if broken == "codes":  # a box is taken for the cell of its lower corner
        monkeypatch.setattr(Thermometer, "codes_below", lambda code, upper: np.zeros(upper.shape, dtype=np.int64))
    elif broken == "signs":  # the greatest sum is given as the least
        bounds = Sums.bounds
        monkeypatch.setattr(Sums, "bounds", lambda sums, low, high: (bounds(sums, low, high)[0],) * 2)
    else:  # every second box is called proved
        monkeypatch.setattr(Claim, "holds_on", lambda claim, boxes: np.arange(len(boxes)) % 2 == 1)
    assert compared_with_truth(40)[1] > 0


@pytest.mark.parametrize("seed", range(12))
def test_least_thresholds_agree_with_z3(seed: int) -> None:
    rng = np.random.default_rng(seed)
    network = random_network(rng, 2, 3, int(rng.choice([1, 3])), Activation.RELU)
    code = random_code(rng, network, 3)
    half = random_half(rng, code.bits, (3,))
    claim = Claim(network, int(rng.integers(network.class_count)), list(Side)[seed % 2])
    found = greatest_wrong_sum(claim, half, code, Budget(10.0, 20_000))
    if found.threshold is None:
        assert not z3_says_wrong(claim, replace(half, threshold=-half.greatest - 1), code)
        return
    assert not z3_says_wrong(claim, replace(half, threshold=found.threshold), code)
    if found.lower > -np.inf:
        assert z3_says_wrong(claim, replace(half, threshold=int(found.lower) - 1), code)


@pytest.mark.parametrize("activation", [Activation.SIGMOID, Activation.TANH, Activation.RELU])
def test_no_sample_contradicts_a_proof(activation: Activation) -> None:
    rng = np.random.default_rng(7)
    network = random_network(rng, 2, 4, 3, activation)
    code = uniform(network, InputBox([-2.0, -2.0], [2.0, 2.0]), 5)
    built = build(network, 1, code, QUICK)
    x = code.random_points(20_000, rng)
    on = code.ends(np.array(cells(code))).lower  # all corners of cells: points on thresholds
    x = np.concatenate([x, on])
    answers, labels = built.bracket.answers(x), network.labels(x)
    assert (labels[answers == YES] == 1).all()
    assert (labels[answers == NO] != 1).all()
    assert {one.found.claim.side for one in built.chosen} == set(Side)


def test_a_wrong_half_is_found_and_a_high_enough_threshold_always_holds() -> None:
    network = load(MODELS / "cat_paper.json")
    code = uniform(network, InputBox.of_features(network), 3)
    rng = np.random.default_rng(3)
    halves = {side: random_half(rng, code.bits, (5,), -100) for side in Side}
    bracket = Bracket.of_halves(network, 1, code, halves)
    for side in Side:
        found = prove(network, bracket, side, LONG)
        assert found.verdict is Verdict.VIOLATED
        assert found.witness is not None
        answer = int(bracket.answers(found.witness[None])[0])
        assert answer != ASK
        assert Claim(network, 1, side).fails_at(found.witness)
    verdicts = []
    for threshold in range(-6, 7):
        raised = {side: replace(half, threshold=threshold) for side, half in halves.items()}
        pair = Bracket.of_halves(network, 1, code, raised)
        verdicts.append([prove(network, pair, side, LONG).verdict for side in Side])
        least = [greatest_wrong_sum(Claim(network, 1, side), raised[side], code, LONG).threshold for side in Side]
        assert verdicts[-1] == [Verdict.VIOLATED if one is not None and threshold < one else Verdict.ROBUST for one in least]
    assert verdicts[-1] == [Verdict.ROBUST, Verdict.ROBUST]
    assert Verdict.VIOLATED in {one for pair_ in verdicts for one in pair_}


def test_a_budget_that_ends_leaves_a_threshold_that_holds() -> None:
    network = load(MODELS / "breast_cancer.json")
    code = uniform(network, InputBox.of_features(network), 6)
    half = build(network, 0, code, QUICK).chosen[0].half
    claim = Claim(network, 0, Side.YES)
    whole, short = (greatest_wrong_sum(claim, half, code, Budget(60.0, boxes)) for boxes in (10**6, 4))
    assert whole.lower == whole.upper
    assert whole.boxes > 10
    assert "limit" in short.reason
    assert short.lower <= whole.lower <= whole.upper <= short.upper
    assert short.threshold is not None


def test_ties_belong_to_neither() -> None:
    """f is 0 throughout: it says no class strictly, so neither half may speak, and both must be silent."""
    network = Network((Dense(np.zeros((2, 1)), np.zeros(2)),), Output.SOFTMAX)
    code = uniform(network, InputBox([0.0], [1.0]), 3)
    built = build(network, 0, code, QUICK)
    assert built.is_silent
    assert built.volume.answered == 0


@pytest.mark.parametrize("name", ["cat_paper", "ath_relu", "ath_linear", "breast_cancer"])
def test_bundled_models_are_mostly_answered(name: str) -> None:
    network = load(MODELS / f"{name}.json")
    box = InputBox.of_features(network)
    code = along_boundary(network, box, 9, np.random.default_rng(0))
    built = build(network, 1, code, Plan(Recipe(hidden=(12,)), starts=1, rounds=3, seconds=60.0))
    assert all(one.found.lower == one.found.upper for one in built.chosen)
    assert built.volume.exact
    assert built.volume.answered > 0.8
    x = code.random_points(5000, np.random.default_rng(1))
    answers, labels = built.bracket.answers(x), network.labels(x)
    assert (labels[answers == YES] == 1).all()
    assert (labels[answers == NO] == 0).all()
    assert abs((answers != ASK).mean() - built.volume.answered) < 0.03


def test_three_classes_and_rows_of_data() -> None:
    network = load(MODELS / "iris.json")
    box = InputBox.of_features(network)
    code = along_boundary(network, box, 5, np.random.default_rng(0))
    rows = np.array([[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5], [4.9, 3.0, 1.4, 0.2]])
    built = build(network, 0, code, Plan(Recipe(hidden=(16,)), starts=2, rounds=3, seconds=90.0), rows)
    assert built.rows is not None
    assert built.rows.count == 3
    assert built.rows.no >= 1 / 3
    assert [prove(network, built.bracket, side, LONG).verdict for side in Side] == [Verdict.ROBUST, Verdict.ROBUST]
    document = json.loads(json.dumps(built.to_json(), allow_nan=False))
    assert document["class"] == "setosa"
    assert [half["verdict"] for half in document["halves"]] == ["PROVED", "PROVED"]


def test_the_same_seed_gives_the_same_pair() -> None:
    network = load(MODELS / "cat_paper.json")
    code = along_boundary(network, InputBox.of_features(network), 5, np.random.default_rng(0))
    trained = replace(QUICK, recipe=replace(QUICK.recipe, hidden=(8, 4)))  # not put together from boxes
    first, second, other = (build(network, 1, code, replace(trained, seed=seed)).bracket.network.sha256 for seed in (0, 0, 1))
    assert first == second
    assert first != other


def test_coverage_counts_cells_and_points_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    network = load(MODELS / "cat_paper.json")
    code = uniform(network, InputBox.of_features(network), 3)

    def answer(codes: Any) -> Any:
        return np.where(codes[:, 0] >= 2, YES, np.where(codes[:, 1] == 0, NO, ASK))

    exact = coverage_of_volume(code, answer, np.random.default_rng(0))
    assert exact.exact
    assert (exact.yes, exact.no) == pytest.approx((0.5, 0.125), abs=1e-3)
    monkeypatch.setattr("qrobust.binarized.bracket.MOST_CELLS", 1)
    sampled = coverage_of_volume(code, answer, np.random.default_rng(0))
    assert not sampled.exact
    assert sampled.low < exact.answered < sampled.high
    assert sampled.high - sampled.low < 0.01
    rows = coverage_of_rows(code, answer, np.array([[20.0, 3.0], [6.5, 2.1], [6.5, 3.8]]))
    assert (rows.yes, rows.no) == pytest.approx((1 / 3, 1 / 3))


def test_costs_are_counted() -> None:
    cost = cost_of(load(MODELS / "ath_relu.json"))
    assert (cost.bits, cost.multiplications, cost.comparisons) == (13 * 32, 9, 4)
    network = load(MODELS / "cat_paper.json")
    code = uniform(network, InputBox.of_features(network), 1)
    half = Half(((np.array([[1, -1]]), np.array([0.0])),), np.array([1]), 0)
    found = Bracket.of_halves(network, 1, code, dict.fromkeys(Side, half)).cost()
    # two thresholds; four weights of two signs and two of the scores; counters of 3, 3 (sums -2..2) and 2, 2 (-1..1) bits
    assert (found.bits, found.additions, found.comparisons, found.multiplications) == (2 * 32 + 6 * 2 + 10, 6, 2 + 2 + 2, 0)


@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_files_come_back_and_are_binarized_networks(tmp_path: Path, suffix: str) -> None:
    network = load(MODELS / "cat_paper.json")
    code = along_boundary(network, InputBox.of_features(network), 5, np.random.default_rng(0))
    bracket = build(network, 1, code, QUICK).bracket
    path = tmp_path / f"male{suffix}"
    save_bracket(bracket, path)
    read = load_bracket(path)
    assert read.network.sha256 == bracket.network.sha256 == load_binarized(path).network.sha256
    assert [t.tolist() for t in read.code.thresholds] == [t.tolist() for t in code.thresholds]
    assert (read.label, read.class_name, read.sha256) == (1, "male", network.sha256)
    x = code.random_points(500, np.random.default_rng(0))
    assert read.answers(x).tolist() == bracket.answers(x).tolist()
    point = x[read.answers(x) == YES][:1]
    bits = code.encode(point)[0].astype(float)
    with BinarizedSession() as session:  # a decision, asked about as any binarized network's: these bits give yes, exactly
        answer = session.check(Robustness(read.network, Box(bits, bits), YES))
    assert answer.verdict is Verdict.ROBUST
    with pytest.raises(DomainError, match="made for network"):
        prove(load(MODELS / "ath_relu.json"), read, Side.YES, LONG)


def test_halves_come_back_from_a_pair() -> None:
    rng = np.random.default_rng(9)
    network = load(MODELS / "iris.json")
    code = uniform(network, InputBox.of_features(network), 2)
    for hidden in ((), (4,), (4, 3)):
        halves = {side: random_half(rng, code.bits, hidden, int(rng.integers(-2, 3))) for side in Side}
        bracket = Bracket.of_halves(network, 2, code, halves)
        every = np.array(cells(code))
        speaks = {}
        for side, half in halves.items():
            own = half_of(bracket, side)
            truth = sums_by_hand(half, code.bits_of(every))
            assert sums_by_hand(own, code.bits_of(every)).tolist() == truth.tolist()
            assert own.threshold == half.threshold
            speaks[side] = truth > half.threshold
        answers = bracket.answers_of(every)
        assert ((answers == ASK) == ~(speaks[Side.YES] | speaks[Side.NO])).all()


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    network = load(MODELS / "cat_paper.json")
    code = uniform(network, InputBox.of_features(network), 2)
    halves = {side: random_half(np.random.default_rng(0), code.bits, (3,)) for side in Side}
    bracket = Bracket.of_halves(network, 1, code, halves)
    path = tmp_path / "pair.json"
    save_bracket(bracket, path)
    document = json.loads(path.read_text())
    save_binarized(bracket.network, tmp_path / "plain.json")
    with pytest.raises(ModelFileError, match="without a bracket"):
        load_bracket(tmp_path / "plain.json")
    for change, message in (
        ({"version": 2}, "version 2"),
        ({"features": document["bracket"]["features"][:1]}, "2 bits"),
        ({"features": [{**f, "thresholds": [99.0]} for f in document["bracket"]["features"]]}, "inside the box"),
        ({"label": None}, "not a whole"),
    ):
        path.write_text(json.dumps(document | {"bracket": document["bracket"] | change}))
        with pytest.raises(ModelFileError, match=message):
            load_bracket(path)
    path.write_text(json.dumps(document | {"bracket": document["bracket"] | {"label": 0}}))
    with pytest.raises(DomainError, match="calls class 0 'male'"):
        prove(network, load_bracket(path), Side.YES, LONG)
    document["layers"][-1]["bias"][0] = 5.0  # an ASK that is not 0 would hide what the halves say
    path.write_text(json.dumps(document))
    with pytest.raises(ModelFileError, match="first score"):
        load_bracket(path)
    with pytest.raises(ShapeError, match="hidden layers"):
        Bracket.of_halves(network, 1, code, {Side.YES: halves[Side.YES], Side.NO: Half((), np.zeros(code.bits, int), 0)})


def test_pictures_are_drawn(tmp_path: Path) -> None:
    network = load(MODELS / "iris.json")
    code = uniform(network, InputBox.of_features(network), 2)
    halves = {side: random_half(np.random.default_rng(0), code.bits, (3,)) for side in Side}
    bracket = Bracket.of_halves(network, 0, code, halves)
    written = draw_bracket(bracket, network, tmp_path / "setosa", (2, 3))
    assert [path.suffix for path in written] == [".png", ".svg"]
    text = written[1].read_text()
    assert all(word in text for word in ("petal length [cm]", "petal width [cm]", "proved not setosa", "sepal length = 6.1 cm"))
    with pytest.raises(UnsupportedError, match="two features"):
        draw_bracket(bracket, network, tmp_path / "setosa", (2, 2))
