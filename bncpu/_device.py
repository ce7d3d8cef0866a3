"""Batches that are not one NumPy array, behind one interface: samples on axis 0, channels on axis 1.

Nothing is copied: arrays on a GPU stay there, and separate columns stay separate.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bncpu import _normalize, gpu
from bncpu._batches import Batch
from bncpu.gpu._library import library_of
from bncpu.moments import Coefficients, Moments, merge_blocks


class DeviceBatch(Batch):
    """A device array of CuPy, PyTorch or Numba.

    Parameters
    ----------
    array : device array
    channel_axis : int
        At least 1: axis 0 holds the samples.
    """

    def __init__(self, array: Any, channel_axis: int) -> None:
        self.array = self.X = array
        self.channel_axis = channel_axis
        axes = list(array.shape)
        n_channels = axes.pop(channel_axis)
        self.shape = (axes[0], n_channels, *axes[1:])
        self.dtype = array.dtype

    def __getitem__(self, rows: slice) -> DeviceBatch:
        return DeviceBatch(self.array[rows], self.channel_axis)

    def _moments(self, weights: NDArray[np.float64] | None, n_threads: int | None) -> tuple[Moments, bool]:
        found = merge_blocks(_functions().collect(self.array, self.channel_axis, weights))
        return found, weights is not None or bool(np.any(found.count != self.size // self.shape[1]))

    def apply(
        self,
        coefficients: Coefficients,
        *,
        dtype: np.dtype[Any] | None = None,
        out: Any = None,
        n_threads: int | None = None,
    ) -> tuple[Any, int]:
        """See `Batch`; infinities are not looked for, as that would have to wait for the device."""
        return _functions().scaled(self.array, self.channel_axis, *coefficients, out=as_given(out)), 0

    def can_be_overwritten(self, dtype: np.dtype[Any] | None = None) -> bool:
        """See `Batch`."""
        return True

    def in_memory(self) -> NDArray[Any]:
        """A copy in CPU memory, with channels on axis 1."""
        library = library_of(self.array)
        if library == "torch":
            a = self.array.detach().to(dtype=sys.modules["torch"].float64).cpu().numpy()
        else:
            a = self.array.get() if library == "cupy" else self.array.copy_to_host()
        return np.moveaxis(a, self.channel_axis, 1)


class ColumnBatch(Batch):
    """Separate columns in memory, each contiguous, all of one float type; for `partial_fit` only.

    Parameters
    ----------
    columns : list of ndarray of shape (n_samples,), float32 or float64
    """

    def __init__(self, columns: list[NDArray[Any]]) -> None:
        self.columns = columns
        self.shape, self.dtype = (len(columns[0]), len(columns)), columns[0].dtype

    def __getitem__(self, rows: slice) -> ColumnBatch:
        return ColumnBatch([column[rows] for column in self.columns])

    def _moments(self, weights: NDArray[np.float64] | None, n_threads: int | None) -> tuple[Moments, bool]:
        return _normalize.moments_of_planes(self.columns, weights, skip_missing=True, n_threads=n_threads)

    def in_memory(self) -> NDArray[Any]:
        """As one array."""
        return np.column_stack(self.columns)


class LearnedBatch(Batch):
    """A batch whose moments are known already; for `partial_fit` of the whole batch, without weights.

    Parameters
    ----------
    shape : tuple of (n_samples, n_features)
    dtype : dtype
    found : tuple of Moments and bool
        What `moments` returns.
    in_memory : callable
        Returns the batch as an array; called only if a message must name a row.
    """

    def __init__(
        self, shape: tuple[int, int], dtype: Any, found: tuple[Moments, bool], in_memory: Callable[[], NDArray[Any]]
    ) -> None:
        self.shape, self.dtype, self.found, self.read = shape, dtype, found, in_memory

    def __getitem__(self, rows: slice) -> LearnedBatch:
        return self

    def _moments(self, weights: NDArray[np.float64] | None, n_threads: int | None) -> tuple[Moments, bool]:
        return self.found

    def in_memory(self) -> NDArray[Any]:
        """As one array."""
        return self.read()


def as_given(X: Any) -> Any:
    """The device array of a DeviceBatch; anything else as it is."""
    return X.array if isinstance(X, DeviceBatch) else X


def _functions() -> Any:
    gpu.batch_norm  # noqa: B018  (says which extra is missing, if it is)
    from bncpu.gpu import _functional

    return _functional
