"""Every bounding method against every other: enclosures of one quantity have to overlap, and to hold what is attained."""

from __future__ import annotations

import time

import numpy as np
import pytest

from qrobust.backends.binaries import Tree
from qrobust.backends.deep import levels_at
from qrobust.backends.mixed_integer import Model, Relaxation
from qrobust.backends.relu_cuts import strengthened
from qrobust.backends.twins import twins
from qrobust.bounds.attack import climb, forward
from qrobust.bounds.differential import PairBounds
from qrobust.bounds.ibp import INTERVALS
from qrobust.bounds.linear import Tuning, pre_activations, top_bounds
from qrobust.bounds.stages import interval_step, stages_of
from qrobust.bounds.zonotopes import TwinZonotopes
from qrobust.domains import InputBox, ParameterBox, Point
from qrobust.interval import FloatArray, Interval, relu
from qrobust.network import Activation, FloatArithmetic, Network, activate, perturbed_logits
from qrobust.perturbations import Absolute, HalfStep
from qrobust.queries import GlobalLabel, LocalLabel
from tests.conftest import RandomNetwork

SIZES = [(3, 4, 2), (3, 5, 4, 3), (2, 4, 4, 3, 2)]
ZERO = np.zeros(1, dtype=np.intp)


def intervals(network: Network, box: ParameterBox, x: Interval) -> Interval:
    h = x[None]
    for stage in stages_of(network, box):
        z = interval_step(stage, h)
        h = activate(stage.activation, z, INTERVALS)
    return z[0]


def linear(network: Network, box: ParameterBox, x: FloatArray, tuning: Tuning) -> Interval:
    levels, start = levels_at(network, box, x[None])
    bounds = pre_activations(levels, start, tuning)
    rows = np.concatenate([np.eye(levels.stages[-1].outputs), -np.eye(levels.stages[-1].outputs)])
    upper = top_bounds(levels, bounds, rows, np.zeros(len(rows)), np.zeros(len(rows), dtype=np.intp), tuning)
    half = len(rows) // 2
    return Interval(-upper[half:], upper[:half])


def proved(model: Model) -> float:
    """The bound of a model's relaxation."""
    hint = Relaxation(model).solve(seconds=10)
    assert hint.multipliers is not None
    return model.upper_bound(hint.multipliers)


def programs(query: LocalLabel | GlobalLabel, *, change: bool = False) -> dict[str, Interval]:
    """Bounds of the perturbed logits, or of their changes, by linear programs, with cuts, and by the whole tree."""
    both, found = twins(query), []
    for row in np.concatenate([np.eye(len(both.perturbed)), -np.eye(len(both.perturbed))]):
        parts = [both.perturbed, both.stored] if change else [both.perturbed]
        signs = [row, -row] if change else [row]
        model = both.builder.copy().model(np.concatenate(parts), np.concatenate(signs))
        cut = strengthened(model, both.neurons, 10.0)
        tree = Tree(model, lambda _: None, time.monotonic() + 20)
        found.append([proved(model), proved(cut), tree.close(lambda: -np.inf).upper])
    ends = np.array(found).T
    half = ends.shape[1] // 2
    names = ("linear program", "cuts", "mixed-integer program")
    return {name: Interval(-row[half:], row[:half]) for name, row in zip(names, ends, strict=True)}


def pick(rng: np.random.Generator, part: Interval) -> FloatArray:
    return np.where(rng.random(part.shape) < 0.5, part.lower, part.upper)


def overlap(methods: dict[str, Interval], attained: list[FloatArray]) -> None:
    for first, one in methods.items():
        for second, other in methods.items():
            assert (one.lower <= other.upper).all(), (first, second)
        for values in attained:
            slack = 1e-9 * (1 + np.abs(values))
            assert (one.lower <= values + slack).all(), first
            assert (values <= one.upper + slack).all(), first


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_methods_at_a_point_overlap(sizes: tuple[int, ...], seed: int, random_network: RandomNetwork) -> None:
    rng = np.random.default_rng([41, seed])
    network, x = random_network(rng, sizes), rng.normal(size=sizes[0])
    for box in (Absolute(0.1).around(network), HalfStep(4, True).around(network)):
        methods = {
            "intervals": intervals(network, box, Interval.point(x)),
            "differences": PairBounds(network, box, free_layers=0).trace(Interval.point(x[None]))[-1].perturbed[0],
            "linear": linear(network, box, x, Tuning(0)),
            "linear, tuned": linear(network, box, x, Tuning(8)),
            **programs(LocalLabel(network, box, Point(x))),
        }
        levels, start = levels_at(network, box, x[None], whole=True)
        ends = [np.where(rng.random((8, z.shape[1])) < 0.5, -1.0, 1.0) for z in pre_activations(levels, start)]
        attained = []
        for nu in np.eye(sizes[-1]):
            rows = np.repeat(nu[None], 8, axis=0)
            reached = forward(levels, start, climb(levels, start, rows, np.zeros(8), ends).positions)[-1]
            h = activate(Activation.RELU, reached, FloatArithmetic())
            attained += list(h @ levels.stages[-1].transposed + levels.stages[-1].bias)
        overlap(methods, attained)
        exact = methods["mixed-integer program"].width
        for name, one in methods.items():
            assert (exact <= one.width + 1e-6).all(), name


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("seed", range(2))
def test_methods_over_a_box_overlap(sizes: tuple[int, ...], seed: int, random_network: RandomNetwork) -> None:
    """The change of each logit, which three methods bound directly."""
    rng = np.random.default_rng([42, seed])
    network = random_network(rng, sizes)
    box, middle = Absolute(0.05).around(network), rng.normal(size=sizes[0])
    x = Interval(middle - 0.3, middle + 0.3)
    pairs = PairBounds(network, box, free_layers=0).trace(x[None])[-1]
    difference = intervals(network, box, x)
    stored = intervals(network, Absolute(0.0).around(network), x)
    methods = {
        "intervals": difference - stored,
        "differences": pairs.difference[0],
        "zonotopes": TwinZonotopes(network, box).changes(x[None]).change[0],
        **programs(GlobalLabel(network, box, InputBox(x.lower, x.upper)), change=True),
    }
    attained = []
    for _ in range(60):
        point = np.where(rng.random(sizes[0]) < 0.5, x.lower, x.upper)
        moved = [
            (pick(rng, weight), pick(rng, bias))  # any corner
            for weight, bias in box.intervals
        ]
        before = perturbed_logits(
            network, [(layer.weight, layer.bias) for layer in network.layers], point[None], FloatArithmetic()
        )
        attained.append((perturbed_logits(network, moved, point[None], FloatArithmetic()) - before)[0])
    overlap(methods, attained)


def test_methods_that_disagree_are_seen() -> None:
    one = Interval(np.zeros(1), np.ones(1))
    with pytest.raises(AssertionError):
        overlap({"one": one, "other": Interval(one.lower + 2, one.upper + 2)}, [])
    with pytest.raises(AssertionError):
        overlap({"one": one}, [relu(one).upper + 1])
