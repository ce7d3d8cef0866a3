"""What `test_processes.py` runs in processes of their own: functions that return what is to be printed there."""

import contextlib
import copy
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import sys
import threading
import traceback
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
from arrays import LAYOUTS, MODES, examples, normal
from threadpoolctl import threadpool_limits

import bncpu
from bncpu import BatchNormTransformer, _kernels, _state_file

# ---- what is compared ----


@functools.cache
def shared():
    """Arrays in both forms, large enough for four threads, that nobody may write to."""
    rows, planes = normal(0, (20_000, 16), mean=100), normal(1, (16, 32, 36, 36), dtype=np.float32)
    return [LAYOUTS["read-only"](a) for a in (rows, rows[::-1], planes, planes[::-1])]


def results(n_threads=4):
    """A digest of statistics, results and gradients."""
    rows, d_rows, planes, d_planes = shared()
    bn = BatchNormTransformer(n_threads=n_threads).partial_fit(rows)
    found = [bn._state.running.values, bn.running_var_, bn.transform(rows)]
    for dy, x in ((d_rows, rows), (d_planes, planes)):
        found.append(bncpu.batch_norm(x, np.zeros(x.shape[1]), np.ones(x.shape[1]), n_threads=n_threads))
        y, saved = bncpu.batch_norm_forward(x, n_threads=n_threads)
        found += [y, saved.mean, *bncpu.batch_norm_backward(dy, x, saved, n_threads=n_threads)]
    y, saved = bncpu.group_norm_forward(planes, 8, n_threads=n_threads)
    found += [y, *bncpu.group_norm_backward(d_planes, planes, saved, n_threads=n_threads)]
    return hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in found)).hexdigest()


def state(bn):
    """All that a transformer has learned and tells of it, to the bit."""
    told = (bn.running_mean_, bn.running_var_, bn.mean_, bn.var_, bn.scale_, bn._state.running.values)
    return (bn._state.kind.name, bn.n_samples_seen_, bn.n_batches_seen_, *(a.tobytes() for a in told))


# ---- forks ----


def forked(work):
    """Whether `work` is true in a forked child."""
    child = os.fork()
    if child == 0:
        right = False
        try:
            right = work()
        except BaseException:
            traceback.print_exc()
        os._exit(0 if right else 1)
    return os.waitpid(child, 0)[1] == 0


def forks_after_use():
    """Children, children of theirs, and the parent, from the main thread and from another."""
    expected = results()

    def right():
        return results() == expected

    def fork():
        return [(forked(lambda: right() and forked(right)), right()) for _ in range(examples(2, 10))]

    with ThreadPoolExecutor(1) as pool:
        return {*fork(), *pool.submit(fork).result()}


def forks_during_kernels():
    """Children while two other threads are in kernels, and what these found."""
    expected = results()
    stop = threading.Event()

    def work():
        right = True
        while not stop.is_set():
            right = results(2) == expected and right
        return right

    with ThreadPoolExecutor(2) as pool:
        workers = [pool.submit(work) for _ in range(2)]
        try:
            found = {forked(lambda: results() == expected) for _ in range(examples(6, 40))}
        finally:
            stop.set()
        return found, {worker.result() for worker in workers}


# ---- pools ----


def chunks():
    return np.array_split(normal(2, (60_001, 12), mean=1e4), 7)


def learned(chunk):
    """What a worker learned from its chunk, and the threads it may use."""
    return BatchNormTransformer().partial_fit(chunk), _kernels.allowed_threads(1 << 30)


def merged(parts):
    return state(functools.reduce(BatchNormTransformer.merge, (bn for bn, _ in parts), BatchNormTransformer()))


def pool(method):
    """Whether a merge has the bits of one process after processes were started in this way."""
    expected = merged(map(learned, chunks()))
    with multiprocessing.get_context(method).Pool(2) as pool:
        return merged(pool.map(learned, chunks())) == expected


