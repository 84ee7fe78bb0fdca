"""The peer: auto_LiRPA's bounds under weight perturbation, on label questions of dense ReLU networks.

auto_LiRPA runs in an environment of its own, whose interpreter QROBUST_LIRPA_PYTHON names. To make one, take the source from
github.com/Verified-Intelligence/auto_LiRPA (the release on the package index is broken), make a virtual environment with
torch, numpy, packaging, appdirs, pyyaml, ninja, tqdm, graphviz and sortedcontainers, and there `pip install --no-deps` the
source. This file is the script that runs there, so it imports nothing of qrobust at the top. `python -m benchmarks.lirpa_peer`
prints a table.

Property  auto_LiRPA computes in floating point without directed rounding: what it certifies is its own claim, not a proof
Source    Xu et al. 2020 (weight perturbation); Zhang et al. 2018 (CROWN); Xu et al. 2021 (alpha-CROWN, "CROWN-Optimized")
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

VARIABLE = "QROBUST_LIRPA_PYTHON"
METHODS = ("IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized")
STARTING = 60.0  # seconds that importing torch and tracing the network may take beside the limit

Arrays = Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]  # (weight, bias) a layer, weight (outputs, inputs)


@dataclass(frozen=True)
class Certified:
    """What one method did: images asked and certified within the limit, seconds for each asked; `fault` if it failed."""

    method: str
    asked: int
    certified: int
    seconds: float
    fault: str = ""

    @property
    def share(self) -> float:
        """Certified images among those asked."""
        return self.certified / self.asked if self.asked else 0.0


def available() -> bool:
    """Whether an interpreter is named."""
    return bool(os.environ.get(VARIABLE))


def certified(
    network_layers: Arrays,
    radii: Sequence[tuple[float, float]],
    images: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    seconds: float,
    *,
    methods: Sequence[str] = METHODS,
    batch: int = 1,
    single: bool = False,
) -> list[Certified]:
    """Certify that every network of the box gives each image its label, by each method, `seconds` at most for one method.

    network_layers (weight, bias) of dense layers, ReLU between them, logits at the end
    radii          of the weights and of the biases of each layer; 0 leaves an array unperturbed
    single         whether to compute in float32, auto_LiRPA's usual precision, not in float64
    As many threads work as OMP_NUM_THREADS says.
    Exits with a message if no interpreter is named.
    """
    if not available():
        sys.exit(
            f"this comparison runs auto_LiRPA: name the interpreter of an environment that has it with {VARIABLE}"
            " (how to make one is told at the top of benchmarks/lirpa_peer.py)"
        )
    arrays: dict[str, Any] = {"images": images, "labels": labels, "radii": np.array(radii, dtype=np.float64)}
    for number, (weight, bias) in enumerate(network_layers):
        arrays |= {f"weight{number}": weight, f"bias{number}": bias}
    with tempfile.TemporaryDirectory(prefix="qrobust-lirpa-") as folder:
        path = Path(folder) / "question.npz"
        np.savez(path, **arrays)
        settings = {"seconds": seconds, "batch": batch, "single": single}
        return [_ask(path, {"method": method, **settings}, seconds) for method in methods]


def _ask(path: Path, settings: dict[str, Any], seconds: float) -> Certified:
    """Run one method in a process of its own."""
    command = [os.environ[VARIABLE], "-P", str(Path(__file__)), str(path), json.dumps(settings)]
    method = settings["method"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + STARTING, check=False)
    except OSError as error:
        sys.exit(f"{VARIABLE} names no interpreter that runs: {error.strerror}")
    except subprocess.TimeoutExpired as late:
        text = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        return _last(text, Certified(method, 0, 0, 0.0, f"not one batch done in {seconds + STARTING:g} s"))
    errors = [line for line in done.stderr.splitlines() if "Error" in line or "error" in line]
    fault = Certified(method, 0, 0, 0.0, (errors or [f"its process ended with status {done.returncode}"])[-1])
    return _last(done.stdout, fault) if done.returncode == 0 else fault


def _last(text: str, otherwise: Certified) -> Certified:
    """Read the last whole line that the peer printed: it prints one after each batch."""
    lines = text.split("\n")[:-1]
    return Certified(**json.loads(lines[-1])) if lines else otherwise


def run(path: str, settings: dict[str, Any]) -> Iterator[Certified]:
    """Run in the peer's environment: bound the margins of the images of a file, and yield what is done after each batch."""
    warnings.simplefilter("ignore")
    torch, utils = import_module("torch"), import_module("auto_LiRPA.utils")
    torch.set_default_dtype(torch.float32 if settings["single"] else torch.float64)
    with np.load(path) as file:
        question = {name: file[name] for name in file.files}
    images = torch.tensor(question["images"], dtype=torch.get_default_dtype())
    labels = torch.tensor(question["labels"], dtype=torch.long)
    size, method = min(settings["batch"], len(images)), settings["method"]
    model = _bounded(torch, question, images[:size])
    # What is done once is left out of the time.
    _margins(model, utils, images[:size], labels[:size], "CROWN" if method == "CROWN-Optimized" else method)
    asked = found = 0
    started = time.perf_counter()
    for first in range(0, len(images), size):
        here = slice(first, first + size)
        lower = _margins(model, utils, images[here], labels[here], method)
        found += int((lower > 0).all(dim=1).sum())
        asked += len(lower)
        taken = time.perf_counter() - started
        yield Certified(method, asked, found, taken / asked)
        if taken > settings["seconds"]:
            break


