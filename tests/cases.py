"""Golden cases: questions small enough to be solved on paper, with the paper in the comments.

Weights, biases, inputs and deltas are dyadic, so that the arithmetic on paper is that of the stored numbers. z is a logit,
w a weight, b a bias, h a hidden value, d the delta, s the sigmoid. `by` lists the backends that have to decide a case, and
`cannot` those that refuse it; any other backend may also say UNKNOWN. dReal is in neither list: it is held to correctness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from flint import arb, ctx, fmpq

from qrobust.answers import AnyQuery, Verdict
from qrobust.domains import InputBox, ParameterBox, Point, Points, Polytope
from qrobust.network import Activation, Dense, Network, Output
from qrobust.perturbations import Absolute, Hull, PerLayer
from qrobust.queries import (
    GlobalConfidence,
    GlobalEpsilon,
    GlobalLabel,
    GreatestDelta,
    LocalConfidence,
    LocalEpsilon,
    LocalLabel,
    MarginLabel,
    SigmaEstimate,
)

CLOSED, Z3, SEARCH = "closed-form", "z3", "branch-and-bound"
ALL = (CLOSED, Z3, SEARCH)
ROBUST, VIOLATED = Verdict.ROBUST, Verdict.VIOLATED
BITS = 256
QUARTER, TENTH = Fraction(1, 4), Fraction(1, 10)

Expected = Verdict | Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A query, its verdict (or a function that gives its value, a number of python-flint), and who must decide it."""

    name: str
    query: AnyQuery
    expected: Expected
    by: tuple[str, ...]
    cannot: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict | None:
        """The verdict of a decision query."""
        return self.expected if isinstance(self.expected, Verdict) else None

    def is_below(self, end: float) -> bool:
        """Whether the value of an estimate is surely less than a float."""
        return self._compare(end, lambda value, limit: value < limit)

    def is_above(self, end: float) -> bool:
        """Whether the value of an estimate is surely more than a float."""
        return self._compare(end, lambda value, limit: value > limit)

    def _compare(self, end: float, relation: Callable[[Any, Any], bool]) -> bool:
        assert callable(self.expected)
        if np.isinf(end):
            return bool(relation(0, end))
        with ctx.workprec(BITS):
            return bool(relation(self.expected(), fmpq(*end.as_integer_ratio())))


def s(z: Any) -> Any:
    """The sigmoid."""
    return 1 / (1 + (-arb(z)).exp())


def number(numerator: int, denominator: int = 1) -> Callable[[], Any]:
    """A value that is rational."""
    return lambda: fmpq(numerator, denominator)


def network(*layers: tuple[Any, Any], hidden: Activation = Activation.RELU) -> Network:
    """Build a network from (weight, bias) pairs."""
    last = len(layers) - 1
    dense = tuple(
        Dense(np.array(weight, dtype=float), np.array(bias, dtype=float), Activation.LINEAR if k == last else hidden)
        for k, (weight, bias) in enumerate(layers)
    )
    return Network(dense, Output.SIGMOID if dense[-1].outputs == 1 else Output.SOFTMAX)


def ball(net: Network, d: float) -> ParameterBox:
    """All parameters within d."""
    return Absolute(d).around(net)


def weights_only(net: Network, d: float) -> ParameterBox:
    """All weights within d."""
    return Absolute(d, biases=False).around(net)


def biases_only(net: Network, d: float) -> ParameterBox:
    """All biases within d."""
    return Absolute(d, weights=False).around(net)


def by_layer(net: Network, *deltas: float) -> ParameterBox:
    """All parameters within the delta of their layer."""
    return PerLayer(deltas).around(net)


def copy_of(*layers: tuple[Any, Any]) -> ParameterBox:
    """The box of one single concrete copy, which need not hold the stored parameters."""
    return ParameterBox.from_arrays(layers, layers, shifted=True, rule="this quantized copy")


def at(*x: float) -> Point:
    """One input."""
    return Point(list(x))


def over(*sides: tuple[float, float]) -> InputBox:
    """A box of inputs."""
    return InputBox([low for low, _ in sides], [high for _, high in sides])


def cut(box: InputBox, row: Sequence[float], limit: float) -> Polytope:
    """The part of a box with row @ x <= limit."""
    return Polytope(box, [list(row)], [limit])


# z = x - 1/2, so f > 1/2 iff x > 1/2. Within d, for x >= 0: z' lies in z +- d (x + 1).
LINE = network(([[1]], [-0.5]))
UNIT = over((0, 1))

