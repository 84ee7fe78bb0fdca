"""Questions about networks that scale their inputs, asked of the layers behind the scaling, the core.

Accepts   any query; those of networks without scaling, and of cores that are not dense (whose bounds take the scaling as a
          layer), are asked as they are
Gives     a query about the core that no backend needs to know more than, and what its claims mean for the query itself
Method    a box or polytope is mapped to one that holds its image, rounded outward. A point x has an image y that no floats
          need hold; y is rounded to floats z, and every first layer's bias may move by abs(W) @ abs(y - z), rounded up, so that
          the core at z with the box that is wider takes every value of the network at x. What the stored network's own logits
          may differ by between y and z is the slack: a confidence and a margin differ by at most half of it
Property  sound; complete but for the rounding. The parameters keep their own numbers, so any scheme's box stays its own.
          Counterexamples are mapped back exactly, and count when they replay in the query's own units
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from qrobust.answers import Assurance, Candidate, Claim, Counterexample, EstimateClaim, Robust, Unknown, Violated
from qrobust.bounds.ibp import INTERVALS, nominal_logits
from qrobust.bounds.stages import middle_and_radius
from qrobust.check import Replay
from qrobust.domains import Bounds, Domain, InputBox, LayerBox, ParameterBox, Point, Points, Polytope
from qrobust.errors import NumberError
from qrobust.interval import Ends, Expansion, FloatArray, Interval, down, round_fraction_up, up
from qrobust.layers import NONE, Scaling
from qrobust.network import Network
from qrobust.queries import ConfidenceQuery, EpsilonEstimate, LabelQuery, Query

Q = TypeVar("Q", bound=Query)


def needs_core(network: Network) -> bool:
    """Whether questions about a network are asked of its core."""
    return network.scaling is not None and network.core.is_dense


@dataclass(frozen=True, eq=False)
class Rescaled:
    """A query with the one that stands for it, `core`; `slack` bounds how far stored logits differ between the two."""

    query: Query
    core: Query
    slack: Fraction = Fraction(0)

    @property
    def settles(self) -> bool:
        """Whether a proof about the core is one of the query, whatever the rounding of the inputs hides."""
        if self.core is self.query or not isinstance(self.query.domain, Point | Points):
            return True
        if isinstance(self.query, ConfidenceQuery):
            return self.query.epsilon >= self.slack / 2
        return not self.query.parameters.shifted

    def claim(self, claim: Claim) -> Claim:
        """Return what a claim about the core says of the query."""
        if self.core is self.query or isinstance(claim, Unknown):
            return claim
        if isinstance(claim, Violated | Candidate):
            return Candidate(self.example(claim.counterexample))
        if not self.settles and not (isinstance(self.query, LabelQuery) and self._same_label(self.query)):
            return Unknown("rounding of the scaled input hides the answer")
        return Robust(min(claim.assurance, Assurance.ROUNDED))

    def estimate(self, claim: EstimateClaim) -> EstimateClaim:
        """Return what an estimate of the core's quantity says of the query's own."""
        if self.core is self.query:
            return claim
        more = self.slack if isinstance(self.query, EpsilonEstimate) and self.query.of_logits else self.slack / 2
        upper = round_fraction_up(Fraction(claim.upper) + more) if np.isfinite(claim.upper) else claim.upper
        witness = None if claim.witness is None else self.example(claim.witness)
        return replace(claim, upper=upper, witness=witness, assurance=min(claim.assurance, Assurance.ROUNDED), exact=False)

    def example(self, found: Counterexample) -> Counterexample:
        """Return an example in the query's own units, its input and first biases moved into their boxes."""
        (weight, bias), *rest = found.parameters
        first = (weight, _inside(bias, self.query.parameters.layers[1].bias))
        return Counterexample(self._original(found.x), ((NONE, NONE), first, *rest))

    def _original(self, x: Sequence[Fraction]) -> tuple[Fraction, ...]:
        """Return the input that is scaled to x, or the nearest in the domain's box. A point stays what it is."""
        scaling, ends = self.query.network.scaling, self.query.domain.box
        assert scaling is not None
        sides = zip(ends.lower.tolist(), ends.upper.tolist(), strict=True)
        own = ((y - o) / s for y, s, o in zip(x, scaling.scale.tolist(), scaling.offset.tolist(), strict=True))
        return tuple(max(Fraction(low), min(value, Fraction(high))) for value, (low, high) in zip(own, sides, strict=True))

    def _same_label(self, query: LabelQuery) -> bool:
        """Whether the stored network's labels are the same at the query's points and at the core's, decided exactly."""
        pairs = zip(_rows(query.domain), _rows(self.core.domain), strict=True)
        for row, seen in pairs:
            labels = [
                Replay(network, Counterexample(tuple(map(Fraction, x.tolist())), ())).label(False, query.level)
                for network, x in ((query.network, row), (self.core.network, seen))
            ]
            if None in labels or labels[0] != labels[1]:
                return False
        return True


def rescaled(query: Query) -> Rescaled:
    """Return the query that backends are asked in place of this one. Raises NumberError if the scaling overflows."""
    network = query.network
    if not needs_core(network):
        return Rescaled(query, query)
    box = behind(query.parameters)
    if not isinstance(query.domain, Point | Points):
        return Rescaled(query, _about(query, network.core, box, _image(network, query.domain)))
    seen = scaled_points(network, _rows(query.domain), box)
    domain = Point(seen.values[0]) if isinstance(query.domain, Point) else Points(seen.values)
    core = _about(query, network.core, seen.parameters, domain)
    if isinstance(core, ConfidenceQuery):
        core = replace(core, epsilon=max(core.epsilon - seen.slack / 2, Fraction(0)))
    elif isinstance(core, LabelQuery):
        core = replace(core, sigma=max(core.sigma - seen.slack / 2, Fraction(0)))
    return Rescaled(query, core, seen.slack)


