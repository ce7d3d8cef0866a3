"""The specification of every fast path, in plain float64 NumPy. Slow, short, and only for tests.

`where` broadcasts against x here, whatever the norm: False for values that do not count.
"""

from __future__ import annotations

import numpy as np


def moments(x3, weights=None, skip_missing=False):
    """Count, mean and m2 of each channel of (outer, channels, inner), by two passes."""
    x = np.moveaxis(np.asarray(x3, np.float64), 1, 0).reshape(np.shape(x3)[1], -1)
    w = np.ones(x.shape[1]) if weights is None else np.asarray(weights, np.float64)
    w = np.where(np.isnan(x) & skip_missing, 0.0, w)
    x = np.where(np.isnan(x) & skip_missing, 0.0, x)
    count = w.sum(axis=1)
    with np.errstate(invalid="ignore"):
        mean = np.where(count > 0, (w * x).sum(axis=1) / count, 0.0)
    mean = mean + np.where(count > 0, (w * (x - mean[:, None])).sum(axis=1) / np.maximum(count, 1e-300), 0.0)
    return count, mean, (w * (x - mean[:, None]) ** 2).sum(axis=1)


def apply(x3, mean, scale, shift, residual=None, relu=False):
    """``(x - mean) * scale + shift``, then ``+ residual``, then ``max(., 0)``, per channel."""
    mean, scale, shift = (np.asarray(p, np.float64)[:, None] for p in (mean, scale, shift))
    y = (np.asarray(x3, np.float64) - mean) * scale + shift
    y = y if residual is None else y + residual
    return np.maximum(y, 0) if relu else y


def batch_norm(x, mean, var, gamma=None, beta=None, *, eps=1e-5, channel_axis=1):
    """Ioffe & Szegedy (2015), algorithm 2."""
    shape = [1] * np.ndim(x)
    shape[channel_axis] = -1
    mean, var = (np.asarray(p, np.float64).reshape(shape) for p in (mean, var))
    gamma = np.ones_like(var) if gamma is None else np.asarray(gamma, np.float64).reshape(shape)
    beta = np.zeros_like(var) if beta is None else np.asarray(beta, np.float64).reshape(shape)
    return gamma * (np.asarray(x, np.float64) - mean) * inverse_std(var, eps) + beta


def batch_norm_forward(x, gamma=None, beta=None, *, eps=1e-5, channel_axis=1, where=None):
    """Ioffe & Szegedy (2015), algorithm 1: the result, and the batch's mean and biased variance."""
    channel, others = _split(x, channel_axis)
    gamma, beta = _along(gamma, x, channel, 1.0), _along(beta, x, channel, 0.0)
    y, mean, var = _normalize(x, others, gamma, beta, eps, where=where)
    return y, mean.reshape(-1), var.reshape(-1)


def batch_norm_backward(
    dy, x, saved, gamma=None, *, beta=None, channel_axis=1, activation=None, residual=None, frozen=False, where=None
):
    """dx, dgamma, dbeta, and the gradient of the residual if there is one. `frozen` statistics do not depend on x."""
    channel, others = _split(x, channel_axis)
    mean, invstd, mean_lo = (_along(p, x, channel) for p in _with_low_part(saved))
    gamma, beta = _along(gamma, x, channel, 1.0), _along(beta, x, channel, 0.0)
    how = {"activation": activation, "residual": residual, "frozen": frozen, "where": where}
    dx, dgamma, dbeta, *more = _backward(dy, x, mean, mean_lo, invstd, gamma, beta, others, **how)
    return dx, dgamma.reshape(-1), dbeta.reshape(-1), *more


def layer_norm_forward(x, normalized_shape, gamma=None, beta=None, *, eps=1e-5, channel_axis=None, where=None):
    """Ba, Kiros & Hinton (2016), eq. 4: the result, mean and variance, in which normalized axes have length 1."""
    axes = _normalized_axes(x, np.atleast_1d(normalized_shape).size, channel_axis)
    return _normalize(x, axes, _along(gamma, x, axes, 1.0), _along(beta, x, axes, 0.0), eps, where=where)


def layer_norm_backward(
    dy, x, saved, gamma=None, *, beta=None, channel_axis=None, activation=None, residual=None, center=True, where=None
):
    """As `batch_norm_backward`. Without gamma, takes the fewest trailing axes that fit the shape of `saved`."""
    mean, invstd, mean_lo = _with_low_part(saved)
    n_axes = 0 if gamma is None else np.ndim(gamma)
    while channel_axis is None and np.size(invstd) * np.prod(np.shape(x)[np.ndim(x) - n_axes :]) < np.size(x):
        n_axes += 1
    axes = _normalized_axes(x, max(n_axes, 1), channel_axis)
    shape = [np.shape(x)[axis] for axis in axes]
    gamma, beta = _along(gamma, x, axes, 1.0), _along(beta, x, axes, 0.0)
    how = {"activation": activation, "residual": residual, "center": center, "where": where}
    dx, dgamma, dbeta, *more = _backward(dy, x, mean, mean_lo, invstd, gamma, beta, axes, **how)
    return dx, dgamma.reshape(shape), dbeta.reshape(shape), *more


