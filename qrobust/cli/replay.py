"""The command replay: a certificate, checked again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from qrobust.answers import Assurance, Robust, statement
from qrobust.binarized.certificates import BinarizedCertificate, is_certificate
from qrobust.binarized.formats.load import OWN, load_binarized
from qrobust.certificates import Certificate
from qrobust.check import certificate_fault
from qrobust.cli import show
from qrobust.cli.arguments import (
    Against,
    Bits,
    CopyOf,
    Delta,
    DeltaPerLayer,
    Json,
    PerChannel,
    SchemeText,
    TrustPickle,
    WeightsOnly,
)
from qrobust.cli.exits import INTERNAL
from qrobust.cli.options import Rule, UsageError, parameter_box, read_model
from qrobust.files import read_bytes

RULES = "such as --delta or --bits"


def replay(
    certificate: Annotated[Path, typer.Argument(help="A file that `qrobust check` or `bnn verify` wrote with --certificate.")],
    model: Annotated[Path | None, typer.Option(help="Also check that it is about this model.")] = None,
    delta: Delta = None,
    delta_per_layer: DeltaPerLayer = None,
    against: Against = None,
    weights_only: WeightsOnly = False,
    bits: Bits = None,
    per_channel: PerChannel = False,
    scheme: SchemeText = None,
    copy: CopyOf = None,
    json: Json = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Check a certificate again, alone and in exact arithmetic. Exit code 0 if it proves what it says, else 4.

    What is proved is proved for the parameters in the file, by their hash. The words for them are the file's own, unless the
    options that named them name them again: then they are compared.

    \b
    qrobust check models/iris.json --label --point "5.1, 3.5, 1.4, 0.2" --delta 0.01 --certificate iris.cert
    qrobust replay iris.cert --model models/iris.json --delta 0.01
    qrobust replay signs.cert --model model.npz
    """
    rule = Rule(delta, delta_per_layer, against, weights_only, bits, per_channel, scheme, copy)
    content = read_bytes(certificate)
    if is_certificate(content):
        if rule != Rule():
            raise UsageError(f"{certificate} is about a network of signs: leave out what names parameters, {RULES}")
        _replay_signs(BinarizedCertificate.from_bytes(content, certificate), certificate, model, json=json)
    proof = Certificate.from_bytes(content, certificate)
    query = proof.claimed
    if model is not None and read_model(model, trust_pickle) != query.network:
        raise UsageError(f"{certificate} is about another network than {model}")
    named = rule != Rule()
    if named and parameter_box(query.network, rule, trust_pickle).sha256 != query.parameters.sha256:
        raise UsageError(f"{certificate} is about other parameters than the options name")
    started = time.monotonic()
    fault = certificate_fault(proof)
    seconds = time.monotonic() - started
    if json:
        hashes = {"network": query.network.sha256, "parameters": query.parameters.sha256}
        show.document({"proved": fault is None, "fault": fault, "leaves": proof.leaves, "seconds": seconds} | hashes)
    elif fault is None:
        claim = statement(query, Robust(Assurance.CHECKED))
        box = f"parameters {query.parameters.sha256[:12]}" + ("" if named else " in the file's words")
        show.line(f"PROVED: {claim} [{proof.leaves} leaves, network {query.network.sha256[:12]}, {box}, {seconds:.3g} s]")
    else:
        show.line(f"REFUSED: {fault}. [{seconds:.3g} s]")
    raise typer.Exit(0 if fault is None else INTERNAL)


def _replay_signs(proof: BinarizedCertificate, path: Path, model: Path | None, *, json: bool) -> NoReturn:
    """Check a certificate about networks of signs, print what is proved, and end."""
    if model is not None:
        grid = None if model.suffix.lower() in OWN else proof.networks["network"].grid
        given = load_binarized(model, grid)
        if given.network.sha256 not in [network.sha256 for network in proof.networks.values()]:
            raise UsageError(f"{path} is about another network than {model}")
    started = time.monotonic()
    fault = proof.fault()
    seconds = time.monotonic() - started
    hashes = {key: network.sha256 for key, network in proof.networks.items()}
    if json:
        show.document({"proved": fault is None, "fault": fault, "steps": len(proof.proof), "seconds": seconds} | hashes)
    elif fault is None:
        about = ", ".join(f"{key} {value[:12]}" for key, value in hashes.items())
        show.line(f"PROVED: {proof.statement}. [{show.counted(len(proof.proof), 'step')}, {about}, {seconds:.3g} s]")
    else:
        show.line(f"REFUSED: {fault}. [{seconds:.3g} s]")
    raise typer.Exit(0 if fault is None else INTERNAL)
