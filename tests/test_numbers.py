"""Integers, booleans, float16 and bfloat16, read as they are: against NumPy, ml_dtypes and exact fractions."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from arrays import LAYOUTS, applied, exact_moments, moments_of, normal, same_bits
from sklearn.base import clone

import bncpu
from bncpu import BatchNormTransformer, _kernels, _layout, _normalize
from bncpu.moments import Coefficients

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
EXACT = ("bool", "uint8", "int8", "uint16", "int16")
NARROW = (*EXACT, "float16", BFLOAT16)
EVERY = (*NARROW, "uint32", "int32", "uint64", "int64")
HALVES = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)

# Rows and planes: with pieces that end within a row, within a plane, and within a block; with more columns than are
# converted at a time; of one channel; strided.
SHAPES = [(1100, 1500), (3000, 3), (700, 33), (9, 5000), (5000, 1), (3, 2, 9001), (50, 600, 2), (2, 3, 5, 7)]


def numbers(dtype, shape, seed=0):
    """Whole numbers that every type holds."""
    low, high = (0, 2) if dtype == "bool" else (0, 100)
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def widened(X):
    """The same numbers as what they are computed in."""
    return X.astype(_computed(X.dtype))


def _computed(dtype):
    return np.float32 if dtype.itemsize <= 2 else np.float64


def copied(x, dtype):
    """`x` read and written by the kernels as `dtype`: the result of the coefficients 0, 1, 0."""
    y = np.empty(x.shape, dtype)
    zero, one = np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32)
    with np.errstate(all="ignore"):
        _kernels.apply(x[None, :, :, None], y[None, :, :, None], None, zero, one, zero, False, False, 1)
    return y


# ---- conversions ----


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_every_half_is_read_and_written_as_it_is(dtype, isa):
    x = HALVES.view(dtype)
    np.testing.assert_array_equal(copied(x, np.float32), x.astype(np.float32))
    back = copied(x.astype(np.float32), dtype)
    nan = np.isnan(x.astype(np.float32))
    assert np.isnan(back.astype(np.float32)[nan]).all()
    minus_0 = x.view(np.uint16) == 0x8000  # -0 - 0 + 0 is 0
    kept = ~nan & ~minus_0
    np.testing.assert_array_equal(back.view(np.uint16)[kept], HALVES[kept])


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_floats_are_rounded_to_the_nearest_half_and_ties_to_even(dtype, isa):
    values = HALVES.view(dtype).astype(np.float32)
    finite = np.sort(values[np.isfinite(values)]).astype(np.float64)
    ties = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    anything = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype=np.uint32).view(np.float32)
    beside = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    x = np.concatenate([ties, *beside, anything])
    x = x[: len(x) // 64 * 64].reshape(-1, 64)
    with np.errstate(all="ignore"):
        expected = (x + np.float32(0)).astype(dtype)
    np.testing.assert_array_equal(copied(x, dtype).astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_the_ends_of_every_type_are_read_as_numpy_reads_them(dtype, isa):
    dtype = np.dtype(dtype)
    if dtype.kind in "iu":
        ends = [np.iinfo(dtype).min, np.iinfo(dtype).max, np.iinfo(dtype).max // 2 + 1]
    else:
        ends = [0, 1, 1] if dtype.kind == "b" else [6e-8, 60000, -60000]
    x = np.tile(np.array(ends, dtype), (40, 1))
    y, _ = applied(x, Coefficients(*np.array([[0.0] * 3, [1.0] * 3, [0.0] * 3])), dtype=np.dtype(np.float64))
    np.testing.assert_array_equal(y, x.astype(np.float64))


# ---- moments ----


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_moments_have_the_bits_of_the_same_numbers_as_floats(dtype, shape, isa):
    X = numbers(dtype, shape)
    got, expected = (moments_of(a, None, 1)[0] for a in (X, widened(X)))
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_weights_and_any_layout_have_the_bits_of_the_same_numbers_as_floats(dtype, layout, isa):
    X, weights = numbers(dtype, (300, 8)), normal(1, 300) ** 2
    for w in (None, weights):
        got, expected = (moments_of(LAYOUTS[layout](a), w, 1)[0] for a in (X, widened(X)))
        assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", ["float16", BFLOAT16], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_missing_values_are_left_out(dtype, weighted, isa):
    X = normal(2, (3000, 5)).astype(dtype)
    X[::7, 1] = X[:2999, 2] = X[:, 3] = np.nan
    w = normal(3, 3000) ** 2 if weighted else None
    (got, missing), (expected, _) = (moments_of(a, w, 1) for a in (X, widened(X)))
    assert missing and got.count[3] == 0
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("layout", ["C order", "F order"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_sums_of_integers_have_no_rounding_within_a_block(dtype, layout, isa):
    info = np.iinfo(dtype)
    rng = np.random.default_rng(4)
    n = 4001
    X = np.stack(
        [
            rng.integers(info.min, info.max, n, endpoint=True),
            info.max - rng.integers(0, 3, n),  # far from 0, close together
            np.r_[info.min, np.full(n - 1, info.max)],  # the first one is far from all others
            np.r_[info.min, info.max - rng.integers(0, 3, n - 1)],
        ],
        axis=1,
    ).astype(dtype)
    x4, _ = _layout.in_form(LAYOUTS[layout](X), (1,))
    assert np.prod(_kernels.block_shape(*x4.shape[1:])) >= n
    got, _ = _normalize.moments(x4, None, skip_missing=True, n_threads=1)
    for c in range(X.shape[1]):
        _, mean, m2 = exact_moments(X[:, c])
        # Nothing is rounded but the last operations: a quotient, a product, a difference.
        assert got.mean[c] + got.mean_lo[c] == pytest.approx(float(mean), rel=2**-52)
        assert got.m2[c] == pytest.approx(float(m2), rel=4 * 2.0**-52)


def test_millions_of_large_integers_are_as_exact():
    X = (65535 - np.arange(1 << 21, dtype=np.uint32) % 3).astype(np.uint16)[:, None]
    got, _ = moments_of(X, None, 2)
    counts = np.bincount(65535 - X[:, 0])
    mean = 65535 - (counts[1] + 2 * counts[2]) / len(X)
    assert got.mean[0] == pytest.approx(mean, rel=2**-52)
    m2 = counts[1] + 4 * counts[2] - (counts[1] + 2 * counts[2]) ** 2 / len(X)
    assert got.m2[0] == pytest.approx(m2, rel=1e-14)


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_any_number_of_threads_gives_the_same_bits(dtype):
    X = numbers(dtype, (40, 50, 60, 3))
    one, two = (BatchNormTransformer(channel_axis=-1, n_threads=n).fit(X) for n in (1, 2))
    assert same_bits(one.running_var_, two.running_var_) and same_bits(one.transform(X), two.transform(X))


# ---- apply ----


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("wanted", [None, np.float32, np.float64])
@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_results_have_the_bits_of_the_same_numbers_as_floats(dtype, wanted, shape, isa):
    X = numbers(dtype, shape)
    c = Coefficients(*np.random.default_rng(5).uniform(0.5, 2, (3, shape[1])))
    y, infinite = applied(X, c, dtype=None if wanted is None else np.dtype(wanted))
    result = np.dtype(wanted) if wanted else X.dtype if X.dtype in (np.float16, BFLOAT16) else np.dtype(np.float64)
    computed = np.float64 if result == np.float64 else _computed(X.dtype)
    expected, _ = applied(X.astype(computed), c)
    assert y.dtype == result and not infinite
    assert same_bits(y, expected.astype(result))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wanted", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "float32", "float64", ">i2", ">f8"])
def test_dtype_decides_the_result_of_any_layout(dtype, wanted, layout):
    X = numbers(dtype, (300, 5))
    bn = BatchNormTransformer(gamma=np.arange(1.0, 6), dtype=wanted).fit(X)
    expected = clone(bn).set_params(dtype=None).fit(X).transform(X.astype(np.float64))
    made = LAYOUTS[layout](X)
    y = bn.transform(made)
    assert y.dtype == wanted
    np.testing.assert_allclose(y, expected, rtol=0, atol=40 * np.finfo(wanted).eps)
    out = np.full_like(y, np.nan)
    assert bn.transform(made, out=out) is out and same_bits(out, y)


def test_a_float64_is_rounded_to_float32_once_after_all_arithmetic():
    X = normal(6, (1000, 3), mean=1e9)
    bn = BatchNormTransformer(dtype="float32").fit(X)
    exact = BatchNormTransformer().fit(X).transform(X)
    assert same_bits(bn.transform(X), exact.astype(np.float32))


def test_large_results_are_stored_past_the_cache_with_the_same_bits(isa):
    for read, dtype in (("uint8", np.float32), ("uint8", np.float64), ("int32", np.float32)):
        X = numbers(read, (1 << 16, 67))
        bn = BatchNormTransformer(dtype=dtype, n_threads=2).fit(X)
        y = bn.transform(X)
        assert y.nbytes >= _kernels.PAST_CACHE_BYTES
        parts = [bn.transform(X[i : i + 999]) for i in range(0, len(X), 999)]
        assert same_bits(y, np.concatenate(parts))


@pytest.mark.parametrize("dtype", ["float16", BFLOAT16], ids=str)
def test_halves_in_place_and_with_infinities(dtype):
    X = normal(7, (500, 6)).astype(dtype)
    bn = BatchNormTransformer().fit(X)
    expected = bn.transform(X)
    assert expected.dtype == X.dtype
    assert bn.transform(X, copy=False) is X
    assert X.tobytes() == expected.tobytes()
    X[77, 3] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        bn.transform(X)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_memory_that_x_and_out_share_is_as_if_x_had_been_copied(offset):
    memory = np.zeros(9000 + offset, np.uint8)
    X = memory[offset : 1000 + offset].reshape(500, 2)
    X[...] = numbers("uint8", (500, 2))
    bn = BatchNormTransformer().fit(X)
    expected = bn.transform(X.copy())
    out = memory[8 - (X.ctypes.data - offset) % 8 :][: 8 * 1000].view(np.float64).reshape(500, 2)
    assert same_bits(bn.transform(X, out=out), expected)


# ---- the parameter ----


@pytest.mark.parametrize("value", ["float16", np.int64, ">f4", "f", object(), "complex64", 4.0])
def test_another_dtype_is_refused(value):
    X = normal(8, (20, 3))
    if value == "f":  # another name of float32
        assert BatchNormTransformer(dtype=value).fit(X).transform(X).dtype == np.float32
        return
    with pytest.raises(ValueError, match=r"^dtype must be numpy.float32, numpy.float64 or None, got "):
        BatchNormTransformer(dtype=value).fit(X)
    bn = BatchNormTransformer().fit(X)
    before = pickle.dumps(bn)
    bn.dtype = value
    for call in (bn.transform, bn.partial_fit):
        with pytest.raises(ValueError, match=r"^dtype must be"):
            call(X)
    bn.dtype = None
    assert pickle.dumps(bn) == before


@pytest.mark.parametrize("wanted", [None, np.float32, np.float64, "float32", np.dtype("float64")])
def test_a_saved_transformer_keeps_its_dtype(wanted, tmp_path):
    X = normal(9, (20, 3))
    bn = BatchNormTransformer(dtype=wanted).fit(X)
    bn.save(tmp_path / "state.json")
    again = BatchNormTransformer.load(tmp_path / "state.json")
    assert (again.dtype is None) == (wanted is None)
    assert same_bits(again.transform(X), bn.transform(X))
    assert same_bits(pickle.loads(pickle.dumps(bn)).transform(X), bn.transform(X))
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "state.json").read_bytes()


def test_tables_sparse_matrices_and_other_kinds_get_the_dtype():
    import dask.array
    import pandas as pd
    from scipy import sparse

    X = normal(10, (60, 3))
    bn = BatchNormTransformer(dtype=np.float32, with_mean=False).fit(X)
    expected = bn.transform(X)
    assert expected.dtype == np.float32
    frame = pd.DataFrame(X, columns=list("abc"))
    named = clone(bn).fit(frame).set_output(transform="pandas")
    made = named.transform(frame)
    assert (made.dtypes == np.float32).all() and same_bits(made.to_numpy(), expected)
    for kind in (sparse.csr_array, sparse.csc_matrix):
        made = bn.transform(kind(X))
        assert made.dtype == np.float32
        np.testing.assert_allclose(made.toarray(), expected, rtol=1e-6)
    lazy = bn.transform(dask.array.from_array(X, chunks=(20, 2)))
    assert lazy.dtype == np.float32 and same_bits(lazy.compute(scheduler="synchronous"), expected)
    assert same_bits(bn.transform(X.tolist()), expected)


def test_statistics_do_not_depend_on_dtype_and_the_inverse_keeps_its_own():
    X = normal(11, (60, 3), mean=5)
    bn, plain = BatchNormTransformer(dtype=np.float32).fit(X), BatchNormTransformer().fit(X)
    assert same_bits(bn.running_var_, plain.running_var_)
    y = plain.transform(X)
    assert bn.inverse_transform(y).dtype == np.float64
    assert same_bits(bn.inverse_transform(y), plain.inverse_transform(y))


@pytest.mark.parametrize("name", ["float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "int4", "uint4"])
def test_small_types_of_other_libraries_are_learned_by_value(name):
    # The kind of float8_e5m2 is that of NumPy's own floats.
    X = np.arange(12).reshape(6, 2).astype(getattr(ml_dtypes, name))
    bn, expected = BatchNormTransformer().fit(X), BatchNormTransformer().fit(X.astype(np.float64))
    assert same_bits(bn.mean_, expected.mean_)
    assert same_bits(bn.var_, expected.var_)
    assert same_bits(bn.transform(X), expected.transform(X.astype(np.float64)))
    for function in (bncpu.batch_norm_moments, bncpu.batch_norm_forward):
        with pytest.raises(TypeError, match=f"x must be float16, float32 or float64, got {name}"):
            function(X)
