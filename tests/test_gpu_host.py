"""What the CUDA backend launches, with the real numba-cuda on a driver that runs nothing: see stub/libcuda.c.

The simulator runs the kernels as Python; here they are compiled and linked as for a device, and started as on one.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bncpu import gpu
from bncpu.gpu import _plan

STUB = Path(__file__).parent / "stub"
COMPILER = shutil.which(os.environ.get("CC", "cc"))

pytestmark = [
    pytest.mark.timeout(1000),
    pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed"),
    pytest.mark.skipif(not sys.platform.startswith("linux") or COMPILER is None, reason="needs Linux and a C compiler"),
    pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="not in the simulator"),
    pytest.mark.skipif(gpu.is_available(), reason="there is a device"),
]


@pytest.fixture(scope="module")
def launches(tmp_path_factory):
    """What each call of stub/calls.py launched."""
    folder = tmp_path_factory.mktemp("stub")
    library, log = folder / "libcuda.so.1", folder / "launches"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, STUB / "libcuda.c", "-ldl"], check=True)
    env = os.environ | {"LD_LIBRARY_PATH": str(folder), "CUDA_STUB_LOG": str(log), "CUDA_STUB_ARGUMENTS": "10"}
    run = subprocess.run([sys.executable, STUB / "calls.py"], env=env, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", ["rows", "planes", "small"])
def test_launches_follow_the_plan_and_start_at_x(launches, name):
    found = launches[name]
    p = _plan.plan(tuple(found["shape"]), 1, 4, multiprocessors=132)
    assert (p.slices == 1) is (name == "small")
    both = 1 if p.slices == 1 else 2
    assert [len(found[call]) for call in ("inference", "forward", "backward")] == [1, both, both]
    for call in ("inference", "forward", "backward"):
        for grid_x, grid_y, block_x, block_y, stream, *arguments in found[call]:
            assert (grid_x, grid_y, block_x, block_y) == (*p.grid, *p.block)
            assert stream == 0  # Numba's default
            assert arguments[0] == found["x"]
    if both == 2:
        *_, x, outer, channels, inner, step_outer, step_inner, groups, share, parts, done = found["forward"][0]
        assert (outer, channels, inner) == (p.outer, p.channels, p.inner)
        assert (step_outer, step_inner) == p.step
        assert (groups, share) == (1, 1)
        assert len({x, parts, done, 0}) == 4


def test_rows_of_odd_length_are_launched_as_longer_ones_and_a_rest(launches):
    found, (n_rows, width) = launches["joined rows"], launches["joined rows"]["shape"]
    about = {"multiprocessors": 132}
    joined = _plan.plan((n_rows // 4, 4 * width), 1, 4, **about)
    rest = _plan.plan((n_rows % 4, width), 1, 4, **about)
    # Sums of a channel are in five columns; they are moments forward, and pairs going back.
    parts = _plan.plan((5, width), 1, 8, **about)
    assert (joined.n, rest.n) == (4, 1)
    for call, plans in (
        ("inference", [joined, rest]),
        ("forward", [joined, rest, parts, joined, rest]),
        ("backward", [joined, rest, parts, joined, rest]),
    ):
        assert [tuple(launch[:4]) for launch in found[call]] == [(*p.grid, *p.block) for p in plans]
    starts = [launch[5] for launch in found["inference"]]
    assert starts == [found["x"], found["x"] + n_rows // 4 * 4 * width * 4]


# Views of x, in which a column is normalized together, or a channel of a sample; and rows, for sums over samples.
OF_SAMPLES = {
    "layer": ((1, 4096, 768), (1, 4096, 768), (4096, 768)),
    "group": ((1, 128, 4 * 3136), (1, 512, 3136), (64, 8)),
    "instance": ((1, 4096, 56), (1, 4096, 56), (64, 64)),
}


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_norms_of_samples_are_launched_over_other_views(launches, name):
    together, results, rows = OF_SAMPLES[name]
    about = {"multiprocessors": 132}
    first, second = (_plan.plan(view, 1, 4, rows=False, **about) for view in (together, results))
    of_sums = _plan.plan(rows, 1, 4 if name == "layer" else 8, rows=True, **about)
    of_groups = _plan.plan((1, 128, 4), 1, 8, rows=False, **about)
    plans = {
        "layer": ([first], [of_sums, first]),
        "instance": ([first], [first, of_sums]),
        "group": ([first, second], [second, of_groups, second, of_sums]),
    }[name]
    for way, expected in zip(("forward", "backward"), plans, strict=True):
        found = [tuple(launch[:4]) for launch in launches[name][way]]
        assert found == [(*p.grid, *p.block) for p in expected]
    if name == "layer":
        assert first.block == (32, 8)  # a warp for a row


def test_launches_are_on_the_current_stream_of_the_arrays_library(launches):
    for stream in (0, 0x7770, 0x7780):
        (launch,) = launches[f"stream {stream}"]
        assert launch[4] == (stream or 1)  # PyTorch's 0 is CUDA's legacy default stream, which is 1
