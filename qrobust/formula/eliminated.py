"""The eliminated encoding: the parameters removed exactly, one variable a hidden neuron in their place.

Method    z of a neuron ranges from its row's least to its greatest value, independently of all other neurons, for each
          parameter is used once (THEORY.md, section 3). Where a value cannot change its sign its product with a parameter is
          greatest at one known end; elsewhere it is the maximum of two products
Property  exact; linear arithmetic for networks with ReLU and linear hidden layers
Source    Prabhakar and Afzal, NeurIPS 2019, for the step; THEORY.md, section 3
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from qrobust.domains import LayerBox
from qrobust.exact import ExactArray
from qrobust.formula.encoding import TERMS, Encoder, Encoding
from qrobust.formula.terms import Op, Term, TermArray, constant, maximum, minimum, term_array, total, variable
from qrobust.network import Activation, Scaling, activate
from qrobust.queries import Query

NONNEGATIVE = (Activation.RELU, Activation.SIGMOID)


class Eliminated(Encoder):
    """See the module's docstring. `names` holds the neurons' variables, one array a hidden layer."""

    encoding = Encoding.ELIMINATED

    def __init__(self, query: Query, *, weaker: bool = True) -> None:
        super().__init__(query, weaker=weaker)
        self.names: list[TermArray] = []
        box = query.domain.box
        self._hidden = self.x
        self._signs = np.where(box.lower >= 0, 1, np.where(box.upper <= 0, -1, 0))
        for number, (layer, bounds) in enumerate(
            zip(self.network.hidden_layers, query.parameters.layers, strict=False), start=1
        ):
            if isinstance(layer, Scaling):
                self._hidden, seen = TERMS.rescale(self.x, layer), layer.enclose(box)
                self._signs = np.where(seen.lower >= 0, 1, np.where(seen.upper <= 0, -1, 0))
                continue
            z = term_array([0] * layer.outputs)
            z[:] = [variable(f"z{number}_{i + 1}") for i in range(layer.outputs)]
            least, greatest = (self._extremes(bounds, rises) for rises in (False, True))
            self.constraints += [low <= name for low, name in zip(least, z, strict=True)]
            self.constraints += [name <= high for name, high in zip(z, greatest, strict=True)]
            self.names.append(z)
            self._hidden = activate(layer.activation, z, TERMS)
            self._signs = np.full(layer.outputs, 1 if layer.activation in NONNEGATIVE else 0)
        last = query.parameters.layers[-1]
        self._least, self._greatest = (self._extremes(last, rises) for rises in (False, True))

    def raised(self, directions: tuple[float, ...]) -> Term:
        """Rows share no parameter, so each goes to its own end."""
        total = constant(0)
        for direction, low, high in zip(directions, self._least, self._greatest, strict=True):
            if direction:
                total = total + constant(direction) * (high if direction > 0 else low)
        return total

    def _extremes(self, bounds: LayerBox, rises: bool) -> list[Term]:
        """Return each row's greatest (or least) value over its parameters, given the hidden values."""
        (low, high), biases = bounds.weight.fractions, bounds.bias.fractions[int(rises)]
        return [self._extreme(*rows, rises) for rows in zip(low, high, biases, strict=True)]

    def _extreme(self, low: ExactArray, high: ExactArray, bias: Fraction, rises: bool) -> Term:
        products = []
        for a, b, h, sign in zip(low, high, self._hidden, self._signs.tolist(), strict=True):
            if a == b or sign:
                products.append(constant(b if (sign > 0) == rises else a) * h)
            elif h.op is Op.CONSTANT:
                products.append(constant((max if rises else min)(a * h.value, b * h.value)))
            else:
                products.append((maximum if rises else minimum)(constant(a) * h, constant(b) * h))
        return total([constant(bias), *products])
