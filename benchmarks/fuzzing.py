"""Random damage to real files of every format that is read, each read in a process of little memory and time.

    python -m benchmarks.fuzzing --count 20000 --jobs 2

Gives     a line for each fault: a traceback, more than SECONDS, or more than MOST_MEMORY; last, counts by format
Method    bytes flipped, cut, doubled and moved; numbers and texts of JSON, CSV and TOML replaced; members of archives damaged
          and packed again with right checksums. A seed makes its damage again: --format and --seed
Exit      1 if any reading was at fault
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

import qrobust
from qrobust.binarized.bracket_files import load_bracket
from qrobust.binarized.formats import load_binarized, read_vnnlib
from qrobust.binarized.network import Grid
from qrobust.certificates import load_certificate
from qrobust.errors import QRobustError, UnsupportedError
from qrobust.formats import load, load_program, save
from qrobust.formats.table import read_points, read_table
from qrobust.quantization import parse_scheme
from qrobust.report.plan import read_plan

ROOT = Path(__file__).parents[1]
SECONDS = 10
MOST_MEMORY = 2 * 2**30  # bytes
ADDRESSES = 8 * 2**30  # bytes of address space, most of which libraries map and never touch
TEXTS = {".json", ".csv", ".toml", ".nnet", ".vnnlib", ".cert"}
ARCHIVES = {".keras", ".npz", ".skops"}
WORDS = (
    *(
        "null",
        "true",
        "-1",
        "0",
        "1e308",
        "1e999",
        "NaN",
        "Infinity",
        "18446744073709551616",
        "1099511627776",
        '""',
        "[]",
        "{}",
    ),
    *(
        "[[[[]]]]",
        '"1/0"',
        '"\\u0000"',
        "-0.0",
        "5e-324",
        "1" * 5000,
        "[" * 3000,
        '"' + "x" * 100_000 + '"',
        "../../etc/passwd",
    ),
)
GRID = Grid.of(Fraction(1, 255), 0, 1)

Reader = Callable[[Path], object]


@dataclass(frozen=True)
class Sample:
    """A real file, and who reads it."""

    name: str
    content: bytes
    suffix: str
    read: Reader


def samples(folder: Path) -> Iterator[Sample]:
    """Yield real files of every format: the project's, and small ones that its own writers make."""
    data, models = ROOT / "tests/data", ROOT / "models"
    readers: dict[str, tuple[Reader, ...]] = {".tflite": (load, load_program), ".onnx": (load, load_program)}
    names = [*data.glob("*.keras"), *data.glob("*.h5"), *(data / "tflite").glob("*.tflite"), *models.glob("cat*.json")]
    names += [models / "iris.json", models / "ath_relu.keras", models / "cat_int8.tflite", *made(folder)]
    for path in sorted(names):
        for read in readers.get(path.suffix, (load,)):
            with contextlib.suppress(UnsupportedError):  # floats are no program, a program is no network
                read(path)
                yield Sample(path.name, path.read_bytes(), path.suffix, read)
    yield from others(folder)


def others(folder: Path) -> Iterator[Sample]:
    """Yield files that are no networks of floats."""
    models = ROOT / "models"
    for name in ("bnn_binary.npz", "bnn_conv_ternary.npz", "khalil/2x100.npz"):
        yield Sample(f"binarized {name}", (models / name).read_bytes(), ".npz", load_binarized)
    for path in sorted(models.glob("bnn_*.keras")):
        yield Sample(f"binarized {path.name}", path.read_bytes(), ".keras", load_binarized)
    for path in sorted(folder.glob("signs.*")):
        grid = (lambda each: load_binarized(each, GRID)) if path.suffix in (".onnx", ".h5") else load_binarized
        yield Sample(f"binarized {path.name}", path.read_bytes(), path.suffix, grid)
    for path in sorted(folder.glob("pair.*")):
        yield Sample(f"bracket {path.name}", path.read_bytes(), path.suffix, load_bracket)
    yield Sample("iris_int8.cert", (models / "iris_int8.cert").read_bytes(), ".cert", load_certificate)
    yield Sample("wide.csv", b",".join(b"a%d" % i for i in range(300)) + b"\n" + b",".join([b"1.5"] * 300), ".csv", read_table)
    yield Sample("query.vnnlib", VNNLIB, ".vnnlib", read_vnnlib)
    yield Sample("cats.csv", (ROOT / "datasets/cats.csv").read_bytes(), ".csv", lambda path: read_table(path, ("Bwt", "Hwt")))
    iris = qrobust.load(models / "iris.json")
    rows = b"sepal length,sepal width,petal length,petal width\n" + b"5.1,3.5,1.4,0.2\n" * 5
    yield Sample("points.csv", rows, ".csv", lambda path: read_points(path, iris))
    plan = (ROOT / "tests/data/plan.toml").read_bytes() if (ROOT / "tests/data/plan.toml").exists() else PLAN
    yield Sample("plan.toml", plan.replace(b"MODELS", str(models).encode()), ".toml", read_plan)


