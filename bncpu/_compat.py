"""What differs between the supported versions of scikit-learn, and what of it is private."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config
from sklearn.utils import _safe_indexing
from sklearn.utils._array_api import get_namespace

from bncpu._device import OpaqueBatch

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
    "rows",
    "with_callbacks",
]


class _Unwatched:
    """A task that nobody watches."""

    def call_on_fit_task_begin(self, **_: Any) -> None:
        """Tell nobody."""

    def call_on_fit_task_end(self, **_: Any) -> bool:
        """Tell nobody; nobody asks to stop."""
        return False

    def subcontext(self, task_name: str) -> _Unwatched:
        """A part of this task."""
        return self


UNWATCHED = _Unwatched()


def is_watched(estimator: Any) -> bool:
    """Whether the estimator has callbacks, of its own or of one it is a part of."""
    return hasattr(estimator, "_skl_callbacks") or hasattr(estimator, "_parent_callback_ctx")


def fit_task(estimator: Any, n_batches: int) -> Any:
    """The callback context of a fit in `n_batches` steps, 0 for one without steps."""
    if is_watched(estimator):
        return estimator._init_callback_context(max_subtasks=n_batches)
    return UNWATCHED


def rows(X: Any, part: slice) -> Any:
    """Some rows of an array, frame, sparse matrix or list."""
    if isinstance(X, OpaqueBatch):
        return X[part]
    # polars and pyarrow; before 1.9 scikit-learn did not know how to cut the latter.
    if callable(getattr(X, "slice", None)):
        return X.slice(part.start, part.stop - part.start)
    if is_lazy(X):
        return X[part]
    return _safe_indexing(X, part)


def is_lazy(X: Any) -> bool:
    """Whether X is a collection of Dask, to be computed when it is asked for; dask is not imported."""
    if not hasattr(X, "__dask_graph__"):
        return False
    return any(base.__module__.partition(".")[0] in ("dask", "dask_expr") for base in type(X).__mro__)


def as_table(X: Any) -> Any:
    """A record batch of pyarrow as a table, whose names scikit-learn sees; anything else as it is."""
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is not None and isinstance(X, pyarrow.RecordBatch):
        return pyarrow.Table.from_batches([X])
    return X


def numbers_of_table(X: Any) -> NDArray[Any] | None:
    """The columns of a table of pyarrow or polars in column order, nulls as NaN; None if one holds no numbers, or of
    anything else.

    As an array of rows, a table is made one number at a time, and of float64.
    """
    pyarrow, polars = sys.modules.get("pyarrow"), sys.modules.get("polars")
    if polars is not None and isinstance(X, polars.DataFrame):
        if not X.width or not all(dtype.is_integer() or dtype.is_float() for dtype in X.dtypes):
            return None
        columns = [column.to_numpy() for column in X.get_columns()]
    elif pyarrow is not None and isinstance(X, pyarrow.Table) and X.num_columns:
        columns = [column.to_numpy() for column in X.columns]
    else:
        return None
    if any(column.dtype.kind not in "iuf" for column in columns):
        return None
    dtype = np.result_type(*columns)
    numbers = np.empty(X.shape, dtype if dtype.kind == "f" and dtype.itemsize <= 8 else np.float64, order="F")
    for c, column in enumerate(columns):
        numbers[:, c] = column
    return numbers


# Columns of these become an array of their common type where that is one of `FLOATS`, and else of float64.
NUMBERS = frozenset(map(np.dtype, "?bhilqBHILQfd"))
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


FRAMES = {"pandas": "DataFrame", "polars": "DataFrame", "pyarrow": "Table"}


def frame_library(X: Any) -> str | None:
    """The library of which X is exactly a DataFrame, or a table of pyarrow; None of anything else. None is imported."""
    for library, name in FRAMES.items():
        if type(X) is getattr(sys.modules.get(library), name, None):
            return library
    return None


def numbers_of_frame(X: Any, names: NDArray[Any] | None) -> NDArray[Any] | None:
    """What scikit-learn's validation, 300 us, makes of a frame with the columns of fit; None where it may say more.

    Whatever is more than columns of numbers in the order of fit is left to scikit-learn.

    Parameters
    ----------
    X : object
    names : ndarray of str, or None
        `feature_names_in_`. Where there is none, the columns of a DataFrame of pandas must be numbered.
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
    """Whether the columns found are `names`, strings all, each once."""
    if names is None or found != names.tolist():
        return False
    return set(map(type, found)) == {str} and len(set(found)) == len(found)


def foreign_namespace(a: Any) -> Any:
    """The array-API namespace of `a`, or None for NumPy, frames, lists, or if scikit-learn's dispatch is off."""
    if not (get_config()["array_api_dispatch"] and hasattr(a, "__dlpack__")):
        return None
    xp, compliant = get_namespace(a)
    return xp if compliant and "numpy" not in xp.__name__ else None
