"""Forks, signals, threads and environment variables, each in a process of its own with a time limit."""

import multiprocessing
import os
import re
import shutil
import sysconfig
from pathlib import Path

import joblib
import processes
import pytest
from arrays import slow
from own_process import run

import bncpu
from bncpu import _kernels

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")


FIND = f"""
    import sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
"""


def result_of(function, *arguments, **environment):
    """What a function of `processes.py` returns, as it is printed."""
    return run(FIND, f"import processes; print(processes.{function.__name__}(*{arguments}))", **environment)


# ---- forks ----


@needs_fork
def test_forks_after_use_give_the_same_bits_in_parent_child_and_grandchild():
    assert result_of(processes.forks_after_use) == "{(True, True)}"


@needs_fork
def test_forks_while_other_threads_are_in_kernels_give_the_same_bits():
    assert result_of(processes.forks_during_kernels) == "({True}, {True})"


# ---- stacks ----


def test_a_thread_with_a_stack_of_256_kib_is_enough():
    code = """
    import threading
    import numpy as np
    from bncpu import BatchNormTransformer, batch_norm_backward, batch_norm_forward
    def call():
        for shape in ((64, 10), (600, 3000), (4, 30, 5, 5)):
            x = np.random.default_rng(0).normal(size=shape)
            y, saved = batch_norm_forward(x, activation="relu", residual=x)
            batch_norm_backward(y, x, saved, activation="relu", residual=x)
            BatchNormTransformer(channel_axis=1).partial_fit(np.where(x > 1, np.nan, x))
        print("done")
    threading.stack_size(256 * 1024)
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    """
    assert run(code) == "done"


# ---- signals ----


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signal.setitimer is POSIX")
def test_a_long_kernel_can_be_interrupted_and_changes_nothing():
    # One row read 200 million times over: seconds of work in no memory.
    code = """
    import signal, time
    import numpy as np
    from bncpu import _normalize
    row = np.arange(16.0)
    x = np.lib.stride_tricks.as_strided(row, (200_000_000, 16, 1), (0, 8, 8))
    def stop(*_):
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    start = time.perf_counter()
    try:
        _normalize.moments(x[None], None, skip_missing=True, n_threads=1)
        print("not interrupted")
    except KeyboardInterrupt:
        print("interrupted" if time.perf_counter() - start < 5 else "late")
    """
    assert run(code) == "interrupted"


# ---- how many threads ----


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this platform does not list threads")
@pytest.mark.parametrize(
    ("allowed", "started"), [("2", min(2, joblib.cpu_count()) - 1), pytest.param("1", 0, marks=pytest.mark.slow)]
)
def test_omp_num_threads_is_the_number_of_threads_on_an_idle_machine(allowed, started):
    code = """
    import os
    import numpy as np
    from bncpu import BatchNormTransformer, _kernels
    _kernels.set_machine(2, 2, os.devnull)
    X = np.zeros((200_000, 16))
    before = len(os.listdir("/proc/self/task"))
    BatchNormTransformer().fit(X).transform(X)
    print(len(os.listdir("/proc/self/task")) - before)
    """
    assert run(code, OMP_NUM_THREADS=allowed) == str(started)


@pytest.mark.skipif(_kernels.openmp_version() == 0, reason="built without OpenMP")
def test_nested_threadpool_limits_are_respected_in_any_thread_and_restored():
    seen = [4, 2, 1, 2, 4]
    assert result_of(processes.limits, OMP_NUM_THREADS="4") == str((seen, [seen, seen], seen))


# ---- pools ----


FIRST, *OTHERS = multiprocessing.get_all_start_methods()


@pytest.mark.parametrize("method", [FIRST, *slow(*OTHERS)])
def test_processes_however_started_learn_the_bits_of_one(method):
    assert result_of(processes.pool, method) == "True"


@pytest.mark.parametrize("backend", ["threading", *slow("loky", "multiprocessing")])
def test_joblib_workers_learn_the_bits_of_one_process_with_the_threads_that_joblib_allows(backend):
    allowed = {3} if _kernels.openmp_version() else {1}
    assert result_of(processes.joblib_pool, backend) == str((True, allowed if backend == "loky" else None))


# ---- threads ----


def test_eight_threads_on_own_and_shared_objects_get_the_bits_of_one():
    assert result_of(processes.eight_threads) == "set()"


@pytest.mark.parametrize("way", ["small", *slow("columns", "weighted")])
def test_concurrent_partial_fits_of_one_object_leave_some_whole_batches(way):
    assert result_of(processes.partial_fits_of_one, way).startswith("(set(), ")


def test_transforms_during_fits_to_another_width_are_right_or_refused():
    assert result_of(processes.transforms_during_fits) == "set()"


# Each of the two brings an OpenMP of its own.
@pytest.mark.parametrize("calls", ["ours(), theirs()", *slow("theirs(), ours()")])
def test_scikit_learn_loaded_and_used_before_or_after_us_does_no_harm(calls):
    code = """
    from concurrent.futures import ThreadPoolExecutor
    import numpy as np
    def ours():
        import processes
        return processes.results(3)
    def theirs():
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.metrics import pairwise_distances_argmin
        rng = np.random.default_rng(0)
        A, B = rng.standard_normal((2000, 8)), rng.standard_normal((100, 8))
        whole = A.round()
        nearest = ((A[:, None] - B) ** 2).sum(axis=2).argmin(axis=1)
        assert (pairwise_distances_argmin(A, B) == nearest).all()
        assert HistGradientBoostingClassifier(max_iter=5).fit(whole, whole[:, 0] > 0).score(whole, whole[:, 0] > 0) == 1
    """
    use = f"""
    found = [{calls}, {calls}]
    with ThreadPoolExecutor(4) as pool:
        found += pool.map(lambda use: use(), (ours, theirs) * 2)
    print({{*found}} - {{None}})
    """
    assert run(FIND, code, use) == str({processes.results(n_threads=1)})


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL")
def test_the_gil_stays_off():
    assert run("import sys, bncpu; print(sys._is_gil_enabled())") == "False"


# ---- environment and installation ----


@pytest.mark.parametrize("name", [_kernels.isa_variants()[-1], *slow(*_kernels.isa_variants()[:-1])])
def test_the_environment_chooses_the_instruction_set(name):
    assert run("from bncpu import _kernels; print(_kernels.isa())", BNCPU_ISA=name) == name


def test_an_unknown_instruction_set_in_the_environment_is_one_clear_error():
    code = """
    try:
        import bncpu
    except ValueError as error:
        print(error)
    """
    assert "BNCPU_ISA must be one of" in run(code, BNCPU_ISA="mmx")


def test_the_source_tree_without_a_kernel_says_so(tmp_path):
    compiled = shutil.ignore_patterns("*.so", "*.pyd", "*.c")
    shutil.copytree(Path(bncpu.__file__).parent, tmp_path / "bncpu", ignore=compiled)
    code = f"""
    import sys
    sys.path.insert(0, {str(tmp_path)!r})
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
    try:
        import bncpu
    except ImportError as error:
        print(error)
    """
    assert re.fullmatch(r"no compiled kernel in .*bncpu; if this is bncpu's source tree, start Python in .*", run(code))
