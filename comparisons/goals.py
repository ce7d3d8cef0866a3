"""The goals for speed, after a check that results are right on hostile data, and every peer that is faster.

    pip install -r comparisons/requirements.txt -r comparisons/peers.txt && pip install .
    python comparisons/goals.py                # a quarter of an hour; `--quick` five minutes, `--quick --alone` two
    python comparisons/goals.py --markdown     # what docs/performance.md shows

First compares results on data that break careless formulas with a float64 reference, and ends with exit status 1 if one
is wrong: a figure of wrong results says nothing. Then measures every row as `bncpu bench` does, with one thread and
with two, in turn with its limit and with every peer that is installed, and ends with what misses its goal and where a
peer is faster. Neither changes the exit status: how fast a machine is today is no fault of the code.
"""

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np

import bncpu
from bncpu import _reference, bench
from bncpu._contenders import OURS, PEERS, SLOW_TO_PREPARE, Case

FLOAT32, FLOAT64 = DTYPES = ("float32", "float64")


class Goal(NamedTuple):
    """What a row should cost at most: so many times its limit, and microseconds for the call; None: only measured."""

    case: Case
    multiple: float | None
    microseconds: float = 0

    def most(self, row):
        """The largest figure that meets the goal, in the unit of the row."""
        if self.multiple is None or row.case.unit != self.case.unit:  # as where all is at its smallest
            return None
        if row.case.unit == "us":
            return self.microseconds
        return self.multiple + self.microseconds * 1e-6 / row.limit_seconds

    def __str__(self):
        """What was promised."""
        if self.multiple is None:
            return ""
        parts = [f"{self.multiple:g}"] * bool(self.multiple) + [f"{self.microseconds:g} us"] * bool(self.microseconds)
        return f"<= {' + '.join(parts)}"


# 128 MB of float32 each, from one column to more than a part of the kernels has.
LARGE_ROWS = ((32_000_000, 1), (10_666_667, 3), (1_000_000, 32), (125_000, 256), (6_400, 5_000), (1_600, 20_000))
LARGE_NCHW = ((160, 64, 56, 56), (640, 256, 14, 14))
LARGE_NHWC = (160, 56, 56, 64)
# In a second-level cache, and in a third.
CACHED_ROWS = ((4_096, 32), (65_536, 32))
CACHED_NCHW = ((8, 256, 28, 28), (64, 256, 14, 14), (32, 64, 56, 56))
CACHED_NHWC = (8, 28, 28, 256)
STATISTICS = ("batch_norm_moments", "fit", "partial_fit")
FORWARD, BACKWARD = "batch_norm_forward", "batch_norm_backward"

GOALS = [
    *(Goal(Case("transform", shape), 1.05) for shape in LARGE_ROWS),
    Goal(Case("batch_norm", (1_000_000, 32)), 1.05),
    *(Goal(Case("batch_norm", shape, "NCHW"), 1.05) for shape in LARGE_NCHW),
    *(Goal(Case("transform", shape), 1.25, 3) for shape in CACHED_ROWS),
    *(Goal(Case("batch_norm", shape, "NCHW"), 1.25, 3) for shape in CACHED_NCHW),
    *(Goal(Case(name, (1_000_000, 32), dtype=dtype), 1.10) for name in STATISTICS for dtype in DTYPES),
    *(Goal(Case("batch_norm_moments", shape), 1.10) for shape in LARGE_ROWS if shape != (1_000_000, 32)),
    *(Goal(Case(name, n, dtype=dtype), 1.3, 5) for name in STATISTICS[1:] for n in CACHED_ROWS for dtype in DTYPES),
    *(
        Goal(Case(operation, shape, layout), goal)
        for operation, rows, planes in ((FORWARD, 1.10, 1.25), (BACKWARD, 1.12, 1.3))
        for shape, layout, goal in (
            ((1_000_000, 32), "rows", rows),
            ((125_000, 256), "rows", rows),
            (LARGE_NHWC, "NHWC", rows),
            *((shape, "NCHW", planes) for shape in LARGE_NCHW),
            *((shape, "rows", 1.6) for shape in CACHED_ROWS),
            (CACHED_NHWC, "NHWC", 1.6),
            *((shape, "NCHW", 1.6) for shape in CACHED_NCHW),
        )
    ),
    Goal(Case("transform", (1_000_000, 32), fresh=True), None),
    *(
        Goal(Case(operation, shape, dtype=dtype, fresh=fresh), 0, most)
        for operation, shape, fresh, most in (
            ("transform", (32, 10), False, 2.5),
            ("transform", (32, 10), True, 2.5),
            ("transform", (1, 10), False, 2.5),
            ("transform", (1, 10), True, 2.5),
            ("partial_fit", (32, 10), False, 5),
            ("partial_fit", (1, 10), False, 4),
            ("batch_norm", (32, 10), False, 5),
            (FORWARD, (32, 10), False, 5),
            (BACKWARD, (32, 10), False, 5),
        )
        for dtype in DTYPES
    ),
]