LINE_LABELS = [
    # x = 1: z = 1/2 is class 1; the least z' is 1/2 - 2/4 = 0 exactly, which is class 0.
    Case("1 to 0 exactly at the tie", LocalLabel(LINE, ball(LINE, 0.25), at(1)), VIOLATED, (CLOSED, Z3)),
    # ... and 1/2 - 2/8 = 1/4 > 0.
    Case("1 stays 1", LocalLabel(LINE, ball(LINE, 0.125), at(1)), ROBUST, ALL),
    # ... and 1/2 - 2 * 3/8 = -1/4 < 0.
    Case("1 to 0", LocalLabel(LINE, ball(LINE, 0.375), at(1)), VIOLATED, ALL),
    # x = 0: z = -1/2 is class 0; the greatest z' is -1/2 + 1/2 = 0, still class 0.
    Case("0 stays 0 at the tie", LocalLabel(LINE, ball(LINE, 0.5), at(0)), ROBUST, (CLOSED, Z3)),
    # ... and -1/2 + 3/4 = 1/4 > 0.
    Case("0 to 1", LocalLabel(LINE, ball(LINE, 0.75), at(0)), VIOLATED, ALL),
    # x = 1/2: z = 0 is class 0. d = 0 leaves it; d = 1/4 lifts z' to 3/8 > 0.
    Case("a tie left alone", LocalLabel(LINE, ball(LINE, 0), at(0.5)), ROBUST, (CLOSED, Z3)),
    Case("a tie lifted", LocalLabel(LINE, ball(LINE, 0.25), at(0.5)), VIOLATED, (CLOSED, Z3)),
    # x = 1/2, only the copy w = 1/2, b = -1/2: z' = -1/4, class 0 as before.
    Case("a tie lowered", LocalLabel(LINE, copy_of(([[0.5]], [-0.5])), at(0.5)), ROBUST, (CLOSED, Z3)),
    # x = 1, weights only: z' >= 3/4 - 1/2 = 1/4 at d = 1/4; all parameters would reach 0.
    Case("weights only", LocalLabel(LINE, weights_only(LINE, 0.25), at(1)), ROBUST, ALL),
    # x = 3, z = 5/2: weights only reach 5/2 - 3 < 0 at d = 1, biases only 5/2 - 1 > 0.
    Case("weights only, far out", LocalLabel(LINE, weights_only(LINE, 1.0), at(3)), VIOLATED, ALL),
    Case("biases only, far out", LocalLabel(LINE, biases_only(LINE, 1.0), at(3)), ROBUST, ALL),
]

LEVELS = [
    # Level 7/10: class 1 iff z > log(7/3) = 0.8473. x = 2: z = 3/2; z' >= 3/2 - 3/4 = 0.75 at d = 1/4, 1.125 at 1/8.
    Case("level 0.7 crossed", LocalLabel(LINE, ball(LINE, 0.25), at(2), level=Fraction(7, 10)), VIOLATED, ALL),
    Case("level 0.7 kept", LocalLabel(LINE, ball(LINE, 0.125), at(2), level=Fraction(7, 10)), ROBUST, ALL),
    # Level 1/4: class 1 iff z > -log 3 = -1.0986. x = 0: z = -1/2 is class 1; z' >= -1 at d = 1/2, -1.25 at d = 3/4.
    Case("level 1/4 kept", LocalLabel(LINE, ball(LINE, 0.5), at(0), level=QUARTER), ROBUST, ALL),
    Case("level 1/4 crossed", LocalLabel(LINE, ball(LINE, 0.75), at(0), level=QUARTER), VIOLATED, ALL),
    # Level 1/4, x = 1/2: z = 0, f = 1/2, margin exactly 1/4. z' reaches -3/2 * 3/4 = -1.125 < -1.0986: class 0.
    Case(
        "a margin of exactly sigma counts",
        LocalLabel(LINE, ball(LINE, 0.75), at(0.5), level=QUARTER, sigma=QUARTER),
        VIOLATED,
        ALL,
    ),
    Case(
        "a margin a little under sigma does not count",
        LocalLabel(LINE, ball(LINE, 0.75), at(0.5), level=QUARTER, sigma=QUARTER + Fraction(1, 2**40)),
        ROBUST,
        ALL,
    ),
    # f > 1/4 leaves margins up to 3/4 above and 1/4 below the level: no input has margin 3/4.
    Case(
        "a margin that no input has",
        MarginLabel(LINE, ball(LINE, 8.0), UNIT, level=QUARTER, sigma=Fraction(3, 4)),
        ROBUST,
        (Z3, SEARCH),
        (CLOSED,),
    ),
]

# x = 1: z in [0, 1], f in [1/2, s(1)] around s(1/2) = 0.622459: falls by 0.122459, rises by 0.108600.
LINE_CHANGES = [
    Case("eps just enough", LocalConfidence(LINE, ball(LINE, 0.25), at(1), Fraction("0.12246")), ROBUST, ALL),
    Case("eps not enough", LocalConfidence(LINE, ball(LINE, 0.25), at(1), Fraction("0.12245")), VIOLATED, ALL),
    Case("eps at a point", LocalEpsilon(LINE, ball(LINE, 0.25), at(1)), lambda: s(fmpq(1, 2)) - fmpq(1, 2), ALL),
    # No change at all is a change of at most 0: with d = 0; and at x = 0 with w alone free, for w * 0 = 0.
    Case("a change of exactly eps", LocalConfidence(LINE, ball(LINE, 0), at(1), Fraction(0)), ROBUST, (CLOSED,)),
    Case("an unused weight", LocalConfidence(LINE, weights_only(LINE, 4.0), at(0), Fraction(0)), ROBUST, (CLOSED,)),
    # Confidences lie strictly between 0 and 1.
    Case("eps 1", LocalConfidence(LINE, ball(LINE, 64.0), at(1), Fraction(1)), ROBUST, ALL),
    # d = 0: nothing moves.
    Case("eps of nothing", LocalEpsilon(LINE, ball(LINE, 0), at(1)), number(0), ALL),
    # x = -1, d = 1/2: z = -3/2 +- d (|x| + 1) = [-5/2, -1/2]: rises by s(-1/2) - s(-3/2) = 0.195, falls by 0.107.
    Case("eps at a negative input", LocalEpsilon(LINE, ball(LINE, 0.5), at(-1)), lambda: s(fmpq(-1, 2)) - s(fmpq(-3, 2)), ALL),
]

