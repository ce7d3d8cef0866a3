"""Checks of what users pass to the transformer. Nothing here changes it."""

from __future__ import annotations

import math
import numbers
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn import get_config
from sklearn.utils import check_array
from sklearn.utils.validation import _check_sample_weight, validate_data

from bncpu import _batches, _layout
from bncpu._checks import like, per_channel, real, required, variances, whole
from bncpu._checks import threads as threads  # by this name to the transformer, too
from bncpu._compat import as_table, foreign_namespace, is_lazy, numbers_of_frame, numbers_of_table
from bncpu._device import DeviceBatch, OpaqueBatch
from bncpu.gpu._library import library_of
from bncpu.moments import Moments

CPU = 1  # kDLCPU of DLPack

# The mode of statistics of a layer that does not tell how many samples they are of.
INFERENCE = "inference"

FLOATS = (np.float64, np.float32, np.float16)


# ---- the transformer ----


class Parameters(NamedTuple):
    """Checked constructor parameters: those that statistics and coefficients depend on."""

    momentum: float | None
    halflife: float | None
    eps: float
    ddof: float
    with_mean: bool
    with_std: bool
    channel_axis: int | None
    gamma: NDArray[np.float64] | None = None
    beta: NDArray[np.float64] | None = None

    @property
    def mode(self) -> str:
        """The kind of running statistics."""
        return "momentum" if self.momentum is not None else "halflife" if self.halflife is not None else "cumulative"

    def for_features(self, t: Any, n_features: int) -> Parameters:
        """With gamma and beta of `t`, which need so many values."""
        gamma, beta = (finite_per_channel(name, getattr(t, name), n_features) for name in ("gamma", "beta"))
        return self._replace(gamma=gamma, beta=beta)


def parameters(t: Any) -> Parameters:
    """Check the constructor parameters of a BatchNormTransformer; gamma and beta wait for the number of features."""
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
    whole("batch_size", t.batch_size, low=1)
    dtype(t.dtype)
    axis = whole("channel_axis", t.channel_axis)
    return Parameters(momentum, halflife, eps, ddof, bool(t.with_mean), bool(t.with_std), axis)


def dtype(value: Any) -> np.dtype[Any] | None:
    """Check the parameter dtype of a transformer."""
    if value is None:
        return None
    try:
        found = np.dtype(value)
    except TypeError:
        found = None
    if found not in (np.float32, np.float64) or not found.isnative:
        raise ValueError(f"dtype must be numpy.float32, numpy.float64 or None, got {value!r}")
    return found


def warn_of_pytorchs_momentum(p: Parameters) -> None:
    """Warn of a momentum that looks like PyTorch's, which is 1 minus ours."""
    if p.momentum is not None and 0 < p.momentum < 0.5:
        warnings.warn(
            f"BatchNormTransformer's momentum={p.momentum} is the weight of the old value; "
            f"PyTorch's {p.momentum} is {1 - p.momentum:g} here",
            stacklevel=3,
        )


def finite_per_channel(name: str, a: ArrayLike | None, n_channels: int) -> NDArray[np.float64] | None:
    """As `per_channel`, and finite."""
    values = per_channel(name, a, n_channels)
    if values is not None and not np.all(np.isfinite(values)):
        raise ValueError(f"{name} must be finite, got {values[~np.isfinite(values)][0]}")
    return values


class Samples(NamedTuple):
    """Data with samples on axis 0 and channels on axis 1, and what leads back to the form it came in."""

    X: Any
    channel_axis: int | None = None
    xp: Any = None
    device: Any = None

    def back(self, y: Any) -> Any:
        """`y`, made from `X`, as the caller gave it: axes and array library."""
        if self.channel_axis is not None:
            y = _layout.channels_back(y, self.channel_axis)
        return y if self.xp is None else self.xp.asarray(y, device=self.device)


