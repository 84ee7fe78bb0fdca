"""Answers: Robust, Violated or Unknown; estimates with two ends; counterexamples that replay.

A backend makes a `Claim`; `solve` checks it and returns an `Answer` or an `Estimate`, which carry who answered, how long
it took, and how far the answer was checked.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from enum import Enum, IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.domains import Parameters, shortened
from qrobust.errors import EnclosureError, NumberError
from qrobust.network import Network
from qrobust.queries import ConfidenceQuery, EpsilonEstimate, GreatestDelta, LabelQuery, Query, SigmaEstimate

VERSION = "0.1.0"
AnyQuery = Query | GreatestDelta


class Assurance(IntEnum):
    """How far an answer has been checked; combining two answers takes the weaker (the lesser)."""

    STATISTICAL = 0  # true with the probability that the answer states
    TRUSTED = 1  # an external solver said so
    ROUNDED = 2  # proved by qrobust's outward-rounded bounds
    CHECKED = 3  # re-derived in exact arithmetic by check.py


class Verdict(Enum):
    ROBUST = "ROBUST"
    VIOLATED = "VIOLATED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, eq=False)
class Counterexample:
    """An input and a choice of all parameters, exact: x (inputs,), and (weight, bias) a layer, of Fractions or of float64."""

    x: tuple[Fraction, ...]
    parameters: Parameters

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: a number where a float holds it exactly, else a string "numerator/denominator"."""
        return {
            "input": [_json_number(value) for value in self.x],
            "parameters": [{"weight": _json_array(weight), "bias": _json_array(bias)} for weight, bias in self.parameters],
        }

    @classmethod
    def from_json(cls, document: Any) -> Counterexample:
        """Return the counterexample that `to_json` wrote. Raises NumberError if the document is no such thing."""
        try:
            layers = tuple((_exact(layer["weight"]), _exact(layer["bias"])) for layer in document["parameters"])
            return cls(tuple(Fraction(value) for value in _exact(document["input"]).tolist()), layers)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise NumberError(f"this is no counterexample as qrobust writes it: {error}") from None


def _json_number(value: Fraction) -> float | str:
    try:
        nearest = value.numerator / value.denominator
    except OverflowError:
        return str(value)
    return nearest if Fraction(nearest) == value else str(value)


def _json_array(values: npt.NDArray[Any]) -> Any:
    return values.tolist() if values.dtype == np.float64 else np.asarray(np.frompyfunc(_json_number, 1, 1)(values)).tolist()


def _exact(values: Any) -> npt.NDArray[Any]:
    array = np.array(values, object)
    if all(isinstance(value, float) and math.isfinite(value) for value in array.flat):
        return array.astype(np.float64)
    exact = np.frompyfunc(lambda v: Fraction(*map(int, v.split("/"))) if isinstance(v, str) else Fraction(v), 1, 1)
    return np.asarray(exact(array), object)


@dataclass(frozen=True)
class Robust:
    """A proof was found. `assurance` says what stands behind it."""

    assurance: Assurance


@dataclass(frozen=True)
class Violated:
    """A backend that computes exactly found a counterexample; if it does not replay, the backend is unsound."""

    counterexample: Counterexample


@dataclass(frozen=True)
class Candidate:
    """A backend that computes approximately suspects a violation; it counts only if it replays."""

    counterexample: Counterexample


@dataclass(frozen=True)
class Unknown:
    """No verdict: why, and the best bounds so far on the quantity asked about, where there are any."""

    reason: str
    lower: float | None = None
    upper: float | None = None


Claim = Robust | Violated | Candidate | Unknown


@dataclass(frozen=True)
class EstimateClaim:
    """A backend's estimate: a certified upper end, and a witness whose replay will be the lower end.

    `exact` says that the backend computes exactly, so a witness that does not replay is an error and no mere suspicion.
    `reason` says why the ends are apart, where they are.
    """

    upper: float
    witness: Counterexample | None
    assurance: Assurance
    exact: bool = False
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Answer:
    """The checked answer to a decision query."""

    query: Query
    claim: Robust | Violated | Unknown
    backend: str
    seconds: float
    version: str

    @property
    def verdict(self) -> Verdict:
        match self.claim:
            case Robust():
                return Verdict.ROBUST
            case Violated():
                return Verdict.VIOLATED
            case Unknown():
                return Verdict.UNKNOWN

    @property
    def counterexample(self) -> Counterexample | None:
        return self.claim.counterexample if isinstance(self.claim, Violated) else None

    @property
    def assurance(self) -> Assurance | None:
        match self.claim:
            case Robust(assurance):
                return assurance
            case Violated():
                return Assurance.CHECKED
            case Unknown():
                return None

    def __str__(self) -> str:
        return f"{self.verdict.value}: {statement(self.query, self.claim)} {_provenance(self)}"

    def _repr_html_(self) -> str:
        return f"<p><b>{self.verdict.value}</b>: {html.escape(str(self).split(': ', 1)[1])}</p>"

    def to_json(self) -> dict[str, Any]:
        """Return the answer with its provenance, as JSON values."""
        unknown = self.claim if isinstance(self.claim, Unknown) else None
        return _provenance_json(self) | {
            "verdict": self.verdict.value,
            "counterexample": self.counterexample.to_json() if self.counterexample else None,
            "reason": unknown.reason if unknown else None,
            "lower": unknown.lower if unknown else None,
            "upper": unknown.upper if unknown else None,
        }


