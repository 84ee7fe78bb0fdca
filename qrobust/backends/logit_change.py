"""The greatest change of a raw output over a box of inputs: branch and bound on the inputs with differential zonotopes.

Accepts   dense networks; any parameter box; points, boxes and polytopes of few inputs
Gives     a certified upper end and a witness
Method    `search.explore` over boxes of inputs, bounded by `bounds.zonotopes`. A box is halved along the input that moves most
          of what the neurons that may switch cost its bound. Random points, the middles of boxes and the corners that their
          bounds favour are tried; a new best one is polished by pattern search
Property  sound. The ends meet for a single copy (a parameter box of no width); for wider ones the upper end keeps what the
          rows' independence costs, and parameters are chosen by sign steps
Source    Paulsen, Wang, Wang, ICSE 2020 (ReluDiff), for bisection of the inputs under differential bounds
"""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from qrobust import interval
from qrobust.answers import Assurance, Counterexample, EstimateClaim
from qrobust.bounds.shared import attack_shared
from qrobust.bounds.zonotopes import TwinZonotopes
from qrobust.domains import ParameterBox, Parameters
from qrobust.interval import BoolArray, FloatArray, Interval
from qrobust.network import FloatArithmetic, Network, logits, perturbed_logits
from qrobust.queries import EpsilonEstimate
from qrobust.search import Budget, Nodes, explore, halved_along, polished

RELATIVE = 0.05  # (upper - lower) / upper at which the search ends
ROUNDING = 1e-13  # of the greatest logit: changes below it are left to rounding
LEAST = 1e-100  # changes below it, too, where all logits are 0
SAMPLES = 2**14
CLIMBS = 8
GAIN = 0.15  # of a box's bound: narrowing that gains less is not tried for its children,
WAIT = 5  # and for theirs up to this generation


def why_not(query: EpsilonEstimate) -> str | None:
    """Return None if the change of the logits can be bounded, else the reason."""
    return None if query.network.is_dense else "the change of a logit is bounded for dense networks alone"


def estimate(query: EpsilonEstimate, budget: Budget) -> EstimateClaim:
    """Claim two ends of the greatest change of a logit."""
    tree = ChangeTree(query, time.monotonic() + budget.seconds)
    outcome = explore(
        tree,
        budget,
        tolerance=max(ROUNDING * tree.greatest_logit, LEAST),
        stop=lambda o: o.upper - max(o.best, 0.0) <= RELATIVE * o.upper,
        deadline=tree.deadline,
    )
    witness = None if tree.point is None else tree.witness(tree.point)
    return EstimateClaim(max(outcome.upper, 0.0), witness, Assurance.ROUNDED, reason=outcome.reason)


