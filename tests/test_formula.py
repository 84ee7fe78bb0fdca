"""Do both encodings say the same as the definitions, and does the text say the same as the formula?"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import z3

from qrobust.answers import Counterexample
from qrobust.bounds.corners import corner
from qrobust.check import violation_fault
from qrobust.domains import InputBox, Point
from qrobust.errors import UnsupportedError
from qrobust.exact import ExactArithmetic, to_exact, to_rational
from qrobust.formula import Dialect, Encoding, encode, to_smtlib
from qrobust.formula.evaluate import holds
from qrobust.formula.explicit import Explicit
from qrobust.formula.smtlib import text_hash
from qrobust.network import Activation, Dense, Network, Output, activate
from qrobust.perturbations import Absolute
from qrobust.queries import GlobalConfidence, GlobalLabel, LabelQuery, LocalConfidence, LocalLabel, MarginLabel, Query

ACTIVATIONS = list(Activation)


def random_network(rng: np.random.Generator, hidden: int, logits: int, activation: Activation) -> Network:
    sizes = [2, *[2] * hidden, logits]
    layers = [
        Dense(rng.integers(-8, 9, (out, into)) / 4, rng.integers(-8, 9, out) / 4, activation) for into, out in pairwise(sizes)
    ]
    last = Dense(layers[-1].weight, layers[-1].bias)
    return Network((*layers[:-1], last), Output.SIGMOID if logits == 1 else Output.SOFTMAX)


def queries(rng: np.random.Generator, network: Network) -> list[Query]:
    box = Absolute(0.5).around(network)
    x = rng.integers(-4, 5, 2) / 4
    domain = InputBox(x - 0.5, x + 0.5)
    level = Fraction(1, 2) if network.output is Output.SOFTMAX else Fraction(int(rng.integers(1, 4)), 4)
    tenth = Fraction(1, 10)
    found: list[Query] = [GlobalLabel(network, box, domain, level), MarginLabel(network, box, domain, level, tenth)]
    found += [LocalLabel(network, box, Point(x), level), GlobalConfidence(network, box, domain, tenth)]
    if network.output is Output.SIGMOID:
        found.append(LocalConfidence(network, box, Point(x), tenth))
    return found


def example_and_assignments(
    rng: np.random.Generator, query: Query
) -> tuple[Counterexample, dict[Encoding, dict[str, Fraction]]]:
    """Return random parameters from corners and between, and what both encodings' variables are there."""
    network, box = query.network, query.domain.box
    inside = box.lower + rng.integers(0, 5, 2) / 4 * box.width
    x = [Fraction(v) for v in inside.tolist()]
    positions = [rng.integers(-4, 5, layer.outputs) / 4 for layer in network.hidden_layers]
    directions = rng.choice([-1.0, 1.0], network.layers[-1].outputs)
    example = corner(network, query.parameters, x, directions, positions)
    names = Explicit(query).names
    explicit = {f"x{i + 1}": v for i, v in enumerate(x)}
    for (weights, biases), (weight, bias) in zip(names, example.parameters, strict=True):
        explicit |= {n.name: Fraction(v) for n, v in zip(weights.ravel(), weight.ravel(), strict=True)}
        explicit |= {n.name: Fraction(v) for n, v in zip(biases, bias, strict=True)}
    eliminated = {f"x{i + 1}": v for i, v in enumerate(x)}
    h = to_exact(x)
    for number, (layer, (weight, bias)) in enumerate(zip(network.hidden_layers, example.parameters, strict=False), start=1):
        z = ExactArithmetic().affine(to_exact(weight), h, to_exact(bias))
        if any(not hasattr(v, "p") for v in z):
            break  # a ball after a sigmoid: no exact assignment
        eliminated |= {f"z{number}_{i + 1}": to_rational(v) for i, v in enumerate(z)}
        h = activate(layer.activation, z, ExactArithmetic())
    return example, {Encoding.EXPLICIT: explicit, Encoding.ELIMINATED: eliminated}


