"""One reader, and where needed a writer, per file format: Network in, Network out, or an integer program."""

from qrobust.formats.load import load, load_program, save

__all__ = ["load", "load_program", "save"]
