"""The command demo: the paper's analysis, redone with proofs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qrobust.cli import show
from qrobust.cli.arguments import Quiet, Timeout
from qrobust.search import Budget


def demo(
    output: Annotated[Path, typer.Option(help="The folder to write into.")] = Path("plots"),
    models: Annotated[Path | None, typer.Option(help="The folder with the paper's networks.")] = None,
    timeout: Timeout = 60.0,
    quiet: Quiet = False,
) -> None:
    """Redo the analysis of Murthy, Das and Islam (2019) with proofs: its table, its figures, and a report."""
    from qrobust.report.demo import STEPS, run_demo

    Budget(timeout)
    with show.Bar(STEPS, "demo", quiet=quiet) as bar:
        code = run_demo(
            output,
            models=models,
            seconds=timeout,
            progress=lambda text: bar.advance(text=text),
            say=lambda text: show.line(text, quiet=quiet),
        )
    raise typer.Exit(code)