def _about(query: Q, network: Network, parameters: ParameterBox, domain: Domain) -> Q:
    return replace(query, network=network, parameters=parameters, domain=domain)


@dataclass(frozen=True, eq=False)
class ScaledPoints:
    """Points as the core sees them, rounded, with a box of its parameters that makes up for it. Shapes: values (n, inputs)."""

    values: FloatArray
    parameters: ParameterBox
    slack: Fraction


def behind(parameters: ParameterBox) -> ParameterBox:
    """Return the box of the core's parameters."""
    return _with_layers(parameters, parameters.layers[1:])


def scaled_box(network: Network, x: Interval) -> Interval:
    """Enclose the scaled inputs. Shapes: x (..., inputs). Raises NumberError."""
    assert network.scaling is not None
    image = network.scaling.enclose(x)
    if not (np.isfinite(image.lower).all() and np.isfinite(image.upper).all()):
        raise NumberError("a scaled input is beyond float64: give inputs in the model's own units")
    return image


def scaled_inside(network: Network, x: Interval) -> Ends:
    """Return the inner ends of the scaled inputs of boxes. Shapes: x (..., inputs). Raises NumberError."""
    first, second = (scaled_box(network, Interval.point(end)) for end in (x.lower, x.upper))
    return Ends(np.minimum(first.upper, second.upper), np.maximum(first.lower, second.lower))


def scaled_points(network: Network, points: FloatArray, box: ParameterBox) -> ScaledPoints:
    """Return points (n, inputs) as a dense core sees them, given the core's box. Raises NumberError."""
    image = scaled_box(network, Interval.point(points))
    values, radius = middle_and_radius(image)
    wide = image.join(Interval.point(values))
    logits = nominal_logits(network.core, wide)
    slack = up(logits.upper - logits.lower).max()
    if not np.isfinite(slack):
        raise NumberError("the network's values overflow at a scaled input: its numbers are too large")
    first = box.layers[0]
    reach = _reach(first.weight.interval, radius.max(axis=0))
    biases = first.bias.interval
    moved = Bounds(Expansion.of(down(biases.lower - reach)), Expansion.of(up(biases.upper + reach)))
    wider = _with_layers(box, (LayerBox(first.weight, moved), *box.layers[1:]))
    return ScaledPoints(values, wider, Fraction(float(slack)))


def _reach(weight: Interval, radius: FloatArray) -> FloatArray:
    """Bound abs(W) @ radius from above. Shapes: weight (out, in); radius (in,); result (out,)."""
    sizes = Interval.point(np.maximum(np.abs(weight.lower), np.abs(weight.upper)))
    zeros = Interval.point(np.zeros(len(weight.lower)))
    reach: FloatArray = INTERVALS.affine(sizes, Interval.point(radius[None]), zeros).upper[0]
    return reach


def _image(network: Network, domain: Domain) -> InputBox | Polytope:
    """Return a set that holds every input of the domain, scaled."""
    scaling = network.scaling
    assert scaling is not None
    ends = scaled_box(network, domain.box)
    box = InputBox(ends.lower, ends.upper)
    matrix, limit = domain.inequalities
    if not limit.size:
        return box
    rows = [_scaled_cut(scaling, ends, *cut) for cut in zip(matrix.tolist(), limit.tolist(), strict=True)]
    return Polytope(box, [row for row, _ in rows], [end for _, end in rows])


def _scaled_cut(scaling: Scaling, ends: Interval, row: list[float], limit: float) -> tuple[list[float], float]:
    """Return coefficients c and a limit such that row @ x <= limit makes c @ y <= that limit, y within `ends`.

    x is (y - offset) / scale, so the exact coefficients are row / scale; what rounding them moves is added to the limit.
    Raises    NumberError if one is beyond float64
    """
    pairs = zip(row, scaling.scale.tolist(), scaling.offset.tolist(), strict=True)
    parts = [(Fraction(a) / scale, Fraction(a) / scale * offset) for a, scale, offset in pairs]
    try:
        coefficients = [float(exact) for exact, _ in parts]
    except OverflowError:
        raise NumberError("an inequality is beyond float64 in the scaled inputs: give smaller coefficients") from None
    reach = np.maximum(np.abs(ends.lower), np.abs(ends.upper)).tolist()
    lost = sum(abs(exact - Fraction(c)) * Fraction(r) for (exact, _), c, r in zip(parts, coefficients, reach, strict=True))
    return coefficients, round_fraction_up(Fraction(limit) + sum(moved for _, moved in parts) + lost)


def _with_layers(box: ParameterBox, layers: tuple[LayerBox, ...]) -> ParameterBox:
    return ParameterBox(layers, box.shifted, box.rule)


def _rows(domain: Domain) -> FloatArray:
    assert isinstance(domain, Point | Points)
    return np.atleast_2d(domain.values)


def _inside(values: npt.NDArray[Any], bounds: Bounds) -> npt.NDArray[Any]:
    """Return each number, or the nearest within its bounds."""
    if bounds.contains(values):
        return values
    lower, upper = bounds.fractions
    result = np.empty(values.shape, dtype=object)
    each = zip(values.tolist(), lower.tolist(), upper.tolist(), strict=True)
    result[:] = [max(low, min(Fraction(value), high)) for value, low, high in each]
    return result
