"""Tables in files, never loaded whole. This module and `_writing` alone know the formats of the commands.

A file is opened as a `Table`, which reads only its head. Its rows come in pieces, of whatever size the format has.
`cut` makes batches of the pieces. Batches depend on the rows alone, not on how files and their row groups divide them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from bncpu._device import ColumnBatch, LearnedBatch
from bncpu.moments import Moments

# Bytes of a batch at most, as float64: larger ones would leave the cache and be read from memory again.
BATCH_BYTES = 8 << 20
BATCH_ROWS = 65536

# Bytes of a Parquet file read and decoded at a time, as float64: a batch. Large row groups are not read whole, and more
# would not fit the caches.
PARQUET_BYTES = BATCH_BYTES

# Threads that decode columns of a Parquet file, at most: more would only wait for the file.
MOST_SHARES = 8

# How many pieces each of these threads may be ahead. It keeps the moments of a piece, not its values.
LEARNED_AHEAD = 8

# Bytes of a .npy mapped into memory at a time: a map of the whole file might not fit the address space.
WINDOW_BYTES = 32 << 20

# Block sizes for .csv, in bytes, tried in order until one holds the first row. pyarrow reads several blocks ahead.
CSV_BYTES = (1 << 20, 1 << 24, 1 << 28)

Array = NDArray[Any]
T = TypeVar("T")


class Piece(Protocol):
    """Some rows of a table."""

    def __len__(self) -> int:
        """Their number."""

    def into(self, X: Array, start: int, names: Sequence[str]) -> None:
        """Copy rows from `start` on into X, which has a column for each of `names` and as many rows as are wanted."""

    def in_place(self, start: int, n_rows: int, dtype: np.dtype[Any], names: Sequence[str]) -> Any:
        """Rows without a copy: mapped into memory, or as columns; None where they must be copied."""

    def carried(self, start: int, n_rows: int) -> Any:
        """The same rows as a record batch with all columns that were read; None if there are only numbers."""


class Table:
    """A file whose head has been read.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    columns : list of str
        Names of all columns. Those of a .npy are x0, x1, ...
    numbers : list of str
        Names of the columns of numbers. Columns without a value so far, which may hold numbers, are included; they
        are also in `empty`.
    n_rows : int or None
        None if the head does not tell.
    order : {"C", "F"}
        Memory order of arrays into which pieces are copied fastest.
    reads_ahead : bool
        Whether the table itself reads the next piece while one is in use.
    position : int
        Approximate number of bytes read so far.
    learn : int
        If not 0: pieces of so many rows may be moments, without their values.
    """

    kind: str
    named = True
    order: Literal["C", "F"] = "F"
    n_rows: int | None = None
    reads_ahead = True
    position = 0
    learn = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = os.stat(path).st_size
        self.columns: list[str] = []
        self.numbers: list[str] = []
        self.empty: list[str] = []
        with self.named_errors():
            self.read_head()
        if not self.numbers:
            other = [c for c in ";\t|" if len(self.columns) == 1 and c in self.columns[0]]
            hint = f"; columns must have commas between them, not {other[0]!r}" if other else ""
            raise ValueError(f"{str(path)!r} has no column of numbers{hint}")

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """Errors of the reader, with the name of the file and what it should be."""
        try:
            yield
        except OSError as error:
            if error.filename is None:  # pyarrow's
                raise OSError(f"{str(self.path)!r} cannot be read: {error}") from None
            raise
        except (ValueError, NotImplementedError) as error:  # a codec that pyarrow was built without, say
            raise ValueError(self.explained(str(error))) from None

    def explained(self, error: str) -> str:
        """An error of the reader in one line, with the name of the file and what it should be."""
        return f"{str(self.path)!r} is not {self.kind}: {' '.join(error.split())}"

    def read_head(self) -> None:
        """Set the attributes."""
        raise NotImplementedError

    def dtype(self, names: Sequence[str]) -> np.dtype[Any]:
        """The dtype in which these columns are read."""
        raise NotImplementedError

    def pieces(self, names: Sequence[str], skip: int = 0, carry: str | None = None) -> Iterator[Piece]:
        """The rows from `skip` on, with the columns `names`.

        Parameters
        ----------
        names : sequence of str
        skip : int, default=0
        carry : {"text", "typed"}, optional
            Read the other columns, too. "text": those of a .csv as text; "typed": as the type that they seem to have.
        """
        with self.named_errors():
            yield from self.read_pieces(names, skip, carry)
        self.position = self.size

    def read_pieces(self, names: Sequence[str], skip: int, carry: str | None) -> Iterator[Piece]:
        """`pieces`, with errors as the reader has them."""
        raise NotImplementedError

    def place(self, row: int) -> str:
        """Where in the file a row is, counted from 0."""
        return f"{str(self.path)!r}, row {row:,}"


# ---- .npy ----

SHORTER = "it became shorter while it was read"


class Npy(Table):
    """An array of numbers. In C order it is mapped into memory, a window at a time; in Fortran order it is read."""

    kind = "an array of numbers as np.save writes it"
    named = False
    n_rows: int

    def read_head(self) -> None:
        with open(self.path, "rb") as file:
            if file.read(4) == b"PK\3\4":
                raise ValueError("it holds several arrays")
            file.seek(0)
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"it has version {version}")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, self.numpy_dtype = read(file)
            self.start = file.tell()
        if len(shape) != 2 or self.numpy_dtype.kind not in "biuf":
            raise ValueError(f"it must hold numbers of shape (n_rows, n_columns), got {self.numpy_dtype} of {shape}")
        self.n_rows, n_columns = shape
        self.order = "F" if fortran else "C"
        self.reads_ahead = not fortran
        missing = self.start + self.n_rows * n_columns * self.numpy_dtype.itemsize - self.size
        if missing > 0:
            raise ValueError(f"{missing:,} bytes are missing at its end")
        self.columns = self.numbers = [f"x{c}" for c in range(n_columns)]

    def dtype(self, names: Sequence[str]) -> np.dtype[Any]:
        return self.numpy_dtype

    def read_pieces(self, names: Sequence[str], skip: int, carry: str | None) -> Iterator[Piece]:
        with open(self.path, "rb", buffering=0) as file:
            yield _NpyRows(self, file, skip)


class _NpyRows:
    """All rows of a .npy from `skip` on as one piece, read when they are used."""

    def __init__(self, table: Npy, file: Any, skip: int) -> None:
        self.table, self.file, self.skip = table, file, skip
        self.window, self.first = np.empty((0, len(table.columns)), table.numpy_dtype), 0  # rows from `first` on

    def __len__(self) -> int:
        return max(0, self.table.n_rows - self.skip)

    def into(self, X: Array, start: int, names: Sequence[str]) -> None:
        table, start = self.table, start + self.skip
        in_order = X.flags.c_contiguous if table.order == "C" else X.strides[0] == X.itemsize
        if X.dtype != table.numpy_dtype or not in_order:
            part = np.empty(X.shape, table.numpy_dtype, order=table.order)
            self.into(part, start - self.skip, names)
            X[...] = part
            return
        if table.order == "C":
            self.fill(X, start * len(table.columns))
        else:
            for c in range(X.shape[1]):
                self.fill(X[:, c], c * table.n_rows + start)
        table.position = table.start + start * len(table.columns) * table.numpy_dtype.itemsize

    def in_place(self, start: int, n_rows: int, dtype: np.dtype[Any], names: Sequence[str]) -> Array | None:
        table, start = self.table, start + self.skip
        if table.order != "C" or dtype != table.numpy_dtype or not hasattr(mmap, "MAP_SHARED"):
            return None
        if not self.first <= start <= start + n_rows <= self.first + len(self.window):
            row = len(table.columns) * dtype.itemsize
            begin, size = table.start + start * row, min(max(n_rows * row, WINDOW_BYTES), (table.n_rows - start) * row)
            if os.fstat(self.file.fileno()).st_size < begin + size:
                raise ValueError(self.table.explained(SHORTER))
            skipped = begin % mmap.ALLOCATIONGRANULARITY
            mapped = mmap.mmap(self.file.fileno(), skipped + size, prot=mmap.PROT_READ, offset=begin - skipped)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self.file.fileno(), begin + size, size, os.POSIX_FADV_WILLNEED)
            values = np.frombuffer(mapped, dtype, size // row * len(table.columns), skipped)
            self.window, self.first = values.reshape(-1, len(table.columns)), start
        table.position = table.start + (start + n_rows) * len(table.columns) * dtype.itemsize
        return self.window[start - self.first :][:n_rows]

    def fill(self, to: Array, first: int) -> None:
        """Read contiguous values from the number `first` on."""
        if not to.size:
            return
        self.file.seek(self.table.start + first * to.itemsize)
        left = to.reshape(-1).view(np.uint8).data
        while left:
            n = self.file.readinto(left)
            if not n:
                raise ValueError(self.table.explained(SHORTER))
            left = left[n:]

    def carried(self, start: int, n_rows: int) -> Any:
        return None


# ---- what pyarrow reads ----

FLOATS = {"float": np.dtype(np.float32), "double": np.dtype(np.float64)}


class _Columns:
    """A record batch."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def into(self, X: Array, start: int, names: Sequence[str]) -> None:
        for c, name in enumerate(names):
            X[:, c] = _as_numbers(self.batch.column(name).slice(start, len(X)), X.dtype)

    def in_place(self, start: int, n_rows: int, dtype: np.dtype[Any], names: Sequence[str]) -> ColumnBatch | None:
        columns = [self.batch.column(name).slice(start, n_rows) for name in names]
        if any(column.null_count or FLOATS.get(str(column.type)) != dtype for column in columns):
            return None
        return ColumnBatch([column.to_numpy() for column in columns])

    def carried(self, start: int, n_rows: int) -> Any:
        return self.batch.slice(start, n_rows)


