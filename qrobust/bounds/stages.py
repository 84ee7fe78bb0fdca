"""Networks over eliminated parameters, as stages: what the linear bounds work on.

Accepts   dense and convolutional layers, pools, and any parameter box
Gives     a chain of affine maps and activations: z = (C + E) h + (c + e) with abs(E) <= R and abs(e) <= r, entry by entry,
          holds every network in the box; R is kept as one number a row where the rule allows it (one step a tensor or channel)
Method    row i of C h + c +- (R_i abs(h) + r_i) is exactly what the parameters of row i reach (THEORY.md, section 3). A
          convolution becomes its matrix, every use of a kernel weight a parameter of its own; the greatest of a window becomes
          ReLUs, max(a, b) = b + relu(a - b), pair by pair
Property  sound: centre and radius enclose the exact ends of the box. Exact up to the rounding of the radius for dense layers;
          not exact for convolutions, whose uses of one weight move together in truth
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
from qrobust.layers import Activation, AveragePool2d, Conv2d, Dense, Layer, MaxPool2d
from qrobust.memory import MEMORY, Part, check_fits
from qrobust.network import Network

SAME = 1e-9  # radii of a row that differ relatively by less are taken as one, the greatest
SETS = 3  # of matrices at once: the stored network's, those of a box, and those of the box before it


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
        """Return the stage in a device's arrays, for proposals; kept, for many batches share it."""
        copies: dict[Arrays, Stage] = self.__dict__.setdefault("copies", {})
        if arrays not in copies:
            weight, radius = arrays.to_device(self.weight), arrays.to_device(self.radius)
            bias, bias_radius = arrays.to_device(self.bias), arrays.to_device(self.bias_radius)
            copies[arrays] = Stage(weight, radius, bias, bias_radius, self.activation)
        return copies[arrays]

    def restricted(self, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Stage:
        """Return the stage with these outputs and inputs alone."""
        radius = self.radius[rows] if self.radius.ndim == 1 else self.radius[np.ix_(rows, columns)]
        weight = np.ascontiguousarray(self.weight[np.ix_(rows, columns)])
        return replace(self, weight=weight, radius=radius, bias=self.bias[rows], bias_radius=self.bias_radius[rows])


def stages_of(network: Network, parameters: ParameterBox, memory: int = MEMORY) -> tuple[Stage, ...]:
    """Return the stages of all layers; those of the last network and box are kept, since many queries share them.

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
    if isinstance(network.layers[0], Conv2d):  # at one point it is a map of its parameters, too (`first_convolution`)
        each.append(network.layers[0].outputs * sum(array.size for array in (network.layers[0].weight, network.layers[0].bias)))
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
def _stages(network: Network, parameters: ParameterBox) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    for layer, box in zip(network.layers, parameters.layers, strict=True):
        stages += _lowered(layer, box)
    return tuple(stages)


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
        case MaxPool2d():
            yield from _greatest_of_windows(layer)


def _ball_stage(layer: Dense | Conv2d, box: LayerBox) -> Stage:
    weight, radius = _ball(layer.weight, box.weight)
    bias, bias_radius = _ball(layer.bias, box.bias)
    if isinstance(layer, Conv2d):
        weight, radius = layer.matrix(weight).toarray(), layer.matrix(radius).toarray()
        bias, bias_radius = layer.bias_vector(bias), layer.bias_vector(bias_radius)
    greatest, least = radius.max(axis=1), radius.min(axis=1)
    if (greatest - least <= SAME * greatest).all():
        radius = greatest
    return Stage(weight, radius, bias, bias_radius, layer.activation)


def _ball(stored: FloatArray, bounds: Bounds) -> tuple[FloatArray, FloatArray]:
    """Return a centre and a radius whose balls hold the bounds; the centre is the stored value where that is as good."""
    ends = bounds.interval
    with np.errstate(over="ignore", invalid="ignore"):
        middle = ends.middle
        radii = [up(np.maximum(up(ends.upper - c), up(c - ends.lower))) for c in (stored, middle)]
    near = radii[0] <= radii[1] * (1 + SAME)
    centre, radius = np.where(near, stored, middle), np.where(near, radii[0], radii[1])
    still = (ends.lower == ends.upper) & (centre == ends.lower)
    return centre, np.where(still, 0.0, radius)


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


def first_convolution(network: Network, parameters: ParameterBox, x: FloatArray) -> tuple[Stage, Interval] | None:
    """Return a first convolution at one input as a fixed map of its parameters, and their box: exact, uses move together.

    Shapes    x (inputs,); the box (1, kernel numbers and biases)
    """
    layer, box = network.layers[0], parameters.layers[0]
    if not isinstance(layer, Conv2d):
        return None
    seen = np.append(x, 0.0)[layer.windows]
    channels, positions = len(layer.bias), len(seen)
    weight = np.hstack([np.kron(np.eye(channels), seen), np.kron(np.eye(channels), np.ones((positions, 1)))])
    kernel, bias = box.weight.interval, box.bias.interval
    values = [np.concatenate([getattr(part, end).reshape(-1) for part in (kernel, bias)])[None] for end in ("lower", "upper")]
    return _exact_stage(weight, layer.activation), Interval(values[0], values[1])


def interval_step(stage: Stage, h: Interval) -> Interval:
    """Enclose the pre-activations of a stage over boxes of its inputs. Shapes: h (batch, in); result (batch, out)."""
    return affine_ball(stage.weight, stage.radius, stage.bias, stage.bias_radius, h, stage.magnitude, stage.sums)
