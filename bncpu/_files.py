"""The commands over files: fit with checkpoints, transform, merge, show.

The rows of all inputs are one stream, cut into batches of so many rows, whatever the files are. States are saved and
loaded to the bit, so a fit that was killed continues from its last checkpoint with the same result.
"""

from __future__ import annotations

import contextlib
import glob
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from bncpu import BatchNormTransformer, _door, _kernels, _layout, _state_file, _tables, _writing
from bncpu._tables import Batch, Table
from bncpu.state import content, parameters, restored

CHECKPOINT = "bncpu.fit"
CHECKPOINT_SECONDS = 5.0

# Bytes of a batch of `transform`, as float64. Several batches are in memory: read, computed, being written.
TRANSFORM_BYTES = 8 << 20


class Interrupted(Exception):
    """Ctrl-C. The message says how to go on."""


def found(names: Sequence[str]) -> list[Path]:
    """The files for the arguments of a command, each a file, a folder (all tables below it), or a pattern.

    The files of a folder or a pattern are sorted.

    Raises
    ------
    FileNotFoundError
        If an argument names nothing.
    ValueError
        If a file is named twice.
    """
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            below = (p for p in path.rglob("*") if _tables.ending(p) and p.is_file())
            hidden = (".", "_")
            some = sorted(p for p in below if not any(part.startswith(hidden) for part in p.relative_to(path).parts))
        elif path.exists() or not glob.has_magic(name):
            some = [path]
        else:
            some = sorted(map(Path, glob.glob(name, recursive=True)))
        if not some:
            raise FileNotFoundError(f"no table in {name!r}" if path.is_dir() else f"no file matches {name!r}")
        paths += some
    seen = set()
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            raise ValueError(f"{str(path)!r} is named twice")
        seen.add(real)
    return paths


def refuse_as_state(out: Path) -> None:
    """Refuse a path that ends like a table, as if the state's name had been forgotten, or that holds another file."""
    ending = _tables.ending(out)
    if ending is not None:
        raise ValueError(f"{str(out)!r} must name a state, such as state.json; it ends like a table, with {ending}")
    _state_file.may_replace(out)


def refuse_input_as_output(inputs: Sequence[Path], out: Path) -> None:
    """Refuse an output that is also an input."""
    if any(os.path.realpath(path) == os.path.realpath(out) for path in inputs):
        raise ValueError(f"the output {str(out)!r} is an input")


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
    if not sys.stderr.isatty():
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


def fit(inputs: Sequence[Path], out: Path, plan: Plan, *, resume: bool, tell: Callable[[str], None]) -> str:
    """Learn from files into the state file `out`; returns a line for the user.

    Parameters
    ----------
    inputs : sequence of Path
    out : Path
    plan : Plan
    resume : bool
        Go on from the checkpoint beside `out`, if there is one.
    tell : callable
        Called with a line for the user.

    Raises
    ------
    Interrupted
        After Ctrl-C.
    ImportError, OSError, ValueError
        If something is wrong with the files, or the checkpoint is of another fit.
    """
    refuse_input_as_output(inputs, out)
    refuse_as_state(out)
    partial = out.with_name(out.name + ".partial")
    tables = [_tables.open_table(path) for path in inputs]
    names = _columns_of_all(tables, plan)
    numbers = set(tables[0].numbers)
    left_out = [name for name in tables[0].columns if name not in numbers]
    if left_out and plan.columns is None:
        tell(f"left out, not numbers: {', '.join(left_out)}")
    batch_rows = plan.batch_rows or _most_rows(names)
    identity = _identity(tables, names, plan, batch_rows)
    bn, begun = plan.transformer, 0
    ends: list[int] = []
    if resume and partial.exists():
        bn, begun, ends = _checkpoint(partial, identity)
    elif not resume:
        _state_file.may_replace(partial)
        partial.unlink(missing_ok=True)
    stream, batches = _batches_of(tables, names, plan.weights, bn, ends, begun, batch_rows)
    n_batches = getattr(bn, "n_batches_seen_", 0)
    rows = {n_batches: begun}  # by the number of batches learned, so that it is right whenever Ctrl-C comes

    def save() -> None:
        kept = {"state": content(bn), "rows": rows[bn.n_batches_seen_], "ends": stream.ends, **identity}
        _state_file.write(partial, kept, CHECKPOINT)

    saved = time.monotonic()
    mapped = all(isinstance(table, _tables.Npy) and table.reads_ahead for table in tables)
    try:
        with progress(stream, "fit") as show, room_for(beside=not mapped):
            for n, batch in enumerate(_tables.ahead_of(tables, batches), n_batches):
                rows = {n: rows[n], n + 1: rows[n] + len(batch.X)}
                try:
                    bn.partial_fit(batch.X, sample_weight=batch.weights)
                except ValueError as error:
                    raise refused(error, batch, rows[n], names, stream) from None
                show(rows[n + 1])
                if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                    save()
                    saved = time.monotonic()
        if not hasattr(bn, "n_batches_seen_"):
            raise ValueError("there are no rows")
        if tables[0].named:
            bn.feature_names_in_ = np.array(names, dtype=object)
        bn.save(out)
    except KeyboardInterrupt:
        if hasattr(bn, "n_batches_seen_"):
            save()
        kept = (
            f"the same command with --resume goes on from {str(partial)!r}" if partial.exists() else "nothing is kept"
        )
        raise Interrupted(f"interrupted; {kept}") from None
    except (OSError, ValueError) as error:
        if partial.exists():
            same = OSError if isinstance(error, OSError) else ValueError
            raise same(f"{error} (the checkpoint {str(partial)!r} stays)") from None
        raise
    partial.unlink(missing_ok=True)
    return f"{rows[bn.n_batches_seen_]:,} rows, {len(names):,} columns, {bn.n_batches_seen_:,} batches: {out}"


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


