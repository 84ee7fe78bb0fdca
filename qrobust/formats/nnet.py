"""The .nnet text format of the ACAS Xu networks: dense ReLU layers with a linear last one.

After comment lines that start with `//`, every line holds numbers that are followed by commas: the number of layers, of
inputs, of outputs and the greatest layer size; the sizes, inputs first; a flag without use; the least and the greatest
inputs; the means and the ranges of the inputs and, as one last number each, of the outputs (these four may name further
inputs that the network does not take: ACAS Xu's own files do); then each layer's weights, a line for each of its neurons,
and its biases, one a line.

Meaning   the network as read takes *normalized* inputs, (x - mean) / range, and gives normalized outputs: folding these
          numbers into the weights would round, and so change what is proved. The features carry the least and greatest
          inputs in normalized units, for people. The outputs are raw scores and become the logits of a softmax. ACAS Xu
          advises the action of the *least* score, so a question about its advisories is not one about this network's labels;
          ask how far any score moves (`GlobalLogitChange`)
Source    Julian, NNet repository, github.com/sisl/NNet; Katz et al. 2017, arXiv 1702.01135, for ACAS Xu
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from qrobust.errors import ModelFileError
from qrobust.files import read_bytes
from qrobust.formats.untrusted import one_line, parsing
from qrobust.interval import FloatArray
from qrobust.network import Activation, Dense, Feature, Network, Output

MOST_LAYERS = 1000


def read_nnet(path: Path | str) -> Network:
    """Read a network over normalized inputs and outputs; see the module. Raises ModelFileError with the line that is wrong.

    A file that names more numbers than it has room for is refused before memory is taken for them.
    """
    content = read_bytes(path)
    with parsing(path, ".nnet"):
        lines = _Lines(content.decode("ascii"))
        sizes = _sizes(lines, len(content))
        features = _features(lines, sizes[0])
        last = len(sizes) - 2
        layers = []
        for number, (inputs, outputs) in enumerate(pairwise(sizes)):
            weight = np.array([lines.numbers(inputs, f"a row of the weights of layer {number + 1}") for _ in range(outputs)])
            bias = np.array([lines.numbers(1, f"a bias of layer {number + 1}")[0] for _ in range(outputs)])
            layers.append(Dense(weight, bias, Activation.LINEAR if number == last else Activation.RELU))
        lines.end()
    output = Output.SIGMOID if sizes[-1] == 1 else Output.SOFTMAX
    return Network(tuple(layers), output, name=Path(path).stem, features=features)


class _Lines:
    """The lines of a file that are neither comments nor empty, read one after the other."""

    def __init__(self, text: str) -> None:
        self._lines: Iterator[tuple[int, str]] = (
            (number, line)
            for number, line in enumerate(text.splitlines(), start=1)
            if line.strip() and not line.lstrip().startswith("//")
        )

    def numbers(self, count: int | None, what: str) -> FloatArray:
        """Return the numbers of the next line; `count` of them, if it is given. Raises ModelFileError."""
        number, line = next(self._lines, (0, ""))
        if not number:
            raise ModelFileError(f"the file ends before {what}: save it again")
        cells = line.strip().removesuffix(",").split(",")
        if count is not None and len(cells) != count:
            raise ModelFileError(f"line {number} has {len(cells)} numbers, {what} has {count}")
        try:
            values = np.array(cells, dtype=np.float64)
        except ValueError:
            raise ModelFileError(f"line {number}, {what}: {one_line(line, 40)!r} is not a list of numbers") from None
        if not np.isfinite(values).all():
            raise ModelFileError(f"line {number}, {what}: a number is NaN or infinite")
        return values

    def integers(self, count: int | None, what: str) -> list[int]:
        """Return the whole numbers of the next line."""
        values = self.numbers(count, what)
        if not (values == np.rint(values)).all() or (np.abs(values) > 2**53).any():
            raise ModelFileError(f"{what}: {values[0]:g} ... are not all whole numbers")
        return [int(value) for value in values.tolist()]

    def end(self) -> None:
        """Raise ModelFileError unless no line is left."""
        number, _ = next(self._lines, (0, ""))
        if number:
            raise ModelFileError(f"line {number} follows the last bias: the sizes in the header are not those of the layers")


def _sizes(lines: _Lines, length: int) -> list[int]:
    """Return the sizes of the layers, inputs first, once they are known to fit into the file."""
    layers, inputs, outputs, _ = lines.integers(4, "the header")
    if not 1 <= layers <= MOST_LAYERS:
        raise ModelFileError(f"the header names {layers} layers, this reads 1 to {MOST_LAYERS}")
    sizes = lines.integers(layers + 1, "the list of layer sizes")
    if min(sizes) < 1:
        raise ModelFileError(f"a layer has {min(sizes)} neurons: it needs at least 1")
    if (sizes[0], sizes[-1]) != (inputs, outputs):
        raise ModelFileError(f"the header names {inputs} inputs and {outputs} outputs, the sizes {sizes[0]} and {sizes[-1]}")
    count = sum(before * after + after for before, after in pairwise(sizes))
    if 2 * count > length:  # a number takes at least one digit and a comma or a line break
        raise ModelFileError(f"its sizes ask for {count:,} numbers, more than its {length:,} bytes can hold")
    lines.numbers(None, "the flag")
    return sizes


def _features(lines: _Lines, inputs: int) -> tuple[Feature, ...]:
    """Return the inputs with their least and greatest values, normalized and rounded to nearest: for people."""
    least = lines.numbers(None, "the least inputs")
    count = len(least)
    if count < inputs:
        raise ModelFileError(f"the least inputs are {count} numbers for {inputs} inputs")
    greatest = lines.numbers(count, "the greatest inputs")
    means, ranges = (lines.numbers(count + 1, f"the {what} of the inputs and outputs")[:inputs] for what in ("means", "ranges"))
    if (ranges == 0).any():
        raise ModelFileError("a range is 0: normalized inputs are divided by it")
    with np.errstate(over="ignore"):
        ends = np.stack([(end[:inputs] - means) / ranges for end in (least, greatest)])
    if not np.isfinite(ends).all():
        raise ModelFileError("an input's range overflows when normalized")
    lower, upper = ends.min(axis=0).tolist(), ends.max(axis=0).tolist()
    return tuple(Feature(f"input {i + 1}", "normalized", lower[i], upper[i]) for i in range(inputs))
