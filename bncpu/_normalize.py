"""Moments and application of arrays in one of the two forms: cutting, threads, stores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bncpu import _dispatch
from bncpu.moments import Coefficients, Moments, merge_blocks, rounded

Array = NDArray[np.floating[Any]]

# Blocks are cut by shape alone, so results do not depend on the number of threads. At most about this many
# of them keep scratch memory proportional to the channels.
MAX_BLOCKS = 128

# From this size on, storing past the cache wins; below it the result would be missed in the cache.
STREAM_BYTES = 16 << 20

# Rows are widened to at least this many values, and parameters repeated to match: 4 KiB of float32.
WIDE_ROW = 1024


def block_shape(outer: int, channels: int, inner: int) -> tuple[int, int]:
    """Outer positions and inner values of a block; one of the two spans its axis."""
    values = max(-(-outer * inner // MAX_BLOCKS), 1)
    if inner == 1:
        return max(values, 512, -(-131072 // max(channels, 1))), 1
    values = max(values, 65536)
    return (-(-values // inner), inner) if values >= inner else (1, values)


def moments(
    x3: Array, weights: NDArray[np.float64] | None, *, skip_missing: bool, n_threads: int | None
) -> tuple[Moments, bool]:
    """Moments of each channel of `x3`, and whether NaN may have been left out.

    Parameters
    ----------
    x3 : ndarray of shape (outer, channels, inner), float32 or float64
        In one of the two forms.
    weights : ndarray of shape (outer * inner,), float64, or None
    skip_missing : bool
        Leave NaN out; otherwise NaN and infinity propagate within their channel.
    n_threads : int or None
    """
    outer, channels, inner = x3.shape
    if x3.size == 0:
        return Moments.empty(channels), False
    outer_block, inner_block = block_shape(outer, channels, inner)
    n_blocks = -(-outer // outer_block) * -(-inner // inner_block)
    out = np.empty((4, n_blocks, channels))
    missing = _dispatch.kernels(x3).moments(
        x3, weights, skip_missing, outer_block, inner_block, out, _dispatch.threads(n_threads, x3.nbytes)
    )
    with np.errstate(invalid="ignore", over="ignore"):
        return merge_blocks(Moments(*out)), missing


def apply(
    x3: Array,
    y3: Array,
    coefficients: Coefficients,
    *,
    residual: Array | None = None,
    relu: bool = False,
    n_threads: int | None = None,
) -> bool:
    """Write ``(x - mean) * scale + shift`` to `y3`; say whether `x3` holds an infinity.

    Parameters
    ----------
    x3, y3 : ndarray of shape (outer, channels, inner), float32 or float64
        Both in the same form; `y3` may be `x3`, and must not overlap it otherwise.
    coefficients : Coefficients
        In float64.
    residual : ndarray with the shape and strides of `y3`, optional
        Added to the result.
    relu : bool, default=False
        Replace negative results by 0, after `residual` was added.
    n_threads : int or None
    """
    c = rounded(coefficients, x3.dtype)
    if c is None:  # float32 arithmetic would overflow: the long way round, some 64 Ki values at a time
        infinite, step = False, max(1, 65536 // max(1, x3[:1].size))
        for at in range(0, len(x3), step):
            part = slice(at, at + step)
            wide = x3[part].astype(np.float64)
            added = None
            if residual is not None:
                added = np.empty_like(wide)
                added[...] = residual[part]
            infinite |= apply(wide, wide, coefficients, residual=added, relu=relu, n_threads=n_threads)
            with np.errstate(over="ignore"):
                y3[part] = wide
        return infinite

    kernels = _dispatch.kernels(x3)
    stream = y3.nbytes >= STREAM_BYTES and not np.may_share_memory(x3, y3)
    n = _dispatch.threads(n_threads, x3.nbytes)
    infinite = False
    for x, y, z, p in _wide_rows(x3, y3, residual, c, stream):
        infinite |= kernels.apply(x, y, z, p.mean, p.scale, p.shift, relu, stream, n)
    return infinite


def _wide_rows(
    x3: Array, y3: Array, z3: Array | None, c: Coefficients, stream: bool
) -> Iterator[tuple[Array, Array, Array | None, Coefficients]]:
    """Yield contiguous rows as a few wide ones, with the parameters repeated to match; else all as it is.

    Wide rows start on a cache line of `y3`, so that streaming stores write whole lines.
    """
    channels = x3.shape[1]
    period = int(np.lcm(channels, 16)) if channels else 1
    period *= -(-WIDE_ROW // period)
    whole = [a for a in (x3, y3, z3) if a is not None]
    if (
        x3.shape[2] != 1
        or x3.size < 4 * period
        or period > 64 * WIDE_ROW
        or not all(a.flags.c_contiguous for a in whole)
    ):
        yield x3, y3, z3, c
        return
    head = -y3.__array_interface__["data"][0] % 64 // y3.itemsize if stream else 0
    body = (x3.size - head) // period * period
    repeated = Coefficients(*(np.tile(p, period // channels + 1) for p in c))
    for start, stop, width in ((0, head, head), (head, head + body, period), (head + body, x3.size, 0)):
        if start < stop:
            rows, first = (-1, width or stop - start, 1), start % channels
            x, y = (a.reshape(-1)[start:stop].reshape(rows) for a in (x3, y3))
            z = None if z3 is None else z3.reshape(-1)[start:stop].reshape(rows)
            yield x, y, z, Coefficients(*(p[first : first + rows[1]] for p in repeated))
