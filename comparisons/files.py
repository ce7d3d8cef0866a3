"""`bncpu fit` and `bncpu transform` beside bare reading and writing, and the same statistics in SQL and polars.

    pip install ".[io]" polars && python comparisons/files.py     # 2 GB of files in a temporary folder
    python comparisons/files.py --memory 200                      # .npy alone: may map so many MB for its data

Each takes turns with what it is compared to, in one process, from the page cache; figures are medians of paired ratios:
above 1, ours is faster. Bare reading gives batches in order and keeps none: with pyarrow (of Parquet with the settings
that were fastest here, beside its defaults), DuckDB and polars. The statistics of DuckDB are `avg, var_pop`, those of
polars `mean, var` of its lazy engine: in any order, and less exact than ours. What is written is a new file, synced,
that takes the place of the old one: a file that is overwritten reuses its memory in the page cache.
"""

import argparse
import resource
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from bncpu import BatchNormTransformer, _files, _state_file, _stream

ROUNDS = 7
PIECE = 8 << 20


def make(folder, n_rows, tables):
    """The files: noise in float64, and the same rounded to 2 digits where text is what takes the room."""
    rng = np.random.default_rng(0)
    columns = {f"c{k}": rng.standard_normal(n_rows) for k in range(32)}
    np.save(folder / "noise.npy", np.column_stack(list(columns.values())))
    if tables:
        noise = pa.table(columns)
        rounded = pa.table({name: np.round(a, 2) for name, a in columns.items()})
        pyarrow.parquet.write_table(noise, folder / "noise.parquet")
        pyarrow.parquet.write_table(rounded, folder / "rounded.parquet")
        pyarrow.csv.write_csv(rounded.slice(0, n_rows // 4), folder / "rounded.csv")


def pieces(path, defaults=False):
    """What a file is read as, a piece at a time: by NumPy's way or by pyarrow."""
    if path.suffix == ".npy":
        space = np.empty(PIECE, np.uint8)
        with open(path, "rb", buffering=0) as file:
            while n := file.readinto(space):
                yield space[:n]
    elif path.suffix == ".parquet":
        options = {} if defaults else {"buffer_size": 1 << 20, "pre_buffer": False}
        with pyarrow.parquet.ParquetFile(path, **options) as file:
            yield from file.iter_batches(65536)
    else:
        yield from pyarrow.csv.open_csv(path)


def in_duckdb(path):
    """The file as a table of DuckDB."""
    return f"read_{path.suffix[1:]}('{path}')"


def in_polars(path):
    """The file as a lazy frame."""
    return (polars.scan_csv if path.suffix == ".csv" else polars.scan_parquet)(path)


def read(batches):
    """Read all of it."""
    for _ in batches():
        pass


def reading(path):
    """Ways to read a file."""
    ways = {"bare reading": partial(pieces, path)}
    if path.suffix == ".parquet":
        ways["pyarrow's defaults"] = partial(pieces, path, defaults=True)
    if path.suffix != ".npy":
        ways["DuckDB's reading"] = lambda: duckdb.connect().sql(f"FROM {in_duckdb(path)}").to_arrow_reader(65536)
        ways["polars' reading"] = lambda: in_polars(path).collect_batches(chunk_size=65536, maintain_order=True)
    return {name: partial(read, way) for name, way in ways.items()}


def asking(path):
    """Ways to ask for mean and variance of every column."""
    if path.suffix == ".npy":
        return {
            "NumPy's mean and var, mapped": lambda: [f(np.load(path, mmap_mode="r"), axis=0) for f in (np.mean, np.var)]
        }
    names = [f"c{k}" for k in range(32)]
    query = ", ".join(f"avg({name}), var_pop({name})" for name in names)
    every = polars.all()
    lazy = [every.mean().name.suffix("_mean"), every.var(ddof=0).name.suffix("_var")]
    return {
        "duckdb avg, var_pop": lambda: duckdb.connect().sql(f"SELECT {query} FROM {in_duckdb(path)}").fetchall(),
        "polars mean, var": lambda: in_polars(path).select(lazy).collect(engine="streaming"),
    }


def fit(path, state):
    """As the command does."""
    _files.fit([path], state, _stream.Plan(BatchNormTransformer()), tell=print)


def transform(state, path, out):
    """As the command does."""
    _files.transform(state, [path], [out], _files.Change(force=True), tell=print)


def copy(path, to):
    """Read all of it, and write it again, as a new file that takes the place of the old one."""
    with _state_file.replacing(to) as file:
        if path.suffix == ".npy":
            for piece in pieces(path):
                file.write(piece.data)
        else:
            schema = pyarrow.csv.open_csv(path).schema if path.suffix == ".csv" else pyarrow.parquet.read_schema(path)
            kind = pyarrow.csv.CSVWriter if path.suffix == ".csv" else pyarrow.parquet.ParquetWriter
            with kind(file, schema) as writer:
                for piece in pieces(path):
                    writer.write_batch(piece)


def report(what, calls):
    """Median of what each other call takes to what the first takes, in turns."""
    seconds = {name: [] for name in calls}
    for k in range(ROUNDS + 1):
        for name in list(calls)[:: 1 if k % 2 else -1]:
            start = time.perf_counter()
            calls[name]()
            if k:
                seconds[name].append(time.perf_counter() - start)
    ours, *others = seconds
    print(f"{what:20} {statistics.median(seconds[ours]):.2f} s", flush=True)
    for name in others:
        ratios = [theirs / mine for theirs, mine in zip(seconds[name], seconds[ours], strict=True)]
        ends = f"{min(ratios):.2f}-{max(ratios):.2f}"
        print(f"{'':20} {statistics.median(ratios):5.2f} of the speed of {name} ({ends})", flush=True)


def main():
    """Make the files, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--memory", type=int, help="MB of RLIMIT_DATA, beyond what is mapped already")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, asked.rows, tables=asked.memory is None)
        if asked.memory is not None:
            now = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) << 10
            resource.setrlimit(resource.RLIMIT_DATA, (now + (asked.memory << 20),) * 2)
        for path in sorted(folder.iterdir()):
            print(f"{path.name}: {path.stat().st_size / 1e9:.1f} GB")
            state, out, copied = folder / "state.json", folder / f"out{path.suffix}", folder / f"copy{path.suffix}"
            others = {**reading(path), **({} if asked.memory else asking(path))}
            report(f"fit {path.suffix}", {"fit": partial(fit, path, state), **others})
            report(
                f"transform {path.suffix}",
                {"transform": partial(transform, state, path, out), "reading and writing": partial(copy, path, copied)},
            )
            for done in (out, copied, state, path):
                done.unlink()


main()
