"""Train the examples on scikit-learn's bundled tables: iris (3 classes) and breast_cancer (two hidden layers).

    python -m models.train_bundled --model iris --seed 0
    python -m models.train_bundled --model breast_cancer --seed 0

Training runs on standardised inputs; the standardisation is then folded into the first layer, so that the network that
is kept takes natural units.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from datasets.loaders import Table, load_bundled
from models.publish import LICENCE, Card, accuracy, data_facts, percent, publish, run, versions
from models.selection import RejectedSeed, Selected, first_accepted, idle_units
from qrobust.formats.sklearn import from_sklearn
from qrobust.network import Dense, Network

TEST_SHARE = 0.22
LEAST_TRAIN_ACCURACY = 0.90
RULE = "no hidden unit is off on every training row, and the training accuracy is at least 90 %"


@dataclass(frozen=True)
class Example:
    """What to train: the table, its columns (None: all), the sizes of the hidden layers, and words for the card."""

    table: str
    columns: tuple[str, ...] | None
    hidden: tuple[int, ...]
    title: str
    summary: str
    source: str


EXAMPLES = {
    "iris": Example(
        "iris",
        None,
        (5,),
        "Iris: three classes",
        "The species of an iris from four lengths: the example of a softmax over several classes.",
        "scikit-learn's iris table ([card](../datasets/bundled.md))",
    ),
    "breast_cancer": Example(
        "breast_cancer",
        ("worst radius", "worst texture"),
        (4, 3),
        "Breast cancer: two hidden layers",
        "Malignant or benign from two measurements of cell nuclei: the example of two hidden layers, with inputs that "
        "can be drawn. An example for software, not for medicine.",
        "two columns of scikit-learn's breast_cancer table ([card](../datasets/bundled.md))",
    ),
}


@dataclass(frozen=True)
class Trained:
    """A trained network, its accuracies, and the greatest difference that folding the standardisation made."""

    network: Network
    train: float
    test: float
    folding: float


def train_example(example: Example, table: Table, seed: int) -> Trained:
    """Train with a seed. Raises RejectedSeed if the result breaks RULE."""
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    train_x, test_x, train_y, test_y = train_test_split(table.inputs, table.labels, test_size=TEST_SHARE, random_state=seed)
    centre, scale = train_x.mean(axis=0), train_x.std(axis=0)
    estimator = MLPClassifier(example.hidden, solver="lbfgs", alpha=0.01, max_iter=5000, random_state=seed)
    estimator.fit((train_x - centre) / scale, train_y)
    standardised = from_sklearn(estimator, name=example.table, features=table.features, classes=table.classes)
    network = fold_standardisation(standardised, centre, scale)
    idle = idle_units(network, train_x)
    if idle:
        raise RejectedSeed(f"off on every training row: {', '.join(idle)}")
    correct = accuracy(network, train_x, train_y)
    if correct < LEAST_TRAIN_ACCURACY:
        raise RejectedSeed(f"training accuracy {percent(correct)}")
    expected = estimator.predict_proba((table.inputs - centre) / scale)
    found = network.confidences(table.inputs)
    folding = float(np.abs(found[:, -1] - expected[:, -1]).max())
    return Trained(network, correct, accuracy(network, test_x, test_y), folding)


def fold_standardisation(network: Network, centre: npt.NDArray[np.float64], scale: npt.NDArray[np.float64]) -> Network:
    """The network that computes, up to rounding, network((x - centre) / scale). Shapes: centre, scale (inputs,)."""
    first = network.layers[0]
    weight = first.weight / scale
    layer = Dense(weight, first.bias - weight @ centre, first.activation)
    return replace(network, layers=(layer, *network.layers[1:]))


def train(arguments: argparse.Namespace) -> None:
    """Write models/<model>.json and its card."""
    example = EXAMPLES[arguments.model]
    table = load_bundled(example.table, example.columns)
    seeds = range(arguments.seed, arguments.seed + arguments.tries)
    selected = first_accepted(seeds, lambda seed: train_example(example, table, seed))
    trained = selected.trained
    print(f"accuracy train {percent(trained.train)}, test {percent(trained.test)}")
    publish(trained.network, arguments.model, card(arguments.model, table, selected))


def card(model: str, table: Table, selected: Selected[Trained]) -> Card:
    """The card of an example."""
    example, trained = EXAMPLES[model], selected.trained
    return Card(
        example.title,
        example.summary,
        (
            ("file", f"`models/{model}.json`"),
            ("origin", "trained by the project"),
            ("licence", LICENCE),
            *data_facts(table, example.source),
            (
                "training",
                f"MLPClassifier({example.hidden}, solver='lbfgs', alpha=0.01) on standardised inputs, "
                f"split 78 % / 22 % by random_state={selected.seed}",
            ),
            ("command", f"`python -m models.train_bundled --model {model} --seed {selected.first}`"),
            ("seed", f"{selected.seed}, selected (see below)"),
            ("versions", versions("scikit-learn", "numpy")),
            ("accuracy", f"train {percent(trained.train)}, test {percent(trained.test)}"),
            (
                "scaling",
                "none to apply: the standardisation is folded into the first layer, which moved no confidence "
                f"by more than {trained.folding:.1e} on the table",
            ),
        ),
        (selected.in_words(RULE),),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Train an example on a bundled table of scikit-learn.")
    parser.add_argument("--model", choices=sorted(EXAMPLES), required=True, help="which example")
    parser.add_argument("--seed", type=int, default=0, help="first seed to try")
    parser.add_argument("--tries", type=int, default=50, help="how many seeds to try, counting upward")
    return run(parser, train, argv)


if __name__ == "__main__":
    sys.exit(main())
