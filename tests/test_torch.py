"""PyTorch modules, by stand-ins of the same names and attributes; `torch_by_hand.py` does the same with PyTorch itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from qrobust.errors import UnsupportedError
from qrobust.formats import from_torch
from qrobust.network import Activation, Conv2d, Dense, MaxPool2d, Network, Output
from tests.conftest import ROOT


class Tensor:
    """What a reader may ask of a tensor."""

    def __init__(self, values: Any, dtype: str = "torch.float32") -> None:
        self.values, self.dtype = np.asarray(values), dtype

    def is_floating_point(self) -> bool:
        return "float" in self.dtype

    def detach(self) -> Tensor:
        return self

    cpu = detach

    def double(self) -> Tensor:
        return Tensor(self.values.astype(np.float64))

    def numpy(self) -> Any:
        return self.values


def module(kind: str, package: str = "torch.nn.modules.made", **attributes: Any) -> Any:
    """A module of a class of this name."""
    part = type(kind, (), {"__module__": package})()
    vars(part).update(attributes)
    return part


def sequential(*parts: Any) -> Any:
    def named_children() -> Iterator[tuple[str, Any]]:
        return ((str(number), part) for number, part in enumerate(parts))

    return module("Sequential", named_children=named_children)


def linear(outputs: int, inputs: int, bias: bool = True) -> Any:
    rng = np.random.default_rng(outputs)
    weight = rng.normal(size=(outputs, inputs)).astype(np.float32)
    return module("Linear", weight=Tensor(weight), bias=Tensor(weight[:, 0]) if bias else None)


def convolution(**changes: Any) -> Any:
    weight = np.random.default_rng(0).normal(size=(3, 2, 3, 2)).astype(np.float32)
    settings: dict[str, Any] = {"groups": 1, "dilation": (1, 1), "padding_mode": "zeros", "stride": (2, 1), "padding": (1, 0)}
    return module("Conv2d", weight=Tensor(weight), bias=Tensor(weight[:, 0, 0, 0]), **settings | changes)


def pool(kind: str = "MaxPool2d", **changes: Any) -> Any:
    return module(kind, **{"kernel_size": 2, "stride": 2, "padding": 0, "ceil_mode": False} | changes)


FLATTEN = module("Flatten", start_dim=1, end_dim=-1)


def test_a_sequential_is_read() -> None:
    first, last = linear(4, 3), linear(2, 4, bias=False)
    parts = (first, module("ReLU"), module("Dropout", p=0.5), sequential(last), module("Softmax", dim=1))
    network = from_torch(sequential(*parts), name="net")
    expected = Network(
        (
            Dense(first.weight.values, first.bias.values, Activation.RELU),
            Dense(last.weight.values, np.zeros(2)),
        ),
        Output.SOFTMAX,
    )
    assert network == expected
    assert network.name == "net"


def test_images_and_an_activation_after_pooling_are_read() -> None:
    conv, last = convolution(), linear(1, 3 * 2 * 3)
    part = sequential(conv, pool(), module("Tanh"), FLATTEN, last, module("Sigmoid"))
    network = from_torch(part, input_shape=(2, 9, 8))
    assert network.output is Output.SIGMOID
    assert [type(layer) for layer in network.layers] == [Conv2d, MaxPool2d, Dense]
    assert network.layers[0].activation is Activation.TANH
    assert isinstance(network.layers[0], Conv2d)
    assert network.layers[0].padding == (1, 0, 1, 0)


def test_same_padding_is_that_of_pytorch() -> None:
    parts = (convolution(padding="same", stride=1), FLATTEN, linear(2, 3 * 9 * 8))
    network = from_torch(sequential(*parts), input_shape=(2, 9, 8))
    assert isinstance(network.layers[0], Conv2d)
    assert network.layers[0].padding == (1, 0, 1, 1)


def test_normalization_is_folded() -> None:
    first = linear(4, 3)
    mean, variance = np.arange(4.0), np.array([1.0, 4.0, 9.0, 0.25])
    settings: dict[str, Any] = {"weight": None, "bias": None, "eps": 0.0}
    statistics: dict[str, Any] = {"running_mean": Tensor(mean), "running_var": Tensor(variance)}
    network = from_torch(sequential(first, module("BatchNorm1d", **settings, **statistics)))
    weight = first.weight.values.astype(np.float64) / np.sqrt(variance)[:, None]
    np.testing.assert_allclose(network.layers[0].weight, weight, rtol=1e-15)
    bias = (first.bias.values.astype(np.float64) - mean) / np.sqrt(variance)
    np.testing.assert_allclose(network.layers[0].bias, bias, rtol=1e-15)


class Own:
    """A module of the user's own, whose forward may do anything."""


