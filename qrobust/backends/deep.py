"""Local questions about networks with several hidden layers: linear bounds, attacks, and branch and bound on neurons.

Accepts   one input; every network; label and margin questions, sigma at a point, and the change of confidences
Gives     Robust, Candidate or Unknown; estimates with a certified upper end and a witness
Method    The rows that must stay below 0 (the leads of the rivals; for one sigmoid the logit and its negative) are bounded
          together (`linear.top_bounds`); what stays open is attacked from random ends and then searched (`neurons.NeuronTree`)
Property  sound; complete for label questions on dense ReLU networks as the tuning converges. For the confidences of k classes
          the bound treats the differences of logits as independent: sound, not complete
Source    THEORY.md, sections 3 and 4; see `bounds.neurons`
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from qrobust import interval
from qrobust.answers import Assurance, Candidate, Claim, Counterexample, EstimateClaim, Robust, Unknown
from qrobust.backends.root_cuts import covers, cut_rows
from qrobust.bounds.attack import Found, climb, parameters_at
from qrobust.bounds.ibp import INTERVALS
from qrobust.bounds.linear import Tuning, pre_activations, top_bounds
from qrobust.bounds.neurons import BELOW_ZERO, NeuronTree
from qrobust.bounds.rows import Rows
from qrobust.bounds.shared import attack_shared
from qrobust.bounds.stages import interval_step, stages_of, stored_stages
from qrobust.bounds.substitution import Levels
from qrobust.bounds.tightening import tightened
from qrobust.check import Replay, violation_fault
from qrobust.domains import ParameterBox, Parameters
from qrobust.exact import decide, float_bounds, to_exact
from qrobust.interval import FloatArray, Interval, enclosed, up
from qrobust.leads import Leads
from qrobust.memory import MEMORY, Part, at_a_time
from qrobust.network import Activation, Network, Output, activate
from qrobust.queries import ConfidenceQuery, EpsilonEstimate, LabelQuery, SigmaEstimate
from qrobust.search import Budget, Nodes, Outcome, explore

ROOT_TUNING = Tuning(steps=13)
LEVEL_TUNING = Tuning(steps=5)  # of the intermediate bounds of one input
STARTS = 64  # random starts of the first attack, for each open row
BATCH = 256  # nodes that are split together, at most
SPLITTING, CUTTING = 0.05, 0.2  # of the time: until then splits alone; until then splits with cuts
TIGHTENING = 0.1  # of the time goes to tighter bounds for the rest of it
AT_A_TIME = 128  # inputs that are screened together, at most
INPUT_ARRAYS = 24  # float64 arrays over all layers that one input takes while it is bounded
DEFAULT = Budget()


def levels_at(
    network: Network, parameters: ParameterBox, points: FloatArray | Interval, *, whole: bool = False, budget: Budget = DEFAULT
) -> tuple[Levels, Interval]:
    """Return the network after its first layer that may move, and the range of that layer's pre-activations at each point.

    With `whole`, after its first layer in any case; but a first convolution that may move stays whole, since the uses of its
    weights move together: level 0 is the input itself.
    Shapes: points (batch, inputs)
    """
    stages = stages_of(network, parameters, budget.memory)
    return advanced(Levels(Activation.LINEAR, stages), enclosed(points), whole)


def advanced(levels: Levels, start: Interval, whole: bool) -> tuple[Levels, Interval]:
    """Take the first level off the front, and (unless `whole`) all that are known but for rounding: whose parameters stay."""
    while levels.top > 1:
        stage = levels.stages[0]
        if stage.kernel is not None:
            break
        z = interval_step(stage, activate(levels.first, start, INTERVALS))
        levels, start = Levels(stage.activation, levels.stages[1:]), z
        if whole or not stage.fixed:
            break
    return levels, start


@dataclass(frozen=True, eq=False)
class Situation:
    """One input with everything bounded: levels, their bounds, and how to rebuild parameters from positions."""

    network: Network
    parameters: ParameterBox
    x: FloatArray
    levels: Levels
    bounds: list[Interval]
    budget: Budget = DEFAULT

    @classmethod
    def at(
        cls,
        network: Network,
        parameters: ParameterBox,
        x: FloatArray,
        tuning: Tuning = LEVEL_TUNING,
        budget: Budget = DEFAULT,
    ) -> Situation:
        """Bound all hidden levels. Shapes: x (inputs,)."""
        levels, start = levels_at(network, parameters, x[None], budget=budget)
        return cls(network, parameters, x, levels, pre_activations(levels, start, tuning, budget=budget), budget)

    def upper(self, rows: Rows, tuning: Tuning = ROOT_TUNING) -> FloatArray:
        """Bound rows over the logits from above."""
        zero = np.zeros(len(rows.nu), dtype=np.intp)
        return top_bounds(self.levels, self.bounds, rows.nu, rows.offset, zero, tuning, self.budget)

    def attacked(self, rows: Rows, rng: np.random.Generator) -> Found:
        """Attack each row from STARTS random ends (fewer if memory is short); the best of each row. Shapes: value (rows,)."""
        starts = max(1, min(STARTS, self.levels.rows(self.budget) // len(rows.nu)))
        nu, offset = np.repeat(rows.nu, starts, axis=0), np.repeat(rows.offset, starts)
        ends = [np.where(rng.random((len(nu), z.shape[1])) < 0.5, -1.0, 1.0) for z in self.bounds]
        found = climb(self.levels, self.bounds[0], nu, offset, ends, arrays=self.budget.arrays)
        best = found.value.reshape(-1, starts).argmax(axis=1) + starts * np.arange(len(rows.nu))
        return Found(found.value[best], [p[best] for p in found.positions])

    def example(self, positions: list[FloatArray], nu: FloatArray) -> Counterexample | None:
        """Rebuild parameters, as floats inside the box, from one position a hidden neuron and the row that is pushed up.

        Only where every parameter is used once, so that neurons have positions of their own.
        """
        found = parameters_at(self.network, self.parameters, self.x, self._of_layers(positions), nu)
        return self._of_parameters(found)

    def examples(self, rows: Rows) -> Iterator[Counterexample]:
        """Attack rows, and give what seems to bring one to 0."""
        if not self.network.is_dense:
            for nu, offset in zip(rows.nu, rows.offset.tolist(), strict=True):
                example, value = self.attacked_parameters(nu, -offset)
                if example is not None and value + offset >= 0:
                    yield example
            return
        found = self.attacked(rows, np.random.default_rng(0))
        for row in np.argsort(-found.value):
            example = self.example([p[row] for p in found.positions], rows.nu[row]) if found.value[row] >= 0 else None
            if example is not None:
                yield example

    def attacked_parameters(self, nu: FloatArray, enough: float = np.inf) -> tuple[Counterexample | None, float]:
        """Attack the parameters themselves; what nu . logits is there, in floats."""
        found, value = attack_shared(self.network, self.parameters, self.x, nu, enough)
        return self._of_parameters(found), value

    def _of_parameters(self, found: Parameters | None) -> Counterexample | None:
        return None if found is None else Counterexample(tuple(Fraction(value) for value in self.x.tolist()), found)

    def _of_layers(self, positions: list[FloatArray]) -> list[FloatArray]:
        """Positions of all hidden layers: those that were known and left out do not move; level 0 may be the input itself."""
        widths = [layer.outputs for layer in self.network.layers[:-1]]
        left_out = len(widths) - len(positions)
        return [-np.ones(n) for n in widths[: max(left_out, 0)]] + positions[max(-left_out, 0) :]


def decide_label(query: LabelQuery, budget: Budget) -> Claim:
    """Decide whether the label can change at one input."""
    deadline = time.monotonic() + budget.seconds
    x = query.domain.box.lower
    leads = Leads(query.network, query.level)
    label = stored_label(leads, x, budget.memory)
    if label is None:
        return Unknown("no precision settles the label at this input")
    if query.sigma:
        enough = _has_margin(query, x, label)
        if enough is None:
            return Unknown("no precision settles the margin at this input")
        if not enough:
            return Robust(Assurance.ROUNDED)
    pairs = leads.of_label(label)
    rows = Rows(leads.directions[pairs], leads.offset.upper[pairs], leads.strict[pairs])
    for tuning in (Tuning(0), LEVEL_TUNING):  # most inputs need no tuning
        situation = Situation.at(query.network, query.parameters, x, tuning, budget)
        upper = situation.upper(rows)
        open_ = np.flatnonzero(np.where(rows.strict, upper > 0, upper >= 0))
        if not len(open_):
            return Robust(Assurance.ROUNDED)
        rows = rows.take(open_[np.argsort(-upper[open_], kind="stable")])
        if tuning.steps or not query.network.is_dense:  # tuning costs more than an attack where there are convolutions
            example = _flipping(query, situation, rows)
            if example is not None:
                return Candidate(example)
    return _searched(query, situation, rows, budget, deadline)


def _flipping(query: LabelQuery, situation: Situation, rows: Rows) -> Counterexample | None:
    """Attack rows one after the other, and return the first counterexample that replays."""
    for example in situation.examples(rows):
        if violation_fault(query, example) is None:
            return example
    return None


def stored_label(leads: Leads, x: FloatArray, memory: int = MEMORY) -> int | None:
    """Return the stored network's label at an input, exactly; None if no precision settles it."""
    label = int(stored_labels(leads, x[None], memory)[0])
    return label if label >= 0 else _stored(leads.network, x).label(False, leads.level)


