"""Pictures of a sign-off report, as PNG: where an obligation holds, fails and stays open.

Colour and marker both tell the verdicts apart. Nothing is drawn that was not asked about; a picture over a domain shows
points drawn from it, and its title says so.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from qrobust.bounds import local
from qrobust.bounds.local import Status
from qrobust.domains import InputBox, Polytope
from qrobust.interval import FloatArray
from qrobust.layers import IntArray
from qrobust.maps import Quantity, random_points, robustness_map
from qrobust.network import Network, Output
from qrobust.plotting import new_figure, panel
from qrobust.queries import LabelQuery, Query

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWN, SEED = 2000, 0
BINS = 40
FEW = 3_000  # points up to which markers are large
MANY = 20_000  # points above which each is one pixel
STYLES = {
    Status.SAFE: ("robust", "#4477aa", "o"),
    Status.UNDECIDED: ("unknown", "#999999", "s"),
    Status.FLIPPABLE: ("violated", "#cc3311", "x"),
}


def of_points(network: Network, points: FloatArray, statuses: IntArray, level: Fraction) -> bytes:
    """Draw the verdict of each point: over two inputs as a map, else as a histogram of the network's margins."""
    figure, axes = new_figure(1, 1)
    if network.inputs == 2:
        _map(axes[0, 0], network, points, statuses)
    else:
        _histogram(axes[0, 0], margins(network, points, level), statuses)
        axes[0, 0].set_xlabel("margin of the float model's label")
    return png(figure)


def of_changes(
    network: Network, points: FloatArray, changes: FloatArray, statuses: IntArray, eps: Fraction | None, level: Fraction
) -> bytes:
    """Draw how far a confidence moves at most, point by point, as a histogram with eps; over two inputs a map beside it."""
    figure, axes = new_figure(1, 2 if network.inputs == 2 else 1)
    _histogram(axes[0, 0], changes, statuses)
    axes[0, 0].set_xlabel("greatest change of a confidence (upper end)")
    if eps is not None:
        axes[0, 0].axvline(float(eps), color="black", linestyle="--", linewidth=1, label=f"eps {float(eps):g}")
        axes[0, 0].legend(fontsize=8)
    if network.inputs == 2:
        _map(axes[0, 1], network, points, statuses)
    return png(figure)


def of_domain(query: Query, level: Fraction) -> bytes | None:
    """Draw local answers at points drawn from a domain of two inputs, where these have a closed form; else nothing."""
    labels = isinstance(query, LabelQuery)
    if query.network.inputs != 2 or local.why_not(query.network, confidences=not labels) is not None:
        return None
    assert isinstance(query.domain, InputBox | Polytope)
    quantity = Quantity.LABEL if labels else Quantity.EPSILON
    points = random_points(query.domain, DRAWN, SEED)
    shown = robustness_map(query.network, query.parameters, points, quantity=quantity, level=level)
    figure, axes = new_figure(1, 1)
    panel(axes[0, 0], shown, level=level, domain=query.domain)
    what = "whether a label, of whatever margin, can change" if labels else "local eps"
    axes[0, 0].set_title(f"{what}\nat {DRAWN:,} points drawn from the domain (seed {SEED})", fontsize=9)
    return png(figure)


def margins(network: Network, points: FloatArray, level: Fraction) -> FloatArray:
    """Return the margins of the labels in floating point, for a picture. Shapes: points (n, inputs); result (n,)."""
    values = network.confidences(points)
    if network.output is Output.SIGMOID:
        return np.asarray(np.abs(values[:, 0] - float(level)))
    first, second = -np.sort(-values, axis=1)[:, :2].T
    return np.asarray(first / (first + second) - 0.5)


def _map(axes: Axes, network: Network, points: FloatArray, statuses: IntArray) -> None:
    for status, (name, colour, marker) in STYLES.items():
        own = points[statuses == status]
        shape = "," if len(own) > MANY else marker
        if len(own):
            size = 4 if len(points) < FEW else 2
            axes.plot(
                own[:, 0], own[:, 1], shape, color=colour, markersize=size, label=f"{name}: {len(own):,}", linestyle="none"
            )
    axes.set_xlabel(network.features[0].label if network.features else "input 1")
    axes.set_ylabel(network.features[1].label if network.features else "input 2")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize=8, frameon=False)


def _histogram(axes: Axes, values: FloatArray, statuses: IntArray) -> None:
    edges = np.linspace(0.0, max(float(values.max()), 1e-9), BINS + 1)
    present = [status for status in STYLES if (statuses == status).any()]
    parts: list[Any] = [values[statuses == status] for status in present]
    labels = [f"{STYLES[status][0]}: {len(part):,}" for status, part in zip(present, parts, strict=True)]
    axes.hist(parts, bins=edges.tolist(), stacked=True, color=[STYLES[status][1] for status in present], label=labels)
    axes.set_yscale("log")
    axes.set_ylabel("points")
    axes.legend(fontsize=8)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
