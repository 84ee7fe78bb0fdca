"""All 65,536 inputs of two-feature int8 models: exact comparison with the float model, beside running both; and by bounds."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.comparison import Agreement, Comparison, Inputs, compare, on_grid
from qrobust.formats import load, load_program
from qrobust.integer.program import IntegerProgram
from qrobust.network import Network
from qrobust.search import Budget
from qrobust.sweep import Sweep, sweep

MODELS = Path(__file__).parent.parent / "models"
PAIRS = {"cat": ("cat_paper.json", "cat_int8.tflite"), "ath-relu": ("ath_relu.json", "ath_relu_int8.tflite")}
EPSILON = Fraction(1, 50)


def pair(name: str) -> tuple[Network, IntegerProgram]:
    """Read both files."""
    floats, integers = PAIRS[name]
    return load(MODELS / floats), load_program(MODELS / integers)


def enumerated(name: str) -> Comparison:
    """Read both files, compare at every input, and settle eps and the labels."""
    network, program = pair(name)
    found = compare(network, program, on_grid(program))
    found.epsilon_verdict(EPSILON)
    return found


def tested(name: str) -> int:
    """The same with LiteRT and a float64 forward pass, no proof: how many labels are others."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    network, program = pair(name)
    inputs = on_grid(program)
    path = str(MODELS / PAIRS[name][1])
    interpreter = Interpreter(path, experimental_op_resolver_type=OpResolverType.BUILTIN_REF, num_threads=1)
    first = interpreter.get_input_details()[0]
    interpreter.resize_tensor_input(first["index"], inputs.integers.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(first["index"], inputs.integers.astype(np.int8))
    interpreter.invoke()
    values: Any = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return _others(network, inputs, values)


def _others(network: Network, inputs: Inputs, values: Any) -> int:
    return int((network.labels(inputs.reals) != (values[:, 0] > 0)).sum())


def changed(found: Comparison) -> int:
    """How many labels are others."""
    return int((found.agreement == Agreement.CHANGED).sum())


def bounded(name: str, *, boxes: int = 5_000_000) -> Sweep:
    """Bound the greatest change over every integer input, with at most so many boxes."""
    network, program = pair(name)
    return sweep(network, program, budget=Budget(boxes=boxes))