class _Learned:
    """The moments of some rows; `values` reads the rows again."""

    def __init__(self, n_rows: int, found: tuple[Moments, bool], values: Callable[[], Array]) -> None:
        self.n_rows, self.found, self.values = n_rows, found, values

    def __len__(self) -> int:
        return self.n_rows

    def into(self, X: Array, start: int, names: Sequence[str]) -> None:
        X[...] = self.values()[start : start + len(X)]

    def in_place(self, start: int, n_rows: int, dtype: np.dtype[Any], names: Sequence[str]) -> LearnedBatch | None:
        whole = n_rows == len(self)
        return LearnedBatch((n_rows, len(names)), dtype, self.found, self.values) if whole else None

    def carried(self, start: int, n_rows: int) -> Any:
        return None


def _as_numbers(column: Any, dtype: np.dtype[Any]) -> Array:
    """An Arrow array as a NumPy array, nulls as NaN, without a copy where possible."""
    from pyarrow import from_numpy_dtype, types

    if column.null_count or not (types.is_integer(column.type) or types.is_floating(column.type)):
        column = column.cast(from_numpy_dtype(dtype), safe=False)
    return np.asarray(column.to_numpy(zero_copy_only=False))


class ArrowTable(Table):
    """A file that pyarrow reads."""

    schema: Any

    def read_head(self) -> None:
        self.schema = self.read_schema(pyarrow_for(self.path))
        self.columns = list(self.schema.names)
        self.numbers, self.empty = _numbers(self.schema)

    def read_schema(self, arrow: Any) -> Any:
        raise NotImplementedError

    def dtype(self, names: Sequence[str]) -> np.dtype[Any]:
        single = all(str(self.schema.field(name).type) == "float" for name in names)
        return np.dtype(np.float32 if single else np.float64)

    def read_pieces(self, names: Sequence[str], skip: int, carry: str | None) -> Iterator[Piece]:
        skipped = self.skipped(skip)
        for piece in self.decoded(pyarrow_for(self.path), skipped, names, carry):
            skip -= skipped
            skipped = min(skip, len(piece))
            if not skipped:
                yield piece
            elif isinstance(piece, _Columns):  # pieces of moments are left out as a whole
                yield _Columns(piece.batch.slice(skipped))

    def skipped(self, skip: int) -> int:
        """How many of the first `skip` rows need not be read."""
        return 0

    def decoded(self, arrow: Any, skipped: int, names: Sequence[str], carry: str | None) -> Iterator[Piece]:
        """Pieces of all but the first `skipped` rows, each made while the one before is in use."""
        return map(_Columns, ahead(self.record_batches(arrow, skipped, names, carry)))

    def record_batches(self, arrow: Any, skipped: int, names: Sequence[str], carry: str | None) -> Iterator[Any]:
        """Record batches of all but the first `skipped` rows."""
        raise NotImplementedError


