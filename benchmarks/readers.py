"""How far each reader is from the format's own runtime: the greatest difference of floats, how many integers differ.

Runtimes of float32 round at every step: their logits are off by some 1e-7 of the greatest logit, and a confidence, which moves
by up to a quarter of what its logit moves, may be off by more than 1e-6 where logits are of size 20. So a classifier that is
written as float32 is compared in its logits, relative to the greatest, and both the reader and the runtime are compared with
exact arithmetic besides; written as float64 it is compared in its confidences.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.comparison import exactly_at
from qrobust.exact import to_rational
from qrobust.formats import load
from qrobust.formats.onnx_write import onnx_bytes
from qrobust.formats.sklearn import from_sklearn
from qrobust.interval import FloatArray
from qrobust.network import FloatArithmetic, Network, logits

ROOT = Path(__file__).parent.parent
AIM = 1e-6
GRAPHS = 200
POINTS = 500
EXACT = 5  # inputs at which exact arithmetic is asked
OUTPUTS, LOGITS = "of the greatest output, or of 1", "of the greatest logit"
Counted = tuple[str, str, int, int]  # what was read, the runtime, how many outputs differ, of how many


@dataclass(frozen=True)
class Measured:
    """How far a reader is from a runtime, in a unit; `exact` how far the reader and the runtime are from exact arithmetic."""

    what: str
    peer: str
    worst: float
    unit: str = OUTPUTS
    exact: tuple[float, float] | None = None


def difference(found: FloatArray, expected: FloatArray) -> float:
    """Return the greatest difference over the greatest size of the expected outputs, or over 1 if that is more."""
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def measure() -> Iterator[Measured]:
    """Yield one measurement a format and runtime. The optional runtimes are those of the extra [test]."""
    yield from _onnx_graphs()
    yield from _onnx_written()
    yield from _keras()
    yield from _sklearn()
    yield from _tflite()
    yield from _nnet()


def _onnx_graphs() -> Iterator[Measured]:
    import onnxruntime

    from tests.onnx_graphs import dense_graph, image_graph, reference, runtime

    name = f"onnxruntime {onnxruntime.__version__}"
    kinds: dict[str, Callable[..., Any]] = {"dense": dense_graph, "images": image_graph}
    for kind, build in kinds.items():
        for dtype, peer in (("float32", name), ("float64", "onnx.reference")):
            worst = 0.0
            for seed in range(GRAPHS):
                graph = build(np.random.default_rng(seed), dtype)
                tensor = np.random.default_rng(seed).normal(size=(20, *graph.shape[1:]))
                tensor = tensor.astype(np.float32).astype(np.float64)
                last_axis = graph.nodes[0].op_type == "Transpose"
                flat = (tensor.transpose(0, 3, 1, 2) if last_axis else tensor).reshape(20, -1)
                network = _loaded(graph.content())
                ended = graph.nodes[-1].op_type in ("Softmax", "Sigmoid")
                found = network.confidences(flat) if ended else logits(network, flat, FloatArithmetic())
                expected = runtime(graph.content(), tensor) if dtype == "float32" else reference(graph, tensor)
                worst = max(worst, difference(found, expected))
            yield Measured(f"onnx-{kind}-{dtype}", f"{peer}, {GRAPHS} random graphs", worst)


def _onnx_written() -> Iterator[Measured]:
    """The project's own networks, written as ONNX and run."""
    import onnxruntime

    from tests.onnx_graphs import runtime

    peer = f"onnxruntime {onnxruntime.__version__}"
    for stem in ("mnist_2x100", "digits_3x100"):
        network = load(ROOT / "models" / f"{stem}.keras")
        inputs = np.random.default_rng(0).uniform(size=(50, network.inputs)).astype(np.float32).astype(np.float64)
        found, expected = logits(network, inputs, FloatArithmetic()), runtime(_logits_of(onnx_bytes(network)), inputs)
        scale, true = float(np.abs(found).max()), _exact_logits(network, inputs[:EXACT])
        ours, theirs = (float(np.abs(values[:EXACT] - true).max()) / scale for values in (found, expected))
        worst = float(np.abs(found - expected).max()) / scale
        yield Measured(f"onnx-written-{stem}-float32", peer, worst, LOGITS, (ours, theirs))
        worst = difference(network.confidences(inputs), runtime(onnx_bytes(network, double=True), inputs))
        yield Measured(f"onnx-written-{stem}-float64", peer, worst)


