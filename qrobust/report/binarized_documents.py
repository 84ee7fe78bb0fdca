"""The documents of a report on a network of signs: result.json, report.md and report.html with its pictures."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.answers import Verdict
from qrobust.files import write_together
from qrobust.interval import FloatArray
from qrobust.layers import IntArray
from qrobust.plotting import new_figure
from qrobust.report.binarized import Decided, Radius, Survey, Surveyed, document
from qrobust.report.pictures import png
from qrobust.report.plan import File
from qrobust.report.signoff import environment, make_folder, versions_of

SOLVERS = ("numpy", "python-sat", "highspy", "ortools", "z3-solver", "exact")
MOST_DRAWN = 6  # counterexamples of each eps
LEAST_SIDE = 4  # of an image


@dataclass(frozen=True)
class Sources:
    """What a report is made of, as it was read, and the command that makes it again."""

    model: File
    table: File
    command: str

    def to_json(self) -> dict[str, Any]:
        """Return the paths with the sha256 of the files' bytes, the command and the versions."""
        files = {"model": self.model, "table": self.table}
        return {
            "command": self.command,
            **{name: {"path": file.path.as_posix(), "sha256": file.sha256} for name, file in files.items()},
            "versions": versions_of(SOLVERS),
        }


def write_report(found: Surveyed, sources: Sources, folder: Path) -> list[Path]:
    """Write the documents into a folder, all of them or none; return their paths. Raises OutputError."""
    make_folder(folder)
    provenance = sources.to_json()
    shown = {
        "found": found,
        "survey": found.survey,
        "provenance": provenance,
        "Verdict": Verdict,
        "curve": curve(found),
        "examples": [(radius, examples(found, radius)) for radius in found.radii],
    }
    content = {
        "result.json": json.dumps(document(found, provenance), indent=1, allow_nan=False) + "\n",
        "report.md": environment("bnn.md.j2").get_template("bnn.md.j2").render(shown),
        "report.html": environment("bnn.html.j2").get_template("bnn.html.j2").render(shown),
    }
    write_together({folder / name: text.encode() for name, text in content.items()})
    return [folder / name for name in content]


def curve(found: Surveyed) -> bytes:
    """Draw accuracy and verified accuracy over eps, what is undecided between its two ends."""
    figure, axes = new_figure(1, 1)
    pairs = sorted((float(radius.eps), *radius.verified) for radius in found.radii)
    eps, low, high = (list(column) for column in zip(*pairs, strict=True))
    axes[0, 0].axhline(found.survey.accuracy, color="black", linestyle="--", linewidth=1, label="accuracy")
    axes[0, 0].plot(eps, low, "o-", color="#4477aa", label="verified accuracy")
    if low != high:
        axes[0, 0].fill_between(eps, low, high, color="#999999", alpha=0.4, label="undecided")
    axes[0, 0].set_xlabel(f"eps ({found.survey.norm.value})")
    axes[0, 0].set_ylabel("share of the rows")
    axes[0, 0].set_ylim(-0.02, 1.02)
    axes[0, 0].legend(fontsize=8)
    return png(figure)


def examples(found: Surveyed, radius: Radius) -> bytes | None:
    """Draw the first counterexamples of an eps: the input, what became of it, the difference; None if it is no square image."""
    network = found.survey.network
    side = math.isqrt(network.inputs)
    some = [one for one in radius.answers if one.settled.levels is not None][:MOST_DRAWN]
    if side < LEAST_SIDE or side * side != network.inputs or not some:
        return None
    figure, axes = new_figure(len(some), 3)
    figure.set_size_inches(6.6, 2.2 * len(some))
    low, high = (
        float(network.grid.values(np.array(network.grid.lowest))),
        float(network.grid.values(np.array(network.grid.highest))),
    )
    for number, one in enumerate(some):
        before, after = _images(found.survey, one)
        reach = max(float(np.abs(after - before).max()), 1e-12)
        titles = _titles(found, one, float(np.abs(after - before).max()))
        panels = ((before, "gray", low, high), (after, "gray", low, high), (after - before, "RdBu", -reach, reach))
        for axis, title, (image, colours, least, most) in zip(axes[number], titles, panels, strict=True):
            axis.imshow(image.reshape(side, side), cmap=colours, vmin=least, vmax=most, interpolation="nearest")
            axis.set_title(title, fontsize=8)
            axis.set_axis_off()
    return png(figure)


def _images(survey: Survey, one: Decided) -> tuple[FloatArray, FloatArray]:
    """Return the row's input and the counterexample near it, in other norms than L-infinity both as the network sees them."""
    assert one.settled.levels is not None
    own: IntArray = survey.network.grid.levels(survey.inputs[one.row])
    return survey.inputs_of(one.row, own), survey.inputs_of(one.row, one.settled.levels)


def _titles(found: Surveyed, one: Decided, change: float) -> tuple[str, str, str]:
    survey, network = found.survey, found.survey.network
    assert one.rival is not None
    own, rival = network.class_name(int(survey.own[one.row])), network.class_name(one.rival)
    return f"row {one.row + 1}: {own}", f"label {rival}", f"greatest change {change:.3g}"
