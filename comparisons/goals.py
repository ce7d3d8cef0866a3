"""The goals for speed, after a check that results are right on hostile data, and every peer that is faster.

    pip install -r comparisons/requirements.txt -r comparisons/peers.txt && pip install .
    python comparisons/goals.py

First compares results on data that break careless formulas with a float64 reference, and ends with exit status 1 if one
is wrong: a figure of wrong results says nothing. Then measures every row as `bncpu bench` does, in turn with copies of
the same array and with every peer that is installed, and ends with what misses its goal and where a peer is faster.
Takes about eight minutes, `--quick` one.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

import bncpu
from bncpu import _reference, bench
from bncpu._contenders import OURS, PEERS, SLOW_TO_PREPARE, Case

FLOAT32, FLOAT64 = DTYPES = ("float32", "float64")


class Goal(NamedTuple):
    """What a row should cost at most: copies of its array or microseconds; None where nothing was promised."""

    case: Case
    float32: float | None
    float64: float | None = None


GOALS = [
    Goal(Case("batch_norm", (1_000_000, 32)), 0.85),
    Goal(Case("batch_norm", (200_000, 256)), 0.85),
    Goal(Case("batch_norm", (10_000_000, 8)), 1.0),
    Goal(Case("batch_norm", (20_000, 4096)), 1.05),
    Goal(Case("batch_norm", (32, 64, 56, 56), "NCHW"), 1.02),
    Goal(Case("transform", (1_000_000, 32)), 0.85),
    Goal(Case("transform", (1_000_000, 32), fresh=True), 1.0),
    Goal(Case("batch_norm_moments", (1_000_000, 32)), 0.85, 0.75),
    Goal(Case("fit", (1_000_000, 32)), 0.85, 0.75),
    Goal(Case("partial_fit", (1_000_000, 32)), None),
    Goal(Case("batch_norm_forward", (1_000_000, 32)), 1.75),
    Goal(Case("batch_norm_forward", (200_000, 256)), 2.1),
    Goal(Case("batch_norm_forward", (10_000_000, 8)), 2.2),
    Goal(Case("batch_norm_forward", (32, 64, 56, 56), "NCHW"), 1.25),
    Goal(Case("batch_norm_forward", (8, 256, 28, 28), "NCHW"), 1.25),
    Goal(Case("batch_norm_forward", (256, 16, 32, 32), "NCHW"), 1.35),
    Goal(Case("batch_norm_forward", (128, 3, 224, 224), "NCHW"), 1.75),
    Goal(Case("batch_norm_forward", (64, 256, 14, 14), "NCHW"), 1.6),
    Goal(Case("batch_norm_forward", (32, 56, 56, 64), "NHWC"), 1.45),
    Goal(Case("batch_norm_backward", (1_000_000, 32)), 2.65),
    Goal(Case("batch_norm_backward", (32, 64, 56, 56), "NCHW"), 2.0),
    Goal(Case("batch_norm_backward", (8, 256, 28, 28), "NCHW"), 1.65),
    *(
        Goal(Case("transform", shape, fresh=fresh), 2.5, 2.5)
        for shape in ((32, 10), (1, 10))
        for fresh in (False, True)
    ),
    Goal(Case("partial_fit", (32, 10)), 5, 5),
    Goal(Case("partial_fit", (1, 10)), 4, 4),
    Goal(Case("batch_norm", (32, 10)), 5, 5),
    Goal(Case("batch_norm_forward", (32, 10)), 5, 5),
    Goal(Case("batch_norm_backward", (32, 10)), 5, 5),
]

# y and dx are rounded to their type a few times, here at the size of their largest value.
ROUNDINGS = 8
# Sums of 20,000 float64 terms about a value at most 8 standard deviations from the mean (docs/design.md).
SUMS = 1e-11


def hostile(dtype, layout):
    """Data that break careless formulas, by name; 8 channels of 20,000 values."""
    rng = np.random.default_rng(0)
    shape, axis = {"rows": ((20_000, 8), 1), "NCHW": ((40, 8, 20, 25), 1), "NHWC": ((40, 20, 25, 8), 3)}[layout]
    x = rng.standard_normal(shape)
    first = tuple(slice(None) if k == axis else 0 for k in range(len(shape)))
    outlier, constant = x.copy(), x.copy()
    outlier[first] = 1e6
    np.moveaxis(constant, axis, 0)[::2] = 1e8 / 3
    data = {
        "standard normal": x,
        "mean/std 1e6": x + 1e6,
        "mean/std 1e6, of both signs": x
        + 1e6 * np.resize([1, -1], 8).reshape([-1 if k == axis else 1 for k in range(x.ndim)]),
        "first value an outlier": outlier,
        "constant channels": constant,
        "scale 1e-25": x * 1e-25,
        "scale 1e25": x * 1e25,
    }
    return {name: values.astype(dtype) for name, values in data.items()}, axis


def error(result, expected, unit=None):
    """The largest difference, in units of `unit` or of the largest expected value; infinite if NaN do not agree."""
    result, expected = np.asarray(result, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(result[~finite], expected[~finite], equal_nan=True):
        return np.inf
    unit = np.abs(expected[finite]).max(initial=0) if unit is None else unit
    difference = np.abs(result[finite] - expected[finite]).max(initial=0)
    return float(difference / unit) if difference else 0.0


def checks():
    """Yield what was compared, the error and its tolerance."""
    for dtype in DTYPES:
        rounding = ROUNDINGS * np.finfo(dtype).eps
        for layout in ("rows", "NCHW", "NHWC"):
            data, axis = hostile(dtype, layout)
            for name, x in data.items():
                yield from compared(f"{dtype} {layout}, {name}", x, axis, rounding)
            yield from not_finite(f"{dtype} {layout}", data["standard normal"], axis, rounding)


def compared(name, x, axis, rounding):
    """Statistics, inference, training and gradients of one array against the reference."""
    options = {"channel_axis": axis}
    channels = np.moveaxis(x, axis, 1).reshape(len(x), x.shape[axis], -1)
    count, mean, m2 = _reference.moments(channels)
    var = m2 / count
    std = np.sqrt(np.where(var > 0, var, 1))
    eps = 1e-5 * float(np.median(var))  # so that it matters alike at every scale
    moments = bncpu.batch_norm_moments(x, **options)
    # Both means are rounded to float64, which far from zero is more than the sums lose.
    distance = max(SUMS, 4 * float(np.abs(mean / std).max()) * 2**-53)
    yield f"{name}: mean", error(moments.mean / std, mean / std, 1), distance
    yield f"{name}: variance", error(moments.m2 / count / std**2, var / std**2, 1), SUMS
    gamma, beta = np.linspace(0.5, 2, x.shape[axis]), np.linspace(-1, 1, x.shape[axis])
    y = bncpu.batch_norm(x, mean, var, gamma, beta, eps=eps, **options)
    expected = _reference.batch_norm(x, mean, var, gamma, beta, eps=eps, **options)
    yield f"{name}: batch_norm", error(y, expected), rounding
    y, saved = bncpu.batch_norm_forward(x, gamma, beta, eps=eps, **options)
    expected, *_ = _reference.batch_norm_forward(x, gamma, beta, eps=eps, **options)
    yield f"{name}: batch_norm_forward", error(y, expected), rounding
    dy = np.random.default_rng(1).standard_normal(x.shape).astype(x.dtype)
    results = bncpu.batch_norm_backward(dy, x, bncpu.SavedStatistics(*saved), gamma, **options)
    expected = _reference.batch_norm_backward(dy, x, tuple(saved), gamma, **options)
    for part, ours, theirs in zip(("dx", "dgamma", "dbeta"), results, expected, strict=True):
        yield f"{name}: {part}", error(ours, theirs), rounding if part == "dx" else max(rounding, SUMS)
    transformer = bncpu.BatchNormTransformer(channel_axis=None if x.ndim == 2 else axis).fit(x)
    yield f"{name}: fit", error(transformer.running_var_ / std**2, var / std**2, 1), SUMS
    expected = _reference.batch_norm(x, mean, np.where(var > 0, var, 1), eps=0, **options)
    constant = var == 0
    ours, theirs = (np.moveaxis(a, axis, 0) for a in (transformer.transform(x), expected))
    yield f"{name}: transform", error(ours[~constant], theirs[~constant]), max(rounding, distance)
    yield f"{name}: transform of constants", error(ours[constant], np.zeros_like(ours[constant]), 1), 0.0


def not_finite(name, x, axis, rounding):
    """NaN is missing in the transformer; infinity is refused there, and stays in its channel in the functions."""
    missing, infinite = x.copy(), x.copy()
    missing[np.random.default_rng(2).random(x.shape) < 0.3] = np.nan
    np.moveaxis(missing, axis, 0)[3] = np.nan
    others = np.arange(x.shape[axis]) != 3
    _, mean, m2 = _reference.moments(
        np.moveaxis(missing, axis, 1).reshape(len(x), x.shape[axis], -1), skip_missing=True
    )
    count = np.isfinite(np.moveaxis(missing, axis, 0).reshape(x.shape[axis], -1)).sum(axis=1)
    transformer = bncpu.BatchNormTransformer(channel_axis=None if x.ndim == 2 else axis).fit(missing)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, var = np.where(count > 0, mean, np.nan), m2 / count
        expected = _reference.batch_norm(missing, mean, var, eps=0, channel_axis=axis)
    yield f"{name}, NaN: fit", error(transformer.running_var_, var), SUMS
    yield f"{name}, NaN: transform", error(transformer.transform(missing), expected), max(rounding, SUMS)

    for value in (np.inf, -np.inf, np.nan):
        np.moveaxis(infinite, axis, 0)[3].flat[7] = value
        with np.errstate(invalid="ignore"):
            y, _ = bncpu.batch_norm_forward(infinite, channel_axis=axis)
        alone, _ = bncpu.batch_norm_forward(x, channel_axis=axis)
        y, alone = np.moveaxis(y, axis, 0), np.moveaxis(alone, axis, 0)
        yield f"{name}, {value} in a channel: the others", error(y[others], alone[others]), 0.0
        yield f"{name}, {value} in a channel: it", 0.0 if np.isnan(y[3].flat[7]) else np.inf, 0.0
        if np.isinf(value):
            for method in (bncpu.BatchNormTransformer(**transformer.get_params()).fit, transformer.transform):
                try:
                    method(infinite)
                except ValueError:
                    refused = True
                else:
                    refused = False
                yield f"{name}, {value}: {method.__name__} refuses", 0.0 if refused else np.inf, 0.0


def check():
    """Print the worst errors; returns whether all are within their tolerances."""
    done = list(checks())
    failed = [(name, value, tolerance) for name, value, tolerance in done if not value <= tolerance]
    for name, value, tolerance in failed:
        print(f"WRONG  {name}: error {value:.1e}, tolerance {tolerance:.1e}")
    print(f"Hostile data: {len(done)} results compared with the float64 reference, {len(failed)} wrong.\n", flush=True)
    return not failed


def measured(goals, seconds, n_threads, peers):
    """Measure row after row, print each at once; yields the goal, the row and what the goal is in this dtype."""
    for dtype in DTYPES:
        print(
            f"{dtype}, {n_threads} thread{'s' * (n_threads > 1)}; the best copy is 1.00, quartiles in brackets, "
            "the fastest peer first"
        )
        for goal in goals:
            case = goal.case._replace(dtype=dtype)
            (row,) = bench.measured([case], seconds if case.unit == "copies" else seconds / 4, n_threads, peers)
            limit = getattr(goal, dtype) if n_threads == 1 and row.case.unit == case.unit else None
            print(line(row, limit), flush=True)
            yield row, limit
        print()


def line(row, limit):
    """One row as text: goal, ours, and the peers."""
    ours = row.figures[OURS]
    verdict = "" if limit is None else "met" if ours.median <= limit else "MISSED"
    spread = f"({bench.number(ours.low)}-{bench.number(ours.high)})"
    peers = sorted((figure.median, name) for name, figure in row.figures.items() if name != OURS)
    goal = "" if limit is None else f"<= {limit:g}"
    return (
        f"{row.case.label:42}{goal:>8} {bench.number(ours.median):>6} {row.case.unit:6} {spread:13} {verdict:6}  "
        + ", ".join(f"{name} {bench.number(value)}" for value, name in peers)
    ).rstrip()


def main():
    """Check, measure, list; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="the goals are for 1; others are only measured")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, without torch.compile")
    parser.add_argument("--alone", action="store_true", help="no peers, only copies")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    if not check():
        return 1
    start = time.perf_counter()
    peers = [name for name in PEERS if not (options.alone or (options.quick and name in SLOW_TO_PREPARE))]
    goals = [goal for goal in GOALS if options.only in goal.case.label]
    results = list(measured(goals, 0.4 if options.quick else 2.0, options.threads, peers))
    rows = [row for row, _ in results]
    command = f"python comparisons/goals.py{' --quick' * options.quick} --threads {options.threads}"
    print("\n".join(bench.notes(rows, command, options.threads, peers)))
    missed = [
        f"{row.case.label} {row.case.dtype}: {bench.number(row.figures[OURS].median)}, goal {limit:g}"
        for row, limit in results
        if limit is not None and row.figures[OURS].median > limit
    ]
    lost = bench.losses(rows)
    print("\n".join(["\nGoals missed:", *missed] if missed else ["\nEvery goal is met."]))
    print(
        "\n".join(["\nFaster than we are, as parts of our time:", *lost] if lost else ["\nNo peer is faster anywhere."])
    )
    print(f"\n{time.perf_counter() - start:.0f} s")
    if options.json is not None:
        saved = bench.as_json(rows, command, options.threads)
        for row, (_, limit) in zip(saved["rows"], results, strict=True):
            row["goal"] = limit
        options.json.write_text(json.dumps(saved | {"missed": missed}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
