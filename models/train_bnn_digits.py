"""Train two small networks of signs on scikit-learn's digits, 8x8 images, and keep them as Keras models.

    python -m models.train_bnn_digits

Needs `pip install qrobust[tensorflow]`. Each is kept from the first seed, whatever accuracy it gives; beside it what Keras
itself says of some inputs, so that the reader of these files can be tested without Keras.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from models.publish import FOLDER, LICENCE, percent, run, versions
from models.train_bnn import in_words, non_zeros, share_right
from models.train_digits import FILE, digits_sha256, load_split
from models.train_mnist import DIGITS, Images
from qrobust.binarized import BinarizedNetwork
from qrobust.binarized.formats import keras_layers, load_binarized, save_binarized
from qrobust.binarized.recipes import RECIPES, Filters, Recipe
from qrobust.binarized.training import train as train_network
from qrobust.files import write_whole

POINTS, POINTS_SEED = 60, 0
UNIT = 32  # points are multiples of 1 / UNIT, of which some lie half way between two steps
KEPT: dict[str, Recipe] = {
    "bnn_digits": replace(RECIPES["ternary"], hidden=(32, 16), step="1/8", epochs=80, batch=32),
    "bnn_digits_conv": replace(
        RECIPES["ternary"], convolutions=(Filters(8, 3, 2, 1), Filters(12, 3, 2, 1)), hidden=(), epochs=80, batch=32
    ),
}


def keras_model(stem: str) -> Any:
    """A kept network as Keras opens it."""
    import keras

    keras_layers()
    return keras.models.load_model(FOLDER / f"{stem}.keras")


def predictions(stem: str, tests: Images) -> dict[str, Any]:
    """What Keras says: the scores of random points, given in units of 1 / UNIT, and the labels of the test images."""
    model, rng = keras_model(stem), np.random.default_rng(POINTS_SEED)
    shares = rng.random((POINTS, 1))  # of pixels that are not background
    points = rng.integers(0, UNIT + 1, (POINTS, 64)) * (rng.random((POINTS, 64)) < shares)
    scores = np.asarray(model.predict(points / UNIT, verbose=0), dtype=np.float64)
    labels = np.asarray(model.predict(tests.inputs, verbose=0)).argmax(axis=1)
    library = f"Keras and TensorFlow, float32: {versions('keras', 'tensorflow_cpu')}"
    found = {"library": library, "file": f"{stem}.keras", "unit": f"1/{UNIT}", "points": points.tolist()}
    return found | {"scores": scores.tolist(), "test_labels": labels.tolist()}


def card(stem: str, network: BinarizedNetwork, images: tuple[Images, Images]) -> str:
    """The card of a network as Markdown."""
    train_part, tests = images
    counts = f"{len(train_part.labels):,} training and {len(tests.labels):,} test images"
    weights, kept = sum(linear.layer.weight.size for linear in network.linears), non_zeros(network)
    found = f"train {percent(share_right(network, train_part))}, test {percent(share_right(network, tests))}, in integers"
    facts = (
        ("file", f"`models/{stem}.keras`, a Keras model: weights -1, 0 and 1, all else float32"),
        ("origin", "trained by the project"),
        ("licence", LICENCE),
        (
            "data",
            "scikit-learn's digits table: the test part of Alpaydin, Kaynak 1998, Optical Recognition of Handwritten Digits, "
            f"UCI repository, data set 80; {counts}, 64 inputs",
        ),
        ("data sha256", f"`{digits_sha256()}` ({FILE})"),
        ("recipe", f"of qrobust.binarized.recipes: {in_words(KEPT[stem])}"),
        ("command", f"`python -m models.train_bnn_digits --only {stem}`"),
        ("seed", f"{KEPT[stem].seed}, the first and only one"),
        ("versions", versions("keras", "tensorflow_cpu", "scikit-learn", "numpy")),
        ("accuracy", found),
        (
            "predictions",
            f"`models/{stem}.predictions.json`: Keras's own scores at {POINTS} random points and labels of the test images",
        ),
        ("architecture", f"{network}, signs between layers"),
        ("non-zero weights", f"{sum(kept):,} of {weights:,}; by layer {', '.join(f'{number:,}' for number in kept)}"),
        ("content sha256", f"`{network.sha256}`"),
    )
    lines = [f"# Digits, network of signs, {stem}", "", "Handwritten digits from 8x8 pixels by a network of signs.", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts), "", "## Inputs, in this order", ""]
    lines += [f"64 pixels, row by row from the top left, each from 0 to 1, rounded to multiples of {network.grid.step}."]
    lines += ["", "## Classes", "", *(f"- {digit}: the digit {digit}" for digit in range(DIGITS))]
    return "\n".join(lines) + "\n"


def train(arguments: argparse.Namespace) -> None:
    """Write models/<stem>.keras, .predictions.json and .md, for each network asked for."""
    images = load_split()
    for stem in [arguments.only] if arguments.only else list(KEPT):
        path = FOLDER / f"{stem}.keras"
        save_binarized(train_network(KEPT[stem], images[0].inputs, images[0].labels, DIGITS, name=stem, say=print), path)
        network = load_binarized(path).network
        write_whole(FOLDER / f"{stem}.predictions.json", (json.dumps(predictions(stem, images[1])) + "\n").encode())
        write_whole(FOLDER / f"{stem}.md", card(stem, network, images).encode())
        print(f"wrote {path}: {network}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Train networks of signs on scikit-learn's digits with Keras.")
    parser.add_argument("--only", choices=list(KEPT), metavar="NAME", help=f"one of {', '.join(KEPT)} (default: all)")
    return run(parser, train, argv)


if __name__ == "__main__":
    sys.exit(main())
