"""The default number of threads, call by call, while other programs keep processors busy.

Beside 0, 1, 2 and twice as many busy processes as there are processors, each function and method takes turns: with the
default, with ``n_threads=1``, and with all threads where no process is busy; StandardScaler, too, where it has the
method. Ratios are of medians, of 90th percentiles and of means: where half of the calls lose their processor for a time
slice, the median is a toss of a coin. The default should take at most 1.3 times as long as one thread anywhere, and at
most 1.1 times as long as all threads where nothing else runs.

    python comparisons/busy.py                  # a quarter of an hour, on an otherwise idle machine
    python comparisons/busy.py --only transform --rounds 300
    python comparisons/busy.py --callers 4      # every call in four threads at once
    taskset -c 0 python comparisons/busy.py     # fewer processors
"""

import argparse
import contextlib
import functools
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait

import joblib
import numpy as np
from sklearn.preprocessing import StandardScaler

import bncpu
from bncpu import BatchNormTransformer
from bncpu.bench import machine

ROWS, PLANES = (15_192, 192), (32, 64, 38, 38)  # 12 MB of float32 each
ALL = joblib.cpu_count()
GOAL = 1.3


@contextlib.contextmanager
def busy(n_processes):
    """So many processes that do nothing, all the time."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_processes)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def calls():
    """Each function and method by name, given ``n_threads``; the last ones by StandardScaler's names."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, *ROWS), dtype=np.float32)
    planes, dplanes = rng.standard_normal((2, *PLANES), dtype=np.float32)
    narrow = rng.standard_normal((100_000, 64), dtype=np.float32)
    out, planes_out, narrow_out = (np.empty_like(a) for a in (x, planes, narrow))
    mean, var = x.mean(axis=0), x.var(axis=0)
    wide, few = {"out": out}, {"out": planes_out}
    saved, saved_planes = bncpu.batch_norm_forward(x)[1], bncpu.batch_norm_forward(planes)[1]
    frozen = bncpu.SavedStatistics(saved.mean, saved.invstd)
    by_row, by_group, by_plane, by_rms = (
        bncpu.layer_norm_forward(x, 192)[1],
        bncpu.group_norm_forward(planes, 8)[1],
        bncpu.instance_norm_forward(planes)[1],
        bncpu.rms_norm_forward(x, 192)[1],
    )
    fitted = {n: BatchNormTransformer(n_threads=n).fit(x) for n in (None, 1, ALL)}
    streamed = {n: BatchNormTransformer(n_threads=n).fit(x) for n in fitted}
    recent = {n: BatchNormTransformer(halflife=1e5, n_threads=n).partial_fit(x) for n in fitted}
    functions = {
        "batch_norm": lambda n: bncpu.batch_norm(x, mean, var, n_threads=n, **wide),
        "batch_norm_forward": lambda n: bncpu.batch_norm_forward(x, n_threads=n, **wide),
        "batch_norm_forward NCHW": lambda n: bncpu.batch_norm_forward(planes, n_threads=n, **few),
        "batch_norm_backward": lambda n: bncpu.batch_norm_backward(dy, x, saved, n_threads=n, **wide),
        "batch_norm_backward NCHW": lambda n: bncpu.batch_norm_backward(
            dplanes, planes, saved_planes, n_threads=n, **few
        ),
        "batch_norm_backward_frozen": lambda n: bncpu.batch_norm_backward_frozen(dy, x, frozen, n_threads=n, **wide),
        "batch_norm_moments": lambda n: bncpu.batch_norm_moments(x, n_threads=n),
        "batch_norm_backward_sums": lambda n: bncpu.batch_norm_backward_sums(dy, x, saved, n_threads=n),
        "layer_norm": lambda n: bncpu.layer_norm(narrow, 64, out=narrow_out, n_threads=n),
        "layer_norm_backward": lambda n: bncpu.layer_norm_backward(dy, x, by_row, n_threads=n, **wide),
        "rms_norm": lambda n: bncpu.rms_norm(x, 192, n_threads=n, **wide),
        "rms_norm_backward": lambda n: bncpu.rms_norm_backward(dy, x, by_rms, n_threads=n, **wide),
        "group_norm": lambda n: bncpu.group_norm(planes, 8, n_threads=n, **few),
        "group_norm_backward": lambda n: bncpu.group_norm_backward(dplanes, planes, by_group, n_threads=n, **few),
        "instance_norm": lambda n: bncpu.instance_norm(planes, n_threads=n, **few),
        "instance_norm_backward": lambda n: bncpu.instance_norm_backward(dplanes, planes, by_plane, n_threads=n, **few),
        "partial_fit, halflife": lambda n: recent[n].partial_fit(x),
        "fit_stream": lambda n: BatchNormTransformer(n_threads=n).fit_stream([x]),
        "transform, 1.5 MB": lambda n: fitted[n].transform(x[:2000]),
        "transform, out=": lambda n: fitted[n].transform(x, out=out),
    }
    methods = {
        "transform": lambda n: fitted[n].transform(x),
        "inverse_transform": lambda n: fitted[n].inverse_transform(x),
        "fit": lambda n: fitted[n].fit(x),
        "partial_fit": lambda n: streamed[n].partial_fit(x),
        "fit_transform": lambda n: streamed[n].fit_transform(x),
    }
    theirs = StandardScaler().fit(x)
    return functions | methods, {name: functools.partial(getattr(theirs, name), x) for name in methods}


