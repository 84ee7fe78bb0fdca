"""The command estimate: how large eps, sigma or delta can be, between two ends."""

from __future__ import annotations

from typing import Annotated

import typer

from qrobust.answers import AnyQuery, Estimate
from qrobust.backends.dreal import DReal
from qrobust.cache import Kind, Task
from qrobust.cli import show
from qrobust.cli.arguments import (
    Against,
    ArraysText,
    BackendName,
    Bits,
    BoxText,
    Cache,
    CopyOf,
    Cuts,
    DeltaPerLayer,
    Deltas,
    Json,
    Level,
    Memory,
    Model,
    PerChannel,
    PointsFile,
    PointText,
    Quiet,
    SchemeText,
    SigmaText,
    Timeout,
    TrustPickle,
    WeightsOnly,
)
from qrobust.cli.options import (
    Rule,
    UsageError,
    What,
    Where,
    cache_in,
    domain_of,
    estimates,
    parameter_boxes,
    read_budget,
    read_model,
)
from qrobust.exact import to_fraction
from qrobust.parallel import answer_all
from qrobust.queries import EpsilonEstimate, GreatestDelta, SigmaEstimate
from qrobust.solve import Session, check_laws


def estimate(
    model: Model,
    what: Annotated[
        What, typer.Argument(help="eps, logits (eps of raw outputs), sigma, or delta (the greatest that changes no label).")
    ],
    delta: Deltas = None,
    delta_per_layer: DeltaPerLayer = None,
    against: Against = None,
    weights_only: WeightsOnly = False,
    bits: Bits = None,
    per_channel: PerChannel = False,
    scheme: SchemeText = None,
    copy: CopyOf = None,
    class_name: Annotated[str | None, typer.Option("--class", help="Sigma of this class alone: its name or index.")] = None,
    sigma: SigmaText = None,
    point: PointText = None,
    points: PointsFile = None,
    box: BoxText = None,
    where: Cuts = None,
    level: Level = "1/2",
    backend: BackendName = "auto",
    timeout: Timeout = 60.0,
    memory: Memory = 4.0,
    arrays: ArraysText = None,
    cache: Cache = None,
    minimize: Annotated[bool, typer.Option("--minimize", help="Also print dReal's Minimize, for comparison only.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Estimate eps, sigma or the greatest delta, each between a witnessed lower and a certified upper end.

    \b
    qrobust estimate models/cat_paper.json eps --delta 0.005 --delta 0.01
    qrobust estimate models/cat_paper.json delta --point "15, 2"
    """
    budget = read_budget(timeout, memory, arrays)
    network = read_model(model, trust_pickle)
    domain = domain_of(network, Where(point, points, box, tuple(where or ())))
    queries: list[AnyQuery]
    if what is What.DELTA:
        if delta or delta_per_layer or against or bits or per_channel or scheme or copy:
            raise UsageError(
                "the greatest delta is what is estimated: leave out --delta, --delta-per-layer, --bits, --scheme, --against"
                " and --copy"
            )
        margin = to_fraction(sigma or "0")
        queries = [GreatestDelta(network, domain, margin, to_fraction(level), biases=not weights_only)]
    else:
        if sigma is not None:
            raise UsageError("--sigma goes with the estimate of delta: leave it out")
        rule = Rule(delta, delta_per_layer, against, weights_only, bits, per_channel, scheme, copy)
        boxes = parameter_boxes(network, rule, trust_pickle)
        queries = estimates(network, boxes, domain, what, class_name, level)
    session, kept, documents = Session(), cache_in(cache), []
    earlier: list[Estimate] = []
    for query in queries:
        with show.waiting("estimating", quiet=quiet or json):
            (found,) = answer_all([Task(query, Kind.ESTIMATE, backend, budget)], session=session, cache=kept)
        assert isinstance(found, Estimate)
        check_laws(found, earlier)
        earlier.append(found)
        documents.append(found.to_json())
        if minimize and isinstance(query, EpsilonEstimate | SigmaEstimate):
            documents[-1]["minimize"] = DReal().minimize_as_in_paper(query, seconds=timeout)
        if not json:
            show.line(str(found), quiet=quiet)
            if "minimize" in documents[-1]:
                show.line(f"  dReal's Minimize, which proves nothing: {documents[-1]['minimize']}", quiet=quiet)
    if json:
        show.document(documents)
