"""A query about a network f and its quantized copy g in VNN-LIB 2.0, for verifiers of networks: text, and both as ONNX.

Accepts   label queries (with margins) and confidence queries, at a point, in a box, or in a box cut by inequalities
Gives     the text: satisfiable iff, for some input of the domain, g does what the query forbids the parameters to do
Property  exact: every constant is written as the decimal that it is, variables are of type real, ties between classes are
          decided as qrobust decides them. One copy is asked about, so "unsatisfiable" says nothing of other parameters
          between the two networks; "satisfiable" is a violation for every box that holds g.
Source    github.com/VNNLIB/VNNLIB-Standard, version 2.0 of the query language

Labels at level 1/2 without margin are asked of logits; other queries of confidences, in which margins are linear.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np

from qrobust.domains import Domain, InputBox, Point, Polytope
from qrobust.errors import UnsupportedError
from qrobust.files import write_together
from qrobust.formats.onnx_write import input_shape, onnx_bytes
from qrobust.formats.untrusted import one_line
from qrobust.network import Network, Output
from qrobust.perturbations import Hull
from qrobust.queries import HALF, ConfidenceQuery, LabelQuery, Query


def write_vnnlib(query: Query, copy: Network, path: Path) -> tuple[Path, Path, Path]:
    """Write the text, and beside it NAME_f.onnx and NAME_g.onnx, all or none; return the three paths, the text's first.

    Numbers are float32 where every one of both networks is, else double, so nothing is rounded.
    Raises    UnsupportedError, ShapeError, OutputError, BackendUnavailableError
    """
    text, networks = to_vnnlib(query, copy), (query.network, copy)
    logits = asks_logits(query)
    try:
        contents = [onnx_bytes(network, logits=logits) for network in networks]
    except UnsupportedError:
        contents = [onnx_bytes(network, logits=logits, double=True) for network in networks]
    files = [path.with_name(f"{path.stem}_{name}.onnx") for name in "fg"]
    write_together(dict(zip(files, contents, strict=True)) | {path: text.encode()})
    return path, files[0], files[1]


def asks_logits(query: Query) -> bool:
    """Whether the outputs of the text's networks are logits; otherwise they are confidences."""
    return isinstance(query, LabelQuery) and query.sigma == 0 and query.level == HALF


def to_vnnlib(query: Query, copy: Network) -> str:
    """Return the text. Raises UnsupportedError, and ShapeError if the copy is no network of the same layers."""
    Hull(copy).around(query.network)
    if query.network.output is not copy.output:
        raise UnsupportedError("one network ends in a sigmoid, the other in a softmax: labels cannot be compared")
    if not isinstance(query, LabelQuery | ConfidenceQuery):
        raise UnsupportedError(f"VNN-LIB cannot express {type(query).__name__}: ask about labels or about one eps")
    shape = (1, *input_shape(query.network))
    sizes, rows = ", ".join(map(str, shape)), query.network.layers[-1].outputs
    places = [",".join(map(str, place)) for place in product(*(range(size) for size in shape))]
    lines = [
        *_header(query, copy),
        "(vnnlib-version <2.0>)",
        f"(declare-network f (declare-input X real [{sizes}]) (declare-output F real [1, {rows}]))",
        f"(declare-network g (isomorphic-to f) (declare-input Z real [{sizes}]) (declare-output G real [1, {rows}]))",
        *(f"(assert (== X[{place}] Z[{place}]))" for place in places),
        *(f"(assert {line})" for line in _domain(query.domain, places)),
        f"(assert {_join('or', list(_violations(query)))})",
    ]
    return "\n".join(lines) + "\n"


