"""Device arrays of CuPy, PyTorch and Numba: where they lie, on which stream, and new ones of the same kind."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from . import _compat

_STORAGE = {"f2": "float16", "f4": "float32", "f8": "float64", "V2": "bfloat16"}


class Given(NamedTuple):
    """An array as kernels see it."""

    array: Any  # what the user gave
    address: Any
    shape: tuple[int, ...]
    storage: str
    device: int

    @property
    def aligned(self) -> bool:
        """Whether it lies at a multiple of 16 bytes."""
        return bool(_compat.SIMULATED or self.address % 16 == 0)


def library_of(a: Any) -> str | None:
    """The library of a device array; None of anything else."""
    root = type(a).__module__.partition(".")[0]
    if root in ("torch", "cupy"):
        return root if root == "cupy" or getattr(a, "is_cuda", False) else None
    return "numba" if root == "numba" else None


def given(name: str, a: Any) -> Given:
    """Read where an array lies; TypeError or ValueError if kernels cannot read it there."""
    library = library_of(a)
    if library is None:
        raise TypeError(f"{name} must be a device array of CuPy, PyTorch or Numba, got {type(a).__name__}")
    if library == "torch":  # whose interface knows no bfloat16
        shape, storage = tuple(a.shape), str(a.dtype).removeprefix("torch.")
        contiguous, address, device = a.is_contiguous(), a.data_ptr(), a.device.index
    elif _compat.SIMULATED:
        values = a._ary
        shape, storage, contiguous = values.shape, values.dtype.name, values.flags.c_contiguous
        address, device = _compat.address(a), 0
    else:
        interface = a.__cuda_array_interface__
        shape, storage = interface["shape"], _STORAGE.get(interface["typestr"][1:], interface["typestr"])
        contiguous, address = _is_contiguous(interface), interface["data"][0]
        device = a.device.id if library == "cupy" else cuda.current_context().device.id
    if storage not in _compat.STORAGE:
        raise TypeError(f"{name} must be one of {', '.join(_compat.STORAGE)}, got {storage}")
    if not contiguous:
        raise ValueError(f"{name} must be C-contiguous, as nothing is copied in silence; make a contiguous copy first")
    return Given(a, address, shape, storage, device)


def _is_contiguous(interface: dict[str, Any]) -> bool:
    if interface.get("strides") is None:
        return True
    size = np.dtype(interface["typestr"]).itemsize
    for n, stride in zip(reversed(interface["shape"]), reversed(interface["strides"]), strict=True):
        if n > 1 and stride != size:
            return False
        size *= n
    return True


def like(x: Given) -> Given:
    """A new array like one."""
    a = x.array
    library = library_of(a)
    made = cuda.device_array_like(a) if library == "numba" else sys.modules[library or ""].empty_like(a)
    return given("out", made)


def float64(x: Given, shape: tuple[int, ...]) -> Given:
    """A new float64 array beside one."""
    library = library_of(x.array)
    if library == "torch":
        torch = sys.modules["torch"]
        return given("out", torch.empty(shape, dtype=torch.float64, device=x.array.device))
    if library == "cupy":
        return given("out", sys.modules["cupy"].empty(shape, "float64"))
    return given("out", cuda.device_array(shape, np.float64))


def stream(x: Given) -> Any:
    """The stream on which the library of an array is working."""
    library = library_of(x.array)
    if library == "torch":
        return cuda.external_stream(sys.modules["torch"].cuda.current_stream(x.array.device).cuda_stream)
    if library == "cupy":
        return cuda.external_stream(sys.modules["cupy"].cuda.get_current_stream().ptr)
    return cuda.default_stream()
