"""Pictures of explanations and small decision diagrams: PNG and SVG, and explanations as a table of names and units.

An explanation of a square image lies over it: features that are held in one colour, the rest in grey.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qrobust.errors import ResourceError
from qrobust.interval import FloatArray
from qrobust.logic.diagrams import Diagram, Node
from qrobust.logic.explanation import Explanation
from qrobust.logic.oracles import Kind
from qrobust.network import Feature
from qrobust.plotting import new_figure, save_figure

MOST_DRAWN = 200  # nodes
COLOURS = {Kind.ABDUCTIVE: "#0072b2", Kind.CONTRASTIVE: "#d55e00"}
LEAST_SIDE = 5  # pixels of the least square that counts as an image


def named(features: Sequence[Feature], count: int) -> tuple[Feature, ...]:
    """Return the features, or stand-ins: pixels by row and column for squares, else inputs by number."""
    if features:
        return tuple(features)
    side = math.isqrt(count)
    if side * side == count and side >= LEAST_SIDE:
        return tuple(Feature(f"pixel ({place // side}, {place % side})") for place in range(count))
    return tuple(Feature(f"input {place + 1}") for place in range(count))


def table(found: Explanation, inputs: FloatArray, features: Sequence[Feature]) -> str:
    """Return an explanation as CSV: feature, name, value, unit. Shape: inputs (features,)."""
    lines = ["feature,name,value,unit"]
    for place in found.features or ():
        name = features[place].name.replace('"', '""')
        lines.append(f'{place},"{name}",{float(inputs[place])!r},{features[place].unit}')
    return "\n".join(lines) + "\n"


def draw_explanation(found: Explanation, inputs: FloatArray, features: Sequence[Feature], title: str, path: Path) -> list[Path]:
    """Draw an explanation over a square image or as bars, with its table. Shape: inputs (features,). Raises OutputError."""
    figure, axes = new_figure(1, 1)
    own, side = found.features or (), math.isqrt(len(inputs))
    colour, shown = COLOURS[found.kind], axes[0, 0]
    if side * side == len(inputs) and side >= LEAST_SIDE:
        shown.imshow(np.asarray(inputs).reshape(side, side), cmap="gray_r", interpolation="nearest")
        places = np.array(own, dtype=np.int64)
        shown.scatter(places % side, places // side, s=(150 / side) ** 2, marker="s", c=colour, alpha=0.6, linewidths=0)
        shown.set_xlabel("column")
        shown.set_ylabel("row")
    else:
        shown.barh([features[place].label for place in own], [float(inputs[place]) for place in own], color=colour)
        shown.invert_yaxis()
        shown.set_xlabel("value at the explained input")
    shown.set_title(title, fontsize=9)
    return save_figure(figure, path, table(found, inputs, features))


def draw_diagram(diagram: Diagram, label: int, path: Path) -> list[Path]:
    """Draw the decision diagram of one class. Raises ResourceError if it has over MOST_DRAWN nodes, OutputError."""
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
    return save_figure(figure, path)


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
    """Return each order literal as a test of a feature's level."""
    lower, found = diagram.region.lower.tolist(), []
    for pixel, start, end in zip(diagram.pixels, diagram.starts, diagram.starts[1:], strict=False):
        found += [f"x{pixel} >= {lower[pixel] + place + 1}" for place in range(end - start)]
    return found
