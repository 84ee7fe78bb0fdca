"""Is a wrong plan refused in one line that names the file, the line and the key, before anything is proved?"""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from qrobust.domains import InputBox, Points, Polytope
from qrobust.errors import PlanError
from qrobust.integer.program import Kernels
from qrobust.report.plan import Ask, read_plan
from qrobust.report.tables import MOST_LINES, Source

ROOT = Path(__file__).parents[1]
PLAN = """title = "Cats"
timeout = 20
assumptions = ["Cats are over 2 kg."]

[model]
file = "models/cat_paper.json"
level = "1/2"

[shipped]
int8 = "models/cat_int8.tflite"
refit = "models/cat_refit.json"

[domains.seen]
box = { "heart weight" = [6.3, 20.5], "body weight" = [2, 3.9] }

[domains.cut]
where = [
  { sum = { "heart weight" = 1, "body weight" = -2 }, at_most = 9 },
]

[data.cats]
random = 5
domain = "seen"
seed = 3

[[obligations]]
id = "CAT-1"
ask = "margin"
sigma = 0.1
scheme = "int8"
domain = "cut"

[[obligations]]
id = "CAT-2"
text = "Confidences hold"
ask = "eps"
eps = "1/50"
program = "int8"
kernels = "any-kernel"
data = "cats"
domain = "seen"

[[obligations]]
id = "CAT-3"
ask = "inside"
copy = "refit"
scheme = "fp16"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").symlink_to(ROOT / "models")
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def test_a_plan_is_read_whole(folder: Path) -> None:
    plan = read_plan(written(folder, PLAN))
    assert plan.title == "Cats"
    assert plan.level == Fraction(1, 2)
    first, second, third = plan.obligations
    assert (first.ask, first.sigma, first.text, first.seconds) == (
        Ask.MARGIN,
        Fraction(1, 10),
        "margin 0.1: scheme int8, domain cut",
        20.0,
    )
    assert first.where is not None
    assert isinstance(first.where.domain, Polytope)
    assert first.where.domain.inequalities[0].tolist() == [[1.0, -2.0]]
    assert first.where.domain.within.lower.tolist() == [6.3, 2.0]  # the model's own ranges
    assert (second.eps, second.kernels, second.shipped) == (Fraction(1, 50), Kernels.ANY, "int8")
    assert second.where is not None
    assert isinstance(second.where.domain, Points)
    assert second.where.domain.values.shape == (5, 2)
    assert (second.where.seed, second.where.kind) == (3, "data")
    assert third.copy is not None
    assert third.where is None
    assert set(plan.shipped) == {"int8", "refit"}


def test_the_same_seed_draws_the_same_points(folder: Path) -> None:
    first, again = (read_plan(written(folder, PLAN)).places["data.cats"].domain for _ in range(2))
    other = read_plan(written(folder, PLAN.replace("seed = 3", "seed = 4"))).places["data.cats"].domain
    assert isinstance(first, Points)
    assert isinstance(again, Points)
    assert isinstance(other, Points)
    assert np.array_equal(first.values, again.values)
    assert not np.array_equal(first.values, other.values)


FAULTS = [
    # what is replaced, by what, the text whose first line is named, the key, what else is said
    ('title = "Cats"', 'titel = "Cats"', "titel", "titel", "did you mean 'title'"),
    ("level =", "levle =", "levle", "model.levle", "did you mean 'level'"),
    ("sigma = 0.1", "sigma = 0.1\nsgima = 2", "sgima", "obligations[1].sgima", "did you mean 'sigma'"),
    ("sigma = 0.1", "colour = 2", "colour", "obligations[1].colour", "unknown"),
    ("  { sum = {", "  { of = 1, sum = {", "where = [", "domains.cut.where[1].of", "unknown"),
    ('"heart weight" = 1,', '"heart" = 1,', "where = [", "domains.cut.where[1].sum.heart", "known here are heart"),
    ("cat_paper.json", "cat_papre.json", "file =", "model.file", "cat_papre.json does not exist"),
    ("cat_int8.tflite", "missing.tflite", "int8 =", "shipped.int8", "missing.tflite does not exist"),
    ('random = 5\ndomain = "seen"\nseed = 3', 'file = "r.csv"', 'file = "r', "data.cats.file", "r.csv does not exist"),
    ("[6.3, 20.5]", "[20.5, 6.3]", "box =", "domains.seen.box", "contradicts itself: heart weight has its lower end 20.5"),
    ("at_most = 9", "at_most = -9", "where = [", "domains.cut.where", "contradicts the box"),
    ("[6.3, 20.5]", "[6.3, nan]", "box =", "domains.seen.box", "number"),
    (', "body weight" = [2, 3.9]', "", "box =", "domains.seen.box", "no side for body weight"),
    ("seed = 3", "seed = -3", "seed", "data.cats.seed", "whole number"),
    ("random = 5", "random = 5000000000", "random", "data.cats.random", "1,000,000"),
    ('ask = "eps"', 'ask = "epsilon"', 'ask = "epsilon"', "obligations[2].ask", "label, margin, eps"),
    ('eps = "1/50"', 'eps = "2"', 'eps = "2"', "obligations[2].eps", "between 0 and 1"),
    ('eps = "1/50"', 'eps = "much"', 'eps = "much"', "obligations[2].eps", "number such as 0.01"),
    ('eps = "1/50"', "", 'text = "Confidences', "obligations[2]", "'eps' is missing"),
    ('eps = "1/50"', 'eps = "1/50"\nsigma = 0.1', "sigma = 0.1\nprogram", "obligations[2].sigma", "does not go with"),
    ('program = "int8"', 'program = "int4"', 'program = "int4"', "obligations[2].program", "names no 'int4'"),
    ('program = "int8"', 'program = "refit"', "refit =", "shipped.refit", "integer programs are read from .tflite"),
    ('program = "int8"', 'copy = "refit"\nscheme = "int8"', 'copy = "refit"\nsch', "obligations[2].copy", "do not go together"),
    ('scheme = "int8"\ndomain', 'scheme = "int99"\ndomain', 'scheme = "int99"', "obligations[1].scheme", "bits is 99"),
    ('scheme = "int8"\ndomain = "cut"', 'scheme = "int8"', 'id = "CAT-1"', "obligations[1]", "say where"),
    ('domain = "cut"', 'domain = "cuts"', 'domain = "cuts"', "obligations[1].domain", "there is no [domains.cuts]"),
    ('scheme = "int8"\ndom', 'program = "int8"\ndom', 'domain = "cut"', "obligations[1].domain", "cut by"),
    ('kernels = "any-kernel"', 'kernels = "mine"', "kernels =", "obligations[2].kernels", "xnnpack, onnxruntime, any"),
    ('scheme = "int8"\n', 'scheme = "int8"\nkernels = "xnnpack"\n', "kern", "obligations[1].kernels", "goes with program"),
    ('copy = "refit"', "", 'id = "CAT-3"', "obligations[3]", "give copy or program"),
    ('id = "CAT-3"', 'id = "CAT-1"', 'id = "CAT-1"\nask = "inside"', "obligations[3].id", "earlier obligation"),
    ('id = "CAT-3"', 'id = ""', 'id = ""', "obligations[3].id", "empty text"),
    ("timeout = 20", "timeout = 0.5", "timeout", "timeout", "whole number from 1"),
    ('level = "1/2"', 'level = "1"', "level", "model.level", "strictly between"),
    ('level = "1/2"', 'classes = ["a"]', "classes", "model.classes", "1 classes are named"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "at", "key", "said"), FAULTS, ids=[f"{key}-{said[:20]}" for *_, key, said in FAULTS])
def test_a_fault_names_the_line_and_the_key(folder: Path, old: str, new: str, at: str, key: str, said: str) -> None:
    assert old in PLAN
    text = PLAN.replace(old, new, 1)
    path = written(folder, text)
    with pytest.raises(PlanError) as caught:
        read_plan(path)
    message = str(caught.value)
    assert "\n" not in message
    assert said in message
    assert f", {key}: " in message
    line = int(message.split("line ")[1].split(",")[0])
    if key.startswith("obligations") and key.endswith("]"):  # the table as a whole: the line of its header
        assert text.split("\n")[line - 1] == "[[obligations]]"
    else:
        assert line == text[: text.index(at)].count("\n") + 1, message


def test_a_row_outside_of_the_obligation_s_domain_is_a_contradiction(folder: Path) -> None:
    (folder / "rows.csv").write_text("body weight,heart weight\n3,10\n3,21\n")
    text = PLAN.replace('random = 5\ndomain = "seen"\nseed = 3', 'file = "rows.csv"')
    with pytest.raises(PlanError, match=r"obligations\[2\].domain: contradicts data = 'cats': row 2 lies outside the box"):
        read_plan(written(folder, text))


def test_rows_are_held_against_cuts_exactly(folder: Path) -> None:
    """heart - 2 body <= 9: equality is inside, however the floats round."""
    (folder / "rows.csv").write_text("body weight,heart weight\n3,15\n2.1,13.2\n2.1,13.3\n")
    text = PLAN.replace('random = 5\ndomain = "seen"\nseed = 3', 'file = "rows.csv"')
    text = text.replace('data = "cats"\ndomain = "seen"', 'data = "cats"\ndomain = "cut"').replace(
        'program = "int8"', 'scheme = "int8"'
    )
    text = text.replace('kernels = "any-kernel"\n', "")
    with pytest.raises(PlanError, match=r"row [23] lies outside the box") as caught:
        read_plan(written(folder, text))
    first = Fraction(13.2) - 2 * Fraction(2.1) > 9
    assert f"row {2 if first else 3} " in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"title = \n", r"not TOML: Invalid value \(at line 1"),
        (b"a = 1\na = 2\n", r"not TOML: .*at line 2"),
        (b"\xff\xfe", "not text in UTF-8"),
        (b"", "'model' is missing"),
        (b"[model]\nfile = 3\n", "line 2, model.file: is a number, it must be a text"),
        (b"model = 3\n", "line 1, model: is a number, it must be a table"),
        (b"#" * 300_000, "more than 200,000 bytes"),
        (b"\n" * (MOST_LINES + 1), "lines: split the plan"),
        (b"a = " + b"[" * 20_000 + b"]" * 20_000, "nested too deep"),
    ],
)
def test_damaged_plans_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=said):
        read_plan(path)


@pytest.mark.parametrize("seed", range(150))
def test_a_plan_with_random_damage_is_read_or_refused_in_one_line(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(PLAN.encode())
    for place in rng.integers(len(content), size=rng.integers(1, 4)).tolist():
        match rng.integers(3):
            case 0:
                content[place] = int(rng.integers(32, 127))
            case 1:
                del content[place : place + int(rng.integers(1, 30))]
            case _:
                content[place:place] = content[: int(rng.integers(1, 60))]
    path = folder / "plan.toml"
    path.write_bytes(bytes(content))
    said = None
    try:
        read_plan(path)
    except PlanError as error:
        said = str(error)
    assert said is None or (said.startswith(str(path)) and "\n" not in said)


def test_a_plan_that_is_missing_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="does not exist"):
        read_plan(tmp_path / "none.toml")
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(tmp_path)


def test_lines_are_found_through_values_of_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('a = """\n[b]\nc = 1\n"""\n[b]\nc = [\n 1,\n 2,\n]\nd = 3\n[[e]]\nf = 1\n[[e]]\nf = 2\n')
    source = Source(path)
    assert [source.line(keys) for keys in (("a",), ("b", "c"), ("b", "d"), ("e", 1, "f"), ("none",))] == [1, 6, 10, 14, 1]


def test_the_command_line_prints_one_line_and_writes_nothing(folder: Path) -> None:
    written(folder, PLAN.replace('title = "Cats"', "titel = 1"))
    command = [sys.executable, "-m", "qrobust", "signoff", "plan.toml", "--out", "report"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: plan.toml, line 1, titel: ")
    assert done.stderr.count("\n") == 1
    assert not (folder / "report").exists()


def test_a_box_may_be_a_list_of_pairs(folder: Path) -> None:
    text = PLAN.replace('{ "heart weight" = [6.3, 20.5], "body weight" = [2, 3.9] }', "[[6.3, 20.5], [2, 3.9]]")
    domain = read_plan(written(folder, text)).places["domains.seen"].domain
    assert isinstance(domain, InputBox)
    assert domain.upper.tolist() == [20.5, 3.9]
