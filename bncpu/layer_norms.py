"""Layer and RMS normalization: each sample over its last axes, or over its channels, no statistics of a batch.

The first axes have statistics, the last have parameters. So both take two steps, the second in the cache.
"""

from __future__ import annotations

import numbers
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bncpu import _arguments, _checks, _dispatch, _foreign, _layout, _scalars
from bncpu._passes import Activation, Pass
from bncpu._two_steps import Statistics, backward_in_two_steps, forward_in_two_steps
from bncpu.moments import changed, rms_statistics, saved_statistics
from bncpu.saved import SavedStatistics, as_in_forward, call_of

Array = NDArray[np.floating[Any]]


def layer_norm(
    x: Array,
    normalized_shape: int | tuple[int, ...],
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int | None = None,
    where: NDArray[np.bool_] | None = None,
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
        Added to the variance. Not negative; with ``eps=0`` equal values give `beta`. A single value always does.
    channel_axis : int, optional
        Normalize over this axis instead, at each position of the others: 1 for the channels of (N, C, H, W).
    where : ndarray of bool, optional
        Which values count: False for padding, or for missing pixels. It has as many axes as `x`, and broadcasts to its
        shape; where one axis is normalized, it may lack that axis. All values get a result; statistics are those of the
        ones that count. Where there are none, the result is `beta`.
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
    if _foreign.is_foreign(x):
        return _foreign.called(layer_norm, locals())
    given = x, normalized_shape, gamma, beta, eps, channel_axis, where, activation, residual, out, n_threads
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
    where: NDArray[np.bool_] | None = None,
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
        Added to the variance. Not negative; with ``eps=0`` equal values give `beta`. A single value always does.
    channel_axis : int, optional
        Normalize over this axis instead, at each position of the others: 1 for the channels of (N, C, H, W).
    where : ndarray of bool, optional
        Which values count: False for padding, or for missing pixels. It has as many axes as `x`, and broadcasts to its
        shape; where one axis is normalized, it may lack that axis. All values get a result; statistics are those of the
        ones that count. Where there are none, the result is `beta`.
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
    if _foreign.is_foreign(x):
        return _foreign.called(layer_norm_forward, locals())
    given = x, normalized_shape, gamma, beta, eps, channel_axis, where, activation, residual, out, n_threads
    return _layer_forward(*given)


def layer_norm_backward(
    dy: Array,
    x: Array,
    saved: SavedStatistics,
    gamma: ArrayLike | None = None,
    *,
    beta: ArrayLike | None = None,
    channel_axis: int | None = None,
    where: NDArray[np.bool_] | None = None,
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
    where : ndarray of bool, optional
        Of the forward pass. A value that does not count acts on its own result only: ``dx = gamma * invstd * dy``.
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
    dgamma, dbeta : ndarray of shape `normalized_shape`, float64
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
    if _foreign.is_foreign(x):
        return _foreign.called(layer_norm_backward, locals())
    given = dy, x, saved, gamma, beta, channel_axis, where, activation, residual, out, n_threads
    return _layer_backward(*given, centred=True)


def rms_norm(
    x: Array,
    normalized_shape: int | tuple[int, ...],
    gamma: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int | None = None,
    where: NDArray[np.bool_] | None = None,
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
    where : ndarray of bool, optional
        Which values count: False for padding, or for missing pixels. It has as many axes as `x`, and broadcasts to its
        shape; where one axis is normalized, it may lack that axis. All values get a result; statistics are those of the
        ones that count. Where there are none, the result is 0.
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
    if _foreign.is_foreign(x):
        return _foreign.called(rms_norm, locals())
    given = x, normalized_shape, gamma, None, eps, channel_axis, where, activation, residual, out, n_threads
    y, _ = _layer_forward(*given, statistics=rms_statistics, keep=False)
    return y


def rms_norm_forward(
    x: Array,
    normalized_shape: int | tuple[int, ...],
    gamma: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int | None = None,
    where: NDArray[np.bool_] | None = None,
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
    where : ndarray of bool, optional
        Which values count: False for padding, or for missing pixels. It has as many axes as `x`, and broadcasts to its
        shape; where one axis is normalized, it may lack that axis. All values get a result; statistics are those of the
        ones that count. Where there are none, the result is 0.
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
    if _foreign.is_foreign(x):
        return _foreign.called(rms_norm_forward, locals())
    return _layer_forward(
        x,
        normalized_shape,
        gamma,
        None,
        eps,
        channel_axis,
        where,
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
    where: NDArray[np.bool_] | None = None,
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
    where : ndarray of bool, optional
        Of the forward pass. A value that does not count acts on its own result only: ``dx = gamma * invstd * dy``.
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
    dgamma : ndarray of shape `normalized_shape`, float64
        Gradient of `gamma`.
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
    if _foreign.is_foreign(x):
        return _foreign.called(rms_norm_backward, locals())
    dx, dgamma, _, *dresidual = _layer_backward(
        dy, x, saved, gamma, None, channel_axis, where, activation, residual, out, n_threads, centred=False
    )
    return dx, dgamma, *dresidual


# ---- what they share ----


def _layer_forward(
    x: Array,
    normalized_shape: Any,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    eps: float,
    channel_axis: int | None,
    where: NDArray[np.bool_] | None,
    activation: Activation,
    residual: Array | None,
    out: Array | None,
    n_threads: int | None,
    *,
    statistics: Statistics = saved_statistics,
    keep: bool = True,
) -> tuple[Array, Any]:
    device = _dispatch.device_norms(x)
    if device is None:
        _checks.floats("x", x)
    shape = _normalized(x, normalized_shape, channel_axis)
    if device is not None:
        _arguments.none_on_device("where", where)
        more = {"activation": activation, "residual": residual, "out": out}
        at = None if channel_axis is None else channel_axis % x.ndim
        centred = statistics is saved_statistics
        return device.layer_forward(x, shape, gamma, beta, eps=eps, channel_axis=at, centred=centred, **more)
    scale, shift = _checks.parameter("gamma", gamma, shape), _checks.parameter("beta", beta, shape)
    eps = _scalars.real("eps", eps, low=0)
    where = _where(where, x, shape, channel_axis)
    arrays = _layer_pass(x, shape, channel_axis, where, _arguments.forward(x, activation, residual, out, n_threads))
    at = None if channel_axis is None else channel_axis % x.ndim
    call = call_of(at, activation, gamma, beta, residual, shape, where) if keep else None
    moments = forward_in_two_steps(arrays, scale, shift, eps, statistics, keep=keep)
    axis, ones = -1 if channel_axis is None else channel_axis, (1,) * len(shape)
    y = np.moveaxis(arrays.result(), -1, axis)
    if not keep:
        return y if out is None else out, None

    def kept(a: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.moveaxis(a.reshape(a.shape + ones), -1, axis)

    saved = changed(statistics(moments, eps), kept)
    count = prod(shape) if where is None else kept(moments.count).astype(np.int64)
    return y if out is None else out, saved._replace(count=count, kind="training", call=call)


def _layer_backward(
    dy: Array,
    x: Array,
    saved: SavedStatistics,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    channel_axis: int | None,
    where: NDArray[np.bool_] | None,
    activation: Activation,
    residual: Array | None,
    out: Array | None,
    n_threads: int | None,
    *,
    centred: bool,
) -> tuple[Array, ...]:
    if (device := _dispatch.device_norms(x)) is not None:
        _arguments.none_on_device("where", where)
        at, shape = _over(x, saved, channel_axis, gamma, beta)
        more = {"activation": activation, "residual": residual, "out": out, "centred": centred}
        gradients: tuple[Array, ...] = device.layer_backward(dy, x, saved, shape, gamma, beta, channel_axis=at, **more)
        return gradients
    given = (activation, gamma, beta, residual)
    shape, saved, count, where = _as_in_forward(x, saved, channel_axis, where, given, centred=centred)
    scale, shift = _checks.parameter("gamma", gamma, shape), _checks.parameter("beta", beta, shape)
    arrays = _layer_pass(
        x, shape, channel_axis, where, _arguments.backward(dy, x, activation, residual, out, n_threads)
    )
    axis, lead = -1 if channel_axis is None else channel_axis, arrays.whole.x.shape[: -len(shape)]
    saved = changed(saved, lambda a: np.moveaxis(a, axis, -1).reshape(lead))
    n = np.moveaxis(count, axis, -1).reshape(lead) if np.ndim(count) else count
    dgamma, dbeta = backward_in_two_steps(arrays, saved, scale, shift, shape, n)
    dx, *dz = (np.moveaxis(a, -1, axis) for a in (arrays.result(), *arrays.dresidual()))
    return dx if out is None else out, dgamma, dbeta, *dz


def _where(value: Any, x: Array, shape: tuple[int, ...], channel_axis: int | None) -> NDArray[np.bool_] | None:
    """Which values count, with as many axes as `x`."""
    axis = x.ndim - 1 if channel_axis is None else channel_axis % x.ndim
    return _arguments.where(value, x, axis if len(shape) == 1 else None, along=True)


def _values(x: Array, shape: tuple[int, ...], channel_axis: int | None, where: NDArray[np.bool_] | None) -> Any:
    """Number of values behind a statistic: behind each, as an array like `saved.invstd`, with `where`."""
    if where is None:
        return prod(shape)
    over = range(x.ndim - len(shape), x.ndim) if channel_axis is None else (channel_axis % x.ndim,)
    kept = tuple(axis for axis in range(x.ndim) if axis not in over)
    return np.expand_dims(_layout.n_counted(where, x.shape, kept), tuple(over))


def _layer_pass(
    x: Array,
    shape: tuple[int, ...],
    channel_axis: int | None,
    where: NDArray[np.bool_] | None,
    checked: dict[str, Any],
) -> Pass:
    arrays = {"x": x, "where": where, **checked}
    if channel_axis is not None:
        arrays = {k: np.moveaxis(a, channel_axis, -1) if isinstance(a, np.ndarray) else a for k, a in arrays.items()}
    first = x.ndim - len(shape)
    return Pass(kept=(tuple(range(first)), tuple(range(first, x.ndim))), **arrays)


def _normalized(x: Any, normalized_shape: Any, channel_axis: Any) -> tuple[int, ...]:
    """The shape normalized over: that of the trailing axes, or of the channel axis."""
    of_x = tuple(x.shape)
    if not of_x:
        raise ValueError("x must have at least 1 dimension, got a 0-d array")
    sizes = normalized_shape if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
    if not sizes:
        raise ValueError("normalized_shape must name at least one axis, got ()")
    if not all(isinstance(size, numbers.Integral) and not isinstance(size, bool) for size in sizes):
        raise TypeError(
            f"normalized_shape must be an integer or a tuple of integers, such as {of_x[-1]} for x of shape "
            f"{of_x}; got {_scalars.shown(normalized_shape)}. gamma comes after it"
        )
    shape = tuple(int(size) for size in sizes)
    if channel_axis is None:
        expected, where = of_x[-len(shape) :], "the last axes of x"
    else:
        expected, where = (of_x[_scalars.axis_of("x", of_x, channel_axis)],), f"axis {channel_axis} of x"
    if shape != expected:
        raise ValueError(f"normalized_shape must be that of {where} of shape {of_x}, got {_scalars.shown(shape)}")
    return shape


def _as_in_forward(
    x: Any, s: Any, channel_axis: Any, where: Any, given: tuple[Any, Any, Any, Any], *, centred: bool
) -> tuple[tuple[int, ...], SavedStatistics, Any, NDArray[np.bool_] | None]:
    """The shape normalized over in the forward pass that saved `s`, which had what is `given`; the statistics, the
    number of values behind each, and which values count.
    """
    _checks.floats("x", x)
    axis, over = _over(x, s, channel_axis, *given[1:3])
    if axis is not None:
        expected = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    else:
        expected = x.shape[: -len(over)] + (1,) * len(over)
    where = _where(where, x, over, axis)
    count = _values(x, over, axis, where)
    as_in_forward(s, call_of(axis, *given, where=where), count)
    what = f"that of x, {x.shape}, with 1 for the axes normalized over"
    return over, _arguments.saved(s, expected, what, centred=centred), count, where


def _over(x: Any, s: Any, channel_axis: Any, *parameters: Any) -> tuple[int | None, tuple[int, ...]]:
    """The channel axis from 0, and the shape normalized over in the forward pass that saved `s`."""
    shape = tuple(x.shape)
    if channel_axis is not None:
        axis = _scalars.axis_of("x", shape, channel_axis)
        return axis, (shape[axis],)
    # By hand: axes of length 1 may or may not have been normalized over.
    known = getattr(getattr(s, "call", None), "normalized", None)
    return None, shape[-(len(known) if known else _trailing(s, x, *parameters)) :]


def _trailing(s: Any, x: Any, *parameters: Any) -> int:
    """How many axes were normalized over, as parameters or the shape of the statistics say."""
    known = [n for a in parameters if (n := _n_dimensions(a))]
    shape, of_x = np.shape(getattr(s, "invstd", ())), tuple(x.shape)
    fits = (k for k in range(1, x.ndim + 1) if shape == of_x[:-k] + (1,) * k)
    return min(known[0], x.ndim) if known else next(fits, 1)


def _n_dimensions(a: Any) -> int:
    try:
        return np.ndim(a)
    except ValueError:  # ragged, which is refused by name later
        return 0
