"""The documents of a sign-off that other programs read: result.json, JUnit XML and SARIF 2.1.0.

result.json, schema "qrobust-signoff-1". Keys below a list are written with []; "or null" says that a key may be null:

    schema: text                          "qrobust-signoff-1"; a change that breaks readers changes the number
    title: text
    verdict: text                         ROBUST, VIOLATED or UNKNOWN, the worst of the obligations'
    started: text                         UTC, ISO 8601
    seconds: number
    command: text                         makes the report again, from the same files
    plan.path: text                       as it was given
    plan.sha256: text                     of the file's bytes
    model.path: text                      as from the plan's folder, as are the others
    model.sha256: text                    of the file's bytes
    model.content: text                   sha256 of what it computes: activations, shapes, numbers, output
    model.name: text
    model.level: text                     decision level, an exact fraction
    shipped[].name: text
    shipped[].path: text
    shipped[].sha256: text
    shipped[].content: text
    inputs[].name: text                   of each domain and data set that an obligation names
    inputs[].kind: text                   domain or data
    inputs[].path: text or null           of a data set's file
    inputs[].sha256: text or null
    inputs[].seed: number or null         of a data set that was drawn
    inputs[].text: text
    versions: object                      qrobust, python, and the packages that compute
    assumptions: list
    obligations[].id: text
    obligations[].text: text
    obligations[].line: number            in the plan
    obligations[].ask: text
    obligations[].eps: text or null       an exact fraction
    obligations[].sigma: text             an exact fraction
    obligations[].scheme: text or null
    obligations[].shipped: text or null
    obligations[].inputs: text or null    the name of a domain or data set
    obligations[].parameters: text or null  sha256 of the box of parameters
    obligations[].verdict: text
    obligations[].claim: text             what was asked, with its quantifiers
    obligations[].semantics: text         real-valued, stored parameters, or whose kernels run the integer program
    obligations[].assurance: text or null CHECKED, ROUNDED, TRUSTED; null for UNKNOWN
    obligations[].backend: text
    obligations[].timeout: number         seconds for each question
    obligations[].seconds: number
    obligations[].counts: object or null  robust, violated, unknown: numbers of inputs
    obligations[].lower: number or null   a witnessed lower end of the greatest change of a confidence
    obligations[].upper: number or null   its certified upper end
    obligations[].reason: text or null    why it is UNKNOWN
    obligations[].rows: list              the first violated rows or integer inputs, from 1
    obligations[].examples: list          counterexamples: input, outputs (before, after), labels; integers of a program;
                                          exact parameters, and those that the scheme can hold with their integer codes,
                                          of the rest
    obligations[].notes: list
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.etree import ElementTree as Xml

from qrobust.answers import VERSION, Verdict
from qrobust.report.examples import example_text
from qrobust.report.findings import Finding
from qrobust.report.plan import File, Place

if TYPE_CHECKING:
    from qrobust.report.signoff import Signoff

SCHEMA = "qrobust-signoff-1"
SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
SARIF_KINDS = {Verdict.ROBUST: ("pass", "none"), Verdict.VIOLATED: ("fail", "error"), Verdict.UNKNOWN: ("open", "none")}


def result(signoff: Signoff) -> dict[str, Any]:
    """Return result.json: see the head of this file."""
    plan = signoff.plan
    places: dict[str, Place] = {}
    for obligation in plan.obligations:
        if obligation.where is not None:
            places[f"{obligation.where.kind}.{obligation.where.name}"] = obligation.where
    return {
        "schema": SCHEMA,
        "title": plan.title,
        "verdict": signoff.verdict.value,
        "started": signoff.started.isoformat(timespec="seconds"),
        "seconds": signoff.seconds,
        "command": signoff.command,
        "plan": {"path": plan.source.path.as_posix(), "sha256": plan.sha256},
        "model": {"name": str(plan.network), "level": str(plan.level), **_file(signoff, plan.model)},
        "shipped": [{"name": name, **_file(signoff, file)} for name, file in plan.shipped.items()],
        "inputs": [_place(signoff, place) for place in places.values()],
        "versions": signoff.versions,
        "assumptions": list(signoff.assumptions),
        "obligations": [_finding(signoff, finding) for finding in signoff.findings],
    }


def _file(signoff: Signoff, file: File) -> dict[str, Any]:
    return {"path": signoff.relative(file.path), "sha256": file.sha256, "content": file.content}


def _place(signoff: Signoff, place: Place) -> dict[str, Any]:
    path, sha256 = (None, None) if place.file is None else (signoff.relative(place.file.path), place.file.sha256)
    known = {"name": place.name, "kind": place.kind, "path": path, "sha256": sha256}
    return known | {"seed": place.seed, "text": str(place.domain)}


def _finding(signoff: Signoff, finding: Finding) -> dict[str, Any]:
    obligation, counts = finding.obligation, finding.counts
    lower, upper = finding.ends or (None, None)
    return {
        "id": obligation.id,
        "text": obligation.text,
        "line": signoff.plan.source.line(obligation.keys),
        "ask": obligation.ask.value,
        "eps": None if obligation.eps is None else str(obligation.eps),
        "sigma": str(obligation.sigma),
        "scheme": None if obligation.scheme is None else str(obligation.scheme),
        "shipped": obligation.shipped,
        "inputs": None if obligation.where is None else obligation.where.name,
        "parameters": None if obligation.parameters is None else obligation.parameters.sha256,
        "verdict": finding.verdict.value,
        "claim": finding.claim,
        "semantics": finding.semantics,
        "assurance": None if finding.assurance is None else finding.assurance.name,
        "backend": finding.backend,
        "timeout": obligation.seconds,
        "seconds": finding.seconds,
        "counts": None if counts is None else {"robust": counts.robust, "violated": counts.violated, "unknown": counts.unknown},
        "lower": lower,
        "upper": upper,
        "reason": finding.reason or None,
        "rows": list(finding.rows),
        "examples": list(finding.examples),
        "notes": list(finding.notes),
    }


def message(finding: Finding) -> str:
    """Say in one line what came of an obligation, with its first counterexample."""
    counts = finding.counts
    parts = [f"{finding.verdict.value}: {finding.claim}"]
    if finding.verdict is Verdict.VIOLATED:
        parts[0] = f"VIOLATED, it does not hold: {finding.claim}"
    if finding.verdict is Verdict.UNKNOWN:
        parts[0] = f"UNKNOWN: {finding.claim}: {finding.reason}"
    if counts is not None:
        parts.append(str(counts))
    parts += [example_text(example) for example in finding.examples[:1]]
    return ". ".join(parts)


def junit(signoff: Signoff, *, unknown_fails: bool) -> str:
    """Return JUnit XML: one test case an obligation; VIOLATED fails, UNKNOWN is an error or, where it passes, skipped."""
    violated, unknown = signoff.count(Verdict.VIOLATED), signoff.count(Verdict.UNKNOWN)
    errors, skipped = (unknown, 0) if unknown_fails else (0, unknown)
    totals = {"tests": len(signoff.findings), "failures": violated, "errors": errors, "skipped": skipped}
    counts = {name: str(count) for name, count in totals.items()} | {"time": f"{signoff.seconds:.3f}"}
    of_all = {name: count for name, count in counts.items() if name != "skipped"}  # which Jenkins' schema does not have there
    root = Xml.Element("testsuites", {"name": "qrobust signoff"} | of_all)
    stamp = signoff.started.strftime("%Y-%m-%dT%H:%M:%S")
    suite = Xml.SubElement(root, "testsuite", {"name": _xml(signoff.plan.title), "timestamp": stamp} | counts)
    for finding in signoff.findings:
        names = {"classname": _xml(signoff.plan.title), "name": _xml(f"{finding.obligation.id}: {finding.obligation.text}")}
        case = Xml.SubElement(suite, "testcase", names | {"time": f"{finding.seconds:.3f}"})
        if finding.verdict is not Verdict.ROBUST:
            failed = finding.verdict is Verdict.VIOLATED
            kind = "failure" if failed else "error" if unknown_fails else "skipped"
            said = {"message": _xml(message(finding))} | ({} if kind == "skipped" else {"type": finding.verdict.value})
            Xml.SubElement(case, kind, said).text = _xml("\n".join(example_text(each) for each in finding.examples)) or None
    Xml.indent(root)
    return "<?xml version='1.0' encoding='utf-8'?>\n" + Xml.tostring(root, encoding="unicode") + "\n"


def _xml(text: str) -> str:
    """Replace what XML 1.0 cannot hold."""
    return "".join(c if c in "\t\n" or (ord(c) >= 32 and ord(c) not in (0xFFFE, 0xFFFF)) else "?" for c in text)


def sarif(signoff: Signoff) -> dict[str, Any]:
    """Return SARIF 2.1.0: a rule an obligation, and its result, at the obligation's line of the plan."""
    path = signoff.plan.source.path
    uri = path.as_posix() if not path.is_absolute() else path.name
    rules, results = [], []
    for index, finding in enumerate(signoff.findings):
        obligation = finding.obligation
        kind, level = SARIF_KINDS[finding.verdict]
        place = {
            "artifactLocation": {"uri": quote(PurePath(uri).as_posix())},  # RFC 3986, as the standard asks
            "region": {"startLine": signoff.plan.source.line(obligation.keys)},
        }
        rules.append({"id": obligation.id, "shortDescription": {"text": obligation.text}})
        results.append(
            {
                "ruleId": obligation.id,
                "ruleIndex": index,
                "kind": kind,
                "level": level,
                "message": {"text": message(finding)},
                "locations": [{"physicalLocation": place}],
                "properties": {"verdict": finding.verdict.value, "semantics": finding.semantics},
            }
        )
    driver = {"name": "qrobust", "version": VERSION, "rules": rules}
    done = {"executionSuccessful": True, "startTimeUtc": signoff.started.strftime("%Y-%m-%dT%H:%M:%SZ")}
    return {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "invocations": [done], "results": results}],
    }
