"""The analysis of Murthy, Das and Islam (2019) redone with proofs: their table, their figures, and a report on both."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qrobust.answers import VERSION, Estimate, text_above, text_below
from qrobust.bounds.local import Status
from qrobust.domains import InputBox, ParameterBox
from qrobust.errors import ModelFileError, OutputError
from qrobust.files import write_whole
from qrobust.formats import load
from qrobust.maps import Quantity, RobustnessMap, random_points, robustness_map
from qrobust.network import Network
from qrobust.perturbations import Absolute
from qrobust.plotting import SigmaLines, new_figure, panel, save_figure
from qrobust.queries import GlobalEpsilon, SigmaEstimate
from qrobust.search import Budget
from qrobust.solve import Session

Progress = Callable[[str], None]

DELTAS = (0.005, 0.01)
POINTS = 1000
SEED = 0
DIGITS = 1e-4  # the paper prints four digits or more, some of them cut off rather than rounded


@dataclass(frozen=True)
class Subject:
    """One network of the paper: its file, the figure that shows it, and what the paper prints of it.

    `printed` maps (delta, label) to Table 1's number, label None for eps; what the project has no source for is left out.
    """

    name: str
    file: str
    figure: str
    printed: dict[tuple[float, int | None], float]
    same_weights: bool


SUBJECTS = (
    Subject(
        "CAT",
        "cat_paper.json",
        "figure6_cat",
        {
            (0.005, None): 0.00691,
            (0.01, None): 0.05054,
            (0.005, 1): 0.0243,
            (0.005, 0): 0.0213,
            (0.01, 1): 0.0522,
            (0.01, 0): 0.0401,
        },
        same_weights=True,
    ),
    Subject(
        "ATH-ReLU",
        "ath_relu.json",
        "figure7_ath_relu",
        {(0.005, 1): 0.082, (0.005, 0): 0.076, (0.01, 1): 0.165, (0.01, 0): 0.144},
        same_weights=False,
    ),
    Subject("ATH-Linear", "ath_linear.json", "figure8_ath_linear", {(0.01, None): 0.219}, same_weights=False),
)


STEPS = len(SUBJECTS) * (5 * len(DELTAS) + 1)


@dataclass(frozen=True)
class Row:
    """One estimate beside the number that the paper prints."""

    subject: Subject
    delta: float
    label: int | None
    estimate: Estimate

    @property
    def printed(self) -> float | None:
        return self.subject.printed.get((self.delta, self.label))

    @property
    def quantity(self) -> str:
        return "eps" if self.label is None else "sigma"

    @property
    def class_name(self) -> str | None:
        return None if self.label is None else self.estimate.query.network.class_name(self.label)

    @property
    def where(self) -> str:
        """The witness's input, in words."""
        if self.estimate.witness is None:
            return "no witness: no label changes"
        network = self.estimate.query.network
        units = [f.unit for f in network.features] or [""] * network.inputs
        values = zip(self.estimate.witness.x, units, strict=True)
        parts = (f"{network.feature_name(i)} {float(v):.6g} {unit}".rstrip() for i, (v, unit) in enumerate(values))
        return ", ".join(parts)

    @property
    def remark(self) -> str:
        """Say how the paper's number compares."""
        estimate, printed = self.estimate, self.printed
        if not self.subject.same_weights:
            return "trained afresh, so the paper's number need not be met"
        if printed is None:
            return ""
        if printed < estimate.lower - DIGITS:
            return f"refuted: a witness attains {text_below(estimate.lower, 5)}, over {estimate.lower / printed:.1f} times that"
        if printed > estimate.upper + DIGITS:
            return f"refuted: no more than {text_above(estimate.upper, 5)} is possible"
        return "agrees to the digits printed"

    def to_json(self) -> dict[str, Any]:
        """Return the row for table1.json."""
        estimate = self.estimate
        return {
            "model": self.subject.name,
            "delta": self.delta,
            "quantity": self.quantity,
            "class": self.label,
            "class_name": self.class_name,
            "lower": estimate.lower,
            "upper": estimate.upper,
            "printed": self.printed,
            "witness": estimate.witness.to_json() if estimate.witness else None,
            "backend": estimate.backend,
            "seconds": estimate.seconds,
            "assurance": estimate.assurance.name,
            "remark": self.remark,
            "network_sha256": estimate.query.network.sha256,
            "domain": estimate.query.domain.to_json(),
            "qrobust": VERSION,
        }