def _columns_of_all(tables: Sequence[Table], plan: Plan) -> list[str]:
    """The columns to learn, which every file must have."""
    first, other = tables[0], {*plan.exclude, plan.weights}
    if not first.named and (plan.columns or plan.exclude or plan.weights):
        raise ValueError(f"{str(first.path)!r} has no column names, for --columns, --exclude or --weights")
    for name in set(plan.exclude) - set(first.columns):
        raise ValueError(f"{str(first.path)!r} has no column {name!r}")
    names = plan.columns or [name for name in first.numbers if name not in other]
    if not names:
        raise ValueError(f"{str(first.path)!r} has no column of numbers beside the weights and those excluded")
    for table in tables:
        if table.named != first.named or (not table.named and table.columns != first.columns):
            raise ValueError(
                f"{str(table.path)!r} has other columns than {str(first.path)!r}: {_difference(table, first)}"
            )
        require(table, names if plan.weights is None else [*names, plan.weights])
        more = set(table.numbers) - set(table.empty) - {*names, *other}
        if more and plan.columns is None:
            raise ValueError(f"{str(table.path)!r} has a column {min(more)!r} of numbers, {str(first.path)!r} has not")
    return names


def _difference(table: Table, first: Table) -> str:
    ours, theirs = (f"{len(t.columns)}{'' if t.named else ' without names'}" for t in (table, first))
    return f"{ours}, not {theirs}"


def require(table: Table, names: Sequence[str]) -> None:
    """Check that a table has these columns, and that they hold numbers."""
    columns, numbers = set(table.columns), set(table.numbers)
    for name in names:
        if name not in columns:
            raise ValueError(f"{str(table.path)!r} has no column {name!r}")
        if name not in numbers:
            raise ValueError(f"the column {name!r} of {str(table.path)!r} does not hold numbers")


