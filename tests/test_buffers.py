"""Memory that large results leave for the next ones: bounded, given back, never in use twice."""

import contextvars
import copy
import ctypes
import gc
import io
import multiprocessing
import os
import pickle
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from arrays import slow
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from own_process import run

import bncpu
from bncpu import BatchNormTransformer, _buffers, _kernels, _layout

MIB = 1 << 20
F4 = np.dtype(np.float32)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
needs_statm = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="this platform has no /proc/self/statm")


@pytest.fixture(autouse=True, scope="module")
def _quick_collections():
    """Nothing older than these tests is looked at by the collections in them."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _clean():
    """Nothing waits before a test, and the bounds are the default ones after it."""
    gc.collect()  # cycles that hold results of the test before
    _buffers.release()
    yield
    _buffers.set_limit(256 * MIB)
    _buffers.set_least(32 * MIB)
    _buffers.release()


@pytest.fixture
def small(monkeypatch):
    """Blocks of 4 KiB count as large, also for the short ways, and 64 KiB of them may wait."""
    for short in ("apply_plain", "normalize_plain", "forward_plain", "backward_plain"):
        monkeypatch.setattr(_kernels, short, lambda *_: None)
    _buffers.set_least(4096)
    _buffers.set_limit(65536)


def leased(n_bytes):
    return _buffers.empty((n_bytes // 4,), F4)


def handler(a):
    return np._core.multiarray.get_handler_name(a)


def address(a):
    return a.__array_interface__["data"][0]


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- what is reused ----


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32])
def test_the_result_of_a_stream_reuses_the_memory_of_the_last(small, dtype, order):
    X = np.asarray(np.random.default_rng(0).integers(0, 50, (2000, 3)), dtype=dtype, order=order)
    bn = BatchNormTransformer().fit(X)
    expected = bn.transform(X, out=np.empty(X.shape, np.float64 if dtype == np.int32 else dtype))
    first = bn.transform(X)
    flags, at = first.flags, address(first)
    assert type(first) is np.ndarray and flags.writeable and flags.f_contiguous == (order == "F")
    del first, flags
    again = bn.transform(X)
    assert address(again) == at
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_functions_reuse_memory_forward_and_backward(small, dtype):
    _buffers.set_limit(MIB)
    x = np.random.default_rng(0).standard_normal((8, 3, 16, 16)).astype(dtype)
    waiting = []
    for _ in range(3):
        y, saved = bncpu.batch_norm_forward(x)
        dx = bncpu.batch_norm_backward(y, x, saved)[0]
        assert not np.shares_memory(y, dx)
        del y, dx
        waiting.append(_buffers.waiting())
    assert waiting[0] >= 2 * x.nbytes
    assert waiting == waiting[:1] * 3


def test_the_values_are_those_of_fresh_memory_bit_by_bit(small):
    X = np.random.default_rng(0).standard_normal((5000, 4))
    X[7, 2] = np.nan
    bn = BatchNormTransformer().fit(X)
    for _ in range(2):
        kept = bn.transform(X)
        kept.fill(1e300)
        del kept
    reused = bn.transform(X)
    bncpu.set_buffer_limit(0)
    assert reused.tobytes() == bn.transform(X).tobytes()


def test_small_results_are_left_to_numpy():
    y = bncpu.batch_norm(np.ones((1000, 8)), np.zeros(8), np.ones(8))
    assert handler(y) != "bncpu" and _buffers.waiting() == 0


def test_a_block_serves_a_request_that_it_fits_and_no_much_smaller_one(small):
    for n_bytes, reuses in ((16384, True), (14400, True), (16388, False), (14000, False), (4096, False)):
        block = leased(16384)
        at = address(block)
        del block
        assert (address(leased(n_bytes)) == at) == reuses
        _buffers.release()


def test_the_memory_used_last_is_used_first(small):
    a, b = leased(8192), leased(8192)
    at = address(b)
    del a, b
    assert address(leased(8192)) == at


def renamed_default_handler():
    """NumPy's own handler under the name "theirs", and the function that sets a handler."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    api = ctypes.cast(pointer(np._core._multiarray_umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(api[304])
    get_handler = ctypes.PYFUNCTYPE(ctypes.py_object)(api[305])
    # char name[127], uint8_t version, then five pointers
    content = ctypes.string_at(pointer(get_handler(), b"mem_handler"), 168)
    struct = ctypes.create_string_buffer(b"theirs".ljust(127, bytes(1)) + content[127:], 168)
    name = ctypes.c_char_p(b"mem_handler")
    return new(ctypes.addressof(struct), name, None), set_handler, (struct, name)


