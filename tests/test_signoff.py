"""Are obligations decided rightly, is what is filed what was found, and does a browser show it?"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import pytest

import qrobust
from qrobust.answers import Assurance, Counterexample, Verdict
from qrobust.cache import ResultCache
from qrobust.check import violation_fault
from qrobust.comparison import at_points, compare, on_grid
from qrobust.errors import UnsoundAnswerError
from qrobust.integer.kernels import run
from qrobust.quantization import parse_scheme
from qrobust.report import documents, obligations, pictures, programs
from qrobust.report.documents import SCHEMA, junit, result, sarif
from qrobust.report.plan import read_plan
from qrobust.report.signoff import Signoff, rendered, run_signoff, write_signoff

ROOT = Path(__file__).parents[1]
HEAD = """
[model]
file = "models/cat_paper.json"
[shipped]
int8 = "models/cat_int8.tflite"
copy = "copy.json"
[domains.seen]
box = { "heart weight" = [6.3, 20.5], "body weight" = [2, 3.9] }
[data.rows]
file = "rows.csv"
"""
ROWS = [(7.0, 2.0), (15.0, 2.0), (20.0, 3.5), (9.0, 3.9)]


def obligation(name: str, **keys: Any) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(["[[obligations]]", f'id = "{name}"', *lines, ""])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").symlink_to(ROOT / "models")
    network = qrobust.load(ROOT / "models/cat_paper.json")
    qrobust.save(parse_scheme("fp16").copy(network), tmp_path / "copy.json")
    (tmp_path / "rows.csv").write_text("\n".join(["heart weight,body weight", *(f"{a},{b}" for a, b in ROWS), ""]))
    return tmp_path


def signed(folder: Path, *obligations: str, cache: ResultCache | None = None) -> Signoff:
    path = folder / "plan.toml"
    path.write_text('title = "Cats & <mice>"\nassumptions = ["Cats *are* <b>cats</b>."]\n' + HEAD + "".join(obligations))
    return run_signoff(read_plan(path), cache=cache)


def test_each_kind_of_obligation_against_the_session(folder: Path) -> None:
    """Verdicts are those of `Session` and `comparison`, asked directly."""
    found = signed(
        folder,
        obligation("label", ask="label", scheme="int8", domain="seen"),
        obligation("margin", ask="margin", sigma=0.2, scheme="int8", domain="seen"),
        obligation("eps", ask="eps", eps=0.06, scheme="int8", domain="seen"),
        obligation("greatest", ask="greatest-eps", eps=0.06, scheme="int8", domain="seen"),
        obligation("copy", ask="eps", eps=0.001, copy="copy", domain="seen"),
        obligation("inside", ask="inside", copy="copy", scheme="fp16"),
        obligation("outside", ask="inside", copy="copy", scheme="int16"),
        obligation("grid", ask="eps", eps=0.01, program="int8", domain="seen"),
        obligation("grid label", ask="label", program="int8", domain="seen"),
        obligation("rows", ask="label", scheme="int4", data="rows"),
        obligation("rows greatest", ask="greatest-eps", eps=0.001, scheme="int8", data="rows"),
        obligation("rows program", ask="eps", eps=0.001, program="int8", data="rows"),
    )
    network = qrobust.load(ROOT / "models/cat_paper.json")
    box, seen = qrobust.Rounding(parse_scheme("int8")).around(network), qrobust.InputBox([6.3, 2.0], [20.5, 3.9])
    session = qrobust.Session()
    wanted = {
        "label": session.check(qrobust.GlobalLabel(network, box, seen)).verdict,
        "margin": session.check(qrobust.MarginLabel(network, box, seen, sigma=Fraction(1, 5))).verdict,
        "eps": session.check(qrobust.GlobalConfidence(network, box, seen, Fraction(6, 100))).verdict,
        "inside": Verdict.ROBUST,
        "outside": Verdict.VIOLATED,
        "grid": Verdict.ROBUST,  # the README's own comparison, by execution
        "grid label": Verdict.VIOLATED,
    }
    by_id = {finding.obligation.id: finding for finding in found.findings}
    assert {name: by_id[name].verdict for name in wanted} == wanted
    assert wanted["margin"] is Verdict.ROBUST
    assert wanted["label"] is Verdict.VIOLATED
    assert by_id["grid label"].counts == documents_counts(4224 - 28, 28)
    ends = by_id["greatest"].ends
    assert ends is not None
    estimate = session.estimate(qrobust.GlobalEpsilon(network, box, seen))
    assert ends[0] <= estimate.upper
    assert estimate.lower <= ends[1]
    assert by_id["greatest"].verdict is (Verdict.ROBUST if ends[1] <= 0.06 else Verdict.VIOLATED)
    assert by_id["inside"].assurance is Assurance.CHECKED
    assert any("layer 1" in note for note in by_id["outside"].notes)
    rows = by_id["rows"]
    coarse = qrobust.Rounding(parse_scheme("int4")).around(network)
    each = [session.check(qrobust.LocalLabel(network, coarse, qrobust.Point(row))).verdict for row in ROWS]
    assert rows.rows == tuple(i + 1 for i, verdict in enumerate(each) if verdict is Verdict.VIOLATED)
    assert rows.rows
    assert rows.counts == documents_counts(each.count(Verdict.ROBUST), each.count(Verdict.VIOLATED))
    assert by_id["rows greatest"].verdict is Verdict.VIOLATED
    stored = by_id["rows greatest"].examples[0]["held"]["exact"]
    moved = qrobust.GlobalConfidence(network, box, qrobust.Points(ROWS), Fraction(1, 1000))
    assert violation_fault(moved, Counterexample.from_json(stored)) is None
    (codes,) = by_id["rows greatest"].examples[0]["held"]["codes"]
    exact = np.array(Counterexample.from_json(stored).parameters[0][0], dtype=np.float64)
    assert (np.array(codes["codes"]) * codes["steps"][0] == exact).all()
    assert np.abs(codes["codes"]).max() == 127
    assert by_id["rows program"].verdict is Verdict.VIOLATED
    assert found.verdict is Verdict.VIOLATED


def documents_counts(robust: int, violated: int) -> Any:
    from qrobust.report.findings import Counts

    return Counts(robust, violated, 0)


def test_counterexamples_replay_from_what_is_filed(folder: Path) -> None:
    found = signed(
        folder,
        obligation("a", ask="label", scheme="int4", data="rows"),
        obligation("b", ask="eps", eps=0.001, program="int8", data="rows"),
    )
    document = json.loads(json.dumps(result(found)))
    network = qrobust.load(ROOT / "models/cat_paper.json")
    box = qrobust.Rounding(parse_scheme("int4")).around(network)
    first, second = document["obligations"]
    assert first["examples"]
    for filed in first["examples"]:
        example = Counterexample.from_json(filed["exact"])
        point = qrobust.Point([float(value) for value in example.x])
        assert tuple(point.values) == ROWS[filed["row"] - 1]
        assert violation_fault(qrobust.LocalLabel(network, box, point), example) is None
        assert filed["labels"][0] != filed["labels"][1]
    program = qrobust.load_program(ROOT / "models/cat_int8.tflite")
    for filed in second["examples"]:
        integers = np.array([[each["integer"] for each in filed["input"]]])
        assert run(program, integers).values[0, 0] == filed["outputs"][0]["integer"][0]
        x = [[each["value"] for each in filed["input"]]]
        assert abs(network.confidences(x)[0, 0] - filed["outputs"][0]["after"]) > 0.001
        assert filed["row"] in second["rows"]


def test_margins_of_programs_leave_out_only_what_has_less(folder: Path) -> None:
    """A margin obligation fails exactly where a label changes whose float margin is at least sigma."""
    network = qrobust.load(ROOT / "models/cat_paper.json")
    every, some = (
        signed(folder, obligation("x", ask=ask, program="int8", domain="seen", **keys)).findings[0]
        for ask, keys in (("label", {}), ("margin", {"sigma": 0.004}))
    )
    grid = on_grid(qrobust.load_program(ROOT / "models/cat_int8.tflite"), qrobust.InputBox([6.3, 2.0], [20.5, 3.9]))
    margins = np.abs(network.confidences(grid.reals)[:, 0] - 0.5)
    assert some.rows == tuple(row for row in every.rows if margins[row - 1] >= 0.004)
    assert 0 < len(some.rows) < len(every.rows)
    none = signed(folder, obligation("x", ask="margin", sigma=0.05, program="int8", domain="seen"))
    assert none.verdict is Verdict.ROBUST


def test_margins_of_several_classes() -> None:
    """The definition without division against the definition itself, in floats, at points away from equality."""
    folder = Path(__file__).parent / "data/tflite"
    network, program = qrobust.load(folder / "tanh_float.tflite"), qrobust.load_program(folder / "tanh_int8.tflite")
    points = np.random.default_rng(5).normal(size=(400, network.inputs))
    found = compare(network, program, at_points(program, points))
    values = np.sort(network.confidences(points), axis=1)[:, ::-1]
    margin = values[:, 0] / (values[:, 0] + values[:, 1]) - 0.5
    middle = float(np.median(margin))  # between two of an even number of points
    surely, perhaps = found._margins(Fraction(middle))
    assert np.array_equal(surely, margin >= middle)
    assert np.array_equal(perhaps, margin >= middle)
    assert 0 < surely.sum() < len(points)


@pytest.mark.parametrize(
    ("lower", "upper", "eps", "verdict"),
    [
        (0.25, 0.25, Fraction(1, 4), Verdict.ROBUST),
        (0.1, 0.1, Fraction(1, 10), Verdict.VIOLATED),  # the float lies above a tenth
        (0.0, 0.3, Fraction(3, 10), Verdict.ROBUST),  # and this one below three tenths
        (0.2, np.nextafter(0.25, 1), Fraction(1, 4), Verdict.UNKNOWN),
        (np.nextafter(0.25, 1), 0.5, Fraction(1, 4), Verdict.VIOLATED),
        (0.0, 0.0, Fraction(0), Verdict.ROBUST),
        (5e-324, 1.0, Fraction(0), Verdict.VIOLATED),
    ],
)
def test_ends_against_a_limit_are_compared_exactly(lower: float, upper: float, eps: Fraction, verdict: Verdict) -> None:
    assert obligations._limit_verdict(lower, upper, eps) is verdict


def test_sides_of_a_domain_beyond_the_calibrated_range_are_named(folder: Path) -> None:
    """The program holds hearts up to 20.5 g: of a box up to 99 g, the rest is not looked at, and the report says so."""
    (folder / "plan.toml").write_text(
        HEAD.replace("20.5]", "99]") + obligation("x", ask="eps", eps=0.5, program="int8", domain="seen")
    )
    (finding,) = run_signoff(read_plan(folder / "plan.toml")).findings
    assert "inputs outside the program's calibrated range [0, 20.5]: heart weight up to 99, not looked at" in finding.notes
    (inside,) = signed(folder, obligation("x", ask="eps", eps=0.5, program="int8", domain="seen")).findings
    assert not any("outside" in note for note in inside.notes)


def test_any_kernels_may_leave_an_obligation_open(folder: Path) -> None:
    found = signed(folder, obligation("x", ask="label", program="int8", domain="seen", kernels="any-kernel"))
    (finding,) = found.findings
    assert finding.verdict in (Verdict.UNKNOWN, Verdict.VIOLATED)
    assert finding.counts is not None
    assert finding.counts.unknown > 0
    assert "any-kernel" in finding.semantics


def test_a_comparison_that_lies_is_caught(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = compare

    def lying(*arguments: Any, **keys: Any) -> Any:
        found = honest(*arguments, **keys)
        return replace(found, labels=1 - found.labels)

    monkeypatch.setattr(programs, "compare", lying)
    with pytest.raises(UnsoundAnswerError, match="does not replay"):
        signed(folder, obligation("x", ask="label", program="int8", data="rows"))


def test_time_that_is_up_is_unknown_with_both_ends(folder: Path) -> None:
    """A wide network over a box cannot be decided in a second: it must say so."""
    text = obligation("x", ask="label", scheme="int8", domain="all", timeout=1)
    (folder / "plan.toml").write_text('[model]\nfile = "models/breast_cancer_50.json"\n[domains.all]\n' + text)
    found = run_signoff(read_plan(folder / "plan.toml"))
    (finding,) = found.findings
    if finding.verdict is Verdict.UNKNOWN:
        assert finding.reason
        assert finding.assurance is None
    else:  # a counterexample was found in time
        assert finding.verdict is Verdict.VIOLATED
        assert finding.examples


def test_an_interrupted_run_goes_on_from_what_it_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ResultCache(folder / "cache")
    question = obligation("x", ask="margin", sigma=0.2, scheme="int8", domain="seen")
    first = signed(folder, question, cache=cache)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(qrobust.Session, "check", refuse)
    again = signed(folder, question, cache=cache)
    assert again.verdict is first.verdict is Verdict.ROBUST
    with pytest.raises(AssertionError, match="asked again"):
        signed(folder, question)


def test_a_resumed_run_compares_no_program_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is the same, counterexamples are run again alone, and a damaged or forged entry is not believed."""
    cache = ResultCache(folder / "cache")
    asked = (
        obligation("grid", ask="eps", eps=0.01, program="int8", domain="seen"),
        obligation("label", ask="label", program="int8", domain="seen"),
        obligation("rows", ask="eps", eps=0.001, program="int8", data="rows"),
        obligation("any", ask="eps", eps=0.02, program="int8", kernels="any-kernel", data="rows"),
    )
    first, sizes = signed(folder, *asked, cache=cache), []

    def counted(*given: Any, **named: Any) -> Any:
        sizes.append(len(given[2]))
        return compare(*given, **named)

    monkeypatch.setattr(programs, "compare", counted)
    again = signed(folder, *asked, cache=cache)
    assert all(size <= 3 for size in sizes)
    for before, after in zip(first.findings, again.findings, strict=True):
        for name in ("verdict", "claim", "counts", "ends", "rows", "examples", "notes", "picture", "assurance"):
            assert getattr(before, name) == getattr(after, name)
    for entry in (folder / "cache").rglob("*.json"):
        values = json.loads(entry.read_text())["payload"]
        if "places" in values:
            cache.keep(entry.stem, values | {"verdict": "VIOLATED", "places": [0] if values["inputs"] == 4 else [[-128, -128]]})
    forged = signed(folder, *asked, cache=cache)
    assert [f.verdict for f in forged.findings] == [f.verdict for f in first.findings]
    assert max(sizes) > 1000


