"""Which kernels run, and on how many threads."""

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import own_process
import pytest
from threadpoolctl import threadpool_limits

from bncpu import _dispatch, _kernels, _normalize

USABLE = joblib.cpu_count() if _kernels.openmp_version() else 1
needs_two = pytest.mark.skipif(USABLE < 2, reason="one processor, or built without OpenMP")
needs_loadavg = pytest.mark.skipif(not os.path.exists("/proc/loadavg"), reason="this platform does not tell what runs")


@pytest.fixture
def machine(tmp_path):
    """Fakes how many processors there are, how many this process may use, and how many tasks run."""

    def be(processors, usable, running):
        told = tmp_path / "loadavg"
        told.write_text(f"0.55 0.69 0.35 {running}/84 5176\n")
        _kernels.set_machine(processors, usable, str(told))

    yield be
    _dispatch.know_machine()


def idle_threads(most):
    """In a thread of its own, which has not waited for others."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_kernels.idle_threads, most).result()


def run(code, **environment):
    """What a process of its own prints."""
    return own_process.run("import os\nfrom bncpu import _kernels\n", code, **environment)


@pytest.mark.parametrize(
    ("allowed", "n_bytes", "expected"),
    [(8, 0, 1), (8, 1 << 19, 1), (8, 1 << 20, 2), (8, 1 << 30, 8), (1, 1 << 30, 1)],
)
def test_threads_are_those_allowed_but_only_as_many_as_pay(allowed, n_bytes, expected):
    with threadpool_limits(allowed, user_api="openmp"):
        assert _kernels.allowed_threads(n_bytes) == (expected if _kernels.openmp_version() else 1)


@pytest.mark.parametrize(
    ("asked", "n_bytes", "expected"),
    [(3, 1 << 30, 3), (16, 1 << 30, 16), (16, 1 << 20, 2), (16, 0, 1), (1 << 40, 1 << 62, 1 << 20), (None, 9, None)],
)
def test_threads_asked_for_are_taken_but_only_as_many_as_pay(asked, n_bytes, expected):
    assert _kernels.threads(asked, n_bytes) == expected


# ---- as many as processors are idle ----


@needs_loadavg
@pytest.mark.parametrize("others", range(6))
def test_a_loop_takes_no_more_threads_than_processors_are_idle(others, machine):
    machine(USABLE, USABLE, running=1 + others)
    assert idle_threads(100) == max(1, USABLE - others)
    assert idle_threads(1) == 1


@needs_loadavg
def test_what_runs_on_processors_that_are_not_ours_does_not_count(machine):
    machine(USABLE + 20, USABLE, running=1 + 20)
    assert idle_threads(100) == USABLE
    machine(USABLE + 20, USABLE, running=1 + 20 + USABLE)
    assert idle_threads(100) == 1


@needs_loadavg
def test_a_long_call_that_gets_and_loses_threads_has_the_bits_of_one_thread(tmp_path, machine):
    # One row read 2 million times over, in pieces of 64 MB.
    x = np.lib.stride_tricks.as_strided(np.geomspace(1, 9, 16), (1, 2_000_000, 16, 1), (0, 0, 8, 8))
    expected, _ = _normalize.moments(x, None, skip_missing=True, n_threads=1)
    machine(USABLE, USABLE, running=1)
    done = threading.Event()

    def come_and_go():
        for running in itertools.cycle((1, 1 + USABLE)):
            (tmp_path / "loadavg").write_text(f"0 0 0 {running}/84 5176")
            if done.wait(0.005):
                return

    with ThreadPoolExecutor(1) as pool:
        pool.submit(come_and_go)
        try:
            found, _ = _normalize.moments(x, None, skip_missing=True, n_threads=None)
        finally:
            done.set()
    assert np.array(found).tobytes() == np.array(expected).tobytes()


@needs_two
@needs_loadavg
def test_a_call_takes_the_threads_it_is_given_and_otherwise_those_that_become_idle(tmp_path):
    code = f"""
    import threading, time
    import numpy as np
    from bncpu import _normalize
    told = {str(tmp_path / "loadavg")!r}
    def others(n):
        with open(told + ".new", "w") as file:
            file.write(f"0 0 0 {{1 + n}}/84 5176")
        os.replace(told + ".new", told)  # never empty: that would be an idle machine
    def started(n_rows, n_threads, later=2):
        x = np.lib.stride_tricks.as_strided(np.ones(16), (1, n_rows, 16, 1), (0, 0, 8, 8))
        def work():
            before = set(os.listdir("/proc/self/task"))  # some of which may be about to end
            _normalize.moments(x, None, skip_missing=True, n_threads=n_threads)
            found.append(len(set(os.listdir("/proc/self/task")) - before))
        found, worker = [], threading.Thread(target=work)
        others(2)
        worker.start()
        time.sleep(0.01)
        others(later)
        worker.join()
        return found[0]
    _kernels.set_machine(2, 2, told)
    print(started(100_000, None), started(20_000_000, None, later=0), started(100_000, 2))
    """
    assert run(code, OMP_NUM_THREADS="2") == "0 1 1"


@pytest.mark.parametrize("told", ["0.00 0.00 0.00 0/0 0\n", "", "nonsense", "\xff" * 500, None])
def test_where_nothing_is_told_of_what_runs_all_processors_count_as_idle(told, machine, tmp_path):
    machine(USABLE, USABLE, running=100)
    (tmp_path / "loadavg").unlink()
    if told is not None:
        (tmp_path / "loadavg").write_text(told)
    assert idle_threads(100) == USABLE


def test_no_more_threads_than_the_quota_of_a_container_allows(machine):
    machine(USABLE + 20, 1, running=1)
    assert idle_threads(100) == 1
    # joblib reads quotas; this is its own way to lower what it has read.
    assert run("print(_kernels.idle_threads(100))", LOKY_MAX_CPU_COUNT="1") == "1"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this platform cannot choose processors")
def test_no_more_threads_than_processors_are_left_after_the_import():
    code = """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(_kernels.idle_threads(100))
    """
    assert run(code) == "1"


@needs_two
@needs_loadavg
@pytest.mark.parametrize(("policy", "expected"), [("active", "2"), ("passive", "1")])
def test_own_threads_that_wait_awake_for_the_next_loop_do_not_count_as_others(policy, expected, tmp_path):
    # Two tasks run: this one, and either the worker or something else. Tried again, as another program may interrupt
    # the worker; no wait is long.
    code = f"""
    import time
    import numpy as np
    from bncpu import _normalize
    told, x = {str(tmp_path / "loadavg")!r}, np.zeros((1, 20_000, 16, 1))
    open(told, "w").write("0 0 0 2/84 5176")
    _kernels.set_machine(2, 2, told, long_wait=1e9)
    for _ in range(1000 if {policy!r} == "active" else 5):
        _normalize.moments(x, None, skip_missing=True, n_threads=2)
        time.sleep(0.001 if {policy!r} == "passive" else 0)
        found = _kernels.idle_threads(2)
        if found == 2:
            break
    print(found)
    """
    assert run(code, OMP_WAIT_POLICY=policy, OMP_NUM_THREADS="2") == expected


@needs_two
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this platform cannot choose processors")
def test_after_a_long_wait_for_its_threads_a_loop_has_one_for_a_while():
    # The worker shares its processor with a program that is served before it, and nothing tells.
    code = """
    import subprocess, sys, time
    import numpy as np
    from bncpu import _normalize
    _kernels.set_machine(2, 2, os.devnull)
    x, before = np.zeros((1, 200_000, 16, 1)), _kernels.idle_threads(2)
    _normalize.moments(x, None, skip_missing=True, n_threads=2)
    worker = max(map(int, os.listdir("/proc/self/task")))
    ours, its = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(worker, {its})
    os.setpriority(os.PRIO_PROCESS, worker, 19)
    busy = subprocess.Popen([sys.executable, "-c", "print(flush=True)\\nwhile True: pass"], stdout=subprocess.PIPE)
    os.sched_setaffinity(busy.pid, {its})
    try:
        busy.stdout.readline()
        for _ in range(100):
            _normalize.moments(x, None, skip_missing=True, n_threads=2)
            after = _kernels.idle_threads(2)
            if after == 1:
                break
    finally:
        busy.kill()
        busy.wait()
    deadline = time.monotonic() + 80
    while _kernels.idle_threads(2) == 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    print(before, after, _kernels.idle_threads(2))
    """
    assert run(code, OMP_NUM_THREADS="2") == "2 1 2"
