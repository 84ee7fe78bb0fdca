"""Train ATH-ReLU and ATH-Linear, 2-3-1 networks on the athletes table, with Keras on TensorFlow (200 epochs).

    python -m models.train_athletes --athletes ../shared/data/athletes.csv --activation relu --seed 0
    python -m models.train_athletes --athletes ../shared/data/athletes.csv --activation linear --seed 0

Needs `pip install qrobust[tensorflow]`. With --download, a missing table is fetched from its public address first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.loaders import Table, athletes_origin, download_athletes, load_athletes
from models.publish import (
    FOLDER,
    LICENCE,
    Card,
    Predictions,
    accuracy,
    data_facts,
    percent,
    publish,
    run,
    versions,
)
from models.selection import RejectedSeed, Selected, first_accepted, idle_units, switching_units
from qrobust.errors import BackendUnavailableError
from qrobust.files import write_whole
from qrobust.network import Activation, Dense, Network, Output

HIDDEN = 3
EPOCHS = 200
BATCH = 32
STEPS_PER_CALL = 53
TEST_SHARE = 0.22
STANDARD_ERRORS = 2
POINTS = 50
POINTS_SEED = 0


@dataclass(frozen=True)
class Variant:
    """One of the two networks: where it is kept, its name, and the accuracy that the paper gives."""

    stem: str
    name: str
    paper_accuracy: float


VARIANTS = {
    Activation.RELU: Variant("ath_relu", "ATH-ReLU", 0.7719),
    Activation.LINEAR: Variant("ath_linear", "ATH-Linear", 0.7736),
}


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network, its Keras file, its accuracies, and what Keras itself predicts."""

    network: Network
    file: bytes
    train: float
    test: float
    predictions: Predictions


def keras_model(keras: Any, activation: Activation) -> Any:
    """A 2-3-1 Keras model, compiled: Adam, binary cross entropy."""
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(HIDDEN, activation=activation.value),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(optimizer="adam", loss="binary_crossentropy", steps_per_execution=STEPS_PER_CALL)
    return model


def as_network(model: Any, activation: Activation, table: Table) -> Network:
    """The network of a Keras model's weights; float32 numbers are kept exactly."""
    hidden_weight, hidden_bias, weight, bias = model.get_weights()
    layers = (Dense(hidden_weight.T, hidden_bias, activation), Dense(weight.T, bias))
    return Network(layers, Output.SIGMOID, VARIANTS[activation].name, table.features, table.classes)


def train_seed(keras: Any, activation: Activation, table: Table, seed: int) -> Trained:
    """Train with a seed, which also makes the split. Raises RejectedSeed if the rule is broken."""
    from sklearn.model_selection import train_test_split

    keras.utils.set_random_seed(seed)
    train_x, test_x, train_y, test_y = train_test_split(table.inputs, table.labels, test_size=TEST_SHARE, random_state=seed)
    model = keras_model(keras, activation)
    idle = idle_units(as_network(model, activation, table), train_x)
    if idle:  # the gradient of such a unit is zero, so it stays as it is
        raise RejectedSeed(f"off on every training row from the start: {', '.join(idle)}")
    model.fit(train_x, train_y, epochs=EPOCHS, batch_size=BATCH, verbose=0)
    network = as_network(model, activation, table)
    test = accuracy(network, test_x, test_y)
    idle = idle_units(network, train_x)
    if idle:
        raise RejectedSeed(f"off on every training row: {', '.join(idle)}")
    if abs(test - VARIANTS[activation].paper_accuracy) > tolerance(activation, table):
        raise RejectedSeed(f"test accuracy {percent(test)}")
    stem = VARIANTS[activation].stem
    return Trained(network, saved(model), accuracy(network, train_x, train_y), test, predictions(model, table, stem))


def saved(model: Any) -> bytes:
    """The content of the model's `.keras` file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.read_bytes()


def predictions(model: Any, table: Table, stem: str) -> Predictions:
    """What Keras says at points spread over the table's ranges; none of them is a row of the table.

    Property  the points are float32 numbers, so that Keras and a float64 reader see the same ones
    """
    lower = np.array([feature.lower for feature in table.features], dtype=np.float64)
    upper = np.array([feature.upper for feature in table.features], dtype=np.float64)
    points = np.random.default_rng(POINTS_SEED).uniform(lower, upper, (POINTS, lower.size)).astype(np.float32)
    confidences = np.asarray(model.predict(points, verbose=0), dtype=np.float64)
    library = f"Keras and TensorFlow, float32: {versions('keras', 'tensorflow_cpu')}"
    return Predictions(library, f"{stem}.keras", points.astype(np.float64), confidences)


def tolerance(activation: Activation, table: Table) -> float:
    """How far from the paper's a test accuracy may lie: two standard errors of a share of the test rows."""
    expected, rows = VARIANTS[activation].paper_accuracy, TEST_SHARE * table.labels.size
    return STANDARD_ERRORS * float(np.sqrt(expected * (1 - expected) / rows))


def rule(activation: Activation, table: Table) -> str:
    """What a seed must meet, in words."""
    close = (
        f"the test accuracy is within {100 * tolerance(activation, table):.2f} percentage points ({STANDARD_ERRORS} "
        f"standard errors) of the paper's, {percent(VARIANTS[activation].paper_accuracy)}"
    )
    return f"no hidden unit is off on every training row, and {close}" if activation is Activation.RELU else close


