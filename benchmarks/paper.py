"""The paper's workload against dReal, and a million points of it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import call_with_limit
from benchmarks.results import Rows, row, timed
from qrobust.bounds.local import greatest_changes, label_changes
from qrobust.domains import InputBox
from qrobust.formats import load
from qrobust.leads import Leads
from qrobust.maps import random_points
from qrobust.network import Network
from qrobust.perturbations import Absolute
from qrobust.queries import HALF, GlobalEpsilon, SigmaEstimate
from qrobust.solve import Session

FOLDER = Path(__file__).parent
MODELS = {"CAT": "cat_paper.json", "ATH-ReLU": "ath_relu.json", "ATH-Linear": "ath_linear.json"}
PEER = "dReal 4.21.06.2, straightforward encoding, precision 1e-4"
LOCAL_AIM, GLOBAL_AIM, MILLION_AIM = 1000.0, 100.0, 2.0


def paper(limit: float) -> Rows:
    """The paper's workload against dReal: 1,000 local eps, 1,000 local flips, global eps and both sigmas."""
    if importlib.util.find_spec("dreal") is None:
        sys.exit("the paper's benchmark compares with dReal, which is not installed: see `qrobust doctor`")
    rows: Rows = []
    for name, file in MODELS.items():
        network = load(FOLDER.parent / "models" / file)
        domain = InputBox.of_features(network)
        points = random_points(domain, 1000, seed=0)
        for delta in (0.005, 0.01):
            rows += _local_rows(name, network, delta, points)
            rows += _global_rows(name, network, delta, domain, limit)
    return rows


def _local_rows(name: str, network: Network, delta: float, points: Any) -> Rows:
    from benchmarks import dreal_peer

    box, leads = Absolute(delta).around(network), Leads(network, HALF)
    seconds, changes = timed(lambda: greatest_changes(network, box, points))
    theirs, peer_seconds = dreal_peer.local_eps(network, delta, points)
    short = float(np.max(changes.lower - np.array(theirs)))
    work = f"paper-local-eps-{name}-{delta:g}"
    rows = [
        row(work, "seconds for 1,000 points", seconds, "s", peer=PEER, peer_value=peer_seconds),
        row(work, "times faster", peer_seconds / seconds, "", aim=LOCAL_AIM),
        row(work, "gap of the two ends, greatest", float(changes.width.max()), "confidence"),
        row(work, "dReal's Minimize falls short of the witnessed end by up to", short, "confidence"),
    ]
    seconds, (statuses, _) = timed(lambda: label_changes(leads, box, points))
    flips, peer_seconds = dreal_peer.local_flips(network, delta, points)
    work = f"paper-local-flips-{name}-{delta:g}"
    return [
        *rows,
        row(work, "seconds for 1,000 points", seconds, "s", peer=PEER, peer_value=peer_seconds),
        row(work, "times faster", peer_seconds / seconds, "", aim=LOCAL_AIM),
        row(work, "flippable points", int((statuses == 1).sum()), "points", peer=PEER, peer_value=flips),
    ]


def _global_rows(name: str, network: Network, delta: float, domain: InputBox, limit: float) -> Rows:
    rows: Rows = []
    box = Absolute(delta).around(network)
    queries: list[tuple[str, Any, tuple[Any, ...]]] = [("eps", GlobalEpsilon(network, box, domain), ())]
    queries += [(f"sigma-{label}", SigmaEstimate(network, box, domain, label), (label,)) for label in (1, 0)]
    Session().estimate(queries[1][1])  # start the worker process, as a session does once
    for what, query, extra in queries:
        session = Session()
        session.estimate(queries[1][1])
        seconds, estimate = timed(lambda s=session, q=query: s.estimate(q), repeats=3)  # type: ignore[misc]
        function = "global_eps" if what == "eps" else "global_sigma"
        arguments = (network, delta, domain.lower, domain.upper, *extra)
        peer_value, peer_seconds, finished = call_with_limit("benchmarks.dreal_peer", function, arguments, limit)
        work = f"paper-global-{what}-{name}-{delta:g}"
        peer = PEER if finished else f"{PEER}; stopped at the limit of {limit:g} s"
        rows += [
            row(work, "seconds", seconds, "s", peer=peer, peer_value=peer_seconds),
            row(work, "times faster" if finished else "times faster, at least", peer_seconds / seconds, "", aim=GLOBAL_AIM),
            row(work, "lower end", estimate.lower, "confidence"),
            row(work, "upper end", estimate.upper, "confidence", peer=PEER if finished else None, peer_value=peer_value),
        ]
        print(f"{work}: {seconds:.3f} s, dReal {peer_seconds:.1f} s", flush=True)
    return rows


def million(limit: float) -> Rows:
    """A million local eps of the 2-3-1 ReLU network on one core, in seconds and in forward passes."""
    if os.environ.get("QROBUST_ONE_CORE") != "1":
        one_core = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "QROBUST_ONE_CORE": "1"}
        script = "import json; from benchmarks.paper import million; print(json.dumps(million(0)))"
        done = subprocess.run([sys.executable, "-c", script], env=os.environ | one_core, capture_output=True, check=True)
        result: Rows = json.loads(done.stdout)
        return result
    network = load(FOLDER.parent / "models" / MODELS["ATH-ReLU"])
    points = random_points(InputBox.of_features(network), 1_000_000, seed=0)
    box = Absolute(0.005).around(network)
    seconds, changes = timed(lambda: greatest_changes(network, box, points), repeats=3)
    forward, _ = timed(lambda: network.confidences(points), repeats=3)
    return [
        row("million-local-eps-2-3-1", "seconds on one core", seconds, "s", aim=MILLION_AIM),
        row("million-local-eps-2-3-1", "forward passes", seconds / forward, "NumPy float64 forward passes"),
        row("million-local-eps-2-3-1", "gap of the two ends, greatest", float(changes.width.max()), "confidence"),
    ]
