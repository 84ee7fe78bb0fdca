"""What a question about a network of signs says, as clauses: written plainly from the definitions, for the checker of proofs.

The clauses have a solution if an input of the region loses the label, so that a proof that they have none (`lrat`) proves the
label. They share no code with the folding, the constraints and the encodings that answers come from: a fault there cannot
hide here. Only what a network, a layer and a question are is read from the same place.

An input's level is its least one and a Boolean for each step above it. A neuron's sum is an integer sum over Booleans; where
its sign changes is seen by exact rational arithmetic, at the sum's two ends and then between. That a sum comes to so much is a
tree of counters, each output true exactly where its part of the sum reaches a value.

Property  sound: every input of the region that loses the label gives a solution
Source    Joshi, Martins and Manquinho 2015 (generalized totalizer), arXiv 1507.05920
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

from qrobust.binarized.network import BatchNorm, BinarizedNetwork, Grid, Linear
from qrobust.binarized.queries import Ball, Box, LabelChange, Levels, Norm, Robustness, TieRule, ZeroSign
from qrobust.errors import ResourceError, UnsupportedError
from qrobust.network import Network

MOST_CLAUSES = 5_000_000
TOO_MANY = f"the plain clauses would be more than {MOST_CLAUSES:,}: take a smaller region or network"

TRUE = 1  # the variable that is always true; literals are variables, or below 0 their opposites


@dataclass(frozen=True)
class Sum:
    """constant + the sum of factor * variable, each variable 0 or 1."""

    constant: Fraction | int
    factors: dict[int, Fraction | int]

    def ends(self) -> tuple[Fraction | int, Fraction | int]:
        """Return the least and the greatest value."""
        low = sum((factor for factor in self.factors.values() if factor < 0), self.constant)
        high = sum((factor for factor in self.factors.values() if factor > 0), self.constant)
        return low, high


def added(weights: Sequence[Fraction | int], parts: Sequence[Sum], constant: Fraction | int = 0) -> Sum:
    """Return the sum of weight * part, and of a constant."""
    factors: dict[int, Fraction | int] = {}
    for weight, part in zip(weights, parts, strict=True):
        constant += weight * part.constant
        for variable, factor in part.factors.items():
            factors[variable] = factors.get(variable, 0) + weight * factor
    return Sum(constant, {variable: factor for variable, factor in factors.items() if factor})


@dataclass
class PlainClauses:
    """Clauses over the variables 1 to `top`."""

    top: int = TRUE
    clauses: list[list[int]] = field(default_factory=lambda: [[TRUE]])

    def fresh(self, count: int) -> list[int]:
        """Return new variables. Raises ResourceError."""
        if self.top + count > MOST_CLAUSES:
            raise ResourceError(TOO_MANY)
        self.top += count
        return list(range(self.top - count + 1, self.top + 1))

    def some(self, literals: Sequence[int]) -> None:
        """Say that one of the literals is true."""
        if TRUE not in literals:
            self.clauses.append([literal for literal in literals if literal != -TRUE])

    def all(self, literals: Sequence[int]) -> int:
        """Return a literal that is true exactly where all of the literals are."""
        if -TRUE in literals:
            return -TRUE
        (name,) = self.fresh(1)
        self.clauses += [[-name, literal] for literal in literals]
        self.clauses.append([name, *(-literal for literal in literals)])
        return name

    def leads(self, score: Sum, other: Sum, is_tie_enough: bool) -> int:
        """Return a literal that is true exactly where a score is greater than another, or as great where that is enough."""
        if is_tie_enough:
            return self.at_least(added((1, -1), (score, other)), 0)
        return -self.at_least(added((-1, 1), (score, other)), 0)

    def at_least(self, total: Sum, limit: Fraction | int) -> int:
        """Return a literal that is true exactly where the sum reaches the limit. Raises ResourceError (too many clauses)."""
        low, high = total.ends()
        if low >= limit:
            return TRUE
        if high < limit:
            return -TRUE
        unit = _unit(total.factors.values())
        terms = [
            (int(max(factor, -factor) / unit), variable if factor > 0 else -variable)
            for variable, factor in total.factors.items()
        ]
        least, most = math.ceil((limit - low) / unit), sum(weight for weight, _ in terms)
        if 2 * least > most + 1:  # where the opposites, all the rest of the sum, do not reach more than they may
            return -self._reached([(weight, -literal) for weight, literal in terms], most - least + 1)
        return self._reached(terms, least)

    def _reached(self, terms: list[tuple[int, int]], least: int) -> int:
        """Return a literal that is true exactly where the weights of the true literals come to so much."""
        parts = [{min(weight, least): literal} for weight, literal in terms]
        while len(parts) > 1:
            pairs = [self._counter(a, b, least) for a, b in zip(parts[::2], parts[1::2], strict=False)]
            parts = pairs + parts[2 * len(pairs) :]
        return parts[0][least]

    def _counter(self, a: dict[int, int], b: dict[int, int], least: int) -> dict[int, int]:
        """Return, of two counters, the counter of both: for each value up to `least`, where the sum reaches it."""
        if len(self.clauses) + 2 * (len(a) + 1) * (len(b) + 1) > MOST_CLAUSES:
            raise ResourceError(TOO_MANY)
        values = sorted({min(x + y, least) for x in (0, *a) for y in (0, *b)} - {0})
        outputs = dict(zip(values, self.fresh(len(values)), strict=True))
        self.clauses += [[outputs[low], -outputs[high]] for low, high in pairwise(values)]
        a_steps, b_steps = (list(zip((0, *part), (*part, 0), strict=True)) for part in (a, b))  # a value, and the next or 0
        for x, above_x in a_steps:
            for y, above_y in b_steps:
                if x or y:  # both reached
                    reached = [-part[value] for part, value in ((a, x), (b, y)) if value]
                    self.clauses.append([outputs[min(x + y, least)], *reached])
                over = bisect_right(values, x + y)
                if over < len(values):  # neither goes beyond
                    beyond = [part[value] for part, value in ((a, above_x), (b, above_y)) if value]
                    self.clauses.append([-outputs[values[over]], *beyond])
        return outputs


def plain_clauses(query: Robustness | LabelChange) -> PlainClauses:
    """Return clauses that have a solution if an input of the question's region is given another label than the question says.

    Raises    ResourceError (too many clauses), ShapeError, DomainError, NumberError; UnsupportedError (a robustness question
              that names no label, a float network)
    """
    clauses = PlainClauses()
    if isinstance(query, Robustness):
        if query.label is None:
            raise UnsupportedError("a proof is of a label: name it in the question")
        scores = _network(clauses, query.network, query.zero, _inputs(clauses, query.network.grid, query.ball))
        rivals = [rival for rival in range(len(scores)) if rival != query.label]
        ties = {TieRule.FIRST: range(query.label), TieRule.RIVAL: rivals, TieRule.LABEL: ()}[query.tie]
        clauses.some([clauses.leads(scores[rival], scores[query.label], rival in ties) for rival in rivals])
        return clauses
    if isinstance(query.network, Network):
        raise UnsupportedError("a float network has no clauses: proofs are of networks of signs")
    values = _inputs(clauses, query.copy.grid, query.ball)
    own, other = (_labels(clauses, _network(clauses, each, query.zero, values)) for each in (query.network, query.copy))
    for mine, its in zip(own, other, strict=True):
        clauses.some([-mine, -its])
    return clauses


def _labels(clauses: PlainClauses, scores: Sequence[Sum]) -> list[int]:
    """Return whether each class is the label: it leads all others, the classes before it strictly."""
    classes = range(len(scores))
    leads = {(c, rival): clauses.leads(scores[c], scores[rival], True) for c in classes for rival in classes if c < rival}
    leads |= {(rival, c): -literal for (c, rival), literal in leads.items()}
    labels = [clauses.all([leads[c, rival] for rival in classes if rival != c]) for c in classes]
    clauses.some(labels)
    return labels


def _network(clauses: PlainClauses, network: BinarizedNetwork, zero: ZeroSign, values: list[Sum]) -> list[Sum]:
    """Return the classes' scores."""
    offset, step = network.grid.offset, network.grid.step
    for block in network.blocks:
        values = _signs(clauses, block.linear, block.norm, values, (offset, step, zero))
        offset, step = Fraction(0), Fraction(1)
    return _scores(network.output, values, offset, step)


