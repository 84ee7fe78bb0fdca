"""Surveys over a data set: certified shares by width, margins with their verdicts, and saturated parameters by layer.

Accepts   any network and points; a family of formats, a parameter box, or schemes
Gives     tables, each with `table` (CSV) beside what `charts` draws
Property  as the maps that they count; margins are enclosed, and counted by the middle
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from qrobust.bits import Family
from qrobust.blame import Blame
from qrobust.bounds.local import Status
from qrobust.bounds.margins import gaps, margins
from qrobust.comparison import Comparison
from qrobust.interval import FloatArray
from qrobust.maps import IntArray, Quantity, RobustnessMap, robustness_map
from qrobust.network import Network
from qrobust.perturbations import Rounding
from qrobust.quantization import Scheme, stored_arrays
from qrobust.queries import HALF
from qrobust.search import Budget


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


@dataclass(frozen=True)
class WidthShares:
    """How many labels of a data set any rounding to each width keeps (safe), may change (flippable), or is open."""

    network: Network
    family: str
    points: int
    widths: tuple[int, ...]
    counts: tuple[tuple[int, int, int], ...]

    def table(self) -> str:
        """Return CSV: width, and the number of points that are proved, violated, unknown."""
        return _csv(
            [("width", "proved", "violated", "unknown"), *((w, *c) for w, c in zip(self.widths, self.counts, strict=True))]
        )


def shares_by_width(
    network: Network,
    family: Family,
    points: FloatArray,
    widths: Sequence[int],
    *,
    level: Fraction = HALF,
    budget: Budget | None = None,
    jobs: int = 1,
) -> WidthShares:
    """Ask of every point at each uniform width whether any rounding changes its label. `budget` is for each point."""
    counts, layers = [], sum(layer.weight.size > 0 for layer in network.layers)
    for width in widths:
        box = Rounding(family.scheme(network, (width,) * layers)).around(network)
        found = robustness_map(network, box, points, quantity=Quantity.LABEL, level=level, budget=budget, jobs=jobs)
        counts.append((found.count(Status.SAFE), found.count(Status.FLIPPABLE), found.count(Status.UNDECIDED)))
    return WidthShares(network, family.text, len(points), tuple(widths), tuple(counts))


@dataclass(frozen=True, eq=False)
class Margins:
    """The stored network's margin at each point, and whether its label can change.

    Shapes    values, gaps (n,): differences of confidences, and of the logits that they stand for (`bounds.margins`), the
              middles of certified enclosures; status (n,): Status
    """

    network: Network
    rule: str
    values: FloatArray
    gaps: FloatArray
    status: IntArray

    def table(self) -> str:
        """Return CSV: margin, gap of logits, verdict."""
        words = {Status.SAFE: "proved", Status.FLIPPABLE: "violated", Status.UNDECIDED: "unknown"}
        rows = zip(self.values.tolist(), self.gaps.tolist(), self.status.tolist(), strict=True)
        return _csv([("margin", "gap", "verdict"), *((repr(m), repr(g), words[Status(s)]) for m, g, s in rows)])


def margins_of(found: RobustnessMap, level: Fraction = HALF) -> Margins:
    """Return the margins of a map of labels."""
    values, apart = (enclosed(found.network, found.points, level).middle for enclosed in (margins, gaps))
    return Margins(found.network, found.parameters.rule, values, apart, found.status)


@dataclass(frozen=True)
class LayerError:
    """The shares of each layer in what uses up a margin, as parts of the whole: weights, biases, neurons' bounds."""

    title: str
    layers: tuple[tuple[float, float, float], ...]

    def table(self) -> str:
        """Return CSV: layer, and its parts."""
        return _csv([("layer", "weights", "biases", "neurons"), *((n, *own) for n, own in enumerate(self.layers, start=1))])


def layer_error(found: Blame) -> LayerError:
    """Return each layer's part of a blame; pools, which have no parameters, count with what they relax."""
    used = found.shares.used if found.shares.used > 0 else 1.0
    parts = tuple((float(own.weight.sum()) / used, float(own.bias.sum()) / used, own.relaxed / used) for own in found.layers)
    names = found.network.class_name(found.label), found.network.class_name(found.rival)
    share = f"{100 * found.shares.used / found.margin:.3g} %" if found.margin > 0 else "more than all"
    title = f"{found.network}\n{found.query.parameters.rule}: {share} of the lead of {names[0]} over {names[1]}"
    return LayerError(title, parts)


@dataclass(frozen=True)
class Saturation:
    """How many of each part's numbers were cut off at the ends of a format or of a tensor's type: (part, name, cut, of)."""

    title: str
    counts: tuple[tuple[str, str, int, int], ...]

    def table(self) -> str:
        """Return CSV: part, name, cut off, of how many."""
        return _csv([("part", "name", "cut off", "of"), *self.counts])


def saturation_of_schemes(network: Network, schemes: Sequence[Scheme]) -> Saturation:
    """Count the parameters of each array that round beyond a scheme's range."""
    counts = []
    for scheme in schemes:
        for array in stored_arrays(network, scheme):
            if array.steps is not None:
                size = 1
                for length in array.shape:
                    size *= length
                counts.append((f"layer {array.layer}, {array.what}", str(scheme), array.overflowed, size))
    return Saturation(f"{network}: parameters beyond the format's range", tuple(counts))


def saturation_of_program(found: Comparison) -> Saturation | None:
    """Return how many values each operation of an integer program cut off; None if its kernels are not fixed."""
    if found.saturated is None or found.counts is None:
        return None
    triples = zip(found.program.operations, found.saturated.tolist(), found.counts.tolist(), strict=True)
    title = f"{found.program}: values cut off at {len(found.inputs):,} inputs"
    return Saturation(title, tuple((str(o), found.kernels.value, int(cut), int(total)) for o, cut, total in triples))