def seconds(call, pool, n_callers):
    """Of one call, or of as many at once."""
    start = time.perf_counter()
    if n_callers == 1:
        call()
    else:
        wait([pool.submit(call) for _ in range(n_callers)])
    return time.perf_counter() - start


def measured(contenders, n_rounds, n_callers):
    """Milliseconds of each contender by name, all in turn, in a new random order every round."""
    names, rng = list(contenders), np.random.default_rng(0)
    taken = {name: [] for name in names}
    with ThreadPoolExecutor(n_callers) as pool:
        for _ in range(n_rounds + 1):
            for k in rng.permutation(len(names)):
                taken[names[k]].append(1e3 * seconds(contenders[names[k]], pool, n_callers))
    return {name: np.array(times[1:]) for name, times in taken.items()}


def statistics(times):
    """Median, 90th percentile and mean."""
    return np.array([np.median(times), np.quantile(times, 0.9), times.mean()])


def main():
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="+", help="how many busy processes, one after the other")
    parser.add_argument("--callers", type=int, default=1, help="Python threads that make each call at once (1)")
    parser.add_argument("--rounds", type=int, default=100, help="turns of each call (100)")
    parser.add_argument("--only", default="", help="calls whose name has this in it")
    options = parser.parse_args()
    ours, theirs = calls()
    print(f"{time.strftime('%Y-%m-%d')}, {machine(None)['processor']}, {ALL} processors, {options.callers} caller(s)\n")
    print(
        "                                         default, ms            to one thread     to all  StandardScaler to it"
    )
    print("call                         busy  median     p90    mean  median   p90   mean   median  median")
    worst, closest = [], []
    for n_busy in options.busy or sorted({0, 1, 2, 2 * ALL}):
        with busy(n_busy):
            for name in (name for name in ours if options.only in name):
                contenders = {n: functools.partial(ours[name], n) for n in (None, 1, *([] if n_busy else [ALL]))}
                if name in theirs:
                    contenders["theirs"] = theirs[name]
                taken = {n: statistics(t) for n, t in measured(contenders, options.rounds, options.callers).items()}
                default, ratio = taken[None], taken[None] / taken[1]
                line = f"{name:28} {n_busy:4}" + "".join(f"{t:8.2f}" for t in default) + " "
                line += "".join(f"{r:7.2f}" for r in ratio)
                line += f"  {default[0] / taken[ALL][0]:7.2f}" if ALL in taken else f"  {'':7}"
                if "theirs" in taken:
                    closest.append((taken["theirs"][0] / default[0], name, n_busy))
                    line += f" {closest[-1][0]:6.1f}"
                worst += [(r, what, name, n_busy) for r, what in zip(ratio, ("median", "p90", "mean"), strict=True)]
                print(line, flush=True)
    over = [f"{what} of {name} beside {n_busy}: {r:.2f}" for r, what, name, n_busy in worst if r > GOAL]
    print(f"\n{len(worst) - len(over)} of {len(worst)} ratios to one thread are at most {GOAL}", *over, sep="\n")
    if closest:
        print("StandardScaler takes at least {:.1f} times as long ({} beside {})".format(*min(closest)))


if __name__ == "__main__":
    main()