def _bounded(torch: Any, question: dict[str, Any], images: Any) -> Any:
    """Return a BoundedModule whose weights and biases are perturbed within their radii."""
    lirpa, perturbations = import_module("auto_LiRPA"), import_module("auto_LiRPA.perturbations")
    modules: list[Any] = []
    for number, pair in enumerate(question["radii"].tolist()):
        weight = question[f"weight{number}"]
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        for name, radius in zip(("weight", "bias"), pair, strict=True):
            values = torch.tensor(question[f"{name}{number}"], dtype=torch.get_default_dtype())
            ball = perturbations.PerturbationLpNorm(norm=np.inf, eps=radius)
            setattr(linear, name, lirpa.BoundedParameter(values, ball) if radius else torch.nn.Parameter(values))
        modules += [torch.nn.ReLU(), linear] if modules else [linear]
    options = dict.fromkeys(
        ("sparse_intermediate_bounds", "sparse_conv_intermediate_bounds", "sparse_intermediate_bounds_with_ibp"), False
    )
    return lirpa.BoundedModule(torch.nn.Sequential(*modules).eval(), images, bound_opts=options, device="cpu")


def _margins(model: Any, utils: Any, images: Any, labels: Any, method: str) -> Any:
    """Return lower bounds of the label's logit minus every other one. Shape: (images, classes - 1)."""
    torch = import_module("torch")
    classes = model(images).shape[1]
    rows = utils.get_spec_matrix(images, labels, classes).to(images)
    with torch.enable_grad() if method == "CROWN-Optimized" else torch.no_grad():
        lower, _ = model.compute_bounds(x=(images,), C=rows, method=method, bound_upper=False)
    return lower.detach()


def comparison(names: Sequence[str], bits: int, count: int, seconds: float, batch: int = 1) -> Iterator[tuple[Any, ...]]:
    """Yield (network, method, batch, asked, certified, seconds an image, fault), qrobust's linear bounds first."""
    from benchmarks.networks import mnist_images, trained
    from qrobust.backends.deep import screen_labels
    from qrobust.leads import Leads
    from qrobust.perturbations import HalfStep
    from qrobust.queries import HALF

    images = mnist_images(count)
    for name in names:
        network = trained(name)
        box, leads = HalfStep(bits).around(network), Leads(network, HALF)
        screen_labels(leads, box, images[:batch])
        started = time.perf_counter()
        safe = [screen_labels(leads, box, images[i : i + batch]) for i in range(0, count, batch)]
        taken = (time.perf_counter() - started) / count
        yield name, "qrobust, linear bounds at the root", batch, count, int(np.concatenate(safe).sum()), taken, ""
        layers = [(layer.weight, layer.bias) for layer in network.layers]
        pairs = [(bounds.weight.interval.upper, bounds.bias.interval.upper) for bounds in box.layers]
        radii = [
            (float((w - layer.weight).max()), float((b - layer.bias).max()))
            for layer, (w, b) in zip(network.layers, pairs, strict=True)
        ]
        labels = np.asarray(network.labels(images), dtype=np.int64)
        methods = METHODS if batch == 1 else METHODS[:-1]  # ten images at a time took the last more than 20 GiB
        for done in certified(layers, radii, images, labels, seconds, methods=methods, batch=batch):
            yield name, f"auto_LiRPA {done.method}", batch, done.asked, done.certified, done.seconds, done.fault


def main() -> None:
    """Answer one question (in the peer's environment: a file and settings), or print the table of MNIST networks."""
    if len(sys.argv) == 3:
        for done in run(sys.argv[1], json.loads(sys.argv[2])):
            print(json.dumps(asdict(done)), flush=True)
        return
    print("| network | method | images at a time | asked | certified | s an image | fault |\n|---|---|---|---|---|---|---|")
    for batch in (1, 10):
        for *words, taken, fault in comparison(("mnist_2x100", "mnist_3x100"), 8, 100, 60.0, batch):
            print("| " + " | ".join(map(str, [*words, f"{taken:.4g}", fault])) + " |", flush=True)


if __name__ == "__main__":
    main()
