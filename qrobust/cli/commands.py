"""The table of commands, and the program around them: its options, its errors, its exit codes."""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
from collections.abc import Callable
from typing import Annotated, TextIO

import numpy as np
import typer

from qrobust.answers import VERSION
from qrobust.cli import show
from qrobust.cli.bits import bits
from qrobust.cli.blame import blame_command
from qrobust.cli.bnn import bnn
from qrobust.cli.bnn_bracket import bracket
from qrobust.cli.bnn_map import bnn_map
from qrobust.cli.bnn_report import report
from qrobust.cli.check import check
from qrobust.cli.compare import compare_command
from qrobust.cli.demo import demo
from qrobust.cli.doctor import doctor
from qrobust.cli.estimate import estimate
from qrobust.cli.exits import INTERNAL, INTERRUPTED, USAGE
from qrobust.cli.export import export
from qrobust.cli.logic import compile_command, count_command, explain_command
from qrobust.cli.map import map_command
from qrobust.cli.plots import plots
from qrobust.cli.replay import replay
from qrobust.cli.schemes import inspect, quantize
from qrobust.cli.signoff import signoff
from qrobust.errors import EnclosureError, QRobustError, UnsoundAnswerError

COMMANDS: dict[str, Callable[..., None]] = {
    "check": check,
    "estimate": estimate,
    "map": map_command,
    "export": export,
    "replay": replay,
    "demo": demo,
    "doctor": doctor,
    "compare": compare_command,
    "bits": bits,
    "blame": blame_command,
    "quantize": quantize,
    "inspect": inspect,
    "signoff": signoff,
}
BINARIZED: dict[str, Callable[..., None]] = {
    "report": report,
    "map": bnn_map,
    "explain": explain_command,
    "count": count_command,
    "compile": compile_command,
    "bracket": bracket,
}
GROUPS = {"bnn": bnn, "plot": plots}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Prove what quantization does to a neural network before it ships.",
)
for name, command in COMMANDS.items():
    app.command(name)(command)
for name, command in BINARIZED.items():
    bnn.command(name)(command)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"qrobust {VERSION}")
        raise typer.Exit(0)


@app.callback()
def top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Prove what quantization does to a neural network before it ships."""


def main() -> None:
    """Run the command line: our errors become one line and an exit code; bugs keep their traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with np.errstate(all="ignore"):  # what overflows in a forecast proves nothing; bounds look at their own numbers
            code = app(standalone_mode=False)
        sys.stdout.flush()
    except (UnsoundAnswerError, EnclosureError) as error:
        _fail(str(error), INTERNAL)
    except QRobustError as error:
        _fail(str(error), USAGE)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; nothing was left half-written", INTERRUPTED)
    except (BrokenPipeError, SystemExit) as error:  # whoever read has gone: no verdict was passed on, so no verdict's code
        if isinstance(error, SystemExit) and error.code != 1:  # of a signal; typer makes 1 of a broken pipe
            raise
        _close(sys.stdout)
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own usage errors
            _fail(error.format_message(), USAGE)
        if isinstance(error, OSError) and error.errno in FULL:  # of standard output or error: files have errors of their own
            _close(sys.stdout)
            _fail(f"the answer was not printed: {error.strerror}", USAGE)
        import traceback

        traceback.print_exc()
        sys.exit(INTERNAL)
    if code == INTERRUPTED:  # typer turns Ctrl-C into this code without a word
        _fail("interrupted; nothing was left half-written", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    try:
        show.error(message)
    except OSError:  # nobody can be told, and the exit code must not say VIOLATED
        _close(sys.stderr)
    sys.exit(code)


def _close(stream: TextIO) -> None:
    """Close a stream that takes no more, so that nothing flushes it again at the end."""
    with contextlib.suppress(OSError):
        stream.close()