def _logits_of(content: bytes) -> bytes:
    """Return the graph of a file cut before its softmax."""
    import onnx

    model = onnx.load_from_string(content)
    last = model.graph.node.pop()
    if last.op_type != "Softmax":
        raise ValueError(f"the graph ends in {last.op_type}, not in Softmax")
    model.graph.output[0].name = last.input[0]
    return bytes(model.SerializeToString())


def _exact_logits(network: Network, inputs: FloatArray) -> FloatArray:
    """Return the logits in exact arithmetic, rounded to the nearest floats."""
    return np.array([[float(to_rational(value)) for value in exactly_at(network, x).nominal()] for x in inputs])


def _keras() -> Iterator[Measured]:
    recorded = json.loads((ROOT / "tests" / "data" / "keras.json").read_text())
    for ending in ("keras", "h5"):
        for stem, values in recorded.items():
            inputs = np.array(values["inputs"])
            if inputs.ndim == 4:
                inputs = inputs.transpose(0, 3, 1, 2).reshape(len(inputs), -1)
            network = load(ROOT / "tests" / "data" / f"{stem}.{ending}")
            found = difference(network.confidences(inputs), np.array(values["outputs"]))
            yield Measured(f"{ending}-{stem}", "Keras 3.15, outputs recorded by tests/data/make_keras.py", found)


def _sklearn() -> Iterator[Measured]:
    import sklearn
    import skops.io
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    x, y = load_digits(return_X_y=True)
    x = x / 16
    for activation in ("relu", "tanh", "logistic"):
        classifier = MLPClassifier((20, 10), activation=activation, max_iter=15, random_state=0).fit(x, y)
        found = difference(from_sklearn(classifier).confidences(x), classifier.predict_proba(x))
        yield Measured(f"sklearn-{activation}", f"scikit-learn {sklearn.__version__}", found)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.skops"
        for scaler in (StandardScaler(), MinMaxScaler()):
            pipeline = make_pipeline(scaler, MLPClassifier((20, 10), max_iter=15, random_state=0)).fit(16 * x, y)
            skops.io.dump(pipeline, path)
            found = difference(load(path).confidences(16 * x), pipeline.predict_proba(16 * x))
            yield Measured(f"skops-{type(scaler).__name__}", f"scikit-learn {sklearn.__version__}", found)


def _tflite() -> Iterator[Measured]:
    """The files of the tests whose activations are floats."""
    from importlib.metadata import version

    from tests.litert import FILES, run_litert

    for kind in ("float", "fp16"):
        worst, count = 0.0, 0
        for path in sorted(FILES.glob(f"*_{kind}.tflite")):
            if path.stem == "classes_float":  # ReLU6, which a network has not
                continue
            network = load(path)
            points = np.random.default_rng(0).uniform(-1, 3, (POINTS, network.inputs)).astype(np.float32).astype(np.float64)
            worst, count = max(worst, difference(network.confidences(points), run_litert(path, points))), count + 1
        yield Measured(f"tflite-{kind}", f"LiteRT {version('ai-edge-litert')}, {count} files", worst)


