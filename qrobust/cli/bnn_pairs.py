"""A network and its copy, as `bnn verify --copy` names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qrobust.binarized import BinarizedNetwork, Grid
from qrobust.binarized.formats import ReadNetwork, load_binarized
from qrobust.cli.options import UsageError
from qrobust.errors import UnsupportedError
from qrobust.formats import load
from qrobust.network import Network
from qrobust.quantization import Scheme, parse_scheme

SCHEMES = ("binary", "ternary")


@dataclass(frozen=True, eq=False)
class ReadPair:
    """A network, and its copy as it was read."""

    network: BinarizedNetwork | Network
    read: ReadNetwork


def read_pair(model: Path, copy: str | None, grid: Grid | None, scheme: Scheme | None, *, is_float: bool) -> ReadPair:
    """Read both. A copy named by a scheme is made of the model's file; with `is_float` the model is compared as it is.

    Raises    UsageError, ModelFileError, UnsupportedError
    """
    if copy is None:
        raise UsageError("--float goes with --copy: name the network of signs, or binary or ternary")
    if is_float and scheme is not None:
        raise UsageError("--float compares MODEL as it is: leave --scheme out")
    if copy in SCHEMES:
        if not is_float and scheme is None:
            raise UsageError(f"--copy {copy} is made of a float network: add --float, or --scheme for what it is compared with")
        read = load_binarized(model, grid, parse_scheme(copy))
    else:
        read = load_binarized(Path(copy), grid)
    if is_float:
        network, order = load(model), np.arange(len(read.order))
        found: BinarizedNetwork | Network = network
    else:
        own = load_binarized(model, grid, scheme)
        found, order = own.network, own.order
    if len(order) == len(read.order) and not np.array_equal(order, read.order):
        raise UnsupportedError(f"{model} and {copy} take their inputs in another order: write both with one program")
    return ReadPair(found, read)