# z = x1 - x2. At (1, -1): z = 2, and each of w1 x1, w2 x2, b falls by d: z' >= 2 - 3 d.
SIGNS = network(([[1, -1]], [0]))
# One hidden neuron h = relu(x), z = h - 1. At x = 2, z' >= (1 - d)(2 - 3 d) - 1 - d and z' <= (1 + d)(2 + 3 d) - 1 + d.
RAMP = network(([[1]], [0]), ([[1]], [-1]))
# h = relu(-x - 1) is 0 at x = 1 for d <= 1/4: its pre-activation is at most -2 + 2 d. z = 4 h + 1/4.
DEAD = network(([[-1]], [-1]), ([[4]], [0.25]))
# h = x, z = -h. At x = -1: h in [-1 - 2 d, -1 + 2 d].
MIRROR = network(([[1]], [0]), ([[-1]], [0]), hidden=Activation.LINEAR)

ONE_HIDDEN_LAYER = [
    Case("signs kept", LocalLabel(SIGNS, ball(SIGNS, 0.5), at(1, -1)), ROBUST, ALL),  # 2 - 3/2 > 0
    Case("signs crossed", LocalLabel(SIGNS, ball(SIGNS, 0.75), at(1, -1)), VIOLATED, ALL),  # 2 - 9/4 < 0
    Case("ramp kept", LocalLabel(RAMP, ball(RAMP, 0.125), at(2)), ROBUST, ALL),  # 7/8 * 13/8 - 9/8 = 19/64
    Case("ramp crossed", LocalLabel(RAMP, ball(RAMP, 0.25), at(2)), VIOLATED, ALL),  # 3/4 * 5/4 - 5/4 = -5/16
    # z = 1 falls to 19/64, by 0.1574; it rises to 9/8 * 19/8 - 7/8 = 115/64, by 0.1267.
    Case("ramp's eps", LocalEpsilon(RAMP, ball(RAMP, 0.125), at(2)), lambda: s(1) - s(fmpq(19, 64)), ALL),
    # The dead neuron adds 0: z' = 1/4 +- d. At d = 1/4 it reaches 0, class 0; at 1/8 it does not; weights do nothing.
    Case("dead neuron, tie", LocalLabel(DEAD, ball(DEAD, 0.25), at(1)), VIOLATED, (CLOSED, Z3)),
    Case("dead neuron kept", LocalLabel(DEAD, ball(DEAD, 0.125), at(1)), ROBUST, ALL),
    Case("dead neuron, weights", LocalConfidence(DEAD, weights_only(DEAD, 0.25), at(1), Fraction(0)), ROBUST, (CLOSED,)),
    Case("dead neuron's eps", LocalEpsilon(DEAD, ball(DEAD, 0.25), at(1)), lambda: s(fmpq(1, 4)) - fmpq(1, 2), ALL),
    # First layer alone, d = 1/2: h reaches relu(-1 - 1 + 1) = 0 still; d = 5/4: relu(1/2) = 1/2, z' = 9/4.
    Case(
        "first layer wakes it", LocalEpsilon(DEAD, by_layer(DEAD, 1.25, 0), at(1)), lambda: s(fmpq(9, 4)) - s(fmpq(1, 4)), ALL
    ),
    Case("first layer does not", LocalConfidence(DEAD, by_layer(DEAD, 0.5, 0), at(1), Fraction(0)), ROBUST, (CLOSED,)),
    # d = 1/4: h <= -1/2, z' >= 3/4 * 1/2 - 1/4 = 1/8. d = 3/8: h <= -1/4, z' = 5/8 * 1/4 - 3/8 < 0.
    Case("negative hidden value kept", LocalLabel(MIRROR, ball(MIRROR, 0.25), at(-1)), ROBUST, ALL),
    Case("negative hidden value crossed", LocalLabel(MIRROR, ball(MIRROR, 0.375), at(-1)), VIOLATED, ALL),
]

# At x = 0 the first weight does not matter: h = act(+-d).
SIGMOIDS = network(([[1]], [0]), ([[4]], [-1]), hidden=Activation.SIGMOID)
TANH = network(([[1]], [0]), ([[2]], [0.75]), hidden=Activation.TANH)

