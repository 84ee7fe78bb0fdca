"""Exact re-check of claims, in rationals and balls; imports no backend and no bounds.

A counterexample is replayed from the definitions: the input lies in the domain, the parameters in the box, and what the
query forbids happens. Every comparison is settled exactly or not accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from flint import arb

from qrobust.answers import Counterexample
from qrobust.certificates import Certificate
from qrobust.domains import Bounds, LayerBox, Parameters
from qrobust.dyadic import Dyadic, product, zeros
from qrobust.errors import UnsoundAnswerError
from qrobust.exact import (
    Exact,
    ExactArithmetic,
    ExactArray,
    decide,
    float_bounds,
    logit_bounds,
    sigmoid,
    to_exact,
)
from qrobust.interval import FloatArray
from qrobust.layers import AveragePool2d, Conv2d, MaxPool2d, Scaling
from qrobust.network import Activation, Network, Output, confidence, logits, perturbed_logits
from qrobust.queries import ConfidenceQuery, EpsilonEstimate, GreatestDelta, LabelQuery, LocalLabel, Query, SigmaEstimate


class Replay:
    """The nominal and the perturbed network at one input, evaluated exactly in whatever precision is in force.

    Linear and ReLU units with dyadic parameters (floats are), at a dyadic input and without average pools, whose quotients
    need not be dyadic, are evaluated in big integers.
    """

    def __init__(self, network: Network, example: Counterexample) -> None:
        self.network, self._example = network, example
        self._fixed: dict[str, ExactArray] = {}
        activations = (Activation.LINEAR, Activation.RELU)
        plain = not any(
            isinstance(layer, AveragePool2d | Scaling) or layer.activation not in activations for layer in network.layers
        )
        dyadic = all(_is_dyadic(Fraction(value)) for value in example.x)
        self._input = Dyadic.of_fractions([list(example.x)]) if plain and dyadic and example.x else None

    def nominal(self) -> ExactArray:
        """Logits of the stored network."""
        if self._input is not None:
            return self._once("nominal", lambda: self._dyadic(_stored_rows(self.network)))
        return self._once("nominal", lambda: logits(self.network, self._x, ExactArithmetic()))

    def perturbed(self) -> ExactArray:
        """Logits of the perturbed network."""
        chosen = self._example.parameters
        if self._input is not None and all(_all_dyadic(part) for pair in chosen for part in pair):
            return self._once("perturbed", lambda: self._dyadic(_rows(chosen)))
        compute = lambda: perturbed_logits(self.network, self._parameters, self._x, ExactArithmetic())  # noqa: E731
        return self._once("perturbed", compute)

    @cached_property
    def _x(self) -> ExactArray:
        return to_exact([Fraction(value) for value in self._example.x])

    @cached_property
    def _parameters(self) -> list[tuple[ExactArray, ExactArray]]:
        return [(to_exact(weight), to_exact(bias)) for weight, bias in self._example.parameters]

    def _dyadic(self, rows: Sequence[tuple[Dyadic, Dyadic]]) -> ExactArray:
        h = self._input
        assert h is not None
        for layer, (weight, bias) in zip(self.network.layers, rows, strict=True):
            match layer:
                case Conv2d():
                    h = (product(h.seen(layer.windows), weight) + bias).T.reshape(1, layer.outputs)
                case MaxPool2d():
                    h = h.seen(layer.windows).greatest(axis=1)[None]
                case _:
                    h = product(h, weight) + bias
            h = h.relu() if layer.activation is Activation.RELU else h
        return to_exact(h.fractions()[0])

    def _once(self, key: str, compute) -> ExactArray:  # type: ignore[no-untyped-def]
        """Keep rational logits, which no precision changes; recompute balls."""
        if key in self._fixed:
            return self._fixed[key]
        values: ExactArray = compute()
        if not any(isinstance(value, arb) for value in values):
            self._fixed[key] = values
        return values

    def logit_change(self) -> list[Exact]:
        """Signed change of each logit, perturbed minus nominal."""
        return [b - a for a, b in zip(self.nominal(), self.perturbed(), strict=True)]

    def change(self) -> list[Exact]:
        """Signed change of each confidence, perturbed minus nominal."""
        nominal, perturbed = self.nominal(), self.perturbed()
        if all(not isinstance(a - b, arb) and a == b for a, b in zip(nominal, perturbed, strict=True)):
            return [a - b for a, b in zip(nominal, perturbed, strict=True)]  # exact zeros, which balls could not show
        arithmetic = ExactArithmetic()
        before, after = (confidence(self.network, values, arithmetic) for values in (nominal, perturbed))
        return [b - a for a, b in zip(before, after, strict=True)]

    def label(self, perturbed: bool, level: Fraction) -> int | None:
        """The label of either network, or None if no precision settles it."""
        values = self.perturbed if perturbed else self.nominal
        if self.network.output is Output.SIGMOID:
            sign = decide(lambda: _above_level(values()[0], level))
            return None if sign is None else int(sign > 0)
        best = 0
        for rival in range(1, self.network.class_count):
            sign = decide(lambda best=best, rival=rival: values()[rival] - values()[best])  # type: ignore[misc]
            if sign is None:
                return None
            best = rival if sign > 0 else best
        return best

    def margin(self, label: int, level: Fraction) -> Exact:
        """The margin of the stored network's label; see `queries`."""
        values = self.nominal()
        if self.network.output is Output.SIGMOID:
            above = sigmoid(values[0]) - to_exact([level])[0]
            return above if label == 1 else -above
        gaps = [values[label] - value for rival, value in enumerate(values) if rival != label]
        least = gaps[0]
        for gap in gaps[1:]:
            least = arb(least).min(arb(gap)) if isinstance(least, arb) or isinstance(gap, arb) else min(least, gap)
        return sigmoid(least) - to_exact([Fraction(1, 2)])[0]


