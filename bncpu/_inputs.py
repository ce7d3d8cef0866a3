"""From the arguments of a command to tables: files, folders, patterns, and `-`."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from bncpu import _tables
from bncpu._json_lines import JsonLines
from bncpu._tables import Ipc, Npy, Parquet, Reading, Table, fill
from bncpu._temporary import temporary
from bncpu._text import Csv, Text, Tsv

STANDARD = Path("-")

FORMATS: dict[str, type[Table]] = {
    ".npy": Npy,
    ".csv": Csv,
    ".tsv": Tsv,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".parquet": Parquet,
    ".arrow": Ipc,
    ".feather": Ipc,
    ".ipc": Ipc,
}
COMPRESSED = (".gz", ".zst", ".bz2")


def ending(path: Path) -> str | None:
    """What a file name ends with, if it is the name of a table: .csv.gz; else None."""
    name = path.name.lower()
    of_text = [end + more for end, kind in FORMATS.items() if issubclass(kind, Text) for more in COMPRESSED]
    return next((end for end in [*FORMATS, *of_text] if name.endswith(end)), None)


def format_of(path: Path, given: str | None = None) -> str:
    """One of `FORMATS`: as the name ends, else as it was given."""
    end = ending(path) or (f".{given}" if given else None)
    if end is None:
        ends = f"{', '.join(FORMATS)} (text also with {', '.join(COMPRESSED)}), or --format must say what it is"
        what = "--format must say what - is" if path == STANDARD else f"the file must end in {ends}"
        raise ValueError(f"{what}; got {str(path)!r}")
    return next(kind for kind in FORMATS if end.startswith(kind))


def found(names: Sequence[str], tell: Callable[[str], None]) -> list[Path]:
    """The files for the arguments of a command, each a file, `-`, a folder (all tables below it), or a pattern.

    The files of a folder or a pattern are sorted.

    Raises
    ------
    OSError
        If an argument names nothing, or something below a folder cannot be read.
    ValueError
        If a file is named twice.
    """
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        if not name:
            raise ValueError("an input has an empty name")
        if path.is_dir():
            some = sorted(below(path))
        elif path == STANDARD or path.exists() or not glob.has_magic(name):
            some = [path]
        else:
            some = sorted(map(Path, glob.glob(name, recursive=True)))
        if not some:
            raise FileNotFoundError(f"no table in {name!r}" if path.is_dir() else f"no file matches {name!r}")
        paths += some
    seen = set()
    for path in paths:
        same: Any = os.path.realpath(path)
        with contextlib.suppress(OSError):
            about = os.stat(path)
            same = (about.st_dev, about.st_ino)
        if same in seen:
            raise ValueError(f"{str(path)!r} is named twice")
        seen.add(same)
    by_stem: dict[str, Path] = {}
    for path in paths:
        stem = str(path).removesuffix(ending(path) or "")
        other = by_stem.setdefault(stem, path)
        if other != path:
            tell(f"{str(other)!r} and {str(path)!r} may be the same rows twice")
    return paths


def below(folder: Path) -> Iterator[Path]:
    """The tables in a folder and those below it, but for names that begin with a dot or an underscore."""

    def fail(error: OSError) -> None:
        raise error

    seen = set()
    for inner, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        seen.add(os.path.realpath(inner))
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "_")) and os.path.realpath(os.path.join(inner, name)) not in seen
        ]
        for name in files:
            path = Path(inner, name)
            if not name.startswith((".", "_")) and ending(path):
                if not stat.S_ISREG(os.stat(path).st_mode):  # a link to nothing is an error, too
                    raise OSError(f"{str(path)!r} is no regular file")
                yield path


def open_table(path: Path, reading: Reading) -> Table:
    """Read the head of a file.

    Raises
    ------
    ImportError
        If pyarrow or duckdb are needed and not installed.
    OSError
        If the file cannot be read.
    ValueError
        If it is no table.
    """
    kind = FORMATS[format_of(path, reading.format)]
    of_csv = (reading.delimiter, reading.decimal, reading.comment, reading.skip_rows, reading.missing)
    if not issubclass(kind, Csv) and (any(of_csv) or reading.header is not None):
        options = "--delimiter, --decimal, --comment, --skip-rows, --missing, --header"
        raise ValueError(f"{str(path)!r} is no CSV, for {options}")
    if path != STANDARD and stat.S_ISREG(os.stat(path).st_mode):
        return kind(path, reading)
    # What comes through a pipe is needed twice, for its head and for its rows.
    if reading.temporary is None:
        raise ValueError(f"{str(path)!r} is no regular file")
    copy, file = reading.temporary.enter_context(temporary(tempfile.gettempdir()))
    if path == STANDARD and sys.stdin is None:
        raise ValueError("standard input is closed")
    with sys.stdin.buffer if path == STANDARD else open(path, "rb") as pipe:
        fill(file, iter(functools.partial(pipe.read, 1 << 20), b""), path)
    return kind(path, reading, Path(copy))


# ---- for the demo ----


class Numbers(NamedTuple):
    """The numbers of a file."""

    columns: list[str]
    left_out: list[str]  # columns that are not numbers
    said: list[str]  # what was found out about the file
    n_batches: int | None  # None where the file does not tell
    batches: Iterator[NDArray[Any]]  # of shape (n_rows, n_columns), each overwritten by the second after it


def read(path: Path, n_batches: int = 1, reading: Reading | None = None) -> Numbers:
    """All numbers of the file `path`; of a small file, in about `n_batches` batches. Raises as `open_table`."""
    table = open_table(path, reading or Reading())
    names = table.numbers
    if table.n_rows == 0:
        raise ValueError("there are no rows")
    if not names:
        raise ValueError(f"{str(path)!r} has no column of numbers")
    about = table.n_rows_about if isinstance(table, Text) else table.n_rows
    most = min(_tables.BATCH_ROWS, _tables.BATCH_BYTES // (8 * len(names)))
    step = max(1, min(most, -(-(about or most) // n_batches)))
    batches = _tables.cut(table.pieces(names), names, step, table.dtype(names), table.order)
    left_out = [name for name in table.columns if name not in set(names)]
    n = None if about is None else -(-about // step)
    return Numbers(names, left_out, table.said, n, (batch.X for batch in batches))
