"""What `where=` costs: passes over data of which a tenth does not count, in times of the same calls without it.

    pip install .
    python comparisons/where.py           # two minutes, on an idle machine
    python comparisons/where.py 2         # threads

Results go to `out=`; medians of turns.
"""

import sys

import numpy as np

import bncpu
from bncpu.bench import interleaved, machine

# Name, shape, the axes that `where` has, the norm, its arguments of both passes, and of the first alone.
CASES = (
    ("batch, planes", (32, 64, 56, 56), (0, 2, 3), "batch_norm", {}, ()),
    ("batch, long planes", (64, 256, 512), (0, 2), "batch_norm", {}, ()),
    ("batch, rows", (64, 512, 256), (0, 1), "batch_norm", {"channel_axis": -1}, ()),
    ("batch, short rows", (200_000, 32), (0,), "batch_norm", {}, ()),
    ("batch, small", (32, 16, 14, 14), (0, 2, 3), "batch_norm", {}, ()),
    ("instance", (32, 64, 56, 56), (0, 2, 3), "instance_norm", {}, ()),
    ("8 groups", (32, 64, 56, 56), (0, 2, 3), "group_norm", {}, (8,)),
    ("layer", (64, 512, 256), (0, 1, 2), "layer_norm", {}, (256,)),
    # Where a call is Python, and where a row is less than a register.
    ("batch, tiny", (8, 16, 8, 8), (0, 2, 3), "batch_norm", {}, ()),
    ("instance, tiny", (8, 16, 8, 8), (0, 2, 3), "instance_norm", {}, ()),
    ("4 groups, tiny", (8, 16, 8, 8), (0, 2, 3), "group_norm", {}, (4,)),
    ("layer, tiny", (8, 10, 64), (0, 1, 2), "layer_norm", {}, (64,)),
    ("batch, rows of 2", (1_000_000, 2), (0,), "batch_norm", {}, ()),
)
SECONDS = 3


def calls(shape, axes, norm, arguments, first, dtype):
    """Both passes, with and without `where`."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    out, where = np.empty_like(x), rng.random([shape[axis] for axis in axes]) < 0.9
    forward, backward = (getattr(bncpu, f"{norm}_{way}") for way in ("forward", "backward"))
    _, saved = forward(x, *first, **arguments)
    _, masked = forward(x, *first, where=where, **arguments)
    arguments = arguments | {"out": out}
    return {
        "forward": lambda: forward(x, *first, **arguments),
        "forward where": lambda: forward(x, *first, where=where, **arguments),
        "backward": lambda: backward(dy, x, saved, **arguments),
        "backward where": lambda: backward(dy, x, masked, where=where, **arguments),
    }


def main():
    """Measure, and print a line for each case."""
    n_threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    print(f"{machine(n_threads)['processor']}, {n_threads} threads")
    for dtype in (np.float32, np.float64):
        for name, shape, axes, norm, arguments, first in CASES:
            threads = {"n_threads": n_threads}
            taken = interleaved(calls(shape, axes, norm, arguments | threads, first, dtype), SECONDS)
            ratios = (float(np.nanmedian(taken[f"{way} where"] / taken[way])) for way in ("forward", "backward"))
            print(f"{name:18} {dtype.__name__:8} forward {next(ratios):.2f} backward {next(ratios):.2f}", flush=True)


if __name__ == "__main__":
    main()
