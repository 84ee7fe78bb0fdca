"""One reader, and where needed a writer, per file format of binarized networks."""

from qrobust.binarized.formats.keras_write import keras_layers
from qrobust.binarized.formats.load import load_binarized, save_binarized
from qrobust.binarized.formats.parts import ReadNetwork
from qrobust.binarized.formats.vnnlib import VnnLibQuery, read_vnnlib

__all__ = ["ReadNetwork", "VnnLibQuery", "keras_layers", "load_binarized", "read_vnnlib", "save_binarized"]
