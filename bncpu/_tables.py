"""Tables in files, never loaded whole.

A file is opened as a `Table`, which reads only its head. Its rows come in pieces, of whatever size the format has.
`cut` makes batches of the pieces. Batches depend on the rows alone, not on how files and their row groups divide them.

Here are .npy, which NumPy reads, and Parquet and Arrow, which pyarrow reads; text is in `_text`, writing in `_writing`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import tempfile
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

# Bytes of a file read and decoded at a time, as float64: a batch. Large row groups of Parquet are not read whole, and
# more would not fit the caches.
PIECE_BYTES = BATCH_BYTES

# Threads that decode columns of a Parquet file, at most: more would only wait for the file.
MOST_SHARES = 8

# How many pieces each of these threads may be ahead. It keeps the moments of a piece, not its values.
LEARNED_AHEAD = 8

Array = NDArray[Any]
T = TypeVar("T")


class Reading(NamedTuple):
    """How files are read, as far as it is not found out."""

    format: str | None = None  # of FORMATS; None: as the ending says
    delimiter: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    comment: str | None = None
    skip_rows: int = 0
    header: bool | None = None
    missing: Sequence[str] = ()
    temporary: contextlib.ExitStack | None = None  # where temporary files end


class Column(NamedTuple):
    """What is known of a column from the head of its file."""

    title: str  # its name in the file
    type: str
    numeric: bool = True  # or without a value so far
    empty: bool = False  # without a value so far
    why_not: str = ""  # why it is not learned unless it is named
    missing: str = ""  # how many values


class Located(ValueError):
    """An error that says where it is."""


def fill(copy: Any, parts: Iterable[bytes], of: Path) -> None:
    """Write a temporary copy; `Located` if there is no room for it."""
    for part in itertools.chain(parts, [b""]):
        try:
            copy.write(part) if part else copy.flush()
        except OSError as error:
            folder = tempfile.gettempdir()
            raise Located(
                f"{str(of)!r} needs a temporary copy, for which {folder!r} has no room: {error.strerror}; TMPDIR names "
                "another folder"
            ) from None


class Piece(Protocol):
    """Some rows of a table."""

    def __len__(self) -> int:
        """Their number."""

    def into(self, X: Array, start: int, names: Sequence[str]) -> None:
        """Copy rows from `start` on into X, which has a column for each of `names` and as many rows as are wanted."""

    def in_place(self, start: int, n_rows: int, dtype: np.dtype[Any], names: Sequence[str]) -> Any:
        """Rows without a copy, as a batch of columns; None where they must be copied."""

    def carried(self, start: int, n_rows: int) -> Any:
        """The same rows as a record batch with all columns that were read; None if there are only numbers."""


class Table:
    """A file whose head has been read.

    Parameters
    ----------
    path : Path
        As messages name it.
    reading : Reading
    data : Path, optional
        What is opened, if it is not `path`. A table may make a copy of this, its `source`, and read that.

    Attributes
    ----------
    columns : dict of str to Column
        Names of all columns, each once. Those of a .npy are x0, x1, ...
    said : list of str
        What was found out or left out.
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

    def __init__(self, path: Path, reading: Reading, data: Path | None = None) -> None:
        self.path, self.reading = path, reading
        self.source = self.data = Path(os.path.abspath(data or path))
        self.size = os.stat(self.data).st_size
        self.columns: dict[str, Column] = {}
        self.said: list[str] = []
        with self.named_errors():
            self.read_head()

    @property
    def numbers(self) -> list[str]:
        """Names of the columns that are learned unless others are named."""
        return [name for name, column in self.columns.items() if column.numeric and not column.why_not]

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """Errors of the reader, with the name of the file and what it should be."""
        try:
            yield
        except OSError as error:
            if error.filename is None:  # pyarrow's
                raise OSError(f"{str(self.path)!r} cannot be read: {error}") from None
            raise
        except Located:
            raise
        except Exception as error:
            if not isinstance(error, (ValueError, RecursionError)) and "Arrow" not in type(error).__name__:
                raise
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
        """The rows from `skip` on, with the columns `names`; and with all others, if `carry` says where they go."""
        with self.named_errors():
            yield from self.read_pieces(names, skip, carry)
        self.position = self.size

    def read_pieces(self, names: Sequence[str], skip: int, carry: str | None) -> Iterator[Piece]:
        """`pieces`, with errors as the reader has them."""
        raise NotImplementedError

    def empty_batch(self) -> list[Any]:
        """No rows with all columns, as `Piece.carried` has them."""
        return []

    def place(self, row: int) -> str:
        """Where in the file a row is, counted from 0."""
        return f"{str(self.path)!r}, row {row:,}"


