"""Files of brackets: a binarized network in qrobust's own format, with one more section that says what its bits and f are.

    "bracket": {"version": 1, "target": "CAT (paper)", "sha256": "...", "label": 1, "class": "male",
                "features": [{"name": "heart weight", "unit": "g", "lower": 6.3, "upper": 20.5, "thresholds": [8.1, ...]}, ...]}

So the file is also read as a binarized network over bits, by `bnn verify` and all else that reads these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qrobust.binarized.bracket import Bracket
from qrobust.binarized.formats import load_binarized, save_binarized
from qrobust.binarized.formats.native import read_section
from qrobust.binarized.thermometer import Thermometer
from qrobust.domains import InputBox
from qrobust.errors import ModelFileError
from qrobust.formats.untrusted import parsing
from qrobust.network import Feature

SECTION, VERSION = "bracket", 1


def save_bracket(bracket: Bracket, path: Path | str) -> None:
    """Write a bracket as .json or .npz, whole or not at all. Raises OutputError, UnsupportedError."""
    save_binarized(bracket.network, path, {SECTION: to_section(bracket)})


def to_section(bracket: Bracket) -> dict[str, Any]:
    """Return what the network alone does not say, as JSON values; floats read back exactly."""
    code = bracket.code
    ends = zip(code.features, code.thresholds, code.box.lower.tolist(), code.box.upper.tolist(), strict=True)
    features = [
        {"name": f.name, "unit": f.unit, "lower": low, "upper": high, "thresholds": values.tolist()}
        for f, values, low, high in ends
    ]
    own = {"target": bracket.target, "sha256": bracket.sha256, "label": bracket.label, "class": bracket.class_name}
    return {"version": VERSION, **own, "features": features}


def load_bracket(path: Path | str) -> Bracket:
    """Read a bracket. Raises ModelFileError, UnsupportedError and what its parts raise.

    Property  what is read is not taken as proved: `bracket_proof.prove` proves it anew
    """
    network = load_binarized(path).network
    section = read_section(path, SECTION)
    if section is None:
        raise ModelFileError(f"{path} is a binarized network without a bracket: write one with `qrobust bnn bracket --output`")
    with parsing(path, Path(path).suffix):
        if section["version"] != VERSION:
            raise ModelFileError(f"its bracket has version {section['version']!r}, {VERSION} is read")
        features = section["features"]
        box = InputBox([float(f["lower"]) for f in features], [float(f["upper"]) for f in features])
        named = tuple(Feature(str(f["name"]), str(f["unit"]), float(f["lower"]), float(f["upper"])) for f in features)
        code = Thermometer(box, named, tuple(np.array(f["thresholds"], dtype=np.float64) for f in features))
        target, sha256, label, name = (section[key] for key in ("target", "sha256", "label", "class"))
        return Bracket(network, code, str(target), str(sha256), int(label), str(name))
