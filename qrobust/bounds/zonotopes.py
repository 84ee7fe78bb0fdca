"""Differential zonotopes: the stored network, a perturbed one and their difference as affine forms over a box of inputs.

Accepts   dense layers; any activation; any parameter box, a single copy among them; batches of boxes of inputs
Gives     enclosures of every logit of both networks and of its change; what part of it the neurons that may switch cost,
          shared among the inputs; the corner of the box that the form of the greatest change favours
Method    A value is centre + generators @ e + d with e in [-1, 1]**symbols and abs(d) <= radius. The first symbols are the
          inputs; each neuron that may be on and off, or whose parameters move, adds one to its network's form. For the
          difference, with W' = W + D: z' - z = W (h' - h) + D h', in which symbols that h' has besides the inputs count as
          radius (D is small). A ReLU's chords have slopes in [0, 1], so h' - h lies within abs(z' - z) / 2 of (z' - z) / 2,
          and between -max(h) and max(h'); the narrower band is taken, what it carries of the radius counted. Bands of
          sigmoid and tanh: `curves`. The three enclosures then narrow each other. Both networks' ranges before the last
          hidden ReLU are narrowed by linear bounds (`near_ends`) for the boxes that are worth it
Property  sound. For a single copy the bounds converge to the greatest change as the boxes shrink; over a wider parameter box
          each row of a layer moves by itself, so they converge to something larger. A smaller box may be bounded less
          tightly where a neuron changes its band
Rounding  centres and generators are data: what a step computes wrongly is added to the radius, as `sum_slack` of the sums of
          absolute values, which also covers the rounding of the radius itself
Source    Paulsen, Wang, Wang, ICSE 2020 (ReluDiff), Paulsen et al., ASE 2020 (NeuroDiff) for the difference as a symbolic
          value; Singh et al., NeurIPS 2018 (DeepZ) for zonotopes, POPL 2019 (DeepPoly) for slopes of 0 and 1; the band of a
          difference is ours
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qrobust.bounds.curves import difference_line, value_line
from qrobust.bounds.differential import Pair
from qrobust.bounds.near_ends import nearer_ends
from qrobust.bounds.stages import stages_of, stored_stages
from qrobust.bounds.substitution import Levels
from qrobust.domains import ParameterBox
from qrobust.errors import UnsupportedError
from qrobust.interval import TINY, UNDERFLOW, BoolArray, FloatArray, Interval, down, sum_slack, up
from qrobust.network import Activation, Dense, Network

NUMBERS = 2**21  # generators of one form that a batch may take at a time
LINES = (Activation.LINEAR, Activation.RELU)


@dataclass(frozen=True, eq=False)
class Form:
    """Shapes: centre and radius (neurons, boxes); generators (neurons, symbols, boxes)."""

    centre: FloatArray
    generators: FloatArray
    radius: FloatArray

    def __neg__(self) -> Form:
        return Form(-self.centre, -self.generators, self.radius)

    def __add__(self, other: Form) -> Form:
        """Enclose the sum of two values with the same symbols."""
        slack = sum_slack(2, self.size + other.size) + UNDERFLOW
        radius = up(self.radius + other.radius + slack)
        return Form(self.centre + other.centre, self.generators + other.generators, radius)

    def times(self, signs: FloatArray) -> Form:
        """Return values times -1, 0 or 1. Shape: signs (neurons, boxes)."""
        return Form(signs * self.centre, signs[:, None] * self.generators, np.abs(signs) * self.radius)

    @property
    def size(self) -> FloatArray:
        """The sum of all absolute values. Shape: (neurons, boxes)."""
        size: FloatArray = np.abs(self.centre) + np.abs(self.generators).sum(axis=1) + self.radius
        return size

    @property
    def range(self) -> Interval:
        """Enclose the values; all numbers where a sum overflowed. Shape: (neurons, boxes)."""
        reach = np.abs(self.generators).sum(axis=1) + self.radius
        slack = sum_slack(self.generators.shape[1], reach + np.abs(self.centre))
        lower, upper = down(self.centre - reach - slack), up(self.centre + reach + slack)
        if (lower <= upper).all():
            return Interval(lower, upper)
        return Interval(np.where(np.isnan(lower), -np.inf, lower), np.where(np.isnan(upper), np.inf, upper))

    def take(self, boxes: npt.NDArray[np.intp]) -> Form:
        """Return what belongs to some of the boxes."""
        return Form(self.centre[:, boxes], self.generators[:, :, boxes], self.radius[:, boxes])

    def product(self, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return weight @ centre and weight @ generators, rounded."""
        neurons, symbols, boxes = self.generators.shape
        flat = weight @ self.generators.reshape(neurons, symbols * boxes)
        return weight @ self.centre, flat.reshape(len(weight), symbols, boxes)


