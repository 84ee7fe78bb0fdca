"""The trained networks: each against its card, its table, and the library that trained it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from datasets.loaders import Table, load_athletes, load_bundled, load_cats
from models import train_breast_cancer_50, train_digits
from models.publish import accuracy, architecture
from models.train_mnist import HIDDEN, MNIST_SHA256, Images, load_mnist, share_right
from qrobust import formats
from qrobust.network import Network

ROOT = Path(__file__).parent.parent
STEMS = sorted(path.stem for path in (ROOT / "models").glob("*.json") if not path.stem.endswith(".predictions"))
KERAS_ONLY = sorted({path.stem for path in (ROOT / "models").glob("[!b]*.keras")} - set(STEMS))  # bnn_*: of signs
ATHLETES = ("ath_linear", "ath_relu")
STANDARDISED = ("breast_cancer_50",)
FEWER_IMAGES = 1000


def network(stem: str) -> Network:
    return formats.load(ROOT / "models" / f"{stem}.{'keras' if stem in KERAS_ONLY else 'json'}")


@pytest.fixture(scope="session")
def mnist_test(request: pytest.FixtureRequest) -> Images:
    """The first test images of MNIST, which is not kept in the project."""
    folder: Path = request.config.getoption("--shared-data") / "bench" / "mnist"
    missing = [name for name in MNIST_SHA256 if name.startswith("t10k") and not (folder / f"{name}.gz").is_file()]
    if missing:
        pytest.skip(f"needs {' and '.join(f'{name}.gz' for name in missing)} in {folder}: name its data with --shared-data")
    return load_mnist(folder, "t10k", FEWER_IMAGES)


def facts(stem: str) -> dict[str, str]:
    """The rows of a card's first table."""
    lines = (ROOT / "models" / f"{stem}.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ", 1) for line in lines if line.startswith("| ") and " | " in line.strip("| ")]
    return {row[0].strip(): row[1].strip() for row in rows}


def percentages(text: str) -> list[float]:
    return [float(value) for value in re.findall(r"([\d.]+) %", text)]


def test_the_models_are_all_there() -> None:
    assert STEMS == ["ath_linear", "ath_relu", "breast_cancer", "breast_cancer_50", "cat_paper", "cat_refit", "iris"]
    assert KERAS_ONLY == ["digits_3x100", "mnist_1x100", "mnist_2x100", "mnist_2x512", "mnist_3x100", "mnist_6layer"]


@pytest.mark.parametrize("stem", [*STEMS, *KERAS_ONLY])
def test_a_card_is_of_its_network(stem: str) -> None:
    card, subject = facts(stem), network(stem)
    assert card["content sha256"].strip("`") == subject.sha256
    assert card["architecture"] == architecture(subject)
    assert {"origin", "licence", "data", "data sha256", "accuracy", "command"} <= set(card)
    for feature in subject.features:
        assert card[feature.name] == f"{feature.unit or '-'} | {feature.lower} | {feature.upper}"
    names = subject.classes
    if stem in KERAS_ONLY:  # such a file names neither inputs nor classes
        names = tuple(f"the digit {digit}" for digit in range(10))
    else:
        assert len(subject.features) == subject.inputs
    text = (ROOT / "models" / f"{stem}.md").read_text()
    for index, name in enumerate(names):
        assert f"- {index}: {name}\n" in text
    assert len(names) == subject.class_count


@pytest.mark.parametrize("stem", KERAS_ONLY)
def test_a_keras_file_holds_float32_weights_and_little_else(stem: str) -> None:
    """An optimizer's state would treble the size."""
    subject = network(stem)
    for layer in subject.layers:
        for array in (layer.weight, layer.bias):
            assert np.array_equal(array, array.astype(np.float32))
    assert (ROOT / "models" / f"{stem}.keras").stat().st_size < 4 * subject.parameter_count + 40_000


@pytest.mark.parametrize("stem", sorted(HIDDEN))
def test_accuracies_on_mnist(stem: str, mnist_test: Images) -> None:
    """On the first test images the share is close to that on all of them, which the card gives."""
    expected = percentages(facts(stem)["accuracy"])[1]
    assert abs(100 * share_right(network(stem), mnist_test) - expected) <= 2
    assert MNIST_SHA256["train-images-idx3-ubyte"] in facts(stem)["data sha256"]


def test_accuracies_on_the_digits() -> None:
    found = [round(100 * share_right(network("digits_3x100"), part), 2) for part in train_digits.load_split()]
    assert found == percentages(facts("digits_3x100")["accuracy"])[:2]
    assert train_digits.digits_sha256() in facts("digits_3x100")["data sha256"]


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


@pytest.mark.parametrize("stem", [stem for stem in STEMS if stem not in ATHLETES + STANDARDISED])
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


def test_a_network_on_standardised_inputs() -> None:
    """Its accuracies, ranges and scaling are those of the table and the split that its card names."""
    stem, table = "breast_cancer_50", load_bundled("breast_cancer")
    split, subject = train_breast_cancer_50.load_split(table), network(stem)
    found = [round(100 * accuracy(subject, x, y), 2) for x, y in ((split.train_x, split.train_y), (split.test_x, split.test_y))]
    assert found == percentages(facts(stem)["accuracy"])
    assert facts(stem)["data sha256"].strip("`") == table.sha256
    assert [f.name for f in subject.features] == [f.name for f in table.features]
    assert subject.classes == table.classes
    for end in ("lower", "upper"):
        raw, standardised = (np.array([getattr(f, end) for f in each]) for each in (table.features, subject.features))
        assert np.allclose((raw - split.centre) / split.scale, standardised, rtol=1e-9, atol=1e-9)
    text = (ROOT / "models" / f"{stem}.md").read_text()
    written = {name: (float(c), float(s)) for name, c, s in re.findall(r"^- (.+): ([\d.e-]+), ([\d.e-]+)$", text, re.MULTILINE)}
    assert list(written) == [f.name for f in table.features]
    assert np.allclose([written[f.name] for f in table.features], np.stack([split.centre, split.scale], axis=1), rtol=1e-9)


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
