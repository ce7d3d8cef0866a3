"""The door: what X is, whatever it came as, and checks of it. Only infinities are found by the kernels (`_infinities`).

`samples` views X as (samples, channels, ...) before scikit-learn validates it, and remembers the way back.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn import get_config
from sklearn.utils import _safe_indexing, check_array
from sklearn.utils.validation import _get_feature_names, validate_data

from bncpu import _foreign, _layout, state
from bncpu._batches import Batch, Dense, Lazy, Sparse
from bncpu._checks import like
from bncpu._compat import as_table, foreign_namespace, is_lazy, numbers_of_frame, numbers_of_table
from bncpu._device import DeviceBatch
from bncpu._infinities import some
from bncpu._scalars import shown
from bncpu.gpu._library import library_of
from bncpu.running import Kind
from bncpu.state import Parameters

FLOATS = (np.float64, np.float32, np.float16)

ALL_ZERO = "Sample weights must contain at least one non-zero number; sample_weight is all 0."


class Samples(NamedTuple):
    """Data with samples on axis 0 and channels on axis 1, and what leads back to the form it came in."""

    X: Any
    channel_axis: int | None = None
    xp: Any = None
    device: Any = None

    @property
    def lazy(self) -> bool:
        """Whether X is a collection of Dask, not yet a batch."""
        return is_lazy(self.X)

    def back(self, y: Any) -> Any:
        """`y`, made from `X`, as the caller gave it: axes and array library."""
        if self.channel_axis is not None:
            y = _layout.channels_back(y, self.channel_axis)
        return y if self.xp is None else self.xp.asarray(y, device=self.device)


def as_batch(X: Any) -> Batch:
    """X, validated: a batch as it is, anything else as a `Lazy`, `Sparse` or `Dense` one."""
    if isinstance(X, Batch):
        return X
    if is_lazy(X):
        return Lazy(X)
    if issparse(X):  # scikit-learn leaves the booleans of a sparse frame as they are
        return Sparse(X if X.dtype.kind == "f" else X.astype(np.float64))
    return Dense(X)


def as_array(X: Any) -> Any:
    """The array in memory that X is, memory maps included; None if it is anything else, subclasses included."""
    if type(X) is np.ndarray:
        return X
    return X.view(np.ndarray) if type(X) is np.memmap else None


def rows(X: Any, part: slice) -> Any:
    """The rows `part` of an array, frame, sparse matrix or list."""
    if type(X) is np.ndarray or isinstance(X, Batch):
        return X[part]
    # polars and pyarrow. Before 1.9 scikit-learn could not slice tables of pyarrow.
    if callable(getattr(X, "slice", None)):
        return X.slice(part.start, part.stop - part.start)
    if is_lazy(X):
        return X[part]
    return _safe_indexing(X, part)


def samples(X: Any, channel_axis: int | None) -> Samples:
    """X before scikit-learn's validation, which knows no channel axis and keeps foreign arrays as they are."""
    if channel_axis is None and isinstance(X, np.ndarray) and X.ndim > 2:
        raise ValueError(
            f"Found array with dim {X.ndim}, while dim <= 2 is required; for shape {X.shape} say by channel_axis which "
            "axis holds the features: 1 for images (N, C, H, W)"
        )
    X = numbers_only("X", X if type(X) is np.ndarray else as_table(X))
    if type(X) is np.ndarray and channel_axis is None:
        return Samples(X)
    if library_of(X) is not None:
        return Samples(_on_device(X, channel_axis))
    if is_lazy(X):
        return _lazy_samples(X, channel_axis)
    xp, device = foreign_namespace(X), None
    if xp is not None:
        X, device = _foreign.shared("X", X), X.device
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


# Types of NumPy, pandas, polars and pyarrow whose names begin so: they convert to float, and are no numbers. The last
# one is in columns of pandas, which cannot read it.
NO_NUMBERS = ("date", "time", "duration", "period", "interval", "month_day_nano", "run_end_encoded")


