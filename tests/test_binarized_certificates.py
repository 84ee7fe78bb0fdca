"""Proofs about networks of signs: their clauses against the truth, the checker against forgeries, the files, the commands."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qrobust.answers import Assurance, Verdict
from qrobust.binarized import (
    Ball,
    BatchNorm,
    BinarizedNetwork,
    BinarizedSession,
    Block,
    Box,
    Grid,
    LabelChange,
    Linear,
    Norm,
    Robustness,
    TieRule,
    ZeroSign,
    fold,
)
from qrobust.binarized import certificates as files
from qrobust.binarized.certificates import BinarizedCertificate, load_certificate
from qrobust.binarized.certification import certify
from qrobust.binarized.engines.sat import refutation
from qrobust.binarized.formats import load_binarized, save_binarized
from qrobust.binarized.lrat import drat, refutation_fault, trimmed
from qrobust.binarized.plain_clauses import plain_clauses
from qrobust.binarized.queries import Levels
from qrobust.errors import ModelFileError, ResourceError, UnsoundAnswerError, UnsupportedError
from qrobust.formats import load
from qrobust.layers import Dense
from tests.binarized import all_levels, dying, network, sleeping, sparse_dense
from tests.test_binarized import Case
from tests.test_binarized_truth import plain_labels_lost
from tests.test_cli import refused, run

ROOT = Path(__file__).parent.parent


def random_clauses(rng: np.random.Generator) -> list[list[int]]:
    """About as many with a solution as without; some literals and clauses twice, some clauses of one literal or always true."""
    most = int(rng.integers(3, 12))
    sizes = rng.choice([1, 2, 3, 3, 3, 4], size=rng.integers(most, 6 * most))
    return [(rng.integers(1, most + 1, size=size) * rng.choice([-1, 1], size=size)).tolist() for size in sizes]


def has_solution(clauses: list[list[int]]) -> bool:
    """By every assignment."""
    most = max(abs(literal) for clause in clauses for literal in clause)
    values = (np.arange(2**most)[:, None] >> np.arange(most)) & 1
    found = [((values[:, np.abs(clause) - 1] == 1) == (np.array(clause) > 0)).any(axis=1) for clause in clauses]
    return bool(np.all(found, axis=0).any())


def test_proofs_are_there_exactly_where_there_is_no_solution() -> None:
    rng, count = np.random.default_rng(0), 0
    for _ in range(600):
        clauses = random_clauses(rng)
        proof = refutation(clauses)
        assert (proof is None) == has_solution(clauses)
        if proof is not None:
            assert refutation_fault(clauses, proof) is None
            assert proof[-1].split()[:2] == [str(len(clauses) + len(proof)), "0"]
            assert [f" {line.removesuffix('0')}" in step for line, step in zip(drat(proof), proof, strict=True)]
            count += 1
    assert 200 < count < 500


def test_no_forgery_is_taken_for_a_proof_of_clauses_that_have_a_solution() -> None:
    """Proofs of other clauses, with numbers changed: whatever is accepted must have no solution."""
    rng, tried, accepted = np.random.default_rng(1), 0, 0
    while tried < 3000:
        clauses = random_clauses(rng)
        proof = refutation(clauses)
        if not proof:
            continue
        for _ in range(10):
            tried += 1
            kept = [clause for clause in clauses if rng.random() > 0.1] or clauses
            words = [line.split() for line in proof]
            line = words[rng.integers(len(words))]
            line[rng.integers(len(line))] = str(rng.integers(-9, len(clauses) + 9))
            if refutation_fault(kept, [" ".join(each) for each in words]) is None:
                accepted += 1
                assert not has_solution(kept), (kept, words)
    assert 0 < accepted < tried


PROOF = ["5 2 0 1 2 0", "6 0 5 3 4 0"]  # of the next line's clauses: that both are the same, and that they are not
CLAUSES = [[1, 2], [-1, 2], [1, -2], [-1, -2]]


@pytest.mark.parametrize(
    ("proof", "fault"),
    [
        (["5 2 0 1 2 0", "6 0 5 3 4 0"], None),
        ([], "ends before the empty clause"),
        (PROOF[:1], "ends before the empty clause"),
        (PROOF[1:], "there is no clause 5"),
        (["4 2 0 1 2 0", "6 0 4 3 4 0"], "step 4 has the number of another clause"),
        (["5 2 0 1 0", "6 0 5 3 4 0"], "step 5: it does not follow from the clauses that it names"),
        (["5 0 1 2 0"], "step 5: clause 1 says nothing there"),
        (["5 2 0 1 -2 0"], "there is no clause -2"),
        (["5 2 0 -1 2 0"], "there is no clause -1"),
        (["5 2 0 1 2"], "no step of LRAT"),
        (["5 d 1 0"], "no step of LRAT"),
        (["5 2 0"], "no step of LRAT"),
        (["5"], "no step of LRAT"),
        ([""], "no step of LRAT"),
        (["5 2 0 1 0 2 0"], "no step of LRAT"),
        (["5 2 0 0 1 2 0"], "the line '5 2 0 0 1 2 0' is no step of LRAT"),
        (["five"], "no step of LRAT"),
    ],
)
def test_what_is_wrong_with_a_proof_is_said(proof: list[str], fault: str | None) -> None:
    found = refutation_fault(CLAUSES, proof)
    assert found is None if fault is None else fault in str(found)


def test_a_solver_s_numbers_are_put_in_order_and_what_is_not_needed_is_left_out() -> None:
    lines = [
        "2 5 0 1 3 0",
        "2 d 3 0",
        "7 9 0 1 0",
        "8 -5 0 4 2 0",
        "9 0 8 2 0",
        "10 3 0 2 0",
    ]  # 2 is the second clause, simpler
    assert trimmed(lines, 5) == ["6 5 0 1 2 0", "7 -5 0 3 6 0", "8 0 7 6 0"]
    assert list(drat(trimmed(lines, 5))) == ["5 0", "-5 0", "0"]


def test_every_kind_of_region_is_what_it_says() -> None:
    """Balls, boxes whose ends are between levels, and boxes of levels with costs, against every input."""
    seen = {True: 0, False: 0}
    for seed in range(600):
        case, rng = Case(seed), np.random.default_rng(seed)
        first, second = (case.levels[rng.integers(len(case.levels))] for _ in range(2))
        lower, upper = np.minimum(first, second), np.maximum(first, second)
        slack = rng.choice([0.0, 0.1, 0.25])
        values = case.network.grid.values
        balls = (
            case.ball,
            Box(values(lower) - slack, values(upper) + slack),
            Levels(lower, upper, first, list(Norm)[rng.integers(4)], int(rng.integers(0, 5))),
        )
        for ball in balls:
            region = ball.region(case.network)
            inside = np.array([region.contains(x) for x in case.levels])
            is_lost = bool(case.folded.is_lost(case.levels[inside], case.label, case.tie).any())
            clauses = plain_clauses(Robustness(case.network, ball, case.label, case.tie, case.zero)).clauses
            proof = refutation(clauses)
            assert (proof is None) == is_lost, f"case {seed}, {ball}"
            assert proof is None or refutation_fault(clauses, proof) is None
            seen[is_lost] += 1
    assert min(seen.values()) > 300


def test_epsilon_of_a_normalization_counts() -> None:
    """Variances of 1 and an epsilon of 3: the root is 2, not 1, not the root of 2 below, nor that of -2."""
    seen = {True: 0, False: 0}
    for seed in range(300):
        case, rng = Case(seed), np.random.default_rng(seed)
        blocks = [
            replace(
                block, norm=BatchNorm(n.gamma, rng.integers(-3, 4, size=n.gamma.size) / 2, n.mean, np.ones(n.gamma.size), 3.0)
            )
            for block in case.network.blocks
            if (n := block.norm) is not None
        ]
        if not blocks or len(blocks) != len(case.network.blocks):
            continue
        found = replace(case.network, blocks=tuple(blocks))
        lost = plain_labels_lost(found, case.levels[case.inside], case.zero, case.label, case.tie)
        clauses = plain_clauses(Robustness(found, case.ball, case.label, case.tie, case.zero)).clauses
        assert (refutation(clauses) is None) == lost.any(), f"case {seed}"
        seen[bool(lost.any())] += 1
    assert min(seen.values()) > 30


def test_pairs_have_proofs_exactly_where_they_label_all_alike() -> None:
    seen = {True: 0, False: 0}
    for seed in range(600):
        rng = np.random.default_rng(seed)
        own = network(rng)
        other = own if seed % 2 else network(np.random.default_rng(seed + 1000))
        if seed % 2:  # one weight changed
            weight = np.array(own.output.layer.weight)
            weight[rng.integers(len(weight)), 0] = rng.choice([-1.0, 0.0, 1.0])
            other = replace(own, output=Linear(Dense(weight, own.output.layer.bias), own.output.scale))
        levels = all_levels(own)
        if (own.grid, own.inputs, own.outputs) != (other.grid, other.inputs, other.outputs):
            continue
        zero = list(ZeroSign)[seed % 3 % 2]
        a, b = (levels[rng.integers(len(levels))] for _ in range(2))
        a, b = (a, b) if rng.random() < 0.5 else (levels[0], levels[-1])
        ball = Levels(np.minimum(a, b), np.maximum(a, b), a)
        inside = levels[((levels >= ball.lower) & (levels <= ball.upper)).all(axis=1)]
        differ = bool((fold(own, zero).labels(inside) != fold(other, zero).labels(inside)).any())
        clauses = plain_clauses(LabelChange(own, other, ball, zero)).clauses
        proof = refutation(clauses)
        assert (proof is None) == differ, f"pair {seed}"
        assert proof is None or refutation_fault(clauses, proof) is None
        seen[differ] += 1
    assert min(seen.values()) > 50


def test_sums_whose_scales_differ_are_weighed() -> None:
    """Scores of three scales: 3/4 a + b against 5/2 c, by the definition at every input."""
    grid = Grid.of(1, 0, 1)
    weight = np.array([[1.0, 1, 0, 0, -1], [0, 1, 1, 1, 0], [1, 0, 0, -1, 1]])
    found = BinarizedNetwork(grid, (), Linear(Dense(weight, np.array([0.5, 0.0, -0.25])), np.array([0.75, 1.0, -2.5])))
    levels = all_levels(found)
    for label in range(3):
        for tie in TieRule:
            for row in levels:
                ball = Ball(row.astype(float), Fraction(2), Norm.L1)
                region = ball.region(found)
                inside = levels[[region.contains(x) for x in levels]]
                lost = bool(fold(found).is_lost(inside, label, tie).any())
                assert (refutation(plain_clauses(Robustness(found, ball, label, tie)).clauses) is None) == lost


@pytest.fixture
def majority(tmp_path: Path) -> Path:
    """Label 1 where two or more of three bits are set, by one neuron; else label 0."""
    block = Block(sparse_dense(np.ones((1, 3)), np.array([-1.5])))
    found = BinarizedNetwork(Grid.of(1, 0, 1), (block,), sparse_dense(np.array([[-1.0], [1.0]])), "majority", ("few", "many"))
    path = tmp_path / "majority.json"
    save_binarized(found, path)
    return path


def test_answers_are_certified_and_files_read_back(tmp_path: Path) -> None:
    path, count = tmp_path / "x.cert", 0
    with BinarizedSession() as session:
        for seed in range(40):
            case = Case(seed)
            answer = session.check(Robustness(case.network, case.ball, None, case.tie, case.zero))
            if answer.verdict is not Verdict.ROBUST:
                continue
            certify(answer.query).save(path)
            again = load_certificate(path)
            assert again.fault() is None
            assert again.query.to_json() == replace(answer.query, label=answer.label).to_json()
            assert [each.sha256 for each in again.networks.values()] == [case.network.sha256]
            count += 1
            if count == 6:
                break
    assert replace(answer, is_certified=True).assurance is Assurance.CHECKED
    assert count == 6


def test_a_wrong_answer_has_no_proof(majority: Path) -> None:
    query = Robustness(load_binarized(majority).network, Ball(np.zeros(3), Fraction(2), Norm.L1))
    with pytest.raises(UnsoundAnswerError, match="have a solution"):
        certify(query)
    with pytest.raises(ResourceError, match="computed in floating point"):
        certify(query, is_proved=False)


def test_refused_proofs_and_ended_solvers_raise(majority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    query = Robustness(load_binarized(majority).network, Ball(np.zeros(3), Fraction(1), Norm.L1))
    monkeypatch.setattr("qrobust.binarized.certification._refutation", sleeping)
    with pytest.raises(ResourceError, match=r"no proof was found in 0.1 s: give more time"):
        certify(query, 0.1)
    monkeypatch.setattr("qrobust.binarized.certification._refutation", dying)
    with pytest.raises(ResourceError, match="ended with code 7"):
        certify(query)
    monkeypatch.undo()
    monkeypatch.setattr(BinarizedCertificate, "fault", lambda self: "it is forged")
    with pytest.raises(UnsoundAnswerError, match="it is forged"):
        certify(query)


def test_questions_without_clauses_are_refused(majority: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_binarized(majority).network
    ball = Ball(np.zeros(3), Fraction(1), Norm.L1)
    with pytest.raises(UnsupportedError, match="name it in the question"):
        plain_clauses(Robustness(found, ball))
    with pytest.raises(UnsupportedError, match="round their inputs differently"):
        plain_clauses(LabelChange(found, replace(found, grid=Grid.of(1, 0, 2)), ball))
    iris = load(ROOT / "models" / "iris.json")
    signs = BinarizedNetwork(Grid.of(1, 0, 8), (), sparse_dense(np.ones((3, 4))))
    with pytest.raises(UnsupportedError, match="float network"):
        plain_clauses(LabelChange(iris, signs, Ball(np.ones(4), Fraction(1))))
    monkeypatch.setattr("qrobust.binarized.plain_clauses.MOST_CLAUSES", 4)
    with pytest.raises(ResourceError, match="plain clauses"):
        plain_clauses(Robustness(found, ball, 0))


AROUND = ("--input", "0,0,0", "--eps", "1", "--norm", "l1")


def test_a_certificate_is_written_and_replayed(capsys: pytest.CaptureFixture[str], majority: Path, tmp_path: Path) -> None:
    cert = tmp_path / "few.cert"
    code, out, _ = run(capsys, "bnn", "verify", str(majority), *AROUND, "--certificate", str(cert))
    assert code == 0
    assert "checked, in integers" in out.splitlines()[0]
    assert out.splitlines()[1].startswith("certificate: ")
    code, out, _ = run(capsys, "replay", str(cert), "--model", str(majority))
    assert code == 0
    assert out.startswith("PROVED: within l1 distance 1 of the input, majority (3-1-2) keeps the label few. [")
    code, out, _ = run(capsys, "replay", str(cert), "--json")
    document = json.loads(out)
    assert (code, document["proved"], document["fault"]) == (0, True, None)
    assert document["network"] == load_binarized(majority).network.sha256
    other = tmp_path / "other.json"
    save_binarized(replace(load_binarized(majority).network, grid=Grid.of(1, 0, 2)), other)
    assert "about another network" in refused(capsys, "replay", str(cert), "--model", str(other))
    assert "network of signs" in refused(capsys, "replay", str(cert), "--delta", "0.1")
    code, out, _ = run(capsys, "bnn", "verify", str(majority), *AROUND, "--certificate", str(cert), "--json")
    assert (code, json.loads(out)["assurance"]) == (0, "CHECKED")
    assert json.loads(out)["proof_steps"] >= 0


def test_pairs_are_certified(capsys: pytest.CaptureFixture[str], majority: Path, tmp_path: Path) -> None:
    found, copy, cert = load_binarized(majority).network, tmp_path / "copy.json", tmp_path / "pair.cert"
    block = Block(sparse_dense(np.ones((1, 3)), np.array([-2.0])))  # two or three of three bits, too
    save_binarized(replace(found, blocks=(block,), name="copy"), copy)
    box = ("--box", "0:1, 0:1, 0:1")
    code, out, _ = run(capsys, "bnn", "verify", str(majority), "--copy", str(copy), *box, "--certificate", str(cert))
    assert (code, out.splitlines()[1].split(":")[0]) == (0, "certificate")
    code, out, _ = run(capsys, "replay", str(cert), "--model", str(copy))
    assert code == 0
    assert "majority (3-1-2) and copy (3-1-2) give the same label. [" in out
    float_pair = (str(ROOT / "models" / "iris.json"), "--float", "--copy", "ternary", "--step", "1/10", "--range", "0:8")
    around = ("--box", "5:5.5, 3:3.5, 4:4.5, 1:1.5", "--certificate", str(tmp_path / "f.cert"))
    code, _, err = run(capsys, "bnn", "verify", *float_pair, *around)
    assert code == 0
    assert "f.cert was not written: a float network has no clauses" in err
    assert not (tmp_path / "f.cert").exists()


def test_no_proof_no_file(capsys: pytest.CaptureFixture[str], majority: Path, tmp_path: Path) -> None:
    ball = ("--input", "0,0,0", "--eps", "2", "--norm", "l1")
    code, _, err = run(capsys, "bnn", "verify", str(majority), *ball, "--certificate", str(tmp_path / "x.cert"))
    assert code == 1
    assert "x.cert was not written: only ROBUST answers have proofs" in err
    for options in (["--least"], ["--least", "--rows", "1"]):
        line = refused(capsys, "bnn", "verify", str(majority), *AROUND[:2], *options, "--certificate", str(tmp_path / "x.cert"))
        assert "--certificate" in line
    assert [path.name for path in tmp_path.iterdir()] == ["majority.json"]


def test_each_robust_row_has_a_proof(capsys: pytest.CaptureFixture[str], majority: Path, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("a,b,c\n0,0,0\n0,1,0\n1,1,1\n")
    asked = (
        "bnn",
        "verify",
        str(majority),
        "--input",
        str(tmp_path / "points.csv"),
        "--rows",
        ":",
        "--eps",
        "1",
        "--norm",
        "l1",
    )
    code, out, _ = run(capsys, *asked, "--certificate", str(tmp_path / "p.cert"))
    assert code == 1
    assert out.splitlines()[-1] == "  certificates: 2, followed by the checker: p-1.cert to p-3.cert"
    assert sorted(path.name for path in tmp_path.glob("*.cert")) == ["p-1.cert", "p-3.cert"]
    for row, label in ((1, "few"), (3, "many")):
        code, out, _ = run(capsys, "replay", str(tmp_path / f"p-{row}.cert"))
        assert (code, f"keeps the label {label}" in out) == (0, True)
    _, out, _ = run(capsys, *asked, "--certificate", str(tmp_path / "p.cert"), "--json")
    assert json.loads(out)["certificates"] == ["p-1.cert", "p-3.cert"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qrobust.binarized.certification._refutation", dying)
        code, out, err = run(capsys, *asked, "--certificate", str(tmp_path / "q.cert"))
    assert code == 1
    assert "q-1.cert was not written: no proof was found" in err
    assert "certificates" not in out


def repacked(content: bytes, parts: dict[str, bytes]) -> bytes:
    """Return a zip with some members' content changed."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, parts.get(name, old.read(name)))
    return made.getvalue()