def samples(X: Any, channel_axis: int | None) -> Samples:
    """X before scikit-learn's validation, which knows no channel axis and keeps foreign arrays as they are."""
    if channel_axis is None and isinstance(X, np.ndarray) and X.ndim > 2:
        raise ValueError(
            f"Found array with dim {X.ndim}, while dim <= 2 is required; for shape {X.shape} say by channel_axis which "
            "axis holds the features: 1 for images (N, C, H, W)"
        )
    X = numbers_only("X", X)
    if type(X) is np.ndarray and channel_axis is None:
        return Samples(X)
    if library_of(X) is not None:
        return Samples(_on_device(X, channel_axis))
    if is_lazy(X):
        return _lazy_samples(X, channel_axis)
    X = as_table(X)
    xp, device = foreign_namespace(X), None
    if xp is not None:
        X, device = _shared("X", X), X.device
    if channel_axis is not None:
        if issparse(X):
            raise TypeError("channel_axis is for dense arrays, got a sparse matrix; its features are its columns")
        if not isinstance(X, np.ndarray):
            loose = {"ensure_2d": False, "ensure_min_samples": 0, "ensure_min_features": 0}
            X = check_array(X, dtype=FLOATS, ensure_all_finite=False, allow_nd=True, **loose)
        if X.ndim < 2:
            raise ValueError(f"channel_axis needs X of at least 2 dimensions, got shape {X.shape}. Reshape your data")
        if not -X.ndim <= channel_axis < X.ndim:
            raise ValueError(f"channel_axis={channel_axis} must name an axis of X, got shape {X.shape}")
        if X.size == 0 and X.ndim > 2:
            raise ValueError(f"X must hold at least one value, got shape {X.shape}")
        X = _layout.channels_second(X, channel_axis)
    return Samples(X, channel_axis, xp, device)


# Types of NumPy, pandas, polars and pyarrow whose names begin so: they convert to float, and are no numbers.
NO_NUMBERS = ("date", "time", "duration", "period", "interval", "month_day_nano")


def numbers_only(name: str, X: Any) -> Any:
    """X, if it holds no dates, durations or records; a masked array as an array with NaN where it is masked."""
    if type(X) is np.ndarray and X.dtype.kind in "biuf":
        return X
    if hasattr(X, "collect_schema") and not hasattr(X, "shape"):
        raise TypeError(f"{name} must be in memory, got a {type(X).__name__}; collect() it first")
    if isinstance(X, (list, tuple)) and any(isinstance(row, np.ma.MaskedArray) for row in X):
        X = np.ma.array(X)
    elif isinstance(X, (list, tuple)):
        try:
            values = np.asarray(X)
        except ValueError:  # rows of several lengths: scikit-learn says so
            return X
        _refuse_no_numbers(name, [(None, values.dtype)], values)
        if values.dtype == np.float64:
            return values  # not converted once more
    elif hasattr(X, "columns") and hasattr(X, "dtypes") and len(X.shape) == 2:
        _refuse_no_numbers(name, zip(X.columns, X.dtypes, strict=True), None)
    elif hasattr(getattr(X, "schema", None), "types"):
        _refuse_no_numbers(name, zip(X.schema.names, X.schema.types, strict=True), None)
    elif hasattr(X, "dtype"):
        _refuse_no_numbers(name, [(None, X.dtype)], X)
    return _with_gaps(X) if isinstance(X, np.ma.MaskedArray) else X


def _refuse_no_numbers(name: str, types: Iterable[tuple[Any, Any]], values: Any) -> None:
    other = [
        (column, dtype)
        for column, dtype in types
        if str(dtype).lower().startswith(NO_NUMBERS) or (isinstance(dtype, np.dtype) and dtype.names is not None)
    ]
    if not other and isinstance(values, np.ndarray) and values.dtype == object:
        other = [(None, type(v).__name__) for v in values.flat if isinstance(v, (np.datetime64, np.timedelta64))]
    if other:
        where = ", ".join(str(d) if column is None else f"column {column!r} ({d})" for column, d in other[:5])
        raise TypeError(
            f"{name} must hold numbers, got {where}; leave it out, or make numbers of it, such as days since a date"
        )


def _with_gaps(X: Any) -> NDArray[Any]:
    if not np.ma.is_masked(X):
        return np.asarray(X.data)
    return np.asarray((X if X.dtype.kind == "f" else X.astype(np.float64)).filled(np.nan))


def _on_device(X: Any, channel_axis: int | None) -> DeviceBatch:
    n_axes, shape = len(X.shape), tuple(X.shape)
    if n_axes < 2 or 0 in shape or (channel_axis is None and n_axes > 2):
        wanted = "of shape (n_samples, n_features)" if channel_axis is None else "of at least 2 dimensions"
        raise ValueError(f"X must be {wanted} and hold at least one value, got a device array of shape {shape}")
    axis = 1 if channel_axis is None else channel_axis
    if not -n_axes <= axis < n_axes or axis % n_axes == 0:
        raise ValueError(f"channel_axis={axis} must name an axis of X but the first, of samples; got shape {shape}")
    return DeviceBatch(X, axis % n_axes)


