"""Layer, RMS and group norm over few values: many rows at a time, to the bit what the general loops make of each."""

import os
import subprocess
import sys

import numpy as np
import pytest
from arrays import DTYPES, examples, normal, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import bncpu
from bncpu import _kernels, _passes

SIZES = [2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64]


def of_the_general_loops(function, *arguments, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_passes.Part, "is_short", lambda _: False)
        return function(*arguments, **options)


def assert_the_same(function, x, size, *parameters, **options):
    found, saved = function(x.copy(order="K"), size, *parameters, **options)
    expected, expected_saved = of_the_general_loops(function, x.copy(order="K"), size, *parameters, **options)
    assert same_bits(found, expected)
    for name in ("mean", "mean_lo", "invstd"):
        assert same_bits(*(np.asarray(getattr(s, name), float) for s in (saved, expected_saved)))
    alone = getattr(bncpu, function.__name__.removesuffix("_forward"))
    assert same_bits(alone(x.copy(order="K"), size, *parameters, **options), expected)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_and_number_of_rows(size, dtype):
    gamma, beta = normal(1, size), normal(2, size)
    for n in (1, 2, 7, 16, 33, 700):
        x = normal(3, (n, size), mean=3.0, std=5.0).astype(dtype)
        for parameters in ((), (gamma, beta), (gamma,), (None, beta)):
            assert_the_same(bncpu.layer_norm_forward, x, size, *parameters)
        for parameters in ((), (gamma,)):
            assert_the_same(bncpu.rms_norm_forward, x, size, *parameters)


