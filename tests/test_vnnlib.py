"""VNN-LIB text: parsed by the standard's own parser, and true of exactly the inputs at which the copy violates the query."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vnnlib

from qrobust import formats
from qrobust.domains import InputBox, Point, Polytope
from qrobust.errors import QRobustError, ShapeError, UnsupportedError
from qrobust.formats.native import write_native
from qrobust.formula.smtlib import to_smtlib
from qrobust.formula.vnnlib import decimal, to_vnnlib, write_vnnlib
from qrobust.interval import FloatArray
from qrobust.network import Activation, Conv2d, Dense, Network, Output
from qrobust.perturbations import Hull
from qrobust.queries import (
    GlobalConfidence,
    GlobalEpsilon,
    GlobalLabel,
    LocalConfidence,
    LocalLabel,
    MarginLabel,
    Query,
)
from tests.conftest import RandomNetwork
from tests.onnx_graphs import runtime

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThan": lambda a, b: a > b,
    "LessThan": lambda a, b: a < b,
    "GreaterEqual": lambda a, b: a >= b,
    "LessEqual": lambda a, b: a <= b,
    "Equal": lambda a, b: a == b,
}


def number(term: Any, values: dict[str, FloatArray]) -> float:
    """The value of an arithmetic term of the parser's tree."""
    match type(term).__name__:
        case "Var":
            return float(values[term.name][tuple(term.indices)])
        case "Float" | "Int":
            return float(term.lexeme)
        case "Plus":
            return sum(number(part, values) for part in term.args)
        case "Minus":
            return number(term.head, values) - sum(number(part, values) for part in term.rest)
        case "Multiply":
            return float(np.prod([number(part, values) for part in term.args]))
        case "Negate":
            return -number(term.expr, values)
    raise AssertionError(f"no rule for {term}")


def holds(formula: Any, values: dict[str, FloatArray]) -> bool:
    """Whether a formula of the parser's tree is true."""
    kind = type(formula).__name__
    if kind in ("And", "Or"):
        return (all if kind == "And" else any)(holds(part, values) for part in formula.args)
    return COMPARISONS[kind](number(formula.lhs, values), number(formula.rhs, values))


def satisfied(text: str, files: tuple[Path, Path], point: FloatArray) -> bool:
    """Whether the text is true of this input, with the outputs that onnxruntime gives for both files."""
    query = vnnlib.parse_query_string(text)
    values = {}
    for network, file in zip(query.networks, files, strict=True):
        values[network.inputs[0].name] = point.reshape(network.inputs[0].shape)
        outputs = runtime(file.read_bytes(), point[None])
        values[network.outputs[0].name] = outputs.reshape(network.outputs[0].shape)
    return all(holds(assertion.expr, values) for assertion in query.assertions)


def perturbed(network: Network, rng: np.random.Generator, size: float) -> Network:
    """A copy with other parameters."""
    layers = [
        layer.with_parameters(layer.weight + size * rng.normal(size=layer.weight.shape), layer.bias) for layer in network.layers
    ]
    return replace(network, layers=tuple(layers), name="copy")


def labels_differ(query: Query, f: FloatArray, g: FloatArray) -> bool:
    """What the query's docstring says of two vectors of confidences, in plain words of code."""
    level, sigma = float(query.level), float(query.sigma)  # type: ignore[attr-defined]
    if len(f) == 1:
        return bool((f[0] > level) != (g[0] > level) and abs(f[0] - level) >= sigma)
    label = int(f.argmax())
    margin = min(f[label] / (f[label] + f[j]) - 0.5 for j in range(len(f)) if j != label)
    return bool(label != int(g.argmax()) and margin >= sigma)


def changes(query: Query, f: FloatArray, g: FloatArray) -> bool:
    return bool(np.abs(f - g).max() > float(query.epsilon))  # type: ignore[attr-defined]


def networks(outputs: int, random_network: RandomNetwork) -> tuple[Network, Network]:
    rng = np.random.default_rng(outputs)
    network = random_network(rng, (3, 6, outputs), Activation.RELU)
    return network, perturbed(network, rng, 1.0)


BOX = InputBox(np.full(3, -2.0), np.full(3, 2.0))
CUT = Polytope(BOX, [[1.0, -0.5, 0.0], [0.0, 0.0, 0.1]], [1.0, 0.1])
CASES: dict[str, tuple[int, Callable[[Any, Any, Any], Query], Any, Callable[..., bool]]] = {
    "label of one sigmoid": (1, GlobalLabel, BOX, labels_differ),
    "label at another level": (1, lambda n, p, d: GlobalLabel(n, p, d, Fraction(3, 10)), BOX, labels_differ),
    "label of one sigmoid with margin": (
        1,
        lambda n, p, d: MarginLabel(n, p, d, Fraction(1, 2), Fraction(1, 10)),
        BOX,
        labels_differ,
    ),
    "label of three classes": (3, GlobalLabel, BOX, labels_differ),
    "label with margin": (3, lambda n, p, d: MarginLabel(n, p, d, sigma=Fraction(1, 10)), BOX, labels_differ),
    "label in a polytope": (3, GlobalLabel, CUT, labels_differ),
    "confidence": (3, lambda n, p, d: GlobalConfidence(n, p, d, Fraction(1, 4)), BOX, changes),
    "confidence of one sigmoid": (1, lambda n, p, d: GlobalConfidence(n, p, d, Fraction("0.2")), CUT, changes),
}