def _unit(values: Iterable[Fraction | int]) -> Fraction:
    """Return the greatest number of which all are multiples."""
    values = list(values)
    common = math.lcm(*(value.denominator for value in values))
    return Fraction(math.gcd(*(int(value * common) for value in values)), common)


def _inputs(clauses: PlainClauses, grid: Grid, ball: Ball | Box | Levels) -> list[Sum]:
    """Return the inputs' levels, with the clauses that keep them in the region."""
    lower, upper, centre, cost = _region(grid, ball)
    values, costs = [], list[Sum]()
    for low, high, middle in zip(lower, upper, centre, strict=True):
        steps = clauses.fresh(high - low)  # the level is above low, above low + 1, and so on
        clauses.clauses += [[below, -above] for below, above in pairwise(steps)]
        values.append(Sum(low, dict.fromkeys(steps, 1)))
        if cost is not None:
            each = cost[0]
            away = [each(abs(level - middle)) for level in range(low, high + 1)]
            costs.append(Sum(away[0], {var: b - a for var, (a, b) in zip(steps, pairwise(away), strict=True) if a != b}))
    if cost is not None:
        clauses.some([-clauses.at_least(added([1] * len(costs), costs), cost[1] + 1)])
    return values


Cost = tuple[Callable[[int], int], int]  # of a change by so many levels, and the most that all may come to


