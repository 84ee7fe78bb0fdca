"""Does a command have every option that its errors name?"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer

from qrobust.cli.commands import app
from qrobust.formats import save
from tests.conftest import RandomNetwork
from tests.test_cli import CAT, IRIS, ROOT, refused, run
from tests.test_onnx_program import dense

PACKAGE = Path(__file__).parent.parent / "qrobust"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
QUOTED = re.compile(r"`[^`]*`")  # a command in full: its own name stands with it

RULED = ("check", "estimate", "map", "export", "blame", "replay", "plot margins", "plot blame")
BINARIZED = ("bnn verify", "bnn attack", "bnn report", "bnn map", "bnn explain", "bnn count", "bnn compile")
REACHED: dict[str, tuple[str, ...]] = {  # a module or function that names options: the commands that come upon its errors
    "arrays": ("check", "estimate", "map"),
    "backends/dreal": ("check", "estimate", "map", "bits"),
    "backends/z3": ("check", "estimate", "map", "bits"),
    "backends/dreal_program": (),  # dReal's own options
    "binarized/formats/load": BINARIZED,
    "binarized/maps": ("bnn map",),
    "cli/bits": ("bits",),
    "cli/bits:_lines": ("bits", "check", "estimate", "map"),  # to be given to these
    "cli/bnn:attack": ("bnn attack",),
    "cli/bnn:train": ("bnn train",),
    "cli/bnn:_image_shape": ("bnn train",),
    "cli/bnn:_sizes": ("bnn train",),
    "cli/bnn:_target": ("bnn attack",),
    "cli/bnn:policies_of": tuple(name for name in BINARIZED if name != "bnn report"),
    "cli/bnn:grid_of": BINARIZED,
    "cli/bnn:given_numbers": tuple(name for name in BINARIZED if name != "bnn report"),
    "cli/bnn:box_of": ("bnn verify", "bnn map"),
    "cli/bnn": ("bnn verify",),
    "cli/bnn_bracket": ("bnn bracket",),
    "cli/bnn_map": ("bnn map",),
    "cli/bnn_pairs": ("bnn verify", "bnn map"),
    "cli/bnn_report": ("bnn report",),
    "cli/bnn_rows": ("bnn verify",),
    "cli/logic:explain_command": ("bnn explain",),
    "cli/logic:_real_oracle": ("bnn explain",),
    "cli/logic:_named": ("bnn explain",),
    "cli/logic:count_command": ("bnn count",),
    "cli/logic:compile_command": ("bnn compile",),
    "logic/compiled": ("bnn compile",),
    "cli/reasoned": ("bnn explain", "bnn count", "bnn compile"),
    "cli/reasoned:_of_bracket": ("bnn count",),  # that alone takes another norm
    "cli/options:read_budget": ("check", "estimate", "map", "bits", "blame", "compare", "plot bits", "plot margins"),
    "cli/options:check_sharing": ("check", "map", "bits"),
    "cli/options:parameter_boxes": RULED,
    "cli/options:domain_of": ("check", "estimate", "map", "bits", "compare"),
    "cli/options:points_of": ("check", "estimate", "map", "bits", "compare", "export", "blame", "plot blame"),
    "cli/options:_box": ("check", "estimate", "map", "bits", "compare", "export", "bnn bracket"),
    "cli/options:_cut": ("check", "estimate", "map", "bits", "export"),
    "cli/options:_check_inside": ("check", "estimate", "map", "bits", "export"),
    "cli/options:decision": ("check", "bits", "export"),
    "cli/check": ("check",),
    "cli/compare": ("compare",),
    "cli/compared": ("compare",),
    "cli/estimate": ("estimate",),
    "cli/export": ("export",),
    "cli/replay": ("replay",),
    "cli/map": ("map",),
    "cli/blame": ("blame",),
    "cli/plots:plot_saturation": ("plot saturation",),
    "cli/schemes:quantize": ("quantize",),
    "cli/schemes:_save": ("quantize",),
    "cli/schemes": ("inspect",),
    "cli/sections:axes_of": ("map", "bnn bracket"),
    "cli/sections": ("map",),
    "cli/sections:cells_of": ("map", "bnn map"),
    "comparison": ("compare",),
    "domains": ("check", "estimate", "map", "bits", "export", "compare", "bnn bracket"),
    "formats/sklearn": (
        "check",
        "estimate",
        "map",
        "bits",
        "blame",
        "quantize",
        "inspect",
        "compare",
        "signoff",
        "bnn explain",
    ),
    "memory": ("check", "estimate", "map", "bits", "blame", "compare", "plot bits", "plot margins"),
    "report/demo": ("demo",),
    "report/signoff": ("signoff",),
    "report/examples": ("check", "bits"),
    "sections": ("map",),
    "solve": ("check", "estimate", "map", "bits"),
}


def commands() -> dict[str, set[str]]:
    """Return the options of every command, by its name after `qrobust`."""

    def inside(group: object, prefix: str) -> Iterator[tuple[str, set[str]]]:
        for name, each in getattr(group, "commands", {}).items():
            if hasattr(each, "commands"):
                yield from inside(each, f"{prefix}{name} ")
            else:
                yield prefix + name, {option for parameter in each.params for option in parameter.opts}

    return dict(inside(typer.main.get_command(app), ""))


def advice() -> Iterator[tuple[str, str, int, str]]:
    """Yield every option that a text names, but in help and docstrings: the module, function, line and option."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix()
        tree = ast.parse(path.read_text())
        for outer in tree.body:
            function = getattr(outer, "name", "")
            silent = {id(node) for part in ast.walk(outer) for node in help_of(part)}
            for node in ast.walk(outer):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
                    for option in OPTION.findall(QUOTED.sub("", node.value)):
                        yield module, function, node.lineno, option


