"""Every check of what users pass. Nothing else raises on user input, and nothing here changes it."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array, check_scalar
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from bncpu.moments import Moments

Array = NDArray[np.floating[Any]]

FLOATS = (np.float64, np.float32, np.float16)


# ---- numbers ----


def real(name: str, value: Any, *, low: float, high: float | None = None, closed: str = "both") -> float:
    """`value`, a real number between `low` and `high`."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a number, got {value}")
    check_scalar(value, name, numbers.Real, min_val=low, max_val=high, include_boundaries=closed)
    if math.isnan(value) or math.isinf(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def threads(n_threads: Any) -> int | None:
    """`n_threads`, None or a positive integer."""
    if n_threads is not None:
        check_scalar(n_threads, "n_threads", numbers.Integral, min_val=1)
    return n_threads


def momentum(value: Any) -> float:
    """A momentum of the functions: the weight of the old value, both ends allowed."""
    return real("momentum", value, low=0, high=1)


# ---- arrays of the functions ----


def data(name: str, x: Any, channel_axis: Any) -> int:
    """Check a data array of a function; its channel axis counted from 0."""
    _plain_array(name, x)
    if x.dtype.kind != "f" or x.dtype.itemsize > 8:
        raise TypeError(f"{name} must be float16, float32 or float64, got {x.dtype}; convert it first")
    if x.ndim < 2:
        raise ValueError(f"{name} must have at least 2 dimensions, (N, C, ...); got shape {x.shape}")
    check_scalar(channel_axis, "channel_axis", numbers.Integral)
    if not -x.ndim <= channel_axis < x.ndim:
        raise ValueError(f"channel_axis must name an axis of {name} of shape {x.shape}, got {channel_axis}")
    return int(channel_axis) % x.ndim


def _plain_array(name: str, a: Any) -> None:
    # A mask would be ignored, and a matrix is never anything but 2-D.
    if not isinstance(a, np.ndarray) or isinstance(a, (np.ma.MaskedArray, np.matrix)):
        raise TypeError(f"{name} must be a NumPy array, got {type(a).__name__}")


def like(name: str, a: Any, x: Array, *, writeable: bool = False) -> None:
    """Check an array that must match `x` in shape and dtype."""
    _plain_array(name, a)
    if a.dtype != x.dtype:
        raise TypeError(f"{name} must be {x.dtype} like the input, got {a.dtype}")
    if a.shape != x.shape:
        raise ValueError(f"{name} must have the shape of the input, {x.shape}; got {a.shape}")
    if writeable and not a.flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")


def activation(value: Any) -> bool:
    """Whether `activation` asks for ReLU."""
    if value is not None and not (isinstance(value, str) and value == "relu"):
        raise ValueError(f"activation must be None or 'relu', got {value!r}")
    return value == "relu"


def per_channel(name: str, a: ArrayLike | None, n_channels: int) -> NDArray[np.float64] | None:
    """A parameter with one value per channel, as float64; None stays None."""
    if a is None:
        return None
    try:
        values = np.asarray(a)
    except ValueError as error:
        raise ValueError(f"{name} must have shape ({n_channels},): {error}") from None
    if values.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got {values.dtype}")
    if values.shape != (n_channels,):
        raise ValueError(f"{name} must have shape ({n_channels},), one value per channel; got {values.shape}")
    return np.array(values, dtype=np.float64)


def variances(name: str, a: ArrayLike, n_channels: int) -> NDArray[np.float64]:
    """Variances, one per channel; NaN is allowed."""
    values = per_channel(name, a, n_channels)
    if values is None:
        raise TypeError(f"{name} must be an array of shape ({n_channels},), got None")
    if np.any(values < 0):
        raise ValueError(f"{name} must not be negative, got {values[values < 0][0]}")
    return values


def running(name: str, a: Any, n_channels: int) -> None:
    """Check running statistics that will be updated in place."""
    if not isinstance(a, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, which is updated in place; got {type(a).__name__}")
    if a.dtype.kind != "f":
        raise TypeError(f"{name} must be floating point, got {a.dtype}")
    if a.shape != (n_channels,):
        raise ValueError(f"{name} must have shape ({n_channels},), one value per channel; got {a.shape}")
    if not a.flags.writeable:
        raise ValueError(f"{name} must be writeable, as it is updated in place; got a read-only array")


def running_pair(mean: Any, var: Any, n_channels: int, x: Array, out: Any) -> None:
    """Check running_mean and running_var: both or neither, in memory of their own."""
    if (mean is None) != (var is None):
        raise ValueError("running_mean and running_var must be given together, got only one of them")
    if mean is not None:
        running("running_mean", mean, n_channels)
        running("running_var", var, n_channels)
        pairs = [("running_mean", mean, "running_var", var)]
        pairs += [(a, b, c, d) for a, b, *_ in (pairs[0], pairs[0][2:]) for c, d in (("x", x), ("out", out))]
        for name, a, other, b in pairs:
            if isinstance(b, np.ndarray) and np.shares_memory(a, b):
                raise ValueError(f"{name} and {other} must not share memory")


def values_per_channel(n: int, ddof: float) -> None:
    """A batch must hold at least two values per channel, and more than `ddof`."""
    if n < 2 or n <= ddof:
        needed = max(2, math.floor(ddof) + 1)
        raise ValueError(
            f"batch_norm_forward needs at least {needed} values per channel, got {n}; "
            "for single values use batch_norm with running statistics"
        )


# ---- the transformer ----


class Parameters(NamedTuple):
    """The numbers among the constructor parameters, as floats."""

    momentum: float | None
    halflife: float | None
    eps: float
    ddof: float


def parameters(t: Any) -> Parameters:
    """Check the constructor parameters of a BatchNormTransformer."""
    momentum = None if t.momentum is None else real("momentum", t.momentum, low=0, high=1, closed="left")
    halflife = None if t.halflife is None else real("halflife", t.halflife, low=0, closed="neither")
    if t.momentum is not None and t.halflife is not None:
        raise ValueError(
            f"momentum and halflife exclude each other, got momentum={t.momentum} and halflife={t.halflife}"
        )
    eps, ddof = real("eps", t.eps, low=0), real("ddof", t.ddof, low=0)
    threads(t.n_threads)
    for name in ("with_mean", "with_std", "copy"):
        value = getattr(t, name)
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} must be True or False, got {value!r}")
    return Parameters(momentum, halflife, eps, ddof)


def mode(t: Any) -> str:
    """The kind of running statistics the parameters ask for."""
    return "momentum" if t.momentum is not None else "halflife" if t.halflife is not None else "cumulative"


def finite_per_channel(name: str, a: ArrayLike | None, n_channels: int) -> NDArray[np.float64] | None:
    """As `per_channel`, and finite."""
    values = per_channel(name, a, n_channels)
    if values is not None and not np.all(np.isfinite(values)):
        raise ValueError(f"{name} must be finite, got {values[~np.isfinite(values)][0]}")
    return values


def batch(t: Any, X: Any, *, reset: bool) -> tuple[NDArray[Any], dict[str, Any]]:
    """X of fit and partial_fit as a 2-D float array, and the attributes scikit-learn would set on `t`.

    Infinities are not looked for: the kernels find them in the pass they make anyway.
    """
    if not reset and _is_plain(t, X):
        return X, dict(vars(t))
    # validate_data sets names and width before it has checked everything, so it is given a stand-in.
    stand_in = object.__new__(type(t))
    vars(stand_in).update(vars(t))
    X = validate_data(stand_in, X, reset=reset, dtype=FLOATS, ensure_all_finite=False)
    return X, vars(stand_in)


def _is_plain(t: Any, X: Any) -> bool:
    """Whether scikit-learn's validation, 70 us, would find nothing to do or say."""
    return (
        type(X) is np.ndarray
        and X.ndim == 2
        and X.dtype in (np.float32, np.float64)
        and X.shape[1] == t.n_features_in_
        and len(X) > 0
        and not hasattr(t, "feature_names_in_")
    )


def sample_weight(sample_weight: Any, X: NDArray[Any]) -> NDArray[np.float64] | None:
    """Weights as contiguous float64: finite, not negative, not all 0."""
    if sample_weight is None:
        return None
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    if not np.any(weights):
        raise ValueError("Sample weights must contain at least one non-zero number; sample_weight is all 0.")
    return np.ascontiguousarray(weights)


def to_transform(t: Any, X: Any) -> NDArray[Any]:
    """X of transform as a 2-D float array of the fitted width and names."""
    return X if _is_plain(t, X) else validate_data(t, X, reset=False, dtype=FLOATS, ensure_all_finite=False)


def to_invert(t: Any, X: Any) -> NDArray[Any]:
    """X of inverse_transform; without names, which a transformed array has lost."""
    X = check_array(X, dtype=FLOATS, ensure_all_finite=False, estimator=t, input_name="X")
    if X.shape[1] != t.n_features_in_:
        raise ValueError(
            f"X has {X.shape[1]} features, but {type(t).__name__} is expecting {t.n_features_in_} features as input"
        )
    return X


def finite_moments(t: Any, X: NDArray[Any] | None, moments: Moments, names: Any) -> None:
    """Refuse moments that are not finite, of the batch X or of all that was seen; say where the infinity is."""
    overflown = ~np.isfinite(moments.m2 + moments.mean)
    if not np.any(overflown):
        return
    if X is not None and np.any(np.isinf(X)):
        infinity(t, X, names)
    columns = _some(np.flatnonzero(overflown), names)
    raise ValueError(
        f"the variance of X overflows float64 in column(s) {columns}; scale the data, or sample_weight, first"
    )


def infinity(t: Any, X: NDArray[Any], names: Any) -> NoReturn:
    """Refuse X for its infinities, naming rows and columns if they have not been overwritten in place."""
    rows, columns = np.nonzero(np.isinf(X))
    where = f": row(s) {_some(np.unique(rows))}, column(s) {_some(np.unique(columns), names)}" if len(rows) else ""
    raise ValueError(
        f"Input X contains infinity or a value too large for {X.dtype!r}{where}. "
        f"{type(t).__name__} takes NaN as missing, but not infinity."
    )


def _some(indices: NDArray[np.intp], names: Any = None) -> str:
    shown = (str(i) if names is None else f"{i} ({names[i]!r})" for i in indices[:5])
    return ", ".join(shown) + (", ..." if len(indices) > 5 else "")


def two_values(t: Any, n_values: NDArray[np.float64], n_samples: int, count: NDArray[np.float64], ddof: float) -> None:
    """Momentum mode averages batch variances, so a batch needs two values of a feature it has at all."""
    short = np.flatnonzero(n_values == 1)
    if n_samples == 1 or len(short):
        where = "n_samples=1" if n_samples == 1 else f"one value in column(s) {_some(short)}"
        raise ValueError(
            f"with momentum a batch needs at least two values per feature, got {where}; halflife accepts single rows"
        )
    short = np.flatnonzero((count > 0) & (count <= ddof))
    if len(short):
        raise ValueError(
            f"with momentum a batch needs more than ddof={t.ddof} values, or total sample_weight, per feature; "
            f"got {count[short[0]]:g} in column(s) {_some(short)}"
        )


def same_mode(fitted: str, wanted: str) -> None:
    """Running statistics of one kind cannot be continued as another."""
    if fitted != wanted:
        raise ValueError(
            f"partial_fit cannot continue {fitted} statistics in {wanted} mode; "
            "call fit after changing momentum or halflife"
        )


def out_of_transform(t: Any, X: NDArray[Any], out: Any, wrapped: bool) -> None:
    """Check `out` of transform."""
    if wrapped:
        raise ValueError("out is only for NumPy output; set_output(transform='default') first")
    like("out", out, X, writeable=True)


def mergeable(t: Any, other: Any) -> None:
    """Check that `t` can take in what `other` has seen."""
    if not isinstance(other, type(t)):
        raise TypeError(f"other must be a {type(t).__name__}, got {type(other).__name__}")
    check_is_fitted(other)
    for name, side in (("self", t), ("other", other)):
        kind = next((m for m in (mode(side), getattr(side, "_mode", "cumulative")) if m != "cumulative"), None)
        if kind is not None:
            raise ValueError(f"merge needs cumulative statistics, whose order does not matter; {name} uses {kind}")
    if t.ddof != other.ddof:
        raise ValueError(f"other must have ddof={t.ddof}, got {other.ddof}")
    if not hasattr(t, "n_features_in_"):
        return
    if t.n_features_in_ != other.n_features_in_:
        raise ValueError(f"other must have {t.n_features_in_} features, got {other.n_features_in_}")
    names: Any = getattr(t, "feature_names_in_", None)
    others: Any = getattr(other, "feature_names_in_", None)
    if (names is None) != (others is None) or not np.array_equal(names, others):
        raise ValueError(f"other must have the feature names {names}, got {others}")


def invertible(t: Any, scale: NDArray[np.float64]) -> None:
    """inverse_transform divides by gamma."""
    if np.any(scale == 0):
        columns = _some(np.flatnonzero(scale == 0))
        raise ValueError(f"inverse_transform needs a non-zero gamma, got 0 in column(s) {columns}")