def joblib_pool(backend):
    """Whether a merge has the bits of one process, and the threads allowed in loky's workers, which may have 3."""
    expected = merged(map(learned, chunks()))
    with joblib.parallel_backend(backend, n_jobs=2, inner_max_num_threads=3 if backend == "loky" else None):
        parts = joblib.Parallel()(joblib.delayed(learned)(chunk) for chunk in chunks())
    return merged(parts) == expected, {n_threads for _, n_threads in parts} if backend == "loky" else None


# ---- limits ----


def limits():
    """Threads allowed within limits, and what is left of them afterwards."""

    def allowed():
        return _kernels.allowed_threads(1 << 30)

    def nested():
        seen = [allowed()]
        with threadpool_limits(2):
            seen.append(allowed())
            with threadpool_limits(1, user_api="openmp"):
                seen.append(allowed())
            seen.append(allowed())
        return [*seen, allowed()]

    with ThreadPoolExecutor(2) as pool:
        return nested(), [pool.submit(nested).result() for _ in range(2)], nested()


# ---- threads ----


def eight_threads():
    """What of the calls on shared and on own objects does not have the bits of one thread."""
    rows, _, planes, d_planes = shared()
    small = LAYOUTS["read-only"](normal(3, (32, 16)).astype(np.float32))
    bn, recent = BatchNormTransformer(n_threads=2).fit(rows), BatchNormTransformer(halflife=100).partial_fit(small)
    _, saved = bncpu.batch_norm_forward(planes)
    stats = np.linspace(-1, 1, 32), np.linspace(1, 2, 32)

    def own():
        mine = BatchNormTransformer(momentum=0.9)
        return state(mine.partial_fit(small).partial_fit(rows[:5000]).partial_fit(np.asfortranarray(small)))

    calls = {
        "transform of rows": lambda: bn.transform(rows),
        "transform of columns": lambda: bn.transform(np.asfortranarray(rows)),
        "transform of a small array": lambda: recent.transform(small),
        "inverse_transform": lambda: bn.inverse_transform(rows),
        "attributes": lambda: (recent.running_mean_, recent.running_var_, recent.scale_),
        "batch_norm": lambda: bncpu.batch_norm(planes, *stats, n_threads=2),
        "batch_norm_forward": lambda: bncpu.batch_norm_forward(planes, activation="relu", n_threads=2)[0],
        "batch_norm_moments": lambda: tuple(bncpu.batch_norm_moments(rows, n_threads=2)),
        "batch_norm_backward": lambda: bncpu.batch_norm_backward(d_planes, planes, saved, n_threads=2),
        "layer_norm": lambda: bncpu.layer_norm(rows, 16, n_threads=2),
        "own transformers": own,
        "a merge of shared ones": lambda: state(BatchNormTransformer().merge(bn).merge(bn)),
    }
    expected = {name: pickle.dumps(call()) for name, call in calls.items()}
    start = threading.Barrier(8)

    def work(i):
        order = [*calls][i:] + [*calls][:i]
        start.wait()
        return {name for _ in range(examples(2, 20)) for name in order if pickle.dumps(calls[name]()) != expected[name]}

    with ThreadPoolExecutor(8) as pool:
        return set().union(*pool.map(work, range(8)))


PROBE = normal(4, (5, 3))


def views(bn):
    """What others may see of a transformer, each by one call."""
    file = []
    bn.save(file)
    seen = {
        "a copy": state(copy.copy(bn)),
        "a pickle": state(pickle.loads(pickle.dumps(bn))),
        "a file": file[0],
        "transform of float32": bn.transform(PROBE.astype(np.float32)).tobytes(),
        "transform the long way": bn.transform(np.asfortranarray(PROBE)).tobytes(),
        "inverse_transform": bn.inverse_transform(PROBE).tobytes(),
        "n_samples_seen_": bn.n_samples_seen_,
        "n_batches_seen_": bn.n_batches_seen_,
        **{name: getattr(bn, name).tobytes() for name in ("running_mean_", "running_var_", "var_", "scale_")},
    }
    if bn._state.kind.merges:
        seen["a merge"] = state(BatchNormTransformer().merge(bn))
    return seen


