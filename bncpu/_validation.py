"""Every check of what users pass. Nothing else raises on user input, and nothing here changes it."""

from __future__ import annotations

import math
import numbers
import sys
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_scalar

from bncpu import _layout
from bncpu.gpu._library import library_of
from bncpu.moments import BackwardSums, Call, Moments, SavedStatistics

Array = NDArray[np.floating[Any]]

CPU = 1  # kDLCPU of DLPack

# The mode of statistics of a layer that does not tell how many samples they are of.
INFERENCE = "inference"

FLOATS = (np.float64, np.float32, np.float16)


# ---- numbers ----


def real(name: str, value: Any, *, low: float, high: float | None = None, closed: str = "both") -> float:
    """`value`, a real number between `low` and `high`."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a number, got {value}")
    check_scalar(value, name, numbers.Real, min_val=low, max_val=high, include_boundaries=closed)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def whole(name: str, value: Any, *, low: int | None = None) -> int | None:
    """`value`, None or an integer from `low`."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value}")
    if value is not None:
        check_scalar(value, name, numbers.Integral, min_val=low)
    return value


def threads(n_threads: Any) -> int | None:
    """`n_threads`, None or a positive integer."""
    return whole("n_threads", n_threads, low=1)


def n_bytes(value: Any) -> int:
    """`n_bytes`, an integer from 0."""
    number = whole("n_bytes", value, low=0)
    if number is None:
        raise TypeError("n_bytes must be an integer, got None; 0 keeps nothing")
    return min(int(number), sys.maxsize)


def n_bytes_of_environment(name: str, text: str) -> int:
    """The bytes that an environment variable says, digits only."""
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{name} must be a number of bytes, such as 268435456; got {text!r}")
    return n_bytes(int(text))


def momentum(value: Any) -> float:
    """A momentum of the functions: the weight of the old value, both ends allowed."""
    return real("momentum", value, low=0, high=1)


# ---- arrays of the functions ----


def floats(name: str, x: Any) -> None:
    """Check a data array of a function."""
    _plain_array(name, x)
    if not _layout.is_float(x.dtype) or x.dtype.itemsize > 8:
        raise TypeError(f"{name} must be float16, float32 or float64, got {x.dtype}; convert it first")


def data(name: str, x: Any, channel_axis: Any) -> int:
    """Check a data array of a function; its channel axis counted from 0."""
    floats(name, x)
    if x.ndim < 2:
        raise ValueError(f"{name} must have at least 2 dimensions, (N, C, ...); got shape {x.shape}")
    return _axis(name, x, channel_axis)


def _axis(name: str, x: Array, channel_axis: Any) -> int:
    whole("channel_axis", channel_axis)
    check_scalar(channel_axis, "channel_axis", numbers.Integral)
    if not -x.ndim <= channel_axis < x.ndim:
        raise ValueError(f"channel_axis must name an axis of {name} of shape {x.shape}, got {channel_axis}")
    return int(channel_axis) % x.ndim


def _plain_array(name: str, a: Any) -> None:
    # A mask would be ignored, and a matrix is never anything but 2-D.
    if not isinstance(a, np.ndarray) or isinstance(a, (np.ma.MaskedArray, np.matrix)):
        raise TypeError(f"{name} must be a NumPy array, got {type(a).__name__}")


def like(name: str, a: Any, x: Array, dtype: np.dtype[Any] | None = None, *, writeable: bool = False) -> None:
    """Check an array that must match `x` in shape, and in dtype unless that is given."""
    _plain_array(name, a)
    if a.dtype != (dtype or x.dtype):
        like = f"{dtype or x.dtype} like the {'result' if dtype else 'input'}"
        raise TypeError(f"{name} must be {like}, got {a.dtype}; convert it first")
    if a.shape != x.shape:
        raise ValueError(f"{name} must have the shape of the input, {x.shape}; got {a.shape}")
    if writeable:
        _writeable(name, a)


def _writeable(name: str, a: Array) -> None:
    if not a.flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")
    if not _layout.apart(a):
        raise ValueError(
            f"{name} must have memory of its own for every value; got shape {a.shape}, strides {a.strides}"
        )


