"""From a `.tflite` file and 1,000 points to a filed report, as a user waits for it: the program's start and all documents."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODELS = Path(__file__).parent.parent / "models"
POINTS, REPEATS = 1000, 3
PAIRS = {"cat": ("cat_paper.json", "cat_int8.tflite"), "ath-relu": ("ath_relu.keras", "ath_relu_int8.tflite")}
BOXES = {"cat": "[[6.3, 20.5], [2, 3.9]]", "ath-relu": "[[1.21, 2.18], [31, 170]]"}


def plan(name: str) -> str:
    """A plan of three obligations: labels and confidences of the program, and labels under any rounding to int8."""
    floats, integers = PAIRS[name]
    asked = (
        'ask = "label"\nprogram = "int8"',
        'ask = "eps"\neps = 0.05\nprogram = "int8"',
        'ask = "label"\nscheme = "int8"',
    )
    head = f'[model]\nfile = "{MODELS / floats}"\n[shipped]\nint8 = "{MODELS / integers}"\n[domains.box]\nbox = {BOXES[name]}\n'
    data = f'[data.points]\nrandom = {POINTS}\ndomain = "box"\n'
    return head + data + "".join(f'[[obligations]]\nid = "{n}"\n{text}\ndata = "points"\n' for n, text in enumerate(asked, 1))


def seconds(name: str) -> float:
    """The least seconds of a few runs from nothing, each in a folder of its own. Raises CalledProcessError for usage errors."""
    best = float("inf")
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "plan.toml").write_text(plan(name))
            command = [sys.executable, "-m", "qrobust", "signoff", "plan.toml", "--out", "report", "--quiet"]
            start = time.perf_counter()
            code = subprocess.run(command, cwd=folder, check=False).returncode
            best = min(best, time.perf_counter() - start)
            if code not in (0, 1) or not (Path(folder) / "report/report.html").is_file():
                raise subprocess.CalledProcessError(code, command)
    return best
