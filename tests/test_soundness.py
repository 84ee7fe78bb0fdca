"""Do the rounding kernels enclose the exact result, tightly, and would these tests notice if one did not?

`kernels` has the cases and the oracle. Broken copies of each kernel (its slack deleted, its rounding deleted or turned
inward, a sign flipped) must be caught on the same cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from flint import arb, ctx

from qrobust import interval
from qrobust.interval import Ends, FloatArray, Interval
from tests.kernels import BITS, KERNELS, above, affine_cases, affine_distance, affine_ranges, below, logistic, sorted_pair


@pytest.mark.parametrize("name", KERNELS)
def test_encloses(name: str) -> None:
    assert KERNELS[name].faults() == []


@pytest.mark.parametrize("name", KERNELS)
def test_is_tight(name: str) -> None:
    assert KERNELS[name].looseness() == []


def unchanged(values: FloatArray) -> FloatArray:
    return values


def other_part(values: FloatArray, sign: int) -> FloatArray:
    return np.minimum(values, 0.0) if sign > 0 else np.maximum(values, 0.0)


NO_ROUNDING: dict[str, object] = {"down": unchanged, "up": unchanged}
NO_SLACK: dict[str, object] = {"UNIT": 0.0, "TINY": 0.0, "EXP_ERROR": 0.0}
BREAKAGES: dict[str, dict[str, object]] = {
    "rounding deleted": NO_ROUNDING,
    "rounding turned inward": {"down": interval.up, "up": interval.down},
    "slack deleted": NO_SLACK,
    "slack and rounding deleted": NO_ROUNDING | NO_SLACK,
    "slack flipped": {"UNIT": -interval.UNIT, "EXP_ERROR": -interval.EXP_ERROR},
    "underflow forgotten": {"TINY": 0.0},
    "a sign flipped": {"_part": other_part},
    "ln 2 cut short": {"_LN2_TAIL": 0.0},
    "Taylor's polynomial cut short": {"_TAYLOR": (*interval._TAYLOR[:11], 0.0, 0.0, 0.0)},
}
# Slack alone covers the last rounding of sums of products and of exp, so there rounding is deleted together with it.
CAUGHT = [
    *product(("+", "-", "*"), ("rounding deleted", "rounding turned inward")),
    *product(("total",), ("slack deleted", "slack and rounding deleted", "slack flipped")),
    *product(("affine",), ("slack deleted", "slack and rounding deleted", "slack flipped")),
    *product(("affine",), ("underflow forgotten", "a sign flipped")),
    *product(("exp", "sigmoid", "tanh"), ("slack deleted", "slack and rounding deleted", "slack flipped")),
    *product(("softmax",), ("slack and rounding deleted", "slack flipped")),
    *product(("exp", "sigmoid", "tanh", "softmax"), ("ln 2 cut short", "Taylor's polynomial cut short")),
]


@pytest.mark.parametrize(("name", "breakage"), CAUGHT)
def test_a_broken_copy_is_caught(name: str, breakage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for attribute, value in BREAKAGES[breakage].items():
        monkeypatch.setattr(interval, attribute, value)
    assert len(KERNELS[name].faults()) > 0


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("-", lambda a, b: a + b),
        ("-", lambda a, b: Interval(a.lower - b.lower, np.maximum(a.upper - b.upper, a.lower - b.lower))),
        ("*", lambda a, b: Interval(np.minimum(a.lower * b.lower, a.upper * b.upper), np.full(a.shape, np.inf))),
        ("magnitude", lambda x: sorted_pair(np.abs(x.lower), np.abs(x.upper))),
        ("relu", lambda x: x),
        ("affine", lambda w, x, b: interval.affine(w, x, -b)),
        ("affine", lambda w, x, b: interval.affine(w, interval.magnitude(x), b)),
        ("softmax", lambda x: interval.softmax(Interval.point(x.middle))),
    ],
)
def test_a_wrong_formula_is_caught(name: str, broken: Callable[..., Interval]) -> None:
    assert len(replace(KERNELS[name], enclose=broken).faults()) > 0


def inner_faults(bend: bool) -> list[str]:
    """Return where affine_inner reaches beyond the exact range of x @ weight.T + bias; bent ends lie further in."""
    found = []
    for number, (weight, x, bias) in enumerate(affine_cases()):
        least, greatest = (np.nextafter(a, b) if bend else a for a, b in ((x.lower, np.inf), (x.upper, -np.inf)))
        result = interval.affine_inner(Ends(weight.lower, weight.upper), Ends(least, greatest), Ends(bias.lower, bias.upper))
        pairs = zip(result.least.ravel().tolist(), result.greatest.ravel().tolist(), strict=True)
        for (low, high), (exact_low, exact_high) in zip(pairs, affine_ranges(weight, x, bias), strict=True):
            if below(low, exact_low) or above(high, exact_high):
                found.append(f"case {number}: {low!r} and {high!r} are not inside [{exact_low}, {exact_high}]")
    return found


@pytest.mark.parametrize("bend", [False, True])
def test_inner_ends_lie_inside(bend: bool) -> None:
    assert inner_faults(bend) == []


def test_inner_ends_are_tight() -> None:
    loose = []
    for weight, x, bias in affine_cases():
        arguments = [Ends(each.lower, each.upper) for each in (weight, x, bias)]
        result = interval.affine_inner(*arguments)
        pairs = zip(result.least.ravel().tolist(), result.greatest.ravel().tolist(), strict=True)
        entries = zip(pairs, affine_ranges(weight, x, bias), affine_distance(weight, x, bias), strict=True)
        loose += [
            (low, high)
            for (low, high), (least, greatest), (span, _) in entries
            if above(low, least + span) or below(high, greatest - span)
        ]
    assert loose == []


@pytest.mark.parametrize("breakage", ["slack deleted", "slack flipped", "underflow forgotten"])
def test_broken_inner_ends_are_caught(breakage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for attribute, value in BREAKAGES[breakage].items():
        monkeypatch.setattr(interval, attribute, value)
    with np.errstate(all="ignore"):
        assert len(inner_faults(False)) > 0


def test_the_oracle_separates_neighbouring_floats() -> None:
    with ctx.workprec(BITS):
        assert not above(1.0, logistic(arb(700)))  # equal to 1 as far as 200 bits see, so not certainly above
        assert above(math.nextafter(0.5, 1.0), logistic(arb(0)))
        assert below(math.nextafter(0.5, 0.0), logistic(arb(0)))