TRANSCENDENTAL = [
    # z = 4 s(0) - 1 = 1. Biases within 1/4: from 4 s(-1/4) - 5/4 = 0.501 to 4 s(1/4) - 3/4 = 1.499. The fall is greater.
    Case("sigmoid kept", LocalLabel(SIGMOIDS, biases_only(SIGMOIDS, 0.25), at(0)), ROBUST, (CLOSED, SEARCH), (Z3,)),
    # 4 s(-1/2) - 3/2 = 0.010 > 0 and 4 s(-3/4) - 7/4 = -0.467 < 0.
    Case("sigmoid barely kept", LocalLabel(SIGMOIDS, biases_only(SIGMOIDS, 0.5), at(0)), ROBUST, (CLOSED, SEARCH), (Z3,)),
    Case("sigmoid crossed", LocalLabel(SIGMOIDS, biases_only(SIGMOIDS, 0.75), at(0)), VIOLATED, (CLOSED, SEARCH), (Z3,)),
    Case(
        "sigmoid's eps",
        LocalEpsilon(SIGMOIDS, biases_only(SIGMOIDS, 0.25), at(0)),
        lambda: s(1) - s(4 * s(fmpq(-1, 4)) - fmpq(5, 4)),
        (CLOSED, SEARCH),
        (Z3,),
    ),
    # Biases within 1/4: z' >= 2 tanh(-1/4) + 1/2 = 0.0102. With w free too: 9/4 tanh(-1/4) + 1/2 = -0.051.
    Case("tanh kept", LocalLabel(TANH, biases_only(TANH, 0.25), at(0)), ROBUST, (CLOSED, SEARCH), (Z3,)),
    Case("tanh crossed", LocalLabel(TANH, ball(TANH, 0.25), at(0)), VIOLATED, (CLOSED, SEARCH), (Z3,)),
    # Around s(3/4) = 0.679: down to s(1/2 - 9/4 tanh(1/4)) = 0.487, by 0.192; up to s(1 + 0.551) = 0.825, by 0.146.
    Case(
        "tanh's eps",
        LocalEpsilon(TANH, ball(TANH, 0.25), at(0)),
        lambda: s(fmpq(3, 4)) - s(fmpq(1, 2) - fmpq(9, 4) * arb(fmpq(1, 4)).tanh()),
        (CLOSED, SEARCH),
        (Z3,),
    ),
]

# h = relu(x + 1), two equal copies of it, z = their difference + 1/4. If only the first layer moves, z = 1/4 for ever;
# intervals see h in [3/2, 5/2] twice, at x = 1 and d = 1/4, and let z fall to -3/4.
TWINS = network(([[1]], [1]), ([[1], [1]], [0, 0]), ([[1, -1]], [0.25]))
TANH_TWINS = network(([[1]], [1]), ([[1], [1]], [0, 0]), ([[1, -1]], [0.25]), hidden=Activation.TANH)
TWO_LAYERS_ONLY = (Z3, SEARCH)

TWO_HIDDEN_LAYERS = [
    Case("twins", LocalLabel(TWINS, by_layer(TWINS, 0.25, 0, 0), at(1)), ROBUST, TWO_LAYERS_ONLY, (CLOSED,)),
    Case("twins' eps", LocalEpsilon(TWINS, by_layer(TWINS, 0.25, 0, 0), at(1)), number(0), TWO_LAYERS_ONLY, (CLOSED,)),
    # The last layer within 1/32: z' >= 1/4 - 1/32 - 2/32 * 5/2 = 1/16. Within 1/8: 1/4 - 1/8 - 2/8 * 5/2 = -1/2.
    Case("twins' last layer", LocalLabel(TWINS, by_layer(TWINS, 0.25, 0, 0.03125), at(1)), ROBUST, TWO_LAYERS_ONLY, (CLOSED,)),
    Case("twins parted", LocalLabel(TWINS, by_layer(TWINS, 0.25, 0, 0.125), at(1)), VIOLATED, TWO_LAYERS_ONLY, (CLOSED,)),
    # Greatest h is 5/2: z' in [1/16, 1/4 + 1/32 + 5/32 = 7/16]. s(7/16) - s(1/4) = 0.04549, s(1/4) - s(1/16) = 0.04656.
    Case(
        "twins' last layer's eps",
        LocalEpsilon(TWINS, by_layer(TWINS, 0.25, 0, 0.03125), at(1)),
        lambda: s(fmpq(1, 4)) - s(fmpq(1, 16)),
        TWO_LAYERS_ONLY,
        (CLOSED,),
    ),
    # Over [0, 1] as at 1, where h is greatest.
    Case("twins anywhere", GlobalLabel(TWINS, by_layer(TWINS, 0.25, 0, 0.03125), UNIT), ROBUST, TWO_LAYERS_ONLY, (CLOSED,)),
    # abs(tanh) < 1: z' > 1/4 - 1/16 - 2/16 > 0.
    Case("tanh twins", LocalLabel(TANH_TWINS, by_layer(TANH_TWINS, 0.25, 0, 0.0625), at(1)), ROBUST, (SEARCH,), (CLOSED, Z3)),
    # Nothing but the first layer moves, so z stays 1/4.
    Case(
        "tanh twins' eps", LocalEpsilon(TANH_TWINS, by_layer(TANH_TWINS, 0.25, 0, 0), at(1)), number(0), (SEARCH,), (CLOSED, Z3)
    ),
    # The last layer within 1/4: z' reaches 1/4 - 1/4 - 2/4 * tanh(5/2) < 0.
    Case(
        "tanh twins parted", LocalLabel(TANH_TWINS, by_layer(TANH_TWINS, 0, 0, 0.25), at(1)), VIOLATED, (SEARCH,), (CLOSED, Z3)
    ),
]