@dataclass(frozen=True, eq=False)
class Band:
    """slope * z + centre +- reach, entry by entry; a symbol stands for the reach where it is above 0."""

    slope: FloatArray
    centre: FloatArray
    reach: FloatArray

    def of(self, form: Form, absorbs: bool = False) -> tuple[Form, Symbols]:
        """Return the form of what lies in the band around a form, and its new symbols.

        With `absorbs` the form's radius goes into the neurons' own symbols: all rows that see a neuron see the same value.
        """
        neurons, symbols, boxes = form.generators.shape
        carried = up(self.slope * form.radius)
        reach = np.where(self.slope > 0, up(self.reach + carried), self.reach) if absorbs else self.reach
        new = Symbols.of(reach > 0)
        generators = np.zeros((neurons, symbols + new.count, boxes))
        np.multiply(form.generators, self.slope[:, None], out=generators[:, :symbols])
        generators[new.neurons, symbols + new.places, new.boxes] = reach[new.neurons, new.boxes]
        slack = sum_slack(2, self.slope * form.size + np.abs(self.centre)) + UNDERFLOW
        radius = up(slack if absorbs else self.slope * form.radius + slack)
        return Form(self.slope * form.centre + self.centre, generators, radius), new

    def widened(self, noise: Interval) -> Band:
        """Return the band of what lies within it plus any number in the noise. Shape: noise (neurons, boxes)."""
        middle, reach = ball(noise)
        slack = sum_slack(2, np.abs(self.centre) + np.abs(middle))
        wider = np.where((noise.lower == 0) & (noise.upper == 0), self.reach, up(self.reach + reach + slack))
        return Band(self.slope, self.centre + middle, wider)


@dataclass(frozen=True, eq=False)
class Symbols:
    """One symbol a marked neuron of each box: neuron, place among the box's symbols, and box, in three arrays."""

    neurons: npt.NDArray[np.intp]
    places: npt.NDArray[np.intp]
    boxes: npt.NDArray[np.intp]
    count: int

    @classmethod
    def of(cls, marked: BoolArray) -> Symbols:
        """Number the marked neurons of each box. Shape: marked (neurons, boxes)."""
        places = np.cumsum(marked, axis=0) - 1
        neurons, boxes = np.nonzero(marked)
        return cls(neurons, places[neurons, boxes], boxes, int(marked.sum(axis=0).max(initial=0)))

    def spread(self, values: FloatArray) -> FloatArray:
        """Lay out values of neurons (n, neurons, boxes) by symbol: (n, symbols, boxes)."""
        laid = np.zeros((len(values), self.count, values.shape[2]))
        laid[:, self.places, self.boxes] = values[:, self.neurons, self.boxes]
        return laid


