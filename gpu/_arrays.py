"""Device arrays of CuPy, PyTorch and Numba: their addresses and streams, and new arrays of the same kind."""

from __future__ import annotations

import sys
import threading
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from . import _compat
from ._arguments import Address
from ._library import library_of
from ._plan import STORAGE


class Given(NamedTuple):
    """An array as kernels see it."""

    array: Any  # what the user gave
    library: str
    address: Address
    shape: tuple[int, ...]
    storage: str
    axis: int | None  # that of the channels, if they are adjacent in memory though it is not the last

    @property
    def aligned(self) -> bool:
        """Whether it lies at a multiple of 16 bytes."""
        return bool(_compat.SIMULATED or self.address % 16 == 0)

    @property
    def memory(self) -> tuple[int, int]:
        """The addresses where it starts and ends."""
        start = self.array._ary.ctypes.data if _compat.SIMULATED else self.address
        return start, start + prod(self.shape) * STORAGE[self.storage]


def library(name: str, a: Any) -> str:
    """The library of an array. TypeError if it is not a device array."""
    found = library_of(a)
    if found is None:
        raise TypeError(f"{name} must be a device array of CuPy, PyTorch or Numba, got {type(a).__name__}")
    return found


def given(name: str, a: Any, device: int, *, written: bool = False, axis: int | None = None) -> Given:
    """Address, shape and type of an array. TypeError or ValueError if kernels cannot read it, or write it.

    It must be C-contiguous, or be so with `axis`, that of the channels, moved to the end; and on `device`, the current
    one.
    """
    of, shape = library(name, a), tuple(a.shape)
    if of == "torch":
        _check_autograd(name, a)
        native, writeable, strides, unit, there = True, True, a.stride(), 1, a.device.index
    else:
        native, writeable, strides, unit = a.dtype.isnative, _compat.is_writeable(a), a.strides, a.dtype.itemsize
        there = _compat.device_of(a) if of == "numba" else a.device.id
    storage = _storage(a.dtype)
    if storage not in STORAGE or not native:
        raise TypeError(f"{name} must be one of {', '.join(STORAGE)}, got {storage if native else a.dtype}")
    channels_last = _is_channels_last(shape, strides, unit, axis)
    if channels_last is None:
        or_last = "" if axis is None else ", or have its channels adjacent in memory"
        raise ValueError(
            f"{name} must be C-contiguous{or_last}, as nothing is copied in silence; make a contiguous copy first"
        )
    if written and not writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")
    if there != device:
        raise ValueError(f"{name} must be on the current device, {device}, got one on device {there}")
    last = axis if channels_last else None
    return Given(a, of, _address(a, of, last), shape, storage, last)


def _address(a: Any, of: str, axis: int | None = None) -> Address:
    return a.data_ptr() if of == "torch" else _compat.address(a, axis)


@lru_cache(maxsize=256)
def _storage(dtype: Any) -> str:
    """The name of a type of NumPy, CuPy or PyTorch."""
    return getattr(dtype, "name", "") or str(dtype).removeprefix("torch.")


def _check_autograd(name: str, a: Any) -> None:
    if a.requires_grad and sys.modules["torch"].is_grad_enabled():
        raise ValueError(
            f"{name} must not require grad, as PyTorch's autograd does not record this call; "
            "call it under torch.no_grad(), or in a torch.autograd.Function that has the backward pass, too"
        )


@lru_cache(maxsize=1024)
def _is_channels_last(shape: tuple[int, ...], strides: tuple[int, ...], unit: int, axis: int | None) -> bool | None:
    """False if an array is C-contiguous, True if it is so with `axis` at the end, else None."""
    if is_contiguous(shape, strides, unit):
        return False
    fits = axis is not None and is_contiguous(at_end(shape, axis), at_end(strides, axis), unit)
    return True if fits else None


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
    if a.library == "torch":
        sys.modules["torch"].autograd.graph.increment_version(a.array)


def like(x: Given) -> Given:
    """A new array of the library, shape, dtype and memory order of `x`."""
    made = cuda.device_array_like(x.array) if x.library == "numba" else sys.modules[x.library].empty_like(x.array)
    return Given(made, x.library, _address(made, x.library, x.axis), x.shape, x.storage, x.axis)


def float64(x: Given, shape: tuple[int, ...]) -> Given:
    """A new float64 array of the library and on the device of `x`."""
    if x.library == "torch":
        torch = sys.modules["torch"]
        made = torch.empty(shape, dtype=torch.float64, device=x.array.device)
    else:
        made = (
            sys.modules["cupy"].empty(shape, "float64") if x.library == "cupy" else cuda.device_array(shape, np.float64)
        )
    return Given(made, x.library, _address(made, x.library), shape, "float64", None)


def sent(x: Given, values: NDArray[np.float64]) -> Given:
    """A copy of `values` on the device of `x`, of its library."""
    if x.library == "torch":
        made = sys.modules["torch"].tensor(values, device=x.array.device)
    else:
        made = sys.modules["cupy"].asarray(values) if x.library == "cupy" else cuda.to_device(values)
    return Given(made, x.library, _address(made, x.library), values.shape, "float64", None)


def fetched(a: Given) -> NDArray[np.float64]:
    """A copy in CPU memory; waits for what its library's current stream has to do."""
    if a.library == "torch":
        there: NDArray[np.float64] = a.array.cpu().numpy()
    else:
        there = a.array.get() if a.library == "cupy" else a.array.copy_to_host()
    return there


class Scratch(NamedTuple):
    """Memory for the time of a call, on its stream."""

    kept: tuple[Any, Any]
    floats: Address  # float64
    counts: Address  # int32, all 0


def scratch(x: Given, device: int, n_floats: int, n_counts: int) -> Scratch:
    """New memory of the library of `x`, whose pool knows streams and graphs. Numba has no pool: its memory is kept."""
    if x.library == "torch":
        torch = sys.modules["torch"]
        where = {"device": x.array.device}
        kept = torch.empty(n_floats, dtype=torch.float64, **where), torch.zeros(n_counts, dtype=torch.int32, **where)
        return Scratch(kept, *(a.data_ptr() for a in kept))
    if x.library == "cupy":
        cupy = sys.modules["cupy"]
        kept = cupy.empty(n_floats, "float64"), cupy.zeros(n_counts, "int32")
        return Scratch(kept, *map(_compat.address, kept))
    key = device, threading.get_ident()
    sizes = [a.size for a in _scratch.get(key, ())] or [0, 0]
    if sizes[0] < n_floats or sizes[1] < n_counts:
        n_floats, n_counts = (
            max(had, 1 << (n - 1).bit_length()) for had, n in zip(sizes, (n_floats, n_counts), strict=True)
        )
        _scratch[key] = cuda.device_array(n_floats, np.float64), cuda.to_device(np.zeros(n_counts, np.int32))
    return Scratch(_scratch[key], *map(_compat.address, _scratch[key]))


# Of Numba, by device and thread: calls with the same key run one after the other on Numba's default stream.
# Counts are 0 between calls.
_scratch: dict[tuple[int, int], tuple[Any, Any]] = {}


def stream(x: Given) -> int | None:
    """The current stream of the library of an array; 0 is CUDA's default stream, None that of Numba."""
    if x.library == "torch":
        return int(sys.modules["torch"].cuda.current_stream(x.array.device).cuda_stream)
    return int(sys.modules["cupy"].cuda.get_current_stream().ptr) if x.library == "cupy" else None
