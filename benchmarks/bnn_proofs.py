"""Certificates of networks of signs: how many ROBUST answers get one, what it costs, and our checker beside others.

Peers     lrat-check and drat-trim (github.com/marijnheule/drat-trim, compiled C), where QROBUST_LRAT_CHECK and
          QROBUST_DRAT_TRIM name the programs: they are given the clauses, which our checker also writes, from the network,
          and start a process
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.networks import shared_folder
from models.publish import FOLDER
from models.train_mnist import load_mnist
from qrobust.answers import Verdict
from qrobust.binarized import Ball, BinarizedCertificate, BinarizedSession, Robustness, certify
from qrobust.binarized.formats import load_binarized
from qrobust.errors import ResourceError

SECONDS = 30.0  # for an answer, and as long again for its proof
IMAGES = 30
ASKED = (
    ("bnn_conv_eps01", Fraction(1, 10)),
    ("bnn_conv_eps03", Fraction(3, 10)),
    ("bnn_ternary_l1_stable", Fraction(1, 20)),
    ("bnn_binmask_cbd", Fraction(1, 20)),
    ("bnn_ternary", Fraction(1, 50)),
    ("bnn_binary", Fraction(1, 50)),
)
PEERS = {"lrat-check": "QROBUST_LRAT_CHECK", "drat-trim": "QROBUST_DRAT_TRIM"}
SAYS = "VERIFIED"


@dataclass(frozen=True)
class Proved:
    """One ROBUST answer. Units: seconds; of a peer that is not there, none; size in bytes."""

    answer: float
    proof: float
    check: float
    steps: int
    size: int
    peers: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """A network at an eps: its ROBUST answers' certificates, and how many such answers there are."""

    name: str
    eps: Fraction
    robust: int
    proved: tuple[Proved, ...]

    def facts(self) -> list[tuple[tuple[str, str, float, str], dict[str, Any]]]:
        """Work, metric, value and unit of each row, and its peer."""
        work = f"bnn-proofs-{self.name.removeprefix('bnn_').replace('_', '-')}, eps {float(self.eps):g}"
        of = f"mean of {len(self.proved)} answers"

        def mean(values: Sequence[float]) -> float:
            return float(np.mean(values))

        each = [
            ("certified", len(self.proved) / self.robust, f"share of {self.robust} ROBUST answers of {IMAGES} images"),
            ("seconds of the answer", mean([one.answer for one in self.proved]), f"s, {of}"),
            ("seconds of its proof, checked", mean([one.proof for one in self.proved]), f"s with its process, {of}"),
            ("steps", mean([one.steps for one in self.proved]), f"steps, {of}"),
            ("size", mean([one.size for one in self.proved]) / 1024, f"KiB with the network, {of}"),
        ]
        rows: list[tuple[tuple[str, str, float, str], dict[str, Any]]] = [((work, *fact), {}) for fact in each]
        check = (work, "seconds of the check", mean([one.check for one in self.proved]), f"s from network to verdict, {of}")
        peers = sorted(set.intersection(*(set(one.peers) for one in self.proved)))
        for peer in peers:
            more = {"peer": f"{peer}, given the clauses", "peer_value": mean([one.peers[peer] for one in self.proved])}
            rows.append(((work, f"{check[1]} against {peer}", *check[2:]), more))
        return rows if peers else [*rows, (check, {})]


def measure(say: Callable[[str], None] = lambda text: None) -> list[Measured]:
    """Ask about the first test images, and prove what is ROBUST."""
    images = load_mnist(shared_folder() / "mnist", "t10k").inputs[:IMAGES]
    found = []
    for name, eps in ASKED:
        network, robust, proved = load_binarized(FOLDER / f"{name}.npz").network, 0, []
        with BinarizedSession() as session:
            for image in images:
                answer = session.check(Robustness(network, Ball(image, eps)), seconds=SECONDS, exact=True)
                if answer.verdict is not Verdict.ROBUST:
                    continue
                robust += 1
                started = time.perf_counter()
                with suppress(ResourceError):
                    certificate = certify(answer.query, SECONDS)
                    proved.append(_checked(certificate, answer.seconds, time.perf_counter() - started))
        say(f"{name}, eps {float(eps):g}: {len(proved)} of {robust} ROBUST answers certified")
        found.append(Measured(name, eps, robust, tuple(proved)))
    return found


def _checked(certificate: BinarizedCertificate, answer: float, proof: float) -> Proved:
    """Check a certificate, also by the peers. Raises RuntimeError if one of them refuses it."""
    started = time.perf_counter()
    fault = certificate.fault()
    seconds, peers = time.perf_counter() - started, {}
    if fault is not None:
        raise RuntimeError(fault)
    with tempfile.TemporaryDirectory() as folder:
        texts = {path.suffix: path for path in certificate.write_texts(Path(folder) / "claim")}
        for peer, variable in PEERS.items():
            if variable in os.environ:
                command = [os.environ[variable], str(texts[".cnf"]), str(texts[f".{peer[:4]}"])]
                started = time.perf_counter()
                said = subprocess.run(command, check=False, capture_output=True, text=True).stdout
                peers[peer] = time.perf_counter() - started
                if SAYS not in said or f"NOT {SAYS}" in said:
                    raise RuntimeError(f"{peer}: {said[-200:]}")
    return Proved(answer, proof, seconds, len(certificate.proof), len(certificate.to_bytes()), peers)
