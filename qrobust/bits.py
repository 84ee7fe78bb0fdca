"""The fewest bits: the smallest uniform width, and widths layer by layer, at which every rounding keeps a property.

Accepts   any query over a parameter box; a family of formats that differ in their width
Gives     each width with its verdict, and the bits that the parameters then take
Method    bisection over uniform widths; from the least one proved, each layer, those with the most parameters first, is
          narrowed by bisection while the others stay
Property  each choice of widths that is returned as proved was proved itself, over its own box. That wider formats have smaller
          boxes is taken for granted by the search alone: where it does not hold, a smaller choice may be missed
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qrobust.answers import VERSION, Answer, Unknown, Verdict
from qrobust.cache import Kind, ResultCache, Task
from qrobust.certificates import Certificate
from qrobust.domains import ParameterBox, Point, Points
from qrobust.errors import NumberError
from qrobust.layers import Activation, Layer
from qrobust.network import Network
from qrobust.parallel import answer_all, check_points
from qrobust.perturbations import Rounding
from qrobust.quantization import FixedPoint, OneFormat, PerLayerScheme, Scheme, parse_format
from qrobust.quantization.grids import Kept
from qrobust.queries import LabelQuery, Query
from qrobust.search import Budget
from qrobust.solve import Session, query_at

FLOAT_BITS = 32  # of a parameter that stays in float, and of every one before
LEAST, MOST = 2, 16  # widths that are tried unless said otherwise
LIMITS = {"int": (2, 32), "q": (2, 32), "pow2": (2, 8)}  # the widths that each format has
FAMILY = re.compile(r"(int|q|pow2)((?:-.+)?)")


@dataclass(frozen=True)
class Family:
    """Formats that differ in their width: a head and options, as in int, int-per-channel, q-floor-wrap, pow2.

    Of q (fixed point) a layer of width w takes Qm.n with m + n = w - 1 and the least m at which none of its numbers
    overflows.
    Raises    NumberError for a text that names no family
    """

    text: str

    def __post_init__(self) -> None:
        match = FAMILY.fullmatch(self.text)
        if match is None:
            raise NumberError(
                f"{self.text!r:.40} names no formats of several widths: give int, q or pow2 without a width, and options as in"
                " int-per-channel"
            )
        self._format(LIMITS[self.head][0] + 1, 0)  # raises for options that are not known

    @property
    def head(self) -> str:
        return self.text.partition("-")[0]

    @property
    def most(self) -> int:
        """The greatest width that is tried unless said otherwise."""
        return min(MOST, LIMITS[self.head][1])

    def layer_format(self, layer: Layer, width: int) -> OneFormat:
        """Return the format of one layer. Raises NumberError for a width that the format does not have."""
        if self.head != "q":
            return self._format(width, 0)
        for integer_bits in range(width):
            found = self._format(width, integer_bits)
            grids = found.layer_grids(layer)
            arrays = (layer.weight, layer.bias)
            if not any(grid.overflowed(values).any() for grid, values in zip(grids, arrays, strict=True)):
                return found
        return found

    def scheme(self, network: Network, widths: tuple[int, ...]) -> Scheme:
        """Return the scheme with these widths, one for each layer that has parameters."""
        layers = _with_parameters(network)
        formats = tuple(self.layer_format(layer, width) for layer, width in zip(layers, widths, strict=True))
        return formats[0] if len(set(formats)) == 1 else PerLayerScheme(formats)

    def _format(self, width: int, integer_bits: int) -> OneFormat:
        options = self.text[len(self.head) :]
        head = {"int": f"int{width}", "q": f"q{integer_bits}.{width - 1 - integer_bits}", "pow2": f"pow2-bits{width}"}
        found = parse_format(head[self.head] + options)
        assert isinstance(found, FixedPoint) or self.head != "q"
        return found


@dataclass(frozen=True, eq=False)
class Trial:
    """One choice of widths, one for each layer with parameters, and what was found.

    `bits` counts all parameters, those that stay in float with 32; scales and zero points are not among them.
    """

    widths: tuple[int, ...]
    scheme: Scheme
    bits: int
    answer: Answer

    @property
    def proved(self) -> bool:
        return self.answer.verdict is Verdict.ROBUST

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "widths": list(self.widths),
            "scheme": str(self.scheme),
            "bits": self.bits,
            "verdict": self.answer.verdict.value,
            "assurance": None if self.answer.assurance is None else self.answer.assurance.name,
            "reason": self.answer.claim.reason if isinstance(self.answer.claim, Unknown) else None,
            "seconds": self.answer.seconds,
        }


@dataclass(frozen=True, eq=False)
class FewestBits:
    """What the search found. `uniform` and `layers` are proved, or None if no width that was tried was.

    `below` is the trial one bit below `uniform`, or at the greatest width if none was proved; None if nothing is below.
    """

    network: Network
    family: Family
    uniform: Trial | None
    below: Trial | None
    layers: Trial | None
    trials: tuple[Trial, ...]
    certificate: Certificate | None
    seconds: float
    version: str = VERSION

    @property
    def float_bits(self) -> int:
        """The bits of all parameters in float32."""
        return FLOAT_BITS * self.network.parameter_count

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        kept = {"uniform": self.uniform, "below": self.below, "layers": self.layers}
        example = None if self.below is None else self.below.answer.counterexample
        return {
            "qrobust": self.version,
            "network": self.network.sha256,
            "family": self.family.text,
            "parameters": [int(layer.weight.size + layer.bias.size) for layer in _with_parameters(self.network)],
            "float32_bits": self.float_bits,
            **{name: None if trial is None else trial.to_json() for name, trial in kept.items()},
            "counterexample": None if example is None else example.to_json(),
            "certified": self.certificate is not None,
            "trials": [trial.to_json() for trial in self.trials],
            "seconds": self.seconds,
        }


def stored_bits(network: Network, scheme: Scheme, widths: tuple[int, ...]) -> int:
    """Return the bits that all parameters take; scales apart."""
    pairs = [(layer, pair) for layer, pair in zip(network.layers, scheme.grids(network), strict=True) if layer.weight.size]
    total = 0
    for (layer, grids), width in zip(pairs, widths, strict=True):
        for values, grid in zip((layer.weight, layer.bias), grids, strict=True):
            total += values.size * (FLOAT_BITS if isinstance(grid, Kept) else width)
    return total


@dataclass(frozen=True)
class Asking:
    """How each choice of widths is asked about: `budget` is for each question; the rest as `parallel.answer_all`."""

    backend: str = "auto"
    budget: Budget = field(default_factory=Budget)
    jobs: int = 1
    scheduler: str | None = None
    cache: ResultCache | None = None

    def answer(self, query: Query, session: Session) -> Answer:
        """Answer one question; points are shared among processes where there are several."""
        if isinstance(query.domain, Points) and (self.jobs > 1 or self.scheduler is not None):
            return check_points(
                query,
                backend=self.backend,
                budget=self.budget,
                jobs=self.jobs,
                scheduler=self.scheduler,
                cache=self.cache,
            )
        (found,) = answer_all([Task(query, Kind.CHECK, self.backend, self.budget)], session=session, cache=self.cache)
        assert isinstance(found, Answer)
        return found


def fewest_bits(
    network: Network,
    family: Family,
    question: Callable[[ParameterBox], Query],
    *,
    least: int = LEAST,
    most: int = MOST,
    asking: Asking | None = None,
    session: Session | None = None,
    say: Callable[[Trial], object] = lambda _: None,
) -> FewestBits:
    """Return the fewest bits at which every rounding of a family keeps a property.

    Accepts   question: the query about a parameter box; `say` is told of each trial
    Raises    NumberError for widths that the family does not have, and what `Session.check` raises
    """
    low, high = LIMITS[family.head]
    if not low <= least <= most <= high:
        raise NumberError(f"widths from {least} to {most}: {family.text} takes {low} to {high} bits, the least first")
    search = _Search(network, family, question, asking or Asking(), session or Session(), say)
    started = time.monotonic()
    count = len(_with_parameters(network))
    uniform = search.least_proved([least] * count, [most] * count, range(count))
    if uniform is None:
        return search.result(None, search.trials[(most,) * count], None, started)
    below = search.trials.get(tuple(width - 1 for width in uniform.widths))
    layers = uniform
    sizes = [layer.weight.size for layer in _with_parameters(network)]
    for place in np.argsort([-size for size in sizes], kind="stable").tolist() if count > 1 else []:
        floor = [least if i == place else width for i, width in enumerate(layers.widths)]
        layers = search.least_proved(floor, list(layers.widths), [place]) or layers
    return search.result(uniform, below, layers, started)


@dataclass(eq=False)
class _Search:
    """The trials so far, by their widths."""

    network: Network
    family: Family
    question: Callable[[ParameterBox], Query]
    asking: Asking
    session: Session
    say: Callable[[Trial], object]

    def __post_init__(self) -> None:
        self.trials: dict[tuple[int, ...], Trial] = {}

    def tried(self, widths: tuple[int, ...]) -> Trial:
        """Ask about one choice of widths, once."""
        if widths not in self.trials:
            scheme = self.family.scheme(self.network, widths)
            query = self.question(Rounding(scheme).around(self.network))
            answer = self.asking.answer(query, self.session)
            self.trials[widths] = Trial(widths, scheme, stored_bits(self.network, scheme, widths), answer)
            self.say(self.trials[widths])
        return self.trials[widths]

    def least_proved(self, low: list[int], high: list[int], places: Any) -> Trial | None:
        """Move these places together from `high` downwards, by bisection; None if `high` itself is not proved."""
        best = self.tried(tuple(high))
        if not best.proved:
            return None
        failed, proved = low[places[0]] - 1, high[places[0]]
        while proved - failed > 1:
            middle = (failed + proved) // 2
            trial = self.tried(tuple(middle if i in places else width for i, width in enumerate(best.widths)))
            if trial.proved:
                best, proved = trial, middle
            else:
                failed = middle
        return best

    def result(self, uniform: Trial | None, below: Trial | None, layers: Trial | None, started: float) -> FewestBits:
        """Return what was found, with the certificate of the best widths where one can be had."""
        proof = None
        if layers is not None and certificate_why_not(layers.answer.query) is None and is_of_one_input(layers.answer.query):
            _, proof = self.session.certify(layers.answer.query, self.asking.budget)
        trials = tuple(self.trials.values())
        return FewestBits(self.network, self.family, uniform, below, layers, trials, proof, time.monotonic() - started)


def certificate_why_not(query: Query) -> str | None:
    """Return None if proofs of this query can be kept as a certificate, else the reason."""
    network = query.network
    if not isinstance(query, LabelQuery) or query.sigma:
        return "certificates are kept for labels without a margin alone"
    if not isinstance(query.domain, Point | Points):
        return "certificates are kept for one input, and for the rows of a data set"
    piecewise = all(layer.activation in (Activation.LINEAR, Activation.RELU) for layer in network.core.layers)
    if not (network.core.is_dense and piecewise):
        return "certificates are kept for dense ReLU networks alone"
    return None


def is_of_one_input(query: Query) -> bool:
    """Whether one certificate proves all of it."""
    return isinstance(query.domain, Point)


def row_certificates(found: FewestBits, asking: Asking) -> Iterator[tuple[int, Certificate | None]]:
    """Yield each row of the data set, from 1, with the certificate of the best widths there; None if none was found in time."""
    query, session = None if found.layers is None else found.layers.answer.query, Session()
    if query is not None and isinstance(query.domain, Points) and certificate_why_not(query) is None:
        for index in range(len(query.domain.values)):
            yield index + 1, session.certify(query_at(query, index), asking.budget)[1]


def _with_parameters(network: Network) -> list[Layer]:
    return [layer for layer in network.layers if layer.weight.size]
