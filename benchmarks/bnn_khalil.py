"""Attacks by name on nine networks of signs, 2 to 4 layers of 100 to 300, at five eps: the comparison of Khalil et al.

    python -m benchmarks bnn-khalil          measure, and write plots/bnn_attacks.csv and both figures
    python -m benchmarks.bnn_khalil          draw the figures again from the table

Each attack goes towards the class that comes second, up to the time limit, at the same images. Flip rate: the share of
images whose label changes. Normalised objective: the objective is the second class's score less the label's; what an attack
adds to it over the image itself is given as a share of the most that any of the four methods adds there, mean of the images
where any adds something. So 1 is the best known and 0 is the image as it was.
milp and iprop start from what ifgsm finds in three tenths of the time.

Found, with 3 s an attack, of 10 images on a quiet machine, means of the nine networks: iprop adds most in 43 of the 45 networks
and eps, 0.95 to 1.00 of the best known (milp 0.64 to 0.78, ifgsm 0.49 to 0.78, fgsm 0.35 to 0.62), and flips most from eps 0.01
on: 0.42 at 0.02, 0.71 at 0.03 and 0.91 at 0.05 (ifgsm and milp at most 0.18, 0.43 and 0.80). milp adds to what it starts from
at eps 0.005 and 0.01, behind two layers or layers of 100, and hardly elsewhere in 3 s.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.networks import shared_folder
from models.train_khalil import DEPTHS, WIDTHS, path_of
from models.train_mnist import load_mnist
from qrobust.binarized import Ball, Method, Robustness, run_attack
from qrobust.binarized.formats import load_binarized
from qrobust.files import write_whole
from qrobust.plotting import new_figure, save_figure

IMAGES, SECONDS, WORKERS = 10, 3.0, 3
EPS = tuple(map(Fraction, ("0.005", "0.01", "0.02", "0.03", "0.05")))
PLOTS = Path(__file__).parent.parent / "plots"
TABLE = PLOTS / "bnn_attacks.csv"
COLUMNS = ("network", "eps", "method", "images", "flip_rate", "normalised_objective", "mean_seconds")
STYLES = {
    "fgsm": ("#b8b8b8", "s", ":"),
    "ifgsm": ("#8a8a8a", "^", "-."),
    "milp": ("#d08a00", "D", "--"),
    "iprop": ("#00204d", "o", "-"),
}
FIGURES = {
    "bnn_attacks_flips": ("flip_rate", "flip rate (share of images)"),
    "bnn_attacks_objective": ("normalised_objective", "normalised objective (1: best known)"),
}

Fact = tuple[str, str, float, str]


@dataclass(frozen=True)
class Attacked:
    """One method at one network and eps. Units: flip_rate a share of images; objective as the module says; mean seconds."""

    network: str
    eps: float
    method: str
    flip_rate: float
    objective: float
    seconds: float


@dataclass(frozen=True)
class _Job:
    network: str
    eps: Fraction
    image: int


def _attacked(job: _Job) -> list[tuple[bool, float, float]]:
    """Of each method: whether the label changed, what was added to the objective, and the seconds."""
    network = load_binarized(path_of(job.network)).network
    image = load_mnist(shared_folder() / "mnist", "t10k", IMAGES).inputs[job.image]
    query, found = Robustness(network, Ball(image, job.eps)), []
    for method in Method:
        started = time.monotonic()
        answer = run_attack(query, method, target="second", seconds=SECONDS, stop_at_hit=False)
        found.append((answer.hits, float(answer.lead - answer.first_lead), time.monotonic() - started))
    return found


def measure(say: Callable[[str], None]) -> list[Attacked]:
    """Attack the first test images, a few processes at a time, and write the table and the figures."""
    networks = [f"{depth}x{width}" for depth in DEPTHS for width in WIDTHS]
    jobs = [_Job(network, eps, image) for image in range(IMAGES) for network in networks for eps in EPS]
    done: dict[_Job, list[tuple[bool, float, float]]] = {}
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_attacked, job): job for job in jobs}
        for number, future in enumerate(as_completed(waiting)):
            done[waiting[future]] = future.result()
            say(f"{number + 1} of {len(jobs)}: {waiting[future]}: {future.result()}")
    found = [one for network in networks for eps in EPS for one in _summed(network, eps, done)]
    _write(found)
    draw(found)
    return found


def _summed(network: str, eps: Fraction, done: dict[_Job, list[tuple[bool, float, float]]]) -> list[Attacked]:
    """Return one entry a method. `values`: (images, methods, what `_attacked` gives)."""
    values = np.array([done[_Job(network, eps, image)] for image in range(IMAGES)], dtype=np.float64)
    gains = values[:, :, 1]
    known = gains.max(axis=1, keepdims=True)
    movable = known[:, 0] > 0
    shares = (gains[movable] / known[movable]).mean(axis=0) if movable.any() else np.full(gains.shape[1], np.nan)
    columns = zip(Method, values[:, :, 0].mean(axis=0), shares, values[:, :, 2].mean(axis=0), strict=True)
    return [Attacked(network, float(eps), method.value, float(f), float(s), float(t)) for method, f, s, t in columns]


def _write(found: list[Attacked]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in found:
        figures = (one.flip_rate, one.objective, one.seconds)
        writer.writerow((one.network, f"{one.eps:g}", one.method, IMAGES, *(f"{value:.4g}" for value in figures)))
    write_whole(TABLE, text.getvalue().encode())


def read() -> list[Attacked]:
    """Return the table as it was measured."""
    with TABLE.open() as file:
        return [
            Attacked(r["network"], float(r["eps"]), r["method"], *(float(r[name]) for name in COLUMNS[4:]))
            for r in csv.DictReader(file)
        ]


def facts(found: list[Attacked]) -> list[Fact]:
    """Work, metric, value and unit of each row: of each network over all eps, and of each eps over all networks."""
    groups = [(one.network, [other for other in found if other.network == one.network]) for one in found]
    groups += [(f"eps {one.eps:g}", [other for other in found if other.eps == one.eps]) for one in found]
    rows: list[Fact] = []
    for name, members in dict(groups).items():
        for method in Method:
            own = [one for one in members if one.method == method.value]
            work, over = f"bnn-khalil-{method.value}, {name}", f"{IMAGES * len(own)} attacks of {SECONDS:g} s"
            shares = [one.objective for one in own if not np.isnan(one.objective)]
            rows += [
                (work, "flip rate", float(np.mean([one.flip_rate for one in own])), f"share of {over}"),
                (work, "normalised objective", float(np.mean(shares)), f"of the best known, mean of {over}"),
                (work, "mean_seconds", float(np.mean([one.seconds for one in own])), f"s, mean of {over}"),
            ]
    return rows


def draw(found: list[Attacked]) -> list[Path]:
    """Write both figures, a panel for each network."""
    written = []
    for name, (metric, label) in FIGURES.items():
        figure, axes = new_figure(len(DEPTHS), len(WIDTHS))
        figure.set_size_inches(11, 9)
        for panel, (depth, width) in zip(axes.flat, ((d, w) for d in DEPTHS for w in WIDTHS), strict=True):
            own = [one for one in found if one.network == f"{depth}x{width}"]
            _panel(panel, own, "flip_rate" if metric == "flip_rate" else "objective")
            panel.set_title(f"{depth} layers of {width} signs", fontsize=10)
        figure.supxlabel("eps, L-infinity (1: from black to white)")
        figure.supylabel(label)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(STYLES), frameon=False)
        written += save_figure(figure, PLOTS / name)
    return written


def _panel(axes: Any, own: list[Attacked], metric: str) -> None:
    for method, (colour, marker, line) in STYLES.items():
        points = sorted((one.eps, getattr(one, metric)) for one in own if one.method == method)
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, marker=marker, linestyle=line, label=method, markersize=5, linewidth=1.6)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(0, 0.052)
    axes.grid(color="#e5e5e5", linewidth=0.6)


if __name__ == "__main__":
    print(*draw(read()), sep="\n")