def help_of(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the texts of a node that are no error: docstrings, and what declares options."""
    if isinstance(node, ast.Expr):
        yield node.value
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("typer.Option", "typer.Argument"):
        yield from ast.walk(node)


def test_a_command_has_every_option_that_its_errors_name() -> None:
    known, found = commands(), list(advice())
    assert len(found) > 150
    wrong = []
    for module, function, line, option in found:
        if module == "cli/arguments":
            continue
        names = REACHED.get(f"{module}:{function}", REACHED.get(module))
        if names is None:
            wrong.append(f"{module}, line {line}, {function}: who comes upon {option}? Give REACHED a row")
            continue
        wrong += [f"{module}, line {line}: {name} has no {option}" for name in names if option not in known[name]]
    assert wrong == []


def test_the_table_has_no_row_too_many() -> None:
    found = {part for module, function, _, _ in advice() for part in (module, f"{module}:{function}")}
    assert set(REACHED) <= found


@pytest.mark.parametrize("name", ["check", "bnn verify", "plot saturation"])
def test_commands_are_found(name: str) -> None:
    assert "--quiet" in commands()[name]


def test_saturation_of_a_softmax_that_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], random_network: RandomNetwork
) -> None:
    """Neither line names what the command lacks, and following the first leads to the second, not to a traceback."""
    rng = np.random.default_rng(0)
    (tmp_path / "m.onnx").write_bytes(dense(rng, classes=4).content())
    save(random_network(rng, (6, 4)), tmp_path / "m.json")
    (tmp_path / "rows.csv").write_text("a,b,c,d,e,f\n1,2,3,4,5,6\n")
    given = ("--program", str(tmp_path / "m.onnx"), "--points", str(tmp_path / "rows.csv"), "--output", str(tmp_path / "out"))
    ask = ("plot", "saturation", str(tmp_path / "m.json"), *given)
    line = refused(capsys, *ask)
    assert "is not known bit for bit: only the kernels any-kernel bound it" in line
    assert OPTION.findall(line) == []
    line = refused(capsys, *ask, "--kernels", "any-kernel")
    assert "any-kernel leaves open which values are cut off" in line
    assert not list(tmp_path.glob("out*"))


def test_saturation_by_other_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, program = tmp_path / "rows.csv", str(ROOT / "models/cat_int8.tflite")
    rows.write_text("heart weight,body weight\n15,2\n20,3.5\n")
    ask = ("plot", "saturation", CAT, "--program", program, "--points", str(rows), "--output", str(tmp_path / "out"))
    for kernels in ("reference", "xnnpack"):
        assert run(capsys, *ask, "--kernels", kernels)[0] == 0
        assert f",{kernels}," in (tmp_path / "out.csv").read_text()
    wrong = ("plot", "saturation", CAT, "--scheme", "q2.5", "--kernels", "reference", "--output", str(tmp_path / "no"))
    assert "--kernels goes with --program" in refused(capsys, *wrong)


def test_plots_take_every_rule_that_they_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    point, target = ("--point", "5.9, 3.0, 4.2, 1.5"), str(tmp_path / "out")
    for rule in (("--delta-per-layer", "0.001, 0.002"), ("--against", IRIS), ("--delta", "0.001", "--weights-only")):
        assert run(capsys, "plot", "blame", IRIS, *point, *rule, "--output", target, "--quiet")[0] == 0
    assert "one of them" in refused(capsys, "plot", "blame", IRIS, *point, "--output", target)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "give --input"),
        (("--input", "a, 1, 1, 1"), "--input: number 1 is 'a'"),
        (("--input", "1, 2, 3"), "a point has 3 numbers, the model takes 4"),
        (("--input", "nan, 1, 1, 1"), "--input"),
        (("--input", "1e400, 1, 1, 1"), "--input"),
        (("--input", "no.csv"), "no.csv does not exist"),
        (("--input", "rows.csv", "--row", "3"), "--row is 3, rows.csv has rows 1 to 2"),
    ],
)
def test_real_explanations_speak_of_their_own_options(
    given: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("sepal length,sepal width,petal length,petal width\n5.1,3.5,1.4,0.2\n5.9,3,4.2,1.5\n")
    line = refused(capsys, "bnn", "explain", IRIS, "--real", *given)
    assert message in line
    assert "--point" not in line


def test_a_row_of_a_table_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are found by name, as for the other commands about such networks."""
    rows = tmp_path / "rows.csv"
    rows.write_text("petal width,petal length,sepal width,sepal length\n0.2,1.4,3.5,5.1\n1.5,4.2,3.0,5.9\n")
    ask = ("bnn", "explain", IRIS, "--real", "--json", "--input")
    _, first, _ = run(capsys, *ask, "5.9, 3.0, 4.2, 1.5")
    _, second, _ = run(capsys, *ask, str(rows), "--row", "2")
    assert '"input"' in first
    assert re.sub(r'"seconds": .*', "", first) == re.sub(r'"seconds": .*', "", second)


def test_ranges_that_the_model_does_not_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], random_network: RandomNetwork
) -> None:
    save(random_network(np.random.default_rng(0), (3, 2)), tmp_path / "m.npz")
    line = refused(capsys, "bnn", "explain", str(tmp_path / "m.npz"), "--real", "--input", "1, 2, 3")
    assert "names no input ranges" in line
    assert OPTION.findall(line) == ["--eps"]
