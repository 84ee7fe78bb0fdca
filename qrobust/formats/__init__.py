"""One reader, and where needed a writer, per file format: Network in, Network out, or an integer program."""

from qrobust.formats.load import load, load_program, save
from qrobust.formats.sklearn import from_sklearn
from qrobust.formats.torch import from_torch

__all__ = ["from_sklearn", "from_torch", "load", "load_program", "save"]
