"""Gradients: ``dgamma = sum(dy * x_hat)``, ``dbeta = sum(dy)``, and dx from them."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from numba import cuda

from . import _compat
from ._arguments import Kind
from ._columns import backwards, forwards, make_columns, make_visit
from ._merging import make_merge_sums, put_two, two, write_one
from ._results import make_coefficients, make_fused, make_index, make_load, make_parameter, make_statistics


class Before(NamedTuple):
    """Device functions that go back through activation and residual."""

    read: Any  # ((data, affine, to_parameters), i) -> what is needed of a vector
    gradient: Any  # (kept, values, o) -> ``x - mean``, the scale, and the gradient before the activation


@cache
def make_before(kind: Kind) -> Before:
    """The functions of a kind."""
    load, _ = _compat.access(kind.storage, kind.n)
    fused = make_fused(kind)
    beside, plus, passed = fused.beside, fused.plus, fused.passed
    _, beside_parameters, at = make_coefficients(kind)

    @cuda.jit(device=True)
    def read(data, i):
        arrays, affine, to_parameters = data
        parameters = beside_parameters(affine, i + to_parameters)
        return load(arrays.x, i), load(arrays.dy, i), beside(arrays.z, i), parameters

    @cuda.jit(device=True)
    def gradient(kept, values, o):
        x, dy, z, parameters = values
        mean, scale, shift = at(kept, parameters, o)
        centered = x - mean
        return centered, scale, passed(plus(centered * scale + shift, z), dy)

    return Before(read, gradient)


# ---- sums ----


@cache
def make_sum_gradients(kind: Kind) -> Any:
    """The device function that computes dgamma and dbeta, and the same sums of what is normalized together."""
    lanes, in_values = kind.lanes, _compat.filled(kind.n)
    column_of, *_, member, entry, _, summed = make_columns(kind)
    of_column, index, (read, gradient) = make_coefficients(kind).of_column, make_index(kind), make_before(kind)
    of_g, to_x_hat, merge, finish_sums = _of_g(kind), _to_x_hat(kind), make_merge_sums(kind), _make_finish_sums(kind)

    @cuda.jit(device=True)
    def take(kept, state, values, o, i):
        s, q = state
        centered, _, dy = gradient(kept, values, o)
        g = of_g(dy, values)
        return s + g, q + g * to_x_hat(kept, centered, o)

    visit = make_visit(kind, forwards, read, take, n_arrays=2)

    @cuda.jit(device=True)
    def sum_gradients(data, walk, workspace, statistics, affine, sums, parts):
        """Write the sums."""
        column = column_of()
        s = q = in_values(0.0)
        if column < walk.channels:
            kept = of_column(column, walk, statistics, affine, 0.0)
            s, q = visit((data, affine, index.along(column, walk)), kept, walk, column, (s, q))
        for k in range(lanes):
            put_two(parts, entry(member(), k), (summed(s, k), summed(q, k)))
        if merge(parts, workspace, walk.channels):
            finish_sums(parts, walk, statistics, affine, sums)

    return sum_gradients


def _of_g(kind: Kind) -> Any:
    """The gradient of x_hat with "along", where gamma differs within a column; else that before the activation."""
    if kind.belonging == "along":

        @cuda.jit(device=True)
        def of_g(dy, values):
            gamma, _ = values[3]
            return dy * gamma

    else:

        @cuda.jit(device=True)
        def of_g(dy, values):
            return dy

    return of_g


def _to_x_hat(kind: Kind) -> Any:
    """x_hat with "rows", where statistics differ within a column; else ``x - mean``, which is multiplied at the end."""
    one, lane, in_channels = make_statistics(kind._replace(rows=False)), _compat.lane, _compat.filled(kind.lanes)
    if kind.belonging == "rows":

        @cuda.jit(device=True)
        def to_x_hat(kept, centered, o):
            statistics, groups, first, _, _ = kept
            own = o * groups + first
            lo, inverse = lane(one.mean_lo(statistics, own), 0), lane(one.invstd(statistics, own, 0.0), 0)
            return (centered - in_channels(lo)) * in_channels(inverse)

    else:

        @cuda.jit(device=True)
        def to_x_hat(kept, centered, o):
            return centered

    return to_x_hat


def _make_finish_sums(kind: Kind) -> Any:
    lanes, lane, (column_of, *_, member, entry, _, _) = kind.lanes, _compat.lane, make_columns(kind)
    of_one = kind._replace(rows=False, belonging="columns")
    one, one_parameter = make_statistics(of_one), make_parameter(of_one)
    index, of_parameters, of_g = make_index(kind), kind.belonging != "along", kind.belonging in ("planes", "along")
    with_gamma, finished = kind.belonging == "planes", kind.belonging == "rows"

    @cuda.jit(device=True)
    def finish_sums(parts, walk, statistics, affine, sums):
        """Write the sums, from those of g and of ``g * (x - mean)``, where mean has no low part."""
        column = column_of()
        if member() == 0 and column < walk.channels:
            for k in range(lanes):
                at = column * lanes + k
                total, product = two(parts, entry(0, k))
                if not finished:
                    own = index.one(column, k, walk)
                    lo, inverse = lane(one.mean_lo(statistics, own), 0), lane(one.invstd(statistics, own, 0.0), 0)
                    product = (product - lo * total) * inverse
                if of_parameters:
                    write_one(sums.dgamma, at, product)
                    write_one(sums.dbeta, at, total)
                if with_gamma:
                    gamma = lane(one_parameter(affine.gamma, index.parameters(column, walk), affine.gamma_step, 1.0), 0)
                    total, product = total * gamma, product * gamma
                if of_g:
                    write_one(sums.g_x_hat, at, product)
                    write_one(sums.g, at, total)

    return finish_sums


@cache
def make_sum_pairs(kind: Kind) -> Any:
    """The device function that adds up the values of two arrays of float64."""
    lanes, in_values = kind.lanes, _compat.filled(kind.n)
    load, _ = _compat.access("float64", kind.n)
    column_of, *_, member, entry, _, summed = make_columns(kind)
    merge = make_merge_sums(kind)

    @cuda.jit(device=True)
    def read(pair, i):
        return load(pair.first, i), load(pair.second, i)

    @cuda.jit(device=True)
    def take(kept, state, values, o, i):
        return state[0] + values[0], state[1] + values[1]

    visit = make_visit(kind, forwards, read, take)

    @cuda.jit(device=True)
    def sum_pairs(pair, walk, workspace, result, parts):
        """Write the sums of every column."""
        column = column_of()
        s = q = in_values(0.0)
        if column < walk.channels:
            s, q = visit(pair, 0, walk, column, (s, q))
        for k in range(lanes):
            put_two(parts, entry(member(), k), (summed(s, k), summed(q, k)))
        if merge(parts, workspace, walk.channels) and member() == 0 and column < walk.channels:
            for k in range(lanes):
                first, second = two(parts, entry(0, k))
                write_one(result.first, column * lanes + k, first)
                write_one(result.second, column * lanes + k, second)

    return sum_pairs


# ---- gradients ----


@cache
def make_write_gradients(kind: Kind, *, last_first: bool = False) -> Any:
    """The device function that writes gradients like x; of the last columns first, if they are still in the cache."""
    _, store = _compat.access(kind.storage, kind.n)
    column_of, index = make_columns(kind).column, make_index(kind)
    of_column, (read, gradient), kept_beside = (
        make_coefficients(kind).of_column,
        make_before(kind),
        make_fused(kind).kept,
    )
    through, through_statistics = _make_through(kind), _make_through_statistics(kind)

    @cuda.jit(device=True)
    def take(gradients, state, values, o, i):
        kept, of_x, offset = state
        centered, scale, g = gradient(kept, values, o)
        store(gradients.dx, i, through_statistics(g * scale, centered, of_x, offset))
        kept_beside(gradients.dz, i, g)
        return state

    visit = make_visit(kind, backwards, read, take, n_arrays=2)

    @cuda.jit(device=True)
    def write_gradients(data, gradients, walk, statistics, affine, sums, per_value):
        """Write dx, and the gradient of the residual."""
        column = column_of()
        if column < walk.channels:
            column = walk.channels - 1 - column if last_first else column
            kept = of_column(column, walk, statistics, affine, 0.0)
            of_x, offset = through(column, walk, statistics, affine, sums, per_value)
            visit((data, affine, index.along(column, walk)), gradients, walk, column, (kept, of_x, offset))

    return write_gradients


def _make_through(kind: Kind) -> Any:
    load_wide, in_channels = make_load(kind, "float64"), _compat.filled(kind.lanes)
    parameter, spread, index = make_parameter(kind), make_columns(kind).spread, make_index(kind)
    _, mean_lo, invstd = make_statistics(kind)
    of_channels, centred = kind.belonging in ("columns", "repeated"), kind.centred

    @cuda.jit(device=True)
    def through(column, walk, statistics, affine, sums, per_value):
        """What dx has by way of mean and variance: a factor of ``x - mean``, and what is added."""
        own = index.statistics(column, walk)
        inverse = invstd(statistics, own, 0.0)
        factor = in_channels(-per_value) * inverse
        if of_channels:  # sums are without gamma
            factor = factor * parameter(affine.gamma, index.parameters(column, walk), affine.gamma_step, 1.0)
            of_x_hat, of_g = load_wide(sums.dgamma, own), load_wide(sums.dbeta, own)
        else:
            of_x_hat, of_g = load_wide(sums.g_x_hat, own), load_wide(sums.g, own)
        of_x = factor * inverse * of_x_hat
        offset = factor * of_g if centred else in_channels(0.0)
        return spread(of_x), spread(offset - mean_lo(statistics, own) * of_x)

    return through


def _make_through_statistics(kind: Kind) -> Any:
    """How x changes the result by way of mean and variance, too; not if they are frozen."""
    if kind.frozen:

        @cuda.jit(device=True)
        def through_statistics(direct, centered, k_x, k_offset):
            return direct

    else:

        @cuda.jit(device=True)
        def through_statistics(direct, centered, k_x, k_offset):
            return direct + (centered * k_x + k_offset)

    return through_statistics
