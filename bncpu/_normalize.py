"""Moments, forward and backward passes over arrays in one of the two forms, by the fastest way that each can take.

Arrays are 4-D views (groups, outer, channels, inner). Parameters and statistics are flat arrays with one value for each
channel of each group.

The ways a call can take, the fastest first. All give the same bits.

=================================  ============================================================  ===================
way                                where                                                         x is read
=================================  ============================================================  ===================
short: ``_kernels.*_plain``        plain C-contiguous arrays, channels on axis 1 or the last,    as fused or
                                   parameters that float32 holds; chosen by `functional`,        as they are
                                   `transformer`
turned: ``_kernels.normalize``     channels of 2 to 64 values, each normalized by itself;         once
                                   chosen by `_two_steps`
fused: ``_kernels._both``          both steps wanted, and `_resident_channels` finds channels    once
                                   whose values stay in the cache in between
wide rows: ``_kernels._run_wide``  contiguous rows, channels repeated to rows of 4 KiB           once a step
as they are: ``_kernels._run``     other rows and planes                                         once a step
in float64: `_pieces`              channels with coefficients that float32 does not hold         once a step
=================================  ============================================================  ===================

Results are stored past the cache where they are large (`streams`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bncpu import _kernels
from bncpu.moments import (
    Coefficients,
    Gradient,
    Moments,
    fold_saved,
    fold_saved_backward,
    merge_blocks,
    rounded,
    rounded_gradient,
    saved_statistics,
    sum_blocks,
    sums_with_x_hat,
)
from bncpu.saved import SavedStatistics

Array = NDArray[np.floating[Any]]

# Values converted to float64 at a time, where float32 does not suffice.
PIECE = 1 << 16

NOTHING: Any = Coefficients(*[None] * 3)  # type: ignore[arg-type]


def moments(
    x4: Array,
    weights: NDArray[np.float64] | None,
    *,
    skip_missing: bool,
    n_threads: int | None,
    halflife: float | None = None,
    counted: NDArray[np.bool_] | None = None,
) -> tuple[Moments, bool]:
    """Moments of each channel of `x4`, and whether NaN may have been left out.

    Parameters
    ----------
    x4 : ndarray of shape (groups, outer, channels, inner), of a dtype that `_layout.is_read` names
        In one of the two forms. Sums of integers of 8 and 16 bits, without weights, have no rounding within a block.
    weights : ndarray of shape (outer * inner,), float64, or None
    skip_missing : bool
        Leave NaN out; otherwise NaN and infinity propagate within their channel.
    n_threads : int or None
    halflife : float, optional
        Positions after which the weight of a value halves; the last one has weight 1. Only without `weights`, and where
        `outer` or `inner` is 1.
    counted : ndarray of the shape of `x4`, bool, optional
        Which values count. In the form of `x4`, but with a stride of 0 along the channels of rows.
    """
    if x4.size == 0:
        return Moments.empty(x4.shape[0] * x4.shape[2]), False
    n = _kernels.threads(n_threads, _computed_bytes(x4))
    blocks, missing = _kernels.moments(x4, weights, skip_missing, n, halflife, counted)
    return merge_blocks(blocks), missing


def moments_of_planes(
    planes: Sequence[Array], weights: NDArray[np.float64] | None, *, skip_missing: bool, n_threads: int | None
) -> tuple[Moments, bool]:
    """`moments` of channels in separate arrays: the same bits as from one array of shape (1, 1, channels, inner).

    Parameters
    ----------
    planes : sequence of ndarray of shape (inner,), all of one length and type
    weights, skip_missing, n_threads
    """
    n = _kernels.threads(n_threads, planes[0].nbytes)
    collect = _kernels.moments
    found = [collect(plane.reshape(1, 1, 1, -1), weights, skip_missing, n) for plane in planes]
    return merge_blocks(np.concatenate([blocks for blocks, _ in found], axis=-1)), any(nan for _, nan in found)


def apply(
    x4: Array,
    y4: Array,
    coefficients: Coefficients,
    *,
    residual: Array | None = None,
    relu: bool = False,
    past_cache: bool | None = None,
    n_threads: int | None = None,
    both: bool | None = None,
) -> int:
    """Write ``(x - mean) * scale + shift`` to `y4`; say what infinities were met, as `_kernels.apply` does.

    Parameters
    ----------
    x4, y4 : ndarray of shape (groups, outer, channels, inner)
        Both in the same form; `y4` may be `x4`, and must not overlap it otherwise. `x4` of a dtype that
        `_layout.is_read` names, `y4` of any float.
    coefficients : Coefficients
        In float64.
    residual : ndarray of the shape, dtype and form of `x4`, optional
        Added to the result. Then all are float32 or float64.
    relu : bool, default=False
        Replace negative results by 0, after `residual` was added.
    past_cache : bool, optional
        Whether to store past the cache; by default what `streams` says of these arrays.
    n_threads : int or None
    both : bool, optional
        Say of `x4` and `y4` apart; only without `residual` and `relu`. By default where an infinity in `x4` need not
        make one in `y4`.
    """
    c, fits = rounded(coefficients, _computed_in(x4, y4))
    n = _kernels.threads(n_threads, _computed_bytes(x4))
    past_cache = goes_past_cache(y4, x4, residual) if past_cache is None else past_cache
    both = residual is None and not relu and _hides(coefficients) if both is None else both
    if fits is None:
        return _kernels.apply(x4, y4, residual, *c, relu, past_cache, n, both)
    seen = 0
    for arrays, own, fit in _runs((x4, residual, y4), fits):
        if fit:
            x, z, y = arrays
            mean, scale, shift = _of(c, own)
            seen |= _kernels.apply(x, y, z, mean, scale, shift, relu, past_cache, n, both)
            continue
        for (x, z, y), some in _pieces(arrays, _of(coefficients, own)):
            wide, added = _float64(x), None if z is None else _float64(z)
            seen |= apply(wide, wide, some, residual=added, relu=relu, n_threads=n_threads, both=both)
            with np.errstate(all="ignore"):
                y[...] = wide
            if np.isinf(y).any():
                seen |= _kernels.IN_Y_OF_BOTH if both else _kernels.IN_Y
    return seen


def _hides(c: Coefficients) -> bool:
    """Whether results of a channel may not be infinite where x is."""
    with np.errstate(all="ignore"):
        return not (np.all(c.scale) and np.all(np.isfinite(c.mean + c.scale + c.shift)))


def backward_sums(
    dy4: Array,
    x4: Array,
    center: NDArray[np.float64],
    *,
    relu: Coefficients | None = None,
    residual: Array | None = None,
    n_threads: int | None = None,
) -> NDArray[np.float64]:
    """Sums of g and of ``g * (x - center)`` of each channel. g is `dy4`, but 0 where ReLU gave 0.

    Parameters
    ----------
    dy4, x4 : ndarray of shape (groups, outer, channels, inner), float32 or float64
        In the same form.
    center : ndarray of groups * channels values, float64
    relu : Coefficients, optional
        Of the forward pass, if that had ReLU: its result is computed again.
    residual : ndarray of the shape, dtype and form of `x4`, optional
        Of the forward pass, if that had ReLU.
    n_threads : int or None

    Returns
    -------
    ndarray of shape (2, groups * channels), float64
    """
    if x4.size == 0:
        return np.zeros((2, len(center)))
    c, fits = (NOTHING, None) if relu is None else rounded(relu, x4.dtype)
    if relu is not None and fits is not None:
        return backward_sums(_passed(dy4, x4, relu, residual), x4, center, n_threads=n_threads)
    n = _kernels.threads(n_threads, x4.nbytes)
    sums = _kernels.backward_sums(dy4, x4, residual, center, c.mean, c.scale, c.shift, relu is not None, n)
    return sum_blocks(sums)


def backward_apply(
    dy4: Array,
    x4: Array,
    dx4: Array,
    gradient: Gradient,
    *,
    relu: Coefficients | None = None,
    residual: Array | None = None,
    dresidual: Array | None = None,
    past_cache: bool | None = None,
    n_threads: int | None = None,
    counted: NDArray[np.bool_] | None = None,
) -> None:
    """Write ``dy_scale * g + x_scale * (x - mean) + offset`` to `dx4`, and g to `dresidual`.

    Parameters
    ----------
    dy4, x4, dx4 : ndarray of shape (groups, outer, channels, inner), float32 or float64
        In the same form; `dx4` may be one of the others, and must not overlap them otherwise.
    gradient : Gradient
        In float64.
    relu : Coefficients, optional
        Of the forward pass, if that had ReLU: its result is computed again, and g is 0 where that is 0, else `dy4`.
    residual, dresidual : ndarray of the shape, dtype and form of `x4`, optional
        The residual of the forward pass, if that had ReLU, and where to write its gradient.
    past_cache : bool, optional
        As for `apply`.
    n_threads : int or None
    counted : ndarray, optional
        As for `moments`. A value that does not count gets ``dy_scale * g``.
    """
    k, fits = rounded_gradient(gradient, x4.dtype)
    c, relu_fits = (NOTHING, None) if relu is None else rounded(relu, x4.dtype)
    fits = fits if relu_fits is None else relu_fits if fits is None else fits & relu_fits
    n = _kernels.threads(n_threads, x4.nbytes)
    past_cache = goes_past_cache(dx4, dy4, x4, residual) if past_cache is None else past_cache
    every = (k.mean, c.scale, c.shift, k.dy_scale, k.x_scale, k.offset)
    if fits is None:
        _kernels.backward_apply(dy4, x4, residual, dx4, dresidual, *every, relu is not None, past_cache, n, counted)
        return
    for arrays, own, fit in _runs((dy4, x4, residual, dresidual, dx4, counted), fits):
        if fit:
            dy, x, z, dz, dx, counts = arrays
            of_channels: tuple[Any, Any, Any, Any, Any, Any] = _of(every, own)
            _kernels.backward_apply(dy, x, z, dx, dz, *of_channels, relu is not None, past_cache, n, counts)
            continue
        for (dy, x, z, dz, dx, counts), (some, forward) in _pieces(arrays, (_of(gradient, own), _of(relu, own))):
            g = dy if forward is None else _passed(dy, x, forward, z)
            if dz is not None:
                dz[...] = g
            wide = _float64(x)
            backward_apply(_float64(g), wide, wide, some, n_threads=n_threads, counted=counts)
            with np.errstate(all="ignore"):
                dx[...] = wide


def forward(
    x4: Array,
    y4: Array,
    gamma: NDArray[np.float64] | None,
    beta: NDArray[np.float64] | None,
    eps: float,
    *,
    residual: Array | None = None,
    relu: bool = False,
    n_threads: int | None = None,
    counted: NDArray[np.bool_] | None = None,
) -> tuple[Moments, SavedStatistics]:
    """Normalize with the statistics of the array itself: `moments`, then `apply` with them.

    Parameters
    ----------
    x4, y4, residual, relu, n_threads
        As for `apply`.
    gamma, beta : ndarray of groups * channels values, float64, or None
    eps : float
    counted : ndarray, optional
        As for `moments`.
    """
    if x4.size == 0:
        found = Moments.empty(x4.shape[0] * x4.shape[2])
        return found, saved_statistics(found, eps)
    n = _kernels.threads(n_threads, x4.nbytes)
    sums, invstd, done, channels = _kernels.forward(
        x4, y4, residual, gamma, beta, eps, relu, _is_apart(y4, x4, residual), n, counted
    )
    found = Moments(*np.ascontiguousarray(sums[:, 0]))
    saved = SavedStatistics(found.mean, invstd, found.mean_lo)
    if not done.all():
        c = fold_saved(saved, gamma, beta)
        for (x, z, y), own in _not_done((x4, residual, y4), done, channels):
            apply(x, y, _of(c, own), residual=z, relu=relu, n_threads=n_threads)
    return found, saved


def is_short(x4: Array) -> bool:
    """Whether `normalize` takes arrays of this shape."""
    return x4.shape[1] == 1 and 2 <= x4.shape[3] <= _kernels.SHORT and x4.size > 0


def normalize(
    x4: Array,
    y4: Array,
    eps: float,
    statistics: Callable[[Moments, float], SavedStatistics],
    affine: Coefficients | None,
    *,
    keep: bool,
    past_cache: bool,
    n_threads: int | None,
) -> Moments:
    """Normalize each of many short channels by its own `statistics`, then apply `affine` along them.

    The bits are those of `moments`, `apply` with the coefficients that follow from them, and `apply` of `affine`.

    Parameters
    ----------
    x4, y4 : ndarray of shape (groups, 1, channels, inner)
        `is_short` must hold for `x4`. `y4` may be `x4`, and must not overlap it otherwise.
    eps : float
    statistics : `saved_statistics` or `rms_statistics`
    affine : Coefficients or None
        Of `inner` values each, in the dtype of `x4`; its mean is 0.
    keep : bool
        Whether to return the moments; otherwise empty ones are returned.
    past_cache : bool
    n_threads : int or None
    """
    channels, inner = x4.shape[2:]
    gamma, beta = (None, None) if affine is None else affine[1:]
    past_cache = past_cache and (channels == 1 or y4.strides[2] == inner * y4.itemsize)
    n = _kernels.threads(n_threads, x4.nbytes)
    centred = statistics is saved_statistics
    sums, done = _kernels.normalize(x4, y4, gamma, beta, eps, centred, keep, past_cache, n)
    table = np.empty((3, 0)) if sums is None else sums[:, 0]
    found = Moments(np.full(table.shape[1], float(inner)), *table)
    if not done.all():
        for (x, y), own, is_done in _runs((x4, y4), done.reshape(-1) != 0):
            if is_done:
                continue
            some, _ = moments(x, None, skip_missing=False, n_threads=n_threads)
            c = fold_saved(statistics(some, eps))
            flat = (np.ascontiguousarray(np.broadcast_to(values, some.mean.shape)) for values in c)
            apply(x, y, Coefficients(*flat), past_cache=False, n_threads=n_threads)
            if affine is not None:
                rows = y.transpose(0, 2, 3, 1)
                apply(rows, rows, affine, past_cache=False, n_threads=n_threads)
            if keep:
                for to, values in zip(found, some, strict=True):
                    to[own] = values
    return found


def backward(
    dy4: Array,
    x4: Array,
    dx4: Array,
    saved: SavedStatistics,
    gamma: NDArray[np.float64] | None,
    *,
    relu: Coefficients | None = None,
    residual: Array | None = None,
    dresidual: Array | None = None,
    n_threads: int | None = None,
    counted: NDArray[np.bool_] | None = None,
    counts: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gradient of `forward`: `backward_sums`, then `backward_apply` with the coefficients that follow from them.

    Parameters
    ----------
    dy4, x4, dx4, relu, residual, dresidual, n_threads, counted
        As for `backward_apply`.
    saved : SavedStatistics
        Of groups * channels values each.
    gamma : ndarray of groups * channels values, float64, or None
    counts : ndarray of groups * channels values, float64, or None
        With `counted`: how many values of each channel count.

    Returns
    -------
    tuple of two ndarray of groups * channels values, float64
        Sums of g and of ``g * x_hat``.
    """
    c, fits = (NOTHING, None) if relu is None else rounded(relu, x4.dtype)
    n_values = x4.shape[1] * x4.shape[3]
    if x4.size == 0 or fits is not None:
        how: dict[str, Any] = {"relu": relu, "residual": residual, "n_threads": n_threads}
        total, product = backward_sums(dy4, x4, saved.mean, **how)
        along = sums_with_x_hat(total, product, saved)
        k = fold_saved_backward(saved, gamma, total, along, n_values if counts is None else counts)
        backward_apply(dy4, x4, dx4, k, dresidual=dresidual, counted=counted, **how)
        return total, along
    lo = np.ascontiguousarray(np.broadcast_to(saved.mean_lo, saved.mean.shape), np.float64)
    apart, n = _is_apart(dx4, dy4, x4, residual), _kernels.threads(n_threads, x4.nbytes)
    statistics, of_relu = (saved.mean, lo, saved.invstd), (c.mean, c.scale, c.shift)
    sums, done, channels = _kernels.backward(
        dy4,
        x4,
        residual,
        dx4,
        dresidual,
        *statistics,
        gamma,
        *of_relu,
        relu is not None,
        apart,
        n,
        counted,
        counts,
    )
    total, along = np.ascontiguousarray(sums[:, 0])
    if not done.all():
        k = fold_saved_backward(saved, gamma, total, along, n_values if counts is None else counts)
        arrays = (dy4, x4, residual, dresidual, dx4, counted)
        for (dy, x, z, dz, dx, mask), own in _not_done(arrays, done, channels):
            some, of_some = _of(k, own), _of(relu, own)
            backward_apply(dy, x, dx, some, relu=of_some, residual=z, dresidual=dz, n_threads=n_threads, counted=mask)
    return total, along


