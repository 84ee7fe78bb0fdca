"""Writing a trained network into `models/`: the network, the card that says where it comes from, and predictions.

Each file appears whole or not at all; the card is written last, so a card always describes files that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datasets.loaders import Table
from qrobust.errors import QRobustError
from qrobust.files import write_whole
from qrobust.formats.native import write_native
from qrobust.network import Activation, Network, Output

FOLDER = Path(__file__).parent
LICENCE = "Apache-2.0, as the project; the numbers are the project's own"


@dataclass(frozen=True)
class Card:
    """What a person must know before using a model; `facts` are rows of a table, `notes` are paragraphs."""

    title: str
    summary: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Predictions:
    """What another library says about some inputs, so that a reader of its files can be tested without it.

    Shapes    inputs (points, features); confidences (points, outputs)
    """

    library: str
    file: str
    inputs: npt.NDArray[np.float64]
    confidences: npt.NDArray[np.float64]

    def to_json(self) -> str:
        """The predictions as JSON text; every number reads back exactly."""
        return json.dumps(
            {
                "library": self.library,
                "file": self.file,
                "inputs": self.inputs.tolist(),
                "confidences": self.confidences.tolist(),
            },
            indent=1,
            allow_nan=False,
        )


def publish(network: Network, stem: str, card: Card, *, folder: Path = FOLDER) -> None:
    """Write `<stem>.json` and its card `<stem>.md`. Raises OutputError."""
    write_native(network, folder / f"{stem}.json")
    write_whole(folder / f"{stem}.md", card_text(network, card).encode())
    print(f"wrote {folder / stem}.json and its card; content sha256 {network.sha256}")


def card_text(network: Network, card: Card) -> str:
    """The card of a network as Markdown."""
    facts = [*card.facts, ("architecture", architecture(network)), ("content sha256", f"`{network.sha256}`")]
    lines = [f"# {card.title}", "", card.summary, "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts]
    lines += ["", "## Inputs, in this order", "", "| input | unit | least | greatest |", "|---|---|---|---|"]
    lines += [f"| {f.name} | {f.unit or '-'} | {f.lower} | {f.upper} |" for f in network.features]
    lines += ["", "## Classes", ""]
    lines += [f"- {index}: {name}" for index, name in enumerate(network.classes)]
    for note in card.notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def architecture(network: Network) -> str:
    """The layers of a network in words."""
    sizes = "-".join(str(size) for size in (network.inputs, *(layer.outputs for layer in network.layers)))
    hidden = ", ".join(
        f"{layer.outputs} {'linear' if layer.activation is Activation.LINEAR else layer.activation.value} units"
        for layer in network.hidden_layers
    )
    ending = "one sigmoid output" if network.output is Output.SIGMOID else f"softmax over {network.class_count} classes"
    return f"{sizes}: {hidden or 'no hidden layer'}, {ending}; {network.parameter_count} parameters"


def data_facts(table: Table, description: str) -> tuple[tuple[str, str], ...]:
    """The rows of a card that identify the data."""
    rows, width = table.inputs.shape
    return (("data", f"{description}; {rows:,} rows, {width} inputs"), ("data sha256", f"`{table.sha256}`"))


def versions(*packages: str) -> str:
    """The installed versions of some packages and of Python, for a card."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    return ", ".join([f"Python {python}", *(f"{package} {version(package)}" for package in packages)])


def percent(value: float) -> str:
    """A share as a percentage with two digits."""
    return f"{100 * value:.2f} %"


def accuracy(network: Network, inputs: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """The share of rows that the network labels rightly, in floating point."""
    return float((network.labels(inputs) == labels).mean())


def run(parser: argparse.ArgumentParser, train: Callable[[argparse.Namespace], None], argv: Sequence[str] | None) -> int:
    """Run a training script: exit code 0, or 2 after one line for an error of ours."""
    arguments = parser.parse_args(argv)
    try:
        train(arguments)
    except QRobustError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0
