"""Figures besides the maps of points: sections, certified shares by width, margins, shares of layers, saturation.

Each is written as PNG and SVG, whole or not at all. Colours differ in lightness and unknown is hatched as well, so that a
figure reads in grey and for the colour-blind.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qrobust.binarized.bracket import Bracket
from qrobust.binarized.maps import BinarizedMap, Shown
from qrobust.bounds.local import Status
from qrobust.errors import UnsupportedError
from qrobust.interval import BoolArray, FloatArray
from qrobust.maps import Quantity
from qrobust.network import Network
from qrobust.plotting import UNKNOWN_COLOUR, draw_boundaries, new_figure, save_figure
from qrobust.sections import SectionMap
from qrobust.survey import LayerError, Margins, Saturation, WidthShares

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAFE_COLOUR, FLIP_COLOUR = "#b8c4d0", "#00224e"
HATCH = "xxxx"
NARROW = 1e-3  # of a cell's side, at which its pattern ends
MOST_HATCHED = 1000  # cells a side; beyond, every so many are looked at
BINS = 40
VERDICTS = (("proved", SAFE_COLOUR, ""), ("violated", FLIP_COLOUR, ""), ("unknown", UNKNOWN_COLOUR, HATCH))
PARTS = (("weights", "#00224e", ""), ("biases", "#a69d75", ""), ("neurons' bounds", "#fee838", "//"))
SERIES = ("#00224e", "#666970", "#a69d75", "#fee838")


def draw_section(found: SectionMap, path: Path) -> list[Path]:
    """Draw a map over a section, every cell in its own colour. Raises OutputError."""
    figure, axes = new_figure(1, 1)
    panel = axes[0, 0]
    extent = _extent(found)
    unknown = found.status == Status.UNDECIDED
    if found.question.quantity is Quantity.LABEL:
        _label_cells(panel, found, extent)
    else:
        _valued_cells(panel, found, extent, unknown)
    if unknown.any():
        _hatched(panel, unknown, extent)
    if found.section.fixed:
        base, level = found.section.others.lower, found.question.level
        draw_boundaries(panel, found.network, extent, found.section.axes, base, level, halo=True)
    for axis, name in ((panel.xaxis, found.section.axes[0]), (panel.yaxis, found.section.axes[1])):
        axis.set_label_text(_feature(found.network, name))
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        panel.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4, fontsize=8, frameon=False)
    how = _others(found)
    panel.set_title(f"{found.network}\n{found.question.parameters.rule}{how}", fontsize=9)
    return save_figure(figure, path)


def draw_binarized(found: BinarizedMap, path: Path) -> list[Path]:
    """Draw a map of a network of signs: of single inputs by label, else by status. Raises OutputError."""
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    figure, axes = new_figure(1, 1)
    panel, extent = axes[0, 0], _ends(found.values(found.cut.across), found.values(found.cut.up))
    if found.asked.copy is None and found.cut.fixed:
        labels = np.unique(found.labels)
        colours = colormaps["cividis"](np.linspace(0, 1, max(len(labels), 2)))[: len(labels)]
        shown, names = (
            np.searchsorted(labels, found.labels).astype(np.int8),
            [found.class_name(label) for label in labels.tolist()],
        )
        counts = [int((found.labels == label).sum()) for label in labels]
    else:
        shown, names = found.status.astype(np.int8), ["safe", "flippable", "undecided"]
        colours, counts = np.array([SAFE_COLOUR, FLIP_COLOUR, UNKNOWN_COLOUR]), [found.count(status) for status in Status]
    norm = BoundaryNorm(np.arange(len(names) + 1) - 0.5, max(len(names), 2))
    colour_map = ListedColormap(list(colours) if len(names) > 1 else [*colours, *colours])
    panel.imshow(shown, origin="lower", extent=extent, aspect="auto", cmap=colour_map, norm=norm, interpolation="nearest")
    for name, colour, count in zip(names, colours, counts, strict=True):
        if count and name != "undecided":
            panel.fill([], [], color=colour, label=f"{name} ({count:,})")
    if found.undecided:
        _hatched(panel, found.status == Status.UNDECIDED, extent)
    panel.set_xlabel(found.cut.shown_names[0] or found.axis_name(0))
    panel.set_ylabel(found.cut.shown_names[1] or found.axis_name(1))
    what = {
        Shown.LABEL: "label",
        Shown.ROBUST: "is the label kept in a ball?",
        Shown.CHANGE: "does the copy give another label?",
    }
    panel.set_title(f"{found.asked.network}\n{what[found.asked.shown]}", fontsize=9)
    _legend_below(panel)
    return save_figure(figure, path)


def _feature(network: Network, index: int) -> str:
    return network.features[index].label if network.features else network.feature_name(index)


def _others(found: SectionMap) -> str:
    """Say in a line where the other inputs are."""
    network, others = found.network, found.section.others
    left = [i for i in range(network.inputs) if i not in found.section.axes]
    if not left:
        return ""
    if not found.section.fixed:
        return "\nthe worst over the other inputs' ranges"
    words = [f"{network.feature_name(i)} {others.lower[i]:.4g}" for i in left[:4]]
    return "\n" + ", ".join(words) + (f" and {len(left) - 4} more inputs fixed" if len(left) > 4 else "")


def _extent(found: SectionMap) -> tuple[float, float, float, float]:
    return _ends(found.section.across, found.section.up)


def _ends(across: FloatArray, up: FloatArray) -> tuple[float, float, float, float]:
    """The outer edges of the first and last cells: left, right, bottom, top."""
    ends: list[float] = []
    for values in (across, up):
        half = 0.5 * float(values[1] - values[0]) if len(values) > 1 else 0.5
        ends += [float(values[0]) - half, float(values[-1]) + half]
    return ends[0], ends[1], ends[2], ends[3]


def _label_cells(axes: Axes, found: SectionMap, extent: tuple[float, float, float, float]) -> None:
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colours = ListedColormap([SAFE_COLOUR, FLIP_COLOUR, UNKNOWN_COLOUR])
    norm = BoundaryNorm([-0.5, 0.5, 1.5, 2.5], 3)
    axes.imshow(found.status, origin="lower", extent=extent, aspect="auto", cmap=colours, norm=norm, interpolation="nearest")
    styles = (("safe", SAFE_COLOUR, Status.SAFE), ("flippable", FLIP_COLOUR, Status.FLIPPABLE))
    for name, colour, status in styles:
        axes.fill([], [], color=colour, label=f"{name} ({found.count(status):,})")


def _valued_cells(axes: Axes, found: SectionMap, extent: tuple[float, float, float, float], unknown: BoolArray) -> None:
    from matplotlib import colormaps

    shown = np.ma.masked_array(found.upper, unknown)
    colours = colormaps["cividis"].with_extremes(bad=UNKNOWN_COLOUR)
    greatest = float(found.upper[~unknown].max(initial=1e-12))
    drawn = axes.imshow(
        shown,
        origin="lower",
        extent=extent,
        aspect="auto",
        cmap=colours,
        vmin=0.0,
        vmax=greatest,
        interpolation="nearest",
    )
    if unknown.all():
        return
    what = "a raw output" if found.question.quantity is Quantity.LOGIT else "a confidence"
    axes.figure.colorbar(drawn, ax=axes).set_label(f"certified greatest change of {what}")


def _hatched(axes: Axes, unknown: BoolArray, extent: tuple[float, float, float, float]) -> None:
    """Mark cells that are not settled by a pattern as well, from edge to edge."""
    axes.fill([], [], facecolor=UNKNOWN_COLOUR, hatch=HATCH, edgecolor="white", label=f"undecided ({int(unknown.sum()):,})")
    rows, columns = (max(1, size // MOST_HATCHED) for size in unknown.shape)
    seen = unknown[::rows, ::columns].repeat(2, axis=0).repeat(2, axis=1)
    x, y = (
        _inner_edges(low, high, size // 2) for low, high, size in zip(extent[::2], extent[1::2], seen.shape[::-1], strict=True)
    )
    axes.contourf(x, y, seen.astype(np.float64), levels=[0.5, 1.5], colors="none", hatches=[HATCH])


def _inner_edges(low: float, high: float, cells: int) -> FloatArray:
    """Return two places in each of so many cells, just inside of its edges."""
    edges = np.linspace(low, high, cells + 1)
    inset = NARROW * (high - low) / cells
    return np.stack([edges[:-1] + inset, edges[1:] - inset], axis=1).ravel()


def draw_bits(shares: WidthShares, path: Path) -> list[Path]:
    """Draw the share of points that are proved, violated and unknown at each width. Raises OutputError."""
    figure, axes = new_figure(1, 1)
    panel, counts = axes[0, 0], np.array(shares.counts) / shares.points
    _stacked(panel, np.arange(len(shares.widths), dtype=np.float64), counts, VERDICTS)
    panel.set_xticks(range(len(shares.widths)), [str(width) for width in shares.widths])
    panel.set_xlabel(f"bits of each weight ({shares.family})")
    panel.set_ylabel(f"share of {shares.points:,} inputs")
    panel.set_ylim(0, 1)
    panel.set_title(f"{shares.network}\ndoes any rounding change the label?", fontsize=9)
    _legend_below(panel)
    return save_figure(figure, path, shares.table())


def draw_margins(found: Margins, path: Path) -> list[Path]:
    """Draw how many points have each margin, as a difference of logits, by verdict. Raises OutputError."""
    figure, axes = new_figure(1, 1)
    panel = axes[0, 0]
    edges = np.linspace(0.0, max(float(found.gaps.max()), 1e-12), BINS + 1)
    groups = [found.gaps[found.status == status] for status in (Status.SAFE, Status.FLIPPABLE, Status.UNDECIDED)]
    counts = np.stack([np.histogram(group, edges)[0] for group in groups], axis=1)
    names = [(f"{name} ({len(group):,})", colour, hatch) for (name, colour, hatch), group in zip(VERDICTS, groups, strict=True)]
    _stacked(panel, (edges[1:] + edges[:-1]) / 2, counts, names, width=float(edges[1] - edges[0]))
    panel.set_xlabel("lead of the stored network's label (a difference of logits)")
    panel.set_ylabel("inputs")
    panel.set_xlim(0, edges[-1])
    panel.set_ylim(0, 1.05 * max(counts.sum(axis=1).max(), 1))
    panel.yaxis.get_major_locator().set_params(integer=True)
    panel.set_title(f"{found.network}\n{found.rule}", fontsize=9)
    _legend_below(panel)
    return save_figure(figure, path, found.table())


def draw_layers(found: LayerError, path: Path) -> list[Path]:
    """Draw each layer's share of what uses up a margin. Raises OutputError."""
    figure, axes = new_figure(1, 1)
    panel = axes[0, 0]
    _stacked(panel, np.arange(1.0, len(found.layers) + 1), 100 * np.array(found.layers), PARTS)
    panel.set_xticks(range(1, len(found.layers) + 1))
    panel.set_xlabel("layer")
    panel.set_ylabel("share of what the bound uses up [%]")
    panel.set_title(found.title, fontsize=9)
    _legend_below(panel)
    return save_figure(figure, path, found.table())


