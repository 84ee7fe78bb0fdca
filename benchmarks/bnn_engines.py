"""Engines for networks of signs beside the portfolio, at the same questions in one run: how many each decides, and how fast.

Questions   MNIST images at which intervals leave the label open: boxes, for a dense, a sparse and a very sparse network, and
            one pixel that may change, for a convolutional one; random networks with a share of zeros in between ("mixed").
            Building the constraints counts for every engine
Engines     each by itself on one thread, in a process of its own; the portfolio as `bnn verify` runs it. Exact, where it is
            installed; MiniSatCS, where QROBUST_MINISATCS names its program (github.com/jia-kai/minisatcs, built as its README
            says), given the unary constraints with their reified sums as they are
Units       seconds of wall-clock time; PAR-2 counts a question that is not decided as twice the limit
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.networks import shared_folder
from models.publish import FOLDER
from models.train_mnist import load_mnist
from qrobust.answers import Verdict
from qrobust.backends.worker import Worker, WorkerDiedError, WorkerTimeoutError
from qrobust.binarized import Ball, BinarizedNetwork, BinarizedSession, Block, Grid, Linear, Norm, Robustness, TieRule, fold
from qrobust.binarized.cnf import Encoding, sums
from qrobust.binarized.constraints import Constraints, constraints
from qrobust.binarized.engines.base import Engine, Found, Nothing, Outcome, Undecided
from qrobust.binarized.engines.sat import decide as sat_decide
from qrobust.binarized.enumeration import is_small
from qrobust.binarized.formats import load_binarized
from qrobust.binarized.race import ENGINES, PORTFOLIO, available, engine_names
from qrobust.binarized.unary import unary
from qrobust.layers import Dense

LIMIT = 10.0  # seconds a question
START = 3.0  # seconds for a process to start
QUESTIONS = 5  # of each kind
IMAGES = 100
AT_ONCE = 2  # single engines that run at the same time, each on one thread; the portfolio runs by itself
TRAINED = {
    "dense": ("bnn_binary", Fraction(1, 20), Norm.LINF),
    "sparse": ("bnn_ternary_l1_stable", Fraction(1, 10), Norm.LINF),
    "very sparse": ("bnn_binmask_cbd_pgd", Fraction(1, 5), Norm.LINF),
    "one pixel": ("bnn_conv_binary", Fraction(1), Norm.L0),
}
MIXED_ZEROS = (0.3, 0.6)
LEADS = (24.0, 30.0, 36.0, 42.0)
PROGRAM = "QROBUST_MINISATCS"


@dataclass(frozen=True)
class Result:
    """What came of one question. Units: seconds."""

    verdict: Verdict
    seconds: float


@dataclass(frozen=True)
class Measured:
    """One engine at the questions of one kind."""

    kind: str
    engine: str
    results: tuple[Result, ...]

    @property
    def decided(self) -> tuple[bool, ...]:
        return tuple(one.verdict is not Verdict.UNKNOWN for one in self.results)

    @property
    def scores(self) -> list[float]:
        """The seconds of each question, twice the limit if it was not decided."""
        return [one.seconds if done else 2 * LIMIT for one, done in zip(self.results, self.decided, strict=True)]

    def facts(self) -> list[tuple[str, str, float, str]]:
        """Work, metric, value and unit of each row."""
        work, asked = f"bnn-engines-{self.kind}, {self.engine}", f"of {len(self.results)} questions, {LIMIT:g} s each"
        return [
            (work, "decided", sum(self.decided), asked),
            (work, "PAR-2", float(np.mean(self.scores)), f"s, mean {asked}"),
            (work, "median_seconds", float(np.median(self.scores)), f"s {asked}"),
        ]


def engines() -> dict[str, Engine]:
    """Each single engine that is there, by name."""
    found: dict[str, Engine] = {
        "CaDiCaL, totalizer": partial(sat_decide, encoding=Encoding.TOTALIZER),
        "CaDiCaL, kmtotalizer": partial(sat_decide, encoding=Encoding.KMTOTALIZER),
        "CaDiCaL, seqcounter": partial(sat_decide, encoding=Encoding.SEQUENTIAL),
        "Gluecard": ENGINES["cardinality"],
        "HiGHS": ENGINES["milp"],
        "CP-SAT": ENGINES["cp-sat"],
        "Z3": ENGINES["z3"],
        "annealing": ENGINES["annealing"],
        "branching": ENGINES["branching"],
        "trial": ENGINES["trial"],
    }
    if available("exact"):
        found["Exact"] = ENGINES["exact"]
    if program() is not None:
        found["MiniSatCS"] = minisatcs
    return found


def measure(say: Callable[[str], None]) -> list[Measured]:
    """Ask every engine every question. Raises AssertionError if two contradict each other."""
    found = []
    for kind, queries in questions().items():
        rows = [Measured(kind, PORTFOLIO, tuple(_portfolio(queries)))]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            single = {name: pool.submit(_single, engine, queries) for name, engine in engines().items()}
            rows += [Measured(kind, name, results.result()) for name, results in single.items()]
        for row in rows:
            say(f"{row.kind}, {row.engine}: {[f'{one.verdict.value[0]} {one.seconds:.2f}' for one in row.results]}")
        for number in range(len(queries)):
            verdicts = {row.results[number].verdict for row in rows} - {Verdict.UNKNOWN}
            assert len(verdicts) <= 1, f"{kind}, question {number}: engines contradict each other"
        found += rows
    return found


def aims(found: list[Measured]) -> list[tuple[str, str, float, str, float]]:
    """Return work, metric, value, unit and aim: what the portfolio misses, and its median by the best engine's."""
    rows = []
    for kind in dict.fromkeys(one.kind for one in found):
        own = next(one for one in found if one.kind == kind and one.engine == PORTFOLIO)
        others = [one for one in found if one.kind == kind and one.engine != PORTFOLIO]
        by_any = np.any([one.decided for one in others], axis=0)
        missed = int((by_any & ~np.array(own.decided)).sum())
        ratio = float(np.median(own.scores)) / min(float(np.median(one.scores)) for one in others)
        work = f"bnn-engines-{kind}, {PORTFOLIO}"
        rows.append((work, "missed", float(missed), "questions that a single engine decides", 0.0))
        rows.append((work, "median over the best engine's", ratio, "times", 2.0))
    return rows