def stored_labels(leads: Leads, points: FloatArray | Interval, memory: int = MEMORY) -> npt.NDArray[np.int64]:
    """Return the stored network's labels where bounds settle them, else -1. Shapes: points (n, inputs); result (n,)."""
    logits = stored_logits(leads.network, points, memory)
    gains, losses = np.maximum(leads.directions, 0.0), np.minimum(leads.directions, 0.0)
    lead = up(logits.upper @ gains.T + logits.lower @ losses.T)  # two terms at most: one rounding
    behind = up(lead + leads.offset.upper) < 0
    labels = np.full(len(points), -1)
    for label in range(leads.network.class_count):
        labels[behind[:, leads.of_label(label)].all(axis=1)] = label
    return labels


def stored_logits(network: Network, points: FloatArray | Interval, memory: int = MEMORY) -> Interval:
    """Enclose the stored network's logits. Shapes: points (batch, inputs); result (batch, logits)."""
    z, activation = enclosed(points), Activation.LINEAR
    for stage in stored_stages(network, memory):
        z, activation = interval_step(stage, activate(activation, z, INTERVALS)), stage.activation
    return z


def _stored(network: Network, x: FloatArray) -> Replay:
    return Replay(network, Counterexample(tuple(Fraction(value) for value in x.tolist()), ()))