def forward(x: Array, activation_: Any, residual: Any, out: Any, n_threads: Any) -> dict[str, Any]:
    """Check what all forward passes take; the arguments of a pass."""
    relu, n_threads = activation(activation_), threads(n_threads)
    if residual is not None:
        like("residual", residual, x)
    if out is not None:
        like("out", out, x, writeable=True)
    return {"residual": residual, "out": out, "relu": relu, "n_threads": n_threads}


def backward(dy: Any, x: Array, activation_: Any, residual: Any, out: Any, n_threads: Any) -> dict[str, Any]:
    """Check what all backward passes take; the arguments of a pass."""
    like("dy", dy, x)
    return {"dy": dy, **forward(x, activation_, residual, out, n_threads)}


def activation(value: Any) -> bool:
    """Whether `activation` asks for ReLU."""
    if value is not None and not (isinstance(value, str) and value == "relu"):
        raise ValueError(f"activation must be None or 'relu', got {value!r}")
    return value == "relu"


def per_channel(name: str, a: ArrayLike | None, n_channels: int) -> NDArray[np.float64] | None:
    """A parameter with one value per channel, as float64; None stays None."""
    return parameter(name, a, (n_channels,), ", one value per channel")


def parameter(name: str, a: ArrayLike | None, shape: tuple[int, ...], what: str = "") -> NDArray[np.float64] | None:
    """A parameter of a shape, as float64; None stays None."""
    if a is None:
        return None
    if isinstance(a, np.ma.MaskedArray):  # its mask would be ignored
        raise TypeError(f"{name} must not be masked, got a MaskedArray")
    try:
        values = np.asarray(a)
    except ValueError as error:
        raise ValueError(f"{name} must have shape {shape}: {error}") from None
    if values.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got {values.dtype}")
    if values.shape != shape:
        raise ValueError(f"{name} must have shape {shape}{what}; got {values.shape}")
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float64)


def required(name: str, a: ArrayLike, n_channels: int) -> NDArray[np.float64]:
    """As `per_channel`, and not None."""
    values = per_channel(name, a, n_channels)
    if values is None:
        raise TypeError(f"{name} must be an array of shape ({n_channels},), got None")
    return values


def variances(name: str, a: ArrayLike, n_channels: int) -> NDArray[np.float64]:
    """Variances, one per channel; NaN is allowed."""
    values = required(name, a, n_channels)
    if np.any(values < 0):
        raise ValueError(f"{name} must not be negative, got {values[values < 0][0]}")
    return values


