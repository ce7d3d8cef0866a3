"""Interruptions, allocations that fail, thousands of calls: the state is that of whole batches, and nothing leaks."""

import os
import shutil
import subprocess
import sys

import pytest
from arrays import examples
from own_process import run

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="signal.setitimer is POSIX")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="preloads a library, or reads /proc")

# Every way through `fit` and `partial_fit`, and the modes.
COMMON = """
    import pickle
    import signal
    import sys
    import numpy as np
    from scipy import sparse
    from bncpu import *
    MODES = {"cumulative": {}, "momentum": {"momentum": 0.9}, "halflife": {"halflife": 100.0}}
    rng = np.random.default_rng(0)
"""


@posix
def test_an_interrupted_stream_has_learned_whole_batches_and_counts_them():
    code = """
    trials = int(sys.argv[1])
    def interrupt(*_):
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, interrupt)
    stopped = set()
    # Small plain batches take a short way; lists do not.
    for mode in MODES:
        for convert, n_batches in ((np.asarray, 500), (np.ndarray.tolist, 50)):
            batches = [convert(X) for X in rng.standard_normal((n_batches, 8, 5))]
            bn, states = BatchNormTransformer(**MODES[mode]).partial_fit(batches[0]), []
            start = pickle.dumps(bn)
            for batch in batches:
                bn = pickle.loads(pickle.dumps(bn))
                states.append(pickle.dumps(bn))
                bn.partial_fit(batch)
            states.append(pickle.dumps(pickle.loads(pickle.dumps(bn))))
            for _ in range(trials):
                bn = pickle.loads(start)
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 2e-3))
                    for batch in batches:
                        bn.partial_fit(batch)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    stopped.add((mode, convert, bn.n_batches_seen_))
                assert pickle.dumps(pickle.loads(pickle.dumps(bn))) == states[bn.n_batches_seen_ - 1]
    print("whole", len(stopped) > 6)
    """
    assert run(COMMON, code, arguments=[str(examples(20, 1000))]) == "whole True"


@posix
def test_an_interrupted_fit_stops_within_seconds_and_leaves_every_byte():
    code = """
    import time
    # Rows that overlap: many of them in little memory, and work for a tenth of a second on the fastest processor.
    X = np.lib.stride_tricks.as_strided(np.arange(1e7), (9_999_800, 128), (8, 8))
    def interrupt(*_):
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, interrupt)
    for mode in MODES:
        for fitted in (False, True):
            bn = BatchNormTransformer(n_threads=1, **MODES[mode])
            if fitted:
                bn.fit(X[:50])
            before = pickle.dumps(bn)
            for method in (bn.fit, bn.partial_fit):
                start = time.perf_counter()
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                try:
                    method(X)
                    print("not interrupted")
                except KeyboardInterrupt:
                    print(time.perf_counter() - start < 5, pickle.dumps(bn) == before)
    """
    assert run(COMMON, code) == "\n".join(["True True"] * 12)


# Refuses the n-th allocation of at least so many bytes by the thread that asked for it.
SHIM = """
    #define _GNU_SOURCE
    #include <errno.h>
    #include <stddef.h>
    static __thread long left = -1;
    static __thread size_t least;
    static __thread int refused;
    void refuse_after(long n, size_t size) { left = n; least = size; refused = 0; }
    int has_refused(void) { left = -1; return refused; }
    static int refuses(size_t size) {
        if (left < 0 || size < least || left-- > 0) return 0;
        errno = ENOMEM;
        return refused = 1;
    }
    extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
    void *malloc(size_t n) { return refuses(n) ? NULL : __libc_malloc(n); }
    void *calloc(size_t n, size_t size) { return refuses(n * size) ? NULL : __libc_calloc(n, size); }
    void *realloc(void *p, size_t n) { return refuses(n) ? NULL : __libc_realloc(p, n); }
"""


