"""A half-life of time: pandas' `ewm(halflife=..., times=...)`, however the stream is cut."""

import copy
import datetime
import pickle
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

from bncpu import BatchNormTransformer, concatenate, moments
from bncpu._batches import Dense, summary

N, DAYS = 60, datetime.timedelta(days=14)
RNG = np.random.default_rng(0)
X = RNG.normal([0, 1e4, -5], 1, (N, 3))
GAPS = np.where(RNG.random((N, 3)) < 0.3, np.nan, X)
TIMES = np.datetime64("2020-01-01", "s") + np.sort(RNG.integers(0, 90 * 86_400, N)).astype("m8[s]")
WEIGHTS = RNG.random(N)
SAME = {"rtol": 1e-12, "atol": 1e-15}


def after(halflife, x, times, cuts=(), weights=None, **parameters):
    t = BatchNormTransformer(halflife=halflife, **parameters)
    for part in np.split(np.arange(len(times)), cuts):
        t.partial_fit(x[part], sample_weight=None if weights is None else weights[part], times=times[part])
    return t


def without_unit(n):
    """A duration that NumPy 2.5 warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.timedelta64(n)


def direct(x, times, halflife, weights=None):
    """Mean and variance by the definition."""
    w = 0.5 ** ((times[-1] - times) / np.timedelta64(halflife))[:, None]
    w = np.where(np.isnan(x), 0, w if weights is None else w * weights[:, None])
    mean = (w * np.nan_to_num(x)).sum(axis=0) / w.sum(axis=0)
    return mean, (w * np.nan_to_num(x - mean) ** 2).sum(axis=0) / w.sum(axis=0)


@pytest.mark.parametrize("x", [X, GAPS])
@pytest.mark.parametrize("halflife", ["14D", "36h", "90D"])
def test_the_mean_is_that_of_pandas_ewm_with_times(x, halflife):
    expected = pd.DataFrame(x).ewm(halflife=halflife, times=TIMES).mean().to_numpy()
    t = BatchNormTransformer(halflife=halflife)
    for k in range(N):
        t.partial_fit(x[k : k + 1], times=TIMES[k : k + 1])
        np.testing.assert_allclose(t.running_mean_, expected[k], **SAME)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("x", [X, GAPS])
@pytest.mark.parametrize("cuts", [(), (1,), (7, 30, 31), range(1, N)])
def test_mean_and_variance_are_the_definition_however_the_stream_is_cut(x, cuts, weights):
    t = after(DAYS, x, TIMES, cuts, weights)
    mean, var = direct(x, TIMES, DAYS, weights)
    np.testing.assert_allclose(t.running_mean_, mean, **SAME)
    np.testing.assert_allclose(t.running_var_, var, rtol=1e-11)
    seen = (~np.isnan(x) * (1 if weights is None else weights[:, None])).sum(axis=0)
    np.testing.assert_allclose(np.broadcast_to(t.n_samples_seen_, 3), seen, rtol=1e-12)
    assert t.n_batches_seen_ == len(cuts) + 1


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(st.integers(0, 10**15), min_size=2, max_size=40),
    halflife=st.integers(1, 10**15),
    cut=st.integers(1, 39),
    seed=st.integers(0, 99),
)
def test_any_times_and_any_cut_give_what_one_call_gives(steps, halflife, cut, seed):
    rng = np.random.default_rng(seed)
    times = np.cumsum(steps).astype("M8[ns]")
    x = np.where(rng.random((len(steps), 2)) < 0.4, np.nan, rng.standard_normal((len(steps), 2)))
    once = after(np.timedelta64(halflife, "ns"), x, times)
    cut = after(np.timedelta64(halflife, "ns"), x, times, (min(cut, len(steps) - 1),))
    np.testing.assert_allclose(cut.running_mean_, once.running_mean_, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(cut.running_var_, once.running_var_, rtol=1e-11, atol=1e-13)


def test_rows_at_equal_intervals_are_rows():
    times = np.datetime64("2020-01-01") + np.arange(N)
    by_time, by_rows = after(np.timedelta64(9, "D"), GAPS, times, (20,)), BatchNormTransformer(halflife=9)
    by_rows.partial_fit(GAPS[:20]).partial_fit(GAPS[20:])
    for name in ("running_mean_", "running_var_"):
        np.testing.assert_allclose(getattr(by_time, name), getattr(by_rows, name), **SAME)


def test_a_feature_last_seen_thousands_of_half_lives_ago_keeps_its_statistics():
    times = np.datetime64("2020-01-01", "s") + np.array([0, 10, 20, 10**6, 2 * 10**6]).astype("m8[s]")
    x = np.array([[1.0, 1], [2, 2], [3, np.nan], [np.nan, np.nan], [np.nan, 7]])
    for cuts in ((), (3,), (4,), range(1, 5)):
        t = after(np.timedelta64(10, "s"), x, times, cuts)
        np.testing.assert_allclose(t.running_mean_, [(0.25 + 1 + 3) / 1.75, 7], rtol=1e-15)


def test_times_may_be_centuries_apart():
    times = np.array(["1680-01-01", "2250-01-01"], "M8[D]")
    century = np.timedelta64(36_525, "D")
    w = 0.5 ** ((times[1] - times[0]) / century)
    x = np.array([[0.0], [1.0]])
    for cuts in ((), (1,)):
        np.testing.assert_allclose(after(century, x, times, cuts).running_mean_, [1 / (1 + w)], rtol=1e-12)


@pytest.mark.parametrize(
    "halflife", [DAYS, np.timedelta64(14, "D"), np.timedelta64(2, "W"), pd.Timedelta("14D"), "14D"]
)
def test_durations_of_python_numpy_and_pandas_are_the_same(halflife):
    t = after(halflife, X, TIMES)
    assert t.get_params()["halflife"] is halflife
    np.testing.assert_array_equal(
        t.running_mean_, after(np.timedelta64(14 * 86_400 * 10**9, "ns"), X, TIMES).running_mean_
    )
    assert clone(t).halflife == halflife


STAMPS, NINE = pd.DatetimeIndex(TIMES), datetime.timezone(datetime.timedelta(hours=9))


@pytest.mark.parametrize(
    "times",
    [
        STAMPS,
        pd.Series(STAMPS),
        pd.Series(STAMPS.astype("datetime64[ns]"), dtype="timestamp[ns][pyarrow]"),
        STAMPS.tz_localize("UTC").tz_convert("Asia/Tokyo"),
        pd.Series(STAMPS.tz_localize("UTC")),
        pl.Series(TIMES.astype("M8[us]")),
        pa.array(TIMES),
        TIMES.astype(object).tolist(),
        [time.replace(tzinfo=datetime.UTC).astimezone(NINE) for time in TIMES.astype(object)],
        list(STAMPS.tz_localize("UTC").tz_convert("America/New_York")),
        TIMES.astype(">M8[ms]"),
        np.repeat(TIMES, 2)[::2],
        np.ma.array(TIMES),
    ],
    ids=lambda times: f"{type(times).__module__}.{getattr(times, 'dtype', type(times).__name__)}",
)
def test_times_are_taken_from_every_library_and_zone(times):
    t = BatchNormTransformer(halflife=DAYS).partial_fit(X, times=times)
    np.testing.assert_array_equal(t.running_mean_, after(DAYS, X, TIMES).running_mean_)
    assert t._state.running.last == int(TIMES[-1].astype("M8[ns]").astype(int))


def test_dates_are_midnights_and_nanoseconds_count():
    dates = [datetime.date(2020, 1, day) for day in range(1, 31)] * 2
    expected = after(DAYS, X, np.sort(np.array(dates, "M8[D]")))
    np.testing.assert_array_equal(after(DAYS, X, np.sort(dates)).running_mean_, expected.running_mean_)
    t = after(
        np.timedelta64(1, "ns"),
        np.array([[0.0], [3.0]]),
        pd.to_datetime([1_600_000_000 * 10**9, 1_600_000_000 * 10**9 + 1]),
    )
    np.testing.assert_allclose(t.running_mean_, [2])


def test_files_pickles_and_copies_go_on_to_the_bit(tmp_path):
    t = after("14D", GAPS[:40], TIMES[:40], weights=WEIGHTS[:40])
    t.save(tmp_path / "state.json")
    loaded = BatchNormTransformer.load(tmp_path / "state.json")
    assert loaded.halflife == np.timedelta64(14, "D")
    expected = copy.deepcopy(t).partial_fit(GAPS[40:], times=TIMES[40:])
    for other in (loaded, pickle.loads(pickle.dumps(t)), copy.deepcopy(t)):
        with pytest.raises(ValueError, match="must not be before those of the last batch"):
            other.partial_fit(X, times=TIMES)
        other.partial_fit(GAPS[40:], times=TIMES[40:])
        np.testing.assert_array_equal(other.running_var_, expected.running_var_)
    loaded.save(tmp_path / "state.json")
    expected.save(tmp_path / "other.json")
    assert BatchNormTransformer.load(tmp_path / "state.json")._state.running.last == expected._state.running.last


def test_fit_learns_rows_without_order_and_times_go_on_from_there():
    with pytest.warns(UserWarning, match=r"fit knows no times: .*; partial_fit\(X, times=\.\.\.\) forgets"):
        t = BatchNormTransformer(halflife=DAYS).fit(X)
    np.testing.assert_array_equal(t.running_var_, BatchNormTransformer().fit(X).running_var_)
    t.partial_fit(X[:1] + 5, times=TIMES[:1])  # nothing has faded yet
    np.testing.assert_allclose(t.running_mean_, np.vstack([X, X[:1] + 5]).mean(axis=0), rtol=1e-12)
    t.partial_fit(X[:1], times=TIMES[:1] + np.timedelta64(365 * 100, "D"))
    np.testing.assert_allclose(t.running_mean_, X[0], rtol=1e-12)


def test_images_sparse_matrices_and_frames_have_times():
    images = RNG.standard_normal((N, 3, 2, 2))
    t = after(DAYS, images, TIMES, (20,), channel_axis=1)
    each = images.transpose(0, 2, 3, 1).reshape(-1, 3)
    mean, var = direct(each, np.repeat(TIMES, 4), DAYS)
    np.testing.assert_allclose(t.running_mean_, mean, rtol=1e-11)
    np.testing.assert_allclose(t.running_var_, var, rtol=1e-11)
    stored = csr_array(np.where(np.abs(X) < 1, 0, X))
    t = after(DAYS, stored, TIMES, (20,), with_mean=False)
    np.testing.assert_allclose(t.running_mean_, direct(stored.toarray(), TIMES, DAYS)[0], rtol=1e-12)
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(when=TIMES)
    t = BatchNormTransformer(halflife=DAYS).partial_fit(frame[["a", "b", "c"]], times=frame["when"])
    np.testing.assert_allclose(t.running_mean_, after(DAYS, X, TIMES).running_mean_, rtol=1e-12)


LATE = TIMES + np.timedelta64(100, "D")
LATER_NAT = np.where(np.arange(N) == 3, np.datetime64("NaT", "s"), LATE)


@pytest.mark.parametrize(
    ("times", "error", "message"),
    [
        (None, TypeError, r"a halflife of time needs times, one for each row: partial_fit\(X, times=\.\.\.\)"),
        (TIMES[:-1], ValueError, r"times must have shape \(60,\), one for each sample of X; got \(59,\)"),
        (LATE[:, None], ValueError, r"times must have shape \(60,\)"),
        (LATE[::-1], ValueError, "times must be in order, got 2020-.* after 2020-.*, at 1"),
        (TIMES, ValueError, "times must not be before those of the last batch, got 2020-01-01.* after 20"),
        (LATER_NAT, ValueError, "times must all be known, got NaT at 3"),
        (pd.Series(LATER_NAT), ValueError, "NaT at 3"),
        ([None, *LATE[1:].astype(object)], ValueError, "NaT at 0"),
        ([pd.NaT, *STAMPS[1:].tz_localize("UTC")], ValueError, "NaT at 0"),
        (np.ma.array(LATE, mask=np.arange(N) == 1), ValueError, "times must all be known"),
        (np.arange(N) * 1.0, TypeError, r"times must be dates and times, .*; got an array of shape \(60,\) of float64"),
        (list(range(N)), TypeError, "got .* of int64"),
        (LATE.astype(str), TypeError, "times must be dates and times"),
        (LATE - TIMES, TypeError, "of timedelta64"),
        ("2020-01-01", TypeError, "times must be dates and times"),
        (np.full(N, "3000-01-01", "M8[D]"), ValueError, "times must be whole nanoseconds, between the years"),
        (
            [datetime.datetime(2021, 1, 1, tzinfo=z) for z in [None, datetime.UTC] * 30],
            TypeError,
            "must all have a time zone",
        ),
    ],
)
def test_times_that_cannot_be_are_refused_and_change_nothing(times, error, message):
    for t in (after(DAYS, X, TIMES), BatchNormTransformer(halflife=DAYS)):
        before = pickle.dumps(t)
        if times is not TIMES or hasattr(t, "_state"):
            with pytest.raises(error, match=message):
                t.partial_fit(X, times=times)
        assert pickle.dumps(t) == before


@pytest.mark.parametrize("parameters", [{}, {"halflife": 3}, {"momentum": 0.9}, {"window": 9}])
def test_times_are_refused_where_rows_are_counted(parameters):
    for t in (BatchNormTransformer(**parameters), BatchNormTransformer(**parameters).fit(X)):
        before = pickle.dumps(t)
        with pytest.raises(ValueError, match=r"times need a halflife of time, such as datetime\.timedelta"):
            t.partial_fit(X, times=TIMES)
        assert pickle.dumps(t) == before


@pytest.mark.parametrize(
    ("halflife", "error", "message"),
    [
        ("a while", ValueError, "halflife must be a duration such as '14D', got 'a while'"),
        ("14", ValueError, "halflife must be a duration with a unit, such as '14D', got '14'"),
        ("0D", ValueError, "halflife must be whole nanoseconds, longer than 0"),
        ([1], TypeError, r"halflife must be a number of rows, or a duration such as datetime\.timedelta\(days=14\)"),
        (pd.NaT, TypeError, "halflife must be a number of rows, or a duration"),
        (X, TypeError, r"got an array of shape \(60, 3\)"),
        (datetime.timedelta(0), ValueError, "halflife must be whole nanoseconds, longer than 0"),
        (datetime.timedelta(-1), ValueError, "halflife must be whole nanoseconds, longer than 0"),
        (datetime.timedelta(days=10**6), ValueError, "at most 292 years"),
        (np.timedelta64(10**9, "W"), ValueError, "at most 292 years"),
        (np.timedelta64(2, "M"), ValueError, "halflife must have a unit of fixed length"),
        (without_unit(14), ValueError, "halflife must have a unit of fixed length"),
        (np.timedelta64("NaT", "D"), ValueError, "halflife must"),
        (True, TypeError, "halflife must be a number, got True"),
    ],
)
def test_half_lives_that_cannot_be_say_what_is_expected(halflife, error, message):
    for call in (lambda t: t.fit(X), lambda t: t.partial_fit(X, times=TIMES)):
        with pytest.raises(error, match=message):
            call(BatchNormTransformer(halflife=halflife))


@pytest.mark.parametrize("name", ["eps", "ddof", "momentum", "window", "channel_axis", "batch_size", "n_threads"])
def test_no_other_parameter_is_a_duration(name):
    with pytest.raises(TypeError, match=f"{name} must be a"):
        BatchNormTransformer(**{name: np.timedelta64(1, "D")}).fit(X)


def test_what_knows_no_times_refuses_a_half_life_of_time():
    timed, rows = after(DAYS, X, TIMES), BatchNormTransformer(halflife=3).fit(X)
    for call, error, message in [
        (lambda: BatchNormTransformer(halflife=DAYS).fit_stream([X]), TypeError, "needs times"),
        (lambda: timed.merge(BatchNormTransformer().fit(X)), ValueError, "self uses timed halflife"),
        (lambda: BatchNormTransformer().merge(timed), ValueError, "other uses timed halflife"),
        (lambda: clone(timed).set_params(momentum=0.9).fit(X), ValueError, "momentum and halflife exclude each other"),
        (
            lambda: rows.set_params(halflife=DAYS).partial_fit(X, times=TIMES),
            ValueError,
            "continue halflife statistics",
        ),
        (lambda: timed.set_params(halflife=3).partial_fit(X), ValueError, "cannot continue timed halflife statistics"),
    ]:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.filterwarnings("ignore:fit knows no times")
def test_fit_in_batches_needs_times_which_it_does_not_take():
    with pytest.raises(TypeError, match="a halflife of time needs times"):
        BatchNormTransformer(halflife=DAYS, batch_size=9).fit(X)


def test_a_pipeline_warns_that_it_cannot_forget_by_time():
    with pytest.warns(UserWarning, match="fit knows no times"):
        make_pipeline(BatchNormTransformer(halflife=DAYS), LinearRegression()).fit(X, X[:, 0])


def test_a_dask_array_has_no_times():
    da = pytest.importorskip("dask.array")
    with pytest.raises(TypeError, match="times are for an X in memory, got a Dask collection"):
        BatchNormTransformer(halflife=DAYS).partial_fit(da.from_array(X), times=TIMES)


def test_the_report_takes_values_as_at_equal_intervals():
    for n in (5, 30, 400):
        times, x = np.datetime64("2020-01-01") + np.arange(n), RNG.standard_normal((n, 1))
        w = 0.5 ** (np.arange(n) / 20)
        found = after(np.timedelta64(20, "D"), x, times).report(x).columns["running_effective_n"]
        np.testing.assert_allclose(found, w.sum() ** 2 / (w**2).sum(), rtol=1e-9)


def test_the_span_of_a_batch_is_the_time_it_takes():
    halves = [summary(Dense(X[part]), None, 1, halflife=5.0, times=times) for part, times in (
        (slice(0, 2), np.array([3.0, 7.0])), (slice(2, 4), np.array([1.0, 9.0]))
    )]  # fmt: skip
    assert [half.span for half in halves] == [7, 9]
    np.testing.assert_allclose(halves[0].moments.count, 1 + 0.5 ** (4 / 5), rtol=1e-15)
    np.testing.assert_array_equal(moments.faded(np.array([0.0, 5, 10]), 5.0), [1, 0.5, 0.25])


def test_weights_of_positions_and_times_of_samples_are_both_weights():
    images, weights = RNG.standard_normal((N, 3, 2, 2)), RNG.random((N, 2, 2))
    t = BatchNormTransformer(halflife=DAYS, channel_axis=1)
    for part in (slice(0, 23), slice(23, None)):
        t.partial_fit(images[part], sample_weight=weights[part], times=TIMES[part])
    each = images.transpose(0, 2, 3, 1).reshape(-1, 3)
    mean, var = direct(each, np.repeat(TIMES, 4), DAYS, weights.ravel())
    np.testing.assert_allclose(t.running_mean_, mean, rtol=1e-11)
    np.testing.assert_allclose(t.running_var_, var, rtol=1e-11)


def test_features_selected_and_joined_go_on_from_the_last_time():
    """Those of the part that ended first have aged since."""
    rng = np.random.default_rng(30)
    X, times = rng.normal(size=(8, 3)), np.datetime64("2026-01-01T00", "ns") + np.arange(8) * np.timedelta64(7, "h")
    bn = BatchNormTransformer(halflife="1D").partial_fit(X[:5], times=times[:5])
    some = bn.select([2, 0])
    np.testing.assert_allclose(
        some.partial_fit(X[5:, [2, 0]], times=times[5:]).running_var_,
        BatchNormTransformer(halflife="1D")
        .partial_fit(X[:5, [2, 0]], times=times[:5])
        .partial_fit(X[5:, [2, 0]], times=times[5:])
        .running_var_,
        rtol=1e-12,
    )
    early = BatchNormTransformer(halflife="1D").partial_fit(X[:3, :1], times=times[:3])
    late = BatchNormTransformer(halflife="1D").partial_fit(X[:5, 1:], times=times[:5])
    joined = concatenate(early, late).partial_fit(X[5:], times=times[5:])
    expected = early.partial_fit(X[5:, :1], times=times[5:])
    np.testing.assert_allclose(joined.running_var_[0], expected.running_var_[0], rtol=1e-12)
    np.testing.assert_allclose(joined.running_mean_[0], expected.running_mean_[0], rtol=1e-12)


def test_a_variance_after_a_long_gap_is_that_of_the_formula():
    """One row now, and hardly anything left of what came before: more than ddof by almost nothing is more."""
    times = np.datetime64("2026-01-01", "ns") + np.zeros(20, "m8[ns]")
    x = np.random.default_rng(31).normal(size=(20, 1))
    bn = BatchNormTransformer(halflife="1D", ddof=1).partial_fit(x, times=times)
    bn.partial_fit([[3.0]], times=times[:1] + np.timedelta64(25, "D"))
    w = np.append(np.full(20, 0.5**25), 1.0)
    values = np.append(x, 3.0)
    mean = np.average(values, weights=w)
    np.testing.assert_allclose(bn.running_var_, (w * (values - mean) ** 2).sum() / (w.sum() - 1), rtol=1e-6)
