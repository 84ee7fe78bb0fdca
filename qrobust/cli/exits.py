"""Exit codes: what a verdict, a fault or an interruption gives."""

from __future__ import annotations

from enum import StrEnum

from qrobust.answers import Verdict

EXIT = {Verdict.ROBUST: 0, Verdict.VIOLATED: 1, Verdict.UNKNOWN: 3}
USAGE, INTERNAL, INTERRUPTED = 2, 4, 130


class FailOn(StrEnum):
    """Which verdicts fail."""

    UNKNOWN = "unknown"
    VIOLATED = "violated"


def exit_code(verdict: Verdict, fail_on: FailOn) -> int:
    """Return the exit code of a verdict: 0 for an unknown one if only violations fail."""
    return 0 if verdict is Verdict.UNKNOWN and fail_on is FailOn.VIOLATED else EXIT[verdict]