@pytest.fixture
def written(majority: Path) -> bytes:
    query = Robustness(load_binarized(majority).network, Box(np.zeros(3), np.array([1.0, 1.0, 0.0])), 0, TieRule.LABEL)
    query = replace(query, ball=Ball(np.zeros(3), Fraction(1), Norm.L0))
    proof = refutation(plain_clauses(query).clauses)
    assert proof is not None
    return BinarizedCertificate(query, tuple(proof)).to_bytes()


def header_of(content: bytes) -> dict[str, object]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found: dict[str, object] = json.loads(archive.read(files.HEADER))
        return found


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"label": 1}, "REFUSED"),
        ({"inputs": {"norm": "l0", "eps": "2", "centre": [0, 0, 0]}}, "REFUSED"),
        ({"inputs": {"norm": "l0", "eps": "1", "centre": [0, 1, 0]}}, "REFUSED"),
        ({"inputs": {"lower": [0, 0, 0], "upper": [1, 1, 1]}}, "REFUSED"),
        ({"label": 7}, "classes 0 to 1"),
        ({"tie": "nobody"}, "nobody"),
        ({"sign_of_zero": 3}, "3"),
        ({"inputs": {"norm": "l0", "eps": "-1", "centre": [0, 0, 0]}}, "negative"),
        ({"inputs": {"norm": "l0", "eps": "1", "centre": [0, 0]}}, "takes 3"),
        ({"inputs": {"lower_levels": [0, 0, 0.5], "upper_levels": [1, 1, 1]}}, "not whole"),
        ({"inputs": {"lower_levels": [0, 0, -9], "upper_levels": [1, 1, 1], "centre_levels": [0, 0, 0]}}, "levels go from"),
        ({"inputs": {}}, "lower_levels"),
    ],
)
def test_a_proof_of_something_else_is_refused(
    capsys: pytest.CaptureFixture[str], written: bytes, tmp_path: Path, change: dict[str, object], fault: str
) -> None:
    header = header_of(written)
    question = header["question"]
    assert isinstance(question, dict)
    path = tmp_path / "x.cert"
    path.write_bytes(repacked(written, {files.HEADER: json.dumps(header | {"question": question | change}).encode()}))
    if fault == "REFUSED":
        code, out, _ = run(capsys, "replay", str(path))
        assert (code, out.split(":")[0]) == (4, "REFUSED")
    else:
        assert fault in refused(capsys, "replay", str(path))


def test_damaged_files_are_one_line(capsys: pytest.CaptureFixture[str], written: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.cert"
    header = header_of(written)
    wrong_hash = json.dumps(header | {"network_sha256": "0"}).encode()
    for content, says in (
        (repacked(written, {files.HEADER: wrong_hash}), "hash"),
        (repacked(written, {files.HEADER: b"[]"}), "format"),
        (repacked(written, {files.HEADER: b"{"}), "not a whole certificate file"),
        (repacked(written, {files.PROOF: b"\xff\xfe"}), "not a whole certificate file"),
    ):
        path.write_bytes(content)
        assert says in refused(capsys, "replay", str(path))
    rng, errors = np.random.default_rng(0), list[str]()
    for _ in range(300):
        damaged = np.frombuffer(written, dtype=np.uint8).copy()
        damaged[rng.integers(len(damaged), size=2)] = rng.integers(0, 256, size=2)
        path.write_bytes(damaged.tobytes())
        try:
            load_certificate(path).fault()
        except ModelFileError as error:
            errors.append(str(error))
    assert len(errors) > 100
    assert not any("\n" in error for error in errors)
