"""Networks over eliminated parameters, as stages: what the linear bounds work on.

Accepts   dense layers and any parameter box
Gives     for each layer a centre and a radius: z = (C + E) h + (c + e) with abs(E) <= R and abs(e) <= r, entry by entry, holds
          every network in the box; R is kept as one number a row where the rule allows it (one step a tensor or channel)
Method    row i of C h + c +- (R_i abs(h) + r_i) is exactly what the parameters of row i reach (THEORY.md, section 3)
Property  sound: centre and radius enclose the exact ends of the box; exact up to the rounding of the radius
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from qrobust.domains import Bounds, LayerBox, ParameterBox
from qrobust.interval import FloatArray, Interval, affine_ball, up
from qrobust.network import Activation, Dense, Network

SAME = 1e-9  # radii of a row that differ relatively by less are taken as one, the greatest


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
        return np.ascontiguousarray(self.weight.T)

    @cached_property
    def magnitude(self) -> FloatArray:
        """abs(weight) transposed, shape (in, out)."""
        return np.abs(self.transposed)

    @cached_property
    def fixed(self) -> bool:
        """Whether no parameter of the stage may move."""
        return not self.radius.any() and not self.bias_radius.any()

    def spread(self, multipliers: FloatArray) -> FloatArray:
        """Return abs(multipliers) @ R. Shapes: multipliers (batch, out); result (batch, 1) or (batch, in)."""
        sizes = np.abs(multipliers)
        result: FloatArray = (sizes @ self.radius)[:, None] if self.radius.ndim == 1 else sizes @ self.radius
        return result

    def reach(self, h: FloatArray) -> FloatArray:
        """Return R @ abs(h) + r. Shapes: h (batch, in); result (batch, out)."""
        sizes = np.abs(h)
        moved = sizes.sum(axis=1, keepdims=True) * self.radius if self.radius.ndim == 1 else sizes @ self.radius.T
        result: FloatArray = moved + self.bias_radius
        return result

    def restricted(self, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Stage:
        """Return the stage with these outputs and inputs alone."""
        radius = self.radius[rows] if self.radius.ndim == 1 else self.radius[np.ix_(rows, columns)]
        weight = np.ascontiguousarray(self.weight[np.ix_(rows, columns)])
        return replace(self, weight=weight, radius=radius, bias=self.bias[rows], bias_radius=self.bias_radius[rows])


def stage_of(layer: Dense, box: LayerBox) -> Stage:
    """Return the stage of one layer over its box."""
    weight, radius = _ball(layer.weight, box.weight)
    bias, bias_radius = _ball(layer.bias, box.bias)
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
    centre = np.where(radii[0] <= radii[1] * (1 + SAME), stored, middle)
    radius = np.where(radii[0] <= radii[1] * (1 + SAME), radii[0], radii[1])
    return centre, np.where(ends.lower == ends.upper, np.where(centre == ends.lower, 0.0, radius), radius)


def stages_of(network: Network, parameters: ParameterBox) -> tuple[Stage, ...]:
    """Return the stages of all layers."""
    return tuple(stage_of(layer, box) for layer, box in zip(network.layers, parameters.layers, strict=True))


def interval_step(stage: Stage, h: Interval) -> Interval:
    """Enclose the pre-activations of a stage over boxes of its inputs. Shapes: h (batch, in); result (batch, out)."""
    return affine_ball(stage.weight, stage.radius, stage.bias, stage.bias_radius, h)