@pytest.mark.skipif(sys.maxsize < 2**32, reason="pointers of 8 bytes")
def test_a_users_own_numpy_allocator_stays_in_charge(small):
    theirs, set_handler, _alive = renamed_default_handler()

    def in_their_context():
        set_handler(theirs)
        return handler(leased(8192)), handler(_buffers.empty_like(np.ones(2048), F4))

    assert contextvars.copy_context().run(in_their_context) == ("theirs", "theirs")
    assert handler(leased(8192)) == "bncpu"


# ---- how much is kept ----


def test_no_more_waits_than_the_limit_allows(small):
    blocks = [leased(n) for n in (8192, 16384, 32768, 4096, 20480)]
    for i in range(len(blocks)):
        blocks[i] = None
        assert _buffers.waiting() <= 65536
    assert _buffers.waiting() == 32768 + 4096 + 20480  # the last ones


def test_a_lower_limit_gives_back_at_once_and_zero_keeps_nothing(small):
    blocks = [leased(16384) for _ in range(4)]
    blocks.clear()
    assert _buffers.waiting() == 65536
    assert bncpu.set_buffer_limit(40000) == 65536
    assert _buffers.waiting() == 32768
    assert bncpu.set_buffer_limit(0) == 40000
    assert _buffers.waiting() == 0
    y = leased(16384)
    assert handler(y) != "bncpu"
    del y
    assert _buffers.waiting() == 0


def test_memory_leased_before_the_limit_fell_does_not_wait(small):
    block = leased(32768)
    bncpu.set_buffer_limit(16384)
    del block
    assert _buffers.waiting() == 0


def test_release_frees_what_waits_and_nothing_in_use(small):
    kept, gone = leased(16384), leased(8192)
    kept[:] = 3
    del gone
    assert bncpu.release_buffers() == 8192
    assert bncpu.release_buffers() == 0
    assert (kept == 3).all()


def test_what_eight_requests_pass_by_is_given_back(small):
    odd = leased(30000)
    del odd
    for _ in range(8):
        assert _buffers.waiting() >= 30000
        leased(8192)
    leased(8192)
    assert _buffers.waiting() == 8192


def test_two_sizes_in_turn_both_reuse_their_memory(small):
    def addresses():
        return address(leased(30000)), address(leased(8192))

    first = addresses()
    assert all(addresses() == first for _ in range(20))


@needs_statm
def test_deleting_a_result_beyond_the_limit_gives_its_memory_back():
    _buffers.set_limit(64 * MIB)
    row = np.random.default_rng(0).standard_normal((1, 1000), dtype=np.float32)
    X = np.broadcast_to(row, (25_000, 1000))  # 100 MB that take no memory
    y = bncpu.batch_norm(X, row[0], np.ones(1000), out=None)
    before = resident()
    del y
    assert before - resident() > 85e6
    assert _buffers.waiting() == 0


@needs_statm
def test_release_gives_memory_back_to_the_system():
    y = leased(128 * MIB)
    y.fill(1)
    del y
    before = resident()
    assert bncpu.release_buffers() == 128 * MIB
    assert before - resident() > 100 * MIB


