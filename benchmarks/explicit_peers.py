"""The peers: label questions at one input with every weight and bias a variable, the form that is bilinear after one layer.

SCIP solves the bilinear form itself (its spatial branch and bound), Z3 and dReal get the project's explicit encoding, and
HiGHS is given the file that SCIP wrote of the same model, which it refuses: it has no rule for quadratic constraints.
A peer that is not installed is told so in its row: `pip install pyscipopt`, the extras of this project, `dreal==4.21.6.2`.
`python -m benchmarks.explicit_peers` prints the table.

Property  SCIP's and dReal's verdicts are up to their tolerances (1e-6 and 1e-4) and SCIP's model is in floating point, so
          its infeasibility is no proof; a change of the label that SCIP finds is replayed exactly
Source    Bestuzheva et al. 2023 (SCIP's nonlinear constraints); Gao, Kong, Clarke 2013; de Moura and Bjørner 2008
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.networks import MODELS
from benchmarks.peers import call_with_limit
from qrobust.answers import Counterexample, Verdict
from qrobust.backends.dreal import DRealAlgebra
from qrobust.backends.z3 import Z3Algebra
from qrobust.check import violation_fault
from qrobust.domains import InputBox, Point
from qrobust.formats import load
from qrobust.formula import Encoding, encode
from qrobust.formula.terms import Folder
from qrobust.interval import FloatArray
from qrobust.leads import Leads
from qrobust.maps import random_points
from qrobust.network import Activation, Dense, Network, Output
from qrobust.perturbations import Absolute
from qrobust.queries import LocalLabel
from qrobust.search import Budget
from qrobust.solve import Session

LIMIT = 60.0
DELTA = 0.005
PRECISION = 1e-4
SLACK = 1e-6  # by which the big constants of SCIP's ReLUs exceed their computed bounds
TRIES = 300  # inputs among which one with a robust and one with a violated answer are sought


@dataclass(frozen=True)
class Said:
    """What a peer answered, in words, and the seconds it took."""

    value: str
    seconds: float


def scip(query: LocalLabel, limit: float) -> Said:
    """Ask rival by rival for parameters with which the rival leads; HiGHS is not asked."""
    try:
        import_module("pyscipopt")
    except ImportError:
        return Said("not installed: pip install pyscipopt", 0.0)
    started, leads = time.perf_counter(), Leads(query.network, query.level)
    label = int(query.network.labels(query.domain.box.lower[None])[0])
    for pair in leads.of_label(label):
        left = limit - (time.perf_counter() - started)
        if left <= 0:
            return Said("time limit", time.perf_counter() - started)
        model, layers = scip_model(query, leads.directions[pair])
        model.setParam("limits/time", left)
        model.setParam("limits/solutions", 1)
        model.setParam("parallel/maxnthreads", 1)
        model.hideOutput()
        model.optimize()
        if model.getNSols():
            return Said(_replayed(query, model, layers), time.perf_counter() - started)
        if model.getStatus() != "infeasible":
            return Said(f"SCIP ended with {model.getStatus()}", time.perf_counter() - started)
    return Said("robust", time.perf_counter() - started)


def scip_model(query: LocalLabel, directions: FloatArray) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return SCIP's model of "the logits in these directions sum to at least 0", and its variables, (weight, bias) a layer."""
    pyscipopt = import_module("pyscipopt")
    model, layers = pyscipopt.Model(), []
    values: list[Any] = query.domain.box.lower.tolist()
    low = high = query.domain.box.lower
    for number, (layer, box) in enumerate(zip(query.network.layers, query.parameters.layers, strict=True), start=1):
        ends = [(bounds.interval.lower, bounds.interval.upper) for bounds in (box.weight, box.bias)]
        weight, bias = (_variables(model, f"{name}{number}", *end) for name, end in zip("wb", ends, strict=True))
        layers.append((weight, bias))
        sums = [
            pyscipopt.quicksum(w * v for w, v in zip(row, values, strict=True)) + b
            for row, b in zip(weight.tolist(), bias.tolist(), strict=True)
        ]
        corners = np.stack([end * side for end in ends[0] for side in (low, high)])
        low, high = corners.min(axis=0).sum(axis=1) + ends[1][0] - SLACK, corners.max(axis=0).sum(axis=1) + ends[1][1] + SLACK
        named = []
        for place, total in enumerate(sums):
            z = model.addVar(f"z{number}_{place}", lb=float(low[place]), ub=float(high[place]))
            model.addCons(z == total)
            named.append(z)
        if layer.activation is Activation.RELU:
            named = [_relu(model, z, float(a), float(b)) for z, a, b in zip(named, low, high, strict=True)]
            low, high = np.maximum(low, 0), np.maximum(high, 0)
        values = named
    lead = pyscipopt.quicksum(float(d) * z for d, z in zip(directions, values, strict=True) if d)
    model.addCons(lead >= 0)
    model.setObjective(lead, "maximize")
    return model, layers