# z = x1 + x2 - 1, s(z) on the square [0, 2]^2; with t = x1 + x2, z' >= 7/8 t - 9/8 at d = 1/8.
SUM = network(([[1, 1]], [-1]))
SQUARE = over((0, 2), (0, 2))
NO_LOCAL = (CLOSED,)

GLOBAL_LABELS = [
    # Just above x = 1/2 any d > 0 is too much.
    Case("a threshold inside the domain", GlobalLabel(LINE, ball(LINE, 0.25), UNIT), VIOLATED, TWO_LAYERS_ONLY, NO_LOCAL),
    Case("delta 0 anywhere", GlobalLabel(LINE, ball(LINE, 0), UNIT), ROBUST, (Z3,), NO_LOCAL),
    # x >= 1: z' >= x - 1/2 - (x + 1)/8 >= 1/4.
    Case("far from the threshold", GlobalLabel(LINE, ball(LINE, 0.125), over((1, 2))), ROBUST, TWO_LAYERS_ONLY, NO_LOCAL),
    # t > 1 is class 1, and 7/8 t <= 9/8 for t <= 9/7: the square has such points, t >= 3/2 has not, t >= 5/4 has.
    Case("a square", GlobalLabel(SUM, ball(SUM, 0.125), SQUARE), VIOLATED, TWO_LAYERS_ONLY, NO_LOCAL),
    Case(
        "a polytope cuts the flips off",
        GlobalLabel(SUM, ball(SUM, 0.125), cut(SQUARE, [-1, -1], -1.5)),
        ROBUST,
        TWO_LAYERS_ONLY,
        NO_LOCAL,
    ),
    Case(
        "a polytope leaves some",
        GlobalLabel(SUM, ball(SUM, 0.125), cut(SQUARE, [-1, -1], -1.25)),
        VIOLATED,
        TWO_LAYERS_ONLY,
        NO_LOCAL,
    ),
    # z = 2 x + 4 on [-1, 1]: z' >= 2 x + 4 - d (|x| + 1), least at x = -1: 2 - 2 d. Zero at d = 1.
    Case(
        "inputs of either sign",
        GlobalLabel(network(([[2]], [4])), ball(network(([[2]], [4])), 0.5), over((-1, 1))),
        ROBUST,
        TWO_LAYERS_ONLY,
        NO_LOCAL,
    ),
    Case(
        "inputs of either sign, tie at a corner",
        GlobalLabel(network(([[2]], [4])), ball(network(([[2]], [4])), 1.0), over((-1, 1))),
        VIOLATED,
        (Z3,),
        NO_LOCAL,
    ),
    # x = 0: z' <= -3/8. x = 1: z' >= 1/4. x = 2: z' >= 9/8. x = 9/16: z = 1/16 falls below 0.
    Case("points", GlobalLabel(LINE, ball(LINE, 0.125), Points([[0], [1], [2]])), ROBUST, ALL),
    Case("points with a bad one", GlobalLabel(LINE, ball(LINE, 0.125), Points([[0.0], [0.5625], [2.0]])), VIOLATED, ALL),
]

# d = 1/4 on [0, 1]: the fall s(x - 1/2) - s(3/4 x - 3/4) rises with x, for s' >= 0.235 on [-1/2, 1/2] and 3/4 s' <= 0.1875;
# at x = 1 it is s(1/2) - 1/2 = 0.12246. The rise s(5/4 x - 1/4) - s(x - 1/2) has slope at least 5/4 * 0.1966 - 1/4 > -0.005
# and is 0.1086 at x = 1: nowhere above 0.114.
GLOBAL_CHANGES = [
    Case(
        "eps anywhere", GlobalEpsilon(LINE, ball(LINE, 0.25), UNIT), lambda: s(fmpq(1, 2)) - fmpq(1, 2), (SEARCH,), (CLOSED, Z3)
    ),
    Case(
        "eps anywhere, enough", GlobalConfidence(LINE, ball(LINE, 0.25), UNIT, Fraction(1, 8)), ROBUST, (SEARCH,), (CLOSED, Z3)
    ),
    Case(
        "eps anywhere, too small",
        GlobalConfidence(LINE, ball(LINE, 0.25), UNIT, Fraction(1080863910568919, 9007199254740992)),
        VIOLATED,
        (SEARCH,),
        (CLOSED, Z3),
    ),
    # Bias within 1/2: s(z + 1/2) - s(z) is greatest at z = -1/4, inside the square: s(1/4) - s(-1/4) = tanh(1/8).
    Case(
        "eps inside a square",
        GlobalEpsilon(SUM, biases_only(SUM, 0.5), SQUARE),
        lambda: arb(fmpq(1, 8)).tanh(),
        (SEARCH,),
        (CLOSED, Z3),
    ),
    # With x1 >= 3/2, z >= 1/2: the fall s(z) - s(z - 1/2) is greatest at z = 1/2, and falls exceed rises for z > 0.
    Case(
        "eps in a polytope",
        GlobalEpsilon(SUM, biases_only(SUM, 0.5), cut(SQUARE, [-1, 0], -1.5)),
        lambda: s(fmpq(1, 2)) - fmpq(1, 2),
        (SEARCH,),
        (CLOSED, Z3),
    ),
    # The same with t >= 3/2.
    Case(
        "eps in a polytope, enough",
        GlobalConfidence(SUM, biases_only(SUM, 0.5), cut(SQUARE, [-1, -1], -1.5), Fraction("0.1225")),
        ROBUST,
        (SEARCH,),
        (CLOSED, Z3),
    ),
    # Points 0 and 1 at d = 1/4: at 0 z = -1/2 +- 1/4, at most s(-1/4) - s(-1/2) = 0.060; at 1 it is 0.12246.
    Case("eps at points", GlobalEpsilon(LINE, ball(LINE, 0.25), Points([[0], [1]])), lambda: s(fmpq(1, 2)) - fmpq(1, 2), ALL),
    Case("eps at points, enough", GlobalConfidence(LINE, ball(LINE, 0.25), Points([[0], [1]]), Fraction(1, 8)), ROBUST, ALL),
    Case(
        "eps at points, too small", GlobalConfidence(LINE, ball(LINE, 0.25), Points([[0], [1]]), Fraction(1, 16)), VIOLATED, ALL
    ),
    # Nothing moves.
    Case("eps of nothing anywhere", GlobalEpsilon(RAMP, ball(RAMP, 0), UNIT), number(0), (SEARCH,), (CLOSED, Z3)),
]

