"""The trained networks: each against its card, its table, and the library that trained it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from datasets.loaders import Table, load_athletes, load_bundled, load_cats
from models.publish import accuracy, architecture
from qrobust import formats
from qrobust.network import Network

ROOT = Path(__file__).parent.parent
STEMS = sorted(path.stem for path in (ROOT / "models").glob("*.json") if not path.stem.endswith(".predictions"))
ATHLETES = ("ath_linear", "ath_relu")


def network(stem: str) -> Network:
    return formats.load(ROOT / "models" / f"{stem}.json")


def facts(stem: str) -> dict[str, str]:
    """The rows of a card's first table."""
    lines = (ROOT / "models" / f"{stem}.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ", 1) for line in lines if line.startswith("| ") and " | " in line.strip("| ")]
    return {row[0].strip(): row[1].strip() for row in rows}


def percentages(text: str) -> list[float]:
    return [float(value) for value in re.findall(r"([\d.]+) %", text)]


def test_the_models_are_all_there() -> None:
    assert STEMS == ["ath_linear", "ath_relu", "breast_cancer", "cat_paper", "cat_refit", "iris"]


@pytest.mark.parametrize("stem", STEMS)
def test_a_card_is_of_its_network(stem: str) -> None:
    card, subject = facts(stem), network(stem)
    assert card["content sha256"].strip("`") == subject.sha256
    assert card["architecture"] == architecture(subject)
    assert {"origin", "licence", "data", "data sha256", "accuracy", "command"} <= set(card)
    for feature in subject.features:
        assert card[feature.name] == f"{feature.unit or '-'} | {feature.lower} | {feature.upper}"
    assert len(subject.features) == subject.inputs
    text = (ROOT / "models" / f"{stem}.md").read_text()
    for index, name in enumerate(subject.classes):
        assert f"- {index}: {name}\n" in text
    assert len(subject.classes) == subject.class_count


def table_of(stem: str) -> Table:
    if stem.startswith("cat"):
        return load_cats()
    return load_bundled(stem, [feature.name for feature in network(stem).features] if stem == "breast_cancer" else None)


def seed(stem: str) -> int:
    found = re.match(r"(\d+)", facts(stem)["seed"])
    assert found is not None
    return int(found.group(1))


def split_accuracies(stem: str, table: Table) -> list[float]:
    """The accuracies, in percent to two digits, on the rows that the card's seed trained and tested on."""
    from sklearn.model_selection import train_test_split

    train_x, test_x, train_y, test_y = train_test_split(table.inputs, table.labels, test_size=0.22, random_state=seed(stem))
    subject = network(stem)
    return [round(100 * accuracy(subject, x, y), 2) for x, y in ((train_x, train_y), (test_x, test_y))]


@pytest.mark.parametrize("stem", [stem for stem in STEMS if stem not in ATHLETES])
def test_a_model_is_about_its_table(stem: str) -> None:
    table, subject = table_of(stem), network(stem)
    assert facts(stem)["data sha256"].strip("`") == table.sha256
    assert [(f.name, f.unit, f.lower, f.upper) for f in subject.features] == [
        (f.name, f.unit, f.lower, f.upper) for f in table.features
    ]
    assert subject.classes == table.classes


@pytest.mark.parametrize("stem", ["cat_refit", "iris", "breast_cancer"])
def test_accuracies_are_as_the_card_says(stem: str) -> None:
    assert split_accuracies(stem, table_of(stem)) == percentages(facts(stem)["accuracy"])[:2]


def test_the_accuracy_of_the_paper_s_cat() -> None:
    """78.47 % of the whole table, and a logit that is 0 for no row, so the convention at the level does not matter."""
    table, subject = load_cats(), network("cat_paper")
    assert round(100 * accuracy(subject, table.inputs, table.labels), 2) == percentages(facts("cat_paper")["accuracy"])[0]
    assert np.abs(subject.confidences(table.inputs) - 0.5).min() > 1e-6


def test_the_paper_s_cat_has_the_printed_numbers() -> None:
    layer = network("cat_paper").layers[0]
    assert (layer.weight.tolist(), layer.bias.tolist()) == ([[0.07577862, 1.18118408]], [-3.51518067])


@pytest.mark.parametrize("stem", ATHLETES)
def test_accuracies_on_the_athletes(stem: str, athletes_path: Path) -> None:
    table = load_athletes(athletes_path)
    assert facts(stem)["data sha256"].strip("`") == table.sha256
    assert split_accuracies(stem, table) == percentages(facts(stem)["accuracy"])[:2]
    assert network(stem).features == table.features


@pytest.mark.parametrize("stem", ATHLETES)
def test_predictions_hold_no_athlete(stem: str, athletes_path: Path) -> None:
    rows = {tuple(row) for row in load_athletes(athletes_path).inputs.tolist()}
    inputs = json.loads((ROOT / "models" / f"{stem}.predictions.json").read_text())["inputs"]
    assert len(inputs) == 50
    assert not rows & {tuple(row) for row in inputs}


@pytest.mark.parametrize("stem", STEMS)
def test_every_class_occurs_within_the_ranges(stem: str) -> None:
    """A network that gives one label everywhere would make every robustness question empty."""
    subject = network(stem)
    lower, upper = (np.array([getattr(f, end) for f in subject.features], dtype=float) for end in ("lower", "upper"))
    points = np.random.default_rng(0).uniform(lower, upper, size=(5000, subject.inputs))
    assert set(subject.labels(points).tolist()) == set(range(subject.class_count))
