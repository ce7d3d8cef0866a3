"""Device arrays of CuPy, PyTorch and Numba: their addresses and streams, and new arrays of the same kind."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from . import _compat
from ._library import library_of


class Given(NamedTuple):
    """An array as kernels see it."""

    array: Any  # what the user gave
    address: Any
    shape: tuple[int, ...]
    storage: str

    @property
    def aligned(self) -> bool:
        """Whether it lies at a multiple of 16 bytes."""
        return bool(_compat.SIMULATED or self.address % 16 == 0)


def given(name: str, a: Any, *, written: bool = False) -> Given:
    """Address, shape and type of an array. TypeError or ValueError if kernels cannot read it, or write it."""
    library = library_of(a)
    if library is None:
        raise TypeError(f"{name} must be a device array of CuPy, PyTorch or Numba, got {type(a).__name__}")
    if library == "torch":
        storage, native, writeable = str(a.dtype).removeprefix("torch."), True, True
        contiguous, address, device = a.is_contiguous(), a.data_ptr(), a.device.index
    elif _compat.SIMULATED:
        a_ = a._ary
        storage, native, writeable = a_.dtype.name, a_.dtype.isnative, a_.flags.writeable
        contiguous, address, device = a_.flags.c_contiguous, _compat.address(a), 0
    else:
        storage, native = a.dtype.name, a.dtype.isnative
        address, read_only = a.__cuda_array_interface__["data"]
        writeable, contiguous = not read_only, _is_contiguous(a)
        device = a.device.id if library == "cupy" else current_device()
    if storage not in _compat.STORAGE or not native:
        raise TypeError(f"{name} must be one of {', '.join(_compat.STORAGE)}, got {storage if native else a.dtype}")
    if not contiguous:
        raise ValueError(f"{name} must be C-contiguous, as nothing is copied in silence; make a contiguous copy first")
    if written and not writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")
    if device != current_device():
        raise ValueError(f"{name} must be on the current device, {current_device()}, got one on device {device}")
    return Given(a, address, tuple(a.shape), storage)


def _is_contiguous(a: Any) -> bool:
    # From shape and strides: Numba's array interface has no strides for a broadcast array.
    size = a.dtype.itemsize
    for n, stride in zip(reversed(a.shape), reversed(a.strides), strict=True):
        if n > 1 and stride != size:
            return False
        size *= n
    return True


def current_device() -> int:
    """The device on which kernels run."""
    return 0 if _compat.SIMULATED else int(cuda.current_context().device.id)


def like(x: Given) -> Given:
    """A new array of the library, shape and dtype of `x`."""
    a = x.array
    library = library_of(a)
    made = cuda.device_array_like(a) if library == "numba" else sys.modules[library or ""].empty_like(a)
    return given("out", made)


def float64(x: Given, shape: tuple[int, ...]) -> Given:
    """A new float64 array of the library and on the device of `x`."""
    library = library_of(x.array)
    if library == "torch":
        torch = sys.modules["torch"]
        return given("out", torch.empty(shape, dtype=torch.float64, device=x.array.device))
    if library == "cupy":
        return given("out", sys.modules["cupy"].empty(shape, "float64"))
    return given("out", cuda.device_array(shape, np.float64))


def stream(x: Given) -> int:
    """The current stream of the library of an array; 0 is the default stream."""
    library = library_of(x.array)
    if library == "torch":
        return int(sys.modules["torch"].cuda.current_stream(x.array.device).cuda_stream)
    return int(sys.modules["cupy"].cuda.get_current_stream().ptr) if library == "cupy" else 0
