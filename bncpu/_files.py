"""The commands over files: fit with checkpoints, transform, report, merge, show.

The rows of all inputs are one stream, cut into batches of so many rows, whatever the files are. States are saved and
loaded to the bit, so a fit that was killed continues from its last checkpoint with the same result.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from bncpu import (
    BatchNormTransformer,
    _door,
    _inputs,
    _kernels,
    _layout,
    _report,
    _state_file,
    _tables,
    _temporary,
    _text,
    _writing,
)
from bncpu._device import LearnedBatch
from bncpu._inputs import STANDARD
from bncpu._tables import Batch, Reading, Table
from bncpu.state import content, parameters, restored

CHECKPOINT = "bncpu.fit"
CHECKPOINT_SECONDS = 5.0

# Bytes of a batch of `transform`, as float64. Several batches are in memory: read, computed, being written.
TRANSFORM_BYTES = 8 << 20

SHOWS_PROGRESS = True  # on terminals

Tell = Callable[[str], None]


class Stopped(KeyboardInterrupt):
    """A signal that ends the command as Ctrl-C does."""

    number = signal.SIGINT


class Interrupted(Exception):
    """The command was stopped by the signal `number`. The message says how to go on."""

    def __init__(self, message: str, stop: KeyboardInterrupt) -> None:
        super().__init__(message)
        self.number = getattr(stop, "number", signal.SIGINT)


def refuse_as_state(out: Path, *, force: bool) -> None:
    """Refuse a path that ends like a table, as if the state's name had been forgotten, or that holds another file."""
    ending = _inputs.ending(out)
    if force:
        return
    if ending is not None:
        raise ValueError(
            f"{str(out)!r} must name a state, such as state.json; it ends like a table, with {ending} (or --force)"
        )
    _state_file.may_replace(out)


def refuse_input_as_output(inputs: Sequence[Path], out: Path) -> None:
    """Refuse an output that is also an input."""
    if out != STANDARD and any(os.path.realpath(path) == os.path.realpath(out) for path in inputs):
        raise ValueError(f"the output {str(out)!r} is an input")


@contextlib.contextmanager
def temporary_files(reading: Reading, *folders: Path) -> Iterator[Reading]:
    """How to read with temporary files, which end with the block; what killed commands left there is removed first."""
    for folder in {tempfile.gettempdir(), *map(str, folders)}:
        _temporary.clear(folder)
    with contextlib.ExitStack() as stack:
        yield reading._replace(temporary=stack)


def opened(inputs: Sequence[Path], reading: Reading, tell: Tell) -> list[Table]:
    """The tables of these files; what was found out about them is told."""
    tables = []
    for path in inputs:
        table = _inputs.open_table(path, reading)
        for line in table.said:
            tell(f"{str(path)!r}: {line}")
        tables.append(table)
    return tables


# ---- the stream ----


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
    if not sys.stderr.isatty() or not SHOWS_PROGRESS:
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


# ---- fit ----


class Plan(NamedTuple):
    """What a fit is to do. A checkpoint continues only the same plan."""

    transformer: BatchNormTransformer
    columns: list[str] | None = None
    weights: str | None = None
    batch_rows: int | None = None
    exclude: Sequence[str] = ()
    reading: Reading = Reading()


