"""Random binarized networks small enough to try every input, and questions about them."""

from __future__ import annotations

import itertools
import os
import time
from fractions import Fraction

import numpy as np

from qrobust.binarized import Ball, BatchNorm, BinarizedNetwork, Block, Grid, Linear, Norm
from qrobust.interval import FloatArray
from qrobust.layers import Activation, Conv2d, Dense, IntArray

MOST_INPUTS = 2**10


def linear(rng: np.random.Generator, outputs: int, inputs: int, zeros: float) -> Linear:
    """A dense layer of dyadic numbers, so that float64 computes its sums exactly; rows may be empty."""
    half = (1 - zeros) / 2
    weight = rng.choice([-1.0, 0.0, 1.0], size=(outputs, inputs), p=[half, zeros, half])
    bias = rng.integers(-6, 7, size=outputs) / 2 * (rng.random() < 0.7)
    if rng.random() < 0.2:
        bias[rng.integers(outputs)] = rng.choice([-99.0, 99.0])  # a threshold beyond what any sum reaches
    return Linear(Dense(weight, bias), rng.choice([1.0, 0.5, -2.0], size=outputs))


def norm(rng: np.random.Generator, channels: int) -> BatchNorm:
    """Of roots that are rational, so that ties are ties in float64 as well."""
    return BatchNorm(
        rng.choice([-1.0, 1.0, 0.5], size=channels),
        rng.integers(-3, 4, size=channels) / 2,
        rng.integers(-2, 3, size=channels).astype(float),
        rng.choice([1.0, 4.0, 0.25], size=channels),
        0.0,
    )


def network(rng: np.random.Generator) -> BinarizedNetwork:
    """Dense, sparse, ternary or convolutional, with up to 2**10 inputs on its grid."""
    top = int(rng.integers(1, 4))
    count = int(rng.integers(2, 11 if top == 1 else 6))
    zeros = float(rng.choice([0.0, 0.4, 0.8]))
    offset, step = (Fraction(-1), Fraction(2)) if top == 1 and rng.random() < 0.5 else (Fraction(0), Fraction(1, 2))
    grid = Grid(step, offset, offset + top * step, offset)
    blocks, size = [], count
    if rng.random() < 0.25:
        kernel = rng.choice([-1.0, 0.0, 1.0], size=(2, 1, 1, 2))
        layer = Conv2d(kernel, rng.integers(-1, 2, size=2) / 2, Activation.LINEAR, (1, 1, count), (1, 1), (0, 1, 0, 0))
        blocks.append(Block(Linear(layer, np.ones(2)), norm(rng, 2)))
        size = layer.outputs
    for width in rng.integers(1, 6, size=rng.integers(0, 3)).tolist():
        blocks.append(Block(linear(rng, width, size, zeros), norm(rng, width) if rng.random() < 0.7 else None))
        size = width
    output = linear(rng, int(rng.integers(2, 5)), size, zeros)
    return BinarizedNetwork(grid, tuple(blocks), output if rng.random() < 0.4 else Linear(output.layer, np.ones(1)))


def all_levels(found: BinarizedNetwork) -> IntArray:
    """Every input on the grid. Shape: (inputs on the grid, inputs)."""
    levels = range(found.grid.lowest, found.grid.highest + 1)
    return np.array(list(itertools.product(levels, repeat=found.inputs)), dtype=np.int64)


def ball(rng: np.random.Generator, found: BinarizedNetwork, centre: FloatArray) -> Ball:
    """A ball of any norm, from the point to everything."""
    grid, kind = found.grid, [Norm.LINF, Norm.LINF, Norm.L0, Norm.L1, Norm.L2][rng.integers(5)]
    top = grid.highest - grid.lowest
    most = {Norm.LINF: top, Norm.L0: found.inputs, Norm.L1: top * found.inputs, Norm.L2: top}[kind]
    units = Fraction(int(rng.integers(0, most + 1)))
    return Ball(centre, units if kind is Norm.L0 else units * grid.step, kind)


def sparse_dense(weight: FloatArray, bias: FloatArray | None = None) -> Linear:
    """A dense layer of scale 1."""
    return Linear(Dense(weight, np.zeros(len(weight)) if bias is None else bias), np.ones(len(weight)))


def sleeping(*given: object, **named: object) -> None:
    """What overruns every limit."""
    time.sleep(60)


def dying(*given: object, **named: object) -> None:
    """What ends its process."""
    os._exit(7)
