"""Train the fully connected MNIST networks, ReLU units and a softmax over ten digits, with Keras on TensorFlow.

    python -m models.train_mnist --mnist ../shared/data/bench/mnist
    python -m models.train_mnist --mnist ../shared/data/bench/mnist --only mnist_1x100

Needs `pip install qrobust[tensorflow]` and the four files of MNIST, which are not kept in the project. The networks take
pixels / 255. Each is kept as a `.keras` file of weights alone, from the first seed, whatever accuracy it gives.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.publish import FOLDER, LICENCE, accuracy, architecture, percent, run, versions
from models.train_athletes import saved
from qrobust import formats
from qrobust.binarized.latent import load_keras
from qrobust.errors import DatasetError
from qrobust.files import write_whole
from qrobust.network import Network

MNIST = Path("../shared/data/bench/mnist")
MNIST_SHA256 = {  # of the unpacked files, since packing them again changes the .gz
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
HIDDEN = {
    "mnist_1x100": (100,),
    "mnist_2x100": (100, 100),
    "mnist_3x100": (100, 100, 100),
    "mnist_2x512": (512, 512),
    "mnist_6layer": (1024, 512, 256, 256, 256),
}
DIGITS = 10
SIDE = 28
BRIGHTEST = 255
ROWS_AT_A_TIME = 10_000


@dataclass(frozen=True)
class Recipe:
    """How to train: `decay` is the factor of the sum of squared weights (not biases) that is added to the loss."""

    epochs: int
    batch: int
    decay: float
    seed: int = 0

    def in_words(self) -> str:
        """What the row of a card says."""
        return (
            f"Keras, {self.epochs} epochs, Adam (learning rate 0.001), batches of {self.batch}, cross entropy plus "
            f"{self.decay:g} times the sum of the squared weights (L2)"
        )


RECIPE = Recipe(epochs=10, batch=128, decay=1e-4)


@dataclass(frozen=True, eq=False)
class Images:
    """Images and the digits that they show. Shapes: inputs (images, pixels), float64; labels (images,), int64."""

    inputs: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]


def load_mnist(folder: Path, part: str, most: int | None = None) -> Images:
    """The images of MNIST, pixels / 255, in the order of the files; at most the first `most`.

    Accepts   part "train" (60,000 images) or "t10k" (the 10,000 test images)
    Raises    DatasetError if a file is missing or its sha256, unpacked, is not that of the public file
    """
    pixels = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", 3)[:most]
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz", 1)[:most]
    return Images(pixels.reshape(len(pixels), SIDE * SIDE) / np.float64(BRIGHTEST), labels.astype(np.int64))


def _read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array of one packed file in the idx format: a header of big-endian numbers, then bytes."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read ({error}); name the folder of MNIST with --mnist") from None
    sha256, known = hashlib.sha256(content).hexdigest(), MNIST_SHA256[path.stem]
    if sha256 != known:
        raise DatasetError(f"{path}: unpacked, its sha256 {sha256} is not {known}; get the public file again")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).astype(np.int64)
    return np.frombuffer(content, np.uint8, offset=4 * (1 + dimensions)).reshape(shape.tolist())


def keras_model(keras: Any, inputs: int, hidden: Sequence[int], decay: float = 0.0) -> Any:
    """A Keras model, not compiled: ReLU layers and a softmax over ten digits."""
    penalty = keras.regularizers.L2(decay) if decay else None
    layers = [keras.layers.Dense(size, activation="relu", kernel_regularizer=penalty) for size in hidden]
    last = keras.layers.Dense(DIGITS, activation="softmax", kernel_regularizer=penalty)
    return keras.Sequential([keras.Input((inputs,)), *layers, last])


def train_keras(keras: Any, images: Images, hidden: Sequence[int], recipe: Recipe) -> Any:
    """Train, and give a model of the same weights that was never compiled, so that its file holds weights alone."""
    keras.utils.set_random_seed(recipe.seed)
    inputs = images.inputs.astype(np.float32)
    model = keras_model(keras, inputs.shape[1], hidden, recipe.decay)
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    model.fit(inputs, images.labels, epochs=recipe.epochs, batch_size=recipe.batch, verbose=0)
    plain = keras_model(keras, inputs.shape[1], hidden)
    plain.set_weights(model.get_weights())
    return plain


def share_right(network: Network, images: Images) -> float:
    """The share of images that the network labels rightly, in float64, some rows at a time to spare memory."""
    count = len(images.labels)
    right = 0.0
    for start in range(0, count, ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        right += accuracy(network, images.inputs[rows], images.labels[rows]) * len(images.labels[rows])
    return round(right) / count


def publish_keras(model: Any, stem: str, images: tuple[Images, Images]) -> tuple[Network, str]:
    """Write `<stem>.keras` and give the network that is read back from it, and the row of the card with its accuracies."""
    write_whole(FOLDER / f"{stem}.keras", saved(model))
    network = formats.load(FOLDER / f"{stem}.keras")
    train, test = images
    inputs = test.inputs.astype(np.float32)
    confidences = np.asarray(model.predict(inputs, batch_size=1000, verbose=0), dtype=np.float64)
    difference = np.abs(network.confidences(inputs) - confidences).max()
    keras_right = float((confidences.argmax(axis=1) == test.labels).mean())
    found = (
        f"train {percent(share_right(network, train))}, test {percent(share_right(network, test))} in float64; Keras in "
        f"float32 gives {percent(keras_right)} on the test images, its confidences differ by at most {difference:.1e}"
    )
    print(f"{stem}: {found}", flush=True)
    return network, found


def card_text(network: Network, title: str, summary: str, facts: Sequence[tuple[str, str]], inputs: str) -> str:
    """The card of a network on images as Markdown; `inputs` says in words what the pixels are."""
    rows = [*facts, ("architecture", architecture(network)), ("content sha256", f"`{network.sha256}`")]
    lines = [f"# {title}", "", summary, "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += ["", "## Inputs, in this order", "", inputs, "", "## Classes", ""]
    lines += [f"- {digit}: the digit {digit}" for digit in range(DIGITS)]
    return "\n".join(lines) + "\n"


def common_facts(stem: str) -> tuple[tuple[str, str], ...]:
    """The rows that every card here begins with."""
    return (
        ("file", f"`models/{stem}.keras`, weights in float32, no optimizer state"),
        ("origin", "trained by the project"),
        ("licence", LICENCE),
    )


def card(stem: str, network: Network, found: str) -> str:
    """The card of an MNIST network."""
    hidden = HIDDEN[stem]
    facts = (
        *common_facts(stem),
        (
            "data",
            "MNIST (LeCun, Cortes, Burges), the files in the idx format; 60,000 training and 10,000 test images, 784 inputs",
        ),
        ("data sha256", f"`{MNIST_SHA256['train-images-idx3-ubyte']}` (train-images-idx3-ubyte, unpacked)"),
        ("training", f"{RECIPE.in_words()}; all 60,000 training images; the test images only measure the accuracy"),
        ("command", f"`python -m models.train_mnist --mnist PATH --only {stem}`"),
        ("seed", f"{RECIPE.seed}, the first and only one"),
        ("versions", versions("keras", "tensorflow_cpu", "numpy")),
        ("accuracy", found),
    )
    layers = "one hidden layer" if len(hidden) == 1 else f"{len(hidden)} hidden layers"
    return card_text(
        network,
        f"MNIST, {layers}: {', '.join(str(size) for size in hidden)} units",
        f"Handwritten digits from 28x28 pixels: a fully connected ReLU network with {layers}.",
        facts,
        "784 pixels, row by row from the top left, each a whole number 0 (background) to 255 (ink) divided by 255, "
        "so 0.0 to 1.0.",
    )


def train(arguments: argparse.Namespace) -> None:
    """Write models/<stem>.keras and its card, for each network asked for."""
    images = load_mnist(arguments.mnist, "train"), load_mnist(arguments.mnist, "t10k")
    keras = load_keras()
    for stem in [arguments.only] if arguments.only else list(HIDDEN):
        model = train_keras(keras, images[0], HIDDEN[stem], RECIPE)
        network, found = publish_keras(model, stem, images)
        write_whole(FOLDER / f"{stem}.md", card(stem, network, found).encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Train the fully connected MNIST networks with Keras.")
    parser.add_argument("--mnist", type=Path, default=MNIST, metavar="PATH", help=f"folder of MNIST (default: {MNIST})")
    parser.add_argument("--only", choices=list(HIDDEN), metavar="NAME", help=f"one of {', '.join(HIDDEN)} (default: all)")
    return run(parser, train, argv)


if __name__ == "__main__":
    sys.exit(main())