# d = 1/4 on [0, 1]. From 1 to 0: 3/4 x - 3/4 <= 0, always; the margin s(x - 1/2) - 1/2 is greatest at x = 1, on the tie.
# From 0 to 1: 5/4 x - 1/4 > 0, so x > 1/5; the margin 1/2 - s(x - 1/2) nears s(3/10) - 1/2 = 0.0744, never attained.
SIGMAS = [
    Case(
        "sigma of 1",
        SigmaEstimate(LINE, ball(LINE, 0.25), UNIT, 1),
        lambda: s(fmpq(1, 2)) - fmpq(1, 2),
        TWO_LAYERS_ONLY,
        NO_LOCAL,
    ),
    Case(
        "sigma of 0",
        SigmaEstimate(LINE, ball(LINE, 0.25), UNIT, 0),
        lambda: s(fmpq(3, 10)) - fmpq(1, 2),
        TWO_LAYERS_ONLY,
        NO_LOCAL,
    ),
    Case("sigma enough", MarginLabel(LINE, ball(LINE, 0.25), UNIT, sigma=Fraction(1, 8)), ROBUST, TWO_LAYERS_ONLY, NO_LOCAL),
    Case(
        "sigma too small",
        MarginLabel(LINE, ball(LINE, 0.25), UNIT, sigma=Fraction("0.12")),
        VIOLATED,
        TWO_LAYERS_ONLY,
        NO_LOCAL,
    ),
    # Level 7/10, L = log(7/3) = 0.847: z <= 1/2 is class 0; 5/4 x - 1/4 > L for x > x* = (L + 1/4) 4/5 = 0.878.
    Case(
        "sigma at level 0.7",
        SigmaEstimate(LINE, ball(LINE, 0.25), UNIT, 0, level=Fraction(7, 10)),
        lambda: fmpq(7, 10) - s((arb(fmpq(7, 3)).log() + fmpq(1, 4)) * fmpq(4, 5) - fmpq(1, 2)),
        TWO_LAYERS_ONLY,
        NO_LOCAL,
    ),
    # Level 1/4: z' >= -3/4 > -1.0986, all is class 1 and stays so.
    Case(
        "sigma of no flip", SigmaEstimate(LINE, ball(LINE, 0.25), UNIT, 1, level=QUARTER), number(0), TWO_LAYERS_ONLY, NO_LOCAL
    ),
    Case(
        "sigma of no such label",
        SigmaEstimate(LINE, ball(LINE, 0.25), UNIT, 0, level=QUARTER),
        number(0),
        TWO_LAYERS_ONLY,
        NO_LOCAL,
    ),
    # At the point 1 with d = 3/8: it flips, with margin s(1/2) - 1/2; it has no other label; with d = 1/8 it does not flip.
    Case("sigma at a point", SigmaEstimate(LINE, ball(LINE, 0.375), at(1), 1), lambda: s(fmpq(1, 2)) - fmpq(1, 2), ALL),
    Case(
        "sigma at a point, tie",
        SigmaEstimate(LINE, ball(LINE, 0.25), at(1), 1),
        lambda: s(fmpq(1, 2)) - fmpq(1, 2),
        (CLOSED, Z3),
    ),
    Case("sigma of the other label", SigmaEstimate(LINE, ball(LINE, 0.375), at(1), 0), number(0), ALL),
    Case("sigma of a safe point", SigmaEstimate(LINE, ball(LINE, 0.125), at(1), 1), number(0), ALL),
]