class Csv(ArrowTable):
    """CSV in UTF-8 with a header line; compressed with gzip if it ends in .gz."""

    kind = "UTF-8 with a header line and commas, each column of one type"
    block = CSV_BYTES[0]

    def read_schema(self, arrow: Any) -> Any:
        try:
            with self.opened(arrow, self.block, {})[1] as reader:
                return reader.schema
        except ValueError as error:
            larger = [size for size in CSV_BYTES if size > self.block]
            if not re.search("straddling|file or block", str(error)) or not larger:
                raise
            self.block = larger[0]
            return self.read_schema(arrow)

    def opened(self, arrow: Any, block: int, types: dict[str, Any], names: Sequence[str] | None = None) -> Any:
        """The raw file, for its position, and a reader. One thread is as fast for pyarrow, and its errors name rows."""
        csv = arrow.csv
        raw = file = arrow.OSFile(str(self.path))
        if self.path.suffix.lower() == ".gz":
            file = arrow.CompressedInputStream(raw, "gzip")
        return raw, csv.open_csv(
            file,
            csv.ReadOptions(use_threads=False, block_size=block),
            csv.ParseOptions(newlines_in_values=True),
            csv.ConvertOptions(include_columns=names, column_types=types),
        )

    def record_batches(self, arrow: Any, skipped: int, names: Sequence[str], carry: str | None) -> Iterator[Any]:
        types, wanted = {}, set(names)
        for field in self.schema:
            if field.name in wanted:
                # Columns that look like integers in the first rows may have fractions later.
                if not arrow.types.is_boolean(field.type):
                    types[field.name] = arrow.float64()
            elif carry == "text" or arrow.types.is_null(field.type):
                types[field.name] = arrow.string()
            elif carry:
                types[field.name] = field.type
        raw, reader = self.opened(arrow, self.block, types, None if carry else names)
        with raw, reader:
            for batch in reader:
                self.position = raw.tell()
                yield batch

    def explained(self, error: str) -> str:
        found = re.search(r"Row #(\d+): (.*)", error, flags=re.DOTALL)
        if found is None:
            return super().explained(error)
        place, what = f"{str(self.path)!r}, line {self.line(int(found[1])):,}", found[2]
        column = re.search(r"In CSV column #(\d+)", error)
        value = re.search(r"invalid value '(.*)'", what, flags=re.DOTALL)
        if column and value:
            return f"{place}: {value[1]!r} in column {self.columns[int(column[1])]!r} is no number"
        return f"{place}: {' '.join(what.split())}"

    def place(self, row: int) -> str:
        return f"{str(self.path)!r}, line {self.line(row + 2):,}"

    def line(self, record: int) -> int:
        """The number of the line in which a record begins, as quoted values may hold line breaks.

        Both count from 1; the header is record 1.
        """
        import gzip

        opener: Any = gzip.open if self.path.suffix.lower() == ".gz" else open
        quotes = 0
        with opener(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if quotes % 2 == 0 and line.strip(b"\r\n"):
                    record -= 1
                    if record == 0:
                        return number
                quotes += line.count(b'"')
        raise AssertionError


class Parquet(ArrowTable):
    """A Parquet file."""

    kind = "a Parquet file"

    def read_schema(self, arrow: Any) -> Any:
        with arrow.parquet.ParquetFile(self.path) as file:
            self.n_rows = file.metadata.num_rows
            # Number of rows before each row group, and of all.
            lengths = [file.metadata.row_group(k).num_rows for k in range(file.metadata.num_row_groups)]
            self.starts = np.cumsum([0, *lengths])
            return file.schema_arrow

    def skipped(self, skip: int) -> int:
        return int(self.starts[self.starts <= skip][-1])

    def decoded(self, arrow: Any, skipped: int, names: Sequence[str], carry: str | None) -> Iterator[Piece]:
        if not self.learn or skipped % self.learn:
            return super().decoded(arrow, skipped, names, carry)
        return self.learned(arrow, skipped, names)

    def learned(self, arrow: Any, skipped: int, names: Sequence[str]) -> Iterator[Piece]:
        """Pieces of `learn` rows as their moments, and a shorter last piece with its values.

        Each thread decodes a share of the columns, and learns them. (pyarrow's own threads share the columns of a piece
        and wait for each other at its end; by then what they decoded has left the caches.)
        """
        n_shares = min(arrow.cpu_count(), len(names), MOST_SHARES)
        ends = np.linspace(0, len(names), n_shares + 1).astype(int)
        shares = [list(names[start:end]) for start, end in itertools.pairwise(ends)]
        dtype, start = self.dtype(names), skipped
        learned = [ahead(self.learned_share(arrow, skipped, share, dtype), LEARNED_AHEAD) for share in shares]
        for parts in zip(*learned, strict=True):
            batches, found = zip(*parts, strict=True)
            if batches[0] is None:
                moments, missing = zip(*found, strict=True)
                whole = Moments(*np.concatenate(moments, axis=-1)), any(missing)
                yield _Learned(self.learn, whole, functools.partial(self.values, start, names))
            else:
                columns = [column for batch in batches for column in batch.columns]
                every = [name for batch in batches for name in batch.schema.names]
                yield _Columns(arrow.RecordBatch.from_arrays(columns, names=every))
            start += self.learn

    def learned_share(
        self, arrow: Any, skipped: int, names: list[str], dtype: np.dtype[Any]
    ) -> Iterator[tuple[Any, tuple[Moments, bool] | None]]:
        """For some columns, what `learned` yields: moments, or the shorter piece; the other is None."""
        for batch in self.batches(arrow, skipped, self.learn, names, use_threads=False):
            if batch.num_rows < self.learn:
                yield batch, None
            else:
                columns = [np.asarray(_as_numbers(batch.column(name), dtype), dtype) for name in names]
                yield None, ColumnBatch(columns).moments(None, n_threads=1)

    def values(self, start: int, names: Sequence[str]) -> Array:
        """`learn` rows, read again."""
        return next(cut(open_table(self.path).pieces(names, start), names, self.learn, self.dtype(names), "F")).X

    def record_batches(self, arrow: Any, skipped: int, names: Sequence[str], carry: str | None) -> Iterator[Any]:
        rows = max(1, PARQUET_BYTES // (8 * len(self.columns if carry else names)))
        return self.batches(arrow, skipped, rows, None if carry else list(names))

    def batches(
        self, arrow: Any, skipped: int, rows: int, names: list[str] | None, *, use_threads: bool = True
    ) -> Iterator[Any]:
        """Record batches of `rows` rows."""
        groups = range(int(np.searchsorted(self.starts, skipped)), len(self.starts) - 1)
        done, buffer = skipped, max(1 << 14, 8 * rows)
        # With pre_buffer pyarrow would keep the bytes of every row group read so far.
        with arrow.parquet.ParquetFile(self.path, buffer_size=buffer, pre_buffer=False) as file:
            for batch in file.iter_batches(rows, row_groups=groups, columns=names, use_threads=use_threads):
                done += batch.num_rows
                self.position = self.size * done // max(1, int(self.starts[-1]))
                yield batch


class Ipc(ArrowTable):
    """Arrow's own format, as a file or a stream."""

    kind = "an Arrow file or stream"

    def opened(self, arrow: Any, options: Any = None) -> tuple[Any, Any, bool]:
        """The file, a reader, and whether the reader knows where each record batch is."""
        try:
            file = arrow.memory_map(str(self.path))  # as a record batch may be larger than memory
        except OSError:  # the file is larger than the address space allows
            file = arrow.OSFile(str(self.path))
        with_places = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = (arrow.ipc.open_file if with_places else arrow.ipc.open_stream)(file, options=options)
        return file, reader, with_places

    def read_schema(self, arrow: Any) -> Any:
        file, reader, _ = self.opened(arrow)
        with file:
            return reader.schema

    def record_batches(self, arrow: Any, skipped: int, names: Sequence[str], carry: str | None) -> Iterator[Any]:
        wanted = None if carry else [self.columns.index(name) for name in names]
        file, reader, with_places = self.opened(arrow, arrow.ipc.IpcReadOptions(included_fields=wanted))
        with file:
            if not with_places:
                for batch in reader:
                    self.position = file.tell()
                    yield batch
            else:
                for k in range(reader.num_record_batches):
                    yield reader.get_batch(k)
                    self.position = self.size * (k + 1) // reader.num_record_batches


def pyarrow_for(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f"{path.suffix} files need pyarrow: pip install 'bncpu[io]'") from None
    return pyarrow


def _numbers(schema: Any) -> tuple[list[str], list[str]]:
    """Names of the columns of numbers, and of those among them that have no value so far."""
    from pyarrow import types

    twice = [name for name, n in Counter(schema.names).items() if n > 1]
    if twice:
        raise ValueError(f"two columns are named {twice[0]!r}")
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    numbers = [field.name for field in schema if any(test(field.type) for test in tests)]
    return numbers, [field.name for field in schema if types.is_null(field.type)]


# ---- any file ----

FORMATS: dict[str, type[Table]] = {
    ".npy": Npy,
    ".csv": Csv,
    ".csv.gz": Csv,
    ".parquet": Parquet,
    ".arrow": Ipc,
    ".feather": Ipc,
    ".ipc": Ipc,
}


def ending(path: Path) -> str | None:
    """The ending of a file name, if it is one of `FORMATS`; else None."""
    return next((end for end in FORMATS if path.name.lower().endswith(end)), None)


def open_table(path: Path) -> Table:
    """Read the head of the file `path`. Its ending decides the format.

    Raises
    ------
    ImportError
        If pyarrow is needed and not installed.
    OSError
        If the file cannot be read.
    ValueError
        If it is no table of numbers.
    """
    end = ending(path)
    if end is None:
        raise ValueError(f"the file must end in {', '.join(FORMATS)}; got {str(path)!r}")
    return FORMATS[end](path)


class Batch(NamedTuple):
    """Rows of a table."""

    X: Any  # of shape (n_rows, n_columns), an array or a `ColumnBatch`
    weights: NDArray[np.float64] | None  # of shape (n_rows,)
    carried: list[Any]  # the same rows with all columns, as record batches


def cut(
    pieces: Iterable[Piece],
    names: Sequence[str],
    n_rows: int,
    dtype: np.dtype[Any],
    order: Literal["C", "F"],
    *,
    weights: str | None = None,
    carry: bool = False,
    columns: bool = False,
    fewest: int = 0,
) -> Iterator[Batch]:
    """Batches of `n_rows` rows. The last has the rest; if that is less than `fewest`, it is joined to the one before.

    With `columns`, X may be a `ColumnBatch`. The arrays of a batch are overwritten by the second batch after it, or are
    read-only where the file is mapped.
    """
    full = n_rows + fewest
    spaces: list[tuple[Array, Array]] = []
    at = 0
    carried: list[Any] = []

    def batch(n: int) -> Batch:
        return Batch(X[:n], None if weights is None else w[:n, 0], carried)

    for piece in pieces:
        start = 0
        while start < len(piece):
            if at == 0 and full <= len(piece) - start and weights is None and not carry:
                rows = piece.in_place(start, full, dtype, names)
                if rows is not None and (columns or isinstance(rows, np.ndarray)):
                    yield Batch(rows[:n_rows], None, [])
                    start += n_rows
                    continue
            if not spaces:
                spaces = [(np.empty((full, len(names)), dtype, order=order), np.empty((full, 1))) for _ in range(2)]
                X, w = spaces[0]
            n = min(full - at, len(piece) - start)
            piece.into(X[at : at + n], start, names)
            if weights is not None:
                piece.into(w[at : at + n], start, [weights])
            if carry:
                carried.append(piece.carried(start, n))
            at, start = at + n, start + n
            if at == full:
                yield batch(n_rows)
                spaces.reverse()
                spaces[0][0][:fewest], spaces[0][1][:fewest] = X[n_rows:], w[n_rows:]
                (X, w), at, carried = spaces[0], fewest, []
    if at:
        yield batch(at)


def ahead_of(tables: Sequence[Table], batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, made by a thread ahead of their use, unless all tables read ahead: threads would take turns."""
    return batches if all(table.reads_ahead for table in tables) else ahead(batches)


def ahead(items: Iterator[T], n: int = 1) -> Iterator[T]:
    """The same items, made by one thread, up to `n` ahead of their use."""
    with ThreadPoolExecutor(1) as reader:
        coming = deque(reader.submit(next, items, None) for _ in range(n))
        while (item := coming.popleft().result()) is not None:
            coming.append(reader.submit(next, items, None))
            yield item


# ---- for the demo ----


class Numbers(NamedTuple):
    """The numbers of a file."""

    columns: list[str]
    left_out: list[str]  # columns that are not numbers
    n_batches: int | None  # None where the file does not tell
    batches: Iterator[Array]  # of shape (n_rows, n_columns), each overwritten by the second after it


def read(path: Path, n_batches: int = 1) -> Numbers:
    """All numbers of the file `path`; of a small file, in about `n_batches` batches. Raises as `open_table`."""
    table = open_table(path)
    if isinstance(table, Csv) and table.block == CSV_BYTES[0]:
        table.block = min(BATCH_BYTES // 4, max(1 << 12, table.size // n_batches))
    step = max(1, min(BATCH_ROWS, BATCH_BYTES // (8 * len(table.numbers)), -(-(table.n_rows or 0) // n_batches)))
    pieces: Iterable[Piece] = table.pieces(table.numbers)
    names, dtype = table.numbers, table.dtype(table.numbers)
    if table.n_rows is None:
        whole = (cut([piece], names, max(1, len(piece)), dtype, table.order) for piece in pieces)
        batches: Iterator[Batch] = itertools.chain.from_iterable(whole)
    else:
        batches = cut(pieces, names, step, dtype, table.order)
    known = set(names)
    left_out = [name for name in table.columns if name not in known]
    n = None if table.n_rows is None else -(-table.n_rows // step)
    return Numbers(names, left_out, n, (batch.X for batch in batches))
