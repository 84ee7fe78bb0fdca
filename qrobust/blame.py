"""Blame: which layers, channels and parameters use up the margin of a label, and what to leave in higher precision.

Accepts   one input; every network; any parameter box
Gives     the shares of the certified bound of the rival that comes closest (`bounds.shares`), and reliefs: some layers or
          output channels in another box, such as the stored numbers themselves, with the verdict that then holds
Property  the shares are a float forecast of where one proof spends its margin; each relief's verdict is an answer of its own
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.answers import VERSION, Answer, Verdict
from qrobust.backends.deep import stored_label
from qrobust.bounds.shares import LayerShares, Shares, shares
from qrobust.domains import ParameterBox
from qrobust.errors import DomainError, UnsupportedError
from qrobust.interval import FloatArray
from qrobust.leads import Leads
from qrobust.network import Dense, Network
from qrobust.perturbations import with_rows
from qrobust.queries import LocalLabel
from qrobust.search import Budget
from qrobust.solve import Session


@dataclass(frozen=True)
class Place:
    """A part of the network with its share: a layer, an output channel of it (`row`), one weight (`index`) or a bias."""

    layer: int
    row: int | None
    index: tuple[int, ...] | None
    share: float


@dataclass(frozen=True, eq=False)
class Blame:
    """The label at the query's input, the rival whose certified lead is the greatest, and the shares of that lead.

    Units    `margin` and all shares are differences of logits; for one sigmoid, the logit's distance from the level's
    """

    query: LocalLabel
    label: int
    rival: int
    shares: Shares
    seconds: float
    version: str = VERSION

    @property
    def network(self) -> Network:
        return self.query.network

    @property
    def margin(self) -> float:
        """How far the rival is behind at the stored network: what there is to use up."""
        return -self.shares.stored

    @property
    def layers(self) -> tuple[LayerShares, ...]:
        return self.shares.layers

    def channels(self) -> list[Place]:
        """Return all output channels of layers with parameters, the greatest share first."""
        numbered = [(n, own.rows) for n, own in enumerate(self.layers) if own.weight.size]
        return _sorted([Place(n, row, None, share) for n, rows in numbered for row, share in enumerate(rows.tolist())])

    def inputs(self) -> FloatArray | None:
        """Return the share of each input, through the first layer's weights; None if that layer is not dense."""
        first = self.layers[0].weight
        return first.sum(axis=0) if isinstance(self.network.layers[0], Dense) else None

    def parameters(self, count: int) -> list[Place]:
        """Return the parameters with the greatest shares, weights by their index, biases by their row alone."""
        found = []
        for number, own in enumerate(self.layers):
            for what, values in (("weight", own.weight), ("bias", own.bias)):
                flat = values.ravel()
                for place in np.argsort(-flat, kind="stable")[:count].tolist():
                    index = tuple(int(i) for i in np.unravel_index(place, values.shape))
                    found.append(Place(number, index[0], index if what == "weight" else None, float(flat[place])))
        return _sorted(found)[:count]


@dataclass(frozen=True, eq=False)
class Relief:
    """Some output channels, as (layer, row) or (layer, None) for a whole layer, in the better box, and the verdict then."""

    places: tuple[tuple[int, int | None], ...]
    answer: Answer

    @property
    def proved(self) -> bool:
        return self.answer.verdict is Verdict.ROBUST


def blame(query: LocalLabel) -> Blame:
    """Return where the margin of a label goes. Raises DomainError if no precision settles the label, UnsupportedError."""
    started = time.monotonic()
    if query.sigma:
        raise UnsupportedError("blame is about a label at one input: leave out the margin sigma")
    leads = Leads(query.network, query.level)
    x = query.domain.box.lower
    label = stored_label(leads, x)
    if label is None:
        raise DomainError("no precision settles the label at this input: two classes are tied there")
    pairs = leads.of_label(label)
    found = shares(query.network, query.parameters, x, leads.directions[pairs], leads.offset.upper[pairs])
    rival = int(leads.pairs[pairs[found.row], 1])
    return Blame(query, label, rival, found, time.monotonic() - started)


def relieved(found: Blame, better: ParameterBox, places: tuple[tuple[int, int | None], ...]) -> LocalLabel:
    """Return the query with these layers and channels in the better box."""
    query = found.query
    masks: list[npt.NDArray[np.bool_]] = [np.zeros(len(layer.bias), dtype=bool) for layer in query.network.layers]
    for layer, row in places:
        masks[layer][slice(None) if row is None else row] = True
    count = sum(int(mask.sum()) for mask in masks)
    rule = f"{query.parameters.rule}, but for {count} output channels: {better.rule}"
    box = with_rows(query.parameters, better, masks, rule)
    return LocalLabel(query.network, box, query.domain, query.level)


def layer_reliefs(found: Blame, better: ParameterBox, session: Session, budget: Budget) -> list[Relief]:
    """Ask about each layer alone in the better box, in the order of the layers."""
    numbers = [number for number, own in enumerate(found.layers) if own.weight.size]
    return [_asked(found, better, ((number, None),), session, budget) for number in numbers]


def channel_reliefs(found: Blame, better: ParameterBox, session: Session, budget: Budget) -> list[Relief]:
    """Ask about the channels with the greatest shares in the better box: 1, 2, 4, ... of them, then bisect.

    Gives    all that was asked; the least count that was proved is the least that this order needs if more channels never
             hurt, which is so where the better box lies in the other
    """
    order = [(place.layer, place.row) for place in found.channels()]
    asked: dict[int, Relief] = {}
    failed, count = 0, 1
    while True:
        asked[count] = _asked(found, better, tuple(order[:count]), session, budget)
        if asked[count].proved or count == len(order):
            break
        failed, count = count, min(2 * count, len(order))
    while asked[count].proved and count - failed > 1:
        middle = (failed + count) // 2
        asked[middle] = _asked(found, better, tuple(order[:middle]), session, budget)
        failed, count = (failed, middle) if asked[middle].proved else (middle, count)
    return [asked[number] for number in sorted(asked)]


def _asked(
    found: Blame, better: ParameterBox, places: tuple[tuple[int, int | None], ...], session: Session, budget: Budget
) -> Relief:
    return Relief(places, session.check(relieved(found, better, places), budget=budget))


def _sorted(places: list[Place]) -> list[Place]:
    return sorted(places, key=lambda place: -place.share)


def blame_json(found: Blame, top: int) -> dict[str, Any]:
    """Return the shares as JSON values, channels and parameters cut to the greatest."""
    inputs = found.inputs()
    return {
        "qrobust": found.version,
        "network": found.network.sha256,
        "query": found.query.to_json(),
        "label": found.label,
        "rival": found.rival,
        "margin": found.margin,
        "upper": found.shares.upper,
        "used": found.shares.used,
        "layers": [
            {"layer": n + 1, "weights": float(own.weight.sum()), "biases": float(own.bias.sum()), "relaxed": own.relaxed}
            for n, own in enumerate(found.layers)
        ],
        "channels": [{"layer": p.layer + 1, "row": p.row, "share": p.share} for p in found.channels()[:top]],
        "inputs": None if inputs is None else inputs.tolist(),
        "parameters": [
            {"layer": p.layer + 1, "row": p.row, "index": None if p.index is None else list(p.index), "share": p.share}
            for p in found.parameters(top)
        ],
        "seconds": found.seconds,
    }
