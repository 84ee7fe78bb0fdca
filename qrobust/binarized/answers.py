"""Answers to questions about binarized networks: what was found, by which engine, and what stands behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qrobust.answers import VERSION, Assurance, Verdict
from qrobust.binarized.network import BinarizedNetwork, Grid
from qrobust.binarized.queries import LabelChange, LeastChange, Norm, Robustness, inputs_of
from qrobust.layers import IntArray

INTERVALS = "intervals"
ENUMERATION = "enumeration"
TRIAL = "trial"
BRANCHING = "branching"


@dataclass(frozen=True, eq=False)
class Witness:
    """An input that loses the label, replayed in integers.

    Shapes    levels (inputs,)
    Units     label and float_label are classes: of the integers, and of the network in float64
    """

    levels: IntArray
    label: int
    float_label: int

    def to_json(self) -> dict[str, Any]:
        """Return the witness as JSON values."""
        return {"levels": self.levels.tolist(), "label": self.label, "float_label": self.float_label}


@dataclass(frozen=True, eq=False)
class BinarizedAnswer:
    """The answer to a robustness question. `exact`: the engine computes in integers; a float engine's ROBUST is no proof.

    `is_certified`: the answer has a proof that the checker has followed, whatever the engine is
    """

    query: Robustness
    verdict: Verdict
    engine: str
    exact: bool
    seconds: float
    label: int
    witness: Witness | None = None
    reason: str = ""
    is_certified: bool = False

    @property
    def assurance(self) -> Assurance | None:
        """CHECKED: replayed in integers, one input or all, or with a certificate. ROUNDED: proved by interval folding, of
        the whole or of its parts, also with all inputs tried that it leaves apart. TRUSTED: a solver says so."""
        return _assurance(self)

    @property
    def inputs(self) -> list[float] | None:
        """The witness as real inputs, as `inputs_of` says."""
        if self.witness is None:
            return None
        found: list[float] = inputs_of(self.query.ball, self.query.network.grid, self.witness.levels).tolist()
        return found

    def __str__(self) -> str:
        network, where = self.query.network, self.query.ball
        by = f"[{self.engine}, {_basis(self)}{self.seconds:.3g} s]"
        if self.verdict is Verdict.ROBUST:
            text = f"{self.query.statement(self.label)}."
        elif self.witness is not None:
            text = (
                f"{where}, an input of {network} loses the label {network.class_name(self.label)}"
                f" to {network.class_name(self.witness.label)}."
            )
        else:
            text = f"{self.reason}."
        return f"{self.verdict.value}: {text} {by}"

    def to_json(self) -> dict[str, Any]:
        """Return the answer with its provenance, as JSON values."""
        network = self.query.network
        return {
            "query": self.query.to_json(),
            "network": {"name": network.name, "sha256": network.sha256},
            "verdict": self.verdict.value,
            "backend": self.engine,
            "assurance": None if self.assurance is None else self.assurance.name,
            "exact": self.exact or self.is_certified,
            "label": self.label,
            "counterexample": None if self.witness is None else {"input": self.inputs} | self.witness.to_json(),
            "reason": self.reason or None,
            "seconds": self.seconds,
            "qrobust": VERSION,
        }


def _assurance(answer: BinarizedAnswer | LabelChangeAnswer) -> Assurance | None:
    if answer.verdict is Verdict.UNKNOWN:
        return None
    if answer.verdict is Verdict.VIOLATED or answer.engine == ENUMERATION or answer.is_certified:
        return Assurance.CHECKED
    return Assurance.ROUNDED if answer.engine in (INTERVALS, BRANCHING, TRIAL) else Assurance.TRUSTED


def _basis(answer: BinarizedAnswer | LabelChangeAnswer) -> str:
    assurance = answer.assurance
    if assurance is None:
        return ""
    if answer.verdict is Verdict.ROBUST and not answer.exact and not answer.is_certified:
        return f"{assurance.name.lower()}, computed in floating point, "
    return f"{assurance.name.lower()}, in integers, "


@dataclass(frozen=True, eq=False)
class PairWitness:
    """An input that network and copy label differently, both replayed: in integers, a float network in exact arithmetic.

    Shapes    levels (inputs,)
    """

    levels: IntArray
    label: int
    copy_label: int

    def to_json(self) -> dict[str, Any]:
        """Return the witness as JSON values."""
        return {"levels": self.levels.tolist(), "label": self.label, "copy_label": self.copy_label}


@dataclass(frozen=True, eq=False)
class LabelChangeAnswer:
    """Whether a network and its copy label every input alike; `engine`, `exact` and `is_certified` as in BinarizedAnswer."""

    query: LabelChange
    verdict: Verdict
    engine: str
    exact: bool
    seconds: float
    witness: PairWitness | None = None
    reason: str = ""
    is_certified: bool = False

    @property
    def assurance(self) -> Assurance | None:
        """As a BinarizedAnswer's."""
        return _assurance(self)

    @property
    def inputs(self) -> list[float] | None:
        """The witness as real inputs, as `inputs_of` says; on the grid, where a float network is asked."""
        if self.witness is None:
            return None
        grid, levels, is_signs = self.query.copy.grid, self.witness.levels, isinstance(self.query.network, BinarizedNetwork)
        found: list[float] = (inputs_of(self.query.ball, grid, levels) if is_signs else grid.values(levels)).tolist()
        return found

    def __str__(self) -> str:
        copy, where = self.query.copy, self.query.ball
        names = f"{self.query.network} and {copy}"
        by = f"[{self.engine}, {_basis(self)}{self.seconds:.3g} s]"
        text = f"{self.query.statement()}."
        if self.verdict is Verdict.UNKNOWN:
            text = f"{self.reason}."
        elif self.witness is not None:
            labels = copy.class_name(self.witness.label), copy.class_name(self.witness.copy_label)
            text = f"{where}, an input is labelled {labels[0]} and by the copy {labels[1]}: {names}."
        return f"{self.verdict.value}: {text} {by}"

    def to_json(self) -> dict[str, Any]:
        """Return the answer with its provenance, as JSON values."""
        pair = (("network", self.query.network), ("copy", self.query.copy))
        return {
            "query": self.query.to_json(),
            **{key: {"name": network.name, "sha256": network.sha256} for key, network in pair},
            "verdict": self.verdict.value,
            "backend": self.engine,
            "assurance": None if self.assurance is None else self.assurance.name,
            "exact": self.exact or self.is_certified,
            "counterexample": None if self.witness is None else {"input": self.inputs} | self.witness.to_json(),
            "reason": self.reason or None,
            "seconds": self.seconds,
            "qrobust": VERSION,
        }