def _is_dyadic(value: Fraction) -> bool:
    return not value.denominator & (value.denominator - 1)


def _all_dyadic(values: npt.NDArray[Any]) -> bool:
    return values.dtype == np.float64 or all(_is_dyadic(Fraction(value)) for value in values.flat)


def _rows(parameters: Parameters) -> list[tuple[Dyadic, Dyadic]]:
    """Weights as (in, out), a convolution's as (taps, channels), and biases as (1, out or channels)."""
    exactly = [[Dyadic.of(part) if part.dtype == np.float64 else Dyadic.of_fractions(part) for part in p] for p in parameters]
    return [(weight.reshape(max(bias.shape[0], 1), -1).T, bias[None]) for weight, bias in exactly]


@lru_cache(maxsize=4)
def _stored_rows(network: Network) -> list[tuple[Dyadic, Dyadic]]:
    """The stored network's, prepared once."""
    return _rows(tuple((layer.weight, layer.bias) for layer in network.layers))


def _above_level(logit: Exact, level: Fraction) -> Exact:
    """A number with the sign of sigmoid(logit) - level; rational logits against 1/2 need no ball."""
    if level == Fraction(1, 2):
        return logit
    return sigmoid(logit) - to_exact([level])[0]


def membership_fault(query: Query, example: Counterexample) -> str | None:
    """Return why an example is not one of the query's inputs and parameters, or None."""
    if len(example.x) != query.network.inputs:
        return f"it has {len(example.x)} inputs, the network takes {query.network.inputs}"
    if not query.domain.contains(example.x):
        return "its input lies outside the domain"
    if not query.parameters.contains(example.parameters):
        return "its parameters lie outside the box"
    return None


class Undecided(str):
    """Why a replay could not be settled in any precision: neither a violation nor its absence is shown."""


def violation_fault(query: Query, example: Counterexample) -> str | None:
    """Replay a counterexample; return None if it violates the query, else why it does not (Undecided if that is open)."""
    fault = membership_fault(query, example)
    if fault:
        return fault
    replay = Replay(query.network, example)
    if isinstance(query, ConfidenceQuery):
        return _change_fault(query, replay)
    assert isinstance(query, LabelQuery)
    before, after = replay.label(False, query.level), replay.label(True, query.level)
    if before is None or after is None:
        return Undecided("no precision settles its labels")
    if before == after:
        return "the label stays the same"
    if not query.sigma:
        return None
    sign = decide(lambda: replay.margin(before, query.level) - to_exact([query.sigma])[0])
    if sign is None:
        return Undecided(f"no precision settles whether its margin is at least {float(query.sigma):g}")
    return None if sign >= 0 else f"its margin is not at least {float(query.sigma):g}"


