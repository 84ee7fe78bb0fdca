"""Arrays of other libraries: they propose what NumPy certifies, whatever they are, and lies cost tightness alone."""

from __future__ import annotations

import importlib.util
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest

from qrobust.answers import Verdict
from qrobust.arrays import Arrays, namespace_of
from qrobust.backends.certify import certify_label
from qrobust.backends.deep import Situation, decide_label, estimate_change, levels_at, screen_labels
from qrobust.bounds.linear import Tuning, ascent, first_alpha, pre_activations, top_bounds
from qrobust.bounds.neurons import NeuronTree
from qrobust.bounds.rows import Rows
from qrobust.bounds.spans import Span
from qrobust.bounds.substitution import Above
from qrobust.check import certificate_fault, violation_fault
from qrobust.domains import Point, Points
from qrobust.errors import BackendUnavailableError, ShapeError, UnsupportedError
from qrobust.interval import FloatArray, Interval
from qrobust.leads import Leads
from qrobust.network import Activation, Network
from qrobust.parallel import check_points
from qrobust.perturbations import Absolute, HalfStep
from qrobust.queries import HALF, GlobalLabel, LocalEpsilon, LocalLabel
from qrobust.search import Budget, explore
from qrobust.solve import Session
from tests.conftest import RandomNetwork
from tests.test_linear_bounds import attained, uneven

STRICT = Arrays("array_api_strict")
HAS_TORCH = importlib.util.find_spec("torch") is not None
# array-api-strict refuses whatever is outside the standard: it is what shows that no library is favoured. PyTorch, where it is
# installed, is tried as well, and is not needed.
LIBRARIES = ["numpy", "array_api_strict", *(["torch"] if HAS_TORCH else [])]


def shown(
    network: Network, box: Any, points: FloatArray, nu: FloatArray, budget: Budget, tuning: Tuning
) -> tuple[list[Interval], FloatArray]:
    """Bounds of all levels at each point, and of one row a point over the logits."""
    levels, start = levels_at(network, box, points, whole=True)
    bounds = pre_activations(levels, start, tuning, budget=budget)
    which = np.arange(len(points))
    return bounds, top_bounds(levels, bounds, nu, np.zeros(len(points)), which, tuning, budget)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("activation", Activation)
def test_proposals_are_as_good_in_any_library(
    activation: Activation, library: str, dtype: str, random_network: RandomNetwork
) -> None:
    """The certified bounds agree, and hold what exact arithmetic reaches at corners."""
    rng = np.random.default_rng(1)
    for sizes in ((3, 6, 5, 2), (2, 5, 5, 4, 1)):
        network = random_network(rng, sizes, activation)
        for box in (Absolute(0.1).around(network), HalfStep(4).around(network), uneven(network, rng)):
            points, nu = rng.normal(size=(3, sizes[0])), rng.normal(size=(3, sizes[-1]))
            plain, upper = shown(network, box, points, nu, Budget(), Tuning(6))
            bounds, found = shown(network, box, points, nu, Budget(arrays=Arrays(library, dtype=dtype)), Tuning(6))
            slack = 1e-9 if dtype == "float64" else 1e-3
            for own, other in zip(bounds, plain, strict=True):
                np.testing.assert_allclose(own.lower, other.lower, rtol=slack, atol=slack)
                np.testing.assert_allclose(own.upper, other.upper, rtol=slack, atol=slack)
            np.testing.assert_allclose(found, upper, rtol=slack, atol=slack)
            assert max(attained(network, box, points[0], rng, nu[0])) <= found[0]


def test_tuning_elsewhere_is_tuning(random_network: RandomNetwork) -> None:
    """What a device proposes is tighter than what nobody tuned: it is the device's alpha that is certified."""
    rng = np.random.default_rng(2)
    network = random_network(rng, (4, 14, 12, 3))
    box, points, nu = Absolute(0.06).around(network), rng.normal(size=(20, 4)), rng.normal(size=(20, 3))
    untuned = shown(network, box, points, nu, Budget(), Tuning(0))[1]
    tuned = shown(network, box, points, nu, Budget(arrays=STRICT), Tuning(20))[1]
    assert (tuned <= untuned + 1e-9 * np.abs(untuned)).all()
    assert (tuned < untuned - 1e-3 * np.abs(untuned)).sum() >= 5


