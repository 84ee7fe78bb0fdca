"""A chain of operations of a file, put together into blocks: what every reader hands its layers to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from qrobust.binarized.network import BatchNorm, BinarizedNetwork, Block, Grid, Linear
from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.interval import FloatArray
from qrobust.layers import Conv2d, Dense, IntArray

MOST_IDENTITY = 4096  # inputs that are binarized one by one


@dataclass(frozen=True, eq=False)
class ReadNetwork:
    """A network, and which of the file's inputs each of its inputs is. Shape: order (inputs,)."""

    network: BinarizedNetwork
    order: IntArray


def split(weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return signs and scales of weights that are -s, 0 or s in each channel. Raises UnsupportedError.

    Shapes    weight (channels, ...); signs the same; scales (channels,)
    """
    flat = np.abs(weight.reshape(len(weight), -1))
    scale = flat.max(axis=1, initial=0.0)
    strange = (flat != 0) & (flat != scale[:, None])
    if strange.any():
        channel = int(np.argwhere(strange)[0, 0])
        raise UnsupportedError(f"its channel {channel} has weights of two sizes: only -s, 0 and s are weights of signs")
    return np.sign(weight), np.where(scale > 0, scale, 1.0)


@dataclass(frozen=True, eq=False)
class Chain:
    """Blocks so far, and after the last sign perhaps a linear layer, what was added and multiplied, and a normalization.

    Shapes    scale, bias (channels,); factor: what the last signs are multiplied with
    """

    inputs: int
    blocks: tuple[Block, ...] = ()
    layer: Dense | Conv2d | None = None
    scale: FloatArray | None = None
    bias: FloatArray | None = None
    norm: BatchNorm | None = None
    factor: float = 1.0

    @property
    def has_begun(self) -> bool:
        """Whether something stands after the last sign."""
        return self.layer is not None

    def linear(self, layer: Dense | Conv2d, scale: FloatArray) -> Chain:
        """Return the chain with a linear layer. Raises UnsupportedError if one stands there already."""
        if self.layer is not None:
            raise UnsupportedError("follows another linear layer without a sign between them")
        found = replace(self, layer=layer, scale=scale, bias=layer.bias)
        return found.times(np.full(len(scale), self.factor), bias=False)

    def _open(self) -> Chain:
        """Return the chain with a layer, the identity if none stands there."""
        if self.layer is not None:
            return self
        width = self.blocks[-1].linear.layer.outputs if self.blocks else self.inputs
        if width > MOST_IDENTITY:
            raise UnsupportedError(f"scales {width:,} values one by one, at most {MOST_IDENTITY:,} are read")
        return self.linear(Dense(np.eye(width), np.zeros(width)), np.ones(width))

    def times(self, factors: FloatArray, *, bias: bool = True) -> Chain:
        """Return the chain multiplied, a factor a channel. Raises UnsupportedError where float64 would round."""
        found = self._open()
        assert found.scale is not None
        assert found.bias is not None
        if found.norm is not None:
            raise UnsupportedError("scales what a normalization gave, which is not read")
        scale = _exact(found.scale, factors, "times")
        return replace(found, scale=scale, bias=_exact(found.bias, factors, "times") if bias else found.bias)

    def plus(self, terms: FloatArray) -> Chain:
        """Return the chain with a number added to each channel. Raises UnsupportedError where float64 would round."""
        found = self._open()
        assert found.bias is not None
        if found.norm is not None:
            return replace(found, norm=replace(found.norm, beta=_exact(found.norm.beta, terms, "plus")))
        return replace(found, bias=_exact(found.bias, terms, "plus"))

    def normalized(self, norm: BatchNorm) -> Chain:
        """Return the chain with a batch normalization. Raises UnsupportedError if one stands there already."""
        found = self._open()
        if found.norm is not None:
            raise UnsupportedError("follows another normalization without a sign between them")
        return replace(found, norm=norm)

    def signed(self, factor: float = 1.0) -> Chain:
        """Return the chain with the sign taken, times a factor."""
        found = self._open()
        return Chain(found.inputs, (*found.blocks, Block(found._linear(), found.norm)), factor=factor)

    def _linear(self) -> Linear:
        assert self.layer is not None
        assert self.scale is not None
        assert self.bias is not None
        return Linear(replace(self.layer, bias=self.bias), self.scale)

    def network(self, grid: Grid, name: str) -> BinarizedNetwork:
        """Return the network whose scores the chain gives; a last normalization is rounded to float64.

        Raises    ModelFileError, UnsupportedError
        """
        if self.layer is None:
            raise ModelFileError("it ends in signs: the last layer must give scores")
        found = self
        if self.norm is not None:
            norm = self.norm
            slope = norm.gamma / np.sqrt(norm.variance + norm.epsilon)
            assert found.scale is not None
            assert found.bias is not None
            bias = (found.bias - norm.mean) * slope + norm.beta
            found = replace(found, norm=None, scale=found.scale * slope, bias=bias)
        return BinarizedNetwork(grid, found.blocks, found._linear(), name)


def _exact(values: FloatArray, others: FloatArray, how: str) -> FloatArray:
    found = values * others if how == "times" else values + others
    for a, b, c in zip(values.tolist(), others.tolist(), found.tolist(), strict=True):
        exact = Fraction(a) * Fraction(b) if how == "times" else Fraction(a) + Fraction(b)
        if exact != Fraction(c):
            raise UnsupportedError("is scaled by numbers that float64 would round")
    return np.asarray(found)
