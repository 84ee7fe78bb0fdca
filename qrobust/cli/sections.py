"""What `map` does over a grid of two inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qrobust.charts import draw_section
from qrobust.cli import show
from qrobust.cli.options import UsageError, Where, domain_of, points_of
from qrobust.domains import InputBox
from qrobust.errors import NumberError, ResourceError
from qrobust.files import write_whole
from qrobust.maps import Question, Sharing
from qrobust.network import Network
from qrobust.sections import Section, SectionMap, section_map

CELLS = (200, 200)
MOST_CSV = 2_000_000  # lines


def axes_of(network: Network, text: str | None) -> tuple[int, int]:
    """Return the two inputs that --axes names, by name or by number from 1; the first two of two. Raises UsageError."""
    if text is None:
        if network.inputs != 2:
            raise UsageError(f"{network} has {network.inputs} inputs: name two of them, as in --axes '{_example(network)}'")
        return 0, 1
    names = {network.feature_name(i): i for i in range(network.inputs)} | {str(i + 1): i for i in range(network.inputs)}
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in names:
            known = ", ".join(network.feature_name(i) for i in range(min(network.inputs, 12)))
            raise UsageError(f"--axes: no input is called {word!r:.40}: name two of {known}, or give numbers from 1")
    if len(words) != 2 or names[words[0]] == names[words[1]]:
        raise UsageError(f"--axes {text!r:.60} must name two different inputs, as in '{_example(network)}'")
    return names[words[0]], names[words[1]]


def _example(network: Network) -> str:
    return ", ".join(network.feature_name(i) for i in range(2))


def cells_of(text: str | None) -> tuple[int, int]:
    """Return the columns and rows that --grid names, as in 200x100. Raises NumberError."""
    if text is None:
        return CELLS
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(
        part.strip().isascii() and part.strip().isdigit() and len(part.strip()) < 10 for part in parts
    ):
        raise NumberError(f"--grid {text!r:.40} is not read: write columns x rows, as in 200x100")
    return int(parts[0]), int(parts[1])


def section_of(network: Network, where: Where, axes: str | None, grid: str | None) -> Section:
    """Return the section that the options name: the others at --point, or anywhere in the box."""
    chosen, counts = axes_of(network, axes), cells_of(grid)
    if where.points is not None:
        raise UsageError("--grid asks at its own cells: leave out --points")
    if where.cuts:
        raise UsageError("--where cuts no grid: leave it out")
    box = domain_of(network, Where(box=where.box))
    assert isinstance(box, InputBox)
    point = points_of(network, Where(point=where.point))
    return Section.over(chosen, box, counts, None if point is None else point[0])


def show_section(
    question: Question,
    section: Section,
    sharing: Sharing,
    *,
    output: Path | None,
    plot: Path | None,
    json: bool,
    quiet: bool,
) -> None:
    """Ask, write what was asked for, and say what was found."""
    if output is not None and output.suffix.lower() != ".npz" and len(section) > MOST_CSV:
        raise ResourceError(f"{len(section):,} cells are too many lines of CSV: name an .npz file, or a coarser --grid")
    with show.Bar(len(section), "cells", quiet=quiet or json) as bar:
        found = section_map(question, section, sharing, bar.advance)
    _write(found, output)
    if plot is not None:
        draw_section(found, plot)
    if json:
        show.document(found.to_json() | _ends(found))
    else:
        show.line(str(found), quiet=quiet)


def _write(found: SectionMap, output: Path | None) -> None:
    if output is not None:
        write_whole(output, found.arrays() if output.suffix.lower() == ".npz" else found.table())


def _ends(found: SectionMap) -> dict[str, float | None]:
    """The greatest of the ends; an end that nothing bounds is None."""
    ends = {"greatest_lower": float(found.lower.max()), "greatest_upper": float(found.upper.max())}
    return {name: value if np.isfinite(value) else None for name, value in ends.items()}
