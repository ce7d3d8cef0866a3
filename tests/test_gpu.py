"""The CUDA backend: plans of every shape, the functions in the simulator or on a device, and what is refused.

Without numba-cuda only plans are tested; with it, and NUMBA_ENABLE_CUDASIM=1 or a device, everything.
"""

import inspect
import itertools
import pickle
import runpy
import sys
import typing
import warnings
from fractions import Fraction

import numpy as np
import pytest
from arrays import DTYPES, hostile_columns
from devices import IS_SIMULATED, MANY, assert_of_kind, assert_rounded, device, needs_cuda, on_host, shown_launches
from ml_dtypes import bfloat16
from ml_dtypes import finfo as ml_finfo
from sklearn import config_context
from sklearn.base import clone
from test_problem_sizes import DESCRIPTORS, shape_of

import bncpu
from bncpu import _reference, gpu
from bncpu.gpu import _plan

SHAPES = [shape_of(descriptor) for descriptor in DESCRIPTORS]


def test_the_gpu_says_in_one_line_why_it_cannot_be_used(monkeypatch):
    reason = gpu.why_unavailable()
    assert gpu.is_available() == (reason is None)
    assert reason is None or (reason == reason.strip() and len(reason.splitlines()) == 1)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert gpu.why_unavailable() == "numba-cuda is not installed: pip install 'bncpu[gpu]'"
    assert not gpu.is_available()


