"""Train the nine networks of signs that attacks are compared on, with Keras on TensorFlow: 2 to 4 layers of 100 to 300 signs.

    python -m models.train_khalil --mnist ../shared/data/bench/mnist
    python -m models.train_khalil --mnist ../shared/data/bench/mnist --only 2x100

Needs `pip install qrobust[tensorflow]` and the four files of MNIST, which are not kept in the project. Each network is kept as
models/khalil/<layers>x<signs>.npz, from the first seed, whatever accuracy it gives; one card describes all.

Source    Khalil, Gupta, Dilkina 2019, arXiv 1810.03538, for the sizes
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from models.publish import FOLDER, LICENCE, percent, run, versions
from models.train_bnn import in_words, share_right
from models.train_mnist import DIGITS, MNIST, MNIST_SHA256, Images, load_mnist
from qrobust.binarized.formats import load_binarized, save_binarized
from qrobust.binarized.recipes import Recipe
from qrobust.binarized.training import train as train_network
from qrobust.files import write_whole

KEPT = FOLDER / "khalil"
WIDTHS, DEPTHS = (100, 200, 300), (2, 3, 4)
RECIPES = {f"{depth}x{width}": Recipe(hidden=(width,) * depth, step="1/255", epochs=10) for width in WIDTHS for depth in DEPTHS}


def path_of(name: str) -> Path:
    """The file of a network."""
    return KEPT / f"{name}.npz"


def train(arguments: argparse.Namespace) -> None:
    """Write models/khalil/<name>.npz, for each network asked for, and the card of all."""
    images = load_mnist(arguments.mnist, "train")
    for name in [arguments.only] if arguments.only else list(RECIPES):
        title = f"MNIST, signs {name}"
        network = train_network(RECIPES[name], images.inputs, images.labels, DIGITS, name=title, say=print)
        save_binarized(network, path_of(name))
        print(f"{name}: train {percent(share_right(network, images))}", flush=True)
    write_whole(KEPT / "README.md", card(load_mnist(arguments.mnist, "t10k")).encode())


def card(tests: Images) -> str:
    """The card of all networks as Markdown, from the files that are there."""
    facts = (
        ("files", "`models/khalil/<layers>x<signs>.npz`, weights -1 and 1; normalizations as trained"),
        ("origin", "trained by the project"),
        ("licence", LICENCE),
        ("data", "MNIST (LeCun, Cortes, Burges), 60,000 training and 10,000 test images, 784 inputs"),
        ("data sha256", f"`{MNIST_SHA256['train-images-idx3-ubyte']}` (train-images-idx3-ubyte, unpacked)"),
        ("recipe", f"of qrobust.binarized.recipes, here of 2x100: {in_words(RECIPES['2x100'])}"),
        ("command", "`python -m models.train_khalil --mnist PATH`"),
        ("seed", f"{RECIPES['2x100'].seed}, the only one"),
        ("versions", versions("keras", "tensorflow_cpu", "numpy")),
        ("accuracy", "on the test images, in integers: below"),
    )
    lines = ["# MNIST, networks of signs of nine sizes", "", "Handwritten digits from 28x28 pixels, to compare attacks on."]
    lines += ["", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts)]
    lines += ["", "## Networks", "", "| network | test | content sha256 |", "|---|---|---|"]
    for name in RECIPES:
        network = load_binarized(path_of(name)).network
        lines.append(f"| {name} | {percent(share_right(network, tests))} | `{network.sha256}` |")
    lines += ["", "## Inputs, in this order", ""]
    lines += ["784 pixels, row by row from the top left, each from 0 (background) to 1 (ink), in steps of 1/255."]
    lines += ["", "## Classes", "", *(f"- {digit}: the digit {digit}" for digit in range(DIGITS))]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Train the nine networks of signs that attacks are compared on.")
    parser.add_argument("--mnist", type=Path, default=MNIST, metavar="PATH", help=f"folder of MNIST (default: {MNIST})")
    parser.add_argument("--only", choices=list(RECIPES), metavar="NAME", help=f"one of {', '.join(RECIPES)} (default: all)")
    return run(parser, train, argv)


if __name__ == "__main__":
    sys.exit(main())
