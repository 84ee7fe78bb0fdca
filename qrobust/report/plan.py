"""A sign-off plan: a TOML file that says which model ships how, and what must hold.

    title = "Athletes, int8"              # optional, as are the next two
    timeout = 60                          # seconds for each question: a point of a data set, a domain
    assumptions = ["Inputs are ..."]      # what the reader must grant; printed as it is

    [model]                               # the float model that everything is compared with
    file = "../ath_relu.keras"            # paths start at the plan's folder
    features = ["height", "weight"]       # names, units and classes where the file has none; optional
    units = ["m", "kg"]
    classes = ["female", "male"]
    level = "1/2"                         # decision level of a binary model

    [shipped]                             # what ships in its place: names for files
    int8 = "../ath_relu_int8.tflite"

    [domains.people]                      # sets of inputs: a box, by feature or as a list of pairs; else the model's own
    box = { height = [1.21, 2.18], weight = [31, 170] }
    where = [{ sum = { height = 100, weight = -1 }, at_most = 150 }]        # cuts the box; optional

    [data.drawn]                          # finite sets of inputs: a CSV file, or drawn from a domain
    random = 10000
    domain = "people"
    seed = 0

    [[obligations]]
    id = "REQ-1"                          # the requirement
    text = "..."                          # in the words of whoever asks; optional
    ask = "label"                         # label, margin (with sigma), eps (with eps), greatest-eps (with eps), inside
    program = "int8"                      # or copy = NAME (exactly these parameters), or scheme = "int8" (any rounding)
    kernels = "reference"                 # whose arithmetic runs it: reference, xnnpack, onnxruntime (.onnx) or any-kernel
    data = "drawn"                        # or domain = NAME; with both, every row must lie in the domain

Of a program over a domain every integer input is asked about that means a point of the box, by bounds where these are too
many to run. `inside` takes a scheme and a copy or a program, and no inputs. Every fault names the line and the key, and is
found before anything is proved.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.backends.z3 import Z3
from qrobust.comparison import check_alike
from qrobust.domains import Domain, InputBox, ParameterBox, Points, Polytope
from qrobust.errors import QRobustError
from qrobust.files import read_bytes
from qrobust.formats import load, load_program
from qrobust.formats.table import read_points
from qrobust.integer.program import IntegerProgram, Kernels
from qrobust.interval import Interval, affine
from qrobust.maps import random_points
from qrobust.network import Feature, Network, Output
from qrobust.perturbations import Copy, Rounding
from qrobust.quantization import Scheme, box_for_program, dequantized, parse_scheme
from qrobust.report.tables import Keys, Source, Table

SECONDS, MOST_SECONDS, MOST_DRAWN, MOST_OBLIGATIONS = 60, 86_400, 1_000_000, 1_000
MOST_NUMBERS = 20_000_000  # of a drawn data set, all inputs together
LONGEST_ID = 80


class Ask(StrEnum):
    """What an obligation asks."""

    LABEL = "label"
    MARGIN = "margin"
    EPS = "eps"
    GREATEST = "greatest-eps"
    INSIDE = "inside"


@dataclass(frozen=True)
class File:
    """A file that a plan names: its path, the sha256 of its bytes, and of what it computes (None for data)."""

    path: Path
    sha256: str
    content: str | None = None

    @classmethod
    def of(cls, path: Path, content: str | None = None) -> File:
        """Return a file as it is now. Raises ModelFileError."""
        return cls(path, hashlib.sha256(read_bytes(path)).hexdigest(), content)


@dataclass(frozen=True, eq=False)
class Place:
    """Where an obligation is asked: a named domain, or a named finite set with what it was read or drawn from."""

    name: str
    domain: Domain
    file: File | None = None
    seed: int | None = None

    @property
    def kind(self) -> str:
        """What the plan calls it."""
        return "data" if isinstance(self.domain, Points) else "domain"


@dataclass(frozen=True, eq=False)
class Obligation:
    """One requirement. Of `parameters` and `program` exactly one is there; `where` is None for `inside` alone."""

    number: int
    id: str
    text: str
    ask: Ask
    eps: Fraction | None
    sigma: Fraction
    scheme: Scheme | None
    shipped: str | None
    parameters: ParameterBox | None
    program: IntegerProgram | None
    copy: Network | None
    kernels: Kernels
    where: Place | None
    seconds: float

    @property
    def keys(self) -> Keys:
        """Where it stands in the plan."""
        return ("obligations", self.number)


@dataclass(frozen=True, eq=False)
class Plan:
    """A plan whose files have been read and found to fit together."""

    source: Source
    title: str
    assumptions: tuple[str, ...]
    network: Network
    level: Fraction
    model: File
    shipped: dict[str, File]
    places: dict[str, Place]
    obligations: tuple[Obligation, ...]

    @property
    def files(self) -> tuple[File, ...]:
        """The files of the float model and of what ships."""
        return (self.model, *self.shipped.values())

    @property
    def sha256(self) -> str:
        """Hash of the plan's bytes."""
        return hashlib.sha256(self.source.content).hexdigest()