def quantized() -> Any:
    weight = Tensor(np.ones((2, 3)), "torch.qint8")
    return module("Linear", weight=weight, bias=None)


REFUSED: dict[str, tuple[Any, str]] = {
    "own class": (sequential(Own()), "Own, whose forward cannot be seen"),
    "other package": (sequential(module("Linear", "other.nn")), "module 0 is a other.nn.Linear"),
    "unknown module": (sequential(linear(4, 3), module("LSTM")), r"module 1 \(LSTM\) cannot be represented, only"),
    "nested": (sequential(sequential(linear(4, 3), module("ELU"))), r"module 0.1 \(ELU\) cannot be represented"),
    "hooks": (sequential(module("ReLU", _forward_hooks={1: print})), "has hooks"),
    "no layer": (sequential(module("Identity")), "does not end in a dense layer"),
    "no image": (sequential(convolution()), r"module 0 \(Conv2d\) takes images, not values of shape \(\)"),
    "groups": (sequential(convolution(groups=2)), "with groups, dilation, or padding by other than zeros"),
    "reflection": (sequential(convolution(padding_mode="reflect")), "padding by other than zeros"),
    "padded pool": (sequential(pool(padding=1)), "with padding, dilation, indices"),
    "divisor": (sequential(pool("AvgPool2d", divisor_override=3)), "a divisor of its own"),
    "ceil": (sequential(pool(ceil_mode=True)), "ceil_mode"),
    "adaptive": (sequential(module("AdaptiveAvgPool2d", output_size=(2, 2))), r"of size \(2, 2\) cannot be represented"),
    "images at the end": (sequential(convolution()), "ends in images"),
    "sizes": (sequential(FLATTEN, linear(4, 3)), r"takes 3 values, not values of shape \(144,\)"),
    "no statistics": (
        sequential(linear(4, 3), module("BatchNorm1d", running_mean=None, running_var=None)),
        "has no running statistics",
    ),
    "flatten a part": (sequential(module("Flatten", start_dim=2, end_dim=-1)), "from 2 to -1 cannot be represented"),
    "after softmax": (sequential(linear(2, 3), module("Softmax", dim=1), linear(2, 2)), "follows the softmax"),
    "softmax over points": (sequential(linear(2, 3), module("Softmax", dim=0)), "over dimension 0"),
    "one value": (sequential(linear(1, 3)), "ends in one linear value"),
    "integers": (sequential(quantized()), "has a tensor of torch.qint8"),
    "half a module": (sequential(module("Linear")), r"module 0 \(Linear\) is none that PyTorch makes"),
    "two activations": (sequential(linear(2, 3), module("ReLU"), module("ReLU")), "unless it follows"),
}
IMAGES = ("groups", "reflection", "padded pool", "divisor", "ceil", "adaptive", "images at the end", "sizes", "flatten a part")


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_represented_is_refused_by_name(case: str) -> None:
    part, message = REFUSED[case]
    with pytest.raises(UnsupportedError, match=message):
        from_torch(part, input_shape=(2, 9, 8) if case in IMAGES else ())


def test_torch_is_not_imported() -> None:
    script = "import sys, qrobust.formats.torch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"
