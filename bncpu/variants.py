"""Layer, RMS, instance and group normalization: each sample on its own, no statistics of a batch.

Instance normalization is group normalization with a group for each channel: one step, with coefficients for each
channel of each sample. Layer and RMS normalization, and groups of single values, take two, the second in the cache.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bncpu import _arguments, _checks, _layout
from bncpu._passes import Activation, Part, Pass
from bncpu.moments import (
    Coefficients,
    Gradient,
    Moments,
    SavedStatistics,
    changed,
    fold_backward,
    fold_saved,
    merge_blocks,
    moved,
    rms_statistics,
    rounded,
    saved_statistics,
    sums_with_x_hat,
    variance,
)

Array = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]
Statistics = Callable[[Moments, float], SavedStatistics]


def layer_norm(
    x: Array,
    normalized_shape: int | tuple[int, ...],
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int | None = None,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """Normalize each sample over its last axes: layer normalization.

    ``y = gamma * (x - mean) / sqrt(var + eps) + beta`` [1]_ with mean and biased variance over the
    last axes, and gamma and beta for each position in them; then ``+ residual``, then the activation.

    Parameters
    ----------
    x : ndarray of shape ``(..., *normalized_shape)``, float16, float32 or float64
        Not modified, unless it is `out`.
    normalized_shape : int or tuple of int
        The shape of the last axes, over which each position of the others is normalized. With `channel_axis`, the
        length of that axis.
    gamma, beta : array-like of shape `normalized_shape`, optional
        Scale and shift; 1 and 0 if not given.
    eps : float, default=1e-5
        Added to the variance. Not negative; with ``eps=0`` equal values give `beta`.
    channel_axis : int, optional
        Normalize over this axis instead, at each position of the others: 1 for the channels of (N, C, H, W).
    activation : {None, "relu"}, default=None
        Applied last.
    residual : ndarray of the shape and dtype of `x`, optional
        Added before the activation.
    out : ndarray of the shape and dtype of `x`, optional
        Receives the result; may be `x`. If it overlaps `x` otherwise, the result is as if `x` had been
        copied first.
    n_threads : int, optional
        Threads to use at most; by default no more than processors are idle. The result does not depend on it.

    Returns
    -------
    ndarray of the shape and dtype of `x`
        `out` if given, else a new array in the memory order of `x`.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, `eps` is negative, or `out` is read-only.

    References
    ----------
    .. [1] Ba, Kiros & Hinton (2016), "Layer Normalization", eq. 4.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import layer_norm
    >>> layer_norm(np.array([[1.0, 3.0], [10.0, 30.0]]), 2, eps=0)
    array([[-1.,  1.],
           [-1.,  1.]])
    """
    given = x, normalized_shape, gamma, beta, eps, channel_axis, activation, residual, out, n_threads
    y, _ = _layer_forward(*given, keep=False)
    return y


def layer_norm_forward(
    x: Array,
    normalized_shape: int | tuple[int, ...],
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int | None = None,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, SavedStatistics]:
    """Normalize as `layer_norm` does, and return what `layer_norm_backward` needs.

    ``y = gamma * (x - mean) / sqrt(var + eps) + beta`` [1]_ with mean and biased variance over the
    last axes, and gamma and beta for each position in them; then ``+ residual``, then the activation.

    Parameters
    ----------
    x : ndarray of shape ``(..., *normalized_shape)``, float16, float32 or float64
        Not modified, unless it is `out`.
    normalized_shape : int or tuple of int
        The shape of the last axes, over which each position of the others is normalized. With `channel_axis`, the
        length of that axis.
    gamma, beta : array-like of shape `normalized_shape`, optional
        Scale and shift; 1 and 0 if not given.
    eps : float, default=1e-5
        Added to the variance. Not negative; with ``eps=0`` equal values give `beta`.
    channel_axis : int, optional
        Normalize over this axis instead, at each position of the others: 1 for the channels of (N, C, H, W).
    activation : {None, "relu"}, default=None
        Applied last.
    residual : ndarray of the shape and dtype of `x`, optional
        Added before the activation.
    out : ndarray of the shape and dtype of `x`, optional
        Receives the result; may be `x`, which a backward pass then misses. If it overlaps `x` otherwise, the result
        is as if `x` had been copied first.
    n_threads : int, optional
        Threads to use at most; by default no more than processors are idle. The result does not depend on it.

    Returns
    -------
    y : ndarray of the shape and dtype of `x`
        `out` if given, else a new array in the memory order of `x`.
    saved : SavedStatistics
        Of the shape of x with 1 for the axes normalized over; float64.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, `eps` is negative, or `out` is read-only.

    References
    ----------
    .. [1] Ba, Kiros & Hinton (2016), "Layer Normalization", eq. 4.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import layer_norm_forward
    >>> y, saved = layer_norm_forward(np.array([[1.0, 3.0], [10.0, 30.0]]), 2, eps=0)
    >>> saved.mean
    array([[ 2.],
           [20.]])
    """
    return _layer_forward(x, normalized_shape, gamma, beta, eps, channel_axis, activation, residual, out, n_threads)


def layer_norm_backward(
    dy: Array,
    x: Array,
    saved: SavedStatistics,
    gamma: ArrayLike | None = None,
    *,
    beta: ArrayLike | None = None,
    channel_axis: int | None = None,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, ...]:
    """Compute the gradients of `layer_norm_forward`.

    With ``x_hat = (x - mean) * invstd``, ``g = gamma * dy`` and means over the values normalized together, [1]_:
    ``dx = invstd * (g - mean(g) - x_hat * mean(g * x_hat))``; ``dgamma`` and ``dbeta`` are sums of ``dy * x_hat``
    and of dy.

    Parameters
    ----------
    dy : ndarray of the shape and dtype of `x`
        Gradient of the result of the forward pass.
    x : ndarray of shape ``(..., *normalized_shape)``, float16, float32 or float64
        What the forward pass was given.
    saved : SavedStatistics
        What the forward pass returned, of the shape of x with 1 for the axes normalized over.
    gamma : array-like of shape `normalized_shape`, optional
        Of the forward pass, if that had one.
    beta : array-like of shape `normalized_shape`, optional
        Of the forward pass; needed with ReLU.
    channel_axis : int, optional
        Of the forward pass.
    activation : {None, "relu"}, default=None
        Of the forward pass. Where ReLU gave 0 the gradient is 0; that is computed again from `x`, nothing is kept.
        (In float16: where it gave 0 before the result was rounded.)
    residual : ndarray of the shape and dtype of `x`, optional
        Of the forward pass.
    out : ndarray of the shape and dtype of `x`, optional
        Receives `dx`; may be `dy` or `x`. If it overlaps one of them otherwise, the result is as if that had been
        copied first.
    n_threads : int, optional
        Threads to use at most; by default no more than processors are idle. The result does not depend on it.

    Returns
    -------
    dx : ndarray of the shape and dtype of `x`
        Gradient of `x`: `out` if given, else a new array in the memory order of `x`.
    dgamma, dbeta : ndarray of shape `normalized_shape`, float64
        Gradients of `gamma` and `beta`.
    dresidual : ndarray of the shape and dtype of `x`
        Gradient of `residual`, a new array; only if that is given.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, or `out` is read-only.

    References
    ----------
    .. [1] Ba, Kiros & Hinton (2016), "Layer Normalization", eq. 4.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import layer_norm_backward, layer_norm_forward
    >>> x = np.array([[0.0, 1.0, 5.0]])
    >>> y, saved = layer_norm_forward(x, 3)
    >>> dx, dgamma, dbeta = layer_norm_backward(np.array([[1.0, 0.0, 0.0]]), x, saved)
    >>> bool(abs(dx.sum()) < 1e-15)
    True
    """
    return _layer_backward(dy, x, saved, gamma, beta, channel_axis, activation, residual, out, n_threads, centred=True)


def rms_norm(
    x: Array,
    normalized_shape: int | tuple[int, ...],
    gamma: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int | None = None,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """Divide each sample by the root mean square over its last axes: RMS normalization.

    ``y = gamma * x / sqrt(mean(x**2) + eps)`` [1]_ with the mean over the last axes, and gamma for each position
    in them; then ``+ residual``, then the activation.

    Parameters
    ----------
    x : ndarray of shape ``(..., *normalized_shape)``, float16, float32 or float64
        Not modified, unless it is `out`.
    normalized_shape : int or tuple of int
        The shape of the last axes, over which each position of the others is normalized. With `channel_axis`, the
        length of that axis.
    gamma : array-like of shape `normalized_shape`, optional
        Scale; 1 if not given.
    eps : float, default=1e-5
        Added to the mean square. Not negative; with ``eps=0`` zeros give 0.
    channel_axis : int, optional
        Normalize over this axis instead, at each position of the others: 1 for the channels of (N, C, H, W).
    activation : {None, "relu"}, default=None
        Applied last.
    residual : ndarray of the shape and dtype of `x`, optional
        Added before the activation.
    out : ndarray of the shape and dtype of `x`, optional
        Receives the result; may be `x`. If it overlaps `x` otherwise, the result is as if `x` had been
        copied first.
    n_threads : int, optional
        Threads to use at most; by default no more than processors are idle. The result does not depend on it.

    Returns
    -------
    ndarray of the shape and dtype of `x`
        `out` if given, else a new array in the memory order of `x`.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, `eps` is negative, or `out` is read-only.

    References
    ----------
    .. [1] Zhang & Sennrich (2019), "Root Mean Square Layer Normalization", eq. 4; eps under the root, as PyTorch and
       ONNX have it.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import rms_norm
    >>> rms_norm(np.array([[3.0, 4.0, 0.0, 0.0]]), 4, eps=0)
    array([[1.2, 1.6, 0. , 0. ]])
    """
    given = x, normalized_shape, gamma, None, eps, channel_axis, activation, residual, out, n_threads
    y, _ = _layer_forward(*given, statistics=rms_statistics, keep=False)
    return y


def rms_norm_forward(
    x: Array,
    normalized_shape: int | tuple[int, ...],
    gamma: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int | None = None,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, SavedStatistics]:
    """Normalize as `rms_norm` does, and return what `rms_norm_backward` needs.

    ``y = gamma * x / sqrt(mean(x**2) + eps)`` [1]_ with the mean over the last axes, and gamma for each position
    in them; then ``+ residual``, then the activation.

    Parameters
    ----------
    x : ndarray of shape ``(..., *normalized_shape)``, float16, float32 or float64
        Not modified, unless it is `out`.
    normalized_shape : int or tuple of int
        The shape of the last axes, over which each position of the others is normalized. With `channel_axis`, the
        length of that axis.
    gamma : array-like of shape `normalized_shape`, optional
        Scale; 1 if not given.
    eps : float, default=1e-5
        Added to the mean square. Not negative; with ``eps=0`` zeros give 0.
    channel_axis : int, optional
        Normalize over this axis instead, at each position of the others: 1 for the channels of (N, C, H, W).
    activation : {None, "relu"}, default=None
        Applied last.
    residual : ndarray of the shape and dtype of `x`, optional
        Added before the activation.
    out : ndarray of the shape and dtype of `x`, optional
        Receives the result; may be `x`, which a backward pass then misses. If it overlaps `x` otherwise, the result
        is as if `x` had been copied first.
    n_threads : int, optional
        Threads to use at most; by default no more than processors are idle. The result does not depend on it.

    Returns
    -------
    y : ndarray of the shape and dtype of `x`
        `out` if given, else a new array in the memory order of `x`.
    saved : SavedStatistics
        Of the shape of x with 1 for the axes normalized over; ``mean`` is None; float64.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, `eps` is negative, or `out` is read-only.

    References
    ----------
    .. [1] Zhang & Sennrich (2019), "Root Mean Square Layer Normalization", eq. 4; eps under the root, as PyTorch and
       ONNX have it.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import rms_norm_forward
    >>> y, saved = rms_norm_forward(np.array([[3.0, 4.0, 0.0, 0.0]]), 4, eps=0)
    >>> saved.invstd
    array([[0.4]])
    """
    return _layer_forward(
        x,
        normalized_shape,
        gamma,
        None,
        eps,
        channel_axis,
        activation,
        residual,
        out,
        n_threads,
        statistics=rms_statistics,
    )


def rms_norm_backward(
    dy: Array,
    x: Array,
    saved: SavedStatistics,
    gamma: ArrayLike | None = None,
    *,
    channel_axis: int | None = None,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, ...]:
    """Compute the gradients of `rms_norm_forward`.

    With ``x_hat = x * invstd``, ``g = gamma * dy`` and means over the values normalized together, [1]_:
    ``dx = invstd * (g - x_hat * mean(g * x_hat))``; ``dgamma`` is the sum of ``dy * x_hat`` over the samples.

    Parameters
    ----------
    dy : ndarray of the shape and dtype of `x`
        Gradient of the result of the forward pass.
    x : ndarray of shape ``(..., *normalized_shape)``, float16, float32 or float64
        What the forward pass was given.
    saved : SavedStatistics
        What the forward pass returned, of the shape of x with 1 for the axes normalized over; ``mean`` is None.
    gamma : array-like of shape `normalized_shape`, optional
        Of the forward pass, if that had one.
    channel_axis : int, optional
        Of the forward pass.
    activation : {None, "relu"}, default=None
        Of the forward pass. Where ReLU gave 0 the gradient is 0; that is computed again from `x`, nothing is kept.
        (In float16: where it gave 0 before the result was rounded.)
    residual : ndarray of the shape and dtype of `x`, optional
        Of the forward pass.
    out : ndarray of the shape and dtype of `x`, optional
        Receives `dx`; may be `dy` or `x`. If it overlaps one of them otherwise, the result is as if that had been
        copied first.
    n_threads : int, optional
        Threads to use at most; by default no more than processors are idle. The result does not depend on it.

    Returns
    -------
    dx : ndarray of the shape and dtype of `x`
        Gradient of `x`: `out` if given, else a new array in the memory order of `x`.
    dgamma : ndarray of shape `normalized_shape`, float64
        Gradient of `gamma`.
    dresidual : ndarray of the shape and dtype of `x`
        Gradient of `residual`, a new array; only if that is given.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, or `out` is read-only.

    References
    ----------
    .. [1] Zhang & Sennrich (2019), "Root Mean Square Layer Normalization", eq. 4; eps under the root, as PyTorch and
       ONNX have it.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import rms_norm_backward, rms_norm_forward
    >>> x = np.array([[3.0, 4.0, 0.0, 0.0]])
    >>> y, saved = rms_norm_forward(x, 4)
    >>> dx, dgamma = rms_norm_backward(np.array([[1.0, 0.0, 0.0, 0.0]]), x, saved)
    >>> dx.shape
    (1, 4)
    """
    dx, dgamma, _, *dresidual = _layer_backward(
        dy, x, saved, gamma, None, channel_axis, activation, residual, out, n_threads, centred=False
    )
    return dx, dgamma, *dresidual


def instance_norm(
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
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """Normalize each channel of each sample: instance normalization.

    ``y = gamma * (x - mean) / sqrt(var + eps) + beta`` [1]_ with mean and biased variance over the
    channel's values in the sample, and gamma and beta for each channel; then ``+ residual``, then the activation.

    Parameters
    ----------
    x : ndarray of shape (N, C, ...), float16, float32 or float64
        Not modified, unless it is `out`.
    gamma, beta : array-like of shape (C,), optional
        Scale and shift; 1 and 0 if not given.
    running_mean, running_var : ndarray of shape (C,), floating point, optional
        Updated in place: ``momentum * running + (1 - momentum) * batch``, where batch is the mean over the samples of
        their statistics. Both or neither.
    momentum : float in [0, 1], default=0.9
        Weight of the OLD value. PyTorch's momentum is 1 minus this one.
    ddof : float, default=0
        ``running_var`` receives ``m / (m - ddof)`` times the biased variances of m values; PyTorch's is 1.
        Normalization always divides by m.
    eps : float, default=1e-5
        Added to the variance. Not negative; with ``eps=0`` equal values give `beta`.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last. Samples are on the first other axis.
    activation : {None, "relu"}, default=None
        Applied last.
    residual : ndarray of the shape and dtype of `x`, optional
        Added before the activation.
    out : ndarray of the shape and dtype of `x`, optional
        Receives the result; may be `x`. If it overlaps `x` otherwise, the result is as if `x` had been
        copied first.
    n_threads : int, optional
        Threads to use at most; by default no more than processors are idle. The result does not depend on it.

    Returns
    -------
    ndarray of the shape and dtype of `x`
        `out` if given, else a new array in the memory order of `x`.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, a channel of a sample holds fewer than two values, a number is out of range, or an
        array to be written is read-only. Nothing has been changed then.

    References
    ----------
    .. [1] Ulyanov, Vedaldi & Lempitsky (2016), "Instance Normalization: The Missing Ingredient for Fast Stylization",
       eq. 1.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import instance_norm
    >>> instance_norm(np.array([[[1.0, 3.0], [10.0, 30.0]]]), eps=0)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    y, _ = instance_norm_forward(
        x,
        gamma,
        beta,
        running_mean=running_mean,
        running_var=running_var,
        momentum=momentum,
        ddof=ddof,
        eps=eps,
        channel_axis=channel_axis,
        activation=activation,
        residual=residual,
        out=out,
        n_threads=n_threads,
    )
    return y


