"""The specification: what every fast path computes, in plain float64 NumPy. Slow, short, and only for tests."""

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
    std = np.sqrt(var + eps)
    return np.where(std == 0, beta, gamma * (np.asarray(x, np.float64) - mean) / np.where(std == 0, 1, std) + beta)


def batch_norm_forward(x, gamma=None, beta=None, *, eps=1e-5, channel_axis=1):
    """Ioffe & Szegedy (2015), algorithm 1: the result, and the batch's mean and biased variance."""
    others = tuple(axis for axis in range(np.ndim(x)) if axis != channel_axis % np.ndim(x))
    mean = np.mean(x, axis=others, dtype=np.float64, keepdims=True)
    var = np.mean((np.asarray(x, np.float64) - mean) ** 2, axis=others)
    mean = mean.reshape(-1)
    return batch_norm(x, mean, var, gamma, beta, eps=eps, channel_axis=channel_axis), mean, var


def running_momentum(batches, momentum, ddof=0):
    """Bias-corrected exponential averages of the means and variances of `batches`, by their definition."""
    k = len(batches)
    weights = (1 - momentum) * momentum ** np.arange(k - 1, -1, -1.0) / (1 - momentum**k)
    means = np.array([np.mean(b, axis=0, dtype=np.float64) for b in batches])
    variances = np.array([np.var(np.asarray(b, np.float64), axis=0, ddof=ddof) for b in batches])
    return weights @ means, weights @ variances


def running_halflife(rows, halflife, weights=None):
    """Weighted mean and variance of all rows of a stream, the last row counting fully."""
    rows = np.asarray(rows, np.float64)
    w = 0.5 ** (np.arange(len(rows) - 1, -1, -1.0) / halflife)
    count, mean, m2 = moments(rows[:, :, None], w if weights is None else w * weights, skip_missing=True)
    with np.errstate(invalid="ignore"):
        return mean, m2 / count