def fit(inputs: Sequence[Path], out: Path, plan: Plan, *, resume: bool = False, force: bool = False, tell: Tell) -> str:
    """Learn from files into the state file `out`; returns a line for the user.

    Parameters
    ----------
    inputs : sequence of Path
    out : Path
    plan : Plan
    resume : bool
        Go on from the checkpoint beside `out`, if there is one.
    force : bool
        Replace whatever file there is.
    tell : callable
        Called with a line for the user.

    Raises
    ------
    Interrupted
        After Ctrl-C, or a signal to end.
    ImportError, OSError, ValueError
        If something is wrong with the files, or the checkpoint is of another fit.
    """
    refuse_input_as_output(inputs, out)
    refuse_as_state(out, force=force)
    if resume and any(not path.is_file() for path in inputs):
        raise ValueError("--resume needs files: what came through a pipe is gone")
    partial = out.with_name(out.name + ".partial")
    with temporary_files(plan.reading, out.parent) as reading:
        tables = opened(inputs, reading, tell)
        names = _columns_of_all(tables, plan, tell)
        batch_rows = plan.batch_rows or _most_rows(names)
        identity = _identity(tables, names, plan, batch_rows)
        bn, begun = plan.transformer, 0
        ends: list[int] = []
        if resume and partial.exists():
            bn, begun, ends = _checkpoint(partial, identity)
        elif not resume:
            if not force:
                _state_file.may_replace(partial)
            partial.unlink(missing_ok=True)
        stream, batches = _batches_of(tables, names, plan.weights, bn, ends, begun, batch_rows)

        def save() -> None:
            kept = {"state": content(bn), "rows": learning.rows, "ends": stream.ends, **identity}
            _state_file.write(partial, kept, CHECKPOINT)

        learning = Learning(bn, stream, names, begun)
        saved = time.monotonic()
        try:
            for _ in learning.of(tables, batches, "fit"):
                if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                    save()
                    saved = time.monotonic()
            if tables[0].named:
                bn.feature_names_in_ = np.array(names, dtype=object)
            _state_file.write(out, content(bn), force=force)
        except KeyboardInterrupt as stop:
            if hasattr(bn, "n_batches_seen_"):
                save()
            again = f"the same command with --resume goes on from {str(partial)!r}"
            raise Interrupted(f"interrupted; {again if partial.exists() else 'nothing is kept'}", stop) from None
        except (OSError, ValueError) as error:
            if partial.exists():
                same = OSError if isinstance(error, OSError) else ValueError
                raise same(f"{error} (the checkpoint {str(partial)!r} stays)") from None
            raise
        partial.unlink(missing_ok=True)
    return f"{learning.rows:,} rows, {len(names):,} columns, {bn.n_batches_seen_:,} batches: {out}"


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
        mapped = all(isinstance(table, _tables.Npy) and table.order == "C" for table in tables)
        with progress(self.stream, label) as show, room_for(beside=not mapped):
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


def dry_run(inputs: Sequence[Path], plan: Plan, tell: Tell) -> str:
    """What a fit would learn and why, as a table."""
    with temporary_files(plan.reading) as reading:
        tables = opened(inputs, reading, tell)
        names = set(_columns_of_all(tables, plan, lambda line: None))
        first = next((table for table in tables if table.columns), tables[0])
        rows = [("column", "type", "missing", "")]
        for name, column in first.columns.items():
            why = column.why_not or "not numbers"
            if name in names:
                why = "learned" + (f", though {column.why_not}" if column.why_not else "")
            elif name == plan.weights:
                why = "weights"
            elif name in plan.exclude:
                why = "excluded"
            elif plan.columns:
                why = "not in --columns"
            rows.append((name, column.type, column.missing, why))
        hint = "" if plan.columns or plan.exclude else "\n--exclude A,B leaves out a label or an id that is a number."
        files = f"{len(tables)} file(s), the columns of {str(first.path)!r}; nothing is learned or written."
        return f"{aligned(rows, right=(2,))}\n\n{files}{hint}"


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    """Rows of texts as a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if c in right else cell.ljust(width)
            for c, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _most_rows(names: Sequence[str]) -> int:
    """Rows of a batch whose values fit the caches."""
    return max(1, _tables.BATCH_BYTES // (8 * len(names)))


def _batches_of(
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
    plain = kind.merges and weights is None and batch_rows <= _most_rows(names) and len(dtypes) == 1
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


def _columns_of_all(tables: Sequence[Table], plan: Plan, tell: Tell) -> list[str]:
    """The columns to learn, which every file must have. The order of the files decides only that of the columns."""
    some = [table for table in tables if table.n_rows != 0]
    for table in tables:
        if table.n_rows == 0 and some:
            tell(f"{str(table.path)!r} has no rows")
    if not some:
        raise ValueError("there are no rows")
    first, other = some[0], {*plan.exclude, plan.weights}
    for table in some:
        if table.named and not first.named:
            raise ValueError(f"{str(table.path)!r} has other columns than {str(first.path)!r}: {_widths(table, first)}")
        if not table.named and (first.named or len(table.columns) != len(first.columns)):
            raise ValueError(f"{str(table.path)!r} has other columns than {str(first.path)!r}: {_widths(table, first)}")
    if not first.named and (plan.columns or plan.exclude or plan.weights):
        raise ValueError(f"{str(first.path)!r} has no column names, for --columns, --exclude or --weights")
    for name in [*plan.exclude, *(plan.columns or ())]:
        if name not in first.columns:
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
    titles = [column.title for column in table.columns.values()]
    for name in names:
        if name not in table.columns:
            raise ValueError(f"{str(table.path)!r} has no column {name!r}")
        column = table.columns[name]
        if titles.count(column.title) > 1 and column.title:
            raise ValueError(f"{str(table.path)!r} has several columns {column.title!r}")
        if not column.numeric:
            what = column.why_not.removeprefix("not numbers")
            raise ValueError(f"the column {name!r} of {str(table.path)!r} does not hold numbers{what and f': {what}'}")


def _identity(tables: Sequence[Table], names: list[str], plan: Plan, batch_rows: int) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued."""
    names_of_options = ("momentum", "halflife", "window", "eps", "ddof", "clip")
    options = {f"--{name}": getattr(plan.transformer, name) for name in names_of_options}
    options |= {"--columns": names, "--weights": plan.weights, "--batch-rows": batch_rows}
    reading = {name: value for name, value in plan.reading._asdict().items() if name != "temporary"}
    options["the way of reading"] = json.loads(json.dumps(reading))
    stats = [(os.path.realpath(table.path), os.stat(table.data)) for table in tables]
    return {"options": options, "inputs": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]}