def _lazy_samples(X: Any, channel_axis: int | None) -> Samples:
    """An array or DataFrame of Dask, nothing of it computed."""
    if not hasattr(X, "chunks") and not hasattr(X, "columns"):
        raise TypeError(f"X must be an array or a DataFrame of Dask, got a {type(X).__name__}")
    if channel_axis is None:
        if X.ndim != 2:
            raise ValueError(f"X must have 2 dimensions, (n_samples, n_features), without channel_axis; got {X.ndim}")
        return Samples(X)
    if not hasattr(X, "chunks"):
        raise TypeError("channel_axis is for dense arrays, got a DataFrame; its features are its columns")
    if not -X.ndim <= channel_axis < X.ndim or X.ndim < 2:
        raise ValueError(f"channel_axis={channel_axis} must name an axis of X, got shape {X.shape}")
    return Samples(_layout.channels_second(X, channel_axis), channel_axis)


def feature_names(names: ArrayLike, n_features: int) -> NDArray[Any]:
    """Names of features as scikit-learn keeps them."""
    found = np.array(names, dtype=object)
    if found.shape != (n_features,) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"feature_names must be {n_features} strings, one per feature; got {names!r:.200}")
    return found


def stream(t: Any, batches: Any) -> Any:
    """An iterator over batches; one array, frame or file is refused, but an array of several batches (n, N, C)."""
    several = getattr(batches, "ndim", 3) == 3 and getattr(t, "channel_axis", None) is None
    one_array = getattr(getattr(batches, "dtype", None), "kind", "O") != "O" and not several
    if one_array or isinstance(batches, (str, bytes, os.PathLike, Mapping)) or hasattr(batches, "columns"):
        raise TypeError(
            f"batches must be an iterable of batches, got one {type(batches).__name__}; "
            "for one batch use fit or partial_fit, for files the command `bncpu fit`"
        )
    return iter(batches)


def of_stream(item: Any, key: Any = None) -> Any:
    """The batch in what an iterable gives: what `key` says, or of a tuple, ``(X, y)``, X. A tensor in CPU memory
    becomes an array.
    """
    if key is not None:
        item = key(item) if callable(key) else item[key]
    elif isinstance(item, Mapping) and not hasattr(item, "columns"):
        raise TypeError(f"each batch must be an array or a frame, got a {type(item).__name__}; say by key= which part")
    elif (isinstance(item, tuple) and len(item)) or (isinstance(item, list) and _is_pair(item)):
        item = item[0]
    if isinstance(item, (str, bytes, numbers.Number)):
        raise TypeError(
            f"each batch must be an array or a frame, got {item!r}; of tuples the first is taken, key= names another"
        )
    tensor = hasattr(item, "__dlpack_device__") and not isinstance(item, np.ndarray)
    if not tensor or foreign_namespace(item) is not None or item.__dlpack_device__()[0] != CPU:
        return item
    return _shared("each batch", item)


def _is_pair(item: list[Any]) -> bool:
    """Whether a list is (X, y, ...), as a DataLoader makes it of tensors, and not a batch."""
    if not len(item) or not (hasattr(item[0], "columns") or hasattr(item[0], "__dlpack_device__")):
        return False
    if isinstance(item[0], np.ndarray) or getattr(item[0], "ndim", 2) < 2:
        return False
    shapes = {tuple(getattr(part, "shape", ())) for part in item}
    if len(item) > 1 and len(shapes) == 1:
        raise TypeError(
            f"a list of {len(item)} arrays of shape {shapes.pop()} may be one batch, or X and others; "
            "say by key= which part is X, or stack them"
        )
    return True


def is_empty(batch: Any) -> bool:
    """Whether a batch has no rows."""
    shape = getattr(batch, "shape", None)
    if isinstance(shape, tuple):
        return len(shape) > 1 and shape[0] == 0
    return hasattr(batch, "__len__") and not len(batch)


def at_least_one(n_batches: int) -> None:
    """A stream without batches teaches nothing."""
    if not n_batches:
        raise ValueError("batches must hold at least one batch, got none")


def _shared(name: str, a: Any) -> NDArray[Any]:
    """The memory of another library's array as a NumPy array."""
    try:
        return np.from_dlpack(a)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array in CPU memory, got {type(a).__name__}: {error}") from None


