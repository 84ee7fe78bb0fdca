"""Regions small enough to try every input that the constraints tell apart.

Accepts   constraints, not unary, of at most MOST_CELLS states over all their inputs, and at most MOST_TERMS terms of sums
Gives     all inputs, as levels; where a state stands for several levels, one of them
Property  exact: every input of the region behaves as one that is given
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from qrobust.binarized.constraints import Constraints
from qrobust.binarized.folding import Folded
from qrobust.binarized.queries import Norm, TieRule, level_costs
from qrobust.layers import IntArray

MOST_CELLS = 2**22
MOST_INPUTS = 2**16
MOST_ADDED = 2**26  # sums of ways in all, while inputs of a ball are counted
MOST_TERMS = 2**23  # added up when the whole network is run at every input
CHUNK = 2048


def tell_apart(found: Constraints, most: int = MOST_INPUTS) -> int | None:
    """Return how many inputs the constraints tell apart, or None if there are more than `most`, or counting takes long."""
    if found.region.norm is Norm.LINF:
        count = math.prod(len(levels) for levels in found.levels)
        return count if count <= most else None
    every = [costs[costs <= found.region.most].tolist() for costs in state_costs(found)]
    if sum(map(len, every)) * (found.region.most + 1) > MOST_ADDED:
        return None
    ways = np.ones(1)  # in which each cost is reached
    for allowed in every:
        new = np.zeros(min(len(ways) + max(allowed), found.region.most + 1))
        for cost in allowed:
            new[cost : cost + len(ways)] += ways[: len(new) - cost]
        ways = new
        if ways.sum() > most:
            return None
    return int(ways.sum())


def is_small(folded: Folded, found: Constraints) -> bool:
    """Whether every input can be tried."""
    count = tell_apart(found)
    terms = folded.matrix.nnz + sum(layer.matrix.nnz for layer in folded.layers)
    return count is not None and count * max(1, len(found.pixels)) <= MOST_CELLS and count * terms <= MOST_TERMS


def first_lost(folded: Folded, found: Constraints, label: int, tie: TieRule) -> IntArray | None:
    """Return an input that loses the label, or None if none does. Shape: (inputs,)."""
    for levels in inputs(found):
        lost = np.flatnonzero(folded.is_lost(levels, label, tie))
        if len(lost):
            return np.asarray(levels[lost[0]])
    return None


def inputs(found: Constraints) -> Iterator[IntArray]:
    """Yield all inputs that the constraints tell apart, in chunks. Shape of each: (at most CHUNK, inputs)."""
    states = np.zeros((1, 0), dtype=np.int32)
    spent = np.zeros(1, dtype=np.int64)
    for costs in state_costs(found):
        count = len(costs)
        choice = np.tile(np.arange(count, dtype=np.int32), len(states))
        states = np.column_stack([np.repeat(states, count, axis=0), choice])
        spent = np.repeat(spent, count) + np.tile(costs, len(spent))
        allowed = spent <= found.region.most
        states, spent = states[allowed], spent[allowed]
    for start in range(0, len(states), CHUNK):
        part = states[start : start + CHUNK]
        levels = np.repeat(found.region.centre[None], len(part), axis=0)
        for place, (pixel, values) in enumerate(zip(found.pixels.tolist(), found.levels, strict=True)):
            levels[:, pixel] = values[part[:, place]]
        yield levels


def state_costs(found: Constraints) -> list[IntArray]:
    """Return what each state of each pixel costs; in a box, nothing. Shape of each: (states,)."""
    region = found.region
    if region.norm is Norm.LINF:
        return [np.zeros(len(levels), dtype=np.int64) for levels in found.levels]
    pairs = zip(found.pixels.tolist(), found.levels, strict=True)
    return [level_costs(np.abs(levels - region.centre[pixel]), region.norm) for pixel, levels in pairs]