def running(name: str, a: Any, n_channels: int) -> None:
    """Check running statistics that will be updated in place."""
    if not isinstance(a, np.ndarray) or isinstance(a, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a NumPy array, which is updated in place; got {type(a).__name__}")
    if a.dtype.kind != "f":
        raise TypeError(f"{name} must be floating point, got {a.dtype}")
    if a.shape != (n_channels,):
        raise ValueError(f"{name} must have shape ({n_channels},), one value per channel; got {a.shape}")
    _writeable(name, a)


def running_pair(mean: Any, var: Any, n_channels: int, others: dict[str, Any]) -> None:
    """Check running_mean and running_var: both or neither, in memory that no other argument shares."""
    if (mean is None) != (var is None):
        raise ValueError("running_mean and running_var must be given together, got only one of them")
    if mean is not None:
        running("running_mean", mean, n_channels)
        running("running_var", var, n_channels)
        for name, a, rest in (
            ("running_mean", mean, {"running_var": var, **others}),
            ("running_var", var, others),
        ):
            for other, b in rest.items():
                if isinstance(b, np.ndarray) and np.shares_memory(a, b):
                    raise ValueError(f"{name} and {other} must not share memory")


def values_per_channel(name: str, n: float, ddof: float) -> None:
    """A batch, or a sample, must hold at least two values per channel, and more than `ddof`."""
    if not n >= 2 or n <= ddof:
        needed = max(2, math.floor(ddof) + 1)
        each, hint = "channel", "for single values use batch_norm with running statistics"
        if name == "instance_norm":
            each, hint = "channel of a sample", "without axes beside samples and channels use layer_norm or batch_norm"
        raise ValueError(f"{name} needs at least {needed} values per {each}, got {n:g}; {hint}")


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
    checked = SavedStatistics(mean, parameter("saved.invstd", s.invstd, shape, f", {what}"))
    if checked.invstd is None:
        raise ValueError("saved.invstd must be that of the forward pass, got None")
    if centred and not isinstance(s.mean_lo, float):
        checked.mean_lo = parameter("saved.mean_lo", s.mean_lo, shape, f", {what}")
        if checked.mean_lo is None:
            raise ValueError("saved.mean_lo must be that of the forward pass or 0.0, got None")
    return checked


def call(
    channel_axis: int | None,
    activation: Any,
    gamma: Any,
    beta: Any,
    residual: Any,
    normalized: tuple[int, ...] | None = None,
) -> Call:
    """What a pass was called with; the channel axis counted from 0."""
    return Call(channel_axis, activation, gamma is not None, beta is not None, residual is not None, normalized)


def as_in_forward(s: Any, now: Call) -> None:
    """Refuse a backward pass that forgets what the forward pass had: its gradients would be wrong."""
    then: Call | None = getattr(s, "call", None)
    if then is None:
        return
    for name in ("channel_axis", "activation"):
        if getattr(then, name) != getattr(now, name):
            expected, got = getattr(then, name), getattr(now, name)
            raise ValueError(f"{name} must be that of the forward pass that made saved, {expected!r}; got {got!r}")
    needed = ["gamma", "beta", "residual"] if then.activation else ["gamma"]
    for name in needed:
        if getattr(then, name) and not getattr(now, name):
            raise ValueError(f"{name} must be given, as in the forward pass that made saved; got None")


def whole_batch(name: str, s: Any) -> None:
    """Sums of parts are for arrays in memory."""
    if s is not None:
        raise TypeError(f"{name} must be None for device arrays, which are normalized whole; got {type(s).__name__}")


def sums_of_all(name: str, kind: Any, s: Any, x: Array, n_channels: int) -> Any:
    """Merged moments or gradient sums of a batch of which x is a part, one value per channel each; None stays None."""
    if s is None:
        return None
    if not isinstance(s, kind):
        raise TypeError(f"{name} must be {kind.__name__}, got {type(s).__name__}")
    whole = kind(*(required(f"{name}.{field}", a, n_channels) for field, a in zip(kind._fields, s, strict=True)))
    n = x.size // max(1, n_channels)
    if np.any(whole.count < n):
        raise ValueError(
            f"{name} must be merged from all parts of the batch: x has {n} values per channel, "
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
    n_channels = np.size(parts[0].count)
    return [
        kind(*(required(f"part {i}'s {field}", a, n_channels) for field, a in zip(kind._fields, part, strict=True)))
        for i, part in enumerate(parts)
    ]


def groups(n_groups: Any, n_channels: int) -> int:
    """`n_groups`, a divisor of the number of channels."""
    if n_groups is None or not whole("n_groups", n_groups, low=1) or n_channels % n_groups:
        raise ValueError(f"n_groups must divide the number of channels, {n_channels}; got {n_groups}")
    return int(n_groups)


def normalized(x: Any, normalized_shape: Any, channel_axis: Any) -> tuple[int, ...]:
    """The shape normalized over: that of the trailing axes, or of the channel axis."""
    floats("x", x)
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
        expected, where = (x.shape[_axis("x", x, channel_axis)],), f"axis {channel_axis} of x"
    if shape != expected:
        raise ValueError(f"normalized_shape must be that of {where} of shape {x.shape}, got {shape}")
    return shape


def normalized_as(
    x: Any, s: Any, channel_axis: Any, given: tuple[Any, Any, Any, Any], *, centred: bool
) -> tuple[tuple[int, ...], SavedStatistics]:
    """The shape normalized over in the forward pass that saved `s`, which had what is `given`; and the statistics."""
    floats("x", x)
    axis = None if channel_axis is None else _axis("x", x, channel_axis)
    as_in_forward(s, call(axis, *given))
    if axis is not None:
        expected, over = (*x.shape[:axis], 1, *x.shape[axis + 1 :]), (x.shape[axis],)
    else:
        # By hand: axes of length 1 may or may not have been normalized over.
        k = len(s.call.normalized) if getattr(s, "call", None) else _trailing(s, x, *given[1:3])
        expected, over = x.shape[:-k] + (1,) * k, x.shape[-k:]
    what = f"that of x, {x.shape}, with 1 for the axes normalized over"
    return over, saved(s, expected, what, centred=centred)


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


def groups_of(s: Any, n_channels: int) -> int:
    """The number of groups of the forward pass that saved `s`."""
    shape = np.shape(getattr(s, "invstd", ()))
    if isinstance(s, SavedStatistics) and (len(shape) != 2 or not shape[1] or n_channels % shape[1]):
        raise ValueError(f"saved.invstd must have shape (N, n_groups) for {n_channels} channels, got {shape}")
    return shape[1] if len(shape) == 2 else 1


# ---- weights of layers ----


def layer_weight(a: Any, layer: str, *n_dimensions: int) -> None:
    """Check the weight of a linear layer or convolution."""
    floats("weight", a)
    if a.ndim not in n_dimensions:
        expected = " or ".join(str(n) for n in n_dimensions)
        raise ValueError(f"weight of a {layer} must have {expected} dimensions, got shape {a.shape}")


def output_channels(
    weight: Array, mean: ArrayLike, channel_axis: Any, readings: dict[tuple[int, ...], str]
) -> tuple[int, ...]:
    """Axes of `weight`, counted from 0, whose product are the output channels, one per value of `mean`.

    With a channel_axis of None, those of `readings`, axes and their description, that fit alone.
    """
    if channel_axis is not None:
        axes = _axes_of_weight(weight, channel_axis, pairs=any(len(axes) > 1 for axes in readings))
        required("mean", mean, math.prod(weight.shape[axis] for axis in axes))
        return axes
    if mean is None:
        raise TypeError("mean must be an array of shape (C,), got None")
    try:
        n_channels = np.size(mean)
    except ValueError as error:
        raise ValueError(f"mean must have shape (C,): {error}") from None
    fits: dict[tuple[int, ...], tuple[tuple[int, ...], str]] = {}
    for axes, description in readings.items():
        counted = tuple(axis % weight.ndim for axis in axes)
        if math.prod(weight.shape[axis] for axis in counted) == n_channels:
            # Beside an axis of length 1, one axis and two are the same: (height, width, 1, C).
            fits.setdefault(tuple(axis for axis in counted if weight.shape[axis] > 1), (counted, description))
    if not fits:
        raise ValueError(
            f"weight must have as many output channels as mean has values, {n_channels}, on channel_axis "
            f"{' or '.join(readings.values())}; got shape {weight.shape}"
        )
    if len(fits) > 1:
        raise ValueError(
            f"channel_axis must be given, as {n_channels} output channels in a weight of shape {weight.shape} may be "
            f"on axis {' or '.join(description for _, description in fits.values())}"
        )
    return next(iter(fits.values()))[0]


def _axes_of_weight(weight: Array, channel_axis: Any, *, pairs: bool) -> tuple[int, ...]:
    axes: tuple[Any, ...] = channel_axis if pairs and isinstance(channel_axis, tuple) else (channel_axis,)
    for axis in axes:
        if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
            kinds = "an integer, two in a tuple or None" if pairs else "an integer or None"
            raise TypeError(f"channel_axis must be {kinds}, got {channel_axis!r}")
        if not -weight.ndim <= axis < weight.ndim:
            raise ValueError(f"channel_axis must name an axis of weight of shape {weight.shape}, got {channel_axis}")
    counted = tuple(int(axis) % weight.ndim for axis in axes)
    if len(counted) not in (1, 2) or counted[-1] - counted[0] != len(counted) - 1:
        raise ValueError(f"channel_axis must be one axis or two adjacent ones in order, got {channel_axis}")
    return counted