def find_models(models: Path | None) -> Path:
    """Return the folder with the demo's networks. Raises ModelFileError if it cannot be found."""
    folder = models or Path(__file__).resolve().parents[2] / "models"
    missing = [s.file for s in SUBJECTS if not (folder / s.file).is_file()]
    if missing:
        raise ModelFileError(f"{folder} has no {missing[0]}: run the demo from a checkout, or name its models with --models")
    return folder


def run_demo(
    output: Path,
    *,
    models: Path | None = None,
    seconds: float = 60.0,
    progress: Progress = lambda _: None,
    say: Callable[[str], None] = print,
) -> int:
    """Recompute Table 1, redraw figures 6 to 8, write table1.json and REPORT.md into `output`; return an exit code.

    Accepts   seconds: the limit of each estimate
    Raises    ModelFileError, OutputError
    """
    started = time.monotonic()
    folder = find_models(models)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output} cannot be made: {error.strerror}") from None
    networks = [load(folder / subject.file) for subject in SUBJECTS]
    session, rows = Session(), []
    for subject, network in zip(SUBJECTS, networks, strict=True):
        rows += _table(subject, network, session, seconds, progress)
    maps: list[RobustnessMap] = []
    for subject, network in zip(SUBJECTS, networks, strict=True):
        maps += _figure(subject, network, rows, output, progress)
    table = json.dumps([row.to_json() for row in rows], indent=1, allow_nan=False)
    write_whole(output / "table1.json", table.encode())
    spent = time.monotonic() - started
    write_whole(output / "REPORT.md", report(rows, maps, spent).encode())
    say(_summary(rows))
    say(f"Wrote {output / 'table1.json'}, {output / 'REPORT.md'} and figures 6 to 8 in {spent:.1f} s.")
    return 0


def _table(subject: Subject, network: Network, session: Session, seconds: float, progress: Progress) -> list[Row]:
    rows, domain, budget = [], InputBox.of_features(network), Budget(seconds)
    for delta in DELTAS:
        parameters = Absolute(delta).around(network)
        queries = [(None, GlobalEpsilon(network, parameters, domain))]
        queries += [(label, SigmaEstimate(network, parameters, domain, label)) for label in (1, 0)]  # type: ignore[misc]
        for label, query in queries:
            progress(f"{subject.name}, delta {delta:g}: {'eps' if label is None else 'sigma of ' + network.class_name(label)}")
            rows.append(Row(subject, delta, label, session.estimate(query, budget=budget)))
    return rows


def _figure(subject: Subject, network: Network, rows: list[Row], output: Path, progress: Progress) -> list[RobustnessMap]:
    """Draw one figure: a row a delta, local eps on the left, flippable points with the sigma lines on the right."""
    domain = InputBox.of_features(network)
    points = random_points(domain, POINTS, SEED)
    boxes = [Absolute(delta).around(network) for delta in DELTAS]
    figure, axes = new_figure(len(DELTAS), 2)
    figure.suptitle(f"{subject.name}: {POINTS:,} random inputs, every parameter within delta of its stored value")
    made: list[RobustnessMap] = []
    for index, (delta, parameters) in enumerate(zip(DELTAS, boxes, strict=True)):
        for column, quantity in enumerate((Quantity.EPSILON, Quantity.LABEL)):
            progress(f"{subject.name}, delta {delta:g}: map of {quantity.value}")
            shown = robustness_map(network, parameters, points, quantity=quantity)
            write_whole(output / f"{subject.figure}_{quantity.value}_{delta:g}.csv", shown.table().encode())
            lines = _sigma_lines(rows, subject, delta) if quantity is Quantity.LABEL else None
            panel(axes[index, column], shown, domain=domain, lines=lines)
            what = "local eps" if quantity is Quantity.EPSILON else "labels that can change"
            axes[index, column].set_title(f"delta = {delta:g}: {what}")
            made.append(shown)
    progress(f"{subject.name}: figure")
    save_figure(figure, output / subject.figure)
    return made


