"""Binarized networks in integers: every neuron an integer sum against an integer threshold, exactly.

A block's sign is +1 where g * n + h >= -beta * sqrt(V), with n the integer sum of the row, g = gamma * scale * step,
h = gamma * (scale * offset * (sum of the row) + bias - mean) and V = variance + epsilon, all rational but the root. So it is
+1 exactly where n >= k or, for g < 0, where -n >= k, with k the integer next to (-h - beta * sqrt(V)) / g. The floor of
(P + s * sqrt(R)) / Q over integers comes from the integer square root, so k is exact, ties included.

Property  exact: no float is computed
Source    Umuroglu et al. 2017 (FINN), section 4.2.2, for thresholds in place of batch normalization
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.binarized.network import BatchNorm, BinarizedNetwork, Linear
from qrobust.binarized.queries import TieRule, ZeroSign
from qrobust.errors import UnsupportedError
from qrobust.layers import IntArray, SparseMatrix

MOST_SUM = 2**61  # of any row, so that int64 holds twice as much
TOO_FAR = "a sum could leave 64 bits: take fewer levels, or an offset nearer to the inputs"


@dataclass(frozen=True, eq=False)
class ThresholdLayer:
    """t = (matrix @ x >= threshold): whether each sign is +1.

    Shapes    matrix a csr_array of int64 (neurons, inputs); threshold (neurons,) int64
    """

    matrix: SparseMatrix
    threshold: IntArray

    @cached_property
    def sizes(self) -> SparseMatrix:
        """The matrix's entries without their signs. Not to be changed."""
        return abs(self.matrix)

    @cached_property
    def size_sums(self) -> IntArray:
        """The sum of each row's sizes. Shape: (neurons,)."""
        return np.asarray(self.sizes.sum(axis=1), dtype=np.int64).reshape(-1)

    def signs(self, x: IntArray) -> IntArray:
        """Return the signs, +1 or -1. Shapes: x (batch, inputs); result (batch, neurons)."""
        return np.where(self.threshold <= (self.matrix @ x.T).T, 1, -1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Rivals:
    """The label is lost to class numbers[i] where (matrix @ x)[i] >= threshold[i].

    Shapes    numbers (rivals,); matrix a csr_array of int64 (rivals, last signs); threshold (rivals,) int64
    """

    numbers: tuple[int, ...]
    matrix: SparseMatrix
    threshold: IntArray

    def at(self, places: IntArray) -> Rivals:
        """Return some of them. Shapes: places (some,)."""
        return Rivals(tuple(self.numbers[i] for i in places.tolist()), self.matrix[places], self.threshold[places])


@dataclass(frozen=True, eq=False)
class Folded:
    """A network in integers: x are the levels, then signs; class c scores scale[c] * (matrix @ x)[c] + bias[c]."""

    network: BinarizedNetwork
    layers: tuple[ThresholdLayer, ...]
    matrix: SparseMatrix
    scale: tuple[Fraction, ...]
    bias: tuple[Fraction, ...]

    def signs(self, levels: IntArray) -> IntArray:
        """Return the signs before the scores (the levels, without blocks). Shapes: (batch, inputs), (batch, last signs)."""
        x = np.asarray(levels, dtype=np.int64)
        for layer in self.layers:
            x = layer.signs(x)
        return x

    def scores(self, levels: IntArray) -> npt.NDArray[Any]:
        """Return integers ordered as the classes' scores. Shapes: levels (batch, inputs); result (batch, classes)."""
        sums = (self.matrix @ self.signs(levels).T).T
        factor, offset = self._common
        if self._fits:
            return np.asarray(sums * np.array(factor, dtype=np.int64) + np.array(offset, dtype=np.int64))
        return np.asarray(sums.astype(object) * np.array(factor, dtype=object) + np.array(offset, dtype=object))

    @property
    def score_unit(self) -> int:
        """What the integers of `scores` are to be divided by."""
        return math.lcm(*(value.denominator for value in (*self.scale, *self.bias)))

    def labels(self, levels: IntArray) -> IntArray:
        """Return the classes of greatest score, the first of equals. Shapes: levels (batch, inputs); result (batch,)."""
        return np.asarray(np.argmax(self.scores(levels), axis=1), dtype=np.int64)

    def is_lost(self, levels: IntArray, label: int, tie: TieRule) -> npt.NDArray[np.bool_]:
        """Return where the label is not kept. Shapes: levels (batch, inputs); result (batch,)."""
        scores = self.scores(levels)
        own = scores[:, [label]]
        lost = np.asarray(scores > own, dtype=np.bool_)
        level = np.asarray(scores == own, dtype=np.bool_)
        level[:, label] = False
        if tie is TieRule.RIVAL:
            lost |= level
        elif tie is TieRule.FIRST:
            lost[:, :label] |= level[:, :label]
        return np.asarray(lost.any(axis=1))

    def rivals(self, label: int, tie: TieRule, among: Sequence[int] | None = None) -> Rivals:
        """Return when other classes, all or those named, take the label. Raises UnsupportedError (no common measure)."""
        from scipy import sparse

        others = [other for other in (range(len(self.scale)) if among is None else among) if other != label]
        ways = [self._rival(other, label, tie) for other in others]
        places = np.repeat(np.arange(len(ways)), 2), np.array([[other, label] for other in others], dtype=np.int64).reshape(-1)
        factors = np.array([factor for own, _ in ways for factor in own], dtype=np.int64)
        pairs = sparse.csr_array((factors, places), shape=(len(ways), len(self.scale)))
        threshold = np.array([least for _, least in ways], dtype=np.int64)
        return Rivals(tuple(others), sparse.csr_array(pairs @ self.matrix), threshold)

    def _rival(self, other: int, label: int, tie: TieRule) -> tuple[tuple[int, int], int]:
        """Return the factors of another class's row and of the label's, and the least sum that takes the label."""
        wins_ties = tie is TieRule.RIVAL or (tie is TieRule.FIRST and other < label)
        ratio, own = self.scale[other], self.scale[label]
        unit = abs(own) if ratio == own else _measure(ratio, own)
        limit = (self.bias[label] - self.bias[other]) / unit
        factors = int(ratio / unit), -int(own / unit)
        if max(map(abs, factors)) * 2 * (self._greatest + 1) > MOST_SUM:
            raise UnsupportedError("the classes' scales have no small common measure: give all scores one scale")
        least = math.ceil(limit) if wins_ties else math.floor(limit) + 1
        return factors, max(min(least, MOST_SUM), -MOST_SUM)

    def in_reach(self, rivals: Rivals, lower: IntArray, upper: IntArray) -> Rivals:
        """Return the rivals that intervals do not rule out over a box of levels. Shapes: lower, upper (inputs,)."""
        if self.layers:
            lower, upper = (np.full(self.matrix.shape[1], end, dtype=np.int64) for end in (-1, 1))
        factors, places = rivals.matrix.data, rivals.matrix.indices
        most = row_sums(factors * np.where(factors > 0, upper[places], lower[places]), rivals.matrix.indptr)
        return rivals.at(np.flatnonzero(most >= rivals.threshold))

    @cached_property
    def _greatest(self) -> int:
        top = 1 if self.layers else max(abs(self.network.grid.lowest), abs(self.network.grid.highest))
        return _greatest_sum(self.matrix) * top

    @cached_property
    def _common(self) -> tuple[list[int], list[int]]:
        common = self.score_unit
        return [int(value * common) for value in self.scale], [int(value * common) for value in self.bias]

    @property
    def _fits(self) -> bool:
        factor, offset = self._common
        return max(map(abs, factor)) * self._greatest + max(map(abs, offset)) < MOST_SUM


def fold(network: BinarizedNetwork, zero: ZeroSign = ZeroSign.PLUS) -> Folded:
    """Return the network in integers. Raises UnsupportedError if a sum could leave 64 bits."""
    grid, layers = network.grid, []
    offset, step, top = grid.offset, grid.step, max(abs(grid.lowest), abs(grid.highest))
    for block in network.blocks:
        layers.append(_threshold_layer(block.linear, block.norm, (offset, step, top), zero))
        offset, step, top = Fraction(0), Fraction(1), 1
    output = network.output
    sums, channel = _row_sums(output.matrix), output.channel_of.tolist()
    scale = [Fraction(float(output.scale[c])) for c in channel]
    bias = [
        Fraction(float(output.layer.bias[c])) + s * offset * total for c, s, total in zip(channel, scale, sums, strict=True)
    ]
    if _greatest_sum(output.matrix) * top >= MOST_SUM:
        raise UnsupportedError(TOO_FAR)
    return Folded(network, tuple(layers), output.matrix, tuple(s * step for s in scale), tuple(bias))


def over(folded: Folded, lower: IntArray, upper: IntArray) -> Folded:
    """Return the network without the signs that intervals show constant over a box of levels: the same on every input in it.

    Shapes    lower, upper (inputs,); inputs stay as they are
    """
    layers, kept = [], np.arange(len(lower))
    fixed = np.zeros(len(lower), dtype=np.int64)  # the value of what is constant, and 0 of what is kept
    for layer in folded.layers:
        middle, reach = layer.matrix @ (lower + upper), layer.sizes @ (upper - lower)  # twice the bounds, added up
        on, off = middle - reach >= 2 * layer.threshold, middle + reach < 2 * layer.threshold
        rows = np.flatnonzero(~(on | off))
        layers.append(_narrowed(layer.matrix[rows], layer.threshold[rows], kept, fixed))
        lower, upper, kept = np.where(on, 1, -1), np.where(off, -1, 1), rows
        fixed = np.where(on, 1, np.where(off, -1, 0))
    scores = _narrowed(folded.matrix, np.zeros(len(folded.scale), dtype=np.int64), kept, fixed)
    shift = (-scores.threshold).tolist()
    bias = tuple(b + s * number for b, s, number in zip(folded.bias, folded.scale, shift, strict=True))
    return Folded(folded.network, tuple(layers), scores.matrix, folded.scale, bias)


def _measure(first: Fraction, second: Fraction) -> Fraction:
    """Return the greatest number of which both are multiples."""
    common = math.gcd(first.numerator * second.denominator, second.numerator * first.denominator)
    return Fraction(common) / (first.denominator * second.denominator)


def _narrowed(matrix: SparseMatrix, threshold: IntArray, kept: IntArray, fixed: IntArray) -> ThresholdLayer:
    """Return rows over the columns kept. Shapes: fixed (columns,), the values of the others, 0 of those kept."""
    from scipy import sparse

    place = np.full(len(fixed), -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    new = place[matrix.indices]
    is_kept = new >= 0
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(is_kept)])[matrix.indptr]
    narrow = sparse.csr_array((matrix.data[is_kept], new[is_kept], starts), shape=(matrix.shape[0], len(kept)))
    return ThresholdLayer(narrow, threshold - row_sums(matrix.data * fixed[matrix.indices], matrix.indptr))