def rms_norm_forward(x, normalized_shape, gamma=None, *, eps=1e-5, channel_axis=None, where=None):
    """Zhang & Sennrich (2019), eq. 4: the result, None and the mean square."""
    axes = _normalized_axes(x, np.atleast_1d(normalized_shape).size, channel_axis)
    y, _, square = _normalize(x, axes, _along(gamma, x, axes, 1.0), 0.0, eps, center=False, where=where)
    return y, None, square


def rms_norm_backward(dy, x, saved, gamma=None, **options):
    """As `layer_norm_backward`, with a mean of 0 that does not depend on x, and without dbeta."""
    dx, dgamma, _, *more = layer_norm_backward(dy, x, (0.0, saved[1]), gamma, center=False, **options)
    return dx, dgamma, *more


def group_norm_forward(x, n_groups, gamma=None, beta=None, *, eps=1e-5, channel_axis=1, where=None):
    """Wu & He (2018), eq. 7: the result, mean and variance. The latter two have shape (N, n_groups)."""
    x4, where4 = _grouped(x, n_groups, channel_axis), _counts_grouped(where, x, n_groups, channel_axis)
    gamma, beta = _along(gamma, x4, (1, 2), 1.0), _along(beta, x4, (1, 2), 0.0)
    y4, mean, var = _normalize(x4, (2, 3), gamma, beta, eps, where=where4)
    return _ungrouped(y4, x, channel_axis), mean[:, :, 0, 0], var[:, :, 0, 0]


def group_norm_backward(
    dy, x, saved, gamma=None, *, beta=None, channel_axis=1, activation=None, residual=None, where=None
):
    """As `batch_norm_backward`."""
    n_groups = np.shape(saved[1])[1]
    dy4, x4 = (_grouped(a, n_groups, channel_axis) for a in (dy, x))
    residual = None if residual is None else _grouped(residual, n_groups, channel_axis)
    mean, invstd, mean_lo = (_along(p, x4, (0, 1)) for p in _with_low_part(saved))
    gamma, beta = _along(gamma, x4, (1, 2), 1.0), _along(beta, x4, (1, 2), 0.0)
    where = _counts_grouped(where, x, n_groups, channel_axis)
    how = {"activation": activation, "residual": residual, "where": where}
    dx, dgamma, dbeta, *more = _backward(dy4, x4, mean, mean_lo, invstd, gamma, beta, (2, 3), **how)
    dx, *more = (_ungrouped(a, x, channel_axis) for a in (dx, *more))
    return dx, dgamma.reshape(-1), dbeta.reshape(-1), *more


def instance_norm_forward(x, gamma=None, beta=None, *, channel_axis=1, **options):
    """Ulyanov, Vedaldi & Lempitsky (2016), eq. 5: group norm with a group for each channel."""
    return group_norm_forward(x, np.shape(x)[channel_axis], gamma, beta, channel_axis=channel_axis, **options)


def instance_norm_backward(dy, x, saved, gamma=None, **options):
    """As `group_norm_backward`."""
    return group_norm_backward(dy, x, saved, gamma, **options)


def inverse_std(var, eps=1e-5):
    """``1 / sqrt(var + eps)``, and 0 where that would divide by 0."""
    std = np.sqrt(np.asarray(var, np.float64) + eps)
    return np.where(std == 0, 0.0, 1 / np.where(std == 0, 1.0, std))


def _normalize(x, over, gamma, beta, eps, center=True, where=None):
    """``gamma * (x - mean) / sqrt(var + eps) + beta``, mean and biased variance over the axes `over`.

    Parameters broadcast against `x`. Without `center` the mean is 0, and the variance the mean square. Where nothing
    counts the result is beta.
    """
    counts, n = _counts(where, x, over)
    centered, mean = np.asarray(x, np.float64), 0.0
    for _ in range(2 * center):  # twice: the first mean is rounded to the size of x
        step = _sum(np.where(counts, centered, 0.0), over) / n
        centered, mean = centered - step, mean + step
    var = _sum(np.where(counts, centered, 0.0) ** 2, over) / n
    some = np.any(counts, axis=over, keepdims=True)
    return gamma * centered * inverse_std(var, eps) * some + beta, mean, var


