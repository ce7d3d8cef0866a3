"""Batch normalization as functions of arrays: training and inference are separate, no flag to forget.

The two-phase forms are the same functions: collect with `batch_norm_moments` or `batch_norm_backward_sums` from every
part of a batch, `merge`, and apply by passing the result to `batch_norm_forward` or `batch_norm_backward`.

The four passes send arrays of CuPy, PyTorch and Numba on a GPU to `bncpu.gpu`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bncpu import _arguments, _checks, _dispatch, _foreign, _kernels, _layout, _scalars
from bncpu._passes import Activation, Part, Pass
from bncpu.moments import (
    BackwardSums,
    Coefficients,
    Gradient,
    Moments,
    fold,
    fold_saved,
    fold_saved_backward,
    inverse_std,
    merge_blocks,
    move,
    saved_statistics,
    sum_blocks,
    sums_with_x_hat,
    variance,
)
from bncpu.saved import Call, SavedStatistics, as_in_forward, call_of, checksum

Array = NDArray[np.floating[Any]]
Sums = TypeVar("Sums", Moments, BackwardSums)


def batch_norm(
    x: Array,
    mean: ArrayLike,
    var: ArrayLike,
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
    """Normalize with given statistics: batch normalization at inference.

    ``y = gamma * (x - mean) / sqrt(var + eps) + beta`` [1]_, then ``+ residual``, then the activation.

    After x come mean and variance, as in PyTorch; in `batch_norm_forward` gamma and beta do: better give them by name.

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
    if _is_short(channel_axis, activation, residual, n_threads):
        y = _kernels.normalize_plain(
            x, channel_axis == -1, mean, var, gamma, beta, eps, out, activation == "relu", n_threads
        )
        if y is not None:
            return y
    if _foreign.is_foreign(x):
        return _foreign.called(batch_norm, locals())
    if (device := _dispatch.device_functions(x)) is not None:
        more = {"activation": activation, "residual": residual, "out": out}
        return device.batch_norm(x, mean, var, gamma, beta, eps=eps, channel_axis=channel_axis, **more)
    axis = _arguments.data("x", x, channel_axis)
    n_channels = x.shape[axis]
    center = _checks.required("mean", mean, n_channels)
    spread = _checks.variances("var", var, n_channels)
    scale = _checks.per_channel("gamma", gamma, n_channels)
    shift = _checks.per_channel("beta", beta, n_channels)
    eps = _scalars.real("eps", eps, low=0)
    arrays = Pass(x, ((axis,),), **_arguments.forward(x, activation, residual, out, n_threads))
    arrays.whole.apply(fold(center, inverse_std(spread, eps), scale, shift))
    return arrays.result()


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
    moments: Moments | None = None,
    where: NDArray[np.bool_] | None = None,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, SavedStatistics]:
    """Normalize with the statistics of the batch: batch normalization in training.

    The four steps of [1]_, per channel over its m values: ``mean = sum(x) / m``,
    ``var = sum((x - mean)**2) / m``, ``x_hat = (x - mean) / sqrt(var + eps)``, ``y = gamma * x_hat + beta``;
    then ``+ residual``, then the activation. Running statistics, if given, move towards the batch's.

    After x come gamma and beta, where `batch_norm` and PyTorch have mean and variance: better give them by name.

    Parameters
    ----------
    x : ndarray of shape (N, C) or (N, C, ...), float16, float32 or float64
        Not modified, unless it is `out`. NaN and infinity stay within their channel.
    gamma, beta : array-like of shape (C,), optional
        Scale and shift; 1 and 0 if not given.
    running_mean, running_var : ndarray of shape (C,), floating point, optional
        Updated in place: ``momentum * running + (1 - momentum) * batch``. Both or neither. A batch without values
        changes nothing.
    momentum : float in [0, 1], default=0.9
        Weight of the OLD value. PyTorch's momentum is 1 minus this one; a value between 0 and 0.5 warns.
    ddof : float, default=0
        ``running_var`` receives ``m / (m - ddof)`` times the biased variance; PyTorch's is 1.
        Normalization always divides by m.
    eps : float, default=1e-5
        Added to the variance. Not negative; with ``eps=0`` a constant channel gives `beta`.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last.
    moments : Moments, optional
        Those of a whole batch of which `x` is a part: of micro-batches, or of other processes. See `merge`. Give
        running statistics in the call for one part only.
    where : ndarray of bool, optional
        Which positions count: False for padding, or for missing pixels. It broadcasts to the shape of `x` without its
        channels. All positions get a result; statistics are those of the ones that count.
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
        ``mean`` and ``invstd`` of the batch, of shape (C,), float64, for the backward pass.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, a channel holds a single value, a number is out of range, or an array to be written
        is read-only. Nothing has been changed then.

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
    if (
        _is_short(channel_axis, activation, residual, n_threads)
        and running_mean is None
        and running_var is None
        and moments is None
        and type(momentum) is float
        and 0 <= momentum <= 1
        and type(ddof) is int
        and ddof == 0
    ):
        relu = activation == "relu"
        short = _kernels.forward_plain(x, channel_axis == -1, gamma, beta, eps, where, out, relu, n_threads)
        if short is not None:
            y, center, invstd, center_lo, _, n = short
            call = call_of(_short_axis(x, channel_axis), activation, gamma, beta, None, where=where)
            return y, SavedStatistics(center, invstd, center_lo, n, "training", call)
    if _foreign.is_foreign(x):
        return _foreign.called(batch_norm_forward, locals())
    if (device := _dispatch.device_functions(x)) is not None:
        _arguments.whole_batch("moments", moments)
        _arguments.whole_batch("where", where)
        more: dict[str, Any] = {"activation": activation, "residual": residual, "out": out}
        more |= {"running_mean": running_mean, "running_var": running_var, "momentum": momentum, "ddof": ddof}
        return device.batch_norm_forward(x, gamma, beta, eps=eps, channel_axis=channel_axis, **more)
    axis = _arguments.data("x", x, channel_axis)
    n_channels = x.shape[axis]
    scale = _checks.per_channel("gamma", gamma, n_channels)
    shift = _checks.per_channel("beta", beta, n_channels)
    others = {"x": x, "gamma": gamma, "beta": beta, "residual": residual, "out": out}
    _arguments.running_pair(running_mean, running_var, n_channels, others)
    momentum = _scalars.momentum(momentum, running_mean)
    ddof = _scalars.real("ddof", ddof, low=0)
    eps = _scalars.real("eps", eps, low=0)
    where = _arguments.where(where, x, axis)
    n = _n_counted(x, axis, where)
    moments = _arguments.sums_of_all("moments", Moments, moments, n, n_channels)
    arrays = Pass(x, ((axis,),), where=where, **_arguments.forward(x, activation, residual, out, n_threads))
    count = n if moments is None else moments.count
    is_empty = not x.size and not np.any(count)
    if not is_empty:
        _scalars.values_per_channel("batch_norm_forward", np.min(count), ddof)

    call = call_of(axis, activation, gamma, beta, residual, where=where)  # before `out`, which may lie in its memory
    if moments is None:
        moments, saved = arrays.whole.forward(scale, shift, eps)
    else:
        saved = saved_statistics(moments, eps)
        arrays.whole.apply(fold_saved(saved, scale, shift))
    saved = saved._replace(count=count, kind="training", call=call)
    y = arrays.result()
    if running_mean is not None and running_var is not None and not is_empty:
        move(running_mean, running_var, moments.mean, variance(moments, ddof), momentum)
    return y, saved


def _n_counted(x: Array, axis: int, where: NDArray[np.bool_] | None) -> int:
    """How many values of a channel count."""
    if where is None or not x.size:
        return x.size // max(1, x.shape[axis])
    return int(_layout.n_counted(where, x.shape, (axis,))[0])


def batch_norm_backward(
    dy: Array,
    x: Array,
    saved: SavedStatistics,
    gamma: ArrayLike | None = None,
    *,
    beta: ArrayLike | None = None,
    channel_axis: int = 1,
    sums: BackwardSums | None = None,
    where: NDArray[np.bool_] | None = None,
    activation: Activation = None,
    residual: Array | None = None,
    out: Array | None = None,
    n_threads: int | None = None,
) -> tuple[Array, ...]:
    """Compute the gradients of `batch_norm_forward`: through the statistics of the batch, too.

    With ``x_hat = (x - mean) * invstd`` and m values per channel, [1]_: ``dbeta = sum(dy)``,
    ``dgamma = sum(dy * x_hat)``, ``dx = gamma * invstd * (dy - dbeta / m - x_hat * dgamma / m)``. So the gradient of
    each sample depends on all others of its batch.

    Parameters
    ----------
    dy : ndarray of the shape and dtype of `x`
        Gradient of the result of the forward pass.
    x : ndarray of shape (N, C) or (N, C, ...), float16, float32 or float64
        What the forward pass was given.
    saved : SavedStatistics
        What the forward pass returned, of shape (C,).
    gamma : array-like of shape (C,), optional
        Of the forward pass, if that had one.
    beta : array-like of shape (C,), optional
        Of the forward pass; needed with ReLU.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last.
    sums : BackwardSums, optional
        Those of a whole batch of which `x` is a part. See `merge`.
    where : ndarray of bool, optional
        Of the forward pass. A position that does not count acts on its own result only: ``dx = gamma * invstd * dy``.
        The sums are over all positions, m is the number of those that count. Where dy is 0 at a position that does not
        count, x may be NaN.
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
        Gradients of `gamma` and `beta`; of the whole batch if `sums` is given.
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
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
       Internal Covariate Shift", section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import batch_norm_backward, batch_norm_forward
    >>> x = np.array([[0.0], [1.0], [5.0]])
    >>> y, saved = batch_norm_forward(x, gamma=[2.0])
    >>> dx, dgamma, dbeta = batch_norm_backward(np.array([[1.0], [0.0], [0.0]]), x, saved, gamma=[2.0])
    >>> bool(abs(dx.sum()) < 1e-15), dbeta
    (True, array([1.]))
    """
    if (
        sums is None
        and type(saved) is SavedStatistics
        and _is_short(channel_axis, activation, residual, n_threads)
        and (beta is None or activation is not None)
        and _is_of(saved, x, channel_axis, gamma, beta, where, activation)
    ):
        given, relu = (saved.mean, saved.invstd, saved.mean_lo, saved.count, gamma, beta, where), activation is not None
        short = _kernels.backward_plain(dy, x, channel_axis == -1, *given, out, relu, n_threads)
        if short is not None:
            return short
    if _foreign.is_foreign(x):
        return _foreign.called(batch_norm_backward, locals())
    return _backward(dy, x, saved, gamma, beta, channel_axis, sums, where, activation, residual, out, n_threads)


def _is_short(channel_axis: int, activation: Activation, residual: Array | None, n_threads: int | None) -> bool:
    """Whether a call with such arguments can go the short way of plain arrays.

    The short way itself looks at the arrays, plain ones in C order with parameters in float32 or float64, and at eps.
    It calls the same leaves with the same algebra. Whatever it cannot take it answers with None, having changed
    nothing, and the long way explains.
    """
    return (
        type(channel_axis) is int
        and channel_axis in (1, -1)
        and residual is None
        and (n_threads is None or (type(n_threads) is int and n_threads > 0))
        and (activation is None or (type(activation) is str and activation == "relu"))
    )


def _is_of(
    saved: SavedStatistics, x: Any, channel_axis: int, gamma: Any, beta: Any, where: Any, activation: Activation
) -> bool:
    """Whether `saved` is of a forward pass called so; if not the long way says why."""
    kind: Any = saved.kind
    if type(x) is not np.ndarray or not (kind is None or (type(kind) is str and kind == "training")):
        return False
    if where is not None and not (type(where) is np.ndarray and where.dtype == np.bool_):
        return False
    then = saved.call
    return then is None or (
        type(then) is Call
        and then.channel_axis == _short_axis(x, channel_axis)
        and then.activation == activation
        and then.gamma == (gamma is not None)
        # Without ReLU beta and the residual have no effect.
        and (activation is None or (then.beta == (beta is not None) and then.residual is False))
        and then.where == (None if where is None else checksum(where))
    )


def _short_axis(x: Any, channel_axis: int) -> int:
    """1 or -1 counted from 0, if `x` is an array."""
    return 1 if channel_axis == 1 else getattr(x, "ndim", 0) - 1


def batch_norm_backward_frozen(
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
    """Compute the gradients of `batch_norm`: statistics are constants, as in fine-tuning with frozen running ones.

    ``dx = gamma * invstd * dy``, ``dgamma = sum(dy * x_hat)``, ``dbeta = sum(dy)`` [1]_. No sample's gradient depends
    on another.

    Parameters
    ----------
    dy : ndarray of the shape and dtype of `x`
        Gradient of the result of the forward pass.
    x : ndarray of shape (N, C) or (N, C, ...), float16, float32 or float64
        What the forward pass was given.
    saved : SavedStatistics
        ``SavedStatistics.from_variance(mean, var, eps=eps)`` of the forward pass. That of `batch_norm_forward` is
        refused: its statistics are not constants.
    gamma : array-like of shape (C,), optional
        Of the forward pass, if that had one.
    beta : array-like of shape (C,), optional
        Of the forward pass; needed with ReLU.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last.
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
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
       Internal Covariate Shift", section 3, with mean and variance constant.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import SavedStatistics, batch_norm_backward_frozen
    >>> running = SavedStatistics.from_variance([1.0], [4.0], eps=0)
    >>> dx, dgamma, dbeta = batch_norm_backward_frozen(np.array([[1.0], [3.0]]), np.array([[5.0], [1.0]]), running)
    >>> dx
    array([[0.5],
           [1.5]])
    >>> dgamma, dbeta
    (array([2.]), array([4.]))
    """
    if _foreign.is_foreign(x):
        return _foreign.called(batch_norm_backward_frozen, locals())
    return _backward(dy, x, saved, gamma, beta, channel_axis, _FROZEN, None, activation, residual, out, n_threads)


# In place of sums: statistics are constants.
_FROZEN: Any = object()


def _backward(
    dy: Array,
    x: Array,
    saved: SavedStatistics,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    channel_axis: int,
    sums: BackwardSums | None,
    where: NDArray[np.bool_] | None,
    activation: Activation,
    residual: Array | None,
    out: Array | None,
    n_threads: int | None,
) -> tuple[Array, ...]:
    frozen = sums is _FROZEN
    if (device := _dispatch.device_functions(x)) is not None:
        _arguments.whole_batch("sums", None if frozen else sums)
        _arguments.whole_batch("where", where)
        backward = device.batch_norm_backward_frozen if frozen else device.batch_norm_backward
        more = {"activation": activation, "residual": residual, "out": out}
        return backward(dy, x, saved, gamma, beta=beta, channel_axis=channel_axis, **more)
    axis = _arguments.data("x", x, channel_axis)
    n_channels = x.shape[axis]
    where = _arguments.where(where, x, axis)
    call, count = call_of(axis, activation, gamma, beta, residual, where=where), _n_counted(x, axis, where)
    as_in_forward(saved, call, None if frozen else count, of_part=sums is not None)
    whole = getattr(saved, "count", None)
    saved = _arguments.saved(saved, (n_channels,), "one value per channel")
    scale = _checks.per_channel("gamma", gamma, n_channels)
    shift = _checks.per_channel("beta", beta, n_channels)
    given = None if frozen else _arguments.sums_of_all("sums", BackwardSums, sums, count, n_channels, whole)
    checked = _arguments.backward(dy, x, activation, residual, out, n_threads)
    arrays = Pass(x, ((axis,),), where=where, **checked)
    part = arrays.whole
    relu = fold_saved(saved, scale, shift) if part.relu else None
    if sums is None and (where is None or not part.overwrites()):
        counts = None if where is None else np.full(n_channels, float(count))
        dbeta, dgamma = part.both_backward(saved, scale, relu, counts)
        if part.cleaned(dbeta, dgamma):
            dbeta, dgamma = part.both_backward(saved, scale, relu, counts)
        return arrays.result(), dgamma, dbeta, *arrays.dresidual()
    total = _sums(part, saved, relu, count) if given is None else given
    if not frozen:
        part.backward(fold_saved_backward(saved, scale, total.dbeta, total.dgamma, total.count), relu)
    else:
        factor, none = saved.invstd if scale is None else scale * saved.invstd, np.zeros(n_channels)
        if relu is None:
            part.apply(Coefficients(none, factor, none), x=part.dy, last=False)
        else:
            part.backward(Gradient(saved.mean, factor, none, none), relu)
    return arrays.result(), total.dgamma, total.dbeta, *arrays.dresidual()


def _sums(part: Part, saved: SavedStatistics, relu: Coefficients | None, count: int) -> BackwardSums:
    total, product = part.sums(saved.mean, relu)
    if part.cleaned(total, product):
        total, product = part.sums(saved.mean, relu)
    return BackwardSums(np.full(len(total), float(count)), sums_with_x_hat(total, product, saved), total)


def batch_norm_moments(
    x: Array, *, channel_axis: int = 1, where: NDArray[np.bool_] | None = None, n_threads: int | None = None
) -> Moments:
    """Count, mean and sum of squared deviations of each channel: what `batch_norm_forward` needs of part of a batch.

    Collected from every part, merged by `merge`, and given to `batch_norm_forward` for every part as `moments`, they
    give the result of the whole batch, in parts: micro-batches that fit memory, or the shares of several processes
    (synchronized batch normalization). The merge is that of [1]_.

    Parameters
    ----------
    x : ndarray of shape (N, C) or (N, C, ...), float16, float32 or float64
        Not modified. NaN and infinity stay within their channel.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last.
    where : ndarray of bool, optional
        Which positions count; see `batch_norm_forward`.
    n_threads : int, optional
        Threads to use at most; by default no more than processors are idle. The result does not depend on it.

    Returns
    -------
    Moments
        Four arrays of shape (C,), float64.

    Raises
    ------
    TypeError
        If x has the wrong type or dtype.
    ValueError
        If x has fewer than two dimensions, or no such axis.

    References
    ----------
    .. [1] Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance", eq. 2.1,
       The American Statistician 37(3), 242-247.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import batch_norm_forward, batch_norm_moments, merge
    >>> x = np.random.default_rng(0).standard_normal((96, 8, 5, 5))
    >>> parts = np.array_split(x, 3)
    >>> whole = merge(*(batch_norm_moments(part) for part in parts))
    >>> y = np.concatenate([batch_norm_forward(part, moments=whole)[0] for part in parts])
    >>> bool(np.abs(y - batch_norm_forward(x)[0]).max() < 1e-14)
    True
    """
    if _foreign.is_foreign(x):
        return _foreign.called(batch_norm_moments, locals())
    axis = _arguments.data("x", x, channel_axis)
    where = _arguments.where(where, x, axis)
    return Pass(x, ((axis,),), n_threads=_scalars.threads(n_threads), read_only=True, where=where).whole.moments()


def batch_norm_backward_sums(
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
    n_threads: int | None = None,
) -> BackwardSums:
    """Compute the sums of the gradient of each channel: what `batch_norm_backward` needs of part of a batch.

    Collected from every part, merged by `merge`, and given to `batch_norm_backward` for every part as `sums`, they
    give the gradients of the whole batch, by the formulas of [1]_.

    Parameters
    ----------
    dy : ndarray of the shape and dtype of `x`
        Gradient of the result of the forward pass.
    x : ndarray of shape (N, C) or (N, C, ...), float16, float32 or float64
        What the forward pass was given.
    saved : SavedStatistics
        What the forward pass returned, of shape (C,): the statistics of the whole batch.
    gamma, beta : array-like of shape (C,), optional
        Of the forward pass; needed with ReLU.
    channel_axis : int, default=1
        The axis of length C; -1 is channels-last.
    where : ndarray of bool, optional
        Of the forward pass.
    activation : {None, "relu"}, default=None
        Of the forward pass. Where ReLU gave 0 the gradient is 0; that is computed again from `x`, nothing is kept.
        (In float16: where it gave 0 before the result was rounded.)
    residual : ndarray of the shape and dtype of `x`, optional
        Of the forward pass.
    n_threads : int, optional
        Threads to use at most; by default no more than processors are idle. The result does not depend on it.

    Returns
    -------
    BackwardSums
        Three arrays of shape (C,), float64.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit.

    References
    ----------
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
       Internal Covariate Shift", section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import batch_norm_backward, batch_norm_backward_sums, batch_norm_forward, merge
    >>> x, dy = np.random.default_rng(0).standard_normal((2, 96, 8))
    >>> y, saved = batch_norm_forward(x)
    >>> parts = list(zip(np.array_split(dy, 3), np.array_split(x, 3)))
    >>> whole = merge(*(batch_norm_backward_sums(*part, saved) for part in parts))
    >>> dx = np.concatenate([batch_norm_backward(*part, saved, sums=whole)[0] for part in parts])
    >>> bool(np.abs(dx - batch_norm_backward(dy, x, saved)[0]).max() < 1e-14)
    True
    """
    if _foreign.is_foreign(x):
        return _foreign.called(batch_norm_backward_sums, locals())
    axis = _arguments.data("x", x, channel_axis)
    n_channels = x.shape[axis]
    _scalars.activation(activation)
    call = call_of(axis, activation, gamma, beta, residual)
    call = call if activation else call._replace(gamma=None, beta=None, residual=None)
    where = _arguments.where(where, x, axis)
    count = _n_counted(x, axis, where)
    as_in_forward(saved, call, count, of_part=True)
    saved = _arguments.saved(saved, (n_channels,), "one value per channel")
    scale = _checks.per_channel("gamma", gamma, n_channels)
    shift = _checks.per_channel("beta", beta, n_channels)
    checked = _arguments.backward(dy, x, activation, residual, None, n_threads)
    part = Pass(x, ((axis,),), **checked, read_only=True, where=where).whole
    relu = fold_saved(saved, scale, shift) if part.relu else None
    return _sums(part, saved, relu, count)


def merge(*parts: Sums) -> Sums:
    """Merge what was collected from the parts of a batch into what would have been collected from all of it.

    Parameters
    ----------
    *parts : Moments or BackwardSums
        Of `batch_norm_moments` or of `batch_norm_backward_sums`, all of one kind. What processes exchange is these few
        arrays per channel: ``Moments(*arrays)`` makes them what they were.

    Returns
    -------
    Moments or BackwardSums
        Of the union, merged pairwise; by [1]_ for moments, by addition for sums.

    Raises
    ------
    TypeError
        If there are no parts, or parts of different kinds.
    ValueError
        If they have different numbers of channels.

    References
    ----------
    .. [1] Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance", eq. 2.1,
       The American Statistician 37(3), 242-247.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import batch_norm_moments, merge
    >>> whole = merge(batch_norm_moments(np.array([[1.0], [2.0]])), batch_norm_moments(np.array([[6.0]])))
    >>> whole.mean, whole.m2
    (array([3.]), array([14.]))
    """
    checked = _arguments.mergeable_sums(parts)
    kind: Any = type(checked[0])
    stacked = np.stack([np.stack(part) for part in checked], axis=1)
    return kind(*(merge_blocks if kind is Moments else sum_blocks)(stacked))
