"""Checks of arguments that are no arrays, the same for arrays in CPU memory and on a GPU; nothing compiled is imported.

Each returns what it has checked, as the caller goes on with it, or raises an error that names the argument, what was
expected and what came.
"""

from __future__ import annotations

import math
import numbers
import reprlib
import sys
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_scalar

# ---- words ----

# Does not make the whole text first.
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 60
SHORT.maxlevel = 3


def shown(value: Any) -> str:
    """A value of the caller's as a message shows it: on one line, and short."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of shape {value.shape}"
    text = " ".join(SHORT.repr(value).split())
    return text if len(text) <= 80 else f"{text[:70]}..."


# ---- numbers ----


def real(name: str, value: Any, *, low: float, high: float | None = None, closed: str = "both") -> float:
    """`value`, a real number between `low` and `high`."""
    most = sys.float_info.max if high is None else high
    if (type(value) is float or type(value) is int) and closed == "both" and low <= value <= most:
        return float(value)
    if isinstance(value, (bool, np.bool_, np.timedelta64)):
        raise TypeError(f"{name} must be a number, got {value}")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        value = math.copysign(math.inf, value > 0 or -1)
    check_scalar(value, name, numbers.Real, min_val=low, max_val=high, include_boundaries=closed)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def whole(name: str, value: Any, *, low: int | None = None) -> int | None:
    """`value`, None or an integer from `low`."""
    if isinstance(value, (bool, np.bool_, np.timedelta64)):
        raise TypeError(f"{name} must be an integer, got {value}")
    if value is not None:
        check_scalar(value, name, numbers.Integral, min_val=low)
    return None if value is None else int(value)  # narrow integers of NumPy overflow


class Real(NamedTuple):
    """A parameter that is a real number, or also None: the arguments of `real`."""

    low: float
    high: float | None = None
    closed: str = "both"
    optional: bool = False


class Whole(NamedTuple):
    """A parameter that is an integer or None: the argument of `whole`."""

    low: int | None = None


def parameters(t: Any, rules: Mapping[str, Real | Whole]) -> dict[str, Any]:
    """The attributes of `t` that `rules` name."""
    found: dict[str, Any] = {}
    for name, rule in rules.items():
        value = getattr(t, name)
        if isinstance(rule, Whole):
            found[name] = whole(name, value, low=rule.low)
        elif value is None and rule.optional:
            found[name] = None
        else:
            found[name] = real(name, value, low=rule.low, high=rule.high, closed=rule.closed)
    return found


def threads(n_threads: Any) -> int | None:
    """`n_threads`, None or a positive integer."""
    return whole("n_threads", n_threads, low=1)


def warn_of_pytorchs(momentum: float, whose: str, stacklevel: int) -> None:
    """Warn of a momentum that looks like PyTorch's, which is 1 minus ours."""
    if 0 < momentum < 0.5:
        warnings.warn(
            f"{whose} momentum={momentum} is the weight of the old value; "
            f"PyTorch's {momentum} is {1 - momentum:g} here",
            stacklevel=stacklevel + 1,
        )


# ---- what the norms take ----


def axis_of(name: str, shape: tuple[int, ...], channel_axis: Any) -> int:
    """`channel_axis`, an axis of the array `name` of this shape, counted from 0."""
    if type(channel_axis) is not int:
        whole("channel_axis", channel_axis)
        check_scalar(channel_axis, "channel_axis", numbers.Integral)
    if not -len(shape) <= channel_axis < len(shape):
        raise ValueError(f"channel_axis must name an axis of {name} of shape {shape}, got {shown(channel_axis)}")
    return int(channel_axis) % len(shape)


def activation(value: Any) -> bool:
    """Whether `activation` asks for ReLU."""
    if value is not None and not (isinstance(value, str) and value == "relu"):
        raise ValueError(f"activation must be None or 'relu', got {shown(value)}")
    return value == "relu"


def momentum(value: Any, running_mean: Any) -> float:
    """A momentum of the functions: the weight of the old value, both ends allowed; used with running statistics."""
    if value is None:
        raise TypeError(
            "momentum must be a number from 0 to 1, got None; PyTorch's None, statistics of all batches, is a "
            "BatchNormTransformer() here, or batch_norm_moments and merge"
        )
    weight = real("momentum", value, low=0, high=1)
    if running_mean is not None:
        warn_of_pytorchs(weight, "the", stacklevel=3)
    return weight


def values_per_channel(name: str, n: float, ddof: float) -> None:
    """A batch, or a sample, that has values must hold at least two per channel, and more than `ddof`."""
    if not n >= 2 or n <= ddof:
        needed = max(2, math.floor(ddof) + 1)
        each, hint = "channel", "for single values use batch_norm with running statistics"
        if name == "instance_norm":
            each, hint = "channel of a sample", "without axes beside samples and channels use layer_norm or batch_norm"
        more = f" with ddof={ddof:g}" if needed > 2 else ""
        raise ValueError(f"{name} needs at least {needed} values per {each}, got {n:g}{more}; {hint}")
