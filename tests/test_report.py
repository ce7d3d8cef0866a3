"""What a report says is so: of data made with a known drift, and against SciPy and simulation."""

import re

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.exceptions import NotFittedError

from bncpu import BatchNormTransformer, _report

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2000, 4)) * [1, 2, 3, 4] + [0, 10, -20, 5]
MOVED = np.array([0, 0, 3, 0])
NAMES = np.array([f"x{k}" for k in range(4)], dtype=object)


def test_statistics_of_both_sides_are_numpys():
    report = BatchNormTransformer().fit(X).report(X[:300] + MOVED)
    c = report.columns
    np.testing.assert_array_equal(c["feature"], NAMES)
    np.testing.assert_allclose(c["running_mean"], X.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(c["std"], X[:300].std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(c["shift"], (X[:300].mean(axis=0) + MOVED - X.mean(axis=0)) / X.std(axis=0))
    np.testing.assert_allclose(c["variance_ratio"], X[:300].var(axis=0) / X.var(axis=0))
    np.testing.assert_array_equal(c["effective_n"], 300)
    assert c["remarks"].tolist() == ["", "", "mean has moved", ""]


def test_the_gap_is_the_difference_between_training_and_inference():
    t = BatchNormTransformer().fit(X)
    batch = X[:50]
    by_batch = (batch - batch.mean(axis=0)) / batch.std(axis=0)
    expected = np.sqrt(np.mean((by_batch - t.transform(batch)) ** 2, axis=0))
    np.testing.assert_allclose(t.report(batch).columns["gap"], expected, rtol=1e-10)


def test_standard_errors_are_those_of_a_simulation():
    t = BatchNormTransformer().fit(X[:400])
    draws = np.random.default_rng(1).standard_normal((400, 100, 4)) * [1, 2, 3, 4] + [0, 10, -20, 5]
    columns = [t.report(draw).columns for draw in draws]
    shift, error, ratio, ratio_error = (
        np.array([c[name] for c in columns])
        for name in ("shift", "shift_error", "variance_ratio", "variance_ratio_error")
    )
    # Of the new data alone: the running statistics are the same in all draws.
    np.testing.assert_allclose(shift.std(axis=0), np.sqrt(np.mean(error**2, axis=0) - 1 / 400), rtol=0.15)
    own = ratio_error * np.sqrt((2 / 100) / (2 / 100 + 2 / 400))
    np.testing.assert_allclose(ratio.std(axis=0), own.mean(axis=0), rtol=0.15)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 30, 100])
def test_data_that_has_not_changed_is_hardly_ever_said_to_have(n):
    t = BatchNormTransformer(ddof=1).fit(np.random.default_rng(2).standard_normal((500, 2000)))
    alarms = t.report(np.random.default_rng(n).standard_normal((n, 2000))).columns["remarks"] != ""
    # 4 standard errors: 6e-5 for each of the two; of so many features, 2 are 0.9 in 10,000 draws.
    assert np.count_nonzero(alarms) <= 2


def test_variances_with_ddof_are_compared_alike():
    t = BatchNormTransformer(ddof=1).fit(X[:5])
    np.testing.assert_allclose(t.report(X[:5]).columns["variance_ratio"], 1, rtol=1e-12)


def test_with_eps_the_gap_is_still_that_of_what_is_computed():
    x = np.random.default_rng(3).standard_normal((400, 3)) * 1e-2 + [0, 1, 2]
    t, batch = BatchNormTransformer(eps=1e-4).fit(x), x[:16]
    by_batch = (batch - batch.mean(axis=0)) / np.sqrt(batch.var(axis=0) + 1e-4)
    expected = np.sqrt(np.mean((by_batch - t.transform(batch)) ** 2, axis=0))
    np.testing.assert_allclose(t.report(batch).columns["gap"], expected, rtol=1e-10)


def test_missing_values_leave_the_curve_about_where_it_was():
    t = BatchNormTransformer().fit(X)
    holes = np.where(np.random.default_rng(4).random(X.shape) < 0.05, np.nan, X)
    whole, some = (t.report(x).gap_by_batch_size for x in (X, holes))
    assert list(some) == list(whole)
    np.testing.assert_allclose(list(some.values()), list(whole.values()), rtol=0.15)


