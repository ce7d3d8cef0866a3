"""A batch of samples, dense, sparse or lazy: its statistics, and coefficients applied to it. Three more: `_device.py`.

Dense batches have samples on axis 0 and channels on axis 1. A batch is converted if no view of it has one of the two
forms, or if the kernels do not compute in its dtype: a piece at a time, of at least one sample.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bncpu import _buffers, _kernels, _layout, _normalize
from bncpu.moments import (
    Coefficients,
    Moments,
    faded,
    merge,
    merge_blocks,
    recency_weights,
    rounded,
    scaled,
    two_sum,
    update_halflife,
)

# Values converted at a time: 8 MiB of float64.
PIECE = 1 << 20

# At least so many stored values of a sparse matrix make a piece: the moments of each piece cost O(channels).
ENTRIES = 1 << 18


class Batch:
    """Samples on axis 0 and channels on axis 1, whatever holds them. What X is, is asked at the door only.

    Attributes
    ----------
    X : object
        What holds the samples.
    shape : tuple of int
    dtype : dtype
    dense : ndarray or None
        The samples as they lie in memory, if it is an array that holds them.
    lazy : bool
        Whether nothing of it is computed yet.
    """

    X: Any
    shape: tuple[int, ...]
    dtype: Any
    dense: NDArray[Any] | None = None
    lazy = False

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

    def __getitem__(self, rows: slice) -> Batch:
        raise NotImplementedError

    def moments(
        self, weights: NDArray[np.float64] | None, n_threads: int | None, *, halflife: float | None = None
    ) -> tuple[Moments, bool]:
        """Moments of each channel, NaN left out, and whether there may have been a NaN.

        Parameters
        ----------
        weights : ndarray of shape (N,) or (N, ...), float64, or None
            One per sample, or one per position: of the shape without its channels.
        n_threads : int or None
        halflife : float or None
            Rows after which the weight of a row halves; the last row has weight 1.
        """
        if halflife is not None:
            weights = _with_recency(weights, recency_weights(self.shape[0], halflife))
        return self._moments(weights, n_threads)

    def _moments(self, weights: NDArray[np.float64] | None, n_threads: int | None) -> tuple[Moments, bool]:
        raise NotImplementedError

    def apply(
        self,
        coefficients: Coefficients,
        *,
        dtype: np.dtype[Any] | None = None,
        out: Any = None,
        n_threads: int | None = None,
    ) -> tuple[Any, int]:
        """``(X - mean) * scale + shift``, and what infinities were met, as `_kernels.apply` says it.

        Parameters
        ----------
        coefficients : Coefficients
            In float64. For sparse matrices mean and shift must be 0.
        dtype : dtype, optional
            Of the result; by default what `_layout.result_dtype` says. Not for device arrays.
        out : array like the result, X itself, or None
        n_threads : int or None
        """
        raise NotImplementedError

    def last_values(
        self, weights: NDArray[np.float64] | None, counts: NDArray[np.bool_], wanted: NDArray[np.bool_]
    ) -> NDArray[np.intp]:
        """The last row in which each of the channels `wanted`, which have one, has a value whose weight is not 0.

        Parameters
        ----------
        weights : ndarray
            As for `moments`.
        counts : ndarray of shape (N,), bool
            Which samples have a weight that is not 0.
        wanted : ndarray of shape (C,), bool
        """
        last, wanted, stop = np.zeros(len(wanted), np.intp), wanted.copy(), int(np.flatnonzero(counts)[-1]) + 1
        most = max(1, PIECE // max(1, math.prod(self.shape[1:])))
        n_rows = min(16, most)
        while wanted.any() and stop:
            part = slice(max(0, stop - n_rows), stop)
            there = ~np.isnan(self[part].in_memory())
            if weights is not None:
                there &= np.expand_dims(weights[part] > 0, 1 if weights.ndim > 1 else tuple(range(1, self.ndim)))
            there = there.reshape(*there.shape[:2], -1).any(axis=2)
            found = wanted & there.any(axis=0)
            last[found] = stop - 1 - np.argmax(there[::-1], axis=0)[found]
            wanted &= ~found
            stop, n_rows = part.start, min(2 * n_rows, most)
        return last

    def can_be_overwritten(self, dtype: np.dtype[Any] | None = None) -> bool:
        """Whether `apply` can write its result, of `dtype` if that is given, over X."""
        return False

    def like(self, y: Any) -> Batch:
        """`y`, a result of `apply`, as such a batch."""
        raise NotImplementedError

    def in_memory(self) -> NDArray[Any]:
        """The samples as one array in CPU memory."""
        raise NotImplementedError

    def pieces(self) -> Iterator[slice]:
        """Slices of samples that are converted together, of about `PIECE` values."""
        step = max(1, PIECE // max(1, math.prod(self.shape[1:])))
        for start in range(0, len(self), step):
            yield slice(start, start + step)

    def infinities(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Rows and columns of the infinities, a piece at a time."""
        for part in self.pieces():
            rows, columns = np.nonzero(np.isinf(self[part].in_memory()))[:2]
            yield rows + part.start, columns