@linux
def test_a_failed_allocation_is_a_memory_error_and_leaves_every_byte(tmp_path):
    # From 8 KiB on: NumPy answers some smaller ones, its iterators', with a SystemError. SciPy crashes when it has no
    # memory to cut a sparse matrix, so there is no `batch_size` for that here, and NumPy when it has none to convert.
    shim = tmp_path / "shim.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "-o", shim, "-"], input=SHIM, text=True, check=True)
    code = """
    import ctypes
    refuse_after = ctypes.CDLL(None).refuse_after
    refuse_after.argtypes, refuse_after.restype = [ctypes.c_long, ctypes.c_size_t], None
    has_refused = ctypes.CDLL(None).has_refused
    X = rng.standard_normal((60, 2000))
    gaps, large, half = np.where(X > 1, np.nan, X), np.tile(X, (20, 1)).astype("f4"), X.astype("f2")
    S, w, ones = sparse.csr_array(X * (X > 1)), np.ones(60), np.ones(2000)
    F, integers, rows, running = np.asfortranarray(X), X.astype(int), X.tolist(), (np.zeros(2000), np.ones(2000))
    small = X.astype("i1")
    _, saved = batch_norm_forward(X, ones)
    learn = [
        lambda t: t.fit(X), lambda t: t.fit(rows), lambda t: t.partial_fit(X), lambda t: t.partial_fit(large),
        lambda t: t.partial_fit(X, sample_weight=w), lambda t: t.partial_fit(integers),
        lambda t: t.partial_fit(gaps), lambda t: t.partial_fit(half), lambda t: t.partial_fit(F),
        lambda t: t.transform(X), lambda t: t.transform(large), lambda t: t.transform(half),
        lambda t: t.transform(F), lambda t: t.inverse_transform(X), lambda t: t.transform(integers),
        lambda t: t.partial_fit(small), lambda t: t.transform(small),
    ]
    of_sparse = [lambda t: t.partial_fit(S), lambda t: t.fit(S), lambda t: t.transform(S)]
    functions = [
        lambda _: batch_norm_forward(X, ones), lambda _: batch_norm_forward(half), lambda _: batch_norm_forward(X.T),
        lambda _: batch_norm_forward(X, ones, running_mean=running[0], running_var=running[1]),
        lambda _: batch_norm(X, ones, ones), lambda _: batch_norm(half, ones, ones),
        lambda _: batch_norm_backward(X, X, saved, ones), lambda _: batch_norm_backward(X, F, saved, ones),
        lambda _: layer_norm(X, 2000), lambda _: layer_norm(half, 2000),
        lambda _: group_norm_forward(X.reshape(60, 10, 200), 5), lambda _: instance_norm(X.reshape(60, 10, 200)),
    ]
    refusals = 0
    def sweep(calls, t):
        global refusals
        before = pickle.dumps(pickle.loads(pickle.dumps(t)))  # equal strings need not be one object the first time
        for call in calls:
            for k in range(10_000):
                again = pickle.loads(before)
                try:
                    refuse_after(k, 8192)
                    call(again)
                    if not has_refused():
                        break
                except MemoryError:
                    assert has_refused()
                    assert pickle.dumps(again) == before
                refusals += 1
    for mode in MODES.values():
        bn = BatchNormTransformer(n_threads=1, **mode).fit(X)
        sweep(learn, bn)
        sweep(of_sparse, BatchNormTransformer(n_threads=1, with_mean=False, **mode).fit(S))
        sweep(learn[:2], BatchNormTransformer(n_threads=1, batch_size=25, **mode).fit(X))
    sweep([lambda t: t.merge(t)], BatchNormTransformer(n_threads=1).fit(X))
    sweep(functions, None)
    print(refusals > 700)
    """
    assert run(COMMON, code, LD_PRELOAD=str(shim), OMP_NUM_THREADS="1", PYTHONFAULTHANDLER="1") == "True"


@linux
def test_thousands_of_good_and_of_refused_calls_leave_no_memory_and_no_references_behind():
    code = """
    import gc
    X = rng.standard_normal((64, 8))
    bad, S, ones, w = X.copy(), sparse.csr_array(X), np.ones(8), np.ones(64)
    bad[3, 3] = np.inf
    planes = rng.standard_normal((4, 8, 5, 5)).astype("f4")
    bn, bs = BatchNormTransformer().fit(X), BatchNormTransformer(with_mean=False).fit(S)
    _, saved = batch_norm_forward(planes, ones)
    kept = [X, bad, S, ones, planes, bn, bs, saved, saved.mean, saved.invstd]
    good = [
        lambda: bn.partial_fit(X), lambda: bn.partial_fit(X.tolist()), lambda: bn.partial_fit(X, sample_weight=w),
        lambda: bn.transform(X), lambda: bn.transform(X.T.copy().T), lambda: bn.inverse_transform(X),
        lambda: BatchNormTransformer(batch_size=20).fit(X), lambda: BatchNormTransformer().merge(bn),
        lambda: bs.partial_fit(S), lambda: bs.transform(S), lambda: pickle.loads(pickle.dumps(bn)),
        lambda: batch_norm(planes, ones, ones, ones), lambda: batch_norm_forward(planes, ones, activation="relu"),
        lambda: batch_norm_backward(planes, planes, saved, ones), lambda: batch_norm_forward(X.T, channel_axis=0),
        lambda: layer_norm(X, 8), lambda: group_norm_forward(planes, 2), lambda: instance_norm(planes),
        lambda: batch_norm_forward(np.zeros((32, 256, 40), "f4"), n_threads=2),
    ]
    refused = [
        lambda: bn.partial_fit(bad), lambda: bn.partial_fit(X[:, :3]), lambda: bn.transform(bad),
        lambda: bn.fit([["a"]]), lambda: bn.partial_fit(X, sample_weight=-w), lambda: bn.transform(X, out=ones),
        lambda: bs.transform(S.tocsc()[:, :2]), lambda: bn.merge(X), lambda: BatchNormTransformer(momentum=3).fit(X),
        lambda: batch_norm(planes, ones, -ones), lambda: batch_norm_forward(planes, ones[1:]),
        lambda: batch_norm_forward(X[:1]), lambda: batch_norm_backward(planes, X, saved), lambda: layer_norm(X, 5),
        lambda: batch_norm_backward(planes, planes, saved, ones, activation="relu"), lambda: batch_norm(X, None, ones),
        lambda: batch_norm_forward(planes, ones, out=X), lambda: batch_norm(planes, ones, ones, eps=-1.0),
    ]
    def repeat(calls, times, fails):
        for k in range(times):
            try:
                calls[k % len(calls)]()
                assert not fails, k % len(calls)
            except (TypeError, ValueError):
                assert fails, k % len(calls)
    def resident():
        gc.collect()
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * 4096
    for calls, fails in ((good, False), (refused, True)):
        repeat(calls, 400, fails)
        before = resident()  # collects: errors and their frames hold one another
        references = [sys.getrefcount(a) for a in kept]
        repeat(calls, 3000, fails)
        grown = resident() - before
        assert grown < 3 << 20, grown
        assert [sys.getrefcount(a) for a in kept] == references
    print("none")
    """
    assert run(COMMON, code) == "none"
