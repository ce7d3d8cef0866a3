"""Device arrays of CuPy, PyTorch and Numba: their addresses and streams, and new arrays of the same kind."""

from __future__ import annotations

import sys
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from . import _compat
from ._arguments import Address
from ._library import library_of


class Given(NamedTuple):
    """An array as kernels see it."""

    array: Any  # what the user gave
    address: Address
    shape: tuple[int, ...]
    storage: str
    channels_last: bool  # whether the channels are adjacent in memory though their axis is not the last

    @property
    def aligned(self) -> bool:
        """Whether it lies at a multiple of 16 bytes."""
        return bool(_compat.SIMULATED or self.address % 16 == 0)

    @property
    def memory(self) -> tuple[int, int]:
        """The addresses where it starts and ends."""
        start = self.array._ary.ctypes.data if _compat.SIMULATED else self.address
        return start, start + prod(self.shape) * _compat.STORAGE[self.storage]


def shape_of(name: str, a: Any) -> tuple[int, ...]:
    """The shape of an array. TypeError if it is not a device array."""
    if library_of(a) is None:
        raise TypeError(f"{name} must be a device array of CuPy, PyTorch or Numba, got {type(a).__name__}")
    return tuple(a.shape)


def given(name: str, a: Any, *, written: bool = False, axis: int | None = None) -> Given:
    """Address, shape and type of an array. TypeError or ValueError if kernels cannot read it, or write it.

    It must be C-contiguous, or be so with `axis`, that of the channels, moved to the end.
    """
    shape, library = shape_of(name, a), library_of(a)
    if library == "torch":
        _check_autograd(name, a)
        storage, native, writeable = str(a.dtype).removeprefix("torch."), True, True
        strides, unit, device = a.stride(), 1, a.device.index
    else:
        storage, native = a.dtype.name, a.dtype.isnative
        strides, unit, device = a.strides, a.dtype.itemsize, _compat.device_of(a) if library == "numba" else a.device.id
        writeable = _compat.is_writeable(a)
    if storage not in _compat.STORAGE or not native:
        raise TypeError(f"{name} must be one of {', '.join(_compat.STORAGE)}, got {storage if native else a.dtype}")
    channels_last = not is_contiguous(shape, strides, unit)
    if channels_last and (axis is None or not is_contiguous(at_end(shape, axis), at_end(strides, axis), unit)):
        or_last = "" if axis is None else ", or have its channels adjacent in memory"
        raise ValueError(
            f"{name} must be C-contiguous{or_last}, as nothing is copied in silence; make a contiguous copy first"
        )
    if written and not writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")
    if device != current_device():
        raise ValueError(f"{name} must be on the current device, {current_device()}, got one on device {device}")
    address = a.data_ptr() if library == "torch" else _compat.address(a, axis if channels_last else None)
    return Given(a, address, shape, storage, channels_last)


def _check_autograd(name: str, a: Any) -> None:
    if a.requires_grad and sys.modules["torch"].is_grad_enabled():
        raise ValueError(
            f"{name} must not require grad, as PyTorch's autograd does not record this call; "
            "call it under torch.no_grad(), or in a torch.autograd.Function that has the backward pass, too"
        )


def is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], unit: int) -> bool:
    """Whether values lie one after another, `unit` apart, the last axis first."""
    # Numba's array interface has no strides for a broadcast array, so this looks at them itself.
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n > 1 and stride != unit:
            return False
        unit *= n
    return True


def at_end(lengths: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Lengths or strides of axes, with that of `axis` last."""
    return (*lengths[:axis], *lengths[axis + 1 :], lengths[axis])


def share_memory(a: Given, b: Given) -> bool:
    """Whether a byte belongs to both."""
    (start, end), (start_, end_) = a.memory, b.memory
    return start < end_ and start_ < end


def mark_written(a: Given) -> None:
    """Tell PyTorch, whose autograd refuses to go back through what has been changed since."""
    if library_of(a.array) == "torch":
        sys.modules["torch"].autograd.graph.increment_version(a.array)


def current_device() -> int:
    """The device on which kernels run."""
    return 0 if _compat.SIMULATED else int(cuda.current_context().device.id)


def like(x: Given, axis: int) -> Given:
    """A new array of the library, shape, dtype and memory order of `x`, whose channels are on `axis`."""
    a = x.array
    library = library_of(a)
    made = cuda.device_array_like(a) if library == "numba" else sys.modules[library or ""].empty_like(a)
    return given("out", made, axis=axis)


def float64(x: Given, shape: tuple[int, ...]) -> Given:
    """A new float64 array of the library and on the device of `x`."""
    library = library_of(x.array)
    if library == "torch":
        torch = sys.modules["torch"]
        return given("out", torch.empty(shape, dtype=torch.float64, device=x.array.device))
    if library == "cupy":
        return given("out", sys.modules["cupy"].empty(shape, "float64"))
    return given("out", cuda.device_array(shape, np.float64))


def stream(x: Given) -> int | None:
    """The current stream of the library of an array; 0 is CUDA's default stream, None that of Numba."""
    library = library_of(x.array)
    if library == "torch":
        return int(sys.modules["torch"].cuda.current_stream(x.array.device).cuda_stream)
    return int(sys.modules["cupy"].cuda.get_current_stream().ptr) if library == "cupy" else None