@needs_fork
@needs_statm
def test_memory_that_waits_is_freed_before_a_request_fails():
    import resource

    child = os.fork()
    if child == 0:
        leased(200 * MIB)
        with open("/proc/self/statm") as file:
            in_use = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 30 * MIB, -1))
        ok = _buffers.waiting() == 200 * MIB and leased(100 * MIB).nbytes == 100 * MIB
        os._exit(0 if ok and _buffers.waiting() == 100 * MIB else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_absurd_shape_is_numpys_error():
    with pytest.raises((MemoryError, ValueError)):
        _buffers.empty((1 << 40, 1 << 40), F4)
    with pytest.raises(MemoryError):
        _buffers.set_limit(1 << 60)
        _buffers.empty((1 << 55,), F4)


@pytest.mark.parametrize(
    ("bad", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError), ("1", TypeError)]
)
def test_a_bad_limit_is_refused_and_changes_nothing(bad, error):
    with pytest.raises(error, match="n_bytes"):
        bncpu.set_buffer_limit(bad)
    assert _buffers.limit() == 256 * MIB


def test_a_limit_beyond_the_machine_means_no_limit():
    bncpu.set_buffer_limit(10**30)
    assert bncpu.set_buffer_limit(np.int64(5)) == sys.maxsize
    assert _buffers.limit() == 5


def test_the_environment_sets_the_limit():
    assert run("import bncpu; print(bncpu.set_buffer_limit(1))", BNCPU_BUFFER_LIMIT="1000") == "1000"


def test_a_bad_limit_in_the_environment_is_one_clear_error():
    code = """
    try:
        import bncpu
    except ValueError as error:
        print(error)
    """
    said = run(code, BNCPU_BUFFER_LIMIT="256M")
    assert said == "BNCPU_BUFFER_LIMIT must be a number of bytes, such as 268435456; got '256M'"


# ---- results are ordinary arrays ----


def viewed(y):
    return {
        "slice": y[5:9, 1:],
        "reversed": y[::-1, ::-2],
        "transposed": y.T,
        "other dtype": y.view(np.uint8)[:, 3:],
        "flat": y.reshape(-1)[-3:],
        "memoryview": memoryview(y)[4:],
        "strided": np.lib.stride_tricks.as_strided(y, (2, 2), y.strides),
        "frame": pd.DataFrame(y, copy=False),
        "iterator": y.flat,
        "array interface": np.asarray(type("Foreign", (), {"__array_interface__": y.__array_interface__, "y": y})()),
    }


@pytest.mark.parametrize("kind", viewed(np.ones((20, 4))))
def test_a_view_keeps_the_memory_from_being_reused(small, kind):
    y = _buffers.empty((600, 4), np.dtype(np.float64))
    y[:] = np.arange(2400.0).reshape(600, 4)
    start, stop = address(y), address(y) + y.nbytes
    view = viewed(y)[kind]
    expected = np.array(view)
    del y
    gc.collect()
    for _ in range(3):
        other = _buffers.empty((600, 4), np.dtype(np.float64))
        assert not start <= address(other) < stop
        other.fill(-1)
    np.testing.assert_array_equal(np.array(view), expected)


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        np.copy,
        lambda y: pickle.loads(pickle.dumps(y)),
        lambda y: pickle.loads(pickle.dumps(y, protocol=2)),
        lambda y: np.load(saved(y)),
    ],
)
def test_copies_and_pickles_are_numpys_own(small, duplicate):
    y = leased(8192)
    y[:] = np.arange(2048)
    again = duplicate(y)
    y.fill(-1)
    assert handler(again) != "bncpu"
    np.testing.assert_array_equal(again, np.arange(2048))


def saved(y):
    file = io.BytesIO()
    np.save(file, y)
    file.seek(0)
    return file


def test_an_out_of_band_pickle_keeps_the_memory(small):
    y = leased(8192)
    y[:] = np.arange(2048)
    buffers = []
    data = pickle.dumps(y, protocol=5, buffer_callback=buffers.append)
    del y
    leased(8192).fill(-1)
    again = pickle.loads(data, buffers=buffers)
    del buffers
    leased(8192).fill(-1)
    np.testing.assert_array_equal(again, np.arange(2048))


