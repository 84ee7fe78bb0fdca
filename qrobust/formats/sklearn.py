"""scikit-learn classifiers: MLPClassifier and LogisticRegression, live, from skops files, or from joblib files.

A joblib file is a pickle, and reading a pickle runs code that the file chooses; so it takes an explicit `trust_pickle`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.errors import BackendUnavailableError, ModelFileError, UnsupportedError
from qrobust.files import read_bytes
from qrobust.network import Activation, Dense, Feature, Network, Output

ACTIVATIONS = {
    "identity": Activation.LINEAR,
    "relu": Activation.RELU,
    "logistic": Activation.SIGMOID,
    "tanh": Activation.TANH,
}
# What an MLPClassifier carries besides plain numbers; skops loads no other class that it does not itself trust.
TRUSTED_TYPES = (
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
)


def from_sklearn(estimator: Any, *, name: str = "", features: Sequence[Feature] = (), classes: Sequence[str] = ()) -> Network:
    """Return the network that a fitted MLPClassifier or LogisticRegression computes.

    The label convention agrees with scikit-learn's predict: class 1 iff the confidence is above 1/2.
    Raises    UnsupportedError if the estimator is of another class, not fitted, or multi-label
    """
    kind = type(estimator).__name__
    names = tuple(classes) or tuple(str(label) for label in getattr(estimator, "classes_", ()))
    if kind == "LogisticRegression" and hasattr(estimator, "coef_"):
        if estimator.solver == "liblinear" and len(estimator.classes_) > 2:
            raise UnsupportedError("LogisticRegression by liblinear with 3 classes is one-vs-rest, not a softmax")
        layers: tuple[Dense, ...] = (Dense(estimator.coef_, estimator.intercept_),)
    elif kind == "MLPClassifier" and hasattr(estimator, "coefs_"):
        hidden = ACTIVATIONS[estimator.activation]
        activations = [hidden] * (len(estimator.coefs_) - 1) + [Activation.LINEAR]
        layers = tuple(
            Dense(weight.T, bias, activation)
            for weight, bias, activation in zip(estimator.coefs_, estimator.intercepts_, activations, strict=True)
        )
        if estimator.out_activation_ == "logistic" and layers[-1].outputs > 1:
            raise UnsupportedError("a multi-label MLPClassifier has no single label: fit one network a label")
    else:
        raise UnsupportedError(f"{kind} cannot be read: give a fitted MLPClassifier or LogisticRegression")
    output = Output.SIGMOID if layers[-1].outputs == 1 else Output.SOFTMAX
    return Network(layers, output, name=name or kind, features=tuple(features), classes=names)


def read_skops(path: Path | str) -> Network:
    """Read a classifier from a skops file, which runs no code. Raises ModelFileError, BackendUnavailableError."""
    content = read_bytes(path)
    try:
        from skops import io
        from skops.io.exceptions import UntrustedTypesFoundException
    except ImportError:
        raise BackendUnavailableError("reading .skops files needs `pip install qrobust[skops]`") from None
    try:
        estimator = io.loads(content, trusted=list(TRUSTED_TYPES))
    except UntrustedTypesFoundException as error:
        raise ModelFileError(f"{path} holds objects of types that are not trusted ({str(error)[:100]})") from None
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError, OSError, AttributeError) as error:
        raise ModelFileError(f"{path} is not a whole .skops file ({str(error)[:80]}): save it again") from None
    return from_sklearn(estimator, name=Path(path).stem)


def read_joblib(path: Path | str, *, trust_pickle: bool = False) -> Network:
    """Read a classifier from a joblib file, if the caller trusts the code in it. Raises ModelFileError."""
    read_bytes(path)
    if not trust_pickle:
        raise ModelFileError(
            f"{path} is a pickle, and reading one runs code from the file: pass --trust-pickle if you made it, or use skops"
        )
    import joblib

    try:
        estimator = joblib.load(path)
    except Exception as error:  # whatever a pickle raises, the file is not usable; nothing is carried on
        raise ModelFileError(f"{path} cannot be unpickled ({str(error)[:80]}): save it again") from None
    if isinstance(estimator, np.ndarray | dict | list):
        raise ModelFileError(f"{path} holds a {type(estimator).__name__}, not a classifier")
    return from_sklearn(estimator, name=Path(path).stem)
