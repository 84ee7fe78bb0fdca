"""Networks with scaled inputs through all else that a user meets: certificates, programs, sign-off, pictures, exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import z3

import qrobust
from qrobust import formats
from qrobust.answers import Assurance, Verdict
from qrobust.certificates import Certificate
from qrobust.check import certificate_fault
from qrobust.comparison import at_points, compare, on_grid
from qrobust.domains import Bounds, InputBox, LayerBox, ParameterBox, Point
from qrobust.held import held, stored_codes
from qrobust.interval import Expansion, down
from qrobust.layers import Dense
from qrobust.network import Network, Scaling
from qrobust.quantization import parse_scheme
from qrobust.queries import LocalLabel
from qrobust.solve import Session
from qrobust.sweep import Question, sweep
from qrobust.testing import assert_robust
from tests.programs import quantized
from tests.test_cli import refused, run
from tests.test_scaling import DYADIC, RATIONAL, core, scaled

X = np.array([200.0, 17.0, 3.0])
HERE = "200, 17, 3"


@pytest.fixture
def network() -> Network:
    return scaled(core(), *RATIONAL)


@pytest.fixture
def model(network: Network, tmp_path: Path) -> str:
    formats.save(network, tmp_path / "m.json")
    return str(tmp_path / "m.json")


@pytest.fixture
def proof(network: Network) -> Certificate:
    query = LocalLabel(network, qrobust.Rounding(parse_scheme("int8")).around(network), Point(X))
    answer, certificate = Session().certify(query)
    assert answer.assurance is Assurance.CHECKED
    assert certificate is not None
    return certificate


def test_a_certificate_of_the_core_is_one_of_the_network(proof: Certificate) -> None:
    assert certificate_fault(proof) is None
    again = Certificate.from_bytes(proof.to_bytes())
    assert certificate_fault(again) is None
    assert again.claimed.network == proof.claimed.network
    assert again.claimed.network.scaling is not None
    assert again.query.network == proof.claimed.network.core


@pytest.mark.parametrize("units", [DYADIC, RATIONAL], ids=["dyadic", "rational"])
def test_certificates_at_random_points(units: Any) -> None:
    rng, proved = np.random.default_rng(0), 0
    for seed in range(6):
        whole = scaled(core(seed, classes=1 + seed % 3), *units) if seed % 3 else scaled(core(seed), *units)
        query = LocalLabel(whole, qrobust.Absolute(0.003).around(whole), Point(rng.uniform(-300, 300, size=3)))
        _, certificate = Session().certify(query)
        if certificate is not None:
            proved += 1
            assert certificate_fault(Certificate.from_bytes(certificate.to_bytes())) is None
    assert proved >= 4


def claimed(proof: Certificate, **changes: Any) -> Certificate:
    assert proof.scaled is not None
    return replace(proof, scaled=replace(proof.scaled, **changes))


def first_layer(box: ParameterBox, number: int, layer: LayerBox) -> ParameterBox:
    return ParameterBox((*box.layers[:number], layer, *box.layers[number + 1 :]), box.shifted, box.rule)


def far(proof: Certificate) -> Certificate:
    return claimed(proof, domain=Point(X + np.array([1e-9, 0, 0])))


def otherwise_scaled(proof: Certificate) -> Certificate:
    return claimed(proof, network=scaled(proof.query.network, "1/254", Fraction(-1, 3)))


def other_weights(proof: Certificate) -> Certificate:
    assert proof.scaled is not None
    box = proof.scaled.parameters
    first = box.layers[1]
    wider = Bounds(Expansion.of(down(first.weight.lower.round_down())), first.weight.upper)
    return claimed(proof, parameters=first_layer(box, 1, LayerBox(wider, first.bias)))


def other_biases(proof: Certificate) -> Certificate:
    """The box of the core as if the input had not been rounded."""
    assert proof.scaled is not None
    bias = proof.scaled.parameters.layers[1].bias
    box = proof.query.parameters
    narrow = first_layer(box, 0, LayerBox(box.layers[0].weight, bias))
    return replace(proof, query=replace(proof.query, parameters=narrow))


def other_network(proof: Certificate) -> Certificate:
    assert proof.scaled is not None
    scaling, first, *rest = proof.scaled.network.layers
    assert isinstance(first, Dense)
    straight = Dense(first.weight, first.bias)
    return claimed(proof, network=Network((scaling, straight, *rest), proof.query.network.output))


@pytest.mark.parametrize("doctored", [far, otherwise_scaled, other_weights, other_biases, other_network])
def test_a_doctored_certificate_is_refused(doctored: Callable[[Certificate], Certificate], proof: Certificate) -> None:
    assert certificate_fault(doctored(proof)) is not None


def test_certificates_at_the_command_line(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = str(tmp_path / "c.cert")
    code, out, err = run(
        capsys, "check", model, "--label", "--scheme", "int8", "--point", HERE, "--quiet", "--certificate", kept
    )
    assert (code, err) == (0, "")
    code, out, _ = run(capsys, "replay", kept, "--model", model)
    assert code == 0
    assert out.startswith("PROVED: at the point (200, 17, 3), no choice of parameters (every rounding to int8)")
    assert "in the file's words" in out
    code, out, _ = run(capsys, "replay", kept, "--scheme", "int8")
    assert (code, "in the file's words" in out) == (0, False)
    code, out, err = run(capsys, "replay", kept, "--scheme", "int7")
    assert (code, out, "is about other parameters than the options name" in err) == (2, "", True)
    code, out, err = run(capsys, "bits", model, "--label", "--point", HERE, "--quiet", "--certificate", kept)
    assert (code, err) == (0, "")
    assert run(capsys, "replay", kept, "--model", model)[0] == 0


def folded(network: Network) -> Network:
    """Nearly the same function without scaling, as a converter would make it."""
    assert network.scaling is not None
    scale, offset = network.scaling.nearest
    first = network.core.layers[0]
    assert isinstance(first, Dense)
    return Network(
        (Dense(first.weight * scale, first.bias + first.weight @ offset, first.activation), *network.core.layers[1:]),
        network.output,
    )


@pytest.mark.parametrize("classes", [1, 3])
def test_a_program_in_the_place_of_a_scaled_network(classes: int) -> None:
    network = scaled(core(4, inputs=2, classes=classes), *RATIONAL)
    points = np.random.default_rng(0).uniform(0, 300, size=(200, 2))
    program = quantized(folded(network), points)
    found, plain = (
        compare(network, program, at_points(program, points)),
        compare(folded(network), program, at_points(program, points)),
    )
    np.testing.assert_allclose(found.changes.lower, plain.changes.lower, atol=1e-9)
    assert (found.agreement == plain.agreement).mean() > 0.99
    grid = compare(network, program, on_grid(program, InputBox([0, 0], [30, 30])))
    assert grid.greatest[1] < 0.2
    assert_robust(network, program, points[:20], eps=float(found.changes.upper[:20].max()))
    with pytest.raises(AssertionError, match="VIOLATED"):
        assert_robust(network, program, points[:20], eps=1e-6)
    swept = sweep(network, program, InputBox([0, 0], [30, 30]), epsilon=Fraction(1, 5), label=True)
    assert swept.greatest[0] <= grid.greatest[0]
    assert grid.greatest[1] <= swept.greatest[1]
    assert swept.verdicts == {Question.CHANGE: Verdict.ROBUST, Question.LABEL: grid.label_verdict()}


def test_a_flip_of_values_that_the_device_holds(network: Network) -> None:
    scheme = parse_scheme("int2")
    rng, moved = np.random.default_rng(1), 0
    for x in rng.uniform(-300, 300, size=(20, 3)):
        answer = qrobust.check(LocalLabel(network, qrobust.Rounding(scheme).around(network), Point(x)))
        if answer.counterexample is not None:
            found = held(answer.query, answer.counterexample, scheme)
            if found is not None:
                moved += 1
                assert found.x == tuple(map(Fraction, x.tolist()))
                assert stored_codes(network, found, scheme)[0]["layer"] == 2
    assert moved


def test_assertions_about_scaled_networks(network: Network) -> None:
    assert_robust(network, "int8", X)
    assert_robust(network, parse_scheme("int8").copy(network), X, eps="0.05")
    with pytest.raises(AssertionError, match="input 1 = 200"):
        assert_robust(network, qrobust.Absolute(1.0), X)


@pytest.mark.parametrize("suffix", ["json", "npz", "onnx"])
def test_copies_are_written_and_compared(
    suffix: str, network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = replace(network, layers=(Scaling(np.full(3, 0.25), np.full(3, -0.5)), *network.core.layers))
    model, copy = str(tmp_path / "m.json"), str(tmp_path / f"copy.{suffix}")
    formats.save(plain, model)
    double = ("--double",) if suffix == "onnx" else ()
    assert run(capsys, "quantize", model, "--scheme", "int8", "--out", copy, "--quiet", *double)[0] == 0
    assert formats.load(copy) == parse_scheme("int8").copy(plain)
    code, out, _ = run(capsys, "check", model, "--copy", copy, "--label", "--point", HERE)
    assert code == 0
    assert "inputs scaled" in out
    code, out, _ = run(capsys, "inspect", copy, "--of", model, "--scheme", "int8")
    assert code == 0
    assert "layer 1, inputs scaled: input 1 * 0.25 - 0.5" in out


def test_numbers_that_no_file_of_onnx_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tmp_path / "m.json")
    formats.save(scaled(core(), "1/255", Fraction(1, 7)), model)
    message = refused(capsys, "quantize", model, "--scheme", "int8", "--out", str(tmp_path / "c.onnx"), "--quiet", "--double")
    assert "the inputs are scaled by numbers that no float64 is: write .json" in message
    assert not (tmp_path / "c.onnx").exists()


@pytest.mark.parametrize("encoding", ["explicit", "eliminated"])
@pytest.mark.parametrize(("delta", "satisfiable"), [("0.001", "unsat"), ("1", "sat")])
def test_exported_formulas(encoding: str, delta: str, satisfiable: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ("export", model, "--label", "--point", HERE, "--delta", delta, "--encoding", encoding)
    code, text, _ = run(capsys, *ask)
    assert code == 0
    solver = z3.Solver()
    solver.from_string(text)
    assert str(solver.check()) == satisfiable


def test_two_networks_for_verifiers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = scaled(core(), *DYADIC)
    for name, each in (("f", network), ("g", parse_scheme("int8").copy(network))):
        formats.save(each, tmp_path / f"{name}.json")
    f, g, out = (str(tmp_path / name) for name in ("f.json", "g.json", "q.vnnlib"))
    ask = ("export", f, "--against", g, "--label", "--box", "0:9, 0:9, 0:9", "--format", "vnnlib", "--output", out, "--quiet")
    assert run(capsys, *ask)[0] == 0
    assert formats.load(tmp_path / "q_f.onnx").scaling is not None
    x = np.random.default_rng(0).uniform(0, 9, size=(50, 3))
    np.testing.assert_array_equal(formats.load(tmp_path / "q_f.onnx").labels(x), network.labels(x))


PICTURES = (
    ("blame", "--point", HERE, "--scheme", "int8"),
    ("bits", "--points", "POINTS"),
    ("margins", "--points", "POINTS", "--scheme", "int8"),
    ("saturation", "--scheme", "q0.7"),
)


@pytest.mark.parametrize("picture", PICTURES, ids=[kind[0] for kind in PICTURES])
def test_pictures(picture: tuple[str, ...], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = tmp_path / "points.csv"
    points.write_text("input 1,input 2,input 3\n" + HERE + "\n100,2,3\n")
    kind, *rest = (str(points) if word == "POINTS" else word for word in picture)
    assert run(capsys, "plot", kind, model, *rest, "--quiet", "--output", str(tmp_path / "drawn"))[0] == 0
    assert {f"drawn{suffix}" for suffix in (".png", ".svg", ".csv")} <= {path.name for path in tmp_path.iterdir()}


def test_maps_over_boxes(model: str, network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "m.npz"
    grid = ("--axes", "1,2", "--grid", "4x3", "--box", "0:300, 0:300, 2:4", "--output", str(target), "--quiet")
    assert run(capsys, "map", model, "--scheme", "int4", "--what", "label", "--timeout", "5", *grid)[0] == 0
    found = np.load(target)
    box = qrobust.Rounding(parse_scheme("int4")).around(network)
    for row in range(3):
        for column in range(4):
            x = [found["across"][column], found["up"][row], 2.5]
            verdict = qrobust.check(LocalLabel(network, box, Point(x))).verdict
            assert found["status"][row, column] != 0 or verdict is Verdict.ROBUST


def test_a_filed_report(network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formats.save(network, tmp_path / "m.json")
    formats.save(parse_scheme("int8").copy(network), tmp_path / "copy.json")
    (tmp_path / "rows.csv").write_text("input 1,input 2,input 3\n" + HERE + "\n100,2,3\n")
    ask = (
        (1, "scheme", "int8", "label", ""),
        (2, "copy", "small", "eps", "eps = 0.05"),
        (3, "scheme", "int2", "eps", "eps = 1e-6"),
    )
    entries = (
        f'[[obligations]]\nid = "S-{n}"\ntext = "holds"\nask = "{what}"\n{key} = "{value}"\ndata = "rows"\n{more}\n'
        for n, key, value, what, more in ask
    )
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'title = "t"\n[model]\nfile = "m.json"\n[shipped]\nsmall = "copy.json"\n[data.rows]\nfile = "rows.csv"\n'
        + "".join(entries)
    )
    assert run(capsys, "signoff", str(plan), "--out", str(tmp_path / "out"), "--quiet")[0] == 1
    filed = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [entry["verdict"] for entry in filed["obligations"]] == ["ROBUST", "ROBUST", "VIOLATED"]
    assert "input 1 = 200" in (tmp_path / "out" / "report.md").read_text()