def test_a_program_over_a_box_too_large_to_run(tmp_path: Path) -> None:
    """70 inputs: a bound that holds, an eps that cannot, and labels of which a margin is asked."""
    data = Path(__file__).parent / "data/tflite"
    (tmp_path / "plan.toml").write_text(
        f"""timeout = 5
[model]
file = "{data / "wide_float.tflite"}"
[shipped]
int8 = "{data / "wide_int8.tflite"}"
[domains.near]
box = {json.dumps([[0.5, 0.55]] * 70)}
"""
        + obligation("loose", ask="eps", eps=0.5, program="int8", domain="near")
        + obligation("tight", ask="greatest-eps", eps=0.0001, program="int8", domain="near")
        + obligation("labels", ask="label", program="int8", domain="near")
        + obligation("margin", ask="margin", sigma=0.3, program="int8", domain="near")
    )
    cache = ResultCache(tmp_path / "cache")
    found = run_signoff(read_plan(tmp_path / "plan.toml"), cache=cache)
    loose, tight, labels, margin = found.findings
    assert (loose.verdict, loose.assurance) == (Verdict.ROBUST, Assurance.ROUNDED)
    assert (tight.verdict, tight.assurance) == (Verdict.VIOLATED, Assurance.CHECKED)
    assert len(tight.examples) == 1
    assert tight.ends is not None
    assert tight.ends[0] > 0.0001
    assert (labels.verdict, len(labels.examples)) == (Verdict.VIOLATED, 1)
    assert (margin.verdict, margin.assurance) == (Verdict.ROBUST, Assurance.ROUNDED)
    assert "2**" in loose.claim
    assert not any("outside" in note for note in loose.notes)
    resumed = run_signoff(read_plan(tmp_path / "plan.toml"), cache=cache)
    assert [f.verdict for f in resumed.findings] == [f.verdict for f in found.findings]
    assert resumed.seconds < 2
    assert rendered(found, "signoff.html.j2")


