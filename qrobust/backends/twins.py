"""The stored and the perturbed network side by side as rows of a mixed-integer model, the parameters eliminated.

Accepts   dense networks whose hidden layers are linear or ReLU; points, boxes, polytopes
Gives     a `Builder` with both networks' rows, and which variables hold inputs, pre-activations and logits
Method    W.lower h' + b.lower <= z' <= W.upper h' + b.upper where h' >= 0; where h' changes sign, h' = p - n with p, n >= 0,
          one of them 0 by a binary, and w h' in [w.lower p - w.upper n, w.upper p - w.lower n]. ReLU: h >= 0, h >= z,
          h <= z - l (1 - s), h <= u s. With bounds d on dz = z' - z, and dh = h' - h: dh >= dz - d.upper (1 - s),
          dh >= d.lower s, dh <= dz - d.lower (1 - s'), dh <= d.upper s'. At a point the stored half is a constant, and so
          is left out
Property  every real input, parameters in the box, and pre-activations satisfy the rows: bounds are floats rounded outward,
          and no coefficient is the result of an operation. Exact but for that rounding
Source    THEORY.md, sections 3 and 4; Tjeng, Xiao, Tedrake 2019 (ReLU); Paulsen, Wang, Wang 2020 (differences)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from qrobust.answers import Counterexample
from qrobust.backends.mixed_integer import Builder, Model, Relaxation, proved_ends
from qrobust.backends.relu_cuts import Neurons
from qrobust.bounds.corners import corner
from qrobust.bounds.differential import Pair, PairBounds
from qrobust.domains import LayerBox, Point
from qrobust.interval import FloatArray, Interval, relu
from qrobust.network import Activation, FloatArithmetic, activate
from qrobust.queries import Query

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Twins:
    """The rows of a query's two networks. `stored` (logits,) is empty at a point."""

    query: Query
    builder: Builder
    x: Numbers
    pre_activations: list[tuple[Numbers, Numbers]]
    trace: list[Pair]
    active: tuple[Numbers, Numbers]
    neurons: list[Neurons]

    def idle(self, rows: Interval, reached: Interval) -> Numbers:
        """Return binaries of the last hidden layer that change nothing where every row @ stored logits is to be small, and
        one row of perturbed ones to be great: those of neurons that are to be small, for max(z, 0) <= h needs no binary.

        Shapes    rows (n, last hidden), reached (last hidden,): the folded last layer, stored and over the box
        """
        small = (rows.lower >= 0).all(axis=0), reached.upper <= 0
        found = [numbers[mask] for numbers, mask in zip(self.active, small, strict=True) if len(numbers)]
        return np.concatenate([np.zeros(0, dtype=np.int64), *found])

    @property
    def stored(self) -> Numbers:
        """The stored network's logits."""
        return self.pre_activations[-1][0]

    @property
    def perturbed(self) -> Numbers:
        """The perturbed network's logits."""
        return self.pre_activations[-1][1]

    @property
    def logits(self) -> Pair:
        """The logits' bounds."""
        return self.trace[-1]

    def tightened(self, model: Model, deadline: float) -> Twins | None:
        """Return twins whose bounds hold for all that a model over these twins allows; None if it allows nothing.

        Method    the greatest and least value of each undecided neuron, and of its change, over the linear relaxation, proved
        """
        relaxation, trace = Relaxation(model), []
        for (before, after), pair in zip(self.pre_activations, self.trace, strict=True):
            parts = [(pair.stored, [(before, 1.0)]), (pair.perturbed, [(after, 1.0)])]
            parts.append((pair.difference, [(after, 1.0), (before, -1.0)]))
            ends = []
            for place, (bounds, terms) in enumerate(parts):
                if not len(before) and place != 1:
                    ends.append(bounds)
                    continue
                new = _tightened(model, relaxation, bounds[0], terms, deadline)
                if new is None:
                    return None
                ends.append(new[None])
            trace.append(Pair(*ends))
        return twins(self.query, trace)

    def point(self, values: FloatArray) -> FloatArray:
        """Return a point of `bounds.objectives.Space`: the input near a solver's point, inside the domain's box, and where each
        hidden neuron but the last layer's stands in its reach, from -1 to 1.
        """
        box = self.query.domain.box
        x = np.clip(values[self.x], box.lower, box.upper)
        h, parts = x, [x]
        for layer, part, (_, numbers) in zip(
            self.query.network.hidden_layers[:-1], self.query.parameters.layers, self.pre_activations, strict=False
        ):
            low, high = _reach(part, h)
            with np.errstate(divide="ignore", invalid="ignore"):
                t = np.where(high > low, 2 * (values[numbers] - low) / (high - low) - 1, 0.0)
            t = np.clip(t, -1.0, 1.0)
            parts.append(t)
            h = activate(layer.activation, low + (1 + t) / 2 * (high - low), FloatArithmetic())
        return np.concatenate(parts)

    def example(self, values: FloatArray, directions: FloatArray) -> Counterexample:
        """Return an input and parameters near a solver's point, inside domain's box and parameter box, exactly.

        Method    `point`; a last hidden neuron stands where the directed sum of logits wants it
        """
        sizes = [len(self.x), *(layer.outputs for layer in self.query.network.hidden_layers[:-1])]
        x, *positions = np.split(self.point(values), np.cumsum(sizes)[:-1])
        return corner(
            self.query.network, self.query.parameters, [Fraction(value) for value in x.tolist()], directions, positions
        )