def legal_views(start, batches, learn):
    """All views of what any of the batches, in any order, make of `start`."""
    legal = defaultdict(set)

    def visit(bn, left):
        if hasattr(bn, "_state"):
            for name, seen in views(bn).items():
                legal[name].add(seen)
        for i in left:
            visit(learn(copy.copy(bn), batches[i]), left - {i})

    visit(start, frozenset(range(len(batches))))
    return legal


def learners():
    """Ways to learn a batch: the short one and two long ones."""

    def weighted(bn, X):
        return bn.partial_fit(X, sample_weight=np.ones(len(X)))

    return {
        "small": lambda bn, X: bn.partial_fit(X),
        "columns": lambda bn, X: bn.partial_fit(np.asfortranarray(X)),
        "weighted": weighted,
    }


def partial_fits_of_one(way):
    """What four threads that teach one transformer, and four that look at it, see that no whole batches explain."""
    learn = learners()[way]
    sys.setswitchinterval(1e-6)
    _state_file.write = lambda file, content: file.append(json.dumps(content, default=float))  # without the disk
    # The number of rows alone tells which batches were taken.
    batches = [normal(5 + i, (2 << i, 3), mean=i) for i in range(4)]
    torn, lost, looks = set(), 0, 0
    for (mode, parameters), fitted in itertools.product(MODES.items(), (True, False)):
        start = BatchNormTransformer(**parameters)
        if fitted:
            learn(start, normal(10, (64, 3)))
        legal = legal_views(start, batches, learn)
        assert len(legal["n_samples_seen_"]) == (16 if fitted else 15)
        for _ in range(examples(5, 50)):
            bn, done, at_once = copy.copy(start), threading.Event(), threading.Barrier(8)

            def teach(batch, bn=bn, at_once=at_once, learn=learn):
                at_once.wait()
                learn(bn, batch)

            def look(bn=bn, at_once=at_once, done=done, legal=legal):
                n, wrong = 0, set()
                at_once.wait()
                while not done.is_set():
                    if hasattr(bn, "_state"):
                        n += 1
                        wrong |= {name for name, seen in views(bn).items() if seen not in legal[name]}
                return n, wrong

            with ThreadPoolExecutor(8) as pool:
                looking = [pool.submit(look) for _ in range(4)]
                try:
                    [*pool.map(teach, batches)]
                finally:
                    done.set()
                for n, wrong in (future.result() for future in looking):
                    looks += n
                    torn |= {(mode, way, name) for name in wrong}
            torn |= {(mode, way, name, "left") for name, seen in views(bn).items() if seen not in legal[name]}
            lost += bn.n_batches_seen_ < 4 + fitted
    return torn, lost, looks


def transforms_during_fits():
    """What threads get wrong that use a transformer while another fits it to 3 and to 50 features in turn."""
    sys.setswitchinterval(1e-6)
    data = [normal(0, (20, 3), mean=5), normal(1, (20, 50), mean=-5)]
    bn, done = BatchNormTransformer(n_threads=1), threading.Event()
    layouts = [np.array, np.asfortranarray]
    expected = [bn.fit(X).transform(X) for X in data]
    back = [bn.fit(X).inverse_transform(X) for X in data]

    def refit():
        for _ in range(examples(500, 5000)):
            for X in data:
                bn.fit(X)

    def use():
        wrong = set()
        while not done.is_set():
            for (X, y, x), layout in itertools.product(zip(data, expected, back, strict=True), layouts):
                with contextlib.suppress(ValueError):
                    if not np.array_equal(bn.transform(layout(X)), y):
                        wrong.add("transform")
                with contextlib.suppress(ValueError):
                    if not np.array_equal(bn.inverse_transform(layout(X)), x):
                        wrong.add("inverse_transform")
        return wrong

    with ThreadPoolExecutor(4) as pool:
        users = [pool.submit(use) for _ in range(3)]
        try:
            pool.submit(refit).result()
        finally:
            done.set()
        return set().union(*(user.result() for user in users))