def batch(t: Any, X: Any, p: Parameters, *, reset: bool) -> Any:
    """X of fit and partial_fit as an array that the kernels can convert; sets scikit-learn's attributes on `t`.

    Infinities are not looked for: the kernels find them in the pass they make anyway.
    """
    if is_lazy(X):
        validate_data(t, **_known(X, p), reset=reset)
    else:
        known = None if reset else plain(vars(t), X)
        X = _validated(t, X, p, reset=reset) if known is None else known
    return X


def _validated(t: Any, X: Any, p: Parameters, *, reset: bool) -> Any:
    """By scikit-learn: width, names and numbers."""
    numbers = numbers_of_table(X)
    if numbers is None:
        try:
            return validate_data(t, X, reset=reset, **_checks(X, p))
        except (OverflowError, TypeError, ValueError) as error:
            if hasattr(X, "select_dtypes") and "could not convert" in str(error):
                _refuse_other_than_numbers(X)
            if not isinstance(error, ValueError) or "convert" in str(error):
                _name_what_is_no_number(X)
            raise
    validate_data(t, X, reset=reset, skip_check_array=True)
    return check_array(numbers, estimator=t, input_name="X", **_checks(numbers, p))


def _refuse_other_than_numbers(X: Any) -> None:
    """A pandas DataFrame must have columns of numbers only."""
    numbers_only = X.select_dtypes(["number", "bool", "boolean"], exclude="timedelta")
    other = [f"{name!r} ({X.dtypes[name]})" for name in X.columns if name not in numbers_only.columns]
    if other:
        raise ValueError(
            f"X must hold numbers, got column(s) {', '.join(other[:5])}; leave them out, as "
            "X.select_dtypes('number') does"
        ) from None


