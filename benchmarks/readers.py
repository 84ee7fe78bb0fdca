"""How far each reader of float models is from the format's own runtime: format x runtime x greatest difference."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.formats import load
from qrobust.formats.onnx_write import onnx_bytes
from qrobust.formats.sklearn import from_sklearn
from qrobust.interval import FloatArray
from qrobust.network import FloatArithmetic, Network, logits

ROOT = Path(__file__).parent.parent
AIM = 1e-6
GRAPHS = 200
Measured = tuple[str, str, float]  # what was read, the runtime, the greatest difference


def difference(found: FloatArray, expected: FloatArray) -> float:
    """Return the greatest difference over the greatest size of the expected outputs, or over 1 if that is more."""
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def measure() -> Iterator[Measured]:
    """Yield one measurement a format and runtime. The optional runtimes are those of the extra [test]."""
    yield from _onnx_graphs()
    yield from _onnx_written()
    yield from _keras()
    yield from _sklearn()


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
            yield f"onnx-{kind}-{dtype}", f"{peer}, {GRAPHS} random graphs", worst


def _onnx_written() -> Iterator[Measured]:
    """The project's own networks, written as ONNX and run."""
    import onnxruntime

    from tests.onnx_graphs import runtime

    for stem in ("mnist_2x100", "digits_3x100"):
        network = load(ROOT / "models" / f"{stem}.keras")
        inputs = np.random.default_rng(0).uniform(size=(50, network.inputs)).astype(np.float32).astype(np.float64)
        for double in (False, True):
            expected = runtime(onnx_bytes(network, double=double), inputs)
            worst = difference(network.confidences(inputs), expected)
            yield f"onnx-written-{stem}-{'float64' if double else 'float32'}", f"onnxruntime {onnxruntime.__version__}", worst


def _keras() -> Iterator[Measured]:
    recorded = json.loads((ROOT / "tests" / "data" / "keras.json").read_text())
    for ending in ("keras", "h5"):
        for stem, values in recorded.items():
            inputs = np.array(values["inputs"])
            if inputs.ndim == 4:
                inputs = inputs.transpose(0, 3, 1, 2).reshape(len(inputs), -1)
            network = load(ROOT / "tests" / "data" / f"{stem}.{ending}")
            found = difference(network.confidences(inputs), np.array(values["outputs"]))
            yield f"{ending}-{stem}", "Keras 3.15, outputs recorded by tests/data/make_keras.py", found


def _sklearn() -> Iterator[Measured]:
    import sklearn
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    x = x / 16
    for activation in ("relu", "tanh", "logistic"):
        classifier = MLPClassifier((20, 10), activation=activation, max_iter=15, random_state=0).fit(x, y)
        found = difference(from_sklearn(classifier).confidences(x), classifier.predict_proba(x))
        yield f"sklearn-{activation}", f"scikit-learn {sklearn.__version__}", found


def _loaded(content: bytes) -> Network:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        path.write_bytes(content)
        return load(path)


def measured() -> list[Measured]:
    """Return all measurements, and say each as it is made."""
    found = []
    for what, peer, worst in measure():
        print(f"{what}: {worst:.3g} against {peer}", file=sys.stderr, flush=True)
        found.append((what, peer, worst))
    return found
