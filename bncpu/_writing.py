"""Tables written to files, in the formats that are read."""

from __future__ import annotations

import bz2
import contextlib
import decimal
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bncpu import _inputs, _tables, _text
from bncpu._json_lines import JsonLines


class Result(NamedTuple):
    """Rows to write."""

    Y: NDArray[Any]  # of shape (n_rows, n_columns)
    names: Sequence[str]  # of its columns
    carried: list[Any]  # as in a `_tables.Batch`; empty if there are no other columns
    titles: dict[str, str]  # what the columns are called where they come from


def write(path: Path, file: BinaryIO, ending: str, results: Iterable[Result], raw: bool) -> int:
    """Write rows to `file`, in the format of `ending`.

    Parameters
    ----------
    path : Path
        What messages name.
    file : file object
    ending : str
        With what it is compressed with: .csv.gz, say.
    results : iterable of Result
        One at least.
    raw : bool
        Whether what is carried is JSON.

    Returns
    -------
    int
        How many rows.
    """
    kind = _inputs.FORMATS[_inputs.format_of(Path(ending))]
    if kind is _tables.Npy:
        return _write_npy(file, results)
    arrow = _tables.pyarrow_for(path)
    with contextlib.ExitStack() as stack:
        sink = _compressed(arrow, file, ending, stack)
        writer: Any = None
        rows = 0
        for result in results:
            table = _arrow_table(arrow, result)
            if writer is None:
                _refuse_what_text_cannot_hold(arrow, kind, table.schema)
                writer = stack.enter_context(_writer(arrow, kind, sink, table.schema, raw))
            writer.write_table(table)
            rows += len(result.Y)
    return rows


def _refuse_what_text_cannot_hold(arrow: Any, kind: type[_tables.Table], schema: Any) -> None:
    """Refuse columns that CSV, or JSON, have no form for."""
    if not issubclass(kind, _text.Text):
        return
    types = arrow.types
    tests = [types.is_binary, types.is_large_binary, types.is_fixed_size_binary]
    tests += [types.is_nested] if issubclass(kind, _text.Csv) else []
    for field in schema:
        if any(test(field.type) for test in tests) or isinstance(field.type, arrow.BaseExtensionType):
            raise ValueError(f"the column {field.name!r} ({field.type}) cannot be written as text")


def _compressed(arrow: Any, file: BinaryIO, ending: str, stack: contextlib.ExitStack) -> Any:
    how = {".gz": "gzip", ".zst": "zstd"}.get(Path(ending).suffix)
    if ending.endswith(".bz2"):
        return stack.enter_context(bz2.open(file, "wb"))
    if how is None:
        return file
    # pyarrow closes what it compresses into.
    own: Any = stack.enter_context(open(file.fileno(), "wb", closefd=False))  # noqa: SIM115 (the stack closes it)
    return stack.enter_context(arrow.CompressedOutputStream(own, how))


def _writer(arrow: Any, kind: type[_tables.Table], sink: Any, schema: Any, raw: bool) -> Any:
    if issubclass(kind, JsonLines):
        return _JsonWriter(sink, raw)
    if issubclass(kind, _text.Csv):
        delimiter = "\t" if kind is _text.Tsv else ","
        return arrow.csv.CSVWriter(sink, schema, write_options=arrow.csv.WriteOptions(delimiter=delimiter))
    if kind is _tables.Parquet:
        return arrow.parquet.ParquetWriter(sink, schema)
    return arrow.ipc.new_file(sink, schema)


class _JsonWriter:
    """An object in each line."""

    def __init__(self, sink: Any, raw: bool) -> None:
        self.sink, self.raw = sink, raw

    def __enter__(self) -> _JsonWriter:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def write_table(self, table: Any) -> None:
        columns = [
            [f"{json.dumps(field.name)}: {text}" for text in self.texts(column, field)]
            for field, column in zip(table.schema, table.columns, strict=True)
        ]
        self.sink.write("".join(f"{{{', '.join(row)}}}\n" for row in zip(*columns, strict=True)).encode())

    def texts(self, column: Any, field: Any) -> Iterator[str]:
        """The values of a column in JSON."""
        for value in column.to_pylist():
            if value is None or (isinstance(value, float) and np.isnan(value)):
                yield "null"
            elif self.raw and isinstance(value, str):
                yield value
            elif isinstance(value, decimal.Decimal):
                yield str(value)
            else:
                try:
                    yield json.dumps(value, default=str, allow_nan=False)
                except ValueError:
                    raise ValueError(f"the column {field.name!r} holds {value}, for which JSON has no number") from None