# Three classes at x = 0: the logits are the biases.
TIED = network(([[1], [1], [-1]], [0, 0, 0]))  # at x = 1: (1, 1, -1)
FIRST = network(([[0], [0], [0]], [0.5, 0, -4]))
SECOND = network(([[0], [0], [0]], [0, 0.5, -4]))
EQUAL = network(([[0], [0], [0]], [0, 0, 0]))
PAIR = network(([[0], [0]], [0.5, 0]))
# Logits relu(x) and 1: class 0 from x = 1 on.
HINGE = network(([[1]], [0]), ([[1], [0]], [0, 1]))

CLASSES = [
    # 0 and 1 tie: the lowest index wins. The least rise of 1 over 0 changes that.
    Case("tied classes left alone", LocalLabel(TIED, ball(TIED, 0), at(1)), ROBUST, (CLOSED, Z3)),
    Case("tied classes", LocalLabel(TIED, ball(TIED, 0.0625), at(1)), VIOLATED, (CLOSED, Z3)),
    # 1 leads 0 by 1/2: at d = 1/4 they tie, and 0 has the lower index. At 3/16 it keeps a lead of 1/8.
    Case("1 to 0 at a tie of classes", LocalLabel(SECOND, ball(SECOND, 0.25), at(0)), VIOLATED, (CLOSED, Z3)),
    Case("1 keeps its lead", LocalLabel(SECOND, ball(SECOND, 0.1875), at(0)), ROBUST, ALL),
    # 0 leads 1 by 1/2: at d = 1/4 they tie, and 0 keeps it. At 3/8 it is behind by 1/4.
    Case("0 stays 0 at a tie of classes", LocalLabel(FIRST, ball(FIRST, 0.25), at(0)), ROBUST, (CLOSED, Z3)),
    Case("0 to 1 of three", LocalLabel(FIRST, ball(FIRST, 0.375), at(0)), VIOLATED, ALL),
    Case("sigma of three", SigmaEstimate(FIRST, ball(FIRST, 0.375), at(0), 0), lambda: s(fmpq(1, 2)) - fmpq(1, 2), ALL),
    # The greatest margin of a k-class label is s(gap) - 1/2 < 1/2: nothing has margin 1/2.
    Case(
        "no class has margin 1/2",
        MarginLabel(FIRST, ball(FIRST, 8.0), UNIT, sigma=Fraction(1, 2)),
        ROBUST,
        TWO_LAYERS_ONLY,
        NO_LOCAL,
    ),
    # Two classes: f_0 = s(z_0 - z_1), and z_0 - z_1 = 1/2 +- 1/2: falls by s(1/2) - 1/2, rises by s(1) - s(1/2) = 0.1086.
    Case(
        "eps of two classes",
        LocalEpsilon(PAIR, ball(PAIR, 0.25), at(0)),
        lambda: s(fmpq(1, 2)) - fmpq(1, 2),
        (CLOSED, SEARCH),
        (Z3,),
    ),
    # Three equal classes, d = 1/2: one up, two down: 1 / (1 + 2/e) - 1/3 = 0.24279; the other way 1/3 - 1 / (1 + 2 e) = 0.178.
    Case(
        "eps of three classes",
        LocalEpsilon(EQUAL, ball(EQUAL, 0.5), at(0)),
        lambda: 1 / (1 + 2 * arb(-1).exp()) - fmpq(1, 3),
        (CLOSED, SEARCH),
        (Z3,),
    ),
    Case(
        "eps of three, enough",
        LocalConfidence(EQUAL, ball(EQUAL, 0.5), at(0), Fraction("0.243")),
        ROBUST,
        (CLOSED, SEARCH),
        (Z3,),
    ),
    Case(
        "eps of three, too small",
        LocalConfidence(EQUAL, ball(EQUAL, 0.5), at(0), Fraction(31, 128)),
        VIOLATED,
        (CLOSED, SEARCH),
        (Z3,),
    ),
    # Bias of the last layer free by d: at x = 2 the lead of 0 is 1 - 2 d if nothing else moves; first layer: h >= 2 - 3 d.
    Case("hinge's last biases", LocalLabel(HINGE, by_layer(HINGE, 0.25, 0), at(2)), ROBUST, ALL),  # h >= 5/4 > 1
    # ... and over [2, 4] the lead is least at 2: (1 - d)(2 - 3 d) - d - (1 + d h) - d with d = 1/8: h >= 13/8:
    # lead >= 7/8 h - 1/8 - 1 - 1/8 - 1/8 h = 3/4 h - 5/4 >= 39/32 - 40/32 < 0 at x = 2; at x = 3, h >= 5/2: lead >= 5/8.
    Case("hinge crossed", GlobalLabel(HINGE, ball(HINGE, 0.125), over((2, 4))), VIOLATED, TWO_LAYERS_ONLY, NO_LOCAL),
    Case("hinge kept", GlobalLabel(HINGE, ball(HINGE, 0.125), over((3, 4))), ROBUST, TWO_LAYERS_ONLY, NO_LOCAL),
]

QUARTERED = network(([[0.75]], [-0.625]))
COPY = copy_of(([[1.25]], [-1]))  # z' = 5/4 x - 1: class 1 from x = 4/5 on
UNEVEN = ParameterBox.from_arrays([([[0.5]], [-0.5])], [([[2]], [-0.25])])