# y and dx are rounded to their type a few times, here at the size of their largest value.
ROUNDINGS = 8
# Sums of 20,000 float64 terms about a value at most 8 standard deviations from the mean (docs/numerics.md).
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


def check(told):
    """Print the worst errors; returns whether all are within their tolerances."""
    done = list(checks())
    failed = [(name, value, tolerance) for name, value, tolerance in done if not value <= tolerance]
    for name, value, tolerance in failed:
        print(f"WRONG  {name}: error {value:.1e}, tolerance {tolerance:.1e}", file=told)
    compared_with = f"Hostile data: {len(done)} results compared with the float64 reference, {len(failed)} wrong.\n"
    print(compared_with, file=told, flush=True)
    return not failed


def measured(goals, seconds, all_threads, peers):
    """Measure row after row; yields the goal and the row. A small call has one thread, whoever asks for two."""
    for goal in goals:
        for n_threads in all_threads:
            if goal.case.unit == "limit" or n_threads == all_threads[0]:
                share = seconds / 4 if goal.case.unit == "us" else seconds
                yield from ((goal, row) for row in bench.measured([goal.case], share, n_threads, peers))


HEADS = ["", "threads", "unit", "bncpu", "goal", "", "best peer"]
WIDTHS = (52, 7, 15, 16, 14, 6, 0)


def cells(goal, row):
    """One row of the table: ours, the goal and whether it is met, and the fastest peer."""
    ours = row.figures[OURS]
    most = goal.most(row)
    peers = sorted((figure.median, name) for name, figure in row.figures.items() if name != OURS)
    return [
        row.case.name,
        str(row.n_threads),
        row.unit,
        f"{bench.number(ours.median)} ({bench.number(ours.low)}-{bench.number(ours.high)})",
        str(goal),
        "" if most is None else "met" if ours.median <= most else "MISSED",
        " ".join((peers[0][1], bench.number(peers[0][0]))) if peers else "",
    ]


def line(texts):
    """Cells in columns."""
    return "  ".join(text.ljust(width) for text, width in zip(texts, WIDTHS, strict=True)).rstrip()


def missed(results):
    """Name the rows that miss their goal."""
    return [
        f"{row.case.name}, {row.n_threads} thread{'s' * (row.n_threads > 1)}: "
        f"{bench.number(row.figures[OURS].median)}, goal {bench.number(goal.most(row))}"
        for goal, row in results
        if goal.most(row) is not None and row.figures[OURS].median > goal.most(row)
    ]


def as_markdown(results, said, not_met, lost):
    """The table as docs/performance.md has it, headed by the processor's name."""
    return "\n".join(
        [
            f"### {bench.machine(None)['processor']}",
            "",
            bench.markdown([HEADS, *(cells(goal, row) for goal, row in results)]),
            "",
            *(f"{text}  " for text in said),
            "",
            *(["Goals missed:", "", *(f"- {text}" for text in not_met)] if not_met else ["Every goal is met."]),
            "",
            *(
                ["Faster than we are, as parts of our time:", "", *(f"- {text}" for text in lost)]
                if lost
                else ["No peer is faster anywhere."]
            ),
        ]
    )


def arguments():
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = [1, 2][: joblib.cpu_count()]
    parser.add_argument("--threads", type=int, nargs="+", default=usual, help="for everybody (1 and 2)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, without torch.compile")
    parser.add_argument("--alone", action="store_true", help="no peers, only the limits")
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/performance.md has it")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def main():
    """Check, measure, list; returns the exit status."""
    options = arguments()
    warnings.simplefilter("ignore", RuntimeWarning)
    told = sys.stderr if options.markdown else sys.stdout
    if not check(told):
        return 1
    start = time.perf_counter()
    peers = [name for name in PEERS if not (options.alone or (options.quick and name in SLOW_TO_PREPARE))]
    goals = [goal for goal in GOALS if options.only in goal.case.label]
    print(line(HEADS), file=told)
    results = []
    for goal, row in measured(goals, 0.4 if options.quick else 2.0, options.threads, peers):
        print(line(cells(goal, row)), file=told, flush=True)
        results.append((goal, row))
    rows = [row for _, row in results]
    words = ["--quick"] * options.quick + ["--alone"] * options.alone + ["--threads", *map(str, options.threads)]
    command = f"python comparisons/goals.py {' '.join(words)}"
    said, not_met, lost = bench.notes(rows, command, peers), missed(results), bench.losses(rows)
    if options.markdown:
        print(as_markdown(results, said, not_met, lost))
    else:
        print("\n".join(["", *said]))
        print("\n".join(["\nGoals missed:", *not_met] if not_met else ["\nEvery goal is met."]))
        print(
            "\n".join(["\nFaster than we are, as parts of our time:", *lost])
            if lost
            else "\nNo peer is faster anywhere."
        )
    print(f"\n{time.perf_counter() - start:.0f} s", file=told)
    if options.json is not None:
        saved = bench.as_json(rows, command, None)
        saved["machine"]["threads"] = options.threads
        for row, (goal, measured_row) in zip(saved["rows"], results, strict=True):
            row["goal"] = goal.most(measured_row)
        options.json.write_text(json.dumps(saved | {"missed": not_met}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
