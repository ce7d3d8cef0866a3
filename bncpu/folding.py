"""Fold a batch norm at inference into the linear layer or convolution before it: one layer less, the same values."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bncpu import _foreign
from bncpu._checks import floats, per_channel, required, variances
from bncpu._scalars import real, shown, whole
from bncpu.moments import fold, inverse_std

Array = NDArray[np.floating[Any]]

# The axes on which channel_axis=None looks, and the libraries that lay out weights so.
LINEAR: dict[tuple[int, ...], str] = {(0,): "0 (PyTorch, scikit-learn)", (-1,): "-1 (Keras)"}
CONV: dict[tuple[int, ...], str] = {(0,): "0 (PyTorch)", (-1,): "-1 (Keras)", (-2, -1): "(-2, -1) (Keras, depthwise)"}
TRANSPOSED: dict[tuple[int, ...], str] = {(1,): "1 (PyTorch, transposed)", (-2,): "-2 (Keras, transposed)"}


def fold_linear(
    weight: Array,
    bias: ArrayLike | None,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int | None = None,
) -> tuple[Array, NDArray[Any]]:
    """Weight and bias of one linear layer that does what a linear layer and the batch norm behind it do.

    With ``s = gamma / sqrt(var + eps)`` for each output channel, they are ``weight * s`` and ``(bias - mean) * s +
    beta``: the batch norm of ``weight @ x + bias`` [1]_, multiplied out.

    Parameters
    ----------
    weight : ndarray of shape (C, n_inputs) or (n_inputs, C), float16, float32 or float64
        Weight of the linear layer. Not modified. Or a tensor of PyTorch, say, in CPU memory; then so are the results.
    bias : array-like of shape (C,) or None
        Bias of the linear layer; None means 0.
    mean, var : array-like of shape (C,)
        Running statistics of the batch norm. `var` is not negative.
    gamma, beta : array-like of shape (C,), optional
        Scale and shift of the batch norm; 1 and 0 if not given.
    eps : float, default=1e-5
        That of the batch norm, added to `var`. Not negative; with ``eps=0`` a channel of variance 0 becomes `beta`.
    channel_axis : int, optional
        The axis of `weight` that holds the output channels: 0 for PyTorch's layers and scikit-learn's ``coef_``,
        -1 for Keras kernels. By default the axis of these two whose length is that of `mean`.

    Returns
    -------
    weight : ndarray of the shape, dtype and memory order of `weight`
        A new array, computed in float64. What overflows the dtype is infinity, with a warning.
    bias : ndarray of shape (C,) and the dtype of `weight`
        A new array, even if `bias` is None.

    Raises
    ------
    TypeError
        If an array has the wrong type or dtype.
    ValueError
        If a shape does not fit, or fits both axes and `channel_axis` does not say which; if `var` or `eps` is
        negative.

    See Also
    --------
    fold_conv : The same for convolutions.

    References
    ----------
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
       Internal Covariate Shift", algorithm 2, step 11.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import batch_norm, fold_linear
    >>> weight, bias = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]]), np.array([1.0, 0.0])
    >>> mean, var = [3.0, 1.0], [4.0, 1.0]
    >>> folded, shift = fold_linear(weight, bias, mean, var, eps=0)
    >>> folded, shift
    (array([[0.5, 1. , 0. ],
           [0. , 1. , 1. ]]), array([-1., -1.]))
    >>> x = np.array([[1.0, 2.0, 3.0]])
    >>> x @ folded.T + shift
    array([[1.5, 4. ]])
    >>> batch_norm(x @ weight.T + bias, mean, var, eps=0)
    array([[1.5, 4. ]])
    """
    if _foreign.is_foreign(weight):
        folded: tuple[Array, Array] = _foreign.called(fold_linear, locals(), "weight")
        return folded
    _check_weight(weight, "linear layer", 2)
    channel = _output_channels(weight, mean, channel_axis, LINEAR)
    return _folded(weight, bias, channel, mean, var, gamma, beta, eps)


def fold_conv(
    weight: Array,
    bias: ArrayLike | None,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    channel_axis: int | tuple[int, int] | None = None,
    groups: int = 1,
) -> tuple[Array, NDArray[Any]]:
    """Weight and bias of one convolution that does what a convolution and the batch norm behind it do.

    With ``s = gamma / sqrt(var + eps)`` for each output channel, they are ``weight * s`` and ``(bias - mean) * s +
    beta``: the batch norm of ``conv(x, weight) + bias`` [1]_, multiplied out. Stride, padding with zeros and dilation
    do not matter, and groups only in transposed convolutions.

    Parameters
    ----------
    weight : ndarray of 3 to 5 dimensions, float16, float32 or float64
        Weight of a convolution over 1 to 3 dimensions, grouped and depthwise ones included. Not modified. Or a tensor
        of PyTorch, say, in CPU memory; then so are the results.
    bias : array-like of shape (C,) or None
        Bias of the convolution; None means 0.
    mean, var : array-like of shape (C,)
        Running statistics of the batch norm. `var` is not negative.
    gamma, beta : array-like of shape (C,), optional
        Scale and shift of the batch norm; 1 and 0 if not given.
    eps : float, default=1e-5
        That of the batch norm, added to `var`. Not negative; with ``eps=0`` a channel of variance 0 becomes `beta`.
    channel_axis : int or tuple of two ints, optional
        The axis of `weight` that holds the output channels, or the two adjacent axes that hold them together; see
        Notes. By default 0, -1 or (-2, -1), if exactly one of them has the length of `mean`; but not -1 or (-2, -1)
        where 1 has it, too. It must be given for transposed convolutions: with as many input as output channels their
        weights look like others.
    groups : int, default=1
        Of a transposed convolution of PyTorch or ONNX, with ``channel_axis=1``: the output channels are in so many
        groups. No other weight depends on it.

    Returns
    -------
    weight : ndarray of the shape, dtype and memory order of `weight`
        A new array, computed in float64. What overflows the dtype is infinity, with a warning.
    bias : ndarray of shape (C,) and the dtype of `weight`
        A new array, even if `bias` is None.

    Raises
    ------
    TypeError
        If an array or `channel_axis` has the wrong type or dtype.
    ValueError
        If a shape does not fit, or fits more than one reading and `channel_axis` does not say which; if `groups` does
        not divide the channels; if `var` or `eps` is negative.

    See Also
    --------
    fold_linear : The same for linear layers.

    Notes
    -----
    The values of `channel_axis`, for two dimensions:

    =====================================  ==================================  ============
    layer                                  shape of weight                     channel_axis
    =====================================  ==================================  ============
    PyTorch, grouped and depthwise too     (C, in / groups, height, width)     0
    Keras, grouped too                     (height, width, in / groups, C)     -1
    Keras, depthwise; C = in * multiplier  (height, width, in, multiplier)     (-2, -1)
    PyTorch and ONNX, transposed           (in, C / groups, height, width)     1
    Keras, transposed                      (height, width, C, in)              -2
    =====================================  ==================================  ============

    References
    ----------
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
       Internal Covariate Shift", section 3.2 and algorithm 2, step 11.

    Examples
    --------
    >>> import numpy as np
    >>> from bncpu import fold_conv
    >>> weight = np.ones((2, 1, 1, 3), np.float32)
    >>> folded, bias = fold_conv(weight, None, mean=[3.0, 1.0], var=[4.0, 1.0], gamma=[1.0, 5.0], eps=0)
    >>> folded[:, 0, 0]
    array([[0.5, 0.5, 0.5],
           [5. , 5. , 5. ]], dtype=float32)
    >>> bias
    array([-1.5, -5. ], dtype=float32)
    """
    if _foreign.is_foreign(weight):
        folded: tuple[Array, Array] = _foreign.called(fold_conv, locals(), "weight")
        return folded
    _check_weight(weight, "convolution", 3, 4, 5)
    n_groups = whole("groups", groups, low=1)
    if n_groups is None:
        raise TypeError("groups must be an integer, got None")
    channel = _output_channels(weight, mean, channel_axis, CONV, TRANSPOSED, n_groups)
    return _folded(weight, bias, channel, mean, var, gamma, beta, eps)


def _folded(
    weight: Array,
    bias: ArrayLike | None,
    channel: NDArray[np.intp],
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    eps: float,
) -> tuple[Array, NDArray[Any]]:
    """The new weight and bias; `channel` is as `_channel_of_each` returns it."""
    n_channels = int(channel.max(initial=-1)) + 1
    center = required("mean", mean, n_channels)
    spread = variances("var", var, n_channels)
    scale, shift, old = (
        per_channel(name, a, n_channels) for name, a in (("gamma", gamma), ("beta", beta), ("bias", bias))
    )
    eps = real("eps", eps, low=0)

    with np.errstate(over="ignore", invalid="ignore"):
        c = fold(center, inverse_std(spread, eps), scale, shift)
        new_weight = (weight * c.scale[channel]).astype(weight.dtype)
        new_bias = ((0.0 if old is None else old) - c.mean) * c.scale + c.shift
        new_bias = new_bias.astype(weight.dtype)
    finite = all(a is None or np.isfinite(a).all() for a in (weight, center, spread, scale, shift, old))
    for name, new in (("weight", new_weight), ("bias", new_bias)):
        if finite and np.isinf(new).any():
            warnings.warn(f"the folded {name} overflows {weight.dtype}: it is infinite", RuntimeWarning, stacklevel=3)
    return new_weight, new_bias


# ---- the weight: its dimensions, and where its output channels are ----


def _check_weight(a: Any, layer: str, *n_dimensions: int) -> None:
    """Check the weight of a linear layer or convolution."""
    floats("weight", a)
    if a.ndim not in n_dimensions:
        expected = " or ".join(str(n) for n in n_dimensions)
        raise ValueError(f"weight of a {layer} must have {expected} dimensions, got shape {a.shape}")


def _output_channels(
    weight: Array,
    mean: ArrayLike,
    channel_axis: Any,
    readings: dict[tuple[int, ...], str],
    transposed: dict[tuple[int, ...], str] | None = None,
    groups: int = 1,
) -> NDArray[np.intp]:
    """The output channel of each value of `weight`, as many as `mean` has values.

    With a channel_axis of None they are on those of `readings`, axes and their description, that fit alone.
    """
    if channel_axis is not None:
        axes = _axes_of_weight(weight, channel_axis, pairs=any(len(axes) > 1 for axes in readings))
        n_channels, divided = _n_channels(weight, axes, groups)
        if divided % groups:
            raise ValueError(f"groups must divide the number of channels, {divided}; got {groups}")
        required("mean", mean, n_channels)
        return _channel_of_each(weight, axes, groups)
    if mean is None:
        raise TypeError("mean must be an array of shape (C,), got None")
    try:
        n = math.prod(np.shape(mean))
    except ValueError as error:
        raise ValueError(f"mean must have shape (C,): {error}") from None
    fits, others = _fitting(weight, n, readings, groups), transposed or {}
    ordinary = len(fits)
    if not fits:
        fits = _fitting(weight, n, others, groups)
    elif ordinary == 1 and fits[0][1] != readings[0,]:
        # What looks like a weight of Keras may be a transposed one of PyTorch, of which it would scale kernel columns.
        fits = _fitting(weight, n, readings | {axes: others[axes] for axes in others if axes == (1,)}, groups)
    if not fits:
        raise ValueError(
            f"weight must have as many output channels as mean has values, {n}, on channel_axis "
            f"{' or '.join((readings | (transposed or {})).values())}; got shape {weight.shape}"
        )
    if len(fits) > 1 or not ordinary:
        raise ValueError(
            f"channel_axis must be given, as {n} output channels in a weight of shape {weight.shape} may be "
            f"on axis {' or '.join(description for _, description in fits)}"
        )
    return fits[0][0]


def _fitting(
    weight: Array, n: int, readings: dict[tuple[int, ...], str], groups: int
) -> list[tuple[NDArray[np.intp], str]]:
    """The readings with `n` output channels, with their description; one of each that mean the same."""
    fits: list[tuple[NDArray[np.intp], str]] = []
    for axes, description in readings.items():
        counted = tuple(axis % weight.ndim for axis in axes)
        n_channels, divided = _n_channels(weight, counted, groups)
        if n_channels == n and divided % groups == 0:
            channel = _channel_of_each(weight, counted, groups)
            # Beside an axis of length 1, one axis and two are the same: (height, width, 1, C).
            if not any(np.all(channel == other) for other, _ in fits):
                fits.append((channel, description))
    return fits


def _n_channels(weight: Array, axes: tuple[int, ...], groups: int) -> tuple[int, int]:
    """Number of output channels on `axes`, counted from 0; and the number that `groups` must divide."""
    n = math.prod(weight.shape[axis] for axis in axes)
    return (n * groups, len(weight)) if axes == (1,) else (n, n)


def _channel_of_each(weight: Array, axes: tuple[int, ...], groups: int) -> NDArray[np.intp]:
    """The output channel of each value of `weight`, in an array that broadcasts to its shape."""
    sizes = [n if axis in axes else 1 for axis, n in enumerate(weight.shape)]
    channel = np.arange(math.prod(sizes)).reshape(sizes)
    if axes == (1,) and groups > 1:  # the first inputs make the outputs of the first group
        inputs = np.arange(len(weight)).reshape(-1, *[1] * (weight.ndim - 1))
        channel = channel + inputs // (len(weight) // groups) * weight.shape[1]
    return channel


def _axes_of_weight(weight: Array, channel_axis: Any, *, pairs: bool) -> tuple[int, ...]:
    axes: tuple[Any, ...] = channel_axis if pairs and isinstance(channel_axis, tuple) else (channel_axis,)
    for axis in axes:
        if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
            kinds = "an integer, two in a tuple or None" if pairs else "an integer or None"
            raise TypeError(f"channel_axis must be {kinds}, got {shown(channel_axis)}")
        if not -weight.ndim <= axis < weight.ndim:
            raise ValueError(
                f"channel_axis must name an axis of weight of shape {weight.shape}, got {shown(channel_axis)}"
            )
    counted = tuple(int(axis) % weight.ndim for axis in axes)
    if len(counted) not in (1, 2) or counted[-1] - counted[0] != len(counted) - 1:
        raise ValueError(f"channel_axis must be one axis or two adjacent ones in order, got {shown(channel_axis)}")
    return counted