TWICE = "another column has its name"


def named(titles: Sequence[str]) -> dict[str, str]:
    """Names for the columns with these titles, each once, and why some are not learned unless they are named."""
    n_of, names = Counter(titles), dict[str, str]()
    for k, title in enumerate(titles):
        name = title or f"column{k}"
        while name in names or (name != title and name in n_of):
            name += "_1"
        names[name] = "" if title and n_of[title] == 1 else TWICE if title else "it has no name"
    return names


# ---- .npy ----

SHORTER = "it became shorter while it was read"


class Npy(Table):
    """An array of numbers. It is read, not mapped: a mapped file that is cut meanwhile would end the process."""

    kind = "an array of numbers as np.save writes it"
    named = False
    n_rows: int
    reads_ahead = False

    def read_head(self) -> None:
        with open(self.data, "rb") as file:
            if file.read(4) == b"PK\3\4":
                raise ValueError("it holds several arrays")
            file.seek(0)
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"it has version {version}")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            try:
                shape, fortran, self.numpy_dtype = read(file)
            except Exception as error:  # Python's parser has many
                raise ValueError(f"its head cannot be read: {type(error).__name__}") from None
            self.start = file.tell()
        if len(shape) != 2 or self.numpy_dtype.kind not in "biuf" or self.numpy_dtype.itemsize > 8:
            raise ValueError(f"it must hold numbers of shape (n_rows, n_columns), got {self.numpy_dtype} of {shape}")
        self.n_rows, self.n_columns = shape
        self.order = "F" if fortran else "C"
        more = self.size - self.start - self.n_rows * self.n_columns * self.numpy_dtype.itemsize
        if more < 0:
            raise ValueError(f"{-more:,} bytes are missing at its end")
        if more > 0:
            raise ValueError(f"{more:,} byte(s) follow the array")
        if self.n_rows:
            self.columns = {f"x{c}": Column(f"x{c}", str(self.numpy_dtype)) for c in range(self.n_columns)}

    def dtype(self, names: Sequence[str]) -> np.dtype[Any]:
        return self.numpy_dtype

    def read_pieces(self, names: Sequence[str], skip: int, carry: str | None) -> Iterator[Piece]:
        with open(self.data, "rb", buffering=0) as file:
            yield _NpyRows(self, file, skip)


class _NpyRows:
    """All rows of a .npy from `skip` on as one piece, read when they are used."""

    def __init__(self, table: Npy, file: Any, skip: int) -> None:
        self.table, self.file, self.skip = table, file, skip

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
            self.fill(X, start * table.n_columns)
        else:
            for c in range(X.shape[1]):
                self.fill(X[:, c], c * table.n_rows + start)
        table.position = table.start + start * table.n_columns * table.numpy_dtype.itemsize

    def in_place(self, start: int, n_rows: int, dtype: np.dtype[Any], names: Sequence[str]) -> None:
        return None

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


