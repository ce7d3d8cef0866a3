"""An array of Dask, fitted on two worker processes, beside dask-ml's StandardScaler and Dask's own mean and var.

Two million rows of 32 columns, float32, with a mean of 1000 standard deviations, lie on the workers. The candidates
take turns in random order; printed are medians, ratios of each turn to ours, and the largest relative error of the
variance against longdouble. Needs `pip install dask-ml`, and an idle machine of two cores.
"""

import random
import statistics
import time

import dask
import dask.array as da
import numpy as np
from dask_ml.preprocessing import StandardScaler
from distributed import Client, LocalCluster, wait

from bncpu import BatchNormTransformer

ROWS, COLUMNS, BLOCK, TURNS = 2_000_000, 32, 100_000, 7


def block_of(seed):
    """Some rows."""
    rng = np.random.default_rng(int(seed))
    return rng.standard_normal((BLOCK, COLUMNS), dtype=np.float32) + np.float32(1000)


def exact_variance():
    """In longdouble, about the mean: two passes."""
    seeds = range(ROWS // BLOCK)
    mean = sum(block_of(seed).sum(axis=0, dtype=np.longdouble) for seed in seeds) / ROWS
    return sum(((block_of(seed) - mean) ** 2).sum(axis=0) for seed in seeds) / ROWS


CANDIDATES = {
    "bncpu": lambda X: BatchNormTransformer().fit(X).var_,
    "dask-ml StandardScaler": lambda X: StandardScaler().fit(X).var_,
    "dask.compute(mean, var)": lambda X: dask.compute(X.mean(axis=0), X.var(axis=0))[1],
}


def main():
    """Print a line for each candidate."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        seeds = da.arange(ROWS // BLOCK, chunks=1)[:, None]
        X = seeds.map_blocks(lambda seed: block_of(seed[0, 0]), chunks=(BLOCK, COLUMNS), dtype=np.float32).persist()
        wait(X)
        exact = exact_variance()
        times = {name: [] for name in CANDIDATES}
        errors = {name: float(np.max(abs(np.asarray(fit(X)) / exact - 1))) for name, fit in CANDIDATES.items()}
        for _ in range(TURNS):
            for name in random.sample(list(CANDIDATES), len(CANDIDATES)):
                start = time.perf_counter()
                CANDIDATES[name](X)
                times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times["bncpu"], strict=True)]
        print(
            f"{name:24} {statistics.median(seconds) * 1e3:6.0f} ms  "
            f"{statistics.median(ratios):5.1f} of ours ({min(ratios):.1f}-{max(ratios):.1f})  error {errors[name]:.0e}"
        )


if __name__ == "__main__":
    main()