@pytest.mark.parametrize("n_rows", [100, 2000])
def test_results_in_c_order_own_their_data(small, n_rows):
    X = np.ones((n_rows, 4))
    bn = BatchNormTransformer().fit(X)
    for y in (bn.transform(X), bn.inverse_transform(X), bncpu.batch_norm_forward(X)[0]):
        assert y.flags.owndata and y.base is None
        assert (handler(y) == "bncpu") == (n_rows == 2000)


@pytest.mark.parametrize("n_values", [1, 1900, 2000, 2048, 2049, 20_000])
def test_a_result_can_be_resized(small, n_values):
    y = leased(8192)
    y[:] = np.arange(2048)
    y.resize(n_values, refcheck=False)
    n = min(n_values, 2048)
    np.testing.assert_array_equal(y[:n], np.arange(n))
    assert not y[n:].any()
    y.fill(2)
    del y
    assert _buffers.waiting() <= 65536
    leased(8192).fill(1)


@pytest.mark.filterwarnings("ignore:Setting the (dtype|shape) on a NumPy array:DeprecationWarning")  # NumPy 2.5
def test_a_change_of_shape_or_dtype_in_place_does_not_confuse_the_list(small):
    y = _buffers.empty((4096,), np.dtype(np.float64))
    y.dtype = np.uint8
    y.shape = (2, -1)
    del y
    assert _buffers.waiting() == 32768
    assert bncpu.release_buffers() == 32768


def test_tracemalloc_sees_results_and_not_what_waits(small):
    tracemalloc.start()
    try:
        y = leased(40_000)
        assert tracemalloc.get_traced_memory()[0] >= 40_000
        del y
        assert tracemalloc.get_traced_memory()[0] < 40_000
        assert _buffers.waiting() == 40_000
    finally:
        tracemalloc.stop()


def test_a_refused_transform_gives_its_memory_back(small):
    X = np.ones((600, 4))
    bn = BatchNormTransformer().fit(X)
    bn.transform(X)
    waiting = _buffers.waiting()
    X[599, 3] = np.inf
    for _ in range(3):
        with pytest.raises(ValueError, match="infinity"):
            bn.transform(X)
        gc.collect()
        assert _buffers.waiting() == waiting == X.nbytes


def test_results_outlive_the_transformer_and_each_other(small):
    X = np.random.default_rng(0).standard_normal((600, 4))
    bn = BatchNormTransformer().fit(X)
    expected = [np.array(bn.transform(X + i)) for i in range(6)]
    kept = {i: bn.transform(X + i) for i in range(6)}
    del kept[1], kept[4]
    kept[6] = bn.transform(X)
    del bn
    gc.collect()
    for i, y in kept.items():
        np.testing.assert_array_equal(y, expected[i % 6])


# ---- never twice ----