def _change_fault(query: ConfidenceQuery, replay: Replay) -> str | None:
    epsilon = to_exact([query.epsilon])[0]
    count = query.network.layers[-1].outputs
    signs = [decide(lambda i=i: abs(replay.change()[i]) - epsilon) for i in range(count)]  # type: ignore[misc]
    if 1 in signs:
        return None
    if None in signs:
        return Undecided(f"no precision settles whether a confidence moves by more than {float(query.epsilon):g}")
    return f"no confidence moves by more than {float(query.epsilon):g}"


def witness_bounds(query: EpsilonEstimate | SigmaEstimate, example: Counterexample) -> tuple[float, float]:
    """Enclose the value that a witness attains.

    Raises UnsoundAnswerError if it is not one of the query's inputs and parameters, or (sigma) changes no such label.
    """
    fault = membership_fault(query, example)
    if fault:
        raise UnsoundAnswerError(f"the witness does not count: {fault}")
    replay = Replay(query.network, example)
    if isinstance(query, EpsilonEstimate):
        change = replay.logit_change if query.of_logits else replay.change
        bounds = [float_bounds(lambda i=i: abs(change()[i])) for i in range(len(change()))]  # type: ignore[misc]
        return max(0.0, *(lower for lower, _ in bounds)), max(0.0, *(upper for _, upper in bounds))
    before, after = replay.label(False, query.level), replay.label(True, query.level)
    if before != query.label or after is None or after == before:
        raise UnsoundAnswerError(f"the witness does not count: its labels are {before} and {after}")
    lower, upper = float_bounds(lambda: replay.margin(query.label, query.level))
    return max(lower, 0.0), max(upper, 0.0)


def delta_fault(query: GreatestDelta, delta: float, example: Counterexample) -> str | None:
    """Replay a flip at one delta; return None if it is one, else why it is not."""
    return violation_fault(query.at(delta), example)


IntArray = npt.NDArray[np.int64]
Ends = tuple[Dyadic, Dyadic]


def certificate_fault(certificate: Certificate) -> str | None:
    """Re-derive what a certificate claims, in exact arithmetic; return None if it is proved, else the first step that is not.

    Method    the range of the first layer is exact; every recorded bound of a later one follows from exact intervals or from
              a row of multipliers by weak duality; the trees are walked from their roots, so their leaves cover everything;
              at every leaf the multipliers prove that the rival stays behind
    Source    `certificates`; THEORY.md, section 3; Dvijotham et al. 2018, arXiv 1803.06567, for the bound by multipliers
    """
    query = certificate.query
    if certificate.scaled is not None and (fault := _scaled_fault(certificate, certificate.scaled)):
        return fault
    hidden = [layer.activation for layer in query.network.layers[:-1]]
    if not query.network.is_dense or any(a not in (Activation.RELU, Activation.LINEAR) for a in hidden):
        return "it is about a network that is not dense, or has curved activations"
    if query.sigma:
        return "it is about a query with a margin"
    stored = Replay(query.network, Counterexample(tuple(map(Fraction, query.domain.box.lower.tolist())), ()))
    if stored.label(False, query.level) != certificate.label:
        return f"the stored network's label is not {certificate.label}"
    rivals = sorted(set(range(query.network.class_count)) - {certificate.label})
    if sorted(certificate.rivals.tolist()) != rivals:
        return "its rivals are not all other labels"
    proof = _Proof(certificate)
    return proof.shape_fault() or proof.bounds_fault() or proof.tree_fault() or proof.leaves_fault()


