"""One reader, and where needed a writer, per file format: Network in, Network out."""

from qrobust.formats.load import load, save

__all__ = ["load", "save"]
