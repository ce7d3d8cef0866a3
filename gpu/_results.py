"""Results from statistics and parameters: ``activation(gamma * (x - mean) * invstd + beta + z)``."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from numba import cuda

from . import _compat
from ._arguments import Kind
from ._columns import backwards, make_columns, make_visit


@cache
def make_parameter(kind: Kind) -> Any:
    """The device function that reads a parameter."""
    in_channels = _compat.filled(kind.lanes)
    load_parameters, _ = _compat.access(kind.parameters, kind.lanes, aligned=False)

    @cuda.jit(device=True)
    def parameter(address, column, step, otherwise):
        """A value for each channel of a column."""
        if step == 0:
            return in_channels(otherwise)
        return load_parameters(address, column)

    return parameter


def _saved(kind: Kind) -> tuple[Any, Any]:
    """How mean and inverse standard deviation, and the low part of the mean, are read as a forward pass saved them."""
    load_wide, _ = _compat.access("float64", kind.lanes, aligned=False)

    @cuda.jit(device=True)
    def mean_invstd(column, statistics, eps):
        return load_wide(statistics.mean, column), load_wide(statistics.invstd, column)

    @cuda.jit(device=True)
    def mean_lo(column, statistics):
        return load_wide(statistics.mean_lo, column)

    return mean_invstd, mean_lo


def _given(kind: Kind) -> tuple[Any, Any]:
    """The same from a mean and a variance. A negative variance gives NaN whatever eps: an error would mean waiting."""
    load_parameters, _ = _compat.access(kind.parameters, kind.lanes, aligned=False)
    in_channels = _compat.filled(kind.lanes)
    inverse_std, not_negative = _compat.inverse_std, _compat.not_negative

    @cuda.jit(device=True)
    def mean_invstd(column, statistics, eps):
        variances = not_negative(load_parameters(statistics.invstd, column))
        return load_parameters(statistics.mean, column), inverse_std(variances, eps)

    @cuda.jit(device=True)
    def mean_lo(column, statistics):
        return in_channels(0.0)

    return mean_invstd, mean_lo


@cache
def make_coefficients(kind: Kind) -> Any:
    """The device function that computes coefficients."""
    parameter, spread = make_parameter(kind), make_columns(kind).spread
    mean_invstd, mean_lo = _given(kind) if kind.given else _saved(kind)

    @cuda.jit(device=True)
    def coefficients(column, statistics, affine, eps):
        """Mean, scale and shift for every value of a vector: the result is ``(x - mean) * scale + shift``."""
        gammas = parameter(affine.gamma, column, affine.gamma_step, 1.0)
        betas = parameter(affine.beta, column, affine.beta_step, 0.0)
        means, scales = mean_invstd(column, statistics, eps)
        scales = scales * gammas
        return spread(means), spread(scales), spread(betas - mean_lo(column, statistics) * scales)

    return coefficients


class Fused(NamedTuple):
    """Device functions for residual and activation; they do nothing where a kind has none."""

    beside: Any  # (z, i) -> what is read of the residual
    plus: Any  # (v, beside) -> v with the residual
    activated: Any  # (v) -> the activation of v
    passed: Any  # (y, dy) -> the gradient before the activation, of which y is the argument
    kept: Any  # (dz, i, g): write the gradient of the residual


@cache
def make_fused(kind: Kind) -> Fused:
    """The functions of a kind."""
    beside, plus, kept = _residual(kind) if kind.residual else _no_residual()
    activated, passed = _relu() if kind.relu else _no_activation()
    return Fused(beside, plus, activated, passed, kept)


def _residual(kind: Kind) -> tuple[Any, Any, Any]:
    load, store = _compat.access(kind.storage, kind.n)

    @cuda.jit(device=True)
    def plus(v, beside):
        return v + beside

    @cuda.jit(device=True)
    def kept(dz, i, g):
        store(dz, i, g)

    return load, plus, kept


def _no_residual() -> tuple[Any, Any, Any]:
    @cuda.jit(device=True)
    def beside(z, i):
        return 0.0

    @cuda.jit(device=True)
    def plus(v, beside):
        return v

    @cuda.jit(device=True)
    def kept(dz, i, g):
        pass

    return beside, plus, kept


def _relu() -> tuple[Any, Any]:
    relu, where_above_0 = _compat.relu, _compat.where_above_0

    @cuda.jit(device=True)
    def activated(v):
        return relu(v)

    @cuda.jit(device=True)
    def passed(y, dy):
        return where_above_0(y, dy)

    return activated, passed


def _no_activation() -> tuple[Any, Any]:
    @cuda.jit(device=True)
    def activated(v):
        return v

    @cuda.jit(device=True)
    def passed(y, dy):
        return dy

    return activated, passed


@cache
def make_write_results(kind: Kind) -> Any:
    """The device function that writes y."""
    load, store = _compat.access(kind.storage, kind.n)
    column_of, coefficients = make_columns(kind).column, make_coefficients(kind)
    beside, plus, activated, *_ = make_fused(kind)

    @cuda.jit(device=True)
    def read(data, i):
        return load(data.x, i), beside(data.z, i)

    @cuda.jit(device=True)
    def take(y, state, values, o, i):
        mean, scale, shift = state
        x, z = values
        store(y, i, activated(plus((x - mean) * scale + shift, z)))
        return state

    visit = make_visit(kind, backwards, read, take)

    @cuda.jit(device=True)
    def write_results(data, walk, statistics, affine, eps):
        """Write y."""
        column = column_of()
        if column < walk.channels:
            visit(data, data.y, walk, column, coefficients(column, statistics, affine, eps))

    return write_results