def _checkpoint(partial: Path, identity: dict[str, Any]) -> tuple[BatchNormTransformer, int, list[int]]:
    """From a checkpoint: the transformer, its number of rows, and the number up to the end of each file read."""
    try:
        kept = _state_file.read(partial, CHECKPOINT)
        inputs, options = kept["inputs"], kept["options"]
        bn = restored(BatchNormTransformer, kept["state"])
        rows, ends = int(kept["rows"]), [int(end) for end in kept["ends"]]
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(partial)!r} is no checkpoint of a fit: {error}; start afresh without --resume"
        ) from None
    change = ""
    for option, now in identity["options"].items():
        if options.get(option) != now:
            change = change or f"{option} was {options.get(option)}, and is {now}"
    for before, now in zip(inputs, identity["inputs"], strict=False):
        if before != now:
            change = change or (
                f"{now[0]!r} has changed" if before[0] == now[0] else f"{before[0]!r} was read, not {now[0]!r}"
            )
    if len(inputs) != len(identity["inputs"]):
        change = change or f"there were {len(inputs)} input files, and are {len(identity['inputs'])}"
    if change:
        raise ValueError(f"{str(partial)!r} is of another fit: {change}; start afresh without --resume")
    return bn, rows, ends


# ---- transform ----


class Change(NamedTuple):
    """How `transform` changes rows."""

    inverse: bool = False
    float32: bool = False
    reading: Reading = Reading()
    force: bool = False


def outputs(
    names: Sequence[str], inputs: Sequence[Path], out: Path, given: str | None, *, as_folder: bool
) -> list[Path]:
    """Where the result of each input goes: `out`, or a file of the same name below the folder `out`."""
    folders = [Path(name) for name in names if Path(name).is_dir()]
    if out == STANDARD or not (as_folder or out.is_dir() or len(inputs) > 1):
        if len(inputs) > 1:
            raise ValueError(f"{len(inputs)} files cannot be written to {str(out)!r}; -o must name a folder")
        return [out]
    if out.exists() and not out.is_dir():
        raise ValueError(f"-o must name a folder for {len(inputs)} file(s), got the file {str(out)!r}")
    if _inputs.ending(out) and not out.exists():
        raise ValueError(f"-o must name a folder for {len(inputs)} file(s); {str(out)!r} ends like a table")
    paths = []
    for path in inputs:
        folder = next((folder for folder in folders if path.is_relative_to(folder)), None)
        if folder is not None and out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"the folder {str(out)!r} is in the input {str(folder)!r}")
        name = path.relative_to(folder) if folder else Path(path.name)
        if given:
            ending = _inputs.ending(path) or ""
            name = name.with_name(name.name[: len(name.name) - len(ending)] + f".{given}")
        elif path == STANDARD:
            raise ValueError("what comes through - has no name for its result; -o must name a file")
        paths.append(out / name)
    twice = next((path for k, path in enumerate(paths) if path in paths[:k]), None)
    if twice is not None:
        raise ValueError(f"two results would be {str(twice)!r}")
    return paths


