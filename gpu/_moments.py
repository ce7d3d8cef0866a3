"""The statistics of every channel: summed by threads, merged, and finished."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from numba import cuda

from . import _compat
from ._arguments import Kind
from ._columns import forwards, make_columns, make_visit
from ._merging import (
    about_mean,
    four,
    join_moments,
    make_merge_moments,
    moments_of,
    part_of,
    put_four,
    read_four,
    read_one,
    write_four,
    write_one,
)

# In `collect` a new shift is chosen when the values summed about one weigh so many times as much as it does. This
# bounds the number of roundings that an outlier as shift can cost.
MOST_OF_A_SHIFT = 64.0


class Taking(NamedTuple):
    """Device functions that take a vector v into the sums of a thread: `s` of ``v - shift``, and `q` of its square."""

    weighed: Any  # (weights, o) -> the weight of the sample at an outer position
    is_due: Any  # (v, weight, count, anchor) -> whether a new shift is needed: with v the values weigh too much
    taken: Any  # (v, weight, shift, anchor, count, s, q) -> the last five with v
    counted: Any  # (count, steps) -> the weight of all values


def _all_values(n: int) -> Taking:
    """Every value counts 1, and the first one is the shift."""
    in_values = _compat.filled(n)

    @cuda.jit(device=True)
    def weighed(weights, o):
        return 1.0

    @cuda.jit(device=True)
    def is_due(v, weight, count, anchor):
        return False

    @cuda.jit(device=True)
    def taken(v, weight, shift, anchor, count, s, q):
        d = v - shift
        return shift, anchor, count, s + d, q + d * d

    @cuda.jit(device=True)
    def counted(count, steps):
        return in_values(steps)

    return Taking(weighed, is_due, taken, counted)


def _weighted_values() -> Taking:
    """NaN is left out. The first value that counts is the shift, and its weight the anchor."""
    present, where_0, any_above = _compat.present, _compat.where_0, _compat.any_above

    @cuda.jit(device=True)
    def weighed(weights, o):
        return 1.0 if weights.step == 0 else read_one(weights.values, o // weights.per_sample)

    @cuda.jit(device=True)
    def is_due(v, weight, count, anchor):
        return any_above(count + present(v) * weight, anchor * MOST_OF_A_SHIFT)

    @cuda.jit(device=True)
    def taken(v, weight, shift, anchor, count, s, q):
        there = present(v)
        weights = there * weight
        shift, anchor = where_0(count, v, shift), where_0(count, weights, anchor)
        d = where_0(there, there, v - shift)  # with an infinity the sums become NaN, whatever its weight
        return shift, anchor, count + weights, s + weights * d, q + weights * d * d

    @cuda.jit(device=True)
    def counted(count, steps):
        return count

    return Taking(weighed, is_due, taken, counted)


@cache
def make_sum_moments(kind: Kind) -> Any:
    """The device function that sums and merges moments."""
    lanes = kind.lanes
    load, _ = _compat.access(kind.storage, kind.n)
    in_values = _compat.filled(kind.n)
    column_of, start, _, index, member, entry, spread, _ = make_columns(kind)
    weighed, is_due, taken, counted = _weighted_values() if kind.skipping else _all_values(kind.n)
    put_aside, merge = _make_put_aside(kind), make_merge_moments(kind)

    @cuda.jit(device=True)
    def take(fixed, state, v, o, i):
        parts, weights = fixed
        steps, shift, anchor, count, s, q = state
        weight = weighed(weights, o)
        if is_due(v, weight, count, anchor):
            put_aside(parts, shift, count, s, q)
            count = s = q = in_values(0.0)
        shift, anchor, count, s, q = taken(v, weight, shift, anchor, count, s, q)
        return steps + 1.0, shift, anchor, count, s, q

    visit = make_visit(kind, forwards, load, take)

    @cuda.jit(device=True)
    def sum_moments(x, walk, weights, workspace, parts):
        """Write the moments to the entries of member 0. True in the block that has those of all slices."""
        column = column_of()
        o, j = start(walk)
        zeros = in_values(0.0)
        for k in range(lanes):
            put_four(parts, entry(member(), k), (0.0, 0.0, 0.0, 0.0))
        if column < walk.channels and o < walk.outer:
            shift = spread(load(x, index(o, column, j, walk)))
            state = visit(x, (parts, weights), walk, column, (0.0, shift, zeros, zeros, zeros, zeros))
            steps, shift, _, count, s, q = state
            put_aside(parts, shift, counted(count, steps), s, q)
        return merge(parts, workspace, walk.channels)

    return sum_moments


def _make_put_aside(kind: Kind) -> Any:
    lanes, lane = kind.lanes, _compat.lane
    *_, member, entry, _, summed = make_columns(kind)

    @cuda.jit(device=True)
    def put_aside(parts, shift, count, s, q):
        """Merge the sums so far into the moments of this thread.

        These stay about their mean: weights that grow would leave it far behind.
        """
        for k in range(lanes):
            i = entry(member(), k)
            part = about_mean((summed(count, k), lane(shift, k), summed(s, k), summed(q, k)))
            put_four(parts, i, about_mean(join_moments(four(parts, i), part)))

    return put_aside


@cache
def make_finish_moments(kind: Kind) -> Any:
    """The device function that computes statistics from moments."""
    lanes, lane, inverse_std = kind.lanes, _compat.lane, _compat.inverse_std
    load_parameter, store_parameter = _compat.access(kind.parameters, 1)
    in_one, centred = _compat.filled(1), kind.centred
    column_of, *_, member, entry, _, _ = make_columns(kind)

    @cuda.jit(device=True)
    def updated(address, at, momentum, new):
        """Update a running statistic."""
        old = lane(load_parameter(address, at), 0)
        store_parameter(address, at, in_one(momentum * old + (1.0 - momentum) * new))

    @cuda.jit(device=True)
    def finish_moments(parts, walk, statistics, eps, running):
        """Write statistics, and update running ones."""
        column = column_of()
        if member() == 0 and column < walk.channels:
            for k in range(lanes):
                at = column * lanes + k
                n, hi, lo, m2 = moments_of(four(parts, entry(0, k)))
                m2 = 0.0 if m2 < 0.0 else m2  # NaN stays
                var = m2 / n
                if centred:
                    write_one(statistics.mean, at, hi)
                    write_one(statistics.mean_lo, at, lo)
                else:
                    var += hi * (hi + 2.0 * lo)
                var += var - var  # NaN where var has overflowed
                write_one(statistics.invstd, at, lane(inverse_std(in_one(var), eps), 0))
                if running.step:
                    updated(running.mean, at, running.momentum, hi)
                    updated(running.var, at, running.momentum, m2 / (n - running.ddof))

    return finish_moments


@cache
def make_write_moments(kind: Kind) -> Any:
    """The device function that writes moments as they are."""
    lanes, (column_of, *_, member, entry, _, _) = kind.lanes, make_columns(kind)

    @cuda.jit(device=True)
    def write_moments(parts, walk, result):
        """Write count, mean, its low part and m2 of every channel."""
        column = column_of()
        if member() == 0 and column < walk.channels:
            for k in range(lanes):
                n, hi, lo, m2 = moments_of(four(parts, entry(0, k)))
                write_four(result.first, column * lanes + k, result.apart, (n, hi, lo, 0.0 if m2 < 0.0 else m2))

    return write_moments


@cache
def make_fold_moments(kind: Kind) -> Any:
    """The device function that merges moments which were written."""
    column_of, *_, member, entry, _, _ = make_columns(kind)
    merge = make_merge_moments(kind)

    @cuda.jit(device=True)
    def read(given, i):
        return read_four(given.first, i, given.apart)

    @cuda.jit(device=True)
    def take(fixed, state, moments, o, i):
        return join_moments(state, part_of(moments))

    visit = make_visit(kind, forwards, read, take)

    @cuda.jit(device=True)
    def fold_moments(given, walk, workspace, parts):
        """Merge those of every column, as `sum_moments` does values."""
        column, part = column_of(), (0.0, 0.0, 0.0, 0.0)
        if column < walk.channels:
            part = visit(given, 0, walk, column, part)
        put_four(parts, entry(member(), 0), part)
        return merge(parts, workspace, walk.channels)

    return fold_moments
