"""Rows that a mixed-integer model of ReLU neurons lacks: cuts from the ideal formulation of a single neuron.

Accepts   neurons h = max(z, 0), z <= coefficients @ v + bias for bounded variables v, with a binary s for z >= 0
Gives     rows that hold wherever s is 0 or 1, and that the given point breaks
Method    for any subset I of the inputs, with l and u the least and greatest values of each term c v of the sum:
          h <= sum over I of (c v - l (1 - s)) + s (bias + sum outside I of u). The subset that is broken most takes the lesser
          of the two terms, input by input
Property  sound: with s = 0 the row says that the terms in I are at least their least values, with s = 1 that those outside are
          at most their greatest; sums are rounded outward
Source    Anderson, Huchette, Ma, Tjandraatmadja, Vielma 2020, Mathematical Programming 183
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust import interval
from qrobust.backends.mixed_integer import Model, Relaxation
from qrobust.interval import FloatArray, Interval

BROKEN = 1e-5  # by how much a point has to break a row for the row to be added, in terms of the neuron's reach
ROUNDS = 12
SLACK = 1e-6
GAIN = 1e-3  # of the bound, relatively: less than that from a round of cuts ends them


@dataclass(frozen=True, eq=False)
class Neurons:
    """One layer's neurons. Shapes: h, active (n,) and inputs (m,), numbers of variables; coefficients (n, m); bias (n,)."""

    h: npt.NDArray[np.int64]
    active: npt.NDArray[np.int64]
    inputs: npt.NDArray[np.int64]
    coefficients: FloatArray
    bias: FloatArray

    def broken(self, model: Model, values: FloatArray) -> list[tuple[npt.NDArray[np.int64], FloatArray, float]]:
        """Return rows (numbers, coefficients, upper end) that a point breaks, at most one a neuron."""
        ends = Interval(model.variables.lower[self.inputs], model.variables.upper[self.inputs])
        terms = Interval.point(self.coefficients) * ends
        s = np.clip(values[self.active], 0.0, 1.0)[:, None]
        inside = self.coefficients * values[self.inputs] - terms.lower * (1 - s)
        outside = terms.upper * s
        limit = np.minimum(inside, outside).sum(axis=1) + self.bias * s[:, 0]
        open_ends = model.variables.lower[self.active] < model.variables.upper[self.active]
        reach = model.variables.upper[self.h]
        rows = []
        for i in np.flatnonzero(open_ends & (values[self.h] - limit > BROKEN * np.maximum(reach, 1.0))).tolist():
            chosen = inside[i] < outside[i]
            least = interval.total(Interval.point(terms.lower[i, chosen])).lower
            greatest = interval.total(Interval.point(np.append(terms.upper[i, ~chosen], self.bias[i]))).upper
            slope = (Interval.point(least) + Interval.point(greatest)).upper
            numbers = np.concatenate([[self.h[i], self.active[i]], self.inputs[chosen]])
            rows.append((numbers, np.concatenate([[1.0, -slope], -self.coefficients[i, chosen]]), -float(least)))
        return rows


def strengthened(model: Model, layers: list[Neurons], seconds: float, rounds: int = ROUNDS, goal: float = -np.inf) -> Model:
    """Return the model with cuts that its relaxation breaks, round by round while they lower its bound, down to a goal."""
    deadline, before, plain = time.monotonic() + seconds, np.inf, len(model.rows)
    for _ in range(rounds):
        left = deadline - time.monotonic()
        hint = Relaxation(model).solve(seconds=left) if left > 0 else None
        if hint is None or hint.values is None:
            break
        bound = float(model.cost @ hint.values)
        rows = [row for neurons in layers for row in neurons.broken(model, hint.values)]
        if not rows or before - bound < GAIN * abs(bound) or bound < goal:
            break
        before, model = bound, _with(_without_slack(model, plain, hint.values), rows)
    return model


def _without_slack(model: Model, plain: int, values: FloatArray) -> Model:
    """Return the model without those of its cuts that a point keeps with room to spare."""
    room = model.rows.upper - model.matrix @ values
    kept = (np.arange(len(room)) < plain) | (room < SLACK)
    return replace(model, matrix=model.matrix[np.flatnonzero(kept)], rows=model.rows[kept], nudged=model.nudged[kept])


def _with(model: Model, rows: list[tuple[npt.NDArray[np.int64], FloatArray, float]]) -> Model:
    from scipy.sparse import csr_matrix, vstack

    count = np.array([len(numbers) for numbers, _, _ in rows])
    place = np.repeat(np.arange(len(rows)), count)
    columns, values = (np.concatenate([row[i] for row in rows]) for i in (0, 1))
    new: Any = csr_matrix((values, (place, columns)), shape=(len(rows), len(model.cost)))
    upper = np.array([end for _, _, end in rows])
    limits = Interval(
        np.concatenate([model.rows.lower, np.full(len(rows), -np.inf)]), np.concatenate([model.rows.upper, upper])
    )
    nudged = np.concatenate([model.nudged, np.zeros(len(rows), dtype=bool)])
    return replace(model, matrix=vstack([model.matrix, new], format="csr"), rows=limits, nudged=nudged)
