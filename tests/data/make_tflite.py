"""Write the `.tflite` files of the tests: small models with random weights, converted by TensorFlow.

    python -m tests.data.make_tflite

Needs `pip install qrobust[tensorflow]`; the tests need its files alone. Each file's float twin is `<stem>_float.tflite`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qrobust.files import write_whole

FOLDER = Path(__file__).parent / "tflite"
SAMPLES = 200
FURTHER = {
    "wide": ["dynamic", "fp16"],
    "convolution": ["dynamic", "fp16", "int8_tensor"],
    "grouped": ["int16_bias32"],
    "classes": ["int8_floats", "uint8", "int8_tensor", "int16_bias32"],
}
Samples = npt.NDArray[np.float32]


def models(keras: Any) -> dict[str, Any]:
    """The models by the stems of their files; the random weights come from Keras's seed."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    image = (8, 8, 2)
    return {
        "binary": [keras.Input((2,)), layers.Dense(6, "relu"), layers.Dense(1, "sigmoid")],
        "tanh": [keras.Input((5,)), layers.Dense(7, "tanh"), layers.Dense(4, "sigmoid"), layers.Dense(3, "softmax")],
        "classes": [keras.Input((6,)), layers.Dense(16, "relu6"), layers.Dense(10, "softmax")],
        "wide": [keras.Input((70,)), layers.Dense(40, "relu"), layers.Dense(9, "relu"), layers.Dense(5, "softmax")],
        "convolution": [
            keras.Input(image),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2),
            layers.ReLU(),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(4, "softmax"),
        ],
        "grouped": [
            keras.Input((6, 6, 4)),
            layers.Conv2D(6, 3, strides=2, groups=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(3, "softmax"),
        ],
        "pooling": [
            keras.Input((9, 7, 3)),
            layers.Conv2D(5, (3, 2), strides=(2, 1), padding="valid", activation="relu"),
            layers.MaxPooling2D(2, strides=1),
            layers.Conv2D(3, 2, padding="same"),
            layers.MaxPooling2D((3, 2)),
            layers.Flatten(),
            layers.Dense(1, "sigmoid"),
        ],
    }


def samples(shape: tuple[int, ...], seed: int = 0) -> Samples:
    """Inputs between -1 and 3 to calibrate with."""
    return np.random.default_rng(seed).uniform(-1, 3, (SAMPLES, *shape)).astype(np.float32)


def representative(inputs: Samples) -> Callable[[], Iterator[list[Samples]]]:
    """Return the generator that TensorFlow's converter calibrates with."""
    return lambda: ([row[None]] for row in inputs)


def convert(tensorflow: Any, model: Any, inputs: Samples, kind: str) -> bytes:
    """Return a model's file, of a kind.

    Accepts   float, fp16, dynamic (range), int8, int8_floats (between float ends), int8_tensor (one scale a tensor of
              weights), uint8, int16, int16_bias32 (biases of 32 bits)
    """
    lite = tensorflow.lite
    converter = lite.TFLiteConverter.from_keras_model(model)
    if kind != "float":
        converter.optimizations = [lite.Optimize.DEFAULT]
    if kind == "fp16":
        converter.target_spec.supported_types = [tensorflow.float16]
    if kind.startswith(("int", "uint")):
        converter.representative_dataset = representative(inputs)
        wanted = "TFLITE_BUILTINS_INT8"
        if kind.startswith("int16"):
            wanted = "EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8"
        converter.target_spec.supported_ops = [getattr(lite.OpsSet, wanted)]
        if kind != "int8_floats":
            converter.inference_input_type = converter.inference_output_type = getattr(tensorflow, kind.split("_")[0])
        converter._experimental_disable_per_channel = kind == "int8_tensor"
        if kind == "int16_bias32":
            converter._experimental_full_integer_quantization_bias_type = tensorflow.int32
    return bytes(converter.convert())


def main() -> None:
    """Write every file."""
    import keras
    import tensorflow

    FOLDER.mkdir(exist_ok=True)
    for stem, layers in models(keras).items():
        model = keras.Sequential(layers)
        rng = np.random.default_rng(len(stem))
        for layer in model.layers:  # biases of zero would hide a mistake
            values = layer.get_weights()
            layer.set_weights([v if v.ndim > 1 else rng.normal(0, 0.4, v.shape).astype(np.float32) for v in values])
        inputs = samples(tuple(model.input_shape[1:]))
        kinds = ["float", "int8", "int16"]
        kinds += FURTHER.get(stem, [])
        for kind in kinds:
            content = convert(tensorflow, model, inputs, kind)
            write_whole(FOLDER / f"{stem}_{kind}.tflite", content)
            print(f"{stem}_{kind}.tflite: {len(content):,} bytes", flush=True)


if __name__ == "__main__":
    main()
