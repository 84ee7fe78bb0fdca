"""Figures: robustness maps over two inputs, each written as PNG and SVG, whole or not at all.

Colours are ordered in lightness (cividis), and every class of points has its own marker, so that a figure reads in grey and
for the colour-blind.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qrobust.bounds.local import Status
from qrobust.domains import Domain, InputBox
from qrobust.errors import UnsupportedError
from qrobust.files import write_whole
from qrobust.interval import FloatArray
from qrobust.maps import Quantity, RobustnessMap
from qrobust.network import Network, Output
from qrobust.queries import HALF

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID = 241  # points a side from which decision boundaries are traced
UNKNOWN_COLOUR = "#d62728"


@dataclass(frozen=True)
class SigmaLines:
    """The certified sigma of each label: no label changes farther than this from the decision level."""

    label_0: float
    label_1: float


def new_figure(rows: int, columns: int) -> tuple[Figure, Any]:
    """Return a figure for panels of maps, and its axes as an array (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * columns, 4.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG beside each other. Raises OutputError."""
    from matplotlib import rc_context  # slow to import

    written = []
    for suffix in (".png", ".svg"):
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "qrobust"}):  # the same picture gives the same file
            figure.savefig(buffer, format=suffix[1:], dpi=130, metadata={"Date": None} if suffix == ".svg" else None)
        target = path.with_suffix(suffix)
        write_whole(target, buffer.getvalue())
        written.append(target)
    return written


def draw_map(robustness_map: RobustnessMap, path: Path, *, level: Fraction = HALF) -> list[Path]:
    """Draw one map of a network with two inputs. Raises UnsupportedError for other networks, OutputError."""
    check_two_inputs(robustness_map.network)
    figure, axes = new_figure(1, 1)
    panel(axes[0, 0], robustness_map, level=level)
    axes[0, 0].set_title(f"{robustness_map.network}:\n{robustness_map.parameters.rule}", fontsize=10)
    return save_figure(figure, path)


def panel(
    axes: Axes,
    robustness_map: RobustnessMap,
    *,
    level: Fraction = HALF,
    domain: Domain | None = None,
    lines: SigmaLines | None = None,
    colour_limits: tuple[float, float] | None = None,
) -> None:
    """Draw one map into axes: points by local eps, or flippable and safe points; the decision boundary; sigma lines."""
    network, points = robustness_map.network, robustness_map.points
    check_two_inputs(network)
    box = domain or InputBox(points.min(axis=0), points.max(axis=0))
    if robustness_map.quantity is Quantity.EPSILON:
        _epsilon_points(axes, robustness_map, colour_limits)
    else:
        _label_points(axes, robustness_map)
    if (box.box.width > 0).all():  # points on a line have no area to trace a boundary in
        _boundaries(axes, network, box, level, lines)
    features = network.features
    axes.set_xlabel(features[0].label if features else "input 1")
    axes.set_ylabel(features[1].label if features else "input 2")
    margin = np.where(box.box.width > 0, 0.02 * box.box.width, 0.5)
    axes.set_xlim(box.box.lower[0] - margin[0], box.box.upper[0] + margin[0])
    axes.set_ylim(box.box.lower[1] - margin[1], box.box.upper[1] + margin[1])
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize=8, frameon=False)


def check_two_inputs(network: Network) -> None:
    """Raise UnsupportedError unless the network has two inputs."""
    if network.inputs != 2:
        raise UnsupportedError(f"a map is drawn over 2 inputs, {network} has {network.inputs}: write it as CSV instead")


def _epsilon_points(axes: Axes, shown: RobustnessMap, limits: tuple[float, float] | None) -> None:
    known = shown.status != Status.UNDECIDED
    low, high = limits or (0.0, float(shown.upper[known].max(initial=1e-12)))
    drawn = axes.scatter(
        shown.points[known, 0], shown.points[known, 1], c=shown.upper[known], s=13, cmap="cividis", vmin=low, vmax=high
    )
    bar = axes.figure.colorbar(drawn, ax=axes)
    bar.set_label("local eps: greatest change of the confidence")
    if not known.all():
        axes.scatter(shown.points[~known, 0], shown.points[~known, 1], s=18, marker="x", c=UNKNOWN_COLOUR, label="undecided")


def _label_points(axes: Axes, shown: RobustnessMap) -> None:
    styles: dict[Status, tuple[str, dict[str, Any]]] = {
        Status.SAFE: ("safe", {"marker": "o", "c": "#b8c4d0", "s": 9, "linewidths": 0}),
        Status.FLIPPABLE: ("flippable", {"marker": "^", "c": "#00224e", "s": 22, "linewidths": 0}),
        Status.UNDECIDED: ("undecided", {"marker": "x", "c": UNKNOWN_COLOUR, "s": 22}),
    }
    for status, (name, style) in styles.items():
        chosen = shown.points[shown.status == status]
        if len(chosen):
            axes.scatter(chosen[:, 0], chosen[:, 1], label=f"{name} ({len(chosen)})", **style)


def _boundaries(axes: Axes, network: Network, domain: Domain, level: Fraction, lines: SigmaLines | None) -> None:
    """Trace where the stored network's label changes, and where its confidence is a sigma away from the level."""
    sides = [np.linspace(a, b, GRID) for a, b in zip(domain.box.lower, domain.box.upper, strict=True)]
    x, y = np.meshgrid(*sides)
    confidences = network.confidences(np.stack([x.ravel(), y.ravel()], axis=1))
    if network.output is Output.SOFTMAX:
        for label in range(network.class_count):
            lead = confidences[:, label] - np.delete(confidences, label, axis=1).max(axis=1)
            name = "decision boundary" if label == 0 else None
            _contour(axes, x, y, lead.reshape(x.shape), 0.0, "-", name)
        return
    field, middle = confidences.reshape(x.shape), float(level)
    _contour(axes, x, y, field, middle, "-", "decision boundary")
    if lines is not None:
        low, high = lines.label_0, lines.label_1
        _contour(axes, x, y, field, middle - low, "--", f"{middle:g} - sigma of label 0 ({low:.4f})")
        _contour(axes, x, y, field, middle + high, ":", f"{middle:g} + sigma of label 1 ({high:.4f})")


def _contour(axes: Axes, x: FloatArray, y: FloatArray, field: FloatArray, value: float, style: str, name: str | None) -> None:
    if field.min() < value < field.max():
        axes.contour(x, y, field, levels=[value], colors="black", linestyles=style, linewidths=1.4)
        if name:
            axes.plot([], [], color="black", linestyle=style, linewidth=1.4, label=name)
