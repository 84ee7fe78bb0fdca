"""Finished answers on disk, found again by what was asked: a long run that is cut off continues where it stopped.

Property  an entry that is damaged in any way, or stems from another version, counts as absent. A kept counterexample or
          witness is replayed exactly before it is returned; a kept proof is as good as the folder: whoever can write there
          can forge one
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from qrobust.answers import VERSION, Answer, AnyQuery, Assurance, Counterexample, Estimate, Robust, Unknown, Verdict, Violated
from qrobust.check import delta_fault, violation_fault, witness_bounds
from qrobust.errors import OutputError
from qrobust.files import write_whole
from qrobust.queries import EpsilonEstimate, GreatestDelta, Query, SigmaEstimate
from qrobust.search import Budget

FORMAT = "qrobust-cache-1"
Result = Answer | Estimate


class Kind(Enum):
    """What is done with a query."""

    CHECK = "check"
    ESTIMATE = "estimate"


class Task(NamedTuple):
    """One question: a query, what is done with it, who is asked, how long that may take, and until when (of `time.time`)."""

    query: AnyQuery
    kind: Kind
    backend: str = "auto"
    budget: Budget = Budget()
    until: float = math.inf

    @property
    def key(self) -> str:
        """Hash of all that the answer depends on but `until`, the version of qrobust among it."""
        parts = {
            "qrobust": VERSION,
            "network": self.query.network.sha256,
            "query": self.query.to_json(),
            "kind": self.kind.value,
            "backend": self.backend,
            "budget": [float(self.budget.seconds), self.budget.boxes, self.budget.memory, str(self.budget.arrays)],
        }
        return key_of(parts)


def key_of(parts: dict[str, Any]) -> str:
    """Return the key of JSON values: a hash of them."""
    return hashlib.sha256(_canonical(parts)).hexdigest()


class ResultCache:
    """A folder of finished answers, one file each; many processes may share it.

    An Unknown is kept too: to ask again, give another budget. What cannot be written is not kept: `warn` is told once.
    Raises OutputError if the folder's path names a file.
    """

    def __init__(self, folder: Path | str, warn: Callable[[str], object] = warnings.warn) -> None:
        self.folder, self._warn, self._warned = Path(folder), warn, False
        for place in (self.folder, *self.folder.parents):
            if os.path.exists(place) and not os.path.isdir(place):
                raise OutputError(f"{place} is a file, so no results can be kept in {self.folder}: name a folder")

    def path(self, key: str) -> Path:
        """Where the entry of a key lies."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, task: Task) -> Result | None:
        """Return the answer that is kept for a task, or None if there is none that can be believed."""
        try:
            payload = self.document(task.key)
            if payload is None:
                return None
            result = _result(task.query, payload)
            fault = _fault(task, result)
        except Exception:  # whatever an entry may be, it is no reason to stop: the answer is computed again
            return None
        return None if fault else result

    def put(self, task: Task, result: Result) -> None:
        """Keep an answer. Never raises for a disk that is full or may not be written."""
        try:
            self.keep(task.key, _payload(result))
        except ValueError as error:  # a fraction with more digits than Python prints
            self._complain(error)

    def document(self, key: str) -> dict[str, Any] | None:
        """Return the JSON values that `keep` kept under a key, or None if there are none that are whole."""
        try:
            content = self.path(key).read_bytes()
            payload = json.loads(content)["payload"]
            return dict(payload) if content == _entry(key, payload) else None
        except Exception:  # as above
            return None

    def keep(self, key: str, payload: dict[str, Any]) -> None:
        """Keep JSON values under a key, a hash of all that they depend on. Never raises for a disk."""
        try:
            path = self.path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, _entry(key, payload))
        except OSError as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"results are not being kept in {self.folder}, the run goes on without: {error}")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _entry(key: str, payload: dict[str, Any]) -> bytes:
    digest = hashlib.sha256(_canonical(payload)).hexdigest()
    return _canonical({"format": FORMAT, "key": key, "digest": digest, "payload": payload})


def _text(value: float | None) -> str | None:
    return None if value is None else repr(float(value))


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)


def _payload(result: Result) -> dict[str, Any]:
    """Return all of a result but its query as JSON values; floats as text, for the sake of infinity."""
    example = result.counterexample if isinstance(result, Answer) else result.witness
    shared = {
        "version": result.version,
        "backend": result.backend,
        "seconds": _text(result.seconds),
        "assurance": None if result.assurance is None else int(result.assurance),
        "example": None if example is None else example.to_json(),
    }
    if isinstance(result, Estimate):
        return shared | {"lower": _text(result.lower), "upper": _text(result.upper), "reason": result.reason}
    ends: dict[str, Any] = {"lower": None, "upper": None, "reason": None}
    if isinstance(result.claim, Unknown):
        claim = result.claim
        ends = {"lower": _text(claim.lower), "upper": _text(claim.upper), "reason": claim.reason}
    return shared | ends | {"verdict": result.verdict.value}


def _result(query: AnyQuery, payload: dict[str, Any]) -> Result:
    """Return the result that a payload stands for. Raises any exception if it stands for none."""
    example = None if payload["example"] is None else Counterexample.from_json(payload["example"])
    backend, seconds, version = str(payload["backend"]), float(payload["seconds"]), str(payload["version"])
    lower, upper, reason = _number(payload["lower"]), _number(payload["upper"]), payload["reason"]
    if "verdict" not in payload:
        assert lower is not None
        assert upper is not None
        assurance = Assurance(payload["assurance"])
        return Estimate(query, lower, upper, example, assurance, backend, seconds, version, str(reason))
    assert isinstance(query, Query)
    claim: Robust | Violated | Unknown
    match Verdict(payload["verdict"]):
        case Verdict.ROBUST:
            claim = Robust(Assurance(payload["assurance"]))
        case Verdict.VIOLATED:
            assert example is not None
            claim = Violated(example)
        case Verdict.UNKNOWN:
            claim = Unknown(str(reason), lower, upper)
    return Answer(query, claim, backend, seconds, version)


def _fault(task: Task, result: Result) -> str | None:
    """Return why a kept result does not answer the task or does not replay, or None."""
    if result.version != VERSION:
        return "it stems from another version"
    if isinstance(result, Answer):
        if task.kind is not Kind.CHECK:
            return "it is no estimate"
        return violation_fault(result.query, result.counterexample) if result.counterexample else None
    if task.kind is not Kind.ESTIMATE:
        return "it is no verdict"
    query, witness = result.query, result.witness
    if isinstance(query, GreatestDelta):
        if witness is None:
            return None if result.upper == float("inf") else "no flip shows its upper end"
        return delta_fault(query, result.upper, witness)
    assert isinstance(query, EpsilonEstimate | SigmaEstimate)
    attained = 0.0 if witness is None else witness_bounds(query, witness)[0]
    return None if result.lower <= attained else f"its witness attains {attained!r} only"
