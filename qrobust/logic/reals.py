"""Decisions of ordinary networks, as an oracle for explanations; of the stored network, or for every rounding in a box.

Accepts   networks and parameter boxes that a local label question accepts (`solve.Session`)
Gives     Fixed with a proof behind it, or Lost with a counterexample replayed exactly
Method    that features keep the label over their ranges, for every rounding, is a local question about a longer network: a
          first layer of zero weights, whose biases are the input and move within the ranges, puts inputs among the
          parameters; so all backends answer it, with their proofs. That a rounded copy agrees with the stored network at
          every input of the ranges is the global label question itself
Property  sound; complete where a backend is. `confirm` asks other backends than the one that gave the proof
Source    Ignatiev, Narodytska, Marques-Silva 2019, arXiv 1811.10656 (explanations by a solver's proofs)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction

import numpy as np

from qrobust.answers import Answer, Unknown, Verdict, Violated
from qrobust.domains import InputBox, ParameterBox, Point
from qrobust.errors import BackendUnavailableError, DomainError, ShapeError, UnsoundAnswerError, UnsupportedError
from qrobust.interval import FloatArray
from qrobust.layers import Activation, Dense, read_only
from qrobust.logic.oracles import NOTHING, Deadline, Features, Fixed, Lost, UndecidedError
from qrobust.network import FloatArithmetic, Network, logits
from qrobust.perturbations import Absolute
from qrobust.queries import HALF, GlobalLabel, LabelQuery, LocalLabel
from qrobust.search import Budget
from qrobust.solve import Session

SMALL = 200  # parameters up to which Z3 confirms first, and beyond which HiGHS does
QUESTION = 30.0  # seconds at most for one question


class Promise(Enum):
    """What the features of an explanation ensure."""

    LABEL = "label"  # every rounding gives this input's label, whatever the other features are
    AGREEMENT = "agreement"  # every rounding gives the label that the stored network gives, whatever the other features are


@dataclass(frozen=True, eq=False)
class RealDecision:
    """Which features ensure the promise, where the others range over a box (the features' own ranges, if None)?

    LABEL       for all x in the ranges with the explanation's values, p in P: N_p(x) = N_p0(x0)
    AGREEMENT   for all x in the ranges with the explanation's values, p in P: N_p(x) = N_p0(x)

    Without parameters P is the stored ones alone.
    Shapes      inputs (features,)
    Raises      ShapeError, DomainError (an input outside its ranges; a network whose ranges are not known)
    """

    network: Network
    inputs: FloatArray
    ranges: InputBox | None = None
    parameters: ParameterBox | None = None
    promise: Promise = Promise.LABEL
    level: Fraction = HALF

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", read_only(self.inputs))
        if self.inputs.shape != (self.network.inputs,):
            raise ShapeError(f"an input has shape {self.inputs.shape}, the network takes {self.network.inputs} numbers")
        box = self.box
        outside = np.flatnonzero((self.inputs < box.box.lower) | (self.inputs > box.box.upper))
        if len(outside):
            place = int(outside[0])
            raise DomainError(
                f"{self.network.feature_name(place)} is {self.inputs[place]:g}, its range is"
                f" [{box.box.lower[place]:g}, {box.box.upper[place]:g}]"
            )

    @property
    def box(self) -> InputBox:
        return InputBox.of_features(self.network) if self.ranges is None else self.ranges

    def query(self, held: Features) -> LabelQuery:
        """Return the question whether these features ensure the promise."""
        lower, upper = self.box.box.lower.copy(), self.box.box.upper.copy()
        places = sorted(held)
        lower[places] = upper[places] = self.inputs[places]
        parameters = Absolute(0.0).around(self.network) if self.parameters is None else self.parameters
        if self.promise is Promise.AGREEMENT:
            return GlobalLabel(self.network, parameters, InputBox(lower, upper), self.level)
        zeros = np.zeros((self.network.inputs, self.network.inputs))
        first = Dense(zeros, self.inputs, Activation.LINEAR)
        longer = replace(self.network, layers=(first, *self.network.layers), features=())
        moved = ParameterBox.from_arrays([(zeros, lower)], [(zeros, upper)])
        box = ParameterBox((*moved.layers, *parameters.layers), rule=f"inputs within their ranges, {parameters.rule}")
        return LocalLabel(longer, box, Point(self.inputs), self.level)


class RealOracle:
    """See the module's docstring."""

    def __init__(self, decision: RealDecision, *, backend: str = "auto") -> None:
        self.decision, self._backend = decision, backend
        self._session = Session()
        self._proved: list[tuple[Features, str]] = []
        self.features: Features = frozenset(range(decision.network.inputs))
        influence = _influence(decision)
        self.ranks = sorted(self.features, key=lambda feature: (float(influence[feature]), feature))

    def __enter__(self) -> RealOracle:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def others(self, changed: Features, kept: Features, wanted: Features) -> list[Lost]:
        """Return none: a counterexample of one question says nothing of another."""
        return []

    def few(self, count: int, deadline: Deadline) -> Lost | None:
        """Leave it undecided. Raises UndecidedError."""
        raise UndecidedError("ordinary networks are asked about sets of features alone")

    def ask(self, held: Features, deadline: Deadline, always: Features = NOTHING) -> Fixed | Lost:
        """Answer by a backend. Raises UndecidedError, UnsupportedError, BackendUnavailableError."""
        answer = self._check(held, self._backend, deadline.left())
        if isinstance(answer.claim, Unknown):
            raise UndecidedError(answer.claim.reason)
        if not isinstance(answer.claim, Violated):
            self._proved.append((held, answer.backend))
            return Fixed(held)
        example = answer.claim.counterexample
        is_label = self.decision.promise is Promise.LABEL
        inputs = example.parameters[0][1].tolist() if is_label else list(example.x)
        own = self.decision.inputs.tolist()
        changed = frozenset(i for i in range(len(own)) if Fraction(inputs[i]) != Fraction(own[i]))
        if changed & held:
            raise UnsoundAnswerError("a counterexample moves a feature that was held: please report")
        return Lost(changed, np.array([float(value) for value in inputs]))

    def _check(self, held: Features, backend: str, seconds: float) -> Answer:
        return self._session.check(self.decision.query(held), backend=backend, budget=Budget(min(seconds, QUESTION)))

    def confirm(self, held: Features, deadline: Deadline) -> str | None:
        """Return another backend that proves it, or None. Raises UnsoundAnswerError, UndecidedError."""
        exact = ["z3", "milp"] if self.decision.network.parameter_count <= SMALL else ["milp", "z3"]
        others = {name for core, name in self._proved if core <= held}
        names = [name for name in (*exact, "branch-and-bound", "closed-form") if name not in others]
        for place, name in enumerate(names):
            try:
                answer = self._check(held, name, deadline.left() / (len(names) - place))
            except (UnsupportedError, BackendUnavailableError):
                continue
            if answer.verdict is Verdict.VIOLATED:
                raise UnsoundAnswerError(f"{name} refutes an explanation that another backend proved: please report")
            if answer.verdict is Verdict.ROBUST:
                return name
        return None


def _influence(decision: RealDecision) -> FloatArray:
    """Return how far each feature alone can move a logit, at the ends of its range, as floats say. Shape: (features,)."""
    own, box = decision.inputs, decision.box.box
    points = np.repeat(own[None], 2 * len(own) + 1, axis=0)
    places = np.arange(len(own))
    points[places, places], points[places + len(own), places] = box.lower, box.upper
    with np.errstate(over="ignore", invalid="ignore"):
        found = logits(decision.network, points, FloatArithmetic())
        moved = np.abs(found[:-1] - found[-1]).max(axis=1).reshape(2, -1).max(axis=0)
    return np.asarray(np.nan_to_num(moved, nan=np.inf), dtype=np.float64)
