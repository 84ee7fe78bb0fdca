"""The explicit encoding: every weight and bias a variable within its bounds, as the paper's equations 6 to 13 read (mended).

Property  exact: its solutions are the query's violations (up to constants rounded to the weak side). Nonlinear
Source    Murthy, Das, Islam 2019, section 4; the errata are in the README
"""

from __future__ import annotations

import numpy as np

from qrobust.domains import Bounds
from qrobust.formula.encoding import TERMS, Encoder, Encoding, directed
from qrobust.formula.terms import Term, TermArray, constant, variable
from qrobust.network import perturbed_logits
from qrobust.queries import Query


class Explicit(Encoder):
    """See the module's docstring. `names` holds the parameters' variables, (weight, bias) a layer."""

    encoding = Encoding.EXPLICIT

    def __init__(self, query: Query, *, weaker: bool = True) -> None:
        super().__init__(query, weaker=weaker)
        self.names: list[tuple[TermArray, TermArray]] = []
        for number, layer in enumerate(query.parameters.layers, start=1):
            weight = self._variables(f"w{number}", layer.weight)
            bias = self._variables(f"b{number}", layer.bias)
            self.names.append((weight, bias))
        self.perturbed = perturbed_logits(self.network, self.names, self.x, TERMS)

    def raised(self, directions: tuple[float, ...]) -> Term:
        return directed(self.perturbed, directions)

    def _variables(self, prefix: str, bounds: Bounds) -> TermArray:
        low, high = bounds.fractions
        names: TermArray = np.empty(low.shape, dtype=object)
        for (place, least), greatest in zip(np.ndenumerate(low), high.ravel().tolist(), strict=True):
            name = variable("_".join([prefix, *(str(i + 1) for i in place)]))
            names[place] = name
            self.constraints += [constant(least) <= name, name <= constant(greatest)]
        return names
