"""Keras files: read as Keras computes; whatever is damaged, or no dense classifier, is refused in one line."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust import formats
from qrobust.formats.native import write_native
from tests.conftest import ROOT
from tests.damage import flipped, packed, refusal, survives

KERAS = ("ath_relu", "ath_linear")


def members(models: Path) -> dict[str, bytes]:
    """What is in a .keras file."""
    with zipfile.ZipFile(models / "ath_relu.keras") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_config(models: Path, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """The file with its architecture edited in place."""
    contents = members(models)
    config = json.loads(contents["config.json"])
    edit(config)
    return packed(contents | {"config.json": json.dumps(config).encode()})


def with_weights(models: Path, edit: Callable[[Any], object]) -> bytes:
    """The file with its HDF5 part edited in place."""
    import h5py

    contents = members(models)
    buffer = io.BytesIO(contents["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        edit(file)
    return packed(contents | {"model.weights.h5": buffer.getvalue()})


@pytest.mark.parametrize("stem", KERAS)
def test_keras_files_are_read_as_keras_computes(stem: str, models: Path) -> None:
    network = formats.load(models / f"{stem}.keras")
    predictions = json.loads((models / f"{stem}.predictions.json").read_text())
    expected = np.array(predictions["confidences"])
    assert len(expected) >= 50
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(network.confidences(predictions["inputs"]), expected, rtol=0, atol=1e-5)
    assert network == formats.load(models / f"{stem}.json")


def test_a_packed_copy_is_read_the_same(models: Path, tmp_path: Path) -> None:
    """Nothing that the following tests do to a copy but the damage itself matters."""
    for content in (packed(members(models)), packed(members(models), zipfile.ZIP_DEFLATED), with_config(models, len)):
        (tmp_path / "m.keras").write_bytes(content)
        assert formats.load(tmp_path / "m.keras") == formats.load(models / "ath_relu.json")


@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.5, 0.8, 0.95, 0.999])
def test_a_keras_file_cut_short_is_refused(share: float, models: Path, tmp_path: Path) -> None:
    content = (models / "ath_relu.keras").read_bytes()
    refusal(tmp_path / "m.keras", content[: int(share * len(content)) or 1])


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_a_missing_member_is_refused(name: str, models: Path, tmp_path: Path) -> None:
    contents = members(models)
    del contents[name]
    assert name in refusal(tmp_path / "m.keras", packed(contents))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_config_that_is_no_model_is_refused(content: bytes, models: Path, tmp_path: Path) -> None:
    refusal(tmp_path / "m.keras", packed(members(models) | {"config.json": content}))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_weights_cut_short_are_refused(share: float, models: Path, tmp_path: Path) -> None:
    contents = members(models)
    weights = contents["model.weights.h5"]
    refusal(tmp_path / "m.keras", packed(contents | {"model.weights.h5": weights[: int(share * len(weights))]}))


def layer(config: dict[str, Any], index: int) -> dict[str, Any]:
    found: dict[str, Any] = config["config"]["layers"][index]
    return found


CONFIG_DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "functional": (lambda c: c.update(class_name="Functional"), "'Functional' is not read, only Sequential"),
    "no class": (lambda c: c.pop("class_name"), "only Sequential"),
    "activation": (lambda c: layer(c, 1)["config"].update(activation="swish"), "activation 'swish' cannot be represented"),
    "softmax inside": (lambda c: layer(c, 1)["config"].update(activation="softmax"), "'softmax' cannot be represented"),
    "linear end": (lambda c: layer(c, 2)["config"].update(activation="linear"), "a classifier ends in sigmoid or softmax"),
    "softmax of one": (lambda c: layer(c, 2)["config"].update(activation="softmax"), "at least 2 logits"),
    "other layer": (lambda c: layer(c, 1).update(class_name="Conv2D"), "of class Conv2D cannot be represented"),
    "line break": (lambda c: layer(c, 1).update(class_name="A\nB"), "cannot be represented"),
    "units": (lambda c: layer(c, 1)["config"].update(units=4), "has 3 columns, not 4"),
    "no layers": (lambda c: c["config"].update(layers=[]), "no Dense layer"),
    "layers lost": (lambda c: c["config"].pop("layers"), "not a whole .keras file"),
    "layers a number": (lambda c: c["config"].update(layers=3), "not a whole .keras file"),
    "layers text": (lambda c: c["config"].update(layers="Dense"), "not a whole .keras file"),
    "layer a number": (lambda c: c["config"]["layers"].append(3), "not a whole .keras file"),
    "config a number": (lambda c: c.update(config=3), "not a whole .keras file"),
    "settings a list": (lambda c: layer(c, 1).update(config=[]), "not a whole .keras file"),
    "settings of an odd layer a list": (lambda c: layer(c, 1).update(class_name="LSTM", config=[]), "m.keras"),
    "no activation": (lambda c: layer(c, 1)["config"].pop("activation"), "not a whole .keras file"),
    "one layer too many": (lambda c: c["config"]["layers"].append(layer(c, 2)), "m.keras"),
    "a sequence of points": (lambda c: layer(c, 0)["config"].update(batch_shape=[None, 5, 2]), "m.keras"),
    "quantized weights": (
        lambda c: layer(c, 1)["config"].update(dtype={"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8"}}),
        "m.keras",
    ),
}


@pytest.mark.parametrize("damage", CONFIG_DAMAGES)
def test_an_architecture_that_is_not_dense_is_refused(damage: str, models: Path, tmp_path: Path) -> None:
    edit, message = CONFIG_DAMAGES[damage]
    assert message in refusal(tmp_path / "m.keras", with_config(models, edit))


WEIGHT, BIAS = "layers/dense/vars/0", "layers/dense/vars/1"


def replaced(name: str, values: Any, **options: Any) -> Callable[[Any], None]:
    def edit(file: Any) -> None:
        del file[name]
        file.create_dataset(name, data=values, **options)

    return edit


def huge(file: Any) -> None:
    """A dataset that claims 192 GiB and stores nothing."""
    del file[WEIGHT]
    file.create_dataset(WEIGHT, shape=(2**34, 3), chunks=(1024, 3), dtype="f4")


def empty_space(file: Any) -> None:
    import h5py

    del file[WEIGHT]
    file[WEIGHT] = h5py.Empty("f4")


def group_instead(file: Any) -> None:
    del file[WEIGHT]
    file.create_group(WEIGHT)


WEIGHT_DAMAGES: dict[str, Callable[[Any], object]] = {
    "NaN": replaced(WEIGHT, np.full((2, 3), np.nan, "f4")),
    "infinite": replaced(WEIGHT, np.full((2, 3), np.inf, "f4")),
    "NaN bias": replaced(BIAS, np.full(3, np.nan, "f4")),
    "one dimension": replaced(WEIGHT, np.zeros(3, "f4")),
    "three dimensions": replaced(WEIGHT, np.zeros((2, 3, 1), "f4")),
    "a scalar": replaced(WEIGHT, 1.0),
    "text": replaced(WEIGHT, b"abc"),
    "an array of text": replaced(WEIGHT, np.array([["a", "b", "c"]] * 2, "S3")),
    "complex": replaced(WEIGHT, np.full((2, 3), 1j)),
    "too many biases": replaced(BIAS, np.zeros(4, "f4")),
    "no rows": replaced(WEIGHT, np.zeros((0, 3), "f4")),
    "another layer's shape": replaced(WEIGHT, np.zeros((2, 4), "f4")),
    "no array": group_instead,
    "an empty space": empty_space,
    "huge": huge,
    "no layers": lambda file: file.pop("layers"),
    "no weights": lambda file: file.pop(WEIGHT),
    "no biases": lambda file: file.pop(BIAS),
}


@pytest.mark.parametrize("damage", WEIGHT_DAMAGES)
def test_damaged_weights_are_refused(damage: str, models: Path, tmp_path: Path) -> None:
    refusal(tmp_path / "m.keras", with_weights(models, WEIGHT_DAMAGES[damage]))


def test_weights_that_claim_more_than_the_limit_are_refused(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qrobust.formats.untrusted.MOST_MEMBER_BYTES", 100)
    assert "more than 100 bytes" in refusal(tmp_path / "m.keras", packed(members(models)))


def test_a_locked_archive_is_refused(models: Path, tmp_path: Path) -> None:
    content = bytearray((models / "ath_relu.keras").read_bytes())
    place = content.find(b"PK\x01\x02")
    while place >= 0:
        content[place + 8] |= 1  # the flag "encrypted" of the central directory
        place = content.find(b"PK\x01\x02", place + 4)
    refusal(tmp_path / "m.keras", bytes(content))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("part", ["stored", "deflated", "model.weights.h5", "config.json"])
def test_no_flipped_byte_gives_a_traceback(part: str, seed: int, models: Path, tmp_path: Path) -> None:
    contents = members(models)
    read = 0
    for number in range(60):
        if part in contents:
            damaged = packed(contents | {part: flipped(contents[part], 1000 * seed + number)})
        else:
            whole = packed(contents, zipfile.ZIP_DEFLATED if part == "deflated" else zipfile.ZIP_STORED)
            damaged = flipped(whole, 1000 * seed + number)
        read += survives(tmp_path / "m.keras", damaged)
    assert read < 60


def test_equal_networks_from_different_files_have_one_hash(models: Path, tmp_path: Path) -> None:
    network = formats.load(models / "ath_relu.keras")
    write_native(replace(network, name="other"), tmp_path / "m.json")
    assert formats.load(tmp_path / "m.json").sha256 == network.sha256


DATA = Path(__file__).parent / "data"  # made and recorded by data/make_keras.py


@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.parametrize("stem", ["dense", "images", "scaled", "scaled_images"])
def test_files_of_both_formats_are_read_as_keras_computes(stem: str, ending: str) -> None:
    recorded = json.loads((DATA / "keras.json").read_text())[stem]
    inputs, expected = np.array(recorded["inputs"]), np.array(recorded["outputs"])
    if inputs.ndim == 4:
        inputs = inputs.transpose(0, 3, 1, 2).reshape(len(inputs), -1)
    network = formats.load(DATA / f"{stem}.{ending}")
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(network.confidences(inputs), expected, rtol=0, atol=1e-6)
    assert network == formats.load(DATA / f"{stem}.keras")


def h5_with(edit: Callable[[Any], object], stem: str = "dense") -> bytes:
    """A legacy file edited in place."""
    import h5py

    buffer = io.BytesIO((DATA / f"{stem}.h5").read_bytes())
    with h5py.File(buffer, "r+") as file:
        edit(file)
    return buffer.getvalue()


def model_config(file: Any, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads(file.attrs["model_config"])
    edit(config)
    file.attrs["model_config"] = json.dumps(config)


def as_keras_2(config: dict[str, Any]) -> None:
    """As Keras 2 wrote it: no input layer, its shape with the first layer, and types as texts."""
    layers = config["config"]["layers"]
    shape = layers.pop(0)["config"]["batch_shape"]
    layers[0]["config"]["batch_input_shape"] = shape
    for one in layers:
        one["config"]["dtype"] = "float32"


@pytest.mark.parametrize("stem", ["dense", "images"])
def test_a_file_of_keras_2_is_read_the_same(stem: str, tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(h5_with(lambda file: model_config(file, as_keras_2), stem))
    assert formats.load(tmp_path / "m.h5") == formats.load(DATA / f"{stem}.h5")


H5_DAMAGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "weights alone": (lambda file: file.attrs.pop("model_config"), "it holds weights without a model"),
    "no weights": (lambda file: file.pop("model_weights"), "not a whole .h5 file"),
    "a layer lost": (lambda file: file["model_weights"].pop("dense"), "not a whole .h5 file"),
    "an array lost": (lambda file: file["model_weights/dense"].attrs.__setitem__("weight_names", []), "has 0 arrays, not 2"),
    "config no text": (lambda file: file.attrs.__setitem__("model_config", 3), "not a whole .h5 file"),
    "config no model": (lambda file: file.attrs.__setitem__("model_config", "[]"), "holds no model"),
    "other class": (lambda file: model_config(file, lambda c: c.update(class_name="Functional")), "only Sequential"),
    "nested config": (lambda file: file.attrs.__setitem__("model_config", "[" * 60_000), "not a whole .h5 file"),
}


@pytest.mark.parametrize("damage", H5_DAMAGES)
def test_a_damaged_legacy_file_is_refused(damage: str, tmp_path: Path) -> None:
    edit, message = H5_DAMAGES[damage]
    assert message in refusal(tmp_path / "m.h5", h5_with(edit))


def test_datasets_that_claim_memory_together_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each dataset alone would pass, and both store nothing."""
    monkeypatch.setattr("qrobust.formats.untrusted.MOST_NUMBERS", 1000)

    def claim(file: Any) -> None:
        group = file["model_weights/dense"]
        names = [name.decode() if isinstance(name, bytes) else name for name in group.attrs["weight_names"]]
        for name in names:
            del group[name]
        group.create_dataset(names[0], shape=(5, 150), chunks=(5, 10), dtype="f4")
        group.create_dataset(names[1], shape=(300,), chunks=(10,), dtype="f4")
        model_config(file, lambda config: layer(config, 1)["config"].update(units=150))

    assert "would take 300 numbers, all arrays of a file at most 1,000" in refusal(tmp_path / "m.h5", h5_with(claim))


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_legacy_file_cut_short_is_refused(share: float, tmp_path: Path) -> None:
    content = (DATA / "dense.h5").read_bytes()
    refusal(tmp_path / "m.h5", content[: int(share * len(content)) or 1])


