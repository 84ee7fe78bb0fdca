"""Certificates: written, read, checked in exact arithmetic; and refused when anything in them is not so."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust.backends.certify import certify_label
from qrobust.certificates import Certificate, LevelProof, Splits, load_certificate
from qrobust.check import certificate_fault
from qrobust.domains import ParameterBox, Point
from qrobust.errors import ModelFileError, NumberError, ShapeError
from qrobust.network import Activation, Dense, Network, Output
from qrobust.perturbations import Absolute
from qrobust.queries import LocalLabel
from qrobust.search import Budget
from tests.conftest import RandomNetwork


def proof_of(network: Network, x: np.ndarray, delta: float, level: Fraction = Fraction(1, 2)) -> Certificate | None:
    return certify_label(LocalLabel(network, Absolute(delta).around(network), Point(x), level), Budget(5.0))


def barely_robust(network: Network, x: np.ndarray) -> tuple[Certificate, float]:
    """The proof for nearly the greatest delta that has one, and a delta that has none."""
    low, high, best = 0.0, 1.0, proof_of(network, x, 0.0)
    for _ in range(14):
        middle = 0.5 * (low + high)
        found = proof_of(network, x, middle)
        low, high, best = (middle, high, found) if found is not None else (low, middle, best)
    assert best is not None
    return best, high


@pytest.fixture(scope="module")
def split(random_network: RandomNetwork) -> Certificate:
    """A proof with trees of several leaves and rows that prove bounds of the last hidden level."""
    rng = np.random.default_rng(2)
    for _ in range(60):
        network = random_network(rng, (3, 6, 6, 5, 3))
        certificate, _ = barely_robust(network, rng.random(3))
        rows = any(len(proof.neurons) for proof in certificate.levels)
        if certificate.leaves >= 6 and rows:
            return certificate
    pytest.fail("no random network has a proof with splits")


@pytest.mark.parametrize("activation", [Activation.LINEAR, Activation.RELU])
@pytest.mark.parametrize("sizes", [(3, 2), (2, 1), (3, 4, 3), (3, 4, 1), (2, 4, 4, 3), (3, 4, 3, 4, 1)])
def test_proofs_are_followed(activation: Activation, sizes: tuple[int, ...], random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(len(sizes))
    for level in (Fraction(1, 2), Fraction(1, 3)) if sizes[-1] == 1 else (Fraction(1, 2),):
        for _ in range(4):
            network = random_network(rng, sizes, activation)
            certificate = proof_of(network, rng.normal(size=sizes[0]), 1e-4, level)
            if certificate is not None:
                assert certificate_fault(certificate) is None
                assert certificate_fault(Certificate.from_bytes(certificate.to_bytes())) is None


def test_a_proof_with_splits_is_followed(split: Certificate, tmp_path: Path) -> None:
    assert certificate_fault(split) is None
    split.save(tmp_path / "proof.cert")
    again = load_certificate(tmp_path / "proof.cert")
    assert certificate_fault(again) is None
    assert again.leaves == split.leaves
    assert again.query.network == split.query.network
    assert again.query.parameters.sha256 == split.query.parameters.sha256


def test_no_proof_for_a_wider_box(split: Certificate, random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(3)
    network = random_network(rng, (3, 5, 4, 3))
    x = rng.random(3)
    certificate, beyond = barely_robust(network, x)
    wider = LocalLabel(network, Absolute(2 * beyond).around(network), Point(x))
    assert certificate_fault(replace(certificate, query=wider)) is not None


def level_with(certificate: Certificate, number: int, **changes: Any) -> Certificate:
    levels = list(certificate.levels)
    levels[number] = replace(levels[number], **changes)
    return replace(certificate, levels=tuple(levels))


def proved_level(certificate: Certificate) -> tuple[int, LevelProof]:
    """A level that has rows, and its number."""
    return next((n, proof) for n, proof in enumerate(certificate.levels) if len(proof.neurons))


def splits_with(certificate: Certificate, **changes: Any) -> Certificate:
    return replace(certificate, splits=replace(certificate.splits, **changes))


def moved(values: np.ndarray, index: int, by: float) -> np.ndarray:
    result = values.copy()
    result[index] += by
    return result


def a_leaf(certificate: Certificate) -> int:
    return int(np.flatnonzero(certificate.splits.leaf >= 0)[-1])


def a_split(certificate: Certificate) -> int:
    return int(np.flatnonzero(certificate.splits.level > 0)[0])


def narrowed(certificate: Certificate) -> Certificate:
    """Bounds of a proved level narrower than its rows prove."""
    number, proof = proved_level(certificate)
    neuron = int(proof.neurons[0])
    width = proof.upper[neuron] - proof.lower[neuron]
    if proof.signs[0] > 0:
        return level_with(certificate, number, upper=moved(proof.upper, neuron, -0.3 * width))
    return level_with(certificate, number, lower=moved(proof.lower, neuron, 0.3 * width))


def without_rows(certificate: Certificate) -> Certificate:
    number, proof = proved_level(certificate)
    empty = tuple(values[:0] for values in proof.multipliers)
    return level_with(certificate, number, neurons=proof.neurons[:0], signs=proof.signs[:0], multipliers=empty)


def other_rows(certificate: Certificate) -> Certificate:
    number, proof = proved_level(certificate)
    return level_with(certificate, number, multipliers=tuple(100 * values + 7 for values in proof.multipliers))


def without_a_half(certificate: Certificate, side: int) -> Certificate:
    """One half of a split left out, and with it what is reached there."""
    splits = certificate.splits
    gone = int(np.flatnonzero((splits.side == side) & (splits.leaf >= 0))[-1])
    names = ("parent", "level", "neuron", "cut", "side", "leaf")
    kept = {name: np.delete(getattr(splits, name), gone) for name in names}
    kept["parent"] = kept["parent"] - (kept["parent"] > gone)
    return splits_with(certificate, **kept)


DOCTORED: dict[str, Callable[[Certificate], Certificate]] = {
    "another label": lambda c: replace(c, label=(c.label + 1) % 3),
    "a rival missing": lambda c: replace(c, rivals=c.rivals[:1]),
    "a rival twice": lambda c: replace(c, rivals=np.repeat(c.rivals[:1], len(c.rivals))),
    "rivals swapped": lambda c: replace(c, rivals=c.rivals[::-1].copy()),
    "the label as a rival": lambda c: replace(c, rivals=np.full_like(c.rivals, c.label)),
    "bounds narrowed": narrowed,
    "rows left out": without_rows,
    "rows changed": other_rows,
    "a bound empty": lambda c: level_with(c, 0, lower=c.levels[0].upper + 1),
    "a level missing": lambda c: replace(c, levels=c.levels[:-1]),
    "neurons out of range": lambda c: level_with(c, proved_level(c)[0], neurons=proved_level(c)[1].neurons + 1000),
    "signs of 2": lambda c: level_with(c, proved_level(c)[0], signs=2 * proved_level(c)[1].signs),
    "leaves' multipliers changed": lambda c: replace(c, multipliers=tuple(m + 50.0 for m in c.multipliers)),
    "leaves' multipliers zero": lambda c: replace(c, multipliers=tuple(0 * m for m in c.multipliers)),
    "multipliers of another width": lambda c: replace(c, multipliers=tuple(m[:, :-1] for m in c.multipliers)),
    "fewer multipliers": lambda c: replace(c, multipliers=tuple(m[:1] for m in c.multipliers)),
    "a leaf without proof": lambda c: splits_with(c, leaf=moved(c.splits.leaf, a_leaf(c), -10_000)),
    "a leaf's number too large": lambda c: splits_with(c, leaf=moved(c.splits.leaf, a_leaf(c), 10_000)),
    "a leaf that is split": lambda c: splits_with(c, level=moved(c.splits.level, a_leaf(c), 1)),
    "a split that is a leaf": lambda c: splits_with(c, level=moved(c.splits.level, a_split(c), -c.splits.level[a_split(c)])),
    "a split of no level": lambda c: splits_with(c, level=moved(c.splits.level, a_split(c), 1000)),
    "a split of no neuron": lambda c: splits_with(c, neuron=moved(c.splits.neuron, a_split(c), 1000)),
    "a split of a negative neuron": lambda c: splits_with(c, neuron=moved(c.splits.neuron, a_split(c), -1000)),
    "another cut": lambda c: splits_with(c, cut=moved(c.splits.cut, a_split(c), 1e6)),
    "a cut that is infinite": lambda c: splits_with(c, cut=moved(c.splits.cut, a_split(c), np.inf)),
    "both halves above": lambda c: splits_with(c, side=np.abs(c.splits.side)),
    "an upper half missing": lambda c: without_a_half(c, 1),
    "a lower half missing": lambda c: without_a_half(c, -1),
    "no sides": lambda c: splits_with(c, side=0 * c.splits.side),
    "a parent after its child": lambda c: splits_with(c, parent=moved(c.splits.parent, len(c.splits.parent) - 1, 10_000)),
    "a root with a parent": lambda c: splits_with(c, parent=moved(c.splits.parent, 0, 1)),
    "a child without a parent": lambda c: splits_with(c, parent=moved(c.splits.parent, len(c.splits.parent) - 1, -10_000)),
    "no trees": lambda c: splits_with(
        c, **{n: getattr(c.splits, n)[:0] for n in ("parent", "level", "neuron", "cut", "side", "leaf")}
    ),
    "trees of uneven arrays": lambda c: splits_with(c, neuron=c.splits.neuron[:-1]),
}


@pytest.mark.parametrize("what", DOCTORED)
def test_a_doctored_certificate_is_refused(what: str, split: Certificate) -> None:
    assert certificate_fault(DOCTORED[what](split)) is not None


@pytest.mark.parametrize(("top", "proved"), [(1.0, False), (0.5, True)])
def test_a_rival_that_wins_ties_has_to_stay_behind(top: float, proved: bool) -> None:
    """Class 1 is ahead, 1 against 0; with a bias of 1 the rival, class 0, draws level, and the lowest index wins."""
    network = Network((Dense(np.zeros((2, 1)), np.array([0.0, 1.0])),), Output.SOFTMAX)
    box = ParameterBox.from_arrays([(np.zeros((2, 1)), [0.0, 1.0])], [(np.zeros((2, 1)), [top, 1.0])])
    one, none = np.zeros(1, dtype=np.int64), np.full(1, -1)
    splits = Splits(parent=none, level=one, neuron=one, cut=np.zeros(1), side=one, leaf=one)
    certificate = Certificate(LocalLabel(network, box, Point([1.0])), 1, one, (), splits, ())
    fault = certificate_fault(certificate)
    assert fault == (None if proved else "leaf 0 does not prove that label 0 stays behind")


def test_another_query_is_refused(split: Certificate) -> None:
    query = split.query
    far = LocalLabel(query.network, query.parameters, Point(query.domain.box.lower + 10.0))
    assert certificate_fault(replace(split, query=far)) is not None
    margin = replace(query, sigma=Fraction(1, 10))
    assert certificate_fault(replace(split, query=margin)) == "it is about a query with a margin"


def test_damaged_files_are_refused_in_one_line(split: Certificate) -> None:
    content = split.to_bytes()
    rng = np.random.default_rng(0)
    damaged = [content[:n] for n in rng.integers(0, len(content), 20).tolist()]
    for place in rng.integers(0, len(content), 200).tolist():
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(changed))
    for wrong in [*damaged, b"", b"PK", b"{}"]:
        try:
            read = Certificate.from_bytes(wrong)
        except (ModelFileError, ShapeError, NumberError):
            continue
        if certificate_fault(read) is None:  # what still proves something proves the same
            assert read.query.network == split.query.network
            assert read.query.parameters.sha256 == split.query.parameters.sha256
            assert np.array_equal(read.query.domain.box.lower, split.query.domain.box.lower)


def test_bounds_whose_heads_are_not_nearest_are_refused(split: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a box could be empty and still pass for one that holds the network."""
    box = split.query.parameters.layers[0].weight
    tail = np.ones_like(box.lower.tail)
    with pytest.raises(NumberError, match="nearest"):
        replace(box, lower=replace(box.lower, tail=tail))


