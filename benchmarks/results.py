"""Rows of results.json, and RESULTS.md, which is written from them."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.files import write_whole

FOLDER = Path(__file__).parent

Rows = list[dict[str, Any]]


def row(work: str, metric: str, value: float | None, unit: str, **more: Any) -> dict[str, Any]:
    """Return one row of results.json."""
    return {
        "work": work,
        "metric": metric,
        "value": value,
        "unit": unit,
        "aim": more.get("aim"),
        "peer": more.get("peer"),
        "peer_value": more.get("peer_value"),
        "command": "python -m benchmarks " + more.get("name", work.split("-")[0]),
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def machine() -> str:
    """Describe the machine in words."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}"


def timed(function: Callable[[], Any], repeats: int = 5) -> tuple[float, Any]:
    """Return the least seconds of several runs, and the result."""
    best, result = float("inf"), None
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - started)
    return best, result


def write(rows: Rows) -> None:
    """Replace the rows of the works just measured, and write RESULTS.md from all."""
    path = FOLDER / "results.json"
    old: Rows = json.loads(path.read_text()) if path.exists() else []
    commands = {r["command"] for r in rows}
    kept = [r for r in old if r["command"] not in commands] + rows
    write_whole(path, (json.dumps(kept, indent=1) + "\n").encode())
    write_whole(FOLDER / "RESULTS.md", results_page(kept).encode())


def results_page(rows: Rows) -> str:
    """Return RESULTS.md: every row, and what is slower than its aim or than the peer."""
    lines = [
        "# Results",
        "",
        "Written by `python -m benchmarks` from `results.json`; each row and its peer were measured in one run on one machine.",
        "",
        "| work | metric | value | unit | aim | peer's value | peer | machine | date |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        value, aim, peer = (_number(r[key]) for key in ("value", "aim", "peer_value"))
        cells = (r["work"], r["metric"], value, r["unit"], aim, peer, r["peer"] or "", r["machine"], r["date"])
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    missed = [r for r in rows if _missed(r)]
    lines += ["", "## Where an aim was missed", ""]
    lines += [f"- {r['work']}, {r['metric']}: {_number(r['value'])} against {_number(r['aim'])}" for r in missed] or [
        "Nowhere."
    ]
    return "\n".join(lines) + "\n"


def _missed(r: dict[str, Any]) -> bool:
    if r["aim"] is None:
        return False
    more_is_better = r["metric"].startswith("times faster") or r["metric"] in ("decided", "certified", "radius_ratio")
    return bool(r["value"] < r["aim"]) if more_is_better else bool(r["value"] > r["aim"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