@pytest.mark.parametrize("seed", range(6))
def test_no_flipped_byte_of_a_legacy_file_gives_a_traceback(seed: int, tmp_path: Path) -> None:
    content = (DATA / "images.h5").read_bytes()
    used = np.flatnonzero(np.frombuffer(content, np.uint8))
    read = 0
    for number in range(60):
        rng = np.random.default_rng(1000 * seed + number)
        damaged = bytearray(content)
        for place in rng.choice(used, size=3):  # most of the file is empty space
            damaged[place] = int(rng.integers(256))
        read += survives(tmp_path / "m.h5", bytes(damaged))
    assert read < 60


def test_a_zip_bomb_is_refused_before_it_unpacks(models: Path, tmp_path: Path) -> None:
    content = packed(members(models) | {"model.weights.h5": bytes(200_000_000)}, zipfile.ZIP_DEFLATED)
    assert len(content) < 10**6
    assert "model.weights.h5 unpacks to 200,000,000 bytes" in refusal(tmp_path / "m.keras", content)


def heaps_of(content: bytearray) -> list[int]:
    """Where the file's texts of variable length lie."""
    found = [place for place in range(0, len(content), 8) if content[place : place + 4] == b"GCOL"]
    assert found
    return found


def endless(content: bytearray) -> None:
    """Free space of size 0, which HDF5 2.0 reads for ever."""
    for place in heaps_of(content):
        content[place + 16 : place + 32] = bytes(16)


