"""scikit-learn classifiers: MLPClassifier and LogisticRegression, live, from skops files, or from joblib files.

A Pipeline that scales before one of them is read with its scaling in exact rationals: StandardScaler, MinMaxScaler,
MaxAbsScaler and RobustScaler.

A joblib file is a pickle, and reading a pickle runs code that the file chooses; so it takes an explicit `trust_pickle`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qrobust.errors import BackendUnavailableError, ModelFileError, QRobustError, UnsupportedError
from qrobust.files import read_bytes
from qrobust.formats.chain import scaled_inputs
from qrobust.formats.untrusted import check_archive, one_line, parsing
from qrobust.network import Activation, Dense, Feature, Network, Output, Scaling

ACTIVATIONS = {
    "identity": Activation.LINEAR,
    "relu": Activation.RELU,
    "logistic": Activation.SIGMOID,
    "tanh": Activation.TANH,
}
# What each scaler does, in order, with which of its attributes, if a setting says so.
SCALERS = {
    "StandardScaler": (("Sub", "mean_", "with_mean"), ("Div", "scale_", "with_std")),
    "MinMaxScaler": (("Mul", "scale_", None), ("Add", "min_", None)),
    "MaxAbsScaler": (("Div", "scale_", None),),
    "RobustScaler": (("Sub", "center_", "with_centering"), ("Div", "scale_", "with_scaling")),
}
# What an MLPClassifier carries besides plain numbers; skops loads no other class that it does not itself trust.
TRUSTED_TYPES = (
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
)


def from_sklearn(estimator: Any, *, name: str = "", features: Sequence[Feature] = (), classes: Sequence[str] = ()) -> Network:
    """Return the network that a fitted MLPClassifier, LogisticRegression, or Pipeline of scalers and one of them computes.

    The label convention agrees with scikit-learn's predict: class 1 iff the confidence is above 1/2.
    Raises    UnsupportedError if the estimator is of another class, not fitted, or multi-label
    """
    kind = type(estimator).__name__
    try:
        if kind == "Pipeline":
            return _from_pipeline(estimator, name, tuple(features), tuple(classes))
        return _from_fitted(estimator, kind, name, tuple(features), tuple(classes))
    except (KeyError, ValueError, AttributeError, TypeError, IndexError) as error:
        if isinstance(error, QRobustError):
            raise
        raise UnsupportedError(f"this {kind} has attributes that no fitted one has ({one_line(str(error), 80)})") from None


def _from_pipeline(pipeline: Any, name: str, features: tuple[Feature, ...], classes: tuple[str, ...]) -> Network:
    steps = [(label, step) for label, step in pipeline.steps if step is not None and step != "passthrough"]
    (_, last), before = steps[-1], steps[:-1]
    core = from_sklearn(last, name=name, classes=classes)
    scaling: Scaling | None = None
    for label, step in before:
        kind = type(step).__name__
        if kind not in SCALERS or getattr(step, "clip", False):
            known = f"a {kind} that clips" if kind in SCALERS else f"step {label!r} of class {kind}"
            raise UnsupportedError(f"{known} cannot be represented, only {', '.join(SCALERS)}")
        for operation, attribute, setting in SCALERS[kind]:
            if setting is None or getattr(step, setting):
                values = np.asarray(getattr(step, attribute), dtype=np.float64)
                scaling = scaled_inputs(scaling, core.inputs, operation, values)
    layers = core.layers if scaling is None else (scaling, *core.layers)
    return Network(layers, core.output, core.name, features, core.classes)


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
        raise UnsupportedError(
            f"{kind} cannot be read: give a fitted MLPClassifier or LogisticRegression, or a Pipeline of scalers and one"
        )
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