@dataclass(frozen=True, eq=False)
class Estimate:
    """A quantity between a witnessed lower end and a certified upper end.

    `witness` attains at least `lower` when replayed exactly (None: `lower` is 0, which needs none); `upper` is proved. For
    the greatest delta it is the other way round: `lower` is proved safe, and `witness` is a flip at delta = `upper`
    (None: no flip was found below `upper`, which is then infinite).
    Raises    EnclosureError if lower > upper
    """

    query: AnyQuery
    lower: float
    upper: float
    witness: Counterexample | None
    assurance: Assurance
    backend: str
    seconds: float
    version: str
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.lower <= self.upper:
            raise EnclosureError(f"an estimate has ends {self.lower} and {self.upper} from {self.backend}: please report")

    @property
    def gap(self) -> float:
        """Upper minus lower."""
        return self.upper - self.lower

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"{quantity(self.query)} lies in [{text_below(self.lower)}, {text_above(self.upper)}]{why}. {_provenance(self)}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(str(self))}</p>"

    def to_json(self) -> dict[str, Any]:
        """Return the estimate with its provenance, as JSON values; an infinite end is null."""
        return _provenance_json(self) | {
            "lower": self.lower,
            "upper": None if np.isinf(self.upper) else self.upper,
            "witness": self.witness.to_json() if self.witness else None,
            "reason": self.reason or None,
        }


def text_below(value: float, digits: int = 9) -> str:
    """Write a lower end with so many decimals, rounded down: what is printed is still a lower end."""
    return _text(value, digits, ROUND_FLOOR)


def text_above(value: float, digits: int = 9) -> str:
    """Write an upper end with so many decimals, rounded up: what is printed is still an upper end."""
    return _text(value, digits, ROUND_CEILING)


def _text(value: float, digits: int, rounding: str) -> str:
    if np.isinf(value):
        return str(value)
    with localcontext(prec=400):
        return f"{Decimal(value).quantize(Decimal(1).scaleb(-digits), rounding):f}"


def _provenance(result: Answer | Estimate) -> str:
    assurance = result.assurance
    checked = f"{assurance.name.lower()}, " if assurance is not None else ""
    return f"[{result.backend}, {checked}{result.seconds:.3g} s]"


def _provenance_json(result: Answer | Estimate) -> dict[str, Any]:
    network = result.query.network
    return {
        "query": result.query.to_json(),
        "network": {"name": network.name, "sha256": network.sha256},
        "backend": result.backend,
        "assurance": result.assurance.name if result.assurance is not None else None,
        "seconds": result.seconds,
        "qrobust": result.version,
    }


def statement(query: Query, claim: Claim) -> str:
    """Say in a sentence what a claim claims, with its quantifiers."""
    if isinstance(claim, Unknown):
        found = [f"{name} {end:.9g}" for name, end in (("at least", claim.lower), ("at most", claim.upper)) if end is not None]
        bounds = f"; the quantity asked about is {' and '.join(found)}" if found else ""
        return f"{claim.reason}{bounds}."
    who, where, rule = str(query.network), str(query.domain), query.parameters.rule
    if isinstance(query, ConfidenceQuery):
        effect = f"moves a confidence of {who} by more than {float(query.epsilon):g}"
    else:
        assert isinstance(query, LabelQuery)
        margin = f" that had margin {float(query.sigma):g}" if query.sigma else ""
        effect = f"changes a label of {who}{margin}"
    at = f"at {where}" if query.local else f"anywhere in {where}"
    if isinstance(claim, Robust):
        return f"{at}, no choice of parameters ({rule}) {effect}."
    example = claim.counterexample
    return f"at input ({_inputs(query.network, example)}) a choice of parameters ({rule}) {effect}."


def _inputs(network: Network, example: Counterexample) -> str:
    return shortened([f"{network.feature_name(i)} = {float(value):.9g}" for i, value in enumerate(example.x)], ", ")


def quantity(query: AnyQuery) -> str:
    """Name the quantity that an estimate is about."""
    where = str(query.domain)
    match query:
        case EpsilonEstimate():
            return f"the greatest change of a {query.of.value} over {where} ({query.parameters.rule})"
        case SigmaEstimate():
            label = query.network.class_name(query.label)
            return f"the greatest margin of a changed label {label} over {where} ({query.parameters.rule})"
        case GreatestDelta():
            margin = f" of margin {float(query.sigma):g}" if query.sigma else ""
            return f"the greatest delta that changes no label{margin} over {where}"
    raise TypeError(f"{type(query).__name__} is no estimate")