def _has_margin(query: LabelQuery, x: FloatArray, label: int) -> bool | None:
    replay = _stored(query.network, x)
    sign = decide(lambda: replay.margin(label, query.level) - to_exact([query.sigma])[0])
    return None if sign is None else sign >= 0


def estimate_margin(query: SigmaEstimate, budget: Budget) -> EstimateClaim:
    """Enclose sigma at one input: its margin if its label can change, else 0."""
    x = query.domain.box.lower
    leads = Leads(query.network, query.level)
    own = stored_label(leads, x, budget.memory)
    if own is not None and own != query.label:
        return EstimateClaim(0.0, None, Assurance.ROUNDED)
    claim = decide_label(LabelQuery(query.network, query.parameters, query.domain, query.level), budget)
    if isinstance(claim, Robust):
        return EstimateClaim(0.0, None, Assurance.ROUNDED)
    replay = _stored(query.network, x)
    upper = 1.0 if own is None else max(float_bounds(lambda: replay.margin(query.label, query.level))[1], 0.0)
    witness = claim.counterexample if isinstance(claim, Candidate) and own is not None else None
    return EstimateClaim(upper, witness, Assurance.ROUNDED, reason=claim.reason if isinstance(claim, Unknown) else "")


def _searched(query: LabelQuery, situation: Situation, rows: Rows, budget: Budget, deadline: float) -> Claim:
    """Search all rows at once; then, row by row, with cuts; then with tighter bounds and cuts."""
    started = time.monotonic()
    left = deadline - started
    tree = NeuronTree(situation.levels, situation.bounds, rows, attacks=query.network.is_dense, budget=budget)
    if not covers(query.network) or budget.arrays is not None:
        return _explored(query, situation, tree, budget, deadline)[0]
    claim, nodes = _explored(query, situation, tree, budget, started + SPLITTING * left)
    if isinstance(claim, Unknown) and nodes is not None and len(nodes):
        claim, rows = _with_cuts(query, situation, rows.take(np.unique(nodes.parts[0])), budget, started + CUTTING * left)
        if isinstance(claim, Unknown) and time.monotonic() < deadline:
            bounds = tightened(situation.levels, situation.bounds, TIGHTENING * left, budget)
            claim, _ = _with_cuts(query, replace(situation, bounds=bounds), rows, budget, deadline)
    return claim


