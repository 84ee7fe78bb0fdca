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
from qrobust.files import write_together
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


def save_figure(figure: Figure, path: Path, table: str | None = None) -> list[Path]:
    """Write a figure as PNG and SVG beside each other, and the numbers drawn as CSV: all or none. Raises OutputError."""
    from matplotlib import rc_context  # slow to import

    written = {}
    for suffix in (".png", ".svg"):
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "qrobust"}):  # the same picture gives the same file
            figure.savefig(buffer, format=suffix[1:], dpi=130, metadata={"Date": None} if suffix == ".svg" else None)
        written[path.with_suffix(suffix)] = buffer.getvalue()
    if table is not None:
        written[path.with_suffix(".csv")] = table.encode()
    write_together(written)
    return list(written)


def draw_map(
    robustness_map: RobustnessMap, path: Path, *, level: Fraction = HALF, inputs: tuple[int, int] | None = None
) -> list[Path]:
    """Draw one map over two of the network's inputs. Raises UnsupportedError unless they are named or all, OutputError."""
    figure, axes = new_figure(1, 1)
    panel(axes[0, 0], robustness_map, level=level, inputs=inputs)
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
    inputs: tuple[int, int] | None = None,
) -> None:
    """Draw one map into axes: points by local eps, or flippable and safe points; of two inputs the decision boundary as well,
    and sigma lines."""
    network = robustness_map.network
    if inputs is None:
        check_two_inputs(network)
    inputs = inputs or (0, 1)
    points = robustness_map.points[:, inputs]
    box = domain or InputBox(points.min(axis=0), points.max(axis=0))
    if robustness_map.quantity is Quantity.LABEL:
        _label_points(axes, robustness_map, points)
    else:
        _epsilon_points(axes, robustness_map, points, colour_limits)
    if network.inputs == 2 and inputs == (0, 1) and (box.box.width > 0).all():  # a line has no area to trace a boundary in
        (left, bottom), (right, top) = box.box.lower.tolist(), box.box.upper.tolist()
        draw_boundaries(axes, network, (left, right, bottom, top), level=level, lines=lines)
    names = [network.features[i].label if network.features else network.feature_name(i) for i in inputs]
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
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


def _epsilon_points(axes: Axes, shown: RobustnessMap, points: FloatArray, limits: tuple[float, float] | None) -> None:
    known = shown.status != Status.UNDECIDED
    low, high = limits or (0.0, float(shown.upper[known].max(initial=1e-12)))
    drawn = axes.scatter(points[known, 0], points[known, 1], c=shown.upper[known], s=13, cmap="cividis", vmin=low, vmax=high)
    bar = axes.figure.colorbar(drawn, ax=axes)
    what = "the confidence" if shown.quantity is Quantity.EPSILON else "a raw output"
    bar.set_label(f"local eps: greatest change of {what}")
    if not known.all():
        axes.scatter(points[~known, 0], points[~known, 1], s=18, marker="x", c=UNKNOWN_COLOUR, label="undecided")


def _label_points(axes: Axes, shown: RobustnessMap, points: FloatArray) -> None:
    styles: dict[Status, tuple[str, dict[str, Any]]] = {
        Status.SAFE: ("safe", {"marker": "o", "c": "#b8c4d0", "s": 9, "linewidths": 0}),
        Status.FLIPPABLE: ("flippable", {"marker": "^", "c": "#00224e", "s": 22, "linewidths": 0}),
        Status.UNDECIDED: ("undecided", {"marker": "x", "c": UNKNOWN_COLOUR, "s": 22}),
    }
    for status, (name, style) in styles.items():
        chosen = points[shown.status == status]
        if len(chosen):
            axes.scatter(chosen[:, 0], chosen[:, 1], label=f"{name} ({len(chosen)})", **style)


def draw_boundaries(
    axes: Axes,
    network: Network,
    extent: tuple[float, float, float, float],
    inputs: tuple[int, int] = (0, 1),
    base: FloatArray | None = None,
    level: Fraction = HALF,
    lines: SigmaLines | None = None,
    halo: bool = False,
    only: int | None = None,
) -> None:
    """Trace where the stored network's label changes, and where its confidence is a sigma away from the level.

    Accepts   extent: left, right, bottom, top; inputs: those across and up; base (inputs,): where the others are; halo: a
              white rim, for lines over dark cells; only: one class of a softmax, of which alone the boundary is drawn
    """
    x, y = np.meshgrid(np.linspace(*extent[:2], GRID), np.linspace(*extent[2:], GRID))
    points = np.repeat((np.zeros(network.inputs) if base is None else base)[None], x.size, axis=0)
    points[:, inputs[0]], points[:, inputs[1]] = x.ravel(), y.ravel()
    confidences = network.confidences(points)
    if network.output is Output.SOFTMAX:
        name: str | None = "decision boundary"
        for label in range(network.class_count) if only is None else (only,):
            lead = confidences[:, label] - np.delete(confidences, label, axis=1).max(axis=1)
            if lead.min() < 0 < lead.max():
                _contour(axes, x, y, lead.reshape(x.shape), 0.0, "-", name, halo)
                name = None
        return
    field, middle = confidences.reshape(x.shape), float(level)
    _contour(axes, x, y, field, middle, "-", "decision boundary", halo)
    if lines is not None:
        low, high = lines.label_0, lines.label_1
        _contour(axes, x, y, field, middle - low, "--", f"{middle:g} - sigma of label 0 ({low:.4f})")
        _contour(axes, x, y, field, middle + high, ":", f"{middle:g} + sigma of label 1 ({high:.4f})")


def _contour(
    axes: Axes,
    x: FloatArray,
    y: FloatArray,
    field: FloatArray,
    value: float,
    style: str,
    name: str | None,
    halo: bool = False,
) -> None:
    from matplotlib.patheffects import withStroke

    if field.min() < value < field.max():
        drawn = axes.contour(x, y, field, levels=[value], colors="black", linestyles=style, linewidths=1.4)
        if halo:
            drawn.set_path_effects([withStroke(linewidth=3.5, foreground="white")])
        if name:
            axes.plot([], [], color="black", linestyle=style, linewidth=1.4, label=name)
