"""BatchNormTransformer: the scikit-learn contract, three kinds of running statistics, and nothing lost on refusal."""

import copy
import pickle
import tracemalloc
import warnings

import array_api_strict as xp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from arrays import (
    DTYPES,
    GOOD,
    LAYOUTS,
    MODES,
    OTHER_DTYPES,
    SPARSE,
    WITHOUT_ROWS,
    exact_moments,
    examples,
    hostile_columns,
    named,
    normal,
    polars,
    same_bits,
    slow,
    sparse_columns,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn import config_context, datasets
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import _safe_indexing, gen_batches

from bncpu import BatchNormTransformer, _reference

NAMED = named()

# ---- fit, against StandardScaler and exact fractions ----


def bundled(name):
    if name in ("china", "flower"):
        return datasets.load_sample_image(f"{name}.jpg").reshape(-1, 3)
    return getattr(datasets, f"load_{name}")(return_X_y=True)[0]


@pytest.mark.parametrize("name", ["iris", "digits", "wine", "breast_cancer", "diabetes", "linnerud", "china", "flower"])
def test_fit_equals_standard_scaler_on_bundled_data(name):
    X = bundled(name)
    ours, theirs = BatchNormTransformer().fit(X), StandardScaler().fit(X)
    assert np.all(np.abs(ours.mean_ - theirs.mean_) <= 1e-12 * np.abs(X).max(0))
    np.testing.assert_allclose(ours.var_, theirs.var_, rtol=1e-12)
    np.testing.assert_allclose(ours.scale_, theirs.scale_, rtol=1e-12)
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), rtol=0, atol=1e-11)
    assert ours.n_samples_seen_ == theirs.n_samples_seen_ == len(X)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fit_of_hostile_columns_equals_exact_fractions(layout, dtype):
    names, X = hostile_columns(400, dtype)
    bn = BatchNormTransformer().fit(LAYOUTS[layout](X))
    for c, name in enumerate(names):
        _, mean, m2 = exact_moments(X[:, c])
        # 16 units of the spread: where the mean nearly cancels, its own size says nothing.
        spread = float(m2 / 400) ** 0.5
        assert bn.running_mean_[c] == pytest.approx(float(mean), rel=1e-15, abs=16 * 2.0**-53 * spread), name
        assert bn.running_var_[c] == pytest.approx(float(m2 / 400), rel=1e-13), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_column_has_variance_zero_and_becomes_beta(dtype):
    X = np.full((1000, 2), 1e8, dtype)
    bn = BatchNormTransformer(gamma=[3, 3], beta=[0.0, 0.7]).fit(X)
    assert np.all(bn.var_ == 0)
    assert np.all(bn.scale_ == 1)
    assert np.all(bn.transform(X) == np.array([0.0, 0.7], dtype))
    assert np.all(bn.inverse_transform(bn.transform(X)) == X)


def test_near_constants_follow_scikit_learns_error_bound():
    # The second column varies by less than summing 1e6 float64 values around 1e3 may be wrong by.
    X = np.full((1_000_000, 3), 1e3)
    X[:, 1] += np.arange(1_000_000) % 2 * 1e-9
    X[:, 2] += np.arange(1_000_000) % 2 * 1e-3
    ours, theirs = BatchNormTransformer().fit(X), StandardScaler().fit(X)
    assert ours.var_[1] > 0
    np.testing.assert_allclose(ours.scale_, theirs.scale_, rtol=1e-9)
    assert list(ours.scale_[:2]) == [1, 1] and ours.scale_[2] < 1
    averaged = BatchNormTransformer(momentum=0.9)
    for batch in np.split(X, 2):
        averaged.partial_fit(batch)
    np.testing.assert_allclose(averaged.scale_, theirs.scale_, rtol=1e-9)


def test_with_momentum_near_constants_are_judged_by_the_values_of_one_batch():
    # A spread that means nothing in 100,000 values, and something in 100.
    batch = np.full((100, 1), 1e3)
    batch[::2] += 1e-9
    bn = BatchNormTransformer(momentum=0.9)
    for _ in range(1000):
        bn.partial_fit(batch)
    assert bn.scale_[0] < 1
    np.testing.assert_allclose(bn.scale_, StandardScaler().fit(batch).scale_, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [50, 1000])
def test_what_is_constant_is_so_for_standard_scaler(n, dtype):
    rng = np.random.default_rng(n)
    offsets = [0.0, 0.1, -1e20, 1e-40, 1e-3, 1e6 / 3, 1.7e9]
    spreads = [0.0, 1e-16, 1e-12, 1e-9, 1e-3, 1.0, 1e3]
    X = np.column_stack([m + s * (abs(m) or 1) * rng.standard_normal(n) for m in offsets for s in spreads])
    X = X.astype(dtype)
    ours, theirs = BatchNormTransformer().fit(X), StandardScaler().fit(X)
    # Squares of 1e-170 and less are 0 in float64, for both.
    np.testing.assert_array_equal(ours.scale_ == 1, theirs.scale_ == 1)
    np.testing.assert_allclose(ours.scale_, theirs.scale_, rtol=1e-6)


@pytest.mark.parametrize("exponent", [-600, -52, -1, 0, 1, 52, 600])
def test_how_heavy_weights_are_does_not_decide_what_is_constant(exponent):
    X = np.array([[0.0, 1e9, 0.1, 1e3], [20.0, 1e9 + 1e-3, 0.1, 1e3 + 2e-13]])
    expected = BatchNormTransformer().fit(X)
    weights = np.full(2, 2.0**exponent)
    weighted = BatchNormTransformer().fit(X, sample_weight=weights)
    np.testing.assert_array_equal(weighted.scale_, expected.scale_)
    np.testing.assert_array_equal(weighted.transform(X), expected.transform(X))
    assert (expected.scale_ == 1).tolist() == [False, False, True, True]


def test_how_many_values_there_are_does_not_decide_what_is_constant():
    # Timestamps of half a century, in seconds; a spread of 20,000 units of rounding; one of half a unit.
    mean, std = [0.0, 1.7e9, 1e3, 1e3], [2.0, 3682.0, 5e-9, 1e-13]
    for n in (10, 17_000_000_000, 2**62, 1.7e10, 1e16, 1e300):
        bn = BatchNormTransformer.from_statistics(mean, np.square(std), n)
        np.testing.assert_allclose(bn.scale_, [2, 3682, 5e-9, 1], rtol=1e-12)
        np.testing.assert_allclose(bn.transform([[2.0, 1.7e9 + 3682, 1e3, 1e3]]), [[1, 1, 0, 0]], rtol=1e-12)
    heavy = BatchNormTransformer().fit([[0.0], [20.0]], sample_weight=[2e15, 2e15])
    assert heavy.transform([[20.0]]) == 1


def test_values_that_differ_by_rounding_alone_are_constant():
    for value in (0.1, 1e20, -1e-200, 1e9 / 3):
        X = np.full((1000, 1), value)
        X[::3] = np.nextafter(X[::3], np.inf)
        bn = BatchNormTransformer().fit(X)
        assert bn.scale_ == 1
        assert BatchNormTransformer(halflife=10).partial_fit(X).partial_fit(X).scale_ == 1


