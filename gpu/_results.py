"""Results from statistics and parameters: ``activation(gamma * (x - mean) * invstd + beta + z)``."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from numba import cuda

from . import _compat
from ._arguments import Kind
from ._columns import backwards, make_columns, make_visit


class Index(NamedTuple):
    """Device functions of a kind: where statistics and parameters of a column lie."""

    statistics: Any  # (column, walk) -> index for `make_load`; with "rows" that of the first outer position
    parameters: Any  # (column, walk) -> index for `make_load`; not used with "along"
    along: Any  # (column, walk) -> with "along" what must be added to the index of data for that of parameters
    one: Any  # (column, k, walk) -> the index of the statistic of channel k of the column


@cache
def make_index(kind: Kind) -> Index:
    """The functions of a kind."""
    lanes = kind.lanes

    @cuda.jit(device=True)
    def same(column, walk):
        return column

    @cuda.jit(device=True)
    def nothing(column, walk):
        return 0

    @cuda.jit(device=True)
    def again(column, walk):
        return column * lanes % walk.share, walk.share

    @cuda.jit(device=True)
    def one_again(column, k, walk):
        return (column * lanes + k) % walk.share

    @cuda.jit(device=True)
    def of_group(column, walk):
        return column // walk.share

    @cuda.jit(device=True)
    def of_channel(column, walk):
        return column % (walk.groups * walk.share)

    @cuda.jit(device=True)
    def from_data(column, walk):
        return (column % walk.groups - column) * walk.inner

    @cuda.jit(device=True)
    def group_of_row(column, walk):
        return column * lanes // walk.share

    statistics, parameters = {
        "columns": (same, same),
        "repeated": (again, again),
        "planes": (of_group, of_channel),
        "along": (same, same),
        "rows": (group_of_row, same),
    }[kind.belonging]

    @cuda.jit(device=True)
    def one(column, k, walk):
        return statistics(column, walk) * lanes + k

    along = from_data if kind.belonging == "along" else nothing
    return Index(statistics, parameters, along, one_again if kind.belonging == "repeated" else one)


@cache
def make_load(kind: Kind, storage: str) -> Any:
    """The device function that reads a value for each channel of a column: ``(address, index)``.

    The index is that of a vector; with "repeated" that of the first value, and the number of channels.
    """
    lanes, lane, with_lane = kind.lanes, _compat.lane, _compat.with_lane
    in_channels, (load_one, _) = _compat.filled(lanes), _compat.access(storage, 1)
    if kind.belonging != "repeated":
        return _compat.access(storage, lanes, aligned=False).load

    @cuda.jit(device=True)
    def load(address, index):
        at, n_channels = index
        v = in_channels(0.0)
        for k in range(lanes):
            v = with_lane(v, k, lane(load_one(address, at), 0))
            at = at + 1 if at + 1 < n_channels else 0
        return v

    return load


@cache
def make_parameter(kind: Kind) -> Any:
    """The device function that reads a parameter."""
    is_along = kind.belonging == "along"
    filled = _compat.filled(kind.n if is_along else kind.lanes)
    load_parameters = _compat.access(kind.parameters, kind.n).load if is_along else make_load(kind, kind.parameters)

    @cuda.jit(device=True)
    def parameter(address, at, step, otherwise):
        """A vector of it."""
        if step == 0:
            return filled(otherwise)
        return load_parameters(address, at)

    return parameter


class StatisticsOf(NamedTuple):
    """Device functions of a kind that read statistics."""

    mean: Any  # (statistics, column) -> a vector for the channels of a column
    mean_lo: Any  # (statistics, column)
    invstd: Any  # (statistics, column, eps)


@cache
def make_statistics(kind: Kind) -> StatisticsOf:
    """The functions of a kind."""
    in_channels = _compat.filled(kind.lanes)

    @cuda.jit(device=True)
    def nothing(statistics, column):
        return in_channels(0.0)

    given = _given(kind, nothing) if kind.given else _saved(kind)
    return given if kind.centred else given._replace(mean=nothing, mean_lo=nothing)


def _saved(kind: Kind) -> StatisticsOf:
    """As a forward pass saved them."""
    load_wide = make_load(kind, "float64")

    @cuda.jit(device=True)
    def mean(statistics, column):
        return load_wide(statistics.mean, column)

    @cuda.jit(device=True)
    def mean_lo(statistics, column):
        return load_wide(statistics.mean_lo, column)

    @cuda.jit(device=True)
    def invstd(statistics, column, eps):
        return load_wide(statistics.invstd, column)

    return StatisticsOf(mean, mean_lo, invstd)


def _given(kind: Kind, nothing: Any) -> StatisticsOf:
    """From a mean and a variance. A negative variance gives NaN whatever eps: an error would mean waiting."""
    load_parameters = make_load(kind, kind.parameters)
    inverse_std, not_negative = _compat.inverse_std, _compat.not_negative

    @cuda.jit(device=True)
    def mean(statistics, column):
        return load_parameters(statistics.mean, column)

    @cuda.jit(device=True)
    def invstd(statistics, column, eps):
        return inverse_std(not_negative(load_parameters(statistics.invstd, column)), eps)

    return StatisticsOf(mean, nothing, invstd)


class Coefficients(NamedTuple):
    """Device functions of a kind for ``(x - mean) * scale + shift``."""

    of_column: Any  # (column, walk, statistics, affine, eps) -> what a thread keeps
    beside: Any  # (affine, i) -> gamma and beta of vector i of what lies along a column
    at: Any  # (kept, beside, o) -> mean, scale and shift for every value of a vector at outer position o


@cache
def make_coefficients(kind: Kind) -> Coefficients:
    """The functions of a kind."""
    return {"along": _along, "rows": _in_rows}.get(kind.belonging, _of_columns)(kind)


def _of_columns(kind: Kind) -> Coefficients:
    """The same for all values of a column, or of each of its channels."""
    parameter, index, spread = make_parameter(kind), make_index(kind), make_columns(kind).spread
    mean, mean_lo, invstd = make_statistics(kind)

    @cuda.jit(device=True)
    def of_column(column, walk, statistics, affine, eps):
        own, at = index.statistics(column, walk), index.parameters(column, walk)
        gammas = parameter(affine.gamma, at, affine.gamma_step, 1.0)
        betas = parameter(affine.beta, at, affine.beta_step, 0.0)
        scales = invstd(statistics, own, eps) * gammas
        return spread(mean(statistics, own)), spread(scales), spread(betas - mean_lo(statistics, own) * scales)

    @cuda.jit(device=True)
    def beside(affine, i):
        return 0.0, 0.0

    @cuda.jit(device=True)
    def at(kept, beside, o):
        return kept

    return Coefficients(of_column, beside, at)


def _along(kind: Kind) -> Coefficients:
    """Parameters lie along a column."""
    parameter, spread = make_parameter(kind), make_columns(kind).spread
    mean, mean_lo, invstd = make_statistics(kind)

    @cuda.jit(device=True)
    def of_column(column, walk, statistics, affine, eps):
        of_all = mean(statistics, column), invstd(statistics, column, eps), mean_lo(statistics, column)
        return spread(of_all[0]), spread(of_all[1]), spread(of_all[2])

    @cuda.jit(device=True)
    def beside(affine, i):
        gammas = parameter(affine.gamma, i, affine.gamma_step, 1.0)
        return gammas, parameter(affine.beta, i, affine.beta_step, 0.0)

    @cuda.jit(device=True)
    def at(kept, beside, o):
        mean, inverse, lo = kept
        gamma, beta = beside
        scale = inverse * gamma
        return mean, scale, beta - lo * scale

    return Coefficients(of_column, beside, at)


def _in_rows(kind: Kind) -> Coefficients:
    """Statistics are those of an outer position."""
    parameter, index = make_parameter(kind), make_index(kind)
    in_channels, one = _compat.filled(kind.lanes), make_statistics(kind._replace(rows=False))
    lane = _compat.lane

    @cuda.jit(device=True)
    def of_column(column, walk, statistics, affine, eps):
        gammas = parameter(affine.gamma, column, affine.gamma_step, 1.0)
        betas = parameter(affine.beta, column, affine.beta_step, 0.0)
        return statistics, walk.groups, index.statistics(column, walk), gammas, betas

    @cuda.jit(device=True)
    def beside(affine, i):
        return 0.0, 0.0

    @cuda.jit(device=True)
    def at(kept, beside, o):
        statistics, groups, first, gamma, beta = kept
        own = o * groups + first
        scale = in_channels(lane(one.invstd(statistics, own, 0.0), 0)) * gamma
        lo = in_channels(lane(one.mean_lo(statistics, own), 0))
        return in_channels(lane(one.mean(statistics, own), 0)), scale, beta - lo * scale

    return Coefficients(of_column, beside, at)


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
def make_write_results(kind: Kind, *, last_first: bool = False) -> Any:
    """The device function that writes y; of the last columns first, if they are still in the cache."""
    load, store = _compat.access(kind.storage, kind.n)
    column_of, index = make_columns(kind).column, make_index(kind)
    of_column, beside_parameters, at = make_coefficients(kind)
    beside, plus, activated, *_ = make_fused(kind)

    @cuda.jit(device=True)
    def read(data, i):
        arrays, affine, to_parameters = data
        return load(arrays.x, i), beside(arrays.z, i), beside_parameters(affine, i + to_parameters)

    @cuda.jit(device=True)
    def take(y, kept, values, o, i):
        x, z, parameters = values
        mean, scale, shift = at(kept, parameters, o)
        store(y, i, activated(plus((x - mean) * scale + shift, z)))
        return kept

    visit = make_visit(kind, backwards, read, take)

    @cuda.jit(device=True)
    def write_results(data, walk, statistics, affine, eps):
        """Write y."""
        column = column_of()
        if column < walk.channels:
            column = walk.channels - 1 - column if last_first else column
            kept = of_column(column, walk, statistics, affine, eps)
            visit((data, affine, index.along(column, walk)), data.y, walk, column, kept)

    return write_results
