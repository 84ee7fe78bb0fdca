"""Inputs that lose the label, looked for by simulated annealing.

Accepts   every region
Gives     Found, or Undecided: at the time limit, and where sums are too large
Method    many chains at once; in each a pixel at a time takes another value (in a ball by L0, L1 or L2, another pixel goes
          back now and then), which is kept if the best rival's row comes no farther from its threshold, or by chance; the
          temperature falls, then all start again
Property  refutes only
Source    Kirkpatrick, Gelatt, Vecchi 1983, Science 220(4598)
"""

from __future__ import annotations

import time

import numpy as np

from qrobust.binarized.constraints import Constraints
from qrobust.binarized.engines.base import Found, Outcome, Undecided
from qrobust.binarized.engines.evaluation import Evaluation, Values
from qrobust.binarized.enumeration import state_costs
from qrobust.binarized.queries import Norm
from qrobust.errors import ResourceError
from qrobust.layers import IntArray

CHAINS = 64
STEPS = 1500  # until all chains start again
HOT, COLD = 3.0, 0.3  # in units of a rival's row
BACK = 0.5  # how often a pixel goes back, where changes cost


def decide(found: Constraints, seconds: float, seed: int = 0) -> Outcome:
    """Look for an input until time is up."""
    deadline, rng = time.monotonic() + seconds, np.random.default_rng(seed)
    try:
        evaluation = Evaluation(found)
    except ResourceError as error:
        return Undecided(str(error))
    chains = _Chains(found, evaluation, rng)
    while time.monotonic() < deadline:
        chains.start()
        for temperature in np.geomspace(HOT, COLD, STEPS).tolist():
            lost = np.flatnonzero(chains.leads >= 0)
            if len(lost):
                return Found(found.input_levels(chains.states[lost[0]]))
            if time.monotonic() > deadline:
                break
            chains.step(temperature)
    return Undecided("no input was found")


class _Chains:
    """States of the pixels, one row a chain, none of which costs more than is allowed."""

    def __init__(self, found: Constraints, evaluation: Evaluation, rng: np.random.Generator) -> None:
        self._evaluation, self._rng = evaluation, rng
        self._top, self._free, self._most = found.states, found.region.norm is Norm.LINF, found.region.most
        self._costs = _costs(found)
        self._home = self._costs.argmin(axis=1)  # each pixel's cheapest state
        self.states: IntArray = np.zeros((0, 0), dtype=np.int64)
        self.leads: Values = np.zeros(0, dtype=np.float32)

    def start(self) -> None:
        shape = (CHAINS, len(self._top))
        self.states = self._rng.integers(0, self._top + 1, size=shape) if self._free else np.tile(self._home, (CHAINS, 1))
        self.leads = self._leads(self.states)

    def step(self, temperature: float) -> None:
        """Change a pixel of each chain, or two."""
        rng, every = self._rng, np.arange(CHAINS)
        if not len(self._top):
            return
        moved, pixel = self.states.copy(), rng.integers(len(self._top), size=CHAINS)
        if not self._free:
            back = np.where(moved != self._home, rng.random(moved.shape), -1.0).argmax(axis=1)
            moved[every, back] = np.where(rng.random(CHAINS) < BACK, self._home[back], moved[every, back])
        size = self._top[pixel] + 1
        moved[every, pixel] = (moved[every, pixel] + rng.integers(1, size)) % size
        leads = self._leads(moved)
        kept = rng.random(CHAINS) < np.exp(np.minimum(leads - self.leads, 0) / temperature)
        if not self._free:
            kept &= np.take_along_axis(self._costs, moved.T, axis=1).sum(axis=0) <= self._most
        self.states[kept], self.leads[kept] = moved[kept], leads[kept]

    def _leads(self, states: IntArray) -> Values:
        return np.asarray(self._evaluation.leads(states.astype(np.float32)).max(axis=1))


def _costs(found: Constraints) -> IntArray:
    """Return what each state of each pixel costs, a state that there is not more than is allowed. Shape: (pixels, states)."""
    own = state_costs(found)
    costs = np.full((len(own), max(map(len, own), default=1)), found.region.most + 1, dtype=np.int64)
    for pixel, each in enumerate(own):
        costs[pixel, : len(each)] = each
    return costs
