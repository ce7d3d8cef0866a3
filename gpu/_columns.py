"""Where a thread is, what it visits, and which channels the values of a vector belong to. `_kernels` has the terms."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from numba import cuda

from . import _compat
from ._arguments import Kind


class Columns(NamedTuple):
    """Device functions of a kind."""

    column: Any  # () -> the column of this thread
    start: Any  # (walk) -> outer and inner position of the first vector of this thread
    entry: Any  # (k) -> where this thread keeps channel k of its column in shared memory
    spread: Any  # (vector of channels) -> a value for each channel of a column, for every value of a vector of data
    summed: Any  # (vector of data, k) -> what it adds to channel k of its column


@cache
def make_columns(kind: Kind) -> Columns:
    """The functions of a kind."""
    columns, members, lanes = kind.columns, kind.members, kind.lanes

    @cuda.jit(device=True)
    def column():
        return cuda.blockIdx.x * columns + cuda.threadIdx.x

    @cuda.jit(device=True)
    def start(walk):
        position = cuda.blockIdx.y * members + cuda.threadIdx.y
        return position // walk.inner, position % walk.inner

    @cuda.jit(device=True)
    def entry(k):
        return (cuda.threadIdx.y * columns + cuda.threadIdx.x) * lanes + k

    return Columns(column, start, entry, *(_rows() if kind.rows else _planes(kind.n)))


def _rows() -> tuple[Any, Any]:
    """A vector holds a value of each channel of its column."""

    @cuda.jit(device=True)
    def spread(v):
        return v

    @cuda.jit(device=True)
    def summed(v, k):
        return _compat.lane(v, k)

    return spread, summed


def _planes(n: int) -> tuple[Any, Any]:
    """A vector holds values of one channel."""
    in_values, lane, total = _compat.filled(n), _compat.lane, _compat.total

    @cuda.jit(device=True)
    def spread(v):
        return in_values(lane(v, 0))

    @cuda.jit(device=True)
    def summed(v, k):
        return total(v)

    return spread, summed


@cuda.jit(device=True)
def index(o, column, j, walk):
    """Where the vector of a column at an outer and an inner position lies."""
    return (o * walk.channels + column) * walk.inner + j


@cuda.jit(device=True)
def onward(o, j, walk):
    """The outer and inner position to which a thread goes next."""
    o, j = o + walk.step_outer, j + walk.step_inner
    if j >= walk.inner:
        o, j = o + 1, j - walk.inner
    return o, j
