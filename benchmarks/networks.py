"""Networks and images of the benchmarks: the project's own, and those of the shared folder, which are read from there."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import numpy as np

from qrobust.formats import load
from qrobust.interval import FloatArray
from qrobust.network import Network

MODELS = Path(__file__).parent.parent / "models"


def shared_folder() -> Path:
    """The folder of networks and images made elsewhere: QROBUST_SHARED_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("QROBUST_SHARED_DATA", Path(__file__).parent.parent.parent / "shared" / "data")) / "bench"
    if not folder.is_dir():
        sys.exit(f"the benchmark needs the folder {folder}: name its parent with QROBUST_SHARED_DATA")
    return folder


def mnist_images(count: int = 100) -> FloatArray:
    """The first test images of MNIST, pixels / 255. Shape: (count, 784)."""
    content = gzip.decompress((shared_folder() / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
    images: FloatArray = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 784)[:count] / 255
    return images


def fanc_images() -> FloatArray:
    """The 100 images that FANC uses, pixels / 255. Shape: (100, 784)."""
    table = np.loadtxt(shared_folder() / "fanc" / "mnist_test.csv", delimiter=",")
    images: FloatArray = table[:, 1:] / 255
    return images


def trained(name: str) -> Network:
    """One of the project's own networks."""
    path = MODELS / f"{name}.keras"
    return load(path if path.exists() else MODELS / f"{name}.json")


def fanc(name: str) -> Network:
    """A network of FANC: convolutions and dense layers with ReLU, ten logits."""
    return load(shared_folder() / "fanc" / f"{name}.onnx")
