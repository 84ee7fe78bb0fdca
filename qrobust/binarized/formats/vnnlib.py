"""VNN-LIB queries about classifiers: a box of inputs, and a label that some class draws level with.

Accepts   (assert (<= X_i c)), (assert (>= X_i c)), and one (assert (or (and (>= Y_j Y_label)) ...)) over all other classes
Raises    ModelFileError (damaged), UnsupportedError (another form)
Source    Demarchi et al., the VNN-LIB standard, version 1.0
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qrobust.binarized.formats.onnx import unpacked
from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.formats.untrusted import parsing
from qrobust.interval import FloatArray

MOST_INPUTS = 2**20
NUMBER = r"([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)"
SIDE = re.compile(rf"\(assert\s*\(\s*(<=|>=)\s+X_(\d+)\s+{NUMBER}\s*\)\s*\)")
DECLARED = re.compile(r"\(declare-const\s+([XY])_(\d+)\s+Real\s*\)")
LOSES = re.compile(r"\(assert\s*\(\s*or((?:\s*\(\s*and\s*\(\s*>=\s+Y_\d+\s+Y_\d+\s*\)\s*\))+)\s*\)\s*\)")
PAIR = re.compile(r">=\s+Y_(\d+)\s+Y_(\d+)")


@dataclass(frozen=True, eq=False)
class VnnLibQuery:
    """Shapes: lower, upper (inputs,), in the file's order."""

    lower: FloatArray
    upper: FloatArray
    label: int


def read_vnnlib(path: Path | str) -> VnnLibQuery:
    """Read a query, also one packed as .gz; see the module's docstring."""
    content = unpacked(path)
    with parsing(path, ".vnnlib"):
        text = re.sub(r";[^\n]*", "", content.decode())
        declared = {kind: {int(i) for k, i in DECLARED.findall(text) if k == kind} for kind in "XY"}
        count = len(declared["X"])
        if not 0 < count <= MOST_INPUTS or declared["X"] != set(range(count)):
            raise ModelFileError(f"it declares {count} inputs, not X_0 and so on")
        ends = {"<=": np.full(count, np.inf), ">=": np.full(count, -np.inf)}
        for relation, index, number in SIDE.findall(text):
            tighter = min if relation == "<=" else max
            ends[relation][int(index)] = tighter(ends[relation][int(index)], float(number))
        if not np.isfinite(ends["<="]).all() or not np.isfinite(ends[">="]).all():
            raise ModelFileError("an input has no lower or no upper end")
        rest = SIDE.sub("", DECLARED.sub("", text)).strip()
        match = LOSES.fullmatch(rest)
        pairs = [(int(a), int(b)) for a, b in PAIR.findall(match[1])] if match else []
        labels = {b for _, b in pairs}
        if len(labels) != 1 or {a for a, _ in pairs} | labels != declared["Y"]:
            raise UnsupportedError("its outputs are not one label that some other class draws level with")
        return VnnLibQuery(ends[">="], ends["<="], labels.pop())