def transform(state: Path, inputs: Sequence[Path], outs: Sequence[Path], change: Change, *, tell: Tell) -> str:
    """Normalize files with the transformer in the file `state`; returns a line for the user.

    Raises
    ------
    Interrupted
        After Ctrl-C, or a signal to end.
    ImportError, OSError, ValueError
        If something is wrong with the files. Results that are whole stay.
    """
    for out in outs:
        refuse_input_as_output([state, *inputs], out)
        if not change.force and out != STANDARD and out.is_file() and out.stat().st_size:
            raise ValueError(f"{str(out)!r} is there already; --force replaces it")
    bn = BatchNormTransformer.load(state)
    names = list(getattr(bn, "feature_names_in_", ()))
    if names:
        del bn.feature_names_in_  # they are checked here, and the batches are plain arrays
    if change.float32:
        bn.dtype = np.float32
    line = ""
    for path, out in zip(inputs, outs, strict=True):
        if len(outs) > 1 or not out.parent.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
        with temporary_files(change.reading, *(() if out == STANDARD else (out.parent,))) as reading:
            (table,) = opened([path], reading, tell)
            line = _transformed(bn, names, state, table, out, change)
            if len(outs) > 1:
                tell(line)
    return line if len(outs) == 1 else f"{len(outs)} files normalized"


