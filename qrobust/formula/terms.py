"""Terms and formulas: one immutable language that every solver's expressions, SMT-LIB text and exact values fold from.

Formulas have no negation: <=, <, conjunction and disjunction. So making a constant larger or smaller has a known effect on
the set of solutions, and a solver that rounds constants can round them to the side that keeps a proof a proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from qrobust.errors import UnsupportedError
from qrobust.interval import FloatArray
from qrobust.layers import AveragePool2d, Conv2d, IntArray, Layer, MaxPool2d, Scaling

T = TypeVar("T")
F = TypeVar("F")


class Op(Enum):
    """What a term does with its arguments."""

    CONSTANT = "constant"
    VARIABLE = "variable"
    ADD = "+"
    MULTIPLY = "*"
    MAXIMUM = "max"
    MINIMUM = "min"
    SIGMOID = "sigmoid"
    TANH = "tanh"
    EXP = "exp"


@dataclass(frozen=True, eq=False)
class Term:
    """A real-valued term. `value` is set for constants, `name` for variables; nodes are shared, never copied."""

    op: Op
    arguments: tuple[Term, ...] = ()
    value: Fraction = Fraction(0)
    name: str = ""

    def __add__(self, other: Term) -> Term:
        if self.op is other.op is Op.CONSTANT:
            return constant(self.value + other.value)
        if self.op is Op.CONSTANT and self.value == 0:
            return other
        if other.op is Op.CONSTANT and other.value == 0:
            return self
        return Term(Op.ADD, (self, other))

    def __mul__(self, other: Term) -> Term:
        if self.op is other.op is Op.CONSTANT:
            return constant(self.value * other.value)
        for one, two in ((self, other), (other, self)):
            if one.op is Op.CONSTANT and one.value == 0:
                return one
            if one.op is Op.CONSTANT and one.value == 1:
                return two
        return Term(Op.MULTIPLY, (self, other))

    def __neg__(self) -> Term:
        return constant(Fraction(-1)) * self

    def __sub__(self, other: Term) -> Term:
        return self + (-other)

    def __le__(self, other: Term) -> Formula:
        return Formula(Relation.AT_MOST, (self, other))

    def __lt__(self, other: Term) -> Formula:
        return Formula(Relation.BELOW, (self, other))

    def __ge__(self, other: Term) -> Formula:
        return other <= self

    def __gt__(self, other: Term) -> Formula:
        return other < self


class Relation(Enum):
    """How a formula joins its parts: two terms for a comparison, formulas for a connective."""

    AT_MOST = "<="
    BELOW = "<"
    AND = "and"
    OR = "or"


@dataclass(frozen=True, eq=False)
class Formula:
    """A comparison of two terms, a conjunction (empty: true), or a disjunction (empty: false)."""

    relation: Relation
    parts: tuple[Any, ...]


def constant(value: Fraction | float | int) -> Term:
    """Return an exact constant."""
    return Term(Op.CONSTANT, value=Fraction(value))


def variable(name: str) -> Term:
    """Return a variable; the same name is the same variable."""
    return Term(Op.VARIABLE, name=name)


def maximum(first: Term, second: Term) -> Term:
    """Return the greater of two terms."""
    if first.op is second.op is Op.CONSTANT:
        return constant(max(first.value, second.value))
    return Term(Op.MAXIMUM, (first, second))


def minimum(first: Term, second: Term) -> Term:
    """Return the lesser of two terms."""
    if first.op is second.op is Op.CONSTANT:
        return constant(min(first.value, second.value))
    return Term(Op.MINIMUM, (first, second))


def total(terms: Sequence[Term]) -> Term:
    """Return a sum as a balanced tree, so that its depth stays small however many terms there are."""
    level = list(terms) or [constant(0)]
    while len(level) > 1:
        pairs = [a + b for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[2 * len(pairs) :]
    return level[0]


def all_of(formulas: Sequence[Formula]) -> Formula:
    """Return a conjunction."""
    return Formula(Relation.AND, tuple(formulas))


def any_of(formulas: Sequence[Formula]) -> Formula:
    """Return a disjunction."""
    return Formula(Relation.OR, tuple(formulas))


class Algebra(Protocol[T, F]):
    """What a solver makes of each node."""

    def constant(self, value: Fraction) -> T: ...
    def variable(self, name: str) -> T: ...
    def apply(self, op: Op, arguments: list[T]) -> T: ...
    def compare(self, relation: Relation, left: T, right: T) -> F: ...
    def join(self, relation: Relation, parts: list[F]) -> F: ...


class Folder:
    """Folds terms and formulas through an algebra, each shared node once."""

    def __init__(self, algebra: Algebra[Any, Any]) -> None:
        self._algebra = algebra
        self._done: dict[int, tuple[Term, Any]] = {}

    def term(self, term: Term) -> Any:
        """Return what the algebra makes of a term."""
        if id(term) not in self._done:
            self._done[id(term)] = (term, self._make(term))
        return self._done[id(term)][1]

    def _make(self, term: Term) -> Any:
        if term.op is Op.CONSTANT:
            return self._algebra.constant(term.value)
        if term.op is Op.VARIABLE:
            return self._algebra.variable(term.name)
        return self._algebra.apply(term.op, [self.term(argument) for argument in term.arguments])

    def formula(self, formula: Formula) -> Any:
        """Return what the algebra makes of a formula."""
        if formula.relation in (Relation.AND, Relation.OR):
            return self._algebra.join(formula.relation, [self.formula(part) for part in formula.parts])
        left, right = formula.parts
        return self._algebra.compare(formula.relation, self.term(left), self.term(right))


def variables_of(formula: Formula, *terms: Term) -> list[str]:
    """Return the names of all variables, in order of appearance."""
    names: dict[str, None] = {}
    seen: set[int] = set()

    def visit(term: Term) -> None:
        if id(term) in seen:
            return
        seen.add(id(term))
        if term.op is Op.VARIABLE:
            names[term.name] = None
        for argument in term.arguments:
            visit(argument)

    def walk(part: Any) -> None:
        if isinstance(part, Term):
            visit(part)
        else:
            for inner in part.parts:
                walk(inner)

    walk(formula)
    for term in terms:
        visit(term)
    return list(names)


TermArray = npt.NDArray[np.object_]


def term_array(values: npt.ArrayLike) -> TermArray:
    """Return an array of constants from numbers or Fractions."""
    array = np.asarray(values, dtype=object)
    result = np.empty(array.size, dtype=object)
    result[:] = [constant(value) for value in array.ravel().tolist()]
    return result.reshape(array.shape)


class TermArithmetic:
    """The operations of a network over terms: the same definition of its meaning that floats and rationals use."""

    def constant(self, values: FloatArray) -> TermArray:
        return term_array(values)

    def affine(self, weight: TermArray, x: TermArray, bias: TermArray) -> TermArray:
        rows = [total([b, *(w * v for w, v in zip(row, x, strict=True))]) for row, b in zip(weight, bias, strict=True)]
        return _column(rows)

    def convolve(self, weight: TermArray, x: TermArray, bias: TermArray, windows: IntArray) -> TermArray:
        raise _no_rule(Conv2d)

    def mean(self, x: TermArray, windows: IntArray) -> TermArray:
        raise _no_rule(AveragePool2d)

    def maximum(self, x: TermArray, windows: IntArray) -> TermArray:
        raise _no_rule(MaxPool2d)

    def rescale(self, x: TermArray, scaling: Scaling) -> TermArray:
        pairs = zip(term_array(scaling.scale), x, term_array(scaling.offset), strict=True)
        return _column([scale * value + offset for scale, value, offset in pairs])

    def relu(self, x: TermArray) -> TermArray:
        return _column([maximum(value, constant(0)) for value in x])

    def sigmoid(self, x: TermArray) -> TermArray:
        return _column([Term(Op.SIGMOID, (value,)) for value in x])

    def tanh(self, x: TermArray) -> TermArray:
        return _column([Term(Op.TANH, (value,)) for value in x])

    def softmax(self, x: TermArray) -> TermArray:
        raise NotImplementedError("confidences of classes are compared as sums of exponentials, see formula.confidences")


def _no_rule(layer: type[Layer]) -> UnsupportedError:
    return UnsupportedError(f"the formulas have no rule for {layer.__name__}; use `qrobust check --backend branch-and-bound`")


def _column(values: list[Term]) -> TermArray:
    result = np.empty(len(values), dtype=object)
    result[:] = values
    return result
