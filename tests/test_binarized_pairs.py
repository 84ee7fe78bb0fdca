"""Label change between a network of signs, or a float network, and a network of signs, against trying every input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qrobust.answers import Assurance, Verdict
from qrobust.backends.worker import Worker
from qrobust.binarized import (
    Ball,
    BinarizedNetwork,
    BinarizedSession,
    Block,
    Box,
    Grid,
    LabelChange,
    Norm,
    TieRule,
    ZeroSign,
    fold,
)
from qrobust.binarized import float_pairs as float_pairs_module
from qrobust.binarized.constraints import constraints
from qrobust.binarized.engines import cpsat, milp, pseudo_boolean, sat
from qrobust.binarized.engines.base import Found, Nothing
from qrobust.binarized.float_pairs import FloatLabels
from qrobust.binarized.formats import load_binarized, save_binarized
from qrobust.binarized.pairs import SAME, paired
from qrobust.errors import ShapeError, UnsupportedError
from qrobust.exact import to_exact
from qrobust.formats import load, save
from qrobust.layers import Activation, Dense
from qrobust.network import Network, Output
from qrobust.quantization import Ternary
from tests import binarized as random_parts
from tests.binarized import all_levels, ball, network, sparse_dense
from tests.test_cli import refused, run

MODELS = Path(__file__).parent.parent / "models"


@pytest.fixture(scope="module")
def session() -> Iterator[BinarizedSession]:
    with BinarizedSession() as found:
        yield found


def pair(seed: int) -> tuple[np.random.Generator, BinarizedNetwork, BinarizedNetwork]:
    """A random network, and another of as many inputs and classes: one that differs in few weights, or in everything."""
    rng = np.random.default_rng(seed)
    first = network(rng)
    if first.blocks and seed % 2:
        last = first.output
        weight = last.layer.weight * (rng.random(last.layer.weight.shape) < 0.9)
        return rng, first, BinarizedNetwork(first.grid, first.blocks, type(last)(Dense(weight, last.layer.bias), last.scale))
    width = int(rng.integers(1, 5))
    blocks = (Block(random_parts.linear(rng, width, first.inputs, 0.3)),)
    return rng, first, BinarizedNetwork(first.grid, blocks, random_parts.linear(rng, first.outputs, width, 0.3))


def test_pairs_tell_where_labels_differ() -> None:
    for seed in range(150):
        _, first, second = pair(seed)
        zero = ZeroSign.PLUS if seed % 3 else ZeroSign.MINUS
        one, two = fold(first, zero), fold(second, zero)
        levels = all_levels(first)
        apart = one.labels(levels) != two.labels(levels)
        np.testing.assert_array_equal(paired(one, two).is_lost(levels, SAME, TieRule.LABEL), apart)
        assert not paired(one, one).is_lost(levels, SAME, TieRule.LABEL).any()


def test_every_engine_tells_the_truth_of_pairs() -> None:
    worker, verdicts = Worker(), set()
    try:
        for seed in range(60):
            rng, first, second = pair(seed)
            folded, levels = paired(fold(first), fold(second)), all_levels(first)
            region = ball(rng, first, first.grid.values(levels[rng.integers(len(levels))])).region(first)
            apart = fold(first).labels(levels) != fold(second).labels(levels)
            wanted = bool((apart & [region.contains(x) for x in levels]).any())
            asked = constraints(folded, region, SAME, TieRule.LABEL)
            if not asked.rival_classes:
                assert not wanted
                continue
            verdicts.add(wanted)
            outcomes = [engine(asked, 60.0) for engine in (sat.decide, milp.decide, pseudo_boolean.decide)]
            outcomes.append(worker.call(cpsat.decide, asked, 60.0, seconds=60.0))
            for outcome in outcomes:
                assert isinstance(outcome, Found if wanted else Nothing), f"case {seed}: {outcome}"
                if isinstance(outcome, Found):
                    assert region.contains(outcome.levels)
                    assert apart[(levels == outcome.levels).all(axis=1)].all()
    finally:
        worker.close()
    assert verdicts == {True, False}


def test_the_session_tells_the_truth_of_pairs(session: BinarizedSession) -> None:
    for seed in range(40):
        rng, first, second = pair(seed)
        levels = all_levels(first)
        where = ball(rng, first, first.grid.values(levels[rng.integers(len(levels))]))
        inside = np.array([where.region(first).contains(x) for x in levels])
        apart = inside & (fold(first).labels(levels) != fold(second).labels(levels))
        answer = session.label_change(LabelChange(first, second, where), exact=True)
        assert (answer.verdict is Verdict.VIOLATED) == bool(apart.any()), f"case {seed}"
        assert answer.verdict is not Verdict.UNKNOWN
        if answer.witness is not None:
            assert apart[(levels == answer.witness.levels).all(axis=1)].all()
            assert answer.assurance is Assurance.CHECKED


def test_a_copy_of_itself_needs_no_solver(session: BinarizedSession) -> None:
    read = load_binarized(MODELS / "bnn_ternary_l1_stable.npz").network
    answer = session.label_change(LabelChange(read, read, Ball(np.full(784, 0.5), Fraction(1, 2))))
    assert (answer.verdict, answer.engine) == (Verdict.ROBUST, "intervals")


def float_network(rng: np.random.Generator, classes: int, inputs: int = 4) -> Network:
    hidden = Dense(rng.normal(size=(5, inputs)), rng.normal(size=5), Activation.RELU)
    last = Dense(rng.normal(size=(1 if classes == 2 else classes, 5)), rng.normal(size=1 if classes == 2 else classes))
    return Network((hidden, last), Output.SIGMOID if classes == 2 else Output.SOFTMAX)


def exact_label(found: Network, grid: Grid, levels: list[int]) -> int:
    """By the definition, in rationals."""
    values = [grid.offset + grid.step * level for level in levels]
    for layer in found.layers:
        assert isinstance(layer, Dense)
        rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        values = [sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(b)) for row, b in rows]
        values = [max(v, Fraction(0)) for v in values] if layer.activation is Activation.RELU else values
    return int(values[0] > 0) if len(values) == 1 else values.index(max(values))


@pytest.mark.parametrize("few", [10**6, 8])
def test_float_networks_beside_their_copies(session: BinarizedSession, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried one by one, and by splitting with few inputs left to try."""
    if few == 8:
        monkeypatch.setattr("qrobust.binarized.solve.is_small_region", lambda region: False)
        monkeypatch.setattr(float_pairs_module, "FEW", few)
        monkeypatch.setattr(float_pairs_module, "SAMPLES", 1)
    grid, verdicts = Grid.of("1/3", 0, 1), set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        own = float_network(rng, 2 + seed % 3)
        copy = random_copy(own, grid)
        levels = all_levels(copy)
        wide = Box(np.zeros(4), rng.integers(0, 4, size=4) / 3 + 1e-9)
        where: Ball | Box = wide if seed % 2 else Ball(grid.values(levels[rng.integers(256)]), Fraction(2, 3), Norm.L1)
        region = where.region(copy)
        labels = FloatLabels(own, grid).at(levels)
        assert labels.tolist() == [exact_label(own, grid, each) for each in levels.tolist()]
        inside = np.array([region.contains(x) for x in levels])
        apart = inside & (labels != fold(copy).labels(levels))
        answer = session.label_change(LabelChange(own, copy, where), exact=True)
        assert answer.verdict is (Verdict.VIOLATED if apart.any() else Verdict.ROBUST), f"case {seed}: {answer}"
        verdicts.add(answer.verdict)
        if answer.witness is not None:
            assert apart[(levels == answer.witness.levels).all(axis=1)].all()
    assert len(verdicts) == 2