def _name_what_is_no_number(X: Any) -> None:
    """Say which value of a frame, or of an array of objects, is no number, and where."""
    if hasattr(X, "columns") and not callable(X.columns) and not isinstance(X, np.ndarray):
        names = getattr(X, "column_names", X.columns)  # of pyarrow, of others
        columns = [(repr(name), X[name]) for name in names] if len(set(names)) == len(names) else []
    elif isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 2:
        columns = [(str(c), X[:, c]) for c in range(X.shape[1])]
    else:
        return
    for name, column in columns:
        values = np.asarray(column)
        if values.dtype.kind in "biuf":
            continue
        for row, value in enumerate(values.astype(object)):
            try:
                float(np.nan if value is None else value)
            except (OverflowError, TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                shown = repr(value)
                shown = shown if len(shown) < 60 else f"{shown[:50]}..."
                raise kind(f"X must hold numbers, got {shown} in row {row} of column {name}: {error}") from None


def _known(X: Any, p: Parameters) -> dict[str, Any]:
    """For scikit-learn's validation: what is known of a Dask X, as an X without rows, and the options."""
    if hasattr(X, "columns"):
        _refuse_other_than_numbers(X._meta)
        empty = X._meta
    else:
        if math.isnan(X.shape[1]):
            raise ValueError(f"the number of features of X must be known, got shape {X.shape}: X.compute_chunk_sizes()")
        stays_sparse(X._meta, p)
        empty = np.empty((0, *X.shape[1:2], *(1 for _ in X.shape[2:])), X.dtype)
    return {"X": empty, "ensure_min_samples": 0, **_checks(empty, p)}


class Block(NamedTuple):
    """Where a block of a Dask X lies, and what messages need to know of the transformer, which is elsewhere."""

    estimator: str
    n_features: int
    parameters: Parameters
    first_row: int | None = None  # None where the sizes of the blocks are not known
    first_column: int = 0

    @property
    def channel_axis(self) -> int | None:
        """The transformer's."""
        return self.parameters.channel_axis


def block(X: Any, at: Block) -> Any:
    """A block of a Dask X, channels on axis 1, as an array that the kernels can convert."""
    least = {"ensure_min_samples": 0, "ensure_min_features": 0}
    X = numbers_only("X", X)
    X = check_array(X, estimator=at.estimator, input_name="X", **least, **_checks(X, at.parameters))
    stays_sparse(X, at.parameters)
    if X.shape[1] != at.n_features:
        raise ValueError(f"X must have {at.n_features} features in every block, got a block of shape {X.shape}")
    return X


def block_weights(weights: Any, X: Any) -> NDArray[np.float64] | None:
    """Weights of a block, which may all be 0."""
    if weights is None:
        return None
    weights = check_array(weights, ensure_2d=False, dtype=np.float64, ensure_min_samples=0, input_name="sample_weight")
    if weights.shape != X.shape[:1]:
        raise ValueError(
            f"sample_weight must be cut into blocks as X is, got one of shape {weights.shape} beside one of {X.shape}"
        )
    if np.any(weights < 0):
        raise ValueError(f"Negative values in data passed to `sample_weight`, got {np.min(weights)}")
    return np.ascontiguousarray(weights)


def lazy_weights(sample_weight: Any, X: Any) -> tuple[Any, bool]:
    """Weights for a Dask X: of Dask, or float64 in memory; and whether they are to be cut as X is."""
    chunks = X.chunks[0] if hasattr(X, "chunks") else (math.nan,) * X.npartitions
    n_samples = sum(chunks)
    if not is_lazy(sample_weight):
        if math.isnan(n_samples):
            raise ValueError(
                "sample_weight must be a Dask array or Series, cut as X is, where X does not know the sizes of its "
                f"blocks; got {type(sample_weight).__name__}"
            )
        return _not_all_zero(sample_weight, range(n_samples)), True
    if sample_weight.ndim != 1:
        raise ValueError(f"Sample weights must be 1D array or scalar, got {sample_weight.ndim}D array.")
    theirs = sample_weight.chunks[0] if hasattr(sample_weight, "chunks") else (math.nan,) * sample_weight.npartitions
    if math.isnan(n_samples + sum(theirs)):
        if len(theirs) != len(chunks):
            raise ValueError(f"sample_weight must have as many blocks as X, {len(chunks)}, got {len(theirs)}")
        return sample_weight, False
    if sum(theirs) != n_samples:
        raise ValueError(f"sample_weight.shape == {sample_weight.shape}, expected {(n_samples,)}!")
    return sample_weight, True


def observed(t: Any, n_samples: int, n_positive: int, n_features: int) -> None:
    """Check that a Dask X, now computed, has rows, and some of positive weight."""
    if not n_samples:
        raise ValueError(
            f"Found array with 0 sample(s) (shape=(0, {n_features})) while a minimum of 1 is required by "
            f"{type(t).__name__}."
        )
    if not n_positive:
        raise ValueError(ALL_ZERO)


def sliceable(X: Any, p: Parameters) -> Any:
    """X of fit in batches, as something that gives rows."""
    if is_lazy(X):
        if hasattr(X, "columns") or math.isnan(X.shape[0]):
            known = "to_dask_array(lengths=True)" if hasattr(X, "columns") else "compute_chunk_sizes()"
            raise ValueError(f"batch_size needs a Dask X that knows its number of rows: X.{known}")
        return X
    if issparse(X):
        stays_sparse(X, p)
        return X.tocsr()
    return X if hasattr(X, "__getitem__") else np.asarray(X)


def _checks(X: Any, p: Parameters) -> dict[str, Any]:
    """Options of scikit-learn's validation."""
    if isinstance(X, OpaqueBatch):
        return {"skip_check_array": True}
    # Numbers of any kind are converted a piece at a time; anything else, all at once.
    numeric = isinstance(X, np.ndarray) and _layout.is_read(X.dtype.newbyteorder("="))
    return {
        "accept_sparse": ("csr", "csc"),
        "dtype": None if numeric else FLOATS,
        "ensure_all_finite": False,
        "allow_nd": p.channel_axis is not None,
    }


def plain(fitted: Mapping[str, Any], X: Any) -> NDArray[Any] | None:
    """The array that scikit-learn's validation, 70 us, would make of X with nothing to say; None if it might say more.

    Parameters
    ----------
    fitted : mapping of str to object
        Attributes of the fitted transformer.
    X : object
        A plain array of float32 or float64, or a frame with the very columns of fit.
    """
    names = fitted.get("feature_names_in_")
    if type(X) is not np.ndarray:
        X = numbers_of_frame(X, names)
        if X is None:
            return None
    elif names is not None:
        return None
    fits = X.ndim == 2 and X.shape[1] == fitted["n_features_in_"] and len(X) > 0
    return X if fits and X.dtype in (np.float32, np.float64) else None


def stays_sparse(X: Any, p: Parameters, verb: str = "center") -> None:
    """Sparse data stays sparse, so nothing can be added to it."""
    if not issparse(X):
        return
    if p.with_mean:
        raise ValueError(f"Cannot {verb} sparse matrices: pass `with_mean=False` instead, or make X dense.")
    if p.beta is not None and np.any(p.beta):
        raise ValueError("Cannot shift sparse matrices: beta must be 0 everywhere, or X dense.")


ALL_ZERO = "Sample weights must contain at least one non-zero number; sample_weight is all 0."


def sample_weight(sample_weight: Any, X: Any) -> NDArray[np.float64] | None:
    """Weights as contiguous float64: finite, not negative, not all 0."""
    if sample_weight is None:
        return None
    if library_of(sample_weight) is not None:
        raise TypeError(f"sample_weight must be in CPU memory, got a device array: {type(sample_weight).__name__}")
    if foreign_namespace(sample_weight) is not None:
        sample_weight = _shared("sample_weight", sample_weight)
    if isinstance(sample_weight, np.ma.MaskedArray):
        sample_weight = sample_weight.filled(0)
    sample_weight = numbers_only("sample_weight", sample_weight)
    # scikit-learn looks at the number of samples alone.
    return _not_all_zero(sample_weight, np.empty((len(X), 0)) if isinstance(X, OpaqueBatch) else X)


def _not_all_zero(sample_weight: Any, X: Any) -> NDArray[np.float64]:
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    if not np.any(weights):
        raise ValueError(ALL_ZERO)
    return np.ascontiguousarray(weights)


def to_transform(t: Any, X: Any, p: Parameters, *, only_read: bool = False) -> Samples:
    """X of transform, of the fitted width and names."""
    given = samples(X, p.channel_axis)
    if not only_read and isinstance(given.X, DeviceBatch) and t.dtype is not None:
        raise TypeError(f"dtype={t.dtype!r} is for arrays in CPU memory, got a device array; dtype=None keeps its own")
    if not only_read and wrapped(t) and (p.channel_axis is not None or isinstance(given.X, DeviceBatch)):
        kind = "with channel_axis the result is an" if p.channel_axis is not None else "the result is a device"
        raise ValueError(f"{kind} array; set_output(transform='default') first")
    if is_lazy(X):
        if wrapped(t):
            raise ValueError("with a Dask X the result is Dask's; set_output(transform='default') first")
        known = _known(given.X, p)
        if p.channel_axis is not None:
            _same_width(t, given)
        validate_data(t, **known, reset=False)
        return given
    numbers = plain(vars(t), given.X)
    if numbers is not None:
        return given._replace(X=numbers)
    if p.channel_axis is not None:
        _same_width(t, given)
    X = _validated(t, given.X, p, reset=False)
    stays_sparse(X, p)
    return given._replace(X=X)


def to_report(t: Any, X: Any, p: Parameters) -> Any:
    """X of report, as that of transform; of Dask, it would be read several times."""
    if is_lazy(X):
        raise TypeError("report takes data in memory, got a Dask collection; compute() some of it first")
    return to_transform(t, X, p, only_read=True).X


def to_invert(t: Any, X: Any, p: Parameters) -> Samples:
    """X of inverse_transform; without names, which a transformed array has lost."""
    given = samples(X, p.channel_axis)
    if is_lazy(X):
        known = _known(given.X, p)
        check_array(known.pop("X"), estimator=t, input_name="X", **known)
        _same_width(t, given)
        return given
    if not isinstance(given.X, DeviceBatch):
        given = given._replace(X=check_array(given.X, estimator=t, input_name="X", **_checks(given.X, p)))
    _same_width(t, given)
    stays_sparse(given.X, p, "uncenter")
    return given


def _same_width(t: Any, given: Samples) -> None:
    n_features, axis = given.X.shape[1], given.channel_axis
    if n_features != t.n_features_in_:
        where = "" if axis is None else f": channel_axis={axis} of shape {given.back(given.X).shape}"
        expected = f"{type(t).__name__} is expecting {t.n_features_in_} features as input"
        raise ValueError(f"X has {n_features} features, but {expected}{where}")


def wrapped(t: Any) -> bool:
    """Whether `set_output`, its own or that of all, asks for another result than an array."""
    config = getattr(t, "_sklearn_output_config", {}).get("transform", get_config()["transform_output"])
    return config != "default"


def finite_moments(t: Any, X: Any, moments: Moments, names: Any, first_row: int | None = 0) -> None:
    """Refuse moments that are not finite, of the batch X or of all that was seen; say where the infinity is."""
    overflown = ~np.isfinite(moments.m2 + moments.mean)
    if not np.any(overflown):
        return
    if X is not None:
        infinity(t, X, names, first_row, certain=False)
    columns = _some(np.flatnonzero(overflown) + _first_column(t), names)
    raise ValueError(
        f"the variance of X overflows float64 in column(s) {columns}; scale the data, or sample_weight, first"
    )


def infinity(t: Any, X: Any, names: Any, first_row: int | None = 0, *, certain: bool = True) -> None:
    """Refuse X for its infinities, naming rows and columns; if `certain`, even if they have been overwritten.

    `t` is a transformer, or the `Block` that X is; a `first_row` of None says that others may lie before it.
    """
    first, infinite = np.zeros(0, np.intp), np.zeros(X.shape[1], bool)
    for rows, columns in _infinities(X):
        if len(first) <= 5:
            first = np.union1d(first, rows)[:6]
        infinite[columns] = True
    where = ""
    if len(first):
        words = ("row(s)", "column(s)") if t.channel_axis is None else ("sample(s)", "channel(s)")
        found = _some(np.flatnonzero(infinite) + _first_column(t), names)
        of_block = " of a block" if first_row is None else ""
        where = f": {words[0]} {_some(first + (first_row or 0))}{of_block}, {words[1]} {found}"
    elif not certain:
        return
    raise ValueError(
        f"Input X contains infinity or a value too large for {X.dtype!r}{where}. "
        f"{t.estimator if isinstance(t, Block) else type(t).__name__} takes NaN as missing, but not infinity."
    )


def _first_column(t: Any) -> int:
    return t.first_column if isinstance(t, Block) else 0


def _infinities(X: Any) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Rows and columns of the infinities, a piece of X at a time."""
    if issparse(X):
        for part in _batches.entries(X):
            infinite = np.isinf(X.data[part])
            yield _batches.rows(X, part)[infinite], _batches.columns(X, part)[infinite]
        return
    for part in _batches.pieces(X):
        values = X[part].in_memory() if isinstance(X, OpaqueBatch) else X[part]
        rows, columns = np.nonzero(np.isinf(values))[:2]
        yield rows + part.start, columns


def _some(indices: NDArray[Any], names: Any = None) -> str:
    shown = (str(i) if names is None else f"{i} ({names[i]!r})" for i in indices[:5])
    return ", ".join(shown) + (", ..." if len(indices) > 5 else "")


def two_values(t: Any, n_values: NDArray[np.float64], single: bool, count: NDArray[np.float64], ddof: float) -> None:
    """Momentum mode averages batch variances, so a batch needs two values of a feature it has at all."""
    short = np.flatnonzero(n_values == 1)
    if single or len(short):
        where = "n_samples=1" if single else f"one value in column(s) {_some(short)}"
        raise ValueError(
            f"with momentum a batch needs at least two values per feature, got {where}; halflife accepts single rows"
        )
    short = np.flatnonzero((count > 0) & (count <= ddof))
    if len(short):
        raise ValueError(
            f"with momentum a batch needs more than ddof={t.ddof} values, or total sample_weight, per feature; "
            f"got {count[short[0]]:g} in column(s) {_some(short)}"
        )


def loaded_mode(saved: str, wanted: str) -> None:
    """The statistics of a state file are of the kind of its parameters."""
    if (saved, wanted) != (INFERENCE, "cumulative"):
        same_mode(saved, wanted)


def same_mode(fitted: str, wanted: str) -> None:
    """Running statistics of one kind cannot be continued as another."""
    if fitted == INFERENCE:
        raise ValueError(
            "partial_fit cannot continue the statistics of a layer, which does not tell how many samples they are of; "
            "give from_torch or from_keras a momentum, or call fit"
        )
    if fitted != wanted:
        raise ValueError(
            f"partial_fit cannot continue {fitted} statistics in {wanted} mode; "
            "call fit after changing momentum or halflife"
        )


def out_of_transform(t: Any, given: Samples, out: Any) -> Any:
    """`out` of transform in the axes of `given.X`."""
    if wrapped(t):
        raise ValueError("out is only for NumPy output; set_output(transform='default') first")
    if isinstance(given.X, DeviceBatch):
        return out
    if given.xp is not None or issparse(given.X) or is_lazy(given.X):
        foreign = "a Dask collection" if is_lazy(given.X) else "a sparse matrix"
        kind = foreign if given.xp is None else f"an array of {given.xp.__name__}"
        raise TypeError(f"out is only for dense NumPy input, got {kind}")
    x = given.back(given.X)
    like("out", out, x, _layout.result_dtype(x.dtype, dtype(t.dtype)), writeable=True)
    return out if given.channel_axis is None else _layout.channels_second(out, given.channel_axis)


def mergeable(t: Any, other: Any) -> None:
    """Check that `t` can take in what `other` has seen."""
    if not isinstance(other, type(t)):
        raise TypeError(f"other must be a {type(t).__name__}, got {type(other).__name__}")
    for name, side in (("self", t), ("other", other)):
        modes = [parameters(side).mode] + ([side._learned.mode] if hasattr(side, "_learned") else [])
        kind = next((m for m in modes if m != "cumulative"), None)
        if kind == INFERENCE:
            raise ValueError(f"merge needs the number of samples of both, which the layer that is {name} does not tell")
        if kind is not None:
            raise ValueError(f"merge needs cumulative statistics, whose order does not matter; {name} uses {kind}")
    for name in ("ddof", "channel_axis"):
        if getattr(t, name) != getattr(other, name):
            raise ValueError(f"other must have {name}={getattr(t, name)}, got {getattr(other, name)}")
    if not hasattr(t, "_learned") or not hasattr(other, "_learned"):
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


def statistics(
    mean: Any, var: Any, n_samples: Any, ddof: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean, variance and count of each feature of from_statistics, as new arrays; 0 where nothing was observed."""
    n_features = np.size(mean)
    mean, var = required("mean", mean, n_features), variances("var", var, n_features)
    if not n_features:
        raise ValueError("mean must have shape (n_features,) with at least one feature, got an empty array")
    per_feature = np.full(n_features, n_samples) if np.ndim(n_samples) == 0 else n_samples
    count = required("n_samples", per_feature, n_features)
    if not np.all(count >= 0) or np.any(np.isinf(count)):
        raise ValueError(f"n_samples must be finite and not negative, got {n_samples}")
    seen = count > 0
    for name, values in (("mean", mean), ("var", var)):
        bad = np.flatnonzero(seen & ~np.isfinite(values))
        if len(bad):
            raise ValueError(f"{name} must be finite where n_samples is not 0, got {values[bad[0]]} at {_some(bad)}")
    few = np.flatnonzero(seen & (count <= ddof))
    if len(few):
        raise ValueError(f"n_samples must be above ddof={ddof:g}, got {count[few[0]]:g} at {_some(few)}")
    return np.where(seen, mean, 0.0), np.where(seen, var, 0.0), count


STATE = {"parameters", "in_effect", "mode", "n_features_in", "feature_names_in", "n_samples_seen", "n_batches_seen"}


def state(content: dict[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Check what a state file holds, apart from the parameters; its arrays per feature."""
    per_feature = (*Moments._fields, "age")
    if set(content) != STATE | set(per_feature):
        raise ValueError(f"it has the entries {sorted(content)}")
    n_features, names, n_batches = (content[key] for key in ("n_features_in", "feature_names_in", "n_batches_seen"))
    if not (_is_whole(n_features, 1) and _is_whole(n_batches, 1)):
        raise ValueError(f"n_features_in and n_batches_seen must be whole numbers, got {n_features} and {n_batches}")
    if names is not None and not (_is_list(names, n_features) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"feature_names_in must be null or {n_features} strings")
    arrays = {}
    for key in per_feature:
        values = content[key]
        missing = [value is None for value in values] if key == "mean" and _is_list(values, n_features) else []
        if any(missing):
            values = [0.0 if value is None else value for value in values]
        if not (_is_list(values, n_features) and all(_is_number(value) for value in values)):
            raise ValueError(f"{key} must be {n_features} numbers")
        arrays[key] = np.array(values, dtype=np.float64)
        if key in ("count", "m2", "age") and np.any(arrays[key] < 0):
            raise ValueError(f"{key} must not be negative")
        if any(missing) and np.any(arrays["count"][missing]):
            raise ValueError("mean must not be null where count is not 0")
    seen = content["n_samples_seen"]
    seen = seen if isinstance(seen, list) else [seen] * n_features
    if not (_is_list(seen, n_features) and all(_is_number(value) and value >= 0 for value in seen)):
        raise ValueError(f"n_samples_seen must be a number that is not negative, or {n_features} of them")
    return arrays


def _is_whole(value: Any, low: int) -> bool:
    return type(value) is int and low <= value < 2**53


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length