def test_constants_that_vary_now_are_the_worst_of_drifts():
    x = np.column_stack([np.full(50, 3.0), np.full(50, 3.0), X[:50, 0]])
    t = BatchNormTransformer().fit(x)
    x[:, 1] = 1000 * X[:50, 0]
    report = t.report(x)
    assert report.columns["remarks"].tolist() == ["constant", "constant before, not here", ""]
    assert np.isnan(report.columns["gap"][0])
    assert report.columns["gap"][1] == np.inf
    wide = np.hstack([np.full((50, 40), 3.0), x])
    told = str(BatchNormTransformer().fit(np.hstack([wide[:, :40], np.full((50, 2), 3.0), x[:, 2:]])).report(wide))
    assert told.splitlines()[2].startswith("x41 ")
    ones = np.ones((20, 2))
    assert BatchNormTransformer().fit(ones).report(ones).gap_by_batch_size == {}
    rounding = 1e9 + 2.4e-7 * np.random.default_rng(5).integers(0, 3, (200, 1))
    assert BatchNormTransformer().fit(rounding).report(rounding).gap_by_batch_size == {}


def drift(t, x, **how):
    return t.report(x, **how).columns["remarks"].tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("mean", [1.0, -2.0, 1.5])
def test_nearly_constant_is_what_varies_by_a_few_steps_of_its_type(dtype, mean):
    step = np.finfo(dtype).eps
    for steps, remark in ((4, "nearly constant"), (40, "")):
        x = (mean * (1 + steps * step * X[:, :1])).astype(dtype)
        assert np.unique(x).size > 10
        assert drift(BatchNormTransformer().fit(x), x) == [remark]


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.float32, np.float64])
def test_years_and_hours_of_a_day_are_not_nearly_constant(dtype):
    years = np.array([[2007], [2008], [2009]] * 40, dtype)
    assert drift(BatchNormTransformer().fit(years), years) == [""]
    if dtype in (np.int64, np.float64):
        seconds = (1.7e9 + 3600 * np.arange(24)[:, None]).astype(dtype)
        assert drift(BatchNormTransformer().fit(seconds), seconds) == [""]


def test_a_difference_is_remarked_on_if_it_is_both_certain_and_large():
    x = np.random.default_rng(6).standard_normal((168_000, 5))
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    t, now = BatchNormTransformer().fit(x), x * [1, 0.98, 1, 1.15, 0.8] + [0.03, 0, 0.2, 0, 0]
    assert drift(t, now) == ["", "", "mean has moved", "spread has changed", "spread has changed"]
    assert drift(t, now, min_shift=0.18) == ["", "", "mean has moved", "", "spread has changed"]
    assert drift(t, now, min_shift=0) == [
        "mean has moved", "spread has changed", "mean has moved", "spread has changed", "spread has changed"
    ]  # fmt: skip
    # Large, but not certain.
    assert drift(t, x[:5] + 0.2, min_shift=0) == [""] * 5


@pytest.mark.parametrize(("min_shift", "error"), [(-0.1, ValueError), (np.nan, ValueError), ("0.1", TypeError)])
def test_min_shift_is_a_number_from_0(min_shift, error):
    with pytest.raises(error, match="min_shift"):
        BatchNormTransformer().fit(X).report(X, min_shift=min_shift)


def test_the_table_has_the_largest_difference_first_and_digits_that_tell_it_from_none():
    x = np.random.default_rng(7).standard_normal((100_000, 4))
    t = BatchNormTransformer().fit(x)
    text = str(t.report((x - t.mean_) * [1, 1.5, 1, 1] + t.mean_ + np.array([-0.001, 0, 3, 0]) * t.scale_))
    rows = text.splitlines()[2:6]
    assert [row[:2] for row in rows] == ["x2", "x1", "x0", "x3"]
    assert "-0.0010 ± 0.0045" in rows[2]
    assert "100000" in rows[0]
    assert not re.search(r"-0\.0+ ", text)
    assert "0.00 ± 0.00" not in text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-0.00004, 0.0123, "+0.000 ± 0.012"),
        (0.92, 0.15, "+0.92 ± 0.15"),
        (-123.4, 15.0, "-123 ± 15"),
        (0.0, 0.0, "+0"),
        (2.0, np.nan, "+2"),
        (-1.234e9, 2.5, "-1.2e+09 ± 2.5"),
        (np.nan, 1.0, ""),
    ],
)
def test_differences_are_printed_with_two_digits_of_their_error(value, error, text):
    assert _report._uncertain(value, error, "+") == text