def draw_saturation(found: Saturation, path: Path) -> list[Path]:
    """Draw the share of each part's numbers that were cut off, a bar for each name. Raises OutputError."""
    figure, axes = new_figure(1, 1)
    panel = axes[0, 0]
    parts = list(dict.fromkeys(part for part, *_ in found.counts))
    names = list(dict.fromkeys(name for _, name, *_ in found.counts))
    height = 0.8 / max(len(names), 1)
    for number, name in enumerate(names):
        own = [(parts.index(part), 100 * cut / total, cut) for part, other, cut, total in found.counts if other == name]
        places = np.array([place for place, *_ in own]) + (number - (len(names) - 1) / 2) * height
        style = {"color": SERIES[number % len(SERIES)], "hatch": "//" * (number // len(SERIES))}
        bars = panel.barh(places, [share for _, share, _ in own], height, label=name, edgecolor="black", linewidth=0.4, **style)
        panel.bar_label(bars, [f"{cut:,}" for *_, cut in own], fontsize=7, padding=2)
    panel.set_yticks(range(len(parts)), parts, fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.1)
    panel.set_xlim(left=0)
    panel.set_xlabel("numbers cut off [%] (their count beside the bar)")
    panel.set_title(found.title, fontsize=9)
    _legend_below(panel)
    return save_figure(figure, path, found.table())


def _stacked(axes: Axes, places: FloatArray, parts: FloatArray, styles: Any, width: float = 0.8) -> None:
    """Draw bars on top of each other. Shapes: places (n,); parts (n, kinds)."""
    bottom = np.zeros(len(places))
    for (name, colour, hatch), values in zip(styles, parts.T, strict=True):
        if not values.any():
            continue
        edge = "white" if colour == UNKNOWN_COLOUR else "black"
        axes.bar(places, values, width, bottom, color=colour, hatch=hatch, edgecolor=edge, linewidth=0.4, label=name)
        bottom = bottom + values


def _legend_below(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4, fontsize=8, frameon=False)


ANSWERS = (("ask f", "#d9d9d9"), ("yes", "#00224e"), ("no", "#fee838"))  # as the scores of a bracket are numbered


def draw_bracket(
    bracket: Bracket, network: Network, path: Path, inputs: tuple[int, int] = (0, 1), base: FloatArray | None = None
) -> list[Path]:
    """Draw yes, no and silence over two features, cell by cell, with the network's decision boundary and the thresholds.

    Other features stay where `base` (features,) has them, or in the middle of the domain.
    Raises    UnsupportedError (fewer than two features), DomainError (`base` outside the domain), OutputError
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    code = bracket.code
    if not (len(set(inputs)) == 2 and all(0 <= i < code.box.inputs for i in inputs)):
        raise UnsupportedError(f"a bracket is drawn over two features, not over {inputs} of {code.box.inputs}")
    across, up = inputs
    base = code.box.box.middle if base is None else base
    code.check_inside(base[None])
    edges = [np.concatenate([[code.box.lower[i]], code.thresholds[i], [code.box.upper[i]]]) for i in inputs]
    x, y = np.meshgrid(*(np.arange(len(each) - 1) for each in edges))
    codes = np.repeat(code.codes(base[None]), x.size, axis=0)
    codes[:, across], codes[:, up] = x.ravel(), y.ravel()
    figure, axes = new_figure(1, 1)
    panel = axes[0, 0]
    answers = bracket.answers_of(codes).reshape(x.shape)
    colours = ListedColormap([colour for _, colour in ANSWERS])
    panel.pcolormesh(*edges, answers, cmap=colours, vmin=-0.5, vmax=2.5, edgecolors=(1.0, 1.0, 1.0, 0.5), linewidth=0.3)
    extent = (edges[0][0], edges[0][-1], edges[1][0], edges[1][-1])
    draw_boundaries(panel, network, extent, inputs, base, halo=True, only=bracket.label)
    panel.set_xlabel(code.features[across].label)
    panel.set_ylabel(code.features[up].label)
    name = bracket.class_name
    words = {"ask f": f"silent: ask {bracket.target or 'f'}", "yes": f"yes: proved {name}", "no": f"no: proved not {name}"}
    handles, _ = panel.get_legend_handles_labels()
    handles += [Patch(facecolor=colour, edgecolor="black", linewidth=0.4, label=words[word]) for word, colour in ANSWERS]
    panel.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=8, frameon=False)
    others = [i for i in range(code.box.inputs) if i not in inputs]
    fixed = ", ".join(f"{code.features[i].name} = {base[i]:.4g} {code.features[i].unit}".rstrip(" -") for i in others)
    panel.set_title(f"{network}: {name}?\n{code.bits} bits, {code.cells:,} cells" + (f"; {fixed}" if fixed else ""), fontsize=9)
    return save_figure(figure, path)