def _backward(
    dy, x, mean, mean_lo, invstd, gamma, beta, over, *, activation, residual, center=True, frozen=False, where=None
):
    """Gradients of what `_normalize` with ``relu(. + residual)`` computes, by the chain rule.

    Let ``x_hat = (x - mean) * invstd``, and g the gradient of x_hat. x acts on x_hat directly (term 1), through the
    mean (term 2) and through invstd (term 3): ``dx = invstd * (g - mean(g) - x_hat * mean(g * x_hat))``. Parameters
    broadcast against `x`. Terms 2 and 3 are for the n values that count; the means are sums over all, divided by n.
    What does not count, and has no gradient, is not looked at.
    """
    counts, n = _counts(where, x, over)
    dy, x_hat = np.asarray(dy, np.float64), (np.asarray(x, np.float64) - mean - mean_lo) * invstd
    if activation == "relu":
        dy = np.where(gamma * x_hat + beta + (0.0 if residual is None else residual) <= 0, 0.0, dy)
    x_hat = np.where(counts | (dy != 0), x_hat, 0.0)
    g = dx = dy * gamma  # term 1
    if center and not frozen:
        dx = dx - np.where(counts, _sum(g, over) / n, 0.0)  # term 2
    if not frozen:
        dx = dx - np.where(counts, x_hat * _sum(g * x_hat, over) / n, 0.0)  # term 3
    shared = tuple(axis for axis, n in enumerate(gamma.shape) if n == 1)
    dgamma, dbeta = (_sum(a, shared) for a in (dy * x_hat, dy))
    return (dx * invstd, dgamma, dbeta) if residual is None else (dx * invstd, dgamma, dbeta, dy)


def _sum(a, over):
    """Sums over axes, which stay with length 1. Pairwise, for which NumPy needs contiguous memory."""
    rest = [axis for axis in range(a.ndim) if axis not in over]
    rows = np.ascontiguousarray(a.transpose(*rest, *over)).reshape(
        [a.shape[axis] for axis in rest] + [_length(a, over)]
    )
    return rows.sum(axis=-1).reshape([1 if axis in over else n for axis, n in enumerate(a.shape)])


def _counts(where, x, over):
    """Which values of `x` count, as an array of its shape, and how many of each sum over axes, at least 1."""
    counts = np.broadcast_to(True if where is None else where, np.shape(x))
    return counts, np.maximum(np.count_nonzero(counts, axis=over, keepdims=True), 1)


def _counts_grouped(where, x, n_groups, channel_axis):
    return None if where is None else _grouped(np.broadcast_to(where, np.shape(x)), n_groups, channel_axis) > 0


def _length(a, axes):
    return int(np.prod([a.shape[axis] for axis in axes]))


def _with_low_part(saved):
    """Mean, invstd, and the low part of the mean: 0 if `saved` has none."""
    return *saved, np.broadcast_to(getattr(saved, "mean_lo", 0.0), np.shape(saved[1]))


def _along(p, x, axes, default=None):
    """A parameter over these `axes` of `x`, shaped to broadcast against `x`."""
    shape = [n if axis in axes else 1 for axis, n in enumerate(np.shape(x))]
    return np.full(shape, default) if p is None else np.asarray(p, np.float64).reshape(shape)


def _split(x, channel_axis):
    """The channel axis, counted from 0, and all others."""
    channel = channel_axis % np.ndim(x)
    return (channel,), tuple(axis for axis in range(np.ndim(x)) if axis != channel)


def _normalized_axes(x, n_axes, channel_axis):
    """The last `n_axes`, or the channel axis alone."""
    return tuple(range(np.ndim(x)))[-n_axes:] if channel_axis is None else _split(x, channel_axis)[0]


def _grouped(x, n_groups, channel_axis):
    """`x` as (N, group, channel in the group, values)."""
    moved = np.moveaxis(np.asarray(x, np.float64), channel_axis, 1)
    n, n_channels, *rest = moved.shape
    return moved.reshape(n, n_groups, n_channels // n_groups, int(np.prod(rest)))


def _ungrouped(a, x, channel_axis):
    """Undo `_grouped`."""
    return np.moveaxis(a.reshape(np.moveaxis(x, channel_axis, 1).shape), 1, channel_axis)


def running_momentum(batches, momentum, ddof=0):
    """Bias-corrected exponential averages of the means and variances of `batches`, by their definition."""
    k = len(batches)
    weights = (1 - momentum) * momentum ** np.arange(k - 1, -1, -1.0) / (1 - momentum**k)
    means = np.array([np.mean(b, axis=0, dtype=np.float64) for b in batches])
    variances = np.array([np.var(np.asarray(b, np.float64), axis=0, ddof=ddof) for b in batches])
    return weights @ means, weights @ variances


def running_halflife(rows, halflife, weights=None):
    """Weighted mean and variance of all rows of a stream, whose last row has weight 1."""
    rows = np.asarray(rows, np.float64)
    w = 0.5 ** (np.arange(len(rows) - 1, -1, -1.0) / halflife)
    count, mean, m2 = moments(rows[:, :, None], w if weights is None else w * weights, skip_missing=True)
    with np.errstate(invalid="ignore"):
        return mean, m2 / count
