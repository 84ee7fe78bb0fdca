"""Number formats and schemes: step sizes, quantized copies, and the boxes around the stored network."""

from qrobust.quantization.audit import Outside, Stored, outside, stored_arrays
from qrobust.quantization.grids import Overflow, RoundingMode
from qrobust.quantization.mixed import PerLayerScheme
from qrobust.quantization.programs import box_for_program, dequantized
from qrobust.quantization.schemes import (
    DYNAMIC_RANGE,
    Bias,
    Binary,
    CodePoints,
    FixedPoint,
    FloatFormat,
    FloatingPoint,
    Integer,
    OneFormat,
    PowersOfTwo,
    ScaleType,
    Scheme,
    Ternary,
)
from qrobust.quantization.text import parse_format, parse_scheme

__all__ = [
    "DYNAMIC_RANGE",
    "Bias",
    "Binary",
    "CodePoints",
    "FixedPoint",
    "FloatFormat",
    "FloatingPoint",
    "Integer",
    "OneFormat",
    "Outside",
    "Overflow",
    "PerLayerScheme",
    "PowersOfTwo",
    "RoundingMode",
    "ScaleType",
    "Scheme",
    "Stored",
    "Ternary",
    "box_for_program",
    "dequantized",
    "outside",
    "parse_format",
    "parse_scheme",
    "stored_arrays",
]