ODD = {
    "NaN": np.nan, "infinity": np.inf, "a huge value": 3e38, "a far value": 1e25, "a tiny value": 1e-45,
}  # fmt: skip


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", ODD)
def test_rows_of_hostile_values_and_those_beside_them(odd, dtype):
    for size in (2, 7, 16, 40):
        x = normal(4, (101, size)).astype(dtype)
        x[::13, size // 2] = ODD[odd]
        x[5] *= dtype(1e-30)
        x[6] = 1e30
        x[7] = 0
        x[8] = x[8] * 1e-3 + 1e6
        x[9] *= dtype(1e-40)
        x[10] = x[10] * 1e31 + 1e33
        for eps in (0.0, 1e-5):
            for parameters in ((), (normal(1, size), normal(2, size))):
                assert_the_same(bncpu.layer_norm_forward, x, size, *parameters, eps=eps)
                assert_the_same(bncpu.rms_norm_forward, x, size, *parameters[:1], eps=eps)
        y = bncpu.layer_norm(x, size)
        alone = [bncpu.layer_norm(row[None], size)[0] for row in x]
        assert same_bits(y, np.array(alone))


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_that_float32_does_not_hold(dtype):
    x = normal(5, (50, 6)).astype(dtype)
    for gamma, beta in ((np.full(6, 1e-60), None), (np.full(6, 1e60), np.ones(6)), (None, np.full(6, 1e300))):
        assert_the_same(bncpu.layer_norm_forward, x, 6, gamma, beta)


LAYOUTS = {
    "packed": lambda x: x,
    "every second row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "columns of a wider array": lambda x: np.concatenate([x, x], axis=1)[:, : x.shape[1]],
    "rows from the last to the first": lambda x: x[::-1].copy()[::-1],
    "one row again and again": lambda x: np.broadcast_to(x[0], x.shape),
    "columns first in memory": np.asfortranarray,
}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_lie_apart(layout, dtype):
    for size in (2, 5, 12):
        x = LAYOUTS[layout](normal(6, (45, size)).astype(dtype))
        expected = bncpu.layer_norm(np.ascontiguousarray(x), size, np.arange(size))
        y = bncpu.layer_norm(x, size, np.arange(size))
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
        if layout != "columns first in memory":
            assert same_bits(y, expected)
        if x.flags.writeable:
            wide = np.full((45, size + 3), 7, dtype)
            assert bncpu.layer_norm(x, size, np.arange(size), out=wide[:, :size]).base is wide
            assert same_bits(wide[:, :size], y)
            assert (wide[:, size:] == 7).all()
            assert same_bits(bncpu.layer_norm(x, size, np.arange(size), out=x), y)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_large_arrays_on_any_number_of_threads(n_threads):
    x = normal(7, (1 << 20, 5)).astype(np.float32)  # stored past the cache
    x[12_345] = np.nan
    assert_the_same(bncpu.layer_norm_forward, x, 5, np.arange(5), np.ones(5), n_threads=n_threads)
    out = np.empty(x.size + 3, np.float32)[3:].reshape(x.shape)
    assert same_bits(bncpu.layer_norm(x, 5, out=out, n_threads=n_threads), bncpu.layer_norm(x, 5))


@pytest.mark.parametrize(
    "options", [{"activation": "relu"}, {"residual": True}, {"activation": "relu", "residual": True}]
)
def test_what_is_added_and_cut_off(options):
    x, z = (normal(seed, (300, 6, 4)).astype(np.float32) for seed in (8, 9))
    options = options | ({"residual": z} if "residual" in options else {})
    for parameters in ((), (normal(1, 4), normal(2, 4))):
        assert_the_same(bncpu.layer_norm_forward, x, 4, *parameters, **options)


@pytest.mark.parametrize("n_groups", [1, 2, 3, 6])
def test_groups_of_few_channels(n_groups):
    x = normal(10, (200, 12)).astype(np.float32)
    for parameters in ((), (np.arange(12.0), np.ones(12))):
        found, saved, *_ = bncpu.group_norm_forward(x, n_groups, *parameters)
        expected, expected_saved, *_ = of_the_general_loops(bncpu.group_norm_forward, x, n_groups, *parameters)
        assert same_bits(found, expected)
        assert same_bits(saved.mean, expected_saved.mean)
        assert same_bits(saved.invstd, expected_saved.invstd)


@settings(max_examples=examples(60, 5000))
@given(st.data())
def test_any_rows(data):
    size, n = data.draw(st.integers(2, 64)), data.draw(st.integers(1, 40))
    dtype = data.draw(st.sampled_from(DTYPES))
    values = st.one_of(st.sampled_from([0.0, -0.0, 1.0, np.nan, np.inf, -np.inf, 1e30]), st.floats(-1e3, 1e3, width=32))
    x = np.array(data.draw(st.lists(values, min_size=size * n, max_size=size * n)), dtype).reshape(n, size)
    shape = data.draw(st.sampled_from([(n, size), (1, n, size), (n, 1, size)]))
    assert_the_same(bncpu.layer_norm_forward, x.reshape(shape), size, eps=data.draw(st.sampled_from([0.0, 1e-5, 1.0])))


def test_nothing_behind_the_arrays_is_written():
    for dtype in DTYPES:
        for size in (2, 3, 9, 64):
            for n in (1, 15, 16, 17, 40):
                memory = np.full(n * size + 200, np.nan, dtype)
                x = memory[100:-100].reshape(n, size)
                x[...] = normal(11, (n, size))
                y = bncpu.layer_norm(x, size, out=x)
                assert np.isfinite(y).all()
                assert np.isnan(memory[:100]).all()
                assert np.isnan(memory[-100:]).all()


READ_AT_THE_END = """
import ctypes, mmap, numpy as np, bncpu
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 5 * page)
start = np.frombuffer(memory, "u1").ctypes.data
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mprotect(ctypes.c_void_p(start + 4 * page), ctypes.c_size_t(page), 0) == 0
for dtype in ("f4", "f8"):
    whole = np.frombuffer(memory, dtype, count=4 * page // np.dtype(dtype).itemsize)
    for size in range(2, 40):
        for n in (1, 7, 8, 15, 16, 17, 24, 32, 40):
            bncpu.layer_norm(whole[len(whole) - n * size :].reshape(n, size), size)
print("read")
"""


@pytest.mark.skipif(os.name != "posix", reason="takes away the right to read, as POSIX has it")
def test_nothing_behind_the_arrays_is_read():
    assert subprocess.check_output([sys.executable, "-c", READ_AT_THE_END], text=True) == "read\n"


def test_the_short_way_is_taken(monkeypatch):
    called = []
    normalize = _kernels.normalize
    monkeypatch.setattr(_kernels, "normalize", lambda *given: (called.append(given[0].shape), normalize(*given))[1])
    for size in (1, 2, 64, 65):
        bncpu.layer_norm(np.ones((100, size), np.float32), size, np.ones(size))
    assert [shape[3] for shape in called] == [2, 64]