def relu_band(z: Interval, radius: FloatArray | float = 0.0) -> Band:
    """Enclose max(z, 0): where z changes sign, max(z, 0) - slope z lies in [0, most], most the lesser of -lower and upper.

    The slope is 1 where z is mostly above 0, and 0 where it is not: h then falls below 0 by little, or not at all. Where the
    slope would carry more of the form's radius than that gains, it is 0, and h between 0 and upper
    """
    switches = (z.lower < 0) & (z.upper > 0)
    most = np.where(switches, np.minimum(-z.lower, z.upper), 0.0)
    slope = np.where(switches, z.upper > -z.lower, z.lower >= 0).astype(np.float64)
    flat = switches & (slope > 0) & (0.5 * z.upper < 0.5 * most + radius)
    most, slope = np.where(flat, z.upper, most), np.where(flat, 0.0, slope)
    return Band(slope, 0.5 * most, np.where(switches, up(0.5 * most), 0.0))


def difference_band(z: Pair, radius: FloatArray | float = 0.0) -> Band:
    """Enclose max(z', 0) - max(z, 0) by a band around z' - z, a form of this radius; see the module."""
    on = (z.stored.lower >= 0) & (z.perturbed.lower >= 0)
    off = (z.stored.upper <= 0) & (z.perturbed.upper <= 0)
    switches = ~(on | off)
    half = 0.5 * np.maximum(-z.difference.lower, z.difference.upper)
    least = np.maximum(np.minimum(z.difference.lower, 0.0), -np.maximum(z.stored.upper, 0.0))
    greatest = np.minimum(np.maximum(z.difference.upper, 0.0), np.maximum(z.perturbed.upper, 0.0))
    middle = 0.5 * least + 0.5 * greatest
    reach = up(np.maximum(greatest - middle, middle - least))
    flat = switches & (reach < half + 0.5 * radius)
    slope = np.where(flat, 0.0, np.where(switches, 0.5, on.astype(np.float64)))
    return Band(slope, np.where(flat, middle, 0.0), np.where(switches, np.where(flat, reach, up(half)), 0.0))


@dataclass(frozen=True, eq=False)
class TwinLayer:
    """One layer: stored numbers, a perturbed choice and its reach, perturbed minus stored and its reach; biases as columns.

    `lost`: how far the stored rows may be from these floats, where they are the result of operations.
    """

    activation: Activation
    stored: tuple[FloatArray, FloatArray]
    lost: tuple[FloatArray, FloatArray]
    perturbed: tuple[FloatArray, FloatArray]
    perturbed_reach: tuple[FloatArray, FloatArray]
    change: tuple[FloatArray, FloatArray]
    change_reach: tuple[FloatArray, FloatArray]

    @classmethod
    def of(cls, activation: Activation, rows: tuple[Interval, Interval], box: tuple[Interval, Interval]) -> TwinLayer:
        """Prepare a layer with its stored rows, enclosed, and the box of its other ones: weights (out, in), biases (out,)."""
        own, others = ((weight, bias[:, None]) for weight, bias in (rows, box))
        stored, lost = zip(*(ball(part) for part in own), strict=True)
        perturbed, reach = zip(*(ball(part) for part in others), strict=True)
        change, change_reach = zip(*(ball(part - row) for part, row in zip(others, own, strict=True)), strict=True)
        return cls(activation, stored, lost, perturbed, reach, change, change_reach)


def ball(box: Interval) -> tuple[FloatArray, FloatArray]:
    """A middle and a reach that cover a box; the reach is 0 where the box is one number."""
    middle = np.where(box.lower == box.upper, box.lower, box.middle)
    reach = np.where(box.lower == box.upper, 0.0, up(np.maximum(box.upper - middle, middle - box.lower)))
    return middle, reach