@pytest.mark.parametrize("case", CASES)
def test_the_text_is_true_of_exactly_the_violations(case: str, random_network: RandomNetwork, tmp_path: Path) -> None:
    outputs, build, domain, violated = CASES[case]
    network, copy = networks(outputs, random_network)
    query = build(network, Hull(copy).around(network), domain)
    path, *files = write_vnnlib(query, copy, tmp_path / "query.vnnlib")
    text = path.read_text()
    found = []
    for point in np.random.default_rng(1).uniform(-2.5, 2.5, size=(300, 3)):
        inside = query.domain.contains([Fraction(value) for value in point.tolist()])
        f, g = (each.confidences(point[None])[0] for each in (network, copy))
        expected = inside and violated(query, f, g)
        assert satisfied(text, (files[0], files[1]), point) is expected
        found.append(expected)
    assert 5 <= sum(found) <= 295


@pytest.mark.parametrize("sigma", [Fraction(0), Fraction(1, 10)])
def test_ties_are_decided_as_qrobust_decides_them(sigma: Fraction, tmp_path: Path) -> None:
    """Two equal classes: the lower one is the label. One sigmoid at 1/2: label 0."""
    zero = Dense(np.zeros((2, 1)), np.zeros(2))
    second = Dense(np.zeros((2, 1)), np.array([0.0, 1.0]))
    for f, g, flips in ((zero, second, True), (zero, zero, False), (second, zero, True)):
        network, copy = (Network((layer,), Output.SOFTMAX) for layer in (f, g))
        query = LocalLabel(network, Hull(copy).around(network), Point([0.0]), sigma=sigma)
        path, *files = write_vnnlib(query, copy, tmp_path / "q.vnnlib")
        held = flips and (sigma == 0 or f is second)
        assert satisfied(path.read_text(), (files[0], files[1]), np.zeros(1)) is held
    half, over = (Network((Dense(np.zeros((1, 1)), np.array([bias])),), Output.SIGMOID) for bias in (0.0, 1e-9))
    query = LocalLabel(half, Hull(over).around(half), Point([0.0]))
    path, *files = write_vnnlib(query, over, tmp_path / "q.vnnlib")
    assert satisfied(path.read_text(), (files[0], files[1]), np.zeros(1))


def test_a_point_and_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    conv = Conv2d(rng.normal(size=(2, 1, 2, 2)), np.zeros(2), Activation.RELU, (1, 3, 4))
    network = Network((conv, Dense(rng.normal(size=(2, 12)), np.zeros(2))), Output.SOFTMAX)
    network = formats.load(single(network, tmp_path))
    copy = formats.load(single(perturbed(network, rng, 0.1), tmp_path))
    point = np.round(rng.normal(size=12), 2)
    query = LocalConfidence(network, Hull(copy).around(network), Point(point), Fraction("0.001"))
    path, *files = write_vnnlib(query, copy, tmp_path / "query.vnnlib")
    parsed = vnnlib.parse_query_file(str(path))
    assert parsed.networks[0].inputs[0].shape == [1, 1, 3, 4]
    assert parsed.networks[1].isometric_to == "f"
    for file, expected in zip(files, (network, copy), strict=True):
        assert formats.load(file) == expected


def single(network: Network, folder: Path) -> Path:
    """Store a network whose numbers are float32, so that its ONNX file can be run."""
    layers = [layer.with_parameters(layer.weight.astype(np.float32), layer.bias.astype(np.float32)) for layer in network.layers]
    write_native(replace(network, layers=tuple(layers)), folder / "m.json")
    return folder / "m.json"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(0), "0.0"),
        (Fraction(3), "3.0"),
        (Fraction(-1, 4), "-0.25"),
        (Fraction("0.01"), "0.01"),
        (Fraction(0.1), "0.1000000000000000055511151231257827021181583404541015625"),
        (Fraction(2) ** 70, "1180591620717411303424.0"),
    ],
)
def test_decimals_are_exact(value: Fraction, text: str) -> None:
    assert decimal(value) == text
    assert Fraction(text) == value


def test_least_and_greatest_floats_are_decimals() -> None:
    for value in (5e-324, 1.7976931348623157e308, -(2.0**-1022)):
        assert float(decimal(Fraction(value))) == value
        assert Fraction(decimal(Fraction(value))) == Fraction(value)


def test_what_the_language_lacks_is_refused(random_network: RandomNetwork, tmp_path: Path) -> None:
    network, copy = networks(3, random_network)
    box = Hull(copy).around(network)
    with pytest.raises(UnsupportedError, match="1/3 is no decimal"):
        to_vnnlib(GlobalConfidence(network, box, BOX, Fraction(1, 3)), copy)
    with pytest.raises(UnsupportedError, match="cannot express GlobalEpsilon"):
        to_vnnlib(GlobalEpsilon(network, box, BOX), copy)
    other = random_network(np.random.default_rng(0), (3, 5, 3))
    with pytest.raises(ShapeError, match="the second network has weights"):
        to_vnnlib(GlobalLabel(network, box, BOX), other)
    with pytest.raises(QRobustError, match="was not written"):
        write_vnnlib(GlobalLabel(network, box, BOX), copy, tmp_path / "no" / "q.vnnlib")
    assert list(tmp_path.iterdir()) == []


def test_a_name_cannot_break_out_of_its_comment(random_network: RandomNetwork) -> None:
    from qrobust.formula import Encoding, encode

    network, copy = (replace(each, name="x\n(assert false)\n;") for each in networks(1, random_network))
    query = LocalLabel(network, Hull(copy).around(network), Point([0.0] * 3))
    for text in (to_vnnlib(query, copy), to_smtlib(encode(query, Encoding.ELIMINATED))):
        assert "assert false" in text
        assert not any(line.startswith("(assert false") for line in text.splitlines())
