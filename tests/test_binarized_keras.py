"""Networks of signs as Keras models: files that Keras wrote against what it said of them, and refusals in one line."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.train_bnn import non_zeros, share_right
from models.train_bnn_digits import KEPT
from models.train_digits import digits_sha256, load_split
from qrobust import formats
from qrobust.binarized import BatchNorm, BinarizedNetwork, Block, Grid, InputRounding, Linear, fold
from qrobust.binarized.bracket_files import load_bracket
from qrobust.binarized.formats import keras_layers, load_binarized, save_binarized
from qrobust.binarized.formats.keras import read_keras
from qrobust.binarized.formats.keras_write import _round_to_grid, _scale, _sign, as_float32, model_name, model_parts
from qrobust.binarized.formats.native import grid_document
from qrobust.errors import BackendUnavailableError, ModelFileError, OutputError, UnsupportedError
from qrobust.formats.keras import members
from qrobust.layers import Activation, Conv2d, Dense
from tests.binarized import all_levels, network, sparse_dense
from tests.damage import flipped, packed, refusal, survives
from tests.keras_by_hand import IN_NUMPY, file_of, saved
from tests.test_cli import run
from tests.test_models import facts, percentages

MODELS = Path(__file__).parent.parent / "models"


@pytest.mark.parametrize("stem", list(KEPT))
def test_labels_are_those_of_keras(stem: str) -> None:
    """In integers, of points of which many lie half way between two levels, and of all test images."""
    said = json.loads((MODELS / f"{stem}.predictions.json").read_text())
    found = load_binarized(MODELS / f"{stem}.keras").network
    points = np.array(said["points"]) * float(Fraction(said["unit"]))
    levels, scores = found.grid.levels(points), np.array(said["scores"])
    folded = fold(found)
    np.testing.assert_array_equal(folded.labels(levels), scores.argmax(axis=1))
    np.testing.assert_allclose((folded.scores(levels) / folded.score_unit).astype(float), scores, rtol=0, atol=1e-5)
    images = found.grid.levels(load_split()[1].inputs)
    np.testing.assert_array_equal(folded.labels(images), said["test_labels"])
    assert len(set(said["test_labels"])) == 10
    assert len(set(scores.argmax(axis=1))) > 3


def test_points_lie_half_way_between_levels() -> None:
    """So that what is compared above is the rule of rounding, too."""
    points = json.loads((MODELS / "bnn_digits.predictions.json").read_text())["points"]
    assert (np.array(points) % 4 == 2).mean() > 0.1  # in units of 1/32, on a grid of 1/8
    images = load_split()[1].inputs * 16
    assert (images % 2 == 1).mean() > 0.1


@pytest.mark.parametrize("stem", list(KEPT))
def test_kept_models_are_what_their_cards_say(stem: str) -> None:
    found, card = load_binarized(MODELS / f"{stem}.keras").network, facts(stem)
    assert card["content sha256"] == f"`{found.sha256}`"
    assert digits_sha256() in card["data sha256"]
    assert card["architecture"].startswith(f"{found},")
    assert card["non-zero weights"].endswith(f"by layer {', '.join(f'{number:,}' for number in non_zeros(found))}")
    assert [round(100 * share_right(found, part), 2) for part in load_split()] == percentages(card["accuracy"])
    assert (MODELS / f"{stem}.keras").stat().st_size < 60_000


@pytest.mark.parametrize("stem", list(KEPT))
def test_what_keras_wrote_is_what_it_was_given(stem: str) -> None:
    """Each layer's class, arguments and arrays, in order: so files put together by hand are like Keras's own."""
    content = (MODELS / f"{stem}.keras").read_bytes()
    own = load_binarized(MODELS / f"{stem}.keras").network
    real, weights = members(content)
    by_hand, weights_by_hand = members(file_of(own))
    pairs = list(zip(real["config"]["layers"], by_hand["config"]["layers"], strict=True))
    for theirs, ours in pairs:
        assert (theirs["class_name"], theirs["registered_name"]) == (ours["class_name"], ours["registered_name"])
        wanted = ours["config"] | {"name": theirs["config"]["name"]}
        assert {key: theirs["config"][key] for key in wanted} == wanted
    assert arrays(weights).keys() == arrays(weights_by_hand).keys()
    for name, values in arrays(weights).items():
        np.testing.assert_array_equal(values, arrays(weights_by_hand)[name])


def arrays(weights: bytes) -> dict[str, Any]:
    import h5py

    found: dict[str, Any] = {}
    with h5py.File(io.BytesIO(weights)) as file:
        file.visititems(lambda name, each: found.update({name: each[()]} if isinstance(each, h5py.Dataset) else {}))
    return found


def of_images(rng: np.random.Generator) -> BinarizedNetwork:
    """Two convolutions of several channels, strides and paddings, one after another; then, for some, a dense layer."""
    first = Conv2d(
        rng.choice([-1.0, 0.0, 1.0], size=(3, 2, 2, 3)),
        rng.normal(size=3).astype(np.float32),
        Activation.LINEAR,
        (2, 5, 4),
        (2, 1),
        (1, 0, 0, 2),
    )
    norm = BatchNorm(rng.choice([-1.0, 2.0], size=3), rng.normal(size=3), rng.normal(size=3), rng.uniform(0.5, 2, size=3), 1e-3)
    second = Conv2d(rng.choice([-1.0, 1.0], size=(4, *first.output_shape)), np.zeros(4), Activation.LINEAR, first.output_shape)
    blocks = [Block(Linear(first, np.array([1.0, 0.5, -2.0])), norm)]
    output = Linear(second, np.full(4, 0.25))
    if rng.random() < 0.5:
        blocks.append(Block(output))
        output = sparse_dense(rng.choice([-1.0, 1.0], size=(3, 4)), rng.normal(size=3).astype(np.float32).astype(np.float64))
    grid = Grid.of("1/3", "-1/3", 1, "1/7", InputRounding.HALF_AWAY)
    return BinarizedNetwork(grid, tuple(blocks), output, "images/of two channels", tuple("abcd"[: output.channels]))


@pytest.mark.parametrize("make", [network, of_images])
def test_what_is_written_is_read_back(make: Callable[[np.random.Generator], BinarizedNetwork], tmp_path: Path) -> None:
    for seed in range(20):
        wanted = as_float32(make(np.random.default_rng(seed)))
        (tmp_path / "m.keras").write_bytes(file_of(wanted))
        read = load_binarized(tmp_path / "m.keras")
        assert read.network.sha256 == wanted.sha256
        assert (read.network.classes, read.network.grid) == (wanted.classes, wanted.grid)
        assert read.network.name == (model_name(wanted.name) or "sequential")
        assert read.order.tolist() == list(range(wanted.inputs))


@pytest.mark.parametrize(("name", "taken"), [("MNIST conv-1", "MNIST_conv-1"), ("_a/b.ü", "a_b._"), ("_", None), ("", None)])
def test_names_are_such_as_tensorflow_takes(name: str, taken: str | None) -> None:
    assert model_name(name) == taken


def test_dyadic_numbers_are_not_rounded() -> None:
    for seed in range(20):
        own = network(np.random.default_rng(seed))
        levels = all_levels(own)[:100]
        np.testing.assert_array_equal(fold(as_float32(own)).scores(levels), fold(own).scores(levels))


def tiny(bias: float = 0.0) -> BinarizedNetwork:
    one = np.ones(1)
    block = Block(sparse_dense(np.array([[1.0, 0.0]]), np.array([bias])), BatchNorm(one, one, one, one, 1e-3))
    return BinarizedNetwork(Grid.of(1, 0, 1), (block,), sparse_dense(np.array([[1.0], [-1.0]])), "tiny")


@pytest.mark.parametrize("number", [1e300, -1e-300, 3.5e38])
def test_numbers_that_float32_lacks_are_refused(number: float, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="float32, which has no number near"):
        save_binarized(tiny(number), tmp_path / "m.keras")
    norm = BatchNorm(np.array([number]), np.ones(1), np.ones(1), np.ones(1), 1e-3)
    with pytest.raises(UnsupportedError, match=r"write \.npz or \.json"):
        as_float32(replace(tiny(), blocks=(replace(tiny().blocks[0], norm=norm),)))
    assert not (tmp_path / "m.keras").exists()


def test_writing_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="no place for bracket"):
        save_binarized(tiny(), tmp_path / "m.keras", {"bracket": {}})
    keras_layers.cache_clear()
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install qrobust\[tensorflow\]"):
        save_binarized(tiny(), tmp_path / "m.keras")

    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qrobust.binarized.formats.keras_write._saved", full)
    with pytest.raises(OutputError, match="was not written: No space left"):
        save_binarized(tiny(), tmp_path / "m.keras")
    assert not list(tmp_path.iterdir())


def test_the_command_reports_what_the_file_computes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the input 1 the sum is just below the threshold, and in float32 on it. Neither training nor Keras is run."""
    block = Block(sparse_dense(np.array([[1.0]]), np.array([-1 - 1e-12])))
    own = BinarizedNetwork(Grid.of(1, 0, 1), (block,), sparse_dense(np.array([[-1.0], [1.0]])), "own")
    monkeypatch.setattr("qrobust.cli.bnn.train_network", lambda *_, **__: own)
    monkeypatch.setattr("qrobust.binarized.formats.keras_write._saved", saved)
    (tmp_path / "t.csv").write_text("a,class\n1,1\n0,0\n")
    for suffix, share in ((".npz", "50.00%"), (".keras", "100.00%")):
        code, text, _ = run(capsys, "bnn", "train", str(tmp_path / "t.csv"), "--output", str(tmp_path / f"m{suffix}"))
        assert code == 0
        assert share in text
    assert load_binarized(tmp_path / "m.keras").network.sha256 == as_float32(own).sha256