def _scaled_fault(certificate: Certificate, claimed: LocalLabel) -> str | None:
    """Whether what is proved of a core at floats holds of the network at the input that is scaled to near them.

    Method    with the scaled input y and the floats z, W y + b is W z + (b + W (y - z)): every such bias must lie in the box
    """
    query, scaling = certificate.query, claimed.network.scaling
    x = [Fraction(value) for value in claimed.domain.box.lower.tolist()]
    if scaling is None or claimed.network.core != query.network or claimed.level != query.level or claimed.sigma:
        return "it is about the core of another network"
    if Replay(claimed.network, Counterexample(tuple(x), ())).label(False, claimed.level) != certificate.label:
        return f"the stored network's label is not {certificate.label}"
    (_, first, *rest), (core, *others) = claimed.parameters.layers, query.parameters.layers
    if not all(map(_same_box, (first.weight, *_arrays(rest)), (core.weight, *_arrays(others)))):
        return "its box is not that of the core"
    seen = zip(x, scaling.scale, scaling.offset, query.domain.box.lower.tolist(), strict=True)
    moved = np.array([value * scale + offset - Fraction(z) for value, scale, offset, z in seen], dtype=object)
    least, greatest = (np.where(moved > 0, *ends) @ moved for ends in (first.weight.fractions, first.weight.fractions[::-1]))
    lower, upper = first.bias.fractions
    if not (core.bias.contains(lower + least) and core.bias.contains(upper + greatest)):
        return "the box of the core's first biases does not make up for the rounding of the input"
    return None


def _arrays(layers: Sequence[LayerBox]) -> list[Bounds]:
    return [bounds for layer in layers for bounds in (layer.weight, layer.bias)]


def _same_box(first: Bounds, second: Bounds) -> bool:
    pairs = zip(_ends(first), _ends(second), strict=True)
    return all(a.shape == b.shape and not (a - b).signs().any() for a, b in pairs)