def _with_cuts(query: LabelQuery, situation: Situation, rows: Rows, budget: Budget, deadline: float) -> tuple[Claim, Rows]:
    """Search rows with their own cuts, the worst first until one stays open; return also those that are left."""
    found = cut_rows(query, situation.bounds, rows, 0.5 * (deadline - time.monotonic()))
    upper = np.array([cut.upper for cut in found])
    open_ = np.flatnonzero(np.where(rows.strict, upper > 0, upper >= 0))
    open_ = open_[np.argsort(-upper[open_], kind="stable")]
    for count, row in enumerate(open_.tolist()):
        own = rows.take(np.array([row]))
        tree = NeuronTree(situation.levels, situation.bounds, own, budget=budget, cuts=found[row].cuts)
        claim, _ = _explored(query, situation, tree, budget, deadline)
        if not isinstance(claim, Robust):
            return claim, rows.take(open_[count:])
    return Robust(Assurance.ROUNDED), rows.take(open_[:0])


def _explored(
    query: LabelQuery, situation: Situation, tree: NeuronTree, budget: Budget, deadline: float
) -> tuple[Claim, Nodes | None]:
    """Search a tree; return also the nodes that are left."""
    replayed: list[Counterexample] = []

    def flips(outcome: Outcome) -> bool:
        if tree.point is None or tree.point.value < 0:
            return False
        example = situation.example(tree.point.positions, tree.rows.nu[tree.point.row])
        tree.point = None
        if example is not None and violation_fault(query, example) is None:
            replayed.append(example)
        return bool(replayed)

    outcome = explore(tree, budget, tolerance=0.0, stop=flips, batch=tree.batch(BATCH), deadline=deadline)
    if replayed:
        return Candidate(replayed[0]), None
    if outcome.open is not None and not len(outcome.open) and outcome.upper <= BELOW_ZERO:
        return Robust(Assurance.ROUNDED), None
    return Unknown(outcome.reason or "the worst case is a tie that rounding hides"), outcome.open


def screen_labels(
    leads: Leads, parameters: ParameterBox, points: FloatArray | Interval, budget: Budget = DEFAULT
) -> npt.NDArray[np.bool_]:
    """Return which points' labels surely hold, by linear bounds alone, many together. Shapes: points (n, inputs); (n,)."""
    step = inputs_at_a_time(leads.network, budget)
    x = enclosed(points)
    return np.concatenate([_screened(leads, parameters, x[i : i + step], budget) for i in range(0, len(x), step)])


def inputs_at_a_time(network: Network, budget: Budget) -> int:
    """Return how many inputs the budget's memory allows to bound together. Raises ResourceError if not even one."""
    each = 8 * INPUT_ARRAYS * (network.inputs + sum(layer.outputs for layer in network.layers))
    return at_a_time(each, budget.memory, Part.INPUTS, "one input", AT_A_TIME)


def _screened(leads: Leads, parameters: ParameterBox, x: Interval, budget: Budget) -> npt.NDArray[np.bool_]:
    labels = stored_labels(leads, x, budget.memory)
    levels, start = levels_at(leads.network, parameters, x, budget=budget)
    bounds = pre_activations(levels, start, Tuning(0), budget=budget)
    boxes, pairs = np.nonzero(leads.pairs[:, 0][None] == labels[:, None])
    upper = top_bounds(levels, bounds, leads.directions[pairs], leads.offset.upper[pairs], boxes, ROOT_TUNING, budget)
    beaten = np.where(leads.strict[pairs], upper > 0, upper >= 0)
    safe = labels >= 0
    safe[boxes[beaten]] = False
    return safe


def screen_label_boxes(
    leads: Leads, parameters: ParameterBox, boxes: Interval, budget: Budget = DEFAULT
) -> npt.NDArray[np.bool_]:
    """Return in which boxes of inputs all labels surely hold, by linear bounds alone. Shapes: boxes (n, inputs); (n,).

    Only boxes that surely have one label count: there no rival overtakes it, at the stored parameters or in the box.
    """
    step = inputs_at_a_time(leads.network, budget)
    return np.concatenate([_one_label(leads, parameters, boxes[i : i + step], budget) for i in range(0, len(boxes), step)])


def _one_label(leads: Leads, parameters: ParameterBox, boxes: Interval, budget: Budget) -> npt.NDArray[np.bool_]:
    labels = stored_labels(leads, boxes.middle, budget.memory)
    everywhere = [stages_of(leads.network, parameters, budget.memory)]
    if parameters.shifted:
        everywhere.append(stored_stages(leads.network, budget.memory))
    numbers, pairs = np.nonzero(leads.pairs[:, 0][None] == labels[:, None])
    safe = labels >= 0
    for stages in everywhere:
        levels = Levels(Activation.LINEAR, stages)
        bounds = pre_activations(levels, boxes, Tuning(0), budget=budget)
        upper = top_bounds(levels, bounds, leads.directions[pairs], leads.offset.upper[pairs], numbers, ROOT_TUNING, budget)
        safe[numbers[np.where(leads.strict[pairs], upper > 0, upper >= 0)]] = False
    return safe