@pytest.mark.parametrize("activation", Activation)
def test_a_search_with_proposals_agrees(activation: Activation, random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(3)
    verdicts = []
    for _ in range(4):
        network = random_network(rng, (3, 5, 4, 2), activation)
        for delta in (0.005, 0.1, 0.3):
            query = LocalLabel(network, Absolute(delta).around(network), Point(rng.normal(size=3)))
            plain, other = (Session().check(query, budget=Budget(5.0, 2000, arrays=a)) for a in (None, STRICT))
            verdicts.append(other.verdict)
            assert {plain.verdict, other.verdict} != {Verdict.ROBUST, Verdict.VIOLATED}
    assert {Verdict.ROBUST, Verdict.VIOLATED} <= set(verdicts)


def test_every_way_to_the_bounds_takes_arrays(random_network: RandomNetwork) -> None:
    """Screening, estimates and certificates, in this process and in workers."""
    rng = np.random.default_rng(4)
    network = random_network(rng, (3, 6, 5, 3))
    box, points, budget = Absolute(0.05).around(network), rng.normal(size=(30, 3)), Budget(10.0, arrays=STRICT)
    leads = Leads(network, HALF)
    safe = screen_labels(leads, box, points, budget)
    assert (safe == screen_labels(leads, box, points)).all()
    assert safe.sum() > 0
    query = LocalLabel(network, box, Point(points[np.flatnonzero(safe)[0]]))
    certificate = certify_label(query, budget)
    assert certificate is not None
    assert certificate_fault(certificate) is None
    one = random_network(rng, (3, 5, 4, 1))
    claims = [
        estimate_change(LocalEpsilon(one, Absolute(0.05).around(one), Point(points[0])), replace(budget, arrays=a), 1e-6)
        for a in (None, STRICT)
    ]
    assert claims[0].upper == pytest.approx(claims[1].upper, abs=2e-6)
    several = GlobalLabel(network, box, Points(points[:6]))
    assert check_points(several, budget=budget, jobs=2).verdict is check_points(several, budget=Budget(10.0)).verdict
    assert pickle.loads(pickle.dumps(budget)) == budget


GARBAGE: dict[str, Callable[[Any], Any]] = {
    "NaN": lambda a: a * math.nan,
    "infinite": lambda a: a * 0 + math.inf,
    "huge": lambda a: a * 1e300,
    "negative": lambda a: -7.0 - a,
    "shuffled": lambda a: a[::-1, ...],
    "shifted": lambda a: a + 0.3,
}


@contextmanager
def lying(how: str) -> Iterator[None]:
    """Have array-api-strict give wrong products and wrong slopes."""
    patch, kind = pytest.MonkeyPatch(), type(array_api_strict.asarray(0.0))
    right, clip = kind.__matmul__, array_api_strict.clip
    lie = GARBAGE[how]
    patch.setattr(kind, "__matmul__", lambda a, b: lie(right(a, b)))
    patch.setattr(array_api_strict, "clip", lambda a, low, high: lie(clip(a, low, high)))
    with patch.context(), np.errstate(all="ignore"):
        yield
    patch.undo()


@pytest.mark.parametrize("activation", Activation)
@pytest.mark.parametrize("how", GARBAGE)
def test_a_library_that_lies_costs_tightness_alone(how: str, activation: Activation, random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(5)
    budget = Budget(2.0, 30, arrays=STRICT)
    for sizes in ((2, 4, 3, 2), (2, 3, 3, 3, 1)):
        network = random_network(rng, sizes, activation)
        box, points, nu = Absolute(0.1).around(network), rng.normal(size=(2, sizes[0])), rng.normal(size=(2, sizes[-1]))
        with lying(how):
            found = shown(network, box, points, nu, budget, Tuning(4))[1]
            situation = Situation.at(network, box, points[0], budget=budget)
            low = float(situation.upper(Rows(nu[:1], np.zeros(1), np.zeros(1, dtype=bool)))[0])
            rows = Rows(nu[:1], np.array([0.2 * abs(low) - low]), np.zeros(1, dtype=bool))
            attack = situation.attacked(rows, np.random.default_rng(0))
            tree = NeuronTree(situation.levels, situation.bounds, rows, budget=budget)
            outcome = explore(tree, budget, tolerance=0.0, batch=16)
            claim = decide_label(LocalLabel(network, box, Point(points[0])), budget)
        exact = max(attained(network, box, points[0], rng, nu[0]))
        assert exact <= found[0]
        assert exact + rows.offset[0] <= max(outcome.upper, 0.0) + 1e-12
        assert not np.isnan(attack.value).any()
        assert attack.value[0] <= low + rows.offset[0] + 1e-9
        honest = decide_label(LocalLabel(network, box, Point(points[0])), Budget(5.0, 3000))
        assert {type(claim).__name__, type(honest).__name__} != {"Robust", "Candidate"}
        if type(claim).__name__ == "Candidate":
            assert violation_fault(LocalLabel(network, box, Point(points[0])), claim.counterexample) is None  # type: ignore[union-attr]


def test_lies_are_told(random_network: RandomNetwork) -> None:
    """The test above would pass if nobody asked the library: here its lies are seen to make a bound worse."""
    rng = np.random.default_rng(6)
    network = random_network(rng, (4, 14, 12, 3))
    box, points, nu = Absolute(0.06).around(network), rng.normal(size=(20, 4)), rng.normal(size=(20, 3))
    honest = shown(network, box, points, nu, Budget(arrays=STRICT), Tuning(9))[1]
    with lying("huge"):
        lied = shown(network, box, points, nu, Budget(arrays=STRICT), Tuning(9))[1]
    assert (lied > honest + 1e-3).any()


def test_a_forecast_is_no_bound(random_network: RandomNetwork) -> None:
    """Over spans nothing is rounded outward: Interval and Span are two types, and only one of them certifies."""
    rng = np.random.default_rng(7)
    network = random_network(rng, (3, 5, 4, 2))
    levels, start = levels_at(network, Absolute(0.1).around(network), rng.normal(size=(1, 3)), whole=True)
    bounds = pre_activations(levels, start)
    sizes = levels.sizes(bounds)
    above = Above.of_rows(levels.stages[-1], rng.normal(size=(1, 2)), np.zeros(1), sizes[-1])
    alpha = [first_alpha(z, 1) for z in bounds]
    (_, certified), (_, forecast) = (
        next(ascent(levels, levels.top, above, b, s, Tuning(0), alpha))
        for b, s in ((bounds, sizes), ([Span(z.lower, z.upper) for z in bounds], [np.zeros((1, 1))] * len(sizes)))
    )
    assert forecast.upper[0] < certified.upper[0] < forecast.upper[0] + 1e-9


def test_faults_are_one_line() -> None:
    for make, error, message in (
        (lambda: Arrays("no_such_library"), BackendUnavailableError, "no array library 'no_such_library' is installed"),
        (lambda: Arrays(""), BackendUnavailableError, "no array library ''"),
        (lambda: Arrays("json"), BackendUnavailableError, "json gives no float64 arrays"),
        (lambda: Arrays("array_api_strict", "abacus"), BackendUnavailableError, "on a device 'abacus'"),
        (lambda: Arrays("array_api_strict", "device1"), BackendUnavailableError, "do not come back to this host"),
        (lambda: Arrays.named("numpy:cuda"), BackendUnavailableError, "numpy gives no float64 arrays on a device 'cuda'"),
        (lambda: Arrays("numpy", dtype="float16"), UnsupportedError, "choose float64 or float32"),
        (lambda: STRICT.to_host(np.zeros(3), (2,)), ShapeError, "shape"),
    ):
        with pytest.raises(error, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
    assert str(Arrays.named("array_api_strict:CPU_DEVICE")) == "array_api_strict:CPU_DEVICE"


def test_what_a_library_raises_is_one_line() -> None:
    with pytest.raises(BackendUnavailableError, match="out of memory"), STRICT.proposing():
        raise RuntimeError("out of memory\nand more")
    with pytest.raises(ShapeError), STRICT.proposing():
        raise ShapeError("ours")


def test_values_that_are_not_finite_are_replaced() -> None:
    values = array_api_strict.asarray([1.0, math.nan, -math.inf, math.inf])
    assert STRICT.to_host(values, (4,), 0.5).tolist() == [1.0, 0.5, 0.5, 0.5]
    assert namespace_of(values) is array_api_strict
    assert namespace_of(np.zeros(2)) is np


def test_the_command_line_takes_arrays(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--label", "--bits", "8", "--point", "5.1, 3.5, 1.4, 0.2", "--backend", "branch-and-bound"]
    for arguments, code, text in (
        (["--arrays", "array_api_strict"], 0, "ROBUST"),
        (["--arrays", "abacus"], 2, "error: no array library 'abacus'"),
        (["--arrays", "numpy:cuda"], 2, "error: numpy gives no float64 arrays on a device 'cuda'"),
        (["--memory", "0"], 2, "error: --memory is 0"),
        (["--memory", "0.5"], 0, "ROBUST"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "qrobust", "check", str(models / "iris.json"), *where, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code
        assert text in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(not HAS_TORCH, reason="optional: PyTorch is not installed; array-api-strict shows what matters")
def test_torch_multiplies_in_full_and_is_left_as_it_was() -> None:
    import torch

    place = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(place, "fp32_precision") else "allow_tf32"
    before = getattr(place, name)
    try:
        setattr(place, name, "tf32" if name == "fp32_precision" else True)
        told = getattr(place, name)
        with Arrays("torch", "cpu").proposing():
            assert getattr(place, name) in ("ieee", False)
        assert getattr(place, name) == told
    finally:
        setattr(place, name, before)
