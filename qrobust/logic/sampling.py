"""Shares estimated from inputs drawn uniformly from a region.

Gives     ends of the share that hold with probability at least 1 - delta, at most 2 epsilon apart
Method    so many draws that Hoeffding's inequality gives epsilon; the ends are Clopper and Pearson's, which lie within
          Hoeffding's. In a ball of costs the inputs are drawn feature by feature, in proportion to how many ways are left
Property  estimates with confidence; probabilities of a draw are rounded to float64
Source    Hoeffding 1963; Clopper and Pearson 1934; Baluta, Chua, Meel, Saxena 2021, arXiv 2002.06864 (draws for verification)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qrobust.binarized.queries import Norm, Region, level_costs
from qrobust.errors import NumberError, ResourceError
from qrobust.interval import FloatArray
from qrobust.layers import IntArray
from qrobust.logic.labels import ways_by_cost

CHUNK = 4096
MOST_DRAWS = 10_000_000
MOST_SHARES = 2**27  # probabilities kept in memory
LEAST_DELTA = 1e-15  # below it SciPy's quantiles are not reliable
ERROR = 2.0**-40  # of them, relatively: they err by a few units in the last place


@dataclass(frozen=True)
class Precision:
    """What an estimate of a share promises: within epsilon of it, with probability 1 - delta. Raises NumberError."""

    epsilon: float = 0.01
    delta: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < 1 or not LEAST_DELTA <= self.delta < 1:
            numbers = f"epsilon is {self.epsilon:g} and delta {self.delta:g}"
            raise NumberError(f"{numbers}: both must lie between 0 and 1, and delta not below {LEAST_DELTA:g}")
        if self.draws > MOST_DRAWS:
            raise NumberError(f"epsilon {self.epsilon:g} takes {self.draws:,} draws, at most {MOST_DRAWS:,}: raise it")

    @property
    def draws(self) -> int:
        """How many inputs are drawn."""
        return math.ceil(math.log(2 / self.delta) / (2 * self.epsilon**2))

    def reached(self, draws: int) -> float:
        """Return the epsilon that so many draws promise, with the same delta."""
        return math.sqrt(math.log(2 / self.delta) / (2 * draws))


def ends(hits: int, draws: int, delta: float) -> tuple[float, float]:
    """Return both ends of a share of which so many draws were hits, moved outward by what their computation may err."""
    from scipy.stats import beta

    lower = 0.0 if hits == 0 else float(beta.ppf(delta / 2, hits, draws - hits + 1)) * (1 - ERROR)
    upper = 1.0 if hits == draws else float(beta.isf(delta / 2, hits + 1, draws - hits)) * (1 + ERROR)
    return lower, min(upper, 1.0)


def drawn(region: Region, draws: int, seed: int) -> Iterator[IntArray]:
    """Yield inputs drawn uniformly from a region, in chunks. Shape of each: (at most CHUNK, inputs). Raises ResourceError."""
    rng = np.random.default_rng(seed)
    tables = None if region.norm is Norm.LINF else _tables(region)
    for start in range(0, draws, CHUNK):
        size = min(CHUNK, draws - start)
        if tables is None:
            yield rng.integers(region.lower, region.upper + 1, size=(size, len(region.lower)), dtype=np.int64)
        else:
            yield _from_ball(region, tables, rng.random((size, len(region.lower))))


def _tables(region: Region) -> list[FloatArray]:
    """Return, for each feature, the cumulated probabilities of its levels (cost left, levels). Raises ResourceError."""
    entries = int((region.upper - region.lower + 1).sum()) * (region.most + 1)
    if entries > MOST_SHARES:
        raise ResourceError(
            f"draws from this ball take tables of {entries:,} shares, at most {MOST_SHARES:,}: take a smaller one"
        )
    found = []
    for costs, after, ways in ways_by_cost(region):
        shares = np.zeros((region.most + 1, len(costs)))
        for cost in np.unique(costs[costs <= region.most]).tolist():
            shares[cost:, costs == cost] = (after[: len(after) - cost] / ways[cost:]).astype(np.float64)[:, None]
        found.append(np.minimum(np.cumsum(shares, axis=1), 1.0))
    return found[::-1]


def _from_ball(region: Region, tables: list[FloatArray], uniform: FloatArray) -> IntArray:
    levels, left = np.zeros(uniform.shape, dtype=np.int64), np.full(len(uniform), region.most)
    for place, table in enumerate(tables):
        cumulated = table[left]
        state = (uniform[:, [place]] >= cumulated).sum(axis=1)
        last = table.shape[1] - 1 - (np.diff(cumulated[:, ::-1], axis=1, append=0) < 0).argmax(axis=1)
        state = np.minimum(state, last)  # rounding never draws a level that no budget is left for
        levels[:, place] = region.lower[place] + state
        left -= level_costs(np.abs(levels[:, place] - region.centre[place]), region.norm)
    return levels