class Lazy(Batch):
    """An array or DataFrame of Dask: `_dask` has what can be done with it."""

    lazy = True

    def __init__(self, X: Any) -> None:
        self.X, self.shape, self.dtype = X, X.shape, getattr(X, "dtype", None)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.X.ndim)


class Dense(Batch):
    """An array in memory, of shape (N, C, ...)."""

    def __init__(self, X: NDArray[Any]) -> None:
        self.X, self.shape, self.dtype, self.dense = X, X.shape, X.dtype, X

    def __getitem__(self, rows: slice) -> Dense:
        return Dense(self.X[rows])

    def moments(
        self, weights: NDArray[np.float64] | None, n_threads: int | None, *, halflife: float | None = None
    ) -> tuple[Moments, bool]:
        """See `Batch`."""
        if halflife is not None and weights is None and self.ndim == 2:
            x4 = _layout.in_form(self.X, (1,))[0]
            if x4 is not None:
                return _normalize.moments(x4, None, skip_missing=True, n_threads=n_threads, halflife=halflife)
        return super().moments(weights, n_threads, halflife=halflife)

    def _moments(self, weights: NDArray[np.float64] | None, n_threads: int | None) -> tuple[Moments, bool]:
        X = self.X
        x4 = _layout.in_form(X, (1,))[0]
        if x4 is not None and (weights is None or X.ndim == 2):
            return _normalize.moments(x4, weights, skip_missing=True, n_threads=n_threads)
        total, missing = Moments.empty(X.shape[1]), False
        for part in self.pieces():
            x4, layout = _layout.canonical(X[part], (1,))
            w = None if weights is None else layout.positions(weights[part], X[part].shape)
            some, nan = _normalize.moments(x4, w, skip_missing=True, n_threads=n_threads)
            total, missing = merge(total, some), missing or nan
        return total, missing

    def apply(
        self,
        coefficients: Coefficients,
        *,
        dtype: np.dtype[Any] | None = None,
        out: Any = None,
        n_threads: int | None = None,
    ) -> tuple[Any, int]:
        """See `Batch`."""
        X, dtype = self.X, _layout.result_dtype(self.dtype, dtype)
        overwritten = out is not None and np.may_share_memory(X, out)
        how: dict[str, Any] = {"n_threads": n_threads, "both": overwritten or None}
        x4, layout = _layout.in_form(X, (1,))
        if x4 is not None:
            y = _layout.target((layout,), out, X, dtype=dtype)
            seen = _normalize.apply(x4, layout.form(y), coefficients, **how)
            return _layout.delivered(y, out, dtype), seen
        seen = 0
        apart = out is not None and not _layout.overlap(X, out)
        y = out if apart else _buffers.empty_like(X, dtype)
        for part in self.pieces():
            x, layout = _layout.ready(X[part], (1,))
            piece = _layout.target((layout,), y[part], x, dtype=dtype)
            seen |= _normalize.apply(layout.form(x), layout.form(piece), coefficients, **how)
            _layout.delivered(piece, y[part], dtype)
        return _layout.delivered(y, out, dtype), seen

    def can_be_overwritten(self, dtype: np.dtype[Any] | None = None) -> bool:
        """See `Batch`."""
        return _is_ours(self.X, dtype)

    def like(self, y: Any) -> Dense:
        """See `Batch`."""
        return Dense(y)

    def in_memory(self) -> NDArray[Any]:
        """See `Batch`."""
        return self.X