def random_copy(own: Network, grid: Grid) -> BinarizedNetwork:
    from qrobust.binarized.formats.binarize import binarize

    return binarize(own, Ternary(), grid)


def test_a_tie_of_the_float_network_is_decided_exactly() -> None:
    """x / 3 - x / 3 in rationals is 0 at every level: class 0, though float sums may say otherwise."""
    own = Network((Dense(np.array([[3.0, -3.0]]), np.zeros(1)),), Output.SIGMOID)
    labels = FloatLabels(own, Grid.of("1/3", 0, 1))
    same = np.array([[1, 1], [2, 2], [3, 3]])
    assert labels.over(same, same).tolist() != [0, 0, 0]  # intervals leave a choice
    assert labels.at(same).tolist() == [0, 0, 0]
    assert labels.at(np.array([[2, 1], [1, 2]])).tolist() == [1, 0]
    assert to_exact([Fraction(1, 3)])[0] * 3 == 1


def test_time_runs_out_as_unknown(session: BinarizedSession) -> None:
    rng = np.random.default_rng(5)
    own = float_network(rng, 3, inputs=30)
    grid = Grid.of("1/255", 0, 1)
    copy = random_copy(own, grid)
    centre = grid.values(rng.integers(100, 150, size=30))
    answer = session.label_change(LabelChange(own, copy, Ball(centre, Fraction(0))), seconds=5.0)
    label = own.labels(centre[None])[0]
    tiny = Ball(centre, Fraction(2, 255))
    if answer.verdict is Verdict.ROBUST:
        found = session.label_change(LabelChange(own, copy, tiny), seconds=0.5)
        assert found.seconds < 2.5
        assert found.verdict is not Verdict.VIOLATED or found.witness is not None
    else:
        assert answer.witness is not None
        assert answer.witness.label == label


