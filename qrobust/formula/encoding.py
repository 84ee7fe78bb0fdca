"""What both encodings give: a query's variables, constraints, violation and objectives as terms and formulas.

A query is turned into the formula of its *violation*: satisfiable iff some input and parameters break it. Constants that are
not rational (the logit of a level, of a margin, of a confidence) are enclosed and taken on the side that makes the formula
weaker, so that its unsatisfiability proves the query; `exact` says whether that was needed. With `weaker` False they are
taken on the other side, so that every solution is a violation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

from qrobust.errors import UnsupportedError
from qrobust.exact import ExactArithmetic, float_bounds, logit_bounds, sigmoid, to_exact
from qrobust.formula.terms import (
    Formula,
    Op,
    Term,
    TermArithmetic,
    TermArray,
    all_of,
    any_of,
    constant,
    term_array,
    variable,
)
from qrobust.leads import Leads
from qrobust.network import Network, Output, logits
from qrobust.queries import ConfidenceQuery, EpsilonEstimate, LabelQuery, Query, SigmaEstimate

TERMS = TermArithmetic()


class Encoding(Enum):
    """How a query becomes a formula."""

    EXPLICIT = "explicit"  # every parameter a variable, as the paper's equations read
    ELIMINATED = "eliminated"  # parameters removed exactly, THEORY.md section 3


@dataclass(frozen=True)
class Objective:
    """A term to be maximised under a condition of its own; `directions` pushes the logits the same way."""

    term: Term
    condition: Formula
    directions: tuple[float, ...]


@dataclass(frozen=True)
class Problem:
    """A query as a formula: the constraints that all variables obey, its violation, or its objectives."""

    query: Query
    encoding: Encoding
    constraints: Formula
    violation: Formula | None
    objectives: tuple[Objective, ...]
    exact: bool

    @property
    def formula(self) -> Formula:
        """Constraints and violation together. Raises UnsupportedError for an estimate."""
        if self.violation is None:
            raise UnsupportedError(f"{type(self.query).__name__} is an estimate: it has objectives, no single formula")
        return all_of([self.constraints, self.violation])


class Encoder(ABC):
    """Builds the terms of one query; the two encodings differ in how the perturbed network is written."""

    encoding: Encoding

    def __init__(self, query: Query, *, weaker: bool = True) -> None:
        self.query, self.network, self._weaker = query, query.network, weaker
        self.constraints: list[Formula] = []
        self.x = self._inputs()
        self.stored = logits(self.network, self.x, TERMS)

    @abstractmethod
    def raised(self, directions: tuple[float, ...]) -> Term:
        """Return a term for the sum of logits times directions, at its greatest where the encoding has eliminated rows."""

    def _inputs(self) -> TermArray:
        domain = self.query.domain
        if self.query.local:
            return term_array(domain.box.lower)
        names = [variable(f"x{i + 1}") for i in range(self.network.inputs)]
        for name, low, high in zip(names, domain.box.lower.tolist(), domain.box.upper.tolist(), strict=True):
            self.constraints += [constant(low) <= name, name <= constant(high)]
        matrix, limit = domain.inequalities
        if limit.size:
            rows = TERMS.affine(term_array(matrix), _terms(names), term_array([0] * len(limit)))
            self.constraints += [row <= constant(end) for row, end in zip(rows, limit.tolist(), strict=True)]
        return _terms(names)

    def problem(self) -> Problem:
        """Return the query's formula."""
        violation: Formula | None = None
        objectives: tuple[Objective, ...] = ()
        exact = True
        if isinstance(self.query, LabelQuery):
            violation, exact = self._label_violation(self.query)
        elif isinstance(self.query, ConfidenceQuery):
            violation, exact = self._confidence_violation(self.query)
        elif isinstance(self.query, SigmaEstimate):
            objectives, exact = self._gap_objectives(self.query)
        elif isinstance(self.query, EpsilonEstimate):
            if self.query.of_logits:
                raise UnsupportedError("the formulas have no objective for the change of a logit: use branch-and-bound")
            objectives = self._change_objectives()
        return Problem(self.query, self.encoding, all_of(self.constraints), violation, objectives, exact)

    def _leads_over(self, leads: Leads, label: int) -> tuple[list[Formula], list[Term], list[Formula]]:
        """Return for a label: the conditions of being the stored label, its gaps, and for each rival that it overtakes."""
        conditions, gaps, overtaken = [], [], []
        for pair in leads.of_label(label).tolist():
            directions = tuple(leads.directions[pair].tolist())
            low, high = self._sides(leads.offset_bounds(pair))
            lead = directed(self.stored, directions) + constant(low)
            strict = bool(leads.strict[pair])
            conditions.append(lead <= constant(0) if strict else lead < constant(0))
            gaps.append(-lead)
            raised = self.raised(directions) + constant(high)
            overtaken.append(raised > constant(0) if strict else raised >= constant(0))
        return conditions, gaps, overtaken

    def _sides(self, ends: tuple[Fraction, Fraction]) -> tuple[Fraction, Fraction]:
        """Return the ends of an enclosed constant, (lower, upper) for the weaker formula, swapped for the stronger."""
        return ends if self._weaker else (ends[1], ends[0])

    def _label_violation(self, query: LabelQuery) -> tuple[Formula, bool]:
        leads, cases, exact = Leads(query.network, query.level), [], True
        for label in range(query.network.class_count):
            needed = leads.gap_of_margin(query.sigma, label)
            if needed is None:
                continue
            conditions, gaps, overtaken = self._leads_over(leads, label)
            margin = [gap >= constant(self._sides(needed)[0]) for gap in gaps] if query.sigma else []
            exact = exact and needed[0] == needed[1] and leads.offset_is_exact
            cases.append(all_of([*conditions, *margin, any_of(overtaken)]))
        return any_of(cases), exact

    def _gap_objectives(self, query: SigmaEstimate) -> tuple[tuple[Objective, ...], bool]:
        leads = Leads(query.network, query.level)
        conditions, gaps, overtaken = self._leads_over(leads, query.label)
        least = variable("gap")
        bounded = [least <= gap for gap in gaps]
        objectives = tuple(
            Objective(least, all_of([*conditions, *bounded, wins]), tuple(leads.directions[pair].tolist()))
            for pair, wins in zip(leads.of_label(query.label).tolist(), overtaken, strict=True)
        )
        return objectives, leads.offset_is_exact

    def _confidence_violation(self, query: ConfidenceQuery) -> tuple[Formula, bool]:
        if self.network.output is Output.SOFTMAX:
            return self._softmax_violation(query.epsilon), True
        rise, fall = self.raised((1.0,)), self.raised((-1.0,))
        if not query.local:
            before = Term(Op.SIGMOID, (self.stored[0],))
            after, opposite = Term(Op.SIGMOID, (rise,)), Term(Op.SIGMOID, (-fall,))
            epsilon = constant(query.epsilon)
            return any_of([before + epsilon < after, opposite + epsilon < before]), True
        low, high = self._sides(stored_confidence(query))
        cases, top, bottom = [], low + query.epsilon, high - query.epsilon
        if top < 1:
            cases.append(rise > constant(self._sides(logit_bounds(top))[0]) if top > 0 else all_of([]))
        if bottom > 0:
            cases.append(-fall < constant(self._sides(logit_bounds(bottom))[1]) if bottom < 1 else all_of([]))
        return any_of(cases), False

    def _softmax_violation(self, epsilon: Fraction) -> Formula:
        """1/s' - 1/s > eps, with s the sum of exp(z_j - z_c), is s - s' > eps s s'."""
        cases = []
        for index in range(self.network.class_count):
            before = _rival_sum(self.stored, index)
            for sign in (1.0, -1.0):
                after = _rival_sum(self._pushed(index, sign), index)
                product = constant(epsilon) * (before * after)
                cases.append(product < (before - after if sign > 0 else after - before))
        return any_of(cases)

    def _softmax_change(self, index: int, sign: float) -> Objective:
        """The rise (or fall) of one class's confidence: f and g with f s = g s' = 1 stand for 1 / s and 1 / s'."""
        before, after = variable(f"f{index + 1}"), variable(f"g{index + 1}")
        ties = [
            (before, _rival_sum(self.stored, index)),
            (after, _rival_sum(self._pushed(index, sign), index)),
        ]
        condition = [part for f, s in ties for part in (f * s <= constant(1), constant(1) <= f * s)]
        pushes = tuple(sign if j == index else -sign for j in range(self.network.class_count))
        return Objective(after - before if sign > 0 else before - after, all_of(condition), pushes)

    def _pushed(self, index: int, sign: float) -> TermArray:
        """Return perturbed logits with one class pushed one way and its rivals the other."""
        count = self.network.class_count
        pushes = [sign if j == index else -sign for j in range(count)]
        units = [tuple(push if k == j else 0.0 for k in range(count)) for j, push in enumerate(pushes)]
        return _terms([self.raised(u) if p > 0 else -self.raised(u) for u, p in zip(units, pushes, strict=True)])

    def _change_objectives(self) -> tuple[Objective, ...]:
        if self.network.output is Output.SOFTMAX:
            return tuple(self._softmax_change(c, sign) for c in range(self.network.class_count) for sign in (1.0, -1.0))
        always = all_of([])
        if self.query.local:  # the sigmoid rises: the extreme confidences are those of the extreme logits
            return tuple(Objective(self.raised((sign,)), always, (sign,)) for sign in (1.0, -1.0))
        before = Term(Op.SIGMOID, (self.stored[0],))
        rise, fall = Term(Op.SIGMOID, (self.raised((1.0,)),)), Term(Op.SIGMOID, (-self.raised((-1.0,)),))
        return Objective(rise - before, always, (1.0,)), Objective(before - fall, always, (-1.0,))


def stored_confidence(query: Query) -> tuple[Fraction, Fraction]:
    """Enclose the stored network's one confidence at the query's point."""
    values = logits(query.network, to_exact(query.domain.box.lower), ExactArithmetic())
    low, high = float_bounds(lambda: sigmoid(values[0]))
    return Fraction(low), Fraction(high)


def _rival_sum(values: TermArray, index: int) -> Term:
    total = constant(1)
    for rival, value in enumerate(values):
        if rival != index:
            total = total + Term(Op.EXP, (value - values[index],))
    return total


def directed(values: TermArray, directions: tuple[float, ...]) -> Term:
    total = constant(0)
    for value, direction in zip(values, directions, strict=True):
        total = total + constant(direction) * value
    return total


def _terms(values: list[Term]) -> TermArray:
    result = term_array([0] * len(values))
    result[:] = values
    return result


def has_sigmoids(network: Network) -> bool:
    """Whether a hidden layer is a sigmoid or tanh, which linear arithmetic cannot express."""
    return any(layer.activation.value in ("sigmoid", "tanh") for layer in network.hidden_layers)