def test_functions_without_numba_name_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("bncpu.gpu.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ImportError, match=r"^numba-cuda is not installed: pip install 'bncpu\[gpu\]'$"):
        gpu.batch_norm
    with pytest.raises(AttributeError, match="no attribute 'layer'"):
        gpu.layer


# ---- plans ----


def walked(p):
    """How often each vector is visited by the threads of a grid."""
    seen = np.zeros((p.outer, p.channels, p.inner), int)
    for block, slice_, *thread in itertools.product(*map(range, (*p.grid, *p.block))):
        local, member = thread if p.rows else thread[::-1]
        column, position = block * p.columns + local, slice_ * p.members + member
        o, j = divmod(position, p.inner)
        while column < p.channels and o < p.outer:
            seen[o, column, j] += 1
            o, j = o + p.step[0], j + p.step[1]
            o, j = (o + 1, j - p.inner) if j >= p.inner else (o, j)
    return seen


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("shape", sorted({(*shape[:1], min(shape[1], 40), *shape[2:]) for shape in SHAPES}), ids=str)
def test_every_value_is_visited_once(shape, itemsize):
    for axis, aligned in itertools.product((1, len(shape) - 1), (True, False)):
        small = [min(n, 6) if axis != i and n > 6 else n for i, n in enumerate(shape)]
        p = _plan.plan(tuple(small), axis, itemsize, aligned=aligned, multiprocessors=1, threads=16)
        assert np.all(walked(p) == 1)
        assert p.n * p.outer * p.channels * p.inner == np.prod(small)
        assert p.width * p.values == np.prod(small)
        assert (p.rows, p.width) == (np.prod(small[axis + 1 :]) == 1, small[axis])


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize(
    "shape", [*SHAPES, (256, 64, 56, 56), (10_000_000, 8), (3, 1_000_000), (1, 70_000, 2)], ids=str
)
def test_plans_stay_within_the_limits_of_devices(shape, itemsize):
    for axis in (1, len(shape) - 1):
        p = _plan.plan(shape, axis, itemsize)
        threads, lanes = p.columns * p.members, p.n if p.rows else 1
        assert 1 <= threads <= 256
        assert p.members & (p.members - 1) == 0
        assert p.n * itemsize <= 16
        assert 3 * 8 * threads * lanes + 4 <= 48 * 1024
        assert 1 <= p.slices <= 65535
        assert p.blocks * p.columns >= p.channels > (p.blocks - 1) * p.columns
        # Whoever shares a column has enough to do.
        assert p.slices == 1 or p.outer * p.inner >= 8 * p.slices * p.members


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_rows_taken_as_one_fit_vectors_and_are_never_more_than_there_are(itemsize):
    found = set()
    for width in range(1, 700):
        p = _plan.plan((2 * _plan.LARGE // width + 1, width), 1, itemsize)
        together = _plan.rows_together(p, itemsize)
        assert together * width * itemsize % 16 == 0
        assert p.outer >= together
        found.add(together)
    assert found == {2: {1, 2, 4, 8}, 4: {1, 2, 4}, 8: {1, 2}}[itemsize]
    assert _plan.rows_together(_plan.plan((1000, 7), 1, itemsize), itemsize) == 1


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_two_thirds_of_the_threads_at_least_have_a_column_whatever_the_width(itemsize):
    for width in range(1, 700):
        p = _plan.plan((4_000_000, width), 1, itemsize, multiprocessors=132)
        at_once = 132 * _plan.threads_at_once(p.n * itemsize)
        assert 2 / 3 < p.channels * p.members * p.slices / at_once <= 1


# ---- the functions ----


CASES = {
    "planes": ((6, 3, 4, 5), 1),
    "planes of odd size": ((5, 3, 7, 7), 1),
    "planes in several slices": ((24 * MANY, 2, 8, 8), 1),
    "rows": ((40, 8), 1),
    "rows of odd width": ((33, 5), 1),
    "rows in several slices": ((300 * MANY, 3), 1),
    "many columns": ((4, 150), 1),
    "channels last": ((3, 4, 5, 8), -1),
    "channels first of all": ((4, 3, 8), 0),
    # Some of these are taken as one, where vectors of 16 bytes do not fit a row: 8, 4 or 2, or 4 and 2.
    "joined rows": ((320 * MANY, 3), 1),
    "joined rows, and 7 rows": ((320 * MANY + 7, 3), 1),
    "joined rows of even width": ((200 * MANY + 3, 6), 1),
    "joined rows, channels last": ((5 * MANY, 3, 21, 9), -1),
    "joined rows, many columns": ((150 * MANY, 37), 1),
}


class Case:
    """Data of a shape, and how parameters lie along it."""

    def __init__(self, name, dtype, seed=0):
        rng = np.random.default_rng(seed)
        self.shape, self.axis = CASES[name]
        self.n_channels = self.shape[self.axis]
        self.per = [1] * len(self.shape)
        self.per[self.axis] = self.n_channels
        far = 10.0 * np.arange(self.n_channels).reshape(self.per) % 70
        self.x = (3 * rng.standard_normal(self.shape) + far).astype(dtype)
        self.dy, self.z = rng.standard_normal((2, *self.shape)).astype(dtype)
        self.gamma, self.beta = rng.standard_normal((2, self.n_channels))
        self.mean, self.var = rng.standard_normal(self.n_channels), rng.random(self.n_channels)


@pytest.fixture(params=CASES)
def case(request, dtype):
    if request.param.startswith("joined"):
        request.getfixturevalue("joined_rows")
    return Case(request.param, dtype)


@pytest.fixture
def joined_rows(monkeypatch):
    """Small data count as large."""
    from bncpu.gpu import _call

    monkeypatch.setattr(_plan, "LARGE", 0)
    _call._pieces_for.cache_clear()
    yield
    _call._pieces_for.cache_clear()


@pytest.fixture(params=[np.float16, np.float32, np.float64], ids=["float16", "float32", "float64"])
def dtype(request):
    return request.param


@needs_cuda
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_inference_equals_the_reference(case, fused):
    c = case
    more = dict(activation="relu", residual=device(c.z)) if fused else {}
    y = gpu.batch_norm(*map(device, (c.x, c.mean, c.var, c.gamma, c.beta)), channel_axis=c.axis, **more)
    expected = _reference.batch_norm(c.x, c.mean, c.var, c.gamma, c.beta, channel_axis=c.axis)
    expected = np.maximum(expected + c.z, 0) if fused else expected
    assert on_host(y).dtype == c.x.dtype
    assert_rounded(on_host(y), expected)


@needs_cuda
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_forward_and_backward_equal_the_reference(case, fused):
    c = case
    more = dict(activation="relu", residual=c.z) if fused else {}
    there = {name: device(a) if name == "residual" else a for name, a in more.items()}
    running = [np.zeros(c.n_channels), np.ones(c.n_channels)]
    on_device = [device(a) for a in running]
    x, gamma, beta = map(device, (c.x, c.gamma, c.beta))
    y, saved = gpu.batch_norm_forward(
        x, gamma, beta, running_mean=on_device[0], running_var=on_device[1], ddof=1, channel_axis=c.axis, **there
    )
    wide = c.x.astype(float)
    expected, mean, var = _reference.batch_norm_forward(wide, c.gamma, c.beta, channel_axis=c.axis)
    assert_rounded(on_host(y), np.maximum(expected + c.z, 0) if fused else expected)
    n = c.x.size // c.n_channels
    np.testing.assert_allclose(on_host(on_device[0]), 0.1 * mean, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(on_host(on_device[1]), 0.9 + 0.1 * var * n / (n - 1), rtol=1e-13)

    kept = bncpu.SavedStatistics(*map(on_host, (saved.mean, saved.invstd, saved.mean_lo)))
    np.testing.assert_allclose(kept.mean, mean, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(kept.invstd, _reference.inverse_std(var), rtol=1e-13)
    for name, frozen in (("batch_norm_backward", False), ("batch_norm_backward_frozen", True)):
        some = saved._replace(kind="frozen") if frozen else saved
        found = getattr(gpu, name)(device(c.dy), x, some, gamma, beta=beta, channel_axis=c.axis, **there)
        wanted = _reference.batch_norm_backward(
            c.dy.astype(float), wide, kept, c.gamma, beta=c.beta, channel_axis=c.axis, frozen=frozen, **more
        )
        assert_rounded(on_host(found[0]), wanted[0])
        for got, sums in zip(found[1:3], wanted[1:3], strict=True):
            np.testing.assert_allclose(on_host(got), sums, rtol=1e-12, atol=1e-11)
        assert len(found) == 3 + fused
        if fused:
            np.testing.assert_array_equal(on_host(found[3]), wanted[3].astype(c.x.dtype))


@needs_cuda
def test_short_vectors_are_avoided_by_rows_that_are_taken_as_one(joined_rows, monkeypatch):
    launches = shown_launches(monkeypatch)
    for shape, dtype, sizes in (
        ((320 * MANY, 3), np.float16, [(40 * MANY, 3)]),
        ((320 * MANY + 7, 3), np.float32, [(80 * MANY + 1, 3), (3, 3)]),
        ((200 * MANY + 3, 6), np.float16, [(50 * MANY, 3), (3, 3)]),
        ((200 * MANY + 3, 6), np.float32, [(100 * MANY + 1, 3), (1, 3)]),
        ((200 * MANY + 3, 6), np.float64, [(200 * MANY + 3, 3)]),
        ((40, 3), np.float32, [(40, 3)]),  # one slice
    ):
        x, one = device(np.ones(shape, dtype)), device(np.ones(shape[1], np.float32))
        gpu.batch_norm(x, one, one)
        assert [(walk.outer, walk.channels) for _, (_, walk, *_) in launches] == sizes
        launches.clear()


@needs_cuda
@pytest.mark.parametrize("parameters", [np.float16, bfloat16, np.float32, np.float64])
def test_parameters_of_joined_rows_may_be_of_any_type(joined_rows, parameters):
    c = Case("joined rows, and 7 rows", np.float32)
    given = [a.astype(parameters) for a in (c.mean, c.var, c.gamma, c.beta)]
    x, (mean, var, gamma, beta) = device(c.x), map(device, given)
    wide, (_, _, *affine) = c.x.astype(float), (exact := [a.astype(float) for a in given])
    y = gpu.batch_norm(x, mean, var, gamma, beta)
    assert_rounded(on_host(y), bncpu.batch_norm(wide, *exact))
    y, saved = gpu.batch_norm_forward(x, gamma, beta, running_mean=mean, running_var=var)
    expected, of_cpu = bncpu.batch_norm_forward(wide, *affine, running_mean=exact[0], running_var=exact[1])
    assert_rounded(on_host(y), expected)
    for got, running in ((mean, exact[0]), (var, exact[1])):
        ulp = max(float(ml_finfo(parameters).eps), 1e-13)
        np.testing.assert_allclose(on_host(got).astype(float), running, rtol=ulp, atol=ulp / 8)
    found = gpu.batch_norm_backward(device(c.dy), x, saved, gamma)
    wanted = bncpu.batch_norm_backward(c.dy.astype(float), wide, of_cpu, affine[0])
    assert_rounded(on_host(found[0]), wanted[0])


@needs_cuda
def test_joined_rows_keep_a_bad_value_to_its_channel(joined_rows):
    for shape in ((320 * MANY + 1, 5), (320 * MANY, 3)):
        x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
        for at in ((7, 1), (len(x) - 1, 2)):
            bad = x.copy()
            bad[at] = np.nan
            others = np.arange(shape[1]) != at[1]
            for some, n in ((x, 0), (bad, 1)):
                y, saved = gpu.batch_norm_forward(device(some))
                found = gpu.batch_norm_backward(device(some), device(some), saved)
                for a in (y, saved.mean, saved.invstd, *found):
                    assert np.all(np.isfinite(on_host(a)[..., others]))
                    assert np.all(np.isnan(on_host(a)[..., ~others])) == n
            for weights in (None, np.linspace(1, 2, len(x))):
                learned, expected = (
                    bncpu.BatchNormTransformer().fit(a, sample_weight=weights) for a in (device(bad), bad)
                )
                np.testing.assert_allclose(learned.n_samples_seen_, expected.n_samples_seen_, rtol=1e-13)
                np.testing.assert_allclose(learned.var_, expected.var_, rtol=1e-13)


@needs_cuda
@pytest.mark.parametrize("joined", [False, True], ids=["rows", "joined rows"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_of_hostile_columns_lose_no_digits(dtype, joined, request):
    if joined:
        request.getfixturevalue("joined_rows")
    names, columns = hostile_columns(600 * MANY + 3 * joined, dtype)
    for x, axis in ((columns, 1), (np.ascontiguousarray(columns.T.reshape(9, 3, -1)), 0)):
        _, saved = gpu.batch_norm_forward(device(x), eps=0, channel_axis=axis)
        _, expected = bncpu.batch_norm_forward(x, eps=0, channel_axis=axis)
        np.testing.assert_allclose(on_host(saved.invstd), expected.invstd, rtol=1e-13, err_msg=str(names))
        # As far from the truth as rounding the distance to the first value takes it.
        std = np.divide(1, expected.invstd, out=np.zeros(9), where=expected.invstd > 0)
        assert np.all(np.abs(on_host(saved.mean) - expected.mean) <= 1e-14 * std + 2.0**-53 * np.abs(expected.mean))


@needs_cuda
@pytest.mark.parametrize("shape", [(60, 4), (320 * MANY + 1, 3)], ids=["rows", "joined rows"])
def test_a_mean_far_from_0_costs_no_digits_forward_or_backward(joined_rows, shape):
    rng = np.random.default_rng(1)
    x, dy = 1e9 + rng.standard_normal(shape), rng.standard_normal(shape)
    y, saved = gpu.batch_norm_forward(device(x))
    expected, wanted = bncpu.batch_norm_forward(x)
    np.testing.assert_allclose(on_host(y), expected, rtol=0, atol=1e-14)
    found = gpu.batch_norm_backward(device(dy), device(x), saved)
    for got, gradient in zip(found, bncpu.batch_norm_backward(dy, x, wanted), strict=True):
        np.testing.assert_allclose(on_host(got), gradient, rtol=1e-13, atol=1e-13)


@needs_cuda
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the simulator, which computes with NumPy
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(40, 8), (6, 8, 4)], ids=["rows", "planes"])
def test_bad_values_stay_in_their_channel_and_show_in_its_statistics(shape, bad):
    x = np.random.default_rng(2).standard_normal(shape)
    clean = on_host(gpu.batch_norm_forward(device(x))[0])
    x[3, 5] = bad
    running = [device(np.zeros(8)), device(np.ones(8))]
    y, saved = gpu.batch_norm_forward(device(x), running_mean=running[0], running_var=running[1])
    others = np.arange(8) != 5
    np.testing.assert_array_equal(on_host(y)[:, others], clean[:, others])
    assert np.all(np.isnan(on_host(y)[:, 5]))
    for statistic in (saved.mean, saved.invstd, *running):
        found = on_host(statistic)
        assert np.all(np.isfinite(found[others]))
        assert not np.isfinite(found[5])


@needs_cuda
def test_calls_leave_the_workspace_ready_for_the_next_and_give_the_same_bits():
    c = Case("rows in several slices", np.float32)
    results = [on_host(gpu.batch_norm_forward(device(x), eps=0)[0]) for x in (c.x, 100 - c.x, c.x)]
    assert results[0].tobytes() == results[2].tobytes()
    np.testing.assert_allclose(results[1], -results[0], rtol=0, atol=1e-5)


@pytest.fixture
def many_slices(monkeypatch):
    """Plans of a large device with few threads in a block, as the simulator takes milliseconds for each; blocks end in
    any order."""
    if IS_SIMULATED:
        from numba.cuda.simulator import kernel

        from bncpu.gpu import _call

        class Shuffled:
            def __getattr__(self, name):
                return getattr(np, name)

            @staticmethod
            def ndindex(*grid):
                return map(tuple, np.random.default_rng(len(grid)).permutation(list(np.ndindex(*grid))).tolist())

        monkeypatch.setattr(kernel, "np", Shuffled())
        monkeypatch.setattr(_call, "_device", lambda device: (132, 2))


@needs_cuda
@pytest.mark.parametrize(("shape", "fan_in"), [((1620, 2), 32), ((1620, 2), 3), ((1, 1, 6464), 32)], ids=str)
def test_a_hundred_slices_merge_as_a_tree(many_slices, monkeypatch, shape, fan_in):
    if IS_SIMULATED:
        from bncpu.gpu import _merging

        for module in (_plan, _merging):
            monkeypatch.setattr(module, "FAN_IN", fan_in)
        p = _plan.plan(shape, 1, 4, multiprocessors=132, threads=2)
        assert p.slices > 100
        assert len(p.levels) == {32: 3, 3: 6}[fan_in]
    rng = np.random.default_rng(5)
    x = (rng.standard_normal(shape) + 1e5).astype(np.float32)
    dy, z = rng.standard_normal((2, *shape)).astype(np.float32)
    x.flat[0] *= 1e6  # what the first slice starts from is far from all others
    weights = rng.random(shape[0])
    holes = np.where(rng.random(shape) < 0.1, np.nan, x.astype(np.float64))
    results = []
    for _ in range(2):  # the second call finds the counters as the first one has left them
        y, saved = gpu.batch_norm_forward(device(x), activation="relu", residual=device(z))
        found = gpu.batch_norm_backward(device(dy), device(x), saved, activation="relu", residual=device(z))
        results.append([on_host(a).tobytes() for a in (y, saved.mean, saved.invstd, saved.mean_lo, *found)])
    assert results[0] == results[1]
    wide = [a.astype(np.float64) for a in (x, dy, z)]
    expected, kept = bncpu.batch_norm_forward(wide[0], activation="relu", residual=wide[2])
    assert_rounded(on_host(y), expected)
    np.testing.assert_allclose(on_host(saved.invstd), kept.invstd, rtol=1e-13)
    wanted = bncpu.batch_norm_backward(wide[1], wide[0], kept, activation="relu", residual=wide[2])
    for got, gradient in zip(found, wanted, strict=True):
        assert_rounded(on_host(got), gradient, ulps=1.0 if on_host(got).dtype == np.float32 else 1e4)
    on_device, on_cpu = (
        bncpu.BatchNormTransformer(channel_axis=1).fit(a, sample_weight=weights) for a in (device(holes), holes)
    )
    np.testing.assert_allclose(on_device.mean_, on_cpu.mean_, rtol=1e-14)
    np.testing.assert_allclose(on_device.var_, on_cpu.var_, rtol=1e-12)


@needs_cuda
@pytest.mark.parametrize("weight", [1e-12, 1.0, 1e12])
def test_a_first_value_far_from_all_others_costs_no_digits(many_slices, weight):
    x = np.random.default_rng(6).standard_normal((810, 3)) + 3
    weights = np.ones(810)
    x[0], weights[0] = [1e8, -1e12, 3.0], weight
    got, expected = (bncpu.BatchNormTransformer().fit(a, sample_weight=weights) for a in (device(x), x))
    exact = [exact_variance(x[:, c], weights) for c in range(3)]
    np.testing.assert_allclose(got.var_, exact, rtol=1e-13)
    np.testing.assert_allclose(expected.var_, exact, rtol=1e-13)


@needs_cuda
def test_weights_that_grow_do_not_leave_the_number_behind_about_which_values_are_summed(monkeypatch):
    threads, steps, growth = 4, 1500, 1.013
    if IS_SIMULATED:
        from bncpu.gpu import _call

        monkeypatch.setattr(_plan, "AT_ONCE", threads)
        monkeypatch.setattr(_call, "_device", lambda device: (1, threads))
        assert _plan.plan((threads * steps, 1), 1, 8, multiprocessors=1, threads=threads).slices == 1
    x = np.random.default_rng(9).standard_normal((threads * steps, 1))
    x[: 120 * threads] += 1e6
    weights = growth ** (np.arange(len(x)) // threads - steps + 1.0)
    got = bncpu.BatchNormTransformer().fit(device(x), sample_weight=weights)
    np.testing.assert_allclose(got.var_, exact_variance(x[:, 0], weights), rtol=1e-12)
    fading = bncpu.BatchNormTransformer(halflife=np.log(2) / np.log(growth) * threads)
    got, expected = (clone(fading).partial_fit(a) for a in (device(x), x))
    np.testing.assert_allclose(got.var_, expected.var_, rtol=1e-12)


def exact_variance(values, weights):
    values, weights = ([Fraction(v) for v in a.tolist()] for a in (values, weights))
    mean = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
    return float(sum(w * (v - mean) ** 2 for v, w in zip(values, weights, strict=True)) / sum(weights))


@needs_cuda
@pytest.mark.parametrize("name", ["planes", "rows"])
def test_out_receives_the_result_and_may_be_any_input(name):
    c = Case(name, np.float32)
    dy, mean, var = map(device, (c.dy, c.mean, c.var))
    _, saved = gpu.batch_norm_forward(device(c.x))
    calls = {
        "x in inference": lambda x, out: gpu.batch_norm(x, mean, var, out=out),
        "x in training": lambda x, out: gpu.batch_norm_forward(x, out=out)[0],
        "x backward": lambda x, out: gpu.batch_norm_backward(dy, x, saved, out=out)[0],
    }
    for call in calls.values():
        x = device(c.x)
        expected = on_host(call(x, None))
        assert call(x, x) is x
        np.testing.assert_array_equal(on_host(x), expected)
    again = device(c.dy)
    assert gpu.batch_norm_backward(again, device(c.x), saved, out=again)[0] is again
    np.testing.assert_array_equal(on_host(again), expected)
    # Without gamma and beta, which are 1 and 0.
    _, kept = bncpu.batch_norm_forward(c.x)
    np.testing.assert_allclose(on_host(again), bncpu.batch_norm_backward(c.dy, c.x, kept)[0], rtol=0, atol=1e-6)


@needs_cuda
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the simulator, which computes with NumPy
def test_with_frozen_statistics_no_sample_depends_on_a_bad_one():
    c = Case("rows", np.float64)
    c.dy[3, 5], c.x[7, 2] = np.nan, np.inf
    saved = gpu.SavedStatistics(*(device(a) for a in (c.mean, np.ones(8), np.zeros(8))))
    dx, *_ = gpu.batch_norm_backward_frozen(device(c.dy), device(c.x), saved)
    expected, *_ = bncpu.batch_norm_backward_frozen(c.dy, c.x, bncpu.SavedStatistics(c.mean, np.ones(8)))
    np.testing.assert_array_equal(on_host(dx), expected)


@needs_cuda
@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")  # of the simulator
def test_a_variance_beyond_float64_is_nan_as_on_the_cpu():
    x = np.where(np.arange(40)[:, None] % 2, 1e200, -1e200) * np.ones(4)
    y, saved = gpu.batch_norm_forward(device(x))
    assert np.all(np.isnan(on_host(saved.invstd)))
    assert np.all(np.isnan(on_host(y)))


@pytest.mark.skipif(not IS_SIMULATED, reason="of the simulator, which has to round to bfloat16 itself")
def test_bfloat16_words_are_read_and_rounded_to_nearest():
    from bncpu.gpu import _compat

    numbers = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    words = _compat._narrowed(numbers.astype(float), "bfloat16")
    back = (words.astype(np.uint32) << 16).view(np.float32)
    spacing = 2.0 ** (np.floor(np.log2(np.abs(numbers))) - 7)
    assert np.all(np.abs(back - numbers) <= spacing / 2)
    assert _compat._narrowed(np.array([np.nan, np.inf, 0.0, -0.0]), "bfloat16").tolist() == [0x7FC0, 0x7F80, 0, 0x8000]


@needs_cuda
def test_kernels_get_the_groups_and_numbers_that_they_are_compiled_for(joined_rows, monkeypatch):
    from bncpu.gpu import _kernels

    launches = shown_launches(monkeypatch)
    monkeypatch.setattr(_plan, "LARGE", 320 * MANY * 3 * 4)
    for name in ("rows", "rows in several slices", "joined rows"):
        c = Case(name, np.float32)
        x, dy, gamma, mean, var = map(device, (c.x, c.dy, c.gamma, c.mean, c.var))
        gpu.batch_norm(x, mean, var, eps=0)
        _, saved = gpu.batch_norm_forward(x, gamma, running_mean=mean, running_var=var, momentum=1, ddof=1)
        gpu.batch_norm_backward(dy, x, saved, gamma)
        t = bncpu.BatchNormTransformer().fit(x, sample_weight=np.ones(len(c.x)))
        t.partial_fit(x).transform(x)
    assert {kernel.__name__ for kernel, _ in launches} == set(_kernels.Kernels._fields)
    for kernel, arguments in launches:
        annotations = typing.get_type_hints(inspect.unwrap(kernel)).values()
        for value, annotation in zip(arguments, annotations, strict=True):
            assert_of_kind(value, annotation)


# ---- memory that arrays share, and its order ----


def overlapping():
    """Functions of data, of which some share memory, and what their refusal says."""
    rng = np.random.default_rng(3)
    x, dy = (device(rng.standard_normal((5, 2))) for _ in range(2))
    long, one = device(rng.standard_normal((9, 2))), device(np.ones(2))
    _, saved = gpu.batch_norm_forward(x)
    statistics = {name: device(np.ones((5, 2))) for name in ("mean", "mean_lo", "invstd")}
    unless = ", unless out is all of "
    forward, backward = gpu.batch_norm_forward, gpu.batch_norm_backward
    return [
        (lambda: gpu.batch_norm(long[:5], one, one, out=long[3:8]), "out and x", unless + "x"),
        (lambda: forward(long[3:8], out=long[:5]), "out and x", unless + "x"),
        (lambda: forward(x, residual=long[1:6], out=long[:5]), "out and residual", unless + "residual"),
        (lambda: backward(long[1:6], x, saved, out=long[:5]), "out and dy", unless + "dy"),
        (lambda: gpu.batch_norm(x, long[2], one, out=long[:5]), "out and mean", ""),
        (lambda: gpu.batch_norm(x, one, x[4], out=x), "out and var", ""),
        (lambda: forward(x, long[0], out=long[:5]), "out and gamma", ""),
        (lambda: forward(x, beta=x[1], out=x), "out and beta", ""),
        (lambda: forward(x, one, running_mean=one, running_var=dy[0]), "running_mean and gamma", ""),
        (lambda: forward(x, beta=one, running_mean=dy[0], running_var=one), "running_var and beta", ""),
        (lambda: forward(x, running_mean=one, running_var=one), "running_mean and running_var", ""),
        (lambda: forward(x, running_mean=x[2], running_var=one), "running_mean and x", ""),
        (lambda: forward(x, running_mean=one, running_var=dy[2], residual=dy), "running_var and residual", ""),
        (lambda: forward(x, running_mean=one, running_var=dy[2], out=dy), "out and running_var", ""),
        *(
            (
                lambda name=name, a=a: backward(dy, x, saved._replace(**{name: a[3]}), out=a),
                f"out and saved.{name}",
                "",
            )
            for name, a in statistics.items()
        ),
    ], [x, dy, long, one, *statistics.values()]


@needs_cuda
def test_what_is_written_shares_no_memory_with_what_is_read():
    calls, arrays = overlapping()
    before = [on_host(a).tobytes() for a in arrays]
    for call, names, unless in calls:
        with pytest.raises(ValueError, match=f"^{names} must not share memory{unless}$"):
            call()
        assert [on_host(a).tobytes() for a in arrays] == before


@needs_cuda
def test_out_may_be_the_residual_and_inputs_may_be_one_array():
    c = Case("planes", np.float32)
    x = device(c.x)
    expected, saved = gpu.batch_norm_forward(x, residual=x)
    z = device(c.x)
    assert gpu.batch_norm_forward(x, residual=z, out=z)[0] is z
    np.testing.assert_array_equal(on_host(z), on_host(expected))
    wanted = gpu.batch_norm_backward(x, x, saved, residual=x)
    z = device(c.x)
    for got, gradient in zip(gpu.batch_norm_backward(x, x, saved, residual=z, out=z), wanted, strict=True):
        np.testing.assert_array_equal(on_host(got), on_host(gradient))


def channels_last(a):
    """An array on the device that lies in memory with axis 1 last; in the simulator only."""
    return type(device(a))(np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1))


@pytest.mark.skipif(not IS_SIMULATED, reason="Numba makes such arrays in the simulator only; PyTorch on a device")
@pytest.mark.parametrize("shape", [(6, 8, 3, 4), (40, 3, 5), (2, 5, 1, 7, 2)], ids=str)
def test_channels_that_lie_last_in_memory_are_taken_as_they_are(shape):
    rng = np.random.default_rng(6)
    x, dy, z = rng.standard_normal((3, *shape)).astype(np.float32)
    gamma, mean, var = (device(a) for a in 1 + rng.random((3, shape[1])))
    moved = [channels_last(a) for a in (x, dy, z)]
    plain = [device(np.moveaxis(a, 1, -1)) for a in (x, dy, z)]
    results = []
    for (x_, dy_, z_), axis in ((moved, 1), (plain, -1)):
        more = {"channel_axis": axis, "residual": z_, "activation": "relu"}
        y, saved = gpu.batch_norm_forward(x_, gamma, **more)
        gradients = gpu.batch_norm_backward(dy_, x_, saved, gamma, **more)
        t = bncpu.BatchNormTransformer(channel_axis=axis).fit(x_, sample_weight=np.arange(len(x)))
        results.append([y, gpu.batch_norm(x_, mean, var, **more), t.transform(x_), gradients[0], gradients[3]])
        results[-1] += [saved.mean, saved.invstd, *gradients[1:3], device(t.running_var_)]
    for got, expected in zip(*results, strict=True):
        got, expected = on_host(got), on_host(expected)
        if got.ndim > 1:
            assert got.shape == shape
            got = np.moveaxis(got, 1, -1)
            assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, expected)
    out = channels_last(np.zeros(shape, np.float32))
    assert gpu.batch_norm(moved[0], mean, var, gamma, out=out) is out
    expected = gpu.batch_norm(device(x), mean, var, gamma)
    np.testing.assert_array_equal(on_host(out), on_host(expected))


@pytest.mark.skipif(not IS_SIMULATED, reason="Numba makes such arrays in the simulator only; PyTorch on a device")
def test_arrays_of_one_call_have_one_memory_order():
    x = np.zeros((2, 3, 4, 5))
    orders = "C-contiguous", "with its channels adjacent in memory"
    for make, other, (expected, got) in ((device, channels_last, orders), (channels_last, device, orders[::-1])):
        with pytest.raises(ValueError, match=f"^residual must be {expected}, as x is; got one {got}$"):
            gpu.batch_norm_forward(make(x), residual=other(x))
    with pytest.raises(
        ValueError, match=r"^x must be C-contiguous, or have its channels adjacent in memory, as nothing"
    ):
        gpu.batch_norm_forward(channels_last(x), channel_axis=2)
    with pytest.raises(ValueError, match=r"^gamma must be C-contiguous, as nothing is copied in silence; make a"):
        gpu.batch_norm_forward(device(x), device(np.ones((3, 2)))[:, 0])


@needs_cuda
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the simulator, which computes with NumPy
@pytest.mark.parametrize("variance", [-1.0, -1e-9, -np.inf])
def test_a_negative_variance_shows_in_its_channel_whatever_eps(variance):
    c = Case("rows", np.float32)
    x, mean = device(c.x), device(c.mean)
    expected = on_host(gpu.batch_norm(x, mean, device(c.var)))
    c.var[5] = variance
    y = on_host(gpu.batch_norm(x, mean, device(c.var), eps=1e-5))
    others = np.arange(8) != 5
    np.testing.assert_array_equal(y[:, others], expected[:, others])
    assert np.all(np.isnan(y[:, 5]))


# ---- arrays of other libraries, devices and streams ----


class Torch:
    """Stands for PyTorch, with arrays of the simulator for tensors: all that the backend asks PyTorch for."""

    def __init__(self):
        self.grad, self.written, self.handle, self.index = True, [], 0, 0
        self.float64, self.int32, self.torch = np.dtype(np.float64), np.dtype(np.int32), self
        self.sizes = []  # of arrays with zeros
        self.cuda = self.autograd = self.graph = self

        class Tensor:
            is_cuda, requires_grad = True, False
            torch = self

            def __init__(self, a):
                self._ary, self.shape, self.ndim = a, a.shape, a.ndim
                self.dtype, self.device = f"torch.{a.dtype}", self.torch

            def stride(self):
                return tuple(n // self._ary.itemsize for n in self._ary.strides)

            def cpu(self):
                return self

            def numpy(self):
                return self._ary

            def data_ptr(self):
                from bncpu.gpu import _compat

                return _compat.Words(self._ary.ravel(order="K"))

        Tensor.__module__ = "torch"
        self.Tensor = Tensor

    def is_grad_enabled(self):
        return self.grad

    def empty_like(self, a):
        return self.Tensor(np.empty_like(a._ary))

    def empty(self, shape, dtype, device):
        return self.Tensor(np.empty(shape, dtype))

    def zeros(self, n, dtype, device):
        self.sizes.append(n)
        return self.Tensor(np.zeros(n, dtype))

    def tensor(self, values, device):
        return self.Tensor(values.copy())

    def current_stream(self, device):
        return self

    @property
    def cuda_stream(self):
        return self.handle

    def increment_version(self, tensor):
        self.written.append(tensor)


@pytest.fixture
def torch(monkeypatch):
    if not IS_SIMULATED:
        pytest.skip("of the simulator")
    stand_in = Torch()
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    return stand_in


def test_tensors_give_the_bits_of_numbas_arrays(torch):
    class Mine(torch.Tensor):
        """Derived from a tensor, as users do."""

    for name, kind in (("rows", torch.Tensor), ("planes", Mine)):
        c = Case(name, np.float32)
        results = []
        for make in (kind, device):
            x, dy, gamma = (make(a) for a in (c.x, c.dy, c.gamma))
            y, saved = bncpu.batch_norm_forward(x, gamma, residual=dy)
            results.append([y, *bncpu.batch_norm_backward(dy, x, saved, gamma, residual=dy)])
        for got, expected in zip(*results, strict=True):
            assert isinstance(got, torch.Tensor)
            assert got._ary.tobytes() == on_host(expected).tobytes()
    x = torch.Tensor(np.ones((2, 6))[:, ::2])
    with pytest.raises(ValueError, match=r"^x must be C-contiguous, or have its channels"):
        gpu.batch_norm_forward(x)


def test_all_memory_of_a_call_is_of_the_library_of_its_arrays(torch, monkeypatch):
    from numba import cuda

    c, weights = Case("rows in several slices", np.float32), np.linspace(0.5, 2, 300 * MANY)
    t, on_numba = (
        bncpu.BatchNormTransformer().fit(make(c.x), sample_weight=weights) for make in (torch.Tensor, device)
    )
    assert_same_bits(t, on_numba)
    for name in ("device_array", "device_array_like", "to_device"):
        monkeypatch.setattr(cuda, name, None)
    torch.sizes.clear()
    x, dy = torch.Tensor(c.x), torch.Tensor(c.dy)
    for _ in range(2):
        _, saved = gpu.batch_norm_forward(x)
        gpu.batch_norm_backward(dy, x, saved)
    assert_same_bits(bncpu.BatchNormTransformer().fit(x, sample_weight=weights), t)
    levels = _plan.plan(c.shape, 1, 4, multiprocessors=1, threads=16).levels
    assert torch.sizes == 5 * [sum(levels[1:])]


def assert_same_bits(a, b):
    for name in ("mean_", "var_", "n_samples_seen_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_tensors_that_require_grad_are_refused_unless_autograd_is_off(torch):
    c = Case("rows", np.float32)

    def call(**changes):
        tensors = {"x": c.x, "gamma": c.gamma, "beta": c.beta, "residual": c.z, "out": np.zeros_like(c.x)}
        tensors |= {"running_mean": c.mean, "running_var": c.var}
        tensors = {name: torch.Tensor(a.copy()) for name, a in tensors.items()}
        for name in changes:
            tensors[name].requires_grad = True
        gpu.batch_norm_forward(**tensors)
        return {name for name, t in tensors.items() if any(t is other for other in torch.written)}

    for name in ("x", "gamma", "beta", "residual", "out", "running_mean"):
        with pytest.raises(ValueError, match=rf"^{name} must not require grad, .*autograd.*; call it under torch.no_g"):
            call(**{name: True})
        assert torch.written == []
    torch.grad = False
    assert call(x=True, gamma=True) == {"out", "running_mean", "running_var"}


def test_the_benchmark_leaves_pytorch_alone_where_it_has_no_device(torch, monkeypatch):
    from bncpu.gpu import _compat

    def used(simulated, available):
        monkeypatch.setattr(_compat, "SIMULATED", simulated)
        torch.is_available = lambda: available
        return runpy.run_module("bncpu.gpu.bench")["torch"] is torch

    assert [used(True, True), used(False, False), used(False, True)] == [False, False, True]


@needs_cuda
def test_an_array_is_on_its_own_device_not_on_the_current_one(monkeypatch):
    from bncpu.gpu import _compat

    x = device(np.ones((3, 2)))
    monkeypatch.setattr(_compat, "device_of", lambda a: 3)
    with pytest.raises(ValueError, match=r"^x must be on the current device, 0, got one on device 3$"):
        gpu.batch_norm_forward(x)


def test_the_default_stream_is_that_of_the_arrays_library(torch, monkeypatch):
    from bncpu.gpu import _arrays, _call

    names = ("default_stream", "legacy_default_stream", "external_stream")
    for name in names:
        monkeypatch.setattr(_call.cuda, name, lambda *handle, name=name: (name, *handle))
    arrays = {"numba": device(np.ones((3, 2))), "torch": torch.Tensor(np.ones((3, 2)))}
    found = {}
    for handle in (0, 7):
        torch.handle = handle
        for of, a in arrays.items():
            found[_arrays.stream(a, of)] = _call._stream.__wrapped__(0, _arrays.stream(a, of))
    assert found == {None: ("default_stream",), 0: ("legacy_default_stream",), 7: ("external_stream", 7)}


@needs_cuda
def test_types_derived_from_those_of_device_arrays_are_device_arrays():
    from bncpu.gpu._library import _library_of_type, library_of

    class Mine(type(device(np.ones(2)))):
        """Derived from an array of Numba, as users do."""

    assert _library_of_type(Mine) == "numba"
    for a in (np.ones(2), [1.0], None, 1, bncpu, type(device(np.ones(2)))):
        assert library_of(a) is None


# ---- from the package's own functions and transformer, by the type of the array ----


@needs_cuda
def test_the_packages_functions_take_device_arrays():
    c = Case("planes", np.float32)
    x, dy, gamma, beta, mean, var = map(device, (c.x, c.dy, c.gamma, c.beta, c.mean, c.var))
    calls = {
        "batch_norm": ((x, mean, var, gamma, beta), {"activation": "relu"}),
        "batch_norm_forward": ((x, gamma, beta), {"residual": dy, "activation": "relu"}),
    }
    for name, (arguments, more) in calls.items():
        results = [getattr(module, name)(*arguments, **more) for module in (bncpu, gpu)]
        y, expected = (on_host(result[0] if isinstance(result, tuple) else result) for result in results)
        assert y.tobytes() == expected.tobytes()
    saved = results[0][1]
    assert type(saved) is bncpu.SavedStatistics is gpu.SavedStatistics
    for name in ("batch_norm_backward", "batch_norm_backward_frozen"):
        how = {"beta": beta, "residual": dy, "activation": "relu"}
        saved = saved._replace(kind="frozen" if name.endswith("frozen") else "training")
        both = [getattr(module, name)(dy, x, saved, gamma, **how) for module in (bncpu, gpu)]
        for got, expected in zip(*both, strict=True):
            assert on_host(got).tobytes() == on_host(expected).tobytes()
        with pytest.raises(ValueError, match=r"^activation must be that of the forward pass that made saved, 'relu'"):
            getattr(gpu, name)(dy, x, saved, gamma)
    with pytest.raises(TypeError, match=r"^moments must be None for device arrays, which .* got Moments$"):
        bncpu.batch_norm_forward(x, moments=bncpu.batch_norm_moments(c.x))


LEARNING = [
    ({}, None, False),
    ({}, -1, True),
    ({"momentum": 0.9, "ddof": 1}, None, True),
    ({"momentum": 0.9}, 1, False),
    ({"halflife": 7.0}, None, False),
    ({"halflife": 7.0}, 1, True),
    ({"batch_size": 9, "momentum": 0.5}, None, False),
]


def streams(channel_axis, dtype=np.float32):
    """Batches with far means and missing values, the first value of a channel and a whole channel among them."""
    rng = np.random.default_rng(3)
    shape = (33, 5) if channel_axis is None else (12, 3, 2, 5) if channel_axis == -1 else (12, 5, 2, 3)
    per = [1] * len(shape)
    per[1 if channel_axis is None else channel_axis] = 5
    for _ in range(3):
        x = (rng.standard_normal(shape) + np.reshape([0, 1e3, -50, 7, 0], per)).astype(dtype)
        x[rng.random(shape) < 0.1] = np.nan
        x[0] = np.nan
        yield x


def assert_same_state(ours, theirs):
    for name in ("count", "mean", "m2"):
        got, expected = (getattr(t._state.running.moments, name) for t in (ours, theirs))
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(ours.running_var_, theirs.running_var_, rtol=1e-12)
    np.testing.assert_allclose(ours.n_samples_seen_, theirs.n_samples_seen_, rtol=1e-15)  # a sum of weights
    assert ours.n_batches_seen_ == theirs.n_batches_seen_


@needs_cuda
@pytest.mark.parametrize(("parameters", "channel_axis", "weighted"), LEARNING)
def test_a_transformer_learns_the_same_from_device_arrays_and_gives_them_back(parameters, channel_axis, weighted):
    ours, theirs = (bncpu.BatchNormTransformer(channel_axis=channel_axis, **parameters) for _ in range(2))
    learn = "fit" if "batch_size" in parameters else "partial_fit"
    for x in streams(channel_axis):
        weight = np.random.default_rng(4).random(len(x)) if weighted else None
        getattr(theirs, learn)(x, sample_weight=weight)
        assert getattr(ours, learn)(device(x), sample_weight=weight) is ours
    assert_same_state(ours, theirs)

    y = ours.transform(device(x))
    assert type(y) is type(device(x))
    expected = theirs.transform(x.astype(float))
    np.testing.assert_allclose(on_host(y), expected, rtol=1e-6, atol=1e-6)
    back = ours.inverse_transform(y)
    np.testing.assert_allclose(on_host(back), x, rtol=1e-6, atol=1e-6)
    given = device(x)
    assert ours.transform(given, copy=False) is given
    np.testing.assert_array_equal(on_host(given), on_host(y))
    assert ours.transform(device(x), out=given) is given


@needs_cuda
def test_a_state_learned_on_a_device_is_one_in_memory(tmp_path):
    first, second, _ = streams(None)
    ours, theirs = bncpu.BatchNormTransformer(), bncpu.BatchNormTransformer()
    ours.fit(device(first)).merge(bncpu.BatchNormTransformer().fit(device(second)))
    theirs.fit(first).merge(bncpu.BatchNormTransformer().fit(second))
    ours.save(tmp_path / "state.json")
    for again in (pickle.loads(pickle.dumps(ours)), bncpu.BatchNormTransformer.load(tmp_path / "state.json")):
        assert_same_state(again, theirs)
        np.testing.assert_allclose(again.transform(first), theirs.transform(first), rtol=1e-6)


@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_transformer_loses_no_digits_of_hostile_columns_on_a_device(dtype):
    names, columns = hostile_columns(600, dtype)
    found = bncpu.BatchNormTransformer().fit(device(columns))._state.running.moments
    expected = bncpu.BatchNormTransformer().fit(columns)._state.running.moments
    np.testing.assert_allclose(found.m2, expected.m2, rtol=1e-12, err_msg=str(names))
    # As far from the truth as rounding the distance to the first value takes it.
    bound = 1e-14 * np.sqrt(expected.m2 / 600) + 2.0**-53 * np.abs(expected.mean)
    assert np.all(np.abs(found.mean - expected.mean) <= bound)


@needs_cuda
@pytest.mark.parametrize("first", [1e9, 1e15, np.nan])
@pytest.mark.parametrize("mean", [0.0, 1e9])
@pytest.mark.parametrize(("halflife", "weight"), [(5.0, None), (None, [0.0]), (None, [1e-12]), (None, [1.0])])
def test_a_first_value_that_weighs_little_costs_no_digits(first, mean, halflife, weight):
    x = mean + np.random.default_rng(6).standard_normal((100, 2))
    x[0, 0] = first
    weights = None if weight is None else np.concatenate([weight, np.ones(99)])
    ours, theirs = (bncpu.BatchNormTransformer(halflife=halflife) for _ in range(2))
    ours.partial_fit(device(x), sample_weight=weights)
    theirs.partial_fit(x, sample_weight=weights)
    # The CPU's bound: 65 roundings of values about a shift.
    np.testing.assert_allclose(ours.running_var_, theirs.running_var_, rtol=1e-13)
    spread = np.sqrt(theirs.running_var_)
    assert np.all(np.abs(ours.running_mean_ - theirs.running_mean_) <= 1e-13 * spread + 2.0**-52 * np.abs(mean))


@needs_cuda
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the simulator
@pytest.mark.parametrize("row", [0, 7, 39])
def test_an_infinity_is_refused_whatever_its_weight(row):
    x, weights = np.random.default_rng(7).standard_normal((40, 3)), np.ones(40)
    x[row, 1], weights[row] = np.inf, 0
    for given in (x, device(x)):
        with pytest.raises(ValueError, match=r"^Input X contains infinity.*column\(s\) 1\."):
            bncpu.BatchNormTransformer().fit(given, sample_weight=weights)


@needs_cuda
def test_weights_are_taken_where_scikit_learn_dispatches_arrays(monkeypatch):
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    x, weights = np.random.default_rng(8).standard_normal((40, 3)), np.random.default_rng(9).random(40)
    expected = bncpu.BatchNormTransformer().fit(x, sample_weight=weights)
    with config_context(array_api_dispatch=True):
        found = bncpu.BatchNormTransformer().fit(device(x), sample_weight=weights)
    np.testing.assert_allclose(found.running_var_, expected.running_var_, rtol=1e-13)


@needs_cuda
@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")  # of the simulator
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: {"X": device(np.where(np.arange(5) == 3, np.inf, x))}, r"^Input X contains inf.*column\(s\) 3\."),
        (lambda x: {"X": device(x[:, :4])}, "^X has 4 features, but BatchNormTransformer is expecting 5 features"),
        (lambda x: {"X": device(x[None])}, r"^X must be of shape \(n_samples, n_features\).*got.* \(1, 33, 5\)$"),
        (lambda x: {"X": device(x), "sample_weight": device(x[:, 0])}, "^sample_weight must be in CPU memory, got"),
        (lambda x: {"X": device(x), "sample_weight": np.zeros(33)}, "at least one non-zero"),
        (lambda x: {"X": device(x.astype(int))}, "^x must be one of float16, bfloat16, float32, float64, got int64"),
    ],
)
def test_a_refused_device_array_leaves_the_transformer_as_it_was(make, message):
    x = np.random.default_rng(0).standard_normal((33, 5))
    t = bncpu.BatchNormTransformer().fit(device(x))
    before = pickle.dumps(t)
    with pytest.raises((TypeError, ValueError), match=message):
        t.partial_fit(**make(x))
    assert pickle.dumps(t) == before


@needs_cuda
def test_device_arrays_have_samples_first_and_are_not_wrapped():
    x = device(np.random.default_rng(0).standard_normal((33, 5)))
    with pytest.raises(ValueError, match=r"^channel_axis=0 must name an axis of X but the first"):
        bncpu.BatchNormTransformer(channel_axis=0).fit(x)
    t = bncpu.BatchNormTransformer().fit(x).set_output(transform="pandas")
    with pytest.raises(ValueError, match=r"^the result is a device array; set_output"):
        t.transform(x)


@needs_cuda
def test_a_backward_pass_of_another_forward_pass_is_refused():
    c = Case("rows", np.float64)
    x, dy, gamma = map(device, (c.x, c.dy, c.gamma))
    _, saved = gpu.batch_norm_forward(x, gamma)
    assert (saved.count, saved.kind, saved.call.gamma) == (c.x.size // c.n_channels, "training", True)
    with pytest.raises(ValueError, match=r"^gamma must be given, as in the forward pass that made saved"):
        gpu.batch_norm_backward(dy, x, saved)
    fewer = device(c.x[:-1].copy())
    with pytest.raises(ValueError, match=r"^saved must be of the forward pass over x, of "):
        gpu.batch_norm_backward(fewer, fewer, saved, gamma)
    gpu.batch_norm_backward_frozen(fewer, fewer, saved._replace(kind="frozen"), gamma)
    with pytest.raises(ValueError, match=r"^saved must be of kind 'frozen'"):
        gpu.batch_norm_backward_frozen(x, x, saved, gamma)
    with pytest.raises(TypeError, match=r"^saved must be the SavedStatistics of a forward pass, got tuple$"):
        gpu.batch_norm_backward(dy, x, tuple(saved), gamma)


@needs_cuda
@pytest.mark.parametrize("name", ["planes", "rows", "joined rows, and 7 rows"])
def test_bfloat16_is_computed_in_float64_and_rounded_by_way_of_float32(name, joined_rows):
    c = Case(name, np.float32)
    x, dy = c.x.astype(bfloat16), c.dy.astype(bfloat16)
    wide = x.astype(float)
    y, saved = gpu.batch_norm_forward(device(x), device(c.gamma), activation="relu")
    expected, of_cpu = bncpu.batch_norm_forward(wide, c.gamma, activation="relu")
    assert on_host(y).dtype == bfloat16
    np.testing.assert_array_equal(on_host(y), expected.astype(np.float32).astype(bfloat16))
    found = gpu.batch_norm_backward(device(dy), device(x), saved, device(c.gamma), activation="relu")
    wanted = bncpu.batch_norm_backward(dy.astype(float), wide, of_cpu, c.gamma, activation="relu")
    np.testing.assert_array_equal(on_host(found[0]), wanted[0].astype(np.float32).astype(bfloat16))
    np.testing.assert_allclose(on_host(found[1]), wanted[1], rtol=1e-12)


REFUSED = [
    (dict(x=lambda: np.zeros((3, 2))), TypeError, "^x must be a device array of CuPy, PyTorch or Numba, got ndarray$"),
    (
        dict(x=lambda: device(np.zeros((3, 2), int))),
        TypeError,
        "^x must be one of float16, bfloat16, float32, float64, got",
    ),
    (dict(x=lambda: device(np.zeros(3))), ValueError, r"^x must have at least 2 dimensions .* got shape \(3,\)$"),
    (dict(gamma=lambda: [1.0, 1.0]), TypeError, "^gamma must be a device array of CuPy, PyTorch or Numba, got list$"),
    (dict(gamma=lambda: device(np.ones(3))), ValueError, r"^gamma must have shape \(2,\), one value per channel"),
    (
        dict(gamma=lambda: device(np.ones(2)), beta=lambda: device(np.ones(2, np.float32))),
        TypeError,
        "^parameters must have one dtype, got gamma float64, beta float32$",
    ),
    (
        dict(residual=lambda: device(np.ones((3, 2), np.float32))),
        ValueError,
        "^residual must have shape and dtype of x",
    ),
    (dict(out=lambda: device(np.ones((2, 3)))), ValueError, r"^out must have shape and dtype of x, \(3, 2\) float64"),
    (dict(running_mean=lambda: device(np.ones(2))), ValueError, "^running_mean and running_var must be given together"),
    (dict(x=lambda: device(np.zeros((3, 2), ">f4"))), TypeError, "^x must be one of .*, got >f4$"),
    (dict(x=lambda: device(np.zeros((3, 4)))[:, ::2]), ValueError, "^x must be C-contiguous, or have .* in silence;"),
]


@needs_cuda
@pytest.mark.parametrize(("changes", "error", "message"), REFUSED)
def test_a_refused_call_is_one_line_that_names_the_argument(changes, error, message):
    arguments = {"x": device(np.zeros((3, 2)))} | {name: make() for name, make in changes.items()}
    with pytest.raises(error, match=message):
        gpu.batch_norm_forward(**arguments)


NO_ARRAYS = [
    *[dict(eps=eps) for eps in (-1, "a", np.nan, np.inf, True, None, 10**400, np.float32(1), 0)],
    *[dict(momentum=momentum) for momentum in (None, 2, -0.1, "a", True, np.nan, 0.1, 1, np.float64(0.9))],
    *[dict(ddof=ddof) for ddof in (-1, 7, 6, 5.5, None, "1", np.inf, 1)],
    *[dict(activation=activation) for activation in ("gelu", 1, np.ones(2), "relu")],
    *[dict(channel_axis=axis) for axis in (2, -3, True, 1.0, None, "1", -1, np.int64(1))],
    dict(x=np.zeros((1, 2))),
    dict(running_var=None),
]


def _outcome(function, arrays, numbers, make):
    """The error of a call, its warnings, and else its result."""
    arguments = {name: make(a) for name, a in arrays.items() if a is not None}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            found = function(**arguments, **numbers)[0].shape
        except (TypeError, ValueError) as error:
            found = type(error), str(error)
    return found, [(w.category, str(w.message), w.filename) for w in warned if "Grid size" not in str(w.message)]


@needs_cuda
@pytest.mark.parametrize("changes", NO_ARRAYS, ids=lambda changes: repr(changes)[5:40])
def test_what_is_no_array_is_checked_as_on_the_cpu(changes):
    arrays = {"x": np.ones((6, 2)), "running_mean": np.zeros(2), "running_var": np.ones(2)}
    numbers = {name: value for name, value in changes.items() if name not in arrays}
    arrays |= {name: value for name, value in changes.items() if name in arrays}
    on_cpu = _outcome(bncpu.batch_norm_forward, arrays, numbers, np.copy)
    assert _outcome(gpu.batch_norm_forward, arrays, numbers, device) == on_cpu


@needs_cuda
def test_no_driver_and_an_array_on_another_device_are_one_line(monkeypatch):
    from bncpu.gpu import _call, _compat

    x = device(np.ones((3, 2)))
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(_compat, "current_device", lambda: 7)
        with pytest.raises(ValueError, match=r"^x must be on the current device, 7, got one on device 0$"):
            gpu.batch_norm_forward(x)
    monkeypatch.setattr(_call, "_unavailable", lambda: "no usable CUDA device: no driver")
    with pytest.raises(RuntimeError, match=r"^no usable CUDA device: no driver$"):
        bncpu.BatchNormTransformer().fit(x)


@needs_cuda
def test_an_axis_may_be_an_integer_of_numpy_and_memory_must_be_contiguous():
    x = device(np.ones((3, 2)))
    assert gpu.batch_norm(x, device(np.ones(2)), device(np.ones(2)), channel_axis=np.int64(1)).shape == (3, 2)
    from bncpu.gpu import _arrays

    for a in (np.ones((3, 4)), np.ones((3, 1, 4))[:, ::-1], np.ones((3, 4))[:1]):
        assert _arrays.is_contiguous(a.shape, a.strides, 8)
    for a in (np.ones((4, 3)).T, np.ones((3, 4))[:, ::2], np.broadcast_to(np.ones(4), (3, 4))):
        assert not _arrays.is_contiguous(a.shape, a.strides, 8)


@needs_cuda
@pytest.mark.parametrize(
    "name", ["batch_norm", "batch_norm_forward", "batch_norm_backward", "batch_norm_backward_frozen"]
)
def test_the_functions_have_the_signatures_of_the_cpu(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (gpu, bncpu))
    expected = [p for p in theirs if p not in ("n_threads", "moments", "sums", "where")]
    assert list(ours) == expected
    for p in expected:
        assert (ours[p].kind, ours[p].default) == (theirs[p].kind, theirs[p].default)


@needs_cuda
def test_every_exported_name_is_there():
    for name in gpu.__all__:
        assert getattr(gpu, name).__doc__


@needs_cuda
@pytest.mark.parametrize("n_groups", [6, 2, 1], ids=["instance", "group", "layer"])
def test_norms_of_each_sample_are_batch_norms_of_another_view(n_groups):
    rng = np.random.default_rng(5)
    x, dy = rng.standard_normal((2, 3, 6, 4, 4))
    views = [device(a.reshape(1, 3 * n_groups, -1)) for a in (x, dy)]
    y, saved = gpu.batch_norm_forward(views[0])
    expected, of_cpu = bncpu.group_norm_forward(x, n_groups)
    np.testing.assert_allclose(on_host(y).reshape(x.shape), expected, rtol=1e-13, atol=1e-14)
    dx, *_ = gpu.batch_norm_backward(views[1], views[0], saved)
    wanted, *_ = bncpu.group_norm_backward(dy, x, of_cpu)
    np.testing.assert_allclose(on_host(dx).reshape(x.shape), wanted, rtol=1e-12, atol=1e-13)
