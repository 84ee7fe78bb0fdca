"""One dataclass per robustness definition of Murthy, Das and Islam 2019 (arXiv 1903.10672), its formula in the docstring.

Notation  p0: the stored parameters; P: the parameter box; D: the inputs; f_p(x): the confidence (a vector for k classes);
          N_p(x): the label. One sigmoid: N = 1 iff f > level. k classes: N = argmax f, the lowest index on a tie.
Margin    m(x) = abs(f_p0(x) - level) for one sigmoid. For k classes with label a it is the least over the rivals j of
          f_a / (f_a + f_j) - 1/2, all at p0: the distance from a tie with the strongest rival, which for k = 2 is the
          paper's own and for every k is a function of the difference of two logits.
Change    for k classes abs(f_p0(x) - f_p(x)) is the greatest change of any class's confidence.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, fields
from enum import StrEnum
from fractions import Fraction
from typing import Any, ClassVar

from qrobust.domains import Domain, ParameterBox, Point
from qrobust.errors import DomainError, NumberError, ShapeError
from qrobust.exact import to_fraction
from qrobust.network import Network, Output
from qrobust.perturbations import Absolute

HALF = Fraction(1, 2)
_SHARED_FIELDS = ("network", "parameters", "domain")


@dataclass(frozen=True, eq=False)
class Query(ABC):
    """What every query over a parameter box has. Raises ShapeError, NumberError, DomainError if parts do not fit."""

    network: Network
    parameters: ParameterBox
    domain: Domain
    local: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_domain(self.network, self.domain, self.local)
        self.parameters.check_fits(self.network)

    def to_json(self) -> dict[str, Any]:
        """Return what identifies the query, as JSON values."""
        own = {f.name: str(getattr(self, f.name)) for f in fields(self) if f.name not in _SHARED_FIELDS}
        box = {"rule": self.parameters.rule, "sha256": self.parameters.sha256}
        return {"kind": type(self).__name__, "domain": self.domain.to_json(), "parameters": box} | own


def _check_domain(network: Network, domain: Domain, local: bool) -> None:
    if domain.inputs != network.inputs:
        raise ShapeError(f"{domain} has {domain.inputs} numbers, the network takes {network.inputs}")
    if local and not isinstance(domain, Point):
        raise DomainError(f"a local query is about one point, not {domain}: use the global one")


def _exact_field(query: object, name: str, lower: int, upper: int, *, open_ends: bool = False) -> None:
    value = to_fraction(getattr(query, name))
    inside = lower < value < upper if open_ends else lower <= value <= upper
    if not inside:
        between = "strictly between" if open_ends else "between"
        raise NumberError(f"{name} is {float(value):g}, it must lie {between} {lower} and {upper}")
    object.__setattr__(query, name, value)


def _check_level(query: LabelQuery | SigmaEstimate | GreatestDelta) -> None:
    _exact_field(query, "level", 0, 1, open_ends=True)
    if query.network.output is Output.SOFTMAX and query.level != HALF:
        raise NumberError("a softmax network has no decision level: its label is the class of greatest confidence")


@dataclass(frozen=True, eq=False)
class ConfidenceQuery(Query):
    """Does no confidence move by more than epsilon? `epsilon` is exact: a float counts as the number it stores."""

    epsilon: Fraction

    def __post_init__(self) -> None:
        super().__post_init__()
        _exact_field(self, "epsilon", 0, 1)


@dataclass(frozen=True, eq=False)
class LocalConfidence(ConfidenceQuery):
    """Definition 1, equation 6: for all p in P: abs(f_p0(x0) - f_p(x0)) <= epsilon.

    At this input, no rounding within the box moves any confidence by more than epsilon.
    """

    local: ClassVar[bool] = True


@dataclass(frozen=True, eq=False)
class GlobalConfidence(ConfidenceQuery):
    """Definition 2, equation 7: for all x in D, p in P: abs(f_p0(x) - f_p(x)) <= epsilon.

    Anywhere in the domain, no rounding within the box moves any confidence by more than epsilon.
    """


@dataclass(frozen=True, eq=False)
class LabelQuery(Query):
    """Does no label change that had margin sigma? `sigma` is 0 where the definition has none."""

    level: Fraction = HALF
    sigma: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_level(self)
        _exact_field(self, "sigma", 0, 1)


@dataclass(frozen=True, eq=False)
class LocalLabel(LabelQuery):
    """Definition 3, equation 8 (mended): for all p in P: N_p0(x0) = N_p(x0) (if m(x0) >= sigma).

    At this input, no rounding within the box changes the label.
    """

    local: ClassVar[bool] = True


@dataclass(frozen=True, eq=False)
class GlobalLabel(LabelQuery):
    """Definition 4, equation 9 (mended): for all x in D, p in P: N_p0(x) = N_p(x).

    Anywhere in the domain, no rounding within the box changes a label.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma:
            raise NumberError("a global label query has no sigma: use MarginLabel")