VNNLIB = b"""(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(assert (<= X_0 1.0))
(assert (>= X_0 0.0))
(assert (<= X_1 0.5))
(assert (>= X_1 0.5))
(assert (or (and (>= Y_1 Y_0))))
"""
PLAN = b"""title = "Cats"
[model]
file = "MODELS/cat_paper.json"
level = "1/2"
[shipped]
int8 = "MODELS/cat_int8.tflite"
[domains.seen]
box = { "heart weight" = [6.3, 20.5], "body weight" = [2, 3.9] }
[domains.cut]
where = [ { sum = { "heart weight" = 1, "body weight" = -2 }, at_most = 9 } ]
[data.cats]
random = 5
domain = "seen"
seed = 3
[[obligations]]
id = "CAT-1"
ask = "margin"
sigma = 0.1
scheme = "int8"
domain = "cut"
[[obligations]]
id = "CAT-2"
text = "Confidences hold"
ask = "eps"
eps = "1/50"
program = "int8"
kernels = "any-kernel"
data = "cats"
"""


def made(folder: Path) -> list[Path]:
    """Write files of the formats that the project writes itself, or that its tests make; return those of float networks."""
    from sklearn.neural_network import MLPClassifier
    from skops import io as skops

    from qrobust.binarized.formats import save_binarized
    from tests.onnx_graphs import Graph, image_graph, numbers
    from tests.test_nnet import text

    rng = np.random.default_rng(0)
    iris = qrobust.load(ROOT / "models/iris.json")
    save(iris, folder / "plain.npz")
    save(parse_scheme("fp16").copy(iris), folder / "plain.onnx")
    (folder / "plain.nnet").write_text(text(iris))
    (folder / "image.onnx").write_bytes(image_graph(rng).content())
    graph = Graph((1, 4)).add("Gemm", numbers(rng, 4, 5), numbers(rng, 5)).add("Relu")
    (folder / "gemm.onnx").write_bytes(graph.add("Gemm", numbers(rng, 5, 3), numbers(rng, 3)).add("Softmax", axis=1).content())
    trained = MLPClassifier((3,), max_iter=5).fit(rng.normal(size=(20, 2)), np.arange(20) % 3)
    skops.dump(trained, folder / "mlp.skops")
    quantized_onnx(folder / "qdq.onnx")
    save_binarized(load_binarized(ROOT / "models/khalil/2x100.npz").network, folder / "signs.json")
    signs = Graph((1, 4)).add("MatMul", np.where(rng.random((4, 5)) < 0.5, -1, 1).astype(np.float32))
    signs = signs.add("Sign").add("Add", np.float32(0.5)).add("Sign")
    (folder / "signs.onnx").write_bytes(signs.add("MatMul", np.ones((5, 3), np.float32)).content())
    for suffix in (".json", ".npz"):
        bracket(folder / f"pair{suffix}")
    return [path for path in sorted(folder.iterdir()) if path.stem not in ("signs", "pair")]


