"""Memory: batches get their size from a budget, what they take stays within it, and too little of it is refused in figures."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust.backends import deep
from qrobust.backends.deep import levels_at, screen_labels
from qrobust.bounds import local, substitution
from qrobust.bounds.linear import Tuning, pre_activations, top_bounds
from qrobust.bounds.stages import matrix_bytes, stages_of
from qrobust.domains import Point
from qrobust.errors import NumberError, ResourceError
from qrobust.formats import load
from qrobust.layers import Activation, Conv2d, MaxPool2d
from qrobust.leads import Leads
from qrobust.memory import GIB, MEMORY, Part, at_a_time, check_fits
from qrobust.network import Dense, Network, Output
from qrobust.perturbations import Absolute, HalfStep
from qrobust.queries import HALF, LocalLabel
from qrobust.search import Budget, Nodes, explore
from qrobust.solve import Session
from tests.conftest import RandomNetwork

MIB = 2**20


def peak(call: Callable[[], object]) -> int:
    """Bytes that a call takes at most, beside what was taken before."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    call()
    most = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return most


def test_as_many_as_fit() -> None:
    assert sum(part.value for part in Part) == 1
    assert at_a_time(100, 1000, Part.MATRICES, "it", 99) == 5
    assert at_a_time(100, 1000, Part.MATRICES, "it", 3) == 3
    assert at_a_time(500, 1000, Part.MATRICES, "it", 99) == 1
    with pytest.raises(ResourceError, match=r"it would take 1\.5 GiB of objectives, a memory budget of 4 GiB has 1 GiB"):
        check_fits(3 * GIB // 2, MEMORY, Part.OBJECTIVES, "it")


def test_the_refusal_names_a_memory_that_is_enough() -> None:
    needed = 12_345_678_901
    with pytest.raises(ResourceError) as caught:
        check_fits(needed, MEMORY, Part.NODES, "it")
    enough = float(str(caught.value).split("--memory ")[1].split()[0])
    check_fits(needed, int(enough * GIB), Part.NODES, "it")


@pytest.mark.parametrize("memory", [0, -1, 2**23])
def test_too_small_a_budget_is_refused(memory: int) -> None:
    with pytest.raises(NumberError, match="memory"):
        Budget(memory=memory)


def _image_network() -> Network:
    rng = np.random.default_rng(2)
    convolution = Conv2d(rng.normal(size=(3, 1, 3, 3)), rng.normal(size=3), Activation.RELU, (1, 14, 14))
    pool = MaxPool2d(convolution.output_shape, (3, 3), (3, 3))
    return Network((convolution, pool, Dense(rng.normal(size=(3, pool.outputs)), rng.normal(size=3))), Output.SOFTMAX)


def test_matrices_take_what_is_stated(random_network: RandomNetwork) -> None:
    for network in (random_network(np.random.default_rng(1), (300, 200, 200, 5), Activation.TANH), _image_network()):
        box = HalfStep(5).around(network)
        for layer in box.layers:  # what the box keeps of itself is not counted
            assert layer.weight.interval.shape
            assert layer.bias.interval.shape
        taken = peak(lambda network=network, box=box: [(s.transposed, s.magnitude) for s in stages_of(network, box)])  # type: ignore[misc]
        assert taken <= matrix_bytes(network) <= 12 * taken


@pytest.mark.parametrize("activation", [Activation.RELU, Activation.TANH])
def test_objectives_take_what_is_stated(activation: Activation, random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(3)
    network = random_network(rng, (10, 120, 100, 110, 4), activation)
    levels, start = levels_at(network, Absolute(0.01).around(network), rng.normal(size=(30, 10)), whole=True)
    bounds = pre_activations(levels, start)
    nu = rng.normal(size=(600, 4))
    taken = peak(lambda: top_bounds(levels, bounds, nu, np.zeros(600), np.arange(600) % 30, Tuning(3)))
    assert taken <= 600 * levels.row_bytes <= 6 * taken


def test_inputs_take_what_is_stated(models: Path) -> None:
    """Screening a batch stays within two budgets that differ by 16, and gives the same answers."""
    network = load(models / "mnist_2x512.keras")
    box = HalfStep(8).around(network)
    leads = Leads(network, HALF)
    points = np.random.default_rng(4).random((160, network.inputs)) * (np.arange(network.inputs) % 5 == 0)
    found = []
    for gib in (0.25, 4.0):
        budget = Budget(memory=int(gib * GIB))
        answers: list[object] = []
        assert peak(lambda b=budget, a=answers: a.append(screen_labels(leads, box, points, b))) <= budget.memory  # type: ignore[misc]
        found.append(answers[0])
    assert np.array_equal(found[0], found[1])  # type: ignore[arg-type]
    with pytest.raises(ResourceError, match=r"784-512-512-10.* would take 0\.0837 GiB .* give --memory 0\.168 "):
        screen_labels(leads, box, points, Budget(memory=128 * MIB))


@pytest.mark.parametrize("activation", [Activation.RELU, Activation.TANH])
def test_chunks_change_nothing_but_rounding(
    activation: Activation, random_network: RandomNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix product may sum in another order for another number of rows, so the last bits may differ; no more may."""
    rng = np.random.default_rng(5)
    network = random_network(rng, (6, 20, 20, 20, 4), activation)
    box, points = Absolute(0.02).around(network), rng.normal(size=(12, 6))
    leads = Leads(network, HALF)
    nu, which = rng.normal(size=(60, 4)), np.arange(60) % 12
    runs: list[list[Any]] = []
    for rows in (8192, 64, 2):
        monkeypatch.setattr(substitution, "ROWS", rows)
        monkeypatch.setattr(deep, "AT_A_TIME", max(1, rows // 64))
        levels, start = levels_at(network, box, points, whole=True)
        bounds = pre_activations(levels, start, Tuning(2))
        ends: list[Any] = [end for z in bounds for end in (z.lower, z.upper)]
        runs.append([*ends, top_bounds(levels, bounds, nu, np.zeros(60), which, Tuning(4)), screen_labels(leads, box, points)])
    for run in runs[1:]:
        for values, whole in zip(run, runs[0], strict=True):
            np.testing.assert_allclose(values, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("sizes", "activation"), [((60, 40, 30), Activation.TANH), ((30, 200, 3), Activation.RELU)])
def test_points_in_closed_form_take_what_is_stated(
    sizes: tuple[int, ...], activation: Activation, random_network: RandomNetwork
) -> None:
    rng = np.random.default_rng(7)
    network = random_network(rng, sizes, activation)
    box, leads, points = Absolute(0.5).around(network), Leads(network, HALF), rng.normal(size=(2000, sizes[0]))
    kept: list[Any] = []
    for memory in (32 * MIB, MEMORY):
        assert peak(lambda m=memory: kept.append(local.label_changes(leads, box, points, m))) <= memory  # type: ignore[misc]
    assert (kept[0][0] == kept[1][0]).all()
    taken = peak(lambda: local.label_changes(leads, box, points[:500]))
    assert taken <= 500 * local.point_bytes(network)


class _Endless:
    """A tree whose nodes never close."""

    best, point = 0.0, None

    def roots(self) -> Nodes:
        return Nodes(np.ones(1), (np.zeros((1, 1000)),))

    def split(self, nodes: Nodes) -> Nodes:
        return Nodes(np.ones(2 * len(nodes)), (np.zeros((2 * len(nodes), 1000)),))


def test_open_nodes_stay_within_the_budget() -> None:
    budget = Budget(memory=64 * MIB)
    outcome = explore(_Endless(), budget, tolerance=0.0, batch=16)
    assert "boxes are open at once" in outcome.reason
    assert "0.0625 GiB" in outcome.reason
    assert outcome.open is not None
    assert 200 < len(outcome.open) <= 64 * MIB * Part.NODES.value / (4 * 8008) + 16
    assert peak(lambda: explore(_Endless(), budget, tolerance=0.0, batch=16)) <= budget.memory * Part.NODES.value * 1.2


def test_a_search_in_little_memory_agrees(random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(6)
    network = random_network(rng, (4, 30, 30, 3))
    for _ in range(4):
        query = LocalLabel(network, Absolute(0.02).around(network), Point(rng.normal(size=4)))
        small, large = (Session().check(query, budget=Budget(20.0, memory=m)) for m in (17 * MIB, MEMORY))
        assert small.verdict is large.verdict
