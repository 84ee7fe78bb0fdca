"""The commands about number formats: quantize and inspect."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from qrobust.answers import Verdict
from qrobust.cli import show
from qrobust.cli.arguments import Json, Model, Quiet, SchemeText, TrustPickle
from qrobust.cli.exits import EXIT
from qrobust.cli.options import UsageError, read_model, read_shipped
from qrobust.domains import ParameterBox
from qrobust.errors import UnsupportedError
from qrobust.exact import to_fraction
from qrobust.formats import load, load_program, save
from qrobust.formats.load import check_writable
from qrobust.formats.tflite import is_program, tensors
from qrobust.integer.program import Affine, Encoding, IntegerProgram, Operation
from qrobust.interval import FloatArray
from qrobust.network import Network
from qrobust.quantization import (
    Outside,
    Scheme,
    Stored,
    box_for_program,
    dequantized,
    outside,
    parse_scheme,
    stored_arrays,
)


def quantize(
    model: Model,
    scheme: Annotated[str, typer.Option("--scheme", metavar="TEXT", help="As in int8, fp16, q3.4-floor-wrap.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the copy goes: a .json, .npz or .onnx file.")],
    double: Annotated[bool, typer.Option("--double", help="With .onnx: write float64 instead of float32.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Write the quantized copy of a model, and say what each array of parameters became.

    \b
    qrobust quantize models/iris.json --scheme int8-per-channel --out iris_int8.json
    """
    check_writable(out)
    if double and out.suffix.lower() != ".onnx":
        raise UsageError("--double goes with an --out that ends in .onnx: the other formats hold float64 anyway")
    network, chosen = read_model(model, trust_pickle), parse_scheme(scheme)
    arrays, copy = stored_arrays(network, chosen), chosen.copy(network)
    _save(copy, out, double)
    if json:
        hashes = {"network": network.sha256, "copy": copy.sha256, "scheme": str(chosen)}
        show.document(hashes | {"arrays": [array.to_json() for array in arrays]})
        return
    for text in _array_lines(arrays, chosen):
        show.line(text, quiet=quiet)
    show.line(f"Wrote {out}, network {copy.sha256[:12]}, from {network.sha256[:12]} by {chosen}.", quiet=quiet)


def _save(copy: Network, out: Path, double: bool) -> None:
    """Write the copy; where float32 would round its numbers, offer double."""
    try:
        save(copy, out, double=double)
    except UnsupportedError as error:
        if double or out.suffix.lower() != ".onnx":
            raise
        raise UnsupportedError(f"{out} is not written: {error}, which --double does, as do .json and .npz") from None


MOST_SCALES = 8  # inputs whose scaling is shown


