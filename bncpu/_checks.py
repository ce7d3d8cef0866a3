"""Checks of arrays that several modules need: data arrays, and parameters with one value per channel.

Each returns what it has checked, as the caller goes on with it, or raises an error that names the argument, what was
expected and what came. What only one module needs is checked there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bncpu import _layout

Array = NDArray[np.floating[Any]]


def floats(name: str, x: Any) -> None:
    """Check a data array of a function."""
    plain_array(name, x)
    if not _layout.is_float(x.dtype) or x.dtype.itemsize > 8:
        raise TypeError(f"{name} must be float16, float32 or float64, got {x.dtype}; convert it first")


def plain_array(name: str, a: Any) -> None:
    """Check that `a` is an array of NumPy whose values are all there is to it."""
    # A mask would be ignored, and a matrix is never anything but 2-D.
    if not isinstance(a, np.ndarray) or isinstance(a, (np.ma.MaskedArray, np.matrix)):
        raise TypeError(f"{name} must be a NumPy array, got {type(a).__name__}")


def like(name: str, a: Any, x: Array, dtype: np.dtype[Any] | None = None, *, writeable: bool = False) -> None:
    """Check an array that must match `x` in shape, and in dtype, of any byte order, unless that is given."""
    plain_array(name, a)
    if a.dtype != dtype if dtype else a.dtype.newbyteorder("=") != x.dtype.newbyteorder("="):
        expected = f"{dtype or x.dtype} like the {'result' if dtype else 'input'}"
        raise TypeError(f"{name} must be {expected}, got {a.dtype}; convert it first")
    if a.shape != x.shape:
        raise ValueError(f"{name} must have the shape of the input, {x.shape}; got {a.shape}")
    if writeable:
        written(name, a)


def written(name: str, a: Array) -> None:
    """Check an array that receives a result."""
    if not a.flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")
    if not _layout.apart(a):
        raise ValueError(
            f"{name} must have memory of its own for every value; got shape {a.shape}, strides {a.strides}"
        )


def as_values(name: str, a: Any) -> NDArray[Any]:
    """What one value per channel is given as, a list or an array of any library in CPU memory, as an array of NumPy."""
    if isinstance(a, np.ma.MaskedArray):  # its mask would be ignored
        raise TypeError(f"{name} must not be masked, got a MaskedArray")
    if isinstance(a, np.ndarray):
        return a
    if _has_gaps(a):
        raise TypeError(f"{name} must have no missing values, got a {type(a).__name__} with some")
    try:
        shared = hasattr(a, "__dlpack__") and not hasattr(a, "__array__")
        return np.from_dlpack(a) if shared else np.asarray(_detached(a))
    except (BufferError, RuntimeError, TypeError) as error:  # of arrays on a device, for example
        raise TypeError(f"{name} must hold real numbers in CPU memory, got {type(a).__name__}: {error}") from None


def _has_gaps(a: Any) -> bool:
    """Whether a column of pandas, polars or pyarrow has missing values, which would become NaN."""
    if hasattr(a, "isna"):
        return not isinstance(getattr(a, "dtype", np.dtype("f8")), np.dtype) and bool(np.any(a.isna()))
    count = getattr(a, "null_count", 0)
    return bool(np.any(count() if callable(count) else count))


def per_channel(name: str, a: ArrayLike | None, n_channels: int) -> NDArray[np.float64] | None:
    """A parameter with one value per channel, as float64; None stays None."""
    return parameter(name, a, (n_channels,), ", one value per channel")


def parameter(name: str, a: ArrayLike | None, shape: tuple[int, ...], what: str = "") -> NDArray[np.float64] | None:
    """A parameter of a shape, as float64; None stays None."""
    if a is None:
        return None
    try:
        values = as_values(name, a)
    except ValueError as error:
        raise ValueError(f"{name} must have shape {shape}: {error}") from None
    if values.dtype.kind not in "fiub" and not _layout.is_bfloat16(values.dtype):
        raise TypeError(f"{name} must hold real numbers, got {values.dtype}")
    if values.shape != shape:
        hint = f"; reshape it to {shape}" if values.ndim > len(shape) and values.size == math.prod(shape) else ""
        raise ValueError(f"{name} must have shape {shape}{what}; got {values.shape}{hint}")
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float64)


def _detached(a: Any) -> Any:
    """A tensor of PyTorch as an array that NumPy takes: its gradient is not followed here. Anything else as it is."""
    if not hasattr(a, "detach"):
        return a
    a = a.detach()
    return a.float() if str(getattr(a, "dtype", "")) == "torch.bfloat16" else a


def required(name: str, a: ArrayLike, n_channels: int) -> NDArray[np.float64]:
    """As `per_channel`, and not None."""
    values = per_channel(name, a, n_channels)
    if values is None:
        raise TypeError(f"{name} must be an array of shape ({n_channels},), got None")
    return values


def variances(name: str, a: ArrayLike, n_channels: int) -> NDArray[np.float64]:
    """Variances, one per channel; NaN is allowed."""
    values = required(name, a, n_channels)
    if np.any(values < 0):
        raise ValueError(f"{name} must not be negative, got {values[values < 0][0]}")
    return values
