"""All that depends on the version of scikit-learn or on its private names, and DataFrames without their libraries."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config
from sklearn.utils._array_api import get_namespace

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """No callbacks."""

    def with_callbacks(method: Any) -> Any:
        """Leave `method` as it is."""
        return method


__all__ = [
    "UNWATCHED",
    "CallbackSupportMixin",
    "as_table",
    "fit_task",
    "foreign_namespace",
    "frame_library",
    "is_lazy",
    "is_watched",
    "numbers_of_frame",
    "numbers_of_table",
    "with_callbacks",
]


class _Unwatched:
    """The callback context of an estimator without callbacks: does nothing."""

    def call_on_fit_task_begin(self, **_: Any) -> None:
        """Do nothing."""

    def call_on_fit_task_end(self, **_: Any) -> bool:
        """Do nothing; never ask to stop."""
        return False

    def subcontext(self, task_name: str) -> _Unwatched:
        """A part of this task."""
        return self


UNWATCHED = _Unwatched()


def is_watched(estimator: Any) -> bool:
    """Whether the estimator, or the one around it, has callbacks. A Pipeline has a context without any, too."""
    if hasattr(estimator, "_skl_callbacks"):
        return True
    context = getattr(estimator, "_parent_callback_ctx", None)
    return context is not None and bool(getattr(context, "_callbacks", True))


def fit_task(estimator: Any, n_batches: int) -> Any:
    """The callback context of a fit in `n_batches` steps; 0 for a fit without steps."""
    if is_watched(estimator):
        return estimator._init_callback_context(max_subtasks=n_batches)
    return UNWATCHED


def is_lazy(X: Any) -> bool:
    """Whether X is a collection of Dask. Dask is not imported."""
    if not hasattr(X, "__dask_graph__"):
        return False
    return any(base.__module__.partition(".")[0] in ("dask", "dask_expr") for base in type(X).__mro__)


def as_table(X: Any) -> Any:
    """A table or record batch of pyarrow as a table, so that scikit-learn finds its names; anything else as it is.

    Encoded columns are decoded: NumPy would get the last of the dictionary for a null.
    """
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is None or not isinstance(X, (pyarrow.RecordBatch, pyarrow.Table)):
        return X
    table = pyarrow.Table.from_batches([X]) if isinstance(X, pyarrow.RecordBatch) else X
    for k, of in enumerate(table.schema.types):
        if pyarrow.types.is_dictionary(of):
            table = table.set_column(k, table.field(k).name, table.column(k).cast(of.value_type))
        elif pyarrow.types.is_run_end_encoded(of):
            import pyarrow.compute as compute

            table = table.set_column(k, table.field(k).name, compute.run_end_decode(table.column(k)))
    return table


def numbers_of_table(X: Any) -> NDArray[Any] | None:
    """The numbers of a table of pyarrow or polars, as an F-ordered array, nulls as NaN.

    None if a column does not hold numbers, or if X is anything else. The libraries' own conversion takes one number at
    a time, and makes float64.
    """
    pyarrow, polars = sys.modules.get("pyarrow"), sys.modules.get("polars")
    if polars is not None and isinstance(X, polars.DataFrame):
        if not X.width or not all(dtype.is_integer() or dtype.is_float() for dtype in X.dtypes):
            return None
        wide = ("Int128", "UInt128")  # not in NumPy
        columns = [(c.cast(polars.Float64) if str(c.dtype) in wide else c).to_numpy() for c in X.get_columns()]
    elif pyarrow is not None and isinstance(X, pyarrow.Table) and X.num_columns:
        columns = [column.to_numpy() for column in as_table(X).columns]
    else:
        return None
    if any(column.dtype.kind not in "iuf" for column in columns):
        return None
    dtype = np.result_type(*columns)
    numbers = np.empty(X.shape, dtype if dtype.kind == "f" and dtype.itemsize <= 8 else np.float64, order="F")
    for c, column in enumerate(columns):
        numbers[:, c] = column
    return numbers


def duration_of_text(name: str, text: str) -> Any:
    """The Timedelta that pandas makes of a text such as "14D"."""
    try:
        from pandas import Timedelta
    except ImportError:
        raise TypeError(f"{name}={text!r} needs pandas; datetime.timedelta(days=14) does not") from None
    if text.strip()[-1:].isdigit() and not text.startswith("P"):  # pandas would make nanoseconds of it
        raise ValueError(f"{name} must be a duration with a unit, such as '14D', got {text[:50]!r}")
    try:
        return Timedelta(text).to_timedelta64()
    except AttributeError:  # NaT
        raise ValueError(f"{name} must be a duration such as '14D', got {text[:50]!r}") from None
    except ValueError as error:
        raise ValueError(f"{name} must be a duration such as '14D', got {text[:50]!r}: {error!s:.100}") from None


# Columns of these types become an array of their common type if that is in `FLOATS`, else of float64.
NUMBERS = frozenset(map(np.dtype, "?bhilqBHILQfd"))
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


FRAMES = {"pandas": "DataFrame", "polars": "DataFrame", "pyarrow": "Table"}


def frame_library(X: Any) -> str | None:
    """The library, if X is exactly a DataFrame of pandas or polars or a Table of pyarrow; else None. No import."""
    for library, name in FRAMES.items():
        if type(X) is getattr(sys.modules.get(library), name, None):
            return library
    return None


def numbers_of_frame(X: Any, names: NDArray[Any] | None) -> NDArray[Any] | None:
    """The array that scikit-learn's validation, 300 us, would make of a frame with exactly the columns of fit.

    None for anything else than columns of numbers in the order of fit: scikit-learn may have to warn or refuse.

    Parameters
    ----------
    X : object
    names : ndarray of str, or None
        `feature_names_in_`. Without it, only a DataFrame of pandas with numbered columns is taken.
    """
    library = frame_library(X)
    if library is None:
        return None
    if library == "pyarrow":
        return numbers_of_table(X) if _are(X.column_names, names) else None
    columns = X.columns
    if library == "polars":
        return numbers_of_table(X) if _are(columns, names) else None
    pandas = sys.modules["pandas"]
    if names is None:
        if type(columns) is not pandas.RangeIndex:
            return None
    elif type(columns) is not pandas.Index or not _are(columns.tolist(), names):
        return None
    dtypes = set(X.dtypes.tolist())
    if not dtypes <= NUMBERS:
        return None
    dtype = np.result_type(*dtypes)
    return X.to_numpy(dtype if dtype in FLOATS else FLOATS[1])


def _are(found: list[Any], names: NDArray[Any] | None) -> bool:
    """Whether the columns found are exactly `names`: strings, each once."""
    if names is None or found != names.tolist():
        return False
    return set(map(type, found)) == {str} and len(set(found)) == len(found)


def foreign_namespace(a: Any) -> Any:
    """The array-API namespace of `a`; None for NumPy, frames and lists, and if scikit-learn's dispatch is off."""
    if not (get_config()["array_api_dispatch"] and hasattr(a, "__dlpack__")):
        return None
    xp, compliant = get_namespace(a)
    return xp if compliant and "numpy" not in xp.__name__ else None
