"""Arrays of other libraries, on other devices: for proposals, never for proofs.

The floating-point work that only looks for good multipliers and examples is written once, over the namespace of the arrays
that it is given, in the words of the Python array API standard (2024.12, data-apis.org/array-api). NumPy's arrays are the
default, and the only ones that certify: what a device proposes comes back through `Arrays.to_host`, and a bound is computed
from it on the host, rounded outward. A device that is wrong costs tightness, not soundness.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from qrobust.errors import BackendUnavailableError, QRobustError, ShapeError, UnsupportedError
from qrobust.interval import FloatArray

Array = Any  # of any library
DTYPES = ("float64", "float32")


def namespace_of(array: Array) -> Any:
    """Return the functions of the array API standard for an array's library."""
    if isinstance(array, np.ndarray):
        return np
    try:
        import array_api_compat
    except ImportError:
        raise BackendUnavailableError("arrays of other libraries need `pip install qrobust[arrays]`") from None
    return array_api_compat.array_namespace(array)


@dataclass(frozen=True)
class Arrays:
    """An array library by the name it is imported by, a device as it names them (None: its default), and a type of floats.

    Example   Arrays("torch", "cuda"); Arrays("cupy"); Arrays("torch", "mps", "float32")
    Raises    BackendUnavailableError if the library or the device is not there; UnsupportedError if it has no such arrays
    """

    library: str
    device: str | None = None
    dtype: str = "float64"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UnsupportedError(f"arrays of {self.dtype!r} are not supported: choose {' or '.join(DTYPES)}")
        self.to_host(self.to_device(np.zeros(1)), (1,))

    @classmethod
    def named(cls, text: str) -> Arrays:
        """Return what `library` or `library:device` names, as in torch:cuda."""
        library, _, device = text.partition(":")
        return cls(library, device or None)

    def __str__(self) -> str:
        return f"{self.library}:{self.device}" if self.device else self.library

    def to_device(self, values: FloatArray) -> Array:
        """Return host values as an array on the device."""
        module = self._module()
        try:
            xp = namespace_of(module.asarray(0.0))
            dtype = getattr(xp, self.dtype)
            own = np.array(values, dtype=self.dtype)  # a copy, since libraries share memory
            return xp.asarray(own, dtype=dtype, device=self._place(module))
        except (AttributeError, TypeError, ValueError, RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise BackendUnavailableError(f"{self.library} gives no {self.dtype} arrays on {self._where}: {reason}") from None

    def to_host(self, values: Array, shape: tuple[int, ...], otherwise: float = 0.0) -> FloatArray:
        """Return a device's values on the host, `otherwise` in place of what is not finite. Raises ShapeError."""
        if not isinstance(values, np.ndarray):
            import array_api_compat as compat

            if compat.is_torch_array(values) or compat.is_cupy_array(values):
                values = compat.to_device(values, "cpu")
        try:
            found: FloatArray = np.asarray(values).astype(np.float64)  # a copy
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise BackendUnavailableError(f"the arrays of {self} do not come back to this host: {reason}") from None
        if found.shape != shape:
            raise ShapeError(f"{self} gave an array of shape {found.shape}, expected {shape}: use --arrays numpy")
        found[~np.isfinite(found)] = otherwise
        return found

    @contextmanager
    def proposing(self) -> Iterator[None]:
        """Have float32 products computed in float32 while this lasts, not in fewer bits (TF32, bfloat16).

        Of the libraries known here PyTorch alone has such a switch that a program can turn; CuPy's is the environment variable
        CUPY_TF32, off unless set. The switch is PyTorch's own, so other threads see it turned, too
        Raises    BackendUnavailableError in place of what the library raises, such as its being out of memory
        """
        try:
            with self._full_products():
                yield
        except QRobustError:
            raise
        except (RuntimeError, MemoryError) as error:
            reason = str(error).partition("\n")[0]
            raise BackendUnavailableError(f"{self} failed ({reason}): leave --arrays out, or give less --memory") from None

    @contextmanager
    def _full_products(self) -> Iterator[None]:
        if self.library != "torch":
            yield
            return
        backends = self._module().backends
        switches = [(backends.cuda.matmul, "fp32_precision"), (backends.cudnn, "fp32_precision")]
        if not all(hasattr(*switch) for switch in switches):  # before PyTorch 2.9
            switches = [(backends.cuda.matmul, "allow_tf32"), (backends.cudnn, "allow_tf32")]
        before = [getattr(*switch) for switch in switches]
        try:
            for place, name in switches:
                setattr(place, name, "ieee" if name == "fp32_precision" else False)
            yield
        finally:
            for (place, name), value in zip(switches, before, strict=True):
                setattr(place, name, value)

    @property
    def _where(self) -> str:
        return "its default device" if self.device is None else f"a device {self.device!r}"

    def _module(self) -> Any:
        try:
            return importlib.import_module(self.library)
        except (ImportError, ValueError, TypeError):
            raise BackendUnavailableError(
                f"no array library {self.library!r} is installed here: name one of the Python array API standard, such as"
                " numpy, torch or cupy, with a device as in torch:cuda"
            ) from None

    def _place(self, module: Any) -> Any:
        """The device as the library's own functions take it."""
        if self.device is None:
            return None
        if hasattr(module, "Device"):
            return module.Device(self.device)
        return module.cuda.Device(int(self.device)) if self.library == "cupy" else self.device
