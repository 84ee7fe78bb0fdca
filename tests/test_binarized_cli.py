"""`qrobust bnn verify`: answers, exit codes, exports, proofs; and the texts for other solvers against the truth."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from qrobust.binarized import BinarizedNetwork, Block, Grid, Robustness
from qrobust.binarized.engines import sat
from qrobust.binarized.export import lp, opb, write_constraints
from qrobust.binarized.formats import save_binarized
from qrobust.binarized.plain_clauses import plain_clauses
from qrobust.errors import UnsupportedError
from tests.binarized import sparse_dense
from tests.test_binarized import Case
from tests.test_cli import refused, run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Label 1 where two or more of three bits are set, by one neuron; else label 0."""
    block = Block(sparse_dense(np.ones((1, 3)), np.array([-1.5])))
    network = BinarizedNetwork(Grid.of(1, 0, 1), (block,), sparse_dense(np.array([[-1.0], [1.0]])), classes=("few", "many"))
    path = tmp_path / "majority.json"
    save_binarized(network, path)
    return path


def test_answers_and_exit_codes(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "bnn", "verify", str(model), "--input", "0, 0, 0", "--eps", "1", "--norm", "l1")
    assert code == 0
    assert out.startswith("ROBUST: within l1 distance 1 of the input")
    code, out, _ = run(capsys, "bnn", "verify", str(model), "--input", "0, 0, 0", "--eps", "2", "--norm", "hamming", "--json")
    document = json.loads(out)
    assert (code, document["verdict"], document["assurance"]) == (1, "VIOLATED", "CHECKED")
    assert sum(document["counterexample"]["levels"]) == 2
    code, out, _ = run(capsys, "bnn", "verify", str(model), "--input", "0, 0, 0", "--norm", "l0", "--least")
    assert code == 0
    assert "lies in [2, 2]" in out
    (tmp_path / "points.csv").write_text("a,b,c\n0,0,0\n0,1,0\n")
    code, out, _ = run(capsys, "bnn", "verify", str(model), "--input", str(tmp_path / "points.csv"), "--row", "2", "--eps", "1")
    assert code == 1
    assert "few to many" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "0,0,0"], "give --eps"),
        (["--eps", "1"], "give --input"),
        (["--input", "0,0", "--eps", "1"], "takes 3"),
        (["--input", "0,0,9", "--eps", "1"], "outside the input range"),
        (["--input", "0,0,0", "--eps", "-1"], "eps is -1"),
        (["--input", "0,0,0", "--eps", "2"], "reach only 1"),
        (["--input", "0,0,0", "--eps", "nan"], "nan"),
        (["--input", "0,0,0", "--eps", "1", "--label", "2"], "classes 0 to 1"),
        (["--input", "0,0,0", "--eps", "1", "--engine", "abacus"], "no engine 'abacus'"),
        (["--input", "0,0,0", "--eps", "1", "--step", "1"], "go together"),
        (["--input", "0,0,0", "--eps", "1", "--sign-of-zero", "0"], "give 1 or -1"),
        (["--input", "0,0,0", "--eps", "1", "--timeout", "0"], "time limit"),
        (["--input", "0,0,0", "--eps", "1", "--least"], "leave --eps"),
        (["--input", "0,0,0", "--eps", "1", "--export", "x.txt"], "written as"),
    ],
)
def test_bad_usage_is_one_line(capsys: pytest.CaptureFixture[str], model: Path, options: list[str], message: str) -> None:
    assert message in refused(capsys, "bnn", "verify", str(model), *options)


