"""Batches of any dtype, layout and sparsity, taken whole or in pieces, against exact fractions and dense arrays."""

import tracemalloc

import numpy as np
import pytest
from arrays import LAYOUTS, OTHER_DTYPES, SPARSE, applied, exact_moments, moments_of, normal, same_bits, sparse_columns
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from bncpu import _batches, _kernels, _reference
from bncpu.moments import Coefficients

COEFFICIENTS = Coefficients(np.array([1.0, -2.0, 0.5]), np.array([2.0, 0.5, -1.0]), np.array([0.0, 3.0, 1.0]))


@pytest.fixture(params=["in one piece", "in many pieces"])
def cut(request, monkeypatch):
    """Runs the test with the limits of pieces as they are, and with pieces of a few values."""
    if request.param == "in many pieces":
        monkeypatch.setattr(_batches, "PIECE", 20)
        monkeypatch.setattr(_batches, "ENTRIES", 20)


def small_numbers(dtype, shape=(40, 3)):
    return np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)


def check_moments(got, X, weights=None):
    """Moments of each column of a 2-D array against exact fractions, NaN left out."""
    for c in range(X.shape[1]):
        kept = ~np.isnan(X[:, c].astype(float))
        if not kept.any():
            assert got.count[c] == 0
            continue
        count, mean, m2 = exact_moments(X[kept, c], None if weights is None else weights[kept])
        spread = float(m2 / count) ** 0.5
        assert got.count[c] == pytest.approx(float(count), rel=1e-14)
        # Some units of the spread, and of the mean: a weighted mean has rounded terms of its size.
        assert got.mean[c] == pytest.approx(float(mean), rel=1e-15, abs=64 * 2.0**-53 * spread)
        # The weight of the zeros in a sparse column is a difference: a rounding of it counts mean**2 times.
        cancelled = 0 if weights is None else 8 * 2.0**-53 * float(count) * float(mean) ** 2
        assert got.m2[c] == pytest.approx(float(m2), rel=1e-12, abs=cancelled)


# ---- dense ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_moments_of_any_dtype_and_layout_equal_exact_fractions(dtype, layout, cut):
    X = small_numbers(dtype)
    got, missing = moments_of(LAYOUTS[layout](X), None, 1)
    check_moments(got, X)
    assert not missing or dtype == "float16"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(40, 3), (6, 3, 5), (4, 3, 2, 5)], ids=str)
