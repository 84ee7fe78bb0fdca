"""SMT-LIB 2 text of a problem, for any solver; and the stricter form that dReal needs.

STANDARD  shared terms are named with define-fun, constants are exact fractions; sigmoid and tanh are written with `exp`,
          which dReal and cvc5 read
DREAL     nothing is named (dReal would loosen each definition), and every constant but 0, 1 and -1 is a variable between
          its two neighbouring floats, for dReal folds constants in round-to-nearest (see backends/dreal.py)
"""

from __future__ import annotations

import hashlib
from enum import Enum
from fractions import Fraction

from qrobust.formats.untrusted import one_line
from qrobust.formula.encoding import Problem
from qrobust.formula.terms import Folder, Formula, Op, Relation, Term, variables_of
from qrobust.interval import round_fraction_down, round_fraction_up


class Dialect(Enum):
    """Who will read the text."""

    STANDARD = "standard"
    DREAL = "dreal"


class TextAlgebra:
    """Terms and formulas become text; `definitions` collects names for shared terms, `constants` dReal's bounded ones."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.definitions: list[str] = []
        self.constants: dict[Fraction, str] = {}

    def constant(self, value: Fraction) -> str:
        if self.dialect is Dialect.DREAL and value not in (0, 1, -1):
            return self.constants.setdefault(value, f"c{len(self.constants) + 1}")
        return number(value)

    def variable(self, name: str) -> str:
        return name

    def apply(self, op: Op, arguments: list[str]) -> str:
        match op:
            case Op.MAXIMUM | Op.MINIMUM if self.dialect is Dialect.DREAL:
                return f"({op.value} {' '.join(arguments)})"
            case Op.MAXIMUM | Op.MINIMUM:
                first, second = arguments
                relation = ">=" if op is Op.MAXIMUM else "<="
                return self._named(f"(ite ({relation} {first} {second}) {first} {second})")
            case Op.SIGMOID:
                return self._named(f"(/ 1 (+ 1 (exp (- {arguments[0]}))))")
            case Op.TANH if self.dialect is Dialect.DREAL:
                return f"(tanh {arguments[0]})"
            case Op.TANH:
                return self._named(f"(- (/ 2 (+ 1 (exp (* (- 2) {arguments[0]})))) 1)")
            case Op.ADD if self.dialect is Dialect.STANDARD:
                return self._named(f"(+ {' '.join(arguments)})")
        return f"({op.value} {' '.join(arguments)})"

    def _named(self, text: str) -> str:
        if self.dialect is Dialect.DREAL:
            return text
        name = f"t{len(self.definitions) + 1}"
        self.definitions.append(f"(define-fun {name} () Real {text})")
        return name

    def compare(self, relation: Relation, left: str, right: str) -> str:
        # dReal turns a strict bound on a variable into the next float, which loses solutions: ask for the weaker one.
        symbol = "<=" if self.dialect is Dialect.DREAL else relation.value
        return f"({symbol} {left} {right})"

    def join(self, relation: Relation, parts: list[str]) -> str:
        if not parts:
            return "true" if relation is Relation.AND else "false"
        return parts[0] if len(parts) == 1 else f"({relation.value} {' '.join(parts)})"


def number(value: Fraction) -> str:
    """Write an exact rational."""
    size = abs(value)
    text = f"{size.numerator}.0" if size.denominator == 1 else f"(/ {size.numerator}.0 {size.denominator}.0)"
    return f"(- {text})" if value < 0 else text


def decimal(value: float) -> str:
    """Write a float as a decimal that reads back as the same float, in fixed or scientific notation."""
    text = repr(abs(value)).replace("e+", "e")
    return f"(- {text})" if value < 0 else text


def to_smtlib(problem: Problem, dialect: Dialect = Dialect.STANDARD) -> str:
    """Return the text: satisfiable iff the query is violated; for an estimate, its objectives are maximised in turn."""
    algebra = TextAlgebra(dialect)
    folder = Folder(algebra)
    shared = _conjuncts(problem.constraints) + (_conjuncts(problem.violation) if problem.violation else [])
    asserts = [f"(assert {folder.formula(part)})" for part in shared]
    tail = _tail(problem, folder)
    formulas = [problem.constraints, *([problem.violation] if problem.violation else [])]
    formulas += [objective.condition for objective in problem.objectives]
    names: dict[str, None] = {}
    terms: list[Term] = [objective.term for objective in problem.objectives]
    for formula in formulas:
        names |= dict.fromkeys(variables_of(formula, *terms))
    lines = [*_header(problem), "(set-logic QF_NRA)" if dialect is Dialect.DREAL else "(set-logic ALL)"]
    lines += [f"(declare-fun {name} () Real)" for name in names]
    for value, name in algebra.constants.items():
        low, high = decimal(round_fraction_down(value)), decimal(round_fraction_up(value))
        lines += [f"(declare-fun {name} () Real)", f"(assert (<= {low} {name}))", f"(assert (<= {name} {high}))"]
    return "\n".join([*lines, *algebra.definitions, *asserts, *tail, "(exit)"]) + "\n"


def _tail(problem: Problem, folder: Folder) -> list[str]:
    if not problem.objectives:
        return ["(check-sat)"]
    lines = []
    for objective in problem.objectives:
        condition, term = folder.formula(objective.condition), folder.term(objective.term)
        lines += ["(push 1)", f"(assert {condition})", f"(maximize {term})", "(check-sat)", "(pop 1)"]
    return lines


def _conjuncts(formula: Formula) -> list[Formula]:
    if formula.relation is not Relation.AND:
        return [formula]
    return [inner for part in formula.parts for inner in _conjuncts(part)]


def _header(problem: Problem) -> list[str]:
    query = problem.query
    own = ", ".join(f"{key} {value}" for key, value in query.to_json().items() if isinstance(value, str))
    weaker = "" if problem.exact else " Constants that are no rationals were rounded so that unsat stays a proof."
    return [
        f"; qrobust: {own}; {problem.encoding.value} encoding",
        f"; network {one_line(query.network.name) or 'without a name'}, sha256 {query.network.sha256}",
        f"; parameters: {one_line(query.parameters.rule)}; domain: {query.domain}",
        f"; satisfiable iff the query is violated.{weaker}"
        if problem.violation
        else "; an estimate: the objectives are maximised in turn",
    ]


def text_hash(text: str) -> str:
    """Return the sha256 of a text, kept with an answer so that another solver can replay it."""
    return hashlib.sha256(text.encode()).hexdigest()