@pytest.fixture
def filed(folder: Path) -> tuple[Signoff, Path]:
    found = signed(
        folder,
        obligation("CAT-1", ask="margin", sigma=0.2, scheme="int8", domain="seen", text="Labels | hold <i>"),
        obligation("CAT-2", ask="label", program="int8", domain="seen"),
        obligation("CAT-3", ask="label", scheme="int4", data="rows"),
        obligation("CAT-4", ask="inside", copy="copy", scheme="fp16"),
        obligation("CAT-5", ask="label", program="int8", data="rows", kernels="any-kernel"),
    )
    write_signoff(found, folder / "out")
    return found, folder / "out"


def leaves(value: Any, path: str = "") -> set[tuple[str, str]]:
    """Return the paths and types of a document that the schema's table speaks of."""
    kinds = {str: "text", int: "number", float: "number", type(None): "null", bool: "true or false"}
    if isinstance(value, dict) and path not in ("versions", "obligations[].counts"):
        return {leaf for key, each in value.items() for leaf in leaves(each, f"{path}.{key}" if path else key)}
    if isinstance(value, list) and path in ("shipped", "inputs", "obligations"):
        return {leaf for each in value for leaf in leaves(each, f"{path}[]")}
    kind = "object" if isinstance(value, dict) else "list" if isinstance(value, list) else kinds[type(value)]
    return {(path, kind)}


