"""The rates behind docs/scale.md: one core, states on the wire, merges, files, tasks of Dask, rounding.

Medians of several turns; on an idle machine. Files are read from the page cache.
"""

import functools
import pathlib
import pickle
import statistics
import tempfile
import time

import dask
import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client, LocalCluster

from bncpu import BatchNormTransformer

TURNS = 5


def seconds(call):
    """Median time of a call."""
    times = []
    for _ in range(TURNS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def line(what, value, unit):
    """Print a figure."""
    print(f"{what:58} {value:10.3g} {unit}")


def rates(X, folder):
    """Fit of 1M x 100 by one core: from memory, from .npy, from Parquet."""
    one = BatchNormTransformer(n_threads=1)
    for dtype in (np.float32, np.float64):
        data = X.astype(dtype)
        line(f"fit, 1 core, from memory, {data.dtype}", data.nbytes / seconds(lambda a=data: one.fit(a)) / 1e9, "GB/s")
    line("sum of the same bytes by NumPy, float64", data.nbytes / seconds(data.sum) / 1e9, "GB/s")
    np.save(folder / "x.npy", X)
    mapped = seconds(lambda: one.fit(np.load(folder / "x.npy", mmap_mode="r")))
    line("fit, 1 core, .npy mapped, float32", X.nbytes / mapped / 1e9, "GB/s")
    table = pa.table({f"c{i}": X[:, i] for i in range(X.shape[1])})
    pq.write_table(table, folder / "x.parquet", compression="zstd")
    pa.set_cpu_count(1)
    size = (folder / "x.parquet").stat().st_size

    def batches():
        return pq.ParquetFile(folder / "x.parquet").iter_batches(batch_size=1 << 16)

    read = seconds(lambda: [None for _ in batches()])
    fit = seconds(lambda: one.fit_stream(batches()))
    line("Parquet (zstd) over its values, size", size / X.nbytes, "")
    line("Parquet, only read, 1 core, values", X.nbytes / read / 1e9, "GB/s")
    line("Parquet, fit_stream, 1 core, values", X.nbytes / fit / 1e9, "GB/s")
    fit = seconds(lambda: one.fit_stream(batch.to_pandas() for batch in batches()))
    line("Parquet, fit_stream of batch.to_pandas(), 1 core, values", X.nbytes / fit / 1e9, "GB/s")


def states(folder):
    """What a state weighs, and what a merge costs."""
    for n_features in (100, 1000, 10_000):
        X = np.random.default_rng(1).standard_normal((8, n_features))
        a, b = BatchNormTransformer().fit(X), BatchNormTransformer().fit(X + 1)
        a.save(folder / "state.json")
        line(f"pickled transformer, {n_features} features", len(pickle.dumps(a)) / n_features, "bytes a feature")
        line(
            f"state file, {n_features} features", (folder / "state.json").stat().st_size / n_features, "bytes a feature"
        )
        line(f"merge, {n_features} features", seconds(lambda a=a, b=b: a.merge(b)) * 1e6, "us")


def tasks():
    """What a block costs beside its arithmetic."""
    n = 500
    X = da.zeros((n, 100), chunks=(1, 100))
    with dask.config.set(scheduler="threads"):
        line("Dask, threads, a block", seconds(lambda: BatchNormTransformer().fit(X)) / n * 1e6, "us")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster):
        line("Dask, distributed, 2 processes, a block", seconds(lambda: BatchNormTransformer().fit(X)) / n * 1e6, "us")


def rounding():
    """Largest relative error of the variance of rows taken one at a time, mean of 1000 standard deviations."""
    X = np.random.default_rng(2).standard_normal((100_000, 20)) + 1000
    for n in (10, 1_000, 100_000):
        rows = X[:n]
        exact = ((rows - rows.mean(0, dtype=np.longdouble)) ** 2).mean(0)
        level = [BatchNormTransformer().fit(row[None]) for row in rows]
        chain = functools.reduce(BatchNormTransformer.merge, pickle.loads(pickle.dumps(level)))
        while len(level) > 1:
            level = [functools.reduce(BatchNormTransformer.merge, level[i : i + 8]) for i in range(0, len(level), 8)]
        for name, t in (("a chain", chain), ("a tree of fan-in 8", level[0])):
            line(f"error after {n} merges in {name}", float(np.max(abs(t.var_ / exact - 1))) / 2**-52, "eps")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        states(pathlib.Path(folder))
        rates(np.random.default_rng(0).standard_normal((1_000_000, 100), dtype=np.float32), pathlib.Path(folder))
    tasks()
    rounding()
