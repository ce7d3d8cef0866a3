"""Batch normalization of device arrays, with the names and arguments that `bncpu` has for arrays in CPU memory."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numba import cuda

from bncpu import _scalars
from bncpu.saved import SavedStatistics, as_in_forward, call_of

from . import _arrays, _compat, why_unavailable
from ._arguments import (
    Address,
    Affine,
    Backward,
    Forward,
    Gradients,
    Kind,
    Running,
    Statistics,
    Sums,
    Walk,
    Weights,
    Workspace,
)
from ._arrays import Given
from ._kernels import Kernels, kernels
from ._plan import THREADS, Plan, plan

Activation = Literal["relu"] | None


class _Pass:
    """One call: its checked arrays, the plan, and the stream."""

    def __init__(
        self, x: Any, channel_axis: Any, activation: Activation, parameters: dict[str, Any], *,
        frozen: bool = False, skipping: bool = False, **like: Any,
    ):  # fmt: skip
        if reason := _unavailable():
            raise RuntimeError(reason)
        _arrays.library("x", x)
        shape = tuple(x.shape)
        if len(shape) < 2 or 0 in shape:
            raise ValueError(f"x must have at least 2 dimensions and no axis of length 0; got shape {shape}")
        self.axis = _scalars.axis_of("x", shape, channel_axis)
        self.channels = shape[self.axis]
        relu = _scalars.activation(activation)
        self.device = _compat.current_device()
        self.x = _arrays.given("x", x, self.device, axis=self.axis)
        self.like = {name: self._like(name, a) for name, a in like.items() if a is not None}
        self.parameters = {name: self._parameter(name, a) for name, a in parameters.items() if a is not None}
        kinds = {name: p.storage for name, p in self.parameters.items()}
        if len(set(kinds.values())) > 1:
            raise TypeError(f"parameters must have one dtype, got {', '.join(f'{k} {v}' for k, v in kinds.items())}")
        self.written = self._written()
        aligned = self.x.aligned and all(a.aligned for a in self.like.values())
        self.plan, self.walk, self.kernels, self.moments = _prepared(
            shape, self.axis, self.x.axis is not None, aligned, self.x.storage, next(iter(kinds.values()), "float64"),
            relu, "residual" in self.like, "mean" in kinds, frozen, skipping, *_device(self.device),
        )  # fmt: skip
        self.stream = _stream(self.device, _arrays.stream(self.x))

    def _like(self, name: str, a: Any) -> Given:
        g = _arrays.given(name, a, self.device, written=name == "out", axis=self.axis)
        if (g.shape, g.storage) != (self.x.shape, self.x.storage):
            raise ValueError(
                f"{name} must have shape and dtype of x, {self.x.shape} {self.x.storage}; got {g.shape} {g.storage}"
            )
        if g.axis != self.x.axis:
            orders = ["C-contiguous", "with its channels adjacent in memory"]
            expected, got = orders[self.x.axis is not None], orders[g.axis is not None]
            raise ValueError(f"{name} must be {expected}, as x is; got one {got}")
        return g

    def _parameter(self, name: str, a: Any) -> Given:
        g = _arrays.given(name, a, self.device, written=name.startswith("running"))
        if g.shape != (self.channels,):
            raise ValueError(f"{name} must have shape ({self.channels},), one value per channel; got {g.shape}")
        return g

    def _written(self) -> dict[str, Given]:
        """The arrays that are written. No other may share their memory, but `out` may be one like x."""
        arrays = {"x": self.x, **self.like, **self.parameters}
        written = {name: g for name, g in arrays.items() if name == "out" or name.startswith("running")}
        for name, g in written.items():
            for other, a in arrays.items():
                if other != name and not (name == "out" and a.shape == g.shape and a.memory == g.memory):
                    self._apart(name, g, other, a)
        return written

    @staticmethod
    def _apart(name: str, g: Given, other: str, a: Given) -> None:
        if _arrays.share_memory(g, a):
            unless = f", unless out is all of {other}" if name == "out" and a.shape == g.shape else ""
            raise ValueError(f"{name} and {other} must not share memory{unless}")

    def address(self, name: str) -> Address:
        """The address of an array like x. If it is not given, that of x, which the kernel does not read then."""
        return self.like.get(name, self.x).address

    def parameter(self, name: str) -> tuple[Address, int]:
        """Address and step of a parameter."""
        p = self.parameters.get(name)
        return (self.x.address, 0) if p is None else (p.address, 1)

    def affine(self) -> Affine:
        """Gamma and beta for kernels."""
        return Affine(*self.parameter("gamma"), *self.parameter("beta"))

    def launch(self, kernel: Any, *arguments: Any) -> None:
        """Start a kernel."""
        for g in self.written.values():
            _arrays.mark_written(g)
        _launcher(kernel, self.plan.grid, self.plan.block, self.stream)(*arguments)

    def saved(self, saved: SavedStatistics) -> Statistics:
        """Saved statistics for kernels."""
        if not isinstance(saved, SavedStatistics):
            raise TypeError(f"saved must be the SavedStatistics of a forward pass, got {type(saved).__name__}")
        names = ("mean", "mean_lo", "invstd")
        found = [_arrays.given(f"saved.{name}", getattr(saved, name), self.device) for name in names]
        for g in found:
            if g.shape != (self.channels,) or g.storage != "float64":
                expected = f"float64 arrays of shape ({self.channels},)"
                raise ValueError(f"saved must hold {expected}, got {g.shape} {g.storage}")
        for name, written in self.written.items():
            for g, other in zip(found, names, strict=True):
                self._apart(name, written, f"saved.{other}", g)
        return Statistics(*(g.address for g in found))

    def workspace(self) -> Workspace:
        """Memory for the parts of slices, and for counting slices that are done; held until the call ends."""
        *below, _ = self.plan.levels  # the last one of a column leaves nothing
        n_counts = sum(self.plan.levels[1:]) * self.plan.blocks
        # A plan of one slice uses none.
        self.kept = _arrays.scratch(self.x, self.device, max(1, 4 * sum(below) * self.plan.width), max(1, n_counts))
        return Workspace(self.kept.floats, self.kept.counts)


@lru_cache(maxsize=256)
def _stream(device: int, handle: int | None) -> Any:
    if handle is None:
        return cuda.default_stream()  # by NUMBA_CUDA_PER_THREAD_DEFAULT_STREAM the thread's own
    return cuda.external_stream(handle) if handle else cuda.legacy_default_stream()


_launcher = lru_cache(maxsize=1024)(_compat.launcher)


@cache
def _unavailable() -> str | None:
    return None if _compat.SIMULATED else why_unavailable()


@cache
def _device(device: int) -> tuple[int, int]:
    """Multiprocessors of a device, and threads of a block: few in the simulator, where they are threads of Python."""
    return (1, 16) if _compat.SIMULATED else (cuda.gpus[device].MULTIPROCESSOR_COUNT, THREADS)


class _Prepared(NamedTuple):
    """What a call needs that depends on shapes and types alone."""

    plan: Plan
    walk: Walk
    kernels: Kernels
    moments: Any  # the kernel for statistics, whatever follows it


@lru_cache(maxsize=1024)
def _prepared(
    shape: tuple[int, ...], axis: int, last: bool, aligned: bool, storage: str, parameters: str,
    relu: bool, residual: bool, given: bool, frozen: bool, skipping: bool, multiprocessors: int, threads: int,
) -> _Prepared:  # fmt: skip
    """Prepare a call. `last` is whether the channels are adjacent in memory though their axis is not the last."""
    if last:
        shape, axis = _arrays.at_end(shape, axis), len(shape) - 1
    about: dict[str, int] = {"multiprocessors": multiprocessors, "threads": threads}
    p = plan(shape, axis, _compat.STORAGE[storage], aligned=aligned, **about)
    if skipping and not p.rows:
        p = plan(shape, axis, _compat.STORAGE[storage], aligned=False, **about)
    kind = Kind(
        storage, parameters, p.rows, p.n, *p.block,
        relu=relu, residual=residual, given=given, frozen=frozen, skipping=skipping,
    )  # fmt: skip
    moments = kernels(kind._replace(relu=False, residual=False)).moments
    return _Prepared(p, Walk(p.outer, p.channels, p.inner, *p.step), kernels(kind), moments)


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
        if name not in p.parameters:
            raise TypeError(f"{name} must be a device array of shape ({p.channels},), got None")
    y = p.like.get("out") or _arrays.like(p.x)
    data = Forward(p.x.address, p.address("residual"), y.address)
    mean_, var_ = (p.parameters[name].address for name in ("mean", "var"))
    p.launch(p.kernels.apply, data, p.walk, Statistics(mean_, mean_, var_), p.affine(), eps)
    return y.array


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
    _scalars.values_per_channel("batch_norm_forward", p.plan.values, ddof)
    mean, invstd, mean_lo = (_arrays.float64(p.x, (p.channels,)) for _ in range(3))
    call = call_of(p.axis, activation, gamma, beta, residual)
    saved = SavedStatistics(mean.array, invstd.array, mean_lo.array, p.plan.values, "training", call)
    statistics = Statistics(mean.address, mean_lo.address, invstd.address)
    y = p.like.get("out") or _arrays.like(p.x)
    data = Forward(p.x.address, p.address("residual"), y.address)
    running = Running(p.parameter("running_mean")[0], *p.parameter("running_var"), momentum, ddof)
    if p.plan.slices == 1:
        p.launch(p.kernels.forward, data, p.walk, statistics, p.affine(), eps, running)
    else:
        p.launch(p.moments, p.x.address, p.walk, p.workspace(), statistics, eps, running)
        p.launch(p.kernels.apply, data, p.walk, statistics, p.affine(), eps)
    return y.array, saved


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
    if "dy" not in p.like:
        raise TypeError("dy must be a device array, got None")
    call = call_of(p.axis, activation, gamma, beta, residual)
    as_in_forward(saved, call, None if frozen else p.plan.values)
    statistics = p.saved(saved)
    dgamma, dbeta = (_arrays.float64(p.x, (p.channels,)) for _ in range(2))
    data, sums = Backward(p.address("dy"), p.x.address, p.address("residual")), Sums(dgamma.address, dbeta.address)
    dx = p.like.get("out") or _arrays.like(p.x)
    dz = _arrays.like(p.x) if "residual" in p.like else None
    gradients = Gradients(dx.address, (dz or dx).address)
    of_all = data, gradients, p.walk, statistics, p.affine(), sums, 1.0 / p.plan.values
    if p.plan.slices == 1:
        p.launch(p.kernels.backward, *of_all)
    else:
        p.launch(p.kernels.backward_sums, data, p.walk, p.workspace(), statistics, p.affine(), sums)
        p.launch(p.kernels.backward_apply, *of_all)
    results = dx.array, dgamma.array, dbeta.array
    return results if dz is None else (*results, dz.array)


# ---- for the transformer, whose state is in CPU memory ----


def collect(x: Any, channel_axis: int, weights: Any = None) -> Any:
    """Count, mean, its low part and m2 of each channel, in CPU memory; NaN is left out. Waits for the device.

    Parameters
    ----------
    x : device array, C-contiguous or with adjacent channels, with samples on axis 0
    channel_axis : int
        Not 0.
    weights : ndarray of shape (n_samples,), float64, or None
    """
    p = _Pass(x, channel_axis, None, {}, skipping=True)
    sent = None if weights is None else _arrays.sent(p.x, weights)
    values, step = (p.x.address, 0) if sent is None else (sent.address, 1)
    of_samples = Weights(values, step, max(1, p.plan.outer // p.x.shape[0]))
    result = _arrays.float64(p.x, (4, p.channels))
    p.launch(p.kernels.collect, p.x.address, p.walk, p.workspace(), of_samples, result.address)
    return _arrays.fetched(result)


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
    y = p.like.get("out") or _arrays.like(p.x)
    sent = _uploaded(p.device, *(np.ascontiguousarray(a).tobytes() for a in (mean, scale, shift)))
    center, none, factor, offset = sent.addresses
    data = Forward(p.x.address, p.x.address, y.address)
    affine = Affine(p.x.address, 0, offset, 1)
    p.launch(p.kernels.apply, data, p.walk, Statistics(center, none, factor), affine, 0.0)
    return y.array
