"""What is explained, counted or compiled: a binarized network, or a bracket, whose inputs are features in their own units."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from qrobust.binarized import Ball, BinarizedNetwork, Norm
from qrobust.binarized.bracket import Bracket
from qrobust.binarized.bracket_codes import over_codes, range_name, whole
from qrobust.binarized.bracket_files import SECTION, load_bracket
from qrobust.binarized.formats import load_binarized
from qrobust.binarized.formats.native import read_section
from qrobust.binarized.network import Grid
from qrobust.binarized.queries import Levels
from qrobust.binarized.thermometer import Thermometer
from qrobust.cli.bnn import named_point, point_values
from qrobust.cli.options import UsageError
from qrobust.errors import DomainError, ShapeError, UnsupportedError
from qrobust.exact import to_fraction
from qrobust.interval import FloatArray, down, round_fraction_up, up
from qrobust.layers import IntArray
from qrobust.logic.pictures import named
from qrobust.network import Feature

NATIVE = (".json", ".npz")  # that can hold a bracket


@dataclass(frozen=True, eq=False)
class About:
    """The features' names and units, the input as the user gave it, and a bracket's code, whose levels are explained.

    Shapes    shown (features,)
    """

    features: tuple[Feature, ...]
    shown: FloatArray
    code: Thermometer | None = None

    def words(self, place: int, lower: IntArray | None = None, upper: IntArray | None = None) -> str:
        """Name a feature; of a bracket, with the values that its levels from `lower` to `upper` stand for."""
        if self.code is None or lower is None or upper is None:
            return self.features[place].name
        return range_name(self.code, place, int(lower[place]), int(upper[place]))


@dataclass(frozen=True, eq=False)
class Reasoned:
    """A network of signs, its inputs' names, where its inputs range (everywhere, if None), and an input if one was named.

    Shapes    inputs, shown (features,): what the network takes, and what the user gave
    """

    network: BinarizedNetwork
    features: tuple[Feature, ...]
    where: Ball | Levels | None
    inputs: FloatArray | None
    shown: FloatArray | None
    code: Thermometer | None = None

    @property
    def given(self) -> tuple[FloatArray, About]:
        """The input, and what is said about it. Raises UsageError if none was named."""
        if self.inputs is None or self.shown is None:
            raise UsageError("say which input: give --input")
        return self.inputs, About(self.features, self.shown, self.code)


def read_reasoned(
    model: Path, grid: Grid | None, given: str | None, row: int, eps: str | None, norm: Norm = Norm.LINF
) -> Reasoned:
    """Read a model and, where named, an input and the ball about it; a bracket's in its features' units.

    Raises    UsageError, ShapeError, DomainError, UnsupportedError and what reading raises
    """
    radius = None if eps is None else to_fraction(eps)
    if radius is not None and radius < 0:
        raise DomainError(f"--eps is {eps}, a radius must not be negative: give 0 or more")
    if model.suffix.lower() in NATIVE and read_section(model, SECTION) is not None:
        if grid is not None:
            raise UsageError("a bracket says itself what its inputs are: leave --step and --range out")
        return _of_bracket(load_bracket(model), None if given is None else point_values(given, row), radius, norm)
    read = load_binarized(model, grid)
    inputs = None if given is None else named_point(given, row, read)
    where = None if inputs is None or radius is None else Ball(inputs, radius, norm)
    ends = (float(read.network.grid.lower), float(read.network.grid.upper))
    return Reasoned(read.network, named((), read.network.inputs, ends), where, inputs, inputs)


def _of_bracket(pair: Bracket, values: FloatArray | None, radius: Fraction | None, norm: Norm) -> Reasoned:
    code = pair.code
    if values is not None and len(values) not in (code.box.inputs, code.bits):
        raise ShapeError(
            f"an input has {len(values)} numbers, the bracket takes {code.box.inputs} features or {code.bits} bits"
        )
    if values is not None and len(values) == code.bits != code.box.inputs:
        where = None if radius is None else Ball(values, radius, norm)
        return Reasoned(pair.network, tuple(Feature(name) for name in code.bit_names), where, values, values)
    if norm is not Norm.LINF and radius is not None:
        raise UnsupportedError("a bracket's features have units of their own, which only an linf ball keeps apart: drop --norm")
    network, everywhere = over_codes(pair), whole(code)
    if values is None:
        return Reasoned(network, code.features, everywhere, None, None, code)
    code.check_inside(values[None])
    own = code.codes(values[None])[0]
    lower, upper = everywhere.lower, everywhere.upper
    if radius is not None:
        reach = round_fraction_up(radius)
        ends = np.stack([np.maximum(down(values - reach), code.box.lower), np.minimum(up(values + reach), code.box.upper)])
        lower, upper = code.codes(ends)
    return Reasoned(network, code.features, Levels(lower, upper, own), own.astype(np.float64), values, code)
