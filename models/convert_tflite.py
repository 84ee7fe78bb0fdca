"""Convert two-feature networks to int8 and int16x8 `.tflite` files with TensorFlow, as a device would ship them.

    python -m models.convert_tflite --athletes ../shared/data/athletes.csv

Needs `pip install qrobust[tensorflow]`. Each model is built in Keras with the float network's own weights and calibrated with
the rows of its table.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.loaders import Table, load_athletes, load_cats
from models.publish import FOLDER, LICENCE, run, versions
from models.train_athletes import load_keras
from qrobust.files import write_whole
from qrobust.formats import load
from qrobust.formats.tflite_program import read_program
from qrobust.network import Dense, Network


@dataclass(frozen=True, eq=False)
class Source:
    """A float network's file, the table that its conversion is calibrated with, and the bits of its activations."""

    stem: str
    target: str
    title: str
    table: Table
    bits: int = 8

    @property
    def operations(self) -> str:
        """What TensorFlow calls the operations that the file is made of."""
        if self.bits == 8:
            return "TFLITE_BUILTINS_INT8"
        return "EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8"


def keras_twin(keras: Any, network: Network) -> Any:
    """Return a Keras model with a dense network's weights, rounded to float32."""
    layers = [layer for layer in network.layers if isinstance(layer, Dense)]
    names = [layer.activation.value for layer in layers[:-1]] + [network.output.value]
    model = keras.Sequential([keras.Input((network.inputs,))])
    for layer, name in zip(layers, names, strict=True):
        model.add(keras.layers.Dense(layer.outputs, activation=name))
        model.layers[-1].set_weights([layer.weight.T.astype(np.float32), layer.bias.astype(np.float32)])
    return model


def converted(tensorflow: Any, model: Any, source: Source) -> bytes:
    """Return the file of integers, its activations' ranges those of the table's rows."""

    def representative() -> Iterator[list[Any]]:
        yield from ([row[None].astype(np.float32)] for row in source.table.inputs)

    converter = tensorflow.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [getattr(tensorflow.lite.OpsSet, source.operations)]
    kind = tensorflow.int8 if source.bits == 8 else tensorflow.int16
    converter.inference_input_type = converter.inference_output_type = kind
    return bytes(converter.convert())


def card(source: Source, network: Network, content: bytes) -> str:
    """Return the card of a converted file."""
    program = read_program(FOLDER / f"{source.target}.tflite")
    facts = [
        ("file", f"`models/{source.target}.tflite`"),
        ("float model", f"`models/{source.stem}.json` ([card]({source.stem}.md)), content sha256 `{network.sha256}`"),
        ("origin", "converted by the project"),
        ("licence", LICENCE),
        ("calibration", f"all {len(source.table.inputs):,} rows of the table, sha256 `{source.table.sha256}`"),
        ("conversion", f"TFLiteConverter, Optimize.DEFAULT, {source.operations}, int{source.bits} at both ends"),
        ("command", "`python -m models.convert_tflite --athletes PATH`"),
        ("versions", versions("keras", "tensorflow_cpu", "numpy")),
        ("input", str(program.input)),
        ("confidence", str(program.result)),
        ("operations", "; ".join(f"{o} to {o.output}" for o in program.operations)),
        ("file sha256", f"`{hashlib.sha256(content).hexdigest()}`"),
        ("content sha256", f"`{program.sha256}`"),
    ]
    lines = [f"# {source.title}", "", "An integer program: the float model in the arithmetic of a small device.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts), ""]
    lines.append("Both inputs share one scale, that of the greater range: see `qrobust compare` for what that costs.")
    return "\n".join(lines) + "\n"


def convert(arguments: argparse.Namespace) -> None:
    """Write the files and their cards."""
    keras = load_keras()
    import tensorflow

    athletes = load_athletes(Path(arguments.athletes))
    sources = (
        Source("cat_paper", "cat_int8", "CAT in int8", load_cats()),
        Source("ath_relu", "ath_relu_int8", "ATH-ReLU in int8", athletes),
        Source("ath_relu", "ath_relu_int16x8", "ATH-ReLU in int16x8", athletes, bits=16),
    )
    for source in sources:
        network = load(FOLDER / f"{source.stem}.json")
        content = converted(tensorflow, keras_twin(keras, network), source)
        write_whole(FOLDER / f"{source.target}.tflite", content)
        write_whole(FOLDER / f"{source.target}.md", card(source, network, content).encode())
        print(f"wrote {source.target}.tflite ({len(content):,} bytes) and its card")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Convert CAT and ATH-ReLU to int8 with TensorFlow.")
    parser.add_argument("--athletes", required=True, metavar="PATH", help="the athletes table, in either layout")
    return run(parser, convert, argv)


if __name__ == "__main__":
    sys.exit(main())