def with_member(content: bytes, name: str, changed: bytes) -> bytes:
    """The archive with another member of a name."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(result, "w") as after:
        for member in before.namelist():
            after.writestr(member, changed if member == name else before.read(member))
    return result.getvalue()


@pytest.mark.parametrize("name", ["decision_level", "sigma"])
def test_a_number_of_a_huge_exponent_is_refused_at_once(name: str, split: Certificate) -> None:
    content = split.to_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        header = json.loads(archive.read("certificate.json"))
    header[name] = "1e-999999999999"
    with pytest.raises(ModelFileError, match="is not a finite number"):
        Certificate.from_bytes(with_member(content, "certificate.json", json.dumps(header).encode()))


@pytest.mark.parametrize("name", ["multipliers.1", "level.1.lower", "splits.cut"])
def test_a_number_beyond_float64_is_refused(name: str, split: Certificate) -> None:
    content = split.to_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        values = np.load(io.BytesIO(archive.read(f"{name}.npy"))).astype(np.longdouble)
    values.flat[0] = np.finfo(np.longdouble).max
    changed = io.BytesIO()
    np.save(changed, values)
    with pytest.raises(ModelFileError, match="not finite"):
        Certificate.from_bytes(with_member(content, f"{name}.npy", changed.getvalue()))


def test_arrays_that_are_not_what_the_header_says_are_refused(split: Certificate) -> None:
    content = split.to_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        layer = archive.read("layer.2.weight.upper.head.npy")
        rivals = np.load(io.BytesIO(archive.read("rivals.npy")))
    wider, floats = np.load(io.BytesIO(layer)) + 1.0, rivals.astype(np.float64)
    for name, values, message in (
        ("layer.2.weight.upper.head", wider, "hashes are not"),
        ("layer.2.weight", wider, "leaves out|hashes are not"),  # the box no longer holds the network, or the hashes differ
        ("rivals", floats, "dimension.* of float64"),
        ("rivals", rivals[None], "2 dimension"),
    ):
        changed = io.BytesIO()
        np.save(changed, values)
        with pytest.raises(ModelFileError, match=message):
            Certificate.from_bytes(with_member(content, f"{name}.npy", changed.getvalue()))
