"""Certificates: what proves that a label holds at one input, as plain arrays; and the files that hold them.

A certificate is about one input and one label. It names, for each hidden level after the first, bounds of all pre-activations
with the multipliers that prove those which intervals do not; and one tree of splits a rival, with the multipliers that prove
each leaf. Multipliers prove a bound by weak duality, whatever they are (`bounds.envelopes`), so a checker only evaluates.

Levels are counted from 0, the pre-activations of the first layer, whose range over the box is exact.

A network that scales its inputs is proved by its core, at the floats nearest to the scaled input, in a box whose first biases
make up for the rounding; the checker sees in exact arithmetic that they do.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.domains import Bounds, LayerBox, ParameterBox, Point
from qrobust.exact import to_fraction
from qrobust.files import read_bytes, write_whole
from qrobust.formats.untrusted import parsing
from qrobust.interval import Expansion, FloatArray
from qrobust.layers import NONE
from qrobust.network import Activation, Dense, Network, Output, Scaling
from qrobust.queries import LocalLabel

FORMAT = "qrobust-certificate-1"
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LevelProof:
    """Bounds of one level's pre-activations, and the rows that prove the ones tighter than intervals.

    Shapes    lower, upper (n,); neurons, signs (rows,): +1 for an upper bound, -1 for a lower one; multipliers: one array
              (rows, n_i) for each level i from 1 to below this one
    """

    lower: FloatArray
    upper: FloatArray
    neurons: IntArray
    signs: IntArray
    multipliers: tuple[FloatArray, ...]


@dataclass(frozen=True, eq=False)
class Splits:
    """Trees of splits, one root a rival. Node 0 to rivals - 1 are the roots; children are numbered after their parents.

    Shapes    all (nodes,): parent (-1 for roots); of the node's own split, level, neuron and cut (level 0: a leaf); side: +1 if
              the node is its parent's half above the cut, -1 below, 0 for roots; leaf: the row of its multipliers, or -1
    """

    parent: IntArray
    level: IntArray
    neuron: IntArray
    cut: FloatArray
    side: IntArray
    leaf: IntArray


@dataclass(frozen=True, eq=False)
class Certificate:
    """A proof that no parameters in a box change the label at one input; see the module's docstring.

    Shapes    rivals (rivals,); multipliers: one array (leaves, n_i) for each level i from 1 on
    Scaled    `scaled` is the query about the network that scales its inputs; `query` is about its core
    """

    query: LocalLabel
    label: int
    rivals: IntArray
    levels: tuple[LevelProof, ...]
    splits: Splits
    multipliers: tuple[FloatArray, ...]
    scaled: LocalLabel | None = None

    @property
    def claimed(self) -> LocalLabel:
        """The query that the certificate proves."""
        return self.scaled or self.query

    @property
    def leaves(self) -> int:
        return int((self.splits.leaf >= 0).sum())

    def to_bytes(self) -> bytes:
        """Return the certificate, with its network, box and input, as a zip of NumPy arrays and a JSON header."""
        network, box = self.query.network, self.query.parameters
        header: dict[str, Any] = {
            "format": FORMAT,
            "label": self.label,
            "decision_level": str(self.query.level),
            "sigma": str(self.query.sigma),
            "output": network.output.value,
            "name": network.name,
            "activations": [layer.activation.value for layer in network.layers],
            "rule": box.rule,
            "shifted": box.shifted,
            "network_sha256": network.sha256,
            "parameters_sha256": box.sha256,
            "levels": len(self.levels),
        }
        arrays: dict[str, npt.NDArray[Any]] = {"x": self.query.domain.box.lower, "rivals": self.rivals}
        for number, (layer, bounds) in enumerate(zip(network.layers, box.layers, strict=True), start=1):
            for name in ("weight", "bias"):
                arrays[f"layer.{number}.{name}"] = getattr(layer, name)
                for end in ("lower", "upper"):
                    values = getattr(getattr(bounds, name), end)
                    arrays[f"layer.{number}.{name}.{end}.head"] = values.head
                    arrays[f"layer.{number}.{name}.{end}.tail"] = values.tail
        if self.scaled is not None:
            header["scaled"], more = _scaled_parts(self.scaled)
            arrays |= more
        for name in SPLIT_ARRAYS:
            arrays[f"splits.{name}"] = getattr(self.splits, name)
        for number, values in enumerate(self.multipliers, start=1):
            arrays[f"multipliers.{number}"] = values
        for number, proof in enumerate(self.levels, start=1):
            for name in LEVEL_ARRAYS:
                arrays[f"level.{number}.{name}"] = getattr(proof, name)
            for below, values in enumerate(proof.multipliers, start=1):
                arrays[f"level.{number}.multipliers.{below}"] = values
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("certificate.json", json.dumps(header, indent=1))
            for name, array in arrays.items():
                part = io.BytesIO()
                np.save(part, array, allow_pickle=False)
                archive.writestr(f"{name}.npy", part.getvalue())
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, name: Path | str = "the certificate") -> Certificate:
        """Read a certificate; its claims are not believed, `check.certificate_fault` settles them.

        Raises    ModelFileError if the content is no certificate
        """
        with parsing(name, "certificate"), zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _Reader(archive).certificate()

    def save(self, path: Path | str) -> None:
        """Write the certificate, whole or not at all. Raises OutputError."""
        write_whole(path, self.to_bytes())


def _scaled_parts(claimed: LocalLabel) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return what the query about the whole network has that the one about its core has not: header and arrays."""
    scaling, first = claimed.network.scaling, claimed.parameters.layers[1]
    assert scaling is not None
    rationals = {name: [str(value) for value in getattr(scaling, name)] for name in ("scale", "offset")}
    hashes = {"network_sha256": claimed.network.sha256, "parameters_sha256": claimed.parameters.sha256}
    arrays: dict[str, npt.NDArray[Any]] = {"scaled.x": claimed.domain.box.lower}
    for end in ("lower", "upper"):
        values = getattr(first.bias, end)
        arrays |= {f"scaled.bias.{end}.head": values.head, f"scaled.bias.{end}.tail": values.tail}
    return rationals | hashes, arrays


