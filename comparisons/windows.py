"""Statistics of the last rows of a long stream: bncpu, pandas' rolling and river's, and how far each has drifted.

    pip install -r comparisons/peers.txt pandas
    python comparisons/windows.py                  # 10 million rows, minutes
    python comparisons/windows.py --rows 1000000

A stream of standard normal numbers about a mean, most of it a million standard deviations from 0. Errors are of the
variance of the last rows, relative, against exact rationals. pandas and river subtract what leaves the window.
"""

import argparse
import time
from fractions import Fraction

import numpy as np
import pandas
from river import stats, utils

from bncpu import BatchNormTransformer

WINDOW = 1000


def exact(rows):
    """The variance of a few numbers."""
    rows = [Fraction(x) for x in rows.tolist()]
    mean = sum(rows) / len(rows)
    return float(sum((x - mean) ** 2 for x in rows) / len(rows))


def ours(x, size):
    """In batches of so many rows."""
    bn = BatchNormTransformer(window=WINDOW)
    for start in range(0, len(x), size):
        bn.partial_fit(x[start : start + size, None])
    return float(bn.running_var_[0])


def pandas_rolling(x):
    """All windows of the stream at once, of which the last is asked for."""
    return float(pandas.Series(x).rolling(WINDOW).var(ddof=0).iloc[-1])


def river_rolling(x):
    """Row by row."""
    var = utils.Rolling(stats.Var, window_size=WINDOW, ddof=0)
    for value in x.tolist():
        var.update(value)
    return var.get()


def main():
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    n = parser.parse_args().rows
    for mean in (0.0, 1e6):
        x = np.random.default_rng(0).standard_normal(n) + mean
        x[n // 2 :: n // 7] *= 1e3  # a few outliers, long gone from the last window
        truth = exact(x[-WINDOW:])
        print(f"{n:,} rows, mean {mean:g} standard deviations, the last {WINDOW:,}")
        each = {
            "bncpu, batches of 100": lambda x=x: ours(x, 100),
            "bncpu, batches of 10,000": lambda x=x: ours(x, 10_000),
            "pandas rolling": lambda x=x: pandas_rolling(x),
            "river Rolling": lambda x=x: river_rolling(x),
        }
        for name, call in each.items():
            start = time.perf_counter()
            found = call()
            seconds = time.perf_counter() - start
            print(f"  {name:<26} error {abs(found / truth - 1):8.1e}   {n / seconds / 1e6:8.2f} million rows/s")


if __name__ == "__main__":
    main()
