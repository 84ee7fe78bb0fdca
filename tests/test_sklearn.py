"""scikit-learn's classifiers: live, from skops files, and from joblib files that are trusted."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor

from qrobust import formats
from qrobust.errors import QRobustError, UnsupportedError
from qrobust.formats import from_sklearn
from qrobust.network import Network
from tests.damage import flipped, packed, refusal, survives

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(200, 3))
TWO = (INPUTS @ [1.0, -2.0, 0.5] + 0.3 * RNG.normal(size=200) > 0).astype(int)
THREE = np.digitize(INPUTS @ [1.0, 1.0, -1.0], [-0.7, 0.7])
POINTS = RNG.normal(size=(100, 3)) * 5


def fitted(kind: str, labels: Any, activation: str = "relu") -> Any:
    if kind == "logistic":
        return LogisticRegression().fit(INPUTS, labels)
    return MLPClassifier((4, 3), activation=activation, solver="lbfgs", max_iter=60, random_state=0).fit(INPUTS, labels)


def assert_same(network: Network, estimator: Any) -> None:
    """Compare with predict_proba at random points, to 1e-12 relatively, and with predict."""
    expected = estimator.predict_proba(POINTS)
    found = network.confidences(POINTS)
    np.testing.assert_allclose(found, expected[:, 1:] if found.shape[1] == 1 else expected, rtol=1e-12, atol=1e-300)
    assert len(set(estimator.predict(POINTS))) == network.class_count
    np.testing.assert_array_equal(estimator.classes_[network.labels(POINTS)], estimator.predict(POINTS))


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
@pytest.mark.parametrize("labels", [TWO, THREE], ids=["two classes", "three classes"])
@pytest.mark.parametrize("kind", ["logistic", "identity", "relu", "logistic units", "tanh"])
def test_live_classifiers(kind: str, labels: Any) -> None:
    estimator = fitted("logistic" if kind == "logistic" else "mlp", labels, kind.split()[0])
    assert_same(from_sklearn(estimator), estimator)


def test_names_of_classes_come_along() -> None:
    estimator = LogisticRegression().fit(INPUTS, np.array(["no", "yes"])[TWO])
    assert from_sklearn(estimator).classes == ("no", "yes")
    assert from_sklearn(estimator, name="mine", classes=("a", "b")).classes == ("a", "b")
    assert from_sklearn(estimator, name="mine").name == "mine"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        lambda: MLPClassifier((2,)),
        lambda: LogisticRegression(),
        lambda: LinearRegression().fit(INPUTS, TWO),
        lambda: MLPRegressor(hidden_layer_sizes=(2,), max_iter=5).fit(INPUTS, TWO),
        lambda: MLPClassifier((2,), max_iter=5).fit(INPUTS, np.eye(3, dtype=int)[THREE] | np.eye(3, dtype=int)[0]),
        lambda: None,
        lambda: {"coef_": 3},
    ],
    ids=["not fitted", "not fitted either", "regression", "regressor", "several labels a row", "nothing", "a dict"],
)
def test_what_is_no_classifier_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        from_sklearn(make())
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def classifier() -> Any:
    return MLPClassifier((4,), max_iter=30, random_state=0, early_stopping=False).fit(INPUTS, THREE)


@pytest.mark.filterwarnings("ignore")
def test_skops_files(classifier: Any, tmp_path: Path) -> None:
    from skops import io as skops

    for estimator in (classifier, fitted("logistic", TWO), fitted("mlp", TWO)):
        skops.dump(estimator, tmp_path / "m.skops")
        network = formats.load(tmp_path / "m.skops")
        assert_same(network, estimator)
        assert network == from_sklearn(estimator)
        assert network.name == "m"


@pytest.mark.filterwarnings("ignore")
def test_damaged_skops_files_are_refused(classifier: Any, tmp_path: Path) -> None:
    from skops import io as skops

    content = skops.dumps(classifier)
    for share in (0.01, 0.3, 0.7, 0.99):
        refusal(tmp_path / "m.skops", content[: int(share * len(content))])
    refusal(tmp_path / "m.skops", packed({"schema.json": b"{}"}))
    refusal(tmp_path / "m.skops", packed({"other": b"x"}))
    refusal(tmp_path / "m.skops", packed({"schema.json": b"[" * 100_000}))
    refusal(tmp_path / "m.skops", skops.dumps({"a": 1}))
    refusal(tmp_path / "m.skops", skops.dumps(LinearRegression().fit(INPUTS, TWO)))


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    content = packed({"schema.json": b" " * 100_000_000, "1.npy": bytes(100_000_000)}, zipfile.ZIP_DEFLATED)
    assert len(content) < 10**6
    assert "it unpacks to 200,000,000 bytes" in refusal(tmp_path / "m.skops", content)


@pytest.mark.filterwarnings("ignore")
def test_skops_files_that_name_other_code_are_refused(classifier: Any, tmp_path: Path) -> None:
    from skops import io as skops

    with zipfile.ZipFile(io.BytesIO(skops.dumps(classifier))) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    schema = (
        contents["schema.json"]
        .replace(b'"AdamOptimizer"', b'"Popen"')
        .replace(b'"sklearn.neural_network._stochastic_optimizers"', b'"subprocess"')
    )
    assert schema != contents["schema.json"]
    assert "not trusted" in refusal(tmp_path / "m.skops", packed(contents | {"schema.json": schema}))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(4))
def test_no_flipped_byte_of_a_skops_file_gives_a_traceback(classifier: Any, seed: int, tmp_path: Path) -> None:
    from skops import io as skops

    content = skops.dumps(classifier, compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    read = 0
    for number in range(40):
        schema = flipped(contents["schema.json"], 1000 * seed + number)
        read += survives(tmp_path / "m.skops", flipped(content, 1000 * seed + number))
        read += survives(tmp_path / "m.skops", packed(contents | {"schema.json": schema}))
    assert read < 80


def test_joblib_files_only_for_those_who_trust_them(classifier: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.joblib"
    joblib.dump(classifier, path)
    assert "--trust-pickle" in refusal(path)
    assert formats.load(path, trust_pickle=True) == from_sklearn(classifier)


class Runs:
    """A pickle of this writes a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "ran"))