@dataclass(frozen=True, eq=False)
class Changes:
    """Bounds over a batch of boxes.

    Shapes: change, its least and greatest value, (boxes, logits); influence, how much of the greatest change's bound comes
    from neurons that an input switches, (boxes, inputs); favoured, a point of each box, (boxes, inputs); gain, what part of
    its bound narrowing took, (boxes,), NaN where it was not tried.
    """

    change: Interval
    influence: FloatArray
    favoured: FloatArray
    gain: FloatArray

    @property
    def greatest(self) -> FloatArray:
        """The bound of the greatest change of any logit, either way. Shape: (boxes,)."""
        greatest: FloatArray = np.maximum(-self.change.lower, self.change.upper).max(axis=1)
        return greatest

    @classmethod
    def joined(cls, parts: Sequence[Changes]) -> Changes:
        """Return the parts one after the other."""
        ends = [np.concatenate([getattr(part.change, end) for part in parts]) for end in ("lower", "upper")]
        rest = (np.concatenate([getattr(p, name) for p in parts]) for name in ("influence", "favoured", "gain"))
        return cls(Interval(*ends), *rest)

    def narrowed(self, places: npt.NDArray[np.intp], other: Changes) -> Changes:
        """Return these with the others, which hold too, at some places."""
        lower, upper = self.change.lower.copy(), self.change.upper.copy()
        lower[places] = np.maximum(lower[places], other.change.lower)
        upper[places] = np.minimum(upper[places], other.change.upper)
        influence, favoured, gain = self.influence.copy(), self.favoured.copy(), self.gain.copy()
        influence[places], favoured[places] = other.influence, other.favoured
        before = np.maximum(self.greatest[places], TINY)
        found = Changes(Interval(lower, upper), influence, favoured, gain)
        gain[places] = np.where(np.isfinite(before), 1.0 - found.greatest[places] / before, 0.0)
        return found


@dataclass(frozen=True, eq=False)
class Reached:
    """Both networks and their difference at some level, and whose symbols are whose: of the stored network's (known) and of
    the difference's (shares, layer by layer), the inputs' shares, (inputs, symbols, boxes). `moves`: whether parameters do."""

    stored: Form
    perturbed: Form
    change: Form
    known: FloatArray
    moves: bool
    shares: tuple[FloatArray, ...] = ()

    @classmethod
    def inputs(cls, boxes: Interval, moves: bool) -> Reached:
        form, inputs = input_form(boxes), boxes.shape[1]
        change = Form(np.zeros_like(form.centre), np.zeros_like(form.generators), np.zeros_like(form.radius))
        return cls(form, form, change, np.repeat(np.eye(inputs)[:, :, None], len(boxes), axis=2), moves)

    @property
    def influence(self) -> FloatArray:
        """How much the neurons that may switch add to the change by each input's width; a heuristic. Shape: (boxes, inputs)."""
        inputs = len(self.known)
        if not self.shares:
            return np.zeros((self.change.centre.shape[1], inputs))
        lost = np.abs(self.change.generators[:, inputs:]).sum(axis=0)
        influence: FloatArray = np.einsum("isb,sb->bi", np.concatenate(self.shares, axis=1), lost)
        return influence

    @property
    def ranges(self) -> Pair:
        return Pair(self.stored.range, self.perturbed.range, self.change.range).tightened()

    def take(self, boxes: npt.NDArray[np.intp]) -> Reached:
        """Return what belongs to some of the boxes."""
        shares = tuple(share[:, :, boxes] for share in self.shares)
        forms = self.stored.take(boxes), self.perturbed.take(boxes), self.change.take(boxes)
        return Reached(forms[0], forms[1], forms[2], self.known[:, :, boxes], self.moves, shares)

    def before(self, layer: TwinLayer) -> Reached:
        """Go on to a layer's pre-activations."""
        change = changed(layer, self.change, self.perturbed, len(self.known))
        stored = affine(layer.stored, None, self.stored)
        perturbed = affine(layer.perturbed, layer.perturbed_reach, self.perturbed)
        return replace(self, stored=stored, perturbed=perturbed, change=change)

    def after(self, activation: Activation, z: Pair) -> Reached:
        """Go on from pre-activations in these ranges to the activation's values."""
        if activation is Activation.LINEAR:
            return self
        radii = [form.radius if self.moves else 0.0 for form in (self.change, self.stored, self.perturbed)]
        bands = _bands(activation, z, radii)
        share = shared_among(self.stored, self.known, (bands[0].reach > 0) | (bands[1].reach > 0))
        change, moved = bands[0].of(self.change, self.moves)
        stored, switched = bands[1].of(self.stored)
        perturbed, _ = bands[2].of(self.perturbed, self.moves)
        known = np.concatenate([self.known, switched.spread(share)], axis=1)
        return Reached(stored, perturbed, change, known, self.moves, (*self.shares, moved.spread(share)))