def quantized_onnx(path: Path) -> None:
    """Write the QDQ form of a small network, by onnxruntime's own quantizer."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter(np.random.default_rng(0).uniform(0, 1, (20, 1, 4)).astype(np.float32))

        def get_next(self) -> Any:
            row = next(self.rows, None)
            return None if row is None else {"x": row}

    source = path.with_name("gemm.onnx")
    quantize_static(source, path, Rows(), activation_type=QuantType.QInt8, weight_type=QuantType.QInt8)


def bracket(path: Path) -> None:
    from qrobust.binarized.bracket_build import Plan, build
    from qrobust.binarized.bracket_files import save_bracket
    from qrobust.binarized.bracket_training import Recipe
    from qrobust.binarized.thermometer import uniform
    from qrobust.domains import InputBox

    network = qrobust.load(ROOT / "models/cat_paper.json")
    code = uniform(network, InputBox.of_features(network), 3)
    built = build(network, 1, code, Plan(Recipe((4,), 8.0), 1, 1, 20.0, seed=0), None, lambda _: None, None)
    save_bracket(built.bracket, path)


def damaged(content: bytes, suffix: str, rng: random.Random) -> bytes:
    """Damage a file in one of the ways that suit its format."""
    ways: list[Callable[[bytes, random.Random], bytes]] = [flipped, flipped, cut, moved, extreme, filled]
    if suffix in TEXTS:
        ways += [replaced] * 6 + [recoded]
    if suffix in (".json", ".cert"):
        ways += [grafted] * 6
    if suffix in ARCHIVES:
        ways += [repacked] * 10
    result: bytes = rng.choice(ways)(content, rng)
    return flipped(result, rng) if result and rng.random() < 0.1 else result


def flipped(content: bytes, rng: random.Random) -> bytes:
    result = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 10, 100])):
        if result:
            place = rng.randrange(len(result))
            result[place] = rng.choice([rng.randrange(256), result[place] ^ 1 << rng.randrange(8), 0, 255])
    return bytes(result)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def moved(content: bytes, rng: random.Random) -> bytes:
    """Take a piece out, or put it somewhere, once or many times."""
    first = rng.randrange(len(content) + 1)
    piece = content[first : first + rng.choice([1, 4, 16, 64, 1024])]
    if rng.random() < 0.5:
        return content[:first] + content[first + len(piece) :]
    place = rng.randrange(len(content) + 1)
    return content[:place] + piece * rng.choice([1, 1, 2, 100]) + content[place:]


def extreme(content: bytes, rng: random.Random) -> bytes:
    """Write a number over another where sizes may stand."""
    size = rng.choice([1, 2, 4, 8])
    most: int = 2 ** (8 * size)
    value = rng.choice([0, 1, most - 1, most // 2, most // 2 - 1, rng.randrange(most)])
    place = rng.randrange(max(1, len(content) - size))
    return content[:place] + value.to_bytes(size, rng.choice(["little", "big"])) + content[place + size :]


def filled(content: bytes, rng: random.Random) -> bytes:
    """Write one byte over a piece."""
    place, size = rng.randrange(len(content) + 1), rng.choice([4, 16, 256, 4096])
    return content[:place] + bytes([rng.choice([0, 255, 0x41])]) * len(content[place : place + size]) + content[place + size :]


def replaced(content: bytes, rng: random.Random) -> bytes:
    """Put another word for a number, a text or a bracket."""
    found = list(re.finditer(rb'-?\d[\d.eE+-]*|"[^"\n]*"|[\[\]{},:=]', content))
    result = content
    for match in sorted(rng.sample(found, min(len(found), rng.choice([1, 1, 2]))), key=lambda m: -m.start()):
        result = result[: match.start()] + rng.choice(WORDS).encode() + result[match.end() :]
    return result


def recoded(content: bytes, rng: random.Random) -> bytes:
    text = content.decode("utf-8", "replace")
    return text.encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037"]), "replace")


def grafted(content: bytes, rng: random.Random) -> bytes:
    """Put a value of another type, or another part of it, into a document."""
    try:
        document = json.loads(content)
    except ValueError:
        return flipped(content, rng)
    places = list(inside(document))
    if not places:
        return b"[" + content
    for _ in range(rng.choice([1, 1, 2, 3])):
        holder, key = rng.choice(places)
        values: tuple[Any, ...] = (
            None,
            True,
            -1,
            0,
            2**70,
            1e308,
            float("nan"),
            "",
            "x",
            [],
            {},
            [[]],
            {"a": 1},
            1.5,
            "1/0",
            -0.0,
            [None],
        )
        donor = rng.choice(places)[0]
        new = rng.choice([*values, donor])
        if rng.random() < 0.2 and isinstance(holder, dict):
            holder.pop(key, None)
        elif isinstance(holder, dict) or key < len(holder):
            holder[key] = json.loads(json.dumps(new))
    return json.dumps(document).encode()


def inside(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in list(pairs):
        yield value, key
        yield from inside(each)


def repacked(content: bytes, rng: random.Random) -> bytes:
    """Damage one member of an archive, or its name, and pack it again: its checksums are right."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(each.filename, archive.read(each)) for each in archive.infolist()]
    except (zipfile.BadZipFile, OSError, ValueError):
        return flipped(content, rng)
    place = rng.randrange(len(members))
    name, inner = members[place]
    what = rng.random()
    if what < 0.7:
        ways = [flipped, cut, moved, extreme, filled, replaced, *([grafted, grafted] if name.endswith("json") else [])]
        members[place] = name, rng.choice(ways)(inner, rng) if inner else b"\0"
    elif what < 0.8:
        members[place] = rng.choice(["../" + name, "/" + name, name + "\0", ".", name.upper(), "é" * 100]), inner
    elif what < 0.9:
        members.append((name, rng.choice(members)[1]))
    else:
        members[place] = name, rng.choice(members)[1]
    buffer = io.BytesIO()
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", rng.choice([0, zipfile.ZIP_DEFLATED])) as archive:
        warnings.simplefilter("ignore")
        for own, inner in members:
            archive.writestr(own.strip("\0") or ".", inner)
    return buffer.getvalue()