@dataclass(frozen=True, eq=False)
class LeastChangeAnswer:
    """Both ends of the least change: no input below `lower` loses the label, the witness at `upper` does.

    Units     lower and upper in levels (L-infinity, L1), squared levels (L2) or inputs (L0); upper None if no input is known
    """

    query: LeastChange
    lower: int
    upper: int | None
    witness: Witness | None
    exact: bool
    seconds: float
    label: int
    engines: tuple[str, ...] = ()
    reason: str = field(default="")

    @property
    def is_exact_optimum(self) -> bool:
        return self.upper is not None and self.lower == self.upper

    @property
    def is_never_lost(self) -> bool:
        """Whether it is ruled out that any input loses the label."""
        grid = self.query.network.grid
        most = np.full(self.query.network.inputs, grid.highest - grid.lowest, dtype=np.int64)
        return self.lower > cost_units(self.query.norm, most)

    def distance(self, units: int) -> float:
        """Return a number of units as a distance of inputs."""
        return distance_of(self.query.network.grid, self.query.norm, units)

    def __str__(self) -> str:
        low = f"{self.distance(self.lower):g}"
        high = "unbounded" if self.upper is None else f"{self.distance(self.upper):g}"
        why = f" ({self.reason})" if self.reason else ""
        basis = "in integers" if self.exact else "lower end computed in floating point"
        return (
            f"the least {self.query.norm.value} change that loses label {self.query.network.class_name(self.label)} lies in"
            f" [{low}, {high}]{why}. [{', '.join(self.engines) or INTERVALS}, {basis}, {self.seconds:.3g} s]"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the answer with its provenance, as JSON values."""
        network = self.query.network
        return {
            "network": {"name": network.name, "sha256": network.sha256},
            "norm": self.query.norm.value,
            "lower": self.distance(self.lower),
            "upper": None if self.upper is None else self.distance(self.upper),
            "exact": self.exact,
            "label": self.label,
            "witness": None if self.witness is None else self.witness.to_json(),
            "engines": list(self.engines),
            "reason": self.reason or None,
            "seconds": self.seconds,
            "qrobust": VERSION,
        }


def distance_of(grid: Grid, norm: Norm, units: int) -> float:
    """Return units of a LeastChangeAnswer as a distance of inputs."""
    if norm in (Norm.L0, Norm.HAMMING):
        return float(units)
    return float(grid.step) * (math.sqrt(units) if norm is Norm.L2 else units)


def cost_units(norm: Norm, change: IntArray) -> int:
    """Return how far a change of levels goes, in the units of LeastChangeAnswer."""
    sizes = np.abs(change)
    if norm is Norm.LINF:
        return int(sizes.max(initial=0))
    if norm is Norm.L1:
        return int(sizes.sum())
    return int((sizes**2).sum()) if norm is Norm.L2 else int((sizes != 0).sum())
