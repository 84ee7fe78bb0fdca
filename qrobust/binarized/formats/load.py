"""The one place that knows which reader reads which file of a binarized network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qrobust.binarized.formats.binarize import binarize
from qrobust.binarized.formats.keras import read_keras
from qrobust.binarized.formats.keras_write import write_keras
from qrobust.binarized.formats.larq import read_larq
from qrobust.binarized.formats.native import read_json, read_npz, write_json, write_npz
from qrobust.binarized.formats.onnx import read_onnx
from qrobust.binarized.formats.parts import ReadNetwork
from qrobust.binarized.network import BinarizedNetwork, Grid
from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.formats import load
from qrobust.quantization import Scheme

WRITERS = {".json": write_json, ".npz": write_npz, ".keras": write_keras}
GIVEN = {".onnx": read_onnx, ".h5": read_larq}  # with the grid of their inputs
OWN = {".json": read_json, ".npz": read_npz, ".keras": read_keras}
NO_GRID = "does not say which inputs it takes: name the input step and range, as in --step 1/255 --range 0:1"


def load_binarized(path: Path | str, grid: Grid | None = None, scheme: Scheme | None = None) -> ReadNetwork:
    """Read a binarized network from a file, by the ending of its name; with a scheme, a float network to be binarized.

    Accepts   .json, .npz and .keras (written by qrobust, naming their grid); .onnx, .onnx.gz and .h5 (Larq), with the grid
              of their inputs; any float network that `qrobust.load` reads, with the grid and the scheme binary or ternary
    Raises    ModelFileError, UnsupportedError, BackendUnavailableError
    """
    name = str(path).lower()
    suffix = ".onnx" if name.endswith((".onnx", ".onnx.gz")) else Path(name).suffix
    if scheme is not None:
        if grid is None:
            raise ModelFileError(f"{path} {NO_GRID}")
        return _in_order(binarize(load(path), scheme, grid))
    if suffix in OWN:
        found = OWN[suffix](path)
        if grid is not None and grid != found.grid:
            raise UnsupportedError(f"{path} says itself how its inputs are rounded: leave --step and --range out")
        return _in_order(found)
    if suffix not in GIVEN:
        known = ", ".join([*OWN, *GIVEN, ".onnx.gz"])
        raise ModelFileError(f"{path} ends in {suffix or 'nothing'!r}: binarized networks are read from {known}")
    if grid is None:
        raise ModelFileError(f"{path} {NO_GRID}")
    return GIVEN[suffix](path, grid)


def _in_order(network: BinarizedNetwork) -> ReadNetwork:
    return ReadNetwork(network, np.arange(network.inputs, dtype=np.int64))


def save_binarized(network: BinarizedNetwork, path: Path | str, notes: dict[str, Any] | None = None) -> None:
    """Write a binarized network, and further sections, as .json or .npz, or as a Keras model (.keras), whole or not at all.

    Rounding  a Keras model's numbers are rounded to float32; the others' are kept
    Raises    OutputError, UnsupportedError, BackendUnavailableError (.keras without Keras)
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WRITERS:
        raise UnsupportedError(f"{path} ends in {suffix or 'nothing'!r}: the formats written are {', '.join(WRITERS)}")
    WRITERS[suffix](network, path, notes)
