"""Tables in files, a batch of rows at a time: .npy, .csv and .parquet, never loaded whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# A batch is at most this much, as float64.
BATCH_BYTES = 32 << 20
BATCH_ROWS = 65536


class Table(NamedTuple):
    """The numbers of a file."""

    columns: list[str]
    left_out: list[str]  # columns that are not numbers
    n_batches: int | None  # None where the file does not tell
    batches: Iterator[NDArray[Any]]  # of shape (n_rows, n_columns)


def read(path: Path, n_batches: int = 1) -> Table:
    """Open the file `path`, by its ending.

    Parameters
    ----------
    path : Path
    n_batches : int, default=1
        A small file is cut into about so many batches.

    Returns
    -------
    Table
        Missing values are NaN.

    Raises
    ------
    ImportError
        If pyarrow is needed and not installed.
    OSError
        If the file cannot be read.
    ValueError
        If it is no table of numbers, there or in a later batch.
    """
    readers = {".npy": _npy, ".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise ValueError(f"the file must end in {', '.join(readers)}; got {str(path)!r}")
    try:
        table = readers[path.suffix.lower()](path, n_batches)
    except ValueError as error:
        raise _about(path, error) from None
    if not table.columns:
        raise ValueError(f"{str(path)!r} has no column of numbers")
    return table._replace(batches=_checked(path, table.batches))


def _about(path: Path, error: Exception) -> ValueError:
    """What a reader of another library says, with the file and what it must be like."""
    kinds = {
        ".npy": "an array of numbers as np.save writes it",
        ".csv": "UTF-8 with a header line and commas, each column of one type",
        ".parquet": "a Parquet file",
    }
    return ValueError(f"{str(path)!r} is not {kinds[path.suffix.lower()]}: {error}")


def _checked(path: Path, batches: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    try:
        yield from batches
    except ValueError as error:
        raise _about(path, error) from None


def _npy(path: Path, n_batches: int) -> Table:
    try:
        X = np.load(path, mmap_mode="r")
    except (EOFError, ValueError):
        raise ValueError("it cannot be mapped into memory") from None
    if not isinstance(X, np.ndarray):
        raise ValueError("it holds several arrays")
    if X.ndim != 2 or X.dtype.kind not in "biuf":
        raise ValueError(f"it must hold numbers of shape (n_rows, n_columns), got {X.dtype} of {X.shape}")
    step = _rows_per_batch(len(X), X.shape[1], n_batches)
    batches = (X[start : start + step] for start in range(0, len(X), step))
    return Table([f"x{c}" for c in range(X.shape[1])], [], -(-len(X) // step), batches)


def _csv(path: Path, n_batches: int) -> Table:
    arrow = _arrow("csv")
    csv = arrow.csv
    with csv.open_csv(path) as start:
        schema = start.schema
    numbers, left_out = _numbers(schema)
    if not numbers:
        return Table([], left_out, None, iter(()))
    # What looks whole in the first rows may have fractions later.
    real = {name: arrow.float64() for name in numbers if not arrow.types.is_boolean(schema.field(name).type)}
    options = csv.ConvertOptions(include_columns=numbers, column_types=real)
    size = min(BATCH_BYTES // 4, max(1 << 12, path.stat().st_size // n_batches))
    reading = csv.ReadOptions(block_size=size)
    return Table(numbers, left_out, None, map(_dense, csv.open_csv(path, reading, convert_options=options)))


def _parquet(path: Path, n_batches: int) -> Table:
    arrow = _arrow("parquet")
    file = arrow.parquet.ParquetFile(path)
    numbers, left_out = _numbers(file.schema_arrow)
    step = _rows_per_batch(file.metadata.num_rows, len(numbers), n_batches)
    batches = map(_dense, file.iter_batches(step, columns=numbers))
    return Table(numbers, left_out, -(-file.metadata.num_rows // step), batches)


def _arrow(part: str) -> Any:
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f"reading .{part} needs pyarrow: pip install 'bncpu[demo]'") from None
    return pyarrow


def _numbers(schema: Any) -> tuple[list[str], list[str]]:
    """Names of the columns that hold numbers, and of the others; one without any value so far may become numbers."""
    from pyarrow import types

    twice = [name for k, name in enumerate(schema.names) if name in schema.names[:k]]
    if twice:
        raise ValueError(f"two columns are named {twice[0]!r}")
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    numbers = [field.name for field in schema if any(test(field.type) for test in tests)]
    return numbers, [name for name in schema.names if name not in numbers]


def _dense(batch: Any) -> NDArray[np.float64]:
    """A record batch as an array in column order, nulls as NaN."""
    X = np.empty((batch.num_rows, batch.num_columns), order="F")
    for c, column in enumerate(batch.columns):
        X[:, c] = column.cast("float64", safe=False).to_numpy(zero_copy_only=False)
    return X


def _rows_per_batch(n_rows: int, n_columns: int, n_batches: int) -> int:
    return max(1, min(BATCH_ROWS, BATCH_BYTES // (8 * max(1, n_columns)), -(-n_rows // n_batches)))