def test_vnnlib_queries(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    sides = "".join(f"(declare-const X_{i} Real)(assert (>= X_{i} 0))(assert (<= X_{i} {top}))" for i, top in enumerate("110"))
    query = tmp_path / "q.vnnlib"
    query.write_text(sides + "(declare-const Y_0 Real)(declare-const Y_1 Real)(assert (or (and (>= Y_1 Y_0))))")
    code, out, _ = run(capsys, "bnn", "verify", str(model), "--vnnlib", str(query))
    assert code == 1
    assert out.startswith("VIOLATED: in a box of 3 inputs")
    query.write_text(query.read_text().replace("(<= X_1 1)", "(<= X_1 0)"))
    assert run(capsys, "bnn", "verify", str(model), "--vnnlib", str(query))[0] == 0


def test_a_proof_is_written_and_follows_step_by_step(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    stem = tmp_path / "claim"
    code, _, _ = run(
        capsys, "bnn", "verify", str(model), "--input", "0,0,0", "--eps", "1", "--norm", "l1", "--proof", str(stem), "--quiet"
    )
    assert code == 0
    clauses = [[int(n) for n in line.split()[:-1]] for line in stem.with_suffix(".cnf").read_text().splitlines()[1:]]
    steps = stem.with_suffix(".drat").read_text().splitlines()
    assert steps[-1].split() == ["0"]
    whole = list(clauses)
    for step in steps:
        clause = [int(n) for n in step.removeprefix("d").split()[:-1]]
        if step.startswith("d"):
            clauses.remove(next(each for each in clauses if sorted(each) == sorted(clause)))
        else:
            against = [each for each in clauses if clause and -clause[0] in each]  # asymmetric resolution on the first literal
            others = [[n for n in each if n != -clause[0]] for each in against]
            rat = bool(clause) and all(_follows(clauses, clause + other) for other in others)
            assert _follows(clauses, clause) or rat, f"{clause} does not follow"
            clauses.append(clause)
    assert not _follows(whole[: len(whole) // 4], [])  # the check itself can fail


def _follows(clauses: list[list[int]], clause: list[int]) -> bool:
    """Whether the opposites of a clause's literals lead to a contradiction by unit propagation."""
    true = {-literal for literal in clause}
    while True:
        new = set()
        for each in clauses:
            if any(literal in true for literal in each):
                continue
            left = [literal for literal in each if -literal not in true]
            if not left:
                return True
            if len(left) == 1:
                new.add(left[0])
        if not new - true:
            return False
        true |= new
        if any(-literal in true for literal in new):
            return True


def test_texts_for_other_solvers_say_the_truth(tmp_path: Path) -> None:
    import highspy
    import z3

    verdicts = set()
    for seed in range(80):
        case = Case(seed)
        found = case.constraints
        if not found.rival_classes:
            continue
        verdicts.add(case.violated)
        path = tmp_path / f"{seed}.lp"
        write_constraints(found, path)
        solver = highspy.Highs()
        solver.setOptionValue("output_flag", False)
        solver.readModel(str(path))
        solver.run()
        feasible = solver.getModelStatus() != highspy.HighsModelStatus.kInfeasible
        assert feasible == case.violated, f"case {seed}: {lp(found)}"
        booleans = z3.Solver()
        for line in opb(found).splitlines()[1:]:
            left, limit = line.removesuffix(" ;").split(" >= ")
            terms = [int(a) * z3.If(z3.Bool(v), 1, 0) for a, v in re.findall(r"([-+]\d+) (x\d+)", left)]
            booleans.add(z3.Sum(terms) >= int(limit) if terms else z3.BoolVal(int(limit) <= 0))
        assert (booleans.check() == z3.sat) == case.violated, f"case {seed}"
        claim = Robustness(case.network, case.ball, case.label, case.tie, case.zero)
        assert (sat.refutation(plain_clauses(claim).clauses) is None) == case.violated
    assert verdicts == {True, False}
    with pytest.raises(UnsupportedError, match="written as"):
        write_constraints(found, tmp_path / "x.smt")


NORMED = {"gamma": [1.0], "beta": [0.0], "mean": [0.0], "variance": [1.0], "epsilon": 0.0}


@pytest.mark.parametrize(
    ("layer", "change", "message"),
    [
        (0, {"weight": [[2, 1, 1]]}, "only -1, 0 and 1"),
        (0, {"weight": [[0.5, 1, 1]]}, "only -1, 0 and 1"),
        (1, {"weight": [[-1], [3]]}, "only -1, 0 and 1"),
        (0, {"weight": [[float("nan"), 1, 1]]}, "NaN|finite|number"),
        (0, {"bias": [float("nan")]}, "NaN|finite|number"),
        (0, {"bias": [float("inf")]}, "finite|number"),
        (0, {"scale": [0.0]}, "scale"),
        (0, {"scale": [float("nan")]}, "scale|finite|number"),
        (0, {"norm": NORMED | {"variance": [0.0]}}, "variance 0 and epsilon 0"),
        (0, {"norm": NORMED | {"variance": [-1.0]}}, "variance -1"),
        (0, {"norm": NORMED | {"gamma": [0.0]}}, "gamma is 0"),
        (0, {"norm": NORMED | {"mean": [float("nan")]}}, "mean|number"),
        (0, {"norm": NORMED | {"gamma": [1.0, 1.0]}}, "gamma|channels"),
        (0, {"type": "lstm"}, "lstm"),
        (1, {"weight": [[-1, 1], [1, 1]]}, "takes 2 inputs but"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "map", "attack"])
def test_damaged_networks_are_one_line_everywhere(
    capsys: pytest.CaptureFixture[str], model: Path, layer: int, change: dict[str, object], message: str, command: str
) -> None:
    document = json.loads(model.read_text())
    document["layers"][layer] |= change
    model.write_text(json.dumps(document))
    options = ["--axes", "1, 2"] if command == "map" else ["--input", "0,0,0", "--eps", "1"]
    line = refused(capsys, "bnn", command, str(model), *options)
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["attack", "--input", "0,0,0", "--eps", "-1"], "eps is -1"),
        (["attack", "--input", "0,0,0", "--eps", "7"], "reach only 1"),
        (["attack", "--input", "0,0,0", "--eps", "1", "--label", "2"], "classes 0 to 1"),
        (["attack", "--input", "0,0,0", "--eps", "1", "--label", "-1"], "classes 0 to 1"),
        (["attack", "--input", "0,0,0", "--eps", "1", "--target", "2"], "classes 0 to 1|no class 2|target"),
        (["attack", "--input", "0,nan,0", "--eps", "1"], "nan|finite"),
        (["verify", "--input", "0,0,0", "--eps", "1", "--label", "-1"], "classes 0 to 1"),
        (["verify", "--input", "0,nan,0", "--eps", "1"], "nan|finite"),
        (["verify", "--input", "0,0,0", "--eps", "inf"], "inf"),
        (["verify", "--input", "0,0,0", "--eps", "4", "--norm", "l0"], "at most 3"),
        (["verify", "--input", "0,0,0", "--eps", "1/2", "--norm", "l0"], "whole number"),
        (["verify", "--input", "0,0,0", "--eps", "4", "--norm", "l1"], "reach only 3"),
        (["verify", "--input", "0,0,0", "--least", "--label", "5"], "classes 0 to 1"),
        (["verify", "--box", "0:1, 0:1, nan:1"], "nan|finite"),
    ],
)
def test_bad_questions_are_one_line(capsys: pytest.CaptureFixture[str], model: Path, command: list[str], message: str) -> None:
    line = refused(capsys, "bnn", command[0], str(model), *command[1:])
    assert re.search(message, line), line