def test_result_json_is_what_its_schema_says(filed: tuple[Signoff, Path]) -> None:
    document = json.loads((filed[1] / "result.json").read_text())
    rows = re.findall(r"^    (\S+): ((?:text|number|list|object)(?: or null)?)\b", documents.__doc__ or "", re.MULTILINE)
    table = dict(rows)
    assert len(table) > 40
    found = leaves(document)
    assert {path for path, _ in found} == set(table)
    for path, kind in found:
        assert kind in table[path].split(" or "), f"{path} is {kind}, the schema says {table[path]}"
    assert document["schema"] == SCHEMA
    assert document["verdict"] == "VIOLATED"
    network = qrobust.load(ROOT / "models/cat_paper.json")
    assert document["model"]["content"] == network.sha256
    assert document["plan"]["sha256"] == filed[0].plan.sha256
    assert [each["verdict"] for each in document["obligations"]] == [f.verdict.value for f in filed[0].findings]
    lines = (filed[1].parent / "plan.toml").read_text().split("\n")
    headers = [number for number, line in enumerate(lines, 1) if line == "[[obligations]]"]
    assert [each["line"] for each in document["obligations"]] == headers


def test_junit_says_what_failed(filed: tuple[Signoff, Path]) -> None:
    suites = Xml.fromstring((filed[1] / "junit.xml").read_bytes())
    (suite,) = suites
    findings = filed[0].findings
    assert suite.get("tests") == str(len(findings))
    kinds = {Verdict.ROBUST: [], Verdict.VIOLATED: ["failure"], Verdict.UNKNOWN: ["error"]}
    for case, finding in zip(suite, findings, strict=True):
        assert [child.tag for child in case] == kinds[finding.verdict]
        assert (case.get("name") or "").startswith(f"{finding.obligation.id}: ")
    assert suite.get("failures") == str(filed[0].count(Verdict.VIOLATED))
    lenient = Xml.fromstring(junit(filed[0], unknown_fails=False))
    assert lenient[0].get("errors") == "0"
    allowed = {  # Jenkins' xUnit plugin, junit-10.xsd
        "testsuites": {"name", "time", "tests", "failures", "errors"},
        "testsuite": {"name", "time", "tests", "failures", "errors", "skipped", "timestamp"},
        "testcase": {"name", "classname", "time"},
        **{name: {"type", "message"} for name in ("failure", "error", "skipped")},
    }
    for element in (*suites.iter(), *lenient.iter()):
        assert set(element.attrib) <= allowed[element.tag]


