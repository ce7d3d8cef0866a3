"""Gradients: ``dgamma = sum(dy * x_hat)``, ``dbeta = sum(dy)``, and dx from them."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from numba import cuda

from . import _compat
from ._arguments import Kind
from ._columns import backwards, forwards, make_columns, make_visit
from ._merging import make_merge_sums, put_two, read_one, two, write_one
from ._results import make_coefficients, make_fused, make_parameter


class Before(NamedTuple):
    """Device functions that go back through activation and residual."""

    read: Any  # (data, i) -> what is needed of a vector
    gradient: Any  # (values, mean, scale, shift) -> ``x - mean``, and the gradient before the activation


@cache
def make_before(kind: Kind) -> Before:
    """The functions of a kind."""
    load, _ = _compat.access(kind.storage, kind.n)
    fused = make_fused(kind)
    beside, plus, passed = fused.beside, fused.plus, fused.passed

    @cuda.jit(device=True)
    def read(data, i):
        return load(data.x, i), load(data.dy, i), beside(data.z, i)

    @cuda.jit(device=True)
    def gradient(values, mean, scale, shift):
        x, dy, z = values
        centered = x - mean
        return centered, passed(plus(centered * scale + shift, z), dy)

    return Before(read, gradient)


@cache
def make_sum_gradients(kind: Kind) -> Any:
    """The device function that computes dgamma and dbeta."""
    lanes, in_values = kind.lanes, _compat.filled(kind.n)
    column_of, *_, entry, _, summed = make_columns(kind)
    coefficients, before = make_coefficients(kind), make_before(kind)
    gradient = before.gradient
    merge, finish_sums = make_merge_sums(kind), _make_finish_sums(kind)

    @cuda.jit(device=True)
    def take(fixed, state, values, o, i):
        mean, scale, shift = fixed
        s, q = state
        centered, g = gradient(values, mean, scale, shift)
        return s + g, q + g * centered

    visit = make_visit(kind, forwards, before.read, take)

    @cuda.jit(device=True)
    def sum_gradients(data, walk, workspace, statistics, affine, sums, parts):
        """Write dgamma and dbeta."""
        column = column_of()
        s = q = in_values(0.0)
        if column < walk.channels:
            s, q = visit(data, coefficients(column, statistics, affine, 0.0), walk, column, (s, q))
        for k in range(lanes):
            put_two(parts, entry(k), (summed(s, k), summed(q, k)))
        if merge(parts, workspace, walk.channels):
            finish_sums(parts, walk, statistics, sums)

    return sum_gradients


def _make_finish_sums(kind: Kind) -> Any:
    lanes, column_of = kind.lanes, make_columns(kind).column

    @cuda.jit(device=True)
    def finish_sums(parts, walk, statistics, sums):
        """Write dgamma and dbeta from the sums of g and of ``g * (x - mean)``, where mean has no low part."""
        column = column_of()
        if cuda.threadIdx.y == 0 and column < walk.channels:
            for k in range(lanes):
                at = column * lanes + k
                total, product = two(parts, cuda.threadIdx.x * lanes + k)
                lo, inverse = read_one(statistics.mean_lo, at), read_one(statistics.invstd, at)
                write_one(sums.dgamma, at, (product - lo * total) * inverse)
                write_one(sums.dbeta, at, total)

    return finish_sums


@cache
def make_write_gradients(kind: Kind) -> Any:
    """The device function that writes gradients like x."""
    _, store = _compat.access(kind.storage, kind.n)
    column_of, coefficients, before = make_columns(kind).column, make_coefficients(kind), make_before(kind)
    gradient, backward_coefficients, kept = before.gradient, _make_backward_coefficients(kind), make_fused(kind).kept
    through_statistics = _make_through_statistics(kind)

    @cuda.jit(device=True)
    def take(gradients, state, values, o, i):
        mean, scale, shift, of_dy, of_x, offset = state
        centered, g = gradient(values, mean, scale, shift)
        store(gradients.dx, i, through_statistics(g * of_dy, centered, of_x, offset))
        kept(gradients.dz, i, g)
        return state

    visit = make_visit(kind, backwards, before.read, take)

    @cuda.jit(device=True)
    def write_gradients(data, gradients, walk, statistics, affine, sums, per_value):
        """Write dx, and the gradient of the residual."""
        column = column_of()
        if column < walk.channels:
            mean, scale, shift = coefficients(column, statistics, affine, 0.0)
            of_dy, of_x, offset = backward_coefficients(column, statistics, affine, sums, per_value)
            visit(data, gradients, walk, column, (mean, scale, shift, of_dy, of_x, offset))

    return write_gradients


def _make_backward_coefficients(kind: Kind) -> Any:
    load_wide, _ = _compat.access("float64", kind.lanes, aligned=False)
    in_channels = _compat.filled(kind.lanes)
    parameter, spread = make_parameter(kind), make_columns(kind).spread

    @cuda.jit(device=True)
    def backward_coefficients(column, statistics, affine, sums, per_value):
        """Factors of g and ``x - mean``, and what is added: ``dx = g * k_dy + (x - mean) * k_x + k_offset``."""
        scale = parameter(affine.gamma, column, affine.gamma_step, 1.0) * load_wide(statistics.invstd, column)
        of_x = in_channels(-per_value) * scale * load_wide(statistics.invstd, column) * load_wide(sums.dgamma, column)
        offset = in_channels(-per_value) * scale * load_wide(sums.dbeta, column)
        return spread(scale), spread(of_x), spread(offset - load_wide(statistics.mean_lo, column) * of_x)

    return backward_coefficients


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
