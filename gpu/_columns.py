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
    onward: Any  # (o, j, walk) -> the positions of its next one
    index: Any  # (o, column, j, walk) -> where the vector of a column at an outer and an inner position lies
    member: Any  # () -> which member of its column this thread is
    entry: Any  # (member, k) -> where a member of this column keeps channel k of it in shared memory
    spread: Any  # (vector of channels) -> a value for each channel of a column, for every value of a vector of data
    summed: Any  # (vector of data, k) -> what it adds to channel k of its column


@cache
def make_columns(kind: Kind) -> Columns:
    """The functions of a kind."""
    columns, members = kind.columns, kind.members
    local, member, entry = _threads_of_rows(columns, kind.lanes) if kind.rows else _threads_of_planes(members)

    @cuda.jit(device=True)
    def column():
        return cuda.blockIdx.x * columns + local()

    @cuda.jit(device=True)
    def position():
        return cuda.blockIdx.y * members + member()

    at, values = (_in_rows(position), _rows()) if kind.rows else (_in_planes(position), _planes(kind.n))
    return Columns(column, *at, member, entry, *values)


def _threads_of_rows(columns: int, lanes: int) -> tuple[Any, Any, Any]:
    """Columns lie side by side, as in memory."""

    @cuda.jit(device=True)
    def local():
        return cuda.threadIdx.x

    @cuda.jit(device=True)
    def member():
        return cuda.threadIdx.y

    @cuda.jit(device=True)
    def entry(m, k):
        return (m * columns + cuda.threadIdx.x) * lanes + k

    return local, member, entry


def _threads_of_planes(members: int) -> tuple[Any, Any, Any]:
    """Members of a column lie side by side."""

    @cuda.jit(device=True)
    def local():
        return cuda.threadIdx.y

    @cuda.jit(device=True)
    def member():
        return cuda.threadIdx.x

    @cuda.jit(device=True)
    def entry(m, k):
        return cuda.threadIdx.y * members + m

    return local, member, entry


def _in_rows(position: Any) -> tuple[Any, Any, Any]:
    """Without an inner axis."""

    @cuda.jit(device=True)
    def start(walk):
        return position(), 0

    @cuda.jit(device=True)
    def onward(o, j, walk):
        return o + walk.step_outer, j

    @cuda.jit(device=True)
    def index(o, column, j, walk):
        return o * walk.channels + column

    return start, onward, index


def _in_planes(position: Any) -> tuple[Any, Any, Any]:
    @cuda.jit(device=True)
    def start(walk):
        return position() // walk.inner, position() % walk.inner

    @cuda.jit(device=True)
    def onward(o, j, walk):
        o, j = o + walk.step_outer, j + walk.step_inner
        if j >= walk.inner:
            o, j = o + 1, j - walk.inner
        return o, j

    @cuda.jit(device=True)
    def index(o, column, j, walk):
        return (o * walk.channels + column) * walk.inner + j

    return start, onward, index


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
def forwards(o, walk):
    """The outer position to visit at one that is counted from the start."""
    return o


@cuda.jit(device=True)
def backwards(o, walk):
    """The same from the end of the array: what was read last is still in the cache."""
    return walk.outer - 1 - o


def make_visit(kind: Kind, order: Any, read: Any, take: Any, *, n_arrays: int = 1) -> Any:
    """The device function that takes all vectors of a thread, in order: ``(data, fixed, walk, column, state)``.

    Four are read before the first is taken, so that the memory is not waited for one by one. A heavy kind reads two. So
    does a backward pass over values of 16 bits, which makes four loads of two arrays.

    Parameters
    ----------
    kind : Kind
    order : device function
        `forwards` or `backwards`.
    read : device function of ``(data, i)``
        What is needed of the vector at index i.
    take : device function of ``(fixed, state, values, o, i)``
        Returns the state after the values that were read at outer position o and index i.
    n_arrays : int
        2 in a backward pass, which reads dy and x.
    """
    _, start, onward, index, *_ = make_columns(kind)
    four = not kind.is_heavy and (n_arrays == 1 or kind.n <= 4)

    @cuda.jit(device=True)
    def visit(data, fixed, walk, column, state):
        o, j = start(walk)
        while True:
            o1, j1 = onward(o, j, walk)
            o2, j2 = onward(o1, j1, walk)
            o3, j3 = onward(o2, j2, walk)
            if (o3 if four else o1) >= walk.outer:
                break
            at, at1 = order(o, walk), order(o1, walk)
            i, i1 = index(at, column, j, walk), index(at1, column, j1, walk)
            first, second = read(data, i), read(data, i1)
            if four:
                at2, at3 = order(o2, walk), order(o3, walk)
                i2, i3 = index(at2, column, j2, walk), index(at3, column, j3, walk)
                third, fourth = read(data, i2), read(data, i3)
            state = take(fixed, state, first, at, i)
            state = take(fixed, state, second, at1, i1)
            if four:
                state = take(fixed, state, third, at2, i2)
                state = take(fixed, state, fourth, at3, i3)
                o2, j2 = onward(o3, j3, walk)
            o, j = o2, j2
        while o < walk.outer:
            at = order(o, walk)
            i = index(at, column, j, walk)
            state = take(fixed, state, read(data, i), at, i)
            o, j = onward(o, j, walk)
        return state

    return visit