def _sigma_lines(rows: list[Row], subject: Subject, delta: float) -> SigmaLines:
    own = {row.label: row.estimate.upper for row in rows if row.subject is subject and row.delta == delta}
    return SigmaLines(own[0], own[1])


def report(rows: list[Row], maps: list[RobustnessMap], seconds: float) -> str:
    """Return REPORT.md, which ties each number to model hash, query, backend and seconds."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("qrobust.report", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"below": text_below, "above": text_above}
    return environment.get_template("table1.md.j2").render(
        rows=rows,
        maps=maps,
        Status=Status,
        Quantity=Quantity,
        subjects=[(s, next(r.estimate.query for r in rows if r.subject is s)) for s in SUBJECTS],
        shape=_shape(rows),
        outside=_outside_sigma(maps, rows),
        seconds=seconds,
        version=VERSION,
        date=datetime.now(UTC).date().isoformat(),
    )


def _value(rows: list[Row], name: str, delta: float, label: int | None = None) -> Estimate:
    return next(r.estimate for r in rows if (r.subject.name, r.delta, r.label) == (name, delta, label))


def _shape(rows: list[Row]) -> str:
    """Say, from certified ends only, whether the ReLU network is more robust than the linear one at each delta."""
    sentences = []
    for delta in DELTAS:
        relu, linear = (_value(rows, name, delta) for name in ("ATH-ReLU", "ATH-Linear"))
        if relu.upper < linear.lower:
            verdict = "the ReLU network is the more robust, as in the paper"
        elif linear.upper < relu.lower:
            verdict = "the linear network is the more robust, against the paper's finding"
        else:
            verdict = "neither is proved the more robust"
        relu_ends, linear_ends = (f"[{text_below(e.lower, 5)}, {text_above(e.upper, 5)}]" for e in (relu, linear))
        sentences.append(f"At delta {delta:g} {verdict} (eps of ReLU in {relu_ends}, of linear in {linear_ends}).")
    return " ".join(sentences)


def _outside_sigma(maps: list[RobustnessMap], rows: list[Row]) -> int:
    """Count flippable points whose float confidence lies beyond the sigma lines: there must be none."""
    count = 0
    for shown in maps:
        if shown.quantity is not Quantity.LABEL:
            continue
        flippable = shown.points[shown.status == Status.FLIPPABLE]
        if not len(flippable):
            continue
        for value in shown.network.confidences(flippable)[:, 0].tolist():
            own = [r for r in rows if _same(r, shown.network, shown.parameters) and r.label == int(value > 0.5)]
            count += abs(value - 0.5) > own[0].estimate.upper + 1e-12
    return count


def _same(row: Row, network: Network, parameters: ParameterBox) -> bool:
    query = row.estimate.query
    return isinstance(query, SigmaEstimate) and query.network is network and query.parameters.sha256 == parameters.sha256


def _summary(rows: list[Row]) -> str:
    """Return the table as aligned text."""
    lines = [f"{'model':<11}{'delta':>6}  {'quantity':<16}{'lower':>11}{'upper':>11}{'printed':>9}  remark"]
    for row in rows:
        name = row.quantity if row.label is None else f"sigma of {row.class_name}"
        printed = "-" if row.printed is None else f"{row.printed:g}"
        ends = f"{text_below(row.estimate.lower, 7):>11}{text_above(row.estimate.upper, 7):>11}"
        lines.append(f"{row.subject.name:<11}{row.delta:>6g}  {name:<16}{ends}{printed:>9}  {row.remark}")
    return "\n".join(lines)