def numbers_only(name: str, X: Any) -> Any:
    """X, if it holds no dates, durations or records; a masked array as an array with NaN where it is masked."""
    if type(X) is np.ndarray and X.dtype.kind in "biuf":
        return X
    if isinstance(X, (str, bytes, os.PathLike)) or hasattr(X, "readline"):
        raise TypeError(
            f"{name} must be an array or a frame, got {shown(X)}; read a file first, or learn from it by `bncpu fit`"
        )
    _refuse_a_query(name, X)
    if issparse(X):
        X = X if X.format in ("csr", "csc", "bsr", "coo") else X.tocsr()
        _refuse_entries_outside(name, X)
    if isinstance(X, (Mapping, Set, Iterator)) and not hasattr(X, "shape"):
        raise TypeError(f"{name} must be an array, a frame or a sparse matrix, got a {type(X).__name__}")
    _foreign.no_gradients(name, X)
    if isinstance(X, (list, tuple)) and any(isinstance(row, np.ma.MaskedArray) for row in X):
        X = np.ma.array(X)
        _refuse_no_numbers(name, [(None, X.dtype)], X)
    elif isinstance(X, (list, tuple)):
        try:
            values = np.asarray(X)
        except ValueError:  # rows of several lengths: scikit-learn says so
            return X
        _refuse_no_numbers(name, [(None, values.dtype)], values)
        if values.dtype == np.float64:
            return values  # not converted once more
    elif hasattr(X, "columns") and hasattr(X, "dtypes") and len(X.shape) == 2:
        types = list(zip(X.columns, X.dtypes, strict=True))
        _refuse_no_numbers(name, types, None)
        for k, (column, dtype) in enumerate(types if hasattr(X, "iloc") and not is_lazy(X) else ()):
            if _is_of_objects(dtype):
                _refuse_no_numbers(name, [(column, dtype)], X.iloc[:, k].to_numpy())
    elif hasattr(getattr(X, "schema", None), "types"):
        _refuse_no_numbers(name, zip(X.schema.names, X.schema.types, strict=True), None)
    elif hasattr(X, "dtype"):
        cells = np.asarray(X) if _is_of_objects(X.dtype) and not is_lazy(X) else None
        _refuse_no_numbers(name, [(None, X.dtype)], cells)
        if isinstance(X, np.ndarray) and X.dtype.kind == "T":  # scikit-learn knows NumPy's older strings
            return X.astype(object)
    elif hasattr(X, "type"):  # of pyarrow
        _refuse_no_numbers(name, [(None, X.type)], None)
    return _with_gaps(X) if isinstance(X, np.ma.MaskedArray) else X


def _refuse_a_query(name: str, X: Any) -> None:
    """A LazyFrame of polars warns if it is asked for its columns."""
    if hasattr(X, "collect_schema") and not hasattr(X, "shape"):
        raise TypeError(f"{name} must be in memory, got a {type(X).__name__}; collect() it first")


def _refuse_no_numbers(name: str, types: Iterable[tuple[Any, Any]], values: Any) -> None:
    types = [(column, _of_values(given)) for column, given in types]
    other = [
        (column, dtype)
        for column, dtype in types
        if str(dtype).lower().startswith(NO_NUMBERS) or (isinstance(dtype, np.dtype) and dtype.type is np.void)
    ]
    if not other and values is not None and _is_of_objects(values.dtype):
        other = [(types[0][0], _kind_of(v)) for v in values.flat if _is_no_number(v)]
    for column, dtype in types:
        if getattr(dtype, "kind", "") == "c":
            of = "" if column is None else f" in column {shown(column)}"
            raise ValueError(f"Complex data not supported: {name} must hold real numbers, got {dtype}{of}")
    if other:
        where = ", ".join(str(d) if column is None else f"column {shown(column)} ({d})" for column, d in other[:5])
        raise TypeError(
            f"{name} must hold numbers, got {where}; leave it out, or make numbers of it, such as days since a date"
        )