def _reach(box: LayerBox, h: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the least and greatest pre-activations in floating point; no bounds."""
    weight, bias = box.weight.interval, box.bias.interval
    ends = weight.lower * h, weight.upper * h
    return np.minimum(*ends).sum(axis=1) + bias.lower, np.maximum(*ends).sum(axis=1) + bias.upper


def _tightened(
    model: Model, relaxation: Relaxation, bounds: Interval, terms: list[tuple[Numbers, float]], deadline: float
) -> Interval | None:
    """Tighten the bounds of a sum of terms, for each entry whose sign is open; None if the model allows nothing."""
    lower, upper = bounds.lower.copy(), bounds.upper.copy()
    for i in np.flatnonzero((lower < 0) & (upper > 0)).tolist():
        left = deadline - time.monotonic()
        if left <= 0:
            break
        cost = np.zeros(len(model.cost))
        for numbers, sign in terms:
            cost[numbers[i]] = sign
        new = proved_ends(model, cost, relaxation, bounds[i : i + 1], left)
        if new is None:
            return None
        lower[i], upper[i] = new.lower[0], new.upper[0]
    return Interval(lower, upper)


def twins(query: Query, trace: list[Pair] | None = None) -> Twins:
    """Build both networks' rows, with bounds of all pre-activations or, without, those of `bounds.differential`."""
    builder, box = Builder(), query.domain.box
    at_point = isinstance(query.domain, Point)
    trace = trace or PairBounds(query.network, query.parameters, free_layers=0).trace(box[None])
    x = builder.add(box)
    matrix, limit = query.domain.inequalities
    if limit.size:
        builder.require([(x, matrix)], -np.inf, limit, nudged=True)
    nothing: Numbers = np.zeros(0, dtype=np.int64)
    pre_activations: list[tuple[Numbers, Numbers]] = []
    neurons: list[Neurons] = []
    h, perturbed, ends, before, active = x, x, box, nothing, (nothing, nothing)
    for number, (layer, part) in enumerate(zip(query.network.layers, query.parameters.layers, strict=True)):
        z = trace[number]
        after = builder.add(z.perturbed[0])
        above = None
        if not at_point or number:  # at a point the first layer reaches all of its bounds
            above = _reachable(builder, after, part, perturbed, ends)
        if not at_point:
            before = builder.add(z.stored[0])
            builder.require([(h, layer.weight), (before, -1.0)], -layer.bias, -layer.bias)
            builder.require([(after, 1.0), (before, -1.0)], z.difference.lower[0], z.difference.upper[0])
        pre_activations.append((before, after))
        if number == len(trace) - 1:
            break
        inputs, h, perturbed, ends, active = h, before, after, z.perturbed[0], (nothing, nothing)
        if layer.activation is Activation.RELU:
            perturbed, now_on = _relu(builder, after, ends)
            ends, active = relu(ends), (nothing, now_on)
            if above is not None:
                neurons.append(Neurons(perturbed, now_on, *above, part.bias.interval.upper))
            if not at_point:
                h, was_on = _relu(builder, before, z.stored[0])
                neurons.append(Neurons(h, was_on, inputs, layer.weight, layer.bias))
                active = was_on, now_on
                _difference(builder, (before, after), (h, perturbed), active, z.difference[0])
    return Twins(query, builder, x, pre_activations, trace, active, neurons)


def _reachable(builder: Builder, z: Numbers, box: LayerBox, h: Numbers, ends: Interval) -> tuple[Numbers, FloatArray]:
    """Require that z lies between the rows' least and greatest value over the box; return the greatest, without bias."""
    weight, bias = box.weight.interval, box.bias.interval
    below = ends.upper <= 0
    up, down = np.where(below, weight.lower, weight.upper), np.where(below, weight.upper, weight.lower)
    mixed = (ends.lower < 0) & ~below & (weight.lower < weight.upper).any(axis=0)
    parts = [(h[~mixed], -up[:, ~mixed])], [(h[~mixed], -down[:, ~mixed])]
    if mixed.any():
        positive, negative = _signs(builder, h[mixed], ends[mixed])
        parts[0].extend([(positive, -weight.upper[:, mixed]), (negative, weight.lower[:, mixed])])
        parts[1].extend([(positive, -weight.lower[:, mixed]), (negative, weight.upper[:, mixed])])
    builder.require([(z, 1.0), *parts[0]], -np.inf, bias.upper)
    builder.require([(z, 1.0), *parts[1]], bias.lower, np.inf)
    return np.concatenate([numbers for numbers, _ in parts[0]]), -np.concatenate([c for _, c in parts[0]], axis=1)


def _signs(builder: Builder, h: Numbers, ends: Interval) -> tuple[Numbers, Numbers]:
    """Split h, which changes sign, into its positive and negative part."""
    zero = np.zeros(len(h))
    positive, negative = builder.add(Interval(zero, ends.upper)), builder.add(Interval(zero, -ends.lower))
    side = builder.add(Interval(zero, zero + 1), binary=True)
    builder.require([(h, 1.0), (positive, -1.0), (negative, 1.0)], 0.0, 0.0)
    builder.require([(positive, 1.0), (side, -ends.upper)], -np.inf, 0.0)
    builder.require([(negative, 1.0), (side, -ends.lower)], -np.inf, -ends.lower)
    return positive, negative


def _relu(builder: Builder, z: Numbers, ends: Interval) -> tuple[Numbers, Numbers]:
    """Return the variables max(z, 0) and whether z >= 0."""
    h = builder.add(relu(ends))
    on, off = ends.lower >= 0, ends.upper <= 0  # a neuron that is 0 throughout counts as on
    active = builder.add(Interval(on.astype(np.float64), (on | ~off).astype(np.float64)), binary=True)
    low, high = np.minimum(ends.lower, 0.0), np.maximum(ends.upper, 0.0)
    builder.require([(h, 1.0), (z, -1.0)], 0.0, np.inf)
    builder.require([(h, 1.0), (z, -1.0), (active, -low)], -np.inf, -low)
    builder.require([(h, 1.0), (active, -high)], -np.inf, 0.0)
    return h, active


def _difference(
    builder: Builder,
    z: tuple[Numbers, Numbers],
    h: tuple[Numbers, Numbers],
    active: tuple[Numbers, Numbers],
    bounds: Interval,
) -> None:
    """Tie the change of max(z, 0) to the change of z."""
    low, high = np.minimum(bounds.lower, 0.0), np.maximum(bounds.upper, 0.0)
    change = [(h[1], 1.0), (h[0], -1.0)]
    excess = [*change, (z[1], -1.0), (z[0], 1.0)]
    builder.require([*excess, (active[0], -high)], -high, np.inf)
    builder.require([*excess, (active[1], -low)], -np.inf, -low)
    builder.require([*change, (active[0], -low)], 0.0, np.inf)
    builder.require([*change, (active[1], -high)], -np.inf, 0.0)
