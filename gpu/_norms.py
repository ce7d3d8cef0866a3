"""Layer, RMS, group and instance normalization of device arrays: the kernels of batch norm, over other views.

An array is seen as (samples, groups, share, inner): groups of as many channels as `share` says, each of `inner` values.
Layer and RMS norm have one group, of the values that are normalized together, with parameters for each.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from bncpu import _scalars
from bncpu.saved import SavedStatistics, as_in_forward, call_of

from ._arguments import Backward, Belonging, Forward, Gradients, Pair, Running, Statistics, Sums
from ._call import Call, View, data


class Sizes(NamedTuple):
    """An array as above."""

    samples: int
    groups: int
    share: int
    inner: int

    @property
    def together(self) -> View:
        """With a column for the values that are normalized together."""
        return View((1, self.samples * self.groups, self.share * self.inner), 1, False, self.groups, self.share)

    @property
    def planes(self) -> View:
        """With a column for each channel of a sample."""
        return View((1, self.samples * self.groups * self.share, self.inner), 1, False, self.groups, self.share)

    @property
    def view_of_results(self) -> tuple[View, Belonging]:
        """The view for results: gamma and beta are constant in a column, or lie along it."""
        return (self.together, "along") if self.inner == 1 else (self.planes, "planes")

    @property
    def values(self) -> int:
        """The number of values that are normalized together."""
        return self.share * self.inner


def layer_forward(
    x: Any, normalized: tuple[int, ...], gamma: Any, beta: Any, *,
    eps: Any, channel_axis: int | None, activation: Any, residual: Any, out: Any, centred: bool,
) -> tuple[Any, SavedStatistics]:  # fmt: skip
    """`bncpu.layer_norm_forward`, or that of RMS norm if not `centred`, of device arrays.

    Parameters
    ----------
    normalized : tuple of int
        The lengths of the last axes of x.
    channel_axis : int or None
        Counted from 0.
    """
    eps = _scalars.real("eps", eps, low=0)
    sizes, per_sample = _of_layers(x, normalized, channel_axis)
    p = Call(x, activation, {"gamma": gamma, "beta": beta}, normalized, residual=residual, out=out)
    call = call_of(channel_axis, activation, gamma, beta, residual, normalized)
    return _forward(p, sizes, per_sample, eps, call, centred=centred)


def layer_backward(
    dy: Any, x: Any, saved: Any, normalized: tuple[int, ...], gamma: Any, beta: Any, *,
    channel_axis: int | None, activation: Any, residual: Any, out: Any, centred: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """`bncpu.layer_norm_backward`, or that of RMS norm if not `centred`, of device arrays."""
    sizes, per_sample = _of_layers(x, normalized, channel_axis)
    p = _with_dy(dy, x, activation, gamma, beta, normalized, "", residual, out)
    as_in_forward(saved, call_of(channel_axis, activation, gamma, beta, residual), sizes.values)
    return _backward(p, sizes, p.saved(saved, per_sample, centred=centred), normalized, centred=centred)


def _of_layers(x: Any, normalized: tuple[int, ...], channel_axis: int | None) -> tuple[Sizes, tuple[int, ...]]:
    """Sizes, and the shape of statistics."""
    shape, k = data(x, least=1), len(normalized)
    if channel_axis is not None and channel_axis != len(shape) - 1:
        raise ValueError(f"channel_axis must be the last axis of device arrays, or None; got {channel_axis}")
    return Sizes(prod(shape[:-k]), 1, prod(normalized), 1), shape[:-k] + (1,) * k


def group_forward(
    x: Any, n_groups: int, gamma: Any, beta: Any, *,
    eps: Any, channel_axis: int, activation: Any, residual: Any, out: Any,
) -> tuple[Any, SavedStatistics]:  # fmt: skip
    """`bncpu.group_norm_forward` of device arrays; `n_groups` divides the number of channels."""
    eps = _scalars.real("eps", eps, low=0)
    sizes = _of_groups(x, n_groups, channel_axis)
    per = (x.shape[1],)
    p = Call(x, activation, {"gamma": gamma, "beta": beta}, per, _PER_CHANNEL, residual=residual, out=out)
    call = call_of(channel_axis, activation, gamma, beta, residual)
    return _forward(p, sizes, (sizes.samples, n_groups), eps, call)


def instance_forward(
    x: Any, gamma: Any, beta: Any, *,
    momentum: Any, ddof: Any, eps: Any, channel_axis: int, activation: Any, residual: Any, out: Any,
) -> tuple[Any, SavedStatistics]:  # fmt: skip
    """`bncpu.instance_norm_forward` of device arrays, without running statistics."""
    _scalars.momentum(momentum, None)
    ddof = _scalars.real("ddof", ddof, low=0)
    _scalars.values_per_channel("instance_norm", _of_groups(x, x.shape[1], channel_axis).values, ddof)
    more = {"channel_axis": channel_axis, "activation": activation, "residual": residual, "out": out}
    return group_forward(x, x.shape[1], gamma, beta, eps=eps, **more)


def group_backward(
    dy: Any, x: Any, saved: Any, n_groups: int, gamma: Any, beta: Any, *,
    channel_axis: int, activation: Any, residual: Any, out: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """`bncpu.group_norm_backward` of device arrays."""
    sizes = _of_groups(x, n_groups, channel_axis)
    per = (x.shape[1],)
    p = _with_dy(dy, x, activation, gamma, beta, per, _PER_CHANNEL, residual, out)
    as_in_forward(saved, call_of(channel_axis, activation, gamma, beta, residual), sizes.values)
    return _backward(p, sizes, p.saved(saved, (sizes.samples, n_groups)), per)


_PER_CHANNEL = ", one value per channel"


def _of_groups(x: Any, n_groups: int, channel_axis: int) -> Sizes:
    n, channels, *rest = data(x)
    if channel_axis != 1:
        raise ValueError(f"channel_axis must be 1 for device arrays, whose groups are not copied; got {channel_axis}")
    return Sizes(n, n_groups, channels // n_groups, prod(rest))


def _with_dy(
    dy: Any, x: Any, activation: Any, gamma: Any, beta: Any, per: tuple[int, ...], what: str, residual: Any, out: Any
) -> Call:
    p = Call(x, activation, {"gamma": gamma, "beta": beta}, per, what, dy=dy, residual=residual, out=out)
    if "dy" not in p.at:
        raise TypeError("dy must be a device array, got None")
    return p


def _forward(
    p: Call, sizes: Sizes, shape: tuple[int, ...], eps: float, call: Any, *, centred: bool = True
) -> tuple[Any, SavedStatistics]:
    invstd, at_invstd = p.float64(*shape)
    (mean, at_mean), (mean_lo, at_lo) = (p.float64(*shape), p.float64(*shape)) if centred else ((None, at_invstd),) * 2
    statistics = Statistics(at_mean, at_lo, at_invstd)
    y, to = p.result()
    arrays = Forward(p.at["x"], p.address("residual"), to)
    running = Running(p.at["x"], p.at["x"], 0, 0.0, 0.0)
    own = p.prepared(*sizes.view_of_results, centred=centred)
    if sizes.view_of_results[0] == sizes.together and own.plan.slices == 1:
        p.launch(own.kernels.forward, own.plan, arrays, own.walk, statistics, p.affine(), eps, running)
    else:
        first = p.prepared(sizes.together, centred=centred)
        workspace = p.workspace(first.plan)
        p.launch(first.of_moments.moments, first.plan, p.at["x"], first.walk, workspace, statistics, eps, running)
        p.launch(own.kernels.apply, own.plan, arrays, own.walk, statistics, p.affine(), eps)
    return y, SavedStatistics(mean, invstd, mean_lo if centred else 0.0, sizes.values, "training", call)


def _backward(
    p: Call, sizes: Sizes, statistics: Statistics, per: tuple[int, ...], *, centred: bool = True
) -> tuple[Any, ...]:
    (dgamma, at_dgamma), (dbeta, at_dbeta) = p.float64(*per), p.float64(*per)
    of_parameters = Pair(at_dgamma, at_dbeta)
    dx, to = p.result()
    dz, to_dz = p.new_as_x() if "residual" in p.at else (None, to)
    arrays, gradients = Backward(p.at["dy"], p.at["x"], p.address("residual")), Gradients(to, to_dz)
    through = _through_planes if sizes.inner > 1 else _through_rows
    through(p, sizes, arrays, gradients, statistics, of_parameters, centred)
    return (dx, dgamma, dbeta) if dz is None else (dx, dgamma, dbeta, dz)


def _through_rows(
    p: Call, sizes: Sizes, arrays: Backward, gradients: Gradients, statistics: Statistics, result: Pair, centred: bool
) -> None:
    """Where parameters lie along what is normalized together."""
    n = sizes.samples * sizes.groups
    of_x_hat, of_g = p.float64(n), p.float64(n)
    sums = Sums(*result, of_x_hat[1], of_g[1])
    # First, as dx may take the place of what this reads.
    view = View((sizes.samples, sizes.groups * sizes.share), 1, True, sizes.groups, sizes.share)
    of_parameters = p.prepared(view, "rows", centred=centred)
    workspace = p.workspace(of_parameters.plan)
    of_all = statistics, p.affine(), sums
    p.launch(of_parameters.kernels.backward_sums, of_parameters.plan, arrays, of_parameters.walk, workspace, *of_all)
    own = p.prepared(sizes.together, "along", centred=centred)
    both = arrays, gradients, own.walk, *of_all, 1.0 / sizes.values
    if own.plan.slices == 1:
        p.launch(own.kernels.backward, own.plan, *both)
    else:
        p.launch(own.kernels.backward_sums, own.plan, arrays, own.walk, p.workspace(own.plan), *of_all)
        p.launch(own.kernels.backward_apply, own.plan, *both)


def _through_planes(
    p: Call, sizes: Sizes, arrays: Backward, gradients: Gradients, statistics: Statistics, result: Pair, centred: bool
) -> None:
    """Where channels have several values: their sums are added up to those of groups, and to those of all samples."""
    n = sizes.samples * sizes.groups
    of_planes = [p.float64(n * sizes.share) for _ in range(4)]
    sums = Sums(*(at for _, at in of_planes))
    own = p.prepared(sizes.planes, "planes", centred=centred)
    if sizes.share == 1 and own.plan.slices == 1:
        both = arrays, gradients, own.walk, statistics, p.affine(), sums, 1.0 / sizes.values
        p.launch(own.kernels.backward, own.plan, *both)
    else:
        of_all = statistics, p.affine(), sums
        p.launch(own.kernels.backward_sums, own.plan, arrays, own.walk, p.workspace(own.plan), *of_all)
        if sizes.share > 1:
            of_x_hat, of_g = p.float64(n), p.float64(n)
            of_groups = Pair(of_x_hat[1], of_g[1])
            p.fold(View((1, n, sizes.share), 1, False), Pair(sums.g_x_hat, sums.g), of_groups)
            sums = sums._replace(g_x_hat=of_groups.first, g=of_groups.second)
        both = arrays, gradients, own.walk, statistics, p.affine(), sums, 1.0 / sizes.values
        p.launch(own.kernels.backward_apply, own.plan, *both)
    p.fold(View((sizes.samples, sizes.groups * sizes.share), 1, True), Pair(sums.dgamma, sums.dbeta), result)
