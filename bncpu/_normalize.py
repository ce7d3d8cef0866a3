"""Moments, forward and backward passes over arrays in one of the two forms: cutting, threads, stores.

Arrays are 4-D views (groups, outer, channels, inner); what belongs to a channel is a flat array with one value for each
channel of each group.

The ways a call can take, the fastest first. All give the same bits.

=================================  ============================================================  ===================
way                                where                                                         x is read
=================================  ============================================================  ===================
small: ``_kernels.*_small``        plain C-contiguous arrays of at most 2**16 values, channels   once, by one thread
                                   on axis 1; chosen by `functional` and `transformer`
fused: `forward`, `backward`       both steps wanted, and `_resident_channels` finds channels    once
                                   whose values stay in the cache in between
wide rows: `apply`,                contiguous rows, channels repeated to rows of 4 KiB           once a step
`backward_apply`, `_wide_rows`
as they are: the same              other rows and planes                                         once a step
in float64: `_pieces`              channels with coefficients that float32 does not hold         once a step
=================================  ============================================================  ===================

Results are stored past the cache where `streams` says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bncpu import _dispatch
from bncpu.moments import (
    Coefficients,
    Gradient,
    Moments,
    SavedStatistics,
    fold_saved,
    fold_saved_backward,
    merge_blocks,
    rounded,
    rounded_gradient,
    saved_statistics,
    sum_blocks,
    sums_with_x_hat,
)

Array = NDArray[np.floating[Any]]

# Blocks are cut by shape alone, so results do not depend on the number of threads. At most about this many
# of them keep scratch memory proportional to the channels.
MAX_BLOCKS = 128

# From this size on, storing past the cache wins; below it the result would be missed in the cache.
STREAM_BYTES = 16 << 20

# What of the arrays that are read stays in the second-level cache from one step of a pass to the next: half of one that
# holds 16 lines for each place within 128 KiB.
RESIDENT_BYTES = 1 << 20
PLACES_BYTES, PLACES_DEEP = 128 << 10, 8

# Then the results of a step are not in the cache before they are written, and streaming pays earlier.
STREAM_BYTES_FUSED = 4 << 20

# Rows are widened to at least this many values, and parameters repeated to match: 4 KiB of float32.
WIDE_ROW = 1024

# Values converted at a time where float32 does not suffice.
PIECE = 1 << 16

NOTHING: Any = Coefficients(*[None] * 3)  # type: ignore[arg-type]


def block_shape(outer: int, channels: int, inner: int) -> tuple[int, int]:
    """Outer positions and inner values of a block; one of the two spans its axis."""
    values = max(-(-outer * inner // MAX_BLOCKS), 1)
    if inner == 1:
        return max(values, 512, -(-131072 // max(channels, 1))), 1
    values = max(values, 65536)
    return (-(-values // inner), inner) if values >= inner else (1, values)


def _blocks(x4: Array, n_sums: int) -> tuple[int, int, NDArray[np.float64]]:
    """The shape of a block, and an array for so many sums of each block and channel."""
    groups, outer, channels, inner = x4.shape
    outer_block, inner_block = block_shape(outer, channels, inner)
    n_blocks = -(-outer // outer_block) * -(-inner // inner_block)
    return outer_block, inner_block, np.empty((n_sums, n_blocks, groups * channels))


def moments(
    x4: Array, weights: NDArray[np.float64] | None, *, skip_missing: bool, n_threads: int | None
) -> tuple[Moments, bool]:
    """Moments of each channel of `x4`, and whether NaN may have been left out.

    Parameters
    ----------
    x4 : ndarray of shape (groups, outer, channels, inner), float32 or float64
        In one of the two forms.
    weights : ndarray of shape (outer * inner,), float64, or None
    skip_missing : bool
        Leave NaN out; otherwise NaN and infinity propagate within their channel.
    n_threads : int or None
    """
    if x4.size == 0:
        return Moments.empty(x4.shape[0] * x4.shape[2]), False
    outer_block, inner_block, out = _blocks(x4, 4)
    missing = _dispatch.kernels(x4).moments(
        x4, weights, skip_missing, outer_block, inner_block, out, _dispatch.threads(n_threads, x4.nbytes)
    )
    with np.errstate(invalid="ignore", over="ignore"):
        return merge_blocks(out), missing


def apply(
    x4: Array,
    y4: Array,
    coefficients: Coefficients,
    *,
    residual: Array | None = None,
    relu: bool = False,
    stream: bool | None = None,
    n_threads: int | None = None,
) -> bool:
    """Write ``(x - mean) * scale + shift`` to `y4`; say whether `x4` holds an infinity.

    Parameters
    ----------
    x4, y4 : ndarray of shape (groups, outer, channels, inner), float32 or float64
        Both in the same form; `y4` may be `x4`, and must not overlap it otherwise.
    coefficients : Coefficients
        In float64.
    residual : ndarray of the shape, dtype and form of `x4`, optional
        Added to the result.
    relu : bool, default=False
        Replace negative results by 0, after `residual` was added.
    stream : bool, optional
        Whether to store past the cache; by default what `streams` says of these arrays.
    n_threads : int or None
    """
    c, fits = rounded(coefficients, x4.dtype)
    kernels, n = _dispatch.kernels(x4), _dispatch.threads(n_threads, x4.nbytes)
    stream = streams(y4, x4, residual) if stream is None else stream
    infinite = False
    for arrays, own, fit in _runs((x4, residual, y4), fits):
        if fit:
            for (x, z, y), p in _wide_rows(arrays, _of(c, own), stream):
                infinite |= kernels.apply(x, y, z, *p, relu, stream, n)
            continue
        for (x, z, y), some in _pieces(arrays, _of(coefficients, own)):
            wide, added = _float64(x), None if z is None else _float64(z)
            infinite |= apply(wide, wide, some, residual=added, relu=relu, n_threads=n_threads)
            with np.errstate(all="ignore"):
                y[...] = wide
    return infinite


def backward_sums(
    dy4: Array,
    x4: Array,
    center: NDArray[np.float64],
    *,
    relu: Coefficients | None = None,
    residual: Array | None = None,
    n_threads: int | None = None,
) -> NDArray[np.float64]:
    """Sums of g and of ``g * (x - center)`` of each channel; g is `dy4`, and 0 where ReLU stopped it.

    Parameters
    ----------
    dy4, x4 : ndarray of shape (groups, outer, channels, inner), float32 or float64
        In the same form.
    center : ndarray of groups * channels values, float64
    relu : Coefficients, optional
        Those of a forward pass with ReLU, whose result is computed again.
    residual : ndarray of the shape, dtype and form of `x4`, optional
        That of a forward pass with ReLU.
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
    outer_block, inner_block, out = _blocks(x4, 2)
    _dispatch.kernels(x4).backward_sums(
        dy4, x4, residual, center, *c, relu is not None, outer_block, inner_block, out,
        _dispatch.threads(n_threads, x4.nbytes),
    )  # fmt: skip
    with np.errstate(invalid="ignore", over="ignore"):
        return sum_blocks(out)


