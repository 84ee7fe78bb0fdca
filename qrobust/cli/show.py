"""How the command line shows answers, progress and errors."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qrobust.report.examples import counterexample_text as counterexample_text

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and line breaks


def harmless(text: str) -> str:
    """Return text that commands no terminal: names come out of files that anyone may have made."""
    return CONTROLS.sub("?", text)


def counted(count: int, noun: str) -> str:
    """Return a number and a noun, as in "1 step" and "2,000 steps"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def line(text: str, *, quiet: bool = False) -> None:
    """Print one line unless told to be quiet."""
    if not quiet:
        print(harmless(text))


def error(text: str) -> None:
    """Print one line on standard error, at once: why there is no answer."""
    print("error: " + harmless(" ".join(text.split())), file=sys.stderr, flush=True)


def warning(text: str) -> None:
    """Print one line on standard error: something is amiss that spoils no answer."""
    print("warning: " + harmless(" ".join(text.split())), file=sys.stderr)


def progress(text: str) -> None:
    """Print how far a long work has come, on standard error."""
    print(harmless(text), file=sys.stderr)


def document(value: Any) -> None:
    """Print JSON."""
    print(json.dumps(value, indent=1, allow_nan=False))


@contextmanager
def waiting(text: str, *, quiet: bool) -> Iterator[None]:
    """Show a spinner with the seconds so far, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(text, total=None)
        yield


class Bar:
    """A progress bar on a terminal, a line each tenth of the way elsewhere, nothing if quiet."""

    def __init__(self, total: int, text: str, *, quiet: bool) -> None:
        self._total, self._done, self._tenth, self._quiet = max(total, 1), 0, 0, quiet
        self._text = text
        self._progress: Any = None
        self._task: Any = None
        if not quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task(text, total=total)

    def __enter__(self) -> Bar:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self, count: int = 1, text: str | None = None) -> None:
        """Note that `count` more are done."""
        self._done += count
        if self._progress is not None:
            self._progress.update(self._task, advance=count, description=text or self._text)
            return
        tenth = 10 * self._done // self._total
        if not self._quiet and tenth > self._tenth:
            self._tenth = tenth
            print(f"{text or self._text}: {self._done} of {self._total}", file=sys.stderr)
