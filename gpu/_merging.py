"""Merging what the threads of a column have summed: its members in shared memory, its slices by way of a workspace."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import cuda, int32

from . import _compat
from ._arguments import Kind
from ._columns import make_columns

# ---- two parts of one channel ----


@cuda.jit(device=True)
def two_sum(a, b):
    """The sum, and what rounding took from it."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


@cuda.jit(device=True)
def join_moments(p, q):
    """Merge count, mean in two parts and m2. In a part without a count, m2 may be NaN, as a sign of an infinity."""
    n, hi, lo, m2 = p
    n_, hi_, lo_, m2_ = q
    if n == 0.0:
        return n_, hi_, lo_, m2_ + m2
    if n_ == 0.0:
        return n, hi, lo, m2 + m2_
    if n < n_:  # start from the mean of the heavier part: from the other one rounding would be larger
        n, hi, lo, m2, n_, hi_, lo_, m2_ = n_, hi_, lo_, m2_, n, hi, lo, m2
    delta, share = (hi_ - hi) + (lo_ - lo), n_ / (n + n_)
    mean, rest = two_sum(hi, delta * share)
    return n + n_, mean, lo + rest, m2 + m2_ + delta * (n * share) * delta


@cuda.jit(device=True)
def join_sums(p, q):
    """Add two sums to two others."""
    return p[0] + q[0], p[1] + q[1]


# ---- parts in shared memory: a row for each number of a part, and entry i of all rows for one channel ----


@cuda.jit(device=True)
def four(parts, i):
    """A part of four numbers."""
    return parts[0, i], parts[1, i], parts[2, i], parts[3, i]


@cuda.jit(device=True)
def put_four(parts, i, p):
    """Replace a part of four numbers."""
    parts[0, i], parts[1, i], parts[2, i], parts[3, i] = p


@cuda.jit(device=True)
def two(parts, i):
    """A part of two numbers."""
    return parts[0, i], parts[1, i]


@cuda.jit(device=True)
def put_two(parts, i, p):
    """Replace a part of two numbers."""
    parts[0, i], parts[1, i] = p


# ---- all parts of a column ----


@cache
def make_merge_moments(kind: Kind) -> Any:
    """`_make_merge` for moments."""
    return _make_merge(kind, join_moments, 4, four, put_four)


@cache
def make_merge_sums(kind: Kind) -> Any:
    """`_make_merge` for pairs of sums."""
    return _make_merge(kind, join_sums, 2, two, put_two)


def _make_merge(kind: Kind, join: Any, fields: int, get: Any, put: Any) -> Any:
    """A device function that merges the parts, of `fields` numbers each, of members and slices."""
    merge_members = _make_merge_members(kind, join, get, put)
    leave, fetch = _make_exchange(kind, join, fields, get, put)

    @cuda.jit(device=True)
    def merge(parts, workspace, channels):
        """Merge all parts of a column into the entries of member 0. True in the one block that has the result."""
        merge_members(parts)
        if cuda.gridDim.y == 1:
            return True
        leave(parts, workspace, channels)
        if not is_last(workspace):
            return False
        fetch(parts, workspace, channels)
        merge_members(parts)
        return True

    return merge


def _make_merge_members(kind: Kind, join: Any, get: Any, put: Any) -> Any:
    columns, members, lanes = kind.columns, kind.members, kind.lanes
    entry = make_columns(kind).entry

    @cuda.jit(device=True)
    def merge_members(parts):
        """Merge all members of a column into the first."""
        half = members // 2
        cuda.syncthreads()
        while half > 0:
            if cuda.threadIdx.y < half:
                for k in range(lanes):
                    i = entry(k)
                    put(parts, i, join(get(parts, i), get(parts, i + half * columns * lanes)))
            cuda.syncthreads()
            half //= 2

    return merge_members


@cuda.jit(device=True)
def is_last(workspace):
    """Whether all other slices of this block's columns are done: they can be read then, and are counted anew."""
    last = cuda.shared.array(1, int32)
    cuda.threadfence()
    cuda.syncthreads()
    if cuda.threadIdx.x == 0 and cuda.threadIdx.y == 0:
        last[0] = _compat.ticket(workspace.done, cuda.blockIdx.x)
        cuda.threadfence()
    cuda.syncthreads()
    if last[0] != cuda.gridDim.y - 1:
        return False
    if cuda.threadIdx.x == 0 and cuda.threadIdx.y == 0:
        _compat.reset(workspace.done, cuda.blockIdx.x)
    return True


def _make_exchange(kind: Kind, join: Any, fields: int, get: Any, put: Any) -> tuple[Any, Any]:
    members, lanes, lane = kind.members, kind.lanes, _compat.lane
    load_one, store_one = _compat.access("float64", 1)
    in_one = _compat.filled(1)
    column_of, _, entry, _, _ = make_columns(kind)

    @cuda.jit(device=True)
    def leave(parts, workspace, channels):
        """Write the part of this slice."""
        column = column_of()
        if cuda.threadIdx.y == 0 and column < channels:
            for k in range(lanes):
                for f in range(fields):
                    at = (fields * cuda.blockIdx.y + f) * (channels * lanes) + column * lanes + k
                    store_one(workspace.parts, at, in_one(parts[f, cuda.threadIdx.x * lanes + k]))

    @cuda.jit(device=True)
    def fetch(parts, workspace, channels):
        """Read the parts of all slices: each member merges its share of them."""
        column = column_of()
        for k in range(lanes):
            i = entry(k)
            slice_ = cuda.threadIdx.y
            for f in range(fields):
                parts[f, i] = 0.0
            while slice_ < cuda.gridDim.y and column < channels:
                before = get(parts, i)
                for f in range(fields):
                    at = (fields * slice_ + f) * (channels * lanes) + column * lanes + k
                    parts[f, i] = lane(load_one(workspace.parts, at), 0)
                put(parts, i, join(before, get(parts, i)))
                slice_ += members

    return leave, fetch