def estimate_change(query: EpsilonEstimate | ConfidenceQuery, budget: Budget, tolerance: float) -> EstimateClaim:
    """Enclose the greatest change of a confidence at one input: an upper end, and a witness of the lower."""
    if query.network.output is Output.SIGMOID:
        return _change_of_sigmoid(query, budget, tolerance)
    return _change_of_softmax(query, budget)


def _change_of_sigmoid(query: EpsilonEstimate | ConfidenceQuery, budget: Budget, tolerance: float) -> EstimateClaim:
    x = query.domain.box.lower
    situation = Situation.at(query.network, query.parameters, x, budget=budget)
    before = interval.sigmoid(stored_logits(query.network, x[None], budget.memory))
    upper, reason, witnesses = 0.0, "", []
    for sign in (1.0, -1.0):
        example: Counterexample | None = None
        rows = Rows(np.array([[sign]]), np.zeros(1), np.zeros(1, dtype=bool))
        if query.network.is_dense:
            found = situation.attacked(rows, np.random.default_rng(0))
            tree = NeuronTree(situation.levels, situation.bounds, rows, cut=float(found.value[0]), climbs=True, budget=budget)
            tree.offer_full(found, np.zeros(1, dtype=np.intp))
        else:
            example, value = situation.attacked_parameters(rows.nu[0])
            tree = NeuronTree(situation.levels, situation.bounds, rows, cut=value, attacks=False, budget=budget)
        # The sigmoid's slope is at most 1/4: four times the tolerance on the logit is enough.
        half = replace(budget, seconds=budget.seconds / 2)
        outcome = explore(tree, half, tolerance=4 * tolerance, batch=tree.batch(BATCH))
        end = Interval.point(np.array([[sign * outcome.upper]]))
        after = interval.sigmoid(end)
        change = (after - before).upper if sign > 0 else (before - after).upper
        upper, reason = max(upper, float(change[0, 0])), outcome.reason or reason
        if tree.point is not None:
            example = situation.example(tree.point.positions, rows.nu[0])
        witnesses += [example] if example is not None else []
    return EstimateClaim(min(upper, 1.0), _largest(query, witnesses), Assurance.ROUNDED, reason=reason)


def _change_of_softmax(query: EpsilonEstimate | ConfidenceQuery, budget: Budget) -> EstimateClaim:
    x, classes = query.domain.box.lower, query.network.class_count
    situation = Situation.at(query.network, query.parameters, x, budget=budget)
    leads = Leads(query.network, Fraction(1, 2))
    rows = Rows(leads.directions, np.zeros(len(leads.pairs)), leads.strict)
    greatest = situation.upper(rows)  # of z_rival - z_label
    table = np.zeros((classes, classes))
    table[leads.pairs[:, 0], leads.pairs[:, 1]] = greatest
    before = interval.softmax(stored_logits(query.network, x[None], budget.memory))
    ends = []
    for values in (-table.T, table):  # the least and the greatest z_j - z_c: confidence c at its greatest and least
        shifted = Interval.point(np.where(np.eye(classes, dtype=bool), 0.0, values))
        ends.append(interval.softmax(shifted))
    diagonal = np.arange(classes)
    rise = (Interval(ends[0].lower[diagonal, diagonal], ends[0].upper[diagonal, diagonal]) - before[0]).upper
    fall = (before[0] - Interval(ends[1].lower[diagonal, diagonal], ends[1].upper[diagonal, diagonal])).upper
    if query.network.is_dense:
        found = situation.attacked(rows, np.random.default_rng(0))
        examples = [situation.example([p[i] for p in found.positions], nu) for i, nu in enumerate(rows.nu)]
    else:
        examples = [situation.attacked_parameters(nu)[0] for nu in rows.nu]
    witness = _largest(query, [e for e in examples if e is not None])
    reason = "for several classes the differences of logits are bounded one by one"
    return EstimateClaim(min(max(float(rise.max()), float(fall.max()), 0.0), 1.0), witness, Assurance.ROUNDED, reason=reason)


def _largest(query: EpsilonEstimate | ConfidenceQuery, examples: list[Counterexample]) -> Counterexample | None:
    """Return the example with the greatest change, by forecast."""
    if not examples:
        return None
    sizes = [max(abs(float(c)) for c in Replay(query.network, e).change()) for e in examples]
    return examples[int(np.argmax(sizes))]