def test_a_pickle_that_is_not_trusted_runs_nothing(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    joblib.dump(Runs(proof), tmp_path / "m.joblib")
    refusal(tmp_path / "m.joblib")
    assert not proof.exists()
    refusal(tmp_path / "m.joblib", trust_pickle=True)
    assert proof.exists()


@pytest.mark.parametrize("holds", [np.zeros(3), {"a": 1}, [1], 3, "text", None])
def test_a_joblib_file_of_something_else_is_refused(holds: Any, tmp_path: Path) -> None:
    joblib.dump(holds, tmp_path / "m.joblib")
    refusal(tmp_path / "m.joblib", trust_pickle=True)


def test_a_damaged_joblib_file_is_refused(classifier: Any, tmp_path: Path) -> None:
    joblib.dump(classifier, tmp_path / "m.joblib")
    content = (tmp_path / "m.joblib").read_bytes()
    for share in (0.01, 0.5, 0.99):
        refusal(tmp_path / "m.joblib", content[: int(share * len(content))], trust_pickle=True)
    refusal(tmp_path / "m.joblib", b"not a pickle", trust_pickle=True)


BROKEN_ATTRIBUTES: dict[str, Any] = {
    "NaN weights": {"coefs_": [np.full((3, 4), np.nan), np.zeros((4, 3))]},
    "weights that do not fit": {"coefs_": [np.zeros((3, 4)), np.zeros((5, 3))]},
    "one bias array": {"intercepts_": [np.zeros(4)]},
    "weights of text": {"coefs_": "abc"},
    "no weights": {"coefs_": []},
    "another activation": {"activation": "softplus"},
    "an activation of a number": {"activation": 3},
    "classes a number": {"classes_": 3},
    "too many classes": {"classes_": np.arange(5)},
}


@pytest.mark.parametrize("name", BROKEN_ATTRIBUTES)
def test_a_classifier_with_broken_attributes_is_refused(name: str, classifier: Any, tmp_path: Path) -> None:
    from skops import io as skops

    broken = MLPClassifier()
    broken.__dict__.update(classifier.__dict__)
    broken.__dict__.update(BROKEN_ATTRIBUTES[name])
    skops.dump(broken, tmp_path / "m.skops")
    with pytest.raises(QRobustError) as caught:
        formats.load(tmp_path / "m.skops")
    assert "m.skops" in str(caught.value)
    assert "\n" not in str(caught.value)