class Leases(RuleBasedStateMachine):
    """Arrays and views of them live and die in any order; what one wrote no other changes."""

    live = Bundle("live")

    def __init__(self):
        super().__init__()
        self.stamp = 0
        self.held = {}
        _buffers.set_least(4096)
        _buffers.set_limit(65536)

    @rule(target=live, n_bytes=st.sampled_from([16, 4096, 8192, 8200, 9000, 20000, 65536, 70000]))
    def lease(self, n_bytes):
        y = leased(n_bytes)
        self.stamp += 1
        y.fill(self.stamp)
        self.held[self.stamp] = y
        return self.stamp

    @rule(which=live, step=st.sampled_from([1, 2, -1, -3]), half=st.booleans())
    def keep_only_a_view(self, which, step, half):
        y = self.held[which]
        self.held[which] = (y[len(y) // 2 :] if half else y)[::step]

    @rule(which=live, n_values=st.integers(1, 20000))
    def resize(self, which, n_values):
        y = self.held[which]
        if y.flags.owndata:
            y.resize(n_values, refcheck=False)
            y.fill(which)

    @rule(which=consumes(live))
    def drop(self, which):
        del self.held[which]

    @rule()
    def release(self):
        _buffers.release()

    @rule(limit=st.sampled_from([0, 10000, 65536]))
    def limit(self, limit):
        _buffers.set_limit(limit)

    @invariant()
    def contents_are_their_own(self):
        for stamp, y in self.held.items():
            assert (y == stamp).all()

    @invariant()
    def the_bound_holds(self):
        assert _buffers.waiting() <= _buffers.limit()


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# ---- threads ----


@pytest.mark.parametrize("shared", [True, False])
def test_eight_threads_get_memory_of_their_own(small, shared):
    X = np.random.default_rng(0).standard_normal((600, 4))
    common = BatchNormTransformer(n_threads=1).fit(X)
    start = threading.Barrier(8)

    def work(i):
        bn = common if shared else BatchNormTransformer(n_threads=1).fit(X)
        start.wait()
        kept, right = [], True
        for k in range(40):
            kept.append((i + k, bn.transform(X + (i + k))))
            if k % 3 == 0:
                del kept[0]
            right &= all(np.array_equal(y, expected[j]) for j, y in kept[-3:])
        return right

    expected = [np.array(common.transform(X + j)) for j in range(48)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert _buffers.waiting() <= 65536


def test_memory_leased_in_one_thread_is_given_back_in_another(small):
    with ThreadPoolExecutor(1) as pool:
        y = pool.submit(leased, 8192).result()
    at = address(y)
    del y
    gc.collect()
    assert address(leased(8192)) == at


# ---- processes ----


@needs_fork
def test_a_forked_child_starts_with_nothing_and_leaves_the_parent_alone(small):
    waits, kept = leased(16384), leased(8192)
    kept.fill(1)
    del waits
    child = os.fork()
    if child == 0:
        ok = _buffers.waiting() == 0 and (kept == 1).all()
        kept.fill(2)
        del kept  # shared with the parent: not worth keeping
        ok &= _buffers.waiting() == 0
        own = leased(8192)
        del own
        ok &= _buffers.waiting() == 8192
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert _buffers.waiting() == 16384 and (kept == 1).all()


@needs_fork
def test_a_fork_while_other_threads_lease_works(small):
    stop = threading.Event()

    def work():
        while not stop.is_set():
            leased(8192)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                leased(8192)
                os._exit(0 if bncpu.release_buffers() == 8192 else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def total_in_child(y):
    return float(y.sum()), _buffers.waiting()


@pytest.mark.parametrize("method", [pytest.param("fork", marks=needs_fork), *slow("spawn")])
def test_results_go_to_other_processes(method):
    y = leased(32 * MIB)
    y.fill(2)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(total_in_child, (y,)) == (2.0 * y.size, 0)


@pytest.mark.parametrize("modules", ["kept", *slow("deleted")])
def test_results_that_live_at_exit_do_no_harm(modules):
    code = f"""
    import gc, sys, threading
    import numpy as np
    import bncpu
    from bncpu import _buffers
    def result(_buffers=_buffers):
        return _buffers.empty((40 << 20,), np.dtype(np.uint8))
    class Node: pass
    node = Node()
    node.me, node.y = node, result()[::-1]  # a cycle
    sys.y = result()
    y = result()  # a global
    waits = result()
    del waits
    def late():
        threading.main_thread().join()
        result().fill(1)
    threading.Thread(target=late).start()
    if {modules!r} == "deleted":
        del bncpu, _buffers
        for name in [name for name in sys.modules if name.startswith("bncpu")]:
            del sys.modules[name]
        gc.collect()
    print("done")
    """
    assert run(code, PYTHONDEVMODE="1", PYTHONWARNINGS="ignore") == "done"


# ---- conversions ----


@pytest.mark.parametrize("order", ["K", "C"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_conversions_are_those_of_astype(small, order, dtype):
    a = np.arange(12_000, dtype=">f4").reshape(20, 30, 20).transpose(2, 0, 1)
    ours, numpys = _layout.converted(a, np.dtype(dtype), order), a.astype(dtype, order=order)
    assert ours.strides == numpys.strides and ours.dtype == numpys.dtype
    np.testing.assert_array_equal(ours, numpys)
