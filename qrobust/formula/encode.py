"""The door to both encodings."""

from __future__ import annotations

from qrobust.errors import UnsupportedError
from qrobust.formula.eliminated import Eliminated
from qrobust.formula.encoding import Encoder, Encoding, Problem
from qrobust.formula.explicit import Explicit
from qrobust.queries import Query

ENCODERS: dict[Encoding, type[Encoder]] = {Encoding.EXPLICIT: Explicit, Encoding.ELIMINATED: Eliminated}


def encode(query: Query, encoding: Encoding) -> Problem:
    """Return a query as a formula. Raises UnsupportedError for sets of points, and for eps of several classes."""
    if query.domain.to_json().get("points") is not None:
        raise UnsupportedError("a set of points has no single formula: ask point by point")
    return ENCODERS[encoding](query).problem()