@dataclass(frozen=True, eq=False)
class MarginLabel(LabelQuery):
    """Definition 5, equation 10 (mended): for all x in D, p in P with m(x) >= sigma: N_p0(x) = N_p(x).

    Anywhere in the domain, no rounding within the box changes a label that had margin sigma.
    """


class ChangeOf(StrEnum):
    """Whose change is meant: a confidence's, or a logit's (a raw output, before sigmoid or softmax)."""

    CONFIDENCE = "confidence"
    LOGIT = "logit"


@dataclass(frozen=True, eq=False)
class EpsilonEstimate(Query):
    """The greatest change of a confidence: sup abs(f_p0(x) - f_p(x)) over x in D, p in P.

    With `of` LOGIT: sup over the rows i as well of abs(z_p0(x)_i - z_p(x)_i), z the logits; it may exceed 1.
    """

    of: ChangeOf = ChangeOf.CONFIDENCE

    @property
    def of_logits(self) -> bool:
        """Whether the change of a logit is meant."""
        return self.of is ChangeOf.LOGIT


@dataclass(frozen=True, eq=False)
class LocalEpsilon(EpsilonEstimate):
    """Equation 11: max over p in P of abs(f_p0(x0) - f_p(x0)), the least epsilon for which definition 1 holds."""

    local: ClassVar[bool] = True


@dataclass(frozen=True, eq=False)
class GlobalEpsilon(EpsilonEstimate):
    """Equation 12: max over x in D, p in P of abs(f_p0(x) - f_p(x)), the least epsilon for which definition 2 holds."""


@dataclass(frozen=True, eq=False)
class SigmaEstimate(Query):
    """Equation 13 (mended): sup of m(x) over x in D, p in P with N_p0(x) = label and N_p(x) != label; 0 if there is none.

    For every sigma above it no input of that label and margin sigma changes its label (definition 5).
    """

    label: int
    level: Fraction = HALF

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_level(self)
        if not 0 <= self.label < self.network.class_count:
            raise NumberError(f"label {self.label} is not one of the {self.network.class_count} classes, counted from 0")


@dataclass(frozen=True, eq=False)
class GreatestDelta:
    """sup of delta such that for all x in D, abs(p - p0) <= delta with m(x) >= sigma: N_p0(x) = N_p(x).

    The coarsest rounding of every parameter that changes no label (of margin sigma), at a point or over a domain.
    """

    network: Network
    domain: Domain
    sigma: Fraction = Fraction(0)
    level: Fraction = HALF
    weights: bool = True
    biases: bool = True

    def __post_init__(self) -> None:
        _check_domain(self.network, self.domain, local=False)
        _check_level(self)
        _exact_field(self, "sigma", 0, 1)
        Absolute(0.0, self.weights, self.biases)

    def to_json(self) -> dict[str, Any]:
        """Return what identifies the query, as JSON values."""
        own = {f.name: str(getattr(self, f.name)) for f in fields(self) if f.name not in _SHARED_FIELDS}
        return {"kind": type(self).__name__, "domain": self.domain.to_json()} | own

    def at(self, delta: float) -> LabelQuery:
        """Return the label query for one delta."""
        box = Absolute(delta, self.weights, self.biases).around(self.network)
        kind = LocalLabel if isinstance(self.domain, Point) else MarginLabel
        return kind(self.network, box, self.domain, level=self.level, sigma=self.sigma)
