"""Batch normalization as functions of arrays: training and inference are separate, no flag to forget."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bncpu import _layout, _normalize, _validation
from bncpu.moments import Coefficients, fold, inverse_std, moved, variance

Array = NDArray[np.floating[Any]]


class SavedStatistics(NamedTuple):
    """What a forward pass leaves for its backward pass.

    Attributes
    ----------
    mean : ndarray of shape (C,), float64
        Mean of the batch, per channel.
    invstd : ndarray of shape (C,), float64
        ``1 / sqrt(var + eps)`` with the biased variance of the batch; 0 where that would divide by 0.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import batch_norm_forward
    >>> _, saved = batch_norm_forward(np.array([[0.0], [4.0]]), eps=0)
    >>> saved.mean, saved.invstd
    (array([2.]), array([0.5]))
    """

    mean: NDArray[np.float64]
    invstd: NDArray[np.float64]


def batch_norm(
    x: Array,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    activation: Literal["relu"] | None = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """Normalize with given statistics: batch normalization at inference.

    ``y = gamma * (x - mean) / sqrt(var + eps) + beta`` [1]_, then ``+ residual``, then the activation.

    Parameters
    ----------
    x : ndarray of shape (N, C) or (N, C, ...), float16, float32 or float64
        Not modified, unless it is `out`. Copied only if its strides fit neither memory form.
    mean, var : array-like of shape (C,)
        Running statistics, for example. `var` is the square of x's unit and not negative.
    gamma, beta : array-like of shape (C,), optional
        Scale and shift; 1 and 0 if not given.
    eps : float, default=1e-5
        Added to `var`. Not negative; with ``eps=0`` a channel of variance 0 gives `beta`.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last.
    activation : {None, "relu"}, default=None
        Applied last.
    residual : ndarray of the shape and dtype of `x`, optional
        Added before the activation.
    out : ndarray of the shape and dtype of `x`, optional
        Receives the result; may be `x`. If it overlaps `x` otherwise, the result is as if `x` had been
        copied first.
    n_threads : int, optional
        Threads to use at most; by default what OpenMP allows. The result does not depend on it.

    Returns
    -------
    ndarray of the shape and dtype of `x`
        `out` if given, else a new array in the memory order of `x`.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, `var` or `eps` is negative, or `out` is read-only.

    References
    ----------
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
       Internal Covariate Shift", algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import batch_norm
    >>> batch_norm(np.array([[1.0, 20.0], [3.0, 40.0]]), mean=[2.0, 30.0], var=[1.0, 100.0], eps=0)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    axis = _validation.data("x", x, channel_axis)
    n_channels = x.shape[axis]
    center = _validation.required("mean", mean, n_channels)
    spread = _validation.variances("var", var, n_channels)
    scale = _validation.per_channel("gamma", gamma, n_channels)
    shift = _validation.per_channel("beta", beta, n_channels)
    eps = _validation.real("eps", eps, low=0)
    finish = _Finish(x, axis, activation, residual, out, n_threads)
    return finish(fold(center, inverse_std(spread, eps), scale, shift))