def _write_npy(file: BinaryIO, results: Iterable[Result]) -> int:
    seekable = file.seekable()
    # The head comes first, and holds the number of rows.
    with contextlib.nullcontext(file) if seekable else tempfile.TemporaryFile() as to:
        n_rows = _write_rows(to, results)
        if not seekable:
            to.seek(0)
            shutil.copyfileobj(to, file)
    return n_rows


def _write_rows(to: Any, results: Iterable[Result]) -> int:
    n_rows = 0
    for result in results:
        if n_rows == 0:
            dtype, n_columns = result.Y.dtype, result.Y.shape[1]
            start = to.tell()
            _npy_header(to, (0, n_columns), dtype)
        to.write(np.ascontiguousarray(result.Y).data)
        n_rows += len(result.Y)
    to.seek(start)
    _npy_header(to, (n_rows, n_columns), dtype)  # of the same length: NumPy leaves room for axis 0 to grow
    return n_rows


def _npy_header(file: Any, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)


def _arrow_table(arrow: Any, result: Result) -> Any:
    """A table with the results in place of the columns that they come from. Nulls stay nulls."""
    columns = dict(zip(result.names, result.Y.T, strict=True))
    if not result.carried:
        return arrow.table({result.titles[name]: arrow.array(y) for name, y in columns.items()})
    before = arrow.Table.from_batches(result.carried)
    arrays, fields = [], []
    for field, column in zip(before.schema, before.columns, strict=True):
        title = result.titles[field.name]
        if field.name in columns:
            missing = column.is_null().to_numpy() if column.null_count else None
            column = arrow.array(columns[field.name], mask=missing)
            field = arrow.field(title, column.type, metadata=field.metadata)
        else:
            column = _plain(arrow, column)
        arrays.append(column)
        fields.append(field.with_name(title).with_type(column.type))
    metadata = _with_types(before.schema.metadata, {result.titles[name]: str(y.dtype) for name, y in columns.items()})
    return arrow.Table.from_arrays(arrays, schema=arrow.schema(fields, metadata))


def _plain(arrow: Any, column: Any) -> Any:
    """A column in a type that every format can hold, with the same values."""
    types, kind = arrow.types, column.type
    plain = {"string_view": arrow.large_string(), "binary_view": arrow.large_binary()}
    if types.is_dictionary(kind):
        values = plain.get(str(kind.value_type))
        if values is None:
            return column.unify_dictionaries() if column.num_chunks > 1 else column
        chunks = [_cast(arrow, chunk.dictionary, values).take(chunk.indices) for chunk in column.chunks]
        return arrow.chunked_array(chunks, values)
    values = plain.get(str(kind))
    if values is None:
        return column
    return arrow.chunked_array([_cast(arrow, chunk, values) for chunk in column.chunks], values)


def _cast(arrow: Any, array: Any, kind: Any) -> Any:
    try:
        return array.cast(kind)
    except NotImplementedError:  # by pyarrow 17
        return arrow.array(array.to_pylist(), kind)


def _with_types(metadata: dict[bytes, bytes] | None, types: dict[str, str]) -> dict[bytes, bytes] | None:
    """The metadata of a schema; what pandas keeps there says the types of the results."""
    if not metadata or b"pandas" not in metadata:
        return metadata
    about = json.loads(metadata[b"pandas"])
    for column in about.get("columns", []):
        if column.get("field_name") in types:
            kind = types[column["field_name"]]
            column.update(pandas_type=kind, numpy_type=kind, metadata=None)
    return {**metadata, b"pandas": json.dumps(about).encode()}
