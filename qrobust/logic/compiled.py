"""Decision diagrams compiled and read off in a process of their own.

Gives     what `bnn compile` says, as JSON values
Property  as `diagrams`. One step of the diagrams' library may take for ever, and hears neither a clock nor Ctrl-C: so the time
          limit is enforced from outside
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qrobust.backends.worker import Worker, WorkerDiedError, WorkerTimeoutError
from qrobust.binarized.network import BinarizedNetwork
from qrobust.binarized.queries import Region, ZeroSign
from qrobust.errors import ResourceError, UnsupportedError
from qrobust.logic.diagrams import MOST_NODES, Diagram
from qrobust.logic.oracles import Deadline
from qrobust.logic.pictures import draw_diagram
from qrobust.logic.sentential import compile_sentential

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Wanted:
    """What is compiled, and what is read off it. Units: seconds for everything; primes, drawn: a class, or None."""

    network: BinarizedNetwork
    region: Region
    nodes: int = MOST_NODES
    seconds: float = 60.0
    zero: ZeroSign = ZeroSign.PLUS
    sentential: bool = False
    distances: bool = False
    monotone: bool = False
    primes: int | None = None
    copy: BinarizedNetwork | None = None
    drawn: int | None = None


def read_off(wanted: Wanted) -> tuple[dict[str, Any], Figure | None]:
    """Return the document, and the picture drawn. Raises ResourceError (time, nodes, memory), and as `Diagram`."""
    seconds = Deadline.after(wanted.seconds).left()
    with closing(Worker()) as worker:
        try:
            found: tuple[dict[str, Any], Figure | None] = worker.call(_read_off, wanted, seconds=seconds)
        except WorkerTimeoutError:
            raise ResourceError(
                f"the decision diagram was not ready after {wanted.seconds:g} s, the time limit: allow more, or take fewer"
                " inputs or a sparser network"
            ) from None
        except WorkerDiedError as error:
            raise ResourceError(f"the decision diagram was given up: {error}; take fewer inputs, or a lower --nodes") from None
    return found


def _read_off(wanted: Wanted) -> tuple[dict[str, Any], Figure | None]:
    network, region = wanted.network, wanted.region
    diagram = Diagram(network, region, most=wanted.nodes, seconds=wanted.seconds, zero=wanted.zero)
    document: dict[str, Any] = {"nodes": diagram.nodes, "counts": diagram.counts()}
    figure = None if wanted.drawn is None else draw_diagram(diagram, wanted.drawn)
    if wanted.sentential:
        other = compile_sentential(network, region, seconds=wanted.seconds, zero=wanted.zero)
        if list(other.counts) != document["counts"]:
            raise UnsupportedError("the two compilations count differently: please report")
        document["sdd_size"] = other.size
    if wanted.distances:
        document["least_flips"] = diagram.distances()
    if wanted.monotone:
        document["monotone"] = _monotone(diagram)
    if wanted.primes is not None:
        document["primes"] = [[list(one) for one in prime.ranges] for prime in diagram.primes(wanted.primes)]
    if wanted.copy is not None:
        differ = diagram.differences(diagram.compiled_too(wanted.copy, wanted.zero))
        levels = diagram.one_of(differ)
        document["differences"] = diagram.count(differ)
        document["witness"] = None if levels is None else network.grid.values(levels).tolist()
    return document, figure


def _monotone(diagram: Diagram) -> list[dict[str, Any]]:
    found = []
    for label in range(diagram.network.outputs):
        for feature in diagram.pixels:
            rises, falls = diagram.monotone(label, feature)
            found.append({"class": label, "feature": feature, "never_lost_by_raising": rises, "never_lost_by_lowering": falls})
    return found