def batch_norm_forward(
    x: Array,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.9,
    ddof: float = 0,
    eps: float = 1e-5,
    channel_axis: int = 1,
    activation: Literal["relu"] | None = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, SavedStatistics]:
    """Normalize with the statistics of the batch: batch normalization in training.

    The four steps of [1]_, per channel over its m values: ``mean = sum(x) / m``,
    ``var = sum((x - mean)**2) / m``, ``x_hat = (x - mean) / sqrt(var + eps)``, ``y = gamma * x_hat + beta``;
    then ``+ residual``, then the activation. Running statistics, if given, move towards the batch's.

    Parameters
    ----------
    x : ndarray of shape (N, C) or (N, C, ...), float16, float32 or float64
        Not modified, unless it is `out`. NaN and infinity stay within their channel.
    gamma, beta : array-like of shape (C,), optional
        Scale and shift; 1 and 0 if not given.
    running_mean, running_var : ndarray of shape (C,), floating point, optional
        Updated in place: ``momentum * running + (1 - momentum) * batch``. Both or neither.
    momentum : float in [0, 1], default=0.9
        Weight of the OLD value. PyTorch's momentum is 1 minus this one.
    ddof : float, default=0
        ``running_var`` receives ``m / (m - ddof)`` times the biased variance; PyTorch's is 1.
        Normalization always divides by m.
    eps : float, default=1e-5
        Added to the variance. Not negative; with ``eps=0`` a constant channel gives `beta`.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last.
    activation : {None, "relu"}, default=None
        Applied last.
    residual : ndarray of the shape and dtype of `x`, optional
        Added before the activation.
    out : ndarray of the shape and dtype of `x`, optional
        Receives the result; may be `x`. If it overlaps `x` otherwise, the result is as if `x` had been
        copied first.
    n_threads : int, optional
        Threads to use at most; by default what OpenMP allows. The result does not depend on it.

    Returns
    -------
    y : ndarray of the shape and dtype of `x`
        `out` if given, else a new array in the memory order of `x`.
    saved : SavedStatistics
        ``mean`` and ``invstd`` of the batch, float64, for the backward pass.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, a channel holds fewer than two values, a number is out of range, or an array
        to be written is read-only. Nothing has been changed then.

    References
    ----------
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
       Internal Covariate Shift", algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import batch_norm_forward
    >>> running_mean, running_var = np.zeros(2), np.ones(2)
    >>> y, saved = batch_norm_forward(
    ...     np.array([[1.0, 20.0], [3.0, 40.0]]), running_mean=running_mean, running_var=running_var, eps=0
    ... )
    >>> y
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> running_mean
    array([0.2, 3. ])
    """
    axis = _validation.data("x", x, channel_axis)
    n_channels = x.shape[axis]
    scale = _validation.per_channel("gamma", gamma, n_channels)
    shift = _validation.per_channel("beta", beta, n_channels)
    _validation.running_pair(running_mean, running_var, n_channels, x, out)
    momentum = _validation.momentum(momentum)
    ddof = _validation.real("ddof", ddof, low=0)
    eps = _validation.real("eps", eps, low=0)
    finish = _Finish(x, axis, activation, residual, out, n_threads)
    if n_channels:
        _validation.values_per_channel(x.size // n_channels, ddof)

    moments, _ = _normalize.moments(finish.x3, None, skip_missing=False, n_threads=n_threads)
    saved = SavedStatistics(moments.mean, inverse_std(variance(moments), eps))
    y = finish(fold(saved.mean, saved.invstd, scale, shift, moments.mean_lo))
    if running_mean is not None and running_var is not None:
        running_mean[...] = moved(running_mean, moments.mean, momentum)
        running_var[...] = moved(running_var, variance(moments, ddof), momentum)
    return y, saved


class _Finish:
    """The checked arrays of one call, brought into form; called with coefficients it computes the result."""

    def __init__(
        self,
        x: Array,
        channel_axis: int,
        activation: str | None,
        residual: Array | None,
        out: Array | None,
        n_threads: int | None,
    ) -> None:
        self.relu = _validation.activation(activation)
        self.n_threads = _validation.threads(n_threads)
        if residual is not None:
            _validation.like("residual", residual, x)
        if out is not None:
            _validation.like("out", out, x, writeable=True)
        self.x, self.residual, self.out = x, residual, out
        self.x3, self.layout = _layout.canonical(x, channel_axis)

    def __call__(self, coefficients: Coefficients) -> Array:
        shape, dtype = self.x.shape, self.x3.dtype
        z3 = None if self.residual is None else self.layout.view(self.residual)
        y, y3 = _layout.target(self.layout, self.out, shape, *(a for a in (self.x3, z3) if a is not None))
        if self.residual is not None and (z3 is None or z3.strides != y3.strides or z3.dtype != dtype):
            y, y3 = _layout.empty_in(self.layout, shape, dtype)
            z, z3 = _layout.empty_in(self.layout, shape, dtype)
            z[...] = self.residual
        _normalize.apply(self.x3, y3, coefficients, residual=z3, relu=self.relu, n_threads=self.n_threads)
        return _layout.delivered(y, self.out, self.x.dtype)
