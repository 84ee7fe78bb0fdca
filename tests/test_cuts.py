"""Cuts inside linear bounds, and bounds by splitting: nothing that is reached is cut off."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from qrobust.backends.deep import Situation
from qrobust.backends.root_cuts import cut_rows
from qrobust.bounds.attack import forward
from qrobust.bounds.lifted import Cuts, Weighted, chosen, conjugate
from qrobust.bounds.neurons import NeuronTree
from qrobust.bounds.rows import Rows
from qrobust.bounds.substitution import Above, backward
from qrobust.bounds.tightening import tightened
from qrobust.domains import Point
from qrobust.interval import FloatArray, Interval
from qrobust.leads import Leads
from qrobust.network import Activation, Dense, Network
from qrobust.perturbations import Absolute, PerLayer
from qrobust.queries import LocalLabel
from qrobust.search import Budget, explore
from tests.conftest import RandomNetwork
from tests.test_linear_bounds import attained

HALF = Fraction(1, 2)


def hard(random_network: RandomNetwork, seed: int) -> tuple[LocalLabel, Situation, Rows]:
    """A question with many open neurons, and all its rows."""
    rng = np.random.default_rng(seed)
    network = random_network(rng, (3, 9, 8, 7, 3))
    query = LocalLabel(network, Absolute(0.15).around(network), Point(rng.random(3)))
    situation = Situation.at(network, query.parameters, query.domain.box.lower)
    leads = Leads(network, HALF)
    pairs = leads.of_label(int(network.labels(query.domain.box.lower[None])[0]))
    return query, situation, Rows(leads.directions[pairs], leads.offset.upper[pairs], leads.strict[pairs])


def reached(situation: Situation, rng: np.random.Generator, times: int = 2000) -> list[FloatArray]:
    positions = [rng.uniform(-1, 1, size=(times, z.shape[1])) for z in situation.bounds]
    positions = [np.where(rng.random(p.shape) < 0.7, np.sign(p), p) for p in positions]
    return forward(situation.levels, situation.bounds[0], positions)


def test_a_lifted_conjugate_is_the_greatest_of_its_function() -> None:
    rng = np.random.default_rng(0)
    shape = (60, 6)
    rise, lift = rng.normal(size=shape), rng.normal(size=shape) * rng.choice([0.0, 1.0, 5.0], size=shape)
    low = rng.normal(size=shape) * 3
    z = Interval(low, low + rng.random(shape) * rng.choice([0.0, 1.0, 20.0], size=shape))
    for nu in (rng.normal(size=shape), chosen(rise, lift, z, rng.random(shape))[0]):
        value, place, h, state = conjugate(rise, lift, nu, z)
        sample = np.concatenate([z.lower[..., None] + np.linspace(0, 1, 2001) * z.width[..., None], z.upper[..., None]], axis=2)
        crossing = (z.lower < 0) & (z.upper > 0)
        off = np.where(sample <= 0, -nu[..., None] * sample, -np.inf).max(axis=2)
        on = np.where(sample > 0, (rise - nu)[..., None] * sample + lift[..., None], -np.inf).max(axis=2)
        greatest = np.maximum(np.maximum(on, off), np.where(crossing, np.maximum(lift, 0.0), -np.inf))
        size = 1 + np.abs(rise) + np.abs(nu) * np.maximum(np.abs(z.lower), np.abs(z.upper))
        assert (greatest <= value + 1e-12 * size).all()
        assert (value <= greatest + 3e-3 * size).all()
        assert np.allclose(value, rise * h + lift * state - nu * place, rtol=0, atol=1e-12 * size.max())


def test_chosen_multipliers_have_the_derivatives_that_are_named() -> None:
    rng = np.random.default_rng(1)
    shape, step = (80, 5), 1e-7
    given = [rng.normal(size=shape), rng.normal(size=shape), rng.uniform(0.1, 0.9, size=shape)]
    low = rng.normal(size=shape)
    z = Interval(low, low + rng.random(shape) * 4)
    nu, *slopes = chosen(given[0], given[1], z, given[2])
    for place, slope in enumerate(slopes):
        moved = [values + step * (place == number) for number, values in enumerate(given)]
        numeric = (chosen(moved[0], moved[1], z, moved[2])[0] - nu) / step
        assert (np.abs(numeric - slope) < 1e-4 * (1 + np.abs(slope))).mean() > 0.99  # but where the rule changes


@pytest.mark.parametrize("seed", range(4))
def test_cuts_hold_and_any_weights_give_a_bound(seed: int, random_network: RandomNetwork) -> None:
    """A copy whose cuts claim too much is caught."""
    rng = np.random.default_rng(seed)
    query, situation, rows = hard(random_network, seed)
    levels, bounds = situation.levels, situation.bounds
    points, found = reached(situation, rng), cut_rows(query, bounds, rows, 5.0)
    assert any(cut.cuts for cut in found)
    caught = 0
    for row, cut in enumerate(found):
        for level, cuts in cut.cuts.items():
            h, below = np.maximum(points[level], 0.0), np.maximum(points[level - 1], 0.0)
            assert cuts.broken(below, h, (points[level] > 0).astype(np.float64)).min() >= -1e-9
        nu = np.repeat(rows.nu[row][None], 20, axis=0)
        best = max(attained(query.network, query.parameters, query.domain.box.lower, rng, rows.nu[row]))
        above = Above.of_rows(levels.stages[-1], nu, np.zeros(20), levels.sizes(bounds)[-1])
        alpha = [rng.random((20, z.shape[1])) for z in bounds]
        beta = [rng.normal(size=(20, z.shape[1])) * 0.1 for z in bounds]
        for claim in (0.0, 100.0):
            weighted = {}
            for level, cuts in cut.cuts.items():
                ends = [np.maximum(bounds[k].upper[0], 0.0) for k in (level - 1, level)]
                weights = rng.random((20, len(cuts))) * rng.choice([0.0, 0.1, 1.0], size=(20, 1))
                bold = replace(cuts, offset=cuts.offset - claim)
                weighted[level] = Weighted(bold, weights, bold.size(*ends))
            upper = backward(
                levels, levels.top, above, bounds, levels.sizes(bounds), alpha=alpha, beta=beta, cuts=weighted
            ).upper
            if claim:
                caught += int((upper < best).any())
            else:
                assert (upper >= best).all()
    assert caught


@pytest.mark.parametrize("linear", [(0,), (1,), (0, 2), (2,)])
def test_only_chains_of_relus_take_cuts(linear: tuple[int, ...], random_network: RandomNetwork) -> None:
    """The rows of other networks name variables that are not the values below a level: split signs, or linear neurons."""
    rng = np.random.default_rng(8)
    network = random_network(rng, (3, 9, 8, 7, 3))
    dense = (layer for layer in network.layers if isinstance(layer, Dense))
    layers = [replace(layer, activation=Activation.LINEAR) if k in linear else layer for k, layer in enumerate(dense)]
    mixed = replace(network, layers=tuple(layers))
    for deltas in ((0.15, 0.15, 0.15, 0.15), (0.0, 0.15, 0.15, 0.15)):
        query = LocalLabel(mixed, PerLayer(deltas).around(mixed), Point(rng.normal(size=3)))
        situation = Situation.at(mixed, query.parameters, query.domain.box.lower)
        leads = Leads(mixed, HALF)
        rows = Rows(leads.directions, leads.offset.upper, leads.strict)
        found = cut_rows(query, situation.bounds, rows, 5.0)
        assert any(np.isfinite(cut.upper) for cut in found)
        assert not any(cut.cuts for cut in found)


def test_cuts_lower_the_bound_of_a_root(random_network: RandomNetwork) -> None:
    """And neither they nor the splits behind them bring a bound below what is attained."""
    rng = np.random.default_rng(5)
    for seed in range(4):
        query, situation, rows = hard(random_network, seed)
        found = cut_rows(query, situation.bounds, rows, 5.0)
        roots = np.zeros((2, len(found)))
        for row, cut in enumerate(found):
            own = rows.take(np.array([row]))
            best = max(attained(query.network, query.parameters, query.domain.box.lower, rng, own.nu[0])) + own.offset[0]
            for with_cuts in (False, True):
                given = cut.cuts if with_cuts else {}
                tree = NeuronTree(situation.levels, situation.bounds, own, cut=best - 1e-6, attacks=False, cuts=given)
                roots[int(with_cuts), row] = tree.roots().upper[0]
                assert explore(tree, Budget(seconds=10.0, boxes=200), tolerance=0.0, batch=64).upper >= best
        assert (roots[1] <= roots[0] + 1e-2).all()
        assert (roots[1] < roots[0] - 0.5).any()


def test_tightened_bounds_lose_no_point(random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(6)
    narrower = 0
    for seed in range(4):
        _, situation, _ = hard(random_network, seed)
        bounds = tightened(situation.levels, situation.bounds, 1.0, Budget())
        for z, new, before in zip(reached(situation, rng), bounds, situation.bounds, strict=True):
            assert ((new.lower <= z + 1e-12) & (z <= new.upper + 1e-12)).all()
            assert ((before.lower <= new.lower) & (new.upper <= before.upper)).all()
            narrower += int((new.width < before.width - 1e-3).sum())
    assert narrower > 10


def test_rows_of_neurons_that_are_off_are_left_out(random_network: RandomNetwork) -> None:
    network: Network = random_network(np.random.default_rng(0), (2, 3, 3, 2))
    assert network.is_dense
    cuts = Cuts(np.array([0, 2, 2]), np.arange(9.0).reshape(3, 3), np.ones(3), np.arange(3.0), 3)
    own = cuts.restricted(np.array([1, 2]), np.array([0, 2]))
    assert own.neurons.tolist() == [1, 1]
    assert own.inputs.tolist() == [[3.0, 5.0], [6.0, 8.0]]
    assert own.offset.tolist() == [1.0, 2.0]
    assert own.places.tolist() == [[0.0, 1.0], [0.0, 1.0]]