def _variables(model: Any, prefix: str, low: FloatArray, high: FloatArray) -> Any:
    names = np.empty(low.shape, dtype=object)
    for place in np.ndindex(low.shape):
        name = "_".join([prefix, *(str(i + 1) for i in place)])
        names[place] = model.addVar(name, lb=float(low[place]), ub=float(high[place]))
    return names


def _relu(model: Any, z: Any, low: float, high: float) -> Any:
    """Return max(z, 0) as a variable: with a binary one where the sign is open."""
    if low >= 0:
        return z
    h = model.addVar(f"h_{z.name}", lb=0.0, ub=max(high, 0.0))
    if high > 0:
        active = model.addVar(f"a_{z.name}", vtype="B")
        model.addCons(h >= z)
        model.addCons(h <= z - low * (1 - active))
        model.addCons(h <= high * active)
    return h


def _replayed(query: LocalLabel, model: Any, layers: list[tuple[Any, Any]]) -> str:
    """Replay SCIP's solution exactly, its parameters moved into the box."""
    best, arrays = model.getBestSol(), []
    for (weight, bias), box in zip(layers, query.parameters.layers, strict=True):
        moved = []
        for names, bounds in ((weight, box.weight), (bias, box.bias)):
            low, high = bounds.fractions
            values = np.empty(names.shape, dtype=object)
            for place in np.ndindex(names.shape):
                value = Fraction(float(model.getSolVal(best, names[place])))
                values[place] = min(max(value, low[place]), high[place])
            moved.append(values)
        arrays.append((moved[0], moved[1]))
    x = tuple(Fraction(v) for v in query.domain.box.lower.tolist())
    fault = violation_fault(query, Counterexample(x, tuple(arrays)))
    return "violated, replayed" if fault is None else "a solution within the tolerance that does not replay"


def highs(query: LocalLabel, limit: float) -> Said:
    """Give HiGHS the file that SCIP writes of its model."""
    try:
        import_module("pyscipopt")
    except ImportError:
        return Said("not asked: SCIP, which writes the file, is not installed", 0.0)
    highspy, started = import_module("highspy"), time.perf_counter()
    leads = Leads(query.network, query.level)
    label = int(query.network.labels(query.domain.box.lower[None])[0])
    model, _ = scip_model(query, leads.directions[leads.of_label(label)[0]])
    model.hideOutput()
    with tempfile.TemporaryDirectory(prefix="qrobust-highs-") as folder:
        path = Path(folder) / "explicit.lp"
        model.writeProblem(str(path), verbose=False)
        solver = highspy.Highs()
        solver.setOptionValue("log_to_console", False)
        solver.setOptionValue("log_file", str(path.with_suffix(".log")))
        solver.setOptionValue("time_limit", limit)
        status = solver.readModel(str(path))
        log = path.with_suffix(".log").read_text().split("\n")
    if status == highspy.HighsStatus.kError:
        reason = next((line.strip() for line in log if "uadratic" in line), f"{model.getNConss()} constraints")
        return Said(f"refused: the reader of files ends with an error ({reason})", time.perf_counter() - started)
    solver.run()
    return Said(str(solver.getModelStatus()), time.perf_counter() - started)


def z3(query: LocalLabel, limit: float) -> Said:
    """Ask Z3 for a model of the project's explicit encoding."""
    solver_module, started = import_module("z3"), time.perf_counter()
    solver = solver_module.Solver()
    solver.set("timeout", int(1000 * limit))
    solver.add(Folder(Z3Algebra(solver_module)).formula(encode(query, Encoding.EXPLICIT).formula))
    verdict = str(solver.check())
    words = {"unsat": "robust", "sat": "violated"}.get(verdict, f"unknown ({solver.reason_unknown()})")
    return Said(words, time.perf_counter() - started)


