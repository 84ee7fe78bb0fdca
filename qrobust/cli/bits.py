"""The command bits: the fewest bits that keep a property."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qrobust.answers import Unknown, Verdict
from qrobust.bits import (
    FLOAT_BITS,
    LEAST,
    MOST,
    Asking,
    Family,
    FewestBits,
    Trial,
    certificate_why_not,
    fewest_bits,
    is_of_one_input,
    row_certificates,
)
from qrobust.cli import show
from qrobust.cli.arguments import (
    BackendName,
    BoxText,
    Cache,
    Cuts,
    Jobs,
    Json,
    Level,
    Memory,
    Model,
    PointsFile,
    PointText,
    Quiet,
    Scheduler,
    SigmaText,
    Timeout,
    TrustPickle,
)
from qrobust.cli.exits import EXIT
from qrobust.cli.options import UsageError, Where, cache_in, check_sharing, decision, domain_of, read_budget, read_model
from qrobust.domains import Domain, Points
from qrobust.files import check_can_appear

NO_PROOF = "no proof was found in a form that can be checked leaf by leaf"


def bits(
    model: Model,
    eps: Annotated[str | None, typer.Option(help="Keep every confidence within this.")] = None,
    label: Annotated[bool, typer.Option("--label", help="Keep every label.")] = False,
    sigma: SigmaText = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme", metavar="FAMILY", help="Formats without their width: int, int-per-channel, q-floor-wrap, pow2."
        ),
    ] = None,
    per_channel: Annotated[bool, typer.Option("--per-channel", help="Short for --scheme int-per-channel.")] = False,
    least: Annotated[int, typer.Option(help="The least width that is tried.")] = LEAST,
    most: Annotated[int | None, typer.Option(help=f"The greatest width that is tried: {MOST}, or 8 for pow2.")] = None,
    point: PointText = None,
    points: PointsFile = None,
    box: BoxText = None,
    where: Cuts = None,
    level: Level = "1/2",
    backend: BackendName = "auto",
    timeout: Timeout = 60.0,
    memory: Memory = 4.0,
    jobs: Jobs = 1,
    scheduler: Scheduler = None,
    cache: Cache = None,
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the proof of the widths found (--label); of --points one a row."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Find the fewest bits, uniform and layer by layer, at which every rounding keeps a property, with proofs.

    Exit code 0 if some width was proved; else that of the verdict at the greatest width, 1 or 3.

    \b
    qrobust bits models/iris.json --label --point "5.9, 3.0, 4.2, 1.5"
    qrobust bits models/iris.json --eps 0.05 --points inputs.csv --per-channel --jobs 4 --cache answers
    """
    check_can_appear(certificate)
    if per_channel and scheme is not None:
        raise UsageError("--per-channel is short for --scheme int-per-channel: give one of them")
    check_sharing(jobs, scheduler)
    family = Family(scheme or ("int-per-channel" if per_channel else "int"))
    asking = Asking(backend, read_budget(timeout, memory, None), jobs, scheduler, cache_in(cache))
    network = read_model(model, trust_pickle)
    domain = domain_of(network, Where(point, points, box, tuple(where or ())))
    found = fewest_bits(
        network,
        family,
        lambda parameters: decision(network, parameters, domain, eps, label, sigma, level),
        least=least,
        most=family.most if most is None else most,
        asking=asking,
        say=lambda trial: _progress(trial, quiet or json),
    )
    written = _written(found, certificate, asking)
    if json:
        show.document(found.to_json() | {"certificates": [path.name for path in written]})
    else:
        for text in _lines(found, domain, written):
            show.line(text, quiet=quiet)
    if certificate is not None and not written:
        reason = None if found.layers is None else certificate_why_not(found.layers.answer.query)
        show.warning(f"{certificate} was not written: {reason or NO_PROOF}")
    if found.uniform is None:
        assert found.below is not None
        raise typer.Exit(EXIT[found.below.answer.verdict])