BOXES = [
    # w in [3/4, 1], b in [-5/8, -1/2]: at x = 1 z' in [1/8, 1/2].
    Case("hull", LocalLabel(LINE, Hull(QUARTERED).around(LINE), at(1)), ROBUST, ALL),
    Case("hull's eps", LocalEpsilon(LINE, Hull(QUARTERED).around(LINE), at(1)), lambda: s(fmpq(1, 2)) - s(fmpq(1, 8)), ALL),
    # At x = 3/4, z = 1/4 falls to 9/16 - 5/8 < 0.
    Case("hull crossed", LocalLabel(LINE, Hull(QUARTERED).around(LINE), at(0.75)), VIOLATED, ALL),
    # w in [1/2, 2], b in [-1/2, -1/4]: at x = 1 z' in [0, 7/4]; z = 1/2. The tie is class 0.
    Case("explicit box, tie", LocalLabel(LINE, UNEVEN, at(1)), VIOLATED, (CLOSED, Z3)),
    Case("explicit box's eps", LocalEpsilon(LINE, UNEVEN, at(1)), lambda: s(fmpq(7, 4)) - s(fmpq(1, 2)), ALL),
    # The copy differs for x in (1/2, 4/5]: not at 1, not on [1, 2], but at 3/4 and on [0, 2].
    Case("copy at a good point", LocalLabel(LINE, COPY, at(1)), ROBUST, ALL),
    Case("copy at a bad point", LocalLabel(LINE, COPY, at(0.75)), VIOLATED, ALL),
    Case("copy on a good box", GlobalLabel(LINE, COPY, over((1, 2))), ROBUST, TWO_LAYERS_ONLY, NO_LOCAL),
    Case("copy on a bad box", GlobalLabel(LINE, COPY, over((0, 2))), VIOLATED, TWO_LAYERS_ONLY, NO_LOCAL),
    # The greatest margin of a changed label 1 is at x = 4/5, on the tie; label 0 never changes.
    Case(
        "copy's sigma of 1",
        SigmaEstimate(LINE, COPY, over((0, 2)), 1),
        lambda: s(fmpq(3, 10)) - fmpq(1, 2),
        TWO_LAYERS_ONLY,
        NO_LOCAL,
    ),
    Case("copy's sigma of 0", SigmaEstimate(LINE, COPY, over((0, 2)), 0), number(0), TWO_LAYERS_ONLY, NO_LOCAL),
    # On [1, 2] the copy is lower by 1/2 - x/4; s(x - 1/2) - s(5/4 x - 1) falls there, for s' falls on [0, inf).
    Case("copy's eps", GlobalEpsilon(LINE, COPY, over((1, 2))), lambda: s(fmpq(1, 2)) - s(fmpq(1, 4)), (SEARCH,), (CLOSED, Z3)),
]

# logit(6/10) = log(3/2) = g. Margin 1/10 means |x - 1/2| >= g. Label 1 flips from d = (x - 1/2) / (x + 1) on, least at
# x = 1/2 + g: g / (3/2 + g). Label 0 flips above (1/2 - x) / (x + 1), least at x = 1/2 - g: g / (3/2 - g), which is more.
DELTAS = [
    Case("delta at a point", GreatestDelta(LINE, at(1)), number(1, 4), (CLOSED, Z3)),  # 1/2 - 2 d = 0
    Case("delta of the biases", GreatestDelta(LINE, at(1), weights=False), number(1, 2), (CLOSED, Z3)),
    Case("delta of the weights", GreatestDelta(LINE, at(2), biases=False), number(3, 4), (CLOSED, Z3)),  # 3/2 - 2 d = 0
    Case("delta of signs", GreatestDelta(SIGNS, at(1, -1)), number(2, 3), ALL),  # 2 - 3 d = 0
    Case(
        "delta with a margin",
        GreatestDelta(LINE, UNIT, sigma=TENTH),
        lambda: arb(fmpq(3, 2)).log() / (fmpq(3, 2) + arb(fmpq(3, 2)).log()),
        TWO_LAYERS_ONLY,
        NO_LOCAL,
    ),
    # (4 + 2 x) / (1 + |x|) is least at x = -1.
    Case("delta over either sign", GreatestDelta(network(([[2]], [4])), over((-1, 1))), number(1), (Z3,), NO_LOCAL),
    # At 0: above 1/2. At 1: from 1/4 on. At 2: from 1/2 on.
    Case("delta at points", GreatestDelta(LINE, Points([[0], [1], [2]])), number(1, 4), (CLOSED, Z3)),
    # Class 1 leads by 1/2: a tie at 1/4.
    Case("delta of three classes", GreatestDelta(SECOND, at(0)), number(1, 4), (CLOSED, Z3)),
]

CASES = [
    *LINE_LABELS,
    *LEVELS,
    *LINE_CHANGES,
    *ONE_HIDDEN_LAYER,
    *TRANSCENDENTAL,
    *TWO_HIDDEN_LAYERS,
    *GLOBAL_LABELS,
    *GLOBAL_CHANGES,
    *SIGMAS,
    *CLASSES,
    *BOXES,
    *DELTAS,
]
