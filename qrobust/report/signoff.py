"""Sign-off: many obligations from one plan, decided, and filed as documents that say what was proved of which bytes.

Gives     in one folder: result.json (see `result`), junit.xml, report.sarif, report.md, report.html (self-contained)
Property  the verdict of the whole is the worst of the obligations': VIOLATED, then UNKNOWN, then ROBUST. An interrupted run
          goes on from the finished answers that it kept
"""

from __future__ import annotations

import base64
import json
import os
import platform
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from qrobust.answers import VERSION, Assurance, Verdict, text_above, text_below
from qrobust.cache import ResultCache
from qrobust.errors import OutputError
from qrobust.files import write_together
from qrobust.network import Output
from qrobust.report.documents import junit, result, sarif
from qrobust.report.examples import example_text, number
from qrobust.report.findings import Finding
from qrobust.report.obligations import REAL, Desk, decide
from qrobust.report.plan import Plan

if TYPE_CHECKING:
    from jinja2 import Environment

SOLVERS = ("numpy", "z3-solver", "highspy", "python-flint")
WORST = (Verdict.VIOLATED, Verdict.UNKNOWN, Verdict.ROBUST)


@dataclass(frozen=True, eq=False)
class Signoff:
    """A plan with what came of each of its obligations, in their order."""

    plan: Plan
    findings: tuple[Finding, ...]
    started: datetime
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of any obligation."""
        found = {finding.verdict for finding in self.findings}
        return next(verdict for verdict in WORST if verdict in found)

    def count(self, verdict: Verdict) -> int:
        """Return how many obligations have a verdict."""
        return sum(finding.verdict is verdict for finding in self.findings)

    @property
    def command(self) -> str:
        """The command that makes the report again."""
        trust = " --trust-pickle" if any(each.path.suffix.lower() == ".joblib" for each in self.plan.files) else ""
        return f"qrobust signoff {shlex.quote(self.plan.source.path.as_posix())}{trust}"

    @property
    def versions(self) -> dict[str, str]:
        """What computed it."""
        return versions_of(SOLVERS)

    def relative(self, path: Path) -> str:
        """Write a path as from the plan's folder."""
        return Path(os.path.relpath(path, self.plan.source.path.parent)).as_posix()

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What a reader must grant: what the verdicts are about, then the plan's own words."""
        return (*_standing(self), *self.plan.assumptions)


def run_signoff(
    plan: Plan,
    *,
    jobs: int = 1,
    cache: ResultCache | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Signoff:
    """Decide every obligation of a plan; `progress` is told the id of each before it begins.

    Raises    PlanError where an obligation cannot be asked; what `parallel.answer_all` raises
    """
    started, clock = datetime.now(UTC), time.monotonic()
    desk, findings = Desk(plan, jobs, cache), []
    for obligation in plan.obligations:
        progress(obligation.id)
        findings.append(decide(desk, obligation))
    return Signoff(plan, tuple(findings), started, time.monotonic() - clock)


def write_signoff(signoff: Signoff, folder: Path, *, unknown_fails: bool = True) -> list[Path]:
    """Write the documents of a sign-off into a folder, all of them or none; return their paths. Raises OutputError."""
    make_folder(folder)
    content = {
        "result.json": json.dumps(result(signoff), indent=1, allow_nan=False) + "\n",
        "junit.xml": junit(signoff, unknown_fails=unknown_fails),
        "report.sarif": json.dumps(sarif(signoff), indent=1, allow_nan=False) + "\n",
        "report.md": rendered(signoff, "signoff.md.j2"),
        "report.html": rendered(signoff, "signoff.html.j2"),
    }
    write_together({folder / name: text.encode() for name, text in content.items()})
    return [folder / name for name in content]


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of qrobust, of Python and of packages."""
    found = {"qrobust": VERSION, "python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def make_folder(folder: Path) -> None:
    """Make a folder. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}") from None


def rendered(signoff: Signoff, template: str) -> str:
    """Return the report as Markdown or HTML, by the name of a template."""
    return environment(template).get_template(template).render(signoff=signoff, plan=signoff.plan, Verdict=Verdict)


def environment(template: str) -> Environment:
    """Return what renders a template: HTML is escaped, Markdown escapes itself by the filter `cell`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("qrobust.report", "templates"),
        undefined=StrictUndefined,
        autoescape=template.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "below": text_below,
        "above": text_above,
        "line": example_text,
        "picture": _picture,
        "cell": _cell,
        "number": number,
    }
    return found


def _picture(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _cell(text: str) -> str:
    """Write a text so that Markdown reads it as such, also in a cell of a table."""
    return "".join(f"\\{c}" if c in "\\`*_|<[]#" else c for c in " ".join(str(text).split()))


def _standing(signoff: Signoff) -> list[str]:
    """Return the assumptions that the obligations of a plan bring with them."""
    findings, plan = signoff.findings, signoff.plan
    kernels = sorted({f.obligation.kernels.value for f in findings if f.obligation.program is not None})
    places = [f.obligation.where for f in findings if f.obligation.where is not None]
    said = []
    if any(f.semantics == REAL for f in findings):
        said.append(
            "Real-valued: such an answer is about the real-valued function of the stored numbers; what a float program rounds"
            " on the way is not in it."
        )
    if kernels:
        what = {
            "reference": "TFLite's reference kernels, bit for bit",
            "xnnpack": "XNNPACK's kernels, bit for bit",
            "onnxruntime": "onnxruntime's integer kernels, bit for bit",
            "any-kernel": "any kernels whose every result is a right rounding or off from it by one",
        }
        said.append(
            f"Integer programs run with {'; '.join(what[name] for name in kernels)}. Other kernels may answer otherwise."
        )
        said.append(
            "A real input becomes integers as the program's runtime rounds it, and is cut off at the ends of their range."
        )
    if any(f.obligation.program is not None and not f.rows_are_data for f in findings):
        said.append("A program over a domain is asked about every integer input that means a point of the domain.")
    if any(f.rows_are_data for f in findings):
        said.append("What is said of a data set is said of its rows, and of no other input.")
    said += [
        f"The data set {p.name!r} was drawn at random with seed {p.seed}." for p in dict.fromkeys(places) if p.seed is not None
    ]
    if any(f.assurance is Assurance.TRUSTED for f in findings):
        said.append("Where the assurance is trusted, an external solver's word is all that stands behind it.")
    rule = f"class 1 where the confidence is above {plan.level}, else class 0"
    if plan.network.output is Output.SOFTMAX:
        rule = "the class of greatest confidence, the first of them on a tie"
    said.append(f"A label is {rule}.")
    return said
