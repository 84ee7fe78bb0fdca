"""`.tflite` files beside LiteRT: float models to 1e-6, integer programs bit for bit, under both of its sets of kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from qrobust import formats
from qrobust.comparison import on_grid
from qrobust.integer.any_kernel import IntegerInterval
from qrobust.integer.any_kernel import run as run_any
from qrobust.integer.kernels import run
from qrobust.integer.program import IntegerProgram, Kernels
from tests.litert import FILES, run_litert, with_random_numbers

FLOATS = (
    "binary_float",
    "tanh_float",
    "wide_float",
    "convolution_float",
    "grouped_float",
    "pooling_float",
    "wide_fp16",
    "convolution_fp16",
)
INTEGERS = (*sorted(path.stem for path in FILES.glob("*_int*.tflite")), "classes_uint8")
DENSE = ("binary_int8", "tanh_int8", "classes_int8", "classes_int8_tensor", "wide_int8")
RANDOM_XNNPACK = (*DENSE, "grouped_int8", "pooling_int8")  # average pools of XNNPACK are not taken
RANDOM = (*RANDOM_XNNPACK, "convolution_int8", "convolution_int8_tensor")
RANDOM_16 = tuple(sorted(path.stem for path in FILES.glob("*_int16*.tflite")))
POINTS = 3000


def integers(program: IntegerProgram, points: int = POINTS, seed: int = 0) -> npt.NDArray[np.int64]:
    """Random inputs, and all least, all greatest, all at the zero point, and random corners."""
    rng, encoding = np.random.default_rng(seed), program.input
    inside = rng.integers(encoding.least, encoding.greatest + 1, (points, program.inputs))
    corners = rng.choice([encoding.least, encoding.greatest], (200, program.inputs))
    ends = np.array([encoding.least, encoding.greatest, encoding.zero_point])[:, None] + np.zeros(
        (1, program.inputs), dtype=int
    )
    return np.concatenate([inside, corners, ends]).astype(np.int64)


def theirs(path: Path, program: IntegerProgram, x: npt.NDArray[np.int64], *, reference: bool = True) -> npt.NDArray[np.int64]:
    """LiteRT's results as integers."""
    inputs = program.input.real(x).astype(np.float32) if program.quantizes else x
    found = run_litert(path, inputs, reference=reference)
    if program.quantizes:
        found = np.rint(found / program.result.scale + program.result.zero_point)
    return found.astype(np.int64)


@pytest.mark.parametrize("stem", FLOATS)
def test_float_models_are_read_as_litert_computes(stem: str) -> None:
    path = FILES / f"{stem}.tflite"
    network = formats.load(path)
    x = np.random.default_rng(1).uniform(-1, 1, (500, network.inputs)).astype(np.float32)
    expected = run_litert(path, x)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(network.confidences(x.astype(np.float64)), expected, rtol=1e-6, atol=0)


def test_hybrid_kernels_compute_something_else() -> None:
    """Dynamic range: the stored weights are read exactly, the runtime rounds activations, too, so it differs from them."""
    path = FILES / "wide_dynamic.tflite"
    network = formats.load(path)
    x = np.random.default_rng(1).uniform(-1, 1, (500, network.inputs)).astype(np.float32)
    difference = np.abs(network.confidences(x.astype(np.float64)) - run_litert(path, x)).max()
    assert 1e-5 < difference < 0.05