def test_sarif_has_what_the_standard_requires(filed: tuple[Signoff, Path]) -> None:
    """OASIS SARIF 2.1.0, sections 3.13, 3.14, 3.18, 3.19 and 3.27."""
    document = json.loads((filed[1] / "report.sarif").read_text())
    assert document["version"] == "2.1.0"
    (one,) = document["runs"]
    rules = one["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [f.obligation.id for f in filed[0].findings]
    for each, finding in zip(one["results"], filed[0].findings, strict=True):
        assert rules[each["ruleIndex"]]["id"] == each["ruleId"] == finding.obligation.id
        assert each["message"]["text"]
        assert each["kind"] in ("pass", "fail", "open")
        assert (each["kind"] == "fail") == (finding.verdict is Verdict.VIOLATED)
        assert (each["level"] == "none") == (each["kind"] != "fail")  # 3.27.10
        place = each["locations"][0]["physicalLocation"]
        assert place["region"]["startLine"] >= 1
        assert not place["artifactLocation"]["uri"].startswith("/")
    assert sarif(filed[0])["runs"][0]["results"] == one["results"]


class Page(HTMLParser):
    """The tags of a page that are open at its end, and every address in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_holds_everything_and_escapes_what_it_is_given(filed: tuple[Signoff, Path]) -> None:
    text = (filed[1] / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe", "i", "mice"}
    assert "Cats &amp; &lt;mice&gt;" in text
    assert "&lt;b&gt;cats&lt;/b&gt;" in text
    markdown = rendered(filed[0], "signoff.md.j2")
    assert "Labels \\| hold \\<i>" in markdown
    assert "Cats \\*are\\* \\<b>" in markdown


def test_a_browser_shows_verdict_and_scope_in_the_first_screen(filed: tuple[Signoff, Path], tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    command = [sys.executable, "-m", "tests.browser", str(filed[1] / "report.html"), str(picture)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert seen["loaded"]
    assert "Chrome/" in seen["agent"]
    assert seen["title"] == "Cats & <mice>: VIOLATED"
    for part in ("verdict", "scope", "summary"):
        assert 0 < seen["bottoms"][part] <= seen["height"], part
    red, green, blue = map(int, re.findall(r"\d+", seen["colour"])[:3])
    assert red > 2 * max(green, blue)
    images = sum(finding.picture is not None for finding in filed[0].findings)
    assert images == len(seen["images"]) >= 3
    assert all(image["complete"] and image["width"] > 0 for image in seen["images"])
    assert all(seen["anchors"])
    assert len(seen["anchors"]) == len(filed[0].findings)
    assert seen["overflow"] == 0
    assert seen["messages"] == []
    assert [address for address in seen["requests"] if not address.startswith(("data:", "file:"))] == []
    for finding in filed[0].findings:
        assert finding.obligation.id in seen["text"]
        assert finding.claim in seen["text"]
    assert (
        "among the values that it can store none was found" in seen["text"] or "It also holds with parameters" in seen["text"]
    )
    for word in ("Assumptions", "Reproduce with", "Signature"):
        assert word in seen["text"]
    from matplotlib.image import imread

    pixels = imread(picture)
    assert pixels.shape[:2] == (seen["height"], 1280)
    assert 0.02 < (pixels[..., :3].min(axis=2) < 0.9).mean() < 0.6  # neither blank nor black


def test_a_page_of_a_phones_width_is_read_without_scrolling_sideways(filed: tuple[Signoff, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.browser", str(filed[1] / "report.html"), str(tmp_path / "page.png"), "390", "844"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert seen["overflow"] == 0
    assert 0 < seen["bottoms"]["scope"] <= seen["height"]
    assert seen["narrowest"] > 60, "a text is broken into columns of a few letters"


@pytest.mark.parametrize("ask", [{"ask": "margin", "sigma": 0.2}, {"ask": "eps", "eps": 0.06}], ids=["label", "eps"])
def test_titles_of_pictures_lie_inside_them(ask: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    def kept(figure: Any) -> bytes:
        drawn.append(figure)
        return b""

    monkeypatch.setattr(pictures, "png", kept)
    signed(folder, obligation("x", scheme="int8", domain="seen", **ask))
    (figure,) = drawn
    figure.canvas.draw()
    for axes in figure.axes:
        box = axes.title.get_window_extent()
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1


def test_names_of_files_and_trust_are_in_the_reproduction(folder: Path) -> None:
    """A plan's name is a URI reference in SARIF (RFC 3986), and a pickle that was trusted must be trusted again."""
    from sklearn.linear_model import LogisticRegression

    joblib = pytest.importorskip("joblib")
    rows = np.random.default_rng(0).normal(size=(40, 2))
    joblib.dump(LogisticRegression().fit(rows, rows[:, 0] > 0), folder / "m.joblib")
    (folder / "my plan 100%.toml").write_text(
        '[model]\nfile = "m.joblib"\n[domains.near]\nbox = [[0, 1], [0, 1]]\n'
        + obligation("x", ask="eps", eps=0.5, scheme="int8", domain="near")
    )
    script = [sys.executable, "-m", "qrobust", "signoff", "my plan 100%.toml", "--trust-pickle", "--quiet"]
    assert subprocess.run(script, cwd=folder, check=False, timeout=60).returncode == 0
    place = json.loads((folder / "signoff/report.sarif").read_text())["runs"][0]["results"][0]["locations"][0]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "my%20plan%20100%25.toml"
    command = json.loads((folder / "signoff/result.json").read_text())["command"]
    (folder / "signoff").rename(folder / "first")
    again = subprocess.run(f"{sys.executable} -m {command} --quiet", shell=True, cwd=folder, check=False, timeout=60)
    assert again.returncode == 0, command
    assert (folder / "signoff/report.html").is_file()


@pytest.mark.parametrize(
    ("sigma", "options", "code", "verdict"),
    [(0.2, (), 0, "ROBUST"), (0.01, (), 1, "VIOLATED"), (0.01, ("--fail-on", "violated"), 1, "VIOLATED")],
)
def test_exit_codes_and_files(folder: Path, sigma: float, options: tuple[str, ...], code: int, verdict: str) -> None:
    text = HEAD + obligation("x", ask="margin", sigma=sigma, scheme="int8", domain="seen")
    (folder / "plan.toml").write_text(text)
    command = [sys.executable, "-m", "qrobust", "signoff", "plan.toml", "--out", "report", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stderr
    assert json.loads((folder / "report/result.json").read_text())["verdict"] == verdict
    names = {path.name for path in (folder / "report").iterdir()}
    assert names == {"cache", "result.json", "junit.xml", "report.sarif", "report.md", "report.html"}


def test_unknown_passes_only_if_asked(folder: Path) -> None:
    text = HEAD + obligation("x", ask="label", program="int8", data="point", kernels="any-kernel")
    (folder / "point.csv").write_text("heart weight,body weight\n15.0,2.0\n14.9,2.0\n15.1,2.0\n")
    (folder / "plan.toml").write_text(text.replace('"rows.csv"', '"rows.csv"\n[data.point]\nfile = "point.csv"'))
    plan = read_plan(folder / "plan.toml")
    network = plan.network
    # find a point whose label any kernels leave open: where the float confidence is within a step of 1/2
    grid = np.linspace(14.0, 16.0, 400)
    near = grid[np.abs(network.confidences(np.column_stack([grid, np.full(400, 2.0)]))[:, 0] - 0.5).argmin()]
    (folder / "point.csv").write_text(f"heart weight,body weight\n{near},2.0\n")
    codes = []
    for options in ((), ("--fail-on", "violated")):
        command = [sys.executable, "-m", "qrobust", "signoff", "plan.toml", "--out", "report", "--json", *options]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
        codes.append(done.returncode)
        assert json.loads(done.stdout)["verdict"] == "UNKNOWN", done.stdout
    assert codes == [3, 0]


def test_a_folder_that_cannot_be_made(folder: Path) -> None:
    (folder / "plan.toml").write_text(HEAD + obligation("x", ask="inside", copy="copy", scheme="fp16"))
    (folder / "report").write_text("a file")
    command = [sys.executable, "-m", "qrobust", "signoff", "plan.toml", "--out", "report"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "report cannot be made" in done.stderr


def test_images_have_obligations_too(tmp_path: Path) -> None:
    """Many inputs and classes: the page and the documents are made all the same."""
    data = ROOT / "tests/data/tflite"
    for name in ("convolution_float.tflite", "convolution_int8.tflite"):
        shutil.copy(data / name, tmp_path)
    network = qrobust.load(data / "convolution_float.tflite")
    rows = np.random.default_rng(0).uniform(0, 1, (3, network.inputs))
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",", header=",".join(f"p{i}" for i in range(network.inputs)), comments="")
    (tmp_path / "plan.toml").write_text(
        '[model]\nfile = "convolution_float.tflite"\n[shipped]\nint8 = "convolution_int8.tflite"\n'
        + '[data.rows]\nfile = "rows.csv"\n'
        + obligation("x", ask="eps", eps=1e-6, program="int8", data="rows")
        + obligation("y", ask="label", scheme="fp16", data="rows", timeout=5)
    )
    found = run_signoff(read_plan(tmp_path / "plan.toml"))
    write_signoff(found, tmp_path / "out")
    assert found.findings[0].verdict is Verdict.VIOLATED
    assert found.findings[0].picture is not None
    Page((tmp_path / "out/report.html").read_text())
