"""The command signoff: many obligations from a plan, decided, and filed as a report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qrobust.answers import Verdict
from qrobust.cache import ResultCache
from qrobust.cli import show
from qrobust.cli.arguments import Jobs, Json, Quiet, TrustPickle
from qrobust.cli.exits import FailOn, exit_code
from qrobust.report.examples import example_text

if TYPE_CHECKING:
    from qrobust.report.signoff import Signoff


def signoff(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A TOML file: the head of qrobust/report/plan.py describes it.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the report goes.")] = Path("signoff"),
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="FOLDER", help="Where finished answers are kept. Default: cache in the report's folder."
        ),
    ] = None,
    jobs: Jobs = 1,
    fail_on: Annotated[FailOn, typer.Option(help="Which verdicts give a non-zero exit code.")] = FailOn.UNKNOWN,
    json: Json = False,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Decide every obligation of a plan and write a report: result.json, JUnit XML, SARIF, Markdown and one HTML page.

    Exit code 0 if all are robust, 1 if one is violated, 3 if one is unknown. An interrupted run continues where it stopped.

    \b
    qrobust signoff models/signoff/athletes_int8.toml --out report
    """
    from qrobust.report.documents import result
    from qrobust.report.plan import read_plan
    from qrobust.report.signoff import make_folder, run_signoff, write_signoff

    read = read_plan(plan, trust_pickle=trust_pickle)
    make_folder(out)
    kept = ResultCache(cache or out / "cache", show.warning)
    with show.Bar(len(read.obligations), "obligations", quiet=quiet or json) as bar:
        found = run_signoff(read, jobs=jobs, cache=kept, progress=lambda name: bar.advance(text=name))
    written = write_signoff(found, out, unknown_fails=fail_on is FailOn.UNKNOWN)
    if json:
        show.document(result(found))
    else:
        for text in _lines(found):
            show.line(text, quiet=quiet)
        names = ", ".join(path.name for path in written)
        show.line(f"Wrote {names} into {out}.", quiet=quiet)
    raise typer.Exit(exit_code(found.verdict, fail_on))


def _lines(found: Signoff) -> Iterator[str]:
    """Say what came of each obligation, with its first counterexample, then of all."""
    for finding in found.findings:
        counts = f" ({finding.counts})" if finding.counts is not None else ""
        checked = f", {finding.assurance.name.lower()}" if finding.assurance is not None else ""
        said = f"{finding.verdict.value}: {finding.obligation.id}: {finding.obligation.text}{counts}."
        yield f"{said} [{finding.semantics}{checked}, {finding.seconds:.3g} s]"
        yield from (f"  {text}" for text in (finding.reason, *map(example_text, finding.examples[:1])) if text)
    counted = ", ".join(f"{found.count(verdict)} {verdict.value}" for verdict in Verdict)
    yield f"{found.verdict.value}: {found.plan.title}: {counted}. [{found.seconds:.3g} s]"