def row_sums(values: IntArray, starts: IntArray) -> IntArray:
    """Return the sum of each row's values; the running sum may wrap, its differences do not.

    Shapes    values (terms,), row after row; starts (rows + 1,), where each row's begin; result (rows,)
    """
    running = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(values, dtype=np.int64)])
    return np.asarray(running[starts[1:]] - running[starts[:-1]], dtype=np.int64)


def _greatest_sum(matrix: SparseMatrix) -> int:
    """Return the greatest sum of a row's sizes."""
    return int(abs(matrix).sum(axis=1).max())


def _row_sums(matrix: SparseMatrix) -> list[int]:
    return [int(value) for value in np.asarray(matrix.sum(axis=1)).reshape(-1)]


Seen = tuple[Fraction, Fraction, int]  # offset and step of the values that a layer sees, and the greatest size of a level


def _threshold_layer(linear: Linear, norm: BatchNorm | None, seen: Seen, zero: ZeroSign) -> ThresholdLayer:
    """Return a block in integers; neurons of one channel whose rows have one sum share their threshold."""
    matrix, channel = linear.matrix, linear.channel_of
    if _greatest_sum(matrix) * seen[2] >= MOST_SUM:
        raise UnsupportedError(TOO_FAR)
    most = np.asarray(abs(matrix).sum(axis=1)).reshape(-1) * seen[2]
    sums = _row_sums(matrix) if seen[0] else [0] * matrix.shape[0]
    keys = list(zip(channel.tolist(), sums, strict=True))
    rules = {key: _threshold(linear, norm, key, seen, zero) for key in set(keys)}
    sign = np.array([rules[key][0] for key in keys], dtype=np.int64)
    threshold = [max(min(rules[key][1], int(m) + 1), -int(m)) for key, m in zip(keys, most, strict=True)]
    return ThresholdLayer(_signed(matrix, sign), np.array(threshold, dtype=np.int64))


