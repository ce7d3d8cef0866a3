"""BatchNormTransformer: the scikit-learn contract, three kinds of running statistics, and nothing lost on refusal."""

import copy
import pickle
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from arrays import DTYPES, LAYOUTS, exact_moments, hostile_columns, normal, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import config_context, datasets
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from bncpu import BatchNormTransformer, _reference

MODES = {"cumulative": {}, "momentum": {"momentum": 0.9}, "halflife": {"halflife": 100}}


@parametrize_with_checks(
    [
        BatchNormTransformer(),
        BatchNormTransformer(momentum=0.9),
        BatchNormTransformer(halflife=100),
        BatchNormTransformer(with_mean=False),
        BatchNormTransformer(eps=1e-5),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


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


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=60, deadline=None)
@given(cuts, st.floats(0.5, 1e4), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_with_halflife_any_split_equals_one_call(sizes, halflife, weighted, missing, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((sum(sizes), 3)) + 10
    if missing:
        X[rng.random(X.shape) < 0.2] = np.nan
    w = rng.uniform(0.1, 2, len(X)) if weighted else None
    once = BatchNormTransformer(halflife=halflife).partial_fit(X, sample_weight=w)
    streamed, start = BatchNormTransformer(halflife=halflife), 0
    for batch in split(X, sizes):
        streamed.partial_fit(batch, sample_weight=None if w is None else w[start : start + len(batch)])
        start += len(batch)
    seen = ~np.isnan(once.running_mean_)
    np.testing.assert_allclose(streamed.running_mean_[seen], once.running_mean_[seen], rtol=1e-12)
    np.testing.assert_allclose(streamed.running_var_[seen], once.running_var_[seen], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(streamed.n_samples_seen_, once.n_samples_seen_, rtol=1e-12)
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


@pytest.mark.parametrize("mode", MODES)
def test_fit_is_exact_in_every_mode_and_partial_fit_goes_on_from_it(mode):
    X = normal(20, (300, 3), mean=5.0)
    bn = BatchNormTransformer(**MODES[mode]).fit(X)
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


def test_inverse_transform_refuses_a_zero_gamma():
    bn = BatchNormTransformer(gamma=[1, 0, 2]).fit(normal(30, (9, 3)))
    with pytest.raises(ValueError, match=r"non-zero gamma, got 0 in column\(s\) 1"):
        bn.inverse_transform(np.zeros((1, 3)))


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
    table = pl.DataFrame({"a": [1.0, 2.0, 4.0], "b": [1.0, 0.0, 0.0]})
    y = BatchNormTransformer().set_output(transform="polars").fit_transform(table)
    assert y.columns == StandardScaler().set_output(transform="polars").fit_transform(table).columns
    np.testing.assert_allclose(y.to_numpy(), StandardScaler().fit_transform(table.to_numpy()), rtol=1e-12, atol=1e-14)


def test_names_come_and_go_with_fit():
    frame = pd.DataFrame(normal(35, (20, 2)), columns=["a", "b"])
    bn = BatchNormTransformer().fit(frame)
    assert hasattr(bn, "feature_names_in_")
    bn.fit(frame.to_numpy())
    assert not hasattr(bn, "feature_names_in_")


def test_in_a_column_transformer_in_a_grid_search_with_joblib():
    X, y = datasets.load_wine(return_X_y=True, as_frame=True)
    columns = ColumnTransformer([("bn", BatchNormTransformer(), list(X.columns[:7]))], remainder=StandardScaler())
    search = GridSearchCV(
        Pipeline([("scale", columns), ("model", LogisticRegression())]), {"scale__bn__eps": [0.0, 1e-5]}, n_jobs=2, cv=3
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
    for a, b in zip(bn._moments, again._moments, strict=True):
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


@settings(max_examples=40, deadline=None)
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


def test_merged_counts_are_integers_unless_weighted():
    plain, weighted = BatchNormTransformer().fit(GOOD), BatchNormTransformer().fit(GOOD, sample_weight=np.ones(20))
    assert isinstance(clone(plain).merge(plain).merge(plain).n_samples_seen_, int)
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


# ---- refusals: nothing is lost ----

GOOD = normal(40, (20, 3))
NAMED = pd.DataFrame(GOOD, columns=["a", "b", "c"])


def with_value(row, column, value, dtype=float):
    X = GOOD.astype(dtype)
    X[row, column] = value
    return X


REFUSED = {
    "wrong width": (lambda t: t.partial_fit(GOOD[:, :2]), "X has 2 features, but BatchNormTransformer is expecting 3"),
    "one dimension": (lambda t: t.partial_fit(GOOD[0]), "Expected 2D array, got 1D array"),
    "three dimensions": (lambda t: t.partial_fit(GOOD[None]), "Found array with dim 3"),
    "no rows": (lambda t: t.partial_fit(GOOD[:0]), r"Found array with 0 sample\(s\)"),
    "infinity": (lambda t: t.partial_fit(with_value(7, 1, np.inf)), r"contains infinity .* row\(s\) 7, column\(s\) 1"),
    "minus infinity, float32": (lambda t: t.partial_fit(with_value(0, 0, -np.inf, "f4")), "contains infinity"),
    "infinity in fit": (lambda t: t.fit(with_value(0, 2, np.inf)), r"row\(s\) 0, column\(s\) 2"),
    "other names": (lambda t: t.fit(NAMED.assign(c=np.inf)), r"contains infinity .*column\(s\) 2 \('c'\)"),
    "overflowing variance": (lambda t: t.partial_fit(with_value(3, 1, 1e200)), "variance of X overflows float64"),
    "variance overflowing with what was seen": (
        lambda t: t.fit([[0.0, 0.0, 1e308]] * 2 + [[0.0, 0.0, -1e308]]),
        "variance of X overflows float64",
    ),
    "strings": (lambda t: t.partial_fit(np.array([["a", "b", "c"]])), "could not convert string to float"),
    "complex": (lambda t: t.partial_fit(GOOD + 1j), "Complex data not supported"),
    "negative weight": (lambda t: t.partial_fit(GOOD, sample_weight=-np.ones(20)), "Negative values in data"),
    "infinite weight": (lambda t: t.partial_fit(GOOD, sample_weight=np.full(20, np.inf)), "contains infinity"),
    "weights of the wrong length": (lambda t: t.partial_fit(GOOD, sample_weight=np.ones(19)), "sample_weight.shape"),
    "no weight": (lambda t: t.fit(GOOD, sample_weight=np.zeros(20)), "at least one non-zero number"),
    "infinity in transform": (lambda t: t.transform(with_value(5, 2, np.inf)), r"row\(s\) 5, column\(s\) 2"),
    "width in transform": (lambda t: t.transform(GOOD[:, :1]), "X has 1 features"),
    "width in inverse": (lambda t: t.inverse_transform(GOOD[:, :1]), "X has 1 features"),
    "out of another shape": (
        lambda t: t.transform(GOOD, out=np.zeros((20, 2))),
        "out must have the shape",
    ),
    "merge with an unfitted one": (lambda t: t.merge(BatchNormTransformer()), "not fitted yet|cumulative statistics"),
    "merge with another width": (
        lambda t: t.merge(BatchNormTransformer().fit(GOOD[:, :2])),
        "other must have 3 features, got 2|cumulative statistics",
    ),
}


@pytest.mark.parametrize("fitted", [True, False], ids=["fitted", "unfitted"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_call_leaves_every_byte(case, mode, fitted):
    call, message = REFUSED[case]
    bn = BatchNormTransformer(**MODES[mode])
    if fitted:
        bn.fit(GOOD)
    before, keys = pickle.dumps(bn), list(vars(bn))
    needs_fit = not fitted and any(word in case for word in ("transform", "inverse", "width", "out of", "merge"))
    try:
        call(bn)
    except Exception as error:
        expected = "not fitted yet|cumulative|" + message if needs_fit else message
        with pytest.raises(type(error), match=expected):
            raise
    else:
        assert needs_fit, "accepted"
        return
    assert pickle.dumps(bn) == before
    assert list(vars(bn)) == keys


PARAMETERS = [
    (dict(momentum=1.0), ValueError, "momentum == 1.0, must be < 1"),
    (dict(momentum=-0.1), ValueError, "momentum == -0.1, must be >= 0"),
    (dict(momentum="0.9"), TypeError, "momentum must be an instance of"),
    (dict(halflife=0), ValueError, "halflife == 0, must be > 0"),
    (dict(halflife=np.inf), ValueError, "halflife must be finite"),
    (dict(momentum=0.9, halflife=3), ValueError, "exclude each other, got momentum=0.9 and halflife=3"),
    (dict(eps=-1), ValueError, "eps == -1, must be >= 0"),
    (dict(ddof=np.nan), ValueError, "ddof must be finite, got nan"),
    (dict(n_threads=0), ValueError, "n_threads == 0, must be >= 1"),
    (dict(with_mean=1), TypeError, "with_mean must be True or False, got 1"),
    (dict(copy="no"), TypeError, "copy must be True or False, got 'no'"),
    (dict(gamma=[1, 2]), ValueError, r"gamma must have shape \(3,\), one value per channel; got \(2,\)"),
    (dict(beta=[1, np.inf, 0]), ValueError, "beta must be finite, got inf"),
]


@pytest.mark.parametrize(("change", "error", "message"), PARAMETERS, ids=lambda v: str(v)[:40])
def test_refused_parameters_leave_every_byte(change, error, message):
    for method in ("fit", "partial_fit"):
        bn = BatchNormTransformer(**change)
        before = pickle.dumps(bn)
        with pytest.raises(error, match=message):
            getattr(bn, method)(GOOD)
        assert pickle.dumps(bn) == before


def test_with_momentum_a_batch_needs_two_values():
    bn = BatchNormTransformer(momentum=0.9).fit(GOOD)
    before = pickle.dumps(bn)
    one = GOOD.copy()
    one[1:, 2] = np.nan
    weights = np.r_[1.0, np.zeros(19)]
    for X, w, message in [
        (GOOD[:1], None, "n_samples=1; halflife accepts single rows"),
        (one, None, r"one value in column\(s\) 2"),
        (one, np.ones(20), r"one value in column\(s\) 2"),
        (GOOD, weights, "n_samples=1"),
    ]:
        with pytest.raises(ValueError, match=message):
            bn.partial_fit(X, sample_weight=w)
    assert pickle.dumps(bn) == before
    for ddof in (20, 25):
        with pytest.raises(ValueError, match=f"more than ddof={ddof} values.*got 20 in column"):
            bn.set_params(ddof=ddof).partial_fit(GOOD)
    with pytest.raises(ValueError, match=r"more than ddof=1 values, or total sample_weight.*got 0\.2 in column"):
        bn.set_params(ddof=1).partial_fit(GOOD, sample_weight=np.full(20, 0.01))
    for accepting in (BatchNormTransformer(), BatchNormTransformer(halflife=9)):
        assert accepting.partial_fit(GOOD[:1]).n_samples_seen_ == 1


def test_statistics_of_one_kind_are_not_continued_as_another():
    bn = BatchNormTransformer().fit(GOOD)
    with pytest.raises(ValueError, match="cannot continue cumulative statistics in momentum mode; call fit"):
        bn.set_params(momentum=0.9).partial_fit(GOOD)
    assert bn.fit(GOOD).partial_fit(GOOD).n_batches_seen_ == 2


def test_merge_refusals_name_the_side():
    bn = BatchNormTransformer().fit(GOOD)
    for other, error, message in [
        (StandardScaler().fit(GOOD), TypeError, "other must be a BatchNormTransformer, got StandardScaler"),
        (BatchNormTransformer(halflife=3).fit(GOOD), ValueError, "cumulative statistics.*; other uses halflife"),
        (BatchNormTransformer(ddof=1).fit(GOOD), ValueError, "other must have ddof=0, got 1"),
        (BatchNormTransformer().fit(NAMED), ValueError, "other must have the feature names None"),
    ]:
        before = pickle.dumps(bn)
        with pytest.raises(error, match=message):
            bn.merge(other)
        assert pickle.dumps(bn) == before


def test_a_changed_parameter_takes_effect_at_the_next_fit():
    bn = BatchNormTransformer().fit(GOOD)
    y = bn.transform(GOOD)
    bn.set_params(eps=1.0, with_std=False)
    np.testing.assert_array_equal(bn.transform(GOOD), y)
    assert bn.scale_ is not None
    bn.partial_fit(GOOD)
    assert bn.scale_ is None
    np.testing.assert_allclose(bn.transform(GOOD), GOOD - GOOD.mean(0), rtol=1e-12, atol=1e-14)


def test_a_momentum_that_looks_like_pytorchs_warns():
    with pytest.warns(UserWarning, match="PyTorch's 0.05 is 0.95 here"):
        bn = BatchNormTransformer(momentum=0.05).fit(GOOD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bn.partial_fit(GOOD)
        BatchNormTransformer(momentum=0.9).fit(GOOD)
        BatchNormTransformer(momentum=0.0).fit(GOOD)


def test_infinity_is_refused_in_place_too():
    for gamma in (None, [0, 0, 0]):
        bn = BatchNormTransformer(gamma=gamma, copy=False).fit(GOOD)
        with pytest.raises(ValueError, match="contains infinity"):
            bn.transform(with_value(3, 1, np.inf))


def test_fit_and_transform_do_not_write_their_input():
    X, w = GOOD.copy(), np.ones(20)
    kept = copy.deepcopy((X, w))
    BatchNormTransformer().fit(X, sample_weight=w).transform(X)
    np.testing.assert_array_equal(X, kept[0])
    np.testing.assert_array_equal(w, kept[1])
