"""The rows of several files as one stream, which of their columns are learned, and a transformer that learns them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from bncpu import BatchNormTransformer, _door, _inputs, _kernels, _tables
from bncpu._tables import Batch, Reading, Table
from bncpu.state import parameters

SHOWS_PROGRESS = True  # on terminals

Tell = Callable[[str], None]


class Plan(NamedTuple):
    """What a fit is to do. A checkpoint continues only the same plan."""

    transformer: BatchNormTransformer
    columns: list[str] | None = None
    weights: str | None = None
    batch_rows: int | None = None
    exclude: Sequence[str] = ()
    reading: Reading = Reading()


def opened(inputs: Sequence[Path], reading: Reading, tell: Tell) -> list[Table]:
    """The tables of these files; what was found out about them is told."""
    tables = []
    for path in inputs:
        table = _inputs.open_table(path, reading)
        for line in table.said:
            tell(f"{str(path)!r}: {line}")
        tables.append(table)
    return tables


class Stream:
    """The rows of several files, one after the other.

    Parameters
    ----------
    tables : list of Table
    ends : list of int
        Number of rows of the stream up to the end of each file, for the files read before a checkpoint.
    learn : int
        If not 0: pieces of so many rows may be moments, without their values.
    """

    def __init__(self, tables: Sequence[Table], ends: Sequence[int] = (), learn: int = 0) -> None:
        self.tables, self.learn = tables, learn
        self.ends = list(ends)
        self.n_bytes = sum(table.size for table in tables)

    def pieces(self, names: Sequence[str], skip: int = 0, carry: str | None = None) -> Iterator[_tables.Piece]:
        """The rows from `skip` on. Files that end before it are not read."""
        self.ends = [end for end in self.ends if end <= skip]
        for table in self.tables[: len(self.ends)]:
            table.position = table.size
        for table in self.tables[len(self.ends) :]:
            start = self.ends[-1] if self.ends else 0
            end = skip = max(start, skip)
            table.learn = 0 if self.learn and start % self.learn else self.learn
            for piece in table.pieces(names, skip - start, carry):
                end += len(piece)
                yield piece
            self.ends.append(end)

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return sum(table.position for table in self.tables)

    def place(self, row: int) -> str:
        """File and line (or row in the file) of a row that has been read."""
        k = sum(end <= row for end in self.ends)
        return self.tables[k].place(row - (self.ends[k - 1] if k else 0))


def refused(error: ValueError, batch: Batch, first_row: int, names: Sequence[str], stream: Stream) -> ValueError:
    """The error to raise for a refused batch, which names the place in the file."""
    X = _door.as_batch(batch.X).in_memory()
    rows, columns = np.nonzero(np.isinf(X))
    if len(rows):
        more = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
        return ValueError(
            f"{stream.place(first_row + int(rows[0]))}: infinity in column {names[columns[0]]!r}{more}; "
            "leave it out or make it missing"
        )
    if batch.weights is not None:
        (bad,) = np.nonzero(~(np.isfinite(batch.weights) & (batch.weights >= 0)))
        if len(bad):
            place, weight = stream.place(first_row + int(bad[0])), batch.weights[bad[0]]
            return ValueError(f"{place}: the weight is {weight:g}; weights must be finite and not negative")
    return ValueError(f"{stream.place(first_row)} and the {len(batch.X) - 1:,} rows after it: {error}")


@contextlib.contextmanager
def progress(stream: Stream, label: str) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, if rich is installed. Yields a function to call with the number of rows so far."""
    if sys.stderr is None or not sys.stderr.isatty() or not SHOWS_PROGRESS:
        yield lambda rows: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda rows: None
        return
    bars = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*bars, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=stream.n_bytes, completed=stream.position, rate="")
        start: tuple[float, int, int] | None = None

        def show(rows: int) -> None:
            nonlocal start
            now = (time.perf_counter(), rows, stream.position)
            start = start or now
            seconds, n_rows, n_bytes = (b - a for a, b in zip(start, now, strict=True))
            rate = f"{n_rows / seconds:,.0f} rows/s  {n_bytes / seconds / 1e6:,.0f} MB/s" if seconds > 0 else ""
            bar.update(task, completed=now[2], rate=rate)

        yield show


def room_for(*, beside: bool) -> Any:
    """Leave one processor to the reader or writer, if `beside`: sharing a processor would slow both."""
    if not beside:
        return contextlib.nullcontext()
    return threadpool_limits(max(1, _kernels.max_threads() - 1), user_api="openmp")


# ---- which columns ----


def columns_of_all(tables: Sequence[Table], plan: Plan, tell: Tell) -> list[str]:
    """The columns to learn, which every file must have. The order of the files decides only that of the columns."""
    some = [table for table in tables if table.n_rows != 0]
    for table in tables:
        if table.n_rows == 0 and some:
            tell(f"{str(table.path)!r} has no rows")
    if not some:
        more = f" and {len(tables) - 1:,} more" if len(tables) > 1 else ""
        raise ValueError(f"there are no rows in {str(tables[0].path)!r}{more}")
    first, other = some[0], {*plan.exclude, plan.weights}
    for table in some:
        if table.named and not first.named:
            raise ValueError(f"{str(table.path)!r} has other columns than {str(first.path)!r}: {_widths(table, first)}")
        if not table.named and (first.named or len(table.columns) != len(first.columns)):
            raise ValueError(f"{str(table.path)!r} has other columns than {str(first.path)!r}: {_widths(table, first)}")
    if not first.named and (plan.columns or plan.exclude or plan.weights):
        raise ValueError(f"{str(first.path)!r} has no column names, for --columns, --exclude or --weights")
    for name in plan.exclude:
        if not any(name in table.columns for table in some):
            raise ValueError(f"{str(first.path)!r} has no column {name!r}")
    names = plan.columns or _columns_found(some, other, tell)
    if not names:
        beside = " beside the weights and those excluded" if any(table.numbers for table in some) else ""
        raise ValueError(f"{str(first.path)!r} has no column of numbers{beside}")
    for table in some:
        require(table, names if plan.weights is None else [*names, plan.weights])
    return names