def _of_values(dtype: Any) -> Any:
    """The type of the values: of categories, and of what Arrow encodes, that of what they stand for."""
    arrow = getattr(dtype, "pyarrow_dtype", dtype)
    if arrow is not dtype and hasattr(arrow, "run_end_type"):
        return dtype
    found = getattr(getattr(dtype, "categories", None), "dtype", getattr(arrow, "value_type", None))
    return dtype if found is None else found


def _is_of_objects(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind == "O"


def _is_no_number(cell: Any) -> bool:
    """Whether a float can be made of a cell of an array of objects, though it is no number."""
    return isinstance(cell, (np.ndarray, np.generic)) and cell.dtype.type in (np.datetime64, np.timedelta64, np.void)


def _kind_of(cell: Any) -> str:
    return str(cell.dtype) if isinstance(cell, np.ndarray) else type(cell).__name__


def _refuse_entries_outside(name: str, X: Any) -> None:
    """Refuse a CSR, CSC, BSR or COO matrix with entries outside its shape. SciPy makes one; loops would write there."""
    if X.format == "coo":
        indices, sizes, n_stored = X.coords, X.shape, len(X.data)
    else:
        blocks = [n // of for n, of in zip(X.shape, getattr(X, "blocksize", (1, 1)), strict=True)]
        n_major, n_minor = blocks[::-1] if X.format == "csc" else blocks
        ends = X.indptr
        if len(ends) != n_major + 1 or ends[0] != 0 or np.any(ends[:-1] > ends[1:]):
            raise ValueError(f"{name} must be a sparse matrix whose indptr fits its shape {X.shape}")
        indices, sizes, n_stored = (X.indices,), (n_minor,), int(ends[-1])
    for own, n in zip(indices, sizes, strict=True):
        if min(len(own), len(X.data)) < n_stored:
            raise ValueError(f"{name} must be a sparse matrix with a value for each of its indices")
        some = own[:n_stored]
        if n_stored and (some.min() < 0 or some.max() >= n):
            odd = some[(some < 0) | (some >= n)][0]
            raise ValueError(f"{name} must be a sparse matrix with entries in its shape {X.shape}, got the index {odd}")


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
    if 0 in X.shape and X.ndim > 2:
        raise ValueError(f"X must hold at least one value, got shape {X.shape}")
    return Samples(_layout.channels_second(X, channel_axis), channel_axis)


def stream(t: Any, batches: Any) -> Any:
    """An iterator over batches; one array, frame or file is refused, except an array (n_batches, N, C)."""
    _refuse_a_query("batches", batches)
    several = getattr(batches, "ndim", 3) == 3 and getattr(t, "channel_axis", None) is None
    one_array = getattr(getattr(batches, "dtype", None), "kind", "O") != "O" and not several
    if one_array or isinstance(batches, (str, bytes, os.PathLike, Mapping)) or hasattr(batches, "columns"):
        raise TypeError(
            f"batches must be an iterable of batches, got one {type(batches).__name__}; "
            "for one batch use fit or partial_fit, for files the command `bncpu fit`"
        )
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise TypeError(f"batches must be an iterable of batches, got {shown(batches)}")
    return iter(batches)


def of_stream(item: Any, key: Any = None) -> Any:
    """The batch in what an iterable gives: what `key` says, or of a tuple, ``(X, y)``, X. A tensor in CPU memory
    becomes an array.
    """
    if key is not None:
        try:
            item = key(item) if callable(key) else item[key]
        except (IndexError, KeyError, TypeError) as error:
            what = f"key={shown(key)} must be that of a part of each batch, a {type(item).__name__}"
            kind = next(kind for kind in (IndexError, KeyError, TypeError) if isinstance(error, kind))
            raise kind(f"{what}: {error!r}") from error
    elif isinstance(item, Mapping) and not hasattr(item, "columns"):
        raise TypeError(f"each batch must be an array or a frame, got a {type(item).__name__}; say by key= which part")
    elif (isinstance(item, tuple) and len(item)) or (isinstance(item, list) and _is_pair(item)):
        item = item[0]
    if isinstance(item, (str, bytes, numbers.Number)):
        raise TypeError(
            f"each batch must be an array or a frame, got {shown(item)}; of tuples the first is taken, key= names "
            "another"
        )
    tensor = hasattr(item, "__dlpack_device__") and not isinstance(item, np.ndarray)
    if not tensor or foreign_namespace(item) is not None or item.__dlpack_device__()[0] != _foreign.CPU:
        return item
    return _foreign.shared("each batch", item)


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
    """Refuse a stream without batches."""
    if not n_batches:
        raise ValueError("batches must hold at least one batch, got none")


def batch(t: Any, X: Any, p: Parameters, *, reset: bool) -> Batch:
    """X of fit and partial_fit as a batch that the kernels can convert; sets scikit-learn's attributes on `t`.

    Infinities are not looked for: the kernels find them in the pass they make anyway.
    """
    if is_lazy(X):
        validate_data(t, **_known(X, p), reset=reset)
    else:
        known = None if reset else plain(vars(t), X)
        X = _validated(t, X, p, reset=reset) if known is None else known
    return as_batch(X)


def _validated(t: Any, X: Any, p: Parameters, *, reset: bool) -> Any:
    """By scikit-learn: width, names and numbers."""
    numbers = numbers_of_table(X)
    if numbers is None:
        with _naming_what_is_no_number(X):
            return validate_data(t, X, reset=reset, **_checks(X, p))
    validate_data(t, X, reset=reset, skip_check_array=True)
    return check_array(numbers, estimator=t, input_name="X", **_checks(numbers, p))


def _refuse_other_than_2_axes(X: Any) -> None:
    """Say what scikit-learn says of data that are not 2-D, but without all their values."""
    try:
        shape = np.shape(X)
    except (TypeError, ValueError):  # rows of several lengths
        return
    if not shape and not isinstance(X, (numbers.Number, np.ndarray)):
        raise TypeError(f"X must be an array, a frame or a sparse matrix, got {shown(X)}") from None
    if len(shape) < 2:
        raise ValueError(
            f"Expected 2D array, got {len(shape)}D array instead, of shape {shape}. Reshape your data: "
            "numpy.reshape(X, (-1, 1)) if it is one feature, (1, -1) if it is one sample"
        ) from None


def _refuse_other_than_numbers(X: Any) -> None:
    """A pandas DataFrame must have columns of numbers only."""
    numbers_only = X.select_dtypes(["number", "bool", "boolean"], exclude="timedelta")
    other = [f"{shown(name)} ({X.dtypes[name]})" for name in X.columns if name not in numbers_only.columns]
    if other:
        raise ValueError(
            f"X must hold numbers, got column(s) {', '.join(other[:5])}; leave them out, as "
            "X.select_dtypes('number') does"
        ) from None


@contextmanager
def _naming_what_is_no_number(X: Any, at: Block | None = None) -> Iterator[None]:
    """Where scikit-learn's conversion fails, say for which value of X, or of the block of X at some place."""
    try:
        yield
    except RuntimeError as error:  # of tensors that cannot be arrays
        raise TypeError(f"X must be an array in memory, got a {type(X).__name__}: {error}") from None
    except (OverflowError, TypeError, ValueError) as error:
        if at is None:
            _refuse_other_than_2_axes(X)
        if hasattr(X, "select_dtypes") and "could not convert" in str(error):
            _refuse_other_than_numbers(X)
        if not isinstance(error, ValueError) or "convert" in str(error) or "sequence" in str(error):
            _name_what_is_no_number(X, at)
        raise


def _name_what_is_no_number(X: Any, at: Block | None) -> None:
    """Say which value of a frame, or of an array of objects, is no number, and where."""
    first_row, first_column = (0, 0) if at is None else (at.first_row, at.first_column)
    of_block = " of a block" if first_row is None else ""
    if hasattr(X, "columns") and not callable(X.columns) and not isinstance(X, np.ndarray):
        names = getattr(X, "column_names", X.columns)  # of pyarrow, of others
        columns = [(shown(name), X[name]) for name in names] if len(set(names)) == len(names) else []
    elif isinstance(X, (np.ndarray, list, tuple)) and np.ndim(X) == 2 and np.asarray(X).dtype.kind in "OSU":
        columns = [(str(first_column + c), column) for c, column in enumerate(np.asarray(X).T)]
    else:
        return
    for name, column in columns:
        values = np.asarray(column)
        if values.ndim == 1 and values.dtype.kind in "biuf":
            continue
        for row, value in enumerate(values.astype(object), start=first_row or 0):
            try:
                if np.ndim(value):
                    raise TypeError("it is not one value")
                float(np.nan if value is None else value)
            except (OverflowError, TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                place = f"row {row}{of_block} of column {name}"
                raise kind(f"X must hold numbers, got {shown(value)} in {place}: {error!s:.100}") from None


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
    with _naming_what_is_no_number(X, at):
        X = check_array(X, estimator=at.estimator, input_name="X", **least, **_checks(X, at.parameters))
    stays_sparse(X, at.parameters)
    if X.shape[1] != at.n_features:
        raise ValueError(f"X must have {at.n_features} features in every block, got a block of shape {X.shape}")
    return X


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
    if isinstance(X, Batch):
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
    """What scikit-learn's validation, which takes 70 us, returns for an X that it has nothing to say about; else None.

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


def rows_in_memory(X: Batch, weights: Any, kind: Kind) -> None:
    """Refuse X whose rows are not here, for a kind of running statistics that looks at them one by one."""
    if kind.has_times and isinstance(X, Lazy):
        raise TypeError("times are for an X in memory, got a Dask collection; partial_fit its blocks one by one")
    if kind.keeps_rows and np.ndim(weights) > 1:
        raise ValueError(
            "with window, sample_weight must have one weight per sample; let what does not count be NaN in X"
        )
    if kind.keeps_rows and isinstance(X, (Sparse, Lazy)):
        got = "a sparse matrix" if isinstance(X, Sparse) else "a Dask collection"
        raise TypeError(f"window keeps rows, for which X must be dense and in memory; got {got}")


def stays_sparse(X: Any, p: Parameters, verb: str = "center") -> None:
    """Refuse to center or shift sparse data, which would be sparse no longer."""
    if not issparse(X) and not isinstance(X, Sparse):
        return
    if p.with_mean:
        raise ValueError(f"Cannot {verb} sparse matrices: pass `with_mean=False` instead, or make X dense.")
    if p.beta is not None and np.any(p.beta):
        raise ValueError("Cannot shift sparse matrices: beta must be 0 everywhere, or X dense.")


def to_transform(t: Any, X: Any, p: Parameters, *, only_read: bool = False) -> Samples:
    """X of transform, as a batch of the fitted width and names."""
    given = samples(X, p.channel_axis)
    if not only_read and isinstance(given.X, DeviceBatch) and t.dtype is not None:
        raise TypeError(f"dtype={t.dtype!r} is for arrays in CPU memory, got a device array; dtype=None keeps its own")
    if not only_read and isinstance(given.X, DeviceBatch) and p.clip is not None:
        raise TypeError(f"clip={p.clip!r} is for arrays in CPU memory, got a device array; clip the result instead")
    if not only_read:
        _can_be_wrapped(t, given, p)
    if is_lazy(X):
        known = _known(given.X, p)
        if p.channel_axis is not None:
            _same_width(t, given)
        validate_data(t, **known, reset=False)
        return given._replace(X=Lazy(given.X))
    numbers = plain(vars(t), given.X)
    if numbers is not None:
        return given._replace(X=Dense(numbers))
    if p.channel_axis is not None:
        _same_width(t, given)
    X = _validated(t, given.X, p, reset=False)
    batch = as_batch(X)
    stays_sparse(batch, p)
    return given._replace(X=batch)


def _can_be_wrapped(t: Any, given: Samples, p: Parameters) -> None:
    """Refuse `set_output` where the result cannot be a frame."""
    kinds = {
        "with channel_axis the result is an array": p.channel_axis is not None,
        "the result is a device array": isinstance(given.X, DeviceBatch),
        "with a Dask X the result is Dask's": given.lazy,
    }
    kind = next((kind for kind, is_so in kinds.items() if is_so), None)
    if kind is not None and wrapped(t):
        raise ValueError(f"{kind}; set_output(transform='default') first")


def to_report(t: Any, X: Any, p: Parameters) -> Batch:
    """X of report, as that of transform; Dask is refused, as it would be read several times."""
    if is_lazy(X):
        raise TypeError("report takes data in memory, got a Dask collection; compute() some of it first")
    batch: Batch = to_transform(t, X, p, only_read=True).X
    return batch


def to_invert(t: Any, X: Any, p: Parameters) -> Samples:
    """X of inverse_transform, as a batch. Names must be those of fit, in their order; an array has lost them."""
    given = samples(X, p.channel_axis)
    _can_be_wrapped(t, given, p)
    if is_lazy(X):
        known = _known(given.X, p)
        _same_width(t, given)
        _same_names(t, known["X"], p)
        check_array(known.pop("X"), estimator=t, input_name="X", **known)
        return given._replace(X=Lazy(given.X))
    if not isinstance(given.X, DeviceBatch):
        if hasattr(given.X, "columns"):
            _same_width(t, given)
        _same_names(t, given.X, p)
        numbers = numbers_of_table(given.X)
        numbers = given.X if numbers is None else numbers
        with _naming_what_is_no_number(given.X):
            given = given._replace(X=check_array(numbers, estimator=t, input_name="X", **_checks(numbers, p)))
    _same_width(t, given)
    batch = as_batch(given.X)
    stays_sparse(batch, p, "uncenter")
    return given._replace(X=batch)


def _same_names(t: Any, X: Any, p: Parameters) -> None:
    """Check the names that X has against those of fit, or else against those that `set_output` gives to results."""
    names = _get_feature_names(X) if p.channel_axis is None else None
    if names is None:
        return
    if hasattr(t, "feature_names_in_"):
        validate_data(t, X, reset=False, skip_check_array=True)
        return
    given = t.get_feature_names_out()
    if set(names) == set(given) and not np.array_equal(names, given):
        raise ValueError(
            f"X must have its columns in the order of transform, {', '.join(given[:5])}; got {', '.join(names[:5])}"
        )


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


def out_of_transform(t: Any, given: Samples, out: Any) -> Any:
    """`out` of transform in the axes of `given.X`."""
    if wrapped(t):
        raise ValueError("out is only for NumPy output; set_output(transform='default') first")
    batch: Batch = given.X
    if isinstance(batch, DeviceBatch):
        return out
    if given.xp is not None or batch.dense is None:
        foreign = "a Dask collection" if batch.lazy else "a sparse matrix"
        kind = foreign if given.xp is None else f"an array of {given.xp.__name__}"
        raise TypeError(f"out is only for dense NumPy input, got {kind}")
    x = given.back(batch.dense)
    like("out", out, x, _layout.result_dtype(x.dtype, state.dtype(t.dtype)), writeable=True)
    return out if given.channel_axis is None else _layout.channels_second(out, given.channel_axis)


def invertible(t: Any, scale: NDArray[np.float64]) -> None:
    """Refuse a gamma of 0, by which inverse_transform would divide."""
    if np.any(scale == 0):
        columns = some(np.flatnonzero(scale == 0))
        raise ValueError(f"inverse_transform needs a non-zero gamma, got 0 in column(s) {columns}")
