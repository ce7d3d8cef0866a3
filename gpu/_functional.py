"""Batch normalization of device arrays, with the names and arguments that `bncpu` has for arrays in CPU memory."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import cuda

from bncpu import _scalars
from bncpu.saved import SavedStatistics, as_in_forward, call_of

from . import _arrays, _compat
from ._arguments import Affine, Backward, Forward, Gradients, Pair, Parts, Running, Statistics, Sums, Weights
from ._call import Call, Piece, View, data, moved
from ._plan import STORAGE

Activation = Literal["relu"] | None


class _Pass(Call):
    """A call of a batch norm."""

    def __init__(
        self, x: Any, channel_axis: Any, activation: Activation, parameters: dict[str, Any], *,
        frozen: bool = False, skipping: bool = False, whole: bool = False, **like: Any,
    ):  # fmt: skip
        shape = data(x)
        self.axis = _scalars.axis_of("x", shape, channel_axis)
        self.channels = shape[self.axis]
        super().__init__(x, activation, parameters, (self.channels,), ", one value per channel", axis=self.axis, **like)
        view = _view(shape, self.axis, self.checked.last is not None)
        self.values = int(prod(shape) // self.channels)  # of a channel
        self.pieces, self.n_parts = self.in_pieces(view, frozen=frozen, skipping=skipping, whole=whole)

    @property
    def view_of_parts(self) -> View:
        """The view of sums, of which each channel has `n_parts`."""
        return View((self.n_parts, self.channels), 1, True)

    def bytes_before(self, piece: Piece) -> int:
        """How many bytes lie before the sums of a piece, float64 of each of its columns."""
        return piece.before * self.channels * STORAGE["float64"]

    def collect(self, weights: Weights) -> tuple[Any, Parts]:
        """Launch the kernels for the moments of every column: an array of shape (4, n_parts, C)."""
        found, first = self.float64(4, self.n_parts, self.channels)
        result = Parts(first, self.n_parts * self.channels)
        for piece in self.pieces:
            plan, walk, _, of_moments = piece.prepared
            x, to = _compat.further(self.at["x"], piece.start), _compat.further(first, self.bytes_before(piece))
            workspace = self.workspace(plan)
            self.launch(of_moments.collect, plan, x, walk, workspace, weights, result._replace(first=to))
        return found, result

    def apply(self, arrays: Forward, *of_all: Any) -> None:
        """Launch those that write results."""
        for piece in self.pieces:
            plan, walk, kernels, _ = piece.prepared
            self.launch(kernels.apply, plan, moved(arrays, piece.start), walk, *of_all)


@lru_cache(maxsize=1024)
def _view(shape: tuple[int, ...], axis: int, last: bool) -> View:
    """The view of data with channels on `axis`, which may be `last` in memory."""
    shape = tuple(map(int, shape))
    return View(_arrays.at_end(shape, axis), len(shape) - 1) if last else View(shape, axis)


def batch_norm(
    x: Any,
    mean: Any,
    var: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    channel_axis: int = 1,
    activation: Activation = None,
    residual: Any = None,
    out: Any = None,
) -> Any:
    """Normalize with given statistics: batch normalization at inference.

    ``y = gamma * (x - mean) / sqrt(var + eps) + beta`` [1]_, then ``+ residual``, then the activation.

    Parameters
    ----------
    x : device array of shape (N, C) or (N, C, ...), float16, bfloat16, float32 or float64
        Of CuPy, PyTorch or Numba, C-contiguous or with its channels adjacent in memory (PyTorch's channels_last). Not
        modified, unless it is `out`.
    mean, var : device arrays of shape (C,)
        Statistics. A channel whose variance is negative becomes NaN: an error would have to wait for the device.
    gamma, beta : device arrays of shape (C,), optional
        Scale and shift; 1 and 0 if not given. Mean, var, gamma and beta have one dtype.
    eps : float, default=1e-5
        Added to the variance.
    channel_axis : int, default=1
        The axis of x that holds the channels.
    activation : {None, 'relu'}, default=None
        Applied last.
    residual : device array like x, optional
        Added before the activation. In memory it lies as x does, and so does `out`.
    out : device array like x, optional
        Receives the result; may be x or residual. Otherwise it shares no memory with an argument.

    Returns
    -------
    device array like x
        `out` if given. Computed in float64, rounded once.

    Raises
    ------
    RuntimeError
        If there is no usable device.
    TypeError
        If an argument is not a device array, or of another dtype than expected.
    ValueError
        If an array has another shape, device or memory order than expected, shares memory that is written, or is a
        tensor that requires grad while autograd is on.

    References
    ----------
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
       Internal Covariate Shift", algorithm 2.

    Examples
    --------
    >>> import cupy  # doctest: +SKIP
    >>> from bncpu import gpu
    >>> x, one = cupy.random.rand(32, 64, 56, 56), cupy.ones(64)  # doctest: +SKIP
    >>> y = gpu.batch_norm(x, one, one)  # doctest: +SKIP
    """
    eps = _scalars.real("eps", eps, low=0)
    parameters = {"mean": mean, "var": var, "gamma": gamma, "beta": beta}
    p = _Pass(x, channel_axis, activation, parameters, residual=residual, out=out)
    for name in ("mean", "var"):
        if name not in p.at:
            raise TypeError(f"{name} must be a device array of shape ({p.channels},), got None")
    y, to = p.result()
    arrays, at_mean = Forward(p.at["x"], p.address("residual"), to), p.at["mean"]
    p.apply(arrays, Statistics(at_mean, at_mean, p.at["var"]), p.affine(), eps)
    return y


def batch_norm_forward(
    x: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    running_mean: Any = None,
    running_var: Any = None,
    momentum: float = 0.9,
    ddof: float = 0,
    eps: float = 1e-5,
    channel_axis: int = 1,
    activation: Activation = None,
    residual: Any = None,
    out: Any = None,
) -> tuple[Any, SavedStatistics]:
    """Normalize with the statistics of the batch: batch normalization in training.

    Per channel over its m values: ``mean = sum(x) / m``, ``var = sum((x - mean)**2) / m``,
    ``y = gamma * (x - mean) / sqrt(var + eps) + beta`` [1]_; then ``+ residual``, then the activation.

    Parameters
    ----------
    x : device array of shape (N, C) or (N, C, ...), float16, bfloat16, float32 or float64
        Of CuPy, PyTorch or Numba, C-contiguous or with its channels adjacent in memory (PyTorch's channels_last). Not
        modified, unless it is `out`.
    gamma, beta : device arrays of shape (C,), optional
        Scale and shift; 1 and 0 if not given.
    running_mean, running_var : device arrays of shape (C,), optional
        Updated in place on the device: ``momentum * running + (1 - momentum) * batch``. Both or neither. They,
        gamma and beta have one dtype. They share no memory with each other or another argument.
    momentum : float in [0, 1], default=0.9
        The weight of the old value: PyTorch's ``momentum=0.1`` is 0.9 here.
    ddof : float, default=0
        For running_var the variance of the batch is divided by ``m - ddof``. PyTorch's is 1.
    eps : float, default=1e-5
        Added to the variance.
    channel_axis : int, default=1
        The axis of x that holds the channels.
    activation : {None, 'relu'}, default=None
        Applied last.
    residual : device array like x, optional
        Added before the activation. In memory it lies as x does, and so does `out`.
    out : device array like x, optional
        Receives the result; may be x or residual. Otherwise it shares no memory with an argument.

    Returns
    -------
    y : device array like x
        `out` if given. Computed in float64, rounded once.
    saved : SavedStatistics
        For the backward pass, on the device.

    Raises
    ------
    RuntimeError
        If there is no usable device.
    TypeError
        If an argument is no device array, or of another dtype than expected.
    ValueError
        If an array has another shape, device or memory order than expected, has too few values, shares memory that is
        written, or is a tensor that requires grad while autograd is on.

    References
    ----------
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
       Internal Covariate Shift", algorithm 1.

    Examples
    --------
    >>> import cupy  # doctest: +SKIP
    >>> from bncpu import gpu
    >>> y, saved = gpu.batch_norm_forward(cupy.random.rand(32, 64, 56, 56))  # doctest: +SKIP
    """
    momentum = _scalars.momentum(momentum, running_mean)
    eps, ddof = _scalars.real("eps", eps, low=0), _scalars.real("ddof", ddof, low=0)
    parameters = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    p = _Pass(x, channel_axis, activation, parameters, residual=residual, out=out)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var must be given together, got only one of them")
    _scalars.values_per_channel("batch_norm_forward", p.values, ddof)
    (mean, at_mean), (mean_lo, at_lo), (invstd, at_invstd) = (p.float64(p.channels) for _ in range(3))
    call = call_of(p.axis, activation, gamma, beta, residual)
    saved = SavedStatistics(mean, invstd, mean_lo, p.values, "training", call)
    statistics = Statistics(at_mean, at_lo, at_invstd)
    y, to = p.result()
    arrays = Forward(p.at["x"], p.address("residual"), to)
    running = Running(p.address("running_mean"), *p.parameter("running_var"), momentum, ddof)
    plan, walk, kernels, of_moments = p.pieces[0].prepared
    if p.n_parts > 1:
        _, parts = p.collect(Weights(p.at["x"], 0, 1))
        plan, walk, kernels, _ = p.prepared_moments(p.view_of_parts)
        p.launch(kernels.fold_moments, plan, parts, walk, p.workspace(plan), statistics, eps, running)
        p.apply(arrays, statistics, p.affine(), eps)
    elif plan.slices > 1:
        p.launch(of_moments.moments, plan, p.at["x"], walk, p.workspace(plan), statistics, eps, running)
        p.launch(kernels.apply, plan, arrays, walk, statistics, p.affine(), eps)
    else:
        p.launch(kernels.forward, plan, arrays, walk, statistics, p.affine(), eps, running)
    return y, saved


def batch_norm_backward(
    dy: Any,
    x: Any,
    saved: SavedStatistics,
    gamma: Any = None,
    *,
    beta: Any = None,
    channel_axis: int = 1,
    activation: Activation = None,
    residual: Any = None,
    out: Any = None,
) -> tuple[Any, ...]:
    """Compute the gradients of `batch_norm_forward`.

    ``dx = gamma * invstd * (dy - mean(dy) - x_hat * mean(dy * x_hat))`` [1]_, ``dgamma = sum(dy * x_hat)``,
    ``dbeta = sum(dy)``; dy is 0 where the activation gave 0.

    Parameters
    ----------
    dy : device array like x
        Gradient of the result.
    x : device array
        What was normalized.
    saved : SavedStatistics
        Of the forward pass.
    gamma, beta : device arrays of shape (C,), optional
        Of the forward pass. Beta is needed with an activation only.
    channel_axis : int, default=1
        The axis of x that holds the channels.
    activation : {None, 'relu'}, default=None
        Of the forward pass.
    residual : device array like x, optional
        Of the forward pass.
    out : device array like x, optional
        Receives dx; may be dy, x or residual. Otherwise it shares no memory with an argument.

    Returns
    -------
    dx : device array like x
        `out` if given.
    dgamma, dbeta : device arrays of shape (C,), float64
        Gradients of the parameters.
    dresidual : device array like x
        Only if there is a residual.

    Raises
    ------
    RuntimeError
        If there is no usable device.
    TypeError
        If an argument is no device array, or of another dtype than expected.
    ValueError
        If an array has another shape, device or memory order than expected, shares memory that is written, or is a
        tensor that requires grad while autograd is on; or if `saved` is of a forward pass that was called otherwise,
        or of another number of values.

    References
    ----------
    .. [1] Ioffe & Szegedy (2015), "Batch Normalization: Accelerating Deep Network Training by Reducing
       Internal Covariate Shift", section 3.

    Examples
    --------
    >>> from bncpu import gpu
    >>> y, saved = gpu.batch_norm_forward(x)  # doctest: +SKIP
    >>> dx, dgamma, dbeta = gpu.batch_norm_backward(dy, x, saved)  # doctest: +SKIP
    """
    return _backward(dy, x, saved, gamma, beta, channel_axis, activation, residual, out, frozen=False)


def batch_norm_backward_frozen(
    dy: Any,
    x: Any,
    saved: SavedStatistics,
    gamma: Any = None,
    *,
    beta: Any = None,
    channel_axis: int = 1,
    activation: Activation = None,
    residual: Any = None,
    out: Any = None,
) -> tuple[Any, ...]:
    """Compute the gradients of `batch_norm`, whose statistics do not depend on x.

    ``dx = gamma * invstd * dy``: no sample's gradient depends on another sample.

    Parameters
    ----------
    dy : device array like x
        Gradient of the result.
    x : device array
        What was normalized.
    saved : SavedStatistics
        ``SavedStatistics(mean, invstd, mean_lo)`` of float64 arrays on the device; `mean_lo` may be zeros.
    gamma, beta : device arrays of shape (C,), optional
        Of the forward pass. Beta is needed with an activation only.
    channel_axis : int, default=1
        The axis of x that holds the channels.
    activation : {None, 'relu'}, default=None
        Of the forward pass.
    residual : device array like x, optional
        Of the forward pass.
    out : device array like x, optional
        Receives dx; may be dy, x or residual. Otherwise it shares no memory with an argument.

    Returns
    -------
    dx : device array like x
        `out` if given.
    dgamma, dbeta : device arrays of shape (C,), float64
        Gradients of the parameters.
    dresidual : device array like x
        Only if there is a residual.

    Raises
    ------
    RuntimeError
        If there is no usable device.
    TypeError
        If an argument is no device array, or of another dtype than expected.
    ValueError
        If an array has another shape, device or memory order than expected, shares memory that is written, or is a
        tensor that requires grad while autograd is on.

    Examples
    --------
    >>> from bncpu import gpu
    >>> dx, dgamma, dbeta = gpu.batch_norm_backward_frozen(dy, x, saved)  # doctest: +SKIP
    """
    return _backward(dy, x, saved, gamma, beta, channel_axis, activation, residual, out, frozen=True)


def _backward(
    dy: Any, x: Any, saved: SavedStatistics, gamma: Any, beta: Any, channel_axis: int, activation: Activation,
    residual: Any, out: Any, *, frozen: bool,
) -> tuple[Any, ...]:  # fmt: skip
    p = _Pass(
        x, channel_axis, activation, {"gamma": gamma, "beta": beta}, frozen=frozen, dy=dy, residual=residual, out=out
    )
    if "dy" not in p.at:
        raise TypeError("dy must be a device array, got None")
    call = call_of(p.axis, activation, gamma, beta, residual)
    as_in_forward(saved, call, None if frozen else p.values)
    statistics = p.saved(saved, (p.channels,))
    (dgamma, at_dgamma), (dbeta, at_dbeta) = p.float64(p.channels), p.float64(p.channels)
    sums = Sums(at_dgamma, at_dbeta, at_dgamma, at_dbeta)
    dx, to = p.result()
    dz, to_dz = p.new_as_x() if "residual" in p.at else (None, to)
    arrays, gradients = Backward(p.at["dy"], p.at["x"], p.address("residual")), Gradients(to, to_dz)
    plan, walk, kernels, _ = p.pieces[0].prepared
    affine, per_value = p.affine(), 1.0 / p.values
    if p.n_parts > 1:
        _through_pieces(p, arrays, gradients, statistics, affine, sums, per_value)
    elif plan.slices > 1:
        p.launch(kernels.backward_sums, plan, arrays, walk, p.workspace(plan), statistics, affine, sums)
        p.launch(kernels.backward_apply, plan, arrays, gradients, walk, statistics, affine, sums, per_value)
    else:
        p.launch(kernels.backward, plan, arrays, gradients, walk, statistics, affine, sums, per_value)
    return (dx, dgamma, dbeta) if dz is None else (dx, dgamma, dbeta, dz)


def _through_pieces(
    p: _Pass, arrays: Backward, gradients: Gradients, statistics: Statistics, affine: Affine, sums: Sums,
    per_value: float,
) -> None:  # fmt: skip
    """Sums of every column first, then those of channels."""
    of_columns = [p.float64(p.n_parts, p.channels) for _ in range(2)]
    pair = Pair(*(at for _, at in of_columns))
    for piece in p.pieces:
        plan, walk, kernels, _ = piece.prepared
        here, to = moved(arrays, piece.start), moved(pair, p.bytes_before(piece))
        of_piece = sums._replace(dgamma=to.first, dbeta=to.second)
        p.launch(kernels.backward_sums, plan, here, walk, p.workspace(plan), statistics, affine, of_piece)
    p.fold(p.view_of_parts, pair, Pair(sums.dgamma, sums.dbeta))
    for piece in p.pieces:
        plan, walk, kernels, _ = piece.prepared
        both = moved(arrays, piece.start), moved(gradients, piece.start)
        p.launch(kernels.backward_apply, plan, *both, walk, statistics, affine, sums, per_value)


# ---- for the transformer, whose state is in CPU memory ----


def collect(x: Any, channel_axis: int, weights: Any = None) -> Any:
    """Count, mean, its low part and m2, in CPU memory; NaN is left out. Waits for the device.

    They are those of parts of each channel, which are still to be merged: an array of shape (4, n_parts, C).

    Parameters
    ----------
    x : device array, C-contiguous or with adjacent channels, with samples on axis 0
    channel_axis : int
        Not 0.
    weights : ndarray of shape (n_samples,), float64, or None
    """
    p = _Pass(x, channel_axis, None, {}, skipping=True, whole=weights is not None)  # a vector has one weight
    sent = None if weights is None else _arrays.sent(x, p.library, weights)
    values, step = (p.at["x"], 0) if sent is None else (_arrays.address(sent, p.library), 1)
    found, _ = p.collect(Weights(values, step, max(1, p.pieces[0].prepared.plan.outer // x.shape[0])))
    return _arrays.fetched(found, p.library)


class Uploaded(NamedTuple):
    """Coefficients on the device, usable on any stream."""

    kept: tuple[Any, ...]
    addresses: tuple[Any, ...]


@lru_cache(maxsize=16)
def _uploaded(device: int, *coefficients: bytes) -> Uploaded:
    """Mean, zeros, scale and shift on the device. The first call sends them, and waits until they have arrived."""
    mean, scale, shift = (np.frombuffer(values) for values in coefficients)
    kept = tuple(cuda.to_device(values) for values in (mean, np.zeros_like(mean), scale, shift))
    cuda.synchronize()  # a copy from memory that is not pinned may return before it has arrived
    return Uploaded(kept, tuple(map(_compat.address, kept)))


def scaled(x: Any, channel_axis: int, mean: Any, scale: Any, shift: Any, out: Any = None) -> Any:
    """``(x - mean) * scale + shift``. New coefficients are sent to the device first; else nothing waits for it.

    Parameters
    ----------
    x : device array, C-contiguous or with adjacent channels
    channel_axis : int
    mean, scale, shift : ndarray of shape (C,), float64
    out : device array like x, optional
    """
    p = _Pass(x, channel_axis, None, {}, out=out)
    y, to = p.result()
    sent = _uploaded(p.device, *(np.ascontiguousarray(a).tobytes() for a in (mean, scale, shift)))
    center, none, factor, offset = sent.addresses
    affine = Affine(p.at["x"], 0, offset, 1)
    p.apply(Forward(p.at["x"], p.at["x"], to), Statistics(center, none, factor), affine, 0.0)
    return y
