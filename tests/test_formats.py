"""What holds for every reader, and qrobust's own JSON: exact round trips, damaged documents refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust import formats
from qrobust.errors import QRobustError, UnsupportedError
from qrobust.formats.native import read_native, to_document, write_native
from qrobust.network import Activation, Dense, Feature, Network, Output
from tests.conftest import RandomNetwork
from tests.damage import refusal


@pytest.mark.parametrize("suffix", [".json", ".keras", ".h5", ".onnx", ".npz", ".nnet", ".skops"])
def test_what_is_no_file_is_refused(suffix: str, tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / f"missing{suffix}")
    assert "is empty" in refusal(tmp_path / f"empty{suffix}", b"")
    (tmp_path / f"folder{suffix}").mkdir()
    assert "is a folder" in refusal(tmp_path / f"folder{suffix}")
    refusal(tmp_path / f"noise{suffix}", bytes(range(256)) * 20)
    refusal(tmp_path / f"text{suffix}", b"not a model\n" * 3)


@pytest.mark.parametrize("name", ["model.xyz", "model", "model.hdf5", "model.txt"])
def test_an_unknown_ending_is_refused(name: str, tmp_path: Path) -> None:
    assert "the formats read are .json, .keras, .h5, .onnx, .npz, .nnet, .skops, .joblib" in refusal(tmp_path / name, b"x")


@pytest.mark.parametrize("suffix", [".json", ".npz", ".onnx"])
def test_what_is_saved_is_loaded(suffix: str, tmp_path: Path) -> None:
    network = Network((Dense(np.array([[0.5, -0.25]]), np.array([1.0])),), Output.SIGMOID)
    formats.save(network, tmp_path / f"m{suffix}")
    assert formats.load(tmp_path / f"m{suffix}") == network


def test_an_ending_that_is_not_written_is_refused(cat: Network, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"ends in '\.keras': the formats written are \.json, \.onnx, \.npz"):
        formats.save(cat, tmp_path / "m.keras")
    assert list(tmp_path.iterdir()) == []


def test_the_ending_may_be_in_capitals(tmp_path: Path, cat: Network) -> None:
    write_native(cat, tmp_path / "CAT.JSON")
    assert formats.load(tmp_path / "CAT.JSON") == cat


AWKWARD = [0.1, 1 / 3, 5e-324, 2.0**-1022, 1.7976931348623157e308, -0.1, 123456789.123456789, 1e-7, 0.0]


def test_json_keeps_every_bit_and_every_name(tmp_path: Path) -> None:
    features = (Feature("weight of the heart", "g", 0.1, 1 / 3), Feature("größe", "", None, 5.0), Feature("x"))
    network = Network(
        (
            Dense(np.array(AWKWARD).reshape(3, 3), np.array(AWKWARD[:3]), Activation.TANH),
            Dense(np.array(AWKWARD[:6]).reshape(2, 3), np.array(AWKWARD[6:8])),
        ),
        Output.SOFTMAX,
        name='a "name"\n',
        features=features,
        classes=("no", "yes"),
    )
    write_native(network, tmp_path / "m.json")
    again = read_native(tmp_path / "m.json")
    assert again == network
    assert (again.name, again.features, again.classes) == (network.name, features, network.classes)
    for before, after in zip(network.layers, again.layers, strict=True):
        assert before.weight.tobytes() == after.weight.tobytes()
        assert before.bias.tobytes() == after.bias.tobytes()
        assert before.activation is after.activation


def test_json_of_random_networks(tmp_path: Path, random_network: RandomNetwork) -> None:
    for number, activation in enumerate(Activation):
        network = random_network(np.random.default_rng(number), (3, 5, 2, 3), activation)
        write_native(network, tmp_path / "m.json")
        assert read_native(tmp_path / "m.json") == network


def test_names_may_be_left_out(tmp_path: Path, cat: Network) -> None:
    document = {key: value for key, value in to_document(cat).items() if key not in ("name", "features", "classes")}
    (tmp_path / "m.json").write_text(json.dumps(document))
    assert read_native(tmp_path / "m.json") == cat


Place = tuple[str | int, ...]
REMOVED = object()
DAMAGES: list[tuple[Place, Any, str]] = [
    ((), None, '"format" must be'),
    ((), [], '"format" must be'),
    (("format",), "onnx", '"format" must be'),
    (("format",), REMOVED, '"format" must be'),
    (("version",), 2, "version 2 of the format is not known"),
    (("version",), "1", "version '1' of the format"),
    (("layers",), REMOVED, '"layers" must be a list, found NoneType'),
    (("layers",), {}, '"layers" must be a list, found dict'),
    (("layers",), [], "at least one layer"),
    (("layers", 0), 3, "layer 1 must be an object of type"),
    (("layers", 0, "type"), "conv", "layer 1 must be an object of type"),
    (("layers", 0, "activation"), "swish", "layer 1: activation 'swish' is not known"),
    (("layers", 0, "activation"), REMOVED, "layer 1: activation None is not known"),
    (("layers", 0, "activation"), ["relu"], "layer 1: activation ['relu'] is not known"),
    (("layers", 1, "activation"), "relu", "the last layer gives logits"),
    (("layers", 0, "weight"), REMOVED, '"weight" must be a list'),
    (("layers", 0, "weight"), [1.0, 2.0], "layer 1: a dense layer needs weights (out, in)"),
    (("layers", 0, "weight"), [[1.0, 2.0], [1.0]], "layer 1: an array of numbers has rows of different lengths"),
    (("layers", 0, "weight"), [["a", "b"]] * 3, "layer 1: an array of numbers"),
    (("layers", 0, "weight"), [[]], "layer 1: a dense layer needs weights"),
    (("layers", 0, "weight", 0, 0), float("nan"), "layer 1: a dense layer has NaN or infinite weights"),
    (("layers", 0, "weight", 0, 0), float("inf"), "layer 1: a dense layer has NaN or infinite weights"),
    (("layers", 0, "weight", 0, 0), None, "layer 1: a dense layer has NaN"),
    (("layers", 0, "weight", 0, 0), 10**400, "layer 1: "),
    (("layers", 0, "weight", 0, 0), {}, "layer 1: an array of numbers"),
    (("layers", 1, "bias", 0), 10**400, "layer 2: "),
    (("layers", 0, "bias"), [1.0], "layer 1: weights (3, 2) need 3 biases"),
    (("layers", 0, "bias"), 1.0, '"bias" must be a list'),
    (("layers", 1, "weight"), [[1.0]], "layer 2 takes 1 inputs but layer 1 gives 3"),
    (("output",), "linear", "output 'linear' is not known, it must be one of sigmoid, softmax"),
    (("output",), "softmax", "a softmax output needs at least 2 logits"),
    (("output",), REMOVED, "output None is not known"),
    (("name",), 3, "name: a name must be text, found 3"),
    (("classes",), ["a"], "1 classes are named but the network has 2"),
    (("classes",), [1, 2], "classes: a name must be text"),
    (("classes",), "ab", '"classes" must be a list'),
    (("features",), [{"name": "a"}], "1 features are named but the network takes 2 inputs"),
    (("features", 0), "height", "each of features must be an object"),
    (("features", 0, "name"), REMOVED, "features: a name must be text, found None"),
    (("features", 0, "unit"), 1, "features: a name must be text, found 1"),
    (("features", 0, "lower"), "1", "features: a range end is '1'"),
    (("features", 0, "upper"), True, "features: a range end is True"),
]


def damaged_document(models: Path, place: Place, value: Any) -> bytes:
    document = json.loads((models / "ath_relu.json").read_text())
    if not place:
        return json.dumps(value).encode()
    target = document
    for key in place[:-1]:
        target = target[key]
    if value is REMOVED:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("place", "value", "message"), DAMAGES, ids=[f"{number} {message}" for number, (*_, message) in enumerate(DAMAGES)]
)
def test_a_damaged_document_is_refused(place: Place, value: Any, message: str, models: Path, tmp_path: Path) -> None:
    assert message in refusal(tmp_path / "m.json", damaged_document(models, place, value))


@pytest.mark.parametrize(
    "content", [b"{", b"[" * 100_000, b"\xff\xfe\x00", b'{"format": ' + b"9" * 5000 + b"}", b"\x00" * 9, b" "]
)
def test_what_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    assert "is not JSON" in refusal(tmp_path / "m.json", content)


def test_json_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrobust.formats.native.MOST_BYTES", 10)
    assert "has 12 bytes, as JSON at most 10 are read" in refusal(tmp_path / "m.json", b"[1, 2, 3, 4]")


def test_json_cut_short_is_refused(models: Path, tmp_path: Path) -> None:
    content = (models / "ath_relu.json").read_bytes().rstrip()
    for length in range(1, len(content), 23):
        assert "is not JSON" in refusal(tmp_path / "m.json", content[:length])


def test_a_network_that_cannot_be_written_leaves_what_was_there(cat: Network, tmp_path: Path) -> None:
    target = tmp_path / "no such folder" / "m.json"
    with pytest.raises(QRobustError, match="was not written"):
        write_native(cat, target)
    assert not target.parent.exists()
