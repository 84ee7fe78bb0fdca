"""Certificates of networks of signs: a question whose label is proved, and the proof, in one file that is checked alone.

The checker writes the question's clauses again, plainly, from the network in the file (`plain_clauses`), and follows the proof
that they have no solution (`lrat`). It shares no code with the folding, the encodings and the solvers that answers come from.

Property  what is accepted is so, whoever wrote the file
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.binarized.formats.native import from_document, to_document
from qrobust.binarized.lrat import drat, refutation_fault
from qrobust.binarized.network import BinarizedNetwork
from qrobust.binarized.plain_clauses import PlainClauses, plain_clauses
from qrobust.binarized.queries import Ball, Box, LabelChange, Levels, Norm, Robustness, TieRule, ZeroSign
from qrobust.errors import ModelFileError
from qrobust.exact import to_fraction
from qrobust.files import read_bytes, write_together, write_whole
from qrobust.formats.untrusted import check_archive, parsing
from qrobust.interval import FloatArray
from qrobust.layers import IntArray

FORMAT = "qrobust-binarized-certificate-1"
HEADER, PROOF = "certificate.json", "proof.lrat"


@dataclass(frozen=True, eq=False)
class BinarizedCertificate:
    """A question, its label named, and the lines of a proof in LRAT that no input of its region is given another."""

    query: Robustness | LabelChange
    proof: tuple[str, ...]

    @property
    def networks(self) -> dict[str, BinarizedNetwork]:
        """The networks that the question is about. Accepts no float network, of which there is no proof."""
        found = {"network": self.query.network}
        if isinstance(self.query, LabelChange):
            found["copy"] = self.query.copy
        return {key: network for key, network in found.items() if isinstance(network, BinarizedNetwork)}

    @property
    def statement(self) -> str:
        """What is proved, in words."""
        if isinstance(self.query, LabelChange):
            return self.query.statement()
        assert self.query.label is not None
        return self.query.statement(self.query.label)

    @cached_property
    def _clauses(self) -> PlainClauses:
        return plain_clauses(self.query)

    def fault(self) -> str | None:
        """Return why the proof does not prove the question, or None if it does. Raises as `plain_clauses.plain_clauses`."""
        return refutation_fault(self._clauses.clauses, self.proof)

    def to_bytes(self) -> bytes:
        """Return the certificate, with its networks, as a zip of a JSON header and the proof's text."""
        header: dict[str, Any] = {"format": FORMAT, "question": self.query.to_json()}
        header |= {key: to_document(network) for key, network in self.networks.items()}
        header |= {f"{key}_sha256": network.sha256 for key, network in self.networks.items()}
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(HEADER, json.dumps(header))
            archive.writestr(PROOF, "".join(f"{line}\n" for line in self.proof))
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, name: Path | str = "the certificate") -> BinarizedCertificate:
        """Read a certificate; it is not believed, `fault` says whether it is right. Raises ModelFileError."""
        with parsing(name, "certificate"), zipfile.ZipFile(io.BytesIO(content)) as archive:
            check_archive(archive)
            header = json.loads(archive.read(HEADER))
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise ModelFileError(f"its format is not {FORMAT}")
            networks = {key: from_document(header[key]) for key in ("network", "copy") if key in header}
            for key, network in networks.items():
                if header[f"{key}_sha256"] != network.sha256:
                    raise ModelFileError(f"its hash is not that of the {key} in it")
            return cls(_question(header["question"], **networks), tuple(archive.read(PROOF).decode().splitlines()))

    def save(self, path: Path | str) -> None:
        """Write the certificate, whole or not at all. Raises OutputError."""
        write_whole(path, self.to_bytes())

    def write_texts(self, stem: Path) -> list[Path]:
        """Write STEM.cnf, the clauses, and the proof as STEM.lrat and STEM.drat, for other checkers; return their paths.

        Raises    OutputError
        """
        top, clauses = self._clauses.top, self._clauses.clauses
        header = f"p cnf {top} {len(clauses)}"
        texts = {
            stem.with_suffix(".cnf"): [header, *(" ".join(map(str, [*clause, 0])) for clause in clauses)],
            stem.with_suffix(".lrat"): self.proof,
            stem.with_suffix(".drat"): drat(self.proof),
        }
        write_together({path: "".join(f"{line}\n" for line in lines).encode() for path, lines in texts.items()})
        return list(texts)


def is_certificate(content: bytes) -> bool:
    """Whether a file's content says that it is a certificate of this kind. It may be damaged all the same."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.namelist() == [HEADER, PROOF]
    except (zipfile.BadZipFile, NotImplementedError):
        return False


def load_certificate(path: Path | str) -> BinarizedCertificate:
    """Read a certificate file. Raises ModelFileError."""
    return BinarizedCertificate.from_bytes(read_bytes(path), path)


def _question(
    document: dict[str, Any], network: BinarizedNetwork, copy: BinarizedNetwork | None = None
) -> Robustness | LabelChange:
    zero, ball = ZeroSign(document["sign_of_zero"]), _ball(document["inputs"])
    if copy is not None:
        ball.region(copy)
        return LabelChange(network, copy, ball, zero)
    ball.region(network)
    return Robustness(network, ball, int(document["label"]), TieRule(document["tie"]), zero)


def _ball(document: dict[str, Any]) -> Ball | Box | Levels:
    if "eps" in document:
        return Ball(_floats(document["centre"]), to_fraction(document["eps"]), Norm(document["norm"]))
    if "lower" in document:
        return Box(_floats(document["lower"]), _floats(document["upper"]))
    lower, upper, centre = (_levels(document[f"{end}_levels"]) for end in ("lower", "upper", "centre"))
    return Levels(lower, upper, centre, Norm(document.get("norm", Norm.LINF.value)), int(document.get("most", 0)))


def _floats(values: Any) -> FloatArray:
    return np.array(values, dtype=np.float64)


def _levels(values: Any) -> IntArray:
    found = np.array(values)
    if found.dtype.kind not in "iu":
        raise ModelFileError("its levels are not whole numbers")
    return found.astype(np.int64)