def _nnet() -> Iterator[Measured]:
    """Random ReLU networks as .nnet text beside a forward pass over the numbers that were written."""
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(GRAPHS):
            rng = np.random.default_rng(seed)
            sizes = rng.integers(2, 30, 4).tolist()
            layers = [(rng.normal(size=(after, before)), rng.normal(size=after)) for before, after in pairwise(sizes)]
            lines = [[3, sizes[0], sizes[-1], max(sizes)], sizes, [0], [-1] * sizes[0], [1] * sizes[0]]
            lines += [[0] * (sizes[0] + 1), [1] * (sizes[0] + 1)]
            for weight, bias in layers:
                lines += [*weight.tolist(), *([value] for value in bias.tolist())]
            path = Path(folder) / "m.nnet"
            path.write_text("".join("".join(f"{value!r}," for value in line) + "\n" for line in lines))
            points = rng.uniform(-1, 1, (20, sizes[0]))
            values = points
            for weight, bias in layers[:-1]:
                values = np.maximum(values @ weight.T + bias, 0)
            expected = values @ layers[-1][0].T + layers[-1][1]
            worst = max(worst, difference(logits(load(path), points, FloatArithmetic()), expected))
    yield Measured("nnet", f"a float64 forward pass, {GRAPHS} random networks", worst)


def programs() -> Iterator[Counted]:
    """Yield, for each format of integer programs, how many outputs differ from the runtime's, and how many there are."""
    yield from _tflite_programs()
    yield from _onnx_programs()


def _tflite_programs() -> Iterator[Counted]:
    """The files of the tests, and those that LiteRT takes so with other, random weights, biases and scales in their place."""
    from importlib.metadata import version

    from qrobust.formats import load_program
    from qrobust.integer.kernels import run
    from tests.litert import FILES, run_litert, with_random_numbers
    from tests.test_tflite_runtime import RANDOM, RANDOM_16

    for kind, random in (("int8", RANDOM), ("int16", RANDOM_16)):
        wrong, total, count = 0, 0, 0
        with tempfile.TemporaryDirectory() as folder:
            for path in sorted(FILES.glob(f"*_{kind}.tflite")):
                for seed in (-1, 0, 1, 2, 3) if path.stem in random else (-1,):
                    file = Path(folder) / "m.tflite"
                    file.write_bytes(path.read_bytes() if seed < 0 else with_random_numbers(path.read_bytes(), seed))
                    program = load_program(file)
                    encoding = program.input
                    shape = (POINTS, program.inputs)
                    points = np.random.default_rng(seed + 1).integers(encoding.least, encoding.greatest + 1, shape)
                    expected = run_litert(file, points).reshape(POINTS, -1)
                    found = run(program, points).values
                    wrong, total, count = wrong + int((found != expected).sum()), total + expected.size, count + 1
        name = "int16x8" if kind == "int16" else kind
        yield f"tflite-{name}", f"LiteRT {version('ai-edge-litert')}, reference kernels, {count} models", wrong, total


def _onnx_programs() -> Iterator[Counted]:
    import onnxruntime

    from qrobust.formats import load_program
    from qrobust.integer.kernels import run
    from tests import test_onnx_program as graphs

    for kind, made in (("qdq-dense", graphs.dense), ("qdq-images", graphs.images), ("qoperator", graphs.operators)):
        wrong, total = 0, 0
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(40):
                rng = np.random.default_rng(seed)
                graph = made(rng)
                path = Path(folder) / "m.onnx"
                path.write_bytes(graph.content())
                program = load_program(path)
                single = graph.shape[0] == 1
                points = rng.uniform(-5, 5, (50 if single else POINTS, program.inputs))
                pieces = list(points[:, None]) if single else [points]
                expected = np.concatenate([graphs.runtime(graph, piece) for piece in pieces])
                found = run(program, program.quantized(points)).values
                wrong, total = wrong + int((found != expected).sum()), total + expected.size
        yield f"onnx-{kind}", f"onnxruntime {onnxruntime.__version__}, 40 random graphs", wrong, total


def counted() -> list[Counted]:
    """Return what `programs` yields, and say each as it is counted."""
    found = []
    for what, peer, wrong, total in programs():
        print(f"{what}: {wrong:,} of {total:,} outputs differ from {peer}", file=sys.stderr, flush=True)
        found.append((what, peer, wrong, total))
    return found


def _loaded(content: bytes) -> Network:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(content)
        return load(path)


def measured() -> list[Measured]:
    """Return all measurements, and say each as it is made."""
    found = []
    for each in measure():
        print(f"{each.what}: {each.worst:.3g} {each.unit} against {each.peer}", file=sys.stderr, flush=True)
        found.append(each)
    return found