def _signed(matrix: SparseMatrix, sign: IntArray) -> SparseMatrix:
    from scipy import sparse

    data = matrix.data * np.repeat(sign, np.diff(matrix.indptr))
    return sparse.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _threshold(linear: Linear, norm: BatchNorm | None, key: tuple[int, int], seen: Seen, zero: ZeroSign) -> tuple[int, int]:
    """Return the sign s and the threshold k of a channel whose row has a sum: +1 exactly where s * n >= k."""
    c, total = key
    scale, bias = Fraction(float(linear.scale[c])), Fraction(float(linear.layer.bias[c]))
    gamma, beta, mean, variance = Fraction(1), Fraction(0), Fraction(0), Fraction(1)
    if norm is not None:
        gamma, beta, mean = (Fraction(float(v[c])) for v in (norm.gamma, norm.beta, norm.mean))
        variance = Fraction(float(norm.variance[c])) + Fraction(float(norm.epsilon))
    slope = gamma * scale * seen[1]
    shift = gamma * (scale * seen[0] * total + bias - mean)
    limit = -shift / slope, -beta / slope
    strict = zero is ZeroSign.MINUS
    if slope > 0:  # n >= limit, or n > limit
        return 1, floor_of_root(*limit, variance) + 1 if strict else -floor_of_root(-limit[0], -limit[1], variance)
    ceiling = -floor_of_root(-limit[0], -limit[1], variance)  # n <= limit, or n < limit
    return -1, -(ceiling - 1) if strict else -floor_of_root(*limit, variance)


def floor_of_root(a: Fraction, b: Fraction, v: Fraction) -> int:
    """Return the floor of a + b * sqrt(v), exactly. Accepts v >= 0."""
    square = b * b * v  # u / w, so that the root is sqrt(u * w) / w
    w = square.denominator
    bottom = a.denominator * w
    under = a.denominator**2 * square.numerator * w
    root = math.isqrt(under)
    if b < 0:
        root = -root if root * root == under else -root - 1
    return (a.numerator * w + root) // bottom
