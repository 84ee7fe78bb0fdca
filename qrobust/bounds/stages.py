"""Networks over eliminated parameters, as stages: what the linear bounds work on.

Accepts   dense and convolutional layers, pools, and any parameter box
Gives     a chain of affine maps and activations: z = (C + E) h + (c + e) with abs(E) <= R and abs(e) <= r, entry by entry,
          holds every network in the box; R is kept as one number a row where the rule allows it (one step a tensor or channel)
Method    row i of C h + c +- (R_i abs(h) + r_i) is exactly what the parameters of row i reach (THEORY.md, section 3). A
          convolution becomes its matrix, every use of a kernel weight a parameter of its own, and keeps its `Kernel`, by which
          objectives over many places eliminate each weight once; the greatest of a window becomes ReLUs,
          max(a, b) = b + relu(a - b), pair by pair
Property  sound: centre and radius enclose the exact ends of the box. Exact up to the rounding of the radius for dense layers;
          not exact for convolutions, but for a first one at a point, whose kernel is eliminated exactly
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from qrobust.arrays import Arrays, namespace_of
from qrobust.domains import Bounds, LayerBox, ParameterBox
from qrobust.interval import FloatArray, Interval, affine_ball, up
from qrobust.layers import Activation, AveragePool2d, Conv2d, Dense, Layer, MaxPool2d, Scaling, SparseMatrix, sparse_matrix
from qrobust.memory import MEMORY, Part, check_fits
from qrobust.network import Network

REACHES = 8  # the absolute values in `Kernel.pulled`, in units of abs(nu) @ (R abs(h) + r): 1 + 2 + 2 (1 + 1), rounded up
KERNEL_ARRAYS = 6  # float64 arrays over places and taps that one objective takes while a kernel is eliminated
SAME = 1e-9  # radii of a row that differ relatively by less are taken as one, the greatest
SETS = 3  # of matrices at once: the stored network's, those of a box, and those of the box before it


@dataclass(frozen=True)
class Pulled:
    """What eliminating a kernel adds to objectives: coefficients of the values h below (batch, in) and a value (batch,).

    Where the sums below are attained: slopes (batch, channels, taps), and signs of the biases (batch, channels).
    """

    coefficients: FloatArray
    value: FloatArray
    slopes: FloatArray
    signs: FloatArray


@dataclass(frozen=True, eq=False)
class Kernel:
    """The parameters of a convolution, each of which is used at every place.

    For an objective nu over all outputs a weight's whole effect is its movement times s = sum over places of nu h, at most
    R abs(s); abs is convex, so t s + max(abs(U) - t U, abs(L) - t L) is above it wherever L <= s <= U, for any t.
    Shapes    windows (places, taps), as Conv2d.windows; radius (channels, taps); bias_radius (channels,)
    """

    windows: npt.NDArray[np.int64]
    inputs: int
    radius: FloatArray
    bias_radius: FloatArray

    @cached_property
    def _scatter(self) -> SparseMatrix:
        """Sums what the taps of all places want of each input. Shape: (inputs, places * taps)."""
        rows = self.windows.reshape(-1)
        inside = np.flatnonzero(rows < self.inputs)
        order = inside[np.argsort(rows[inside], kind="stable")]
        starts = np.searchsorted(rows[order], np.arange(self.inputs + 1))
        return sparse_matrix(np.ones(len(order)), order, starts, rows.size)

    def seen(self, h: FloatArray) -> FloatArray:
        """Return what each place sees. Shapes: h (batch, in); result (batch, places, taps)."""
        padded = np.concatenate([h, np.zeros((len(h), 1))], axis=1)
        return np.asarray(padded[:, self.windows])

    def pulled(self, nu: FloatArray, h: Interval) -> Pulled:
        """Eliminate the kernel from objectives nu over the outputs. Shapes: nu (batch, out); h (batch or 1, in).

        Rounding    each entry errs by at most `interval.sum_slack` of REACHES * abs(nu) @ (R abs(h) + r)
        """
        nu = nu.reshape(len(nu), len(self.radius), -1)
        low, high = self.seen(h.lower), self.seen(h.upper)
        middle, spread = 0.5 * (nu @ (low + high)), 0.5 * (np.abs(nu) @ (high - low))
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes = np.where(spread > 0, np.clip(middle / spread, -1.0, 1.0), np.sign(middle))
        ends = middle - spread, middle + spread
        above = np.maximum(*(np.abs(end) - slopes * end for end in ends))
        total = nu.sum(axis=2)
        value = (self.radius * above).sum(axis=(1, 2)) + np.abs(total) @ self.bias_radius
        slopes = slopes * self.radius
        wanted = (nu.transpose(0, 2, 1) @ slopes).reshape(len(nu), -1)
        return Pulled(np.asarray((self._scatter @ wanted.T).T), value, slopes, np.where(total < 0, -1.0, 1.0))

    def moved(self, h: FloatArray, slopes: FloatArray, signs: FloatArray) -> FloatArray:
        """Return how far outputs move with parameters at these ends. Shapes: h (batch, in); result (batch, out)."""
        places = slopes @ self.seen(h).transpose(0, 2, 1) + (signs * self.bias_radius)[:, :, None]
        return np.asarray(places.reshape(len(h), -1))


@dataclass(frozen=True, eq=False)
class Stage:
    """One affine map with eliminated parameters, and the activation that follows it.

    Shapes    weight (out, in); radius (out,) one a row, or (out, in); bias, bias_radius (out,)
    """

    weight: FloatArray
    radius: FloatArray
    bias: FloatArray
    bias_radius: FloatArray
    activation: Activation
    kernel: Kernel | None = None

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[0])

    @cached_property
    def transposed(self) -> FloatArray:
        """The weights as (in, out), in memory order."""
        return np.ascontiguousarray(self.weight.T) if isinstance(self.weight, np.ndarray) else self.weight.T

    @cached_property
    def magnitude(self) -> FloatArray:
        """abs(weight) transposed, shape (in, out)."""
        return np.abs(self.transposed)

    @cached_property
    def sums(self) -> FloatArray:
        """The sum of abs(weight) and radius in each row, for the rounding error. Shape: (out,)."""
        radii = self.weight.shape[1] * self.radius if self.radius.ndim == 1 else self.radius.sum(axis=1)
        result: FloatArray = self.magnitude.sum(axis=0) + radii
        return result

    @property
    def terms(self) -> int:
        """How many terms the longest chain of sums through the stage has, for the rounding error."""
        return sum(self.weight.shape) + (0 if self.kernel is None else self.kernel.radius.size + self.kernel.windows.size)

    @property
    def kernel_bytes(self) -> int:
        """What eliminating the kernel takes for one objective: what each place sees, two ends, and what is wanted of it."""
        return 0 if self.kernel is None else 8 * KERNEL_ARRAYS * (self.kernel.windows.size + self.kernel.radius.size)

    def met(self, size: FloatArray) -> FloatArray:
        """Bound the absolute values of what a multiplier of each output meets. Shapes: size (batch, in), of h; (batch, out)."""
        reach = self.reach(size) * (1 if self.kernel is None else REACHES)
        return np.asarray(size @ self.magnitude + reach + np.abs(self.bias))

    @cached_property
    def fixed(self) -> bool:
        """Whether no parameter of the stage may move."""
        xp = namespace_of(self.radius)
        return not xp.any(self.radius != 0) and not xp.any(self.bias_radius != 0)

    def spread(self, multipliers: FloatArray) -> FloatArray:
        """Return abs(multipliers) @ R. Shapes: multipliers (batch, out); result (batch, 1) or (batch, in)."""
        sizes = namespace_of(multipliers).abs(multipliers)
        result: FloatArray = (sizes @ self.radius)[:, None] if self.radius.ndim == 1 else sizes @ self.radius
        return result

    def reach(self, h: FloatArray) -> FloatArray:
        """Return R @ abs(h) + r. Shapes: h (batch, in); result (batch, out)."""
        xp = namespace_of(h)
        sizes = xp.abs(h)
        moved = xp.sum(sizes, axis=1, keepdims=True) * self.radius if self.radius.ndim == 1 else sizes @ self.radius.T
        result: FloatArray = moved + self.bias_radius
        return result

    def on(self, arrays: Arrays) -> Stage:
        """Return the stage in a device's arrays, for proposals, each use of a kernel by itself; kept, for batches share it."""
        copies: dict[Arrays, Stage] = self.__dict__.setdefault("copies", {})
        if arrays not in copies:
            weight, radius = arrays.to_device(self.weight), arrays.to_device(self.radius)
            bias, bias_radius = arrays.to_device(self.bias), arrays.to_device(self.bias_radius)
            copies[arrays] = Stage(weight, radius, bias, bias_radius, self.activation)
        return copies[arrays]

    def restricted(self, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Stage:
        """Return the stage with these outputs and inputs alone; one with a kernel has to keep all."""
        if self.kernel is not None:
            return self
        radius = self.radius[rows] if self.radius.ndim == 1 else self.radius[np.ix_(rows, columns)]
        weight = np.ascontiguousarray(self.weight[np.ix_(rows, columns)])
        return replace(self, weight=weight, radius=radius, bias=self.bias[rows], bias_radius=self.bias_radius[rows])


def stages_of(network: Network, parameters: ParameterBox, memory: int = MEMORY) -> tuple[Stage, ...]:
    """Return the stages of all layers, one after the other. Raises ResourceError, as `stages_by_layer`."""
    return tuple(stage for stages in stages_by_layer(network, parameters, memory) for stage in stages)


def stages_by_layer(network: Network, parameters: ParameterBox, memory: int = MEMORY) -> tuple[tuple[Stage, ...], ...]:
    """Return the stages of each layer; those of the last network and box are kept, since many queries share them.

    Raises    ResourceError if the matrices need more than their part of `memory`
    """
    check_fits(matrix_bytes(network), memory, Part.MATRICES, f"the linear bounds of {network}")
    return _stages(network, parameters)


def stored_stages(network: Network, memory: int = MEMORY) -> tuple[Stage, ...]:
    """Return the stages of the stored network, none of whose parameters moves. Kept, and raises, as `stages_of`."""
    check_fits(matrix_bytes(network), memory, Part.MATRICES, f"the linear bounds of {network}")
    return _stored(network)


def matrix_bytes(network: Network) -> int:
    """Bound what the stages take, in bytes: the weights as they are, transposed, as sizes, and radii; SETS of all, and once
    more the largest layer's while its balls are made."""
    each = [_matrix_numbers(layer) for layer in network.layers]
    return 8 * (4 * SETS * sum(each) + 8 * max(each))


def _matrix_numbers(layer: Layer) -> int:
    """Count the numbers of a layer's weights; of a pool's stages, with those that make them."""
    if not isinstance(layer, MaxPool2d):
        return layer.inputs * layer.outputs
    size, numbers = layer.windows.shape[1], 0
    columns = layer.inputs
    while size > 1:
        rows = layer.outputs * (3 * (size // 2) + 2 * (size % 2))
        numbers += rows * columns + rows * layer.outputs * size
        size, columns = (size + 1) // 2, rows
    return numbers + layer.outputs * columns


@lru_cache(maxsize=1)
def _stages(network: Network, parameters: ParameterBox) -> tuple[tuple[Stage, ...], ...]:
    return tuple(tuple(_lowered(layer, box)) for layer, box in zip(network.layers, parameters.layers, strict=True))


@lru_cache(maxsize=1)
def _stored(network: Network) -> tuple[Stage, ...]:
    exact = tuple((layer.weight, layer.bias) for layer in network.layers)
    box = ParameterBox.from_arrays(exact, exact)
    return tuple(stage for layer, part in zip(network.layers, box.layers, strict=True) for stage in _lowered(layer, part))


def _lowered(layer: Layer, box: LayerBox) -> Iterator[Stage]:
    match layer:
        case Dense():
            yield _ball_stage(layer, box)
        case Conv2d():
            yield _ball_stage(layer, box)
        case AveragePool2d():
            low, high = (matrix.toarray() for matrix in layer.matrix_bounds())
            zeros = np.zeros(layer.outputs)
            yield Stage(low, up(high - low), zeros, zeros, Activation.LINEAR)
        case Scaling():
            (scale, radius), (offset, moved) = (middle_and_radius(ends) for ends in layer.enclosures)
            yield Stage(np.diag(scale), np.diag(radius), offset, moved, Activation.LINEAR)
        case MaxPool2d():
            yield from _greatest_of_windows(layer)


def _ball_stage(layer: Dense | Conv2d, box: LayerBox) -> Stage:
    weight, radius = ball(layer.weight, box.weight)
    bias, bias_radius = ball(layer.bias, box.bias)
    kernel = None
    if isinstance(layer, Conv2d):
        if radius.any() or bias_radius.any():
            kernel = Kernel(layer.windows, layer.inputs, radius.reshape(len(radius), -1), bias_radius)
        weight, radius = layer.matrix(weight).toarray(), layer.matrix(radius).toarray()
        bias, bias_radius = layer.bias_vector(bias), layer.bias_vector(bias_radius)
    greatest, least = radius.max(axis=1), radius.min(axis=1)
    if (greatest - least <= SAME * greatest).all():
        radius = greatest
    return Stage(weight, radius, bias, bias_radius, layer.activation, kernel)


def ball(stored: FloatArray, bounds: Bounds) -> tuple[FloatArray, FloatArray]:
    """Return a centre and a radius whose balls hold the bounds; the centre is the stored value where that is as good."""
    ends = bounds.interval
    with np.errstate(over="ignore", invalid="ignore"):
        middle = ends.middle
        radii = [up(np.maximum(up(ends.upper - c), up(c - ends.lower))) for c in (stored, middle)]
    near = radii[0] <= radii[1] * (1 + SAME)
    centre, radius = np.where(near, stored, middle), np.where(near, radii[0], radii[1])
    still = (ends.lower == ends.upper) & (centre == ends.lower)
    return centre, np.where(still, 0.0, radius)


def middle_and_radius(ends: Interval) -> tuple[FloatArray, FloatArray]:
    """Return balls that hold intervals; of radius 0 where these are numbers."""
    centre = ends.middle
    radius = up(np.maximum(up(ends.upper - centre), up(centre - ends.lower)))
    return centre, np.where(ends.lower == ends.upper, 0.0, radius)


def _greatest_of_windows(layer: MaxPool2d) -> Iterator[Stage]:
    """Halve each window until one value is left: a stage of relu(a - b), relu(b), relu(-b) a pair, summed by the next stage."""
    size = layer.windows.shape[1]
    outputs = layer.outputs
    gather = np.zeros((outputs * size, layer.inputs))
    gather[np.arange(outputs * size), layer.windows.reshape(-1)] = 1.0
    while size > 1:
        pairs, single = divmod(size, 2)
        blocks = np.zeros((3 * pairs + 2 * single, size))
        merge = np.zeros((pairs + single, 3 * pairs + 2 * single))
        for pair in range(pairs):
            first, second = 2 * pair, 2 * pair + 1
            blocks[3 * pair, [first, second]] = 1.0, -1.0
            blocks[3 * pair + 1, second], blocks[3 * pair + 2, second] = 1.0, -1.0
            merge[pair, 3 * pair : 3 * pair + 3] = 1.0, 1.0, -1.0
        if single:
            blocks[-2:, -1] = 1.0, -1.0
            merge[-1, -2:] = 1.0, -1.0
        yield _exact_stage(np.asarray(np.kron(np.eye(outputs), blocks) @ gather, dtype=np.float64), Activation.RELU)
        gather, size = np.kron(np.eye(outputs), merge), pairs + single
    yield _exact_stage(gather, Activation.LINEAR)


def _exact_stage(weight: FloatArray, activation: Activation) -> Stage:
    zeros = np.zeros(len(weight))
    return Stage(weight, zeros, zeros, zeros, activation)


def interval_step(stage: Stage, h: Interval) -> Interval:
    """Enclose the pre-activations of a stage over boxes of its inputs. Shapes: h (batch, in); result (batch, out)."""
    return affine_ball(stage.weight, stage.radius, stage.bias, stage.bias_radius, h, stage.magnitude, stage.sums)
