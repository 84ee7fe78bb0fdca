"""scikit-learn classifiers: MLPClassifier and LogisticRegression, live, from skops files, or from joblib files.

A joblib file is a pickle, and reading a pickle runs code that the file chooses; so it takes an explicit `trust_pickle`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qrobust.errors import BackendUnavailableError, ModelFileError, QRobustError, UnsupportedError
from qrobust.files import read_bytes
from qrobust.formats.untrusted import check_archive, one_line, parsing
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
    try:
        return _from_fitted(estimator, kind, name, tuple(features), tuple(classes))
    except (KeyError, ValueError, AttributeError, TypeError, IndexError) as error:
        if isinstance(error, QRobustError):
            raise
        raise UnsupportedError(f"this {kind} has attributes that no fitted one has ({one_line(str(error), 80)})") from None


def _from_fitted(estimator: Any, kind: str, name: str, features: tuple[Feature, ...], classes: tuple[str, ...]) -> Network:
    names = classes or tuple(str(label) for label in getattr(estimator, "classes_", ()))
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
    return Network(layers, output, name=name or kind, features=features, classes=names)


def read_skops(path: Path | str) -> Network:
    """Read a classifier from a skops file, which runs no code. Raises ModelFileError, BackendUnavailableError."""
    content = read_bytes(path)
    try:
        from skops.io import loads
        from skops.io.exceptions import UntrustedTypesFoundException
    except ImportError:
        raise BackendUnavailableError("reading .skops files needs `pip install qrobust[skops]`") from None
    with parsing(path, ".skops"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            check_archive(archive)
        try:
            estimator = loads(content, trusted=list(TRUSTED_TYPES))
        except UntrustedTypesFoundException as error:
            raise ModelFileError(f"it holds objects of types that are not trusted ({one_line(str(error), 100)})") from None
        return from_sklearn(estimator, name=Path(path).stem)


def read_joblib(path: Path | str, *, trust_pickle: bool = False) -> Network:
    """Read a classifier from a joblib file, if the caller trusts the code in it. Raises ModelFileError."""
    read_bytes(path)
    if not trust_pickle:
        raise ModelFileError(
            f"{path} is a pickle, and reading one runs code from the file: pass --trust-pickle if you made it, or use skops"
        )
    import joblib

    with parsing(path, ".joblib"):
        return from_sklearn(joblib.load(path), name=Path(path).stem)