def card(activation: Activation, table: Table, selected: Selected[Trained]) -> Card:
    """The card of one of the two networks."""
    variant = VARIANTS[activation]
    return Card(
        f"{variant.name}: male or female from height and weight",
        f"The sex of an athlete of the 2016 Olympic Games: the network {variant.name} of Murthy, Das, Islam 2019 "
        "(arXiv 1903.10672), trained afresh, for the paper's weights are not to be had.",
        (
            ("files", f"`models/{variant.stem}.keras`, the same network in `models/{variant.stem}.json`"),
            ("origin", "trained by the project"),
            ("licence", LICENCE),
            *training_facts(activation, table, selected),
            *measured_facts(activation, selected.trained),
        ),
        (selected.in_words(rule(activation, table)), *shape_notes(activation, table, selected.trained.network)),
    )


def training_facts(activation: Activation, table: Table, selected: Selected[Trained]) -> tuple[tuple[str, str], ...]:
    """The rows of the card that say how to train the network again."""
    origin = athletes_origin(table.sha256) or "a file whose sha256 the project does not know"
    return (
        *data_facts(table, f"{origin} ([card](../datasets/athletes.md)), complete rows only"),
        (
            "training",
            f"Keras, {EPOCHS} epochs, Adam (learning rate 0.001), batches of {BATCH}, binary cross entropy, raw "
            f"inputs; split 78 % / 22 % by random_state={selected.seed}",
        ),
        (
            "command",
            f"`python -m models.train_athletes --athletes PATH --activation {activation.value} --seed {selected.first}`",
        ),
        ("seed", f"{selected.seed}, selected (see below)"),
        ("versions", versions("keras", "tensorflow_cpu", "scikit-learn", "numpy")),
    )


def measured_facts(activation: Activation, trained: Trained) -> tuple[tuple[str, str], ...]:
    """The rows of the card that were measured."""
    variant = VARIANTS[activation]
    difference = np.abs(trained.network.confidences(trained.predictions.inputs) - trained.predictions.confidences).max()
    return (
        (
            "accuracy",
            f"train {percent(trained.train)}, test {percent(trained.test)}; the paper gives {percent(variant.paper_accuracy)}",
        ),
        (
            "predictions",
            f"`models/{variant.stem}.predictions.json`: Keras's own at {POINTS} points spread over the input ranges, "
            f"none taken from the table; the network in float64 differs from them by at most {difference:.1e}",
        ),
    )


def shape_notes(activation: Activation, table: Table, network: Network) -> tuple[str, ...]:
    """What the units do over the input ranges: for ReLU alone."""
    if activation is not Activation.RELU:
        return ()
    lower, upper = table.inputs.min(axis=0), table.inputs.max(axis=0)
    count = switching_units(network, lower, upper)
    note = f"Over the box of the input ranges {count} of the {HIDDEN} ReLU units change sign."
    if count == 0:
        note += (
            " So within that box the logit is an affine function of the inputs, as a linear network's is. This comes "
            "from raw inputs: in each unit the weight in kilograms outweighs the rest."
        )
    return (note,)


def train(arguments: argparse.Namespace) -> None:
    """Write models/<stem>.keras, .json, .predictions.json and .md for the chosen activation."""
    path = Path(arguments.athletes)
    if arguments.download and not path.exists():
        download_athletes(path)
    table = load_athletes(path)
    if athletes_origin(table.sha256) is None:
        print(f"{path}: sha256 {table.sha256} is not a known one; training on it all the same", flush=True)
    activation = Activation(arguments.activation)
    keras = load_keras()
    seeds = range(arguments.seed, arguments.seed + arguments.tries)
    selected = first_accepted(seeds, lambda seed: train_seed(keras, activation, table, seed))
    trained, stem = selected.trained, VARIANTS[activation].stem
    print(f"seed {selected.seed}: accuracy train {percent(trained.train)}, test {percent(trained.test)}")
    write_whole(FOLDER / f"{stem}.keras", trained.file)
    write_whole(FOLDER / f"{stem}.predictions.json", (trained.predictions.to_json() + "\n").encode())
    publish(trained.network, stem, card(activation, table, selected))


def load_keras() -> Any:
    """Keras on TensorFlow, on one CPU thread with repeatable operations. Raises BackendUnavailableError."""
    try:
        import keras
        import tensorflow
    except ImportError:
        raise BackendUnavailableError("training the athletes needs `pip install qrobust[tensorflow]`") from None
    tensorflow.config.set_visible_devices([], "GPU")
    tensorflow.config.threading.set_intra_op_parallelism_threads(1)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    tensorflow.config.experimental.enable_op_determinism()
    return keras


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Train ATH-ReLU or ATH-Linear with Keras.")
    parser.add_argument("--athletes", required=True, metavar="PATH", help="the athletes table, in either layout")
    parser.add_argument("--download", action="store_true", help="fetch the public table to PATH if nothing is there")
    parser.add_argument("--activation", choices=[kind.value for kind in VARIANTS], required=True, help="hidden units")
    parser.add_argument("--seed", type=int, default=0, help="first seed to try")
    parser.add_argument("--tries", type=int, default=30, help="how many seeds to try, counting upward")
    return run(parser, train, argv)


if __name__ == "__main__":
    sys.exit(main())