def dreal(query: LocalLabel, limit: float) -> Said:
    """Ask dReal for a delta-solution of the project's explicit encoding; it has no time limit of its own."""
    try:
        module = import_module("dreal")
    except ImportError:
        return Said("not installed: see `qrobust doctor`", 0.0)
    started, algebra = time.perf_counter(), DRealAlgebra(module)
    formula = Folder(algebra).formula(encode(query, Encoding.EXPLICIT).formula)
    config = module.Config()
    config.precision = PRECISION
    found = module.CheckSatisfiability(module.And(module.Formula.TRUE(), formula, *algebra.bounds), config)
    return Said("robust" if found is None else f"delta-sat at {PRECISION:g}", time.perf_counter() - started)


def guarded(function: str, query: LocalLabel, limit: float) -> Said:
    """Call a peer; what it raises becomes its answer, for the process that waits sees no other sign."""
    try:
        said: Said = globals()[function](query, limit)
    except Exception as error:
        said = Said(f"failed: {type(error).__name__}: {str(error)[:120]}", 0.0)
    return said


PEERS = {"SCIP": "scip", "Z3": "z3", "dReal": "dreal", "HiGHS": "highs"}


def digits() -> tuple[Network, FloatArray]:
    """A 64-20-10 ReLU network trained on the 8 x 8 digits of scikit-learn, and the digits, pixels / 16."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    pixels, labels = load_digits(return_X_y=True)
    images: FloatArray = np.asarray(pixels, dtype=np.float64) / 16
    fitted = MLPClassifier((20,), max_iter=2000, random_state=0).fit(images[500:], labels[500:])
    pairs = list(zip(fitted.coefs_, fitted.intercepts_, strict=True))
    kinds = [Activation.RELU] * (len(pairs) - 1) + [Activation.LINEAR]
    layers = tuple(Dense(np.ascontiguousarray(w.T), b, kind) for (w, b), kind in zip(pairs, kinds, strict=True))
    return Network(layers, Output.SOFTMAX, name="digits 64-20-10"), images[:500]


def works() -> Iterator[tuple[str, Network, FloatArray]]:
    """Networks by name, with inputs to ask about."""
    for name, file in (("ATH-ReLU 2-3-1", "ath_relu"), ("iris 4-5-3", "iris")):
        network = load(MODELS / f"{file}.json")
        yield name, network, random_points(InputBox.of_features(network), TRIES, seed=0)
    network, images = digits()
    yield network.name, network, images[:TRIES]


def explicit_rows(limit: float = LIMIT, only: str = "") -> list[tuple[str, int, str, str, float, bool, str]]:
    """Return (network, parameters, question, solver, seconds, whether it ended within the limit, verdict).

    The questions: the first input whose label holds, and the first whose label a change of DELTA changes. `only` keeps the
    networks whose names contain it.
    """
    return list(_rows(limit, only))


def _rows(limit: float, only: str) -> Iterator[tuple[str, int, str, str, float, bool, str]]:
    for name, network, points in works():
        if only not in name:
            continue
        count = sum(layer.weight.size + layer.bias.size for layer in network.layers)
        for number, query, verdict, seconds in _questions(network, points):
            question = f"input {number}"
            yield name, count, question, "qrobust", seconds, True, verdict.name.lower()
            for solver, function in PEERS.items():
                called: Any = call_with_limit("benchmarks.explicit_peers", "guarded", (function, query, limit), limit + 5)
                said, taken, finished = called
                ended = finished and taken <= limit
                yield name, count, question, solver, taken, ended, said if finished else "stopped at the limit"


def _questions(network: Network, points: FloatArray) -> Iterator[tuple[int, LocalLabel, Verdict, float]]:
    """Yield the first robust and the first violated question, with the project's own answer and time."""
    session, box, seen = Session(), Absolute(DELTA).around(network), set()
    session.check(LocalLabel(network, box, Point(points[0])), budget=Budget(5.0))
    for number, point in enumerate(points):
        query = LocalLabel(network, box, Point(point))
        started = time.perf_counter()
        verdict = session.check(query, budget=Budget(5.0)).verdict
        taken = time.perf_counter() - started
        if verdict in (Verdict.ROBUST, Verdict.VIOLATED) and verdict not in seen:
            seen.add(verdict)
            yield number, query, verdict, taken
        if len(seen) == 2:
            break


def main() -> None:
    """Print the table as it comes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explicit_peers", description=__doc__)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds given to each solver for each question")
    parser.add_argument("--only", default="", help="part of the name of the networks to ask about")
    options = parser.parse_args()
    print("| network | parameters | question | solver | seconds | within the limit | verdict |\n|---|---|---|---|---|---|---|")
    for *words, seconds, ended, verdict in _rows(options.limit, options.only):
        cells = [*words, f"{seconds:.4g}", "yes" if ended else f"no ({options.limit:g} s)", verdict]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