class _Proof:
    """The levels of one certificate: parameters and bounds as exact arrays."""

    def __init__(self, certificate: Certificate) -> None:
        self.certificate, query = certificate, certificate.query
        layers, boxes = query.network.layers, query.parameters.layers
        x = Dyadic.of(query.domain.box.lower[None])
        self.weights = [_ends(box.weight) for box in boxes]
        self.biases = [_ends(box.bias) for box in boxes]
        if len(layers) == 1:  # level 0 is the input itself
            self.activations, self.bounds = [Activation.LINEAR], [(x, x)]
        else:
            self.activations = [layer.activation for layer in layers[:-1]]
            self.bounds = [_interval_step(self.weights[0], self.biases[0], (x, x))]
            self.weights, self.biases = self.weights[1:], self.biases[1:]

    def shape_fault(self) -> str | None:
        """Whether every array has the shape that the network asks for."""
        widths = [int(weight[0].shape[1]) for weight in self.weights]
        proofs, splits = self.certificate.levels, self.certificate.splits
        if len(proofs) != len(widths) - 1 or len(self.certificate.multipliers) != len(proofs):
            return "it has another number of levels than the network"
        for number, proof in enumerate(proofs, start=1):
            rows, width = len(proof.neurons), widths[number]
            below = [values.shape for values in proof.multipliers] == [(rows, n) for n in widths[1:number]]
            inside = bool(((proof.neurons >= 0) & (proof.neurons < width) & (np.abs(proof.signs) == 1)).all())
            if not (proof.lower.shape == proof.upper.shape == (width,) and len(proof.signs) == rows and below and inside):
                return f"the arrays of level {number} do not fit the network"
        nodes = len(splits.parent)
        if any(len(part) != nodes for part in (splits.level, splits.neuron, splits.cut, splits.side, splits.leaf)):
            return "the arrays of its trees differ in length"
        leaves = {len(values) for values in self.certificate.multipliers}
        fits = all(values.shape[1] == n for values, n in zip(self.certificate.multipliers, widths[1:], strict=True))
        if len(leaves) > 1 or not fits or (leaves and splits.leaf.max(initial=-1) >= leaves.pop()):
            return "the multipliers of its leaves do not fit"
        return None

    def bounds_fault(self) -> str | None:
        """Whether the recorded bounds of every level follow from those before it."""
        for number, proof in enumerate(self.certificate.levels, start=1):
            weight, bias = self.weights[number - 1], self.biases[number - 1]
            least, greatest = _interval_step(weight, bias, self._values(number - 1))
            lower, upper = Dyadic.of(proof.lower[None]), Dyadic.of(proof.upper[None])
            if (proof.lower > proof.upper).any():
                return f"a bound of level {number} is empty"
            shown = {1: (greatest - upper).signs()[0] <= 0, -1: (lower - least).signs()[0] <= 0}
            for sign, end in ((1, upper), (-1, -lower)):
                rows = np.flatnonzero(proof.signs == sign)
                if not len(rows):
                    continue
                neurons = proof.neurons[rows]
                nu = np.zeros((len(rows), len(proof.lower)))
                nu[np.arange(len(rows)), neurons] = sign
                value = self._dual(number, Dyadic.of(nu), None, self.bounds, [m[rows] for m in proof.multipliers])
                proved = (value - end[0][neurons]).signs() <= 0
                shown[sign] = shown[sign] | np.isin(np.arange(len(proof.lower)), neurons[proved])
            if not (shown[1] & shown[-1]).all():
                neuron = int(np.flatnonzero(~(shown[1] & shown[-1]))[0])
                return f"the bounds of neuron {neuron} of level {number} are not proved"
            self.bounds.append((lower, upper))
        return None

    def tree_fault(self) -> str | None:
        """Whether the splits are trees whose leaves cover the roots."""
        splits, roots = self.certificate.splits, len(self.certificate.rivals)
        nodes = np.arange(len(splits.parent))
        if len(nodes) < roots or (splits.parent[:roots] != -1).any() or splits.side[:roots].any():
            return "its trees do not start with one root a rival"
        parents = splits.parent[roots:]
        if (parents < 0).any() or (parents >= nodes[roots:]).any() or (np.abs(splits.side[roots:]) != 1).any():
            return "a node of its trees comes before its parent, or is neither half of it"
        above, below = (np.bincount(parents[splits.side[roots:] == side], minlength=len(nodes)) for side in (1, -1))
        internal = splits.level != 0
        if (above != internal).any() or (below != internal).any():
            return "a node is not split into exactly two halves"
        widths = np.array([0, *(len(proof.lower) for proof in self.certificate.levels)])
        known = (splits.level >= 0) & (splits.level < len(widths))
        if not known.all() or not ((splits.neuron >= 0) & (splits.neuron < widths[splits.level]) | ~internal).all():
            return "a node is split at a neuron that there is not"
        if (splits.leaf[~internal] < 0).any() or not np.isfinite(splits.cut).all():
            return "a leaf has no multipliers"
        return None

    def leaves_fault(self, chunk: int = 512) -> str | None:
        """Whether the multipliers of every leaf prove that its rival stays behind."""
        splits = self.certificate.splits
        leaves = np.flatnonzero(splits.level == 0)
        for first in range(0, len(leaves), chunk):
            part = leaves[first : first + chunk]
            roots, bounds = self._leaf_bounds(part)
            own = [values[splits.leaf[part]] for values in self.certificate.multipliers]
            nu, offset, strict = self._rows(self.certificate.rivals[roots])
            signs = self._dual(len(self.weights), nu, offset, bounds, own).signs()
            behind = np.where(strict, signs <= 0, signs < 0)
            if not behind.all():
                rival = self.certificate.rivals[roots[~behind][0]]
                return f"leaf {int(part[~behind][0])} does not prove that label {rival} stays behind"
        return None

    def _leaf_bounds(self, leaves: IntArray) -> tuple[IntArray, list[Ends]]:
        """Return the root of each leaf, and all bounds narrowed by the splits on the way from it."""
        splits = self.certificate.splits
        ends = [[np.repeat(e[None], len(leaves), axis=0) for e in (p.lower, p.upper)] for p in self.certificate.levels]
        node = leaves.copy()
        for row in range(len(leaves)):
            while splits.parent[node[row]] >= 0:
                side, node[row] = splits.side[node[row]], splits.parent[node[row]]
                level, neuron, cut = splits.level[node[row]], splits.neuron[node[row]], splits.cut[node[row]]
                lower, upper = ends[level - 1]
                if side > 0:
                    lower[row, neuron] = max(lower[row, neuron], min(cut, upper[row, neuron]))
                else:
                    upper[row, neuron] = min(upper[row, neuron], max(cut, lower[row, neuron]))
        return node, [self.bounds[0], *((Dyadic.of(low), Dyadic.of(high)) for low, high in ends)]

    def _rows(self, rivals: IntArray) -> tuple[Dyadic, Fraction | None, npt.NDArray[np.bool_]]:
        """Return the leads of rivals over the label as rows over the logits, an offset, and whether 0 is still behind."""
        query, label = self.certificate.query, self.certificate.label
        if query.network.output is Output.SIGMOID:
            low, high = logit_bounds(query.level)
            nu = np.full((len(rivals), 1), 1.0 if label == 0 else -1.0)
            return Dyadic.of(nu), -low if label == 0 else high, np.full(len(rivals), label == 0)
        nu = np.zeros((len(rivals), query.network.class_count))
        nu[np.arange(len(rivals)), rivals], nu[:, label] = 1.0, -1.0
        return Dyadic.of(nu), None, rivals > label

    def _values(self, level: int) -> Ends:
        """The bounds of the values after a level's activation."""
        lower, upper = self.bounds[level]
        return (lower.relu(), upper.relu()) if self.activations[level] is Activation.RELU else (lower, upper)

    def _dual(
        self, level: int, nu: Dyadic, offset: Fraction | None, bounds: list[Ends], multipliers: list[FloatArray]
    ) -> Dyadic:
        """Bound rows nu over the pre-activations of a level (the logits: the last one) from above, by weak duality.

        Each level adds the most that rise max(h, 0) + fall min(h, 0) - nu z can be for z between its bounds, h its activation:
        a function that is linear on either side of 0, so the ends and 0 are all that counts.
        """
        value: Dyadic | None = None
        for number in range(level - 1, -1, -1):
            (low, high), (bias_low, bias_high) = self.weights[number], self.biases[number]
            gain, loss = nu.relu(), -((-nu).relu())
            here = product(gain, bias_high.T) + product(loss, bias_low.T)
            rise = product(gain, high) + product(loss, low)
            fall = product(gain, low) + product(loss, high)
            nu = Dyadic.of(multipliers[number - 1]) if number else zeros(rise.shape)
            lower, upper = bounds[number]
            is_relu = self.activations[number] is Activation.RELU
            most = None
            for z in (lower, upper, lower.relu() - (-upper).relu()):  # the third is the point nearest to 0
                h = rise * z.relu() if is_relu else rise * z.relu() - fall * (-z).relu()
                found = h - nu * z
                most = found if most is None else most.maximum(found)
            assert most is not None
            here = here[:, 0] + most.sum(axis=1)
            value = here if value is None else value + here
        assert value is not None
        return value if offset is None else value + _above(offset)