class TooSlow(BaseException):
    """A reading took more than SECONDS."""


def _ring(*_: object) -> None:
    raise TooSlow


def reading(sample: Sample, seed: int, folder: Path) -> tuple[str, str]:
    """Read one damaged file; return what came of it, and where it went wrong."""
    path = folder / f"m{sample.suffix}"
    path.write_bytes(damaged(sample.content, sample.suffix, random.Random(f"{sample.name} {seed}")))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
    try:
        sample.read(path)
        outcome = "read", ""
    except QRobustError as error:
        line = str(error)
        outcome = ("traceback", f"two lines: {line!r}") if "\n" in line or not line else ("refused", "")
    except TooSlow:
        outcome = "slow", traceback.format_exc(limit=-4)
    except Exception:  # any other is what is looked for
        outcome = "traceback", traceback.format_exc(limit=-6)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    path.unlink()
    strays = [each.name for each in folder.iterdir()]
    return outcome if not strays else ("traceback", f"left behind: {strays}")


def work(own: list[Sample], start: int, count: int, place: int, jobs: int, results: Any) -> None:
    """Read this worker's share, in little memory, and send what came of each."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    signal.signal(signal.SIGALRM, _ring)
    os.dup2(os.open(f"{tempfile.gettempdir()}/qrobust-fuzzing-{place}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(prefix="qrobust-fuzzing-") as name:
        for number in range(start + place, start + count, jobs):
            sample = own[number % len(own)]
            results.put(("begin", sample.name, number, ""))
            outcome, where = reading(sample, number, Path(name))
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if 1024 * now > MOST_MEMORY > 1024 * peak:
                outcome, where = "memory", f"{now // 1024} MiB, {where}"
            peak = max(peak, now)
            results.put((outcome, sample.name, number, where))
    results.put(("end", "", 0, ""))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--format", default="", help="only names that hold this text")
    parser.add_argument("--keep", type=Path, help="write the damaged file of --seed here, and read nothing")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="qrobust-samples-"))
    try:
        own = list(samples(folder))
    finally:
        shutil.rmtree(folder)
    if options.keep:
        sample = own[options.seed % len(own)]
        options.keep.write_bytes(damaged(sample.content, sample.suffix, random.Random(f"{sample.name} {options.seed}")))
        print(sample.name, sample.read)
        return 0
    own = [sample for sample in own if options.format in sample.name]
    return fuzzed(own, options.seed, options.count, options.jobs)


def fuzzed(own: list[Sample], start: int, count: int, jobs: int) -> int:
    results: Any = multiprocessing.get_context("fork").Queue()
    started, counts, faults = time.monotonic(), collections.Counter[tuple[str, str]](), 0
    seen = collections.Counter[str]()
    workers = [
        multiprocessing.get_context("fork").Process(target=work, args=(own, start, count, place, jobs, results))
        for place in range(jobs)
    ]
    for worker in workers:
        worker.start()
    last: dict[int, tuple[str, int]] = {}
    ended = 0
    while ended < jobs:
        try:
            outcome, name, number, where = results.get(timeout=4 * SECONDS)
        except Exception:
            for place, worker in enumerate(workers):
                if not worker.is_alive() and worker.exitcode:
                    faults += 1
                    print(f"died ({worker.exitcode}): {last.get(place)}", flush=True)
            break
        if outcome == "begin":
            last[(number - start) % jobs] = name, number
        elif outcome == "end":
            ended += 1
        else:
            counts[name, outcome] += 1
            if outcome not in ("read", "refused"):
                faults += 1
                key = where.strip().splitlines()[-1][:60] + " " + "".join(re.findall(r"line \d+", where)[-1:])
                seen[key] += 1
                if seen[key] <= 2:
                    print(f"{outcome}: {name}, seed {number}: {where}", flush=True)
    for (name, outcome), times in sorted(counts.items()):
        print(f"{name:40} {outcome:10} {times:6}")
    total = sum(counts.values())
    print(f"{total:,} damaged files, {faults} faults, {time.monotonic() - started:.0f} s")
    print(*(f"{times} x {key}" for key, times in seen.most_common()), sep="\n")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