KINDS = [{}, {"window": 100}, {"halflife": 100.0}, {"momentum": 0.9}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_sum_to_ddof_are_refused_whatever_their_rounding(kind, dtype):
    X = np.random.default_rng(0).standard_normal((9, 2))
    for n in range(2, 10):
        for learn in ("fit", "partial_fit"):
            bn = BatchNormTransformer(ddof=1, **kind)
            with pytest.raises(ValueError, match="sample_weight"):
                getattr(bn, learn)(X[:n], sample_weight=np.full(n, 1 / n, dtype))
            assert not hasattr(bn, "n_features_in_")
    images = np.random.default_rng(0).standard_normal((9, 3, 4, 5))
    with pytest.raises(ValueError, match="sample_weight"):
        BatchNormTransformer(ddof=1, channel_axis=1, **kind).fit(images, sample_weight=np.full(9, 1 / 180))
    light = BatchNormTransformer(ddof=1, **kind).fit(X).partial_fit(X, sample_weight=np.full(9, 0.5))
    assert np.all(light.scale_ > 0.1)


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_rows_of_weight_1_are_rows_even_if_too_few_for_ddof(kind):
    X = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 5.0]])
    ours, rows = BatchNormTransformer(ddof=1, **kind), BatchNormTransformer(ddof=1, **kind)
    for row in X:
        ours.partial_fit(row[None], sample_weight=[1.0])
        rows.partial_fit(row[None])
        np.testing.assert_array_equal(ours.running_var_, rows.running_var_)
    assert np.isnan(ours.running_var_).tolist() == [False, True]
    with pytest.raises(ValueError, match="sample_weight"):
        BatchNormTransformer(ddof=1, **kind).partial_fit(X[:1], sample_weight=[0.5])
    # Enough for one feature: the other has no variance, as without weights, or no spread.
    for weight, expected in ((1.0, np.nan), (1 + 1e-9, 0.0)):
        some = BatchNormTransformer(ddof=1).fit(np.vstack([X[:2], X]), sample_weight=[0.75] * 4 + [weight])
        np.testing.assert_array_equal(some.running_var_[1], expected)
        assert some.running_var_[0] > 0


def test_from_statistics_needs_a_weight_above_ddof_rounding_aside():
    with pytest.raises(ValueError, match="n_samples must be above ddof=1"):
        BatchNormTransformer.from_statistics([0.0], [1.0], 1 + 1e-15, ddof=1)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_default_does_not_depend_on_units(scale):
    X = bundled("breast_cancer")
    np.testing.assert_allclose(
        BatchNormTransformer().fit_transform(X * scale), BatchNormTransformer().fit_transform(X), rtol=0, atol=1e-10
    )


# ---- streams ----

cuts = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def split(X, sizes):
    return np.split(X[: sum(sizes)], np.cumsum(sizes)[:-1])