def _not_done(
    arrays: tuple[NDArray[Any] | None, ...], done: NDArray[np.uint8], channels: int
) -> Iterator[tuple[tuple[Any, ...], slice]]:
    """For each task that is not done: its channels of every array, and their slice of the flat parameters."""
    n_channels = next(a for a in arrays if a is not None).shape[2]
    for group, task in np.argwhere(done == 0).tolist():
        start, stop = task * channels, min((task + 1) * channels, n_channels)
        at = slice(group, group + 1), slice(None), slice(start, stop)
        yield (
            tuple(None if a is None else a[at] for a in arrays),
            slice(group * n_channels + start, group * n_channels + stop),
        )


def _computed_in(x: Array, y: Array) -> np.dtype[Any]:
    """float64 if the result is float64, or if float32 does not hold all values of `x`; else float32."""
    narrow = x.dtype == np.float32 or x.dtype.itemsize <= 2
    return np.dtype(np.float32 if narrow and y.dtype != np.float64 else np.float64)


def _computed_bytes(x: Array) -> int:
    """Bytes of `x`, counting at least 4 a value: narrower values are as much work."""
    return max(x.nbytes, 4 * x.size)


def goes_past_cache(y: Array, *others: Array | None) -> bool:
    """Whether to store `y` past the cache: if it is large, and not read, too."""
    return y.nbytes >= _kernels.PAST_CACHE_BYTES and _is_apart(y, *others)


