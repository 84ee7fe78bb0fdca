"""The one place that knows which reader reads which file, and which writer writes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qrobust.errors import ModelFileError, UnsupportedError
from qrobust.formats.keras import read_h5, read_keras
from qrobust.formats.native import read_native, write_native
from qrobust.formats.nnet import read_nnet
from qrobust.formats.npz import read_npz, write_npz
from qrobust.formats.onnx import read_onnx
from qrobust.formats.onnx_program import read_onnx_program
from qrobust.formats.onnx_write import write_onnx
from qrobust.formats.sklearn import read_joblib, read_skops
from qrobust.formats.tflite import read_tflite
from qrobust.formats.tflite_program import read_program
from qrobust.integer.program import IntegerProgram
from qrobust.network import Network

READERS: dict[str, Callable[[Path | str], Network]] = {
    ".json": read_native,
    ".keras": read_keras,
    ".h5": read_h5,
    ".onnx": read_onnx,
    ".npz": read_npz,
    ".nnet": read_nnet,
    ".skops": read_skops,
    ".joblib": read_joblib,
    ".tflite": read_tflite,
}
PROGRAM_READERS: dict[str, Callable[[Path | str], IntegerProgram]] = {
    ".tflite": read_program,
    ".onnx": read_onnx_program,
}

WRITERS: dict[str, Callable[[Network, Path | str], None]] = {
    ".json": write_native,
    ".onnx": write_onnx,
    ".npz": write_npz,
}


def save(network: Network, path: Path | str, *, double: bool = False) -> None:
    """Write a network to a file, by the ending of its name, whole or not at all. Reading it back gives the same numbers.

    Accepts   .json (qrobust's own, which keeps names as well), .onnx (in float32 or, if `double`, float64: see
              `onnx_write`), .npz
    Raises    OutputError, UnsupportedError (numbers that the format would round), BackendUnavailableError
    """
    check_writable(path)
    if double and Path(path).suffix.lower() == ".onnx":
        write_onnx(network, path, double=True)
    else:
        WRITERS[Path(path).suffix.lower()](network, path)


def check_writable(path: Path | str) -> None:
    """Raise UnsupportedError unless a file of this name's ending can be written."""
    suffix = Path(path).suffix.lower()
    if suffix not in WRITERS:
        raise UnsupportedError(f"{path} ends in {suffix or 'nothing'!r}: the formats written are {', '.join(WRITERS)}")


def load(path: Path | str, *, trust_pickle: bool = False) -> Network:
    """Read a network from a file, by the ending of its name.

    Accepts   .json (qrobust's own), .keras, .h5 (Keras), .onnx, .npz, .nnet, .tflite (of float activations), .skops; .joblib
              only with trust_pickle=True, since a pickle runs code
    Raises    ModelFileError, UnsupportedError, BackendUnavailableError
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".joblib" and trust_pickle:
        return read_joblib(path, trust_pickle=True)
    if suffix not in READERS:
        raise ModelFileError(f"{path} ends in {suffix or 'nothing'!r}: the formats read are {', '.join(READERS)}")
    return READERS[suffix](path)


def load_program(path: Path | str) -> IntegerProgram:
    """Read an integer program from a file, by the ending of its name: .tflite or .onnx, fully quantized.

    Raises    ModelFileError, UnsupportedError, BackendUnavailableError
    """
    suffix = Path(path).suffix.lower()
    if suffix not in PROGRAM_READERS:
        raise ModelFileError(
            f"{path} ends in {suffix or 'nothing'!r}: integer programs are read from {', '.join(PROGRAM_READERS)}"
        )
    return PROGRAM_READERS[suffix](path)
