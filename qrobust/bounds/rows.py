"""What a search over neurons is about: rows over the logits, the best point met, its log, and the neurons that matter.

Accepts   `substitution.Levels` and their bounds
Gives     objectives; levels without the neurons that are off everywhere
Property  exact: a neuron that is off for every network of the box and every input puts out 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.bounds.substitution import Levels
from qrobust.interval import FloatArray, Interval
from qrobust.network import Activation


@dataclass(frozen=True, eq=False)
class Rows:
    """Objectives nu . logits + offset. Shapes: nu (rows, logits); offset (rows,); strict (rows,): 0 does not count."""

    nu: FloatArray
    offset: FloatArray
    strict: npt.NDArray[np.bool_]

    def take(self, index: npt.NDArray[Any]) -> Rows:
        return Rows(self.nu[index], self.offset[index], self.strict[index])


@dataclass(frozen=True)
class Point:
    """The best point met: the row it is about, its forecast value, and one array of positions a hidden level."""

    row: int
    value: float
    positions: list[FloatArray]


@dataclass(frozen=True)
class Log:
    """What a certificate needs of a search: splits (parents, neurons over all levels, cuts, children) and proved leaves."""

    splits: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], FloatArray, npt.NDArray[np.intp]]] = field(
        default_factory=list
    )
    leaves: list[tuple[npt.NDArray[np.intp], list[FloatArray]]] = field(default_factory=list)


def alive(levels: Levels, bounds: Sequence[Interval]) -> list[npt.NDArray[np.intp]]:
    """Return, for each hidden level, the neurons that are not off everywhere (one at least); beside a kernel all."""
    kept = []
    for number, z in enumerate(bounds):
        if any(stage.kernel is not None for stage in levels.stages[max(number - 1, 0) : number + 1]):
            kept.append(np.arange(z.shape[1]))
            continue
        on = (z.upper > 0).any(axis=0) if levels.activation(number) is Activation.RELU else np.ones(z.shape[1], dtype=bool)
        kept.append(np.flatnonzero(on) if on.any() else np.array([0]))
    return kept


def restricted(
    levels: Levels, bounds: Sequence[Interval], kept: Sequence[npt.NDArray[np.intp]]
) -> tuple[Levels, list[Interval]]:
    """Return the network and bounds of the kept neurons alone: the others put out 0."""
    stages = []
    for number, stage in enumerate(levels.stages):
        rows = kept[number + 1] if number + 1 < len(kept) else np.arange(stage.outputs)
        stages.append(stage.restricted(rows, kept[number]))
    return Levels(levels.first, tuple(stages)), [z[:, k] for z, k in zip(bounds, kept, strict=True)]
