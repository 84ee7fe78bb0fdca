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

from models.publish import FOLDER, percent, run
from models.train_bnn import share_right
from models.train_mnist import DIGITS, MNIST, load_mnist
from qrobust.binarized.formats import save_binarized
from qrobust.binarized.recipes import Recipe
from qrobust.binarized.training import train as train_network

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Train the nine networks of signs that attacks are compared on.")
    parser.add_argument("--mnist", type=Path, default=MNIST, metavar="PATH", help=f"folder of MNIST (default: {MNIST})")
    parser.add_argument("--only", choices=list(RECIPES), metavar="NAME", help=f"one of {', '.join(RECIPES)} (default: all)")
    return run(parser, train, argv)


if __name__ == "__main__":
    sys.exit(main())