class ChangeTree:
    """Boxes of inputs, with the input along which each is to be halved."""

    def __init__(self, query: EpsilonEstimate, deadline: float, seed: int = 0) -> None:
        self.query, self.network, self.deadline = query, query.network, deadline
        self.root = query.domain.box
        self.zonotopes = TwinZonotopes(query.network, query.parameters)
        self.copy = single_copy(query.parameters)
        self.best: float = -np.inf
        self.point: FloatArray | None = None
        rng = np.random.default_rng(seed)
        points = self.root.lower + rng.random((SAMPLES, len(self.root))) * self.root.width
        points = np.concatenate([self.root.middle[None], np.clip(points, self.root.lower, self.root.upper)])
        values = self.value(points)
        self.greatest_logit = float(np.abs(_stored_logits(self.network, points)).max())
        for index in np.argsort(-values)[:CLIMBS].tolist():
            self._offer(points[[index]], values[[index]], always=True)

    def value(self, points: FloatArray) -> FloatArray:
        """The greatest change at points; over a parameter box with width, its upper bound. Shapes: (n, inputs); (n,)."""
        if self.copy is None:
            changes = self.zonotopes.changes(Interval.point(points)).greatest
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                after = perturbed_logits(self.network, self.copy, points, FloatArithmetic())
                changes = np.abs(after - _stored_logits(self.network, points)).max(axis=1)
        matrix, limit = self.query.domain.inequalities
        return np.where((points @ matrix.T <= limit).all(axis=1), changes, -np.inf)

    def _offer(self, points: FloatArray, values: FloatArray, *, always: bool = False) -> None:
        """Climb from the best of some points, if it is a new best or `always`."""
        index = int(values.argmax())
        if not values[index] > (-np.inf if always else self.best):
            return
        value, point = polished(self, points[index], float(values[index]), self.deadline)
        if value > self.best:
            self.best, self.point = value, point

    def roots(self) -> Nodes:
        root = Interval(self.root.lower[None], self.root.upper[None])
        return self._bounded(root, np.full(1, np.inf), np.zeros(1, dtype=np.int8))

    def split(self, nodes: Nodes) -> Nodes | None:
        lower, upper, axis, wait = nodes.parts
        halves = halved_along(Interval(lower, upper), axis)
        return None if halves is None else self._bounded(halves, np.tile(nodes.upper, 2), np.tile(wait, 2))

    def _bounded(self, boxes: Interval, parents: FloatArray, wait: npt.NDArray[np.int8]) -> Nodes:
        """Bound boxes by themselves and their parents' bounds, and try a few of their points.

        `wait` says in how many generations narrowing, which costs more than all the rest, is to be tried next. Shape: (n,)
        """
        found = self.zonotopes.changes(boxes, wait == 0, self.best)
        wait = np.where(found.gain < GAIN, WAIT, np.maximum(wait - 1, 0)).astype(np.int8)
        upper = np.where(self._outside(boxes), -np.inf, np.minimum(found.greatest, parents))
        points = np.concatenate([boxes.middle, found.favoured])
        self._offer(points, self.value(points))
        return Nodes(upper, (boxes.lower, boxes.upper, _axes(boxes, found.influence), wait))

    def _outside(self, boxes: Interval) -> BoolArray:
        """Whether a box lies wholly outside the domain's inequalities."""
        matrix, limit = self.query.domain.inequalities
        if not limit.size:
            return np.zeros(len(boxes), dtype=bool)
        left = interval.affine(Interval.point(matrix), boxes, Interval.point(np.zeros(len(limit))))
        return np.asarray((left.lower > limit).any(axis=1))

    def witness(self, x: FloatArray) -> Counterexample | None:
        """Return the point with the parameters that change a logit most, as far as sign steps find them."""
        exact = tuple(map(Fraction, x.tolist()))
        if self.copy is not None:
            return Counterexample(exact, self.copy)
        best, chosen, before = -np.inf, None, _stored_logits(self.network, x[None])
        for nu in (sign * row for row in np.eye(self.network.layers[-1].outputs) for sign in (1.0, -1.0)):
            parameters, _ = attack_shared(self.network, self.query.parameters, x, nu)
            if parameters is not None:
                after = perturbed_logits(self.network, parameters, x[None], FloatArithmetic())
                change = float(((after - before) @ nu)[0])
                best, chosen = (change, parameters) if change > best else (best, chosen)
        return None if chosen is None else Counterexample(exact, chosen)


def single_copy(parameters: ParameterBox) -> Parameters | None:
    """Return the one choice of parameters that a box holds, as floats; None if it holds more, or none that floats store."""
    arrays = [(layer.weight, layer.bias) for layer in parameters.layers]
    ends = [(b.lower.round_up(), b.upper.round_down(), b.interval) for pair in arrays for b in pair]
    if not all((low == high).all() and (box.lower == box.upper).all() for low, high, box in ends):
        return None
    return tuple((weight.lower.head, bias.lower.head) for weight, bias in arrays)


def _stored_logits(network: Network, points: FloatArray) -> FloatArray:
    with np.errstate(over="ignore", invalid="ignore"):
        return logits(network, points, FloatArithmetic())


def _axes(boxes: Interval, influence: FloatArray) -> npt.NDArray[np.intp]:
    """Choose the input of most influence among those that have a float between their ends."""
    middle = boxes.middle
    splittable = (boxes.lower < middle) & (middle < boxes.upper)
    return np.asarray(np.where(splittable, influence + np.finfo(float).tiny, -1.0).argmax(axis=1), dtype=np.intp)