def _progress(trial: Trial, quiet: bool) -> None:
    if not quiet:
        seconds = trial.answer.seconds
        print(f"bits {_widths(trial)}: {trial.answer.verdict.value}, {seconds:.3g} s", file=sys.stderr, flush=True)


def _widths(trial: Trial) -> str:
    return "/".join(str(width) for width in (trial.widths if len(set(trial.widths)) > 1 else trial.widths[:1]))


def _kept(found: FewestBits, written: list[Path]) -> str:
    """Say what proofs there are."""
    assert found.layers is not None
    query = found.layers.answer.query
    reason = certificate_why_not(query)
    if reason is not None or is_of_one_input(query):
        proof = found.certificate
        return f"{proof.leaves} leaves, checked in exact arithmetic" if proof else reason or "none was found in time"
    assert isinstance(query.domain, Points)
    if not written:
        return "--certificate FILE writes one a row"
    rows = f"{len(written)} of {len(query.domain.values)} rows have one"
    return f"{rows}, checked in exact arithmetic: {written[0].name}{f' to {written[-1].name}' if len(written) > 1 else ''}"


def _lines(found: FewestBits, domain: Domain, written: list[Path]) -> list[str]:
    if found.uniform is None or found.layers is None:
        assert found.below is not None
        return [f"no width of {found.family.text} was proved; {_verdict(found.below)}", *_example(found.below, found)]
    lines = [f"{found.network}, {found.family.text}, {domain}"]
    lines.append(f"uniform: {_widths(found.uniform)} bits, {_proof(found.uniform)}: {_saving(found.uniform, found)}")
    lines.append(f"  {'nothing below was tried' if found.below is None else _verdict(found.below)}")
    if found.below is not None:
        lines += _example(found.below, found)
    if len(found.layers.widths) > 1:
        lines.append(f"by layer: {_proof(found.layers)}: {_saving(found.layers, found)}")
        layers = [(n, layer) for n, layer in enumerate(found.network.layers, start=1) if layer.weight.size]
        lines.append("  layer  parameters  uniform  by layer")
        for (number, layer), uniform, own in zip(layers, found.uniform.widths, found.layers.widths, strict=True):
            lines.append(f"  {number:>5}  {layer.weight.size + layer.bias.size:>10,}  {uniform:>7}  {own:>8}")
        lines.append(f"  --scheme {found.layers.scheme}")
    lines.append(f"certificate: {_kept(found, written)}")
    lines.append(f"{len(found.trials)} choices of widths were decided. [{found.seconds:.3g} s]")
    return lines


def _proof(trial: Trial) -> str:
    assert trial.answer.assurance is not None
    return f"ROBUST [{trial.answer.backend}, {trial.answer.assurance.name.lower()}]"


def _saving(trial: Trial, found: FewestBits) -> str:
    saved = 100 * (1 - trial.bits / found.float_bits)
    return f"{trial.bits:,} bits stored, {saved:.1f} % fewer than the {found.float_bits:,} of float{FLOAT_BITS} (scales apart)"


def _verdict(trial: Trial) -> str:
    claim = trial.answer.claim
    reason = f": {claim.reason}" if isinstance(claim, Unknown) else ""
    return f"{_widths(trial)} bits: {trial.answer.verdict.value}{reason} [{trial.answer.backend}]"


def _example(trial: Trial, found: FewestBits) -> list[str]:
    example = trial.answer.counterexample
    if trial.answer.verdict is not Verdict.VIOLATED or example is None:
        return []
    return [f"  {line}" for line in show.counterexample_text(found.network, example).splitlines()]


def _written(found: FewestBits, path: Path | None, asking: Asking) -> list[Path]:
    """Write what certificates there are, and return their paths."""
    if path is None:
        return []
    if found.certificate is not None:
        found.certificate.save(path)
        return [path]
    written = []
    for row, proof in row_certificates(found, asking):
        if proof is None:
            show.warning(f"row {row}: {NO_PROOF}")
        else:
            written.append(path.with_name(f"{path.stem}-{row}{path.suffix}"))
            proof.save(written[-1])
    return written