def test_fit_leaves_all_its_rows_whatever_forgets_later_and_layers_do_not_tell():
    for parameters in ({"halflife": 20.0}, {"momentum": 0.9}):
        found = BatchNormTransformer(**parameters).fit(X).report(X[:50]).columns["running_effective_n"]
        np.testing.assert_array_equal(found, 2000)
    rare, forgetting = np.where(RNG.random(X.shape) < 0.8, np.nan, X), BatchNormTransformer(halflife=20.0)
    for batch in np.split(rare, 20):
        forgetting.partial_fit(batch)
    w = ~np.isnan(rare) * 0.5 ** (np.arange(2000)[::-1, None] / 20)
    found = forgetting.report(X[:50]).columns["running_effective_n"]  # from the sum of the weights alone
    np.testing.assert_allclose(found, w.sum(axis=0) ** 2 / (w**2).sum(axis=0), rtol=0.5)
    state = {"running_mean": X.mean(axis=0), "running_var": X.var(axis=0), "num_batches_tracked": np.array(10_000)}
    layer = BatchNormTransformer.from_torch(state, momentum=0.9)
    assert layer.report(X[:50] + 50).columns["remarks"].tolist() == ["mean has moved"] * 4


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_unit_of_weights_does_not_matter(scale):
    w = RNG.random(300)
    t = BatchNormTransformer().fit(X)
    found, expected = (t.report(X[:300], sample_weight=weights).columns for weights in (w * scale, w))
    np.testing.assert_allclose(found["effective_n"], expected["effective_n"], rtol=1e-12)


