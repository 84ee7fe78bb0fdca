"""Plain weights in .npz: exact round trips, arrays as a person writes them, and what is refused."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qrobust import formats
from qrobust.errors import QRobustError
from qrobust.formats.npz import write_npz
from qrobust.network import Activation, AveragePool2d, Conv2d, Dense, MaxPool2d, Network, Output
from tests.conftest import RandomNetwork
from tests.damage import flipped, packed, refusal, survives


def stored(**arrays: Any) -> bytes:
    """The content of a file of these arrays; in names, _N_ stands for the number of a layer: _1_weight is 1.weight."""
    buffer = io.BytesIO()
    named = {f"{name[1]}.{name[3:]}" if name.startswith("_") else name: values for name, values in arrays.items()}
    np.savez(buffer, **named)
    return buffer.getvalue()


PLAIN: dict[str, Any] = {
    "_1_weight": np.arange(6, dtype=np.float32).reshape(3, 2) / 4,
    "_1_bias": np.array([1, -2, 3]),
    "_1_activation": "relu",
    "_2_weight": np.array([[0.1, 0.2, 0.3]]),
    "_2_bias": np.array([0.5], dtype=np.float16),
    "output": "sigmoid",
}


def test_arrays_as_a_person_writes_them(tmp_path: Path) -> None:
    (tmp_path / "m.npz").write_bytes(stored(**PLAIN))
    network = formats.load(tmp_path / "m.npz")
    first = Dense(np.arange(6).reshape(3, 2) / 4, np.array([1.0, -2.0, 3.0]), Activation.RELU)
    expected = Network((first, Dense(np.array([[0.1, 0.2, 0.3]]), np.array([0.5]))), Output.SIGMOID)
    assert network == expected
    assert network.name == "m"


def test_the_order_of_memory_changes_nothing(tmp_path: Path) -> None:
    weight = np.asfortranarray(PLAIN["_1_weight"].astype(">f8"))
    (tmp_path / "m.npz").write_bytes(stored(**PLAIN))
    (tmp_path / "n.npz").write_bytes(stored(**PLAIN | {"_1_weight": weight}))
    assert formats.load(tmp_path / "n.npz") == formats.load(tmp_path / "m.npz")


def test_what_is_written_is_read_back(tmp_path: Path, random_network: RandomNetwork) -> None:
    rng = np.random.default_rng(0)
    images = Network(
        (
            Conv2d(rng.normal(size=(3, 2, 3, 2)), rng.normal(size=3), Activation.TANH, (2, 7, 8), (2, 1), (1, 0, 2, 1)),
            MaxPool2d((3, 4, 8), (2, 2), (2, 2)),
            AveragePool2d((3, 2, 4), (2, 3), (1, 1)),
            Dense(rng.normal(size=(2, 6)), rng.normal(size=2)),
        ),
        Output.SOFTMAX,
        name="images",
        classes=("größer", "kleiner"),
    )
    for network in (images, *(random_network(rng, (3, 5, 2), activation) for activation in Activation)):
        write_npz(network, tmp_path / "m.npz")
        again = formats.load(tmp_path / "m.npz")
        assert again == network
        assert again.classes == network.classes
    assert formats.load(tmp_path / "m.npz").name == "m"


def test_a_missing_folder_leaves_nothing(tmp_path: Path, cat: Network) -> None:
    with pytest.raises(QRobustError, match="was not written"):
        write_npz(cat, tmp_path / "no" / "m.npz")
    assert list(tmp_path.iterdir()) == []


def without(*names: str) -> dict[str, Any]:
    return {name: values for name, values in PLAIN.items() if name not in names}


class Trap:
    """Unpickling this would write a file."""

    def __reduce__(self) -> Any:
        return (open, ("trap", "w"))


DAMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "no output": (without("output"), 'it has no arrays "output" and "1.weight"'),
    "no first layer": (without("_1_weight", "_1_bias", "_1_activation"), 'it has no arrays "output" and "1.weight"'),
    "a layer left out": (
        {f"_3{name[2:]}" if name[:2] == "_2" else name: values for name, values in PLAIN.items()},
        "array '3.bias' is not known, or belongs to none of the layers 1 to 1",
    ),
    "no bias": (without("_1_bias"), '"bias" must be a list'),
    "unknown name": (PLAIN | {"_1_kernel": np.ones(2)}, "array '1.kernel' is not known"),
    "unknown array": (PLAIN | {"scale": np.ones(2)}, "array 'scale' is not known"),
    "unknown output": (PLAIN | {"output": "linear"}, "output 'linear' is not known"),
    "unknown activation": (PLAIN | {"_1_activation": "swish"}, "activation 'swish' is not known"),
    "unknown type": (PLAIN | {"_1_type": "lstm"}, "layer 1 must be an object of type"),
    "text for weights": (PLAIN | {"_1_weight": "abc"}, "array '1.weight' must hold numbers"),
    "numbers for text": (PLAIN | {"output": np.ones(3)}, "array 'output' must be one text"),
    "shapes": (PLAIN | {"_1_bias": np.ones(4)}, "layer 1: weights (3, 2) need 3 biases"),
    "NaN": (PLAIN | {"_1_bias": np.full(3, np.nan)}, "layer 1: a dense layer has NaN"),
    "objects": (PLAIN | {"_1_weight": np.array([[Trap(), 1], [2, 3]], dtype=object)}, "holds object, only floats"),
    "complex": (PLAIN | {"_1_bias": np.ones(3, dtype=complex)}, "holds complex128, only floats"),
    "records": (PLAIN | {"_1_bias": np.zeros(3, dtype=[("a", "f4")])}, "only floats, integers and short texts"),
    "integers beyond float64": (PLAIN | {"_1_bias": np.full(3, 2**53 + 1)}, "integers that no float64 is"),
    "long text": (PLAIN | {"name": "x" * 2**20}, "only floats, integers and short texts"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_other_arrays_are_refused(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arrays, message = DAMAGES[damage]
    assert message in refusal(tmp_path / "m.npz", stored(**arrays))
    assert [path.name for path in tmp_path.iterdir()] == ["m.npz"]


def header(shape: str, dtype: str = "<f8") -> bytes:
    """The header of an .npy file that claims a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"