def _bands(activation: Activation, z: Pair, radii: Sequence[FloatArray | float]) -> tuple[Band, Band, Band]:
    """Return the bands of the difference, of the stored and of the perturbed values, given the radii of their forms."""
    if activation is Activation.RELU:
        return difference_band(z, radii[0]), relu_band(z.stored, radii[1]), relu_band(z.perturbed, radii[2])
    stored, perturbed = (value_line(activation, *each) for each in ((z.stored, radii[1]), (z.perturbed, radii[2])))
    return Band(*difference_line(activation, z, radii[0])), Band(*stored), Band(*perturbed)


def ends_of_change(layer: TwinLayer, reached: Reached, activation: Activation) -> tuple[Form, Form]:
    """Enclose z' - z from above and from below, where every row's parameters are where they make it greatest and least.

    Method    D h' within its reach R is R abs(h') at most, and abs(h') = s h' where h' has the sign s, as after a ReLU or a
              sigmoid; h' is h + (h' - h), so that the symbols of the change are shared. Where h' may have both signs: R times
              its size. Of a single copy both are the same
    """
    inputs, (reach, bias) = len(reached.known), layer.change_reach
    if not (layer.perturbed_reach[0].any() or layer.perturbed_reach[1].any()):
        both = changed(layer, reached.change, reached.perturbed, inputs)
        return both, both
    still = replace(layer, change_reach=(np.zeros_like(reach), np.zeros_like(bias)))
    base = changed(still, reached.change, reached.perturbed, inputs)
    if activation in (Activation.RELU, Activation.SIGMOID):
        signs = np.ones(reached.perturbed.centre.shape)
    else:
        ends = reached.perturbed.range
        signs = (ends.lower >= 0).astype(np.float64) - (ends.upper <= 0)
    change, stored = reached.change.times(signs), reached.stored.times(signs)
    (centre, generators), (more_centre, more_generators) = change.product(reach), stored.product(reach)
    generators[:, :inputs] += more_generators[:, :inputs]
    mixed = np.where(signs == 0, reached.perturbed.size, 0.0)
    own = np.abs(stored.generators[:, inputs:]).sum(axis=1) + stored.radius
    sizes = reach @ (change.size + stored.size + mixed) + bias
    slack = _slack(change, sizes) + _slack(stored, sizes) + _slack(reached.perturbed, sizes)
    radius = up(reach @ (change.radius + own + mixed) + slack)
    moved = Form(centre + more_centre + bias, generators, radius)
    return base + moved, base + -moved