def decimal(value: Fraction) -> str:
    """Write an exact decimal without an exponent. Raises UnsupportedError if the number has none, as 1/3."""
    twos = (value.denominator & -value.denominator).bit_length() - 1
    rest, fives = value.denominator >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        raise UnsupportedError(f"{value} is no decimal, and VNN-LIB has no fractions: write for example 0.33")
    digits = max(twos, fives, 1)
    text = str(abs(value.numerator) * 10**digits // value.denominator).rjust(digits + 1, "0")
    return f"{'-' if value < 0 else ''}{text[:-digits]}.{text[-digits:]}"


def _header(query: Query, copy: Network) -> list[str]:
    own = ", ".join(f"{key} {value}" for key, value in query.to_json().items() if isinstance(value, str))
    of = "logits" if asks_logits(query) else "confidences"
    return [
        f"; qrobust: {own}; between two networks, whose outputs are {of}",
        f"; f: {one_line(query.network.name) or 'a network without a name'}, sha256 {query.network.sha256}",
        f"; g: {one_line(copy.name) or 'a network without a name'}, sha256 {copy.sha256}",
        f"; domain: {query.domain}; satisfiable iff g violates the query",
    ]


def _domain(domain: Domain, places: list[str]) -> Iterator[str]:
    if not isinstance(domain, Point | InputBox | Polytope):
        raise UnsupportedError(f"VNN-LIB text is written for a point or a box, not for {domain}")
    ends = zip(places, domain.box.lower.tolist(), domain.box.upper.tolist(), strict=True)
    for place, lower, upper in ends:
        if lower == upper:
            yield f"(== X[{place}] {decimal(Fraction(lower))})"
        else:
            yield f"(>= X[{place}] {decimal(Fraction(lower))})"
            yield f"(<= X[{place}] {decimal(Fraction(upper))})"
    matrix, limits = domain.inequalities
    for row, limit in zip(np.asarray(matrix).tolist(), np.asarray(limits).tolist(), strict=True):
        used = [pair for pair in zip(row, places, strict=True) if pair[0]] or [(0.0, places[0])]
        terms = [f"(* {decimal(Fraction(factor))} X[{place}])" for factor, place in used]
        total = f"(+ {' '.join(terms)})" if len(terms) > 1 else "".join(terms)
        yield f"(<= {total} {decimal(Fraction(limit))})"


def _violations(query: LabelQuery | ConfidenceQuery) -> Iterator[str]:
    """Yield formulas over F and G; one of them holds iff g does at the input what the query forbids."""
    rows = range(query.network.layers[-1].outputs)
    if isinstance(query, ConfidenceQuery):
        epsilon = decimal(query.epsilon)
        for k in rows:
            yield f"(> (- F[0,{k}] G[0,{k}]) {epsilon})"
            yield f"(> (- G[0,{k}] F[0,{k}]) {epsilon})"
    elif query.network.output is Output.SIGMOID:
        level = Fraction(0) if asks_logits(query) else query.level
        high, low, at = (decimal(value) for value in (level + query.sigma, level - query.sigma, level))
        yield _join("and", [f"(> F[0,0] {at})", f"(>= F[0,0] {high})", f"(<= G[0,0] {at})"])
        yield _join("and", [f"(<= F[0,0] {low})", f"(> G[0,0] {at})"])
    else:
        for label in rows:
            yield _changed_from(label, [rival for rival in rows if rival != label], query.sigma)


def _changed_from(label: int, rivals: list[int], sigma: Fraction) -> str:
    """Say that f's label is this one, with the margin, and g's is another. The lower of two equal classes wins."""
    held = [f"({'>' if rival < label else '>='} F[0,{label}] F[0,{rival}])" for rival in rivals]
    if sigma:
        own, other = decimal(HALF - sigma), decimal(HALF + sigma)
        held += [f"(>= (* {own} F[0,{label}]) (* {other} F[0,{rival}]))" for rival in rivals]
    lost = [f"({'>=' if rival < label else '>'} G[0,{rival}] G[0,{label}])" for rival in rivals]
    return _join("and", [*held, _join("or", lost)])


def _join(connective: str, parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"({connective} {' '.join(parts)})"