def inspect(
    model: Model,
    scheme: SchemeText = None,
    eps: Annotated[str | None, typer.Option(help="With --scheme: is this tolerance above the output's own step?")] = None,
    of: Annotated[
        Path | None,
        typer.Option("--of", metavar="ORIGINAL", help="With --scheme: does MODEL lie inside the scheme's box around this one?"),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Show a model's layers and ranges and, with a scheme, steps, what stays in float, and whether a copy is one of its copies.

    Exit code 1 if --of is given and the copy lies outside.

    \b
    qrobust inspect models/iris.json --scheme tflite-dynamic-range
    qrobust inspect copy.json --of models/iris.json --scheme int8
    qrobust inspect models/cat_int8.tflite --of models/cat_paper.json --scheme int8-per-channel
    """
    if model.suffix.lower() == ".tflite" and scheme is None and of is None:
        _inspect_tflite(model, eps, json=json, quiet=quiet)
        return
    chosen = None if scheme is None else parse_scheme(scheme)
    shipped = read_shipped(model, trust_pickle)
    if isinstance(shipped, IntegerProgram) and scheme is None and of is None:
        _inspect_program(model, shipped, eps, json=json, quiet=quiet)
        return
    if scheme is None and (eps is not None or of is not None):
        raise UsageError("--eps and --of go with --scheme: name it, as in --scheme int8")
    original = _original(shipped, of, trust_pickle)
    network = dequantized(original, shipped) if isinstance(shipped, IntegerProgram) else shipped
    arrays = stored_arrays(original, chosen)
    box = None if chosen is None or of is None else _claimed(original, chosen, shipped)
    strays = None if box is None else outside(box, network)
    tolerance = None if chosen is None or eps is None else _tolerance(chosen, eps)
    if json:
        hashes = {"network": shipped.sha256, "scheme": None if chosen is None else str(chosen), "tolerance": tolerance}
        found = None if strays is None else [stray.to_json() for stray in strays]
        show.document(hashes | {"arrays": [array.to_json() for array in arrays], "outside": found})
    else:
        copy = _copy_lines(shipped, original, box, strays)
        for text in (*_head(original), *_array_lines(arrays, chosen), *([tolerance] if tolerance else []), *copy):
            show.line(text, quiet=quiet)
    raise typer.Exit(EXIT[Verdict.VIOLATED] if strays else 0)


def _original(shipped: Network | IntegerProgram, of: Path | None, trust_pickle: bool) -> Network:
    """Return the float model that the file is held against: itself, where none is named."""
    if of is not None:
        return read_model(of, trust_pickle)
    if isinstance(shipped, IntegerProgram):
        raise UsageError(
            "an integer program says itself what is quantized: name the float model with --of, or leave out --scheme"
        )
    return shipped


def _inspect_tflite(model: Path, eps: str | None, *, json: bool, quiet: bool) -> None:
    """Show what each tensor of the file is, which stay in float, and the step of its outputs."""
    found, program = tensors(model), is_program(model)
    stored = [tensor for tensor in found if tensor.stored and tensor.kind != "int32"]
    floats = [tensor for tensor in stored if tensor.scales is None]
    network = None if program else load(model)
    tolerance = None if eps is None else f"confidences are floats: eps {eps} stands on its own"
    if eps is not None and program:
        step = load_program(model).result.scale
        tolerance = _step_against(step, eps, f"{step:.6g}")
    if json:
        hashes = {"program": program, "network": None if network is None else network.sha256, "tolerance": tolerance}
        show.document(hashes | {"tensors": [tensor.to_json() for tensor in found]})
        return
    show.line(f"{model}: {network or load_program(model)}", quiet=quiet)
    for tensor in found:
        left = "; stays in float" if tensor in floats and len(floats) < len(stored) else ""
        show.line(f"  {'stored' if tensor.stored else 'computed'} {tensor}{left}", quiet=quiet)
    show.line(f"  {len(stored) - len(floats)} of {len(stored)} stored arrays are quantized, int32 biases apart", quiet=quiet)
    if tolerance is not None:
        show.line(f"  {tolerance}", quiet=quiet)


def _inspect_program(model: Path, program: IntegerProgram, eps: str | None, *, json: bool, quiet: bool) -> None:
    """Show the steps of an integer program's weights, biases and results, and that of its outputs."""
    step = program.result.scale
    tolerance = None if eps is None else _step_against(step, eps, f"{step:.6g}")
    if json:
        found = [_operation(operation) for operation in program.operations]
        hashes = {"program": program.sha256, "tolerance": tolerance}
        show.document(hashes | {"input": _encoding(program.input), "operations": found})
        return
    show.line(f"{model}: {program}", quiet=quiet)
    show.line(f"  inputs: {_encoding(program.input)}", quiet=quiet)
    for operation in program.operations:
        weights = ""
        if isinstance(operation, Affine):
            shape = "x".join(map(str, operation.weight.shape))
            steps = _steps_text(operation.scales), _steps_text(operation.scales * operation.input.scale)
            weights = f"weights {shape}, {steps[0]}; integer biases, {steps[1]}; "
        show.line(f"  {operation}: {weights}results {_encoding(operation.output)}", quiet=quiet)
    show.line("  all weights, biases and results are integers", quiet=quiet)
    if tolerance is not None:
        show.line(f"  {tolerance}", quiet=quiet)


def _operation(operation: Operation) -> dict[str, Any]:
    """Return an operation of a program as JSON values."""
    found: dict[str, Any] = {"operation": str(operation), "results": _encoding(operation.output)}
    if isinstance(operation, Affine):
        found |= {"weights": list(operation.weight.shape), "steps": operation.scales.tolist()}
    return found


def _encoding(encoding: Encoding) -> str:
    low, high = encoding.real(np.array([encoding.least, encoding.greatest])).tolist()
    return f"{encoding}, holding {low:.6g} to {high:.6g}"


def _steps_text(steps: FloatArray) -> str:
    low, high = float(steps.min()), float(steps.max())
    return f"step {low:.6g}" if low == high else f"steps {low:.6g} to {high:.6g}"


def _step_against(step: Fraction | float, eps: str, name: str) -> str:
    value, own = to_fraction(eps), f"the output's own step {name}"
    if value < step:
        return f"eps {eps} is below {own}: no difference between two stored outputs but 0 is within it"
    return f"eps {eps} is {float(value / to_fraction(step)):.4g} times {own}"


def _head(network: Network) -> list[str]:
    classes = ", ".join(network.class_name(i) for i in range(network.class_count))
    shown = classes if len(classes) <= 100 else f"{network.class_count} classes"
    first = f"{network}, {network.output.value} over {shown}, network {network.sha256[:12]}"
    if network.scaling is None:
        return [first]
    parts = zip(range(MOST_SCALES), *network.scaling.nearest, strict=False)
    scales = [
        f"{network.feature_name(i)} * {scale:.6g} {'-' if offset < 0 else '+'} {abs(offset):.6g}" for i, scale, offset in parts
    ]
    more = f", and {network.inputs - MOST_SCALES} more" if network.inputs > MOST_SCALES else ""
    return [first, f"  layer 1, inputs scaled: {', '.join(scales)}{more}; not quantized"]


def _array_lines(arrays: list[Stored], scheme: Scheme | None) -> list[str]:
    lines = []
    for array in arrays:
        shape = "x".join(str(size) for size in array.shape)
        text = f"  layer {array.layer}, {array.what} {shape}: {array.least:.6g} to {array.greatest:.6g}"
        if scheme is not None:
            text += "; stays in float" if array.steps is None else f"; {_fate(array)}"
        lines.append(text)
    if scheme is not None:
        kept = [array for array in arrays if array.steps is None]
        lines.append(f"  {scheme} quantizes {len(arrays) - len(kept)} of {len(arrays)} arrays of parameters")
    return lines


def _fate(array: Stored) -> str:
    assert array.steps is not None
    low, high = array.steps
    steps = _steps_text(np.array([low, high]))
    beyond = f", {array.overflowed} beyond the range" if array.overflowed else ""
    return f"{steps}, changed by at most {array.changed:.6g}{beyond}"


def _tolerance(scheme: Scheme, eps: str) -> str:
    step = scheme.output_step
    if step is None:
        return f"{scheme} says nothing about how confidences are stored: eps {eps} stands on its own"
    return _step_against(step, eps, f"1/{round(1 / step)} if outputs are stored in {scheme}, too")


def _claimed(original: Network, scheme: Scheme, shipped: Network | IntegerProgram) -> ParameterBox:
    """Return the box in which what ships is to lie."""
    return box_for_program(original, scheme, shipped) if isinstance(shipped, IntegerProgram) else scheme.box(original)


def _copy_lines(
    shipped: Network | IntegerProgram, original: Network, box: ParameterBox | None, strays: list[Outside] | None
) -> list[str]:
    if box is None or strays is None:
        return []
    place = f"the box of {box.rule} around {original}."
    if not strays:
        return [f"INSIDE: {shipped} lies in {place}"]
    return [f"OUTSIDE: {shipped} leaves {place}", *(f"  {stray}" for stray in strays)]