def _is_ours(values: NDArray[Any], dtype: np.dtype[Any] | None) -> bool:
    same = values.dtype == _layout.result_dtype(values.dtype, dtype)
    return same and bool(values.flags.writeable) and _layout.apart(values)


class Sparse(Batch):
    """A CSR or CSC matrix, of shape (N, C)."""

    def __init__(self, X: Any) -> None:
        self.X, self.shape, self.dtype = X, X.shape, X.dtype

    def __getitem__(self, rows: slice) -> Sparse:
        return Sparse(self.X[rows])

    def _moments(self, weights: NDArray[np.float64] | None, n_threads: int | None) -> tuple[Moments, bool]:
        return _sparse_moments(self.X, weights)

    def apply(
        self,
        coefficients: Coefficients,
        *,
        dtype: np.dtype[Any] | None = None,
        out: Any = None,
        n_threads: int | None = None,
    ) -> tuple[Any, int]:
        """See `Batch`."""
        dtype = _layout.result_dtype(self.dtype, dtype)
        y, seen = _sparse_apply(self.X, coefficients.scale, out)
        with np.errstate(over="ignore"):
            y = y.astype(dtype, copy=False)
        narrowed = dtype.itemsize < self.dtype.itemsize and np.isinf(y.data).any()
        return y, seen | (_kernels.IN_Y_OF_BOTH if narrowed else 0)

    def can_be_overwritten(self, dtype: np.dtype[Any] | None = None) -> bool:
        """See `Batch`."""
        return _is_ours(self.X.data, dtype)

    def like(self, y: Any) -> Sparse:
        """See `Batch`."""
        return Sparse(y)

    def last_values(
        self, weights: NDArray[np.float64] | None, counts: NDArray[np.bool_], wanted: NDArray[np.bool_]
    ) -> NDArray[np.intp]:
        """See `Batch`: as many samples before the last one as end with a NaN each."""
        of_counting = np.cumsum(counts) - 1
        missing = set[tuple[int, int]]()
        for part in entries(self.X):
            absent = np.isnan(self.X.data[part])
            row, column = rows(self.X, part)[absent], columns(self.X, part)[absent]
            of_these = counts[row] & wanted[column]
            missing |= set(zip(column[of_these].tolist(), of_counting[row[of_these]].tolist(), strict=True))
        last, counting = np.zeros(len(wanted), np.intp), np.flatnonzero(counts)
        for column in np.flatnonzero(wanted).tolist():
            n = len(counting) - 1
            while (column, n) in missing:
                n -= 1
            last[column] = counting[n]
        return last

    def infinities(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """See `Batch`."""
        for part in entries(self.X):
            infinite = np.isinf(self.X.data[part])
            yield rows(self.X, part)[infinite], columns(self.X, part)[infinite]


class Summary(NamedTuple):
    """What running statistics need to know of a batch; O(channels)."""

    moments: Moments
    # For each channel, the total weight of its values, without recency; with `count_values`, their number.
    observed: NDArray[np.float64]
    # Rows, or nanoseconds, since the last value of each channel, with `halflife`; else 0.
    age: NDArray[np.float64]
    n_samples: int
    # Samples of positive weight.
    n_positive: int
    # How much older the batch makes what was known before it: rows, or nanoseconds if it has times.
    span: float


def summary(
    X: Batch,
    weights: NDArray[np.float64] | None,
    n_threads: int | None,
    *,
    halflife: float | None = None,
    times: NDArray[np.float64] | None = None,
    count_values: bool = False,
) -> Summary:
    """The summary of a batch.

    Parameters
    ----------
    X : Batch
    weights, n_threads
        As in `Batch.moments`.
    halflife : float or None
        Rows, or nanoseconds, after which the weight of a row halves; the last row has weight 1.
    times : ndarray of shape (N,), float64, or None
        With `halflife`, nanoseconds from the row before the batch to each of its rows. None counts rows.
    count_values : bool
        Let `observed` be the number of values whose weight is not 0.
    """
    n_samples = X.shape[0]
    n_positive = n_samples if weights is None else int(np.sum(weights.any(axis=tuple(range(1, weights.ndim)))))
    if halflife is None:
        batch, missing = X.moments(weights, n_threads)
        seen = batch.count
        if count_values:
            positive = None if weights is None else (weights > 0).astype(np.float64)
            seen = _observed(X, positive, missing, n_threads)
        return Summary(batch, seen, np.zeros_like(seen), n_samples, n_positive, n_samples)
    if times is None:
        span = float(n_samples)
        batch, missing = X.moments(weights, n_threads, halflife=halflife)
    else:
        span = float(times[-1])
        batch, missing = X.moments(_with_recency(weights, faded(span - times, halflife)), n_threads)
    seen = _observed(X, weights, missing, n_threads)
    # Weights of a feature whose last value lies hundreds of half-lives before the end underflow: summarize halves, and
    # join them, so that its weights start from 1 in the first half.
    least = 1e-200 * seen
    if isinstance(X, Sparse):  # the weight of zeros is a difference of sums, that of all and of what is stored
        recency = recency_weights(n_samples, halflife) if times is None else faded(span - times, halflife)
        least = np.where(seen > 0, 1e-4 * np.sum(_with_recency(weights, recency)), 0.0)
    if n_samples > 1 and np.any(batch.count < least):
        half = n_samples // 2
        options: dict[str, Any] = {"n_threads": n_threads, "halflife": halflife}
        first, last = (None, None) if weights is None else (weights[:half], weights[half:])
        early, late = (None, None) if times is None else (times[:half], times[half:] - times[half - 1])
        parts = summary(X[:half], first, times=early, **options), summary(X[half:], last, times=late, **options)
        return joined(parts, halflife)
    age = np.where(batch.count > 0, 0.0, span)
    if missing or weights is not None:
        since = np.arange(n_samples - 1.0, -1, -1) if times is None else span - times
        there, whole = batch.count > 0, _observed(X, weights, False, n_threads)
        counts = np.ones(n_samples, bool)
        if weights is not None:
            np.any(weights, axis=tuple(range(1, weights.ndim)), out=counts)
        last = np.full(len(age), np.flatnonzero(counts)[-1] if counts.any() else 0)
        some = np.asarray(there & (seen != whole))
        if some.any():
            last[some] = X.last_values(weights, counts, some)[some]
        age[there] = since[last[there]]
        batch = scaled(batch, np.where(there, 1 / faded(np.where(there, age, 0.0), halflife), 1.0))
    return Summary(batch, seen, age, n_samples, n_positive, span)


def _with_recency(weights: NDArray[np.float64] | None, recency: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of samples or positions, times those of the samples."""
    return recency if weights is None else (recency * weights.T).T


def joined(parts: Sequence[Summary], halflife: float | None = None) -> Summary:
    """The summary of consecutive batches, from those of each."""
    if halflife is not None:
        return functools.reduce(functools.partial(_followed, halflife), parts)
    of_each, observed, age, n_samples, n_positive, span = zip(*parts, strict=True)
    total = merge_blocks(np.stack(of_each, axis=1))
    return Summary(total, np.sum(observed, axis=0), age[0], sum(n_samples), sum(n_positive), sum(span))


def _followed(halflife: float, a: Summary, b: Summary) -> Summary:
    total, age = update_halflife(a.moments, a.age, b.moments, b.span, halflife, b.age)
    counts = a.n_samples + b.n_samples, a.n_positive + b.n_positive
    return Summary(total, a.observed + b.observed, age, *counts, a.span + b.span)


def _observed(
    X: Batch, weights: NDArray[np.float64] | None, missing: bool, n_threads: int | None
) -> NDArray[np.float64]:
    """Total weight of the values of each channel."""
    if missing:
        return X.moments(weights, n_threads)[0].count
    per_weight = math.prod(X.shape[2:]) if weights is None or weights.ndim == 1 else 1
    return np.full(X.shape[1], per_weight * (X.shape[0] if weights is None else np.sum(weights)), np.float64)


# ---- sparse ----


def entries(X: Any) -> Iterator[slice]:
    """Slices of the stored values, a piece at a time."""
    n_stored, step = int(X.indptr[-1]), max(ENTRIES, X.shape[1])
    for start in range(0, n_stored, step):
        yield slice(start, min(start + step, n_stored))


def rows(X: Any, part: slice) -> NDArray[Any]:
    """Row of each stored value of `part`."""
    return _major(X, part) if X.format == "csr" else X.indices[part]


def columns(X: Any, part: slice) -> NDArray[Any]:
    """Column of each stored value of `part`."""
    return X.indices[part] if X.format == "csr" else _major(X, part)


def _major(X: Any, part: slice) -> NDArray[Any]:
    first = np.searchsorted(X.indptr, part.start, side="right") - 1
    stop = np.searchsorted(X.indptr, part.stop, side="left")
    lengths = np.diff(np.clip(X.indptr[first : stop + 1], part.start, part.stop))
    return np.repeat(np.arange(first, stop), lengths)


def _sparse_moments(X: Any, weights: NDArray[np.float64] | None) -> tuple[Moments, bool]:
    """Moments of the stored values, merged with the zeros between them."""
    if not X.has_canonical_format:  # a position that is stored twice would count twice
        X = X.copy()
        X.sum_duplicates()
    n_samples, n_channels = X.shape
    total, missing = Moments.empty(n_channels), False
    stored, stored_weight = np.zeros((2, n_channels))
    add = _kernels.sparse_sums

    for part in entries(X):
        at = columns(X, part).astype(np.intp, copy=False)
        weight = None if weights is None else weights[rows(X, part)]
        # Sum about a value of each column, so that deviations of a constant column are exactly 0.
        about, sums = np.zeros(n_channels), np.zeros((4, n_channels))
        add(X.data[part], at, weight, about, True, sums)
        if np.any(_far(*sums[1:])):
            about += _ratio(sums[2], sums[1])
            sums[:] = 0
            add(X.data[part], at, weight, about, False, sums)
        all_weight, count, deviation, squares = sums
        step = _ratio(deviation, count)
        total = merge(total, Moments(count, *two_sum(about, step), squares - deviation * step))
        stored += all_weight if weight is None else np.bincount(at, weight > 0, n_channels)
        stored_weight += all_weight
        missing = missing or bool(np.isnan(X.data[part]).any())

    everything, n_counted = (n_samples, n_samples) if weights is None else (np.sum(weights), np.count_nonzero(weights))
    # The weight of the zeros: exactly 0 for a column without zeros of positive weight, whatever the rounding of sums.
    zeros = np.where(stored == n_counted, 0.0, np.maximum(everything - stored_weight, 0.0))
    none = np.zeros(n_channels)
    return merge(total, Moments(zeros, none, none, none)), missing


def _far(count: NDArray[np.float64], deviation: NDArray[np.float64], squares: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Columns whose mean lies over 8 standard deviations from the value they were summed about: digits are lost."""
    between = deviation * _ratio(deviation, count)
    return between > 64 * (squares - between)


def _ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _sparse_apply(X: Any, scale: NDArray[np.float64], out: Any) -> tuple[Any, int]:
    """Each stored value times the scale of its column; looks for infinities in the results, and only then in X."""
    y = X.copy() if out is None else out
    none = np.zeros_like(scale)
    c, fits = rounded(Coefficients(none, scale, none), X.dtype)
    hides, seen = not (np.all(scale) and np.all(np.isfinite(scale))), 0
    for part in entries(X):
        values = X.data[part]
        at = columns(X, part)
        with np.errstate(over="ignore", invalid="ignore"):
            products = (values * c.scale.take(at)).astype(y.dtype, copy=False)
            if fits is not None:
                odd = ~fits.take(at)
                products[odd] = values[odd] * scale.take(at[odd])
        overflown = np.isinf(products).any()
        if (hides or overflown) and np.isinf(values).any():
            seen |= _kernels.IN_X
        if overflown:
            seen |= _kernels.IN_Y_OF_BOTH
        y.data[part] = products
    return y, seen


def clipped(y: Any, clip: float | None) -> Any:
    """`y`, an array or a sparse matrix, limited to [-clip, clip] in place. NaN stays NaN."""
    if clip is not None:
        if not isinstance(y, np.ndarray) and not y.has_canonical_format:
            y = y.copy()
            y.sum_duplicates()  # parts of a value are clipped together
        values = y if isinstance(y, np.ndarray) else y.data
        with np.errstate(over="ignore"):
            most = np.array(clip).astype(values.dtype)
        if np.isinf(most):  # the largest number of a narrow type
            most = np.nextafter(most, np.zeros_like(most))
        np.clip(values, -most, most, out=values)
    return y
