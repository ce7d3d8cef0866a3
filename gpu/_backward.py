"""Gradients: ``dgamma = sum(dy * x_hat)``, ``dbeta = sum(dy)``, and dx from them."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import cuda

from . import _compat
from ._arguments import Kind
from ._columns import index, make_columns, onward
from ._merging import make_merge_sums, put_two, two
from ._results import make_coefficients, make_fused, make_parameter


@cache
def make_gradient_before(kind: Kind) -> Any:
    """The device function that goes back through activation and residual."""
    load, _ = _compat.access(kind.storage, kind.n)
    fused = make_fused(kind)
    plus, passed = fused.plus, fused.passed

    @cuda.jit(device=True)
    def gradient_before(data, i, k_mean, k_scale, k_shift):
        """``x - mean``, and the gradient before the activation, of a vector."""
        centered = load(data.x, i) - k_mean
        return centered, passed(plus(centered * k_scale + k_shift, data.z, i), load(data.dy, i))

    return gradient_before


@cache
def make_sum_gradients(kind: Kind) -> Any:
    """The device function that computes dgamma and dbeta."""
    lanes, in_values = kind.lanes, _compat.filled(kind.n)
    column_of, start, entry, _, summed = make_columns(kind)
    coefficients, gradient_before = make_coefficients(kind), make_gradient_before(kind)
    merge, finish_sums = make_merge_sums(kind), _make_finish_sums(kind)

    @cuda.jit(device=True)
    def sum_gradients(data, walk, workspace, statistics, affine, sums, parts):
        """Write dgamma and dbeta."""
        column = column_of()
        o, j = start(walk)
        s = q = k_mean = k_scale = k_shift = in_values(0.0)
        if column < walk.channels:
            k_mean, k_scale, k_shift = coefficients(column, statistics, affine, 0.0)
        while column < walk.channels and o < walk.outer:
            i = index(o, column, j, walk)
            centered, g = gradient_before(data, i, k_mean, k_scale, k_shift)
            s = s + g
            q = q + g * centered
            o, j = onward(o, j, walk)
        for k in range(lanes):
            put_two(parts, entry(k), (summed(s, k), summed(q, k)))
        if merge(parts, workspace, walk.channels):
            finish_sums(parts, walk, statistics, sums)

    return sum_gradients


def _make_finish_sums(kind: Kind) -> Any:
    lanes, lane = kind.lanes, _compat.lane
    load_one, store_one = _compat.access("float64", 1)
    in_one = _compat.filled(1)
    column_of = make_columns(kind).column

    @cuda.jit(device=True)
    def finish_sums(parts, walk, statistics, sums):
        """Write dgamma and dbeta from the sums of g and of ``g * (x - mean)``, where mean has no low part."""
        column = column_of()
        if cuda.threadIdx.y == 0 and column < walk.channels:
            for k in range(lanes):
                at = column * lanes + k
                total, product = two(parts, cuda.threadIdx.x * lanes + k)
                lo, inverse = lane(load_one(statistics.mean_lo, at), 0), lane(load_one(statistics.invstd, at), 0)
                store_one(sums.dgamma, at, in_one((product - lo * total) * inverse))
                store_one(sums.dbeta, at, in_one(total))

    return finish_sums


@cache
def make_write_gradients(kind: Kind) -> Any:
    """The device function that writes dx, and the gradient of the residual."""
    _, store = _compat.access(kind.storage, kind.n)
    column_of, start, *_ = make_columns(kind)
    coefficients, gradient_before = make_coefficients(kind), make_gradient_before(kind)
    backward_coefficients, kept = _make_backward_coefficients(kind), make_fused(kind).kept
    through_statistics = _make_through_statistics(kind)

    @cuda.jit(device=True)
    def write_gradients(data, gradients, walk, statistics, affine, sums, per_value):
        """Write from the end of the array: what was read last is still in the cache."""
        column = column_of()
        if column >= walk.channels:
            return
        k_mean, k_scale, k_shift = coefficients(column, statistics, affine, 0.0)
        k_dy, k_x, k_offset = backward_coefficients(column, statistics, affine, sums, per_value)
        o, j = start(walk)
        while o < walk.outer:
            i = index(walk.outer - 1 - o, column, j, walk)
            centered, g = gradient_before(data, i, k_mean, k_scale, k_shift)
            store(gradients.dx, i, through_statistics(g * k_dy, centered, k_x, k_offset))
            kept(gradients.dz, i, g)
            o, j = onward(o, j, walk)

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
