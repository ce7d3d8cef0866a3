"""Tables written to files, in the formats that `_tables` reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bncpu import _state_file, _tables


class Result(NamedTuple):
    """Rows to write."""

    Y: NDArray[Any]  # of shape (n_rows, n_columns)
    names: Sequence[str]  # of its columns
    carried: list[Any]  # as in a `_tables.Batch`; empty if there are no other columns


def write(path: Path, results: Iterable[Result]) -> None:
    """Write rows to the file `path`, in the format of its ending. Whatever happens, the whole old or new file is there.

    Raises
    ------
    ImportError, OSError
        As `_tables.open_table`, and what `results` raises.
    """
    with _state_file.replacing(path) as file:
        if _tables.FORMATS[str(_tables.ending(path))] is _tables.Npy:
            _write_npy(file, results)
        else:
            _write_arrow(path, file, results)


def _write_npy(file: BinaryIO, results: Iterable[Result]) -> None:
    n_rows = 0
    for result in results:
        if n_rows == 0:
            dtype, n_columns = result.Y.dtype, result.Y.shape[1]
            _npy_header(file, (0, n_columns), dtype)
        file.write(np.ascontiguousarray(result.Y).data)
        n_rows += len(result.Y)
    if n_rows:
        file.seek(0)
        _npy_header(file, (n_rows, n_columns), dtype)  # of the same length: NumPy leaves room for axis 0 to grow


def _npy_header(file: BinaryIO, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)


def _write_arrow(path: Path, file: BinaryIO, results: Iterable[Result]) -> None:
    arrow = _tables.pyarrow_for(path)
    makers: dict[Any, Any] = {
        _tables.Csv: arrow.csv.CSVWriter,
        _tables.Parquet: arrow.parquet.ParquetWriter,
        _tables.Ipc: arrow.ipc.new_file,
    }
    make = makers[_tables.FORMATS[str(_tables.ending(path))]]
    with contextlib.ExitStack() as stack:
        sink: Any = file
        if path.suffix.lower() == ".gz":
            own = stack.enter_context(
                open(file.fileno(), "wb", closefd=False)
            )  # pyarrow closes what it compresses into
            sink = stack.enter_context(arrow.CompressedOutputStream(own, "gzip"))
        writer = None
        for result in results:
            table = _arrow_table(arrow, result)
            if writer is None:
                writer = stack.enter_context(make(sink, table.schema))
            writer.write_table(table)


def _arrow_table(arrow: Any, result: Result) -> Any:
    """A table with the results in place of the columns that they come from. Nulls stay nulls."""
    columns = dict(zip(result.names, result.Y.T, strict=True))
    if not result.carried:
        return arrow.table({name: arrow.array(y) for name, y in columns.items()})
    before = arrow.Table.from_batches(result.carried)
    arrays, fields = [], []
    for field, column in zip(before.schema, before.columns, strict=True):
        if field.name in columns:
            missing = column.is_null().to_numpy() if column.null_count else None
            column = arrow.array(columns[field.name], mask=missing)
            field = arrow.field(field.name, column.type, metadata=field.metadata)
        arrays.append(column)
        fields.append(field)
    return arrow.Table.from_arrays(arrays, schema=arrow.schema(fields, before.schema.metadata))
