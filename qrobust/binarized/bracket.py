"""An ordinary network f between two networks of signs: one proves that f says a class, one proves that it does not.

    yes(x) = 1  =>  f(x) is the class          no(x) = 1  =>  f(x) is not the class          both 0: ask f

Both read the bits of one thermometer code, and stand side by side in one binarized network of three scores, ASK, YES and NO:
ASK is 0, the others are the sums of each one's own signs less its output threshold, and the greatest score is the answer (ASK
where they are equal). So whatever is asked about binarized networks can be asked about a bracket.

Property  f(x) is the class means that its logit is strictly greater than every rival's (for one sigmoid: is not 0), so no rule
          for ties matters. `bracket_proof` proves both implications for every real input of the code's box
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np

from qrobust.binarized.folding import Folded, fold
from qrobust.binarized.network import BinarizedNetwork, Block, Grid, Linear
from qrobust.binarized.thermometer import Thermometer
from qrobust.errors import DomainError, ShapeError
from qrobust.interval import FloatArray
from qrobust.layers import Dense, IntArray
from qrobust.network import Activation, Network

ASK, YES, NO = 0, 1, 2
MOST_CELLS = 2**20  # whose answers are tried one by one
SAMPLES = 200_000  # points in place of more cells
CONFIDENCE = 0.99  # of the interval that the points give
NUMBER_BITS = 32  # of each stored real number of f, and of each threshold of the code
WEIGHT_BITS = 2  # of -1, 0 and 1


class Side(Enum):
    """Which of the two networks: the number is its score."""

    YES = YES
    NO = NO

    @property
    def word(self) -> str:
        return self.name.lower()


def class_index(network: Network, name: str) -> int:
    """Return the class of a name or a number. Raises DomainError if it does not exist."""
    if name in network.classes:
        return network.classes.index(name)
    if name.isdecimal() and int(name) < network.class_count:
        return int(name)
    known = ", ".join(f"{i} ({network.class_name(i)})" for i in range(network.class_count))
    raise DomainError(f"the network has no class {name!r}: it has {known}")


@dataclass(frozen=True, eq=False)
class Half:
    """One network of signs over bits: signs(W_1 bits + b_1), and so on; it speaks where output @ signs > threshold.

    Shapes    layers of weights in {-1, 0, 1} (out, in) and biases (out,); output (last signs,), likewise
    """

    layers: tuple[tuple[IntArray, FloatArray], ...]
    output: IntArray
    threshold: int

    @property
    def greatest(self) -> int:
        """A sum that the output cannot exceed: with this threshold it is silent."""
        return int(np.abs(self.output).sum())

    def pruned(self) -> Half:
        """Return the same function without the neurons that nothing listens to."""
        layers, wanted = list(self.layers), self.output != 0
        output = self.output
        for number in range(len(layers) - 1, -1, -1):
            weight, bias = layers[number]
            wanted[0] |= not wanted.any()  # a layer keeps one neuron
            layers[number] = weight[wanted], bias[wanted]
            if number == len(layers) - 1:
                output = output[wanted]
            else:
                after, own = layers[number + 1]
                layers[number + 1] = after[:, wanted], own
            wanted = (layers[number][0] != 0).any(axis=0)
        return Half(tuple(layers), output, self.threshold)


@dataclass(frozen=True, eq=False)
class Bracket:
    """The pair, over a code. Shapes as `BinarizedNetwork`: as many inputs as the code has bits, three scores.

    `target` is f's name, `sha256` f's hash, `label` the class, by its number and its name.
    Raises    ShapeError
    """

    network: BinarizedNetwork
    code: Thermometer
    target: str
    sha256: str
    label: int
    class_name: str

    def __post_init__(self) -> None:
        if self.network.inputs != self.code.bits or self.network.outputs != 3:
            raise ShapeError(
                f"a bracket has a network of {self.code.bits} bits and 3 scores, not {self.network.inputs} and"
                f" {self.network.outputs}"
            )
        grid, output = self.network.grid, self.network.output
        if (grid.lowest, grid.highest) != (0, 1) or grid.step != 1 or grid.offset != 0:
            raise ShapeError("a bracket's network takes bits: inputs 0 and 1")
        if output.matrix[[ASK]].nnz or output.layer.bias[ASK] != 0 or (output.scale != 1).any():
            raise ShapeError("a bracket's first score is 0 throughout, and its scores have scale 1")

    @classmethod
    def of_halves(cls, network: Network, label: int, code: Thermometer, halves: dict[Side, Half]) -> Bracket:
        """Put two networks of equal depth side by side. Raises ShapeError."""
        yes, no = halves[Side.YES].pruned(), halves[Side.NO].pruned()
        if len(yes.layers) != len(no.layers):
            raise ShapeError(f"the two networks have {len(yes.layers)} and {len(no.layers)} hidden layers, not as many")
        blocks = []
        for number, (first, second) in enumerate(zip(yes.layers, no.layers, strict=True)):
            weight = np.concatenate([first[0], second[0]]) if number == 0 else _diagonal(first[0], second[0])
            blocks.append(Block(_linear(weight, np.concatenate([first[1], second[1]]))))
        rows = [yes.output[None], no.output[None]]
        output = _diagonal(*rows) if blocks else np.concatenate(rows)
        scores = np.concatenate([np.zeros((1, output.shape[1]), dtype=np.int64), output])
        last = _linear(scores, -np.array([0.0, yes.threshold, no.threshold]))
        name = network.class_name(label)
        classes = (f"ask {network.name or 'f'}", name, f"not {name}")
        title = f"{network.name or 'f'}: {name}?"
        binarized = BinarizedNetwork(Grid.of(1, 0, 1), tuple(blocks), last, title, classes)
        return cls(binarized, code, network.name, network.sha256, label, name)

    def __str__(self) -> str:
        return f"bracket of {self.target or 'f'} by class {self.class_name}: {self.network}"

    @cached_property
    def folded(self) -> Folded:
        return fold(self.network)

    def check_belongs(self, network: Network) -> None:
        """Raise DomainError unless the bracket was made for this network, and names its class as the network does."""
        if network.sha256 != self.sha256:
            raise DomainError(
                f"the bracket was made for network {self.sha256[:12]} ({self.target}), this one is {network.sha256[:12]}"
            )
        if not 0 <= self.label < network.class_count or self.class_name != network.class_name(self.label):
            raise DomainError(f"the bracket calls class {self.label} {self.class_name!r}, the network has no such class")

    def answers(self, x: FloatArray) -> IntArray:
        """Return ASK, YES or NO at inputs. Shapes: x (batch, features); result (batch,). Raises ShapeError, DomainError."""
        return self.folded.labels(self.code.encode(x))

    def answers_of(self, codes: IntArray) -> IntArray:
        """Return ASK, YES or NO at codes. Shapes: codes (batch, features); result (batch,)."""
        return self.folded.labels(self.code.bits_of(codes))

    def cost(self) -> Cost:
        """Count what both networks take together for one answer; weights of 0 are neither stored nor added."""
        linears = self.network.linears
        used = int((linears[0].layer.weight != 0).any(axis=0).sum())
        weights = sum(int(np.count_nonzero(linear.layer.weight)) for linear in linears)
        neurons = sum(block.linear.channels for block in self.network.blocks) + 2
        counters = sum(_counter_bits(linear) for linear in linears)
        bits = NUMBER_BITS * used + WEIGHT_BITS * weights + counters
        return Cost(bits, 0, weights, used + neurons, 0)


def _diagonal(first: IntArray, second: IntArray) -> IntArray:
    found = np.zeros((len(first) + len(second), first.shape[1] + second.shape[1]), dtype=np.int64)
    found[: len(first), : first.shape[1]], found[len(first) :, first.shape[1] :] = first, second
    return found


def _linear(weight: IntArray, bias: FloatArray) -> Linear:
    return Linear(Dense(weight.astype(np.float64), bias), np.ones(len(weight)))


def _counter_bits(linear: Linear) -> int:
    """Return the bits of the integer thresholds of a layer, each wide enough for any sum of its row."""
    sums = np.count_nonzero(linear.layer.weight, axis=1)
    return int(sum(math.ceil(math.log2(2 * int(n) + 2)) for n in sums if n))


@dataclass(frozen=True)
class Cost:
    """What one answer takes: bits stored, and operations. Exponentials are those of sigmoid, tanh and softmax."""

    bits: int
    multiplications: int
    additions: int
    comparisons: int
    exponentials: int

    def to_json(self) -> dict[str, int]:
        """Return the counts as JSON values."""
        return dict(vars(self))


def cost_of(network: Network) -> Cost:
    """Count what a label of an ordinary network takes: its last function changes no label and is left out."""
    products = sum(layer.outputs * (layer.weight.size // max(len(layer.bias), 1)) for layer in network.layers)
    curved = (Activation.SIGMOID, Activation.TANH)
    exponentials = sum(layer.outputs for layer in network.hidden_layers if layer.activation in curved)
    relus = sum(layer.outputs for layer in network.hidden_layers if layer.activation is Activation.RELU)
    rivals = network.class_count - 1
    return Cost(NUMBER_BITS * network.parameter_count, products, products, relus + rivals, exponentials)


@dataclass(frozen=True)
class Coverage:
    """Shares of the domain's volume, or of rows, that are answered yes, and no; and over how many cells, points or rows.

    `exact` says that every cell was tried (up to the rounding of the sum); else `low` and `high` enclose the share answered
    with probability CONFIDENCE (Clopper and Pearson 1934, Biometrika 26).
    """

    yes: float
    no: float
    count: int
    exact: bool
    low: float
    high: float

    @property
    def answered(self) -> float:
        return self.yes + self.no

    def to_json(self) -> dict[str, Any]:
        """Return the shares as JSON values."""
        return {"answered": self.answered, **vars(self)}


Answer = Callable[[IntArray], IntArray]
"""ASK, YES or NO at codes. Shapes: codes (batch, features); result (batch,)."""


def coverage_of_rows(code: Thermometer, answer: Answer, rows: FloatArray) -> Coverage:
    """Return the shares of rows that are answered; there must be one. Raises ShapeError, DomainError."""
    code.check_inside(rows)
    answers = answer(code.codes(rows))
    yes, no = float((answers == YES).mean()), float((answers == NO).mean())
    return Coverage(yes, no, len(rows), True, yes + no, yes + no)


def coverage_of_volume(code: Thermometer, answer: Answer, rng: np.random.Generator) -> Coverage:
    """Return the shares of the box's volume that are answered: by all cells, or by points where these are too many."""
    if code.cells <= MOST_CELLS:
        shares = np.zeros(3)
        for codes in code.all_codes():
            shares += np.bincount(answer(codes), weights=code.shares(codes), minlength=3)
        yes, no = float(shares[YES]), float(shares[NO])
        return Coverage(yes, no, code.cells, True, yes + no, yes + no)
    answers = answer(code.codes(code.random_points(SAMPLES, rng)))
    yes, no = float((answers == YES).mean()), float((answers == NO).mean())
    return Coverage(yes, no, SAMPLES, False, *_clopper_pearson(int((answers != ASK).sum()), SAMPLES))


def _clopper_pearson(hits: int, count: int) -> tuple[float, float]:
    from scipy.stats import beta

    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(1 - tail, hits + 1, count - hits))
    return low, high
