"""The greatest change of a logit: between a network and a copy, over boxes, against enumeration of all activation patterns."""

from __future__ import annotations

import json
import time
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linprog
from typer.testing import CliRunner

from qrobust.answers import Counterexample, Estimate
from qrobust.backends import logit_change
from qrobust.check import witness_bounds
from qrobust.cli.commands import app
from qrobust.domains import Domain, InputBox, ParameterBox, Point, Points, Polytope
from qrobust.errors import LawBrokenError, ShapeError, UnsoundAnswerError, UnsupportedError
from qrobust.formats.native import write_native
from qrobust.formula import Encoding, encode
from qrobust.network import Activation, Dense, Network, Output
from qrobust.perturbations import Absolute, Copy
from qrobust.queries import ChangeOf, GlobalEpsilon, LocalEpsilon
from qrobust.search import Budget, Nodes
from qrobust.solve import Session, check_laws
from tests.conftest import RandomNetwork
from tests.test_zonotopes import exact_change, rounded_copy

BUDGET = Budget(seconds=20.0)
FIRST, LAST = Dense(np.array([[1.0]]), np.zeros(1), Activation.RELU), Dense(np.array([[2.0]]), np.zeros(1))
LINE = Network((FIRST, LAST), Output.SIGMOID, name="line")
STEEPER = Network((Dense(np.array([[1.5]]), np.array([0.25]), Activation.RELU), LAST), Output.SIGMOID, name="steeper")


def over(network: Network, copy: Network, domain: Domain) -> GlobalEpsilon:
    return GlobalEpsilon(network, Copy(copy).around(network), domain, ChangeOf.LOGIT)


def attained(estimate: Estimate) -> float:
    assert estimate.witness is not None
    query = estimate.query
    assert isinstance(query, GlobalEpsilon)
    return witness_bounds(query, estimate.witness)[0]


def patterns_maximum(network: Network, copy: Network, box: InputBox) -> float:
    """The greatest change of a logit, by one linear program for each pattern of both networks, row and sign."""
    width = network.layers[0].outputs
    best = 0.0
    for pattern in product([0.0, 1.0], repeat=2 * width):
        rows, limits, ends = [], [], []
        for net, on in ((network, np.array(pattern[:width])), (copy, np.array(pattern[width:]))):
            first, last = net.layers
            signs = np.where(on > 0, -1.0, 1.0)[:, None]  # on: -(w x + b) <= 0; off: w x + b <= 0
            rows.append(signs * first.weight)
            limits.append(-signs[:, 0] * first.bias)
            ends.append((last.weight @ (on[:, None] * first.weight), last.weight @ (on * first.bias) + last.bias))
        slope, constant = ends[1][0] - ends[0][0], ends[1][1] - ends[0][1]
        for row, sign in product(range(len(constant)), (1.0, -1.0)):
            sides = list(zip(box.lower, box.upper, strict=True))
            found = linprog(-sign * slope[row], A_ub=np.concatenate(rows), b_ub=np.concatenate(limits), bounds=sides)
            if found.status == 0:
                best = max(best, -found.fun + sign * constant[row])
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_ends_are_around_the_maximum_over_all_patterns(
    seed: int, random_network: RandomNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logit_change, "RELATIVE", 0.001)
    network = random_network(np.random.default_rng(seed), (2, 3, 2))
    copy, box = rounded_copy(network, 3), InputBox([-1.0, -1.5], [1.0, 0.5])
    found = Session().estimate(over(network, copy, box), budget=BUDGET)
    true = patterns_maximum(network, copy, box)
    assert found.lower - 1e-7 <= true <= found.upper + 1e-7
    assert found.gap <= 0.001 * found.upper
    assert found.lower <= attained(found)


def test_by_hand() -> None:
    """2 relu(1.5 x + 0.25) - 2 relu(x) is 0 below -1/6, rises to 0.5 at 0 and by x + 0.5 beyond: 2.5 at 2."""
    found = Session().estimate(over(LINE, STEEPER, InputBox([-2.0], [2.0])), budget=BUDGET)
    assert found.lower <= 2.5 <= found.upper <= 2.5 / (1 - logit_change.RELATIVE)
    assert found.witness is not None
    assert found.witness.x == (Fraction(2),)
    assert "the greatest change of a logit over the box [-2, 2] (exactly the parameters of steeper) lies in [2.5" in str(found)
    assert found.to_json()["query"]["of"] == "logit"