def _region(grid: Grid, ball: Ball | Box | Levels) -> tuple[list[int], list[int], list[int], Cost | None]:
    """Return the least and the greatest level of each input, the centre's, and what changes may cost."""
    match ball:
        case Levels():
            ends = ball.lower.tolist(), ball.upper.tolist(), ball.centre.tolist()
            return *ends, None if ball.norm is Norm.LINF else (COSTS[ball.norm], ball.most)
        case Box():
            lower = [max(grid.lowest, math.ceil((Fraction(x) - grid.offset) / grid.step)) for x in ball.lower.tolist()]
            upper = [min(grid.highest, math.floor((Fraction(x) - grid.offset) / grid.step)) for x in ball.upper.tolist()]
            return lower, upper, lower, None
        case Ball():
            given = [Fraction(x) for x in ball.centre.tolist()]
            centre = [grid.level(x) for x in given]
            if ball.norm is Norm.LINF:
                lower = [grid.level(min(max(x - ball.radius, grid.lower), grid.upper)) for x in given]
                upper = [grid.level(min(max(x + ball.radius, grid.lower), grid.upper)) for x in given]
                return lower, upper, centre, None
            radius = ball.radius if ball.norm in (Norm.L0, Norm.HAMMING) else ball.radius / grid.step
            cost, most = COSTS[ball.norm], math.floor(radius * radius if ball.norm is Norm.L2 else radius)
            reach = max(change for change in range(grid.highest - grid.lowest + 1) if cost(change) <= most)
            lower, upper = ([max(grid.lowest, x - reach) for x in centre], [min(grid.highest, x + reach) for x in centre])
            return lower, upper, centre, (cost, most)


COSTS: dict[Norm, Callable[[int], int]] = {
    Norm.L0: lambda change: int(change > 0),
    Norm.HAMMING: lambda change: int(change > 0),
    Norm.L1: lambda change: change,
    Norm.L2: lambda change: change * change,
}


Seen = tuple[Fraction, Fraction, ZeroSign]  # what a layer sees is offset + step * a whole number; and what sign(0) is


def _signs(clauses: PlainClauses, linear: Linear, norm: BatchNorm | None, values: Sequence[Sum], seen: Seen) -> list[Sum]:
    """Return the signs that a block gives, each -1 or +1."""
    found = []
    for channel, weights, parts in _rows(linear, values):
        total = added(weights, parts)
        low, high = (int(end) for end in total.ends())
        is_plus = _pre_sign(linear, norm, channel, sum(weights), seen)
        rises = is_plus(high)
        if is_plus(low) == rises:
            literal = TRUE if rises else -TRUE
        else:  # it changes once: at the least sum with the sign of the greatest
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if is_plus(middle) == rises else (middle, high)
            literal = clauses.at_least(total, high) if rises else -clauses.at_least(total, high)
        found.append(_sign(literal))
    return found


def _sign(literal: int) -> Sum:
    """Return +1 where a literal is true, and -1 elsewhere."""
    if abs(literal) == TRUE:
        return Sum(literal, {})
    return Sum(-1, {literal: 2}) if literal > 0 else Sum(1, {-literal: -2})


def _rows(linear: Linear, values: Sequence[Sum]) -> Iterator[tuple[int, list[int], list[Sum]]]:
    """Yield each row's channel, its weights that are not zero, and the values that they are of."""
    matrix, channels = linear.matrix, linear.channel_of.tolist()
    for channel, first, last in zip(channels, matrix.indptr[:-1].tolist(), matrix.indptr[1:].tolist(), strict=True):
        yield channel, matrix.data[first:last].tolist(), [values[place] for place in matrix.indices[first:last].tolist()]


def _pre_sign(linear: Linear, norm: BatchNorm | None, channel: int, weights: int, seen: Seen) -> Callable[[int], bool]:
    """Return whether a neuron's sign is +1, of the sum of its inputs' whole numbers; `weights` is the sum of its weights."""
    offset, step, zero = seen
    scale, bias = Fraction(float(linear.scale[channel])), Fraction(float(linear.layer.bias[channel]))
    gamma, beta, mean, variance = Fraction(1), Fraction(0), Fraction(0), Fraction(1)
    if norm is not None:
        gamma, beta, mean = (Fraction(float(part[channel])) for part in (norm.gamma, norm.beta, norm.mean))
        variance = Fraction(float(norm.variance[channel])) + Fraction(float(norm.epsilon))

    def is_plus(whole: int) -> bool:
        normed = gamma * (scale * (offset * weights + step * whole) + bias - mean)
        sign = _sign_of(normed, beta, variance)  # of the normalized sum times the root of the variance
        return sign > 0 or (sign == 0 and zero is ZeroSign.PLUS)

    return is_plus


def _sign_of(a: Fraction, b: Fraction, variance: Fraction) -> int:
    """Return the sign of a + b * sqrt(variance), exactly. Accepts variance > 0."""
    signs = [(value > 0) - (value < 0) for value in (a, b)]
    if signs[0] * signs[1] >= 0:
        return signs[0] or signs[1]
    squares = a * a - b * b * variance
    return signs[0] * ((squares > 0) - (squares < 0))


def _scores(output: Linear, values: Sequence[Sum], offset: Fraction, step: Fraction) -> list[Sum]:
    """Return the classes' scores."""
    found = []
    for channel, weights, parts in _rows(output, values):
        scale, bias = Fraction(float(output.scale[channel])), Fraction(float(output.layer.bias[channel]))
        found.append(added([scale * step * weight for weight in weights], parts, scale * offset * sum(weights) + bias))
    return found
