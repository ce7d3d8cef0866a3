"""What the norm functions take, checked before anything is written: data, statistics, running arrays, sums of parts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bncpu import _scalars
from bncpu._checks import floats, like, parameter, plain_array, required, written
from bncpu.gpu._library import library_of
from bncpu.moments import BackwardSums, Moments
from bncpu.saved import SavedStatistics

Array = NDArray[np.floating[Any]]


# ---- what every pass takes ----


def data(name: str, x: Any, channel_axis: Any, *, on_device: bool = False) -> int:
    """Check a data array of a function; its channel axis counted from 0.

    `on_device` is whether device arrays are taken, too, of which others know more.
    """
    if not on_device or library_of(x) is None:
        floats(name, x)
    if x.ndim < 2:
        raise ValueError(f"{name} must have at least 2 dimensions, (N, C, ...); got shape {x.shape}")
    return _scalars.axis_of(name, x.shape, channel_axis)


def forward(x: Array, activation: Any, residual: Any, out: Any, n_threads: Any) -> dict[str, Any]:
    """Check what all forward passes take; the arguments of a pass."""
    relu, n_threads = _scalars.activation(activation), _scalars.threads(n_threads)
    if residual is not None:
        like("residual", residual, x)
    if out is not None:
        like("out", out, x, writeable=True)
    return {"residual": residual, "out": out, "relu": relu, "n_threads": n_threads}


def backward(dy: Any, x: Array, activation: Any, residual: Any, out: Any, n_threads: Any) -> dict[str, Any]:
    """Check what all backward passes take; the arguments of a pass."""
    like("dy", dy, x)
    return {"dy": dy, **forward(x, activation, residual, out, n_threads)}


def where(value: Any, x: Array, axis: int | None, *, along: bool = False) -> NDArray[np.bool_] | None:
    """Which values of `x` count, with as many axes as `x`, of its lengths but along `axis`; None stays None.

    Parameters
    ----------
    value : object
        Boolean. It may lack `axis`, that of the channels, along which all values count or none; not if that is None.
    along : bool, default=False
        Whether it may also have that axis, and differ along it.
    """
    if value is None:
        return None
    try:
        counts = np.asarray(value) if isinstance(value, (bool, np.bool_, list, tuple)) else value
    except ValueError as error:
        raise ValueError(f"where must be an array of booleans: {error}") from None
    plain_array("where", counts)
    if counts.dtype != np.bool_:
        raise TypeError(f"where must be boolean, True for values that count; got {counts.dtype}")
    shape, positions = counts.shape, x.shape
    if axis is not None and not (along and counts.ndim == x.ndim):
        if counts.ndim < x.ndim:
            counts = np.expand_dims(counts.reshape((1,) * (x.ndim - 1 - counts.ndim) + shape), axis)
        positions = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    if counts.ndim != x.ndim or any(n not in (1, full) for n, full in zip(counts.shape, positions, strict=True)):
        expected = f"the shape of x, {x.shape}" + ("" if axis is None else f", without its axis {axis}")
        raise ValueError(f"where must broadcast to {expected}; got {shape}")
    full = list(x.shape)
    if axis is not None:
        full[axis] = counts.shape[axis]
    return counts if counts.shape == tuple(full) else np.broadcast_to(counts, full)


# ---- training: momentum, running statistics, enough values ----


def running(name: str, a: Any, n_channels: int) -> None:
    """Check running statistics that will be updated in place."""
    if not isinstance(a, np.ndarray) or isinstance(a, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a NumPy array, which is updated in place; got {type(a).__name__}")
    if a.dtype.kind != "f":
        raise TypeError(f"{name} must be floating point, got {a.dtype}")
    if a.shape != (n_channels,):
        raise ValueError(f"{name} must have shape ({n_channels},), one value per channel; got {a.shape}")
    written(name, a)


def running_pair(mean: Any, var: Any, n_channels: int, others: dict[str, Any]) -> None:
    """Check running_mean and running_var: both or neither, in memory that no other argument shares."""
    if (mean is None) != (var is None):
        raise ValueError("running_mean and running_var must be given together, got only one of them")
    if mean is not None:
        running("running_mean", mean, n_channels)
        running("running_var", var, n_channels)
        if (var < 0).any():
            raise ValueError(f"running_var must not be negative, got {var[var < 0][0]}")
        for name, a, rest in (
            ("running_mean", mean, {"running_var": var, **others}),
            ("running_var", var, others),
        ):
            for other, b in rest.items():
                if isinstance(b, np.ndarray) and np.shares_memory(a, b):
                    raise ValueError(f"{name} and {other} must not share memory")


# ---- what a forward pass saved ----


def saved(s: Any, shape: tuple[int, ...], what: str, *, centred: bool = True) -> SavedStatistics:
    """Statistics of a forward pass, as float64; without a mean if not `centred`."""
    if library_of(getattr(s, "invstd", None)) is not None:
        raise TypeError("saved must be of a forward pass of arrays in CPU memory, as x is; got that of device arrays")
    if not isinstance(s, SavedStatistics):
        raise TypeError(f"saved must be the SavedStatistics of a forward pass, got {type(s).__name__}")
    if (s.mean is None) == centred:
        expected = "the mean of the forward pass" if centred else "None, as rms_norm_forward leaves it"
        raise ValueError(f"saved.mean must be {expected}; got {'None' if s.mean is None else np.shape(s.mean)}")
    mean = parameter("saved.mean", s.mean, shape, f", {what}") if centred else None
    invstd = parameter("saved.invstd", s.invstd, shape, f", {what}")
    if invstd is None:
        raise ValueError("saved.invstd must be that of the forward pass, got None")
    if not centred or isinstance(s.mean_lo, float):
        return SavedStatistics(mean, invstd, s.mean_lo if centred else 0.0)
    mean_lo = parameter("saved.mean_lo", s.mean_lo, shape, f", {what}")
    if mean_lo is None:
        raise ValueError("saved.mean_lo must be that of the forward pass or 0.0, got None")
    return SavedStatistics(mean, invstd, mean_lo)


# ---- a batch in parts ----


def whole_batch(name: str, s: Any) -> None:
    """Refuse `moments` and `sums` for device arrays."""
    if s is not None:
        raise TypeError(f"{name} must be None for device arrays, which are normalized whole; got {type(s).__name__}")


def none_on_device(name: str, a: Any) -> None:
    """Refuse what the functions do not take with device arrays."""
    if a is not None:
        raise TypeError(f"{name} must be None for device arrays; got {type(a).__name__}")


def sums_of_all(name: str, kind: Any, s: Any, n: int, n_channels: int, count: Any = None) -> Any:
    """Merged moments or gradient sums of a batch, of which x has `n` values per channel; None stays None.

    `count` is that of the statistics of the whole batch, if it is known.
    """
    if s is None:
        return None
    if not isinstance(s, kind):
        raise TypeError(f"{name} must be {kind.__name__}, got {type(s).__name__}")
    whole = kind(*(required(f"{name}.{field}", a, n_channels) for field, a in zip(kind._fields, s, strict=True)))
    for field in {"count", "m2"} & set(kind._fields):
        values = getattr(whole, field)
        if np.any(values < 0) or (field == "count" and not np.all(np.isfinite(values))):
            raise ValueError(f"{name}.{field} must be finite and not negative, got {np.min(values):g}")
    if np.any(whole.count < n):
        raise ValueError(
            f"{name} must be merged from all parts of the batch: x has {n} values per channel, "
            f"{name}.count is {np.min(whole.count):g}"
        )
    if count is not None and np.any(whole.count != count):
        raise ValueError(
            f"{name} must be merged from all parts of the batch: saved is of {np.max(count):g} values per channel, "
            f"{name}.count is {np.min(whole.count):g}"
        )
    return whole


def mergeable_sums(parts: Any) -> list[Any]:
    """What merge is given, all of one kind and number of channels, in float64."""
    kinds = {type(part) for part in parts}
    if len(kinds) != 1 or not kinds <= {Moments, BackwardSums}:
        got = ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
        raise TypeError(f"merge takes Moments, or BackwardSums, of parts of a batch; got {got}")
    kind = kinds.pop()
    n_channels = math.prod(np.shape(parts[0].count))
    return [
        kind(*(required(f"part {i}'s {field}", a, n_channels) for field, a in zip(kind._fields, part, strict=True)))
        for i, part in enumerate(parts)
    ]
