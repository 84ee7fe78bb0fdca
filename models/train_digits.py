"""Train the network on scikit-learn's digits, 8x8 images: 64-100-100-100-10, ReLU and a softmax, with Keras on TensorFlow.

    python -m models.train_digits

Needs `pip install qrobust[tensorflow]`. The network takes pixels / 16. It is kept from the first seed, whatever accuracy
it gives.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.resources
import sys
from collections.abc import Sequence

import numpy as np

from models.publish import FOLDER, run, versions
from models.train_mnist import Images, Recipe, card_text, common_facts, publish_keras, train_keras
from qrobust.binarized.latent import load_keras
from qrobust.files import write_whole

STEM = "digits_3x100"
FILE = "digits.csv.gz"
HIDDEN = (100, 100, 100)
BRIGHTEST = 16
TEST_SHARE = 0.2
RECIPE = Recipe(epochs=50, batch=32, decay=1e-4)


def load_split() -> tuple[Images, Images]:
    """The training and the test images of scikit-learn's digits, pixels / 16, split by the seed."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    table = load_digits()
    inputs, labels = table.data / np.float64(BRIGHTEST), table.target.astype(np.int64)
    train_x, test_x, train_y, test_y = train_test_split(inputs, labels, test_size=TEST_SHARE, random_state=RECIPE.seed)
    return Images(train_x, train_y), Images(test_x, test_y)


def digits_sha256() -> str:
    """The sha256 of the packed table that comes with scikit-learn."""
    file = importlib.resources.files("sklearn.datasets.data").joinpath(FILE)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def train(arguments: argparse.Namespace) -> None:
    """Write models/digits_3x100.keras and its card."""
    images = load_split()
    model = train_keras(load_keras(), images[0], HIDDEN, RECIPE)
    network, found = publish_keras(model, STEM, images)
    counts = [len(part.labels) for part in images]
    facts = (
        *common_facts(STEM),
        (
            "data",
            "scikit-learn's digits table: the test part of Alpaydin, Kaynak 1998, Optical Recognition of Handwritten Digits, "
            f"UCI repository, data set 80; {sum(counts):,} rows, 64 inputs",
        ),
        ("data sha256", f"`{digits_sha256()}` ({FILE})"),
        (
            "training",
            f"{RECIPE.in_words()}; split 80 % / 20 % by random_state={RECIPE.seed}: {counts[0]:,} and {counts[1]:,} images",
        ),
        ("command", "`python -m models.train_digits`"),
        ("seed", f"{RECIPE.seed}, the first and only one"),
        ("versions", versions("keras", "tensorflow_cpu", "scikit-learn", "numpy")),
        ("accuracy", found),
    )
    text = card_text(
        network,
        "Digits: 8x8 images, three hidden layers of 100 units",
        "Handwritten digits from 8x8 pixels: a fully connected ReLU network with three hidden layers.",
        facts,
        "64 pixels, row by row from the top left, each a whole number 0 (background) to 16 (ink) divided by 16, so 0.0 to 1.0.",
    )
    write_whole(FOLDER / f"{STEM}.md", text.encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Train the network on scikit-learn's digits with Keras.")
    return run(parser, train, argv)


if __name__ == "__main__":
    sys.exit(main())