@settings(max_examples=examples(60, 5000), deadline=None)
@given(cuts, st.sampled_from([0.0, -1e4, 1e6]), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_partial_fit_in_uneven_batches_equals_fit(sizes, mean, weighted, missing, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((sum(sizes), 3)) + mean
    if missing:
        X[rng.random(X.shape) < 0.3] = np.nan
    w = rng.uniform(0.1, 2, len(X)) if weighted else None
    whole = BatchNormTransformer().fit(X, sample_weight=w)
    streamed, start = BatchNormTransformer(), 0
    for batch in split(X, sizes):
        part = None if w is None else w[start : start + len(batch)]
        streamed.partial_fit(batch, sample_weight=part)
        start += len(batch)
    seen = ~np.isnan(whole.running_mean_)
    np.testing.assert_array_equal(np.isnan(streamed.running_mean_), ~seen)
    np.testing.assert_allclose(streamed.n_samples_seen_, whole.n_samples_seen_, rtol=1e-12)
    np.testing.assert_allclose(streamed.running_mean_[seen], whole.running_mean_[seen], rtol=1e-15, atol=1e-12)
    np.testing.assert_allclose(streamed.running_var_[seen], whole.running_var_[seen], rtol=1e-12, atol=0)
    assert streamed.n_batches_seen_ == len(sizes)
    assert whole.n_batches_seen_ == 1


@settings(max_examples=examples(60, 5000), deadline=None)
@given(cuts, st.floats(0.5, 1e4), st.booleans(), st.booleans(), st.sampled_from([0, 1]), st.integers(0, 2**32 - 1))
def test_with_halflife_any_split_equals_one_call(sizes, halflife, weighted, missing, ddof, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((sum(sizes), 3)) + 10
    if missing:
        X[rng.random(X.shape) < 0.2] = np.nan
        X[rng.integers(1, len(X) + 1) :, 0] = np.nan
    w = rng.uniform(10, 200, len(X)) if weighted else None
    if w is not None:  # a batch without any weight is refused
        w[(rng.random(len(X)) < 0.2) & ~np.isin(np.arange(len(X)), np.cumsum([0, *sizes]))] = 0
    once = BatchNormTransformer(halflife=halflife, ddof=ddof).partial_fit(X, sample_weight=w)
    streamed, start = BatchNormTransformer(halflife=halflife, ddof=ddof), 0
    for batch in split(X, sizes):
        streamed.partial_fit(batch, sample_weight=None if w is None else w[start : start + len(batch)])
        start += len(batch)
    seen = ~np.isnan(once.running_mean_)
    np.testing.assert_allclose(streamed.running_mean_[seen], once.running_mean_[seen], rtol=1e-12)
    np.testing.assert_allclose(streamed.running_var_[seen], once.running_var_[seen], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(streamed.n_samples_seen_, once.n_samples_seen_, rtol=1e-12)
    if ddof:
        return
    mean, var = _reference.running_halflife(X, halflife, w)
    np.testing.assert_allclose(once.running_mean_[seen], mean[seen], rtol=1e-12)
    np.testing.assert_allclose(once.running_var_[seen], var[seen], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("dtype", DTYPES)
def test_momentum_over_50_batches_equals_the_formula(dtype, momentum, ddof):
    batches = [normal(k, (16, 4), mean=1e3 + k, std=1 + k / 10, dtype=dtype) for k in range(50)]
    bn = BatchNormTransformer(momentum=momentum, ddof=ddof)
    for k, batch in enumerate(batches):
        bn.partial_fit(batch)
        mean, var = _reference.running_momentum(batches[: k + 1], momentum, ddof)
        np.testing.assert_allclose(bn.running_mean_, mean, rtol=1e-13)
        np.testing.assert_allclose(bn.running_var_, var, rtol=1e-11)
    assert bn.n_samples_seen_ == 800
    assert bn.n_batches_seen_ == 50


@pytest.mark.parametrize("mode", WITHOUT_ROWS)
def test_fit_is_exact_in_every_mode_and_partial_fit_goes_on_from_it(mode):
    X = normal(20, (300, 3), mean=5.0)
    bn = BatchNormTransformer(**WITHOUT_ROWS[mode]).fit(X)
    np.testing.assert_allclose(bn.running_mean_, X.mean(0), rtol=1e-14)
    np.testing.assert_allclose(bn.running_var_, X.var(0), rtol=1e-14)
    before = bn.running_mean_.copy()
    bn.partial_fit(X + 100)
    assert np.all(bn.running_mean_ > before + 1)
    bn.fit(X)
    np.testing.assert_array_equal(bn.running_mean_, before)


def test_halflife_follows_a_drift_that_cumulative_statistics_do_not():
    old, new = normal(21, (5000, 1)), normal(22, (1000, 1), mean=10.0)
    recent = BatchNormTransformer(halflife=100).partial_fit(old).partial_fit(new)
    everything = BatchNormTransformer().partial_fit(old).partial_fit(new)
    assert abs(recent.running_mean_[0] - 10) < 0.5
    assert abs(everything.running_mean_[0] - 10 / 6) < 0.1


def test_a_feature_missing_for_thousands_of_halflives_keeps_its_statistics():
    X = np.full((5000, 2), np.nan)
    X[:, 0] = normal(41, 5000)
    X[:9, 1] = normal(42, 9, mean=7.0)
    once = BatchNormTransformer(halflife=1).partial_fit(X)
    cut = BatchNormTransformer(halflife=1).partial_fit(X[:9])
    then = cut.running_mean_[1], cut.running_var_[1]
    for batch in np.split(X[9:], [100, 3000]):
        cut.partial_fit(batch)
    assert (cut.running_mean_[1], cut.running_var_[1]) == pytest.approx(then, rel=1e-14)
    assert (once.running_mean_[1], once.running_var_[1]) == pytest.approx(then, rel=1e-12)
    np.testing.assert_allclose(once.running_mean_[0], cut.running_mean_[0], rtol=1e-12)
    cut.partial_fit(np.ones((1, 2)))
    np.testing.assert_allclose(cut.running_mean_[1], 1, rtol=1e-12)


def test_all_nan_features_keep_their_statistics_and_unseen_ones_stay_nan():
    X = normal(23, (10, 3))
    X[:, 2] = np.nan
    for mode in MODES.values():
        bn = BatchNormTransformer(**mode).partial_fit(X)
        mean = bn.running_mean_[1]
        later = np.column_stack([X[:, 0], np.full(10, np.nan), X[:, 2]])
        bn.partial_fit(later)
        assert bn.running_mean_[1] == pytest.approx(mean, rel=1e-15)
        assert np.isnan(bn.running_mean_[2]) and np.isnan(bn.running_var_[2])
        assert list(bn.n_samples_seen_) == [20, 10, 0]
        y = bn.transform(np.zeros((2, 3)))
        assert np.all(np.isnan(y[:, 2])) and np.all(np.isfinite(y[:, :2]))


def test_a_spike_many_halflives_ago_is_forgotten_however_the_stream_was_cut():
    X = normal(43, (2000, 1))
    X[0] = 1e20
    once, cut = BatchNormTransformer(halflife=10).partial_fit(X), BatchNormTransformer(halflife=10)
    for batch in np.split(X, 20):
        cut.partial_fit(batch)
    np.testing.assert_allclose(once.running_var_, cut.running_var_, rtol=1e-12)
    assert once.running_var_[0] < 10


@pytest.mark.parametrize("mode", ["cumulative", "halflife"])
def test_the_scale_of_weights_does_not_matter(mode):
    X, w = normal(44, (100, 2), mean=3.0), np.random.default_rng(3).uniform(1, 2, 100)
    plain, tiny = (
        BatchNormTransformer(**MODES[mode]).partial_fit(X, sample_weight=v).partial_fit(X + 1, sample_weight=v)
        for v in (w, w * 1e-40)
    )
    np.testing.assert_allclose(tiny.running_mean_, plain.running_mean_, rtol=1e-12)
    np.testing.assert_allclose(tiny.running_var_, plain.running_var_, rtol=1e-12)


def test_missing_values_equal_standard_scaler():
    X = normal(24, (500, 4), mean=3.0)
    X[np.random.default_rng(0).random(X.shape) < 0.2] = np.nan
    ours, theirs = BatchNormTransformer().fit(X), StandardScaler().fit(X)
    np.testing.assert_allclose(ours.mean_, theirs.mean_, rtol=1e-13)
    np.testing.assert_allclose(ours.var_, theirs.var_, rtol=1e-12)
    np.testing.assert_array_equal(ours.n_samples_seen_, theirs.n_samples_seen_)
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), rtol=1e-11, atol=1e-12)


# ---- weights ----


@pytest.mark.parametrize("order", ["C", "F"])
def test_integer_weights_equal_repeated_rows(order):
    X, w = normal(25, (60, 3), mean=7.0), np.random.default_rng(1).integers(0, 4, 60)
    weighted = BatchNormTransformer().fit(np.asarray(X, order=order), sample_weight=w)
    repeated = BatchNormTransformer().fit(np.repeat(X, w, axis=0))
    np.testing.assert_allclose(weighted.mean_, repeated.mean_, rtol=1e-14)
    np.testing.assert_allclose(weighted.var_, repeated.var_, rtol=1e-13)
    assert weighted.n_samples_seen_ == float(w.sum())
    assert isinstance(weighted.n_samples_seen_, float)
    assert isinstance(repeated.n_samples_seen_, int)


def test_with_momentum_weights_act_within_the_batch_only():
    X, w = normal(26, (30, 2)), np.random.default_rng(2).uniform(0, 2, 30)
    bn = BatchNormTransformer(momentum=0.9).partial_fit(X).partial_fit(X, sample_weight=w)
    scaled = BatchNormTransformer(momentum=0.9).partial_fit(X).partial_fit(X, sample_weight=1000 * w)
    np.testing.assert_allclose(bn.running_mean_, scaled.running_mean_, rtol=1e-12)
    np.testing.assert_allclose(bn.running_var_, scaled.running_var_, rtol=1e-12)


def test_sample_weight_is_routed_through_a_pipeline():
    X, w = normal(27, (50, 3)), np.arange(50.0)
    with config_context(enable_metadata_routing=True):
        bn = BatchNormTransformer().set_fit_request(sample_weight=True)
        model = LogisticRegression().set_fit_request(sample_weight=False)
        pipe = make_pipeline(bn, model).fit(X, np.arange(50) % 2, sample_weight=w)
    np.testing.assert_allclose(pipe[0].mean_, np.average(X, axis=0, weights=w), rtol=1e-12)
    assert not hasattr(bn, "set_transform_request") or "out" not in bn.set_transform_request.__signature__.parameters


# ---- transform ----


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float16, *DTYPES])
def test_transform_keeps_dtype_and_equals_the_formula(dtype, layout):
    X = normal(28, (50, 4), mean=3.0, std=2.0, dtype=dtype)
    bn = BatchNormTransformer(eps=1e-3, gamma=[1, 2, 3, 4], beta=[0, 1, 0, -1]).fit(X)
    y = bn.transform(LAYOUTS[layout](X))
    assert y.dtype == dtype
    expected = _reference.batch_norm(X, bn.running_mean_, bn.running_var_, bn.gamma, bn.beta, eps=1e-3)
    np.testing.assert_allclose(y, expected, rtol=0, atol=32 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_transform_undoes_transform(dtype):
    X = normal(29, (60, 3), mean=1e3, dtype=dtype)
    bn = BatchNormTransformer(gamma=[1, -2, 0.5], beta=[3, 0, 1], eps=1e-5).fit(X)
    np.testing.assert_allclose(bn.inverse_transform(bn.transform(X)), X, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_out_and_copy_have_the_same_bits(dtype, order):
    X = np.asarray(normal(31, (100, 3), dtype=dtype), order=order)
    bn = BatchNormTransformer(copy=False).fit(X)
    y = bn.transform(X, copy=True)
    assert not np.shares_memory(y, X) and y.flags.f_contiguous == (order == "F")
    out = np.empty((100, 3), dtype)
    assert bn.transform(X, out=out) is out and same_bits(out, np.ascontiguousarray(y))
    overlapping = np.zeros((101, 3), dtype)
    overlapping[:-1] = X
    bn.transform(overlapping[:-1], out=overlapping[1:])
    np.testing.assert_array_equal(overlapping[1:], y)
    read_only = LAYOUTS["read-only"](X)
    np.testing.assert_array_equal(bn.transform(read_only), y)
    np.testing.assert_array_equal(read_only, X)
    wide = np.zeros((5000, 16), dtype)
    tall = np.tile(X, (50, 3))[:, :8].copy()
    eight = BatchNormTransformer().fit(tall)
    eight.transform(tall, out=wide[:, 4:12])
    np.testing.assert_array_equal(wide[:, 4:12], eight.transform(tall, copy=True))
    assert not np.any(wide[:, :4])
    assert np.shares_memory(bn.transform(X), X)
    np.testing.assert_array_equal(X, y)


def test_a_row_alone_has_the_bits_it_has_in_any_batch():
    X = normal(32, (3000, 11), mean=4.0, dtype=np.float32)
    bn = BatchNormTransformer().fit(X)
    y = bn.transform(X)
    for i in (0, 1, 1234, 2999):
        assert same_bits(bn.transform(X[i : i + 1])[0], y[i])
        some = np.arange(i - 2, i + 5) % 3000
        assert same_bits(bn.transform(np.asfortranarray(X[some]))[2], y[i])
    np.testing.assert_array_equal(bn.transform(X[::2]), y[::2])


def test_with_mean_and_with_std_off():
    X = normal(33, (40, 3), mean=2.0)
    for with_mean in (True, False):
        for with_std in (True, False):
            ours = BatchNormTransformer(with_mean=with_mean, with_std=with_std).fit(X)
            theirs = StandardScaler(with_mean=with_mean, with_std=with_std).fit(X)
            np.testing.assert_allclose(ours.transform(X), theirs.transform(X), rtol=1e-12, atol=1e-14)
            for name in ("mean_", "var_", "scale_"):
                assert (getattr(ours, name) is None) == (getattr(theirs, name) is None)
            assert ours.running_mean_ is not None and ours.running_var_ is not None


# ---- scikit-learn's surroundings ----


def test_data_frames_in_and_out():
    frame = pd.DataFrame(normal(34, (20, 2)), columns=["a", "b"], index=range(5, 25))
    bn = BatchNormTransformer().set_output(transform="pandas").fit(frame)
    y = bn.transform(frame)
    assert list(y.columns) == ["a", "b"] == list(bn.get_feature_names_out()) == list(bn.feature_names_in_)
    assert list(y.index) == list(frame.index)
    np.testing.assert_allclose(y.to_numpy(), StandardScaler().fit_transform(frame), rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="out is only for NumPy output"):
        bn.transform(frame, out=np.empty((20, 2)))
    with config_context(transform_output="pandas"), pytest.raises(ValueError, match="out is only for NumPy"):
        BatchNormTransformer().fit(GOOD).transform(GOOD, out=np.empty((20, 3)))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        bn.transform(frame.to_numpy())
    with pytest.raises(ValueError, match="feature names"):
        bn.transform(frame[["b", "a"]])
    table = polars().DataFrame({"a": [1.0, 2.0, 4.0], "b": [1.0, 0.0, 0.0]})
    y = BatchNormTransformer().set_output(transform="polars").fit_transform(table)
    assert y.columns == StandardScaler().set_output(transform="polars").fit_transform(table).columns
    np.testing.assert_allclose(y.to_numpy(), StandardScaler().fit_transform(table.to_numpy()), rtol=1e-12, atol=1e-14)


def test_names_come_and_go_with_fit():
    frame = pd.DataFrame(normal(35, (20, 2)), columns=["a", "b"])
    bn = BatchNormTransformer().fit(frame)
    assert hasattr(bn, "feature_names_in_")
    bn.fit(frame.to_numpy())
    assert not hasattr(bn, "feature_names_in_")


@pytest.mark.parametrize("n_jobs", [1, *slow(2)])
def test_in_a_column_transformer_in_a_grid_search_with_joblib(n_jobs):
    X, y = datasets.load_wine(return_X_y=True, as_frame=True)
    columns = ColumnTransformer([("bn", BatchNormTransformer(), list(X.columns[:7]))], remainder=StandardScaler())
    search = GridSearchCV(
        Pipeline([("scale", columns), ("model", LogisticRegression())]),
        {"scale__bn__eps": [0.0, 1e-5]},
        n_jobs=n_jobs,
        cv=3,
    )
    assert search.fit(X, y).best_score_ > 0.95


@pytest.mark.parametrize("mode", MODES)
def test_a_pickled_transformer_goes_on_as_the_original(mode):
    X = normal(36, (50, 3))
    bn = BatchNormTransformer(**MODES[mode]).partial_fit(X)
    again = pickle.loads(pickle.dumps(bn))
    for t in (bn, again):
        t.partial_fit(X + 1)
    assert bn.n_samples_seen_ == again.n_samples_seen_
    for a, b in zip(bn._state.running.moments, again._state.running.moments, strict=True):
        assert same_bits(a, b)
    assert same_bits(bn.transform(X), again.transform(X))


def test_clone_keeps_parameters_and_nothing_else():
    bn = BatchNormTransformer(momentum=0.9, gamma=np.ones(2), n_threads=1).fit(normal(37, (9, 2)))
    fresh = clone(bn)
    assert fresh.get_params()["momentum"] == 0.9
    with pytest.raises(NotFittedError):
        fresh.transform(np.zeros((1, 2)))


def test_statistics_cannot_be_changed_behind_the_coefficients():
    bn = pickle.loads(pickle.dumps(BatchNormTransformer().fit(normal(37, (9, 2)))))
    for name in ("running_mean_", "running_var_", "mean_", "var_", "scale_"):
        assert not hasattr(BatchNormTransformer(), name)
        with pytest.raises(AttributeError):
            setattr(bn, name, np.zeros(2))
        with pytest.raises(ValueError, match="read-only"):
            getattr(bn, name)[0] = 1


# ---- merge ----


@settings(max_examples=examples(60, 5000), deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_merging_workers_in_any_order_equals_fit(sizes, random):
    X = normal(38, (sum(sizes), 3), mean=1e4)
    workers = [BatchNormTransformer(ddof=1).partial_fit(part) for part in split(X, sizes)]
    random.shuffle(workers)
    total = BatchNormTransformer(ddof=1, eps=1e-3)
    for worker in workers:
        assert total.merge(worker) is total
    whole = BatchNormTransformer(ddof=1, eps=1e-3).fit(X)
    assert total.n_samples_seen_ == len(X)
    assert total.n_batches_seen_ == len(sizes)
    np.testing.assert_allclose(total.running_mean_, whole.running_mean_, rtol=1e-15)
    if len(X) > 1:
        np.testing.assert_allclose(total.running_var_, whole.running_var_, rtol=1e-12)
        np.testing.assert_allclose(total.transform(X), whole.transform(X), rtol=1e-9, atol=1e-9)


@settings(max_examples=examples(60, 5000), deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=12),
    st.integers(0, 9),
    st.sampled_from(["none", "positive", "with zeros"]),
    st.sampled_from([0.0, 0.2, 0.9]),
    st.integers(0, 2**32 - 1),
)
def test_any_split_merged_in_any_tree_equals_the_fit_of_all(sizes, digits, weights, missing, seed):
    rng = np.random.default_rng(seed)
    X = 10.0**digits + rng.standard_normal((sum(sizes), 4)) * [1, 1e-3, 1e3, 1]
    X[rng.random(X.shape) < [missing, 0, missing, 0]] = np.nan
    X[:, 3] = np.where(np.arange(len(X)) < sizes[0], np.nan, X[:, 3])  # not one value in the first part
    w = (
        None
        if weights == "none"
        else rng.uniform(0.1, 3, len(X)) * (rng.random(len(X)) < (weights == "positive") + 0.7)
    )
    if w is not None:
        w[np.cumsum(sizes) - 1] = 1  # each part weighs something
    whole = BatchNormTransformer().fit(X, sample_weight=w)
    parts, start = [], 0
    for part in split(X, sizes):
        own = None if w is None else w[start : start + len(part)]
        parts.append(BatchNormTransformer().fit(part, sample_weight=own))
        start += len(part)
    while len(parts) > 1:
        rng.shuffle(parts)
        parts.append(parts.pop().merge(parts.pop()))
    (merged,) = parts
    np.testing.assert_allclose(merged.n_samples_seen_, whole.n_samples_seen_, rtol=1e-12)
    seen = np.isfinite(whole.running_mean_)
    np.testing.assert_array_equal(np.isfinite(merged.running_mean_), seen)
    mean, var = whole.running_mean_[seen], whole.running_var_[seen]
    u = 2.0**-53
    kappa = np.sqrt(1 + np.divide(mean**2, var, out=np.zeros_like(var), where=var > 0))
    assert np.all(abs(merged.running_var_[seen] - var) <= (1e-12 + 64 * u * kappa) * var)
    assert np.all(abs(merged.running_mean_[seen] - mean) <= 1e-12 * np.sqrt(var) + 4 * u * abs(mean))


def test_merged_counts_are_integers_unless_weighted():
    plain, weighted = BatchNormTransformer().fit(GOOD), BatchNormTransformer().fit(GOOD, sample_weight=np.ones(20))
    assert isinstance(clone(plain).merge(plain).merge(plain).n_samples_seen_, int)
    assert isinstance(clone(plain).merge(weighted).merge(plain).n_samples_seen_, float)
    assert isinstance(plain.merge(weighted).n_samples_seen_, float)
    assert plain.n_samples_seen_ == 40


def test_two_sides_whose_union_overflows_are_refused():
    near, far = np.zeros((2, 1)), np.full((2, 1), 1e200)
    for mode in ({}, {"halflife": 3}):
        bn = BatchNormTransformer(**mode).partial_fit(near)
        before = pickle.dumps(bn)
        with pytest.raises(ValueError, match="variance of X overflows float64"):
            bn.partial_fit(far)
        assert pickle.dumps(bn) == before
    bn = BatchNormTransformer().fit(near)
    before = pickle.dumps(bn)
    with pytest.raises(ValueError, match="variance of X overflows float64"):
        bn.merge(BatchNormTransformer().fit(far))
    assert pickle.dumps(bn) == before


def test_merge_does_not_change_the_other_and_takes_names_from_it():
    frame = pd.DataFrame(normal(39, (9, 2)), columns=["a", "b"])
    other = BatchNormTransformer().fit(frame)
    before = pickle.dumps(other)
    merged = BatchNormTransformer().merge(other).merge(other)
    assert pickle.dumps(other) == before
    assert merged.n_samples_seen_ == 18
    assert list(merged.feature_names_in_) == ["a", "b"]


def test_a_changed_parameter_takes_effect_at_the_next_fit():
    bn = BatchNormTransformer().fit(GOOD)
    y = bn.transform(GOOD)
    bn.set_params(eps=1.0, with_std=False)
    np.testing.assert_array_equal(bn.transform(GOOD), y)
    assert bn.scale_ is not None
    bn.partial_fit(GOOD)
    assert bn.scale_ is None
    np.testing.assert_allclose(bn.transform(GOOD), GOOD - GOOD.mean(0), rtol=1e-12, atol=1e-14)


def test_fit_and_transform_do_not_write_their_input():
    X, w = GOOD.copy(), np.ones(20)
    kept = copy.deepcopy((X, w))
    BatchNormTransformer().fit(X, sample_weight=w).transform(X)
    np.testing.assert_array_equal(X, kept[0])
    np.testing.assert_array_equal(w, kept[1])


# ---- every kind of input ----


@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_any_number_type_is_fitted_and_transformed_as_its_values(dtype):
    X = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (50, 3)).astype(dtype)
    bn, wide = BatchNormTransformer().fit(X), BatchNormTransformer().fit(X.astype(float))
    np.testing.assert_allclose(bn.running_mean_, wide.running_mean_, rtol=1e-15)
    np.testing.assert_allclose(bn.running_var_, wide.running_var_, rtol=1e-14)
    y = bn.transform(X)
    assert y.dtype == OTHER_DTYPES[dtype]
    np.testing.assert_allclose(y, wide.transform(X.astype(float)), rtol=0, atol=16 * np.finfo(y.dtype).eps)
    assert same_bits(bn.transform(X, out=np.empty_like(y)), y)
    assert same_bits(np.asarray(bn.transform(X[7:8]))[0], y[7])
    bn.partial_fit(X)
    assert bn.n_samples_seen_ == 100
    kept = X.copy()
    assert same_bits(bn.transform(X, copy=False), bn.transform(kept))
    assert (X.dtype == y.dtype) != np.array_equal(X, kept)  # overwritten only where the result fits


def test_data_whose_rows_are_the_same_memory_is_not_overwritten():
    row = np.array([1.0, 2.0, 4.0])
    X = np.lib.stride_tricks.as_strided(row, (5, 3), (0, 8))
    y = BatchNormTransformer(copy=False).fit(GOOD).transform(X)
    assert same_bits(y, BatchNormTransformer().fit(GOOD).transform(X.copy()))
    np.testing.assert_array_equal(row, [1.0, 2.0, 4.0])


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_data_equals_dense(kind):
    X = sparse_columns(60)
    S = SPARSE[kind](X)
    dense, bn = BatchNormTransformer(with_mean=False).fit(X), BatchNormTransformer(with_mean=False).fit(S)
    np.testing.assert_allclose(bn.mean_, dense.mean_, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(bn.var_, dense.var_, rtol=1e-12)
    np.testing.assert_array_equal(bn.n_samples_seen_, dense.n_samples_seen_)
    y = bn.transform(S)
    assert type(y) is type(S)
    np.testing.assert_allclose(y.toarray(), dense.transform(X), rtol=1e-14)
    np.testing.assert_allclose(bn.inverse_transform(y).toarray(), X, rtol=1e-14)
    assert bn.transform(S, copy=False) is S
    np.testing.assert_array_equal(S.toarray(), y.toarray())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", WITHOUT_ROWS)
def test_a_sparse_stream_equals_a_dense_one_in_every_mode(mode, weighted):
    X = sparse_columns(60)[:, :6]
    w = np.random.default_rng(1).uniform(0.5, 2, 60) if weighted else None
    dense, bn = (BatchNormTransformer(with_mean=False, **WITHOUT_ROWS[mode]) for _ in range(2))
    for part in (slice(0, 20), slice(20, 60)):
        weights = None if w is None else w[part]
        dense.partial_fit(X[part], sample_weight=weights)
        bn.partial_fit(sparse.csr_array(X)[part], sample_weight=weights)
    np.testing.assert_allclose(bn.running_mean_, dense.running_mean_, rtol=1e-12, atol=1e-14)
    # The column at 1e6 has no zeros, but its weights are sums in another order.
    np.testing.assert_allclose(bn.running_var_, dense.running_var_, rtol=1e-10, atol=1e-18)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channel_axis", [0, 1, 2, 3, -1])
def test_n_dimensional_data_by_channel_axis_equals_its_values_as_rows(channel_axis, layout):
    X = LAYOUTS[layout](normal(50, (4, 3, 5, 2), mean=3.0))
    flat = np.moveaxis(X, channel_axis, -1).reshape(-1, X.shape[channel_axis])
    bn, rows = BatchNormTransformer(channel_axis=channel_axis).fit(X), BatchNormTransformer().fit(flat)
    np.testing.assert_allclose(bn.running_mean_, rows.running_mean_, rtol=1e-14)
    np.testing.assert_allclose(bn.running_var_, rows.running_var_, rtol=1e-13)
    assert bn.n_features_in_ == X.shape[channel_axis]
    assert bn.n_samples_seen_ == X.size // X.shape[channel_axis]
    assert list(bn.get_feature_names_out()) == [f"x{c}" for c in range(X.shape[channel_axis])]
    y = bn.transform(X)
    assert y.shape == X.shape
    np.testing.assert_allclose(
        np.moveaxis(y, channel_axis, -1).reshape(flat.shape), rows.transform(flat), rtol=1e-12, atol=1e-13
    )
    np.testing.assert_allclose(bn.inverse_transform(y), X, rtol=1e-13)
    out = np.empty_like(X)
    assert bn.transform(X, out=out) is out
    np.testing.assert_array_equal(out, y)
    own = np.array(X)
    assert np.shares_memory(bn.transform(own, copy=False), own)
    np.testing.assert_array_equal(own, y)


@pytest.mark.parametrize("mode", WITHOUT_ROWS)
@pytest.mark.parametrize("channel_axis", [0, 1, -1])
def test_a_weight_and_a_place_in_time_per_sample_of_n_dimensional_data(channel_axis, mode):
    X, w = normal(51, (6, 5, 4), mean=1.0), np.arange(1.0, 7.0)
    given = np.moveaxis(X, 1, channel_axis)
    if channel_axis == 0:  # samples are the first other axis
        given = np.ascontiguousarray(given)
    bn = BatchNormTransformer(channel_axis=channel_axis, **WITHOUT_ROWS[mode]).partial_fit(given, sample_weight=w)
    bn.partial_fit(given)
    rows = BatchNormTransformer(**WITHOUT_ROWS[mode])
    if mode == "halflife":  # all positions of a sample are equally old
        rows.set_params(halflife=None)
        age = 0.5 ** (np.arange(11, -1, -1) / 100)
        weights, everything = np.r_[w, np.ones(6)] * age, np.concatenate([X, X])
        rows.fit(np.moveaxis(everything, 1, -1).reshape(-1, 5), sample_weight=np.repeat(weights, 4))
    else:
        flat = np.moveaxis(X, 1, -1).reshape(-1, 5)
        rows.partial_fit(flat, sample_weight=np.repeat(w, 4)).partial_fit(flat)
    np.testing.assert_allclose(bn.running_mean_, rows.running_mean_, rtol=1e-13)
    np.testing.assert_allclose(bn.running_var_, rows.running_var_, rtol=1e-12)
    assert bn.n_samples_seen_ == 4 * (w.sum() + 6)


def test_memory_maps_and_read_only_arrays_are_read_in_place(tmp_path):
    np.save(tmp_path / "x.npy", normal(54, (100_000, 8)))
    for mode in ("r", "c"):
        mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
        bn = BatchNormTransformer()
        tracemalloc.start()
        bn.fit(mapped)
        out = bn.transform(mapped, out=np.empty(mapped.shape), copy=None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < mapped.nbytes + 1e6  # the output
        np.testing.assert_allclose(out.mean(0), 0, atol=1e-12)
        np.testing.assert_array_equal(mapped, np.load(tmp_path / "x.npy"))
    with pytest.raises(ValueError, match="read-only"):
        np.load(tmp_path / "x.npy", mmap_mode="r")[0, 0] = 1


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("parameters", [{}, {"batch_size": 100_000}, {"halflife": 1e4, "batch_size": 10_000}])
def test_fit_takes_memory_for_the_features_only(parameters, order):
    X = np.asarray(normal(55, (400_000, 4)), order=order)
    bn = BatchNormTransformer(**parameters)
    tracemalloc.start()
    bn.fit(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < X.nbytes / 10


@pytest.mark.parametrize(
    "make",
    [
        lambda: pd.DataFrame({"a": pd.array([1, None, 3, 5], "Int64"), "b": pd.array([1.5, 2, None, 0], "Float64")}),
        lambda: pd.DataFrame({"a": [1, np.nan, 3, 5], "b": [1.5, 2, np.nan, 0]}),
        lambda: pd.DataFrame({"a": [1, np.nan, 3, 5], "b": [1.5, 2, np.nan, 0]}, dtype="float32"),
        lambda: polars().DataFrame({"a": [1, None, 3, 5], "b": [1.5, 2, None, 0]}),
        lambda: pa.table({"a": [1, None, 3, 5], "b": [1.5, 2, None, 0]}),
    ],
    ids=["pandas nullable", "pandas", "pandas float32", "polars", "pyarrow"],
)
@pytest.mark.parametrize("batch_size", [None, 3])
def test_frames_are_read_with_their_names_and_gaps(make, batch_size):
    frame = make()
    bn = BatchNormTransformer(batch_size=batch_size).fit(frame)
    # scikit-learn 1.6 finds no names in frames of polars 2.
    np.testing.assert_array_equal(
        getattr(bn, "feature_names_in_", None), getattr(StandardScaler().fit(frame), "feature_names_in_", None)
    )
    np.testing.assert_allclose(bn.running_mean_, [3, 3.5 / 3], rtol=1e-15)
    assert bn.n_samples_seen_ == 3
    y = bn.transform(frame)
    # One of the frames is float32.
    np.testing.assert_allclose(y[:, 0], np.array([-2, np.nan, 0, 2]) / np.sqrt(8 / 3), rtol=1e-6)
    assert bn.partial_fit(frame).n_samples_seen_ == 6


# ---- other array libraries ----


@pytest.mark.parametrize("weighted", [False, True])
def test_array_api_arrays_give_results_of_the_same_library(weighted):
    X, w = normal(56, (20, 3)), np.arange(20.0) if weighted else None
    expected = BatchNormTransformer().fit(X, sample_weight=w)
    there = xp.asarray(X)
    with config_context(array_api_dispatch=True):
        bn = BatchNormTransformer().fit(there, sample_weight=None if w is None else xp.asarray(w))
        y = bn.transform(there)
        back = bn.inverse_transform(y)
        assert isinstance(y, type(there)) and isinstance(back, type(there))
        with pytest.raises(TypeError, match="out is only for dense NumPy input, got an array of array_api_strict"):
            bn.transform(there, out=np.empty((20, 3)))
        images = xp.asarray(normal(57, (4, 3, 5)))
        assert BatchNormTransformer(channel_axis=1).fit_transform(images).shape == (4, 3, 5)
        assert isinstance(bn.transform(X), np.ndarray)
    assert same_bits(bn.running_var_, expected.running_var_)
    assert same_bits(np.from_dlpack(y), expected.transform(X))
    np.testing.assert_array_equal(np.from_dlpack(there), X)


# ---- fit in batches ----


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["ndarray", "frame", "sparse", "list", "n-d"])
@pytest.mark.parametrize("mode", MODES)
def test_fit_in_batches_is_partial_fit_over_them(mode, kind, weighted):
    if mode == "window" and kind == "sparse":
        return  # refused: test_running.py
    X, w = normal(58, (53, 3), mean=2.0), np.linspace(0.1, 2, 53) if weighted else None
    given = {
        "ndarray": X,
        "frame": pd.DataFrame(X, columns=["a", "b", "c"]),
        "sparse": sparse.csr_array(X),
        "list": X.tolist(),
        "n-d": X[:, :, None],
    }[kind]
    parameters = {"with_mean": kind != "sparse", "channel_axis": 1 if kind == "n-d" else None, **MODES[mode]}
    batched = BatchNormTransformer(batch_size=10, **parameters).fit(given, sample_weight=w)
    streamed = BatchNormTransformer(**parameters)
    for part in gen_batches(53, 10):
        streamed.partial_fit(_safe_indexing(given, part), sample_weight=None if w is None else w[part])
    assert batched.n_batches_seen_ == streamed.n_batches_seen_ == 6
    for a, b in zip(batched._state.running.moments, streamed._state.running.moments, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)
    np.testing.assert_array_equal(batched.n_samples_seen_, streamed.n_samples_seen_)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil"])
def test_sparse_data_of_any_format_is_fitted_in_batches(kind):
    X = sparse_columns(53)[:, :6]
    bn = BatchNormTransformer(with_mean=False, batch_size=10).fit(sparse.csr_array(X).asformat(kind))
    whole = BatchNormTransformer(with_mean=False).fit(X)
    assert bn.n_batches_seen_ == 6
    np.testing.assert_allclose(bn.running_var_, whole.running_var_, rtol=1e-12)


def test_with_momentum_a_rest_too_small_joins_the_batch_before_it():
    X = normal(59, (21, 2))
    bn = BatchNormTransformer(momentum=0.9, batch_size=10).fit(X)
    assert bn.n_batches_seen_ == 2
    streamed = BatchNormTransformer(momentum=0.9).partial_fit(X[:10]).partial_fit(X[10:])
    np.testing.assert_allclose(bn.running_var_, streamed.running_var_, rtol=1e-14)
    assert BatchNormTransformer(momentum=0.9, ddof=3, batch_size=10).fit(X[:13]).n_batches_seen_ == 1
    assert BatchNormTransformer(batch_size=10).fit(X).n_batches_seen_ == 3
    images = normal(62, (5, 3, 4, 4))  # 16 values of a channel in one image are enough
    assert BatchNormTransformer(momentum=0.9, channel_axis=1, batch_size=2).fit(images).n_batches_seen_ == 3
    with pytest.raises(ValueError, match="n_samples=1"):
        BatchNormTransformer(momentum=0.9, batch_size=1).fit(X)


# ---- statistics from elsewhere ----


def test_statistics_from_elsewhere_go_on_as_if_they_had_been_seen():
    X, more = normal(60, (40, 3), mean=5.0), normal(61, (10, 3))
    theirs = StandardScaler().fit(X)
    bn = BatchNormTransformer.from_statistics(theirs.mean_, theirs.var_, theirs.n_samples_seen_)
    assert bn.n_samples_seen_ == 40
    assert bn.n_batches_seen_ == 1
    np.testing.assert_allclose(bn.transform(more), theirs.transform(more), rtol=1e-12)
    whole = BatchNormTransformer().fit(np.concatenate([X, more]))
    for t in (bn.partial_fit(more), BatchNormTransformer().fit(more).merge(
        BatchNormTransformer.from_statistics(theirs.mean_, theirs.var_, 40))):  # fmt: skip
        np.testing.assert_allclose(t.running_mean_, whole.running_mean_, rtol=1e-12)
        np.testing.assert_allclose(t.running_var_, whole.running_var_, rtol=1e-12)


def test_statistics_from_elsewhere_may_have_the_names_of_columns():
    table = pd.DataFrame(normal(60, (40, 2)), columns=["a", "b"])
    theirs = StandardScaler().set_output(transform="pandas").fit(table)
    bn = BatchNormTransformer.from_statistics(
        theirs.mean_, theirs.var_, 40, feature_names=theirs.feature_names_in_
    ).set_output(transform="pandas")
    pd.testing.assert_frame_equal(bn.transform(table), theirs.transform(table))
    with pytest.raises(ValueError, match="feature names"):
        bn.transform(table[["b", "a"]])
    for names in (["a"], "ab", ["a", 1], [["a", "b"]]):
        with pytest.raises(ValueError, match="feature_names must be 2 strings, one per feature; got"):
            BatchNormTransformer.from_statistics(theirs.mean_, theirs.var_, 40, feature_names=names)


def test_the_buffers_of_a_layer_continue_exactly():
    mean, var = np.array([1.0, -2.0], "f4"), np.array([0.3, 4.0], "f4")
    layer = BatchNormTransformer.from_statistics(mean, var, 1000, momentum=0.9, ddof=1, eps=1e-5)
    np.testing.assert_array_equal(layer.running_mean_, mean)
    np.testing.assert_array_equal(layer.running_var_, var)
    expected_mean, expected_var = mean.astype(float), var.astype(float)
    for k in range(20):
        X = normal(k, (8, 2))
        layer.partial_fit(X)
        expected_mean = 0.9 * expected_mean + 0.1 * X.mean(0)
        expected_var = 0.9 * expected_var + 0.1 * X.var(0, ddof=1)
    np.testing.assert_allclose(layer.running_mean_, expected_mean, rtol=1e-13)
    np.testing.assert_allclose(layer.running_var_, expected_var, rtol=1e-13)
    assert layer.n_samples_seen_ == 1160
    BatchNormTransformer.from_statistics(mean, var, 1, momentum=0.9, ddof=1)  # the count does not matter


def test_statistics_are_copied_and_unobserved_features_stay_so():
    mean, var, n = np.array([1.0, np.nan]), np.array([2.0, np.nan]), np.array([10, 0])
    bn = BatchNormTransformer.from_statistics(mean, var, n, ddof=1)
    mean[0] = var[0] = n[0] = 99
    np.testing.assert_allclose(bn.running_mean_, [1, np.nan])
    np.testing.assert_allclose(bn.running_var_, [2, np.nan])
    np.testing.assert_array_equal(bn.n_samples_seen_, [10, 0])
    assert np.isnan(bn.transform([[1.0, 1.0]])[0, 1])
    assert isinstance(BatchNormTransformer.from_statistics([1], [1], 2.5).n_samples_seen_, float)
    assert isinstance(BatchNormTransformer.from_statistics([1], [1], 2).n_samples_seen_, int)
    many = BatchNormTransformer.from_statistics([1], [1], 2**62)
    assert many.merge(many).n_samples_seen_ == 2.0**63  # beyond exact integers, a float


# ---- in a notebook ----


def test_the_html_links_to_the_documentation_and_shows_the_state():
    bn = BatchNormTransformer(momentum=0.9).fit(GOOD)
    html = bn._repr_html_()
    link = "https://github.com/bncpu/bncpu/blob/HEAD/bncpu/transformer.py"
    assert bn._get_doc_link() == link
    assert f'href="{link}"' in html
    if hasattr(bn, "_get_fitted_attr_html"):  # scikit-learn 1.9
        for name in ("running_mean_", "running_var_", "n_samples_seen_", "n_batches_seen_", "scale_"):
            assert name in html
        assert "running_var_" in make_pipeline(bn, StandardScaler())._repr_html_()
    assert "running_mean_" not in BatchNormTransformer()._repr_html_()


# ---- streams ----


class Tensor:
    """What PyTorch's tensors in CPU memory, or elsewhere, are to other libraries, without `__array__`."""

    def __init__(self, values, device=1):
        self.values, self.device = values, device
        self.shape, self.ndim = values.shape, values.ndim

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device, 0


BATCHES = [normal(i, (5 + i, 2), mean=1e3, dtype=np.float32) for i in range(4)]


def record_batches():
    table = pa.table({"a": np.concatenate(BATCHES)[:, 0], "b": np.concatenate(BATCHES)[:, 1]})
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches(max_chunksize=7))


STREAMS = {
    "arrays": lambda: BATCHES,
    "a generator": lambda: (batch for batch in BATCHES),
    "lists of rows": lambda: [batch.tolist() for batch in BATCHES],
    "tables": lambda: [pa.table({"a": batch[:, 0], "b": batch[:, 1]}) for batch in BATCHES],
    "record batches": record_batches,
    "X and y in a tuple": lambda: ((batch, np.zeros(len(batch))) for batch in BATCHES),
    "X and y in a list": lambda: ([Tensor(batch), Tensor(np.zeros(len(batch)))] for batch in BATCHES),
    "tensors": lambda: map(Tensor, BATCHES),
    "alone in a tuple": lambda: ((pd.DataFrame(batch),) for batch in BATCHES),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_teaches_what_its_batches_teach(kind, mode):
    streamed = BatchNormTransformer(**MODES[mode]).fit(GOOD)
    assert streamed.fit_stream(STREAMS[kind]()) is streamed
    expected = BatchNormTransformer(**MODES[mode])
    batches = list(record_batches()) if kind == "record batches" else BATCHES
    for batch in batches:
        expected.partial_fit(pa.table(batch) if kind == "record batches" else batch)
    np.testing.assert_allclose(streamed.running_var_, expected.running_var_, rtol=1e-12)
    assert streamed.n_samples_seen_ == expected.n_samples_seen_
    assert streamed.n_batches_seen_ == len(batches)
    assert hasattr(streamed, "feature_names_in_") == (kind in ("tables", "record batches"))


@pytest.mark.parametrize("fitted", [False, True])
def test_a_stream_that_fails_keeps_the_batches_before(fitted):
    def broken(n):
        yield from BATCHES[:n]
        raise OSError("gone")

    def infinite(n):
        return [*BATCHES[:n], np.full((2, 2), np.inf), *BATCHES]

    def empty(n):
        return []

    for stream in (broken, infinite, empty):
        t = BatchNormTransformer().fit(GOOD) if fitted else BatchNormTransformer()
        before = dict(vars(t))
        with pytest.raises((OSError, ValueError)) as caught:
            t.fit_stream(stream(0))
        assert vars(t) == before
        assert getattr(caught.value, "__notes__", []) == ["in batch 1 of the stream"] * (stream is not empty)
    for stream in (broken, infinite):
        t = BatchNormTransformer().fit(GOOD) if fitted else BatchNormTransformer()
        with pytest.raises((OSError, ValueError)) as caught:
            t.fit_stream(stream(3))
        assert caught.value.__notes__ == ["in batch 4 of the stream"]
        assert t.n_batches_seen_ == 3
        same_bits(t.running_var_, BatchNormTransformer().fit_stream(BATCHES[:3]).running_var_)


@pytest.mark.parametrize("one", [GOOD, GOOD[0], pd.DataFrame(GOOD), pa.table({"a": [1.0]}), "x.csv", {"a": [1.0]}])
def test_one_batch_or_a_file_is_no_stream(one):
    with pytest.raises(TypeError, match=f"must be an iterable of batches, got one {type(one).__name__}; for one batch"):
        BatchNormTransformer().fit_stream(one)


def test_a_stream_of_tensors_elsewhere_is_refused_by_name():
    with pytest.raises((TypeError, ValueError), match=r"Tensor|dtype|array"):
        BatchNormTransformer().fit_stream([Tensor(BATCHES[0], device=2)])


def test_record_batches_are_read_as_tables():
    table = pa.table({"a": [1.0, 2.0, 4.0], "b": [1.0, None, 0.0]})
    (batch,) = table.to_batches()
    t = BatchNormTransformer().fit(batch)
    assert list(t.feature_names_in_) == ["a", "b"]
    same_bits(t.running_var_, BatchNormTransformer().fit(table).running_var_)
    same_bits(t.transform(batch), t.transform(table))
    with pytest.raises(ValueError, match="feature names"):
        t.partial_fit(batch.rename_columns(["b", "a"]))


# ---- clip ----

CLIPPED_LAYOUTS = {
    "C": lambda X: X,
    "F": np.asfortranarray,
    "every second row": lambda X: np.repeat(X, 2, axis=0)[::2],
    "float16": lambda X: X.astype(np.float16),
    "integers": lambda X: np.nan_to_num(X * 10).astype(np.int16),
    "pandas": lambda X: pd.DataFrame(X, columns=list("abc")),
    "csr": sparse.csr_array,
    "csc": sparse.csc_array,
}


@pytest.mark.parametrize("n", [1, 40, 30_000])
@pytest.mark.parametrize("layout", CLIPPED_LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_limits_what_transform_returns(dtype, layout, n):
    X = np.random.default_rng(0).standard_t(2, size=(n, 3)).astype(dtype)
    X[::5, 1] = np.nan
    given = CLIPPED_LAYOUTS[layout](X)
    parameters = {"gamma": [2, -3, 1], "with_mean": layout not in ("csr", "csc")}
    if parameters["with_mean"]:
        parameters["beta"] = [0.5, 0, 20]
    statistics = [0.1, 0.2, 0.3], [1.0, 4.0, 9.0], 100
    names = {"feature_names": list("abc")} if layout == "pandas" else {}
    plain = BatchNormTransformer.from_statistics(*statistics, **names, **parameters)
    bn = BatchNormTransformer.from_statistics(*statistics, **names, **parameters, clip=1.5)
    y, expected = bn.transform(given), plain.transform(given)
    assert type(y) is type(expected)
    y, expected = (a if isinstance(a, np.ndarray) else a.toarray() for a in (y, expected))
    assert n == 1 or np.any(np.abs(expected) > 1.5)
    assert same_bits(y, np.clip(expected, -1.5, 1.5))
    bn.set_params(clip=None)  # waits for the next fit
    assert bn.transform(given)[0, 0] == y[0, 0]


@pytest.mark.parametrize("way", ["out", "copy=False", "out is X", "set_output", "Dask", "Dask frame", "N-D"])
def test_clip_limits_results_wherever_they_go(way):
    X = np.random.default_rng(0).standard_t(2, size=(40, 3))
    bn, plain = (BatchNormTransformer(clip=c, channel_axis=1 if way == "N-D" else None) for c in (0.75, None))
    if way == "N-D":
        X = X.reshape(5, 4, 6)
    frame = pd.DataFrame(X, columns=list("abc")) if way in ("set_output", "Dask frame") else X
    expected = np.clip(np.asarray(plain.fit(frame).transform(frame)), -0.75, 0.75)
    bn.fit(frame)
    if way == "out":
        y = bn.transform(X, out=np.empty_like(X))
    elif way == "out is X":
        y = bn.transform(X, out=X)
    elif way == "copy=False":
        y = bn.transform(X, copy=False)
        assert y is X
    elif way == "set_output":
        y = bn.set_output(transform="pandas").transform(frame)
        assert type(y) is pd.DataFrame
    elif way == "Dask":
        y = bn.transform(pytest.importorskip("dask.array").from_array(X, chunks=(7, 2))).compute()
    elif way == "Dask frame":
        y = bn.transform(pytest.importorskip("dask.dataframe").from_pandas(frame, npartitions=3)).compute()
    else:
        y = bn.transform(X)
    assert np.abs(expected).max() == 0.75
    np.testing.assert_array_equal(y, expected)


def test_clip_is_a_parameter_like_the_others(tmp_path):
    X = np.random.default_rng(0).standard_t(2, size=(40, 3))
    bn = BatchNormTransformer(clip=2).fit(X)
    assert clone(bn).clip == 2
    bn.save(tmp_path / "state.json")
    loaded = BatchNormTransformer.load(tmp_path / "state.json")
    for same in (pickle.loads(pickle.dumps(bn)), loaded, bn.partial_fit(X[:0:-1]).fit(X)):
        assert same.clip == 2
        assert np.abs(same.transform(X)).max() == 2
    bn.set_params(clip=0.5).partial_fit(X)
    assert np.abs(bn.transform(X)).max() == 0.5
    assert np.abs(bn.select([0, 2]).transform(X[:, [0, 2]])).max() == 0.5
    # What was clipped comes back as the limit.
    np.testing.assert_allclose(
        bn.inverse_transform(bn.transform([[1e9, -1e9, 0]]))[0, :2], bn.mean_[:2] + [0.5, -0.5] * bn.scale_[:2]
    )
    assert np.abs(bn.inverse_transform(np.full((1, 3), 9.0))).max() > 2  # is not limited itself
    for method in (bn.to_torch, bn.to_keras):
        with pytest.raises(ValueError, match=r"a layer cannot limit its results as clip=0\.5 does"):
            method()
    for wrong, error in (
        (0, ValueError),
        (-1.0, ValueError),
        (np.inf, ValueError),
        (np.nan, ValueError),
        ("2", TypeError),
    ):
        with pytest.raises(error, match="clip"):
            BatchNormTransformer(clip=wrong).fit(X)


def test_an_infinity_is_refused_before_it_is_clipped_and_what_overflows_is_clipped():
    bn = BatchNormTransformer.from_statistics([0.0], [1e-4], 10, clip=1e6)
    for options in ({}, {"copy": False}):
        with pytest.raises(ValueError, match="contains infinity"):
            bn.transform(np.array([[1.0], [np.inf]]), **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for dtype, most in ((np.float16, 65504), (np.float32, 1e6)):
                x = np.array([[np.finfo(dtype).max], [-np.finfo(dtype).max], [np.nan]])
                np.testing.assert_array_equal(bn.transform(x.astype(dtype), **options), [[most], [-most], [np.nan]])
                x = x.astype(dtype)
                np.testing.assert_array_equal(bn.transform(x, out=x), [[most], [-most], [np.nan]])
