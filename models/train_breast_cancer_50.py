"""Train a network with one hidden layer of 50 units on all 30 columns of scikit-learn's breast_cancer table.

    python -m models.train_breast_cancer_50

Unlike the examples of `models.train_bundled`, the network takes standardised inputs: the card says how to make them. It is
kept from the first seed, whatever accuracy it gives.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datasets.loaders import Table, load_bundled
from models.publish import LICENCE, Card, accuracy, data_facts, percent, publish, run, versions
from qrobust.formats.sklearn import from_sklearn
from qrobust.network import Feature, Network

STEM = "breast_cancer_50"
HIDDEN = 50
ALPHA = 1.0
TEST_SHARE = 0.2
SEED = 0

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """The table, standardised by the mean and the standard deviation of its training rows, and split.

    Shapes    train_x, test_x (rows, 30); train_y, test_y (rows,); centre, scale (30,)
    """

    train_x: FloatArray
    test_x: FloatArray
    train_y: IntArray
    test_y: IntArray
    centre: FloatArray
    scale: FloatArray
    features: tuple[Feature, ...]


def load_split(table: Table) -> Split:
    """Split the table by the seed and standardise it; the features carry the ranges over the whole table, standardised."""
    from sklearn.model_selection import train_test_split

    train_x, test_x, train_y, test_y = train_test_split(table.inputs, table.labels, test_size=TEST_SHARE, random_state=SEED)
    centre, scale = train_x.mean(axis=0), train_x.std(axis=0)
    every = (table.inputs - centre) / scale
    features = tuple(
        Feature(feature.name, "", float(column.min()), float(column.max()))
        for feature, column in zip(table.features, every.T, strict=True)
    )
    return Split((train_x - centre) / scale, (test_x - centre) / scale, train_y, test_y, centre, scale, features)


def train_network(table: Table, split: Split) -> Network:
    """The trained network, on standardised inputs."""
    from sklearn.neural_network import MLPClassifier

    estimator = MLPClassifier((HIDDEN,), solver="lbfgs", alpha=ALPHA, max_iter=5000, random_state=SEED)
    estimator.fit(split.train_x, split.train_y)
    return from_sklearn(estimator, name=STEM, features=split.features, classes=table.classes)


def card(table: Table, split: Split, network: Network) -> Card:
    """The card of the network."""
    counts = len(split.train_y), len(split.test_y)
    found = [percent(accuracy(network, x, y)) for x, y in ((split.train_x, split.train_y), (split.test_x, split.test_y))]
    units = [
        f"- {feature.name}: {centre}, {scale}"
        for feature, centre, scale in zip(table.features, split.centre.tolist(), split.scale.tolist(), strict=True)
    ]
    return Card(
        "Breast cancer: all 30 measurements, one hidden layer of 50 units",
        "Malignant or benign from thirty measurements of cell nuclei: the example of a wide hidden layer and one sigmoid. "
        "An example for software, not for medicine.",
        (
            ("file", f"`models/{STEM}.json`"),
            ("origin", "trained by the project"),
            ("licence", LICENCE),
            *data_facts(table, "scikit-learn's breast_cancer table ([card](../datasets/bundled.md))"),
            (
                "training",
                f"MLPClassifier(({HIDDEN},), solver='lbfgs', alpha={ALPHA}) on standardised inputs, split 80 % / 20 % by "
                f"random_state={SEED}: {counts[0]} and {counts[1]} rows",
            ),
            ("command", "`python -m models.train_breast_cancer_50`"),
            ("seed", f"{SEED}, the first and only one"),
            ("versions", versions("scikit-learn", "numpy")),
            ("accuracy", f"train {found[0]}, test {found[1]}"),
            (
                "scaling",
                "the network takes standardised inputs, (value - mean) / standard deviation, with the numbers at the end "
                "of this card; the ranges below are those of the whole table, standardised",
            ),
        ),
        (
            "## Mean and standard deviation of each measurement over the training rows",
            "\n".join(units),
            "In the table's own units, population standard deviation (divided by the number of rows).",
        ),
    )


def train(arguments: argparse.Namespace) -> None:
    """Write models/breast_cancer_50.json and its card."""
    table = load_bundled("breast_cancer")
    split = load_split(table)
    network = train_network(table, split)
    publish(network, STEM, card(table, split, network))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Train a network with 50 hidden units on the breast_cancer table.")
    return run(parser, train, argv)


if __name__ == "__main__":
    sys.exit(main())
