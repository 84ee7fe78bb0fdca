"""What the commands' options say, as networks, boxes, domains and queries; every fault is one line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path

import numpy as np

from qrobust.answers import AnyQuery
from qrobust.arrays import Arrays
from qrobust.cache import ResultCache
from qrobust.cli import show
from qrobust.domains import Domain, InputBox, ParameterBox, Point, Points, Polytope
from qrobust.errors import DomainError, NumberError, QRobustError, ShapeError, UnsupportedError
from qrobust.exact import to_fraction
from qrobust.formats import load, load_program
from qrobust.formats.load import PROGRAM_READERS
from qrobust.formats.table import check_width, read_points
from qrobust.integer.program import IntegerProgram
from qrobust.interval import FloatArray
from qrobust.memory import GIB
from qrobust.network import Network
from qrobust.perturbations import Absolute, Copy, HalfStep, Hull, PerLayer, Rounding
from qrobust.quantization import parse_scheme
from qrobust.queries import (
    ChangeOf,
    GlobalConfidence,
    GlobalEpsilon,
    GlobalLabel,
    LocalConfidence,
    LocalEpsilon,
    LocalLabel,
    MarginLabel,
    Query,
    SigmaEstimate,
)
from qrobust.search import Budget

CUT = re.compile(r"(.*?)(<=|>=)(.*)")


class What(StrEnum):
    """What is estimated."""

    EPS = "eps"
    LOGITS = "logits"
    SIGMA = "sigma"
    DELTA = "delta"


class UsageError(QRobustError, ValueError):
    """Options that do not go together."""


@dataclass(frozen=True)
class Where:
    """Where a query is asked, as the options say it."""

    point: str | None = None
    points: Path | None = None
    box: str | None = None
    cuts: tuple[str, ...] = ()


def read_model(path: Path, trust_pickle: bool) -> Network:
    """Read the model."""
    return load(path, trust_pickle=trust_pickle)


def read_shipped(path: Path, trust_pickle: bool) -> Network | IntegerProgram:
    """Read what ships: an integer program where the file holds one, else a network. Raises what `load` raises."""
    if path.suffix.lower() in PROGRAM_READERS:
        try:
            return load_program(path)
        except UnsupportedError:  # of floats, or of what is no program: what is wrong with it as a network is said
            pass
    return load(path, trust_pickle=trust_pickle)


def read_budget(seconds: float, gib: float, arrays: str | None) -> Budget:
    """Return what --timeout, --memory and --arrays allow. Raises NumberError, BackendUnavailableError."""
    if not 0 < gib < 2**20:
        raise NumberError(f"--memory is {gib:g}, give GiB above 0, as in --memory 4")
    return Budget(seconds, memory=int(gib * GIB), arrays=None if arrays is None else Arrays.named(arrays))


def check_sharing(jobs: int, scheduler: str | None) -> None:
    """Raise UsageError if inputs are to be shared both here and on a cluster."""
    if scheduler is not None and jobs > 1:
        raise UsageError("--jobs and --scheduler do not go together: give one of them")


def cache_in(folder: Path | None) -> ResultCache | None:
    """Return the cache that --cache names."""
    return None if folder is None else ResultCache(folder, show.warning)


def numbers(text: str, what: str) -> list[float]:
    """Return the numbers of a comma-separated list. Raises NumberError naming the one that is wrong."""
    values = []
    for place, cell in enumerate(text.split(","), start=1):
        try:
            values.append(float(to_fraction(cell.strip())))
        except (NumberError, OverflowError):
            raise NumberError(f"{what}: number {place} is {cell.strip()!r}, give numbers such as 20.5, 2") from None
    return values


@dataclass(frozen=True)
class Rule:
    """The options that say which parameters are allowed."""

    delta: float | Sequence[float] | None = None
    per_layer: str | None = None
    against: Path | None = None
    weights_only: bool = False
    bits: int | None = None
    per_channel: bool = False
    scheme: str | None = None
    copy: Path | None = None


def parameter_boxes(network: Network, rule: Rule, trust_pickle: bool) -> list[ParameterBox]:
    """Return one parameter box for each --delta, or the one that another option gives."""
    others = (rule.per_layer, rule.against, rule.bits, rule.scheme, rule.copy)
    deltas = (rule.delta,) if isinstance(rule.delta, float) else tuple(rule.delta or ())
    if bool(deltas) + sum(option is not None for option in others) != 1:
        raise UsageError(
            "say which parameters are allowed: give --delta, --delta-per-layer, --bits, --scheme, --against or --copy, one of"
            " them"
        )
    if rule.per_channel and rule.bits is None:
        raise UsageError("--per-channel goes with --bits: give for example --bits 8 --per-channel")
    if rule.weights_only and (rule.bits is not None or rule.scheme is not None):
        raise UsageError("--weights-only goes with neither --bits nor --scheme: name a scheme with bias-float, as int8 has")
    if rule.bits is not None:
        return [HalfStep(rule.bits, rule.per_channel).around(network)]
    if rule.scheme is not None:
        return [Rounding(parse_scheme(rule.scheme)).around(network)]
    if rule.copy is not None:
        return [Copy(load(rule.copy, trust_pickle=trust_pickle)).around(network)]
    if rule.per_layer is not None:
        each = tuple(numbers(rule.per_layer, "--delta-per-layer"))
        return [PerLayer(each, biases=not rule.weights_only).around(network)]
    if rule.against is not None:
        return [Hull(load(rule.against, trust_pickle=trust_pickle)).around(network)]
    return [Absolute(delta, biases=not rule.weights_only).around(network) for delta in deltas]


def parameter_box(network: Network, rule: Rule, trust_pickle: bool) -> ParameterBox:
    """Return the parameter box of options that name only one."""
    (box,) = parameter_boxes(network, rule, trust_pickle)
    return box


def domain_of(network: Network, where: Where) -> Domain:
    """Return the inputs that are asked about: a point, points, or a box (the model's own ranges by default) with cuts."""
    if where.point is not None and where.points is not None:
        raise UsageError("--point and --points do not go together: give one of them")
    inputs = points_of(network, where)
    box = _box(network, where) if where.box or (inputs is None) or where.cuts else None
    if inputs is None:
        assert box is not None
        return box
    if box is not None:
        _check_inside(network, inputs, box)
    return Point(inputs[0]) if where.point is not None else Points(inputs)


def points_of(network: Network, where: Where) -> FloatArray | None:
    """Return the named points, shape (points, inputs), or None if the options name none."""
    if where.point is not None:
        values = np.array([numbers(where.point, "--point")])
        check_width(values, network)
    elif where.points is not None:
        values = read_points(where.points, network)
    else:
        return None
    if not np.isfinite(values).all():
        raise NumberError("a point holds a number that is not finite")
    return values


def _box(network: Network, where: Where) -> InputBox | Polytope:
    if where.box is None:
        box = InputBox.of_features(network)
    else:
        sides = [side.split(":") for side in where.box.split(",")]
        if any(len(side) != 2 for side in sides):
            raise UsageError(f"--box {where.box!r} is not read: write lower:upper for each input, as in '6.3:20.5, 2:3.9'")
        if len(sides) != network.inputs:
            raise ShapeError(f"--box has {len(sides)} sides, the model takes {network.inputs} inputs")
        ends = numbers(",".join(end for side in sides for end in side), "--box")
        box = InputBox(ends[0::2], ends[1::2])
    if not where.cuts:
        return box
    rows = [_cut(network, text) for text in where.cuts]
    return Polytope(box, [row for row, _ in rows], [limit for _, limit in rows])


def _cut(network: Network, text: str) -> tuple[list[float], float]:
    """Read one linear inequality in x1, x2, ... such as '2*x1 - x2 <= 3'."""
    match = CUT.fullmatch(text)
    fault = UsageError(f"--where {text!r} is not read: write for example '2*x1 - 0.5*x2 <= 3'")
    if match is None:
        raise fault
    row, sign = [0.0] * network.inputs, 1.0 if match[2] == "<=" else -1.0
    terms = re.sub(r"\s+", "", match[1]).replace("-", "+-").split("+")
    for term in (t for t in terms if t):
        factor, _, name = term.rpartition("*")
        if name.startswith("-"):
            factor, name = "-1", name[1:]
        if not re.fullmatch(r"x\d+", name) or not 1 <= int(name[1:]) <= network.inputs:
            raise fault
        row[int(name[1:]) - 1] += sign * numbers(factor or "1", "--where")[0]
    return row, sign * numbers(match[3], "--where")[0]


def _check_inside(network: Network, inputs: FloatArray, box: Domain) -> None:
    for number, values in enumerate(inputs, start=1):
        for index, value in enumerate(values.tolist()):
            low, high = float(box.box.lower[index]), float(box.box.upper[index])
            if not low <= value <= high:
                raise DomainError(
                    f"point {number} lies outside the domain: {network.feature_name(index)} is {value:g},"
                    f" the box allows [{low:g}, {high:g}]"
                )
        if not box.contains([Fraction(v) for v in values.tolist()]):
            raise DomainError(f"point {number} lies outside the domain: it breaks a --where inequality")


def decision(
    network: Network,
    parameters: ParameterBox,
    domain: Domain,
    eps: str | None,
    label: bool,
    sigma: str | None,
    level: str,
) -> Query:
    """Return the query of --eps, --label or --sigma, about a point or about more. Raises UsageError unless one is given."""
    if sum([eps is not None, label, sigma is not None]) != 1:
        raise UsageError("say what is asked: give --eps, --label or --sigma, one of them")
    local = isinstance(domain, Point)
    if eps is not None:
        kind = LocalConfidence if local else GlobalConfidence
        return kind(network, parameters, domain, to_fraction(eps))
    exact_level = to_fraction(level)
    if sigma is None:
        return (LocalLabel if local else GlobalLabel)(network, parameters, domain, exact_level)
    return (LocalLabel if local else MarginLabel)(network, parameters, domain, exact_level, to_fraction(sigma))


def estimates(
    network: Network, boxes: list[ParameterBox], domain: Domain, what: What, class_name: str | None, level: str
) -> list[AnyQuery]:
    """Return the estimates of eps, of logits, or of each class's sigma, one for each parameter box. Raises NumberError."""
    if what in (What.EPS, What.LOGITS):
        kind = LocalEpsilon if isinstance(domain, Point) else GlobalEpsilon
        of = ChangeOf.LOGIT if what is What.LOGITS else ChangeOf.CONFIDENCE
        return [kind(network, parameters, domain, of) for parameters in boxes]
    labels = list(range(network.class_count))
    if class_name is not None:
        names = {network.class_name(i): i for i in labels} | {str(i): i for i in labels}
        if class_name not in names:
            raise NumberError(f"no class is called {class_name!r}: the classes are {', '.join(names)}")
        labels = [names[class_name]]
    exact_level = to_fraction(level)
    return [SigmaEstimate(network, parameters, domain, label, exact_level) for parameters in boxes for label in labels]
