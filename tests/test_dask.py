"""Arrays and DataFrames of Dask: what they teach is what their rows teach, and results stay lazy."""

import os
import pickle
import signal

import dask
import dask.array as da
import dask.dataframe as dd
import distributed
import numpy as np
import pandas as pd
import pytest
from arrays import OTHER_DTYPES, WITHOUT_ROWS, examples, normal, slow, sparse_columns
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from bncpu import BatchNormTransformer, _dask

# Tests compare the schedulers with each other.
pytestmark = pytest.mark.filterwarnings("ignore:Running on a single-machine scheduler when a distributed client")

N, C = 60, 7
ROWS = normal(1, (N, C), mean=1e4)
ROWS[::7, 2] = np.nan
ROWS[:50, 3] = np.nan
ROWS[:, 5] = 3.0
WEIGHTS = np.arange(N) % 4.0
FRAME = pd.DataFrame(ROWS, columns=list("abcdefg")).assign(f=np.arange(N), g=np.float32(0.1))
IMAGES = normal(2, (6, 5, 4, 3), mean=100.0, dtype=np.float32)


@pytest.fixture(autouse=True)
def _synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def client():
    """Of two worker processes."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def dask_frame(frame=FRAME, n_partitions=4):
    return dd.from_pandas(frame, npartitions=n_partitions)


def assert_same(a, b):
    """Two transformers that have learned the same, but for rounding."""
    np.testing.assert_allclose(a.running_mean_, b.running_mean_, rtol=1e-12)
    np.testing.assert_allclose(a.running_var_, b.running_var_, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(a.n_samples_seen_, b.n_samples_seen_, rtol=1e-15)
    assert type(a.n_samples_seen_) is type(b.n_samples_seen_)
    assert (a.n_batches_seen_, a.n_features_in_) == (b.n_batches_seen_, b.n_features_in_)


def bits(t):
    return t._state.running.values.tobytes(), t._state.derived.tobytes(), np.asarray(t.n_samples_seen_).tobytes()


def never(block):
    raise AssertionError("computed")


# ---- learning ----


@st.composite
def cuts(draw, length):
    """Sizes of consecutive blocks, some of them empty."""
    at = sorted(draw(st.lists(st.integers(0, length), max_size=12)))
    return tuple(np.diff([0, *at, length]).tolist())


@settings(max_examples=examples(20, 2000))
@given(cuts(N), cuts(C), st.sampled_from(sorted(WITHOUT_ROWS)), st.booleans())
def test_blocks_of_any_size_teach_what_the_whole_teaches(rows, columns, mode, weighted):
    X, weights = da.from_array(ROWS, chunks=(rows, columns)), WEIGHTS if weighted else None
    a, b = BatchNormTransformer(**WITHOUT_ROWS[mode]), BatchNormTransformer(**WITHOUT_ROWS[mode])
    with dask.config.set(scheduler="synchronous"):
        for scale in (1, 2):  # of the same batch twice, the weight would not matter
            assert_same(a.partial_fit(scale * X, None, weights), b.partial_fit(scale * ROWS, None, weights))
        assert_same(a.fit(X, None, weights), b.fit(ROWS, None, weights))
        y = a.transform(X)
        assert y.chunks == X.chunks
        np.testing.assert_array_equal(y, a.transform(ROWS))


@pytest.mark.parametrize("mode", WITHOUT_ROWS)
def test_blocks_of_unknown_size_teach_what_the_whole_teaches(mode):
    X, keep = da.from_array(ROWS, chunks=(7, 3)), WEIGHTS > 1
    weights = da.from_array(WEIGHTS, chunks=7)
    a = BatchNormTransformer(**WITHOUT_ROWS[mode]).partial_fit(X[weights > 1], sample_weight=weights[weights > 1])
    assert_same(a, BatchNormTransformer(**WITHOUT_ROWS[mode]).partial_fit(ROWS[keep], sample_weight=WEIGHTS[keep]))
    y = a.transform(X[weights > 1])
    assert np.isnan(y.shape[0])
    np.testing.assert_array_equal(y, a.transform(ROWS[keep]))


def test_blocks_of_many_rows_join_in_a_tree():
    X = normal(3, (520, 1), mean=1e6)
    for kind in ({}, {"halflife": 0.5}, {"halflife": 300.0}):
        a, b = (BatchNormTransformer(**kind).partial_fit(x) for x in (da.from_array(X, chunks=1), X))
        assert_same(a, b)


def test_features_age_by_the_rows_after_them_however_blocks_join():
    X = normal(6, (300, 4), mean=5.0)
    for column, period in enumerate((7, 90, 200, 300)):
        X[np.arange(300) % period > 4, column] = np.nan
    for size in (1, 10, 99):
        t = BatchNormTransformer(halflife=100.0).partial_fit(da.from_array(X, chunks=(size, 4)))
        expected = BatchNormTransformer(halflife=100.0).partial_fit(X)
        assert_same(t, expected)
        assert_same(t.partial_fit(2 * X), expected.partial_fit(2 * X))


def test_rows_without_weight_at_the_end_leave_the_weights_before_them_as_they_were():
    X, w = normal(5, (40, 2), mean=5.0), np.where(np.arange(40) < 28, 1.0, 0.0)
    X[17:, 1] = np.nan
    expected = BatchNormTransformer(halflife=5, ddof=1).partial_fit(X[:28])
    for size in (3, 10, 40):
        blocks = da.from_array(X, chunks=(size, 2))
        t = BatchNormTransformer(halflife=5, ddof=1).partial_fit(blocks, sample_weight=w)
        np.testing.assert_allclose(t.running_var_, expected.running_var_, rtol=1e-13)
        assert_same(t, BatchNormTransformer(halflife=5, ddof=1).partial_fit(X, sample_weight=w))


def test_features_that_fade_within_a_block_or_between_blocks_are_kept():
    X = normal(4, (3000, 2), mean=5.0)
    X[2:, 1] = np.nan
    for size in (3000, 1500, 100):
        t = BatchNormTransformer(halflife=1.0).partial_fit(da.from_array(X, chunks=(size, 2)))
        assert_same(t, BatchNormTransformer(halflife=1.0).partial_fit(X))
        t.partial_fit(da.from_array(X, chunks=size))
        assert_same(t, BatchNormTransformer(halflife=1.0).partial_fit(X).partial_fit(X))


@pytest.mark.parametrize("mode", WITHOUT_ROWS)
@pytest.mark.parametrize(("chunks", "axis"), [((2, 3, 4, 2), 1), ((4, 5, 1, 3), -1), ((1, 2, 1, 2), 0)])
def test_channels_on_any_axis(mode, chunks, axis):
    X = da.moveaxis(da.from_array(IMAGES, chunks=chunks), 1, axis)
    a, b = (BatchNormTransformer(channel_axis=axis, **WITHOUT_ROWS[mode]) for _ in range(2))
    whole = np.moveaxis(IMAGES, 1, axis)
    weights = np.arange(whole.shape[1 if axis == 0 else 0]) % 3
    positions = np.random.default_rng(7).random(np.delete(whole.shape, axis))
    positions[1] = 0
    for w in (None, weights, positions):
        assert_same(a.partial_fit(X, sample_weight=w), b.partial_fit(whole, sample_weight=w))
    blocks = da.from_array(positions, chunks=2)
    assert_same(a.partial_fit(X, sample_weight=blocks), b.partial_fit(whole, sample_weight=positions))
    y = a.transform(X)
    assert (y.chunks, y.dtype) == (X.chunks, np.float32)
    np.testing.assert_array_equal(y, a.transform(whole))
    np.testing.assert_array_equal(a.inverse_transform(y), a.inverse_transform(a.transform(whole)))


@pytest.mark.parametrize("dtype", [*OTHER_DTYPES, "float32", "float64", "object"])
def test_any_number_type(dtype):
    whole = (np.arange(60).reshape(20, 3) % 7).astype(dtype)
    X = da.from_array(whole, chunks=(6, 2))
    t = BatchNormTransformer().fit(X)
    assert_same(t, BatchNormTransformer().fit(whole))
    y, expected = t.transform(X), t.transform(whole)
    assert y.dtype == y._meta.dtype == expected.dtype == y.compute().dtype
    np.testing.assert_array_equal(y, expected)


def test_sparse_blocks_stay_sparse():
    whole = sparse_columns(40)
    X = da.from_array(whole, chunks=(9, 8)).map_blocks(sparse.csr_array)
    t = BatchNormTransformer(with_mean=False).fit(X)
    assert_same(t, BatchNormTransformer(with_mean=False).fit(sparse.csr_array(whole)))
    y = t.transform(X).blocks[1].compute()
    assert isinstance(y, sparse.csr_array)
    np.testing.assert_array_equal(y.toarray(), t.transform(sparse.csr_array(whole))[9:18].toarray())
    with pytest.raises(ValueError, match="Cannot center sparse"):
        BatchNormTransformer().fit(X)


def test_a_batch_size_cuts_rows_whatever_the_blocks():
    X = da.from_array(ROWS[:, :2], chunks=(13, 1))
    for mode in WITHOUT_ROWS.values():
        a, b = (BatchNormTransformer(batch_size=25, **mode).fit(x, None, WEIGHTS) for x in (X, ROWS[:, :2]))
        assert_same(a, b)
    t = BatchNormTransformer(batch_size=25)
    with pytest.raises(ValueError, match="batch_size needs a Dask X that knows its number of rows"):
        t.fit(X[X[:, 0] > 0])
    with pytest.raises(ValueError, match=r"to_dask_array\(lengths=True\)"):
        t.fit(dask_frame())
    assert vars(t) == vars(BatchNormTransformer(batch_size=25))


@pytest.mark.parametrize("mode", WITHOUT_ROWS)
def test_every_block_is_computed_once(mode):
    computed = []

    def count(block, block_id):
        computed.append(block_id)
        return block

    X = da.from_array(ROWS, chunks=(10, 4)).map_blocks(count, dtype=float, meta=np.empty((0, 0)))
    BatchNormTransformer(**WITHOUT_ROWS[mode]).partial_fit(X, sample_weight=abs(X[:, 0]))
    assert sorted(computed) == [(i, j) for i in range(6) for j in range(2)]
    computed.clear()
    frame = dask_frame().map_partitions(count, 0, meta=FRAME[:0])
    BatchNormTransformer(**WITHOUT_ROWS[mode]).partial_fit(frame, sample_weight=frame["f"])
    assert computed == [0] * 4


# ---- DataFrames ----


@pytest.mark.parametrize("mode", WITHOUT_ROWS)
def test_a_dataframe_teaches_what_pandas_would_and_stays_one(mode):
    X = dask_frame()
    a, b = (BatchNormTransformer(**WITHOUT_ROWS[mode]).partial_fit(x) for x in (X, FRAME))
    assert_same(a, b)
    assert list(a.feature_names_in_) == list(FRAME.columns)
    for x, expected in (
        (a.transform(X), a.transform(FRAME)),
        (a.inverse_transform(a.transform(X)), a.inverse_transform(a.transform(FRAME))),
    ):
        assert isinstance(x, dd.DataFrame)
        assert x.divisions == X.divisions
        frame = x.compute()
        pd.testing.assert_frame_equal(frame, pd.DataFrame(expected, FRAME.index, FRAME.columns))
        assert (x.dtypes == frame.dtypes).all()


def test_the_dtype_of_a_dataframe_is_known_before_it_is_computed():
    for frame, dtype in (
        (FRAME.astype(np.float32), np.float32),
        (FRAME.convert_dtypes(), np.float64),
        (FRAME > 1, np.float64),
        (FRAME.assign(a=FRAME.a > 1), np.float64),
    ):
        y = BatchNormTransformer().fit(dask_frame(frame)).transform(dask_frame(frame))
        assert set(y.dtypes) == set(y.compute().dtypes) == {np.dtype(dtype)}


def test_weights_may_be_a_column():
    X = dask_frame()
    expected = BatchNormTransformer().fit(FRAME, sample_weight=FRAME["f"])
    for weights in (X["f"], X["f"].to_dask_array()):
        assert_same(BatchNormTransformer().fit(X, sample_weight=weights), expected)
    t = BatchNormTransformer().fit(X.to_dask_array(), sample_weight=X["f"])
    np.testing.assert_allclose(t.var_, expected.var_, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:.*The inplace keyword in DataFrame:DeprecationWarning")
def test_files_of_parquet_are_read_with_their_weights(tmp_path):
    dask_frame().to_parquet(tmp_path)
    X = dd.read_parquet(tmp_path)[["a", "b", "f"]]  # which may join files
    expected = BatchNormTransformer().fit(FRAME[["a", "b", "f"]], sample_weight=FRAME["f"])
    t = BatchNormTransformer().fit(X, sample_weight=X["f"])
    assert_same(t, expected)
    np.testing.assert_array_equal(t.transform(X), t.transform(FRAME[["a", "b", "f"]]))


def test_columns_must_be_those_of_fit_and_hold_numbers():
    t = BatchNormTransformer().fit(dask_frame())
    for refuse in (t.partial_fit, t.transform):
        with pytest.raises(ValueError, match="feature names"):
            refuse(dask_frame(FRAME[list("bacdefg")]))
        with pytest.raises(ValueError, match=r"feature names|expecting 7 features"):
            refuse(dask_frame(FRAME[list("ab")]))
    with pytest.raises(ValueError, match="expecting 7 features"):
        t.inverse_transform(dask_frame(FRAME[list("ab")]))
    with pytest.raises(ValueError, match="feature names"):
        t.inverse_transform(dask_frame(FRAME[list("bacdefg")]))
    texts, dates = FRAME.assign(x="1", y="2"), FRAME.assign(x="1", y=pd.Timestamp(0), z=pd.Timedelta(1))
    for use in (t.fit, t.partial_fit, t.transform, t.inverse_transform):
        with pytest.raises(ValueError, match=r"X must hold numbers, got column\(s\) 'x' \(.*'y' \("):
            use(dask_frame(texts))
        with pytest.raises(TypeError, match=r"X must hold numbers, got column 'y' \(date.*column 'z' \(time"):
            use(dask_frame(dates))


# ---- laziness ----


def test_transform_computes_nothing():
    t, plain = BatchNormTransformer().fit(FRAME), BatchNormTransformer().fit(ROWS)
    X = da.from_array(ROWS, chunks=(10, 4)).map_blocks(never, dtype=float, meta=np.empty((0, 0)))
    frame = dask_frame().map_partitions(never, meta=FRAME[:0])
    for lazy in (plain.transform(X), plain.inverse_transform(X), t.transform(frame), t.inverse_transform(frame)):
        with pytest.raises(AssertionError, match="computed"):
            lazy.compute()


def test_tasks_hold_no_transformer_and_little_else():
    t = BatchNormTransformer().fit(ROWS)
    X = da.from_array(ROWS, chunks=(1, 7)).persist()
    before = len(pickle.dumps(dict(X.dask)))
    grown = len(pickle.dumps(dict(t.transform(X).dask))) - before
    assert grown < 300 * N
    assert b"BatchNormTransformer\x94\x93" not in pickle.dumps(dict(t.transform(X).dask))


def test_results_are_those_of_memory_where_scikit_learn_wraps_them():
    X = da.from_array(ROWS, chunks=10)
    t = BatchNormTransformer().fit(X)
    assert isinstance(t.set_output(transform="default").transform(X), da.Array)
    np.testing.assert_array_equal(BatchNormTransformer().fit_transform(X), t.transform(ROWS))
    for container in ("pandas", "polars"):
        with pytest.raises(ValueError, match=r"set_output\(transform='default'\)"):
            t.set_output(transform=container).transform(X)
    with pytest.raises(TypeError, match="out is only for dense NumPy input"):
        t.set_output(transform="default").transform(X, out=np.empty_like(ROWS))


def test_a_transform_never_writes_into_its_blocks():
    X = da.from_array(ROWS.copy(), chunks=10).persist()
    t = BatchNormTransformer(copy=False).fit(X)
    np.testing.assert_array_equal(t.transform(X, copy=False), t.transform(ROWS.copy()))
    np.testing.assert_array_equal(X, ROWS)


# ---- refusals ----


def refusals():
    X = da.from_array(ROWS, chunks=(10, 4))
    infinite = ROWS.copy()
    infinite[[33, 47], [5, 6]] = np.inf
    Y = da.from_array(infinite, chunks=(10, 4))
    huge = da.from_array(np.array([[0.0, 1.0], [1e200, 1.0]]), chunks=1)
    small = da.from_array(ROWS[:, 0], chunks=10)
    return {
        "infinite": (Y, None, r"row\(s\) (33, column\(s\) 5|47, column\(s\) 6)\."),
        "infinite, unknown rows": (Y[Y[:, 0] > 0], None, r"row\(s\) [37] of a block, column\(s\) [56]\."),
        "infinite frame": (dask_frame(pd.DataFrame(infinite, columns=list("abcdefg"))), None, r"'f'|'g'"),
        "overflow": (huge, None, r"overflows float64 in column\(s\) 0"),
        "no rows": (X[:0], None, "Found array with 0 sample"),
        "no rows left": (X[X[:, 0] > 1e9], None, "Found array with 0 sample"),
        "one dimension": (small, None, "X must have 2 dimensions"),
        "unknown columns": (X[:, da.from_array(ROWS[0] > 0, chunks=4)], None, "number of features of X must be known"),
        "a Series": (dask_frame()["a"], None, "X must have 2 dimensions|got a Series"),
        "text": (da.from_array(np.array([["a", "b"]]), chunks=1), None, "convert|dtype"),
        "a worker's error": (X.map_blocks(never, dtype=float, meta=np.empty((0, 0))), None, "computed"),
        "weights of another length": (X, WEIGHTS[1:], "sample_weight.shape"),
        "Dask weights of another length": (X, small[1:], "sample_weight.shape"),
        "weights for unknown rows": (X[X[:, 0] > 0], WEIGHTS, "must be a Dask array or Series"),
        "weights in other blocks": (dask_frame(), small, "as many blocks as X, 4, got 6"),
        "weights of other lengths": (X[X[:, 0] > 1e4], small, "cut into blocks as X is"),
        "negative weights": (X, -WEIGHTS, "Negative"),
        "Dask negative weights": (X, -small, "Negative"),
        "Dask weights with NaN": (X, X[:, 2], "NaN"),
        "weights of 0": (X, 0 * WEIGHTS, "at least one non-zero"),
        "Dask weights of 0": (X, 0 * small, "at least one non-zero"),
        "matrix of weights": (X, X, "Sample weights must be 1D"),
    }


@pytest.mark.parametrize("made", [np.asarray, da.from_array])
def test_weights_of_positions_are_checked_as_in_memory(made):
    X, weights = da.from_array(IMAGES, chunks=(2, 5, 2, 3)), np.ones((6, 4, 3))
    bn = BatchNormTransformer(channel_axis=1)
    for wrong, message in (
        (weights[:, :3], r"for each of 6 samples, or for each of their positions, \(6, 4, 3\); got shape \(6, 3, 3\)"),
        (-weights, "Negative"),
        (0 * weights, "at least one non-zero"),
        (weights * np.nan, "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            bn.fit(X, sample_weight=made(wrong))
    with pytest.raises(ValueError, match=r"must be a Dask array or Series|compute_chunk_sizes\(\)"):
        bn.fit(X[X[:, 0, 0, 0] > 0], sample_weight=made(weights))
    with pytest.raises(ValueError, match=r"compute_chunk_sizes\(\)"):
        bn.fit(X[:, :, X[0, 0, :, 0] > 100], sample_weight=da.from_array(weights))
    with pytest.raises(ValueError, match=r"X must hold at least one value, got shape \(6, 5, 0, 3\)"):
        bn.fit(X[:, :, :0], sample_weight=made(weights[:, :0]))
    assert vars(bn) == vars(BatchNormTransformer(channel_axis=1))


def test_masked_weights_are_0():
    X, mask = da.from_array(IMAGES, chunks=(2, 5, 2, 3)), np.arange(6 * 4 * 3).reshape(6, 4, 3) % 3 == 0
    for weights in (np.ma.array(np.full(mask.shape, 2.0), mask=mask), np.ma.array(np.ones(6), mask=mask[:, 0, 1])):
        expected = BatchNormTransformer(channel_axis=1).fit(IMAGES, sample_weight=weights.filled(0))
        for w in (weights, da.from_array(weights, chunks=2)):
            assert_same(BatchNormTransformer(channel_axis=1).fit(X, sample_weight=w), expected)


@pytest.mark.parametrize("where", [1, 3])
def test_weights_below_ddof_are_refused_however_positions_are_cut(where):
    X, some = da.from_array(IMAGES, chunks=(2, 5, where, 3)), np.zeros(6)
    some[0] = 1.0  # once for each of 12 positions
    kept = BatchNormTransformer(channel_axis=1, ddof=12).fit(X, sample_weight=some)
    assert_same(kept, BatchNormTransformer(channel_axis=1, ddof=12).fit(IMAGES, sample_weight=some))
    with pytest.raises(ValueError, match="must sum to more than ddof"):
        BatchNormTransformer(channel_axis=1, ddof=12).fit(X, sample_weight=some / 2)


@pytest.mark.parametrize("name", list(refusals()))
def test_a_refused_x_changes_nothing(name):
    X, weights, message = refusals()[name]
    fresh = BatchNormTransformer()
    with pytest.raises((AssertionError, TypeError, ValueError), match=message):
        fresh.fit(X, sample_weight=weights)
    assert vars(fresh) == vars(BatchNormTransformer())
    fitted = BatchNormTransformer().fit(FRAME if hasattr(X, "columns") else ROWS)
    before = dict(vars(fitted))
    for learn in (fitted.partial_fit, fitted.fit):
        with pytest.raises((AssertionError, TypeError, ValueError), match=message if learn == fitted.fit else None):
            learn(X, sample_weight=weights)
        assert vars(fitted) == before


def test_an_infinity_is_refused_when_its_block_is_computed():
    X, _, _ = refusals()["infinite"]
    t = BatchNormTransformer().fit(ROWS)
    with pytest.raises(ValueError, match=r"row\(s\) 3 of a block, column\(s\) 5"):
        t.transform(X).blocks[3].compute()
    t.transform(X).blocks[0].compute()
    frame = refusals()["infinite frame"][0]
    with pytest.raises(ValueError, match=r"row\(s\) .* of a block, column\(s\) 5 \('f'\)"):
        BatchNormTransformer().fit(FRAME).transform(frame).partitions[2].compute()


def test_other_collections_are_refused():
    for collection in (dask.delayed(ROWS), dask.bag.from_sequence([ROWS]) if hasattr(dask, "bag") else dask.delayed(1)):
        with pytest.raises((TypeError, ValueError)):
            BatchNormTransformer().fit(collection)


def test_momentum_needs_two_values_of_the_whole_not_of_a_block():
    t = BatchNormTransformer(momentum=0.9)
    assert_same(
        t.partial_fit(da.ones((2, 1), chunks=1)), BatchNormTransformer(momentum=0.9).partial_fit(np.ones((2, 1)))
    )
    with pytest.raises(ValueError, match="at least two values per feature"):
        t.partial_fit(da.ones((1, 1)))
    with pytest.raises(ValueError, match="n_samples=1"):
        t.partial_fit(da.ones((3, 1), chunks=1), sample_weight=[0, 1, 0])


# ---- schedulers ----


@pytest.mark.parametrize("mode", ["cumulative", *slow("halflife", "momentum")])
@pytest.mark.usefixtures("client")
def test_any_scheduler_gives_the_same_bits(mode):
    X, frame = da.from_array(ROWS, chunks=(7, 3)), dask_frame()
    for x in (X, frame):
        found = set()
        for scheduler in ("synchronous", "threads", "distributed"):
            with dask.config.set(scheduler=scheduler):
                t = BatchNormTransformer(**WITHOUT_ROWS[mode]).partial_fit(x).partial_fit(x)
                found.add((*bits(t), np.asarray(t.transform(x)).tobytes()))
        assert len(found) == 1


def test_a_worker_that_dies_in_the_middle_of_a_fit_changes_nothing_of_the_result(client, tmp_path):
    died = tmp_path / "died"

    def die_once(block, block_id):
        if block_id[0] == 5 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
        return block

    X = da.from_array(ROWS, chunks=(5, 7))
    with dask.config.set(scheduler="distributed"):
        t = BatchNormTransformer().fit(X.map_blocks(die_once, dtype=float, meta=np.empty((0, 0))))
    assert died.exists()
    client.wait_for_workers(2)
    assert bits(t) == bits(BatchNormTransformer().fit(X))


def test_the_tree_has_the_fan_in_it_says(monkeypatch):
    widest = []
    joined = _dask._batches.joined

    def spy(parts, halflife=None):
        widest.append(len(parts))
        return joined(parts, halflife)

    monkeypatch.setattr(_dask._batches, "joined", spy)
    BatchNormTransformer().fit(da.from_array(normal(5, (100, 1)), chunks=1))
    assert sorted(widest) == sorted([8] * 12 + [4] + [8, 5] + [2])