def test_at_a_point_and_at_points() -> None:
    parameters = Copy(STEEPER).around(LINE)
    local = Session().estimate(LocalEpsilon(LINE, parameters, Point([1.0]), ChangeOf.LOGIT))
    assert (local.lower, local.upper) == pytest.approx((1.5, 1.5), abs=1e-12)
    several = Session().estimate(GlobalEpsilon(LINE, parameters, Points([[1.0], [0.0], [-1.0]]), ChangeOf.LOGIT))
    assert (several.lower, several.upper) == pytest.approx((1.5, 1.5), abs=1e-12)


def test_over_a_polytope() -> None:
    found = Session().estimate(over(LINE, STEEPER, Polytope(InputBox([-2.0], [2.0]), [[2.0]], [1.0])), budget=BUDGET)
    assert found.lower <= 1.0 <= found.upper <= 1.0 / (1 - logit_change.RELATIVE)


def test_over_a_box_of_parameters() -> None:
    """abs(p - p0) <= 1/4 at x <= 2: 2.25 relu(1.25 x + 0.25) + 0.25 - 2 x = 6.4375 - 4 at most, 2 against 0.25 + 2.25 (...)."""
    parameters = Absolute(0.25).around(LINE)
    found = Session().estimate(GlobalEpsilon(LINE, parameters, InputBox([0.0], [2.0]), ChangeOf.LOGIT), budget=Budget(5.0))
    true = 2.25 * (1.25 * 2 + 0.25) + 0.25 - 4.0
    assert found.lower == pytest.approx(true, rel=1e-9)  # the sign steps find the corner
    assert true <= found.upper
    assert attained(found) == pytest.approx(true, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_no_change_exceeds_the_upper_end(seed: int, random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(seed)
    network = random_network(rng, (3, 8, 8, 4))
    copy = rounded_copy(network, 5)
    found = Session().estimate(over(network, copy, InputBox([-1.0] * 3, [1.0] * 3)), budget=Budget(seconds=4.0))
    stored = tuple((layer.weight, layer.bias) for layer in copy.layers)
    points = np.concatenate([rng.uniform(-1, 1, (50, 3)), np.array(list(product([-1.0, 1.0], repeat=3)))])
    most = max(abs(value) for x in points for value in exact_change(network, stored, x))
    assert most <= Fraction(found.upper)
    assert found.lower <= found.upper
    assert found.lower >= 0.5 * float(most)


def test_nothing_changes_in_an_identical_copy(random_network: RandomNetwork) -> None:
    network = random_network(np.random.default_rng(1), (3, 8, 8, 4))
    found = Session().estimate(over(network, network, InputBox([-1.0] * 3, [1.0] * 3)), budget=BUDGET)
    assert found.lower == 0.0
    assert found.upper < 1e-9
    assert found.seconds < 5.0


def test_an_overflow_gives_an_infinite_end() -> None:
    layers = tuple(Dense(np.full((2, 2), 1e200), np.zeros(2), Activation.RELU) for _ in range(3))
    network = Network((*layers, Dense(np.ones((1, 2)), np.zeros(1))), Output.SIGMOID)
    found = Session().estimate(over(network, network, InputBox([-1.0] * 2, [1.0] * 2)), budget=Budget(5.0))
    assert (found.lower, found.upper) == (0.0, np.inf)


def test_a_search_cut_off_still_bounds(random_network: RandomNetwork) -> None:
    network = random_network(np.random.default_rng(2), (5, 30, 30, 4))
    query = over(network, rounded_copy(network, 5), InputBox([-1.0] * 5, [1.0] * 5))
    short = Session().estimate(query, budget=Budget(seconds=20.0, boxes=100))
    longer = Session().estimate(query, budget=Budget(seconds=20.0, boxes=2000))
    assert "the limit of 100 boxes" in short.reason
    assert short.lower <= longer.upper <= short.upper


def test_estimates_of_logits_are_not_held_against_those_of_confidences() -> None:
    parameters, domain = Copy(STEEPER).around(LINE), InputBox([-2.0], [2.0])
    session = Session()
    of_logits = session.estimate(GlobalEpsilon(LINE, parameters, domain, ChangeOf.LOGIT))
    assert session.estimate(GlobalEpsilon(LINE, parameters, domain), budget=Budget(5.0)).upper <= 1 < of_logits.lower
    part = Session().estimate(over(LINE, STEEPER, InputBox([-2.0], [-1.5])))
    check_laws(part, [of_logits])
    raised = Estimate(part.query, 9.0, 9.0, None, part.assurance, part.backend, 0.0, part.version)
    with pytest.raises(LawBrokenError):
        check_laws(raised, [of_logits])


@pytest.mark.parametrize("name", ["closed-form", "z3", "milp"])
def test_other_backends_say_that_they_cannot(name: str) -> None:
    with pytest.raises(UnsupportedError, match="the change of a logit: use branch-and-bound"):
        Session().estimate(over(LINE, STEEPER, InputBox([0.0], [1.0])), backend=name)


def test_what_cannot_be_bounded_is_refused(random_network: RandomNetwork) -> None:
    with pytest.raises(UnsupportedError, match="no objective for the change of a logit"):
        encode(over(LINE, STEEPER, InputBox([0.0], [1.0])), Encoding.ELIMINATED)


def test_a_witness_outside_the_copy_does_not_count() -> None:
    query = over(LINE, STEEPER, InputBox([-2.0], [2.0]))
    (copy,) = [tuple((layer.weight, layer.bias) for layer in STEEPER.layers)]
    assert witness_bounds(query, Counterexample((Fraction(2),), copy)) == (2.5, 2.5)
    moved = ((copy[0][0] + 2.0**-40, copy[0][1]), copy[1])
    for example in (Counterexample((Fraction(2),), moved), Counterexample((Fraction(3),), copy)):
        with pytest.raises(UnsoundAnswerError):
            witness_bounds(query, example)


def test_a_copy_is_one_choice_of_parameters() -> None:
    parameters = Copy(STEEPER).around(LINE)
    chosen = logit_change.single_copy(parameters)
    assert chosen is not None
    assert parameters.contains(chosen)
    assert not parameters.contains_network(LINE)
    assert logit_change.single_copy(Absolute(0.1).around(LINE)) is None
    with pytest.raises(ShapeError, match="the second network has weights"):
        Copy(Network((LAST,), Output.SIGMOID)).around(LINE)
    assert isinstance(parameters, ParameterBox)


def test_on_the_command_line(tmp_path: Path) -> None:
    for name, network in (("a.json", LINE), ("b.json", STEEPER)):
        write_native(network, tmp_path / name)
    model, copy = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    run = CliRunner().invoke(app, ["estimate", model, "logits", "--copy", copy, "--box", "-2:2", "--json"])
    assert run.exit_code == 0, run.output
    (document,) = json.loads(run.stdout)
    assert document["lower"] <= 2.5 <= document["upper"] < 2.7
    assert document["query"]["kind"] == "GlobalEpsilon"
    plain = CliRunner().invoke(app, ["estimate", model, "logits", "--copy", copy, "--box", "-2:2", "--quiet"])
    assert plain.exit_code == 0
    said = CliRunner().invoke(app, ["estimate", model, "logits", "--copy", copy, "--point", "1"])
    assert "the greatest change of a logit over the point (1) (exactly the parameters of steeper)" in said.stdout
    label = CliRunner().invoke(app, ["check", model, "--label", "--copy", copy, "--point", "1"])
    assert (label.exit_code, "exactly the parameters of steeper" in label.stdout) == (0, True)


def test_acas_xu(acas_xu: Path) -> None:
    """Property 4's box of network 2_3 (Katz et al. 2017), normalized: half a second on one core."""
    from benchmarks.acasxu import pair, property_box

    network, copy = pair(acas_xu, "2_3")
    found = Session().estimate(over(network, copy, property_box(4)), budget=Budget(30.0))
    assert found.gap <= 0.1 * found.upper
    assert found.lower > 7e-4


def test_halves_keep_the_bound_of_their_own_box() -> None:
    """Of two boxes one is known to change by at most 0.5: its halves inherit that, those of the other do not."""
    tree = logit_change.ChangeTree(over(LINE, STEEPER, InputBox([0.0], [4.0])), time.monotonic() + 20.0)
    nodes = tree.split(tree.roots())
    assert nodes is not None
    halves = tree.split(Nodes(np.array([np.inf, 0.5]), nodes.parts))
    assert halves is not None
    owner = np.array([int(lower >= 2.0) for lower in halves.parts[0][:, 0]])
    assert sorted(owner.tolist()) == [0, 0, 1, 1]
    assert (halves.upper[owner == 1] <= 0.5).all()
    assert (halves.upper[owner == 0] > 0.5).all()
