"""What the benchmarks share: named shapes, data, and the engine of ``bncpu bench``."""

import os
import resource
import sys

import numpy as np

try:
    import bncpu
except ImportError:  # a commit from before the package existed
    bncpu = None

try:
    from bncpu import _yardsticks, bench
    from bncpu._contenders import Case
except ImportError:  # a commit from before there were yardsticks: its multiples are n/a
    _yardsticks = bench = Case = None

SMALLEST = os.environ.get("BNCPU_BENCH_SMALLEST", "") not in ("", "0")

# Activations of convolutional networks, tables, and a layer of a small network.
SHAPES = {
    "rows": (1_000_000, 32),
    "wide rows": (125_000, 256),
    "NCHW": (32, 64, 56, 56),
    "small planes": (64, 256, 14, 14),
    "few channels": (128, 3, 224, 224),
    "NHWC": (32, 56, 56, 64),
    "small": (64, 64),
}
DTYPES = ["float32", "float64"]


def chosen(values):
    """`values` of a parameter, or the first, where all is to be at its smallest."""
    return list(values)[: 1 if SMALLEST else None]


def channel_axis(name):
    """Of the shape of this name."""
    return -1 if name == "NHWC" else 1


def smaller(shape):
    """`shape`, or 4 of everything at most but channels, where all is to be at its smallest."""
    return tuple(min(n, 16 if k else 4) for k, n in enumerate(shape)) if SMALLEST else tuple(shape)


def data(shape, dtype="float32"):
    """Standard normal numbers, by shape or its name; their values do not change what anything costs."""
    shape = smaller(SHAPES.get(shape, shape) if isinstance(shape, str) else shape)
    return np.random.default_rng(0).standard_normal(shape, dtype=dtype)


def measured(case, peers=()):
    """One row of ``bncpu bench``, interleaved in this process."""
    if bench is None:
        raise NotImplementedError("this commit cannot measure itself")
    (row,) = bench.measured([case], 2.0, 1, peers)
    return row


def ramp(dtype):
    """A data set of 128 MB as float32, made in place: no more memory than its own."""
    X = np.empty((64, 8) if SMALLEST else (1_000_000, 32), dtype)
    X[...] = np.linspace(0, 1, len(X))[:, None]
    return X


def scratch(call, X):
    """How much ``call(X)`` raises the peak of the process, in units of `X`."""
    before = peak_bytes()
    call(X)
    return (peak_bytes() - before) / X.nbytes


def peak_bytes():
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