@pytest.mark.parametrize(
    "member",
    [
        b"",
        b"\x93NUMPY",
        header("(3, 2)"),
        header("(1000000000, 1000000000)"),
        header("(-3, -2)") + bytes(48),
        header("(3,") + bytes(48),
        header("(True, 2)") + bytes(16),
        header("(3, 2)") + bytes(47),
        header("(3, 2)") + bytes(49),
        header("(" + "(" * 5000 + ")"),
        header("(3, 2)", "|O") + bytes(48),
        b"\x93NUMPY\x03\x00" + header("(3, 2)")[8:] + bytes(48),
        b"\x93NUMPY\x01\x00\xff\xff",
    ],
)
def test_an_array_that_is_not_what_its_header_says_is_refused(member: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(stored(**PLAIN))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    refusal(tmp_path / "m.npz", packed(members | {"1.weight.npy": member}))


@pytest.mark.parametrize(("shape", "size"), [("(3, 2)", 40), ("(3, 2)", 56), ("(1000000000, 1000000000)", 48)])
def test_a_shape_is_compared_with_the_bytes_first(shape: str, size: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(stored(**PLAIN))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    line = refusal(tmp_path / "m.npz", packed(members | {"1.weight.npy": header(shape) + bytes(size)}))
    assert f"array '1.weight.npy' has {size} bytes, not those of its shape" in line


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(stored(**PLAIN))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    bomb = header("(5000, 5000)") + bytes(200_000_000)
    content = packed(members | {"1.weight.npy": bomb}, zipfile.ZIP_DEFLATED)
    assert len(content) < 10**6
    assert "1.weight.npy unpacks to 200,0" in refusal(tmp_path / "m.npz", content)


def test_many_members_are_refused(tmp_path: Path) -> None:
    content = packed({f"{number}.npy": b"" for number in range(5000)})
    assert "has 5,000 arrays" in refusal(tmp_path / "m.npz", content)


def test_the_arrays_of_a_file_together_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrobust.formats.untrusted.MOST_NUMBERS", 30)
    assert "all arrays of a file at most 30" in refusal(tmp_path / "m.npz", stored(**PLAIN))


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(share: float, tmp_path: Path) -> None:
    content = stored(**PLAIN)
    refusal(tmp_path / "m.npz", content[: int(share * len(content)) or 1])


@pytest.mark.parametrize("seed", range(8))
def test_no_flipped_byte_gives_a_traceback(seed: int, tmp_path: Path) -> None:
    content = stored(**PLAIN)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    read = 0
    for number in range(100):
        if number % 2:
            damaged = flipped(content, 1000 * seed + number)
        else:
            name = sorted(members)[number // 2 % len(members)]
            damaged = packed(members | {name: flipped(members[name], 1000 * seed + number)})
        read += survives(tmp_path / "m.npz", damaged)
    assert read < 100
