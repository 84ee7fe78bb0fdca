"""Pictures of explanations and small decision diagrams: PNG and SVG, and explanations as a table of names and units.

An explanation of a square image lies over it: features that are held in one colour, the rest in grey. Of other inputs each
feature of an explanation has a line of its own, over its range, with the part that it may take and its value.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qrobust.errors import ResourceError
from qrobust.interval import FloatArray
from qrobust.logic.diagrams import Diagram, Node
from qrobust.logic.explanation import Explanation
from qrobust.logic.oracles import Kind
from qrobust.network import Feature
from qrobust.plotting import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_DRAWN = 200  # nodes
MOST_LINES = 12  # features
TITLE_WIDTH = 84  # characters
COLOURS = {Kind.ABDUCTIVE: "#0072b2", Kind.CONTRASTIVE: "#d55e00"}
LEAST_SIDE = 5  # pixels of the least square that counts as an image


def named(
    features: Sequence[Feature], count: int, ends: tuple[float | None, float | None] = (None, None)
) -> tuple[Feature, ...]:
    """Return the features, or stand-ins: pixels by row and column for squares, else inputs by number, of a range."""
    if features:
        return tuple(features)
    side = math.isqrt(count)
    if side * side == count and side >= LEAST_SIDE:
        return tuple(Feature(f"pixel ({place // side}, {place % side})") for place in range(count))
    return tuple(Feature(f"input {place + 1}", "", *ends) for place in range(count))


@dataclass(frozen=True, eq=False)
class Held:
    """What an explanation says of its features: in words, and between which values; as features of an explanation, in order."""

    words: tuple[str, ...]
    ends: tuple[tuple[float, float], ...]


def table(found: Explanation, inputs: FloatArray, features: Sequence[Feature], held: Held) -> str:
    """Return an explanation as CSV: feature, name, value, unit, and what is said of it. Shape: inputs (features,)."""
    lines = ["feature,name,value,unit,said"]
    for place, words in zip(found.features or (), held.words, strict=True):
        name, said = (text.replace('"', '""') for text in (features[place].name, words))
        lines.append(f'{place},"{name}",{float(inputs[place])!r},{features[place].unit},"{said}"')
    return "\n".join(lines) + "\n"


def draw_explanation(
    found: Explanation, inputs: FloatArray, features: Sequence[Feature], held: Held, *, title: str, path: Path
) -> list[Path]:
    """Draw an explanation over a square image, else a line for each of its features, with its table. Shape: inputs (features,).

    Raises    OutputError
    """
    from matplotlib.colors import ListedColormap

    side = math.isqrt(len(inputs))
    is_image = side * side == len(inputs) and side >= LEAST_SIDE and all(feature.lower is None for feature in features)
    own = found.features or ()
    figure, axes = new_figure(1, 1)
    shown, colour = axes[0, 0], COLOURS[found.kind]
    if is_image:
        shown.imshow(np.asarray(inputs).reshape(side, side), cmap="gray_r", interpolation="nearest")
        marked = np.full(side * side, np.nan)
        marked[list(own)] = 1.0
        shown.imshow(marked.reshape(side, side), cmap=ListedColormap([colour]), alpha=0.65, interpolation="nearest")
        shown.set_xlabel("column")
        shown.set_ylabel("row")
    else:
        drawn = [(features[place], float(inputs[place])) for place in own[:MOST_LINES]]
        for line, ((feature, value), words, ends) in enumerate(zip(drawn, held.words, held.ends, strict=False)):
            _line(shown, line, (feature, value), (words, ends), colour)
        shown.set_xlim(-0.02, 1.02)
        shown.set_ylim(max(len(drawn), 1) - 0.4, -0.9)
        shown.axis("off")
    shown.set_title("\n".join(textwrap.wrap(title, TITLE_WIDTH, break_on_hyphens=False)), fontsize=9)
    return save_figure(figure, path, table(found, inputs, features, held))


def _line(shown: Any, line: int, own: tuple[Feature, float], said: tuple[str, tuple[float, float]], colour: str) -> None:
    """Draw a feature's range, the part that is held, and its value."""
    (feature, value), (words, ends) = own, said
    low = min(value, ends[0]) if feature.lower is None else feature.lower
    high = max(value, ends[1]) if feature.upper is None else feature.upper
    width = high - low if high > low else 1.0
    first, last = (min(max((end - low) / width, 0.0), 1.0) for end in ends)
    shown.barh(line, 1.0, height=0.2, color="#dddddd")
    shown.barh(line, max(last - first, 0.004), left=min(first, 0.996), height=0.2, color=colour)
    shown.plot([(value - low) / width], [line], "o", color="black", markersize=5)
    shown.text(0.0, line - 0.2, words, fontsize=9, va="bottom")
    unit = f" {feature.unit}" if feature.unit else ""
    shown.text(0.0, line + 0.16, f"{low:.4g}", fontsize=7, va="top", color="#666666")
    shown.text(1.0, line + 0.16, f"{high:.4g}{unit}", fontsize=7, va="top", ha="right", color="#666666")
    shown.text((value - low) / width, line + 0.16, f"{value:.4g}", fontsize=7, va="top", ha="center")


