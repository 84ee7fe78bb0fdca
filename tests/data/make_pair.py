"""Write a Keras model that scales its inputs, and the int8 `.tflite` file that TensorFlow makes of it.

    python -m tests.data.make_pair

Needs `pip install qrobust[tensorflow]`; the tests need its files alone. The converter folds the scaling into the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qrobust.files import write_whole
from tests.data.make_tflite import FOLDER, SAMPLES, convert

MOST = 255.0  # of an input


def pair(keras: Any) -> Any:
    """Two inputs from 0 to 255, six ReLU, one sigmoid."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((2,)), layers.Rescaling(1 / MOST), layers.Dense(6, "relu"), layers.Dense(1, "sigmoid")]
    )
    rng = np.random.default_rng(1)
    for layer in model.layers:
        values = layer.get_weights()
        layer.set_weights([2 * v if v.ndim > 1 else rng.normal(0, 0.4, v.shape).astype(np.float32) for v in values])
    return model


def main() -> None:
    """Write both files."""
    import keras
    import tensorflow

    model = pair(keras)
    inputs = np.random.default_rng(0).uniform(0, MOST, (SAMPLES, 2)).astype(np.float32)
    model.save(FOLDER.parent / "scaled_pair.keras")
    write_whole(FOLDER.parent / "scaled_pair.tflite", convert(tensorflow, model, inputs, "int8"))


if __name__ == "__main__":
    main()