def read_plan(path: Path, *, trust_pickle: bool = False) -> Plan:
    """Read a plan and every file that it names. Raises PlanError, which names the line and the key."""
    return _Reader(Source(path), trust_pickle).plan()


class _Reader:
    """What has been read of a plan so far."""

    def __init__(self, source: Source, trust_pickle: bool) -> None:
        known = ("title", "timeout", "assumptions", "model", "shipped", "domains", "data", "obligations")
        self.source, self._trust = source, trust_pickle
        self._top = Table(source, (), source.values, known)
        self._files: dict[str, File] = {}
        self._read: dict[tuple[str, bool], Network | IntegerProgram] = {}
        self._places: dict[str, Place] = {}

    def plan(self) -> Plan:
        top = self._top
        seconds = top.whole("timeout", 1, MOST_SECONDS, SECONDS)
        self.network, self.level, model = self._model()
        shipped = Table(self.source, ("shipped",), top.tables("shipped"), tuple(top.tables("shipped")))
        self._shipped = {name: self._path(shipped, name) for name in shipped.values}
        for name in top.tables("domains"):
            self._places[f"domains.{name}"] = Place(name, self._domain(name))
        for name in top.tables("data"):
            self._places[f"data.{name}"] = self._data(name)
        listed = top.values.get("obligations")
        if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_OBLIGATIONS:
            raise top.fault("obligations" if listed is not None else None, "give [[obligations]], one at least")
        obligations = tuple(self._obligation(number, values, seconds) for number, values in enumerate(listed))
        for number, each in enumerate(obligations):
            if each.id in {other.id for other in obligations[:number]}:
                raise self.source.fault((*each.keys, "id"), f"{each.id!r} is the id of an earlier obligation: give another")
        title = top.text("title", self.source.path.stem)
        assumptions = top.texts("assumptions")
        return Plan(self.source, title, assumptions, self.network, self.level, model, self._files, self._places, obligations)

    def _path(self, table: Table, key: str) -> Path:
        """Return the path that a key names, which must be a file."""
        path = self.source.path.parent / table.text(key)
        if not path.is_file():
            raise table.fault(key, f"{path} does not exist: paths start at the plan's folder")
        return path

    def _model(self) -> tuple[Network, Fraction, File]:
        keys = ("file", "features", "units", "classes", "level")
        if "model" not in self._top:
            raise self._top.fault(None, "the key 'model' is missing: name the float model's file")
        table = Table(self.source, ("model",), self._top.values["model"], keys)
        path = self._path(table, "file")
        try:
            network = load(path, trust_pickle=self._trust)
        except QRobustError as error:
            raise table.fault("file", str(error)) from None
        names, units, classes = (table.texts(key) for key in ("features", "units", "classes"))
        if units and len(units) != len(names):
            raise table.fault("units", f"there are {len(units)} units for {len(names)} features: give one for each")
        if names:
            features = tuple(Feature(name, unit) for name, unit in zip(names, units or [""] * len(names), strict=True))
            network = self._renamed(table, "features", network, features=features)
        if classes:
            network = self._renamed(table, "classes", network, classes=classes)
        level = table.number("level", Fraction(1, 2))
        if not 0 < level < 1 or (network.output is Output.SOFTMAX and level != Fraction(1, 2)):
            raise table.fault("level", f"is {float(level):g}: it goes with one sigmoid, and lies strictly between 0 and 1")
        return network, level, File.of(path, network.sha256)

    def _renamed(self, table: Table, key: str, network: Network, **changes: Any) -> Network:
        try:
            return replace(network, **changes)
        except QRobustError as error:
            raise table.fault(key, str(error)) from None

    def _domain(self, name: str) -> Domain:
        table = Table(self.source, ("domains", name), self._top.tables("domains")[name], ("box", "where"))
        try:
            box = self._box(table) if "box" in table else InputBox.of_features(self.network)
        except QRobustError as error:
            raise table.fault("box" if "box" in table else None, str(error)) from None
        cuts = table.values.get("where", [])
        if not isinstance(cuts, list):
            raise table.fault("where", "must be a list of { sum = { feature = factor }, at_most = number }")
        if not cuts:
            return box
        rows = [self._cut(table, number, cut) for number, cut in enumerate(cuts)]
        domain = Polytope(box, [row for row, _ in rows], [limit for _, limit in rows])
        if Z3().is_empty(domain):
            raise table.fault("where", f"contradicts the box: no input of {box} satisfies it")
        return domain

    def _box(self, table: Table) -> InputBox:
        given = table.values["box"]
        names = [self.network.feature_name(i) for i in range(self.network.inputs)]
        if isinstance(given, dict):
            sides = Table(self.source, (*table.keys, "box"), given, names)
            for name in names:
                if name not in given:
                    raise table.fault("box", f"has no side for {name}")
            given = [sides.values[name] for name in names]
        if not isinstance(given, list) or len(given) != len(names):
            raise table.fault("box", f"must have {len(names)} sides, one for each input: {', '.join(names[:20])}")
        ends = []
        for name, side in zip(names, given, strict=True):
            if not isinstance(side, list) or len(side) != 2:
                raise table.fault("box", f"{name} must have two ends, as in [0, 1]")
            low, high = (float(table.fraction("box", end)) for end in side)
            if low > high:
                raise table.fault("box", f"contradicts itself: {name} has its lower end {low:g} above its upper end {high:g}")
            ends.append((low, high))
        return InputBox([low for low, _ in ends], [high for _, high in ends])

    def _cut(self, table: Table, number: int, values: Any) -> tuple[list[float], float]:
        cut = Table(self.source, (*table.keys, "where", number), values, ("sum", "at_most"))
        names = [self.network.feature_name(i) for i in range(self.network.inputs)]
        factors = Table(self.source, (*cut.keys, "sum"), cut.values.get("sum"), names)
        row = [float(factors.number(name, Fraction(0))) for name in names]
        return row, float(cut.number("at_most"))

    def _data(self, name: str) -> Place:
        known = ("file", "random", "domain", "seed")
        table = Table(self.source, ("data", name), self._top.tables("data")[name], known)
        if table.one_of(("file", "random"), "where the points come from") == "file":
            for key in ("seed", "domain"):
                if key in table:
                    raise table.fault(key, "goes with random: leave it out")
            path = self._path(table, "file")
            try:
                return Place(name, Points(read_points(path, self.network)), File.of(path))
            except QRobustError as error:
                raise table.fault("file", str(error)) from None
        count, seed = table.whole("random", 1, MOST_DRAWN), table.whole("seed", 0, 2**63 - 1, 0)
        if count * self.network.inputs > MOST_NUMBERS:
            raise table.fault(
                "random", f"is {count:,}: at {self.network.inputs:,} inputs {MOST_NUMBERS:,} numbers are the most"
            )
        domain = self._place(table, "domain", "domains").domain
        try:
            return Place(name, Points(random_points(domain, count, seed)), seed=seed)
        except QRobustError as error:
            raise table.fault("random", str(error)) from None

    def _place(self, table: Table, key: str, kind: str) -> Place:
        name = table.text(key)
        place = self._places.get(f"{kind}.{name}")
        if place is None:
            raise table.fault(key, f"there is no [{kind}.{name}] in the plan")
        return place

    def _obligation(self, number: int, values: Any, seconds: int) -> Obligation:
        known = (
            *("id", "text", "ask", "eps", "sigma", "scheme", "copy", "program", "kernels"),
            *("data", "domain", "timeout"),
        )
        table = Table(self.source, ("obligations", number), values, known)
        name = table.text("id")
        if len(name) > LONGEST_ID or not name.isprintable():
            raise table.fault("id", f"must be one line of at most {LONGEST_ID} characters")
        ask = Ask(table.choice("ask", [each.value for each in Ask]))
        eps, sigma = self._limits(table, ask)
        scheme, shipped, parameters, program, copy = self._changed(table, ask)
        if "kernels" in table and program is None:
            raise table.fault("kernels", "goes with program: leave it out")
        usual = Kernels.REFERENCE if program is None else program.runtime.kernels[0]
        kernels = Kernels(table.choice("kernels", [each.value for each in Kernels], usual.value))
        where = self._where(table, ask)
        if program is not None and where is not None and where.domain.inequalities[1].size:
            raise table.fault("domain", "is cut by inequalities; a program is asked about over boxes: leave out its `where`")
        limit = table.whole("timeout", 1, MOST_SECONDS, seconds)
        text = table.text("text", _words(table, ask))
        fields = (scheme, shipped, parameters, program, copy, kernels, where, float(limit))
        return Obligation(number, name, text, ask, eps, sigma, *fields)

    def _limits(self, table: Table, ask: Ask) -> tuple[Fraction | None, Fraction]:
        """Return eps and sigma, each of which goes with its own questions."""
        wanted = {"eps": ask in (Ask.EPS, Ask.GREATEST), "sigma": ask is Ask.MARGIN}
        found: dict[str, Fraction] = {}
        for key, needed in wanted.items():
            if not needed and key in table:
                raise table.fault(key, f"does not go with ask = {ask.value!r}: leave it out")
            if needed:
                found[key] = table.number(key)
                if not 0 <= found[key] <= 1:
                    raise table.fault(key, f"is {float(found[key]):g}, it must lie between 0 and 1")
        return found.get("eps"), found.get("sigma", Fraction(0))

    def _changed(
        self, table: Table, ask: Ask
    ) -> tuple[Scheme | None, str | None, ParameterBox | None, IntegerProgram | None, Network | None]:
        """Return what stands in the model's place: a scheme, the name of what ships, its parameters, program or network."""
        chosen: Scheme | None = None
        if "scheme" in table:
            try:
                chosen = parse_scheme(table.text("scheme"))
                box = Rounding(chosen).around(self.network)
            except QRobustError as error:
                raise table.fault("scheme", str(error)) from None
        if ask is Ask.INSIDE:
            return self._claimed(table, chosen)
        kind = table.one_of(("scheme", "copy", "program"), "what stands in the model's place")
        if kind == "scheme":
            return chosen, None, box, None, None
        name, found = self._of_shipped(table, kind)
        if isinstance(found, IntegerProgram):
            return None, name, None, found, None
        return None, name, Copy(found).around(self.network), None, found

    def _claimed(
        self, table: Table, scheme: Scheme | None
    ) -> tuple[Scheme | None, str | None, ParameterBox | None, IntegerProgram | None, Network | None]:
        """Return, for `inside`, the scheme, its box and the copy, or a program's parameters as a copy."""
        if scheme is None:
            raise table.fault(None, "ask = 'inside' takes a scheme, and a copy or a program: scheme is missing")
        kind = table.one_of(("copy", "program"), "what is to lie inside")
        name, found = self._of_shipped(table, kind)
        if isinstance(found, Network):
            return scheme, name, Rounding(scheme).around(self.network), None, found
        try:
            return scheme, name, box_for_program(self.network, scheme, found), None, dequantized(self.network, found)
        except QRobustError as error:
            raise table.fault("program", str(error)) from None

    def _of_shipped(self, table: Table, key: str) -> tuple[str, Network | IntegerProgram]:
        """Read what ships under a name, once, as a network or as a program, and see that it fits the model."""
        name = table.text(key)
        if name not in self._shipped:
            known = ", ".join(self._shipped) or "nothing yet"
            raise table.fault(key, f"[shipped] names no {name!r}: it names {known}")
        path, as_program = self._shipped[name], key == "program"
        if (name, as_program) not in self._read:
            try:
                found = load_program(path) if as_program else load(path, trust_pickle=self._trust)
                self._check_fit(found)
            except QRobustError as error:
                raise self.source.fault(("shipped", name), f"as a {key}: {error}") from None
            self._read[name, as_program] = found
            self._files[name] = File.of(path, found.sha256)
        return name, self._read[name, as_program]

    def _check_fit(self, found: Network | IntegerProgram) -> None:
        """Raise ShapeError unless what ships has the model's inputs and classes, and a copy its layers."""
        if isinstance(found, Network):
            Copy(found).around(self.network)
            return
        check_alike(self.network, found)

    def _where(self, table: Table, ask: Ask) -> Place | None:
        if ask is Ask.INSIDE:
            for key in ("data", "domain"):
                if key in table:
                    raise table.fault(key, "does not go with ask = 'inside': leave it out")
            return None
        if "data" not in table and "domain" not in table:
            raise table.fault(None, "say where: give data, domain or both")
        domain = self._place(table, "domain", "domains") if "domain" in table else None
        if "data" not in table:
            return domain
        data = self._place(table, "data", "data")
        if domain is not None:
            _check_inside(table, data, domain)
        return data


def _words(table: Table, ask: Ask) -> str:
    """Say what is asked where the plan has no words for it, as in "eps 0.01: program int8, data drawn"."""
    limit = "".join(f" {table.values[key]}" for key in ("eps", "sigma") if key in table)
    rest = (f"{key} {table.values[key]}" for key in ("scheme", "copy", "program", "data", "domain") if key in table)
    return f"{ask.value}{limit}: {', '.join(rest)}"


def _check_inside(table: Table, data: Place, domain: Place) -> None:
    """Raise PlanError for the first row of a data set that lies outside a domain; decided exactly."""
    assert isinstance(data.domain, Points)
    points, box = data.domain.values, domain.domain.box
    matrix, limit = domain.domain.inequalities
    inside = ((box.lower <= points) & (points <= box.upper)).all(axis=1)
    if limit.size:
        zeros = Interval.point(np.zeros(limit.shape))
        inside &= (affine(Interval.point(matrix), Interval.point(points), zeros).upper <= limit).all(axis=1)
    for row in np.flatnonzero(~inside).tolist():
        if not domain.domain.contains([Fraction(value) for value in points[row].tolist()]):
            raise table.fault("domain", f"contradicts data = {data.name!r}: row {row + 1} lies outside {domain.domain}")
