"""Counterexamples for people and for documents: the input, both outputs, in reals and, of a program, in integers."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from qrobust.answers import Counterexample
from qrobust.check import Replay
from qrobust.comparison import UNDECIDED, Comparison
from qrobust.domains import MOST_SHOWN
from qrobust.network import Network, Output

SHOWN_PARAMETERS = 40


def counterexample_text(network: Network, example: Counterexample) -> str:
    """Describe a counterexample: the input, the confidences before and after, and the parameters if they are few."""
    x = np.array([[float(value) for value in example.x]])
    before = network.confidences(x)[0]
    after = moved(network, example).confidences(x)[0]
    lines = [
        f"  {network.feature_name(i)} = {float(value):.10g} {unit}".rstrip()
        for i, (value, unit) in enumerate(zip(example.x, _units(network), strict=True))
    ]
    if len(lines) > MOST_SHOWN:
        lines = [*lines[:3], f"  ... ({len(lines)} inputs in all; --json prints them)", lines[-1]]
    names = _outputs(network)
    lines += [f"  confidence of {n}: {a:.9f} -> {b:.9f}" for n, a, b in zip(names, before, after, strict=True)]
    if network.parameter_count <= SHOWN_PARAMETERS:
        lines += _parameter_lines(network, example)
    return "\n".join(lines)


def moved(network: Network, example: Counterexample) -> Network:
    """Return the network with a counterexample's parameters, each rounded to the nearest float."""
    layers = tuple(
        layer.with_parameters(np.asarray(weight, dtype=np.float64), np.asarray(bias, dtype=np.float64))
        for layer, (weight, bias) in zip(network.layers, example.parameters, strict=True)
    )
    return replace(network, layers=layers)


def _parameter_lines(network: Network, example: Counterexample) -> list[str]:
    lines = []
    for number, (layer, (weight, bias)) in enumerate(zip(network.layers, example.parameters, strict=True), start=1):
        stored = [*layer.weight.ravel().tolist(), *layer.bias.tolist()]
        chosen = [float(v) for v in (*weight.ravel(), *bias)]
        pairs = ", ".join(f"{a:.6g} -> {b:.6g}" for a, b in zip(stored, chosen, strict=True))
        lines.append(f"  layer {number}, weights then biases: {pairs}")
    return lines


def _units(network: Network) -> list[str]:
    return [feature.unit for feature in network.features] or [""] * network.inputs


def _outputs(network: Network) -> list[str]:
    """Name the classes that have a confidence of their own."""
    single = network.output is Output.SIGMOID
    return [network.class_name(1)] if single else [network.class_name(i) for i in range(network.class_count)]


def parameters_example(
    network: Network, example: Counterexample, level: Fraction, row: int | None, held: Counterexample | None
) -> dict[str, Any]:
    """Return a counterexample of other parameters as JSON values.

    Accepts   row: its place in a data set, from 1; held: the same input with values that the scheme can hold, if found
    """
    x = np.array([[float(value) for value in example.x]])
    after = moved(network, example)
    document: dict[str, Any] = {
        "row": row,
        "input": _inputs(network, example.to_json()["input"]),
        "outputs": _pairs(network, network.confidences(x)[0].tolist(), after.confidences(x)[0].tolist()),
        "labels": _labels(network, example, level),
        "exact": example.to_json(),
        "held": None,
    }
    if held is not None:
        stored = moved(network, held)
        document["held"] = {
            "outputs": _pairs(network, network.confidences(x)[0].tolist(), stored.confidences(x)[0].tolist()),
            "labels": _labels(network, held, level),
            "exact": held.to_json(),
        }
    return document


def _labels(network: Network, example: Counterexample, level: Fraction) -> list[str | None]:
    """Return both labels from exact arithmetic; None where no precision settles one."""
    replay = Replay(network, example)
    labels = [replay.label(perturbed, level) for perturbed in (False, True)]
    return [None if label is None else network.class_name(label) for label in labels]


def program_example(found: Comparison, index: int) -> dict[str, Any]:
    """Return an input at which a program departs from its network, as JSON values: reals and integers, both outputs."""
    network, results = found.network, found.results
    real = found.inputs.reals[index].tolist()
    low, high = results.lower[index], results.upper[index]
    ends = found.program.result.real(np.stack([low, high])).tolist()
    outputs = _pairs(network, found.confidences.middle[index].tolist(), ends[0])
    for place, output in enumerate(outputs):
        output["integer"] = [int(low[place]), int(high[place])]
        output["after_upper"] = ends[1][place]
    inputs = _inputs(network, real)
    for each, integer in zip(inputs, found.inputs.integers[index].tolist(), strict=True):
        each["integer"] = integer
    labels = [int(found.labels[index]), int(found.program_labels[index])]
    return {
        "row": None if found.inputs.enumerated else index + 1,
        "input": inputs,
        "outputs": outputs,
        "labels": [None if label == UNDECIDED else network.class_name(label) for label in labels],
        "change": [float(found.changes.lower[index]), float(found.changes.upper[index])],
    }


def example_text(example: dict[str, Any]) -> str:
    """Say in one line what `parameters_example` and `program_example` return."""
    shown = example["input"] if len(example["input"]) <= MOST_SHOWN else [*example["input"][:3], example["input"][-1]]
    parts = [f"{each['name']} = {number(each['value'])} {each['unit']}".rstrip() + _integer(each) for each in shown]
    outputs = [
        f"{each['name']}: {each['before']:.6f} -> {each['after']:.6f}{_integer(each)}"
        for each in example["outputs"]
        if each["before"] != each["after"]
    ][:MOST_SHOWN]
    row = f"row {example['row']}: " if example["row"] is not None else ""
    labels = " -> ".join(str(label or "either") for label in example["labels"])
    return f"{row}{', '.join(parts)}; confidence of {'; '.join(outputs)}; label {labels}"


def number(value: float | str) -> str:
    """Write a number that JSON holds as it is or as an exact fraction."""
    return f"{float(Fraction(value)):.10g}"


def _integer(each: dict[str, Any]) -> str:
    integer = each.get("integer")
    if integer is None:
        return ""
    if isinstance(integer, list):
        low, high = integer
        return f" (integer {low})" if low == high else f" (integers {low} to {high})"
    return f" (integer {integer})"


def _inputs(network: Network, values: list[float | str]) -> list[dict[str, Any]]:
    units = zip(values, _units(network), strict=True)
    return [{"name": network.feature_name(i), "unit": unit, "value": value} for i, (value, unit) in enumerate(units)]


def _pairs(network: Network, before: list[float], after: list[float]) -> list[dict[str, Any]]:
    triples = zip(_outputs(network), before, after, strict=True)
    return [{"name": name, "before": a, "after": b} for name, a, b in triples]