def _transformed(
    bn: BatchNormTransformer, names: list[str], state: Path, table: Table, out: Path, change: Change
) -> str:
    ending = _inputs.ending(out) or _inputs.format_of(out, change.reading.format)
    if table.n_rows == 0 and not table.named:
        table.columns = {f"x{c}": _tables.Column(f"x{c}", "") for c in range(bn.n_features_in_)}
    if names and table.named:
        require(table, names)
    else:
        names = table.numbers
    if len(names) != bn.n_features_in_:
        held = f"{len(names)} columns of numbers"
        raise ValueError(f"{str(table.path)!r} has {held}, and {str(state)!r} {bn.n_features_in_}")
    normalized = set(names)
    rest = [name for name in table.columns if name not in normalized]
    if ending == ".npy" and rest:
        raise ValueError(f"a .npy cannot hold the column {rest[0]!r} of {str(table.path)!r} beside the numbers")
    carry = None if ending == ".npy" or not table.named else ending
    batch_rows = max(1, TRANSFORM_BYTES // (8 * len(names)))
    dtype, stream = table.dtype(names), Stream([table])
    batches = _tables.cut(
        stream.pieces(names, carry=carry), names, batch_rows, dtype, table.order, carry=carry is not None
    )
    result = _layout.result_dtype(dtype, None if bn.dtype is None else np.dtype(bn.dtype))
    spaces = [np.empty((batch_rows, len(names)), result, order=table.order) for _ in range(2)]
    titles = {name: column.title for name, column in table.columns.items()}
    rows = 0

    def results() -> Iterator[_writing.Result]:
        nonlocal rows
        with progress(stream, "transform") as show, room_for(beside=True):
            for batch in _tables.ahead_of([table], batches):
                try:
                    if change.inverse:
                        Y = np.asarray(bn.inverse_transform(batch.X), result)
                    else:
                        Y = bn.transform(batch.X, out=spaces[0][: len(batch.X)])
                except ValueError as error:
                    raise refused(error, batch, rows, names, stream) from None
                spaces.reverse()  # this result is written while the next one is computed
                yield _writing.Result(Y, names, batch.carried, titles)
                rows += len(batch.X)
                show(rows)
        if not rows:
            nothing = table.empty_batch() if carry is not None else []
            yield _writing.Result(spaces[0][:0], names, nothing, titles)

    raw = isinstance(table, _text.JsonLines)
    try:
        with contextlib.ExitStack() as stack:
            file: Any = sys.stdout.buffer if out == STANDARD else stack.enter_context(_state_file.replacing(out))
            _writing.write(out, file, ending, _tables.ahead(results()), raw)
            file.flush()
    except KeyboardInterrupt as stop:
        kept = "" if out == STANDARD else f"; {str(out)!r} is as it was"
        raise Interrupted(f"interrupted{kept}", stop) from None
    return f"{rows:,} rows, {len(names):,} of {len(table.columns):,} columns normalized: {out}"


# ---- report ----


class Comparison(NamedTuple):
    """The report of files, and whether it is beyond what is allowed."""

    report: _report.Report
    beyond: list[str]


def report(
    state: Path, inputs: Sequence[Path], min_shift: float, max_shift: float | None, reading: Reading, tell: Tell
) -> Comparison:
    """How files differ from the statistics in the file `state`.

    Raises
    ------
    ImportError, OSError, ValueError
        If something is wrong with the files.
    """
    bn = BatchNormTransformer.load(state)
    new = BatchNormTransformer()
    known = getattr(bn, "feature_names_in_", None)
    with temporary_files(reading) as how:
        tables = opened(inputs, how, tell)
        plan = Plan(new, None if known is None else list(known))
        names = _columns_of_all(tables, plan, lambda line: None)
        if len(names) != bn.n_features_in_:
            held = f"{len(names)} columns of numbers"
            raise ValueError(f"{str(inputs[0])!r} has {held}, and {str(state)!r} {bn.n_features_in_}")
        stream, batches = _batches_of(tables, names, None, new, [], 0, _most_rows(names))
        for _ in (learning := Learning(new, stream, names)).of(tables, batches, "report"):
            pass
        dtype = np.result_type(*(table.dtype(names) for table in tables))
    found = new._state.running.moments
    X = LearnedBatch((learning.rows, len(names)), dtype, (found, False), lambda: np.empty((0, len(names))))
    made = _report.made(bn._state, known, X, found, found.count, min_shift)
    beyond: list[str] = []
    if max_shift is not None:
        c = made.columns
        over = (np.abs(c["shift"]) > max_shift) | np.isinf(c["gap"])
        beyond = [str(name) for name in c["feature"][over]]
    return Comparison(made, beyond)


def as_json(found: Comparison) -> str:
    """A report in JSON; what is not finite is null."""
    columns = {name: values.tolist() for name, values in found.report.columns.items()}
    features = [dict(zip(columns, map(_plain, row), strict=True)) for row in zip(*columns.values(), strict=True)]
    return json.dumps({"features": features, "beyond": found.beyond, "notes": found.report.notes}, indent=1)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


# ---- merge and show ----


def merge(states: Sequence[Path], out: Path, *, force: bool = False) -> str:
    """Join states as if one transformer had seen all their rows; returns a line for the user.

    Raises
    ------
    OSError, ValueError
        If something is wrong with the files.
    """
    refuse_as_state(out, force=force)
    real = [os.path.realpath(path) for path in states]
    for k, path in enumerate(states):
        if real[k] in real[:k]:
            raise ValueError(f"{str(path)!r} is named twice: its rows would count twice")
    loaded = [BatchNormTransformer.load(path) for path in states]
    for path, bn in zip(states, loaded, strict=True):
        if not bn._state.kind.merges:
            raise ValueError(
                f"{str(path)!r} has {bn._state.kind.name} statistics; merge needs cumulative ones, which know no order"
            )
    total = loaded[0]
    for path, bn in zip(states[1:], loaded[1:], strict=True):
        try:
            total.merge(bn)
        except ValueError as error:
            raise ValueError(f"{str(path)!r} cannot be merged into {str(states[0])!r}: {error}") from None
    _state_file.write(out, content(total), force=force)
    return f"{len(states)} states, {total.n_batches_seen_:,} batches: {out}"


def _told(value: Any) -> Any:
    """A parameter in plain numbers."""
    if isinstance(value, np.timedelta64):
        return value.astype("m8[us]").item()  # of Python: 14 days, 0:00:00
    return np.asarray(value).tolist()


def show(state: Path, *, as_json: bool = False) -> str:
    """The content of a state file, as lines to print.

    Raises
    ------
    OSError, ValueError
        If it is not a state file.
    """
    bn = BatchNormTransformer.load(state)
    defaults = BatchNormTransformer().get_params()
    changed = {name: _told(value) for name, value in bn.get_params().items() if np.any(value != defaults[name])}
    counts = np.broadcast_to(np.asarray(bn.n_samples_seen_), bn.n_features_in_)
    names = getattr(bn, "feature_names_in_", [f"x{c}" for c in range(bn.n_features_in_)])
    means, stds = bn.running_mean_.tolist(), np.sqrt(bn.running_var_).tolist()
    columns = list(zip(names, means, stds, counts.tolist(), strict=True))
    if as_json:
        heads = ("column", "mean", "std", "count")
        about = {"statistics": bn._state.kind.name, "batches": bn.n_batches_seen_, "parameters": changed}
        found = [dict(zip(heads, map(_plain, column), strict=True)) for column in columns]
        return json.dumps({**about, "columns": found}, indent=1, default=str)
    rows = [("column", "mean", "std", "count")]
    rows += [(name, f"{mean:#.6g}", f"{std:#.6g}", f"{count:,}") for name, mean, std, count in columns]
    seen = f"{counts.max():,} rows in {bn.n_batches_seen_:,} batch(es)"
    options = ", ".join(f"{name}={value}" for name, value in changed.items()) or "defaults"
    head = f"{bn._state.kind.name} statistics of {seen}; parameters: {options}"
    return "\n".join([head, "", aligned(rows, right=(1, 2, 3))])
