"""Device arrays of CuPy, PyTorch and Numba: their addresses and streams, and new arrays of the same kind."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from . import _compat
from ._arguments import Address
from ._library import library_of
from ._plan import STORAGE


class Form(NamedTuple):
    """What kernels must know of an array, but for where it lies."""

    library: str
    shape: tuple[int, ...]
    storage: str
    last: int | None  # the axis of the channels, if they are adjacent in memory though it is not the last one

    @property
    def n_bytes(self) -> int:
        """Of all values."""
        return prod(self.shape) * STORAGE[self.storage]


class Seen(NamedTuple):
    """What an array tells of itself, in the order of `seen`. Of arrays that tell the same, one is checked."""

    library: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any
    device: int
    writeable: bool


def library(name: str, a: Any) -> str:
    """The library of an array. TypeError if it is not a device array."""
    found = library_of(a)
    if found is None:
        raise TypeError(f"{name} must be a device array of CuPy, PyTorch or Numba, got {type(a).__name__}")
    return found


def seen(name: str, a: Any) -> tuple[Any, ...]:
    """A `Seen`, as a plain tuple, which takes less time.

    TypeError if `a` is no device array, ValueError if PyTorch's autograd would have to record the call.
    """
    of = library_of(a) or library(name, a)
    if of == "torch":
        if a.requires_grad:
            _check_autograd(name)
        return of, a.shape, a.stride(), a.dtype, a.device.index, True
    there = _compat.device_of(a) if of == "numba" else a.device.id
    return of, a.shape, a.strides, a.dtype, there, _compat.is_writeable(a)


def form(name: str, told: Any, device: int, *, written: bool = False, axis: int | None = None) -> Form:
    """What kernels must know of an array that is `seen`. TypeError or ValueError if they cannot read or write it.

    It must be C-contiguous, or be so with `axis`, that of the channels, moved to the end; and on `device`, the current
    one.
    """
    of, shape, strides, dtype, there, writeable = Seen(*told)
    shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
    storage = _storage(dtype)
    is_native = of == "torch" or dtype.isnative
    if storage not in STORAGE or not is_native:
        raise TypeError(f"{name} must be one of {', '.join(STORAGE)}, got {storage if is_native else dtype}")
    channels_last = _is_channels_last(shape, strides, 1 if of == "torch" else dtype.itemsize, axis)
    if channels_last is None:
        or_last = "" if axis is None else ", or have its channels adjacent in memory"
        raise ValueError(
            f"{name} must be C-contiguous{or_last}, as nothing is copied in silence; make a contiguous copy first"
        )
    if written and not writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")
    if there != device:
        raise ValueError(f"{name} must be on the current device, {device}, got one on device {there}")
    return Form(of, shape, storage, axis if channels_last else None)


def address(a: Any, of: str, axis: int | None = None) -> Address:
    """Where an array of a library starts."""
    return a.data_ptr() if of == "torch" else _compat.address(a, axis)


def aligned(addresses: Iterable[Address]) -> bool:
    """Whether all are multiples of 16 bytes."""
    if _compat.SIMULATED:
        return True
    bits = 0
    for at in addresses:
        bits |= at
    return bits % 16 == 0


def start(a: Any, at: Address) -> int:
    """The first byte of an array: its address, which is not a number in the simulator."""
    return int(a._ary.ctypes.data if _compat.SIMULATED else at)


def _storage(dtype: Any) -> str:
    """The name of a type of NumPy, CuPy or PyTorch."""
    return getattr(dtype, "name", "") or str(dtype).removeprefix("torch.")


def _check_autograd(name: str) -> None:
    """Refuse a tensor that requires grad, unless autograd is off."""
    if sys.modules["torch"].is_grad_enabled():
        raise ValueError(
            f"{name} must not require grad, as PyTorch's autograd does not record this call; "
            "call it under torch.no_grad(), or in a torch.autograd.Function that has the backward pass, too"
        )


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


def mark_written(a: Any, of: str) -> None:
    """Tell PyTorch, whose autograd refuses to go back through what has been changed since."""
    if of == "torch":
        sys.modules["torch"].autograd.graph.increment_version(a)


def like(x: Any, of: str) -> Any:
    """A new array of the library, shape, dtype and memory order of `x`."""
    return cuda.device_array_like(x) if of == "numba" else sys.modules[of].empty_like(x)


def float64(x: Any, of: str, shape: tuple[int, ...]) -> Any:
    """A new float64 array of the library and on the device of `x`."""
    if of == "torch":
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=torch.float64, device=x.device)
    return sys.modules["cupy"].empty(shape, "float64") if of == "cupy" else cuda.device_array(shape, np.float64)


def sent(x: Any, of: str, values: NDArray[np.float64]) -> Any:
    """A copy of `values` on the device of `x`, of its library."""
    if of == "torch":
        return sys.modules["torch"].tensor(values, device=x.device)
    return sys.modules["cupy"].asarray(values) if of == "cupy" else cuda.to_device(values)


def fetched(a: Any, of: str) -> NDArray[np.float64]:
    """A copy in CPU memory; waits for what its library's current stream has to do."""
    if of == "torch":
        there: NDArray[np.float64] = a.cpu().numpy()
    else:
        there = a.get() if of == "cupy" else a.copy_to_host()
    return there


class Scratch(NamedTuple):
    """Memory for the time of a call, on its stream."""

    kept: tuple[Any, Any]
    floats: Address  # float64
    counts: Address  # int32, all 0


def scratch(x: Any, of: str, device: int, n_floats: int, n_counts: int) -> Scratch:
    """New memory of the library of `x`, whose pool knows streams and graphs. Numba has no pool: its memory is kept."""
    if of == "torch":
        torch = sys.modules["torch"]
        where = {"device": x.device}
        kept = torch.empty(n_floats, dtype=torch.float64, **where), torch.zeros(n_counts, dtype=torch.int32, **where)
        return Scratch(kept, *(a.data_ptr() for a in kept))
    if of == "cupy":
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


def stream(x: Any, of: str) -> int | None:
    """The current stream of the library of an array; 0 is CUDA's default stream, None that of Numba."""
    if of == "torch":
        return int(sys.modules["torch"].cuda.current_stream(x.device).cuda_stream)
    return int(sys.modules["cupy"].cuda.get_current_stream().ptr) if of == "cupy" else None