def _is_apart(y: Array, *others: Array | None) -> bool:
    return not any(a is not None and np.may_share_memory(a, y) for a in others)


def _of(parameters: Any, own: slice) -> Any:
    """The slice `own` of each array in a tuple, or in tuples of them; None stays None."""
    if parameters is None:
        return None
    if isinstance(parameters, np.ndarray):
        return parameters[own]
    some = [_of(p, own) for p in parameters]
    return type(parameters)(*some) if hasattr(parameters, "_fields") else tuple(some)


def _runs(
    arrays: tuple[NDArray[Any] | None, ...], fits: NDArray[np.bool_]
) -> Iterator[tuple[tuple[Any, ...], slice, bool]]:
    """The arrays, cut where channels that fit float32 meet others; the flat channels of each run, and whether they fit.

    Yields the arrays of each run, the slice of its channels in the flat parameters, and whether they fit. So a channel
    is computed in the same way whatever its neighbours are.
    """
    x4 = next(a for a in arrays if a is not None)
    groups, _, channels, _ = x4.shape
    table = fits.reshape(groups, channels)
    whole: NDArray[np.bool_] = np.all(table, axis=1)

    def cut(*at: slice) -> tuple[Any, ...]:
        return tuple(None if a is None else a[at] for a in arrays)

    for first, last in _equal(whole):
        if whole[first]:
            yield cut(slice(first, last)), slice(first * channels, last * channels), True
            continue
        for group in range(first, last):
            for start, stop in _equal(table[group]):
                own = slice(group * channels + start, group * channels + stop)
                yield cut(slice(group, group + 1), slice(None), slice(start, stop)), own, bool(table[group, start])


