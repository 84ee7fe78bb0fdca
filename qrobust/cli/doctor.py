"""The command doctor: what works on this machine, found out by trying."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from qrobust.answers import VERSION, Verdict
from qrobust.backends.dreal import DReal, Transport
from qrobust.backends.milp import Milp
from qrobust.backends.z3 import Z3
from qrobust.binarized import Ball, BinarizedNetwork, BinarizedSession, Block, Grid, Linear, Robustness
from qrobust.binarized.race import available, how_to_install
from qrobust.cli import show
from qrobust.cli.arguments import Json
from qrobust.domains import InputBox
from qrobust.errors import QRobustError
from qrobust.network import Dense, Network, Output
from qrobust.perturbations import Absolute
from qrobust.queries import MarginLabel
from qrobust.search import Budget
from qrobust.solve import Session

DREAL_HELP = (
    "optional. Either the wheel, `pip install qrobust[dreal]` (Linux, Python 3.11 at most), with three system libraries:"
    " coinor-libclp1 and libnlopt0 from Debian or Ubuntu, and libibex.so 2.7.4 from dReal's own fork of IBEX"
    " (github.com/dreal-deps/ibex-lib; upstream's release lacks symbols that dReal uses; Ubuntu: dReal's PPA has libibex-dev,"
    " Debian has no package); or a `dreal` program on PATH"
)

READERS = (
    ("h5py", "keras", ".keras and .h5 files, networks of signs too"),
    ("onnx", "onnx", ".onnx files"),
    ("skops", "skops", ".skops files"),
)


PACKAGES = {
    "cardinality": "python-sat",
    "sat": "python-sat",
    "milp": "highspy",
    "cp-sat": "ortools",
    "z3": "z3-solver",
    "exact": "exact",
    "branching": "numpy",
    "trial": "numpy",
}


@dataclass(frozen=True)
class Finding:
    """One thing that works here or does not, and how to get it."""

    name: str
    works: bool
    detail: str

    def __str__(self) -> str:
        return f"{'works  ' if self.works else 'missing'}  {self.name}: {self.detail}"

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def findings() -> list[Finding]:
    """Try each backend on a small query, and look for the optional readers."""
    found = [Finding("qrobust", True, f"{VERSION}, Python {platform.python_version()}, NumPy {version('numpy')}")]
    found += [Finding(name, True, "built in") for name in ("closed-form", "branch-and-bound")]
    found.append(_tried("milp", Milp(), f"highspy {_version('highspy')}", "`pip install highspy`"))
    found.append(_tried("z3", Z3(), f"z3-solver {_version('z3-solver')}", "`pip install z3-solver`"))
    for transport, there, name in (
        (Transport.MODULE, importlib.util.find_spec("dreal") is not None, "dreal (Python module)"),
        (Transport.PROGRAM, shutil.which("dreal") is not None, "dreal (program on PATH)"),
    ):
        if there:
            found.append(_tried(name, DReal(transport), f"dreal {_version('dreal')}".strip(), DREAL_HELP))
        else:
            found.append(Finding(name, False, DREAL_HELP if transport is Transport.MODULE else "optional, see above"))
    for package, extra, what in READERS:
        works = importlib.util.find_spec(package) is not None
        detail = f"{package} {_version(package)}" if works else f"`pip install qrobust[{extra}]`"
        found.append(Finding(f"reading {what}", works, detail))
    return [*found, *_engines()]


def _engines() -> list[Finding]:
    """Have each engine that proves show what intervals do not: of two bits, not each is more than the other."""
    apart = Linear(Dense(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.full(2, -0.5)), np.ones(2))
    both = Linear(Dense(np.array([[-1.0, -1.0], [1.0, 1.0]]), np.array([1.0, -1.0])), np.ones(2))
    query = Robustness(BinarizedNetwork(Grid.of(1, 0, 1), (Block(apart),), both), Ball(np.zeros(2), Fraction(1)))
    found = []
    with BinarizedSession() as session:
        for name in PACKAGES:
            if not available(name):
                found.append(Finding(f"bnn engine {name}", False, how_to_install(name)))
                continue
            try:
                answer = session.check(query, engine=name, seconds=20.0)
            except QRobustError as error:
                found.append(Finding(f"bnn engine {name}", False, f"{error}; {how_to_install(name)}"))
                continue
            works = answer.verdict is Verdict.ROBUST
            found.append(Finding(f"bnn engine {name}", works, f"{PACKAGES[name]} {_version(PACKAGES[name])}".strip()))
    return found


def _tried(name: str, backend: Any, detail: str, otherwise: str) -> Finding:
    """Have a backend prove a small fact, so that `works` means works."""
    network = Network((Dense([[1.0]], [0.0]),), Output.SIGMOID)  # type: ignore[arg-type]
    query = MarginLabel(network, Absolute(0.25).around(network), InputBox([-1.0], [1.0]), sigma=0.25)  # type: ignore[arg-type]
    try:
        answer = Session([backend]).check(query, budget=Budget(20.0))
    except QRobustError as error:
        return Finding(name, False, f"{error}; {otherwise}")
    if answer.verdict is not Verdict.ROBUST:
        return Finding(name, False, f"gave {answer.verdict.value} on a query that is robust: {answer}; {otherwise}")
    return Finding(name, True, f"{detail}, proved a small query in {answer.seconds:.2g} s")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def doctor(json: Json = False) -> None:
    """Say which backends and readers work here, by trying them, and how to get the others."""
    found = findings()
    if json:
        show.document([finding.to_json() for finding in found])
        return
    for finding in found:
        print(finding)
