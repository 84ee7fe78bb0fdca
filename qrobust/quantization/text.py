"""Schemes as text, as the command line and TOML files name them: a head and options, as in int8-per-channel-bias-same; one a
layer with `/` between them, as in int8/int4/float.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from qrobust.errors import NumberError
from qrobust.quantization.grids import Overflow, RoundingMode
from qrobust.quantization.mixed import SEPARATOR, STORED, PerLayerScheme
from qrobust.quantization.schemes import (
    NAMES,
    Bias,
    Binary,
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

KNOWN = (
    "int8 (or int2 to int32), fp16, bf16, fp8-e4m3, fp8-e5m2, q3.4 (a sign, 3 bits, the point, 4 bits), pow2, ternary, binary,"
    " tflite-dynamic-range"
)
WORDS: dict[str, tuple[str, Any]] = {
    "asymmetric": ("symmetric", False),
    "per-channel": ("per_channel", True),
    **{mode.value: ("mode", mode) for mode in RoundingMode},
    **{overflow.value: ("overflow", overflow) for overflow in Overflow},
    **{scale.value: ("scale", scale) for scale in ScaleType},
    **{bias.value: ("bias", bias) for bias in Bias},
}
COUNTED = {"block": "block", "fewest": "fewest", "bits": "bits"}
OPTION = re.compile(rf"-(?:({'|'.join(WORDS)})|({'|'.join(COUNTED)})([0-9]{{1,9}}))(?=-|$)")
HEADS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], tuple[type[OneFormat], dict[str, Any]]]], ...] = (
    (re.compile(r"int([0-9]{1,3})"), lambda m: (Integer, {"bits": int(m[1])})),
    (
        re.compile("|".join(kind.value[0] for kind in FloatFormat)),
        lambda m: (FloatingPoint, {"format": next(kind for kind in FloatFormat if kind.value[0] == m[0])}),
    ),
    (
        re.compile(r"q([0-9]{1,3})\.([0-9]{1,3})"),
        lambda m: (FixedPoint, {"integer_bits": int(m[1]), "fraction_bits": int(m[2])}),
    ),
    (re.compile("pow2"), lambda m: (PowersOfTwo, {})),
    (re.compile("ternary"), lambda m: (Ternary, {})),
    (re.compile("binary"), lambda m: (Binary, {})),
)


def parse_scheme(text: str) -> Scheme:
    """Return the scheme that a text names; `str` gives a text back that names the same.

    Raises    NumberError in one line that says what is known

    int4-block32, int8-asymmetric, int8-per-channel-half-away, int8-bias-int32@0.0039,0.02, fp16-saturate, q3.4-floor-wrap,
    int8/int4/float
    """
    text = text.strip().lower()
    if SEPARATOR in text:
        words = [word.strip() for word in text.split(SEPARATOR)]
        return PerLayerScheme(tuple(None if word == STORED else parse_format(word) for word in words))
    return parse_format(text)


def parse_format(text: str) -> OneFormat:
    """Return the one format that a text names. Raises NumberError."""
    for scheme, name in NAMES.items():
        if text == name:
            return scheme
    for pattern, read in HEADS:
        match = pattern.match(text)
        if match and text[match.end() : match.end() + 1] in ("", "-", "@"):
            kind, given = read(match)
            return kind(**given, **_options(text, text[match.end() :], kind, set(given)))
    raise NumberError(f"the scheme {text!r:.60} is not known: {KNOWN}")


def _options(text: str, rest: str, kind: type[OneFormat], taken: set[str]) -> dict[str, Any]:
    rest, _, steps = rest.partition("@")
    accepted = {field.name for field in fields(kind)} - taken  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    while rest:
        match = OPTION.match(rest)
        name, value = WORDS[match[1]] if match and match[1] else (COUNTED[match[2]], int(match[3])) if match else ("", None)
        if match is None or name not in accepted:
            options = [word for word, (field, _) in WORDS.items() if field in accepted]
            options += [f"{word}N" for word, field in COUNTED.items() if field in accepted]
            raise NumberError(
                f"{rest[1:]!r:.40} in the scheme {text!r:.60} is not known: after the format, {', '.join(options)}"
            )
        if name in found:
            raise NumberError(f"the scheme {text!r:.60} says twice what its {name.replace('_', ' ')} is: leave one out")
        found[name] = value
        rest = rest[match.end() :]
    if steps and "input_steps" not in accepted:
        raise NumberError(f"the scheme {text!r:.60} takes no input steps: leave out @ and what follows")
    if steps:
        found["input_steps"] = _steps(text, steps)
    return found


def _steps(text: str, steps: str) -> tuple[float, ...]:
    try:
        return tuple(float(step) for step in steps.split(","))
    except ValueError:
        raise NumberError(
            f"the input steps in the scheme {text!r:.60} are no numbers: write for example @0.0039,0.02"
        ) from None
