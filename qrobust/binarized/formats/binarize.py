"""A float network as a binarized one: weights by a scheme, each hidden activation a sign.

Accepts   dense and convolutional networks, and the schemes binary and ternary
Gives     a network with the scheme's weights as signs and scales, the stored biases, and sign(pre-activation) in place of each
          hidden activation; one output y, by its sign, becomes the scores 0 and y
Property  another function than the float network's: its accuracy is to be measured
Source    Rastegari et al. 2016, arXiv 1603.05279; Li et al. 2016, arXiv 1605.04711
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qrobust.binarized.formats.parts import split
from qrobust.binarized.network import BinarizedNetwork, Block, Grid, Linear
from qrobust.errors import UnsupportedError
from qrobust.layers import Activation, Conv2d, Dense
from qrobust.network import Network
from qrobust.quantization import Binary, Scheme, Ternary


def binarize(network: Network, scheme: Scheme, grid: Grid) -> BinarizedNetwork:
    """Return the binarized network; see the module's docstring. Raises UnsupportedError."""
    if not isinstance(scheme, Binary | Ternary):
        raise UnsupportedError(f"the scheme {scheme} gives no weights of signs: use binary or ternary")
    linears = []
    for number, layer in enumerate(scheme.copy(network).layers, start=1):
        if not isinstance(layer, Dense | Conv2d):
            raise UnsupportedError(f"layer {number} is a {type(layer).__name__}, which a network of signs has no place for")
        signs, scale = split(layer.weight)
        linears.append(Linear(replace(layer, weight=signs, activation=Activation.LINEAR), scale))
    if linears[-1].layer.outputs == 1:
        linears[-1] = _with_zero_class(linears[-1])
    names = (f"{network.name} {scheme}".strip(), network.classes)
    return BinarizedNetwork(grid, tuple(Block(linear) for linear in linears[:-1]), linears[-1], *names)


def _with_zero_class(linear: Linear) -> Linear:
    """Return the scores 0 and y of one output y: class 1 exactly where y is positive."""
    layer = linear.layer
    assert isinstance(layer, Dense)
    wide = replace(layer, weight=np.vstack([np.zeros_like(layer.weight), layer.weight]), bias=np.append(0.0, layer.bias))
    return Linear(wide, np.append(1.0, linear.scale))