def _columns_found(tables: Sequence[Table], other: set[str | None], tell: Tell) -> list[str]:
    """The columns that hold numbers in one file at least, and nothing else in any."""
    names, left_out = [], dict[str, list[str]]()
    every = [name for table in tables for name, about in table.columns.items() if not {name, about.title} & other]
    for name in dict.fromkeys(every):
        having = [(table, table.columns[name]) for table in tables if name in table.columns]
        why_not = next((column.why_not for _, column in having if column.why_not), "")
        lacking = next((table for table in tables if name not in table.columns), None)
        numbers = [table for table, column in having if column.numeric and not column.empty and not column.why_not]
        for table, column in having:
            if numbers and not column.numeric:
                what = column.why_not.removeprefix("not numbers").removeprefix("numbers ")
                raise ValueError(
                    f"the column {name!r} of {str(table.path)!r} does not hold numbers{what and f': {what}'}; "
                    f"that of {str(numbers[0].path)!r} does"
                )
        if why_not == _tables.TWICE and having[0][1].numeric:
            raise ValueError(f"{str(having[0][0].path)!r} has several columns {having[0][1].title!r}; --exclude them")
        if why_not:
            left_out.setdefault(why_not, []).append(name or "''")
        elif lacking is None:
            names.append(name)
        elif numbers and lacking is tables[0]:
            there, here = str(numbers[0].path), str(lacking.path)
            raise ValueError(f"{there!r} has a column {name!r} of numbers, {here!r} has not")
        elif numbers:
            raise ValueError(f"{str(lacking.path)!r} has no column {name!r}")
    for why_not, some in left_out.items():
        tell(f"left out, {why_not}: {', '.join(some)}")
    return names


def _widths(table: Table, first: Table) -> str:
    ours, theirs = (f"{len(t.columns)}{'' if t.named else ' without names'}" for t in (table, first))
    return f"{ours}, not {theirs}"


def require(table: Table, names: Sequence[str]) -> None:
    """Check that a table has these columns, each once, and that they hold numbers."""
    titles = Counter(column.title for column in table.columns.values())
    for name in names:
        if name not in table.columns:
            raise ValueError(f"{str(table.path)!r} has no column {name!r}")
        column = table.columns[name]
        if titles[column.title] > 1 and column.title:
            raise ValueError(f"{str(table.path)!r} has several columns {column.title!r}")
        if not column.numeric:
            what = column.why_not.removeprefix("not numbers")
            raise ValueError(f"the column {name!r} of {str(table.path)!r} does not hold numbers{what and f': {what}'}")


# ---- learning ----


def most_rows(names: Sequence[str]) -> int:
    """Rows of a batch whose values fit the caches."""
    return max(1, _tables.BATCH_BYTES // (8 * len(names)))


def batches_of(
    tables: Sequence[Table],
    names: list[str],
    weights: str | None,
    bn: BatchNormTransformer,
    ends: list[int],
    begun: int,
    batch_rows: int,
) -> tuple[Stream, Iterator[Batch]]:
    """The rows of all files as one stream, and its batches from row `begun` on, as `bn` learns them."""
    dtypes, orders = {table.dtype(names) for table in tables}, {table.order for table in tables}
    kind = parameters(bn).kind
    # Whether columns may be learned where they are decoded.
    plain = kind.merges and weights is None and batch_rows <= most_rows(names) and len(dtypes) == 1
    stream = Stream(tables, ends, batch_rows if plain else 0)
    batches = _tables.cut(
        stream.pieces([*names, weights] if weights else names, begun),
        names,
        batch_rows,
        dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float64),
        "C" if orders == {"C"} else "F",
        weights=weights,
        columns=True,
        fewest=kind.fewest_values(bn.ddof),
    )
    return stream, batches


class Learning:
    """A transformer that learns a stream.

    Parameters
    ----------
    bn : BatchNormTransformer
    stream : Stream
    names : list of str
    begun : int
        Rows that it has learned before.
    """

    def __init__(self, bn: BatchNormTransformer, stream: Stream, names: list[str], begun: int = 0) -> None:
        self.bn, self.stream, self.names = bn, stream, names
        # By the number of batches learned, so that it is right whenever Ctrl-C comes.
        self.after = {getattr(bn, "n_batches_seen_", 0): begun}

    @property
    def rows(self) -> int:
        """How many rows it has learned."""
        return self.after[getattr(self.bn, "n_batches_seen_", 0)]

    def of(self, tables: Sequence[Table], batches: Iterator[Batch], label: str) -> Iterator[None]:
        """Learn all batches; yields after each."""
        bn, (first,) = self.bn, self.after
        arrays = all(isinstance(table, _tables.Npy) and table.order == "C" for table in tables)
        with progress(self.stream, label) as show, room_for(beside=not arrays):
            for n, batch in enumerate(_tables.ahead_of(tables, batches), first):
                self.after = {n: self.after[n], n + 1: self.after[n] + len(batch.X)}
                try:
                    bn.partial_fit(batch.X, sample_weight=batch.weights)
                except ValueError as error:
                    raise refused(error, batch, self.after[n], self.names, self.stream) from None
                show(self.rows)
                yield
        if not hasattr(bn, "n_batches_seen_"):
            raise ValueError("there are no rows")
