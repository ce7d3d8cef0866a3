"""Merging what the threads of a column have summed: its members in shared memory, its slices by way of a workspace.

The order depends on the plan alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from numba import cuda, int32

from . import _compat
from ._arguments import Kind
from ._columns import make_columns
from ._plan import FAN_IN, WARP

# ---- parts of one channel ----
#
# A part of the moments is a count, a number, and the sums of deviations from it and of their squares.


@cuda.jit(device=True)
def two_sum(a, b):
    """The sum, and what rounding took from it."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


@cuda.jit(device=True)
def join_moments(p, q):
    """Merge two parts, about the number of the heavier one: if both are near their means, rounding is least there.

    This divides by nothing. A part without a count is about 0, and adds nothing, but its squares may be NaN, as a sign
    of an infinity.
    """
    n, about, total, squares = p
    n_, about_, total_, squares_ = q
    if n < n_:
        n, about, total, squares, n_, about_, total_, squares_ = n_, about_, total_, squares_, n, about, total, squares
    delta = about_ - about
    moved = n_ * delta
    return n + n_, about, total + (total_ + moved), squares + (squares_ + delta * (total_ + total_ + moved))


@cuda.jit(device=True)
def moments_of(p):
    """Count, mean, what rounding took from it, and m2 of a part."""
    n, about, total, squares = p
    if n == 0.0:
        return 0.0, 0.0, 0.0, squares
    from_about = total / n
    mean, rest = two_sum(about, from_about)
    return n, mean, rest, squares - total * from_about


@cuda.jit(device=True)
def part_of(moments):
    """The part that `moments_of` gives count, mean, what rounding took from it, and m2 of."""
    n, mean, rest, m2 = moments
    return n, mean, n * rest, m2 + n * rest * rest


@cuda.jit(device=True)
def about_mean(p):
    """The same part about its own mean. A number far from the others would cost digits in what is merged with it."""
    return part_of(moments_of(p))


@cuda.jit(device=True)
def join_sums(p, q):
    """Add two sums to two others."""
    return p[0] + q[0], p[1] + q[1]


@cuda.jit(device=True)
def as_it_is(p):
    """The part itself."""
    return p


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


# ---- parts in a workspace: the numbers of a part follow each other, each of all channels ----


class Stored(NamedTuple):
    """How parts of a size are kept."""

    get: Any  # (parts, i) -> a part in shared memory
    put: Any  # (parts, i, part)
    read: Any  # (address, at, width) -> a part in the workspace, whose numbers are `width` apart
    write: Any  # (address, at, width, part)


_load, _store = _compat.access("float64", 1)
_in_one, _lane = _compat.filled(1), _compat.lane


@cuda.jit(device=True)
def read_one(address, at):
    """A float64 in memory."""
    return _lane(_load(address, at), 0)


@cuda.jit(device=True)
def write_one(address, at, value):
    """Replace a float64 in memory."""
    _store(address, at, _in_one(value))


@cuda.jit(device=True)
def read_four(address, at, width):
    """A part of four numbers."""
    return (
        read_one(address, at),
        read_one(address, at + width),
        read_one(address, at + 2 * width),
        read_one(address, at + 3 * width),
    )


@cuda.jit(device=True)
def write_four(address, at, width, p):
    """Replace a part of four numbers."""
    write_one(address, at, p[0])
    write_one(address, at + width, p[1])
    write_one(address, at + 2 * width, p[2])
    write_one(address, at + 3 * width, p[3])


@cuda.jit(device=True)
def read_two(address, at, width):
    """A part of two numbers."""
    return read_one(address, at), read_one(address, at + width)


@cuda.jit(device=True)
def write_two(address, at, width, p):
    """Replace a part of two numbers."""
    write_one(address, at, p[0])
    write_one(address, at + width, p[1])


# ---- all parts of a column ----


@cache
def make_merge_moments(kind: Kind) -> Any:
    """`_make_merge` for moments."""
    return _make_merge(kind, join_moments, about_mean, 4, Stored(four, put_four, read_four, write_four))


@cache
def make_merge_sums(kind: Kind) -> Any:
    """`_make_merge` for pairs of sums."""
    return _make_merge(kind, join_sums, as_it_is, 2, Stored(two, put_two, read_two, write_two))