def test_one_weight_per_sample_counts_for_all_its_values(shape, layout, cut):
    X, weights = normal(1, shape, mean=3.0), np.random.default_rng(1).uniform(0.1, 2, shape[0])
    got, _ = moments_of(LAYOUTS[layout](X), weights, 1)
    flat = np.moveaxis(X, 1, -1).reshape(-1, 3)
    check_moments(got, flat, np.repeat(weights, len(flat) // len(X)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", OTHER_DTYPES)
@pytest.mark.parametrize("given_out", [False, True])
def test_apply_to_any_dtype_and_layout_equals_the_formula(dtype, layout, given_out, cut):
    X = small_numbers(dtype, (40, 3))
    kept = X.copy()
    out = LAYOUTS["every second row"](np.full(X.shape, np.nan, OTHER_DTYPES[dtype])) if given_out else None
    y, infinite = applied(LAYOUTS[layout](X), COEFFICIENTS, out=out)
    expected = (X.astype(float) - COEFFICIENTS.mean) * COEFFICIENTS.scale + COEFFICIENTS.shift
    assert y.dtype == OTHER_DTYPES[dtype]
    assert (y is out) == given_out
    # Values up to 200, three operations.
    np.testing.assert_allclose(y, expected, rtol=0, atol=600 * np.finfo(y.dtype).eps)
    np.testing.assert_array_equal(X, kept)
    assert not infinite


@pytest.mark.parametrize("shift", [-7, -1, 1, 7])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_out_that_overlaps_a_converted_batch_is_as_if_it_had_been_copied(dtype, shift, monkeypatch):
    monkeypatch.setattr(_batches, "PIECE", 30)
    memory = np.zeros((60, 3), dtype)
    X, out = memory[10:50, ::-1], memory[10 + shift : 50 + shift, ::-1]
    X[...] = small_numbers(dtype)
    expected, _ = applied(X.copy(), COEFFICIENTS)
    y, _ = applied(X, COEFFICIENTS, out=out)
    assert y is out
    np.testing.assert_array_equal(y, expected)


def test_an_infinity_in_any_piece_is_seen(cut):
    for row in (0, 17, 39):
        X = small_numbers(np.float16)
        X[row, 1] = -np.inf
        assert applied(X, COEFFICIENTS)[1]


@pytest.mark.parametrize("dtype", ["float16", "int32", "bool"])
def test_a_conversion_takes_memory_for_a_piece_only(dtype):
    X = np.ones((1 << 22, 4), dtype)
    tracemalloc.start()
    moments_of(X, None, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 8 * _batches.PIECE


# ---- sparse ----


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", SPARSE)
def test_moments_of_sparse_columns_equal_exact_fractions(kind, dtype, weighted, cut):
    X = sparse_columns(60, dtype)
    weights = np.random.default_rng(2).uniform(0.1, 2, 60) if weighted else None
    got, missing = moments_of(SPARSE[kind](X), weights, 1)
    assert missing
    check_moments(got, X, weights)
    assert got.m2[3] == 0
    assert got.mean[3] == X[0, 3]


@given(st.integers(0, 2**32 - 1), st.sampled_from(list(SPARSE)), st.integers(1, 50), st.booleans())
@settings(max_examples=60, deadline=None)
def test_stored_zeros_duplicates_and_order_do_not_matter(seed, kind, n, weighted):
    rng = np.random.default_rng(seed)
    n_major, n_minor = (4, n) if kind == "csc" else (n, 4)
    indptr = np.r_[0, np.cumsum(rng.integers(0, 6, n_major))]
    indices = rng.integers(0, n_minor, indptr[-1])
    X = SPARSE[kind]((rng.integers(-2, 3, indptr[-1]).astype(float), indices, indptr), shape=(n, 4))
    weights = rng.integers(1, 3, n).astype(float) if weighted else None
    before = X.data.copy(), X.indices.copy(), X.indptr.copy()
    got, _ = moments_of(X, weights, 1)
    dense, _ = moments_of(X.toarray(), weights, 1)
    np.testing.assert_array_equal(got.count, dense.count)
    np.testing.assert_allclose(got.mean, dense.mean, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(got.m2, dense.m2, rtol=1e-12, atol=1e-13)
    for a, b in zip(before, (X.data, X.indices, X.indptr), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_place_stored_twice_counts_once(cut):
    X = sparse.csr_array((np.array([1.0, 2.0, 4.0]), np.array([0, 0, 0]), np.array([0, 2, 3])), shape=(2, 1))
    assert not X.has_canonical_format
    got, _ = moments_of(X, None, 1)
    assert (got.count[0], got.mean[0], got.m2[0]) == (2, 3.5, 0.5)
    assert len(X.data) == 3


def test_a_column_whose_zeros_weigh_nothing_has_no_zeros():
    w = np.r_[np.random.default_rng(1).uniform(0.1, 1, 100), 0.0]
    X = np.r_[np.full(100, np.nan), 0.0][:, None]
    got, _ = moments_of(sparse.csr_array(X), w, 1)
    assert got.count[0] == 0
    X[:100] = 1e8
    got, _ = moments_of(sparse.csc_array(X), w, 1)
    assert (got.mean[0], got.m2[0]) == (1e8, 0)
    X[100] = 5  # stored, without weight
    got, _ = moments_of(sparse.csc_array(X), w, 1)
    assert (got.mean[0], got.m2[0]) == (1e8, 0)


def test_a_gap_or_an_infinity_in_any_piece_is_seen(monkeypatch):
    monkeypatch.setattr(_batches, "ENTRIES", 4)
    monkeypatch.setattr(_batches, "PIECE", 12)
    none, one = np.zeros(3), np.ones(3)
    for row in (0, 17, 39):
        X = 1.0 + np.arange(120.0).reshape(40, 3)
        X[row, 1] = np.nan
        assert moments_of(X.astype(">f8"), None, 1)[1]
        for kind in ("csr", "csc"):
            assert moments_of(SPARSE[kind](X), None, 1)[1]
        X[row, 1] = np.inf
        for kind in ("csr", "csc"):
            assert applied(SPARSE[kind](X), Coefficients(none, one, none))[1]


def test_a_result_keeps_the_memory_order_of_a_converted_batch(cut):
    X = np.asfortranarray(small_numbers("int16"))
    assert applied(X, COEFFICIENTS)[0].flags.f_contiguous


def test_a_piece_far_from_its_first_value_is_summed_again():
    column = np.r_[1e9, normal(3, 1000)]
    got, _ = moments_of(sparse.csc_array(column[:, None]), None, 1)
    _, mean, m2 = exact_moments(column)
    assert got.mean[0] == pytest.approx(float(mean), rel=1e-15)
    assert got.m2[0] == pytest.approx(float(m2), rel=1e-14)
    near, _ = moments_of(sparse.csc_array((column + 1e9)[1:, None]), None, 1)
    assert near.m2[0] == pytest.approx(float(exact_moments(column[1:] + 1e9)[2]), rel=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", SPARSE)
def test_apply_to_a_sparse_matrix_has_the_bits_of_the_dense_one(kind, dtype, cut):
    X, scale = sparse_columns(60, dtype), np.random.default_rng(4).uniform(0.1, 3, 8)
    none = np.zeros(8)
    S = SPARSE[kind](X)
    y, infinite = applied(S, Coefficients(none, scale, none))
    expected, _ = applied(X, Coefficients(none, scale, none))
    assert not infinite
    assert type(y) is type(S) and y.dtype == dtype and not np.shares_memory(y.data, S.data)
    np.testing.assert_array_equal(y.toarray(), expected)
    own, _ = applied(S, Coefficients(none, scale, none), out=S)
    assert own is S
    assert same_bits(S.data, y.data)


def test_a_sparse_scale_beyond_float32_is_computed_in_float64():
    X = sparse.csr_array(np.array([[1e-30]], np.float32))
    none = np.zeros(1)
    y, _ = applied(X, Coefficients(none, np.array([1e40]), none))
    assert y.data[0] == np.float32(1e10)
    assert applied(sparse.csr_array(np.array([[np.inf, 1]])), Coefficients(*np.ones((3, 2))))[1]


def test_rows_and_columns_of_stored_values(cut):
    X = sparse_columns(30)
    for kind in ("csr", "csc"):
        S, seen = SPARSE[kind](X), np.zeros(X.shape)
        for part in _batches.entries(S):
            rows, columns = _batches.rows(S, part), _batches.columns(S, part)
            np.testing.assert_array_equal(S.data[part], X[rows, columns])
            seen[rows, columns] += 1
        np.testing.assert_array_equal(seen, X != 0)


def test_sums_of_sparse_values_do_not_depend_on_the_variant(isa):
    X = sparse.csr_array(sparse_columns(500))
    got, _ = moments_of(X, None, 2)
    _kernels.use_isa("c")
    plain, _ = moments_of(X, None, 1)
    for a, b in zip(got, plain, strict=True):
        assert same_bits(a, b)


def test_the_reference_agrees_about_one_weight_per_sample():
    X, w = normal(5, (20, 3)), np.random.default_rng(5).integers(1, 4, 20).astype(float)
    got, _ = moments_of(X, w, 1)
    mean, var = _reference.running_halflife(X, np.inf, w)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(got.m2 / got.count, var, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["csr", "csc"]), st.floats(0.2, 50), st.booleans(), st.integers(0, 2**32 - 1))
def test_with_halflife_sparse_columns_are_those_of_the_dense_ones(kind, halflife, weighted, seed):
    """Where values lie many half-lives back, too: behind missing ones, and behind samples of no weight."""
    rng = np.random.default_rng(seed)
    X = rng.normal(5, 1, (60, 4)) * (rng.random((60, 4)) < 0.4)
    X[rng.random(X.shape) < 0.1] = np.nan
    for c in range(3):
        X[rng.integers(1, 61) :, c] = np.nan
    weights = rng.uniform(0.5, 2, 60) * (np.arange(60) < rng.integers(30, 61)) if weighted else None
    found, expected = (
        _batches.summary(batch, weights, 1, halflife=halflife)
        for batch in (_batches.Sparse(sparse.csr_matrix(X).asformat(kind)), _batches.Dense(X))
    )
    there = expected.moments.count > 0
    np.testing.assert_array_equal(found.age, expected.age)
    np.testing.assert_allclose(found.observed, expected.observed, rtol=1e-12)
    np.testing.assert_allclose(found.moments.count, expected.moments.count, rtol=1e-11)
    np.testing.assert_allclose(found.moments.mean[there], expected.moments.mean[there], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.moments.m2[there], expected.moments.m2[there], rtol=1e-9, atol=1e-10)