class TwinZonotopes:
    """A network and a box of its parameters, prepared for bounding batches of input boxes.

    Raises    UnsupportedError if a layer is not dense
    """

    def __init__(self, network: Network, parameters: ParameterBox) -> None:
        self.network, self.layers = network, []
        for layer, box in zip(network.layers, parameters.layers, strict=True):
            if not isinstance(layer, Dense):
                raise UnsupportedError("differential zonotopes have rules for dense layers")
            rows = Interval.point(layer.weight), Interval.point(layer.bias)
            self.layers.append(TwinLayer.of(layer.activation, rows, (box.weight.interval, box.bias.interval)))
        self.moves = any(part.any() for layer in self.layers for part in layer.perturbed_reach)
        stages = stored_stages(network), stages_of(network, parameters)
        self.levels = tuple(Levels(Activation.LINEAR, each) for each in stages)

    def changes(self, boxes: Interval, wanted: BoolArray | None = None, limit: float = -np.inf) -> Changes:
        """Bound the change of every logit.

        Shapes    boxes (boxes, inputs); wanted (boxes,), where narrowing is to be tried if a bound is above the limit
        """
        wanted = np.ones(len(boxes), dtype=bool) if wanted is None else wanted
        with np.errstate(over="ignore", invalid="ignore"):
            parts = [self._changes(boxes[chunk], wanted[chunk], limit) for chunk in self.chunks(len(boxes))]
        return Changes.joined(parts)

    def hidden(self, boxes: Interval) -> Reached:
        """Return the forms of the last hidden values over boxes (boxes, inputs), or of the inputs where no layer is hidden."""
        reached = Reached.inputs(boxes, self.moves)
        for layer in self.layers[:-1]:
            reached = reached.before(layer)
            reached = reached.after(layer.activation, reached.ranges)
        return reached

    def chunks(self, boxes: int) -> Iterator[slice]:
        """Split a batch so that its forms, with a symbol for every neuron, stay within NUMBERS."""
        widths = [layer.outputs for layer in self.network.layers]
        step = max(1, NUMBERS // (max(widths) * (self.network.inputs + sum(widths))))
        return (slice(start, start + step) for start in range(0, boxes, step))

    def _changes(self, boxes: Interval, wanted: BoolArray, limit: float) -> Changes:
        reached, ranges, hidden = Reached.inputs(boxes, self.moves), [(boxes, boxes)], self.layers[:-1]
        for layer in hidden[:-1]:
            reached = reached.before(layer)
            z = reached.ranges
            ranges.append((_turned(z.stored), _turned(z.perturbed)))
            reached = reached.after(layer.activation, z)
        if not hidden:
            return self._outcome(boxes, reached)
        reached = reached.before(hidden[-1])
        z = reached.ranges
        found = self._outcome(boxes, reached.after(hidden[-1].activation, z))
        chosen = np.flatnonzero(wanted & (found.greatest > limit))
        if len(ranges) == 1 or hidden[-1].activation is not Activation.RELU or not len(chosen):
            return found
        z = self._narrowed(_of_boxes(z, chosen), [(before[chosen], after[chosen]) for before, after in ranges])
        again = self._outcome(boxes[chosen], reached.take(chosen).after(hidden[-1].activation, z))
        return found.narrowed(chosen, again)

    def _narrowed(self, z: Pair, ranges: list[tuple[Interval, Interval]]) -> Pair:
        """Narrow the ranges of one layer, given those of the levels before it."""
        known = [list(part) for part in zip(*ranges, strict=True)]
        stored = _turned(nearer_ends(self.levels[0], known[0], _turned(z.stored)))
        z = Pair(stored, z.perturbed, z.difference).tightened()
        perturbed = _turned(nearer_ends(self.levels[1], known[1], _turned(z.perturbed)))
        return Pair(z.stored, perturbed, z.difference).tightened()

    def _outcome(self, boxes: Interval, hidden: Reached) -> Changes:
        """Go on from the last hidden values to the logits."""
        last = hidden.before(self.layers[-1])
        change, ends = last.change, last.ranges.difference
        activation = self.layers[-2].activation if len(self.layers) > 1 else Activation.LINEAR
        if self.moves:
            high, low = (form.range for form in ends_of_change(self.layers[-1], hidden, activation))
            ends = Interval(np.fmax(ends.lower, low.lower), np.fmin(ends.upper, high.upper))
        inputs, each = self.network.inputs, np.arange(len(boxes))
        row = np.maximum(-ends.lower, ends.upper).argmax(axis=0)
        slopes = change.generators[row, :, each]
        lost = np.abs(slopes[:, inputs:])
        influence = 1e-3 * np.abs(slopes[:, :inputs])
        if last.shares:
            influence = influence + np.einsum("isb,bs->bi", np.concatenate(last.shares, axis=1), lost)
        rises = change.centre[row, each] >= 0
        favoured = np.where((slopes[:, :inputs] > 0) == rises[:, None], boxes.upper, boxes.lower)
        return Changes(Interval(ends.lower.T, ends.upper.T), influence, favoured, np.full(len(boxes), np.nan))


def shared_among(form: Form, known: FloatArray, wanted: BoolArray) -> FloatArray:
    """Share what moves each wanted neuron among the inputs, by the shares of its symbols; a heuristic, no bound.

    Shapes    known (inputs, symbols, boxes); wanted (neurons, boxes); result (inputs, neurons, boxes)
    """
    shares = np.zeros((len(known), *wanted.shape))
    neurons, boxes = np.nonzero(wanted)
    parts = np.einsum("ks,isk->ik", np.abs(form.generators[neurons, :, boxes]), known[:, :, boxes])
    shares[:, neurons, boxes] = parts / np.maximum(parts.sum(axis=0), TINY)
    return shares


def _of_boxes(z: Pair, boxes: npt.NDArray[np.intp]) -> Pair:
    return Pair(z.stored[:, boxes], z.perturbed[:, boxes], z.difference[:, boxes])


def _turned(x: Interval) -> Interval:
    """Swap (neurons, boxes) and (boxes, neurons)."""
    return Interval(np.ascontiguousarray(x.lower.T), np.ascontiguousarray(x.upper.T))


def input_form(boxes: Interval) -> Form:
    middle, reach = ball(boxes)
    count, inputs = middle.shape
    generators = np.zeros((inputs, inputs, count))
    generators[np.arange(inputs), np.arange(inputs)] = reach.T
    return Form(middle.T, generators, np.zeros((inputs, count)))


def affine(rows: tuple[FloatArray, FloatArray], reach: tuple[FloatArray, FloatArray] | None, form: Form) -> Form:
    """Enclose (weight + E) @ value + bias + e for abs(E), abs(e) at most the reaches, each row with its own."""
    weight, bias = rows
    centre, generators = form.product(weight)
    magnitude, size = np.abs(weight), form.size
    radius, sizes = magnitude @ form.radius, magnitude @ size + np.abs(bias)
    if reach is not None and (reach[0].any() or reach[1].any()):
        spread = reach[0] @ size + reach[1]
        radius, sizes = radius + spread, sizes + spread
    return Form(centre + bias, generators, up(radius + _slack(form, sizes)))


def changed(layer: TwinLayer, change: Form, perturbed: Form, inputs: int) -> Form:
    """Enclose z' - z = W (h' - h) + D h' + (b' - b): the symbols of h' - h, and of h' those of the inputs alone."""
    (weight, _), (deviation, bias), (reach, bias_reach) = layer.stored, layer.change, layer.change_reach
    centre, generators = change.product(weight)
    shared = Form(perturbed.centre, perturbed.generators[:, :inputs], perturbed.radius)
    own = np.abs(perturbed.generators[:, inputs:]).sum(axis=1) + perturbed.radius
    more_centre, more_generators = shared.product(deviation)
    generators[:, :inputs] += more_generators
    magnitude, size = np.abs(deviation), perturbed.size
    radius = np.abs(weight) @ change.radius + magnitude @ own + reach @ size + bias_reach
    sizes = np.abs(weight) @ change.size + (magnitude + reach) @ size + np.abs(bias) + bias_reach
    slack = _slack(change, sizes) + _slack(perturbed, sizes)
    return Form(centre + more_centre + bias, generators, up(radius + slack))


def _slack(form: Form, sizes: FloatArray) -> FloatArray:
    """Bound what sums over a form's neurons, symbol by symbol, err by, underflow of every product included."""
    neurons, symbols, _ = form.generators.shape
    return sum_slack(neurons + symbols, sizes) + UNDERFLOW