LEVEL_ARRAYS = ("lower", "upper", "neurons", "signs")
SPLIT_ARRAYS = ("parent", "level", "neuron", "cut", "side", "leaf")
MOST_BYTES = 2**32


class _Reader:
    """Reads the parts of an untrusted archive."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
            raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
        self.header = json.loads(archive.read("certificate.json"))
        if not isinstance(self.header, dict) or self.header.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")

    def floats(self, name: str, dimensions: int) -> FloatArray:
        with np.errstate(over="ignore"):  # of numbers of more than 64 bits
            values = np.asarray(self._array(name, dimensions, "f"), dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds numbers that are not finite")
        return values

    def integers(self, name: str) -> IntArray:
        return np.asarray(self._array(name, 1, "iu"), dtype=np.int64)

    def _array(self, name: str, dimensions: int, kinds: str) -> npt.NDArray[Any]:
        values = np.load(io.BytesIO(self.archive.read(f"{name}.npy")), allow_pickle=False)
        if values.ndim != dimensions or values.dtype.kind not in kinds:
            raise ValueError(f"{name} is an array of {values.ndim} dimension(s) of {values.dtype}")
        return np.asarray(values)

    def certificate(self) -> Certificate:
        header, count = self.header, int(self.header["levels"])
        network, box = self._network()
        if (header["network_sha256"], header["parameters_sha256"]) != (network.sha256, box.sha256):
            raise ValueError("its hashes are not those of the network and the box in it")
        level, sigma = to_fraction(header["decision_level"]), to_fraction(header["sigma"])
        query = LocalLabel(network, box, Point(self.floats("x", 1)), level, sigma)
        parent, place, neuron, side, leaf = (self.integers(f"splits.{name}") for name in SPLIT_ARRAYS if name != "cut")
        splits = Splits(parent, place, neuron, self.floats("splits.cut", 1), side, leaf)
        levels = tuple(self._level(number) for number in range(1, count + 1))
        multipliers = tuple(self.floats(f"multipliers.{number}", 2) for number in range(1, count + 1))
        scaled = self._scaled(query) if "scaled" in header else None
        return Certificate(query, int(header["label"]), self.integers("rivals"), levels, splits, multipliers, scaled)

    def _scaled(self, core: LocalLabel) -> LocalLabel:
        header, network, box = self.header["scaled"], core.network, core.parameters
        scaling = Scaling(*(np.array(header[name], dtype=object) for name in ("scale", "offset")))
        whole = Network((scaling, *network.layers), network.output, network.name)
        none = Bounds(Expansion.of(NONE), Expansion.of(NONE))
        first = LayerBox(box.layers[0].weight, self._bounds("scaled.bias", 1))
        parameters = ParameterBox((LayerBox(none, none), first, *box.layers[1:]), box.shifted, box.rule)
        if (header["network_sha256"], header["parameters_sha256"]) != (whole.sha256, parameters.sha256):
            raise ValueError("its hashes are not those of the scaled network and its box")
        return LocalLabel(whole, parameters, Point(self.floats("scaled.x", 1)), core.level)

    def _network(self) -> tuple[Network, ParameterBox]:
        layers, boxes = [], []
        for number, activation in enumerate(self.header["activations"], start=1):
            name = f"layer.{number}"
            weight, bias = self.floats(f"{name}.weight", 2), self.floats(f"{name}.bias", 1)
            layers.append(Dense(weight, bias, Activation(activation)))
            boxes.append(LayerBox(self._bounds(f"{name}.weight", 2), self._bounds(f"{name}.bias", 1)))
        network = Network(tuple(layers), Output(self.header["output"]), name=str(self.header["name"]))
        return network, ParameterBox(tuple(boxes), bool(self.header["shifted"]), str(self.header["rule"]))

    def _bounds(self, name: str, dimensions: int) -> Bounds:
        ends = []
        for end in ("lower", "upper"):
            parts = [self.floats(f"{name}.{end}.{part}", dimensions) for part in ("head", "tail")]
            ends.append(Expansion(parts[0], parts[1]))
        return Bounds(ends[0], ends[1])

    def _level(self, number: int) -> LevelProof:
        name = f"level.{number}"
        return LevelProof(
            self.floats(f"{name}.lower", 1),
            self.floats(f"{name}.upper", 1),
            self.integers(f"{name}.neurons"),
            self.integers(f"{name}.signs"),
            tuple(self.floats(f"{name}.multipliers.{below}", 2) for below in range(1, number)),
        )


def load_certificate(path: Path | str) -> Certificate:
    """Read a certificate file. Raises ModelFileError."""
    return Certificate.from_bytes(read_bytes(path), path)