def test_commands_take_a_keras_file(capsys: pytest.CaptureFixture[str]) -> None:
    image = ", ".join(str(pixel) for pixel in load_split()[1].inputs[0])
    code, text, _ = run(capsys, "bnn", "verify", str(MODELS / "bnn_digits.keras"), "--input", image, "--eps", "0")
    assert code == 0
    assert text.startswith("ROBUST")


def content() -> dict[str, bytes]:
    with zipfile.ZipFile(MODELS / "bnn_digits_conv.keras") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def layer(config: dict[str, Any], kind: str) -> dict[str, Any]:
    """The settings of the first layer of a class."""
    found: dict[str, Any] = next(each for each in config["config"]["layers"] if each["class_name"] == kind)
    return found


def settings(kind: str, **changed: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: layer(config, kind)["config"].update(changed)


def without(*kinds: str) -> Callable[[dict[str, Any]], object]:
    def edit(config: dict[str, Any]) -> None:
        for kind in kinds:
            config["config"]["layers"].remove(layer(config, kind))

    return edit


def added(place: int, **described: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["config"]["layers"].insert(place, {"registered_name": None} | described)


def twice(place: int) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["config"]["layers"].insert(place, config["config"]["layers"][place])


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "functional": (lambda c: c.update(class_name="Functional"), "only Sequential"),
    "a list": (lambda c: c.update(config=[]), "not a whole .keras file"),
    "no layers": (lambda c: c["config"].update(layers=[]), "it does not end in scores"),
    "no grid": (without("RoundToGrid"), "no RoundToGrid put on a grid"),
    "no inputs": (without("InputLayer"), "does not follow the inputs"),
    "two inputs": (twice(0), "has the shape"),
    "two grids": (twice(1), "does not follow the inputs"),
    "grid without a step": (lambda c: layer(c, "RoundToGrid")["config"].pop("step"), "lacks 'step'"),
    "step 0": (settings("RoundToGrid", step="0"), "step is 0"),
    "step a word": (settings("RoundToGrid", step="x"), "not a finite number"),
    "step too fine": (settings("RoundToGrid", step="1/1000000"), "levels, at most"),
    "rounding": (settings("RoundToGrid", rounding="up"), "its rounding is none of"),
    "image inputs": (settings("InputLayer", batch_shape=[None, 8, 8, 1]), "vectors of a known length"),
    "inputs of any length": (settings("InputLayer", batch_shape=[None, None]), "vectors of a known length"),
    "a million million inputs": (settings("InputLayer", batch_shape=[None, 10**12]), "would take 1,000,000,000,000"),
    "other layer": (added(2, class_name="LSTM", config={"name": "l"}), "layer 'l' of class LSTM is not read"),
    "someone else's Sign": (
        lambda c: layer(c, "Sign").update(registered_name="other>Sign"),
        "class other>Sign is not read, only InputLayer, qrobust>RoundToGrid",
    ),
    "reshaped to nothing": (settings("Reshape", target_shape=[0, 8, 8]), "not (channels, height, width)"),
    "reshaped to more": (settings("Reshape", target_shape=[2, 8, 8]), "of 64 values"),
    "reshaped to a line": (settings("Reshape", target_shape=[64]), "not (channels, height, width)"),
    "permuted otherwise": (settings("Permute", dims=[3, 2, 1]), "moves images with their channels first by (3, 2, 1)"),
    "not permuted": (without("Permute"), "takes images with their channels first"),
    "not flattened": (without("Flatten"), "takes images with their channels first, not a vector"),
    "padding negative": (settings("ZeroPadding2D", padding=[[-1, 1], [1, 1]]), "m.keras"),
    "padding huge": (settings("ZeroPadding2D", padding=[[10**9, 1], [1, 10**9]]), "would take"),
    "padding of two": (settings("ZeroPadding2D", padding=[1, 1]), "not a whole .keras file"),
    "padding a layer": (without("Conv2D"), "follows a ZeroPadding2D"),
    "padding same": (settings("Conv2D", padding="same"), "has padding 'same'"),
    "groups": (settings("Conv2D", groups=2), "has groups 2, only 1 is read"),
    "dilation": (settings("Conv2D", dilation_rate=[2, 2]), "has dilation_rate [2, 2]"),
    "channels first": (settings("Conv2D", data_format="channels_first"), "'channels_first', only 'channels_last'"),
    "activation": (settings("Conv2D", activation="relu"), "has activation 'relu', only 'linear'"),
    "stride 0": (settings("Conv2D", strides=[0, 1]), "two whole numbers > 0"),
    "kernel size": (settings("Conv2D", kernel_size=[2, 2]), "not those of config.json"),
    "filters": (settings("Conv2D", filters=3), "not those of config.json"),
    "units": (settings("Dense", units=3), "has a kernel (48, 10), not (48, 3)"),
    "a bias": (settings("Dense", use_bias=True), "has use_bias True, only False is read"),
    "normalized over rows": (settings("BatchNormalization", axis=1), "has axis 1"),
    "no gamma": (settings("BatchNormalization", scale=False), "has 4 arrays, not 3"),
    "epsilon a word": (settings("BatchNormalization", epsilon="x"), "m.keras"),
    "epsilon NaN": (settings("BatchNormalization", epsilon=float("nan")), "must be positive"),
    "quantized": (settings("Dense", quantization_mode="int8"), "is quantized or adapted"),
    "classes": (settings("Scale", classes=["a"]), "10 scores but 1 names"),
    "a sign too many": (twice(7), "follows no Dense or Conv2D"),
    "no signs": (without("Sign", "Sign"), "another linear layer"),
    "ends in signs": (lambda c: c["config"]["layers"].append(layer(c, "Sign")), "must give scores"),
    "no scores": (without("Permute", "Permute", "Flatten", "Dense", "Scale"), "m.keras"),
    "a line break": (lambda c: layer(c, "Dense").update(class_name="A\nB"), "is not read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_other_models_are_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    edit, message = DAMAGES[damage]
    parts = content()
    config = json.loads(parts["config.json"])
    edit(config)
    parts["config.json"] = json.dumps(config).encode()
    assert message in refusal(tmp_path / "m.keras", packed(parts), read=load_binarized)


def put(name: str, change: Callable[[Any], Any]) -> Callable[[Any], object]:
    def edit(file: Any) -> None:
        values = change(file[name][()])
        del file[name]
        file[name] = values

    return edit


KERNEL, GAMMA, SCALE = "layers/dense/vars/0", "layers/batch_normalization/vars/0", "layers/scale/vars/0"
WEIGHT_DAMAGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "a weight of 2": (put(KERNEL, lambda kernel: kernel + 1), "only -1, 0 and 1 are weights of signs"),
    "a weight of a half": (put(KERNEL, lambda kernel: kernel / 2), "only -1, 0 and 1"),
    "NaN": (put(KERNEL, lambda kernel: kernel * np.float32("nan")), "NaN"),
    "transposed": (put(KERNEL, lambda kernel: kernel.T), "has a kernel (10, 48), not (48, 10)"),
    "a line": (put(KERNEL, lambda kernel: kernel[0]), "in 2 dimension(s)"),
    "gamma 0": (put(GAMMA, lambda gamma: 0 * gamma), "gamma is 0"),
    "gamma infinite": (put(GAMMA, lambda gamma: gamma * np.float32("inf")), "NaN or an infinite"),
    "gammas lost": (put(GAMMA, lambda gamma: gamma[1:]), "not one number for each of the 8 channels"),
    "double numbers": (put(GAMMA, lambda gamma: gamma.astype("f8") + 1e-12), "numbers that are no float32"),
    "beyond float32": (put(GAMMA, lambda gamma: gamma.astype("f8") * 1e300), "numbers that are no float32"),
    "variance below 0": (put("layers/batch_normalization/vars/3", lambda v: -v - 1), "must be positive"),
    "scale 0": (put(SCALE, lambda scale: 0 * scale), "scale of a binarized layer is zero"),
    "scales lost": (put(SCALE, lambda scale: scale[1:]), "not one number for each of the 10 channels"),
    "no array": (lambda file: file.pop("layers/scale/vars/1"), "has 1 arrays, not 2"),
    "no layers": (lambda file: file.pop("layers"), "not a whole .keras file"),
}


@pytest.mark.parametrize("damage", WEIGHT_DAMAGES)
def test_weights_of_no_network_of_signs_are_refused(damage: str, tmp_path: Path) -> None:
    import h5py

    edit, message = WEIGHT_DAMAGES[damage]
    parts = content()
    buffer = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        edit(file)
    parts["model.weights.h5"] = buffer.getvalue()
    assert message in refusal(tmp_path / "m.keras", packed(parts), read=load_binarized)


def test_such_a_file_holds_no_bracket() -> None:
    with pytest.raises(ModelFileError, match="without a bracket"):
        load_bracket(MODELS / "bnn_digits.keras")


def test_float_models_and_networks_of_signs_are_told_apart(tmp_path: Path) -> None:
    assert "if it is a float network, bnn verify, attack, map and report make it one of signs by their scheme" in refusal(
        MODELS / "ath_relu.keras", read=load_binarized
    )
    assert "RoundToGrid cannot be represented" in refusal(MODELS / "bnn_digits.keras")
    assert formats.load(MODELS / "ath_relu.keras").name == "ath_relu"


def test_an_image_of_more_places_than_are_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrobust.formats.untrusted.MOST_NUMBERS", 1000)
    assert "all arrays of a file at most 1,000" in refusal(
        tmp_path / "m.keras", (MODELS / "bnn_digits_conv.keras").read_bytes(), read=read_keras
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("part", ["stored", "model.weights.h5", "config.json"])
def test_no_flipped_byte_gives_a_traceback(part: str, seed: int, tmp_path: Path) -> None:
    parts, read = content(), 0
    for number in range(40):
        if part in parts:
            damaged = packed(parts | {part: flipped(parts[part], 1000 * seed + number)})
        else:
            damaged = flipped(packed(parts), 1000 * seed + number)
        read += survives(tmp_path / "m.keras", damaged, read=load_binarized)
    assert read < 40


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999])
def test_files_cut_short_are_refused(share: float, tmp_path: Path) -> None:
    whole = (MODELS / "bnn_digits.keras").read_bytes()
    refusal(tmp_path / "m.keras", whole[: int(share * len(whole)) or 1], read=load_binarized)


def test_the_parts_of_a_network_of_images() -> None:
    """Padding, kernels and strides as Keras wants them: heights first, channels last."""
    found = {part.kind: part for part in model_parts(of_images(np.random.default_rng(0)))}
    kinds = [part.kind for part in model_parts(of_images(np.random.default_rng(0)))]
    assert kinds[:8] == ["RoundToGrid", "Reshape", "Permute", "ZeroPadding2D", "Conv2D", "Scale", "BatchNormalization", "Sign"]
    assert found["ZeroPadding2D"].settings == {"padding": ((1, 0), (0, 2))}
    first = next(part for part in model_parts(of_images(np.random.default_rng(0))) if part.kind == "Conv2D")
    assert first.settings == {"filters": 3, "kernel_size": (2, 3), "strides": (2, 1), "use_bias": False}
    assert first.arrays[0].shape == (2, 3, 2, 3)


def test_a_dense_layer_before_images_is_written() -> None:
    """Signs of a dense layer are reshaped to images, and back."""
    image = Conv2d(np.ones((1, 1, 2, 2)), np.zeros(1), Activation.LINEAR, (1, 2, 2))
    blocks = (Block(Linear(Dense(np.ones((4, 3)), np.zeros(4)), np.ones(4))), Block(Linear(image, np.ones(1))))
    own = BinarizedNetwork(Grid.of(1, 0, 1), blocks, sparse_dense(np.array([[1.0], [-1.0]])))
    assert [part.kind for part in model_parts(own)] == [
        *("RoundToGrid", "Dense", "Sign", "Reshape", "Permute", "Conv2D", "Sign", "Permute", "Flatten", "Dense")
    ]


@pytest.mark.parametrize("rounding", list(InputRounding))
def test_the_layer_rounds_as_the_grid_does(rounding: InputRounding) -> None:
    """Half way between two levels, and a float32 beside it: of a step that floats hold, and of one that they do not."""
    for step, offset in (("1/8", "0"), ("61/100", "-1/3"), ("1/255", "1/7")):
        grid = Grid.of(step, -1, 1, offset, rounding)
        ties = (float(grid.offset) + (np.arange(grid.lowest, grid.highest) + 0.5) * float(grid.step)).astype(np.float32)
        inputs = np.concatenate([ties, *(np.nextafter(ties, np.float32(end)) for end in (-2, 2))])
        made = _round_to_grid(IN_NUMPY)(**grid_document(grid))
        levels = (made.call(inputs) - float(grid.offset)) / float(grid.step)
        np.testing.assert_array_equal(np.rint(levels), grid.levels(inputs.astype(np.float64)))
        assert made.get_config() == {"name": "layer"} | grid_document(grid)


def test_the_layers_of_signs_and_scales() -> None:
    assert _sign(IN_NUMPY)().call(np.array([-1e-30, -0.0, 0.0, 2.0])).tolist() == [-1, 1, 1, 1]
    made = _scale(IN_NUMPY)(classes=("a", "b"))
    made.build((None, 2))
    assert made.call(np.array([3.0, 4.0])).tolist() == [3, 4]
    made.scale, made.bias = np.array([2.0, -1.0]), np.array([0.5, 0.0])
    assert made.call(np.array([3.0, 4.0])).tolist() == [6.5, -4]
    assert made.get_config() == {"name": "layer", "classes": ["a", "b"]}
