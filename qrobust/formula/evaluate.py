"""Exact values of terms and formulas at an assignment: rationals, and balls where a sigmoid, tanh or exp enters."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from flint import arb, ctx, fmpq

from qrobust.exact import FIRST_BITS, MOST_BITS, Exact, sigmoid, to_exact
from qrobust.formula.terms import Folder, Formula, Op, Relation


class ExactAlgebra:
    """Terms become rationals or balls in the precision in force; formulas True, False, or None where balls overlap."""

    def __init__(self, assignment: Mapping[str, Fraction]) -> None:
        names = list(assignment)
        self._values = dict(zip(names, to_exact([assignment[name] for name in names]), strict=True))

    def constant(self, value: Fraction) -> Exact:
        return fmpq(value.numerator, value.denominator)

    def variable(self, name: str) -> Exact:
        return self._values[name]

    def apply(self, op: Op, arguments: list[Exact]) -> Exact:
        first, *rest = arguments
        match op:
            case Op.ADD:
                return first + rest[0]
            case Op.MULTIPLY:
                return first * rest[0]
            case Op.MAXIMUM | Op.MINIMUM if any(isinstance(value, arb) for value in arguments):
                return arb(first).max(arb(rest[0])) if op is Op.MAXIMUM else arb(first).min(arb(rest[0]))
            case Op.MAXIMUM:
                return max(arguments)
            case Op.MINIMUM:
                return min(arguments)
            case Op.SIGMOID:
                return sigmoid(first)
            case Op.TANH:
                return arb(first).tanh()
        return arb(first).exp()

    def compare(self, relation: Relation, left: Exact, right: Exact) -> bool | None:
        difference = left - right
        if not isinstance(difference, arb):
            return bool(difference <= 0) if relation is Relation.AT_MOST else bool(difference < 0)
        if difference < 0:
            return True
        return False if difference > 0 else None

    def join(self, relation: Relation, parts: list[bool | None]) -> bool | None:
        decisive = relation is Relation.OR
        if any(part is decisive for part in parts):
            return decisive
        return None if any(part is None for part in parts) else not decisive


def holds(formula: Formula, assignment: Mapping[str, Fraction]) -> bool | None:
    """Decide a formula exactly, raising the precision until balls settle it; None if none does."""
    bits = FIRST_BITS
    while bits <= MOST_BITS:
        with ctx.workprec(bits):
            verdict: bool | None = Folder(ExactAlgebra(assignment)).formula(formula)
        if verdict is not None:
            return verdict
        bits *= 2
    return None