def instance_norm_forward(
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
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, SavedStatistics]:
    """Normalize as `instance_norm` does, and return what `instance_norm_backward` needs.

    ``y = gamma * (x - mean) / sqrt(var + eps) + beta`` [1]_ with mean and biased variance over the
    channel's values in the sample, and gamma and beta for each channel; then ``+ residual``, then the activation.

    Parameters
    ----------
    x : ndarray of shape (N, C, ...), float16, float32 or float64
        Not modified, unless it is `out`.
    gamma, beta : array-like of shape (C,), optional
        Scale and shift; 1 and 0 if not given.
    running_mean, running_var : ndarray of shape (C,), floating point, optional
        Updated in place: ``momentum * running + (1 - momentum) * batch``, where batch is the mean over the samples of
        their statistics. Both or neither.
    momentum : float in [0, 1], default=0.9
        Weight of the OLD value. PyTorch's momentum is 1 minus this one.
    ddof : float, default=0
        ``running_var`` receives ``m / (m - ddof)`` times the biased variances of m values; PyTorch's is 1.
        Normalization always divides by m.
    eps : float, default=1e-5
        Added to the variance. Not negative; with ``eps=0`` equal values give `beta`.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last. Samples are on the first other axis.
    activation : {None, "relu"}, default=None
        Applied last.
    residual : ndarray of the shape and dtype of `x`, optional
        Added before the activation.
    out : ndarray of the shape and dtype of `x`, optional
        Receives the result; may be `x`, which a backward pass then misses. If it overlaps `x` otherwise, the result
        is as if `x` had been copied first.
    n_threads : int, optional
        Threads to use at most; by default no more than processors are idle. The result does not depend on it.

    Returns
    -------
    y : ndarray of the shape and dtype of `x`
        `out` if given, else a new array in the memory order of `x`.
    saved : SavedStatistics
        Of shape (N, C); float64.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, a channel of a sample holds fewer than two values, a number is out of range, or an
        array to be written is read-only. Nothing has been changed then.

    References
    ----------
    .. [1] Ulyanov, Vedaldi & Lempitsky (2016), "Instance Normalization: The Missing Ingredient for Fast Stylization",
       eq. 1.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import instance_norm_forward
    >>> y, saved = instance_norm_forward(np.array([[[1.0, 3.0], [10.0, 30.0]]]), eps=0)
    >>> saved.mean
    array([[ 2., 20.]])
    """
    axis = _arguments.data("x", x, channel_axis)
    n_channels = x.shape[axis]
    others = {"x": x, "gamma": gamma, "beta": beta, "residual": residual, "out": out}
    _arguments.running_pair(running_mean, running_var, n_channels, others)
    momentum = _arguments.momentum(momentum)
    ddof = _checks.real("ddof", ddof, low=0)
    n_samples = x.shape[0 if axis else 1]
    if n_samples and n_channels:
        _arguments.values_per_channel("instance_norm", x.size // (n_samples * n_channels), ddof)
    y, saved, moments = _group_forward(x, n_channels, gamma, beta, eps, axis, activation, residual, out, n_threads)
    if running_mean is not None and running_var is not None and n_samples:
        with np.errstate(all="ignore"):
            running_mean[...] = moved(running_mean, moments.mean.mean(axis=0), momentum)
            running_var[...] = moved(running_var, variance(moments, ddof).mean(axis=0), momentum)
    return y, saved


def instance_norm_backward(
    dy: Array,
    x: Array,
    saved: SavedStatistics,
    gamma: ArrayLike | None = None,
    *,
    beta: ArrayLike | None = None,
    channel_axis: int = 1,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, ...]:
    """Compute the gradients of `instance_norm_forward`.

    With ``x_hat = (x - mean) * invstd``, ``g = gamma * dy`` and means over the values normalized together, [1]_:
    ``dx = invstd * (g - mean(g) - x_hat * mean(g * x_hat))``; ``dgamma`` and ``dbeta`` are sums of ``dy * x_hat``
    and of dy.

    Parameters
    ----------
    dy : ndarray of the shape and dtype of `x`
        Gradient of the result of the forward pass.
    x : ndarray of shape (N, C, ...), float16, float32 or float64
        What the forward pass was given.
    saved : SavedStatistics
        What the forward pass returned, of shape (N, C).
    gamma : array-like of shape (C,), optional
        Of the forward pass, if that had one.
    beta : array-like of shape (C,), optional
        Of the forward pass; needed with ReLU.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last. Samples are on the first other axis.
    activation : {None, "relu"}, default=None
        Of the forward pass. Where ReLU gave 0 the gradient is 0; that is computed again from `x`, nothing is kept.
        (In float16: where it gave 0 before the result was rounded.)
    residual : ndarray of the shape and dtype of `x`, optional
        Of the forward pass.
    out : ndarray of the shape and dtype of `x`, optional
        Receives `dx`; may be `dy` or `x`. If it overlaps one of them otherwise, the result is as if that had been
        copied first.
    n_threads : int, optional
        Threads to use at most; by default no more than processors are idle. The result does not depend on it.

    Returns
    -------
    dx : ndarray of the shape and dtype of `x`
        Gradient of `x`: `out` if given, else a new array in the memory order of `x`.
    dgamma, dbeta : ndarray of shape (C,), float64
        Gradients of `gamma` and `beta`.
    dresidual : ndarray of the shape and dtype of `x`
        Gradient of `residual`, a new array; only if that is given.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, or `out` is read-only.

    References
    ----------
    .. [1] Ulyanov, Vedaldi & Lempitsky (2016), "Instance Normalization: The Missing Ingredient for Fast Stylization",
       eq. 1.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import instance_norm_backward, instance_norm_forward
    >>> x = np.array([[[0.0, 1.0, 5.0]]])
    >>> y, saved = instance_norm_forward(x)
    >>> dx, dgamma, dbeta = instance_norm_backward(np.array([[[1.0, 0.0, 0.0]]]), x, saved)
    >>> bool(abs(dx.sum()) < 1e-15)
    True
    """
    axis = _arguments.data("x", x, channel_axis)
    return _group_backward(dy, x, saved, x.shape[axis], gamma, beta, axis, activation, residual, out, n_threads)


def group_norm(
    x: Array,
    n_groups: int,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> Array:
    """Normalize groups of channels of each sample: group normalization.

    ``y = gamma * (x - mean) / sqrt(var + eps) + beta`` [1]_ with mean and biased variance over all
    values of a group of channels in the sample, and gamma and beta for each channel; then ``+ residual``, then the
    activation.

    Parameters
    ----------
    x : ndarray of shape (N, C, ...), float16, float32 or float64
        Not modified, unless it is `out`.
    n_groups : int
        A divisor of C: channels ``g * C/n_groups`` to ``(g + 1) * C/n_groups - 1`` are normalized together.
    gamma, beta : array-like of shape (C,), optional
        Scale and shift; 1 and 0 if not given.
    eps : float, default=1e-5
        Added to the variance. Not negative; with ``eps=0`` equal values give `beta`.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last. Samples are on the first other axis.
    activation : {None, "relu"}, default=None
        Applied last.
    residual : ndarray of the shape and dtype of `x`, optional
        Added before the activation.
    out : ndarray of the shape and dtype of `x`, optional
        Receives the result; may be `x`. If it overlaps `x` otherwise, the result is as if `x` had been
        copied first.
    n_threads : int, optional
        Threads to use at most; by default no more than processors are idle. The result does not depend on it.

    Returns
    -------
    ndarray of the shape and dtype of `x`
        `out` if given, else a new array in the memory order of `x`.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, `n_groups` does not divide C, `eps` is negative, or `out` is read-only.

    References
    ----------
    .. [1] Wu & He (2018), "Group Normalization", eq. 1, 2 and 7.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import group_norm
    >>> group_norm(np.array([[1.0, 3.0, 10.0, 30.0]]), 2, eps=0)
    array([[-1.,  1., -1.,  1.]])
    """
    y, _ = group_norm_forward(
        x,
        n_groups,
        gamma,
        beta,
        eps=eps,
        channel_axis=channel_axis,
        activation=activation,
        residual=residual,
        out=out,
        n_threads=n_threads,
    )
    return y


def group_norm_forward(
    x: Array,
    n_groups: int,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, SavedStatistics]:
    """Normalize as `group_norm` does, and return what `group_norm_backward` needs.

    ``y = gamma * (x - mean) / sqrt(var + eps) + beta`` [1]_ with mean and biased variance over all
    values of a group of channels in the sample, and gamma and beta for each channel; then ``+ residual``, then the
    activation.

    Parameters
    ----------
    x : ndarray of shape (N, C, ...), float16, float32 or float64
        Not modified, unless it is `out`.
    n_groups : int
        A divisor of C: channels ``g * C/n_groups`` to ``(g + 1) * C/n_groups - 1`` are normalized together.
    gamma, beta : array-like of shape (C,), optional
        Scale and shift; 1 and 0 if not given.
    eps : float, default=1e-5
        Added to the variance. Not negative; with ``eps=0`` equal values give `beta`.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last. Samples are on the first other axis.
    activation : {None, "relu"}, default=None
        Applied last.
    residual : ndarray of the shape and dtype of `x`, optional
        Added before the activation.
    out : ndarray of the shape and dtype of `x`, optional
        Receives the result; may be `x`, which a backward pass then misses. If it overlaps `x` otherwise, the result
        is as if `x` had been copied first.
    n_threads : int, optional
        Threads to use at most; by default no more than processors are idle. The result does not depend on it.

    Returns
    -------
    y : ndarray of the shape and dtype of `x`
        `out` if given, else a new array in the memory order of `x`.
    saved : SavedStatistics
        Of shape (N, n_groups); float64.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, `n_groups` does not divide C, `eps` is negative, or `out` is read-only.

    References
    ----------
    .. [1] Wu & He (2018), "Group Normalization", eq. 1, 2 and 7.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import group_norm_forward
    >>> y, saved = group_norm_forward(np.array([[1.0, 3.0, 10.0, 30.0]]), 2, eps=0)
    >>> saved.mean
    array([[ 2., 20.]])
    """
    axis = _arguments.data("x", x, channel_axis)
    n_groups = _groups(n_groups, x.shape[axis])
    y, saved, _ = _group_forward(x, n_groups, gamma, beta, eps, axis, activation, residual, out, n_threads)
    return y, saved


def group_norm_backward(
    dy: Array,
    x: Array,
    saved: SavedStatistics,
    gamma: ArrayLike | None = None,
    *,
    beta: ArrayLike | None = None,
    channel_axis: int = 1,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, ...]:
    """Compute the gradients of `group_norm_forward`.

    With ``x_hat = (x - mean) * invstd``, ``g = gamma * dy`` and means over the values normalized together, [1]_:
    ``dx = invstd * (g - mean(g) - x_hat * mean(g * x_hat))``; ``dgamma`` and ``dbeta`` are sums of ``dy * x_hat``
    and of dy.

    Parameters
    ----------
    dy : ndarray of the shape and dtype of `x`
        Gradient of the result of the forward pass.
    x : ndarray of shape (N, C, ...), float16, float32 or float64
        What the forward pass was given.
    saved : SavedStatistics
        What the forward pass returned, of shape (N, n_groups).
    gamma : array-like of shape (C,), optional
        Of the forward pass, if that had one.
    beta : array-like of shape (C,), optional
        Of the forward pass; needed with ReLU.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last. Samples are on the first other axis.
    activation : {None, "relu"}, default=None
        Of the forward pass. Where ReLU gave 0 the gradient is 0; that is computed again from `x`, nothing is kept.
        (In float16: where it gave 0 before the result was rounded.)
    residual : ndarray of the shape and dtype of `x`, optional
        Of the forward pass.
    out : ndarray of the shape and dtype of `x`, optional
        Receives `dx`; may be `dy` or `x`. If it overlaps one of them otherwise, the result is as if that had been
        copied first.
    n_threads : int, optional
        Threads to use at most; by default no more than processors are idle. The result does not depend on it.

    Returns
    -------
    dx : ndarray of the shape and dtype of `x`
        Gradient of `x`: `out` if given, else a new array in the memory order of `x`.
    dgamma, dbeta : ndarray of shape (C,), float64
        Gradients of `gamma` and `beta`.
    dresidual : ndarray of the shape and dtype of `x`
        Gradient of `residual`, a new array; only if that is given.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, or `out` is read-only.

    References
    ----------
    .. [1] Wu & He (2018), "Group Normalization", eq. 1, 2 and 7.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import group_norm_backward, group_norm_forward
    >>> x = np.array([[0.0, 1.0, 5.0, 6.0]])
    >>> y, saved = group_norm_forward(x, 2)
    >>> dx, dgamma, dbeta = group_norm_backward(np.array([[1.0, 0.0, 0.0, 0.0]]), x, saved)
    >>> bool(abs(dx.sum()) < 1e-15)
    True
    """
    axis = _arguments.data("x", x, channel_axis)
    n_groups = _groups_of(saved, x.shape[axis])
    return _group_backward(dy, x, saved, n_groups, gamma, beta, axis, activation, residual, out, n_threads)


# ---- layer and RMS: the first axes have statistics, the last have parameters ----


def _layer_forward(
    x: Array,
    normalized_shape: Any,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    eps: float,
    channel_axis: int | None,
    activation: Activation,
    residual: Array | None,
    out: Array | None,
    n_threads: int | None,
    *,
    statistics: Statistics = saved_statistics,
    keep: bool = True,
) -> tuple[Array, Any]:
    shape = _normalized(x, normalized_shape, channel_axis)
    scale, shift = (_checks.parameter(name, a, shape) for name, a in (("gamma", gamma), ("beta", beta)))
    eps = _checks.real("eps", eps, low=0)
    arrays = _layer_pass(x, shape, channel_axis, _arguments.forward(x, activation, residual, out, n_threads))
    moments = _forward_in_two_steps(arrays, scale, shift, eps, statistics, keep=keep)
    axis, ones = -1 if channel_axis is None else channel_axis, (1,) * len(shape)
    y = np.moveaxis(arrays.result(), -1, axis)
    if not keep:
        return y if out is None else out, None
    saved = changed(statistics(moments, eps), lambda a: np.moveaxis(a.reshape(a.shape + ones), -1, axis))
    at = None if channel_axis is None else axis % x.ndim
    saved.call = _arguments.call(at, activation, gamma, beta, residual, shape)
    return y if out is None else out, saved


def _layer_backward(
    dy: Array,
    x: Array,
    saved: SavedStatistics,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    channel_axis: int | None,
    activation: Activation,
    residual: Array | None,
    out: Array | None,
    n_threads: int | None,
    *,
    centred: bool,
) -> tuple[Array, ...]:
    given = (activation, gamma, beta, residual)
    shape, saved = _normalized_as(x, saved, channel_axis, given, centred=centred)
    scale, shift = (_checks.parameter(name, a, shape) for name, a in (("gamma", gamma), ("beta", beta)))
    arrays = _layer_pass(x, shape, channel_axis, _arguments.backward(dy, x, activation, residual, out, n_threads))
    axis, lead = -1 if channel_axis is None else channel_axis, arrays.whole.x.shape[: -len(shape)]
    saved = changed(saved, lambda a: np.moveaxis(a, axis, -1).reshape(lead))
    dgamma, dbeta = _backward_in_two_steps(arrays, saved, scale, shift, shape, prod(shape))
    dx, *dz = (np.moveaxis(a, -1, axis) for a in (arrays.result(), *arrays.dresidual()))
    return dx if out is None else out, dgamma, dbeta, *dz


def _layer_pass(x: Array, shape: tuple[int, ...], channel_axis: int | None, checked: dict[str, Any]) -> Pass:
    arrays = {"x": x, **checked}
    if channel_axis is not None:
        arrays = {k: np.moveaxis(a, channel_axis, -1) if isinstance(a, np.ndarray) else a for k, a in arrays.items()}
    first = x.ndim - len(shape)
    return Pass(kept=(tuple(range(first)), tuple(range(first, x.ndim))), **arrays)


def _normalized(x: Any, normalized_shape: Any, channel_axis: Any) -> tuple[int, ...]:
    """The shape normalized over: that of the trailing axes, or of the channel axis."""
    _checks.floats("x", x)
    if x.ndim < 1:
        raise ValueError("x must have at least 1 dimension, got a 0-d array")
    sizes = normalized_shape if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
    if not sizes:
        raise ValueError("normalized_shape must name at least one axis, got ()")
    if not all(isinstance(size, numbers.Integral) and not isinstance(size, bool) for size in sizes):
        got = type(normalized_shape).__name__ if np.ndim(normalized_shape) > 1 else repr(normalized_shape)
        raise TypeError(f"normalized_shape must be an integer or a tuple of integers, got {got}")
    shape = tuple(int(size) for size in sizes)
    if channel_axis is None:
        expected, where = x.shape[-len(shape) :], "the last axes of x"
    else:
        expected, where = (x.shape[_checks.axis_of("x", x, channel_axis)],), f"axis {channel_axis} of x"
    if shape != expected:
        raise ValueError(f"normalized_shape must be that of {where} of shape {x.shape}, got {shape}")
    return shape


def _normalized_as(
    x: Any, s: Any, channel_axis: Any, given: tuple[Any, Any, Any, Any], *, centred: bool
) -> tuple[tuple[int, ...], SavedStatistics]:
    """The shape normalized over in the forward pass that saved `s`, which had what is `given`; and the statistics."""
    _checks.floats("x", x)
    axis = None if channel_axis is None else _checks.axis_of("x", x, channel_axis)
    _arguments.as_in_forward(s, _arguments.call(axis, *given))
    if axis is not None:
        expected, over = (*x.shape[:axis], 1, *x.shape[axis + 1 :]), (x.shape[axis],)
    else:
        # By hand: axes of length 1 may or may not have been normalized over.
        k = len(s.call.normalized) if getattr(s, "call", None) else _trailing(s, x, *given[1:3])
        expected, over = x.shape[:-k] + (1,) * k, x.shape[-k:]
    what = f"that of x, {x.shape}, with 1 for the axes normalized over"
    return over, _arguments.saved(s, expected, what, centred=centred)


def _trailing(s: Any, x: Array, *parameters: Any) -> int:
    """How many axes were normalized over, as parameters or the shape of the statistics say."""
    known = [n for a in parameters if (n := _n_dimensions(a))]
    shape = np.shape(getattr(s, "invstd", ()))
    fits = (k for k in range(1, x.ndim + 1) if shape == x.shape[:-k] + (1,) * k)
    return min(known[0], x.ndim) if known else next(fits, 1)


def _n_dimensions(a: Any) -> int:
    try:
        return np.ndim(a)
    except ValueError:  # ragged, which is refused by name later
        return 0


# ---- group and instance: groups of channels have statistics, channels have parameters ----


def _group_forward(
    x: Array,
    n_groups: int,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    eps: float,
    axis: int,
    activation: Activation,
    residual: Array | None,
    out: Array | None,
    n_threads: int | None,
) -> tuple[Array, SavedStatistics, Moments]:
    scale, shift = (_grouped(name, a, x.shape[axis], n_groups) for name, a in (("gamma", gamma), ("beta", beta)))
    eps = _checks.real("eps", eps, low=0)
    arrays = _group_pass(x, n_groups, axis, _arguments.forward(x, activation, residual, out, n_threads))
    if len(arrays.whole.layouts) > 1:
        moments = _forward_in_two_steps(arrays, scale, shift, eps, saved_statistics)
    else:
        moments = _forward_in_one_step(arrays, scale, shift, eps)
    y = _layout.channels_joined(arrays.result(), axis)
    saved = saved_statistics(moments, eps)
    saved.call = _arguments.call(axis, activation, gamma, beta, residual)
    return y if out is None else out, saved, moments


def _group_backward(
    dy: Array,
    x: Array,
    saved: SavedStatistics,
    n_groups: int,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    axis: int,
    activation: Activation,
    residual: Array | None,
    out: Array | None,
    n_threads: int | None,
) -> tuple[Array, ...]:
    n_channels, n_samples = x.shape[axis], x.shape[0 if axis else 1]
    _arguments.as_in_forward(saved, _arguments.call(axis, activation, gamma, beta, residual))
    saved = _arguments.saved(saved, (n_samples, n_groups), "one value per sample and group of channels")
    scale, shift = (_grouped(name, a, n_channels, n_groups) for name, a in (("gamma", gamma), ("beta", beta)))
    arrays = _group_pass(x, n_groups, axis, _arguments.backward(dy, x, activation, residual, out, n_threads))
    back = _backward_in_two_steps if len(arrays.whole.layouts) > 1 else _backward_in_one_step
    count = x.size / max(1, n_samples * n_groups)
    dgamma, dbeta = back(arrays, saved, scale, shift, (n_groups, arrays.whole.x.shape[2]), count)
    dx, *dz = (_layout.channels_joined(a, axis) for a in (arrays.result(), *arrays.dresidual()))
    return dx if out is None else out, dgamma.reshape(-1), dbeta.reshape(-1), *dz


def _group_pass(x: Array, n_groups: int, axis: int, checked: dict[str, Any]) -> Pass:
    arrays: dict[str, Any] = {
        k: _layout.channels_split(a, axis, n_groups) if isinstance(a, np.ndarray) else a
        for k, a in {"x": x, **checked}.items()
    }
    # One step needs some float64 numbers for each channel of each sample: not worth it for single values.
    single = x.size == prod(arrays["x"].shape[:3])
    return Pass(kept=((0, 1), (1, 2)) if single else ((0, 1, 2),), **arrays)


def _grouped(name: str, a: ArrayLike | None, n_channels: int, n_groups: int) -> Float64 | None:
    values = _checks.per_channel(name, a, n_channels)
    return None if values is None else values.reshape(n_groups, n_channels // n_groups if n_groups else 1)


def _groups(n_groups: Any, n_channels: int) -> int:
    """`n_groups`, a divisor of the number of channels."""
    if n_groups is None or not _checks.whole("n_groups", n_groups, low=1) or n_channels % n_groups:
        raise ValueError(f"n_groups must divide the number of channels, {n_channels}; got {n_groups}")
    return int(n_groups)


def _groups_of(s: Any, n_channels: int) -> int:
    """The number of groups of the forward pass that saved `s`."""
    shape = np.shape(getattr(s, "invstd", ()))
    if isinstance(s, SavedStatistics) and (len(shape) != 2 or not shape[1] or n_channels % shape[1]):
        raise ValueError(f"saved.invstd must have shape (N, n_groups) for {n_channels} channels, got {shape}")
    return shape[1] if len(shape) == 2 else 1


# ---- one step: statistics, spread over the channels of their group, are folded with the parameters ----

# Channels of the samples of a part: there are about ten float64 numbers for each.
CHANNELS = 1 << 18


def _forward_in_one_step(arrays: Pass, scale: Float64 | None, shift: Float64 | None, eps: float) -> Moments:
    moments = []
    for part in _parts(arrays):
        moments.append(_group_moments(part))
        part.apply(fold_saved(_spread(saved_statistics(moments[-1], eps)), scale, shift))
    return _joined(moments)


def _backward_in_one_step(
    arrays: Pass,
    saved: SavedStatistics,
    scale: Float64 | None,
    shift: Float64 | None,
    shape: tuple[int, ...],
    count: float,
) -> Float64:
    gradients = np.zeros((2, *shape))
    for part in _parts(arrays) if arrays.whole.x.size else ():
        some = _spread(_of(part, saved))
        relu = fold_saved(some, scale, shift) if part.relu else None
        total, product = part.sums(some.mean, relu)
        along = sums_with_x_hat(total, product, some)
        with np.errstate(all="ignore"):
            gradients += along.sum(axis=0), total.sum(axis=0)
            sums = [(s if scale is None else scale * s).sum(axis=-1, keepdims=True) for s in (total, along)]
        part.backward(fold_backward(some.mean, some.invstd, scale, tuple(sums), count, some.mean_lo), relu)
    return gradients


def _parts(arrays: Pass) -> Iterator[Part]:
    x = arrays.whole.x
    return arrays.parts(CHANNELS * max(1, prod(x.shape[3:])))


def _group_moments(part: Part) -> Moments:
    """Moments of each group: at once where its values are adjacent, else merged from those of its channels."""
    layout = _layout.layout_of(part.x, (0, 1))
    form = layout.view(part.x)
    if form is not None and form.shape[3] >= 16:
        return part.moments(layout)
    return merge_blocks(np.stack([np.moveaxis(m, -1, 0) for m in part.moments()]))


def _spread(saved: SavedStatistics) -> SavedStatistics:
    """Statistics of groups, to broadcast against their channels."""
    return changed(saved, lambda a: a[..., None])


# ---- two steps: normalized values are made first, in the cache, and the parameters applied to them ----


def _forward_in_two_steps(
    arrays: Pass,
    scale: Float64 | None,
    shift: Float64 | None,
    eps: float,
    statistics: Statistics,
    *,
    keep: bool = True,
) -> Moments:
    moments, affine = [], scale is not None or shift is not None
    short = arrays.whole.is_short()
    if short and arrays.whole.residual is None and not arrays.whole.relu:
        c, fits = rounded(_affine(scale, shift), arrays.whole.x.dtype) if affine else (None, None)
        if not affine or (fits is None and arrays.whole.has_parameters_along()):
            return arrays.whole.normalize(eps, statistics, c, keep=keep)
    for part, (x_hat,) in zip(arrays.parts(), arrays.scratch(1), strict=True):
        if short:
            moments.append(part.normalize(eps, statistics, None, keep=keep, y=x_hat))
            part.apply(_affine(scale, shift), step=1, x=x_hat)
            continue
        moments.append(part.moments())
        normalizing = fold_saved(statistics(moments[-1], eps))
        if affine:
            part.apply(normalizing, last=False, y=x_hat)
            part.apply(_affine(scale, shift), step=1, x=x_hat)
        else:
            part.apply(normalizing)
    return _joined(moments)


def _backward_in_two_steps(
    arrays: Pass,
    saved: SavedStatistics,
    scale: Float64 | None,
    shift: Float64 | None,
    shape: tuple[int, ...],
    count: float,
) -> Float64:
    gradients = np.zeros((2, *shape))
    for part, (x_hat, g) in zip(arrays.parts(), arrays.scratch(2), strict=True):
        some = _of(part, saved)
        mean = np.zeros_like(some.invstd) if some.mean is None else some.mean
        # The forward pass's first step again; its second decides what ReLU lets through.
        part.apply(fold_saved(some), last=False, y=x_hat)
        relu = _affine(scale, shift) if part.relu else None
        total, product = part.sums(0.0, relu, step=1, x=x_hat)
        with np.errstate(all="ignore"):
            gradients += product, total
        part.backward(Gradient(_ZERO, _ONE if scale is None else scale, _ZERO, _ZERO), relu, step=1, x=x_hat, dx=g)
        total, product = part.sums(mean, None, dy=g)
        along = sums_with_x_hat(total, product, some)
        sums = (np.zeros_like(total) if some.mean is None else total, along)
        part.backward(fold_backward(mean, some.invstd, None, sums, count, some.mean_lo), None, dy=g)
    return gradients


_ZERO, _ONE = np.zeros(()), np.ones(())


def _affine(scale: Float64 | None, shift: Float64 | None) -> Coefficients:
    return Coefficients(_ZERO, _ONE if scale is None else scale, _ZERO if shift is None else shift)


# ---- statistics of parts ----


def _joined(parts: list[Moments]) -> Moments:
    """Moments of all samples from those of the parts."""
    return parts[0] if len(parts) == 1 else Moments(*map(np.concatenate, zip(*parts, strict=True)))


def _of(part: Part, saved: SavedStatistics) -> SavedStatistics:
    """The statistics of the samples of a part."""
    return changed(saved, lambda a: a[part.at] if a.ndim else a)