def _make_merge(kind: Kind, join: Any, settled: Any, fields: int, stored: Stored) -> Any:
    """A device function that merges the parts, of `fields` numbers each, of members and slices."""
    merge_members = _make_merge_members(kind, join, stored)
    leave, fetch = _make_exchange(kind, join, settled, fields, stored)

    @cuda.jit(device=True)
    def merge(parts, workspace, channels):
        """Merge all parts of a column into the entries of member 0. True in the one block that has the result.

        Slices form a tree: the last one of each group to finish merges the group, and goes on as a slice of the level
        above.
        """
        merge_members(parts)
        position, n_slices, level, counters = cuda.blockIdx.y, cuda.gridDim.y, 0, 0
        while n_slices > 1:
            group, n_groups = position // FAN_IN, (n_slices + FAN_IN - 1) // FAN_IN
            first = group * FAN_IN
            n_parts = min(FAN_IN, n_slices - first)
            leave(parts, workspace, level + position, channels)
            if not is_last(workspace, (counters + group) * cuda.gridDim.x + cuda.blockIdx.x, n_parts):
                return False
            fetch(parts, workspace, level + first, n_parts, channels)
            merge_members(parts)
            position, n_slices, level, counters = group, n_groups, level + n_slices, counters + n_groups
        return True

    return merge


def _make_merge_members(kind: Kind, join: Any, stored: Stored) -> Any:
    members, lanes, get, put = kind.members, kind.lanes, stored.get, stored.put
    *_, member, entry, _, _ = make_columns(kind)
    meet = _compat.warp_meets if not kind.rows and members <= WARP else _compat.block_meets

    @cuda.jit(device=True)
    def merge_members(parts):
        """Merge all members of a column into the first."""
        half = members // 2
        meet()
        while half > 0:
            m = member()
            if m < half:
                for k in range(lanes):
                    i = entry(m, k)
                    put(parts, i, join(get(parts, i), get(parts, entry(m + half, k))))
            meet()
            half //= 2

    return merge_members


@cuda.jit(device=True)
def is_last(workspace, counter, n_parts):
    """Whether all other parts of the group are there: they can be read then, and are counted anew."""
    last = cuda.shared.array(1, int32)
    cuda.threadfence()
    cuda.syncthreads()
    if cuda.threadIdx.x == 0 and cuda.threadIdx.y == 0:
        last[0] = _compat.ticket(workspace.done, counter)
        cuda.threadfence()
    cuda.syncthreads()
    if last[0] != n_parts - 1:
        return False
    if cuda.threadIdx.x == 0 and cuda.threadIdx.y == 0:
        _compat.reset(workspace.done, counter)
    return True


def _make_exchange(kind: Kind, join: Any, settled: Any, fields: int, stored: Stored) -> tuple[Any, Any]:
    members, lanes = kind.members, kind.lanes
    get, put, read, write = stored
    column_of, *_, member, entry, _, _ = make_columns(kind)

    @cuda.jit(device=True)
    def leave(parts, workspace, part, channels):
        """Write the part of this block as one of the workspace."""
        column, width = column_of(), channels * lanes
        if member() == 0 and column < channels:
            for k in range(lanes):
                at = fields * part * width + column * lanes + k
                write(workspace.parts, at, width, settled(get(parts, entry(0, k))))

    @cuda.jit(device=True)
    def fetch(parts, workspace, first, n_parts, channels):
        """Read parts, from the first: each member merges its share of them."""
        column, width, m = column_of(), channels * lanes, member()
        part = m
        if part < n_parts and column < channels:
            for k in range(lanes):
                at = fields * (first + part) * width + column * lanes + k
                put(parts, entry(m, k), read(workspace.parts, at, width))
        else:
            for k in range(lanes):
                for f in range(fields):
                    parts[f, entry(m, k)] = 0.0
        part += members
        while part < n_parts and column < channels:
            for k in range(lanes):
                at, i = fields * (first + part) * width + column * lanes + k, entry(m, k)
                put(parts, i, join(get(parts, i), read(workspace.parts, at, width)))
            part += members

    return leave, fetch
