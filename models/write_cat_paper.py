"""Write CAT with the parameters printed in Murthy, Das, Islam 2019 (arXiv 1903.10672).

python -m models.write_cat_paper
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from datasets.loaders import load_cats
from models.publish import Card, accuracy, data_facts, percent, publish, run
from qrobust.network import Dense, Feature, Network, Output

BIAS = -3.51518067
HEART_WEIGHT = 0.07577862
BODY_WEIGHT = 1.18118408
FEATURES = (Feature("heart weight", "g", 6.3, 20.5), Feature("body weight", "kg", 2.0, 3.9))


def cat_paper() -> Network:
    """The paper's logistic regression: one sigmoid of bias + 0.0758 heart weight (g) + 1.18 body weight (kg)."""
    layer = Dense(np.array([[HEART_WEIGHT, BODY_WEIGHT]]), np.array([BIAS]))
    return Network((layer,), Output.SIGMOID, name="CAT (paper)", features=FEATURES, classes=("female", "male"))


def write(_: argparse.Namespace) -> None:
    """Write models/cat_paper.json and its card."""
    network, table = cat_paper(), load_cats()
    whole = accuracy(network, table.inputs, table.labels)
    card = Card(
        "CAT, parameters as printed",
        "The sex of an adult cat from the weights of its heart and body: the network CAT of Murthy, Das, Islam 2019.",
        (
            ("file", "`models/cat_paper.json`"),
            ("origin", f"c0 = {BIAS}, c1 = {HEART_WEIGHT}, c2 = {BODY_WEIGHT}, printed in arXiv 1903.10672"),
            ("licence", "Three numbers quoted from the paper; the file is Apache-2.0, as the project"),
            *data_facts(table, "the authors trained on the cats table ([card](../datasets/cats.md))"),
            ("training", "none here: the numbers are copied, every digit that is printed"),
            ("command", "`python -m models.write_cat_paper`"),
            (
                "accuracy",
                f"{percent(whole)} of the whole table, measured here; the paper gives 87.5 % on its test rows",
            ),
        ),
        (
            "The paper calls the first input height; it is the heart weight in grams. It says Male iff the confidence "
            "is at least 0.5; the project's label is 1 iff it is above 0.5. The two differ only where the logit is "
            "exactly 0, which is the case for no row of the table.",
            "Which rows the authors tested on is not known, so their 87.5 % cannot be repeated.",
        ),
    )
    print(f"accuracy on the whole table {percent(whole)}")
    publish(network, "cat_paper", card)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    return run(argparse.ArgumentParser(description="Write CAT with the paper's parameters."), write, argv)


if __name__ == "__main__":
    sys.exit(main())