class Columnar(Table):
    """A file that comes as Arrow's record batches."""

    arrow: Any

    def read_head(self) -> None:
        self.arrow = pyarrow_for(self.path)
        self.read_columns()

    def read_columns(self) -> None:
        """Set `columns`, and what else the head tells."""
        raise NotImplementedError

    def read_pieces(self, names: Sequence[str], skip: int, carry: str | None) -> Iterator[Piece]:
        skipped = self.skipped(skip)
        for piece in self.decoded(skipped, names, carry):
            skip -= skipped
            skipped = min(skip, len(piece))
            if not skipped:
                yield piece
            elif isinstance(piece, _Columns):  # pieces of moments are left out as a whole
                yield _Columns(piece.batch.slice(skipped))

    def skipped(self, skip: int) -> int:
        """How many of the first `skip` rows need not be read."""
        return 0

    def decoded(self, skipped: int, names: Sequence[str], carry: str | None) -> Iterator[Piece]:
        """Pieces of all but the first `skipped` rows, each made while the one before is in use."""
        return map(_Columns, ahead(self.record_batches(skipped, names, carry)))

    def record_batches(self, skipped: int, names: Sequence[str], carry: str | None) -> Iterator[Any]:
        """Record batches of all but the first `skipped` rows."""
        raise NotImplementedError

    def empty_batch(self) -> list[Any]:
        kinds = [self.arrow.float64() if c.numeric else self.arrow.string() for c in self.columns.values()]
        empty = [self.arrow.array([], kind) for kind in kinds]
        return [self.arrow.RecordBatch.from_arrays(empty, names=list(self.columns))]

    def rows_of_a_piece(self, n_columns: int) -> int:
        """How many rows to decode at a time."""
        return max(1, PIECE_BYTES // (8 * max(1, n_columns)))


class ArrowTable(Columnar):
    """A file that pyarrow reads."""

    schema: Any

    def dtype(self, names: Sequence[str]) -> np.dtype[Any]:
        single = all(str(self.schema.field(self.columns[name].title).type) == "float" for name in names)
        return np.dtype(np.float32 if single else np.float64)

    def describe(self, schema: Any, missing: Sequence[str] | None = None) -> None:
        """Set `columns` from a schema, and the numbers of missing values of each."""
        from pyarrow import types

        self.schema = schema
        index = [i for i in json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", []) if i]
        tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
        titles, kinds = schema.names, schema.types
        for k, (name, why_not) in enumerate(named(titles).items()):
            title, kind = titles[k], kinds[k]
            numeric = any(test(kind) for test in tests)
            if title in index:
                why_not = "it is the index of a pandas DataFrame"
            why_not = why_not or ("" if numeric else "not numbers")
            self.columns[name] = Column(
                title, str(kind), numeric, types.is_null(kind), why_not, missing[k] if missing else ""
            )

    def empty_batch(self) -> list[Any]:
        empty = [self.arrow.array([], kind) for kind in self.schema.types]
        return [self.arrow.RecordBatch.from_arrays(empty, schema=self.schema).rename_columns(list(self.columns))]

    def renamed(self, batch: Any) -> Any:
        """A record batch of all columns, with their names as titles."""
        names = list(self.columns)
        return batch if names == batch.schema.names else batch.rename_columns(names)


class Parquet(ArrowTable):
    """A Parquet file."""

    kind = "a Parquet file"

    def read_columns(self) -> None:
        with self.arrow.parquet.ParquetFile(self.data) as file:
            about = file.metadata
            self.n_rows = about.num_rows
            # Number of rows before each row group, and of all.
            groups = [about.row_group(k) for k in range(about.num_row_groups)]
            self.starts = np.cumsum([0, *(group.num_rows for group in groups)])
            self.describe(file.schema_arrow, self.missing(groups, file.schema_arrow))

    @staticmethod
    def missing(groups: list[Any], schema: Any) -> list[str] | None:
        """The number of nulls of each column, as far as the statistics in the file tell."""
        if not groups or groups[0].num_columns != len(schema.names):  # nested columns
            return None
        found = []
        for c in range(len(schema.names)):
            counts = [group.column(c).statistics for group in groups]
            known = all(count is not None and count.has_null_count for count in counts)
            found.append(f"{sum(count.null_count for count in counts):,}" if known else "")
        return found

    def skipped(self, skip: int) -> int:
        return int(self.starts[self.starts <= skip][-1])

    def decoded(self, skipped: int, names: Sequence[str], carry: str | None) -> Iterator[Piece]:
        if not self.learn or skipped % self.learn:
            return super().decoded(skipped, names, carry)
        return self.learned(skipped, names)

    def learned(self, skipped: int, names: Sequence[str]) -> Iterator[Piece]:
        """Pieces of `learn` rows as their moments, and a shorter last piece with its values.

        Each thread decodes a share of the columns, and learns them. (pyarrow's own threads share the columns of a piece
        and wait for each other at its end; by then what they decoded has left the caches.)
        """
        n_shares = min(self.arrow.cpu_count(), len(names), MOST_SHARES)
        ends = np.linspace(0, len(names), n_shares + 1).astype(int)
        shares = [list(names[start:end]) for start, end in itertools.pairwise(ends)]
        dtype, start = self.dtype(names), skipped
        learned = [ahead(self.learned_share(skipped, share, dtype), LEARNED_AHEAD) for share in shares]
        for parts in zip(*learned, strict=True):
            batches, found = zip(*parts, strict=True)
            if batches[0] is None:
                moments, missing = zip(*found, strict=True)
                whole = Moments(*np.concatenate(moments, axis=-1)), any(missing)
                yield _Learned(self.learn, whole, functools.partial(self.values, start, names))
            else:
                columns = [column for batch in batches for column in batch.columns]
                every = [name for batch in batches for name in batch.schema.names]
                yield _Columns(self.arrow.RecordBatch.from_arrays(columns, names=every))
            start += self.learn

    def learned_share(
        self, skipped: int, names: list[str], dtype: np.dtype[Any]
    ) -> Iterator[tuple[Any, tuple[Moments, bool] | None]]:
        """For some columns, what `learned` yields: moments, or the shorter piece; the other is None."""
        for batch in self.batches(skipped, self.learn, names, use_threads=False):
            if batch.num_rows < self.learn:
                yield batch, None
            else:
                columns = [np.asarray(_as_numbers(batch.column(name), dtype), dtype) for name in names]
                yield None, ColumnBatch(columns).moments(None, n_threads=1)

    def values(self, start: int, names: Sequence[str]) -> Array:
        """`learn` rows, read again."""
        again = Parquet(self.path, self.reading, self.data).pieces(names, start)
        return next(cut(again, names, self.learn, self.dtype(names), "F")).X

    def record_batches(self, skipped: int, names: Sequence[str], carry: str | None) -> Iterator[Any]:
        rows = self.rows_of_a_piece(len(self.columns if carry else names))
        return self.batches(skipped, rows, None if carry else list(names))

    def batches(self, skipped: int, rows: int, names: list[str] | None, *, use_threads: bool = True) -> Iterator[Any]:
        """Record batches of `rows` rows."""
        groups = range(int(np.searchsorted(self.starts, skipped)), len(self.starts) - 1)
        done, buffer = skipped, max(1 << 14, 8 * rows)
        # With pre_buffer pyarrow would keep the bytes of every row group read so far.
        with self.arrow.parquet.ParquetFile(self.data, buffer_size=buffer, pre_buffer=False) as file:
            for batch in file.iter_batches(rows, row_groups=groups, columns=names, use_threads=use_threads):
                done += batch.num_rows
                self.position = self.size * done // max(1, int(self.starts[-1]))
                yield self.renamed(batch) if names is None else batch


# What a stream ends with, unless its writer was stopped.
END_OF_STREAM = (b"\xff\xff\xff\xff\0\0\0\0", b"\0\0\0\0")


class Ipc(ArrowTable):
    """Arrow's own format, as a file or a stream. It is read, not mapped, and checked, so that damage is a message."""

    kind = "an Arrow file or stream"

    def opened(self, options: Any = None) -> tuple[Any, Any, bool]:
        """The file, a reader, and whether the reader knows where each record batch is."""
        file = self.arrow.OSFile(str(self.data))
        with_places = file.read(6) == b"ARROW1"
        file.seek(0)
        ipc = self.arrow.ipc
        return file, (ipc.open_file if with_places else ipc.open_stream)(file, options=options), with_places

    def read_columns(self) -> None:
        file, reader, with_places = self.opened()
        with file:
            self.describe(reader.schema)
            file.seek(max(0, self.size - 8))
            if not with_places and not file.read(8).endswith(END_OF_STREAM):
                self.said.append("its end is not marked: rows may be missing")

    def record_batches(self, skipped: int, names: Sequence[str], carry: str | None) -> Iterator[Any]:
        order = list(self.columns)
        wanted = None if carry else [order.index(name) for name in names]
        file, reader, with_places = self.opened(self.arrow.ipc.IpcReadOptions(included_fields=wanted))
        n = reader.num_record_batches if with_places else 0
        with file:
            for k, batch in enumerate(map(reader.get_batch, range(n)) if with_places else reader, 1):
                batch.validate(full=True)
                self.position = self.size * k // n if with_places else file.tell()
                yield self.renamed(batch) if carry else batch
            if not with_places and file.tell() < self.size:
                raise ValueError(f"{self.size - file.tell():,} byte(s) follow the end of its stream")


def pyarrow_for(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f"{path.suffix} files need pyarrow: pip install 'bncpu[io]'") from None
    return pyarrow


# ---- batches ----


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
