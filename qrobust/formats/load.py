"""The one place that knows which reader reads which file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qrobust.errors import ModelFileError
from qrobust.formats.keras import read_keras
from qrobust.formats.native import read_native
from qrobust.formats.nnet import read_nnet
from qrobust.formats.sklearn import read_joblib, read_skops
from qrobust.network import Network

READERS: dict[str, Callable[[Path | str], Network]] = {
    ".json": read_native,
    ".keras": read_keras,
    ".nnet": read_nnet,
    ".skops": read_skops,
    ".joblib": read_joblib,
}


def load(path: Path | str, *, trust_pickle: bool = False) -> Network:
    """Read a network from a file, by the ending of its name.

    Accepts   .json (qrobust's own), .keras, .nnet, .skops; .joblib only with trust_pickle=True, since a pickle runs code
    Raises    ModelFileError, UnsupportedError, BackendUnavailableError
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".joblib" and trust_pickle:
        return read_joblib(path, trust_pickle=True)
    if suffix not in READERS:
        raise ModelFileError(f"{path} ends in {suffix or 'nothing'!r}: the formats read are {', '.join(READERS)}")
    return READERS[suffix](path)
