"""Makes the Keras files of this folder and records what Keras computes: run by hand, with TensorFlow 2.21 and Keras 3.15.

python tests/data/make_keras.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

FOLDER = Path(__file__).parent


def dense() -> Any:
    model = keras.Sequential(
        [layers.Input((5,)), layers.Dense(7), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.5)]
    )
    model.add(layers.Dense(4, activation="tanh", use_bias=False))
    model.add(layers.Dense(3, activation="softmax"))
    return model


def images() -> Any:
    return keras.Sequential(
        [
            layers.Input((9, 8, 2)),
            layers.Conv2D(3, (3, 2), strides=(2, 1), padding="same", use_bias=False),
            layers.BatchNormalization(scale=False),
            layers.Activation("relu"),
            layers.MaxPooling2D((2, 2)),
            layers.Conv2D(4, 2, activation="sigmoid"),
            layers.Flatten(),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


def scaled() -> Any:
    """Inputs are multiplied, moved, and normalized by weights that are no powers of two."""
    model = keras.Sequential([layers.Input((5,)), layers.Rescaling(1 / 255, offset=-0.5), layers.Normalization()])
    model.add(layers.Dense(4, activation="relu"))
    model.add(layers.Dense(3, activation="softmax"))
    return model


def scaled_images() -> Any:
    return keras.Sequential(
        [
            layers.Input((6, 5, 2)),
            layers.Normalization(mean=[0.1, -0.2], variance=[0.3, 2.5]),
            layers.Rescaling([1 / 3, 0.7], offset=[0.25, 1 / 9]),
            layers.Conv2D(3, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(1, activation="sigmoid"),
        ]
    )


MODELS = {"dense": dense, "images": images, "scaled": scaled, "scaled_images": scaled_images}


def main() -> None:
    """Write each model in both formats, and 20 inputs with Keras's outputs."""
    recorded = {}
    for name, build in MODELS.items():
        keras.utils.set_random_seed(1)
        model = build()
        rng = np.random.default_rng(0)
        for weights in model.weights:
            if "count" in weights.path:
                continue
            values = rng.normal(size=weights.shape)
            weights.assign(np.abs(values) + 0.5 if "variance" in weights.path else values)
        for layer in model.layers:
            if isinstance(layer, layers.Normalization) and layer.weights:
                layer.finalize_state()  # takes in the mean and the variance that were assigned
        inputs = rng.normal(size=(20, *model.input_shape[1:])).astype(np.float32)
        recorded[name] = {"inputs": inputs.tolist(), "outputs": np.asarray(model(inputs)).tolist()}
        model.save(FOLDER / f"{name}.keras")
        model.save(FOLDER / f"{name}.h5")
    (FOLDER / "keras.json").write_text(json.dumps(recorded))


if __name__ == "__main__":
    main()