def questions() -> dict[str, list[Robustness]]:
    """The first questions of each kind that intervals and trying every input do not settle."""
    images = load_mnist(shared_folder() / "mnist", "t10k", IMAGES).inputs
    found = {}
    for kind, (name, eps, norm) in TRAINED.items():
        network = load_binarized(FOLDER / f"{name}.npz").network
        found[kind] = _open(Robustness(network, Ball(image, eps, norm)) for image in images)
    found["mixed"] = _open(_mixed(seed) for seed in range(20 * QUESTIONS))
    return found


def _open(queries: Iterator[Robustness]) -> list[Robustness]:
    kept = []
    for query in queries:
        found = _constraints(query)
        if found.rival_classes and not is_small(fold(query.network), found):
            kept.append(query)
        if len(kept) == QUESTIONS:
            break
    return kept


def _mixed(seed: int) -> Robustness:
    """A random network with zeros, one class with a lead that is hard to make up for, and a ball about a random input."""
    rng = np.random.default_rng(seed)
    zeros, sizes = MIXED_ZEROS[seed % len(MIXED_ZEROS)], [60, 40, 40]
    half = (1 - zeros) / 2

    def linear(outputs: int, inputs: int, bias: float) -> Linear:
        weight = rng.choice([-1.0, 0.0, 1.0], size=(outputs, inputs), p=[half, zeros, half])
        return Linear(Dense(weight, np.rint(rng.normal(scale=bias, size=outputs)) + 0.5), np.ones(outputs))

    blocks = tuple(Block(linear(after, before, 2.0)) for before, after in pairwise(sizes))
    output = linear(5, sizes[-1], 2.0)
    bias = output.layer.bias + LEADS[seed // len(MIXED_ZEROS) % len(LEADS)] * np.eye(5)[0]
    network = BinarizedNetwork(Grid.of(1, 0, 3), blocks, Linear(Dense(output.layer.weight, bias), np.ones(5)))
    return Robustness(network, Ball(rng.integers(0, 4, size=60).astype(float), Fraction(1)))


def _replays(query: Robustness, outcome: Found) -> bool:
    folded, region = fold(query.network), query.ball.region(query.network)
    label = int(folded.labels(region.centre[None])[0])
    return region.contains(outcome.levels) and bool(folded.is_lost(outcome.levels[None], label, TieRule.FIRST)[0])


def _tiny() -> Robustness:
    """Of two bits, not each is more than the other: what intervals do not show."""
    apart = Linear(Dense(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.full(2, -0.5)), np.ones(2))
    both = Linear(Dense(np.array([[-1.0, -1.0], [1.0, 1.0]]), np.array([1.0, -1.0])), np.ones(2))
    return Robustness(BinarizedNetwork(Grid.of(1, 0, 1), (Block(apart),), both), Ball(np.zeros(2), Fraction(1)))


def _constraints(query: Robustness) -> Constraints:
    folded, region = fold(query.network), query.ball.region(query.network)
    return constraints(folded, region, int(folded.labels(region.centre[None])[0]), TieRule.FIRST)


def _portfolio(queries: list[Robustness]) -> Iterator[Result]:
    with BinarizedSession() as session:
        for name in engine_names(PORTFOLIO, _constraints(_tiny())):
            session.check(_tiny(), engine=name, seconds=START)  # starts its process; annealing finds nothing
        for query in queries:
            started = time.perf_counter()
            answer = session.check(query, seconds=LIMIT)
            yield Result(answer.verdict, time.perf_counter() - started)


def _single(engine: Engine, queries: list[Robustness]) -> tuple[Result, ...]:
    worker, results = Worker(), []
    try:
        _ask(worker, engine, _constraints(_tiny()))
        for query in queries:
            started = time.perf_counter()
            outcome = _ask(worker, engine, _constraints(query))
            seconds = time.perf_counter() - started
            verdict = {Found: Verdict.VIOLATED, Nothing: Verdict.ROBUST, Undecided: Verdict.UNKNOWN}[type(outcome)]
            assert not isinstance(outcome, Found) or _replays(query, outcome), "an engine's input does not replay"
            results.append(Result(verdict if seconds <= LIMIT + 0.2 else Verdict.UNKNOWN, seconds))
    finally:
        worker.close()
    return tuple(results)


def _ask(worker: Worker, engine: Engine, found: Constraints) -> Outcome:
    try:
        outcome: Outcome = worker.call(engine, found, LIMIT, seconds=LIMIT)
    except (WorkerTimeoutError, WorkerDiedError) as error:
        return Undecided(str(error))
    return outcome


def program() -> str | None:
    """The MiniSatCS program, or None."""
    named = os.environ.get(PROGRAM)
    return None if named is None else shutil.which(named)


def minisatcs(found: Constraints, seconds: float) -> Outcome:
    """Decide by MiniSatCS: clauses, and sums that are a literal."""
    boolean, path = unary(found), program()
    assert path is not None
    first, lines = boolean.columns + 1, []
    for row, (literals, least) in enumerate(sums(boolean.matrix, boolean.threshold)):
        lines.append(f"{_text(literals)} >= {least} # {first + row}")
    top = first + boolean.matrix.shape[0]
    lines.append(f"{top} 0")  # true
    for literals, least in sums(boolean.hard, boolean.hard_threshold):
        lines.append(f"{_text(literals)} 0" if least == 1 else f"{_text(literals)} >= {least} # {top}")
    ways = []
    for literals, least in sums(boolean.rivals, boolean.rival_threshold):
        if least <= 0:
            ways.append(top)
        elif least <= len(literals):
            ways.append(top + len(ways) + 1)
            lines.append(f"{_text(literals)} >= {least} # {ways[-1]}")
    lines.append(f"{_text(ways)} 0")
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "question.cnf", Path(folder) / "answer"
        question.write_text(f"p cnf {max([top, *ways])} {len(lines)}\n" + "\n".join(lines) + "\n")
        try:
            subprocess.run([path, "-verb=0", question, answer], timeout=seconds, capture_output=True, check=False)
        except subprocess.TimeoutExpired:
            return Undecided("the time limit was reached")
        said = answer.read_text().removeprefix("r=").split()
    if said[0] == "UNSAT":
        return Nothing(exact=True)
    values = np.zeros(boolean.columns, dtype=np.int64)
    values[[int(literal) - 1 for literal in said[1:] if 0 < int(literal) < first]] = 1
    return Found(boolean.input_levels(values))


def _text(literals: list[int]) -> str:
    return " ".join(map(str, literals))