def test_what_cannot_be_compared_is_one_line() -> None:
    one = BinarizedNetwork(Grid.of(1, 0, 1), (), sparse_dense(np.eye(2)))
    other = BinarizedNetwork(Grid.of(1, 0, 2), (), sparse_dense(np.eye(2)))
    with BinarizedSession() as session, pytest.raises(UnsupportedError, match="one step and range"):
        session.label_change(LabelChange(one, other, Ball(np.zeros(2), Fraction(1))))
    with pytest.raises(ShapeError, match="2 inputs and the copy 3"):
        LabelChange(one, BinarizedNetwork(Grid.of(1, 0, 1), (), sparse_dense(np.ones((2, 3)))), Ball(np.zeros(2), Fraction(1)))
    with pytest.raises(ShapeError, match="2 classes and the copy 3"):
        LabelChange(one, BinarizedNetwork(Grid.of(1, 0, 1), (), sparse_dense(np.ones((3, 2)))), Ball(np.zeros(2), Fraction(1)))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Majority of three bits, and all of three bits."""
    for name, limit in (("some", -1.5), ("all", -2.5)):
        block = Block(sparse_dense(np.ones((1, 3)), np.array([limit])))
        found = BinarizedNetwork(Grid.of(1, 0, 1), (block,), sparse_dense(np.array([[-1.0], [1.0]])))
        save_binarized(found, tmp_path / f"{name}.json")
    return tmp_path / "some.json", tmp_path / "all.json"


def test_the_command_compares(capsys: pytest.CaptureFixture[str], files: tuple[Path, Path], tmp_path: Path) -> None:
    some, every = map(str, files)
    code, out, _ = run(capsys, "bnn", "verify", some, "--copy", every, "--box", "0:1, 0:1, 0:0")
    assert code == 1
    assert "labelled 1 and by the copy 0" in out
    code, out, _ = run(capsys, "bnn", "verify", some, "--copy", every, "--box", "0:1, 0:0, 0:0", "--json")
    assert (code, json.loads(out)["verdict"]) == (0, "ROBUST")
    code, out, _ = run(
        capsys, "bnn", "verify", some, "--copy", every, "--input", "1,1,1", "--eps", "1", "--norm", "l0", "--json"
    )
    document = json.loads(out)
    assert (code, sum(document["counterexample"]["levels"])) == (1, 2)
    assert run(capsys, "bnn", "verify", some, "--box", "0:1, 0:0, 0:0")[0] == 0


def test_the_command_makes_copies_of_float_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    iris, grid = str(MODELS / "iris.json"), ("--step", "1/2", "--range", "0:8")
    box = ("--box", "4.5:7.5, 2:4, 1:6.5, 0:2.5")
    code, out, _ = run(capsys, "bnn", "verify", iris, "--float", "--copy", "ternary", *grid, *box, "--json")
    document = json.loads(out)
    copy = load_binarized(iris, Grid.of("1/2", 0, 8), Ternary()).network
    region = Box(np.array([4.5, 2, 1, 0]), np.array([7.5, 4, 6.5, 2.5])).region(copy)
    axes = [np.arange(low, high + 1) for low, high in zip(region.lower, region.upper, strict=True)]
    levels = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 4)
    apart = load(iris).labels(levels / 2) != fold(copy).labels(levels)
    assert code == int(apart.any())
    x = document["counterexample"]["levels"]
    assert apart[(levels == x).all(axis=1)].all()
    code, out, _ = run(capsys, "bnn", "verify", iris, "--scheme", "binary", "--copy", "ternary", *grid, *box)
    assert code in (0, 1)
    sigmoid = str(MODELS / "cat_paper.json")
    assert run(capsys, "bnn", "verify", sigmoid, "--scheme", "binary", *grid, "--input", "2, 3", "--eps", "1")[0] in (0, 1)
    save(float_network(np.random.default_rng(0), 2), tmp_path / "one.json")
    code, _, _ = run(
        capsys,
        "bnn",
        "verify",
        str(tmp_path / "one.json"),
        "--float",
        "--copy",
        "binary",
        "--step",
        "1",
        "--range",
        "0:1",
        "--box",
        "0:1,0:1,0:1,0:1",
    )
    assert code in (0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--float", "--box", "0:1,0:1,0:1"], "--float goes with --copy"),
        (["--copy", "binary", "--box", "0:1,0:1,0:1"], "add --float"),
        (["--copy", "ITSELF", "--box", "0:1,0:1"], "2 sides"),
        (["--copy", "ITSELF", "--box", "0:1,0,1"], "lower:upper"),
        (["--copy", "ITSELF", "--box", "0:1,0:1,2:3"], "has no level"),
        (["--copy", "ITSELF"], "give --eps, --box"),
        (["--copy", "ITSELF", "--box", "0:1,0:1,0:1", "--eps", "1"], "leave --input, --eps"),
        (["--copy", "ITSELF", "--box", "0:1,0:1,0:1", "--least"], "leave --least"),
        (["--copy", "ITSELF", "--box", "0:1,0:1,0:1", "--tie", "rival"], "leave --tie and --label"),
        (["--copy", "ITSELF", "--float", "--scheme", "binary", "--box", "0:1,0:1,0:1"], "leave --scheme out"),
    ],
)
def test_bad_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path], options: list[str], message: str
) -> None:
    given = [str(files[0]) if option == "ITSELF" else option for option in options]
    assert message in refused(capsys, "bnn", "verify", str(files[0]), *given)