@pytest.mark.parametrize(
    ("parameters", "weights"),
    [
        ({}, lambda n: np.ones(n)),
        ({"halflife": 20.0}, lambda n: 0.5 ** ((n - 1 - np.arange(n)) / 20)),
        ({"momentum": 0.8}, lambda n: np.repeat(0.8 ** np.arange(n // 10)[::-1], 10)),
        ({"momentum": 0.0}, lambda n: np.repeat(np.arange(n // 10) == n // 10 - 1, 10)),
    ],
)
def test_the_effective_sample_size_is_that_of_the_weights(parameters, weights):
    for n in (30, 200):
        t = BatchNormTransformer(**parameters)
        for batch in np.split(X[:n], n // 10):
            t.partial_fit(batch)
        w = weights(n).astype(float)
        found = t.report(X[:50]).columns["running_effective_n"]
        np.testing.assert_allclose(found, w.sum() ** 2 / (w**2).sum(), rtol=1e-12)


def test_weights_of_new_data_lower_its_effective_sample_size():
    w = RNG.random(300)
    x = np.where(RNG.random((300, 4)) < 0.2, np.nan, X[:300])
    found = BatchNormTransformer().fit(X).report(x, sample_weight=w).columns["effective_n"]
    kept = ~np.isnan(x)
    np.testing.assert_allclose(found, (w @ kept) ** 2 / (w**2 @ kept), rtol=1e-12)


def test_constants_near_constants_missing_and_shrunk_features_are_named():
    x = np.column_stack(
        [np.full(500, 3.0), 1e6 + 6e-10 * X[:500, 0], np.full(500, np.nan), 1e-3 * X[:500, 0], X[:500, 0]]
    )
    columns = BatchNormTransformer(eps=1e-7).fit(x).report(x).columns
    var = x[:, 3].var()
    shrinkage = 1 - np.sqrt(var / (var + 1e-7))
    np.testing.assert_allclose(columns["shrinkage"][3], shrinkage)
    said = columns["remarks"].tolist()
    assert said[1].startswith("nearly constant")
    del said[1]
    assert said == ["constant", "never observed, missing in this data", f"eps shrinks it by {shrinkage:.0%}", ""]
    missing = BatchNormTransformer().fit(X).report(np.where(np.arange(4) == 1, np.nan, X))
    assert missing.columns["remarks"].tolist() == ["", "missing in this data", "", ""]


def test_the_batch_size_advised_is_the_least_whose_gap_is_small_enough_to_train():
    for rows in (X, X[:20], np.repeat(X[:40], 50, axis=0)):  # the last: what is alike lies together
        report = BatchNormTransformer().fit(X).report(rows)
        gaps = report.gap_by_batch_size
        enough = [size for size, gap in gaps.items() if gap < 0.5]
        said = next(note for note in report.notes if "come within 0.5 standard deviations" in note)
        expected = f"batches of {enough[0]} samples" if enough else f"no batches of up to {max(gaps)} samples"
        assert said.startswith(expected)


def test_gaps_by_batch_size_shrink_as_theory_says():
    t = BatchNormTransformer().fit(X)
    found = t.report(np.random.default_rng(2).standard_normal((4096, 4)) * t.scale_ + t.mean_).gap_by_batch_size
    assert list(found) == [2, 4, 8, 16, 32, 64, 128, 256]
    for size in (32, 64, 128):
        # Variance of the mean, 1/n, and of the standard deviation, about 1/(2 n).
        np.testing.assert_allclose(found[size], np.sqrt(1.5 / size), rtol=0.1)


def test_images_sparse_matrices_and_layers_are_reported():
    images = RNG.standard_normal((64, 3, 5, 5))
    report = BatchNormTransformer(channel_axis=1).fit(images).report(images)
    np.testing.assert_array_equal(report.columns["effective_n"], 64 * 25)
    assert list(report.gap_by_batch_size) == [2, 4, 8]
    sparse = csr_array(np.where(RNG.random((100, 3)) < 0.8, 0, 1.0))
    assert BatchNormTransformer(with_mean=False).fit(sparse).report(sparse).gap_by_batch_size == {}
    layer = BatchNormTransformer.from_keras([np.ones(4), np.zeros(4), X.mean(axis=0), X.var(axis=0)])
    columns = layer.report(X[:100]).columns
    assert np.all(np.isfinite(columns["shift_error"]))
    assert not columns["remarks"].any()


def test_a_report_reads_well_as_text_html_and_frame():
    t = BatchNormTransformer(momentum=0.9)
    for batch in np.split(X, 200):
        t.partial_fit(batch)
    wide = np.column_stack([X + MOVED] * 10)
    report = t.report(X + MOVED)
    text = str(report)
    assert repr(report) == text
    head, line, *rows = text.splitlines()
    assert head.split()[:3] == ["feature", "mean", "std"]
    assert set(line) == {"-"}
    assert re.match(r"x2 +-\S+ +\S+ +\+0\.768 ± 0\.0\d\d .*mean has moved$", rows[0])
    assert "learned from batches of 10 values of a feature on average: the running variance leaves out" in text
    many = str(BatchNormTransformer().fit(wide).report(wide))
    assert "10 more features, which differ less: to_frame() has all" in many
    frame = report.to_frame()
    np.testing.assert_array_equal(frame["shift"], report.columns["shift"])
    assert list(frame.index) == list(NAMES)
    named = _report.Report({**report.columns, "feature": np.array(["<b>", "x1", "x2", "x3"], dtype=object)}, {}, [])
    assert "<td>&lt;b&gt;</td>" in named._repr_html_()


def test_a_report_changes_nothing_and_refuses_what_transform_refuses():
    t = BatchNormTransformer().fit(X)
    before = t.__getstate__()
    t.report(X)
    assert all(t.__getstate__()[name] is before[name] for name in ("_state",))
    with pytest.raises(ValueError, match="infinity"):
        t.report(np.where(np.arange(4) == 1, np.inf, X))
    with pytest.raises(ValueError, match="3 features"):
        t.report(X[:, :3])
    with pytest.raises(NotFittedError):
        BatchNormTransformer().report(X)
