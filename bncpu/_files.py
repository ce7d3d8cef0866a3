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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bncpu import (
    BatchNormTransformer,
    _inputs,
    _layout,
    _report,
    _state_file,
    _tables,
    _temporary,
    _writing,
)
from bncpu._device import LearnedBatch
from bncpu._inputs import STANDARD
from bncpu._json_lines import JsonLines
from bncpu._stream import (
    Learning,
    Plan,
    Stream,
    Tell,
    batches_of,
    columns_of_all,
    most_rows,
    opened,
    progress,
    refused,
    require,
    room_for,
)
from bncpu._tables import Reading, Table
from bncpu.state import content, restored

CHECKPOINT = "bncpu.fit"
CHECKPOINT_SECONDS = 5.0

# Bytes of a batch of `transform`, as float64. Several batches are in memory: read, computed, being written.
TRANSFORM_BYTES = 8 << 20


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
    """Refuse an output that is also an input, or no file."""
    if out != STANDARD and out.exists() and not out.is_file():
        raise ValueError(f"the output {str(out)!r} is no regular file; transform -o - writes to standard output")
    if out != STANDARD and any(os.path.realpath(path) == os.path.realpath(out) for path in inputs):
        raise ValueError(f"the output {str(out)!r} is an input")


@contextlib.contextmanager
def temporary_files(reading: Reading, *folders: Path) -> Iterator[Reading]:
    """How to read with temporary files, which end with the block; what killed commands left there is removed first."""
    for folder in {tempfile.gettempdir(), *map(str, folders)}:
        _temporary.clear(folder)
    with contextlib.ExitStack() as stack:
        yield reading._replace(temporary=stack)


# ---- fit ----


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
        names = columns_of_all(tables, plan, tell)
        batch_rows = plan.batch_rows or most_rows(names)
        identity = _identity(tables, names, plan, batch_rows)
        bn, begun = plan.transformer, 0
        ends: list[int] = []
        if resume and partial.exists():
            bn, begun, ends = _checkpoint(partial, identity)
        elif not resume:
            if not force:
                _state_file.may_replace(partial)
            partial.unlink(missing_ok=True)
        stream, batches = batches_of(tables, names, plan.weights, bn, ends, begun, batch_rows)

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


def dry_run(inputs: Sequence[Path], plan: Plan, tell: Tell) -> str:
    """What a fit would learn and why, as a table."""
    with temporary_files(plan.reading) as reading:
        tables = opened(inputs, reading, tell)
        names = set(columns_of_all(tables, plan, lambda line: None))
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


def _identity(tables: Sequence[Table], names: list[str], plan: Plan, batch_rows: int) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued."""
    names_of_options = ("momentum", "halflife", "window", "eps", "ddof", "clip")
    options = {f"--{name}": getattr(plan.transformer, name) for name in names_of_options}
    options |= {"--columns": names, "--weights": plan.weights, "--batch-rows": batch_rows}
    reading = {name: value for name, value in plan.reading._asdict().items() if name != "temporary"}
    options["the way of reading"] = json.loads(json.dumps(reading))
    stats = [(os.path.realpath(table.path), os.stat(table.source)) for table in tables]
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
    ending = _inputs.ending(out) or f".{change.reading.format}"
    _inputs.format_of(out, change.reading.format)
    names = _names_to_transform(bn, names, state, table, ending)
    carry = None if ending == ".npy" or not table.named else ending
    results = _results(bn, names, table, change, carry)
    if out == STANDARD and sys.stdout is None:
        raise ValueError("standard output is closed")
    raw = isinstance(table, JsonLines)
    try:
        with contextlib.ExitStack() as stack:
            file: Any = sys.stdout.buffer if out == STANDARD else stack.enter_context(_state_file.replacing(out))
            rows = _writing.write(out, file, ending, _tables.ahead(results), raw)
            file.flush()
    except OSError as error:
        if out == STANDARD and error.filename is None and not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "standard output") from None
        raise
    except KeyboardInterrupt as stop:
        kept = "" if out == STANDARD else f"; {str(out)!r} is as it was"
        raise Interrupted(f"interrupted{kept}", stop) from None
    return f"{rows:,} rows, {len(names):,} of {len(table.columns):,} columns normalized: {out}"


def _names_to_transform(
    bn: BatchNormTransformer, names: list[str], state: Path, table: Table, ending: str
) -> list[str]:
    """The columns that are normalized: those named in the state, or as many as it has."""
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
    return names


def _results(
    bn: BatchNormTransformer, names: list[str], table: Table, change: Change, carry: str | None
) -> Iterator[_writing.Result]:
    """The rows of a table, normalized, one batch after the other; one without rows if there are none."""
    batch_rows = max(1, TRANSFORM_BYTES // (8 * len(names)))
    dtype, stream, rows = table.dtype(names), Stream([table]), 0
    pieces = stream.pieces(names, carry=carry)
    batches = _tables.cut(pieces, names, batch_rows, dtype, table.order, carry=carry is not None)
    result = _layout.result_dtype(dtype, None if bn.dtype is None else np.dtype(bn.dtype))
    spaces = [np.empty((batch_rows, len(names)), result, order=table.order) for _ in range(2)]
    titles = {name: column.title for name, column in table.columns.items()}
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
        names = columns_of_all(tables, plan, lambda line: None)
        if len(names) != bn.n_features_in_:
            held = f"{len(names)} columns of numbers"
            raise ValueError(f"{str(inputs[0])!r} has {held}, and {str(state)!r} {bn.n_features_in_}")
        stream, batches = batches_of(tables, names, None, new, [], 0, most_rows(names))
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
