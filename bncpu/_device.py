"""Batches that are no arrays in memory, as the rest of the library sees them: samples on axis 0, channels on axis 1.

Nothing is moved: neither what lies on a GPU nor columns that lie apart.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bncpu import _normalize, gpu
from bncpu.gpu._library import library_of
from bncpu.moments import Coefficients, Moments


class OpaqueBatch:
    """What has a shape, a dtype and moments, and is no array in memory."""

    shape: tuple[int, ...]
    dtype: Any

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> OpaqueBatch:
        raise NotImplementedError

    def moments(self, weights: NDArray[np.float64] | None, n_threads: int | None) -> tuple[Moments, bool]:
        """As `_batches.moments`."""
        raise NotImplementedError

    def in_memory(self) -> NDArray[Any]:
        """A copy as one array in CPU memory."""
        raise NotImplementedError


class DeviceBatch(OpaqueBatch):
    """A device array of CuPy, PyTorch or Numba.

    Parameters
    ----------
    array : device array
    channel_axis : int
        Neither 0, which samples lie along, nor negative.
    """

    def __init__(self, array: Any, channel_axis: int) -> None:
        self.array, self.channel_axis = array, channel_axis
        axes = list(array.shape)
        n_channels = axes.pop(channel_axis)
        self.shape = (axes[0], n_channels, *axes[1:])
        self.dtype = array.dtype

    def __getitem__(self, rows: slice) -> DeviceBatch:
        return DeviceBatch(self.array[rows], self.channel_axis)

    def moments(self, weights: NDArray[np.float64] | None, n_threads: int | None) -> tuple[Moments, bool]:
        """As `_batches.moments`; waits for the device."""
        found = Moments(*_functions().collect(self.array, self.channel_axis, weights))
        return found, weights is not None or bool(np.any(found.count != self.size // self.shape[1]))

    def apply(self, coefficients: Coefficients, out: Any) -> Any:
        """As `_batches.apply`, but infinities are not looked for: that would have to wait for the device."""
        return _functions().scaled(self.array, self.channel_axis, *coefficients, out=as_given(out))

    def in_memory(self) -> NDArray[Any]:
        """A copy in CPU memory, channels second."""
        library = library_of(self.array)
        if library == "torch":
            a = self.array.detach().to(dtype=sys.modules["torch"].float64).cpu().numpy()
        else:
            a = self.array.get() if library == "cupy" else self.array.copy_to_host()
        return np.moveaxis(a, self.channel_axis, 1)


class ColumnBatch(OpaqueBatch):
    """Columns in memory, each contiguous, all of one float type; to learn from.

    Parameters
    ----------
    columns : list of ndarray of shape (n_samples,), float32 or float64
    """

    def __init__(self, columns: list[NDArray[Any]]) -> None:
        self.columns = columns
        self.shape, self.dtype = (len(columns[0]), len(columns)), columns[0].dtype

    def __getitem__(self, rows: slice) -> ColumnBatch:
        return ColumnBatch([column[rows] for column in self.columns])

    def moments(self, weights: NDArray[np.float64] | None, n_threads: int | None) -> tuple[Moments, bool]:
        """As `_batches.moments`, with the bits of the same columns in one array."""
        return _normalize.moments_of_planes(self.columns, weights, skip_missing=True, n_threads=n_threads)

    def in_memory(self) -> NDArray[Any]:
        """As one array."""
        return np.column_stack(self.columns)


class LearnedBatch(OpaqueBatch):
    """A batch of which the moments are known already; to learn from, as a whole and without weights.

    Parameters
    ----------
    shape : tuple of (n_samples, n_features)
    dtype : dtype
    found : tuple of Moments and bool
        As `moments`.
    in_memory : callable
    """

    def __init__(
        self, shape: tuple[int, int], dtype: Any, found: tuple[Moments, bool], in_memory: Callable[[], NDArray[Any]]
    ) -> None:
        self.shape, self.dtype, self.found, self.read = shape, dtype, found, in_memory

    def __getitem__(self, rows: slice) -> LearnedBatch:
        return self

    def moments(self, weights: NDArray[np.float64] | None, n_threads: int | None) -> tuple[Moments, bool]:
        """As `_batches.moments`."""
        return self.found

    def in_memory(self) -> NDArray[Any]:
        """As one array."""
        return self.read()


def as_given(X: Any) -> Any:
    """The device array of a batch, or what is none."""
    return X.array if isinstance(X, DeviceBatch) else X


def _functions() -> Any:
    gpu.batch_norm  # noqa: B018  (says which extra is missing, if it is)
    from bncpu.gpu import _functional

    return _functional
