"""Forks, signals, threads and environment variables, each in a process of its own with a time limit."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import bncpu
from bncpu import _kernels


def run(*code, arguments=(), **environment):
    done = subprocess.run(
        [sys.executable, "-c", "".join(map(textwrap.dedent, code)), *arguments],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SETUP = """
    import numpy as np
    from bncpu import BatchNormTransformer
    X = np.random.default_rng(0).standard_normal((200_000, 16))
    bn = BatchNormTransformer(n_threads=4).fit(X)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_fork_after_use_works_in_parent_and_child():
    code = """
    import os
    expected = bn.running_mean_.tobytes()
    for _ in range(3):
        child = os.fork()
        if child == 0:
            again = BatchNormTransformer(n_threads=4).fit(X).running_mean_.tobytes()
            os._exit(0 if again == expected else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert BatchNormTransformer(n_threads=4).fit(X).running_mean_.tobytes() == expected
    print("done")
    """
    assert run(SETUP, code) == "done"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_fork_while_another_thread_is_in_a_kernel_works():
    code = """
    import os, threading
    stop = threading.Event()
    def work():
        while not stop.is_set():
            BatchNormTransformer(n_threads=2).fit(X)
    worker = threading.Thread(target=work)
    worker.start()
    for _ in range(10):
        child = os.fork()
        if child == 0:
            ok = BatchNormTransformer(n_threads=2).fit(X).n_samples_seen_ == len(X)
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
    stop.set()
    worker.join()
    print("done")
    """
    assert run(SETUP, code) == "done"


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


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this platform does not list threads")
@pytest.mark.parametrize(("allowed", "started"), [("1", 0), ("3", 2)])
def test_omp_num_threads_is_the_number_of_threads(allowed, started):
    code = """
    import os
    import numpy as np
    from bncpu import BatchNormTransformer
    X = np.zeros((200_000, 16))
    before = len(os.listdir("/proc/self/task"))
    BatchNormTransformer().fit(X).transform(X)
    print(len(os.listdir("/proc/self/task")) - before)
    """
    assert run(code, OMP_NUM_THREADS=allowed) == str(started)


def test_threadpool_limits_are_respected():
    code = """
    from threadpoolctl import threadpool_limits
    from bncpu import _dispatch
    with threadpool_limits(1):
        inside = _dispatch.threads(None, 1 << 30)
    print(inside, _dispatch.threads(None, 1 << 10), _dispatch.threads(3, 1 << 30))
    """
    assert run(SETUP, code, OMP_NUM_THREADS="2") == "1 1 3"


@pytest.mark.parametrize("name", _kernels.isa_variants())
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


def test_threads_may_share_a_fitted_transformer():
    code = """
    from concurrent.futures import ThreadPoolExecutor
    expected = bn.transform(X).tobytes()
    with ThreadPoolExecutor(8) as pool:
        print(all(y.tobytes() == expected for y in pool.map(bn.transform, [X] * 24)))
    """
    assert run(SETUP, code) == "True"