@pytest.mark.parametrize("stem", INTEGERS)
def test_integer_programs_are_bit_for_bit_the_reference_kernels(stem: str) -> None:
    path = FILES / f"{stem}.tflite"
    program = formats.load_program(path)
    x = integers(program)
    expected = theirs(path, program, x)
    assert len(np.unique(expected)) > 50
    np.testing.assert_array_equal(run(program, x).values, expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stem", [*RANDOM, *RANDOM_16])
def test_random_programs_are_bit_for_bit_the_reference_kernels(stem: str, seed: int, tmp_path: Path) -> None:
    path = tmp_path / "random.tflite"
    path.write_bytes(with_random_numbers((FILES / f"{stem}.tflite").read_bytes(), seed))
    program = formats.load_program(path)
    assert program.sha256 != formats.load_program(FILES / f"{stem}.tflite").sha256
    x = integers(program, 1000, seed)
    expected = theirs(path, program, x)
    np.testing.assert_array_equal(run(program, x).values, expected)
    if stem in RANDOM:
        bounds = run_any(program, IntegerInterval.point(x))
        assert ((bounds.lower <= expected) & (expected <= bounds.upper)).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stem", RANDOM_XNNPACK)
def test_random_programs_are_bit_for_bit_xnnpack(stem: str, seed: int, tmp_path: Path) -> None:
    path = tmp_path / "random.tflite"
    path.write_bytes(with_random_numbers((FILES / f"{stem}.tflite").read_bytes(), seed))
    program = formats.load_program(path)
    x = integers(program, 1000, seed)
    expected = theirs(path, program, x, reference=False)
    np.testing.assert_array_equal(run(program, x, Kernels.XNNPACK).values, expected)
    bounds = run_any(program, IntegerInterval.point(x))
    assert ((bounds.lower <= expected) & (expected <= bounds.upper)).all()


@pytest.mark.parametrize("stem", [*[s for s in INTEGERS if "int16" not in s and not s.startswith("convolution")]])
def test_xnnpack_is_bit_for_bit(stem: str) -> None:
    path = FILES / f"{stem}.tflite"
    program = formats.load_program(path)
    x = integers(program)
    np.testing.assert_array_equal(run(program, x, Kernels.XNNPACK).values, theirs(path, program, x, reference=False))


def test_average_pools_of_xnnpack_lie_within_any_kernel() -> None:
    path = FILES / "convolution_int8.tflite"
    program = formats.load_program(path)
    x = integers(program)
    bounds, found = run_any(program, IntegerInterval.point(x)), theirs(path, program, x, reference=False)
    assert ((bounds.lower <= found) & (found <= bounds.upper)).all()


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("stem", ["cat_int8", "ath_relu_int8"])
def test_all_inputs_of_the_worked_examples(stem: str, reference: bool, models: Path) -> None:
    path = models / f"{stem}.tflite"
    program = formats.load_program(path)
    x = on_grid(program).integers
    assert len(x) == 65_536
    kernels = Kernels.REFERENCE if reference else Kernels.XNNPACK
    np.testing.assert_array_equal(run(program, x, kernels).values, theirs(path, program, x, reference=reference))


def test_real_inputs_become_integers_as_quantize_makes_them(tmp_path: Path) -> None:
    """At points around every boundary between two integers, and beyond the range."""
    path = FILES / "classes_int8_floats.tflite"
    program = formats.load_program(path)
    assert program.quantizes
    halves = program.input.scale * (np.arange(-130, 130) + 0.5 - program.input.zero_point)
    x = np.random.default_rng(2).choice(halves, (3000, program.inputs)).astype(np.float32)
    x *= np.random.default_rng(3).choice([1.0, 1 - 1e-7, 1 + 1e-7], x.shape).astype(np.float32)
    expected = run_litert(path, x)
    found = program.result.real(run(program, program.quantized(x.astype(np.float64))).values)
    np.testing.assert_array_equal(found, expected.astype(np.float64))


@pytest.mark.parametrize("stem", RANDOM_XNNPACK)
def test_how_often_the_kernels_differ(stem: str) -> None:
    """The count that the docstring of `kernels` speaks of; -s shows it."""
    program = formats.load_program(FILES / f"{stem}.tflite")
    x = integers(program, 20_000)
    a, b = run(program, x).values, run(program, x, Kernels.XNNPACK).values
    print(f"{stem}: {int((a != b).sum())} of {a.size} differ, by at most {np.abs(a - b).max()}")
    assert (a != b).mean() < 0.05
    assert np.abs(a - b).max() <= 4