def _identity(tables: Sequence[Table], names: list[str], plan: Plan, batch_rows: int) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued."""
    names_of_options = ("momentum", "halflife", "window", "eps", "ddof", "clip")
    options = {f"--{name}": getattr(plan.transformer, name) for name in names_of_options}
    options |= {"--columns": names, "--weights": plan.weights, "--batch-rows": batch_rows}
    stats = [(os.path.realpath(table.path), os.stat(table.path)) for table in tables]
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


# ---- transform, merge, show ----


def transform(state: Path, source: Path, out: Path) -> str:
    """Normalize a file with the transformer in the file `state`; returns a line for the user.

    Raises
    ------
    ImportError, OSError, ValueError
        If something is wrong with the files.
    """
    refuse_input_as_output([state, source], out)
    bn = BatchNormTransformer.load(state)
    table = _tables.open_table(source)
    names = list(getattr(bn, "feature_names_in_", table.numbers))
    if hasattr(bn, "feature_names_in_"):
        if table.named:
            require(table, names)
        else:
            names = table.numbers
        del bn.feature_names_in_  # they have been checked, and the batches are plain arrays
    if len(names) != bn.n_features_in_:
        raise ValueError(f"{str(source)!r} has {len(names)} columns of numbers, and {str(state)!r} {bn.n_features_in_}")
    normalized = set(names)
    rest = [name for name in table.columns if name not in normalized]
    kind = _tables.ending(out)
    if kind == ".npy" and rest:
        raise ValueError(f"a .npy cannot hold the column {rest[0]!r} of {str(source)!r} beside the numbers")
    carry = None if kind == ".npy" else "text" if str(kind).startswith(".csv") else "typed"
    batch_rows = max(1, TRANSFORM_BYTES // (8 * len(names)))
    dtype, stream = table.dtype(names), Stream([table])
    pieces = stream.pieces(names, carry=carry)
    batches = _tables.cut(pieces, names, batch_rows, dtype, table.order, carry=carry is not None and table.named)
    result = _layout.result_dtype(dtype, None if bn.dtype is None else np.dtype(bn.dtype))
    spaces = [np.empty((batch_rows, len(names)), result, order=table.order) for _ in range(2)]
    rows = 0

    def results() -> Iterator[_writing.Result]:
        nonlocal rows
        with progress(stream, "transform") as show, room_for(beside=True):
            for batch in _tables.ahead_of([table], batches):
                try:
                    Y = bn.transform(batch.X, out=spaces[0][: len(batch.X)])
                except ValueError as error:
                    raise refused(error, batch, rows, names, stream) from None
                spaces.reverse()  # this result is written while the next one is computed
                yield _writing.Result(Y, names, batch.carried)
                rows += len(batch.X)
                show(rows)
        if not rows:
            raise ValueError(f"{str(source)!r} has no rows")

    try:
        _writing.write(out, _tables.ahead(results()))
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {str(out)!r} is as it was") from None
    return f"{rows:,} rows, {len(names):,} of {len(table.columns):,} columns normalized: {out}"


def merge(states: Sequence[Path], out: Path) -> str:
    """Join states as if one transformer had seen all their rows; returns a line for the user.

    Raises
    ------
    OSError, ValueError
        If something is wrong with the files.
    """
    refuse_as_state(out)
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
    total.save(out)
    return f"{len(states)} states, {total.n_batches_seen_:,} batches: {out}"


def _told(value: Any) -> Any:
    """A parameter in plain numbers."""
    if isinstance(value, np.timedelta64):
        return value.astype("m8[us]").item()  # of Python: 14 days, 0:00:00
    return np.asarray(value).tolist()


def show(state: Path) -> str:
    """The content of a state file, as lines to print.

    Raises
    ------
    OSError, ValueError
        If it is not a state file.
    """
    bn = BatchNormTransformer.load(state)
    defaults = BatchNormTransformer().get_params()
    changed = {name: value for name, value in bn.get_params().items() if np.any(value != defaults[name])}
    counts = np.broadcast_to(np.asarray(bn.n_samples_seen_), bn.n_features_in_)
    names = getattr(bn, "feature_names_in_", [f"x{c}" for c in range(bn.n_features_in_)])
    stds = np.sqrt(bn.running_var_)
    parameters = ", ".join(f"{name}={_told(value)}" for name, value in changed.items()) or "defaults"
    rows = [("column", "mean", "std", "count")]
    for name, mean, std, count in zip(names, bn.running_mean_, stds, counts.tolist(), strict=True):
        rows.append((name, f"{mean:#.6g}", f"{std:#.6g}", f"{count:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    seen = f"{counts.max():,} rows in {bn.n_batches_seen_:,} batch(es)"
    head = f"{bn._state.kind.name} statistics of {seen}; parameters: {parameters}"
    return "\n".join([head, "", *table])
