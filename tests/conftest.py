"""Options and fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from qrobust.network import Activation, Dense, Network, Output

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shared-data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="folder with athletes.csv, which is not kept in the project (default: ../shared/data)",
    )


@pytest.fixture(scope="session")
def athletes_path(request: pytest.FixtureRequest) -> Path:
    """The athletes table with three columns, outside the repository."""
    path: Path = request.config.getoption("--shared-data") / "athletes.csv"
    if not path.is_file():
        pytest.skip(f"needs the athletes table at {path}: name its folder with --shared-data")
    return path


@pytest.fixture(scope="session")
def shared_bench(request: pytest.FixtureRequest) -> Path:
    """Networks made elsewhere, outside the repository."""
    path: Path = request.config.getoption("--shared-data") / "bench"
    if not path.is_dir():
        pytest.skip(f"needs the networks at {path}: name the folder above with --shared-data")
    return path


@pytest.fixture(scope="session")
def acas_xu(request: pytest.FixtureRequest) -> Path:
    """The folder of ACAS Xu networks and their float16 copies, outside the repository."""
    path: Path = request.config.getoption("--shared-data") / "bench" / "acasxu"
    if not path.is_dir():
        pytest.skip(f"needs the ACAS Xu networks at {path}: name the folder above bench with --shared-data")
    return path


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of trained networks."""
    return ROOT / "models"


@pytest.fixture
def cat() -> Network:
    """The paper's logistic regression on two inputs."""
    return Network((Dense(np.array([[0.07577862, 1.18118408]]), np.array([-3.51518067])),), Output.SIGMOID)


RandomNetwork = Callable[..., Network]


@pytest.fixture(scope="session")
def random_network() -> RandomNetwork:
    """A function of a generator, sizes (inputs first, logits last) and the hidden layers' activation."""

    def build(rng: np.random.Generator, sizes: Sequence[int], activation: Activation = Activation.RELU) -> Network:
        last = len(sizes) - 2
        layers = tuple(
            Dense(
                rng.normal(size=(outputs, inputs)),
                rng.normal(size=outputs),
                Activation.LINEAR if number == last else activation,
            )
            for number, (inputs, outputs) in enumerate(pairwise(sizes))
        )
        return Network(layers, Output.SIGMOID if sizes[-1] == 1 else Output.SOFTMAX)

    return build
