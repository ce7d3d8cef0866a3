"""A batch of samples, dense or sparse: its statistics, and coefficients applied to it.

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
from scipy.sparse import issparse

from bncpu import _buffers, _dispatch, _layout, _normalize
from bncpu._device import DeviceBatch, OpaqueBatch
from bncpu.moments import (
    Coefficients,
    Moments,
    merge,
    merge_blocks,
    recency_weights,
    rounded,
    two_sum,
    update_halflife,
)

# Values converted at a time: 8 MiB of float64.
PIECE = 1 << 20

# At least so many stored values of a sparse matrix make a piece: the moments of each piece cost O(channels).
ENTRIES = 1 << 18


class Summary(NamedTuple):
    """What running statistics need to know of a batch; O(channels)."""

    moments: Moments
    # For each channel, the total weight of its values, without recency; with `count_values`, their number.
    observed: NDArray[np.float64]
    # Rows since the last value of each channel, with `halflife`; else 0.
    age: NDArray[np.float64]
    n_samples: int
    # Samples of positive weight.
    n_positive: int


def summary(
    X: Any,
    weights: NDArray[np.float64] | None,
    n_threads: int | None,
    *,
    halflife: float | None = None,
    count_values: bool = False,
) -> Summary:
    """The summary of a batch; `X`, `weights` and `n_threads` are those of `moments`.

    Parameters
    ----------
    X, weights, n_threads
    halflife : float or None
        Rows after which the weight of a row halves; the last row has weight 1.
    count_values : bool
        Let `observed` be the number of values whose weight is not 0.
    """
    n_samples = X.shape[0]
    n_positive = n_samples if weights is None else int(np.count_nonzero(weights))
    if halflife is None:
        batch, missing = moments(X, weights, n_threads)
        seen = batch.count
        if count_values:
            positive = None if weights is None else (weights > 0).astype(np.float64)
            seen = _observed(X, positive, missing, n_threads)
        return Summary(batch, seen, np.zeros_like(seen), n_samples, n_positive)
    batch, missing = moments(X, weights, n_threads, halflife=halflife)
    seen = _observed(X, weights, missing, n_threads)
    # Weights of a feature whose last value lies hundreds of half-lives before the end underflow: summarize halves, and
    # join them, so that its weights start from 1 in the first half.
    if n_samples > 1 and np.any(batch.count < 1e-200 * seen):
        half = n_samples // 2
        options: dict[str, Any] = {"n_threads": n_threads, "halflife": halflife}
        first, last = (None, None) if weights is None else (weights[:half], weights[half:])
        return joined((summary(X[:half], first, **options), summary(X[half:], last, **options)), halflife)
    return Summary(batch, seen, np.where(batch.count > 0, 0.0, n_samples), n_samples, n_positive)


def joined(parts: Sequence[Summary], halflife: float | None = None) -> Summary:
    """The summary of consecutive batches, from those of each."""
    if halflife is not None:
        return functools.reduce(functools.partial(_followed, halflife), parts)
    of_each, observed, age, n_samples, n_positive = zip(*parts, strict=True)
    total = merge_blocks(np.stack(of_each, axis=1))
    return Summary(total, np.sum(observed, axis=0), age[0], sum(n_samples), sum(n_positive))


def _followed(halflife: float, a: Summary, b: Summary) -> Summary:
    total, age = update_halflife(a.moments, a.age, b.moments, b.n_samples, halflife, b.age)
    return Summary(total, a.observed + b.observed, age, a.n_samples + b.n_samples, a.n_positive + b.n_positive)


def _observed(X: Any, weights: NDArray[np.float64] | None, missing: bool, n_threads: int | None) -> NDArray[np.float64]:
    """Total weight of the values of each channel."""
    if missing:
        return moments(X, weights, n_threads)[0].count
    per_sample = math.prod(X.shape[2:])
    return np.full(X.shape[1], per_sample * (X.shape[0] if weights is None else np.sum(weights)), np.float64)


def pieces(X: NDArray[Any]) -> Iterator[slice]:
    """Slices of samples that are converted together, of about `PIECE` values."""
    step = max(1, PIECE // max(1, X[:1].size))
    for start in range(0, len(X), step):
        yield slice(start, start + step)


def moments(
    X: Any, weights: NDArray[np.float64] | None, n_threads: int | None, *, halflife: float | None = None
) -> tuple[Moments, bool]:
    """Moments of each channel, NaN left out, and whether there may have been a NaN.

    Parameters
    ----------
    X : ndarray or OpaqueBatch of shape (N, C, ...), or CSR or CSC matrix of shape (N, C)
    weights : ndarray of shape (N,), float64, or None
        One per sample.
    n_threads : int or None
    halflife : float or None
        Rows after which the weight of a row halves; the last row has weight 1.
    """
    plain = not issparse(X) and not isinstance(X, OpaqueBatch)
    x4 = _layout.in_form(X, (1,))[0] if plain else None
    if halflife is not None:
        if x4 is not None and X.ndim == 2 and weights is None:
            return _normalize.moments(x4, None, skip_missing=True, n_threads=n_threads, halflife=halflife)
        recency = recency_weights(X.shape[0], halflife)
        weights = recency if weights is None else recency * weights
    if issparse(X):
        return _sparse_moments(X, weights)
    if isinstance(X, OpaqueBatch):
        return X.moments(weights, n_threads)
    if x4 is not None and (weights is None or X.ndim == 2):
        return _normalize.moments(x4, weights, skip_missing=True, n_threads=n_threads)
    total, missing = Moments.empty(X.shape[1]), False
    for part in pieces(X):
        x4, layout = _layout.canonical(X[part], (1,))
        w = None if weights is None else layout.positions(weights[part], X[part].shape)
        some, nan = _normalize.moments(x4, w, skip_missing=True, n_threads=n_threads)
        total, missing = merge(total, some), missing or nan
    return total, missing


def apply(
    X: Any,
    coefficients: Coefficients,
    *,
    dtype: np.dtype[Any] | None = None,
    out: Any = None,
    n_threads: int | None = None,
) -> tuple[Any, bool]:
    """``(X - mean) * scale + shift``, and whether X holds an infinity.

    Parameters
    ----------
    X : ndarray or DeviceBatch of shape (N, C, ...), or CSR or CSC matrix of shape (N, C)
        For sparse matrices mean and shift must be 0.
    coefficients : Coefficients
        In float64.
    dtype : dtype, optional
        Of the result; by default what `_layout.result_dtype` says. Not for device arrays.
    out : ndarray of the shape and dtype of the result, device array like that of X, X itself, or None
    n_threads : int or None
    """
    if isinstance(X, DeviceBatch):
        return X.apply(coefficients, out), False
    dtype = _layout.result_dtype(X.dtype, dtype)
    if issparse(X):
        y, infinite = _sparse_apply(X, coefficients.scale, out)
        return y.astype(dtype, copy=False), infinite
    x4, layout = _layout.in_form(X, (1,))
    if x4 is not None:
        y = _layout.target((layout,), out, X, dtype=dtype)
        infinite = _normalize.apply(x4, layout.form(y), coefficients, n_threads=n_threads)
        return _layout.delivered(y, out, dtype), infinite
    infinite = False
    apart = out is not None and not _layout.overlap(X, out)
    y = out if apart else _buffers.empty_like(X, dtype)
    for part in pieces(X):
        x, layout = _layout.ready(X[part], (1,))
        piece = _layout.target((layout,), y[part], x, dtype=dtype)
        infinite |= _normalize.apply(layout.form(x), layout.form(piece), coefficients, n_threads=n_threads)
        _layout.delivered(piece, y[part], dtype)
    return _layout.delivered(y, out, dtype), infinite


def can_be_overwritten(X: Any, dtype: np.dtype[Any] | None = None) -> bool:
    """Whether `apply` can write its result, of `dtype` if that is given, over X."""
    if isinstance(X, DeviceBatch):
        return True
    values = X.data if issparse(X) else X
    same = values.dtype == _layout.result_dtype(values.dtype, dtype)
    return same and bool(values.flags.writeable) and _layout.apart(values)


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
    add = _dispatch.kernels(X.data).sparse_sums

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
        missing = missing or not np.array_equal(all_weight, count)

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


def _sparse_apply(X: Any, scale: NDArray[np.float64], out: Any) -> tuple[Any, bool]:
    """Each stored value times the scale of its column."""
    y = X.copy() if out is None else out
    none = np.zeros_like(scale)
    c, fits = rounded(Coefficients(none, scale, none), X.dtype)
    infinite = False
    for part in entries(X):
        values = X.data[part]
        infinite = infinite or bool(np.isinf(values).any())
        at = columns(X, part)
        with np.errstate(over="ignore", invalid="ignore"):
            y.data[part] = values * c.scale.take(at)
            if fits is not None:
                odd = ~fits.take(at)
                y.data[part][odd] = values[odd] * scale.take(at[odd])
    return y, infinite
