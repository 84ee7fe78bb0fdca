"""Ordinary networks held between two networks of signs: what the pair answers alone, proved, and what an answer costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.networks import shared_folder
from datasets.loaders import load_athletes, load_bundled, load_cats
from qrobust.answers import Verdict
from qrobust.binarized.bracket import Cost, Side, class_index, cost_of
from qrobust.binarized.bracket_build import Built, Plan, build
from qrobust.binarized.bracket_files import load_bracket, save_bracket
from qrobust.binarized.bracket_proof import Claim, prove
from qrobust.binarized.bracket_training import Recipe
from qrobust.binarized.thermometer import Thermometer, along_boundary
from qrobust.charts import draw_bracket
from qrobust.domains import InputBox
from qrobust.formats import load
from qrobust.interval import FloatArray
from qrobust.network import Network
from qrobust.search import Budget

ROOT = Path(__file__).parents[1]
SAMPLES = 48  # points of a cell, besides its corners, at which it may be seen to hold two labels
MOST_CEILING = 2**17  # cells that are looked at so
CANCER = ("worst radius", "worst texture")
PEER = "the most that any function of these bits can (no cell of two labels, as sampled)"


@dataclass(frozen=True)
class Work:
    """One network and class; `axes` are the two features of the picture, None for no picture."""

    name: str
    model: str
    label: str
    rows: Callable[[], FloatArray]
    axes: tuple[int, int] | None = (0, 1)
    thresholds: int = 15
    hidden: tuple[int, ...] = (24,)
    starts: int = 3
    seconds: float = 90.0


def _athletes() -> FloatArray:
    return np.asarray(load_athletes(shared_folder().parent / "athletes.csv").inputs)


def _iris() -> FloatArray:
    return np.asarray(load_bundled("iris").inputs)


WORKS = (
    Work("CAT-male", "cat_paper", "male", lambda: load_cats().inputs),
    Work("ATH-ReLU-male", "ath_relu", "male", _athletes),
    Work("ATH-Linear-male", "ath_linear", "male", _athletes),
    Work("breast-cancer-malignant", "breast_cancer", "malignant", lambda: load_bundled("breast_cancer", CANCER).inputs),
    Work("iris-setosa", "iris", "setosa", _iris, (2, 3), hidden=(128,), starts=1),
    Work("iris-versicolor", "iris", "versicolor", _iris, (2, 3), hidden=(128,), starts=1),
    Work("iris-virginica", "iris", "virginica", _iris, (2, 3), hidden=(128,), starts=1),
)

Fact = tuple[str, float | None, str, dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """A pair, whether it was proved anew from its file, and the most that its bits allow (None: not looked at)."""

    name: str
    built: Built
    proved: bool
    proof_seconds: float
    ceiling: float | None

    def facts(self) -> list[Fact]:
        """Return metric, value, unit and peer of each figure."""
        built = self.built
        rows, own, pair = built.rows, cost_of(built.network), built.bracket.cost()
        assert rows is not None
        most: dict[str, Any] = {} if self.ceiling is None else {"peer": PEER, "peer_value": self.ceiling}
        slack = [one.found.upper - one.found.lower for one in built.chosen]
        found: list[Fact] = [
            ("share of the domain's volume answered alone", built.volume.answered, "of 1", most),
            ("yes, share of the volume", built.volume.yes, "of 1", {}),
            ("no, share of the volume", built.volume.no, "of 1", {}),
            (f"share of {rows.count:,} rows answered alone", rows.answered, "of 1", {}),
            ("decided", float(self.proved), "both proved anew from the file", {"aim": 1.0}),
            ("thresholds above the least that holds", max(slack), "signs", {"aim": 0.0}),
            ("seconds", built.seconds, "s, training and proofs", {}),
            ("seconds of the proof anew", self.proof_seconds, "s", {}),
        ]
        return found + [_cost(name, pair, own) for name in ("bits", "multiplications", "additions", "comparisons")]


def _cost(name: str, pair: Cost, own: Cost) -> Fact:
    peer: dict[str, Any] = {"peer": "the ordinary network", "peer_value": getattr(own, name)}
    return f"{name} of one answer of the pair", getattr(pair, name), name, peer


def measure(say: Callable[[str], None]) -> list[Measured]:
    """Build each pair, write it and its picture to plots/, read it back and prove it anew."""
    found = []
    for work in WORKS:
        network = load(ROOT / "models" / f"{work.model}.json")
        box, rows = InputBox.of_features(network), work.rows()
        rows = rows[((rows >= box.lower) & (rows <= box.upper)).all(axis=1)]
        code = along_boundary(network, box, work.thresholds, np.random.default_rng(0))
        plan = Plan(Recipe(work.hidden), starts=work.starts, seconds=work.seconds)
        label = class_index(network, work.label)
        built = build(network, label, code, plan, rows, say)
        path = ROOT / "plots" / f"bracket_{work.name.lower().replace('-', '_')}.json"
        save_bracket(built.bracket, path)
        if work.axes is not None:
            typical = np.median(rows[network.labels(rows) == label], axis=0)
            draw_bracket(built.bracket, network, path.with_suffix(""), work.axes, typical)
        again = [prove(network, load_bracket(path), side, Budget(60.0)) for side in Side]
        proved = all(one.verdict is Verdict.ROBUST for one in again)
        found.append(Measured(work.name, built, proved, sum(one.seconds for one in again), ceiling(network, label, code)))
        say(f"{work.name}: {built.volume.answered:.2%} of the volume, {built.seconds:.1f} s")
    return found


def ceiling(network: Network, label: int, code: Thermometer) -> float | None:
    """Bound from above the volume that any function of the bits can answer: cells not seen to hold two labels.

    A cell's corners, pulled inside, and random points are looked at, in floating point. None if there are too many cells
    """
    if code.cells > MOST_CEILING:
        return None
    rng, total = np.random.default_rng(0), 0.0
    claim = Claim(network, label, Side.YES)
    corners = np.array(list(itertools.product((1e-9, 1 - 1e-9), repeat=code.box.inputs)))
    places = np.concatenate([corners, rng.random((SAMPLES, code.box.inputs))])
    for codes in code.all_codes():
        ends = code.ends(codes)
        points = ends.lower[:, None] + places * ends.width[:, None]
        said = claim.excess(points.reshape(-1, code.box.inputs)).reshape(len(codes), -1) < 0
        total += float(code.shares(codes)[said.all(axis=1) | ~said.any(axis=1)].sum())
    return total
