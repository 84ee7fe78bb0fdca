"""Do imports go one way, and is `import qrobust` light?"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qrobust"

ORDER = (
    "errors",
    "memory",
    "interval",
    "arrays",
    "exact",
    "dyadic",
    "files",
    "windows",
    "layers",
    "network",
    "integer",
    "formats",
    "domains",
    "quantization",
    "perturbations",
    "queries",
    "certificates",
    "answers",
    "check",
    "held",
    "leads",
    "formula",
    "search",
    "bounds",
    "scaled",
    "backends",
    "solve",
    "comparison",
    "sweep",
    "cache",
    "parallel",
    "bits",
    "blame",
    "maps",
    "sections",
    "survey",
    "binarized",
    "plotting",
    "charts",
    "logic",
    "report",
    "testing",
    "cli",
    "__main__",
)
FRONT = "qrobust"  # the package's own __init__, which re-exports from all
HEAVY = (
    *("z3", "highspy", "sklearn", "matplotlib", "tensorflow", "h5py", "dreal", "joblib", "distributed", "dask"),
    *("onnx", "onnxruntime", "torch", "vnnlib", "skops", "ai_edge_litert", "array_api_compat", "pysat", "ortools", "exact"),
    *("pyganak", "pycryptosat", "pysdd", "oxidd"),
)
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imports(module: str, path: Path, source: str) -> Iterator[str]:
    """Yield the modules of qrobust that a module imports, wherever the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module if path.name == "__init__.py" else module.rpartition(".")[0]
            parents = package.split(".")
            above = parents[: len(parents) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            targets = [name if name in SOURCES else base for name in names]
        else:
            continue
        yield from (target for target in targets if target.split(".")[0] == FRONT)


def part(module: str) -> str:
    """Return the line of ORDER that a module belongs to, or FRONT."""
    names = module.split(".")
    return names[1] if len(names) > 1 else FRONT


def faults(module: str, path: Path, source: str) -> list[str]:
    """Return the imports of a module that do not point upward in ORDER."""
    own = part(module)
    if own == FRONT:
        return []
    wrong = []
    for target in imports(module, path, source):
        other = part(target)
        if other != own and (other not in ORDER or own not in ORDER[ORDER.index(other) :]):
            wrong.append(f"{module} imports {target}, which stands below it")
    return wrong


def test_the_tree_was_found() -> None:
    assert {"qrobust", "qrobust.interval", "qrobust.bounds.ibp", "qrobust.formats.load"} <= set(SOURCES)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_module_has_a_place_in_the_order(module: str) -> None:
    assert part(module) in (FRONT, *ORDER), f"{module} has no place in DESIGN.md's tree"
    assert not VAGUE & set(module.split(".")), f"{module}: a function belongs to the idea it serves"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_go_one_way(module: str) -> None:
    path = SOURCES[module]
    assert faults(module, path, path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import qrobust.search",
        "from qrobust.search import maximise",
        "from qrobust import search",
        "def f():\n    from qrobust.backends.base import Backend",
        "from . import search",
        "from .search import maximise",
        "import qrobust",
        "from qrobust import load",
    ],
)
def test_a_wrong_import_is_seen(line: str) -> None:
    assert len(faults("qrobust.check", PACKAGE / "check.py", line)) == 1


@pytest.mark.parametrize("line", ["from qrobust import exact", "from .exact import decide", "import numpy"])
def test_a_right_import_is_let_through(line: str) -> None:
    assert faults("qrobust.check", PACKAGE / "check.py", line) == []


def test_init_files_hold_no_logic() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        for node in ast.parse(path.read_text()).body:
            plain = isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign)
            text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert plain or text, f"{path}, line {node.lineno}: only imports and names belong here"


def roundings(source: str) -> list[str]:
    """Return the names in a source that step from one float to its neighbour."""
    names = {"nextafter", "spacing", "ulp"}
    nodes = list(ast.walk(ast.parse(source)))
    used = [node.attr for node in nodes if isinstance(node, ast.Attribute)]
    used += [alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    return [name for name in used if name in names]


def test_only_interval_rounds() -> None:
    found = {module for module, path in SOURCES.items() if roundings(path.read_text())}
    assert found == {"qrobust.interval"}


def closure(module: str) -> set[str]:
    """Return all modules of qrobust that a module needs, directly or not."""
    needed: set[str] = set()
    waiting = [module]
    while waiting:
        path = SOURCES[waiting[-1]]
        new = set(imports(waiting.pop(), path, path.read_text())) - needed
        needed |= new
        waiting += new
    return needed


def test_check_shares_no_code_with_what_it_checks() -> None:
    needed = {part(module) for module in closure("qrobust.check")}
    assert "exact" in needed
    assert not needed & {FRONT, "bounds", "search", "backends", "solve", "formula"}


def test_the_checker_of_signs_shares_no_code_with_what_it_checks() -> None:
    needed = closure("qrobust.binarized.certificates")
    own = {module.removeprefix("qrobust.binarized.") for module in needed if module.startswith("qrobust.binarized.")}
    assert own == {"plain_clauses", "lrat", "queries", "network", "formats.native"}


def test_import_is_light(tmp_path: Path) -> None:
    """As users import it, compiled once: the first of the runs writes the bytecode, whatever the machine's settings are."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    script = (
        "import sys, time; start = time.thread_time(); import qrobust; print(time.thread_time() - start);"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        lines = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, env=env
        ).stdout.splitlines()
        assert lines[1] == "", f"import qrobust pulls in {lines[1]}"
        seconds.append(float(lines[0]))
    assert min(seconds) < 0.5