def draw_diagram(diagram: Diagram, label: int) -> Figure:
    """Draw the decision diagram of one class. Raises ResourceError if it has over MOST_DRAWN nodes."""
    root = diagram.classes[label]
    if root.node_count() > MOST_DRAWN:
        raise ResourceError(f"the diagram has {root.node_count():,} nodes, at most {MOST_DRAWN} are drawn: take fewer inputs")
    levels, edges = _levels(root)
    figure, axes = new_figure(1, 1)
    shown = axes[0, 0]
    bottom = max(levels) if levels else 0
    places = {}
    for depth, nodes in levels.items():
        for place, node in enumerate(nodes):
            places[node] = ((place + 1) / (len(nodes) + 1), -depth)
    for node, child, is_high in edges:
        (x, y), (u, v) = places[node], places[child]
        shown.plot([x, u], [y, v], color="#444444", linestyle="-" if is_high else ":", linewidth=1, zorder=1)
    names = _names(diagram)
    for node, (x, y) in places.items():
        number = node.node_var()
        text = ("1" if node.valid() else "0") if number is None else names[number]
        box = {"boxstyle": "square" if number is None else "round", "facecolor": "white", "edgecolor": "#0072b2"}
        shown.text(x, y, text, ha="center", va="center", fontsize=7, bbox=box, zorder=2)
    shown.set_xlim(0, 1)
    shown.set_ylim(-bottom - 0.6, 0.6)
    shown.axis("off")
    shown.set_title(f"{diagram.network.class_name(label)}: solid where the test holds, dotted where not", fontsize=9)
    return figure


def _levels(root: Node) -> tuple[dict[int, list[Node]], list[tuple[Node, Node, bool]]]:
    """Return the nodes by depth, the two ends last, and the edges."""
    waiting, seen, edges = [root], {root}, []
    while waiting:
        node = waiting.pop()
        for child, is_high in zip(node.cofactors() or (), (True, False), strict=False):
            edges.append((node, child, is_high))
            if child not in seen:
                seen.add(child)
                waiting.append(child)
    inner = sorted({node.node_level() for node in seen if node.node_level() is not None})
    depth = {level: place for place, level in enumerate(inner)}
    found: dict[int, list[Node]] = {}
    for node in seen:
        level = node.node_level()
        found.setdefault(len(inner) if level is None else depth[level], []).append(node)
    return found, edges


def _names(diagram: Diagram) -> list[str]:
    """Return each order literal as a test of an input's level; inputs are numbered from 1."""
    lower, found = diagram.region.lower.tolist(), []
    for pixel, start, end in zip(diagram.pixels, diagram.starts, diagram.starts[1:], strict=False):
        found += [f"x{pixel + 1} >= {lower[pixel] + place + 1}" for place in range(end - start)]
    return found