def _equal(values: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of equal values."""
    edges = (np.flatnonzero(np.diff(values)) + 1).tolist()
    yield from zip([0, *edges], [*edges, len(values)], strict=True)


def _pieces(arrays: tuple[NDArray[Any] | None, ...], parameters: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Pieces of one group, of some `PIECE` values, and the parameters of their channels."""
    x4 = next(a for a in arrays if a is not None)
    _, outer, channels, inner = x4.shape
    n, size = (outer, channels * inner) if outer > 1 else (channels, inner)
    step = max(1, PIECE // max(1, size))
    for start in range(0, n, step):
        some = slice(start, start + step)
        at, own = ((slice(None), some), slice(None)) if outer > 1 else ((slice(None), slice(None), some), some)
        yield tuple(None if a is None else a[at] for a in arrays), _of(parameters, own)


def _float64(a4: Array) -> NDArray[np.float64]:
    """A float64 copy in C order; its form is that of `a4`."""
    return a4.astype(np.float64, order="C")


def _passed(dy4: Array, x4: Array, c: Coefficients, residual: Array | None) -> Array:
    """`dy4` where ReLU let the forward pass through, else 0."""
    y = np.empty(x4.shape, x4.dtype)
    apply(x4, y, c, residual=residual)
    return np.where(y <= 0, x4.dtype.type(0), dy4)