def bloated(content: bytearray) -> None:
    """Texts of 4 GiB, which HDF5 2.0 makes room for before it looks for them."""
    for heap in heaps_of(content):
        place = content.find(heap.to_bytes(8, "little"))
        while place >= 0:
            content[place - 4 : place] = b"\xf0\xff\xff\xff"
            place = content.find(heap.to_bytes(8, "little"), place + 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reads the file in a fork first")
@pytest.mark.parametrize(("damage", "message"), [(endless, "stalls or ends"), (bloated, "over 2 GiB of memory")])
def test_what_hdf5_does_not_come_back_from(
    damage: Callable[[bytearray], None],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qrobust.formats.hdf5.LEAST_SECONDS", 1)
    content = bytearray((ROOT / "tests/data/dense.h5").read_bytes())
    damage(content)
    assert message in refusal(tmp_path / "m.h5", bytes(content))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reads the file in a fork first")
def test_a_file_that_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some damaged files do: by a signal that nothing catches, in the library's own code."""
    import h5py

    monkeypatch.setattr("qrobust.formats.hdf5._fails_for_memory", lambda *_: os.kill(os.getpid(), signal.SIGSEGV))
    assert "stalls or ends" in refusal(tmp_path / "m.h5", (ROOT / "tests/data/dense.h5").read_bytes())
    assert h5py.is_hdf5(tmp_path / "m.h5")


def test_an_attribute_of_absurd_size_is_refused(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "m.h5", "w", track_order=True) as file:
        file.attrs.create("model_config", np.zeros(3 * 2**21), dtype="f8")
    assert "attribute model_config would take 50,331,648 bytes" in refusal(tmp_path / "m.h5")


def moved_out(file: Any, path: Path, how: str) -> None:
    """Move a layer's kernel, or all of them, to another file."""
    import h5py

    whole, name = file["model_weights"], "dense/sequential/dense/kernel"
    values = whole[name][()]
    if how == "link":
        del file["model_weights"]
        file["model_weights"] = h5py.ExternalLink(ROOT / "tests/data/dense.h5", "model_weights")
        return
    del whole[name]
    if how == "external":
        path.with_name("raw.bin").write_bytes(values.tobytes())
        whole.create_dataset(name, values.shape, values.dtype, external=[(path.with_name("raw.bin"), 0, values.nbytes)])
    else:
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource(ROOT / "tests/data/dense.h5", f"model_weights/{name}", values.shape)
        whole.create_virtual_dataset(name, layout)


@pytest.mark.parametrize(
    ("how", "message"), [("external", "lies in another file"), ("virtual", "lies in another file"), ("link", "not a whole")]
)
def test_numbers_in_other_files_are_not_read(how: str, message: str, tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "m.h5"
    path.write_bytes((ROOT / "tests/data/dense.h5").read_bytes())
    formats.load(path)
    with h5py.File(path, "a") as file:
        moved_out(file, path, how)
    assert message in refusal(path)