def _ends(bounds: Bounds) -> Ends:
    """The exact ends of an array of parameters, biases as one row."""
    lower, upper = (Dyadic.of(end.head) + Dyadic.of(end.tail) for end in (bounds.lower, bounds.upper))
    return (lower, upper) if len(lower.shape) == 2 else (lower[None], upper[None])


def _above(value: Fraction) -> Dyadic:
    """A dyadic number at least as large, by less than 2**-200."""
    return Dyadic.of_fractions([Fraction(-((-value.numerator << 200) // value.denominator), 1 << 200)])


def _interval_step(weight: Ends, bias: Ends, h: Ends) -> Ends:
    """The exact least and greatest pre-activations over boxes of the weights (out, in), biases and inputs (1, in)."""
    low, high = weight[0].T, weight[1].T
    if (h[0].signs() >= 0).all():
        gains, losses = (low.relu(), high.relu()), (-((-low).relu()), -((-high).relu()))
        least = product(h[0], gains[0]) + product(h[1], losses[0])
        return least + bias[0], product(h[1], gains[1]) + product(h[0], losses[1]) + bias[1]
    corners = [w * x for w in weight for x in h]
    least, greatest = corners[0], corners[0]
    for corner in corners[1:]:
        least, greatest = least.minimum(corner), greatest.maximum(corner)
    return (least.sum(axis=1)[None] + bias[0], greatest.sum(axis=1)[None] + bias[1])