@pytest.mark.parametrize("seed", range(24))
def test_formulas_hold_where_the_definitions_are_violated(seed: int) -> None:
    """Explicit: exactly there. Eliminated: there too, for it lets the last rows take their worst parameters."""
    rng = np.random.default_rng(seed)
    activation, hidden = ACTIVATIONS[seed % 4], int(rng.integers(0, 2 if seed % 4 > 1 else 3))
    network = random_network(rng, hidden, int(rng.choice([1, 3])), activation)
    violated = 0
    for query in queries(rng, network):
        problems = {encoding: encode(query, encoding) for encoding in Encoding}
        for _ in range(6):
            example, assignments = example_and_assignments(rng, query)
            wrong = violation_fault(query, example) is None
            violated += wrong
            says = holds(problems[Encoding.EXPLICIT].formula, assignments[Encoding.EXPLICIT])
            assert says is wrong
            if wrong:
                assert holds(problems[Encoding.ELIMINATED].formula, assignments[Encoding.ELIMINATED]) is True
    assert violated > 0


@pytest.mark.parametrize("seed", range(8))
def test_text_is_read_back_with_the_same_verdict(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    network = random_network(rng, seed % 3, 1 if seed % 2 else 3, Activation.RELU)
    for query in (q for q in queries(rng, network) if isinstance(q, LabelQuery)):
        verdicts = []
        for encoding in [Encoding.ELIMINATED] + ([Encoding.EXPLICIT] if query.local and seed % 3 < 2 else []):
            solver = z3.Solver()
            solver.set("timeout", 20_000)
            solver.from_string(to_smtlib(encode(query, encoding)))
            verdicts.append(str(solver.check()))
        assert len(set(verdicts) - {"unknown"}) == 1


def test_text_is_the_same_each_time_and_hashed() -> None:
    query = queries(np.random.default_rng(0), random_network(np.random.default_rng(0), 1, 1, Activation.RELU))[0]
    texts = [to_smtlib(encode(query, Encoding.EXPLICIT)) for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(text_hash(texts[0])) == 64
    assert query.network.sha256 in texts[0]


def test_dreals_dialect_names_nothing_and_folds_nothing() -> None:
    network = random_network(np.random.default_rng(3), 1, 1, Activation.TANH)
    query = GlobalConfidence(network, Absolute(0.1).around(network), InputBox([0.1, 0.1], [0.3, 0.7]), Fraction(1, 3))
    text = to_smtlib(encode(query, Encoding.EXPLICIT), Dialect.DREAL)
    assert "define-fun" not in text
    body = [line for line in text.splitlines() if line.startswith("(assert (or")]
    assert body
    assert set(re.findall(r"(?<![\w.])\d+\.?\d*", body[0])) <= {"0.0", "1.0", "0", "1"}
    third = [line for line in text.splitlines() if "0.333" in line]
    low, high = (float(line.split("<= ")[1].replace(")", " ").split()[i]) for i, line in enumerate(third))
    assert Fraction(low) < Fraction(1, 3) < Fraction(high)
    assert np.nextafter(low, 1) == high


def test_the_stronger_formula_implies_a_violation() -> None:
    network = Network((Dense(np.array([[1.0]]), np.array([0.0])),), Output.SIGMOID)
    query = LocalLabel(network, Absolute(0.5).around(network), Point([1.5]), Fraction(7, 10))
    weak, strong = (Explicit(query, weaker=weaker).problem() for weaker in (True, False))
    assert not weak.exact
    for weight in (Fraction(1, 2), Fraction(3, 5), Fraction(1)):
        values = {"w1_1_1": weight, "b1_1": Fraction(0)}
        parameters = ((np.array([[weight]], dtype=object), np.array([Fraction(0)], dtype=object)),)
        example = Counterexample((Fraction(3, 2),), parameters)
        if holds(strong.formula, values):
            assert violation_fault(query, example) is None
        if violation_fault(query, example) is None:
            assert holds(weak.formula, values)


def test_an_estimate_has_no_single_formula() -> None:
    from qrobust.queries import SigmaEstimate

    network = Network((Dense(np.array([[1.0]]), np.array([0.0])),), Output.SIGMOID)
    problem = encode(SigmaEstimate(network, Absolute(0.5).around(network), InputBox([0.0], [1.0]), 1), Encoding.EXPLICIT)
    with pytest.raises(UnsupportedError, match="is an estimate"):
        _ = problem.formula
    assert "(maximize gap)" in to_smtlib(problem)
