"""TOML tables with known keys, each fault of which names the file, the line and the key."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from qrobust.errors import NumberError, PlanError
from qrobust.exact import to_fraction
from qrobust.files import check_no_stream
from qrobust.formats.untrusted import one_line

MOST_BYTES, MOST_LINES = 200_000, 4_000
Keys = tuple[str | int, ...]


class Source:
    """The text of a TOML file, where the line of each key can be looked up.

    Raises    PlanError if the file is missing, too large, or no TOML
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_no_stream(path, PlanError)
        try:
            with path.open("rb") as file:
                self.content = file.read(MOST_BYTES + 1)
            text = self.content.decode("utf-8")
        except FileNotFoundError:
            raise PlanError(f"{path} does not exist: check the path") from None
        except UnicodeDecodeError:
            raise PlanError(f"{path} is not text in UTF-8") from None
        except OSError as error:
            raise PlanError(f"{path} cannot be read: {error.strerror}") from None
        self._lines = text.split("\n")
        if len(self.content) > MOST_BYTES or len(self._lines) > MOST_LINES:
            raise PlanError(f"{path} has more than {MOST_BYTES:,} bytes or {MOST_LINES:,} lines: split the plan")
        try:
            self.values = tomllib.loads(text)
        except ValueError as error:  # no TOML, or a whole number of more digits than Python reads
            raise PlanError(f"{path} is not TOML: {one_line(str(error))}") from None
        except RecursionError:
            raise PlanError(f"{path} is not a plan: its values are nested too deep") from None
        self._parsed: dict[int, Any] = {len(self._lines): self.values}

    def line(self, keys: Keys) -> int:
        """Return the line at which a key, or the table that it names, begins; 1 if there is none.

        Method    bisection over beginnings of the file: those that parse and hold the key reach beyond its line
        """
        low, high = 1, len(self._lines)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if _holds(self._beginning(middle), keys) else (middle + 1, high)
        return low if _holds(self.values, keys) else 1

    def _beginning(self, count: int) -> Any:
        """Parse the first lines, and as many more as the value takes that they cut through."""
        end = count
        while end not in self._parsed:
            try:
                self._parsed[end] = tomllib.loads("\n".join(self._lines[:end]))
            except tomllib.TOMLDecodeError:
                end += 1
        for through in range(count, end):
            self._parsed[through] = self._parsed[end]
        return self._parsed[end]

    def fault(self, keys: Keys, message: str) -> PlanError:
        """Return the error that says what is wrong with a key."""
        return PlanError(f"{self.path}, line {self.line(keys)}, {_name(keys)}: {message}")


def _holds(value: Any, keys: Keys) -> bool:
    for key in keys:
        try:
            value = value[key]
        except (LookupError, TypeError):
            return False
    return True


def _name(keys: Keys) -> str:
    """Write a path of keys as in obligations[2].eps, places counted from 1."""
    text = ""
    for key in keys:
        text += f"[{key + 1}]" if isinstance(key, int) else f"{'.' if text else ''}{key}"
    return one_line(text) or "the plan"


class Table:
    """One table of a plan. Raises PlanError at once for keys that are not among the known ones."""

    def __init__(self, source: Source, keys: Keys, values: Any, known: Sequence[str]) -> None:
        self.source, self.keys = source, keys
        if not isinstance(values, dict):
            raise source.fault(keys, f"is {_kind(values)}, it must be a table of {', '.join(known)}")
        self.values: dict[str, Any] = values
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                meant = f"did you mean {close[0]!r}?" if close else f"the keys known here are {', '.join(known)}"
                raise self.fault(key, f"the key {one_line(repr(key), 60)} is unknown: {meant}")

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def fault(self, key: str | None, message: str) -> PlanError:
        """Return the error about one key, or about the table itself (None)."""
        return self.source.fault(self.keys if key is None else (*self.keys, key), message)

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text that is not empty; without a default it is required."""
        if key not in self.values and default is not None:
            return default
        value = self._required(key)
        if not isinstance(value, str) or not value.strip():
            raise self.fault(key, f"is {_kind(value)}, it must be a text")
        return value

    def choice(self, key: str, choices: Sequence[str], default: str | None = None) -> str:
        """Return one of a few words."""
        value = self.text(key, default)
        if value not in choices:
            raise self.fault(key, f"is {one_line(repr(value), 60)}, it must be one of {', '.join(choices)}")
        return value

    def number(self, key: str, default: Fraction | None = None) -> Fraction:
        """Return a number exactly as it is written: 0.1, 1 or "1/3"."""
        if key not in self.values and default is not None:
            return default
        value = self._required(key)
        return self.fraction(key, value)

    def fraction(self, key: str, value: Any) -> Fraction:
        """Return a value of a key as a number. Raises PlanError if it is none."""
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise self.fault(key, f"is {_kind(value)}, it must be a number")
        try:
            exact = to_fraction(value if isinstance(value, str) else repr(value))
            float(exact)
        except (NumberError, OverflowError, ValueError):
            raise self.fault(key, f"is {one_line(repr(value), 60)}, it must be a number such as 0.01") from None
        return exact

    def whole(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """Return a whole number within limits."""
        value = default if key not in self.values and default is not None else self._required(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.fault(key, f"is {one_line(repr(value), 60)}, it must be a whole number from {least} to {most:,}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts; none if the key is absent."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) and each.strip() for each in value):
            raise self.fault(key, "must be a list of texts")
        return tuple(value)

    def tables(self, key: str) -> dict[str, Any]:
        """Return named tables or values; none if the key is absent."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.fault(key, f"is {_kind(value)}, it must be a table")
        return value

    def one_of(self, keys: Sequence[str], what: str) -> str:
        """Return which one of several keys is there. Raises PlanError if none or more than one is."""
        found = [key for key in keys if key in self.values]
        if len(found) == 1:
            return found[0]
        if not found:
            raise self.fault(None, f"say {what}: give {' or '.join(keys)}")
        raise self.fault(found[1], f"{found[0]} and {found[1]} do not go together: leave one out")

    def _required(self, key: str) -> Any:
        if key not in self.values:
            raise self.fault(None, f"the key {key!r} is missing")
        return self.values[key]


def _kind(value: Any) -> str:
    names = {dict: "a table", list: "a list", bool: "true or false", int: "a number", float: "a number", str: "a text"}
    kind = names.get(type(value), "a date or time")
    return "an empty text" if value == "" else kind