def backward_apply(
    dy4: Array,
    x4: Array,
    dx4: Array,
    gradient: Gradient,
    *,
    relu: Coefficients | None = None,
    residual: Array | None = None,
    dresidual: Array | None = None,
    stream: bool | None = None,
    n_threads: int | None = None,
) -> None:
    """Write ``dy_scale * g + x_scale * (x - mean) + offset`` to `dx4`, and g to `dresidual`.

    Parameters
    ----------
    dy4, x4, dx4 : ndarray of shape (groups, outer, channels, inner), float32 or float64
        In the same form; `dx4` may be one of the others, and must not overlap them otherwise.
    gradient : Gradient
        In float64.
    relu : Coefficients, optional
        Those of a forward pass with ReLU, whose result is computed again: g is 0 where that is, else `dy4`.
    residual, dresidual : ndarray of the shape, dtype and form of `x4`, optional
        That of a forward pass with ReLU, and its gradient.
    stream : bool, optional
        As for `apply`.
    n_threads : int or None
    """
    k, fits = rounded_gradient(gradient, x4.dtype)
    c, relu_fits = (NOTHING, None) if relu is None else rounded(relu, x4.dtype)
    fits = fits if relu_fits is None else relu_fits if fits is None else fits & relu_fits
    kernels, n = _dispatch.kernels(x4), _dispatch.threads(n_threads, x4.nbytes)
    stream = streams(dx4, dy4, x4, residual) if stream is None else stream
    every = (k.mean, c.scale, c.shift, k.dy_scale, k.x_scale, k.offset)
    for arrays, own, fit in _runs((dy4, x4, residual, dresidual, dx4), fits):
        if fit:
            for (dy, x, z, dz, dx), p in _wide_rows(arrays, _of(every, own), stream):
                kernels.backward_apply(dy, x, z, dx, dz, *p, relu is not None, stream, n)
            continue
        for (dy, x, z, dz, dx), (some, forward) in _pieces(arrays, (_of(gradient, own), _of(relu, own))):
            g = dy if forward is None else _passed(dy, x, forward, z)
            if dz is not None:
                dz[...] = g
            wide = _float64(x)
            backward_apply(_float64(g), wide, wide, some, n_threads=n_threads)
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
) -> tuple[Moments, SavedStatistics]:
    """Normalize with the array's own statistics: `moments`, then `apply` with them.

    Parameters
    ----------
    x4, y4, residual, relu, n_threads
        As for `apply`.
    gamma, beta : ndarray of groups * channels values, float64, or None
    eps : float
    """
    n = _dispatch.threads(n_threads, x4.nbytes)
    channels = _resident_channels(n, x4, residual)
    if not channels:
        found, _ = moments(x4, None, skip_missing=False, n_threads=n_threads)
        saved = saved_statistics(found, eps)
        apply(x4, y4, fold_saved(saved, gamma, beta), residual=residual, relu=relu, n_threads=n_threads)
        return found, saved
    outer_block, inner_block, sums = _blocks(x4, 4)
    width = sums.shape[2]
    invstd, folded = np.empty(width), np.empty((3, width), x4.dtype)
    done = np.empty((x4.shape[0], -(-x4.shape[2] // channels)), np.uint8)
    stream = streams(y4, x4, residual, least=STREAM_BYTES_FUSED)
    _dispatch.kernels(x4).forward(
        x4, y4, residual, gamma, beta, eps, relu, stream, outer_block, inner_block, channels, sums, invstd, folded,
        done, n,
    )  # fmt: skip
    found = Moments(*np.ascontiguousarray(sums[:, 0]))
    saved = SavedStatistics(found.mean, invstd)
    saved.mean_lo = found.mean_lo
    if not done.all():
        c = fold_saved(saved, gamma, beta)
        for (x, z, y), own in _not_done((x4, residual, y4), done, channels):
            apply(x, y, _of(c, own), residual=z, relu=relu, n_threads=n_threads)
    return found, saved


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
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gradient of `forward`: `backward_sums`, then `backward_apply` with what follows from them.

    Parameters
    ----------
    dy4, x4, dx4, relu, residual, dresidual, n_threads
        As for `backward_apply`.
    saved : SavedStatistics
        Of groups * channels values each.
    gamma : ndarray of groups * channels values, float64, or None

    Returns
    -------
    tuple of two ndarray of groups * channels values, float64
        Sums of g and of ``g * x_hat``.
    """
    n = _dispatch.threads(n_threads, x4.nbytes)
    channels = _resident_channels(n, x4, dy4, residual)
    c, fits = (NOTHING, None) if relu is None else rounded(relu, x4.dtype)
    count = x4.shape[1] * x4.shape[3]
    if not channels or fits is not None:
        total, product = backward_sums(dy4, x4, saved.mean, relu=relu, residual=residual, n_threads=n_threads)
        along = sums_with_x_hat(total, product, saved)
        k = fold_saved_backward(saved, gamma, total, along, count)
        backward_apply(dy4, x4, dx4, k, relu=relu, residual=residual, dresidual=dresidual, n_threads=n_threads)
        return total, along
    outer_block, inner_block, sums = _blocks(x4, 2)
    width = sums.shape[2]
    folded, done = np.empty((4, width), x4.dtype), np.empty((x4.shape[0], -(-x4.shape[2] // channels)), np.uint8)
    lo = np.ascontiguousarray(np.broadcast_to(saved.mean_lo, width), np.float64)
    stream = streams(dx4, dy4, x4, residual, least=STREAM_BYTES_FUSED)
    _dispatch.kernels(x4).backward(
        dy4, x4, residual, dx4, dresidual, saved.mean, lo, saved.invstd, gamma, *c, relu is not None, stream,
        outer_block, inner_block, channels, sums, folded, done, n,
    )  # fmt: skip
    total, along = np.ascontiguousarray(sums[:, 0])
    if not done.all():
        k = fold_saved_backward(saved, gamma, total, along, count)
        for (dy, x, z, dz, dx), own in _not_done((dy4, x4, residual, dresidual, dx4), done, channels):
            backward_apply(dy, x, dx, _of(k, own), relu=_of(relu, own), residual=z, dresidual=dz, n_threads=n_threads)
    return total, along


def _resident_channels(n_threads: int, *read: Array | None) -> int:
    """Channels whose values, of all arrays that are read, stay in the cache from one step to the next; 0 if not one's.

    Rows are read whole, so all of them must.
    """
    x4, *others = (a for a in read if a is not None)
    groups, outer, channels, inner = x4.shape
    if x4.size == 0:
        return 0
    n_bytes, tile = (1 + len(others)) * x4.itemsize * outer * inner, _dispatch.kernels(x4).TILE
    if inner == 1 and outer > 1:
        return min(channels, tile) if n_threads == 1 and n_bytes * channels <= RESIDENT_BYTES else 0
    fitting = min(channels, tile, RESIDENT_BYTES // n_bytes)
    # Where samples lie a power of two apart, most of the cache is not for them.
    apart, together = abs(x4.strides[1]), fitting * inner * x4.itemsize
    places = min(PLACES_BYTES, together * (PLACES_BYTES // math.gcd(PLACES_BYTES, apart)))
    if outer > 1 and n_bytes * fitting > PLACES_DEEP * places:
        return 0
    # Some tasks for each thread, so that none waits long for the last.
    return min(fitting, -(-groups * channels // (4 * n_threads))) if n_threads > 1 else fitting


def _not_done(
    arrays: tuple[Array | None, ...], done: NDArray[np.uint8], channels: int
) -> Iterator[tuple[tuple[Any, ...], slice]]:
    """The arrays' channels of each task that is not done, and where they are among all channels of all groups."""
    n_channels = next(a for a in arrays if a is not None).shape[2]
    for group, task in np.argwhere(done == 0).tolist():
        start, stop = task * channels, min((task + 1) * channels, n_channels)
        at = slice(group, group + 1), slice(None), slice(start, stop)
        yield (
            tuple(None if a is None else a[at] for a in arrays),
            slice(group * n_channels + start, group * n_channels + stop),
        )


def streams(y: Array, *others: Array | None, least: int = STREAM_BYTES) -> bool:
    """Whether to store `y` past the cache: if it is large, and not read, too."""
    return y.nbytes >= least and not any(a is not None and np.may_share_memory(a, y) for a in others)


def _of(parameters: Any, own: slice) -> Any:
    """Those of some channels: of a tuple of parameters, or of tuples of them; None stays None."""
    if parameters is None:
        return None
    if isinstance(parameters, np.ndarray):
        return parameters[own]
    some = [_of(p, own) for p in parameters]
    return type(parameters)(*some) if hasattr(parameters, "_fields") else tuple(some)


def _runs(
    arrays: tuple[Array | None, ...], fits: NDArray[np.bool_] | None
) -> Iterator[tuple[tuple[Any, ...], slice, bool]]:
    """The arrays, cut where channels that fit float32 meet others; the flat channels of each run, and whether they fit.

    So a channel is computed in the same way whatever its neighbours are.
    """
    if fits is None:
        yield arrays, slice(None), True
        return
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
    """Where runs of equal values begin and end."""
    edges = (np.flatnonzero(np.diff(values)) + 1).tolist()
    yield from zip([0, *edges], [*edges, len(values)], strict=True)


def _pieces(arrays: tuple[Array | None, ...], parameters: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """One group cut into pieces of some `PIECE` values, and the parameters of their channels."""
    x4 = next(a for a in arrays if a is not None)
    _, outer, channels, inner = x4.shape
    n, size = (outer, channels * inner) if outer > 1 else (channels, inner)
    step = max(1, PIECE // max(1, size))
    for start in range(0, n, step):
        some = slice(start, start + step)
        at, own = ((slice(None), some), slice(None)) if outer > 1 else ((slice(None), slice(None), some), some)
        yield tuple(None if a is None else a[at] for a in arrays), _of(parameters, own)


def _float64(a4: Array) -> NDArray[np.float64]:
    """A copy in C order, which is in the same form."""
    return a4.astype(np.float64, order="C")


def _passed(dy4: Array, x4: Array, c: Coefficients, residual: Array | None) -> Array:
    """`dy4` where ReLU let the forward pass through, else 0."""
    y = np.empty(x4.shape, x4.dtype)
    apply(x4, y, c, residual=residual)
    return np.where(y <= 0, x4.dtype.type(0), dy4)


def _wide_rows(
    arrays: tuple[Array | None, ...], parameters: tuple[Array | None, ...], stream: bool
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Yield contiguous rows as a few wide ones, with the parameters repeated to match; else all as it is.

    Wide rows start on a cache line of the last array, the result, so that streaming stores write whole lines.
    """
    y4 = arrays[-1]
    assert y4 is not None
    groups, _, channels, inner = y4.shape
    period = int(np.lcm(channels, 16)) if channels else 1
    period *= -(-WIDE_ROW // period)
    if (
        inner != 1
        or groups != 1
        or y4.size < 4 * period
        or period > 64 * WIDE_ROW
        or not all(a is None or a.flags.c_contiguous for a in arrays)
    ):
        yield arrays, parameters
        return
    head = -y4.__array_interface__["data"][0] % 64 // y4.itemsize if stream else 0
    body = (y4.size - head) // period * period
    repeated = [None if p is None else np.tile(p, period // channels + 1) for p in parameters]
    for start, stop, width in ((0, head, head), (head, head + body, period), (head + body, y4.size, 0)):
        if start < stop:
            rows, first = (1, -1, width or stop - start, 1), start % channels
            yield (
                tuple(None if a is None else a.reshape(-1)[start:stop].reshape(rows) for a in arrays),
                tuple(None if p is None else p[first : first + rows[2]] for p in repeated),
            )
