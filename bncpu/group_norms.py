"""Group and instance normalization: groups of channels of each sample, no statistics of a batch.

Groups have statistics, channels have parameters. Instance normalization is group normalization with a group for each
channel. Both take one step, with coefficients for each channel of each sample; groups of single values take two.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bncpu import _arguments, _checks, _dispatch, _foreign, _layout, _scalars
from bncpu._passes import Activation, Part, Pass, joined
from bncpu._two_steps import backward_in_two_steps, forward_in_two_steps
from bncpu.moments import (
    Moments,
    changed,
    fold,
    fold_backward,
    fold_saved,
    merge_blocks,
    move,
    saved_statistics,
    sums_with_x_hat,
    variance,
)
from bncpu.saved import SavedStatistics, as_in_forward, call_of

Array = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]


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
    where: NDArray[np.bool_] | None = None,
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
        their statistics. Both or neither. An `x` without values changes nothing.
    momentum : float in [0, 1], default=0.9
        Weight of the OLD value. PyTorch's momentum is 1 minus this one; a value between 0 and 0.5 warns.
    ddof : float, default=0
        ``running_var`` receives ``m / (m - ddof)`` times the biased variances of m values; PyTorch's is 1.
        Normalization always divides by m.
    eps : float, default=1e-5
        Added to the variance. Not negative; with ``eps=0`` equal values give `beta`.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last. Samples are on the first other axis.
    where : ndarray of bool, optional
        Which positions count: False for padding, or for missing pixels. It broadcasts to the shape of `x` without its
        channels. All positions get a result; statistics are those of the ones that count. A sample without any gets
        `beta`.
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
        If a shape does not fit, a channel of a sample holds a single value, a number is out of range, or an array to
        be written is read-only. Nothing has been changed then.

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
        where=where,
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
    where: NDArray[np.bool_] | None = None,
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
        their statistics. Both or neither. An `x` without values changes nothing.
    momentum : float in [0, 1], default=0.9
        Weight of the OLD value. PyTorch's momentum is 1 minus this one; a value between 0 and 0.5 warns.
    ddof : float, default=0
        ``running_var`` receives ``m / (m - ddof)`` times the biased variances of m values; PyTorch's is 1.
        Normalization always divides by m.
    eps : float, default=1e-5
        Added to the variance. Not negative; with ``eps=0`` equal values give `beta`.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last. Samples are on the first other axis.
    where : ndarray of bool, optional
        Which positions count: False for padding, or for missing pixels. It broadcasts to the shape of `x` without its
        channels. All positions get a result; statistics are those of the ones that count. A sample without any gets
        `beta`.
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
        If a shape does not fit, a channel of a sample holds a single value, a number is out of range, or an array to
        be written is read-only. Nothing has been changed then.

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
    if _foreign.is_foreign(x):
        return _foreign.called(instance_norm_forward, locals())
    axis = _arguments.data("x", x, channel_axis, on_device=True)
    n_channels = x.shape[axis]
    if (device := _dispatch.device_norms(x)) is not None:
        for name, a in (("running_mean", running_mean), ("running_var", running_var), ("where", where)):
            _arguments.none_on_device(name, a)
        more: dict[str, Any] = {"channel_axis": axis, "activation": activation, "residual": residual, "out": out}
        on_device: tuple[Array, SavedStatistics] = device.instance_forward(
            x, gamma, beta, momentum=momentum, ddof=ddof, eps=eps, **more
        )
        return on_device
    others = {"x": x, "gamma": gamma, "beta": beta, "residual": residual, "out": out}
    _arguments.running_pair(running_mean, running_var, n_channels, others)
    momentum = _scalars.momentum(momentum, running_mean)
    ddof = _scalars.real("ddof", ddof, low=0)
    where = _arguments.where(where, x, axis)
    counts = np.asarray(_values(x, n_channels, axis, where))
    if np.any(counts):
        _scalars.values_per_channel("instance_norm", np.min(counts[counts > 0]), ddof)
    y, saved, moments = _group_forward(
        x, n_channels, gamma, beta, eps, axis, activation, residual, out, n_threads, where
    )
    if running_mean is not None and running_var is not None and np.any(counts):
        seen = moments.count[:, 0] > 0
        with np.errstate(all="ignore"):
            mean, var = (a[seen].mean(axis=0) for a in (moments.mean, variance(moments, ddof)))
        move(running_mean, running_var, mean, var, momentum)
    return y, saved


def instance_norm_backward(
    dy: Array,
    x: Array,
    saved: SavedStatistics,
    gamma: ArrayLike | None = None,
    *,
    beta: ArrayLike | None = None,
    channel_axis: int = 1,
    where: NDArray[np.bool_] | None = None,
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
    where : ndarray of bool, optional
        Of the forward pass. A position that does not count acts on its own result only: ``dx = gamma * invstd * dy``.
        Where dy is 0 there, x may be NaN.
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
        If a shape does not fit, `out` is read-only, or `saved` is not of such a forward pass.

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
    if _foreign.is_foreign(x):
        return _foreign.called(instance_norm_backward, locals())
    axis = _arguments.data("x", x, channel_axis, on_device=True)
    return _group_backward(dy, x, saved, x.shape[axis], gamma, beta, axis, activation, residual, out, n_threads, where)


def group_norm(
    x: Array,
    n_groups: int,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    where: NDArray[np.bool_] | None = None,
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
        A divisor of C: channels ``g * C/n_groups`` to ``(g + 1) * C/n_groups - 1`` are normalized together. A group of
        a single value gives `beta`.
    gamma, beta : array-like of shape (C,), optional
        Scale and shift; 1 and 0 if not given.
    eps : float, default=1e-5
        Added to the variance. Not negative; with ``eps=0`` equal values give `beta`.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last. Samples are on the first other axis.
    where : ndarray of bool, optional
        Which positions count: False for padding, or for missing pixels. It broadcasts to the shape of `x` without its
        channels. All positions get a result; statistics are those of the ones that count. A sample without any gets
        `beta`.
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
    if _foreign.is_foreign(x):
        return _foreign.called(group_norm, locals())
    axis = _arguments.data("x", x, channel_axis, on_device=True)
    n_groups = _groups(n_groups, x.shape[axis])
    given = x, n_groups, gamma, beta, eps, axis, activation, residual, out, n_threads, where
    if (device := _dispatch.device_norms(x)) is not None:
        y, _ = _group_forward_on_device(device, *given)
        return y
    y, _, _ = _group_forward(*given, keep=False)
    return y


def group_norm_forward(
    x: Array,
    n_groups: int,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    where: NDArray[np.bool_] | None = None,
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
        A divisor of C: channels ``g * C/n_groups`` to ``(g + 1) * C/n_groups - 1`` are normalized together. A group of
        a single value gives `beta`.
    gamma, beta : array-like of shape (C,), optional
        Scale and shift; 1 and 0 if not given.
    eps : float, default=1e-5
        Added to the variance. Not negative; with ``eps=0`` equal values give `beta`.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last. Samples are on the first other axis.
    where : ndarray of bool, optional
        Which positions count: False for padding, or for missing pixels. It broadcasts to the shape of `x` without its
        channels. All positions get a result; statistics are those of the ones that count. A sample without any gets
        `beta`.
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
    if _foreign.is_foreign(x):
        return _foreign.called(group_norm_forward, locals())
    axis = _arguments.data("x", x, channel_axis, on_device=True)
    n_groups = _groups(n_groups, x.shape[axis])
    given = x, n_groups, gamma, beta, eps, axis, activation, residual, out, n_threads, where
    if (device := _dispatch.device_norms(x)) is not None:
        return _group_forward_on_device(device, *given)
    y, saved, _ = _group_forward(*given)
    return y, saved


def group_norm_backward(
    dy: Array,
    x: Array,
    saved: SavedStatistics,
    gamma: ArrayLike | None = None,
    *,
    beta: ArrayLike | None = None,
    channel_axis: int = 1,
    where: NDArray[np.bool_] | None = None,
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
    where : ndarray of bool, optional
        Of the forward pass. A position that does not count acts on its own result only: ``dx = gamma * invstd * dy``.
        Where dy is 0 there, x may be NaN.
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
        If a shape does not fit, `out` is read-only, or `saved` is not of such a forward pass.

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
    if _foreign.is_foreign(x):
        return _foreign.called(group_norm_backward, locals())
    axis = _arguments.data("x", x, channel_axis, on_device=True)
    n_groups = _groups_of(saved, x.shape[axis])
    return _group_backward(dy, x, saved, n_groups, gamma, beta, axis, activation, residual, out, n_threads, where)


# ---- what they share ----


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
    where: NDArray[np.bool_] | None,
    *,
    keep: bool = True,
) -> tuple[Array, SavedStatistics, Moments]:
    n_channels = x.shape[axis]
    scale, shift = _grouped("gamma", gamma, n_channels, n_groups), _grouped("beta", beta, n_channels, n_groups)
    eps = _scalars.real("eps", eps, low=0)
    where = _arguments.where(where, x, axis)
    arrays = _group_pass(x, n_groups, axis, where, _arguments.forward(x, activation, residual, out, n_threads))
    call = call_of(axis, activation, gamma, beta, residual, where=where) if keep else None
    if len(arrays.whole.layouts) > 1:
        moments = forward_in_two_steps(arrays, scale, shift, eps, saved_statistics)
        saved = saved_statistics(moments, eps)
    else:
        moments, saved = _forward_in_one_step(arrays, scale, shift, eps)
    y = _layout.channels_joined(arrays.result(), axis)
    if keep:
        count = _values(x, n_groups, axis, None) if where is None else moments.count.astype(np.int64)
        saved = saved._replace(count=count, kind="training", call=call)
    return y if out is None else out, saved, moments


def _group_forward_on_device(
    device: Any,
    x: Any,
    n_groups: int,
    gamma: Any,
    beta: Any,
    eps: float,
    axis: int,
    activation: Activation,
    residual: Any,
    out: Any,
    n_threads: int | None,
    where: Any,
) -> tuple[Array, SavedStatistics]:
    _arguments.none_on_device("where", where)
    more = {"channel_axis": axis, "activation": activation, "residual": residual, "out": out}
    results: tuple[Array, SavedStatistics] = device.group_forward(x, n_groups, gamma, beta, eps=eps, **more)
    return results


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
    where: NDArray[np.bool_] | None,
) -> tuple[Array, ...]:
    if (device := _dispatch.device_norms(x)) is not None:
        _arguments.none_on_device("where", where)
        more = {"channel_axis": axis, "activation": activation, "residual": residual, "out": out}
        gradients: tuple[Array, ...] = device.group_backward(dy, x, saved, n_groups, gamma, beta, **more)
        return gradients
    n_channels, n_samples = x.shape[axis], x.shape[0 if axis else 1]
    where = _arguments.where(where, x, axis)
    count = _values(x, n_groups, axis, where)
    as_in_forward(saved, call_of(axis, activation, gamma, beta, residual, where=where), count)
    saved = _arguments.saved(saved, (n_samples, n_groups), "one value per sample and group of channels")
    scale, shift = _grouped("gamma", gamma, n_channels, n_groups), _grouped("beta", beta, n_channels, n_groups)
    arrays = _group_pass(x, n_groups, axis, where, _arguments.backward(dy, x, activation, residual, out, n_threads))
    back = backward_in_two_steps if len(arrays.whole.layouts) > 1 else _backward_in_one_step
    dgamma, dbeta = back(arrays, saved, scale, shift, (n_groups, arrays.whole.x.shape[2]), count)
    dx, *dz = (_layout.channels_joined(a, axis) for a in (arrays.result(), *arrays.dresidual()))
    return dx if out is None else out, dgamma.reshape(-1), dbeta.reshape(-1), *dz


def _values(x: Array, n_groups: int, axis: int, where: NDArray[np.bool_] | None) -> Any:
    """Number of values of a group in a sample: of each, as an array, with `where`."""
    if where is None:
        return x.size // max(1, x.shape[0 if axis else 1] * n_groups)
    split = _layout.channels_split(where, axis, 1)
    return _layout.n_counted(split, _layout.channels_split(x, axis, n_groups).shape, (0, 1))


def _group_pass(x: Array, n_groups: int, axis: int, where: NDArray[np.bool_] | None, checked: dict[str, Any]) -> Pass:
    arrays: dict[str, Any] = {
        k: _layout.channels_split(a, axis, n_groups) if isinstance(a, np.ndarray) else a
        for k, a in {"x": x, **checked}.items()
    }
    arrays["where"] = None if where is None else _layout.channels_split(where, axis, 1)
    # One step needs some float64 numbers for each channel of each sample: not worth it for single values.
    single = x.size == prod(arrays["x"].shape[:3])
    return Pass(kept=((0, 1), (1, 2)) if single else ((0, 1, 2),), **arrays)


def _grouped(name: str, a: ArrayLike | None, n_channels: int, n_groups: int) -> Float64 | None:
    values = _checks.parameter(name, a, (n_channels,), ", one value per channel")
    return None if values is None else values.reshape(n_groups, n_channels // n_groups if n_groups else 1)


def _groups(n_groups: Any, n_channels: int) -> int:
    """`n_groups`, a divisor of the number of channels."""
    n = _scalars.whole("n_groups", n_groups, low=1)
    if n is None or n_channels % n:
        raise ValueError(f"n_groups must divide the number of channels, {n_channels}; got {_scalars.shown(n_groups)}")
    return n


def _groups_of(s: Any, n_channels: int) -> int:
    """The number of groups of the forward pass that saved `s`."""
    shape = np.shape(getattr(s, "invstd", ()))
    if isinstance(s, SavedStatistics) and (len(shape) != 2 or not shape[1] or n_channels % shape[1]):
        raise ValueError(f"saved.invstd must have shape (N, n_groups) for {n_channels} channels, got {shape}")
    return shape[1] if len(shape) == 2 else 1


# ---- one step: statistics, spread over the channels of their group, are folded with the parameters ----

# Channels of the samples of a part: there are about ten float64 numbers for each.
CHANNELS = 1 << 18


def _forward_in_one_step(
    arrays: Pass, scale: Float64 | None, shift: Float64 | None, eps: float
) -> tuple[Moments, SavedStatistics]:
    moments = []
    for part in _parts(arrays):
        moments.append(_group_moments(part))
        saved = saved_statistics(moments[-1], eps)
        mean, invstd, mean_lo = saved.mean[..., None], saved.invstd[..., None], saved.mean_lo[..., None]
        part.apply(fold(mean, invstd, scale, shift, mean_lo))
    if len(moments) == 1:
        return moments[0], saved
    whole = joined(moments)
    return whole, saved_statistics(whole, eps)


def _backward_in_one_step(
    arrays: Pass,
    saved: SavedStatistics,
    scale: Float64 | None,
    shift: Float64 | None,
    shape: tuple[int, ...],
    count: Float64 | int,
) -> Float64:
    gradients = np.zeros((2, *shape))
    for part in _parts(arrays) if arrays.whole.x.size else ():
        some = changed(part.share(saved), lambda a: a[..., None])  # to broadcast against the channels of its group
        relu = fold_saved(some, scale, shift) if part.relu else None
        total, product = part.sums(some.mean, relu)
        if part.cleaned(total, product):
            total, product = part.sums(some.mean, relu)
        along = sums_with_x_hat(total, product, some)
        with np.errstate(all="ignore"):
            gradients += along.sum(axis=0), total.sum(axis=0)
            sums = [(s if scale is None else scale * s).sum(axis=-1, keepdims=True) for s in (total, along)]
        n = part.own(count)[..., None] if np.ndim(count) else count
        part.backward(fold_backward(some.mean, some.invstd, scale, tuple(sums), n, some.mean_lo), relu)
    return gradients


def _parts(arrays: Pass) -> Iterator[Part]:
    x = arrays.whole.x
    return arrays.parts(CHANNELS * max(1, prod(x.shape[3:])))


def _group_moments(part: Part) -> Moments:
    """Moments of each group: at once where its values are adjacent, else merged from those of its channels."""
    layout = _layout.layout_of(part.x, (0, 1))
    form = layout.view(part.x)
    if form is not None and form.shape[3] >= 16 and part.counted is None:
        return part.moments(layout)
    return merge_blocks(np.stack([np.moveaxis(m, -1, 0) for m in part.moments()]))
